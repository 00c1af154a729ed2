//! The endpoints that messages go to: the hosts of webhooks, and single recipients with a quota of
//! their own. Each has places, pauses and a breaker of its own before its lane, so that one that is
//! dead holds up nobody else.
//!
//! Pure. A [`Peer`] is a hash, so that the queue keeps eight bytes for it and no address; only those
//! with calls under way or in trouble are known ([`Peers`]), and no more than the configuration
//! allows.
//!
//! **Invariant:** an endpoint that is not known is free.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::{BreakerConfig, EndpointConfig, LaneState};
use crate::clock::Timestamp;
use crate::model::{Address, Channel, Reason, Target};

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Peer(u64);

impl Peer {
    pub(super) fn of(target: &Target) -> Self {
        let mut hasher = DefaultHasher::new();
        target.channel.hash(&mut hasher);
        match &target.address {
            Address::Url(url) => host(url).hash(&mut hasher),
            address => address.expose().hash(&mut hasher),
        }
        Self(hasher.finish())
    }

    #[cfg(test)]
    pub(super) fn numbered(number: u64) -> Self {
        Self(number)
    }
}

/// `scheme://host:port` of a URL, without credentials, path and query; those may be secrets.
pub(super) fn host(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let rest = url.get(start..).unwrap_or_default();
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// What people call the endpoint: a webhook's host, else the masked address.
pub(super) fn name(target: &Target) -> Arc<str> {
    match &target.address {
        Address::Url(url) => host(url).into(),
        address => address.to_string().into(),
    }
}

/// What a call says of its endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PeerNews {
    /// It answers.
    Works,
    /// It failed, or asks for a pause.
    Failed { name: Arc<str>, reason: Reason, detail: String, after: Option<Duration> },
    /// Nothing was learned.
    Nothing,
}

/// Whether an endpoint can take a message now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerStanding {
    /// It can: so many.
    Free(usize),
    /// One, to see whether it works again.
    Probe,
    /// When a call ends.
    Busy,
    /// Not before then.
    Down(Timestamp),
}

/// An endpoint in trouble, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) name: Arc<str>,
    pub(super) state: LaneState,
    pub(super) until: Timestamp,
    pub(super) reason: Reason,
    pub(super) detail: String,
}

#[derive(Debug, Default)]
struct State {
    in_flight: usize,
    failures: u32,
    cooldown: Option<Duration>,
    trouble: Option<Trouble>,
}

/// The endpoints with calls under way or in trouble.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: HashMap<Peer, State>,
    config: EndpointConfig,
    breaker: BreakerConfig,
    /// Calls under way to those that failed when last heard of.
    suspects_in_flight: usize,
}

/// So long a pause is honoured.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

impl Peers {
    pub(super) fn new(config: EndpointConfig, breaker: BreakerConfig) -> Self {
        Self { config, breaker, ..Self::default() }
    }

    pub(super) fn standing(&self, peer: Peer, channel: Channel, now: Timestamp) -> PeerStanding {
        let places = if channel == Channel::Webhook { self.config.concurrency } else { usize::MAX };
        let Some(state) = self.known.get(&peer) else { return PeerStanding::Free(places) };
        if let Some(trouble) = &state.trouble {
            if now < trouble.until {
                return PeerStanding::Down(trouble.until);
            }
            if trouble.state == LaneState::BreakerOpen {
                let is_idle = state.in_flight == 0;
                return if is_idle { PeerStanding::Probe } else { PeerStanding::Busy };
            }
        }
        match places.saturating_sub(state.in_flight) {
            0 => PeerStanding::Busy,
            left => PeerStanding::Free(left),
        }
    }

    /// Whether it failed when it was last heard of, and those like it have `places` already.
    pub(super) fn is_one_too_many(&self, peer: Peer, places: usize) -> bool {
        self.suspects_in_flight >= places && self.is_suspect(peer)
    }

    fn is_suspect(&self, peer: Peer) -> bool {
        self.known.get(&peer).is_some_and(|state| state.failures > 0)
    }

    /// Takes a place.
    pub(super) fn start(&mut self, peer: Peer, channel: Channel) {
        if channel == Channel::Webhook {
            self.make_room();
            self.suspects_in_flight += usize::from(self.is_suspect(peer));
            self.known.entry(peer).or_default().in_flight += 1;
        }
    }

    /// Gives the place back, and draws the conclusions. Returns the trouble that is worth a line in
    /// the log: one that has begun (`true`) or is over.
    pub(super) fn finish(
        &mut self,
        peer: Peer,
        news: PeerNews,
        now: Timestamp,
    ) -> Option<(bool, Trouble)> {
        if !self.known.contains_key(&peer) {
            if !matches!(news, PeerNews::Failed { .. }) {
                return None;
            }
            self.make_room();
        }
        let was_suspect = self.is_suspect(peer);
        let state = self.known.entry(peer).or_default();
        let had_place = state.in_flight > 0;
        state.in_flight = state.in_flight.saturating_sub(1);
        let said = match news {
            PeerNews::Nothing => None,
            PeerNews::Works => {
                (state.failures, state.cooldown) = (0, None);
                // A pause is kept: another call may have been told to wait.
                let is_paused = |one: &Trouble| one.state == LaneState::Paused && now < one.until;
                match state.trouble.take() {
                    Some(trouble) if is_paused(&trouble) => {
                        state.trouble = Some(trouble);
                        None
                    }
                    over => over
                        .filter(|one| one.state == LaneState::BreakerOpen)
                        .map(|one| (false, one)),
                }
            }
            PeerNews::Failed { name, reason, detail, after } => {
                state.failures = state.failures.saturating_add(1);
                let before = state.trouble.as_ref().map(|one| (one.state, one.until));
                let is_probe = before
                    .is_some_and(|(one, until)| one == LaneState::BreakerOpen && now >= until);
                let (kind, until) = match after {
                    Some(after) => (LaneState::Paused, now.plus(after.min(PAUSE_MAX))),
                    None if is_probe || state.failures >= self.breaker.failures => {
                        let first = self.breaker.first.into();
                        let cooldown: Duration = state.cooldown.unwrap_or(first);
                        let is_new = is_probe || before.is_none_or(|(_, until)| now >= until);
                        if is_new {
                            state.cooldown = Some((cooldown * 2).min(self.breaker.max.into()));
                        }
                        (LaneState::BreakerOpen, now.plus(cooldown))
                    }
                    None => (LaneState::Up, now),
                };
                let is_longer = before.is_none_or(|(_, known)| until > known);
                if kind != LaneState::Up && is_longer {
                    let trouble = Trouble { name, state: kind, until, reason, detail };
                    state.trouble = Some(trouble.clone());
                    // Said once, until it works again.
                    let known = before.is_some_and(|(one, _)| one == LaneState::BreakerOpen);
                    (kind == LaneState::BreakerOpen && !known).then_some((true, trouble))
                } else {
                    None
                }
            }
        };
        let is_idle = state.in_flight == 0 && state.failures == 0 && state.trouble.is_none();
        if is_idle {
            self.known.remove(&peer);
        }
        // The others under way to it count as what they are now.
        let others = self.known.get(&peer).map_or(0, |state| state.in_flight);
        let is_suspect = self.is_suspect(peer);
        let before = if was_suspect { others + usize::from(had_place) } else { 0 };
        let after = if is_suspect { others } else { 0 };
        self.suspects_in_flight = (self.suspects_in_flight + after).saturating_sub(before);
        said
    }

    /// Those in trouble.
    pub(super) fn troubles(&self, now: Timestamp) -> impl Iterator<Item = (Peer, &Trouble)> {
        self.known.iter().filter_map(move |(peer, state)| {
            let trouble = state.trouble.as_ref()?;
            (trouble.state == LaneState::BreakerOpen || now < trouble.until)
                .then_some((*peer, trouble))
        })
    }

    /// What is wrong with this one.
    pub(super) fn trouble_of(&self, peer: Peer, now: Timestamp) -> Option<&Trouble> {
        let trouble = self.known.get(&peer)?.trouble.as_ref()?;
        (trouble.state == LaneState::BreakerOpen || now < trouble.until).then_some(trouble)
    }

    /// Forgets the one whose trouble is over first, where the table is full.
    fn make_room(&mut self) {
        if self.known.len() < self.config.count_max {
            return;
        }
        let idle = self.known.iter().filter(|(_, state)| state.in_flight == 0);
        let first = idle.min_by_key(|(_, state)| state.trouble.as_ref().map(|one| one.until));
        if let Some(peer) = first.map(|(peer, _)| *peer) {
            self.known.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::span::Span;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn peers(count_max: usize) -> Peers {
        let breaker = BreakerConfig {
            failures: 3,
            first: Span::from_secs(1),
            max: Span::from_secs(4),
            ..BreakerConfig::default()
        };
        Peers::new(EndpointConfig { concurrency: 2, count_max }, breaker)
    }

    fn failed(after: Option<u64>) -> PeerNews {
        let after = after.map(Duration::from_secs);
        let (reason, detail) = (Reason::NoAnswer, "no answer".to_owned());
        PeerNews::Failed { name: "a.example".into(), reason, detail, after }
    }

    const ONE: Peer = Peer(1);
    const HOOK: Channel = Channel::Webhook;

    #[test]
    fn an_endpoint_has_its_places_and_a_breaker_of_its_own() {
        let mut peers = peers(100);
        peers.start(ONE, HOOK);
        assert_eq!(peers.standing(ONE, HOOK, at(0)), PeerStanding::Free(1));
        peers.start(ONE, HOOK);
        assert_eq!(peers.standing(ONE, HOOK, at(0)), PeerStanding::Busy);
        assert_eq!(peers.standing(Peer(2), HOOK, at(0)), PeerStanding::Free(2));
        let said: Vec<bool> = (0..3)
            .map(|_| {
                peers.start(ONE, HOOK);
                peers.finish(ONE, failed(None), at(0)).is_some_and(|(begun, _)| begun)
            })
            .collect();
        assert_eq!(said, [false, false, true]);
        assert_eq!(peers.finish(ONE, PeerNews::Nothing, at(0)), None);
        assert_eq!(peers.finish(ONE, PeerNews::Nothing, at(0)), None);
        assert_eq!(peers.standing(ONE, HOOK, at(999)), PeerStanding::Down(at(1000)));
        assert_eq!(peers.standing(ONE, HOOK, at(1000)), PeerStanding::Probe);
        peers.start(ONE, HOOK);
        assert_eq!(peers.standing(ONE, HOOK, at(1000)), PeerStanding::Busy, "one probe only");
        assert_eq!(peers.finish(ONE, failed(None), at(1000)), None, "said once");
        assert_eq!(peers.standing(ONE, HOOK, at(1000)), PeerStanding::Down(at(3000)));
        peers.start(ONE, HOOK);
        let over = peers.finish(ONE, PeerNews::Works, at(3000));
        assert!(over.is_some_and(|(begun, _)| !begun));
        assert_eq!(peers.standing(ONE, HOOK, at(3000)), PeerStanding::Free(2));
        assert_eq!((peers.known.len(), peers.suspects_in_flight), (0, 0));
    }

    #[test]
    fn the_quota_of_a_recipient_is_a_pause_and_no_limit_of_places() {
        let mut peers = peers(100);
        assert_eq!(peers.finish(ONE, failed(Some(60)), at(0)), None);
        assert_eq!(peers.standing(ONE, Channel::Push, at(1)), PeerStanding::Down(at(60_000)));
        peers.finish(ONE, PeerNews::Works, at(10));
        assert_eq!(peers.standing(ONE, Channel::Push, at(11)), PeerStanding::Down(at(60_000)));
        assert_eq!(peers.standing(ONE, Channel::Push, at(60_000)), PeerStanding::Free(usize::MAX));
    }

    #[test]
    fn those_that_fail_share_a_part_of_the_lane() {
        let mut peers = peers(100);
        for number in 0..3 {
            peers.finish(Peer(number), failed(None), at(0));
            assert!(!peers.is_one_too_many(Peer(number), 2) || number == 2);
            peers.start(Peer(number), HOOK);
        }
        assert!(peers.is_one_too_many(ONE, 3) && !peers.is_one_too_many(Peer(9), 3));
        peers.finish(ONE, PeerNews::Works, at(0));
        assert_eq!(peers.suspects_in_flight, 2);
    }

    #[test]
    fn no_more_are_known_than_the_configuration_allows() {
        let mut peers = peers(10);
        for number in 0..100 {
            peers.finish(Peer(number), failed(Some(number + 1)), at(0));
        }
        assert_eq!(peers.known.len(), 10);
        assert_eq!(peers.troubles(at(0)).count(), 10);
        assert_eq!(peers.standing(Peer(99), HOOK, at(0)), PeerStanding::Down(at(100_000)));
    }

    #[test]
    fn a_webhook_is_known_by_its_host_and_others_by_their_address() {
        for (url, name) in [
            ("https://hooks.example.org/a?b=c", "hooks.example.org"),
            ("https://user:secret@hooks.example.org:8443/a", "hooks.example.org:8443"),
            ("http://[::1]:80/x", "[::1]:80"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(host(url), name);
        }
        let hook = |url: &str| {
            Peer::of(&Target { channel: Channel::Webhook, address: Address::Url(url.into()) })
        };
        assert_eq!(hook("https://a.example/1"), hook("https://a.example/2"));
        assert_ne!(hook("https://a.example/1"), hook("https://b.example/1"));
        let push = |token: &str| {
            Peer::of(&Target { channel: Channel::Push, address: Address::Token(token.into()) })
        };
        assert_ne!(push("one"), push("two"));
    }
}
