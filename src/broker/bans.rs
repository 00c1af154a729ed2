//! Who is not let in: by an operator's word, or because of what it did.
//!
//! An operator's bans are in the store (`watchbell ban`) and in memory here; [`tend`] takes their
//! changes and disconnects whom a new one is about. What a client did is counted by [`Tally`]:
//! logins that failed, by user name and address and by address alone, those with tokens by what was
//! verified of them, and connections of one client that come too fast. These counts are in memory
//! and end with the process.
//!
//! Pure but for locks and the store: `now` is a parameter. An IPv6 address counts as its /64, which
//! is what one customer of a provider has.
//!
//! Invariant: each table is bounded, whatever comes; a ban of the store is never forgotten.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::acl::glob_matches;
use super::config::Config;
use crate::clock::Timestamp;
use crate::model::Reason;
use crate::network::Network;
use crate::store::{Ban, BanKind, ReadError, Store};

/// Most keys that a tally holds.
const KEYS_MAX: usize = 16_384;

/// Whom a ban may be about: as much as is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) identity: Option<&'a str>,
    pub(crate) user: Option<&'a str>,
    pub(crate) address: IpAddr,
}

/// The bans of the store.
pub(crate) struct Bans {
    list: ArcSwap<Vec<Known>>,
    changes: watch::Receiver<u64>,
}

/// A ban, ready to be compared.
struct Known {
    ban: Ban,
    network: Option<Network>,
}

impl Bans {
    /// Reads them.
    pub(crate) fn load(store: &Store, now: Timestamp) -> Result<Self, ReadError> {
        // First, so that what changes while they are read is read again.
        let changes = store.bans_changed();
        let bans = Self { list: ArcSwap::default(), changes };
        bans.replace(store.bans(now)?);
        Ok(bans)
    }

    fn replace(&self, bans: Vec<Ban>) {
        let known = |ban: Ban| {
            let is_address = ban.kind == BanKind::Address;
            let network = is_address.then(|| ban.value.parse().ok()).flatten();
            Known { ban, network }
        };
        self.list.store(bans.into_iter().map(known).collect::<Vec<_>>().into());
    }

    /// Whether one of them is about `suspect`.
    pub(crate) fn has(&self, suspect: &Suspect<'_>, now: Timestamp) -> bool {
        self.list.load().iter().any(|known| !known.ban.is_over(now) && known.is_about(suspect))
    }

    /// Whether one of them is about this address.
    pub(crate) fn has_address(&self, address: IpAddr, now: Timestamp) -> bool {
        self.has(&Suspect { client_id: "", identity: None, user: None, address }, now)
    }
}

impl Known {
    fn is_about(&self, suspect: &Suspect<'_>) -> bool {
        let text = match self.ban.kind {
            BanKind::Address => {
                return self.network.is_some_and(|network| network.contains(suspect.address));
            }
            BanKind::ClientId => Some(suspect.client_id).filter(|id| !id.is_empty()),
            BanKind::Identity => suspect.identity,
            BanKind::User => suspect.user,
        };
        text.is_some_and(|text| glob_matches(&self.ban.value, text))
    }
}

/// Takes changes of the bans, and ends the connections of those whom they are about. Runs until
/// dropped.
pub(crate) async fn tend(shared: &Shared, store: &Store) {
    let bans = &shared.bans;
    let mut changes = bans.changes.clone();
    while changes.changed().await.is_ok() {
        let now = shared.hub.clock.now();
        match store.bans(now) {
            Ok(list) => bans.replace(list),
            Err(error) => {
                tracing::error!(%error, "the bans cannot be read; those known stay in force");
                continue;
            }
        }
        let ended = shared.clients.end(Reason::Banned, |session, address| {
            let suspect = Suspect {
                client_id: &session.client_id,
                identity: session.principal.identity.as_deref(),
                user: session.principal.user.as_deref(),
                address,
            };
            bans.has(&suspect, now)
        });
        tracing::info!(
            bans = bans.list.load().len(),
            disconnected = ended,
            "the bans have changed"
        );
    }
}

/// Counts what somebody does too often, and says who is out for it.
#[derive(Debug)]
struct Tally {
    rule: Rule,
    hasher: RandomState,
    table: Mutex<HashMap<u64, Score>>,
}

/// How often is too often, and what follows.
#[derive(Clone, Copy, Debug)]
struct Rule {
    /// So often within the window; 0: as often as one likes.
    most: u32,
    window: Duration,
    /// How long one is out; twice as long each time, up to `out_max`.
    out: Duration,
    out_max: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Score {
    since: Instant,
    count: u32,
    /// How often it was out already.
    times_out: u32,
    out_until: Instant,
}

impl Tally {
    fn new(rule: Rule) -> Self {
        Self { rule, hasher: RandomState::new(), table: Mutex::default() }
    }

    fn is_out(&self, key: impl Hash, now: Instant) -> bool {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(&self.hasher.hash_one(key)).is_some_and(|score| now < score.out_until)
    }

    /// Counts one. Says whether that was one too many.
    fn note(&self, key: impl Hash, now: Instant) -> bool {
        let Rule { most, window, out, out_max } = self.rule;
        if most == 0 {
            return false;
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= KEYS_MAX {
            // What nobody would miss; and everything where that is not enough: a flood of keys is
            // worse than the loss.
            let stale =
                |score: &Score| now >= score.out_until && now.duration_since(score.since) >= window;
            table.retain(|_, score| !stale(score));
            if table.len() >= KEYS_MAX {
                table.clear();
            }
        }
        let fresh = Score { since: now, count: 0, times_out: 0, out_until: now };
        let score = table.entry(self.hasher.hash_one(key)).or_insert(fresh);
        if now.duration_since(score.since) >= window.max(out_max) * 2 {
            *score = fresh;
        } else if now.duration_since(score.since) >= window {
            *score = Score { since: now, count: 0, ..*score };
        }
        score.count += 1;
        if score.count < most {
            return false;
        }
        let doubled = out.saturating_mul(1 << score.times_out.min(16));
        *score = Score {
            since: now,
            count: 0,
            times_out: score.times_out + 1,
            out_until: now + doubled.min(out_max),
        };
        true
    }
}

/// What counts as one address: an IPv6 customer has a /64 at least.
fn whose(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
    }
}

/// From whom a login comes, as far as that is certain before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source<'a> {
    /// From this address, as [`whose`] has it: there may be many behind it.
    Address(IpAddr),
    /// From whoever has the certificate of this identity: what others do is not held against it.
    Certificate(&'a str),
}

impl<'a> Source<'a> {
    pub(crate) fn new(address: IpAddr, identity: Option<&'a str>) -> Self {
        identity.map_or_else(|| Self::Address(whose(address)), Self::Certificate)
    }
}

/// What is certain of a token that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refused<'a> {
    /// A key of ours verifies it, so it is of this holder, and expired or for somebody else.
    Of(&'a str),
    /// Nothing: any bytes could stand there.
    Garbage(&'a [u8]),
}

/// Logins that failed: of each user name from each source, and of each source in all. Those with
/// tokens count by themselves: behind one address many devices may send the same user name, or none
/// that means anything, each with a token of its own.
#[derive(Debug)]
pub(crate) struct FailedLogins {
    users: Tally,
    sources: Tally,
    tokens: Tally,
    garbage: Tally,
}

impl FailedLogins {
    pub(crate) fn new(config: &Config) -> Self {
        let tally = |most: u32| {
            Tally::new(Rule {
                most,
                window: config.failed_logins_window.get(),
                out: config.failed_logins_ban.get(),
                out_max: config.failed_logins_ban_max.get(),
            })
        };
        let (of_one, of_all) = (config.failed_logins_max, config.failed_logins_per_address_max);
        Self {
            users: tally(of_one),
            sources: tally(of_all),
            tokens: tally(of_one),
            garbage: tally(of_all),
        }
    }

    /// Whether this user name is not heard from there.
    pub(crate) fn is_user_out(&self, source: Source<'_>, user: &str, now: Instant) -> bool {
        self.users.is_out((source, user), now)
    }

    /// Whether no password is heard from there.
    pub(crate) fn is_source_out(&self, source: Source<'_>, now: Instant) -> bool {
        self.sources.is_out(source, now)
    }

    /// Whether this token was refused too often.
    pub(crate) fn is_token_out(
        &self,
        source: Source<'_>,
        token: Refused<'_>,
        now: Instant,
    ) -> bool {
        self.tokens.is_out((source, token), now)
    }

    /// Whether too many tokens come from there that are none.
    pub(crate) fn sends_garbage(&self, source: Source<'_>, now: Instant) -> bool {
        self.garbage.is_out(source, now)
    }

    /// Notes a failed login with a password.
    pub(crate) fn note(&self, source: Source<'_>, user: &str, now: Instant) {
        self.note_user(source, user, now);
        if self.sources.note(source, now) {
            tracing::warn!(
                ?source,
                "too many failed logins from there: no password is heard from it for a while, but those that were right a short while ago"
            );
        }
    }

    /// Notes one that says nothing of the address's other users.
    pub(crate) fn note_user(&self, source: Source<'_>, user: &str, now: Instant) {
        if self.users.note((source, user), now) {
            tracing::warn!(
                ?source,
                user,
                "too many failed logins: this user is not heard from there for a while"
            );
        }
    }

    /// Notes a token that was refused. Says whether it, or what comes from there, is refused for a
    /// while; a good one never is.
    pub(crate) fn note_token(&self, source: Source<'_>, token: Refused<'_>, now: Instant) -> bool {
        // One that goes on trying has said what it had to say.
        if self.is_token_out(source, token, now) {
            return true;
        }
        if self.tokens.note((source, token), now) {
            match token {
                Refused::Of(holder) => tracing::warn!(
                    ?source,
                    holder,
                    "too many logins with a token that is signed and refused, as one that has expired: has its device a way to fetch a new one?"
                ),
                Refused::Garbage(_) => tracing::warn!(
                    ?source,
                    "too many logins with a token that none of our keys has signed"
                ),
            }
        }
        if matches!(token, Refused::Garbage(_)) && self.garbage.note(source, now) {
            tracing::warn!(
                ?source,
                "too many different tokens from there that none of our keys has signed"
            );
        }
        self.is_token_out(source, token, now)
            || matches!(token, Refused::Garbage(_)) && self.sends_garbage(source, now)
    }
}

/// How often one client connects.
#[derive(Debug)]
pub(crate) struct Flapping(Tally);

impl Flapping {
    pub(crate) fn new(config: &Config) -> Self {
        let out = config.flapping_ban.get();
        Self(Tally::new(Rule {
            most: config.flapping_connects_max,
            window: config.flapping_window.get(),
            out,
            out_max: out,
        }))
    }

    /// Notes a connection of a client that has authenticated, and says whether it may come in.
    pub(crate) fn may_connect(&self, name: Option<&str>, client_id: &str, now: Instant) -> bool {
        let key = (name, client_id);
        if self.0.is_out(key, now) {
            return false;
        }
        self.0.note(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn ban(kind: BanKind, value: &str, until: Option<i64>) -> Ban {
        let until = until.map(Timestamp::from_millis);
        let (value, added_at) = (value.to_owned(), Timestamp::default());
        Ban { kind, value, until, why: String::new(), added_at }
    }

    #[test]
    fn a_ban_is_about_what_it_names() {
        let (_sender, changes) = watch::channel(0);
        let bans = Bans { list: ArcSwap::default(), changes };
        let suspect = Suspect {
            client_id: "pump-7",
            identity: Some("pump"),
            user: None,
            address: address("192.0.2.7"),
        };
        let now = Timestamp::from_millis(1000);
        for (kind, value, until, expected) in [
            (BanKind::ClientId, "pump-7", None, true),
            (BanKind::ClientId, "pump-*", None, true),
            (BanKind::ClientId, "pump", None, false),
            (BanKind::ClientId, "pump-7", Some(1001), true),
            (BanKind::ClientId, "pump-7", Some(1000), false),
            (BanKind::Identity, "pump", None, true),
            (BanKind::User, "pump", None, false),
            (BanKind::User, "*", None, false),
            (BanKind::Address, "192.0.2.7", None, true),
            (BanKind::Address, "192.0.2.0/24", None, true),
            (BanKind::Address, "198.51.100.0/24", None, false),
        ] {
            bans.replace(vec![ban(kind, value, until)]);
            assert_eq!(bans.has(&suspect, now), expected, "{kind:?} {value}");
        }
        bans.replace(vec![ban(BanKind::ClientId, "*", None)]);
        assert!(!bans.has_address(suspect.address, now), "no client id is known yet");
    }

    fn tally(most: u32) -> Tally {
        let (window, out, out_max) = (60 * SECOND, 60 * SECOND, 180 * SECOND);
        Tally::new(Rule { most, window, out, out_max })
    }

    #[test]
    fn too_often_is_out_for_longer_each_time() {
        let tally = tally(2);
        let mut now = Instant::now();
        for out in [60, 120, 180, 180] {
            assert!(!tally.note("a", now) && !tally.is_out("a", now));
            assert!(tally.note("a", now) && tally.is_out("a", now));
            assert!(!tally.is_out("b", now));
            now += (out - 1) * SECOND;
            assert!(tally.is_out("a", now), "{out}");
            now += SECOND;
            assert!(!tally.is_out("a", now), "{out}");
        }
        // Quiet for long: everything is forgotten.
        now += 180 * SECOND;
        assert!(!tally.note("a", now) && tally.note("a", now));
        assert!(!tally.is_out("a", now + 60 * SECOND));
    }

    #[test]
    fn now_and_then_is_not_too_often() {
        let tally = tally(2);
        let start = Instant::now();
        for number in 0..10 {
            assert!(!tally.note("a", start + number * 60 * SECOND));
        }
        let off = super::tests::tally(0);
        assert!((0..1000).all(|_| !off.note("a", start)));
    }

    #[test]
    fn the_tables_are_bounded() {
        let tally = tally(2);
        let start = Instant::now();
        for number in 0..KEYS_MAX + 1000 {
            tally.note(number, start);
        }
        assert!(tally.table.lock().expect("no panic").len() <= KEYS_MAX);
    }

    #[test]
    fn one_devices_wrong_password_does_not_lock_out_its_neighbours() {
        let config =
            Config { failed_logins_max: 3, failed_logins_per_address_max: 5, ..Config::default() };
        let failed = FailedLogins::new(&config);
        let now = Instant::now();
        let at = |text| Source::new(address(text), None);
        let here = at("2001:db8::1");
        for _ in 0..3 {
            failed.note(here, "a", now);
        }
        assert!(failed.is_user_out(here, "a", now));
        assert!(!failed.is_user_out(here, "b", now) && !failed.is_source_out(here, now));
        assert!(!failed.is_user_out(at("2001:db8:1::1"), "a", now));
        for _ in 0..2 {
            failed.note(at("2001:db8::2"), "b", now);
        }
        assert!(failed.is_source_out(here, now), "the same /64");
        assert!(!failed.is_user_out(here, "b", now));
        // Whoever shows a certificate is not just anybody behind that address.
        let known = Source::new(address("2001:db8::1"), Some("pump"));
        assert!(!failed.is_user_out(known, "a", now) && !failed.is_source_out(known, now));
    }

    #[test]
    fn one_expired_token_counts_for_its_holder_and_garbage_for_garbage() {
        let config =
            Config { failed_logins_max: 3, failed_logins_per_address_max: 5, ..Config::default() };
        let failed = FailedLogins::new(&config);
        let now = Instant::now();
        let here = Source::new(address("192.0.2.7"), None);
        let old = Refused::Of("issuer/pump-1");
        let outs: Vec<bool> = (0..100).map(|_| failed.note_token(here, old, now)).collect();
        assert_eq!(outs.iter().position(|out| *out), Some(2));
        assert!(!failed.is_token_out(here, Refused::Of("issuer/pump-2"), now));
        assert!(!failed.sends_garbage(here, now));
        // The same garbage again and again is one device that was set up wrong.
        for _ in 0..100 {
            failed.note_token(here, Refused::Garbage(b"a"), now);
        }
        assert!(failed.is_token_out(here, Refused::Garbage(b"a"), now));
        assert!(!failed.sends_garbage(here, now));
        failed.note_token(here, Refused::Garbage(b"b"), now);
        assert!(failed.note_token(here, Refused::Garbage(b"c"), now));
        assert!(failed.sends_garbage(here, now));
        // None of it says anything of passwords.
        assert!(!failed.is_user_out(here, "", now) && !failed.is_source_out(here, now));
    }

    #[test]
    fn a_client_that_flaps_is_out_and_comes_back() {
        let config = Config { flapping_connects_max: 3, ..Config::default() };
        let flapping = Flapping::new(&config);
        let now = Instant::now();
        for _ in 0..3 {
            assert!(flapping.may_connect(Some("pump"), "pump-1", now));
        }
        assert!(!flapping.may_connect(Some("pump"), "pump-1", now));
        assert!(flapping.may_connect(Some("pump"), "pump-2", now));
        assert!(flapping.may_connect(None, "pump-1", now));
        assert!(flapping.may_connect(Some("pump"), "pump-1", now + config.flapping_ban.get()));
    }
}
