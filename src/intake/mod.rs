//! (skeleton: filled in next)

pub mod ruleset;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::model::{Channel, Message, Publish, Reason, Severity, Target, Template};
use crate::topic::TopicName;

/// The way into the engine for everything that may become a message; clones share it.
#[derive(Clone)]
pub struct Intake {}

/// The rules that match a publish's topic, of the rule set in force when it was looked up.
pub struct Matches {}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that it caused is on disk: acknowledge it, fan it out.
    Durable,
    /// Nothing of it is on disk: do not acknowledge it (MQTT 5: answer with the reason code).
    Refused(Reason),
}

/// Where a verdict goes. The channel must have room for every ticket that is out: the sender does
/// not wait.
#[derive(Debug)]
pub struct Ticket {
    /// The asker's own number.
    pub number: u64,
    /// The asker's queue.
    pub to: mpsc::Sender<(u64, Verdict)>,
}

/// A message that came through the HTTP API or the command line.
#[derive(Clone, Debug)]
pub struct SendRequest {
    /// Contacts by name; each gets it by the first of `by` that it has, the others follow.
    pub to: Vec<String>,
    /// Channels in order, for `to`.
    pub by: Vec<Channel>,
    /// Addresses given outright.
    pub targets: Vec<Target>,
    /// How urgent.
    pub severity: Severity,
    /// A short headline.
    pub title: Option<String>,
    /// The text.
    pub text: String,
    /// A template in place of the text (WhatsApp).
    pub template: Option<Template>,
    /// How long it may wait; the configured default where `None`.
    pub expires_in: Option<Duration>,
    /// The same key again gives the same messages and sends nothing (for 24 h); 1 to 128 bytes.
    pub idempotency_key: Option<String>,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The request makes no sense; all that is wrong with it.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// The key was used for another request.
    #[error("this idempotency key was used for a different request")]
    KeyReused,
    /// Try again later.
    #[error("not taken: {0}")]
    Refused(Reason),
}

/// The messages that a request became, or had become before.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The messages, durable.
    pub messages: Vec<Message>,
    /// Whether they are those of an earlier request with the same key.
    pub repeated: bool,
}

impl Intake {
    /// The rules that match `topic`; `None` where there is none, and the publish needs no intake.
    pub fn matches(&self, _topic: &TopicName) -> Option<Matches> {
        unimplemented!()
    }

    /// Hands a publish in. Waits while intake is full, which is how devices are slowed down.
    /// The verdict comes to the ticket; one also comes when the process stops.
    pub async fn submit(&self, _publish: Arc<Publish>, _matches: Matches, _ticket: Ticket) {
        unimplemented!()
    }

    /// Takes a message from the API; durable on return.
    pub async fn send(&self, _request: SendRequest) -> Result<Sent, SendError> {
        unimplemented!()
    }
}
