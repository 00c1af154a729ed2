//! `broker.fanout = "router"`: rumqttd's router hands publishes to plain subscribers, and its death
//! costs nobody more than a new connection. Needs `--features rumqttd`.

use std::net::SocketAddr;

use tokio::sync::watch;
use watchbell::broker::config::{Config, Fanout};
use watchbell::broker::{Broker, Parts};
use watchbell::clock::Clock;
use watchbell::model::Reason;
use watchbell::store::Store;
use watchbell::telemetry::{ByReason, Metrics};

use crate::raw::{Connect, Raw, publish, subscribe, v3, v5};
use crate::{eventually, intake};

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

/// A broker with the router. Ends with the test and its runtime.
struct Served {
    address: SocketAddr,
    metrics: Metrics,
    store: Store,
    break_router: Box<dyn Fn()>,
    _stop: watch::Sender<bool>,
    _directory: tempfile::TempDir,
}

impl Served {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let data = directory.path().join("data");
        let store = Store::open(&data, &Default::default(), &metrics).unwrap();
        let (intake, _ended, _dispatcher) = intake::start(&store, &metrics, RULES).await;
        let config = Config {
            listen: "127.0.0.1:0".to_owned(),
            listen_tls: String::new(),
            fanout: Fanout::Router,
            ..Config::default()
        };
        let (clock, of_broker) = (Clock::System, store.clone());
        let parts = Parts { intake, store: of_broker, metrics: metrics.clone(), clock };
        let broker = Broker::bind(&config, Vec::new(), parts).await.unwrap();
        let address = broker.listen().unwrap();
        let break_router = Box::new(broker.router_breaker().unwrap());
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(broker.run(stopped));
        Self { address, metrics, store, break_router, _stop: stop, _directory: directory }
    }

    async fn connected(&self, connect: Connect<'_>) -> Raw {
        Raw::connected(self.address, &connect.bytes()).await.0
    }

    /// An MQTT 3.1.1 client that asks for QoS 2 and is granted `granted`.
    async fn subscriber(&self, connect: Connect<'_>, filter: &str, granted: u8) -> Raw {
        let mut raw = self.connected(connect).await;
        raw.send(&subscribe(1, filter, 2, None)).await;
        raw.expect(&[0x90, 3, 0, 1, granted]).await;
        raw
    }

    fn dropped(&self, reason: Reason) -> u64 {
        self.metrics.fanout_dropped.get_or_create(&ByReason { reason }).get()
    }
}

#[tokio::test]
async fn plain_subscribers_get_live_copies_of_qos_0() {
    let served = Served::start().await;
    let mut device = served.connected(v3("device")).await;
    for (filter, topic) in [
        ("a/+", "a/b"),
        ("#", "x/y"),
        // Its first letter would make the router panic.
        ("#", "überdruck/1"),
        ("öfen/#", "öfen/1"),
        ("/a", "/a"),
    ] {
        let mut watcher = served.subscriber(v3("watcher"), filter, 0).await;
        device.send(&publish(2, 1, topic, None, b"1")).await;
        device.expect(b"\x40\x02\x00\x01").await;
        watcher.expect(&publish(0, 0, topic, None, b"1")).await;
        watcher.send(b"\xa2\x05\x00\x02\x00\x01").await;
        drop(watcher);
    }
}

#[tokio::test]
async fn what_the_router_cannot_do_the_hub_does() {
    let served = Served::start().await;
    let keep = Connect { keep: true, ..v3("keeps") };
    let mut keeps = served.subscriber(keep, "a", 2).await;
    let mut shares = served.subscriber(v3("shares"), "$share/g/a", 2).await;
    let mut plain = served.subscriber(v3("plain"), "a", 0).await;
    let mut device = served.connected(v3("device")).await;
    device.send(&publish(3, 1, "a", None, b"1")).await;
    device.expect(b"\x40\x02\x00\x01").await;
    keeps.expect(&publish(2, 1, "a", None, b"1")).await;
    shares.expect(&publish(2, 1, "a", None, b"1")).await;
    plain.expect(&publish(0, 0, "a", None, b"1")).await;
    // Retained messages are the hub's, and have the QoS that was granted.
    let mut late = served.subscriber(v3("late"), "a", 0).await;
    late.expect(&publish(1, 0, "a", None, b"1")).await;
}

#[tokio::test]
async fn properties_come_through_the_router() {
    let served = Served::start().await;
    let mut watcher = served.connected(v5("watcher")).await;
    watcher.send(&subscribe(1, "a", 0, Some(&[]))).await;
    watcher.expect(b"\x90\x04\x00\x01\x00\x00").await;
    let mut device = served.connected(v5("device")).await;
    let properties = b"\x01\x01\x03\x00\x01t\x26\x00\x01k\x00\x01v";
    let sent = publish(0, 0, "a", Some(properties), b"1");
    device.send(&sent).await;
    watcher.expect(&sent).await;
}

/// 10,000 publishes; one of two subscribers does not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_slows_nobody_and_what_it_loses_is_counted() {
    const COUNT: usize = 10_000;
    let served = Served::start().await;
    let mut fast = served.subscriber(v3("fast"), "a", 0).await;
    let slow = served.subscriber(v3("slow"), "a", 0).await;
    let mut device = served.connected(v3("device")).await;
    let payload = vec![b'x'; 2000];
    for number in 0..COUNT {
        device.send(&publish(2, 1, "a", None, &payload)).await;
        device.expect(b"\x40\x02\x00\x01").await;
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // All was acknowledged, though nobody has read yet; both have lost what their queues cannot
    // hold, and it is counted.
    eventually(|| served.dropped(Reason::QueueFull) > 0).await;
    drop(slow);
    // Its queue may be full still, and has room again with each packet that is read.
    let mut got = 0;
    loop {
        device.send(&publish(2, 1, "a", None, b"last")).await;
        device.expect(b"\x40\x02\x00\x01").await;
        if fast.packet().await.expect("it stays connected").len() < 1000 {
            break;
        }
        got += 1;
    }
    assert!(got > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_router_dies_and_nothing_is_lost_but_connections_of_its_subscribers() {
    let served = Served::start().await;
    for round in 1..4 {
        let mut watcher = served.subscriber(v3("watcher"), "ovens/#", 0).await;
        let keep = Connect { keep: true, ..v3("keeps") };
        let mut keeps = served.connected(keep).await;
        keeps.send(&subscribe(1, "ovens/#", 1, None)).await;
        keeps.expect(b"\x90\x03\x00\x01\x01").await;
        let mut oven = served.connected(v3("oven")).await;
        (served.break_router)();
        watcher.expect_closed().await;
        // A rule's alert is durable with the router dead, and sessions on disk have their copy.
        let topic = format!("ovens/{round}/temp");
        oven.send(&publish(2, 1, &topic, None, b"250")).await;
        oven.expect(b"\x40\x02\x00\x01").await;
        assert_eq!(served.store.outbox().count(), round);
        // Its packet id is free again as soon as the last one's row is gone, which may be later.
        let copy = keeps.packet().await.expect("its copy");
        let at = 4 + topic.len();
        let id = [copy[at], copy[at + 1]];
        assert_eq!(copy, publish(2, u16::from_be_bytes(id), &topic, None, b"250"));
        keeps.send(&[0x40, 2, id[0], id[1]]).await;
        keeps.expect_alive().await;
        // Back again, it has its live copies.
        let mut watcher = served.subscriber(v3("watcher"), "ovens/#", 0).await;
        oven.send(&publish(0, 0, "ovens/x/y", None, b"1")).await;
        watcher.expect(&publish(0, 0, "ovens/x/y", None, b"1")).await;
        keeps.expect(&publish(0, 0, "ovens/x/y", None, b"1")).await;
    }
    let reason = Reason::FanoutFailed;
    assert_eq!(served.metrics.connections_closed.get_or_create(&ByReason { reason }).get(), 3);
}
