//! Meta's WhatsApp Cloud API: text and template messages.
//!
//! `POST /{version}/{phone_number_id}/messages`, JSON with a bearer token. 200 with a `wamid`
//! means accepted, which is not sent yet. Errors are `{error: {code, message, error_data}}`; the
//! code decides, not the HTTP status. There is no idempotency key and no list call; the message's
//! id travels as `biz_opaque_callback_data`, so that receipts can be matched.
//!
//! **Free text or template.** WhatsApp lets a business write freely only within 24 hours of the
//! person's last message. An alert usually comes outside of them, so with `template` configured
//! everything goes as that template, with the alert's text as its parameter. Without it everything
//! goes as free text, and outside the window Meta refuses it (131047). `text_first` is between the
//! two: free text, and the template in the same `send` when the answer is 131047. Meta often
//! accepts the text and tells of the closed window in a receipt only, so `text_first` suits people
//! who write to the number every day. A message that names a template itself goes as that one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Value, json};

use super::http::{self, Answer, Deadline, Http, Lost};
use super::rate::Rate;
use super::registry::{Kind, Parts, Reach, fields};
use super::scrub::{Scrub, shorten};
use super::table::{Class, Verdict, by_status, find, unknown_code};
use super::{Provider, SendOutcome, wrong_address};
use crate::clock::Clock;
use crate::model::{Address, Channel, Message, Reason, Template};
use crate::secret::{Secret, SecretSource};

pub(super) const KIND: Kind = Kind {
    name: "whatsapp-cloud",
    channels: &[Channel::Whatsapp],
    reach: Reach::Service("https://graph.facebook.com"),
    // Meta's default throughput of one number.
    rate: Some(Rate::per_second(80)),
    concurrency: 4,
    keys: fields::<Config>,
    build,
};

/// The keys of a `[[provider]]` of kind `whatsapp-cloud`, beside the common ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Config {
    /// The id of the sending number (not the number itself). Required.
    pub phone_number_id: Option<String>,
    /// A system user's access token. Required.
    pub access_token: Option<SecretSource>,
    /// The version of the Graph API; default `v23.0`.
    pub api_version: Option<String>,
    /// The approved template that messages go as; default none. `parameters` are the values of
    /// its body in order; `{text}`, `{title}`, `{severity}`, `{rule}`, `{key}` and `{state}` are
    /// filled in. Example: `{ name = "alert", language = "en", parameters = ["{text}"] }`.
    pub template: Option<Template>,
    /// Try free text first and send `template` where Meta answers that the 24-hour window is
    /// closed; default false. Needs `template`.
    pub text_first: bool,
}

/// Meta's error codes. 200 to 299 are permissions (in `verdict`).
const CODES: &[(u32, Reason, Class)] = &[
    (0, Reason::BadCredentials, Class::Lane),
    (1, Reason::ProviderUnavailable, Class::RetryLane),
    (2, Reason::ProviderUnavailable, Class::RetryLane),
    (3, Reason::ProviderRefused, Class::Lane),
    (4, Reason::Throttled, Class::RetryLane),
    (10, Reason::ProviderRefused, Class::Lane),
    (17, Reason::Throttled, Class::RetryLane), // rate limit of the user
    (32, Reason::Throttled, Class::RetryLane), // rate limit of the page
    (33, Reason::ProviderRefused, Class::Lane), // number deleted
    (100, Reason::ContentRefused, Class::Content), // invalid parameter
    (190, Reason::BadCredentials, Class::Lane),
    (368, Reason::ProviderRefused, Class::Lane), // policy block
    (613, Reason::Throttled, Class::RetryLane),  // rate limit
    (2500, Reason::ProviderRefused, Class::Lane), // the path: api_version, phone_number_id
    (80007, Reason::Throttled, Class::RetryLane),
    (80008, Reason::Throttled, Class::RetryLane), // rate limit of the business account
    (130429, Reason::Throttled, Class::RetryLane),
    (130472, Reason::Unreachable, Class::Recipient), // held back by an experiment
    (130497, Reason::BadRecipient, Class::Recipient), // not to this country
    (131000, Reason::ProviderUnavailable, Class::RetryLane),
    (131005, Reason::ProviderRefused, Class::Lane), // permission
    (131008, Reason::ContentRefused, Class::Content), // parameter missing
    (131009, Reason::ContentRefused, Class::Content), // parameter value
    (131016, Reason::ProviderUnavailable, Class::RetryLane),
    (131021, Reason::BadRecipient, Class::Recipient), // the sender itself
    (131026, Reason::BadRecipient, Class::Recipient), // not on WhatsApp
    (131030, Reason::BadRecipient, Class::Recipient), // not in the test list
    (131031, Reason::ProviderRefused, Class::Lane),   // account locked
    (131037, Reason::ProviderRefused, Class::Lane),   // display name not approved
    (131042, Reason::NoCredit, Class::Lane),          // payment
    (131044, Reason::NoCredit, Class::Lane),          // payment
    (131045, Reason::ProviderRefused, Class::Lane),   // number not registered
    (131047, Reason::WindowClosed, Class::Recipient),
    (131048, Reason::Throttled, Class::RetryLane), // spam limit
    (131049, Reason::Unreachable, Class::Recipient), // not now; a retry within a day is refused too
    (131050, Reason::OptedOut, Class::Recipient),
    (131051, Reason::ContentRefused, Class::Content), // message type
    (131052, Reason::ContentRefused, Class::Content), // media
    (131053, Reason::ContentRefused, Class::Content), // media
    (131056, Reason::Throttled, Class::RetryRecipient), // too many to this person
    (131057, Reason::ProviderUnavailable, Class::RetryLane), // maintenance
    (131062, Reason::BadRecipient, Class::Recipient), // a kind of address that this call does not take
    (131064, Reason::Throttled, Class::RetryLane),    // messaging limit
    (132000, Reason::ContentRefused, Class::Content), // parameter count
    (132001, Reason::ContentRefused, Class::Content), // no such template
    (132005, Reason::ContentRefused, Class::Content), // too long
    (132007, Reason::ContentRefused, Class::Content), // policy
    (132008, Reason::ContentRefused, Class::Content), // parameter of the template
    (132012, Reason::ContentRefused, Class::Content), // parameter format
    (132015, Reason::ContentRefused, Class::Content), // template paused
    (132016, Reason::ContentRefused, Class::Content), // template disabled
    (132018, Reason::ContentRefused, Class::Content), // parameter of the template
    (132068, Reason::ContentRefused, Class::Content), // flow
    (132069, Reason::ContentRefused, Class::Content), // flow
    (133004, Reason::ProviderUnavailable, Class::RetryLane),
    (133010, Reason::ProviderRefused, Class::Lane), // number not registered
    (133016, Reason::Throttled, Class::RetryLane),
    (135000, Reason::ProviderRefused, Class::Route), // not sent, for no reason that it names
];

/// What these say of the template is true for every message that goes as it. Where it is the
/// configured one they stop the lane, so that the messages wait for an operator.
const TEMPLATE_CODES: &[u32] = &[132000, 132001, 132007, 132008, 132012, 132015, 132016, 132018];
/// What these say of a parameter may be true for every message that goes as the configured
/// template, or for the values of this one.
const PARAMETER_CODES: &[u32] = &[INVALID_PARAMETER, 131008, 131009];
const INVALID_PARAMETER: u32 = 100;
const TOO_LONG: u32 = 132_005;
/// How long these pause the lane where Meta does not say.
const PAUSES: &[(u32, Duration)] = &[
    (17, RATE_PAUSE),
    (32, RATE_PAUSE),
    (613, RATE_PAUSE),
    (80008, RATE_PAUSE),
    (131048, http::RETRY_AFTER_MAX),
    (131064, http::RETRY_AFTER_MAX),
];
const RATE_PAUSE: Duration = Duration::from_secs(60);
const WINDOW_CLOSED: u32 = 131_047;
const PAIR_LIMIT: u32 = 131_056;
/// Meta's limit of a text.
const TEXT_CHARACTERS_MAX: usize = 4096;
/// A template's body may hold 1024 characters in all; this leaves some to the template.
const PARAMETER_CHARACTERS_MAX: usize = 900;
/// After Meta has said that it is too long.
const PARAMETER_CHARACTERS_SHORT: usize = 300;
const PLACEHOLDERS: &[&str] = &["text", "title", "severity", "rule", "key", "state"];

struct WhatsappCloud {
    http: Http,
    clock: Clock,
    messages: Url,
    access_token: Secret,
    template: Option<Template>,
    text_first: bool,
    scrub: Scrub,
}

fn build(parts: &mut Parts<'_>) -> Option<Arc<dyn Provider>> {
    let config: Config = parts.own();
    let faults = &mut parts.faults;
    let number = faults.need("phone_number_id", config.phone_number_id);
    if let Some(id) = &number
        && (id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()))
    {
        faults.at("phone_number_id", "not an id; it is digits only and not the number itself");
    }
    let access_token = faults.need_secret("access_token", config.access_token);
    let version = config.api_version.unwrap_or_else(|| "v23.0".to_owned());
    if !version.starts_with('v') || version.contains('/') {
        faults.at("api_version", "not a version; write v23.0");
    }
    if config.text_first && config.template.is_none() {
        faults.at("text_first", "has no template to fall back on; set template too");
    }
    if let Some(template) = &config.template {
        for unknown in template.parameters.iter().flat_map(|text| unknown_placeholders(text)) {
            faults.at(
                "template",
                format!("unknown placeholder {{{unknown}}}; known are {}", PLACEHOLDERS.join(", ")),
            );
        }
    }
    let (base_url, http) = (parts.base_url()?, parts.http(false)?);
    let access_token = access_token?;
    Some(Arc::new(WhatsappCloud {
        http,
        clock: parts.shared.clock.clone(),
        messages: http::below(&base_url, &[&version, &number?, "messages"]),
        scrub: Scrub::new([access_token.clone()]),
        access_token,
        template: config.template,
        text_first: config.text_first,
    }))
}

/// Names in braces that are not ours.
fn unknown_placeholders(text: &str) -> Vec<&str> {
    text.split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(name, _)| name)
        .filter(|name| !PLACEHOLDERS.contains(name))
        .collect()
}

impl Provider for WhatsappCloud {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome> {
        Box::pin(self.post(message))
    }
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    messages: Vec<Sent>,
    error: Option<Refused>,
}

#[derive(Deserialize)]
struct Sent {
    id: String,
    /// `accepted`, `held_for_quality_assessment` or `paused`.
    message_status: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    code: u32,
    error_subcode: Option<u32>,
    #[serde(default)]
    message: String,
    error_data: Option<ErrorData>,
    #[serde(default)]
    is_transient: bool,
}

#[derive(Deserialize)]
struct ErrorData {
    #[serde(default)]
    details: String,
}

impl WhatsappCloud {
    async fn post(&self, message: &Message) -> SendOutcome {
        let Address::Phone(to) = &message.target.address else {
            return wrong_address("WhatsApp sends to phone numbers", message);
        };
        let by = self.http.deadline();
        let scrub = self.scrub.with_address(message);
        let own = message.content.template.as_ref();
        let configured = self.template.as_ref().filter(|_| own.is_none());
        let to = to.digits();
        if configured.is_none() || self.text_first {
            let body = match own {
                Some(template) => template_body(template, message, PARAMETER_CHARACTERS_MAX),
                None => text_body(message),
            };
            let answer = self.call(to, message, body, by, &scrub).await;
            let outcome = self.outcome(answer, false, message, &scrub);
            let is_closed =
                matches!(&outcome, SendOutcome::Rejected { reason: Reason::WindowClosed, .. });
            if !is_closed || configured.is_none() {
                return outcome;
            }
        }
        let Some(template) = configured else {
            return wrong_address("a template is missing", message);
        };
        // Too long is said before anything is taken; shorter, it may pass, once.
        let mut answer = Err(Lost::NotSent("no template".to_owned()));
        for characters in [PARAMETER_CHARACTERS_MAX, PARAMETER_CHARACTERS_SHORT] {
            let body = template_body(template, message, characters);
            answer = self.call(to, message, body, by, &scrub).await;
            let refused = answer.as_ref().ok().and_then(|answer| answer.json::<Reply>());
            if refused.and_then(|reply| reply.error).is_none_or(|error| error.code != TOO_LONG) {
                break;
            }
        }
        self.outcome(answer, true, message, &scrub)
    }

    async fn call(
        &self,
        to: &str,
        message: &Message,
        mut body: Value,
        by: Deadline,
        scrub: &Scrub,
    ) -> Result<Answer, Lost> {
        body["messaging_product"] = json!("whatsapp");
        body["recipient_type"] = json!("individual");
        body["to"] = json!(to);
        body["biz_opaque_callback_data"] = json!(message.id);
        let request = self
            .http
            .post(self.messages.clone())
            .bearer_auth(self.access_token.expose())
            .json(&body);
        http::call(request, by, http::BODY_BYTES_MAX, self.clock.now(), scrub).await
    }

    fn outcome(
        &self,
        answer: Result<Answer, Lost>,
        own_template: bool,
        message: &Message,
        scrub: &Scrub,
    ) -> SendOutcome {
        let answer = match answer {
            Ok(answer) => answer,
            Err(lost) => return lost.outcome(),
        };
        let reply: Option<Reply> = answer.json();
        if let Some(Reply { error: Some(refused), .. }) = reply {
            return self.refusal(&answer, &refused, own_template, message, scrub);
        }
        if !answer.status.is_success() {
            return by_status(answer.status).outcome(answer.retry_after, answer.words(scrub));
        }
        let Some(sent) = reply.and_then(|reply| reply.messages.into_iter().next()) else {
            return answer.not_read("WhatsApp", scrub);
        };
        let note = match sent.message_status.as_deref() {
            // Nobody gets it: the template has too many complaints.
            Some("paused") => {
                let class = if own_template { Class::Lane } else { Class::Content };
                let detail = "WhatsApp holds it back: the template is paused".to_owned();
                return Verdict(Reason::ProviderRefused, class).outcome(None, detail);
            }
            Some("held_for_quality_assessment") => {
                Some("WhatsApp holds it back for a while to assess the template".to_owned())
            }
            _ => None,
        };
        SendOutcome::Accepted {
            provider_ref: Some(sent.id),
            segments: None,
            delivered: false,
            note,
        }
    }

    fn refusal(
        &self,
        answer: &Answer,
        refused: &Refused,
        own_template: bool,
        message: &Message,
        scrub: &Scrub,
    ) -> SendOutcome {
        let verdict = verdict(answer, refused, own_template);
        let pause = PAUSES.iter().find(|(code, _)| *code == refused.code).map(|(_, pause)| *pause);
        let after = answer.retry_after.or(match refused.code {
            // Meta asks for 4^n seconds, n counting the tries.
            PAIR_LIMIT => Some(Duration::from_secs(4_u64.pow(message.attempt_count.clamp(1, 5)))),
            _ => pause,
        });
        let mut detail = format!("WhatsApp {}: {}", refused.code, scrub.clean(&refused.message));
        let details = refused.details();
        if !details.is_empty() {
            detail.push_str("; ");
            detail.push_str(&scrub.clean(details));
        }
        if refused.code == WINDOW_CLOSED && self.template.is_none() {
            detail.push_str("; configure a template for this provider");
        }
        verdict.outcome(after, detail)
    }
}

impl Refused {
    fn details(&self) -> &str {
        self.error_data.as_ref().map_or("", |data| &data.details)
    }

    /// Whether it says that a parameter of the template has another name.
    fn blames_parameter_name(&self) -> bool {
        let words = format!("{} {}", self.message, self.details()).to_ascii_lowercase();
        words.contains("parameter name") || words.contains("parameter_name")
    }
}

fn verdict(answer: &Answer, refused: &Refused, own_template: bool) -> Verdict {
    let lane = Verdict(Reason::ProviderRefused, Class::Lane);
    let known = match refused.code {
        // The object in the path does not exist or is not ours: phone_number_id is wrong.
        INVALID_PARAMETER if refused.error_subcode == Some(33) => lane,
        INVALID_PARAMETER if own_template && refused.blames_parameter_name() => lane,
        code if own_template && TEMPLATE_CODES.contains(&code) => lane,
        code if own_template && PARAMETER_CODES.contains(&code) => {
            Verdict(Reason::ProviderRefused, Class::Account)
        }
        200..=299 => lane,
        code => find(CODES, &code).unwrap_or_else(|| unknown_code(answer.status)),
    };
    match known {
        Verdict(_, Class::RetryLane | Class::RetryRecipient | Class::RetryMessage) => known,
        // Whatever the code means, Meta says that it passes.
        _ if refused.is_transient => Verdict(Reason::ProviderUnavailable, Class::RetryLane),
        known => known,
    }
}

fn text_body(message: &Message) -> Value {
    let text = shorten(&message.content.text, TEXT_CHARACTERS_MAX);
    json!({ "type": "text", "text": { "body": text, "preview_url": false } })
}

fn template_body(template: &Template, message: &Message, characters_max: usize) -> Value {
    let own = message.content.template.is_some();
    let parameters: Vec<Value> = template
        .parameters
        .iter()
        .map(|text| {
            // A message's own template comes filled in.
            let text = if own { text.clone() } else { fill(text, message) };
            json!({ "type": "text", "text": parameter(&text, characters_max) })
        })
        .collect();
    let mut body = json!({
        "type": "template",
        "template": {
            "name": template.name,
            "language": { "policy": "deterministic", "code": template.language },
        },
    });
    if !parameters.is_empty() {
        body["template"]["components"] = json!([{ "type": "body", "parameters": parameters }]);
    }
    body
}

/// Fills the placeholders in, in one pass: what is filled in is not looked at again.
fn fill(text: &str, message: &Message) -> String {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            filled.push('{');
            rest = after;
            continue;
        };
        let alert = message.alert.as_ref();
        filled.push_str(match name {
            "text" => &message.content.text,
            "title" => message.content.title.as_deref().unwrap_or_default(),
            "severity" => message.severity.as_str(),
            "rule" => alert.map_or("", |alert| &alert.rule),
            "key" => alert.map_or("", |alert| &alert.key),
            "state" => alert.map_or("", |alert| alert.state.as_str()),
            // Refused at load.
            _ => "",
        });
        rest = after;
    }
    filled.push_str(rest);
    filled
}

/// Meta refuses a parameter with a line break, a tab, more than four spaces in a row, or nothing.
fn parameter(text: &str, characters_max: usize) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    if words.is_empty() {
        return "-".to_owned();
    }
    shorten(&words.join(" "), characters_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_cleaned() {
        for (text, clean) in [
            ("plain", "plain"),
            ("two\nlines\tand      spaces", "two lines and spaces"),
            ("\u{a0}", "-"),
            ("", "-"),
        ] {
            assert_eq!(parameter(text, PARAMETER_CHARACTERS_MAX), clean, "{text:?}");
        }
        assert_eq!(parameter(&"x".repeat(2000), PARAMETER_CHARACTERS_MAX).chars().count(), 900);
    }

    #[test]
    fn unknown_placeholders_are_found() {
        assert_eq!(unknown_placeholders("{text} of {rule}"), Vec::<&str>::new());
        assert_eq!(unknown_placeholders("{txt} of {rule} {}"), ["txt", ""]);
        assert_eq!(unknown_placeholders("a { b"), Vec::<&str>::new());
    }
}
