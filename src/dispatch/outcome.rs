//! What follows from an attempt: pure functions from a message and an outcome to the next row.

use std::time::Duration;

use super::RetryConfig;
use super::fallback;
use super::lane::LaneNews;
use super::peer::{self, Peer};
use crate::clock::Timestamp;
use crate::model::{Attempt, AttemptOutcome, Message, Reason, Severity, Status};
use crate::provider::{RetryScope, Scope, SendOutcome};

/// What a critical message has left that may have expired by a wrong clock: time for an attempt at each
/// of several providers.
const GRACE: Duration = Duration::from_secs(600);

/// What happens to the message next.
#[derive(Debug)]
pub(super) enum Next {
    /// It waits.
    Wait {
        /// Whether another provider may take it at once.
        elsewhere: Elsewhere,
    },
    /// It has ended; the contact's next channel goes on, where there is one.
    Ended {
        /// The message that goes on.
        follow_up: Option<Box<Message>>,
    },
}

/// What an attempt says of the message and its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// It is the message itself that has to wait.
    No,
    /// The provider failed: another may take it, and this one again later.
    Failed,
    /// The provider will not take it, as its account stands: another may.
    Refused,
    /// The provider is not asked again: it cannot reach the recipient, or it may have sent the
    /// message already as often as is allowed.
    Done,
}

/// How often a message is sent again where nobody knows whether it has been sent, and how often it
/// is refused, before its provider is done with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Repeats after an attempt without answer.
    pub(super) unanswered_repeats: u32,
}

/// So often the process may end during attempts at one provider, where there is no other channel.
const CUT_OFFS_MAX: u32 = 10;

/// How often a provider left open whether it has the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unanswered {
    /// In all, without those that the end of the process cut off.
    asked: u32,
    /// Of these, with an answer that was not the provider's, or could not be read.
    answered: u32,
    cut_off: u32,
}

impl Unanswered {
    fn of(message: &Message, provider: &str) -> Self {
        let mut all = Self::default();
        for attempt in message.attempts.iter().filter(|attempt| &*attempt.provider == provider) {
            match &attempt.outcome {
                Some(AttemptOutcome::Unknown { cut_off: true, .. }) => all.cut_off += 1,
                Some(AttemptOutcome::Unknown { answered, .. }) => {
                    all.asked += 1;
                    all.answered += u32::from(*answered);
                }
                _ => {}
            }
        }
        all
    }
}

impl Limits {
    /// Whether the provider may have sent the message as often as is allowed already.
    ///
    /// Where the contact has no other channel, an answer that could not be read does not end the
    /// message at once (a portal's page would, for a minute of portal), and attempts that a kill cut
    /// off do not count: the request may never have left.
    pub(super) fn are_reached(self, message: &Message, provider: &str) -> bool {
        let Unanswered { asked, answered, cut_off } = Unanswered::of(message, provider);
        if message.then.is_empty() {
            return asked > self.unanswered_repeats || cut_off > CUT_OFFS_MAX;
        }
        answered > 0 || asked + cut_off > self.unanswered_repeats
    }

    /// How long a message without another channel waits before a repeat where nobody knows whether it
    /// has been sent; `None`: as after a failure. Two quick repeats would be over before an outage is.
    fn spaced(self, message: &Message, provider: &str, retry: &RetryConfig) -> Option<Duration> {
        let Unanswered { asked, answered, .. } = Unanswered::of(message, provider);
        let long: Duration = retry.max.into();
        let wait = if asked >= self.unanswered_repeats.max(1) {
            Some(long)
        } else {
            (answered > 0).then_some(long / 5)
        };
        wait.filter(|_| message.then.is_empty())
    }

    /// The same where the provider has said that it does not have the message: then only an answer
    /// of somebody else, who stands between it and us, is a reason.
    pub(super) fn hold_back_what_is_not_there(self, message: &Message, provider: &str) -> bool {
        let allowed = if message.then.is_empty() { self.unanswered_repeats } else { 0 };
        message.reason.is_some() && Unanswered::of(message, provider).answered > allowed
    }

    /// Whether the message, which waits, may not be sent there once more. One that an operator has
    /// put back has no reason to wait.
    pub(super) fn hold_back(self, message: &Message, provider: &str) -> bool {
        message.reason.is_some() && self.are_reached(message, provider)
    }
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

/// The longest wait where this machine could not ask.
const HERE_MAX: Duration = Duration::from_secs(10);

/// How a provider is asked, for [`settle`].
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) retry: &'a RetryConfig,
    pub(super) limits: Limits,
    /// Whether the provider can be asked what it has taken.
    pub(super) can_look_up: bool,
    /// Uniform in 0..=1.
    pub(super) random: f64,
}

/// Notes what came of the latest attempt.
pub(super) fn settle(
    message: &mut Message,
    outcome: SendOutcome,
    terms: Terms<'_>,
    now: Timestamp,
) -> (Next, LaneNews) {
    message.updated_at = now;
    let provider = message.attempts.last().map(|attempt| attempt.provider.clone());
    match outcome {
        SendOutcome::Accepted { provider_ref, segments, delivered, note } => {
            close_attempt(message, AttemptOutcome::Accepted { provider_ref: provider_ref.clone() });
            message.status = if delivered { Status::Delivered } else { Status::Sent };
            (message.reason, message.detail) = (None, note);
            message.provider = provider;
            message.provider_ref = provider_ref;
            if let (Some(known), Some(billed)) = (&mut message.segments, segments) {
                known.count = billed;
            }
            (Next::Ended { follow_up: None }, LaneNews::Accepted)
        }
        SendOutcome::Retry { reason, after, scope, detail } => {
            close_attempt(message, AttemptOutcome::Retry { reason, detail: detail.clone() });
            let (news, elsewhere) = match scope {
                RetryScope::Provider => {
                    let detail = detail.clone();
                    (LaneNews::Failed { reason, detail, after }, Elsewhere::Failed)
                }
                RetryScope::Endpoint => {
                    let (name, detail) = (peer::name(&message.target), detail.clone());
                    (LaneNews::Endpoint { name, reason, detail, after }, Elsewhere::No)
                }
                RetryScope::Message => (LaneNews::Works, Elsewhere::No),
                RetryScope::Here => (LaneNews::Ours { detail: detail.clone() }, Elsewhere::No),
            };
            // What is lacking here may be there in a moment, for all messages.
            let after = match scope {
                RetryScope::Here => {
                    let delay = backoff(terms.retry, message.attempt_count, terms.random);
                    Some(delay.min(HERE_MAX))
                }
                RetryScope::Provider | RetryScope::Endpoint | RetryScope::Message => after,
            };
            (wait(message, (reason, detail), after, elsewhere, terms, now), news)
        }
        SendOutcome::Unknown { detail, answered } => {
            let unknown =
                AttemptOutcome::Unknown { detail: detail.clone(), answered, cut_off: false };
            close_attempt(message, unknown);
            let reason = if answered { Reason::BadAnswer } else { Reason::NoAnswer };
            let news = LaneNews::Failed { reason, detail: detail.clone(), after: None };
            // One that can be asked is asked once more before it is done.
            let is_done = !terms.can_look_up
                && provider.as_ref().is_some_and(|name| terms.limits.are_reached(message, name));
            let elsewhere = if is_done { Elsewhere::Done } else { Elsewhere::Failed };
            // One that can be asked is asked soon.
            let after = provider.filter(|_| !terms.can_look_up || answered);
            let after = after.and_then(|name| terms.limits.spaced(message, &name, terms.retry));
            (wait(message, (Reason::NoAnswer, detail), after, elsewhere, terms, now), news)
        }
        SendOutcome::Rejected { reason, scope: Scope::Account { sure }, detail } => {
            let before = provider.and_then(|name| refused_at(message, &name));
            close_attempt(message, AttemptOutcome::Rejected { reason, detail: detail.clone() });
            let peer = Peer::of(&message.target);
            let news = LaneNews::Refused { reason, detail: detail.clone(), sure, peer, before };
            (wait(message, (reason, detail), None, Elsewhere::Refused, terms, now), news)
        }
        SendOutcome::Rejected { reason, scope: Scope::Route, detail } => {
            close_attempt(message, AttemptOutcome::Rejected { reason, detail: detail.clone() });
            let why = (reason, detail);
            (wait(message, why, None, Elsewhere::Done, terms, now), LaneNews::Works)
        }
        SendOutcome::Rejected { reason, scope: Scope::Recipient | Scope::Content, detail } => {
            close_attempt(message, AttemptOutcome::Rejected { reason, detail: detail.clone() });
            (end(message, Status::Failed, reason, detail, now), LaneNews::Works)
        }
    }
}

/// When the provider refused the message last.
fn refused_at(message: &Message, provider: &str) -> Option<Timestamp> {
    message.attempts.iter().rev().filter(|attempt| &*attempt.provider == provider).find_map(
        |attempt| {
            matches!(attempt.outcome, Some(AttemptOutcome::Rejected { .. }))
                .then_some(attempt.ended_at?)
        },
    )
}

/// How often the provider has refused the message, and when first.
pub(super) fn refusals(message: &Message, provider: &str) -> (usize, Option<Timestamp>) {
    let here = message.attempts.iter().filter(|attempt| &*attempt.provider == provider);
    let mut refused =
        here.filter(|one| matches!(one.outcome, Some(AttemptOutcome::Rejected { .. })));
    let first_at = refused.next().and_then(|attempt| attempt.ended_at);
    (refused.count() + usize::from(first_at.is_some()), first_at)
}

/// Writes the outcome into an attempt that a crash or a stop cut off. It is repeated at once, but for
/// one that is cut off again and again: what kills the process must not send it each time.
pub(super) fn settle_cut_off(message: &mut Message, retry: &RetryConfig, now: Timestamp) {
    let detail = "the process ended before an answer was read".to_owned();
    message.updated_at = now;
    message.status = Status::Queued;
    (message.reason, message.detail) = (Some(Reason::NoAnswer), Some(detail.clone()));
    close_attempt(message, AttemptOutcome::Unknown { detail, answered: false, cut_off: true });
    let last = message.attempts.last();
    let cut_off = last.map_or(0, |last| Unanswered::of(message, &last.provider).cut_off);
    let is_often = cut_off > 2;
    let delay = if is_often { backoff(retry, cut_off, 1.0) } else { Duration::ZERO };
    message.due_at = now.plus(delay);
}

/// What a start knows of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct AtStart {
    /// The present time.
    pub(super) now: Timestamp,
    /// The last sign of life, where only the wall clock says how long ago that was.
    pub(super) unsure_since: Option<Timestamp>,
    /// The longest that any attempt is put off.
    pub(super) wait_max: Duration,
}

/// Puts times right that cannot be: what lies ahead by more than it ever could was written by a clock
/// that went wrong. And a critical message that expired while nothing ran, by a clock that nobody can
/// be sure of, gets [`GRACE`], once. True: the row has changed.
pub(super) fn put_right(message: &mut Message, at: AtStart) -> bool {
    let AtStart { now, unsure_since, wait_max } = at;
    let before = (message.created_at, message.due_at, message.expires_at);
    if message.created_at > now {
        let lifetime = message.expires_at.since(message.created_at);
        (message.created_at, message.expires_at) = (now, now.plus(lifetime));
    }
    if let Some(since) = message.fallback.as_mut().and_then(|fallback| fallback.since.as_mut()) {
        *since = (*since).min(now);
    }
    message.due_at = message.due_at.min(now.plus(wait_max));
    let has_expired = message.expires_at <= now;
    if message.severity == Severity::Critical
        && !message.extended
        && has_expired
        && unsure_since.is_some_and(|since| message.expires_at > since)
    {
        message.extended = true;
        (message.due_at, message.expires_at) = (now, now.plus(GRACE));
        message.detail = Some(
            "it expired while the machine was off, by a clock that may have been wrong: sent once more"
                .to_owned(),
        );
    }
    let after = (message.created_at, message.due_at, message.expires_at);
    if before != after {
        message.updated_at = now;
    }
    before != after
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
    // What nobody wants any more goes nowhere else either; nor does what is too late, unless it is
    // critical and was kept from its next channel until then.
    let goes_on = match status {
        Status::Failed => now < message.expires_at || message.severity == Severity::Critical,
        Status::Expired => message.severity == Severity::Critical,
        _ => false,
    };
    let words = format!("{} {status}: {reason}", message.target.channel);
    let follow_up = if goes_on { fallback::go_on(message, &words, now) } else { None };
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
    elsewhere: Elsewhere,
    Terms { retry: config, random, .. }: Terms<'_>,
    now: Timestamp,
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

#[cfg(test)]
mod tests {
    use super::super::collapse::tests::{at, raise};
    use super::*;

    const WAIT_MAX: Duration = Duration::from_secs(3600);

    fn at_start(minute: i64, unsure_since: Option<i64>) -> AtStart {
        AtStart { now: at(minute), unsure_since: unsure_since.map(at), wait_max: WAIT_MAX }
    }

    /// A raise of minute 0 lives for a day.
    fn critical() -> Message {
        Message { severity: Severity::Critical, ..raise(1, 0) }
    }

    /// Two quick repeats were over before a minute of outage was.
    #[test]
    fn without_another_channel_the_last_repeat_waits() {
        let retry = RetryConfig::default();
        let limits = Limits { unanswered_repeats: 2 };
        let attempt = |answered, cut_off| Attempt {
            number: 1,
            provider: "wa".into(),
            run: crate::model::RunId::new(uuid::Uuid::nil()),
            started_at: at(0),
            ended_at: Some(at(0)),
            outcome: Some(AttemptOutcome::Unknown { detail: String::new(), answered, cut_off }),
        };
        let long = Some(Duration::from(retry.max));
        let short = long.map(|long| long / 5);
        for (answered, cut_off, counts) in [
            // The time before the next attempt, after each.
            (false, false, [Some(None), Some(long), None].as_slice()),
            (true, false, &[Some(short), Some(long), None]),
            (false, true, &[Some(None); 10]),
        ] {
            let mut message = critical();
            for (nth, expected) in counts.iter().enumerate() {
                message.attempts.push(attempt(answered, cut_off));
                let is_reached = limits.are_reached(&message, "wa");
                let wait = (!is_reached).then(|| limits.spaced(&message, "wa", &retry));
                assert_eq!(wait, *expected, "{answered} {cut_off} {nth}");
            }
        }
    }

    #[test]
    fn a_critical_message_that_expired_over_a_boot_gets_one_more_attempt_once() {
        let mut message = critical();
        assert!(put_right(&mut message, at_start(2000, Some(100))));
        assert_eq!((message.due_at, message.expires_at), (at(2000), at(2010)));
        assert!(!put_right(&mut message, at_start(2100, Some(2001))), "once");
        // It had expired before, the machine was not booted, it is not critical, it still lives.
        for (mut message, start) in [
            (critical(), at_start(2000, Some(1500))),
            (critical(), at_start(2000, None)),
            (raise(1, 0), at_start(2000, Some(100))),
            (critical(), at_start(200, Some(100))),
        ] {
            assert!(!put_right(&mut message, start), "{start:?}");
        }
    }

    #[test]
    fn what_lies_further_ahead_than_it_ever_could_is_brought_back() {
        // Written two days ahead.
        let mut message = raise(1, 2 * 1440);
        assert!(put_right(&mut message, at_start(0, None)));
        assert_eq!(
            (message.created_at, message.due_at, message.expires_at),
            (at(0), at(60), at(1440))
        );
        let mut message = Message { due_at: at(61), ..raise(1, 0) };
        assert!(put_right(&mut message, at_start(0, None)));
        assert_eq!(message.due_at, at(60));
        assert!(!put_right(&mut message, at_start(0, None)));
    }
}
