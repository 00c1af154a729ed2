//! `watchbell pub`: one publish by MQTT 5, as a device would make it.
//!
//! Waits for the broker's acknowledgement and says what it was. Without `--host` and `--port` it
//! goes to the instance that runs with this data directory.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, Packet, PubAckReason, PubRecReason};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Context, block_on};
use crate::instance::Instance;
use crate::topic::{TopicLimits, TopicName};

const EXAMPLES: &str = "\
Examples:
  watchbell pub site/kiel/oven/1 '{\"temp\": 250}'
  watchbell pub --tls --ca certs/ca.pem --cert certs/pump-7.pem --key certs/pump-7.key --id pump-7 \\
      devices/pump-7/status up
  echo secret | watchbell pub --tls --user pump-7 --password-stdin devices/pump-7/status up
  some-program | watchbell pub site/kiel/log -";

/// From connecting to the acknowledgement.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Largest payload that is read from standard input, and largest packet.
const PAYLOAD_BYTES_MAX: u32 = 1 << 20;

/// Publish one message by MQTT, as a device would
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Publish {
    /// The topic
    topic: String,
    /// The payload; `-` for standard input
    payload: String,
    /// 0: sent and forgotten; 1: acknowledged once it is on disk; 2: the same, exactly once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Keep it for subscribers to come
    #[arg(long)]
    retain: bool,
    /// The broker [default: the running instance, else 127.0.0.1]
    #[arg(long)]
    host: Option<String>,
    /// Its port [default: the running instance's, else 1883, or 8883 with TLS]
    #[arg(long)]
    port: Option<u16>,
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
    password_stdin: bool,
    /// The client id [default: watchbell-pub-PID, or the certificate's file name]
    #[arg(long, value_name = "CLIENT_ID")]
    id: Option<String>,
}

impl Publish {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        TopicName::parse(&self.topic, TopicLimits::default())
            .map_err(|error| anyhow!("the topic `{}` will not do: {error}", self.topic))?;
        if self.password_stdin && self.payload == "-" {
            bail!("standard input cannot be both the password and the payload");
        }
        let payload = match self.payload.as_str() {
            "-" => read_payload()?,
            text => text.as_bytes().to_vec(),
        };
        let instance = Instance::running(&context.data_dir()?).ok().flatten();
        let (options, place) = self.options(instance.as_ref())?;
        let count = payload.len();
        let acknowledgement = block_on(async {
            let (client, mut events) = AsyncClient::new(options, 10);
            let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]
                .get(usize::from(self.qos))
                .copied()
                .unwrap_or(QoS::AtLeastOnce);
            client.publish(&self.topic, qos, self.retain, payload).await?;
            let publish = acknowledged(&client, &mut events, self.qos);
            match tokio::time::timeout(TIMEOUT, publish).await {
                Ok(result) => result.map_err(|failed| failed.explain(&place)),
                Err(_) => Err(anyhow!(
                    "{place}: no acknowledgement within {} s; see the broker's log",
                    TIMEOUT.as_secs()
                )),
            }
        })?;
        let out = context.out;
        writeln!(out, "published {count} bytes to {} at {place}: {acknowledgement}", self.topic)?;
        Ok(())
    }

    fn uses_tls(&self) -> bool {
        self.tls || self.ca.is_some() || self.cert.is_some()
    }

    fn options(&self, instance: Option<&Instance>) -> anyhow::Result<(MqttOptions, Place)> {
        let tls = self.uses_tls();
        let running = instance.and_then(|one| {
            if tls {
                one.mqtts.or_else(|| one.listens_by("mqtts"))
            } else {
                one.mqtt.or_else(|| one.listens_by("mqtt"))
            }
        });
        let running = running.filter(|_| self.host.is_none() && self.port.is_none());
        // A certificate stands for names more often than for addresses that nobody has typed.
        let host = match (&self.host, running) {
            (Some(host), _) => host.clone(),
            (None, Some(running)) if !running.ip().is_unspecified() => running.ip().to_string(),
            (None, _) => "127.0.0.1".to_owned(),
        };
        let port = self.port.or(running.map(|address| address.port())).unwrap_or(if tls {
            8883
        } else {
            1883
        });
        let id = match (&self.id, &self.cert) {
            (Some(id), _) => id.clone(),
            // Client ids are bound to certificates, and `watchbell certs client ID` names its files so.
            (None, Some(cert)) => {
                cert.file_stem().map_or(String::new(), |name| name.to_string_lossy().into_owned())
            }
            (None, None) => format!("watchbell-pub-{}", std::process::id()),
        };
        let mut options = MqttOptions::new(id, host.clone(), port);
        options.set_keep_alive(Duration::from_secs(30));
        options.set_clean_start(true);
        options.set_connection_timeout(TIMEOUT.as_secs());
        options.set_max_packet_size(Some(PAYLOAD_BYTES_MAX + 65_536));
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
struct Place {
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
enum Failed {
    Connection(Box<ConnectionError>),
    Refused(String),
}

/// Drives the connection until the publish is acknowledged, and says how.
async fn acknowledged(
    client: &AsyncClient,
    events: &mut EventLoop,
    qos: u8,
) -> Result<&'static str, Failed> {
    loop {
        let event = events.poll().await.map_err(|error| Failed::Connection(Box::new(error)))?;
        let said = match event {
            Event::Incoming(Packet::PubAck(ack)) => match ack.reason {
                PubAckReason::Success => {
                    "acknowledged; if a rule matches it, what it caused is on disk"
                }
                PubAckReason::NoMatchingSubscribers => "acknowledged, nobody is subscribed to it",
                reason => return Err(Failed::Refused(words(&reason))),
            },
            Event::Incoming(Packet::PubRec(received)) => match received.reason {
                PubRecReason::Success | PubRecReason::NoMatchingSubscribers => continue,
                reason => return Err(Failed::Refused(words(&reason))),
            },
            Event::Incoming(Packet::PubComp(_)) => {
                "acknowledged; if a rule matches it, what it caused is on disk"
            }
            Event::Outgoing(Outgoing::Publish(_)) if qos == 0 => {
                "sent; QoS 0 is never acknowledged"
            }
            Event::Incoming(_) | Event::Outgoing(_) => continue,
        };
        // Without a DISCONNECT the broker would take us for lost.
        if client.disconnect().await.is_ok() {
            loop {
                match events.poll().await {
                    Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        }
        return Ok(said);
    }
}

/// `NotAuthorized` as `not authorized`.
fn words(reason: &impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for character in format!("{reason:?}").chars() {
        if character.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(character.to_lowercase());
    }
    words
}

impl Failed {
    /// What happened, and what to do about it.
    fn explain(&self, place: &Place) -> anyhow::Error {
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
                anyhow!("{place}: the broker ended the connection: {}", words(reason_code))
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
    anyhow!("{place}: the broker refused the connection: {}; {next}", words(&code))
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

fn read_payload() -> anyhow::Result<Vec<u8>> {
    let mut payload = Vec::new();
    std::io::stdin()
        .take(u64::from(PAYLOAD_BYTES_MAX) + 1)
        .read_to_end(&mut payload)
        .context("reading the payload from standard input")?;
    if u32::try_from(payload.len()).map_or(true, |length| length > PAYLOAD_BYTES_MAX) {
        bail!("the payload is longer than {PAYLOAD_BYTES_MAX} bytes");
    }
    Ok(payload)
}
