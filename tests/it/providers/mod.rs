//! Each provider against its stand-in: what it sends, and what it makes of every answer.
//!
//! The error tables stand here a second time, as lines of (what, answer, outcome): whoever changes
//! one has to say so twice. Every outcome's words are searched for the secrets and the number,
//! which the stand-ins put into their errors.

mod answers;
mod config;
pub(crate) mod fcm;
mod phone;
mod twilio;
mod webhook;
mod whatsapp;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use watchbell::clock::{Clock, Timestamp};
use watchbell::model::{
    Address, AlertId, AlertRef, AlertState, Channel, Content, IdSource, Message, MessageId,
    Severity, Status, Target, Tells,
};
use watchbell::provider::phone::Screen;
use watchbell::provider::registry::{Entry, Shared, read};
use watchbell::provider::{Lookup, RetryScope, Scope, SendOutcome};
use watchbell::topic::{TopicLimits, TopicName};

use crate::fake::{Answer, Cut, Fake};

/// 2026-11-23T10:00:00Z.
const NOW: Timestamp = Timestamp::from_millis(1_795_428_000_000);
const NUMBER: &str = "+4915112345678";
const DIGITS: &str = "4915112345678";
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
            tells: Tells::Alert,
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
        left_out: None,
        fallback_after: None,
        fallback: None,
        provider: None,
        extended: false,
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
        | SendOutcome::Unknown { detail, .. } => detail,
    };
    let basic = STANDARD.encode(format!("AC42:{SECRET}"));
    let signing = SIGNING.trim_start_matches("whsec_");
    for hidden in [NUMBER, DIGITS, SECRET, DEVICE, &basic, signing, "http://", "hook-t0ken"] {
        assert!(!detail.contains(hidden), "{hidden} in: {detail}");
    }
    match outcome {
        SendOutcome::Accepted { provider_ref, segments, delivered, note } => {
            let mut text = "accepted".to_owned();
            text.push_str(if *delivered { " delivered" } else { "" });
            for part in [provider_ref.clone(), segments.map(|count| count.to_string())] {
                text.extend(part.map(|part| format!(" {part}")));
            }
            text.push_str(if note.is_some() { " with a note" } else { "" });
            text
        }
        SendOutcome::Retry { reason, after, scope, detail } => {
            assert!(!detail.is_empty());
            let scope = match scope {
                RetryScope::Provider => "lane",
                RetryScope::Endpoint => "endpoint",
                RetryScope::Message => "message",
                RetryScope::Here => "here",
            };
            let after = after.map_or(String::new(), |after| format!(" {}s", after.as_secs()));
            format!("retry {scope} {reason}{after}")
        }
        SendOutcome::Rejected { reason, scope, detail } => {
            assert!(!detail.is_empty());
            let scope = match scope {
                Scope::Account { sure: true } => "lane",
                Scope::Account { sure: false } => "account",
                Scope::Route => "route",
                Scope::Recipient => "recipient",
                Scope::Content => "content",
            };
            format!("rejected {scope} {reason}")
        }
        SendOutcome::Unknown { detail, answered } => {
            assert!(!detail.is_empty());
            if *answered { "unknown answered" } else { "unknown" }.to_owned()
        }
    }
}

fn detail(outcome: &SendOutcome) -> &str {
    match outcome {
        SendOutcome::Accepted { .. } => "",
        SendOutcome::Retry { detail, .. }
        | SendOutcome::Rejected { detail, .. }
        | SendOutcome::Unknown { detail, .. } => detail,
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

/// For providers that must give up: long enough for a busy machine to get so far.
const HASTY: &str = "timeout = '2s'";

/// What every provider makes of a connection that does not do its part. `good` is its success,
/// and `again` what comes of it; `nowhere` is what comes of a refused connection; `hasty` is the
/// same provider with less time.
async fn check_cuts(
    (entry, hasty): (&Entry, &Entry),
    fake: &Fake,
    message: &Message,
    good: Answer,
    [again, nowhere]: [&str; 2],
) {
    let unanswered = if entry.kind == "webhook" { "retry endpoint no_answer" } else { "unknown" };
    // Where the provider can be asked, it is.
    let unread = match entry.kind {
        "webhook" => "accepted delivered",
        "twilio" => "unknown",
        _ => "unknown answered",
    };
    let lines = [
        ("cut before reading", Answer::cut(Cut::BeforeReading), unanswered),
        ("cut after reading", Answer::cut(Cut::AfterReading), unanswered),
        ("the body is cut", good.clone().but_cut(Cut::InBody), unread),
        ("the body is too long", good.clone().body(vec![b'x'; 70_000]), unread),
    ];
    check(entry, fake, message, &lines).await;
    let lines = [
        ("no answer in time", Answer::cut(Cut::Never), unanswered),
        ("an answer that is late", good.clone().delay(Duration::from_secs(60)), unanswered),
    ];
    check(hasty, fake, message, &lines).await;
    fake.stop().await;
    // By the one that has just given up on its connections: the other may have kept one, and not
    // know yet that it is cut.
    let outcome = hasty.provider.send(message).await;
    assert_eq!(words(&outcome), nowhere, "{outcome:?}");
    assert!(detail(&outcome).contains("refused"), "{outcome:?}");
    fake.restart().await;
    check(hasty, fake, message, &[("back again", good.delay(Duration::ZERO), again)]).await;
}

#[tokio::test]
async fn an_address_of_another_channel_is_refused_without_a_call() {
    let fake = Fake::start().await;
    let refused = "rejected recipient bad_recipient";
    let firebase = fcm::firebase().await;
    for (entry, wrong) in [
        (&twilio::twilio(&fake, ""), push()),
        (&whatsapp::whatsapp_cloud(&fake, ""), push()),
        (&firebase.entry, sms()),
        (&webhook::webhook(webhook::OPEN), sms()),
    ] {
        assert_eq!(words(&entry.provider.send(&wrong).await), refused);
    }
    assert_eq!(fake.count() + firebase.fake.count(), 0);
}
