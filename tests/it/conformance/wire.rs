//! Chapters 1 and 2, and what a packet may look like: bytes in, bytes out.

use super::Served;
use crate::raw::{Raw, packet, publish, subscribe, v3, v5};

/// What has to come of the bytes.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// Nothing, and the end of the connection.
    Closed,
    /// This DISCONNECT of MQTT 5, and the end.
    Disconnect(u8),
    /// This CONNACK: 3.1.1 with its return code, 5.0 with its reason code; and the end.
    Connack(u8),
    /// Just this; the connection lives on.
    Answer(&'static [u8]),
}

use Expect::{Answer, Closed, Connack, Disconnect};

/// Sends `bytes`, which is either all of a connection (a CONNECT) or what follows a CONNECT.
async fn check(served: &Served, name: &str, first: Option<Vec<u8>>, bytes: &[u8], expect: Expect) {
    let mut raw = Raw::open(served.address).await;
    if let Some(connect) = first {
        raw.send(&connect).await;
        let connack = raw.packet().await.expect("a CONNACK");
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{name}");
    }
    raw.send(bytes).await;
    if let Answer(answer) = expect {
        let found = raw.packet().await;
        assert_eq!(found.as_deref(), Some(answer), "{name}: {bytes:02x?}");
        return raw.expect_alive().await;
    }
    let mut said = Vec::new();
    while let Some(packet) = raw.packet().await {
        said.push(packet);
    }
    let said: Vec<_> =
        said.iter().map(|packet| (packet[0], packet.get(2), packet.get(3))).collect();
    let fits = match (expect, &said[..]) {
        (Closed, []) => true,
        (Disconnect(code), [(0xe0, Some(found), _)]) => *found == &code,
        // MQTT-3.2.2-4, MQTT5-3.2.2-6: no session is present to one who is refused.
        (Connack(code), [(0x20, Some(0), Some(found))]) => *found == &code,
        _ => false,
    };
    assert!(fits, "{name}: {bytes:02x?}: {said:02x?} is not {expect:02x?}");
}

#[tokio::test]
async fn packets_of_3_1_1() {
    let served = Served::start("").await;
    let none = None;
    for (name, bytes, expect) in [
        ("MQTT-1.5.3-1 not UTF-8", b"\x30\x04\x00\x02\xc3\x28".to_vec(), Closed),
        ("MQTT-1.5.3-1 a surrogate", b"\x30\x05\x00\x03\xed\xa0\x80".to_vec(), Closed),
        ("MQTT-1.5.3-1 overlong", b"\x30\x04\x00\x02\xc0\xaf".to_vec(), Closed),
        ("MQTT-1.5.3-2 U+0000", publish(0, 0, "a\0b", none, b""), Closed),
        ("MQTT-2.2.2-1 PINGREQ", b"\xc1\x00".to_vec(), Closed),
        ("MQTT-2.2.2-2 PUBACK", b"\x41\x02\x00\x01".to_vec(), Closed),
        ("MQTT-2.3.1-1 PUBLISH with id 0", publish(2, 0, "a", none, b""), Closed),
        ("MQTT-2.3.1-1 SUBSCRIBE with id 0", subscribe(0, "a", 0, none), Closed),
        ("MQTT-2.3.1-1 UNSUBSCRIBE with id 0", b"\xa2\x05\x00\x00\x00\x01a".to_vec(), Closed),
        (
            "MQTT-2.3.1-6 PUBACK for QoS 1",
            publish(2, 258, "a", none, b""),
            Answer(b"\x40\x02\x01\x02"),
        ),
        (
            "MQTT-2.3.1-6 PUBREC for QoS 2",
            publish(4, 258, "a", none, b""),
            Answer(b"\x50\x02\x01\x02"),
        ),
        ("MQTT-2.3.1-7 SUBACK", subscribe(258, "a", 0, none), Answer(b"\x90\x03\x01\x02\x00")),
        (
            "MQTT-2.3.1-7 UNSUBACK",
            b"\xa2\x05\x01\x02\x00\x01a".to_vec(),
            Answer(b"\xb0\x02\x01\x02"),
        ),
        ("MQTT-3.1.0-2 a second CONNECT", v3("wire").bytes(), Closed),
        ("MQTT-3.3.1-2 DUP with QoS 0", publish(8, 0, "a", none, b""), Closed),
        ("MQTT-3.3.1-4 QoS 3", b"\x36\x05\x00\x01a\x00\x01".to_vec(), Closed),
        ("MQTT-3.3.2-1 no topic", b"\x30\x01\x00".to_vec(), Closed),
        ("MQTT-3.3.2-1 half a topic", b"\x30\x03\x00\x09a".to_vec(), Closed),
        ("MQTT-3.3.2-2 a wildcard", publish(0, 0, "a/+", none, b""), Closed),
        ("MQTT-3.3.5-2 not its topic", publish(2, 1, "$SYS/broker/uptime", none, b""), Closed),
        ("MQTT-3.6.1-1", b"\x60\x02\x00\x01".to_vec(), Closed),
        ("MQTT-3.8.1-1", packet(0x80, b"\x00\x01\x00\x01a\x00"), Closed),
        ("MQTT-3.8.3-1 not UTF-8", packet(0x82, b"\x00\x01\x00\x01\xff\x00"), Closed),
        ("MQTT-3.8.3-1 U+0000", subscribe(1, "a\0", 0, none), Closed),
        ("MQTT-3.8.3-3 nothing", packet(0x82, b"\x00\x01"), Closed),
        ("MQTT-3.8.3-4 QoS 3", subscribe(1, "a", 3, none), Closed),
        ("MQTT-3.8.3-4 reserved bits", subscribe(1, "a", 4, none), Closed),
        ("MQTT-3.10.1-1", packet(0xa0, b"\x00\x01\x00\x01a"), Closed),
        ("MQTT-3.10.3-1 not UTF-8", packet(0xa2, b"\x00\x01\x00\x01\xff"), Closed),
        ("MQTT-3.10.3-1 half a filter", packet(0xa2, b"\x00\x01\x00\x02a"), Closed),
        ("MQTT-3.10.3-2 nothing", packet(0xa2, b"\x00\x01"), Closed),
        ("MQTT-3.12.4-1", b"\xc0\x00".to_vec(), Answer(b"\xd0\x00")),
        ("MQTT-3.14.1-1", b"\xe1\x00".to_vec(), Closed),
        ("MQTT-4.7.1-1 a wildcard in a topic", publish(2, 1, "a/#", none, b""), Closed),
        (
            "MQTT-4.7.1-2 # is the last",
            subscribe(1, "a/#/b", 0, none),
            Answer(b"\x90\x03\x00\x01\x80"),
        ),
        ("MQTT-4.7.1-2 # is alone", subscribe(1, "a#", 0, none), Answer(b"\x90\x03\x00\x01\x80")),
        ("MQTT-4.7.1-3 + is alone", subscribe(1, "a+/b", 0, none), Answer(b"\x90\x03\x00\x01\x80")),
        (
            "MQTT-4.7.1-3 first and last",
            subscribe(1, "+/a/+", 0, none),
            Answer(b"\x90\x03\x00\x01\x00"),
        ),
        ("MQTT-4.7.3-1 an empty topic", publish(0, 0, "", none, b""), Closed),
        (
            "MQTT-4.7.3-1 an empty filter",
            subscribe(1, "", 0, none),
            Answer(b"\x90\x03\x00\x01\x80"),
        ),
        ("MQTT-4.7.3-2 U+0000", publish(2, 1, "\0", none, b""), Closed),
        ("MQTT-4.8.0-1 a packet of a server", b"\x90\x03\x00\x01\x00".to_vec(), Closed),
        ("MQTT-4.8.0-1 an unknown packet", b"\xf0\x00".to_vec(), Closed),
        ("MQTT-4.8.0-1 five bytes of length", b"\x30\xff\xff\xff\xff\x01".to_vec(), Closed),
    ] {
        check(&served, name, Some(v3("wire").bytes()), &bytes, expect).await;
    }
}

/// A CONNECT of MQTT with what stands behind the protocol name: level, flags, keep alive ...
fn connect(rest: &[u8]) -> Vec<u8> {
    packet(0x10, &[b"\x00\x04MQTT", rest].concat())
}

#[tokio::test]
async fn connects_of_3_1_1() {
    let served = Served::start("").await;
    for (name, bytes, expect) in [
        ("MQTT-3.1.0-1 a ping first", b"\xc0\x00".to_vec(), Closed),
        ("MQTT-3.1.0-1 a publish first", publish(0, 0, "a", None, b""), Closed),
        (
            "MQTT-3.1.2-1 another name",
            b"\x10\x0c\x00\x04MQTX\x04\x02\x00\x00\x00\x00".to_vec(),
            Closed,
        ),
        ("MQTT-3.1.2-2 level 3", connect(b"\x03\x02\x00\x00\x00\x01a"), Connack(1)),
        (
            "MQTT-3.1.2-2 MQTT 3.1",
            b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01a".to_vec(),
            Connack(1),
        ),
        ("MQTT-3.1.2-3 the reserved flag", connect(b"\x04\x03\x00\x00\x00\x01a"), Closed),
        ("MQTT-3.1.2-9 no will in the payload", connect(b"\x04\x06\x00\x00\x00\x01a"), Closed),
        (
            "MQTT-3.1.2-11 a will without its flag",
            connect(b"\x04\x02\x00\x00\x00\x01a\x00\x01t\x00\x00"),
            Closed,
        ),
        ("MQTT-3.1.2-13 QoS without a will", connect(b"\x04\x0a\x00\x00\x00\x01a"), Closed),
        ("MQTT-3.1.2-14 QoS 3", connect(b"\x04\x1e\x00\x00\x00\x01a\x00\x01t\x00\x00"), Closed),
        ("MQTT-3.1.2-15 retain without a will", connect(b"\x04\x22\x00\x00\x00\x01a"), Closed),
        (
            "MQTT-3.1.2-18 a name without its flag",
            connect(b"\x04\x02\x00\x00\x00\x01a\x00\x01u"),
            Closed,
        ),
        ("MQTT-3.1.2-19 no name", connect(b"\x04\x82\x00\x00\x00\x01a"), Closed),
        (
            "MQTT-3.1.2-20 a password without its flag",
            connect(b"\x04\x82\x00\x00\x00\x01a\x00\x01u\x00\x01p"),
            Closed,
        ),
        ("MQTT-3.1.2-21 no password", connect(b"\x04\xc2\x00\x00\x00\x01a\x00\x01u"), Closed),
        (
            "MQTT-3.1.2-22 a password and no name",
            connect(b"\x04\x42\x00\x00\x00\x01a\x00\x01p"),
            Closed,
        ),
        (
            "MQTT-3.1.3-1 more than there should be",
            connect(b"\x04\x02\x00\x00\x00\x01a\x00"),
            Closed,
        ),
        ("MQTT-3.1.3-3 no client id", connect(b"\x04\x02\x00\x00"), Closed),
        ("MQTT-3.1.3-4 an id that is not UTF-8", connect(b"\x04\x02\x00\x00\x00\x01\xff"), Closed),
        ("MQTT-3.1.3-8 empty, and to be kept", connect(b"\x04\x00\x00\x00\x00\x00"), Connack(2)),
        ("MQTT-3.1.3-9 an id that is refused", connect(b"\x04\x02\x00\x00\x00\x03a/b"), Connack(2)),
        (
            "MQTT-3.1.3-10 not UTF-8",
            connect(b"\x04\x06\x00\x00\x00\x01a\x00\x01\xff\x00\x00"),
            Closed,
        ),
        ("MQTT-3.1.3-11 not UTF-8", connect(b"\x04\x82\x00\x00\x00\x01a\x00\x01\xff"), Closed),
        (
            "MQTT-3.1.4-1 flags in the first byte",
            b"\x11\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01a".to_vec(),
            Closed,
        ),
        // MQTT-3.2.2-5: and the connection is closed; above, MQTT-3.2.2-6: no code, no CONNACK.
        (
            "MQTT-3.1.4-5 nothing behind a refused CONNECT is served",
            [v3("a/b").bytes(), subscribe(1, "a", 0, None), b"\xc0\x00".to_vec()].concat(),
            Connack(2),
        ),
    ] {
        check(&served, name, None, &bytes, expect).await;
    }
}

#[tokio::test]
async fn packets_of_5() {
    let served = Served::start("[broker]\npacket_bytes_max = 2048").await;
    let none: Option<&[u8]> = Some(b"");
    for (name, bytes, expect) in [
        ("MQTT5-1.5.4-1 not UTF-8", b"\x30\x05\x00\x02\xc3\x28\x00".to_vec(), Disconnect(0x81)),
        (
            "MQTT5-1.5.4-1 a surrogate",
            b"\x30\x06\x00\x03\xed\xa0\x80\x00".to_vec(),
            Disconnect(0x81),
        ),
        ("MQTT5-1.5.4-1 overlong", b"\x30\x05\x00\x02\xc0\xaf\x00".to_vec(), Disconnect(0x81)),
        ("MQTT5-1.5.4-2 in a topic", publish(0, 0, "a\0b", none, b""), Disconnect(0x81)),
        ("MQTT5-1.5.4-2 in a filter", subscribe(1, "a\0b", 0, none), Disconnect(0x81)),
        (
            "MQTT5-1.5.4-2 in a reason string",
            b"\x40\x08\x00\x01\x00\x04\x1f\x00\x01\x00".to_vec(),
            Disconnect(0x81),
        ),
        ("MQTT5-1.5.5-1 the length of a packet", b"\xc0\x80\x00".to_vec(), Disconnect(0x81)),
        ("MQTT5-1.5.5-1 of properties", b"\x30\x05\x00\x01a\x80\x00".to_vec(), Disconnect(0x81)),
        ("MQTT5-1.5.5-1 five bytes", b"\x30\x80\x80\x80\x80\x01".to_vec(), Disconnect(0x81)),
        (
            "MQTT5-1.5.5-1 five bytes of properties",
            b"\x30\x08\x00\x01a\x80\x80\x80\x80\x01".to_vec(),
            Disconnect(0x81),
        ),
        (
            "MQTT5-1.5.7-1 a key that is not UTF-8",
            publish(0, 0, "a", Some(b"\x26\x00\x01\xff\x00\x01v"), b""),
            Disconnect(0x81),
        ),
        (
            "MQTT5-1.5.7-1 U+0000 in a value",
            publish(0, 0, "a", Some(b"\x26\x00\x01k\x00\x01\x00"), b""),
            Disconnect(0x81),
        ),
        (
            "MQTT5-1.5.7-1 in a SUBSCRIBE",
            subscribe(1, "a", 0, Some(b"\x26\x00\x01k\x00\x01\x00")),
            Disconnect(0x81),
        ),
        ("MQTT5-2.1.3-1 PINGREQ", b"\xc1\x00".to_vec(), Disconnect(0x81)),
        ("MQTT5-2.1.3-1 PUBACK", b"\x41\x02\x00\x01".to_vec(), Disconnect(0x81)),
        ("MQTT5-2.2.1-5 QoS 1", publish(2, 258, "a", none, b""), Answer(b"\x40\x02\x01\x02")),
        ("MQTT5-2.2.1-5 QoS 2", publish(4, 258, "a", none, b""), Answer(b"\x50\x02\x01\x02")),
        ("MQTT5-2.2.1-6 SUBACK", subscribe(258, "a", 0, none), Answer(b"\x90\x04\x01\x02\x00\x00")),
        (
            "MQTT5-2.2.1-6 UNSUBACK",
            b"\xa2\x06\x01\x02\x00\x00\x01a".to_vec(),
            Answer(b"\xb0\x04\x01\x02\x00\x11"),
        ),
        ("MQTT5-2.2.2-1 no property length", b"\x30\x03\x00\x01a".to_vec(), Disconnect(0x81)),
        ("MQTT5-3.1.0-2 a second CONNECT", v5("wire").bytes(), Closed),
        ("MQTT5-3.2.2-15 too large", publish(0, 0, "a", none, &[b'x'; 2048]), Disconnect(0x95)),
        (
            "MQTT5-3.2.2-17 over the maximum",
            publish(0, 0, "a", Some(b"\x23\x00\x11"), b""),
            Disconnect(0x94),
        ),
        ("MQTT5-3.3.1-2 DUP with QoS 0", publish(8, 0, "a", none, b""), Disconnect(0x81)),
        ("MQTT5-3.3.1-4 QoS 3", b"\x36\x06\x00\x01a\x00\x01\x00".to_vec(), Disconnect(0x81)),
        ("MQTT5-3.3.2-1 half a topic", b"\x30\x03\x00\x09a".to_vec(), Disconnect(0x81)),
        ("MQTT5-3.3.2-2 a wildcard", publish(0, 0, "a/+", none, b""), Disconnect(0x90)),
        ("MQTT5-3.3.2-8 alias 0", publish(0, 0, "a", Some(b"\x23\x00\x00"), b""), Disconnect(0x94)),
        (
            "MQTT5-3.3.2-13 not UTF-8",
            publish(0, 0, "a", Some(b"\x08\x00\x01\xff"), b""),
            Disconnect(0x81),
        ),
        (
            "MQTT5-3.3.2-14 a wildcard",
            publish(0, 0, "a", Some(b"\x08\x00\x01#"), b""),
            Disconnect(0x82),
        ),
        (
            "MQTT5-3.3.2-19 not UTF-8",
            publish(0, 0, "a", Some(b"\x03\x00\x01\xff"), b""),
            Disconnect(0x81),
        ),
        (
            "MQTT5-3.3.4-6 an identifier from a client",
            publish(0, 0, "a", Some(b"\x0b\x01"), b""),
            Disconnect(0x82),
        ),
        (
            "MQTT5-3.4.2-1 a code that PUBACK has not",
            b"\x40\x03\x00\x01\x01".to_vec(),
            Disconnect(0x81),
        ),
        (
            "MQTT5-3.5.2-1 a code that PUBREC has not",
            b"\x50\x03\x00\x01\x92".to_vec(),
            Disconnect(0x81),
        ),
        ("MQTT5-3.6.1-1", b"\x60\x02\x00\x01".to_vec(), Disconnect(0x81)),
        (
            "MQTT5-3.6.2-1 a code that PUBREL has not",
            b"\x62\x03\x00\x01\x10".to_vec(),
            Disconnect(0x81),
        ),
        (
            "MQTT5-3.7.2-1 a code that PUBCOMP has not",
            b"\x70\x03\x00\x01\x10".to_vec(),
            Disconnect(0x81),
        ),
        ("MQTT5-3.8.1-1", packet(0x80, b"\x00\x01\x00\x00\x01a\x00"), Disconnect(0x81)),
        (
            "MQTT5-3.8.3-1 not UTF-8",
            packet(0x82, b"\x00\x01\x00\x00\x01\xff\x00"),
            Disconnect(0x81),
        ),
        ("MQTT5-3.8.3-2 nothing", packet(0x82, b"\x00\x01\x00"), Disconnect(0x82)),
        (
            "MQTT5-3.8.3-4 no local on a share",
            subscribe(1, "$share/g/a", 4, none),
            Disconnect(0x82),
        ),
        ("MQTT5-3.8.3-5 reserved bits", subscribe(1, "a", 0x40, none), Disconnect(0x81)),
        ("MQTT5-3.8.3-5 reserved bits", subscribe(1, "a", 0x80, none), Disconnect(0x81)),
        ("MQTT5-3.10.1-1", packet(0xa0, b"\x00\x01\x00\x00\x01a"), Disconnect(0x81)),
        ("MQTT5-3.10.3-1 not UTF-8", packet(0xa2, b"\x00\x01\x00\x00\x01\xff"), Disconnect(0x81)),
        ("MQTT5-3.10.3-2 nothing", packet(0xa2, b"\x00\x01\x00"), Disconnect(0x82)),
        ("MQTT5-3.12.4-1", b"\xc0\x00".to_vec(), Answer(b"\xd0\x00")),
        ("MQTT5-3.14.1-1", b"\xe1\x00".to_vec(), Disconnect(0x81)),
        (
            "MQTT5-3.14.2-1 a code that DISCONNECT has not",
            b"\xe0\x01\x01".to_vec(),
            Disconnect(0x81),
        ),
        ("MQTT5-3.15.1-1", b"\xf1\x00".to_vec(), Disconnect(0x81)),
        ("MQTT5-4.7.0-1 a wildcard in a topic", publish(2, 1, "a/#", none, b""), Disconnect(0x90)),
        (
            "MQTT5-4.7.1-1 # is the last",
            subscribe(1, "a/#/b", 0, none),
            Answer(b"\x90\x04\x00\x01\x00\x8f"),
        ),
        (
            "MQTT5-4.7.1-2 + is alone",
            subscribe(1, "a+/b", 0, none),
            Answer(b"\x90\x04\x00\x01\x00\x8f"),
        ),
        (
            "MQTT5-4.7.3-1 an empty filter",
            subscribe(1, "", 0, none),
            Answer(b"\x90\x04\x00\x01\x00\x8f"),
        ),
        (
            "MQTT5-4.7.3-1 an empty topic, and no alias",
            publish(0, 0, "", none, b""),
            Disconnect(0x82),
        ),
        ("MQTT5-4.7.3-2 U+0000", publish(2, 1, "\0", none, b""), Disconnect(0x81)),
        (
            "MQTT5-4.8.2-1 no share name",
            subscribe(1, "$share//a", 0, none),
            Answer(b"\x90\x04\x00\x01\x00\x8f"),
        ),
        (
            "MQTT5-4.8.2-2 a wildcard in it",
            subscribe(1, "$share/+/a", 0, none),
            Answer(b"\x90\x04\x00\x01\x00\x8f"),
        ),
        (
            "MQTT5-4.8.2-2 no filter",
            subscribe(1, "$share/g", 0, none),
            Answer(b"\x90\x04\x00\x01\x00\x8f"),
        ),
        ("MQTT5-4.12.0-7 AUTH without a method", b"\xf0\x00".to_vec(), Disconnect(0x82)),
        // Errors that the specification describes without a number.
        ("MQTT5-4.13.1-1 packet id 0", publish(2, 0, "a", none, b""), Disconnect(0x82)),
        ("MQTT5-4.13.1-1 SUBSCRIBE with id 0", subscribe(0, "a", 0, none), Disconnect(0x82)),
        (
            "MQTT5-4.13.1-1 a packet of a server",
            b"\x90\x04\x00\x01\x00\x00".to_vec(),
            Disconnect(0x82),
        ),
        (
            "MQTT5-4.13.1-1 an unknown alias",
            publish(0, 0, "", Some(b"\x23\x00\x01"), b""),
            Disconnect(0x94),
        ),
        (
            "MQTT5-4.13.1-1 a property twice",
            publish(0, 0, "a", Some(b"\x01\x00\x01\x00"), b""),
            Disconnect(0x82),
        ),
        (
            "MQTT5-4.13.1-1 a property of another packet",
            publish(0, 0, "a", Some(b"\x21\x00\x01"), b""),
            Disconnect(0x82),
        ),
        (
            "MQTT5-4.13.1-1 an unknown property",
            publish(0, 0, "a", Some(b"\x7f\x00"), b""),
            Disconnect(0x81),
        ),
        (
            "MQTT5-4.13.1-1 a payload format of 2",
            publish(0, 0, "a", Some(b"\x01\x02"), b""),
            Disconnect(0x82),
        ),
        (
            "MQTT5-4.13.1-1 subscription identifier 0",
            subscribe(1, "a", 0, Some(b"\x0b\x00")),
            Disconnect(0x82),
        ),
        (
            "MQTT5-4.13.1-1 two identifiers",
            subscribe(1, "a", 0, Some(b"\x0b\x01\x0b\x02")),
            Disconnect(0x82),
        ),
        ("MQTT5-4.13.1-1 subscription QoS 3", subscribe(1, "a", 3, none), Disconnect(0x81)),
        ("MQTT5-4.13.1-1 retain handling 3", subscribe(1, "a", 0x30, none), Disconnect(0x82)),
        (
            "MQTT5-4.13.1-1 no session, and a late expiry",
            b"\xe0\x07\x00\x05\x11\x00\x00\x00\x01".to_vec(),
            Disconnect(0x82),
        ),
    ] {
        check(&served, name, Some(v5("wire").bytes()), &bytes, expect).await;
    }
}

#[tokio::test]
async fn connects_of_5() {
    let served = Served::start("").await;
    for (name, bytes, expect) in [
        ("MQTT5-3.1.0-1 a ping first", b"\xc0\x00".to_vec(), Closed),
        (
            "MQTT5-3.1.2-1 another name",
            b"\x10\x0d\x00\x04MQTX\x05\x02\x00\x00\x00\x00\x00".to_vec(),
            Closed,
        ),
        ("MQTT5-3.1.2-2 version 6", connect(b"\x06\x02\x00\x00\x00\x00\x01a"), Connack(0x84)),
        (
            "MQTT5-3.1.2-3 the reserved flag",
            connect(b"\x05\x03\x00\x00\x00\x00\x01a"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.2-9 no will in the payload",
            connect(b"\x05\x06\x00\x00\x00\x00\x01a"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.2-11 QoS without a will",
            connect(b"\x05\x0a\x00\x00\x00\x00\x01a"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.2-12 QoS 3",
            connect(b"\x05\x1e\x00\x00\x00\x00\x01a\x00\x00\x01t\x00\x00"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.2-13 retain without a will",
            connect(b"\x05\x22\x00\x00\x00\x00\x01a"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.2-16 a name without its flag",
            connect(b"\x05\x02\x00\x00\x00\x00\x01a\x00\x01u"),
            Connack(0x81),
        ),
        ("MQTT5-3.1.2-17 no name", connect(b"\x05\x82\x00\x00\x00\x00\x01a"), Connack(0x81)),
        (
            "MQTT5-3.1.2-18 a password without its flag",
            connect(b"\x05\x82\x00\x00\x00\x00\x01a\x00\x01u\x00\x01p"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.2-19 no password",
            connect(b"\x05\xc2\x00\x00\x00\x00\x01a\x00\x01u"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.3-1 more than there should be",
            connect(b"\x05\x02\x00\x00\x00\x00\x01a\x00"),
            Connack(0x81),
        ),
        ("MQTT5-3.1.3-3 no client id", connect(b"\x05\x02\x00\x00\x00"), Connack(0x81)),
        (
            "MQTT5-3.1.3-4 an id that is not UTF-8",
            connect(b"\x05\x02\x00\x00\x00\x00\x01\xff"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.3-8 an id that is refused",
            connect(b"\x05\x02\x00\x00\x00\x00\x03a/b"),
            Connack(0x85),
        ),
        (
            "MQTT5-3.1.3-11 not UTF-8",
            connect(b"\x05\x06\x00\x00\x00\x00\x01a\x00\x00\x01\xff\x00\x00"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.3-12 not UTF-8",
            connect(b"\x05\x82\x00\x00\x00\x00\x01a\x00\x01\xff"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.4-1 properties of another packet",
            connect(b"\x05\x02\x00\x00\x03\x23\x00\x01\x00\x01a"),
            Connack(0x82),
        ),
        (
            "MQTT5-3.1.4-1 a property twice",
            connect(b"\x05\x02\x00\x00\x06\x21\x00\x01\x21\x00\x01\x00\x01a"),
            Connack(0x82),
        ),
        (
            "MQTT5-3.1.4-1 Receive Maximum 0",
            connect(b"\x05\x02\x00\x00\x03\x21\x00\x00\x00\x01a"),
            Connack(0x82),
        ),
        (
            "MQTT5-3.1.4-1 a length that is not the shortest",
            connect(b"\x05\x02\x00\x00\x80\x00\x00\x01a"),
            Connack(0x81),
        ),
        (
            "MQTT5-3.1.4-1 authentication data, no method",
            connect(b"\x05\x02\x00\x00\x04\x16\x00\x01x\x00\x01a"),
            Connack(0x82),
        ),
        (
            "MQTT5-3.1.4-2 who is not known",
            connect(b"\x05\xc2\x00\x00\x00\x00\x01a\x00\x01u\x00\x01p"),
            Connack(0x86),
        ),
        // MQTT5-3.2.2-7, MQTT5-4.12.0-4, MQTT5-4.13.2-1: and the connection is closed.
        // MQTT5-3.14.0-1: and none of these gets a DISCONNECT.
        (
            "MQTT5-3.1.4-6 nothing behind a refused CONNECT is served",
            [v5("a/b").bytes(), subscribe(1, "a", 0, Some(b"")), b"\xc0\x00".to_vec()].concat(),
            Connack(0x85),
        ),
        (
            "MQTT5-4.12.0-1 a method",
            connect(b"\x05\x02\x00\x00\x04\x15\x00\x01x\x00\x01a"),
            Connack(0x8c),
        ),
    ] {
        check(&served, name, None, &bytes, expect).await;
    }
}
