//! From what may be told to messages: counted towards each `max`, one by one or several in one.
//!
//! Invariant: whoever is marked as told has a message, shares one, or cannot be reached.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::calendar::shown;
use super::digest::{self, Item};
use super::hold::{Hold, Instance};
use super::notifier::{Notifier, about, group_of};
use super::plan::{self, Draft};
use super::quota::Window;
use super::row::RowId;
use super::state::{About, Announcement, Call, Ready};
use super::tale::{Knows, Tale};
use crate::clock::Timestamp;
use crate::model::tell::{Quota, Said, StepKind};
use crate::model::{
    AlertId, AlertRef, AlertState, Channel, Content, Fnv, MessageId, Reason, Severity, Target,
    Tells,
};

/// Numbers of tellings from here on are those of messages that tell of several alerts.
const SHARED: u32 = 1 << 31;

/// What was held for so long is told with its time.
const LATE: Duration = Duration::from_secs(60);

impl Notifier {
    /// Makes messages of all that is ready.
    pub(super) fn deliver(&mut self, call: &mut Call<'_>) {
        for announcement in std::mem::take(&mut call.announcements) {
            self.announce(call, &announcement);
        }
        let mut places: HashMap<(Arc<str>, Option<RowId>), usize> = HashMap::new();
        let mut batches: Vec<(Option<RowId>, Vec<Ready>)> = Vec::new();
        let mut seen: HashSet<(Arc<str>, AlertId)> = HashSet::new();
        for ready in std::mem::take(&mut call.ready) {
            // An alert may have been looked at twice.
            if !seen.insert((Arc::clone(&ready.contact), ready.alert)) {
                continue;
            }
            let place = (Arc::clone(&ready.contact), ready.bundle.clone());
            let index = *places.entry(place).or_insert_with(|| {
                batches.push((ready.bundle.clone(), Vec::new()));
                batches.len() - 1
            });
            if let Some((_, batch)) = batches.get_mut(index) {
                batch.push(ready);
            }
        }
        for (bundle, batch) in batches {
            match bundle {
                Some(RowId::Storm(_)) => self.tell_together(call, bundle.as_ref(), batch),
                Some(_) if batch.len() > 1 => self.tell_together(call, bundle.as_ref(), batch),
                Some(id) => {
                    self.was_told(call, &id);
                    batch.into_iter().for_each(|ready| self.tell(call, ready));
                }
                None => {
                    let (late, fresh): (Vec<Ready>, Vec<Ready>) =
                        batch.into_iter().partition(|ready| ready.held.is_some());
                    if late.len() > self.config.digest_above {
                        self.tell_together(call, None, late);
                    } else {
                        late.into_iter().for_each(|ready| self.tell(call, ready));
                    }
                    fresh.into_iter().for_each(|ready| self.tell(call, ready));
                }
            }
        }
    }

    /// A group sends a message: the next one keeps its distance.
    fn was_told(&mut self, call: &mut Call<'_>, id: &RowId) {
        self.state.touch(call, id);
        if let Some(members) = self.state.groups.get_mut(id) {
            members.group.quiet_until = Some(call.now.plus(members.group.interval));
        }
    }

    /// One alert to one contact.
    fn tell(&mut self, call: &mut Call<'_>, ready: Ready) {
        let Some(mut tale) = self.state.tales.remove(&ready.alert) else { return };
        self.tell_of(call, &mut tale, ready);
        self.state.tales.insert(tale.alert.id, tale);
    }

    fn tell_of(&mut self, call: &mut Call<'_>, tale: &mut Tale, ready: Ready) {
        let Some(place) = tale.told.iter().position(|told| told.contact == ready.contact) else {
            return;
        };
        let Some(targets) = self.reach(call, &ready.contact, &tale.policy.by) else {
            self.nobody_there(call, tale, &ready);
            return;
        };
        let quota = tale.policy.max.map(|quota| (Arc::clone(&tale.alert.rule), quota));
        if let Some(hold) = self.count(call, &ready.contact, quota, tale.alert.severity) {
            hold_back(call, tale, place, hold, ready.held.as_ref());
            return;
        }
        let (nth, alert) = (self.round(call, tale), &tale.alert);
        let (target, then) = targets;
        let id = MessageId::derive_nth(alert.id, alert.state, nth, target.channel, &target.address);
        let is_news = match &ready.held {
            Some(hold) => hold.reason != Reason::Grouped,
            // What is said again is not late.
            None => tale.told.get(place).is_some_and(|told| told.knows != tale.present()),
        };
        let is_late = is_news && call.now.since(alert.changed_at) >= LATE;
        // What is told at once was rendered just now.
        let is_fresh = ready.held.is_none() && is_news && !is_late;
        let said = if is_fresh { None } else { said_now(call, tale) };
        let is_anew = said.is_some();
        let as_it_was = || (Arc::clone(&alert.text), tale.title.clone());
        let (mut text, title) = said.map_or_else(as_it_was, |said| (said.text, said.title));
        if is_late {
            let reader = self.reader(call, &ready.contact);
            text = digest::late(&text, alert.changed_at, is_anew, reader);
        }
        let tells = if tale.policy.event { Tells::Event } else { Tells::Alert };
        let draft = Draft {
            id,
            alert: Some(AlertRef { tells, ..about(alert) }),
            contact: Some(Arc::clone(&ready.contact)),
            target,
            then,
            severity: alert.severity,
            content: Content { title, text, template: None },
            expires_in: tale.policy.expires_in.unwrap_or(self.expires_in),
            fallback_after: call.book.directory.fallback_after(
                &ready.contact,
                alert.severity,
                tale.policy.fallback_after,
            ),
        };
        push(call, draft);
        if let Some(hold) = ready.held {
            let about = About {
                reason: Some(hold.reason),
                contact: Some(&ready.contact),
                message: Some(id),
                detail: None,
            };
            call.step(&tale.alert, StepKind::Released, about);
        }
        self.mark(call, tale, &ready.contact);
    }

    /// Several alerts to one contact, in one message.
    fn tell_together(&mut self, call: &mut Call<'_>, bundle: Option<&RowId>, batch: Vec<Ready>) {
        if let Some(id) = bundle {
            self.was_told(call, id);
        }
        let mut items: Vec<(Ready, Item)> = batch
            .into_iter()
            .filter_map(|ready| {
                let tale = self.state.tales.get(&ready.alert)?;
                let told = tale.told.iter().find(|told| told.contact == ready.contact)?;
                let item = Item { alert: tale.alert.clone(), knows: told.knows };
                Some((ready, item))
            })
            .collect();
        // The worst that fires first, what is over last.
        items.sort_by_key(|(_, item)| {
            let over = item.alert.state == AlertState::Cleared;
            (over, std::cmp::Reverse(item.alert.severity), item.alert.id)
        });
        let (readies, mut items): (Vec<Ready>, Vec<Item>) = items.into_iter().unzip();
        if matches!(bundle, Some(RowId::Group { .. })) {
            // Of the messages that tell of several, the only one that says what each says.
            let fires = |item: &&mut Item| item.alert.state == AlertState::Firing;
            for item in items.iter_mut().filter(fires).take(self.config.names_max) {
                let tale = self.state.tales.get(&item.alert.id);
                if let Some(said) = tale.and_then(|tale| said_now(call, tale)) {
                    item.alert.text = said.text;
                }
            }
        }
        let (Some(first), Some(ready)) = (items.first(), readies.first()) else { return };
        let Some(tale) = self.state.tales.get(&first.alert.id) else { return };
        let (contact, policy) = (Arc::clone(&ready.contact), Arc::clone(&tale.policy));
        let with_title = tale.title.is_some();
        let severity = digest::worst(&items);
        let Some((target, then)) = self.reach(call, &contact, &policy.by) else {
            for ready in readies {
                let Some(mut tale) = self.state.tales.remove(&ready.alert) else { continue };
                self.nobody_there(call, &mut tale, &ready);
                self.state.tales.insert(ready.alert, tale);
            }
            return;
        };
        let one_rule = items.iter().all(|item| item.alert.rule == first.alert.rule);
        let quota = policy.max.filter(|_| one_rule);
        let quota = quota.map(|quota| (Arc::clone(&first.alert.rule), quota));
        if let Some(hold) = self.count(call, &contact, quota, severity) {
            for ready in &readies {
                let Some(tale) = self.state.tales.get_mut(&ready.alert) else { continue };
                if let Some(place) = tale.told.iter().position(|told| told.contact == contact) {
                    hold_back(call, tale, place, hold.clone(), ready.held.as_ref());
                }
            }
            return;
        }
        let text = self.text(call, bundle, &contact, &items);
        let over = items.iter().all(|item| item.alert.state == AlertState::Cleared);
        let state = if over { AlertState::Cleared } else { AlertState::Firing };
        let nth = shared_nth(bundle, call.now);
        let id = MessageId::derive_nth(first.alert.id, state, nth, target.channel, &target.address);
        let draft = Draft {
            id,
            alert: Some(AlertRef { state, tells: Tells::More, ..about(&first.alert) }),
            contact: Some(Arc::clone(&contact)),
            target,
            then,
            severity,
            content: Content {
                title: with_title.then(|| format!("{} alerts", items.len()).into()),
                text: text.into(),
                template: None,
            },
            expires_in: policy.expires_in.unwrap_or(self.expires_in),
            fallback_after: call.book.directory.fallback_after(
                &contact,
                severity,
                policy.fallback_after,
            ),
        };
        push(call, draft);
        for ready in readies {
            let Some(mut tale) = self.state.tales.remove(&ready.alert) else { continue };
            self.round(call, &mut tale);
            let about = About {
                reason: ready.held.as_ref().map(|hold| hold.reason),
                contact: Some(&contact),
                message: Some(id),
                detail: None,
            };
            call.step(&tale.alert, StepKind::Grouped, about);
            self.mark(call, &mut tale, &contact);
            self.state.tales.insert(ready.alert, tale);
        }
    }

    fn text(
        &mut self,
        call: &Call<'_>,
        bundle: Option<&RowId>,
        contact: &str,
        items: &[Item],
    ) -> String {
        let reader = self.reader(call, contact);
        match bundle {
            Some(id @ RowId::Group { .. }) => {
                let Some(members) = self.state.groups.get(id) else {
                    return digest::released(items, reader);
                };
                digest::group(items, members.group.total, members.firing.len(), reader)
            }
            Some(RowId::Window { .. }) => digest::more(items, reader),
            Some(id @ RowId::Storm(_)) => match call.ended_storms.get(id) {
                Some(storm) => {
                    let news = digest::StormNews {
                        prefix: &storm.prefix,
                        since: storm.since.unwrap_or(call.now),
                        total: storm.total,
                    };
                    digest::storm_ends(news, items, reader)
                }
                None => digest::released(items, reader),
            },
            Some(RowId::Tale(_) | RowId::Instance { .. } | RowId::Silence(_)) | None => {
                digest::released(items, reader)
            }
        }
    }

    /// A message of something that is no alert by itself. Not made up for if it cannot be sent now.
    fn announce(&mut self, call: &mut Call<'_>, what: &Announcement) {
        if let Some(prefix) = &what.storm
            && let Some(storm) = self.state.storms.get(&RowId::Storm(Arc::clone(prefix)))
            && storm.told.get(&what.contact).is_some_and(|known| *known >= what.severity)
        {
            return;
        }
        let Some((target, then)) = self.reach(call, &what.contact, &what.by) else { return };
        if self.count(call, &what.contact, None, what.severity).is_some() {
            return;
        }
        let mut hash = Fnv::new();
        hash.write(what.text.as_bytes());
        hash.write(&call.now.as_millis().to_be_bytes());
        let nth = SHARED | low_bits(hash.finish());
        let (alert, state) = (what.about.id, what.about.state);
        let draft = Draft {
            id: MessageId::derive_nth(alert, state, nth, target.channel, &target.address),
            alert: Some(AlertRef { tells: Tells::More, ..what.about.clone() }),
            contact: Some(Arc::clone(&what.contact)),
            target,
            then,
            severity: what.severity,
            content: Content { title: None, text: what.text.as_str().into(), template: None },
            expires_in: self.expires_in,
            fallback_after: call.book.directory.fallback_after(&what.contact, what.severity, None),
        };
        push(call, draft);
        if let Some(prefix) = &what.storm {
            let id = RowId::Storm(Arc::clone(prefix));
            self.state.touch(call, &id);
            if let Some(storm) = self.state.storms.get_mut(&id) {
                storm.told.insert(Arc::clone(&what.contact), what.severity);
            }
        }
    }

    /// Where to reach the contact first, and where after that.
    fn reach(
        &self,
        call: &Call<'_>,
        contact: &str,
        by: &[Channel],
    ) -> Option<(Target, Vec<Target>)> {
        let mut targets = call.book.directory.targets(contact, by).ok()?.into_iter();
        Some((targets.next()?, targets.collect()))
    }

    fn nobody_there(&mut self, call: &mut Call<'_>, tale: &mut Tale, ready: &Ready) {
        let reason = call.book.directory.targets(&ready.contact, &tale.policy.by).err();
        let about = About {
            reason: Some(Reason::NoRecipient),
            contact: Some(&ready.contact),
            detail: reason.map(|reason| reason.to_string().into()),
            ..About::default()
        };
        call.step(&tale.alert, StepKind::Dropped, about);
        let present = tale.present();
        for told in tale.told.iter_mut().filter(|told| told.contact == ready.contact) {
            (told.knows, told.again, told.repeat_at) = (present, false, None);
        }
        // As if it had been told once, so that it leaves no tale behind.
        tale.firing_tellings = tale.firing_tellings.max(1);
    }

    /// The contact knows how the alert stands.
    fn mark(&mut self, call: &mut Call<'_>, tale: &mut Tale, contact: &Arc<str>) {
        let present = tale.present();
        let firing = tale.alert.state == AlertState::Firing && !tale.policy.event;
        let repeats = tale.policy.repeat.filter(|_| firing && tale.ack.is_none());
        let mut first = false;
        for told in tale.told.iter_mut().filter(|told| told.contact == *contact) {
            first |= told.knows == Knows::Nothing;
            told.knows = present;
            told.again = false;
            told.hold = None;
            told.repeat_at = repeats.map(|every| call.now.plus(every));
        }
        if first && let Some(cooldown) = tale.policy.cooldown {
            let (rule, key) = (Arc::clone(&tale.alert.rule), Arc::clone(&tale.alert.key));
            let id = RowId::Instance { rule: Arc::clone(&rule), key: Arc::clone(&key) };
            let known = self.state.instances.get(&id);
            if known.is_none() && self.state.instances.len() >= self.config.instances_max {
                return;
            }
            // It runs from when the first contact was told.
            if known.is_some_and(|known| known.alert == tale.alert.id && known.cool_at.is_some()) {
                return;
            }
            self.state.touch(call, &id);
            let flapping = known.is_some_and(|known| known.flapping);
            let (alert, cool_at) = (tale.alert.id, Some(call.now.plus(cooldown)));
            self.state.instances.insert(id, Instance { rule, key, alert, cool_at, flapping });
        }
    }

    /// The number of this telling of the alert: the same for all who are told in one call.
    fn round(&mut self, call: &mut Call<'_>, tale: &mut Tale) -> u32 {
        let (alert, state) = (&tale.alert, tale.alert.state);
        let tellings = match state {
            AlertState::Firing => &mut tale.firing_tellings,
            AlertState::Cleared => &mut tale.over_tellings,
        };
        if let Some(nth) = call.rounds.get(&(alert.id, state)) {
            return *nth;
        }
        let nth = *tellings;
        *tellings = (nth + 1).min(SHARED - 1);
        call.rounds.insert((alert.id, state), nth);
        if (nth, state) == (0, AlertState::Firing)
            && let Some(id) = group_of(alert, &tale.policy)
            && let Some(members) = self.state.groups.get_mut(&id)
        {
            members.group.total += 1;
        }
        nth
    }

    /// Counts one message towards the contact's `max` and that of the rule; a hold where one of them
    /// is reached.
    fn count(
        &mut self,
        call: &mut Call<'_>,
        contact: &Arc<str>,
        rule: Option<(Arc<str>, Quota)>,
        severity: Severity,
    ) -> Option<Hold> {
        let own = call.book.directory.contact(contact).and_then(|contact| contact.max.as_ref());
        let own = own.filter(|limit| !limit.except.contains(&severity)).map(|limit| limit.quota);
        let by_rule = rule.map(|(rule, quota)| (Some(rule), quota));
        let counted: Vec<(RowId, Option<Arc<str>>, Quota)> = by_rule
            .into_iter()
            .chain(own.map(|quota| (None, quota)))
            .map(|(rule, quota)| {
                let id = RowId::Window { rule: rule.clone(), contact: Arc::clone(contact) };
                (id, rule, quota)
            })
            .collect();
        let full = counted.iter().filter_map(|(id, _, quota)| {
            let window = self.state.windows.get(id)?;
            let full = match window.until > call.now {
                true => window.count >= quota.count,
                // Over, and what it held is not told yet: that goes first.
                false => self.state.is_awaited(id),
            };
            let count = usize::try_from(window.count).unwrap_or(usize::MAX);
            full.then(|| (window.until, id.clone(), count))
        });
        if let Some((until, id, count)) = full.max_by_key(|(until, _, _)| *until) {
            let shown = shown(until, self.reader(call, contact).zone, call.now);
            return Some(Hold {
                reason: Reason::QuotaReached,
                since: call.now,
                until: Some(until),
                waits_for: Some(id),
                detail: Some(
                    format!("after {}, until {shown}", digest::counted(count, "message")).into(),
                ),
            });
        }
        for (id, rule, quota) in counted {
            self.state.touch(call, &id);
            let room = self.state.windows.len() < self.config.windows_max;
            match self.state.windows.get_mut(&id) {
                Some(window) if window.until > call.now => window.count += 1,
                known if known.is_some() || room => {
                    let (contact, until) = (Arc::clone(contact), call.now.plus(quota.per));
                    self.state.windows.insert(id, Window { rule, contact, until, count: 1 });
                }
                _ => {}
            }
        }
        None
    }
}

/// What an alert that fires says now. What an event said is all that it ever says, and so is that an
/// alert is over.
fn said_now(call: &Call<'_>, tale: &Tale) -> Option<Said> {
    let goes_on = tale.alert.state == AlertState::Firing && !tale.policy.event;
    call.texts.filter(|_| goes_on)?.of(&tale.alert, call.now)
}

/// Holds the alert from one contact because of a `max`. A repetition is not made up for.
fn hold_back(
    call: &mut Call<'_>,
    tale: &mut Tale,
    place: usize,
    mut hold: Hold,
    old: Option<&Hold>,
) {
    let present = tale.present();
    let Some(told) = tale.told.get_mut(place) else { return };
    if told.knows == present {
        told.again = false;
        return;
    }
    let contact = Arc::clone(&told.contact);
    match old.filter(|old| old.reason == hold.reason) {
        Some(old) => hold.since = old.since,
        None => {
            let about = About {
                reason: Some(hold.reason),
                contact: Some(&contact),
                detail: hold.detail.clone(),
                ..About::default()
            };
            call.step(&tale.alert, StepKind::Held, about);
        }
    }
    if let Some(told) = tale.told.get_mut(place) {
        told.hold = Some(hold);
    }
}

/// Two contacts may share a phone: it rings once.
fn push(call: &mut Call<'_>, draft: Draft) {
    if call.outcome.messages.iter().any(|message| message.id == draft.id) {
        return;
    }
    call.outcome.messages.push(plan::compose(draft, call.now));
}

/// The number of a message that tells of several alerts: no two of the same contact have the same
/// alert first, the same cause and the same time.
fn shared_nth(bundle: Option<&RowId>, now: Timestamp) -> u32 {
    let mut hash = Fnv::new();
    hash.write(&bundle.map(RowId::bytes).unwrap_or_default());
    hash.write(&now.as_millis().to_be_bytes());
    SHARED | low_bits(hash.finish())
}

fn low_bits(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(SHARED - 1)).unwrap_or(0)
}
