//! Attacks by CONNECT and by packets that no client sends.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{CLOSED, PATIENCE, after, check, check_closed, say, start, user_properties};
use crate::harness::found;
use crate::raw::{Connect, packet, publish, v3, v5};

#[tokio::test]
async fn what_is_no_connect_harms_nobody() {
    let process = start("").await;
    let whole = v3("cut").bytes();
    let long = "x".repeat(8000);
    let over = "x".repeat(65_000);
    for (name, bytes, reason) in [
        ("HTTP instead of CONNECT", b"GET / HTTP/1.1\r\n\r\n".to_vec(), "malformed_packet"),
        ("a huge remaining length", b"\x10\xff\xff\xff\x7f".to_vec(), "packet_too_large"),
        (
            "a remaining length without end",
            b"\x10\xff\xff\xff\xff\xff".to_vec(),
            "malformed_packet",
        ),
        ("half a CONNECT", whole[..whole.len() / 2].to_vec(), "connection_lost"),
        ("a client id with a wildcard", v3("a+").bytes(), "bad_client_id"),
        ("a client id with #", v5("#").bytes(), "bad_client_id"),
        ("the client id of an upstream", v5("$upstream/x").bytes(), "bad_client_id"),
        ("the client id of the broker", v3("$watchbell").bytes(), "bad_client_id"),
        ("a client id of $", v5("$").bytes(), "bad_client_id"),
        ("a client id with NUL", v3("a\0b").bytes(), "malformed_packet"),
        ("a client id of 8000 characters", v3(&long).bytes(), "bad_client_id"),
        ("a client id of 65000 characters", v3(&over).bytes(), "packet_too_large"),
    ] {
        check_closed(&process, (name, process.mqtt()), &bytes, 50, reason).await;
    }
    let twice = (CLOSED, &["bad_client_id"][..], 100);
    check(&process, "the client id a/b twice", twice, async |address| {
        for _ in 0..50 {
            let bytes = v3("a/b").bytes();
            tokio::join!(say(address, &bytes), say(address, &bytes));
        }
    })
    .await;
}

#[tokio::test]
async fn property_bombs_in_connect_harm_nobody() {
    let process = start("").await;
    let many = user_properties(1000);
    let long = [b"\x26\x1f\x00".as_slice(), &[b'k'; 0x1f00], b"\x00\x01v"].concat();
    let longest = [b"\x26\xff\xff".as_slice(), &[b'k'; 0xffff], b"\x00\x01v"].concat();
    let will = |properties| Some((0, "wills/bomb", &b"gone"[..], properties));
    let with = |properties| Connect { properties, ..v5("bomb") }.bytes();
    let by_will = |properties| Connect { will: will(properties), ..v5("bomb") }.bytes();
    for (name, bytes, reason) in [
        ("1000 user properties", with(&many), "connection_lost"),
        ("1000 user properties in a will", by_will(&many), "connection_lost"),
        ("a user property of 8000 bytes", with(&long), "connection_lost"),
        ("a user property of 8000 bytes in a will", by_will(&long), "connection_lost"),
        ("a user property of 65535 bytes", with(&longest), "packet_too_large"),
        ("a user property of 65535 bytes in a will", by_will(&longest), "packet_too_large"),
        ("a property twice", with(&b"\x11\0\0\0\x01".repeat(2)), "protocol_error"),
        ("a property twice in a will", by_will(&b"\x18\0\0\0\x01".repeat(2)), "protocol_error"),
        ("a property that there is not", with(b"\x7f\x00"), "malformed_packet"),
        ("a property without its end", with(b"\x26\xff\xff"), "malformed_packet"),
    ] {
        check_closed(&process, (name, process.mqtt()), &bytes, 50, reason).await;
    }
}

#[tokio::test]
async fn a_connect_byte_by_byte_harms_nobody() {
    let process = start("").await;
    let count = (CLOSED, &["client_disconnect"][..], 20);
    check(&process, "CONNECT and DISCONNECT byte by byte", count, async |address| {
        let bytes = after(&v3("slowly"), b"\xe0\x00");
        for _ in 0..20 {
            bytewise(address, &bytes).await;
        }
    })
    .await;
    let count = (CLOSED, &["connect_timeout"][..], 50);
    check(&process, "a CONNECT that comes by and by", count, async |address| {
        join_all((0..50).map(|_| trickle(address))).await;
    })
    .await;
}

/// Each byte in a segment of its own.
async fn bytewise(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for byte in bytes {
        socket.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut said = Vec::new();
    let end = socket.read_to_end(&mut said);
    tokio::time::timeout(PATIENCE, end).await.expect("a connection that ends").unwrap();
    assert_eq!(said, b"\x20\x02\x00\x00");
}

/// A byte every now and then, until the broker has had enough.
async fn trickle(address: SocketAddr) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let bytes = v3(&"x".repeat(8000)).bytes();
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    let mut said = [0; 16];
    for byte in bytes {
        tokio::select! {
            _ = pace.tick() => if socket.write_all(&[byte]).await.is_err() { return },
            _ = socket.read(&mut said) => return,
        }
    }
    panic!("8000 bytes at 20 a second were in time");
}

#[tokio::test]
async fn packets_that_no_client_sends_harm_nobody() {
    let process = start("").await;
    let (old, new) = (v3("bad"), v5("bad"));
    let bomb = publish(0, 0, "t", Some(&user_properties(5000)), b"");
    let lie = packet(0x30, b"\x00\x01t\xff\xff\x7f\x26\x00\x01k");
    let own = |topic| publish(2, 1, topic, None, b"");
    for (name, bytes, reason) in [
        ("a CONNACK from a client", after(&old, b"\x20\x02\x00\x00"), "protocol_error"),
        ("a SUBACK from a client", after(&old, b"\x90\x03\x00\x01\x00"), "protocol_error"),
        ("an UNSUBACK from a client", after(&old, b"\xb0\x02\x00\x01"), "protocol_error"),
        ("a v5 UNSUBACK from a client", after(&new, b"\xb0\x04\x00\x01\x00\x00"), "protocol_error"),
        ("a PINGRESP from a client", after(&old, b"\xd0\x00"), "protocol_error"),
        ("a topic of $SYS", after(&old, &own("$SYS/broker/clients")), "bad_topic"),
        ("a topic of ours", after(&old, &own("$watchbell/upstream/plant")), "bad_topic"),
        ("a share as a topic", after(&old, &own("$share/group/watch/count")), "bad_topic"),
        ("5000 user properties in one publish", after(&new, &bomb), "connection_lost"),
        ("properties longer than their packet", after(&new, &lie), "malformed_packet"),
    ] {
        check_closed(&process, (name, process.mqtt()), &bytes, 50, reason).await;
    }
}

#[tokio::test]
async fn a_thousand_connects_and_resets_with_one_id_harm_nobody() {
    let process = start("").await;
    // Which of them was reset and which was taken over first is the scheduler's to say; one that
    // waited for its turn when the next came was taken over too.
    let count = (CLOSED, &["connection_lost", "taken_over"][..], 1000);
    check(&process, "CONNECT and RST", count, async |address| {
        for _ in 0..1000 {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(&v3("once").bytes()).await.unwrap();
            // The kernel sends a reset and throws away what was not read.
            socket.set_zero_linger().unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn refused_retries_at_the_connection_limit_harm_nobody() {
    let process = start("connections_max = 4\n").await;
    let count = (CLOSED, &["too_many"][..], 50);
    check(&process, "retries at the limit", count, async |address| {
        // The watcher has two places, these have the other two.
        let mut held = Vec::new();
        for id in ["first", "second"] {
            held.push(found("a place", async || admitted(address, id).await).await);
        }
        for _ in 0..50 {
            say(address, &v3("first").bytes()).await;
        }
    })
    .await;
}

/// A connection with its CONNACK; `None` where all places are taken, as by one that ends.
async fn admitted(address: SocketAddr, id: &str) -> Option<TcpStream> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&v3(id).bytes()).await.ok()?;
    let mut connack = [0; 4];
    socket.read_exact(&mut connack).await.ok()?;
    (connack == *b"\x20\x02\x00\x00").then_some(socket)
}
