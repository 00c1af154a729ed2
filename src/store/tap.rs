//! A consistent copy of a store that goes on being written.
//!
//! The writer reads a piece of the rows between two commits, when it is asked to, and from then on
//! notes what later commits change of what it has already given out. Rows and changes, applied in
//! their order, are the store as it was after one of its commits: the last before the end.
//!
//! Never holds the writer up for longer than one piece takes. One copy at a time; one that is asked
//! for too slowly ends when the changes that it has not fetched exceed [`CHANGES_BYTES_MAX`].

use tokio::sync::oneshot;

use super::keys::Key;
use super::parts::standing_key;
use super::read::Reader;
use super::writer::Request;
use super::{ReadError, Store};

/// Changes that are kept for a copy, bytes.
const CHANGES_BYTES_MAX: usize = 64 << 20;
/// Rows, and bytes, of one piece: some milliseconds.
const PIECE_ROWS: usize = 1_000;
const PIECE_BYTES: usize = 1 << 20;

type Change = (Key, Option<Vec<u8>>);

/// What the writer keeps for a copy.
#[derive(Default)]
pub(super) struct Tap {
    copy: Option<Open>,
    last_number: u64,
}

struct Open {
    number: u64,
    /// What lies before has been given out.
    from: Vec<u8>,
    changes: Vec<Change>,
    bytes: usize,
}

/// A piece of a copy.
#[derive(Debug, Default)]
pub struct Piece {
    /// What has changed of earlier pieces, in order; `None` is deleted.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Further rows.
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// Rows, or pages of rows, that cannot be read and are not in the copy.
    pub unreadable: usize,
    /// Nothing comes after it.
    pub is_last: bool,
}

/// A copy could not be finished.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Another one began, or this one was too slow.
    #[error(
        "the copy was given up: another one began, or more changed meanwhile than is kept for it; \
         try again when less is written"
    )]
    GivenUp,
    /// The store has ended.
    #[error("the store has ended")]
    Ended,
}

impl Tap {
    /// Notes what was just committed.
    pub(super) fn note(&mut self, requests: &[Request]) {
        let Some(copy) = &mut self.copy else { return };
        let writes = requests.iter().flat_map(|request| &request.ops).flat_map(|op| &op.writes);
        for (key, value) in writes {
            if *standing_key(key) < *copy.from {
                copy.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                copy.changes.push((key.clone(), value.clone()));
            }
        }
        if copy.bytes > CHANGES_BYTES_MAX {
            tracing::warn!("a copy of the store is given up: it was fetched too slowly");
            self.copy = None;
        }
    }

    fn begin(&mut self) -> u64 {
        self.last_number += 1;
        let number = self.last_number;
        self.copy = Some(Open { number, from: Vec::new(), changes: Vec::new(), bytes: 0 });
        number
    }

    fn piece(&mut self, number: u64, reader: &Reader) -> Result<Piece, CopyError> {
        let copy = self.copy.as_mut().filter(|copy| copy.number == number);
        let copy = copy.ok_or(CopyError::GivenUp)?;
        let mut piece = Piece { changes: std::mem::take(&mut copy.changes), ..Piece::default() };
        copy.bytes = 0;
        let mut rows = reader.range(copy.from.clone()..vec![u8::MAX]);
        let mut bytes = 0;
        while piece.rows.len() < PIECE_ROWS && bytes < PIECE_BYTES {
            match rows.next() {
                Some(Ok((key, value))) => {
                    bytes += key.len() + value.len();
                    piece.rows.push((key.to_vec(), value.to_vec()));
                }
                Some(Err(ReadError(_))) => piece.unreadable += 1,
                None => {
                    piece.is_last = true;
                    break;
                }
            }
        }
        copy.from = rows.place().to_vec();
        if piece.is_last {
            self.copy = None;
        }
        Ok(piece)
    }
}

/// A copy that is being made.
pub struct StoreCopy {
    store: Store,
    number: Option<u64>,
}

impl Store {
    /// Begins a consistent copy of all rows.
    pub fn copy(&self) -> StoreCopy {
        StoreCopy { store: self.clone(), number: None }
    }
}

impl StoreCopy {
    /// The next piece.
    ///
    /// # Errors
    /// See [`CopyError`]; nothing comes after one.
    pub async fn next(&mut self) -> Result<Piece, CopyError> {
        let (answer, answered) = oneshot::channel();
        let reader = self.store.reader.clone();
        let number = self.number;
        let read = Box::new(move |tap: &mut Tap| {
            let number = number.unwrap_or_else(|| tap.begin());
            // An asker that has gone needs no more.
            drop(answer.send(tap.piece(number, &reader).map(|piece| (number, piece))));
        });
        let request = Request::read(read);
        self.store.requests.send(request).await.map_err(|_| CopyError::Ended)?;
        let (number, piece) = answered.await.map_err(|_| CopyError::Ended)??;
        self.number = Some(number);
        Ok(piece)
    }
}
