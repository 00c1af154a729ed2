//! The one way to read rows: whoever reads a row gets all of it, in however many parts it stands.
//!
//! **Invariant:** nothing else in the store reads sled's tree, but for what opens the store and what
//! makes parts.

use std::ops::Range;

use serde::de::DeserializeOwned;

use super::health::Health;
use super::parts::{Head, KEY_BYTES_MAX, is_part, standing_key};
use super::{ReadError, decode, keys};

/// Reads rows; clones share the tree.
#[derive(Clone)]
pub(super) struct Reader {
    tree: sled::Tree,
    health: Health,
}

/// Rows in the order of their keys, from either end: whole keys and whole values. A row that cannot
/// be read is an error of its own and does not end them. Nor does a page of sled's that cannot be
/// read: it is one error, and the rows behind it follow. Each is counted.
pub(super) struct Rows {
    tree: sled::Tree,
    health: Health,
    found: sled::Iter,
    /// What is still to be read lies from here up to, and without, there.
    from: Vec<u8>,
    to: Vec<u8>,
    ended: bool,
}

/// A key and a value.
pub(super) type Row = (sled::IVec, sled::IVec);

/// Keys are compared as numbers of so many bytes where a page is jumped over: longer ones differ
/// before.
const JUMP_BYTES: usize = 32;

impl Reader {
    pub(super) fn new(tree: sled::Tree, health: Health) -> Self {
        Self { tree, health }
    }

    /// The value of the row with this key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, ReadError> {
        let read = self.read(key);
        if let Err(error) = &read {
            self.health.unreadable(key, false, error);
        }
        read
    }

    fn read(&self, key: &[u8]) -> Result<Option<sled::IVec>, ReadError> {
        if key.len() > KEY_BYTES_MAX
            // As an older program wrote it, which leaves the newer row alone: the newest of the two.
            && let Some(value) = self.tree.get(key)?
        {
            return Ok(Some(value));
        }
        let standing = standing_key(key);
        let Some(value) = self.tree.get(&*standing)? else { return Ok(None) };
        if Head::of(&value).is_none() {
            return Ok(Some(value));
        }
        Ok(whole(&self.tree, &standing, value)?.map(|(_, value)| value))
    }

    /// The whole row that stands under `standing`, where `value` was found.
    pub(super) fn standing(
        &self,
        standing: &[u8],
        value: sled::IVec,
    ) -> Result<Option<Row>, ReadError> {
        match Head::of(&value) {
            None => Ok(Some((standing.into(), value))),
            Some(_) => whole(&self.tree, standing, value),
        }
    }

    /// What has been counted.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Counts a row whose value makes no sense.
    pub(super) fn checked<T>(
        &self,
        key: &[u8],
        decoded: Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        decoded.inspect_err(|error| self.health.unreadable(key, false, error))
    }

    /// The rows whose keys begin with `prefix`.
    pub(super) fn rows(&self, prefix: impl AsRef<[u8]>) -> Rows {
        let from = prefix.as_ref().to_vec();
        let to = after_all(&from);
        self.range(from..to)
    }

    /// The rows whose keys are in `range`.
    pub(super) fn range(&self, range: Range<Vec<u8>>) -> Rows {
        let Range { start: from, end: to } = range;
        let found = self.tree.range(from.clone()..to.clone());
        Rows { tree: self.tree.clone(), health: self.health.clone(), found, from, to, ended: false }
    }
}

/// What no key with this prefix reaches; no key begins with 0xff.
fn after_all(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![u8::MAX]
}

impl Rows {
    /// Where it goes on forward.
    pub(super) fn place(&self) -> &[u8] {
        if self.ended { &self.to } else { &self.from }
    }

    /// The rows as `T`, with their keys; what cannot be read is counted and passed over.
    pub(super) fn readable<T: DeserializeOwned>(self) -> impl Iterator<Item = (sled::IVec, T)> {
        let health = self.health.clone();
        self.filter_map(move |row| {
            let (key, value) = row.ok()?;
            let decoded = decode(&value);
            let decoded = decoded.inspect_err(|error| health.unreadable(&key, false, error));
            Some((key, decoded.ok()?))
        })
    }

    /// `None`: there is no row to give out.
    fn row(&mut self, (key, value): Row) -> Option<Result<Row, ReadError>> {
        if is_part(&key) {
            return None;
        }
        if Head::of(&value).is_none() {
            return Some(Ok((key, value)));
        }
        let whole = whole(&self.tree, &key, value);
        let whole = whole.inspect_err(|error| self.health.unreadable(&key, false, error));
        whole.map_err(|error| named(&key, &error)).transpose()
    }

    /// Goes on behind (or before) a page that cannot be read: sled would come to it again and again.
    fn jump(&mut self, error: sled::Error, forward: bool) -> ReadError {
        let error = ReadError::from(error);
        let beside = if forward { &self.from } else { &self.to };
        self.health.unreadable(beside, true, &error);
        let side = if forward { "behind" } else { "before" };
        let error =
            ReadError(format!("a page of rows {side} {}: {}", keys::shown(beside), error.0));
        let is_readable = |at: &[u8]| {
            if forward {
                !matches!(self.tree.range(at..self.to.as_slice()).next(), Some(Err(_)))
            } else {
                !matches!(self.tree.range(self.from.as_slice()..at).next_back(), Some(Err(_)))
            }
        };
        let here = if forward { &self.from } else { &self.to };
        let place = |bit: usize| moved(here, bit, forward);
        let inside = |at: &Vec<u8>| *at > self.from && *at < self.to;
        // The nearest step that leads out, then the nearest place between it and the step before.
        let out = (0..JUMP_BYTES * 8).map_while(|bit| place(bit).filter(inside));
        let Some(mut out) = out.into_iter().find(|at| is_readable(at)) else {
            self.ended = true;
            return error;
        };
        for bit in (0..JUMP_BYTES * 8).rev() {
            let Some(nearer) = moved(&out, bit, !forward).filter(inside) else { continue };
            let is_beyond = if forward { nearer > *here } else { nearer < *here };
            if is_beyond && is_readable(&nearer) {
                out = nearer;
            }
        }
        if forward {
            self.from = out;
        } else {
            self.to = out;
        }
        self.found = self.tree.range(self.from.clone()..self.to.clone());
        error
    }
}

/// The key that lies `2^bit` behind or before, both taken as numbers.
fn moved(key: &[u8], bit: usize, forward: bool) -> Option<Vec<u8>> {
    let mut number = [0_u8; JUMP_BYTES];
    let len = key.len().min(JUMP_BYTES);
    number.get_mut(..len)?.copy_from_slice(key.get(..len)?);
    let mut carry = 1_u16 << (bit % 8);
    for byte in number.iter_mut().rev().skip(bit / 8) {
        let (value, over) = match u8::try_from(carry) {
            Ok(step) if forward => byte.overflowing_add(step),
            Ok(step) => byte.overflowing_sub(step),
            Err(_) => (*byte, true),
        };
        *byte = value;
        if !over {
            return Some(number.to_vec());
        }
        carry = 1;
    }
    None
}

/// Says of which row it is.
fn named(key: &[u8], error: &ReadError) -> ReadError {
    ReadError(format!("{}: {}", keys::shown(key), error.0))
}

impl Iterator for Rows {
    type Item = Result<Row, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let item = if self.ended { None } else { self.found.next() }?;
            match item {
                Ok(row) => {
                    self.from.clear();
                    self.from.extend_from_slice(&row.0);
                    // The next key that there can be.
                    self.from.push(0);
                    if let Some(row) = self.row(row) {
                        return Some(row);
                    }
                }
                Err(error) => return Some(Err(self.jump(error, true))),
            }
        }
    }
}

impl DoubleEndedIterator for Rows {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            let item = if self.ended { None } else { self.found.next_back() }?;
            match item {
                Ok(row) => {
                    self.to.clear();
                    self.to.extend_from_slice(&row.0);
                    if let Some(row) = self.row(row) {
                        return Some(row);
                    }
                }
                Err(error) => return Some(Err(self.jump(error, false))),
            }
        }
    }
}

/// The row that stands under `standing`, where `value` was found; `None` when it is no longer there.
fn whole(
    tree: &sled::Tree,
    standing: &[u8],
    mut value: sled::IVec,
) -> Result<Option<Row>, ReadError> {
    loop {
        let Some(head) = Head::of(&value) else {
            return Ok(Some((standing.into(), value)));
        };
        if let Some((key, value)) = head.assemble(tree, standing)? {
            // An older program has written the row anew, and knows nothing of this one.
            let outdated = key.len() > KEY_BYTES_MAX && tree.contains_key(&key)?;
            return Ok((!outdated).then(|| (key.into(), value.into())));
        }
        // The row has changed since its head was read, or it is damaged.
        match tree.get(standing)? {
            Some(now) if now == value => {
                return Err(ReadError("parts of a large row are missing".to_owned()));
            }
            Some(now) => value = now,
            None => return Ok(None),
        }
    }
}
