//! The trail: what happened to an alert besides its messages, a row for each [`Step`].
//!
//! A row's key is alert, time, sequence, so that one alert's life is one short scan in order; what
//! concerns all alerts reads the keys of the whole table, and the values of what it returns.
//!
//! **Invariant:** two steps of one process run never have the same key.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::keys::{self, Key, Table};
use super::read::Row;
use super::{Op, ReadError, Store, decode};
use crate::clock::Timestamp;
use crate::model::tell::{Step, StepKind};
use crate::model::{AlertId, Reason};
use crate::topic::TopicFilter;

/// Which steps to list. Empty: all.
#[derive(Clone, Debug, Default)]
pub struct StepFilter {
    /// Only of these kinds; empty for any.
    pub what: Vec<StepKind>,
    /// Only with this reason.
    pub reason: Option<Reason>,
    /// Only of alerts of this rule.
    pub rule: Option<String>,
    /// Only of this instance key.
    pub key: Option<String>,
    /// Only of alerts whose topic this filter matches.
    pub topic: Option<TopicFilter>,
    /// Only what concerns this contact; what concerns all does.
    pub contact: Option<String>,
    /// Beside `contact`: what concerns all, only of these rules; empty for any.
    pub naming: HashSet<Arc<str>>,
    /// Only what happened before.
    pub before: Option<Timestamp>,
}

impl StepFilter {
    fn takes(&self, step: &Step) -> bool {
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        (self.what.is_empty() || self.what.contains(&step.what))
            && self.reason.is_none_or(|reason| step.reason == Some(reason))
            && is(&self.rule, &step.rule)
            && is(&self.key, &step.key)
            && self.topic.as_ref().is_none_or(|topic| topic.matches(&step.topic))
            && match &step.contact {
                Some(contact) => is(&self.contact, contact),
                None => self.naming.is_empty() || self.naming.contains(&step.rule),
            }
    }
}

/// Tells steps of the same alert in the same millisecond apart, in the order in which they were
/// put. It may wrap: nothing happens to one alert 65536 times in a millisecond.
static SEQUENCE: AtomicU16 = AtomicU16::new(0);

impl Op {
    /// Notes a step in the life of an alert.
    pub fn put_step(&mut self, step: &Step) {
        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        self.put(keys::step(step.alert, step.at, sequence), step);
    }
}

impl Store {
    /// The steps of one alert, oldest first.
    ///
    /// # Errors
    /// One of them cannot be read: for those who must know all. People get
    /// [`Store::readable_steps`].
    pub fn steps(&self, alert: AlertId) -> Result<Vec<Step>, ReadError> {
        let rows = self.reader.rows(keys::steps(alert));
        let step = |(key, value): Row| self.reader.checked(&key, decode(&value));
        rows.map(|row| row.and_then(step)).collect()
    }

    /// The steps of one alert that can be read, oldest first.
    pub fn readable_steps(&self, alert: AlertId) -> Vec<Step> {
        self.reader.rows(keys::steps(alert)).readable().map(|(_, step)| step).collect()
    }

    /// Steps of all alerts at `from` and later that pass `filter`, newest first, at most `limit`.
    ///
    /// Reads the keys of the whole table: not for async code. Keeps at most `limit` in memory.
    pub fn steps_since(
        &self,
        filter: &StepFilter,
        from: Timestamp,
        limit: usize,
    ) -> Result<Vec<Step>, ReadError> {
        let before = filter.before.unwrap_or(Timestamp::MAX);
        // The oldest of those found is on top, to make room for a newer one.
        let mut found: BinaryHeap<Reverse<Dated>> = BinaryHeap::new();
        for item in self.reader.rows([Table::Trail as u8]) {
            let Ok((key, value)) = item else { continue };
            let Some(at) = keys::step_at(&key).filter(|at| (from..before).contains(at)) else {
                continue;
            };
            let full = found.len() >= limit;
            if full && found.peek().is_none_or(|Reverse(oldest)| at <= oldest.at) {
                continue;
            }
            let Ok(step) = self.reader.checked::<Step>(&key, decode(&value)) else { continue };
            if !filter.takes(&step) {
                continue;
            }
            if full {
                found.pop();
            }
            found.push(Reverse(Dated { at, key: key.to_vec(), step }));
        }
        let newest_first = found.into_sorted_vec();
        Ok(newest_first.into_iter().map(|Reverse(dated)| dated.step).collect())
    }
}

/// A step by its time; the key decides between equals.
struct Dated {
    at: Timestamp,
    key: Key,
    step: Step,
}

impl Dated {
    /// Of steps at the same time, those of one alert are in order of their sequence.
    fn order(&self) -> (Timestamp, &[u8]) {
        (self.at, &self.key)
    }
}

impl PartialEq for Dated {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Dated {}

impl PartialOrd for Dated {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Dated {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}
