//! A store that is written anew beside the old one and then takes its place: what cures a store of
//! blobs, gives space back, and brings back what was salvaged or exported.
//!
//! Beside `store/`, the new one is `store.new/` until it is complete and every file of it is on
//! disk; then the two directories change their names in one step, and what is `store.new/` now is
//! deleted. Where the file system cannot do that in one step, `store/` becomes `store.old/` first,
//! and a start that finds no `store/` takes `store.old/` back.
//!
//! **Invariant:** whenever the process or the power fails, the next start finds the old store or the
//! new one, whole, under `store/`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};

use super::batches::Batches;
use super::parts::{KeyAndValue, Large};
use super::{Config, open, reserve};

/// The store, the one that is to take its place, and the one whose place it took.
const CURRENT: &str = "store";
const NEW: &str = "store.new";
const OLD: &str = "store.old";

/// So often the free space is looked at, bytes written.
const LOOK_EVERY_BYTES: u64 = 4 << 20;
/// So much is left free for the rest of the system, bytes.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// A store was not rewritten; the old one is as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum RewriteError {
    /// There is not enough room beside the old one.
    #[error(
        "{path}: no room for a second copy of the store: {free} bytes were free after {written} bytes of its rows; make room for as much as `store/` takes, and start again",
        path = .path.display()
    )]
    NoRoom {
        /// The data directory.
        path: PathBuf,
        /// Free bytes on its disk.
        free: u64,
        /// Bytes of keys and values until then.
        written: u64,
    },
    /// A row cannot be read.
    #[error("{0}")]
    Read(#[from] super::ReadError),
    /// sled cannot write.
    #[error("{path}: {error}", path = .path.display())]
    Sled {
        /// Where.
        path: PathBuf,
        /// What it says.
        error: sled::Error,
    },
    /// A file cannot be written, synced or renamed.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Another process has begun to use the old store.
    #[error("{path}: another watchbell has opened it meanwhile", path = .0.display())]
    InUse(PathBuf),
}

/// A new store, complete and on disk, that has not taken its place yet. Dropped, it stays aside, and
/// the next start deletes it.
pub(super) struct NewStore {
    directory: PathBuf,
    /// How many rows it has.
    pub(super) rows: u64,
    /// Bytes of their keys and values.
    pub(super) bytes: u64,
}

/// Holds the lock on the files of the old store as long as it lives: whoever had opened them just
/// before they were replaced does not get them.
pub(super) struct Replaced {
    _locked: File,
}

/// Writes `rows` to a new store beside the one in `directory`: whole rows, the meta rows among them.
///
/// # Errors
/// A row is an error, or the new store cannot be written; what there was of it is deleted.
pub(super) fn write_beside<E>(
    directory: &Path,
    config: &Config,
    rows: impl Iterator<Item = Result<KeyAndValue, E>>,
) -> Result<NewStore, RewriteError>
where
    RewriteError: From<E>,
{
    let path = directory.join(NEW);
    let written = remove(&path)
        .and_then(|()| fs::DirBuilder::new().mode(0o700).create(&path))
        .map_err(at(&path))
        .and_then(|()| fill(directory, &path, config, rows))
        // sled's threads have let go of it: whoever opens it next is not told that it is in use.
        .and_then(|written| lock(&path.join("db")).map(|_| written))
        .and_then(|written| sync_tree(&path).map(|()| written).map_err(at(&path)))
        .and_then(|written| sync(directory).map(|()| written).map_err(at(directory)));
    if written.is_err() {
        // A start deletes it too.
        drop(remove(&path));
    }
    let (rows, bytes) = written?;
    Ok(NewStore { directory: directory.to_owned(), rows, bytes })
}

#[expect(clippy::disallowed_methods, reason = "every file is synced after it")]
fn fill<E>(
    directory: &Path,
    path: &Path,
    config: &Config,
    rows: impl Iterator<Item = Result<KeyAndValue, E>>,
) -> Result<(u64, u64), RewriteError>
where
    RewriteError: From<E>,
{
    let failed = |error| RewriteError::Sled { path: path.to_owned(), error };
    let db = open::sled_config(path, config, config.segment_bytes).open().map_err(failed)?;
    let mut large = Large::default();
    let mut batches = Batches::new(&db, None, &mut large);
    let (mut count, mut bytes, mut look_at) = (0, 0, 0);
    for row in rows {
        if bytes >= look_at {
            look_at = bytes + LOOK_EVERY_BYTES;
            let free = reserve::free_bytes(directory).map_err(at(directory))?;
            if free < FREE_BYTES_MIN {
                return Err(RewriteError::NoRoom {
                    path: directory.to_owned(),
                    free,
                    written: bytes,
                });
            }
        }
        let (key, value) = row?;
        count += 1;
        bytes += (key.len() + value.len()) as u64;
        batches.add(&[(key, Some(value))]).map_err(failed)?;
    }
    batches.end().map_err(failed)?;
    db.flush().map_err(failed)?;
    Ok((count, bytes))
}

impl NewStore {
    /// How large its file is, bytes.
    pub(super) fn file_bytes(&self) -> io::Result<u64> {
        Ok(fs::metadata(self.directory.join(NEW).join("db"))?.len())
    }

    /// Puts it in the place of the old one, which nobody may have open any more, and deletes that.
    ///
    /// # Errors
    /// The old store stands as before, unless it is what could not be deleted.
    pub(super) fn take_place(self) -> Result<Replaced, RewriteError> {
        self.take_place_with(|new, current| {
            renameat_with(CWD, new, CWD, current, RenameFlags::EXCHANGE).map_err(io::Error::from)
        })
    }

    fn take_place_with(
        self,
        exchange: impl FnOnce(&Path, &Path) -> io::Result<()>,
    ) -> Result<Replaced, RewriteError> {
        let directory = &*self.directory;
        let [current, new, old] = [CURRENT, NEW, OLD].map(|name| directory.join(name));
        let locked = lock(&current.join("db"))?;
        match exchange(&new, &current) {
            Ok(()) => {
                sync(directory).map_err(at(directory))?;
                remove(&new).map_err(at(&new))?;
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported
                ) =>
            {
                remove(&old).map_err(at(&old))?;
                fs::rename(&current, &old).map_err(at(&current))?;
                sync(directory).map_err(at(directory))?;
                if let Err(error) = fs::rename(&new, &current) {
                    fs::rename(&old, &current).map_err(at(&old))?;
                    return Err(RewriteError::Io { path: new, error });
                }
                sync(directory).map_err(at(directory))?;
                remove(&old).map_err(at(&old))?;
            }
            Err(error) => return Err(RewriteError::Io { path: new, error }),
        }
        Ok(Replaced { _locked: locked })
    }
}

/// sled's own lock: its threads may hold it a moment longer than its handles.
fn lock(db: &Path) -> Result<File, RewriteError> {
    let file = File::options().read(true).write(true).open(db).map_err(at(db))?;
    for _ in 0..1000 {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::park_timeout(std::time::Duration::from_millis(2));
            }
            Err(error) => {
                return Err(RewriteError::Io { path: db.to_owned(), error: error.into() });
            }
        }
    }
    Err(RewriteError::InUse(db.to_owned()))
}

/// Before sled opens the store: takes the old one back where a crash came between two renames.
pub(super) fn take_back(directory: &Path) -> io::Result<()> {
    let [current, old] = [CURRENT, OLD].map(|name| directory.join(name));
    if old.exists() && !current.exists() {
        fs::rename(old, current)?;
        sync(directory)?;
    }
    Ok(())
}

/// With sled's lock held: deletes what a crash left of a new store, or of a replaced one. What gave way
/// to a repair or a restore has other names, and stays.
pub(super) fn delete_left_over(directory: &Path) -> io::Result<()> {
    for name in [NEW, OLD, "store.compacting", "store.repairing", "store.restoring"] {
        remove(&directory.join(name))?;
    }
    // An older program's `compact` had the old store under such a name until it deleted it.
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("store.compacted-") {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            sync(&entry.path())?;
        }
    }
    sync(path)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RewriteError {
    let path = path.to_owned();
    move |error| RewriteError::Io { path, error }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: u8) -> impl Iterator<Item = Result<KeyAndValue, super::super::ReadError>> {
        (0..count).map(|row| Ok((vec![b'y', 0, row], vec![row; 10_000])))
    }

    fn count(directory: &Path) -> usize {
        let path = directory.join(CURRENT);
        let segment_bytes = super::super::salvage::segment_bytes(&path).expect("a store");
        let config = open::sled_config(&path, &Config::default(), segment_bytes);
        config.open().expect("a store").scan_prefix(b"y").count()
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn with_one_row() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let db = sled::open(directory.path().join(CURRENT)).expect("a store");
        db.insert(b"y", b"old").expect("written");
        drop(db);
        directory
    }

    #[test]
    fn a_new_store_takes_the_place_of_the_old_one_also_where_names_cannot_be_exchanged() {
        for refused in [None, Some(io::ErrorKind::InvalidInput)] {
            let directory = with_one_row();
            let new =
                write_beside(directory.path(), &Config::default(), rows(30)).expect("written");
            assert_eq!((new.rows, new.bytes), (30, 30 * 10_003));
            let replaced = match refused {
                None => new.take_place(),
                Some(kind) => new.take_place_with(|_, _| Err(kind.into())),
            };
            drop(replaced.expect("replaced"));
            assert_eq!(names(directory.path()), [CURRENT]);
            assert_eq!(count(directory.path()), 30);
        }
    }

    #[test]
    fn a_new_store_that_is_not_complete_leaves_the_old_one_as_it_is() {
        let directory = with_one_row();
        let cut_off = rows(30).chain([Err(super::super::ReadError("cut off".to_owned()))]);
        assert!(write_beside(directory.path(), &Config::default(), cut_off).is_err());
        assert_eq!(names(directory.path()), [CURRENT]);
        assert_eq!(count(directory.path()), 1);
        // Killed before its files were whole, and after.
        let new = write_beside(directory.path(), &Config::default(), rows(3)).expect("written");
        drop(new);
        take_back(directory.path()).expect("read");
        delete_left_over(directory.path()).expect("deleted");
        assert_eq!(names(directory.path()), [CURRENT]);
        assert_eq!(count(directory.path()), 1);
    }

    #[test]
    fn a_kill_between_two_renames_leaves_one_of_the_two_stores() {
        let directory = with_one_row();
        drop(write_beside(directory.path(), &Config::default(), rows(3)).expect("written"));
        fs::rename(directory.path().join(CURRENT), directory.path().join(OLD)).expect("renamed");
        take_back(directory.path()).expect("renamed");
        assert_eq!(count(directory.path()), 1);
        // And after the second.
        fs::rename(directory.path().join(CURRENT), directory.path().join(OLD)).expect("renamed");
        fs::rename(directory.path().join(NEW), directory.path().join(CURRENT)).expect("renamed");
        take_back(directory.path()).expect("nothing to do");
        delete_left_over(directory.path()).expect("deleted");
        assert_eq!(names(directory.path()), [CURRENT]);
        assert_eq!(count(directory.path()), 3);
    }
}
