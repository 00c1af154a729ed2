//! Why somebody is not told now, and until when.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::RowId;
use crate::clock::Timestamp;
use crate::model::{AlertId, Reason};

/// That a contact is not told now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hold {
    /// Why.
    pub reason: Reason,
    /// Since when.
    pub since: Timestamp,
    /// Until when, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The group, window or storm that ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<RowId>,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Arc<str>>,
}

/// What outlives the alerts of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// The rule's name.
    pub rule: Arc<str>,
    /// The instance key.
    pub key: Arc<str>,
    /// The alert of which somebody was told last, or that is flapping.
    pub alert: AlertId,
    /// Until then nobody is told of a new firing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cool_at: Option<Timestamp>,
    /// Its state changes too often to be told.
    #[serde(default)]
    pub flapping: bool,
}

impl Instance {
    pub(super) fn id(&self) -> RowId {
        RowId::Instance { rule: Arc::clone(&self.rule), key: Arc::clone(&self.key) }
    }
}
