//! Bytes of a publish -> a value that conditions and texts can look into. One file a codec.
//!
//! Devices send anything: every decoder takes any bytes, never panics, and stays within
//! [`Limits`]. Nothing is guessed: an absent reading (NaN, null, a missing field, an empty payload)
//! never becomes 0, and what cannot be read says why without repeating what was sent.

mod json;
mod number;
mod stored;
mod text;
pub mod value;

use serde::Deserialize;

pub use value::Value;

/// How a rule reads its payloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decode {
    /// JSON; what is no JSON is a number; what is no number is text. An empty payload is empty text.
    #[default]
    Auto,
    /// JSON (RFC 8259).
    Json,
    /// One decimal number.
    Number,
    /// UTF-8 text, as it came.
    Text,
}

impl Decode {
    /// Every way, in the order of the declaration.
    pub const ALL: &[Self] = &[Self::Auto, Self::Json, Self::Number, Self::Text];

    /// The word in rule files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Number => "number",
            Self::Text => "text",
        }
    }
}

/// Bounds on one payload. Beyond them a payload is [`Undecodable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes.
    pub bytes_max: usize,
    /// Most levels of lists and maps inside each other.
    pub depth_max: usize,
    /// Most values in all: list elements, map entries, and the payload itself.
    pub values_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 262_144, depth_max: 32, values_max: 20_000 }
    }
}

/// Why a payload could not be read. Never holds any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecodable {
    /// Over [`Limits::bytes_max`].
    #[error("the payload is larger than {0} bytes")]
    TooLarge(usize),
    /// Nothing in it, where JSON or a number was asked for.
    #[error("the payload is empty")]
    Empty,
    /// Neither JSON, nor a number, nor text.
    #[error("the payload is not UTF-8 text")]
    NotUtf8,
    /// The JSON parser stopped.
    #[error("the payload is not JSON: line {line}, column {column}")]
    NotJson {
        /// Counted from 1.
        line: usize,
        /// Counted from 1; 0 at the start.
        column: usize,
    },
    /// No number, or more than one. A decimal comma is refused too: `1,234` may be either of two
    /// numbers, and an alarm must not depend on a guess.
    #[error("the payload is not a number (digits, one point, no comma, no unit)")]
    NotNumber,
    /// `nan`, `inf`: the device says that it has no reading.
    #[error("the payload is not a finite number: the device has no reading")]
    NotFinite,
    /// Over [`Limits::depth_max`].
    #[error("the payload is nested deeper than {0} levels")]
    TooDeep(usize),
    /// Over [`Limits::values_max`].
    #[error("the payload holds more than {0} values")]
    TooManyValues(usize),
}

/// Reads `bytes` the way `how` says.
///
/// # Errors
/// Why they cannot be read so.
pub fn decode(how: Decode, bytes: &[u8], limits: Limits) -> Result<Value, Undecodable> {
    if bytes.len() > limits.bytes_max {
        return Err(Undecodable::TooLarge(limits.bytes_max));
    }
    // Windows software likes to begin with a byte order mark; it is no part of the content.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match how {
        Decode::Json => json::decode(bytes, limits),
        Decode::Number => number::decode(bytes),
        Decode::Text => text::decode(bytes),
        Decode::Auto => match json::decode(bytes, limits) {
            Err(Undecodable::NotJson { .. } | Undecodable::Empty) => {
                number::decode(bytes).or_else(|_| text::decode(bytes))
            }
            decoded => decoded,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(how: Decode, payload: &[u8]) -> String {
        match decode(how, payload, Limits::default()) {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("! {error}"),
        }
    }

    fn check(how: Decode, cases: &[(&[u8], &str)]) {
        for (payload, expected) in cases {
            let text = String::from_utf8_lossy(payload);
            assert_eq!(shown(how, payload), *expected, "{how:?} of {text:?}");
        }
    }

    #[test]
    fn auto_is_json_else_a_number_else_text() {
        check(
            Decode::Auto,
            &[
                (b"{\"a\":1}", "{\"a\": 1}"),
                (b"21.5", "21.5"),
                (b" 21.5\n", "21.5"),
                (b"+5", "5"),
                (b".5", "0.5"),
                (b"007", "7"),
                (b"true", "true"),
                (b"null", "null"),
                (b"\"Online\"", "\"Online\""),
                (b"Online", "\"Online\""),
                (b"", "\"\""),
                (b"nan", "\"nan\""),
                (b"inf", "\"inf\""),
                (b"21,5", "\"21,5\""),
                (b"0x1F", "\"0x1F\""),
                (b"{\"cut\": ", "\"{\\\"cut\\\": \""),
                (b"\xef\xbb\xbf{\"bom\":true}", "{\"bom\": true}"),
                (b"\xff\xd8\xff", "! the payload is not UTF-8 text"),
            ],
        );
    }

    #[test]
    fn json_says_where_it_stopped_and_not_what_it_read() {
        check(
            Decode::Json,
            &[
                (b"{\"a\":{\"b\":[1,-2.5,\"x\"]}}", "{\"a\": {\"b\": [1, -2.5, \"x\"]}}"),
                (b"{\"b\":1,\"a\":2,\"b\":3}", "{\"a\": 2, \"b\": 3}"),
                (b"18446744073709551615", "18446744073709551615"),
                (b"-9223372036854775808", "-9223372036854775808"),
                (b"1e3", "1000.0"),
                (b"", "! the payload is empty"),
                (b"  \n", "! the payload is empty"),
                (b"{\"a\": sesame", "! the payload is not JSON: line 1, column 7"),
                (b"{} {}", "! the payload is not JSON: line 1, column 4"),
                (b"NaN", "! the payload is not JSON: line 1, column 1"),
                (b"1e999", "! the payload is not JSON: line 1, column 5"),
                (b"\"\xff\"", "! the payload is not JSON: line 1, column 2"),
            ],
        );
    }

    #[test]
    fn a_number_is_a_number_and_nothing_else() {
        let not = "! the payload is not a number (digits, one point, no comma, no unit)";
        let no_reading = "! the payload is not a finite number: the device has no reading";
        check(
            Decode::Number,
            &[
                (b" 21.5\n", "21.5"),
                (b"-4", "-4"),
                (b"1e3", "1000.0"),
                (b"9007199254740993", "9007199254740993"),
                (b"21,5", not),
                (b"1,234", not),
                (b"21.5 C", not),
                (b"true", not),
                (b"null", not),
                (b"\xff", not),
                (b"", "! the payload is empty"),
                (b"\n", "! the payload is empty"),
                (b"nan", no_reading),
                (b"-inf", no_reading),
                (b"1e999", no_reading),
            ],
        );
    }

    #[test]
    fn text_is_as_it_came() {
        check(
            Decode::Text,
            &[
                (b" on\n", "\" on\\n\""),
                (b"21.5", "\"21.5\""),
                (b"", "\"\""),
                (b"\xc3\xa4", "\"ä\""),
                (b"\xc3", "! the payload is not UTF-8 text"),
            ],
        );
    }

    #[test]
    fn limits_are_kept() {
        let limits = Limits { bytes_max: 20, depth_max: 2, values_max: 4 };
        for (payload, expected) in [
            ("[[1]]", None),
            ("[[[1]]]", Some(Undecodable::TooDeep(2))),
            ("{\"a\":{\"b\":{}}}", Some(Undecodable::TooDeep(2))),
            ("[1,2,3]", None),
            ("[1,2,3,4]", Some(Undecodable::TooManyValues(4))),
            ("\"012345678901234567\"", None),
            ("\"0123456789012345678\"", Some(Undecodable::TooLarge(20))),
        ] {
            for how in [Decode::Json, Decode::Auto] {
                let found = decode(how, payload.as_bytes(), limits).err();
                assert_eq!(found, expected, "{how:?} {payload}");
            }
        }
        let deep = "[".repeat(100_000);
        assert_eq!(
            decode(Decode::Json, deep.as_bytes(), Limits::default()),
            Err(Undecodable::TooDeep(32))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for how in Decode::ALL {
                drop(decode(*how, &bytes, Limits::default()));
            }
        }

        #[test]
        fn almost_json_never_panics(text in "[\\[\\]{}:,\"\\\\a-c0-9.eE+ \n-]{0,60}") {
            for how in Decode::ALL {
                drop(decode(*how, text.as_bytes(), Limits::default()));
            }
        }

        #[test]
        fn what_is_shown_is_json_again(text in "[\\[\\]{}:,\"a-c0-9.e-]{0,40}") {
            if let Ok(value) = decode(Decode::Json, text.as_bytes(), Limits::default()) {
                let again = decode(Decode::Json, value.to_string().as_bytes(), Limits::default());
                prop_assert_eq!(again, Ok(value));
            }
        }
    }
}
