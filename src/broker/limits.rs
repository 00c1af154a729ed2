//! Limits by address: open connections, and how often a failure is logged in full.
//!
//! Pure but for its locks: `now` is a parameter. Whom limits do not hold for (`limits_exempt`) is
//! for the caller to say.
//!
//! Invariant: each table is bounded, whatever addresses come.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Reason;

/// How long a logged failure keeps the next ones quiet.
const WINDOW: Duration = Duration::from_secs(60);
/// Most different failures of one address that are logged in full within the window.
const FAILURES_MAX: usize = 20;
/// Most addresses that a table holds.
const ADDRESSES_MAX: usize = 4096;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Open connections of each address.
#[derive(Debug)]
pub(crate) struct Addresses {
    each_max: usize,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's place; gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Addresses {
    pub(crate) fn new(each_max: usize) -> Arc<Self> {
        Arc::new(Self { each_max, open: Mutex::default() })
    }

    /// A place for one more connection from `address`; `Err` if it has its fill. Bounded by the
    /// connections that are open.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Reason> {
        let address = address.to_canonical();
        let mut open = lock(&self.open);
        let count = open.entry(address).or_insert(0);
        if *count >= self.each_max {
            return Err(Reason::TooMany);
        }
        *count += 1;
        Ok(Place { addresses: Arc::clone(self), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = lock(&self.addresses.open);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Which failures were logged within the last minute.
#[derive(Debug, Default)]
pub(crate) struct Repeats {
    hasher: RandomState,
    table: Mutex<HashMap<IpAddr, (Instant, HashSet<u64>)>>,
}

impl Repeats {
    /// Whether this failure of this address is the first of its kind for a minute, and the address
    /// has not filled the log with others: then it should be seen.
    pub(crate) fn is_first(&self, address: IpAddr, failure: impl Hash, now: Instant) -> bool {
        let failure = self.hasher.hash_one(failure);
        let mut table = lock(&self.table);
        make_room(&mut table, now, |(since, _)| *since);
        let (since, seen) =
            table.entry(address.to_canonical()).or_insert_with(|| (now, HashSet::new()));
        if now.duration_since(*since) >= WINDOW {
            *since = now;
            seen.clear();
        }
        seen.len() < FAILURES_MAX && seen.insert(failure)
    }
}

/// Drops what is past, and everything where that is not enough: the flood is worse than the loss.
fn make_room<K: std::hash::Hash + Eq, V>(
    table: &mut HashMap<K, V>,
    now: Instant,
    since: impl Fn(&V) -> Instant,
) {
    if table.len() < ADDRESSES_MAX {
        return;
    }
    table.retain(|_, value| now.duration_since(since(value)) < WINDOW);
    if table.len() >= ADDRESSES_MAX {
        table.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn an_address_has_its_places_and_gets_them_back() {
        let addresses = Addresses::new(2);
        let first = addresses.enter(address(1));
        let second = addresses.enter(address(1));
        assert!(first.is_ok() && second.is_ok());
        assert!(addresses.enter(address(1)).is_err());
        assert!(addresses.enter(address(2)).is_ok());
        drop(second);
        assert!(addresses.enter(address(1)).is_ok());
        drop(first);
        assert!(lock(&addresses.open).is_empty());
    }

    #[test]
    fn a_repeated_failure_is_seen_once_a_minute() {
        let repeats = Repeats::default();
        let start = Instant::now();
        assert!(repeats.is_first(address(1), "a", start));
        assert!(!repeats.is_first(address(1), "a", start));
        assert!(repeats.is_first(address(1), "b", start));
        assert!(repeats.is_first(address(2), "a", start));
        assert!(repeats.is_first(address(1), "a", start + WINDOW));
        let seen = (0..1000).filter(|n| repeats.is_first(address(3), n, start)).count();
        assert_eq!(seen, FAILURES_MAX);
    }

    #[test]
    fn the_tables_are_bounded() {
        let repeats = Repeats::default();
        let start = Instant::now();
        for number in 0..10_000_u32 {
            repeats.is_first(IpAddr::from(number.to_be_bytes()), "a", start);
        }
        assert!(lock(&repeats.table).len() <= ADDRESSES_MAX);
    }
}
