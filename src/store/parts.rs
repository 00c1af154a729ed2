//! Large rows: how a value, or a key, that is too large for sled's pages is kept in parts.
//!
//! sled 0.34.7 writes a page whose encoding exceeds 131,052 bytes (a quarter of a segment) as a file
//! of its own under `blobs/`, and never syncs that file: after a power cut the page is empty, and the
//! rows in it are gone, or the store does not open. So no page may become that large.
//!
//! A leaf holds at most 17 rows, 20 after it has taken in a neighbour of 3, and 34 when another
//! thread reads where two full ones merge; an index holds at most 257 keys, 514 in the same case.
//! With [`ROW_BYTES_MAX`] and [`KEY_BYTES_MAX`] those are 34 × (3,584 + 192 + 5) = 128,554 bytes, or
//! 75,620 without the race, and 514 × (192 + 11) = 104,342. The changes of a page are written one row
//! at a time, a batch adds eight bytes.
//!
//! # Format
//!
//! A row that is larger stands under its key as a *head*, 25 bytes: 2, the version of a value; its
//! number; the length of what its parts hold, and the first 8 bytes of that's SHA-256. The parts stand
//! in table `p`, under the partition of the row, its number, and a position (4 bytes) from 0: each a
//! version byte (1) and at most 3,583 bytes of the length of the row's key (4 bytes), the key, and
//! the value. Numbers are 8 bytes, count up and are never used twice: a reader that comes too late
//! for a row's parts finds none, and looks again. All lengths have their most significant byte first.
//!
//! A key that is longer than [`KEY_BYTES_MAX`] stands as its first 160 bytes and its SHA-256; its row
//! is always in parts, which hold the whole key.
//!
//! Parts that belong to no head, as a crash can leave them, are deleted by the next start.

use std::borrow::Cow;
use std::collections::HashMap;

use aws_lc_rs::digest;

use super::ReadError;
use super::keys::{Key, PARTITIONS, Table};

/// Largest value that stands in one piece, bytes; also the largest part.
pub(super) const ROW_BYTES_MAX: usize = 3584;
/// Longest key that stands as it is, bytes.
pub(super) const KEY_BYTES_MAX: usize = 191;
/// How much of a longer key stands before its hash. Together they are longer than any key that
/// stands as it is, so the two kinds are never taken for each other.
const KEY_PREFIX_BYTES: usize = 160;

/// The version byte of a head. Values whose first byte can be anything are not as long as a head.
const HEAD_VERSION: u8 = 2;
const HEAD_BYTES: usize = 1 + 8 + 8 + 8;
const PART_VERSION: u8 = 1;
const PART_BYTES: usize = ROW_BYTES_MAX - 1;

/// A row, whole.
pub(super) type KeyAndValue = (Key, Vec<u8>);

/// What stands under the key of a large row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    number: u64,
    bytes: u64,
    sum: [u8; 8],
}

/// Where the parts of a row are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    partition: u8,
    number: u64,
    parts: u32,
}

/// What a large row becomes.
pub(super) struct Split {
    pub(super) head: Vec<u8>,
    pub(super) parts: Vec<(Key, Vec<u8>)>,
}

/// Whether a row stands in one piece.
pub(super) const fn is_whole(key: &[u8], value_bytes: usize) -> bool {
    key.len() <= KEY_BYTES_MAX && value_bytes <= ROW_BYTES_MAX
}

/// The key under which the row stands.
pub(super) fn standing_key(key: &[u8]) -> Cow<'_, [u8]> {
    match key.get(..KEY_PREFIX_BYTES) {
        Some(prefix) if key.len() > KEY_BYTES_MAX => {
            let mut standing = prefix.to_vec();
            standing.extend_from_slice(digest::digest(&digest::SHA256, key).as_ref());
            Cow::Owned(standing)
        }
        _ => Cow::Borrowed(key),
    }
}

impl Head {
    /// The head that `value` is, if it is one.
    pub(super) fn of(value: &[u8]) -> Option<Self> {
        let rest = value.strip_prefix(&[HEAD_VERSION])?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (bytes, rest) = rest.split_first_chunk::<8>()?;
        let sum = rest.try_into().ok()?;
        Some(Self { number: u64::from_be_bytes(*number), bytes: u64::from_be_bytes(*bytes), sum })
    }

    fn to_value(self) -> Vec<u8> {
        let mut value = Vec::with_capacity(HEAD_BYTES);
        value.push(HEAD_VERSION);
        value.extend(self.number.to_be_bytes());
        value.extend(self.bytes.to_be_bytes());
        value.extend(self.sum);
        value
    }

    fn place(self, key: &[u8]) -> Place {
        let parts = u32::try_from(self.bytes.div_ceil(PART_BYTES as u64)).unwrap_or(u32::MAX);
        Place { partition: partition(key), number: self.number, parts }
    }

    /// The row's key and value from its parts; `None` when some are not there.
    pub(super) fn assemble(
        self,
        tree: &sled::Tree,
        standing: &[u8],
    ) -> Result<Option<KeyAndValue>, ReadError> {
        let mut all = Vec::with_capacity(usize::try_from(self.bytes.min(1 << 20)).unwrap_or(0));
        for part in self.place(standing).keys() {
            match tree.get(part)? {
                Some(part) => all.extend_from_slice(part.get(1..).unwrap_or_default()),
                None => return Ok(None),
            }
        }
        if all.len() as u64 != self.bytes || sum(&all) != self.sum {
            return Err(ReadError("the parts of a large row do not fit together".to_owned()));
        }
        match all.split_first_chunk::<4>().and_then(|(length, rest)| {
            rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
        }) {
            Some((key, value)) => Ok(Some((key.to_vec(), value.to_vec()))),
            None => Err(ReadError("the parts of a large row are too short".to_owned())),
        }
    }
}

impl Place {
    /// The keys of the parts, in order.
    pub(super) fn keys(self) -> impl Iterator<Item = Key> {
        (0..self.parts).map(move |position| part_key(self.partition, self.number, position))
    }
}

fn part_key(partition: u8, number: u64, position: u32) -> Key {
    let mut key = Vec::with_capacity(14);
    key.push(Table::Part as u8);
    key.push(partition);
    key.extend(number.to_be_bytes());
    key.extend(position.to_be_bytes());
    key
}

/// Whether it is the key of a part.
pub(super) fn is_part(key: &[u8]) -> bool {
    key.first() == Some(&(Table::Part as u8))
}

/// The second byte of a key; nothing but a damaged one has none.
fn partition(key: &[u8]) -> u8 {
    key.get(1).copied().unwrap_or_default()
}

fn sum(bytes: &[u8]) -> [u8; 8] {
    let hash = digest::digest(&digest::SHA256, bytes);
    hash.as_ref().first_chunk::<8>().copied().unwrap_or_default()
}

/// Which rows are in parts: what the writer has to know to take old parts away.
#[derive(Debug, Default)]
pub(super) struct Large {
    /// By the key under which the head stands.
    places: HashMap<Vec<u8>, Place>,
    /// No number that is used is larger.
    last_number: u64,
}

impl Large {
    /// Whether nothing need be done but to write the row.
    pub(super) fn leaves_alone(&self, key: &[u8], value: Option<&Vec<u8>>) -> bool {
        is_whole(key, value.map_or(0, Vec::len))
            && (self.places.is_empty() || !self.places.contains_key(key))
    }

    /// Where the parts are that the row has had until now. It has none any more.
    pub(super) fn take(&mut self, standing: &[u8]) -> Option<Place> {
        self.places.remove(standing)
    }

    /// Cuts a row into parts.
    pub(super) fn split(&mut self, key: &[u8], standing: &[u8], value: &[u8]) -> Split {
        self.last_number += 1;
        let mut all = Vec::with_capacity(4 + key.len() + value.len());
        // A topic, which is at most 64 KiB long, is the longest of all keys.
        all.extend(u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes());
        all.extend_from_slice(key);
        all.extend_from_slice(value);
        let head = Head { number: self.last_number, bytes: all.len() as u64, sum: sum(&all) };
        let place = head.place(standing);
        let parts = place.keys().zip(all.chunks(PART_BYTES)).map(|(key, chunk)| {
            let mut part = Vec::with_capacity(1 + chunk.len());
            part.push(PART_VERSION);
            part.extend_from_slice(chunk);
            (key, part)
        });
        let split = Split { head: head.to_value(), parts: parts.collect() };
        self.places.insert(standing.to_vec(), place);
        split
    }

    /// Finds the parts in a store that was just opened, and the keys of those that belong to no row.
    ///
    /// What cannot be read is passed over: its parts stay when their row goes, until a start can
    /// read them.
    pub(super) fn find(tree: &sled::Tree) -> (Self, Vec<Key>) {
        let mut large = Self::default();
        let mut left_over = Vec::new();
        let table = Table::Part as u8;
        for partition in 0..PARTITIONS {
            // Also where the scan below ends early, no number is used twice.
            if let Some(Ok((key, _))) = tree.scan_prefix([table, partition]).next_back() {
                large.last_number = large.last_number.max(number(&key).unwrap_or(0));
            }
            // Of the parts that were looked at last: their number, and how many belong to a row.
            let mut last = None;
            for item in tree.scan_prefix([table, partition]) {
                let Ok((key, _)) = item else { break };
                let Some(number) = number(&key) else { continue };
                let belonging = match last {
                    Some((of, belonging)) if of == number => belonging,
                    _ => match row_of(tree, partition, number) {
                        Ok(Some((standing, place))) => {
                            large.places.insert(standing, place);
                            place.parts
                        }
                        Ok(None) => 0,
                        Err(_) => u32::MAX,
                    },
                };
                last = Some((number, belonging));
                large.last_number = large.last_number.max(number);
                if position(&key).is_none_or(|position| position >= belonging) {
                    left_over.push(key.to_vec());
                }
            }
        }
        (large, left_over)
    }
}

fn number(part: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(part.get(2..10)?.try_into().ok()?))
}

fn position(part: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(part.get(10..14)?.try_into().ok()?))
}

/// The row whose parts have this number: the key under which its head stands, and where they are.
fn row_of(
    tree: &sled::Tree,
    partition: u8,
    number: u64,
) -> Result<Option<(Vec<u8>, Place)>, ReadError> {
    let mut begin = Vec::new();
    let mut position = 0;
    let key = loop {
        let length = begin.first_chunk::<4>().map(|length| u32::from_be_bytes(*length));
        let end = length.and_then(|length| usize::try_from(length).ok()?.checked_add(4));
        if let Some(key) = end.and_then(|end| begin.get(4..end)) {
            break key;
        }
        let Some(part) = tree.get(part_key(partition, number, position))? else { return Ok(None) };
        begin.extend_from_slice(part.get(1..).unwrap_or_default());
        position += 1;
    };
    let standing = standing_key(key);
    let head = tree.get(&*standing)?.and_then(|value| Head::of(&value));
    let head = head.filter(|head| head.number == number);
    Ok(head.map(|head| (standing.to_vec(), head.place(&standing))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_page_of_the_largest_rows_and_keys_is_too_large_for_the_log() {
        // sled's pagecache/logger.rs: (segment_size / MINIMUM_ITEMS_PER_SEGMENT) - SEG_HEADER_LEN,
        // less MAX_MSG_HEADER_LEN, and two bounds and a few numbers of the page itself.
        let key = KEY_PREFIX_BYTES + 32;
        let page = (512 * 1024) / 4 - 20 - 32 - 2 * (key + 2) - 32;
        assert!(key > KEY_BYTES_MAX);
        assert!(34 * (ROW_BYTES_MAX + key + 5) <= page);
        assert!(514 * (key + 2 + 9) <= page);
    }

    #[test]
    fn a_long_key_stands_as_another_that_no_short_key_can_be() {
        let short = vec![b't'; KEY_BYTES_MAX];
        assert_eq!(*standing_key(&short), *short);
        let long = vec![b't'; 70_000];
        let longer = vec![b't'; 70_001];
        assert_eq!(standing_key(&long).len(), KEY_BYTES_MAX + 1);
        assert_ne!(standing_key(&long), standing_key(&longer));
        assert!(standing_key(&long).starts_with(&long[..KEY_PREFIX_BYTES]));
    }
}
