//! Hostile clients against the real binary on loopback, and what everybody else notices of them:
//! nothing.
//!
//! [`check`] runs every attack twice, while a watcher publishes and subscribes beside it. The first
//! round fills what is kept for later (the allocator's pools, the tables that remember addresses);
//! after the second the process may not have grown. What it never does: leave loopback, or go on
//! without a count.
//!
//! Invariant: every attack is counted under a Reason, and every publish of the watcher is
//! acknowledged and delivered exactly once, in order, in time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::harness::{Place, found};
use crate::process::Process;
use crate::raw::{Connect, Raw, packet, publish, subscribe, v3, v5};

/// Longest that a publish of the watcher may take. A broker that stands still takes longer; a
/// loaded machine with two cores does not.
const DELIVERED_WITHIN: Duration = Duration::from_secs(15);
/// How much larger the process may be after the second round than after the first.
const GROWTH_KIB_MAX: u64 = 12 << 10;
/// Longer than anything that is waited for; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

const SETTINGS: &str = "
    [broker]
    anonymous = 'loopback'
    connect_timeout = '1s'
    handshake_timeout = '1s'
    write_timeout = '1s'
    close_timeout = '1s'
";

/// Says one sentence and reads to the end, whatever the end is: the broker may hang up at any byte.
async fn say(address: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let spoken = async {
        socket.write_all(bytes).await?;
        socket.shutdown().await?;
        let mut answer = [0; 4096];
        while socket.read(&mut answer).await? > 0 {}
        std::io::Result::Ok(())
    };
    // An error is the broker's way to hang up; silence is not.
    drop(tokio::time::timeout(PATIENCE, spoken).await.expect("a connection that ends"));
}

/// A subscriber and a QoS 1 publisher that go on until they are told: how many publishes it were.
async fn watch(
    process: &Process,
    ready: oneshot::Sender<()>,
    mut enough: oneshot::Receiver<()>,
) -> u32 {
    let mut subscriber = process.anonymous("watcher-in").connect().await;
    assert!(subscriber.subscribe("watch/#").await.starts_with("Success"));
    let mut publisher = process.anonymous("watcher-out").connect().await;
    ready.send(()).expect("the attack waits");
    let mut count = 0_u32;
    while enough.try_recv().is_err() {
        let began = Instant::now();
        publisher.publishes("watch/count", &count.to_string()).await;
        // A message that is lost or comes twice is not the next one.
        let next = subscriber.receive().await;
        assert_eq!(next, ("watch/count".to_owned(), count.to_string()));
        let took = began.elapsed();
        assert!(took < DELIVERED_WITHIN, "publish {count} took {took:?}");
        count += 1;
        tokio::task::yield_now().await;
    }
    count
}

/// Memory of the process that is in use, KiB.
fn resident_kib(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs `attack` twice beside the watcher. Each round adds at least `least` to `metric`.
async fn check(
    process: &Process,
    name: &str,
    (metric, least): (&str, u64),
    attack: impl AsyncFn(SocketAddr),
) {
    let address = process.anonymous("").address;
    let (tell, enough) = oneshot::channel();
    let (ready, watched) = oneshot::channel();
    let rounds = async {
        watched.await.expect("the watcher begins");
        for round in ["the first", "the second"] {
            let counted = process.api.metric(metric).await;
            let before = resident_kib(process);
            attack(address).await;
            let what = format!("{name}: {metric} {least} more in {round} round");
            let grown = async || process.api.metric(metric).await >= counted + least;
            found(&what, async || grown().await.then_some(())).await;
            if round == "the second" {
                let what = format!("{name}: a process of {before} KiB that has not grown");
                let small = || resident_kib(process) <= before + GROWTH_KIB_MAX;
                found(&what, async || small().then_some(())).await;
            }
        }
        tell.send(()).expect("the watcher watches");
    };
    let (count, ()) = tokio::join!(watch(process, ready, enough), rounds);
    assert!(count > 0, "{name}: the watcher has seen nothing");
    assert!(!process.log().contains("panicked"), "{name}: {}", process.log());
}

async fn start() -> Process {
    Process::start(Place::new(SETTINGS)).await
}

/// Bytes, how often, and the reason for which each such connection is closed.
async fn check_closed(process: &Process, name: &str, bytes: &[u8], times: u64, reason: &str) {
    let metric = format!("connections_closed_total{{reason=\"{reason}\"}}");
    check(process, name, (&metric, times), async |address| {
        for _ in 0..times {
            say(address, bytes).await;
        }
    })
    .await;
}

/// `opening` and then `rest`.
fn after(opening: &Connect<'_>, rest: &[u8]) -> Vec<u8> {
    [&opening.bytes(), rest].concat()
}

#[tokio::test]
async fn what_is_no_connect_harms_nobody() {
    let process = start().await;
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
        ("a client id a/b", v3("a/b").bytes(), "bad_client_id"),
        ("a client id with a wildcard", v3("a+").bytes(), "bad_client_id"),
        ("a client id with #", v5("#").bytes(), "bad_client_id"),
        ("a client id with $", v5("$upstream/x").bytes(), "bad_client_id"),
        ("a client id with NUL", v3("a\0b").bytes(), "malformed_packet"),
        ("a client id of 8000 characters", v3(&long).bytes(), "bad_client_id"),
        ("a client id of 65000 characters", v3(&over).bytes(), "packet_too_large"),
    ] {
        check_closed(&process, name, &bytes, 50, reason).await;
    }
}

#[tokio::test]
async fn packets_that_no_client_sends_harm_nobody() {
    let process = start().await;
    let (old, new) = (v3("bad"), v5("bad"));
    let bomb = {
        let properties = b"\x26\x00\x01k\x00\x01v".repeat(5000);
        // 35,000 bytes: a length of three bytes.
        let mut body = b"\x00\x01t\xb8\x91\x02".to_vec();
        body.extend(properties);
        packet(0x30, &body)
    };
    for (name, bytes, reason) in [
        ("a CONNACK from a client", after(&old, b"\x20\x02\x00\x00"), "protocol_error"),
        ("a SUBACK from a client", after(&old, b"\x90\x03\x00\x01\x00"), "protocol_error"),
        ("an UNSUBACK from a client", after(&old, b"\xb0\x02\x00\x01"), "protocol_error"),
        ("a v5 UNSUBACK from a client", after(&new, b"\xb0\x04\x00\x01\x00\x00"), "protocol_error"),
        ("a PINGRESP from a client", after(&old, b"\xd0\x00"), "protocol_error"),
        ("a topic of $SYS", after(&old, &publish(2, 1, "$SYS/a", None, b"")), "bad_topic"),
        ("5000 user properties in one publish", after(&new, &bomb), "connection_lost"),
    ] {
        check_closed(&process, name, &bytes, 50, reason).await;
    }
}

#[tokio::test]
async fn a_thousand_connects_and_resets_with_one_id_harm_nobody() {
    let process = start().await;
    // Which of them was reset and which was taken over first is the scheduler's to say: some of
    // the thousand are enough.
    let metric = ("connections_closed_total{reason=\"connection_lost\"}", 100);
    check(&process, "CONNECT and RST", metric, async |address| {
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
async fn half_open_tls_peers_harm_nobody() {
    let process = start().await;
    let tls = process.device("half").address;
    let metric = ("connections_closed_total{reason=\"connect_timeout\"}", 300);
    check(&process, "half-open TLS", metric, async |_| {
        let mut open = Vec::new();
        for _ in 0..300 {
            let mut socket = TcpStream::connect(tls).await.unwrap();
            socket.write_all(b"\x16\x03\x01").await.unwrap();
            open.push(socket);
        }
        for mut socket in open {
            let mut said = Vec::new();
            let end = socket.read_to_end(&mut said);
            drop(tokio::time::timeout(PATIENCE, end).await.expect("a connection that ends"));
        }
    })
    .await;
}

#[tokio::test]
async fn takeovers_with_wills_harm_nobody() {
    let process = start().await;
    let metric = ("connections_closed_total{reason=\"taken_over\"}", 100);
    check(&process, "a takeover storm", metric, async |address| {
        let will = Some((0, "wills/one", &b"gone"[..], &b""[..]));
        let bytes = Connect { will, ..v3("stolen") }.bytes();
        let mut last: Option<TcpStream> = None;
        for _ in 0..200 {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(&bytes).await.unwrap();
            let mut connack = [0; 4];
            socket.read_exact(&mut connack).await.unwrap();
            assert_eq!(connack, *b"\x20\x02\x00\x00");
            // The old socket lives until the next one has the session: it dies late.
            drop(last.replace(socket));
        }
    })
    .await;
}

#[tokio::test]
async fn filters_by_the_thousand_and_topics_by_the_hundred_thousand_harm_nobody() {
    let process = start().await;
    let metric = ("refused_total{reason=\"too_many\"}", 900);
    check(&process, "filters by the thousand", metric, async |address| {
        let mut bytes = v3("greedy").bytes();
        for id in 1..=1000_u16 {
            bytes.extend(subscribe(id, &format!("+/+/{id}/+/#"), 0, None));
        }
        say(address, &bytes).await;
    })
    .await;
    let topics = if std::env::var_os("WATCHBELL_SOAK").is_some() { 200_000 } else { 20_000 };
    let metric = ("connections_closed_total{reason=\"connection_lost\"}", 2);
    check(&process, "many topics and then SUBSCRIBEs", metric, async |address| {
        let mut bytes = v3("topics").bytes();
        for number in 0..topics {
            bytes.extend(publish(0, 0, &format!("\u{fc}/{number}"), None, b"x"));
        }
        say(address, &bytes).await;
        let mut bytes = v3("filters").bytes();
        for id in 1..=100_u16 {
            bytes.extend(subscribe(id, &format!("\u{fc}/{id}"), 1, None));
        }
        say(address, &bytes).await;
    })
    .await;
}

#[tokio::test]
async fn refused_retries_at_the_connection_limit_harm_nobody() {
    let place = Place::new(&format!("{SETTINGS}\nconnections_max = 4\n"));
    let process = Process::start(place).await;
    let metric = ("connections_closed_total{reason=\"too_many\"}", 50);
    check(&process, "retries at the limit", metric, async |address| {
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

#[tokio::test]
async fn a_share_that_leaves_with_an_unacknowledged_message_gets_it_again() {
    let process = start().await;
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
    let process = start().await;
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
    let process = start().await;
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
