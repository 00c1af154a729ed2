//! What a restart finds: the rows that notify has the store keep.
//!
//! A row is whole in itself: it needs no other to be read. Its key is a kind byte and what names it;
//! names are joined by a zero byte, which only the last of them may hold.
//!
//! Invariant: what is in memory between two calls and matters after a restart is in a row.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::group::Group;
use super::hold::Instance;
use super::quota::Window;
use super::silence::Silence;
use super::storm::Storm;
use super::tale::Tale;
use crate::model::{AlertId, partition};

/// The key of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowId {
    /// What each contact was told of an alert.
    Tale(AlertId),
    /// An instance that cools down or is flapping.
    Instance {
        /// The rule's name.
        rule: Arc<str>,
        /// The instance key.
        key: Arc<str>,
    },
    /// Alerts that are told together.
    Group {
        /// The rule's name.
        rule: Arc<str>,
        /// The values of its labels, joined by `/`.
        values: Arc<str>,
    },
    /// Messages that are counted towards a `max`.
    Window {
        /// The rule whose `max` it is; `None`: the contact's own.
        rule: Option<Arc<str>>,
        /// The contact's name.
        contact: Arc<str>,
    },
    /// A silence of an operator.
    Silence(Arc<str>),
    /// A storm under this prefix of topics.
    Storm(Arc<str>),
}

impl RowId {
    /// The partition that the row is in, 0 to 63: that of its rule and instance where it has one.
    pub fn partition(&self) -> u8 {
        match self {
            Self::Tale(alert) => alert.partition(),
            Self::Instance { rule, key } => partition(rule, key),
            Self::Group { rule, values } => partition(rule, values),
            Self::Window { rule, contact } => partition(rule.as_deref().unwrap_or(""), contact),
            Self::Silence(id) => partition("", id),
            Self::Storm(prefix) => partition("", prefix),
        }
    }

    /// The rest of its key: a kind byte and its name.
    pub fn bytes(&self) -> Vec<u8> {
        let joined = |kind: u8, first: &str, second: &str| {
            let mut bytes = Vec::with_capacity(2 + first.len() + second.len());
            bytes.push(kind);
            bytes.extend_from_slice(first.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(second.as_bytes());
            bytes
        };
        match self {
            Self::Tale(alert) => {
                let mut bytes = vec![b'a'];
                bytes.extend_from_slice(alert.as_uuid().as_bytes());
                bytes
            }
            Self::Instance { rule, key } => joined(b'i', rule, key),
            Self::Group { rule, values } => joined(b'g', rule, values),
            Self::Window { rule, contact } => joined(b'q', rule.as_deref().unwrap_or(""), contact),
            Self::Silence(id) => joined(b's', "", id),
            Self::Storm(prefix) => joined(b't', "", prefix),
        }
    }
}

/// What is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Row {
    /// See [`RowId::Tale`].
    Tale(Box<Tale>),
    /// See [`RowId::Instance`].
    Instance(Instance),
    /// See [`RowId::Group`].
    Group(Group),
    /// See [`RowId::Window`].
    Window(Window),
    /// See [`RowId::Silence`].
    Silence(Silence),
    /// See [`RowId::Storm`].
    Storm(Storm),
}

impl Row {
    /// Its key.
    pub fn id(&self) -> RowId {
        match self {
            Self::Tale(tale) => RowId::Tale(tale.alert.id),
            Self::Instance(instance) => instance.id(),
            Self::Group(group) => group.id(),
            Self::Window(window) => window.id(),
            Self::Silence(silence) => RowId::Silence(Arc::clone(&silence.id)),
            Self::Storm(storm) => RowId::Storm(Arc::clone(&storm.prefix)),
        }
    }
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum RowChange {
    /// It is written, over what it was.
    Put(Row),
    /// It is removed.
    Remove(RowId),
}
