//! One instance of a rule: where it stands, and what it remembers.
//!
//! It is a row of the store as it is in memory. What must not be lost is written before the publish
//! that changed it is acknowledged; what an alert does not depend on yet (the last payload, windows,
//! when it was heard of) is written by the next checkpoint.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::life::Life;
use super::row;
use super::window::Window;
use crate::clock::Timestamp;
use crate::model::tell::Ack;
use crate::model::{Alert, AlertId, AlertState, Labels, Severity};
use crate::payload::Value;
use crate::topic::TopicName;

/// How many `dedupe` values an instance remembers.
const DEDUPE_KEPT: usize = 64;

/// An instance of a rule, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// The id of its present alert, or of its next; the address of its row.
    #[serde(alias = "alert")]
    pub id: AlertId,
    /// The rule's name.
    #[serde(deserialize_with = "row::shared")]
    pub rule: Arc<str>,
    /// Which instance of it.
    pub key: Arc<str>,
    /// What its rule meant when it was written ([`super::set::Rule::meaning`]).
    #[serde(default)]
    pub meaning: u64,
    /// The captured levels of its topic.
    #[serde(
        default = "Labels::default",
        skip_serializing_if = "is_empty",
        deserialize_with = "row::labels"
    )]
    pub labels: Labels,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Life::is_idle")]
    pub life: Life,
    /// When it fired, if it does. (`at` in rows that were written before there were levels.)
    #[serde(default, alias = "at", skip_serializing_if = "Option::is_none")]
    pub fired_at: Option<Timestamp>,
    /// When its level changed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<Timestamp>,
    /// Who takes care of its alert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Box<Ack>>,
    /// What its alert says.
    #[serde(default = "Arc::default", skip_serializing_if = "str::is_empty")]
    pub text: Arc<str>,
    /// The topic of the publish that changed it last, or that it was heard of last.
    pub topic: TopicName,
    /// Since when it is known.
    #[serde(default)]
    pub known_since: Timestamp,
    /// When it was heard of last; `None`: never, it is only expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_at: Option<Timestamp>,
    /// Since when its silence counts, where that is later than it was heard of: after a time in which
    /// nobody could have heard it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_from: Option<Timestamp>,
    /// How many publishes its present alert has counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub events: u32,
    /// Its alert was raised while its rule was in shadow: nobody knows of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untold: bool,
    /// What its rule needs of the publishes before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Box<Memory>>,
    /// The level that its alert was on before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_level: Option<Severity>,
    /// Of rows that were written before there were levels.
    #[serde(default, skip_serializing)]
    pub(super) severity: Option<Severity>,
    /// Whether the row in the store is older than this; never stored.
    #[serde(skip)]
    pub(super) is_dirty: bool,
    /// Whether there is a row in the store; never stored.
    #[serde(skip)]
    pub(super) is_stored: bool,
    /// When it is looked at next; never stored.
    #[serde(skip)]
    pub(super) timer: Option<Timestamp>,
    /// Whether its alert is told again or later, so that readings are kept for its text though its
    /// rule needs none; never stored.
    #[serde(skip)]
    pub(super) is_retold: bool,
}

fn is_empty(labels: &Labels) -> bool {
    labels.is_empty()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// What an instance remembers of publishes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The last publish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Last>,
    /// The last publish on which the conditions came to a result, for texts: where that is not the
    /// last one and a clock runs or something fires, or where the rule remembers no last one and
    /// the alert is told again or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided: Option<Box<Last>>,
    /// One for each `window` of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// Hashes of the last `dedupe` values, the newest last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<Box<VecDeque<u64>>>,
    /// For `flapping`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flaps: Option<Flaps>,
}

/// The last publish of an instance, as its expressions and texts need it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Last {
    /// What it said; with `merge`, what all said together.
    pub payload: Value,
    /// The payload before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Value>,
    /// Of a rule with `each`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<Box<(Value, Value)>>,
    /// Who published.
    #[serde(deserialize_with = "row::shared")]
    pub client_id: Arc<str>,
    /// When the reading was taken.
    pub at: Timestamp,
    /// RETAIN as the publisher set it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retain: bool,
    /// Whether an upstream had kept it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
}

/// How often the state changed over the last evaluations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaps {
    /// A bit for each of the last evaluations, the newest the least significant: whether the state
    /// changed.
    changes: u64,
    /// How many evaluations there were, at most 64.
    count: u8,
    /// Whether it fired at the last.
    fired: bool,
    /// Whether it is flapping.
    pub on: bool,
}

impl Flaps {
    /// Notes an evaluation. Some: it began or ended to flap.
    pub fn note(&mut self, fires: bool, last: u8, (low, high): (f64, f64)) -> Option<bool> {
        let changed = self.count > 0 && fires != self.fired;
        self.fired = fires;
        self.changes = (self.changes << 1) | u64::from(changed);
        self.count = (self.count + 1).min(64);
        // Of n evaluations n - 1 can differ from the one before.
        let pairs = last.min(64).saturating_sub(1).max(1);
        let mask = if pairs >= 64 { u64::MAX } else { (1 << pairs) - 1 };
        let share = f64::from((self.changes & mask).count_ones()) / f64::from(pairs);
        let on = if self.on { share > low } else { share >= high };
        let turned = on != self.on;
        self.on = on;
        turned.then_some(on)
    }
}

impl Memory {
    /// Remembers a `dedupe` value. False: it was there before.
    pub fn take(&mut self, hash: u64) -> bool {
        let taken = self.taken.get_or_insert_default();
        if taken.contains(&hash) {
            return false;
        }
        if taken.len() >= DEDUPE_KEPT {
            taken.pop_front();
        }
        taken.push_back(hash);
        true
    }
}

impl Instance {
    /// An instance of which nothing is known yet.
    pub(super) fn new(id: AlertId, rule: &Arc<str>, key: Arc<str>, topic: TopicName) -> Self {
        Self {
            id,
            rule: Arc::clone(rule),
            key,
            meaning: 0,
            labels: Labels::default(),
            life: Life::default(),
            fired_at: None,
            changed_at: None,
            ack: None,
            text: Arc::default(),
            topic,
            known_since: Timestamp::default(),
            seen_at: None,
            silent_from: None,
            events: 0,
            untold: false,
            memory: None,
            from_level: None,
            severity: None,
            is_dirty: false,
            is_stored: false,
            timer: None,
            is_retold: false,
        }
    }

    /// Takes over what an older version wrote.
    pub(super) fn upgrade(&mut self) {
        let memory = self.memory.as_ref();
        self.is_retold = memory.is_some_and(|memory| memory.decided.is_some());
        if let (Some(severity), Some(at)) = (self.severity.take(), self.fired_at) {
            self.life = Life::firing(severity, at);
            self.changed_at = Some(at);
            self.known_since = at;
            self.seen_at = Some(at);
        }
    }

    /// Its alert as it stands, if it fires.
    pub fn alert(&self) -> Option<Alert> {
        let severity = self.life.level()?;
        let fired_at = self.fired_at?;
        Some(Alert {
            id: self.id,
            rule: Arc::clone(&self.rule),
            key: Arc::clone(&self.key),
            severity,
            state: AlertState::Firing,
            labels: Arc::clone(&self.labels),
            topic: self.topic.clone(),
            fired_at,
            changed_at: self.changed_at.unwrap_or(fired_at),
            text: Arc::clone(&self.text),
        })
    }

    /// When it was heard of last; of one that is only expected, since when it is known.
    pub fn heard_at(&self) -> Timestamp {
        self.seen_at.unwrap_or(self.known_since)
    }

    /// Since when its silence counts.
    pub fn silent_since(&self) -> Timestamp {
        self.silent_from.unwrap_or_else(|| self.heard_at())
    }

    /// What is past cannot lie ahead: such a row was written by a wall clock that went wrong, and a
    /// device would not be missed until it has come true.
    pub(super) fn put_right(&mut self, now: Timestamp) {
        self.life.put_right(now);
        self.known_since = self.known_since.min(now);
        let past =
            [&mut self.fired_at, &mut self.changed_at, &mut self.seen_at, &mut self.silent_from];
        past.into_iter().flatten().for_each(|at| *at = now.min(*at));
        if let Some(memory) = &mut self.memory {
            memory.windows.iter_mut().for_each(|window| window.put_right(now));
        }
    }

    /// What it remembers, made where there is nothing yet.
    pub(super) fn memory_mut(&mut self) -> &mut Memory {
        self.memory.get_or_insert_default()
    }

    /// Its alert is over, and its next one is another.
    pub(super) fn next_alert(&mut self, id: AlertId) {
        self.id = id;
        self.fired_at = None;
        self.ack = None;
        self.events = 0;
        self.untold = false;
        self.text = Arc::default();
        self.from_level = None;
        self.is_retold = false;
    }

    /// Whether its state changes too often to be told.
    pub fn is_flapping(&self) -> bool {
        let flaps = self.memory.as_ref().and_then(|memory| memory.flaps);
        flaps.is_some_and(|flaps| flaps.on)
    }

    /// The newest reading that texts can tell of: the last that its conditions came to a result on.
    pub(super) fn told_of(&self) -> Option<&Last> {
        let memory = self.memory.as_deref();
        let decided = memory.and_then(|memory| memory.decided.as_deref());
        let last = || memory.and_then(|memory| memory.last.as_ref());
        decided.or_else(last)
    }

    /// Its last publish.
    pub fn last(&self) -> Option<&Last> {
        self.memory.as_ref().and_then(|memory| memory.last.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flapping_begins_and_ends_at_its_thresholds() {
        let mut flaps = Flaps::default();
        let mut turned = Vec::new();
        let states = [0, 1, 0, 1, 1, 1, 1, 1, 1];
        for (step, fires) in states.iter().enumerate() {
            if let Some(on) = flaps.note(*fires == 1, 5, (0.25, 0.5)) {
                turned.push((step, on));
            }
        }
        // Of the last five evaluations: two changes of four are enough to begin, one ends it.
        assert_eq!(turned, [(2, true), (6, false)]);
    }

    #[test]
    fn a_row_from_before_levels_fires_on() {
        let row = r#"{"alert":"019b3c1d-0000-7000-8000-000000000001","rule":"r","key":"k",
            "severity":"critical","at":1790000000000,"topic":"a/b"}"#;
        let mut instance: Instance = serde_json::from_str(row).expect("a row");
        instance.upgrade();
        let alert = instance.alert().expect("fires");
        assert_eq!(alert.severity, Severity::Critical);
        assert_eq!(alert.fired_at.as_millis(), 1_790_000_000_000);
    }

    #[test]
    fn dedupe_remembers_the_last_values() {
        let mut memory = Memory::default();
        assert!(memory.take(1) && memory.take(2) && !memory.take(1));
        for hash in 10..10 + DEDUPE_KEPT as u64 {
            assert!(memory.take(hash));
        }
        assert!(memory.take(1), "it was long ago");
    }
}
