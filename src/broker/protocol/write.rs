//! Packets to bytes.

use mqtt_protocol_core::mqtt::packet::{
    AssignedClientIdentifier, GenericPacketTrait, MaximumPacketSize, Properties, Property,
    ReasonString, ReceiveMaximum, ServerKeepAlive, SessionExpiryInterval, TopicAliasMaximum,
    v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, ConnectReturnCode, DisconnectReasonCode, MqttError, SubackReasonCode,
    SubackReturnCode, UnsubackReasonCode,
};

use super::{Ack, Version, code};
use crate::model::{PublishProperties, Qos};

/// What the broker says to a successful CONNECT. The properties go to MQTT 5 clients only.
#[derive(Debug, Default)]
pub(crate) struct Connack {
    pub(crate) session_present: bool,
    pub(crate) receive_max: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) alias_max: u16,
    /// Where it differs from what the client asked for, seconds.
    pub(crate) session_expiry: Option<u32>,
    pub(crate) assigned_client_id: Option<String>,
    /// Where it differs from what the client asked for, seconds.
    pub(crate) keep_alive: Option<u16>,
}

/// Writes a CONNACK that accepts.
pub(crate) fn write_connack(out: &mut Vec<u8>, version: Version, connack: &Connack) {
    match version {
        Version::V311 => {
            out.extend_from_slice(&[0x20, 2, u8::from(connack.session_present), 0]);
        }
        Version::V5 => {
            let mut properties = Properties::new();
            // A value that the crate refuses (a maximum of 0) is one that Config does not allow.
            let mut add = |property: Result<Property, MqttError>| {
                properties.extend(property);
            };
            if let Some(secs) = connack.session_expiry {
                add(SessionExpiryInterval::new(secs).map(Property::from));
            }
            add(ReceiveMaximum::new(connack.receive_max).map(Property::from));
            add(MaximumPacketSize::new(connack.packet_bytes_max).map(Property::from));
            add(TopicAliasMaximum::new(connack.alias_max).map(Property::from));
            if let Some(client_id) = &connack.assigned_client_id {
                add(AssignedClientIdentifier::new(client_id.as_str()).map(Property::from));
            }
            if let Some(secs) = connack.keep_alive {
                add(ServerKeepAlive::new(secs).map(Property::from));
            }
            let built = v5_0::Connack::builder()
                .session_present(connack.session_present)
                .reason_code(ConnectReasonCode::Success)
                .props(properties)
                .build();
            push(out, built);
        }
    }
}

/// Writes a CONNACK that refuses: `code` is the one of MQTT 5; 3.1.1 gets its nearest. `bytes_max`
/// is the client's Maximum Packet Size.
pub(crate) fn write_refusal(
    out: &mut Vec<u8>,
    version: Version,
    code: u8,
    why: &str,
    bytes_max: usize,
) {
    match version {
        Version::V311 => {
            let return_code = match code {
                code::UNSUPPORTED_VERSION => ConnectReturnCode::UnacceptableProtocolVersion,
                code::BAD_CLIENT_ID => ConnectReturnCode::IdentifierRejected,
                code::BAD_CREDENTIALS => ConnectReturnCode::BadUserNameOrPassword,
                code::NOT_AUTHORIZED | code::BANNED => ConnectReturnCode::NotAuthorized,
                _ => ConnectReturnCode::ServerUnavailable,
            };
            let built =
                v3_1_1::Connack::builder().session_present(false).return_code(return_code).build();
            push(out, built);
        }
        Version::V5 => {
            let reason_code =
                ConnectReasonCode::try_from(code).unwrap_or(ConnectReasonCode::UnspecifiedError);
            push_with_reason(out, why, bytes_max, |properties| {
                v5_0::Connack::builder()
                    .session_present(false)
                    .reason_code(reason_code)
                    .props(properties)
                    .build()
            });
        }
    }
}

/// Writes a DISCONNECT (MQTT 5 only). `bytes_max` is the client's Maximum Packet Size.
pub(crate) fn write_disconnect(out: &mut Vec<u8>, code: u8, why: &str, bytes_max: usize) {
    let reason_code =
        DisconnectReasonCode::try_from(code).unwrap_or(DisconnectReasonCode::UnspecifiedError);
    push_with_reason(out, why, bytes_max, |properties| {
        v5_0::Disconnect::builder().reason_code(reason_code).props(properties).build()
    });
}

/// Writes the packet with a reason string; without it where it would be too large with it
/// (MQTT5-3.2.2-19, MQTT5-3.14.2-3), and not at all where it is too large even so.
fn push_with_reason<P: GenericPacketTrait>(
    out: &mut Vec<u8>,
    why: &str,
    bytes_max: usize,
    build: impl Fn(Properties) -> Result<P, MqttError>,
) {
    let before = out.len();
    for why in [why, ""] {
        push(out, build(reason_string(why)));
        if out.len() - before <= bytes_max {
            return;
        }
        out.truncate(before);
    }
}

fn reason_string(why: &str) -> Properties {
    let mut properties = Properties::new();
    if !why.is_empty() {
        properties.extend(ReasonString::new(why).map(Property::from));
    }
    properties
}

/// Writes a SUBACK: one MQTT 5 code for each filter; 3.1.1 knows one failure only.
pub(crate) fn write_suback(out: &mut Vec<u8>, version: Version, id: u16, codes: &[u8]) {
    match version {
        Version::V311 => {
            let codes = codes
                .iter()
                .map(|code| SubackReturnCode::try_from(*code).unwrap_or(SubackReturnCode::Failure));
            let built =
                v3_1_1::Suback::builder().packet_id(id).return_codes(codes.collect()).build();
            push(out, built);
        }
        Version::V5 => {
            let codes = codes.iter().map(|code| {
                SubackReasonCode::try_from(*code).unwrap_or(SubackReasonCode::UnspecifiedError)
            });
            let built = v5_0::Suback::builder().packet_id(id).reason_codes(codes.collect()).build();
            push(out, built);
        }
    }
}

/// Writes an UNSUBACK: one MQTT 5 code for each filter; 3.1.1 has none.
pub(crate) fn write_unsuback(out: &mut Vec<u8>, version: Version, id: u16, codes: &[u8]) {
    match version {
        Version::V311 => push(out, v3_1_1::Unsuback::builder().packet_id(id).build()),
        Version::V5 => {
            let codes = codes.iter().map(|code| {
                UnsubackReasonCode::try_from(*code).unwrap_or(UnsubackReasonCode::UnspecifiedError)
            });
            let built =
                v5_0::Unsuback::builder().packet_id(id).reason_codes(codes.collect()).build();
            push(out, built);
        }
    }
}

/// Writes a PINGRESP.
pub(crate) fn write_pong(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// Writes an acknowledgement; 3.1.1 has no codes.
pub(crate) fn write_ack(out: &mut Vec<u8>, version: Version, ack: Ack, id: u16, code: u8) {
    let header = match ack {
        Ack::Puback => 0x40,
        Ack::Pubrec => 0x50,
        Ack::Pubrel => 0x62,
        Ack::Pubcomp => 0x70,
    };
    let [high, low] = id.to_be_bytes();
    if version == Version::V311 || code == code::SUCCESS {
        out.extend_from_slice(&[header, 2, high, low]);
    } else {
        out.extend_from_slice(&[header, 3, high, low, code]);
    }
}

/// A packet of the crate's, if it could be built: it could, because what goes into it is ours.
fn push<P: GenericPacketTrait>(out: &mut Vec<u8>, built: Result<P, MqttError>) {
    match built {
        Ok(packet) => out.extend_from_slice(&packet.to_continuous_buffer()),
        Err(error) => debug_assert!(false, "a packet of ours cannot be built: {error}"),
    }
}

/// A PUBLISH to a subscriber.
#[derive(Debug)]
pub(crate) struct PublishOut<'a> {
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    pub(crate) qos: Qos,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    /// Not written for QoS 0.
    pub(crate) id: u16,
    /// Topic Alias; with an empty topic where the client knows it already.
    pub(crate) alias: Option<u16>,
    pub(crate) properties: Option<&'a PublishProperties>,
    /// Message Expiry Interval that is left, seconds.
    pub(crate) expires_after_secs: Option<u32>,
    /// Subscription Identifiers.
    pub(crate) identifiers: &'a [u32],
}

/// The packet is larger than the client takes; nothing was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// Writes a PUBLISH, unless it is over `bytes_max` (the client's Maximum Packet Size).
pub(crate) fn write_publish(
    out: &mut Vec<u8>,
    version: Version,
    packet: &PublishOut<'_>,
    bytes_max: usize,
) -> Result<(), TooLarge> {
    let mut properties = Vec::new();
    if version == Version::V5 {
        write_properties(&mut properties, packet);
    }
    let properties_len = match version {
        Version::V311 => 0,
        Version::V5 => varint_len(properties.len()) + properties.len(),
    };
    let id_len = if packet.qos == Qos::AtMostOnce { 0 } else { 2 };
    let remaining = 2 + packet.topic.len() + id_len + properties_len + packet.payload.len();
    if 1 + varint_len(remaining) + remaining > bytes_max {
        return Err(TooLarge);
    }
    let flags = u8::from(packet.dup) << 3 | (packet.qos as u8) << 1 | u8::from(packet.retain);
    out.push(0x30 | flags);
    put_varint(out, remaining);
    put_bytes(out, packet.topic.as_bytes());
    if packet.qos != Qos::AtMostOnce {
        out.extend_from_slice(&packet.id.to_be_bytes());
    }
    if version == Version::V5 {
        put_varint(out, properties.len());
        out.extend_from_slice(&properties);
    }
    out.extend_from_slice(packet.payload);
    Ok(())
}

/// The identifiers are those of MQTT 5, section 2.2.2.2.
fn write_properties(out: &mut Vec<u8>, packet: &PublishOut<'_>) {
    if let Some(properties) = packet.properties {
        if let Some(utf8) = properties.utf8 {
            out.extend_from_slice(&[0x01, u8::from(utf8)]);
        }
        if let Some(text) = &properties.content_type {
            out.push(0x03);
            put_bytes(out, text.as_bytes());
        }
        if let Some(text) = &properties.response_topic {
            out.push(0x08);
            put_bytes(out, text.as_bytes());
        }
        if let Some(data) = &properties.correlation_data {
            out.push(0x09);
            put_bytes(out, data);
        }
        for (key, value) in &properties.user {
            out.push(0x26);
            put_bytes(out, key.as_bytes());
            put_bytes(out, value.as_bytes());
        }
    }
    if let Some(secs) = packet.expires_after_secs {
        out.push(0x02);
        out.extend_from_slice(&secs.to_be_bytes());
    }
    for identifier in packet.identifiers {
        out.push(0x0b);
        put_varint(out, *identifier as usize);
    }
    if let Some(alias) = packet.alias {
        out.push(0x23);
        out.extend_from_slice(&alias.to_be_bytes());
    }
}

/// Two bytes of length, then the bytes. All that comes here came from such a field.
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes.get(..usize::from(length)).unwrap_or_default());
}

fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}
