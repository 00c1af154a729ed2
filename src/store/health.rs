//! What is wrong with the store, for people: rows that cannot be read, and what the start found
//! missing.
//!
//! Counts and says; mends nothing. **Invariant:** each row that cannot be read is said once, with its
//! key, and stays on disk.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::keys;
use crate::telemetry::Metrics;

/// Keys that are remembered so that none is counted twice; beyond, all that is known is "more".
const KEYS_MAX: usize = 10_000;
/// Rows that are said one by one in the log.
const SAID_MAX: usize = 20;

/// What is said where the files are not where they were.
pub(super) const GONE: &str = "the store's files were deleted or moved while Watchbell runs: nothing new is taken, \
    because the next start would not find it; what waits is still sent. Put them back, or wait until the outbox is \
    empty and restart";

/// Clones share what they know.
#[derive(Clone, Debug)]
pub(super) struct Health {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    known: Mutex<Known>,
    metrics: Metrics,
    /// Of a store that is looked through, and says what it found in another way.
    is_quiet: bool,
}

#[derive(Debug, Default)]
struct Known {
    unreadable: BTreeSet<Vec<u8>>,
    /// What the start found: losses, repairs.
    found: Vec<String>,
    /// The files were deleted or moved.
    is_gone: bool,
}

impl Health {
    pub(super) fn new(metrics: &Metrics, found: Vec<String>) -> Self {
        Self::with(metrics.clone(), found, false)
    }

    /// Says nothing in the log.
    pub(super) fn quiet() -> Self {
        Self::with(Metrics::new(), Vec::new(), true)
    }

    fn with(metrics: Metrics, found: Vec<String>, is_quiet: bool) -> Self {
        let known = Mutex::new(Known { found, ..Known::default() });
        Self { shared: Arc::new(Shared { known, metrics, is_quiet }) }
    }

    /// A row, or with `page` the page of sled's behind this key, cannot be read.
    pub(super) fn unreadable(&self, key: &[u8], page: bool, why: &dyn std::fmt::Display) {
        let mut inner = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = key.to_vec();
        known.push(page.into());
        if inner.unreadable.len() >= KEYS_MAX || !inner.unreadable.insert(known) {
            return;
        }
        let count = inner.unreadable.len();
        drop(inner);
        self.shared.metrics.store_rows_unreadable.set(i64::try_from(count).unwrap_or(i64::MAX));
        if self.shared.is_quiet {
            return;
        }
        if count <= SAID_MAX {
            let key = keys::shown(key);
            let what = if page { "a page of rows behind this key" } else { "a row" };
            tracing::error!(
                key, %why,
                "{what} of the store cannot be read; it stays where it is, all others are served. \
                 Stop Watchbell and run `watchbell store repair` to save what can be saved"
            );
        }
        if count == SAID_MAX {
            tracing::error!("further rows that cannot be read are only counted");
        }
    }

    /// Whether the store's file is still the one that was opened.
    pub(super) fn set_in_place(&self, is_in_place: bool) {
        let mut inner = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        inner.is_gone = !is_in_place;
    }

    /// What no repair mends, a line each: what the start found, and that the store was taken away.
    pub(super) fn found(&self) -> Vec<String> {
        let inner = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = inner.found.clone();
        found.extend(inner.is_gone.then(|| GONE.to_owned()));
        found
    }

    /// What an operator should know and do, a line each; empty where all is well.
    pub(super) fn problems(&self) -> Vec<String> {
        let inner = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems = inner.found.clone();
        if inner.is_gone {
            problems.push(GONE.to_owned());
        }
        let (count, or_more) = match inner.unreadable.len() {
            0 => return problems,
            count if count >= KEYS_MAX => (count, " or more"),
            count => (count, ""),
        };
        let first = inner.unreadable.first().and_then(|key| key.split_last());
        let first = first.map(|(_, key)| keys::shown(key)).unwrap_or_default();
        problems.push(format!(
            "{count}{or_more} {} of the store cannot be read (the first: {first}); nothing of it is \
             deleted, and everything else is served; `watchbell store verify` lists all of it, and with \
             Watchbell stopped `watchbell store repair` saves what can be saved",
            if count == 1 { "row" } else { "rows" }
        ));
        problems
    }
}
