//! Recorded traffic: files of publishes that `watchbell record` writes and `watchbell replay` reads.
//!
//! Ours is JSON Lines, one publish a line:
//!
//! ```text
//! {"at":1790000000120,"topic":"site/kiel/oven/1","payload":"{\"temp\": 250}"}
//! {"at":1790000000131,"topic":"cam/1","payload_base64":"/9j/4A==","qos":1,"retain":true}
//! ```
//!
//! `at` is when it arrived, milliseconds since 1970; `payload` where it is UTF-8, else
//! `payload_base64`; `qos` where it is not 0, `retain` where it is true. [`Reader`] also takes what
//! `mosquitto_sub -F %j` (and `%J`) and `mosquitto_sub -F '%U %t %p'` print.
//!
//! FILE is the newest; `FILE.1` the one before, and so on: [`series`].
//!
//! Never: evaluates anything, knows MQTT's bytes. Invariant: a line that cannot be read is a
//! [`Problem`](crate::problem::Problem) that names file and line, never a publish that is slightly
//! another.

pub mod read;
pub mod write;

use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use self::read::Reader;
pub use self::write::Writer;
use crate::clock::Timestamp;
use crate::model::Qos;
use crate::topic::TopicName;

/// One publish as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// When it arrived at whoever recorded it.
    pub at: Timestamp,
    /// Its topic.
    pub topic: TopicName,
    /// Its payload.
    pub payload: Bytes,
    /// RETAIN, as it was set.
    pub retain: bool,
    /// The broker had kept it, and sent it because somebody subscribed: mosquitto's lines say so,
    /// ours never, because `watchbell record` leaves such publishes out.
    pub replayed: bool,
    /// Its quality of service as it came to whoever recorded it.
    pub qos: Qos,
}

/// `FILE.number`; FILE itself for 0.
fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The files of a recording, the oldest first: `FILE.4` ... `FILE.1`, `FILE`, as far as they are
/// there without a gap.
pub fn series(path: &Path) -> Vec<PathBuf> {
    let older = (1..).map(|number| numbered(path, number)).take_while(|path| path.exists());
    let mut files: Vec<PathBuf> = std::iter::once(path.to_owned()).chain(older).collect();
    files.reverse();
    files
}
