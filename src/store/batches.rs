//! How operations become sled's batches: which are written together, and how large rows are split.
//!
//! A batch is written whole or not at all. An operation with the parts of its large rows is one
//! batch; where that would be too large, the parts are written in batches before the operation, and
//! those of the rows that it replaces are deleted in batches after it: a crash in between leaves
//! parts that no row has, which the next start deletes.

use super::disk::Disk;
use super::keys::Key;
use super::parts::{Large, is_whole, standing_key};

/// Larger batches make sled's memory and disk run away; every batch costs two writes, so smaller
/// ones are slower.
const BATCH_KEYS: usize = 96;
/// The same in bytes of keys and values.
const BATCH_BYTES: usize = 256 << 10;

type Write = (Key, Option<Vec<u8>>);

/// Fills batches and applies them to the tree.
pub(super) struct Batches<'a> {
    tree: &'a sled::Tree,
    /// What is synced in between; `None` where nobody counts on what is there before the end.
    disk: Option<&'a mut Disk>,
    large: &'a mut Large,
    batch: sled::Batch,
    keys: usize,
    bytes: usize,
    written: bool,
}

impl<'a> Batches<'a> {
    pub(super) fn new(
        tree: &'a sled::Tree,
        disk: Option<&'a mut Disk>,
        large: &'a mut Large,
    ) -> Self {
        Self { tree, disk, large, batch: sled::Batch::default(), keys: 0, bytes: 0, written: false }
    }

    /// Adds what is written together or not at all.
    pub(super) fn add(&mut self, writes: &[Write]) -> sled::Result<()> {
        if writes.iter().all(|(key, value)| self.large.leaves_alone(key, value.as_ref())) {
            return self.add_together(writes);
        }
        let mut parts = Vec::new();
        let mut heads = Vec::with_capacity(writes.len());
        let mut outlived = Vec::new();
        for (key, value) in writes {
            let standing = standing_key(key);
            if *standing != **key {
                // As an older program wrote it.
                heads.push((key.clone(), None));
            }
            let before = self.large.take(&standing);
            outlived
                .extend(before.into_iter().flat_map(|place| place.keys()).map(|key| (key, None)));
            match value {
                Some(value) if !is_whole(key, value.len()) => {
                    let split = self.large.split(key, &standing, value);
                    parts.extend(split.parts.into_iter().map(|(key, part)| (key, Some(part))));
                    heads.push((standing.into_owned(), Some(split.head)));
                }
                value => heads.push((standing.into_owned(), value.clone())),
            }
        }
        let all = [&parts, &heads, &outlived];
        if all.iter().map(|some| some.len()).sum::<usize>() <= BATCH_KEYS
            && all.iter().map(|some| bytes_of(some)).sum::<usize>() <= BATCH_BYTES
        {
            parts.append(&mut heads);
            // Last: what a row was twice within one operation, it is only once.
            parts.append(&mut outlived);
            return self.add_together(&parts);
        }
        parts.iter().try_for_each(|part| self.add_together(std::slice::from_ref(part)))?;
        self.add_together(&heads)?;
        outlived.iter().try_for_each(|part| self.add_together(std::slice::from_ref(part)))
    }

    fn add_together(&mut self, writes: &[Write]) -> sled::Result<()> {
        let bytes = bytes_of(writes);
        if self.keys > 0
            && (self.keys + writes.len() > BATCH_KEYS || self.bytes + bytes > BATCH_BYTES)
        {
            self.apply()?;
            self.keys = 0;
            self.bytes = 0;
        }
        for (key, value) in writes {
            match value {
                Some(value) => self.batch.insert(key.as_slice(), value.as_slice()),
                None => self.batch.remove(key.as_slice()),
            }
        }
        self.keys += writes.len();
        self.bytes += bytes;
        self.written |= !writes.is_empty();
        Ok(())
    }

    /// Whether anything has been added.
    pub(super) fn has_written(&self) -> bool {
        self.written
    }

    /// Applies the last batch; says whether anything was written at all.
    pub(super) fn end(mut self) -> sled::Result<bool> {
        if self.keys > 0 {
            self.apply()?;
        }
        Ok(self.written)
    }

    fn apply(&mut self) -> sled::Result<()> {
        if let Some(disk) = &mut self.disk {
            disk.sync_if_due()?;
        }
        self.tree.apply_batch(std::mem::take(&mut self.batch))
    }
}

fn bytes_of(writes: &[Write]) -> usize {
    writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}
