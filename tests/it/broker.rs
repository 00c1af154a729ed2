//! The broker with a real store and a real intake, over real sockets.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use watchbell::broker::acl::AccessEntry;
use watchbell::broker::auth::hash_password;
use watchbell::broker::config::Config;
use watchbell::broker::{BindError, Broker, Parts};
use watchbell::clock::{Clock, Timestamp};
use watchbell::intake::Intake;
use watchbell::model::Reason;
use watchbell::store::{Device, Store};
use watchbell::telemetry::{ByReason, Metrics};

use crate::eventually;
use crate::intake;
use crate::raw::{Connect, Raw, packet, publish, subscribe, v3, v5};

const RULES: &str = r#"
    [[contact]]
    name = "ana"
    sms = "+4915550100001"

    [[rule]]
    name = "hot"
    topic = "ovens/{oven}/temp"
    decode = "number"
    when = "payload > 200.0"
    text = "oven {{ oven }} is hot"
    to = ["ana"]
    by = ["sms"]
"#;

/// A broker and what is behind it. Ends with the test and its runtime.
struct Served {
    plain: SocketAddr,
    tls: SocketAddr,
    metrics: Metrics,
    store: Store,
    intake: Intake,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    directory: tempfile::TempDir,
}

impl Served {
    async fn start() -> Self {
        Self::with("", |_| {}).await
    }

    /// `access` is TOML with `[[access]]` entries.
    async fn with(access: &str, adjust: impl FnOnce(&mut Config)) -> Self {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct File {
            access: Vec<AccessEntry>,
        }
        let directory = tempfile::tempdir().unwrap();
        let certs = Certs::write(directory.path());
        let metrics = Metrics::new();
        let data = directory.path().join("data");
        let store = Store::open(&data, &Default::default(), &metrics).unwrap();
        let (intake, _ended, _dispatcher) = intake::start(&store, &metrics, RULES).await;
        let mut config = Config {
            listen: "127.0.0.1:0".to_owned(),
            listen_tls: "127.0.0.1:0".to_owned(),
            cert: certs.server_cert,
            key: certs.server_key,
            client_ca: certs.ca.into(),
            ..Config::default()
        };
        adjust(&mut config);
        let parts = Parts {
            intake: intake.clone(),
            store: store.clone(),
            metrics: metrics.clone(),
            clock: Clock::System,
        };
        let access = toml::from_str::<File>(access).unwrap().access;
        let broker = Broker::bind(&config, access, parts).await.unwrap();
        let (plain, tls) = (broker.listen().unwrap(), broker.listen_tls().unwrap());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(broker.run(stopped));
        Self { plain, tls, metrics, store, intake, stop, task, directory }
    }

    fn refused(&self, reason: Reason) -> u64 {
        self.metrics.refused.get_or_create(&ByReason { reason }).get()
    }

    fn closed(&self, reason: Reason) -> u64 {
        self.metrics.connections_closed.get_or_create(&ByReason { reason }).get()
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.metrics.fanout_dropped.get_or_create(&ByReason { reason }).get()
    }

    async fn connected(&self, connect: Connect<'_>) -> Raw {
        Raw::connected(self.plain, &connect.bytes()).await.0
    }

    /// Connects and says whether the session was there before.
    async fn resumed(&self, connect: &Connect<'_>) -> (Raw, bool) {
        let (raw, connack) = Raw::connected(self.plain, &connect.bytes()).await;
        (raw, connack[2] == 1)
    }

    /// An MQTT 3.1.1 client that subscribes to `filter` with QoS 2.
    async fn subscriber(&self, id: &str, filter: &str) -> Raw {
        let mut raw = self.connected(v3(id)).await;
        raw.send(&subscribe(1, filter, 2, None)).await;
        raw.expect(b"\x90\x03\x00\x01\x02").await;
        raw
    }

    async fn add_device(&self, user: &str, password: &str, client_ids: &[&str]) {
        let device = Device {
            user: user.to_owned(),
            password_hash: hash_password(password).unwrap(),
            client_ids: client_ids.iter().map(|id| (*id).to_owned()).collect(),
            groups: Vec::new(),
            added_at: Timestamp::default(),
        };
        self.store.put_device(&device).await.unwrap();
    }

    /// Connects over TLS, with the certificate of a client if one is named.
    async fn over_tls(&self, client: Option<&str>) -> std::io::Result<Raw> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let ca = CertificateDer::from_pem_file(self.directory.path().join("ca.pem")).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(ca).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            Some(name) => {
                let (cert, key) = Certs::client(self.directory.path(), name);
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let socket = TcpStream::connect(self.tls).await?;
        let name = ServerName::try_from("localhost").unwrap();
        Ok(Raw::over(connector.connect(name, socket).await?))
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
    }
}

/// A CA and a server certificate in a directory.
struct Certs {
    ca: PathBuf,
    server_cert: PathBuf,
    server_key: PathBuf,
}

impl Certs {
    fn write(directory: &Path) -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_cert = params.self_signed(&ca_key).unwrap();
        let path = |name: &str| directory.join(name);
        std::fs::write(path("ca.pem"), ca_cert.pem()).unwrap();
        std::fs::write(path("ca.key"), ca_key.serialize_pem()).unwrap();
        let issuer = rcgen::Issuer::from_params(&params, &ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(path("server.pem"), cert.pem()).unwrap();
        std::fs::write(path("server.key"), key.serialize_pem()).unwrap();
        Self { ca: path("ca.pem"), server_cert: path("server.pem"), server_key: path("server.key") }
    }

    fn client(directory: &Path, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
        let ca_key = rcgen::KeyPair::from_pem(&read("ca.key")).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.pem"), ca_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let cert = params.signed_by(&key, &issuer).unwrap();
        (cert.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

// Bad input.

/// Sends `bytes` on a fresh connection of that version. The broker answers exactly `answers` and
/// closes, and counts `reason`; a bystander does not notice.
async fn check_bad(
    served: &Served,
    version: Connect<'_>,
    bytes: &[u8],
    answer: &[u8],
    why: Reason,
) {
    let mut bystander = served.subscriber("bystander", "#").await;
    let (before, closed_before) = (served.refused(why), served.closed(why));
    let mut bad = served.connected(version).await;
    bad.send(bytes).await;
    let mut said = Vec::new();
    while let Some(packet) = bad.packet().await {
        said.extend(packet);
    }
    // The reason string behind the code is for people.
    assert!(said.starts_with(answer), "{bytes:02x?}: {said:02x?} is not {answer:02x?}");
    assert_eq!(said.is_empty(), answer.is_empty(), "{bytes:02x?}: {said:02x?}");
    eventually(|| served.refused(why) == before + 1).await;
    eventually(|| served.closed(why) == closed_before + 1).await;
    bystander.expect_alive().await;
}

#[tokio::test]
async fn bad_packets_get_their_answer_and_nobody_else_notices() {
    let served = Served::with("", |config| config.packet_bytes_max = 2048).await;
    let disconnect = |code: u8, what: &str| {
        let mut body = vec![code, u8::try_from(what.len() + 3).unwrap(), 0x1f, 0];
        body.push(u8::try_from(what.len()).unwrap());
        body.extend(what.as_bytes());
        packet(0xe0, &body)
    };
    let none = Some(&[][..]);
    let too_long = vec![b'x'; 2048];
    for (bytes, code, what, why) in [
        (b"\xff\xff\xff\xff\xff".to_vec(), 0x81, "remaining", Reason::MalformedPacket),
        (b"\x00\x00".to_vec(), 0x82, "a packet", Reason::ProtocolError),
        (publish(0, 0, "a/+", none, b""), 0x90, "an empty", Reason::BadTopic),
        (publish(2, 1, "a/#", none, b""), 0x90, "an empty", Reason::BadTopic),
        (publish(0, 0, "", none, b""), 0x82, "neither", Reason::ProtocolError),
        (publish(0, 0, "a\0b", none, b""), 0x81, "U+0000", Reason::MalformedPacket),
        (b"\x30\x05\x00\x02\xc3\x28\x00".to_vec(), 0x81, "a topic that", Reason::MalformedPacket),
        (b"\x30\x06\x00\x03\xed\xa0\x80\x00".to_vec(), 0x81, "a topic", Reason::MalformedPacket),
        // QoS 1 with packet id 0: mqtt-protocol-core 0.7.9 can panic on it.
        (publish(2, 0, "a", none, b""), 0x82, "packet id 0", Reason::ProtocolError),
        (publish(0, 0, "a", none, &too_long), 0x95, "packet is", Reason::PacketTooLarge),
        (publish(0, 0, "a", Some(b"\x23\x00\x11"), b""), 0x94, "a topic", Reason::ProtocolError),
        (publish(0, 0, "", Some(b"\x23\x00\x01"), b""), 0x94, "a topic", Reason::ProtocolError),
        (b"\xf0\x00".to_vec(), 0x82, "AUTH", Reason::ProtocolError),
        (subscribe(1, "$share/g/a", 4, none), 0x82, "No Local", Reason::ProtocolError),
        (
            b"\xe0\x07\x00\x05\x11\x00\x00\x00\x01".to_vec(),
            0x82,
            "a session",
            Reason::ProtocolError,
        ),
    ] {
        let answer = disconnect(code, what);
        // Code only: the text after it is longer than `what`.
        check_bad(&served, v5("bad"), &bytes, &answer[..1], why).await;
        let mut bad = served.connected(v5("bad")).await;
        bad.send(&bytes).await;
        let said = bad.packet().await.expect("a DISCONNECT");
        assert_eq!((said[0], said[2]), (0xe0, code), "{bytes:02x?}: {said:02x?}");
        let text = String::from_utf8_lossy(&said[7..]).into_owned();
        assert!(text.starts_with(what), "{bytes:02x?}: {text}");
    }
    // A second CONNECT is not answered: Eclipse's suite, which waits for a CONNACK in one thread and
    // for anything in another, reads half of an answer in each and then hangs.
    let again = v5("again").bytes();
    check_bad(&served, v5("bad"), &again, b"", Reason::ProtocolError).await;
    for (bytes, why) in [
        (publish(0, 0, "a/+", None, b""), Reason::BadTopic),
        (publish(0, 0, "", None, b""), Reason::BadTopic),
        (publish(2, 0, "a", None, b""), Reason::ProtocolError),
        (publish(2, 1, "$SYS/a", None, b""), Reason::BadTopic),
        (publish(0, 0, &"x".repeat(513), None, b""), Reason::BadTopic),
        (v3("again").bytes(), Reason::ProtocolError),
        (b"\x20\x02\x00\x00".to_vec(), Reason::ProtocolError),
    ] {
        check_bad(&served, v3("bad"), &bytes, b"", why).await;
    }
}

#[tokio::test]
async fn what_is_no_connect_is_closed() {
    let served = Served::with("", |config| config.connect_timeout = "300ms".parse().unwrap()).await;
    let whole = v3("a").bytes();
    for (bytes, why) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Reason::MalformedPacket),
        (b"\x10\xff\xff\x7f", Reason::PacketTooLarge),
        (b"\xc0\x00", Reason::MalformedPacket),
        (b"\x10\x08\x00\x02hj\x04\x02\x00\x00", Reason::MalformedPacket),
        (&whole[..whole.len() / 2], Reason::ConnectTimeout),
        (b"", Reason::ConnectTimeout),
    ] {
        let before = served.closed(why);
        let mut raw = Raw::open(served.plain).await;
        raw.send(bytes).await;
        raw.expect_closed().await;
        eventually(|| served.closed(why) == before + 1).await;
    }
    let half = TcpStream::connect(served.plain).await.unwrap();
    half.try_write(&whole[..3]).unwrap();
    drop(half);
    eventually(|| served.closed(Reason::ConnectionLost) == 1).await;

    // Byte by byte, and with the next packet right behind it.
    let mut slow = Raw::open(served.plain).await;
    for byte in &whole {
        slow.send(&[*byte]).await;
        tokio::task::yield_now().await;
    }
    slow.expect(b"\x20\x02\x00\x00").await;
    let mut both = v3("b").bytes();
    both.extend(b"\xc0\x00");
    let mut eager = Raw::open(served.plain).await;
    eager.send(&both).await;
    eager.expect(b"\x20\x02\x00\x00").await;
    eager.expect(b"\xd0\x00").await;
}

#[tokio::test]
async fn a_silent_peer_on_the_tls_port_keeps_nobody_waiting() {
    let served =
        Served::with("", |config| config.handshake_timeout = "500ms".parse().unwrap()).await;
    let mut silent = Raw::open(served.tls).await;
    let mut other = served.over_tls(None).await.unwrap();
    other.send(&v3("a").bytes()).await;
    other.expect(b"\x20\x02\x00\x00").await;
    silent.expect_closed().await;
    eventually(|| served.closed(Reason::ConnectTimeout) == 1).await;
    let mut garbage = Raw::open(served.tls).await;
    garbage.send(&v3("plain on the TLS port").bytes()).await;
    while garbage.packet().await.is_some() {}
    eventually(|| served.closed(Reason::TlsFailed) == 1).await;
    other.expect_alive().await;
}

#[tokio::test]
async fn refused_connects_say_why() {
    let served = Served::start().await;
    let long = "x".repeat(65);
    for (connect, expected, why) in [
        (v3("a/b"), &b"\x20\x02\x00\x02"[..], Reason::BadClientId),
        (v3(&long), b"\x20\x02\x00\x02", Reason::BadClientId),
        (Connect { keep: true, ..v3("") }, b"\x20\x02\x00\x02", Reason::BadClientId),
        (
            Connect { user: Some(("nobody", "x")), ..v3("a") },
            b"\x20\x02\x00\x04",
            Reason::BadCredentials,
        ),
        (v5("a+"), b"\x85", Reason::BadClientId),
        (Connect { user: Some(("nobody", "x")), ..v5("a") }, b"\x86", Reason::BadCredentials),
        (Connect { properties: b"\x15\x00\x01x", ..v5("a") }, b"\x8c", Reason::NotAuthorized),
        (Connect { properties: b"\x21\x00\x00", ..v5("a") }, b"\x82", Reason::ProtocolError),
        (Connect { will: Some((0, "a/#", b"", b"")), ..v5("a") }, b"\x90", Reason::BadTopic),
        (Connect { will: Some((0, "$SYS", b"", b"")), ..v5("a") }, b"\x90", Reason::BadTopic),
    ] {
        let before = served.refused(why);
        let mut raw = Raw::open(served.plain).await;
        raw.send(&connect.bytes()).await;
        let connack = raw.packet().await.expect("a CONNACK");
        if connect.v5 {
            assert_eq!((connack[0], connack[3]), (0x20, expected[0]), "{}", connect.id);
        } else {
            assert_eq!(connack, expected, "{}", connect.id);
        }
        raw.expect_closed().await;
        eventually(|| served.refused(why) == before + 1).await;
    }
    let mut old = Raw::open(served.plain).await;
    old.send(b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01a").await;
    old.expect(b"\x20\x02\x00\x01").await;
    old.expect_closed().await;

    // Nothing wrong with these.
    let (_, connack) = Raw::connected(served.plain, &v5("").bytes()).await;
    let connack = String::from_utf8_lossy(&connack).into_owned();
    assert!(connack.contains("auto-"), "{connack}");
    served.connected(v3("")).await.expect_alive().await;
    // Topic Alias Maximum 0: mqtt-protocol-core 0.7.9 panics on it.
    let zero = Connect { properties: b"\x22\x00\x00", ..v5("zero") };
    served.connected(zero).await.expect_alive().await;
}

// Durability.

#[tokio::test]
async fn an_alert_is_on_disk_before_its_puback() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "ovens/#").await;
    let mut oven = served.connected(v3("oven-1")).await;
    oven.send(&publish(2, 1, "ovens/1/temp", None, b"250")).await;
    oven.expect(b"\x40\x02\x00\x01").await;
    assert_eq!(served.store.outbox().count(), 1);
    let expected = publish(2, 1, "ovens/1/temp", None, b"250");
    watcher.expect(&expected).await;
    // QoS 0 and QoS 2 are committed too.
    oven.send(&publish(0, 0, "ovens/2/temp", None, b"250")).await;
    oven.send(&publish(4, 2, "ovens/3/temp", None, b"250")).await;
    oven.expect(b"\x50\x02\x00\x02").await;
    assert_eq!(served.store.outbox().count(), 3);
    assert_eq!(served.metrics.publishes_matched.get(), 3);
}

#[tokio::test]
async fn what_intake_refuses_is_neither_acknowledged_nor_fanned_out() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "#").await;
    served.intake.set_disk_low(true);
    let mut modern = served.connected(v5("modern")).await;
    modern.send(&publish(2, 1, "ovens/1/temp", Some(b""), b"250")).await;
    modern.expect(b"\x40\x03\x00\x01\x97").await;
    modern.send(&publish(4, 2, "ovens/1/temp", Some(b""), b"250")).await;
    modern.expect(b"\x50\x03\x00\x02\x97").await;
    modern.send(&publish(0, 0, "ovens/1/temp", Some(b""), b"250")).await;
    modern.expect_alive().await;
    let mut old = served.connected(v3("old")).await;
    old.send(&publish(2, 1, "ovens/1/temp", None, b"250")).await;
    old.expect_closed().await;
    eventually(|| served.closed(Reason::DiskLow) == 1).await;
    assert_eq!(served.refused(Reason::DiskLow), 4);
    // Nothing of it came out, and what no rule wants goes on.
    modern.send(&publish(0, 0, "other", Some(b""), b"x")).await;
    watcher.expect(&publish(0, 0, "other", None, b"x")).await;
    served.intake.set_disk_low(false);
    modern.send(&publish(2, 1, "ovens/1/temp", Some(b""), b"250")).await;
    modern.expect(b"\x40\x02\x00\x01").await;
}

#[tokio::test]
async fn acknowledgements_and_fan_out_keep_the_order_of_receipt() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "#").await;
    let mut oven = served.connected(v3("oven")).await;
    let mut burst = Vec::new();
    // Every other one waits for the disk; more than may be open at a time.
    for id in 1..=600_u16 {
        let topic = if id % 2 == 0 { format!("ovens/{id}/temp") } else { format!("other/{id}") };
        burst.extend(publish(2, id, &topic, None, b"250"));
    }
    oven.send(&burst).await;
    for id in 1..=600_u16 {
        let [high, low] = id.to_be_bytes();
        oven.expect(&[0x40, 2, high, low]).await;
    }
    assert_eq!(served.store.outbox().count(), 300);
    for id in 1..=600_u16 {
        let topic = if id % 2 == 0 { format!("ovens/{id}/temp") } else { format!("other/{id}") };
        let got = watcher.packet().await.expect("a publish");
        assert!(got[4..].starts_with(topic.as_bytes()), "{id}: {got:02x?}");
        let at = 4 + topic.len();
        watcher.send(&[0x40, 2, got[at], got[at + 1]]).await;
    }
}

#[tokio::test]
async fn a_publish_is_taken_though_its_publisher_has_gone() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "ovens/#").await;
    for round in 0..20 {
        let mut oven = served.connected(v3("oven")).await;
        let topic = format!("ovens/{round}/temp");
        oven.send(&publish(2, 1, &topic, None, b"250")).await;
        drop(oven);
        let got = watcher.packet().await.expect("a publish");
        assert!(got[4..].starts_with(topic.as_bytes()), "{got:02x?}");
        let at = 4 + topic.len();
        watcher.send(&[0x40, 2, got[at], got[at + 1]]).await;
    }
    assert_eq!(served.store.outbox().count(), 20);
}

// Sessions.

/// MQTT 5: a session that waits for an hour.
const HOUR: &[u8] = b"\x11\x00\x00\x0e\x10";

#[tokio::test]
async fn a_takeover_tells_the_old_connection_and_spares_the_new_one() {
    let served = Served::start().await;
    let keep = Connect { keep: true, properties: HOUR, ..v5("pump") };
    let (mut first, present) = served.resumed(&keep).await;
    assert!(!present);
    first.send(&subscribe(1, "t", 1, Some(b""))).await;
    first.expect(b"\x90\x04\x00\x01\x00\x01").await;
    let (mut second, present) = served.resumed(&keep).await;
    assert!(present);
    let told = first.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x8e));
    first.expect_closed().await;
    eventually(|| served.closed(Reason::TakenOver) == 1).await;
    // The subscription is the new connection's, and the late end of the old one changes nothing.
    drop(first);
    let mut other = served.connected(v3("other")).await;
    other.send(&publish(0, 0, "t", None, b"x")).await;
    second.expect(&publish(0, 0, "t", Some(b""), b"x")).await;
    second.expect_alive().await;
}

#[tokio::test]
async fn many_takeovers_at_once_leave_exactly_one() {
    let served = Served::start().await;
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let (address, connect) = (served.plain, v3("pump").bytes());
            tokio::spawn(async move {
                let mut raw = Raw::open(address).await;
                raw.send(&connect).await;
                (raw.packet().await, raw)
            })
        })
        .collect();
    let mut open = Vec::new();
    for client in clients {
        let (connack, raw) = client.await.unwrap();
        // One that waits while a later one comes is told so.
        match connack.as_deref() {
            Some(b"\x20\x02\x00\x00") => open.push(raw),
            other => assert_eq!(other, Some(&b"\x20\x02\x00\x03"[..])),
        }
    }
    eventually(|| served.metrics.connections.get() == 1).await;
    assert_eq!(served.closed(Reason::TakenOver), 19);
    assert_eq!(served.metrics.sessions.get(), 1);
    let mut alive = 0;
    for mut raw in open {
        raw.send(b"\xc0\x00").await;
        alive += usize::from(raw.packet().await.as_deref() == Some(b"\xd0\x00"));
    }
    assert_eq!(alive, 1);
}

#[tokio::test]
async fn a_clean_start_or_another_owner_does_not_get_the_old_session() {
    let served = Served::start().await;
    served.add_device("ana", "secret", &["pump"]).await;
    let keep = Connect { keep: true, ..v3("pump") };
    let (anonymous, present) = served.resumed(&keep).await;
    assert!(!present);
    drop(anonymous);
    let named = Connect { user: Some(("ana", "secret")), ..keep.clone() };
    let (mut ana, present) = served.resumed(&named).await;
    assert!(!present);
    ana.send(b"\xe0\x00").await;
    ana.expect_closed().await;
    assert!(served.resumed(&named).await.1);
    assert!(!served.resumed(&Connect { keep: false, ..named.clone() }).await.1);
    eventually(|| served.metrics.sessions.get() == 0 || served.metrics.connections.get() == 0)
        .await;
}

#[tokio::test]
async fn a_session_expires() {
    let served = Served::start().await;
    let second = Connect { keep: true, properties: b"\x11\x00\x00\x00\x01", ..v5("pump") };
    let (raw, _) = served.resumed(&second).await;
    drop(raw);
    eventually(|| served.metrics.connections.get() == 0).await;
    assert_eq!(served.metrics.sessions.get(), 1);
    eventually(|| served.metrics.sessions.get() == 0).await;
    assert!(!served.resumed(&second).await.1);
}

#[tokio::test]
async fn a_resumed_session_gets_everything_and_no_more_at_a_time_than_it_takes() {
    let served = Served::start().await;
    // Receive Maximum 2, and a session that waits.
    let connect =
        Connect { keep: true, properties: b"\x21\x00\x02\x11\x00\x00\x0e\x10", ..v5("slow") };
    let (mut slow, _) = served.resumed(&connect).await;
    slow.send(&subscribe(1, "t", 1, Some(b""))).await;
    slow.expect(b"\x90\x04\x00\x01\x00\x01").await;
    let mut source = served.connected(v3("source")).await;
    for id in 1..=5 {
        source.send(&publish(2, id, "t", None, &[b'0' + u8::try_from(id).unwrap()])).await;
        source.expect(&[0x40, 2, 0, u8::try_from(id).unwrap()]).await;
    }
    slow.expect(&publish(2, 1, "t", Some(b""), b"1")).await;
    slow.expect(&publish(2, 2, "t", Some(b""), b"2")).await;
    // Two are open: the third waits.
    slow.expect_alive().await;
    drop(slow);
    let (mut slow, present) = served.resumed(&connect).await;
    assert!(present);
    slow.expect(&publish(10, 1, "t", Some(b""), b"1")).await;
    slow.expect(&publish(10, 2, "t", Some(b""), b"2")).await;
    slow.expect_alive().await;
    for id in 1..=5 {
        slow.send(&[0x40, 2, 0, id]).await;
        if id <= 3 {
            slow.expect(&publish(2, u16::from(id) + 2, "t", Some(b""), &[b'2' + id])).await;
        }
    }
    slow.expect_alive().await;
}

#[tokio::test]
async fn qos_2_is_delivered_once_though_it_is_sent_again_after_a_reconnect() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "#").await;
    let keep = Connect { keep: true, ..v3("oven") };
    for topic in ["plain", "ovens/1/temp"] {
        let (mut oven, _) = served.resumed(&keep).await;
        oven.send(&publish(4, 7, topic, None, b"250")).await;
        oven.expect(b"\x50\x02\x00\x07").await;
        drop(oven);
        let (mut oven, present) = served.resumed(&keep).await;
        assert!(present);
        oven.send(&publish(12, 7, topic, None, b"250")).await;
        oven.expect(b"\x50\x02\x00\x07").await;
        oven.send(b"\x62\x02\x00\x07").await;
        oven.expect(b"\x70\x02\x00\x07").await;
        // Released: the id is free for a new one.
        oven.send(&publish(4, 7, topic, None, b"1")).await;
        oven.expect(b"\x50\x02\x00\x07").await;
        oven.send(b"\x62\x02\x00\x07").await;
        oven.expect(b"\x70\x02\x00\x07").await;
        let mut ids = Vec::new();
        for payload in [&b"250"[..], b"1"] {
            let got = watcher.packet().await.expect("a publish");
            assert!(got.ends_with(payload), "{got:02x?}");
            let at = 4 + topic.len();
            ids.push([got[at], got[at + 1]]);
        }
        for [high, low] in ids {
            watcher.send(&[0x50, 2, high, low]).await;
            watcher.expect(&[0x62, 2, high, low]).await;
            watcher.send(&[0x70, 2, high, low]).await;
        }
    }
    watcher.expect_alive().await;
    assert_eq!(served.store.outbox().count(), 1);
}

#[tokio::test]
async fn qos_2_sent_twice_while_the_first_waits_for_the_disk_is_taken_once() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "#").await;
    let mut oven = served.connected(v3("oven")).await;
    let mut both = publish(4, 7, "ovens/1/temp", None, b"250");
    both.extend(publish(12, 7, "ovens/1/temp", None, b"250"));
    oven.send(&both).await;
    oven.expect(b"\x50\x02\x00\x07").await;
    oven.expect_alive().await;
    oven.send(b"\x62\x02\x00\x07").await;
    oven.expect(b"\x70\x02\x00\x07").await;
    watcher.expect(&publish(4, 1, "ovens/1/temp", None, b"250")).await;
    watcher.expect_alive().await;
    assert_eq!(served.store.outbox().count(), 1);
}

#[tokio::test]
async fn a_pubrel_for_nothing_is_answered_and_one_before_pubrec_ends_the_connection() {
    let served = Served::start().await;
    let mut old = served.connected(v3("old")).await;
    old.send(b"\x62\x02\x00\x09").await;
    old.expect(b"\x70\x02\x00\x09").await;
    let mut modern = served.connected(v5("modern")).await;
    modern.send(b"\x62\x02\x00\x09").await;
    modern.expect(b"\x70\x03\x00\x09\x92").await;
    let mut both = publish(4, 7, "ovens/1/temp", Some(b""), b"250");
    both.extend(b"\x62\x02\x00\x07");
    modern.send(&both).await;
    // It was taken, and its PUBREC goes out before the goodbye.
    modern.expect(b"\x50\x02\x00\x07").await;
    let told = modern.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x82));
    assert_eq!(served.store.outbox().count(), 1);
}

#[tokio::test]
async fn receive_maximum_begins_anew_with_each_connection() {
    let served = Served::with("", |config| config.commits_max = 3).await;
    let keep = Connect { keep: true, properties: HOUR, ..v5("eager") };
    for ids in [1..=3_u8, 4..=6] {
        let (mut raw, _) = served.resumed(&keep).await;
        for id in ids {
            raw.send(&publish(4, id.into(), "t", Some(b""), b"")).await;
            raw.expect(&[0x50, 2, 0, id]).await;
        }
    }
    let (mut raw, _) = served.resumed(&keep).await;
    for id in 1..=6 {
        raw.send(&[0x62, 2, 0, id]).await;
        raw.expect(&[0x70, 2, 0, id]).await;
    }
}

#[tokio::test]
async fn publishes_that_wait_for_the_disk_are_bounded_by_bytes_too() {
    let served = Served::with("", |config| {
        config.packet_bytes_max = 2048;
        config.queue_bytes_max = 2048;
    })
    .await;
    let mut oven = served.connected(v3("oven")).await;
    let mut burst = Vec::new();
    for id in 1..=100_u16 {
        // A number with many zeros before it.
        let payload = format!("{:01000}", 250);
        burst.extend(publish(2, id, &format!("ovens/{id}/temp"), None, payload.as_bytes()));
    }
    oven.send(&burst).await;
    for id in 1..=100 {
        oven.expect(&[0x40, 2, 0, id]).await;
    }
}

#[tokio::test]
async fn what_was_sent_before_a_half_close_is_taken_and_answered() {
    let served = Served::start().await;
    let mut bytes = v3("brief").bytes();
    bytes.extend(publish(2, 1, "ovens/1/temp", None, b"250"));
    let mut socket = TcpStream::connect(served.plain).await.unwrap();
    socket.write_all(&bytes).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut said = Vec::new();
    socket.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"\x20\x02\x00\x00\x40\x02\x00\x01");
    assert_eq!(served.store.outbox().count(), 1);
}

/// On one worker thread, which is kept busy until both have arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_subscribe_that_came_before_a_publish_is_served_before_it() {
    let served = Served::start().await;
    let mut reader = served.connected(v3("reader")).await;
    let mut source = served.connected(v3("source")).await;
    for id in 1..=20_u8 {
        reader.expect_alive().await;
        source.expect_alive().await;
        let (busy, until_dropped) = std::sync::mpsc::channel::<()>();
        let (begin, begun) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            begin.send(()).unwrap();
            until_dropped.recv().unwrap_err();
        });
        begun.await.unwrap();
        let topic = format!("t/{id}");
        reader.send(&subscribe(id.into(), &topic, 0, None)).await;
        source.send(&publish(0, 0, &topic, None, b"x")).await;
        drop(busy);
        reader.expect(&[0x90, 3, 0, id, 0]).await;
        reader.expect(&publish(0, 0, &topic, None, b"x")).await;
    }
}

#[tokio::test]
async fn tls_records_of_one_byte_will_do() {
    let served = Served::start().await;
    let mut raw = served.over_tls(None).await.unwrap();
    let mut bytes = v3("slow").bytes();
    bytes.extend(publish(2, 1, "ovens/1/temp", None, b"250"));
    for byte in bytes {
        raw.send(&[byte]).await;
    }
    raw.expect(b"\x20\x02\x00\x00").await;
    raw.expect(b"\x40\x02\x00\x01").await;
}

#[tokio::test]
async fn nothing_is_sent_that_is_over_the_client_s_maximum_packet_size() {
    let served = Served::start().await;
    // 10 bytes: not even the CONNACK.
    let tiny = Connect { properties: b"\x27\x00\x00\x00\x0a", ..v5("tiny") };
    let mut raw = Raw::open(served.plain).await;
    raw.send(&tiny.bytes()).await;
    raw.expect_closed().await;
    eventually(|| served.closed(Reason::PacketTooLarge) == 1).await;
    assert_eq!(served.metrics.sessions.get(), 0);
    // 20 bytes, and an authentication method, which is refused: without the reason in words.
    let properties = b"\x27\x00\x00\x00\x14\x15\x00\x01x";
    let mut raw = Raw::open(served.plain).await;
    raw.send(&Connect { properties, ..v5("small") }.bytes()).await;
    raw.expect(b"\x20\x03\x00\x8c\x00").await;
    raw.expect_closed().await;
    let small = Connect { properties: &properties[..5], ..v5("small") };
    let mut raw = served.connected(small.clone()).await;
    raw.send(b"\xf0\x00").await;
    raw.expect(b"\xe0\x02\x82\x00").await;
    raw.expect_closed().await;
    // A SUBACK cannot be shortened.
    let mut body = b"\x00\x01\x00".to_vec();
    for _ in 0..20 {
        body.extend(b"\x00\x01t\x00");
    }
    let mut raw = served.connected(small).await;
    raw.send(&packet(0x82, &body)).await;
    raw.expect(b"\xe0\x02\x95\x00").await;
    raw.expect_closed().await;
}

#[tokio::test]
async fn a_client_over_its_receive_maximum_is_told() {
    let served = Served::with("", |config| config.commits_max = 3).await;
    let mut raw = served.connected(v5("eager")).await;
    for id in 1..=3 {
        raw.send(&publish(4, id, "t", Some(b""), b"")).await;
        raw.expect(&[0x50, 2, 0, u8::try_from(id).unwrap()]).await;
    }
    raw.send(&publish(4, 4, "t", Some(b""), b"")).await;
    let told = raw.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x93));
    // 3.1.1 has no such limit.
    let mut old = served.connected(v3("old")).await;
    for id in 1..=9 {
        old.send(&publish(4, id, "t", None, b"")).await;
        old.expect(&[0x50, 2, 0, u8::try_from(id).unwrap()]).await;
    }
}

#[tokio::test]
async fn a_queue_is_bounded_and_its_losses_are_counted() {
    let served = Served::with("", |config| config.queue_messages_max = 3).await;
    let keep = Connect { keep: true, ..v3("away") };
    let (mut away, _) = served.resumed(&keep).await;
    away.send(&subscribe(1, "t", 1, None)).await;
    away.expect(b"\x90\x03\x00\x01\x01").await;
    drop(away);
    eventually(|| served.metrics.connections.get() == 0).await;
    let mut source = served.connected(v3("source")).await;
    for id in 1..=5 {
        source.send(&publish(2, id, "t", None, b"x")).await;
        source.expect(&[0x40, 2, 0, u8::try_from(id).unwrap()]).await;
    }
    // QoS 0 is not kept for one who is away.
    source.send(&publish(0, 0, "t", None, b"x")).await;
    source.expect_alive().await;
    assert_eq!(served.dropped(Reason::QueueFull), 2);
    let (mut away, present) = served.resumed(&keep).await;
    assert!(present);
    for id in 1..=3 {
        away.expect(&publish(2, id, "t", None, b"x")).await;
    }
    away.expect_alive().await;
}

#[tokio::test]
async fn a_client_that_is_silent_too_long_is_closed_and_one_without_keep_alive_is_not() {
    let served = Served::start().await;
    let mut forever = served.connected(v3("forever")).await;
    let mut raw = served.connected(Connect { keep_alive: 1, ..v5("silent") }).await;
    let told = raw.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x8d));
    eventually(|| served.closed(Reason::KeepAliveTimeout) == 1).await;
    forever.expect_alive().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_slows_nobody() {
    let served = Served::with("", |config| {
        config.write_timeout = "300ms".parse().unwrap();
        config.queue_messages_max = 60_000;
        config.queue_bytes_max = 1 << 30;
    })
    .await;
    let mut deaf = served.connected(v3("deaf")).await;
    deaf.send(&subscribe(1, "t", 0, None)).await;
    deaf.expect(b"\x90\x03\x00\x01\x00").await;
    let mut source = served.connected(v3("source")).await;
    let payload = vec![0; 100_000];
    for _ in 0..300 {
        source.send(&publish(0, 0, "t", None, &payload)).await;
    }
    source.expect_alive().await;
    eventually(|| served.closed(Reason::WriteTimeout) == 1).await;
    source.expect_alive().await;
}

#[tokio::test]
async fn while_the_disk_is_low_only_what_has_to_be_on_disk_is_refused() {
    let served = Served::start().await;
    let keeping = Connect { keep: true, ..v3("keeping") };
    let mut waiting = served.connected(keeping).await;
    waiting.send(&subscribe(1, "kept", 1, None)).await;
    waiting.expect(b"\x90\x03\x00\x01\x01").await;
    let mut watcher = served.subscriber("watcher", "passing").await;
    served.intake.set_disk_low(true);
    let mut device = served.connected(v5("device")).await;
    for (flags, topic) in [(2, "kept"), (3, "passing")] {
        device.send(&publish(flags, 1, topic, Some(b""), b"x")).await;
        device.expect(b"\x40\x03\x00\x01\x97").await;
    }
    assert_eq!(served.refused(Reason::DiskLow), 2);
    let mut old = served.connected(v3("old")).await;
    old.send(&publish(2, 1, "kept", None, b"x")).await;
    old.expect_closed().await;
    device.send(&publish(2, 2, "passing", Some(b""), b"x")).await;
    device.expect(b"\x40\x02\x00\x02").await;
    watcher.expect(&publish(2, 1, "passing", None, b"x")).await;
    // Nor is QoS 0 touched.
    device.send(&publish(0, 0, "kept", Some(b""), b"y")).await;
    waiting.expect(&publish(0, 0, "kept", None, b"y")).await;
    served.intake.set_disk_low(false);
    device.send(&publish(2, 3, "kept", Some(b""), b"z")).await;
    device.expect(b"\x40\x02\x00\x03").await;
    waiting.expect(&publish(2, 1, "kept", None, b"z")).await;
}

#[tokio::test]
async fn a_client_that_acknowledges_nothing_is_disconnected_and_its_session_goes_on() {
    let served = Served::with("", |config| {
        config.write_timeout = "100ms".parse().unwrap();
        config.queue_messages_max = 2;
        config.inflight_max = 1;
    })
    .await;
    let keeping = Connect { keep: true, properties: b"\x11\x00\x00\x0e\x10", ..v5("keeping") };
    let mut stuck = served.connected(keeping.clone()).await;
    stuck.send(&subscribe(1, "t", 1, Some(b""))).await;
    stuck.expect(b"\x90\x04\x00\x01\x00\x01").await;
    let mut source = served.connected(v3("source")).await;
    let mut id = 0;
    while served.closed(Reason::QueueFull) == 0 {
        id += 1;
        source.send(&publish(2, id, "t", None, b"x")).await;
        source.expect(&packet(0x40, &id.to_be_bytes())).await;
    }
    assert!(served.dropped(Reason::QueueFull) > 0);
    stuck.expect(&publish(2, 1, "t", Some(b""), b"x")).await;
    let goodbye = stuck.packet().await.unwrap();
    assert_eq!((goodbye[0], goodbye[2]), (0xe0, 0x97), "{goodbye:02x?}");
    assert!(served.resumed(&keeping).await.1);
}

// Wills and retained messages.

#[tokio::test]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "#").await;
    let will = |payload: &'static [u8]| Connect {
        will: Some((0, "wills/pump", payload, b"")),
        ..v3("pump")
    };
    let mut polite = served.connected(will(b"not this one")).await;
    polite.send(b"\xe0\x00").await;
    polite.expect_closed().await;
    drop(served.connected(will(b"gone")).await);
    watcher.expect(&publish(0, 0, "wills/pump", None, b"gone")).await;
    // With a fault, with 0x04, and through a rule.
    let mut faulty = served.connected(will(b"faulty")).await;
    faulty.send(b"\xff\x00").await;
    watcher.expect(&publish(0, 0, "wills/pump", None, b"faulty")).await;
    let with_will = Connect { will: Some((0, "wills/pump", b"asked", b"")), ..v5("pump") };
    let mut asking = served.connected(with_will).await;
    asking.send(b"\xe0\x01\x04").await;
    watcher.expect(&publish(0, 0, "wills/pump", None, b"asked")).await;
    let oven = Connect { will: Some((0, "ovens/9/temp", b"250", b"")), ..v3("oven") };
    drop(served.connected(oven).await);
    watcher.expect(&publish(0, 0, "ovens/9/temp", None, b"250")).await;
    assert_eq!(served.store.outbox().count(), 1);
}

#[tokio::test]
async fn a_delayed_will_waits_and_is_forgotten_when_the_client_is_back() {
    let served = Served::start().await;
    let mut watcher = served.subscriber("watcher", "wills/#").await;
    // Will delay 1 s, session expiry 1 h.
    let connect = |topic| Connect {
        keep: true,
        properties: HOUR,
        will: Some((0, topic, b"gone", b"\x18\x00\x00\x00\x01")),
        ..v5("pump")
    };
    drop(served.connected(connect("wills/first")).await);
    let (back, present) = served.resumed(&connect("wills/second")).await;
    assert!(present);
    drop(back);
    watcher.expect(&publish(0, 0, "wills/second", None, b"gone")).await;
    watcher.expect_alive().await;
    // The end of the session is the end of the delay.
    let hour = b"\x18\x00\x00\x0e\x10";
    let short = Connect { will: Some((0, "wills/third", b"gone", hour)), ..v5("other") };
    drop(served.connected(short).await);
    watcher.expect(&publish(0, 0, "wills/third", None, b"gone")).await;
}

#[tokio::test]
async fn retained_messages_are_kept_replaced_deleted_and_bounded() {
    let served = Served::with("", |config| config.retained_messages_max = 2).await;
    let mut source = served.connected(v3("source")).await;
    for (id, topic, payload) in [(1, "r/a", "1"), (2, "r/b", "2"), (3, "r/a", "3"), (4, "r/c", "4")]
    {
        source.send(&publish(3, id, topic, None, payload.as_bytes())).await;
        source.expect(&[0x40, 2, 0, u8::try_from(id).unwrap()]).await;
    }
    assert_eq!(served.refused(Reason::TooMany), 1);
    let mut late = served.subscriber("late", "r/#").await;
    late.expect(&publish(3, 1, "r/a", None, b"3")).await;
    late.expect(&publish(3, 2, "r/b", None, b"2")).await;
    late.expect_alive().await;
    // A live publish has no retain flag; an empty one deletes, and is delivered.
    source.send(&publish(1, 0, "r/a", None, b"")).await;
    late.expect(&publish(0, 0, "r/a", None, b"")).await;
    // An empty publish without retain deletes nothing.
    source.send(&publish(0, 0, "r/b", None, b"")).await;
    late.expect(&publish(0, 0, "r/b", None, b"")).await;
    let mut later = served.subscriber("later", "r/#").await;
    later.expect(&publish(3, 1, "r/b", None, b"2")).await;
    later.expect_alive().await;
    assert_eq!(served.metrics.retained_messages.get(), 1);
}

// MQTT 5.

#[tokio::test]
async fn properties_identifiers_and_options_of_mqtt_5() {
    let served = Served::start().await;
    let mut a = served.connected(v5("a")).await;
    // Identifiers 1 and 2 on overlapping filters: one copy with both.
    a.send(&subscribe(1, "t/#", 1, Some(b"\x0b\x01"))).await;
    a.expect(b"\x90\x04\x00\x01\x00\x01").await;
    a.send(&subscribe(2, "t/x", 0, Some(b"\x0b\x02"))).await;
    a.expect(b"\x90\x04\x00\x02\x00\x00").await;
    let mut b = served.connected(v5("b")).await;
    // Retain as published, no local.
    b.send(&subscribe(1, "t/x", 0x0c, Some(b""))).await;
    b.expect(b"\x90\x04\x00\x01\x00\x00").await;
    let user = b"\x26\x00\x01k\x00\x01v";
    let passed_on = b"\x01\x01\x03\x00\x01c\x08\x00\x01r\x09\x00\x01d\x26\x00\x01k\x00\x01v";
    let mut source = served.connected(v5("source")).await;
    source.send(&publish(3, 1, "t/x", Some(passed_on), b"p")).await;
    source.expect(b"\x40\x02\x00\x01").await;
    let mut with_identifiers = passed_on.to_vec();
    with_identifiers.extend(b"\x0b\x01\x0b\x02");
    let got = a.packet().await.expect("a publish");
    let mut other_order = passed_on.to_vec();
    other_order.extend(b"\x0b\x02\x0b\x01");
    assert!(
        got == publish(2, 1, "t/x", Some(&with_identifiers), b"p")
            || got == publish(2, 1, "t/x", Some(&other_order), b"p"),
        "{got:02x?}"
    );
    b.expect(&publish(1, 0, "t/x", Some(passed_on), b"p")).await;
    b.send(&publish(0, 0, "t/x", Some(user), b"mine")).await;
    b.expect_alive().await;
    let got = a.packet().await.expect("a publish");
    assert!(got.ends_with(b"mine"));
    // Retain handling: 1 sends only to a new subscription, 2 never.
    b.send(&subscribe(2, "t/x", 0x10, Some(b""))).await;
    b.expect(b"\x90\x04\x00\x02\x00\x00").await;
    b.send(&subscribe(3, "t/+", 0x20, Some(b""))).await;
    b.expect(b"\x90\x04\x00\x03\x00\x00").await;
    b.expect_alive().await;
    b.send(&packet(0xa2, b"\x00\x04\x00\x00\x03t/x\x00\x03t/y")).await;
    b.expect(b"\xb0\x05\x00\x04\x00\x00\x11").await;
    b.send(&subscribe(5, "t/x", 0x10, Some(b""))).await;
    b.expect(b"\x90\x04\x00\x05\x00\x00").await;
    b.expect(&publish(1, 0, "t/x", Some(passed_on), b"p")).await;
}

#[tokio::test]
async fn topic_aliases_in_both_directions() {
    let served = Served::start().await;
    // Takes one alias.
    let mut reader =
        served.connected(Connect { properties: b"\x22\x00\x01", ..v5("reader") }).await;
    reader.send(&subscribe(1, "#", 0, Some(b""))).await;
    reader.expect(b"\x90\x04\x00\x01\x00\x00").await;
    let mut source = served.connected(v5("source")).await;
    source.send(&publish(0, 0, "long/topic", Some(b"\x23\x00\x10"), b"1")).await;
    source.send(&publish(0, 0, "", Some(b"\x23\x00\x10"), b"2")).await;
    source.send(&publish(0, 0, "other", Some(b"\x23\x00\x10"), b"3")).await;
    source.send(&publish(0, 0, "", Some(b"\x23\x00\x10"), b"4")).await;
    reader.expect(&publish(0, 0, "long/topic", Some(b"\x23\x00\x01"), b"1")).await;
    reader.expect(&publish(0, 0, "", Some(b"\x23\x00\x01"), b"2")).await;
    reader.expect(&publish(0, 0, "other", Some(b""), b"3")).await;
    reader.expect(&publish(0, 0, "other", Some(b""), b"4")).await;
}

#[tokio::test]
async fn expired_and_oversized_messages_are_not_sent_and_are_counted() {
    let served = Served::start().await;
    // Maximum Packet Size 64, a session that waits.
    let small = Connect {
        keep: true,
        properties: b"\x27\x00\x00\x00\x40\x11\x00\x00\x0e\x10",
        ..v5("small")
    };
    let (mut reader, _) = served.resumed(&small).await;
    reader.send(&subscribe(1, "t", 1, Some(b""))).await;
    reader.expect(b"\x90\x04\x00\x01\x00\x01").await;
    let mut source = served.connected(v5("source")).await;
    source.send(&publish(2, 1, "t", Some(b""), &[b'x'; 64])).await;
    source.expect(b"\x40\x02\x00\x01").await;
    source.send(&publish(2, 2, "t", Some(b"\x02\x00\x00\x00\x63"), b"in time")).await;
    source.expect(b"\x40\x02\x00\x02").await;
    let got = reader.packet().await.expect("a publish");
    assert!(got.ends_with(b"in time") && got.contains(&0x02), "{got:02x?}");
    assert_eq!(served.dropped(Reason::PacketTooLarge), 1);
    reader.send(&[0x40, 2, 0, 2]).await;
    reader.send(b"\xe0\x00").await;
    reader.expect_closed().await;
    source.send(&publish(2, 3, "t", Some(b"\x02\x00\x00\x00\x00"), b"late")).await;
    source.expect(b"\x40\x02\x00\x03").await;
    let (mut reader, present) = served.resumed(&small).await;
    assert!(present);
    reader.expect_alive().await;
    assert_eq!(served.dropped(Reason::MessageExpired), 1);
}

#[tokio::test]
async fn a_shared_subscription_goes_round() {
    let served = Served::start().await;
    let mut members = Vec::new();
    for id in ["a", "b"] {
        let mut member = served.connected(v5(id)).await;
        member.send(&subscribe(1, "$share/group/t/+", 0, Some(b""))).await;
        member.expect(b"\x90\x04\x00\x01\x00\x00").await;
        members.push(member);
    }
    let mut source = served.connected(v5("source")).await;
    for payload in [b"1", b"2", b"3", b"4"] {
        source.send(&publish(0, 0, "t/x", Some(b""), payload)).await;
    }
    for member in &mut members {
        let first = member.packet().await.expect("a publish");
        let second = member.packet().await.expect("a publish");
        assert_eq!(first.last().unwrap() + 2, *second.last().unwrap());
        member.expect_alive().await;
    }
    // One who leaves has no turn any more.
    members.remove(0).send(b"\xe0\x00").await;
    eventually(|| served.metrics.sessions.get() == 2).await;
    for payload in [b"5", b"6"] {
        source.send(&publish(0, 0, "t/x", Some(b""), payload)).await;
        members[0].expect(&publish(0, 0, "t/x", Some(b""), payload)).await;
    }
    for bad in ["$share", "$share/", "$share/g", "$share//t", "$share/g+/t", "$share/g/"] {
        source.send(&subscribe(1, bad, 0, Some(b""))).await;
        source.expect(b"\x90\x04\x00\x01\x00\x8f").await;
    }
}

#[tokio::test]
async fn keep_alive_and_session_expiry_are_cut_and_said() {
    let served = Served::with("", |config| {
        config.keep_alive_max = "60s".parse().unwrap();
        config.session_expiry_max = "1h".parse().unwrap();
    })
    .await;
    let connect = Connect { keep_alive: 120, properties: b"\x11\xff\xff\xff\xff", ..v5("a") };
    let (_, connack) = Raw::connected(served.plain, &connect.bytes()).await;
    let holds = |property: &[u8]| connack.windows(property.len()).any(|found| found == property);
    assert!(holds(b"\x13\x00\x3c") && holds(HOUR), "{connack:02x?}");
}

// Who may what.

const ACCESS: &str = r#"
    [[access]]
    who = { client_id = "site-*" }
    publish = ["site/{client_id}/#", "public/#"]
    subscribe = ["site/#", "public/#"]
    deny = ["site/+/keys/#"]
"#;

#[tokio::test]
async fn access_rules_hold_for_publish_subscribe_will_and_delivery() {
    let served = Served::with(ACCESS, |_| {}).await;
    let mut site = served.connected(v5("site-1")).await;
    site.send(&subscribe(1, "site/#", 1, Some(b""))).await;
    site.expect(b"\x90\x04\x00\x01\x00\x01").await;
    for (id, filter) in [(2, "#"), (3, "site/1/keys/#"), (4, "other")] {
        site.send(&subscribe(id, filter, 0, Some(b""))).await;
        // The code that Eclipse's conformance suite wants; it tells nobody which filters there are.
        site.expect(&[0x90, 4, 0, u8::try_from(id).unwrap(), 0, 0x80]).await;
    }
    for (id, topic, code) in [
        (1, "site/site-2/t", Some(0x87)),
        (2, "site/site-1/keys/a", Some(0x87)),
        (3, "$SYS/x", Some(0x90)),
        (4, "public/x", None),
    ] {
        site.send(&publish(2, id, topic, Some(b""), b"")).await;
        let id = u8::try_from(id).unwrap();
        match code {
            Some(code) => site.expect(&[0x40, 3, 0, id, code]).await,
            None => site.expect(&[0x40, 2, 0, id]).await,
        }
    }
    assert_eq!(served.refused(Reason::NotAuthorized), 5);
    // An alias stands for its topic even where that may not be published to.
    site.send(&publish(2, 5, "forbidden", Some(b"\x23\x00\x01"), b"")).await;
    site.expect(b"\x40\x03\x00\x05\x87").await;
    site.send(&publish(2, 6, "", Some(b"\x23\x00\x01"), b"")).await;
    site.expect(b"\x40\x03\x00\x06\x87").await;

    // What is denied within a wildcard is held back on delivery.
    let mut operator = served.connected(v3("operator")).await;
    operator.send(&publish(2, 1, "site/9/keys/a", None, b"secret")).await;
    operator.expect(b"\x40\x02\x00\x01").await;
    operator.send(&publish(0, 0, "site/9/t", None, b"open")).await;
    site.expect(&publish(0, 0, "site/9/t", Some(b""), b"open")).await;
    assert_eq!(served.dropped(Reason::NotAuthorized), 1);

    let mut old = served.connected(v3("site-2")).await;
    old.send(&subscribe(1, "#", 0, None)).await;
    old.expect(b"\x90\x03\x00\x01\x80").await;
    old.send(&publish(2, 1, "forbidden", None, b"")).await;
    old.expect_closed().await;
    eventually(|| served.closed(Reason::NotAuthorized) == 1).await;
    let will = Connect { will: Some((0, "forbidden", b"", b"")), ..v3("site-3") };
    let mut willing = Raw::open(served.plain).await;
    willing.send(&will.bytes()).await;
    willing.expect(b"\x20\x02\x00\x05").await;
}

#[tokio::test]
async fn a_user_has_its_password_its_client_ids_and_its_branch() {
    let served = Served::start().await;
    served.add_device("ana", "right", &["pump-*"]).await;
    let connect = |id, password| Connect { user: Some(("ana", password)), ..v3(id) };
    for (id, password, expected) in [
        ("pump-1", "wrong", b"\x20\x02\x00\x04"),
        ("pump-1", "", b"\x20\x02\x00\x04"),
        ("valve", "right", b"\x20\x02\x00\x05"),
        ("pump-1", "right", b"\x20\x02\x00\x00"),
    ] {
        let mut raw = Raw::open(served.plain).await;
        raw.send(&connect(id, password).bytes()).await;
        raw.expect(expected).await;
    }
    let mut pump = served.connected(connect("pump-1", "right")).await;
    pump.send(&subscribe(1, "devices/pump-1/#", 1, None)).await;
    pump.expect(b"\x90\x03\x00\x01\x01").await;
    pump.send(&publish(0, 0, "devices/pump-1/t", None, b"x")).await;
    pump.expect(&publish(0, 0, "devices/pump-1/t", None, b"x")).await;
    pump.send(&publish(0, 0, "devices/pump-2/t", None, b"x")).await;
    pump.expect_closed().await;
}

#[tokio::test]
async fn a_certificate_is_bound_to_the_client_id() {
    let served = Served::start().await;
    for (id, expected) in [("pump-7", 0), ("pump-8", 5)] {
        let mut raw = served.over_tls(Some("pump-7")).await.unwrap();
        raw.send(&v3(id).bytes()).await;
        raw.expect(&[0x20, 2, 0, expected]).await;
    }
    // Without an id it goes by its name; its own branch is its.
    let mut raw = served.over_tls(Some("pump-7")).await.unwrap();
    raw.send(&v5("").bytes()).await;
    let connack = raw.packet().await.expect("a CONNACK");
    assert!(connack.windows(6).any(|found| found == b"pump-7"), "{connack:02x?}");
    raw.send(&publish(2, 1, "devices/pump-7/t", Some(b""), b"")).await;
    raw.expect(b"\x40\x02\x00\x01").await;
    raw.send(&publish(2, 2, "ovens/1/temp", Some(b""), b"250")).await;
    raw.expect(b"\x40\x03\x00\x02\x87").await;
    assert_eq!(served.store.outbox().count(), 0);
}

#[tokio::test]
async fn without_a_name_only_where_it_is_allowed() {
    let served = Served::with("", |config| {
        config.anonymous = watchbell::broker::auth::Anonymous::Never;
        config.require_client_cert = true;
    })
    .await;
    let mut raw = Raw::open(served.plain).await;
    raw.send(&v5("a").bytes()).await;
    let connack = raw.packet().await.expect("a CONNACK");
    assert_eq!((connack[0], connack[3]), (0x20, 0x87));
    // In TLS 1.3 the client learns of it with its first read.
    if let Ok(mut raw) = served.over_tls(None).await {
        raw.expect_closed().await;
    }
    eventually(|| served.closed(Reason::TlsFailed) == 1).await;
    let mut raw = served.over_tls(Some("pump")).await.unwrap();
    raw.send(&v3("pump").bytes()).await;
    raw.expect(b"\x20\x02\x00\x00").await;
}

// The whole.

#[tokio::test]
async fn a_stop_says_goodbye_and_finishes_what_was_begun() {
    let served = Served::start().await;
    let plain = served.plain;
    let will = Connect { will: Some((0, "wills/a", b"", b"")), ..v5("a") };
    let mut modern = served.connected(will).await;
    let mut old = served.connected(v3("b")).await;
    let half = TcpStream::connect(plain).await.unwrap();
    for id in 1..=50 {
        modern.send(&publish(2, id, &format!("ovens/{id}/temp"), Some(b""), b"250")).await;
    }
    eventually(|| served.metrics.publishes_received.get() == 50).await;
    let store = served.store.clone();
    served.stop().await;
    for id in 1..=50 {
        modern.expect(&[0x40, 2, 0, id]).await;
    }
    let told = modern.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x8b));
    modern.expect_closed().await;
    old.expect_closed().await;
    assert_eq!(store.outbox().count(), 50);
    assert!(TcpStream::connect(plain).await.is_err());
    drop(half);
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_its_key() {
    let served = Served::start().await;
    let config = Config { listen: served.plain.to_string(), ..Config::default() };
    let parts = Parts {
        intake: served.intake.clone(),
        store: served.store.clone(),
        metrics: Metrics::new(),
        clock: Clock::System,
    };
    let error = Broker::bind(&config, Vec::new(), parts).await.err().expect("taken");
    assert!(matches!(error, BindError::InUse { .. }));
    assert_eq!(
        error.to_string(),
        format!(
            "{}: address in use; another broker is running there, or set broker.listen",
            served.plain
        )
    );
}

#[tokio::test]
async fn a_common_client_library_gets_along() {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let served = Served::start().await;
    let mut options = MqttOptions::new("library", "127.0.0.1", served.plain.port());
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 10);
    client.subscribe("t/#", QoS::ExactlyOnce).await.unwrap();
    for (index, qos) in
        [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().enumerate()
    {
        client.publish(format!("t/{index}"), qos, false, "x").await.unwrap();
    }
    let mut got = Vec::new();
    while got.len() < 3 {
        let event = tokio::time::timeout(Duration::from_secs(20), events.poll());
        if let Event::Incoming(Packet::Publish(publish)) = event.await.unwrap().unwrap() {
            got.push((publish.topic, publish.qos));
        }
    }
    assert_eq!(
        got,
        [
            ("t/0".to_owned(), QoS::AtMostOnce),
            ("t/1".to_owned(), QoS::AtLeastOnce),
            ("t/2".to_owned(), QoS::ExactlyOnce),
        ]
    );
}
