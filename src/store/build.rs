//! Makes a store in a directory of its own from rows that come from elsewhere: a copy, an export, a
//! damaged store.
//!
//! **Invariant:** what [`Builder::finish`] has answered is synced, with its directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::batches::Batches;
use super::keys::{self, Key, Table};
use super::open::{Opened, open_at};
use super::{Config, OpenError, ReadError, mark};

/// Rows that are written at a time.
const ROWS: usize = 512;

/// Rows by the name of their table.
pub type Counts = BTreeMap<&'static str, u64>;

/// A store in the making.
pub(super) struct Builder {
    path: PathBuf,
    opened: Opened,
    waiting: Vec<(Key, Option<Vec<u8>>)>,
}

impl Builder {
    /// A new store in `path`, which must not exist.
    pub(super) fn new(path: &Path, config: &Config) -> Result<Self, OpenError> {
        let opened = open_at(path, config)?;
        Ok(Self { path: path.to_owned(), opened, waiting: Vec::new() })
    }

    /// Writes a row, or deletes it.
    pub(super) fn put(&mut self, key: Key, value: Option<Vec<u8>>) -> Result<(), ReadError> {
        self.waiting.push((key, value));
        if self.waiting.len() >= ROWS {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), ReadError> {
        let mut batches = Batches::new(&self.opened.tree, None, &mut self.opened.large);
        for write in self.waiting.drain(..) {
            batches.add(&[write])?;
        }
        batches.end()?;
        Ok(())
    }

    /// Writes a row as sled has it, also one that is a part of another.
    pub(super) fn put_raw(&self, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
        self.opened.tree.insert(key, value)?;
        Ok(())
    }

    /// The tree, for whoever looks through what has been written.
    pub(super) fn tree(&mut self) -> Result<&sled::Tree, ReadError> {
        self.write()?;
        Ok(&self.opened.tree)
    }

    /// Notes how many commits it has come, and syncs everything.
    pub(super) fn finish(mut self, commit: u64) -> Result<Counts, ReadError> {
        let (key, value) = mark::row(commit);
        self.put(key, Some(value))?;
        self.write()?;
        let io = |error: std::io::Error| ReadError(error.to_string());
        self.opened.disk.sync()?;
        let counts = counts(&self.opened.tree);
        drop(self.opened);
        for name in ["db", "conf", "blobs", "."] {
            let path = self.path.join(name);
            if path.exists() {
                File::open(path).and_then(|file| file.sync_all()).map_err(io)?;
            }
        }
        if let Some(parent) = self.path.parent() {
            File::open(parent).and_then(|file| file.sync_all()).map_err(io)?;
        }
        Ok(counts)
    }
}

/// How many rows each table has, but for parts and what the store notes of itself.
pub(super) fn counts(tree: &sled::Tree) -> Counts {
    let mut counts = Counts::new();
    for key in tree.iter().keys().map_while(Result::ok) {
        if let Some((table, name)) = keys::table_of(&key)
            && !matches!(table, Table::Part | Table::Meta)
        {
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}
