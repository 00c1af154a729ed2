//! Watches over the writer: a commit that does not end is a failure like one that fails.
//!
//! sled 0.34.7 can wait for itself: when a new segment needs room that an asynchronous cut of the file
//! is giving back, while all threads of its pool wait for that segment. A disk can hang, too. Nobody
//! would be answered any more, and the process would look alive; so the failure is said, and the
//! process ends and is started again, as after a write that failed.
//!
//! Counts its own wake-ups and not the time: a process that was stopped for an hour has not been
//! waiting for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use super::writer::CommitError;

/// How often it looks.
const EVERY: Duration = Duration::from_millis(250);

/// How many commits have begun and ended.
#[derive(Debug, Default)]
pub(super) struct Commits {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Commits {
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// For how many looks the same commit has been under way.
#[derive(Debug, Default)]
struct Stuck {
    begun: u64,
    looks: u32,
}

impl Stuck {
    fn look(&mut self, begun: u64, ended: u64) -> u32 {
        self.looks = if begun != ended && begun == self.begun { self.looks + 1 } else { 0 };
        self.begun = begun;
        self.looks
    }
}

/// Starts the thread that looks; it ends when the writer has.
pub(super) fn start(
    commits: &Arc<Commits>,
    failed: Arc<watch::Sender<Option<CommitError>>>,
    timeout: Duration,
) -> std::io::Result<()> {
    let commits = Arc::downgrade(commits);
    std::thread::Builder::new().name("store-watch".to_owned()).spawn(move || {
        let mut stuck = Stuck::default();
        loop {
            std::thread::park_timeout(EVERY);
            let Some(commits) = commits.upgrade() else { return };
            let ended = commits.ended.load(Ordering::Relaxed);
            let looks = stuck.look(commits.begun.load(Ordering::Relaxed), ended);
            if EVERY * looks >= timeout {
                let error = CommitError::stuck(timeout);
                tracing::error!(%error, "the store takes no more writes");
                failed.send_replace(Some(error));
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_commit_that_does_not_end_counts() {
        let mut stuck = Stuck::default();
        for (begun, ended, looks) in
            [(0, 0, 0), (1, 1, 0), (2, 1, 0), (2, 1, 1), (2, 1, 2), (3, 2, 0), (3, 2, 1), (3, 3, 0)]
        {
            assert_eq!(stuck.look(begun, ended), looks, "{begun} {ended}");
        }
    }

    #[test]
    fn a_commit_that_hangs_is_a_failure() {
        let (failed, mut failure) = watch::channel(None);
        let commits = Arc::new(Commits::default());
        start(&commits, Arc::new(failed), EVERY).expect("started");
        commits.begin();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let error = runtime
            .block_on(async { failure.wait_for(Option::is_some).await.map(|error| error.clone()) })
            .expect("said")
            .expect("an error");
        assert!(error.to_string().contains("has not ended"), "{error}");
    }
}
