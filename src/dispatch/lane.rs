//! One provider's lane: how fast, how many at once, and whether at all.
//!
//! Pure: time is a parameter. Three things close a lane: the provider asked for a pause, it failed
//! several times in a row (the circuit breaker), or it refuses our account. A closed lane lets one
//! probe through when its time has come; what the probe brings back decides.
//!
//! A refusal that may be of one message only stops the lane when several different recipients got
//! it and nobody else was served in between. One that the provider's table calls sure stops it at
//! once, but not again for a message that had stopped it before and that others have survived:
//! **one message never holds up a lane that serves others.**

use std::sync::Arc;
use std::time::Duration;

use super::peer::Peer;
use super::{BreakerConfig, LaneState};
use crate::clock::Timestamp;
use crate::model::{Channel, Reason};

/// What a lane needs to know of its provider.
#[derive(Clone, Debug)]
pub(super) struct LaneSettings {
    pub(super) name: Arc<str>,
    pub(super) kind: &'static str,
    pub(super) channels: Vec<Channel>,
    /// Calls a second; `None` for no limit.
    pub(super) per_second: Option<f64>,
    pub(super) concurrency: usize,
    pub(super) breaker: BreakerConfig,
    /// So many different recipients that are refused stop the lane.
    pub(super) refusals: usize,
}

/// A provider's lane.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) settings: LaneSettings,
    pub(super) in_flight: usize,
    tokens: f64,
    refilled_at: Timestamp,
    failures: u32,
    /// How long the breaker stays open next time.
    cooldown: Duration,
    gate: Gate,
    /// When a pause was last worth a line in the log.
    pause_said_at: Option<Timestamp>,
    /// When it last took a message.
    accepted_at: Option<Timestamp>,
    /// Whom it has refused for our account's sake since then, each once, and how often in all.
    refused: Vec<Peer>,
    refusal_count: usize,
    /// The latest of these refusals.
    refusal: Option<(Reason, String)>,
    /// Why this machine could not ask it the last time.
    ours: Option<String>,
}

#[derive(Clone, Debug)]
enum Gate {
    Open,
    Closed { state: LaneState, until: Timestamp, reason: Reason, detail: String },
}

/// Whether a lane can take a message now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can.
    Free,
    /// It works, but is at its rate (until then) or concurrency (until a call ends).
    Busy(Option<Timestamp>),
    /// It is closed (until then, or until its probe comes back).
    Down(Option<Timestamp>),
}

/// What a call says about its lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LaneNews {
    /// The provider has taken the message.
    Accepted,
    /// The provider works, whatever it said of the message.
    Works,
    /// The provider failed, or asks for a slower pace.
    Failed { reason: Reason, detail: String, after: Option<Duration> },
    /// The provider will not, for our account or configuration.
    Refused {
        reason: Reason,
        detail: String,
        /// It would refuse every message.
        sure: bool,
        /// Whom the message was for.
        peer: Peer,
        /// When it refused the same message before.
        before: Option<Timestamp>,
    },
    /// What failed is the endpoint behind the provider.
    Endpoint { name: Arc<str>, reason: Reason, detail: String, after: Option<Duration> },
    /// This machine could not ask.
    Ours { detail: String },
    /// Nothing was learned.
    Nothing,
}

/// What the news did to the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LaneChange {
    /// Nothing that concerns anyone else.
    None,
    /// It has closed.
    Closed,
    /// It is open again.
    Opened,
    /// It is open and has refused so many messages in a row, to too few recipients to be stopped,
    /// that somebody should look.
    Refuses,
}

/// So many refused recipients are noted at most, whatever the configuration says.
const PEERS_NOTED: usize = 1000;
/// A provider's wish to wait is honoured up to this.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(3600);
const PAUSE_SAID_EVERY: Duration = Duration::from_secs(60);

impl Lane {
    pub(super) fn new(settings: LaneSettings, now: Timestamp) -> Self {
        let cooldown = settings.breaker.first.into();
        let mut lane = Self {
            settings,
            in_flight: 0,
            tokens: 0.0,
            refilled_at: now,
            failures: 0,
            cooldown,
            gate: Gate::Open,
            pause_said_at: None,
            accepted_at: None,
            refused: Vec::new(),
            refusal_count: 0,
            refusal: None,
            ours: None,
        };
        lane.tokens = lane.burst();
        lane
    }

    /// One second's worth, and never less than one call.
    fn burst(&self) -> f64 {
        self.settings.per_second.unwrap_or(1.0).max(1.0)
    }

    pub(super) fn standing(&mut self, now: Timestamp) -> Standing {
        if let Gate::Closed { until, state, .. } = &self.gate {
            if now < *until {
                return Standing::Down(Some(*until));
            }
            // A pause is over when its time is; the others first want one call that succeeds.
            if *state == LaneState::Paused {
                self.gate = Gate::Open;
            } else if self.in_flight > 0 {
                return Standing::Down(None);
            }
        }
        if self.in_flight >= self.settings.concurrency {
            return Standing::Busy(None);
        }
        let Some(per_second) = self.settings.per_second else {
            return Standing::Free;
        };
        let elapsed = now.since(self.refilled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * per_second).min(self.burst());
        self.refilled_at = now;
        if self.tokens >= 1.0 {
            Standing::Free
        } else {
            let wait = Duration::from_secs_f64((1.0 - self.tokens) / per_second);
            // A millisecond more, so that rounding never wakes us just too early.
            Standing::Busy(Some(now.plus(wait + Duration::from_millis(1))))
        }
    }

    /// Whether it is closed and its time has come: the next call is its probe.
    pub(super) fn is_probing(&self, now: Timestamp) -> bool {
        matches!(&self.gate, Gate::Closed { until, state, .. }
            if now >= *until && *state != LaneState::Paused)
    }

    /// Whether it has refused this one since it last took a message: not a fair probe.
    pub(super) fn has_refused(&self, peer: Peer) -> bool {
        self.refused.contains(&peer)
    }

    /// Whether it refuses our account: only an operator can change that.
    pub(super) fn is_stopped(&self) -> bool {
        matches!(&self.gate, Gate::Closed { state: LaneState::Stopped, .. })
    }

    /// Whether it has taken a message after then: what it refused then, others have survived.
    pub(super) fn has_accepted_since(&self, then: Timestamp) -> bool {
        self.accepted_at.is_some_and(|at| at >= then)
    }

    /// Takes a place and a token. Only when it stands [`Standing::Free`].
    pub(super) fn start(&mut self) {
        self.in_flight += 1;
        if self.settings.per_second.is_some() {
            self.tokens -= 1.0;
        }
    }

    /// Gives the place back, and draws the conclusions from what the call said.
    pub(super) fn finish(&mut self, news: LaneNews, now: Timestamp) -> LaneChange {
        self.in_flight = self.in_flight.saturating_sub(1);
        if !matches!(news, LaneNews::Nothing) {
            self.ours = None;
        }
        match news {
            LaneNews::Nothing => LaneChange::None,
            LaneNews::Ours { detail } => {
                self.ours = Some(detail);
                LaneChange::None
            }
            LaneNews::Accepted => {
                self.accepted_at = Some(now);
                self.forget_refusals();
                self.works(now)
            }
            LaneNews::Works | LaneNews::Endpoint { .. } => self.works(now),
            LaneNews::Failed { reason, detail, after: Some(after) } => {
                let until = now.plus(after.min(PAUSE_MAX));
                self.close(LaneState::Paused, until, reason, detail)
            }
            LaneNews::Failed { reason, detail, after: None } => {
                self.failures += 1;
                let probe_failed = matches!(&self.gate,
                    Gate::Closed { state: LaneState::BreakerOpen, until, .. } if now >= *until);
                let stands_closed = matches!(&self.gate, Gate::Closed { .. }) && !probe_failed;
                if stands_closed
                    || (self.failures < self.settings.breaker.failures && !probe_failed)
                {
                    return LaneChange::None;
                }
                let until = now.plus(self.cooldown);
                self.cooldown = (self.cooldown * 2).min(self.settings.breaker.max.into());
                self.close(LaneState::BreakerOpen, until, reason, detail)
            }
            LaneNews::Refused { reason, detail, sure, peer, before } => {
                let others_survive =
                    before.is_some_and(|before| self.accepted_at.is_some_and(|at| at > before));
                self.refusal_count += 1;
                if !self.refused.contains(&peer) && self.refused.len() < PEERS_NOTED {
                    self.refused.push(peer);
                }
                let is_stopped = self.is_stopped() && self.is_probing(now);
                if (sure && !others_survive)
                    || is_stopped
                    || self.refused.len() >= self.settings.refusals
                {
                    let until = now.plus(self.settings.breaker.probe_refused.into());
                    return self.close(LaneState::Stopped, until, reason, detail);
                }
                self.refusal = Some((reason, detail));
                // It answers, so it is not what the breaker is for.
                match self.works(now) {
                    LaneChange::None if self.refusal_count == self.settings.refusals => {
                        LaneChange::Refuses
                    }
                    change => change,
                }
            }
        }
    }

    fn works(&mut self, now: Timestamp) -> LaneChange {
        self.failures = 0;
        match &self.gate {
            Gate::Open | Gate::Closed { state: LaneState::Paused, .. } => LaneChange::None,
            // A call that had started before the lane closed: not the probe.
            Gate::Closed { until, .. } if now < *until => LaneChange::None,
            Gate::Closed { .. } => self.reopen(),
        }
    }

    fn forget_refusals(&mut self) {
        self.refused.clear();
        self.refusal_count = 0;
        self.refusal = None;
    }

    fn close(
        &mut self,
        state: LaneState,
        until: Timestamp,
        reason: Reason,
        detail: String,
    ) -> LaneChange {
        // A longer wait or a graver state is never replaced by a late answer of less weight.
        if let Gate::Closed { state: known, until: known_until, .. } = &self.gate
            && now_graver(*known, state)
            && *known_until > until
        {
            return LaneChange::None;
        }
        self.gate = Gate::Closed { state, until, reason, detail };
        LaneChange::Closed
    }

    /// Opens the gate, whatever closed it, for an operator who has mended it.
    pub(super) fn open(&mut self) -> LaneChange {
        self.forget_refusals();
        self.reopen()
    }

    fn reopen(&mut self) -> LaneChange {
        self.failures = 0;
        self.cooldown = self.settings.breaker.first.into();
        match std::mem::replace(&mut self.gate, Gate::Open) {
            Gate::Open => LaneChange::None,
            Gate::Closed { .. } => LaneChange::Opened,
        }
    }

    /// Whether a pause is worth a line in the log: the first is, and one a minute. A provider that
    /// slows us down may ask for thousands.
    pub(super) fn says_pause(&mut self, now: Timestamp) -> bool {
        let due = self.pause_said_at.is_none_or(|said_at| now.since(said_at) >= PAUSE_SAID_EVERY);
        if due {
            self.pause_said_at = Some(now);
        }
        due
    }

    /// What an operator should know of it though it is open.
    pub(super) fn warning(&self) -> Option<String> {
        if let Some(ours) = &self.ours {
            return Some(ours.clone());
        }
        let (reason, detail) = self.refusal.as_ref().filter(|_| matches!(self.gate, Gate::Open))?;
        let (count, of) = (self.refusal_count, self.refused.len());
        let (messages, recipients) = match (count, of) {
            (1, _) => ("message", ""),
            (_, 1) => ("messages in a row", ", all to one recipient"),
            _ => ("messages in a row", ""),
        };
        Some(format!("refused {count} {messages}{recipients}: {reason}, {detail}"))
    }

    /// For people.
    pub(super) fn state(
        &self,
        now: Timestamp,
    ) -> (LaneState, Option<Reason>, Option<&str>, Option<Timestamp>) {
        match &self.gate {
            Gate::Closed { state: LaneState::Paused, until, .. } if now >= *until => {
                (LaneState::Up, None, None, None)
            }
            Gate::Closed { state, until, reason, detail } => {
                (*state, Some(*reason), Some(detail), Some(*until))
            }
            Gate::Open => (LaneState::Up, None, None, None),
        }
    }
}

fn now_graver(known: LaneState, new: LaneState) -> bool {
    let weight = |state| match state {
        LaneState::Up => 0,
        LaneState::Paused => 1,
        LaneState::BreakerOpen => 2,
        LaneState::Stopped => 3,
    };
    weight(known) >= weight(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Span;

    fn lane(per_second: Option<f64>) -> Lane {
        let breaker = BreakerConfig {
            failures: 3,
            first: Span::from_secs(1),
            max: Span::from_secs(4),
            probe_refused: Span::from_secs(60),
        };
        let settings = LaneSettings {
            name: "one".into(),
            kind: "test",
            channels: vec![Channel::Sms],
            per_second,
            concurrency: 2,
            breaker,
            refusals: 3,
        };
        Lane::new(settings, at(0))
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn failed() -> LaneNews {
        let detail = String::new();
        LaneNews::Failed { reason: Reason::ProviderUnavailable, detail, after: None }
    }

    /// One message a recipient, which was refused before then.
    fn refused(recipient: u64, sure: bool, before: Option<i64>) -> LaneNews {
        let (reason, detail) = (Reason::ProviderRefused, "HTTP 403".to_owned());
        let (peer, before) = (Peer::numbered(recipient), before.map(at));
        LaneNews::Refused { reason, detail, sure, peer, before }
    }

    #[test]
    fn a_refusal_of_one_recipient_alarms_and_does_not_stop_the_lane() {
        let mut lane = lane(None);
        let changes: Vec<LaneChange> =
            (0..5).map(|now| lane.finish(refused(1, false, None), at(now))).collect();
        let [none, refuses] = [LaneChange::None, LaneChange::Refuses];
        assert_eq!(changes, [none, none, refuses, none, none]);
        assert_eq!(lane.state(at(5)).0, LaneState::Up);
        let warning = lane.warning().expect("somebody should look");
        assert_eq!(
            warning,
            "refused 5 messages in a row, all to one recipient: provider_refused, HTTP 403"
        );
        lane.finish(LaneNews::Accepted, at(6));
        assert_eq!(lane.warning(), None);
    }

    #[test]
    fn refusals_of_different_recipients_stop_the_lane_unless_others_are_served() {
        let mut lane = lane(None);
        for (recipient, accepted) in [(1, false), (2, true), (3, false), (1, false)] {
            assert_eq!(lane.finish(refused(recipient, false, None), at(0)), LaneChange::None);
            if accepted {
                lane.finish(LaneNews::Accepted, at(0));
            }
        }
        // What says nothing of the account does not count for it.
        lane.finish(LaneNews::Works, at(0));
        assert_eq!(lane.finish(refused(4, false, None), at(0)), LaneChange::Closed);
        assert!(lane.is_stopped());
        assert!([1, 3, 4].iter().all(|one| lane.has_refused(Peer::numbered(*one))));
        assert!(!lane.has_refused(Peer::numbered(2)));
        // Its probe is refused as well.
        assert!(!lane.is_probing(at(59_999)) && lane.is_probing(at(60_000)));
        lane.finish(refused(9, false, None), at(60_000));
        assert_eq!(lane.standing(at(60_001)), Standing::Down(Some(at(120_000))));
    }

    #[test]
    fn a_message_that_others_survive_does_not_stop_the_lane_again() {
        let mut lane = lane(None);
        assert_eq!(lane.finish(refused(1, true, None), at(0)), LaneChange::Closed);
        assert_eq!(lane.finish(LaneNews::Accepted, at(60_000)), LaneChange::Opened);
        assert_eq!(lane.finish(refused(1, true, Some(0)), at(60_001)), LaneChange::None);
        assert_eq!(lane.state(at(60_001)).0, LaneState::Up);
        // Another's refusal is news.
        assert_eq!(lane.finish(refused(2, true, None), at(60_002)), LaneChange::Closed);
    }

    #[test]
    fn a_refused_probe_shows_that_a_broken_provider_answers() {
        let mut lane = lane(None);
        for _ in 0..3 {
            lane.finish(failed(), at(0));
        }
        assert_eq!(lane.state(at(0)).0, LaneState::BreakerOpen);
        lane.start();
        assert_eq!(lane.finish(refused(1, false, None), at(1000)), LaneChange::Opened);
    }

    #[test]
    fn what_this_machine_lacks_is_not_the_providers_fault() {
        let mut lane = lane(None);
        for _ in 0..20 {
            let detail = "Too many open files".to_owned();
            assert_eq!(lane.finish(LaneNews::Ours { detail }, at(0)), LaneChange::None);
        }
        assert_eq!(lane.state(at(0)).0, LaneState::Up);
        assert_eq!(lane.warning().as_deref(), Some("Too many open files"));
        lane.finish(LaneNews::Works, at(0));
        assert_eq!(lane.warning(), None);
    }

    #[test]
    fn keeps_its_rate() {
        let mut lane = lane(Some(2.0));
        for _ in 0..2 {
            assert_eq!(lane.standing(at(0)), Standing::Free);
            lane.start();
            lane.finish(LaneNews::Works, at(0));
        }
        assert_eq!(lane.standing(at(0)), Standing::Busy(Some(at(501))));
        assert_eq!(lane.standing(at(501)), Standing::Free);
    }

    #[test]
    fn keeps_its_concurrency() {
        let mut lane = lane(None);
        lane.start();
        lane.start();
        assert_eq!(lane.standing(at(0)), Standing::Busy(None));
        lane.finish(LaneNews::Works, at(0));
        assert_eq!(lane.standing(at(0)), Standing::Free);
    }

    #[test]
    fn breaks_after_failures_in_a_row_and_lets_one_probe_through() {
        let mut lane = lane(None);
        assert_eq!(lane.finish(failed(), at(0)), LaneChange::None);
        assert_eq!(lane.finish(LaneNews::Works, at(0)), LaneChange::None);
        for _ in 0..2 {
            assert_eq!(lane.finish(failed(), at(0)), LaneChange::None);
        }
        assert_eq!(lane.finish(failed(), at(0)), LaneChange::Closed);
        assert_eq!(lane.standing(at(999)), Standing::Down(Some(at(1000))));
        assert_eq!(lane.standing(at(1000)), Standing::Free);
        lane.start();
        assert_eq!(lane.standing(at(1000)), Standing::Down(None), "one probe only");
        assert_eq!(lane.finish(failed(), at(1000)), LaneChange::Closed);
        assert_eq!(lane.standing(at(1001)), Standing::Down(Some(at(3000))), "twice as long");
        assert_eq!(lane.standing(at(3000)), Standing::Free);
        lane.start();
        assert_eq!(lane.finish(LaneNews::Works, at(3000)), LaneChange::Opened);
        assert_eq!(lane.standing(at(3000)), Standing::Free);
    }

    #[test]
    fn pauses_as_long_as_the_provider_asks() {
        let mut lane = lane(None);
        let after = Some(Duration::from_secs(7));
        let (reason, detail) = (Reason::Throttled, String::new());
        lane.finish(LaneNews::Failed { reason, detail, after }, at(0));
        assert_eq!(lane.standing(at(6999)), Standing::Down(Some(at(7000))));
        assert_eq!(lane.standing(at(7000)), Standing::Free);
    }

    #[test]
    fn each_throttled_call_was_a_line_in_the_log() {
        let mut lane = lane(None);
        let said: Vec<bool> =
            [0, 1, 59_999, 60_000, 60_001].map(|now| lane.says_pause(at(now))).to_vec();
        assert_eq!(said, [true, false, false, true, false]);
    }

    #[test]
    fn a_refusal_stops_the_lane_until_a_probe_succeeds() {
        let mut lane = lane(None);
        assert_eq!(lane.finish(refused(1, true, None), at(0)), LaneChange::Closed);
        // Late answers of calls that were under way change nothing.
        assert_eq!(lane.finish(LaneNews::Works, at(10)), LaneChange::None);
        assert_eq!(lane.finish(failed(), at(10)), LaneChange::None);
        assert_eq!(lane.standing(at(59_999)), Standing::Down(Some(at(60_000))));
        assert_eq!(lane.standing(at(60_000)), Standing::Free);
        assert_eq!(lane.state(at(60_000)).0, LaneState::Stopped);
        assert_eq!(lane.open(), LaneChange::Opened);
        assert_eq!(lane.state(at(60_000)).0, LaneState::Up);
    }
}
