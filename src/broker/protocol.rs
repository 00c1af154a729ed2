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

use mqtt_protocol_core::mqtt::packet::{
    AssignedClientIdentifier, MaximumPacketSize, ReceiveMaximum, ServerKeepAlive,
    SessionExpiryInterval, TopicAliasMaximum,
};
use mqtt_protocol_core::mqtt::packet::{
    DecodeResult, GenericPacketTrait, MqttString, Properties, PropertiesParse, Property,
    Qos as CoreQos, ReasonString, RetainHandling, SubEntry, VariableByteInteger, v3_1_1, v5_0,
};
use mqtt_protocol_core::mqtt::result_code::{
    ConnectReasonCode, ConnectReturnCode, DisconnectReasonCode, MqttError, SubackReasonCode,
    SubackReturnCode, UnsubackReasonCode,
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
    pub(crate) const CONNECTION_RATE: u8 = 0x9f;
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
            what: "packet is over the limit",
        });
    }
    Ok(buffer.get(1 + used..len).map(|body| Frame { header, body, len }))
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

/// Reads one packet.
pub(crate) fn parse(version: Version, frame: Frame<'_>) -> Result<Packet<'_>, Bad> {
    let (kind, flags, body) = (frame.header >> 4, frame.header & 0x0f, frame.body);
    // MQTT-2.2.2-2: reserved flags; PUBLISH has its own.
    let flags_expected = match kind {
        3 => flags,
        6 | 8 | 10 => 0b0010,
        _ => 0,
    };
    if flags != flags_expected {
        return Err(Bad::malformed("reserved flags of the fixed header are set"));
    }
    match kind {
        1 => Ok(Packet::Connect),
        3 => parse_publish(version, flags, body).map(Packet::Publish),
        4 => parse_ack(version, Ack::Puback, body),
        5 => parse_ack(version, Ack::Pubrec, body),
        6 => parse_ack(version, Ack::Pubrel, body),
        7 => parse_ack(version, Ack::Pubcomp, body),
        8 => parse_subscribe(version, body).map(|packet| Packet::Subscribe(Box::new(packet))),
        10 => parse_unsubscribe(version, body).map(|packet| Packet::Unsubscribe(Box::new(packet))),
        12 if body.is_empty() => Ok(Packet::Ping),
        12 => Err(Bad::malformed("PINGREQ with a body")),
        14 => parse_disconnect(version, body).map(Packet::Disconnect),
        15 if version == Version::V5 => Ok(Packet::Auth),
        _ => Err(Bad::protocol("a packet that only a server sends, or an unknown one")),
    }
}

/// Takes two bytes off the front.
fn take_u16(body: &[u8]) -> Option<(u16, &[u8])> {
    let (bytes, rest) = body.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*bytes), rest))
}

fn take_id(body: &[u8]) -> Result<(u16, &[u8]), Bad> {
    match take_u16(body) {
        Some((0, _)) => Err(Bad::protocol("packet id 0")),
        Some(found) => Ok(found),
        None => Err(Bad::malformed("no packet id")),
    }
}

fn take_properties<'a>(body: &'a [u8], what: &'static str) -> Result<(Properties, &'a [u8]), Bad> {
    // By far the commonest: none.
    if let [0, rest @ ..] = body {
        return Ok((Properties::new(), rest));
    }
    let (properties, used) =
        Properties::parse(body).map_err(|error| Bad::from_core(error, what))?;
    Ok((properties, body.get(used..).unwrap_or_default()))
}

/// MQTT-1.5.4-2: U+0000 makes a packet malformed. (The crate checks that it is UTF-8.)
pub(crate) fn check_text(text: &str) -> Result<String, Bad> {
    if text.contains('\0') {
        return Err(Bad::malformed("U+0000 in a string"));
    }
    Ok(text.to_owned())
}

/// Sets a property that may stand only once.
pub(crate) fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Bad> {
    if place.replace(value).is_some() {
        return Err(Bad::protocol("a property stands twice"));
    }
    Ok(())
}

fn parse_publish(version: Version, flags: u8, body: &[u8]) -> Result<PublishIn<'_>, Bad> {
    let qos = match (flags >> 1) & 0b11 {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        2 => Qos::ExactlyOnce,
        _ => return Err(Bad::malformed("QoS 3")),
    };
    if qos == Qos::AtMostOnce && flags & 0b1000 != 0 {
        return Err(Bad::malformed("DUP with QoS 0"));
    }
    let (length, rest) = take_u16(body).ok_or(Bad::malformed("PUBLISH without a topic"))?;
    let (topic, rest) = rest
        .split_at_checked(usize::from(length))
        .ok_or(Bad::malformed("topic is longer than the packet"))?;
    let (id, rest) = match qos {
        Qos::AtMostOnce => (0, rest),
        Qos::AtLeastOnce | Qos::ExactlyOnce => take_id(rest)?,
    };
    let mut packet = PublishIn {
        qos,
        retain: flags & 1 != 0,
        id,
        topic,
        alias: None,
        properties: None,
        payload: rest,
    };
    if version == Version::V5 {
        let (properties, payload) = take_properties(rest, "bad property in PUBLISH")?;
        packet.payload = payload;
        if !properties.is_empty() {
            let mut passed_on = PublishProperties::default();
            for property in &properties {
                match property {
                    Property::TopicAlias(alias) => once(&mut packet.alias, alias.val())?,
                    other => read_publish_property(&mut passed_on, other)?,
                }
            }
            if passed_on != PublishProperties::default() {
                packet.properties = Some(Box::new(passed_on));
            }
        }
    }
    Ok(packet)
}

/// One property of a PUBLISH or a will that subscribers get (MQTT 5, 3.3.2.3 and 3.1.3.2).
pub(crate) fn read_publish_property(
    into: &mut PublishProperties,
    property: &Property,
) -> Result<(), Bad> {
    match property {
        Property::PayloadFormatIndicator(format) => once(&mut into.utf8, format.val() == 1),
        Property::MessageExpiryInterval(secs) => once(&mut into.expires_after_secs, secs.val()),
        Property::ContentType(text) => once(&mut into.content_type, check_text(text.val())?),
        Property::ResponseTopic(text) => {
            // MQTT5-3.3.2-14.
            if text.val().is_empty() || text.val().contains(['+', '#']) {
                return Err(Bad::protocol("a response topic that is no topic name"));
            }
            once(&mut into.response_topic, check_text(text.val())?)
        }
        Property::CorrelationData(data) => once(&mut into.correlation_data, data.val().to_vec()),
        Property::UserProperty(pair) => {
            into.user.push((check_text(pair.key())?, check_text(pair.val())?));
            Ok(())
        }
        _ => Err(Bad::protocol("a property that this packet cannot have")),
    }
}

fn parse_ack(version: Version, ack: Ack, body: &[u8]) -> Result<Packet<'_>, Bad> {
    let (id, rest) = take_id(body)?;
    if rest.is_empty() {
        return Ok(Packet::Ack(ack, id, code::SUCCESS));
    }
    if version == Version::V311 {
        return Err(Bad::malformed("an acknowledgement with more than a packet id"));
    }
    // The crate checks that the code belongs to the packet, and its properties.
    let parsed = match ack {
        Ack::Puback => v5_0::Puback::parse(body).map(|(_, used)| used),
        Ack::Pubrec => v5_0::Pubrec::parse(body).map(|(_, used)| used),
        Ack::Pubrel => v5_0::Pubrel::parse(body).map(|(_, used)| used),
        Ack::Pubcomp => v5_0::Pubcomp::parse(body).map(|(_, used)| used),
    };
    match parsed {
        Ok(used) if used == body.len() => {
            Ok(Packet::Ack(ack, id, rest.first().copied().unwrap_or_default()))
        }
        Ok(_) => Err(Bad::malformed("bytes after an acknowledgement")),
        Err(error) => Err(Bad::from_core(error, "bad acknowledgement")),
    }
}

fn parse_subscribe(version: Version, body: &[u8]) -> Result<Subscribe, Bad> {
    let (id, mut rest) = take_id(body)?;
    let mut identifier = None;
    if version == Version::V5 {
        let (properties, after) = take_properties(rest, "bad property in SUBSCRIBE")?;
        rest = after;
        for property in &properties {
            match property {
                // The crate refuses 0.
                Property::SubscriptionIdentifier(value) => once(&mut identifier, value.val())?,
                Property::UserProperty(_) => {}
                _ => return Err(Bad::protocol("a property that SUBSCRIBE cannot have")),
            }
        }
    }
    let mut filters = Vec::new();
    while !rest.is_empty() {
        let (entry, used) = SubEntry::parse(rest)
            .map_err(|error| Bad::from_core(error, "bad filter or options in SUBSCRIBE"))?;
        let options = entry.sub_opts();
        // MQTT-3.8.3-4: 3.1.1 knows only the two bits of QoS.
        if version == Version::V311 && options.to_buffer().iter().any(|bits| *bits > 2) {
            return Err(Bad::malformed("reserved bits in SUBSCRIBE"));
        }
        filters.push(Wanted {
            filter: check_text(entry.topic_filter())?,
            qos: match options.qos() {
                CoreQos::AtMostOnce => Qos::AtMostOnce,
                CoreQos::AtLeastOnce => Qos::AtLeastOnce,
                CoreQos::ExactlyOnce => Qos::ExactlyOnce,
            },
            no_local: options.nl(),
            retain_as_published: options.rap(),
            retained: match options.rh() {
                RetainHandling::SendRetained => Retained::Always,
                RetainHandling::SendRetainedIfNotExists => Retained::IfNew,
                RetainHandling::DoNotSendRetained => Retained::Never,
            },
        });
        rest = rest.get(used..).unwrap_or_default();
    }
    if filters.is_empty() {
        return Err(Bad::protocol("SUBSCRIBE without a filter"));
    }
    Ok(Subscribe { id, identifier, filters })
}

fn parse_unsubscribe(version: Version, body: &[u8]) -> Result<Unsubscribe, Bad> {
    let (id, mut rest) = take_id(body)?;
    if version == Version::V5 {
        let (properties, after) = take_properties(rest, "bad property in UNSUBSCRIBE")?;
        rest = after;
        if !properties.iter().all(|property| matches!(property, Property::UserProperty(_))) {
            return Err(Bad::protocol("a property that UNSUBSCRIBE cannot have"));
        }
    }
    let mut filters = Vec::new();
    while !rest.is_empty() {
        let (filter, used) = MqttString::decode(rest)
            .map_err(|error| Bad::from_core(error, "bad filter in UNSUBSCRIBE"))?;
        filters.push(check_text(filter.as_str())?);
        rest = rest.get(used..).unwrap_or_default();
    }
    if filters.is_empty() {
        return Err(Bad::protocol("UNSUBSCRIBE without a filter"));
    }
    Ok(Unsubscribe { id, filters })
}

fn parse_disconnect(version: Version, body: &[u8]) -> Result<Disconnect, Bad> {
    let mut packet = Disconnect { code: code::SUCCESS, session_expiry: None };
    if version == Version::V311 {
        if body.is_empty() {
            return Ok(packet);
        }
        return Err(Bad::malformed("DISCONNECT with a body"));
    }
    let (parsed, used) =
        v5_0::Disconnect::parse(body).map_err(|error| Bad::from_core(error, "bad DISCONNECT"))?;
    if used != body.len() {
        return Err(Bad::malformed("bytes after DISCONNECT"));
    }
    packet.code = parsed.reason_code().map_or(code::SUCCESS, |code| code as u8);
    for property in parsed.props().iter().flatten() {
        if let Property::SessionExpiryInterval(secs) = property {
            packet.session_expiry = Some(secs.val());
        }
    }
    Ok(packet)
}

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

/// Writes a CONNACK that accepts. False if the client's packet limit does not allow it.
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

/// Writes a CONNACK that refuses: `code` is the one of MQTT 5; 3.1.1 gets its nearest.
pub(crate) fn write_refusal(out: &mut Vec<u8>, version: Version, code: u8, why: &str) {
    match version {
        Version::V311 => {
            let return_code = match code {
                code::UNSUPPORTED_VERSION => ConnectReturnCode::UnacceptableProtocolVersion,
                code::BAD_CLIENT_ID => ConnectReturnCode::IdentifierRejected,
                code::BAD_CREDENTIALS => ConnectReturnCode::BadUserNameOrPassword,
                code::NOT_AUTHORIZED => ConnectReturnCode::NotAuthorized,
                _ => ConnectReturnCode::ServerUnavailable,
            };
            let built =
                v3_1_1::Connack::builder().session_present(false).return_code(return_code).build();
            push(out, built);
        }
        Version::V5 => {
            let reason_code =
                ConnectReasonCode::try_from(code).unwrap_or(ConnectReasonCode::UnspecifiedError);
            let built = v5_0::Connack::builder()
                .session_present(false)
                .reason_code(reason_code)
                .props(reason_string(why))
                .build();
            push(out, built);
        }
    }
}

/// Writes a DISCONNECT (MQTT 5 only).
pub(crate) fn write_disconnect(out: &mut Vec<u8>, code: u8, why: &str) {
    let reason_code =
        DisconnectReasonCode::try_from(code).unwrap_or(DisconnectReasonCode::UnspecifiedError);
    let built =
        v5_0::Disconnect::builder().reason_code(reason_code).props(reason_string(why)).build();
    push(out, built);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            (V5, b"\x30\x07\x00\x01a\x03\x23\x00\x00", "protocol_error"),
            (V5, b"\x30\x06\x00\x01a\x02\x0b\x01", "protocol_error"),
            (
                V5,
                b"\x30\x0e\x00\x01a\x0a\x02\x00\x00\x00\x01\x02\x00\x00\x00\x01",
                "protocol_error",
            ),
            (V5, b"\x30\x08\x00\x01a\x04\x08\x00\x01+", "protocol_error"),
            (V5, b"\x30\x08\x00\x01a\x04\x03\x00\x01\x00", "malformed_packet"),
            (V5, b"\x30\x06\x00\x01a\x09\x01\x01", "malformed_packet"),
            (V5, b"\x40\x03\x00\x01\x10", "Ack(Puback, 1, 16)"),
            (V5, b"\x40\x03\x00\x01\x01", "malformed_packet"),
            (V5, b"\x40\x05\x00\x01\x00\x00\x00", "malformed_packet"),
            (V5, b"\x82\x07\x00\x01\x00\x00\x01a\x2e", "Subscribe"),
            (V5, b"\x82\x07\x00\x01\x00\x00\x01a\x30", "malformed_packet"),
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
                written(&|out| write_refusal(out, V311, code::BAD_CREDENTIALS, "x")),
                &b"\x20\x02\x00\x04"[..],
            ),
            (
                written(&|out| write_refusal(out, V311, code::CONNECTION_RATE, "x")),
                b"\x20\x02\x00\x03",
            ),
            (
                written(&|out| write_refusal(out, V5, code::BAD_CLIENT_ID, "")),
                b"\x20\x03\x00\x85\x00",
            ),
            (written(&|out| write_disconnect(out, code::TAKEN_OVER, "")), b"\xe0\x02\x8e\x00"),
            (
                written(&|out| write_disconnect(out, code::QUOTA, "x")),
                b"\xe0\x06\x97\x04\x1f\x00\x01x",
            ),
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
}
