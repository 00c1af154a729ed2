//! Attacks on sessions: takeovers, storms, duplicates; and what killed brokers before this one.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use watchbell::store::Store;
use watchbell::store::sessions::Saved;
use watchbell::telemetry::Metrics;

use super::{CLOSED, check, client, leave, start};
use crate::process::Process;
use crate::raw::{Connect, Raw, packet, publish, subscribe, v3, v5};

/// What is on disk of sessions when the process has ended.
fn saved(mut process: Process) -> Saved {
    process.kill();
    let data = process.place.path("data");
    Store::open(&data, &Default::default(), &Metrics::new()).unwrap().saved()
}

/// Takes the session over 200 times, by connections that die late; the last one hangs up.
async fn take_over(address: SocketAddr, connect: &Connect<'_>, subscribed: &[u8]) {
    let mut last: Option<TcpStream> = None;
    for _ in 0..200 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&connect.bytes()).await.unwrap();
        let mut connack = [0; 4];
        socket.read_exact(&mut connack).await.unwrap();
        assert_eq!((connack[0], connack[3]), (0x20, 0));
        socket.write_all(subscribed).await.unwrap();
        // The old socket lives until the next one has the session: it dies late.
        drop(last.replace(socket));
    }
}

#[tokio::test]
async fn takeovers_with_wills_harm_nobody() {
    let process = start("").await;
    let will = Some((0b1000, "wills/one", &b"gone"[..], &b""[..]));
    let count = (CLOSED, &["taken_over"][..], 199);
    check(&process, "a takeover storm", count, async |address| {
        take_over(address, &Connect { will, ..v3("stolen") }, b"").await;
    })
    .await;
    let durable = Connect { will, keep: true, ..v3("durable") };
    check(&process, "a takeover storm on a durable session", count, async |address| {
        take_over(address, &durable, &subscribe(1, "other/+", 1, None)).await;
    })
    .await;
    // The durable one.
    process.api.counted("sessions", 1).await;
    let saved = saved(process);
    assert_eq!((saved.sessions.len(), saved.sessions[0].1.subscriptions.len()), (1, 1));
    let rest = (saved.queued.len(), saved.bodies.len(), saved.wills.len(), saved.unreadable.len());
    assert_eq!(rest, (0, 0, 0, 0), "{saved:#?}");
}

#[tokio::test]
async fn connect_subscribe_disconnect_storms_on_durable_sessions_harm_nobody() {
    let process = start("").await;
    let count = (CLOSED, &["client_disconnect"][..], 600);
    check(&process, "a storm on durable sessions", count, async |_| {
        for round in 0..3 {
            for number in 0..100 {
                let id = format!("storm-{number}");
                let keep = Connect { keep: true, ..v3(&id) };
                let mut raw = client(&process, &keep).await;
                let filter = format!("storm/{}/+", number + round);
                raw.send(&subscribe(1, &filter, 1, None)).await;
                raw.expect(b"\x90\x03\x00\x01\x01").await;
                leave(raw).await;
            }
        }
        assert_eq!(process.api.metric("sessions").await, 102);
        for round in 0..3 {
            for number in 0..100 {
                // A clean session ends the one that was kept.
                let id = format!("storm-{number}");
                let raw = client(&process, &v3(&id)).await;
                leave(raw).await;
                if round == 0 && number == 99 {
                    process.api.counted("sessions", 2).await;
                }
            }
        }
    })
    .await;
    let saved = saved(process);
    assert!(saved.sessions.is_empty() && saved.queued.is_empty(), "{saved:#?}");
}

/// PUBREC, PUBREL or PUBCOMP.
fn ack(header: u8, id: u16) -> Vec<u8> {
    packet(header, &id.to_be_bytes())
}

#[tokio::test]
async fn qos_2_duplicates_over_reconnects_are_delivered_once() {
    let process = start("").await;
    let count = (CLOSED, &["connection_lost"][..], 80);
    check(&process, "QoS 2 duplicates over reconnects", count, async |_| {
        let mut honest = client(&process, &v3("honest")).await;
        honest.send(&subscribe(1, "twice/+", 0, None)).await;
        honest.expect(b"\x90\x03\x00\x01\x00").await;
        let keep = Connect { keep: true, ..v3("twice") };
        for id in 1..=20_u16 {
            let payload = id.to_be_bytes();
            for dup in [0, 8, 8, 8] {
                let mut raw = client(&process, &keep).await;
                raw.send(&publish(4 | dup, id, "twice/x", None, &payload)).await;
                raw.expect(&ack(0x50, id)).await;
                if dup > 0 {
                    raw.send(&publish(4 | dup, id, "twice/x", None, &payload)).await;
                    raw.expect(&ack(0x50, id)).await;
                }
                raw.hang_up().await;
            }
            let mut raw = client(&process, &keep).await;
            for _ in 0..2 {
                raw.send(&ack(0x62, id)).await;
                raw.expect(&ack(0x70, id)).await;
            }
            leave(raw).await;
            honest.expect(&publish(0, 0, "twice/x", None, &payload)).await;
            honest.expect_alive().await;
        }
        leave(honest).await;
    })
    .await;
    let saved = saved(process);
    assert!(saved.received.is_empty(), "{saved:#?}");
}

#[tokio::test]
async fn a_share_that_leaves_with_an_unacknowledged_message_gets_it_again() {
    let process = start("").await;
    let address = process.anonymous("").address;
    // An hour of Session Expiry Interval.
    let member = Connect { keep: true, properties: b"\x11\x00\x00\x0e\x10", ..v5("member") };
    let (mut raw, _) = Raw::connected(address, &member.bytes()).await;
    raw.send(&subscribe(1, "$share/group/s/+", 1, Some(b""))).await;
    raw.expect(b"\x90\x04\x00\x01\x00\x01").await;
    let (mut source, _) = Raw::connected(address, &v3("source").bytes()).await;
    source.send(&publish(2, 1, "s/x", None, b"once")).await;
    source.expect(b"\x40\x02\x00\x01").await;
    assert!(raw.packet().await.expect("a publish").ends_with(b"once"));
    drop(raw);
    source.expect_alive().await;
    let (mut raw, connack) = Raw::connected(address, &member.bytes()).await;
    assert_eq!(connack[2], 1, "the session is there");
    let again = raw.packet().await.expect("the publish again");
    assert!(again[0] == 0x3a && again.ends_with(b"once"), "{again:02x?}");
}

#[tokio::test]
async fn a_v5_property_does_not_reach_a_v4_subscriber_that_reconnects() {
    let process = start("").await;
    let address = process.anonymous("").address;
    let old = Connect { keep: true, ..v3("old") };
    let (mut raw, _) = Raw::connected(address, &old.bytes()).await;
    raw.send(&subscribe(1, "p/+", 1, None)).await;
    raw.expect(b"\x90\x03\x00\x01\x01").await;
    drop(raw);
    let (mut source, _) = Raw::connected(address, &v5("source").bytes()).await;
    source.send(&publish(2, 1, "p/x", Some(b"\x26\x00\x01k\x00\x01v"), b"1")).await;
    assert_eq!(source.packet().await.expect("a PUBACK")[0], 0x40);
    let (mut raw, connack) = Raw::connected(address, &old.bytes()).await;
    assert_eq!(connack[2], 1, "the session is there");
    let got = raw.packet().await.expect("the publish");
    let plain = publish(got[0] & 0x0f, u16::from(got[8]), "p/x", None, b"1");
    assert_eq!(got, plain, "{got:02x?}");
}

#[tokio::test]
async fn an_empty_publish_without_retain_leaves_the_retained_message() {
    let process = start("").await;
    let address = process.anonymous("").address;
    let (mut source, _) = Raw::connected(address, &v3("source").bytes()).await;
    source.send(&publish(1, 0, "r/x", None, b"kept")).await;
    source.send(&publish(0, 0, "r/x", None, b"")).await;
    source.expect_alive().await;
    let (mut raw, _) = Raw::connected(address, &v3("later").bytes()).await;
    raw.send(&subscribe(1, "r/+", 0, None)).await;
    raw.expect(b"\x90\x03\x00\x01\x00").await;
    raw.expect(&publish(1, 0, "r/x", None, b"kept")).await;
}
