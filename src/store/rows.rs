//! What the rows hold that are no type of [`crate::model`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::model::{Alert, AlertId, MessageId, Reason, Severity};
use crate::topic::TopicName;

/// An alert instance that fires. Its row's key is the alert's id and not rule and key, which would
/// come in no order: sled pays several times as much for those.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct InstanceRow {
    /// The alert that fires.
    pub(super) alert: AlertId,
    /// The rule's name.
    pub(super) rule: Arc<str>,
    /// The instance key.
    pub(super) key: Arc<str>,
    /// How urgent it is.
    pub(super) severity: Severity,
    /// When it fired.
    pub(super) at: Timestamp,
    /// The topic of the publish that fired it.
    pub(super) topic: TopicName,
}

/// An alert of which nobody is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suppressed {
    /// The alert.
    pub alert: Alert,
    /// Why.
    pub reason: Reason,
}

/// What an API request with an idempotency key became.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// SHA-256 of the request, hexadecimal: the same key with another request is an error.
    pub request: String,
    /// The messages.
    pub messages: Vec<MessageId>,
    /// When.
    pub at: Timestamp,
}

/// A device's credential, as `watchbell device add` keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The user name; unique.
    pub user: String,
    /// Argon2id hash in PHC string form.
    pub password_hash: String,
    /// Which client ids it may use: exact, or with `*`.
    pub client_ids: Vec<String>,
    /// Which groups it is in, for `[[access]]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// When it was added.
    pub added_at: Timestamp,
}
