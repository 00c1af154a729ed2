//! How keys are made: `[table][partition][rest]`. The tables are listed in [`super`].

use super::bans::BanKind;
use crate::clock::Timestamp;
use crate::model::{AlertId, MessageId, partition};

/// The first byte of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Table {
    /// The format version.
    Meta = b'M',
    /// Messages that have not ended.
    Outbox = b'o',
    /// Messages that have ended.
    History = b'h',
    /// Instances of rules.
    Instance = b'i',
    /// Steps in the life of alerts.
    Trail = b'a',
    /// What people were told and are still to be told.
    Telling = b'e',
    /// What engines remember of devices.
    Memory = b'w',
    /// What engines remember of themselves.
    Engine = b'y',
    /// Alerts of which nobody was told: written by older versions, and deleted when outlived.
    Suppressed = b's',
    /// Providers' ids of our messages.
    Reference = b'r',
    /// Idempotency keys of the API.
    Idempotency = b'k',
    /// Devices' credentials.
    Device = b'd',
    /// Who is not let in.
    Ban = b'x',
    /// Sessions of clients that come back.
    Session = b'q',
    /// What waits for a session.
    Queued = b'n',
    /// Publishes that wait for sessions, once each.
    Body = b'b',
    /// QoS 2 publishes that were taken and not released.
    Received = b'c',
    /// Wills that wait for their delay.
    Will = b'l',
    /// Retained messages.
    Retained = b't',
    /// Parts of rows that are too large for one, see [`super::parts`].
    Part = b'p',
}

/// Every table, in the order of the keys.
pub(super) const TABLES: &[(Table, &str)] = &[
    (Table::Meta, "meta"),
    (Table::Trail, "trail"),
    (Table::Body, "body"),
    (Table::Received, "received"),
    (Table::Device, "device"),
    (Table::Telling, "telling"),
    (Table::History, "history"),
    (Table::Instance, "instance"),
    (Table::Idempotency, "idempotency"),
    (Table::Will, "will"),
    (Table::Queued, "queued"),
    (Table::Outbox, "outbox"),
    (Table::Part, "part"),
    (Table::Session, "session"),
    (Table::Reference, "reference"),
    (Table::Suppressed, "suppressed"),
    (Table::Retained, "retained"),
    (Table::Memory, "memory"),
    (Table::Ban, "ban"),
    (Table::Engine, "engine"),
];

/// The table that a key is of, and its name.
pub(super) fn table_of(key: &[u8]) -> Option<(Table, &'static str)> {
    let first = *key.first()?;
    TABLES.iter().copied().find(|(table, _)| *table as u8 == first)
}

/// A key for people: table, partition, and what follows as an id, a number or text.
pub(super) fn shown(key: &[u8]) -> String {
    let (table, name) = match table_of(key) {
        Some((table, name)) => (Some(table), name),
        None => (None, "unknown"),
    };
    let partition = key.get(1).copied().unwrap_or_default();
    let rest = key.get(2..).unwrap_or_default();
    let rest = match table {
        Some(Table::Outbox | Table::History) => id_first(rest),
        Some(Table::Trail) => format!("alert {}", id_first(rest)),
        Some(Table::Meta | Table::Device | Table::Ban | Table::Reference | Table::Retained) => {
            String::from_utf8_lossy(rest).replace('\0', "/")
        }
        _ => hex(rest),
    };
    format!("{name}/{partition}/{rest}")
}

/// The id that it begins with: a place between two rows begins as the row before it.
fn id_first(rest: &[u8]) -> String {
    let id = rest.get(..16).and_then(|id| uuid::Uuid::from_slice(id).ok());
    id.map_or_else(|| hex(rest), |id| id.to_string())
}

/// Lower case, two digits a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Table {
    /// Whether an engine above the store says what its rows hold.
    const fn is_of_engines(self) -> bool {
        matches!(self, Self::Instance | Self::Telling | Self::Memory | Self::Engine)
    }
}

/// A whole key.
pub type Key = Vec<u8>;

/// A partition is less than this.
pub(super) const PARTITIONS: u8 = 64;

fn key(table: Table, partition: u8, rest: &[&[u8]]) -> Key {
    let mut key = Vec::with_capacity(2 + rest.iter().map(|part| part.len()).sum::<usize>());
    key.push(table as u8);
    key.push(partition);
    for part in rest {
        key.extend_from_slice(part);
    }
    key
}

/// The meta row `name`.
pub fn meta(name: &str) -> Key {
    key(Table::Meta, 0, &[name.as_bytes()])
}

/// The message's row in `table`, which is [`Table::Outbox`] or [`Table::History`].
pub fn message(table: Table, id: MessageId) -> Key {
    key(table, id.partition(), &[id.as_uuid().as_bytes()])
}

/// What the keys of all of the alert's messages in `table` begin with: time and order of the id.
pub(super) fn messages_of(table: Table, alert: AlertId) -> Key {
    key(table, alert.partition(), &[alert.as_uuid().as_bytes().get(..8).unwrap_or_default()])
}

/// What the keys of all of the alert's steps begin with.
pub fn steps(alert: AlertId) -> Key {
    key(Table::Trail, alert.partition(), &[alert.as_uuid().as_bytes()])
}

/// The row of a step in the alert's life.
pub fn step(alert: AlertId, at: Timestamp, sequence: u16) -> Key {
    let millis = u64::try_from(at.as_millis()).unwrap_or(0);
    let rest: &[&[u8]] =
        &[alert.as_uuid().as_bytes(), &millis.to_be_bytes(), &sequence.to_be_bytes()];
    key(Table::Trail, alert.partition(), rest)
}

/// When the step with this key happened.
pub(super) fn step_at(key: &[u8]) -> Option<Timestamp> {
    let millis: [u8; 8] = key.get(18..26)?.try_into().ok()?;
    Some(Timestamp::from_millis(i64::try_from(u64::from_be_bytes(millis)).ok()?))
}

/// When the alert fired whose id the key begins with: a UUID v7 begins with its time.
pub(super) fn alert_at(key: &[u8]) -> Option<Timestamp> {
    let mut millis = [0_u8; 8];
    millis[2..].copy_from_slice(key.get(2..8)?);
    Some(Timestamp::from_millis(i64::from_be_bytes(millis)))
}

/// A row of an engine's table.
pub(super) fn row(table: Table, partition: u8, rest: &[u8]) -> Key {
    debug_assert!(table.is_of_engines(), "{table:?} has functions of its own");
    debug_assert!(partition < PARTITIONS, "a partition is 0 to 63");
    key(table, partition, &[rest])
}

/// The row that leads from a provider's id to our message.
pub fn reference(provider: &str, provider_ref: &str) -> Key {
    let partition = partition(provider, provider_ref);
    key(Table::Reference, partition, &[provider.as_bytes(), &[0], provider_ref.as_bytes()])
}

/// The row of an idempotency key, by its SHA-256.
pub fn idempotency(hash: &[u8; 32]) -> Key {
    key(Table::Idempotency, hash[0] & 63, &[hash])
}

/// The device's row.
pub fn device(user: &str) -> Key {
    key(Table::Device, 0, &[user.as_bytes()])
}

/// The row of the ban.
pub fn ban(kind: BanKind, value: &str) -> Key {
    key(Table::Ban, 0, &[kind.as_str().as_bytes(), &[0], value.as_bytes()])
}

/// The session's row.
pub fn session(session: u64) -> Key {
    key(Table::Session, 0, &[&session.to_be_bytes()])
}

/// The row of what waits for the session at this place of its queue.
pub fn queued(session: u64, turn: u64) -> Key {
    key(Table::Queued, 0, &[&session.to_be_bytes(), &turn.to_be_bytes()])
}

/// The row of a publish that waits for sessions.
pub fn body(body: u64) -> Key {
    key(Table::Body, 0, &[&body.to_be_bytes()])
}

/// The row of a QoS 2 publish that the session's client sent under this packet id.
pub fn received(session: u64, packet_id: u16) -> Key {
    key(Table::Received, 0, &[&session.to_be_bytes(), &packet_id.to_be_bytes()])
}

/// The row of a will.
pub fn will(will: u64) -> Key {
    key(Table::Will, 0, &[&will.to_be_bytes()])
}

/// The row of the topic's retained message.
pub fn retained(topic: &str) -> Key {
    key(Table::Retained, 0, &[topic.as_bytes()])
}
