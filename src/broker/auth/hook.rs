//! Asks a web service of the operator's who a client is.
//!
//! One POST of JSON for each login that is not in the cache. The service's "no" is the client's
//! fault; its silence, a 5xx, or an answer that makes no sense is not: then the client is told to
//! come again, and is never let in. Answers are kept under an HMAC of the question, so that no
//! password is.
//!
//! Invariant: nobody is let in by anything but a 200 whose JSON says `"allow": true`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::certificate::is_name;
use super::password::ProcessKey;
use super::{CLIENT_IDS_MAX, GROUPS_MAX};
use crate::secret::{Secret, SecretSource};
use crate::span::Span;

/// An answer is read this far, bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// `[auth.http]`: a web service that knows who clients are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to ask; empty: nowhere. `https`, or `http` on this machine. Default empty.
    pub url: String,
    /// Allows `http` to other machines: passwords then travel in the clear. Default false.
    pub allow_http: bool,
    /// A file with the CA of the service, PEM; empty: the system's. Default empty.
    pub ca: std::path::PathBuf,
    /// Sent as `Authorization: Bearer ...`, so that the service knows who asks.
    pub token: Option<SecretSource>,
    /// Time for one answer, waiting for a free connection included; default 3s, 100ms to 30s.
    pub timeout: Span,
    /// Most questions at a time; default 32, 1 to 1024.
    pub requests_max: usize,
    /// How long a "yes" is kept; default 60s, 0s: not at all.
    pub cache: Span,
    /// How long a "no" is kept; default 5s, 0s: not at all.
    pub cache_refused: Span,
    /// Most answers that are kept, some 500 bytes each; default 10000, 1 to 1000000.
    pub cache_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: String::new(),
            allow_http: false,
            ca: std::path::PathBuf::new(),
            token: None,
            timeout: Span::from_secs(3),
            requests_max: 32,
            cache: Span::from_secs(60),
            cache_refused: Span::from_secs(5),
            cache_max: 10_000,
        }
    }
}

/// What is asked. Never printed: the password is in it.
#[derive(Serialize)]
pub(super) struct Question<'a> {
    /// As the client asks for it; may be empty.
    pub(super) client_id: &'a str,
    pub(super) user: &'a str,
    pub(super) password: &'a str,
    /// The name in the certificate, if there was one.
    pub(super) identity: Option<&'a str>,
    /// The client's address, without port.
    pub(super) peer: &'a str,
    /// Which listener it came by.
    pub(super) listener: &'a str,
}

/// A "yes".
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Yes {
    allow: bool,
    pub(super) identity: Option<String>,
    pub(super) groups: Vec<String>,
    /// Which client ids it may use: exact, or with `*`; `None`: as `auth.client_ids` says.
    pub(super) client_ids: Option<Vec<String>>,
}

/// What is known of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes(Arc<Yes>),
    No,
}

/// No answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswered {
    #[error("no free connection in time; see auth.http.requests_max")]
    NoTurn,
    #[error("no answer: {0}")]
    Lost(String),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("its answer makes no sense: {0}")]
    Garbage(String),
}

/// Asks the service.
pub(super) struct Hook {
    client: reqwest::Client,
    url: Url,
    token: Option<Secret>,
    config: Config,
    permits: Semaphore,
    key: ProcessKey,
    kept: Mutex<HashMap<[u8; 32], (Instant, Answer)>>,
    failing: AtomicBool,
}

impl Hook {
    /// `None` where there is nobody to ask.
    ///
    /// # Errors
    /// Everything that is wrong, by key of the configuration.
    pub(super) fn load(config: &Config) -> Result<Option<Self>, Vec<String>> {
        let mut problems = config.problems();
        if config.url.is_empty() {
            return if problems.is_empty() { Ok(None) } else { Err(problems) };
        }
        let url = config.checked_url().map_err(|what| problems.push(what)).ok();
        let token = config.token.as_ref().map(SecretSource::resolve).transpose();
        let token = token
            .map_err(|error| problems.push(format!("auth.http.token: {error}")))
            .unwrap_or_default();
        let client = config.client().map_err(|what| problems.push(what)).ok();
        let key = ProcessKey::new().map_err(|what| problems.push(format!("auth.http: {what}")));
        match (url, client, key) {
            (Some(url), Some(client), Ok(key)) if problems.is_empty() => Ok(Some(Self {
                client,
                url,
                token,
                permits: Semaphore::new(config.requests_max),
                config: config.clone(),
                key,
                kept: Mutex::default(),
                failing: AtomicBool::new(false),
            })),
            _ => Err(problems),
        }
    }

    /// What the service says of a client, now or a short while ago.
    pub(super) async fn ask(&self, question: &Question<'_>) -> Result<Answer, Unanswered> {
        let tag = self.tag(question);
        if let Some(answer) = self.kept(&tag) {
            return Ok(answer);
        }
        let answer = tokio::time::timeout(self.config.timeout.get(), async {
            let permit = self.permits.acquire().await;
            let answer = self.ask_now(question).await;
            drop(permit);
            answer
        });
        let answer = answer.await.unwrap_or_else(|_| {
            Err(match self.permits.available_permits() {
                0 => Unanswered::NoTurn,
                _ => Unanswered::Lost("not within auth.http.timeout".to_owned()),
            })
        });
        // Said once when it begins and once when it is over; each client that it concerns is
        // counted.
        let was_failing = self.failing.swap(answer.is_err(), Ordering::Relaxed);
        match &answer {
            Ok(answer) => {
                if was_failing {
                    tracing::info!("the service of auth.http answers again");
                }
                self.keep(tag, answer);
            }
            Err(error) if !was_failing => tracing::error!(
                %error,
                "the service of auth.http gives no answer: users that are not in the store wait"
            ),
            Err(error) => tracing::debug!(%error, "no answer of auth.http"),
        }
        answer
    }

    fn tag(&self, question: &Question<'_>) -> [u8; 32] {
        self.key.tag(&[
            question.client_id.as_bytes(),
            question.user.as_bytes(),
            question.password.as_bytes(),
            question.identity.map_or(&[][..], str::as_bytes),
            &[u8::from(question.identity.is_some())],
            question.peer.as_bytes(),
            question.listener.as_bytes(),
        ])
    }

    /// Whether the service said "yes" to this a short while ago.
    pub(super) fn is_remembered(&self, question: &Question<'_>) -> bool {
        matches!(self.kept(&self.tag(question)), Some(Answer::Yes(_)))
    }

    async fn ask_now(&self, question: &Question<'_>) -> Result<Answer, Unanswered> {
        let lost = |error: reqwest::Error| {
            // The URL may have a token in its query.
            Unanswered::Lost(crate::telemetry::chain(&error.without_url()))
        };
        let mut request = self.client.post(self.url.clone()).json(question);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        match status {
            StatusCode::OK => {}
            // The service is too busy to say anything of the client.
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                return Err(Unanswered::Status(status));
            }
            status if status.is_client_error() => return Ok(Answer::No),
            status => return Err(Unanswered::Status(status)),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(lost)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                let what = format!("longer than {ANSWER_BYTES_MAX} bytes");
                return Err(Unanswered::Garbage(what));
            }
        }
        read(&body).map_err(Unanswered::Garbage)
    }

    fn kept(&self, tag: &[u8; 32]) -> Option<Answer> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(tag).filter(|(until, _)| Instant::now() < *until).map(|(_, answer)| answer.clone())
    }

    fn keep(&self, tag: [u8; 32], answer: &Answer) {
        let keep_for: Duration = match answer {
            Answer::Yes(_) => self.config.cache.get(),
            Answer::No => self.config.cache_refused.get(),
        };
        if keep_for.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.config.cache_max {
            kept.retain(|_, (until, _)| now < *until);
        }
        // Still full: any one goes, and costs its client one more question.
        if kept.len() >= self.config.cache_max
            && let Some(any) = kept.keys().next().copied()
        {
            kept.remove(&any);
        }
        kept.insert(tag, (now + keep_for, answer.clone()));
    }
}

/// The JSON of a 200.
fn read(body: &[u8]) -> Result<Answer, String> {
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|_| "no JSON".to_owned())?;
    if !value.get("allow").is_some_and(serde_json::Value::is_boolean) {
        return Err("no `allow` that is true or false".to_owned());
    }
    let yes: Yes = serde_json::from_value(value).map_err(|error| error.to_string())?;
    if !yes.allow {
        return Ok(Answer::No);
    }
    let client_ids = yes.client_ids.as_deref().unwrap_or_default();
    if yes.groups.len() > GROUPS_MAX || client_ids.len() > CLIENT_IDS_MAX {
        return Err("too many groups or client ids".to_owned());
    }
    let names = yes.identity.iter().chain(&yes.groups).chain(client_ids);
    for name in names {
        if !is_name(name) {
            return Err("an identity, group or client id that is no name".to_owned());
        }
    }
    Ok(Answer::Yes(Arc::new(yes)))
}

impl Config {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut range = |key: &str, good: bool, expected: &str| {
            if !good {
                problems.push(format!("auth.http.{key}: {expected}"));
            }
        };
        let timeout = Span::from_millis(100)..=Span::from_secs(30);
        range("timeout", timeout.contains(&self.timeout), "100ms to 30s");
        range("requests_max", (1..=1024).contains(&self.requests_max), "1 to 1024");
        range("cache_max", (1..=1_000_000).contains(&self.cache_max), "1 to 1000000");
        problems
    }

    fn checked_url(&self) -> Result<Url, String> {
        let wrong = |what: &str| format!("auth.http.url: {what}");
        let url: Url = self.url.parse().map_err(|_| {
            wrong("not a URL; write https://auth.example.org/mqtt or http://127.0.0.1:9000/mqtt")
        })?;
        let host = url.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        match url.scheme() {
            "https" => Ok(url),
            "http" if is_here || self.allow_http => Ok(url),
            "http" => Err(wrong(
                "passwords would travel in the clear; use https, or set auth.http.allow_http = true",
            )),
            _ => Err(wrong("https or http")),
        }
    }

    fn client(&self) -> Result<reqwest::Client, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("watchbell/", env!("CARGO_PKG_VERSION")))
            .timeout(self.timeout.get())
            // A redirect would take the password elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .pool_max_idle_per_host(self.requests_max)
            .pool_idle_timeout(Duration::from_secs(20))
            .tcp_nodelay(true);
        if !self.ca.as_os_str().is_empty() {
            let wrong = |what: String| format!("auth.http.ca: {}: {what}", self.ca.display());
            let pem = std::fs::read(&self.ca).map_err(|error| wrong(error.to_string()))?;
            let found = reqwest::Certificate::from_pem_bundle(&pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| wrong("no certificate in PEM form".to_owned()))?;
            builder = builder.tls_certs_only(found);
        }
        builder.build().map_err(|error| {
            let what = crate::telemetry::chain(&error);
            format!("auth.http: the HTTPS client cannot start: {what}; name a file in auth.http.ca")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_lets_somebody_in() {
        let yes = |body: &str| matches!(read(body.as_bytes()), Ok(Answer::Yes(_)));
        assert!(yes(r#"{"allow": true}"#));
        assert!(yes(r#"{"allow": true, "identity": "p", "groups": ["a"], "more": 1}"#));
        assert_eq!(read(br#"{"allow": false, "identity": "p"}"#), Ok(Answer::No));
        let many = format!(r#"{{"allow": true, "groups": [{}]}}"#, ["\"g\""; 65].join(","));
        for garbage in [
            "",
            "true",
            "[]",
            "{}",
            r#"{"allow": "true"}"#,
            r#"{"allow": 1}"#,
            r#"{"allow": null}"#,
            r#"{"allow": true, "groups": "a"}"#,
            r#"{"allow": true, "identity": ""}"#,
            r#"{"allow": true, "identity": "a\u0000"}"#,
            r#"{"allow": true, "client_ids": [""]}"#,
            &many,
        ] {
            assert!(read(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }

    #[test]
    fn a_password_does_not_travel_in_the_clear() {
        let problem = |url: &str| {
            let config = Config { url: url.to_owned(), ..Config::default() };
            config.checked_url().err().unwrap_or_default()
        };
        for good in [
            "https://auth.example.org/x",
            "http://127.0.0.1:9000/",
            "http://[::1]:9000/",
            "http://localhost/",
        ] {
            assert_eq!(problem(good), "", "{good}");
        }
        for (bad, part) in [
            ("http://auth.example.org/", "allow_http = true"),
            ("http://localhost.example.org/", "allow_http = true"),
            ("ftp://localhost/", "https or http"),
            ("auth.example.org", "not a URL"),
        ] {
            assert!(problem(bad).contains(part), "{bad}: {}", problem(bad));
        }
    }
}
