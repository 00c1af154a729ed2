//! When a channel has had its time, and what follows: the one clock of `fallback_after`.
//!
//! Pure: time is a parameter. The clock of a message runs from when it is due, all holds being over
//! ([`Message::began_at`]), until it has had success ([`is_success`]). Nothing restarts it: no
//! attempt, no other provider, no restart. When it ends the contact's next channel sends too; where
//! there is none, the contact counts as unheard.
//!
//! **Invariant:** a clock ends after half of the message's life at the latest, so that nobody is
//! still waited for when it expires.

use std::sync::Arc;
use std::time::Duration;

use super::LaneState;
use crate::clock::Timestamp;
use crate::model::{Channel, Fallback, Message, MessageId, Reason, Severity, Status};
use crate::notify::{FallbackAfter, plan};
use crate::span::Span;

/// What ends the clock: the message has reached what counts as its person. A provider has taken it,
/// for now; what a receipt says later may count one day.
pub(super) const fn is_success(status: Status) -> bool {
    matches!(status, Status::Sent | Status::Delivered | Status::Read)
}

/// What is still to happen when the clock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leg {
    /// The next channel sends too.
    Next,
    /// There is none: the contact is unheard.
    Last,
}

/// What is still to happen to the message, if anything.
pub(super) fn leg(message: &Message) -> Option<Leg> {
    if !message.then.is_empty() {
        return Some(Leg::Next);
    }
    let fallback = message.fallback.as_deref();
    let goes_on = |fallback: &Fallback| fallback.next.is_some() || fallback.unheard_at.is_some();
    (!fallback.is_some_and(goes_on)).then_some(Leg::Last)
}

/// A message's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    began_at: Timestamp,
    lives: Duration,
    /// The message's own, however urgent what waits behind it is.
    pub(super) severity: Severity,
    after: Option<Duration>,
    pub(super) leg: Option<Leg>,
}

impl Clock {
    pub(super) fn of(message: &Message) -> Self {
        let began_at = message.began_at();
        Self {
            began_at,
            lives: message.expires_at.since(began_at),
            severity: message.severity,
            after: message.fallback_after,
            leg: leg(message),
        }
    }

    /// How long the message may be without success; `None` for as long as it lives.
    pub(super) fn allowed(&self, usual: &FallbackAfter) -> Option<Span> {
        let after = self.after.unwrap_or_else(|| usual.of(self.severity).get());
        if after.is_zero() {
            return None;
        }
        let millis = u64::try_from(after.min(self.lives / 2).as_millis()).unwrap_or(u64::MAX);
        Some(Span::from_millis(millis))
    }

    /// When it ends; `None` where it never does, or nothing is left to happen.
    pub(super) fn ends_at(&self, usual: &FallbackAfter) -> Option<Timestamp> {
        self.leg?;
        Some(self.began_at.plus(self.allowed(usual)?.get()))
    }
}

/// Why a message is not waited for any longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Why {
    /// For the metric.
    pub(super) reason: Reason,
    /// In words, without who: `no success within 1m (lane wa stopped: bad_credentials)`.
    pub(super) words: String,
}

/// What is known of why there was no success.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cause {
    /// The lanes that are closed, how, and why: where none is open.
    pub(super) lanes: Vec<(Arc<str>, LaneState, Reason)>,
    /// An attempt is under way.
    pub(super) is_calling: bool,
}

/// So many lanes are named at most.
const LANES_MAX: usize = 3;

impl Why {
    /// `within`: how long it was waited for; `None` where the channel is closed and nothing was.
    pub(super) fn of(message: &Message, within: Option<Span>, cause: &Cause) -> Self {
        let mut reason = Reason::NotInTime;
        let mut causes = Vec::new();
        reason = cause.lanes.first().map_or(reason, |(_, _, why)| *why);
        for (name, state, why) in cause.lanes.iter().take(LANES_MAX) {
            let state = match state {
                LaneState::Up => "up",
                LaneState::Paused => "paused",
                LaneState::BreakerOpen => "left alone",
                LaneState::Stopped => "stopped",
            };
            causes.push(format!("{name} is {state}: {why}"));
        }
        if !causes.is_empty() {
        } else if cause.is_calling {
            causes.push("an attempt is under way and has no answer".to_owned());
        } else if let Some(why) = message.reason {
            reason = why;
            causes.push(format!("last: {why}"));
        }
        if causes.is_empty() {
            causes.push("it waits for its turn".to_owned());
        }
        let within = within.map_or_else(String::new, |within| format!(" within {within}"));
        let channel = message.target.channel;
        let words = format!("no success{within} on {channel} ({})", causes.join("; "));
        Self { reason, words }
    }
}

/// Lets the contact's next channel send too. The message keeps its turn and stands beside the new
/// one, which is given back; `None`: there is no next channel.
pub(super) fn go_on(message: &mut Message, words: &str, now: Timestamp) -> Option<Message> {
    let mut next = plan::next(message, now)?;
    let note = format!("{words}{WENT_ON}{}", next.target.channel);
    note_next(message, next.id, &note, now);
    let since = format!("it goes on with message {}: {words}", message.id);
    next.fallback.get_or_insert_default().note(&since, now);
    next.detail = Some(words.to_owned());
    Some(next)
}

/// Between why and where to.
const WENT_ON: &str = "; went on by ";

/// Why the next channel sends beside this message, as its record says.
pub(super) fn why_it_went_on(message: &Message) -> Option<&str> {
    let notes = &message.fallback.as_deref()?.notes;
    notes.iter().find_map(|note| Some(note.text.rsplit_once(WENT_ON)?.0))
}

/// Notes that the next channel sends.
pub(super) fn note_next(message: &mut Message, next: MessageId, note: &str, now: Timestamp) {
    message.then = Vec::new();
    let fallback = message.fallback.get_or_insert_default();
    fallback.next = Some(next);
    fallback.note(note, now);
}

/// Notes that no channel is left.
pub(super) fn note_unheard(message: &mut Message, words: &str, now: Timestamp) {
    let fallback = message.fallback.get_or_insert_default();
    fallback.unheard_at = Some(now);
    fallback.note(&format!("{words}; no other channel is left"), now);
}

/// What is put together of several takes over the clock of the one that has waited longest: news that
/// come faster than the clock ends must not keep a contact waiting for ever. It has `grace` at least,
/// because it is about to be sent.
pub(super) fn inherit(
    kept: &mut Message,
    oldest: Timestamp,
    usual: &FallbackAfter,
    (now, grace): (Timestamp, Duration),
) {
    let clock = Clock::of(kept);
    let (Some(_), Some(allowed)) = (clock.leg, clock.allowed(usual)) else { return };
    let least = now.plus(grace).minus(allowed.get());
    let since = oldest.max(least);
    if since < kept.began_at() {
        kept.fallback.get_or_insert_default().since = Some(since);
    }
}

/// Why a message is withdrawn that another channel had first.
pub(super) fn had_it(channel: Channel) -> String {
    format!("{channel} had it first")
}

/// What the record of a message says that went out although another channel had it first.
pub(super) fn came_too(channel: Channel) -> String {
    format!("{channel} had it first; this copy was under way by then")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::collapse::tests::{at, raise};
    use crate::model::{Address, Severity, Target};

    fn message(severity: Severity, lives_secs: u64) -> Message {
        let address = Address::Phone("+4915550100001".parse().expect("valid"));
        let mut message = raise(1, 10);
        message.severity = severity;
        message.expires_at = message.created_at.plus(Duration::from_secs(lives_secs));
        message.target.channel = Channel::Whatsapp;
        message.then = vec![Target { channel: Channel::Sms, address }];
        message
    }

    fn ends_at(message: &Message) -> Option<Timestamp> {
        Clock::of(message).ends_at(&FallbackAfter::default())
    }

    /// After how many seconds the next channel sends.
    fn check(message: &Message, expected: Option<u64>) {
        let ends_at = ends_at(message);
        assert_eq!(ends_at.map(|at| at.since(message.began_at()).as_secs()), expected);
    }

    #[test]
    fn the_next_channel_has_its_turn_in_time() {
        use Severity::{Critical, Info, Warning};
        let day = 24 * 3600;
        check(&message(Critical, day), Some(60));
        check(&message(Warning, day), Some(600));
        check(&message(Info, day), None);
        // Never more than half of what it has to live.
        check(&message(Critical, 20), Some(10));
        check(&message(Warning, 90), Some(45));
        // What rule or contact say goes before.
        let secs = |secs| Some(Duration::from_secs(secs));
        check(&Message { fallback_after: secs(5), ..message(Critical, day) }, Some(5));
        check(&Message { fallback_after: secs(5), ..message(Info, day) }, Some(5));
        check(&Message { fallback_after: secs(5), ..message(Info, 4) }, Some(2));
        check(&Message { fallback_after: secs(0), ..message(Critical, day) }, None);
        // On the last channel too: who hears nothing by any is somebody's business.
        check(&Message { then: Vec::new(), ..message(Critical, day) }, Some(60));
    }

    #[test]
    fn nothing_restarts_the_clock() {
        let mut tried = message(Severity::Critical, 3600);
        let ends = ends_at(&tried);
        tried.due_at = at(30);
        tried.updated_at = at(29);
        tried.attempt_count = 7;
        tried.reason = Some(Reason::ProviderUnavailable);
        assert_eq!(ends_at(&tried), ends);
    }

    #[test]
    fn the_next_channel_has_a_life_and_a_clock_of_its_own_and_both_say_why() {
        let mut first = message(Severity::Critical, 3600);
        first.reason = Some(Reason::ProviderUnavailable);
        let why = Why::of(&first, Some(Span::from_secs(60)), &Cause::default());
        assert_eq!(why.reason, Reason::ProviderUnavailable);
        let now = first.created_at.plus(Duration::from_secs(60));
        let second = go_on(&mut first, &why.words, now).expect("sms");
        assert_eq!(second.expires_at, now.plus(Duration::from_secs(3600)));
        assert_eq!(ends_at(&second), Some(now.plus(Duration::from_secs(60))));
        assert_eq!((leg(&first), ends_at(&first)), (None, None));
        let (left, right) = (first.fallback.expect("noted"), second.fallback.expect("noted"));
        assert_eq!((left.next, right.before), (Some(second.id), Some(first.id)));
        assert_eq!(
            *left.notes[0].text,
            *"no success within 1m on whatsapp (last: provider_unavailable); went on by sms"
        );
        let words = "no success within 1m on whatsapp (last: provider_unavailable)";
        assert_eq!(*right.notes[0].text, *format!("it goes on with message {}: {words}", first.id));
    }

    #[test]
    fn why_names_the_lane_where_that_is_closed() {
        let first = message(Severity::Critical, 3600);
        let lanes = vec![
            ("wa".into(), LaneState::Stopped, Reason::BadCredentials),
            ("wb".into(), LaneState::BreakerOpen, Reason::ProviderUnavailable),
        ];
        let why = Why::of(&first, None, &Cause { lanes, is_calling: true });
        assert_eq!(
            why.words,
            "no success on whatsapp (wa is stopped: bad_credentials; wb is left alone: provider_unavailable)"
        );
        assert_eq!(why.reason, Reason::BadCredentials);
        let why = Why::of(&first, None, &Cause { lanes: Vec::new(), is_calling: true });
        assert_eq!(why.words, "no success on whatsapp (an attempt is under way and has no answer)");
        let why = Why::of(&first, None, &Cause::default());
        assert_eq!(why.words, "no success on whatsapp (it waits for its turn)");
        assert_eq!(why.reason, Reason::NotInTime);
    }

    #[test]
    fn news_that_come_faster_than_the_clock_do_not_put_it_off() {
        let usual = FallbackAfter::default();
        let mut kept = message(Severity::Warning, 24 * 3600);
        let began = kept.began_at();
        let now = began.plus(Duration::from_secs(60));
        let grace = Duration::from_secs(5);
        let ago = |secs| began.minus(Duration::from_secs(secs));
        inherit(&mut kept, ago(120), &usual, (now, grace));
        assert_eq!(kept.began_at(), ago(120));
        // Its time would have been over: it has a moment, because it is about to be sent.
        inherit(&mut kept, ago(3600), &usual, (now, grace));
        assert_eq!(ends_at(&kept), Some(now.plus(grace)));
        inherit(&mut kept, began, &usual, (now, grace));
        assert_eq!(ends_at(&kept), Some(now.plus(grace)));
    }

    #[test]
    fn who_is_unheard_is_noted_once() {
        let mut last = Message { then: Vec::new(), ..message(Severity::Critical, 3600) };
        assert_eq!(leg(&last), Some(Leg::Last));
        note_unheard(&mut last, "no success", at(11));
        assert_eq!(leg(&last), None);
        let notes = last.fallback.expect("noted").notes;
        assert_eq!(*notes[0].text, *"no success; no other channel is left");
    }
}
