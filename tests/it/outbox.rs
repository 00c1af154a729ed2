//! What becomes of messages in the whole application: sent, repeated, withdrawn, kept while a
//! provider is away, and carried over a stop.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::device::Version;
use crate::eventually;
use crate::fake::{Answer, Cut, Fake, Request, Twilio};
use crate::harness::{ALARM, ANA, Harness, Place, QUICK, TOKEN, found, twilio};
use crate::providers::fcm;

const ALARMS: &str = "devices/pump-7/alarm";

/// An application with [`ALARM`] and this Twilio.
async fn start(fake: &Fake, more: &str) -> Harness {
    let config = format!("{QUICK}{}{more}", twilio("twilio-main", fake));
    Place::new(&config).rules(ALARM).start().await
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

fn twilio_refuses(status: u16, code: u32) -> Answer {
    let text = format!("the number {ANA}, the token {TOKEN}");
    Answer::json(status, &json!({ "code": code, "message": text, "status": status }))
}

#[tokio::test]
async fn a_message_by_the_api_is_sent_once_for_each_idempotency_key() {
    let (fake, _) = Twilio::start().await;
    let harness = start(&fake, "").await;
    let api = &harness.api;
    let body = json!({ "to": ["ana"], "text": "backup failed", "idempotency_key": "2026-11-23" });
    let (status, first) = api.post("/v1/messages", &body).await;
    assert_eq!((status, &first["repeated"]), (202, &json!(false)), "{first}");
    // Ana's own order: SMS first. Nobody sees her number.
    assert_eq!(first["messages"][0]["channel"], "sms");
    assert!(!first.to_string().contains(ANA));
    for _ in 0..3 {
        let (status, again) = api.post("/v1/messages", &body).await;
        assert_eq!((status, &again["repeated"]), (200, &json!(true)), "{again}");
        assert_eq!(again["messages"][0]["id"], first["messages"][0]["id"]);
    }
    let other = json!({ "to": ["ana"], "text": "other", "idempotency_key": "2026-11-23" });
    assert_eq!(api.post("/v1/messages", &other).await.0, 422);
    api.message_that_is("sent", "backup failed").await;

    // The same key after a start is still the same message.
    let harness = harness.stop().await.start().await;
    let (status, again) = harness.api.post("/v1/messages", &body).await;
    assert_eq!((status, &again["messages"][0]["id"]), (200, &first["messages"][0]["id"]));
    harness.api.emptied().await;
    assert_eq!(fake.texts(), ["backup failed"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_told_all_that_is_wrong() {
    let harness = Harness::start("").await;
    let api = &harness.api;
    let body = json!({ "to": ["anna"], "sms": "123", "text": "" });
    let (status, answer) = api.post("/v1/messages", &body).await;
    assert_eq!(status, 422);
    let fields: Vec<_> = answer["errors"].as_array().unwrap().iter().map(|e| &e["field"]).collect();
    assert_eq!(fields, ["sms[0]", "text"]);
    let (status, answer) = api.post("/v1/messages", &json!({ "to": ["anna"], "text": "x" })).await;
    assert_eq!(status, 422);
    assert!(answer["detail"].as_str().unwrap().contains("did you mean `ana`?"), "{answer}");

    // Without the key nothing is sent, changed or resumed.
    let keyless = api.keyless();
    let message = json!({ "to": ["ana"], "text": "x" });
    assert_eq!(keyless.post("/v1/messages", &message).await.0, 401);
    assert_eq!(keyless.post("/v1/providers/phone/resume", &Value::Null).await.0, 401);
    assert_eq!(keyless.ask("GET", "/v1/devices", None).await.0, 401);
    assert_eq!(api.metric("http_refused_total{reason=\"not_authorized\"}").await, 3);
    assert_eq!(api.metric("messages_queued_total{channel=\"sms\"}").await, 0);
    harness.stop().await;
}

#[tokio::test]
async fn a_machine_asks_how_it_is() {
    let harness = Harness::start("").await;
    let api = harness.api.keyless();
    assert_eq!(api.ask("GET", "/healthz", None).await, (200, "ok\n".to_owned()));
    assert_eq!(api.ask("GET", "/readyz", None).await, (200, "ready\n".to_owned()));
    let (status, metrics) = api.ask("GET", "/metrics", None).await;
    assert_eq!(status, 200);
    assert!(metrics.contains("\nwatchbell_publishes_received_total 0\n"), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"));
    assert_eq!(api.ask("GET", "/v1/nothing", None).await.0, 404);
    let status = api.status().await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&status["ready"], &status["outbox"]["waiting"]), (&json!(true), &json!(0)));
    let protocols: Vec<_> =
        status["listeners"].as_array().unwrap().iter().map(|one| &one["protocol"]).collect();
    assert_eq!(protocols, ["mqtt", "mqtts", "http"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_dead_letter_is_sent_again_when_an_operator_says_so() {
    let (fake, _) = Twilio::start().await;
    fake.script([twilio_refuses(400, 21211)]);
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "one").await;
    let failed = harness.api.message_that_is("failed", "alarm one").await;
    assert_eq!(failed["reason"], "bad_recipient");
    assert_eq!(failed["detail"], "Twilio 21211: the number +49…001, the token ***");
    assert_eq!(failed["attempts"][0]["outcome"], "rejected");
    harness.api.counted("messages_dead_total{reason=\"bad_recipient\"}", 1).await;
    assert_eq!(harness.api.status().await["outbox"]["dead"]["bad_recipient"], 1);

    let path = format!("/v1/messages/{}", failed["id"].as_str().unwrap());
    let (status, answer) = harness.api.post(&format!("{path}/retry"), &Value::Null).await;
    assert_eq!((status, &answer["status"]), (200, &json!("queued")), "{answer}");
    let sent = harness.api.message_that_is("sent", "alarm one").await;
    assert_eq!((&sent["attempt_count"], &sent["reason"]), (&json!(2), &Value::Null));
    // What has been sent is neither sent again nor withdrawn.
    for what in ["retry", "cancel"] {
        let (status, answer) = harness.api.post(&format!("{path}/{what}"), &Value::Null).await;
        assert_eq!(status, 409, "{what}: {answer}");
    }
    assert_eq!(fake.count(), 2);
    harness.stop().await;
}

#[tokio::test]
async fn what_waits_can_be_withdrawn() {
    let (fake, _) = Twilio::start().await;
    fake.stop().await;
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "false").await;
    device.publishes(ALARMS, "true").await;
    let id = harness.api.messages("").await[1]["id"].as_str().unwrap().to_owned();
    // While an attempt is under way, the answer is: not now.
    let canceled = found("a cancellation", async || {
        let path = format!("/v1/messages/{id}/cancel");
        let (status, answer) = harness.api.post(&path, &Value::Null).await;
        assert!(status == 200 || status == 409, "{answer}");
        (status == 200).then_some(answer)
    })
    .await;
    assert_eq!(
        (&canceled["status"], &canceled["text"]),
        (&json!("canceled"), &json!("alarm false"))
    );
    fake.restart().await;
    harness.api.message_that_is("sent", "alarm true").await;
    assert_eq!(harness.api.message(&id).await["status"], "canceled");
    harness.api.emptied().await;
    harness.stop().await;
    assert_eq!(fake.texts(), ["alarm true"]);
}

/// FCM's token endpoint and FCM itself, for which every app is gone.
fn forgetful_fcm(request: &Request) -> Answer {
    if request.path() == "/token" {
        let token = json!({ "access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer" });
        return Answer::json(200, &token);
    }
    let kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
    let details = json!([{ "@type": kind, "errorCode": "UNREGISTERED" }]);
    Answer::json(404, &json!({ "error": { "code": 404, "message": "gone", "details": details } }))
}

#[tokio::test]
async fn what_push_cannot_deliver_goes_on_by_sms() {
    let (fake, _) = Twilio::start().await;
    let google = Fake::answering(forgetful_fcm).await;
    let (_, account) = fcm::service_account();
    let firebase = format!(
        "
        [[provider]]
        name = 'firebase'
        kind = 'fcm'
        base_url = '{0}'
        token_url = '{0}/token'
        service_account = '''{account}'''
        ",
        google.url()
    );
    let rules = ALARM.replace("by = [\"sms\"]", "by = [\"push\", \"sms\"]");
    let config = format!("{QUICK}{}{firebase}", twilio("twilio-main", &fake));
    let harness = Place::new(&config).rules(&rules.replace("[\"ana\"]", "[\"ana\", \"ben\"]"));
    let harness = harness.start().await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "one").await;
    harness.api.emptied().await;

    // Ben has no app: his message went by SMS at once.
    let of = async |query: &str| harness.api.messages(query).await;
    let (ana, ben) = (of("contact=ana").await, of("contact=ben").await);
    let stands = |message: &Value| format!("{} {}", message["channel"], message["status"]);
    assert_eq!(ben.iter().map(stands).collect::<Vec<_>>(), ["\"sms\" \"sent\""]);
    let by = |channel: &str| ana.iter().find(|one| one["channel"] == json!(channel)).unwrap();
    let (push, sms) = (by("push"), by("sms"));
    assert_eq!((&push["status"], &push["reason"]), (&json!("failed"), &json!("recipient_gone")));
    assert!(push["detail"].as_str().unwrap().ends_with("; goes on by sms"), "{push}");
    assert_eq!((&sms["status"], &sms["alert"]), (&json!("sent"), &push["alert"]));
    assert_eq!(ana.len(), 2);
    let numbers = fake.requests().iter().map(|request| request.form()["To"].clone()).collect();
    assert_eq!(sorted(numbers), [ANA, "+4915550100002"]);
    harness.stop().await;
}

#[tokio::test]
async fn the_next_provider_of_a_channel_takes_over() {
    let (main, _) = Twilio::start().await;
    let (backup, _) = Twilio::start().await;
    main.respond(|_| Answer::new(503));
    let channel = "[channel.sms]\nproviders = ['twilio-main', 'twilio-backup']";
    let harness = start(&main, &format!("{}{channel}", twilio("twilio-backup", &backup))).await;
    let mut device = harness.device("pump-7").connect().await;
    for number in 0..10 {
        device.publishes(ALARMS, &number.to_string()).await;
    }
    harness.api.emptied().await;
    let expected: Vec<_> = (0..10).map(|number| format!("alarm {number}")).collect();
    assert_eq!(sorted(backup.texts()), expected);
    assert!(main.count() > 0);
    let message = &harness.api.messages("status=sent").await[0];
    assert_eq!(message["provider"], "twilio-backup");
    harness.stop().await;
}

#[tokio::test]
async fn refused_credentials_stop_the_lane_and_burn_nothing() {
    let (fake, twilio) = Twilio::start().await;
    fake.respond(|_| twilio_refuses(401, 20003));
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    let stopped_with = async |ready: u64| {
        found("a stopped lane", async || {
            let lane = harness.api.lane("twilio-main").await;
            let stands = (&lane["state"], &lane["in_flight"], &lane["ready"]);
            (stands == (&json!("stopped"), &json!(0), &json!(ready))).then_some(lane)
        })
        .await
    };
    for number in 0..5 {
        device.publishes(ALARMS, &number.to_string()).await;
    }
    let lane = stopped_with(5).await;
    assert_eq!(lane["reason"], "bad_credentials");
    assert_eq!(lane["detail"], "Twilio 20003: the number +49…001, the token ***");
    let asked = fake.count();
    // Calls that were under way when the first answer came, and no more.
    assert!((1..=4).contains(&asked), "{asked}");
    assert_eq!(harness.api.metric("provider_stopped{provider=\"twilio-main\"}").await, 1);
    for number in 5..10 {
        device.publishes(ALARMS, &number.to_string()).await;
    }
    stopped_with(10).await;
    assert_eq!(fake.count(), asked);
    for message in harness.api.messages("").await {
        assert_eq!(message["status"], "queued");
        assert!(message["attempt_count"].as_u64().unwrap() <= 1);
    }

    fake.respond(move |request| twilio.answer(request));
    let (status, _) = harness.api.post("/v1/providers/twilio-main/resume", &Value::Null).await;
    assert_eq!(status, 204);
    harness.api.emptied().await;
    assert_eq!(harness.api.lane("twilio-main").await["state"], "up");
    assert_eq!(harness.api.metric("provider_stopped{provider=\"twilio-main\"}").await, 0);
    let taken = fake.texts().split_off(asked);
    assert_eq!(sorted(taken), (0..10).map(|number| format!("alarm {number}")).collect::<Vec<_>>());
    let (status, _) = harness.api.post("/v1/providers/nobody/resume", &Value::Null).await;
    assert_eq!(status, 404);
    harness.stop().await;
}

#[tokio::test]
async fn retry_after_is_kept() {
    let (fake, _) = Twilio::start().await;
    fake.script([Answer::new(429).header("retry-after", "1")]);
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "one").await;
    eventually(|| fake.count() == 1).await;
    // The whole lane waits, not only the message that was told so.
    let paused = async || {
        let lane = harness.api.lane("twilio-main").await;
        (lane["state"] == json!("paused") || fake.count() > 1).then_some(())
    };
    found("a paused lane", paused).await;
    device.publishes(ALARMS, "two").await;
    harness.api.emptied().await;
    let at: Vec<_> = fake.requests().iter().map(|request| request.at).collect();
    assert_eq!(at.len(), 3);
    // Clocks count milliseconds: one less than a second may be one.
    assert!((at[1] - at[0]).as_millis() >= 999, "{:?}", at[1] - at[0]);
    let message = harness.api.message_that_is("sent", "alarm one").await;
    assert_eq!(message["attempts"][0]["reason"], "throttled");
    harness.stop().await;
}

#[tokio::test]
async fn what_was_taken_without_an_answer_is_found_and_not_sent_twice() {
    let (fake, twilio) = Twilio::start().await;
    let taking = twilio.clone();
    fake.respond(move |request| match request.method.as_str() {
        // It takes the message, and the connection breaks before it says so.
        "POST" => taking.answer(request).but_cut(Cut::AfterReading),
        _ => taking.answer(request),
    });
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "one").await;
    let message = harness.api.message_that_is("sent", "alarm one").await;
    assert_eq!(message["provider_ref"], json!(format!("SM{:032x}", 1)));
    assert_eq!(message["attempts"][0]["outcome"], "unknown");
    assert_eq!(message["attempt_count"], 1);
    assert_eq!(twilio.count(), 1);
    harness.stop().await;
}

#[tokio::test]
async fn what_was_taken_without_an_answer_is_still_found_after_an_outage() {
    let (fake, twilio) = Twilio::start().await;
    let (taking, posts) = (twilio.clone(), AtomicUsize::new(0));
    let outage = AtomicBool::new(true);
    fake.respond(move |request| match request.method.as_str() {
        "POST" => match posts.fetch_add(1, Ordering::Relaxed) {
            // It takes the message, the connection breaks before it says so, and then it fails.
            0 => taking.answer(request).but_cut(Cut::AfterReading),
            1 => Answer::new(503),
            _ => taking.answer(request),
        },
        // Nobody can be asked until the failure is over.
        _ if outage.swap(false, Ordering::Relaxed) => Answer::new(503),
        _ => taking.answer(request),
    });
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "one").await;
    let message = harness.api.message_that_is("sent", "alarm one").await;
    let outcomes: Vec<_> =
        message["attempts"].as_array().unwrap().iter().map(|one| &one["outcome"]).collect();
    assert_eq!(outcomes, ["unknown", "retry"]);
    assert_eq!(message["provider_ref"], json!(format!("SM{:032x}", 1)));
    assert_eq!(twilio.count(), 1);
    harness.stop().await;
}

#[tokio::test]
async fn what_is_too_late_is_never_sent() {
    let (fake, _) = Twilio::start().await;
    fake.stop().await;
    let rules = format!("{ALARM}expires_in = '300ms'");
    let config = format!("{QUICK}{}", twilio("twilio-main", &fake));
    let harness = Place::new(&config).rules(&rules).start().await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "late").await;
    let message = harness.api.message_that_is("expired", "alarm late").await;
    assert_eq!(message["reason"], "expired");
    let detail = message["detail"].as_str().unwrap();
    assert!(detail.starts_with("no provider took it before its time ran out"), "{detail}");
    fake.restart().await;
    harness.api.send(json!({ "to": ["ana"], "text": "in time" })).await;
    harness.api.message_that_is("sent", "in time").await;

    // An operator may say that it is not too late: it gets its time anew.
    assert_eq!(fake.texts(), ["in time"]);
    let path = format!("/v1/messages/{}/retry", message["id"].as_str().unwrap());
    assert_eq!(harness.api.post(&path, &Value::Null).await.0, 200);
    harness.api.emptied().await;
    assert_eq!(fake.texts(), ["in time", "alarm late"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_full_outbox_takes_nothing_and_forgets_nothing() {
    let (fake, _) = Twilio::start().await;
    fake.stop().await;
    let harness = start(&fake, "[intake]\noutbox_messages_max = 3").await;
    let mut device = harness.device("pump-7").connect().await;
    let mut old = harness.device("pump-8").version(Version::V311).connect().await;
    for number in 1..=3 {
        device.publishes(ALARMS, &number.to_string()).await;
    }
    assert_eq!(device.publish(ALARMS, "4").await, "QuotaExceeded");
    // 3.1.1 has no such answer: the connection ends, and the device sends it again.
    assert_eq!(old.publish("devices/pump-8/alarm", "5").await, "closed");
    let body = json!({ "to": ["ana"], "text": "6" });
    let (status, answer) = harness.api.post("/v1/messages", &body).await;
    assert_eq!((status, &answer["reason"]), (503, &json!("outbox_full")));
    assert_eq!(harness.api.metric("refused_total{reason=\"outbox_full\"}").await, 3);
    // What matches no rule does not need the outbox.
    device.publishes("devices/pump-7/log", "x").await;

    fake.restart().await;
    harness.api.emptied().await;
    device.publishes(ALARMS, "4").await;
    harness.api.emptied().await;
    assert_eq!(sorted(fake.texts()), ["alarm 1", "alarm 2", "alarm 3", "alarm 4"]);
    harness.stop().await;
}

#[tokio::test]
async fn what_a_stop_leaves_unsent_the_next_start_sends() {
    let (fake, _) = Twilio::start().await;
    fake.stop().await;
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    let mut old = harness.device("pump-8").version(Version::V311).connect().await;
    for number in 0..20 {
        device.publishes(ALARMS, &format!("{number:02}")).await;
    }
    let place = harness.stop().await;
    assert_eq!(device.closed().await, "ServerShuttingDown");
    old.closed().await;
    assert!(!place.path("data/instance.json").exists());

    fake.restart().await;
    let harness = place.start().await;
    harness.api.emptied().await;
    harness.stop().await;
    let expected: Vec<_> = (0..20).map(|number| format!("alarm {number:02}")).collect();
    assert_eq!(sorted(fake.texts()), expected);
}

#[tokio::test]
async fn a_stop_waits_for_the_answer_of_a_call_and_says_that_it_is_not_ready() {
    let (fake, twilio) = Twilio::start().await;
    let (gate, _) = watch::channel(false);
    let (answering, opening) = (twilio.clone(), gate.clone());
    fake.respond(move |request| answering.answer(request).held(&opening));
    let harness = start(&fake, "").await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes(ALARMS, "one").await;
    eventually(|| fake.count() == 1).await;

    let api = harness.api.clone();
    let not_ready = async || {
        let (status, text) = api.ask("GET", "/readyz", None).await;
        (status == 503).then_some(text)
    };
    let has_stopped = Cell::new(false);
    let stopping = async {
        let place = harness.stop().await;
        has_stopped.set(true);
        place
    };
    let answering = async {
        assert_eq!(found("503", not_ready).await, "shutting_down\n");
        assert!(!has_stopped.get());
        gate.send_replace(true);
    };
    let (place, ()) = tokio::join!(stopping, answering);
    let harness = place.start().await;
    let message = harness.api.message_that_is("sent", "alarm one").await;
    assert_eq!(message["attempts"][0]["outcome"], "accepted");
    assert_eq!(fake.count(), 1);
    harness.stop().await;
}

#[tokio::test]
async fn two_applications_do_not_share_a_data_directory() {
    let harness = Harness::start("").await;
    let other = harness.place.try_start().await;
    let error = other.err().unwrap();
    assert!(error.contains("another watchbell is running"), "{error}");
    assert_eq!(harness.api.ask("GET", "/readyz", None).await.0, 200);
    harness.stop().await;
}
