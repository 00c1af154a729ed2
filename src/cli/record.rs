//! `watchbell record`: writes what comes over a broker to files, for `watchbell replay`.
//!
//! A subscriber like any other: it sees what the access rules let it see, and topics that begin
//! with `$` only where a filter names them. Messages that the broker had kept are not recorded:
//! they say what was, not what happens. A connection that breaks is made again, and the summary
//! says how often, because what was published meanwhile is missing.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet, Publish, RetainForwardRule, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use tokio::time::{Instant, MissedTickBehavior};

use super::mqtt::{Failed, Place, Reach, TIMEOUT};
use super::{Context, block_on};
use crate::capture::Recorded;
use crate::capture::write::{Limits, Writer};
use crate::clock::Clock;
use crate::instance::Instance;
use crate::model::Qos;
use crate::span::Span;
use crate::topic::{TopicFilter, TopicLimits, TopicName};

const EXAMPLES: &str = "\
Examples:
  watchbell record --out week.jsonl --for 7d
  watchbell record --out pumps.jsonl --topic 'devices/+/status' --topic '$watchbell/client/#'
  watchbell record --broker plant.example.org:8883 --ca plant-ca.pem --cert w.pem --key w.key \\
      --out plant.jsonl --bytes-max 1G --files 10
  watchbell replay week.jsonl                    what the rules would have made of it";

/// Largest packet that is taken.
const PACKET_BYTES_MAX: u32 = 16 << 20;
/// How often what is buffered is written.
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// Between two tries to connect again.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// Write publishes to files, for `watchbell replay`
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Record {
    /// The broker [default: the running instance, else 127.0.0.1]
    #[arg(long, value_name = "HOST[:PORT]")]
    broker: Option<String>,
    /// What to subscribe to; may be repeated
    #[arg(long, value_name = "FILTER", default_value = "#")]
    topic: Vec<String>,
    /// The file; one that is there becomes FILE.1
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Largest file: bytes, or with K, M, G; then it becomes FILE.1 and a new one begins
    #[arg(long, value_name = "BYTES", default_value = "100M", value_parser = size)]
    bytes_max: u64,
    /// Most files, FILE itself included; the oldest is removed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=1000))]
    files: u32,
    /// Ends after this time, as 1h or 7d [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME")]
    lasts: Option<Span>,
    /// Ends after so many publishes
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    reach: Reach,
}

/// `100M`
fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']) {
        Some(digits) => (digits, text.chars().next_back().unwrap_or_default()),
        None => (text, ' '),
    };
    let unit = match unit.to_ascii_uppercase() {
        'K' => 1 << 10,
        'M' => 1 << 20,
        'G' => 1 << 30,
        _ => 1,
    };
    let bytes: Option<u64> = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    match bytes {
        Some(bytes) if bytes >= 4096 => Ok(bytes),
        Some(_) => Err("at least 4K".to_owned()),
        None => Err("write a number of bytes, as 100M".to_owned()),
    }
}

/// `host`, `host:1883`, `[::1]:1883`
fn host_and_port(text: &str) -> anyhow::Result<(String, Option<u16>)> {
    let wrong = || anyhow!("--broker {text}: write HOST or HOST:PORT, as plant.example.org:8883");
    let (host, port) = match text.rsplit_once(':') {
        // An address of IPv6 without brackets.
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => (text, None),
        Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.contains('/') {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

impl Record {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let mut filters = Vec::new();
        for topic in &self.topic {
            TopicFilter::parse(topic, TopicLimits::default())
                .map_err(|error| anyhow!("--topic {topic}: {error}"))?;
            let mut filter = Filter::new(topic.clone(), QoS::AtLeastOnce);
            filter.preserve_retain = true;
            filter.retain_forward_rule = RetainForwardRule::Never;
            filters.push(filter);
        }
        let named = self.broker.as_deref().map(host_and_port).transpose()?;
        let (host, port) = named.map_or((None, None), |(host, port)| (Some(host), port));
        let instance = Instance::running(&context.data_dir()?).ok().flatten();
        let (mut options, place) =
            self.reach.options(host.as_deref(), port, instance.as_ref(), "record")?;
        options.set_max_packet_size(Some(PACKET_BYTES_MAX));
        let mut recording = Recording {
            writer: None,
            limits: Limits { bytes_max: self.bytes_max, files: self.files },
            clock: context.clock,
            path: &self.out,
            lasts: self.lasts,
            left: self.count.unwrap_or(u64::MAX),
            unreadable: 0,
            reconnects: 0,
        };
        let result = block_on(async {
            let (client, events) = AsyncClient::new(options, 16);
            recording.run((client, filters), events, &place).await
        });
        // What has come so far is worth having, however it ended.
        recording.flush()?;
        recording.report(context.out)?;
        result
    }
}

/// A recording under way.
struct Recording<'a> {
    /// Made when there is something to listen to: a broker that is not there moves no older file.
    writer: Option<Writer>,
    limits: Limits,
    clock: Clock,
    path: &'a std::path::Path,
    /// From the first subscription on.
    lasts: Option<Span>,
    /// How many publishes are still wanted.
    left: u64,
    /// Publishes on topics that are none.
    unreadable: u64,
    reconnects: u64,
}

impl Recording<'_> {
    /// Records until there is enough, or word to stop.
    async fn run(
        &mut self,
        (client, filters): (AsyncClient, Vec<Filter>),
        mut events: EventLoop,
        place: &Place,
    ) -> anyhow::Result<()> {
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(told_to_stop());
        let (mut is_connected, mut is_subscribed, mut until) = (false, false, None);
        let first = Instant::now() + TIMEOUT;
        while self.left > 0 {
            let event = tokio::select! {
                event = events.poll() => event,
                // A poll that is dropped while it connects connects again, and is then taken over
                // by itself.
                _ = flush.tick(), if is_connected => {
                    self.flush()?;
                    continue;
                }
                () = tokio::time::sleep_until(first), if !is_subscribed => {
                    bail!("{place}: no answer within {} s", TIMEOUT.as_secs());
                }
                () = &mut stop => break,
                () = reached(until) => break,
            };
            match event {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    is_connected = true;
                    // Its queue is empty: nothing else is handed in.
                    client.subscribe_many(filters.clone()).await?;
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    for (filter, code) in filters.iter().zip(&ack.return_codes) {
                        if !matches!(code, SubscribeReasonCode::Success(_)) {
                            let code = crate::telemetry::words(code);
                            bail!(
                                "{place}: --topic {} is refused: {code}; see [[access]]",
                                filter.path
                            );
                        }
                    }
                    self.writer()?;
                    if !is_subscribed {
                        until = self.lasts.map(|span| Instant::now() + span.get());
                    }
                    is_subscribed = true;
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => self.note(&publish)?,
                Ok(_) => {}
                Err(error) if !is_subscribed => {
                    return Err(Failed::Connection(Box::new(error)).explain(place));
                }
                Err(_) => {
                    is_connected = false;
                    self.reconnects += 1;
                    self.flush()?;
                    tokio::time::sleep(RECONNECT_AFTER).await;
                }
            }
        }
        drop(client.disconnect().await);
        // So that the DISCONNECT leaves; if it does not, the broker notices all the same.
        drop(
            tokio::time::timeout(FLUSH_EVERY, async { while events.poll().await.is_ok() {} }).await,
        );
        Ok(())
    }

    fn note(&mut self, publish: &Publish) -> anyhow::Result<()> {
        let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
        let topic = std::str::from_utf8(&publish.topic).ok();
        let Some(topic) = topic.and_then(|topic| TopicName::parse(topic, limits).ok()) else {
            self.unreadable += 1;
            return Ok(());
        };
        let recorded = Recorded {
            at: self.clock.now(),
            topic,
            payload: Bytes::clone(&publish.payload),
            retain: publish.retain,
            replayed: false,
            qos: match publish.qos {
                QoS::AtMostOnce => Qos::AtMostOnce,
                QoS::AtLeastOnce => Qos::AtLeastOnce,
                QoS::ExactlyOnce => Qos::ExactlyOnce,
            },
        };
        self.left -= 1;
        let path = self.path;
        self.writer()?.write(&recorded).with_context(|| path.display().to_string())
    }

    fn writer(&mut self) -> anyhow::Result<&mut Writer> {
        let writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::create(self.path, self.limits)
                .with_context(|| self.path.display().to_string())?,
        };
        Ok(self.writer.insert(writer))
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        match &mut self.writer {
            None => Ok(()),
            Some(writer) => writer.flush().with_context(|| self.path.display().to_string()),
        }
    }

    fn report(&self, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let written = writer.written();
        let path = self.path.display();
        writeln!(out, "{} publishes, {} bytes in {path}", written.publishes, written.bytes)?;
        let notes = [
            (written.files_removed, "older files removed: --bytes-max and --files"),
            (written.too_large, "publishes left out, each larger than --bytes-max"),
            (self.unreadable, "publishes left out, their topics are none"),
            (self.reconnects, "times the connection was lost: what was published then is missing"),
        ];
        for (count, what) in notes.into_iter().filter(|(count, _)| *count > 0) {
            writeln!(out, "{count} {what}")?;
        }
        Ok(())
    }
}

/// Returns at this time; never where there is none.
async fn reached(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Returns at Ctrl-C or SIGTERM.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_brokers_are_read_as_people_write_them() {
        for (text, expected) in [
            ("100M", Some(100 << 20)),
            ("4096", Some(4096)),
            ("64k", Some(65_536)),
            ("2G", Some(2 << 30)),
            ("1K", None),
            ("M", None),
            ("1.5M", None),
            ("99999999999999G", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
        for (text, host, port) in [
            ("plant", "plant", None),
            ("plant:8883", "plant", Some(8883)),
            ("192.0.2.1:1883", "192.0.2.1", Some(1883)),
            ("[::1]:1883", "::1", Some(1883)),
            ("[::1]", "::1", None),
            ("::1", "::1", None),
        ] {
            let found = host_and_port(text).ok();
            assert_eq!(found, Some((host.to_owned(), port)), "{text}");
        }
        for text in ["", ":1883", "mqtt://plant", "plant:x"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }
}
