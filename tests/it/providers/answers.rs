//! The errors of Twilio, Meta and Firebase as their documentation has them, each with what should
//! follow: `answers/*.json`, written by hand and kept beside this file as they came. Every row is
//! sent as an answer, and its `should` is translated here into the outcome, phrase by phrase, so that
//! a row with a new phrase fails until somebody says what it means.

use super::*;
use crate::providers::{fcm::firebase, twilio::twilio, whatsapp::whatsapp_cloud};

fn rows(json: &str, table: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(json).unwrap();
    file[table].as_array().unwrap().clone()
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

fn answer(row: &Value) -> Answer {
    let status = u16::try_from(row["status"].as_u64().unwrap()).unwrap();
    let mut answer = Answer::new(status).body(text(row, "body"));
    let kind = row["content-type"].as_str().unwrap_or("application/json");
    answer = answer.header("content-type", kind);
    for (name, value) in row["headers"].as_object().into_iter().flatten() {
        answer = answer.header(name, value.as_str().unwrap());
    }
    answer
}

/// What begins the outcome's words. Where two codes share a phrase, the reason may differ.
fn expected(should: &str) -> &'static str {
    match should {
        "stop"
        | "stop (from missing)"
        | "stop (status_callback of the configuration)"
        | "stop (path, api_version)"
        | "stop (proxy)"
        | "stop: From is not of this account"
        | "stop: From cannot SMS"
        | "stop: service has no sender"
        | "stop: account not active"
        | "stop: display name not approved"
        | "stop; next channel now for critical"
        | "stop if configured template"
        | "stop the lane"
        | "project unknown: stop the lane"
        | "one new token, then stop the lane"
        | "clock is off: stop the lane, say so"
        | "key revoked: stop the lane" => "rejected lane ",
        "no credit: stop (pywa: BusinessPaymentIssue)" => "rejected lane no_credit",
        "retry lane" | "retry" | "is_transient true: retry; else next channel" => "retry lane ",
        "retry from 10 s" => "retry lane provider_unavailable 10s",
        "pause lane 3 s" => "retry lane provider_unavailable 3s",
        "pause lane 40 s" => "retry lane throttled 40s",
        "pause lane (rate limit)" => "retry lane throttled 60s",
        "pause lane (messaging limit)" | "pause lane; next channel now for critical" => {
            "retry lane throttled 3600s"
        }
        "not the provider: retry, not content" => "retry lane bad_answer",
        "this message only" => "retry endpoint throttled",
        "this message only, 60 s (quota of one device or topic must not stop the lane)" => {
            "retry endpoint throttled 60s"
        }
        "recipient" | "RECIPIENT (country restricted)" | "recipient (BSUID not supported here)" => {
            "rejected recipient bad_recipient"
        }
        "recipient (iOS/web); alarm the operator" => "rejected recipient provider_refused",
        "recipient gone: forget the token" => "rejected recipient recipient_gone",
        "recipient, opted out" | "opted out" => "rejected recipient opted_out",
        "template, else next channel" => "rejected recipient window_closed",
        "next channel" => "rejected r",
        "other provider, then recipient" | "other provider" => "rejected route ",
        "stop for this From+country: other provider first"
        | "unknown code: other provider first; count it; warn"
        | "other provider; stop only after several different recipients"
        | "other provider; stop and alarm after several different recipients"
        // With the configured template, and no parameter name in the details.
        | "stop if configured template and details speak of a parameter name" => {
            "rejected account provider_refused"
        }
        "content"
        | "content: shorten once"
        | "content (our fault): keep the token"
        | "content, NOT the recipient (product says bad_recipient today)" => {
            "rejected content content_refused"
        }
        "sent, with a note" => "accepted wamid.x with a note",
        "template paused: not on its way" => "rejected lane provider_refused",
        "" => "accepted wamid.x",
        other => panic!("say what this means: {other}"),
    }
}

async fn check_rows(entry: &Entry, fake: &Fake, message: &Message, rows: &[Value]) {
    assert!(!rows.is_empty());
    for row in rows {
        // Twice, for those that are tried once more within one send.
        fake.respond({
            let answer = answer(row);
            move |_| answer.clone()
        });
        let outcome = words(&entry.provider.send(message).await);
        assert!(outcome.starts_with(expected(&text(row, "should"))), "{row}: {outcome}");
    }
}

#[tokio::test]
async fn twilio_answers_have_the_verdicts_of_its_documentation() {
    let fake = Fake::start().await;
    let json = include_str!("answers/twilio.json");
    for table in ["answers", "other"] {
        check_rows(&twilio(&fake, ""), &fake, &sms(), &rows(json, table)).await;
    }
}

#[tokio::test]
async fn meta_answers_have_the_verdicts_of_its_documentation() {
    let fake = Fake::start().await;
    let json = include_str!("answers/meta.json");
    let entry = whatsapp_cloud(&fake, "template = { name = 'a', language = 'en' }");
    for table in ["answers", "accepted"] {
        check_rows(&entry, &fake, &whatsapp(), &rows(json, table)).await;
    }
}

#[tokio::test]
async fn firebase_answers_have_the_verdicts_of_its_documentation() {
    let json = include_str!("answers/fcm.json");
    for row in rows(json, "errors") {
        let firebase = firebase().await;
        let answer = answer(&row);
        let token = json!({ "access_token": SECRET, "expires_in": 3599 });
        firebase.fake.respond(move |request| match request.path() {
            "/token" => Answer::json(200, &token),
            _ => answer.clone(),
        });
        let outcome = words(&firebase.entry.provider.send(&push()).await);
        assert!(outcome.starts_with(expected(&text(&row, "should"))), "{row}: {outcome}");
    }
    for row in rows(json, "token_errors") {
        let firebase = firebase().await;
        let answer = answer(&row);
        firebase.fake.respond(move |_| answer.clone());
        let outcome = firebase.entry.provider.send(&push()).await;
        let should = text(&row, "should");
        assert!(words(&outcome).starts_with(expected(&should)), "{row}: {outcome:?}");
        assert_eq!(detail(&outcome).contains("clock"), should.contains("clock"), "{outcome:?}");
    }
}
