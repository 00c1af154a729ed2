//! PUBLISH and its answers: what is passed on, in which form, and when.

use super::{Served, after, subscribed};
use crate::harness::found;
use crate::raw::{Connect, publish, subscribe, v3, v5};

#[tokio::test]
async fn each_qos_has_its_answer() {
    let served = Served::start("").await;
    for (version, none) in [(v3("a"), None), (v5("b"), Some(&b""[..]))] {
        let mut raw = served.connected(version).await;
        raw.send(&subscribe(1, "t", 0, none)).await;
        raw.packet().await.expect("a SUBACK");
        // MQTT-3.3.4-1, MQTT5-3.3.4-1.
        raw.send(&publish(0, 0, "t", none, b"0")).await;
        raw.expect(&publish(0, 0, "t", none, b"0")).await;
        // MQTT-4.3.2-2, MQTT5-4.3.2-4; MQTT5-4.3.2-5: the same id is a new message, with DUP too.
        for flags in [2, 10] {
            raw.send(&publish(flags, 9, "t", none, b"1")).await;
            let mut said = [raw.packet().await.unwrap(), raw.packet().await.unwrap()];
            said.sort();
            // MQTT-3.3.1-3, MQTT5-3.3.1-3: DUP of the sender is not passed on.
            assert_eq!(said, [publish(0, 0, "t", none, b"1"), b"\x40\x02\x00\x09".to_vec()]);
        }
        raw.send(&publish(4, 9, "t", none, b"2")).await;
        let mut said = [raw.packet().await.unwrap(), raw.packet().await.unwrap()];
        said.sort();
        // MQTT-4.3.1-1, MQTT5-4.3.1-1, MQTT5-2.2.1-2, MQTT-2.3.1-5: QoS 0 has no id and no DUP.
        assert_eq!(said, [publish(0, 0, "t", none, b"2"), b"\x50\x02\x00\x09".to_vec()]);
        raw.send(b"\x62\x02\x00\x09").await;
        raw.expect(b"\x70\x02\x00\x09").await;
    }
}

#[tokio::test]
async fn a_refused_publish_goes_nowhere_and_its_id_is_free() {
    let access = "[[access]]\nwho = { anyone = true }\npublish = ['mine/#']\nsubscribe = ['#']";
    let served = Served::start(access).await;
    let mut watcher = served.subscriber("watcher", "#", 0).await;
    let mut raw = served.connected(v5("source")).await;
    // MQTT5-4.3.3-9: after a refusal the same id is a new message.
    for (topic, code) in [("yours", 0x87), ("mine/a", 0), ("yours", 0x87)] {
        raw.send(&publish(2, 7, topic, Some(b""), b"1")).await;
        let answer = [0x40, 3, 0, 7, code];
        raw.expect(if code == 0 { b"\x40\x02\x00\x07" } else { &answer }).await;
    }
    raw.send(&publish(4, 7, "yours", Some(b""), b"2")).await;
    raw.expect(b"\x50\x03\x00\x07\x87").await;
    raw.send(&publish(4, 7, "mine/a", Some(b""), b"2")).await;
    raw.expect(b"\x50\x02\x00\x07").await;
    watcher.expect(&publish(0, 0, "mine/a", None, b"1")).await;
    watcher.expect(&publish(0, 0, "mine/a", None, b"2")).await;
    watcher.expect_alive().await;
    // MQTT-3.3.5-2: 3.1.1 has no answer for it, and is closed.
    let mut old = served.connected(v3("old")).await;
    old.send(&publish(2, 7, "yours", None, b"1")).await;
    old.expect_closed().await;
}

#[tokio::test]
async fn what_a_publisher_says_of_its_message_arrives_unaltered() {
    let served = Served::start("").await;
    let mut modern = served.connected(v5("modern")).await;
    subscribed(&mut modern, "t", 0, b"").await;
    let mut old = served.subscriber("old", "t", 0).await;
    let mut source = served.connected(v5("source")).await;
    for properties in [
        // MQTT5-3.3.2-4; the payload is not checked against it.
        &b"\x01\x00"[..],
        b"\x01\x01",
        // MQTT5-3.3.2-20, MQTT5-3.3.2-15, MQTT5-3.3.2-16.
        b"\x03\x00\x03a/b",
        b"\x08\x00\x07reply/1\x09\x00\x04\x00\xff\x00\xfe",
        // MQTT5-3.3.2-17, MQTT5-3.3.2-18: also the same key again, and empty ones.
        b"\x26\x00\x01z\x00\x011\x26\x00\x01a\x00\x012\x26\x00\x01z\x00\x011\x26\x00\x00\x00\x00",
    ] {
        source.send(&publish(0, 0, "t", Some(properties), b"\xff\xfe")).await;
        modern.expect(&publish(0, 0, "t", Some(properties), b"\xff\xfe")).await;
        old.expect(&publish(0, 0, "t", None, b"\xff\xfe")).await;
    }
}

#[tokio::test]
async fn request_and_response() {
    let served = Served::start("").await;
    let mut responder = served.connected(v5("responder")).await;
    subscribed(&mut responder, "requests", 0, b"").await;
    let mut requester = served.connected(v5("requester")).await;
    subscribed(&mut requester, "replies/1", 0, b"").await;
    let asks = b"\x08\x00\x09replies/1\x09\x00\x02id";
    requester.send(&publish(0, 0, "requests", Some(asks), b"?")).await;
    responder.expect(&publish(0, 0, "requests", Some(asks), b"?")).await;
    responder.send(&publish(0, 0, "replies/1", Some(b"\x09\x00\x02id"), b"!")).await;
    requester.expect(&publish(0, 0, "replies/1", Some(b"\x09\x00\x02id"), b"!")).await;
}

#[tokio::test]
async fn the_time_in_the_broker_is_taken_off_the_message_expiry() {
    let served = Served::start("").await;
    let mut source = served.connected(v5("source")).await;
    let expires = b"\x02\x00\x00\x00\x64";
    source.send(&publish(3, 1, "t", Some(expires), b"x")).await;
    source.expect(b"\x40\x02\x00\x01").await;
    let mut late = served.connected(v5("late")).await;
    // MQTT5-3.3.2-6.
    let left = found("a second off the expiry", async || {
        late.send(&subscribe(1, "t", 0, Some(b""))).await;
        late.expect(b"\x90\x04\x00\x01\x00\x00").await;
        let publish = late.packet().await.expect("the retained message");
        let left = after(&publish, b"\x02\x00\x00\x00").expect("an expiry")[0];
        (left < 100).then_some(left)
    })
    .await;
    assert!(left > 0);
}

#[tokio::test]
async fn topic_aliases() {
    let served = Served::start("").await;
    // MQTT5-3.1.2-27: who takes none gets none.
    let mut none = served.connected(v5("none")).await;
    subscribed(&mut none, "#", 0, b"").await;
    let takes_two = Connect { properties: b"\x22\x00\x02", ..v5("two") };
    let mut two = served.connected(takes_two.clone()).await;
    subscribed(&mut two, "#", 0, b"").await;
    let mut source = served.connected(v5("source")).await;
    // MQTT5-3.3.2-12: each up to the maximum that the broker has told.
    for alias in 1..=16 {
        let topic = format!("t/{alias}");
        let property = [0x23, 0, alias];
        source.send(&publish(0, 0, &topic, Some(&property), b"a")).await;
        source.send(&publish(0, 0, "", Some(&property), b"b")).await;
        for payload in [b"a", b"b"] {
            none.expect(&publish(0, 0, &topic, Some(b""), payload)).await;
            // MQTT5-3.1.2-26, MQTT5-3.3.2-11: never more than the client takes.
            let known = alias <= 2 && payload == b"b";
            let written = if known { "" } else { topic.as_str() };
            let property = if alias <= 2 { &property[..] } else { b"" };
            two.expect(&publish(0, 0, written, Some(property), payload)).await;
        }
    }
    // MQTT5-3.3.2-7: a new connection starts without.
    drop(two);
    let mut two = served.connected(takes_two).await;
    subscribed(&mut two, "#", 0, b"").await;
    source.send(b"\xe0\x00").await;
    source.expect_closed().await;
    let mut source = served.connected(v5("source")).await;
    source.send(&publish(0, 0, "t/1", Some(b"\x23\x00\x01"), b"c")).await;
    two.expect(&publish(0, 0, "t/1", Some(b"\x23\x00\x01"), b"c")).await;
    source.send(&publish(0, 0, "", Some(b"\x23\x00\x02"), b"")).await;
    let told = source.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x94));
}

#[tokio::test]
async fn retained_messages() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    let mut live = served.subscriber("live", "r", 1).await;
    let mut number = 0;
    for (flags, payload, kept) in [
        // MQTT-3.3.1-5, MQTT5-3.3.1-5: kept with its QoS, the last one only.
        (3, "one", Some((3, "one"))),
        (5, "two", Some((3, "two"))),
        // MQTT-3.3.1-7: QoS 0 replaces too.
        (1, "three", Some((1, "three"))),
        // MQTT-3.3.1-12, MQTT5-3.3.1-8: without the flag nothing changes.
        (2, "live", Some((1, "three"))),
        (2, "", Some((1, "three"))),
        // MQTT-3.3.1-10, MQTT-3.3.1-11, MQTT5-3.3.1-6 and MQTT5-3.3.1-7: an empty one deletes.
        (3, "", None),
    ] {
        source.send(&publish(flags, 9, "r", None, payload.as_bytes())).await;
        let qos = flags >> 1 & 3;
        if qos > 0 {
            source.packet().await.expect("its answer");
        }
        if qos == 2 {
            source.send(b"\x62\x02\x00\x09").await;
            source.packet().await.expect("a PUBCOMP");
        }
        // MQTT-3.3.1-9: to those who were there it comes without the flag, the empty one too.
        number += u16::from(qos > 0);
        let flags = if qos > 0 { 2 } else { 0 };
        live.expect(&publish(flags, number, "r", None, payload.as_bytes())).await;
        // MQTT-3.3.1-6, MQTT-3.3.1-8: to a new subscription with it.
        let mut late = served.subscriber("late", "r", 1).await;
        if let Some((flags, payload)) = kept {
            late.expect(&publish(flags, 1, "r", None, payload.as_bytes())).await;
        }
        late.expect_alive().await;
    }
}

#[tokio::test]
async fn the_order_of_a_publisher_is_the_order_of_its_subscribers() {
    let served = Served::start("").await;
    let mut watcher = served.subscriber("watcher", "#", 2).await;
    let mut source = served.connected(v3("source")).await;
    let payload = |number: u16| number.to_be_bytes();
    for number in 1..=50 {
        let flags = [0, 2, 4][usize::from(number % 3)];
        source.send(&publish(flags, number, "t", None, &payload(number))).await;
    }
    // MQTT-4.6.0-5, MQTT-4.6.0-6, MQTT5-4.6.0-5 and MQTT5-4.6.0-6.
    let mut ids = Vec::new();
    for number in 1..=50 {
        let got = watcher.packet().await.expect("a publish");
        assert!(got.ends_with(&payload(number)), "{number}: {got:02x?}");
        if got[0] == 0x34 {
            ids.push([got[5], got[6]]);
        }
    }
    // MQTT-4.6.0-4: PUBREL in the order of PUBREC.
    let recs: Vec<u8> = ids.iter().flat_map(|[high, low]| [0x50, 2, *high, *low]).collect();
    watcher.send(&recs).await;
    for [high, low] in ids {
        watcher.expect(&[0x62, 2, high, low]).await;
    }
    // Acknowledgements keep it too (MQTT-4.6.0-2, MQTT-4.6.0-3 bind a server that sends them).
    for number in (1..=50_u16).filter(|number| number % 3 > 0) {
        let got = source.packet().await.expect("its answer");
        let kind = [0x40, 0x50][usize::from(number % 3) - 1];
        assert_eq!((got[0], &got[2..]), (kind, &payload(number)[..]));
    }
}
