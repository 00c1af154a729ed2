//! Opening: what to do before sled may touch the directory, and what to say when it cannot.
//!
//! The order is the recipe that survived 200 of 200 simulated power cuts: delete half-made
//! snapshots, have the files read from the disk, open with a bounded cache and background cleaning,
//! then sync every file and directory, so that the names of the files are as durable as what will be
//! in them. `tests/it/power_cut.rs` cuts the power again with each run of the tests. Before sled sees
//! its file, it is looked through for damage ([`super::salvage`]) and compared with the high-water
//! mark ([`super::mark`]): sled takes what it cannot read for the end, and deletes what is behind it.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cure::{Blobs, cure};
use super::disk::Disk;
use super::health::Health;
use super::keys::{self, Table};
use super::mark::{self, Mark};
use super::parts::Large;
use super::read::Reader;
use super::repair::{self, Repaired};
use super::rewrite::{self, Replaced, RewriteError};
use super::{Config, ReadError, disk, reserve, salvage};
use crate::clock::Clock;
use crate::problem::counted;
use crate::telemetry::Metrics;

/// The on-disk format that this program writes.
pub(super) const FORMAT: &str = "1";

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
    /// The disk is full.
    #[error(
        "{path}: the disk is full: {free} bytes are free ({detail}). Free at least {needed} bytes on the disk of {path}, then try again; nothing of the store is lost",
        path = .path.display()
    )]
    NoRoom {
        /// The data directory.
        path: PathBuf,
        /// Free bytes on its disk.
        free: u64,
        /// Free bytes with which it goes on.
        needed: u64,
        /// What the system says.
        detail: String,
    },
    /// sled cannot make sense of its files.
    #[error(
        "{path}: the store is damaged ({detail}); its files are as they were. Make room or set right what is named there, then run `watchbell store repair`: it writes all that can be read into a new store, keeps the damaged files beside it, and says what is missing. Or bring a backup back: `watchbell store restore BACKUP`",
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

/// With so much room sled opens a store, bytes: a segment, and a snapshot, which names every page. A
/// start that finds less gives up its reserve ([`super::reserve`]).
const OPEN_BYTES: u64 = 32 << 20;

impl OpenError {
    /// Says how much room there is and how much is needed, where there was too little in `directory`.
    fn with_room(self, directory: &Path) -> Self {
        let text = self.to_string();
        // sled has its own errors for it, or panics.
        if !text.contains("os error 28") && !text.contains("StorageFull") {
            return self;
        }
        // What is to be repaired is written a second time.
        let copy = match &self {
            Self::Damaged { .. } => {
                let db = directory.join("store").join("db");
                fs::metadata(db).map_or(0, |metadata| metadata.len())
            }
            _ => 0,
        };
        let detail = match self {
            Self::Io { path, error } => format!("{}: {error}", path.display()),
            Self::Damaged { detail, .. } => detail,
            other => return other,
        };
        let free = reserve::free_bytes(directory).unwrap_or(0);
        Self::NoRoom { path: directory.to_owned(), free, needed: OPEN_BYTES + copy, detail }
    }
}

/// What the writer and the readers need.
pub(super) struct Opened {
    pub(super) tree: sled::Tree,
    /// What makes it durable.
    pub(super) disk: Disk,
    /// Which rows are in parts.
    pub(super) large: Large,
    /// The lock on the store that this one has replaced.
    pub(super) replaced: Option<Replaced>,
    /// Commits since the store was made, as the store says itself.
    pub(super) commit: u64,
}

/// Opens or makes the store in `directory`. One that is damaged is repaired, with the damaged files
/// kept; what is missing is said in the log, and in the answer until an operator has seen it.
///
/// Whoever is called at night wants alarms to go on: a start with what there is sends what can be
/// sent and takes new alerts, and nothing is lost by it, because the damaged files are kept as they
/// were and a backup can be restored later. A start that refuses would protect nothing more.
pub(super) fn open(
    directory: &Path,
    config: &Config,
    metrics: &Metrics,
) -> Result<(Opened, Vec<String>), OpenError> {
    open_or_repair(directory, config, metrics).map_err(|error| error.with_room(directory))
}

fn open_or_repair(
    directory: &Path,
    config: &Config,
    metrics: &Metrics,
) -> Result<(Opened, Vec<String>), OpenError> {
    let path = directory.join("store");
    refuse_if_in_use(directory)?;
    rewrite::take_back(directory).map_err(io(directory))?;
    repair::finish_swap(directory).map_err(io(directory))?;
    let mark = mark::read(directory).map_err(io(&mark::path(directory)))?;
    let mut notes = Notes { directory, metrics, new: Vec::new() };
    if let Some(mark) = mark.as_ref().filter(|mark| mark.commit > 0)
        && is_blank(&path.join("db")).map_err(io(&path))?
    {
        notes.gone(mark).map_err(io(directory))?;
    }
    // Phone numbers and texts are in it: what we make, nobody else on this machine looks into.
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io(&path))?;
    prepare(&path)?;
    delete_damaged_snapshots(&path).map_err(io(&path))?;

    let sound = look(&path, mark.as_ref()).and_then(|()| open_sound(directory, config));
    let mut opened = match sound {
        Ok(opened) => opened,
        Err(OpenError::Damaged { path: damaged, detail }) => {
            tracing::error!(
                detail,
                "the store is damaged: what can be read is written into a new one, and the damaged \
                 files are kept"
            );
            let repaired = repair::repair(directory, config).map_err(|error| {
                let detail = format!("{detail}; and it cannot be repaired: {error}");
                OpenError::Damaged { path: damaged, detail }
            })?;
            notes.repaired(&detail, &repaired);
            open_sound(directory, config)?
        }
        Err(error) => return Err(error),
    };
    if mark.is_none() && opened.commit > 0 && !notes.is_said() {
        tracing::warn!(
            path = %mark::path(directory).display(),
            "the store's high-water mark is gone or cannot be read: whether anything is missing at the \
             end of the store cannot be told; it is made anew"
        );
    }
    let mark = mark::read(directory).map_err(io(&mark::path(directory)))?.unwrap_or_default();
    if opened.commit < mark.commit && !notes.is_said() {
        notes.behind(opened.commit, &mark);
    }
    if opened.commit < mark.commit {
        // What comes from now on is compared with what there is now.
        opened.commit = mark.commit;
        note_commit(&mut opened)?;
        let bytes = opened.disk.bytes();
        let mark = Mark { commit: opened.commit, at: Clock::System.now(), bytes, ..mark };
        mark::write(directory, &mark).map_err(io(&mark::path(directory)))?;
    }
    Ok((opened, notes.kept()))
}

/// Has the store say how many commits it has come; durable on return.
fn note_commit(opened: &mut Opened) -> Result<(), OpenError> {
    let failed = |error: &dyn std::fmt::Display| OpenError::Io {
        path: PathBuf::from("store"),
        error: io::Error::other(error.to_string()),
    };
    let (key, value) = mark::row(opened.commit);
    opened.tree.insert(key, value).map_err(|error| failed(&error))?;
    opened.disk.sync().map_err(|error| failed(&error))
}

/// Opens sled in `path`, makes it if there is none, and puts right what an older program has left.
pub(super) fn open_at(path: &Path, config: &Config) -> Result<Opened, OpenError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
    let directory = path.parent().unwrap_or(path);
    let opened = || {
        prepare(path)?;
        let opened = open_sled(directory, path, config)?;
        check_format(path, &opened.tree)?;
        cured(opened)
    };
    opened().map_err(|error| error.with_room(directory))
}

/// Whether the file holds nothing: it is gone, or empty, or all of its bytes are zero, which sled takes
/// for an empty store.
pub(super) fn is_blank(db: &Path) -> io::Result<bool> {
    let file = match File::open(db) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        file => file?,
    };
    for byte in io::BufReader::with_capacity(1 << 16, file).bytes() {
        if byte? != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Opens the store of `directory`, and puts right what an older program has left.
fn open_sound(directory: &Path, config: &Config) -> Result<Opened, OpenError> {
    let path = directory.join("store");
    let damaged = |detail| OpenError::Damaged { path: path.clone(), detail };
    let opened = open_sled(directory, &path, config)?;
    check_format(&path, &opened.tree)?;
    match catch_unwind(AssertUnwindSafe(|| read_all_that_works(&opened.tree))) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(damaged(error.0)),
        Err(panic) => return Err(damaged(panic_text(&*panic))),
    }
    rewrite::delete_left_over(directory).map_err(io(directory))?;
    let opened = catch_unwind(AssertUnwindSafe(|| in_shape(opened, directory, config)))
        .map_err(|panic| damaged(panic_text(&*panic)))??;
    cured(opened)
}

fn cured(mut opened: Opened) -> Result<Opened, OpenError> {
    let damaged = |detail| OpenError::Damaged { path: PathBuf::from("store"), detail };
    let known = opened.tree.get(keys::meta("commit")).ok().flatten();
    opened.commit = known.and_then(|value| mark::commit_of(&value)).unwrap_or(0);
    match catch_unwind(AssertUnwindSafe(|| cure(&mut opened))) {
        Ok(Ok(())) => Ok(opened),
        Ok(Err(error)) => Err(damaged(error.0)),
        Err(panic) => Err(damaged(panic_text(&*panic))),
    }
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |error| OpenError::Io { path, error }
}

/// How sled opens what is in `path`.
pub(super) fn sled_config(path: &Path, config: &Config, segment_bytes: usize) -> sled::Config {
    sled::Config::new()
        .path(path)
        .cache_capacity(config.cache_bytes)
        .segment_size(segment_bytes)
        // Also what runs sled's cleaning: without it the log only grows.
        .flush_every_ms(Some(disk::FLUSH_EVERY_MS))
        .use_compression(false)
}

/// What has to be done before anybody reads the files.
fn prepare(path: &Path) -> Result<(), OpenError> {
    delete_half_made_snapshots(path).map_err(io(path))?;
    read_from_the_disk(path).map_err(io(path))?;
    delete_a_half_made_conf(path).map_err(io(path))
}

fn open_sled(directory: &Path, path: &Path, config: &Config) -> Result<Opened, OpenError> {
    let path = path.to_owned();
    // sled opens a store only with the size that it was made with.
    let segment_bytes = salvage::segment_bytes(&path).unwrap_or(config.segment_bytes);
    let sled = sled_config(&path, config, segment_bytes);
    let db = match catch_unwind(AssertUnwindSafe(|| sled.open())) {
        Ok(Ok(db)) => db,
        Ok(Err(sled::Error::Io(error))) if is_lock(&error) => {
            return Err(OpenError::InUse(directory.to_owned()));
        }
        Ok(Err(sled::Error::Io(error))) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(OpenError::Damaged { path, detail: "a file is cut off".to_owned() });
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
    let disk = Disk::new(db, file, segment_bytes);
    Ok(Opened { tree, disk, large: Large::default(), replaced: None, commit: 0 })
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

/// A store of an older program has small segments, of which a commit fills several ([`super::disk`]),
/// and may have pages in files under `blobs/` that nothing has synced: syncs them, and writes the store
/// anew. Where that cannot be, blobs are synced with every commit, and the log is synced more often.
fn in_shape(opened: Opened, directory: &Path, config: &Config) -> Result<Opened, OpenError> {
    let path = directory.join("store");
    let mut blobs = Blobs::new(&path);
    let files = blobs.sync().map_err(io(&path))?;
    let segment_bytes = salvage::segment_bytes(&path).unwrap_or(config.segment_bytes);
    if files == 0 && segment_bytes == config.segment_bytes {
        return Ok(opened);
    }
    let started = Instant::now();
    tracing::info!(
        files,
        segment_bytes,
        "the store is as an older program made it, in segments of another size or with pages in \
         files under blobs/; it is written anew"
    );
    let rows = Reader::new(opened.tree.clone(), Health::quiet()).rows([]);
    let rows = rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())));
    let (mut opened, error) = match rewrite::write_beside(directory, config, rows) {
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
    tracing::warn!(
        %error, files, segment_bytes,
        "the store stays as it is, and is synced more often; the next start tries to write it anew again"
    );
    if files > 0 {
        opened.disk.blobs = Some(blobs);
    }
    Ok(opened)
}

/// Every page that the process will work with can be read: a page that cannot holds some sixteen
/// rows, and a repair saves most of them. History is left to `watchbell store verify`: there may be
/// millions of rows of it, and no alarm depends on them.
fn read_all_that_works(tree: &sled::Tree) -> Result<(), ReadError> {
    for (table, _) in keys::TABLES {
        if matches!(
            table,
            Table::History
                | Table::Trail
                | Table::Reference
                | Table::Idempotency
                | Table::Suppressed
        ) {
            continue;
        }
        for row in tree.scan_prefix([*table as u8]) {
            row?;
        }
    }
    Ok(())
}

/// Whether sled would lose something without a word, by taking damage for the end.
pub(super) fn look(path: &Path, mark: Option<&Mark>) -> Result<(), OpenError> {
    let damaged = |detail: String| Err(OpenError::Damaged { path: path.to_owned(), detail });
    let io = |error| OpenError::Io { path: path.join("db"), error };
    let length = fs::metadata(path.join("db")).map_or(0, |metadata| metadata.len());
    if length == 0 {
        return Ok(());
    }
    let marked = mark.map_or(0, |mark| mark.commit);
    if mark.is_some_and(|mark| length < mark.bytes) {
        // sled shortens its file too, where its end is free: so what is in it decides.
        let mut commit = 0;
        let found = salvage::rows::<io::Error>(path, |key, value, _| {
            if *key == *keys::meta("commit") {
                commit = mark::commit_of(value).unwrap_or(0);
            }
            Ok(())
        });
        let found = found.map_err(io)?;
        if commit < marked || !found.gaps.is_empty() || !found.loose.is_empty() {
            return damaged(format!("the file db is cut off: it has {length} bytes"));
        }
    }
    let from = salvage::snapshot(path).ok().flatten().unwrap_or(0);
    let look = salvage::look(path, from, mark::commit_of).map_err(io)?;
    // A power cut leaves such places too, behind what was synced: the mark says how far that is, and
    // where there is none, whatever can be read behind such a place. One in some ten thousand torn
    // messages looks as if one bit of it had flipped.
    let marked = mark.map_or(look.last.unwrap_or(0), |mark| mark.commit);
    if marked > look.before.unwrap_or(0) {
        if look.mended > 0 {
            let bits = counted(look.mended as u64, "flipped bit");
            return damaged(format!("{bits} in the file db"));
        }
        if look.damaged > 0 {
            let places = counted(look.damaged as u64, "place");
            return damaged(format!("{places} of the file db cannot be read"));
        }
    }
    Ok(())
}

/// What a start has found, for the log, the metric, and whoever looks later.
struct Notes<'a> {
    directory: &'a Path,
    metrics: &'a Metrics,
    new: Vec<String>,
}

impl Notes<'_> {
    fn is_said(&self) -> bool {
        !self.new.is_empty()
    }

    fn note(&mut self, lost: u64, what: &str) {
        self.metrics.store_commits_lost.set(i64::try_from(lost).unwrap_or(i64::MAX));
        self.new.push(format!("{}: {what}", Clock::System.now()));
    }

    /// There was a store, and its file is not there, or empty.
    fn gone(&mut self, mark: &Mark) -> io::Result<()> {
        let path = self.directory.join("store");
        let mut kept = String::new();
        if path.exists() {
            let aside = repair::aside(self.directory, "damaged", Clock::System.now());
            fs::rename(&path, &aside)?;
            kept = format!("; what was left of it is kept in {}", aside.display());
        }
        tracing::error!(
            commits_lost = mark.commit, messages_were = mark.messages, messages_are = 0,
            alerts_were = mark.alerts, since = %mark.at, kept,
            "the store is gone: nothing of what was acknowledged before is there; Watchbell starts \
             empty, so that alarms go on. Stop it and run `watchbell store restore BACKUP` if there \
             is a backup"
        );
        self.note(
            mark.commit,
            &format!(
                "the store was gone ({}); started empty{kept}. With Watchbell stopped, `watchbell \
                 store restore BACKUP` brings a backup back",
                mark.words()
            ),
        );
        Ok(())
    }

    /// The store was damaged, and was repaired.
    fn repaired(&mut self, why: &str, repaired: &Repaired) {
        let lost = repaired.commits_missing;
        let waiting = repaired.rows.get("outbox").copied().unwrap_or(0);
        tracing::error!(
            commits_lost = lost, messages_are = waiting, mark = repaired.mark,
            kept = %repaired.kept.display(), saved = repaired.words(),
            "the store was damaged and has been repaired; compare with the last backup"
        );
        let mark = repaired.mark.as_deref().unwrap_or("there was no high-water mark");
        self.note(
            lost,
            &format!(
                "the store was damaged ({why}) and was repaired: {}. Before: {mark}; now {waiting} \
                 messages wait. The damaged files are kept in {}",
                repaired.words(),
                repaired.kept.display()
            ),
        );
    }

    /// The store opens, and its end is missing.
    fn behind(&mut self, commit: u64, mark: &Mark) {
        let lost = mark.commit.saturating_sub(commit);
        tracing::error!(
            commits_lost = lost, messages_were = mark.messages, since = %mark.at,
            "the end of the store is missing: what was acknowledged last, so many commits at most, \
             is not there. If somebody has put an older copy of it here, that is why; else restore the last backup, or ask \
             devices to send again"
        );
        self.note(
            lost,
            &format!(
                "the end of the store is missing: up to {lost} commits. The high-water mark says {}; the \
                 store ends with commit {commit}. An older copy that was put here says the same",
                mark.words()
            ),
        );
    }

    /// All notes that nobody has taken away yet, those of earlier starts first.
    fn kept(self) -> Vec<String> {
        let path = notes_path(self.directory);
        let mut notes: Vec<String> = fs::read_to_string(&path)
            .map(|text| text.lines().map(str::to_owned).collect())
            .unwrap_or_default();
        if !self.new.is_empty() {
            notes.extend(self.new);
            if let Err(error) = fs::write(&path, notes.join("\n") + "\n") {
                tracing::error!(%error, path = %path.display(), "what is missing cannot be noted");
            }
        }
        let until = |note: String| format!("{note} (said until {} is deleted)", path.display());
        notes.into_iter().map(until).collect()
    }
}

/// Notes what a repair by hand came to, as a start does that repairs.
pub(super) fn note_repair(directory: &Path, repaired: &Repaired) -> io::Result<()> {
    let mark = repaired.mark.as_deref().unwrap_or("there was no high-water mark");
    let note = format!(
        "{}: the store was repaired by hand: {}. Before: {mark}. The damaged files are kept in {}\n",
        Clock::System.now(),
        repaired.words(),
        repaired.kept.display()
    );
    let file = File::options().create(true).append(true).open(notes_path(directory))?;
    io::Write::write_all(&mut &file, note.as_bytes())?;
    file.sync_all()
}

/// Where it stands what a start has found missing, until an operator deletes it.
pub(super) fn notes_path(directory: &Path) -> PathBuf {
    directory.join("store.damage.txt")
}

/// Nothing may be moved or deleted under a process that runs.
pub(super) fn refuse_if_in_use(directory: &Path) -> Result<(), OpenError> {
    let Ok(file) = File::open(directory.join("store").join("db")) else { return Ok(()) };
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(directory.to_owned())),
        // Where the file system has no locks sled will say so.
        Ok(()) | Err(_) => Ok(()),
    }
}

/// sled refuses to open with a damaged snapshot, and makes all of them anew from its log.
fn delete_damaged_snapshots(path: &Path) -> io::Result<()> {
    if let Err(damaged) = salvage::snapshot(path) {
        tracing::warn!(
            path = %damaged.display(),
            "a snapshot of the store is damaged; it is deleted, and made anew from the log"
        );
        for snapshot in salvage::snapshots(path) {
            fs::remove_file(snapshot)?;
        }
    }
    Ok(())
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
/// leaves one that refuses every later open. What it says can be seen in the log too
/// ([`salvage::segment_bytes`]), so sled writes the same again.
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
