//! What can be done with a store that nobody has open: verify, repair, back up, restore, export,
//! import. For the command line.
//!
//! Each takes a data directory, refuses one that a process has open, and syncs what it writes.
//! **Invariant:** nothing is put in the place of a store before it is whole, and a store that gives
//! way is kept beside it.

use std::fs;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use super::build::{Builder, Counts};
use super::check::{self, Verified};
use super::health::Health;
use super::keys::{self, Table};
use super::lines::{self, Line};
use super::mark::{self, Mark};
use super::open::{self, open_at, refuse_if_in_use};
use super::read::Reader;
use super::repair::{self, RepairError, Repaired};
use super::rewrite::{self, RewriteError};
use super::{Config, OpenError, ReadError, salvage};
use crate::clock::Clock;
use crate::problem::counted;

/// Bad lines that an import says one by one.
const BAD_LINES_MAX: usize = 100;

/// Something could not be done with a store.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is none.
    #[error("{path}: there is no store{was}", path = .path.display())]
    None {
        /// Where it would be.
        path: PathBuf,
        /// What the high-water mark says that there was, in words.
        was: String,
    },
    /// There is one already.
    #[error("{0}: there is a store already; --replace keeps it beside the new one")]
    Exists(PathBuf),
    /// There is something where a copy is to be.
    #[error("{0}: it exists already; name a directory that does not exist yet")]
    TargetExists(PathBuf),
    /// What is to be restored is what would be replaced.
    #[error(
        "{0}: that is the data directory itself; name a directory that `watchbell store backup` has made"
    )]
    Itself(PathBuf),
    /// It could not be written anew, and is as it was.
    #[error("{0}")]
    Rewrite(String),
    /// It opens not, or is in use.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A row.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be repaired.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// A file.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Lines of an import, each with its number.
    #[error("nothing was imported:\n{}", .0.join("\n"))]
    Lines(Vec<String>),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> OfflineError + use<> {
    let path = path.to_owned();
    move |error| OfflineError::Io { path, error }
}

/// The path of the store, where there is one that nobody has open.
fn closed(directory: &Path) -> Result<PathBuf, OfflineError> {
    refuse_if_in_use(directory)?;
    rewrite::take_back(directory).map_err(at(directory))?;
    repair::finish_swap(directory).map_err(at(directory))?;
    let path = directory.join("store");
    if path.join("db").exists() {
        return Ok(path);
    }
    let mark = mark::read(directory).ok().flatten().filter(|mark| mark.commit > 0);
    let was = mark.map_or_else(String::new, |mark| {
        format!(
            ", and there was one: the high-water mark says {}. A start begins with an empty one; \
             `watchbell store restore BACKUP` brings a backup back",
            mark.words()
        )
    });
    Err(OfflineError::None { path, was })
}

fn commit_of(tree: &sled::Tree) -> u64 {
    let known = tree.get(keys::meta("commit")).ok().flatten();
    known.and_then(|value| mark::commit_of(&value)).unwrap_or(0)
}

/// Reads every row and what it leads to, and compares with the high-water mark. Writes nothing: what
/// sled would change by opening it is looked at first.
///
/// # Errors
/// There is no store, or it is in use.
pub fn verify(directory: &Path, config: &Config) -> Result<Verified, OfflineError> {
    let path = closed(directory)?;
    let marked = mark::read(directory).map_err(at(directory))?;
    // A store that has to be repaired is not opened, because that would change it.
    let snapshots = salvage::snapshots(&path);
    let looked = open::look(&path, marked.as_ref());
    let opened = looked.and_then(|()| match salvage::snapshot(&path) {
        Err(damaged) => Err(OpenError::Damaged {
            path: damaged,
            detail: "a snapshot is damaged; the next start makes it anew".to_owned(),
        }),
        Ok(_) => open_at(&path, config),
    });
    let (mut verified, is_opened) = match opened {
        Ok(opened) => {
            let mut verified = check::all(&Reader::new(opened.tree.clone(), Health::quiet()));
            if let Some(mark) = marked.filter(|mark| mark.commit > opened.commit) {
                let what = if opened.commit == 0 { "everything" } else { "the end" };
                verified.note(format!(
                    "{what} is missing: it has come to commit {}; the high-water mark says {}. A \
                     start goes on with what there is; `watchbell store restore BACKUP` brings a \
                     backup back",
                    opened.commit,
                    mark.words()
                ));
            }
            (verified, true)
        }
        Err(OpenError::Damaged { path: damaged, detail }) => {
            let mut verified = Verified::default();
            if snapshots.contains(&damaged) {
                verified.note(format!("{}: {detail}", damaged.display()));
            } else {
                verified.problem(format!("the store is damaged: {detail}"));
            }
            (verified, false)
        }
        Err(error) => return Err(error.into()),
    };
    // Also what nobody reads any more says how the disk is.
    let mut saved = Counts::new();
    let found = salvage::rows::<io::Error>(&path, |key, _, _| {
        if let Some((table, name)) = keys::table_of(key)
            && !matches!(table, Table::Part | Table::Meta)
        {
            *saved.entry(name).or_default() += 1;
        }
        Ok(())
    });
    let found = found.map_err(at(&path))?;
    if !is_opened {
        verified.rows = saved;
        verified.is_salvage = true;
    }
    for place in &found.damaged {
        verified.problem(format!(
            "db: {} from byte {} on cannot be read",
            counted(place.bytes, "byte"),
            place.offset
        ));
    }
    if found.mended > 0 {
        let bits = counted(found.mended as u64, "flipped bit");
        verified.problem(format!("db: {bits}, which a repair sets right"));
    }
    Ok(verified)
}

/// Writes all that can be read into a new store and keeps the damaged one beside it.
///
/// # Errors
/// It is as it was.
pub fn repair(directory: &Path, config: &Config) -> Result<Repaired, OfflineError> {
    closed(directory)?;
    let repaired = repair::repair(directory, config)?;
    if !repaired.is_whole() || repaired.mended > 0 {
        open::note_repair(directory, &repaired).map_err(at(&open::notes_path(directory)))?;
    }
    Ok(repaired)
}

/// Writes a compact copy of the store to `target`, a directory that must not exist.
///
/// # Errors
/// The copy could not be finished; what there is of it is removed.
pub fn backup(directory: &Path, target: &Path, config: &Config) -> Result<Counts, OfflineError> {
    let path = closed(directory)?;
    let opened = open_at(&path, config)?;
    let mut writing = BackupWriter::new(target, config)?;
    let reader = Reader::new(opened.tree.clone(), Health::quiet());
    for row in reader.range(Vec::new()..vec![u8::MAX]) {
        let (key, value) = row?;
        writing.put(key.to_vec(), Some(value.to_vec()))?;
    }
    writing.finish(commit_of(&opened.tree))
}

/// A backup in the making: a directory that is itself a data directory with a store in it.
pub struct BackupWriter {
    target: PathBuf,
    builder: Option<Builder>,
}

impl BackupWriter {
    /// Begins one in `target`, a directory that must not exist.
    ///
    /// # Errors
    /// It exists, or cannot be made.
    pub fn new(target: &Path, config: &Config) -> Result<Self, OfflineError> {
        if target.exists() {
            return Err(OfflineError::TargetExists(target.to_owned()));
        }
        let builder = Builder::new(&target.join("store"), config)?;
        Ok(Self { target: target.to_owned(), builder: Some(builder) })
    }

    /// Writes a row or deletes it. What the store notes of itself is passed over.
    ///
    /// # Errors
    /// It could not be written.
    pub fn put(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) -> Result<(), OfflineError> {
        let is_meta = key.first() == Some(&(Table::Meta as u8));
        match &mut self.builder {
            Some(builder) if !is_meta => Ok(builder.put(key, value)?),
            _ => Ok(()),
        }
    }

    /// Writes what a line of a copy says; the number of rows, once it was the last line.
    ///
    /// # Errors
    /// It says nothing that is known, or could not be written.
    pub fn put_line(&mut self, line: &str) -> Result<Option<u64>, OfflineError> {
        match lines::read(line).map_err(|problem| OfflineError::Lines(vec![problem]))? {
            Line::First => Ok(None),
            Line::Row(key, value) => self.put(key, value).map(|()| None),
            Line::Last(rows) => Ok(Some(rows)),
        }
    }

    /// Syncs it; it is whole on return.
    ///
    /// # Errors
    /// It could not be synced.
    pub fn finish(mut self, commit: u64) -> Result<Counts, OfflineError> {
        let Some(builder) = self.builder.take() else { return Ok(Counts::new()) };
        let finished = builder.finish(commit).map_err(OfflineError::from).and_then(|counts| {
            write_mark(&self.target, commit)?;
            Ok(counts)
        });
        if finished.is_err() {
            drop(fs::remove_dir_all(&self.target));
        }
        finished
    }
}

impl Drop for BackupWriter {
    fn drop(&mut self) {
        // Half a backup must not be taken for one.
        if self.builder.take().is_some() {
            drop(fs::remove_dir_all(&self.target));
        }
    }
}

fn write_mark(directory: &Path, commit: u64) -> Result<(), OfflineError> {
    let bytes = fs::metadata(directory.join("store/db")).map_or(0, |metadata| metadata.len());
    let mark = Mark { commit, at: Clock::System.now(), bytes, ..Mark::default() };
    mark::write(directory, &mark).map_err(at(directory))
}

/// Puts a copy of the backup in `from` in the place of the store of `directory`. The store that was
/// there is kept, and where is answered.
///
/// # Errors
/// There is a store and `replace` is not set, or the backup is damaged; nothing was changed.
pub fn restore(
    directory: &Path,
    from: &Path,
    replace: bool,
    config: &Config,
) -> Result<(Counts, Option<PathBuf>), OfflineError> {
    let is_same = |one: io::Result<PathBuf>| one.ok().zip(fs::canonicalize(from).ok());
    if is_same(fs::canonicalize(directory)).is_some_and(|(one, other)| one == other) {
        return Err(OfflineError::Itself(from.to_owned()));
    }
    let source = closed(from)?;
    let opened = open_at(&source, config)?;
    let reader = Reader::new(opened.tree.clone(), Health::quiet());
    let rows = reader.range(Vec::new()..vec![u8::MAX]);
    let rows = rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())));
    put_in_place(directory, replace, commit_of(&opened.tree), rows, config)
}

fn put_in_place(
    directory: &Path,
    replace: bool,
    commit: u64,
    rows: impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), ReadError>>,
    config: &Config,
) -> Result<(Counts, Option<PathBuf>), OfflineError> {
    refuse_if_in_use(directory)?;
    let path = directory.join("store");
    if path.exists() && !replace && !is_empty(&path, config) {
        return Err(OfflineError::Exists(path));
    }
    let new = directory.join("store.restoring");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(at(&new))?;
    }
    let mut builder = Builder::new(&new, config)?;
    let written: Result<Counts, ReadError> = (|| {
        for row in rows {
            let (key, value) = row?;
            if key.first() != Some(&(Table::Meta as u8)) {
                builder.put(key, Some(value))?;
            }
        }
        builder.finish(commit.max(1))
    })();
    let counts = match written {
        Ok(counts) => counts,
        Err(error) => {
            drop(fs::remove_dir_all(&new));
            return Err(error.into());
        }
    };
    let kept = repair::aside(directory, "replaced", Clock::System.now());
    repair::swap(directory, &new, &kept).map_err(at(directory))?;
    write_mark(directory, commit.max(1))?;
    // What was missing is no longer, or not for the same reason.
    drop(fs::remove_file(open::notes_path(directory)));
    Ok((counts, kept.exists().then_some(kept)))
}

/// Whether nothing but what a store notes of itself is in it.
fn is_empty(path: &Path, config: &Config) -> bool {
    if !path.join("db").exists() {
        return true;
    }
    open_at(path, config).is_ok_and(|opened| super::build::counts(&opened.tree).is_empty())
}

/// Writes all rows as lines ([`super::lines`]).
///
/// # Errors
/// There is no store, or a row of it cannot be read: what was written lacks its last line.
pub fn export(directory: &Path, out: &mut dyn Write, config: &Config) -> Result<u64, OfflineError> {
    let path = closed(directory)?;
    let opened = open_at(&path, config)?;
    let reader = Reader::new(opened.tree, Health::quiet());
    let mut count = 0;
    let written = |error| OfflineError::Io { path: PathBuf::from("output"), error };
    writeln!(out, "{}", lines::first()).map_err(written)?;
    for row in reader.range(Vec::new()..vec![u8::MAX]) {
        let (key, value) = row?;
        if let Some(line) = lines::row(&key, Some(&value)) {
            count += 1;
            writeln!(out, "{line}").map_err(written)?;
        }
    }
    writeln!(out, "{}", lines::last(count)).map_err(written)?;
    out.flush().map_err(written)?;
    Ok(count)
}

/// Makes a store of the lines in `file`.
///
/// # Errors
/// [`OfflineError::Lines`] names every bad line; nothing was imported.
pub fn import(
    directory: &Path,
    file: &Path,
    replace: bool,
    config: &Config,
) -> Result<(Counts, Option<PathBuf>), OfflineError> {
    let lines = || -> Result<_, OfflineError> {
        Ok(io::BufReader::new(fs::File::open(file).map_err(at(file))?).lines())
    };
    let mut bad = Vec::new();
    let (mut count, mut ended) = (0, None);
    for (number, line) in (1..).zip(lines()?) {
        let line = line.map_err(at(file))?;
        let read = match (number, lines::read(&line)) {
            (_, Err(problem)) => Err(problem),
            (_, Ok(_)) if ended.is_some() => Err("a line after the last".to_owned()),
            (1, Ok(Line::First)) => Ok(()),
            (1, Ok(_)) => Err("the first line must be that of an export".to_owned()),
            (_, Ok(Line::First)) => Err("the first line again".to_owned()),
            (_, Ok(Line::Row(_, Some(_)))) => {
                count += 1;
                Ok(())
            }
            (_, Ok(Line::Row(_, None))) => Err("`deleted` has no place in an export".to_owned()),
            (_, Ok(Line::Last(rows))) => {
                ended = Some(rows);
                Ok(())
            }
        };
        if let Err(problem) = read {
            bad.push(format!("{}:{number}: {problem}", file.display()));
            if bad.len() >= BAD_LINES_MAX {
                bad.push("and perhaps more".to_owned());
                return Err(OfflineError::Lines(bad));
            }
        }
    }
    match ended {
        _ if !bad.is_empty() => {}
        None => bad.push(format!("{}: the last line is missing: it is cut off", file.display())),
        Some(rows) if rows != count => {
            bad.push(format!("{}: {count} rows, and the last line says {rows}", file.display()));
        }
        Some(_) => {}
    }
    if !bad.is_empty() {
        return Err(OfflineError::Lines(bad));
    }
    let rows = lines()?.filter_map(|line| {
        let row = line.map_err(|error| error.to_string()).and_then(|line| lines::read(&line));
        match row {
            Ok(Line::Row(key, Some(value))) => Some(Ok((key, value))),
            Ok(_) => None,
            Err(problem) => Some(Err(ReadError(problem))),
        }
    });
    put_in_place(directory, replace, 1, rows, config)
}

/// What `compact` came to.
#[derive(Clone, Copy, Debug)]
pub struct Compacted {
    /// How large the store's file was, bytes.
    pub before: u64,
    /// How large it is now, or would be.
    pub after: u64,
    /// Whether it was replaced: not where that would not make it smaller.
    pub is_replaced: bool,
}

/// Rewrites the store without what sled keeps of deleted rows, where that makes it smaller.
///
/// # Errors
/// It is as it was.
pub fn compact(directory: &Path, config: &Config) -> Result<Compacted, OfflineError> {
    let path = closed(directory)?;
    let length = || fs::metadata(path.join("db")).map_or(0, |metadata| metadata.len());
    let before = length();
    let opened = open_at(&path, config)?;
    rewrite::delete_left_over(directory).map_err(at(directory))?;
    let rows = Reader::new(opened.tree.clone(), Health::quiet()).rows([]);
    let rows = rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())));
    let failed = |error: RewriteError| OfflineError::Rewrite(error.to_string());
    let new = rewrite::write_beside(directory, config, rows).map_err(failed)?;
    let after = new.file_bytes().map_err(at(directory))?;
    // Two copies of the same rows differ by some pages.
    if after + before / 16 >= before {
        rewrite::delete_left_over(directory).map_err(at(directory))?;
        return Ok(Compacted { before, after, is_replaced: false });
    }
    // sled writes by name: it must be gone before another store has the name.
    drop(opened);
    drop(new.take_place().map_err(failed)?);
    let mark = mark::read(directory).map_err(at(directory))?.unwrap_or_default();
    mark::write(directory, &Mark { bytes: length(), ..mark }).map_err(at(directory))?;
    Ok(Compacted { before, after: length(), is_replaced: true })
}

impl super::Piece {
    /// The piece as lines, and how many rows they hold.
    pub fn to_lines(&self) -> (String, u64) {
        let mut text = String::new();
        let mut count = 0;
        let changes = self.changes.iter().map(|(key, value)| (key, value.as_deref()));
        let rows = self.rows.iter().map(|(key, value)| (key, Some(value.as_slice())));
        for line in changes.chain(rows).filter_map(|(key, value)| lines::row(key, value)) {
            count += 1;
            text.push_str(&line);
            text.push('\n');
        }
        (text, count)
    }

    /// The line that stands before the first piece.
    pub fn first_line() -> String {
        lines::first() + "\n"
    }

    /// The line that stands behind the last piece, of so many rows in all.
    pub fn last_line(rows: u64) -> String {
        lines::last(rows) + "\n"
    }
}
