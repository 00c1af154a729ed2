//! The store: sled behind one narrow door.
//!
//! Everything that must survive a crash goes through [`Store::commit`] or [`Store::submit`]: a
//! list of [`Op`]s, each of which is written whole or not at all, and durable when the answer
//! comes. Nobody but this module knows that there is one writer, or that it is sled.
//!
//! **Invariant:** an operation that was answered with `Ok` is found again after kill -9 and after
//! a power cut.
//!
//! # On-disk format 1
//!
//! One sled tree. A key is `[table][partition][rest]`: one byte for the table ([`keys::Table`]),
//! one for the partition (0 to 63, see [`crate::model::partition`]), then:
//!
//! | table | rest | value |
//! |---|---|---|
//! | `M` meta | `format`; `commit` | the format version, decimal text; how many commits there have been, see [`mark`] |
//! | `o` outbox | message id, 16 bytes | [`crate::model::Message`] that has not ended |
//! | `h` history | message id, 16 bytes | [`crate::model::Message`] that has ended, for the retention time |
//! | `i` instance | alert id, 16 bytes | an instance of a rule: what fires, what a clock runs for, what is remembered; by the id of its present or next alert, because rule and key would come in no order, which sled pays several times as much for |
//! | `a` trail | alert id, 16 bytes; time, ms; sequence, 2 bytes | [`crate::model::tell::Step`]: what happened to an alert besides its messages, for the retention time |
//! | `e` telling | as notify says | what people were told of an alert and are still to be told |
//! | `w` memory | as its engine says | what an engine remembers of devices: windows, Sparkplug births |
//! | `y` engine | as its engine says | what an engine remembers of itself: its last sign of life |
//! | `r` reference | provider, NUL, provider's id | message id, 16 bytes |
//! | `k` idempotency | SHA-256 of the API's key | [`rows::Idempotency`] |
//! | `d` device | user name | [`Device`] |
//! | `x` ban | kind, NUL, value | [`Ban`] |
//! | `q` session | session number | [`sessions::SessionRow`] |
//! | `n` queued | session number, turn | [`sessions::QueuedRow`]: a publish that waits for the session, or whose exchange with it is not over |
//! | `b` body | body number | a publish that `n` rows name |
//! | `c` received | session number, packet id (2 bytes) | [`sessions::ReceivedRow`]: a QoS 2 publish of the client that was taken and not released |
//! | `l` will | will number | a will that waits for its delay |
//! | `t` retained | topic | the topic's retained message |
//! | `p` part | number, position (4 bytes) | a part of a row that is too large for one, see [`parts`] |
//!
//! Numbers and times are 8 bytes, the most significant first. Numbers count up and are never used
//! twice: a row whose session or body is not there is left over from a crash and is deleted at the
//! next start. `i`, `e`, `w` and `y` belong to engines, which say what is in them
//! ([`Op::put_row`]). The sequence tells steps of one millisecond apart, in their order. `b`,
//! `l` and `t` are a version byte (1), the length of the JSON that follows (4 bytes), that JSON
//! ([`sessions::PublishRow`]), and the payload as it came.
//!
//! A value is one version byte (1) and JSON, but for the two that say otherwise: `strings` on a
//! broken disk shows what was in it. Message and alert ids are UUID v7, whose first 48 bits are
//! their time, so that each partition is in order of time; the last six bits of an id are its
//! partition, so that a row is found by its id alone. What can be rebuilt is not stored: the due
//! order and the counts are made anew by the opening scan.
//!
//! A table that is not there is empty, so a store that was written before sessions were kept opens
//! as it is, and its format is the same; an older program leaves the tables alone that it does not
//! know. `s` (suppressed: alerts of which nobody was told) is no longer written: such an alert is a
//! step `dropped`. Rows that an older program left there go when their retention is over.
//!
//! A row whose value is larger than 3,584 bytes, or whose key is longer than 191, stands in parts
//! ([`parts`]), and its own value begins with 2. Large rows of an older program are read as they are,
//! and are taken apart by the first start that finds them. An older program says of a row in parts
//! that it has value version 2, and leaves it: a retained message, a waiting publish, a message is
//! then as if it were not there, and where it must read all (instances of rules) it does not start.
//! What it deletes or writes anew is deleted or new; the parts go at the next start of a newer one.
//!
//! # How it is made durable
//!
//! The writer thread ([`writer`]) flushes and syncs after each commit, and within one when it is large:
//! see [`disk`], which also says why the log has large segments, and [`open`].

mod bans;
mod batches;
mod build;
mod check;
mod cure;
mod disk;
mod health;
pub mod keys;
mod lines;
mod mark;
pub mod offline;
mod open;
mod outbox;
mod parts;
mod read;
mod repair;
pub mod reserve;
mod rewrite;
pub mod rows;
mod salvage;
pub mod sessions;
pub mod shelf;
pub mod sweep;
mod tap;
#[cfg(test)]
mod tests;
mod trail;
mod watchdog;
mod writer;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot, watch};

pub use self::bans::{Ban, BanError, BanKind};
pub use self::build::Counts;
pub use self::check::Verified;
use self::health::Health;
use self::keys::{Key, Table};
use self::mark::MarkFile;
pub use self::open::OpenError;
pub use self::outbox::{IDEMPOTENCY_KEPT, MessageFilter, RemoveError};
use self::read::Reader;
pub use self::repair::{RepairError, Repaired};
pub use self::rows::Device;
pub use self::tap::{CopyError, Piece, StoreCopy};
pub use self::trail::StepFilter;
pub use self::writer::CommitError;
use crate::span::Span;
use crate::telemetry::Metrics;

/// The store's settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Memory for sled's page cache, bytes; default 67108864 (64 MiB), at least 1 MiB.
    pub cache_bytes: u64,
    /// How long ended messages and the steps of alerts are kept; default 7d.
    pub retention: Span,
    /// Nothing new is taken with less free on the disk than this and four times what waits, bytes;
    /// default 209715200 (200 MiB).
    pub disk_free_min_bytes: u64,
    /// A file that is given up when the disk is full, so that what waits can be sent, bytes; default
    /// 67108864 (64 MiB), 0 for none, else 33554432 (32 MiB) to 1 TiB.
    pub disk_reserve_bytes: u64,
    /// A commit that has not ended after so long is a failed one, and the process ends; default 1m, 10s
    /// to 1h.
    pub commit_timeout: Span,
    /// Most bans; default 1000, 1 to 100000. Each connection is compared with all of them.
    pub bans_max: usize,
    /// The size of the log's segments in a store that is made, bytes, a power of two; not for
    /// operators. Tests make it small.
    #[serde(skip)]
    pub segment_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_bytes: 64 << 20,
            retention: Span::from_secs(7 * 24 * 3600),
            disk_free_min_bytes: 200 << 20,
            disk_reserve_bytes: 64 << 20,
            commit_timeout: Span::from_secs(60),
            bans_max: 1000,
            segment_bytes: disk::SEGMENT_BYTES,
        }
    }
}

impl Config {
    /// Everything wrong with the values.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.cache_bytes < 1 << 20 {
            problems.push("store.cache_bytes: at least 1048576 (1 MiB)".to_owned());
        }
        if !(Span::from_secs(10)..=Span::from_secs(3600)).contains(&self.commit_timeout) {
            problems
                .push(format!("store.commit_timeout: 10s to 1h, found {}", self.commit_timeout));
        }
        let reserve = reserve::NEEDED_BYTES..=1 << 40;
        if self.disk_reserve_bytes != 0 && !reserve.contains(&self.disk_reserve_bytes) {
            problems.push(format!(
                "store.disk_reserve_bytes: 0 for none, or {} (32 MiB; with less nothing is sent) to {}, found {}",
                reserve.start(),
                reserve.end(),
                self.disk_reserve_bytes
            ));
        }
        if !(1..=100_000).contains(&self.bans_max) {
            problems.push(format!("store.bans_max: 1 to 100000, found {}", self.bans_max));
        }
        problems
    }
}

/// What an operator should know of the disk of `directory` before a start: a warning a line.
pub fn disk_warnings(directory: &Path, config: &Config) -> Vec<String> {
    // It may not be there yet.
    let Some((free, all)) = directory
        .ancestors()
        .map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path })
        .find_map(|path| Some((reserve::free_bytes(path).ok()?, reserve::disk_bytes(path).ok()?)))
    else {
        return Vec::new();
    };
    let (least, reserve) = (config.disk_free_min_bytes, config.disk_reserve_bytes);
    let place = directory.display();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut warnings = Vec::new();
    if least >= all {
        warnings.push(format!(
            "store.disk_free_min_bytes: {} is more than the disk of {place} has in all ({}): nothing would ever be taken",
            mib(least),
            mib(all)
        ));
    } else if least >= free {
        warnings.push(format!(
            "{place}: {} are free, and with less than store.disk_free_min_bytes ({}) nothing new is taken",
            mib(free),
            mib(least)
        ));
    } else if reserve > 0 && free < least.saturating_add(reserve.saturating_mul(2)) {
        warnings.push(format!(
            "{place}: {} are free, too little for the reserve of {}: should the disk be full at a start, that cannot make room by itself",
            mib(free),
            mib(reserve)
        ));
    }
    warnings
}

/// A handle on the open store; clones share it.
#[derive(Clone)]
pub struct Store {
    reader: Reader,
    requests: mpsc::Sender<writer::Request>,
    failed: watch::Receiver<Option<CommitError>>,
    directory: Arc<Path>,
    bans_max: usize,
    ban_changes: watch::Sender<u64>,
    /// Device and number of the log's file.
    file: (u64, u64),
}

/// What tells the log's file from every other.
fn file_of(directory: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(directory.join("store").join("db"))?;
    Ok((metadata.dev(), metadata.ino()))
}

/// What is written together or not at all; one with seams is several such, written in their order.
#[derive(Clone, Debug, Default)]
pub struct Op {
    writes: Vec<(Key, Option<Vec<u8>>)>,
    /// Positions in `writes`, ascending.
    seams: Vec<usize>,
    discards: bool,
}

impl Op {
    /// Nothing yet. An empty operation is durable as soon as all before it are.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes everything and keeps nothing, and encodes no value: for those who only want to know what
    /// would happen.
    pub const fn discarding() -> Self {
        Self { writes: Vec::new(), seams: Vec::new(), discards: true }
    }

    /// How many keys it writes.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether it writes nothing.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// A crash may part what was put before from what is put after this.
    pub fn seam(&mut self) {
        let here = self.writes.len();
        if here > self.seams.last().copied().unwrap_or_default() {
            self.seams.push(here);
        }
    }

    /// What is written together or not at all, in order.
    fn wholes(&self) -> impl Iterator<Item = &[(Key, Option<Vec<u8>>)]> {
        let ends = self.seams.iter().copied().chain([self.writes.len()]);
        let begins = std::iter::once(0).chain(self.seams.iter().copied());
        begins.zip(ends).filter_map(|(begin, end)| self.writes.get(begin..end))
    }

    /// Puts a value.
    pub fn put(&mut self, key: Key, value: &impl serde::Serialize) {
        if !self.discards {
            self.writes.push((key, Some(encode(value))));
        }
    }

    fn put_bytes(&mut self, key: Key, value: Vec<u8>) {
        if !self.discards {
            self.writes.push((key, Some(value)));
        }
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: Key) {
        if !self.discards {
            self.writes.push((key, None));
        }
    }
}

/// The version byte that every JSON value starts with.
const VALUE_VERSION: u8 = 1;

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.push(VALUE_VERSION);
    serde_json::to_writer(&mut bytes, value)
        .expect("rows are plain data with string keys, which JSON can always hold");
    bytes
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ReadError> {
    match bytes.split_first() {
        Some((&VALUE_VERSION, json)) => {
            serde_json::from_slice(json).map_err(|error| ReadError(error.to_string()))
        }
        Some((version, _)) => Err(ReadError(format!(
            "a row has value version {version}; this program knows {VALUE_VERSION}"
        ))),
        None => Err(ReadError("a row is empty".to_owned())),
    }
}

/// The store could not be read: the disk, or a row that this version cannot understand.
#[derive(Debug, thiserror::Error)]
#[error("reading the store: {0}")]
pub struct ReadError(String);

impl From<sled::Error> for ReadError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

impl Store {
    /// Opens the store in `directory`, makes it if there is none, and starts its writer.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what an operator can do.
    pub fn open(directory: &Path, config: &Config, metrics: &Metrics) -> Result<Self, OpenError> {
        let (opened, found) = open::open(directory, config, metrics)?;
        let mark = MarkFile::open(directory)
            .map_err(|error| OpenError::Io { path: mark::path(directory), error })?;
        let health = Health::new(metrics, found);
        let reader = Reader::new(opened.tree.clone(), health);
        let (requests, failed) =
            writer::start(opened, mark, metrics.clone(), config.commit_timeout.into())
                .map_err(|error| OpenError::Io { path: directory.to_owned(), error })?;
        Ok(Self {
            reader,
            requests,
            failed,
            directory: directory.into(),
            bans_max: config.bans_max,
            ban_changes: watch::Sender::new(0),
            file: file_of(directory)
                .map_err(|error| OpenError::Io { path: directory.to_owned(), error })?,
        })
    }

    /// Writes `ops`; durable on return.
    ///
    /// # Errors
    /// None of it is known to be durable, and no later commit will succeed: see [`Store::failed`].
    pub async fn commit(&self, ops: Vec<Op>) -> Result<(), CommitError> {
        let (answer, answered) = oneshot::channel();
        let done = Box::new(move |result| {
            // An asker that has gone no longer needs to know.
            drop(answer.send(result));
        });
        let request = writer::Request::new(ops, done);
        self.requests.send(request).await.map_err(|_| CommitError::closed())?;
        answered.await.unwrap_or_else(|_| Err(CommitError::closed()))
    }

    /// Queues `ops` and calls `done` on the writer's thread once they are durable; `done` must be
    /// quick and never block. Waits only while the writer's queue is full. Operations are written
    /// in the order of submission. Not for async code, which uses [`Store::commit`].
    pub fn submit(
        &self,
        ops: Vec<Op>,
        done: impl FnOnce(Result<(), CommitError>) + Send + 'static,
    ) {
        let request = writer::Request::new(ops, Box::new(done));
        if let Err(refused) = self.requests.blocking_send(request) {
            (refused.0.done)(Err(CommitError::closed()));
        }
    }

    /// Queues `ops` and calls `done` on the writer's thread once they are durable, as
    /// [`Store::submit`] does; for async code. Waits only while the writer's queue is full.
    pub async fn enqueue(
        &self,
        ops: Vec<Op>,
        done: impl FnOnce(Result<(), CommitError>) + Send + 'static,
    ) {
        let request = writer::Request::new(ops, Box::new(done));
        if let Err(refused) = self.requests.send(request).await {
            (refused.0.done)(Err(CommitError::closed()));
        }
    }

    /// What is wrong with the store and what to do, a line each: rows that cannot be read, and what
    /// the start found missing. Empty where all is well.
    pub fn problems(&self) -> Vec<String> {
        self.reader.health().problems()
    }

    /// Reads every row. What rows lead to is not looked at, because they change meanwhile. Not for
    /// async code.
    pub fn verify(&self) -> Verified {
        let mut verified = check::each(&self.reader);
        // What a start has repaired needs no other repair; what cannot be read, and does not show by
        // itself, is said in sum.
        let found = self.reader.health().found();
        for problem in self.problems() {
            if found.contains(&problem) {
                verified.note(problem);
            } else if !verified.needs_repair {
                verified.problem(problem);
            }
        }
        verified
    }

    /// Becomes `Some` when the store takes no more writes. The process should then end, and be
    /// started again: sled does not recover from a write error while it runs.
    pub fn failed(&self) -> watch::Receiver<Option<CommitError>> {
        self.failed.clone()
    }

    /// Free bytes on the disk that holds the store.
    pub fn disk_free_bytes(&self) -> std::io::Result<u64> {
        reserve::free_bytes(&self.directory)
    }

    /// Whether the file that is written is still the one that the next start will read. One that was
    /// deleted or moved away takes everything with it when the process ends; `problems` says so.
    pub fn is_in_place(&self) -> bool {
        let is_in_place = file_of(&self.directory).is_ok_and(|file| file == self.file);
        self.reader.health().set_in_place(is_in_place);
        is_in_place
    }

    /// How large the store's file is, bytes; zero where it cannot be asked.
    pub fn file_bytes(&self) -> u64 {
        let file = self.directory.join("store").join("db");
        std::fs::metadata(file).map_or(0, |metadata| metadata.len())
    }

    /// The last commit: returns when all before it is durable. Later commits fail.
    pub async fn close(&self) -> Result<(), CommitError> {
        let result = self.commit(Vec::new()).await;
        let (answer, answered) = oneshot::channel();
        if self.requests.send(writer::Request::stop(answer)).await.is_ok() {
            // The writer drops the sender when it has ended, whatever happened to it.
            drop(answered.await);
        }
        result
    }

    /// The directory it lives in.
    pub fn directory(&self) -> PathBuf {
        self.directory.to_path_buf()
    }

    fn get<T: DeserializeOwned>(&self, key: &Key) -> Result<Option<T>, ReadError> {
        let row = self.reader.get(key)?.map(|bytes| decode(&bytes)).transpose();
        self.reader.checked(key, row)
    }

    /// All rows of a table in the order of their keys; a row that cannot be read is an error of
    /// its own and does not end the scan.
    fn scan<T: DeserializeOwned>(
        &self,
        table: Table,
    ) -> impl Iterator<Item = Result<T, ReadError>> + use<T> {
        let reader = self.reader.clone();
        self.reader.rows([table as u8]).map(move |row| {
            let (key, value) = row?;
            reader.checked(&key, decode(&value))
        })
    }
}
