//! Silences as operators write and read them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::wall::WallTime;
use crate::clock::{Timestamp, rfc_3339};
use crate::intake::pipeline::Pipeline;
use crate::intake::ruleset::RuleSet;
use crate::model::{AlertId, Fnv, Severity};
use crate::notify::pattern::Pattern;
use crate::notify::silence::{Edge, Filter, Matcher, Silence};
use crate::problem::Fault;
use crate::span::Span;

/// A silence to be made.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// What people call it.
    name: Option<String>,
    /// Shelves one alert: its rule and key, in place of what follows.
    alert: Option<String>,
    /// The rule's name; `*` for any characters, as in the others.
    rule: Option<String>,
    /// The instance key.
    key: Option<String>,
    /// An MQTT filter.
    topic: Option<String>,
    /// Any of these.
    severities: Vec<Severity>,
    /// Labels by name.
    label: BTreeMap<String, String>,
    /// When it begins, RFC 3339; now where it is absent.
    from: Option<String>,
    /// How long.
    #[serde(rename = "for")]
    lasts: Option<Span>,
    /// Or when it ends, RFC 3339.
    until: Option<String>,
    /// Who makes it.
    by: String,
    /// Why.
    reason: String,
}

/// A [`Wanted`] that makes sense, but for what only the engine knows.
#[derive(Clone, Debug)]
pub struct Checked {
    silence: Silence,
    shelves: Option<AlertId>,
}

/// A silence as people see it.
#[derive(Clone, Debug, Serialize)]
pub struct SilenceNow {
    /// What it is ended by; those of files have none.
    pub id: Option<Arc<str>>,
    /// What people call it.
    pub name: Option<Arc<str>>,
    /// What it covers.
    #[serde(flatten)]
    pub matcher: Matcher,
    /// Who made it.
    pub by: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
    /// Whether it stands in a rule file.
    pub file: bool,
    /// Whether it is in force.
    pub active: bool,
    /// When it begins or began, where that is one time.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub from: Option<WallTime>,
    /// When it ends; of one that comes back and is not in force, `null`.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub until: Option<WallTime>,
}

impl SilenceNow {
    /// One that an operator made.
    pub fn of(silence: &Silence, now: Timestamp) -> Self {
        Self {
            id: Some(Arc::clone(&silence.id)),
            name: silence.name.clone(),
            matcher: silence.matcher.clone(),
            by: Arc::clone(&silence.by),
            reason: Arc::clone(&silence.reason),
            file: false,
            active: silence.is_active(now),
            from: Some(silence.from.wall()),
            until: Some(silence.until.wall()),
        }
    }
}

fn fault(field: &str, what: impl Into<String>) -> Fault {
    Fault { path: vec![field.into()], what: what.into() }
}

impl Wanted {
    /// Checks everything that can be known without the engine.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn check(self, now: Timestamp) -> Result<Checked, Vec<Fault>> {
        let mut faults = Vec::new();
        let matcher = self.matcher(&mut faults);
        let shelves = self.alert.as_deref().map(str::parse::<AlertId>).and_then(|id| {
            id.map_err(|_| faults.push(fault("alert", "not an alert id, which is a UUID"))).ok()
        });
        if self.alert.is_some() && !matcher.is_empty() {
            let what = "an alert is its rule and key; leave the rest out, or the alert";
            faults.push(fault("alert", what));
        }
        if self.alert.is_none() && matcher.is_empty() && faults.is_empty() {
            let what = "it covers everything; say what by rule, key, topic, severities, label or alert (rule \"*\" if everything is meant)";
            faults.push(fault("rule", what));
        }
        for (field, text) in [("by", &self.by), ("reason", &self.reason)] {
            if text.trim().is_empty() {
                faults.push(fault(field, "it is missing"));
            }
        }
        let from = time("from", self.from.as_deref(), &mut faults).unwrap_or(Edge::Ours(now));
        let until = time("until", self.until.as_deref(), &mut faults);
        let until = match (self.lasts, until) {
            (Some(lasts), None) if self.until.is_none() => from.plus(lasts.get()),
            (None, Some(until)) => until,
            (None, None) if self.until.is_some() => from,
            _ => {
                let what = "write how long it lasts, as for 2h, or until when, one of them";
                faults.push(fault("for", what));
                from
            }
        };
        if !faults.is_empty() {
            return Err(faults);
        }
        let silence = Silence {
            id: Arc::default(),
            name: self.name.map(Into::into),
            matcher,
            by: self.by.into(),
            reason: self.reason.into(),
            from,
            until,
        };
        Ok(Checked { silence, shelves })
    }

    fn matcher(&self, faults: &mut Vec<Fault>) -> Matcher {
        let topic = self.topic.clone().and_then(|text| match Filter::try_from(text) {
            Ok(filter) => Some(filter),
            Err(error) => {
                faults.push(fault("topic", error.to_string()));
                None
            }
        });
        let label = |(name, value): (&String, &String)| (name.as_str().into(), Pattern::new(value));
        Matcher {
            rule: self.rule.as_deref().map(Pattern::new),
            key: self.key.as_deref().map(Pattern::new),
            topic,
            severities: self.severities.clone(),
            label: self.label.iter().map(label).collect(),
        }
    }
}

fn time(field: &str, text: Option<&str>, faults: &mut Vec<Fault>) -> Option<Edge> {
    let parsed = text?.parse::<jiff::Timestamp>();
    let parsed = parsed.map_err(|_| {
        let what = "not a point in time; write it as 2026-12-24T18:00:00+01:00";
        faults.push(fault(field, what));
    });
    let edge = |wall| Edge::Wall { wall: WallTime::from_millis(wall) };
    parsed.ok().map(|time| edge(time.as_millisecond()))
}

impl Checked {
    /// The silence with its id, and what it covers where it shelves an alert.
    ///
    /// # Errors
    /// There is no such alert now.
    pub fn resolve(mut self, pipeline: &Pipeline) -> Result<Silence, String> {
        if let Some(id) = self.shelves {
            let mut instances = pipeline.engine().instances();
            let instance = instances.find(|instance| instance.id == id).ok_or_else(|| {
                format!(
                    "there is no alert {id} now; `watchbell alert list` shows them, and --rule with --key silences what is to come"
                )
            })?;
            self.silence.matcher.rule = Some(Pattern::new(&instance.rule));
            self.silence.matcher.key = Some(Pattern::new(&instance.key));
        }
        self.silence.id = free_id(pipeline, &self.silence);
        Ok(self.silence)
    }
}

/// An id that is short enough to be typed, and that no other silence has.
fn free_id(pipeline: &Pipeline, silence: &Silence) -> Arc<str> {
    let mut hash = Fnv::new();
    hash.write(&silence.from.at().as_millis().to_be_bytes());
    hash.write(&silence.until.at().as_millis().to_be_bytes());
    loop {
        hash.write(silence.by.as_bytes());
        let id: Arc<str> = format!("{:08x}", hash.finish() >> 32).into();
        if !pipeline.notifier().silences().any(|other| other.id == id) {
            return id;
        }
    }
}

/// Every silence, those of operators first. Of files: also those that are not in force now.
pub fn list(pipeline: &Pipeline, set: &RuleSet, now: Timestamp) -> Vec<SilenceNow> {
    let of_operators = pipeline.notifier().silences().filter(|silence| silence.until.at() > now);
    let of_files = set.book.silences.iter().map(|silence| {
        let until = silence.until(now);
        SilenceNow {
            id: None,
            name: Some(Arc::clone(&silence.name)),
            matcher: silence.matcher.clone(),
            by: Arc::clone(&silence.by),
            reason: Arc::clone(&silence.reason),
            file: true,
            active: until.is_some(),
            from: None,
            until: until.map(Timestamp::wall),
        }
    });
    of_operators.map(|silence| SilenceNow::of(silence, now)).chain(of_files).collect()
}
