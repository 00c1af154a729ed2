//! Outbound gateways: one file a provider, all of them named in [`registry::KINDS`].
//!
//! A provider knows the wire and its credentials; it knows nothing of queues, rules or retries.
//! It makes one call when asked and says what came of it in one closed form, [`SendOutcome`];
//! what follows from that is `dispatch`'s business.
//!
//! How an answer becomes an outcome, in every provider:
//! - Its error code decides, by the table in its file. A code that no table knows means "this
//!   provider will not" ([`Scope::Account`], not sure), unless its HTTP status asks for another try.
//! - An answer that is not the provider's (a gateway's page) is read by its HTTP status alone.
//! - Nothing left (no name, no connection, no TLS): retry. The request may have left and no answer
//!   came: [`SendOutcome::Unknown`].
//! - The success status and a body that cannot be read (cut off, too long, not the provider's):
//!   `Unknown`, and not to be repeated here. It may hold a refusal, or be somebody else's; where the
//!   provider can be asked and the status is its own, it is asked. To a webhook the status is all.
//! - A rejection has the narrowest scope that is true: [`Scope::Account`] is sure only where every
//!   message would be refused.
//! - What the provider says is kept for people, without secrets and numbers (`scrub`).

mod fcm;
mod fcm_token;
mod http;
pub mod phone;
mod public;
pub mod rate;
pub mod reach;
pub mod registry;
mod scrub;
mod table;
mod twilio;
mod webhook;
mod whatsapp_cloud;

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::clock::Timestamp;
use crate::model::{Address, Message, Reason};

/// One outbound gateway.
pub trait Provider: Send + Sync {
    /// Makes one call for `message` and ends within its time limit. Never repeats a request that
    /// may have been taken; a second one leaves only after the first was refused (a token that has
    /// been revoked, a text that must go as a template).
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome>;

    /// Why it will refuse every message to `address`, where the configuration alone decides that.
    fn objection(&self, _address: &Address) -> Option<String> {
        None
    }

    /// Whether the provider can be asked if it has taken a message ([`Provider::lookup`]).
    fn can_look_up(&self) -> bool {
        false
    }

    /// Asks the provider for calls like `message` that it took at or after `since`: for an attempt
    /// whose answer was never read. Only called where [`Provider::can_look_up`].
    fn lookup<'a>(&'a self, _message: &'a Message, _since: Timestamp) -> BoxFuture<'a, Lookup> {
        Box::pin(async { Lookup::Inconclusive { detail: "no list call".to_owned() } })
    }
}

/// What came of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendOutcome {
    /// The provider has taken it.
    Accepted {
        /// The provider's id for it.
        provider_ref: Option<String>,
        /// How many SMS parts the provider bills, where it says so.
        segments: Option<u32>,
        /// The receiver itself has it (webhook, virtual phone): nothing more will be heard.
        delivered: bool,
        /// What an operator should know of it all the same, masked.
        note: Option<String>,
    },
    /// Not taken, and worth another try.
    Retry {
        /// Throttled or transient.
        reason: Reason,
        /// The provider's own wish, in its answer (Retry-After) or in its documentation; with
        /// [`RetryScope::Provider`] the whole lane honours it.
        after: Option<Duration>,
        /// What to retry: this message only, or everything for this provider.
        scope: RetryScope,
        /// In words, masked.
        detail: String,
    },
    /// Not taken, and no try will change that.
    Rejected {
        /// Why.
        reason: Reason,
        /// What is refused.
        scope: Scope,
        /// In words, masked.
        detail: String,
    },
    /// The request left and no answer of the provider was read: it may have been sent.
    Unknown {
        /// In words, masked.
        detail: String,
        /// Somebody said that it went well and it cannot be read who: another try would get the
        /// same answer, and perhaps send it again.
        answered: bool,
    },
}

/// Whom a transient failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryScope {
    /// The provider as a whole: it counts towards the circuit breaker and slows the lane.
    Provider,
    /// One endpoint: a webhook's host, the quota of a device, the limit of a pair of numbers. What
    /// else goes there waits, and the lane goes on.
    Endpoint,
    /// This message only (handset off): the lane goes on.
    Message,
    /// This machine: no open file, memory or port was left. The provider has not been asked.
    Here,
}

/// What a rejection concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This recipient on this channel, whoever is asked.
    Recipient,
    /// This recipient by this provider (a country that is switched off, no route): the channel's
    /// next provider may reach them.
    Route,
    /// What the message says, whoever is asked.
    Content,
    /// Account, credentials, sender, credit, configuration: this provider will not. The message
    /// goes on to the channel's next provider, then to the contact's next channel.
    Account {
        /// Every message would be refused, so the lane stops at once. Otherwise it stops when
        /// several different recipients were refused.
        sure: bool,
    },
}

/// What a provider knows of an earlier call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// It took these: ids, oldest first. The caller drops those that it knows to belong to others.
    Found(Vec<String>),
    /// It took none.
    NotFound,
    /// It could not be asked.
    Inconclusive {
        /// In words, masked.
        detail: String,
    },
}

/// A target that its channel does not go with: the plan is wrong, and no try will change that.
fn wrong_address(sends_to: &str, message: &Message) -> SendOutcome {
    SendOutcome::Rejected {
        reason: Reason::BadRecipient,
        scope: Scope::Recipient,
        detail: format!("{sends_to}; this is {}", message.target.address),
    }
}

#[cfg(test)]
mod fixture {
    use std::sync::Arc;

    use crate::clock::Timestamp;
    use crate::model::{
        Address, Channel, Content, IdSource, Message, MessageId, Severity, Status, Target,
    };

    /// A message to `address` that says `text`.
    pub(super) fn message(address: Address, channel: Channel, text: &str) -> Message {
        let now = Timestamp::from_millis(1_795_428_000_000);
        Message {
            id: MessageId::new(IdSource::new(1).next(now)),
            alert: None,
            contact: None,
            target: Target { channel, address },
            then: Vec::new(),
            severity: Severity::Warning,
            content: Content { title: None, text: Arc::from(text), template: None },
            segments: None,
            created_at: now,
            expires_at: now.plus(std::time::Duration::from_secs(3600)),
            status: Status::Queued,
            reason: None,
            detail: None,
            due_at: now,
            updated_at: now,
            attempt_count: 0,
            attempts: Vec::new(),
            left_out: None,
            fallback_after: None,
            fallback: None,
            provider: None,
            extended: false,
            provider_ref: None,
        }
    }
}
