//! TLS: rustls on aws-lc-rs, TLS 1.2 and 1.3, client certificates if wished, loaded again while it
//! runs.
//!
//! Field devices: many speak only TLS 1.2, prefer elliptic curves, cannot take long RSA chains,
//! and reconnect a lot. So both versions are on, and sessions resume by ticket: the keys of the
//! tickets live in this process and change every few hours, and nothing is kept for each client.
//! Each load has ticket keys of its own, so that nobody resumes past a CA that is gone or a
//! certificate that is revoked. Connections that are open are asked again, see
//! [`Tls::still_accepts`].
//!
//! A CRL that has expired stays in force, and an issuer without one is taken as it is: a plant's
//! alarms must not end because nobody has renewed a list.
//!
//! The provider is always named: a process-wide default would be whatever another part set first.
//!
//! Invariant: what is in force was whole when it was loaded; a bad file changes nothing.

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, InconsistentKeys, RootCertStore, ServerConfig,
    SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

use super::config::{Config, Paths};
use crate::clock::Timestamp;

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
pub(super) fn lines(errors: &[TlsError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// A setting, and the configuration key that it stands at.
#[derive(Clone, Debug)]
pub(super) struct Keyed<T> {
    pub(super) key: String,
    pub(super) value: T,
}

impl<T> Keyed<T> {
    fn new(key: &str, value: T) -> Self {
        Self { key: key.to_owned(), value }
    }

    /// What is set at `key`, else what is inherited.
    pub(super) fn or(key: String, own: Option<T>, inherited: Self) -> Self {
        match own {
            Some(value) => Self { key, value },
            None => inherited,
        }
    }
}

/// The files of a listener, and what is asked of clients.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) cert: Keyed<PathBuf>,
    pub(super) key: Keyed<PathBuf>,
    pub(super) client_ca: Keyed<Paths>,
    pub(super) crl: Keyed<Paths>,
    pub(super) require_client_cert: bool,
}

impl Files {
    /// Those of `[broker]`.
    pub(super) fn of(config: &Config) -> Self {
        Self {
            cert: Keyed::new("broker.cert", config.cert.clone()),
            key: Keyed::new("broker.key", config.key.clone()),
            client_ca: Keyed::new("broker.client_ca", config.client_ca.clone()),
            crl: Keyed::new("broker.crl", config.crl.clone()),
            require_client_cert: config.require_client_cert,
        }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
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
    at: Timestamp,
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

const LIST: &str = "list of revoked certificates";

/// What new handshakes use.
struct Loaded {
    generation: u64,
    server: Arc<ServerConfig>,
    /// `None` where clients are not asked for a certificate.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    ends: Vec<End>,
}

/// Loads everything that `files` name, and finds everything wrong.
fn load(files: &Files, generation: u64) -> Result<Loaded, Vec<TlsError>> {
    let mut errors = Vec::new();
    let mut ends = Vec::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());

    let (cert, key) = (&files.cert, &files.key);
    let chain: Vec<CertificateDer<'static>> = read_all(&cert.key, &cert.value, &mut errors);
    if let Some(first) = chain.first() {
        ends.extend(certificate_end(&cert.key, &cert.value, "server's certificate", first));
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
            ends.extend(certificate_end(&ca.key, path, "CA's certificate", &certificate));
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
    let at = Timestamp::from_millis(certificate.validity().not_after.timestamp() * 1000);
    Some(End { key: key.to_owned(), path: path.to_owned(), what, at })
}

fn list_end(key: &str, path: &Path, der: &[u8]) -> Option<End> {
    let (_, list) = CertificateRevocationList::from_der(der).ok()?;
    let at = Timestamp::from_millis(list.next_update()?.timestamp() * 1000);
    Some(End { key: key.to_owned(), path: path.to_owned(), what: LIST, at })
}

/// Everything wrong with the files that `config`'s listeners name, and what is worth a warning.
pub fn check(config: &Config, now: Timestamp) -> (Vec<String>, Vec<String>) {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let (listeners, _) = config.all_listeners();
    for files in listeners.iter().filter_map(|listener| listener.files.as_ref()) {
        match load(files, 0) {
            Ok(loaded) => {
                for note in loaded.ends.iter().filter_map(|end| end.note(now)) {
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

tokio::task_local! {
    /// The certificate that was refused in this task's handshake: rustls does not say.
    static REFUSED: RefCell<Option<String>>;
}

/// A verifier that leaves word whose certificate it has refused.
#[derive(Debug)]
struct Named(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Named {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.verify_client_cert(end_entity, intermediates, now).inspect_err(|_| {
            let name = name(end_entity);
            // Outside of a handshake nobody asks.
            REFUSED.try_with(|refused| *refused.borrow_mut() = name).unwrap_or_default();
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Subject and serial number, for the log: they come from whoever connects.
fn name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let plain = |text: String| -> String {
        text.chars().filter(|char| !char.is_control()).take(100).collect()
    };
    let subject = plain(certificate.subject().to_string());
    Some(format!("{subject}, serial {}", plain(certificate.raw_serial_as_string())))
}

/// Names, sizes, times and numbers of files: another value means that something has changed.
type Fingerprint = Vec<Option<(u64, u64, SystemTime)>>;

fn fingerprint(files: &Files) -> Fingerprint {
    let look = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.modified().ok()?))
    };
    files.paths().map(look).collect()
}

/// A listener's TLS.
pub(crate) struct Tls {
    files: Files,
    current: ArcSwap<Loaded>,
    watch: Mutex<Watch>,
}

struct Watch {
    /// The files as they were at the last look.
    seen: Fingerprint,
    /// The files as they were at the last load, good or bad.
    tried: Fingerprint,
    /// Why the last load came to nothing.
    problems: Vec<String>,
    /// When the ends were last told, days since 1970.
    told_on: i64,
}

/// What a look at the files has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    Same,
    Loaded,
    Refused,
}

impl Tls {
    /// Loads what `files` name.
    pub(super) fn load(files: Files) -> Result<Self, Vec<TlsError>> {
        let seen = fingerprint(&files);
        let current = ArcSwap::from_pointee(load(&files, 0)?);
        let tried = seen.clone();
        let watch = Mutex::new(Watch { seen, tried, problems: Vec::new(), told_on: 0 });
        Ok(Self { files, current, watch })
    }

    /// Does the handshake. Says too which generation of the files it was done by, for
    /// [`Tls::still_accepts`]; on a failure, what to log.
    pub(crate) async fn accept(
        &self,
        socket: TcpStream,
    ) -> Result<(Box<TlsStream<TcpStream>>, u64), String> {
        let loaded = self.current.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&loaded.server));
        let handshake = async {
            acceptor.accept(socket).await.map_err(|error| {
                let whose = REFUSED.with(RefCell::take);
                let whose = whose.map_or_else(String::new, |whose| format!(" ({whose})"));
                format!("the TLS handshake failed: {error}{whose}")
            })
        };
        let stream = REFUSED.scope(RefCell::default(), handshake).await?;
        Ok((Box::new(stream), loaded.generation))
    }

    /// Whether the client of an open connection would be let in now. `generation` is what it was
    /// last asked by; while that is in force the answer is the same.
    pub(crate) fn still_accepts(
        &self,
        stream: &TlsStream<TcpStream>,
        generation: &mut u64,
        now: Timestamp,
    ) -> bool {
        let loaded = self.current.load();
        if std::mem::replace(generation, loaded.generation) == loaded.generation {
            return true;
        }
        let chain = stream.get_ref().1.peer_certificates();
        let (Some(verifier), Some((end_entity, intermediates))) =
            (&loaded.verifier, chain.and_then(<[_]>::split_first))
        else {
            return true;
        };
        let secs = u64::try_from(now.as_secs()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(secs));
        verifier.verify_client_cert(end_entity, intermediates, now).is_ok()
    }

    /// Loads the files again where they have changed and stand still, or in any case if `asked`.
    pub(super) fn look(&self, asked: bool) -> Looked {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let there = fingerprint(&self.files);
        // A pair is two files: half of a new one is nothing to complain about.
        let still_changing = watch.seen != there;
        watch.seen.clone_from(&there);
        if !asked && (there == watch.tried || still_changing) {
            return Looked::Same;
        }
        watch.tried = there;
        let generation = self.current.load().generation + 1;
        match load(&self.files, generation) {
            Ok(loaded) => {
                self.current.store(Arc::new(loaded));
                watch.problems.clear();
                watch.told_on = 0;
                Looked::Loaded
            }
            Err(errors) => {
                watch.problems = errors.iter().map(ToString::to_string).collect();
                Looked::Refused
            }
        }
    }

    /// Why the last load came to nothing; empty where it did not.
    pub(super) fn problems(&self) -> Vec<String> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).problems.clone()
    }

    /// What has ended or soon will, once a day and after each load.
    pub(super) fn notes_of_today(&self, now: Timestamp) -> Vec<Note> {
        let today = now.as_secs() / 86_400;
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut watch.told_on, today) == today {
            return Vec::new();
        }
        self.current.load().ends.iter().filter_map(|end| end.note(now)).collect()
    }
}
