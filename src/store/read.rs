//! The one way to read rows: whoever reads a row gets all of it, in however many parts it stands.
//!
//! **Invariant:** nothing else in the store reads sled's tree, but for what opens the store and what
//! makes parts.

use std::ops::Range;

use super::ReadError;
use super::parts::{Head, KEY_BYTES_MAX, is_part, standing_key};

/// Reads rows; clones share the tree.
#[derive(Clone)]
pub(super) struct Reader {
    tree: sled::Tree,
}

/// Rows in the order of their keys, from either end: whole keys and whole values. A row that cannot
/// be read is an error of its own and does not end them; a page of sled's that cannot be read does,
/// because sled would come to it again and again.
pub(super) struct Rows {
    tree: sled::Tree,
    found: sled::Iter,
    ended: bool,
}

/// A key and a value.
pub(super) type Row = (sled::IVec, sled::IVec);

impl Reader {
    pub(super) fn new(tree: sled::Tree) -> Self {
        Self { tree }
    }

    /// The value of the row with this key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, ReadError> {
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

    /// The rows whose keys begin with `prefix`.
    pub(super) fn rows(&self, prefix: impl AsRef<[u8]>) -> Rows {
        Rows { tree: self.tree.clone(), found: self.tree.scan_prefix(prefix), ended: false }
    }

    /// The rows whose keys are in `range`.
    pub(super) fn range(&self, range: Range<Vec<u8>>) -> Rows {
        Rows { tree: self.tree.clone(), found: self.tree.range(range), ended: false }
    }
}

impl Rows {
    /// The values alone.
    pub(super) fn values(self) -> impl DoubleEndedIterator<Item = Result<sled::IVec, ReadError>> {
        self.map(|row| row.map(|(_, value)| value))
    }

    /// `None`: there is no row to give out.
    fn row(&mut self, item: sled::Result<Row>) -> Option<Result<Row, ReadError>> {
        match item {
            Ok((key, _)) if is_part(&key) => None,
            Ok((key, value)) if Head::of(&value).is_none() => Some(Ok((key, value))),
            Ok((key, value)) => whole(&self.tree, &key, value).transpose(),
            Err(error) => {
                self.ended = true;
                Some(Err(error.into()))
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let item = if self.ended { None } else { self.found.next() }?;
            if let Some(row) = self.row(item) {
                return Some(row);
            }
        }
    }
}

impl DoubleEndedIterator for Rows {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            let item = if self.ended { None } else { self.found.next_back() }?;
            if let Some(row) = self.row(item) {
                return Some(row);
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
