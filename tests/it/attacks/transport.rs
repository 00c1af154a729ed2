//! Attacks below MQTT: TLS, WebSocket, PROXY protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{CLOSED, PATIENCE, after, check, check_closed, is_soak, start};
use crate::device::client_config;
use crate::process::Process;
use crate::raw::{Raw, publish, v3};

/// How many peers one test may have: each has a file here, the binary has as many again, and other
/// tests run beside this one.
fn peers(wanted: u64) -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    wanted.min(limit.unwrap_or(u64::MAX) / 2)
}

#[tokio::test]
async fn half_open_tls_peers_harm_nobody() {
    let process = start("").await;
    let tls = process.device("half").address;
    for wanted in [1, if is_soak() { 10_000 } else { 1000 }] {
        let peers = peers(wanted);
        let count = (CLOSED, &["connect_timeout"][..], peers);
        check(&process, &format!("{peers} half-open TLS peers"), count, async |_| {
            let mut open = Vec::new();
            for number in 0..peers {
                let mut socket = TcpStream::connect(tls).await.unwrap();
                // Silent from the start, or within its first message.
                let said: &[u8] = if number % 2 == 0 { b"\x16\x03\x01" } else { b"" };
                socket.write_all(said).await.unwrap();
                open.push(socket);
            }
            let mut honest = process.device("honest").connect().await;
            honest.publishes("devices/honest/temperature", "20").await;
            for mut socket in open {
                let mut said = Vec::new();
                let end = socket.read_to_end(&mut said);
                drop(tokio::time::timeout(PATIENCE, end).await.expect("a connection that ends"));
            }
        })
        .await;
    }
}

/// Handshake messages of 27 bytes, and then one byte in each record.
async fn says_in_small_records(process: &Process, bytes: &[u8]) {
    let mut config = client_config(&process.place.path("certs/ca.pem"), None);
    // The least that rustls has: it counts the header of the record.
    config.max_fragment_size = Some(32);
    let socket = TcpStream::connect(process.device("small").address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from("localhost").unwrap();
    let mut raw = Raw::over(connector.connect(name, socket).await.unwrap());
    for byte in bytes {
        raw.send(&[*byte]).await;
    }
    raw.expect(b"\x20\x02\x00\x00").await;
    raw.expect(b"\x40\x02\x00\x01").await;
    raw.expect_closed().await;
}

#[tokio::test]
async fn tls_records_of_one_byte_harm_nobody() {
    let process = start("").await;
    let sent = [publish(2, 1, "small", None, &[b'x'; 4000]), b"\xe0\x00".to_vec()].concat();
    let count = (CLOSED, &["client_disconnect"][..], 10);
    check(&process, "TLS records of one byte", count, async |_| {
        for _ in 0..10 {
            says_in_small_records(&process, &after(&v3("small"), &sent)).await;
        }
    })
    .await;
}

fn listener(name: &str, more: &str) -> String {
    format!("\n[[listener]]\nname = '{name}'\naddress = '127.0.0.1:0'\n{more}\n")
}

const UPGRADE: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
    Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

const MASK: [u8; 4] = [1, 2, 3, 4];

/// The frame of a client whose first byte is this, of at most 125 bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, 0x80 | u8::try_from(payload.len()).unwrap()];
    bytes.extend(MASK);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Each byte in a frame of its own, all of them one message.
fn crumbs(bytes: &[u8]) -> Vec<u8> {
    let last = bytes.len() - 1;
    let frames = bytes.iter().enumerate().map(|(index, byte)| {
        let opcode = if index == 0 { 2 } else { 0 };
        frame(if index == last { 0x80 | opcode } else { opcode }, &[*byte])
    });
    frames.collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn websockets_that_are_none_harm_nobody() {
    let process = start(&listener("web", "transport = 'ws'")).await;
    let web = process.listener("web");
    let connect = v3("web").bytes();
    let upgraded = |rest: &[u8]| [UPGRADE, rest].concat();
    let open = |rest: &[u8]| upgraded(&[&frame(0x82, &connect)[..], rest].concat());
    let impossible = [&b"\x82\xff"[..], &[0xff; 8], &MASK].concat();
    let endless = [&b"\x82\xff\x0f"[..], &[0xff; 7], &MASK].concat();
    let pings = frame(0x89, &[b'p'; 125]).repeat(1000);
    for (name, bytes, reason) in [
        ("no HTTP", vec![0xfe; 4000], "bad_request"),
        ("an upgrade without end", b"GET /mqtt HTTP/1.1\r\nA: ".repeat(5000), "bad_request"),
        ("a frame of impossible length", upgraded(&impossible), "protocol_error"),
        ("the same after CONNECT", open(&impossible), "protocol_error"),
        ("a frame of a million terabytes", upgraded(&endless), "connection_lost"),
        ("the same after CONNECT", open(&endless), "connection_lost"),
        (
            "a frame without a mask",
            upgraded(&[&b"\x82\x0e"[..], &connect].concat()),
            "protocol_error",
        ),
        ("the same after CONNECT", open(b"\x82\x02\xe0\x00"), "protocol_error"),
        ("a ping in parts", open(&frame(0x09, b"p")), "protocol_error"),
        ("pings before CONNECT", upgraded(&pings), "connection_lost"),
        ("pings after CONNECT", open(&pings), "connection_lost"),
        (
            "fragments of one byte",
            upgraded(&crumbs(&after(&v3("web"), b"\xe0\x00"))),
            "client_disconnect",
        ),
        ("frames of nothing", open(&frame(0x82, b"").repeat(5000)), "connection_lost"),
        (
            "a huge remaining length in a frame",
            open(&frame(0x82, b"\x30\xff\xff\xff\x7f")),
            "packet_too_large",
        ),
    ] {
        check_closed(&process, (name, web), &bytes, 20, reason).await;
    }
    // It pings and never reads: what it is answered does not pile up.
    // The next one may be there before it is noticed that the last has gone.
    let count = (CLOSED, &["connection_lost", "taken_over"][..], 5);
    check(&process, "pings whose answers nobody reads", count, async |_| {
        for _ in 0..5 {
            flood(web, &open(b""), &pings).await;
        }
    })
    .await;
}

/// Writes `bytes` over and over until the broker takes no more, or 20 times.
async fn flood(address: SocketAddr, opening: &[u8], bytes: &[u8]) {
    let mut socket = super::lazy(address).await;
    socket.write_all(opening).await.unwrap();
    for _ in 0..20 {
        let write = socket.write_all(bytes);
        let pause = Duration::from_millis(300);
        if tokio::time::timeout(pause, write).await.is_err() {
            return;
        }
    }
}

/// A PROXY header, version 2, with this command and family, before an anonymous CONNECT.
fn proxied(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    bytes.extend(rest);
    bytes.extend(after(&v3("proxied"), b"\xe0\x00"));
    bytes
}

#[tokio::test]
async fn proxy_headers_that_are_none_harm_nobody() {
    let more = "transport = 'tcp'\nproxy_protocol = true\nproxy_from = ['127.0.0.1']";
    let process = start(&listener("proxied", more)).await;
    let at = process.listener("proxied");
    // From 127.0.0.1, so that an anonymous client is let in.
    let addresses = [127, 0, 0, 1, 127, 0, 0, 1, 0x1f, 0x90, 0x07, 0x5b];
    let bomb = |count| [&addresses[..], &b"\xe0\x00\x00".repeat(count)].concat();
    let lie = [&addresses[..], b"\xe0\xff\xff"].concat();
    for (name, bytes, reason) in [
        ("garbage", vec![0xfe; 4000], "bad_proxy_header"),
        ("a CONNECT", v3("proxied").bytes(), "bad_proxy_header"),
        ("version 1", b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), "bad_proxy_header"),
        ("half a header", b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec(), "connection_lost"),
        ("a family that there is not", proxied(0x21, 0xff, &addresses), "bad_proxy_header"),
        ("addresses that are too short", proxied(0x21, 0x11, &[1; 3]), "bad_proxy_header"),
        ("1361 TLVs of nothing", proxied(0x21, 0x11, &bomb(1361)), "client_disconnect"),
        ("1362 TLVs of nothing", proxied(0x21, 0x11, &bomb(1362)), "bad_proxy_header"),
        ("a TLV longer than the header", proxied(0x21, 0x11, &lie), "client_disconnect"),
        ("64 KiB of header", proxied(0x20, 0, &[0; 0xffff]), "bad_proxy_header"),
    ] {
        check_closed(&process, (name, at), &bytes, 50, reason).await;
    }
}
