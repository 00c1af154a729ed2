//! A channel without success in time: the next one sends too, the first that succeeds withdraws the
//! others, and who is reached by none is told to somebody else.
//!
//! WhatsApp and SMS are stand-ins over real HTTP. Times without success are short here and compared
//! with nothing but their order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::fake::{Answer, Fake, Request, Twilio};
use crate::harness::{Api, Place, QUICK, found, twilio};
use crate::process::Process;

/// How Meta answers.
type Manner = Arc<Mutex<Box<dyn Fn(&Request) -> Answer + Send>>>;

struct Meta {
    fake: Fake,
    manner: Manner,
}

impl Meta {
    async fn start(manner: impl Fn(&Request) -> Answer + Send + 'static) -> Self {
        let manner: Manner = Arc::new(Mutex::new(Box::new(manner)));
        let answering = Arc::clone(&manner);
        let fake = Fake::answering(move |request| (answering.lock().unwrap())(request)).await;
        Self { fake, manner }
    }

    fn now(&self, manner: impl Fn(&Request) -> Answer + Send + 'static) {
        *self.manner.lock().unwrap() = Box::new(manner);
    }

    fn provider(&self, name: &str) -> String {
        format!(
            "
            [[provider]]
            name = '{name}'
            kind = 'whatsapp-cloud'
            base_url = '{}'
            phone_number_id = '1066'
            access_token = 'x'
            template = {{ name = 'alert', language = 'en', parameters = ['{{text}}'] }}
            ",
            self.fake.url()
        )
    }
}

fn refuses(status: u16, code: u32) -> impl Fn(&Request) -> Answer + Send {
    let error = json!({ "error": { "message": "no", "type": "OAuthException", "code": code } });
    move |_| Answer::json(status, &error)
}

fn takes(_: &Request) -> Answer {
    Answer::json(200, &json!({ "messages": [{ "id": "wamid.1" }] }))
}

const RULES: &str = r#"
[[contact]]
name = "multi"
whatsapp = "+4915550100004"
sms = "+4915550100003"

[[contact]]
name = "duty"
sms = "+4915550100099"

[[rule]]
name = "flood"
topic = "devices/{id}/flood"
decode = "text"
to = ["multi"]
by = ["whatsapp", "sms"]
severity = "critical"
expires_in = "20s"
text = "{{ payload }}"
"#;

fn place(providers: &[String], more: &str) -> Place {
    let config = format!("{QUICK}{}{more}", providers.concat());
    Place::new(&config).rules(RULES)
}

async fn by_channel(api: &Api, channel: &str, status: &str) -> Value {
    let what = format!("a message by {channel} that is {status}");
    let id = found(&what, async || {
        let all = api.messages(&format!("channel={channel}&status={status}")).await;
        all.first().and_then(|one| one["id"].as_str().map(str::to_owned))
    })
    .await;
    api.message(&id).await
}

fn notes(message: &Value) -> Vec<String> {
    let notes = message["fallback"]["notes"].as_array().cloned().unwrap_or_default();
    notes.iter().map(|note| note["text"].as_str().unwrap().to_owned()).collect()
}

fn critical(text: &str) -> Value {
    json!({ "to": ["multi"], "severity": "critical", "text": text })
}

/// Nothing was asked of the SMS provider until the message expired.
#[tokio::test]
async fn a_channel_that_refuses_our_account_goes_on_by_the_next_at_once() {
    for (status, code, time) in [(401, 190, "10m"), (400, 132_015, "10m"), (400, 131_048, "10m")] {
        let meta = Meta::start(refuses(status, code)).await;
        let (sms, _) = Twilio::start().await;
        // Its own time would be longer than this test waits; the last asks for a pause that is longer.
        let more = format!("[notify]\nfallback_after = '{time}'");
        let place = place(&[meta.provider("wa"), twilio("tw", &sms)], &more);
        let rules = RULES.replace("expires_in = \"20s\"", "expires_in = \"1h\"");
        let harness = place.rules(&rules).start().await;
        let mut device = harness.device("pump-7").connect().await;
        device.publishes("devices/pump-7/flood", "PUMP FLOODED").await;
        let sent = by_channel(&harness.api, "sms", "sent").await;
        assert_eq!(sent["text"], "PUMP FLOODED", "{code}");
        harness.api.emptied().await;
        assert_eq!(sms.texts(), ["PUMP FLOODED"], "{code}");
        harness.stop().await;
    }
}

#[tokio::test]
async fn a_stopped_lane_is_named_in_both_records_and_its_copy_is_withdrawn() {
    let meta = Meta::start(refuses(401, 190)).await;
    let (sms, _) = Twilio::start().await;
    let place = place(&[meta.provider("wa"), twilio("tw", &sms)], "");
    let harness = place.start().await;
    // The first is what the lane stops for; the second finds it stopped.
    for text in ["one", "two"] {
        harness.api.send(critical(text)).await;
        harness.api.emptied().await;
    }
    assert_eq!(sms.texts(), ["one", "two"]);
    let withdrawn = by_channel(&harness.api, "whatsapp", "canceled").await;
    assert_eq!(withdrawn["reason"], "superseded");
    assert_eq!(
        notes(&withdrawn),
        [
            "no success on whatsapp (wa is stopped: bad_credentials); went on by sms",
            "sms had it first"
        ]
    );
    let sent = by_channel(&harness.api, "sms", "sent").await;
    let before = withdrawn["id"].as_str().unwrap();
    assert_eq!(sent["fallback"]["before"], before);
    assert_eq!(withdrawn["fallback"]["next"], sent["id"]);
    assert_eq!(
        notes(&sent),
        [format!(
            "it goes on with message {before}: no success on whatsapp (wa is stopped: bad_credentials)"
        )]
    );
    assert!(harness.api.metric("fallbacks_total{reason=\"bad_credentials\"}").await >= 1);
    harness.stop().await;
}

#[tokio::test]
async fn a_provider_that_is_down_or_says_nothing_is_given_its_time_and_no_more() {
    let (gate, _) = watch::channel(false);
    let hanging = gate.clone();
    let unavailable: Box<dyn Fn(&Request) -> Answer + Send> = Box::new(refuses(503, 131_016));
    let silent: Box<dyn Fn(&Request) -> Answer + Send> =
        Box::new(move |request| takes(request).held(&hanging));
    for manner in [unavailable, silent] {
        let meta = Meta::start(manner).await;
        let (sms, _) = Twilio::start().await;
        let more = "[notify]\nfallback_after = '300ms'";
        let providers = [meta.provider("wa"), meta.provider("wa-2"), twilio("tw", &sms)];
        let harness = place(&providers, more).start().await;
        harness.api.send(critical("PUMP FLOODED")).await;
        let sent = by_channel(&harness.api, "sms", "sent").await;
        assert!(notes(&sent)[0].contains("no success within 300ms on whatsapp"), "{sent}");
        assert_eq!(sms.texts(), ["PUMP FLOODED"]);
        gate.send_replace(true);
        // The first is withdrawn, or was taken after all: then its record says why there are two.
        let first = found("the end of the first", async || {
            let all = harness.api.messages("channel=whatsapp").await;
            all.into_iter().find(|one| one["status"] == "canceled" || one["status"] == "sent")
        })
        .await;
        harness.api.emptied().await;
        let id = first["id"].as_str().unwrap();
        let last = found("its record", async || {
            let first = harness.api.message(id).await;
            notes(&first).last().cloned().filter(|last| last.contains("sms had it first"))
        })
        .await;
        if first["status"] == "sent" {
            assert_eq!(last, "sms had it first; this copy was under way by then");
        }
        gate.send_replace(false);
        harness.stop().await;
    }
}

#[tokio::test]
async fn with_a_short_life_the_next_channel_has_half_of_it() {
    let meta = Meta::start(refuses(503, 131_016)).await;
    let (sms, _) = Twilio::start().await;
    let harness = place(&[meta.provider("wa"), twilio("tw", &sms)], "").start().await;
    let mut body = critical("short");
    body["expires_in"] = json!("2s");
    harness.api.send(body).await;
    let sent = by_channel(&harness.api, "sms", "sent").await;
    assert!(notes(&sent)[0].contains("no success within 1s on whatsapp"), "{sent}");
    harness.stop().await;
}

#[tokio::test]
async fn info_stays_on_its_channel_and_a_rule_says_otherwise() {
    let meta = Meta::start(refuses(401, 190)).await;
    let (sms, _) = Twilio::start().await;
    let more = "[notify]\nfallback_after = { critical = '200ms', warning = '200ms' }";
    let rules = RULES.to_owned()
        + r#"
[[rule]]
name = "noted"
topic = "devices/{id}/noted"
decode = "text"
to = ["multi"]
by = ["whatsapp", "sms"]
severity = "info"
fallback_after = "100ms"
text = "noted {{ payload }}"
"#;
    let place = place(&[meta.provider("wa"), twilio("tw", &sms)], more).rules(&rules);
    let harness = place.start().await;
    // The lane is stopped by one that somebody waits for.
    harness.api.send(critical("one")).await;
    harness.api.emptied().await;
    let info = harness
        .api
        .send(json!({ "to": ["multi"], "severity": "info", "text": "info", "by": ["whatsapp", "sms"] }))
        .await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes("devices/pump-7/noted", "two").await;
    found("the rule's own time", async || {
        sms.texts().contains(&"noted two".to_owned()).then_some(())
    })
    .await;
    let info = harness.api.message(&info).await;
    assert_eq!(info["status"], "queued", "{info}");
    assert!(!sms.texts().contains(&"info".to_owned()));
    harness.stop().await;
}

#[tokio::test]
async fn who_is_reached_by_no_channel_is_told_to_those_who_stand_in_in_one_message() {
    let meta = Meta::start(refuses(503, 131_016)).await;
    let (sms, twilio_takes) = Twilio::start().await;
    sms.respond(move |request| {
        let form = request.form();
        if form.get("To").is_some_and(|to| to == "+4915550100003") {
            return Answer::json(400, &json!({ "code": 21211, "message": "no", "status": 400 }));
        }
        twilio_takes.answer(request)
    });
    let more = "[notify]\nfallback_after = '200ms'\nfallback = ['duty']";
    let harness = place(&[meta.provider("wa"), twilio("tw", &sms)], more).start().await;
    for text in ["one", "two", "three"] {
        harness.api.send(critical(text)).await;
    }
    let told = found("the digest", async || {
        let all = harness.api.messages("contact=duty&status=sent").await;
        all.into_iter().next()
    })
    .await;
    let text = told["text"].as_str().unwrap();
    assert!(text.starts_with("Not reached with 3 messages: multi: "), "{text}");
    // Of each channel.
    assert!(text.contains("[no success"), "{text}");
    assert!(text.contains("on whatsapp"), "{text}");
    assert!(text.contains("; sms failed: bad_recipient]"), "{text}");
    let people = harness.api.status().await["people"].clone();
    assert_eq!(people["unreached"][0]["contact"], "multi");
    assert_eq!(people["fallback"], json!(["duty"]));
    assert_eq!(harness.api.metric("contacts_unreached").await, 1);
    assert_eq!(harness.api.messages("contact=duty").await.len(), 1);
    // Whoever is heard again is reached.
    meta.now(takes);
    harness.api.counted("contacts_unreached", 0).await;
    harness.stop().await;
}

/// After a restart somebody was reported as unreached who had heard it long before, and rows of
/// others in the same table were taken for damage.
#[tokio::test]
async fn who_was_reached_after_all_is_reported_to_nobody_also_after_a_restart() {
    let meta = Meta::start(refuses(503, 131_016)).await;
    let (sms, takes_sms) = Twilio::start().await;
    sms.respond(move |request| {
        let form = request.form();
        if form.get("To").is_some_and(|to| to == "+4915550100003") {
            return Answer::json(400, &json!({ "code": 21211, "message": "no", "status": 400 }));
        }
        takes_sms.answer(request)
    });
    let more = "[notify]\nfallback_after = '200ms'\nfallback = ['duty']";
    let harness = place(&[meta.provider("wa"), twilio("tw", &sms)], more).start().await;
    harness.api.send(critical("one")).await;
    let of_duty = async |api: &Api| api.messages("contact=duty").await.len();
    found("the digest", async || (of_duty(&harness.api).await == 1).then_some(())).await;
    // The next digest would be minutes later.
    harness.api.send(critical("two")).await;
    let unheard = async || {
        let people = harness.api.status().await["people"].clone();
        (people["unreached"][0]["messages"] == json!(2)).then_some(())
    };
    found("the second that is unheard", unheard).await;
    meta.now(takes);
    let is_two = |one: &Value| one["text"] == json!("two");
    let sent = async || {
        let sent = harness.api.messages("contact=multi&status=sent").await;
        sent.iter().any(is_two).then_some(())
    };
    found("the second, sent after all", sent).await;
    let place = harness.stop().await;
    let harness = place.start().await;
    assert_eq!(harness.api.metric("contacts_unreached").await, 0);
    assert_eq!(harness.api.metric("store_rows_unreadable").await, 0);
    assert_eq!(of_duty(&harness.api).await, 1);
    harness.stop().await;
}

#[tokio::test]
async fn nobody_hears_an_alert_by_sms_that_was_over_before_whatsapp_had_told_it() {
    let meta = Meta::start(refuses(503, 131_016)).await;
    let (sms, _) = Twilio::start().await;
    let rules = RULES.to_owned()
        + r#"
[[rule]]
name = "hot"
topic = "devices/{id}/hot"
decode = "json"
when = "payload.t > 5.0"
to = ["multi"]
by = ["whatsapp", "sms"]
severity = "critical"
fallback_after = "3s"
text = "hot"
text_clear = "cool"
"#;
    let place = place(&[meta.provider("wa"), twilio("tw", &sms)], "").rules(&rules);
    let harness = place.start().await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes("devices/pump-7/hot", r#"{"t": 9.0}"#).await;
    device.publishes("devices/pump-7/hot", r#"{"t": 1.0}"#).await;
    for text in ["hot", "cool"] {
        let ended = harness.api.message_that_is("canceled", text).await;
        assert_eq!(ended["reason"], "over", "{ended}");
    }
    assert_eq!(sms.texts(), [""; 0]);
    harness.stop().await;
}

/// Each time that it starts the first has had its time already: it is not given another.
#[tokio::test]
async fn a_kill_neither_restarts_the_clock_nor_sends_the_next_channel_twice() {
    let meta = Meta::start(refuses(503, 131_016)).await;
    let (sms, takes_sms) = Twilio::start().await;
    let is_down = Arc::new(AtomicBool::new(true));
    let down = Arc::clone(&is_down);
    sms.respond(move |request| {
        if down.load(Ordering::Relaxed) {
            return Answer::json(503, &json!({ "code": 20503, "message": "down", "status": 503 }));
        }
        takes_sms.answer(request)
    });
    let more = "[notify]\nfallback_after = '500ms'\n[broker]\nlisten = '127.0.0.1:0'\nlisten_tls = '127.0.0.1:0'\n[api]\nlisten = '127.0.0.1:0'";
    let rules = RULES.replace("expires_in = \"20s\"", "expires_in = \"1h\"");
    let place = place(&[meta.provider("wa"), twilio("tw", &sms)], more).rules(&rules);
    let mut process = Process::start(place).await;
    let mut device = process.device("pump-7").connect().await;
    device.publishes("devices/pump-7/flood", "PUMP FLOODED").await;
    for _ in 0..3 {
        let waiting = by_channel(&process.api, "sms", "queued").await;
        assert_eq!(process.api.messages("").await.len(), 2, "{waiting}");
        process.kill();
        process.restart().await;
    }
    is_down.store(false, Ordering::Relaxed);
    by_channel(&process.api, "sms", "sent").await;
    let withdrawn = by_channel(&process.api, "whatsapp", "canceled").await;
    assert_eq!(withdrawn["reason"], "superseded");
    process.api.emptied().await;
    assert_eq!(process.api.messages("status=sent").await.len(), 1);
}
