//! MQTT clients for the tests: rumqttc, 3.1.1 and 5.0, over TCP or TLS, behind one face.
//!
//! A device never connects again by itself: what a broken connection means is for the test to say.
//! Answers are told by the names that rumqttc gives their codes (`Success`, `NotAuthorized`,
//! `QuotaExceeded`), and `closed` where the connection ended first.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{TlsConfiguration, Transport, v5};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use watchbell::certs::Pair;

/// Longer than anything that is waited for; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most publishes that are handed in before the first is acknowledged.
const QUEUE: usize = 4096;
/// Unacknowledged publishes of one device.
const IN_FLIGHT: u16 = 20;

/// Which MQTT a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V311,
    V5,
}

/// A device that has not connected yet.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    pub(crate) address: SocketAddr,
    /// The CA's file, and the client's certificate; `None` for plain TCP.
    pub(crate) tls: Option<(PathBuf, Option<Pair>)>,
    pub(crate) login: Option<(String, String)>,
}

impl Options {
    /// The same by MQTT 3.1.1.
    pub(crate) fn version(mut self, version: Version) -> Self {
        self.version = version;
        self
    }

    /// With a user name and password.
    pub(crate) fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// Connects; the CONNACK's code where it is refused.
    pub(crate) async fn try_connect(self) -> Result<Device, String> {
        let tls = self.tls.as_ref().map(|(ca, pair)| {
            let config = client_config(ca, pair.as_ref());
            Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config)))
        });
        let (host, port) = (self.address.ip().to_string(), self.address.port());
        let (seen, seeing) = mpsc::channel(QUEUE);
        let (requests, task) = match self.version {
            Version::V311 => {
                let mut options = rumqttc::MqttOptions::new(self.client_id, host, port);
                options.set_keep_alive(Duration::from_secs(30)).set_inflight(IN_FLIGHT);
                if let Some(tls) = tls {
                    options.set_transport(tls);
                }
                if let Some((user, password)) = self.login {
                    options.set_credentials(user, password);
                }
                let (client, events) = rumqttc::AsyncClient::new(options, QUEUE);
                (Requests::V311(client), tokio::spawn(follow_v311(events, seen)))
            }
            Version::V5 => {
                let mut options = v5::MqttOptions::new(self.client_id, host, port);
                options.set_keep_alive(Duration::from_secs(30));
                options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
                if let Some(tls) = tls {
                    options.set_transport(tls);
                }
                if let Some((user, password)) = self.login {
                    options.set_credentials(user, password);
                }
                let (client, events) = v5::AsyncClient::new(options, QUEUE);
                (Requests::V5(client), tokio::spawn(follow_v5(events, seen)))
            }
        };
        let received = VecDeque::new();
        let mut device = Device { requests, seeing, task, handed_in: 0, received, closed: None };
        match device.see().await {
            Seen::Connected => Ok(device),
            Seen::Closed(why) => Err(why),
            other => panic!("before the CONNACK: {other:?}"),
        }
    }

    /// Connects.
    pub(crate) async fn connect(self) -> Device {
        let who = format!("{self:?}");
        self.try_connect().await.unwrap_or_else(|why| panic!("{who}: {why}"))
    }
}

/// TLS with this CA, and with this certificate if there is one.
pub(crate) fn client_config(ca: &Path, pair: Option<&Pair>) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = vec![CertificateDer::from_pem_file(&pair.cert).unwrap()];
            let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    }
}

enum Requests {
    V311(rumqttc::AsyncClient),
    V5(v5::AsyncClient),
}

/// What a device saw.
#[derive(Debug)]
pub(crate) enum Seen {
    Connected,
    /// The publish with this number, counted from 0, has left.
    Sent(usize),
    /// It has its answer; for QoS 0, that it has left.
    Answered(usize, String),
    Subscribed(String),
    Received(String, Vec<u8>),
    /// The connection has ended: the CONNACK's or DISCONNECT's code, or an error.
    Closed(String),
}

/// A connected client. Dropping it breaks the connection without a DISCONNECT.
pub(crate) struct Device {
    requests: Requests,
    seeing: mpsc::Receiver<Seen>,
    task: JoinHandle<()>,
    handed_in: usize,
    /// Seen while something else was waited for.
    received: VecDeque<(String, Vec<u8>)>,
    closed: Option<String>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Device {
    /// The next thing that this device sees.
    pub(crate) async fn see(&mut self) -> Seen {
        if let Some(why) = &self.closed {
            return Seen::Closed(why.clone());
        }
        let seen = tokio::time::timeout(PATIENCE, self.seeing.recv()).await;
        let seen = seen.expect("silence from the broker").expect("a Closed comes last");
        if let Seen::Closed(why) = &seen {
            self.closed = Some(why.clone());
        }
        seen
    }

    /// Hands a publish in and does not wait: its number.
    pub(crate) async fn send(&mut self, topic: &str, qos: u8, payload: &str) -> usize {
        let payload = payload.as_bytes().to_vec();
        let handed_in = match &self.requests {
            Requests::V311(client) => {
                let qos = rumqttc::qos(qos).unwrap();
                client.publish(topic, qos, false, payload).await.map_err(|error| error.to_string())
            }
            Requests::V5(client) => {
                let qos = v5::mqttbytes::qos(qos).unwrap();
                client.publish(topic, qos, false, payload).await.map_err(|error| error.to_string())
            }
        };
        // A connection that has ended takes nothing; its Closed is there to be seen.
        drop(handed_in);
        self.handed_in += 1;
        self.handed_in - 1
    }

    /// Publishes and waits for the answer.
    pub(crate) async fn publish_with(&mut self, topic: &str, qos: u8, payload: &str) -> String {
        let number = self.send(topic, qos, payload).await;
        loop {
            match self.see().await {
                Seen::Answered(answered, code) if answered == number => return code,
                Seen::Received(topic, payload) => self.received.push_back((topic, payload)),
                Seen::Closed(_) => return "closed".to_owned(),
                _ => {}
            }
        }
    }

    /// Publishes by QoS 1 and waits for the PUBACK.
    pub(crate) async fn publish(&mut self, topic: &str, payload: &str) -> String {
        self.publish_with(topic, 1, payload).await
    }

    /// Publishes by QoS 1, which has to be acknowledged.
    pub(crate) async fn publishes(&mut self, topic: &str, payload: &str) {
        assert_eq!(self.publish(topic, payload).await, "Success", "{topic} {payload}");
    }

    /// Subscribes by QoS 1: the SUBACK's code.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> String {
        match &self.requests {
            Requests::V311(client) => {
                client.subscribe(filter, rumqttc::QoS::AtLeastOnce).await.unwrap();
            }
            Requests::V5(client) => {
                client.subscribe(filter, v5::mqttbytes::QoS::AtLeastOnce).await.unwrap();
            }
        }
        loop {
            match self.see().await {
                Seen::Subscribed(code) => return code,
                Seen::Received(topic, payload) => self.received.push_back((topic, payload)),
                Seen::Closed(_) => return "closed".to_owned(),
                _ => {}
            }
        }
    }

    /// The next publish that it receives: topic and payload.
    pub(crate) async fn receive(&mut self) -> (String, String) {
        loop {
            if let Some((topic, payload)) = self.received.pop_front() {
                return (topic, String::from_utf8(payload).unwrap());
            }
            match self.see().await {
                Seen::Received(topic, payload) => self.received.push_back((topic, payload)),
                Seen::Closed(why) => panic!("closed: {why}"),
                _ => {}
            }
        }
    }

    /// Waits for the end of the connection: why.
    pub(crate) async fn closed(&mut self) -> String {
        loop {
            if let Seen::Closed(why) = self.see().await {
                return why;
            }
        }
    }
}

/// Numbers publishes in the order in which they leave, and finds them again by packet id.
#[derive(Default)]
struct Numbers {
    sent: usize,
    by_id: HashMap<u16, usize>,
}

impl Numbers {
    fn sent(&mut self, id: u16) -> Vec<Seen> {
        let number = self.sent;
        self.sent += 1;
        let mut seen = vec![Seen::Sent(number)];
        if id == 0 {
            seen.push(Seen::Answered(number, "Success".to_owned()));
        } else {
            self.by_id.insert(id, number);
        }
        seen
    }

    fn answered(&mut self, id: u16, code: String) -> Vec<Seen> {
        let number = self.by_id.remove(&id);
        number.map(|number| Seen::Answered(number, code)).into_iter().collect()
    }
}

/// Until the connection ends. What the broker said before its end is told before it.
async fn follow_v311(mut events: rumqttc::EventLoop, to: mpsc::Sender<Seen>) {
    let mut numbers = Numbers::default();
    let end = loop {
        match events.poll().await {
            Ok(event) => tell(&to, of_v311(event, &mut numbers)).await,
            Err(error) => break error,
        }
    };
    for event in std::mem::take(&mut events.state.events) {
        tell(&to, of_v311(event, &mut numbers)).await;
    }
    let why = match end {
        rumqttc::ConnectionError::ConnectionRefused(code) => format!("{code:?}"),
        other => other.to_string(),
    };
    tell(&to, vec![Seen::Closed(why)]).await;
}

fn of_v311(event: rumqttc::Event, numbers: &mut Numbers) -> Vec<Seen> {
    use rumqttc::{Event, Outgoing, Packet};
    match event {
        Event::Incoming(Packet::ConnAck(_)) => vec![Seen::Connected],
        Event::Outgoing(Outgoing::Publish(id)) => numbers.sent(id),
        Event::Incoming(Packet::PubAck(ack)) => numbers.answered(ack.pkid, "Success".to_owned()),
        Event::Incoming(Packet::PubComp(ack)) => numbers.answered(ack.pkid, "Success".to_owned()),
        Event::Incoming(Packet::SubAck(ack)) => {
            vec![Seen::Subscribed(format!("{:?}", ack.return_codes[0]))]
        }
        Event::Incoming(Packet::Publish(publish)) => {
            vec![Seen::Received(publish.topic, publish.payload.to_vec())]
        }
        _ => Vec::new(),
    }
}

async fn follow_v5(mut events: v5::EventLoop, to: mpsc::Sender<Seen>) {
    let mut numbers = Numbers::default();
    let end = loop {
        match events.poll().await {
            Ok(event) => tell(&to, of_v5(event, &mut numbers)).await,
            Err(error) => break error,
        }
    };
    for event in std::mem::take(&mut events.state.events) {
        tell(&to, of_v5(event, &mut numbers)).await;
    }
    let why = match end {
        v5::ConnectionError::ConnectionRefused(code) => format!("{code:?}"),
        v5::ConnectionError::MqttState(v5::StateError::ConnFail { reason }) => {
            format!("{reason:?}")
        }
        v5::ConnectionError::MqttState(v5::StateError::ServerDisconnect {
            reason_code, ..
        }) => format!("{reason_code:?}"),
        other => other.to_string(),
    };
    tell(&to, vec![Seen::Closed(why)]).await;
}

fn of_v5(event: v5::Event, numbers: &mut Numbers) -> Vec<Seen> {
    use v5::mqttbytes::v5::{Packet, PubRecReason};
    match event {
        v5::Event::Incoming(Packet::ConnAck(_)) => vec![Seen::Connected],
        v5::Event::Outgoing(rumqttc::Outgoing::Publish(id)) => numbers.sent(id),
        v5::Event::Incoming(Packet::PubAck(ack)) => {
            numbers.answered(ack.pkid, format!("{:?}", ack.reason))
        }
        v5::Event::Incoming(Packet::PubRec(ack)) if ack.reason != PubRecReason::Success => {
            numbers.answered(ack.pkid, format!("{:?}", ack.reason))
        }
        v5::Event::Incoming(Packet::PubComp(ack)) => {
            numbers.answered(ack.pkid, format!("{:?}", ack.reason))
        }
        v5::Event::Incoming(Packet::SubAck(ack)) => {
            vec![Seen::Subscribed(format!("{:?}", ack.return_codes[0]))]
        }
        v5::Event::Incoming(Packet::Publish(publish)) => {
            let topic = String::from_utf8(publish.topic.to_vec()).unwrap();
            vec![Seen::Received(topic, publish.payload.to_vec())]
        }
        _ => Vec::new(),
    }
}

async fn tell(to: &mpsc::Sender<Seen>, seen: Vec<Seen>) {
    for seen in seen {
        // A device that was dropped wants to know nothing more.
        drop(to.send(seen).await);
    }
}
