//! How fast a provider may be called, as operators write it: `1/s`, `300/m`, `1000/h`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// So many calls in so much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    calls: u32,
    unit: char,
}

impl Rate {
    /// `calls` in one second.
    pub(super) const fn per_second(calls: u32) -> Self {
        Self { calls, unit: 's' }
    }

    /// How many calls; at least 1.
    pub const fn calls(self) -> u32 {
        self.calls
    }

    /// In how much time: a second, a minute or an hour.
    pub const fn per(self) -> Duration {
        Duration::from_secs(match self.unit {
            's' => 1,
            'm' => 60,
            _ => 3600,
        })
    }

    /// The time from one call to the next at an even pace.
    pub fn interval(self) -> Duration {
        self.per() / self.calls
    }
}

/// Not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a rate; write calls and a unit of time, as in 1/s, 300/m or 1000/h (1 to 1000000)"
)]
pub struct BadRate(String);

impl FromStr for Rate {
    type Err = BadRate;

    fn from_str(text: &str) -> Result<Self, BadRate> {
        let bad = || BadRate(text.to_owned());
        let (calls, unit) = text.split_once('/').ok_or_else(bad)?;
        let unit = match unit.trim() {
            "s" => 's',
            "m" => 'm',
            "h" => 'h',
            _ => return Err(bad()),
        };
        match calls.trim().parse() {
            Ok(calls @ 1..=1_000_000) => Ok(Self { calls, unit }),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.calls, self.unit)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_operators_write() {
        for (text, interval_ms) in [("1/s", 1000), ("80/s", 12), ("300 / m", 200), ("60/h", 60_000)]
        {
            let rate: Rate = text.parse().expect(text);
            assert_eq!(rate.interval().as_millis(), interval_ms, "{text}");
        }
        for text in ["", "1", "0/s", "1/d", "-1/s", "1.5/s", "2000000/s", "/s"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        let rate: Rate = "300/m".parse().expect("valid");
        assert_eq!(rate.to_string(), "300/m");
    }
}
