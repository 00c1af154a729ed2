//! Firebase Cloud Messaging, HTTP v1: push to an app's registration token or to a topic.
//!
//! `POST /v1/projects/{project}/messages:send`, JSON with a bearer token that [`Tokens`] gets for
//! the service account. 200 with a `name` means accepted. Errors are Google's `{error: {code,
//! status, details[]}}`; the `errorCode` of the detail of type `FcmError` decides.
//!
//! There is no idempotency key, no list call and no receipt. No collapse key is set: it would let
//! one alert replace another that nobody has seen.
//!
//! The app gets `notification {title, body}` and `data` with the strings `message_id`, `severity`,
//! and for an alert `alert_id`, `rule`, `key`, `state`. Payloads are limited to 4096 bytes (2048
//! to a topic); a longer text is cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::fcm_token::{ServiceAccount, Tokens};
use super::http::{self, Answer, Deadline, Http, Lost};
use super::rate::Rate;
use super::registry::{Kind, Parts, Reach, fields};
use super::scrub::Scrub;
use super::table::{Class, Verdict, by_status, find, unknown_code};
use super::{Provider, SendOutcome, wrong_address};
use crate::clock::Clock;
use crate::model::{Address, Channel, Message, Reason, Severity};
use crate::secret::{Secret, SecretSource};

pub(super) const KIND: Kind = Kind {
    name: "fcm",
    channels: &[Channel::Push],
    reach: Reach::Service("https://fcm.googleapis.com"),
    // A project's default quota: 600,000 a minute.
    rate: Some(Rate::per_second(10_000)),
    concurrency: 4,
    keys: fields::<Config>,
    build,
};

/// The keys of a `[[provider]]` of kind `fcm`, beside the common ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    /// The service account's key: the JSON text that the Firebase console gives, best as
    /// `{ file = "service-account.json" }`. Required.
    pub service_account: Option<SecretSource>,
    /// The Firebase project; default: the service account's.
    pub project_id: Option<String>,
    /// Where access tokens are asked for; default: the service account's `token_uri`.
    pub token_url: Option<String>,
}

/// The codes of `FcmError`. A bad APNs key concerns a recipient, not the lane: Android devices
/// are still reached.
const CODES: &[(&str, Reason, Class)] = &[
    ("UNREGISTERED", Reason::RecipientGone, Class::Recipient),
    ("SENDER_ID_MISMATCH", Reason::BadRecipient, Class::Recipient),
    ("INVALID_ARGUMENT", Reason::BadRecipient, Class::Recipient),
    ("QUOTA_EXCEEDED", Reason::Throttled, Class::RetryLane),
    ("UNAVAILABLE", Reason::ProviderUnavailable, Class::RetryLane),
    ("INTERNAL", Reason::ProviderUnavailable, Class::RetryLane),
    ("THIRD_PARTY_AUTH_ERROR", Reason::ProviderRefused, Class::Recipient),
];

/// Whether this process has said that Apple's key is refused: once is enough.
static APNS_KEY_SAID: AtomicBool = AtomicBool::new(false);

/// What Google asks for where it sends no Retry-After.
const QUOTA_PAUSE: Duration = Duration::from_secs(60);
const UNAVAILABLE_PAUSE: Duration = Duration::from_secs(10);
const PAYLOAD_BYTES_MAX: usize = 4096;
const TOPIC_PAYLOAD_BYTES_MAX: usize = 2048;
/// FCM keeps a message for four weeks at most.
const TTL_SECS_MAX: u64 = 28 * 86_400;
const TOPIC_PREFIX: &str = "topic:";

struct Fcm {
    http: Http,
    clock: Clock,
    send: Url,
    tokens: Tokens,
}

fn build(parts: &mut Parts<'_>) -> Option<Arc<dyn Provider>> {
    let config: Config = parts.own();
    let text = parts.faults.need_secret("service_account", config.service_account);
    let account = text.and_then(|text| match ServiceAccount::parse(text.expose()) {
        Ok(account) => Some(account),
        Err(what) => {
            parts.faults.at("service_account", what);
            None
        }
    });
    let token_url = match (&config.token_url, &account) {
        (Some(text), _) => parts.faults.url("token_url", text),
        (None, Some(account)) => parts.faults.url("service_account", &account.token_uri),
        (None, None) => None,
    };
    if let Some(url) = &token_url {
        parts.refuse_plain("token_url", url);
    }
    let (base_url, http) = (parts.base_url()?, parts.http(false)?);
    let account = account?;
    let project = config.project_id.unwrap_or_else(|| account.project_id.clone());
    if project.is_empty() {
        parts.faults.at("project_id", "is missing here and in the service account");
    }
    Some(Arc::new(Fcm {
        send: http::below(&base_url, &["v1", "projects", &project, "messages:send"]),
        tokens: Tokens::new(account, token_url?, parts.shared.clock.clone()),
        clock: parts.shared.clock.clone(),
        http,
    }))
}

impl Provider for Fcm {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome> {
        Box::pin(self.post(message))
    }
}

impl Fcm {
    async fn post(&self, message: &Message) -> SendOutcome {
        let Address::Token(_) = &message.target.address else {
            return wrong_address("FCM sends to registration tokens and topics", message);
        };
        let by = self.http.deadline();
        let body = self.body(message);
        let token = match self.tokens.get(&self.http, by, None).await {
            Ok(token) => token,
            Err(outcome) => return outcome,
        };
        let scrub = Scrub::new([token.clone()]).with_address(message);
        let first = self.call(&body, &token, by, &scrub).await;
        match first {
            // A plain 401: the token was revoked before its time. One new one, and no more.
            Ok(answer) if answer.status == StatusCode::UNAUTHORIZED && code(&answer).is_none() => {}
            _ => return outcome(first, &scrub),
        }
        match self.tokens.get(&self.http, by, Some(&token)).await {
            Ok(token) => {
                let scrub = scrub.with([token.clone()]);
                outcome(self.call(&body, &token, by, &scrub).await, &scrub)
            }
            Err(outcome) => outcome,
        }
    }

    async fn call(
        &self,
        body: &Value,
        token: &Secret,
        by: Deadline,
        scrub: &Scrub,
    ) -> Result<Answer, Lost> {
        let request = self.http.post(self.send.clone()).bearer_auth(token.expose()).json(body);
        http::call(request, by, http::BODY_BYTES_MAX, self.clock.now(), scrub).await
    }

    fn body(&self, message: &Message) -> Value {
        let left = message.expires_at.since(self.clock.now()).as_secs().min(TTL_SECS_MAX);
        let urgent = message.severity >= Severity::Warning;
        let address = message.target.address.expose();
        let (kind, address, bytes_max) = match address.strip_prefix(TOPIC_PREFIX) {
            Some(topic) => ("topic", topic, TOPIC_PAYLOAD_BYTES_MAX),
            None => ("token", address, PAYLOAD_BYTES_MAX),
        };
        let (notification, data) = payload(message, bytes_max);
        let mut aps = Map::new();
        if urgent {
            aps.insert("sound".to_owned(), json!("default"));
        }
        let mut body = json!({
            "notification": notification,
            "data": data,
            "android": {
                "priority": if urgent { "HIGH" } else { "NORMAL" },
                "ttl": format!("{left}s"),
            },
            "apns": {
                "headers": {
                    "apns-priority": if urgent { "10" } else { "5" },
                    "apns-expiration": message.expires_at.wall().as_secs().to_string(),
                },
                "payload": { "aps": aps },
            },
        });
        body[kind] = json!(address);
        json!({ "message": body })
    }
}

/// Notification and data in at most `bytes_max` bytes of JSON.
fn payload(message: &Message, bytes_max: usize) -> (Value, Value) {
    let mut data = Map::new();
    let mut put = |name: &str, value: String| data.insert(name.to_owned(), Value::String(value));
    put("message_id", message.id.to_string());
    put("severity", message.severity.to_string());
    if let Some(alert) = &message.alert {
        put("alert_id", alert.id.to_string());
        put("rule", alert.rule.to_string());
        put("key", alert.key.to_string());
        put("state", alert.state.to_string());
    }
    let data = Value::Object(data);
    let notification = |text: &str| match &message.content.title {
        Some(title) => json!({ "title": title, "body": text }),
        None => json!({ "body": text }),
    };
    let fits =
        |text: &str| notification(text).to_string().len() + data.to_string().len() <= bytes_max;
    let text = &*message.content.text;
    if fits(text) {
        return (notification(text), data);
    }
    // The size in JSON grows with the text, but not evenly: escapes take more.
    let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    let cut = |end: &usize| format!("{}…", text.get(..*end).unwrap_or_default());
    let fitting = ends.partition_point(|end| fits(&cut(end)));
    let longest = fitting.checked_sub(1).and_then(|last| ends.get(last));
    (notification(&longest.map(cut).unwrap_or_default()), data)
}

#[derive(Deserialize)]
struct Accepted {
    name: String,
}

#[derive(Deserialize)]
struct Failure {
    error: Status,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    details: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(rename = "@type", default)]
    kind: String,
    #[serde(rename = "errorCode")]
    error_code: Option<String>,
    #[serde(rename = "fieldViolations", default)]
    violations: Vec<Violation>,
}

#[derive(Deserialize)]
struct Violation {
    #[serde(default)]
    field: String,
}

impl Status {
    fn code(&self) -> Option<&str> {
        let detail = self.details.iter().find(|detail| detail.kind.ends_with("FcmError"))?;
        detail.error_code.as_deref()
    }

    /// Whether the request is at fault and not the address in it.
    fn blames_content(&self) -> bool {
        self.message.to_ascii_lowercase().contains("too big")
            || self
                .details
                .iter()
                .flat_map(|detail| &detail.violations)
                .any(|one| !matches!(one.field.as_str(), "message.token" | "message.topic"))
    }
}

fn code(answer: &Answer) -> Option<String> {
    answer.json::<Failure>()?.error.code().map(str::to_owned)
}

fn outcome(answer: Result<Answer, Lost>, scrub: &Scrub) -> SendOutcome {
    let answer = match answer {
        Ok(answer) => answer,
        Err(lost) => return lost.outcome(),
    };
    if answer.status.is_success() {
        let Some(accepted) = answer.json::<Accepted>() else {
            return answer.not_read("FCM", scrub);
        };
        return SendOutcome::Accepted {
            provider_ref: Some(accepted.name),
            segments: None,
            delivered: false,
            note: None,
        };
    }
    let Some(Failure { error }) = answer.json() else {
        return by_status(answer.status).outcome(answer.retry_after, answer.words(scrub));
    };
    let code = error.code();
    let verdict = match code {
        Some("INVALID_ARGUMENT") if error.blames_content() => {
            Verdict(Reason::ContentRefused, Class::Content)
        }
        // Without a wish to wait it is the quota of one device or topic.
        Some("QUOTA_EXCEEDED") if answer.retry_after.is_none() => {
            Verdict(Reason::Throttled, Class::RetryRecipient)
        }
        Some(code) => find(CODES, &code).unwrap_or_else(|| unknown_code(answer.status)),
        None if error.blames_content() => Verdict(Reason::ContentRefused, Class::Content),
        // Google's own words: the API is off, the project unknown, the token refused twice.
        None => match (answer.status.as_u16(), unknown_code(answer.status)) {
            (401 | 403 | 404, Verdict(reason, Class::Account)) => Verdict(reason, Class::Lane),
            (_, other) => other,
        },
    };
    if code == Some("THIRD_PARTY_AUTH_ERROR") && !APNS_KEY_SAID.swap(true, Ordering::Relaxed) {
        tracing::error!(
            "Firebase cannot log in to Apple or to a browser's push service: renew the APNs key or \
             the web push certificate in the Firebase console; devices of that kind get nothing"
        );
    }
    let after = answer.retry_after.or(match code {
        Some("QUOTA_EXCEEDED") => Some(QUOTA_PAUSE),
        Some("UNAVAILABLE") => Some(UNAVAILABLE_PAUSE),
        _ => None,
    });
    let name = code.map_or_else(|| format!("HTTP {}", answer.status.as_u16()), str::to_owned);
    verdict.outcome(after, format!("FCM {name}: {}", scrub.clean(&error.message)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::fixture;

    #[test]
    fn a_long_text_is_cut_to_the_payload_limit() {
        for text in ["x".repeat(9000), "ü\"\n".repeat(3000), "🔥".repeat(2000), String::new()] {
            let message = fixture::message(Address::Token("t".into()), Channel::Push, &text);
            for limit in [PAYLOAD_BYTES_MAX, TOPIC_PAYLOAD_BYTES_MAX] {
                let (notification, data) = payload(&message, limit);
                let size = notification.to_string().len() + data.to_string().len();
                assert!(size <= limit, "{size}");
                assert!(text.is_empty() || size > limit - 20, "{size}: not more than needed");
            }
        }
    }
}
