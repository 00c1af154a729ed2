//! Reads a `db` file of sled 0.34.7 without sled: everything that can be read, whatever else is
//! damaged. What `watchbell store repair` stands on where sled opens nothing any more.
//!
//! Never writes, never panics on what it reads, and keeps one segment and an index in memory. Knows
//! no table of ours: rows are bytes. **Invariant:** of an undamaged store it gives exactly the rows
//! that sled gives; of a damaged one it gives no row twice, and none that sled ever deleted as long
//! as the page that says so can be read.
//!
//! # The format
//!
//! The file is a row of segments of `segment_size` bytes (named in `conf`; 8 MiB, of older programs 512 KiB). A segment
//! begins with 20 bytes: CRC-32 of the other 16, inverted; its log sequence number (LSN), i64 XOR
//! `i64::MAX`; the highest stable LSN, the same way. An LSN divided by the segment size is the
//! segment's number: where it stands in the log, whatever its place in the file; segments are
//! reused. Zeros are a segment that nobody uses.
//!
//! Then come messages: CRC-32, inverted, of the body and then of the header without the CRC; a
//! kind (1 byte); three numbers of variable length: the body's length, the segment's number, the
//! page's. A segment ends with a `Cap`, or with less room than a header may take (32 bytes).
//!
//! | kind | what |
//! |---|---|
//! | 1 canceled, 2 cap, 3 batch | nothing of a page |
//! | 4 | the page is free |
//! | 5 counter, 6 and 7 meta | sled's own |
//! | 8 node, 9 node as a blob | a whole page: what came before for it is past |
//! | 10 link, 11 link as a blob | one change to the page |
//!
//! A blob's body is its number, i64; `blobs/NUMBER` holds a CRC-32 of the rest, the kind, the body.
//! A node is: next page, merging page (numbers), merging (1 byte), prefix length (1 byte), lowest
//! key, the key above the highest (empty: none), 0 for a leaf, a count, keys, values; strings are a
//! length and bytes, and keys lack the prefix, which the lowest key begins with. A link is 0 set
//! (key, value), 1 delete (key), 2 to 4 merging.
//!
//! # What is done about damage
//!
//! - A message whose only fault is one flipped bit is mended: the CRC says which bit it was.
//! - Behind a place that cannot be read, the next message of the same segment is looked for.
//! - Leaves that can be read share the keys among them; where a key range is nobody's, the newest
//!   older copy of a page that covers it fills it (sled does not overwrite a page, it writes it
//!   anew elsewhere).
//! - Where there is none, the rows of a page whose checksum does not fit are given out as doubtful.
//! - Changes to a page that cannot be read at all are given out with what is known of their key.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::disk;

/// Bytes of a segment's head, and the most that a message's may take.
const SEGMENT_HEAD: usize = 20;
const HEAD_MAX: usize = 32;
/// sled's default, in which older programs made their stores.
const SEGMENT_SIZE: usize = 512 << 10;
/// How many places of the log are looked at for a segment's head, where `conf` does not say.
const HEADS_LOOKED_AT: u64 = 64;
/// Damaged places that are listed one by one.
const LISTED_MAX: usize = 1000;
/// The polynomial of CRC-32, reflected.
const POLYNOMIAL: u32 = 0xEDB8_8320;

/// How sure a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// As it stood when the last message about it was written.
    Current,
    /// From an older copy of a page whose newest cannot be read: later changes are missing, and
    /// rows may be among them that have been deleted since.
    Older,
    /// From a page whose checksum does not fit: this row may be what is damaged.
    Doubtful,
}

/// A place of the file that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes from the beginning of `db`.
    pub(super) offset: u64,
    /// How many bytes.
    pub(super) bytes: u64,
}

/// A change to a page that cannot be read: the end of a key, and the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loose {
    /// The last bytes of the key.
    pub(super) key_end: Vec<u8>,
    /// The value.
    pub(super) value: Vec<u8>,
}

/// What was found besides rows.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Places that cannot be read; the first [`LISTED_MAX`].
    pub(super) damaged: Vec<Place>,
    /// How many there are.
    pub(super) damaged_count: usize,
    /// Messages of which one flipped bit was set right.
    pub(super) mended: usize,
    /// Key ranges of which nothing is known: from, and up to (empty: to the end).
    pub(super) gaps: Vec<(Vec<u8>, Vec<u8>)>,
    /// Changes to pages that cannot be read.
    pub(super) loose: Vec<Loose>,
    /// Messages that were read.
    pub(super) messages: u64,
}

impl Found {
    fn damage(&mut self, offset: u64, bytes: u64) {
        self.damaged_count += 1;
        if self.damaged.len() < LISTED_MAX {
            self.damaged.push(Place { offset, bytes });
        }
    }
}

/// Gives out every row that can be read of the sled store in `directory`, each key once, in no
/// order.
///
/// # Errors
/// `db` cannot be opened or read, or `take` fails.
pub(super) fn rows<E: From<io::Error>>(
    directory: &Path,
    mut take: impl FnMut(&[u8], &[u8], Trust) -> Result<(), E>,
) -> Result<Found, E> {
    let log = Log::open(directory)?;
    let mut found = Found::default();
    let pages = log.index(&mut found)?;
    let mut covered = Covered::default();
    let Pages { mut versions, loose, suspects } = pages;
    // The newest of each page first, those that are known to lack something behind them, then
    // older ones.
    versions.sort_by_key(|version| {
        (version.is_past, version.lacks, std::cmp::Reverse(version.last_lsn))
    });
    // A page that was merged into its neighbour, and not yet freed: it is written anew with its
    // segment, though what has changed since stands with the neighbour. It counts where there is none.
    let mut merged = Vec::new();
    for version in &versions {
        if version.is_past {
            for page in std::mem::take(&mut merged) {
                give(&page, Trust::Current, &mut covered, &mut take)?;
            }
            if covered.is_whole() {
                break;
            }
        }
        let trust = if version.is_past || version.lacks { Trust::Older } else { Trust::Current };
        match log.page(version) {
            Some(Some(page)) if page.is_merged && !version.is_past => merged.push(page),
            Some(Some(page)) => give(&page, trust, &mut covered, &mut take)?,
            Some(None) => {}
            None if version.is_past => {}
            None => found.damage(version.base.at, version.base.len.into()),
        }
    }
    for page in merged {
        give(&page, Trust::Current, &mut covered, &mut take)?;
    }
    for suspect in suspects.iter().rev() {
        if covered.is_whole() {
            break;
        }
        if let Some(Some(page)) = log.page(suspect) {
            give(&page, Trust::Doubtful, &mut covered, &mut take)?;
        }
    }
    found.gaps = covered.gaps();
    let mut ends: BTreeMap<(u64, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
    for (page, body) in of_pages(loose) {
        match log.body(&body).as_deref().and_then(Change::read) {
            Some(Change::Set(key, value)) => drop(ends.insert((page, key), Some(value))),
            Some(Change::Delete(key)) => drop(ends.insert((page, key), None)),
            Some(Change::Merged | Change::Nothing) | None => {}
        }
    }
    let known = ends
        .into_iter()
        .filter_map(|((_, key_end), value)| value.map(|value| Loose { key_end, value }));
    found.loose.extend(known);
    Ok(found)
}

/// What a look at the log has found, before sled reads it.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Places that cannot be read, though something stands behind them.
    pub(super) damaged: usize,
    /// Messages of which one bit is wrong.
    pub(super) mended: usize,
    /// The last row that `of_row` knew before the first place of either kind.
    pub(super) before: Option<u64>,
    /// The last row that `of_row` knew.
    pub(super) last: Option<u64>,
}

/// Reads the messages from `from_lsn` on, as sled does when it opens: it takes what it cannot read
/// for the end of a segment, or of everything, without a word.
///
/// # Errors
/// `db` cannot be read.
pub(super) fn look(
    directory: &Path,
    from_lsn: u64,
    of_row: impl Fn(&[u8]) -> Option<u64>,
) -> io::Result<Look> {
    let log = Log::open(directory)?;
    let size = log.file.metadata()?.len();
    let mut found = Found::default();
    let Segments { places, headless } =
        log.segments(size, &mut Vec::new(), &mut Found::default())?;
    let first = from_lsn / log.segment_size as u64;
    let last = places.keys().next_back().copied();
    let mut look = Look::default();
    let mut buffer = Vec::new();
    // What the snapshot stands on is not there.
    if !from_lsn.is_multiple_of(log.segment_size as u64) && last.is_none_or(|last| last < first) {
        look.damaged += 1;
    }
    let mut is_sound = true;
    for (number, offset) in places.range(first..) {
        // sled takes a segment without a head for one that nobody uses.
        if headless.contains(number) {
            look.damaged += 1;
            is_sound = false;
        }
        log.read(*offset, size, &mut buffer)?;
        let of_before = found.damaged.len();
        let messages = messages(&buffer, *number, *offset, Some(*number) == last, &mut found);
        let damaged = found.damaged.get(of_before).map(|place| place.offset);
        for (at, message) in messages {
            let is_damaged = damaged.is_some_and(|damaged| damaged <= offset + at as u64);
            is_sound &= !message.is_mended && !is_damaged;
            if message.fits && matches!(message.kind, 8 | 10) {
                let end = at + message.head;
                let body = buffer.get(end..end + message.len).unwrap_or_default();
                let known = match message.kind {
                    10 => match Change::read(body) {
                        Some(Change::Set(_, value)) => of_row(&value),
                        _ => None,
                    },
                    // The rows of table M are in the first of all leaves.
                    _ => Page::read(body)
                        .flatten()
                        .filter(|page| page.lo.is_empty())
                        .and_then(|page| page.rows.values().find_map(|value| of_row(value))),
                };
                look.last = look.last.max(known);
                if is_sound {
                    look.before = known.or(look.before);
                }
            }
        }
        is_sound &= damaged.is_none();
    }
    look.damaged += found.damaged_count;
    look.mended = found.mended;
    Ok(look)
}

/// Where the newest snapshot says that the log has been read to; `None` where there is none.
///
/// # Errors
/// One is damaged: sled would refuse to open. All of them can be deleted: they are made anew.
pub(super) fn snapshot(directory: &Path) -> Result<Option<u64>, PathBuf> {
    let mut snapshots = snapshots(directory);
    snapshots.sort();
    let mut newest = None;
    for path in snapshots {
        let bytes = fs::read(&path).unwrap_or_default();
        let lsn = bytes.split_last_chunk::<12>().and_then(|(rest, end)| {
            let (_, crc) = end.split_last_chunk::<4>()?;
            let fits = u32::from_le_bytes(*crc) == crc32fast::hash(rest);
            fits.then(|| i64::from_le_bytes(*rest.first_chunk::<8>().unwrap_or(&[0; 8])))
        });
        match lsn {
            // It is one more than the place, and zero where there is none.
            Some(lsn) => newest = Some(u64::try_from(lsn.saturating_sub(1)).unwrap_or(0)),
            None => return Err(path),
        }
    }
    Ok(newest)
}

/// The files in which sled notes how far it has read its log.
pub(super) fn snapshots(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names =
        entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("snap."));
    names.map(|entry| entry.path()).collect()
}

fn of_pages(loose: HashMap<u64, Vec<Body>>) -> impl Iterator<Item = (u64, Body)> {
    loose.into_iter().flat_map(|(page, bodies)| bodies.into_iter().map(move |body| (page, body)))
}

/// Where a message's body stands.
#[derive(Clone, Copy, Debug)]
struct Body {
    /// Bytes from the beginning of the file.
    at: u64,
    len: u32,
    /// The bit of the body that is wrong.
    flipped: Option<u32>,
    is_blob: bool,
}

/// A page as it stood for some time: a node, and the changes after it.
#[derive(Debug)]
struct Version {
    base: Body,
    changes: Vec<Body>,
    last_lsn: u64,
    /// A newer one came, or the page was freed.
    is_past: bool,
    /// A message about the page behind it cannot be read.
    lacks: bool,
}

#[derive(Default)]
struct Pages {
    versions: Vec<Version>,
    /// By page.
    loose: HashMap<u64, Vec<Body>>,
    /// Nodes whose checksum does not fit, in their order.
    suspects: Vec<Version>,
}

/// The log while it is read.
struct Log {
    file: File,
    blobs: PathBuf,
    segment_size: usize,
}

/// Where the segments of the log stand.
#[derive(Default)]
struct Segments {
    /// Their offsets, by their numbers.
    places: BTreeMap<u64, u64>,
    /// The numbers of those whose heads cannot be read: their messages say which they are.
    headless: BTreeSet<u64>,
}

/// A message of the log.
struct Message {
    kind: u8,
    page: u64,
    /// Where its body begins, from the beginning of the message; and how long that is.
    head: usize,
    len: usize,
    flipped: Option<u32>,
    fits: bool,
    /// One bit of it was set right, in its body or in its head.
    is_mended: bool,
}

impl Message {
    fn total(&self) -> usize {
        self.head + self.len
    }
}

/// The size of the segments of the store in `directory`, bytes: what `conf` says, or else what the
/// log itself shows, as far as it is one of those that Watchbell has ever made. `None`: there is no
/// log, or nothing to be seen.
pub(super) fn segment_bytes(directory: &Path) -> Option<usize> {
    let conf = fs::read(directory.join("conf")).unwrap_or_default();
    let conf = String::from_utf8_lossy(&conf);
    let named = conf.lines().find_map(|line| line.strip_prefix("segment_size: "));
    let named = named
        .and_then(|size| size.trim().parse().ok())
        .filter(|size: &usize| size.is_power_of_two() && (256..=1 << 24).contains(size));
    named.or_else(|| {
        let log = File::open(directory.join("db")).ok()?;
        let begins_one = |offset: u64, size: usize| {
            let mut head = [0; SEGMENT_HEAD];
            log.read_exact_at(&mut head, offset).is_ok()
                && segment_number(&head, size as u64).is_some()
        };
        let small = SEGMENT_SIZE as u64;
        let is_small = (0..HEADS_LOOKED_AT).any(|nth| {
            let offset = nth * small;
            begins_one(offset, SEGMENT_SIZE)
                && (!offset.is_multiple_of(disk::SEGMENT_BYTES as u64)
                    || !begins_one(offset, disk::SEGMENT_BYTES))
        });
        let is_large = || begins_one(0, disk::SEGMENT_BYTES);
        if is_small { Some(SEGMENT_SIZE) } else { is_large().then_some(disk::SEGMENT_BYTES) }
    })
}

impl Log {
    fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(directory.join("db"))?,
            blobs: directory.join("blobs"),
            segment_size: segment_bytes(directory).unwrap_or(disk::SEGMENT_BYTES),
        })
    }

    /// Reads the whole log once, in its order, and notes where what stands.
    fn index(&self, found: &mut Found) -> io::Result<Pages> {
        let size = self.file.metadata()?.len();
        let step = self.segment_size as u64;
        let mut buffer = Vec::new();
        let Segments { places, .. } = self.segments(size, &mut buffer, found)?;
        let last = places.keys().next_back().copied();
        let mut pages = Pages::default();
        // The newest version of each page.
        let mut newest: HashMap<u64, usize> = HashMap::new();
        for (number, offset) in places {
            self.read(offset, size, &mut buffer)?;
            let is_last = Some(number) == last;
            for (at, message) in messages(&buffer, number, offset, is_last, found) {
                let lsn = number.saturating_mul(step) + at as u64;
                pages.note(&mut newest, &message, lsn, offset + at as u64);
            }
        }
        Ok(pages)
    }

    /// Where the segments stand.
    fn segments(&self, size: u64, buffer: &mut Vec<u8>, found: &mut Found) -> io::Result<Segments> {
        let step = self.segment_size as u64;
        let mut segments = Segments::default();
        let mut unnamed = Vec::new();
        for offset in (0..size).step_by(self.segment_size) {
            let mut head = [0; SEGMENT_HEAD];
            let bytes = head.len().min(usize::try_from(size - offset).unwrap_or(usize::MAX));
            self.file.read_exact_at(head.get_mut(..bytes).unwrap_or_default(), offset)?;
            match segment_number(&head, step) {
                Some(number) => drop(segments.places.insert(number, offset)),
                None => unnamed.push(offset),
            }
        }
        for offset in unnamed {
            self.read(offset, size, buffer)?;
            if buffer.iter().all(|byte| *byte == 0) {
                continue;
            }
            // Its messages know where they belong.
            match highest_number(buffer) {
                Some(number) if !segments.places.contains_key(&number) => {
                    found.damage(offset, SEGMENT_HEAD as u64);
                    segments.places.insert(number, offset);
                    segments.headless.insert(number);
                }
                _ => found.damage(offset, buffer.len() as u64),
            }
        }
        Ok(segments)
    }

    fn read(&self, offset: u64, size: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        // Zeros behind the end of the file: the last message may be shorter than a head can be.
        buffer.clear();
        buffer.resize(self.segment_size, 0);
        let there = buffer.get_mut(..self.segment_size.min(left)).unwrap_or_default();
        self.file.read_exact_at(there, offset)
    }

    /// The bytes of a body, with what is known to be wrong in it set right.
    fn body(&self, body: &Body) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(body.len).ok()?];
        self.file.read_exact_at(&mut bytes, body.at).ok()?;
        if let Some(bit) = body.flipped {
            *bytes.get_mut(usize::try_from(bit / 8).ok()?)? ^= 1 << (bit % 8);
        }
        if !body.is_blob {
            return Some(bytes);
        }
        let name = i64::from_le_bytes(bytes.try_into().ok()?);
        let mut blob = fs::read(self.blobs.join(name.to_string())).ok()?;
        let (crc, rest) = blob.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*crc) != crc32fast::hash(rest) {
            return None;
        }
        Some(blob.split_off(5))
    }

    /// The page as it stands after its changes; `None` where it cannot be read, and no page where
    /// it holds no rows.
    fn page(&self, version: &Version) -> Option<Option<Page>> {
        let Some(mut page) = Page::read(&self.body(&version.base)?)? else { return Some(None) };
        for change in &version.changes {
            page.change(Change::read(&self.body(change)?)?);
        }
        Some(Some(page))
    }
}

impl Pages {
    fn note(&mut self, newest: &mut HashMap<u64, usize>, message: &Message, lsn: u64, at: u64) {
        let Ok(len) = u32::try_from(message.len) else { return };
        let body = Body {
            at: at + message.head as u64,
            len,
            flipped: message.flipped,
            is_blob: matches!(message.kind, 9 | 11),
        };
        let new = || Version {
            base: body,
            changes: Vec::new(),
            last_lsn: lsn,
            is_past: false,
            lacks: false,
        };
        let known = newest.get(&message.page).copied();
        let known = known.and_then(|index| self.versions.get_mut(index));
        match (message.kind, message.fits) {
            (4 | 8 | 9, true) => {
                if let Some(known) = known {
                    known.is_past = true;
                }
                self.loose.remove(&message.page);
                if message.kind == 4 {
                    newest.remove(&message.page);
                } else {
                    newest.insert(message.page, self.versions.len());
                    self.versions.push(new());
                }
            }
            (10 | 11, true) => match known {
                Some(known) => {
                    known.changes.push(body);
                    known.last_lsn = lsn;
                }
                None => self.loose.entry(message.page).or_default().push(body),
            },
            (kind, false) => {
                if let Some(known) = known {
                    known.lacks = true;
                }
                if kind == 8 {
                    self.suspects.push(new());
                }
            }
            _ => {}
        }
    }
}

fn segment_number(head: &[u8; SEGMENT_HEAD], segment_size: u64) -> Option<u64> {
    let (crc, rest) = head.split_first_chunk::<4>()?;
    let lsn = i64::from_le_bytes(*rest.first_chunk::<8>()?) ^ i64::MAX;
    let lsn = u64::try_from(lsn).ok()?;
    let fits = u32::from_le_bytes(*crc) ^ u32::MAX == crc32fast::hash(rest);
    (fits && lsn % segment_size == 0).then(|| lsn / segment_size)
}

/// Of a segment whose head cannot be read: the number of those of its messages that came last.
fn highest_number(segment: &[u8]) -> Option<u64> {
    let (mut at, mut highest) = (SEGMENT_HEAD, None);
    while at + HEAD_MAX <= segment.len() {
        let rest = segment.get(at..)?;
        match head(rest) {
            Some((message, number, crc)) if checksum(rest, &message) == Some(crc) => {
                highest = highest.max(Some(number));
                at += message.total();
            }
            _ => at += 1,
        }
    }
    highest
}

/// The messages of a segment that can be read, and the known ones that cannot, by their place.
fn messages(
    segment: &[u8],
    number: u64,
    offset: u64,
    is_last: bool,
    found: &mut Found,
) -> Vec<(usize, Message)> {
    let mut messages = Vec::new();
    let mut at = SEGMENT_HEAD;
    while at + HEAD_MAX <= segment.len() {
        let rest = segment.get(at..).unwrap_or_default();
        let message = match whole(rest, number) {
            Some(message) => message,
            None => match mended(rest, number) {
                Some(message) => {
                    found.mended += 1;
                    Message { is_mended: true, ..message }
                }
                None => {
                    let next = (at + 1..=segment.len() - HEAD_MAX).find(|next| {
                        segment.get(*next..).is_some_and(|rest| whole(rest, number).is_some())
                    });
                    let end = next.unwrap_or(segment.len());
                    // The end of the log, or what a segment held before it was used again.
                    let is_end = next.is_none() && (is_last || is_leftover(rest, number));
                    if !is_end {
                        found.damage(offset + at as u64, (end - at) as u64);
                        // Its head may be whole, and say which page it is about.
                        if let Some((message, of, _)) = head(rest)
                            && of == number
                            && at + message.total() <= end
                        {
                            messages.push((at, message));
                        }
                    }
                    let Some(next) = next else { break };
                    at = next;
                    continue;
                }
            },
        };
        found.messages += 1;
        let (total, kind) = (message.total(), message.kind);
        messages.push((at, message));
        if kind == 2 {
            break;
        }
        at += total;
    }
    messages
}

/// Whether here stands what the segment held when it stood elsewhere in the log.
fn is_leftover(rest: &[u8], number: u64) -> bool {
    let is_whole = |(message, of, crc): (Message, u64, u32)| {
        of != number && checksum(rest, &message) == Some(crc)
    };
    head(rest).is_some_and(is_whole) || rest.iter().all(|byte| *byte == 0)
}

/// The head of a message, as far as it makes sense: the message, its segment and its checksum.
fn head(rest: &[u8]) -> Option<(Message, u64, u32)> {
    let (crc, mut left) = rest.split_first_chunk::<4>()?;
    let kind = *take(&mut left, 1)?.first()?;
    if !(1..=11).contains(&kind) {
        return None;
    }
    let len = usize::try_from(number(&mut left)?).ok()?;
    let segment = number(&mut left)?;
    let page = number(&mut left)?;
    let head = rest.len() - left.len();
    if len > left.len() || (matches!(kind, 3 | 9 | 11 | 7) && len != 8) {
        return None;
    }
    let message = Message { kind, page, head, len, flipped: None, fits: false, is_mended: false };
    Some((message, segment, u32::from_le_bytes(*crc)))
}

fn checksum(rest: &[u8], message: &Message) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(rest.get(message.head..message.total())?);
    hasher.update(rest.get(4..message.head)?);
    Some(hasher.finalize() ^ u32::MAX)
}

/// The message that stands here, if its checksum fits and it belongs to the segment.
fn whole(rest: &[u8], number: u64) -> Option<Message> {
    let (message, of, crc) = head(rest)?;
    let fits = of == number && checksum(rest, &message)? == crc;
    fits.then_some(Message { fits, ..message })
}

/// The message that stands here, if one flipped bit is all that is wrong with it.
fn mended(rest: &[u8], number: u64) -> Option<Message> {
    if let Some((message, of, crc)) = head(rest)
        && of == number
        && let Some(bit) = flipped_bit(checksum(rest, &message)? ^ crc, &message)
    {
        return Some(Message { flipped: Some(bit), fits: true, ..message });
    }
    // Or the bit is in the head.
    let mut copy = rest.to_vec();
    (0..HEAD_MAX * 8).find_map(|bit| {
        *copy.get_mut(bit / 8)? ^= 1 << (bit % 8);
        let message = whole(&copy, number);
        *copy.get_mut(bit / 8)? ^= 1 << (bit % 8);
        message
    })
}

/// Which one bit of the body makes this difference of checksums. In a CRC each bit has its own.
fn flipped_bit(difference: u32, message: &Message) -> Option<u32> {
    let bytes = message.len + message.head - 4;
    let mut of_bit = POLYNOMIAL;
    for from_end in 0..bytes * 8 {
        if of_bit == difference {
            let byte = bytes - 1 - from_end / 8;
            let bit = 7 - from_end % 8;
            let is_body = byte < message.len;
            return is_body.then(|| u32::try_from(byte * 8 + bit).ok()).flatten();
        }
        of_bit = (of_bit >> 1) ^ if of_bit & 1 == 1 { POLYNOMIAL } else { 0 };
    }
    None
}

/// A leaf.
struct Page {
    prefix: Vec<u8>,
    lo: Vec<u8>,
    /// Empty: none.
    hi: Vec<u8>,
    /// What it holds is in its neighbour.
    is_merged: bool,
    /// Without the prefix.
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Page {
    /// `None` where it makes no sense, and no page where it is no leaf.
    fn read(mut bytes: &[u8]) -> Option<Option<Self>> {
        let bytes = &mut bytes;
        let (_next, _merging_child) = (number(bytes)?, number(bytes)?);
        let [merging, prefix_len] = *take(bytes, 2)?.first_chunk::<2>()?;
        let (lo, hi) = (string(bytes)?.to_vec(), string(bytes)?.to_vec());
        let prefix = lo.get(..usize::from(prefix_len))?.to_vec();
        match *take(bytes, 1)?.first()? {
            0 => {}
            1 => return Some(None),
            _ => return None,
        }
        let count = usize::try_from(number(bytes)?).ok()?;
        let mut keys = Vec::new();
        for _ in 0..count {
            keys.push(string(bytes)?.to_vec());
        }
        let mut rows = BTreeMap::new();
        for key in keys {
            rows.insert(key, string(bytes)?.to_vec());
        }
        Some(Some(Self { prefix, lo, hi, is_merged: merging != 0, rows }))
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Set(key, value) => drop(self.rows.insert(key, value)),
            Change::Delete(key) => drop(self.rows.remove(&key)),
            Change::Merged => self.is_merged = true,
            Change::Nothing => {}
        }
    }
}

enum Change {
    Set(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    /// The page's rows go to its neighbour.
    Merged,
    /// Of the tree, not of a row.
    Nothing,
}

impl Change {
    fn read(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        Some(match *take(bytes, 1)?.first()? {
            0 => Self::Set(string(bytes)?.to_vec(), string(bytes)?.to_vec()),
            1 => Self::Delete(string(bytes)?.to_vec()),
            4 => Self::Merged,
            2 | 3 => Self::Nothing,
            _ => return None,
        })
    }
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = bytes.split_at_checked(count)?;
    *bytes = left;
    Some(taken)
}

/// A number of variable length.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    Some(match *take(bytes, 1)?.first()? {
        small @ 0..=240 => small.into(),
        first @ 241..=248 => {
            240 + 256 * (u64::from(first) - 241) + u64::from(*take(bytes, 1)?.first()?)
        }
        249 => {
            let [high, low] = *take(bytes, 2)?.first_chunk::<2>()?;
            2288 + 256 * u64::from(high) + u64::from(low)
        }
        first => {
            let mut whole = [0; 8];
            let count = usize::from(first) - 247;
            whole.get_mut(..count)?.copy_from_slice(take(bytes, count)?);
            u64::from_le_bytes(whole)
        }
    })
}

fn string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(number(bytes)?).ok()?;
    take(bytes, len)
}

/// Gives out the rows of a page in the key ranges that nobody has covered, and covers its own.
fn give<E>(
    page: &Page,
    trust: Trust,
    covered: &mut Covered,
    take: &mut impl FnMut(&[u8], &[u8], Trust) -> Result<(), E>,
) -> Result<(), E> {
    let free = covered.free(&page.lo, &page.hi);
    if free.is_empty() {
        return Ok(());
    }
    for (end, value) in &page.rows {
        let key = [page.prefix.as_slice(), end.as_slice()].concat();
        if free.iter().any(|(lo, hi)| *lo <= key && (hi.is_empty() || key < *hi)) {
            take(&key, value, trust)?;
        }
    }
    covered.cover(&page.lo, &page.hi);
    Ok(())
}

/// Key ranges that are somebody's: from, and up to (empty: to the end). They do not touch.
#[derive(Default)]
struct Covered(BTreeMap<Vec<u8>, Vec<u8>>);

impl Covered {
    fn is_whole(&self) -> bool {
        self.0.get(&[][..]).is_some_and(Vec::is_empty)
    }

    fn gaps(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.free(&[], &[])
    }

    /// The parts of a range that are nobody's.
    fn free(&self, lo: &[u8], hi: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut free = Vec::new();
        let mut from = lo.to_vec();
        let mut before =
            self.0.range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(lo)));
        if let Some((_, end)) = before.next_back() {
            if end.is_empty() {
                return free;
            }
            from = from.max(end.clone());
        }
        let after =
            self.0.range::<[u8], _>((std::ops::Bound::Excluded(lo), std::ops::Bound::Unbounded));
        for (begin, end) in after {
            if !hi.is_empty() && begin.as_slice() >= hi {
                break;
            }
            if from < *begin {
                free.push((from, begin.clone()));
            }
            if end.is_empty() {
                return free;
            }
            from = end.clone();
        }
        if hi.is_empty() || from.as_slice() < hi {
            free.push((from, hi.to_vec()));
        }
        free
    }

    fn cover(&mut self, lo: &[u8], hi: &[u8]) {
        for (from, to) in self.free(lo, hi) {
            // What touches grows together, so that a whole tree ends as one range.
            let after = if to.is_empty() { None } else { self.0.remove(&to) };
            let to = after.unwrap_or(to);
            let mut before = self.0.range_mut::<[u8], _>((
                std::ops::Bound::Unbounded,
                std::ops::Bound::Excluded(from.as_slice()),
            ));
            match before.next_back() {
                Some((_, end)) if *end == from => *end = to,
                _ => drop(self.0.insert(from, to)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

    /// Small steps of no particular order, the same in each run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % sides as u64).expect("small")
        }
    }

    /// A real sled store with `writes` puts and deletes of `keys` keys; answers what is in it.
    #[expect(clippy::disallowed_methods, reason = "a test of the file that sled writes")]
    fn make(directory: &Path, segment_size: usize, keys: usize, writes: usize) -> Rows {
        let db = sled::Config::new()
            .path(directory)
            .segment_size(segment_size)
            .cache_capacity(1 << 20)
            .flush_every_ms(None)
            .open()
            .expect("opens");
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        let mut rows = Rows::new();
        for nth in 0..writes / 8 {
            if nth % 8 == 0 {
                // More than eight segments that wait to be written can make sled wait for itself.
                db.flush().expect("flushed");
            }
            let mut batch = sled::Batch::default();
            for _ in 0..8 {
                let number = dice.roll(keys);
                let key = format!("{}/partition-{}/{number:08}", number % 3, number % 7);
                if dice.roll(4) == 0 {
                    batch.remove(key.as_bytes());
                    rows.remove(key.as_bytes());
                } else {
                    let value = format!("{number} {}", "x".repeat(dice.roll(600)));
                    batch.insert(key.as_bytes(), value.as_bytes());
                    rows.insert(key.into_bytes(), value.into_bytes());
                }
            }
            db.apply_batch(batch).expect("written");
        }
        db.flush().expect("flushed");
        let of_sled: Rows = db
            .iter()
            .map(|row| row.expect("readable"))
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect();
        assert_eq!(of_sled, rows);
        rows
    }

    fn read(directory: &Path) -> (Rows, Found) {
        let mut found_rows = Rows::new();
        let found = rows::<io::Error>(directory, |key, value, _| {
            let known = found_rows.insert(key.to_vec(), value.to_vec());
            assert_eq!(known, None, "a row came twice");
            Ok(())
        });
        (found_rows, found.expect("readable"))
    }

    fn spoil(directory: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let path = directory.join("db");
        let mut bytes = fs::read(&path).expect("read");
        change(&mut bytes);
        fs::write(&path, bytes).expect("written");
    }

    #[test]
    fn an_undamaged_store_gives_what_sled_gives_however_often_its_segments_were_used() {
        for (segment_size, keys, writes) in
            [(512 << 10, 3_000, 20_000), (64 << 10, 2_000, 60_000), (16 << 10, 300, 60_000)]
        {
            let dir = tempfile::tempdir().expect("a directory");
            let rows = make(dir.path(), segment_size, keys, writes);
            let (found_rows, found) = read(dir.path());
            assert!(found_rows == rows, "{segment_size}: {} of {}", found_rows.len(), rows.len());
            assert_eq!(found.damaged, [], "{segment_size}");
            assert_eq!((found.mended, found.gaps.len(), found.loose.len()), (0, 0, 0));
        }
    }

    #[test]
    fn flipped_bits_cost_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let rows = make(dir.path(), 512 << 10, 3_000, 12_000);
        let pristine = fs::read(dir.path().join("db")).expect("read");
        let mut dice = Dice(7);
        let mut mended = 0;
        for _ in 0..60 {
            let at = dice.roll(pristine.len());
            spoil(dir.path(), |bytes| bytes[at] ^= 1 << dice.roll(8));
            let (found_rows, found) = read(dir.path());
            assert!(
                found_rows == rows,
                "byte {at}: {} of {}, {found:?}",
                found_rows.len(),
                rows.len()
            );
            mended += found.mended;
            fs::write(dir.path().join("db"), &pristine).expect("written");
        }
        assert!(mended > 20, "{mended}");
    }

    #[test]
    fn what_is_overwritten_costs_the_rows_in_it_and_no_others() {
        let dir = tempfile::tempdir().expect("a directory");
        let rows = make(dir.path(), 512 << 10, 3_000, 12_000);
        let pristine = fs::read(dir.path().join("db")).expect("read");
        let mut dice = Dice(11);
        for _ in 0..40 {
            let at = dice.roll(pristine.len() - 600);
            spoil(dir.path(), |bytes| bytes[at..at + 512].fill(0xEE));
            let (found_rows, found) = read(dir.path());
            let missing = rows.keys().filter(|key| !found_rows.contains_key(*key)).count();
            // A page has about 16 rows, and what is doubtful or old is told apart.
            assert!(missing <= 40, "byte {at}: {missing} missing, {found:?}");
            fs::write(dir.path().join("db"), &pristine).expect("written");
        }
    }

    #[test]
    fn half_a_file_gives_what_its_half_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        let rows = make(dir.path(), 64 << 10, 3_000, 12_000);
        let whole = fs::metadata(dir.path().join("db")).expect("there").len();
        spoil(dir.path(), |bytes| bytes.truncate(bytes.len() / 2));
        let (found_rows, found) = read(dir.path());
        let same = found_rows.iter().filter(|(key, value)| rows.get(*key) == Some(*value)).count();
        assert!(same > 200, "{same} of {} rows, {whole} bytes, {found:?}", rows.len());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut dice = Dice(3);
        for length in [0, 1, 19, 20, 51, 52, 4_096, 70_000] {
            let bytes: Vec<u8> =
                (0..length).map(|_| u8::try_from(dice.roll(256)).expect("a byte")).collect();
            fs::write(dir.path().join("db"), &bytes).expect("written");
            let (rows, _) = read(dir.path());
            assert_eq!(rows, Rows::new(), "{length}");
        }
    }
}
