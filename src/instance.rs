//! How a command finds the running instance: a file in the data directory, and the API's key.
//!
//! `data/instance.json` says where the API of the running instance listens; it is written once
//! everything listens and removed at the end. The instance holds an advisory lock on it while it
//! lives. After a crash the file stays behind and the lock does not, and by then anybody may
//! listen on that port. **Invariant:** the key is sent only to an address whose file is locked.
//! `data/api.key` is made once and readable by its owner only: who may read the data directory
//! may speak to the instance.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::model::RunId;
use crate::secret::Secret;

/// The running instance, as it describes itself to the commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its process.
    pub pid: u32,
    /// Where its API listens.
    pub api: SocketAddr,
    /// Where it takes plain MQTT by `broker.listen`, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<SocketAddr>,
    /// Where it takes MQTT over TLS by `broker.listen_tls`, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtts: Option<SocketAddr>,
    /// All its listeners.
    #[serde(default)]
    pub listeners: Vec<Listening>,
    /// Its run.
    pub run: RunId,
}

impl Instance {
    /// The first listener of a protocol.
    pub fn listens_by(&self, protocol: &str) -> Option<SocketAddr> {
        self.listeners.iter().find(|one| one.protocol == protocol).map(|one| one.address)
    }
}

/// A listener of the running instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// As it is configured.
    pub name: String,
    /// `mqtt`, `mqtts`, `ws`, `wss` or `http`.
    pub protocol: String,
    /// Where.
    pub address: SocketAddr,
}

/// That this instance lives, for as long as this is kept: dropped, or with the process gone,
/// commands no longer speak to it.
#[derive(Debug)]
pub struct Living {
    /// The lock goes when the file is closed, however that comes about.
    _locked: File,
}

/// A file of the data directory could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: {error}; the data directory must be readable and writable by this user, or name another with --data-dir",
    path = .path.display()
)]
pub struct InstanceError {
    path: PathBuf,
    error: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstanceError + use<> {
    let path = path.to_owned();
    move |error| InstanceError { path, error }
}

impl Instance {
    /// Says in `data_dir` that this instance runs, for as long as the answer is kept. The store's
    /// lock has to be held, so that two instances never write over each other.
    ///
    /// # Errors
    /// The file cannot be written or locked.
    pub fn write(&self, data_dir: &Path) -> Result<Living, InstanceError> {
        let path = file(data_dir);
        let text = serde_json::to_string_pretty(self).expect("plain data is always JSON");
        // Locked before it has its name: nobody finds it and takes it for a dead one's.
        let lock = |file: &File| Ok(flock(file, FlockOperation::NonBlockingLockExclusive)?);
        let _locked = replace(&path, &text, 0o644, lock).map_err(at(&path))?;
        Ok(Living { _locked })
    }

    /// The instance that runs with `data_dir`, if one does. What a crash left behind is none.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn running(data_dir: &Path) -> Result<Option<Self>, InstanceError> {
        let path = file(data_dir);
        let Some((found, file)) = Self::open(&path)? else { return Ok(None) };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            // Whoever wrote it has gone.
            Ok(()) => Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(Some(found)),
            Err(error) => Err(at(&path)(error.into())),
        }
    }

    fn open(path: &Path) -> Result<Option<(Self, File)>, InstanceError> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(path)(error)),
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(at(path))?;
        let found = serde_json::from_slice(&text).map_err(|error| at(path)(error.into()))?;
        Ok(Some((found, file)))
    }

    /// Says that this instance no longer runs. Another's file is left alone.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, data_dir: &Path) -> Result<(), InstanceError> {
        let path = file(data_dir);
        match Self::open(&path)? {
            Some((found, _)) if found.run == self.run => fs::remove_file(&path).map_err(at(&path)),
            _ => Ok(()),
        }
    }
}

/// The API's key of `data_dir`; made at the first call.
///
/// # Errors
/// The file can neither be read nor made.
pub fn ensure_key(data_dir: &Path) -> Result<Secret, InstanceError> {
    if let Some(key) = read_key(data_dir)? {
        return Ok(key);
    }
    make_private(data_dir).map_err(at(data_dir))?;
    let path = data_dir.join("api.key");
    let mut random = [0_u8; 32];
    getrandom::fill(&mut random).map_err(|error| at(&path)(io::Error::other(error)))?;
    let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    replace(&path, &key, 0o600, |_| Ok(())).map_err(at(&path))?;
    Ok(Secret::new(key))
}

/// The API's key of `data_dir`, if there is one.
///
/// # Errors
/// The file is there and cannot be read.
pub fn read_key(data_dir: &Path) -> Result<Option<Secret>, InstanceError> {
    let path = data_dir.join("api.key");
    match fs::read_to_string(&path) {
        Ok(text) if text.trim().len() >= 32 => Ok(Some(Secret::new(text.trim()))),
        Ok(_) => Err(at(&path)(io::Error::other(
            "it holds no key of at least 32 characters; delete it, and the next start makes one",
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(&path)(error)),
    }
}

/// Makes the data directory where there is none. Phone numbers and texts are in it: nobody else on
/// this machine looks into one that we have made. One that is there keeps the mode that somebody
/// gave it.
fn make_private(data_dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir)
}

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("instance.json")
}

/// Writes beside and renames: nobody reads half a file, and the mode holds from the first byte, as
/// does what `prepare` does to it.
fn replace(
    path: &Path,
    text: &str,
    mode: u32,
    prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<File> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    prepare(&file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a directory");
        let key = ensure_key(dir.path()).expect("made");
        assert_eq!(key.expose().len(), 64);
        assert_eq!(ensure_key(dir.path()).expect("read"), key);
        let mode = fs::metadata(dir.path().join("api.key")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join("api.key"), "short").expect("written");
        let error = ensure_key(dir.path()).expect_err("no key");
        assert!(error.to_string().contains("delete it"), "{error}");
    }

    fn instance(run: u128) -> Instance {
        Instance {
            pid: 1,
            api: "127.0.0.1:8080".parse().expect("an address"),
            mqtt: None,
            mqtts: None,
            listeners: Vec::new(),
            run: RunId::new(uuid::Uuid::from_u128(run)),
        }
    }

    #[test]
    fn an_instance_removes_its_own_file_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let (mine, other) = (instance(1), instance(2));
        assert_eq!(Instance::running(dir.path()).expect("nothing"), None);
        let _living = mine.write(dir.path()).expect("written");
        other.remove(dir.path()).expect("left alone");
        assert_eq!(Instance::running(dir.path()).expect("read"), Some(mine.clone()));
        mine.remove(dir.path()).expect("removed");
        assert_eq!(Instance::running(dir.path()).expect("nothing"), None);
    }

    #[test]
    fn a_file_that_a_crash_left_behind_is_no_instance() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(instance(1).write(dir.path()).expect("written"));
        assert!(file(dir.path()).exists(), "a crash removes nothing");
        assert_eq!(Instance::running(dir.path()).expect("read"), None);
        // The next one is found, and a look at it does no harm.
        let _living = instance(2).write(dir.path()).expect("written");
        for _ in 0..2 {
            assert_eq!(Instance::running(dir.path()).expect("read"), Some(instance(2)));
        }
    }

    #[test]
    fn the_data_directory_was_open_to_everybody_on_the_machine() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("a/data");
        ensure_key(&data).expect("made");
        assert_eq!(fs::metadata(&data).expect("there").permissions().mode() & 0o777, 0o700);
    }
}
