//! Sessions that survive: what a client has left is there after kill -9, and exactly once is once.
//!
//! The real binary, killed with SIGKILL, and clients that send exactly the bytes they are told to.
//! `TEST_SOAK=1` makes the ordeal longer; a failure names its seed, and `TEST_SEED`
//! repeats it.

use std::collections::{BTreeMap, BTreeSet};

use watchbell::store::Store;
use watchbell::telemetry::Metrics;

use crate::fake::{Fake, Twilio};
use crate::harness::{ALARM, Place, QUICK, twilio};
use crate::process::Process;
use crate::raw::{Connect, Raw, packet, publish, subscribe, v3, v5};

/// Session Expiry Interval of an hour.
const HOUR: &[u8] = b"\x11\x00\x00\x0e\x10";
/// The same, of one second.
const SECOND: &[u8] = b"\x11\x00\x00\x00\x01";

async fn start() -> Process {
    Process::start(Place::new("")).await
}

impl Process {
    /// Connects. Whether the session was there before.
    async fn connected(&self, connect: &Connect<'_>) -> (Raw, bool) {
        let address = self.anonymous(connect.id).address;
        let (raw, connack) = Raw::connected(address, &connect.bytes()).await;
        (raw, connack[2] == 1)
    }

    async fn killed(&mut self) {
        self.kill();
        self.restart().await;
    }
}

fn keeping(id: &str) -> Connect<'_> {
    Connect { keep: true, ..v3(id) }
}

fn keeping_for<'a>(id: &'a str, expiry: &'a [u8]) -> Connect<'a> {
    Connect { keep: true, properties: expiry, ..v5(id) }
}

/// The client `s`, whose session outlives its connection, with a subscription of QoS 1.
async fn subscribed(process: &Process, filter: &str) -> Raw {
    let (mut raw, present) = process.connected(&keeping("s")).await;
    assert!(!present);
    raw.send(&subscribe(1, filter, 1, None)).await;
    raw.expect(b"\x90\x03\x00\x01\x01").await;
    raw
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
fn ack(header: u8, id: u16) -> Vec<u8> {
    packet(header, &id.to_be_bytes())
}

/// Publishes with QoS 1 and waits for the PUBACK.
async fn publishes(process: &Process, flags: u8, topic: &str, payload: &[u8]) {
    let (mut raw, _) = process.connected(&v3("publisher")).await;
    raw.send(&publish(flags, 9, topic, None, payload)).await;
    raw.expect(&ack(0x40, 9)).await;
    raw.send(b"\xe0\x00").await;
}

#[tokio::test]
async fn a_subscription_and_what_waits_for_it_are_found_again_in_order() {
    let mut process = start().await;
    let mut raw = subscribed(&process, "t/+").await;
    raw.send(b"\xe0\x00").await;
    raw.expect_closed().await;
    process.killed().await;
    for payload in [b"a", b"b"] {
        publishes(&process, 2, "t/x", payload).await;
    }
    process.killed().await;

    let (mut raw, present) = process.connected(&keeping("s")).await;
    assert!(present);
    // They were certainly never sent: no DUP.
    raw.expect(&publish(2, 1, "t/x", None, b"a")).await;
    raw.expect(&publish(2, 2, "t/x", None, b"b")).await;
    raw.send(&ack(0x40, 1)).await;
    raw.expect_alive().await;
    // Its commit takes the acknowledgement along.
    publishes(&process, 2, "t/y", b"c").await;
    raw.expect(&publish(2, 3, "t/y", None, b"c")).await;
    process.killed().await;

    let (mut raw, present) = process.connected(&keeping("s")).await;
    assert!(present);
    raw.expect(&publish(0x0a, 2, "t/x", None, b"b")).await;
    raw.expect(&publish(0x0a, 3, "t/y", None, b"c")).await;
    raw.expect_alive().await;

    // A clean session leaves nothing behind, also not for the next start.
    process.connected(&v3("s")).await.0.expect_alive().await;
    process.killed().await;
    assert!(!process.connected(&keeping("s")).await.1);
}

#[tokio::test]
async fn what_waits_over_two_restarts_was_still_never_sent() {
    let mut process = start().await;
    let mut raw = subscribed(&process, "t").await;
    // It has had one, acknowledged it, and leaves nothing.
    publishes(&process, 2, "t", b"a").await;
    raw.expect(&publish(2, 1, "t", None, b"a")).await;
    raw.send(&ack(0x40, 1)).await;
    raw.send(b"\xe0\x00").await;
    raw.expect_closed().await;
    // Its commit takes along that the client has left.
    publishes(&process, 3, "other", b"x").await;
    process.killed().await;
    publishes(&process, 2, "t", b"b").await;
    process.killed().await;
    let (mut raw, present) = process.connected(&keeping("s")).await;
    assert!(present);
    raw.expect(&publish(2, 1, "t", None, b"b")).await;
    raw.expect_alive().await;
}

#[tokio::test]
async fn who_hears_itself_has_its_acknowledgement_first() {
    let process = start().await;
    let mut raw = subscribed(&process, "t").await;
    for id in 1..=100 {
        raw.send(&publish(2, id, "t", None, b"a")).await;
        raw.expect(&ack(0x40, id)).await;
        raw.expect(&publish(2, id, "t", None, b"a")).await;
        raw.send(&ack(0x40, id)).await;
    }
}

#[tokio::test]
async fn retained_messages_are_found_again() {
    let mut process = start().await;
    publishes(&process, 3, "r/a", b"one").await;
    publishes(&process, 3, "r/b", b"gone").await;
    publishes(&process, 3, "r/b", b"").await;
    process.killed().await;
    let (mut raw, _) = process.connected(&v3("s")).await;
    raw.send(&subscribe(1, "r/#", 0, None)).await;
    raw.expect(b"\x90\x03\x00\x01\x00").await;
    raw.expect(&publish(1, 0, "r/a", None, b"one")).await;
    raw.expect_alive().await;
}

#[tokio::test]
async fn a_retained_message_of_qos_0_is_on_disk_a_little_later() {
    let mut process = start().await;
    let before = process.api.metric("operations_committed_total").await;
    let (mut raw, _) = process.connected(&v3("p")).await;
    raw.send(&publish(1, 0, "r", None, b"x")).await;
    raw.send(&publish(1, 0, "r", None, b"y")).await;
    process.api.counted("operations_committed_total", before + 1).await;
    process.killed().await;
    let (mut raw, _) = process.connected(&v3("s")).await;
    raw.send(&subscribe(1, "r", 0, None)).await;
    raw.expect(b"\x90\x03\x00\x01\x00").await;
    raw.expect(&publish(1, 0, "r", None, b"y")).await;
}

#[tokio::test]
async fn a_delayed_will_is_published_after_the_restart_and_one_of_an_open_connection_is_not() {
    let mut process = start().await;
    let (mut watcher, _) = process.connected(&keeping("watcher")).await;
    watcher.send(&subscribe(1, "wills/#", 1, None)).await;
    watcher.expect(b"\x90\x03\x00\x01\x01").await;
    // Will Delay Interval: 2 s.
    let will = Some((8, "wills/gone", b"x".as_slice(), b"\x18\x00\x00\x00\x02".as_slice()));
    let gone = Connect { will, ..keeping_for("gone", HOUR) };
    let before = process.api.metric("operations_committed_total").await;
    drop(process.connected(&gone).await);
    let open = Connect { will: Some((8, "wills/open", b"x", b"")), ..keeping_for("open", HOUR) };
    let (_open, _) = process.connected(&open).await;
    // The session and its will.
    process.api.counted("operations_committed_total", before + 2).await;
    process.killed().await;
    let (mut watcher, present) = process.connected(&keeping("watcher")).await;
    assert!(present);
    watcher.expect(&publish(2, 1, "wills/gone", None, b"x")).await;
    watcher.expect_alive().await;
}

#[tokio::test]
async fn a_session_ends_in_its_time_over_a_restart() {
    let mut process = start().await;
    for (id, expiry) in [("short", SECOND), ("long", HOUR)] {
        let (mut raw, _) = process.connected(&keeping_for(id, expiry)).await;
        raw.send(&subscribe(1, "t", 1, Some(b""))).await;
        raw.expect(b"\x90\x04\x00\x01\x00\x01").await;
    }
    process.killed().await;
    process.api.counted("sessions", 1).await;
    process.killed().await;
    assert!(!process.connected(&keeping_for("short", SECOND)).await.1);
    assert!(process.connected(&keeping_for("long", HOUR)).await.1);
}

#[tokio::test]
async fn a_device_that_only_publishes_costs_no_commit() {
    let process = start().await;
    let before = process.api.metric("operations_committed_total").await;
    let (mut watcher, _) = process.connected(&v3("watcher")).await;
    watcher.send(&subscribe(1, "t", 1, None)).await;
    watcher.expect(b"\x90\x03\x00\x01\x01").await;
    for round in 1..=3_u16 {
        let (mut raw, present) = process.connected(&keeping("p")).await;
        assert_eq!(present, round > 1);
        for id in 1..=20 {
            raw.send(&publish(2, id, "t", None, b"x")).await;
            raw.expect(&ack(0x40, id)).await;
            watcher.packet().await.unwrap();
        }
        raw.send(&publish(4, 30, "t", None, b"x")).await;
        raw.expect(&ack(0x50, 30)).await;
        raw.send(&ack(0x62, 30)).await;
        raw.expect(&ack(0x70, 30)).await;
        watcher.packet().await.unwrap();
        raw.send(b"\xe0\x00").await;
        raw.expect_closed().await;
    }
    assert_eq!(process.api.metric("operations_committed_total").await, before);
}

#[tokio::test]
async fn one_of_a_shared_subscription_whose_queue_is_full_is_passed_over() {
    let process = Process::start(Place::new("[broker]\nqueue_messages_max = 2\n")).await;
    for id in ["one", "two"] {
        let (mut raw, _) = process.connected(&keeping(id)).await;
        raw.send(&subscribe(1, "$share/g/t", 1, None)).await;
        raw.expect(b"\x90\x03\x00\x01\x01").await;
        raw.send(b"\xe0\x00").await;
        raw.expect_closed().await;
    }
    // A third fills the queue of one of them with publishes of its own.
    let (mut one, _) = process.connected(&keeping("one")).await;
    one.send(&subscribe(1, "own", 1, None)).await;
    one.expect(b"\x90\x03\x00\x01\x01").await;
    one.send(b"\xe0\x00").await;
    one.expect_closed().await;
    for payload in [b"1", b"2"] {
        publishes(&process, 2, "own", payload).await;
    }
    for payload in [b"a", b"b"] {
        publishes(&process, 2, "t", payload).await;
    }
    let (mut two, _) = process.connected(&keeping("two")).await;
    two.expect(&publish(2, 1, "t", None, b"a")).await;
    two.expect(&publish(2, 2, "t", None, b"b")).await;
}

/// Numbers that look random and are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % sides
    }
}

/// A publisher and a subscriber with QoS 2 that keep their state, as MQTT asks of them, while the
/// broker is killed between any two packets.
struct Ordeal {
    process: Process,
    dice: Dice,
    kills: usize,
    publisher: Raw,
    subscriber: Raw,
    /// Packet ids that the subscriber has and were not released.
    held: BTreeSet<u16>,
    delivered: Vec<String>,
    what: String,
}

impl Ordeal {
    async fn start(fake: &Fake, seed: u64, kills: usize) -> Self {
        let config = format!("{QUICK}{}", twilio("twilio-main", fake));
        let process = Process::start(Place::new(&config).rules(ALARM)).await;
        let (publisher, _) = process.connected(&keeping("p")).await;
        let (mut subscriber, _) = process.connected(&keeping("s")).await;
        subscriber.send(&subscribe(1, "devices/#", 2, None)).await;
        subscriber.expect(b"\x90\x03\x00\x01\x02").await;
        Self {
            process,
            dice: Dice(seed),
            kills,
            publisher,
            subscriber,
            held: BTreeSet::new(),
            delivered: Vec::new(),
            what: format!("TEST_SEED={seed}"),
        }
    }

    /// Kills the broker, if the dice say so, and lets both come back.
    async fn perhaps_kill(&mut self) -> bool {
        if self.kills == 0 || self.dice.throw(6) > 0 {
            return false;
        }
        self.kills -= 1;
        self.process.killed().await;
        self.publisher = self.process.connected(&keeping("p")).await.0;
        let (subscriber, present) = self.process.connected(&keeping("s")).await;
        assert!(present, "{}: the subscriber's session is gone", self.what);
        self.subscriber = subscriber;
        true
    }

    /// Sends until it is answered: after each kill again.
    async fn exchange(&mut self, first: &[u8], again: &[u8], header: u8, id: u16) {
        self.publisher.send(first).await;
        while self.perhaps_kill().await {
            self.publisher.send(again).await;
        }
        let answer = self.publisher.packet().await;
        assert_eq!(answer, Some(ack(header, id)), "{}", self.what);
        while self.perhaps_kill().await {
            // The answer arrived, and what it answers is over: nothing is sent again.
        }
    }

    /// Takes what the subscriber gets until it has `count` and none is under way.
    async fn take(&mut self, count: usize) {
        while self.delivered.len() < count || !self.held.is_empty() {
            if self.perhaps_kill().await {
                continue;
            }
            let got = self.subscriber.packet().await.unwrap();
            let (answer, id) = match got[0] >> 4 {
                3 => {
                    let topic_len = usize::from(got[3]);
                    let id = u16::from_be_bytes([got[4 + topic_len], got[5 + topic_len]]);
                    if self.held.insert(id) {
                        let text = String::from_utf8_lossy(&got[6 + topic_len..]).into_owned();
                        self.delivered.push(text);
                    } else {
                        assert!(got[0] & 8 > 0, "{}: sent again without DUP", self.what);
                    }
                    (0x50, id)
                }
                6 => {
                    let id = u16::from_be_bytes([got[2], got[3]]);
                    self.held.remove(&id);
                    (0x70, id)
                }
                _ => panic!("{}: {got:02x?}", self.what),
            };
            self.subscriber.send(&ack(answer, id)).await;
        }
    }
}

#[tokio::test]
async fn exactly_once_is_once_in_both_directions_whenever_the_broker_is_killed() {
    let (rounds, count, kills) = match std::env::var_os("TEST_SOAK") {
        Some(_) => (10, 60, 40),
        None => (1, 24, 10),
    };
    for _ in 0..rounds {
        let seed = std::env::var("TEST_SEED").map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|_| getrandom::u64().unwrap());
        let (fake, _) = Twilio::start().await;
        let mut ordeal = Ordeal::start(&fake, seed, kills).await;
        let mut expected = Vec::new();
        for number in 0..count {
            // Every other one is an alert as well.
            let is_alarm = ordeal.dice.throw(2) == 0;
            let topic = if is_alarm { "devices/p/alarm" } else { "devices/p/state" };
            let text = format!("{number}-{is_alarm}");
            // The same few packet ids over and over, as small clients use them.
            let id = u16::try_from(1 + number % 2).unwrap();
            let first = publish(4, id, topic, None, text.as_bytes());
            let again = publish(0x0c, id, topic, None, text.as_bytes());
            ordeal.exchange(&first, &again, 0x50, id).await;
            let release = ack(0x62, id);
            ordeal.exchange(&release, &release, 0x70, id).await;
            expected.push(text);
            if ordeal.dice.throw(3) > 0 {
                ordeal.take(expected.len()).await;
            }
        }
        ordeal.take(expected.len()).await;
        assert_eq!(ordeal.delivered, expected, "{}", ordeal.what);

        let mut alerts: BTreeMap<String, usize> = BTreeMap::new();
        for message in ordeal.process.api.messages("rule=alarm").await {
            *alerts.entry(message["text"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let alarms: BTreeMap<String, usize> = expected
            .iter()
            .filter(|text| text.ends_with("true"))
            .map(|text| (format!("alarm {text}"), 1))
            .collect();
        assert_eq!(alerts, alarms, "{}", ordeal.what);
    }
}

#[tokio::test]
async fn what_waited_for_a_session_that_has_ended_is_gone_from_the_disk() {
    let mut process = start().await;
    let mut raw = subscribed(&process, "t").await;
    raw.send(b"\xe0\x00").await;
    raw.expect_closed().await;
    publishes(&process, 2, "t", b"a").await;
    let (mut raw, present) = process.connected(&keeping("s")).await;
    assert!(present);
    raw.expect(&publish(2, 1, "t", None, b"a")).await;
    // Taken over by a clean session, with the publish under way and another that waits.
    publishes(&process, 2, "t", b"b").await;
    process.connected(&v3("s")).await.0.expect_alive().await;
    publishes(&process, 3, "retained", b"x").await;
    process.kill();
    let data = process.place.path("data");
    let store = Store::open(&data, &Default::default(), &Metrics::new()).unwrap();
    let saved = store.saved();
    assert!(saved.sessions.is_empty(), "{saved:#?}");
    assert!(saved.queued.is_empty() && saved.bodies.is_empty(), "{saved:#?}");
    assert_eq!((saved.retained.len(), saved.unreadable.len()), (1, 0));
}
