//! Rows of what MQTT clients find again: sessions, what waits for them, wills, retained messages.
//!
//! Only the form of the rows and one scan that reads them all: what they mean, and in which order
//! they are written, is `broker::hub`'s. A row that cannot be read is counted and left where it
//! is; the others are given out.

use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::keys::{self, Table};
use super::{Op, ReadError, Store, VALUE_VERSION, decode};
use crate::clock::Timestamp;
use crate::model::{Publish, PublishProperties, Qos};
use crate::topic::{TopicLimits, TopicName};

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Whose.
    pub client_id: Arc<str>,
    /// The name in the client's certificate.
    pub identity: Option<Arc<str>>,
    /// The client's user name.
    pub user: Option<Arc<str>>,
    /// The client's groups when it was last connected.
    pub groups: Vec<Arc<str>>,
    /// Session Expiry Interval, seconds; `u32::MAX` for ever.
    pub expiry_secs: u32,
    /// When it ends; `None` while the client is connected, and for ever.
    pub ends_at: Option<Timestamp>,
    /// What is queued at this turn or later was certainly never sent; `None` while the client is
    /// connected, when that is not known.
    pub unsent_from: Option<u64>,
    /// What it subscribes to.
    pub subscriptions: Vec<SubscriptionRow>,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscriptionRow {
    /// The filter as the client wrote it.
    pub filter: Arc<str>,
    /// Highest quality of service.
    pub qos: Qos,
    /// Nothing that the client has published itself.
    pub no_local: bool,
    /// RETAIN as the publisher set it.
    pub retain_as_published: bool,
    /// Subscription Identifier.
    pub identifier: Option<u32>,
}

/// A publish that waits for a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedRow {
    /// The publish; `None` once the client has it for good (PUBREC) and PUBREL is what is left.
    pub body: Option<u64>,
    /// Since when it waits.
    pub at: Timestamp,
    /// The packet id that it goes out with, every time.
    pub packet_id: u16,
    /// The quality of service towards this client.
    pub qos: Qos,
    /// RETAIN towards this client.
    pub retain: bool,
    /// Subscription Identifiers of the subscriptions that matched.
    pub identifiers: Vec<u32>,
}

/// How far a QoS 2 publish of a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReceivedRow {
    /// What the rules make of it is on disk, the subscribers' copies may not be: sent again, it
    /// goes to them and not to the rules.
    #[serde(rename = "ruled")]
    Ruled,
    /// All that it causes is on disk: sent again, it is only acknowledged.
    #[serde(rename = "taken")]
    Taken,
}

/// A publish, but for its payload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PublishRow {
    topic: String,
    qos: Qos,
    retain: bool,
    client_id: Arc<str>,
    identity: Option<Arc<str>>,
    at: Timestamp,
    properties: Option<Box<PublishProperties>>,
    /// Of a will.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    will: Option<WillRow>,
}

/// What a will has beside its publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WillRow {
    /// The session that it belongs to; it may have ended.
    pub session: u64,
    /// When it is to be published.
    pub due_at: Timestamp,
}

/// Everything that clients are to find again, in the order of the keys.
#[derive(Debug, Default)]
pub struct Saved {
    /// Sessions by number.
    pub sessions: Vec<(u64, SessionRow)>,
    /// By session number and turn.
    pub queued: Vec<((u64, u64), QueuedRow)>,
    /// Publishes that sessions wait for, by number.
    pub bodies: Vec<(u64, Publish)>,
    /// By session number and packet id.
    pub received: Vec<((u64, u16), ReceivedRow)>,
    /// Wills by number.
    pub wills: Vec<(u64, WillRow, Publish)>,
    /// Retained messages.
    pub retained: Vec<Publish>,
    /// Rows that could not be read, and why; they stay where they are.
    pub unreadable: Vec<String>,
    /// No number on disk is larger, of whatever kind.
    pub largest_number: u64,
}

impl Op {
    /// Writes a session.
    pub fn put_session(&mut self, session: u64, row: &SessionRow) {
        self.put(keys::session(session), row);
    }

    /// Writes what waits for a session.
    pub fn put_queued(&mut self, session: u64, turn: u64, row: &QueuedRow) {
        self.put(keys::queued(session, turn), row);
    }

    /// Writes a publish that sessions wait for.
    pub fn put_body(&mut self, body: u64, publish: &Publish) {
        self.put_bytes(keys::body(body), encode_publish(publish, None));
    }

    /// Writes how far a QoS 2 publish has come.
    pub fn put_received(&mut self, session: u64, packet_id: u16, row: ReceivedRow) {
        self.put(keys::received(session, packet_id), &row);
    }

    /// Writes a will.
    pub fn put_will(&mut self, number: u64, row: WillRow, publish: &Publish) {
        self.put_bytes(keys::will(number), encode_publish(publish, Some(row)));
    }

    /// Writes a retained message.
    pub fn put_retained(&mut self, publish: &Publish) {
        let key = keys::retained(publish.topic.as_str());
        self.put_bytes(key, encode_publish(publish, None));
    }
}

impl Store {
    /// Reads everything that clients are to find again. Not for async code.
    pub fn saved(&self) -> Saved {
        let mut saved = Saved::default();
        let found = &mut (Vec::new(), 0);
        saved.sessions = self.saved_rows(Table::Session, found, |key, value| {
            Ok((number(key, 0)?, decode::<SessionRow>(value)?))
        });
        saved.queued = self.saved_rows(Table::Queued, found, |key, value| {
            Ok(((number(key, 0)?, number(key, 8)?), decode::<QueuedRow>(value)?))
        });
        saved.bodies = self.saved_rows(Table::Body, found, |key, value| {
            Ok((number(key, 0)?, decode_publish(value)?.0))
        });
        saved.received = self.saved_rows(Table::Received, found, |key, value| {
            let id = key.get(8..).and_then(|id| id.try_into().ok()).map(u16::from_be_bytes);
            let id = id.ok_or_else(|| ReadError("a key has no packet id".to_owned()))?;
            Ok(((number(key, 0)?, id), decode::<ReceivedRow>(value)?))
        });
        saved.wills = self.saved_rows(Table::Will, found, |key, value| {
            let (publish, will) = decode_publish(value)?;
            let will = will.ok_or_else(|| ReadError("a will has no time".to_owned()))?;
            Ok((number(key, 0)?, will, publish))
        });
        // Their keys have no number.
        let largest = found.1;
        saved.retained =
            self.saved_rows(Table::Retained, found, |_, value| Ok(decode_publish(value)?.0));
        saved.unreadable = std::mem::take(&mut found.0);
        let of_wills = saved.wills.iter().map(|(_, will, _)| will.session).max();
        saved.largest_number = largest.max(of_wills.unwrap_or(0));
        saved
    }

    /// The rows of a table. `read` gets a key without table and partition. What cannot be read,
    /// and the largest number of a key, are added to `found`.
    fn saved_rows<T>(
        &self,
        table: Table,
        found: &mut (Vec<String>, u64),
        read: impl Fn(&[u8], &[u8]) -> Result<T, ReadError>,
    ) -> Vec<T> {
        let mut rows = Vec::new();
        for item in self.reader.rows([table as u8]) {
            let row = item.and_then(|(key, value)| {
                let rest = key.get(2..).unwrap_or_default();
                found.1 = found.1.max(number(rest, 0).unwrap_or(0));
                self.reader.checked(&key, read(rest, &value))
            });
            match row {
                Ok(row) => rows.push(row),
                Err(error) => found.0.push(format!("{table:?}: {error}")),
            }
        }
        rows
    }
}

fn number(key: &[u8], at: usize) -> Result<u64, ReadError> {
    let bytes = key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| ReadError("a key is too short".to_owned()))
}

fn encode_publish(publish: &Publish, will: Option<WillRow>) -> Vec<u8> {
    let row = PublishRow {
        topic: publish.topic.as_str().to_owned(),
        qos: publish.qos,
        retain: publish.retain,
        client_id: Arc::clone(&publish.client_id),
        identity: publish.identity.clone(),
        at: publish.received_at,
        properties: publish.properties.clone(),
        will,
    };
    let json = serde_json::to_vec(&row)
        .expect("rows are plain data with string keys, which JSON can always hold");
    let mut bytes = Vec::with_capacity(5 + json.len() + publish.payload.len());
    bytes.push(VALUE_VERSION);
    // A topic and properties, which came in one MQTT packet: far less than 4 GiB.
    bytes.extend(u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(json);
    bytes.extend_from_slice(&publish.payload);
    bytes
}

pub(super) fn decode_publish(bytes: &[u8]) -> Result<(Publish, Option<WillRow>), ReadError> {
    let wrong = |what: &str| ReadError(what.to_owned());
    let (head, rest) = bytes.split_first_chunk::<5>().ok_or_else(|| wrong("it is too short"))?;
    let [version, length @ ..] = *head;
    if version != VALUE_VERSION {
        return Err(ReadError(format!(
            "a row has value version {version}; this program knows {VALUE_VERSION}"
        )));
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    let (json, payload) = rest.split_at_checked(length).ok_or_else(|| wrong("it is cut off"))?;
    let row: PublishRow = from_json(json)?;
    // It was checked when it came; limits that were lowered since do not hold for it.
    let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
    let topic = TopicName::parse(&row.topic, limits).map_err(|bad| wrong(&bad.to_string()))?;
    let publish = Publish {
        topic,
        payload: Bytes::copy_from_slice(payload),
        qos: row.qos,
        retain: row.retain,
        replayed: false,
        client_id: row.client_id,
        identity: row.identity,
        received_at: row.at,
        properties: row.properties,
    };
    Ok((publish, row.will))
}

fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, ReadError> {
    serde_json::from_slice(json).map_err(|error| ReadError(error.to_string()))
}
