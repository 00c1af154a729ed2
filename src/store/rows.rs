//! What the rows hold that are no type of [`crate::model`], and the tables whose rows are the
//! business of engines above the store.

use std::sync::mpsc::sync_channel;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::keys::{self, Table};
use super::{Op, ReadError, Store};
use crate::clock::Timestamp;
use crate::model::MessageId;

/// Most threads that read a table, and how many rows they hand on at a time.
const THREADS_MAX: usize = 4;
const BATCH: usize = 512;

/// What an API request with an idempotency key became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// SHA-256 of the request, hexadecimal: the same key with another request is an error.
    pub request: String,
    /// The messages.
    pub messages: Vec<MessageId>,
    /// When.
    pub at: Timestamp,
}

/// A device's credential, as `watchbell device add` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The user name; unique.
    pub user: String,
    /// Argon2id hash in PHC string form.
    pub password_hash: String,
    /// Which client ids it may use: exact, or with `*`.
    pub client_ids: Vec<String>,
    /// Which groups it is in, for `[[access]]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// When it was added.
    pub added_at: Timestamp,
}

/// Rows of [`Table::Instance`], [`Table::Telling`], [`Table::Memory`] and [`Table::Engine`]: each
/// holds what the engine that writes it says. A field that is added needs a serde default. Keys
/// that come in some order (ids) cost sled a fraction of those that do not (names, hashes).
impl Op {
    /// Puts a row; `partition` is 0 to 63, see [`crate::model::partition`].
    pub fn put_row(&mut self, table: Table, partition: u8, rest: &[u8], row: &impl Serialize) {
        self.put(keys::row(table, partition, rest), row);
    }

    /// Takes a row out.
    pub fn remove_row(&mut self, table: Table, partition: u8, rest: &[u8]) {
        self.remove(keys::row(table, partition, rest));
    }
}

impl Store {
    /// The row with this key.
    pub fn row<T: DeserializeOwned>(
        &self,
        table: Table,
        partition: u8,
        rest: &[u8],
    ) -> Result<Option<T>, ReadError> {
        self.get(&keys::row(table, partition, rest))
    }

    /// Reads all rows of a table by several threads, in no order: what a start waits for. What
    /// cannot be read is counted, said and passed over ([`Store::problems`]).
    pub fn each_row<T: DeserializeOwned + Send>(&self, table: Table, mut take: impl FnMut(T)) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        std::thread::scope(|scope| {
            let (rows, batches) = sync_channel(2 * threads);
            for first in 0..threads {
                let (reader, rows) = (self.reader.clone(), rows.clone());
                scope.spawn(move || {
                    for partition in (0..keys::PARTITIONS).skip(first).step_by(threads) {
                        let found = reader.rows([table as u8, partition]).readable::<T>();
                        let mut found = found.map(|(_, row)| row);
                        loop {
                            let batch: Vec<_> = found.by_ref().take(BATCH).collect();
                            if batch.is_empty() || rows.send(batch).is_err() {
                                break;
                            }
                        }
                    }
                });
            }
            drop(rows);
            batches.into_iter().flatten().for_each(&mut take);
        });
    }

    /// The rows of a table whose keys begin with `rest` behind their partition. What cannot be read is
    /// counted, said and passed over ([`Store::problems`]).
    pub fn rows_under<T: DeserializeOwned>(
        &self,
        table: Table,
        rest: &[u8],
    ) -> impl Iterator<Item = T> + use<T> {
        let (reader, rest) = (self.reader.clone(), rest.to_vec());
        (0..keys::PARTITIONS).flat_map(move |partition| {
            let rows = reader.rows(keys::row(table, partition, &rest));
            rows.readable::<T>().map(|(_, row)| row)
        })
    }

    /// All rows of a table in the order of their keys; one that cannot be read is an error of its
    /// own and does not end the scan.
    pub fn rows<T: DeserializeOwned>(
        &self,
        table: Table,
    ) -> impl Iterator<Item = Result<T, ReadError>> + use<T> {
        self.scan(table)
    }
}
