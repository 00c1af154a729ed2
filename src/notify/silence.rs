//! Silences: what nobody is told of for a while, by whom, why, and until when.
//!
//! Those of operators are stored; those of files come back each week or on their dates. Shelving is
//! a silence of one instance.
//!
//! Invariant: no silence without author, reason and end.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pattern::Pattern;
use crate::clock::Timestamp;
use crate::model::{Alert, Severity};
use crate::topic::{TopicFilter, TopicLimits};

/// The longest author, name or reason, bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Which alerts a silence covers: those that all of its parts fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Matcher {
    /// The rule's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<Pattern>,
    /// The instance key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Pattern>,
    /// The topic of the alert, an MQTT filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<Filter>,
    /// Any of these; empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub severities: Vec<Severity>,
    /// Labels by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub label: BTreeMap<Arc<str>, Pattern>,
}

impl Matcher {
    /// Whether it covers the alert.
    pub fn matches(&self, alert: &Alert) -> bool {
        self.rule.as_ref().is_none_or(|pattern| pattern.matches(&alert.rule))
            && self.key.as_ref().is_none_or(|pattern| pattern.matches(&alert.key))
            && (self.severities.is_empty() || self.severities.contains(&alert.severity))
            && self.topic.as_ref().is_none_or(|filter| filter.0.matches(&alert.topic))
            && self.label.iter().all(|(name, pattern)| {
                alert.label(name).is_some_and(|value| pattern.matches(value))
            })
    }

    /// Whether it has no part, and would cover everything by mistake.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// An MQTT topic filter that is stored as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter(pub TopicFilter);

impl TryFrom<String> for Filter {
    type Error = crate::topic::BadTopic;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        TopicFilter::parse(&text, TopicLimits::default()).map(Self)
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.0.as_str().to_owned()
    }
}

/// A silence that an operator made while the process runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Silence {
    /// What it is called by the API; unique.
    pub id: Arc<str>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Arc<str>>,
    /// What it covers.
    pub matcher: Matcher,
    /// Who made it.
    pub by: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
    /// When it begins.
    pub from: Timestamp,
    /// When it ends.
    pub until: Timestamp,
}

/// Why a silence is refused: everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct BadSilence(pub Vec<String>);

impl Silence {
    /// Checks that it says what it covers, by whom, why and until when.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(&self, now: Timestamp) -> Result<(), BadSilence> {
        let mut wrong = Vec::new();
        for (key, text) in [("id", &self.id), ("by", &self.by), ("reason", &self.reason)] {
            if text.trim().is_empty() {
                wrong.push(format!("`{key}` is empty"));
            }
        }
        let name = self.name.as_ref();
        for text in [&self.id, &self.by, &self.reason].into_iter().chain(name) {
            if text.len() > TEXT_BYTES_MAX {
                wrong.push(format!("a text is longer than {TEXT_BYTES_MAX} bytes"));
            }
        }
        if self.matcher.is_empty() {
            wrong.push("it covers everything; say rule = \"*\" if that is meant".to_owned());
        }
        if self.until <= self.from {
            wrong.push("`until` is not after `from`".to_owned());
        } else if self.until <= now {
            wrong.push("`until` is past".to_owned());
        } else if self.until == Timestamp::MAX {
            wrong.push("it has no end".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(BadSilence(wrong)) }
    }

    /// Whether it is in force.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }
}
