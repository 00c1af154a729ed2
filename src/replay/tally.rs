//! One rule set over a recording in virtual time, and the count of what it does.
//!
//! Time is that of the publishes; between two of them each timer is met at its own time, and before a
//! publish of the same time, as the clocks of rules have it. Rows are not written. Invariant: memory
//! grows with the rules, contacts and instances, never with the publishes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::price::{Money, Prices};
use super::report::{ContactRow, FailureRow, NotTold, NotToldRow, RaisedRow, Report, RuleRow};
use crate::clock::Timestamp;
use crate::intake::pipeline::{Caused, Pipeline};
use crate::intake::ruleset::{Limits, RuleSet};
use crate::model::tell::{StepKind, Turn};
use crate::model::{Channel, IdSource, Publish, Reason};
use crate::store::Op;

/// How often, in virtual time, what the next checkpoint would write is forgotten.
const DISCARD_EVERY: Duration = Duration::from_secs(3_600);

/// A rule set, and what it runs with.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// The rules and contacts.
    pub set: &'a RuleSet,
    /// What both are held to.
    pub limits: &'a Limits,
    /// How long a message waits where nothing else is said.
    pub expires_in: Duration,
    /// What messages cost.
    pub prices: &'a Prices,
}

/// An alert that was raised.
pub type Raised = RaisedRow;

/// A rule set at work.
pub struct Tally<'a> {
    setup: Setup<'a>,
    pipeline: Pipeline,
    now: Option<Timestamp>,
    discarded_at: Timestamp,
    op: Op,
    rules: Vec<RuleRow>,
    positions: HashMap<Arc<str>, usize>,
    contacts: BTreeMap<(Arc<str>, Channel), (u64, u64)>,
    not_told: BTreeMap<(NotTold, Reason), u64>,
    matched: u64,
    /// What was raised since it was asked for last, where anybody asks.
    raised: Option<Vec<Raised>>,
}

impl<'a> Tally<'a> {
    /// Nothing has happened. `names_raised`: [`Tally::take_raised`] will be called.
    pub fn new(setup: Setup<'a>, names_raised: bool) -> Self {
        let rules = setup.set.rules.rules();
        Self {
            setup,
            // The same ids at each replay: nobody else ever sees them.
            pipeline: Pipeline::new(
                IdSource::new(0),
                &setup.limits.rules,
                &setup.limits.contacts,
                setup.expires_in,
            ),
            now: None,
            discarded_at: Timestamp::default(),
            op: Op::discarding(),
            rules: rules.iter().map(|rule| RuleRow::new(&rule.name, rule.is_shadow())).collect(),
            positions: rules
                .iter()
                .enumerate()
                .map(|(at, rule)| (Arc::clone(&rule.name), at))
                .collect(),
            contacts: BTreeMap::new(),
            not_told: BTreeMap::new(),
            matched: 0,
            raised: names_raised.then(Vec::new),
        }
    }

    /// Publishes, in the order of their times.
    pub fn batch(&mut self, publishes: &[Publish]) {
        for publish in publishes {
            self.publish(publish);
        }
    }

    /// What was raised since the last call.
    pub fn take_raised(&mut self) -> Vec<Raised> {
        self.raised.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn publish(&mut self, publish: &Publish) {
        let now = publish.received_at;
        self.advance(now);
        let set = self.setup.set;
        let Some(matched) = set.rules.matches(&publish.topic) else { return };
        self.matched += 1;
        let caused = self.pipeline.publish(set, &matched, publish, now, &mut self.op);
        self.note(caused, now);
    }

    /// Lets time pass up to `now`, meeting every timer.
    fn advance(&mut self, now: Timestamp) {
        let set = self.setup.set;
        if self.now.is_none() {
            // Devices that are expected are known from the beginning.
            let (caused, _) = self.pipeline.adopt(set, None, now, &mut self.op);
            self.note(caused, now);
        }
        let mut at = self.now.unwrap_or(now);
        while let Some(due) = self.pipeline.due().filter(|due| *due <= now) {
            at = at.max(due);
            let caused = self.pipeline.wake(set, at, &mut self.op);
            self.note(caused, at);
        }
        self.now = Some(now);
        if now.since(self.discarded_at) >= DISCARD_EVERY {
            self.discarded_at = now;
            self.pipeline.discard_unsaved();
        }
    }

    fn note(&mut self, caused: Caused, now: Timestamp) {
        for news in &caused.news {
            let alert = &news.alert;
            let position = self.positions.get(&alert.rule).copied();
            let Some(row) = position.and_then(|at| self.rules.get_mut(at)) else { continue };
            match news.turn {
                Turn::Raised => {
                    row.raised += 1;
                    if let Some(raised) = &mut self.raised {
                        raised.push(Raised {
                            at: now,
                            rule: Arc::clone(&alert.rule),
                            key: Arc::clone(&alert.key),
                            severity: alert.severity,
                            text: Arc::clone(&alert.text),
                        });
                    }
                }
                Turn::Level(_) => row.levels += 1,
                Turn::Cleared => {
                    row.cleared += 1;
                    row.longest_ms = row.longest_ms.max(millis(now, alert.fired_at));
                }
                Turn::Acknowledged(_) | Turn::Flapping(_) | Turn::Dropped(_) => {}
            }
        }
        for message in &caused.messages {
            let contact = message.contact.clone().unwrap_or_default();
            let row = self.contacts.entry((contact, message.target.channel)).or_default();
            row.0 += 1;
            row.1 += message.segments.map_or(0, |segments| u64::from(segments.count));
        }
        let mut not_told = |what, reason| *self.not_told.entry((what, reason)).or_default() += 1;
        for step in &caused.steps {
            match (step.what, step.reason) {
                (StepKind::Held, Some(reason)) => not_told(NotTold::Held, reason),
                (StepKind::Dropped, Some(reason)) => not_told(NotTold::Dropped, reason),
                _ => {}
            }
        }
        for (_, reason) in &caused.passed {
            not_told(NotTold::Passed, *reason);
        }
        for failure in caused.failures {
            let position = self.positions.get(&failure.rule).copied();
            let Some(row) = position.and_then(|at| self.rules.get_mut(at)) else { continue };
            match row.failures.iter_mut().find(|known| known.reason == failure.reason) {
                Some(known) => known.count += 1,
                None => row.failures.push(FailureRow {
                    reason: failure.reason,
                    count: 1,
                    first_at: now,
                    first: failure.detail,
                }),
            }
        }
    }

    /// What it all came to, at the time of the last publish.
    pub fn finish(mut self) -> Report {
        let end = self.now.unwrap_or_default();
        for alert in self.pipeline.engine().firing() {
            let position = self.positions.get(&alert.rule).copied();
            if let Some(row) = position.and_then(|at| self.rules.get_mut(at)) {
                row.firing += 1;
                row.longest_ms = row.longest_ms.max(millis(end, alert.fired_at));
            }
        }
        let prices = self.setup.prices;
        let contact = |((contact, channel), (messages, segments))| {
            let is_sms = channel == Channel::Sms;
            let price = prices.of(channel);
            let price = price.map(|one| one.times(if is_sms { segments } else { messages }));
            let segments = is_sms.then_some(segments);
            ContactRow { contact, channel, messages, segments, price }
        };
        let not_told = |((what, reason), count)| NotToldRow { what, reason, count };
        Report {
            matched: self.matched,
            rules: self.rules,
            contacts: self.contacts.into_iter().map(contact).collect(),
            not_told: self.not_told.into_iter().map(not_told).collect(),
        }
    }
}

fn millis(to: Timestamp, from: Timestamp) -> u64 {
    u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX)
}

impl Report {
    /// What all messages cost; `None` where no price is known.
    pub fn price(&self) -> Option<Money> {
        self.contacts.iter().filter_map(|row| row.price).reduce(Money::plus)
    }
}
