//! Packets, byte by byte.

use proptest::prelude::*;

use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};

use super::*;

const MAX: usize = 1024;

/// What becomes of `bytes`: the packet, or the word for why not.
fn check(version: Version, bytes: &[u8], expected: &str) {
    let found = match frame(bytes, MAX) {
        Ok(None) => "incomplete".to_owned(),
        Ok(Some(frame)) => match parse(version, frame) {
            Ok(packet) => format!("{packet:?}"),
            Err(bad) => format!("{} {:#x}", bad.reason, bad.code),
        },
        Err(bad) => format!("{} {:#x}", bad.reason, bad.code),
    };
    assert!(found.starts_with(expected), "{bytes:02x?}: {found}, not {expected}");
}

#[test]
fn what_the_crate_lets_through_is_refused_here() {
    use Version::{V5, V311};
    for (version, bytes, expected) in [
        (V311, &b"\x30\x03\x00\x01a"[..], "Publish(PublishIn { qos: AtMostOnce"),
        (V311, b"\x30\x04\x00\x01", "incomplete"),
        (V311, b"\x32\x05\x00\x01a\x00\x01", "Publish(PublishIn { qos: AtLeastOnce"),
        (V311, b"\x32\x05\x00\x01a\x00\x00", "protocol_error"),
        (V311, b"\x32\x03\x00\x01a", "malformed_packet"),
        (V311, b"\x36\x05\x00\x01a\x00\x01", "malformed_packet"),
        (V311, b"\x38\x03\x00\x01a", "malformed_packet"),
        (V311, b"\x30\x03\x00\x02a", "malformed_packet"),
        (V311, b"\x30\x80\x80\x80\x80\x01", "malformed_packet"),
        (V311, b"\x30\x83\x00\x00\x01a", "malformed_packet"),
        (V311, b"\x30\xff\x7f", "packet_too_large 0x95"),
        (V311, b"\x40\x02\x00\x01", "Ack(Puback, 1, 0)"),
        (V311, b"\x40\x02\x00\x00", "protocol_error"),
        (V311, b"\x40\x03\x00\x01\x00", "malformed_packet"),
        (V311, b"\x60\x02\x00\x01", "malformed_packet"),
        (V311, b"\x62\x02\x00\x01", "Ack(Pubrel, 1, 0)"),
        (V311, b"\x80\x06\x00\x01\x00\x01a\x00", "malformed_packet"),
        (V311, b"\x82\x06\x00\x01\x00\x01a\x01", "Subscribe"),
        (V311, b"\x82\x06\x00\x01\x00\x01a\x04", "malformed_packet"),
        (V311, b"\x82\x06\x00\x01\x00\x01a\x03", "malformed_packet"),
        (V311, b"\x82\x06\x00\x01\x00\x01\x00\x00", "malformed_packet"),
        (V311, b"\x82\x06\x00\x01\x00\x01\xff\x00", "malformed_packet"),
        (V311, b"\x82\x02\x00\x01", "protocol_error"),
        (V311, b"\x82\x06\x00\x00\x00\x01a\x00", "protocol_error"),
        (V311, b"\xa2\x05\x00\x01\x00\x01a", "Unsubscribe"),
        (V311, b"\xa2\x02\x00\x01", "protocol_error"),
        (V311, b"\xc0\x00", "Ping"),
        (V311, b"\xc0\x01\x00", "malformed_packet"),
        (V311, b"\xc1\x00", "malformed_packet"),
        (V311, b"\xe0\x00", "Disconnect"),
        (V311, b"\xe0\x01\x00", "malformed_packet"),
        (V311, b"\xf0\x00", "protocol_error"),
        (V311, b"\x00\x00", "protocol_error"),
        (V311, b"\x20\x02\x00\x00", "protocol_error"),
        (V311, b"\x90\x03\x00\x01\x00", "protocol_error"),
        (V311, b"\x10\x00", "Connect"),
        // PUBLISH without a property length is no PUBLISH of MQTT 5.
        (V5, b"\x30\x03\x00\x01a", "malformed_packet"),
        (V5, b"\x30\x04\x00\x01a\x00", "Publish"),
        // Topic alias 0, a subscription identifier, an expiry that stands twice.
        (V5, b"\x30\x07\x00\x01a\x03\x23\x00\x00", "protocol_error 0x94"),
        (V5, b"\x30\x06\x00\x01a\x02\x0b\x01", "protocol_error"),
        (V5, b"\x30\x0e\x00\x01a\x0a\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01", "protocol_error"),
        (V5, b"\x30\x08\x00\x01a\x04\x08\x00\x01+", "protocol_error"),
        (V5, b"\x30\x08\x00\x01a\x04\x03\x00\x01\x00", "malformed_packet"),
        (V5, b"\x30\x06\x00\x01a\x09\x01\x01", "malformed_packet"),
        (V5, b"\x40\x03\x00\x01\x10", "Ack(Puback, 1, 16)"),
        (V5, b"\x40\x03\x00\x01\x01", "malformed_packet"),
        (V5, b"\x40\x05\x00\x01\x00\x00\x00", "malformed_packet"),
        (V5, b"\x82\x07\x00\x01\x00\x00\x01a\x2e", "Subscribe"),
        (V5, b"\x82\x07\x00\x01\x00\x00\x01a\x30", "protocol_error 0x82"),
        (V5, b"\x82\x09\x00\x01\x02\x0b\x00\x00\x01a\x00", "protocol_error"),
        (V5, b"\xe0\x00", "Disconnect(Disconnect { code: 0, session_expiry: None })"),
        (
            V5,
            b"\xe0\x07\x04\x05\x11\x00\x00\x00\x07",
            "Disconnect(Disconnect { code: 4, session_expiry: Some(7) })",
        ),
        (V5, b"\xe0\x01\x01", "malformed_packet"),
        (V5, b"\xf0\x00", "Auth"),
    ] {
        check(version, bytes, expected);
    }
}

fn publish<'a>(properties: &'a PublishProperties, identifiers: &'a [u32]) -> PublishOut<'a> {
    PublishOut {
        topic: "a/b",
        payload: b"x",
        qos: Qos::AtLeastOnce,
        dup: true,
        retain: true,
        id: 258,
        alias: Some(3),
        properties: Some(properties),
        expires_after_secs: Some(9),
        identifiers,
    }
}

#[test]
fn the_crate_reads_what_is_written_here() {
    let properties = PublishProperties {
        utf8: Some(true),
        expires_after_secs: Some(10),
        content_type: Some("text/plain".to_owned()),
        response_topic: Some("answer".to_owned()),
        correlation_data: Some(vec![0, 1]),
        user: vec![("k".to_owned(), "v".to_owned())],
    };
    let mut out = Vec::new();
    let packet = publish(&properties, &[1, 456_789]);
    write_publish(&mut out, Version::V5, &packet, MAX).expect("small enough");
    let read = frame(&out, MAX).expect("valid").expect("whole");
    let flags = read.header & 0x0f;
    let (read, _) = v5_0::Publish::parse(flags, read.body.into()).expect("the crate reads it");
    assert!(read.dup() && read.retain());
    assert_eq!((read.topic_name(), read.packet_id()), ("a/b", Some(258)));
    assert_eq!(read.props().len(), 9);

    let mut out = Vec::new();
    write_publish(&mut out, Version::V311, &packet, MAX).expect("small enough");
    let read = frame(&out, MAX).expect("valid").expect("whole");
    let flags = read.header & 0x0f;
    let (read, _) = v3_1_1::Publish::parse(flags, read.body.into()).expect("valid");
    assert_eq!(read.payload().as_slice(), b"x");
}

#[test]
fn a_publish_over_the_clients_limit_is_not_written() {
    let properties = PublishProperties::default();
    let packet = publish(&properties, &[]);
    let mut out = Vec::new();
    write_publish(&mut out, Version::V5, &packet, MAX).expect("small enough");
    let len = out.len();
    out.clear();
    assert_eq!(write_publish(&mut out, Version::V5, &packet, len), Ok(()));
    out.clear();
    assert_eq!(write_publish(&mut out, Version::V5, &packet, len - 1), Err(TooLarge));
    assert!(out.is_empty());
}

#[test]
fn answers_have_the_form_of_their_version() {
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    use Version::{V5, V311};
    for (found, expected) in [
        (
            written(&|out| write_refusal(out, V311, code::BAD_CREDENTIALS, "x", 100)),
            &b"\x20\x02\x00\x04"[..],
        ),
        (
            written(&|out| write_refusal(out, V311, code::CONNECTION_RATE, "x", 100)),
            b"\x20\x02\x00\x03",
        ),
        (
            written(&|out| write_refusal(out, V5, code::BAD_CLIENT_ID, "", 100)),
            b"\x20\x03\x00\x85\x00",
        ),
        (written(&|out| write_disconnect(out, code::TAKEN_OVER, "", 100)), b"\xe0\x02\x8e\x00"),
        (
            written(&|out| write_disconnect(out, code::QUOTA, "x", 100)),
            b"\xe0\x06\x97\x04\x1f\x00\x01x",
        ),
        // The reason string is left out where it is too much, and the packet where that is.
        (written(&|out| write_disconnect(out, code::QUOTA, "x", 7)), b"\xe0\x02\x97\x00"),
        (written(&|out| write_disconnect(out, code::QUOTA, "x", 3)), b""),
        (written(&|out| write_refusal(out, V5, code::QUOTA, "x", 5)), b"\x20\x03\x00\x97\x00"),
        (written(&|out| write_suback(out, V311, 7, &[2, 0x87])), b"\x90\x04\x00\x07\x02\x80"),
        (written(&|out| write_suback(out, V5, 7, &[2, 0x87])), b"\x90\x05\x00\x07\x00\x02\x87"),
        (written(&|out| write_unsuback(out, V311, 7, &[0x11])), b"\xb0\x02\x00\x07"),
        (written(&|out| write_unsuback(out, V5, 7, &[0x11])), b"\xb0\x04\x00\x07\x00\x11"),
        (written(&|out| write_ack(out, V311, Ack::Pubrec, 7, 0x97)), b"\x50\x02\x00\x07"),
        (written(&|out| write_ack(out, V5, Ack::Pubrec, 7, 0x97)), b"\x50\x03\x00\x07\x97"),
    ] {
        assert_eq!(found, expected);
    }
}

proptest! {
    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), kind in 0_u8..=255) {
        let mut packet = vec![kind, u8::try_from(bytes.len()).expect("short")];
        packet.extend(&bytes);
        for version in [Version::V311, Version::V5] {
            for input in [&bytes, &packet] {
                if let Ok(Some(frame)) = frame(input, MAX) {
                    parse(version, frame).ok();
                }
            }
        }
    }
}
