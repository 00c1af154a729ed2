//! The one writer: group commit on a thread of its own.
//!
//! It takes whatever waits, packs whole operations into batches ([`super::batches`]), applies them,
//! flushes once, syncs once, and answers everyone. It waits for nothing: what is queued while a
//! commit runs is the next commit, so a lone operation costs one sync and many share one. A thread and not a task, because flush and sync block for milliseconds.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};

use super::Op;
use super::batches::Batches;
use super::open::{Opened, panic_text};
use crate::telemetry::Metrics;

/// Requests that may wait, and that one commit may take.
const QUEUE: usize = 1024;

/// The store could not write: nothing of the operation is known to be durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("writing to the store: {0}")]
pub struct CommitError(Arc<str>);

impl CommitError {
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
}

impl Request {
    pub(super) fn new(ops: Vec<Op>, done: Done) -> Self {
        Self { ops, done, stop: None }
    }

    /// Ends the writer; `ended` is dropped when it has.
    pub(super) fn stop(ended: oneshot::Sender<()>) -> Self {
        Self { ops: Vec::new(), done: Box::new(|_| ()), stop: Some(ended) }
    }
}

/// Starts the thread. It ends with [`Request::stop`], or when the last sender has gone.
pub(super) fn start(
    mut opened: Opened,
    metrics: Metrics,
) -> std::io::Result<(mpsc::Sender<Request>, watch::Receiver<Option<CommitError>>)> {
    let (requests, queue) = mpsc::channel(QUEUE);
    let (failed, failure) = watch::channel(None);
    std::thread::Builder::new().name("store".to_owned()).spawn(move || {
        let ended = run(&mut opened, queue, &failed, &metrics);
        // sled lets go of its lock first, so that whoever closed the store may open it again.
        drop(opened);
        drop(ended);
    })?;
    Ok((requests, failure))
}

fn run(
    opened: &mut Opened,
    mut queue: mpsc::Receiver<Request>,
    failed: &watch::Sender<Option<CommitError>>,
    metrics: &Metrics,
) -> Option<oneshot::Sender<()>> {
    let mut failure: Option<CommitError> = None;
    let mut requests = Vec::with_capacity(QUEUE);
    let mut ended = None;
    while ended.is_none() && queue.blocking_recv_many(&mut requests, QUEUE) > 0 {
        let started = Instant::now();
        // After one failed write sled takes no more, and what it did take is not known.
        let result = match &failure {
            Some(error) => Err(error.clone()),
            None => catch_unwind(AssertUnwindSafe(|| write(opened, &requests)))
                .unwrap_or_else(|panic| Err(CommitError(panic_text(&*panic).into()))),
        };
        metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        match &result {
            Ok(()) => {
                let operations = requests.iter().map(|request| request.ops.len() as u64).sum();
                metrics.operations_committed.inc_by(operations);
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
            (request.done)(result.clone());
            ended = ended.or(request.stop);
        }
    }
    ended
}

#[expect(clippy::disallowed_methods, reason = "the one place that flushes, and it syncs after it")]
fn write(opened: &mut Opened, requests: &[Request]) -> Result<(), CommitError> {
    let failed = |error: &dyn std::fmt::Display| CommitError(error.to_string().into());
    let mut batches = Batches::new(&opened.tree, &mut opened.large);
    for whole in requests.iter().flat_map(|request| &request.ops).flat_map(Op::wholes) {
        batches.add(whole).map_err(|error| failed(&error))?;
    }
    if !batches.end().map_err(|error| failed(&error))? {
        return Ok(());
    }
    opened.db.flush().map_err(|error| failed(&error))?;
    if let Some(blobs) = &mut opened.blobs {
        blobs.sync().map_err(|error| failed(&error))?;
    }
    sync(&opened.file).map_err(|error| failed(&error))
}

fn sync(file: &File) -> std::io::Result<()> {
    file.sync_data()
}
