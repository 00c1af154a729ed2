//! Limits on load: what a client that hits one sees, that it is counted, and that a watcher beside
//! it does not notice; and who is connected.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::device::Options;
use crate::harness::{ALARM, Harness, Place, found};
use crate::process::{Process, command};
use crate::raw::{Connect, Raw, publish, subscribe, v3, v5};

const RATE_LIMITED: &str = "{reason=\"rate_limited\"}";
const TOO_MANY: &str = "{reason=\"too_many\"}";

impl Harness {
    fn mqtt(&self) -> SocketAddr {
        self.app.instance().mqtt.unwrap()
    }

    async fn raw(&self, connect: Connect<'_>) -> Raw {
        Raw::connected(self.mqtt(), &connect.bytes()).await.0
    }

    /// Adds a device that may use every client id.
    async fn add_user(&self, user: &str) {
        let body = json!({ "user": user, "password": "long enough", "client_ids": ["*"] });
        assert_eq!(self.api.post("/v1/devices", &body).await.0, 201);
    }

    async fn refused(&self, reason: &str) -> u64 {
        self.api.metric(&format!("refused_total{reason}")).await
    }
}

/// A client that subscribes to everything.
async fn watcher(harness: &Harness) -> Raw {
    let mut watcher = harness.raw(v3("watcher")).await;
    watcher.send(&subscribe(1, "watched/#", 0, None)).await;
    watcher.expect(b"\x90\x03\x00\x01\x00").await;
    watcher
}

const USER: Option<(&str, &str)> = Some(("ana", "long enough"));

// Rates.

/// A client that sends 24 publishes of QoS 0 and one of QoS 1 at once is slowed down by this limit:
/// all of them arrive, but no faster than the limit says, and the watcher is answered meanwhile.
async fn check_slowed(limit: &str) {
    // A burst of 10 publishes, 20 a second; as bytes, of 29 each with QoS 0.
    let harness = Harness::start(&format!(
        "[broker.limits]\n{limit}\n[[access]]\nwho = {{ user = 'ana' }}\npublish = ['watched/#']"
    ))
    .await;
    harness.add_user("ana").await;
    let mut watcher = watcher(&harness).await;
    let mut fast = harness.raw(Connect { user: USER, ..v3("fast") }).await;
    let start = Instant::now();
    let mut burst = Vec::new();
    for _ in 0..24 {
        burst.extend(publish(0, 0, "watched/fast", None, b"0123456789abc"));
    }
    burst.extend(publish(2, 7, "watched/fast", None, b""));
    fast.send(&burst).await;
    let pauses = format!("read_pauses_total{RATE_LIMITED}");
    found("a pause", async || (harness.api.metric(&pauses).await > 0).then_some(())).await;
    for _ in 0..25 {
        let copy = watcher.packet().await.expect("a copy");
        assert_eq!(copy[0], 0x30, "{limit}: {copy:02x?}");
    }
    fast.expect(b"\x40\x02\x00\x07").await;
    assert!(start.elapsed() >= Duration::from_millis(500), "{limit}: {:?}", start.elapsed());
    watcher.expect_alive().await;
    assert_eq!(harness.refused(RATE_LIMITED).await, 0, "{limit}: slowed down is not refused");
}

#[tokio::test]
async fn whoever_is_too_fast_waits_and_loses_nothing() {
    let cases = ["client", "identity", "listener", "total"].map(async |scope| {
        for rate in ["publishes_per_second = 20", "bytes_per_second = 580"] {
            check_slowed(&format!("{scope} = {{ {rate}, burst = '500ms' }}")).await;
        }
    });
    join_all(cases).await;
}

#[tokio::test]
async fn the_keep_alive_of_a_client_that_is_not_read_from_does_not_run() {
    let limit = "[broker.limits.client]\npublishes_per_second = 1";
    let harness = Harness::start(limit).await;
    let mut slow = harness.raw(Connect { keep_alive: 1, ..v3("slow") }).await;
    let mut burst = Vec::new();
    for id in 1..=4 {
        burst.extend(publish(2, id, "a", None, b""));
    }
    slow.send(&burst).await;
    for id in 1..=4 {
        slow.expect(&[0x40, 2, 0, id]).await;
    }
    slow.expect_alive().await;
    // Nobody had to read for that: it waits for its next publish, and is told to go all the same.
    slow.send(&[burst.as_slice(), &burst, &burst].concat()).await;
    let mut next = harness.raw(v3("slow")).await;
    next.expect_alive().await;
}

#[tokio::test]
async fn one_that_was_slowed_down_could_hurry_again_by_a_will() {
    let limit = "[broker.limits.identity]\npublishes_per_second = 1\nburst = '2s'";
    let access = "[[access]]\nwho = { user = 'ana' }\npublish = ['watched/#']";
    let harness = Harness::start(&format!("{limit}\n{access}")).await;
    harness.add_user("ana").await;
    let mut watcher = watcher(&harness).await;
    let will = Some((0, "watched/will", &b"gone"[..], &b""[..]));
    for _ in 0..4 {
        drop(harness.raw(Connect { user: USER, will, ..v3("storm") }).await);
        assert_eq!(watcher.packet().await.unwrap()[0], 0x30);
    }
    let start = Instant::now();
    let mut next = harness.raw(Connect { user: USER, ..v3("next") }).await;
    next.send(
        &[publish(0, 0, "watched/a", None, b""), publish(2, 1, "watched/a", None, b"")].concat(),
    )
    .await;
    next.expect(b"\x40\x02\x00\x01").await;
    let name = format!("read_pauses_total{RATE_LIMITED}");
    // However slow this machine is: either the wills have cost it a pause, or their time is over.
    assert!(harness.api.metric(&name).await > 0 || start.elapsed() > Duration::from_secs(3));
}

#[tokio::test]
async fn new_connections_over_their_rate_are_closed_before_a_word() {
    for (scope, spares_tls) in [("listener", true), ("total", false)] {
        let limit = format!("[broker.limits.{scope}]\nhandshakes_per_second = 1");
        let harness = Harness::start(&limit).await;
        let start = Instant::now();
        let (mut let_in, mut closed) = (Vec::new(), 0);
        for _ in 0..20 {
            let mut raw = Raw::open(harness.mqtt()).await;
            // It may be closed while we write.
            match raw.try_send(&v5("a").bytes()).await.is_ok() && raw.packet().await.is_some() {
                true => let_in.push(raw),
                false => closed += 1,
            }
        }
        let most = 2 + usize::try_from(start.elapsed().as_secs()).unwrap();
        assert!((1..=most).contains(&let_in.len()), "{scope}: {}", let_in.len());
        assert_eq!(harness.refused(RATE_LIMITED).await, closed, "{scope}");
        if spares_tls {
            harness.device("by-tls").connect().await;
        }
        let_in.last_mut().unwrap().expect_alive().await;
    }
}

// Counts.

/// What is sent by MQTT 5 and 3.1.1, and how the answer ends; the limit is counted.
async fn check_refused(harness: &Harness, raw: &mut Raw, bytes: &[u8], answer: &[u8]) {
    let before = harness.refused(TOO_MANY).await;
    raw.send(bytes).await;
    let said = raw.packet().await.expect("an answer");
    assert!(said.ends_with(answer), "{said:02x?} does not end with {answer:02x?}");
    harness.api.counted(&format!("refused_total{TOO_MANY}"), before + 1).await;
}

#[tokio::test]
async fn an_identity_has_only_so_many_connections_but_may_take_its_own_over() {
    let harness = Harness::start("[broker.limits.identity]\nconnections_max = 1").await;
    harness.add_user("ana").await;
    let ana = |id, v5: bool| Connect { user: USER, v5, ..v3(id) };
    let mut first = harness.raw(ana("first", true)).await;
    let before = harness.refused(TOO_MANY).await;
    for (v5, code) in [(true, 0x97), (false, 3)] {
        let mut second = Raw::open(harness.mqtt()).await;
        second.send(&ana("second", v5).bytes()).await;
        let connack = second.packet().await.expect("a CONNACK");
        assert_eq!((connack[0], connack[3]), (0x20, code), "{connack:02x?}");
        second.expect_closed().await;
    }
    assert_eq!(harness.refused(TOO_MANY).await, before + 2);
    first.expect_alive().await;
    // A device that comes back before we know that it was gone.
    let mut again = harness.raw(ana("first", true)).await;
    assert_eq!(first.packet().await.expect("a DISCONNECT")[2], 0x8e);
    again.expect_alive().await;
    again.send(b"\xe0\x00").await;
    again.expect_closed().await;
    harness.raw(ana("second", false)).await.expect_alive().await;
}

#[tokio::test]
async fn subscriptions_are_limited_by_client_identity_and_in_all() {
    for limit in [
        "subscriptions_max = 1",
        "limits.identity.subscriptions_max = 1",
        "limits.total.subscriptions_max = 1",
    ] {
        let harness = Harness::start(&format!("[broker]\n{limit}")).await;
        let mut first = harness.raw(v5("first")).await;
        first.send(&subscribe(1, "a", 0, Some(b""))).await;
        first.expect(b"\x90\x04\x00\x01\x00\x00").await;
        // Once more is none more.
        first.send(&subscribe(2, "a", 0, Some(b""))).await;
        first.expect(b"\x90\x04\x00\x02\x00\x00").await;
        check_refused(&harness, &mut first, &subscribe(3, "b", 0, Some(b"")), b"\x97").await;
        let mut other = harness.raw(v3("other")).await;
        if limit.contains("total") {
            check_refused(&harness, &mut other, &subscribe(1, "b", 0, None), b"\x80").await;
        }
        // What ends with its session is given back.
        first.send(b"\xe0\x00").await;
        first.expect_closed().await;
        other.send(&subscribe(2, "b", 0, None)).await;
        other.expect(b"\x90\x03\x00\x02\x00").await;
        check_refused(&harness, &mut other, &subscribe(3, "c", 0, None), b"\x80").await;
        other.send(b"\xa2\x05\x00\x04\x00\x01b").await;
        other.expect(b"\xb0\x02\x00\x04").await;
        other.send(&subscribe(5, "c", 0, None)).await;
        other.expect(b"\x90\x03\x00\x05\x00").await;
    }
}

#[tokio::test]
async fn one_identity_does_not_fill_what_is_retained_for_all() {
    for limit in ["retained_messages_max = 2", "retained_bytes_max = 6"] {
        let harness = Harness::start(&format!("[broker.limits.identity]\n{limit}")).await;
        let mut greedy = harness.raw(v3("greedy")).await;
        let keep = |id, topic, payload: &'static [u8]| publish(3, id, topic, None, payload);
        for (id, topic) in [(1, "r/1"), (2, "r/2"), (3, "r/3")] {
            let before = harness.refused(TOO_MANY).await;
            // Topic and payload are three bytes, and three of them too many.
            greedy.send(&keep(id, topic, b"")).await;
            greedy.expect(&[0x40, 2, 0, u8::try_from(id).unwrap()]).await;
            assert_eq!(harness.refused(TOO_MANY).await, before, "an empty one deletes");
        }
        for (id, topic, kept) in [(4, "1", 1), (5, "2", 2), (6, "3", 2)] {
            greedy.send(&keep(id, topic, b"xy")).await;
            greedy.expect(&[0x40, 2, 0, u8::try_from(id).unwrap()]).await;
            assert_eq!(harness.api.metric("retained_messages").await, kept, "{limit}");
        }
        harness.api.counted(&format!("refused_total{TOO_MANY}"), 1).await;
        let mut other = harness.raw(v3("other")).await;
        other.send(&keep(1, "4", b"xy")).await;
        other.expect(b"\x40\x02\x00\x01").await;
        assert_eq!(harness.api.metric("retained_messages").await, 3, "{limit}");
        // One that is deleted makes room.
        greedy.send(&[keep(7, "1", b""), keep(8, "3", b"xy")].concat()).await;
        greedy.expect(b"\x40\x02\x00\x07").await;
        greedy.expect(b"\x40\x02\x00\x08").await;
        assert_eq!(harness.api.metric("retained_messages").await, 3, "{limit}");
    }
}

#[tokio::test]
async fn packets_that_begin_and_do_not_end_are_bounded_in_all() {
    let config = "[broker]\npacket_bytes_max = 400_000\nlimits.total.input_bytes_max = 500_000";
    let harness = Harness::start(config).await;
    let whole = publish(2, 1, "a", Some(b""), &vec![b'x'; 390_000]);
    let begun = &whole[..300_000];
    let mut first = harness.raw(v5("first")).await;
    first.send(begun).await;
    let mut second = harness.raw(v5("second")).await;
    // It may be closed while it writes.
    drop(second.try_send(begun).await);
    // Whichever grew when it was too much.
    let said = tokio::select! {
        said = first.packet() => said,
        said = second.packet() => said,
    };
    // A reset can overtake the reason.
    assert!(said.is_none_or(|said| (said[0], said[2]) == (0xe0, 0x97)));
    harness.api.counted(&format!("refused_total{TOO_MANY}"), 1).await;
    drop((first, second));
    // What it held is given back.
    let mut third = harness.raw(v5("third")).await;
    for _ in 0..3 {
        third.send(&whole).await;
        third.expect(b"\x40\x02\x00\x01").await;
    }
}

// Handshakes.

/// A ClientHello as rustls sends it.
fn client_hello() -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test]
async fn silent_tls_peers_have_no_turn_and_many_clients_at_once_all_get_in() {
    let harness = Harness::start("[broker]\nhandshakes_max = 1\nhandshake_timeout = '60s'").await;
    let hello = client_hello();
    let mut silent = Vec::new();
    for number in 0..90 {
        let mut socket = TcpStream::connect(harness.app.instance().mqtts.unwrap()).await.unwrap();
        // Nothing, its beginning, or all of it and then nothing more.
        let said = [0, 5, hello.len()][number % 3];
        socket.write_all(&hello[..said]).await.unwrap();
        silent.push(socket);
    }
    harness.api.counted("connections", 90).await;
    let clients = (0..40).map(|number| {
        let device = harness.device("one");
        let tls = device.tls.map(|(ca, _)| (ca, None));
        Options { tls, client_id: format!("client-{number}"), ..device }.connect()
    });
    let clients = join_all(clients).await;
    // All of them while the others are still there.
    assert_eq!(harness.api.metric("connections").await, 130);
    drop((clients, silent));
}

// A slow intake.

/// Each publish of this rule costs a good while.
const HEAVY: &str = r#"
[[rule]]
name = "heavy"
topic = "heavy"
when = "payload.list.all(x, x * 2.0 + 1.0 > x)"
to = ["ana"]
text = "heavy"
"#;

/// The connection stood still inside of its reading until intake had taken all that it had sent:
/// nothing was acknowledged meanwhile, and nobody could take it over or stop it.
#[tokio::test]
async fn acknowledgements_waited_for_publishes_that_intake_had_no_room_for() {
    let place = Place::new("[intake]\nqueue_max = 1").rules(HEAVY);
    let harness = place.start().await;
    let list = (0..2000).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    let payload = format!("{{\"list\": [{list}]}}");
    let mut heavy = harness.raw(v3("heavy")).await;
    let mut burst = Vec::new();
    for id in 1..=60 {
        burst.extend(publish(2, id, "heavy", None, payload.as_bytes()));
    }
    heavy.send(&burst).await;
    heavy.expect(b"\x40\x02\x00\x01").await;
    let matched = harness.api.metric("publishes_matched_total").await;
    assert!(matched < 60, "{matched} were handed in before the first was acknowledged");
    // Beside it all goes on.
    let mut other = harness.raw(v3("other")).await;
    other.send(&publish(2, 1, "light", None, b"")).await;
    other.expect(b"\x40\x02\x00\x01").await;
    for id in 2..=60 {
        heavy.expect(&[0x40, 2, 0, id]).await;
    }
}

// Files and memory.

#[tokio::test]
async fn with_few_open_files_the_api_still_answers_and_devices_come_again() {
    let place = Place::new("[api]\nread_timeout = '60s'");
    let process = Process::start_limited(place, "-n 64").await;
    assert!(process.log().contains("may have 64 open files, so it takes 32"), "{}", process.log());
    let mut first = process.anonymous("first").connect().await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(TcpStream::connect(process.mqtt()).await.unwrap());
    }
    process.api.counted(&format!("connections_closed_total{TOO_MANY}"), 200 - 31).await;
    assert_eq!(process.api.metric("connections").await, 32);
    first.publishes("a", "still here").await;
    let said = process.done(&["device", "add", "pump-7"]).await;
    assert!(said.contains("password"), "the store has files too: {said}");
    drop(crowd);
    process.api.counted("connections", 1).await;
    process.anonymous("second").connect().await.publishes("a", "in again").await;

    // Not devices this time: nothing at all can be opened any more.
    let mut crowd = Vec::new();
    for _ in 0..80 {
        crowd.push(TcpStream::connect(process.http()).await.unwrap());
    }
    found("the broker to say that it cannot accept", async || {
        crowd.push(TcpStream::connect(process.mqtt()).await.unwrap());
        process.log().contains("no connection can be accepted").then_some(())
    })
    .await;
    first.publishes("a", "still here").await;
    drop(crowd);
    process.api.counted("connections", 1).await;
    process.anonymous("third").connect().await.publishes("a", "in again").await;
    first.publishes("a", "still here").await;
}

/// Each publish that a full disk refused had its warning.
#[tokio::test]
async fn a_full_disk_was_logged_for_every_publish() {
    let place = Place::new("[store]\ndisk_free_min_bytes = 1_000_000_000_000_000_000").rules(ALARM);
    let process = Process::start(place).await;
    let low = "refused_total{reason=\"disk_low\"}";
    found("a full disk", async || {
        let mut device = process.anonymous("first").connect().await;
        (device.publish("devices/first/alarm", "1").await != "Success").then_some(())
    })
    .await;
    let before = process.api.metric(low).await;
    for number in 0..30 {
        let mut device = process.anonymous(&format!("d{number}")).connect().await;
        let topic = format!("devices/{number}/alarm");
        assert_eq!(device.publish(&topic, "1").await, "QuotaExceeded");
    }
    assert_eq!(process.api.metric(low).await, before + 30);
    assert_eq!(process.log().matches("publishes are not taken").count(), 1);
}

/// 500 publishes were acknowledged into a file that had been deleted, and `ready` was the last word.
#[tokio::test]
async fn a_store_that_was_moved_away_takes_nothing_until_it_is_back() {
    let harness = Place::new("").rules(ALARM).start().await;
    let mut device = harness.device("pump-7").connect().await;
    assert_eq!(device.publish("devices/pump-7/alarm", "1").await, "Success");
    let data = harness.place.path("data");
    std::fs::rename(data.join("store"), data.join("elsewhere")).unwrap();
    found("a refusal", async || {
        let mut device = harness.device("pump-8").connect().await;
        (device.publish("devices/pump-8/alarm", "1").await != "Success").then_some(())
    })
    .await;
    let status = harness.api.get("/v1/status").await;
    assert!(status.to_string().contains("were deleted or moved"), "{status}");
    std::fs::rename(data.join("elsewhere"), data.join("store")).unwrap();
    found("taken again", async || {
        let mut device = harness.device("pump-9").connect().await;
        (device.publish("devices/pump-9/alarm", "1").await == "Success").then_some(())
    })
    .await;
    harness.stop().await;
}

/// Resident memory, KiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Each thread of ours had glibc set 64 MiB of addresses aside for the C code in it. Under a limit of
/// 900 MB so little was left that a start with 200,000 waiting messages was aborted, four of four times.
#[tokio::test]
async fn a_limit_of_address_space_leaves_room_for_a_backlog() {
    let process = Process::start_limited(Place::new("").rules(ALARM), "-v 900000").await;
    process.anonymous("first").connect().await.publishes("devices/first/alarm", "1").await;
    let sizes = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let size = sizes.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    let size: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    assert!(size < 700_000, "{size} kB of addresses");
}

#[tokio::test]
async fn idle_connections_give_the_buffers_of_a_burst_back() {
    let process = Process::start(Place::new("")).await;
    let mut clients = Vec::new();
    for number in 0..100 {
        clients.push(Raw::connected(process.mqtt(), &v3(&format!("c{number}")).bytes()).await.0);
    }
    let payload = vec![b'x'; 512 << 10];
    let mut burst = async || {
        for client in &mut clients {
            client.send(&publish(2, 1, "a/burst", None, &payload)).await;
        }
        for client in &mut clients {
            client.expect(b"\x40\x02\x00\x01").await;
            client.expect_alive().await;
        }
    };
    // The allocator's own share is there after the first.
    burst().await;
    let before = resident(process.pid());
    burst().await;
    burst().await;
    // Each client has received 1.5 MiB by now: 150 MiB, were the buffers kept.
    let what = "memory back where it was";
    found(what, async || (resident(process.pid()) < before + (16 << 10)).then_some(())).await;
}

// Who is connected.

#[tokio::test]
async fn who_is_connected_is_listed_by_pages_and_filters() {
    let harness = Harness::start("").await;
    harness.add_user("ana").await;
    let mut bee = harness.raw(v3("bee")).await;
    bee.send(&subscribe(1, "x", 1, None)).await;
    bee.expect(b"\x90\x03\x00\x01\x01").await;
    // Two under way to it that it does not acknowledge.
    for id in 1..=2 {
        bee.send(&publish(2, id, "x", None, b"1")).await;
    }
    let _ant = harness.raw(Connect { user: USER, ..v5("ant") }).await;
    let device = harness.device("bumblebee").connect().await;
    let list = async |query: &str| {
        let page = harness.api.get(&format!("/v1/clients?{query}")).await;
        let ids = page["clients"].as_array().unwrap().iter();
        let ids: Vec<_> = ids.map(|client| client["client_id"].as_str().unwrap()).collect();
        format!("{} {}", ids.join(","), page["next"].as_str().unwrap_or("-"))
    };
    for (query, expected) in [
        ("", "ant,bee,bumblebee -"),
        ("limit=2", "ant,bee bee"),
        ("limit=2&after=bee", "bumblebee -"),
        ("prefix=b", "bee,bumblebee -"),
        ("prefix=b&after=a", "bee,bumblebee -"),
        ("prefix=b&after=c", " -"),
        ("identity=ana", "ant -"),
        ("identity=bumblebee", "bumblebee -"),
        ("identity=nobody", " -"),
        ("listener=mqtt", "ant,bee -"),
    ] {
        assert_eq!(list(query).await, expected, "{query}");
    }
    let bee_now = found("two in flight", async || {
        let page = harness.api.get("/v1/clients?prefix=bee").await;
        (page["clients"][0]["in_flight"] == json!(2)).then(|| page["clients"][0].clone())
    })
    .await;
    assert_eq!(bee_now["identity"], Value::Null);
    assert_eq!((&bee_now["version"], &bee_now["subscriptions"]), (&json!("3.1.1"), &json!(1)));
    assert_eq!(bee_now["listener"], json!("mqtt"));

    let said = command(&harness.place, &["device", "list", "--online", "--prefix", "a"]).await;
    let lines: Vec<&str> = said.out.lines().collect();
    assert!(lines[0].starts_with("CLIENT ID  IDENTITY  ADDRESS"), "{said:?}");
    assert!(lines[1].starts_with("ant        ana       127.0.0.1:"), "{said:?}");
    let said = command(&harness.place, &["device", "list", "--online", "--json"]).await;
    let listed: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 3, "{said:?}");
    let said = command(&harness.place, &["device", "list", "--online", "--identity", "x"]).await;
    assert_eq!(said.out, "No client that fits is connected.\n");
    let said = command(&harness.place, &["device", "list", "--prefix", "x"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    drop(device);
    found("only two", async || (list("").await == "ant,bee -").then_some(())).await;
}

#[tokio::test]
async fn a_client_is_disconnected_and_its_will_published() {
    let harness = Harness::start("").await;
    let mut watcher = watcher(&harness).await;
    let will = Some((0, "watched/will", &b"gone"[..], &b""[..]));
    for (v5, id, goodbye) in [(true, "five", Some(0x98)), (false, "three", None)] {
        let mut client = harness.raw(Connect { v5, will, ..v3(id) }).await;
        let said = command(&harness.place, &["device", "disconnect", id]).await;
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
        assert!(said.out.starts_with(&format!("{id} is told to go")), "{said:?}");
        let last = client.packet().await;
        assert_eq!(last.as_ref().map(|packet| packet[2]), goodbye, "{last:02x?}");
        watcher.expect(&publish(0, 0, "watched/will", None, b"gone")).await;
        let said = command(&harness.place, &["device", "disconnect", id]).await;
        assert_eq!(said.code, 1);
        assert!(said.err.contains("`watchbell device list --online` shows them"), "{said:?}");
    }
    harness.api.counted("connections_closed_total{reason=\"admin_disconnect\"}", 2).await;
    watcher.expect_alive().await;
}
