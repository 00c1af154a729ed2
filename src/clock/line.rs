//! Our own time: the line that durations live on. Pure: what the machine's clocks show goes in.
//!
//! It is the time since the machine was booted plus a base, so it never goes back and nobody sets it.
//! The base is chosen when there is nothing yet, so that it is the wall clock's time, and kept over
//! restarts by a row of the store.
//!
//! - In the same boot it goes on by the boot's clock: a restart, a suspended machine and a wall clock
//!   that was set meanwhile are told apart exactly.
//! - After another boot nothing but the wall clock knows how long it was. Where that is later than the
//!   last sign of life it is believed. Where it is earlier, the machine has no clock or it was set
//!   back: our own time goes on from the last sign of life, and the wall clock is behind until it is
//!   set.
//!
//! Invariant: our own time never goes back, over restarts neither, but for what was not yet written.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timestamp;
use super::wall::Offsets;

/// Another difference than this is a step, in milliseconds. Below it is what a clock that is kept by
/// NTP does, and what nothing here notices.
const STEP_MIN: i64 = 2_000;

/// What the machine's clocks show at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Which boot it is; empty where the system does not say.
    pub boot: String,
    /// Milliseconds since then, those in which the machine was suspended included.
    pub since_boot: i64,
    /// The wall clock, milliseconds since the Unix epoch.
    pub wall: i64,
}

/// What is kept of it in the store: the last sign of life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Which boot it was.
    pub boot: String,
    /// Milliseconds since then.
    pub since_boot: i64,
    /// Our own time.
    pub now: Timestamp,
    /// The wall clock's distance from it, now and before.
    pub offsets: Offsets,
    /// The wall clock is behind the last sign of life before this boot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind: bool,
}

impl Saved {
    /// Of a store that was written before there was such a row: all that is known is when the
    /// process said last that it is alive.
    pub fn alive_at(now: Timestamp) -> Self {
        let offsets = Offsets::default();
        Self { boot: String::new(), since_boot: 0, now, offsets, behind: false }
    }
}

/// The wall clock was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it was noticed.
    pub at: Timestamp,
    /// By how many milliseconds; less than zero: back.
    pub by: i64,
}

/// Our own time, and the wall clock beside it.
#[derive(Clone, Debug)]
pub struct Line {
    boot: String,
    base: i64,
    offsets: Offsets,
    behind: bool,
}

/// How it began.
#[derive(Clone, Debug)]
pub struct Begun {
    /// The line.
    pub line: Line,
    /// The wall clock was set while nothing ran.
    pub step: Option<Step>,
    /// The machine was booted since, so that the wall clock alone says how long nothing ran: the last
    /// sign of life before.
    pub unsure_since: Option<Timestamp>,
}

impl Line {
    /// At the start of a process.
    pub fn begin(saved: Option<&Saved>, reading: &Reading) -> Begun {
        let boot = reading.boot.clone();
        let Some(saved) = saved else {
            let base = reading.wall - reading.since_boot;
            let line = Self { boot, base, offsets: Offsets::default(), behind: false };
            return Begun { line, step: None, unsure_since: None };
        };
        let mut line = Self { boot, base: 0, offsets: saved.offsets.clone(), behind: saved.behind };
        let last = saved.now.as_millis();
        let same = !saved.boot.is_empty()
            && saved.boot == reading.boot
            && reading.since_boot >= saved.since_boot;
        if same {
            line.base = last - saved.since_boot;
            let step = line.look(reading);
            return Begun { line, step, unsure_since: None };
        }
        let by_the_wall = reading.wall - line.offsets.last();
        if by_the_wall >= last - STEP_MIN {
            // Not later than the wall clock says, were it as it was; and not earlier than before.
            line.base = by_the_wall.max(last) - reading.since_boot;
            return Begun { line, step: None, unsure_since: Some(saved.now) };
        }
        // At least the boot itself has lasted so long.
        line.base = last;
        let now = line.now(reading.since_boot);
        let by = reading.wall - now.as_millis() - line.offsets.last();
        line.offsets.set(now, reading.wall - now.as_millis(), false);
        line.behind = true;
        Begun { line, step: Some(Step { at: now, by }), unsure_since: Some(saved.now) }
    }

    /// Our own time, so many milliseconds after the boot.
    pub fn now(&self, since_boot: i64) -> Timestamp {
        Timestamp::from_millis(self.base.saturating_add(since_boot))
    }

    /// Compares the wall clock with our own time.
    pub fn look(&mut self, reading: &Reading) -> Option<Step> {
        let at = self.now(reading.since_boot);
        let offset = reading.wall.saturating_sub(at.as_millis());
        let by = offset.saturating_sub(self.offsets.last());
        if by.unsigned_abs() < STEP_MIN.unsigned_abs() {
            return None;
        }
        // What was shown since the boot was wrong, where the clock had not been set: now it is known.
        let replace = std::mem::take(&mut self.behind);
        self.offsets.set(at, offset, replace);
        Some(Step { at, by })
    }

    /// The row.
    pub fn saved(&self, since_boot: i64) -> Saved {
        Saved {
            boot: self.boot.clone(),
            since_boot,
            now: self.now(since_boot),
            offsets: self.offsets.clone(),
            behind: self.behind,
        }
    }

    /// The wall clock's distance, now and before.
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    /// Whether the wall clock has been behind the last sign of life since the boot.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// What is to be said of the wall clock, for an operator; `None`: nothing.
    pub fn problem(&self, now: Timestamp, shown: Duration) -> Option<String> {
        if self.behind {
            return Some(
                "the wall clock shows a time before Watchbell ran last: it is not set; times are \
                 shown wrong until it is, and quiet hours, silences until a time and tokens go by \
                 it; look at NTP"
                    .to_owned(),
            );
        }
        let (at, by) = self.offsets.last_step()?;
        (now.since(at) < shown).then(|| {
            format!(
                "the wall clock was set {} ({at}): timers and expiry go on as they were; quiet \
                 hours, silences until a time and tokens go by the new time; look at NTP",
                moved(by)
            )
        })
    }
}

/// `forward by 1d`, `back by 2h`.
pub fn moved(by: i64) -> String {
    // To the nearest: the two clocks are not read at the same moment.
    let secs = by.unsigned_abs().saturating_add(500) / 1000;
    let secs = if secs < 3_600 { secs } else { secs.saturating_add(30) / 60 * 60 };
    let span = crate::span::Span::from_secs(secs);
    format!("{} by {span}", if by < 0 { "back" } else { "forward" })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const WALL: i64 = 1_790_000_000_000;

    fn reading(boot: &str, since_boot: i64, wall: i64) -> Reading {
        Reading { boot: boot.to_owned(), since_boot, wall: WALL + wall }
    }

    fn ours(line: &Line, since_boot: i64) -> i64 {
        line.now(since_boot).as_millis() - WALL
    }

    fn saved() -> Saved {
        let line = Line::begin(None, &reading("a", 1000, 0)).line;
        line.saved(1000 + HOUR)
    }

    #[test]
    fn without_a_step_our_own_time_is_the_wall_clocks() {
        let begun = Line::begin(None, &reading("a", 1000, 0));
        assert_eq!((begun.step, begun.unsure_since), (None, None));
        let mut line = begun.line;
        assert_eq!(ours(&line, 1000 + HOUR), HOUR);
        // What NTP does is no step.
        assert_eq!(line.look(&reading("a", 1000 + HOUR, HOUR + 1999)), None);
        assert_eq!(line.saved(5000).offsets, Offsets::default());
        assert_eq!(line.problem(line.now(0), Duration::MAX), None);
    }

    #[test]
    fn a_step_while_it_runs_changes_the_offset_and_not_our_own_time() {
        for by in [24 * HOUR, HOUR, -HOUR, -48 * HOUR, 2_000, -2_000] {
            let mut line = Line::begin(None, &reading("a", 0, 0)).line;
            let step = line.look(&reading("a", HOUR, HOUR + by)).expect("a step");
            assert_eq!((step.by, step.at.as_millis() - WALL), (by, HOUR));
            assert_eq!(line.look(&reading("a", HOUR + 50, HOUR + by + 40)), None);
            assert_eq!(ours(&line, HOUR), HOUR);
            assert_eq!(line.offsets().last(), by);
        }
    }

    #[test]
    fn a_step_between_two_runs_of_a_boot_is_known_to_the_second() {
        for by in [24 * HOUR, HOUR, -HOUR, -48 * HOUR] {
            // Away for half an hour.
            let then = reading("a", 1000 + HOUR + HOUR / 2, HOUR + HOUR / 2 + by);
            let begun = Line::begin(Some(&saved()), &then);
            assert_eq!(begun.step.map(|step| step.by), Some(by));
            assert_eq!(begun.unsure_since, None);
            assert_eq!(ours(&begun.line, then.since_boot), HOUR + HOUR / 2);
        }
        let then = reading("a", 1000 + 3 * HOUR, 3 * HOUR);
        let begun = Line::begin(Some(&saved()), &then);
        assert_eq!((begun.step, ours(&begun.line, then.since_boot)), (None, 3 * HOUR));
    }

    #[test]
    fn after_another_boot_a_later_wall_clock_is_believed() {
        let begun = Line::begin(Some(&saved()), &reading("b", 20_000, 25 * HOUR));
        assert_eq!((begun.step, ours(&begun.line, 20_000)), (None, 25 * HOUR));
        assert_eq!(begun.unsure_since, Some(saved().now));
        assert_eq!(begun.line.offsets().last(), 0);
        assert!(!begun.line.is_behind());
    }

    /// A machine without a clock begins each boot in 1970, or where it was switched off last.
    #[test]
    fn after_another_boot_an_earlier_wall_clock_is_behind_until_it_is_set() {
        for wall in [-WALL, -HOUR, HOUR - 2_001] {
            let begun = Line::begin(Some(&saved()), &reading("b", 20_000, wall));
            let mut line = begun.line;
            // Our own time goes on from the last sign of life.
            assert_eq!(ours(&line, 20_000), HOUR + 20_000);
            assert_eq!(begun.step.map(|step| step.by), Some(wall - HOUR - 20_000));
            assert!(line.is_behind());
            assert!(line.problem(line.now(0), Duration::ZERO).is_some());
            // A restart in this boot knows no more.
            let again =
                Line::begin(Some(&line.saved(25_000)), &reading("b", 30_000, wall + 10_000));
            assert!(again.line.is_behind() && again.step.is_none());
            // NTP answers after a day without power: what was shown since the boot is put right.
            let step = line.look(&reading("b", 40_000, 25 * HOUR)).expect("a step");
            assert_eq!(step.at.as_millis() - WALL, HOUR + 40_000);
            assert!(!line.is_behind());
            assert_eq!(line.offsets().last(), 24 * HOUR - 40_000);
            assert_eq!(line.offsets().at(line.now(20_000)), 24 * HOUR - 40_000);
            assert_eq!(line.offsets().at(line.now(10_000)), 0, "before the boot it was right");
        }
    }

    #[test]
    fn our_own_time_never_goes_back_over_a_boot() {
        let last = saved().now.as_millis() - WALL;
        for wall in [-WALL, 0, HOUR - 3_000, HOUR - 1_000, HOUR, 2 * HOUR] {
            let begun = Line::begin(Some(&saved()), &reading("b", 0, wall));
            assert!(ours(&begun.line, 0) >= last, "{wall}");
        }
    }

    #[test]
    fn a_store_of_before_is_taken_over_as_it_is() {
        let alive = Saved::alive_at(Timestamp::from_millis(WALL));
        let begun = Line::begin(Some(&alive), &reading("a", HOUR, 2 * HOUR));
        assert_eq!((begun.step, ours(&begun.line, HOUR)), (None, 2 * HOUR));
        assert_eq!(begun.line.offsets(), &Offsets::default());
        // It was written with a clock that went ahead by two days.
        let alive = Saved::alive_at(Timestamp::from_millis(WALL + 48 * HOUR));
        let begun = Line::begin(Some(&alive), &reading("a", HOUR, 0));
        assert_eq!(ours(&begun.line, HOUR), 49 * HOUR);
        assert!(begun.step.is_some());
    }

    #[test]
    fn says_what_an_operator_is_to_know() {
        let mut line = Line::begin(None, &reading("a", 0, 0)).line;
        line.look(&reading("a", HOUR, 25 * HOUR));
        let now = line.now(2 * HOUR);
        let problem = line.problem(now, Duration::from_secs(86_400)).expect("a problem");
        assert!(problem.starts_with("the wall clock was set forward by 1d ("), "{problem}");
        assert_eq!(line.problem(now, Duration::from_secs(60)), None);
        assert_eq!(moved(-7_199_998), "back by 2h");
        assert_eq!(moved(172_829_000), "forward by 2d");
        assert_eq!(moved(4_499), "forward by 4s");
    }
}
