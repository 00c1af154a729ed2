//! Whether rows are what their tables say, and lead where they should.
//!
//! Reads, and says; changes nothing. What an engine above the store keeps in its table is known here
//! to be JSON, and no more.

use std::collections::{HashMap, HashSet};

use serde::de::IgnoredAny;

use super::build::Counts;
use super::keys::{self, Table};
use super::read::Reader;
use super::rows::{Device, Idempotency};
use super::sessions::{QueuedRow, ReceivedRow, SessionRow, decode_publish};
use super::{Ban, ReadError, decode};
use crate::model::tell::Step;
use crate::model::{Message, MessageId};

/// Problems that are said one by one.
const LISTED_MAX: usize = 1_000;

/// What a look through a store has found.
#[derive(Debug, Default)]
pub struct Verified {
    /// How many rows can be read, by table.
    pub rows: Counts,
    /// Whether these are what a repair would save: the store itself does not open.
    pub is_salvage: bool,
    /// Whether a repair would mend any of what is wrong.
    pub needs_repair: bool,
    /// What is wrong, a line each; the first [`LISTED_MAX`].
    pub problems: Vec<String>,
    /// How many there are.
    pub problem_count: u64,
    /// Rows that lead nowhere because a process was killed, or retention has taken what they led
    /// to. They are harmless and are deleted in time.
    pub left_over: u64,
}

impl Verified {
    /// Something that a repair mends, or saves what is left of.
    pub(super) fn problem(&mut self, problem: String) {
        self.needs_repair = true;
        self.note(problem);
    }

    /// Something that says itself what is to be done.
    pub(super) fn note(&mut self, problem: String) {
        self.problem_count += 1;
        if self.problems.len() < LISTED_MAX {
            self.problems.push(problem);
        }
    }
}

/// Whether the value is what the table of its key says, and stands under the right key.
///
/// # Errors
/// What is wrong with it.
pub(super) fn row(key: &[u8], value: &[u8]) -> Result<(), String> {
    let Some((table, _)) = keys::table_of(key) else { return Ok(()) };
    let under = |wanted: &[u8]| match wanted == key {
        true => Ok(()),
        false => Err(format!("it belongs under {}", keys::shown(wanted))),
    };
    let text = |error: ReadError| error.0;
    match table {
        Table::Meta | Table::Part => Ok(()),
        Table::Outbox | Table::History => {
            let message: Message = decode(value).map_err(text)?;
            under(&keys::message(table, message.id))
        }
        Table::Trail => {
            let step: Step = decode(value).map_err(text)?;
            match key.starts_with(&keys::steps(step.alert)) {
                true => Ok(()),
                false => Err(format!("it is a step of alert {}", step.alert)),
            }
        }
        Table::Idempotency => decode::<Idempotency>(value).map(drop).map_err(text),
        Table::Device => {
            let device: Device = decode(value).map_err(text)?;
            under(&keys::device(&device.user))
        }
        Table::Ban => {
            let ban: Ban = decode(value).map_err(text)?;
            under(&keys::ban(ban.kind, &ban.value))
        }
        Table::Session => decode::<SessionRow>(value).map(drop).map_err(text),
        Table::Queued => decode::<QueuedRow>(value).map(drop).map_err(text),
        Table::Received => decode::<ReceivedRow>(value).map(drop).map_err(text),
        Table::Body => decode_publish(value).map(drop).map_err(text),
        Table::Retained => {
            let (publish, _) = decode_publish(value).map_err(text)?;
            under(&keys::retained(publish.topic.as_str()))
        }
        Table::Will => match decode_publish(value).map_err(text)? {
            (_, Some(_)) => Ok(()),
            (_, None) => Err("a will has no time".to_owned()),
        },
        Table::Reference => {
            uuid::Uuid::from_slice(value).map(drop).map_err(|error| error.to_string())
        }
        Table::Instance | Table::Telling | Table::Memory | Table::Engine | Table::Suppressed => {
            decode::<IgnoredAny>(value).map(drop).map_err(text)
        }
    }
}

/// Reads every row.
pub(super) fn each(reader: &Reader) -> Verified {
    let mut verified = Verified::default();
    for item in reader.range(Vec::new()..vec![u8::MAX]) {
        let (key, value) = match item {
            Ok(row) => row,
            Err(error) => {
                verified.problem(error.0);
                continue;
            }
        };
        match (row(&key, &value), keys::table_of(&key)) {
            (Err(problem), _) => verified.problem(format!("{}: {problem}", keys::shown(&key))),
            (Ok(()), Some((Table::Meta, _)) | None) => {}
            (Ok(()), Some((_, name))) => *verified.rows.entry(name).or_default() += 1,
        }
    }
    verified
}

/// Reads every row, and what it leads to.
pub(super) fn all(reader: &Reader) -> Verified {
    let mut verified = Verified::default();
    let mut sessions: HashSet<Vec<u8>> = HashSet::new();
    let mut bodies: HashSet<u64> = HashSet::new();
    let mut queued: HashMap<Vec<u8>, Option<u64>> = HashMap::new();
    for item in reader.range(Vec::new()..vec![u8::MAX]) {
        let (key, value) = match item {
            Ok(row) => row,
            Err(error) => {
                verified.problem(error.0);
                continue;
            }
        };
        if let Err(problem) = row(&key, &value) {
            verified.problem(format!("{}: {problem}", keys::shown(&key)));
            continue;
        }
        let Some((table, name)) = keys::table_of(&key) else {
            verified
                .problem(format!("{}: a table that this program does not know", keys::shown(&key)));
            continue;
        };
        if table == Table::Meta {
            continue;
        }
        *verified.rows.entry(name).or_default() += 1;
        let rest = key.get(2..).unwrap_or_default();
        let number =
            |bytes: &[u8]| bytes.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes));
        match table {
            Table::Outbox | Table::History => message(reader, table, &key, &value, &mut verified),
            Table::Reference => {
                let id = uuid::Uuid::from_slice(&value).map(MessageId::new);
                let is_there = |table| {
                    id.as_ref().is_ok_and(|id| {
                        reader.get(&keys::message(table, *id)).is_ok_and(|row| row.is_some())
                    })
                };
                if !is_there(Table::Outbox) && !is_there(Table::History) {
                    verified.left_over += 1;
                }
            }
            Table::Session => drop(sessions.insert(rest.to_vec())),
            Table::Body => bodies.extend(number(rest)),
            Table::Queued => {
                let body = decode::<QueuedRow>(&value).ok().and_then(|row| row.body);
                queued.insert(rest.to_vec(), body);
            }
            _ => {}
        }
    }
    for (rest, body) in queued {
        let has_session = rest.get(..8).is_some_and(|session| sessions.contains(session));
        let has_body = body.is_none_or(|body| bodies.contains(&body));
        if !has_session {
            verified.left_over += 1;
        } else if !has_body {
            verified.problem(format!(
                "queued/0/{}: the publish that waits for this session is missing",
                keys::hex(&rest)
            ));
        }
    }
    verified
}

fn message(reader: &Reader, table: Table, key: &[u8], value: &[u8], verified: &mut Verified) {
    let Ok(message) = decode::<Message>(value) else { return };
    if table == Table::Outbox {
        if message.status.is_final() {
            verified.problem(format!("{}: it has ended, and is in the outbox", keys::shown(key)));
        }
        let elsewhere = keys::message(Table::History, message.id);
        if reader.get(&elsewhere).is_ok_and(|row| row.is_some()) {
            verified.problem(format!("{}: it is in the history too", keys::shown(key)));
        }
    }
    if let (Some(provider), Some(reference)) = (&message.provider, &message.provider_ref) {
        let row = reader.get(&keys::reference(provider, reference));
        if !row.is_ok_and(|row| row.is_some()) {
            verified.problem(format!(
                "{}: the row that leads from its provider's id to it is missing: receipts do not \
                 find it",
                keys::shown(key)
            ));
        }
    }
}
