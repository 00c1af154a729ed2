//! What is done to many messages at once: those that expired, those without a provider, and those that
//! waited so long that they are put together.
//!
//! A batch is one task. It reads a row, changes it, and writes when it holds [`BYTES`] of text, so
//! that neither a million messages nor a thousand long ones fill the memory; what it writes at once
//! shares one commit. Never sends anything.
//!
//! **Invariant:** every id that a batch was given is in [`Done`], or the store has failed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::attempt::{self, Context, Report};
use super::collapse;
use super::fallback;
use super::handover;
use super::outcome::Next;
use super::queue::{Together, Waiting};
use super::run::DECIDED_FOR;
use crate::model::tell::StepKind;
use crate::model::{AlertId, Message, MessageId, Reason, Status};
use crate::store::Op;
use crate::telemetry::ByReason;

/// Bytes of messages that are held before they are written: about so many, and one message.
const BYTES: usize = 1 << 20;

/// What came of a batch.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// These wait. With `true`, its thread goes out as it is now.
    pub(super) waiting: Vec<(Waiting, bool)>,
    /// These were not looked at: they are as they were.
    pub(super) untouched: Vec<MessageId>,
    /// These have ended.
    pub(super) gone: Vec<MessageId>,
    /// These cannot be read.
    pub(super) unread: Vec<MessageId>,
    /// Whom no channel is left for.
    pub(super) unheard: bool,
}

/// Ends messages that their time or their channel has left behind.
pub(super) async fn give_up(
    context: &Context,
    ids: Vec<MessageId>,
    why: (Status, Reason, &str),
) -> Report {
    let mut done = Done::default();
    let (mut ops, mut ended, mut bytes) = (Vec::new(), Vec::new(), 0);
    for id in ids {
        let Ok(message) = context.store.message(id) else {
            done.unread.push(id);
            continue;
        };
        done.gone.push(id);
        let Some(mut message) = message else { continue };
        if message.status.is_final() {
            continue;
        }
        let next = attempt::end_late(&mut message, why, context.clock.now());
        let mut op = Op::new();
        if let Next::Ended { mut follow_up } = next {
            done.unheard |= handover::end_unsent(context, &mut message, &mut follow_up, &mut op);
            done.waiting.extend(follow_up.map(|new| (Waiting::of(&new), false)));
        }
        op.put_message(&message);
        ops.push(op);
        bytes += message.size();
        ended.push(message);
        if bytes >= BYTES {
            if context.store.commit(std::mem::take(&mut ops)).await.is_err() {
                return Report::Lost;
            }
            count_ended(context, &mut ended, why.1);
            bytes = 0;
        }
    }
    if context.store.commit(ops).await.is_err() {
        return Report::Lost;
    }
    count_ended(context, &mut ended, why.1);
    Report::Batch(done)
}

fn count_ended(context: &Context, ended: &mut Vec<Message>, otherwise: Reason) {
    for message in ended.drain(..) {
        let reason = message.reason.unwrap_or(otherwise);
        context.metrics.messages_dead.get_or_create(&ByReason { reason }).inc();
        context.ended_unsent.note(&message, reason);
    }
}

/// Puts waiting messages together, those of each thread in one operation.
pub(super) async fn put_together(context: &Context, threads: Vec<Together>) -> Report {
    let mut done = Done::default();
    let (mut ops, mut bytes) = (Vec::new(), 0);
    let (mut left_out, mut decided) = (HashMap::<Reason, u64>::new(), 0_usize);
    let mut last = None;
    for together in threads {
        bytes += put_thread_together(context, together, &mut done, &mut ops, |message| {
            decided += 1;
            if let Some(reason) = message.reason.filter(|_| message.status.is_final()) {
                *left_out.entry(reason).or_default() += 1;
                last = Some(message.id);
            }
        });
        if bytes >= BYTES {
            if context.store.commit(std::mem::take(&mut ops)).await.is_err() {
                return Report::Lost;
            }
            bytes = 0;
        } else {
            // Reading rows is work without a pause for others.
            tokio::task::yield_now().await;
        }
    }
    if context.store.commit(ops).await.is_err() {
        return Report::Lost;
    }
    for (reason, count) in &left_out {
        let label = ByReason { reason: *reason };
        context.metrics.messages_left_out.get_or_create(&label).inc_by(*count);
    }
    if let Some(message_id) = last {
        tracing::info!(
            messages = decided, left_out = left_out.values().sum::<u64>(), last = %message_id,
            "messages that waited long are put together"
        );
    }
    Report::Batch(done)
}

/// Reads a thread and decides on it. Answers how many bytes it adds to `ops`; `each` sees what has
/// been decided on.
fn put_thread_together(
    context: &Context,
    Together { mut ids, mut more }: Together,
    done: &mut Done,
    ops: &mut Vec<Op>,
    mut each: impl FnMut(&Message),
) -> usize {
    let now = context.clock.now();
    let (mut thread, mut bytes) = (Vec::new(), 0);
    // The newest is what the others are put into: it is read first.
    let newest = ids.pop();
    let mut last = None;
    for (place, id) in newest.into_iter().chain(ids.iter().copied()).enumerate() {
        if bytes >= BYTES && thread.len() >= 2 {
            more = true;
            done.untouched.extend(ids.iter().skip(place.saturating_sub(1)));
            break;
        }
        match context.store.message(id) {
            Ok(Some(message)) if collapse::may_join(&message) => {
                bytes += message.size();
                if place == 0 { last = Some(message) } else { thread.push(message) }
            }
            Ok(Some(message)) if !message.status.is_final() => {
                done.waiting.push((Waiting::of(&message), !more));
            }
            Ok(_) => done.gone.push(id),
            Err(_) => done.unread.push(id),
        }
    }
    thread.extend(last);
    let contact = thread.last().and_then(|message| message.contact.clone());
    let told = |alert| {
        // What cannot be read may have told it: better a clear too many.
        let Ok(messages) = context.store.messages_of(alert) else { return true };
        let mut messages = messages.iter().filter(|message| message.contact == contact);
        messages.any(collapse::tells) || is_told_with_others(context, alert, contact.as_ref())
    };
    let oldest = thread.iter().map(Message::began_at).min();
    let mut decision = context.collapse.decide(thread, more, told, now);
    if let (Some(kept), Some(oldest)) = (&mut decision.kept, oldest) {
        let usual = &context.notify.fallback_after;
        fallback::inherit(kept, oldest, usual, (now, DECIDED_FOR));
    }
    let mut op = Op::new();
    for message in decision.kept.iter().chain(&decision.ended) {
        op.put_message(message);
        each(message);
    }
    ops.push(op);
    done.gone.extend(decision.ended.iter().map(|message| message.id));
    done.waiting.extend(decision.kept.iter().map(|kept| (Waiting::of(kept), !more)));
    bytes
}

/// Whether the contact was told of the alert in a message of several, or will be.
pub(super) fn is_told_with_others(
    context: &Context,
    alert: AlertId,
    contact: Option<&Arc<str>>,
) -> bool {
    let Ok(steps) = context.store.steps(alert) else { return true };
    let of_contact = steps.iter().filter(|step| step.contact.as_ref() == contact);
    let mut ids =
        of_contact.filter(|step| step.what == StepKind::Grouped).filter_map(|step| step.message);
    ids.any(|id| match context.store.message(id) {
        Ok(Some(message)) => collapse::tells(&message) || !message.status.is_final(),
        Ok(None) | Err(_) => true,
    })
}

/// So many messages that end unsent for one reason have a line each, then they are counted.
const LINES: u64 = 20;
/// For so long; then there is a line with the count.
const WINDOW: Duration = Duration::from_secs(10);

/// What the log says of messages that end without being sent: a few one by one, a flood as a count.
#[derive(Debug, Default)]
pub(super) struct EndedUnsent(Mutex<HashMap<Reason, (Instant, u64)>>);

impl EndedUnsent {
    /// Says, or counts, that a message has ended.
    pub(super) fn note(&self, message: &Message, reason: Reason) {
        if self.has_line(reason, Instant::now()) {
            tracing::warn!(
                message_id = %message.id, channel = %message.target.channel,
                to = %message.target.address, contact = message.contact.as_deref(),
                rule = message.alert.as_ref().map(|alert| &*alert.rule),
                status = %message.status, %reason,
                detail = message.detail.as_deref().unwrap_or_default(),
                "a message has ended without being sent"
            );
        } else {
            tracing::debug!(message_id = %message.id, %reason, "a message has ended without being sent");
        }
    }

    /// Whether one more has a line of its own.
    fn has_line(&self, reason: Reason, now: Instant) -> bool {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, count) = windows.entry(reason).or_insert((now, 0));
        if now.duration_since(*from) >= WINDOW {
            say_count(reason, *count);
            (*from, *count) = (now, 0);
        }
        *count += 1;
        *count <= LINES
    }

    /// Says what was only counted; before its time where nothing more will come.
    pub(super) fn say_counts(&self, at_once: bool) {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|reason, (from, count)| {
            let is_over = at_once || from.elapsed() >= WINDOW;
            if is_over {
                say_count(*reason, *count);
            }
            !is_over
        });
    }
}

fn say_count(reason: Reason, count: u64) {
    if count > LINES {
        tracing::warn!(
            %reason, messages = count - LINES,
            "as many more messages have ended without being sent; `watchbell outbox list` has each"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_messages_that_expire_is_a_few_lines_and_a_count() {
        let (said, start) = (EndedUnsent::default(), Instant::now());
        let lines = |reason, after: Duration| {
            (0..1000).filter(|_| said.has_line(reason, start + after)).count() as u64
        };
        assert_eq!(lines(Reason::Expired, Duration::ZERO), LINES);
        assert_eq!(lines(Reason::Expired, WINDOW / 2), 0);
        assert_eq!(lines(Reason::NoProvider, WINDOW / 2), LINES);
        assert_eq!(lines(Reason::Expired, WINDOW), LINES);
    }
}
