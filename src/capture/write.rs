//! Writes recorded publishes, bounded: FILE, and older ones behind it as `FILE.1`, `FILE.2` ...
//!
//! When the next line would make FILE larger than it may be, all move up by one and the oldest is
//! removed. A FILE that is there already moves up at the start: nothing is appended to what another
//! program may have written. Files are readable by their owner only: they hold what devices say.
//!
//! Invariant: no file is larger than `bytes_max`, and there are never more than `files`.

use std::borrow::Cow;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Serialize;

use super::{Recorded, numbered};

#[derive(Serialize)]
struct Line<'a> {
    at: i64,
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    qos: u8,
    #[serde(skip_serializing_if = "is_false")]
    retain: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(qos: &u8) -> bool {
    *qos == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_false(retain: &bool) -> bool {
    !retain
}

/// How much may be written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest file, bytes.
    pub bytes_max: u64,
    /// Most files, FILE itself included; at least 1.
    pub files: u32,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Publishes.
    pub publishes: u64,
    /// Bytes of lines.
    pub bytes: u64,
    /// Files that were removed again, the oldest first, to stay within limits.
    pub files_removed: u64,
    /// Publishes that were not written, because each is larger than a file may be.
    pub too_large: u64,
}

/// Writes publishes.
pub struct Writer {
    path: PathBuf,
    limits: Limits,
    file: BufWriter<File>,
    file_bytes: u64,
    line: Vec<u8>,
    written: Written,
}

impl Writer {
    /// Makes FILE, and moves what was there out of its way.
    ///
    /// # Errors
    /// The file cannot be made, or the older ones not be moved.
    pub fn create(path: &Path, limits: Limits) -> io::Result<Self> {
        let mut written = Written::default();
        if fs::metadata(path).is_ok_and(|file| file.len() > 0) {
            move_up(path, limits.files, &mut written)?;
        }
        Ok(Self {
            path: path.to_owned(),
            limits,
            file: make(path)?,
            file_bytes: 0,
            line: Vec::new(),
            written,
        })
    }

    /// Adds a publish; on disk, or on its way there, after [`Writer::flush`].
    ///
    /// # Errors
    /// The file cannot be written, or not be moved out of the way.
    pub fn write(&mut self, one: &Recorded) -> io::Result<()> {
        let text = std::str::from_utf8(&one.payload).ok();
        let line = Line {
            at: one.at.as_millis(),
            topic: one.topic.as_str(),
            payload: text.map(Cow::Borrowed),
            payload_base64: text
                .is_none()
                .then(|| base64::engine::general_purpose::STANDARD.encode(&one.payload)),
            qos: one.qos as u8,
            retain: one.retain,
        };
        self.line.clear();
        serde_json::to_writer(&mut self.line, &line)?;
        self.line.push(b'\n');
        let bytes = self.line.len() as u64;
        if bytes > self.limits.bytes_max {
            self.written.too_large += 1;
            return Ok(());
        }
        if self.file_bytes + bytes > self.limits.bytes_max {
            self.file.flush()?;
            move_up(&self.path, self.limits.files, &mut self.written)?;
            self.file = make(&self.path)?;
            self.file_bytes = 0;
        }
        self.file.write_all(&self.line)?;
        self.file_bytes += bytes;
        self.written.publishes += 1;
        self.written.bytes += bytes;
        Ok(())
    }

    /// Hands all that was written to the operating system.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// What was written so far.
    pub fn written(&self) -> Written {
        self.written
    }
}

fn make(path: &Path) -> io::Result<BufWriter<File>> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    Ok(BufWriter::new(options.open(path)?))
}

/// FILE becomes FILE.1, and so on; the oldest goes.
fn move_up(path: &Path, files: u32, written: &mut Written) -> io::Result<()> {
    let last = files.saturating_sub(1);
    let oldest = numbered(path, last);
    match fs::remove_file(&oldest) {
        Ok(()) => written.files_removed += 1,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    for number in (0..last).rev() {
        match fs::rename(numbered(path, number), numbered(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::capture::{Reader, series};
    use crate::clock::Timestamp;
    use crate::model::Qos;
    use crate::topic::{TopicLimits, TopicName};

    fn recorded(at: i64, payload: &[u8]) -> Recorded {
        Recorded {
            at: Timestamp::from_millis(at),
            topic: TopicName::parse("a/b", TopicLimits::default()).expect("a topic"),
            payload: Bytes::copy_from_slice(payload),
            retain: at % 2 == 1,
            replayed: false,
            qos: if at > 1 { Qos::AtLeastOnce } else { Qos::AtMostOnce },
        }
    }

    fn all(path: &Path) -> Vec<Recorded> {
        let read = |path: &PathBuf| Reader::open(path).expect("a file");
        series(path).iter().flat_map(read).collect::<Result<_, _>>().expect("lines")
    }

    #[test]
    fn what_is_written_is_read_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("traffic.jsonl");
        let mut writer =
            Writer::create(&path, Limits { bytes_max: 10_000, files: 1 }).expect("a file");
        let publishes = [recorded(0, b""), recorded(1, "\"ü\n".as_bytes()), recorded(2, b"\xff\0")];
        for one in &publishes {
            writer.write(one).expect("written");
        }
        writer.flush().expect("written");
        assert_eq!(all(&path), publishes);
        insta::assert_snapshot!(fs::read_to_string(&path).expect("text"), @r#"
        {"at":0,"topic":"a/b","payload":""}
        {"at":1,"topic":"a/b","payload":"\"ü\n","retain":true}
        {"at":2,"topic":"a/b","payload_base64":"/wA=","qos":1}
        "#);
        let expected = Written { publishes: 3, bytes: 147, ..Written::default() };
        assert_eq!(writer.written(), expected);
    }

    #[test]
    fn files_rotate_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("traffic.jsonl");
        let limits = Limits { bytes_max: 120, files: 3 };
        let mut writer = Writer::create(&path, limits).expect("a file");
        for at in 0..20 {
            writer.write(&recorded(at, b"x")).expect("written");
        }
        writer.write(&recorded(99, &[b'x'; 200])).expect("left out");
        writer.flush().expect("written");
        // Two lines a file.
        let left: Vec<i64> = all(&path).iter().map(|one| one.at.as_millis()).collect();
        assert_eq!(left, (14..20).collect::<Vec<_>>());
        let written = writer.written();
        assert_eq!((written.publishes, written.files_removed, written.too_large), (20, 7, 1));
        for path in series(&path) {
            assert!(fs::metadata(path).expect("a file").len() <= 120);
        }
        // The next recording begins with a file of its own, and keeps what was there.
        let mut writer = Writer::create(&path, limits).expect("a file");
        writer.write(&recorded(100, b"x")).expect("written");
        writer.flush().expect("written");
        let left: Vec<i64> = all(&path).iter().map(|one| one.at.as_millis()).collect();
        assert_eq!(left, [16, 17, 18, 19, 100]);
    }
}
