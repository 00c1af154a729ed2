//! Reads recorded publishes, in whichever of the known forms they are.
//!
//! The first line decides which form a file has; a line of another form is a problem. Reading goes
//! on behind a line that cannot be read, so a caller may count it and continue.
//!
//! Fast, because a week of a site is ten million lines: one buffer for all lines, borrowed while
//! they are parsed, and a topic that came before shares its text.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use base64::Engine as _;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Recorded;
use crate::clock::Timestamp;
use crate::model::Qos;
use crate::problem::Problem;
use crate::topic::{TopicLimits, TopicName};

/// Longest line, bytes: an MQTT payload of 16 MiB whose every byte is escaped.
const LINE_BYTES_MAX: u64 = 6 * (16 << 20);
/// What is read at a time.
const BUFFER_BYTES: usize = 1 << 18;
/// Most topics that are remembered.
const TOPICS_MAX: usize = 100_000;
/// A recorded topic was one, whatever the limits of whoever reads it.
const LIMITS: TopicLimits = TopicLimits { bytes_max: 65_535, levels_max: usize::MAX };

const FORMS: &str =
    "lines of `watchbell record`, of `mosquitto_sub -F %j` or of `mosquitto_sub -F '%U %t %p'`";

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Ours,
    MosquittoJson,
    MosquittoPlain,
}

#[derive(Deserialize)]
struct OurLine<'a> {
    at: i64,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow, default)]
    payload: Option<Text<'a>>,
    #[serde(borrow, default)]
    payload_base64: Option<Text<'a>>,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    retain: bool,
}

#[derive(Deserialize)]
struct MosquittoLine<'a> {
    #[serde(borrow)]
    tst: Cow<'a, str>,
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    retain: u8,
    payloadlen: Option<usize>,
    /// Text by `%j`, any JSON by `%J`, null where it is empty.
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

/// Borrowed where nothing in it is escaped. (serde borrows a `Cow` only where it is a field itself.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Recorded publishes of one file, in its order.
pub struct Reader {
    name: String,
    source: Box<dyn BufRead + Send>,
    form: Option<Form>,
    line: Vec<u8>,
    number: u64,
    topics: HashSet<TopicName>,
    has_failed: bool,
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path) -> Result<Self, Problem> {
        let name = path.display().to_string();
        let file = File::open(path)
            .map_err(|error| Problem::new(&*name, format!("cannot be read: {error}")))?;
        Ok(Self::new(name, file))
    }

    /// Reads from anywhere; `name` is what problems call it.
    pub fn new(name: impl Into<String>, source: impl Read + Send + 'static) -> Self {
        Self {
            name: name.into(),
            source: Box::new(BufReader::with_capacity(BUFFER_BYTES, source)),
            form: None,
            line: Vec::new(),
            number: 0,
            topics: HashSet::new(),
            has_failed: false,
        }
    }

    /// The line that was read last, from 1.
    pub fn line(&self) -> u64 {
        self.number
    }

    fn problem(&self, what: impl Into<String>) -> Problem {
        Problem::new(format!("{}:{}", self.name, self.number), what)
    }

    /// The next line that is not empty, into `line`, without its end. False at the end.
    fn read_line(&mut self) -> io::Result<bool> {
        loop {
            self.line.clear();
            let mut limited = Read::take(&mut self.source, LINE_BYTES_MAX);
            if limited.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(false);
            }
            self.number += 1;
            let is_whole = self.line.pop_if(|last| *last == b'\n').is_some();
            if !is_whole && self.line.len() as u64 == LINE_BYTES_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("the line has more than {LINE_BYTES_MAX} bytes; expected {FORMS}"),
                ));
            }
            // Editors of Windows begin a file so.
            if self.number == 1 && self.line.starts_with(b"\xef\xbb\xbf") {
                self.line.drain(..3);
            }
            // Of a payload that ends so, the end of the line is a part that nobody misses.
            self.line.pop_if(|last| *last == b'\r');
            if !self.line.is_empty() {
                return Ok(true);
            }
        }
    }

    fn parse(&mut self) -> Result<Recorded, String> {
        let form = match self.form {
            Some(form) => form,
            None => *self.form.insert(form_of(&self.line)?),
        };
        match form {
            Form::Ours => self.ours(),
            Form::MosquittoJson => self.mosquitto_json(),
            Form::MosquittoPlain => self.mosquitto_plain(),
        }
    }

    fn ours(&mut self) -> Result<Recorded, String> {
        let line: OurLine<'_> = json(&self.line, "a line of `watchbell record`")?;
        let payload = match (line.payload, line.payload_base64) {
            (Some(Text(text)), None) => bytes(text),
            (None, Some(Text(text))) => base64::engine::general_purpose::STANDARD
                .decode(&*text)
                .map(Bytes::from)
                .map_err(|error| format!("`payload_base64`: expected base64: {error}"))?,
            _ => return Err("expected `payload` or `payload_base64`, one of them".to_owned()),
        };
        Ok(Recorded {
            at: Timestamp::from_millis(line.at),
            topic: topic(&mut self.topics, &line.topic)?,
            payload,
            retain: line.retain,
            replayed: false,
            qos: qos(line.qos)?,
        })
    }

    fn mosquitto_json(&mut self) -> Result<Recorded, String> {
        let line: MosquittoLine<'_> = json(&self.line, "a line of `mosquitto_sub -F %j`")?;
        let raw = line.payload.map_or("null", RawValue::get);
        let payload = if raw.starts_with('"') {
            let Text(text) = serde_json::from_str(raw)
                .map_err(|error| format!("`payload`: expected text: {error}"))?;
            // Of binary payloads it prints what stands before the first zero byte.
            if let Some(length) = line.payloadlen.filter(|length| *length != text.len()) {
                return Err(format!(
                    "`payload` has {} bytes, expected {length} as `payloadlen` says: mosquitto_sub cuts \
                     binary payloads short; record them with `watchbell record`",
                    text.len()
                ));
            }
            bytes(text)
        } else if raw == "null" && line.payloadlen.unwrap_or(0) == 0 {
            Bytes::new()
        } else {
            Bytes::copy_from_slice(raw.as_bytes())
        };
        Ok(Recorded {
            at: time(&line.tst).ok_or_else(|| {
                format!("`tst`: expected 2026-05-02T08:00:00.120000Z+0000, found `{}`", line.tst)
            })?,
            topic: topic(&mut self.topics, &line.topic)?,
            payload,
            retain: line.retain != 0,
            replayed: line.retain != 0,
            qos: qos(line.qos)?,
        })
    }

    fn mosquitto_plain(&mut self) -> Result<Recorded, String> {
        let expected = || {
            "expected SECONDS.FRACTION TOPIC PAYLOAD, as of `mosquitto_sub -F '%U %t %p'`; payloads \
             with line breaks in them need -F %j"
                .to_owned()
        };
        let mut words = self.line.splitn(3, |byte| *byte == b' ');
        let (Some(at), Some(name), Some(payload)) = (words.next(), words.next(), words.next())
        else {
            return Err(expected());
        };
        let at = std::str::from_utf8(at).ok().and_then(epoch).ok_or_else(expected)?;
        let name = std::str::from_utf8(name).map_err(|_| "the topic is not UTF-8".to_owned())?;
        Ok(Recorded {
            at,
            topic: topic(&mut self.topics, name)?,
            payload: Bytes::copy_from_slice(payload),
            retain: false,
            replayed: false,
            qos: Qos::AtMostOnce,
        })
    }
}

impl Iterator for Reader {
    type Item = Result<Recorded, Problem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_failed {
            return None;
        }
        match self.read_line() {
            Ok(true) => Some(self.parse().map_err(|what| self.problem(what))),
            Ok(false) => None,
            Err(error) => {
                self.has_failed = true;
                Some(Err(self.problem(format!("cannot be read: {error}"))))
            }
        }
    }
}

fn form_of(line: &[u8]) -> Result<Form, String> {
    /// Enough to tell whose line it is.
    #[derive(Deserialize)]
    struct Keys<'a> {
        #[serde(borrow)]
        at: Option<&'a RawValue>,
        #[serde(borrow)]
        tst: Option<&'a RawValue>,
    }
    match line.first() {
        Some(b'{') => {
            let keys: Keys<'_> = json(line, FORMS)?;
            match (keys.at, keys.tst) {
                (Some(_), _) => Ok(Form::Ours),
                (None, Some(_)) => Ok(Form::MosquittoJson),
                (None, None) => Err(format!("neither `at` nor `tst`; expected {FORMS}")),
            }
        }
        Some(b'0'..=b'9') => Ok(Form::MosquittoPlain),
        _ => Err(format!("expected {FORMS}")),
    }
}

fn json<'a, T: Deserialize<'a>>(line: &'a [u8], expected: &str) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| {
        // It counts lines of its own.
        let text = error.to_string();
        let text = text.replace(" at line 1 column", ", at byte");
        format!("{text}; expected {expected}")
    })
}

fn bytes(text: Cow<'_, str>) -> Bytes {
    match text {
        Cow::Borrowed(text) => Bytes::copy_from_slice(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    }
}

fn topic(known: &mut HashSet<TopicName>, text: &str) -> Result<TopicName, String> {
    if let Some(topic) = known.get(text) {
        return Ok(topic.clone());
    }
    let topic = TopicName::parse(text, LIMITS)
        .map_err(|error| format!("expected a topic, found `{text}`: {error}"))?;
    if known.len() >= TOPICS_MAX {
        known.clear();
    }
    known.insert(topic.clone());
    Ok(topic)
}

fn qos(number: u8) -> Result<Qos, String> {
    match number {
        0 => Ok(Qos::AtMostOnce),
        1 => Ok(Qos::AtLeastOnce),
        2 => Ok(Qos::ExactlyOnce),
        _ => Err(format!("`qos`: expected 0, 1 or 2, found {number}")),
    }
}

/// Seconds since 1970, with or without a fraction.
fn epoch(text: &str) -> Option<Timestamp> {
    let (secs, fraction) = text.split_once('.').unwrap_or((text, ""));
    if secs.is_empty() || !secs.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let millis = fraction.bytes().chain(*b"000").take(3);
    let millis = millis.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    let secs: i64 = secs.parse().ok()?;
    Some(Timestamp::from_millis(secs.checked_mul(1000)?.checked_add(millis)?))
}

/// `2026-05-02T08:00:00.120000Z+0000`: mosquitto writes both `Z` and the local zone, which counts.
fn time(text: &str) -> Option<Timestamp> {
    let number = |from: usize, count: usize| -> Option<i64> {
        let digits = text.as_bytes().get(from..from + count)?;
        let digit = |sum: Option<i64>, byte: &u8| {
            byte.is_ascii_digit().then(|| sum.map(|sum| sum * 10 + i64::from(byte - b'0')))?
        };
        digits.iter().fold(Some(0), digit)
    };
    let at = |index: usize| text.as_bytes().get(index).copied();
    let is_punctuated = [at(4), at(7), at(10), at(13), at(16)]
        == [Some(b'-'), Some(b'-'), Some(b'T'), Some(b':'), Some(b':')];
    if !is_punctuated {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let count = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let digits = fraction.bytes().take(count).chain(std::iter::repeat(b'0')).take(9);
        nanos = digits.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        rest = fraction.get(count..)?;
    }
    let zone = rest.strip_prefix('Z').unwrap_or(rest);
    let zone = match zone.contains(':') {
        true => Cow::Owned(zone.replace(':', "")),
        false => Cow::Borrowed(zone),
    };
    let offset_secs = match zone.split_at_checked(1) {
        None => 0,
        Some((sign, digits)) if digits.len() == 4 => {
            let digits: i32 = digits.parse().ok().filter(|number| *number >= 0)?;
            let secs = (digits / 100 * 60 + digits % 100) * 60;
            match sign {
                "+" => secs,
                "-" => -secs,
                _ => return None,
            }
        }
        Some(_) => return None,
    };
    let small = |number: Option<i64>| i8::try_from(number?).ok();
    let civil = jiff::civil::DateTime::new(
        i16::try_from(number(0, 4)?).ok()?,
        small(number(5, 2))?,
        small(number(8, 2))?,
        small(number(11, 2))?,
        small(number(14, 2))?,
        small(number(17, 2))?,
        i32::try_from(nanos).ok()?,
    );
    let offset = jiff::tz::Offset::from_seconds(offset_secs).ok()?;
    let instant = offset.to_timestamp(civil.ok()?).ok()?;
    Some(Timestamp::from_millis(instant.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file of this text holds: a line each.
    fn read(text: &str) -> String {
        let reader = Reader::new("log", io::Cursor::new(text.as_bytes().to_vec()));
        let line = |read: Result<Recorded, Problem>| match read {
            Ok(one) => format!(
                "{} {} {:?} {} {}\n",
                one.at.as_millis(),
                one.topic,
                one.payload,
                one.qos as u8,
                one.retain
            ),
            Err(problem) => format!("{problem}\n"),
        };
        reader.map(line).collect()
    }

    #[test]
    fn reads_our_lines() {
        insta::assert_snapshot!(read(
            "{\"at\":1790000000120,\"topic\":\"a/b c\",\"payload\":\"{\\\"t\\\": 1}\"}\n\
             \n\
             {\"at\":1790000000121,\"topic\":\"a/ü\",\"payload\":\"plain\",\"qos\":1}\r\n\
             {\"at\":1790000000122,\"topic\":\"cam\",\"payload_base64\":\"/9gA\",\"qos\":2,\"retain\":true}\n\
             {\"at\":1790000000123,\"topic\":\"a\",\"payload\":\"\",\"of\":\"later\"}"
        ), @r#"
        1790000000120 a/b c b"{\"t\": 1}" 0 false
        1790000000121 a/ü b"plain" 1 false
        1790000000122 cam b"\xff\xd8\0" 2 true
        1790000000123 a b"" 0 false
        "#);
    }

    /// Printed by mosquitto_sub 2.0.
    #[test]
    fn reads_what_mosquitto_sub_prints_as_json() {
        insta::assert_snapshot!(read(
            "{\"tst\":\"2026-11-26T12:30:03.186497Z+0000\",\"topic\":\"a/b c\",\"qos\":0,\"retain\":1,\"payloadlen\":18,\"payload\":\"{\\\"t\\\": 1, \\\"ü\\\":\\\"x\\\"}\"}\n\
             {\"tst\":\"2026-11-26T13:30:03.194312Z+0100\",\"topic\":\"a/nul\",\"qos\":0,\"retain\":0,\"payloadlen\":5,\"payload\":\"ab\"}\n\
             {\"tst\":\"2026-11-26T13:30:03.201747Z+0100\",\"topic\":\"a/nl\",\"qos\":1,\"retain\":0,\"payloadlen\":9,\"mid\":7,\"payload\":\"l1\\nl2\\t\\\"q\\\"\"}\n\
             {\"tst\":\"2026-11-26T12:30:03.204157-0030\",\"topic\":\"a/empty\",\"qos\":0,\"retain\":0,\"payloadlen\":0,\"payload\":null}\n\
             {\"tst\":\"2026-11-26T12:30:03.186501Z+0000\",\"topic\":\"a\",\"qos\":0,\"retain\":0,\"payloadlen\":18,\"payload\":{\"t\":1,\"ü\":\"x\"}}\n\
             {\"tst\":\"yesterday\",\"topic\":\"a\",\"payload\":null}\n"
        ), @r#"
        1795696203186 a/b c b"{\"t\": 1, \"\xc3\xbc\":\"x\"}" 0 true
        log:2: `payload` has 2 bytes, expected 5 as `payloadlen` says: mosquitto_sub cuts binary payloads short; record them with `watchbell record`
        1795696203201 a/nl b"l1\nl2\t\"q\"" 1 false
        1795698003204 a/empty b"" 0 false
        1795696203186 a b"{\"t\":1,\"\xc3\xbc\":\"x\"}" 0 false
        log:6: `tst`: expected 2026-05-02T08:00:00.120000Z+0000, found `yesterday`
        "#);
    }

    #[test]
    fn reads_what_mosquitto_sub_prints_as_text() {
        insta::assert_snapshot!(read(
            "1795696203.186642184 a/b {\"t\": 1, \"ü\":\"x\"}\n\
             1795696203.2 a/nl l1\n\
             l2\t\"q\"\n\
             1795696204 a/empty \n\
             1795696204.5 a/# x\n"
        ), @r#"
        1795696203186 a/b b"{\"t\": 1, \"\xc3\xbc\":\"x\"}" 0 false
        1795696203200 a/nl b"l1" 0 false
        log:3: expected SECONDS.FRACTION TOPIC PAYLOAD, as of `mosquitto_sub -F '%U %t %p'`; payloads with line breaks in them need -F %j
        1795696204000 a/empty b"" 0 false
        log:5: expected a topic, found `a/#`: it holds a wildcard (+ or #), which only filters may
        "#);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let text = "\u{feff}{\"at\":1,\"topic\":\"a\",\"payload\":\"x\"}\n";
        assert_eq!(read(text), "1 a b\"x\" 0 false\n");
    }

    #[test]
    fn says_what_was_expected() {
        for (text, expected) in [
            ("hello\n", "log:1: expected lines of `watchbell record`, of `mosquitto_sub -F %j`"),
            ("\n{\"a\": 1}\n", "log:2: neither `at` nor `tst`; expected lines of"),
            (
                "{\"at\": 1, \"to",
                "log:1: EOF while parsing a string, at byte 13; expected lines of",
            ),
            ("{\"at\":1,\"topic\":\"a\"}", "log:1: expected `payload` or `payload_base64`"),
            (
                "{\"at\":1,\"topic\":\"a\",\"payload\":\"\",\"payload_base64\":\"\"}",
                "log:1: expected `payload` or",
            ),
            ("{\"at\":1,\"payload\":\"\"}", "log:1: missing field `topic`, at byte 21; expected a"),
            (
                "{\"at\":1,\"topic\":\"a\",\"payload_base64\":\"?\"}",
                "log:1: `payload_base64`: expected base64: ",
            ),
            (
                "{\"at\":1,\"topic\":\"a\",\"payload\":\"\",\"qos\":3}",
                "log:1: `qos`: expected 0, 1 or 2",
            ),
        ] {
            let found = read(text);
            assert!(found.starts_with(expected), "{text}: {found}");
        }
        assert_eq!(read(""), "");
        let missing = Reader::open(Path::new("no-such.jsonl")).err().map(|one| one.to_string());
        assert!(missing.is_some_and(|text| text.starts_with("no-such.jsonl: cannot be read: ")));
    }

    #[test]
    fn times_of_every_form() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T00:00:00.5Z+0000", Some(500)),
            ("1970-01-01T01:00:00.000000+0100", Some(0)),
            ("1970-01-01T01:00:00.000000+01:00", Some(0)),
            ("1970-01-01T00:00:00-0130", Some(5_400_000)),
            ("2024-02-30T00:00:00Z", None),
            ("2024-02-03 00:00:00Z", None),
            ("2024-02-03T00:00:00Zebra", None),
            ("", None),
        ] {
            assert_eq!(time(text).map(Timestamp::as_millis), millis, "{text}");
        }
        for (text, millis) in
            [("0", Some(0)), ("1.25", Some(1250)), ("1.", Some(1000)), ("-1", None), ("x", None)]
        {
            assert_eq!(epoch(text).map(Timestamp::as_millis), millis, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let reader = Reader::new("log", io::Cursor::new(bytes));
            proptest::prop_assert!(reader.count() < 201);
        }

        #[test]
        fn times_never_panic(text in "[0-9T:.Z+-]{0,40}") {
            time(&text);
            epoch(&text);
        }
    }
}
