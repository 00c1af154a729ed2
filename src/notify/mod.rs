//! Alerts -> messages: who hears of it, when, by which channels, and why not.
//!
//! Pure: it is given news of alerts, the book of who is told how, and the time, and gives messages,
//! steps and rows. It never sends, stores or retries, and reads no time; the same input always gives
//! the same messages with the same ids.

pub mod book;
pub mod calendar;
pub mod contact;
mod deliver;
mod digest;
mod fields;
mod gate;
mod group;
pub mod hold;
mod news;
pub mod notifier;
pub mod pattern;
pub mod plan;
mod quota;
pub mod row;
pub mod silence;
mod state;
mod storm;
pub mod suppress;
pub mod tale;
#[cfg(test)]
mod tests;

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer};

use crate::model::Severity;
use crate::span::Span;

/// More would each get every digest.
const FALLBACK_CONTACTS_MAX: usize = 20;

/// Bounds on telling, and what happens when a channel is silent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most contacts in all files together. Default 10000, range 1 to 1000000.
    pub contacts_max: usize,
    /// Most alerts of which something is held, repeated or told differently to different people.
    /// Above it nothing more is held: it is told at once. Default 1000000, range 1000 to 100000000.
    pub tales_max: usize,
    /// Most silences, those of the files and those of operators each. Default 10000, range 1 to
    /// 100000.
    pub silences_max: usize,
    /// Most `[[suppress]]` tables. Default 1000, range 1 to 100000.
    pub suppress_max: usize,
    /// Most instances whose `cooldown` runs or that are flapping; above it no further cooldown
    /// begins. Default 1000000, range 1000 to 100000000.
    pub instances_max: usize,
    /// Most groups at a time; above it alerts are told one by one. Default 100000, range 1 to
    /// 10000000.
    pub groups_max: usize,
    /// Most windows of `max` at a time; above it messages are not counted. Default 1000000, range
    /// 1000 to 100000000.
    pub windows_max: usize,
    /// Most topic prefixes that are watched for a storm; above it further ones are not. Default
    /// 10000, range 1 to 1000000.
    pub storms_max: usize,
    /// So many alerts that were held for a contact are told one by one when the hold ends; more
    /// become one message. Default 5, range 1 to 1000.
    pub digest_above: usize,
    /// Most alerts that one message names. Default 10, range 1 to 100.
    pub names_max: usize,
    /// How long a message may be without success before the contact's next channel sends too, where
    /// neither its rule nor its contact says: for each severity, or one time for warning and
    /// critical. Default `{ critical = "1m", warning = "10m", info = "0s" }`; 0s for never. Never
    /// more than half of what the message has to live.
    pub fallback_after: FallbackAfter,
    /// Contacts who hear of it when somebody could be reached by no channel. Default none.
    pub fallback: Vec<String>,
    /// At least so long between two messages to them. Default 5m, range 10s to 1d.
    pub fallback_interval: Span,
}

/// The longest that a channel may be without success.
const FALLBACK_AFTER_MAX: Span = Span::from_secs(24 * 3600);
const FALLBACK_AFTER_LONG: &str = "fallback_after: at most 1d; 0s for never";

/// How long a message may be without success, for each severity; zero for never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FallbackAfter {
    /// Default 1m.
    pub critical: Span,
    /// Default 10m.
    pub warning: Span,
    /// Default 0s: never.
    pub info: Span,
}

impl FallbackAfter {
    /// That of a severity.
    pub const fn of(&self, severity: Severity) -> Span {
        match severity {
            Severity::Critical => self.critical,
            Severity::Warning => self.warning,
            Severity::Info => self.info,
        }
    }
}

impl Default for FallbackAfter {
    fn default() -> Self {
        Self { critical: Span::from_secs(60), warning: Span::from_secs(600), info: Span::default() }
    }
}

impl<'de> Deserialize<'de> for FallbackAfter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = FallbackAfter;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time, as \"1m\", or one for each severity, as { critical = \"1m\" }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<FallbackAfter, E> {
                let span: Span = text.parse().map_err(E::custom)?;
                Ok(FallbackAfter { critical: span, warning: span, ..FallbackAfter::default() })
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<FallbackAfter, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Each {
                    critical: Option<Span>,
                    warning: Option<Span>,
                    info: Option<Span>,
                }
                let each = Each::deserialize(de::value::MapAccessDeserializer::new(map))?;
                let usual = FallbackAfter::default();
                Ok(FallbackAfter {
                    critical: each.critical.unwrap_or(usual.critical),
                    warning: each.warning.unwrap_or(usual.warning),
                    info: each.info.unwrap_or(usual.info),
                })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            contacts_max: 10_000,
            tales_max: 1_000_000,
            silences_max: 10_000,
            suppress_max: 1_000,
            instances_max: 1_000_000,
            groups_max: 100_000,
            windows_max: 1_000_000,
            storms_max: 10_000,
            digest_above: 5,
            names_max: 10,
            fallback_after: FallbackAfter::default(),
            fallback: Vec::new(),
            fallback_interval: Span::from_secs(300),
        }
    }
}

impl Config {
    /// What is wrong with the values; empty if nothing is.
    pub fn validate(&self) -> Vec<String> {
        let ranges = [
            ("contacts_max", self.contacts_max, 1, 1_000_000),
            ("tales_max", self.tales_max, 1_000, 100_000_000),
            ("silences_max", self.silences_max, 1, 100_000),
            ("suppress_max", self.suppress_max, 1, 100_000),
            ("instances_max", self.instances_max, 1_000, 100_000_000),
            ("groups_max", self.groups_max, 1, 10_000_000),
            ("windows_max", self.windows_max, 1_000, 100_000_000),
            ("storms_max", self.storms_max, 1, 1_000_000),
            ("digest_above", self.digest_above, 1, 1_000),
            ("names_max", self.names_max, 1, 100),
        ];
        let mut problems: Vec<String> = ranges
            .into_iter()
            .filter(|(_, value, least, most)| !(least..=most).contains(&value))
            .map(|(key, _, least, most)| format!("{key}: must be from {least} to {most}"))
            .collect();
        let interval = Span::from_secs(10)..=Span::from_secs(24 * 3600);
        if !interval.contains(&self.fallback_interval) {
            problems.push("fallback_interval: must be from 10s to 1d".to_owned());
        }
        let each = &self.fallback_after;
        if [each.critical, each.warning, each.info].iter().any(|after| *after > FALLBACK_AFTER_MAX)
        {
            problems.push(FALLBACK_AFTER_LONG.to_owned());
        }
        let twice = self
            .fallback
            .iter()
            .enumerate()
            .find(|(nth, name)| self.fallback.iter().skip(nth + 1).any(|other| other == *name));
        if let Some((_, name)) = twice {
            problems.push(format!("fallback: `{name}` stands there twice"));
        }
        if self.fallback.len() > FALLBACK_CONTACTS_MAX {
            problems.push(format!("fallback: at most {FALLBACK_CONTACTS_MAX} contacts"));
        }
        problems
    }
}
