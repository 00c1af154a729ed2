//! Time as a value, and the two times that there are.
//!
//! [`Timestamp`] is our own time, which all durations live on: what is stored and compared. It goes on
//! whatever happens to the wall clock ([`mod@line`]). [`wall::WallTime`] is what people, devices, calendars
//! and certificates mean, and each boundary where one becomes the other says so: `wall()`, `ours()`.
//! While nobody sets the wall clock, both are the same number.
//!
//! Nothing else in Watchbell reads the machine's clocks: functions take `now`, loops ask a [`Clock`].
//! That is what lets tests of timers, back-off and expiry run without waiting.

pub mod line;
pub mod machine;
pub mod wall;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::line::{Begun, Line, Saved, Step};
use self::machine::Source;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in our own time: milliseconds since the Unix epoch, UTC, by a clock that nobody sets.
///
/// Kept as the distance from the earliest time there is, so that an `Option` of it takes no more: an
/// instance of a rule has eight of them, and there may be a million instances.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(NonZeroU64);

/// The epoch's distance from the earliest time, as a bit: 2^63 milliseconds.
const EPOCH: u64 = 1 << 63;

impl Timestamp {
    /// The latest time there is: "never".
    pub const MAX: Self = Self(NonZeroU64::MAX);

    /// From milliseconds since the Unix epoch; [`i64::MIN`] is taken for the next.
    pub const fn from_millis(millis: i64) -> Self {
        match NonZeroU64::new(millis.cast_unsigned() ^ EPOCH) {
            Some(distance) => Self(distance),
            None => Self(NonZeroU64::MIN),
        }
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        (self.0.get() ^ EPOCH).cast_signed()
    }

    /// Whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> i64 {
        self.as_millis().div_euclid(1000)
    }

    /// This time and `after`, ending at [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(after))
    }

    /// So long before this time, at the earliest the earliest there is.
    #[must_use]
    pub fn minus(self, before: Duration) -> Self {
        let before = u64::try_from(before.as_millis()).unwrap_or(u64::MAX);
        NonZeroU64::new(self.0.get().saturating_sub(before)).map_or(Self(NonZeroU64::MIN), Self)
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.get().saturating_sub(earlier.0.get()))
    }
}

/// The epoch.
impl Default for Timestamp {
    fn default() -> Self {
        Self::from_millis(0)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timestamp").field(&self.as_millis()).finish()
    }
}

/// As milliseconds since the epoch.
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.as_millis())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        i64::deserialize(deserializer).map(Self::from_millis)
    }
}

/// As the wall clock showed it: RFC 3339 in UTC with milliseconds.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.wall().fmt(f)
    }
}

/// For serde: a time as people and the API see it.
pub mod rfc_3339 {
    use std::fmt::Display;

    use serde::Serializer;

    /// Writes it as RFC 3339.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<T: Display, S: Serializer>(time: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(time)
    }

    /// The same for a time that may be missing: then it is `null`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn or_null<T: Display, S: Serializer>(time: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => to.collect_str(time),
            None => to.serialize_none(),
        }
    }
}

/// Where `now` comes from.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// What the wall clock says, as our own time: for commands, which end before anybody sets it, and
    /// for providers, which are made before the process knows its own time.
    #[default]
    System,
    /// Our own time: see [`mod@line`].
    Steady(Arc<Steady>),
    /// A clock that stands still until a test moves it.
    Manual(Arc<AtomicI64>),
}

/// Our own time, of a process.
#[derive(Debug)]
pub struct Steady {
    source: Source,
    /// Does not change while a process runs; a lock less for each look.
    base: i64,
    line: Mutex<Line>,
    unsure_since: Option<Timestamp>,
}

impl Clock {
    /// A clock that stands at `start`.
    pub fn manual(start: Timestamp) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(start.as_millis())))
    }

    /// Our own time, which goes on from what was saved last. Times are shown by its offsets from now
    /// on. The step is what happened to the wall clock since.
    pub fn steady(source: Source, saved: Option<&Saved>) -> (Self, Option<Step>) {
        let reading = loop {
            // It may be held up at each try, but not at all of them.
            if let Some(reading) = source.read() {
                break reading;
            }
        };
        let Begun { line, step, unsure_since } = Line::begin(saved, &reading);
        wall::show_by(line.offsets());
        let base = line.now(0).as_millis();
        let steady = Steady { source, base, line: Mutex::new(line), unsure_since };
        (Self::Steady(Arc::new(steady)), step)
    }

    /// The present time.
    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => wall::WallTime::from_millis(machine::wall()).ours(),
            Self::Steady(steady) => {
                let since_boot = steady.source.since_boot();
                Timestamp::from_millis(steady.base.saturating_add(since_boot))
            }
            Self::Manual(millis) => Timestamp::from_millis(millis.load(Ordering::SeqCst)),
        }
    }

    /// Compares the wall clock with our own time: the step, if somebody has set it since the last
    /// look. From then on times are shown by it.
    pub fn look(&self) -> Option<Step> {
        let Self::Steady(steady) = self else { return None };
        let reading = steady.source.read()?;
        let mut line = steady.line();
        let step = line.look(&reading)?;
        wall::show_by(line.offsets());
        Some(step)
    }

    /// The last sign of life, to be stored; `None` for a clock that needs none.
    pub fn saved(&self) -> Option<Saved> {
        let Self::Steady(steady) = self else { return None };
        Some(steady.line().saved(steady.source.since_boot()))
    }

    /// The last sign of life, where the machine was booted since: what has happened since then has
    /// perhaps only happened to the wall clock.
    pub fn unsure_since(&self) -> Option<Timestamp> {
        let Self::Steady(steady) = self else { return None };
        steady.unsure_since
    }

    /// By how many milliseconds the wall clock is ahead of our own time.
    pub fn ahead(&self) -> i64 {
        let Self::Steady(steady) = self else { return 0 };
        steady.line().offsets().last()
    }

    /// What an operator is to know of the wall clock; of a step for so long.
    pub fn problem(&self, shown: Duration) -> Option<String> {
        let Self::Steady(steady) = self else { return None };
        steady.line().problem(self.now(), shown)
    }

    /// Moves a manual clock; the machine's clock is not ours to move.
    pub fn advance(&self, by: Duration) {
        if let Self::Manual(millis) = self {
            millis.store(self.now().plus(by).as_millis(), Ordering::SeqCst);
        }
    }
}

impl Steady {
    fn line(&self) -> std::sync::MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_s_times_were_shifted_twice_after_a_step() {
        let before = machine::wall();
        wall::testing::set_wall_clock(Timestamp::from_millis(before - 3_601_000), 3_600_000);
        let signed = Clock::System.now().wall().as_millis();
        assert!((before..before + 1_800_000).contains(&signed), "{signed} at {before}");
        wall::testing::forget_steps();
    }

    #[test]
    fn prints_rfc_3339() {
        assert_eq!(
            Timestamp::from_millis(1_790_000_000_120).to_string(),
            "2026-09-21T14:13:20.120Z"
        );
    }

    #[test]
    fn times_before_and_behind_the_epoch_are_in_order() {
        let times =
            [i64::MIN, -5, -1, 0, 1, 1_790_000_000_120, i64::MAX].map(Timestamp::from_millis);
        assert!(times.is_sorted());
        assert_eq!(
            times.map(Timestamp::as_millis)[1..],
            [-5, -1, 0, 1, 1_790_000_000_120, i64::MAX]
        );
        assert_eq!(times[1].plus(Duration::from_millis(6)), times[4]);
        assert_eq!(times[4].since(times[1]), Duration::from_millis(6));
        assert_eq!(times[5].plus(Duration::MAX), Timestamp::MAX);
        assert_eq!(serde_json::to_string(&times[1]).expect("JSON"), "-5");
        assert_eq!(serde_json::from_str::<Timestamp>("-5").expect("a time"), times[1]);
        assert_eq!(size_of::<Option<Timestamp>>(), 8);
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(Timestamp::from_millis(5));
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.now(), Timestamp::from_millis(1005));
        assert_eq!(clock.now().since(Timestamp::from_millis(2000)), Duration::ZERO);
    }
}
