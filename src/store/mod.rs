//! The store: sled behind one narrow door.
//!
//! (skeleton: filled in next)

use crate::clock::Timestamp;
use crate::model::{Channel, Message, MessageId, Status};

/// A handle on the open store; clones share it.
#[derive(Clone)]
pub struct Store {}

/// The store could not be read: the disk, or a row that this version cannot understand.
#[derive(Debug, thiserror::Error)]
#[error("reading the store: {0}")]
pub struct ReadError(String);

/// The store could not write: nothing of the operation is durable.
#[derive(Clone, Debug, thiserror::Error)]
#[error("writing to the store: {0}")]
pub struct CommitError(String);

/// Which messages to list. Empty: all.
#[derive(Clone, Debug, Default)]
pub struct MessageFilter {
    /// Only in one of these states; empty for any.
    pub status: Vec<Status>,
    /// Only of this channel.
    pub channel: Option<Channel>,
    /// Only of alerts of this rule.
    pub rule: Option<String>,
    /// Only to this contact.
    pub contact: Option<String>,
}

/// A device's credential, as `watchbell device add` keeps it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Device {
    /// The user name; unique.
    pub user: String,
    /// Argon2id hash in PHC string form.
    pub password_hash: String,
    /// Which client ids it may use: exact, or with `*`. Default: its own name.
    pub client_ids: Vec<String>,
    /// When it was added.
    pub added_at: Timestamp,
}

impl Store {
    /// The message with this id, ended or not.
    pub fn message(&self, _id: MessageId) -> Result<Option<Message>, ReadError> {
        unimplemented!()
    }

    /// Messages, newest first: those older than `before`, at most `limit`.
    pub fn messages(
        &self,
        _filter: &MessageFilter,
        _before: Option<MessageId>,
        _limit: usize,
    ) -> Result<Vec<Message>, ReadError> {
        unimplemented!()
    }

    /// The device with this user name.
    pub fn device(&self, _user: &str) -> Result<Option<Device>, ReadError> {
        unimplemented!()
    }

    /// All devices by name.
    pub fn devices(&self) -> Result<Vec<Device>, ReadError> {
        unimplemented!()
    }

    /// Adds or replaces a device; durable on return.
    pub async fn put_device(&self, _device: &Device) -> Result<(), CommitError> {
        unimplemented!()
    }

    /// Removes a device; says whether there was one; durable on return.
    pub async fn remove_device(&self, _user: &str) -> Result<bool, CommitError> {
        unimplemented!()
    }
}
