//! The files of a listener's TLS: read, checked against each other, made into what rustls takes.
//!
//! Everything wrong is found at once, each with its configuration key, its file and what to do.
//!
//! What it never does: keep anything, or say a word of what a private key's file holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig};
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::Named;
use crate::broker::config::{Config, Paths};
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;

/// A certificate that ends so soon is worth a warning.
const WARN_BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error("{key}: {path}: {detail}; {next}", path = .path.display())]
    File {
        /// The configuration key.
        key: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
        /// What to do.
        next: &'static str,
    },
    /// Certificate and key are each right and not of each other.
    #[error(
        "{key}: {path} is not the key of the certificate {cert}; put the key there that the \
         certificate was made with, or make both anew with `watchbell certs init --force`",
        path = .path.display(), cert = .cert.display()
    )]
    KeyMismatch {
        /// The configuration key of the private key.
        key: String,
        /// The private key's file.
        path: PathBuf,
        /// The certificate's file.
        cert: PathBuf,
    },
    /// The certificate cannot be used, or an algorithm is not supported.
    #[error("{key}: {path}: {error}", path = .path.display())]
    Pair {
        /// The configuration key.
        key: String,
        /// The certificate's file.
        path: PathBuf,
        /// What rustls says.
        error: rustls::Error,
    },
    /// A CA or CRL cannot be used.
    #[error("{key}: {path}: {detail}")]
    Trust {
        /// The configuration key.
        key: String,
        /// The file or files.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// The provider lacks something.
    #[error("TLS: {0}")]
    Provider(rustls::Error),
}

/// Everything that is wrong, a line each.
pub(in crate::broker) fn lines(errors: &[TlsError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A setting, and the configuration key that it stands at.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Keyed<T> {
    pub(in crate::broker) key: String,
    pub(in crate::broker) value: T,
}

impl<T> Keyed<T> {
    fn new(key: &str, value: T) -> Self {
        Self { key: key.to_owned(), value }
    }

    /// What is set at `key`, else what is inherited.
    pub(in crate::broker) fn or(key: String, own: Option<T>, inherited: Self) -> Self {
        match own {
            Some(value) => Self { key, value },
            None => inherited,
        }
    }
}

/// The files of a listener, and what is asked of clients.
#[derive(Clone, Debug)]
pub(in crate::broker) struct Files {
    pub(in crate::broker) cert: Keyed<PathBuf>,
    pub(in crate::broker) key: Keyed<PathBuf>,
    pub(in crate::broker) client_ca: Keyed<Paths>,
    pub(in crate::broker) crl: Keyed<Paths>,
    pub(in crate::broker) require_client_cert: bool,
}

impl Files {
    /// Those of `[broker]`.
    pub(in crate::broker) fn of(config: &Config) -> Self {
        Self {
            cert: Keyed::new("broker.cert", config.cert.clone()),
            key: Keyed::new("broker.key", config.key.clone()),
            client_ca: Keyed::new("broker.client_ca", config.client_ca.clone()),
            crl: Keyed::new("broker.crl", config.crl.clone()),
            require_client_cert: config.require_client_cert,
        }
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let pair = [self.cert.value.as_path(), self.key.value.as_path()];
        pair.into_iter().chain(self.client_ca.value.iter()).chain(self.crl.value.iter())
    }
}

/// When something ends that is in force.
#[derive(Debug)]
struct End {
    key: String,
    path: PathBuf,
    what: &'static str,
    at: WallTime,
}

/// What is worth saying of something in force.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// It has ended already.
    pub is_over: bool,
    /// And keeps clients from coming in, or from trusting us.
    pub refuses: bool,
    /// What, where, when, what next.
    pub text: String,
}

impl End {
    fn note(&self, now: Timestamp) -> Option<Note> {
        let Self { key, path, what, at } = self;
        let now = now.wall();
        let is_over = *at <= now;
        // Lists are renewed every few weeks at most: only one that is over is worth a word.
        let is_list = *what == LIST;
        if !is_over && (is_list || at.since(now) > WARN_BEFORE) {
            return None;
        }
        let (path, at) = (path.display(), at.to_string().replace(".000Z", "Z"));
        let text = match (is_over, is_list) {
            (false, _) => format!("{key}: {path}: the {what} ends at {at}; renew it before"),
            (true, false) => format!("{key}: {path}: the {what} ended at {at}; renew it"),
            (true, true) => format!(
                "{key}: {path}: the {what} was to be renewed by {at}; it stays in force, but does \
                 not know what was revoked since: renew it"
            ),
        };
        Some(Note { is_over, refuses: is_over && !is_list, text })
    }
}

const SERVER: &str = "server's certificate";
const CA: &str = "CA's certificate";
const LIST: &str = "list of revoked certificates";

/// The kinds as the metric calls them.
const KINDS: [(&str, &str); 3] = [("server", SERVER), ("ca", CA), ("crl", LIST)];

/// What new handshakes use.
pub(super) struct Loaded {
    /// Counts the loads.
    pub(super) generation: u64,
    pub(super) server: Arc<ServerConfig>,
    /// `None` where clients are not asked for a certificate.
    pub(super) verifier: Option<Arc<dyn ClientCertVerifier>>,
    ends: Vec<End>,
}

impl Loaded {
    /// When the first of each kind ends.
    pub(super) fn ends(&self) -> Vec<(&'static str, WallTime)> {
        let first = |(label, kind)| {
            let of_kind = self.ends.iter().filter(|end| end.what == kind);
            of_kind.map(|end| end.at).min().map(|at| (label, at))
        };
        KINDS.into_iter().filter_map(first).collect()
    }

    /// What of it has ended, or soon will.
    pub(super) fn notes(&self, now: Timestamp) -> Vec<Note> {
        self.ends.iter().filter_map(|end| end.note(now)).collect()
    }
}

/// Loads everything that `files` name, and finds everything wrong.
pub(super) fn load(files: &Files, generation: u64) -> Result<Loaded, Vec<TlsError>> {
    let mut errors = Vec::new();
    let mut ends = Vec::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());

    let (cert, key) = (&files.cert, &files.key);
    let chain: Vec<CertificateDer<'static>> = read_all(&cert.key, &cert.value, &mut errors);
    if let Some(first) = chain.first() {
        ends.extend(certificate_end(&cert.key, &cert.value, SERVER, first));
    }
    let private = PrivateKeyDer::from_pem_file(&key.value)
        .map_err(|error| errors.push(file_error(&key.key, &key.value, &error)))
        .ok();
    let verifier = load_verifier(files, &provider, &mut ends, &mut errors);

    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| vec![TlsError::Provider(error)])?;
    let builder = match &verifier {
        Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        None => builder.with_no_client_auth(),
    };
    let Some(private) = private.filter(|_| !chain.is_empty()) else {
        return Err(errors);
    };
    let mut server = match builder.with_single_cert(chain, private) {
        Ok(server) => server,
        Err(error) => {
            errors.push(pair_error(files, error));
            return Err(errors);
        }
    };
    if !errors.is_empty() {
        return Err(errors);
    }
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()
        .map_err(|error| vec![TlsError::Provider(error)])?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    // One ticket is enough: a client resumes with the newest that it has.
    server.send_tls13_tickets = 1;
    Ok(Loaded { generation, server: Arc::new(server), verifier, ends })
}

fn pair_error(files: &Files, error: rustls::Error) -> TlsError {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::KeyMismatch {
            key: files.key.key.clone(),
            path: files.key.value.clone(),
            cert: files.cert.value.clone(),
        },
        error => {
            TlsError::Pair { key: files.cert.key.clone(), path: files.cert.value.clone(), error }
        }
    }
}

/// Who checks client certificates; `None` where none are asked for, or something is wrong.
fn load_verifier(
    files: &Files,
    provider: &Arc<rustls::crypto::CryptoProvider>,
    ends: &mut Vec<End>,
    errors: &mut Vec<TlsError>,
) -> Option<Arc<dyn ClientCertVerifier>> {
    let (ca, crl) = (&files.client_ca, &files.crl);
    if ca.value.is_empty() {
        return None;
    }
    let before = errors.len();
    let mut roots = RootCertStore::empty();
    for path in ca.value.iter() {
        for certificate in read_all::<CertificateDer<'static>>(&ca.key, path, errors) {
            ends.extend(certificate_end(&ca.key, path, CA, &certificate));
            if let Err(error) = roots.add(certificate) {
                errors.push(trust_error(ca, path, &error));
            }
        }
    }
    let roots = Arc::new(roots);
    let builder = |lists| {
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .with_crls(lists)
            .allow_unknown_revocation_status()
    };
    let mut lists: Vec<CertificateRevocationListDer<'static>> = Vec::new();
    for path in crl.value.iter() {
        let found: Vec<CertificateRevocationListDer<'static>> = read_all(&crl.key, path, errors);
        ends.extend(found.iter().filter_map(|list| list_end(&crl.key, path, list)));
        // Each file by itself, so that the error can name it.
        if !roots.is_empty() && builder(found.clone()).build().is_err() {
            let detail = "no list of revoked certificates that can be used; it has to be a whole \
                          CRL of version 2, which OpenSSL makes where the CA's section has \
                          crl_extensions";
            let path = path.display().to_string();
            let key = crl.key.clone();
            errors.push(TlsError::Trust { key, path, detail: detail.to_owned() });
        }
        lists.extend(found);
    }
    if errors.len() > before {
        return None;
    }
    let mut builder = builder(lists);
    if !files.require_client_cert {
        builder = builder.allow_unauthenticated();
    }
    match builder.build() {
        Ok(verifier) => Some(Arc::new(Named(verifier))),
        Err(error) => {
            let path = ca.value.to_string();
            errors.push(TlsError::Trust { key: ca.key.clone(), path, detail: error.to_string() });
            None
        }
    }
}

fn trust_error(
    at: &Keyed<Paths>,
    path: &Path,
    error: &(dyn std::error::Error + 'static),
) -> TlsError {
    let (path, detail) = (path.display().to_string(), crate::telemetry::chain(error));
    TlsError::Trust { key: at.key.clone(), path, detail }
}

/// Everything of one kind in a PEM file; something, or an error.
fn read_all<T: PemObject>(key: &str, path: &Path, errors: &mut Vec<TlsError>) -> Vec<T> {
    let found = T::pem_file_iter(path).and_then(|found| found.collect::<Result<Vec<T>, _>>());
    match found {
        Ok(found) if !found.is_empty() => return found,
        Ok(_) => errors.push(file_error(key, path, &rustls::pki_types::pem::Error::NoItemsFound)),
        Err(error) => errors.push(file_error(key, path, &error)),
    }
    Vec::new()
}

fn file_error(key: &str, path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    let detail = match error {
        rustls::pki_types::pem::Error::Io(error) => error.to_string(),
        rustls::pki_types::pem::Error::NoItemsFound => "nothing of that kind in it".to_owned(),
        // The error's own text repeats lines of the file, which may be those of a private key.
        _ => "not a valid PEM file".to_owned(),
    };
    let next = match key.rsplit('.').next() {
        Some("crl") => "put the CA's list of revoked certificates there, PEM, or take the key out",
        _ => "`watchbell certs` makes certificates for development",
    };
    TlsError::File { key: key.to_owned(), path: path.to_owned(), detail, next }
}

fn certificate_end(key: &str, path: &Path, what: &'static str, der: &[u8]) -> Option<End> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let at = WallTime::from_millis(certificate.validity().not_after.timestamp() * 1000);
    Some(End { key: key.to_owned(), path: path.to_owned(), what, at })
}

fn list_end(key: &str, path: &Path, der: &[u8]) -> Option<End> {
    let (_, list) = CertificateRevocationList::from_der(der).ok()?;
    let at = WallTime::from_millis(list.next_update()?.timestamp() * 1000);
    Some(End { key: key.to_owned(), path: path.to_owned(), what: LIST, at })
}

/// Everything wrong with the files that `config`'s listeners name, and what is worth a warning.
pub fn check(config: &Config, now: Timestamp) -> (Vec<String>, Vec<String>) {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let (listeners, _) = config.all_listeners();
    for files in listeners.iter().filter_map(|listener| listener.files.as_ref()) {
        match load(files, 0) {
            Ok(loaded) => {
                for note in loaded.notes(now) {
                    let list = if note.refuses { &mut problems } else { &mut warnings };
                    list.push(note.text);
                }
            }
            Err(errors) => problems.extend(errors.iter().map(ToString::to_string)),
        }
    }
    for list in [&mut problems, &mut warnings] {
        // Listeners share what they inherit.
        list.sort();
        list.dedup();
    }
    (problems, warnings)
}
