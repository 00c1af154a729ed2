//! Who is told of an alert, when, and why not: news in, messages, steps and rows out.
//!
//! Level-triggered: for each alert and contact, what the contact was told last is compared with how
//! the alert stands. Where they differ it is told, or held with a reason; when the hold ends they are
//! compared again. So a burst of changes during a hold is one message, or none.
//!
//! `news` brings the tales up to date, `gate` says who is held, `deliver` makes the messages, and
//! `state` keeps memory and rows the same. Invariant: an alert that was raised ends in a message or in a
//! step with a reason, and a restart between two calls changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::book::Book;
use super::digest;
use super::row::{Row, RowChange, RowId};
use super::silence::{BadSilence, Silence};
use super::state::{Call, State, Wait};
use super::storm::{Storm, prefix};
use super::suppress::Causes;
use super::tale::Tale;
use crate::clock::Timestamp;
use crate::model::tell::{Ack, News, Policy, Said, Step, Turn};
use crate::model::{Alert, AlertId, AlertRef, Message, Tells};

/// So often one wake looks for what has become due by what it did itself.
const ROUNDS_MAX: usize = 16;

/// What came of a call: all of it belongs into one operation of the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Messages, queued and due at once.
    pub messages: Vec<Message>,
    /// What `explain` tells.
    pub steps: Vec<Step>,
    /// What becomes of stored rows; each row at most once.
    pub rows: Vec<RowChange>,
}

/// All state of telling.
#[derive(Debug)]
pub struct Notifier {
    pub(super) config: Config,
    pub(super) expires_in: Duration,
    pub(super) state: State,
    renewed: Renewed,
}

/// Who knows what an alert that fires says now: what is told again, or later than it happened, is
/// told as it is by then.
pub trait Texts {
    /// The alert's present text; `None`: what it said when it changed last is all there is.
    fn of(&self, alert: &Alert, now: Timestamp) -> Option<Said>;
}

/// What a call may ask: who is told how, and what alerts say now. With a book alone they say what
/// they said.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// Who is told how.
    pub book: &'a Book,
    /// What alerts say now.
    pub texts: Option<&'a dyn Texts>,
}

impl<'a> From<&'a Book> for Sources<'a> {
    fn from(book: &'a Book) -> Self {
        Self { book, texts: None }
    }
}

/// An alert that fires, what its rule says of telling, and who takes care of it.
#[derive(Clone, Debug)]
pub struct Firing<'a> {
    /// The alert.
    pub alert: Alert,
    /// Who is to be told, and how.
    pub policy: &'a Arc<Policy>,
    /// Who takes care of it.
    pub ack: Option<&'a Ack>,
}

/// What a reload changed and is not looked at yet.
#[derive(Debug, Default)]
struct Renewed {
    /// Alerts whose rules say something else of telling.
    alerts: Vec<(Alert, Arc<Policy>, Option<Ack>)>,
    /// Instances that are flapping no longer.
    steady: Vec<RowId>,
}

impl Notifier {
    /// Nobody was told of anything. A message lives for `expires_in` where its rule says nothing.
    pub fn new(config: &Config, expires_in: Duration) -> Self {
        Self {
            config: config.clone(),
            expires_in,
            state: State::default(),
            renewed: Renewed::default(),
        }
    }

    /// Puts back a row that was stored. Rows come in any order, all of them before the first call of
    /// anything else. Not held to the limits: they were within them once.
    pub fn restore(&mut self, row: Row) {
        self.state.restore(row);
    }

    /// Says which alerts fire and what their rules say now: after [`Self::restore`], and again after
    /// each reload. What else is known of who explains what, and of who is in which group, is
    /// forgotten. Saying it twice changes nothing. [`Self::reconsider`] then tells what comes of it.
    ///
    /// `flaps` says whether the instance of that rule and key is flapping still.
    pub fn adopt<'a>(
        &mut self,
        book: &Book,
        firing: impl IntoIterator<Item = Firing<'a>>,
        flaps: impl Fn(&str, &str) -> bool,
    ) {
        self.state.causes = Causes::default();
        self.state.groups.values_mut().for_each(|members| members.firing.clear());
        let steady = self
            .state
            .instances
            .iter()
            .filter(|(_, instance)| instance.flapping && !flaps(&instance.rule, &instance.key));
        self.renewed.steady = steady.map(|(id, _)| id.clone()).collect();
        self.renewed.alerts.clear();
        for alert in firing {
            self.adopt_one(book, alert);
        }
    }

    fn adopt_one(&mut self, book: &Book, firing: Firing<'_>) {
        let Firing { alert, policy, ack } = firing;
        let tale = self.state.tales.get(&alert.id);
        // Without a tale everybody was told once: of its rule only `repeat` could make a difference.
        let is_renewed = match tale {
            // A row from before an acknowledgement ended what was held.
            Some(tale) => tale.policy != *policy || (ack.is_some() && tale.acknowledged_unsaid()),
            None => policy.repeat.is_some() && ack.is_none() && !policy.shadow,
        };
        if is_renewed {
            let renewed = (alert.clone(), Arc::clone(policy), ack.cloned());
            self.renewed.alerts.push(renewed);
        }
        if policy.shadow {
            return;
        }
        self.state.causes.begin(&book.suppress, &alert);
        if let Some(rule) = &book.storm {
            let prefix = prefix(&alert.topic, rule.levels);
            let id = RowId::Storm(Arc::clone(&prefix));
            let room = self.state.storms.len() < self.config.storms_max;
            if room || self.state.storms.contains_key(&id) {
                let storm = self.state.storms.entry(id.clone());
                let storm = storm.or_insert_with(|| Storm::new(prefix));
                storm.recount(rule, digest::name(&alert), alert.fired_at);
                self.state.set_timer(&id);
            }
        }
        if let Some(group) = group_of(&alert, policy)
            && let Some(members) = self.state.groups.get_mut(&group)
        {
            members.firing.insert(alert.id);
        }
    }

    /// News of one alert.
    pub fn handle<'a>(
        &mut self,
        sources: impl Into<Sources<'a>>,
        news: &News,
        now: Timestamp,
    ) -> Outcome {
        let mut call = Call::new(sources.into(), now);
        if news.policy.shadow {
            self.shadow(&mut call, news);
            return self.state.finish(call);
        }
        match &news.turn {
            Turn::Raised => self.raised(&mut call, news),
            Turn::Level(from) => self.level(&mut call, news, *from),
            Turn::Cleared => self.cleared(&mut call, news),
            Turn::Acknowledged(ack) => self.acknowledged(&mut call, news, ack),
            Turn::Flapping(true) => self.begins_to_flap(&mut call, news),
            Turn::Flapping(false) => self.is_steady(&mut call, news),
            Turn::Dropped(reason) => self.dropped(&mut call, news, *reason),
        }
        self.deliver(&mut call);
        if news.turn == Turn::Raised {
            self.note_raise(&mut call, news);
        }
        self.state.finish(call)
    }

    /// When [`Self::wake`] has something to do next.
    pub fn due(&self) -> Option<Timestamp> {
        self.state.due()
    }

    /// Does all that is due. Doing it twice does nothing more.
    pub fn wake<'a>(&mut self, sources: impl Into<Sources<'a>>, now: Timestamp) -> Outcome {
        let mut call = Call::new(sources.into(), now);
        for _ in 0..ROUNDS_MAX {
            let due = self.state.all_due(now);
            if due.is_empty() {
                break;
            }
            for id in due {
                self.state.touch(&mut call, &id);
                self.ring(&mut call, &id);
            }
            self.deliver(&mut call);
            self.state.settle_index(&mut call);
        }
        self.state.finish(call)
    }

    fn ring(&mut self, call: &mut Call<'_>, id: &RowId) {
        match id {
            RowId::Tale(alert) => {
                self.repeats(call, *alert);
                self.settle(call, *alert, None);
            }
            RowId::Instance { .. } => {
                if let Some(instance) = self.state.instances.get_mut(id) {
                    instance.cool_at = None;
                    if !instance.flapping {
                        self.state.instances.remove(id);
                    }
                }
            }
            RowId::Group { .. } => self.tell_group(call, id),
            RowId::Window { .. } => {
                self.state.windows.remove(id);
                self.settle_waiting(call, &Wait::Row(id.clone()), Some(id));
            }
            RowId::Silence(silence) => drop(self.state.silences.remove(silence)),
            RowId::Storm(_) => self.end_storm(call, id),
        }
    }

    /// Brings what is told up to date with what rules and contacts say now, and looks again at
    /// whatever is held. After [`Self::adopt`], and after the news of what the reload ended.
    pub fn reconsider<'a>(&mut self, sources: impl Into<Sources<'a>>, now: Timestamp) -> Outcome {
        let mut call = Call::new(sources.into(), now);
        let Renewed { mut alerts, steady } = std::mem::take(&mut self.renewed);
        alerts.sort_unstable_by_key(|(alert, ..)| alert.id);
        let mut looked_at: BTreeSet<AlertId> = BTreeSet::new();
        for (alert, policy, ack) in alerts {
            looked_at.insert(alert.id);
            self.renew(&mut call, alert, &policy, ack);
        }
        looked_at.extend(steady.iter().filter_map(|id| self.calm(&mut call, id)));
        if call.book.storm.is_none() {
            let mut storms: Vec<RowId> = self.state.storms.keys().cloned().collect();
            storms.sort_unstable();
            for id in storms {
                self.state.touch(&mut call, &id);
                self.end_storm(&mut call, &id);
            }
        }
        // Those in which nothing fires any more go.
        let groups = self.state.groups.iter().filter(|(_, members)| members.firing.is_empty());
        for (id, _) in groups {
            self.state.touch(&mut call, id);
        }
        looked_at.extend(self.state.all_held());
        for alert in looked_at {
            self.settle(&mut call, alert, None);
        }
        self.deliver(&mut call);
        self.state.finish(call)
    }

    /// The wall clock was set: quiet hours and silences begin and end by it, from now on.
    pub fn clock_stepped<'a>(
        &mut self,
        sources: impl Into<Sources<'a>>,
        now: Timestamp,
    ) -> Outcome {
        let silences: Vec<RowId> =
            self.state.silences.keys().cloned().map(RowId::Silence).collect();
        silences.iter().for_each(|id| self.state.set_timer(id));
        let mut call = Call::new(sources.into(), now);
        let held: Vec<AlertId> = self.state.all_held().collect();
        for alert in held {
            self.settle(&mut call, alert, None);
        }
        self.deliver(&mut call);
        self.state.finish(call)
    }

    /// An instance that was flapping is gone without news.
    pub fn steadied<'a>(
        &mut self,
        sources: impl Into<Sources<'a>>,
        rule: &Arc<str>,
        key: &Arc<str>,
        now: Timestamp,
    ) -> Outcome {
        let mut call = Call::new(sources.into(), now);
        let id = RowId::Instance { rule: Arc::clone(rule), key: Arc::clone(key) };
        if let Some(last) = self.calm(&mut call, &id) {
            self.settle(&mut call, last, None);
        }
        self.deliver(&mut call);
        self.state.finish(call)
    }

    /// Adds a silence, or replaces the one of the same id. What it covers is held from now on.
    ///
    /// # Errors
    /// It has no author, reason or end, covers everything by mistake, or is one too many.
    pub fn add_silence<'a>(
        &mut self,
        sources: impl Into<Sources<'a>>,
        silence: Silence,
        now: Timestamp,
    ) -> Result<Outcome, BadSilence> {
        silence.check(now)?;
        let silences = &self.state.silences;
        if !silences.contains_key(&silence.id) && silences.len() >= self.config.silences_max {
            let what = format!(
                "there are {} silences already; end some, or raise notify.silences_max",
                silences.len()
            );
            return Err(BadSilence(vec![what]));
        }
        let mut call = Call::new(sources.into(), now);
        self.state.touch(&mut call, &RowId::Silence(Arc::clone(&silence.id)));
        self.state.silences.insert(Arc::clone(&silence.id), silence);
        // It may have replaced a wider or longer one.
        self.settle_waiting(&mut call, &Wait::Silence, None);
        self.deliver(&mut call);
        Ok(self.state.finish(call))
    }

    /// Ends the silence of that id, or of that name; `None` if there is none. Those of files end
    /// where they stand.
    pub fn end_silence<'a>(
        &mut self,
        sources: impl Into<Sources<'a>>,
        id: &str,
        now: Timestamp,
    ) -> Option<Outcome> {
        let silences = &self.state.silences;
        let by_name = || silences.values().find(|silence| silence.name.as_deref() == Some(id));
        let id = Arc::clone(&silences.get(id).or_else(by_name)?.id);
        let mut call = Call::new(sources.into(), now);
        self.state.touch(&mut call, &RowId::Silence(Arc::clone(&id)));
        self.state.silences.remove(&id);
        self.settle_waiting(&mut call, &Wait::Silence, None);
        self.deliver(&mut call);
        Some(self.state.finish(call))
    }

    /// The silences of operators, in the order of their ids.
    pub fn silences(&self) -> impl Iterator<Item = &Silence> {
        self.state.silences.values()
    }

    /// What each contact was told of the alert and what is held. `None` in the plain case: everybody
    /// was told once, at once, and there is nothing more to tell.
    pub fn tale(&self, alert: AlertId) -> Option<&Tale> {
        self.state.tales.get(&alert)
    }

    /// How many alerts have a tale.
    pub fn len(&self) -> usize {
        self.state.tales.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.state.tales.is_empty()
    }

    /// Sets those to be told again whose time has come.
    fn repeats(&mut self, call: &Call<'_>, alert: AlertId) {
        let Some(tale) = self.state.tales.get_mut(&alert) else { return };
        let present = tale.present();
        for told in &mut tale.told {
            if told.hold.is_none() && told.repeat_at.is_some_and(|at| at <= call.now) {
                told.again = told.knows == present && tale.ack.is_none();
                // Should it be held now, it is not made up for.
                told.repeat_at = match (told.again, tale.policy.repeat) {
                    (true, Some(every)) => Some(call.now.plus(every)),
                    _ => None,
                };
            }
        }
    }

    /// Looks again at all that waits for something.
    pub(super) fn settle_waiting(
        &mut self,
        call: &mut Call<'_>,
        wait: &Wait,
        ended: Option<&RowId>,
    ) {
        for alert in self.state.waiting_for(wait) {
            self.settle(call, alert, ended);
        }
    }
}

/// What leads from a message to its alert.
pub(super) fn about(alert: &Alert) -> AlertRef {
    AlertRef {
        id: alert.id,
        rule: Arc::clone(&alert.rule),
        key: Arc::clone(&alert.key),
        state: alert.state,
        topic: alert.topic.clone(),
        tells: Tells::Alert,
    }
}

/// The group that the alert belongs to.
pub(super) fn group_of(alert: &Alert, policy: &Policy) -> Option<RowId> {
    policy.group.as_ref().map(|by| super::group::Group::of(alert, by).id())
}
