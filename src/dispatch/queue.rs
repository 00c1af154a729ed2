//! The due order: which messages wait, and which is next.
//!
//! Pure, in memory, made anew by the opening scan. A message is in exactly one place: waiting for
//! its due time, ready on its channel, held back for its endpoint, behind another of its thread, or taken (an attempt or a command
//! has it). The most urgent ready message leaves first, among equals the one that has been due longest.
//!
//! Invariant: of a thread whose messages go out in order only the first is timed, ready or taken by an
//! attempt, and it is as urgent as the most urgent behind it. So nobody hears that it is over, and
//! then that it fires.
//!
//! A call looks at no more than [`AT_ONCE`] messages, and hands out no more work than it is allowed:
//! what is left is there at the next call, behind whatever more urgent has come meanwhile.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::collapse::{self, Thread, Turn};
use super::fallback::{Clock, Leg};
use super::lane::{Lane, Standing};
use super::peer::{Peer, PeerNews, PeerStanding, Peers, Trouble};
use crate::clock::Timestamp;
use crate::model::{Channel, Message, MessageId, Severity};
use crate::notify::FallbackAfter;

/// What the queue knows of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) id: MessageId,
    pub(super) channel: Channel,
    pub(super) severity: Severity,
    pub(super) created_at: Timestamp,
    pub(super) due_at: Timestamp,
    pub(super) expires_at: Timestamp,
    /// The lane whose fault it is that it waits: another is better, and when that lane opens again
    /// the message is due at once.
    pub(super) failed_on: Option<usize>,
    /// Where it goes.
    pub(super) peer: Peer,
    /// The lanes that have refused it: not asked again before then.
    pub(super) refused_by: LaneSet,
    pub(super) refused_until: Timestamp,
    /// The lanes that are done with it: never asked again.
    pub(super) done_by: LaneSet,
    /// Its thread and its place there.
    thread: Option<(Thread, Turn)>,
    /// It goes out after those before it in its thread.
    in_order: bool,
    /// It may be put together with others of its thread that say the same.
    may_join: bool,
    /// What it says, where it tells of several alerts.
    says: Option<u64>,
    /// Its text says since when.
    is_dated: bool,
    /// Until then it goes out as it is: what its thread holds has just been put together in it.
    pub(super) decided_until: Timestamp,
    /// About how many bytes its row takes.
    pub(super) bytes: u32,
    /// Its time without success.
    pub(super) clock: Clock,
    /// When that is looked at next: at its end, or later where there was no reason to go on then.
    fallback_at: Option<Timestamp>,
    /// Attempts have been made.
    pub(super) was_tried: bool,
}

impl Waiting {
    pub(super) fn of(message: &Message) -> Self {
        Self {
            id: message.id,
            channel: message.target.channel,
            severity: message.severity,
            created_at: message.created_at,
            due_at: message.due_at,
            expires_at: message.expires_at,
            failed_on: None,
            peer: Peer::of(&message.target),
            refused_by: LaneSet::default(),
            refused_until: Timestamp::default(),
            done_by: LaneSet::default(),
            thread: collapse::place(message),
            in_order: collapse::is_in_order(message),
            may_join: collapse::may_join(message),
            says: collapse::says(message),
            is_dated: message.left_out.is_some(),
            decided_until: Timestamp::default(),
            bytes: u32::try_from(message.size()).unwrap_or(u32::MAX),
            clock: Clock::of(message),
            fallback_at: None,
            was_tried: message.attempt_count > 0,
        }
    }

    fn order(&self) -> Order {
        (Reverse(self.severity), self.due_at, self.id)
    }

    /// Takes over what is known of the lanes that had it before.
    pub(super) fn goes_on_from(&mut self, known: &Self) {
        self.failed_on = known.failed_on;
        self.done_by = known.done_by;
        self.refused_by = known.refused_by;
        self.refused_until = known.refused_until;
    }

    /// Whether this lane may be offered the message now.
    pub(super) fn may_go_to(&self, lane: usize, now: Timestamp) -> bool {
        !self.done_by.has(lane) && (now >= self.refused_until || !self.refused_by.has(lane))
    }
}

/// Some of the lanes. One beyond the 64th is never in it: it is asked once more, no harm done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LaneSet(u64);

impl LaneSet {
    pub(super) fn insert(&mut self, lane: usize) {
        self.0 |= Self::bit(lane);
    }

    pub(super) fn remove(&mut self, lane: usize) {
        self.0 &= !Self::bit(lane);
    }

    pub(super) fn has(self, lane: usize) -> bool {
        self.0 & Self::bit(lane) != 0
    }

    fn bit(lane: usize) -> u64 {
        u32::try_from(lane).ok().and_then(|lane| 1_u64.checked_shl(lane)).unwrap_or(0)
    }
}

/// How a waiting message stands with the providers of its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prospect {
    /// One of them may take it, now or later.
    Open,
    /// Each is stopped or will not take it: until an operator mends something it leaves by another
    /// channel or not at all.
    Stopped,
    /// Each has refused it, and would take others.
    Refused,
    /// Each is done with it for good.
    Done,
}

/// See [`Prospect`].
pub(super) fn prospect(
    waiting: &Waiting,
    route: &[usize],
    lanes: &[Lane],
    now: Timestamp,
) -> Prospect {
    let mut worst = if route.is_empty() { Prospect::Open } else { Prospect::Done };
    for index in route {
        let is_stopped = lanes.get(*index).is_some_and(Lane::is_stopped);
        if waiting.done_by.has(*index) {
        } else if is_stopped {
            worst = Prospect::Stopped;
        } else if waiting.may_go_to(*index, now) {
            return Prospect::Open;
        } else if worst == Prospect::Done {
            worst = Prospect::Refused;
        }
    }
    worst
}

type Order = (Reverse<Severity>, Timestamp, MessageId);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Behind,
    Timed,
    Ready,
    /// Due, and its endpoint has no place or is left alone.
    Parked,
    Taken,
}

/// The messages that wait for an endpoint.
#[derive(Debug, Default)]
struct Parked {
    messages: BTreeSet<Order>,
    /// When they are looked at again: see `wakes`.
    wake_at: Timestamp,
}

/// The messages that have not ended.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Ids begin with their alert's time, so the first one is the oldest.
    entries: BTreeMap<MessageId, (Waiting, Place)>,
    timed: BTreeSet<(Timestamp, MessageId)>,
    expiries: BTreeSet<(Timestamp, MessageId)>,
    ready: BTreeMap<Channel, BTreeSet<Order>>,
    parked: HashMap<(Channel, Peer), Parked>,
    parked_count: BTreeMap<Channel, usize>,
    /// When the parked ones of an endpoint are looked at again, at the latest.
    wakes: BTreeSet<(Timestamp, Channel, Peer)>,
    pub(super) peers: Peers,
    /// Those of each thread in their order, also the ones that are taken. One set for all: most
    /// threads have one message, and a set for each takes half a kilobyte.
    threads: BTreeSet<(Thread, Turn, MessageId)>,
    /// Of all rows together.
    bytes: u64,
    /// When each one's time without success is looked at: those with another channel, whose own may
    /// close before that, and those without. The taken ones too.
    going_on: BTreeMap<Channel, BTreeSet<(Timestamp, MessageId)>>,
    on_last: BTreeSet<(Timestamp, MessageId)>,
    /// What waited so long is put together; zero for never.
    collapse_after: Duration,
    fallback_after: FallbackAfter,
}

/// What may happen now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Picked {
    /// Start these attempts: message, lane.
    pub(super) start: Vec<(MessageId, usize)>,
    /// Put these together first, those of each channel at once.
    pub(super) collapse: Vec<(Channel, Vec<Together>)>,
    /// No lane serves their channel.
    pub(super) homeless: Vec<MessageId>,
    /// Every lane of their channel is done with them.
    pub(super) unwanted: Vec<MessageId>,
    /// When to look again, at the latest.
    pub(super) wake_at: Option<Timestamp>,
}

/// A message that its channel has not sent in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overdue {
    pub(super) id: MessageId,
    /// Its channel is closed: it goes on whenever its time ends.
    pub(super) at_once: bool,
}

/// Messages that are taken to be put together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Together {
    /// Oldest first; the newest of the thread is always there.
    pub(super) ids: Vec<MessageId>,
    /// There are others between the last two, or after them, which did not fit into one operation.
    pub(super) more: bool,
}

/// So many messages at most are put together in one operation.
const TOGETHER_MAX: usize = 1000;

/// So many messages at most become due, or are found to have expired, in one call: some 20 ms.
pub(super) const AT_ONCE: usize = 20_000;

/// What one call may hand out besides attempts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room<'a> {
    /// Messages of a channel that may be put together.
    pub(super) together: usize,
    /// Channels on which some are being put together: not these.
    pub(super) busy: &'a BTreeSet<Channel>,
    /// Messages without a provider that may end.
    pub(super) homeless: usize,
}

/// Endpoints in trouble that are shown to people.
const TROUBLES_SHOWN: usize = 10;

/// What is held back for an endpoint is looked at again after so long, should nothing else happen.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How many messages that wait for a busy lane are passed over in search of one that need not.
const LOOK_AHEAD: usize = 32;

impl Queue {
    pub(super) fn new(collapse_after: Duration, peers: Peers) -> Self {
        Self { collapse_after, peers, ..Self::default() }
    }

    /// The same, with another time without success than the usual.
    pub(super) fn falling_back(self, fallback_after: FallbackAfter) -> Self {
        Self { fallback_after, ..self }
    }

    pub(super) fn get(&self, id: MessageId) -> Option<Waiting> {
        self.entries.get(&id).map(|(waiting, _)| *waiting)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// About how many bytes their rows take.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the message of the oldest alert entered the outbox.
    pub(super) fn oldest_at(&self) -> Option<Timestamp> {
        self.entries.first_key_value().map(|(_, (waiting, _))| waiting.created_at)
    }

    pub(super) fn ready_on(&self, channel: Channel) -> usize {
        self.ready.get(&channel).map_or(0, BTreeSet::len)
            + self.parked_count.get(&channel).copied().unwrap_or(0)
    }

    /// How many are held back for an endpoint.
    fn parked_for(&self, channel: Channel, peer: Peer) -> usize {
        self.parked.get(&(channel, peer)).map_or(0, |parked| parked.messages.len())
    }

    /// The endpoints of a channel that are left alone, those with the most messages first.
    pub(super) fn troubles(&self, channels: &[Channel], now: Timestamp) -> Vec<(Trouble, usize)> {
        let count = |peer| channels.iter().map(|channel| self.parked_for(*channel, peer)).sum();
        let mut troubles: Vec<(&Trouble, usize)> = self
            .peers
            .troubles(now)
            .map(|(peer, trouble)| (trouble, count(peer)))
            .filter(|(_, waiting)| *waiting > 0)
            .collect();
        troubles.sort_by_key(|(trouble, waiting)| (Reverse(*waiting), Arc::clone(&trouble.name)));
        troubles.truncate(TROUBLES_SHOWN);
        troubles.into_iter().map(|(trouble, waiting)| (trouble.clone(), waiting)).collect()
    }

    /// A call for this message has ended: what it says of its endpoint. Returns what is worth a line
    /// in the log.
    pub(super) fn call_ended(
        &mut self,
        id: MessageId,
        news: PeerNews,
        now: Timestamp,
    ) -> Option<(bool, Trouble)> {
        let (waiting, _) = self.entries.get(&id)?;
        let (channel, peer) = (waiting.channel, waiting.peer);
        let said = self.peers.finish(peer, news, now);
        self.unpark(channel, peer, now);
        said
    }

    /// Holds a ready message back until its endpoint is free.
    fn park(&mut self, id: MessageId, wake_at: Timestamp) {
        let Some((waiting, place)) = self.entries.get_mut(&id) else { return };
        *place = Place::Parked;
        let (order, channel, peer) = (waiting.order(), waiting.channel, waiting.peer);
        self.timed.remove(&(waiting.due_at, id));
        if let Some(ready) = self.ready.get_mut(&channel) {
            ready.remove(&order);
        }
        let parked = self.parked.entry((channel, peer)).or_default();
        if parked.messages.insert(order) {
            *self.parked_count.entry(channel).or_default() += 1;
        }
        if parked.messages.len() == 1 || wake_at < parked.wake_at {
            self.wakes.remove(&(parked.wake_at, channel, peer));
            parked.wake_at = wake_at;
            self.wakes.insert((wake_at, channel, peer));
        }
    }

    /// Takes a message out of those held back.
    fn leave_parked(&mut self, waiting: &Waiting) {
        let key = (waiting.channel, waiting.peer);
        let Some(parked) = self.parked.get_mut(&key) else { return };
        if parked.messages.remove(&waiting.order())
            && let Some(count) = self.parked_count.get_mut(&waiting.channel)
        {
            *count = count.saturating_sub(1);
        }
        if parked.messages.is_empty() {
            self.wakes.remove(&(parked.wake_at, key.0, key.1));
            self.parked.remove(&key);
        }
    }

    /// Lets as many go on as their endpoint has places; the others are looked at again a second
    /// later, whatever happens to these. Its probe is the least urgent.
    fn unpark(&mut self, channel: Channel, peer: Peer, now: Timestamp) {
        let Some(parked) = self.parked.get_mut(&(channel, peer)) else { return };
        let standing = self.peers.standing(peer, channel, now);
        let ids: Vec<MessageId> = match standing {
            PeerStanding::Free(places) => {
                parked.messages.iter().take(places.min(AT_ONCE)).map(|(_, _, id)| *id).collect()
            }
            PeerStanding::Probe => {
                parked.messages.last().map(|(_, _, id)| *id).into_iter().collect()
            }
            PeerStanding::Busy | PeerStanding::Down(_) => Vec::new(),
        };
        let wake_at = match standing {
            PeerStanding::Down(until) => until,
            _ => now.plus(LOOK_AGAIN),
        };
        self.wakes.remove(&(parked.wake_at, channel, peer));
        parked.wake_at = wake_at;
        self.wakes.insert((wake_at, channel, peer));
        for id in ids {
            let Some((waiting, place)) = self.entries.get_mut(&id) else { continue };
            *place = Place::Ready;
            let waiting = *waiting;
            self.ready.entry(channel).or_default().insert(waiting.order());
            self.leave_parked(&waiting);
        }
    }

    /// Whether an attempt or a command has it. `None`: not here.
    pub(super) fn is_taken(&self, id: MessageId) -> Option<bool> {
        self.entries.get(&id).map(|(_, place)| *place == Place::Taken)
    }

    /// Puts a message in, or one that was taken back.
    pub(super) fn put(&mut self, mut waiting: Waiting) {
        let id = waiting.id;
        let is_new = !self.entries.contains_key(&id);
        self.remove(id);
        self.bytes += u64::from(waiting.bytes);
        self.expiries.insert((waiting.expires_at, id));
        self.set_clock(&mut waiting, None);
        let Some((thread, turn)) = waiting.thread else {
            self.entries.insert(id, (waiting, Place::Behind));
            return self.release(id);
        };
        let first = self.members(thread).map(|(_, id)| id).next();
        let next = self.members_from(thread, (turn, id)).next();
        let next = next.and_then(|(_, id)| self.entries.get(&id));
        if let Some((next, _)) = next.filter(|_| waiting.in_order) {
            waiting.severity = waiting.severity.max(next.severity);
        }
        self.threads.insert((thread, turn, id));
        let is_first = self.members(thread).next() == Some((turn, id));
        self.entries.insert(id, (waiting, Place::Behind));
        if is_first || !waiting.in_order {
            self.release(id);
        }
        match first {
            Some(second) if is_first => self.hold(second),
            // Something new is a reason to try again at once what has failed before.
            Some(first) if is_new && waiting.in_order => self.hasten(first, waiting.due_at),
            _ => {}
        }
        self.urge(&waiting);
    }

    /// Forgets a message.
    pub(super) fn remove(&mut self, id: MessageId) {
        let Some((waiting, place)) = self.entries.remove(&id) else {
            return;
        };
        self.bytes -= u64::from(waiting.bytes);
        self.leave(&waiting, place);
        if let Some(at) = waiting.fallback_at
            && let Some(clocks) = self.clocks(&waiting)
        {
            clocks.remove(&(at, id));
        }
        let Some((thread, turn)) = waiting.thread else { return };
        self.threads.remove(&(thread, turn, id));
        let next = self.members(thread).next();
        if let Some((_, next)) = next {
            self.release(next);
        }
    }

    /// Those of a thread, in their order.
    fn members(&self, thread: Thread) -> impl DoubleEndedIterator<Item = (Turn, MessageId)> {
        self.members_from(thread, (collapse::FIRST_TURN, MessageId::new(uuid::Uuid::nil())))
    }

    /// Those of a thread from this one on.
    fn members_from(
        &self,
        thread: Thread,
        (turn, id): (Turn, MessageId),
    ) -> impl DoubleEndedIterator<Item = (Turn, MessageId)> {
        let last = (thread, collapse::LAST_TURN, MessageId::new(uuid::Uuid::max()));
        self.threads.range((thread, turn, id)..=last).map(|(_, turn, id)| (*turn, *id))
    }

    fn clocks(&mut self, waiting: &Waiting) -> Option<&mut BTreeSet<(Timestamp, MessageId)>> {
        match waiting.clock.leg? {
            Leg::Next => Some(self.going_on.entry(waiting.channel).or_default()),
            Leg::Last => Some(&mut self.on_last),
        }
    }

    /// Has its time without success looked at then; where `None`, when it ends.
    fn set_clock(&mut self, waiting: &mut Waiting, at: Option<Timestamp>) {
        let at = at.or_else(|| waiting.clock.ends_at(&self.fallback_after));
        let before = std::mem::replace(&mut waiting.fallback_at, at);
        let id = waiting.id;
        let Some(clocks) = self.clocks(waiting) else { return };
        before.map(|at| clocks.remove(&(at, id)));
        at.map(|at| clocks.insert((at, id)));
    }

    /// Has the message's time without success looked at then.
    pub(super) fn look_at(&mut self, id: MessageId, at: Timestamp) {
        if self.get(id).is_some_and(|waiting| waiting.fallback_at.is_some()) {
            self.look_again(id, at);
        }
    }

    /// The same for one whose clock was taken out.
    pub(super) fn look_again(&mut self, id: MessageId, at: Timestamp) {
        let Some((mut waiting, _)) = self.entries.get(&id).copied() else { return };
        self.set_clock(&mut waiting, Some(at));
        if let Some((known, _)) = self.entries.get_mut(&id) {
            known.fallback_at = waiting.fallback_at;
        }
    }

    /// Takes the message out of those whose time without success runs, until it is put in again.
    pub(super) fn stop_clock(&mut self, id: MessageId) {
        let Some((waiting, _)) = self.entries.get_mut(&id) else { return };
        let Some(at) = waiting.fallback_at.take() else { return };
        let waiting = *waiting;
        if let Some(clocks) = self.clocks(&waiting) {
            clocks.remove(&(at, id));
        }
    }

    /// Messages whose time without success is to be looked at, and those that wait on one of the
    /// channels in `closed` and have another. At most `most`; nothing is changed.
    pub(super) fn overdue(&self, now: Timestamp, closed: &[Channel], most: usize) -> Vec<Overdue> {
        let mut found = Vec::new();
        for (channel, clocks) in &self.going_on {
            let is_closed = closed.contains(channel);
            for (at, id) in clocks {
                if found.len() >= most || !(*at <= now || is_closed) {
                    break;
                }
                // A closed channel's probe is waited for, but not for longer than its time.
                let is_taken = self.is_taken(*id) == Some(true);
                if *at <= now || !is_taken {
                    let ends_at = self
                        .entries
                        .get(id)
                        .and_then(|(waiting, _)| waiting.clock.ends_at(&self.fallback_after));
                    let at_once = ends_at.is_some_and(|ends_at| ends_at > now);
                    found.push(Overdue { id: *id, at_once });
                }
            }
        }
        let ended = self.on_last.iter().take_while(|(at, _)| *at <= now);
        let ended = ended.take(most.saturating_sub(found.len()));
        found.extend(ended.map(|(_, id)| Overdue { id: *id, at_once: false }));
        found
    }

    /// When somebody's time without success is to be looked at next.
    pub(super) fn next_clock(&self) -> Option<Timestamp> {
        let first = |clocks: &BTreeSet<(Timestamp, MessageId)>| clocks.first().map(|(at, _)| *at);
        self.going_on.values().chain([&self.on_last]).filter_map(first).min()
    }

    /// What is wrong with the endpoint that the message goes to.
    pub(super) fn trouble(&self, waiting: &Waiting, now: Timestamp) -> Option<&Trouble> {
        self.peers.trouble_of(waiting.peer, now)
    }

    /// The first of the message's thread, which it goes out behind.
    pub(super) fn head(&self, waiting: &Waiting) -> Option<Waiting> {
        let (thread, _) = waiting.thread.filter(|_| waiting.in_order)?;
        let (_, head) = self.members(thread).next()?;
        self.get(head)
    }

    /// Lets one that is behind others wait for its due time.
    fn release(&mut self, id: MessageId) {
        if let Some((waiting, place)) = self.entries.get_mut(&id)
            && *place == Place::Behind
        {
            *place = Place::Timed;
            self.timed.insert((waiting.due_at, id));
        }
    }

    /// Another is before it in its thread.
    fn hold(&mut self, id: MessageId) {
        let Some((waiting, place)) = self.entries.get_mut(&id) else { return };
        if !waiting.in_order || *place == Place::Taken {
            return;
        }
        let (waiting, place) = (*waiting, std::mem::replace(place, Place::Behind));
        self.leave(&waiting, place);
        self.expiries.insert((waiting.expires_at, id));
    }

    /// Lets it be due no later than then.
    fn hasten(&mut self, id: MessageId, due_at: Timestamp) {
        if let Some((waiting, Place::Timed)) = self.entries.get_mut(&id)
            && due_at < waiting.due_at
        {
            self.timed.remove(&(std::mem::replace(&mut waiting.due_at, due_at), id));
            self.timed.insert((due_at, id));
        }
    }

    /// Makes those before it in its thread as urgent as it is.
    fn urge(&mut self, waiting: &Waiting) {
        let Some((thread, turn)) = waiting.thread.filter(|_| waiting.in_order) else { return };
        let first = (thread, collapse::FIRST_TURN, MessageId::new(uuid::Uuid::nil()));
        for (_, _, id) in self.threads.range(first..(thread, turn, waiting.id)).rev() {
            let Some((before, place)) = self.entries.get_mut(id) else { continue };
            if before.severity >= waiting.severity {
                // So are those before it.
                break;
            }
            let held = match place {
                Place::Ready => self.ready.get_mut(&before.channel),
                Place::Parked => self
                    .parked
                    .get_mut(&(before.channel, before.peer))
                    .map(|parked| &mut parked.messages),
                Place::Behind | Place::Timed | Place::Taken => None,
            };
            let order = before.order();
            before.severity = waiting.severity;
            if let Some(held) = held {
                held.remove(&order);
                held.insert(before.order());
            }
        }
    }

    /// The messages of the thread of this one, whose turn it is, where they have waited so long that
    /// they are to be put together; `room` of them at most, and never one alone of several.
    fn together(&self, id: MessageId, room: usize, now: Timestamp) -> Option<Together> {
        let (waiting, _) = self.entries.get(&id)?;
        let (thread, turn) = waiting.thread.filter(|_| waiting.may_join)?;
        if self.collapse_after.is_zero() || now < waiting.decided_until {
            return None;
        }
        let joins = |(_, id): &(Turn, MessageId)| {
            self.entries.get(id).is_some_and(|(other, place)| {
                other.may_join && other.says == waiting.says && *place != Place::Taken
            })
        };
        // A thread may hold the whole outbox: no more of it is looked at than is taken.
        let most = room.clamp(2, TOGETHER_MAX);
        let mut ids: Vec<MessageId> = match waiting.says {
            // Of those that tell of several alerts only what follows each other and says the same.
            Some(_) => {
                let members = self.members_from(thread, (turn, id)).take_while(joins);
                members.map(|(_, id)| id).take(most + 1).collect()
            }
            None => {
                let members = self.members(thread).filter(joins);
                members.map(|(_, id)| id).take(most + 1).collect()
            }
        };
        let (oldest, _) = self.entries.get(ids.first()?)?;
        let is_as_it_is = oldest.is_dated || waiting.says.is_some();
        if now.since(oldest.created_at) < self.collapse_after || (ids.len() == 1 && is_as_it_is) {
            return None;
        }
        let more = ids.len() > most;
        ids.truncate(most);
        if more && waiting.says.is_none() {
            // The newest says how it stands, whatever is between it and these.
            ids.pop();
            ids.extend(self.members(thread).rev().find(joins).map(|(_, id)| id));
        }
        Some(Together { ids, more })
    }

    /// Marks a message as taken, so that nothing else happens to it until it is put back.
    pub(super) fn take(&mut self, id: MessageId) {
        let Some((waiting, place)) = self.entries.get_mut(&id) else {
            return;
        };
        let (waiting, place) = (*waiting, std::mem::replace(place, Place::Taken));
        self.leave(&waiting, place);
    }

    fn leave(&mut self, waiting: &Waiting, place: Place) {
        self.expiries.remove(&(waiting.expires_at, waiting.id));
        match place {
            Place::Timed => {
                self.timed.remove(&(waiting.due_at, waiting.id));
            }
            Place::Ready => {
                if let Some(ready) = self.ready.get_mut(&waiting.channel) {
                    ready.remove(&waiting.order());
                }
            }
            Place::Parked => self.leave_parked(waiting),
            Place::Behind | Place::Taken => {}
        }
    }

    /// Makes what waits for `lane` due now: the lane is open again.
    pub(super) fn lane_opened(&mut self, lane: usize, now: Timestamp) {
        for (waiting, _) in self.entries.values_mut() {
            waiting.refused_by.remove(lane);
        }
        let waiting: Vec<Waiting> = self
            .timed
            .iter()
            .filter_map(|(_, id)| self.entries.get(id).map(|(waiting, _)| *waiting))
            .filter(|waiting| waiting.failed_on == Some(lane))
            .collect();
        for mut waiting in waiting {
            waiting.due_at = now;
            waiting.failed_on = None;
            self.put(waiting);
        }
    }

    /// Takes out what has outlived its expiry, at most [`AT_ONCE`].
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<MessageId> {
        let expired: Vec<MessageId> = self
            .expiries
            .iter()
            .take_while(|(expires_at, _)| *expires_at <= now)
            .take(AT_ONCE)
            .map(|(_, id)| *id)
            .collect();
        for id in &expired {
            self.take(*id);
        }
        expired
    }

    /// Takes out what may start now, and takes the lanes' places and tokens for it; beside that no
    /// more than there is room for.
    pub(super) fn pick(
        &mut self,
        lanes: &mut [Lane],
        routes: &Routes,
        room: Room<'_>,
        now: Timestamp,
    ) -> Picked {
        for _ in 0..AT_ONCE {
            let Some((due_at, id)) = self.timed.first().copied() else { break };
            if due_at > now {
                break;
            }
            self.timed.pop_first();
            if let Some((waiting, place)) = self.entries.get_mut(&id) {
                *place = Place::Ready;
                self.ready.entry(waiting.channel).or_default().insert(waiting.order());
            }
        }
        while let Some((wake_at, channel, peer)) = self.wakes.first().copied()
            && wake_at <= now
        {
            self.wakes.pop_first();
            self.unpark(channel, peer, now);
        }
        let mut picked = Picked::default();
        let channels: Vec<Channel> = self.ready.keys().copied().collect();
        for channel in channels {
            self.pick_on(channel, lanes, routes, room, now, &mut picked);
        }
        // What is due or too late already and did not fit in here has its turn at the next call.
        let timers = [self.timed.first(), self.expiries.first()];
        let timers = timers.into_iter().flatten().map(|(at, _)| *at);
        let timers = timers.chain(self.wakes.first().map(|(at, ..)| *at));
        picked.wake_at = picked.wake_at.into_iter().chain(timers).min();
        picked
    }

    fn pick_on(
        &mut self,
        channel: Channel,
        lanes: &mut [Lane],
        routes: &Routes,
        room: Room<'_>,
        now: Timestamp,
        picked: &mut Picked,
    ) {
        let route = routes.of(channel);
        let is_busy = room.busy.contains(&channel);
        let mut together = Vec::new();
        let mut parks = 0;
        let mut room_left = if is_busy { 0 } else { room.together };
        loop {
            let ready = self.ready.entry(channel).or_default();
            let mut chosen = None;
            for (_, _, id) in ready.iter().take(LOOK_AHEAD) {
                let Some((waiting, _)) = self.entries.get(id) else {
                    continue;
                };
                if route.is_empty() {
                    chosen = Some((*id, None));
                    break;
                }
                match choose(route, lanes, waiting, now) {
                    Choice::Lane(lane) => {
                        chosen = Some((*id, Some(lane)));
                        break;
                    }
                    Choice::Later(wake_at) => {
                        picked.wake_at = [picked.wake_at, wake_at].into_iter().flatten().min();
                    }
                    Choice::Nobody => {
                        chosen = Some((*id, None));
                        break;
                    }
                }
            }
            let Some((mut id, lane)) = chosen else { break };
            if lane.is_none() && picked.homeless.len() + picked.unwanted.len() >= room.homeless {
                break;
            }
            if let Some(index) = lane
                && lanes.get(index).is_some_and(|lane| lane.is_probing(now))
            {
                id = self.probe(channel, index, lanes, route, now).unwrap_or(id);
            }
            if let Some(index) = lane
                && let Some(wake_at) = self.held_back(id, lanes.get(index), now)
            {
                parks += 1;
                if parks > AT_ONCE {
                    picked.wake_at = Some(now);
                    break;
                }
                self.park(id, wake_at);
                continue;
            }
            if lane.is_some()
                && let Some(joined) = self.together(id, room_left, now)
            {
                // It is its turn, so nothing less urgent goes before it. What is more urgent and
                // comes now is before it at the next call.
                if room_left == 0 {
                    break;
                }
                room_left = room_left.saturating_sub(joined.ids.len());
                joined.ids.iter().for_each(|id| self.take(*id));
                together.push(joined);
                continue;
            }
            self.take(id);
            match lane {
                Some(index) => {
                    if let Some(lane) = lanes.get_mut(index) {
                        lane.start();
                    }
                    if let Some((waiting, _)) = self.entries.get(&id) {
                        self.peers.start(waiting.peer, waiting.channel);
                    }
                    picked.start.push((id, index));
                }
                None if route.is_empty() => picked.homeless.push(id),
                None => picked.unwanted.push(id),
            }
        }
        if !together.is_empty() {
            picked.collapse.push((channel, together));
        }
    }

    /// When to look again at a message whose endpoint has no place for it, or is left alone. Those
    /// that failed when last heard of have half of the lane at most.
    fn held_back(&self, id: MessageId, lane: Option<&Lane>, now: Timestamp) -> Option<Timestamp> {
        let (waiting, _) = self.entries.get(&id)?;
        let half = lane.map_or(1, |lane| (lane.settings.concurrency / 2).max(1));
        match self.peers.standing(waiting.peer, waiting.channel, now) {
            PeerStanding::Down(until) => Some(until),
            PeerStanding::Busy => Some(now.plus(LOOK_AGAIN)),
            PeerStanding::Free(_) | PeerStanding::Probe => {
                let one_too_many = self.peers.is_one_too_many(waiting.peer, half);
                one_too_many.then(|| now.plus(LOOK_AGAIN))
            }
        }
    }

    /// Which message a closed lane is tried with: one that is not among those that it has just
    /// refused, and the least urgent of them. What waits only because this lane failed may be it
    /// too. `None`: no other one is there.
    fn probe(
        &self,
        channel: Channel,
        lane: usize,
        lanes: &mut [Lane],
        route: &[usize],
        now: Timestamp,
    ) -> Option<MessageId> {
        let ready = self.ready.get(&channel)?.iter().rev().take(LOOK_AHEAD);
        let timed = self.timed.iter().take(LOOK_AHEAD).map(|(_, id)| *id).filter(|id| {
            self.entries.get(id).is_some_and(|(waiting, _)| {
                waiting.channel == channel && waiting.failed_on == Some(lane)
            })
        });
        let mut suspect = None;
        for id in ready.map(|(_, _, id)| *id).chain(timed) {
            let Some((waiting, _)) = self.entries.get(&id) else { continue };
            if choose(route, lanes, waiting, now) != Choice::Lane(lane) {
                continue;
            }
            if !lanes.get(lane).is_some_and(|lane| lane.has_refused(waiting.peer)) {
                return Some(id);
            }
            suspect = suspect.or(Some(id));
        }
        suspect
    }
}

/// Where a message may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    /// To this lane, now.
    Lane(usize),
    /// Nowhere now; look again then, or when a call ends.
    Later(Option<Timestamp>),
    /// Nowhere any more.
    Nobody,
}

/// The lane for a message: the first of the route that is not closed and has not refused it,
/// another than the one it has just failed on if there is one. A lane that is merely busy is waited
/// for: failover is for outages, not for sharing load.
fn choose(route: &[usize], lanes: &mut [Lane], waiting: &Waiting, now: Timestamp) -> Choice {
    let mut wake_at: Option<Timestamp> = None;
    let mut later = |at: Option<Timestamp>| {
        wake_at = [wake_at, at].into_iter().flatten().min();
    };
    let failed_on = waiting.failed_on;
    let others = route.iter().filter(|index| Some(**index) != failed_on);
    let last = route.iter().filter(|index| Some(**index) == failed_on);
    let mut is_done = true;
    for index in others.chain(last) {
        if waiting.done_by.has(*index) {
            continue;
        }
        is_done = false;
        let Some(lane) = lanes.get_mut(*index) else { continue };
        if !waiting.may_go_to(*index, now) {
            later(Some(waiting.refused_until));
            continue;
        }
        match lane.standing(now) {
            Standing::Free => return Choice::Lane(*index),
            Standing::Busy(at) => {
                later(at);
                return Choice::Later(wake_at);
            }
            Standing::Down(at) => later(at),
        }
    }
    if is_done { Choice::Nobody } else { Choice::Later(wake_at) }
}

/// Which lanes serve a channel, in failover order.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes(BTreeMap<Channel, Vec<usize>>);

impl Routes {
    pub(super) fn new(routes: BTreeMap<Channel, Vec<usize>>) -> Self {
        Self(routes)
    }

    pub(super) fn of(&self, channel: Channel) -> &[usize] {
        self.0.get(&channel).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::collapse::tests::{at, clear, message, raise};
    use crate::model::{AlertRef, AlertState, Tells};

    fn queue(messages: &[Message]) -> Queue {
        let mut queue = Queue::new(
            Duration::from_secs(120),
            Peers::new(Default::default(), Default::default()),
        );
        messages.iter().for_each(|message| queue.put(Waiting::of(message)));
        queue
    }

    impl Queue {
        fn take_together(&mut self, id: MessageId, now: Timestamp) -> Option<Together> {
            let together = self.together(id, TOGETHER_MAX, now)?;
            together.ids.iter().for_each(|id| self.take(*id));
            Some(together)
        }
    }

    /// A lane for SMS that takes so many at once.
    fn lane(concurrency: usize) -> (Vec<Lane>, Routes) {
        let settings = crate::dispatch::lane::LaneSettings {
            name: "one".into(),
            kind: "test",
            channels: vec![Channel::Sms],
            per_second: None,
            concurrency,
            breaker: crate::dispatch::BreakerConfig::default(),
            refusals: 3,
        };
        (vec![Lane::new(settings, at(0))], Routes::new(BTreeMap::from([(Channel::Sms, vec![0])])))
    }

    /// The nth instance's first message.
    fn of_instance(number: i64, minute: i64) -> Message {
        let mut one = raise(number, minute);
        one.alert = one.alert.map(|alert| AlertRef { key: number.to_string().into(), ..alert });
        one
    }

    fn pick(queue: &mut Queue, (lanes, routes): &mut (Vec<Lane>, Routes), room: usize) -> Picked {
        let busy = BTreeSet::new();
        let room = Room { together: room, busy: &busy, homeless: room };
        queue.pick(lanes, routes, room, at(240))
    }

    /// To another recipient.
    fn to(number: &str, message: Message) -> Message {
        let address = crate::model::Address::Phone(number.parse().expect("a number"));
        let target = crate::model::Target { channel: Channel::Sms, address };
        Message { target, ..message }
    }

    #[test]
    fn what_stopped_a_lane_and_what_is_most_urgent_is_not_its_probe() {
        let culprit = of_instance(1, 239);
        let urgent =
            Message { severity: Severity::Critical, ..to("+4915550100002", of_instance(2, 239)) };
        let other = to("+4915550100003", of_instance(3, 239));
        let refused = super::super::lane::LaneNews::Refused {
            reason: crate::model::Reason::BadCredentials,
            detail: String::new(),
            sure: true,
            peer: Peer::of(&culprit.target),
            before: None,
        };
        for (waiting, probe) in [
            (vec![&culprit, &urgent, &other], &other),
            (vec![&culprit, &urgent], &urgent),
            (vec![&culprit], &culprit),
        ] {
            let waiting: Vec<Message> = waiting.into_iter().cloned().collect();
            let mut queue = queue(&waiting);
            let mut lane = lane(4);
            lane.0[0].finish(refused.clone(), at(0));
            assert_eq!(pick(&mut queue, &mut lane, 100).start, [(probe.id, 0)]);
        }
    }

    fn to_host(number: i64, host: &str) -> Message {
        let address = crate::model::Address::Url(format!("https://{host}/x").into());
        let target = crate::model::Target { channel: Channel::Sms, address };
        let target = crate::model::Target { channel: Channel::Webhook, ..target };
        Message { target, ..of_instance(number, 239) }
    }

    /// One hanging URL with 40 messages: a warning to another host waited for 49.7 s.
    #[test]
    fn a_host_that_hangs_has_its_few_places_and_the_others_theirs() {
        let hanging: Vec<Message> =
            (0..100).map(|number| to_host(number, "dead.example")).collect();
        let healthy = to_host(1000, "well.example");
        let mut queue = queue(&hanging);
        queue.put(Waiting { due_at: at(240), ..Waiting::of(&healthy) });
        let (lanes, _) = lane(4);
        let routes = Routes::new(BTreeMap::from([(Channel::Webhook, vec![0])]));
        let mut lane = (lanes, routes);
        let started: Vec<MessageId> =
            pick(&mut queue, &mut lane, 0).start.into_iter().map(|(id, _)| id).collect();
        assert_eq!(started.len(), 3);
        assert!(started.contains(&healthy.id));
        assert_eq!(queue.ready_on(Channel::Webhook), 98);
        // A place that is given back is for the next one.
        let first = started.into_iter().find(|id| *id != healthy.id).expect("two of them");
        queue.call_ended(first, PeerNews::Works, at(240));
        queue.remove(first);
        assert_eq!(pick(&mut queue, &mut lane, 0).start.len(), 1);
        // Whatever becomes of those held back, none stays behind.
        for message in &hanging {
            queue.remove(message.id);
        }
        assert_eq!(queue.ready_on(Channel::Webhook), 0);
        assert!(queue.parked.is_empty() && queue.wakes.is_empty());
    }

    #[test]
    fn an_endpoint_that_is_left_alone_is_seen_and_tried_with_the_least_urgent() {
        let urgent = Message { severity: Severity::Critical, ..to_host(1, "dead.example") };
        let messages = [urgent, to_host(2, "dead.example"), to_host(3, "dead.example")];
        let mut queue = queue(&messages);
        let peer = Peer::of(&messages[0].target);
        for _ in 0..5 {
            let (reason, detail) = (crate::model::Reason::NoAnswer, "no answer".to_owned());
            let name = "dead.example".into();
            let news = PeerNews::Failed { name, reason, detail, after: None };
            queue.peers.finish(peer, news, at(240));
        }
        let (lanes, _) = lane(4);
        let mut lane = (lanes, Routes::new(BTreeMap::from([(Channel::Webhook, vec![0])])));
        let picked = pick(&mut queue, &mut lane, 0);
        assert_eq!(picked.start, []);
        let wake_at = at(240).plus(Duration::from_secs(1));
        assert_eq!(picked.wake_at, Some(wake_at));
        let troubles = queue.troubles(&[Channel::Webhook], at(240));
        assert_eq!(
            troubles.iter().map(|(one, count)| (&*one.name, *count)).collect::<Vec<_>>(),
            [("dead.example", 3)]
        );
        let busy = BTreeSet::new();
        let room = Room { together: 0, busy: &busy, homeless: 0 };
        let picked = queue.pick(&mut lane.0, &lane.1, room, wake_at);
        assert_eq!(picked.start, [(messages[2].id, 0)]);
    }

    #[test]
    fn a_lane_that_refused_a_message_is_asked_again_later_and_one_that_is_done_never() {
        let one = of_instance(1, 239);
        let mut waiting = Waiting::of(&one);
        waiting.refused_by.insert(0);
        waiting.refused_until = at(241);
        let mut lane = lane(2);
        assert_eq!(choose(&[0], &mut lane.0, &waiting, at(240)), Choice::Later(Some(at(241))));
        assert_eq!(prospect(&waiting, &[0], &lane.0, at(240)), Prospect::Refused);
        assert_eq!(choose(&[0], &mut lane.0, &waiting, at(241)), Choice::Lane(0));
        assert_eq!(prospect(&waiting, &[0], &lane.0, at(241)), Prospect::Open);
        waiting.done_by.insert(0);
        assert_eq!(choose(&[0], &mut lane.0, &waiting, at(241)), Choice::Nobody);
        assert_eq!(prospect(&waiting, &[0], &lane.0, at(241)), Prospect::Done);
        let mut queue = queue(&[]);
        queue.put(waiting);
        assert_eq!(pick(&mut queue, &mut lane, 100).unwanted, [one.id]);
    }

    #[test]
    fn a_backlog_is_put_together_in_batches_that_a_fresh_critical_alert_goes_before() {
        let backlog: Vec<Message> = (0..500).map(|number| of_instance(number, 10)).collect();
        let mut queue = queue(&backlog);
        let mut lane = lane(2);
        let picked = pick(&mut queue, &mut lane, 100);
        let taken: usize =
            picked.collapse.iter().flat_map(|(_, all)| all).map(|one| one.ids.len()).sum();
        assert_eq!((picked.start.len(), taken), (0, 100));

        // While they are put together, no others are, and what is urgent and new goes out.
        let urgent = Message { severity: Severity::Critical, ..of_instance(1000, 239) };
        queue.put(Waiting::of(&urgent));
        let busy = BTreeSet::from([Channel::Sms]);
        let room = Room { together: 100, busy: &busy, homeless: 100 };
        let picked = queue.pick(&mut lane.0, &lane.1, room, at(240));
        assert_eq!((picked.start, picked.collapse), (vec![(urgent.id, 0)], vec![]));
    }

    #[test]
    fn a_thread_as_large_as_the_outbox_is_taken_in_parts_and_with_its_newest() {
        let thread: Vec<Message> = (0..300).map(|number| raise(number, 10 + number)).collect();
        let mut queue = queue(&thread);
        let picked = pick(&mut queue, &mut lane(2), 100);
        let [(Channel::Sms, threads)] = picked.collapse.as_slice() else { panic!("{picked:?}") };
        let [together] = threads.as_slice() else { panic!("{threads:?}") };
        assert!(together.more);
        assert_eq!(together.ids.len(), 100);
        assert_eq!(together.ids[..99], thread[..99].iter().map(|one| one.id).collect::<Vec<_>>());
        assert_eq!(together.ids.last(), Some(&thread[299].id));
    }

    #[test]
    fn what_has_no_provider_ends_in_batches() {
        let backlog: Vec<Message> = (0..500).map(|number| of_instance(number, 10)).collect();
        let mut queue = queue(&backlog);
        let picked = pick(&mut queue, &mut (Vec::new(), Routes::default()), 100);
        assert_eq!(picked.homeless.len(), 100);
    }

    #[test]
    fn what_is_due_or_expired_at_once_is_found_in_parts() {
        let mut queue = queue(&[]);
        let many = i64::try_from(AT_ONCE).expect("small") + 10;
        let one = raise(1, 10);
        for number in 0..many {
            let id = MessageId::new(uuid::Uuid::from_u128(u128::try_from(number).expect("small")));
            queue.put(Waiting { id, thread: None, ..Waiting::of(&one) });
        }
        let picked = queue.pick(
            &mut [],
            &Routes::new(BTreeMap::from([(Channel::Sms, vec![0])])),
            Room { together: 10, busy: &BTreeSet::new(), homeless: 10 },
            at(240),
        );
        assert_eq!((queue.ready_on(Channel::Sms), queue.timed.len()), (AT_ONCE, 10));
        assert_eq!(picked.wake_at, Some(one.due_at), "it looks again at once");
        let late = at(10 + 1440);
        assert_eq!(queue.take_expired(late).len(), AT_ONCE);
        assert_eq!(queue.take_expired(late).len(), 10);
    }

    fn due(queue: &Queue) -> Vec<MessageId> {
        queue.timed.iter().map(|(_, id)| *id).collect()
    }

    /// A first attempt fails; it is to be made again at this minute.
    fn fails(queue: &mut Queue, message: &Message, minute: i64) {
        queue.take(message.id);
        queue.put(Waiting { due_at: at(minute), ..Waiting::of(message) });
    }

    #[test]
    fn it_was_said_to_be_over_before_it_was_said_to_fire() {
        let (one, over, two) = (raise(1, 10), clear(1, 10, 20), raise(2, 30));
        let mut queue = queue(std::slice::from_ref(&one));
        fails(&mut queue, &one, 50);
        queue.put(Waiting::of(&two));
        queue.put(Waiting::of(&over));
        // What is new is a reason to try again; it fails again, and there is nothing new.
        assert_eq!(queue.timed.first(), Some(&(at(20), one.id)));
        assert_eq!(due(&queue), [one.id]);
        fails(&mut queue, &one, 60);
        assert_eq!(queue.timed.first(), Some(&(at(60), one.id)));
        assert_eq!(due(&queue), [one.id]);
        // Each goes when the one before has gone, in whatever way.
        queue.take(one.id);
        assert!(due(&queue).is_empty());
        queue.remove(one.id);
        assert_eq!(due(&queue), [over.id]);
        assert_eq!(queue.take_expired(at(1440 + 25)), [over.id]);
        queue.remove(over.id);
        assert_eq!(due(&queue), [two.id]);
        queue.remove(two.id);
        assert!(queue.threads.is_empty() && queue.timed.is_empty() && queue.expiries.is_empty());
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn one_that_is_put_in_later_may_be_an_earlier_one() {
        let (one, over) = (raise(1, 10), clear(1, 10, 20));
        let mut queue = queue(&[over.clone(), one.clone()]);
        assert_eq!(due(&queue), [one.id]);
        queue.remove(one.id);
        assert_eq!(due(&queue), [over.id]);
    }

    #[test]
    fn what_is_before_something_urgent_is_as_urgent() {
        let (one, over) = (raise(1, 10), clear(1, 10, 20));
        let two = Message { severity: Severity::Critical, ..raise(2, 30) };
        let mut queue = queue(&[one.clone(), over.clone(), two.clone()]);
        let severity = |queue: &Queue, id| queue.get(id).expect("there").severity;
        assert_eq!(severity(&queue, one.id), Severity::Critical);
        fails(&mut queue, &one, 50);
        assert_eq!(severity(&queue, one.id), Severity::Critical);
        queue.remove(two.id);
        queue.remove(one.id);
        assert_eq!(due(&queue), [over.id]);
    }

    #[test]
    fn an_alert_of_a_long_known_instance_was_told_as_if_it_had_waited() {
        // The id is that of an instance, which was made hours before its alert fired.
        let fires = message(1, 10, AlertState::Firing, 230);
        let mut queue = queue(std::slice::from_ref(&fires));
        assert_eq!(queue.take_together(fires.id, at(231)), None);
        assert!(queue.take_together(fires.id, at(232)).is_some());
    }

    #[test]
    fn events_need_not_wait_for_each_other_nor_others_for_them() {
        let event = |number, minute| {
            let mut message = raise(number, minute);
            message.alert = message.alert.map(|alert| AlertRef { tells: Tells::Event, ..alert });
            message
        };
        let (one, two) = (event(1, 10), event(2, 20));
        let queue = queue(&[one.clone(), two.clone()]);
        assert_eq!(due(&queue), [one.id, two.id]);
    }

    #[test]
    fn what_tells_of_several_alerts_goes_out_as_it_is_and_in_its_turn() {
        let mut digest = raise(1, 10);
        digest.alert = digest.alert.map(|alert| AlertRef { tells: Tells::More, ..alert });
        let digest = digest;
        let again = |minute, text: &str| {
            let mut again = Message { created_at: at(minute), ..digest.clone() };
            again.id = MessageId::new(uuid::Uuid::from_u128(u128::try_from(minute).unwrap_or(0)));
            again.content.text = text.into();
            again
        };
        // Repetitions say the same, and one of them is enough; others are not left out.
        let told = [again(12, "still"), again(14, "still"), again(15, "now"), again(16, "still")];
        let mut queue = queue(&told);
        let together = queue.take_together(told[0].id, at(240)).expect("they say the same");
        assert_eq!(together.ids, [told[0].id, told[1].id]);
        assert_eq!(queue.take_together(told[2].id, at(240)), None);
        told.iter().for_each(|one| queue.remove(one.id));

        let over = clear(1, 10, 20);
        queue.put(Waiting::of(&digest));
        queue.put(Waiting::of(&over));
        assert_eq!(queue.take_together(digest.id, at(240)), None);
        assert_eq!(due(&queue), [digest.id]);
        queue.remove(digest.id);
        let together = queue.take_together(over.id, at(240)).expect("it waited long");
        assert_eq!(together.ids, [over.id]);
    }

    /// Of each thread the first is not behind, the others are unless somebody has them, and nobody
    /// is less urgent than one after it.
    fn check(queue: &Queue) {
        let threads: BTreeSet<Thread> = queue.threads.iter().map(|(thread, ..)| *thread).collect();
        for thread in threads {
            let members: Vec<_> = queue.members(thread).map(|(_, id)| queue.entries[&id]).collect();
            for (index, (waiting, place)) in members.iter().enumerate() {
                assert_eq!(
                    queue.timed.contains(&(waiting.due_at, waiting.id)),
                    *place == Place::Timed
                );
                let expires = queue.expiries.contains(&(waiting.expires_at, waiting.id));
                assert_eq!(expires, *place != Place::Taken);
                assert!(if index == 0 {
                    *place != Place::Behind
                } else {
                    matches!(place, Place::Behind | Place::Taken)
                });
                assert!(
                    members.iter().skip(index).all(|(later, _)| later.severity <= waiting.severity)
                );
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_happens_each_goes_out_and_in_its_turn(
            steps in proptest::collection::vec((0..5_u8, 0..8_i64, 0..3_usize), 1..60),
        ) {
            let mut queue = queue(&[]);
            let mut known: Vec<Message> = Vec::new();
            for (minute, (what, number, level)) in (0_i64..).zip(steps) {
                let which = usize::try_from(number).unwrap_or_default();
                match (what, known.get(which).cloned()) {
                    (0, _) | (_, None) => {
                        let mut new = message(number, number, AlertState::Firing, minute);
                        new.id = MessageId::new(uuid::Uuid::from_u128(u128::try_from(minute).unwrap_or_default()));
                        new.severity = Severity::ALL[level];
                        queue.put(Waiting::of(&new));
                        known.push(new);
                    }
                    // An attempt, or a command, and what comes of it.
                    (1, Some(one)) => queue.take(one.id),
                    (2, Some(one)) => queue.put(Waiting { due_at: at(minute + number), ..Waiting::of(&one) }),
                    (_, Some(one)) => {
                        queue.remove(one.id);
                        known.retain(|other| other.id != one.id);
                    }
                }
                check(&queue);
            }
            for one in &known {
                queue.put(Waiting::of(one));
                check(&queue);
            }
            let mut turns = Vec::new();
            while let Some((_, id)) = queue.timed.first().copied() {
                queue.take(id);
                turns.extend(queue.get(id).and_then(|waiting| waiting.thread));
                queue.remove(id);
                check(&queue);
            }
            proptest::prop_assert_eq!(turns.len(), known.len());
            proptest::prop_assert!(turns.is_sorted_by_key(|(_, turn)| *turn));
        }
    }
}
