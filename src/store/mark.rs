//! The high-water mark: a small file beside the store that says how far the store has come, so that
//! a start can tell an empty store from one that has lost everything.
//!
//! `store.mark` in the data directory holds two slots of [`SLOT_BYTES`], written by turns: JSON, a
//! space, the CRC-32 of the JSON in hexadecimal, a line feed, spaces. The newer one that is whole
//! counts. The same number of commits stands in the store (table `M`, `commit`), written with a
//! commit once a second, and a second after the last one: so a commit costs nothing for it.
//!
//! **Invariant:** the mark never says more than what has been synced in `db`. A power cut loses
//! nothing that it names, and raises no false alarm; it is about a second behind.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::writer::Request;
use super::{VALUE_VERSION, keys};
use crate::clock::{Clock, Timestamp};
use crate::telemetry::Metrics;

/// How far behind it may be.
pub(super) const EVERY: Duration = Duration::from_secs(1);
const SLOT_BYTES: usize = 512;
/// What the value of the store's own row begins with, behind the version byte.
const ROW_BEGINS: &[u8] = b"{\"commit\":";

/// How far the store has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// Commits since the store was made.
    pub(super) commit: u64,
    /// When the last of them was written.
    pub(super) at: Timestamp,
    /// Messages that waited then.
    pub(super) messages: i64,
    /// Alerts that fired.
    pub(super) alerts: i64,
    /// Sessions of MQTT clients.
    pub(super) sessions: i64,
    /// Retained messages.
    pub(super) retained: i64,
    /// How long the file `db` was.
    #[serde(default)]
    pub(super) bytes: u64,
}

impl Mark {
    /// The mark as it is now.
    pub(super) fn now(commit: u64, bytes: u64, metrics: &Metrics) -> Self {
        Self {
            commit,
            at: Clock::System.now(),
            messages: metrics.outbox_messages.get(),
            alerts: metrics.alerts_firing.get(),
            sessions: metrics.sessions.get(),
            retained: metrics.retained_messages.get(),
            bytes,
        }
    }

    /// What is in words.
    pub(super) fn words(&self) -> String {
        format!(
            "{} commits until {}; then {} messages waited, {} alerts fired, {} sessions and {} \
             retained messages were kept",
            self.commit, self.at, self.messages, self.alerts, self.sessions, self.retained
        )
    }

    fn slot(&self) -> [u8; SLOT_BYTES] {
        let json = serde_json::to_string(self).expect("plain data is always JSON");
        let text = format!("{json} {:08x}\n", crc32fast::hash(json.as_bytes()));
        let mut slot = [b' '; SLOT_BYTES];
        // Seven numbers: half of it.
        for (place, byte) in slot.iter_mut().zip(text.bytes()) {
            *place = byte;
        }
        slot
    }

    fn of_slot(slot: &[u8]) -> Option<Self> {
        let line = slot.split(|byte| *byte == b'\n').next()?;
        let (json, crc) = line.split_at_checked(line.len().checked_sub(9)?)?;
        let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?.trim(), 16).ok()?;
        (crc == crc32fast::hash(json)).then(|| serde_json::from_slice(json).ok()).flatten()
    }
}

/// The store's own row: under which key, and what it holds.
pub(super) fn row(commit: u64) -> (keys::Key, Vec<u8>) {
    let mut value = vec![VALUE_VERSION];
    value.extend_from_slice(ROW_BEGINS);
    value.extend_from_slice(format!("{commit}}}").as_bytes());
    (keys::meta("commit"), value)
}

/// What the value of the store's own row says.
pub(super) fn commit_of(value: &[u8]) -> Option<u64> {
    let digits = value.strip_prefix(&[VALUE_VERSION])?.strip_prefix(ROW_BEGINS)?;
    std::str::from_utf8(digits.strip_suffix(b"}")?).ok()?.parse().ok()
}

/// Where the mark of the store in this data directory is.
pub(super) fn path(directory: &Path) -> PathBuf {
    directory.join("store.mark")
}

/// The mark of the store in this data directory; `None` where there is none that can be read.
pub(super) fn read(directory: &Path) -> io::Result<Option<Mark>> {
    let bytes = match fs::read(path(directory)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(bytes.chunks(SLOT_BYTES).filter_map(Mark::of_slot).max_by_key(|mark| mark.commit))
}

/// The file, open for writing.
#[derive(Debug)]
pub(super) struct MarkFile {
    file: File,
    /// Of the slot that is written next.
    offset: u64,
}

impl MarkFile {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let newest = read(directory)?;
        let path = path(directory);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let mut first = [0; SLOT_BYTES];
        let is_first = file.read_exact_at(&mut first, 0).is_ok()
            && newest.is_some()
            && Mark::of_slot(&first) == newest;
        File::open(directory)?.sync_all()?;
        Ok(Self { file, offset: if is_first { SLOT_BYTES as u64 } else { 0 } })
    }

    /// Writes the mark; durable on return.
    pub(super) fn write(&mut self, mark: &Mark) -> io::Result<()> {
        self.file.write_all_at(&mark.slot(), self.offset)?;
        self.offset = SLOT_BYTES as u64 - self.offset;
        self.file.sync_data()
    }
}

/// Writes a mark beside a store that nobody has open.
pub(super) fn write(directory: &Path, mark: &Mark) -> io::Result<()> {
    // Of a store that was before, no slot may count.
    match fs::remove_file(path(directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    MarkFile::open(directory)?.write(mark)
}

/// What the writer says to the one that keeps the mark.
#[derive(Debug)]
pub(super) enum Word {
    /// So much is durable, and stands in the store.
    Durable(Mark),
    /// Something was committed that does not stand there yet.
    Behind,
}

/// Starts the thread that writes the mark, and reminds the writer of what is not in it yet. It ends
/// when the writer does.
pub(super) fn keep(
    mut file: MarkFile,
    writer: mpsc::WeakSender<Request>,
) -> io::Result<(SyncSender<Word>, JoinHandle<()>)> {
    let (words, heard) = sync_channel::<Word>(4);
    let thread = std::thread::Builder::new()
        .name("store-mark".to_owned())
        .spawn(move || run(&mut file, &writer, &heard))?;
    Ok((words, thread))
}

fn run(file: &mut MarkFile, writer: &mpsc::WeakSender<Request>, heard: &Receiver<Word>) {
    let mut behind = false;
    let mut said = false;
    loop {
        let word = if behind {
            heard.recv_timeout(EVERY)
        } else {
            heard.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match word {
            Ok(Word::Behind) => behind = true,
            Ok(Word::Durable(mark)) => {
                behind = false;
                match file.write(&mark) {
                    Ok(()) => said = false,
                    Err(error) if !said => {
                        said = true;
                        tracing::error!(
                            %error,
                            "the store's high-water mark cannot be written: until it can, a start \
                             does not notice what is missing"
                        );
                    }
                    Err(_) => {}
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                behind = false;
                // Where the queue is full the next commit is near, and says it by itself.
                if let Some(writer) = writer.upgrade() {
                    drop(writer.try_send(Request::mark()));
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(commit: u64) -> Mark {
        Mark { commit, messages: 7, ..Mark::default() }
    }

    #[test]
    fn the_newer_slot_that_is_whole_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(read(dir.path()).expect("none"), None);
        for commit in 1..=3 {
            // As after a restart each time.
            MarkFile::open(dir.path()).expect("opens").write(&mark(commit)).expect("written");
            assert_eq!(read(dir.path()).expect("read"), Some(mark(commit)));
        }
        let mut bytes = fs::read(path(dir.path())).expect("read");
        assert_eq!(bytes.len(), 2 * SLOT_BYTES);
        // A power cut while the newer one was written.
        bytes[..SLOT_BYTES / 4].fill(0);
        fs::write(path(dir.path()), &bytes).expect("written");
        assert_eq!(read(dir.path()).expect("read"), Some(mark(2)));
        write(dir.path(), &mark(1)).expect("written");
        assert_eq!(read(dir.path()).expect("read"), Some(mark(1)), "of another store");
    }

    #[test]
    fn the_row_says_what_was_put_into_it() {
        assert_eq!(commit_of(&row(u64::MAX).1), Some(u64::MAX));
        assert_eq!(commit_of(b"1"), None);
        assert_eq!(commit_of(b""), None);
    }
}
