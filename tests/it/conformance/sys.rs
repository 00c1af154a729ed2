//! `$SYS`: what the broker says of itself, and to whom.

use super::{Served, subscribed, unsubscribe};
use crate::harness::found;
use crate::raw::{Raw, publish, subscribe, v3, v5};

/// Topic and payload of a QoS 0 publish of MQTT 3.1.1, and whether it has the retain flag.
fn read(packet: &[u8]) -> (String, String, bool) {
    let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&packet[4..4 + len]), text(&packet[4 + len..]), packet[0] & 1 == 1)
}

/// Everything that a subscription to `filter` starts with.
async fn start_of(raw: &mut Raw, filter: &str) -> Vec<(String, String)> {
    raw.send(&subscribe(1, filter, 1, None)).await;
    raw.expect(b"\x90\x03\x00\x01\x01").await;
    raw.send(&unsubscribe(2, &[filter], false)).await;
    let mut values = Vec::new();
    loop {
        let packet = raw.packet().await.expect("more");
        if packet == b"\xb0\x02\x00\x02" {
            return values;
        }
        let (topic, value, retain) = read(&packet);
        assert!(retain, "{topic}");
        values.push((topic, value));
    }
}

#[tokio::test]
async fn a_subscription_starts_with_what_is_so_now() {
    let served = Served::start("").await;
    let mut reader = served.subscriber("reader", "t", 0).await;
    let mut source = served.connected(v5("source")).await;
    source.send(&publish(3, 1, "t", Some(b""), b"x")).await;
    source.expect(b"\x40\x02\x00\x01").await;
    reader.expect(&publish(0, 0, "t", None, b"x")).await;
    let values = start_of(&mut reader, "$SYS/#").await;
    assert_eq!(values.len(), 18, "{values:?}");
    let value = |name: &str| {
        let topic = format!("$SYS/broker/{name}");
        let found = values.iter().find(|(known, _)| *known == topic);
        found.unwrap_or_else(|| panic!("no {topic} in {values:?}")).1.clone()
    };
    for (name, expected) in [
        ("version", concat!("watchbell version ", env!("CARGO_PKG_VERSION"))),
        ("clients/connected", "2"),
        ("clients/total", "2"),
        ("clients/maximum", "2"),
        ("clients/disconnected", "0"),
        ("clients/expired", "0"),
        ("retained messages/count", "1"),
        // Its own, and this one.
        ("subscriptions/count", "2"),
        ("publish/messages/received", "1"),
        ("publish/messages/sent", "1"),
        ("publish/messages/dropped", "0"),
        ("publish/bytes/received", "9"),
        ("publish/bytes/sent", "6"),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    assert!(value("uptime").ends_with(" seconds"));
    // Three CONNECTs' worth and more; what exactly depends on who was read first.
    for name in ["messages/received", "messages/sent", "bytes/received", "bytes/sent"] {
        assert!(value(name).parse::<u64>().unwrap() > 1, "{name}");
    }
    let one = start_of(&mut reader, "$SYS/broker/+/connected").await;
    assert_eq!(one, [("$SYS/broker/clients/connected".to_owned(), "2".to_owned())]);
}

#[tokio::test]
async fn values_come_by_themselves_and_never_to_a_wildcard() {
    let served = Served::start("[broker]\nsys_interval = '50ms'").await;
    let mut everything = served.subscriber("everything", "#", 0).await;
    let mut reader = served.connected(v3("reader")).await;
    reader.send(&subscribe(1, "$SYS/broker/clients/connected", 0, None)).await;
    reader.expect(b"\x90\x03\x00\x01\x00").await;
    assert_eq!(read(&reader.packet().await.unwrap()).1, "2");
    let _third = served.connected(v3("third")).await;
    let mut seen = Vec::new();
    while seen.last() != Some(&"3".to_owned()) {
        let (topic, value, retain) = read(&reader.packet().await.expect("another value"));
        assert_eq!((topic.as_str(), retain), ("$SYS/broker/clients/connected", false));
        seen.push(value);
    }
    everything.expect_alive().await;
}

#[tokio::test]
async fn only_those_who_may_read_it_and_nobody_may_write_it() {
    let access = "
        [[access]]
        who = { client_id = 'exporter' }
        subscribe = ['$SYS/#']
        [[access]]
        who = { anyone = true }
        publish = ['#', '$SYS/#', '$watchbell/#']
        subscribe = ['#']
    ";
    let served = Served::start(access).await;
    let mut exporter = served.connected(v5("exporter")).await;
    subscribed(&mut exporter, "$SYS/broker/version", 0, b"").await;
    assert!(exporter.packet().await.expect("the version").ends_with(b"0.1.0"));
    let mut other = served.connected(v5("other")).await;
    other.send(&subscribe(1, "$SYS/broker/version", 0, Some(b""))).await;
    other.expect(b"\x90\x04\x00\x01\x00\x80").await;
    // Branches of the process: not even who has been granted them.
    for topic in ["$SYS/broker/version", "$SYS", "$watchbell/alerts", "$share/a"] {
        other.send(&publish(2, 1, topic, Some(b""), b"forged")).await;
        other.expect(b"\x40\x03\x00\x01\x90").await;
    }
    exporter.expect_alive().await;
}

#[tokio::test]
async fn without_an_interval_there_is_none() {
    let served = Served::start("[broker]\nsys_interval = '0s'").await;
    let mut reader = served.subscriber("reader", "$SYS/#", 0).await;
    reader.expect_alive().await;
}

#[tokio::test]
async fn sessions_that_expire_are_counted() {
    let served = Served::start("").await;
    let mut reader = served.connected(v3("reader")).await;
    // Session Expiry Interval 1 s.
    let short =
        crate::raw::Connect { keep: true, properties: b"\x11\x00\x00\x00\x01", ..v5("short") };
    drop(served.connected(short).await);
    found("an expired session", async || {
        let values = start_of(&mut reader, "$SYS/broker/clients/expired").await;
        (values[0].1 == "1").then_some(())
    })
    .await;
    let values = start_of(&mut reader, "$SYS/broker/clients/total").await;
    assert_eq!(values[0].1, "1");
}
