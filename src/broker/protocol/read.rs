//! Bytes to packets.

use mqtt_protocol_core::mqtt::packet::{
    DecodeResult, MqttString, Properties, Property, Qos as CoreQos, RetainHandling, SubEntry,
    VariableByteInteger, v5_0,
};

use super::{
    Ack, Bad, Disconnect, Frame, PUBLISH, Packet, PublishIn, Retained, Subscribe, Unsubscribe,
    Version, Wanted, code,
};
use crate::model::{PublishProperties, Qos};

/// Reads one packet.
pub(crate) fn parse(version: Version, frame: Frame<'_>) -> Result<Packet<'_>, Bad> {
    let (kind, flags, body) = (frame.header >> 4, frame.header & 0x0f, frame.body);
    // MQTT-2.2.2-2: reserved flags; PUBLISH has its own.
    let flags_expected = match kind {
        PUBLISH => flags,
        6 | 8 | 10 => 0b0010,
        _ => 0,
    };
    if flags != flags_expected {
        return Err(Bad::malformed("reserved flags of the fixed header are set"));
    }
    match kind {
        1 => Ok(Packet::Connect),
        PUBLISH => parse_publish(version, flags, body).map(Packet::Publish),
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
    let (mut inside, after) = match VariableByteInteger::decode_stream(body) {
        DecodeResult::Ok(length, used) => body
            .get(used..)
            .and_then(|rest| rest.split_at_checked(length.to_u32() as usize))
            .ok_or(Bad::malformed(what))?,
        DecodeResult::Incomplete | DecodeResult::Err(_) => return Err(Bad::malformed(what)),
    };
    check_length(body)?;
    let mut properties = Properties::new();
    while !inside.is_empty() {
        let (property, used) = Property::parse(inside).map_err(|error| match inside {
            // MQTT5-3.3.2-8: it has a code of its own.
            [0x23, 0, 0, ..] => Bad { code: code::TOPIC_ALIAS, ..Bad::protocol("topic alias 0") },
            _ => Bad::from_core(error, what),
        })?;
        properties.push(property);
        inside = inside.get(used..).unwrap_or_default();
    }
    Ok((properties, after))
}

/// MQTT5-1.5.5-1: the length that `body` begins with has its shortest form. (The crate checks all
/// else about it.)
pub(super) fn check_length(body: &[u8]) -> Result<(), Bad> {
    let last = body.iter().take(4).position(|byte| byte & 0x80 == 0);
    match last {
        Some(last) if last > 0 && body.get(last) == Some(&0) => {
            Err(Bad::malformed("a property length is not in its shortest form"))
        }
        _ => Ok(()),
    }
}

/// Checks the texts of properties that nobody looks at (MQTT5-1.5.4-2, -1.5.7-1).
pub(super) fn check_strings(properties: &[Property]) -> Result<(), Bad> {
    for property in properties {
        match property {
            Property::UserProperty(pair) => {
                check_text(pair.key())?;
                check_text(pair.val())?;
            }
            Property::ReasonString(text) => drop(check_text(text.val())?),
            Property::AuthenticationMethod(text) => drop(check_text(text.val())?),
            Property::ServerReference(text) => drop(check_text(text.val())?),
            _ => {}
        }
    }
    Ok(())
}

/// MQTT-1.5.4-2: U+0000 makes a packet malformed. (The crate checks that it is UTF-8.)
pub(super) fn check_text(text: &str) -> Result<String, Bad> {
    if text.contains('\0') {
        return Err(Bad::malformed("U+0000 in a string"));
    }
    Ok(text.to_owned())
}

/// Sets a property that may stand only once.
pub(super) fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Bad> {
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
pub(super) fn read_publish_property(
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
    if let [_, properties @ ..] = rest
        && parsed.is_ok()
        && !properties.is_empty()
    {
        check_strings(&take_properties(properties, "bad property in an acknowledgement")?.0)?;
    }
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
        check_strings(&properties)?;
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
        let (entry, used) = SubEntry::parse(rest).map_err(|error| match options_of(rest) {
            // The one value that MQTT 5 (3.8.3.1) calls a protocol error.
            Some(options) if version == Version::V5 && options & 0xf0 == 0x30 => {
                Bad::protocol("retain handling 3")
            }
            _ => Bad::from_core(error, "bad filter or options in SUBSCRIBE"),
        })?;
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

/// The options behind the filter that `entry` begins with.
fn options_of(entry: &[u8]) -> Option<u8> {
    let (length, rest) = take_u16(entry)?;
    rest.get(usize::from(length)).copied()
}

fn parse_unsubscribe(version: Version, body: &[u8]) -> Result<Unsubscribe, Bad> {
    let (id, mut rest) = take_id(body)?;
    if version == Version::V5 {
        let (properties, after) = take_properties(rest, "bad property in UNSUBSCRIBE")?;
        rest = after;
        if !properties.iter().all(|property| matches!(property, Property::UserProperty(_))) {
            return Err(Bad::protocol("a property that UNSUBSCRIBE cannot have"));
        }
        check_strings(&properties)?;
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
    if let [_, properties @ ..] = body
        && !properties.is_empty()
    {
        check_strings(&take_properties(properties, "bad property in DISCONNECT")?.0)?;
    }
    for property in parsed.props().iter().flatten() {
        if let Property::SessionExpiryInterval(secs) = property {
            packet.session_expiry = Some(secs.val());
        }
    }
    Ok(packet)
}
