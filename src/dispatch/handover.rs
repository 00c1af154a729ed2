//! From one channel to the next, and back: what [`fallback`] decides, written to the store.
//!
//! Three things happen to a message here: the contact's next channel sends too, nobody is left to
//! ask, or another channel had it first and it is withdrawn. Those of `notify.fallback` are told here.
//!
//! **Invariants:** whoever changes a row has it taken in the queue; an attempt that is under way has
//! its row to itself, and is handed a note ([`Calls`]) that it writes with its outcome. What a crash
//! cuts off is found again by the next start: the clocks are in the rows, and so is who stands beside
//! whom.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::attempt::{Context, Report};
use super::batch::{self, Done};
use super::collapse;
use super::fallback::{self, Cause, Clock, Leg, Why};
use super::outcome;
use super::unreached::{self, Unheard, UnreachedContacts, Untold};
use crate::clock::Timestamp;
use crate::model::{
    AlertId, AlertState, Channel, Content, Fallback, Message, MessageId, Reason, Severity, Status,
    Target, Tells,
};
use crate::notify::plan::{self, Draft};
use crate::store::keys::Table;
use crate::store::{CommitError, Op, ReadError, Store};
use crate::telemetry::ByReason;

/// So many messages at most go on to their next channel in one batch.
pub(super) const TOGETHER_MAX: usize = 128;
/// The row that says when those of `notify.fallback` were last told.
const TOLD_AT: &[u8] = b"unreached-told-at";
/// A message stands beside at most so many others: one for each further channel.
const BESIDE_MAX: usize = 8;

/// What an attempt under way is to write about its message with its outcome.
#[derive(Clone, Debug)]
pub(super) enum Mark {
    /// The next channel sends too.
    Next(MessageId, String, Timestamp),
    /// No channel is left, since then.
    Unheard(String, Timestamp),
}

/// The attempts that are under way, and what each is to note.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<HashMap<MessageId, Option<Mark>>>);

impl Calls {
    fn with<T>(&self, work: impl FnOnce(&mut HashMap<MessageId, Option<Mark>>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An attempt begins.
    pub(super) fn begin(&self, id: MessageId) {
        self.with(|calls| calls.insert(id, None));
    }

    /// Whether one is under way that will look for a note before it writes again.
    pub(super) fn is_under_way(&self, id: MessageId) -> bool {
        self.with(|calls| calls.contains_key(&id))
    }

    /// Leaves a note for the attempt; `false`: it is too late, its outcome is being written.
    fn mark(&self, id: MessageId, mark: Mark) -> bool {
        self.with(|calls| calls.get_mut(&id).map(|call| *call = Some(mark)).is_some())
    }

    /// Writes the note, if there is one, into the message. No more can come: what the caller makes
    /// of the message is its outcome.
    pub(super) fn end(&self, message: &mut Message) {
        let mark = self.with(|calls| calls.remove(&message.id)).flatten();
        mark.into_iter().for_each(|mark| note(message, mark));
    }

    /// The attempt is over, whatever has become of it.
    pub(super) fn forget(&self, id: MessageId) {
        self.with(|calls| calls.remove(&id));
    }
}

fn note(message: &mut Message, mark: Mark) {
    match mark {
        Mark::Next(next, words, at) => fallback::note_next(message, next, &words, at),
        Mark::Unheard(words, at) => fallback::note_unheard(message, &words, at),
    }
}

/// A message whose time is up.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) id: MessageId,
    /// What holds it up.
    pub(super) cause: Cause,
    /// Its channel is closed, and its time is not what has ended.
    pub(super) at_once: bool,
    /// The disk is nearly full: that nobody is left is noted for the contact, and not in the message.
    pub(super) is_sparing: bool,
}

/// What came of messages whose time was up.
#[derive(Debug, Default)]
pub(super) struct FellBack {
    /// These wait on.
    pub(super) waiting: Vec<Message>,
    /// These have ended or cannot be read.
    pub(super) gone: Vec<MessageId>,
    /// Of which message, and the one on the next channel.
    pub(super) next: Vec<(MessageId, Message)>,
    /// No channel is left for some of them.
    pub(super) unheard: bool,
    /// To be looked at again in a moment: an attempt is under way.
    pub(super) later: Vec<MessageId>,
    /// To be looked at as well: they say that something is over of which nobody was told.
    pub(super) over: Vec<MessageId>,
}

/// Lets the next channels of these messages send, or notes that there is none; in one commit.
pub(super) async fn fall_back(context: &Context, late: Vec<Late>) -> Report {
    let now = context.clock.now();
    let (mut ops, mut fell) = (Vec::new(), FellBack::default());
    for one in late {
        let mut op = Op::new();
        fall_back_one(context, &one, now, &mut op, &mut fell);
        ops.push(op);
    }
    if context.store.commit(ops).await.is_err() {
        return Report::Lost;
    }
    if let Some((_, next)) = fell.next.first() {
        tracing::warn!(
            message_id = %next.id, channel = %next.target.channel, to = %next.target.address,
            contact = next.contact.as_deref(), count = fell.next.len(),
            detail = next.detail.as_deref().unwrap_or_default(),
            "a channel had no success: the next one sends too"
        );
    }
    Report::FellBack(Box::new(fell))
}

fn fall_back_one(context: &Context, late: &Late, now: Timestamp, op: &mut Op, fell: &mut FellBack) {
    let is_calling = late.cause.is_calling;
    let mut message = match context.store.message(late.id) {
        Ok(Some(message)) if !message.status.is_final() => message,
        _ => {
            // What an attempt has is not ours to forget.
            fell.gone.extend((!is_calling).then_some(late.id));
            return;
        }
    };
    let over = over_unheard(context, &message);
    if is_calling && over.is_some() {
        // Its end decides: it is the first that anybody hears, or nothing is.
        return fell.later.push(message.id);
    }
    if let Some(over) = over {
        let detail = "it was over before anybody was told of it".to_owned();
        outcome::end(&mut message, Status::Canceled, Reason::Over, detail, now);
        op.put_message(&message);
        context.metrics.messages_left_out.get_or_create(&ByReason { reason: Reason::Over }).inc();
        fell.gone.push(message.id);
        fell.over.extend(over);
        return;
    }
    let within = Clock::of(&message).allowed(&context.notify.fallback_after);
    let why = Why::of(&message, within.filter(|_| !late.at_once), &late.cause);
    match fallback::leg(&message) {
        Some(Leg::Next) => {
            let mut noted = message.clone();
            let Some(next) = fallback::go_on(&mut noted, &why.words, now) else { return };
            let note = format!("{}; went on by {}", why.words, next.target.channel);
            if is_calling && !context.calls.mark(message.id, Mark::Next(next.id, note, now)) {
                return;
            }
            context.metrics.fallbacks.get_or_create(&ByReason { reason: why.reason }).inc();
            match context.store.message(next.id) {
                // A crash came between it and the note on this one, or it was planned twice.
                Ok(Some(known)) => fell.next.push((message.id, known)),
                _ => {
                    op.put_new_message(&next);
                    fell.next.push((message.id, next));
                }
            }
            message = noted;
        }
        Some(Leg::Last) => {
            let mark = Mark::Unheard(why.words.clone(), now);
            if is_calling && !context.calls.mark(message.id, mark) {
                return;
            }
            fallback::note_unheard(&mut message, &why.words, now);
            fell.unheard |= unheard(context, &message, &why.words, now, op);
            if late.is_sparing && !is_calling {
                return fell.waiting.push(message);
            }
        }
        None => {}
    }
    if !is_calling {
        op.put_message(&message);
        fell.waiting.push(message);
    }
}

/// Notes for those of `notify.fallback` that the message was not heard; `false` where it is none of
/// their business.
fn unheard(context: &Context, message: &Message, why: &str, now: Timestamp, op: &mut Op) -> bool {
    if message.severity == Severity::Info && message.fallback_after.is_none() {
        return false;
    }
    // What was wrong with the channels before is told with it.
    let mut whys: Vec<String> = beside(&context.store, message)
        .unwrap_or_default()
        .iter()
        .filter_map(|other| fallback::why_it_went_on(other).map(str::to_owned))
        .collect();
    whys.push(why.to_owned());
    // Those who stand in are told of others, not of each other: that would have no end.
    let is_digest = message.fallback.as_ref().is_some_and(|fallback| fallback.is_digest);
    let unheard = Unheard::of(message, &whys.join("; "), now);
    context.unreached.note(&unheard, !is_digest, op);
    !is_digest
}

/// What belongs into the operation in which a message ends without success: the one that goes on,
/// where it is not there already; else, where no channel goes on, has gone on, or had success, that
/// nobody heard it.
pub(super) fn end_unsent(
    context: &Context,
    message: &mut Message,
    follow_up: &mut Option<Box<Message>>,
    op: &mut Op,
) -> bool {
    if let Some(new) = follow_up {
        // One that is there has its own way behind it: it is not begun anew.
        match context.store.message(new.id) {
            Ok(Some(_)) => *follow_up = None,
            _ => op.put_new_message(new),
        }
        return false;
    }
    let now = message.updated_at;
    let ended = matches!(message.status, Status::Failed | Status::Expired);
    if !ended || fallback::leg(message) != Some(Leg::Last) {
        return false;
    }
    let beside = beside(&context.store, message).unwrap_or_default();
    if beside.iter().any(|other| fallback::is_success(other.status)) {
        return false;
    }
    let reason = message.reason.unwrap_or(Reason::Expired);
    let why = format!("{} {}: {reason}", message.target.channel, message.status);
    fallback::note_unheard(message, &why, now);
    unheard(context, message, &why, now, op)
}

/// Where the message tells of an alert that is over, or that it is over, and nobody was told by any
/// channel that it had begun: nobody needs to hear of it. Gives those that say that it is over.
fn over_unheard(context: &Context, message: &Message) -> Option<Vec<MessageId>> {
    let alert = message.alert.as_ref().filter(|alert| alert.tells == Tells::Alert)?;
    let all = context.store.messages_of(alert.id).ok()?;
    let mut all = all.iter().filter(|other| other.contact == message.contact);
    let (mut begun, mut over) = (false, Vec::new());
    for other in all.by_ref() {
        let of = other.alert.as_ref()?;
        if collapse::tells(other) || of.tells != Tells::Alert {
            return None;
        }
        match of.state {
            AlertState::Firing => begun = true,
            AlertState::Cleared if !other.status.is_final() => over.push(other.id),
            AlertState::Cleared => {}
        }
    }
    let nobody_knows = begun && !over.is_empty();
    if !nobody_knows || batch::is_told_with_others(context, alert.id, message.contact.as_ref()) {
        return None;
    }
    over.retain(|id| *id != message.id);
    Some(over)
}

/// The messages that say the same to the contact on its other channels.
///
/// # Errors
/// A row cannot be read.
pub(super) fn beside(store: &Store, message: &Message) -> Result<Vec<Message>, ReadError> {
    let mut found: Vec<Message> = Vec::new();
    let mut follow = |to: fn(&Fallback) -> Option<MessageId>| {
        let mut at = message.fallback.as_deref().and_then(to);
        while let Some(id) = at.filter(|_| found.len() < BESIDE_MAX)
            && let Some(other) = store.message(id)?
            && !is_alone(&other)
        {
            at = other.fallback.as_deref().and_then(to);
            found.push(other);
        }
        Ok::<(), ReadError>(())
    };
    follow(|fallback| fallback.before)?;
    follow(|fallback| fallback.next)?;
    Ok(found)
}

fn is_alone(message: &Message) -> bool {
    message.fallback.as_ref().is_some_and(|fallback| fallback.is_alone)
}

/// What this message, which has had success, makes needless: what says the same on other channels,
/// and what tells the contact of the same alert what was before.
pub(super) fn made_needless(store: &Store, message: &Message) -> Result<Vec<MessageId>, ReadError> {
    let beside = beside(store, message)?;
    let mut ids: BTreeSet<MessageId> =
        beside.iter().filter(|other| !other.status.is_final()).map(|other| other.id).collect();
    if let Some(alert) = &message.alert {
        let turn = (alert.state, message.created_at);
        let is_older = |other: &&Message| {
            other
                .alert
                .as_ref()
                .is_some_and(|of| of.tells == Tells::Alert && (of.state, other.created_at) <= turn)
        };
        let all = store.messages_of(alert.id)?;
        let waiting = all.iter().filter(|other| !other.status.is_final());
        let of_contact = waiting.filter(|other| other.contact == message.contact);
        let elsewhere =
            of_contact.filter(|other| other.target != message.target && !is_alone(other));
        ids.extend(elsewhere.filter(is_older).map(|other| other.id));
    }
    ids.remove(&message.id);
    Ok(ids.into_iter().collect())
}

/// The channel that had it first, where one of those beside the message has had success.
pub(super) fn had_by(store: &Store, message: &Message) -> Option<Channel> {
    let beside = beside(store, message).ok()?;
    let had = beside.iter().find(|other| fallback::is_success(other.status))?;
    Some(had.target.channel)
}

/// The same for one that has had success itself, where the other was earlier.
pub(super) fn had_before(store: &Store, message: &Message) -> Option<Channel> {
    let turn = |message: &Message| (message.updated_at, message.id);
    let beside = beside(store, message).ok()?;
    let mut had = beside.iter().filter(|other| fallback::is_success(other.status));
    had.find(|other| turn(other) < turn(message)).map(|other| other.target.channel)
}

/// Ends a message that another channel had first.
pub(super) fn supersede(message: &mut Message, by: Channel, now: Timestamp) {
    let words = fallback::had_it(by);
    message.fallback.get_or_insert_default().note(&words, now);
    outcome::end(message, Status::Canceled, Reason::Superseded, words, now);
}

/// Withdraws messages that wait and that another channel had first.
pub(super) async fn withdraw(context: &Context, ids: Vec<MessageId>, by: Channel) -> Report {
    let (now, mut ops) = (context.clock.now(), Vec::new());
    for id in &ids {
        let Ok(Some(mut message)) = context.store.message(*id) else { continue };
        if message.status.is_final() {
            continue;
        }
        supersede(&mut message, by, now);
        let mut op = Op::new();
        op.put_message(&message);
        ops.push(op);
        let reason = Reason::Superseded;
        context.metrics.messages_left_out.get_or_create(&ByReason { reason }).inc();
    }
    if context.store.commit(ops).await.is_err() {
        return Report::Lost;
    }
    Report::Batch(Done { gone: ids, ..Done::default() })
}

/// Notes on a message that went out that another channel had it first.
pub(super) async fn explain_copy(context: &Context, id: MessageId, by: Channel) -> Report {
    let mut op = Op::new();
    if let Ok(Some(mut message)) = context.store.message(id)
        && message.status.is_final()
    {
        message.fallback.get_or_insert_default().note(&fallback::came_too(by), context.clock.now());
        op.put_message(&message);
        drop(context.store.commit(vec![op]).await);
    }
    Report::Lost
}

/// Tells those who stand in whom nobody has reached. Gives the messages, which are durable, and with
/// them that it needs not be told again.
pub(super) async fn tell(context: &Context, to: Vec<(Arc<str>, Vec<Target>)>) -> Report {
    let (now, mut op, mut messages) = (context.clock.now(), Op::new(), Vec::new());
    // Somebody who has heard it meanwhile is no longer to be called after.
    let heard = |id| was_heard(&context.store, id);
    let untold = context.unreached.take_untold(&mut op);
    let untold: Vec<Untold> = untold.into_iter().filter_map(|one| one.without(heard)).collect();
    let example = untold.iter().find_map(Untold::example);
    let origin = AlertId::new(example.map_or_else(uuid::Uuid::nil, |id| *id.as_uuid()));
    let severity = untold.iter().map(Untold::severity).max().unwrap_or_default();
    let nth = u32::try_from(now.as_secs() & 0x7fff_ffff).unwrap_or_default() | 1 << 31;
    for (name, targets) in to {
        let text = unreached::digest(&untold, &name, context.notify.names_max);
        let mut targets = targets.into_iter();
        let (Some(text), Some(target)) = (text, targets.next()) else { continue };
        let Target { channel, address } = &target;
        let draft = Draft {
            id: MessageId::derive_nth(origin, AlertState::Firing, nth, *channel, address),
            alert: None,
            contact: Some(name),
            target,
            then: targets.collect(),
            severity,
            content: Content {
                title: Some("Not reached".into()),
                text: text.into(),
                template: None,
            },
            expires_in: context.expires_in,
            fallback_after: None,
        };
        let mut message = plan::compose(draft, now);
        message.fallback.get_or_insert_default().is_digest = true;
        op.put_new_message(&message);
        messages.push(message);
    }
    if !messages.is_empty() {
        op.put_row(Table::Engine, 0, TOLD_AT, &now);
    }
    if context.store.commit(vec![op]).await.is_err() {
        return Report::Lost;
    }
    if messages.is_empty() {
        return Report::Lost;
    }
    tracing::warn!(
        people = untold.len(),
        told = messages.len(),
        "those of notify.fallback are told who could not be reached"
    );
    Report::Told(messages)
}

/// Those who were not reached before the process ended, and when those who stand in were last told.
/// Who has been reached since is forgotten; durable on return.
///
/// # Errors
/// The store cannot be written.
pub(super) async fn unreached_before(
    store: &Store,
) -> Result<(UnreachedContacts, Option<Timestamp>), CommitError> {
    let mut op = Op::new();
    let unreached = UnreachedContacts::load(store, |id| was_heard(store, id), &mut op);
    store.commit(vec![op]).await?;
    Ok((unreached, store.row(Table::Engine, 0, TOLD_AT).ok().flatten()))
}

/// Of a message that has had success and those beside it: the ones that had been noted as unheard.
pub(super) fn noted_as_unheard(store: &Store, message: &Message) -> Vec<MessageId> {
    let is_noted = |message: &&Message| {
        message.fallback.as_ref().is_some_and(|fallback| fallback.unheard_at.is_some())
    };
    let beside = beside(store, message).unwrap_or_default();
    std::iter::once(message).chain(&beside).filter(is_noted).map(|message| message.id).collect()
}

/// Whether a message that had been late has had success since, on its own channel or on another.
fn was_heard(store: &Store, id: MessageId) -> bool {
    let Ok(Some(message)) = store.message(id) else { return false };
    fallback::is_success(message.status) || had_by(store, &message).is_some()
}
