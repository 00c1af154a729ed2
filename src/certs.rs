//! Certificates for development and for small installations: a CA of one's own, one server
//! certificate, and a client certificate a device.
//!
//! Keys are ECDSA P-256, which TLS 1.2 clients and small devices take; a key file is readable by
//! its owner only. Nothing here ever replaces the CA: every client certificate hangs on it. Who
//! wants another one deletes the directory.
//!
//! | file | what |
//! |---|---|
//! | `ca.pem`, `ca.key` | the CA, ten years |
//! | `server.pem`, `server.key` | the server's certificate, 397 days, which is what clients accept at most |
//! | `ID.pem`, `ID.key` | the client certificate of device ID, 397 days |

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType,
};

use crate::clock::Timestamp;

/// The directory that the default configuration names.
pub const DIRECTORY: &str = "certs";

const CA_DAYS: i32 = 3650;
const LEAF_DAYS: i32 = 397;

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// A file or directory.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is there, and nobody said that it may go.
    #[error("{path} exists; --force replaces it", path = .0.display())]
    Exists(PathBuf),
    /// Some of what the server needs is there and some is not: nothing is guessed.
    #[error(
        "{missing} is missing beside {there}; put it back, or make the server's certificate anew with `watchbell certs init --force`",
        missing = .missing.display(), there = .there.display()
    )]
    Incomplete {
        /// What is not there.
        missing: PathBuf,
        /// What is.
        there: PathBuf,
    },
    /// There is no CA to sign with.
    #[error("{path} is missing; run `watchbell certs init` first", path = .0.display())]
    NoCa(PathBuf),
    /// There is a CA whose key is elsewhere.
    #[error(
        "{path} is missing, so nothing can be signed by the CA in this directory; put the key there, or name another directory with --dir",
        path = .0.display()
    )]
    NoCaKey(PathBuf),
    /// A name that cannot be a file and an identity.
    #[error(
        "`{0}` cannot name a client certificate; use 1 to 64 letters, digits, `-`, `_` and `.`, beginning with a letter or digit, and neither `ca` nor `server`"
    )]
    BadId(String),
    /// A host name that cannot stand in a certificate.
    #[error("`{0}` is no host name or IP address")]
    BadHost(String),
    /// A file that is no certificate or key.
    #[error("{path}: {detail}", path = .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The library cannot make the certificate.
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

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
    /// The certificate, PEM.
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
    let (ca, server) = (Pair::of(directory, "ca"), Pair::of(directory, "server"));
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
    init(directory, &[], false, now).map(Some)
}

/// Makes the CA if there is none, and a server certificate for `localhost`, the loopback
/// addresses, this machine's name and `hosts`. `force` replaces the server certificate, never
/// the CA.
///
/// # Errors
/// See [`CertError`].
pub fn init(
    directory: &Path,
    hosts: &[String],
    force: bool,
    now: Timestamp,
) -> Result<Made, CertError> {
    let server = Pair::of(directory, "server");
    refuse_existing(&server, force)?;
    let params = server_params(hosts, now)?;
    fs::create_dir_all(directory).map_err(at(directory))?;

    let ca = Pair::of(directory, "ca");
    let ca_kept = ca.cert.exists();
    let mut written = Vec::new();
    if !ca_kept {
        make_ca(&ca, now)?;
        written.extend([ca.cert.clone(), ca.key.clone()]);
    }
    let issuer = issuer(&ca)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write(&server, &params.signed_by(&key, &issuer)?, &key)?;
    written.extend([server.cert, server.key]);
    Ok(Made { written, ca_kept })
}

/// Makes a client certificate whose common name and alternative names are `id`.
///
/// # Errors
/// See [`CertError`].
pub fn client(directory: &Path, id: &str, force: bool, now: Timestamp) -> Result<Pair, CertError> {
    if !is_id(id) {
        return Err(CertError::BadId(id.to_owned()));
    }
    let pair = Pair::of(directory, id);
    let issuer = issuer(&Pair::of(directory, "ca"))?;
    refuse_existing(&pair, force)?;

    let mut params = leaf(id, now);
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    let urn = format!("urn:watchbell:device:{id}");
    params.subject_alt_names =
        vec![SanType::DnsName(id.try_into()?), SanType::URI(urn.as_str().try_into()?)];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write(&pair, &params.signed_by(&key, &issuer)?, &key)?;
    Ok(pair)
}

/// A certificate in the directory, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    /// The file.
    pub file: PathBuf,
    /// The common name.
    pub subject: String,
    /// Names and addresses it stands for.
    pub names: Vec<String>,
    /// When it ends, RFC 3339.
    pub expires_at: String,
    /// Whole days until then; negative when it has ended.
    pub days_left: i64,
}

/// Every certificate in `directory`, by file name.
///
/// # Errors
/// See [`CertError`]; a `.pem` file that holds no certificate is one.
pub fn list(directory: &Path, now: Timestamp) -> Result<Vec<Listed>, CertError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let path = entry.map_err(at(directory))?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            files.push(path);
        }
    }
    files.sort();
    files.iter().map(|path| inspect(path, now)).collect()
}

fn inspect(path: &Path, now: Timestamp) -> Result<Listed, CertError> {
    let bad = |detail: String| CertError::Unreadable { path: path.to_owned(), detail };
    let text = fs::read(path).map_err(at(path))?;
    let (_, pem) = x509_parser::pem::parse_x509_pem(&text)
        .map_err(|_| bad("it holds no PEM certificate".to_owned()))?;
    let certificate =
        pem.parse_x509().map_err(|error| bad(format!("it holds no certificate: {error}")))?;
    let subject = certificate
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default()
        .to_owned();
    let names = certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|extension| extension.value.general_names.iter().filter_map(name_text).collect())
        .unwrap_or_default();
    let ends = Timestamp::from_millis(certificate.validity().not_after.timestamp() * 1000);
    Ok(Listed {
        file: path.to_owned(),
        subject,
        names,
        expires_at: ends.to_string(),
        days_left: (ends.as_secs() - now.as_secs()).div_euclid(86_400),
    })
}

fn name_text(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(text) | GeneralName::URI(text) => Some((*text).to_owned()),
        GeneralName::IPAddress(bytes) => {
            if let Ok(four) = <[u8; 4]>::try_from(*bytes) {
                Some(IpAddr::from(four).to_string())
            } else {
                <[u8; 16]>::try_from(*bytes).ok().map(|sixteen| IpAddr::from(sixteen).to_string())
            }
        }
        _ => None,
    }
}

fn make_ca(pair: &Pair, now: Timestamp) -> Result<(), CertError> {
    refuse_existing(pair, false)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("Watchbell CA of {}", machine_name()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, now, CA_DAYS);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write(pair, &params.self_signed(&key)?, &key)
}

fn server_params(hosts: &[String], now: Timestamp) -> Result<CertificateParams, CertError> {
    let machine = machine_name();
    let mut names: Vec<&str> = vec!["localhost", "127.0.0.1", "::1"];
    if is_host(&machine) {
        names.push(&machine);
    }
    for host in hosts {
        if !is_host(host) {
            return Err(CertError::BadHost(host.clone()));
        }
        names.push(host);
    }
    let mut params = leaf(hosts.first().map_or("localhost", String::as_str), now);
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    for name in names {
        let san = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.try_into()?),
        };
        if !params.subject_alt_names.contains(&san) {
            params.subject_alt_names.push(san);
        }
    }
    Ok(params)
}

fn leaf(name: &str, now: Timestamp) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, now, LEAF_DAYS);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

/// From yesterday, because the clocks of devices are not always right, for `days` in all.
fn valid_for(params: &mut CertificateParams, now: Timestamp, days: i32) {
    let midnight = |days: i32| {
        let day = jiff::Timestamp::from_millisecond(now.as_millis())
            .unwrap_or_default()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .date()
            .saturating_add(jiff::Span::new().days(days));
        let (month, of_month) = (day.month().unsigned_abs(), day.day().unsigned_abs());
        rcgen::date_time_ymd(day.year().into(), month, of_month)
    };
    params.not_before = midnight(-1);
    params.not_after = midnight(days - 1);
}

fn issuer(ca: &Pair) -> Result<Issuer<'static, KeyPair>, CertError> {
    if !ca.cert.exists() {
        return Err(CertError::NoCa(ca.cert.clone()));
    }
    if !ca.key.exists() {
        return Err(CertError::NoCaKey(ca.key.clone()));
    }
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |error: rcgen::Error| CertError::Unreadable { path, detail: error.to_string() }
    };
    let key = fs::read_to_string(&ca.key).map_err(at(&ca.key))?;
    let key = KeyPair::from_pem(&key).map_err(unreadable(&ca.key))?;
    let cert = fs::read_to_string(&ca.cert).map_err(at(&ca.cert))?;
    Issuer::from_ca_cert_pem(&cert, key).map_err(unreadable(&ca.cert))
}

fn refuse_existing(pair: &Pair, force: bool) -> Result<(), CertError> {
    match [&pair.cert, &pair.key].into_iter().find(|p| p.exists()) {
        Some(path) if !force => Err(CertError::Exists(path.clone())),
        _ => Ok(()),
    }
}

/// The key first: a certificate without its key would look finished and is useless.
fn write(pair: &Pair, certificate: &Certificate, key: &KeyPair) -> Result<(), CertError> {
    write_file(&pair.key, &key.serialize_pem(), 0o600)?;
    write_file(&pair.cert, &certificate.pem(), 0o644)
}

/// Writes beside the file and renames, so that the mode holds from the first byte and a running
/// instance never reads half a file.
fn write_file(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let result = (|| {
        if beside.exists() {
            fs::remove_file(&beside)?;
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    result.map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CertError + use<> {
    let path = path.to_owned();
    move |error| CertError::Io { path, error }
}

fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Names that are safe as a file, a DNS name and a client id.
fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !matches!(id, "ca" | "server")
}

fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let name = host.strip_prefix("*.").unwrap_or(host);
    host.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn openssl(arguments: &[&str], directory: &Path) -> (bool, String) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(directory)
            .output()
            .expect("openssl is on this machine");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    #[test]
    fn what_it_makes_is_signed_and_private() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().expect("a directory");
        let directory = dir.path().join("certs");
        let made = init(&directory, &["broker.example".to_owned()], false, NOW).expect("made");
        assert!(!made.ca_kept);
        assert_eq!(made.written.len(), 4);
        let pump = client(&directory, "pump-7", false, NOW).expect("made");
        for key in [&pump.key, &directory.join("ca.key"), &directory.join("server.key")] {
            let mode = fs::metadata(key).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }

        let listed = list(&directory, NOW).expect("readable");
        let subjects: Vec<_> = listed.iter().map(|one| one.subject.as_str()).collect();
        assert_eq!(subjects.len(), 3);
        assert!(subjects[0].starts_with("Watchbell CA of "));
        assert_eq!(subjects[1..], ["pump-7", "broker.example"]);
        assert_eq!(listed[1].names, ["pump-7", "urn:watchbell:device:pump-7"]);
        for name in ["localhost", "127.0.0.1", "::1", "broker.example"] {
            assert!(listed[2].names.iter().any(|have| have == name), "{name}");
        }
        assert_eq!((listed[0].days_left, listed[1].days_left), (3648, 395));
    }

    #[test]
    fn openssl_agrees() {
        if Command::new("openssl").arg("version").output().is_err() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        // openssl compares with the machine's clock.
        let now = crate::clock::Clock::System.now();
        init(dir.path(), &[], false, now).expect("made");
        client(dir.path(), "pump-7", false, now).expect("made");
        for (purpose, file) in [("sslserver", "server.pem"), ("sslclient", "pump-7.pem")] {
            let (good, text) = openssl(
                &["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "ca.pem", file],
                dir.path(),
            );
            assert!(good, "{text}");
        }
    }

    #[test]
    fn nothing_is_overwritten_and_the_ca_never() {
        let dir = tempfile::tempdir().expect("a directory");
        let refused = client(dir.path(), "pump-7", false, NOW).expect_err("no CA yet");
        assert!(refused.to_string().contains("run `watchbell certs init` first"));

        init(dir.path(), &[], false, NOW).expect("made");
        let ca = fs::read(dir.path().join("ca.pem")).expect("there");
        let server = fs::read(dir.path().join("server.pem")).expect("there");
        let refused = init(dir.path(), &[], false, NOW).expect_err("it is there");
        assert!(refused.to_string().contains("--force"), "{refused}");
        let made = init(dir.path(), &[], true, NOW).expect("made again");
        assert!(made.ca_kept);
        assert_eq!(fs::read(dir.path().join("ca.pem")).expect("there"), ca);
        assert_ne!(fs::read(dir.path().join("server.pem")).expect("there"), server);

        client(dir.path(), "pump-7", false, NOW).expect("made");
        client(dir.path(), "pump-7", false, NOW).expect_err("it is there");
        assert_eq!(ensure_development(dir.path(), NOW).expect("complete"), None);
        fs::remove_file(dir.path().join("ca.key")).expect("removed");
        let refused = client(dir.path(), "pump-8", false, NOW).expect_err("no CA key");
        assert!(refused.to_string().contains("nothing can be signed"), "{refused}");
    }

    #[test]
    fn a_lost_key_is_named_and_what_to_do() {
        let dir = tempfile::tempdir().expect("a directory");
        init(dir.path(), &[], false, NOW).expect("made");
        fs::remove_file(dir.path().join("server.key")).expect("removed");
        let refused = ensure_development(dir.path(), NOW).expect_err("no key").to_string();
        assert!(refused.contains("server.key is missing"), "{refused}");
        assert!(refused.contains("certs init --force"), "{refused}");
        init(dir.path(), &[], true, NOW).expect("what it says works");
        assert_eq!(ensure_development(dir.path(), NOW).expect("complete"), None);
        // A CA alone is what `certs init` starts from too.
        fs::remove_file(dir.path().join("server.key")).expect("removed");
        fs::remove_file(dir.path().join("server.pem")).expect("removed");
        assert!(
            ensure_development(dir.path(), NOW).expect("made").is_some_and(|made| made.ca_kept)
        );
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for id in ["", "../x", "a/b", "ca", "server", ".x", "a b", "ä"] {
            let refused = client(dir.path(), id, false, NOW).expect_err(id);
            assert!(matches!(refused, CertError::BadId(_)), "{refused}");
        }
        for host in ["", "a..b", "a b", "http://x"] {
            let refused = init(dir.path(), &[host.to_owned()], false, NOW).expect_err(host);
            assert!(matches!(refused, CertError::BadHost(_)), "{refused}");
        }
    }
}
