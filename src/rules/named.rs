//! The values that a rule names: the results of its `let` and `window`, in the order written.
//!
//! A name that failed is simply not there: what needs it fails too, and says so.

use std::sync::Arc;

use crate::payload::Value;

/// Values by name. A rule has few, so that they are looked for one by one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Named(Vec<(Arc<str>, Value)>);

impl Named {
    /// Without a value.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a value; of a name that is pushed twice the last value counts.
    pub fn push(&mut self, name: Arc<str>, value: Value) {
        self.0.push((name, value));
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(known, _)| known.as_ref() == name).map(|(_, value)| value)
    }

    /// Names and values, in the order they came.
    pub fn entries(&self) -> &[(Arc<str>, Value)] {
        &self.0
    }
}
