//! The due order: which messages wait, and which is next.
//!
//! Pure, in memory, made anew by the opening scan. A message is in exactly one place: waiting for
//! its due time, ready on its channel, or taken (an attempt or a command has it). The most urgent
//! ready message leaves first, among equals the one that has been due longest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::collapse::{self, Thread, Turn};
use super::lane::{Lane, Standing};
use crate::clock::Timestamp;
use crate::model::{Channel, Message, MessageId, Severity};

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
    /// Its thread and its place there, where it may be put together with others.
    thread: Option<(Thread, Turn)>,
    /// When that happened which it tells.
    happened_at: Timestamp,
    /// Its text says since when.
    is_dated: bool,
    /// Until then it goes out as it is: what its thread holds has just been put together in it.
    pub(super) decided_until: Timestamp,
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
            thread: collapse::place(message),
            happened_at: collapse::happened_at(message),
            is_dated: message.left_out.is_some(),
            decided_until: Timestamp::default(),
        }
    }

    fn order(&self) -> Order {
        (Reverse(self.severity), self.due_at, self.id)
    }
}

type Order = (Reverse<Severity>, Timestamp, MessageId);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Timed,
    Ready,
    Taken,
}

/// The messages that have not ended.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Ids begin with their alert's time, so the first one is the oldest.
    entries: BTreeMap<MessageId, (Waiting, Place)>,
    timed: BTreeSet<(Timestamp, MessageId)>,
    expiries: BTreeSet<(Timestamp, MessageId)>,
    ready: BTreeMap<Channel, BTreeSet<Order>>,
    /// Those of each thread in their order, also the ones that are taken.
    threads: HashMap<Thread, BTreeSet<(Turn, MessageId)>>,
    /// What waited so long is put together; zero for never.
    collapse_after: Duration,
}

/// What may happen now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Picked {
    /// Start these attempts: message, lane.
    pub(super) start: Vec<(MessageId, usize)>,
    /// Put these together first: waiting messages of one thread, oldest first.
    pub(super) collapse: Vec<Together>,
    /// No lane serves their channel.
    pub(super) homeless: Vec<MessageId>,
    /// When to look again, at the latest.
    pub(super) wake_at: Option<Timestamp>,
}

/// Messages that are taken to be put together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Together {
    /// Oldest first; the newest of the thread is always there.
    pub(super) ids: Vec<MessageId>,
    /// There are others between the last two, which did not fit into one operation.
    pub(super) more: bool,
}

/// So many messages at most are put together in one operation.
const TOGETHER_MAX: usize = 1000;

/// How many messages that wait for a busy lane are passed over in search of one that need not.
const LOOK_AHEAD: usize = 32;

impl Queue {
    pub(super) fn new(collapse_after: Duration) -> Self {
        Self { collapse_after, ..Self::default() }
    }

    pub(super) fn get(&self, id: MessageId) -> Option<Waiting> {
        self.entries.get(&id).map(|(waiting, _)| *waiting)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// When the message of the oldest alert entered the outbox.
    pub(super) fn oldest_at(&self) -> Option<Timestamp> {
        self.entries.first_key_value().map(|(_, (waiting, _))| waiting.created_at)
    }

    pub(super) fn ready_on(&self, channel: Channel) -> usize {
        self.ready.get(&channel).map_or(0, BTreeSet::len)
    }

    /// Whether an attempt or a command has it. `None`: not here.
    pub(super) fn is_taken(&self, id: MessageId) -> Option<bool> {
        self.entries.get(&id).map(|(_, place)| *place == Place::Taken)
    }

    /// Puts a message in, or one that was taken back.
    pub(super) fn put(&mut self, waiting: Waiting) {
        self.remove(waiting.id);
        self.timed.insert((waiting.due_at, waiting.id));
        self.expiries.insert((waiting.expires_at, waiting.id));
        if let Some((thread, turn)) = waiting.thread {
            self.threads.entry(thread).or_default().insert((turn, waiting.id));
        }
        self.entries.insert(waiting.id, (waiting, Place::Timed));
    }

    /// Forgets a message.
    pub(super) fn remove(&mut self, id: MessageId) {
        let Some((waiting, place)) = self.entries.remove(&id) else {
            return;
        };
        if let Some((thread, turn)) = waiting.thread
            && let Some(members) = self.threads.get_mut(&thread)
        {
            members.remove(&(turn, id));
            if members.is_empty() {
                self.threads.remove(&thread);
            }
        }
        self.leave(&waiting, place);
    }

    /// Takes out the messages of the thread of this one, whose turn it is, where they have waited
    /// so long that they are to be put together.
    fn take_together(&mut self, id: MessageId, now: Timestamp) -> Option<Together> {
        let (waiting, _) = self.entries.get(&id)?;
        let (thread, _) = waiting.thread?;
        if self.collapse_after.is_zero() || now < waiting.decided_until {
            return None;
        }
        let is_free = |(_, id): &&(Turn, MessageId)| {
            self.entries.get(id).is_some_and(|(_, place)| *place != Place::Taken)
        };
        let members = self.threads.get(&thread)?;
        let mut free = members.iter().filter(is_free).map(|(_, id)| *id);
        let (oldest, _) = self.entries.get(&free.next()?)?;
        let is_alone = free.next().is_none();
        if now.since(oldest.happened_at) < self.collapse_after || (is_alone && oldest.is_dated) {
            return None;
        }
        let newest = members.iter().rev().find(is_free).map(|(_, id)| *id)?;
        let mut free = members.iter().filter(is_free).map(|(_, id)| *id).filter(|id| *id != newest);
        let mut ids: Vec<MessageId> = free.by_ref().take(TOGETHER_MAX - 1).collect();
        let more = free.next().is_some();
        ids.push(newest);
        for id in &ids {
            self.take(*id);
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
            Place::Taken => {}
        }
    }

    /// Makes what waits for `lane` due now: the lane is open again.
    pub(super) fn lane_opened(&mut self, lane: usize, now: Timestamp) {
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

    /// Takes out what has outlived its expiry.
    pub(super) fn take_expired(&mut self, now: Timestamp) -> Vec<MessageId> {
        let expired: Vec<MessageId> = self
            .expiries
            .iter()
            .take_while(|(expires_at, _)| *expires_at <= now)
            .map(|(_, id)| *id)
            .collect();
        for id in &expired {
            self.take(*id);
        }
        expired
    }

    /// Takes out what may start now, and takes the lanes' places and tokens for it.
    pub(super) fn pick(&mut self, lanes: &mut [Lane], routes: &Routes, now: Timestamp) -> Picked {
        while let Some((due_at, id)) = self.timed.first().copied()
            && due_at <= now
        {
            self.timed.pop_first();
            if let Some((waiting, place)) = self.entries.get_mut(&id) {
                *place = Place::Ready;
                self.ready.entry(waiting.channel).or_default().insert(waiting.order());
            }
        }
        let mut picked = Picked::default();
        let channels: Vec<Channel> = self.ready.keys().copied().collect();
        for channel in channels {
            self.pick_on(channel, lanes, routes, now, &mut picked);
        }
        let timers = [self.timed.first(), self.expiries.first()];
        let timers = timers.into_iter().flatten().map(|(at, _)| *at);
        picked.wake_at = picked.wake_at.into_iter().chain(timers).min();
        picked
    }

    fn pick_on(
        &mut self,
        channel: Channel,
        lanes: &mut [Lane],
        routes: &Routes,
        now: Timestamp,
        picked: &mut Picked,
    ) {
        let route = routes.of(channel);
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
                match choose(route, lanes, waiting.failed_on, now) {
                    Ok(lane) => {
                        chosen = Some((*id, Some(lane)));
                        break;
                    }
                    Err(wake_at) => {
                        picked.wake_at = [picked.wake_at, wake_at].into_iter().flatten().min();
                    }
                }
            }
            let Some((id, lane)) = chosen else { return };
            if lane.is_some()
                && let Some(together) = self.take_together(id, now)
            {
                picked.collapse.push(together);
                continue;
            }
            self.take(id);
            match lane {
                Some(index) => {
                    if let Some(lane) = lanes.get_mut(index) {
                        lane.start();
                    }
                    picked.start.push((id, index));
                }
                None => picked.homeless.push(id),
            }
        }
    }
}

/// The lane for a message: the first of the route that is not closed, another than the one it has
/// just failed on if there is one. A lane that is merely busy is waited for: failover is for
/// outages, not for sharing load. `Err`: none now; look again then, or when a call ends.
fn choose(
    route: &[usize],
    lanes: &mut [Lane],
    failed_on: Option<usize>,
    now: Timestamp,
) -> Result<usize, Option<Timestamp>> {
    let mut wake_at: Option<Timestamp> = None;
    let mut later = |at: Option<Timestamp>| {
        wake_at = [wake_at, at].into_iter().flatten().min();
    };
    let others = route.iter().filter(|index| Some(**index) != failed_on);
    let last = route.iter().filter(|index| Some(**index) == failed_on);
    for index in others.chain(last) {
        let Some(lane) = lanes.get_mut(*index) else {
            continue;
        };
        match lane.standing(now) {
            Standing::Free => return Ok(*index),
            Standing::Busy(at) => {
                later(at);
                return Err(wake_at);
            }
            Standing::Down(at) => later(at),
        }
    }
    Err(wake_at)
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
