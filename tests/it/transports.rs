//! Listeners and how bytes reach them: WebSocket, PROXY protocol, IPv6, settings of their own; and
//! TLS with several CAs, intermediates and revocation, loaded again while clients are connected.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};
use watchbell::certs::Init;
use watchbell::clock::Clock;

use crate::harness::{Harness, Place, found};
use crate::process::command;
use crate::raw::{Raw, Wire, publish, subscribe, v3, v5};

/// Where the listener of this name is.
fn address(harness: &Harness, name: &str) -> SocketAddr {
    let listeners = &harness.app.about().listeners;
    listeners.iter().find(|one| one.name == name).unwrap_or_else(|| panic!("{name}")).address
}

/// A listener's table; `more` is TOML.
fn listener(name: &str, transport: &str, more: &str) -> String {
    format!(
        "[[listener]]\nname = '{name}'\naddress = '127.0.0.1:0'\ntransport = '{transport}'\n{more}\n"
    )
}

// WebSocket, with tungstenite at the other end.

/// Opens a WebSocket on `stream`; the status of the answer where it is refused.
async fn open<S: Wire>(
    stream: S,
    headers: &[(&'static str, &str)],
) -> Result<WebSocketStream<S>, u16> {
    let mut request = "ws://localhost/mqtt".into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    match client_async(request, stream).await {
        Ok((socket, answer)) => {
            assert_eq!(answer.headers()["sec-websocket-protocol"], "mqtt");
            Ok(socket)
        }
        Err(Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(other) => panic!("{other}"),
    }
}

const MQTT: (&str, &str) = ("sec-websocket-protocol", "mqtt");

async fn websocket(address: SocketAddr) -> WebSocketStream<TcpStream> {
    open(TcpStream::connect(address).await.unwrap(), &[MQTT]).await.expect("granted")
}

/// The MQTT bytes of a WebSocket as a stream, sent in frames of at most `most` bytes.
fn unframed<S: Wire + 'static>(mut socket: WebSocketStream<S>, most: usize) -> DuplexStream {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let mut bytes = vec![0; most];
        loop {
            tokio::select! {
                read = far.read(&mut bytes) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(count) => {
                        let frame = Message::binary(bytes[..count].to_vec());
                        if socket.send(frame).await.is_err() {
                            return;
                        }
                    }
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => far.write_all(&bytes).await.unwrap(),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
            }
        }
    });
    near
}

/// Connects by MQTT 3.1.1.
async fn introduced(stream: impl Wire + 'static, id: &str) -> Raw {
    let mut raw = Raw::over(stream);
    raw.send(&v3(id).bytes()).await;
    raw.expect(b"\x20\x02\x00\x00").await;
    raw
}

#[tokio::test]
async fn every_transport_carries_publishes_both_ways() {
    let config =
        [listener("web", "ws", ""), listener("web-tls", "wss", ""), listener("tcp", "tcp", "")];
    let harness = Harness::start(&config.concat()).await;
    let at = |name| address(&harness, name);
    let tls = Tls::of(&harness.place);
    let wss = open(tls.connect(at("web-tls")).await.unwrap(), &[MQTT]).await.expect("granted");
    let tcp = async |name| TcpStream::connect(at(name)).await.unwrap();
    let mut clients = vec![
        ("mqtt", introduced(tcp("mqtt").await, "a").await),
        ("tcp", introduced(tcp("tcp").await, "b").await),
        ("mqtts", introduced(tls.connect(at("mqtts")).await.unwrap(), "c").await),
        // Packets go over the ends of frames, and share them.
        ("ws in crumbs", introduced(unframed(websocket(at("web")).await, 1), "d").await),
        ("ws", introduced(unframed(websocket(at("web")).await, 1 << 20), "e").await),
        ("wss", introduced(unframed(wss, 7000), "f").await),
    ];
    for (_, client) in &mut clients {
        client.send(&subscribe(1, "all/#", 0, None)).await;
        client.expect(b"\x90\x03\x00\x01\x00").await;
    }
    // More than a TLS record, a frame's short lengths and what is read at a time.
    for len in [0, 1, 100, 125, 126, 4000, 65_535, 65_536, 200_000] {
        for sender in 0..clients.len() {
            let packet = publish(0, 0, "all/x", None, &vec![7; len]);
            clients[sender].1.send(&packet).await;
            for (name, client) in &mut clients {
                let received = client.packet().await.unwrap_or_else(|| panic!("{name}: closed"));
                assert!(received == packet, "{name}: {len} bytes came as {}", received.len());
            }
        }
    }
}

#[tokio::test]
async fn two_packets_in_a_frame_and_one_behind_the_upgrade() {
    let harness = Harness::start(&listener("web", "ws", "")).await;
    let mut socket = websocket(address(&harness, "web")).await;
    let both = [v3("two").bytes(), b"\xc0\x00".to_vec()].concat();
    socket.send(Message::binary(both)).await.unwrap();
    let mut answer = Vec::new();
    while answer.len() < 6 {
        answer.extend(socket.next().await.unwrap().unwrap().into_data());
    }
    assert_eq!(answer, b"\x20\x02\x00\x00\xd0\x00");

    // A client that does not wait for the answer to its upgrade.
    let mut eager = TcpStream::connect(address(&harness, "web")).await.unwrap();
    let head = "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    let connect = v3("eager").bytes();
    let frame =
        [&[0x82, 0x80 | u8::try_from(connect.len()).unwrap(), 0, 0, 0, 0], &*connect].concat();
    eager.write_all(&[head.as_bytes(), &frame].concat()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\x82\x04\x20\x02\x00\x00") {
        assert_ne!(eager.read_buf(&mut answer).await.unwrap(), 0, "{answer:02x?}");
    }
}

/// Reads until the broker closes: the last Close frame's status.
async fn close_status<S: Wire>(socket: &mut WebSocketStream<S>) -> Option<u16> {
    let mut status = None;
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Close(Some(CloseFrame { code, .. })) = message {
            status = Some(code.into());
        }
    }
    status
}

#[tokio::test]
async fn pings_are_answered_and_text_closes() {
    let harness = Harness::start(&listener("web", "ws", "")).await;
    let at = address(&harness, "web");
    let mut socket = websocket(at).await;
    socket.send(Message::Ping("before".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("before".into()));
    socket.send(Message::binary(v5("w").bytes())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap().into_data()[0], 0x20);
    socket.send(Message::Ping("after".into())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("after".into()));
    // MQTT-6.0.0-1, with MQTT's own word before it.
    socket.send(Message::text("hello")).await.unwrap();
    let disconnect = socket.next().await.unwrap().unwrap().into_data();
    assert_eq!((disconnect[0], disconnect[2]), (0xe0, 0x82), "{disconnect:02x?}");
    assert_eq!(close_status(&mut socket).await, Some(1003));
    harness.api.counted("connections_closed_total{reason=\"protocol_error\"}", 1).await;

    let mut socket = websocket(at).await;
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(close_status(&mut socket).await, Some(1003), "before CONNECT");

    let mut socket = websocket(at).await;
    socket.send(Message::binary(v3("w").bytes())).await.unwrap();
    socket.send(Message::binary(b"\xe0\x00".to_vec())).await.unwrap();
    assert_eq!(close_status(&mut socket).await, Some(1000), "after DISCONNECT");

    let mut socket = websocket(at).await;
    socket.send(Message::binary(v3("w").bytes())).await.unwrap();
    socket.close(Some(CloseFrame { code: 1001.into(), reason: "".into() })).await.unwrap();
    assert_eq!(close_status(&mut socket).await, Some(1001), "after Close");
}

#[tokio::test]
async fn an_upgrade_is_refused_with_a_status_and_a_sentence() {
    let config = [
        listener("web", "ws", ""),
        listener("dash", "ws", "path = '/mqtt'\norigins = ['https://dash.example.org']"),
        listener("other", "ws", "path = '/elsewhere'"),
    ];
    let harness = Harness::start(&config.concat()).await;
    let page = |url: &'static str| ("origin", url);
    for (name, headers, expected) in [
        ("web", vec![MQTT], None),
        ("web", vec![], Some(400)),
        ("web", vec![("sec-websocket-protocol", "mqttv3.1")], Some(400)),
        ("web", vec![MQTT, page("http://localhost:3000")], None),
        ("web", vec![MQTT, page("https://evil.example")], Some(403)),
        ("web", vec![MQTT, page("https://dash.example.org")], Some(403)),
        ("dash", vec![MQTT, page("https://dash.example.org")], None),
        ("other", vec![MQTT], Some(404)),
    ] {
        let stream = TcpStream::connect(address(&harness, name)).await.unwrap();
        assert_eq!(open(stream, &headers).await.err(), expected, "{name} {headers:?}");
    }
    // A person with a browser or curl.
    let url = format!("http://{}/", address(&harness, "web"));
    let answer =
        reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 426);
    assert_eq!(answer.headers()["upgrade"], "websocket");
    assert!(answer.text().await.unwrap().contains("this is an MQTT broker"));
    harness.api.counted("refused_total{reason=\"not_authorized\"}", 2).await;
}

#[tokio::test]
async fn a_page_behind_a_proxy_on_this_machine_needs_a_login() {
    let harness = Harness::start(&listener("web", "ws", "")).await;
    let stream = TcpStream::connect(address(&harness, "web")).await.unwrap();
    let headers = [MQTT, ("x-forwarded-for", "203.0.113.7")];
    let socket = open(stream, &headers).await.expect("granted");
    let mut raw = Raw::over(unframed(socket, 1000));
    raw.send(&v3("nobody").bytes()).await;
    raw.expect(b"\x20\x02\x00\x05").await;
}

// What a peer can delay.

#[tokio::test]
async fn half_open_peers_are_closed_in_time_and_hold_nobody_up() {
    let proxied = "proxy_protocol = true\nproxy_from = ['127.0.0.1']";
    let config = [
        "[broker]\nhandshake_timeout = '300ms'\n".to_owned(),
        listener("web", "ws", ""),
        listener("web-tls", "wss", ""),
        listener("proxied", "tcp", proxied),
    ];
    let harness = Harness::start(&config.concat()).await;
    let mut silent = Vec::new();
    for (name, first) in [
        ("web", &b"GET /mqtt HTTP/1.1\r\n"[..]),
        ("web", b""),
        ("web-tls", b"\x16\x03\x01"),
        ("mqtts", b""),
        ("proxied", b"\r\n\r\n\0"),
    ] {
        let mut peer = TcpStream::connect(address(&harness, name)).await.unwrap();
        peer.write_all(first).await.unwrap();
        silent.push((name, peer));
    }
    let mut alive = introduced(unframed(websocket(address(&harness, "web")).await, 9), "a").await;
    alive.expect_alive().await;
    for (name, mut peer) in silent {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(30), peer.read_to_end(&mut rest));
        assert!(read.await.unwrap_or_else(|_| panic!("{name}: still open")).is_ok());
    }
    harness.api.counted("connections_closed_total{reason=\"connect_timeout\"}", 5).await;
}

// PROXY protocol.

/// A header of version 2 for a client at this address.
fn proxy_header(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let (family, source) = match client.ip() {
        std::net::IpAddr::V4(address) => (0x11, address.octets().to_vec()),
        std::net::IpAddr::V6(address) => (0x21, address.octets().to_vec()),
    };
    let addresses = [source.clone(), source].concat();
    bytes.push(family);
    bytes.extend(u16::try_from(addresses.len() + 4).unwrap().to_be_bytes());
    bytes.extend(addresses);
    bytes.extend(client.port().to_be_bytes());
    bytes.extend(1883_u16.to_be_bytes());
    bytes
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";

/// What an anonymous CONNECT behind these bytes is answered: a CONNACK's code, or `closed`.
async fn behind(at: SocketAddr, header: &[u8]) -> String {
    let mut raw = Raw::open(at).await;
    raw.send(&[header, &v3("p").bytes()].concat()).await;
    match raw.packet().await {
        Some(connack) => connack[3].to_string(),
        None => "closed".to_owned(),
    }
}

#[tokio::test]
async fn a_proxy_says_who_the_client_is() {
    let believed = "proxy_protocol = true\nproxy_from = ['127.0.0.1', '::1']";
    let others = "proxy_protocol = true\nproxy_from = ['10.0.0.0/8']";
    let config = [
        "[broker]\nconnections_per_address_max = 1\n".to_owned(),
        listener("proxied", "tcp", believed),
        listener("others", "tcp", others),
        listener("plain", "tcp", ""),
        listener("web", "wss", believed),
    ];
    let harness = Harness::start(&config.concat()).await;
    let at = |name| address(&harness, name);
    for (name, header, expected) in [
        // Anonymous is who is on this machine, and a proxied client is not.
        ("proxied", proxy_header("203.0.113.7:4000"), "5"),
        ("proxied", proxy_header("[2001:db8::7]:4000"), "5"),
        ("proxied", proxy_header("127.0.0.1:4000"), "0"),
        ("proxied", LOCAL.to_vec(), "0"),
        ("proxied", b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n".to_vec(), "closed"),
        ("proxied", Vec::new(), "closed"),
        ("proxied", vec![0; 100], "closed"),
        ("others", proxy_header("127.0.0.1:4000"), "closed"),
        ("others", LOCAL.to_vec(), "closed"),
        ("plain", Vec::new(), "0"),
        ("plain", LOCAL.to_vec(), "closed"),
    ] {
        assert_eq!(behind(at(name), &header).await, expected, "{name} {header:02x?}");
    }
    harness.api.counted("refused_total{reason=\"bad_proxy_header\"}", 5).await;

    // Byte by byte, then TLS, then WebSocket; and the limits are the client's, not the proxy's.
    let mut socket = TcpStream::connect(at("web")).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for byte in proxy_header("203.0.113.9:4000") {
        socket.write_all(&[byte]).await.unwrap();
    }
    let tls = Tls::of(&harness.place).client("pump-1", &harness.place);
    let socket = open(tls.over(socket).await.unwrap(), &[MQTT]).await.expect("granted");
    let mut first = introduced(unframed(socket, 100), "pump-1").await;
    assert_eq!(behind(at("proxied"), &proxy_header("203.0.113.9:4001")).await, "closed");
    assert_eq!(behind(at("proxied"), &proxy_header("203.0.113.8:4001")).await, "5");
    harness.api.counted("refused_total{reason=\"too_many\"}", 1).await;
    first.expect_alive().await;
}

// Settings of their own.

#[tokio::test]
async fn listeners_have_settings_of_their_own() {
    let config = [
        listener("nobody", "tcp", "anonymous = 'never'"),
        listener("one", "tcp", "connections_max = 1"),
        listener("strict", "tls", "require_client_cert = true"),
        listener("named", "tls", "anonymous = 'never'"),
        listener("no-ca", "tls", "client_ca = ''"),
    ];
    let harness = Harness::start(&config.concat()).await;
    let at = |name| address(&harness, name);
    assert_eq!(behind(at("nobody"), b"").await, "5");

    let mut only = introduced(TcpStream::connect(at("one")).await.unwrap(), "only").await;
    assert_eq!(behind(at("one"), b"").await, "closed");
    only.send(b"\xe0\x00").await;
    assert_eq!(only.packet().await, None);
    found("a free place", async || (behind(at("one"), b"").await == "0").then_some(())).await;

    let nobody = Tls::of(&harness.place);
    let pump = Tls::of(&harness.place).client("pump-1", &harness.place);
    assert_eq!(nobody.let_in(at("strict"), "x").await, "closed");
    assert_eq!(pump.let_in(at("strict"), "pump-1").await, "0");
    assert_eq!(nobody.let_in(at("named"), "x").await, "5");
    assert_eq!(pump.let_in(at("named"), "pump-1").await, "0");
    assert_eq!(nobody.let_in(at("no-ca"), "x").await, "0");

    let status = harness.api.status().await;
    let listed: Vec<(&str, &str)> = status["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["protocol"].as_str().unwrap()))
        .collect();
    let expected = [("mqtt", "mqtt"), ("mqtts", "mqtts"), ("nobody", "mqtt"), ("one", "mqtt")];
    assert_eq!(listed[..4], expected);
    assert_eq!(listed[7], ("http", "http"));
    assert_eq!(harness.app.instance().listeners.len(), 8);
}

#[tokio::test]
async fn ipv6_takes_ipv4_too() {
    let config = "[[listener]]\nname = 'six'\naddress = '[::1]:0'\ntransport = 'tcp'\n\
        [[listener]]\nname = 'both'\naddress = '[::]:0'\ntransport = 'tcp'\nallow_plain_remote = true\n";
    let harness = Harness::start(config).await;
    let port = address(&harness, "both").port();
    for at in [
        address(&harness, "six"),
        SocketAddr::new("::1".parse().unwrap(), port),
        // Known as what it is: as ::ffff:127.0.0.1 it would not be this machine.
        SocketAddr::new("127.0.0.1".parse().unwrap(), port),
    ] {
        assert_eq!(behind(at, b"").await, "0", "{at}");
    }
}

#[tokio::test]
async fn a_port_in_use_names_the_listener() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let config = format!("[[listener]]\nname = 'x'\naddress = '{at}'\ntransport = 'tcp'\n");
    let error = Place::new(&config).try_start().await.err().expect("in use");
    assert!(
        error.contains(&at.to_string()) && error.contains("set listener[0].address"),
        "{error}"
    );
}

// TLS.

/// Years by which a list was to be renewed.
const NEXT: i32 = 2999;
const PAST: i32 = 2021;

/// A client's side of TLS.
#[derive(Clone)]
struct Tls {
    roots: PathBuf,
    /// Chain and key.
    identity: Option<(Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>)>,
    config: Arc<rustls::ClientConfig>,
}

impl Tls {
    /// A client that trusts the CA in `place` and has no certificate.
    fn of(place: &Place) -> Self {
        Self::new(place.path("certs/ca.pem"), None, &[&TLS13, &TLS12])
    }

    fn new(
        roots: PathBuf,
        identity: Option<(Vec<CertificateDer<'static>>, Arc<PrivateKeyDer<'static>>)>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Self {
        let mut store = rustls::RootCertStore::empty();
        store.add(CertificateDer::from_pem_file(&roots).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(store);
        let config = match &identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                builder.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap()
            }
        };
        Self { roots, identity, config: Arc::new(config) }
    }

    /// With the certificate of `watchbell certs client`.
    fn client(self, id: &str, place: &Place) -> Self {
        let pair = place.certificate(id);
        let chain = vec![CertificateDer::from_pem_file(&pair.cert).unwrap()];
        let key = Arc::new(PrivateKeyDer::from_pem_file(&pair.key).unwrap());
        Self::new(self.roots, Some((chain, key)), &[&TLS13, &TLS12])
    }

    /// The same by this version of TLS only, knowing no tickets.
    fn only(&self, version: &'static rustls::SupportedProtocolVersion) -> Self {
        Self::new(self.roots.clone(), self.identity.clone(), &[version])
    }

    async fn over(&self, socket: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::clone(&self.config)).connect(name, socket).await
    }

    async fn connect(&self, at: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        self.over(TcpStream::connect(at).await?).await
    }

    /// What a CONNECT is answered: the CONNACK's code, or `closed`. Takes the tickets that it is
    /// given.
    async fn let_in(&self, at: SocketAddr, id: &str) -> String {
        let Ok(mut stream) = self.connect(at).await else { return "closed".to_owned() };
        if stream.write_all(&v3(id).bytes()).await.is_err() || stream.flush().await.is_err() {
            return "closed".to_owned();
        }
        match Raw::over(stream).packet().await {
            Some(connack) => connack[3].to_string(),
            None => "closed".to_owned(),
        }
    }
}

/// A CA of the tests' own.
struct Ca {
    params: rcgen::CertificateParams,
    key: rcgen::KeyPair,
    certificate: rcgen::Certificate,
}

impl Ca {
    fn params(name: &str) -> rcgen::CertificateParams {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages =
            vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params
    }

    fn new(name: &str) -> Self {
        let (params, key) = (Self::params(name), rcgen::KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap();
        Self { params, key, certificate }
    }

    fn intermediate(&self, name: &str) -> Self {
        let (params, key) = (Self::params(name), rcgen::KeyPair::generate().unwrap());
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Self { params, key, certificate }
    }

    fn issuer(&self) -> rcgen::Issuer<'_, &rcgen::KeyPair> {
        rcgen::Issuer::from_params(&self.params, &self.key)
    }

    /// A client with this serial number that trusts `roots`.
    fn client(&self, id: &str, serial: u8, between: &[&Self], roots: &Path) -> Tls {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, id);
        params.serial_number = Some(vec![serial].into());
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        let mut chain = vec![certificate.der().clone()];
        chain.extend(between.iter().map(|one| one.certificate.der().clone()));
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Tls::new(roots.to_owned(), Some((chain, Arc::new(key))), &[&TLS13, &TLS12])
    }

    /// A list that revokes these serial numbers, and was to be renewed by the first of this year.
    fn revokes(&self, serials: &[u8], renewed_by: i32) -> String {
        let revoked = |serial: &u8| rcgen::RevokedCertParams {
            serial_number: vec![*serial].into(),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2020, 1, 1),
            next_update: rcgen::date_time_ymd(renewed_by, 1, 1),
            crl_number: vec![1].into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer()).unwrap().pem().unwrap()
    }
}

/// Two CAs, one of them with an intermediate, in a directory.
struct Pki {
    north: Ca,
    south: Ca,
    between: Ca,
    directory: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let (north, south) = (Ca::new("north"), Ca::new("south"));
        let between = south.intermediate("between");
        let pki = Self { north, south, between, directory: tempfile::tempdir().unwrap() };
        pki.write("north.pem", &pki.north.certificate.pem());
        pki.write("south.pem", &pki.south.certificate.pem());
        pki
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        // Beside and renamed, as whoever replaces a file in use should.
        std::fs::write(self.path("new"), text).unwrap();
        std::fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    /// Starts an instance whose listener `both` asks for certificates of both CAs.
    async fn start(&self, more: &str) -> Harness {
        let cas =
            format!("client_ca = ['{}', '{}']", self.path("north.pem"), self.path("south.pem"));
        let more = format!("{cas}\nrequire_client_cert = true\n{more}");
        Harness::start(&listener("both", "tls", &more)).await
    }

    fn of_north(&self, id: &str, serial: u8, harness: &Harness) -> Tls {
        self.north.client(id, serial, &[], &harness.place.path("certs/ca.pem"))
    }

    fn of_between(&self, id: &str, serial: u8, harness: &Harness) -> Tls {
        self.between.client(id, serial, &[&self.between], &harness.place.path("certs/ca.pem"))
    }
}

#[tokio::test]
async fn several_cas_and_intermediates_are_accepted() {
    let pki = Pki::new();
    pki.write("between.pem", &pki.between.certificate.pem());
    let only = format!("client_ca = '{}'\nrequire_client_cert = true", pki.path("between.pem"));
    let harness = pki.start(&format!("\n{}", listener("between", "tls", &only))).await;
    let at = address(&harness, "both");
    let roots = harness.place.path("certs/ca.pem");
    let stranger = Ca::new("stranger");
    for (name, client, expected) in [
        ("the first CA", pki.of_north("d", 1, &harness), "0"),
        ("the second CA", pki.south.client("d", 2, &[], &roots), "0"),
        ("by an intermediate", pki.of_between("d", 3, &harness), "0"),
        ("without the intermediate", pki.between.client("d", 4, &[], &roots), "closed"),
        ("another CA", stranger.client("d", 5, &[], &roots), "closed"),
        ("another CA of the same name", Ca::new("north").client("d", 6, &[], &roots), "closed"),
        ("no certificate", Tls::of(&harness.place), "closed"),
    ] {
        for version in [&TLS13, &TLS12] {
            assert_eq!(client.only(version).let_in(at, "d").await, expected, "{name} {version:?}");
        }
    }
    // An intermediate that is configured itself need not come along, nor its root be known.
    let between = address(&harness, "between");
    assert_eq!(pki.between.client("d", 4, &[], &roots).let_in(between, "d").await, "0");
    assert_eq!(pki.south.client("d", 2, &[], &roots).let_in(between, "d").await, "closed");
    // The other listener knows neither CA.
    let elsewhere = address(&harness, "mqtts");
    assert_eq!(pki.of_north("d", 1, &harness).let_in(elsewhere, "d").await, "closed");
}

#[tokio::test]
async fn revoked_clients_are_refused_also_by_a_list_that_has_expired() {
    for (name, year) in [("in time", NEXT), ("expired", PAST)] {
        let pki = Pki::new();
        pki.write("north.crl", &pki.north.revokes(&[7], year));
        pki.write("between.crl", &pki.between.revokes(&[8], year));
        let (north, between) = (pki.path("north.crl"), pki.path("between.crl"));
        let harness = pki.start(&format!("crl = ['{north}', '{between}']")).await;
        let at = address(&harness, "both");
        for (client, expected) in [
            (pki.of_north("d", 7, &harness), "closed"),
            (pki.of_north("d", 8, &harness), "0"),
            (pki.of_between("d", 8, &harness), "closed"),
            (pki.of_between("d", 7, &harness), "0"),
        ] {
            for version in [&TLS13, &TLS12] {
                assert_eq!(client.only(version).let_in(at, "d").await, expected, "{name}");
            }
        }
        harness.api.counted("refused_total{reason=\"tls_failed\"}", 4).await;
    }
}

/// Whether the client's next handshake resumes a session.
async fn resumes(client: &Tls, at: SocketAddr) -> bool {
    let stream = client.connect(at).await.unwrap();
    let kind = stream.get_ref().1.handshake_kind();
    let mut raw = Raw::over(stream);
    raw.send(&v3("lost").bytes()).await;
    raw.expect(b"\x20\x02\x00\x00").await;
    kind == Some(rustls::HandshakeKind::Resumed)
}

/// What revokes the client `lost`: a list, or its CA that is gone.
async fn check_revocation(revoke: impl Fn(&Pki)) {
    let pki = Pki::new();
    pki.write("north.crl", &pki.north.revokes(&[], NEXT));
    let harness = pki.start(&format!("crl = '{}'", pki.path("north.crl"))).await;
    let at = address(&harness, "both");
    for version in [&TLS13, &TLS12] {
        let lost = pki.of_north("lost", 7, &harness).only(version);
        let kept = pki.of_between("kept", 7, &harness).only(version);
        assert!(!resumes(&lost, at).await && resumes(&lost, at).await, "tickets are of use");
        let mut open = Raw::over(lost.connect(at).await.unwrap());
        open.send(&v5("lost").bytes()).await;
        assert_eq!(open.packet().await.unwrap()[0], 0x20);
        let mut other = introduced(kept.connect(at).await.unwrap(), "kept").await;

        revoke(&pki);
        harness.app.reload();
        // Administrative action, at once.
        let disconnect = open.packet().await.expect("a DISCONNECT");
        assert_eq!((disconnect[0], disconnect[2]), (0xe0, 0x98), "{disconnect:02x?}");
        assert_eq!(lost.let_in(at, "lost").await, "closed", "a ticket let the old one in");
        other.expect_alive().await;
        assert_eq!(kept.let_in(at, "kept").await, "0");

        pki.write("north.pem", &pki.north.certificate.pem());
        pki.write("north.crl", &pki.north.revokes(&[], NEXT));
        harness.app.reload();
        let again = async || (lost.let_in(at, "lost").await == "0").then_some(());
        found("let in again", again).await;
    }
    harness.api.counted("connections_closed_total{reason=\"certificate_refused\"}", 2).await;
    harness.api.counted("tls_reloads_failed_total", 0).await;
}

#[tokio::test]
async fn a_revoked_client_is_cut_off_and_does_not_resume() {
    Box::pin(check_revocation(|pki| pki.write("north.crl", &pki.north.revokes(&[7], NEXT)))).await;
}

#[tokio::test]
async fn a_client_of_a_ca_that_is_gone_is_cut_off_and_does_not_resume() {
    Box::pin(check_revocation(|pki| pki.write("north.pem", &pki.south.certificate.pem()))).await;
}

/// The server's certificate as a client sees it.
async fn shown(client: &Tls, at: SocketAddr) -> Vec<u8> {
    let stream = client.only(&TLS13).connect(at).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_and_a_bad_one_is_not() {
    let harness = Harness::start("").await;
    let at = address(&harness, "mqtts");
    let client = Tls::of(&harness.place);
    let mut open = introduced(client.connect(at).await.unwrap(), "open").await;
    let first = shown(&client, at).await;

    // Taken without being asked, in a while.
    let certs = harness.place.path("certs");
    watchbell::certs::init(&certs, &Init { force: true, ..Init::default() }, Clock::System.now())
        .unwrap();
    let renewed = CertificateDer::from_pem_file(certs.join("server.pem")).unwrap().to_vec();
    assert_ne!(first, renewed);
    let taken = async || (shown(&client, at).await == renewed).then_some(());
    found("the renewed certificate", taken).await;

    let key = std::fs::read_to_string(certs.join("server.key")).unwrap();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    harness.place.write("certs/server.key", &other);
    harness.app.reload();
    harness.api.counted("tls_reloads_failed_total", 1).await;
    assert_eq!(shown(&client, at).await, renewed, "the old one stays in force");
    let told = async || {
        let status = harness.api.status().await;
        let problems = status["certificate_problems"].as_array().unwrap();
        problems.first().map(|problem| problem.as_str().unwrap().to_owned())
    };
    let problem = found("the problem in the status", told).await;
    assert!(problem.starts_with("broker.key: ") && problem.contains("server.pem"), "{problem}");
    assert!(!problem.contains("PRIVATE"), "{problem}");

    harness.place.write("certs/server.key", &key);
    harness.app.reload();
    let mended = async || {
        let status = harness.api.status().await;
        status["certificate_problems"].as_array().unwrap().is_empty().then_some(())
    };
    found("the problem mended", mended).await;
    open.expect_alive().await;
}

/// What `watchbell check` says of this configuration, with the directory taken out.
async fn checked(place: &Place, config: &str) -> (i32, String) {
    place.write("watchbell.toml", config);
    let said = command(place, &["check"]).await;
    (said.code, said.out.replace(place.path("").to_str().unwrap(), ""))
}

#[tokio::test]
async fn check_looks_at_the_certificates_of_every_listener() {
    let place = Place::new("").rules("");
    let (code, out) = checked(&place, "").await;
    assert_eq!(code, 0, "{out}");

    let ca = Ca::new("soon");
    let write = |name: &str, end: (i32, u8, u8)| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(end.0, end.1, end.2);
        let certificate = params.signed_by(&key, &ca.issuer()).unwrap();
        place.write(&format!("certs/{name}.pem"), &certificate.pem());
        place.write(&format!("certs/{name}.key"), &key.serialize_pem());
    };
    write("old", (2021, 1, 1));
    write("new", (2999, 1, 1));
    place.write("certs/empty.pem", "nothing");
    place.write("certs/bad.crl", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n");
    place.write("certs/over.crl", &ca.revokes(&[1], PAST));
    let config = "[broker]\nkey = 'certs/new.key'\n\
        [[listener]]\nname = 'a'\naddress = '127.0.0.1:0'\ncert = 'certs/old.pem'\nkey = 'certs/old.key'\n\
        client_ca = ['certs/ca.pem', 'certs/empty.pem']\n\
        [[listener]]\nname = 'b'\naddress = '127.0.0.1:0'\ncert = 'certs/none.pem'\nkey = 'certs/new.key'\n\
        crl = 'certs/bad.crl'\n\
        [[listener]]\nname = 'c'\naddress = '127.0.0.1:0'\ncert = 'certs/old.pem'\nkey = 'certs/old.key'\n\
        crl = 'certs/over.crl'\n";
    let (code, out) = checked(&place, config).await;
    assert_eq!(code, 1, "{out}");
    insta::assert_snapshot!(out, @r"
    warning: watchbell.toml:20: listener[2].crl: certs/over.crl: the list of revoked certificates was to be renewed by 2021-01-01T00:00:00Z; it stays in force, but does not know what was revoked since: renew it
    watchbell.toml:2: broker.key: certs/new.key is not the key of the certificate certs/server.pem; put the key there that the certificate was made with, or make both anew with `watchbell certs init --force`
    watchbell.toml:8: listener[0].client_ca: certs/empty.pem: nothing of that kind in it; `watchbell certs` makes certificates for development
    watchbell.toml:12: listener[1].cert: certs/none.pem: No such file or directory (os error 2); `watchbell certs` makes certificates for development
    watchbell.toml:14: listener[1].crl: certs/bad.crl: no list of revoked certificates that can be used; it has to be a whole CRL of version 2, which OpenSSL makes where the CA's section has crl_extensions
    watchbell.toml:18: listener[2].cert: certs/old.pem: the server's certificate ended at 2021-01-01T00:00:00Z; renew it
    ");
}
