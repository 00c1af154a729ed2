//! How files are read and written: whole or not at all, private where they are keys, one writer
//! at a time.
//!
//! Invariant: a file that has its name is complete and on disk. What a crash leaves behind is a
//! file that ends in `.new`, which nobody reads and the next write replaces.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::error::CertError;

/// Readable by its owner only.
pub(super) const PRIVATE: u32 = 0o600;
/// Readable by all: certificates and CRLs are no secrets.
pub(super) const PUBLIC: u32 = 0o644;

/// Keeps every other `watchbell certs` out of `directory` while the answer lives; waits for one
/// that is at work there. The lock is on the directory itself and goes with the process.
pub(super) fn lock(directory: &Path) -> Result<File, CertError> {
    let file = File::open(directory).map_err(at(directory))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| at(directory)(io::Error::from(error)))?;
    Ok(file)
}

/// Makes the directory, if it is not there, for its owner only: keys are in it. One that is there
/// keeps the mode that somebody gave it.
pub(super) fn make_directory(directory: &Path) -> Result<(), CertError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))
}

/// Writes beside the file and renames, so that the mode holds from the first byte and a running
/// instance never reads half a file.
pub(super) fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let result = (|| {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        // The new name is on disk when its directory is.
        match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => File::open(".")?.sync_all(),
        }
    })();
    result.map_err(at(path))
}

/// Files in `directory` whose names end in `.extension`, by name; none where it is not there.
pub(super) fn with_extension(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, CertError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(at(directory))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(at(directory))?.path();
        if path.extension().is_some_and(|known| known == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn read(path: &Path) -> Result<String, CertError> {
    fs::read_to_string(path).map_err(at(path))
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> CertError + use<> {
    let path = path.to_owned();
    move |error| CertError::Io { path, error }
}
