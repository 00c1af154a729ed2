//! How a command finds the running instance: a file in the data directory, and the API's key.
//!
//! `data/instance.json` says where the API of the running instance listens; it is written once
//! everything listens and removed at the end. After a crash it stays behind, so it is a hint: only
//! an answer with the same run id proves anything. `data/api.key` is made once and readable by
//! its owner only: who may read the data directory may speak to the instance.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::RunId;
use crate::secret::Secret;

/// The running instance, as it describes itself to the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its process.
    pub pid: u32,
    /// Where its API listens.
    pub api: SocketAddr,
    /// Where it takes plain MQTT, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<SocketAddr>,
    /// Where it takes MQTT over TLS, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mqtts: Option<SocketAddr>,
    /// Its run.
    pub run: RunId,
}

/// A file of the data directory could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {error}", path = .path.display())]
pub struct InstanceError {
    path: PathBuf,
    error: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstanceError + use<> {
    let path = path.to_owned();
    move |error| InstanceError { path, error }
}

impl Instance {
    /// Says in `data_dir` that this instance runs. The store's lock has to be held, so that two
    /// instances never write over each other.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, data_dir: &Path) -> Result<(), InstanceError> {
        let path = file(data_dir);
        let text = serde_json::to_string_pretty(self).expect("plain data is always JSON");
        replace(&path, &text, 0o644).map_err(at(&path))
    }

    /// What `data_dir` says of a running instance, if it says anything.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(data_dir: &Path) -> Result<Option<Self>, InstanceError> {
        let path = file(data_dir);
        match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).map(Some).map_err(|error| at(&path)(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Says that this instance no longer runs. Another's file is left alone.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, data_dir: &Path) -> Result<(), InstanceError> {
        match Self::read(data_dir)? {
            Some(found) if found.run == self.run => {
                let path = file(data_dir);
                fs::remove_file(&path).map_err(at(&path))
            }
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
    fs::create_dir_all(data_dir).map_err(at(data_dir))?;
    let path = data_dir.join("api.key");
    let mut random = [0_u8; 32];
    getrandom::fill(&mut random).map_err(|error| at(&path)(io::Error::other(error)))?;
    let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    replace(&path, &key, 0o600).map_err(at(&path))?;
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

fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("instance.json")
}

/// Writes beside and renames: nobody reads half a file, and the mode holds from the first byte.
fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let beside = path.with_extension("new");
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
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

    #[test]
    fn an_instance_removes_its_own_file_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let mine = Instance {
            pid: 1,
            api: "127.0.0.1:8080".parse().expect("an address"),
            mqtt: None,
            mqtts: None,
            run: RunId::new(uuid::Uuid::from_u128(1)),
        };
        let other = Instance { run: RunId::new(uuid::Uuid::from_u128(2)), ..mine };
        assert_eq!(Instance::read(dir.path()).expect("nothing"), None);
        mine.write(dir.path()).expect("written");
        other.remove(dir.path()).expect("left alone");
        assert_eq!(Instance::read(dir.path()).expect("read"), Some(mine));
        mine.remove(dir.path()).expect("removed");
        assert_eq!(Instance::read(dir.path()).expect("nothing"), None);
    }
}
