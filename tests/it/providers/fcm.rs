//! FCM: its message, its errors, and one token for all.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use watchbell::model::Severity;

use super::*;

pub(super) struct Firebase {
    /// Both the token endpoint and FCM.
    pub(super) fake: Fake,
    shared: Shared,
    pub(super) entry: Entry,
    /// The same with less time.
    hasty: Entry,
    public_key: Vec<u8>,
}

fn fcm_name() -> Answer {
    Answer::json(200, &json!({ "name": "projects/bell-1/messages/7" }))
}

/// A service account as the Firebase console gives it, and its key.
pub(crate) fn service_account() -> (KeyPair, Value) {
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
    (key, account)
}

pub(super) async fn firebase() -> Firebase {
    let fake = Fake::answering(|request| match request.path() {
        "/token" => Answer::json(
            200,
            &json!({ "access_token": SECRET, "expires_in": 3599, "token_type": "Bearer" }),
        ),
        _ => fcm_name(),
    })
    .await;
    let (key, account) = service_account();
    let mut table = toml::Table::new();
    for (name, value) in [
        ("name", "fcm"),
        ("kind", "fcm"),
        ("base_url", &fake.url()),
        ("token_url", &format!("{}/token", fake.url())),
        ("service_account", &account.to_string()),
    ] {
        table.insert(name.to_owned(), value.into());
    }
    let shared = shared();
    let entry = read(&table, &shared).unwrap();
    table.insert("timeout".to_owned(), "2s".into());
    Firebase {
        entry,
        hasty: read(&table, &shared).unwrap(),
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
        ("quota", code(429, "QUOTA_EXCEEDED"), "retry endpoint throttled 60s"),
        ("quota, asked", later(code(429, "QUOTA_EXCEEDED")), "retry lane throttled 5s"),
        ("down", code(503, "UNAVAILABLE"), "retry lane provider_unavailable 10s"),
        ("down, asked", later(code(503, "UNAVAILABLE")), "retry lane provider_unavailable 5s"),
        ("internal", code(500, "INTERNAL"), "retry lane provider_unavailable"),
        ("APNs key", code(401, "THIRD_PARTY_AUTH_ERROR"), "rejected recipient provider_refused"),
        ("API off", google(403, json!([])), "rejected lane provider_refused"),
        ("no project", google(404, json!([])), "rejected lane provider_refused"),
        ("a code of tomorrow", code(400, "NEW"), "rejected account provider_refused"),
        ("a page", Answer::new(502).body("<html>"), "retry lane provider_unavailable"),
        ("not FCM", Answer::new(200).body("<html>"), "unknown answered"),
    ];
    firebase.check(&push(), &lines).await;
    assert_eq!(firebase.count("/token"), 1, "no answer here asks for a new token");
}

#[tokio::test]
async fn fcm_when_the_wire_breaks() {
    let firebase = firebase().await;
    for entry in [&firebase.entry, &firebase.hasty] {
        let outcome = entry.provider.send(&push()).await;
        assert_eq!(words(&outcome), "accepted projects/bell-1/messages/7");
    }
    let words = ["accepted projects/bell-1/messages/7", "retry lane connect_failed"];
    check_cuts((&firebase.entry, &firebase.hasty), &firebase.fake, &push(), fcm_name(), words)
        .await;
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
        Answer::json(status, &json!({ "error": error, "error_description": "Invalid JWT." }))
    };
    let lines = [
        ("bad grant", denied(400, "invalid_grant"), "rejected lane bad_credentials"),
        ("bad client", denied(401, "invalid_client"), "rejected lane bad_credentials"),
        ("too fast", Answer::new(429).header("retry-after", "9"), "retry lane throttled 9s"),
        ("down", Answer::new(503), "retry lane provider_unavailable"),
        ("no token", Answer::json(200, &json!({})), "retry lane bad_answer"),
        ("cut", Answer::cut(Cut::AfterReading), "retry lane connect_failed"),
    ];
    check(&firebase.entry, &firebase.fake, &push(), &lines).await;
    let silence = ("silence", Answer::cut(Cut::Never), "retry lane connect_failed");
    check(&firebase.hasty, &firebase.fake, &push(), &[silence]).await;
    // It repeats the assertion, with which anyone could get a token.
    firebase.fake.respond(|request| Answer::new(400).body(request.form()["assertion"].clone()));
    let outcome = firebase.entry.provider.send(&push()).await;
    assert_eq!(words(&outcome), "retry lane bad_answer");
    assert_eq!(detail(&outcome), "no access token: HTTP 400: ***");
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
