//! Makes a sound store of a damaged one: everything that can be read, in a directory of its own,
//! which then takes the place of the damaged one. That is kept, whole, under a name with the date.
//!
//! Without sled, which opens nothing as soon as its own pages are damaged ([`super::salvage`]).
//! **Invariant:** the damaged files are only read and renamed; a crash at any place leaves either the
//! damaged store or the repaired one under the name that a start looks for.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::build::{Builder, Counts};
use super::health::Health;
use super::keys::{self, Table};
use super::mark::{self, Mark};
use super::parts::standing_key;
use super::read::Reader;
use super::salvage::{self, Loose, Trust};
use super::{Config, OpenError, ReadError, check, decode};
use crate::clock::{Clock, Timestamp};
use crate::model::Message;
use crate::problem::counted;

/// What became of a repair.
#[derive(Debug)]
pub struct Repaired {
    /// Where the damaged store is kept.
    pub kept: PathBuf,
    /// Rows that were saved, by table.
    pub rows: Counts,
    /// Places of the file that could not be read.
    pub damaged: usize,
    /// Where the first of them are: bytes from the beginning of `db`, and how many.
    pub places: Vec<(u64, u64)>,
    /// Places where one flipped bit was set right; nothing is missing there.
    pub mended: usize,
    /// Rows that make no sense and were left out.
    pub left_out: u64,
    /// Rows from older copies of pages: later changes of theirs are missing.
    pub older: u64,
    /// Rows from pages whose checksum does not fit: one of them may be what is damaged.
    pub doubtful: u64,
    /// Ranges of keys of which nothing is known.
    pub gaps: usize,
    /// Commits that are missing at the end, by the high-water mark.
    pub commits_missing: u64,
    /// The high-water mark in words, where there is one.
    pub mark: Option<String>,
}

impl Repaired {
    /// Whether anything is known to be missing.
    pub fn is_whole(&self) -> bool {
        self.commits_missing == 0
            && self.gaps == 0
            && [self.left_out, self.older, self.doubtful].iter().all(|count| *count == 0)
            && self.damaged == 0
    }

    /// What became of it, in a line.
    pub fn words(&self) -> String {
        let rows: u64 = self.rows.values().sum();
        let tables: Vec<String> =
            self.rows.iter().map(|(table, count)| format!("{table} {count}")).collect();
        let mut words = match rows {
            0 => "no row could be saved".to_owned(),
            rows => format!("{} saved ({})", counted(rows, "row"), tables.join(", ")),
        };
        let mut add = |count: u64, what: &str, more: &str| {
            if count > 0 {
                words.push_str(&format!("; {}{more}", counted(count, what)));
            }
        };
        add(self.mended as u64, "flipped bit", " set right");
        add(self.damaged as u64, "damaged place", " could not be read");
        add(self.left_out, "row", " left out for making no sense");
        add(self.older, "row", " taken from an older copy of a page: later changes are missing");
        add(self.doubtful, "row", " taken from a page with a wrong checksum: check what it says");
        add(self.gaps as u64, "key range", " missing");
        add(self.commits_missing, "commit", " missing at the end, at most");
        words
    }
}

/// A store could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Another process has it open.
    #[error("{0}: another watchbell has it open; stop that first")]
    InUse(PathBuf),
    /// A file.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The new store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new store.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<io::Error> for RepairError {
    fn from(error: io::Error) -> Self {
        Self::Io { path: PathBuf::from("store"), error }
    }
}

/// A name in `directory` that nothing has yet: `store.REASON-20261201-031500`.
pub(super) fn aside(directory: &Path, reason: &str, now: Timestamp) -> PathBuf {
    let digits: String = now.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    let (day, time) = digits.split_at_checked(8).unwrap_or((&digits, ""));
    let name = |nth: u32| match nth {
        0 => directory.join(format!("store.{reason}-{day}-{time}")),
        nth => directory.join(format!("store.{reason}-{day}-{time}-{nth}")),
    };
    (0..).map(name).find(|path| !path.exists()).unwrap_or_else(|| directory.join("store.aside"))
}

/// Puts `new` in the place of the store of `directory`, and that, if there is one, under `kept`.
pub(super) fn swap(directory: &Path, new: &Path, kept: &Path) -> io::Result<()> {
    let path = directory.join("store");
    let ready = directory.join("store.ready");
    // From here on a start finds either the one or, where that has gone, the other.
    fs::rename(new, &ready)?;
    File::open(directory)?.sync_all()?;
    if path.exists() {
        fs::rename(&path, kept)?;
    }
    fs::rename(&ready, &path)?;
    File::open(directory)?.sync_all()
}

/// What a crash in the middle of [`swap`] has left is brought to its end.
pub(super) fn finish_swap(directory: &Path) -> io::Result<()> {
    let (path, ready) = (directory.join("store"), directory.join("store.ready"));
    if ready.exists() {
        if path.exists() {
            fs::rename(&path, aside(directory, "damaged", Clock::System.now()))?;
        }
        fs::rename(&ready, &path)?;
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Repairs the store of the data directory `directory`, which nobody has open.
///
/// # Errors
/// The damaged store is as it was.
pub(super) fn repair(directory: &Path, config: &Config) -> Result<Repaired, RepairError> {
    let path = directory.join("store");
    let new = directory.join("store.repairing");
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| RepairError::Io { path, error }
    };
    if new.exists() {
        fs::remove_dir_all(&new).map_err(at(&new))?;
    }
    let now = Clock::System.now();
    let kept = aside(directory, "damaged", now);
    let mark = mark::read(directory).map_err(at(directory))?;
    let salvaged = salvage_into(&path, &new, config, mark.as_ref());
    let (mut repaired, commit) = match salvaged {
        Ok(salvaged) => salvaged,
        Err(error) => {
            drop(fs::remove_dir_all(&new));
            return Err(error);
        }
    };
    swap(directory, &new, &kept).map_err(at(directory))?;
    repaired.kept = kept;
    // The next start compares with what there is from now on.
    let bytes = fs::metadata(path.join("db")).map_or(0, |metadata| metadata.len());
    let mark = Mark { commit, at: now, bytes, ..mark.unwrap_or_default() };
    mark::write(directory, &mark).map_err(at(directory))?;
    Ok(repaired)
}

fn salvage_into(
    path: &Path,
    new: &Path,
    config: &Config,
    mark: Option<&Mark>,
) -> Result<(Repaired, u64), RepairError> {
    let mut builder = Builder::new(new, config)?;
    let (mut older, mut doubtful) = (0, 0);
    let found = salvage::rows::<RepairError>(path, |key, value, trust| {
        match trust {
            Trust::Current => {}
            Trust::Older => older += 1,
            Trust::Doubtful => doubtful += 1,
        }
        Ok(builder.put_raw(key, value)?)
    })?;
    let tree = builder.tree()?.clone();
    add_loose(&tree, &found.loose)?;
    let left_out = leave_out(&tree)?;
    let known = tree.get(keys::meta("commit")).map_err(ReadError::from)?;
    let found_commit = known.and_then(|value| mark::commit_of(&value)).unwrap_or(0);
    let marked = mark.map_or(0, |mark| mark.commit);
    let commit = found_commit.max(marked) + 1;
    drop(tree);
    let rows = builder.finish(commit)?;
    let repaired = Repaired {
        kept: PathBuf::new(),
        rows,
        damaged: found.damaged_count,
        places: found.damaged.iter().take(20).map(|place| (place.offset, place.bytes)).collect(),
        mended: found.mended,
        left_out,
        older,
        doubtful,
        gaps: found.gaps.len(),
        commits_missing: marked.saturating_sub(found_commit),
        mark: mark.map(Mark::words),
    };
    Ok((repaired, commit))
}

/// Of changes to pages that cannot be read, messages say themselves where they belong.
fn add_loose(tree: &sled::Tree, loose: &[Loose]) -> Result<(), ReadError> {
    for Loose { key_end, value } in loose {
        let Ok(message) = decode::<Message>(value) else { continue };
        let table = if message.status.is_final() { Table::History } else { Table::Outbox };
        let key = keys::message(table, message.id);
        if key.ends_with(key_end) && tree.get(&key)?.is_none() {
            tree.insert(key, value.as_slice())?;
        }
    }
    Ok(())
}

/// Deletes what makes no sense, and of a message that is in both of its tables the older row.
fn leave_out(tree: &sled::Tree) -> Result<u64, ReadError> {
    let reader = Reader::new(tree.clone(), Health::quiet());
    let mut bad = Vec::new();
    let mut outdated = Vec::new();
    // Heads whose parts are missing have no key of their own any more: they are looked at as they are.
    for item in tree.iter() {
        let (key, value) = item?;
        if keys::table_of(&key).is_some_and(|(table, _)| matches!(table, Table::Part)) {
            continue;
        }
        let whole = reader.standing(&key, value);
        let is_sound = match &whole {
            Ok(Some((key, value))) => check::row(key, value).is_ok(),
            Ok(None) | Err(_) => false,
        };
        if !is_sound {
            bad.push(key.clone());
        }
        if key.first() == Some(&(Table::Outbox as u8))
            && let Ok(Some((_, value))) = &whole
            && let Ok(waiting) = decode::<Message>(value)
            && let Ok(Some(ended)) = reader.get(&keys::message(Table::History, waiting.id))
            && let Ok(ended) = decode::<Message>(&ended)
        {
            let is_newer = waiting.updated_at > ended.updated_at;
            let table = if is_newer { Table::History } else { Table::Outbox };
            outdated.push(keys::message(table, waiting.id));
        }
    }
    for key in &bad {
        tree.remove(key)?;
    }
    for key in &outdated {
        tree.remove(&*standing_key(key))?;
    }
    Ok(bad.len() as u64)
}
