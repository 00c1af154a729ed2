//! The one writer: group commit on a thread of its own.
//!
//! It takes whatever waits, packs whole operations into batches ([`super::batches`]), applies them,
//! flushes once, syncs once, and answers everyone. It waits for nothing: what is queued while a
//! commit runs is the next commit, so a lone operation costs one sync and many share one. A thread and not a task, because flush and sync block for milliseconds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use super::Op;
use super::batches::Batches;
use super::disk::Disk;
use super::mark::{self, Mark, MarkFile, Word};
use super::open::{Opened, panic_text};
use super::tap::Tap;
use super::watchdog::Commits;
use crate::telemetry::Metrics;

/// Requests that may wait, and that one commit may take.
const QUEUE: usize = 1024;

/// The store could not write: nothing of the operation is known to be durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("writing to the store: {0}")]
pub struct CommitError(Arc<str>);

impl CommitError {
    pub(super) fn stuck(timeout: Duration) -> Self {
        let seconds = timeout.as_secs();
        Self(format!("a commit has not ended for {seconds} s (store.commit_timeout)").into())
    }

    pub(super) fn closed() -> Self {
        Self("it is closed".into())
    }
}

type Done = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// Operations, and whom to tell.
pub(super) struct Request {
    pub(super) ops: Vec<Op>,
    pub(super) done: Done,
    /// Set: the writer ends after this request.
    pub(super) stop: Option<oneshot::Sender<()>>,
    /// Set: how far the store has come is to stand in it, whatever else is written.
    is_mark: bool,
    /// Set: reads for a copy.
    read: Option<Reading>,
}

/// A read between two commits.
pub(super) type Reading = Box<dyn FnOnce(&mut Tap) + Send>;

impl Request {
    pub(super) fn new(ops: Vec<Op>, done: Done) -> Self {
        Self { ops, done, stop: None, is_mark: false, read: None }
    }

    /// Ends the writer; `ended` is dropped when it has.
    pub(super) fn stop(ended: oneshot::Sender<()>) -> Self {
        Self { stop: Some(ended), ..Self::new(Vec::new(), Box::new(|_| ())) }
    }

    /// Notes how far the store has come.
    pub(super) fn mark() -> Self {
        Self { is_mark: true, ..Self::new(Vec::new(), Box::new(|_| ())) }
    }

    /// Reads between two commits.
    pub(super) fn read(read: Reading) -> Self {
        Self { read: Some(read), ..Self::new(Vec::new(), Box::new(|_| ())) }
    }
}

/// Starts the thread. It ends with [`Request::stop`], or when the last sender has gone.
pub(super) fn start(
    mut opened: Opened,
    mark_file: MarkFile,
    metrics: Metrics,
    timeout: Duration,
) -> std::io::Result<(mpsc::Sender<Request>, watch::Receiver<Option<CommitError>>)> {
    let (requests, queue) = mpsc::channel(QUEUE);
    let (words, keeper) = mark::keep(mark_file, requests.downgrade())?;
    let (failed, failure) = watch::channel(None);
    let (failed, commits) = (Arc::new(failed), Arc::new(Commits::default()));
    super::watchdog::start(&commits, Arc::clone(&failed), timeout)?;
    std::thread::Builder::new().name("store".to_owned()).spawn(move || {
        let ended = run(&mut opened, &words, queue, (&failed, &commits), &metrics);
        // The last mark is written before anybody hears that the store is closed.
        drop(words);
        if keeper.join().is_err() {
            tracing::error!("the thread that keeps the high-water mark ended in a fault");
        }
        // sled lets go of its lock first, so that whoever closed the store may open it again.
        drop(opened);
        drop(ended);
    })?;
    Ok((requests, failure))
}

fn run(
    opened: &mut Opened,
    words: &SyncSender<Word>,
    mut queue: mpsc::Receiver<Request>,
    (failed, commits): (&watch::Sender<Option<CommitError>>, &Commits),
    metrics: &Metrics,
) -> Option<oneshot::Sender<()>> {
    let mut failure: Option<CommitError> = None;
    let mut requests = Vec::with_capacity(QUEUE);
    let mut ended = None;
    let commit = opened.commit;
    let mut progress =
        Progress { commit, noted: commit, told: commit, at: Instant::now(), reminded: false };
    let mut tap = Tap::default();
    while ended.is_none() && queue.blocking_recv_many(&mut requests, QUEUE) > 0 {
        let started = Instant::now();
        commits.begin();
        // After one failed write sled takes no more, and what it did take is not known.
        let result = match &failure {
            Some(error) => Err(error.clone()),
            None => catch_unwind(AssertUnwindSafe(|| write(opened, &mut progress, &requests)))
                .unwrap_or_else(|panic| Err(CommitError(panic_text(&*panic).into()))),
        };
        commits.end();
        metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        match &result {
            Ok(()) => {
                let operations = requests.iter().map(|request| request.ops.len() as u64).sum();
                metrics.operations_committed.inc_by(operations);
                progress.tell(words, &opened.disk, metrics);
                tap.note(&requests);
            }
            Err(error) if failure.is_none() => {
                tracing::error!(%error, "the store takes no more writes");
                metrics.store_failed.set(1);
                failure = Some(error.clone());
                failed.send_replace(Some(error.clone()));
            }
            Err(_) => {}
        }
        for request in requests.drain(..) {
            if let Some(read) = request.read {
                // A copy that fails must not end the writer.
                drop(catch_unwind(AssertUnwindSafe(|| read(&mut tap))));
            }
            (request.done)(result.clone());
            ended = ended.or(request.stop);
        }
    }
    // What stops in order leaves a mark that says all.
    if failure.is_none() && progress.commit > progress.noted {
        let last = [Request::mark()];
        match catch_unwind(AssertUnwindSafe(|| write(opened, &mut progress, &last))) {
            Ok(Ok(())) => progress.tell_last(words, &opened.disk, metrics),
            Ok(Err(error)) => tracing::error!(%error, "the store's high-water mark is behind"),
            Err(panic) => {
                tracing::error!(
                    error = panic_text(&*panic),
                    "the store's high-water mark is behind"
                );
            }
        }
    }
    ended
}

/// How far the store has come, and how far it says so itself.
struct Progress {
    commit: u64,
    noted: u64,
    /// What was last written into the mark.
    told: u64,
    /// When it last said so.
    at: Instant,
    /// Whether it will be reminded to.
    reminded: bool,
}

impl Progress {
    /// After a commit. Never waits: a word that is lost is said again by the next commit.
    fn tell(&mut self, words: &SyncSender<Word>, disk: &Disk, metrics: &Metrics) {
        let word = match self.noted == self.commit {
            true if self.told == self.noted => return,
            true => Word::Durable(Mark::now(self.commit, disk.bytes(), metrics)),
            false if !self.reminded => Word::Behind,
            false => return,
        };
        let is_said = words.try_send(word).is_ok();
        if is_said && self.noted == self.commit {
            self.told = self.noted;
        }
        self.reminded = is_said && self.noted < self.commit;
    }

    /// With the last commit, waits until it can be said.
    fn tell_last(&self, words: &SyncSender<Word>, disk: &Disk, metrics: &Metrics) {
        drop(words.send(Word::Durable(Mark::now(self.commit, disk.bytes(), metrics))));
    }
}

fn write(
    opened: &mut Opened,
    progress: &mut Progress,
    requests: &[Request],
) -> Result<(), CommitError> {
    let failed = |error: &dyn std::fmt::Display| CommitError(error.to_string().into());
    let mut batches = Batches::new(&opened.tree, Some(&mut opened.disk), &mut opened.large);
    for whole in requests.iter().flat_map(|request| &request.ops).flat_map(Op::wholes) {
        batches.add(whole).map_err(|error| failed(&error))?;
    }
    let is_due = requests.iter().any(|request| request.is_mark);
    let commit = progress.commit + u64::from(batches.has_written());
    let notes = commit > progress.noted && (is_due || progress.at.elapsed() >= mark::EVERY);
    if notes {
        let (key, value) = mark::row(commit);
        batches.add(&[(key, Some(value))]).map_err(|error| failed(&error))?;
    }
    if !batches.end().map_err(|error| failed(&error))? {
        return Ok(());
    }
    progress.commit = commit;
    opened.disk.sync().map_err(|error| failed(&error))?;
    if notes {
        progress.noted = commit;
        progress.at = Instant::now();
    }
    Ok(())
}
