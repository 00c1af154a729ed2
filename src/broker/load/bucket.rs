//! A token bucket without a lock: one number, which is when everything charged so far is paid for.
//!
//! (The generic cell rate algorithm.) A charge moves that time on by what its units cost; as long
//! as it lies at most a burst ahead of now, there is room. Pure: `now` is a parameter.
//!
//! Invariant: over any long time no more passes than the rate, because a charge is never forgiven
//! and a saved-up burst is never longer than the limit says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nanoseconds since some beginning.
pub(crate) type Nanos = u64;

/// How fast, and how much at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    /// What the configuration calls it.
    pub(crate) limit: &'static str,
    /// 0 for no limit.
    pub(crate) per_second: u32,
    /// As much as the rate allows in this time may come at once.
    pub(crate) burst: Duration,
}

impl Rate {
    /// A full bucket; `None` where there is no limit.
    pub(crate) fn bucket(self) -> Option<Bucket> {
        (self.per_second > 0).then(|| Bucket { rate: self, paid_at: AtomicU64::new(0) })
    }

    fn cost(&self, units: u64) -> Nanos {
        let nanos = u128::from(units) * 1_000_000_000 / u128::from(self.per_second);
        Nanos::try_from(nanos).unwrap_or(Nanos::MAX)
    }

    /// A burst of less than one would let nothing in.
    fn burst(&self) -> Nanos {
        Nanos::try_from(self.burst.as_nanos()).unwrap_or(Nanos::MAX).max(self.cost(1))
    }
}

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    paid_at: AtomicU64,
}

impl Bucket {
    /// What the configuration calls it.
    pub(crate) fn limit(&self) -> &'static str {
        self.rate.limit
    }

    /// Charges `units`, whether or not there is room. How long until there is room again; 0 if
    /// there is some left.
    pub(crate) fn charge(&self, units: u64, now: Nanos) -> Nanos {
        let cost = self.rate.cost(units);
        let mut paid_at = self.paid_at.load(Ordering::Relaxed);
        loop {
            let new = paid_at.max(now).saturating_add(cost);
            let swap = self.paid_at.compare_exchange_weak(
                paid_at,
                new,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match swap {
                Ok(_) => return new.saturating_sub(now.saturating_add(self.rate.burst())),
                Err(other) => paid_at = other,
            }
        }
    }

    /// Takes one if there is room for it.
    pub(crate) fn try_take(&self, now: Nanos) -> bool {
        let (cost, most) = (self.rate.cost(1), now.saturating_add(self.rate.burst()));
        let taken = self.paid_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid_at| {
            let new = paid_at.max(now).saturating_add(cost);
            (new <= most).then_some(new)
        });
        taken.is_ok()
    }

    /// Whether something is left to pay.
    pub(crate) fn is_in_debt(&self, now: Nanos) -> bool {
        self.paid_at.load(Ordering::Relaxed) > now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn bucket(per_second: u32, burst: Duration) -> Bucket {
        Rate { limit: "limit", per_second, burst }.bucket().expect("a limit")
    }

    #[test]
    fn no_rate_is_no_bucket() {
        assert!(Rate { limit: "", per_second: 0, burst: Duration::ZERO }.bucket().is_none());
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let bucket = bucket(10, Duration::from_secs(1));
        let start = 100 * SECOND;
        for _ in 0..10 {
            assert_eq!(bucket.charge(1, start), 0);
        }
        assert_eq!(bucket.charge(1, start), SECOND / 10);
        // Each that comes meanwhile waits for those before it.
        assert_eq!(bucket.charge(1, start), SECOND / 5);
        assert!(bucket.is_in_debt(start + SECOND));
        assert!(!bucket.is_in_debt(start + 2 * SECOND));
        // What was saved up in an hour is one burst.
        let later = start + 3600 * SECOND;
        assert_eq!((0..100).filter(|_| bucket.try_take(later)).count(), 10);
        assert_eq!((0..100).filter(|_| bucket.try_take(later + SECOND / 2)).count(), 5);
    }

    #[test]
    fn one_always_passes_and_what_is_larger_than_a_burst_is_paid_for_afterwards() {
        let slow = bucket(1, Duration::from_millis(10));
        assert!(slow.try_take(0) && !slow.try_take(SECOND / 2) && slow.try_take(SECOND));
        let bytes = bucket(1000, Duration::from_secs(1));
        assert_eq!(bytes.charge(5000, 0), 4 * SECOND);
        assert_eq!(bytes.charge(0, 4 * SECOND), 0);
        assert_eq!(bytes.charge(u64::MAX, 4 * SECOND), u64::MAX - 5 * SECOND);
    }
}
