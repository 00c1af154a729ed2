//! A reserve on the disk: a file that holds nothing and is given up when the disk is full.
//!
//! sled needs room to open, to recover and to note that a message was sent. On a disk that is full to
//! the last byte it can do none of it, and what waits could never be sent. Never holds anything that
//! is wanted: whoever needs the room may delete the file by hand.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What a start needs to go on and send: with less free nothing is sent.
pub const NEEDED_BYTES: u64 = 32 << 20;

/// Where it is in the data directory.
const NAME: &str = "reserve";

/// The reserve of a data directory.
#[derive(Clone, Debug)]
pub struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// That of `directory`, of `bytes`; zero for none.
    pub fn new(directory: &Path, bytes: u64) -> Self {
        Self { path: directory.join(NAME), bytes }
    }

    /// How large it is to be.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is there.
    pub fn is_there(&self) -> bool {
        self.path.exists()
    }

    /// Makes it, or fits it to its size; none where its size is zero.
    ///
    /// # Errors
    /// The disk has no room for it; then there is none.
    pub fn keep(&self) -> io::Result<()> {
        if self.bytes == 0 {
            return self.give_up().map(drop);
        }
        let is_kept = fs::metadata(&self.path).is_ok_and(|file| file.len() == self.bytes);
        if is_kept {
            return Ok(());
        }
        let made = File::create(&self.path).and_then(|mut file| self.fill(&mut file));
        if made.is_err() {
            self.give_up()?;
        }
        made
    }

    fn fill(&self, file: &mut File) -> io::Result<()> {
        let flags = rustix::fs::FallocateFlags::empty();
        match rustix::fs::fallocate(&*file, flags, 0, self.bytes) {
            Ok(()) => Ok(()),
            // Not every file system can.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                io::copy(&mut io::Read::take(io::repeat(b'.'), self.bytes), file)?;
                file.sync_all()
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes it; says whether it was there.
    ///
    /// # Errors
    /// It is there and cannot be deleted.
    pub fn give_up(&self) -> io::Result<bool> {
        match fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Bytes that the disk that holds `directory` has in all.
///
/// # Errors
/// The directory is not there, or its file system does not say.
pub fn disk_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Free bytes on the disk that holds `directory`.
///
/// # Errors
/// The directory is not there, or its file system does not say.
pub fn free_bytes(directory: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_room_until_it_is_given_up() {
        let directory = tempfile::tempdir().expect("a directory");
        let reserve = Reserve::new(directory.path(), 1 << 20);
        reserve.keep().expect("there is room");
        reserve.keep().expect("it is there");
        let file = fs::metadata(directory.path().join(NAME)).expect("there");
        let blocks = std::os::unix::fs::MetadataExt::blocks(&file);
        assert!(blocks * 512 >= 1 << 20, "a hole keeps no room: {blocks} blocks");
        assert!(reserve.give_up().expect("deleted"));
        assert!(!reserve.give_up().expect("it was not there"));
        Reserve::new(directory.path(), 0).keep().expect("none");
        assert!(!reserve.is_there());
        let far_too_large = Reserve::new(directory.path(), 1 << 50);
        assert!(far_too_large.keep().is_err());
        assert!(!far_too_large.is_there(), "half a reserve is none");
    }
}
