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

pub mod files;

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use self::files::{Files, Loaded, Note, TlsError, load};
use super::load::handshakes::Handshakes;
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::model::Reason;

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

    /// Does the handshake, in its turn. Says too which generation of the files it was done by, for
    /// [`Tls::still_accepts`]; on a failure, why and what to log.
    pub(crate) async fn accept(
        &self,
        socket: TcpStream,
        turns: &Handshakes,
    ) -> Result<(Box<TlsStream<TcpStream>>, u64), (Reason, String)> {
        let loaded = self.current.load_full();
        let acceptor = TlsAcceptor::from(Arc::clone(&loaded.server));
        let handshake = async {
            turns.shake(socket, &acceptor).await.map_err(|error| {
                let whose = REFUSED.with(RefCell::take);
                let whose = whose.map_or_else(String::new, |whose| format!(" ({whose})"));
                (error.reason(), format!("{error}{whose}"))
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
        let secs = u64::try_from(now.wall().as_secs()).unwrap_or(0);
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

    /// When what is in force ends: which kind, and when the first of it does.
    pub(super) fn ends(&self) -> Vec<(&'static str, WallTime)> {
        self.current.load().ends()
    }

    /// Why the last load came to nothing; empty where it did not.
    pub(super) fn problems(&self) -> Vec<String> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).problems.clone()
    }

    /// What has ended or soon will, once a day and after each load.
    pub(super) fn notes_of_today(&self, now: Timestamp) -> Vec<Note> {
        let today = now.wall().as_secs() / 86_400;
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut watch.told_on, today) == today {
            return Vec::new();
        }
        self.current.load().notes(now)
    }
}
