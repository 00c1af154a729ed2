//! From a provider's code to what follows: one line a code, in the provider's own table.

use std::time::Duration;

use reqwest::StatusCode;

use super::{RetryScope, Scope, SendOutcome};
use crate::model::Reason;

/// What a code asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Try again; the provider as a whole is slow or down.
    RetryLane,
    /// Try again; only this message is concerned.
    RetryMessage,
    /// Never to this recipient.
    Recipient,
    /// Never with this content.
    Content,
    /// Never with this account or configuration: every message would be refused.
    Lane,
}

/// Why, and what it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict(pub(super) Reason, pub(super) Class);

/// The line of `code`.
pub(super) fn find<K: PartialEq>(table: &[(K, Reason, Class)], code: &K) -> Option<Verdict> {
    let (_, reason, class) = table.iter().find(|(known, ..)| known == code)?;
    Some(Verdict(*reason, *class))
}

/// What an HTTP status says by itself, where the body is not the provider's (a gateway's page, a
/// cut answer) or holds a code that no table knows.
pub(super) fn by_status(status: StatusCode) -> Verdict {
    use Reason::{
        BadAnswer, BadCredentials, ContentRefused, NoCredit, ProviderRefused, ProviderUnavailable,
        Throttled,
    };
    match status.as_u16() {
        401 => Verdict(BadCredentials, Class::Lane),
        402 => Verdict(NoCredit, Class::Lane),
        403..=405 => Verdict(ProviderRefused, Class::Lane),
        429 => Verdict(Throttled, Class::RetryLane),
        408 | 425 | 500..=599 => Verdict(ProviderUnavailable, Class::RetryLane),
        400..=499 => Verdict(ContentRefused, Class::Content),
        // A redirect, which is not followed, or no HTTP that we know.
        _ => Verdict(BadAnswer, Class::RetryLane),
    }
}

impl Verdict {
    /// The outcome for one message. `after` counts only where there is a next time.
    pub(super) fn outcome(self, after: Option<Duration>, detail: String) -> SendOutcome {
        let Self(reason, class) = self;
        let retry = |scope, detail| SendOutcome::Retry { reason, after, scope, detail };
        let rejected = |scope, detail| SendOutcome::Rejected { reason, scope, detail };
        match class {
            Class::RetryLane => retry(RetryScope::Provider, detail),
            Class::RetryMessage => retry(RetryScope::Message, detail),
            Class::Recipient => rejected(Scope::Recipient, detail),
            Class::Content => rejected(Scope::Content, detail),
            Class::Lane => rejected(Scope::Provider, detail),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_alone_says_enough() {
        for (status, reason, class) in [
            (301, Reason::BadAnswer, Class::RetryLane),
            (400, Reason::ContentRefused, Class::Content),
            (401, Reason::BadCredentials, Class::Lane),
            (402, Reason::NoCredit, Class::Lane),
            (403, Reason::ProviderRefused, Class::Lane),
            (404, Reason::ProviderRefused, Class::Lane),
            (408, Reason::ProviderUnavailable, Class::RetryLane),
            (413, Reason::ContentRefused, Class::Content),
            (422, Reason::ContentRefused, Class::Content),
            (429, Reason::Throttled, Class::RetryLane),
            (500, Reason::ProviderUnavailable, Class::RetryLane),
            (503, Reason::ProviderUnavailable, Class::RetryLane),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(by_status(status), Verdict(reason, class), "{status}");
        }
    }
}
