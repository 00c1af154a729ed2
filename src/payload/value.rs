//! What a payload says, whatever it was coded in.
//!
//! Cloning is cheap at every depth: texts, lists and maps are shared. Whole numbers keep all their
//! digits, because a device's number may be a key.
//!
//! A reading that is not there is [`Value::Null`], however it was said: JSON's `null`, CBOR's
//! `undefined`, NaN and the infinities of the binary codecs. One dead sensor must not take the other
//! fields of its message away, and none of these is 0. A field that was not sent at all stays
//! missing.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A decoded payload or a part of one.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// Said to be absent, which is neither 0 nor a missing field.
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number above [`i64::MAX`].
    Uint(u64),
    /// A finite number.
    Float(f64),
    /// Text.
    Text(Arc<str>),
    /// Bytes that are no text; shown as base64.
    Bytes(Arc<[u8]>),
    /// Values in order.
    List(Arc<[Value]>),
    /// Values by name.
    Map(Arc<Map>),
}

/// Values by name. Of a name that was sent twice the last value counts.
#[derive(Clone, Default, PartialEq)]
pub struct Map {
    /// Sorted by name.
    entries: Box<[(Arc<str>, Value)]>,
}

impl Map {
    /// From entries in any order.
    pub fn new(mut entries: Vec<(Arc<str>, Value)>) -> Self {
        // The sort is stable, so that of equal names the last stays last.
        entries.sort_by(|(one, _), (other, _)| one.cmp(other));
        entries.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                std::mem::swap(later, earlier);
            }
            same
        });
        // A last payload is kept for long: without the room that the list grew by.
        Self { entries: entries.into_boxed_slice() }
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let found = self.entries.binary_search_by(|(known, _)| known.as_ref().cmp(name));
        found.ok().and_then(|index| self.entries.get(index)).map(|(_, value)| value)
    }

    /// Names and values, by name.
    pub fn entries(&self) -> &[(Arc<str>, Value)] {
        &self.entries
    }
}

impl Value {
    /// A number; NaN and the infinities are no reading.
    pub(super) fn float(number: f64) -> Self {
        if number.is_finite() { Self::Float(number) } else { Self::Null }
    }

    /// A number of single precision, as the decimal number that is meant by it: 21.3, where its exact
    /// value is 21.299999237060547. People read it, and rules compare with 21.3.
    pub(super) fn single(number: f32) -> Self {
        number.to_string().parse().map_or(Self::Null, Self::float)
    }

    /// A whole number.
    pub(super) fn whole(number: u64) -> Self {
        i64::try_from(number).map_or(Self::Uint(number), Self::Int)
    }

    /// The lowest `bits` (1 to 64) of `raw` as a signed number.
    pub(super) fn signed(raw: u64, bits: u32) -> Self {
        let unused = u64::BITS.saturating_sub(bits).min(63);
        Self::Int((raw << unused).cast_signed() >> unused)
    }

    /// A whole number of any size; beyond 64 bits the nearest double, as in JSON.
    #[expect(clippy::cast_precision_loss, reason = "what does not fit is a double")]
    pub(super) fn wide(number: i128) -> Self {
        let uint = || u64::try_from(number).map(Self::Uint);
        i64::try_from(number)
            .map(Self::Int)
            .or_else(|_| uint())
            .unwrap_or(Self::Float(number as f64))
    }

    /// The number that it is, if it is one.
    #[expect(clippy::cast_precision_loss, reason = "the nearest double, as in every expression")]
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Uint(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Null
            | Self::Bool(_)
            | Self::Text(_)
            | Self::Bytes(_)
            | Self::List(_)
            | Self::Map(_) => None,
        }
    }

    /// What kind of value it is, for error texts.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Int(_) | Self::Uint(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Compact JSON; strings are quoted and escaped.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_json(self, f, "")
    }
}

/// Like `Display`, with a space after `:` and `,`.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_json(self, f, " ")
    }
}

impl fmt::Debug for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_map(self, f, " ")
    }
}

fn write_json(value: &Value, f: &mut fmt::Formatter<'_>, space: &str) -> fmt::Result {
    match value {
        Value::Null => f.write_str("null"),
        Value::Bool(value) => write!(f, "{value}"),
        Value::Int(value) => write!(f, "{value}"),
        Value::Uint(value) => write!(f, "{value}"),
        // `{:?}` keeps the `.0` of a whole float and writes large ones with an exponent.
        Value::Float(value) => write!(f, "{value:?}"),
        Value::Text(text) => write_text(text, f),
        Value::Bytes(bytes) => write_text(&base64_text(bytes), f),
        Value::List(items) => {
            f.write_str("[")?;
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    write!(f, ",{space}")?;
                }
                write_json(item, f, space)?;
            }
            f.write_str("]")
        }
        Value::Map(map) => write_map(map, f, space),
    }
}

fn write_map(map: &Map, f: &mut fmt::Formatter<'_>, space: &str) -> fmt::Result {
    f.write_str("{")?;
    for (index, (name, value)) in map.entries.iter().enumerate() {
        if index > 0 {
            write!(f, ",{space}")?;
        }
        write_text(name, f)?;
        write!(f, ":{space}")?;
        write_json(value, f, space)?;
    }
    f.write_str("}")
}

/// Bytes as they are shown: base64 (RFC 4648, section 4), with padding.
pub fn base64_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn write_text(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(&serde_json::to_string(text).map_err(|_| fmt::Error)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_repeated_name_the_last_value_counts() {
        let entry = |name: &str, value| (Arc::from(name), Value::Int(value));
        let map = Map::new(vec![entry("b", 1), entry("a", 2), entry("b", 3), entry("b", 4)]);
        assert_eq!(map.entries().len(), 2);
        assert_eq!(map.get("b"), Some(&Value::Int(4)));
        assert_eq!(map.get("c"), None);
    }

    #[test]
    fn shows_compact_json() {
        let list = Value::List([Value::Null, Value::Float(2.0), Value::Text("a\"b".into())].into());
        let value = Value::Map(Arc::new(Map::new(vec![("x".into(), list)])));
        assert_eq!(value.to_string(), r#"{"x":[null,2.0,"a\"b"]}"#);
        assert_eq!(Value::Bytes([0, 255].into()).to_string(), r#""AP8=""#);
    }

    #[test]
    fn numbers_keep_what_is_meant_by_them() {
        for (value, expected) in [
            (Value::single(21.3), "21.3"),
            (Value::single(-3.5), "-3.5"),
            (Value::single(f32::MIN_POSITIVE), "1.1754944e-38"),
            (Value::single(f32::NAN), "null"),
            (Value::float(f64::NEG_INFINITY), "null"),
            (Value::whole(7), "7"),
            (Value::whole(u64::MAX), "18446744073709551615"),
            (Value::wide(-5), "-5"),
            (Value::wide(i128::from(u64::MAX) + 1), "1.8446744073709552e19"),
        ] {
            assert_eq!(value.to_string(), expected);
        }
    }
}
