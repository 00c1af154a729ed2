//! What the rows hold that are no type of [`crate::model`].

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::model::{Alert, MessageId, Reason};

/// An alert instance that fires. The rules engine is restored from these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceRow {
    /// The alert that fires.
    pub alert: Alert,
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
    /// When it was added.
    pub added_at: Timestamp,
}
