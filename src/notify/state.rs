//! What the notifier has in memory, and how it stays the same as its rows.
//!
//! Whoever changes something calls `touch` first; `finish` then gives the rows of all that was
//! touched, and sets its timers. Invariant: between two calls, rows, timers and the index of what
//! waits are exactly what the tales, groups and windows say.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::book::Book;
use super::group::Group;
use super::hold::{Hold, Instance};
use super::notifier::{Outcome, Sources, Texts};
use super::quota::Window;
use super::row::{Row, RowChange, RowId};
use super::silence::Silence;
use super::storm::Storm;
use super::suppress::Causes;
use super::tale::Tale;
use crate::clock::Timestamp;
use crate::model::tell::{Step, StepKind};
use crate::model::{Alert, AlertId, AlertState, Channel, MessageId, Reason, Severity};

/// What tales wait for that has no time of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Wait {
    /// A silence, which may end early.
    Silence,
    /// Another alert.
    Cause,
    /// A group, window or storm.
    Row(RowId),
}

impl Hold {
    fn wait(&self) -> Option<Wait> {
        match (&self.waits_for, self.reason) {
            (Some(id), _) => Some(Wait::Row(id.clone())),
            (None, Reason::Silenced) => Some(Wait::Silence),
            (None, Reason::Inhibited) => Some(Wait::Cause),
            (None, _) => None,
        }
    }
}

fn waits(tale: &Tale) -> BTreeSet<Wait> {
    tale.told.iter().filter_map(|told| told.hold.as_ref()?.wait()).collect()
}

/// Something that a contact is to be told, past all holds but `max`.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) contact: Arc<str>,
    pub(super) alert: AlertId,
    /// The group, window or storm whose message it belongs into.
    pub(super) bundle: Option<RowId>,
    /// What held it until now.
    pub(super) held: Option<Hold>,
}

/// A message that changes nothing in what is told of any alert.
#[derive(Clone, Debug)]
pub(super) struct Announcement {
    pub(super) contact: Arc<str>,
    pub(super) about: crate::model::AlertRef,
    pub(super) by: Arc<[Channel]>,
    pub(super) severity: Severity,
    pub(super) text: String,
    /// The storm that it tells the beginning of.
    pub(super) storm: Option<Arc<str>>,
}

/// One call of the notifier while it runs.
pub(super) struct Call<'a> {
    pub(super) book: &'a Book,
    pub(super) texts: Option<&'a dyn Texts>,
    pub(super) now: Timestamp,
    pub(super) outcome: Outcome,
    pub(super) ready: Vec<Ready>,
    pub(super) announcements: Vec<Announcement>,
    pub(super) ended_storms: BTreeMap<RowId, Storm>,
    /// The number of the telling of each alert that is told in this call.
    pub(super) rounds: HashMap<(AlertId, AlertState), u32>,
    touched: BTreeMap<RowId, Before>,
}

/// What was there before the call.
#[derive(Default)]
struct Before {
    stored: bool,
    waits: BTreeSet<Wait>,
}

impl<'a> Call<'a> {
    pub(super) fn new(sources: Sources<'a>, now: Timestamp) -> Self {
        Self {
            book: sources.book,
            texts: sources.texts,
            now,
            outcome: Outcome::default(),
            ready: Vec::new(),
            announcements: Vec::new(),
            ended_storms: BTreeMap::new(),
            rounds: HashMap::new(),
            touched: BTreeMap::new(),
        }
    }

    /// Notes a step in the life of an alert.
    pub(super) fn step(&mut self, alert: &Alert, what: StepKind, about: About<'_>) {
        self.outcome.steps.push(Step {
            alert: alert.id,
            at: self.now,
            what,
            reason: about.reason,
            rule: Arc::clone(&alert.rule),
            key: Arc::clone(&alert.key),
            severity: alert.severity,
            topic: alert.topic.clone(),
            contact: about.contact.cloned(),
            message: about.message,
            detail: about.detail,
        });
    }
}

/// The rest of a step.
#[derive(Clone, Debug, Default)]
pub(super) struct About<'a> {
    pub(super) reason: Option<Reason>,
    pub(super) contact: Option<&'a Arc<str>>,
    pub(super) message: Option<MessageId>,
    pub(super) detail: Option<Arc<str>>,
}

/// A group, and which of its alerts fire.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) group: Group,
    pub(super) firing: BTreeSet<AlertId>,
}

/// Everything that outlives a call.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) tales: HashMap<AlertId, Tale>,
    pub(super) instances: HashMap<RowId, Instance>,
    pub(super) groups: HashMap<RowId, Members>,
    pub(super) windows: HashMap<RowId, Window>,
    pub(super) silences: BTreeMap<Arc<str>, Silence>,
    pub(super) storms: HashMap<RowId, Storm>,
    pub(super) causes: Causes,
    timers: BTreeSet<(Timestamp, RowId)>,
    timer_of: HashMap<RowId, Timestamp>,
    waiting: HashMap<Wait, BTreeSet<AlertId>>,
}

impl State {
    /// Puts a row in its place.
    pub(super) fn restore(&mut self, row: Row) {
        let id = row.id();
        match row {
            Row::Tale(tale) => {
                for wait in waits(&tale) {
                    self.waiting.entry(wait).or_default().insert(tale.alert.id);
                }
                self.tales.insert(tale.alert.id, *tale);
            }
            Row::Instance(instance) => drop(self.instances.insert(id.clone(), instance)),
            Row::Group(group) => {
                let members = Members { group, firing: BTreeSet::new() };
                self.groups.insert(id.clone(), members);
            }
            Row::Window(window) => drop(self.windows.insert(id.clone(), window)),
            Row::Silence(silence) => {
                self.silences.insert(Arc::clone(&silence.id), silence);
            }
            Row::Storm(storm) => drop(self.storms.insert(id.clone(), storm)),
        }
        self.set_timer(&id);
    }

    /// Notes how `id` is before it is changed.
    pub(super) fn touch(&self, call: &mut Call<'_>, id: &RowId) {
        if call.touched.contains_key(id) {
            return;
        }
        let waits = match id {
            RowId::Tale(alert) => self.tales.get(alert).map(waits).unwrap_or_default(),
            _ => BTreeSet::new(),
        };
        call.touched.insert(id.clone(), Before { stored: self.is_stored(id), waits });
    }

    /// Whether the alert had something to remember before this call.
    pub(super) fn was_stored(call: &Call<'_>, alert: AlertId) -> bool {
        call.touched.get(&RowId::Tale(alert)).is_some_and(|before| before.stored)
    }

    fn is_stored(&self, id: &RowId) -> bool {
        match id {
            RowId::Tale(alert) => self.tales.contains_key(alert),
            RowId::Instance { .. } => self.instances.contains_key(id),
            RowId::Group { .. } => self.groups.contains_key(id),
            RowId::Window { .. } => self.windows.contains_key(id),
            RowId::Silence(silence) => self.silences.contains_key(silence),
            RowId::Storm(_) => self.storms.get(id).is_some_and(|storm| storm.since.is_some()),
        }
    }

    fn row(&self, id: &RowId) -> Option<Row> {
        if !self.is_stored(id) {
            return None;
        }
        Some(match id {
            RowId::Tale(alert) => Row::Tale(Box::new(self.tales.get(alert)?.clone())),
            RowId::Instance { .. } => Row::Instance(self.instances.get(id)?.clone()),
            RowId::Group { .. } => Row::Group(self.groups.get(id)?.group.clone()),
            RowId::Window { .. } => Row::Window(self.windows.get(id)?.clone()),
            RowId::Silence(silence) => Row::Silence(self.silences.get(silence)?.clone()),
            RowId::Storm(_) => Row::Storm(self.storms.get(id)?.clone()),
        })
    }

    /// When something is to be done about `id`.
    fn timer(&self, id: &RowId) -> Option<Timestamp> {
        match id {
            RowId::Tale(alert) => self.tales.get(alert)?.due(),
            RowId::Instance { .. } => self.instances.get(id)?.cool_at,
            RowId::Group { .. } => self.groups.get(id)?.group.timer(),
            RowId::Window { .. } => Some(self.windows.get(id)?.until),
            RowId::Silence(silence) => Some(self.silences.get(silence)?.until.at()),
            RowId::Storm(_) => Some(self.storms.get(id)?.until),
        }
    }

    /// Sets the timer of `id` to what it says now.
    pub(super) fn set_timer(&mut self, id: &RowId) {
        let (old, new) = (self.timer_of.get(id).copied(), self.timer(id));
        if old == new {
            return;
        }
        if let Some(at) = old {
            self.timers.remove(&(at, id.clone()));
            self.timer_of.remove(id);
        }
        if let Some(at) = new {
            self.timers.insert((at, id.clone()));
            self.timer_of.insert(id.clone(), at);
        }
    }

    /// The next timer.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// What is due, earliest first; but what a `max` holds before all else, or repetitions that
    /// come as its window ends would take the room of what waits for it, again and again.
    pub(super) fn all_due(&self, now: Timestamp) -> Vec<RowId> {
        let due = self.timers.iter().take_while(|(at, _)| *at <= now);
        let mut due: Vec<RowId> = due.map(|(_, id)| id.clone()).collect();
        due.sort_by_key(|id| !matches!(id, RowId::Window { .. }));
        due
    }

    /// Whether anything waits for it.
    pub(super) fn is_awaited(&self, id: &RowId) -> bool {
        self.waiting.contains_key(&Wait::Row(id.clone()))
    }

    /// The alerts that wait for it, earliest first.
    pub(super) fn waiting_for(&self, wait: &Wait) -> Vec<AlertId> {
        self.waiting.get(wait).map(|alerts| alerts.iter().copied().collect()).unwrap_or_default()
    }

    /// Every alert of which something is held.
    pub(super) fn all_held(&self) -> impl Iterator<Item = AlertId> {
        let held = |tale: &&Tale| tale.told.iter().any(|told| told.hold.is_some());
        self.tales.values().filter(held).map(|tale| tale.alert.id)
    }

    /// Forgets what is told in full, and brings index and timers up to date with all that was
    /// touched so far.
    pub(super) fn settle_index(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        for (id, before) in &mut call.touched {
            let RowId::Tale(alert) = id else { continue };
            if self.tales.get(alert).is_some_and(Tale::is_plain) {
                self.tales.remove(alert);
            }
            let after = self.tales.get(alert).map(waits).unwrap_or_default();
            for gone in before.waits.difference(&after) {
                if let Some(alerts) = self.waiting.get_mut(gone) {
                    alerts.remove(alert);
                    if alerts.is_empty() {
                        self.waiting.remove(gone);
                    }
                }
            }
            for new in after.difference(&before.waits) {
                self.waiting.entry(new.clone()).or_default().insert(*alert);
            }
            before.waits = after;
        }
        let touched: Vec<RowId> = call.touched.keys().cloned().collect();
        for id in touched {
            if let Some(members) = self.groups.get_mut(&id)
                && members.firing.is_empty()
                && !self.waiting.contains_key(&Wait::Row(id.clone()))
                && members.group.is_done(now)
            {
                self.groups.remove(&id);
            }
            self.set_timer(&id);
        }
    }

    /// What came of the call, with the rows of all that was touched.
    pub(super) fn finish(&mut self, mut call: Call<'_>) -> Outcome {
        self.settle_index(&mut call);
        for (id, before) in std::mem::take(&mut call.touched) {
            match self.row(&id) {
                Some(row) => call.outcome.rows.push(RowChange::Put(row)),
                None if before.stored => call.outcome.rows.push(RowChange::Remove(id)),
                None => {}
            }
        }
        call.outcome
    }
}
