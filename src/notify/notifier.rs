//! Who is told of an alert, when, and why not: news in, messages, steps and rows out.
//!
//! Level-triggered: for each alert and contact, what the contact was told last is compared with how
//! the alert stands. Where they differ it is told, or held with a reason; when the hold ends they are
//! compared again. So a burst of changes during a hold is one message, or none.
//!
//! Here is what each piece of news means. `gate` says who is held, `deliver` makes the messages, and
//! `state` keeps memory and rows the same. Invariant: an alert that was raised ends in a message or in a
//! step with a reason, and a restart between two calls changes nothing.

use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::book::Book;
use super::digest;
use super::hold::Instance;
use super::row::{Row, RowChange, RowId};
use super::silence::{BadSilence, Silence};
use super::state::{About, Announcement, Call, State, Wait};
use super::storm::{Storm, prefix};
use super::tale::{Knows, Tale, Told};
use crate::clock::Timestamp;
use crate::model::tell::{Ack, News, Policy, Step, StepKind, Turn};
use crate::model::{Alert, AlertId, AlertRef, AlertState, Message, Reason, Severity};

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
}

impl Notifier {
    /// Nobody was told of anything. A message lives for `expires_in` where its rule says nothing.
    pub fn new(config: &Config, expires_in: Duration) -> Self {
        Self { config: *config, expires_in, state: State::default() }
    }

    /// Puts back a row that was stored. Rows come in any order, all of them before the first call of
    /// anything else. Not held to the limits: they were within them once.
    pub fn restore(&mut self, row: Row) {
        self.state.restore(row);
    }

    /// Says that an alert fires: after [`Self::restore`], for each alert that fires; and again for
    /// each after a reload of the book, before [`Self::reconsider`]. `policy` is what its rule says
    /// now; `None`: the rule is gone. Saying it twice changes nothing.
    pub fn restore_firing(&mut self, book: &Book, alert: &Alert, policy: Option<&Arc<Policy>>) {
        let Some(policy) = policy.filter(|policy| !policy.shadow) else { return };
        self.state.causes.begin(&book.suppress, alert);
        if let Some(rule) = &book.storm {
            let prefix = prefix(&alert.topic, rule.levels);
            let id = RowId::Storm(Arc::clone(&prefix));
            let room = self.state.storms.len() < self.config.storms_max;
            if room || self.state.storms.contains_key(&id) {
                let storm = self.state.storms.entry(id.clone());
                let storm = storm.or_insert_with(|| Storm::new(prefix));
                storm.recount(rule, digest::name(alert), alert.fired_at);
                self.state.set_timer(&id);
            }
        }
        if let Some(tale) = self.state.tales.get_mut(&alert.id) {
            tale.policy = Arc::clone(policy);
        }
        if let Some(group) = group_of(alert, policy)
            && let Some(members) = self.state.groups.get_mut(&group)
        {
            members.firing.insert(alert.id);
        }
    }

    /// News of one alert.
    pub fn handle(&mut self, book: &Book, news: &News, now: Timestamp) -> Outcome {
        let mut call = Call::new(book, now);
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
            self.note_raise(&mut call, &news.alert);
        }
        self.state.finish(call)
    }

    /// When [`Self::wake`] has something to do next.
    pub fn due(&self) -> Option<Timestamp> {
        self.state.due()
    }

    /// Does all that is due. Doing it twice does nothing more.
    pub fn wake(&mut self, book: &Book, now: Timestamp) -> Outcome {
        let mut call = Call::new(book, now);
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

    /// Looks again at whatever is held, after a reload of the book.
    pub fn reconsider(&mut self, book: &Book, now: Timestamp) -> Outcome {
        let mut call = Call::new(book, now);
        self.state.causes.rebuild(&book.suppress);
        if book.storm.is_none() {
            let mut storms: Vec<RowId> = self.state.storms.keys().cloned().collect();
            storms.sort_unstable();
            for id in storms {
                self.state.touch(&mut call, &id);
                self.end_storm(&mut call, &id);
            }
        }
        for alert in self.state.all_held() {
            self.settle(&mut call, alert, None);
        }
        self.deliver(&mut call);
        self.state.finish(call)
    }

    /// Adds a silence, or replaces the one of the same id. What it covers is held from now on.
    ///
    /// # Errors
    /// It has no author, reason or end, covers everything by mistake, or is one too many.
    pub fn add_silence(
        &mut self,
        book: &Book,
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
        let mut call = Call::new(book, now);
        self.state.touch(&mut call, &RowId::Silence(Arc::clone(&silence.id)));
        self.state.silences.insert(Arc::clone(&silence.id), silence);
        // It may have replaced a wider or longer one.
        self.settle_waiting(&mut call, &Wait::Silence, None);
        self.deliver(&mut call);
        Ok(self.state.finish(call))
    }

    /// Ends the silence of that id, or of that name; `None` if there is none. Those of files end
    /// where they stand.
    pub fn end_silence(&mut self, book: &Book, id: &str, now: Timestamp) -> Option<Outcome> {
        let silences = &self.state.silences;
        let by_name = || silences.values().find(|silence| silence.name.as_deref() == Some(id));
        let id = Arc::clone(&silences.get(id).or_else(by_name)?.id);
        let mut call = Call::new(book, now);
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

    /// A rule that only counts what it would do.
    fn shadow(&mut self, call: &mut Call<'_>, news: &News) {
        let what = match news.turn {
            Turn::Raised => StepKind::Raised,
            Turn::Level(_) => StepKind::Level,
            Turn::Cleared => StepKind::Cleared,
            Turn::Acknowledged(_) => StepKind::Acknowledged,
            Turn::Flapping(_) => return,
            Turn::Dropped(_) => StepKind::Dropped,
        };
        // It may have been live when the alert was raised.
        if self.state.tales.contains_key(&news.alert.id) {
            self.forget(call, &news.alert, &news.policy);
        }
        self.explains_no_more(call, news.alert.id);
        let reason = match news.turn {
            Turn::Dropped(reason) => reason,
            _ => Reason::Shadow,
        };
        call.step(&news.alert, what, About { reason: Some(reason), ..About::default() });
    }

    fn raised(&mut self, call: &mut Call<'_>, news: &News) {
        let (alert, policy) = (&news.alert, &news.policy);
        if !policy.event {
            self.state.causes.begin(&call.book.suppress, alert);
        }
        self.count_storm(call, news);
        let directory = &call.book.directory;
        if !policy.to.iter().any(|contact| directory.targets(contact, &policy.by).is_ok()) {
            let detail = if policy.to.is_empty() {
                "the rule names nobody".to_owned()
            } else {
                format!("none of {} can be reached", policy.to.join(", "))
            };
            let about = About {
                reason: Some(Reason::NoRecipient),
                detail: Some(detail.into()),
                ..About::default()
            };
            call.step(alert, StepKind::Dropped, about);
            return;
        }
        self.state.touch(call, &RowId::Tale(alert.id));
        let mut tale = Tale::new(alert.clone(), news.title.clone(), Arc::clone(policy));
        self.inherit(call, &mut tale);
        self.join_group(call, &tale);
        self.state.tales.insert(alert.id, tale);
        self.settle(call, alert.id, None);
    }

    /// That it was raised is in its messages; where there are none, it is a step.
    fn note_raise(&self, call: &mut Call<'_>, alert: &Alert) {
        let says_it =
            |message: &Message| message.alert.as_ref().is_some_and(|about| about.id == alert.id);
        if call.outcome.messages.iter().any(says_it) {
            return;
        }
        call.step(alert, StepKind::Raised, About::default());
        call.outcome.steps.rotate_right(1);
    }

    /// While an instance flaps its alerts follow each other: what was told of the one before, and is
    /// over untold, is what people believe of this one.
    fn inherit(&mut self, call: &mut Call<'_>, tale: &mut Tale) {
        let Some(instance) = self.flapping_instance(&tale.alert) else { return };
        let before = std::mem::replace(&mut instance.alert, tale.alert.id);
        let id = instance.id();
        if before == tale.alert.id {
            return;
        }
        self.state.touch(call, &id);
        let over = |old: &&Tale| old.alert.state == AlertState::Cleared;
        let Some(old) = self.state.tales.get(&before).filter(over) else { return };
        for told in &old.told {
            let same = tale.told.iter_mut().find(|new| new.contact == told.contact);
            match (same, told.knows) {
                (Some(new), Knows::Fires(severity)) => new.knows = Knows::Fires(severity),
                (Some(_), Knows::Nothing | Knows::Over) | (None, _) => {}
            }
        }
        let alert = old.alert.clone();
        self.state.touch(call, &RowId::Tale(before));
        self.state.tales.remove(&before);
        let about = About { reason: Some(Reason::Superseded), ..About::default() };
        call.step(&alert, StepKind::Dropped, about);
    }

    /// The tale of the alert, or the one that an alert without a tale has, brought up to date.
    fn tale_of(&mut self, call: &mut Call<'_>, news: &News, from: Severity) -> Tale {
        let alert = news.alert.clone();
        self.state.touch(call, &RowId::Tale(alert.id));
        let Some(mut tale) = self.state.tales.remove(&alert.id) else {
            let (title, policy) = (news.title.clone(), Arc::clone(&news.policy));
            return Tale::plain(alert, from, title, policy);
        };
        tale.alert = alert;
        tale.policy = Arc::clone(&news.policy);
        if news.title.is_some() {
            tale.title.clone_from(&news.title);
        }
        // Who is named since a reload counts as told, as with an alert without a tale.
        for contact in news.policy.to.iter() {
            if !tale.told.iter().any(|told| told.contact == *contact) {
                tale.told.push(Told::new(contact, Knows::Fires(from)));
            }
        }
        tale
    }

    fn level(&mut self, call: &mut Call<'_>, news: &News, from: Severity) {
        call.step(&news.alert, StepKind::Level, About::default());
        let mut tale = self.tale_of(call, news, from);
        if news.alert.severity > from {
            // Somebody takes care of what it was, not of what it has become.
            tale.ack = None;
        }
        self.state.tales.insert(news.alert.id, tale);
        self.settle(call, news.alert.id, None);
    }

    fn cleared(&mut self, call: &mut Call<'_>, news: &News) {
        call.step(&news.alert, StepKind::Cleared, About::default());
        let mut tale = self.tale_of(call, news, news.alert.severity);
        for told in &mut tale.told {
            told.repeat_at = None;
            told.again = false;
        }
        self.leave_group(call, &tale.alert, &tale.policy);
        self.state.tales.insert(news.alert.id, tale);
        self.settle(call, news.alert.id, None);
        self.explains_no_more(call, news.alert.id);
    }

    fn explains_no_more(&mut self, call: &mut Call<'_>, alert: AlertId) {
        if self.state.causes.end(&call.book.suppress, alert) {
            self.settle_waiting(call, &Wait::Cause, None);
        }
    }

    fn acknowledged(&mut self, call: &mut Call<'_>, news: &News, ack: &Ack) {
        let note = ack.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
        let detail = Some(format!("by {}{note}", ack.by).into());
        call.step(&news.alert, StepKind::Acknowledged, About { detail, ..About::default() });
        let mut tale = self.tale_of(call, news, news.alert.severity);
        let present = tale.present();
        for told in &mut tale.told {
            told.repeat_at = None;
            told.again = false;
            if told.knows == Knows::Nothing || told.knows == present || present == Knows::Over {
                continue;
            }
            told.knows = present;
            if told.hold.take().is_some() {
                let about = About {
                    reason: Some(Reason::Superseded),
                    contact: Some(&told.contact),
                    detail: Some(format!("acknowledged by {}", ack.by).into()),
                    ..About::default()
                };
                call.step(&news.alert, StepKind::Dropped, about);
            }
        }
        // Kept only where it stops something.
        tale.ack = tale.policy.repeat.map(|_| ack.clone());
        self.state.tales.insert(news.alert.id, tale);
    }

    fn begins_to_flap(&mut self, call: &mut Call<'_>, news: &News) {
        let alert = &news.alert;
        let id = RowId::Instance { rule: Arc::clone(&alert.rule), key: Arc::clone(&alert.key) };
        let known = self.state.instances.contains_key(&id);
        if !known && self.state.instances.len() >= self.config.instances_max {
            return;
        }
        self.state.touch(call, &id);
        let instance = self.state.instances.entry(id).or_insert_with(|| Instance {
            rule: Arc::clone(&alert.rule),
            key: Arc::clone(&alert.key),
            alert: alert.id,
            cool_at: None,
            flapping: false,
        });
        if std::mem::replace(&mut instance.flapping, true) {
            return;
        }
        instance.alert = alert.id;
        let tale = match self.state.tales.get(&alert.id) {
            Some(tale) => tale.clone(),
            None => {
                let policy = Arc::clone(&news.policy);
                Tale::plain(alert.clone(), alert.severity, news.title.clone(), policy)
            }
        };
        for told in &tale.told {
            if self.alert_gate(call, &tale, false).is_some()
                || self.storm_of(call, &tale.alert).is_some()
                || self.quiet_gate(call, &tale.alert, &told.contact).is_some()
            {
                continue;
            }
            call.announcements.push(Announcement {
                contact: Arc::clone(&told.contact),
                about: about(alert),
                by: Arc::clone(&tale.policy.by),
                severity: alert.severity,
                text: digest::flapping(alert),
                storm: None,
            });
        }
        // What was on its way waits too.
        self.settle(call, alert.id, None);
    }

    fn is_steady(&mut self, call: &mut Call<'_>, news: &News) {
        let mut alerts = vec![news.alert.id];
        if let Some(instance) = self.flapping_instance(&news.alert) {
            let (id, last) = (instance.id(), instance.alert);
            self.state.touch(call, &id);
            if let Some(instance) = self.state.instances.get_mut(&id) {
                instance.flapping = false;
                if instance.cool_at.is_none() {
                    self.state.instances.remove(&id);
                }
            }
            if last != news.alert.id {
                alerts.push(last);
            }
        }
        for alert in alerts {
            self.settle(call, alert, None);
        }
    }

    fn dropped(&mut self, call: &mut Call<'_>, news: &News, reason: Reason) {
        let alert = &news.alert;
        call.step(alert, StepKind::Dropped, About { reason: Some(reason), ..About::default() });
        self.forget(call, alert, &news.policy);
        if let Some(instance) = self.flapping_instance(alert) {
            let id = instance.id();
            self.state.touch(call, &id);
            if let Some(instance) = self.state.instances.get_mut(&id) {
                instance.flapping = false;
                if instance.cool_at.is_none() {
                    self.state.instances.remove(&id);
                }
            }
        }
    }

    /// Nobody hears more of the alert.
    fn forget(&mut self, call: &mut Call<'_>, alert: &Alert, policy: &Policy) {
        self.state.touch(call, &RowId::Tale(alert.id));
        self.state.tales.remove(&alert.id);
        self.leave_group(call, alert, policy);
        self.explains_no_more(call, alert.id);
    }

    fn flapping_instance(&mut self, alert: &Alert) -> Option<&mut Instance> {
        if self.state.instances.is_empty() {
            return None;
        }
        let id = RowId::Instance { rule: Arc::clone(&alert.rule), key: Arc::clone(&alert.key) };
        self.state.instances.get_mut(&id).filter(|instance| instance.flapping)
    }

    /// Counts a raise towards a storm under its prefix.
    fn count_storm(&mut self, call: &mut Call<'_>, news: &News) {
        let Some(rule) = &call.book.storm else { return };
        let prefix = prefix(&news.alert.topic, rule.levels);
        let id = RowId::Storm(Arc::clone(&prefix));
        if !self.state.storms.contains_key(&id) && self.state.storms.len() >= self.config.storms_max
        {
            return;
        }
        self.state.touch(call, &id);
        let storm = self.state.storms.entry(id).or_insert_with(|| Storm::new(prefix));
        storm.count(rule, digest::name(&news.alert), self.config.names_max, call.now);
        if storm.about.is_none() && storm.since.is_some() {
            storm.about = Some(about(&news.alert));
            storm.by = Arc::clone(&news.policy.by);
        }
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
    }
}

/// The group that the alert belongs to.
pub(super) fn group_of(alert: &Alert, policy: &Policy) -> Option<RowId> {
    policy.group.as_ref().map(|by| super::group::Group::of(alert, by).id())
}
