//! What rules and subscribers hear of clients: `$watchbell/client/EVENT/CLIENT_ID`.

use serde_json::{Value, json};

use crate::device::Device;
use crate::fake::Twilio;
use crate::harness::{Api, Harness, Place, QUICK, found, twilio};
use crate::raw::{Connect, Raw, v3, v5};

/// Every event is an alert of its own.
const TOLD: &str = r#"
[[rule]]
name = "told"
topic = "$watchbell/client/{event}/{client}"
to = ["ana"]
by = ["sms"]
text = "{{ event }} {{ client }}"
"#;

/// What a rule of a site says.
const SILENCED: &str = r#"
[[rule]]
name = "silenced"
topic = "$watchbell/client/{event}/{client}"
when = "payload.event == 'disconnected' && payload.reason == 'keep_alive_timeout'"
clear = "payload.event == 'connected'"
key = ["client"]
to = ["ana"]
by = ["sms"]
text = "{{ client }} by {{ payload.listener }}: {{ payload.reason }}"
text_clear = "{{ client }} is back"
"#;

/// A client that hears all events from here on.
async fn watcher(harness: &Harness) -> Device {
    let mut watcher = harness.anonymous("watcher").connect().await;
    assert_eq!(watcher.subscribe("$watchbell/client/#").await, "Success(AtLeastOnce)");
    watcher
}

/// The next event: its topic's last two levels, and its payload.
async fn next(watcher: &mut Device) -> (String, Value) {
    let (topic, payload) = watcher.receive().await;
    let rest = topic.strip_prefix("$watchbell/client/").unwrap().to_owned();
    (rest, serde_json::from_str(&payload).unwrap())
}

/// The next event, which has to be this one: topic and reason. Its payload.
async fn expect(watcher: &mut Device, topic: &str, reason: Option<&str>) -> Value {
    let (found, payload) = next(watcher).await;
    assert_eq!((found.as_str(), &payload["reason"]), (topic, &json!(reason)), "{payload}");
    payload
}

/// The texts of all messages, the oldest first.
async fn texts(api: &Api) -> Vec<String> {
    let messages = api.messages("").await;
    messages.iter().rev().map(|one| one["text"].as_str().unwrap().to_owned()).collect()
}

async fn in_and_out(harness: &Harness, connect: Connect<'_>, last: &[u8]) {
    let address = harness.app.instance().mqtt.unwrap();
    let (mut raw, _) = Raw::connected(address, &connect.bytes()).await;
    if last.is_empty() {
        raw.hang_up().await;
    } else {
        raw.send(last).await;
        raw.expect_closed().await;
    }
}

#[tokio::test]
async fn a_subscriber_hears_what_becomes_of_clients_in_order() {
    let harness = Harness::start("").await;
    let mut watcher = watcher(&harness).await;

    let pump = harness.device("pump-7").connect().await;
    let payload = expect(&mut watcher, "connected/pump-7", None).await;
    let at = payload["at"].as_str().unwrap();
    assert!(at.starts_with("20") && at.ends_with('Z'), "{at}");
    let expected = json!({
        "event": "connected", "client_id": "pump-7", "identity": "pump-7", "user": null,
        "address": "127.0.0.1", "listener": "mqtts", "reason": null, "clean": false, "at": at,
    });
    assert_eq!(payload, expected);

    // Another connection under the same name: one end, before the new beginning.
    let again = harness.device("pump-7").connect().await;
    expect(&mut watcher, "taken_over/pump-7", Some("taken_over")).await;
    expect(&mut watcher, "connected/pump-7", None).await;
    drop(pump);
    drop(again);
    let payload = expect(&mut watcher, "disconnected/pump-7", Some("connection_lost")).await;
    assert_eq!(payload["clean"], json!(false));

    in_and_out(&harness, v3("a"), b"\xe0\x00").await;
    expect(&mut watcher, "connected/a", None).await;
    let payload = expect(&mut watcher, "disconnected/a", Some("client_disconnect")).await;
    assert_eq!((&payload["clean"], &payload["listener"]), (&json!(true), &json!("mqtt")));

    // The will comes after the end, with the way by which its client had come.
    let will = Some((0, "site/b", &b"gone"[..], &b""[..]));
    in_and_out(&harness, Connect { will, ..v5("b") }, b"").await;
    expect(&mut watcher, "connected/b", None).await;
    expect(&mut watcher, "disconnected/b", Some("connection_lost")).await;
    let payload = expect(&mut watcher, "will/b", None).await;
    assert_eq!(payload["address"], json!("127.0.0.1"));
    // DISCONNECT with 0x04 asks for it.
    in_and_out(&harness, Connect { will, ..v5("b") }, b"\xe0\x01\x04").await;
    expect(&mut watcher, "connected/b", None).await;
    let payload = expect(&mut watcher, "disconnected/b", Some("client_disconnect")).await;
    assert_eq!(payload["clean"], json!(false));
    expect(&mut watcher, "will/b", None).await;

    // A packet that cannot be.
    in_and_out(&harness, v3("c"), b"\x00\x00").await;
    expect(&mut watcher, "connected/c", None).await;
    expect(&mut watcher, "disconnected/c", Some("protocol_error")).await;
    harness.stop().await;
}

#[tokio::test]
async fn a_refused_client_is_told_of_and_its_client_id_trusted_with_nothing() {
    let harness = Harness::start("").await;
    let mut watcher = watcher(&harness).await;
    let address = harness.app.instance().mqtt.unwrap();
    let long = "x".repeat(300);
    let cut = format!("{}…", "x".repeat(64));
    let user = Some(("pump-7\n", "wrong"));
    for (connect, topic, reason, client_id) in [
        (v5("a/b"), "refused/-", "bad_client_id", "a/b"),
        (v5("#"), "refused/-", "bad_client_id", "#"),
        (v5(&long), "refused/-", "bad_client_id", &*cut),
        (v3("two\nlines"), "refused/-", "bad_client_id", "two\\nlines"),
        (Connect { user, ..v5("pump-7") }, "refused/pump-7", "bad_credentials", "pump-7"),
    ] {
        let mut raw = Raw::open(address).await;
        raw.send(&connect.bytes()).await;
        assert!(raw.packet().await.is_some(), "{client_id}");
        let payload = expect(&mut watcher, topic, Some(reason)).await;
        assert_eq!(payload["client_id"], json!(client_id));
        let user = connect.user.map(|_| "pump-7\\n");
        assert_eq!(payload["user"], json!(user));
    }
    // What never said CONNECT is no client.
    let mut scanner = Raw::open(address).await;
    scanner.send(b"GET / HTTP/1.1\r\n\r\n").await;
    scanner.expect_closed().await;
    in_and_out(&harness, v3("z"), b"\xe0\x00").await;
    expect(&mut watcher, "connected/z", None).await;
    harness.stop().await;
}

#[tokio::test]
async fn subscribing_takes_a_grant() {
    let config = "
        [[access]]
        who = { identity = 'dashboard' }
        subscribe = ['$watchbell/client/#']
    ";
    let harness = Harness::start(config).await;
    let mut pump = harness.device("pump-7").connect().await;
    assert_eq!(pump.subscribe("$watchbell/client/#").await, "Unspecified");
    assert_eq!(pump.publish("$watchbell/client/connected/x", "{}").await, "TopicNameInvalid");
    let mut dashboard = harness.device("dashboard").connect().await;
    assert_eq!(dashboard.subscribe("$watchbell/client/#").await, "Success(AtLeastOnce)");
    drop(pump);
    expect(&mut dashboard, "disconnected/pump-7", Some("connection_lost")).await;
    harness.stop().await;
}

#[tokio::test]
async fn a_rule_raises_when_a_device_falls_silent_and_clears_when_it_is_back() {
    let (fake, _) = Twilio::start().await;
    let config = format!("{QUICK}{}", twilio("twilio-main", &fake));
    let harness = Place::new(&config).rules(SILENCED).start().await;
    let address = harness.app.instance().mqtt.unwrap();
    let connect = Connect { keep_alive: 1, ..v5("pump-7") }.bytes();
    let (mut raw, _) = Raw::connected(address, &connect).await;
    // DISCONNECT, keep-alive timeout.
    assert_eq!(raw.packet().await.unwrap()[..1], [0xe0]);
    harness.api.message_that_is("sent", "pump-7 by mqtt: keep_alive_timeout").await;
    let back = harness.anonymous("pump-7").connect().await;
    harness.api.message_that_is("sent", "pump-7 is back").await;
    // An end of another kind is none of this rule's.
    drop(back);
    let back = harness.anonymous("pump-7").connect().await;
    assert_eq!(texts(&harness.api).await.len(), 2);
    drop(back);
    harness.stop().await;
}

#[tokio::test]
async fn what_is_not_taken_is_offered_again_and_a_storm_of_refusals_pushes_out_itself_only() {
    let (fake, _) = Twilio::start().await;
    fake.stop().await;
    let config = format!(
        "{}{QUICK}
        [intake]
        outbox_messages_max = 1
        [broker]
        client_events_max = 16",
        twilio("twilio-main", &fake)
    );
    let harness = Place::new(&config).rules(TOLD).start().await;
    let address = harness.app.instance().mqtt.unwrap();
    let pump = harness.anonymous("pump-7").connect().await;
    found("the first", async || (texts(&harness.api).await.len() == 1).then_some(())).await;
    // The outbox is full from here on.
    drop(pump);
    for _ in 0..100 {
        let mut raw = Raw::open(address).await;
        raw.send(&v5("a/b").bytes()).await;
        assert!(raw.packet().await.is_some());
    }
    let dropped = "client_events_dropped_total{reason=\"queue_full\"}";
    found("a full queue", async || (harness.api.metric(dropped).await > 0).then_some(())).await;
    let back = harness.anonymous("pump-7").connect().await;
    found("a refusal", async || {
        (harness.api.metric("refused_total{reason=\"outbox_full\"}").await > 0).then_some(())
    })
    .await;
    fake.restart().await;
    // In order, and none of them lost.
    let of_pump = ["connected pump-7", "disconnected pump-7", "connected pump-7"];
    found("all of the pump's", async || {
        let texts = texts(&harness.api).await;
        let found: Vec<_> = texts.iter().filter(|text| text.ends_with("pump-7")).collect();
        (found == of_pump).then_some(())
    })
    .await;
    drop(back);
    harness.stop().await;
}

#[tokio::test]
async fn a_stop_and_a_start_tell_of_nobody_who_was_there_before() {
    let (fake, _) = Twilio::start().await;
    let config = format!("{QUICK}{}", twilio("twilio-main", &fake));
    let harness = Place::new(&config).rules(TOLD).start().await;
    let first = harness.anonymous("first").connect().await;
    let second = harness.device("second").connect().await;
    let both = ["connected first", "connected second"];
    found("both", async || (texts(&harness.api).await == both).then_some(())).await;
    let harness = harness.stop().await.start().await;
    drop((first, second));
    let third = harness.anonymous("third").connect().await;
    let all = ["connected first", "connected second", "connected third"];
    found("the third", async || (texts(&harness.api).await.len() > 2).then_some(())).await;
    assert_eq!(texts(&harness.api).await, all);
    drop(third);
    harness.stop().await;
}
