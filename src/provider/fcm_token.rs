//! Access tokens for FCM: a service account signs an assertion (RFC 7523), Google's token endpoint
//! turns it into a bearer token for an hour.
//!
//! **Invariants:** at most one token request is on its way at a time, however many messages wait
//! for it; a failed one is the answer to all who waited; and since no message has left, its
//! failure is never `Unknown`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::http::{self, Answer, Deadline, Http, Lost};
use super::scrub::Scrub;
use super::table::{Class, Verdict, by_status, unknown_code};
use super::{RetryScope, SendOutcome};
use crate::clock::{Clock, Timestamp};
use crate::model::Reason;
use crate::secret::Secret;

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Google takes assertions of at most an hour.
const ASSERTION_SECS: i64 = 3600;
/// A token is replaced so long before it ends: clocks differ and requests take time.
const EARLY: Duration = Duration::from_secs(300);

/// What the key file of a service account says.
pub(super) struct ServiceAccount {
    pub(super) project_id: String,
    pub(super) token_uri: String,
    email: String,
    header: Header,
    key: EncodingKey,
}

#[derive(Deserialize)]
struct KeyFile {
    #[serde(default)]
    project_id: String,
    private_key_id: String,
    private_key: String,
    client_email: String,
    #[serde(default = "google")]
    token_uri: String,
}

fn google() -> String {
    "https://oauth2.googleapis.com/token".to_owned()
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'a str,
    aud: &'a str,
    iat: i64,
    exp: i64,
}

impl ServiceAccount {
    /// Reads the JSON text and tries its key.
    ///
    /// # Errors
    /// What is wrong with it, for an operator; never a part of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let advice =
            "download a new key in the Firebase console (project settings, service accounts)";
        let file: KeyFile = serde_json::from_str(text).map_err(|error| {
            // serde_json quotes the text in some messages, so only the place is told.
            format!(
                "not a service account's JSON key (line {}, column {}); {advice}, and name it as \
                 {{ file = \"...\" }}",
                error.line(),
                error.column()
            )
        })?;
        let bad_key = |_| format!("its private_key is not an RSA key in PEM form; {advice}");
        let key = EncodingKey::from_rsa_pem(file.private_key.as_bytes()).map_err(bad_key)?;
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(file.private_key_id);
        let account = Self {
            project_id: file.project_id,
            token_uri: file.token_uri,
            email: file.client_email,
            header,
            key,
        };
        account.assertion(Timestamp::default()).map_err(bad_key)?;
        Ok(account)
    }

    /// The audience stays the account's own token endpoint, wherever the request is sent: a
    /// gateway on the way changes the address, not who must believe the assertion.
    fn assertion(&self, now: Timestamp) -> jsonwebtoken::errors::Result<String> {
        let claims = Claims {
            iss: &self.email,
            scope: SCOPE,
            aud: &self.token_uri,
            iat: now.wall().as_secs(),
            exp: now.wall().as_secs() + ASSERTION_SECS,
        };
        jsonwebtoken::encode(&self.header, &claims, &self.key)
    }
}

/// Gets tokens and keeps the latest.
pub(super) struct Tokens {
    account: ServiceAccount,
    url: Url,
    clock: Clock,
    state: Mutex<State>,
    /// Counts the requests that have ended.
    round: AtomicU64,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// What came of the latest request, if it failed.
    failure: Option<SendOutcome>,
}

struct Token {
    value: Secret,
    renew_at: Timestamp,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

#[derive(Deserialize)]
struct Denied {
    error: String,
    #[serde(default)]
    error_description: String,
}

impl Tokens {
    pub(super) fn new(account: ServiceAccount, url: Url, clock: Clock) -> Self {
        Self { account, url, clock, state: Mutex::default(), round: AtomicU64::new(0) }
    }

    /// A token that is good for now, and is not `refused`.
    ///
    /// # Errors
    /// What becomes of the message that needs it.
    pub(super) async fn get(
        &self,
        http: &Http,
        by: Deadline,
        refused: Option<&Secret>,
    ) -> Result<Secret, SendOutcome> {
        let seen = self.round.load(Ordering::SeqCst);
        let Ok(mut state) = tokio::time::timeout_at(by.instant(), self.state.lock()).await else {
            return Err(later(Reason::ProviderUnavailable, "no access token in time".to_owned()));
        };
        if let Some(token) = &state.token
            && token.renew_at > self.clock.now()
            && refused != Some(&token.value)
        {
            return Ok(token.value.clone());
        }
        // Somebody asked while this one waited: the answer is the same.
        if self.round.load(Ordering::SeqCst) != seen
            && let Some(failure) = &state.failure
        {
            return Err(failure.clone());
        }
        let asked = self.ask(http, by).await;
        self.round.fetch_add(1, Ordering::SeqCst);
        match asked {
            Ok(token) => {
                let value = token.value.clone();
                *state = State { token: Some(token), failure: None };
                Ok(value)
            }
            Err(failure) => {
                *state = State { token: None, failure: Some(failure.clone()) };
                Err(failure)
            }
        }
    }

    async fn ask(&self, http: &Http, by: Deadline) -> Result<Token, SendOutcome> {
        let now = self.clock.now();
        let assertion = self.account.assertion(now).map_err(|_| {
            let verdict = Verdict(Reason::BadCredentials, Class::Lane);
            verdict.outcome(None, "the service account's key cannot sign".to_owned())
        })?;
        let request =
            http.post(self.url.clone()).form(&[("grant_type", GRANT), ("assertion", &assertion)]);
        let scrub = Scrub::new([Secret::new(assertion)]);
        match http::call(request, by, http::BODY_BYTES_MAX, now, &scrub).await {
            Ok(answer) => granted(&answer, now, &scrub),
            Err(Lost::Ours(detail)) => Err(http::ours(format!("no access token: {detail}"))),
            Err(lost) => {
                let detail = format!("no access token: {}", lost.detail());
                Err(later(Reason::ConnectFailed, detail))
            }
        }
    }
}

fn granted(answer: &Answer, now: Timestamp, scrub: &Scrub) -> Result<Token, SendOutcome> {
    if answer.status.is_success() {
        let Some(granted) = answer.json::<Granted>() else {
            return Err(later(
                Reason::BadAnswer,
                "the token endpoint's answer cannot be read; check token_url".to_owned(),
            ));
        };
        let good_for = Duration::from_secs(granted.expires_in).saturating_sub(EARLY);
        return Ok(Token {
            value: Secret::new(granted.access_token),
            renew_at: now.plus(good_for),
        });
    }
    let Some(denied) = answer.json::<Denied>() else {
        // Somebody else's page: no message has been asked for yet, so nobody is refused.
        let words = format!("no access token: {}", answer.words(scrub));
        return Err(match by_status(answer.status) {
            Verdict(_, Class::Account) => later(Reason::BadAnswer, words),
            verdict => verdict.outcome(answer.retry_after, words),
        });
    };
    let mut words = scrub.clean(&format!("{}: {}", denied.error, denied.error_description));
    if denied.error_description.contains("reasonable timeframe") {
        words.push_str("; the clock of this machine may be wrong");
    }
    let verdict = match unknown_code(answer.status) {
        // Here everything that is not a passing weakness is about the account.
        Verdict(_, Class::Account) => Verdict(Reason::BadCredentials, Class::Lane),
        passing => passing,
    };
    Err(verdict.outcome(answer.retry_after, format!("no access token: {words}")))
}

fn later(reason: Reason, detail: String) -> SendOutcome {
    SendOutcome::Retry { reason, after: None, scope: RetryScope::Provider, detail }
}
