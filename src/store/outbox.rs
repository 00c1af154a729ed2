//! Typed reading and writing of rows: what the engines and the edges call.
//!
//! A message lives in one of two tables: the outbox while something is still to be done, the
//! history when it has ended. [`Op::put_message`] is what keeps it in exactly one of them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::keys::{self, Table};
use super::read::{Reader, Rows};
use super::rows::{Device, Idempotency};
use super::{CommitError, Op, ReadError, Store, decode};
use crate::clock::Timestamp;
use crate::model::{AlertId, Channel, Message, MessageId, Status};
use crate::topic::TopicFilter;

/// Which messages to list. Empty: all.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// Only in one of these states; empty for any.
    pub status: Vec<Status>,
    /// Only of this channel.
    pub channel: Option<Channel>,
    /// Only of alerts of this rule.
    pub rule: Option<String>,
    /// Only of alerts of this instance key.
    pub key: Option<String>,
    /// Only of alerts whose topic this filter matches.
    pub topic: Option<TopicFilter>,
    /// Only to this contact.
    pub contact: Option<String>,
    /// Only those that were made or have changed since.
    pub since: Option<Timestamp>,
}

impl MessageFilter {
    fn takes(&self, message: &Message) -> bool {
        let alert = message.alert.as_ref();
        (self.status.is_empty() || self.status.contains(&message.status))
            && self.channel.is_none_or(|channel| channel == message.target.channel)
            && self
                .rule
                .as_deref()
                .is_none_or(|rule| alert.is_some_and(|alert| &*alert.rule == rule))
            && self.key.as_deref().is_none_or(|key| alert.is_some_and(|alert| &*alert.key == key))
            && self
                .topic
                .as_ref()
                .is_none_or(|topic| alert.is_some_and(|alert| topic.matches(&alert.topic)))
            && self
                .contact
                .as_deref()
                .is_none_or(|contact| message.contact.as_deref() == Some(contact))
            && self.since.is_none_or(|since| message.created_at.max(message.updated_at) >= since)
    }
}

impl Op {
    /// Writes a message that has not been stored before.
    pub fn put_new_message(&mut self, message: &Message) {
        self.put(keys::message(Table::Outbox, message.id), message);
    }

    /// Writes a message, into the outbox or, once it has ended, into the history.
    pub fn put_message(&mut self, message: &Message) {
        let (here, elsewhere) = if message.status.is_final() {
            (Table::History, Table::Outbox)
        } else {
            (Table::Outbox, Table::History)
        };
        self.remove(keys::message(elsewhere, message.id));
        self.put(keys::message(here, message.id), message);
    }

    /// Leads from the provider's id to the message.
    pub fn put_reference(&mut self, provider: &str, provider_ref: &str, message: MessageId) {
        let value = message.as_uuid().as_bytes().to_vec();
        self.put_bytes(keys::reference(provider, provider_ref), value);
    }

    /// Notes what an API request became.
    pub fn put_idempotency(&mut self, hash: &[u8; 32], row: &Idempotency) {
        self.put(keys::idempotency(hash), row);
    }
}

impl Store {
    /// The message with this id, ended or not.
    pub fn message(&self, id: MessageId) -> Result<Option<Message>, ReadError> {
        match self.get(&keys::message(Table::Outbox, id))? {
            Some(message) => Ok(Some(message)),
            None => self.get(&keys::message(Table::History, id)),
        }
    }

    /// Messages that pass `filter`, newest first: those older than `before`, at most `limit`.
    ///
    /// Reads until the limit is reached, so a narrow filter on a large store takes seconds: not
    /// for async code.
    pub fn messages(
        &self,
        filter: &MessageFilter,
        before: Option<MessageId>,
        limit: usize,
    ) -> Result<Vec<Message>, ReadError> {
        let mut newest = self.newest_first(before);
        let mut found = Vec::new();
        while found.len() < limit
            && let Some(message) = newest.next()
        {
            if filter.takes(&message) {
                found.push(message);
            }
        }
        Ok(found)
    }

    /// All messages of an alert, ended or not, in no order. Their ids begin as the alert's does
    /// ([`MessageId::derive_nth`]), so this is two short scans.
    ///
    /// # Errors
    /// One of them cannot be read: for those who must know all. People get
    /// [`Store::readable_messages_of`].
    pub fn messages_of(&self, alert: AlertId) -> Result<Vec<Message>, ReadError> {
        let mut found = Vec::new();
        for table in [Table::Outbox, Table::History] {
            for row in self.reader.rows(keys::messages_of(table, alert)) {
                let (key, value) = row?;
                let message: Message = self.reader.checked(&key, decode(&value))?;
                if message.alert.as_ref().is_some_and(|of| of.id == alert) {
                    found.push(message);
                }
            }
        }
        Ok(found)
    }

    /// The messages of an alert that can be read.
    pub fn readable_messages_of(&self, alert: AlertId) -> Vec<Message> {
        let mut found = Vec::new();
        for table in [Table::Outbox, Table::History] {
            let rows = self.reader.rows(keys::messages_of(table, alert)).readable::<Message>();
            let messages = rows.map(|(_, message)| message);
            found
                .extend(messages.filter(|one| one.alert.as_ref().is_some_and(|of| of.id == alert)));
        }
        found
    }

    /// All messages that have not ended, partition by partition.
    pub fn outbox(&self) -> impl Iterator<Item = Result<Message, ReadError>> + use<> {
        self.scan(Table::Outbox)
    }

    /// The message that a provider knows by this id.
    pub fn referenced(
        &self,
        provider: &str,
        provider_ref: &str,
    ) -> Result<Option<MessageId>, ReadError> {
        let Some(bytes) = self.reader.get(&keys::reference(provider, provider_ref))? else {
            return Ok(None);
        };
        uuid::Uuid::from_slice(&bytes)
            .map(|uuid| Some(MessageId::new(uuid)))
            .map_err(|error| ReadError(error.to_string()))
    }

    /// What became of the request with this idempotency key.
    pub fn idempotency(&self, hash: &[u8; 32]) -> Result<Option<Idempotency>, ReadError> {
        self.get(&keys::idempotency(hash))
    }

    /// The device with this user name.
    pub fn device(&self, user: &str) -> Result<Option<Device>, ReadError> {
        self.get(&keys::device(user))
    }

    /// All devices by name.
    pub fn devices(&self) -> Result<Vec<Device>, ReadError> {
        Ok(self.scan(Table::Device).flatten().collect())
    }

    /// Adds or replaces a device; durable on return.
    pub async fn put_device(&self, device: &Device) -> Result<(), CommitError> {
        let mut op = Op::new();
        op.put(keys::device(&device.user), device);
        self.commit(vec![op]).await
    }

    /// Removes a device; says whether there was one; durable on return.
    pub async fn remove_device(&self, user: &str) -> Result<bool, RemoveError> {
        let known = self.device(user)?.is_some();
        let mut op = Op::new();
        op.remove(keys::device(user));
        self.commit(vec![op]).await?;
        Ok(known)
    }

    fn newest_first(&self, before: Option<MessageId>) -> NewestFirst {
        let mut rows = Vec::new();
        for table in [Table::Outbox, Table::History] {
            for partition in 0..64_u8 {
                let start = vec![table as u8, partition];
                let mut end = start.clone();
                match before {
                    Some(id) => end.extend_from_slice(id.as_uuid().as_bytes()),
                    // Past every UUID v7, whose seventh byte starts with 7.
                    None => end.extend_from_slice(&[0xff; 17]),
                }
                rows.push(self.reader.range(start..end));
            }
        }
        let mut newest = NewestFirst { heap: BinaryHeap::new(), rows, reader: self.reader.clone() };
        for index in 0..newest.rows.len() {
            newest.refill(index);
        }
        newest
    }
}

/// How long an idempotency key is remembered.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(24 * 3600);

/// A device could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It could not be looked up.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be deleted.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The rows of all partitions of both tables, merged by id.
struct NewestFirst {
    heap: BinaryHeap<(Vec<u8>, Reverse<usize>, sled::IVec)>,
    rows: Vec<Rows>,
    reader: Reader,
}

impl NewestFirst {
    fn refill(&mut self, index: usize) {
        let Some(rows) = self.rows.get_mut(index) else { return };
        // What cannot be read has been counted.
        if let Some((key, value)) = rows.rev().flatten().next() {
            self.heap.push((key.get(2..).unwrap_or_default().to_vec(), Reverse(index), value));
        }
    }

    /// The next one that can be read.
    fn next(&mut self) -> Option<Message> {
        let mut next = None;
        while next.is_none() {
            let (id, Reverse(index), value) = self.heap.pop()?;
            self.refill(index);
            next = self.newest(&id, index, &value);
        }
        next
    }

    fn newest(&mut self, id: &[u8], index: usize, value: &[u8]) -> Option<Message> {
        let mut message = self.read(id, index, value);
        // One that changes tables while we read is met in both: the later one counts.
        while self.heap.peek().is_some_and(|(other, ..)| other == id)
            && let Some((_, Reverse(index), value)) = self.heap.pop()
        {
            self.refill(index);
            let other = self.read(id, index, &value);
            let stand = |message: &Message| (message.updated_at, message.status.is_final());
            if other.as_ref().map(stand) > message.as_ref().map(stand) {
                message = other;
            }
        }
        message
    }

    fn read(&self, id: &[u8], index: usize, value: &[u8]) -> Option<Message> {
        let table = if index < 64 { Table::Outbox } else { Table::History };
        let partition = u8::try_from(index % 64).unwrap_or_default();
        let key = [&[table as u8, partition], id].concat();
        self.reader.checked(&key, decode(value)).ok()
    }
}
