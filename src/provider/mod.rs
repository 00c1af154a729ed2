//! Outbound gateways: one file a provider.
//!
//! A provider knows the wire and its credentials; it knows nothing of queues, rules or retries.
//! It makes one call when asked and says what came of it in one closed form, [`SendOutcome`];
//! what follows from that is `dispatch`'s business.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::clock::Timestamp;
use crate::model::{Message, Reason};

/// One outbound gateway.
pub trait Provider: Send + Sync {
    /// Makes one call for `message`. Never retries by itself and ends within its time limit.
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome>;

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
    },
    /// Not taken, and worth another try.
    Retry {
        /// Throttled or transient.
        reason: Reason,
        /// The provider's own wish (Retry-After); the whole lane honours it.
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
    /// The request left and no answer was read: it may have been sent.
    Unknown {
        /// In words, masked.
        detail: String,
    },
}

/// Whom a transient failure concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryScope {
    /// The provider as a whole: it counts towards the circuit breaker and slows the lane.
    Provider,
    /// This message only (handset off, pair limit): the lane goes on.
    Message,
}

/// What a rejection concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This recipient on this channel.
    Recipient,
    /// What the message says.
    Content,
    /// Account, credentials, sender, credit: every message would be refused, so the lane stops.
    Provider,
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
