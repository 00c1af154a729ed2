//! How commands reach a broker by MQTT: their flags, and why it did not work.
//!
//! Without a host and a port it is the instance that runs with this data directory.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::Args;
use rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use rumqttc::v5::{ConnectionError, MqttOptions, StateError};
use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::instance::Instance;

/// From connecting to the acknowledgement.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// Who one is, and whether by TLS.
#[derive(Args)]
pub(super) struct Reach {
    /// Connect by TLS; --ca, --cert and --key do so too
    #[arg(long)]
    tls: bool,
    /// The CA that has signed the broker's certificate [default with TLS: certs/ca.pem]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A client certificate
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// A user name; its password comes from standard input
    #[arg(long, requires = "password_stdin")]
    user: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "user")]
    pub(super) password_stdin: bool,
    /// The client id [default: watchbell-COMMAND-PID, or the certificate's file name]
    #[arg(long, value_name = "CLIENT_ID")]
    id: Option<String>,
}

impl Reach {
    fn uses_tls(&self) -> bool {
        self.tls || self.ca.is_some() || self.cert.is_some()
    }

    /// How to connect: to `host` and `port`, else to the running instance, else to this machine.
    /// `command` is in the client id, where none is given.
    pub(super) fn options(
        &self,
        host: Option<&str>,
        port: Option<u16>,
        instance: Option<&Instance>,
        command: &str,
    ) -> anyhow::Result<(MqttOptions, Place)> {
        let tls = self.uses_tls();
        let running = instance.and_then(|one| {
            if tls {
                one.mqtts.or_else(|| one.listens_by("mqtts"))
            } else {
                one.mqtt.or_else(|| one.listens_by("mqtt"))
            }
        });
        let running = running.filter(|_| host.is_none() && port.is_none());
        // A certificate stands for names more often than for addresses that nobody has typed.
        let host = match (host, running) {
            (Some(host), _) => host.to_owned(),
            (None, Some(running)) if !running.ip().is_unspecified() => running.ip().to_string(),
            (None, _) => "127.0.0.1".to_owned(),
        };
        let port =
            port.or(running.map(|address| address.port())).unwrap_or(if tls { 8883 } else { 1883 });
        let id = match (&self.id, &self.cert) {
            (Some(id), _) => id.clone(),
            // Client ids are bound to certificates, and `watchbell certs client ID` names its files so.
            (None, Some(cert)) => {
                cert.file_stem().map_or(String::new(), |name| name.to_string_lossy().into_owned())
            }
            (None, None) => format!("watchbell-{command}-{}", std::process::id()),
        };
        let mut options = MqttOptions::new(id, host.clone(), port);
        options.set_keep_alive(Duration::from_secs(30));
        options.set_clean_start(true);
        options.set_connection_timeout(TIMEOUT.as_secs());
        if let Some(user) = &self.user {
            let mut password = String::new();
            std::io::stdin()
                .take(1024)
                .read_to_string(&mut password)
                .context("reading the password from standard input")?;
            options.set_credentials(user, password.trim_end_matches(['\r', '\n']));
        }
        let ca = self.ca.clone().unwrap_or_else(|| {
            crate::certs::Pair::of(Path::new(crate::certs::DIRECTORY), "ca").cert
        });
        if tls {
            let client = self.cert.as_deref().zip(self.key.as_deref());
            let config = tls_config(&ca, client)?;
            let config = TlsConfiguration::Rustls(Arc::new(config));
            options.set_transport(Transport::tls_with_config(config));
        }
        Ok((options, Place { host, port, ca: tls.then_some(ca) }))
    }
}

/// Where the broker is, for people.
pub(super) struct Place {
    host: String,
    port: u16,
    ca: Option<PathBuf>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Why there was no acknowledgement.
pub(super) enum Failed {
    Connection(Box<ConnectionError>),
    Refused(String),
}

impl Failed {
    /// What happened, and what to do about it.
    pub(super) fn explain(&self, place: &Place) -> anyhow::Error {
        let error = match self {
            Self::Refused(reason) => {
                return anyhow!(
                    "{place}: the publish was refused: {reason}; for `not authorized` see [[access]], for `quota exceeded` see `watchbell status`"
                );
            }
            Self::Connection(error) => error,
        };
        match &**error {
            ConnectionError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                anyhow!(
                    "{place}: nothing listens there; is watchbell running? Start it with `watchbell run`"
                )
            }
            ConnectionError::ConnectionRefused(code) => refused(place, *code),
            ConnectionError::MqttState(StateError::ConnFail { reason }) => refused(place, *reason),
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
                anyhow!(
                    "{place}: the broker ended the connection: {}",
                    crate::telemetry::words(reason_code)
                )
            }
            ConnectionError::MqttState(
                StateError::ConnectionAborted | StateError::Deserialization(_),
            )
            | ConnectionError::NotConnAck(_) => anyhow!(
                "{place}: what listens there does not answer as a broker; a plain port does not speak TLS, nor a TLS port plain MQTT (--tls)"
            ),
            ConnectionError::Tls(error) => {
                let text = crate::telemetry::chain(error);
                let ca = place.ca.as_deref().unwrap_or(Path::new("")).display();
                let next = if text.contains("UnknownIssuer") {
                    format!("the broker's certificate is not signed by {ca}; name its CA with --ca")
                } else if text.contains("NotValidForName") {
                    "the broker's certificate is for other names; make one with `watchbell certs init --force --host NAME`".to_owned()
                } else if text.contains("CertificateRequired") {
                    "the broker wants a client certificate; give --cert and --key".to_owned()
                } else {
                    "is it a TLS port? the default is 8883".to_owned()
                };
                anyhow!("{place}: {text}; {next}")
            }
            other => anyhow!("{place}: {}", crate::telemetry::chain(other)),
        }
    }
}

fn refused(place: &Place, code: ConnectReturnCode) -> anyhow::Error {
    let next = match code {
        ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadUserNamePassword => {
            "log in with --user and --password-stdin (`watchbell device add`), or with --cert and --key (`watchbell certs client`)"
        }
        ConnectReturnCode::ClientIdentifierNotValid => {
            "choose a client id with --id: 1 to 64 characters, none of / + # $"
        }
        _ => "see the broker's log",
    };
    anyhow!(
        "{place}: the broker refused the connection: {}; {next}",
        crate::telemetry::words(&code)
    )
}

fn tls_config(ca: &Path, client: Option<(&Path, &Path)>) -> anyhow::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let read = CertificateDer::pem_file_iter(ca)
        .with_context(|| format!("{}: name the broker's CA with --ca", ca.display()))?;
    for certificate in read {
        roots.add(certificate.with_context(|| ca.display().to_string())?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some((cert, key)) = client else {
        return Ok(builder.with_no_client_auth());
    };
    let at = |path: &Path| path.display().to_string();
    let chain = CertificateDer::pem_file_iter(cert)
        .with_context(|| at(cert))?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| at(cert))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| at(key))?;
    builder.with_client_auth_cert(chain, key).with_context(|| at(cert))
}
