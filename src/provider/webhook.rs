//! Webhooks, signed by the Standard Webhooks specification 1.0: a POST to the message's own URL.
//!
//! ```text
//! webhook-id:        the message's id, the same in every try: what the receiver drops repeats by
//! webhook-timestamp: seconds since 1970, of this try
//! webhook-signature: v1,<base64 of HMAC-SHA256(secret, id "." timestamp "." body)>, one a secret
//!
//! {"type": "watchbell.alert.firing" | "watchbell.alert.cleared" | "watchbell.message",
//!  "timestamp": "2026-11-23T10:00:00.000Z",      when the message was made
//!  "data": {"message_id": "...", "severity": "critical", "title": "...", "text": "...",
//!           "contact": "...", "alert": {"id", "rule", "key", "state", "topic"}}}
//! ```
//!
//! `title`, `contact` and `alert` are left out where there is none. The body is the same in every
//! try. Any 2xx means that the receiver has it; 410 that it wants no more; everything else is
//! tried again, as the specification asks.
//!
//! Each message may go to another machine, so nothing that one endpoint does concerns the lane: what
//! fails is the host ([`RetryScope::Endpoint`]) or the message. For the same reason an answer that was never read is no
//! `Unknown` here: the id makes a repeat harmless, and a slow endpoint must not hold up others.
//!
//! **Invariant:** URLs come from outside the configuration. Unless it says otherwise, a request
//! goes by https to an address of the public internet, or not at all, and redirects are not
//! followed.

use std::sync::Arc;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::http::{self, Answer, Http, Lost};
use super::public::is_public;
use super::registry::{Kind, Parts, Reach, fields};
use super::scrub::Scrub;
use super::table::by_status;
use super::{Provider, RetryScope, Scope, SendOutcome, wrong_address};
use crate::clock::Clock;
use crate::model::{Address, AlertRef, AlertState, Channel, Message, MessageId, Reason, Severity};
use crate::secret::{Secret, SecretSource};

pub(super) const KIND: Kind = Kind {
    name: "webhook",
    channels: &[Channel::Webhook],
    reach: Reach::Anywhere,
    rate: None,
    // Each host has its own few of them.
    concurrency: 32,
    keys: fields::<Config>,
    build,
};

/// The keys of a `[[provider]]` of kind `webhook`, beside the common ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    /// What messages are signed with: `whsec_` and the base64 of 24 to 64 bytes. Required.
    pub secret: Option<SecretSource>,
    /// A second secret that signs too, while receivers change from one to the other.
    pub secret_old: Option<SecretSource>,
    /// Allows addresses of this machine and of private networks; default false. Needed with
    /// `proxy`, because then it is the proxy that resolves names.
    pub allow_private: bool,
}

struct Webhook {
    http: Http,
    clock: Clock,
    keys: Vec<hmac::Key>,
    allow_http: bool,
    allow_private: bool,
    scrub: Scrub,
}

fn build(parts: &mut Parts<'_>) -> Option<Arc<dyn Provider>> {
    let config: Config = parts.own();
    let faults = &mut parts.faults;
    let secret = faults.need_secret("secret", config.secret);
    let secret_old = faults.secret("secret_old", config.secret_old);
    let mut keys = Vec::new();
    for (name, secret) in [("secret", &secret), ("secret_old", &secret_old)] {
        let Some(secret) = secret else { continue };
        match signing_key(secret) {
            Some(key) => keys.push(key),
            None => faults.at(
                name,
                "not a signing secret; it is whsec_ and the base64 of 24 to 64 random bytes: \
                 echo whsec_$(openssl rand -base64 32)",
            ),
        }
    }
    if parts.has_proxy() && !config.allow_private {
        parts.faults.at(
            "proxy",
            "behind a proxy nobody here can tell private addresses; set allow_private = true if \
             the proxy can",
        );
    }
    let http = parts.http(!config.allow_private)?;
    Some(Arc::new(Webhook {
        http,
        clock: parts.shared.clock.clone(),
        keys,
        allow_http: parts.allow_http,
        allow_private: config.allow_private,
        scrub: Scrub::new([secret, secret_old].into_iter().flatten()),
    }))
}

fn signing_key(secret: &Secret) -> Option<hmac::Key> {
    let bytes = STANDARD.decode(secret.expose().strip_prefix("whsec_")?).ok()?;
    (24..=64).contains(&bytes.len()).then(|| hmac::Key::new(hmac::HMAC_SHA256, &bytes))
}

/// The value of `webhook-signature`.
fn signatures(keys: &[hmac::Key], id: &str, timestamp: i64, body: &[u8]) -> String {
    let sign = |key: &hmac::Key| {
        let mut context = hmac::Context::with_key(key);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    };
    keys.iter().map(sign).collect::<Vec<_>>().join(" ")
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    timestamp: String,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    message_id: MessageId,
    severity: Severity,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<&'a AlertRef>,
}

fn body(message: &Message) -> Vec<u8> {
    let body = Body {
        kind: match message.alert.as_ref().map(|alert| alert.state) {
            Some(AlertState::Firing) => "watchbell.alert.firing",
            Some(AlertState::Cleared) => "watchbell.alert.cleared",
            None => "watchbell.message",
        },
        timestamp: message.created_at.to_string(),
        data: Data {
            message_id: message.id,
            severity: message.severity,
            title: message.content.title.as_deref(),
            text: &message.content.text,
            contact: message.contact.as_deref(),
            alert: message.alert.as_ref(),
        },
    };
    serde_json::to_vec(&body).expect("text and ids are always JSON")
}

impl Provider for Webhook {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome> {
        Box::pin(self.post(message))
    }

    fn objection(&self, address: &Address) -> Option<String> {
        let Address::Url(url) = address else { return None };
        self.check(url).err().map(str::to_owned)
    }
}

impl Webhook {
    async fn post(&self, message: &Message) -> SendOutcome {
        let Address::Url(url) = &message.target.address else {
            return wrong_address("a webhook goes to a URL", message);
        };
        let url = match self.check(url) {
            Ok(url) => url,
            Err(what) => return refused(Reason::BadRecipient, what.to_owned()),
        };
        let scrub = self.scrub_for(&url, message);
        let (now, body) = (self.clock.now(), body(message));
        let id = message.id.to_string();
        let signature = signatures(&self.keys, &id, now.wall().as_secs(), &body);
        let request = self
            .http
            .post(url)
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", now.wall().as_secs())
            .header("webhook-signature", signature)
            .body(body);
        let by = self.http.deadline();
        match http::call(request, by, http::BODY_BYTES_MAX, now, &scrub).await {
            Ok(answer) => outcome(&answer, &scrub),
            Err(Lost::Forbidden(what)) => refused(Reason::BadRecipient, what),
            Err(Lost::Ours(detail)) => http::ours(detail),
            Err(Lost::NotSent(detail)) => again(Reason::ConnectFailed, detail),
            Err(Lost::NoAnswer(detail)) => again(Reason::NoAnswer, detail),
        }
    }

    /// Literal addresses are checked here; names where they are resolved.
    fn check(&self, text: &str) -> Result<Url, &'static str> {
        let url = Url::parse(text).map_err(|_| "the address is not a URL")?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            "http" => return Err("the address is plain http; `allow_http = true` would allow it"),
            _ => return Err("the address is not an https URL"),
        }
        let host = url.host_str().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse();
        match literal {
            Ok(address) if !self.allow_private && !is_public(address) => {
                Err("the address is not a public one; `allow_private = true` would allow it")
            }
            _ => Ok(url),
        }
    }

    /// Paths, queries and credentials of a URL are as good as a password.
    fn scrub_for(&self, url: &Url, message: &Message) -> Scrub {
        let parts =
            url.path_segments().into_iter().flatten().chain(url.query()).chain(url.password());
        self.scrub.with_address(message).with(parts.map(Secret::new))
    }
}

fn outcome(answer: &Answer, scrub: &Scrub) -> SendOutcome {
    let retry = |reason, scope| SendOutcome::Retry {
        reason,
        after: answer.retry_after,
        scope,
        detail: answer.words(scrub),
    };
    match answer.status.as_u16() {
        200..=299 => SendOutcome::Accepted {
            provider_ref: None,
            segments: None,
            delivered: true,
            note: None,
        },
        // The proxy on the way to all of them.
        407 => by_status(answer.status).outcome(None, answer.words(scrub)),
        410 => refused(Reason::RecipientGone, answer.words(scrub)),
        429 => retry(Reason::Throttled, RetryScope::Endpoint),
        408 | 425 | 500..=599 => retry(Reason::ProviderUnavailable, RetryScope::Endpoint),
        // It depends on the path, and others of this host may be well.
        _ => retry(Reason::BadAnswer, RetryScope::Message),
    }
}

fn again(reason: Reason, detail: String) -> SendOutcome {
    SendOutcome::Retry { reason, after: None, scope: RetryScope::Endpoint, detail }
}

fn refused(reason: Reason, detail: String) -> SendOutcome {
    SendOutcome::Rejected { reason, scope: Scope::Recipient, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_specification_does() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let key = signing_key(&secret).expect("a secret");
        assert_eq!(
            signatures(
                &[key],
                "msg_p5jXN8AQM9LWM0D4loKWxJek",
                1_614_265_330,
                br#"{"test": 2432232314}"#
            ),
            "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }

    #[test]
    fn a_secret_has_its_form() {
        for text in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_MfKQ", "whsec_!!"] {
            assert!(signing_key(&Secret::new(text)).is_none(), "{text}");
        }
    }
}
