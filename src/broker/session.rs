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
//! A session is `persistent` when it outlives its connection. Then what waits for it with QoS 1 or
//! 2 has a row on disk, which names the packet id that it keeps, so that the id is known after a
//! crash: a QoS 2 publish does not go out before its row is there, nor PUBREL before the row says
//! that the client has it. (QoS 1 may go at once: what a crash can do to it is a second copy.) Rows
//! change with the memory, under the session's lock; see `hub::journal` for what that gives.
//!
//! Invariant: only the connection whose number is `owner` changes the window; one that was
//! replaced gets [`NotOwner`] and ends, however late it notices. Each has a [`Signal`] of its own,
//! so that a late one cannot take the call that is for its successor.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::acl::Grants;
use super::auth::Principal;
use super::hub::journal::{Body, Draft, Journal, Position, Waiter};
use super::protocol::connect::Will;
use super::protocol::{self, Ack, PublishOut, TooLarge, Version, code};
use crate::clock::Timestamp;
use crate::model::{Publish, Qos, Reason};
use crate::store::keys;
use crate::store::sessions::{QueuedRow, ReceivedRow, SessionRow, SubscriptionRow};
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
    /// Its number on disk; never used twice.
    pub(crate) number: u64,
    /// It outlives its connection, so what it holds is kept on disk.
    pub(crate) persistent: bool,
    pub(crate) queues: Arc<Queues>,
    state: Mutex<State>,
}

/// What all sessions share.
pub(crate) struct Queues {
    pub(crate) journal: Arc<Journal>,
    /// Bytes of publishes that wait in all of them.
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Queues {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { journal: Arc::default(), bytes: AtomicUsize::new(0), bytes_max }
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.bytes.load(Ordering::Relaxed).saturating_add(bytes) <= self.bytes_max
    }
}

/// Calls one connection: there is work in the queue, or word to end.
#[derive(Default)]
pub(crate) struct Signal {
    waker: AtomicWaker,
    called: AtomicBool,
}

impl Signal {
    pub(crate) fn call(&self) {
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
    /// The groups of its client, by which the access entries are looked up again after a start.
    pub(crate) groups: Vec<Arc<str>>,
    /// Rights with denied topics, which have to be asked at each delivery.
    pub(crate) denied: Option<Arc<Grants>>,
    /// What it subscribes to, by the filter as the client wrote it.
    pub(crate) subscriptions: HashMap<Arc<str>, SubscriptionRow>,
    /// Session Expiry Interval in force, seconds; `u32::MAX` for ever.
    pub(crate) expiry_secs: u32,
    /// When it ends, where it has no connection and not for ever.
    pub(crate) ends_at: Option<Instant>,
    /// The will that waits for its delay.
    pub(crate) will: Option<PendingWill>,
    /// It has a row on disk.
    pub(crate) is_saved: bool,
    /// Its entry in the hub's deadlines.
    pub(crate) deadline: Option<(Instant, u64)>,
    queue: VecDeque<Outgoing>,
    window: VecDeque<InFlight>,
    sent: usize,
    last_id: u16,
    /// Bytes of publishes in queue and window.
    bytes: usize,
    /// How many in the queue have QoS 0.
    expendable: usize,
    /// Since when it has been full, though its client is connected.
    full_since: Option<Instant>,
    /// The turn of the next that gets a row.
    pub(crate) next_turn: u64,
    /// The packet ids of all that have a row.
    ids: HashSet<u16>,
    /// PUBRELs that go out when the client's PUBREC is on disk, in the order of the PUBRECs.
    releases: VecDeque<(Position, u16)>,
    /// The owner is called when this is durable.
    awaited: Position,
    /// QoS 2 publishes of the client that were taken and not released yet.
    received: HashMap<u16, Received>,
}

/// A will that waits for its delay.
#[derive(Debug)]
pub(crate) struct PendingWill {
    pub(crate) at: Instant,
    /// Its row.
    pub(crate) number: u64,
    pub(crate) will: Box<Will>,
}

/// A QoS 2 publish of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) stage: ReceivedRow,
    /// It has a row.
    pub(crate) is_saved: bool,
}

/// A publish on its way to this client.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) publish: Arc<Publish>,
    /// Since when it waits: a retained message is older than that.
    pub(crate) at: Timestamp,
    /// The lower of the publish's and the subscription's.
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Subscription Identifiers of the subscriptions that matched.
    pub(crate) identifiers: Option<Box<[u32]>>,
    /// Its row, where it has one.
    pub(crate) saved: Option<Box<Saved>>,
}

/// The row of a publish that waits for a session.
#[derive(Clone)]
pub(crate) struct Saved {
    turn: u64,
    packet_id: u16,
    /// When this is durable, the row is on disk.
    position: Position,
    body: Arc<Body>,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        bytes_of(&self.publish)
    }

    fn row(&self, packet_id: u16) -> QueuedRow {
        QueuedRow {
            body: self.saved.as_ref().map(|saved| saved.body.number()),
            packet_id,
            at: self.at,
            qos: self.qos,
            retain: self.retain,
            identifiers: self.identifiers.as_deref().unwrap_or_default().to_vec(),
        }
    }

    /// It may not go out to `client_id` before this is durable.
    fn position(&self, client_id: &str) -> Position {
        match (&self.saved, self.qos) {
            (Some(saved), Qos::ExactlyOnce) => saved.position,
            // One that hears itself gets its acknowledgement first, as from other brokers, and as
            // Eclipse's suite has it; MQTT leaves the order open.
            (Some(saved), _) if *self.publish.client_id == *client_id => saved.position,
            _ => 0,
        }
    }

    /// Why it is not worth sending any more.
    fn is_over(&self, now: Timestamp, age_max: Duration) -> Option<Reason> {
        if is_expired(&self.publish, now) {
            Some(Reason::MessageExpired)
        } else if now.since(self.at) > age_max {
            Some(Reason::QueueAge)
        } else {
            None
        }
    }
}

/// What a publish weighs in a queue.
pub(crate) fn bytes_of(publish: &Publish) -> usize {
    let properties = publish.properties.as_ref().map_or(0, |properties| properties.bytes());
    publish.topic.as_str().len() + publish.payload.len() + properties
}

struct InFlight {
    id: u16,
    /// Of its row; 0 for none.
    turn: u64,
    /// Its next packet may not go out before this is durable.
    position: Position,
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

/// Packet ids that one session may have under way; MQTT has 65,535. Only the retained messages of
/// a new subscription can be so many.
const IDS_MAX: usize = 65_000;

/// How much may wait for one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueLimits {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
    /// How long a publish may wait.
    pub(crate) age_max: Duration,
    /// How long a connected client's queue may be full.
    pub(crate) stuck_max: Duration,
    /// Bytes that may wait for a connected client however much waits for the others. Without them,
    /// queues of clients that are away would keep those who are there from getting anything.
    pub(crate) connected_bytes: usize,
}

/// What became of a publish that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    /// So many of QoS 0 made room for it.
    QueuedFor(usize),
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

/// A session's state, locked. What is taken out or put in counts towards the bytes of all queues
/// when it is unlocked.
pub(crate) struct Locked<'a> {
    state: MutexGuard<'a, State>,
    bytes_before: usize,
    queues: &'a Queues,
}

impl Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let (before, after) = (self.bytes_before, self.state.bytes);
        if after > before {
            self.queues.bytes.fetch_add(after - before, Ordering::Relaxed);
        } else if after < before {
            self.queues.bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
    }
}

impl Session {
    pub(crate) fn new(
        client_id: Arc<str>,
        principal: Principal,
        number: u64,
        persistent: bool,
        queues: &Arc<Queues>,
    ) -> Self {
        let state = Mutex::default();
        let queues = Arc::clone(queues);
        Self { client_id, principal, number, persistent, queues, state }
    }

    /// The lock. A panic under it leaves nothing half done that matters: it is taken all the same.
    pub(crate) fn state(&self) -> Locked<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked { bytes_before: state.bytes, state, queues: &self.queues }
    }

    fn owned(&self, owner: Owner) -> Result<Locked<'_>, NotOwner> {
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

    /// Writes the session's row. `ends_at` is `None` while it is connected, and for ever.
    pub(crate) fn save(&self, state: &mut State, ends_at: Option<Timestamp>) -> Position {
        if !self.persistent || state.ended {
            return 0;
        }
        state.is_saved = true;
        let row = SessionRow {
            client_id: Arc::clone(&self.client_id),
            identity: self.principal.identity.clone(),
            user: self.principal.user.clone(),
            groups: state.groups.clone(),
            expiry_secs: state.expiry_secs,
            ends_at,
            unsent_from: state.owner.is_none().then(|| state.unsent_from()),
            subscriptions: state.subscriptions.values().cloned().collect(),
        };
        self.queues.journal.note(|op| op.put_session(self.number, &row))
    }

    /// Writes the session's row if it has none: what is to be durable is then on disk together
    /// with whose it is.
    pub(crate) fn save_first(&self) -> Position {
        let mut state = self.state();
        if state.is_saved { 0 } else { self.save(&mut state, None) }
    }

    /// Takes everything out that it holds, and all its rows but that of a will, which whoever
    /// took the will removes. It has ended; what it subscribed to is given back, and when it is
    /// certain that a restart does not bring it back.
    pub(crate) fn end(&self) -> (Vec<Arc<str>>, Position) {
        let mut state = self.state();
        let subscriptions = std::mem::take(&mut state.subscriptions).into_keys().collect();
        let position = self.queues.journal.note(|op| {
            if state.is_saved {
                op.remove(keys::session(self.number));
            }
            for saved in state.queue.iter().filter_map(|outgoing| outgoing.saved.as_deref()) {
                Journal::forget(op, self.number, saved.turn, Some(&saved.body));
            }
            for entry in state.window.iter().filter(|entry| entry.turn > 0) {
                let saved = entry.outgoing.as_ref().and_then(|outgoing| outgoing.saved.as_ref());
                Journal::forget(op, self.number, entry.turn, saved.map(|saved| &*saved.body));
            }
            for (id, _) in state.received.iter().filter(|(_, received)| received.is_saved) {
                op.remove(keys::received(self.number, *id));
            }
        });
        state.clear();
        (subscriptions, position)
    }

    /// Puts a publish into the queue. `draft` is there where the session may need a row of it.
    pub(crate) fn push(
        &self,
        mut outgoing: Outgoing,
        limits: QueueLimits,
        draft: Option<&mut Draft<'_>>,
    ) -> Pushed {
        let mut guard = self.state();
        let state = &mut *guard;
        let expendable = outgoing.qos == Qos::AtMostOnce;
        if state.ended || (state.owner.is_none() && expendable) {
            return Pushed::NotKept;
        }
        if let Some(grants) = &state.denied
            && grants.deny().iter().any(|filter| filter.matches(&outgoing.publish.topic))
        {
            return Pushed::Dropped(Reason::NotAuthorized);
        }
        let bytes = outgoing.bytes();
        let mut gone = 0;
        if !state.has_room(bytes, limits) && !expendable {
            gone = state.drop_expendable();
        }
        if !state.has_room(bytes, limits) {
            if state.owner.is_some() && !expendable {
                let since = *state.full_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= limits.stuck_max {
                    state.tell_to_end(Reason::QueueFull);
                }
            }
            return Pushed::Dropped(Reason::QueueFull);
        }
        let has_own =
            state.owner.is_some() && state.bytes.saturating_add(bytes) <= limits.connected_bytes;
        if !(has_own || self.queues.has_room(bytes)) || state.ids.len() >= IDS_MAX {
            return Pushed::Dropped(Reason::QueueFull);
        }
        if let Some(draft) = draft.filter(|_| self.persistent && !expendable) {
            let packet_id = state.free_id();
            // From 1: 0 is no row.
            let turn = state.next_turn.max(1);
            state.next_turn = turn + 1;
            state.ids.insert(packet_id);
            let body = draft.add(self.number, turn, outgoing.row(packet_id));
            let position = draft.position;
            outgoing.saved = Some(Box::new(Saved { turn, packet_id, position, body }));
        }
        // A connection that has work already looks again before it sleeps.
        let was_empty = state.queue.is_empty();
        let call = (was_empty && state.owner.is_some()).then(|| Arc::clone(&state.signal));
        state.bytes += bytes;
        state.expendable += usize::from(expendable);
        state.queue.push_back(outgoing);
        drop(guard);
        if let Some(signal) = call {
            signal.call();
        }
        if gone > 0 { Pushed::QueuedFor(gone) } else { Pushed::Queued }
    }

    /// Drops what is too old from the front of the queue, where no connection looks at it.
    pub(crate) fn drop_old(
        &self,
        now: Timestamp,
        age_max: Duration,
        dropped: &mut dyn FnMut(Reason),
    ) {
        let mut state = self.state();
        while let Some(reason) = state.queue.front().and_then(|next| next.is_over(now, age_max)) {
            let Some(old) = state.queue.pop_front() else { break };
            self.drop_queued(&mut state, &old);
            dropped(reason);
        }
    }

    /// Accounts for a publish that was taken out of the queue and does not go out.
    fn drop_queued(&self, state: &mut State, outgoing: &Outgoing) {
        state.bytes -= outgoing.bytes();
        state.expendable -= usize::from(outgoing.qos == Qos::AtMostOnce);
        if let Some(saved) = &outgoing.saved {
            state.forget_id(saved.packet_id);
            self.queues.journal.note(|op| {
                Journal::forget(op, self.number, saved.turn, Some(&saved.body));
            });
        }
    }

    /// Takes an exchange out of the window: it is over.
    fn drop_in_flight(&self, state: &mut State, index: usize) {
        let Some(entry) = state.window.remove(index) else { return };
        if index < state.sent {
            state.sent -= 1;
        }
        let saved = entry.outgoing.as_ref().and_then(|outgoing| outgoing.saved.as_ref());
        if entry.turn > 0 {
            state.forget_id(entry.id);
            self.queues.journal.note(|op| {
                Journal::forget(op, self.number, entry.turn, saved.map(|saved| &*saved.body));
            });
        }
        state.bytes -= entry.outgoing.as_ref().map_or(0, Outgoing::bytes);
    }

    /// Whether this may go out. If not, the owner is called when it may.
    fn may_go(&self, state: &mut State, position: Position) -> bool {
        let journal = &self.queues.journal;
        if journal.is_durable(position) {
            return true;
        }
        if state.awaited < position {
            state.awaited = position;
            journal.tell(position, Waiter::Signal(Arc::clone(&state.signal)));
        }
        journal.is_durable(position)
    }

    /// Writes as much as the client's window and the output's limit allow. What is not written
    /// for good is told to `dropped`.
    pub(crate) fn pump(
        &self,
        owner: Owner,
        writer: &mut Writer,
        out: &mut Vec<u8>,
        (now, age_max): (Timestamp, Duration),
        dropped: &mut dyn FnMut(Reason),
    ) -> Result<(), NotOwner> {
        let mut guard = self.owned(owner)?;
        let state = &mut *guard;
        while let Some(&(position, id)) = state.releases.front() {
            if !self.may_go(state, position) {
                break;
            }
            state.releases.pop_front();
            protocol::write_ack(out, writer.version, Ack::Pubrel, id, code::SUCCESS);
        }
        // First what was under way when the last connection ended.
        while state.sent < state.window.len() && out.len() < writer.output_bytes_max {
            let Some(position) = state.window.get(state.sent).map(|entry| entry.position) else {
                break;
            };
            if !self.may_go(state, position) {
                return Ok(());
            }
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
                        self.drop_in_flight(state, state.sent);
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
            let position = next.position(&self.client_id);
            if position > 0 && !self.may_go(state, position) {
                break;
            }
            let Some(next) = state.queue.pop_front() else {
                break;
            };
            state.full_since = None;
            if let Some(reason) = next.is_over(now, age_max) {
                self.drop_queued(state, &next);
                dropped(reason);
                continue;
            }
            let saved = next.saved.as_ref().map(|saved| (saved.packet_id, saved.turn));
            let (id, turn) = match saved {
                Some(saved) => saved,
                None if acknowledged => (state.free_id(), 0),
                None => (0, 0),
            };
            let written = writer.write(out, &next, id, false, now);
            if written.is_ok() && acknowledged {
                state.window.push_back(InFlight { id, turn, position, outgoing: Some(next) });
                state.sent += 1;
                continue;
            }
            self.drop_queued(state, &next);
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
        let mut guard = self.owned(owner)?;
        let state = &mut *guard;
        let sent = state.sent;
        let found =
            state.window.iter_mut().take(sent).enumerate().find(|(_, entry)| entry.id == id);
        let Some((index, entry)) = found else {
            // MQTT 5, 4.3.3: an unknown id in PUBREC is answered all the same.
            return Ok((ack == Ack::Pubrec).then_some((Ack::Pubrel, code::UNKNOWN_PACKET_ID)));
        };
        let qos = entry.outgoing.as_ref().map(|outgoing| outgoing.qos);
        match (ack, qos) {
            (Ack::Puback, Some(Qos::AtLeastOnce)) => self.drop_in_flight(state, index),
            (Ack::Pubcomp, None) => {
                self.drop_in_flight(state, index);
                // One that does not wait for PUBREL gets none: by then the id may be another's.
                state.releases.retain(|(_, other)| *other != id);
            }
            // A reason code of 0x80 and above ends the exchange; 0x10 is a success.
            (Ack::Pubrec, Some(Qos::ExactlyOnce)) if reason >= 0x80 => {
                self.drop_in_flight(state, index);
            }
            (Ack::Pubrec, Some(Qos::ExactlyOnce)) => {
                let Some(outgoing) = entry.outgoing.take() else { return Ok(None) };
                state.bytes -= outgoing.bytes();
                let Some(saved) = &outgoing.saved else {
                    return Ok(Some((Ack::Pubrel, code::SUCCESS)));
                };
                // Not before it is on disk that the client has it: PUBREL makes it forget the id,
                // and the publish sent again after a crash would then be a new one to it.
                let row = QueuedRow { body: None, ..outgoing.row(id) };
                let (session, turn) = (self.number, saved.turn);
                let position = self.queues.journal.note(|op| {
                    Journal::mark_released(op, session, turn, &row, &saved.body);
                });
                entry.position = position;
                state.releases.push_back((position, id));
            }
            // PUBREC again, for one that has been released already.
            (Ack::Pubrec, None) if state.releases.iter().all(|(_, other)| *other != id) => {
                return Ok(Some((Ack::Pubrel, code::SUCCESS)));
            }
            _ => {}
        }
        Ok(None)
    }

    /// How far a QoS 2 publish of the client with this id has come, if it was not released.
    pub(crate) fn received(&self, owner: Owner, id: u16) -> Result<Option<Received>, NotOwner> {
        Ok(self.owned(owner)?.received.get(&id).copied())
    }

    /// Notes a QoS 2 publish of the client as taken: PUBREC may go. `is_saved`: it has a row.
    pub(crate) fn note_received(
        &self,
        owner: Owner,
        id: u16,
        is_saved: bool,
    ) -> Result<(), NotOwner> {
        let mut state = self.owned(owner)?;
        let is_saved = is_saved || state.received.get(&id).is_some_and(|known| known.is_saved);
        state.received.insert(id, Received { stage: ReceivedRow::Taken, is_saved });
        Ok(())
    }

    /// Takes the client's PUBREL. Says when PUBCOMP may go; `None` if nothing was taken under this
    /// id.
    ///
    /// PUBCOMP waits until the row is gone: the client may use the id for its next publish then,
    /// which after a crash must not be taken for the old one.
    pub(crate) fn release(&self, owner: Owner, id: u16) -> Result<Option<Position>, NotOwner> {
        let mut state = self.owned(owner)?;
        let Some(received) = state.received.remove(&id) else { return Ok(None) };
        if state.received.is_empty() && state.received.capacity() > 16 {
            state.received = HashMap::new();
        }
        let note = || self.queues.journal.note(|op| op.remove(keys::received(self.number, id)));
        Ok(Some(if received.is_saved { note() } else { 0 }))
    }

    /// Takes back what was found on disk, in the order of its turns. What may have been sent goes
    /// into the window and out again with DUP; `unsent_from` on, it is as if never sent.
    pub(crate) fn restore(
        &self,
        turn: u64,
        row: QueuedRow,
        found: Option<(Arc<Publish>, Arc<Body>)>,
        unsent_from: Option<u64>,
    ) {
        let mut state = self.state();
        let id = row.packet_id;
        state.next_turn = state.next_turn.max(turn + 1);
        state.last_id = id;
        state.ids.insert(id);
        let outgoing = found.map(|(publish, body)| Outgoing {
            publish,
            at: row.at,
            qos: row.qos,
            retain: row.retain,
            identifiers: (!row.identifiers.is_empty()).then(|| row.identifiers.into()),
            saved: Some(Box::new(Saved { turn, packet_id: id, position: 0, body })),
        });
        state.bytes += outgoing.as_ref().map_or(0, Outgoing::bytes);
        match outgoing {
            Some(outgoing) if unsent_from.is_some_and(|unsent| turn >= unsent) => {
                state.queue.push_back(outgoing);
            }
            outgoing => state.window.push_back(InFlight { id, turn, position: 0, outgoing }),
        }
    }

    /// Takes back a QoS 2 publish of the client that was found on disk.
    pub(crate) fn restore_received(&self, id: u16, stage: ReceivedRow) {
        self.state().received.insert(id, Received { stage, is_saved: true });
    }
}

impl State {
    /// Gives it to the next connection: everything under way is sent again. One that still thinks
    /// that it has it is called, and finds that it has not.
    pub(crate) fn hand_to(&mut self, owner: Owner) {
        self.owner = Some(owner);
        self.word_to_end = None;
        self.sent = 0;
        self.releases.clear();
        self.awaited = 0;
        self.full_since = None;
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

    /// Whether the queue is not full. Shared subscriptions ask before they choose.
    pub(crate) fn has_room(&self, bytes: usize, limits: QueueLimits) -> bool {
        self.queue.len() < limits.messages_max && self.bytes + bytes <= limits.bytes_max
    }

    /// Drops all of QoS 0 that waits. Says how many there were.
    fn drop_expendable(&mut self) -> usize {
        let count = std::mem::take(&mut self.expendable);
        if count > 0 {
            let bytes = &mut self.bytes;
            self.queue.retain(|outgoing| {
                let stays = outgoing.qos != Qos::AtMostOnce;
                *bytes -= if stays { 0 } else { outgoing.bytes() };
                stays
            });
        }
        count
    }

    /// The first turn that was certainly never sent.
    fn unsent_from(&self) -> u64 {
        let first = self.queue.iter().find_map(|outgoing| outgoing.saved.as_ref());
        first.map_or(self.next_turn, |saved| saved.turn)
    }

    fn forget_id(&mut self, id: u16) {
        self.ids.remove(&id);
        if self.ids.is_empty() && self.ids.capacity() > 16 {
            self.ids = HashSet::new();
        }
    }

    /// The next packet id that is not under way. There is one: window and queue together are
    /// smaller than the 65,535 ids.
    fn free_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let id = self.last_id;
            // Those with a row are all in `ids`, those without are few.
            let is_free = |entry: &InFlight| entry.turn > 0 || entry.id != id;
            if !self.ids.contains(&id) && self.window.iter().all(is_free) {
                return id;
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
        (now, age_max): (Timestamp, Duration),
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
            state.full_since = None;
            if let Some(reason) = next.is_over(now, age_max) {
                self.drop_queued(state, &next);
                dropped(reason);
                continue;
            }
            if next.qos == Qos::AtMostOnce {
                self.drop_queued(state, &next);
                return Ok(Some(taken(0, next)));
            }
            let saved = next.saved.as_ref().map(|saved| (saved.packet_id, saved.turn));
            let (id, turn) = saved.unwrap_or_else(|| (state.free_id(), 0));
            let outgoing = Some(next.clone());
            // Only QoS 2 waits for its row.
            state.window.push_back(InFlight { id, turn, position: 0, outgoing });
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

    const LIMITS: QueueLimits = QueueLimits {
        messages_max: 4,
        bytes_max: 100,
        age_max: Duration::MAX,
        stuck_max: Duration::MAX,
        connected_bytes: 10,
    };

    fn session() -> Session {
        kept(false)
    }

    fn kept(persistent: bool) -> Session {
        let queues = Arc::new(Queues::new(1000));
        let session = Session::new("c".into(), Principal::default(), 7, persistent, &queues);
        session.state().owner = Some(1);
        session
    }

    /// Pushes as the hub does: with a draft where the session may need a row.
    fn push(session: &Session, outgoing: Outgoing) -> Pushed {
        let journal = &session.queues.journal;
        let mut draft = session.persistent.then(|| journal.draft(1, &outgoing.publish));
        session.push(outgoing, LIMITS, draft.as_mut())
    }

    fn outgoing(payload: &str, qos: Qos) -> Outgoing {
        Outgoing {
            publish: Arc::new(Publish {
                topic: TopicName::parse("t", TopicLimits::default()).expect("valid"),
                payload: Bytes::copy_from_slice(payload.as_bytes()),
                qos,
                retain: false,
                replayed: false,
                client_id: "p".into(),
                identity: None,
                received_at: Timestamp::default(),
                properties: None,
            }),
            at: Timestamp::default(),
            qos,
            retain: false,
            identifiers: None,
            saved: None,
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
            .pump(owner, writer, &mut out, (Timestamp::default(), Duration::MAX), &mut |_| {})
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
            assert_eq!(push(&session, outgoing(payload, Qos::AtLeastOnce)), Pushed::Queued);
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
            push(&session, outgoing(payload, qos));
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
        push(&session, outgoing("a", Qos::AtLeastOnce));
        assert!(!old.poll(&context));
        assert!(new.poll(&context));
    }

    #[test]
    fn a_refused_qos_2_publish_is_over_and_an_unknown_one_is_answered() {
        let session = session();
        push(&session, outgoing("a", Qos::ExactlyOnce));
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
        let push = |payload: &str| push(&session, outgoing(payload, Qos::AtLeastOnce));
        let full = Pushed::Dropped(Reason::QueueFull);
        assert_eq!(push(&"x".repeat(100)), full);
        for _ in 0..4 {
            assert_eq!(push("x"), Pushed::Queued);
        }
        assert_eq!(push("x"), full);
        session.state().owner = None;
        assert_eq!(super::tests::push(&session, outgoing("x", Qos::AtMostOnce)), Pushed::NotKept);
    }

    #[test]
    fn a_packet_id_under_way_is_not_used_again() {
        let session = session();
        push(&session, outgoing("a", Qos::AtLeastOnce));
        pumped(&session, 1, &mut writer(5));
        session.state().last_id = u16::MAX;
        push(&session, outgoing("b", Qos::AtLeastOnce));
        assert_eq!(pumped(&session, 1, &mut writer(5)), ["2:b"]);
    }

    #[test]
    fn what_is_taken_and_not_acknowledged_is_taken_again() {
        let session = session();
        for (payload, qos) in
            [("a", Qos::AtLeastOnce), ("b", Qos::AtMostOnce), ("c", Qos::AtLeastOnce)]
        {
            push(&session, outgoing(payload, qos));
        }
        let take = |window_max| {
            let now = (Timestamp::default(), Duration::MAX);
            let taken = session.take(1, window_max, now, &mut |_| {});
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

    #[test]
    fn a_qos_2_publish_goes_out_when_its_row_is_on_disk_and_pubrel_when_its_mark_is() {
        let session = kept(true);
        let journal = Arc::clone(&session.queues.journal);
        let context = Context::from_waker(std::task::Waker::noop());
        let signal = session.signal();
        push(&session, outgoing("a", Qos::ExactlyOnce));
        assert!(signal.poll(&context));
        assert!(pumped(&session, 1, &mut writer(5)).is_empty());
        assert_eq!(journal.write_all().len(), 1, "the publish and who waits for it together");
        assert!(signal.poll(&context), "the owner is called");
        assert_eq!(pumped(&session, 1, &mut writer(5)), ["1:a"]);
        assert_eq!(session.acknowledge(1, Ack::Pubrec, 1, 0), Ok(None));
        assert!(pumped(&session, 1, &mut writer(5)).is_empty());
        // Neither does a repetition get it earlier, nor a resumption.
        assert_eq!(session.acknowledge(1, Ack::Pubrec, 1, 0), Ok(None));
        session.state().hand_to(2);
        assert!(pumped(&session, 2, &mut writer(5)).is_empty());
        journal.write_all();
        assert_eq!(pumped(&session, 2, &mut writer(5)), ["rel1"]);
        assert_eq!(session.acknowledge(2, Ack::Pubcomp, 1, 0), Ok(None));
        assert_eq!(session.state().bytes, 0);
        assert!(session.state().ids.is_empty());
    }

    #[test]
    fn qos_1_does_not_wait_for_the_disk_and_every_row_goes_again() {
        let session = kept(true);
        for payload in ["a", "b", "c"] {
            push(&session, outgoing(payload, Qos::AtLeastOnce));
        }
        assert_eq!(pumped(&session, 1, &mut writer(2)), ["1:a", "2:b"]);
        session.acknowledge(1, Ack::Puback, 1, 0).expect("the owner");
        let journal = Arc::clone(&session.queues.journal);
        let keys =
            |ops: Vec<crate::store::Op>| ops.iter().map(crate::store::Op::len).sum::<usize>();
        assert_eq!(keys(journal.write_all()), 3 * 2 + 2);
        session.end();
        assert_eq!(keys(journal.write_all()), 2 * 2);
        assert_eq!(session.queues.bytes.load(Ordering::Relaxed), 0);
        assert_eq!(push(&session, outgoing("d", Qos::AtLeastOnce)), Pushed::NotKept);
        assert_eq!(keys(journal.write_all()), 0, "nothing is left of one that nobody took");
    }

    #[test]
    fn a_full_queue_drops_qos_0_first_and_then_its_client() {
        let session = session();
        for payload in ["a", "b", "c"] {
            push(&session, outgoing(payload, Qos::AtMostOnce));
        }
        push(&session, outgoing("d", Qos::AtLeastOnce));
        let full = Pushed::Dropped(Reason::QueueFull);
        assert_eq!(push(&session, outgoing("e", Qos::AtMostOnce)), full);
        assert_eq!(push(&session, outgoing("f", Qos::AtLeastOnce)), Pushed::QueuedFor(3));
        for payload in ["g", "h"] {
            assert_eq!(push(&session, outgoing(payload, Qos::AtLeastOnce)), Pushed::Queued);
        }
        assert_eq!(push(&session, outgoing("i", Qos::AtLeastOnce)), full);
        assert_eq!(session.word_to_end(1), None, "a burst is no reason");
        let stuck = QueueLimits { stuck_max: Duration::ZERO, ..LIMITS };
        session.push(outgoing("j", Qos::AtLeastOnce), stuck, None);
        assert_eq!(session.word_to_end(1), Some(Reason::QueueFull));
        assert_eq!(pumped(&session, 1, &mut writer(9)), ["1:d", "2:f", "3:g", "4:h"]);
    }

    #[test]
    fn all_queues_together_are_bounded_and_what_is_too_old_goes() {
        let session = session();
        push(&session, outgoing("x", Qos::AtLeastOnce));
        session.queues.bytes.fetch_add(997, Ordering::Relaxed);
        let full = Pushed::Dropped(Reason::QueueFull);
        session.state().owner = None;
        assert_eq!(push(&session, outgoing("y", Qos::AtLeastOnce)), full);
        let mut dropped = Vec::new();
        let late = Timestamp::from_millis(60_001);
        session.drop_old(late, Duration::from_secs(60), &mut |reason| dropped.push(reason));
        assert_eq!(dropped, [Reason::QueueAge]);
        assert_eq!(push(&session, outgoing("y", Qos::AtLeastOnce)), Pushed::Queued);
    }

    #[test]
    fn what_was_certainly_never_sent_goes_out_without_dup_after_a_restart() {
        let session = kept(true);
        let row = |packet_id, body| QueuedRow {
            body,
            at: Timestamp::default(),
            packet_id,
            qos: Qos::ExactlyOnce,
            retain: false,
            identifiers: Vec::new(),
        };
        for (turn, id, text) in [(4, 9, Some("a")), (5, 3, None), (6, 4, Some("c"))] {
            let found = text.map(|text| {
                (outgoing(text, Qos::ExactlyOnce).publish, Arc::new(Body::found(turn)))
            });
            session.restore(turn, row(id, text.map(|_| turn)), found, Some(6));
        }
        assert_eq!(pumped(&session, 1, &mut writer(5)), ["D9:a", "rel3", "4:c"]);
        push(&session, outgoing("d", Qos::AtLeastOnce));
        assert_eq!(pumped(&session, 1, &mut writer(5)), ["5:d"]);
    }
}
