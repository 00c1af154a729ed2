//! `max`: so many messages in a period, for a rule's or a contact's sake.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::row::RowId;
use crate::clock::Timestamp;

/// A period in which messages are counted, from its first message on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// The rule whose `max` it is; `None`: the contact's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// The contact.
    pub contact: Arc<str>,
    /// When it ends.
    pub until: Timestamp,
    /// How many messages there were.
    pub count: u32,
}

impl Window {
    pub(super) fn id(&self) -> RowId {
        RowId::Window { rule: self.rule.clone(), contact: Arc::clone(&self.contact) }
    }
}
