//! JSON (RFC 8259), read straight into [`Value`] with a count of levels and values.
//!
//! serde_json's own `Value` is not used: it has no limit on the number of values, and it would
//! have to be converted for every text that is rendered.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::value::Map;
use super::{Limits, Undecodable, Value, names};

pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Value, Undecodable> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Undecodable::Empty);
    }
    let budget =
        Budget { limits, values_left: Cell::new(limits.values_max), exceeded: Cell::new(None) };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed { budget: &budget, depth: 0 };
    let decoded =
        seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    decoded.map_err(|error| {
        budget
            .exceeded
            .get()
            .unwrap_or(Undecodable::NotJson { line: error.line(), column: error.column() })
    })
}

struct Budget {
    limits: Limits,
    values_left: Cell<usize>,
    /// serde's errors are texts; which limit it was is noted here.
    exceeded: Cell<Option<Undecodable>>,
}

impl Budget {
    fn exceed<E: Error>(&self, what: Undecodable) -> E {
        self.exceeded.set(Some(what));
        E::custom(what)
    }
}

/// One value at a depth.
#[derive(Clone, Copy)]
struct Seed<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl Seed<'_> {
    fn below<E: Error>(self) -> Result<Self, E> {
        let max = self.budget.limits.depth_max;
        if self.depth >= max {
            return Err(self.budget.exceed(Undecodable::TooDeep(max)));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.budget.values_left.get();
        let Some(left) = left.checked_sub(1) else {
            let max = self.budget.limits.values_max;
            return Err(self.budget.exceed(Undecodable::TooManyValues(max)));
        };
        self.budget.values_left.set(left);
        deserializer.deserialize_any(self)
    }
}

/// A field's name, without the detour over a `String`.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Arc<str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Arc<str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Arc<str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Arc<str>, E> {
        Ok(names::shared(name))
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Uint(value), Value::Int))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(below)? {
            list.push(item);
        }
        Ok(Value::List(list.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let below = self.below()?;
        let mut entries = Vec::new();
        while let Some(name) = fields.next_key_seed(Name)? {
            entries.push((name, fields.next_value_seed(below)?));
        }
        Ok(Value::Map(Arc::new(Map::new(entries))))
    }
}
