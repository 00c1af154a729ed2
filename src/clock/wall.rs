//! The wall clock beside our own time: by how much it is ahead of it, and since when.
//!
//! All that is stored and compared is our own time ([`Timestamp`]). What people, devices, certificates
//! and calendars say is the wall's. The difference is kept with the time from which it held, so that a
//! moment that is past is shown as the wall showed it then.
//!
//! It is one for the process, as the wall clock itself is: every log line and every page of the API
//! shows times, and to carry it there would put it beside each of them. Only the application sets it;
//! what is past never changes by that, so functions of past times stay functions.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// So many steps are remembered; what was before the oldest is shown as after it.
const STEPS_MAX: usize = 64;

/// A step so soon after the one before takes its place: a clock that is being set.
const ONE_STEP: Duration = Duration::from_secs(60);

/// A point in wall time, as people, devices and certificates say it: milliseconds since the Unix
/// epoch, UTC.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(i64);

impl WallTime {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// The same in our own time, as long as the wall clock is not set again.
    pub fn ours(self) -> Timestamp {
        Timestamp::from_millis(self.0.saturating_sub(difference(Offsets::last)))
    }

    /// This time and `after`.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        let millis = i128::from(self.0) - i128::from(earlier.0);
        Duration::from_millis(u64::try_from(millis).unwrap_or(0))
    }
}

/// RFC 3339 in UTC with milliseconds.
impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(time) => write!(f, "{time:.3}"),
            Err(_) => f.write_str("never"),
        }
    }
}

impl Timestamp {
    /// What the wall clock showed then; of a time ahead, what it will show if nobody sets it.
    pub fn wall(self) -> WallTime {
        WallTime(self.as_millis().saturating_add(difference(|offsets| offsets.at(self))))
    }

    /// What the wall clock would have shown then, had it been set as it is at `now`: for what a
    /// device said of its own time, which is none of our clock's.
    pub fn wall_as_of(self, now: Self) -> WallTime {
        WallTime(self.as_millis().saturating_add(difference(|offsets| offsets.at(now))))
    }
}

/// By how many milliseconds the wall clock is ahead of our own time, and was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offsets {
    /// Before the first step.
    #[serde(default)]
    before: i64,
    /// From when on it is how much, the oldest first.
    #[serde(default)]
    steps: Vec<(Timestamp, i64)>,
}

impl Offsets {
    /// At that time; of one that is ahead, the last.
    pub fn at(&self, time: Timestamp) -> i64 {
        let later = self.steps.partition_point(|(from, _)| *from <= time);
        let found = later.checked_sub(1).and_then(|index| self.steps.get(index));
        found.map_or(self.before, |(_, offset)| *offset)
    }

    /// Now.
    pub fn last(&self) -> i64 {
        self.steps.last().map_or(self.before, |(_, offset)| *offset)
    }

    /// The last step: when, and by how much. `None`: there never was one.
    pub fn last_step(&self) -> Option<(Timestamp, i64)> {
        let (last, earlier) = self.steps.split_last()?;
        let before = earlier.last().map_or(self.before, |(_, offset)| *offset);
        Some((last.0, last.1.saturating_sub(before)))
    }

    /// It is `offset` from now on. `replace`: it was so since the last step, which was a mistake.
    pub(super) fn set(&mut self, now: Timestamp, offset: i64, replace: bool) {
        if let Some((from, last)) = self.steps.last_mut()
            && (replace || now.since(*from) < ONE_STEP)
        {
            *last = offset;
            return;
        }
        self.steps.push((now, offset));
        if self.steps.len() > STEPS_MAX {
            self.before = self.steps.remove(0).1;
        }
    }

    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether the wall clock was ever anything but our own time. Looked at before the lock: in most lives
/// it never is.
static DIFFERS: AtomicBool = AtomicBool::new(false);
static OFFSETS: RwLock<Offsets> = RwLock::new(Offsets { before: 0, steps: Vec::new() });

/// Has times shown by these from now on.
pub(super) fn show_by(offsets: &Offsets) {
    if offsets.is_nothing() && !DIFFERS.load(Ordering::Acquire) {
        return;
    }
    OFFSETS.write().unwrap_or_else(PoisonError::into_inner).clone_from(offsets);
    DIFFERS.store(true, Ordering::Release);
}

fn difference(ask: impl FnOnce(&Offsets) -> i64) -> i64 {
    #[cfg(test)]
    if let Some(offsets) = testing::OF_THIS_THREAD.with_borrow(Clone::clone) {
        return ask(&offsets);
    }
    if !DIFFERS.load(Ordering::Acquire) {
        return 0;
    }
    ask(&OFFSETS.read().unwrap_or_else(PoisonError::into_inner))
}

/// Tests run beside each other in one process: each has a wall clock of its own.
#[cfg(test)]
pub(crate) mod testing {
    use std::cell::RefCell;

    use super::{Offsets, Timestamp};

    thread_local! {
        pub(super) static OF_THIS_THREAD: RefCell<Option<Offsets>> = const { RefCell::new(None) };
    }

    /// There was no step yet, in this test.
    pub(crate) fn forget_steps() {
        OF_THIS_THREAD.set(None);
    }

    /// From `now` on the wall clock is ahead by so many milliseconds, in this test.
    pub(crate) fn set_wall_clock(now: Timestamp, ahead: i64) {
        OF_THIS_THREAD.with_borrow_mut(|offsets| {
            offsets.get_or_insert_default().set(now, ahead, false);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_millis(hours * HOUR)
    }

    #[test]
    fn a_past_time_is_shown_as_the_wall_clock_showed_it_then() {
        let shown = |hours| at(hours).wall().as_millis() / HOUR;
        assert_eq!((shown(10), at(10).to_string().as_str()), (10, "1970-01-01T10:00:00.000Z"));
        testing::set_wall_clock(at(20), 24 * HOUR);
        assert_eq!((shown(10), shown(19), shown(20), shown(30)), (10, 19, 44, 54));
        testing::set_wall_clock(at(25), -HOUR);
        assert_eq!((shown(10), shown(24), shown(25), shown(30)), (10, 48, 24, 29));
        assert_eq!(at(10).wall_as_of(at(30)).as_millis() / HOUR, 9);
        assert_eq!(WallTime::from_millis(29 * HOUR).ours(), at(30));
        assert_eq!(at(30).to_string(), "1970-01-02T05:00:00.000Z");
    }

    #[test]
    fn so_many_steps_are_remembered_and_a_clock_that_is_being_set_is_one() {
        let mut offsets = Offsets::default();
        assert_eq!(offsets.last_step(), None);
        offsets.set(at(1), 5, false);
        offsets.set(at(1).plus(Duration::from_secs(59)), 7, false);
        assert_eq!((offsets.steps.len(), offsets.last_step()), (1, Some((at(1), 7))));
        offsets.set(at(9), 4, true);
        assert_eq!(offsets.last_step(), Some((at(1), 4)));
        for hour in 10..200 {
            offsets.set(at(hour), hour, false);
        }
        assert_eq!(offsets.steps.len(), STEPS_MAX);
        assert_eq!((offsets.at(at(0)), offsets.at(at(150)), offsets.last()), (135, 150, 199));
        assert_eq!(offsets.last_step(), Some((at(199), 1)));
    }
}
