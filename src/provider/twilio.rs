//! Twilio's Messages API (2010-04-01): SMS.
//!
//! `POST /2010-04-01/Accounts/{sid}/Messages.json`, a form with HTTP Basic. 201 means taken, and
//! the answer's `sid` is its id; errors are `{code, message, more_info, status}`. There is no
//! idempotency key. After an answer that was never read, [`Provider::lookup`] asks the message
//! list, so that what has been taken is not sent twice.
//!
//! A 201 whose body is cut off or makes no sense leaves open whether it was taken: the message list is
//! asked. A 201 with a page, and any other 2xx, is not Twilio speaking.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::{RequestBuilder, StatusCode, Url};
use serde::Deserialize;

use super::http::{self, Answer, Deadline, Http};
use super::registry::{Kind, Parts, Reach, fields};
use super::scrub::Scrub;
use super::table::{Class, by_status, find, unknown_code};
use super::{Lookup, Provider, SendOutcome, wrong_address};
use crate::clock::wall::WallTime;
use crate::clock::{Clock, Timestamp};
use crate::model::{Address, Channel, E164, Message, Reason};
use crate::secret::{Secret, SecretSource};

pub(super) const KIND: Kind = Kind {
    name: "twilio",
    channels: &[Channel::Sms],
    reach: Reach::Service("https://api.twilio.com"),
    // Twilio queues up to ten hours for a sender, so nothing is refused for speed alone.
    rate: None,
    concurrency: 4,
    keys: fields::<Config>,
    build,
};

/// The keys of a `[[provider]]` of kind `twilio`, beside the common ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    /// The account, `AC...`. Required.
    pub account_sid: Option<String>,
    /// The account's auth token. This, or an API key.
    pub auth_token: Option<SecretSource>,
    /// An API key's id, `SK...`, in place of the auth token.
    pub api_key_sid: Option<String>,
    /// The API key's secret.
    pub api_key_secret: Option<SecretSource>,
    /// The sender: a number in E.164 form, a short code, or an alphanumeric name of up to 11
    /// characters. This, or a messaging service.
    pub from: Option<String>,
    /// The messaging service that chooses the sender, `MG...`.
    pub messaging_service_sid: Option<String>,
    /// Where Twilio reports what became of a message; default: nowhere. Its host must not hold an
    /// underscore.
    pub status_callback: Option<String>,
}

/// Twilio's error codes. The class is the narrowest that is true: what stops a lane at once would
/// refuse every message. So 21408 (the number's region is switched off) and 21608 (a trial account
/// may send to verified numbers only) concern the recipient, though an operator has to act.
/// Codes from 30000 on come in receipts more often than in answers.
const CODES: &[(u32, Reason, Class)] = &[
    (10001, Reason::ProviderRefused, Class::Lane), // account not active
    (14107, Reason::Throttled, Class::RetryLane),  // too many in a row
    (20003, Reason::BadCredentials, Class::Lane),
    (20404, Reason::ProviderRefused, Class::Lane), // no such account
    (20429, Reason::Throttled, Class::RetryLane),
    (21211, Reason::BadRecipient, Class::Recipient), // To is no number
    (21212, Reason::ProviderRefused, Class::Lane),   // From is no number
    (21266, Reason::BadRecipient, Class::Recipient), // To is From
    (21267, Reason::ProviderRefused, Class::Lane),   // From may not be alphanumeric here
    (21408, Reason::ProviderRefused, Class::Route),  // region switched off
    (21602, Reason::ContentRefused, Class::Content), // no body
    (21603, Reason::ProviderRefused, Class::Lane),   // no From
    (21606, Reason::ProviderRefused, Class::Account), // From cannot send to this country
    (21607, Reason::ProviderRefused, Class::Lane),   // From is not of this account
    (21608, Reason::ProviderRefused, Class::Route),  // trial account, number not verified
    (21609, Reason::ProviderRefused, Class::Lane),   // status_callback is no URL
    (21610, Reason::OptedOut, Class::Recipient),
    (21611, Reason::Throttled, Class::RetryLane), // the sender's queue is ten hours long
    (21612, Reason::BadRecipient, Class::Route),  // no route from this sender
    (21614, Reason::BadRecipient, Class::Recipient), // not a mobile number
    (21617, Reason::ContentRefused, Class::Content), // too long
    (21619, Reason::ContentRefused, Class::Content), // no body
    (21635, Reason::BadRecipient, Class::Recipient), // a landline
    (21659, Reason::ProviderRefused, Class::Lane), // From is not of this account
    (21660, Reason::ProviderRefused, Class::Lane), // From belongs to another account
    (21661, Reason::ProviderRefused, Class::Lane), // From cannot send SMS
    (21701, Reason::ProviderRefused, Class::Lane), // no such messaging service
    (21703, Reason::ProviderRefused, Class::Lane), // the messaging service has no sender
    (21704, Reason::ProviderRefused, Class::Lane), // the messaging service has no sender for this
    (21705, Reason::ProviderRefused, Class::Lane), // no such messaging service
    (30001, Reason::Throttled, Class::RetryLane), // queue overflow
    (30002, Reason::ProviderRefused, Class::Lane), // account suspended
    (30003, Reason::Unreachable, Class::RetryMessage), // handset off
    (30004, Reason::Unreachable, Class::Route),   // blocked by carrier or recipient
    (30005, Reason::BadRecipient, Class::Recipient), // unknown or inactive
    (30006, Reason::BadRecipient, Class::Recipient), // landline
    (30007, Reason::ContentRefused, Class::Content), // filtered
    (30008, Reason::ProviderUnavailable, Class::RetryMessage), // unknown
    (30017, Reason::ProviderUnavailable, Class::RetryMessage), // the carrier is congested
    (30019, Reason::ContentRefused, Class::Content), // media too big
    (30022, Reason::Throttled, Class::RetryLane), // faster than the sender may
    (30023, Reason::Throttled, Class::RetryLane), // the day's quota
    (30032, Reason::ProviderRefused, Class::Lane), // toll-free number not verified
    (30034, Reason::ProviderRefused, Class::Lane), // A2P 10DLC not registered
    (30035, Reason::ProviderRefused, Class::Account), // registration under way
    (30036, Reason::Unreachable, Class::RetryMessage), // validity period over
    (63016, Reason::WindowClosed, Class::Recipient),
    (63018, Reason::Throttled, Class::RetryLane),
    (63024, Reason::BadRecipient, Class::Recipient),
    (90010, Reason::ProviderRefused, Class::Lane), // account not active
];

/// The day's quota of a number is full: nothing leaves before tomorrow, and an hour is the longest
/// pause.
const DAY_QUOTA: u32 = 30_023;

/// Twilio takes a ValidityPeriod of 1 to 36000 seconds.
const VALIDITY_SECS_MAX: u64 = 36_000;
/// Twilio's clock and ours may differ by so much.
const CLOCK_SLACK_MS: i64 = 60_000;
/// One page of the message list.
const LIST_PAGE: &str = "100";
const LIST_PAGES_MAX: usize = 5;
const LIST_BYTES_MAX: usize = 1024 * 1024;
/// What a trial account puts before every text.
const TRIAL_PREFIX: &str = "Sent from your Twilio trial account - ";

struct Twilio {
    http: Http,
    clock: Clock,
    base_url: Url,
    messages: Url,
    user: String,
    password: Secret,
    sender: Sender,
    status_callback: Option<String>,
    scrub: Scrub,
}

enum Sender {
    From(String),
    Service(String),
}

fn build(parts: &mut Parts<'_>) -> Option<Arc<dyn Provider>> {
    let config: Config = parts.own();
    let faults = &mut parts.faults;
    let account = faults.need("account_sid", config.account_sid);
    if let Some(sid) = &account
        && !(sid.starts_with("AC") && sid.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    {
        faults.at("account_sid", "not an account; it starts with AC, see the Twilio console");
    }
    let login = match (config.auth_token, config.api_key_sid, config.api_key_secret) {
        (token, None, None) => (account.clone()).zip(faults.need_secret("auth_token", token)),
        (None, Some(sid), secret) => {
            faults.need_secret("api_key_secret", secret).map(|secret| (sid, secret))
        }
        (None, None, Some(_)) => {
            faults.at("api_key_secret", "has no api_key_sid beside it");
            None
        }
        (Some(_), ..) => {
            faults.at("auth_token", "stands beside an API key; keep one of the two");
            None
        }
    };
    let sender = match (config.from, config.messaging_service_sid) {
        (Some(from), None) => {
            if !is_sender(&from) {
                faults.at(
                    "from",
                    "not a sender; write a number as +15005550006, a short code, or a name of up \
                     to 11 letters and digits",
                );
            }
            Some(Sender::From(from))
        }
        (None, Some(sid)) => {
            if !sid.starts_with("MG") {
                faults.at("messaging_service_sid", "not a messaging service; it starts with MG");
            }
            Some(Sender::Service(sid))
        }
        (None, None) => faults.need("from", None),
        (Some(_), Some(_)) => {
            faults.at("from", "stands beside messaging_service_sid; keep one of the two");
            None
        }
    };
    if let Some(text) = &config.status_callback {
        let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        match url.as_ref().and_then(Url::host_str) {
            None => faults.at("status_callback", "not a URL; write https://host/path"),
            Some(host) if host.contains('_') => {
                faults.at("status_callback", "Twilio refuses a host with an underscore");
            }
            Some(_) => {}
        }
    }
    let (base_url, http) = (parts.base_url()?, parts.http(false)?);
    let (account, (user, password)) = (account?, login?);
    let path = ["2010-04-01", "Accounts", &account, "Messages.json"];
    Some(Arc::new(Twilio {
        http,
        clock: parts.shared.clock.clone(),
        messages: http::below(&base_url, &path),
        base_url,
        user,
        scrub: Scrub::new([password.clone()]),
        password,
        sender: sender?,
        status_callback: config.status_callback,
    }))
}

/// E.164, a short code, or an alphanumeric sender: up to 11 characters, one of them a letter.
fn is_sender(from: &str) -> bool {
    let short_code = (3..=8).contains(&from.len()) && from.bytes().all(|b| b.is_ascii_digit());
    let name = (1..=11).contains(&from.len())
        && from.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-_& ".contains(&b))
        && from.bytes().any(|b| b.is_ascii_alphabetic());
    from.parse::<E164>().is_ok() || short_code || name
}

impl Provider for Twilio {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome> {
        Box::pin(self.post(message))
    }

    fn can_look_up(&self) -> bool {
        true
    }

    fn lookup<'a>(&'a self, message: &'a Message, since: Timestamp) -> BoxFuture<'a, Lookup> {
        Box::pin(async move {
            match self.find(message, since).await {
                Ok(sids) if sids.is_empty() => Lookup::NotFound,
                Ok(sids) => Lookup::Found(sids),
                Err(detail) => Lookup::Inconclusive { detail },
            }
        })
    }
}

#[derive(Deserialize)]
struct Created {
    sid: String,
    /// A number in a string.
    num_segments: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    code: u32,
    #[serde(default)]
    message: String,
}

impl Twilio {
    async fn post(&self, message: &Message) -> SendOutcome {
        let Address::Phone(to) = &message.target.address else {
            return wrong_address("Twilio sends to phone numbers", message);
        };
        let now = self.clock.now();
        let validity = message.expires_at.since(now).as_secs().clamp(1, VALIDITY_SECS_MAX);
        let validity = validity.to_string();
        let mut form = vec![
            ("To", to.expose()),
            match &self.sender {
                Sender::From(from) => ("From", from.as_str()),
                Sender::Service(sid) => ("MessagingServiceSid", sid.as_str()),
            },
            ("Body", &message.content.text),
            ("ValidityPeriod", &validity),
        ];
        if let Some(url) = &self.status_callback {
            form.push(("StatusCallback", url));
        }
        let request = self.http.post(self.messages.clone()).form(&form);
        let scrub = self.scrub.with_address(message);
        match self.call(request, self.http.deadline(), http::BODY_BYTES_MAX, &scrub).await {
            Ok(answer) => outcome(&answer, &scrub),
            Err(lost) => lost.outcome(),
        }
    }

    async fn call(
        &self,
        request: RequestBuilder,
        by: Deadline,
        bytes_max: usize,
        scrub: &Scrub,
    ) -> Result<Answer, http::Lost> {
        let request = request.basic_auth(&self.user, Some(self.password.expose()));
        http::call(request, by, bytes_max, self.clock.now(), scrub).await
    }

    /// What Twilio has of this text to this number since `since`, oldest first.
    ///
    /// The list is asked twice where the first time finds nothing: Twilio filters by the date on
    /// which a message was sent, and one that still waits in its queue has none.
    async fn find(&self, message: &Message, since: Timestamp) -> Result<Vec<String>, String> {
        let by = self.http.deadline();
        let since = WallTime::from_millis(since.wall().as_millis() - CLOCK_SLACK_MS);
        let day: String = since.to_string().chars().take("2026-11-23".len()).collect();
        for query in [Some(("DateSent>", day.as_str())), None] {
            let found = self.list(message, since, query, by).await?;
            if !found.is_empty() {
                return Ok(found);
            }
        }
        Ok(Vec::new())
    }

    async fn list(
        &self,
        message: &Message,
        since: WallTime,
        filter: Option<(&str, &str)>,
        by: Deadline,
    ) -> Result<Vec<String>, String> {
        let mut url = self.list_url(message, filter);
        let scrub = self.scrub.with_address(message);
        let mut found = Vec::new();
        for _ in 0..LIST_PAGES_MAX {
            let request = self.http.get(url);
            let answer = self.call(request, by, LIST_BYTES_MAX, &scrub).await;
            let answer = answer.map_err(http::Lost::detail)?;
            if answer.status != StatusCode::OK {
                return Err(format!("the message list answers {}", answer.words(&scrub)));
            }
            let page: Page = answer.json().ok_or("the message list cannot be read")?;
            let mine = page.messages.into_iter().filter_map(|row| {
                let created = row.created();
                (self.is(&row, message) && created.is_none_or(|at| at >= since))
                    .then_some((created, row.sid))
            });
            found.extend(mine);
            // Only a path of the same server: credentials go along.
            url = match page.next_page_uri.filter(|path| path.starts_with("/2010-04-01/")) {
                None => {
                    // Newest first, and stable for those of one second.
                    found.reverse();
                    found.sort_by_key(|(created, _)| *created);
                    return Ok(found.into_iter().map(|(_, sid)| sid).collect());
                }
                Some(next) => self.base_url.join(&next).map_err(|error| error.to_string())?,
            };
        }
        Err("the message list is too long to be searched".to_owned())
    }

    fn list_url(&self, message: &Message, filter: Option<(&str, &str)>) -> Url {
        let mut url = self.messages.clone();
        let mut query = url.query_pairs_mut();
        query.append_pair("To", message.target.address.expose());
        if let Sender::From(from) = &self.sender {
            query.append_pair("From", from);
        }
        if let Some((name, value)) = filter {
            query.append_pair(name, value);
        }
        query.append_pair("PageSize", LIST_PAGE);
        drop(query);
        url
    }

    /// Whether a row of the list is `message`, and taken.
    fn is(&self, row: &Row, message: &Message) -> bool {
        let text = row.body.strip_prefix(TRIAL_PREFIX).unwrap_or(&row.body);
        let service = match &self.sender {
            Sender::From(_) => true,
            Sender::Service(sid) => row.messaging_service_sid.as_ref() == Some(sid),
        };
        service
            && text.trim_end() == message.content.text.trim_end()
            && row.direction.starts_with("outbound")
            && !matches!(row.status.as_str(), "failed" | "canceled")
    }
}

#[derive(Deserialize)]
struct Page {
    messages: Vec<Row>,
    next_page_uri: Option<String>,
}

#[derive(Deserialize)]
struct Row {
    sid: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    direction: String,
    #[serde(default)]
    status: String,
    messaging_service_sid: Option<String>,
    /// RFC 2822.
    date_created: Option<String>,
}

impl Row {
    fn created(&self) -> Option<WallTime> {
        let time = jiff::fmt::rfc2822::parse(self.date_created.as_deref()?).ok()?;
        Some(WallTime::from_millis(time.timestamp().as_millisecond()))
    }
}

fn outcome(answer: &Answer, scrub: &Scrub) -> SendOutcome {
    if answer.status == StatusCode::CREATED
        && let Some(created) = answer.json::<Created>()
    {
        return SendOutcome::Accepted {
            segments: created.num_segments.and_then(|count| count.parse().ok()),
            provider_ref: Some(created.sid),
            delivered: false,
            note: None,
        };
    }
    // No page comes with this status: it has most likely been taken, and the message list knows.
    if answer.status == StatusCode::CREATED && !answer.is_page() {
        return SendOutcome::Unknown {
            detail: "HTTP 201, and the rest of the answer could not be read".to_owned(),
            answered: false,
        };
    }
    if answer.status.is_success() {
        return answer.not_read("Twilio", scrub);
    }
    let Some(refused) = answer.json::<Refused>() else {
        return by_status(answer.status).outcome(answer.retry_after, answer.words(scrub));
    };
    let verdict = find(CODES, &refused.code).unwrap_or_else(|| unknown_code(answer.status));
    let detail = format!("Twilio {}: {}", refused.code, scrub.clean(&refused.message));
    let after = answer.retry_after;
    let after = after.or((refused.code == DAY_QUOTA).then_some(http::RETRY_AFTER_MAX));
    verdict.outcome(after, detail)
}
