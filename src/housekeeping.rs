//! Housekeeping of the disk: retention, and room for what waits.
//!
//! Each message that waits will still cost disk: its attempt, its end, what sled keeps of both until
//! it cleans up. So new ones are taken only while what waits has that room and `disk_free_min_bytes`
//! beside it. Before anything is refused, history is given up; before the disk is full, nothing more
//! is sent, because what cannot be noted would be sent again by every start. The reserve is for a
//! start that finds the disk full: while the process runs, it is not touched.
//!
//! **Invariant:** deleting never takes more than half of the store's time while others write.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::clock::Clock;
use crate::dispatch::Dispatch;
use crate::intake::Intake;
use crate::store::reserve::{NEEDED_BYTES, Reserve};
use crate::store::sweep::{Slice, Sweep};
use crate::store::{self, Store};
use crate::telemetry::Metrics;

/// How often the disk is looked at: at the highest rate of intake some 50 MB are written meanwhile.
const WATCH: Duration = Duration::from_millis(250);
/// How long one step of tidying up reads, and its commit should take.
const SLICE: Duration = Duration::from_millis(20);
/// Rows that a step deletes: few while commits are slow, many while they are fast.
const ROWS: std::ops::RangeInclusive<usize> = 64..=4096;
/// After a pass through all tables.
const PAUSE: Duration = Duration::from_secs(2);
/// What waits costs so many times its own size until sled has cleaned up: "started" and how it ended
/// are rows as large as the message, and each is written again with its neighbours. Measured: 3.3
/// times (3 kB) for a message of 900 bytes.
const DRAIN: u64 = 4;
/// With less room than this nothing is sent: what is left is for what ends now, and for deleting.
const LAST: u64 = NEEDED_BYTES;

/// What retention and guard work with.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) dispatch: Dispatch,
    pub(crate) intake: Intake,
    pub(crate) metrics: Metrics,
    pub(crate) clock: Clock,
    pub(crate) config: store::Config,
    pub(crate) reserve: Reserve,
}

/// Deletes what is outlived and watches the disk, until told to stop.
pub(crate) struct Housekeeping {
    parts: Parts,
    guard: Guard,
    size: Size,
    sweep: Sweep,
    /// For how long ended messages and steps are kept: less than the retention while room is short.
    kept: Duration,
    /// Rows of the next step.
    rows: usize,
    /// How often the store had been measured when history was last given up.
    measured: u64,
    /// What the present pass has spent on rows that stay.
    idle: Duration,
    given_up: u64,
    /// The store's files were deleted or moved.
    is_gone: bool,
}

/// Makes room for a start on a full disk.
pub(crate) fn make_room(reserve: &Reserve, free: u64) {
    if free < reserve.bytes() / 2 && reserve.is_there() {
        give_up(reserve, free);
    }
}

/// Makes room by the reserve.
fn give_up(reserve: &Reserve, free: u64) {
    match reserve.give_up() {
        Ok(_) => tracing::error!(
            free_bytes = free,
            reserve_bytes = reserve.bytes(),
            "the disk is full: the reserve is given up, so that what waits can be sent; nothing new \
             is taken until there is room. Free the disk or make it larger; the reserve comes back by itself"
        ),
        Err(error) => tracing::error!(
            %error, free_bytes = free,
            "the disk is full and the file `reserve` in the data directory cannot be deleted; free the disk"
        ),
    }
}

impl Housekeeping {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            guard: Guard::new(parts.config.disk_free_min_bytes),
            size: Size::default(),
            sweep: Sweep::default(),
            kept: parts.config.retention.into(),
            rows: *ROWS.start(),
            measured: 0,
            idle: Duration::ZERO,
            given_up: 0,
            is_gone: false,
            parts,
        }
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let (mut watch_at, mut sweep_at) = (Instant::now(), Instant::now());
        loop {
            if Instant::now() >= watch_at {
                self.watch();
                watch_at = Instant::now() + WATCH;
            }
            if Instant::now() >= sweep_at {
                let pause = self.tidy().await;
                sweep_at = Instant::now() + pause;
            }
            tokio::select! {
                _ = stop.changed() => return,
                () = tokio::time::sleep_until(watch_at.min(sweep_at).into()) => {}
            }
        }
    }

    fn watch(&mut self) {
        let Parts { store, dispatch, intake, metrics, reserve, .. } = &self.parts;
        let is_gone = !store.is_in_place();
        if is_gone != self.is_gone {
            self.is_gone = is_gone;
            intake.set_disk_low(is_gone || self.guard.is_low);
            if is_gone {
                tracing::error!(
                    data_dir = %store.directory().display(),
                    "the store's files were deleted or moved while it is open: nothing new is taken, what \
                     waits is still sent; put them back, or wait until the outbox is empty and restart"
                );
            } else {
                tracing::warn!("the store's files are back where they were");
            }
        }
        let free = match store.disk_free_bytes() {
            Ok(free) => free,
            Err(error) => return tracing::error!(%error, "the disk's free space cannot be read"),
        };
        let backlog = dispatch.waiting_bytes();
        if self.guard.is_short {
            // Where things are refused, somebody waits for the answer.
            self.size.step(store, backlog, if self.guard.is_low { SLICE * 5 } else { SLICE });
        }
        let disk = Disk {
            free,
            reusable: self.size.reusable(backlog),
            backlog,
            has_reserve: reserve.is_there(),
        };
        let before = self.guard;
        self.guard.look(disk);
        // What is free now is seen by the next look.
        if self.guard.is_held && disk.has_reserve {
            give_up(reserve, free);
            self.guard.is_held = before.is_held;
        }
        let needed = self.guard.needed(backlog);
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics.disk_free_bytes.set(gauge(free));
        metrics.disk_needed_bytes.set(gauge(needed));
        if self.guard.is_low != before.is_low {
            intake.set_disk_low(self.guard.is_low || self.is_gone);
            dispatch.set_low(self.guard.is_low);
            if self.guard.is_low {
                tracing::error!(
                    free_bytes = free,
                    needed_bytes = needed,
                    waiting = dispatch.waiting(),
                    "the disk is nearly full: nothing new is taken until there is room"
                );
            } else {
                tracing::info!(free_bytes = free, "the disk has room again");
            }
        }
        if self.guard.is_held != before.is_held {
            dispatch.set_held(self.guard.is_held);
            metrics.sending_held.set(i64::from(self.guard.is_held));
            if self.guard.is_held {
                tracing::error!(
                    free_bytes = free,
                    "the disk is full: nothing is sent, because it could not be noted, and all history is deleted; free the disk"
                );
            } else {
                tracing::warn!(free_bytes = free, "the disk has room again: what waits is sent");
            }
        }
        if self.guard.is_short != before.is_short {
            if self.guard.is_short {
                tracing::warn!(
                    free_bytes = free,
                    needed_bytes = needed,
                    "the disk runs low: the oldest ended messages and steps of alerts are deleted early"
                );
            } else {
                tracing::info!(
                    free_bytes = free,
                    deleted_early = self.given_up,
                    "no more is deleted early"
                );
                (self.kept, self.given_up) = (self.parts.config.retention.into(), 0);
            }
        }
        if self.guard.is_held {
            // All of it, and at once: there is no other room.
            self.kept = Duration::ZERO;
        }
        if self.guard.may_keep_reserve(disk, reserve.bytes())
            && let Err(error) = reserve.keep()
        {
            tracing::warn!(%error, "there is no reserve for a full disk");
        }
    }

    /// One step of a pass; answers how long to pause.
    async fn tidy(&mut self) -> Duration {
        let started = Instant::now();
        let slice = Slice { time: SLICE, rows: self.rows };
        let now = self.parts.clock.now();
        let swept = self.parts.store.sweep(&mut self.sweep, self.kept, now, slice);
        let found = swept.ops.len();
        if found > 0 {
            let reading = started.elapsed();
            if self.parts.store.commit(swept.ops).await.is_err() {
                // The process is about to end.
                return PAUSE;
            }
            self.fit(found, started.elapsed().saturating_sub(reading));
            let retention: Duration = self.parts.config.retention.into();
            if self.kept < retention {
                self.given_up += swept.history as u64;
                self.parts.metrics.history_given_up.inc_by(swept.history as u64);
            }
        }
        let took = started.elapsed();
        let is_useful = found * 4 >= swept.looked_at;
        if !is_useful {
            self.idle += took;
        }
        if self.sweep.is_over() {
            self.sweep = Sweep::default();
            return self.pass_over();
        }
        took * if is_useful || self.guard.is_short { 1 } else { 9 }
    }

    /// So many rows that their commit takes about a slice.
    fn fit(&mut self, found: usize, commit: Duration) {
        if commit > SLICE * 2 {
            self.rows /= 2;
        } else if found >= self.rows && commit < SLICE {
            self.rows *= 2;
        }
        self.rows = self.rows.clamp(*ROWS.start(), *ROWS.end());
    }

    fn pass_over(&mut self) -> Duration {
        let idle = std::mem::take(&mut self.idle);
        if !self.guard.is_short {
            return PAUSE.max(idle * 10);
        }
        // All that is older has gone. Whether that is enough is known when the store has been measured
        // again; where things are refused already, nobody waits for it.
        if self.guard.is_low || self.size.measured > self.measured {
            self.measured = self.size.measured;
            self.kept = shorter(self.kept);
        }
        WATCH
    }
}

/// The next shorter time for which history is kept while room is short.
fn shorter(kept: Duration) -> Duration {
    if kept > Duration::from_secs(1) { kept / 2 } else { Duration::ZERO }
}

/// The disk as it is.
#[derive(Clone, Copy, Debug)]
struct Disk {
    free: u64,
    /// What the store's file has room for besides.
    reusable: u64,
    /// Bytes of the messages that wait.
    backlog: u64,
    has_reserve: bool,
}

/// What may still be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guard {
    free_min: u64,
    /// History is given up.
    is_short: bool,
    /// Nothing new is taken.
    is_low: bool,
    /// Nothing is sent.
    is_held: bool,
}

impl Guard {
    fn new(free_min: u64) -> Self {
        Self { free_min, is_short: false, is_low: false, is_held: false }
    }

    /// With less room nothing new is taken.
    fn needed(&self, backlog: u64) -> u64 {
        self.free_min.saturating_add(backlog.saturating_mul(DRAIN))
    }

    fn look(&mut self, disk: Disk) {
        // What can be used again is an estimate: half of it counts when hardly anything else is free.
        let reusable =
            if disk.free < self.free_min / 4 { disk.reusable / 2 } else { disk.reusable };
        let room = disk.free.saturating_add(reusable);
        let needed = self.needed(disk.backlog);
        // More is wanted to end a state than to begin it, so that it does not flicker.
        let short = needed + self.free_min / if self.is_short { 1 } else { 2 };
        self.is_short = room < short;
        let low = needed + if self.is_low { self.free_min / 16 } else { 0 };
        self.is_low = room < low;
        let last = if self.is_held { LAST + LAST / 2 } else { LAST };
        self.is_held = disk.free.saturating_add(disk.reusable / 2) < last.min(self.free_min);
    }

    /// Whether there is room for the reserve beside all that is needed.
    fn may_keep_reserve(&self, disk: Disk, bytes: u64) -> bool {
        !disk.has_reserve && bytes > 0 && disk.free >= self.needed(disk.backlog) + 2 * bytes
    }
}

/// How much of the store's file can be used again, as it was when last measured.
#[derive(Debug, Default)]
struct Size {
    from: Vec<u8>,
    counted: u64,
    known: Option<Known>,
    /// How often.
    measured: u64,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    file: u64,
    rows: u64,
    backlog: u64,
}

impl Size {
    /// Goes on measuring.
    fn step(&mut self, store: &Store, backlog: u64, time: Duration) {
        let (bytes, from) = store.measure(std::mem::take(&mut self.from), time);
        self.counted += bytes;
        match from {
            Some(from) => self.from = from,
            None => {
                let rows = std::mem::take(&mut self.counted);
                self.measured += 1;
                self.known = Some(Known { file: store.file_bytes(), rows, backlog });
            }
        }
    }

    /// sled cleans what is less than half full, so the file needs twice what is in it.
    fn reusable(&self, backlog: u64) -> u64 {
        let Some(Known { file, rows, backlog: then }) = self.known else { return 0 };
        file.saturating_sub(2 * (rows + backlog.saturating_sub(then)) + LAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn disk(free: u64, reusable: u64, backlog: u64) -> Disk {
        Disk {
            free: free * MIB,
            reusable: reusable * MIB,
            backlog: backlog * MIB,
            has_reserve: true,
        }
    }

    /// Short, low, held.
    fn check(guard: &mut Guard, disk: Disk, expected: (bool, bool, bool)) {
        guard.look(disk);
        assert_eq!((guard.is_short, guard.is_low, guard.is_held), expected, "{disk:?}");
    }

    #[test]
    fn intake_stops_while_what_waits_still_has_the_room_to_be_sent() {
        let mut guard = Guard::new(200 * MIB);
        check(&mut guard, disk(700, 0, 0), (false, false, false));
        // What waits takes 90 MB and will take four times as much; with 100 it is too much.
        check(&mut guard, disk(580, 0, 90), (true, false, false));
        check(&mut guard, disk(580, 0, 100), (true, true, false));
    }

    #[test]
    fn history_goes_before_anything_is_refused_and_sending_ends_before_the_disk_is_full() {
        let mut guard = Guard::new(200 * MIB);
        check(&mut guard, disk(290, 0, 0), (true, false, false));
        check(&mut guard, disk(390, 0, 0), (true, false, false));
        check(&mut guard, disk(410, 0, 0), (false, false, false));
        check(&mut guard, disk(190, 0, 0), (true, true, false));
        check(&mut guard, disk(205, 0, 0), (true, true, false));
        // What was given up inside of the file counts, half of it when little else is free.
        check(&mut guard, disk(100, 290, 0), (true, false, false));
        check(&mut guard, disk(40, 300, 0), (true, true, false));
        check(&mut guard, disk(21, 590, 0), (true, false, false));
        check(&mut guard, disk(21, 590, 30), (true, true, false));
        check(&mut guard, disk(10, 0, 50), (true, true, true));
        check(&mut guard, disk(74, 0, 50), (true, true, false));
        assert!(!guard.may_keep_reserve(Disk { has_reserve: false, ..disk(300, 0, 0) }, 64 * MIB));
        assert!(guard.may_keep_reserve(Disk { has_reserve: false, ..disk(400, 0, 0) }, 64 * MIB));
    }

    #[test]
    fn a_guard_that_is_turned_off_holds_nothing_up() {
        let mut guard = Guard::new(0);
        check(&mut guard, disk(1, 0, 0), (false, false, false));
    }

    #[test]
    fn all_history_goes_in_the_end() {
        let mut kept = Duration::from_secs(7 * 24 * 3600);
        for _ in 0..25 {
            kept = shorter(kept);
        }
        assert_eq!(kept, Duration::ZERO);
    }
}
