//! One client's session: what waits for it, what is under way to it, what it has sent twice.
//!
//! A session outlives its connections. The hub pushes publishes into its queue; the connection
//! that owns it pumps them out, at most as many unacknowledged as the client takes, and tells it
//! of the acknowledgements. Everything is behind one lock that is held for microseconds and never
//! across an await.
//!
//! Window: `window` holds what was sent with QoS 1 or 2 and is not finished, in the order of the
//! first sending. The first `sent` of them have been sent on the present connection. After a
//! resumption `sent` is 0 and they go out again in that order, with DUP, before anything new; the
//! client's Receive Maximum holds for them too.
//!
//! Invariant: only the connection whose number is `owner` changes the window; one that was
//! replaced gets [`NotOwner`] and ends, however late it notices. Each has a [`Signal`] of its own,
//! so that a late one cannot take the call that is for its successor.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::acl::Grants;
use super::auth::Principal;
use super::protocol::connect::Will;
use super::protocol::{self, Ack, PublishOut, TooLarge, Version, code};
use crate::clock::Timestamp;
use crate::model::{Publish, Qos, Reason};
use crate::topic::TopicName;

/// One connection's number; never used twice.
pub(crate) type Owner = u64;

/// The session belongs to another connection by now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotOwner;

/// One client's session.
pub(crate) struct Session {
    pub(crate) client_id: Arc<str>,
    /// Whose it is: another client under the same id does not get to see it.
    pub(crate) principal: Principal,
    state: Mutex<State>,
}

/// Calls one connection: there is work in the queue, or word to end.
#[derive(Default)]
pub(crate) struct Signal {
    waker: AtomicWaker,
    called: AtomicBool,
}

impl Signal {
    fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// Whether there was a call since the last look; if not, the task is woken by the next.
    pub(crate) fn poll(&self, context: &Context<'_>) -> bool {
        if self.called.swap(false, Ordering::Acquire) {
            return true;
        }
        self.waker.register(context.waker());
        // What came between the look and the registration woke nobody.
        self.called.swap(false, Ordering::Acquire)
    }
}

/// What is behind the session's lock.
#[derive(Default)]
pub(crate) struct State {
    /// The connection that has it.
    pub(crate) owner: Option<Owner>,
    /// The newest connection that has asked for it: an older one that still waits has lost.
    pub(crate) newest: Owner,
    /// Calls the owner.
    signal: Arc<Signal>,
    /// Why the owner has to end, where it has.
    pub(crate) word_to_end: Option<Reason>,
    /// It is out of the hub: nothing goes in any more.
    pub(crate) ended: bool,
    /// Rights with denied topics, which have to be asked at each delivery.
    pub(crate) denied: Option<Arc<Grants>>,
    /// The filters that it subscribes to, as the client wrote them.
    pub(crate) subscriptions: HashSet<Arc<str>>,
    /// When it ends, where it has no connection and not for ever.
    pub(crate) ends_at: Option<Instant>,
    /// The will that waits for its delay, and until when.
    pub(crate) will: Option<(Instant, Box<Will>)>,
    /// Its entry in the hub's deadlines.
    pub(crate) deadline: Option<(Instant, u64)>,
    queue: VecDeque<Outgoing>,
    window: VecDeque<InFlight>,
    sent: usize,
    last_id: u16,
    /// Bytes of topics and payloads in queue and window.
    bytes: usize,
    /// QoS 2 publishes of the client that were taken and not released yet.
    received: HashSet<u16>,
}

/// A publish on its way to this client.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) publish: Arc<Publish>,
    /// The lower of the publish's and the subscription's.
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Subscription Identifiers of the subscriptions that matched.
    pub(crate) identifiers: Option<Box<[u32]>>,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        bytes_of(&self.publish)
    }
}

/// What a publish weighs in a queue.
pub(crate) fn bytes_of(publish: &Publish) -> usize {
    publish.topic.as_str().len() + publish.payload.len()
}

struct InFlight {
    id: u16,
    /// `None` once the client has it for good (PUBREC): what is left is PUBREL and PUBCOMP.
    outgoing: Option<Outgoing>,
}

/// How much a session holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backlog {
    pub(crate) subscriptions: usize,
    pub(crate) queued: usize,
    pub(crate) in_flight: usize,
}

/// How much may wait for one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
}

/// What became of a publish that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    /// The client is away and the publish has QoS 0: it is not kept for it.
    NotKept,
    Dropped(Reason),
}

/// How one connection writes publishes.
pub(crate) struct Writer {
    pub(crate) version: Version,
    /// Largest packet that the client takes.
    pub(crate) bytes_max: usize,
    /// Most unacknowledged publishes at a time.
    pub(crate) window_max: usize,
    /// No more is written when this much waits for the socket.
    pub(crate) output_bytes_max: usize,
    /// Topic aliases that the client was told, where it takes any.
    pub(crate) aliases: Option<Box<Aliases>>,
}

/// Topic aliases towards a client: the first topics get them and keep them.
pub(crate) struct Aliases {
    pub(crate) max: usize,
    pub(crate) topics: Vec<TopicName>,
}

impl Writer {
    fn write(
        &mut self,
        out: &mut Vec<u8>,
        outgoing: &Outgoing,
        id: u16,
        dup: bool,
        now: Timestamp,
    ) -> Result<(), TooLarge> {
        let publish = &outgoing.publish;
        let mut packet = PublishOut {
            topic: publish.topic.as_str(),
            payload: &publish.payload,
            qos: outgoing.qos,
            dup,
            retain: outgoing.retain,
            id,
            alias: None,
            properties: publish.properties.as_deref(),
            expires_after_secs: seconds_left(publish, now),
            identifiers: outgoing.identifiers.as_deref().unwrap_or_default(),
        };
        let mut new_alias = false;
        if let Some(aliases) = &self.aliases {
            let known = aliases.topics.iter().position(|t| *t == publish.topic);
            new_alias = known.is_none() && aliases.topics.len() < aliases.max;
            if known.is_some() {
                packet.topic = "";
            }
            if known.is_some() || new_alias {
                let index = known.unwrap_or(aliases.topics.len());
                packet.alias = u16::try_from(index + 1).ok();
            }
        }
        protocol::write_publish(out, self.version, &packet, self.bytes_max)?;
        if new_alias && let Some(aliases) = &mut self.aliases {
            aliases.topics.push(publish.topic.clone());
        }
        Ok(())
    }
}

/// Message Expiry Interval that is left; 0 when it has passed.
fn seconds_left(publish: &Publish, now: Timestamp) -> Option<u32> {
    let secs = publish.properties.as_ref()?.expires_after_secs?;
    let gone = now.since(publish.received_at).as_secs();
    Some(secs.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX)))
}

/// Whether its Message Expiry Interval has passed.
pub(crate) fn is_expired(publish: &Publish, now: Timestamp) -> bool {
    seconds_left(publish, now) == Some(0)
}

impl Session {
    pub(crate) fn new(client_id: Arc<str>, principal: Principal, owner: Owner) -> Self {
        Self {
            client_id,
            principal,
            state: Mutex::new(State { owner: Some(owner), newest: owner, ..State::default() }),
        }
    }

    /// The lock. A panic under it leaves nothing half done that matters: it is taken all the same.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn owned(&self, owner: Owner) -> Result<MutexGuard<'_, State>, NotOwner> {
        let state = self.state();
        if state.owner == Some(owner) { Ok(state) } else { Err(NotOwner) }
    }

    /// What calls the present owner.
    pub(crate) fn signal(&self) -> Arc<Signal> {
        Arc::clone(&self.state().signal)
    }

    /// Why `owner` has to end, if it has to.
    pub(crate) fn word_to_end(&self, owner: Owner) -> Option<Reason> {
        match self.owned(owner) {
            Ok(state) => state.word_to_end,
            Err(NotOwner) => Some(Reason::TakenOver),
        }
    }

    /// What it holds at the moment.
    pub(crate) fn backlog(&self) -> Backlog {
        let state = self.state();
        Backlog {
            subscriptions: state.subscriptions.len(),
            queued: state.queue.len(),
            in_flight: state.window.len(),
        }
    }

    /// Tells the owner to end.
    pub(crate) fn tell_to_end(&self, reason: Reason) {
        self.state().tell_to_end(reason);
    }

    /// Wakes the connection that has it, if one does.
    pub(crate) fn call(&self) {
        self.state().signal.call();
    }

    /// Puts a publish into the queue.
    pub(crate) fn push(&self, outgoing: Outgoing, limits: QueueLimits) -> Pushed {
        let mut state = self.state();
        if state.ended || (state.owner.is_none() && outgoing.qos == Qos::AtMostOnce) {
            return Pushed::NotKept;
        }
        if let Some(grants) = &state.denied
            && grants.deny().iter().any(|filter| filter.matches(&outgoing.publish.topic))
        {
            return Pushed::Dropped(Reason::NotAuthorized);
        }
        let bytes = outgoing.bytes();
        if state.queue.len() >= limits.messages_max || state.bytes + bytes > limits.bytes_max {
            return Pushed::Dropped(Reason::QueueFull);
        }
        // A connection that has work already looks again before it sleeps.
        let was_empty = state.queue.is_empty();
        let call = (was_empty && state.owner.is_some()).then(|| Arc::clone(&state.signal));
        state.bytes += bytes;
        state.queue.push_back(outgoing);
        drop(state);
        if let Some(signal) = call {
            signal.call();
        }
        Pushed::Queued
    }

    /// Writes as much as the client's window and the output's limit allow. What is not written
    /// for good is told to `dropped`.
    pub(crate) fn pump(
        &self,
        owner: Owner,
        writer: &mut Writer,
        out: &mut Vec<u8>,
        now: Timestamp,
        dropped: &mut dyn FnMut(Reason),
    ) -> Result<(), NotOwner> {
        let mut guard = self.owned(owner)?;
        let state = &mut *guard;
        // First what was under way when the last connection ended.
        while state.sent < state.window.len() && out.len() < writer.output_bytes_max {
            let Some(entry) = state.window.get(state.sent) else {
                break;
            };
            match &entry.outgoing {
                None => {
                    let id = entry.id;
                    protocol::write_ack(out, writer.version, Ack::Pubrel, id, code::SUCCESS);
                }
                Some(_) if state.sent >= writer.window_max => return Ok(()),
                Some(outgoing) => {
                    if writer.write(out, outgoing, entry.id, true, now).is_err() {
                        dropped(Reason::PacketTooLarge);
                        state.forget(state.sent);
                        continue;
                    }
                }
            }
            state.sent += 1;
        }
        while state.sent == state.window.len() && out.len() < writer.output_bytes_max {
            let Some(next) = state.queue.front() else {
                break;
            };
            let acknowledged = next.qos != Qos::AtMostOnce;
            if acknowledged && state.window.len() >= writer.window_max {
                break;
            }
            let Some(next) = state.queue.pop_front() else {
                break;
            };
            if is_expired(&next.publish, now) {
                state.bytes -= next.bytes();
                dropped(Reason::MessageExpired);
                continue;
            }
            let id = if acknowledged { state.free_id() } else { 0 };
            let written = writer.write(out, &next, id, false, now);
            if written.is_ok() && acknowledged {
                state.window.push_back(InFlight { id, outgoing: Some(next) });
                state.sent += 1;
                continue;
            }
            state.bytes -= next.bytes();
            if written.is_err() {
                dropped(Reason::PacketTooLarge);
            }
        }
        // Memory of a burst is not kept by a client that is quiet again.
        if state.queue.is_empty() && state.queue.capacity() > 16 {
            state.queue = VecDeque::new();
        }
        if state.window.is_empty() && state.window.capacity() > 16 {
            state.window = VecDeque::new();
        }
        Ok(())
    }

    /// Takes an acknowledgement of the client for something that was sent to it. Says what to
    /// answer.
    pub(crate) fn acknowledge(
        &self,
        owner: Owner,
        ack: Ack,
        id: u16,
        reason: u8,
    ) -> Result<Option<(Ack, u8)>, NotOwner> {
        let mut state = self.owned(owner)?;
        let sent = state.sent;
        let found =
            state.window.iter_mut().take(sent).enumerate().find(|(_, entry)| entry.id == id);
        let Some((index, entry)) = found else {
            // MQTT 5, 4.3.3: an unknown id in PUBREC is answered all the same.
            return Ok((ack == Ack::Pubrec).then_some((Ack::Pubrel, code::UNKNOWN_PACKET_ID)));
        };
        let qos = entry.outgoing.as_ref().map(|outgoing| outgoing.qos);
        match (ack, qos) {
            (Ack::Puback, Some(Qos::AtLeastOnce)) | (Ack::Pubcomp, None) => state.forget(index),
            // A reason code of 0x80 and above ends the exchange; 0x10 is a success.
            (Ack::Pubrec, Some(Qos::ExactlyOnce)) if reason >= 0x80 => state.forget(index),
            (Ack::Pubrec, Some(Qos::ExactlyOnce)) => {
                let bytes = entry.outgoing.take().map_or(0, |outgoing| outgoing.bytes());
                state.bytes -= bytes;
                return Ok(Some((Ack::Pubrel, code::SUCCESS)));
            }
            // PUBREC again, for one that has been released already.
            (Ack::Pubrec, None) => return Ok(Some((Ack::Pubrel, code::SUCCESS))),
            _ => {}
        }
        Ok(None)
    }

    /// Whether a QoS 2 publish of the client with this id was taken and not released.
    pub(crate) fn has_received(&self, owner: Owner, id: u16) -> Result<bool, NotOwner> {
        Ok(self.owned(owner)?.received.contains(&id))
    }

    /// Notes a QoS 2 publish of the client as taken: PUBREC may go.
    pub(crate) fn note_received(&self, owner: Owner, id: u16) -> Result<(), NotOwner> {
        self.owned(owner)?.received.insert(id);
        Ok(())
    }

    /// Takes the client's PUBREL. False if nothing was taken under this id.
    pub(crate) fn release(&self, owner: Owner, id: u16) -> Result<bool, NotOwner> {
        let mut state = self.owned(owner)?;
        let known = state.received.remove(&id);
        if state.received.is_empty() && state.received.capacity() > 16 {
            state.received = HashSet::new();
        }
        Ok(known)
    }
}

impl State {
    /// Gives it to the next connection: everything under way is sent again. One that still thinks
    /// that it has it is called, and finds that it has not.
    pub(crate) fn hand_to(&mut self, owner: Owner) {
        self.owner = Some(owner);
        self.word_to_end = None;
        self.sent = 0;
        std::mem::take(&mut self.signal).call();
    }

    /// Tells the owner to end.
    pub(crate) fn tell_to_end(&mut self, reason: Reason) {
        self.word_to_end.get_or_insert(reason);
        self.signal.call();
    }

    /// Drops everything that waits; it has ended.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            ended: true,
            owner: self.owner,
            newest: self.newest,
            signal: Arc::clone(&self.signal),
            word_to_end: self.word_to_end,
            ..Self::default()
        };
    }

    fn forget(&mut self, index: usize) {
        if let Some(entry) = self.window.remove(index) {
            self.bytes -= entry.outgoing.map_or(0, |outgoing| outgoing.bytes());
            if index < self.sent {
                self.sent -= 1;
            }
        }
    }

    /// The next packet id that is not under way. There is one: the window is far smaller than
    /// the 65,535 ids.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.window.iter().all(|entry| entry.id != self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// What the process itself takes out of a session: the way of upstreams, which have no [`Writer`].
impl Session {
    /// The next publish, as [`Session::pump`] would write it: first what was under way when the
    /// last connection ended, then the queue. One with QoS 0 has id 0 and is gone with this.
    pub(crate) fn take(
        &self,
        owner: Owner,
        window_max: usize,
        now: Timestamp,
        dropped: &mut dyn FnMut(Reason),
    ) -> Result<Option<Taken>, NotOwner> {
        let mut guard = self.owned(owner)?;
        let state = &mut *guard;
        let taken = |id: u16, outgoing: Outgoing| Taken {
            id,
            expires_after_secs: seconds_left(&outgoing.publish, now),
            outgoing,
        };
        while state.sent < state.window.len() && state.sent < window_max {
            let entry = state.window.get(state.sent);
            let again = entry.and_then(|entry| Some((entry.id, entry.outgoing.clone()?)));
            state.sent += 1;
            if let Some((id, outgoing)) = again {
                return Ok(Some(taken(id, outgoing)));
            }
        }
        while state.sent == state.window.len() && state.window.len() < window_max {
            let Some(next) = state.queue.pop_front() else { break };
            if is_expired(&next.publish, now) {
                state.bytes -= next.bytes();
                dropped(Reason::MessageExpired);
                continue;
            }
            if next.qos == Qos::AtMostOnce {
                state.bytes -= next.bytes();
                return Ok(Some(taken(0, next)));
            }
            let id = state.free_id();
            state.window.push_back(InFlight { id, outgoing: Some(next.clone()) });
            state.sent += 1;
            return Ok(Some(taken(id, next)));
        }
        Ok(None)
    }

    /// Everything under way is to be taken again.
    pub(crate) fn again(&self, owner: Owner) -> Result<(), NotOwner> {
        self.owned(owner)?.sent = 0;
        Ok(())
    }
}

/// A publish on its way to an upstream.
pub(crate) struct Taken {
    /// To acknowledge it by; 0 where that is not needed.
    pub(crate) id: u16,
    pub(crate) outgoing: Outgoing,
    /// What is left of its Message Expiry Interval.
    pub(crate) expires_after_secs: Option<u32>,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::topic::TopicLimits;

    const LIMITS: QueueLimits = QueueLimits { messages_max: 4, bytes_max: 100 };

    fn session() -> Session {
        Session::new("c".into(), Principal::default(), 1)
    }

    fn outgoing(payload: &str, qos: Qos) -> Outgoing {
        Outgoing {
            publish: Arc::new(Publish {
                topic: TopicName::parse("t", TopicLimits::default()).expect("valid"),
                payload: Bytes::copy_from_slice(payload.as_bytes()),
                qos,
                retain: false,
                client_id: "p".into(),
                identity: None,
                received_at: Timestamp::default(),
                properties: None,
            }),
            qos,
            retain: false,
            identifiers: None,
        }
    }

    fn writer(window_max: usize) -> Writer {
        Writer {
            version: Version::V311,
            bytes_max: usize::MAX,
            window_max,
            output_bytes_max: 1000,
            aliases: None,
        }
    }

    /// What is sent, as `3:payload`, `D3:payload` with DUP, `rel3`.
    fn pumped(session: &Session, owner: Owner, writer: &mut Writer) -> Vec<String> {
        let mut out = Vec::new();
        session
            .pump(owner, writer, &mut out, Timestamp::default(), &mut |_| {})
            .expect("the owner");
        let mut said = Vec::new();
        let mut rest = &out[..];
        while let Ok(Some(frame)) = protocol::frame(rest, 1000) {
            said.push(match protocol::parse(Version::V311, frame).expect("valid") {
                protocol::Packet::Publish(publish) => format!(
                    "{}{}:{}",
                    if frame.header & 8 == 0 { "" } else { "D" },
                    publish.id,
                    String::from_utf8_lossy(publish.payload)
                ),
                protocol::Packet::Ack(Ack::Pubrel, id, _) => format!("rel{id}"),
                other => format!("{other:?}"),
            });
            rest = &rest[frame.len..];
        }
        said
    }

    #[test]
    fn the_window_holds_and_acknowledgements_open_it() {
        let session = session();
        let mut writer = writer(2);
        for payload in ["a", "b", "c"] {
            assert_eq!(session.push(outgoing(payload, Qos::AtLeastOnce), LIMITS), Pushed::Queued);
        }
        assert_eq!(pumped(&session, 1, &mut writer), ["1:a", "2:b"]);
        assert!(pumped(&session, 1, &mut writer).is_empty());
        assert_eq!(session.acknowledge(1, Ack::Puback, 2, 0), Ok(None));
        assert_eq!(pumped(&session, 1, &mut writer), ["3:c"]);
        assert_eq!(session.acknowledge(2, Ack::Puback, 1, 0), Err(NotOwner));
    }

    #[test]
    fn a_resumed_client_gets_what_was_under_way_again_and_never_more_than_it_takes() {
        // mqtt-protocol-core 0.7.9 stalls for ever here, and ignores the client's limit.
        let session = session();
        let mut wide = writer(3);
        for (payload, qos) in [
            ("a", Qos::AtLeastOnce),
            ("b", Qos::ExactlyOnce),
            ("c", Qos::AtLeastOnce),
            ("d", Qos::AtLeastOnce),
        ] {
            session.push(outgoing(payload, qos), LIMITS);
        }
        assert_eq!(pumped(&session, 1, &mut wide), ["1:a", "2:b", "3:c"]);
        assert_eq!(
            session.acknowledge(1, Ack::Pubrec, 2, 0),
            Ok(Some((Ack::Pubrel, code::SUCCESS)))
        );
        session.state().hand_to(2);
        let mut narrow = writer(1);
        assert_eq!(pumped(&session, 2, &mut narrow), ["D1:a", "rel2"]);
        // Not sent on this connection yet, so nothing of it can be acknowledged.
        assert_eq!(session.acknowledge(2, Ack::Puback, 3, 0), Ok(None));
        session.acknowledge(2, Ack::Puback, 1, 0).expect("the owner");
        assert!(pumped(&session, 2, &mut narrow).is_empty());
        session.acknowledge(2, Ack::Pubcomp, 2, 0).expect("the owner");
        assert_eq!(pumped(&session, 2, &mut narrow), ["D3:c"]);
        session.acknowledge(2, Ack::Puback, 3, 0).expect("the owner");
        assert_eq!(pumped(&session, 2, &mut narrow), ["4:d"]);
        session.acknowledge(2, Ack::Puback, 4, 0).expect("the owner");
        assert_eq!(session.state().bytes, 0);
    }

    #[test]
    fn a_connection_that_was_replaced_is_called_and_cannot_take_its_successor_s_call() {
        let session = session();
        let context = Context::from_waker(std::task::Waker::noop());
        let old = session.signal();
        assert!(!old.poll(&context));
        session.state().hand_to(2);
        let new = session.signal();
        assert!(old.poll(&context));
        assert_eq!(session.word_to_end(1), Some(Reason::TakenOver));
        assert_eq!(session.word_to_end(2), None);
        session.push(outgoing("a", Qos::AtLeastOnce), LIMITS);
        assert!(!old.poll(&context));
        assert!(new.poll(&context));
    }

    #[test]
    fn a_refused_qos_2_publish_is_over_and_an_unknown_one_is_answered() {
        let session = session();
        session.push(outgoing("a", Qos::ExactlyOnce), LIMITS);
        assert_eq!(pumped(&session, 1, &mut writer(5)), ["1:a"]);
        assert_eq!(session.acknowledge(1, Ack::Pubrec, 1, 0x97), Ok(None));
        assert_eq!(
            session.acknowledge(1, Ack::Pubrec, 1, 0),
            Ok(Some((Ack::Pubrel, code::UNKNOWN_PACKET_ID)))
        );
        assert_eq!(session.state().bytes, 0);
    }

    #[test]
    fn the_queue_is_bounded_by_count_and_bytes() {
        let session = session();
        let push = |payload: &str| session.push(outgoing(payload, Qos::AtLeastOnce), LIMITS);
        let full = Pushed::Dropped(Reason::QueueFull);
        assert_eq!(push(&"x".repeat(100)), full);
        for _ in 0..4 {
            assert_eq!(push("x"), Pushed::Queued);
        }
        assert_eq!(push("x"), full);
        session.state().owner = None;
        assert_eq!(session.push(outgoing("x", Qos::AtMostOnce), LIMITS), Pushed::NotKept);
    }

    #[test]
    fn a_packet_id_under_way_is_not_used_again() {
        let session = session();
        session.push(outgoing("a", Qos::AtLeastOnce), LIMITS);
        pumped(&session, 1, &mut writer(5));
        session.state().last_id = u16::MAX;
        session.push(outgoing("b", Qos::AtLeastOnce), LIMITS);
        assert_eq!(pumped(&session, 1, &mut writer(5)), ["2:b"]);
    }

    #[test]
    fn what_is_taken_and_not_acknowledged_is_taken_again() {
        let session = session();
        for (payload, qos) in
            [("a", Qos::AtLeastOnce), ("b", Qos::AtMostOnce), ("c", Qos::AtLeastOnce)]
        {
            session.push(outgoing(payload, qos), LIMITS);
        }
        let take = |window_max| {
            let taken = session.take(1, window_max, Timestamp::default(), &mut |_| {});
            taken.expect("the owner").map(|taken| {
                (taken.id, String::from_utf8_lossy(&taken.outgoing.publish.payload).into_owned())
            })
        };
        assert_eq!(take(1), Some((1, "a".to_owned())));
        assert_eq!(take(1), None);
        assert_eq!(take(2), Some((0, "b".to_owned())));
        assert_eq!(take(2), Some((2, "c".to_owned())));
        session.acknowledge(1, Ack::Puback, 1, 0).expect("the owner");
        session.again(1).expect("the owner");
        assert_eq!(take(2), Some((2, "c".to_owned())));
        assert_eq!(take(2), None);
        session.acknowledge(1, Ack::Puback, 2, 0).expect("the owner");
        assert_eq!(session.state().bytes, 0);
    }
}
