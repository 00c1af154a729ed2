//! Webhooks: signature, statuses, and where they do not go.

use super::*;

pub(super) fn webhook(more: &str) -> Entry {
    let toml = format!("name = 'hook'\nkind = 'webhook'\nsecret = '{SIGNING}'\n{more}");
    entry(&toml, &shared())
}

pub(super) const OPEN: &str = "allow_http = true\nallow_private = true";

pub(super) fn to(url: &str) -> Message {
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
        ("the proxy's", status(407), "rejected lane bad_credentials"),
        ("gone", status(410), "rejected recipient recipient_gone"),
        ("too fast", later(status(429)), "retry endpoint throttled 9s"),
        ("down", status(500), "retry endpoint provider_unavailable"),
        ("bad gateway", status(502), "retry endpoint provider_unavailable"),
        ("busy", later(status(503)), "retry endpoint provider_unavailable 9s"),
        ("slow", status(504), "retry endpoint provider_unavailable"),
    ];
    check(&webhook(OPEN), &fake, &hook(&fake), &lines).await;
    assert_eq!(fake.count(), lines.len(), "no redirect is followed");
}

#[tokio::test]
async fn webhook_when_the_wire_breaks() {
    let fake = Fake::start().await;
    let message = hook(&fake);
    let words = ["accepted delivered", "retry endpoint connect_failed"];
    let hasty = webhook(&format!("{OPEN}\n{HASTY}"));
    let good = Answer::json(200, &json!({}));
    check_cuts((&webhook(OPEN), &hasty), &fake, &message, good, words).await;
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
