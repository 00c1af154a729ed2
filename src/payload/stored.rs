//! A payload in a row of the store: as JSON, read back with all its digits. Bytes come back as their
//! base64 text, which is what expressions and texts see of them.
//!
//! Not for what devices send: that goes through a codec with its limits.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::names;
use super::value::{Map, Value, base64_text};

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Uint(value) => serializer.serialize_u64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_str(&base64_text(bytes)),
            Self::List(items) => serializer.collect_seq(items.iter()),
            Self::Map(map) => {
                let mut fields = serializer.serialize_map(Some(map.entries().len()))?;
                for (name, value) in map.entries() {
                    fields.serialize_entry(name.as_ref(), value)?;
                }
                fields.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Stored)
    }
}

struct Stored;

impl<'de> Visitor<'de> for Stored {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a stored payload")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Uint(value), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map: Vec<(Arc<str>, Value)> = Vec::new();
        while let Some((name, value)) = fields.next_entry::<std::borrow::Cow<'_, str>, Value>()? {
            map.push((names::shared(&name), value));
        }
        Ok(Value::Map(Arc::new(Map::new(map))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Decode, Limits, decode};
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn what_is_stored_comes_back() {
        for text in [
            "null",
            "[true,-1,18446744073709551615,2.5,2.0,\"a\\\"b\"]",
            "{\"a\":{\"b\":[]},\"c\":9007199254740993}",
        ] {
            let value = decode(
                &Decode::Json.into(),
                text.as_bytes(),
                Limits::default(),
                Timestamp::default(),
            )
            .expect("JSON");
            let stored = serde_json::to_string(&value).expect("serializes");
            let again: Value = serde_json::from_str(&stored).expect("deserializes");
            assert_eq!(again, value, "{text}");
        }
    }
}
