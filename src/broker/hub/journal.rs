//! The hub's way to the disk: what changes in memory is noted here and written in the same order.
//!
//! Whoever changes a session notes the rows that change with it before letting go of the session's
//! lock. So the disk, after a crash, is the memory as it was a moment before: no row of a session
//! that ended comes back, none is missing that an earlier answer relied on. Notes cost no wait.
//! Who needs one on disk before it goes on asks to be told ([`Waiter`]); then everything that is
//! noted goes to the store at once. What nobody waits for (an acknowledgement that takes a row
//! out) is written with the next commit, or after [`LAZY`].
//!
//! A publish to many sessions is one note; with QoS 2 all of it is on disk or nothing. Its place is
//! taken first ([`Journal::draft`]), it is filled while one session after the other is locked, and
//! nothing behind it is written before it is complete. Retained messages are kept by topic and not
//! in order: the last of each topic is what is written.
//!
//! Its lock is the last in the hub's order: nothing else is locked under it.
//!
//! Invariant: a [`Position`] is durable when everything noted up to it is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::broker::session::Signal;
use crate::intake::{Ticket, Verdict};
use crate::model::{Publish, Qos, Reason};
use crate::store::sessions::QueuedRow;
use crate::store::{Op, Store, keys};
use crate::topic::TopicName;

/// A place in the journal, counted from 1. 0 is durable from the beginning.
pub(crate) type Position = u64;

/// How long a note waits that nobody waits for.
const LAZY: Duration = Duration::from_millis(50);
/// The same for a retained message.
const LAZY_RETAINED: Duration = Duration::from_secs(1);

/// Keys of one operation of a publish to many sessions: sled pays for larger batches.
const KEYS_MAX: usize = 64;

/// Notes on their way to the store.
pub(crate) struct Journal {
    buffer: Mutex<Buffer>,
    durable: AtomicU64,
    called: Notify,
}

struct Buffer {
    /// The position of the first in `notes`.
    first: Position,
    /// `None` is a draft that is not complete.
    notes: VecDeque<Option<Vec<Op>>>,
    retained: BTreeMap<TopicName, Option<Arc<Publish>>>,
    waiting: Vec<(Position, Waiter)>,
    /// When what nobody waits for is to be written.
    due: Option<Instant>,
    closed: bool,
}

/// Who is told when a position is durable, or never will be.
pub(crate) enum Waiter {
    /// A connection, as intake would tell it.
    Ticket(Ticket),
    /// The connection that has a session: it looks itself.
    Signal(Arc<Signal>),
    /// Somebody who awaits it.
    Once(oneshot::Sender<Verdict>),
}

/// A publish on disk, however many sessions wait for it.
pub(crate) struct Body {
    number: u64,
    /// Rows that name it, and one for its draft. Changed under the journal's lock only, so that
    /// the row goes with the last that names it.
    references: AtomicUsize,
}

/// A note that is being made: a publish and the sessions that it waits for.
pub(crate) struct Draft<'a> {
    journal: &'a Journal,
    pub(crate) position: Position,
    /// Those that are full. QoS 2 has none: all or nothing holds for it, and it is what a large
    /// batch costs.
    full: Vec<Op>,
    op: Op,
    body: Arc<Body>,
    publish: Arc<Publish>,
    is_stored: bool,
}

struct Batch {
    ops: Vec<Op>,
    waiting: Vec<Waiter>,
    last: Position,
}

impl Waiter {
    fn tell(self, verdict: Verdict) {
        match self {
            Self::Ticket(ticket) => ticket.answer(verdict),
            Self::Signal(signal) => signal.call(),
            // An asker that has gone no longer needs to know.
            Self::Once(asker) => drop(asker.send(verdict)),
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        let buffer = Buffer {
            first: 1,
            notes: VecDeque::new(),
            retained: BTreeMap::new(),
            waiting: Vec::new(),
            due: None,
            closed: false,
        };
        Self { buffer: Mutex::new(buffer), durable: AtomicU64::new(0), called: Notify::new() }
    }
}

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what `make` writes; nothing, if that is nothing.
    pub(crate) fn note(&self, make: impl FnOnce(&mut Op)) -> Position {
        let mut buffer = self.lock();
        let mut op = Op::new();
        make(&mut op);
        if op.is_empty() {
            return 0;
        }
        let is_first = buffer.due.is_none();
        let position = buffer.push(Some(vec![op]));
        buffer.due_within(LAZY);
        drop(buffer);
        if is_first {
            self.called.notify_one();
        }
        position
    }

    /// Takes the next place for a publish that sessions are to wait for. `number` is its own.
    pub(crate) fn draft(&self, number: u64, publish: &Arc<Publish>) -> Draft<'_> {
        let position = self.lock().push(None);
        let body = Arc::new(Body { number, references: AtomicUsize::new(1) });
        let (publish, op) = (Arc::clone(publish), Op::new());
        Draft { journal: self, position, full: Vec::new(), op, body, publish, is_stored: false }
    }

    /// Notes what a topic now retains. Call under the lock of the retained messages.
    pub(crate) fn note_retained(&self, topic: &TopicName, publish: Option<&Arc<Publish>>) {
        let mut buffer = self.lock();
        buffer.retained.insert(topic.clone(), publish.cloned());
        let is_first = buffer.due.is_none();
        buffer.due_within(LAZY_RETAINED);
        drop(buffer);
        if is_first {
            self.called.notify_one();
        }
    }

    pub(crate) fn is_durable(&self, position: Position) -> bool {
        position <= self.durable.load(Ordering::Acquire)
    }

    /// Has `waiter` told when `position` is durable, and everything up to it written at once.
    pub(crate) fn tell(&self, position: Position, waiter: Waiter) {
        if self.is_durable(position) {
            waiter.tell(Verdict::Durable);
            return;
        }
        let mut buffer = self.lock();
        if buffer.closed {
            drop(buffer);
            waiter.tell(Verdict::Refused(Reason::ShuttingDown));
            return;
        }
        buffer.waiting.push((position, waiter));
        drop(buffer);
        self.called.notify_one();
    }

    /// Returns when `position` is durable.
    ///
    /// # Errors
    /// Why it never will be.
    pub(crate) async fn wait(&self, position: Position) -> Result<(), Reason> {
        if self.is_durable(position) {
            return Ok(());
        }
        let (asker, answer) = oneshot::channel();
        self.tell(position, Waiter::Once(asker));
        match answer.await {
            Ok(Verdict::Durable) => Ok(()),
            Ok(Verdict::Refused(reason)) => Err(reason),
            Err(_) => Err(Reason::ShuttingDown),
        }
    }

    /// Takes out the row of what waited for a session, and its publish with the last such row.
    pub(crate) fn forget(op: &mut Op, session: u64, turn: u64, body: Option<&Body>) {
        op.remove(keys::queued(session, turn));
        if let Some(body) = body {
            Self::release(op, body);
        }
    }

    /// Writes that the client has it and PUBREL is what is left.
    pub(crate) fn mark_released(
        op: &mut Op,
        session: u64,
        turn: u64,
        row: &QueuedRow,
        body: &Body,
    ) {
        op.put_queued(session, turn, row);
        Self::release(op, body);
    }

    /// Under the journal's lock: only [`Journal::note`] and the opening have an `Op` to give.
    fn release(op: &mut Op, body: &Body) {
        if body.references.fetch_sub(1, Ordering::Relaxed) == 1 {
            op.remove(keys::body(body.number));
        }
    }

    /// Writes what is noted until the journal is closed, and then the rest.
    pub(crate) async fn run(self: &Arc<Self>, store: &Store) {
        loop {
            let called = self.called.notified();
            let (batch, due, closed) = {
                let mut buffer = self.lock();
                (buffer.take(Instant::now()), buffer.due, buffer.closed)
            };
            if let Some(Batch { ops, waiting, last }) = batch {
                let journal = Arc::clone(self);
                let done = move |result: Result<(), _>| {
                    let verdict = match result {
                        Ok(()) => Verdict::Durable,
                        Err(_) => Verdict::Refused(Reason::StoreFailed),
                    };
                    if verdict == Verdict::Durable {
                        journal.durable.fetch_max(last, Ordering::AcqRel);
                    }
                    for waiter in waiting {
                        waiter.tell(verdict);
                    }
                };
                store.enqueue(ops, done).await;
                continue;
            }
            if closed {
                break;
            }
            match due {
                Some(due) => drop(tokio::time::timeout_at(due, called).await),
                None => called.await,
            }
        }
        // The last that was handed over is durable when this is, or the process is ending badly
        // anyway and has said why.
        store.commit(Vec::new()).await.ok();
    }

    /// Writes the rest and takes no more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.called.notify_one();
    }

    /// Hands over what is noted, as if a store had written it.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn write_all(&self) -> Vec<Op> {
        let mut buffer = self.lock();
        buffer.closed = true;
        let batch = buffer.take(Instant::now());
        buffer.closed = false;
        drop(buffer);
        let Some(batch) = batch else { return Vec::new() };
        self.durable.store(batch.last, Ordering::Release);
        batch.waiting.into_iter().for_each(|waiter| waiter.tell(Verdict::Durable));
        batch.ops
    }
}

impl Buffer {
    fn push(&mut self, note: Option<Vec<Op>>) -> Position {
        self.notes.push_back(note);
        self.first + self.notes.len() as u64 - 1
    }

    fn due_within(&mut self, patience: Duration) {
        let due = Instant::now() + patience;
        self.due = Some(self.due.map_or(due, |other| other.min(due)));
    }

    /// What is to be written now, if anything is.
    fn take(&mut self, now: Instant) -> Option<Batch> {
        let complete = self.notes.iter().take_while(|note| note.is_some()).count();
        let last = self.first + complete as u64 - 1;
        let is_awaited = self.waiting.iter().any(|(position, _)| *position <= last);
        let is_due = self.due.is_some_and(|due| due <= now) || self.closed;
        if !is_awaited && !is_due {
            return None;
        }
        if is_due && complete == 0 && self.retained.is_empty() && !is_awaited {
            // What is due is a draft, or behind one: its completion calls.
            self.due = None;
            return None;
        }
        self.first += complete as u64;
        let notes = self.notes.drain(..complete).flatten().flatten();
        let mut ops: Vec<Op> = notes.filter(|op| !op.is_empty()).collect();
        for (topic, publish) in std::mem::take(&mut self.retained) {
            let mut op = Op::new();
            match publish {
                Some(publish) => op.put_retained(&publish),
                None => op.remove(keys::retained(topic.as_str())),
            }
            ops.push(op);
        }
        let mut waiting = Vec::new();
        for (position, waiter) in std::mem::take(&mut self.waiting) {
            if position <= last {
                waiting.push(waiter);
            } else {
                self.waiting.push((position, waiter));
            }
        }
        self.due = None;
        // Memory of a burst is given back.
        if self.notes.is_empty() && self.notes.capacity() > 1024 {
            self.notes = VecDeque::new();
        }
        Some(Batch { ops, waiting, last })
    }
}

impl Draft<'_> {
    /// Lets a session wait for the publish.
    pub(crate) fn add(&mut self, session: u64, turn: u64, mut row: QueuedRow) -> Arc<Body> {
        row.body = Some(self.body.number);
        self.op.put_queued(session, turn, &row);
        self.body.references.fetch_add(1, Ordering::Relaxed);
        self.is_stored = true;
        if self.op.len() >= KEYS_MAX && self.publish.qos != Qos::ExactlyOnce {
            self.full.push(std::mem::take(&mut self.op));
        }
        Arc::clone(&self.body)
    }

    /// Whether any session waits for it.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_stored
    }

    /// What else is to be on disk with it.
    pub(crate) fn also(&mut self) -> &mut Op {
        &mut self.op
    }
}

impl Drop for Draft<'_> {
    /// Completes it, whatever happened to its maker: everything behind it waits.
    fn drop(&mut self) {
        let mut op = std::mem::take(&mut self.op);
        if self.is_stored {
            op.put_body(self.body.number, &self.publish);
        }
        let mut ops = std::mem::take(&mut self.full);
        ops.push(op);
        let mut buffer = self.journal.lock();
        let index = self.position.checked_sub(buffer.first).and_then(|at| usize::try_from(at).ok());
        if let Some(note) = index.and_then(|index| buffer.notes.get_mut(index)) {
            *note = Some(ops);
        }
        let mut rest = Op::new();
        Journal::release(&mut rest, &self.body);
        if self.is_stored && !rest.is_empty() {
            // All have acknowledged it already.
            buffer.push(Some(vec![rest]));
        }
        buffer.due_within(LAZY);
        drop(buffer);
        self.journal.called.notify_one();
    }
}

impl Body {
    /// One that was found on disk; each row that names it adds itself.
    pub(crate) fn found(number: u64) -> Self {
        Self { number, references: AtomicUsize::new(0) }
    }

    /// Another row of the disk that names it.
    pub(crate) fn add_found(&self) {
        self.references.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Timestamp;
    use crate::topic::TopicLimits;

    fn publish(topic: &str) -> Arc<Publish> {
        Arc::new(Publish {
            topic: TopicName::parse(topic, TopicLimits::default()).expect("valid"),
            payload: Bytes::from_static(b"x"),
            qos: Qos::AtLeastOnce,
            retain: false,
            replayed: false,
            client_id: "p".into(),
            identity: None,
            received_at: Timestamp::default(),
            properties: None,
        })
    }

    fn row() -> QueuedRow {
        QueuedRow {
            body: None,
            at: Timestamp::default(),
            packet_id: 1,
            qos: Qos::AtLeastOnce,
            retain: false,
            identifiers: Vec::new(),
        }
    }

    #[tokio::test]
    async fn nothing_behind_a_draft_is_written_before_it_is_complete() {
        let journal = Journal::default();
        let before = journal.note(|op| op.remove(keys::session(1)));
        let mut draft = journal.draft(5, &publish("t"));
        let behind = journal.note(|op| op.remove(keys::session(2)));
        assert_eq!(journal.write_all().len(), 1);
        assert!(journal.is_durable(before) && !journal.is_durable(behind));
        let body = draft.add(1, 1, row());
        // Acknowledged before its draft is complete: the publish's row is written and goes again.
        journal.note(|op| Journal::forget(op, 1, 1, Some(&body)));
        assert!(journal.write_all().is_empty());
        drop(draft);
        let sizes: Vec<_> = journal.write_all().iter().map(Op::len).collect();
        assert_eq!(sizes, [2, 1, 1, 1]);
        assert_eq!(journal.wait(behind).await, Ok(()));
    }

    #[test]
    fn the_last_retained_message_of_a_topic_is_written() {
        let journal = Journal::default();
        let (a, b) = (publish("a"), publish("b"));
        for publish in [&a, &a, &b] {
            journal.note_retained(&publish.topic, Some(publish));
        }
        journal.note_retained(&b.topic, None);
        assert_eq!(journal.write_all().len(), 2);
    }

    #[test]
    fn a_publish_to_very_many_sessions_is_several_operations_but_with_qos_2() {
        for (qos, expected) in [(Qos::AtLeastOnce, 4), (Qos::ExactlyOnce, 1)] {
            let journal = Journal::default();
            let publish = Arc::new(Publish { qos, ..(*publish("t")).clone() });
            let mut draft = journal.draft(1, &publish);
            for session in 0..200 {
                draft.add(session, 1, row());
            }
            drop(draft);
            let ops = journal.write_all();
            assert_eq!(ops.len(), expected, "{qos:?}");
            assert_eq!(ops.iter().map(Op::len).sum::<usize>(), 201);
        }
    }
}
