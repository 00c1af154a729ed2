//! SUBSCRIBE and UNSUBSCRIBE: which publishes a subscription gets, and how.

use super::{HOUR, Served, after, subscribed, unsubscribe};
use crate::raw::{Connect, packet, publish, subscribe, v3, v5};

#[tokio::test]
async fn one_answer_for_many_filters_in_their_order() {
    let access = "[[access]]\nwho = { anyone = true }\npublish = ['#']\nsubscribe = ['mine/#']";
    let served = Served::start(access).await;
    let filters = b"\x00\x06mine/a\x02\x00\x05yours\x01\x00\x06mine/+\x01\x00\x06mine/b\x00";
    // MQTT-3.8.4-1, MQTT-3.8.4-2, MQTT-3.8.4-4, MQTT-3.8.4-5, MQTT-3.9.3-1 and MQTT-3.9.3-2.
    let mut old = served.connected(v3("old")).await;
    old.send(&packet(0x82, &[&b"\x01\x02"[..], filters].concat())).await;
    old.expect(b"\x90\x06\x01\x02\x02\x80\x01\x00").await;
    // MQTT5-3.8.4-1, MQTT5-3.8.4-2, MQTT5-3.8.4-5, MQTT5-3.8.4-6, MQTT5-3.8.4-7, MQTT5-3.9.3-1 and
    // MQTT5-3.9.3-2.
    let mut modern = served.connected(v5("modern")).await;
    modern.send(&packet(0x82, &[&b"\x01\x02\x00"[..], filters].concat())).await;
    modern.expect(b"\x90\x07\x01\x02\x00\x02\x80\x01\x00").await;
}

#[tokio::test]
async fn the_lower_qos_holds() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    for granted in 0..=2_u8 {
        let mut raw = served.subscriber("reader", "t", granted).await;
        let mut id = 0;
        for sent in 0..=2_u8 {
            source.send(&publish(sent << 1, 5, "t", None, b"")).await;
            if sent > 0 {
                source.packet().await.expect("its answer");
            }
            if sent == 2 {
                source.send(b"\x62\x02\x00\x05").await;
                source.packet().await.expect("a PUBCOMP");
            }
            // MQTT-3.8.4-6, MQTT5-3.8.4-8.
            let qos = sent.min(granted);
            id += u16::from(qos > 0);
            raw.expect(&publish(qos << 1, id, "t", None, b"")).await;
        }
        drop(raw);
    }
}

#[tokio::test]
async fn subscribing_again_replaces_and_sends_what_is_retained_again() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    source.send(&publish(3, 1, "t", None, b"kept")).await;
    source.expect(b"\x40\x02\x00\x01").await;
    // MQTT-3.8.4-3.
    let mut old = served.subscriber("old", "t", 1).await;
    old.expect(&publish(3, 1, "t", None, b"kept")).await;
    old.send(&subscribe(1, "t", 0, None)).await;
    old.expect(b"\x90\x03\x00\x01\x00").await;
    old.expect(&publish(1, 0, "t", None, b"kept")).await;
    // MQTT5-3.8.4-3, MQTT5-3.8.4-4 and MQTT5-3.3.1-9.
    let mut modern = served.connected(v5("modern")).await;
    for (options, identifier) in [(1, 1), (0, 2)] {
        subscribed(&mut modern, "t", options, &[0x0b, identifier]).await;
        let property = [0x0b, identifier];
        modern.expect(&publish(options << 1 | 1, 1, "t", Some(&property), b"kept")).await;
    }
    source.send(&publish(2, 2, "t", None, b"new")).await;
    old.expect(&publish(0, 0, "t", None, b"new")).await;
    modern.expect(&publish(0, 0, "t", Some(b"\x0b\x02"), b"new")).await;
    // One copy, by the last options.
    modern.expect_alive().await;
}

#[tokio::test]
async fn subscription_options() {
    let served = Served::start("").await;
    let mut raw = served.connected(v5("a")).await;
    let mut other = served.connected(v5("b")).await;
    // MQTT5-3.8.3-3: no local.
    subscribed(&mut raw, "t", 0x04, b"").await;
    raw.send(&publish(0, 0, "t", Some(b""), b"own")).await;
    raw.expect_alive().await;
    other.send(&publish(1, 0, "t", Some(b""), b"other's")).await;
    // MQTT5-3.3.1-12: retain is cleared without retain as published.
    raw.expect(&publish(0, 0, "t", Some(b""), b"other's")).await;
    // MQTT5-3.3.1-10: retain handling 1 sends to a new subscription only.
    subscribed(&mut raw, "t", 0x18, b"").await;
    raw.expect_alive().await;
    subscribed(&mut raw, "+", 0x18, b"").await;
    raw.expect(&publish(1, 0, "t", Some(b""), b"other's")).await;
    raw.send(&unsubscribe(1, &["+"], true)).await;
    raw.expect(b"\xb0\x04\x00\x01\x00\x00").await;
    // MQTT5-3.3.1-13: as it was published.
    for flags in [0, 1] {
        other.send(&publish(flags, 0, "t", Some(b""), b"x")).await;
        raw.expect(&publish(flags, 0, "t", Some(b""), b"x")).await;
    }
    // MQTT5-3.3.1-11: retain handling 2 sends none.
    subscribed(&mut raw, "#", 0x20, b"").await;
    raw.expect_alive().await;
}

#[tokio::test]
async fn overlapping_subscriptions_give_one_copy_with_every_identifier() {
    let served = Served::start("").await;
    let mut raw = served.connected(v5("a")).await;
    for (filter, qos, properties) in
        [("t/#", 0, &b"\x0b\x01"[..]), ("t/+", 2, b"\x0b\xff\x7f"), ("+/x", 1, b"")]
    {
        subscribed(&mut raw, filter, qos, properties).await;
    }
    let mut source = served.connected(v3("source")).await;
    source.send(&publish(4, 1, "t/x", None, b"p")).await;
    source.expect(b"\x50\x02\x00\x01").await;
    // MQTT-3.3.5-1, MQTT5-3.3.4-2: by the highest QoS. MQTT5-3.3.4-3, MQTT5-3.3.4-4: both identifiers.
    let got = raw.packet().await.expect("a publish");
    assert_eq!(got[0], 0x34, "{got:02x?}");
    assert!(after(&got, b"\x0b\x01").is_some() && after(&got, b"\x0b\xff\x7f").is_some());
    raw.expect_alive().await;
}

#[tokio::test]
async fn unsubscribing() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    for (keep, v5) in [
        (Connect { keep: true, ..v3("reader") }, false),
        (Connect { keep: true, properties: HOUR, ..v5("reader") }, true),
    ] {
        let none = v5.then_some(&b""[..]);
        let (mut raw, _) = served.resumed(&keep).await;
        raw.send(&subscribe(1, "t/x", 1, none)).await;
        raw.packet().await.expect("a SUBACK");
        source.send(&publish(2, 1, "t/x", None, b"begun")).await;
        source.expect(b"\x40\x02\x00\x01").await;
        raw.expect(&publish(2, 1, "t/x", none, b"begun")).await;
        // MQTT-3.10.4-1, MQTT5-3.10.4-1: character by character; a filter that matches is not enough.
        // MQTT-3.10.4-4 to MQTT-3.10.4-6, MQTT5-3.10.4-4 to MQTT5-3.10.4-6: one answer, its id, always.
        // (MQTT-3.10.4-5, MQTT5-3.10.4-5)
        raw.send(&unsubscribe(7, &["t/+", "T/x"], v5)).await;
        // MQTT5-3.11.3-1, MQTT5-3.11.3-2.
        raw.expect(if v5 { b"\xb0\x05\x00\x07\x00\x11\x11" } else { b"\xb0\x02\x00\x07" }).await;
        source.send(&publish(0, 0, "t/x", None, b"still")).await;
        raw.expect(&publish(0, 0, "t/x", none, b"still")).await;
        raw.send(&unsubscribe(8, &["nothing", "t/x", "a/#/b"], v5)).await;
        raw.expect(if v5 { b"\xb0\x06\x00\x08\x00\x11\x00\x8f" } else { b"\xb0\x02\x00\x08" })
            .await;
        // MQTT-3.10.4-2, MQTT5-3.10.4-2: nothing new.
        source.send(&publish(0, 0, "t/x", None, b"no more")).await;
        source.expect_alive().await;
        raw.expect_alive().await;
        drop(raw);
        // MQTT-3.10.4-3, MQTT5-3.10.4-3: what was begun is completed.
        let (mut raw, present) = served.resumed(&keep).await;
        assert!(present);
        raw.expect(&publish(10, 1, "t/x", none, b"begun")).await;
        raw.send(b"\x40\x02\x00\x01").await;
        raw.expect_alive().await;
        drop(raw);
        drop(served.resumed(&Connect { keep: false, ..keep }).await);
        served.connections(1).await;
    }
}

#[tokio::test]
async fn topics_are_matched_as_they_are_written() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    for (filter, topic, matches) in [
        // MQTT-3.3.2-3, MQTT5-3.3.2-3.
        ("a/+", "a/b", true),
        ("a/+", "a/b/c", false),
        ("a/#", "a", true),
        // MQTT-4.7.2-1, MQTT5-4.7.2-1.
        ("#", "$x/a", false),
        ("+/a", "$x/a", false),
        ("$x/#", "$x/a", true),
        ("$x/+", "$x/a", true),
        // MQTT-4.7.3-4, MQTT5-4.7.3-4: é in one character, and in two.
        ("caf\u{e9}", "caf\u{e9}", true),
        ("caf\u{e9}", "cafe\u{301}", false),
        ("A", "a", false),
        ("/", "/", true),
        ("+", "/", false),
        ("a//b", "a/b", false),
        // MQTT-1.5.3-3, MQTT5-1.5.4-3: U+FEFF is a character like any other.
        ("\u{feff}a", "\u{feff}a", true),
        ("a", "\u{feff}a", false),
        // Non-characters may be refused; they are not.
        ("\u{fffe}\u{1ffff}", "\u{fffe}\u{1ffff}", true),
    ] {
        let mut raw = served.subscriber("reader", filter, 0).await;
        source.send(&publish(0, 0, topic, None, b"")).await;
        source.expect_alive().await;
        if matches {
            raw.expect(&publish(0, 0, topic, None, b"")).await;
        }
        raw.expect_alive().await;
    }
}

#[tokio::test]
async fn shared_subscriptions() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    let keep = Connect { keep: true, properties: HOUR, ..v5("member") };
    let (mut member, _) = served.resumed(&keep).await;
    // MQTT5-4.8.2-3: with the granted QoS.
    subscribed(&mut member, "$share/g/t", 1, b"").await;
    source.send(&publish(4, 1, "t", None, b"1")).await;
    source.expect(b"\x50\x02\x00\x01").await;
    member.expect(&publish(2, 1, "t", Some(b""), b"1")).await;
    drop(member);
    served.connections(1).await;
    // MQTT5-4.8.2-4: completed when it is back, though another is there by then. (MQTT5-4.8.2-5)
    let mut other = served.connected(v5("other")).await;
    subscribed(&mut other, "$share/g/t", 1, b"").await;
    let (mut member, _) = served.resumed(&keep).await;
    member.expect(&publish(10, 1, "t", Some(b""), b"1")).await;
    // MQTT5-4.8.2-6: what it refuses goes to nobody else.
    member.send(b"\x40\x03\x00\x01\x97").await;
    member.expect_alive().await;
    drop(member);
    drop(served.resumed(&Connect { keep: false, ..keep }).await);
    served.connections(2).await;
    other.expect_alive().await;
    // A member that also subscribes by itself gets a copy for each.
    subscribed(&mut other, "t", 0, b"").await;
    source.send(&publish(0, 0, "t", None, b"2")).await;
    other.expect(&publish(0, 0, "t", Some(b""), b"2")).await;
    other.expect(&publish(0, 0, "t", Some(b""), b"2")).await;
    other.expect_alive().await;
}

#[tokio::test]
async fn a_member_that_ends_takes_what_was_under_way_with_it() {
    let served = Served::start("").await;
    let mut source = served.connected(v3("source")).await;
    // Its session ends with its connection.
    let mut member = served.connected(v5("member")).await;
    subscribed(&mut member, "$share/g/t", 1, b"").await;
    source.send(&publish(2, 1, "t", None, b"1")).await;
    source.expect(b"\x40\x02\x00\x01").await;
    member.expect(&publish(2, 1, "t", Some(b""), b"1")).await;
    let mut other = served.connected(v5("other")).await;
    subscribed(&mut other, "$share/g/t", 1, b"").await;
    drop(member);
    served.connections(2).await;
    // MQTT5-4.8.2-5.
    other.expect_alive().await;
}
