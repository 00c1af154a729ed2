//! Bytes of a publish -> a value that conditions and texts can look into. One file a codec.
//!
//! Devices send anything: every decoder takes any bytes, never panics, and stays within
//! [`Limits`]. Nothing is guessed: an absent reading (NaN, null, a missing field, an empty payload)
//! never becomes 0, and what cannot be read says why without repeating what was sent.

mod budget;
mod cbor;
mod compression;
mod csv;
mod json;
pub mod layout;
mod msgpack;
pub mod names;
mod number;
mod senml;
pub mod sparkplug;
mod stored;
mod text;
pub mod value;

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;

use crate::clock::Timestamp;
pub use compression::Compression;
use layout::Layout;
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
    /// CBOR (RFC 8949).
    Cbor,
    /// MessagePack.
    Msgpack,
    /// SenML as JSON (RFC 8428).
    Senml,
    /// SenML as CBOR (RFC 8428).
    SenmlCbor,
    /// Sparkplug B 3.0, which is read with its topic and the births before: see [`sparkplug::Book`].
    Sparkplug,
    /// One line of cells: CSV, SmartREST.
    Csv,
    /// Bytes at places that the rule's layout names.
    Binary,
}

impl Decode {
    /// Every way, in the order of the declaration.
    pub const ALL: &[Self] = &[
        Self::Auto,
        Self::Json,
        Self::Number,
        Self::Text,
        Self::Cbor,
        Self::Msgpack,
        Self::Senml,
        Self::SenmlCbor,
        Self::Sparkplug,
        Self::Csv,
        Self::Binary,
    ];

    /// The word in rule files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Json => "json",
            Self::Number => "number",
            Self::Text => "text",
            Self::Cbor => "cbor",
            Self::Msgpack => "msgpack",
            Self::Senml => "senml",
            Self::SenmlCbor => "senml_cbor",
            Self::Sparkplug => "sparkplug",
            Self::Csv => "csv",
            Self::Binary => "binary",
        }
    }

    /// Whether it reads text, before which Windows software likes to put a byte order mark, and
    /// which devices that are programmed in C end with a zero byte.
    const fn is_text(self) -> bool {
        matches!(
            self,
            Self::Auto | Self::Json | Self::Number | Self::Text | Self::Senml | Self::Csv
        )
    }
}

/// How a payload is read, in full. Rules whose codecs are equal read a publish once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Codec {
    /// What the bytes are.
    pub how: Decode,
    /// What is around them.
    pub compression: Compression,
    /// Where what is, for [`Decode::Binary`].
    pub layout: Option<Arc<Layout>>,
}

impl From<Decode> for Codec {
    fn from(how: Decode) -> Self {
        Self { how, ..Self::default() }
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
    /// Over [`Limits::bytes_max`] once it is inflated, or its names are written out.
    #[error("unpacked, the payload is larger than {0} bytes")]
    Expands(usize),
    /// It ends too early, or is something else.
    #[error("the payload is not {0}, or not all of it")]
    NotInflated(&'static str),
    /// A binary format was left: what is there is cut off, or something else.
    #[error("the payload is not {format}: it stops making sense at byte {at}")]
    Malformed {
        /// The name of the format.
        format: &'static str,
        /// Counted from 0.
        at: usize,
    },
    /// It is no pack of SenML records.
    #[error("the payload is not SenML: {}{why}", Record(*.record))]
    NotSenml {
        /// Counted from 1; 0: the pack itself.
        record: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It is not one line of cells.
    #[error("the payload is not a line of cells: {0}")]
    NotCsv(&'static str),
    /// It is no Sparkplug B message.
    #[error("not a Sparkplug B message: {0}")]
    NotSparkplug(&'static str),
    /// A birth names more metrics than [`sparkplug::Room::node_metrics_max`].
    #[error("the Sparkplug B node has more than {0} names, aliases and devices")]
    TooManyMetrics(usize),
    /// Shorter than its layout.
    #[error("the payload has {bytes} bytes, and its layout needs {needed}")]
    TooShort {
        /// How many it has.
        bytes: usize,
        /// How many it needs.
        needed: usize,
    },
    /// `binary` without a layout.
    #[error("there is no layout that says where the payload's fields are")]
    NoLayout,
}

/// `record 3: `, or nothing for the whole.
struct Record(usize);

impl std::fmt::Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "record {}: ", self.0) }
    }
}

/// Reads `bytes` the way `codec` says; `now` is what relative times of SenML are relative to.
///
/// # Errors
/// Why they cannot be read so. [`Decode::Sparkplug`] always fails: [`sparkplug::Book::read`] reads it.
pub fn decode(
    codec: &Codec,
    bytes: &[u8],
    limits: Limits,
    now: Timestamp,
) -> Result<Value, Undecodable> {
    let bytes = inflated(codec, bytes, limits)?;
    let bytes: &[u8] = if codec.how.is_text() { bare(&bytes) } else { &bytes };
    match codec.how {
        Decode::Auto => match json::decode(bytes, limits) {
            Err(Undecodable::NotJson { .. } | Undecodable::Empty) => {
                number::decode(bytes).or_else(|_| text::decode(bytes))
            }
            decoded => decoded,
        },
        Decode::Json => json::decode(bytes, limits),
        Decode::Number => number::decode(bytes),
        Decode::Text => text::decode(bytes),
        Decode::Cbor => cbor::decode(bytes, limits),
        Decode::Msgpack => msgpack::decode(bytes, limits),
        Decode::Senml => senml::decode(senml::Form::Json, bytes, limits, now),
        Decode::SenmlCbor => senml::decode(senml::Form::Cbor, bytes, limits, now),
        Decode::Csv => csv::decode(bytes, limits),
        Decode::Binary => match &codec.layout {
            Some(layout) => layout.read(bytes, limits),
            None => Err(Undecodable::NoLayout),
        },
        Decode::Sparkplug => {
            Err(Undecodable::NotSparkplug("it cannot be read without its topic and births"))
        }
    }
}

/// Text without the byte order mark before it, and without the zero bytes that C ends it with.
fn bare(text: &[u8]) -> &[u8] {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    text.get(..end).filter(|bare| !bare.is_empty()).unwrap_or(text)
}

/// The bytes that the codec is to read, without what is around them. [`decode`] does it by itself;
/// who calls [`sparkplug::Book::read`] does it before.
///
/// # Errors
/// There are too many of them, before or after, or they are not what the codec says.
pub fn inflated<'b>(
    codec: &Codec,
    bytes: &'b [u8],
    limits: Limits,
) -> Result<Cow<'b, [u8]>, Undecodable> {
    if bytes.len() > limits.bytes_max {
        return Err(Undecodable::TooLarge(limits.bytes_max));
    }
    let compression = match (codec.compression, codec.how) {
        // Any first two bytes may be a reading.
        (Compression::Auto, Decode::Binary) => Compression::None,
        (compression, _) => compression,
    };
    compression::inflate(compression, bytes, limits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is now for the tests of all codecs.
    pub(super) const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    /// Bytes written as hexadecimal digits.
    pub(super) fn hex(digits: &str) -> Vec<u8> {
        let digit = |digit: u8| char::from(digit).to_digit(16).expect("a digit");
        let byte =
            |pair: &[u8]| u8::try_from(pair.iter().fold(0, |all, one| all * 16 + digit(*one)));
        assert!(digits.len().is_multiple_of(2), "{digits}");
        digits.as_bytes().chunks(2).map(|pair| byte(pair).expect("two digits")).collect()
    }

    /// What a codec makes of a payload, or why not.
    pub(super) fn shown_by(
        decode: fn(&[u8], Limits) -> Result<Value, Undecodable>,
        payload: &[u8],
    ) -> String {
        match decode(payload, Limits::default()) {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("! {error}"),
        }
    }

    fn read(how: Decode, payload: &[u8], limits: Limits) -> Result<Value, Undecodable> {
        decode(&how.into(), payload, limits, NOW)
    }

    fn shown(how: Decode, payload: &[u8]) -> String {
        match read(how, payload, Limits::default()) {
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
                (b"{\"c\":true}\0", "{\"c\": true}"),
                (b"21.5\0\0\0", "21.5"),
                (b"on\0", "\"on\""),
                (b"\0", "\"\\u0000\""),
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
                let found = read(how, payload.as_bytes(), limits).err();
                assert_eq!(found, expected, "{how:?} {payload}");
            }
        }
        let deep = "[".repeat(100_000);
        assert_eq!(
            read(Decode::Json, deep.as_bytes(), Limits::default()),
            Err(Undecodable::TooDeep(32))
        );
    }

    #[test]
    fn a_body_is_inflated_before_it_is_read() {
        // `{"a":1}`
        let gzip = hex("1f8b0800000000000203ab564a54b232ac0500afac1b5607000000");
        assert_eq!(shown(Decode::Auto, &gzip), "{\"a\": 1}");
        assert_eq!(shown(Decode::Json, &gzip), "{\"a\": 1}");
        let codec = Codec { compression: Compression::None, ..Decode::Json.into() };
        let error = decode(&codec, &gzip, Limits::default(), NOW);
        assert_eq!(error, Err(Undecodable::NotJson { line: 1, column: 1 }));
        let limits = Limits { bytes_max: 6, ..Limits::default() };
        let found = decode(&Decode::Json.into(), &gzip, limits, NOW);
        assert_eq!(found, Err(Undecodable::TooLarge(6)));
    }

    #[test]
    fn a_layout_s_bytes_are_not_taken_for_gzip() {
        let layout: toml::Value =
            toml::from_str("fields = [{ name = 'n', at = 0, type = 'u16be' }]").expect("TOML");
        let layout = Layout::parse(&layout).expect("right");
        let codec = Codec { layout: Some(Arc::new(layout)), ..Decode::Binary.into() };
        let found = decode(&codec, &hex("1f8b"), Limits::default(), NOW);
        assert_eq!(found.map(|value| value.to_string()), Ok("{\"n\":8075}".to_owned()));
        assert_eq!(
            read(Decode::Binary, &hex("1f8b"), Limits::default()),
            Err(Undecodable::NoLayout)
        );
    }

    #[test]
    fn a_byte_order_mark_is_taken_off_text_only() {
        assert_eq!(shown(Decode::Csv, b"\xef\xbb\xbf1,2"), "[1, 2]");
        assert_eq!(shown(Decode::Msgpack, b"\xef"), "-17");
        assert!(shown(Decode::Msgpack, b"\xef\xbb\xbf1").starts_with("! "));
    }

    #[test]
    fn words_are_told_apart() {
        let words: Vec<&str> = Decode::ALL.iter().map(|how| how.as_str()).collect();
        assert_eq!(
            words.join(" "),
            "auto json number text cbor msgpack senml senml_cbor sparkplug csv binary"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            for how in Decode::ALL {
                drop(read(*how, &bytes, Limits::default()));
            }
        }

        #[test]
        fn almost_json_never_panics(text in "[\\[\\]{}:,\"\\\\a-c0-9.eE+ \n-]{0,60}") {
            for how in Decode::ALL {
                drop(read(*how, text.as_bytes(), Limits::default()));
            }
        }

        #[test]
        fn what_is_shown_is_json_again(text in "[\\[\\]{}:,\"a-c0-9.e-]{0,40}") {
            if let Ok(value) = read(Decode::Json, text.as_bytes(), Limits::default()) {
                let again = read(Decode::Json, value.to_string().as_bytes(), Limits::default());
                prop_assert_eq!(again, Ok(value));
            }
        }
    }
}
