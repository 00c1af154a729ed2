//! The TLS settings of an upstream, of the files that its configuration names.
//!
//! Never trusts a CA that is not in `ca`, and never skips the check of a name.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::config::Config;

/// Reads the files.
///
/// # Errors
/// Key, file and what is wrong with it.
pub(super) fn client_config(config: &Config) -> Result<Arc<rustls::ClientConfig>, String> {
    let Some(ca) = &config.ca else {
        return Err(
            "ca: mqtts needs the file of the CAs that the upstream's certificate may come from; for public ones, /etc/ssl/certs/ca-certificates.crt".to_owned(),
        );
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("ca", ca)? {
        roots.add(certificate).map_err(|error| format!("ca: {}: {error}", ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("ca: {error}"))?
        .with_root_certificates(roots);
    let config = match config.cert.as_deref().zip(config.key.as_deref()) {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates("cert", cert)?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("key: {}: {error}", key.display()))?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| {
                format!("cert: {} with {}: {error}", cert.display(), key.display())
            })?
        }
    };
    Ok(Arc::new(config))
}

fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{key}: {}: {error}", file.display());
    let certificates = CertificateDer::pem_file_iter(file)
        .map_err(|error| failed(&error))?
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(&error))?;
    if certificates.is_empty() {
        return Err(failed(&"no certificate in it"));
    }
    Ok(certificates)
}
