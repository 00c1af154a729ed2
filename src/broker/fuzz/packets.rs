//! The target `packets`: a session, what is said to it, and a model of what it has to answer.
//!
//! The first byte chooses what the clients are like; then come packets, of one connection after
//! the other. A PUBLISH is one that the session gets, besides; PINGREQ also lets the disk catch
//! up; CONNECT is the next connection.
//!
//! Invariant: after every packet all that goes out is well-formed, and what the model expects.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::is_whole;
use crate::broker::auth::Principal;
use crate::broker::hub::Subscribed;
use crate::broker::protocol::{self, Ack, Packet, PublishIn, PublishOut, Version, code};
use crate::broker::session::{
    Aliases, NotOwner, Outgoing, Owner, Pushed, QueueLimits, Queues, Session, Writer,
};
use crate::clock::Timestamp;
use crate::model::{Publish, Qos, Reason};
use crate::topic::{TopicLimits, TopicName};

pub(super) fn run(bytes: &[u8]) {
    let Some((&first, mut rest)) = bytes.split_first() else { return };
    let mut model = Model::new(first);
    let version = model.writer.version;
    while let Ok(Some(frame)) = protocol::frame(rest, 4096) {
        rest = &rest[frame.len..];
        let Ok(packet) = protocol::parse(version, frame) else { break };
        model.take(frame.header & 8 != 0, packet);
        model.pump();
    }
    model.end();
}

const LIMITS: QueueLimits = QueueLimits {
    messages_max: 16,
    bytes_max: 4096,
    age_max: Duration::from_secs(20),
    stuck_max: Duration::MAX,
    connected_bytes: 0,
};

/// How far an exchange is that the client knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has this publish, and has not answered.
    Sent(u64, Qos),
    /// It has said PUBREC, before this many catch-ups of the disk.
    Released(u64),
}

/// A session, and what is to be true of it.
struct Model {
    session: Session,
    writer: Writer,
    owner: Owner,
    is_connected: bool,
    now: Timestamp,
    /// What was pushed, by the number that its payload begins with, and the catch-ups before it.
    pushed: Vec<(Arc<Publish>, u64)>,
    /// How often the disk has caught up.
    catch_ups: u64,
    /// By packet id.
    open: BTreeMap<u16, Stage>,
    /// Those of them that this connection has seen.
    seen: HashSet<u16>,
    /// The last that went out for the first time.
    newest: Option<u64>,
    /// What the client's topic aliases stand for.
    aliases: BTreeMap<u16, TopicName>,
    /// Something under way was too large the second time: which, nobody says.
    has_lost: bool,
}

impl Model {
    fn new(first: u8) -> Self {
        let queues = Arc::new(Queues::new(8192));
        let persistent = first & 2 != 0;
        let session = Session::new("c".into(), Principal::default(), 7, persistent, &queues);
        session.state().owner = Some(1);
        let has_aliases = first & 1 != 0 && first & 4 != 0;
        let aliases = || Box::new(Aliases { max: 2, topics: Vec::new() });
        let writer = Writer {
            version: if first & 1 == 0 { Version::V311 } else { Version::V5 },
            bytes_max: if first & 8 == 0 { 4096 } else { 40 },
            window_max: usize::from(first >> 5) + 1,
            output_bytes_max: if first & 16 == 0 { 1 << 16 } else { 50 },
            aliases: has_aliases.then(aliases),
        };
        Self {
            session,
            writer,
            owner: 1,
            is_connected: true,
            now: Timestamp::default(),
            pushed: Vec::new(),
            catch_ups: 0,
            open: BTreeMap::new(),
            seen: HashSet::new(),
            newest: None,
            aliases: BTreeMap::new(),
            has_lost: false,
        }
    }

    fn take(&mut self, dup: bool, packet: Packet<'_>) {
        match packet {
            Packet::Publish(publish) => self.publish(dup, &publish),
            Packet::Connect => self.resume(),
            Packet::Disconnect(_) => {
                self.session.state().owner = None;
                self.is_connected = false;
            }
            Packet::Ping => {
                self.now = Timestamp::from_millis(self.now.as_millis() + 1000);
                self.session.queues.journal.write_all();
                self.catch_ups += 1;
            }
            Packet::Ack(ack, id, reason) => self.acknowledge(ack, id, reason),
            Packet::Subscribe(packet) => {
                assert!(packet.id > 0 && packet.identifier != Some(0));
                let codes = packet.filters.iter().map(|wanted| {
                    match Subscribed::parse(&wanted.filter, TopicLimits::default()) {
                        Ok(_) => wanted.qos as u8,
                        Err(_) => code::BAD_FILTER,
                    }
                });
                let (mut out, codes) = (Vec::new(), codes.collect::<Vec<_>>());
                protocol::write_suback(&mut out, self.writer.version, packet.id, &codes);
                is_whole(&out);
                assert!(out.ends_with(&codes) || self.writer.version == Version::V311);
            }
            Packet::Unsubscribe(packet) => {
                let codes = vec![code::NO_SUBSCRIPTION; packet.filters.len()];
                let mut out = Vec::new();
                protocol::write_unsuback(&mut out, self.writer.version, packet.id, &codes);
                is_whole(&out);
            }
            Packet::Auth => {}
        }
    }

    fn resume(&mut self) {
        let old = self.owner;
        self.owner += 1;
        self.is_connected = true;
        self.session.state().hand_to(self.owner);
        assert_eq!(self.session.acknowledge(old, Ack::Puback, 1, 0), Err(NotOwner));
        assert_eq!(self.session.release(old, 1), Err(NotOwner));
        self.seen.clear();
        self.aliases.clear();
        if let Some(aliases) = &mut self.writer.aliases {
            aliases.topics.clear();
        }
    }

    fn publish(&mut self, dup: bool, packet: &PublishIn<'_>) {
        round_trip(self.writer.version, dup, packet);
        if packet.qos == Qos::ExactlyOnce && self.is_connected {
            let owner = self.owner;
            self.session.note_received(owner, packet.id, false).expect("the owner");
            let known = self.session.received(owner, packet.id).expect("the owner");
            assert!(known.is_some_and(|received| !received.is_saved));
        }
        let Ok(text) = std::str::from_utf8(packet.topic) else { return };
        let Ok(topic) = TopicName::parse(text, TopicLimits::default()) else { return };
        let number = self.pushed.len() as u64;
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend_from_slice(packet.payload);
        let publish = Arc::new(Publish {
            topic,
            payload: Bytes::from(payload),
            qos: packet.qos,
            retain: packet.retain,
            replayed: false,
            client_id: "p".into(),
            identity: None,
            received_at: self.now,
            properties: packet.properties.clone(),
        });
        self.pushed.push((Arc::clone(&publish), self.catch_ups));
        let mut draft =
            self.session.persistent.then(|| self.session.queues.journal.draft(number, &publish));
        let outgoing = Outgoing {
            at: self.now,
            qos: publish.qos,
            retain: publish.retain,
            publish,
            identifiers: None,
            saved: None,
        };
        let is_kept = self.is_connected || packet.qos != Qos::AtMostOnce;
        let pushed = self.session.push(outgoing, LIMITS, draft.as_mut());
        assert_eq!(pushed == Pushed::NotKept, !is_kept);
        assert!(self.session.backlog().queued <= LIMITS.messages_max);
    }

    fn acknowledge(&mut self, ack: Ack, id: u16, reason: u8) {
        let mut out = Vec::new();
        protocol::write_ack(&mut out, self.writer.version, ack, id, reason);
        let frame = protocol::frame(&out, 8).expect("ours").expect("whole");
        let again = protocol::parse(self.writer.version, frame);
        assert!(matches!(again, Ok(Packet::Ack(a, i, r)) if (a, i, r) == (ack, id, reason)));
        if ack == Ack::Pubrel {
            let released = self.session.release(self.owner, id);
            assert_eq!(released.is_err(), !self.is_connected);
            let again = self.session.release(self.owner, id);
            assert!(matches!(again, Err(NotOwner) | Ok(None)));
            return;
        }
        let answer = self.session.acknowledge(self.owner, ack, id, reason);
        assert_eq!(answer.is_err(), !self.is_connected);
        let Ok(answer) = answer else { return };
        let stage = self.open.get(&id).copied().filter(|_| self.seen.contains(&id));
        let is_saved = self.session.persistent;
        let expected = match (ack, stage) {
            (Ack::Puback, Some(Stage::Sent(_, Qos::AtLeastOnce)))
            | (Ack::Pubcomp, Some(Stage::Released(_))) => {
                self.forget(id);
                None
            }
            (Ack::Pubrec, Some(Stage::Sent(_, Qos::ExactlyOnce))) if reason >= 0x80 => {
                self.forget(id);
                None
            }
            (Ack::Pubrec, Some(Stage::Sent(_, Qos::ExactlyOnce))) => {
                self.open.insert(id, Stage::Released(self.catch_ups));
                (!is_saved).then_some((Ack::Pubrel, code::SUCCESS))
            }
            // Whether it has gone out already is a matter of the disk.
            (Ack::Pubrec, Some(Stage::Released(_))) if is_saved => answer,
            (Ack::Pubrec, Some(Stage::Released(_))) => Some((Ack::Pubrel, code::SUCCESS)),
            (Ack::Pubrec, None) => Some((Ack::Pubrel, code::UNKNOWN_PACKET_ID)),
            _ => None,
        };
        assert!(answer == expected || self.has_lost, "{ack:?} {id}: {answer:?}, not {expected:?}");
    }

    fn forget(&mut self, id: u16) {
        self.open.remove(&id);
        self.seen.remove(&id);
    }

    /// Writes what may go, and looks at every packet of it.
    fn pump(&mut self) {
        let mut out = Vec::new();
        let mut is_too_large = false;
        let pumped = self.session.pump(
            self.owner,
            &mut self.writer,
            &mut out,
            (self.now, LIMITS.age_max),
            &mut |reason| is_too_large |= reason == Reason::PacketTooLarge,
        );
        assert_eq!(pumped.is_err(), !self.is_connected);
        self.has_lost |= is_too_large && self.owner > 1;
        let mut rest = &out[..];
        while let Some(frame) = protocol::frame(rest, self.writer.bytes_max).expect("well-formed") {
            match protocol::parse(self.writer.version, frame).expect("ours parses again") {
                Packet::Publish(publish) => self.sent(frame.header & 8 != 0, &publish),
                Packet::Ack(Ack::Pubrel, id, code::SUCCESS) => self.released(id),
                other => panic!("{other:?} to a client"),
            }
            rest = &rest[frame.len..];
        }
        assert!(rest.is_empty(), "half a packet");
        let in_window = |id: &&u16| matches!(self.open.get(id), Some(Stage::Sent(..)));
        assert!(self.seen.iter().filter(in_window).count() <= self.writer.window_max);
        let backlog = self.session.backlog();
        if backlog.queued + backlog.in_flight == 0 {
            self.weighs_nothing();
        }
    }

    fn sent(&mut self, dup: bool, packet: &PublishIn<'_>) {
        let (number, payload) = packet.payload.split_first_chunk().expect("it was put there");
        let number = u64::from_be_bytes(*number);
        let (publish, catch_ups) = self.pushed[usize::try_from(number).expect("small")].clone();
        assert_eq!(payload, &publish.payload[8..]);
        assert_eq!((packet.qos, packet.retain), (publish.qos, publish.retain));
        if packet.topic.is_empty() {
            let alias = packet.alias.expect("a topic or an alias");
            assert_eq!(self.aliases.get(&alias), Some(&publish.topic));
        } else {
            assert_eq!(packet.topic, publish.topic.as_str().as_bytes());
            if let Some(alias) = packet.alias {
                assert!(self.aliases.insert(alias, publish.topic.clone()).is_none());
            }
        }
        if packet.qos == Qos::ExactlyOnce && self.session.persistent {
            assert!(self.catch_ups > catch_ups, "QoS 2 before its row is on disk");
        }
        let stage = Stage::Sent(number, packet.qos);
        if dup {
            assert_eq!(self.open.get(&packet.id), Some(&stage), "not what had this id");
        } else {
            assert!(self.newest < Some(number), "out of order");
            self.newest = Some(number);
        }
        if packet.qos == Qos::AtMostOnce {
            return assert!(!dup);
        }
        let before = self.open.insert(packet.id, stage);
        assert!(dup || before.is_none() || self.has_lost, "an id in use is used again");
        assert!(self.seen.insert(packet.id) || self.has_lost, "twice on one connection");
    }

    fn released(&mut self, id: u16) {
        self.seen.insert(id);
        match self.open.get(&id) {
            Some(Stage::Released(catch_ups)) => assert!(
                self.catch_ups > *catch_ups || !self.session.persistent,
                "PUBREL before PUBREC is on disk"
            ),
            other => assert!(self.has_lost, "PUBREL {id} for {other:?}"),
        }
    }

    fn weighs_nothing(&self) {
        assert!(self.session.state().has_room(LIMITS.bytes_max, LIMITS), "bytes of nothing");
    }

    fn end(self) {
        self.session.end();
        let backlog = self.session.backlog();
        assert_eq!((backlog.queued, backlog.in_flight, backlog.subscriptions), (0, 0, 0));
        self.weighs_nothing();
    }
}

/// What is written parses again to the same.
fn round_trip(version: Version, dup: bool, packet: &PublishIn<'_>) {
    let Ok(topic) = std::str::from_utf8(packet.topic) else { return };
    let properties = packet.properties.as_deref();
    let again = PublishOut {
        topic,
        payload: packet.payload,
        qos: packet.qos,
        dup,
        retain: packet.retain,
        id: packet.id,
        alias: packet.alias,
        properties,
        expires_after_secs: properties.and_then(|properties| properties.expires_after_secs),
        identifiers: &[],
    };
    let mut out = Vec::new();
    protocol::write_publish(&mut out, version, &again, usize::MAX).expect("no limit");
    let mut short = Vec::new();
    assert!(protocol::write_publish(&mut short, version, &again, out.len() - 1).is_err());
    assert!(short.is_empty());
    let frame = protocol::frame(&out, out.len()).expect("ours").expect("whole");
    assert_eq!((frame.len, frame.header & 8 != 0), (out.len(), dup));
    let Ok(Packet::Publish(found)) = protocol::parse(version, frame) else {
        panic!("{again:?} does not parse again")
    };
    assert_eq!(format!("{found:?}"), format!("{packet:?}"));
}
