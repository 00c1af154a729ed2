//! Each provider against its stand-in: what it sends, and what it makes of every answer.
//!
//! The error tables stand here a second time, as lines of (what, answer, outcome): whoever changes
//! one has to say so twice. Every outcome's words are searched for the secrets and the number,
//! which the stand-ins put into their errors.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use watchbell::clock::{Clock, Timestamp};
use watchbell::model::{
    Address, AlertId, AlertRef, AlertState, Channel, Content, IdSource, Message, MessageId,
    Segments, Severity, SmsEncoding, Status, Target, Template,
};
use watchbell::problem::path_text;
use watchbell::provider::phone::Screen;
use watchbell::provider::registry::{Entry, KINDS, Shared, read};
use watchbell::provider::{Lookup, RetryScope, Scope, SendOutcome};
use watchbell::topic::{TopicLimits, TopicName};

use crate::fake::{Answer, Cut, Fake, Twilio};

/// 2026-11-23T10:00:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_795_428_000_000);
const NUMBER: &str = "+4915112345678";
const SECRET: &str = "s3cret-t0ken-42";
const DEVICE: &str = "device-registration-token:APA91b";
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SIGNING_OLD: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

fn shared() -> Shared {
    Shared { screen: Screen::new(3), clock: Clock::manual(NOW) }
}

fn entry(toml: &str, shared: &Shared) -> Entry {
    read(&toml.parse().unwrap(), shared).unwrap()
}

fn faults(toml: &str) -> Vec<String> {
    let found = read(&toml.parse().unwrap(), &shared()).err().unwrap_or_default();
    let lines = found.iter().map(|fault| format!("{}: {}", path_text(&fault.path), fault.what));
    lines.collect()
}

fn message(channel: Channel, address: Address) -> Message {
    let mut ids = IdSource::new(1);
    Message {
        id: MessageId::new(ids.next(NOW)),
        alert: Some(AlertRef {
            id: AlertId::new(ids.next(NOW)),
            rule: "freezer-warm".into(),
            key: "kiel/1".into(),
            state: AlertState::Firing,
            topic: TopicName::parse("site/kiel/freezer/1", TopicLimits::default()).unwrap(),
        }),
        contact: Some("ana".into()),
        target: Target { channel, address },
        then: Vec::new(),
        severity: Severity::Critical,
        content: Content {
            title: Some("Freezer warm".into()),
            text: "Kiel freezer 1: -3.2 °C\nfor 5 min & more".into(),
            template: None,
        },
        segments: None,
        created_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(3600)),
        status: Status::Sending,
        reason: None,
        detail: None,
        due_at: NOW,
        updated_at: NOW,
        attempt_count: 2,
        attempts: Vec::new(),
        provider: None,
        provider_ref: None,
    }
}

fn sms() -> Message {
    message(Channel::Sms, Address::Phone(NUMBER.parse().unwrap()))
}

fn whatsapp() -> Message {
    message(Channel::Whatsapp, Address::Phone(NUMBER.parse().unwrap()))
}

fn push() -> Message {
    message(Channel::Push, Address::Token(DEVICE.into()))
}

/// The outcome in a few words, after a look for what must not be in it.
fn words(outcome: &SendOutcome) -> String {
    let detail = match outcome {
        SendOutcome::Accepted { .. } => "",
        SendOutcome::Retry { detail, .. }
        | SendOutcome::Rejected { detail, .. }
        | SendOutcome::Unknown { detail } => detail,
    };
    let basic = STANDARD.encode(format!("AC42:{SECRET}"));
    let signing = SIGNING.trim_start_matches("whsec_");
    for hidden in [NUMBER, &NUMBER[1..], SECRET, DEVICE, &basic, signing, "http://", "hook-t0ken"] {
        assert!(!detail.contains(hidden), "{hidden} in: {detail}");
    }
    match outcome {
        SendOutcome::Accepted { provider_ref, segments, delivered } => {
            let mut text = "accepted".to_owned();
            text.push_str(if *delivered { " delivered" } else { "" });
            for part in [provider_ref.clone(), segments.map(|count| count.to_string())] {
                text.extend(part.map(|part| format!(" {part}")));
            }
            text
        }
        SendOutcome::Retry { reason, after, scope, detail } => {
            assert!(!detail.is_empty());
            let scope = match scope {
                RetryScope::Provider => "lane",
                RetryScope::Message => "message",
            };
            let after = after.map_or(String::new(), |after| format!(" {}s", after.as_secs()));
            format!("retry {scope} {reason}{after}")
        }
        SendOutcome::Rejected { reason, scope, detail } => {
            assert!(!detail.is_empty());
            let scope = match scope {
                Scope::Provider => "lane",
                Scope::Recipient => "recipient",
                Scope::Content => "content",
            };
            format!("rejected {scope} {reason}")
        }
        SendOutcome::Unknown { detail } => {
            assert!(!detail.is_empty());
            "unknown".to_owned()
        }
    }
}

fn detail(outcome: &SendOutcome) -> &str {
    match outcome {
        SendOutcome::Accepted { .. } => "",
        SendOutcome::Retry { detail, .. }
        | SendOutcome::Rejected { detail, .. }
        | SendOutcome::Unknown { detail } => detail,
    }
}

/// Each answer alone, through one provider.
async fn check(entry: &Entry, fake: &Fake, message: &Message, lines: &[(&str, Answer, &str)]) {
    for (what, answer, expected) in lines {
        fake.script([answer.clone()]);
        let outcome = entry.provider.send(message).await;
        assert_eq!(words(&outcome), *expected, "{what}: {outcome:?}");
    }
}

/// What every provider makes of a connection that does not do its part. `good` is its success.
async fn check_cuts(entry: &Entry, fake: &Fake, message: &Message, good: Answer, nowhere: &str) {
    let unanswered = if entry.kind == "webhook" { "retry message no_answer" } else { "unknown" };
    let taken = if entry.kind == "webhook" { "accepted delivered" } else { "accepted" };
    check(
        entry,
        fake,
        message,
        &[
            ("cut before reading", Answer::cut(Cut::BeforeReading), unanswered),
            ("cut after reading", Answer::cut(Cut::AfterReading), unanswered),
            ("no answer in time", Answer::cut(Cut::Never), unanswered),
            ("an answer that is late", good.clone().delay(Duration::from_secs(20)), unanswered),
            ("taken, but the body is cut", good.clone().but_cut(Cut::InBody), taken),
            ("taken, but the body is endless", good.body(vec![b'x'; 70_000]), taken),
        ],
    )
    .await;
    fake.stop().await;
    let outcome = entry.provider.send(message).await;
    assert_eq!(words(&outcome), nowhere, "{outcome:?}");
    assert!(detail(&outcome).contains("refused"), "{outcome:?}");
    fake.restart().await;
}

// ---- Twilio ----

fn twilio(fake: &Fake, more: &str) -> Entry {
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = '{}'\naccount_sid = 'AC42'\nauth_token = \
         '{SECRET}'\nfrom = '+15005550006'\ntimeout = '1s'\n{more}",
        fake.url()
    );
    entry(&toml, &shared())
}

fn twilio_error(status: u16, code: u32) -> Answer {
    let text = format!("the number {NUMBER} and token {SECRET} of AC42");
    Answer::json(status, &json!({ "code": code, "message": text, "status": status }))
}

#[tokio::test]
async fn twilio_is_sent_what_its_contract_says() {
    let fake = Fake::answering(|_| {
        Answer::json(201, &json!({ "sid": "SM1", "num_segments": "2", "status": "queued" }))
    })
    .await;
    let twilio = twilio(&fake, "status_callback = 'https://bell.example.org/twilio'");
    let outcome = twilio.provider.send(&sms()).await;
    assert_eq!(words(&outcome), "accepted SM1 2");
    let request = fake.only();
    assert_eq!(request.method, "POST");
    assert_eq!(request.target, "/2010-04-01/Accounts/AC42/Messages.json");
    assert_eq!(request.header("content-type"), "application/x-www-form-urlencoded");
    let basic = STANDARD.encode(format!("AC42:{SECRET}"));
    assert_eq!(request.header("authorization"), format!("Basic {basic}"));
    let agent = concat!("watchbell/", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), agent);
    let form = request.form();
    let mut fields: Vec<_> = form.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    fields.sort_unstable();
    let expected = [
        ("Body", "Kiel freezer 1: -3.2 °C\nfor 5 min & more"),
        ("From", "+15005550006"),
        ("StatusCallback", "https://bell.example.org/twilio"),
        ("To", NUMBER),
        ("ValidityPeriod", "3600"),
    ];
    assert_eq!(fields, expected);
}

#[tokio::test]
async fn twilio_gets_no_more_time_than_is_left() {
    let fake = Fake::answering(|_| Answer::json(201, &json!({ "sid": "SM1" }))).await;
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = '{}/x/'\naccount_sid = 'AC42'\napi_key_sid = \
         'SK7'\napi_key_secret = '{SECRET}'\nmessaging_service_sid = 'MG9'",
        fake.url()
    );
    let twilio = entry(&toml, &shared());
    for left_secs in [0, 7, 999_999] {
        let mut message = sms();
        message.expires_at = NOW.plus(Duration::from_secs(left_secs));
        assert_eq!(words(&twilio.provider.send(&message).await), "accepted SM1");
    }
    let requests = fake.requests();
    let field = |name: &str| -> Vec<String> {
        requests.iter().map(|request| request.form()[name].clone()).collect()
    };
    assert_eq!(field("ValidityPeriod"), ["1", "7", "36000"]);
    assert_eq!(field("MessagingServiceSid"), ["MG9", "MG9", "MG9"]);
    assert!(!requests[0].form().contains_key("From"));
    assert_eq!(requests[0].path(), "/x/2010-04-01/Accounts/AC42/Messages.json");
    let basic = STANDARD.encode(format!("SK7:{SECRET}"));
    assert_eq!(requests[0].header("authorization"), format!("Basic {basic}"));
}

#[tokio::test]
async fn twilio_error_table() {
    let fake = Fake::start().await;
    let twilio = twilio(&fake, "");
    let code = |code| twilio_error(400, code);
    let lines = [
        ("account not active", code(10001), "rejected lane provider_refused"),
        ("credentials", twilio_error(401, 20003), "rejected lane bad_credentials"),
        ("no such account", twilio_error(404, 20404), "rejected lane provider_refused"),
        ("too many requests", twilio_error(429, 20429), "retry lane throttled"),
        ("To is no number", code(21211), "rejected recipient bad_recipient"),
        ("From is no number", code(21212), "rejected lane provider_refused"),
        ("region off", code(21408), "rejected recipient provider_refused"),
        ("no body", code(21602), "rejected content content_refused"),
        ("From cannot send", code(21606), "rejected lane provider_refused"),
        ("trial account", code(21608), "rejected recipient provider_refused"),
        ("opted out", code(21610), "rejected recipient opted_out"),
        ("queue of the sender", code(21611), "retry lane throttled"),
        ("no route", code(21612), "rejected recipient bad_recipient"),
        ("not mobile", code(21614), "rejected recipient bad_recipient"),
        ("too long", code(21617), "rejected content content_refused"),
        ("no body either", code(21619), "rejected content content_refused"),
        ("From of another", code(21660), "rejected lane provider_refused"),
        ("no such service", code(21705), "rejected lane provider_refused"),
        ("queue overflow", code(30001), "retry lane throttled"),
        ("suspended", code(30002), "rejected lane provider_refused"),
        ("handset off", code(30003), "retry message unreachable"),
        ("unknown handset", code(30005), "rejected recipient bad_recipient"),
        ("landline", code(30006), "rejected recipient bad_recipient"),
        ("filtered", code(30007), "rejected content content_refused"),
        ("unknown error", code(30008), "retry message provider_unavailable"),
        ("media too big", code(30019), "rejected content content_refused"),
        ("toll-free", code(30032), "rejected lane provider_refused"),
        ("10DLC", code(30034), "rejected lane provider_refused"),
        ("validity over", code(30036), "retry message unreachable"),
        ("channel rate", code(63018), "retry lane throttled"),
        ("a code of tomorrow", code(29999), "rejected content content_refused"),
        ("a code of tomorrow, 500", twilio_error(500, 29999), "retry lane provider_unavailable"),
    ];
    check(&twilio, &fake, &sms(), &lines).await;
    let outcome = {
        fake.script([twilio_error(400, 21211)]);
        twilio.provider.send(&sms()).await
    };
    assert_eq!(detail(&outcome), "Twilio 21211: the number +49…678 and token *** of AC42");
}

#[tokio::test]
async fn without_the_providers_words_the_status_decides() {
    let fake = Fake::start().await;
    let twilio = twilio(&fake, "");
    let page = |status| Answer::new(status).body("<html>the gateway's page</html>");
    let wait = |text| Answer::new(503).header("retry-after", text);
    let lines = [
        ("no credentials", page(401), "rejected lane bad_credentials"),
        ("no credit", page(402), "rejected lane no_credit"),
        ("forbidden", page(403), "rejected lane provider_refused"),
        ("not found", page(404), "rejected lane provider_refused"),
        ("too slow", page(408), "retry lane provider_unavailable"),
        ("too large", page(413), "rejected content content_refused"),
        ("too fast", page(429), "retry lane throttled"),
        ("down", page(500), "retry lane provider_unavailable"),
        ("bad gateway", page(502), "retry lane provider_unavailable"),
        ("gateway timeout", page(504), "retry lane provider_unavailable"),
        ("cut error", page(503).but_cut(Cut::InBody), "retry lane provider_unavailable"),
        ("moved", page(302).header("location", "/other"), "retry lane bad_answer"),
        ("a portal's page", page(200), "unknown"),
        ("seconds", wait("7"), "retry lane provider_unavailable 7s"),
        ("a date", wait("Mon, 23 Nov 2026 10:01:00 GMT"), "retry lane provider_unavailable 60s"),
        ("a day", wait("86400"), "retry lane provider_unavailable 3600s"),
        ("a past date", wait("Mon, 23 Nov 2026 09:00:00 GMT"), "retry lane provider_unavailable"),
        ("nonsense", wait("soon"), "retry lane provider_unavailable"),
        ("taken, no body", Answer::new(201), "accepted"),
    ];
    check(&twilio, &fake, &sms(), &lines).await;
    assert_eq!(fake.count(), lines.len(), "nothing is repeated, no redirect is followed");
}

#[tokio::test]
async fn twilio_when_the_wire_breaks() {
    let fake = Fake::start().await;
    let good = Answer::json(201, &json!({ "sid": "SM1" }));
    let lane = "retry lane connect_failed";
    check_cuts(&twilio(&fake, ""), &fake, &sms(), good, lane).await;
}

#[tokio::test]
async fn a_failed_tls_handshake_has_sent_nothing() {
    let fake = Fake::start().await;
    let https = fake.url().replace("http:", "https:");
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = '{https}'\naccount_sid = 'AC42'\nauth_token = \
         'x'\nfrom = '+15005550006'"
    );
    let twilio = entry(&toml, &shared());
    fake.script([Answer::cut(Cut::BeforeReading)]);
    let outcome = twilio.provider.send(&sms()).await;
    assert_eq!(words(&outcome), "retry lane connect_failed", "{outcome:?}");
    assert_eq!(fake.count(), 0);
}

#[tokio::test]
async fn a_name_that_is_none_has_sent_nothing() {
    let toml = "name = 'tw'\nkind = 'twilio'\nbase_url = 'https://watchbell.invalid'\n\
                account_sid = 'AC42'\nauth_token = 'x'\nfrom = '+15005550006'";
    let outcome = entry(toml, &shared()).provider.send(&sms()).await;
    assert_eq!(words(&outcome), "retry lane connect_failed", "{outcome:?}");
}

#[tokio::test]
async fn requests_go_through_the_proxy_that_is_configured() {
    let proxy = Fake::answering(|_| Answer::json(201, &json!({ "sid": "SM1" }))).await;
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = 'http://twilio.invalid'\nallow_http = true\n\
         proxy = '{}'\naccount_sid = 'AC42'\nauth_token = 'x'\nfrom = 'Watchbell'",
        proxy.url()
    );
    let outcome = entry(&toml, &shared()).provider.send(&sms()).await;
    assert_eq!(words(&outcome), "accepted SM1");
    let target = proxy.only().target;
    assert_eq!(target, "http://twilio.invalid/2010-04-01/Accounts/AC42/Messages.json");
}

#[tokio::test]
async fn twilio_finds_what_it_took_without_saying_so() {
    let book = Twilio::default();
    let (fake, taking) = (Fake::start().await, book.clone());
    // It takes the message, and the connection breaks before the answer.
    fake.respond(move |request| match request.method.as_str() {
        "POST" => {
            taking.took(request);
            Answer::cut(Cut::AfterReading)
        }
        _ => taking.answer(request),
    });
    let twilio = twilio(&fake, "").provider;
    let message = sms();
    assert!(twilio.can_look_up());
    assert_eq!(twilio.lookup(&message, NOW).await, Lookup::NotFound);
    for _ in 0..2 {
        assert_eq!(words(&twilio.send(&message).await), "unknown");
    }
    let mut other = sms();
    other.content.text = "something else".into();
    assert_eq!(words(&twilio.send(&other).await), "unknown");
    assert_eq!(book.count(), 3);
    let found = ["1", "2"].map(|n| format!("SM{n:0>32}")).to_vec();
    assert_eq!(twilio.lookup(&message, NOW).await, Lookup::Found(found));

    let asked = fake.requests().pop().unwrap();
    assert_eq!(asked.path(), "/2010-04-01/Accounts/AC42/Messages.json");
    let query = asked.query();
    assert_eq!(query["To"], NUMBER);
    assert_eq!(query["From"], "+15005550006");
    assert_eq!(query["DateSent>"], "2026-11-23");
}

#[tokio::test]
async fn twilio_looks_only_at_what_may_be_this_message() {
    let row = |sid: &str, created: &str, more: Value| {
        let mut row = json!({
            "sid": sid, "body": "Kiel freezer 1: -3.2 °C\nfor 5 min & more",
            "direction": "outbound-api", "status": "sent", "date_created": created,
        });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let after = "Mon, 23 Nov 2026 10:00:05 +0000";
    let trial = "Sent from your Twilio trial account - Kiel freezer 1: -3.2 °C\nfor 5 min & more";
    let first = json!([
        row("SM6", after, json!({ "direction": "inbound" })),
        row("SM5", after, json!({ "status": "failed" })),
        row("SM4", after, json!({ "body": "something else" })),
        row("SM3", "Mon, 23 Nov 2026 10:00:09 +0000", json!({})),
    ]);
    let second = json!([
        row("SM2", after, json!({ "body": trial })),
        row("SM1", "Mon, 23 Nov 2026 09:58:00 +0000", json!({})),
    ]);
    let fake = Fake::answering(move |request| {
        let page = |rows: &Value, next| {
            Answer::json(200, &json!({ "messages": rows, "next_page_uri": next }))
        };
        if request.query().contains_key("PageToken") {
            page(&second, Value::Null)
        } else {
            let next = "/2010-04-01/Accounts/AC42/Messages.json?PageToken=PA1";
            page(&first, json!(next))
        }
    })
    .await;
    let twilio = twilio(&fake, "").provider;
    let found = Lookup::Found(vec!["SM2".to_owned(), "SM3".to_owned()]);
    assert_eq!(twilio.lookup(&sms(), NOW).await, found);
    let credentials = |request: &crate::fake::Request| !request.header("authorization").is_empty();
    assert!(fake.requests().iter().all(credentials));

    for (what, answer) in [
        ("an error", Answer::new(500)),
        ("no list", Answer::new(200).body("<html>")),
        ("no answer", Answer::cut(Cut::AfterReading)),
    ] {
        fake.script([answer]);
        let lookup = twilio.lookup(&sms(), NOW).await;
        assert!(matches!(lookup, Lookup::Inconclusive { .. }), "{what}: {lookup:?}");
    }
}

// ---- WhatsApp ----

fn whatsapp_cloud(fake: &Fake, more: &str) -> Entry {
    let toml = format!(
        "name = 'wa'\nkind = 'whatsapp-cloud'\nbase_url = '{}'\nphone_number_id = '1066'\n\
         access_token = '{SECRET}'\ntimeout = '1s'\n{more}",
        fake.url()
    );
    entry(&toml, &shared())
}

const TEMPLATE: &str =
    "template = { name = 'alert', language = 'en', parameters = ['{severity}', '{rule}: {text}'] }";

fn meta_error(status: u16, code: u32) -> Answer {
    let error = json!({
        "message": format!("(#{code}) bad token {SECRET}"),
        "type": "OAuthException", "code": code, "fbtrace_id": "x",
        "error_data": { "messaging_product": "whatsapp", "details": format!("to {NUMBER}") },
    });
    Answer::json(status, &json!({ "error": error }))
}

fn wamid() -> Answer {
    let body = json!({
        "messaging_product": "whatsapp",
        "contacts": [{ "input": NUMBER, "wa_id": &NUMBER[1..] }],
        "messages": [{ "id": "wamid.1", "message_status": "accepted" }],
    });
    Answer::json(200, &body)
}

#[tokio::test]
async fn whatsapp_goes_as_text_or_as_a_template() {
    let fake = Fake::answering(|_| wamid()).await;
    let message = whatsapp();
    let base = json!({
        "messaging_product": "whatsapp", "recipient_type": "individual", "to": &NUMBER[1..],
        "biz_opaque_callback_data": message.id,
    });
    let with = |more: Value| {
        let mut body = base.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let text = with(json!({
        "type": "text",
        "text": { "body": "Kiel freezer 1: -3.2 °C\nfor 5 min & more", "preview_url": false },
    }));
    let template = |name: &str, parameters: &[&str]| {
        let parameters: Vec<Value> =
            parameters.iter().map(|text| json!({ "type": "text", "text": text })).collect();
        with(json!({ "type": "template", "template": {
            "name": name, "language": { "policy": "deterministic", "code": "en" },
            "components": [{ "type": "body", "parameters": parameters }],
        }}))
    };
    let filled = ["critical", "freezer-warm: Kiel freezer 1: -3.2 °C for 5 min & more"];

    let plain = whatsapp_cloud(&fake, "");
    assert_eq!(words(&plain.provider.send(&message).await), "accepted wamid.1");
    let request = fake.only();
    assert_eq!((request.method.as_str(), request.path()), ("POST", "/v23.0/1066/messages"));
    assert_eq!(request.header("authorization"), format!("Bearer {SECRET}"));
    assert_eq!(request.json(), text);

    let templated = whatsapp_cloud(&fake, TEMPLATE);
    assert_eq!(words(&templated.provider.send(&message).await), "accepted wamid.1");
    assert_eq!(fake.requests()[1].json(), template("alert", &filled));

    let mut own = message.clone();
    own.content.template = Some(Template {
        name: "mine".to_owned(),
        language: "en".to_owned(),
        parameters: vec!["{text}\tas it is".to_owned()],
    });
    assert_eq!(words(&templated.provider.send(&own).await), "accepted wamid.1");
    assert_eq!(fake.requests()[2].json(), template("mine", &["{text} as it is"]));

    let first = whatsapp_cloud(&fake, &format!("text_first = true\n{TEMPLATE}"));
    fake.script([meta_error(400, 131_047)]);
    assert_eq!(words(&first.provider.send(&message).await), "accepted wamid.1");
    assert_eq!(fake.requests()[3].json(), text);
    assert_eq!(fake.requests()[4].json(), template("alert", &filled));
    fake.script([meta_error(400, 131_047), meta_error(400, 131_026)]);
    let outcome = first.provider.send(&message).await;
    assert_eq!(words(&outcome), "rejected recipient bad_recipient");
}

#[tokio::test]
async fn whatsapp_error_table() {
    let fake = Fake::start().await;
    let whatsapp_cloud = whatsapp_cloud(&fake, "");
    let code = |code| meta_error(400, code);
    let subcode = json!({ "error": { "code": 100, "error_subcode": 33, "message": "no object" } });
    let lines = [
        ("auth", code(0), "rejected lane bad_credentials"),
        ("unknown", code(1), "retry lane provider_unavailable"),
        ("service", code(2), "retry lane provider_unavailable"),
        ("capability", code(3), "rejected lane provider_refused"),
        ("app limit", code(4), "retry lane throttled"),
        ("permission", code(10), "rejected lane provider_refused"),
        ("number deleted", code(33), "rejected lane provider_refused"),
        ("parameter", code(100), "rejected content content_refused"),
        ("wrong phone_number_id", Answer::json(400, &subcode), "rejected lane provider_refused"),
        ("token", meta_error(401, 190), "rejected lane bad_credentials"),
        ("permission 200", code(200), "rejected lane provider_refused"),
        ("permission 299", code(299), "rejected lane provider_refused"),
        ("policy", code(368), "rejected lane provider_refused"),
        ("WABA limit", code(80007), "retry lane throttled"),
        ("throughput", code(130_429), "retry lane throttled"),
        ("experiment", code(130_472), "rejected recipient unreachable"),
        ("unknown", code(131_000), "retry lane provider_unavailable"),
        ("missing", code(131_008), "rejected content content_refused"),
        ("value", code(131_009), "rejected content content_refused"),
        ("service", code(131_016), "retry lane provider_unavailable"),
        ("itself", code(131_021), "rejected recipient bad_recipient"),
        ("not on WhatsApp", code(131_026), "rejected recipient bad_recipient"),
        ("test list", code(131_030), "rejected recipient bad_recipient"),
        ("locked", code(131_031), "rejected lane provider_refused"),
        ("payment", code(131_042), "rejected lane no_credit"),
        ("registration", code(131_045), "rejected lane provider_refused"),
        ("window", code(131_047), "rejected recipient window_closed"),
        ("spam limit", code(131_048), "retry lane throttled 3600s"),
        ("ecosystem", code(131_049), "rejected recipient unreachable"),
        ("stopped", code(131_050), "rejected recipient opted_out"),
        ("type", code(131_051), "rejected content content_refused"),
        ("media down", code(131_052), "rejected content content_refused"),
        ("media up", code(131_053), "rejected content content_refused"),
        // The second try: 4^2 seconds.
        ("pair limit", code(131_056), "retry message throttled 16s"),
        ("maintenance", code(131_057), "retry lane provider_unavailable"),
        ("parameter count", code(132_000), "rejected content content_refused"),
        ("no template", code(132_001), "rejected content content_refused"),
        ("too long", code(132_005), "rejected content content_refused"),
        ("template policy", code(132_007), "rejected content content_refused"),
        ("template format", code(132_012), "rejected content content_refused"),
        ("template paused", code(132_015), "rejected content content_refused"),
        ("template disabled", code(132_016), "rejected content content_refused"),
        ("flow", code(132_068), "rejected content content_refused"),
        ("flow", code(132_069), "rejected content content_refused"),
        ("service", code(133_004), "retry lane provider_unavailable"),
        ("unregistered", code(133_010), "rejected lane provider_refused"),
        ("registering", code(133_016), "retry lane throttled"),
        (
            "the code and not the status",
            meta_error(500, 131_026),
            "rejected recipient bad_recipient",
        ),
        ("an error in a 200", meta_error(200, 131_026), "rejected recipient bad_recipient"),
        ("a code of tomorrow", code(139_999), "rejected content content_refused"),
        ("a code of tomorrow, 500", meta_error(500, 139_999), "retry lane provider_unavailable"),
        ("no code", Answer::new(503), "retry lane provider_unavailable"),
        ("not Meta", Answer::new(200).body("<html>"), "unknown"),
        ("no id", Answer::json(200, &json!({})), "unknown"),
    ];
    check(&whatsapp_cloud, &fake, &whatsapp(), &lines).await;
}

#[tokio::test]
async fn a_broken_template_of_the_configuration_stops_the_lane() {
    let fake = Fake::start().await;
    let whatsapp_cloud = whatsapp_cloud(&fake, TEMPLATE);
    let lane = "rejected lane provider_refused";
    let lines = [132_000, 132_001, 132_007, 132_015, 132_016]
        .map(|code| ("template", meta_error(400, code), lane));
    check(&whatsapp_cloud, &fake, &whatsapp(), &lines).await;
    // One that a message brings is the message's own.
    let mut own = whatsapp();
    own.content.template = Some(Template {
        name: "mine".to_owned(),
        language: "en".to_owned(),
        parameters: Vec::new(),
    });
    let line = ("own", meta_error(400, 132_001), "rejected content content_refused");
    check(&whatsapp_cloud, &fake, &own, &[line]).await;
    let sent = fake.requests().pop().unwrap().json();
    assert!(sent["template"].get("components").is_none(), "{sent}");
}

#[tokio::test]
async fn whatsapp_when_the_wire_breaks() {
    let fake = Fake::start().await;
    let lane = "retry lane connect_failed";
    check_cuts(&whatsapp_cloud(&fake, ""), &fake, &whatsapp(), wamid(), lane).await;
}

// ---- FCM ----

struct Firebase {
    /// Both the token endpoint and FCM.
    fake: Fake,
    shared: Shared,
    entry: Entry,
    public_key: Vec<u8>,
}

fn fcm_name() -> Answer {
    Answer::json(200, &json!({ "name": "projects/bell-1/messages/7" }))
}

async fn firebase() -> Firebase {
    let fake = Fake::answering(|request| match request.path() {
        "/token" => Answer::json(
            200,
            &json!({ "access_token": SECRET, "expires_in": 3599, "token_type": "Bearer" }),
        ),
        _ => fcm_name(),
    })
    .await;
    let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    let label = ["PRIVATE", "KEY"].join(" ");
    let pem = STANDARD.encode(der.as_ref());
    let account = json!({
        "type": "service_account", "project_id": "bell-1", "private_key_id": "kid-1",
        "private_key": format!("-----BEGIN {label}-----\n{pem}\n-----END {label}-----\n"),
        "client_email": "bell@bell-1.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    });
    let mut table = toml::Table::new();
    for (name, value) in [
        ("name", "fcm"),
        ("kind", "fcm"),
        ("timeout", "1s"),
        ("base_url", &fake.url()),
        ("token_url", &format!("{}/token", fake.url())),
        ("service_account", &account.to_string()),
    ] {
        table.insert(name.to_owned(), value.into());
    }
    let shared = shared();
    Firebase {
        entry: read(&table, &shared).unwrap(),
        fake,
        shared,
        public_key: key.public_key().as_ref().to_vec(),
    }
}

impl Firebase {
    fn count(&self, path: &str) -> usize {
        self.fake.requests().iter().filter(|request| request.path() == path).count()
    }

    async fn send(&self) -> String {
        words(&self.entry.provider.send(&push()).await)
    }

    /// Each answer alone, after a token is there.
    async fn check(&self, message: &Message, lines: &[(&str, Answer, &str)]) {
        assert!(self.send().await.starts_with("accepted"));
        check(&self.entry, &self.fake, message, lines).await;
    }
}

const SEND: &str = "/v1/projects/bell-1/messages:send";

#[tokio::test]
async fn fcm_is_sent_what_its_contract_says() {
    let firebase = firebase().await;
    assert_eq!(firebase.send().await, "accepted projects/bell-1/messages/7");
    let requests = firebase.fake.requests();
    let [token, send] = requests.as_slice() else { panic!("{requests:?}") };

    assert_eq!(token.header("content-type"), "application/x-www-form-urlencoded");
    let form = token.form();
    assert_eq!(form["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    rules.set_audience(&["https://oauth2.googleapis.com/token"]);
    rules.validate_exp = false;
    let key = jsonwebtoken::DecodingKey::from_rsa_der(&firebase.public_key);
    let assertion = jsonwebtoken::decode::<Value>(&form["assertion"], &key, &rules).unwrap();
    assert_eq!(assertion.header.kid.as_deref(), Some("kid-1"));
    let claims = json!({
        "iss": "bell@bell-1.iam.gserviceaccount.com",
        "scope": "https://www.googleapis.com/auth/firebase.messaging",
        "aud": "https://oauth2.googleapis.com/token",
        "iat": NOW.as_secs(), "exp": NOW.as_secs() + 3600,
    });
    assert_eq!(assertion.claims, claims);

    assert_eq!((send.method.as_str(), send.path()), ("POST", SEND));
    assert_eq!(send.header("authorization"), format!("Bearer {SECRET}"));
    let message = push();
    let expected = json!({ "message": {
        "token": DEVICE,
        "notification": {
            "title": "Freezer warm", "body": "Kiel freezer 1: -3.2 °C\nfor 5 min & more",
        },
        "data": {
            "message_id": message.id, "alert_id": message.alert.as_ref().unwrap().id,
            "rule": "freezer-warm", "key": "kiel/1", "severity": "critical", "state": "firing",
        },
        "android": { "priority": "HIGH", "ttl": "3600s" },
        "apns": {
            "headers": {
                "apns-priority": "10", "apns-expiration": (NOW.as_secs() + 3600).to_string(),
            },
            "payload": { "aps": { "sound": "default" } },
        },
    }});
    assert_eq!(send.json(), expected);
}

#[tokio::test]
async fn fcm_knows_topics_and_quiet_messages() {
    let firebase = firebase().await;
    let mut message = message(Channel::Push, Address::Token("topic:cold-store".into()));
    message.severity = Severity::Info;
    message.alert = None;
    message.expires_at = NOW.plus(Duration::from_secs(100 * 86_400));
    message.content.text = "x".repeat(5000).into();
    firebase.entry.provider.send(&message).await;
    let sent = firebase.fake.requests().pop().unwrap().json()["message"].clone();
    assert_eq!(sent["topic"], "cold-store");
    assert!(sent.get("token").is_none());
    assert_eq!(sent["android"], json!({ "priority": "NORMAL", "ttl": "2419200s" }));
    assert_eq!(sent["apns"]["headers"]["apns-priority"], "5");
    assert_eq!(sent["data"].as_object().unwrap().len(), 2);
    let body = sent["notification"]["body"].as_str().unwrap();
    assert!((1800..2048).contains(&body.len()) && body.ends_with('…'), "{}", body.len());
}

#[tokio::test]
async fn fcm_error_table() {
    let firebase = firebase().await;
    let error = |status: u16, code: &str, more: Value| {
        let mut details = vec![
            json!({ "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code }),
        ];
        details.extend(more.as_array().into_iter().flatten().cloned());
        let text = format!("{DEVICE} with {SECRET}");
        let error = json!({ "code": status, "message": text, "details": details });
        Answer::json(status, &json!({ "error": error }))
    };
    let blames = |field: &str| {
        json!([{
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": [{ "field": field, "description": "bad" }],
        }])
    };
    let code = |status, code| error(status, code, json!([]));
    let google = |status: u16, details: Value| {
        let error = json!({ "code": status, "message": SECRET, "status": "X", "details": details });
        Answer::json(status, &json!({ "error": error }))
    };
    let later = |answer: Answer| answer.header("retry-after", "5");
    let invalid = "INVALID_ARGUMENT";
    let lines = [
        ("gone", code(404, "UNREGISTERED"), "rejected recipient recipient_gone"),
        ("other sender", code(403, "SENDER_ID_MISMATCH"), "rejected recipient bad_recipient"),
        ("bad token", code(400, invalid), "rejected recipient bad_recipient"),
        (
            "bad token, by name",
            error(400, invalid, blames("message.token")),
            "rejected recipient bad_recipient",
        ),
        (
            "bad data",
            error(400, invalid, blames("message.data[0].value")),
            "rejected content content_refused",
        ),
        (
            "bad request",
            google(400, blames("message.android.ttl")),
            "rejected content content_refused",
        ),
        ("quota", code(429, "QUOTA_EXCEEDED"), "retry lane throttled 60s"),
        ("quota, asked", later(code(429, "QUOTA_EXCEEDED")), "retry lane throttled 5s"),
        ("down", code(503, "UNAVAILABLE"), "retry lane provider_unavailable 10s"),
        ("down, asked", later(code(503, "UNAVAILABLE")), "retry lane provider_unavailable 5s"),
        ("internal", code(500, "INTERNAL"), "retry lane provider_unavailable"),
        ("APNs key", code(401, "THIRD_PARTY_AUTH_ERROR"), "rejected recipient provider_refused"),
        ("API off", google(403, json!([])), "rejected lane provider_refused"),
        ("no project", google(404, json!([])), "rejected lane provider_refused"),
        ("a code of tomorrow", code(400, "NEW"), "rejected content content_refused"),
        ("a page", Answer::new(502).body("<html>"), "retry lane provider_unavailable"),
        ("not FCM", Answer::new(200).body("<html>"), "unknown"),
    ];
    firebase.check(&push(), &lines).await;
    assert_eq!(firebase.count("/token"), 1, "no answer here asks for a new token");
}

#[tokio::test]
async fn fcm_when_the_wire_breaks() {
    let firebase = firebase().await;
    assert!(firebase.send().await.starts_with("accepted"));
    let lane = "retry lane connect_failed";
    check_cuts(&firebase.entry, &firebase.fake, &push(), fcm_name(), lane).await;
}

#[tokio::test]
async fn many_messages_need_one_token() {
    let firebase = firebase().await;
    let sends = (0..50).map(|_| firebase.send());
    for outcome in futures_util::future::join_all(sends).await {
        assert_eq!(outcome, "accepted projects/bell-1/messages/7");
    }
    assert_eq!((firebase.count("/token"), firebase.count(SEND)), (1, 50));
    assert!(firebase.fake.requests().is_sorted_by_key(|request| request.at));

    // Five minutes before its end it is replaced, and not before.
    firebase.shared.clock.advance(Duration::from_secs(3598 - 300));
    firebase.send().await;
    assert_eq!(firebase.count("/token"), 1);
    firebase.shared.clock.advance(Duration::from_secs(1));
    let sends = (0..50).map(|_| firebase.send());
    futures_util::future::join_all(sends).await;
    assert_eq!(firebase.count("/token"), 2);
}

#[tokio::test]
async fn a_token_that_cannot_be_had_is_asked_for_once_for_all_who_wait() {
    let firebase = firebase().await;
    firebase.fake.respond(|_| Answer::new(500).delay(Duration::from_millis(50)));
    let sends = (0..20).map(|_| firebase.send());
    for outcome in futures_util::future::join_all(sends).await {
        assert_eq!(outcome, "retry lane provider_unavailable");
    }
    assert_eq!((firebase.count("/token"), firebase.count(SEND)), (1, 0));
    // The next message asks again.
    firebase.send().await;
    assert_eq!(firebase.count("/token"), 2);
}

#[tokio::test]
async fn what_the_token_endpoint_says_is_never_unknown() {
    let firebase = firebase().await;
    let denied = |status, error: &str| {
        let text = format!("no {SECRET}");
        Answer::json(status, &json!({ "error": error, "error_description": text }))
    };
    let lines = [
        ("bad grant", denied(400, "invalid_grant"), "rejected lane bad_credentials"),
        ("bad client", denied(401, "invalid_client"), "rejected lane bad_credentials"),
        ("too fast", Answer::new(429).header("retry-after", "9"), "retry lane throttled 9s"),
        ("down", Answer::new(503), "retry lane provider_unavailable"),
        ("no token", Answer::json(200, &json!({})), "retry lane bad_answer"),
        ("cut", Answer::cut(Cut::AfterReading), "retry lane connect_failed"),
        ("silence", Answer::cut(Cut::Never), "retry lane connect_failed"),
    ];
    for (what, answer, expected) in lines {
        firebase.fake.script([answer]);
        let outcome = firebase.entry.provider.send(&push()).await;
        // Its error may repeat anything but what we sent.
        let outcome = match outcome {
            SendOutcome::Rejected { reason, scope, .. } => {
                SendOutcome::Rejected { reason, scope, detail: "x".to_owned() }
            }
            other => other,
        };
        assert_eq!(words(&outcome), expected, "{what}: {outcome:?}");
    }
    assert_eq!(firebase.count(SEND), 0);
}

#[tokio::test]
async fn a_revoked_token_is_replaced_once() {
    let firebase = firebase().await;
    firebase.send().await;
    let plain = || Answer::json(401, &json!({ "error": { "code": 401, "message": "expired" } }));
    let token =
        |text: &str| Answer::json(200, &json!({ "access_token": text, "expires_in": 3599 }));
    firebase.fake.script([plain(), token("second")]);
    assert_eq!(firebase.send().await, "accepted projects/bell-1/messages/7");
    assert_eq!((firebase.count("/token"), firebase.count(SEND)), (2, 3));
    let last = firebase.fake.requests().pop().unwrap();
    assert_eq!(last.header("authorization"), "Bearer second");
    // A second 401 in the same send is the account's fault.
    firebase.fake.script([plain(), token("third"), plain()]);
    assert_eq!(firebase.send().await, "rejected lane bad_credentials");
    assert_eq!(firebase.count("/token"), 3);
}

// ---- Webhooks ----

fn webhook(more: &str) -> Entry {
    let toml =
        format!("name = 'hook'\nkind = 'webhook'\nsecret = '{SIGNING}'\ntimeout = '1s'\n{more}");
    entry(&toml, &shared())
}

const OPEN: &str = "allow_http = true\nallow_private = true";

fn to(url: &str) -> Message {
    message(Channel::Webhook, Address::Url(url.into()))
}

fn hook(fake: &Fake) -> Message {
    to(&format!("{}/in/hook-t0ken?key=hook-t0ken", fake.url()))
}

#[tokio::test]
async fn a_webhook_is_signed_and_says_the_same_in_every_try() {
    let fake = Fake::start().await;
    let shared = shared();
    let toml = format!(
        "name = 'hook'\nkind = 'webhook'\nsecret = '{SIGNING}'\nsecret_old = '{SIGNING_OLD}'\n{OPEN}"
    );
    let webhook = entry(&toml, &shared);
    let message = hook(&fake);
    assert_eq!(words(&webhook.provider.send(&message).await), "accepted delivered");
    shared.clock.advance(Duration::from_secs(30));
    assert_eq!(words(&webhook.provider.send(&message).await), "accepted delivered");
    assert_eq!(fake.distinct_bodies(), 1);

    let requests = fake.requests();
    for (request, timestamp) in requests.iter().zip([NOW.as_secs(), NOW.as_secs() + 30]) {
        assert_eq!(request.target, "/in/hook-t0ken?key=hook-t0ken");
        assert_eq!(request.header("content-type"), "application/json");
        assert_eq!(request.header("webhook-id"), message.id.to_string());
        assert_eq!(request.header("webhook-timestamp"), timestamp.to_string());
        let signed = format!("{}.{timestamp}.{}", message.id, request.text());
        let signatures = [SIGNING, SIGNING_OLD].map(|secret| {
            let secret = STANDARD.decode(secret.trim_start_matches("whsec_")).unwrap();
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &secret);
            let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
            format!("v1,{}", STANDARD.encode(tag))
        });
        assert_eq!(request.header("webhook-signature"), signatures.join(" "));
    }
    let body = json!({
        "type": "watchbell.alert.firing",
        "timestamp": "2026-11-23T10:00:00.000Z",
        "data": {
            "message_id": message.id, "severity": "critical", "title": "Freezer warm",
            "text": "Kiel freezer 1: -3.2 °C\nfor 5 min & more", "contact": "ana",
            "alert": {
                "id": message.alert.as_ref().unwrap().id, "rule": "freezer-warm",
                "key": "kiel/1", "state": "firing", "topic": "site/kiel/freezer/1",
            },
        },
    });
    assert_eq!(requests[0].json(), body);

    let mut cleared = message.clone();
    cleared.alert.as_mut().unwrap().state = AlertState::Cleared;
    webhook.provider.send(&cleared).await;
    let mut bare = message;
    (bare.alert, bare.contact, bare.content.title) = (None, None, None);
    webhook.provider.send(&bare).await;
    let requests = fake.requests();
    assert_eq!(requests[2].json()["type"], "watchbell.alert.cleared");
    let bare = requests[3].json();
    assert_eq!(bare["type"], "watchbell.message");
    assert_eq!(bare["data"].as_object().unwrap().len(), 3, "{bare}");
}

#[tokio::test]
async fn webhook_statuses() {
    let fake = Fake::start().await;
    let status = |status| Answer::new(status).body("hook-t0ken is bad");
    let later = |answer: Answer| answer.header("retry-after", "9");
    let lines = [
        ("ok", status(200), "accepted delivered"),
        ("accepted", status(202), "accepted delivered"),
        ("no content", Answer::new(204), "accepted delivered"),
        ("moved", status(301).header("location", "/"), "retry message bad_answer"),
        ("bad request", status(400), "retry message bad_answer"),
        ("not known", status(404), "retry message bad_answer"),
        ("gone", status(410), "rejected recipient recipient_gone"),
        ("too fast", later(status(429)), "retry message throttled 9s"),
        ("down", status(500), "retry message provider_unavailable"),
        ("bad gateway", status(502), "retry message provider_unavailable"),
        ("busy", later(status(503)), "retry message provider_unavailable 9s"),
        ("slow", status(504), "retry message provider_unavailable"),
    ];
    check(&webhook(OPEN), &fake, &hook(&fake), &lines).await;
    assert_eq!(fake.count(), lines.len(), "no redirect is followed");
}

#[tokio::test]
async fn webhook_when_the_wire_breaks() {
    let fake = Fake::start().await;
    let message = hook(&fake);
    let nowhere = "retry message connect_failed";
    check_cuts(&webhook(OPEN), &fake, &message, Answer::json(200, &json!({})), nowhere).await;
}

#[tokio::test]
async fn a_webhook_does_not_reach_inside() {
    let fake = Fake::start().await;
    let port = fake.url().rsplit(':').next().unwrap().to_owned();
    let refused = "rejected recipient bad_recipient";
    for (config, url, why) in [
        ("", "http://example.org/", "allow_http"),
        ("", "ftp://example.org/", "https"),
        ("", "no url at all", "not a URL"),
        ("", "https://127.0.0.1:PORT/", "allow_private"),
        ("", "https://127.1:PORT/", "allow_private"),
        ("", "https://2130706433:PORT/", "allow_private"),
        ("", "https://0x7f000001:PORT/", "allow_private"),
        ("", "https://[::1]:PORT/", "allow_private"),
        ("", "https://[::ffff:127.0.0.1]:PORT/", "allow_private"),
        ("", "https://169.254.169.254/latest/meta-data", "allow_private"),
        ("", "https://10.0.0.1/", "allow_private"),
        ("", "https://localhost:PORT/", "allow_private"),
        ("allow_http = true", "http://localhost:PORT/", "allow_private"),
        ("allow_private = true", "http://localhost:PORT/", "allow_http"),
    ] {
        let outcome = webhook(config).provider.send(&to(&url.replace("PORT", &port))).await;
        assert_eq!(words(&outcome), refused, "{url}: {outcome:?}");
        assert!(detail(&outcome).contains(why), "{url}: {outcome:?}");
    }
    assert_eq!(fake.count(), 0);
    let outcome = webhook(OPEN).provider.send(&to(&format!("http://localhost:{port}/"))).await;
    assert_eq!(words(&outcome), "accepted delivered");
}

// ---- The virtual phone ----

#[tokio::test]
async fn the_phone_shows_each_message_once() {
    let shared = shared();
    let phone = entry("name = 'phone'\nkind = 'phone'", &shared);
    assert_eq!(phone.channels, Channel::ALL);
    let mut live = shared.screen.subscribe();
    let mut messages = [sms(), whatsapp(), push(), to("https://hook.example.org/hook-t0ken")];
    let mut ids = IdSource::new(9);
    for message in &mut messages {
        message.id = MessageId::new(ids.next(NOW));
        message.segments = Some(Segments { encoding: SmsEncoding::Gsm7, count: 1, units: 9 });
        assert_eq!(words(&phone.provider.send(message).await), "accepted delivered");
    }
    // The screen holds three; the second is shown again.
    phone.provider.send(&messages[1]).await;
    let shown: Vec<_> = shared.screen.recent().iter().map(|shown| shown.id).collect();
    assert_eq!(shown, [messages[2].id, messages[3].id, messages[1].id]);
    let first = live.recv().await.unwrap();
    assert_eq!((first.id, first.address.as_str()), (messages[0].id, "+49…678"));
    let json = serde_json::to_value(&*first).unwrap();
    assert_eq!(json["channel"], "sms");
    assert_eq!(json["alert"]["rule"], "freezer-warm");
    let whole = serde_json::to_string(&shared.screen.recent()).unwrap();
    assert!(!whole.contains(NUMBER) && !whole.contains("hook-t0ken"), "{whole}");
}

#[tokio::test]
async fn an_address_of_another_channel_is_refused_without_a_call() {
    let fake = Fake::start().await;
    let refused = "rejected recipient bad_recipient";
    let firebase = firebase().await;
    for (entry, wrong) in [
        (&twilio(&fake, ""), push()),
        (&whatsapp_cloud(&fake, ""), push()),
        (&firebase.entry, sms()),
        (&webhook(OPEN), sms()),
    ] {
        assert_eq!(words(&entry.provider.send(&wrong).await), refused);
    }
    assert_eq!(fake.count() + firebase.fake.count(), 0);
}

// ---- Configuration ----

#[test]
fn every_problem_of_a_table_is_told_at_once() {
    let found = faults(
        "name = 'Main!'\nkind = 'twilio'\nchannels = ['sms', 'whatsapp']\nacount_sid = 'AC1'\n\
         auth_token = { env = 'WATCHBELL_NO_SUCH' }\nfrom = 'much too long a name'\n\
         rate = '1/fortnight'\nconcurrency = 0\ntimeout = '1h'\nbase_url = 'ftp://x'",
    );
    for expected in [
        "name: 1 to 64 of a-z, 0-9, - and _",
        "channels: `twilio` serves sms, not whatsapp; for whatsapp there are whatsapp-cloud, phone",
        "acount_sid: unknown key; did you mean `account_sid`?",
        "account_sid: is missing",
        "auth_token: environment variable WATCHBELL_NO_SUCH is not set; set it, or name another \
         source",
        "from: not a sender; write a number as +15005550006, a short code, or a name of up to 11 \
         letters and digits",
        "rate: `1/fortnight` is not a rate; write calls and a unit of time, as in 1/s, 300/m or \
         1000/h (1 to 1000000)",
        "concurrency: 1 to 1000, found 0",
        "timeout: 1s to 2m, found 1h",
        "base_url: not a URL as https://api.example.org, without query and credentials",
    ] {
        assert!(found.iter().any(|line| line == expected), "{expected}\n{found:#?}");
    }
    assert_eq!(found.len(), 10, "{found:#?}");
}

#[test]
fn a_table_is_refused_for_its_reason() {
    let twilio = "name = 't'\nkind = 'twilio'\naccount_sid = 'AC1'\nfrom = '+15005550006'\n";
    let meta = "name = 'w'\nkind = 'whatsapp-cloud'\nphone_number_id = '1'\naccess_token = 'x'\n";
    let hook = format!("name = 'h'\nkind = 'webhook'\nsecret = '{SIGNING}'\n");
    for (toml, expected) in [
        (
            String::new(),
            "kind: is missing; known kinds are twilio, whatsapp-cloud, fcm, webhook, phone",
        ),
        ("kind = 'twillio'".to_owned(), "kind: unknown kind `twillio`; did you mean `twilio`?"),
        ("kind = 'phone'".to_owned(), "name: is missing"),
        (
            "name = 'p'\nkind = 'phone'\nbase_url = 'http://x'".to_owned(),
            "base_url: makes no sense for kind `phone`; remove it",
        ),
        (
            "name = 'p'\nkind = 'phone'\nchannels = []".to_owned(),
            "channels: is empty; leave it out for all that the kind can serve",
        ),
        (twilio.to_owned(), "auth_token: is missing"),
        (
            format!("{twilio}auth_token = 'x'\napi_key_sid = 'SK'"),
            "auth_token: stands beside an API key; keep one of the two",
        ),
        (format!("{twilio}api_key_sid = 'SK'"), "api_key_secret: is missing"),
        (
            format!("{twilio}auth_token = 'x'\nmessaging_service_sid = 'MG1'"),
            "from: stands beside messaging_service_sid; keep one of the two",
        ),
        (
            format!("{twilio}auth_token = 'x'\nstatus_callback = 'https://a_b.example.org/'"),
            "status_callback: Twilio refuses a host with an underscore",
        ),
        (
            format!("{twilio}auth_token = 'x'\nbase_url = 'http://10.0.0.1'"),
            "base_url: plain http to another machine shows credentials and messages to everyone on the way; use https, or set allow_http = true",
        ),
        (
            format!("{meta}text_first = true"),
            "text_first: has no template to fall back on; set template too",
        ),
        (
            format!("{meta}template = {{ name = 'a', language = 'en', parameters = ['{{txt}}'] }}"),
            "template: unknown placeholder {txt}; known are text, title, severity, rule, key, state",
        ),
        (format!("{meta}api_version = '23'"), "api_version: not a version; write v23.0"),
        (
            "name = 'h'\nkind = 'webhook'\nsecret = 'x'".to_owned(),
            "secret: not a signing secret; it is whsec_ and the base64 of 24 to 64 random bytes: echo whsec_$(openssl rand -base64 32)",
        ),
        (
            format!("{hook}base_url = 'https://x'"),
            "base_url: makes no sense for kind `webhook`; remove it",
        ),
        (
            format!("{hook}proxy = 'http://p:1'"),
            "proxy: behind a proxy nobody here can tell private addresses; set allow_private = true if the proxy can",
        ),
        (
            "name = 'f'\nkind = 'fcm'\nservice_account = '{}'".to_owned(),
            "service_account: not a service account's JSON key (line 1, column 2); download a new key in the Firebase console (project settings, service accounts), and name it as { file = \"...\" }",
        ),
    ] {
        assert_eq!(faults(&toml), [expected], "{toml}");
    }
}

#[test]
fn defaults_are_those_of_the_kind() {
    let shared = shared();
    let meta = "name = 'w'\nkind = 'whatsapp-cloud'\nphone_number_id = '1'\naccess_token = 'x'\n";
    let entry_of = |more: &str| entry(&format!("{meta}{more}"), &shared);
    let default = entry_of("");
    let rate = |entry: &Entry| entry.rate.map(|rate| rate.to_string());
    assert_eq!(default.name, Arc::from("w"));
    assert_eq!(default.channels, [Channel::Whatsapp]);
    assert_eq!((rate(&default).as_deref(), default.concurrency), (Some("80/s"), 4));
    let set = entry_of("rate = '300/m'\nconcurrency = 9");
    assert_eq!((rate(&set).as_deref(), set.concurrency), (Some("300/m"), 9));

    let keys = KINDS.iter().find(|kind| kind.name() == "webhook").unwrap().keys();
    let expected = [
        "name",
        "kind",
        "channels",
        "rate",
        "concurrency",
        "timeout",
        "proxy",
        "allow_http",
        "secret",
        "secret_old",
        "allow_private",
    ];
    assert_eq!(keys, expected);
}
