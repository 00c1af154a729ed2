//! What follows from an attempt: pure functions from a message and an outcome to the next row.

use std::time::Duration;

use super::RetryConfig;
use super::lane::LaneNews;
use crate::clock::Timestamp;
use crate::model::{Attempt, AttemptOutcome, Message, Reason, Status};
use crate::notify::plan;
use crate::provider::{RetryScope, Scope, SendOutcome};

/// What happens to the message next.
#[derive(Debug)]
pub(super) enum Next {
    /// It waits. With `elsewhere`, another provider may take it at once.
    Wait {
        /// Whether its provider, and not the message itself, is what failed.
        elsewhere: bool,
    },
    /// It has ended; the contact's next channel goes on, where there is one.
    Ended {
        /// The message that goes on.
        follow_up: Option<Box<Message>>,
    },
}

/// Notes the attempt's start in the row.
pub(super) fn start(message: &mut Message, attempt: Attempt, now: Timestamp) {
    message.status = Status::Sending;
    message.updated_at = now;
    message.attempt_count = attempt.number;
    if message.attempts.len() >= Message::ATTEMPTS_KEPT {
        // One without answer says that the message may have been sent: it goes last.
        let settled =
            |attempt: &Attempt| !matches!(attempt.outcome, Some(AttemptOutcome::Unknown { .. }));
        let index = message.attempts.iter().position(settled).unwrap_or(0);
        message.attempts.remove(index);
    }
    message.attempts.push(attempt);
}

/// Notes what came of the latest attempt. `random` is uniform in 0..=1.
pub(super) fn settle(
    message: &mut Message,
    outcome: SendOutcome,
    config: &RetryConfig,
    now: Timestamp,
    random: f64,
) -> (Next, LaneNews) {
    message.updated_at = now;
    let provider = message.attempts.last().map(|attempt| attempt.provider.clone());
    match outcome {
        SendOutcome::Accepted { provider_ref, segments, delivered } => {
            close_attempt(message, AttemptOutcome::Accepted { provider_ref: provider_ref.clone() });
            message.status = if delivered { Status::Delivered } else { Status::Sent };
            (message.reason, message.detail) = (None, None);
            message.provider = provider;
            message.provider_ref = provider_ref;
            if let (Some(known), Some(billed)) = (&mut message.segments, segments) {
                known.count = billed;
            }
            (Next::Ended { follow_up: None }, LaneNews::Works)
        }
        SendOutcome::Retry { reason, after, scope, detail } => {
            close_attempt(message, AttemptOutcome::Retry { reason, detail: detail.clone() });
            let news = match scope {
                RetryScope::Provider => LaneNews::Failed { reason, detail: detail.clone(), after },
                RetryScope::Message => LaneNews::Works,
            };
            let elsewhere = scope == RetryScope::Provider;
            (wait(message, (reason, detail), after, elsewhere, config, now, random), news)
        }
        SendOutcome::Unknown { detail } => {
            close_attempt(message, AttemptOutcome::Unknown { detail: detail.clone() });
            let news =
                LaneNews::Failed { reason: Reason::NoAnswer, detail: detail.clone(), after: None };
            let why = (Reason::NoAnswer, detail);
            (wait(message, why, None, true, config, now, random), news)
        }
        SendOutcome::Rejected { reason, scope: Scope::Provider, detail } => {
            close_attempt(message, AttemptOutcome::Rejected { reason, detail: detail.clone() });
            let news = LaneNews::Refused { reason, detail: detail.clone() };
            // Not the message's fault: it keeps its turn, and the closed lane holds it.
            message.status = Status::Queued;
            (message.reason, message.detail) = (Some(reason), Some(detail));
            message.due_at = now;
            (Next::Wait { elsewhere: true }, news)
        }
        SendOutcome::Rejected { reason, scope: Scope::Recipient | Scope::Content, detail } => {
            close_attempt(message, AttemptOutcome::Rejected { reason, detail: detail.clone() });
            (end(message, Status::Failed, reason, detail, now), LaneNews::Works)
        }
    }
}

/// Writes the outcome into an attempt that a crash or a stop cut off.
pub(super) fn settle_cut_off(message: &mut Message, now: Timestamp) {
    let detail = "the process ended before an answer was read".to_owned();
    message.updated_at = now;
    message.status = Status::Queued;
    message.due_at = now;
    (message.reason, message.detail) = (Some(Reason::NoAnswer), Some(detail.clone()));
    close_attempt(message, AttemptOutcome::Unknown { detail });
}

/// Ends the message without success. Where the contact has another channel, a new message goes on
/// there.
pub(super) fn end(
    message: &mut Message,
    status: Status,
    reason: Reason,
    detail: String,
    now: Timestamp,
) -> Next {
    message.updated_at = now;
    message.status = status;
    (message.reason, message.detail) = (Some(reason), Some(detail));
    // What nobody wants any more, or what is too late, goes nowhere else either.
    let goes_on = status == Status::Failed && now < message.expires_at;
    let follow_up = if goes_on { plan::next(message, now) } else { None };
    if let (Some(next), Some(detail)) = (&follow_up, &mut message.detail) {
        detail.push_str("; goes on by ");
        detail.push_str(next.target.channel.as_str());
    }
    Next::Ended { follow_up: follow_up.map(Box::new) }
}

fn close_attempt(message: &mut Message, outcome: AttemptOutcome) {
    if let Some(attempt) = message.attempts.last_mut() {
        attempt.ended_at = Some(message.updated_at);
        attempt.outcome = Some(outcome);
    }
}

fn wait(
    message: &mut Message,
    (reason, detail): (Reason, String),
    after: Option<Duration>,
    elsewhere: bool,
    config: &RetryConfig,
    now: Timestamp,
    random: f64,
) -> Next {
    if config.attempts_max > 0 && message.attempt_count >= config.attempts_max {
        let detail = format!("{} attempts, the last: {detail}", message.attempt_count);
        return end(message, Status::Failed, Reason::AttemptsExhausted, detail, now);
    }
    message.status = Status::Queued;
    (message.reason, message.detail) = (Some(reason), Some(detail));
    let delay = after.unwrap_or_else(|| backoff(config, message.attempt_count, random));
    message.due_at = now.plus(delay);
    Next::Wait { elsewhere }
}

/// Exponential back-off with full jitter: uniform between nothing and `first * 2^(n-1)`, at most
/// `max`, so that messages that failed together do not come back together.
pub(super) fn backoff(config: &RetryConfig, attempt: u32, random: f64) -> Duration {
    let first: Duration = config.first.into();
    let ceiling = first.saturating_mul(1_u32 << attempt.saturating_sub(1).min(30));
    ceiling.min(config.max.into()).mul_f64(random.clamp(0.0, 1.0))
}
