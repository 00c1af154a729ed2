//! Sessions: what is kept, what is resumed, and how often a message is delivered over the cuts
//! between.

use super::{HOUR, Served, subscribed};
use crate::harness::found;
use crate::raw::{Connect, publish, subscribe, v3, v5};

/// A subscriber that keeps its session, in both versions.
fn keeping() -> [Connect<'static>; 2] {
    [Connect { keep: true, ..v3("pump") }, Connect { keep: true, properties: HOUR, ..v5("pump") }]
}

/// `None` for a 3.1.1 client, else no properties.
fn none(connect: &Connect<'_>) -> Option<&'static [u8]> {
    connect.v5.then_some(b"")
}

#[tokio::test]
async fn a_session_is_kept_resumed_and_discarded() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    for keep in keeping() {
        let none = none(&keep);
        // MQTT-3.2.2-3, MQTT5-3.1.2-6 and MQTT5-3.2.2-3: there is none yet.
        let (mut raw, present) = served.resumed(&keep).await;
        assert!(!present);
        raw.send(&subscribe(1, "t", 2, none)).await;
        raw.packet().await.expect("a SUBACK");
        drop(raw);
        served.connections(1).await;
        // MQTT-3.1.2-5, MQTT-4.5.0-1, MQTT5-4.5.0-1: what comes meanwhile is kept.
        for (qos, id) in [(1, 1), (2, 2)] {
            source.send(&publish(qos << 1, id, "t", None, &[b'0' + qos])).await;
            source.packet().await.expect("its answer");
        }
        source.send(b"\x62\x02\x00\x02").await;
        source.expect(b"\x70\x02\x00\x02").await;
        // MQTT-3.1.2-4, MQTT-3.2.2-2, MQTT-4.1.0-1, MQTT-4.1.0-2, MQTT5-3.1.2-5, MQTT5-3.1.2-23 and
        // MQTT5-4.1.0-1: it goes on, by its client id (MQTT-3.1.3-2, MQTT5-3.1.3-2).
        let (mut raw, present) = served.resumed(&keep).await;
        assert!(present);
        raw.expect(&publish(2, 1, "t", none, b"1")).await;
        raw.expect(&publish(4, 2, "t", none, b"2")).await;
        raw.expect_alive().await;
        drop(raw);
        // MQTT-3.1.2-6, MQTT-3.1.4-3, MQTT5-3.1.2-4, MQTT5-3.1.4-4 and MQTT5-3.2.2-2: another begins.
        let (mut raw, present) = served.resumed(&Connect { keep: false, ..keep.clone() }).await;
        assert!(!present);
        source.send(&publish(0, 0, "t", None, b"nobody")).await;
        source.expect_alive().await;
        raw.expect_alive().await;
        raw.send(
            b"\xe0\x07\x00\x05\x11\x00\x00\x00\x00".get(..if keep.v5 { 9 } else { 0 }).unwrap(),
        )
        .await;
        if !keep.v5 {
            raw.send(b"\xe0\x00").await;
        }
        raw.expect_closed().await;
    }
}

#[tokio::test]
async fn retained_messages_do_not_end_with_a_session() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    source.send(&publish(3, 1, "r", None, b"stays")).await;
    source.expect(b"\x40\x02\x00\x01").await;
    source.send(b"\xe0\x00").await;
    source.expect_closed().await;
    served.connections(0).await;
    // MQTT-3.1.2-7.
    let mut late = served.subscriber("late", "r", 0).await;
    late.expect(&publish(1, 0, "r", None, b"stays")).await;
}

/// The broker as the sender, cut at each step: the connection breaks after the subscriber has
/// received `publish`, answered PUBREC, received PUBREL, answered PUBCOMP.
#[tokio::test]
async fn qos_2_to_a_subscriber_that_breaks_off_at_each_step() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    for keep in keeping() {
        let none = none(&keep);
        for step in 0..4 {
            let (mut raw, _) = served.resumed(&Connect { keep: false, ..keep.clone() }).await;
            raw.send(&subscribe(1, "t", 2, none)).await;
            raw.packet().await.expect("a SUBACK");
            drop(raw);
            // A clean session of 3.1.1 has gone with its connection: subscribe in one that stays.
            let (mut raw, _) = served.resumed(&keep).await;
            raw.send(&subscribe(1, "t", 2, none)).await;
            raw.packet().await.expect("a SUBACK");
            source.send(&publish(4, 7, "t", None, b"once")).await;
            source.expect(b"\x50\x02\x00\x07").await;
            source.send(b"\x62\x02\x00\x07").await;
            source.expect(b"\x70\x02\x00\x07").await;
            // MQTT-4.3.3-1, MQTT5-4.3.3-1, MQTT5-4.3.3-2: a fresh id, no DUP.
            raw.expect(&publish(4, 1, "t", none, b"once")).await;
            if step >= 1 {
                raw.send(b"\x50\x02\x00\x01").await;
            }
            if step >= 2 {
                // MQTT5-4.3.3-4, MQTT5-2.2.1-5.
                raw.expect(b"\x62\x02\x00\x01").await;
            }
            if step >= 3 {
                raw.send(b"\x70\x02\x00\x01").await;
                raw.expect_alive().await;
            }
            if step == 1 {
                // Until it has been read, the PUBREC may be lost with the connection.
                raw.expect(b"\x62\x02\x00\x01").await;
            }
            drop(raw);
            let (mut raw, present) = served.resumed(&keep).await;
            assert!(present);
            // MQTT-4.4.0-1, MQTT5-4.4.0-1: again, with the same id; MQTT5-4.3.3-3, MQTT5-4.3.3-5.
            // MQTT-3.3.1-1, MQTT5-3.3.1-1: DUP. MQTT5-4.3.3-6: after PUBREC only PUBREL.
            match step {
                0 => {
                    raw.expect(&publish(12, 1, "t", none, b"once")).await;
                    raw.send(b"\x50\x02\x00\x01").await;
                    raw.expect(b"\x62\x02\x00\x01").await;
                    raw.send(b"\x70\x02\x00\x01").await;
                }
                1 | 2 => {
                    raw.expect(b"\x62\x02\x00\x01").await;
                    raw.send(b"\x70\x02\x00\x01").await;
                }
                _ => {}
            }
            raw.expect_alive().await;
            drop(raw);
            let (mut raw, present) = served.resumed(&keep).await;
            assert!(present);
            raw.expect_alive().await;
        }
    }
}

/// The broker as the receiver, cut at each step: the publisher breaks off before it has seen
/// PUBREC, after it, after its PUBREL, after PUBCOMP. A watcher gets one copy each time.
#[tokio::test]
async fn qos_2_from_a_publisher_that_breaks_off_at_each_step() {
    let served = Served::start("").await;
    let mut watcher = served.subscriber("watcher", "t", 0).await;
    for keep in keeping() {
        let none = none(&keep);
        for step in 0..4 {
            let (mut raw, _) = served.resumed(&keep).await;
            raw.send(&publish(4, 7, "t", none, b"once")).await;
            // MQTT-4.3.3-2, MQTT5-4.3.3-8.
            raw.expect(b"\x50\x02\x00\x07").await;
            watcher.expect(&publish(0, 0, "t", None, b"once")).await;
            if step >= 2 {
                raw.send(b"\x62\x02\x00\x07").await;
                // MQTT5-4.3.3-11.
                raw.expect(b"\x70\x02\x00\x07").await;
            }
            drop(raw);
            let (mut raw, present) = served.resumed(&keep).await;
            assert!(present);
            if step == 0 {
                // MQTT5-4.3.3-10: the publisher has not seen the PUBREC.
                raw.send(&publish(12, 7, "t", none, b"once")).await;
                raw.expect(b"\x50\x02\x00\x07").await;
            }
            let released = step >= 2;
            raw.send(b"\x62\x02\x00\x07").await;
            // For an id that is not there any more, 5.0 has a code.
            let unknown = &b"\x70\x03\x00\x07\x92"[..];
            raw.expect(if released && keep.v5 { unknown } else { b"\x70\x02\x00\x07" }).await;
            watcher.expect_alive().await;
            if step == 3 {
                // MQTT5-4.3.3-12: after PUBCOMP the id is a new message.
                raw.send(&publish(4, 7, "t", none, b"new")).await;
                raw.expect(b"\x50\x02\x00\x07").await;
                watcher.expect(&publish(0, 0, "t", None, b"new")).await;
                raw.send(b"\x62\x02\x00\x07").await;
                raw.expect(b"\x70\x02\x00\x07").await;
            }
        }
    }
}

#[tokio::test]
async fn qos_1_is_sent_again_until_it_is_acknowledged_and_in_order() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    for keep in keeping() {
        let none = none(&keep);
        let (mut raw, _) = served.resumed(&keep).await;
        raw.send(&subscribe(1, "t", 1, none)).await;
        raw.packet().await.expect("a SUBACK");
        for id in 1..=3 {
            source.send(&publish(2, id, "t", None, &[b'0' + u8::try_from(id).unwrap()])).await;
            source.packet().await.expect("a PUBACK");
            // MQTT-2.3.1-4, MQTT5-2.2.1-4, MQTT-4.3.2-1, MQTT5-4.3.2-1 and MQTT5-4.3.2-2.
            raw.expect(&publish(2, id, "t", none, &[b'0' + u8::try_from(id).unwrap()])).await;
        }
        raw.send(b"\x40\x02\x00\x02").await;
        raw.expect_alive().await;
        drop(raw);
        let (mut raw, present) = served.resumed(&keep).await;
        assert!(present);
        // MQTT5-4.3.2-3, MQTT-4.6.0-1, MQTT-4.6.0-6: those without a PUBACK, in their order.
        raw.expect(&publish(10, 1, "t", none, b"1")).await;
        raw.expect(&publish(10, 3, "t", none, b"3")).await;
        // MQTT5-4.4.0-2: a refusal is an acknowledgement too.
        let refusal: &[u8] = if keep.v5 { b"\x40\x03\x00\x01\x97" } else { b"\x40\x02\x00\x01" };
        raw.send(refusal).await;
        raw.send(b"\x40\x02\x00\x03").await;
        // Nothing is sent again at any other time.
        raw.expect_alive().await;
        drop(raw);
        let (mut raw, _) = served.resumed(&keep).await;
        raw.expect_alive().await;
        drop(raw);
        drop(served.resumed(&Connect { keep: false, ..keep }).await);
        served.connections(1).await;
    }
}

#[tokio::test]
async fn a_resumed_client_may_take_less_than_before() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    let keep = Connect { keep: true, properties: HOUR, ..v5("pump") };
    let (mut raw, _) = served.resumed(&keep).await;
    subscribed(&mut raw, "t", 2, b"").await;
    for id in 1..=3 {
        source.send(&publish(4, id, "t", None, b"")).await;
        source.packet().await.expect("a PUBREC");
        raw.expect(&publish(4, id, "t", Some(b""), b"")).await;
    }
    drop(raw);
    // Receive Maximum 1. MQTT5-4.9.0-1, MQTT5-4.9.0-2, MQTT5-3.3.4-9.
    let narrow = Connect { properties: b"\x21\x00\x01\x11\x00\x00\x0e\x10", ..keep };
    let (mut raw, _) = served.resumed(&narrow).await;
    for id in 1..=3_u8 {
        raw.expect(&publish(12, id.into(), "t", Some(b""), b"")).await;
        // MQTT5-3.3.4-10, MQTT5-4.9.0-3: all else goes on.
        raw.expect_alive().await;
        raw.send(&[0x50, 2, 0, id]).await;
        raw.expect(&[0x62, 2, 0, id]).await;
        raw.expect_alive().await;
        raw.send(&[0x70, 2, 0, id]).await;
    }
    raw.expect_alive().await;
}

#[tokio::test]
async fn what_has_been_sent_does_not_expire() {
    let served = Served::start("").await;
    let keep = Connect { keep: true, properties: HOUR, ..v5("pump") };
    let (mut raw, _) = served.resumed(&keep).await;
    subscribed(&mut raw, "t", 2, b"").await;
    let mut source = served.connected(v5("source")).await;
    // Expires after 2 s, and is retained, so that it can be seen to have expired.
    source.send(&publish(5, 7, "t", Some(b"\x02\x00\x00\x00\x02"), b"short")).await;
    source.expect(b"\x50\x02\x00\x07").await;
    let sent = raw.packet().await.expect("a publish");
    assert!(sent.ends_with(b"short"), "{sent:02x?}");
    drop(raw);
    found("the expiry", async || {
        source.send(&subscribe(1, "t", 0, Some(b""))).await;
        source.expect(b"\x90\x04\x00\x01\x00\x00").await;
        source.send(b"\xc0\x00").await;
        let next = source.packet().await.expect("a publish or a PINGRESP");
        if next == b"\xd0\x00" {
            return Some(());
        }
        source.expect(b"\xd0\x00").await;
        None
    })
    .await;
    // MQTT5-4.3.3-7: it is sent again all the same, and MQTT5-4.3.3-13: to the end.
    let (mut raw, _) = served.resumed(&keep).await;
    raw.expect(&publish(12, 1, "t", Some(b"\x02\x00\x00\x00\x00"), b"short")).await;
    raw.send(b"\x50\x02\x00\x01").await;
    raw.expect(b"\x62\x02\x00\x01").await;
    raw.send(b"\x70\x02\x00\x01").await;
    raw.expect_alive().await;
    source.send(b"\x62\x02\x00\x07").await;
    source.expect(b"\x70\x02\x00\x07").await;
}
