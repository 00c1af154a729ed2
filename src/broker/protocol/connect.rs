//! The first packet: framed by us, checked, and made into one [`Connect`] for both versions.
//!
//! Nothing of the connection exists before this: a peer that sends anything but a CONNECT of at
//! most `connect_bytes_max` bytes within `connect_timeout` is closed. Values that a client may
//! choose freely are cut to what this broker holds to, so that nobody behind this has to
//! ask again.
//!
//! Invariant: a [`Connect`] has a will with a checked topic, no property twice, no U+0000 in a
//! string, and no reserved flag set. The client id is checked by [`check_client_id`] later,
//! because a certificate may supply it.

use std::fmt;

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::{Property, Qos as CoreQos, v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::MqttError;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::read::{check_text, once, read_publish_property};
use super::{Bad, Version, code, frame};
use crate::model::{PublishProperties, Qos, Reason};
use crate::secret::Secret;
use crate::topic::{BadTopic, TopicLimits, TopicName};

/// What a client asked for.
#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    /// As the client sent it; may be empty.
    pub(crate) client_id: String,
    /// Clean Start, or Clean Session of 3.1.1.
    pub(crate) clean_start: bool,
    /// Seconds; 0 for none.
    pub(crate) keep_alive: u16,
    /// How long the session outlives the connection, seconds; `u32::MAX` for ever.
    pub(crate) session_expiry: u32,
    /// Most unacknowledged QoS 1 and 2 publishes that it takes.
    pub(crate) receive_max: u16,
    /// Largest packet that it takes, bytes.
    pub(crate) packet_bytes_max: usize,
    /// Most topic aliases that it takes.
    pub(crate) alias_max: u16,
    /// Whether it asks for an enhanced authentication, which there is not.
    pub(crate) authentication_method: bool,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Password>,
    pub(crate) will: Option<Box<Will>>,
}

/// A password as it came; never printed.
pub(crate) struct Password(pub(crate) Vec<u8>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Secret::default(), f)
    }
}

/// What is published when the connection ends without a DISCONNECT.
#[derive(Debug)]
pub(crate) struct Will {
    pub(crate) topic: TopicName,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Will Delay Interval, seconds.
    pub(crate) delay_secs: u32,
    pub(crate) properties: Option<Box<PublishProperties>>,
}

/// Why a CONNECT is refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// For the log, and for the reason string of MQTT 5.
    pub(crate) what: &'static str,
    /// The form and the MQTT 5 code of the CONNACK; `None` where there is none to send.
    pub(crate) connack: Option<(Version, u8)>,
}

impl Refusal {
    fn silent(bad: Bad) -> Self {
        Self { reason: bad.reason, what: bad.what, connack: None }
    }

    pub(crate) fn new(version: Version, reason: Reason, code: u8, what: &'static str) -> Self {
        Self { reason, what, connack: Some((version, code)) }
    }
}

/// Reads until `input` holds the whole first packet, and says how long it is. What a client sent
/// behind it stays in `input`.
pub(crate) async fn read<S: AsyncRead + Unpin>(
    stream: &mut S,
    input: &mut Vec<u8>,
    bytes_max: usize,
) -> Result<usize, Refusal> {
    loop {
        if input.first().is_some_and(|first| *first != 0x10) {
            return Err(Refusal::silent(Bad::malformed("the first packet is no CONNECT")));
        }
        match frame(input, bytes_max) {
            Ok(Some(whole)) => return Ok(whole.len),
            Ok(None) => {}
            Err(bad) => return Err(Refusal::silent(bad)),
        }
        // Most CONNECTs have less than 512 bytes; never more than the limit is ever kept.
        let mut chunk = [0; 512];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => {
                return Err(Refusal {
                    reason: Reason::ConnectionLost,
                    what: "closed before CONNECT",
                    connack: None,
                });
            }
            Ok(count) => input.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
    }
}

/// Reads a whole CONNECT, its fixed header included.
pub(crate) fn parse(packet: &[u8], limits: TopicLimits) -> Result<Connect, Refusal> {
    let frame = match frame(packet, usize::MAX) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Err(Refusal::silent(Bad::malformed("half a CONNECT"))),
        Err(bad) => return Err(Refusal::silent(bad)),
    };
    let (version, flags) = match frame.body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, flags, ..] => (Version::V311, *flags),
        [0, 4, b'M', b'Q', b'T', b'T', 5, flags, ..] => (Version::V5, *flags),
        // MQTT-3.1.2-2; a client of an unknown version is answered in the form nearest to it.
        [0, 4, b'M', b'Q', b'T', b'T', level, _, ..] => {
            return Err(unsupported(if *level > 5 { Version::V5 } else { Version::V311 }));
        }
        [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', ..] => return Err(unsupported(Version::V311)),
        _ => {
            return Err(Refusal::silent(Bad::malformed("not the protocol name MQTT")));
        }
    };
    let body = check_flags(version, flags).and_then(|()| match version {
        Version::V311 => parse_v3(frame.body, limits),
        Version::V5 => parse_v5(frame.body, limits),
    });
    body.map_err(|bad| Refusal {
        reason: bad.reason,
        what: bad.what,
        // MQTT-3.1.4-1: 3.1.1 has no return code for a malformed packet.
        connack: (version == Version::V5).then_some((version, bad.code)),
    })
}

fn unsupported(version: Version) -> Refusal {
    Refusal::new(
        version,
        Reason::UnsupportedVersion,
        code::UNSUPPORTED_VERSION,
        "only MQTT 3.1.1 and 5.0 are spoken here",
    )
}

/// MQTT-3.1.2-3, -11 to -15, -22.
fn check_flags(version: Version, flags: u8) -> Result<(), Bad> {
    let will = flags & 0b0000_0100 != 0;
    if flags & 1 != 0 {
        return Err(Bad::malformed("the reserved connect flag is set"));
    }
    if flags & 0b0001_1000 == 0b0001_1000 {
        return Err(Bad::malformed("will QoS 3"));
    }
    if !will && flags & 0b0011_1000 != 0 {
        return Err(Bad::malformed("will QoS or will retain without a will"));
    }
    if flags & 0b1100_0000 == 0b0100_0000 {
        return Err(match version {
            Version::V311 => Bad::malformed("a password without a user name"),
            // MQTT 5 allows it; there is nobody whose password it could be.
            Version::V5 => Bad {
                reason: Reason::BadCredentials,
                code: code::BAD_CREDENTIALS,
                what: "a password without a user name",
            },
        });
    }
    Ok(())
}

fn bad_connect(error: MqttError) -> Bad {
    match error {
        MqttError::ProtocolError => Bad::protocol("a property or flag that CONNECT cannot have"),
        _ => Bad::malformed("bad CONNECT"),
    }
}

fn parse_v3(body: &[u8], limits: TopicLimits) -> Result<Connect, Bad> {
    let (packet, used) = v3_1_1::Connect::parse(body).map_err(bad_connect)?;
    if used != body.len() {
        return Err(Bad::malformed("bytes after CONNECT"));
    }
    let will = match (packet.will_topic(), packet.will_payload()) {
        (Some(topic), Some(payload)) => Some(Box::new(Will {
            topic: will_topic(topic, limits)?,
            payload: Bytes::copy_from_slice(payload),
            qos: qos(packet.will_qos()),
            retain: packet.will_retain(),
            delay_secs: 0,
            properties: None,
        })),
        _ => None,
    };
    Ok(Connect {
        version: Version::V311,
        client_id: check_text(packet.client_id())?,
        clean_start: packet.clean_session(),
        keep_alive: packet.keep_alive(),
        session_expiry: if packet.clean_session() { 0 } else { u32::MAX },
        receive_max: u16::MAX,
        packet_bytes_max: usize::MAX,
        alias_max: 0,
        authentication_method: false,
        user: packet.user_name().map(check_text).transpose()?,
        password: packet.password().map(|bytes| Password(bytes.to_vec())),
        will,
    })
}

fn parse_v5(body: &[u8], limits: TopicLimits) -> Result<Connect, Bad> {
    let (packet, used) = v5_0::Connect::parse(body).map_err(bad_connect)?;
    if used != body.len() {
        return Err(Bad::malformed("bytes after CONNECT"));
    }
    let will = match (packet.will_topic(), packet.will_payload()) {
        (Some(topic), Some(payload)) => {
            let (delay_secs, properties) = will_properties(packet.will_props())?;
            Some(Box::new(Will {
                topic: will_topic(topic, limits)?,
                payload: Bytes::copy_from_slice(payload),
                qos: qos(packet.will_qos()),
                retain: packet.will_retain(),
                delay_secs,
                properties,
            }))
        }
        _ => None,
    };
    let mut connect = Connect {
        version: Version::V5,
        client_id: check_text(packet.client_id())?,
        clean_start: packet.clean_start(),
        keep_alive: packet.keep_alive(),
        session_expiry: 0,
        receive_max: u16::MAX,
        packet_bytes_max: usize::MAX,
        alias_max: 0,
        authentication_method: false,
        user: packet.user_name().map(check_text).transpose()?,
        password: packet.password().map(|bytes| Password(bytes.to_vec())),
        will,
    };
    // The crate has refused what stands twice, and the values that MQTT forbids.
    for property in packet.props() {
        match property {
            Property::SessionExpiryInterval(secs) => connect.session_expiry = secs.val(),
            Property::ReceiveMaximum(count) => connect.receive_max = count.val(),
            Property::MaximumPacketSize(bytes) => connect.packet_bytes_max = bytes.val() as usize,
            Property::TopicAliasMaximum(count) => connect.alias_max = count.val(),
            Property::AuthenticationMethod(_) | Property::AuthenticationData(_) => {
                connect.authentication_method = true;
            }
            Property::UserProperty(pair) => {
                check_text(pair.key())?;
                check_text(pair.val())?;
            }
            // Request Response Information may be ignored (3.1.2.11.6); the only reason strings
            // sent are those of CONNACK and DISCONNECT, which Request Problem Information allows.
            _ => {}
        }
    }
    Ok(connect)
}

type WillProperties = (u32, Option<Box<PublishProperties>>);

fn will_properties(properties: &[Property]) -> Result<WillProperties, Bad> {
    let mut delay_secs = None;
    let mut passed_on = PublishProperties::default();
    for property in properties {
        match property {
            Property::WillDelayInterval(secs) => once(&mut delay_secs, secs.val())?,
            other => read_publish_property(&mut passed_on, other)?,
        }
    }
    let passed_on = (passed_on != PublishProperties::default()).then(|| Box::new(passed_on));
    Ok((delay_secs.unwrap_or(0), passed_on))
}

fn will_topic(text: &str, limits: TopicLimits) -> Result<TopicName, Bad> {
    check_topic(text, limits).map_err(|_| Bad {
        reason: Reason::BadTopic,
        code: code::BAD_TOPIC,
        what: "the will's topic is refused",
    })
}

/// Checks a topic that a client publishes to: MQTT's rules, our limits, and no branch of our own.
pub(crate) fn check_topic(text: &str, limits: TopicLimits) -> Result<TopicName, RefusedTopic> {
    let topic = TopicName::parse(text, limits).map_err(RefusedTopic::Bad)?;
    if matches!(topic.levels().next(), Some("$SYS" | "$share" | "$watchbell")) {
        return Err(RefusedTopic::Reserved);
    }
    Ok(topic)
}

/// Why a topic is not published to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RefusedTopic {
    #[error("{0}")]
    Bad(BadTopic),
    #[error("$SYS, $share and $watchbell are the broker's own")]
    Reserved,
}

fn qos(qos: CoreQos) -> Qos {
    match qos {
        CoreQos::AtMostOnce => Qos::AtMostOnce,
        CoreQos::AtLeastOnce => Qos::AtLeastOnce,
        CoreQos::ExactlyOnce => Qos::ExactlyOnce,
    }
}

/// A client id that can stand in a topic level, a log line and a pattern: at most `chars_max`
/// characters, no control characters, none of `/ + # $`.
pub(crate) fn check_client_id(id: &str, chars_max: usize) -> Result<(), &'static str> {
    if id.is_empty() {
        Err("the client id is empty")
    } else if id.chars().count() > chars_max {
        Err("the client id is too long")
    } else if id.chars().any(char::is_control) {
        Err("the client id holds a control character")
    } else if id.contains(['/', '+', '#', '$']) {
        Err("the client id holds one of / + # $")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits() -> TopicLimits {
        TopicLimits::default()
    }

    /// A CONNECT from what follows the protocol name.
    fn packet(rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x10, u8::try_from(6 + rest.len()).expect("short")];
        bytes.extend(b"\x00\x04MQTT");
        bytes.extend(rest);
        bytes
    }

    fn check(rest: &[u8], expected: &str) {
        let found = match parse(&packet(rest), limits()) {
            Ok(connect) => format!("{connect:?}"),
            Err(refusal) => format!("{} {:x?}", refusal.reason, refusal.connack),
        };
        assert!(found.contains(expected), "{rest:02x?}: {found}, not {expected}");
    }

    #[test]
    fn both_versions_become_one_connect() {
        check(
            b"\x04\x02\x00\x3c\x00\x01a",
            "client_id: \"a\", clean_start: true, keep_alive: 60, session_expiry: 0",
        );
        check(b"\x04\x00\x00\x3c\x00\x01a", "session_expiry: 4294967295");
        check(
            b"\x04\xc2\x00\x00\x00\x01a\x00\x01u\x00\x01p",
            "user: Some(\"u\"), password: Some(***)",
        );
        check(b"\x05\x02\x00\x3c\x00\x00\x01a", "session_expiry: 0, receive_max: 65535");
        check(b"\x05\x02\x00\x3c\x05\x11\x00\x00\x00\x09\x00\x01a", "session_expiry: 9");
        check(
            b"\x05\x2e\x00\x00\x00\x00\x01a\x05\x18\x00\x00\x00\x07\x00\x01t\x00\x01p",
            "topic: \"t\", payload: b\"p\", qos: AtLeastOnce, retain: true, delay_secs: 7",
        );
    }

    #[test]
    fn a_topic_alias_maximum_of_zero_is_legal() {
        // mqtt-protocol-core 0.7.9 panics on it in its state machine, before authentication.
        check(b"\x05\x02\x00\x3c\x03\x22\x00\x00\x00\x01a", "alias_max: 0");
    }

    #[test]
    fn what_breaks_the_rules_is_refused_in_the_right_form() {
        for (rest, expected) in [
            (&b"\x03\x02\x00\x00\x00\x01a"[..], "unsupported_version Some((V311, 84))"),
            (b"\x06\x02\x00\x00\x00\x00\x01a", "unsupported_version Some((V5, 84))"),
            (b"\x04\x03\x00\x00\x00\x01a", "malformed_packet None"),
            (b"\x05\x03\x00\x00\x00\x00\x01a", "malformed_packet Some((V5, 81))"),
            (b"\x04\x0a\x00\x00\x00\x01a", "malformed_packet"),
            (b"\x04\x1e\x00\x00\x00\x01a\x00\x01t\x00\x00", "malformed_packet"),
            (b"\x04\x42\x00\x00\x00\x01a\x00\x01p", "malformed_packet"),
            (b"\x05\x42\x00\x00\x00\x00\x01a\x00\x01p", "bad_credentials Some((V5, 86))"),
            (b"\x04\x02\x00\x00\x00\x01a\x00", "malformed_packet"),
            (b"\x04\x02\x00\x00\x00\x05a", "malformed_packet"),
            (b"\x04\x02\x00\x00\x00\x01\x00", "malformed_packet"),
            (b"\x04\x02\x00\x00\x00\x01\xff", "malformed_packet"),
            (b"\x04\x06\x00\x00\x00\x01a\x00\x01+\x00\x00", "bad_topic"),
            (b"\x04\x06\x00\x00\x00\x01a\x00\x04$SYS\x00\x00", "bad_topic"),
            (b"\x05\x02\x00\x3c\x03\x21\x00\x00\x00\x01a", "protocol_error Some((V5, 82))"),
            (b"\x05\x02\x00\x3c\x05\x27\x00\x00\x00\x00\x00\x01a", "protocol_error"),
            (b"\x05\x02\x00\x3c\x06\x22\x00\x01\x22\x00\x01\x00\x01a", "protocol_error"),
            (b"\x05\x02\x00\x3c\x03\x23\x00\x01\x00\x01a", "protocol_error"),
        ] {
            check(rest, expected);
        }
        let other = parse(b"\x10\x0a\x00\x06MQIsdp\x03\x02", limits()).expect_err("3.1");
        assert_eq!(other.connack, Some((Version::V311, code::UNSUPPORTED_VERSION)));
        let other = parse(b"\x10\x08\x00\x02hj\x04\x02\x00\x00", limits()).expect_err("no MQTT");
        assert_eq!((other.reason, other.connack), (Reason::MalformedPacket, None));
    }

    #[tokio::test]
    async fn a_connect_may_come_byte_by_byte_and_with_more_behind_it() {
        let mut bytes = packet(b"\x04\x02\x00\x3c\x00\x01a");
        let whole = bytes.len();
        bytes.extend(b"\xc0\x00");
        let mut stream = tokio_test_stream(&bytes);
        let mut input = Vec::new();
        let len = read(&mut stream, &mut input, 8192).await.expect("a CONNECT");
        assert_eq!(len, whole);
        let mut input = Vec::new();
        let garbage = read(&mut &b"GET / HTTP/1.1"[..], &mut input, 8192).await;
        assert_eq!(garbage.expect_err("no CONNECT").reason, Reason::MalformedPacket);
        let mut input = Vec::new();
        let long = read(&mut &b"\x10\xff\xff\x7f"[..], &mut input, 8192).await;
        assert_eq!(long.expect_err("too long").reason, Reason::PacketTooLarge);
        let mut input = Vec::new();
        let half = read(&mut &bytes[..5], &mut input, 8192).await;
        assert_eq!(half.expect_err("half").reason, Reason::ConnectionLost);
    }

    /// Gives one byte a read.
    fn tokio_test_stream(bytes: &[u8]) -> impl AsyncRead + Unpin {
        struct Slow(std::collections::VecDeque<u8>);
        impl AsyncRead for Slow {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
                buffer: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                buffer.put_slice(self.0.pop_front().as_slice());
                std::task::Poll::Ready(Ok(()))
            }
        }
        Slow(bytes.iter().copied().collect())
    }

    #[test]
    fn client_ids() {
        for (id, expected) in [
            ("pump-1", true),
            ("clean retained", true),
            ("pümp", true),
            ("", false),
            ("a/b", false),
            ("a+", false),
            ("$a", false),
            ("a\u{7}", false),
        ] {
            assert_eq!(check_client_id(id, 64).is_ok(), expected, "{id}");
        }
        assert!(check_client_id(&"x".repeat(64), 64).is_ok());
        assert!(check_client_id(&"x".repeat(65), 64).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(rest in prop::collection::vec(any::<u8>(), 0..80), level in 4_u8..6) {
            let mut bytes = vec![level];
            bytes.extend(rest);
            parse(&packet(&bytes), limits()).ok();
        }
    }
}
