//! A store as text: JSON lines, one row a line. The way to another format, engine or machine.
//!
//! | line | what |
//! |---|---|
//! | `{"watchbell":"store","format":"1"}` | the first |
//! | `{"table":"outbox","key":"…","json":{…}}` | a row whose value is JSON, as it stands |
//! | `{"table":"retained","key":"…","json":{…},"payload":"…"}` | a publish: what is known of it, and the payload in base64 |
//! | `{"table":"reference","key":"…","bytes":"…"}` | any other row, in base64 |
//! | `{"table":"outbox","key":"…","deleted":true}` | in the copy of a running process: a row that was given out before is no more |
//! | `{"end":true,"rows":12}` | the last: how many lines of rows there were; without it something is cut off |
//!
//! `key` is what follows the table's byte, in hexadecimal: the partition (1 byte), then what the
//! table of `src/store/mod.rs` says. JSON stands as the store has it, byte for byte, so that what was
//! imported is exported again as it came. What the store notes of itself (table `meta`) is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::keys::{self, Key, Table};
use super::open::FORMAT;
use super::{VALUE_VERSION, check};

/// A line that holds a row, or what became of one.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RowLine<'a> {
    table: &'a str,
    key: String,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    json: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstLine {
    watchbell: String,
    format: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastLine {
    end: bool,
    rows: u64,
}

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The first.
    First,
    /// A row; `None` is deleted.
    Row(Key, Option<Vec<u8>>),
    /// The last: so many rows.
    Last(u64),
}

/// The first line.
pub(super) fn first() -> String {
    to_text(&FirstLine { watchbell: "store".to_owned(), format: FORMAT.to_owned() })
}

/// The last line.
pub(super) fn last(rows: u64) -> String {
    to_text(&LastLine { end: true, rows })
}

fn to_text(line: &impl Serialize) -> String {
    serde_json::to_string(line).expect("plain data is always JSON")
}

/// A row as a line; `None` for one that is not given out.
pub(super) fn row(key: &[u8], value: Option<&[u8]>) -> Option<String> {
    let (table, name) = keys::table_of(key)?;
    if matches!(table, Table::Meta | Table::Part) {
        return None;
    }
    let key = keys::hex(key.get(1..)?);
    let line = RowLine {
        table: name,
        key,
        json: None,
        payload: None,
        bytes: None,
        deleted: value.is_none(),
    };
    let Some(value) = value else { return Some(to_text(&line)) };
    let as_bytes = || RowLine { bytes: Some(BASE64.encode(value)), key: line.key.clone(), ..line };
    let parts = match table {
        Table::Body | Table::Retained | Table::Will => publish(value),
        Table::Reference => None,
        _ => value.strip_prefix(&[VALUE_VERSION]).map(|json| (json, None)),
    };
    let json = parts.and_then(|(json, payload)| {
        let text = std::str::from_utf8(json).ok()?;
        let raw: &RawValue = serde_json::from_str(text).ok()?;
        // Only what comes back as it went.
        (raw.get() == text && !text.contains(['\n', '\r'])).then_some((raw, payload))
    });
    Some(match json {
        Some((json, payload)) => {
            let payload = payload.map(|payload| BASE64.encode(payload));
            to_text(&RowLine { json: Some(json), payload, key: line.key.clone(), ..line })
        }
        None => to_text(&as_bytes()),
    })
}

/// The JSON and the payload of a publish.
fn publish(value: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let (length, rest) = value.strip_prefix(&[VALUE_VERSION])?.split_first_chunk::<4>()?;
    let (json, payload) =
        rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    Some((json, Some(payload)))
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it, for an operator.
pub(super) fn read(line: &str) -> Result<Line, String> {
    if let Ok(FirstLine { watchbell, format }) = serde_json::from_str(line) {
        return match (watchbell.as_str(), format.as_str()) {
            ("store", FORMAT) => Ok(Line::First),
            ("store", other) => Err(format!(
                "format {other}; this program reads {FORMAT}: import it with the version that wrote it"
            )),
            _ => Err("this is no export of a Watchbell store".to_owned()),
        };
    }
    if let Ok(LastLine { end: true, rows }) = serde_json::from_str(line) {
        return Ok(Line::Last(rows));
    }
    let row: RowLine<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let table = keys::TABLES.iter().find(|(_, name)| *name == row.table);
    let Some((table, _)) = table.filter(|(table, _)| !matches!(table, Table::Meta | Table::Part))
    else {
        return Err(format!("there is no table `{}`", row.table));
    };
    let mut key = vec![*table as u8];
    key.extend(unhex(&row.key).ok_or("key: not hexadecimal, two digits a byte")?);
    let payload = row.payload.map(|payload| BASE64.decode(payload)).transpose();
    let payload = payload.map_err(|error| format!("payload: {error}"))?;
    let value = match (row.json, row.bytes, row.deleted) {
        (None, None, true) => return Ok(Line::Row(key, None)),
        (Some(json), None, false) => {
            let json = json.get().as_bytes();
            let mut value = vec![VALUE_VERSION];
            if let Some(payload) = payload {
                let length = u32::try_from(json.len()).map_err(|_| "json: too long")?;
                value.extend(length.to_be_bytes());
                value.extend_from_slice(json);
                value.extend_from_slice(&payload);
            } else {
                value.extend_from_slice(json);
            }
            value
        }
        (None, Some(bytes), false) => {
            BASE64.decode(bytes).map_err(|error| format!("bytes: {error}"))?
        }
        _ => return Err("one of json, bytes, deleted, and only one".to_owned()),
    };
    check::row(&key, &value)?;
    Ok(Line::Row(key, Some(value)))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok().filter(|_| pair.len() == 2)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_byte_for_byte() {
        let mut retained = vec![VALUE_VERSION, 0, 0, 0, 2];
        retained.extend_from_slice(b"{}\x00\xff payload");
        for (key, value) in [
            (vec![b'w', 3, 0, 255], b"\x01{\"b\":1, \"a\" :[1.50]}".to_vec()),
            (vec![b'r', 3, b'x'], vec![7; 16]),
            // Not as this program writes it.
            (vec![b'y', 0, b'x'], b"\x01{\n}".to_vec()),
        ] {
            let line = row(&key, Some(&value)).expect("given out");
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(read(&line).as_ref(), Ok(&Line::Row(key.clone(), Some(value))), "{line}");
            let line = row(&key, None).expect("given out");
            assert_eq!(read(&line), Ok(Line::Row(key, None)));
        }
        assert_eq!(publish(&retained), Some((&b"{}"[..], Some(&b"\x00\xff payload"[..]))));
        assert_eq!(read(&first()), Ok(Line::First));
        assert_eq!(read(&last(3)), Ok(Line::Last(3)));
        assert_eq!(row(&keys::meta("format"), Some(b"1")), None);
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        for (line, expected) in [
            ("{", "EOF"),
            (r#"{"watchbell":"store","format":"9"}"#, "format 9"),
            (r#"{"watchbell":"rules","format":"1"}"#, "no export"),
            (r#"{"table":"nosuch","key":"00","bytes":""}"#, "no table `nosuch`"),
            (r#"{"table":"meta","key":"00","bytes":""}"#, "no table `meta`"),
            (r#"{"table":"ban","key":"0","json":{}}"#, "key"),
            (r#"{"table":"ban","key":"zz","json":{}}"#, "key"),
            (r#"{"table":"ban","key":"00","bytes":"!"}"#, "bytes"),
            (r#"{"table":"ban","key":"00"}"#, "only one"),
            (r#"{"table":"ban","key":"00","json":{}}"#, "missing field"),
            (r#"{"table":"ban","key":"00","json":{},"more":1}"#, "unknown field"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
