//! Silences: what nobody is told of for a while, by whom, why, and until when.
//!
//! Those of operators are stored; those of files come back each week or on their dates. Shelving is
//! a silence of one instance.
//!
//! Invariant: no silence without author, reason and end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::Config;
use super::calendar::{self, Calendar};
use super::contact::SEVERITIES;
use super::fields::Fields;
use super::pattern::Pattern;
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::model::{Alert, Severity};
use crate::problem::{Problem, TomlFile};
use crate::topic::{TopicFilter, TopicLimits};

/// The longest author, name or reason, bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Which alerts a silence covers: those that all of its parts fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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
    pub from: Edge,
    /// When it ends.
    pub until: Edge,
}

/// When a silence begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Edge {
    /// When it was made, or so long after: nobody moves it by setting the wall clock.
    Ours(Timestamp),
    /// When the clock on the wall shows this.
    Wall {
        /// This.
        wall: WallTime,
    },
}

impl Edge {
    /// When that is, as long as the wall clock is not set again.
    pub fn at(self) -> Timestamp {
        match self {
            Self::Ours(at) => at,
            Self::Wall { wall } => wall.ours(),
        }
    }

    /// So long after it.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        match self {
            Self::Ours(at) => Self::Ours(at.plus(after)),
            Self::Wall { wall } => Self::Wall { wall: wall.plus(after) },
        }
    }

    /// What the wall clock shows then.
    pub fn wall(self) -> WallTime {
        match self {
            Self::Ours(at) => at.wall(),
            Self::Wall { wall } => wall,
        }
    }
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
        let (from, until) = (self.from.at(), self.until.at());
        if until <= from {
            wrong.push("`until` is not after `from`".to_owned());
        } else if until <= now {
            wrong.push("`until` is past".to_owned());
        } else if until == Timestamp::MAX {
            wrong.push("it has no end".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(BadSilence(wrong)) }
    }

    /// Whether it is in force.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.from.at() <= now && now < self.until.at()
    }
}

/// One `[[silence]]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recurring {
    /// What people call it.
    pub name: Arc<str>,
    /// What it covers.
    pub matcher: Matcher,
    /// Who wrote it.
    pub by: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
    /// When it is in force.
    pub when: When,
}

/// When a silence of a file is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// Again and again.
    Calendar(Calendar),
    /// Once.
    Once {
        /// From then on.
        from: WallTime,
        /// Until then.
        until: WallTime,
        /// How its times are shown.
        zone: Option<TimeZone>,
    },
}

impl Recurring {
    /// When it ends, if it is in force.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        match &self.when {
            When::Calendar(calendar) => calendar.until(now),
            When::Once { from, until, .. } => {
                (*from..*until).contains(&now.wall()).then(|| until.ours())
            }
        }
    }

    /// How its times are shown.
    pub fn zone(&self) -> Option<&TimeZone> {
        match &self.when {
            When::Calendar(calendar) => Some(calendar.zone()),
            When::Once { zone, .. } => zone.as_ref(),
        }
    }
}

/// The keys of `[[silence]]`.
const KEYS: &[&str] = &[
    "name",
    "rule",
    "key",
    "topic",
    "severities",
    "label",
    "by",
    "reason",
    "every",
    "dates",
    "from",
    "until",
    "zone",
];

/// Reads the `[[silence]]` tables of a file.
pub(super) fn read(
    file: &TomlFile,
    config: &Config,
    found: &mut Vec<Recurring>,
    problems: &mut Vec<Problem>,
) {
    for (index, (path, table)) in Fields::tables(file, "silence", problems).into_iter().enumerate()
    {
        let who = format!("silence {}", index + 1);
        let mut fields = Fields::new(file, &path, who, table, problems);
        if found.len() >= config.silences_max {
            let what =
                format!("more than {} silences; raise notify.silences_max", config.silences_max);
            fields.problem(None, &what);
            return;
        }
        if let Some(silence) = read_one(&mut fields, found) {
            found.push(silence);
        }
    }
}

fn read_one(fields: &mut Fields<'_, '_>, others: &[Recurring]) -> Option<Recurring> {
    let name = fields.required("name", "steps and people call it by its name");
    if let Some(name) = &name {
        fields.who = format!("silence \"{name}\"");
        if !crate::model::is_name(name) {
            let what = "expected a name of a-z, 0-9, - _ . and at most 64 characters";
            fields.problem(Some("name"), what);
        } else if others.iter().any(|other| *other.name == **name) {
            fields.problem(Some("name"), "the name is taken by another silence; choose another");
        }
    }
    fields.only(KEYS);
    let matcher = read_matcher(fields);
    if matcher.is_empty()
        && !["rule", "key", "topic", "severities", "label"].iter().any(|key| fields.has(key))
    {
        let what = "it covers everything; say what, by rule, key, topic, severities or label (rule = \"*\" if everything is meant)";
        fields.problem(None, what);
    }
    let by = fields.required("by", "say who wrote it");
    let reason = fields.required("reason", "say why, for those who wonder");
    let when = read_when(fields);
    let (name, by, reason) = (name?.into(), by?.into(), reason?.into());
    Some(Recurring { name, matcher, by, reason, when: when? })
}

fn read_matcher(fields: &mut Fields<'_, '_>) -> Matcher {
    let topic = fields.text("topic").and_then(|text| match Filter::try_from(text) {
        Ok(filter) => Some(filter),
        Err(error) => {
            fields.problem(Some("topic"), &error.to_string());
            None
        }
    });
    let pair = |(name, value): (String, String)| (Arc::from(name), Pattern::new(&value));
    Matcher {
        rule: fields.text("rule").map(|text| Pattern::new(&text)),
        key: fields.text("key").map(|text| Pattern::new(&text)),
        topic,
        severities: fields.words("severities", SEVERITIES),
        label: fields.pairs("label").into_iter().map(pair).collect(),
    }
}

fn read_when(fields: &mut Fields<'_, '_>) -> Option<When> {
    let zone = fields.zone("zone");
    let dates = calendar::dates(fields);
    let once = fields.has("from") || fields.has("until");
    let again = fields.has("every") || fields.has("dates");
    if once == again {
        let what = if once {
            "it has both a time that comes back and one that does not; make two silences of it"
        } else {
            "it has no end; give it `every`, `dates`, or `from` and `until`"
        };
        fields.problem(None, what);
        return None;
    }
    if once {
        for key in ["from", "until"] {
            if !fields.has(key) {
                fields.problem(
                    None,
                    &format!("`{key}` is missing; a silence has a beginning and an end"),
                );
            }
        }
        let from = calendar::point(fields, "from", zone.as_ref());
        let until = calendar::point(fields, "until", zone.as_ref());
        let (from, until) = (from?, until?);
        if until <= from {
            fields.problem(Some("until"), "it is not after `from`");
        }
        return Some(When::Once { from, until, zone });
    }
    if fields.has("every") {
        let mut every = fields.table("every")?;
        every.only(&["days", "from", "to", "zone"]);
        return Calendar::read(&mut every, zone.as_ref(), &dates).map(When::Calendar);
    }
    let Some(zone) = zone else {
        if !fields.has("zone") {
            let what = "`zone` is missing; say where it is that date, as zone = \"Europe/Berlin\"";
            fields.problem(None, what);
        }
        return None;
    };
    (!dates.is_empty()).then(|| When::Calendar(Calendar::of_dates(&dates, zone)))
}
