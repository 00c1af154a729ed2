//! Where one instance stands between its levels, and since when: the clocks of `for` and `clear_for`.
//!
//! Knows times and levels, nothing of expressions. A level counts from the first evaluation that
//! found it, or a worse one, to hold; the active level falls once a lower one has been found for its
//! `clear_for`, to the worst that holds then.
//!
//! Invariant: what happens depends on what was observed and when, never on how often anybody
//! looked: [`Life::advance`] at any later time comes to the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::model::Severity;

/// How many levels there can be.
const LEVELS: usize = Severity::ALL.len();

/// The clocks of a rule's levels; `None` where the rule has no such level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks([Option<Clock>; LEVELS]);

/// How long one level's conditions must hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Until it is active.
    pub hold: Duration,
    /// Until it falls.
    pub clear: Duration,
}

impl Clocks {
    /// Adds a level.
    pub fn set(&mut self, level: Severity, clock: Clock) {
        if let Some(slot) = self.0.get_mut(index(level)) {
            *slot = Some(clock);
        }
    }

    /// The clock of a level.
    pub fn get(&self, level: Severity) -> Option<Clock> {
        self.0.get(index(level)).copied().flatten()
    }

    /// Whether nothing ever has to be waited for.
    pub fn are_instant(&self) -> bool {
        self.0.iter().flatten().all(|clock| clock.hold.is_zero() && clock.clear.is_zero())
    }
}

fn index(level: Severity) -> usize {
    level as usize
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// The active level; `None`: nothing fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    level: Option<Severity>,
    /// For each level since when it, or a worse one, has held.
    #[serde(default, skip_serializing_if = "nothing_holds")]
    held_since: [Option<Timestamp>; LEVELS],
    /// Since when less than the active level has held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    drop_since: Option<Timestamp>,
}

fn nothing_holds(held: &[Option<Timestamp>; LEVELS]) -> bool {
    held.iter().all(Option::is_none)
}

/// The active level changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// What it was.
    pub from: Option<Severity>,
    /// What it is.
    pub to: Option<Severity>,
}

/// A time in which nobody could hear a device, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away {
    /// Until then at least the process ran, and what it had heard is on disk. It may have run on for
    /// a while that nobody knows.
    pub from: Timestamp,
    /// Since then it runs again.
    pub until: Timestamp,
}

impl Away {
    /// Where a clock that ran since `since` is to begin, so that only the time before counts. One
    /// that began while it is not known whether the process ran begins now: it is late by that
    /// while at most, and never early.
    pub fn left_out_of(self, since: Timestamp) -> Timestamp {
        self.until.minus(self.from.since(since))
    }
}

impl Life {
    /// The active level.
    pub const fn level(&self) -> Option<Severity> {
        self.level
    }

    /// Whether nothing fires and no clock runs.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a clock runs that may change the level.
    pub fn is_pending(&self, clocks: &Clocks) -> bool {
        self.due(clocks).is_some()
    }

    /// Since when the clock runs that will raise it, where one does.
    pub fn pending_since(&self) -> Option<Timestamp> {
        let above = self.level.map_or(0, |level| index(level) + 1);
        self.held_since.iter().skip(above).flatten().min().copied()
    }

    /// An instance that fires, as it was stored before clocks were.
    pub fn firing(level: Severity, since: Timestamp) -> Self {
        let mut life = Self { level: Some(level), ..Self::default() };
        for slot in life.held_since.iter_mut().take(index(level) + 1) {
            *slot = Some(since);
        }
        life
    }

    /// An evaluation at `now` found `target` to be the worst level that holds. True: a clock started
    /// or stopped, which is to be durable.
    pub fn observe(&mut self, clocks: &Clocks, target: Option<Severity>, now: Timestamp) -> bool {
        let before = *self;
        for level in Severity::ALL.iter().copied() {
            let holds = clocks.get(level).is_some() && target >= Some(level);
            if let Some(slot) = self.held_since.get_mut(index(level)) {
                *slot = holds.then(|| slot.unwrap_or(now));
            }
        }
        self.drop_since = match self.level {
            Some(level) if target < Some(level) => Some(self.drop_since.unwrap_or(now)),
            _ => None,
        };
        *self != before
    }

    /// Takes the step that is due at `now`, if one is. One step a call: call again until `None`.
    pub fn advance(&mut self, clocks: &Clocks, now: Timestamp) -> Option<Move> {
        let from = self.level;
        let ready = self.ready(clocks, now);
        let to = if ready > from {
            ready
        } else if self.drop_since.is_some_and(|since| self.drops_at(clocks, since) <= now) {
            self.worst_held()
        } else {
            return None;
        };
        self.level = to;
        self.drop_since = None;
        (to != from).then_some(Move { from, to })
    }

    /// When the next step is due.
    pub fn due(&self, clocks: &Clocks) -> Option<Timestamp> {
        let raise = Severity::ALL
            .iter()
            .filter(|level| Some(**level) > self.level)
            .filter_map(|level| self.raises_at(clocks, *level))
            .min();
        let drop = self.drop_since.map(|since| self.drops_at(clocks, since));
        [raise, drop].into_iter().flatten().min()
    }

    /// The level that the next step raises it to, where a clock runs that will.
    pub fn next_level(&self, clocks: &Clocks) -> Option<Severity> {
        let above = Severity::ALL.iter().copied().filter(|level| Some(*level) > self.level);
        let at = |level: &Severity| self.raises_at(clocks, *level);
        let first = above.clone().filter_map(|level| at(&level)).min()?;
        above.filter(|level| at(level) == Some(first)).max()
    }

    /// Takes the time that does not count out of every running clock.
    pub fn pause(&mut self, away: Away) {
        for since in self.held_since.iter_mut().chain([&mut self.drop_since]).flatten() {
            *since = away.left_out_of(*since);
        }
    }

    /// A clock that began ahead of now was written by a wall clock that went wrong: it begins now.
    pub fn put_right(&mut self, now: Timestamp) {
        for since in self.held_since.iter_mut().chain([&mut self.drop_since]).flatten() {
            *since = now.min(*since);
        }
    }

    /// Lets every running clock begin at `now`.
    pub fn restart(&mut self, now: Timestamp) {
        for since in self.held_since.iter_mut().chain([&mut self.drop_since]).flatten() {
            *since = now;
        }
    }

    /// What fires goes on firing; clocks begin anew with the next evaluation.
    pub fn forget_clocks(&mut self, clocks: &Clocks) {
        let level = self.level.filter(|level| clocks.get(*level).is_some());
        *self = Self { level, ..Self::default() };
    }

    fn worst_held(&self) -> Option<Severity> {
        let held = |level: &&Severity| self.held(**level).is_some();
        Severity::ALL.iter().rev().find(held).copied()
    }

    fn ready(&self, clocks: &Clocks, now: Timestamp) -> Option<Severity> {
        let is_ready =
            |level: &&Severity| self.raises_at(clocks, **level).is_some_and(|at| at <= now);
        Severity::ALL.iter().rev().find(is_ready).copied()
    }

    fn held(&self, level: Severity) -> Option<Timestamp> {
        self.held_since.get(index(level)).copied().flatten()
    }

    fn raises_at(&self, clocks: &Clocks, level: Severity) -> Option<Timestamp> {
        Some(self.held(level)?.plus(clocks.get(level)?.hold))
    }

    fn drops_at(&self, clocks: &Clocks, since: Timestamp) -> Timestamp {
        let clear = self.level.and_then(|level| clocks.get(level)).map(|clock| clock.clear);
        since.plus(clear.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Severity::{Critical, Info, Warning};

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn clocks(levels: &[(Severity, u64, u64)]) -> Clocks {
        let mut clocks = Clocks::default();
        for (level, hold, clear) in levels {
            clocks.set(*level, Clock { hold: secs(*hold), clear: secs(*clear) });
        }
        clocks
    }

    fn at(secs: u64) -> Timestamp {
        Timestamp::default().plus(Duration::from_secs(secs))
    }

    /// What is observed at which second, and the moves with their second. Between observations
    /// every due time is met.
    fn run(clocks: &Clocks, seen: &[(u64, Option<Severity>)], until: u64) -> Vec<(u64, Move)> {
        let mut life = Life::default();
        let mut moves = Vec::new();
        let mut take = |life: &mut Life, second: u64| {
            while let Some(step) = life.advance(clocks, at(second)) {
                moves.push((second, step));
            }
        };
        let mut seen = seen.iter().peekable();
        for second in 0..=until {
            take(&mut life, second);
            while let Some((_, target)) = seen.next_if(|(at, _)| *at == second) {
                life.observe(clocks, *target, at(second));
                take(&mut life, second);
            }
        }
        moves
    }

    fn check(
        levels: &[(Severity, u64, u64)],
        seen: &[(u64, Option<Severity>)],
        expected: &[(u64, Option<Severity>)],
    ) {
        let moves = run(&clocks(levels), seen, 60);
        let found: Vec<_> = moves.iter().map(|(second, step)| (*second, step.to)).collect();
        assert_eq!(found, expected, "{levels:?} {seen:?}");
    }

    const C: Option<Severity> = Some(Critical);
    const W: Option<Severity> = Some(Warning);

    #[test]
    fn without_clocks_every_edge_counts_at_once() {
        check(
            &[(Warning, 0, 0)],
            &[(1, W), (2, W), (3, None), (4, W)],
            &[(1, W), (3, None), (4, W)],
        );
    }

    #[test]
    fn it_must_hold_for_the_whole_time() {
        check(&[(Warning, 5, 0)], &[(0, W), (4, None), (5, W), (7, W)], &[(10, W)]);
        check(&[(Warning, 5, 0)], &[(0, W), (5, None)], &[(5, W), (5, None)]);
    }

    #[test]
    fn it_must_be_over_for_the_whole_time() {
        check(&[(Warning, 0, 5)], &[(0, W), (1, None), (5, W), (6, None)], &[(0, W), (11, None)]);
    }

    #[test]
    fn levels_rise_and_fall_each_by_its_own_clock() {
        let levels = [(Warning, 2, 0), (Critical, 5, 3)];
        check(&levels, &[(0, C)], &[(2, W), (5, C)]);
        check(&levels, &[(0, C), (6, W), (8, None)], &[(2, W), (5, C), (9, None)]);
        check(&levels, &[(0, C), (6, W)], &[(2, W), (5, C), (9, W)]);
        // The worst that holds when it falls, whether or not its own time was over.
        check(&[(Warning, 50, 0), (Critical, 0, 0)], &[(0, C), (3, W)], &[(0, C), (3, W)]);
    }

    #[test]
    fn a_level_that_a_rule_has_not_is_never_reached() {
        check(&[(Critical, 0, 0)], &[(0, Some(Info)), (1, C)], &[(1, C)]);
    }

    #[test]
    fn time_that_does_not_count_moves_the_clocks() {
        let clocks = clocks(&[(Warning, 10, 0)]);
        let mut life = Life::default();
        life.observe(&clocks, W, at(0));
        life.pause(Away { from: at(3), until: at(103) });
        assert_eq!(life.due(&clocks), Some(at(110)));
        life.pause(Away { from: at(50), until: at(200) });
        assert_eq!(life.due(&clocks), Some(at(210)), "it began after the last sign of life");
        life.restart(at(500));
        assert_eq!(life.due(&clocks), Some(at(510)));
        life.forget_clocks(&clocks);
        assert!(life.is_idle());
    }

    /// Reads the whole history at each second: the definition, slowly.
    fn oracle(
        hold: u64,
        clear: u64,
        seen: &[(u64, Option<Severity>)],
        until: u64,
    ) -> Vec<(u64, bool)> {
        let holds_at = |second: u64| {
            let last = seen.iter().rev().find(|(at, _)| *at <= second);
            last.is_some_and(|(_, target)| target.is_some())
        };
        let mut told = Vec::new();
        let mut firing = false;
        for second in 0..=until {
            let span = if firing { clear } else { hold };
            // A clock runs out before what is observed at the same time.
            let whole = second >= span && (second - span..second).all(|at| holds_at(at) != firing);
            if whole {
                firing = !firing;
                told.push((second, firing));
            }
        }
        told
    }

    proptest! {
        #[test]
        fn one_level_agrees_with_the_whole_history(
            hold in 1_u64..6, clear in 1_u64..6,
            steps in prop::collection::vec((1_u64..5, any::<bool>()), 0..20),
        ) {
            let mut second = 0;
            let seen: Vec<_> = steps.iter().map(|(after, holds)| {
                second += after;
                (second, holds.then_some(Warning))
            }).collect();
            let moves = run(&clocks(&[(Warning, hold, clear)]), &seen, second + 20);
            let found: Vec<_> = moves.iter().map(|(second, step)| (*second, step.to.is_some())).collect();
            prop_assert_eq!(found, oracle(hold, clear, &seen, second + 20));
        }

        #[test]
        fn looking_late_or_often_comes_to_the_same_level(
            holds in prop::collection::vec(prop::option::of(0_usize..3), 1..12), looks in prop::collection::vec(0_u64..40, 0..20),
        ) {
            let clocks = clocks(&[(Info, 3, 2), (Warning, 5, 4), (Critical, 1, 7)]);
            let (mut often, mut late) = (Life::default(), Life::default());
            for (step, target) in holds.iter().enumerate() {
                let now = at(step as u64 * 3);
                let target = target.and_then(|level| Severity::ALL.get(level).copied());
                for look in looks.iter().filter(|look| at(**look) <= now) {
                    // Looking at an earlier time than the last observation is what never happens.
                    if at(*look).plus(secs(3)) > now { while often.advance(&clocks, at(*look)).is_some() {} }
                }
                for life in [&mut often, &mut late] {
                    while life.advance(&clocks, now).is_some() {}
                    life.observe(&clocks, target, now);
                    while life.advance(&clocks, now).is_some() {}
                }
            }
            prop_assert_eq!(often, late);
        }
    }
}
