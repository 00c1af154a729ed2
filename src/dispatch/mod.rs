//! (skeleton: filled in next)

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::model::{Channel, Message, MessageId, Reason, Status};

/// A handle on the running dispatcher; clones share it.
#[derive(Clone)]
pub struct Dispatch {}

/// What an operator asked of a message cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such message.
    #[error("there is no message {0}")]
    NotFound(MessageId),
    /// Its status does not allow it.
    #[error("message {id} is {status}; {rule}")]
    NotAllowed {
        /// Which.
        id: MessageId,
        /// Its status.
        status: Status,
        /// What would be allowed.
        rule: &'static str,
    },
    /// There is no such provider.
    #[error("there is no provider {0}")]
    NoProvider(String),
    /// The store failed or the process is stopping.
    #[error("the dispatcher has stopped")]
    Stopped,
}

/// One provider's lane, for people.
#[derive(Clone, Debug, serde::Serialize)]
pub struct LaneStatus {
    /// The provider's name.
    pub provider: Arc<str>,
    /// The provider's kind, as in the configuration.
    pub kind: &'static str,
    /// Which channels it serves.
    pub channels: Vec<Channel>,
    /// Whether it takes messages.
    pub state: LaneState,
    /// Why not, where it does not.
    pub reason: Option<Reason>,
    /// The provider's words on it.
    pub detail: Option<String>,
    /// When it will be tried next, where it waits.
    pub until: Option<Timestamp>,
    /// Calls that wait for an answer.
    pub in_flight: usize,
    /// Messages ready to leave by it.
    pub ready: usize,
}

/// Whether a lane takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// It does.
    Up,
    /// The provider asked for a pause (Retry-After).
    Paused,
    /// The circuit breaker is open after failures in a row.
    BreakerOpen,
    /// The provider refuses our account or configuration: an operator must act.
    Stopped,
}

impl Dispatch {
    /// Puts a message that has ended without success, or waits, at the head of its queue.
    pub async fn retry(&self, _id: MessageId) -> Result<Message, ControlError> {
        unimplemented!()
    }

    /// Withdraws a message that no provider has taken.
    pub async fn cancel(&self, _id: MessageId) -> Result<Message, ControlError> {
        unimplemented!()
    }

    /// Lets a stopped, paused or broken lane try again at once.
    pub async fn resume(&self, _provider: &str) -> Result<(), ControlError> {
        unimplemented!()
    }

    /// Every lane as it stands.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        unimplemented!()
    }

    /// How many messages have not ended.
    pub fn waiting(&self) -> usize {
        unimplemented!()
    }
}
