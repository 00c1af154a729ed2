//! What messages cost: a price for each channel, of an SMS segment or of a message.
//!
//! In no currency: that of whoever wrote the price. Kept in millionths, so that a sum of ten million
//! prices is exact.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::model::Channel;

const MILLIONTHS: u64 = 1_000_000;

/// An amount of money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(u64);

impl Money {
    /// So many times as much.
    #[must_use]
    pub const fn times(self, count: u64) -> Self {
        Self(self.0.saturating_mul(count))
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Whether it is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The difference of two, signed, as text; `None` where there is none.
    pub fn difference(self, other: Self) -> Option<String> {
        let sign = if self > other { '+' } else { '-' };
        (self != other).then(|| format!("{sign}{}", Self(self.0.abs_diff(other.0))))
    }
}

/// At least two decimals, and all that there are.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, mut part) = (self.0 / MILLIONTHS, self.0 % MILLIONTHS);
        let mut digits = 6;
        while digits > 2 && part.is_multiple_of(10) {
            part /= 10;
            digits -= 1;
        }
        f.pad(&format!("{whole}.{part:0digits$}"))
    }
}

impl FromStr for Money {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no price; write it as 0.08, with at most six decimals");
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !are_digits(whole) || !are_digits(part) || part.len() > 6 || whole.len() > 9 {
            return Err(wrong());
        }
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        Ok(Self(number(whole)? * MILLIONTHS + number(&format!("{part:0<6}"))?))
    }
}

impl Serialize for Money {
    #[expect(clippy::cast_precision_loss, reason = "an amount of money is far below 2^53")]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0 as f64 / MILLIONTHS as f64)
    }
}

/// The prices that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prices(BTreeMap<Channel, Money>);

impl Prices {
    /// From what was written, as `sms=0.08`; of a channel that is there twice the last counts.
    pub fn new(prices: impl IntoIterator<Item = (Channel, Money)>) -> Self {
        Self(prices.into_iter().collect())
    }

    /// The price of a segment (SMS) or of a message; `None`: nobody said.
    pub fn of(&self, channel: Channel) -> Option<Money> {
        self.0.get(&channel).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_read_and_shown_as_people_write_them() {
        for (text, shown) in [
            ("0.08", Some("0.08")),
            ("1", Some("1.00")),
            ("0.5", Some("0.50")),
            ("0.0075", Some("0.0075")),
            ("12.345678", Some("12.345678")),
            ("0.0000001", None),
            (".5", None),
            ("5.", None),
            ("-1", None),
            ("0,08", None),
            ("", None),
        ] {
            let price: Result<Money, String> = text.parse();
            assert_eq!(price.ok().map(|price| price.to_string()).as_deref(), shown, "{text}");
        }
    }

    #[test]
    fn differences_have_a_sign() {
        let money = |text: &str| text.parse::<Money>().expect("a price");
        assert_eq!(money("1.5").difference(money("2")).as_deref(), Some("-0.50"));
        assert_eq!(money("2").difference(money("1.5")).as_deref(), Some("+0.50"));
        assert_eq!(money("2").difference(money("2")), None);
        assert_eq!(money("0.08").times(3).plus(money("1")), money("1.24"));
    }
}
