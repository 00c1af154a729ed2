//! One attempt, from the row in the outbox to the row after it.
//!
//! **Invariant:** "attempt started" is durable before the request leaves. After a crash an attempt
//! without outcome is therefore one that may have been sent, and every message without one is not.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::RwLock;

use super::RetryConfig;
use super::batch::{Done, EndedUnsent};
use super::collapse::Collapse;
use super::fallback;
use super::handover::{self, Calls, FellBack};
use super::lane::LaneNews;
use super::outcome::{self, Elsewhere, Limits, Next, Terms};
use super::unreached::{self, UnreachedContacts};
use crate::clock::{Clock, Timestamp};
use crate::model::{Attempt, AttemptOutcome, Channel, Message, MessageId, Reason, RunId, Status};
use crate::notify;
use crate::provider::{Lookup, Provider, SendOutcome};
use crate::store::{Op, Store};
use crate::telemetry::{ByOutcome, ByReason, Metrics};

/// Why a message ends that is too late.
pub(super) const TIME_IS_OVER: &str = "no provider took it before its time ran out";

/// What every attempt needs.
pub(super) struct Context {
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) retry: RetryConfig,
    pub(super) limits: Limits,
    pub(super) collapse: Collapse,
    pub(super) run: RunId,
    pub(super) ended_unsent: EndedUnsent,
    /// Providers' ids that look-ups of this moment have claimed and not yet stored.
    pub(super) claims: Mutex<HashMap<(Arc<str>, String), MessageId>>,
    /// The messages that a look-up could take for each other.
    pub(super) alike: Alike,
    /// The attempts that are under way.
    pub(super) calls: Calls,
    /// When the next channel sends too, and who hears of the unreached.
    pub(super) notify: notify::Config,
    pub(super) unreached: Arc<UnreachedContacts>,
    /// How long a message to those lives.
    pub(super) expires_in: Duration,
}

/// Messages of the same text to the same recipient by a provider that can be asked what it has
/// taken: while one of them is under way, no look-up for another may claim an id, because it may be
/// the one that has just been given. One entry for each under way.
#[derive(Debug, Default)]
pub(super) struct Alike(Mutex<HashMap<u64, Arc<RwLock<()>>>>);

impl Alike {
    fn of(&self, message: &Message, name: &Arc<str>) -> (u64, Arc<RwLock<()>>) {
        let mut hasher = DefaultHasher::new();
        (name, message.target.address.expose(), &message.content.text).hash(&mut hasher);
        let key = hasher.finish();
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (key, Arc::clone(locks.entry(key).or_default()))
    }

    /// Forgets the lock that nobody else has.
    fn leave(&self, key: u64, lock: &Arc<RwLock<()>>) {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The table's and this one.
        if Arc::strong_count(lock) <= 2 {
            locks.remove(&key);
        }
    }
}

/// What the scheduler must know of a finished attempt or command.
#[derive(Debug)]
pub(super) enum Report {
    /// The row waits.
    Waits { message: Box<Message>, elsewhere: Elsewhere },
    /// The row has ended; another may go on.
    Ended { follow_up: Option<Box<Message>>, ended: Ended },
    /// What came of a batch.
    Batch(Done),
    /// The time of these without success was up.
    FellBack(Box<FellBack>),
    /// New rows tell those of `notify.fallback` who was not reached.
    Told(Vec<Message>),
    /// The row cannot be read: it is tried again, later and later.
    Unread,
    /// The row could not be written, has ended, or is not there: leave it.
    Lost,
}

/// How a row has ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// With success; where there is something to withdraw, the row.
    Heard { who: Arc<str>, channel: Channel, beside: Option<Box<Message>> },
    /// Without, and no channel is left.
    Unheard,
    /// Without, and that is nobody's business.
    Other,
}

/// Makes one attempt with the lane's provider.
pub(super) async fn run(
    context: &Context,
    id: MessageId,
    name: &Arc<str>,
    provider: &dyn Provider,
) -> (Report, LaneNews) {
    let message = match context.store.message(id) {
        Ok(Some(message)) if !message.status.is_final() => message,
        Ok(_) => return (Report::Lost, LaneNews::Nothing),
        Err(error) => {
            tracing::debug!(message_id = %id, %error, "a message that is due cannot be read");
            return (Report::Unread, LaneNews::Nothing);
        }
    };
    if !provider.can_look_up() {
        return send(context, message, name, provider).await;
    }
    let (key, lock) = context.alike.of(&message, name);
    let result = if let Some(since) = unanswered_since(&message, name) {
        let only = lock.write().await;
        let earlier = find_earlier(context, &message, since, name, provider).await;
        let is_over = match &earlier {
            Earlier::There(_) => false,
            Earlier::NotThere => context.limits.hold_back_what_is_not_there(&message, name),
            Earlier::Unclear => context.limits.hold_back(&message, name),
        };
        if let Earlier::There(reference) = earlier {
            found_earlier(context, message, name, reference).await
        } else if is_over {
            let message = Box::new(message);
            (Report::Waits { message, elsewhere: Elsewhere::Done }, LaneNews::Nothing)
        } else {
            let shared = only.downgrade();
            let sent = send(context, message, name, provider).await;
            drop(shared);
            sent
        }
    } else {
        let shared = lock.read().await;
        let sent = send(context, message, name, provider).await;
        drop(shared);
        sent
    };
    context.alike.leave(key, &lock);
    result
}

/// Sends it and writes what came of it.
async fn send(
    context: &Context,
    mut message: Message,
    name: &Arc<str>,
    provider: &dyn Provider,
) -> (Report, LaneNews) {
    let id = message.id;
    let now = context.clock.now();
    // Its time may have run out since it was picked.
    if now >= message.expires_at {
        let report = give_up(context, id, Status::Expired, Reason::Expired, TIME_IS_OVER).await;
        return (report, LaneNews::Nothing);
    }
    let attempt = Attempt {
        number: message.attempt_count + 1,
        provider: Arc::clone(name),
        run: context.run,
        started_at: now,
        ended_at: None,
        outcome: None,
    };
    let number = attempt.number;
    outcome::start(&mut message, attempt, now);
    let mut op = Op::new();
    op.put_message(&message);
    if context.store.commit(vec![op]).await.is_err() {
        return (Report::Lost, LaneNews::Nothing);
    }

    let started = Instant::now();
    let outcome = provider.send(&message).await;
    let elapsed = started.elapsed();
    context.metrics.attempt_seconds.observe(elapsed.as_secs_f64());
    let word = word_of(&outcome);
    let label = ByOutcome { provider: name.to_string(), outcome: word };
    context.metrics.attempts.get_or_create(&label).inc();
    log(&message, name, number, &outcome, elapsed.as_millis());

    context.calls.end(&mut message);
    let now = context.clock.now();
    let terms = Terms {
        retry: &context.retry,
        limits: context.limits,
        can_look_up: provider.can_look_up(),
        random: random(),
    };
    let (next, news) = outcome::settle(&mut message, outcome, terms, now);
    (store_next(context, message, next).await, news)
}

/// Writes a message as it ended or waits, and its successor where there is one, in one operation.
pub(super) async fn store_next(context: &Context, mut message: Message, next: Next) -> Report {
    let mut op = Op::new();
    let mut next = next;
    let ended = match &mut next {
        Next::Ended { .. } if fallback::is_success(message.status) => {
            let beside = message.fallback.is_some().then(|| Box::new(message.clone()));
            Ended::Heard { who: unreached::who(&message), channel: message.target.channel, beside }
        }
        Next::Ended { follow_up } => {
            match handover::end_unsent(context, &mut message, follow_up, &mut op) {
                true => Ended::Unheard,
                false => Ended::Other,
            }
        }
        Next::Wait { .. } => Ended::Other,
    };
    op.put_message(&message);
    if let (Some(provider), Some(reference)) = (&message.provider, &message.provider_ref) {
        op.put_reference(provider, reference, message.id);
    }
    if context.store.commit(vec![op]).await.is_err() {
        return Report::Lost;
    }
    match next {
        Next::Wait { elsewhere } => Report::Waits { message: Box::new(message), elsewhere },
        Next::Ended { follow_up } => {
            if !fallback::is_success(message.status) {
                let reason = message.reason.unwrap_or(Reason::Canceled);
                context.metrics.messages_dead.get_or_create(&ByReason { reason }).inc();
                context.ended_unsent.note(&message, reason);
            }
            Report::Ended { follow_up, ended }
        }
    }
}

/// Ends a message that every provider of its channel is done with; the contact's next channel goes
/// on, where there is one.
pub(super) async fn give_up_refused(context: &Context, id: MessageId) -> Report {
    let Ok(Some(message)) = context.store.message(id) else {
        return Report::Lost;
    };
    let unanswered = message
        .attempts
        .iter()
        .filter(|attempt| matches!(attempt.outcome, Some(AttemptOutcome::Unknown { .. })))
        .count();
    if unanswered > 0 {
        let times = if unanswered == 1 { "time" } else { "times" };
        let detail = format!(
            "it may have been sent: {unanswered} {times} no answer was read, and it is not sent \
             again"
        );
        return give_up(context, id, Status::Failed, Reason::NoAnswer, &detail).await;
    }
    let reason = message.reason.unwrap_or(Reason::ProviderRefused);
    let detail = "no provider of its channel takes it";
    give_up(context, id, Status::Failed, reason, detail).await
}

/// Ends a message that its time or its channel has left behind.
pub(super) async fn give_up(
    context: &Context,
    id: MessageId,
    status: Status,
    reason: Reason,
    detail: &str,
) -> Report {
    let mut message = match context.store.message(id) {
        Ok(Some(message)) => message,
        Ok(None) => return Report::Lost,
        Err(_) => return Report::Unread,
    };
    if message.status.is_final() {
        return Report::Lost;
    }
    context.calls.end(&mut message);
    let next = end_late(&mut message, (status, reason, detail), context.clock.now());
    store_next(context, message, next).await
}

/// Ends a message that its time or its channel has left behind, in its row only.
pub(super) fn end_late(
    message: &mut Message,
    (status, reason, detail): (Status, Reason, &str),
    now: Timestamp,
) -> Next {
    // What held it up so long is what the operator will want to know.
    let detail = match (&message.reason, &message.detail) {
        (Some(why), Some(words)) => format!("{detail}; last: {why}, {words}"),
        _ => detail.to_owned(),
    };
    outcome::end(message, status, reason, detail, now)
}

/// What a provider says of attempts whose answers were never read.
enum Earlier {
    /// It has the message: its id there, claimed for it.
    There(String),
    /// It has not: sending it again makes no second one.
    NotThere,
    /// It cannot say.
    Unclear,
}

/// Asks the provider whether it has the message. Where it cannot say, the message is sent again as
/// often as is allowed: an alert that comes twice is better than one that does not come.
async fn find_earlier(
    context: &Context,
    message: &Message,
    since: Timestamp,
    name: &Arc<str>,
    provider: &dyn Provider,
) -> Earlier {
    match provider.lookup(message, since).await {
        Lookup::Found(references) => {
            let mut references = references.into_iter();
            let mine = references.find(|reference| claim(context, message.id, name, reference));
            mine.map_or(Earlier::NotThere, Earlier::There)
        }
        Lookup::NotFound => Earlier::NotThere,
        Lookup::Inconclusive { detail } => {
            tracing::warn!(
                message_id = %message.id, provider = %name, detail,
                "the provider cannot say whether it has this message"
            );
            Earlier::Unclear
        }
    }
}

/// When the earliest attempt without answer at this provider began, if there was one. What came
/// after it does not settle it: the provider may have failed since, and the search with it.
fn unanswered_since(message: &Message, name: &Arc<str>) -> Option<Timestamp> {
    let unanswered =
        |attempt: &&Attempt| matches!(attempt.outcome, Some(AttemptOutcome::Unknown { .. }));
    let here = message.attempts.iter().filter(|attempt| attempt.provider == *name);
    here.filter(unanswered).map(|attempt| attempt.started_at).next()
}

/// Whether the provider's id belongs to no other message.
fn claim(context: &Context, id: MessageId, name: &Arc<str>, reference: &str) -> bool {
    match context.store.referenced(name, reference) {
        Ok(Some(owner)) => return owner == id,
        Ok(None) => {}
        Err(error) => {
            tracing::error!(%error, "a provider reference cannot be read");
            return false;
        }
    }
    let mut claims = context.claims.lock().unwrap_or_else(PoisonError::into_inner);
    *claims.entry((Arc::clone(name), reference.to_owned())).or_insert(id) == id
}

async fn found_earlier(
    context: &Context,
    mut message: Message,
    name: &Arc<str>,
    reference: String,
) -> (Report, LaneNews) {
    tracing::info!(
        message_id = %message.id, provider = %name, provider_ref = reference,
        "the provider has it: an earlier attempt had gone through"
    );
    context.calls.end(&mut message);
    message.status = Status::Sent;
    message.updated_at = context.clock.now();
    message.reason = None;
    message.detail = Some("found at the provider after an attempt without answer".to_owned());
    message.provider = Some(Arc::clone(name));
    message.provider_ref = Some(reference.clone());
    let report = store_next(context, message, Next::Ended { follow_up: None }).await;
    let mut claims = context.claims.lock().unwrap_or_else(PoisonError::into_inner);
    claims.remove(&(Arc::clone(name), reference));
    (report, LaneNews::Works)
}

fn word_of(outcome: &SendOutcome) -> &'static str {
    match outcome {
        SendOutcome::Accepted { .. } => "accepted",
        SendOutcome::Retry { .. } => "retry",
        SendOutcome::Rejected { .. } => "rejected",
        SendOutcome::Unknown { .. } => "unknown",
    }
}

fn log(message: &Message, name: &str, attempt: u32, outcome: &SendOutcome, elapsed_ms: u128) {
    let (id, channel) = (message.id, message.target.channel);
    match outcome {
        SendOutcome::Accepted { provider_ref, .. } => tracing::info!(
            message_id = %id, %channel, to = %message.target.address, provider = name, attempt,
            provider_ref = provider_ref.as_deref(), elapsed_ms, "sent"
        ),
        // The lane says what is wrong with a provider, once; here only the trace is kept.
        SendOutcome::Retry { reason, detail, .. } => tracing::debug!(
            message_id = %id, %channel, provider = name, attempt, %reason, detail, elapsed_ms,
            "an attempt failed; it will be tried again"
        ),
        SendOutcome::Unknown { detail, .. } => tracing::warn!(
            message_id = %id, %channel, provider = name, attempt, detail, elapsed_ms,
            "no answer was read: the message may have been sent"
        ),
        // What follows is said once it is on disk: the message has ended, or the lane has stopped.
        SendOutcome::Rejected { reason, detail, .. } => tracing::debug!(
            message_id = %id, %channel, provider = name, attempt, %reason, detail, elapsed_ms,
            "the provider refuses the message"
        ),
    }
}

/// Uniform in 0..1; where the system has no randomness, the middle.
pub(super) fn random() -> f64 {
    getrandom::u32().map_or(0.5, |value| f64::from(value) / f64::from(u32::MAX))
}
