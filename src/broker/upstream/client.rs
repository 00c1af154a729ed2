//! One connection to an upstream: rumqttc, 3.1.1 and 5.0, behind one face.
//!
//! A task of its own polls rumqttc, because its poll may not be cancelled, and tells what happens
//! through a bounded channel. Whoever does not read from that stops the reading from the socket;
//! pings go on until there is something to tell. The task never connects again by itself: each
//! connection has a new event loop, so that no acknowledgement of an old one is sent on a new one.
//!
//! Invariant: nothing is acknowledged to the upstream but by [`Client::acknowledge`].

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::{TlsConfiguration, Transport, v5};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::address::Address;
use super::config::{Upstream, Version, Wanted};
use super::explain::{self, Loss};
use crate::model::{PublishProperties, Qos};

/// Happenings that wait to be read.
const HAPPENINGS: usize = 16;
/// Packet ids of publishes to the upstream: rumqttc keeps a place for each. Twice as many as can be
/// under way, so that one that is acknowledged late does not hold up the others.
const IDS: u16 = 1000;
/// The largest packet that MQTT can write.
const PACKET_BYTES_MAX: usize = 268_435_455;

/// What happens on the connection.
pub(super) enum Happening {
    /// CONNACK: it is there.
    Connected(Connected),
    /// SUBACK: for each filter in order, whether it was granted or why not.
    Subscribed(Vec<Result<Qos, String>>),
    /// PUBLISH.
    Received(Received),
    /// An acknowledgement of ours is on its way.
    AckSent,
    /// The next of our publishes is on its way, under this packet id; 0 for QoS 0.
    Sent(u16),
    /// PUBACK for this packet id, with the reason where the publish was refused.
    Acknowledged(u16, Option<String>),
    /// DISCONNECT is on its way.
    Left,
    /// The connection has ended, or could not be made: why.
    Lost(Loss),
}

pub(super) struct Connected {
    /// The upstream has kept our session.
    pub(super) session_present: bool,
    /// Most unacknowledged publishes that it takes, at least 1.
    pub(super) window_max: usize,
    /// Largest packet that it takes.
    pub(super) packet_bytes_max: usize,
}

/// A publish of the upstream.
pub(super) struct Received {
    /// `None` where it is not UTF-8.
    pub(super) topic: Option<String>,
    pub(super) payload: Bytes,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    /// Its packet id; 0 with QoS 0.
    pub(super) id: u16,
    pub(super) properties: Option<Box<PublishProperties>>,
}

/// A publish to the upstream.
pub(super) struct Passed<'a> {
    pub(super) topic: &'a str,
    pub(super) payload: &'a Bytes,
    pub(super) qos: Qos,
    pub(super) retain: bool,
    pub(super) properties: Option<&'a PublishProperties>,
    pub(super) expires_after_secs: Option<u32>,
}

/// The request queue of rumqttc is full: the connection is of no use any more.
#[derive(Debug)]
pub(super) struct Stuck;

enum Requests {
    V311(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// One connection. Dropped, it is cut.
pub(super) struct Client {
    requests: Requests,
    happenings: mpsc::Receiver<Happening>,
    task: JoinHandle<()>,
    /// Acknowledgements that are due; at most as many as there are packet ids.
    due: VecDeque<u16>,
    /// Handed to rumqttc and not written yet.
    acks_under_way: usize,
    acks_under_way_max: usize,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    /// Begins to connect; what becomes of it is a [`Happening`].
    pub(super) fn connect(upstream: &Upstream, address: &Address) -> Result<Self, String> {
        let config = &upstream.config;
        let transport = match address.tls {
            false => Transport::tcp(),
            true => Transport::tls_with_config(TlsConfiguration::Rustls(upstream.tls()?)),
        };
        // Acknowledgements, publishes, one SUBSCRIBE and one DISCONNECT: it is never full.
        let requests_max =
            usize::from(config.inflight_max) + usize::from(config.publish_inflight_max) + 8;
        let (to, happenings) = mpsc::channel(HAPPENINGS);
        // A ping goes in each interval, so in that time something happens, or its socket is stuck.
        let patience = 2 * config.keep_alive.get() + config.connect_timeout.get();
        let host = address.host.as_str();
        let (requests, task) = match config.version {
            Version::V311 => {
                let mut options =
                    rumqttc::MqttOptions::new(upstream.client_id.as_str(), host, address.port);
                options.set_keep_alive(config.keep_alive.get());
                options.set_clean_session(config.clean_session);
                options.set_manual_acks(true);
                options.set_inflight(IDS);
                options.set_pending_throttle(Duration::ZERO);
                let incoming_max = usize::try_from(config.packet_bytes_max).unwrap_or(usize::MAX);
                options.set_max_packet_size(incoming_max, PACKET_BYTES_MAX);
                options.set_transport(transport);
                if let Some((user, password)) = &upstream.login {
                    options.set_credentials(user.as_str(), password.expose());
                }
                let (client, mut events) = rumqttc::AsyncClient::new(options, requests_max);
                let secs = config.connect_timeout.get().as_secs().max(1);
                events.network_options.set_connection_timeout(secs);
                (Requests::V311(client), tokio::spawn(follow_v311(events, to, patience)))
            }
            Version::V5 => {
                let mut options =
                    v5::MqttOptions::new(upstream.client_id.as_str(), host, address.port);
                options.set_keep_alive(config.keep_alive.get());
                options.set_clean_start(config.clean_session);
                options.set_manual_acks(true);
                options.set_outgoing_inflight_upper_limit(IDS);
                options.set_pending_throttle(Duration::ZERO);
                options.set_max_packet_size(Some(config.packet_bytes_max));
                options.set_receive_maximum(Some(config.inflight_max));
                let expiry = config.session_expiry.get().as_secs();
                let expiry = u32::try_from(expiry).unwrap_or(u32::MAX);
                options.set_session_expiry_interval((!config.clean_session).then_some(expiry));
                options.set_connection_timeout(config.connect_timeout.get().as_secs().max(1));
                options.set_transport(transport);
                if let Some((user, password)) = &upstream.login {
                    options.set_credentials(user.as_str(), password.expose());
                }
                let (client, events) = v5::AsyncClient::new(options, requests_max);
                (Requests::V5(client), tokio::spawn(follow_v5(events, to, patience)))
            }
        };
        Ok(Self {
            requests,
            happenings,
            task,
            due: VecDeque::new(),
            acks_under_way: 0,
            acks_under_way_max: usize::from(config.inflight_max),
        })
    }

    /// The next thing that happens. May be cancelled.
    pub(super) async fn next(&mut self) -> Happening {
        let next = self.happenings.recv().await;
        if matches!(next, Some(Happening::AckSent)) {
            self.acks_under_way = self.acks_under_way.saturating_sub(1);
            self.send_acks();
        }
        // Without a word it ended in a panic, which is in the log.
        next.unwrap_or_else(|| {
            Happening::Lost("a fault in the MQTT client library; see the log".into())
        })
    }

    pub(super) fn subscribe(&self, wanted: &[Wanted]) -> Result<(), Stuck> {
        match &self.requests {
            Requests::V311(client) => {
                let filter = |one: &Wanted| {
                    let qos = v311_qos(one.qos);
                    rumqttc::SubscribeFilter::new(one.filter.clone(), qos)
                };
                client.try_subscribe_many(wanted.iter().map(filter)).map_err(|_| Stuck)
            }
            Requests::V5(client) => {
                let filter = |one: &Wanted| {
                    let mut filter =
                        v5::mqttbytes::v5::Filter::new(one.filter.clone(), v5_qos(one.qos));
                    filter.nolocal = one.no_local;
                    // A rule sees whether a publish is news or what was kept.
                    filter.preserve_retain = false;
                    filter.retain_forward_rule =
                        v5::mqttbytes::v5::RetainForwardRule::OnNewSubscribe;
                    filter
                };
                client.try_subscribe_many(wanted.iter().map(filter)).map_err(|_| Stuck)
            }
        }
    }

    /// Acknowledges a publish: what it caused is on disk.
    pub(super) fn acknowledge(&mut self, id: u16) {
        self.due.push_back(id);
        self.send_acks();
    }

    fn send_acks(&mut self) {
        while self.acks_under_way < self.acks_under_way_max
            && let Some(id) = self.due.pop_front()
        {
            let sent = match &self.requests {
                Requests::V311(client) => {
                    let qos = rumqttc::QoS::AtLeastOnce;
                    let mut publish = rumqttc::Publish::new("", qos, Vec::new());
                    publish.pkid = id;
                    client.try_ack(&publish).is_ok()
                }
                Requests::V5(client) => {
                    let qos = v5::mqttbytes::QoS::AtLeastOnce;
                    let mut publish = v5::mqttbytes::v5::Publish::new("", qos, Vec::new(), None);
                    publish.pkid = id;
                    client.try_ack(&publish).is_ok()
                }
            };
            if !sent {
                // The connection has ended, which is told next; the upstream sends it again.
                return;
            }
            self.acks_under_way += 1;
        }
    }

    /// Whether acknowledgements wait to be written.
    pub(super) fn owes_acks(&self) -> bool {
        self.acks_under_way > 0 || !self.due.is_empty()
    }

    /// Passes a publish on; [`Happening::Sent`] tells its packet id.
    pub(super) fn publish(&self, passed: &Passed<'_>) -> Result<(), Stuck> {
        let (topic, payload) = (passed.topic, passed.payload.clone());
        match &self.requests {
            Requests::V311(client) => {
                let payload = Vec::from(payload);
                client
                    .try_publish(topic, v311_qos(passed.qos), passed.retain, payload)
                    .map_err(|_| Stuck)
            }
            Requests::V5(client) => {
                let properties = v5_properties(passed);
                client
                    .try_publish_with_properties(
                        topic,
                        v5_qos(passed.qos),
                        passed.retain,
                        payload,
                        properties,
                    )
                    .map_err(|_| Stuck)
            }
        }
    }

    /// Says goodbye; [`Happening::Left`] or [`Happening::Lost`] follows.
    pub(super) fn leave(&self) -> Result<(), Stuck> {
        match &self.requests {
            Requests::V311(client) => client.try_disconnect().map_err(|_| Stuck),
            Requests::V5(client) => client.try_disconnect().map_err(|_| Stuck),
        }
    }
}

fn v311_qos(qos: Qos) -> rumqttc::QoS {
    match qos {
        Qos::AtMostOnce => rumqttc::QoS::AtMostOnce,
        Qos::AtLeastOnce | Qos::ExactlyOnce => rumqttc::QoS::AtLeastOnce,
    }
}

fn v5_qos(qos: Qos) -> v5::mqttbytes::QoS {
    match qos {
        Qos::AtMostOnce => v5::mqttbytes::QoS::AtMostOnce,
        Qos::AtLeastOnce | Qos::ExactlyOnce => v5::mqttbytes::QoS::AtLeastOnce,
    }
}

fn v5_properties(passed: &Passed<'_>) -> v5::mqttbytes::v5::PublishProperties {
    let mut properties = v5::mqttbytes::v5::PublishProperties {
        message_expiry_interval: passed.expires_after_secs,
        ..Default::default()
    };
    if let Some(ours) = passed.properties {
        properties.payload_format_indicator = ours.utf8.map(u8::from);
        properties.content_type.clone_from(&ours.content_type);
        properties.response_topic.clone_from(&ours.response_topic);
        properties.correlation_data = ours.correlation_data.clone().map(Bytes::from);
        properties.user_properties.clone_from(&ours.user);
    }
    properties
}

const SILENT: &str = "the upstream does not read what is sent to it";

async fn follow_v311(
    mut events: rumqttc::EventLoop,
    to: mpsc::Sender<Happening>,
    patience: Duration,
) {
    loop {
        let happening = match tokio::time::timeout(patience, events.poll()).await {
            Ok(Ok(event)) => of_v311(event),
            Ok(Err(error)) => Some(Happening::Lost(explain::v311(&error))),
            Err(_) => Some(Happening::Lost(SILENT.into())),
        };
        if tell(&to, happening).await.is_break() {
            return;
        }
    }
}

async fn follow_v5(mut events: v5::EventLoop, to: mpsc::Sender<Happening>, patience: Duration) {
    loop {
        let happening = match tokio::time::timeout(patience, events.poll()).await {
            Ok(Ok(event)) => of_v5(event),
            Ok(Err(error)) => Some(Happening::Lost(explain::v5(&error))),
            Err(_) => Some(Happening::Lost(SILENT.into())),
        };
        if tell(&to, happening).await.is_break() {
            return;
        }
    }
}

async fn tell(
    to: &mpsc::Sender<Happening>,
    happening: Option<Happening>,
) -> std::ops::ControlFlow<()> {
    let Some(happening) = happening else { return std::ops::ControlFlow::Continue(()) };
    let is_last = matches!(happening, Happening::Lost(_));
    match to.send(happening).await {
        Ok(()) if !is_last => std::ops::ControlFlow::Continue(()),
        _ => std::ops::ControlFlow::Break(()),
    }
}

fn of_outgoing(outgoing: &rumqttc::Outgoing) -> Option<Happening> {
    match outgoing {
        rumqttc::Outgoing::Publish(id) => Some(Happening::Sent(*id)),
        rumqttc::Outgoing::PubAck(_) => Some(Happening::AckSent),
        rumqttc::Outgoing::Disconnect => Some(Happening::Left),
        // AwaitAck: it waits for its packet id, and goes later.
        _ => None,
    }
}

fn of_v311(event: rumqttc::Event) -> Option<Happening> {
    use rumqttc::{Packet, SubscribeReasonCode};
    let packet = match event {
        rumqttc::Event::Incoming(packet) => packet,
        rumqttc::Event::Outgoing(outgoing) => return of_outgoing(&outgoing),
    };
    match packet {
        Packet::ConnAck(ack) => Some(Happening::Connected(Connected {
            session_present: ack.session_present,
            window_max: usize::MAX,
            packet_bytes_max: PACKET_BYTES_MAX,
        })),
        Packet::SubAck(ack) => {
            let granted = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(rumqttc::QoS::AtMostOnce) => Ok(Qos::AtMostOnce),
                SubscribeReasonCode::Success(_) => Ok(Qos::AtLeastOnce),
                SubscribeReasonCode::Failure => Err("refused".to_owned()),
            };
            Some(Happening::Subscribed(ack.return_codes.iter().map(granted).collect()))
        }
        Packet::Publish(publish) => Some(Happening::Received(Received {
            topic: Some(publish.topic),
            payload: publish.payload,
            qos: match publish.qos {
                rumqttc::QoS::AtMostOnce => Qos::AtMostOnce,
                _ => Qos::AtLeastOnce,
            },
            retain: publish.retain,
            id: publish.pkid,
            properties: None,
        })),
        Packet::PubAck(ack) => Some(Happening::Acknowledged(ack.pkid, None)),
        _ => None,
    }
}

fn of_v5(event: v5::Event) -> Option<Happening> {
    use v5::mqttbytes::v5::{Packet, PubAckReason, SubscribeReasonCode};
    let packet = match event {
        v5::Event::Incoming(packet) => packet,
        v5::Event::Outgoing(outgoing) => return of_outgoing(&outgoing),
    };
    match packet {
        Packet::ConnAck(ack) => {
            let properties = ack.properties.as_ref();
            let window_max = properties.and_then(|one| one.receive_max).map(usize::from);
            let bytes_max = properties.and_then(|one| one.max_packet_size);
            let bytes_max = bytes_max.and_then(|bytes| usize::try_from(bytes).ok());
            Some(Happening::Connected(Connected {
                session_present: ack.session_present,
                window_max: window_max.unwrap_or(usize::MAX).max(1),
                packet_bytes_max: bytes_max.unwrap_or(PACKET_BYTES_MAX),
            }))
        }
        Packet::SubAck(ack) => {
            let granted = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(v5::mqttbytes::QoS::AtMostOnce) => Ok(Qos::AtMostOnce),
                SubscribeReasonCode::Success(_) => Ok(Qos::AtLeastOnce),
                code => Err(crate::telemetry::words(code)),
            };
            Some(Happening::Subscribed(ack.return_codes.iter().map(granted).collect()))
        }
        Packet::Publish(publish) => {
            let properties = publish.properties.map(|theirs| PublishProperties {
                utf8: theirs.payload_format_indicator.map(|indicator| indicator == 1),
                expires_after_secs: theirs.message_expiry_interval,
                content_type: theirs.content_type,
                response_topic: theirs.response_topic,
                correlation_data: theirs.correlation_data.map(Vec::from),
                user: theirs.user_properties,
            });
            let some = properties.filter(|one| *one != PublishProperties::default());
            Some(Happening::Received(Received {
                topic: String::from_utf8(Vec::from(publish.topic)).ok(),
                payload: publish.payload,
                qos: match publish.qos {
                    v5::mqttbytes::QoS::AtMostOnce => Qos::AtMostOnce,
                    _ => Qos::AtLeastOnce,
                },
                retain: publish.retain,
                id: publish.pkid,
                properties: some.map(Box::new),
            }))
        }
        Packet::PubAck(ack) => {
            let reason = match ack.reason {
                PubAckReason::Success | PubAckReason::NoMatchingSubscribers => None,
                reason => Some(crate::telemetry::words(&reason)),
            };
            Some(Happening::Acknowledged(ack.pkid, reason))
        }
        _ => None,
    }
}

/// The size of a PUBLISH packet, rounded up.
pub(super) fn packet_bytes(passed: &Passed<'_>) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, |text| text.len() + 3);
    let properties = passed.properties.map_or(0, |one| {
        let user: usize = one.user.iter().map(|(key, value)| key.len() + value.len() + 5).sum();
        let correlation = one.correlation_data.as_ref().map_or(0, |data| data.len() + 3);
        text(&one.content_type) + text(&one.response_topic) + user + correlation
    });
    // Header, length, topic length, packet id, properties' length, expiry, format.
    passed.topic.len() + passed.payload.len() + properties + 24
}
