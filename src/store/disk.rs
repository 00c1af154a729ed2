//! What makes sled's log durable, and how often it has to be.
//!
//! sled's `flush()` does not fsync on Linux (spacejam/sled#1351), so [`Disk::sync`] follows it with
//! `sync_data` on a handle of our own.
//!
//! **Invariant:** between two syncs sled begins at most one new segment. It believes that what it has
//! written stays written, in two ways that a power cut shows to be wrong when several segments are
//! not synced yet:
//! - It uses a segment again as soon as the rows of it have been copied to another, which must be on
//!   disk by then. The copy is at least two segments older than the one that is used again.
//! - The head of a segment says how far the log was written when it began. A head that is on disk
//!   while the segment before it is not makes sled take the whole log for empty.
//!
//! So segments are large ([`SEGMENT_BYTES`]), and what is written is synced after an eighth of one,
//! also in the middle of a commit. The rest is room for what a batch makes sled write besides: pages
//! that it puts together, and pages that it moves out of segments which are nearly empty.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::cure::Blobs;

/// The size of the log's segments in stores that this program makes, bytes. sled's own is 512 KiB,
/// which one commit fills several times; 16 MiB is the most that sled takes.
pub(super) const SEGMENT_BYTES: usize = 8 << 20;

/// How often sled rolls its log and cleans segments by itself, milliseconds. It cleans for at most
/// half of that at a time, and then syncs.
pub(super) const FLUSH_EVERY_MS: u64 = 100;

/// sled's log, and what of it is not known to be on disk.
pub(super) struct Disk {
    db: sled::Db,
    file: File,
    /// Files under `blobs/`, where there are any.
    pub(super) blobs: Option<Blobs>,
    /// How much may be written and not synced, bytes.
    unsynced_bytes_max: u64,
    /// What this process has written, as the system counts it; `None` where it does not.
    written: Option<File>,
    /// The same when the last sync began.
    synced_at: u64,
}

impl Disk {
    /// Of a store whose segments have this size; `file` is its log.
    pub(super) fn new(db: sled::Db, file: File, segment_bytes: usize) -> Self {
        let written = File::open("/proc/self/io").ok();
        let mut disk = Self {
            db,
            file,
            blobs: None,
            unsynced_bytes_max: segment_bytes as u64 / 8,
            written,
            synced_at: 0,
        };
        disk.synced_at = disk.written_bytes().unwrap_or(0);
        disk
    }

    /// How large the log is, bytes; 0 where that cannot be found out.
    pub(super) fn bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    /// Everything that was written before is on disk on return.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that flushes, and it syncs after it"
    )]
    pub(super) fn sync(&mut self) -> sled::Result<()> {
        self.db.flush()?;
        if let Some(blobs) = &mut self.blobs {
            blobs.sync()?;
        }
        self.synced_at = self.written_bytes().unwrap_or(0);
        self.file.sync_data()?;
        Ok(())
    }

    /// Syncs where as much has been written as may be. Called before each batch.
    pub(super) fn sync_if_due(&mut self) -> sled::Result<()> {
        // Where nobody counts, each batch is synced.
        let is_due = self
            .written_bytes()
            .is_none_or(|now| now.saturating_sub(self.synced_at) > self.unsynced_bytes_max);
        if is_due { self.sync() } else { Ok(()) }
    }

    /// Bytes that this process has passed to the system, by whatever thread: what goes to sockets is
    /// among them, so this is never too little.
    fn written_bytes(&self) -> Option<u64> {
        let mut text = [0; 256];
        let length = self.written.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        text.lines().find_map(|line| line.strip_prefix("wchar: ")?.trim().parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_synced_before_a_second_segment_begins() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store");
        let db = sled::Config::new().path(&path).open().expect("a store");
        let file = File::options().write(true).open(path.join("db")).expect("its log");
        let mut disk = Disk::new(db.clone(), file, 1 << 20);
        disk.sync().expect("synced");
        let at = disk.synced_at;
        disk.sync_if_due().expect("nothing to do");
        assert_eq!(disk.synced_at, at);
        for row in 0..20_u8 {
            db.insert([row], vec![row; 20_000]).expect("written");
        }
        db.flush_for_tests();
        disk.sync_if_due().expect("synced");
        assert!(disk.synced_at >= at + 20 * 20_000, "{} after {at}", disk.synced_at);
    }

    trait FlushForTests {
        fn flush_for_tests(&self);
    }

    impl FlushForTests for sled::Db {
        #[expect(clippy::disallowed_methods, reason = "what is looked at is what follows")]
        fn flush_for_tests(&self) {
            self.flush().expect("flushed");
        }
    }
}
