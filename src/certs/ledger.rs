//! The ledger: what has been issued here, and what of it is revoked.
//!
//! | file | what |
//! |---|---|
//! | `issued/NAME.SERIAL.pem` | a certificate that was issued, with its chain, as it was handed out |
//! | `issued/NAME.SERIAL.revoked` | JSON: when and why it was revoked |
//!
//! The certificates are the ledger: signed as they are, they cannot say what is not so. Each file
//! appears whole or not at all ([`files`]), so a crash in the middle leaves nothing half. A file
//! is never changed or removed here. **Invariant:** a certificate is in the ledger before it is
//! handed out, and a revocation before the CRL has it: a lost CRL is made again, whole.
//!
//! Certificates that lie in the directory itself belong to it too, as those from before there was
//! a ledger.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use rcgen::RevocationReason;

use super::crl::{self, reason_named, reason_word};
use super::error::CertError;
use super::inspect::{Inspected, Kind};
use super::{Pair, files};
use crate::clock::Timestamp;

/// The ledger's directory, in that of the certificates.
const ISSUED: &str = "issued";
const DAY_MS: i64 = 86_400_000;

/// When and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Revocation {
    pub(super) at: Timestamp,
    pub(super) reason: Option<RevocationReason>,
}

/// As it stands in the file.
#[derive(serde::Serialize, serde::Deserialize)]
struct Written {
    revoked_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) file: PathBuf,
    /// The name under which it was issued; that of its files.
    pub(super) name: String,
    pub(super) certificate: Inspected,
    pub(super) revocation: Option<Revocation>,
    /// Whether it lies in the directory itself, to be used.
    in_place: bool,
}

impl Entry {
    pub(super) fn is_live(&self, now: Timestamp) -> bool {
        self.revocation.is_none() && now < self.certificate.ends
    }

    /// `is_current`: whether there is no newer one of its name.
    fn state(&self, is_current: bool, now: Timestamp) -> State {
        let certificate = &self.certificate;
        match self.revocation {
            Some(_) => State::Revoked,
            None if now >= certificate.ends => State::Ended,
            None if !is_current && certificate.kind != Kind::Ca => State::Replaced,
            None if now < certificate.begins => State::NotYet,
            None => State::Valid,
        }
    }
}

/// What has been issued, as far as it can be read.
pub(super) struct Ledger {
    pub(super) entries: Vec<Entry>,
    /// Files that could not be read, and why. They hold up nothing else.
    pub(super) problems: Vec<CertError>,
}

impl Ledger {
    pub(super) fn read(directory: &Path) -> Result<Self, CertError> {
        let mut ledger = Self { entries: Vec::new(), problems: Vec::new() };
        let mut seen = HashSet::new();
        for path in files::with_extension(directory, "pem")? {
            let name = stem(&path);
            if name != crl::NAME {
                ledger.take(path, name, true, &mut seen);
            }
        }
        for path in files::with_extension(&directory.join(ISSUED), "pem")? {
            let stem = stem(&path);
            if let Some((name, _serial)) = stem.rsplit_once('.') {
                let name = name.to_owned();
                ledger.take(path, name, false, &mut seen);
            }
        }
        let listed = crl::read(directory).unwrap_or_else(|problem| {
            ledger.problems.push(problem);
            Vec::new()
        });
        for entry in &mut ledger.entries {
            let is_it = |list: &&crl::List| list.issuer == entry.certificate.issuer;
            let of_list = listed
                .iter()
                .filter(is_it)
                .find_map(|list| list.revoked.get(&entry.certificate.serial).copied());
            match read_revocation(directory, &entry.name, &entry.certificate) {
                Ok(marked) => entry.revocation = marked.or(of_list),
                Err(problem) => ledger.problems.push(problem),
            }
        }
        Ok(ledger)
    }

    /// The first file of a certificate counts: the one in the directory before the ledger's.
    fn take(
        &mut self,
        file: PathBuf,
        name: String,
        in_place: bool,
        seen: &mut HashSet<(String, Vec<u8>)>,
    ) {
        match files::read(&file).and_then(|text| Inspected::read(&file, &text)) {
            Err(problem) => self.problems.push(problem),
            Ok(certificate) => {
                if seen.insert((certificate.serial.clone(), certificate.issuer.clone())) {
                    let entry = Entry { file, name, certificate, revocation: None, in_place };
                    self.entries.push(entry);
                }
            }
        }
    }

    pub(super) fn of<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Entry> {
        self.entries.iter().filter(move |entry| entry.name == name)
    }

    /// The one of this name that is in use: the one in the directory, else the newest.
    pub(super) fn current(&self, name: &str) -> Option<&Entry> {
        self.of(name).max_by_key(|entry| (entry.in_place, entry.certificate.begins))
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn file(directory: &Path, name: &str, serial: &str, extension: &str) -> PathBuf {
    directory.join(ISSUED).join(format!("{name}.{serial}.{extension}"))
}

/// Writes down a certificate that is about to be handed out.
pub(super) fn record(directory: &Path, name: &str, pem: &str) -> Result<(), CertError> {
    let certificate = Inspected::read(directory, pem)?;
    let path = file(directory, name, &certificate.serial, "pem");
    files::make_directory(&directory.join(ISSUED))?;
    files::write(&path, pem, files::PUBLIC)
}

/// Writes down a certificate that lies in the directory, if it is not in the ledger.
pub(super) fn adopt(directory: &Path, name: &str, path: &Path) -> Result<(), CertError> {
    let text = files::read(path)?;
    // What cannot be read cannot be revoked either, and is in nobody's way.
    let Ok(certificate) = Inspected::read(path, &text) else { return Ok(()) };
    if file(directory, name, &certificate.serial, "pem").exists() {
        return Ok(());
    }
    record(directory, name, &text)
}

/// Writes down that a certificate is revoked, and the certificate if it is from before the ledger.
pub(super) fn record_revocation(
    directory: &Path,
    entry: &Entry,
    revocation: Revocation,
) -> Result<(), CertError> {
    let serial = &entry.certificate.serial;
    if entry.in_place && entry.file.exists() {
        adopt(directory, &entry.name, &entry.file)?;
    }
    let written = Written {
        revoked_at: revocation.at.to_string(),
        reason: revocation.reason.map(|reason| reason_word(reason).to_owned()),
    };
    let mut text = serde_json::to_string(&written).expect("plain data is always JSON");
    text.push('\n');
    files::write(&file(directory, &entry.name, serial, "revoked"), &text, files::PUBLIC)
}

/// Whether this certificate is revoked, without reading all the others.
pub(super) fn is_revoked(
    directory: &Path,
    name: &str,
    certificate: &Inspected,
) -> Result<bool, CertError> {
    let lists = crl::read(directory)?;
    let mut of_issuer = lists.iter().filter(|list| list.issuer == certificate.issuer);
    Ok(of_issuer.any(|list| list.revoked.contains_key(&certificate.serial))
        || read_revocation(directory, name, certificate)?.is_some())
}

fn read_revocation(
    directory: &Path,
    name: &str,
    certificate: &Inspected,
) -> Result<Option<Revocation>, CertError> {
    let path = file(directory, name, &certificate.serial, "revoked");
    if !path.exists() {
        return Ok(None);
    }
    let text = files::read(&path)?;
    let read = || {
        let written: Written = serde_json::from_str(&text).ok()?;
        let at: jiff::Timestamp = written.revoked_at.parse().ok()?;
        let reason = match &written.reason {
            Some(word) => Some(reason_named(word)?),
            None => None,
        };
        Some(Revocation { at: Timestamp::from_millis(at.as_millisecond()), reason })
    };
    let detail = "it is no record of a revocation; delete it and revoke the certificate again";
    read().map(Some).ok_or_else(|| CertError::Unreadable { path, detail: detail.to_owned() })
}

/// What a certificate is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It counts.
    Valid,
    /// It begins later.
    NotYet,
    /// A newer one of the same name is there; this one counts until it ends.
    Replaced,
    /// Its time is over.
    Ended,
    /// It was revoked.
    Revoked,
}

impl State {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::NotYet => "not yet",
            Self::Replaced => "replaced",
            Self::Ended => "ended",
            Self::Revoked => "revoked",
        }
    }
}

/// A certificate, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// The name under which it was issued.
    pub name: String,
    /// The file.
    pub file: PathBuf,
    /// The common name.
    pub subject: String,
    /// What it is for.
    pub kind: Kind,
    /// Upper-case hexadecimal, as `openssl x509 -serial` prints it.
    pub serial: String,
    /// Names and addresses it stands for.
    pub names: Vec<String>,
    /// When it begins, RFC 3339.
    pub begins_at: String,
    /// When it ends, RFC 3339.
    pub expires_at: String,
    /// Whole days until then; negative when it has ended.
    pub days_left: i64,
    /// What it is worth.
    pub state: State,
    /// When it was revoked, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// Why it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
}

impl Listed {
    /// Whether someone has to renew it within `days`, or should have.
    pub fn is_due(&self, days: i64) -> bool {
        self.days_left < days && matches!(self.state, State::Valid | State::NotYet | State::Ended)
    }
}

/// Every certificate of `directory` by name, the newest of each first; and what cannot be read.
/// Those that have ended and were replaced are left out.
///
/// # Errors
/// See [`CertError`].
pub fn list(directory: &Path, now: Timestamp) -> Result<(Vec<Listed>, Vec<CertError>), CertError> {
    // An empty answer for a directory that is not there would look like an empty one.
    if let Err(error) = std::fs::metadata(directory) {
        return Err(files::at(directory)(error));
    }
    let mut ledger = Ledger::read(directory)?;
    let problems = std::mem::take(&mut ledger.problems);
    let mut by_name: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in &ledger.entries {
        by_name.entry(&entry.name).or_default().push(entry);
    }
    let mut listed = Vec::new();
    for entries in by_name.values_mut() {
        entries.sort_by_key(|entry| std::cmp::Reverse((entry.in_place, entry.certificate.begins)));
        for (index, entry) in entries.iter().enumerate() {
            let one = shown(entry, entry.state(index == 0, now), now);
            if index == 0 || one.state != State::Ended {
                listed.push(one);
            }
        }
    }
    Ok((listed, problems))
}

fn shown(entry: &Entry, state: State, now: Timestamp) -> Listed {
    let certificate = &entry.certificate;
    Listed {
        name: entry.name.clone(),
        file: entry.file.clone(),
        subject: certificate.common_name.clone(),
        kind: certificate.kind,
        serial: certificate.serial.clone(),
        names: certificate.name_texts(),
        begins_at: certificate.begins.to_string(),
        expires_at: certificate.ends.to_string(),
        days_left: (certificate.ends.as_millis() - now.as_millis()).div_euclid(DAY_MS),
        state,
        revoked_at: entry.revocation.map(|revocation| revocation.at.to_string()),
        reason: entry.revocation.and_then(|revocation| revocation.reason).map(reason_word),
    }
}

/// The names whose certificate in use ends within `days` and counts still.
///
/// # Errors
/// See [`CertError`].
pub fn due(directory: &Path, days: i64, now: Timestamp) -> Result<Vec<String>, CertError> {
    let (listed, _) = list(directory, now)?;
    let due = |one: &&Listed| one.is_due(days) && one.state == State::Valid && one.kind != Kind::Ca;
    Ok(listed.iter().filter(due).map(|one| one.name.clone()).collect())
}

/// The files of `name` that are in the directory itself.
pub(super) fn in_place(directory: &Path, name: &str) -> Option<PathBuf> {
    let Pair { cert, key } = Pair::of(directory, name);
    [cert, key].into_iter().find(|path| path.exists())
}
