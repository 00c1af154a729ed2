//! CONNECT and CONNACK: what is let in, and on which terms.

use super::{HOUR, Served, after, subscribed};
use crate::raw::{Connect, Raw, packet, publish, subscribe, v3, v5};

#[tokio::test]
async fn the_connack_comes_first_and_once() {
    let served = Served::start("").await;
    for (connect, connack) in [
        // MQTT-3.1.4-4, MQTT-3.2.2-1 and MQTT-3.2.2-3: a zero code, no session.
        (v3("a"), &b"\x20\x02\x00\x00"[..]),
        // MQTT5-3.1.4-5, MQTT5-3.2.2-8 and MQTT5-3.2.2-1: reserved flags are zero.
        (v5("b"), b"\x20\x0c\x00\x00"),
    ] {
        // MQTT-3.2.0-1, MQTT5-3.2.0-1: what comes right behind the CONNECT is answered behind it.
        let mut both = connect.bytes();
        both.extend(b"\xc0\x00");
        let mut raw = Raw::open(served.address).await;
        raw.send(&both).await;
        let found = raw.packet().await.expect("a CONNACK");
        assert_eq!(found[0], connack[0]);
        assert_eq!(found[2..4], connack[2..4], "{found:02x?}");
        raw.expect(b"\xd0\x00").await;
        // MQTT5-3.2.0-2: nothing else comes.
        raw.expect_alive().await;
    }
}

#[tokio::test]
async fn client_ids() {
    let served = Served::start("").await;
    // MQTT-3.1.3-5, MQTT5-3.1.3-5: these have to be allowed.
    for id in ["a", "ABCDEFGHIJKLMNOPQRSTUVW", "XYZ0123456789abcdefghij", "klmnopqrstuvwxyz"] {
        served.connected(v3(id)).await.expect_alive().await;
        served.connected(v5(id)).await.expect_alive().await;
    }
    // MQTT-3.1.3-6: each empty one is another client.
    let mut first = served.connected(v3("")).await;
    let mut second = served.connected(v3("")).await;
    first.expect_alive().await;
    second.expect_alive().await;
    // MQTT5-3.1.3-6, MQTT5-3.1.3-7 and MQTT5-3.2.2-16: it is told which.
    let mut ids = Vec::new();
    for _ in 0..2 {
        let (raw, connack) = Raw::connected(served.address, &v5("").bytes()).await;
        let id = after(&connack, b"\x12\x00\x15").expect("an assigned client id of 21 bytes");
        ids.push((String::from_utf8_lossy(&id[..21]).into_owned(), raw));
    }
    assert!(ids[0].0.starts_with("auto-") && ids[0].0 != ids[1].0);
    ids[0].1.expect_alive().await;
}

#[tokio::test]
async fn keep_alive() {
    let served = Served::start("").await;
    let connect = Connect { keep_alive: 1, ..v3("silent") };
    // MQTT5-3.2.2-22: it is not told another value, so its own holds (MQTT5-3.1.2-22).
    let modern = Connect { keep_alive: 1, ..v5("silent too") };
    let (mut modern, connack) = Raw::connected(served.address, &modern.bytes()).await;
    assert_eq!(after(&connack, b"\x13\x00"), None, "{connack:02x?}");
    let mut silent = served.connected(connect).await;
    // MQTT-3.1.2-24.
    silent.expect_closed().await;
    let told = modern.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x8d));
    modern.expect_closed().await;
}

#[tokio::test]
async fn a_refused_connect_says_that_no_session_is_present() {
    let served = Served::start("").await;
    let keep = Connect { keep: true, ..v3("pump") };
    drop(served.connected(keep.clone()).await);
    served.connections(0).await;
    // MQTT-3.2.2-4: there is one, but not for this one.
    let bad = Connect { user: Some(("nobody", "x")), ..keep.clone() };
    assert_eq!(served.refused(&bad.bytes()).await, b"\x20\x02\x00\x04");
    // MQTT5-3.2.2-6, MQTT5-3.2.2-7.
    let connack = served.refused(&Connect { v5: true, ..bad }.bytes()).await;
    assert_eq!(connack[2..4], [0, 0x86], "{connack:02x?}");
    assert!(served.resumed(&keep).await.1);
}

#[tokio::test]
async fn what_is_optional_is_said_only_to_those_who_ask() {
    let served = Served::start("").await;
    // Request Response Information 0, 1; Request Problem Information 0.
    for properties in [&b"\x19\x00"[..], b"\x19\x01", b"\x17\x00", b""] {
        let connect = Connect { properties, ..v5("asking") };
        let (mut raw, connack) = Raw::connected(served.address, &connect.bytes()).await;
        // MQTT5-3.1.2-28: Response Information; MQTT5-4.12.0-6: an authentication method;
        // MQTT5-3.2.2-20: user properties.
        for identifier in [0x1a, 0x15, 0x16, 0x26] {
            assert!(!properties_of(&connack).contains(&identifier), "{connack:02x?}");
        }
        // MQTT5-3.1.2-29: no words in SUBACK (MQTT5-3.9.2-1, MQTT5-3.9.2-2), UNSUBACK
        // (MQTT5-3.11.2-1, MQTT5-3.11.2-2), PUBACK (MQTT5-3.4.2-2, MQTT5-3.4.2-3), PUBREC
        // (MQTT5-3.5.2-2, MQTT5-3.5.2-3) and PUBCOMP (MQTT5-3.7.2-2, MQTT5-3.7.2-3), so that they
        // make none too large either; user properties of a publish are its own.
        subscribed(&mut raw, "t", 0, b"").await;
        raw.send(&subscribe(2, "a/#/b", 0, Some(b""))).await;
        raw.expect(b"\x90\x04\x00\x02\x00\x8f").await;
        raw.send(&super::unsubscribe(3, &["nothing"], true)).await;
        raw.expect(b"\xb0\x04\x00\x03\x00\x11").await;
        raw.send(&publish(2, 4, "$SYS/a", Some(b""), b"")).await;
        raw.expect(b"\x40\x03\x00\x04\x90").await;
        raw.send(&publish(4, 5, "$SYS/a", Some(b""), b"")).await;
        raw.expect(b"\x50\x03\x00\x05\x90").await;
        raw.send(b"\x62\x02\x00\x09").await;
        raw.expect(b"\x70\x03\x00\x09\x92").await;
        let user = b"\x26\x00\x01k\x00\x01v";
        raw.send(&publish(0, 0, "t", Some(user), b"")).await;
        raw.expect(&publish(0, 0, "t", Some(user), b"")).await;
        raw.send(b"\xe0\x00").await;
        raw.expect_closed().await;
    }
}

/// The identifiers of the properties of a CONNACK that has only those of this broker.
fn properties_of(connack: &[u8]) -> Vec<u8> {
    let mut rest = &connack[5..];
    let mut found = Vec::new();
    while let [identifier, value @ ..] = rest {
        found.push(*identifier);
        let len = match identifier {
            0x11 | 0x27 => 4,
            0x13 | 0x21 | 0x22 => 2,
            other => panic!("property {other:02x} in {connack:02x?}"),
        };
        rest = &value[len..];
    }
    found
}

#[tokio::test]
async fn a_second_connection_takes_over_from_the_first() {
    let served = Served::start("").await;
    let mut watcher = served.subscriber("watcher", "wills/#", 0).await;
    // MQTT-3.1.4-2: 3.1.1 is closed; MQTT5-3.1.4-3: 5.0 is told why. Its will goes out, as after
    // any other end without a DISCONNECT of its own.
    let will = Some((0, "wills/pump", &b"gone"[..], &b""[..]));
    let mut old = served.connected(Connect { will, ..v3("pump") }).await;
    let mut modern = served.connected(v5("pump")).await;
    old.expect_closed().await;
    watcher.expect(&publish(0, 0, "wills/pump", None, b"gone")).await;
    let mut newest = served.connected(v3("pump")).await;
    let told = modern.packet().await.expect("a DISCONNECT");
    assert_eq!((told[0], told[2]), (0xe0, 0x8e));
    // MQTT5-3.14.4-1, MQTT5-3.14.4-2: and nothing behind it; MQTT5-3.14.2-2: no session expiry in it.
    assert_eq!(told[4], 0x1f, "{told:02x?}");
    modern.expect_closed().await;
    newest.expect_alive().await;
}

#[tokio::test]
async fn wills() {
    let served = Served::start("").await;
    let mut watcher = served.connected(v5("watcher")).await;
    // QoS 2, retain as published.
    subscribed(&mut watcher, "wills/#", 0x0a, b"").await;
    let mut number = 0;
    for (version, flags, properties) in [
        // MQTT-3.1.2-8, MQTT-3.1.2-16 and MQTT-3.1.2-17: with its QoS, retained or not.
        (v3("pump"), 0x00, &b""[..]),
        (v3("pump"), 0x08, b""),
        (v3("pump"), 0x30, b""),
        // MQTT5-3.1.2-7, MQTT5-3.1.2-8, MQTT5-3.1.2-14 and MQTT5-3.1.2-15.
        (v5("pump"), 0x10, b""),
        (v5("pump"), 0x28, b""),
        // MQTT5-3.1.3-10: with what it is given, user properties in their order.
        (v5("pump"), 0x00, b"\x01\x01\x03\x00\x01c\x08\x00\x01r\x09\x00\x01d\x26\x00\x01z\x00\x011\x26\x00\x01a\x00\x012"),
    ] {
        let will = Some((flags, "wills/pump", &b"gone"[..], properties));
        drop(served.connected(Connect { will, ..version }).await);
        let (qos, retain) = (flags >> 3 & 3, flags >> 5);
        number += u16::from(qos > 0);
        watcher.expect(&publish(qos << 1 | retain, number, "wills/pump", Some(properties), b"gone")).await;
        // MQTT-3.1.2-10, MQTT5-3.1.2-10: it is published once.
        watcher.expect_alive().await;
        if retain == 1 {
            let mut late = served.connected(v5("late")).await;
            subscribed(&mut late, "wills/#", 0, b"").await;
            late.expect(&publish(1, 0, "wills/pump", Some(b""), b"gone")).await;
        }
    }
    // MQTT-3.1.2-12: no will, nothing published. MQTT-3.14.4-3, MQTT5-3.14.4-3: nor after a DISCONNECT.
    drop(served.connected(v3("none")).await);
    for version in [v3("polite"), v5("polite")] {
        let will = Some((0, "wills/polite", &b"no"[..], &b""[..]));
        let mut polite = served.connected(Connect { will, ..version }).await;
        polite.send(b"\xe0\x00").await;
        polite.expect_closed().await;
    }
    served.connections(1).await;
    watcher.expect_alive().await;
}

#[tokio::test]
async fn the_session_expiry_of_a_disconnect_holds() {
    let served = Served::start("").await;
    let keep = Connect { keep: true, properties: HOUR, ..v5("pump") };
    let (mut raw, _) = served.resumed(&keep).await;
    // Session Expiry Interval 0: the session ends with the connection (MQTT5-4.1.0-2).
    raw.send(b"\xe0\x07\x00\x05\x11\x00\x00\x00\x00").await;
    raw.expect_closed().await;
    assert!(!served.resumed(&keep).await.1);
}

#[tokio::test]
async fn words_are_left_out_rather_than_be_too_many() {
    let served = Served::start("").await;
    // Maximum Packet Size 24.
    let small = Connect { properties: b"\x27\x00\x00\x00\x18", ..v5("small") };
    // MQTT5-3.2.2-19: CONNACK.
    let bad = Connect { id: "a/b", ..small.clone() };
    assert_eq!(served.refused(&bad.bytes()).await, b"\x20\x03\x00\x85\x00");
    // MQTT5-3.14.2-3, MQTT5-3.14.2-4: DISCONNECT.
    let mut raw = served.connected(small.clone()).await;
    raw.send(b"\xf0\x00").await;
    raw.expect(b"\xe0\x02\x82\x00").await;
    raw.expect_closed().await;
    // MQTT5-3.1.2-24, MQTT5-3.1.2-25: a publish that is too large counts as sent.
    let mut raw = served.connected(small).await;
    subscribed(&mut raw, "t", 1, b"").await;
    raw.send(&publish(2, 1, "t", Some(b""), &[b'x'; 64])).await;
    raw.expect(b"\x40\x02\x00\x01").await;
    raw.send(&publish(2, 2, "t", Some(b""), b"fits")).await;
    let mut said = [raw.packet().await.unwrap(), raw.packet().await.unwrap()];
    said.sort();
    assert_eq!(said[1], b"\x40\x02\x00\x02");
    assert!(said[0].ends_with(b"fits"), "{said:02x?}");
    // What cannot be shortened ends the connection.
    raw.send(&packet(0x82, &[&b"\x00\x01\x00"[..], &b"\x00\x01t\x00".repeat(20)].concat())).await;
    raw.expect(b"\xe0\x02\x95\x00").await;
}
