//! A publish's way through the whole application, from a device over TLS to a POST at a stand-in
//! for Twilio: what is matched, fired, cleared, refused, reloaded.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::device::Version;
use crate::eventually;
use crate::fake::{Answer, Fake, Twilio};
use crate::harness::{ACCOUNT, ALARM, ANA, Place, QUICK, SENDER, TOKEN, found, twilio};

/// A condition with hysteresis, an instance for each unit.
const FREEZER: &str = r#"
[[rule]]
name = "freezer-warm"
topic = "devices/{device}/freezer/{unit}"
decode = "json"
when = "payload.temp_c > -15.0"
clear = "payload.temp_c < -17.0"
severity = "critical"
to = ["ana"]
by = ["sms"]
text = "freezer {{ unit }}: {{ payload.temp_c }} °C"
text_clear = "freezer {{ unit }} is cold again: {{ payload.temp_c }} °C"
"#;

async fn check_one_post(version: Version, qos: u8) {
    let (fake, _) = Twilio::start().await;
    let harness = Place::new(&twilio("twilio-main", &fake)).rules(FREEZER).start().await;
    let mut device = harness.device("pump-7").version(version).connect().await;
    let topic = "devices/pump-7/freezer/1";
    assert_eq!(device.publish_with(topic, qos, r#"{"temp_c": -10.5}"#).await, "Success");
    let message = harness.api.message_that_is("sent", "freezer 1: -10.5 °C").await;

    let request = fake.only();
    assert_eq!(request.method, "POST");
    assert_eq!(request.target, format!("/2010-04-01/Accounts/{ACCOUNT}/Messages.json"));
    assert_eq!(request.header("content-type"), "application/x-www-form-urlencoded");
    let basic = STANDARD.encode(format!("{ACCOUNT}:{TOKEN}"));
    assert_eq!(request.header("authorization"), format!("Basic {basic}"));
    let mut form: BTreeMap<String, String> = request.form().into_iter().collect();
    let validity: u64 = form.remove("ValidityPeriod").unwrap().parse().unwrap();
    assert!((1..=36_000).contains(&validity), "{validity}");
    let expected = [("Body", "freezer 1: -10.5 °C"), ("From", SENDER), ("To", ANA)];
    assert!(form.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected), "{form:?}");

    assert_eq!(message["provider"], "twilio-main");
    assert_eq!(message["provider_ref"], json!(format!("SM{:032x}", 1)));
    assert_eq!(message["contact"], "ana");
    assert_eq!(message["address"], "+49…001");
    assert_eq!(message["severity"], "critical");
    assert_eq!(message["alert"]["rule"], "freezer-warm");
    assert_eq!(message["alert"]["key"], "pump-7/1");
    assert_eq!(message["alert"]["topic"], topic);
    assert_eq!(message["attempt_count"], 1);
    assert_eq!(message["attempts"][0]["outcome"], "accepted");

    // It is warm already: that is nothing new.
    assert_eq!(device.publish_with(topic, 1, r#"{"temp_c": -10.0}"#).await, "Success");
    harness.api.emptied().await;
    assert_eq!(fake.count(), 1);
    harness.stop().await;
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn a_publish_by_mqtt_5_becomes_exactly_one_post() {
    check_one_post(Version::V5, 1).await;
}

#[tokio::test]
async fn a_publish_by_mqtt_3_1_1_becomes_exactly_one_post() {
    check_one_post(Version::V311, 1).await;
}

#[tokio::test]
async fn every_quality_of_service_is_evaluated() {
    check_one_post(Version::V5, 0).await;
    check_one_post(Version::V311, 0).await;
    check_one_post(Version::V5, 2).await;
    check_one_post(Version::V311, 2).await;
}

#[tokio::test]
async fn an_alert_fires_and_clears_once_for_each_key() {
    let (fake, _) = Twilio::start().await;
    let place = Place::new(&format!("{}concurrency = 1", twilio("twilio-main", &fake)));
    let harness = place.rules(FREEZER).start().await;
    let mut device = harness.device("pump-7").connect().await;
    for (unit, temp_c) in [
        (1, -10.0),
        (1, -9.0),
        (2, -12.0),
        (1, -16.0), // between the two limits nothing changes
        (1, -14.0),
        (1, -18.0),
        (1, -19.0),
        (1, -16.0),
        (2, -13.0),
        (1, -11.0),
    ] {
        let topic = format!("devices/pump-7/freezer/{unit}");
        device.publishes(&topic, &json!({ "temp_c": temp_c }).to_string()).await;
        // So that the order of the messages is the order of the publishes.
        harness.api.emptied().await;
    }
    let expected = [
        "freezer 1: -10.0 °C",
        "freezer 2: -12.0 °C",
        "freezer 1 is cold again: -18.0 °C",
        "freezer 1: -11.0 °C",
    ];
    assert_eq!(fake.texts(), expected);
    assert_eq!(harness.api.metric("alerts_fired_total").await, 3);
    assert_eq!(harness.api.metric("alerts_cleared_total").await, 1);
    harness.stop().await;
}

#[tokio::test]
async fn a_rule_without_condition_fires_at_each_publish() {
    let (fake, _) = Twilio::start().await;
    let harness = Place::new(&twilio("twilio-main", &fake)).rules(ALARM).start().await;
    let mut device = harness.device("pump-7").connect().await;
    for text in ["one", "two", "two"] {
        device.publishes("devices/pump-7/alarm", text).await;
    }
    harness.api.emptied().await;
    let mut told = fake.texts();
    told.sort();
    assert_eq!(told, ["alarm one", "alarm two", "alarm two"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_publish_that_matches_nothing_costs_nothing_but_routing() {
    let (fake, _) = Twilio::start().await;
    let place = Place::new(&twilio("twilio-main", &fake)).rules(&format!("{FREEZER}{ALARM}"));
    let harness = place.start().await;
    let mut subscriber = harness.anonymous("console").version(Version::V311).connect().await;
    assert!(subscriber.subscribe("devices/#").await.starts_with("Success"));
    let mut device = harness.device("pump-7").connect().await;
    let counts = async || {
        [
            harness.api.metric("operations_committed_total").await,
            harness.api.metric("publishes_matched_total").await,
            harness.api.metric("publishes_received_total").await,
        ]
    };
    let before = counts().await;
    for number in 0..20 {
        device.publishes("devices/pump-7/log", &number.to_string()).await;
    }
    for number in 0..20 {
        let expected = ("devices/pump-7/log".to_owned(), number.to_string());
        assert_eq!(subscriber.receive().await, expected);
    }
    let [committed, matched, received] = counts().await;
    assert_eq!([committed, matched, received], [before[0], before[1], before[2] + 20]);

    // The same way for one that matches, only that it is on disk before.
    device.publishes("devices/pump-7/alarm", "now").await;
    assert_eq!(subscriber.receive().await, ("devices/pump-7/alarm".to_owned(), "now".to_owned()));
    assert!(counts().await[0] > committed);
    harness.api.message_that_is("sent", "alarm now").await;
    assert_eq!(fake.texts(), ["alarm now"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_forbidden_topic_is_refused_and_counted() {
    let (fake, _) = Twilio::start().await;
    let access = r#"
        [[access]]
        who = { identity = "pump-*" }
        publish = ["devices/{client_id}/#"]
        subscribe = ["devices/{client_id}/cmd/#"]
        deny = ["devices/{client_id}/freezer/9"]
    "#;
    let place = Place::new(&format!("{access}{}", twilio("twilio-main", &fake)));
    let harness = place.rules(FREEZER).start().await;
    let hot = r#"{"temp_c": 1.0}"#;
    let refused = async || harness.api.metric("refused_total{reason=\"not_authorized\"}").await;

    let mut device = harness.device("pump-7").connect().await;
    assert_eq!(device.publish("devices/pump-8/freezer/1", hot).await, "NotAuthorized");
    assert_eq!(device.publish("devices/pump-7/freezer/9", hot).await, "NotAuthorized");
    assert_eq!(device.subscribe("devices/#").await, "Unspecified");
    assert_eq!(refused().await, 3);
    // MQTT 5 says why, and the connection lives on.
    device.publishes("devices/pump-7/freezer/1", hot).await;

    // 3.1.1 has no word for it: the connection ends.
    let mut old = harness.device("pump-8").version(Version::V311).connect().await;
    assert_eq!(old.subscribe("devices/#").await, "Failure");
    assert_eq!(old.publish("devices/pump-7/freezer/1", hot).await, "closed");
    assert_eq!(refused().await, 5);

    // Without an entry of its own a device has its own branch and nothing else.
    let mut other = harness.device("valve-1").connect().await;
    assert_eq!(other.publish("devices/pump-7/freezer/2", hot).await, "NotAuthorized");
    other.publishes("devices/valve-1/freezer/2", hot).await;

    harness.api.emptied().await;
    let mut told = fake.texts();
    told.sort();
    assert_eq!(told, ["freezer 1: 1.0 °C", "freezer 2: 1.0 °C"]);
    harness.stop().await;
}

#[tokio::test]
async fn whoever_has_no_name_stays_outside() {
    // As it is for peers on other machines.
    let place = Place::new("[broker]\nanonymous = 'never'").rules(ALARM);
    let harness = place.start().await;
    for version in [Version::V311, Version::V5] {
        let nobody = harness.anonymous("nobody").version(version).try_connect().await;
        assert_eq!(nobody.err().unwrap(), "NotAuthorized");
        let mut options = harness.device("nobody").version(version);
        options.tls.as_mut().unwrap().1 = None;
        assert_eq!(options.try_connect().await.err().unwrap(), "NotAuthorized");
        // A certificate stands for one client id.
        let mut options = harness.device("pump-7").version(version);
        options.client_id = "pump-8".to_owned();
        assert_eq!(options.try_connect().await.err().unwrap(), "NotAuthorized");
    }
    assert_eq!(harness.api.metric("refused_total{reason=\"not_authorized\"}").await, 6);
    let mut device = harness.device("pump-7").connect().await;
    device.publishes("devices/pump-7/alarm", "in").await;
    harness.api.message_that_is("delivered", "alarm in").await;
    harness.stop().await;
}

#[tokio::test]
async fn a_device_with_a_password() {
    let place = Place::new("[broker]\nanonymous = 'never'").rules(ALARM);
    let harness = place.start().await;
    let (status, added) = harness.api.post("/v1/devices", &json!({ "user": "pump-8" })).await;
    assert_eq!(status, 201, "{added}");
    let password = added["password"].as_str().unwrap().to_owned();

    let options = |version, client_id: &str, password: &str| {
        let mut options = harness.device("pump-8").version(version).login("pump-8", password);
        options.tls.as_mut().unwrap().1 = None;
        options.client_id = client_id.to_owned();
        options
    };
    for version in [Version::V311, Version::V5] {
        let wrong = options(version, "pump-8", "wrong").try_connect().await;
        assert_eq!(wrong.err().unwrap(), "BadUserNamePassword");
        let other = options(version, "pump-9", &password).try_connect().await;
        assert_eq!(other.err().unwrap(), "NotAuthorized");
        let mut device = options(version, "pump-8", &password).connect().await;
        device.publishes("devices/pump-8/alarm", &format!("{version:?}")).await;
        harness.api.message_that_is("delivered", &format!("alarm {version:?}")).await;
    }
    let listed = harness.api.get("/v1/devices").await;
    assert_eq!(listed["devices"][0]["user"], "pump-8");
    assert!(!listed.to_string().contains(&password) && !listed.to_string().contains("argon2"));

    let (status, _) = harness.api.ask("DELETE", "/v1/devices/pump-8", None).await;
    assert_eq!(status, 204);
    let removed = options(Version::V5, "pump-8", &password).try_connect().await;
    assert_eq!(removed.err().unwrap(), "BadUserNamePassword");
    harness.stop().await;
}

#[tokio::test]
async fn a_payload_that_a_rule_cannot_use_is_counted_and_harms_nobody() {
    let (fake, _) = Twilio::start().await;
    let place = Place::new(&twilio("twilio-main", &fake)).rules(&format!("{FREEZER}{ALARM}"));
    let harness = place.start().await;
    // Others who say nothing, or nothing that makes sense, do not matter either.
    let silent = TcpStream::connect(harness.app.instance().mqtts.unwrap()).await.unwrap();
    let mut loud = TcpStream::connect(harness.app.instance().mqtt.unwrap()).await.unwrap();
    loud.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();

    let mut device = harness.device("pump-7").connect().await;
    let topic = "devices/pump-7/freezer/1";
    device.publishes(topic, "warm").await;
    device.publishes(topic, r#"{"temp_c": "warm"}"#).await;
    device.publishes(topic, "{}").await;
    let failures = async |reason: &str| {
        let name = format!("rule_failures_total{{rule=\"freezer-warm\",reason=\"{reason}\"}}");
        harness.api.metric(&name).await
    };
    assert_eq!(failures("undecodable_payload").await, 1);
    assert_eq!(failures("expression_failed").await, 2);
    device.publishes(topic, r#"{"temp_c": 2.0}"#).await;
    harness.api.message_that_is("sent", "freezer 1: 2.0 °C").await;
    assert_eq!(fake.count(), 1);
    harness.api.counted("connections_closed_total{reason=\"malformed_packet\"}", 1).await;
    drop(silent);
    harness.stop().await;
}

#[tokio::test]
async fn segments_are_counted_and_kept() {
    // Twilio's own count would win: this one says nothing of it.
    let fake = Fake::answering(|_| Answer::json(201, &json!({ "sid": "SM1" }))).await;
    let harness = Place::new(&twilio("twilio-main", &fake)).rules(ALARM).start().await;
    let mut device = harness.device("pump-7").connect().await;
    for (payload, encoding, count, units) in [
        ("x".repeat(154), "gsm7", 1, 160),
        ("x".repeat(155), "gsm7", 2, 161),
        ("€".repeat(3), "gsm7", 1, 12),
        ("я".repeat(64), "ucs2", 1, 70),
        ("я".repeat(65), "ucs2", 2, 71),
    ] {
        device.publishes("devices/pump-7/alarm", &payload).await;
        let message = harness.api.message_that_is("sent", &format!("alarm {payload}")).await;
        let expected = json!({ "encoding": encoding, "count": count, "units": units });
        assert_eq!(message["segments"], expected, "{payload}");
    }
    harness.stop().await;
}

fn names_of_rules(status: &Value) -> Vec<&str> {
    let rules = status["rules"]["rules"].as_array().unwrap();
    rules.iter().map(|rule| rule["name"].as_str().unwrap()).collect()
}

fn problems(status: &Value) -> String {
    let problems = status["rules"]["problems"].as_array().unwrap();
    problems.iter().map(|problem| problem.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn changed_rules_are_taken_and_bad_ones_are_not() {
    let (fake, _) = Twilio::start().await;
    let harness = Place::new(&twilio("twilio-main", &fake)).rules(FREEZER).start().await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes("devices/pump-7/freezer/1", r#"{"temp_c": -10.0}"#).await;
    device.publishes("devices/pump-7/alarm", "before").await;

    // By itself, because a file has changed.
    harness.place.write("rules/alarm.toml", ALARM);
    let names = async |expected: &[&str]| {
        let names = async || {
            let status = harness.api.status().await;
            let mut names = names_of_rules(&status);
            names.sort_unstable();
            (names == expected).then_some(())
        };
        found("the rules in force", names).await;
    };
    names(&["alarm", "freezer-warm"]).await;
    device.publishes("devices/pump-7/alarm", "after").await;
    harness.api.message_that_is("sent", "alarm after").await;

    // A bad file leaves what is in force in force, and the status says what is wrong.
    harness.place.write("rules/alarm.toml", &ALARM.replace("payload }}", "paylod }}"));
    harness.app.reload();
    let told = async || {
        let status = harness.api.status().await;
        (!problems(&status).is_empty()).then(|| problems(&status))
    };
    let told = found("problems", told).await;
    assert!(told.contains("alarm.toml:8: rule \"alarm\": `text`"), "{told}");
    assert!(told.contains("did you mean `payload`?"), "{told}");
    assert_eq!(harness.api.metric("rule_reloads_failed_total").await, 1);
    assert_eq!(harness.api.metric("rules_loaded").await, 2);
    device.publishes("devices/pump-7/alarm", "still").await;
    harness.api.message_that_is("sent", "alarm still").await;

    // Mended, it is taken; and what fires goes on firing under the new set.
    std::fs::remove_file(harness.place.path("rules/alarm.toml")).unwrap();
    harness.app.reload();
    names(&["freezer-warm"]).await;
    assert_eq!(problems(&harness.api.status().await), "");
    device.publishes("devices/pump-7/freezer/1", r#"{"temp_c": -9.0}"#).await;
    device.publishes("devices/pump-7/freezer/1", r#"{"temp_c": -20.0}"#).await;
    harness.api.message_that_is("sent", "freezer 1 is cold again: -20.0 °C").await;
    assert_eq!(fake.count(), 4, "{:?}", fake.texts());
    harness.stop().await;
}

#[tokio::test]
async fn without_any_provider_the_phone_shows_it() {
    let harness = Place::new(QUICK).rules(ALARM).start().await;
    let mut device = harness.device("pump-7").connect().await;
    device.publishes("devices/pump-7/alarm", "hello").await;
    eventually(|| !harness.app.screen().recent().is_empty()).await;
    let shown = harness.api.get("/v1/phone").await;
    assert_eq!(shown["messages"][0]["text"], "alarm hello");
    assert_eq!(shown["messages"][0]["address"], "+49…001");
    harness.api.message_that_is("delivered", "alarm hello").await;
    harness.stop().await;
}

#[tokio::test]
async fn after_an_outage_each_freezer_is_one_message_and_the_worst_is_first() {
    let (fake, twilio_side) = Twilio::start().await;
    fake.stop().await;
    let rule = |name: &str, severity: &str| {
        format!(
            "
            [[rule]]
            name = '{name}'
            topic = 'devices/{{device}}/{name}/{{unit}}'
            decode = 'text'
            severity = '{severity}'
            to = ['ana']
            by = ['sms']
            text = '{name} {{{{ unit }}}}: {{{{ payload }}}}'
            "
        )
    };
    let rules = format!("{}{}", rule("door", "info"), rule("freezer", "critical"));
    let config = format!(
        "{}concurrency = 1\n[dispatch]\ncollapse_after = '50ms'\n{}",
        twilio("twilio-main", &fake),
        QUICK.replace("[dispatch]", ""),
    );
    let harness = Place::new(&config).rules(&rules).start().await;
    let mut device = harness.device("pump-7").connect().await;
    for count in 1..=40 {
        for what in ["door", "freezer"] {
            let topic = format!("devices/pump-7/{what}/1");
            device.publishes(&topic, &count.to_string()).await;
        }
    }
    // Each try is in vain, and is the freezer's.
    let freezers = async || harness.api.messages("status=queued&rule=freezer").await.len();
    found("one of the freezer", async || (freezers().await == 1).then_some(())).await;
    let left_out = "messages_left_out_total{reason=\"superseded\"}";
    let counted = async || (harness.api.metric(left_out).await >= 39).then_some(());
    found("the others counted", counted).await;
    let place = harness.stop().await;

    let harness = place.start().await;
    fake.restart().await;
    harness.api.emptied().await;
    let texts = twilio_side.texts();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("freezer 1: 40"), "{texts:?}");
    assert!(texts[1].starts_with("door 1: 40"), "{texts:?}");
    for text in &texts {
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("\n40 events "), "{text}");
    }
    let superseded = harness.api.messages("status=canceled").await;
    assert_eq!(superseded.len(), 78);
    assert!(superseded.iter().all(|message| message["reason"] == json!("superseded")));
    harness.stop().await;
}
