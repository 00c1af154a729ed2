//! What each [`Reason`] means, in one sentence for the person who asks why: the one table of them.
//!
//! Invariant: a reason that is added does not compile until it has its sentence here.

use super::Reason;

impl Reason {
    /// What it means: one sentence, with its full stop.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::MalformedPacket => "The bytes that came are no MQTT packet.",
            Self::ProtocolError => "MQTT does not allow this packet here.",
            Self::UnsupportedVersion => {
                "The client speaks a version of MQTT other than 3.1.1 or 5.0."
            }
            Self::PacketTooLarge => "It is larger than the limit.",
            Self::UpstreamRefused => {
                "An upstream closed the connection each time that it was sent this publish."
            }
            Self::BadRequest => "The HTTP request makes no sense.",
            Self::BadTopic => "The topic is empty, too long, too deep, or holds a wildcard.",
            Self::BadFilter => "The topic filter breaks MQTT's rules or the limits.",
            Self::BadClientId => "The client id is empty, too long or holds a reserved character.",
            Self::BadCredentials => "The user is unknown or the password or key is wrong.",
            Self::NotAuthorized => "The access rules do not allow it.",
            Self::Banned => "The client, its user, identity or address is banned.",
            Self::CredentialExpired => "The token that let the client in has expired.",
            Self::AuthUnavailable => "Who the client is could not be found out in time.",
            Self::TlsFailed => "The TLS handshake failed.",
            Self::CertificateRefused => "The client's certificate is no longer accepted.",
            Self::BadProxyHeader => "The PROXY protocol header is missing or from a stranger.",
            Self::ConnectTimeout => "It took too long to connect or to ask.",
            Self::KeepAliveTimeout => "Nothing was heard for one and a half keep-alive intervals.",
            Self::TakenOver => "Another connection took the session over.",
            Self::ConnectionLost => "The connection broke.",
            Self::ClientDisconnect => "The client said that it disconnects.",
            Self::AdminDisconnect => "An operator had the client disconnected.",
            Self::TooMany => "A limit on how many there may be is reached.",
            Self::RateLimited => "The client sends faster than its limit.",
            Self::QueueFull => "The subscriber's queue is full.",
            Self::FanoutFailed => "What hands the subscriber its publishes has died.",
            Self::QueueAge => "It waited for its subscriber longer than broker.queue_age_max.",
            Self::MessageExpired => "Its MQTT expiry passed while it waited.",
            Self::WriteTimeout => "The peer does not read what is written to it.",
            Self::OutboxFull => "The outbox is full, so nothing new is taken.",
            Self::DiskLow => "The disk is almost full, so nothing new is taken.",
            Self::StoreFailed => "The store could not write; Watchbell has to be started again.",
            Self::ShuttingDown => "Watchbell was stopping.",
            Self::UndecodablePayload => {
                "The payload could not be decoded as the rule's `decode` says."
            }
            Self::ExpressionFailed => "An expression of the rule failed on this publish.",
            Self::TemplateFailed => {
                "The text of the rule could not be rendered; what could be, and the payload, were told."
            }
            Self::Skipped => "The rule's `skip` holds, so the publish is none of its readings.",
            Self::Duplicate => "A publish with the same `dedupe` value was taken before.",
            Self::TooOld => "The reading is older than the rule's `max_age`.",
            Self::Replayed => {
                "An upstream had kept the reading, which sets state and raises nothing."
            }
            Self::Shadow => "The rule is in shadow mode: it only counts what it would do.",
            Self::Silenced => "A silence covers the alert.",
            Self::QuietHours => "The contact has quiet hours.",
            Self::Inhibited => "Another alert, which explains this one, fires.",
            Self::Cooldown => "Somebody was told of the instance less than `cooldown` ago.",
            Self::QuotaReached => "The `max` of messages of the rule or of the contact is reached.",
            Self::Grouped => "It waits for the other alerts of its group.",
            Self::Storm => "Too many alerts fire under one topic, and one message tells of all.",
            Self::Flapping => "Its state changes too often to be told.",
            Self::Over => "It was over before anybody was told that it had begun.",
            Self::Superseded => "Another message has told it, or tells how it stands now.",
            Self::RuleChanged => "The rule means something else since it was loaded again.",
            Self::RuleRemoved => "The rule is gone.",
            Self::Forgotten => "The instance was forgotten, by an operator or by its `forget`.",
            Self::NoRecipient => {
                "The rule names nobody, or the contact has no address on any of its channels."
            }
            Self::NoProvider => "No provider is configured for the channel.",
            Self::Throttled => "The provider asks for a slower pace.",
            Self::ProviderUnavailable => "The provider answers with an error of its own.",
            Self::ConnectFailed => "There was no connection to the provider.",
            Self::OutOfResources => {
                "This machine had no open file, memory or port left to ask the provider with."
            }
            Self::NoAnswer => "The provider's answer was lost, so it may have been sent or not.",
            Self::BadAnswer => "The provider's answer makes no sense.",
            Self::ProviderRefused => {
                "The provider refuses the account, the sender or our settings."
            }
            Self::NoCredit => "The account at the provider has no credit.",
            Self::BadRecipient => "The address does not exist or cannot take this channel.",
            Self::OptedOut => "The recipient has opted out.",
            Self::Unreachable => "The recipient cannot be reached at present.",
            Self::ContentRefused => "The provider refuses what the message says.",
            Self::WindowClosed => "WhatsApp takes only a template, 24 hours after the last answer.",
            Self::RecipientGone => "The receiver has said that it is gone.",
            Self::Expired => "Its time ran out before a provider took it.",
            Self::Canceled => "Somebody withdrew it.",
            Self::AttemptsExhausted => "Every attempt that the configuration allows has failed.",
            Self::NotInTime => "It had no success within `fallback_after`.",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_one_sentence_of_its_own() {
        let mut known = HashSet::new();
        for reason in Reason::ALL {
            let text = reason.sentence();
            let first = text.chars().next().expect("a text");
            assert!(first.is_uppercase() && text.ends_with('.'), "{reason}: {text}");
            assert!(!text.contains(". ") && text.len() <= 100, "{reason}: {text}");
            assert!(known.insert(text), "{reason} says what another says: {text}");
        }
    }
}
