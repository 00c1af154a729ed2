//! Whether a contact may be told now, and if not, why and until when.
//!
//! In this order, so that the reason given is the one that would last: flapping, silenced, inhibited,
//! cooldown (of the alert), storm, grouped, quiet hours (of the contact). The `max` comes last, in
//! `deliver`, because only what is told is counted.

use std::sync::Arc;

use super::calendar::shown;
use super::digest;
use super::group::Group;
use super::hold::Hold;
use super::notifier::{Notifier, about, group_of};
use super::row::RowId;
use super::state::{About, Announcement, Call, Members, Ready, State, Wait};
use super::storm::{Storm, prefix};
use super::tale::{Knows, Tale, Told};
use crate::clock::Timestamp;
use crate::model::tell::{Policy, StepKind};
use crate::model::{Alert, AlertId, AlertState, Reason};

impl Notifier {
    /// Compares what each contact knows of the alert with how it stands: marks as ready what may be
    /// told, holds the rest. `ended`: what was held by this group, window or storm is so no longer.
    pub(super) fn settle(&mut self, call: &mut Call<'_>, alert: AlertId, ended: Option<&RowId>) {
        if !self.state.tales.contains_key(&alert) {
            return;
        }
        self.state.touch(call, &RowId::Tale(alert));
        let Some(mut tale) = self.state.tales.remove(&alert) else { return };
        // One more tale would be one too many: what cannot be remembered is told.
        let full =
            self.state.tales.len() >= self.config.tales_max && !State::was_stored(call, alert);
        let whole = self.alert_gate(call, &tale, true);
        let (mut held, mut dropped) = (Vec::new(), Vec::new());
        let everybody = std::mem::take(&mut tale.told);
        for mut told in everybody {
            let old = told.hold.take();
            if !tale.wants(&told) {
                told.again = false;
                if let Some(old) = old {
                    let over = tale.alert.state == AlertState::Cleared;
                    let reason = if over { Reason::Over } else { Reason::Superseded };
                    dropped.push((Arc::clone(&told.contact), reason, old));
                }
                tale.told.push(told);
                continue;
            }
            let has_ended = |hold: &Hold| ended.is_some() && hold.waits_for.as_ref() == ended;
            let is_ended = old.as_ref().is_some_and(has_ended);
            let hold = match &whole {
                Some(hold) => Some(hold.clone()),
                None => self.contact_gate(call, &tale, &told, is_ended),
            };
            match hold {
                Some(hold)
                    if told.again
                        && hold.reason != Reason::Grouped
                        && told.knows == tale.present() =>
                {
                    // A repetition that is held is not made up for.
                    told.again = false;
                }
                Some(mut hold) if !full => {
                    match &old {
                        Some(old) if old.reason == hold.reason => hold.since = old.since,
                        // A repetition that its group will tell.
                        _ if told.again && told.knows == tale.present() => {}
                        _ => held.push((Arc::clone(&told.contact), hold.clone())),
                    }
                    told.hold = Some(hold);
                }
                hold => {
                    if hold.is_some() {
                        self.say_full(call, &tale, &told.contact);
                    }
                    call.ready.push(Ready {
                        contact: Arc::clone(&told.contact),
                        alert,
                        bundle: ended.filter(|_| is_ended).cloned(),
                        held: old,
                    });
                }
            }
            tale.told.push(told);
        }
        let alone = tale.told.len();
        note_holds(call, &tale.alert, &held, alone);
        note_drops(call, &tale.alert, &dropped, alone);
        self.state.tales.insert(alert, tale);
    }

    fn say_full(&self, call: &mut Call<'_>, tale: &Tale, contact: &Arc<str>) {
        let about = About {
            reason: Some(Reason::TooMany),
            contact: Some(contact),
            detail: Some(
                format!("not held: {} alerts are (notify.tales_max)", self.config.tales_max).into(),
            ),
            ..About::default()
        };
        call.step(&tale.alert, StepKind::Released, about);
    }

    /// What holds the alert from everybody.
    pub(super) fn alert_gate(
        &self,
        call: &Call<'_>,
        tale: &Tale,
        or_flapping: bool,
    ) -> Option<Hold> {
        let (alert, now) = (&tale.alert, call.now);
        let instance = if self.state.instances.is_empty() {
            None
        } else {
            let (rule, key) = (Arc::clone(&alert.rule), Arc::clone(&alert.key));
            self.state.instances.get(&RowId::Instance { rule, key })
        };
        let hold = |reason, until: Option<Timestamp>, detail: String| {
            let detail = Some(detail.into());
            Hold { reason, since: now, until, waits_for: None, detail }
        };
        if or_flapping && instance.is_some_and(|instance| instance.flapping) {
            return Some(hold(Reason::Flapping, None, "until it is steady".to_owned()));
        }
        if let Some((until, detail)) = self.silenced(call, alert) {
            return Some(hold(Reason::Silenced, Some(until), detail));
        }
        if let Some((rule, key)) = self.state.causes.of(&call.book.suppress, alert) {
            let detail = format!("while {} fires", format!("{rule} {key}").trim_end());
            return Some(hold(Reason::Inhibited, None, detail));
        }
        // Cooldown is for a new firing of which nobody knows yet.
        let is_new = tale.policy.cooldown.is_some()
            && alert.state == AlertState::Firing
            && tale.told.iter().all(|told| told.knows == Knows::Nothing);
        let cool_at = instance.filter(|instance| is_new && instance.alert != alert.id)?.cool_at;
        let until = cool_at.filter(|at| *at > now)?;
        Some(hold(Reason::Cooldown, Some(until), format!("until {}", shown(until, None, now))))
    }

    /// The silence that covers the alert longest, and its words.
    fn silenced(&self, call: &Call<'_>, alert: &Alert) -> Option<(Timestamp, String)> {
        let now = call.now;
        let of_files = call.book.silences.iter().filter_map(|silence| {
            let until = silence.matcher.matches(alert).then(|| silence.until(now))??;
            let shown = shown(until, silence.zone(), now);
            let detail = format!(
                "silence {} of {}: {}; until {shown}",
                silence.name, silence.by, silence.reason
            );
            Some((until, detail))
        });
        let of_operators = self.state.silences.values().filter_map(|silence| {
            let covers = silence.is_active(now) && silence.matcher.matches(alert);
            let shown = || shown(silence.until.at(), None, now);
            let name = silence.name.as_ref().unwrap_or(&silence.id);
            covers.then(|| {
                let (by, reason) = (&silence.by, &silence.reason);
                let detail = format!("silence {name} of {by}: {reason}; until {}", shown());
                (silence.until.at(), detail)
            })
        });
        of_files.chain(of_operators).max_by_key(|(until, _)| *until)
    }

    /// What holds the alert from one contact.
    fn contact_gate(
        &mut self,
        call: &mut Call<'_>,
        tale: &Tale,
        told: &Told,
        ended: bool,
    ) -> Option<Hold> {
        let quiet = self.quiet_gate(call, &tale.alert, &told.contact);
        if let Some(storm) = self.storm_of(call, &tale.alert) {
            return quiet.or_else(|| Some(self.join_storm(call, &storm, tale, told)));
        }
        if !ended && let Some(hold) = self.wait_for_group(call, tale) {
            return Some(hold);
        }
        quiet
    }

    /// Quiet hours.
    pub(super) fn quiet_gate(&self, call: &Call<'_>, alert: &Alert, contact: &str) -> Option<Hold> {
        let quiet = call.book.directory.contact(contact)?.quiet.as_ref()?;
        let until = quiet.until(alert.severity, call.now)?;
        let shown = shown(until, Some(quiet.calendar.zone()), call.now);
        Some(Hold {
            reason: Reason::QuietHours,
            since: call.now,
            until: Some(until),
            waits_for: None,
            detail: Some(format!("until {shown}").into()),
        })
    }

    /// The storm that the alert is in.
    pub(super) fn storm_of(&self, call: &Call<'_>, alert: &Alert) -> Option<RowId> {
        let rule = call.book.storm.as_ref().filter(|_| !self.state.storms.is_empty())?;
        let id = RowId::Storm(prefix(&alert.topic, rule.levels));
        self.state.storms.get(&id).is_some_and(|storm| storm.since.is_some()).then_some(id)
    }

    /// Holds the alert until the storm ends, and has the contact hear of the storm if it has not, or
    /// not of one so severe.
    fn join_storm(&self, call: &mut Call<'_>, id: &RowId, tale: &Tale, told: &Told) -> Hold {
        let storm = self.state.storms.get(id);
        if let Some(storm) = storm
            && let Some(since) = storm.since
            && tale.alert.state == AlertState::Firing
            && storm.told.get(&told.contact).is_none_or(|known| *known < tale.alert.severity)
        {
            let news = digest::StormNews { prefix: &storm.prefix, since, total: storm.total };
            let mut names = storm.names.clone();
            if storm.told.contains_key(&told.contact) {
                // What is worse than all before is what the message is for.
                names.insert(0, digest::name(&tale.alert));
            }
            let reader = self.reader(call, &told.contact);
            call.announcements.push(Announcement {
                contact: Arc::clone(&told.contact),
                about: about(&tale.alert),
                by: Arc::clone(&tale.policy.by),
                severity: tale.alert.severity,
                text: digest::storm_begins(news, &names, tale.alert.severity, reader),
                storm: Some(Arc::clone(&storm.prefix)),
            });
        }
        let prefix = storm.map_or("", |storm| storm.prefix.as_ref());
        Hold {
            reason: Reason::Storm,
            since: call.now,
            until: None,
            waits_for: Some(id.clone()),
            detail: Some(format!("until the storm under {prefix} is over").into()),
        }
    }

    /// How the contact reads times, and how much it reads.
    pub(super) fn reader<'a>(&self, call: &Call<'a>, contact: &str) -> digest::Reader<'a> {
        let contact = call.book.directory.contact(contact);
        let quiet = |contact: &'a super::contact::Contact| {
            contact.quiet.as_ref().map(|quiet| quiet.calendar.zone())
        };
        let zone = contact.and_then(|contact| contact.zone.as_ref().or_else(|| quiet(contact)));
        digest::Reader { zone, now: call.now, names_max: self.config.names_max }
    }

    fn wait_for_group(&mut self, call: &mut Call<'_>, tale: &Tale) -> Option<Hold> {
        let by = tale.policy.group.as_ref()?;
        let id = self.group_for(call, &tale.alert, &tale.policy)?;
        self.state.touch(call, &id);
        let group = &mut self.state.groups.get_mut(&id)?.group;
        group.interval = by.interval;
        let until = group.next_at(by.wait, call.now);
        group.due_at = Some(until);
        Some(Hold {
            reason: Reason::Grouped,
            since: call.now,
            until: Some(until),
            waits_for: Some(id),
            detail: Some(format!("until {}", shown(until, None, call.now)).into()),
        })
    }

    /// The alert's group, which begins with it if need be; `None`: it has none, or it would be one
    /// group too many.
    fn group_for(&mut self, call: &mut Call<'_>, alert: &Alert, policy: &Policy) -> Option<RowId> {
        let group = Group::of(alert, policy.group.as_ref()?);
        let id = group.id();
        if !self.state.groups.contains_key(&id) {
            if self.state.groups.len() >= self.config.groups_max {
                return None;
            }
            self.state.touch(call, &id);
            let firing = std::collections::BTreeSet::new();
            self.state.groups.insert(id.clone(), Members { group, firing });
        }
        Some(id)
    }

    /// The alert fires in its group.
    pub(super) fn join_group(&mut self, call: &mut Call<'_>, tale: &Tale) {
        if tale.policy.event {
            return;
        }
        let Some(id) = self.group_for(call, &tale.alert, &tale.policy) else { return };
        if let Some(members) = self.state.groups.get_mut(&id) {
            members.firing.insert(tale.alert.id);
        }
    }

    /// The alert fires no more in its group.
    pub(super) fn leave_group(&mut self, call: &mut Call<'_>, alert: &Alert, policy: &Policy) {
        let Some(id) = group_of(alert, policy) else { return };
        self.state.touch(call, &id);
        let left = self.state.groups.get_mut(&id).map(|group| group.firing.remove(&alert.id));
        if left == Some(false) {
            self.leave_any_group(call, alert.id);
        }
    }

    /// The same where its rule's groups have changed since.
    pub(super) fn leave_any_group(&mut self, call: &mut Call<'_>, alert: AlertId) {
        let in_it =
            |(id, members): (&RowId, &Members)| members.firing.contains(&alert).then(|| id.clone());
        let Some(id) = self.state.groups.iter().find_map(in_it) else { return };
        self.state.touch(call, &id);
        if let Some(members) = self.state.groups.get_mut(&id) {
            members.firing.remove(&alert);
        }
    }

    /// It is time to tell a group's news.
    pub(super) fn tell_group(&mut self, call: &mut Call<'_>, id: &RowId) {
        let Some(members) = self.state.groups.get_mut(id) else { return };
        if members.group.due_at.take().is_none() {
            members.group.quiet_until = None;
        }
        self.settle_waiting(call, &Wait::Row(id.clone()), Some(id));
    }

    /// Nothing fires any more under a prefix: what the storm held is told with its end, and those who
    /// heard of it and have nothing held hear of its end.
    pub(super) fn end_storm(&mut self, call: &mut Call<'_>, id: &RowId) {
        let Some(storm) = self.state.storms.remove(id) else { return };
        if storm.since.is_none() {
            return;
        }
        self.settle_waiting(call, &Wait::Row(id.clone()), Some(id));
        for contact in storm.told.keys() {
            let hears =
                |ready: &Ready| ready.contact == *contact && ready.bundle.as_ref() == Some(id);
            if !call.ready.iter().any(hears) {
                self.announce_end(call, &storm, contact);
            }
        }
        call.ended_storms.insert(id.clone(), storm);
    }

    fn announce_end(&self, call: &mut Call<'_>, storm: &Storm, contact: &Arc<str>) {
        let (Some(since), Some(about)) = (storm.since, storm.about.clone()) else { return };
        let severity = storm.told.get(contact).copied().unwrap_or_default();
        let quiet = call.book.directory.contact(contact).and_then(|contact| contact.quiet.as_ref());
        if quiet.is_some_and(|quiet| quiet.until(severity, call.now).is_some()) {
            return;
        }
        let news = digest::StormNews { prefix: &storm.prefix, since, total: storm.total };
        let text = digest::storm_ends(news, &[], self.reader(call, contact));
        let (contact, by) = (Arc::clone(contact), Arc::clone(&storm.by));
        call.announcements.push(Announcement { contact, about, by, severity, text, storm: None });
    }
}

/// One step for all where all are held for the same reason, else one for each.
fn note_holds(call: &mut Call<'_>, alert: &Alert, held: &[(Arc<str>, Hold)], of: usize) {
    let alike = held.windows(2).all(|two| match two {
        [(_, first), (_, second)] => {
            (first.reason, &first.detail) == (second.reason, &second.detail)
        }
        _ => true,
    });
    let for_all = alike && held.len() == of;
    for (contact, hold) in held.iter().take(if for_all { 1 } else { held.len() }) {
        let about = About {
            reason: Some(hold.reason),
            contact: Some(contact).filter(|_| !for_all || of == 1),
            detail: hold.detail.clone(),
            ..About::default()
        };
        call.step(alert, StepKind::Held, about);
    }
}

fn note_drops(call: &mut Call<'_>, alert: &Alert, dropped: &[(Arc<str>, Reason, Hold)], of: usize) {
    for (contact, reason, hold) in dropped {
        let about = About {
            reason: Some(*reason),
            contact: Some(contact).filter(|_| dropped.len() < of || of == 1),
            detail: Some(format!("it was held: {}", hold.reason).into()),
            ..About::default()
        };
        call.step(alert, StepKind::Dropped, about);
        if dropped.len() == of && dropped.iter().all(|(_, other, _)| other == reason) {
            break;
        }
    }
}
