//! When the broker's certificates end: a gauge for those who watch, a line in the log for those
//! who do not.
//!
//! Looks at the files as they are now, once a minute; says in the log once a day what ends within
//! [`WARN_DAYS`]. Never stops anything: a certificate that has ended is refused by its readers.

use std::path::{Path, PathBuf};

use super::crl;
use super::error::CertError;
use super::files;
use super::inspect::{blocks, time};
use crate::broker;
use crate::clock::Timestamp;
use crate::telemetry::{ByCertificate, Metrics};

/// When the log begins to speak.
pub const WARN_DAYS: i64 = 30;
const DAY_MS: i64 = 86_400_000;
const LOOK_MS: i64 = 60_000;

/// The files of a broker, and when they were looked at.
pub struct Expiry {
    files: Vec<(&'static str, PathBuf)>,
    looked_at: Option<Timestamp>,
    said_at: Option<Timestamp>,
}

impl Expiry {
    /// Watches what the broker uses by TLS, and the CRL beside its CA, where there is one.
    pub fn new(config: &broker::config::Config) -> Self {
        let mut files = Vec::new();
        if !config.listen_tls.is_empty() {
            files.push(("server", config.cert.clone()));
            if !config.client_ca.as_os_str().is_empty() {
                files.push(("ca", config.client_ca.clone()));
                let beside = config.client_ca.parent().unwrap_or(Path::new(""));
                files.push(("crl", crl::path(beside)));
            }
        }
        Self { files, looked_at: None, said_at: None }
    }

    /// Sets the gauges, and says what ends soon. Cheap between its minutes.
    pub fn look(&mut self, now: Timestamp, metrics: &Metrics) {
        let passed = |since: Option<Timestamp>, span: i64| {
            since.is_none_or(|since| now.as_millis() - since.as_millis() >= span)
        };
        if !passed(self.looked_at, LOOK_MS) {
            return;
        }
        self.looked_at = Some(now);
        let say = passed(self.said_at, DAY_MS);
        if say {
            self.said_at = Some(now);
        }
        for (certificate, path) in &self.files {
            let label = ByCertificate { certificate };
            match ends(certificate, path) {
                Ok(Some(ends)) => {
                    metrics.certificate_ends.get_or_create(&label).set(ends.as_secs());
                    if say {
                        self::say(certificate, path, ends, now);
                    }
                }
                Ok(None) => drop(metrics.certificate_ends.remove(&label)),
                Err(error) if say => {
                    tracing::warn!(certificate, %error, "when a certificate ends cannot be read");
                }
                Err(_) => {}
            }
        }
    }
}

fn say(certificate: &'static str, path: &Path, ends: Timestamp, now: Timestamp) {
    let days_left = (ends.as_millis() - now.as_millis()).div_euclid(DAY_MS);
    let (path, next) = (path.display(), next(certificate));
    if days_left < 0 {
        tracing::error!(certificate, %path, ends_at = %ends, next, "a certificate has ended");
    } else if days_left < WARN_DAYS {
        tracing::warn!(certificate, %path, ends_at = %ends, days_left, next, "a certificate ends soon");
    }
}

fn next(certificate: &str) -> &'static str {
    match certificate {
        "server" => "watchbell certs renew server, if it was made here",
        "crl" => "watchbell certs crl",
        _ => "docs/certificates.md, When a CA ends",
    }
}

/// When the first certificate or list of the file ends; `None` where there is no such list.
fn ends(certificate: &str, path: &Path) -> Result<Option<Timestamp>, CertError> {
    if certificate == "crl" {
        if !path.exists() {
            return Ok(None);
        }
        return Ok(crl::read_file(path)?.iter().filter_map(|list| list.ends).min());
    }
    let text = files::read(path)?;
    let all = blocks(&text, "CERTIFICATE");
    let all = all.iter().filter_map(|block| block.parse_x509().ok());
    let first = all.map(|one| time(one.validity().not_after.timestamp())).min();
    let detail = || "it holds no PEM certificate".to_owned();
    let unreadable = || CertError::Unreadable { path: path.to_owned(), detail: detail() };
    first.map(Some).ok_or_else(unreadable)
}
