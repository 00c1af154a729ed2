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
    /// Try again; only what goes to this recipient is concerned.
    RetryRecipient,
    /// Try again; only this message is concerned.
    RetryMessage,
    /// Never to this recipient.
    Recipient,
    /// Never to this recipient by this provider: the next one may.
    Route,
    /// Never with this content.
    Content,
    /// This provider will not; perhaps it refuses every message, perhaps it does not.
    Account,
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

/// What an HTTP status says by itself, where the body is not the provider's: a gateway's page, a
/// cut answer.
pub(super) fn by_status(status: StatusCode) -> Verdict {
    use Reason::{
        BadAnswer, BadCredentials, NoCredit, ProviderRefused, ProviderUnavailable, Throttled,
    };
    match status.as_u16() {
        401 => Verdict(BadCredentials, Class::Account),
        402 => Verdict(NoCredit, Class::Account),
        403..=405 | 413 | 414 => Verdict(ProviderRefused, Class::Account),
        // The proxy on our way wants credentials, whoever the message is for.
        407 => Verdict(BadCredentials, Class::Lane),
        429 => Verdict(Throttled, Class::RetryLane),
        408 | 425 | 500..=599 => Verdict(ProviderUnavailable, Class::RetryLane),
        // Somebody else's 400; a redirect, which is not followed; no HTTP that we know.
        _ => Verdict(BadAnswer, Class::RetryLane),
    }
}

/// What follows from the provider's own words with a code that no table knows: it will not, unless
/// the status asks for another try.
pub(super) fn unknown_code(status: StatusCode) -> Verdict {
    match by_status(status) {
        Verdict(Reason::BadAnswer, _) => Verdict(Reason::ProviderRefused, Class::Account),
        known => known,
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
            Class::RetryRecipient => retry(RetryScope::Endpoint, detail),
            Class::RetryMessage => retry(RetryScope::Message, detail),
            Class::Recipient => rejected(Scope::Recipient, detail),
            Class::Route => rejected(Scope::Route, detail),
            Class::Content => rejected(Scope::Content, detail),
            Class::Account => rejected(Scope::Account { sure: false }, detail),
            Class::Lane => rejected(Scope::Account { sure: true }, detail),
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
            (400, Reason::BadAnswer, Class::RetryLane),
            (401, Reason::BadCredentials, Class::Account),
            (402, Reason::NoCredit, Class::Account),
            (403, Reason::ProviderRefused, Class::Account),
            (404, Reason::ProviderRefused, Class::Account),
            (407, Reason::BadCredentials, Class::Lane),
            (408, Reason::ProviderUnavailable, Class::RetryLane),
            (413, Reason::ProviderRefused, Class::Account),
            (422, Reason::BadAnswer, Class::RetryLane),
            (429, Reason::Throttled, Class::RetryLane),
            (500, Reason::ProviderUnavailable, Class::RetryLane),
            (503, Reason::ProviderUnavailable, Class::RetryLane),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(by_status(status), Verdict(reason, class), "{status}");
        }
    }

    #[test]
    fn a_code_that_no_table_knows_is_this_provider_will_not() {
        for (status, reason, class) in [
            (200, Reason::ProviderRefused, Class::Account),
            (400, Reason::ProviderRefused, Class::Account),
            (403, Reason::ProviderRefused, Class::Account),
            (422, Reason::ProviderRefused, Class::Account),
            (429, Reason::Throttled, Class::RetryLane),
            (500, Reason::ProviderUnavailable, Class::RetryLane),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(unknown_code(status), Verdict(reason, class), "{status}");
        }
    }
}
