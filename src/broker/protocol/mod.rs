//! MQTT 3.1.1 and 5.0 packets to and from bytes: the one module that knows `mqtt-protocol-core`.
//!
//! Bytes become our own small [`Packet`], the same for both versions, and our own answers become
//! bytes. The crate's packet layer reads strings, binaries, properties and subscription options,
//! and builds CONNACK, SUBACK, UNSUBACK and DISCONNECT; its `Connection` state machine is not used
//! (three faults, BROKER.md), because acknowledgement, windows and resumption are ours anyway.
//! PUBLISH and the short acknowledgements are read and written here in place, so that a payload is
//! copied only for those who want it.
//!
//! What the crate lets through is checked here: reserved flags, packet id 0, DUP on QoS 0, U+0000
//! in strings, trailing bytes, doubled properties, properties in the wrong packet, wildcards in a
//! response topic, subscription options of 5.0 in a 3.1.1 packet.
//!
//! Invariant: nothing here panics on bytes from the wire; proptests hold it to that.

pub(crate) mod connect;
mod read;
mod write;

use mqtt_protocol_core::mqtt::packet::{DecodeResult, VariableByteInteger};
use mqtt_protocol_core::mqtt::result_code::MqttError;

pub(crate) use self::read::parse;
pub(crate) use self::write::{
    Connack, PublishOut, TooLarge, write_ack, write_connack, write_disconnect, write_pong,
    write_publish, write_refusal, write_suback, write_unsuback,
};
use crate::model::{PublishProperties, Qos, Reason};

/// MQTT version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// 3.1.1.
    V311,
    /// 5.0.
    V5,
}

/// Reason codes of MQTT 5, section 2.4, as far as this broker sends them.
pub(crate) mod code {
    pub(crate) const SUCCESS: u8 = 0x00;
    pub(crate) const NO_SUBSCRIPTION: u8 = 0x11;
    pub(crate) const UNSPECIFIED: u8 = 0x80;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const UNSUPPORTED_VERSION: u8 = 0x84;
    pub(crate) const BAD_CLIENT_ID: u8 = 0x85;
    pub(crate) const BAD_CREDENTIALS: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const UNAVAILABLE: u8 = 0x88;
    pub(crate) const BUSY: u8 = 0x89;
    pub(crate) const BANNED: u8 = 0x8a;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8b;
    pub(crate) const BAD_AUTHENTICATION_METHOD: u8 = 0x8c;
    pub(crate) const KEEP_ALIVE: u8 = 0x8d;
    pub(crate) const TAKEN_OVER: u8 = 0x8e;
    pub(crate) const BAD_FILTER: u8 = 0x8f;
    pub(crate) const BAD_TOPIC: u8 = 0x90;
    pub(crate) const UNKNOWN_PACKET_ID: u8 = 0x92;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x93;
    pub(crate) const TOPIC_ALIAS: u8 = 0x94;
    pub(crate) const TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA: u8 = 0x97;
    pub(crate) const ADMINISTRATIVE_ACTION: u8 = 0x98;
    pub(crate) const CONNECTION_RATE: u8 = 0x9f;
    pub(crate) const CONNECT_TIME: u8 = 0xa0;
}

/// Why bytes are refused. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    /// For counting and the log.
    pub(crate) reason: Reason,
    /// For the DISCONNECT of MQTT 5.
    pub(crate) code: u8,
    /// What is wrong, for the log.
    pub(crate) what: &'static str,
}

impl Bad {
    pub(crate) const fn malformed(what: &'static str) -> Self {
        Self { reason: Reason::MalformedPacket, code: code::MALFORMED, what }
    }

    pub(crate) const fn protocol(what: &'static str) -> Self {
        Self { reason: Reason::ProtocolError, code: code::PROTOCOL_ERROR, what }
    }

    fn from_core(error: MqttError, what: &'static str) -> Self {
        match error {
            MqttError::ProtocolError => Self::protocol(what),
            _ => Self::malformed(what),
        }
    }
}

/// The type of a PUBLISH: the upper half of its first byte.
pub(crate) const PUBLISH: u8 = 3;

/// One whole packet within a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame<'a> {
    /// The first byte: type and flags.
    pub(crate) header: u8,
    /// Variable header and payload.
    pub(crate) body: &'a [u8],
    /// Bytes that the packet takes in all.
    pub(crate) len: usize,
}

/// The first packet of `buffer`; `None` until all of it is there. A packet over `bytes_max` is
/// refused as soon as its header is there.
pub(crate) fn frame(buffer: &[u8], bytes_max: usize) -> Result<Option<Frame<'_>>, Bad> {
    let Some((&header, rest)) = buffer.split_first() else {
        return Ok(None);
    };
    let (length, used) = match rest {
        // By far the commonest: under 128 bytes.
        [short, ..] if *short < 0x80 => (usize::from(*short), 1),
        _ => match VariableByteInteger::decode_stream(rest) {
            DecodeResult::Ok(length, used) => {
                // MQTT5-1.5.5-1: the shortest form.
                if used > 1 && rest.get(used - 1) == Some(&0) {
                    return Err(Bad::malformed("remaining length is not in its shortest form"));
                }
                (length.to_u32() as usize, used)
            }
            DecodeResult::Incomplete => return Ok(None),
            DecodeResult::Err(_) => {
                return Err(Bad::malformed("remaining length has more than four bytes"));
            }
        },
    };
    let len = 1 + used + length;
    if len > bytes_max {
        return Err(Bad {
            reason: Reason::PacketTooLarge,
            code: code::TOO_LARGE,
            what: "packet is larger than broker.packet_bytes_max",
        });
    }
    Ok(buffer.get(1 + used..len).map(|body| Frame { header, body, len }))
}

/// Whole packets, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) packets: u64,
    /// Of them, PUBLISH.
    pub(crate) publishes: u64,
    /// Bytes of the PUBLISH packets.
    pub(crate) publish_bytes: u64,
}

/// Counts the packets in `bytes` by their headers.
pub(crate) fn tally(mut bytes: &[u8]) -> Tally {
    let mut tally = Tally::default();
    while let Ok(Some(packet)) = frame(bytes, usize::MAX) {
        tally.packets += 1;
        if packet.header >> 4 == PUBLISH {
            tally.publishes += 1;
            tally.publish_bytes += packet.len as u64;
        }
        bytes = bytes.get(packet.len..).unwrap_or_default();
    }
    tally
}

/// What a client may say after its CONNECT.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    Connect,
    Publish(PublishIn<'a>),
    Ack(Ack, u16, u8),
    Subscribe(Box<Subscribe>),
    Unsubscribe(Box<Unsubscribe>),
    Ping,
    Disconnect(Disconnect),
    Auth,
}

/// The four acknowledgements of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ack {
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
}

/// A PUBLISH as it came, borrowed from the read buffer. The topic is not checked yet.
#[derive(Debug)]
pub(crate) struct PublishIn<'a> {
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// 0 for QoS 0, never 0 otherwise.
    pub(crate) id: u16,
    pub(crate) topic: &'a [u8],
    pub(crate) alias: Option<u16>,
    pub(crate) properties: Option<Box<PublishProperties>>,
    pub(crate) payload: &'a [u8],
}

/// A SUBSCRIBE. The filters are not checked yet.
#[derive(Debug)]
pub(crate) struct Subscribe {
    pub(crate) id: u16,
    /// Subscription Identifier, for all of its filters.
    pub(crate) identifier: Option<u32>,
    pub(crate) filters: Vec<Wanted>,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) filter: String,
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) retained: Retained,
}

/// Retain Handling: which retained messages a subscription starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retained {
    Always,
    IfNew,
    Never,
}

/// An UNSUBSCRIBE.
#[derive(Debug)]
pub(crate) struct Unsubscribe {
    pub(crate) id: u16,
    pub(crate) filters: Vec<String>,
}

/// A client's DISCONNECT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disconnect {
    pub(crate) code: u8,
    /// Session Expiry Interval, seconds.
    pub(crate) session_expiry: Option<u32>,
}

#[cfg(test)]
mod tests;
