//! Limits on load, `[broker.limits]`: how fast clients may send and connect, and how much of the
//! broker's memory one identity may have.
//!
//! Four scopes stand over a connection: the client, its identity (all connections that have
//! authenticated by one name), its listener, and all together. A rate is a [`Bucket`]; what a
//! client sends is charged to the buckets of all its scopes, and it is not read from again before
//! each of them has room. So nothing is refused and nothing gets lost: TCP slows the sender down.
//! Only new connections over their rate are closed, before they have cost a handshake.
//!
//! [`Input`] bounds what all clients together have begun to send and not ended.
//!
//! Invariants: a limit that is off costs nothing on a publish; no lock is taken on a publish; the
//! tables by identity and address are bounded, whatever comes.

pub(super) mod bucket;
pub(super) mod config;
pub(super) mod handshakes;
pub(super) mod quota;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use self::bucket::{Bucket, Nanos, Rate};
use self::config::Limits;
use crate::model::Reason;

/// Identities and addresses that are remembered though nothing of theirs is open; with more, the
/// oldest debts are forgiven.
const REMEMBERED_MAX: usize = 4096;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packets that have begun and are no longer than this are not counted: with TLS records and
/// packets behind each other, everybody has such a one now and then.
const INPUT_FREE: usize = 32 << 10;

/// The load on the whole broker.
pub(crate) struct Load {
    limits: Limits,
    epoch: Instant,
    total: Arc<Scope>,
    identities: Mutex<HashMap<Arc<str>, Arc<Identity>>>,
    addresses: Mutex<HashMap<IpAddr, Bucket>>,
    input_bytes: Arc<AtomicUsize>,
}

/// The buckets of a client, an identity, a listener, or of all.
#[derive(Debug)]
pub(crate) struct Scope {
    publishes: Option<Bucket>,
    bytes: Option<Bucket>,
    handshakes: Option<Bucket>,
}

/// All connections that have authenticated by one name.
struct Identity {
    scope: Arc<Scope>,
    connections: AtomicUsize,
}

/// A connection's share of its identity's limit; gives it back when dropped.
pub(crate) struct IdentityPlace(Arc<Identity>);

impl Drop for IdentityPlace {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one connection holds of a packet that has begun; gives it back when dropped.
pub(crate) struct Input {
    all: Arc<AtomicUsize>,
    most: usize,
    mine: usize,
}

impl Input {
    /// Notes how much it is now; false if it has grown and all together are too much.
    pub(crate) fn note(&mut self, bytes: usize) -> bool {
        let bytes = if bytes > INPUT_FREE { bytes } else { 0 };
        let before = std::mem::replace(&mut self.mine, bytes);
        if bytes == before {
            // Nearly always: the counter that all share is left alone.
            return true;
        }
        if bytes < before {
            self.all.fetch_sub(before - bytes, Ordering::Relaxed);
            return true;
        }
        let more = bytes - before;
        self.all.fetch_add(more, Ordering::Relaxed).saturating_add(more) <= self.most
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.all.fetch_sub(self.mine, Ordering::Relaxed);
    }
}

/// How fast one connection may go on.
pub(crate) struct Pace {
    epoch: Instant,
    scopes: Vec<Arc<Scope>>,
}

/// Reading has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) until: Instant,
    /// The limit, as the configuration calls it.
    pub(crate) limit: &'static str,
}

/// Nanoseconds since the broker began.
fn nanos(epoch: Instant, now: Instant) -> Nanos {
    Nanos::try_from(now.duration_since(epoch).as_nanos()).unwrap_or(Nanos::MAX)
}

impl Load {
    pub(crate) fn new(limits: Limits) -> Self {
        let total = &limits.total;
        let burst = total.burst.get();
        let rate = |limit, per_second| Rate { limit, per_second, burst };
        let total = Scope {
            publishes: rate("broker.limits.total.publishes_per_second", total.publishes_per_second)
                .bucket(),
            bytes: rate("broker.limits.total.bytes_per_second", total.bytes_per_second).bucket(),
            handshakes: rate(
                "broker.limits.total.handshakes_per_second",
                total.handshakes_per_second,
            )
            .bucket(),
        };
        Self {
            limits,
            epoch: Instant::now(),
            total: Arc::new(total),
            identities: Mutex::default(),
            addresses: Mutex::default(),
            input_bytes: Arc::default(),
        }
    }

    /// The buckets of one more listener.
    pub(crate) fn listener(&self) -> Arc<Scope> {
        let limits = &self.limits.listener;
        let burst = limits.burst.get();
        let rate = |limit, per_second| Rate { limit, per_second, burst }.bucket();
        Arc::new(Scope {
            publishes: rate(
                "broker.limits.listener.publishes_per_second",
                limits.publishes_per_second,
            ),
            bytes: rate("broker.limits.listener.bytes_per_second", limits.bytes_per_second),
            handshakes: rate(
                "broker.limits.listener.handshakes_per_second",
                limits.handshakes_per_second,
            ),
        })
    }

    /// Whether one more connection may begin; the limit that forbids it. `address` is `None` for
    /// one that is exempt from limits by address.
    pub(crate) fn may_begin(
        &self,
        listener: &Scope,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<(), &'static str> {
        let now = nanos(self.epoch, now);
        // The narrowest first: one address that storms is not to use up what is for all.
        if let Some(address) = address {
            self.address_may_begin(address, now)?;
        }
        for scope in [listener, &*self.total] {
            if let Some(bucket) = &scope.handshakes
                && !bucket.try_take(now)
            {
                return Err(bucket.limit());
            }
        }
        Ok(())
    }

    fn address_may_begin(&self, address: IpAddr, now: Nanos) -> Result<(), &'static str> {
        let limits = &self.limits.address;
        let limit = "broker.limits.address.handshakes_per_second";
        let rate =
            Rate { limit, per_second: limits.handshakes_per_second, burst: limits.burst.get() };
        let Some(fresh) = rate.bucket() else {
            return Ok(());
        };
        let mut addresses = lock(&self.addresses);
        if addresses.len() >= REMEMBERED_MAX {
            addresses.retain(|_, bucket| bucket.is_in_debt(now));
            if addresses.len() >= REMEMBERED_MAX {
                addresses.clear();
            }
        }
        let bucket = addresses.entry(network(address)).or_insert(fresh);
        if bucket.try_take(now) { Ok(()) } else { Err(limit) }
    }

    /// A place for one more connection of `identity`. `replaces` says that it is to take over one
    /// that is open: that one ends, so it may be one too many for a moment.
    pub(crate) fn enter(
        &self,
        identity: &Arc<str>,
        replaces: bool,
        now: Instant,
    ) -> Result<IdentityPlace, Reason> {
        let place = IdentityPlace(self.identity(identity, nanos(self.epoch, now)));
        let before = place.0.connections.fetch_add(1, Ordering::Relaxed);
        let most = self.limits.identity.connections_max;
        // The place is given back on the way out.
        if most > 0 && before >= most && !replaces { Err(Reason::TooMany) } else { Ok(place) }
    }

    fn identity(&self, name: &Arc<str>, now: Nanos) -> Arc<Identity> {
        let mut identities = lock(&self.identities);
        if let Some(identity) = identities.get(name) {
            return Arc::clone(identity);
        }
        let idle = |identity: &Arc<Identity>| Arc::strong_count(identity) == 1;
        if identities.len() >= REMEMBERED_MAX && identities.len().is_power_of_two() {
            identities.retain(|_, identity| !idle(identity) || identity.scope.is_in_debt(now));
            if identities.len() >= 2 * REMEMBERED_MAX {
                identities.retain(|_, identity| !idle(identity));
            }
        }
        let limits = &self.limits.identity;
        let burst = limits.burst.get();
        let rate = |limit, per_second| Rate { limit, per_second, burst }.bucket();
        let identity = Arc::new(Identity {
            scope: Arc::new(Scope {
                publishes: rate(
                    "broker.limits.identity.publishes_per_second",
                    limits.publishes_per_second,
                ),
                bytes: rate("broker.limits.identity.bytes_per_second", limits.bytes_per_second),
                handshakes: None,
            }),
            connections: AtomicUsize::new(0),
        });
        identities.insert(Arc::clone(name), Arc::clone(&identity));
        identity
    }

    /// What a new connection holds of packets that have begun: nothing.
    pub(crate) fn input(&self) -> Input {
        Input {
            all: Arc::clone(&self.input_bytes),
            most: self.limits.total.input_bytes_max,
            mine: 0,
        }
    }

    /// The pace of a new connection; `None` where nothing limits it.
    pub(crate) fn pace(
        &self,
        identity: Option<&IdentityPlace>,
        listener: &Arc<Scope>,
    ) -> Option<Box<Pace>> {
        let limits = &self.limits.client;
        let burst = limits.burst.get();
        let rate = |limit, per_second| Rate { limit, per_second, burst }.bucket();
        let client = Arc::new(Scope {
            publishes: rate(
                "broker.limits.client.publishes_per_second",
                limits.publishes_per_second,
            ),
            bytes: rate("broker.limits.client.bytes_per_second", limits.bytes_per_second),
            handshakes: None,
        });
        let identity = identity.map(|place| &place.0.scope);
        let scopes: Vec<_> = [Some(&client), identity, Some(listener), Some(&self.total)]
            .into_iter()
            .flatten()
            .filter(|scope| scope.publishes.is_some() || scope.bytes.is_some())
            .map(Arc::clone)
            .collect();
        (!scopes.is_empty()).then(|| Box::new(Pace { epoch: self.epoch, scopes }))
    }
}

impl Scope {
    fn is_in_debt(&self, now: Nanos) -> bool {
        [&self.publishes, &self.bytes].into_iter().flatten().any(|bucket| bucket.is_in_debt(now))
    }
}

impl Pace {
    /// Charges what was received. `Some` where reading has to wait, and for which limit longest.
    pub(crate) fn charge(&self, publishes: u64, bytes: u64, now: Instant) -> Option<Pause> {
        let nanos = nanos(self.epoch, now);
        let mut longest: Option<(Nanos, &'static str)> = None;
        for scope in &self.scopes {
            for (bucket, units) in [(&scope.publishes, publishes), (&scope.bytes, bytes)] {
                let Some(bucket) = bucket else { continue };
                let wait = bucket.charge(units, nanos);
                if wait > longest.map_or(0, |(wait, _)| wait) {
                    longest = Some((wait, bucket.limit()));
                }
            }
        }
        longest.map(|(wait, limit)| Pause { until: now + Duration::from_nanos(wait), limit })
    }
}

/// What counts as one address: of IPv6 the network, because a subscriber has all of it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str) -> Load {
        Load::new(toml::from_str(toml).expect("valid"))
    }

    #[test]
    fn what_is_not_limited_has_no_pace() {
        let load = load("");
        let place = load.enter(&"a".into(), false, Instant::now()).ok();
        assert!(load.pace(place.as_ref(), &load.listener()).is_none());
    }

    #[test]
    fn each_scope_slows_whoever_is_in_it() {
        for (scope, same_identity, same_listener, other) in [
            ("client", false, false, false),
            ("identity", true, false, false),
            ("listener", false, true, false),
            ("total", true, true, true),
        ] {
            let load = load(&format!("{scope}.publishes_per_second = 1"));
            let now = Instant::now();
            let is_slow = |identity: &str, listener: &Arc<Scope>| {
                let place = load.enter(&identity.into(), false, now).ok();
                let pace = load.pace(place.as_ref(), listener);
                pace.is_some_and(|pace| pace.charge(1, 9, now).is_some())
            };
            let here = load.listener();
            assert!(!is_slow("ana", &here), "{scope}: the burst");
            for (name, identity, listener, expected) in [
                ("same identity", "ana", &load.listener(), same_identity),
                ("same listener", "ben", &here, same_listener),
                ("other", "cleo", &load.listener(), other),
            ] {
                assert_eq!(is_slow(identity, listener), expected, "{scope}: {name}");
            }
        }
    }

    #[test]
    fn an_identity_has_its_connections_and_one_more_for_a_takeover() {
        let load = load("identity.connections_max = 1");
        let now = Instant::now();
        let ana: Arc<str> = "ana".into();
        let first = load.enter(&ana, false, now).ok();
        assert!(first.is_some());
        assert_eq!(load.enter(&ana, false, now).err(), Some(Reason::TooMany));
        assert!(load.enter(&"ben".into(), false, now).is_ok());
        let second = load.enter(&ana, true, now).ok();
        drop(first);
        assert_eq!(load.enter(&ana, false, now).err(), Some(Reason::TooMany));
        drop(second);
        assert!(load.enter(&ana, false, now).is_ok());
    }

    #[test]
    fn an_address_that_storms_does_not_use_up_what_is_for_all() {
        let load = load(
            "address = { handshakes_per_second = 2, burst = '1s' }\n\
             total.handshakes_per_second = 4",
        );
        let (now, listener) = (Instant::now(), load.listener());
        let begins = |text: &str, now| {
            load.may_begin(&listener, Some(text.parse().expect("an address")), now)
        };
        let of_address = Err("broker.limits.address.handshakes_per_second");
        for (address, expected) in [
            ("192.0.2.1", Ok(())),
            ("192.0.2.1", Ok(())),
            ("192.0.2.1", of_address),
            ("::ffff:192.0.2.1", of_address),
            ("2001:db8::1", Ok(())),
            ("2001:db8::2", Ok(())),
            ("2001:db8::3", of_address),
            ("2001:db8:0:1::1", Err("broker.limits.total.handshakes_per_second")),
        ] {
            assert_eq!(begins(address, now), expected, "{address}");
        }
        assert_eq!(begins("192.0.2.1", now + Duration::from_secs(1)), Ok(()));
        assert_eq!(load.may_begin(&listener, None, now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn the_tables_are_bounded() {
        let load = load("address.handshakes_per_second = 1\nidentity.publishes_per_second = 1");
        let (now, listener) = (Instant::now(), load.listener());
        for number in 0..20_000_u32 {
            let address = IpAddr::from(number.to_be_bytes());
            assert_eq!(load.may_begin(&listener, Some(address), now), Ok(()));
            let place = load.enter(&number.to_string().into(), false, now).ok();
            let pace = load.pace(place.as_ref(), &listener).expect("a limit");
            pace.charge(100, 0, now);
        }
        assert!(lock(&load.addresses).len() <= REMEMBERED_MAX);
        assert!(lock(&load.identities).len() <= 2 * REMEMBERED_MAX);
    }
}
