//! A `[[rule]]` table as it is written.
//!
//! Everything is optional, so that one missing key hides no other problem.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use super::super::functions::words::Words;
use crate::model::tell::Quota;
use crate::span::Span;

/// Keys that say what is told and to whom, and not when the rule fires: its state survives a change
/// of them.
pub(super) const TELLING: &[&str] = &[
    "by",
    "cooldown",
    "expires_in",
    "fallback_after",
    "group_by",
    "group_interval",
    "group_wait",
    "max",
    "mode",
    "name",
    "repeat",
    "text",
    "text_clear",
    "title",
    "to",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Written {
    pub(super) name: Option<String>,
    pub(super) topic: Option<String>,
    pub(super) on: Option<OneOrMany>,
    pub(super) decode: Option<String>,
    pub(super) compression: Option<String>,
    pub(super) layout: Option<toml::Value>,
    pub(super) when: Option<String>,
    pub(super) clear: Option<String>,
    #[serde(rename = "for")]
    pub(super) hold: Option<Span>,
    pub(super) clear_for: Option<Span>,
    pub(super) info: Option<WrittenLevel>,
    pub(super) warning: Option<WrittenLevel>,
    pub(super) critical: Option<WrittenLevel>,
    pub(super) silent: Option<Span>,
    pub(super) expect: Option<Vec<toml::Table>>,
    pub(super) forget: Option<Span>,
    #[serde(rename = "let")]
    pub(super) lets: Option<toml::Table>,
    pub(super) window: Option<toml::Table>,
    pub(super) each: Option<String>,
    pub(super) key: Option<Vec<String>>,
    pub(super) severity: Option<String>,
    pub(super) title: Option<String>,
    pub(super) text: Option<String>,
    pub(super) text_clear: Option<String>,
    pub(super) to: Option<Vec<String>>,
    pub(super) by: Option<Vec<String>>,
    pub(super) expires_in: Option<Span>,
    pub(super) fallback_after: Option<Span>,
    pub(super) repeat: Option<Span>,
    pub(super) cooldown: Option<Span>,
    pub(super) max: Option<WrittenQuota>,
    pub(super) group_by: Option<Vec<String>>,
    pub(super) group_wait: Option<Span>,
    pub(super) group_interval: Option<Span>,
    pub(super) flapping: Option<WrittenFlapping>,
    pub(super) mode: Option<String>,
    pub(super) durable: Option<bool>,
    pub(super) on_downtime: Option<String>,
    pub(super) merge: Option<bool>,
    pub(super) skip: Option<String>,
    pub(super) dedupe: Option<String>,
    pub(super) time: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) max_age: Option<Span>,
    pub(super) replayed: Option<String>,
    pub(super) words: Option<Words>,
}

/// One level of a rule of several.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenLevel {
    pub(super) when: Option<String>,
    pub(super) clear: Option<String>,
    #[serde(rename = "for")]
    pub(super) hold: Option<Span>,
    pub(super) clear_for: Option<Span>,
}

/// `flapping`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenFlapping {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) last: u32,
}

/// Kapacitor's customary thresholds.
impl Default for WrittenFlapping {
    fn default() -> Self {
        Self { low: 0.25, high: 0.5, last: 21 }
    }
}

/// One window.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct WrittenWindow {
    pub(super) count: Option<String>,
    pub(super) sum: Option<String>,
    pub(super) avg: Option<String>,
    pub(super) min: Option<String>,
    pub(super) max: Option<String>,
    pub(super) first: Option<String>,
    pub(super) last: Option<LastOrExpression>,
    pub(super) delta: Option<String>,
    pub(super) rate: Option<String>,
    pub(super) stddev: Option<String>,
    pub(super) percentile: Option<String>,
    pub(super) p: Option<f64>,
    pub(super) over: Option<Span>,
    /// How many publishes, where `last` is the function.
    pub(super) of_last: Option<u32>,
}

/// `last = 100` is a reach, `last = "payload.t"` is a function.
#[derive(Debug)]
pub(super) enum LastOrExpression {
    Reach(u32),
    Function(String),
}

impl<'de> Deserialize<'de> for LastOrExpression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = LastOrExpression;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of publishes, or an expression in quotes")
            }

            fn visit_i64<E: de::Error>(self, count: i64) -> Result<LastOrExpression, E> {
                u32::try_from(count).map(LastOrExpression::Reach).map_err(E::custom)
            }

            fn visit_str<E>(self, text: &str) -> Result<LastOrExpression, E> {
                Ok(LastOrExpression::Function(text.to_owned()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// A text, or a list of texts.
#[derive(Debug)]
pub(super) struct OneOrMany(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text in quotes, or a list of them")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut all: A) -> Result<OneOrMany, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = all.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMany(texts))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

/// `10/1h`.
#[derive(Debug)]
pub(super) struct WrittenQuota(pub(super) Quota);

impl<'de> Deserialize<'de> for WrittenQuota {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let how = || de::Error::custom("write a number and a time, as in \"10/1h\"");
        let (count, per) = text.split_once('/').ok_or_else(how)?;
        let count: u32 = count.trim().parse().map_err(|_| how())?;
        let per: Span = per.trim().parse().map_err(de::Error::custom)?;
        if count == 0 || Duration::from(per).is_zero() {
            return Err(how());
        }
        Ok(Self(Quota { count, per: per.into() }))
    }
}
