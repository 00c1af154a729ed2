//! A length of time as operators write it: `500ms`, `10s`, `5m`, `1h30m`, `24h`, `7d`.
//!
//! One spelling for every duration in configuration and rules. A bare number is refused: nobody
//! should have to guess whether it counts seconds or milliseconds. Never longer than 100 years,
//! so that adding one to a point in time cannot overflow.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest span: 100 years, in milliseconds.
const MILLIS_MAX: u64 = 36_525 * 86_400_000;

/// The units, longest first, and their milliseconds. `ms` stands before `m` and `s` where a text is
/// parsed, because it starts like the one and ends like the other.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A length of time with millisecond resolution, read from and shown as text such as `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

impl Span {
    /// From a whole number of milliseconds; more than 100 years becomes 100 years.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(if millis > MILLIS_MAX { MILLIS_MAX } else { millis }))
    }

    /// From a whole number of seconds; more than 100 years becomes 100 years.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_millis(secs.saturating_mul(1_000))
    }

    /// The same length as the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }

    /// Whether it is no time at all.
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

/// Why a text is no length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSpan {
    /// No number where one must stand.
    #[error(
        "`{0}` is not a length of time; write a number and a unit, as in 500ms, 10s, 5m, 1h30m, 7d"
    )]
    NotASpan(String),
    /// A number without its unit.
    #[error("`{0}` has no unit; write {0}s for seconds (units are ms, s, m, h, d)")]
    NoUnit(String),
    /// A unit that there is not.
    #[error("unknown unit `{unit}` in `{text}`; units are ms, s, m, h, d")]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// Units not in falling order, or one twice.
    #[error("`{0}` has its units out of order; write the longest first, each once, as in 1h30m")]
    OutOfOrder(String),
    /// More than 100 years.
    #[error("`{0}` is too long; the longest is 100 years (36525d)")]
    TooLong(String),
}

impl FromStr for Span {
    type Err = BadSpan;

    fn from_str(text: &str) -> Result<Self, BadSpan> {
        let not_a_span = || BadSpan::NotASpan(text.to_owned());
        let mut rest = text.trim();
        if rest.is_empty() || !rest.is_ascii() {
            return Err(not_a_span());
        }
        let mut millis: u64 = 0;
        let mut units = UNITS.iter();
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = tail.split_at(letters);
            if number.is_empty() {
                return Err(not_a_span());
            }
            if unit.is_empty() {
                // Only a lone number deserves the hint; `1.5h` and `5 m` are malformed.
                let lone = tail.is_empty() && number.len() == text.trim().len();
                return Err(if lone { BadSpan::NoUnit(number.to_owned()) } else { not_a_span() });
            }
            if !UNITS.iter().any(|(known, _)| *known == unit) {
                return Err(BadSpan::UnknownUnit { unit: unit.to_owned(), text: text.to_owned() });
            }
            let Some((_, size)) = units.find(|(known, _)| *known == unit) else {
                return Err(BadSpan::OutOfOrder(text.to_owned()));
            };
            millis = number
                .parse::<u64>()
                .ok()
                .and_then(|number| number.checked_mul(*size))
                .and_then(|part| millis.checked_add(part))
                .filter(|millis| *millis <= MILLIS_MAX)
                .ok_or_else(|| BadSpan::TooLong(text.to_owned()))?;
            rest = tail;
        }
        Ok(Self::from_millis(millis))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(MILLIS_MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in UNITS {
            if rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Span;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a length of time in quotes, such as \"500ms\", \"10s\", \"1h30m\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_operators_write() {
        for (text, millis, shown) in [
            ("500ms", 500, "500ms"),
            ("10s", 10_000, "10s"),
            ("5m", 300_000, "5m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("24h", 86_400_000, "1d"),
            ("7d", 604_800_000, "7d"),
            ("90m", 5_400_000, "1h30m"),
            ("1d2h3m4s5ms", 93_784_005, "1d2h3m4s5ms"),
            (" 1s ", 1_000, "1s"),
            ("0s", 0, "0s"),
        ] {
            let span: Span = text.parse().expect(text);
            assert_eq!(span.get(), Duration::from_millis(millis), "{text}");
            assert_eq!(span.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn an_error_says_what_to_write() {
        let error = |text: &str| text.parse::<Span>().expect_err(text).to_string();
        let teach =
            "is not a length of time; write a number and a unit, as in 500ms, 10s, 5m, 1h30m, 7d";
        for text in ["", "s", "1.5h", "-1s", "5 m", "1h30", "½h"] {
            assert_eq!(error(text), format!("`{text}` {teach}"));
        }
        assert_eq!(
            error("30"),
            "`30` has no unit; write 30s for seconds (units are ms, s, m, h, d)"
        );
        assert_eq!(error("5min"), "unknown unit `min` in `5min`; units are ms, s, m, h, d");
        assert_eq!(
            error("30m1h"),
            "`30m1h` has its units out of order; write the longest first, each once, as in 1h30m"
        );
        assert_eq!(
            error("99999999999999999999d"),
            "`99999999999999999999d` is too long; the longest is 100 years (36525d)"
        );
    }

    #[test]
    fn a_number_in_a_file_is_answered_with_the_spelling() {
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only its error is looked at")]
        struct Holder {
            wait: Span,
        }
        let error = toml::from_str::<Holder>("wait = 5").expect_err("a number");
        assert_eq!(
            error.message(),
            "invalid type: integer `5`, expected a length of time in quotes, such as \"500ms\", \"10s\", \"1h30m\""
        );
    }

    proptest! {
        #[test]
        fn shown_and_read_again_it_is_the_same(millis in 0..=MILLIS_MAX) {
            let span = Span::from_millis(millis);
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }

        #[test]
        fn never_panics(text in any::<String>()) {
            drop(text.parse::<Span>());
        }
    }
}
