//! Recorded traffic through a rule set: what would have fired, and who would have been messaged.
//!
//! One thread reads and parses ([`traffic`]); batches go over bounded queues to a thread for each rule
//! set, which lets its pipeline run in virtual time ([`tally`]): the time is that of the publishes, and
//! timers are met between them. Of two rule sets each batch's alerts are compared as they come
//! ([`compare`]), so that memory does not grow with the recording.
//!
//! Never: writes a row, sends anything, reads a clock. Invariant: what is counted is what the intake
//! would have done with the same publishes at those times, from an empty store.

pub mod compare;
pub mod price;
pub mod report;
pub mod tally;
pub mod traffic;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{ScopedJoinHandle, scope};

use self::compare::{Comparison, OnlyOne};
use self::report::{Report, Seen};
use self::tally::{Raised, Setup, Tally};
use self::traffic::Traffic;
use crate::model::Publish;

/// Publishes that go from thread to thread at a time.
const BATCH: usize = 1_024;
/// Batches that may wait for a rule set.
const QUEUE: usize = 8;

type Batch = Arc<Vec<Publish>>;

/// What came of a replay.
#[derive(Debug)]
pub struct Replayed {
    /// The recording.
    pub seen: Seen,
    /// What the rule set made of it.
    pub report: Report,
    /// What the other rule set made of it, and which alerts only one of them raised.
    pub against: Option<(Report, OnlyOne)>,
}

/// Runs the whole recording.
pub fn run(traffic: Traffic, setup: Setup<'_>, against: Option<Setup<'_>>) -> Replayed {
    let names_raised = against.is_some();
    scope(|scope| {
        let (to_first, batches) = sync_channel(QUEUE);
        let mut queues = vec![to_first];
        let other = against.map(|setup| {
            let (to_other, batches) = sync_channel(QUEUE);
            queues.push(to_other);
            let (raised, from_other) = sync_channel(QUEUE);
            (scope.spawn(move || answer(setup, &batches, &raised)), from_other)
        });
        let reader = scope.spawn(move || read(traffic, &queues));
        let mut tally = Tally::new(setup, names_raised);
        let mut comparison = Comparison::default();
        for batch in batches {
            tally.batch(&batch);
            if let Some((_, from_other)) = &other
                && let Ok(theirs) = from_other.recv()
            {
                comparison.compare(tally.take_raised(), theirs);
            }
        }
        let against = other.map(|(thread, _)| (joined(thread), comparison.finish()));
        Replayed { seen: joined(reader), report: tally.finish(), against }
    })
}

/// Reads the recording to its end, or until nobody listens any more.
fn read(mut traffic: Traffic, queues: &[SyncSender<Batch>]) -> Seen {
    loop {
        let batch: Vec<Publish> = traffic.by_ref().take(BATCH).collect();
        let is_last = batch.len() < BATCH;
        let batch = Arc::new(batch);
        let is_heard = queues.iter().all(|queue| queue.send(Arc::clone(&batch)).is_ok());
        if is_last || !is_heard {
            return traffic.seen();
        }
    }
}

/// The other rule set: for each batch it says what was raised.
fn answer(
    setup: Setup<'_>,
    batches: &Receiver<Batch>,
    answers: &SyncSender<Vec<Raised>>,
) -> Report {
    let mut tally = Tally::new(setup, true);
    for batch in batches {
        tally.batch(&batch);
        if answers.send(tally.take_raised()).is_err() {
            break;
        }
    }
    tally.finish()
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
