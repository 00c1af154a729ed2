//! UTF-8 text, as it came: nothing is trimmed, and an empty payload is an empty text.

use super::{Undecodable, Value};

pub(super) fn decode(bytes: &[u8]) -> Result<Value, Undecodable> {
    std::str::from_utf8(bytes)
        .map(|text| Value::Text(text.into()))
        .map_err(|_| Undecodable::NotUtf8)
}
