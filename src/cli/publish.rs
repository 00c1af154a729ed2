//! `watchbell pub`: one publish by MQTT 5, as a device would make it.
//!
//! Waits for the broker's acknowledgement and says what it was. Without `--host` and `--port` it
//! goes to the instance that runs with this data directory.

use std::io::Read as _;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PubRecReason};
use rumqttc::v5::{AsyncClient, Event, EventLoop};

use super::mqtt::{Failed, Reach, TIMEOUT};
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
    #[command(flatten)]
    reach: Reach,
}

impl Publish {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        TopicName::parse(&self.topic, TopicLimits::default())
            .map_err(|error| anyhow!("the topic `{}` will not do: {error}", self.topic))?;
        if self.reach.password_stdin && self.payload == "-" {
            bail!("standard input cannot be both the password and the payload");
        }
        let payload = match self.payload.as_str() {
            "-" => read_payload()?,
            text => text.as_bytes().to_vec(),
        };
        let instance = Instance::running(&context.data_dir()?).ok().flatten();
        let (host, port) = (self.host.as_deref(), self.port);
        let (mut options, place) = self.reach.options(host, port, instance.as_ref(), "pub")?;
        options.set_max_packet_size(Some(PAYLOAD_BYTES_MAX + 65_536));
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
                reason => return Err(Failed::Refused(crate::telemetry::words(&reason))),
            },
            Event::Incoming(Packet::PubRec(received)) => match received.reason {
                PubRecReason::Success | PubRecReason::NoMatchingSubscribers => continue,
                reason => return Err(Failed::Refused(crate::telemetry::words(&reason))),
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
