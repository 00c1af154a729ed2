//! What each piece of news does to the tale of its alert.
//!
//! Nobody is told here: the alert is brought up to date, and `settle` compares it with what people
//! know. Invariant: an alert leaves every group and explains nothing any more once it is over.

use std::sync::Arc;

use super::digest;
use super::hold::Instance;
use super::notifier::{Notifier, about};
use super::row::RowId;
use super::state::{About, Announcement, Call, Wait};
use super::storm::{Storm, prefix};
use super::tale::{Knows, Tale, Told};
use crate::model::tell::{Ack, News, Policy, StepKind, Turn};
use crate::model::{Alert, AlertId, AlertState, Message, Reason, Severity};

/// What a step says of a text that could not be rendered as it is written.
fn lacking(news: &News) -> About<'static> {
    let detail = news.unrendered.clone();
    About { reason: detail.as_ref().map(|_| Reason::TemplateFailed), detail, ..About::default() }
}

impl Notifier {
    /// A rule that only counts what it would do.
    pub(super) fn shadow(&mut self, call: &mut Call<'_>, news: &News) {
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
        let detail = news.unrendered.clone();
        call.step(&news.alert, what, About { reason: Some(reason), detail, ..About::default() });
    }

    pub(super) fn raised(&mut self, call: &mut Call<'_>, news: &News) {
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

    /// That it was raised is in its messages; where there are none, or they say less than the rule
    /// meant them to, it is a step.
    pub(super) fn note_raise(&self, call: &mut Call<'_>, news: &News) {
        let alert = &news.alert;
        let says_it =
            |message: &Message| message.alert.as_ref().is_some_and(|about| about.id == alert.id);
        if news.unrendered.is_none() && call.outcome.messages.iter().any(says_it) {
            return;
        }
        call.step(alert, StepKind::Raised, lacking(news));
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

    pub(super) fn level(&mut self, call: &mut Call<'_>, news: &News, from: Severity) {
        call.step(&news.alert, StepKind::Level, lacking(news));
        let mut tale = self.tale_of(call, news, from);
        if news.alert.severity > from {
            // Somebody takes care of what it was, not of what it has become.
            tale.ack = None;
        }
        self.state.tales.insert(news.alert.id, tale);
        self.settle(call, news.alert.id, None);
    }

    pub(super) fn cleared(&mut self, call: &mut Call<'_>, news: &News) {
        call.step(&news.alert, StepKind::Cleared, lacking(news));
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

    pub(super) fn acknowledged(&mut self, call: &mut Call<'_>, news: &News, ack: &Ack) {
        let note = ack.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
        let detail = Some(format!("by {}{note}", ack.by).into());
        call.step(&news.alert, StepKind::Acknowledged, About { detail, ..About::default() });
        let mut tale = self.tale_of(call, news, news.alert.severity);
        let present = tale.present();
        for told in &mut tale.told {
            told.repeat_at = None;
            told.again = false;
            if told.knows == present || present == Knows::Over {
                continue;
            }
            // Who has heard nothing hears neither of this nor that it is over.
            if told.knows != Knows::Nothing {
                told.knows = present;
            }
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
        let is_unheard = tale.told.iter().any(|told| told.knows == Knows::Nothing);
        let stops = tale.policy.repeat.is_some() || is_unheard;
        tale.ack = stops.then(|| ack.clone());
        self.state.tales.insert(news.alert.id, tale);
    }

    pub(super) fn begins_to_flap(&mut self, call: &mut Call<'_>, news: &News) {
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

    pub(super) fn is_steady(&mut self, call: &mut Call<'_>, news: &News) {
        let mut alerts = vec![news.alert.id];
        if let Some(instance) = self.flapping_instance(&news.alert) {
            let id = instance.id();
            alerts.extend(self.calm(call, &id).filter(|last| *last != news.alert.id));
        }
        for alert in alerts {
            self.settle(call, alert, None);
        }
    }

    /// The instance is flapping no longer. Its last alert, if it was.
    pub(super) fn calm(&mut self, call: &mut Call<'_>, id: &RowId) -> Option<AlertId> {
        self.state.instances.get(id).filter(|instance| instance.flapping)?;
        self.state.touch(call, id);
        let instance = self.state.instances.get_mut(id)?;
        instance.flapping = false;
        let (last, is_cooling) = (instance.alert, instance.cool_at.is_some());
        if !is_cooling {
            self.state.instances.remove(id);
        }
        Some(last)
    }

    pub(super) fn dropped(&mut self, call: &mut Call<'_>, news: &News, reason: Reason) {
        let alert = &news.alert;
        call.step(alert, StepKind::Dropped, About { reason: Some(reason), ..About::default() });
        self.forget(call, alert, &news.policy);
        if let Some(instance) = self.flapping_instance(alert) {
            let id = instance.id();
            self.calm(call, &id);
        }
    }

    /// The alert's rule says something else of telling since a reload: who is named no more hears no
    /// more, who is named now hears what somebody else has not heard yet, and repetitions keep to
    /// what `repeat` says now. An alert without a tale begins to be repeated.
    pub(super) fn renew(
        &mut self,
        call: &mut Call<'_>,
        alert: Alert,
        policy: &Arc<Policy>,
        ack: Option<Ack>,
    ) {
        let id = alert.id;
        let tale = self.state.tales.get(&id);
        if tale.is_none() {
            let directory = &call.book.directory;
            let reached = |contact: &Arc<str>| directory.targets(contact, &policy.by).is_ok();
            let room = self.state.tales.len() < self.config.tales_max;
            if !room || !policy.to.iter().any(reached) {
                return;
            }
        }
        self.state.touch(call, &RowId::Tale(id));
        let severity = alert.severity;
        let tale = self.state.tales.remove(&id);
        let tale = tale.unwrap_or_else(|| Tale::plain(alert, severity, None, Arc::clone(policy)));
        if policy.shadow {
            let about = About { reason: Some(Reason::Shadow), ..About::default() };
            call.step(&tale.alert, StepKind::Dropped, about);
            return;
        }
        let (tale, unnamed) = tale.renewed(policy, ack, call.now);
        for contact in &unnamed {
            let about = About {
                reason: Some(Reason::RuleChanged),
                contact: Some(contact),
                detail: Some("the rule names it no more".into()),
                ..About::default()
            };
            call.step(&tale.alert, StepKind::Dropped, about);
        }
        self.state.tales.insert(id, tale);
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
}
