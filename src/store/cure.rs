//! What a start puts right in a store that an older program or a crash has left behind.
//!
//! Parts that belong to no row are deleted, and rows of an older program that are too large for one
//! key are taken apart, once: a row of table `M` says that it was done. All of it is durable before the store
//! is used.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::batches::Batches;
use super::open::Opened;
use super::parts::{Head, Large, is_part, is_whole};
use super::{ReadError, keys};

/// Below it stands which rows were looked through.
const PARTS: &str = "parts";

/// Puts everything right; `opened` may be written to on return.
///
/// # Errors
/// The store cannot be read or written.
pub(super) fn cure(opened: &mut Opened) -> Result<(), ReadError> {
    let started = Instant::now();
    let (large, left_over) = Large::find(&opened.tree);
    opened.large = large;
    let known = keys::meta(PARTS);
    let unknown = opened.tree.get(&known)?.is_none();

    let mut taken_apart = 0_u64;
    let mut batches = Batches::new(&opened.tree, Some(&mut opened.disk), &mut opened.large);
    for part in &left_over {
        batches.add(&[(part.clone(), None)])?;
    }
    if unknown {
        let mut complete = true;
        for item in opened.tree.iter() {
            // What cannot be read is reported by whoever wants it; what is behind it waits.
            let Ok((key, value)) = item else {
                complete = false;
                break;
            };
            if !is_part(&key) && !is_whole(&key, value.len()) && Head::of(&value).is_none() {
                batches.add(&[(key.to_vec(), Some(value.to_vec()))])?;
                taken_apart += 1;
            }
        }
        if complete {
            batches.add(&[(known, Some(b"1".to_vec()))])?;
        }
    }
    batches.end()?;
    if taken_apart > 0 || !left_over.is_empty() {
        opened.disk.sync()?;
        tracing::info!(
            rows_taken_apart = taken_apart,
            parts_deleted = left_over.len(),
            elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "large rows of the store were put right"
        );
    }
    Ok(())
}

/// The files under `blobs/` of a store that could not be rid of them yet.
pub(super) struct Blobs {
    directory: PathBuf,
    /// Their names are never used twice.
    synced: HashSet<OsString>,
}

impl Blobs {
    /// Those of the store in `path`.
    pub(super) fn new(path: &Path) -> Self {
        Self { directory: path.join("blobs"), synced: HashSet::new() }
    }

    /// Syncs those that are new, and says how many there are.
    pub(super) fn sync(&mut self) -> io::Result<usize> {
        let mut found = HashSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if !self.synced.contains(&name) {
                match File::open(self.directory.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // sled deletes those that are outlived.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
            }
            found.insert(name);
        }
        if !found.is_subset(&self.synced) {
            File::open(&self.directory)?.sync_all()?;
        }
        self.synced = found;
        Ok(self.synced.len())
    }
}
