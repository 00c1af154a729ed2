//! A small CA that a site can run: its root, perhaps an issuing CA below it, certificates of
//! servers and devices, and the list of those that are revoked.
//!
//! Keys are ECDSA P-256, which TLS 1.2 clients and small devices take; a key file is readable by
//! its owner only, and that is its protection: there are no passphrases, so put the root's key
//! away where that is not enough. **Invariant:** nothing here ever replaces a CA: every
//! certificate hangs on it. Who wants another one names another directory.
//!
//! | file | what |
//! |---|---|
//! | `ca.pem`, `ca.key` | the root CA, ten years; devices and the broker trust it |
//! | `issuing.pem`, `issuing.key` | the CA that signs in its place, five years, if there is one |
//! | `server.pem`, `server.key` | the server's certificate, 397 days, which is what clients accept at most |
//! | `NAME.pem`, `NAME.key` | the certificate of device or server NAME, 397 days |
//! | `crl.pem` | what is revoked ([`crl`]) |
//! | `issued/` | everything that was ever issued, and what of it is revoked ([`ledger`]) |
//!
//! A certificate's file holds its chain, the issuing CA's certificate behind its own.

pub mod crl;
pub mod error;
pub mod inspect;
pub mod issue;
pub mod ledger;

mod authority;
mod files;
mod names;

use std::path::{Path, PathBuf};

use self::authority::{Authority, ISSUING, ROOT};
use self::error::CertError;
use self::issue::{Bearer, Leaf, Order, hand_out};
use crate::clock::Timestamp;

/// The directory that the default configuration names.
pub const DIRECTORY: &str = "certs";

const ROOT_DAYS: u16 = 3650;
/// The files of the broker's own certificate.
const SERVER: &str = "server";

/// What `init` has written, and what it has found.
#[derive(Debug, PartialEq, Eq)]
pub struct Made {
    /// The files written, in order.
    pub written: Vec<PathBuf>,
    /// Whether the CA was there before.
    pub ca_kept: bool,
}

/// The files of one certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate and its chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
}

impl Pair {
    /// Where certificate and key of `name` are in `directory`.
    pub fn of(directory: &Path, name: &str) -> Self {
        Self {
            cert: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        }
    }
}

/// Makes what is missing of CA and server certificate, with the hosts that a first try needs.
/// `None` where nothing was missing. For `watchbell run` with the default paths.
///
/// # Errors
/// See [`CertError`].
pub fn ensure_development(directory: &Path, now: Timestamp) -> Result<Option<Made>, CertError> {
    let (ca, server) = (Pair::of(directory, ROOT), Pair::of(directory, SERVER));
    let needed = [&ca.cert, &server.cert, &server.key];
    let (there, missing): (Vec<&PathBuf>, Vec<&PathBuf>) =
        needed.into_iter().partition(|path| path.exists());
    if let Some(missing) = missing.first()
        && let Some(there) = there.iter().find(|path| **path != &ca.cert)
    {
        return Err(CertError::Incomplete {
            missing: missing.to_path_buf(),
            there: there.to_path_buf(),
        });
    }
    if missing.is_empty() {
        return Ok(None);
    }
    init(directory, &Init::default(), now).map(Some)
}

/// How a site begins.
#[derive(Clone, Debug, Default)]
pub struct Init {
    /// Names and addresses of the server beside `localhost`, the loopback addresses and this
    /// machine's name; the first one becomes the subject.
    pub hosts: Vec<String>,
    /// The CA's name; this machine's where there is none.
    pub name: Option<String>,
    /// Days that the root counts; ten years where nothing is said.
    pub days: Option<u16>,
    /// Makes an issuing CA, also below a root that is there.
    pub intermediate: bool,
    /// Replaces the server's certificate.
    pub force: bool,
}

/// Makes what is not there: the root, the issuing CA if it is wished, and the server's
/// certificate, which `force` replaces. A CA is never replaced.
///
/// # Errors
/// See [`CertError`].
pub fn init(directory: &Path, wanted: &Init, now: Timestamp) -> Result<Made, CertError> {
    let names = names::of_server(&server_hosts(&wanted.hosts), &[])?;
    let machine = format!("Watchbell CA of {}", names::machine());
    let name = match &wanted.name {
        Some(name) => names::check_ca(name).map(|()| name.clone())?,
        None => machine.chars().take(64).collect(),
    };
    files::make_directory(directory)?;
    let _locked = files::lock(directory)?;

    let root = Authority::read(directory, ROOT)?;
    let below = Authority::read(directory, ISSUING)?;
    let make_issuing = wanted.intermediate && below.is_none();
    let make_server = match ledger::in_place(directory, SERVER) {
        Some(path) if !wanted.force => {
            let only_issuing = make_issuing && root.is_some() && wanted.hosts.is_empty();
            if !only_issuing {
                return Err(CertError::Exists { path, name: SERVER.to_owned() });
            }
            false
        }
        _ => true,
    };
    let mut made = Made { written: Vec::new(), ca_kept: root.is_some() };
    let root = match root {
        Some(root) if wanted.name.is_some() || wanted.days.is_some() => {
            return Err(CertError::CaExists(root.pair.cert));
        }
        Some(root) => root,
        None => {
            let days = wanted.days.unwrap_or(ROOT_DAYS);
            made.took(Authority::make_root(directory, &name, days, now)?)
        }
    };
    if make_issuing {
        made.took(root.make_issuing(directory, now)?);
        // Now, while the root's key is here: its list has to be there for those who ask about the
        // whole chain.
        made.written.push(crl::publish_locked(directory, crl::DAYS, now)?.path);
    }
    if make_server {
        let common_name = wanted.hosts.first().map_or("localhost", String::as_str);
        let days = issue::DAYS;
        let leaf = Leaf { name: SERVER, common_name, server: true, names, days };
        let issued = hand_out(directory, leaf, &Bearer::of(None)?, now)?;
        made.written.push(issued.cert);
        made.written.extend(issued.key);
    }
    Ok(made)
}

impl Made {
    fn took(&mut self, authority: Authority) -> Authority {
        self.written.extend([authority.pair.cert.clone(), authority.pair.key.clone()]);
        authority
    }
}

fn server_hosts(hosts: &[String]) -> Vec<String> {
    let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let machine = names::machine();
    if names::is_dns(&machine) {
        all.push(machine);
    }
    all.extend_from_slice(hosts);
    all
}

/// Issues a client certificate whose common name and alternative names are `id`.
///
/// # Errors
/// See [`CertError`].
pub fn client(directory: &Path, id: &str, force: bool, now: Timestamp) -> Result<Pair, CertError> {
    let order = Order { name: id.to_owned(), force, ..Order::default() };
    issue::issue(directory, &order, now)?;
    Ok(Pair::of(directory, id))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::ledger::list;
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn forced() -> Init {
        Init { force: true, ..Init::default() }
    }

    #[test]
    fn what_it_makes_is_private_and_listed() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("certs");
        let wanted = Init { hosts: vec!["broker.example".to_owned()], ..Init::default() };
        let made = init(&directory, &wanted, NOW).expect("made");
        assert!(!made.ca_kept);
        assert_eq!(made.written.len(), 4);
        let pump = client(&directory, "pump-7", false, NOW).expect("made");
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        for key in [&pump.key, &directory.join("ca.key"), &directory.join("server.key")] {
            assert_eq!(mode(key), 0o600, "{}", key.display());
        }
        assert_eq!(mode(&directory), 0o700);

        let (listed, problems) = list(&directory, NOW).expect("readable");
        assert!(problems.is_empty(), "{problems:?}");
        let subjects: Vec<_> = listed.iter().map(|one| one.subject.as_str()).collect();
        assert_eq!(subjects.len(), 3);
        assert!(subjects[0].starts_with("Watchbell CA of "));
        assert_eq!(subjects[1..], ["pump-7", "broker.example"]);
        assert_eq!(listed[1].names, ["pump-7", "urn:watchbell:device:pump-7"]);
        for name in ["localhost", "127.0.0.1", "::1", "broker.example"] {
            assert!(listed[2].names.iter().any(|have| have == name), "{name}");
        }
        assert_eq!((listed[0].days_left, listed[1].days_left), (3649, 396));
    }

    #[test]
    fn nothing_is_overwritten_and_the_ca_never() {
        let dir = tempfile::tempdir().expect("a directory");
        let refused = client(dir.path(), "pump-7", false, NOW).expect_err("no CA yet");
        assert!(refused.to_string().contains("run `watchbell certs init` first"));

        init(dir.path(), &Init::default(), NOW).expect("made");
        let ca = fs::read(dir.path().join("ca.pem")).expect("there");
        let server = fs::read(dir.path().join("server.pem")).expect("there");
        let refused = init(dir.path(), &Init::default(), NOW).expect_err("it is there");
        assert!(refused.to_string().contains("--force"), "{refused}");
        let named = Init { name: Some("Kiel".to_owned()), ..forced() };
        let refused = init(dir.path(), &named, NOW).expect_err("the CA has its name");
        assert!(refused.to_string().contains("never replaced"), "{refused}");
        let made = init(dir.path(), &forced(), NOW).expect("made again");
        assert!(made.ca_kept);
        assert_eq!(fs::read(dir.path().join("ca.pem")).expect("there"), ca);
        assert_ne!(fs::read(dir.path().join("server.pem")).expect("there"), server);

        client(dir.path(), "pump-7", false, NOW).expect("made");
        let refused = client(dir.path(), "pump-7", false, NOW).expect_err("it is there");
        assert!(refused.to_string().contains("certs renew pump-7"), "{refused}");
        assert_eq!(ensure_development(dir.path(), NOW).expect("complete"), None);
        fs::remove_file(dir.path().join("ca.key")).expect("removed");
        let refused = client(dir.path(), "pump-8", false, NOW).expect_err("no CA key");
        assert!(refused.to_string().contains("nothing can be signed"), "{refused}");
        fs::rename(dir.path().join("server.key"), dir.path().join("ca.key")).expect("moved");
        let refused = client(dir.path(), "pump-8", false, NOW).expect_err("another key");
        assert!(refused.to_string().contains("is not the key of"), "{refused}");
    }

    #[test]
    fn a_lost_key_is_named_and_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        init(dir.path(), &Init::default(), NOW).expect("made");
        fs::remove_file(dir.path().join("server.key")).expect("removed");
        let refused = ensure_development(dir.path(), NOW).expect_err("no key").to_string();
        assert!(refused.contains("server.key is missing"), "{refused}");
        assert!(refused.contains("certs init --force"), "{refused}");
        init(dir.path(), &forced(), NOW).expect("what it says works");
        assert_eq!(ensure_development(dir.path(), NOW).expect("complete"), None);
        // A CA alone is what `certs init` starts from too.
        fs::remove_file(dir.path().join("server.key")).expect("removed");
        fs::remove_file(dir.path().join("server.pem")).expect("removed");
        assert!(
            ensure_development(dir.path(), NOW).expect("made").is_some_and(|made| made.ca_kept)
        );
    }

    #[test]
    fn a_ca_signs_in_its_time_only_and_nothing_outlives_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let wanted = Init { days: Some(100), ..Init::default() };
        init(dir.path(), &wanted, NOW).expect("made");
        let days = |days: i64| Timestamp::from_millis(NOW.as_millis() + days * 86_400_000);
        let order = Order { name: "pump-7".to_owned(), ..Order::default() };
        for (at, expected) in [(-2, "set the clock right"), (99, "it ended at")] {
            let refused = issue::issue(dir.path(), &order, days(at)).expect_err("no time for it");
            assert!(refused.to_string().contains(expected), "{refused}");
        }
        let issued = issue::issue(dir.path(), &order, days(10)).expect("issued");
        assert!(issued.cut);
        assert_eq!(issued.ends, days(99));
    }
}
