//! Attacks by load: topics and filters by the thousand, large properties, clients that do not take
//! what waits for them.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{
    CLOSED, DROPPED, PATIENCE, REFUSED, after, check, client, is_soak, lazy, leave, say, start,
    user_properties,
};
use crate::harness::found;
use crate::process::Process;
use crate::raw::{Connect, Raw, publish, subscribe, v3, v5};

#[tokio::test]
async fn filters_by_the_thousand_and_topics_by_the_hundred_thousand_harm_nobody() {
    let process = start("subscriptions_max = 200\n").await;
    let count = (REFUSED, &["too_many"][..], 800);
    check(&process, "filters by the thousand", count, async |address| {
        let mut bytes = v3("greedy").bytes();
        for id in 1..=1000_u16 {
            bytes.extend(subscribe(id, &format!("+/+/{id}/+/#"), 0, None));
        }
        say(address, &bytes).await;
    })
    .await;
    let topics = if is_soak() { 200_000 } else { 20_000 };
    let count = (CLOSED, &["connection_lost"][..], 2);
    check(&process, "many topics and then SUBSCRIBEs", count, async |address| {
        let mut bytes = v3("topics").bytes();
        for number in 0..topics {
            bytes.extend(publish(0, 0, &format!("\u{fc}/{number}"), None, b"x"));
        }
        say(address, &bytes).await;
        let mut greedy = client(&process, &v3("filters")).await;
        for id in 1..=200_u16 {
            greedy.send(&subscribe(id, &format!("\u{fc}/{id}"), 1, None)).await;
        }
        for id in 1..=200_u16 {
            let [high, low] = id.to_be_bytes();
            greedy.expect(&[0x90, 3, high, low, 1]).await;
        }
        greedy.hang_up().await;
    })
    .await;
}

/// A topic's subscriber by MQTT 5.
async fn subscriber(process: &Process, id: &str, filter: &str) -> Raw {
    let mut raw = client(process, &v5(id)).await;
    raw.send(&subscribe(1, filter, 0, Some(b""))).await;
    raw.expect(b"\x90\x04\x00\x01\x00\x00").await;
    raw
}

/// 1 MiB of User Properties is 150,000 of them, each with two strings of their own: some 15 MiB,
/// and a thousand such publishes may wait for each of 50,000 sessions.
#[tokio::test]
async fn properties_by_the_thousand_weighed_nothing_in_a_queue() {
    let process = start("").await;
    let text =
        |kind: u8, len: u16| [&[kind][..], &len.to_be_bytes(), &vec![b'x'; len.into()]].concat();
    let user = [text(0x26, u16::MAX), text(0, u16::MAX)[1..].to_vec()].concat();
    let largest = [text(3, u16::MAX), text(8, 500), text(9, u16::MAX), user.clone(), user].concat();
    let count = (DROPPED, &["queue_full"][..], 3);
    check(&process, "property bombs to a subscriber", count, async |_| {
        let mut honest = subscriber(&process, "honest", "bomb/+").await;
        let mut source = client(&process, &v5("source")).await;
        for properties in [&user_properties(4000), &largest] {
            source.send(&publish(2, 1, "bomb/x", Some(properties), b"whole")).await;
            assert_eq!(source.packet().await.expect("a PUBACK")[0], 0x40);
            let whole = honest.packet().await.expect("the publish");
            assert_eq!(whole, publish(0, 0, "bomb/x", Some(properties), b"whole"));
        }
        for _ in 0..3 {
            let bomb = user_properties(149_000);
            source.send(&publish(2, 1, "bomb/x", Some(&bomb), b"bomb")).await;
            assert_eq!(source.packet().await.expect("a PUBACK")[0], 0x40);
        }
        source.send(&publish(0, 0, "bomb/x", Some(b""), b"after")).await;
        honest.expect(&publish(0, 0, "bomb/x", Some(b""), b"after")).await;
        leave(source).await;
        leave(honest).await;
    })
    .await;
}

/// Reads a byte a second, if at all, until `metric` has grown by `least`.
async fn dawdle(process: &Process, mut socket: TcpStream, reads: bool, metric: &str, enough: u64) {
    let dawdling = async {
        let mut pace = tokio::time::interval(Duration::from_secs(1));
        if !reads {
            std::future::pending::<()>().await;
        }
        loop {
            pace.tick().await;
            // It may be at its end.
            drop(socket.read(&mut [0]).await);
        }
    };
    let counted =
        found(metric, async || (process.api.metric(metric).await >= enough).then_some(()));
    tokio::select! {
        () = dawdling => {}
        () = counted => {}
    }
}

const WRITE_TIMEOUTS: &str = "connections_closed_total{reason=\"write_timeout\"}";

#[tokio::test]
async fn who_reads_a_large_retained_set_slowly_harms_nobody() {
    let process = start("").await;
    let mut source = client(&process, &v3("source")).await;
    for number in 0..24 {
        let topic = format!("kept/{number}");
        source.send(&publish(3, 1, &topic, None, &vec![b'x'; 512 << 10])).await;
        source.expect(b"\x40\x02\x00\x01").await;
    }
    leave(source).await;
    let count = (CLOSED, &["write_timeout"][..], 2);
    check(&process, "12 MiB of retained messages read slowly", count, async |address| {
        let enough = process.api.metric(WRITE_TIMEOUTS).await + 2;
        let both = [("a byte a second", true), ("not at all", false)].map(async |(id, reads)| {
            let id = id.replace(' ', "-");
            let mut socket = lazy(address).await;
            let wish = subscribe(1, "kept/#", 0, None);
            socket.write_all(&after(&v3(&id), &wish)).await.unwrap();
            dawdle(&process, socket, reads, WRITE_TIMEOUTS, enough).await;
        });
        futures_util::future::join_all(both).await;
    })
    .await;
}

#[tokio::test]
async fn slow_subscribers_of_fast_publishers_harm_nobody() {
    let process = start("queue_messages_max = 100\n").await;
    // QoS 0 is dropped, then the client is disconnected.
    let count = (DROPPED, &["queue_full"][..], 100);
    check(&process, "a subscriber that does not read", count, async |address| {
        let enough = process.api.metric(WRITE_TIMEOUTS).await + 1;
        let mut slow = lazy(address).await;
        let wish = subscribe(1, "fast/+", 0, None);
        slow.write_all(&after(&v3("slow"), &wish)).await.unwrap();
        let mut source = client(&process, &v3("source")).await;
        let burst = [
            publish(0, 0, "fast/x", None, &[b'x'; 32 << 10]).repeat(50),
            publish(2, 1, "fence", None, b""),
        ]
        .concat();
        let began = Instant::now();
        while process.api.metric(WRITE_TIMEOUTS).await < enough {
            assert!(began.elapsed() < PATIENCE, "a client that does not read is still there");
            source.send(&burst).await;
            source.expect(b"\x40\x02\x00\x01").await;
        }
        leave(source).await;
        drop(slow);
    })
    .await;
    let count = (CLOSED, &["queue_full"][..], 1);
    check(&process, "a subscriber that acknowledges nothing", count, async |_| {
        let mut slow = client(&process, &v3("slow")).await;
        slow.send(&subscribe(1, "fast/+", 1, None)).await;
        slow.expect(b"\x90\x03\x00\x01\x01").await;
        let mut source = client(&process, &v3("source")).await;
        let drained = async { while slow.packet().await.is_some() {} };
        let driven = async {
            loop {
                source.send(&publish(2, 1, "fast/x", None, b"x")).await;
                source.expect(b"\x40\x02\x00\x01").await;
            }
        };
        tokio::select! {
            ended = tokio::time::timeout(PATIENCE, drained) => ended.expect("it is disconnected"),
            () = driven => {}
        }
        source.hang_up().await;
    })
    .await;
}

const SMALL_QUEUES: &str =
    "packet_bytes_max = 65536\nqueue_bytes_max = 65536\nqueued_bytes_max = 262144\n";

/// Sessions whose clients are away had all the bytes that may wait in all: those of clients that
/// are there, and take at once what comes, got nothing any more.
#[tokio::test]
async fn absent_sessions_filled_all_queues_and_nobody_got_anything() {
    let process = start(SMALL_QUEUES).await;
    let absent: Vec<String> = (0..10).map(|number| format!("absent-{number}")).collect();
    // 80 copies of 8 KiB, of which 31 fit.
    let count = (DROPPED, &["queue_full"][..], 49);
    check(&process, "absent sessions with full queues", count, async |_| {
        for id in &absent {
            let mut raw = client(&process, &Connect { keep: true, ..v3(id) }).await;
            raw.send(&subscribe(1, "fill/+", 1, None)).await;
            raw.expect(b"\x90\x03\x00\x01\x01").await;
            leave(raw).await;
        }
        let mut source = client(&process, &v3("source")).await;
        for _ in 0..8 {
            source.send(&publish(2, 1, "fill/x", None, &[b'x'; 8 << 10])).await;
            source.expect(b"\x40\x02\x00\x01").await;
        }
        let mut honest = subscriber(&process, "honest", "honest/+").await;
        for number in 0..20 {
            source.send(&publish(0, 0, "honest/x", None, &[number; 8 << 10])).await;
            honest.expect(&publish(0, 0, "honest/x", Some(b""), &[number; 8 << 10])).await;
        }
        leave(honest).await;
        leave(source).await;
        for id in &absent {
            leave(client(&process, &v3(id)).await).await;
        }
        process.api.counted("sessions", 2).await;
    })
    .await;
}
