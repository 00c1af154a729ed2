//! Recordings as one stream of publishes in the order of time.
//!
//! A recording is a series of files ([`crate::capture::series`]); several are merged by time, so that
//! two sites that were recorded at once are replayed at once. What cannot be read is counted and the
//! first of it named. Invariant: time never goes back: a publish that was recorded with an earlier time
//! than the one before it comes at the latter's time, and is counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::report::Seen;
use crate::capture::{Reader, Recorded, series};
use crate::clock::Timestamp;
use crate::model::Publish;
use crate::problem::Problem;

/// What of a recording is replayed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Part {
    /// Only from this time on.
    pub since: Option<Timestamp>,
    /// Only before this time.
    pub until: Option<Timestamp>,
}

/// The publishes of all recordings.
pub struct Traffic {
    sources: Vec<Source>,
    part: Part,
    now: Timestamp,
    nobody: Arc<str>,
    seen: Seen,
}

/// The files of one recording, and its next publish.
struct Source {
    files: std::vec::IntoIter<PathBuf>,
    reader: Option<Reader>,
    next: Option<Recorded>,
}

impl Traffic {
    /// Opens recordings. Older files of one of them need not be named, and may be.
    ///
    /// # Errors
    /// Every file that cannot be opened.
    pub fn open(paths: &[PathBuf], part: Part) -> Result<Self, Vec<Problem>> {
        let is_older = |path: &Path| {
            let mut others = paths.iter().filter(|other| other.as_path() != path);
            others.any(|other| series(other).iter().any(|file| file == path))
        };
        let mut named: Vec<&PathBuf> = paths.iter().filter(|path| !is_older(path)).collect();
        named.dedup();
        let files: Vec<Vec<PathBuf>> = named.into_iter().map(|path| series(path)).collect();
        // Said before anything runs: a week is not replayed to learn that its last file is not there.
        let opened = files.iter().flatten().map(|path| Reader::open(path).map(drop));
        let problems: Vec<Problem> = opened.filter_map(Result::err).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        let source =
            |files: Vec<PathBuf>| Source { files: files.into_iter(), reader: None, next: None };
        Ok(Self::of(files.into_iter().map(source).collect(), part))
    }

    /// Reads one recording from anywhere.
    pub fn read(reader: Reader, part: Part) -> Self {
        let source = Source { files: Vec::new().into_iter(), reader: Some(reader), next: None };
        Self::of(vec![source], part)
    }

    fn of(sources: Vec<Source>, part: Part) -> Self {
        let mut traffic = Self {
            sources,
            part,
            now: Timestamp::from_millis(i64::MIN),
            nobody: Arc::default(),
            seen: Seen::default(),
        };
        for source in &mut traffic.sources {
            source.advance(&mut traffic.seen);
        }
        traffic
    }

    /// What was read so far.
    pub fn seen(self) -> Seen {
        self.seen
    }

    fn take(&mut self) -> Option<Recorded> {
        let source = match self.sources.as_mut_slice() {
            [only] => only,
            sources => {
                let at = |source: &&mut Source| source.next.as_ref().map(|next| next.at);
                sources.iter_mut().filter(|source| source.next.is_some()).min_by_key(at)?
            }
        };
        let taken = source.next.take();
        source.advance(&mut self.seen);
        taken
    }
}

impl Source {
    /// Reads on to the next publish, over files and over lines that are none.
    fn advance(&mut self, seen: &mut Seen) {
        loop {
            match self.reader.as_mut().map(Iterator::next) {
                Some(Some(Ok(recorded))) => {
                    self.next = Some(recorded);
                    return;
                }
                Some(Some(Err(problem))) => seen.unreadable(&problem),
                Some(None) | None => {
                    let Some(path) = self.files.next() else { return };
                    match Reader::open(&path) {
                        Ok(reader) => self.reader = Some(reader),
                        Err(problem) => seen.unreadable(&problem),
                    }
                }
            }
        }
    }
}

impl Iterator for Traffic {
    type Item = Publish;

    fn next(&mut self) -> Option<Publish> {
        loop {
            let recorded = self.take()?;
            let is_early = self.part.since.is_some_and(|since| recorded.at < since);
            if is_early || self.part.until.is_some_and(|until| recorded.at >= until) {
                self.seen.left_out += 1;
                continue;
            }
            self.seen.late += u64::from(recorded.at < self.now);
            self.now = self.now.max(recorded.at);
            self.seen.publish(self.now);
            return Some(Publish {
                topic: recorded.topic,
                payload: recorded.payload,
                qos: recorded.qos,
                retain: recorded.retain,
                replayed: recorded.replayed,
                client_id: Arc::clone(&self.nobody),
                identity: None,
                received_at: self.now,
                properties: None,
            });
        }
    }
}
