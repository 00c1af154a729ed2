//! TLS for the broker: rustls on aws-lc-rs, TLS 1.2 and 1.3, client certificates if wished.
//!
//! Field devices: many speak only TLS 1.2, prefer elliptic curves, cannot take long RSA chains,
//! and reconnect a lot. So both versions are on, and sessions resume by ticket: the keys of the
//! tickets live in this process and change every few hours, and nothing is kept for each client.
//!
//! The provider is always named: a process-wide default would be whatever another part set first.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::config::Config;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be read.
    #[error(
        "{key}: {path}: {detail}; `watchbell certs` makes certificates for development",
        path = .path.display()
    )]
    File {
        /// The configuration key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Certificate and key do not go together, or an algorithm is not supported.
    #[error("broker.cert, broker.key: {0}")]
    Pair(rustls::Error),
    /// The CA cannot be used.
    #[error("broker.client_ca: {0}")]
    ClientCa(String),
    /// The provider lacks something.
    #[error("TLS: {0}")]
    Provider(rustls::Error),
}

/// Builds the server's side of TLS from the files that `config` names.
pub(super) fn server_config(config: &Config) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates("broker.cert", &config.cert)?;
    let key = PrivateKeyDer::from_pem_file(&config.key)
        .map_err(|error| file_error("broker.key", &config.key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Provider)?;
    let builder = if config.client_ca.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("broker.client_ca", &config.client_ca)? {
            roots.add(certificate).map_err(|error| TlsError::ClientCa(error.to_string()))?;
        }
        let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if !config.require_client_cert {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier.build().map_err(|error| TlsError::ClientCa(error.to_string()))?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut server = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(TlsError::Provider)?;
    server.session_storage = Arc::new(NoServerSessionStorage {});
    // One ticket is enough: a client resumes with the newest that it has.
    server.send_tls13_tickets = 1;
    Ok(Arc::new(server))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| file_error(key, path, &error))?
        .collect::<Result<_, _>>()
        .map_err(|error| file_error(key, path, &error))?;
    if found.is_empty() {
        return Err(TlsError::File {
            key,
            path: path.to_owned(),
            detail: "no certificate in it".to_owned(),
        });
    }
    Ok(found)
}

fn file_error(key: &'static str, path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    let detail = match error {
        rustls::pki_types::pem::Error::Io(error) => error.to_string(),
        rustls::pki_types::pem::Error::NoItemsFound => "nothing of that kind in it".to_owned(),
        // The error's own text repeats lines of the file, which may be those of a private key.
        _ => "not a valid PEM file".to_owned(),
    };
    TlsError::File { key, path: path.to_owned(), detail }
}
