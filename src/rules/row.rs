//! Texts of a stored instance that others have too: its rule, the names of its labels, its client.
//!
//! At a start a million rows are read: each such text is made once, and without a detour over a
//! `String`. Never: more than that about rows; they are [`super::instance::Instance`]s.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, Visitor};

use crate::model::Labels;
use crate::payload::names;

/// A text that many rows have.
pub(super) fn shared<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    Shared::deserialize(deserializer).map(|Shared(text)| text)
}

/// Labels, their names shared.
pub(super) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
    let labels: Vec<(Shared, Arc<str>)> = Vec::deserialize(deserializer)?;
    Ok(labels.into_iter().map(|(Shared(name), value)| (name, value)).collect())
}

struct Shared(Arc<str>);

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

struct Text;

impl Visitor<'_> for Text {
    type Value = Shared;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Shared, E> {
        Ok(Shared(names::shared(text)))
    }
}
