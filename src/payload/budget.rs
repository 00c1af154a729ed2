//! What the binary codecs share: how much a payload may still hold, and what its names are.
//!
//! A codec asks before it makes a value and before it goes a level down, so that no count that a
//! device announces is believed before it is paid for.

use std::sync::Arc;

use super::value::base64_text;
use super::{Limits, Undecodable, Value};

/// What of [`Limits`] is left of one payload.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    values_left: usize,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, values_left: limits.values_max }
    }

    /// One value more.
    pub(super) fn value(&mut self) -> Result<(), Undecodable> {
        self.values(1)
    }

    /// So many values more.
    pub(super) fn values(&mut self, count: usize) -> Result<(), Undecodable> {
        let left = self.values_left.checked_sub(count);
        self.values_left = left.ok_or(Undecodable::TooManyValues(self.limits.values_max))?;
        Ok(())
    }

    /// The depth below `depth`, for what is in a list or a map there.
    pub(super) fn below(&self, depth: usize) -> Result<usize, Undecodable> {
        let max = self.limits.depth_max;
        if depth >= max { Err(Undecodable::TooDeep(max)) } else { Ok(depth + 1) }
    }
}

/// The key of a map as a name: text as it is, numbers and truth values as JSON has them, bytes in
/// base64. Nothing else is a name.
pub(super) fn name(key: &Value) -> Option<Arc<str>> {
    match key {
        Value::Text(text) => Some(Arc::clone(text)),
        Value::Bytes(bytes) => Some(base64_text(bytes).into()),
        Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Float(_) => {
            Some(key.to_string().into())
        }
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}
