//! Opening: what to do before sled may touch the directory, and what to say when it cannot.
//!
//! The order is the recipe that survived 200 of 200 simulated power cuts: delete half-made
//! snapshots, have the files read from the disk, open with a bounded cache and background cleaning,
//! then sync every file and directory, so that the names of the files are as durable as what will be
//! in them. `tests/it/power_cut.rs` cuts the power again with each run of the tests.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cure::{Blobs, cure};
use super::parts::Large;
use super::read::Reader;
use super::rewrite::{self, Replaced, RewriteError};
use super::{Config, keys};

/// The on-disk format that this program writes.
const FORMAT: &str = "1";

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "{path}: another watchbell is running with this data directory; stop it, or name another with --data-dir",
        path = .0.display()
    )]
    InUse(PathBuf),
    /// The directory or a file in it cannot be made, read or synced.
    #[error("{path}: {error}; check that the directory exists, has room and may be written by this user", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// sled cannot make sense of its files.
    #[error(
        "{path}: the store is damaged ({detail}); nothing has been changed. Copy the directory away, then delete the files snap.* in it and start again: they are rebuilt from `db`. If that does not help, restore a backup of the directory",
        path = .path.display()
    )]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What sled says.
        detail: String,
    },
    /// Written by a newer Watchbell.
    #[error("{path}: written in format {found}, this program knows format {FORMAT}; start the version that wrote it", path = .path.display())]
    Newer {
        /// Where.
        path: PathBuf,
        /// The format found.
        found: String,
    },
}

/// What the writer and the readers need.
pub(super) struct Opened {
    pub(super) db: sled::Db,
    pub(super) tree: sled::Tree,
    /// A handle of our own on sled's file, for `sync_data`.
    pub(super) file: File,
    /// Which rows are in parts.
    pub(super) large: Large,
    /// Files under `blobs/`, where there are any.
    pub(super) blobs: Option<Blobs>,
    /// The lock on the store that this one has replaced.
    pub(super) replaced: Option<Replaced>,
}

/// Opens or makes the store in `directory`.
pub(super) fn open(directory: &Path, config: &Config) -> Result<Opened, OpenError> {
    let path = directory.join("store");
    rewrite::take_back(directory).map_err(io(directory))?;
    // Phone numbers and texts are in it: what we make, nobody else on this machine looks into.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io(&path))?;
    let opened = open_sled(directory, &path, config)?;
    check_format(&path, &opened.tree)?;
    rewrite::delete_left_over(directory).map_err(io(directory))?;
    let damaged = |detail| OpenError::Damaged { path: path.clone(), detail };
    let mut opened = catch_unwind(AssertUnwindSafe(|| without_blobs(opened, directory, config)))
        .map_err(|panic| damaged(panic_text(&*panic)))??;
    match catch_unwind(AssertUnwindSafe(|| cure(&mut opened))) {
        Ok(Ok(())) => Ok(opened),
        Ok(Err(error)) => Err(damaged(error.to_string())),
        Err(panic) => Err(damaged(panic_text(&*panic))),
    }
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io { path, error }
}

/// How sled opens what is in `path`.
pub(super) fn sled_config(path: &Path, cache_bytes: u64) -> sled::Config {
    sled::Config::new()
        .path(path)
        .cache_capacity(cache_bytes)
        // Also what runs sled's cleaning: without it the log only grows.
        .flush_every_ms(Some(500))
        .use_compression(false)
}

fn open_sled(directory: &Path, path: &Path, config: &Config) -> Result<Opened, OpenError> {
    delete_half_made_snapshots(path).map_err(io(path))?;
    read_from_the_disk(path).map_err(io(path))?;
    delete_a_half_made_conf(path).map_err(io(path))?;
    let path = path.to_owned();
    let db = match catch_unwind(AssertUnwindSafe(|| sled_config(&path, config.cache_bytes).open()))
    {
        Ok(Ok(db)) => db,
        Ok(Err(sled::Error::Io(error))) if is_lock(&error) => {
            return Err(OpenError::InUse(directory.to_owned()));
        }
        Ok(Err(sled::Error::Io(error))) => return Err(OpenError::Io { path, error }),
        Ok(Err(sled::Error::Corruption { .. })) => {
            return Err(OpenError::Damaged { path, detail: "a checksum does not fit".to_owned() });
        }
        Ok(Err(error)) => {
            return Err(OpenError::Damaged { path, detail: error.to_string() });
        }
        Err(panic) => {
            return Err(OpenError::Damaged { path, detail: panic_text(&*panic) });
        }
    };
    sync_all(directory, &path).map_err(io(&path))?;
    let file = File::options().write(true).open(path.join("db")).map_err(io(&path))?;
    let tree = (*db).clone();
    Ok(Opened { db, tree, file, large: Large::default(), blobs: None, replaced: None })
}

/// Makes sled read what is on the disk, and not what the last process had only written.
///
/// After an fsync that failed, Linux takes the pages for written: another process reads them from
/// memory, syncs them with success, and builds on what the next power cut takes away. So what can be
/// written is written first, and then the pages are given up; what the disk did not take reads as it
/// was before, and sled ends its log there. Nothing that was acknowledged is behind that place. This
/// costs reading the file once more from the disk; `O_DIRECT` would be sled's to ask for.
fn read_from_the_disk(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let file = File::open(entry.path())?;
            file.sync_all()?;
            // Advice: a file system without a disk, such as tmpfs, takes none.
            if let Err(error) = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed) {
                tracing::debug!(%error, "the store is read from memory");
            }
        }
    }
    Ok(())
}

/// A store of an older program may have pages in files under `blobs/` that nothing has synced: syncs
/// them, and writes the store anew without them. Where that cannot be, they are synced with every
/// commit.
fn without_blobs(opened: Opened, directory: &Path, config: &Config) -> Result<Opened, OpenError> {
    let path = directory.join("store");
    let mut blobs = Blobs::new(&path);
    let files = blobs.sync().map_err(io(&path))?;
    if files == 0 {
        return Ok(opened);
    }
    let started = Instant::now();
    tracing::info!(
        files,
        "pages of the store stand in files under blobs/; it is written anew without them"
    );
    let rows = Reader::new(opened.tree.clone()).rows([]);
    let rows = rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())));
    let (mut opened, error) = match rewrite::write_beside(directory, config.cache_bytes, rows) {
        Ok(new) => {
            let (rows, bytes) = (new.rows, new.bytes);
            // sled writes by name: it must be gone before another store has the name.
            drop(opened);
            let replaced = match new.take_place() {
                Err(RewriteError::InUse(_)) => {
                    return Err(OpenError::InUse(directory.to_owned()));
                }
                result => result,
            };
            let mut opened = open_sled(directory, &path, config)?;
            match replaced {
                Ok(replaced) => {
                    let elapsed_ms =
                        u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                    tracing::info!(rows, bytes, elapsed_ms, "the store was written anew");
                    opened.replaced = Some(replaced);
                    return Ok(opened);
                }
                Err(error) => (opened, error),
            }
        }
        Err(error) => (opened, error),
    };
    tracing::warn!(%error, files, "the store keeps pages in files under blobs/, which are synced with every commit; the next start tries to write it anew again");
    opened.blobs = Some(blobs);
    Ok(opened)
}

/// sled reports a held lock as an `Other` error whose text wraps `WouldBlock`.
fn is_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("WouldBlock")
        || error.to_string().contains("could not acquire lock")
}

/// A power cut while sled writes a snapshot leaves one that refuses every later open.
fn delete_half_made_snapshots(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// sled writes `conf` when it makes a store, and does not sync it: a power cut within the first moment
/// leaves one that refuses every later open. It only repeats what [`sled_config`] says, so sled writes
/// the same again.
fn delete_a_half_made_conf(path: &Path) -> io::Result<()> {
    let conf = path.join("conf");
    let bytes = match fs::read(&conf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes?,
    };
    let is_whole = bytes.split_last_chunk::<4>().is_some_and(|(settings, sum)| {
        let mut crc = flate2::Crc::new();
        crc.update(settings);
        crc.sum() == u32::from_le_bytes(*sum)
    });
    if is_whole { Ok(()) } else { fs::remove_file(conf) }
}

fn sync_all(directory: &Path, path: &Path) -> io::Result<()> {
    for name in ["conf", "db", "blobs"] {
        let path = path.join(name);
        if path.exists() {
            File::open(path)?.sync_all()?;
        }
    }
    File::open(path)?.sync_all()?;
    File::open(directory)?.sync_all()?;
    match directory.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn check_format(path: &Path, tree: &sled::Tree) -> Result<(), OpenError> {
    let damaged = |error: sled::Error| OpenError::Damaged {
        path: path.to_owned(),
        detail: error.to_string(),
    };
    let key = keys::meta("format");
    match tree.get(&key).map_err(damaged)? {
        Some(found) if found == FORMAT.as_bytes() => Ok(()),
        Some(found) => Err(OpenError::Newer {
            path: path.to_owned(),
            found: String::from_utf8_lossy(&found).into_owned(),
        }),
        // Durable with the first commit: until then there is nothing else in the store.
        None => tree.insert(key, FORMAT).map(|_| ()).map_err(damaged),
    }
}

/// What a caught panic said.
pub(super) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked".to_owned())
}
