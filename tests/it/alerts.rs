//! What operators see of alerts and do to them: real MQTT, the real binary, its own commands.

use regex::Regex;
use serde_json::{Value, json};

use crate::device::Device;
use crate::fake::{Answer, Fake, Twilio};
use crate::harness::{Api, Place, QUICK, found, twilio};
use crate::process::Process;

const RULES: &str = r#"
[[rule]]
name = "freezer-warm"
topic = "site/{site}/freezer/{unit}"
when = "payload.t > -12.0"
clear = "payload.t < -15.0"
key = ["site", "unit"]
repeat = "1s"
to = ["ana", "ben"]
by = ["sms"]
text = "{{ site }} freezer {{ unit }} is warm"
text_clear = "{{ site }} freezer {{ unit }} is cold"

[[rule]]
name = "pump-slow"
topic = "pump/{pump}"
when = "payload.rpm < 100"
for = "1h"
key = ["pump"]
severity = "critical"
to = ["ana"]
by = ["sms"]
text = "pump {{ pump }} is slow"

[[rule]]
name = "door-open"
topic = "door/{door}"
decode = "text"
when = "payload == 'open'"
key = ["door"]
mode = "shadow"
to = ["ana"]
by = ["sms"]
text = "door {{ door }} is open"
"#;

async fn start() -> (Process, Fake, Device) {
    let (fake, _) = Twilio::start().await;
    let config = format!("{QUICK}{}", twilio("twilio-main", &fake));
    let process = Process::start(Place::new(&config).rules(RULES)).await;
    let device = process.anonymous("device").connect().await;
    (process, fake, device)
}

/// Without what is another each time: times, ids, lengths of time.
fn steady(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, with) in [
        (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
        (r"\d{4}-\d{2}-\d{2}[ T]\d{2}:\d{2}:\d{2}(\.\d+)?Z", "TIME"),
        (r"(\d+(ms|s|m))+ ago", "AGO"),
        (r"until \d{2}:\d{2}( UTC)?( \w+)?", "until THEN"),
        (r"in (59m(\d+s)?|1h)", "SOON"),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, with).into_owned();
    }
    text
}

/// The only alert of this rule and key, once there is one.
async fn alert(api: &Api, rule: &str, key: &str) -> Value {
    found("the alert", async || {
        let page = api.get(&format!("/v1/alerts?rule={rule}&key={key}")).await;
        page["alerts"].as_array().unwrap().first().cloned()
    })
    .await
}

fn id(alert: &Value) -> &str {
    alert["id"].as_str().unwrap()
}

/// How many messages with this text have been sent.
async fn sent(api: &Api, text: &str) -> usize {
    let messages = api.messages("status=sent").await;
    messages.iter().filter(|message| message["text"] == json!(text)).count()
}

async fn sent_at_least(api: &Api, count: usize, text: &str) {
    let enough = async || (sent(api, text).await >= count).then_some(());
    found(&format!("{count} of {text}"), enough).await;
}

#[tokio::test]
async fn what_fires_is_listed_and_acknowledged_and_then_not_repeated() {
    let (mut process, _fake, mut device) = start().await;
    assert_eq!(process.done(&["alert", "list"]).await, "There are no such alerts.\n");
    device.publishes("site/kiel/freezer/1", r#"{"t": -10.0}"#).await;
    device.publishes("pump/7", r#"{"rpm": 20}"#).await;
    device.publishes("door/2", "open").await;
    // Each is told, and told again.
    sent_at_least(&process.api, 4, "kiel freezer 1 is warm").await;
    let listed = process.done(&["alert", "list"]).await;
    let listed = Regex::new(" {2,}").unwrap().replace_all(&steady(&listed), "  ").into_owned();
    insta::assert_snapshot!(listed, @r"
    ID  STATE  SEVERITY  SINCE  ALERT  TOLD  TEXT
    ID  firing  warning  TIME  door-open 2  shadow  door 2 is open
    ID  firing  warning  TIME  freezer-warm kiel/1  ana, ben  kiel freezer 1 is warm
    ID  fires SOON  critical  TIME  pump-slow 7  -
    ");
    let freezer = alert(&process.api, "freezer-warm", "kiel/1").await;
    assert!(freezer["told"][0]["repeat_at"].is_string(), "{freezer}");
    let status = found("a status", async || {
        let said = process.done(&["status"]).await;
        said.contains("2 firing, 1 pending").then_some(said)
    })
    .await;
    assert!(status.contains("in shadow, nobody is told: door-open\n"), "{status}");

    let acknowledge = ["alert", "ack", id(&freezer), "--by", "ana", "--note", "on my way"];
    assert_eq!(
        steady(&process.done(&acknowledge).await),
        "ID  freezer-warm kiel/1, acknowledged by ana\n"
    );
    let check = async |process: &Process| {
        let shown = process.done(&["alert", "show", id(&freezer)]).await;
        assert!(shown.contains("state     acknowledged, warning"), "{shown}");
        assert!(shown.contains("ack       by ana at ") && shown.contains(": on my way"), "{shown}");
        assert!(
            shown.contains("told      ben: warning, sms sent\n"),
            "repeated all the same: {shown}"
        );
    };
    check(&process).await;
    let pump = alert(&process.api, "pump-slow", "7").await;
    let why = process.refused(&["alert", "ack", id(&pump), "--by", "ana"]).await;
    assert!(why.contains("does not fire yet"), "{why}");
    let (status, _) = process.api.post(&format!("/v1/alerts/{}/ack", id(&pump)), &json!({})).await;
    assert_eq!(status, 422);

    process.kill();
    process.restart().await;
    check(&process).await;
    assert_eq!(id(&alert(&process.api, "pump-slow", "7").await), id(&pump));
    process.done(&["alert", "forget", id(&pump)]).await;
    let left = process.done(&["alert", "list", "--state", "pending"]).await;
    assert_eq!(left, "There are no such alerts.\n");

    let mut device = process.anonymous("device").connect().await;
    device.publishes("site/kiel/freezer/1", r#"{"t": -18.0}"#).await;
    sent_at_least(&process.api, 2, "kiel freezer 1 is cold").await;
    let explained = process.done(&["explain", id(&freezer)]).await;
    let conclusion = steady(explained.lines().last().unwrap());
    assert!(conclusion.starts_with("It was over at TIME. ana"), "{explained}");
    assert!(conclusion.contains("times, last by sms at TIME (sent)."), "{explained}");
    assert!(explained.contains("acknowledged by ana: on my way\n"), "{explained}");
    assert!(explained.contains("warning: when payload.t > -12.0; clear payload.t < -15.0\n"));
    let why = process.refused(&["alert", "show", id(&freezer)]).await;
    assert!(why.contains("neither fires nor is about to"), "{why}");
}

#[tokio::test]
async fn a_silence_holds_and_its_end_tells() {
    let (mut process, _fake, mut device) = start().await;
    let everything = ["silence", "add", "--for", "2h", "--by", "ana", "--reason", "x"];
    let why = process.refused(&everything).await;
    assert!(why.contains("it covers everything"));
    let add = ["silence", "add", "--rule", "freezer-*", "--label", "unit=1", "--for", "2h"];
    let add = [&add[..], &["--by", "ana", "--reason", "we defrost", "--name", "defrost"]].concat();
    let made = process.done(&add).await;
    assert!(made.contains("  rule freezer-*, unit=1 is silenced until "), "{made}");
    device.publishes("site/kiel/freezer/1", r#"{"t": -10.0}"#).await;
    let freezer = alert(&process.api, "freezer-warm", "kiel/1").await;
    let held = &freezer["told"][0];
    assert_eq!((&held["knows"], &held["held"]["reason"]), (&json!(null), &json!("silenced")));

    process.kill();
    process.restart().await;
    let listed = process.done(&["silence", "list"]).await;
    assert!(listed.contains("in force") && listed.contains("we defrost"), "{listed}");
    let explained = process.done(&["explain", id(&freezer)]).await;
    insta::assert_snapshot!(steady(&explained), @r"
    rule freezer-warm looks at site/{site}/freezer/{unit}
      warning: when payload.t > -12.0; clear payload.t < -15.0
      tells ana, ben
      kiel/1: firing since TIME, warning, heard of AGO; alert ID
    silence defrost (rule freezer-*, unit=1) of ana: we defrost; until TIME

      TIME  raised, warning, by a publish on site/kiel/freezer/1
      TIME  everybody: not told now: silenced, silence defrost of ana: we defrost; until THEN
                              A silence covers the alert.

    It fires since TIME. ana, ben were not told of freezer-warm kiel/1 at TIME: silenced, silence defrost of ana: we defrost; until THEN. A silence covers the alert.
    ");

    let question = ["explain", "--contact", "ana", "--topic", "site/kiel/freezer/1"];
    let explained = process.done(&question).await;
    let conclusion = steady(explained.lines().last().unwrap());
    insta::assert_snapshot!(conclusion, @"ana was not told of freezer-warm kiel/1 at TIME: silenced, silence defrost of ana: we defrost; until THEN. A silence covers the alert.");

    let mut device = process.anonymous("device").connect().await;
    device.publishes("site/kiel/freezer/2", r#"{"t": -10.0}"#).await;
    sent_at_least(&process.api, 2, "kiel freezer 2 is warm").await;
    let explained = process.done(&["explain", "--contact", "ana", "--since", "12h"]).await;
    let conclusion = explained.lines().last().unwrap();
    for part in ["ana was told ", "Not told of freezer-warm kiel/1 at "] {
        assert!(conclusion.contains(part), "{explained}");
    }
    let ack = format!("/v1/alerts/{}/ack", id(&freezer));
    let (status, _) = process.api.keyless().ask("POST", &ack, Some(&json!({"by": "ana"}))).await;
    assert_eq!(status, 401);

    process.done(&["silence", "end", "defrost"]).await;
    sent_at_least(&process.api, 2, "kiel freezer 1 is warm").await;
    let conclusion = process.done(&question).await;
    let conclusion = steady(conclusion.lines().last().unwrap());
    assert!(conclusion.starts_with("ana was told "), "{conclusion}");

    // Shelved: one alert, by its id.
    let shelve = ["silence", "add", "--alert", id(&freezer), "--for", "8h"];
    let shelve = [&shelve[..], &["--by", "ben", "--reason", "a part is ordered"]].concat();
    let made = process.done(&shelve).await;
    assert!(made.contains("rule freezer-warm, key kiel/1 is silenced"), "{made}");
    let why = process.refused(&["silence", "end", "nonsense"]).await;
    assert!(why.contains("there is no silence `nonsense`"), "{why}");
}

#[tokio::test]
async fn explain_says_in_words_why_nobody_was_told() {
    let (process, _fake, mut device) = start().await;
    device.publishes("door/2", "open").await;
    device.publishes("site/kiel/freezer/3", r#"{"t": -20.0}"#).await;
    device.publishes("pump/7", r#"{"rpm": 20}"#).await;
    device.publishes("pump/8", "no JSON").await;
    let mut conclusions = String::new();
    for question in [
        &["--contact", "anna"][..],
        &["--contact", "ben", "--topic", "pump/7"],
        &["--contact", "ana", "--topic", "pump/7"],
        &["--contact", "ana", "--topic", "pump/8"],
        &["--contact", "ana", "--topic", "pump/9"],
        &["--topic", "pump/+"],
        &["--contact", "ana", "--topic", "garden/#"],
        &["--contact", "ana", "--topic", "garden/1"],
        &["--contact", "ana", "--rule", "door-open"],
        &["--rule", "door-opened"],
        &["--rule", "pump-slow", "--topic", "door/2"],
        &["--contact", "ben", "--since", "12h"],
    ] {
        let said = process.done(&[&["explain"], question].concat()).await;
        let conclusion = steady(said.lines().last().unwrap());
        conclusions.push_str(&format!("{}\n  {conclusion}\n", question.join(" ")));
    }
    insta::assert_snapshot!(conclusions, @r"
    --contact anna
      There is no contact `anna`; did you mean `ana`?
    --contact ben --topic pump/7
      ben is not told: pump-slow does not name ben in `to`.
    --contact ana --topic pump/7
      ana was not told since TIME: pump-slow 7 is pending since TIME, fires at TIME.
    --contact ana --topic pump/8
      ana was not told since TIME: no alert was raised; pump-slow came to no result on pump/8 at TIME: expression_failed, `when`: a field is asked of text, which has no fields.
    --contact ana --topic pump/9
      ana was not told since TIME: no alert was raised. Whether anything is published, `watchbell record` shows.
    --topic pump/+
      Nobody was told since TIME: pump-slow 7 is pending since TIME, fires at TIME.
    --contact ana --topic garden/#
      No rule looks at garden/#: nothing published there raises an alert.
    --contact ana --topic garden/1
      No rule looks at garden/1: nothing published there raises an alert.
    --contact ana --rule door-open
      ana was not told of door-open 2 at TIME: shadow. The rule is in shadow mode: it only counts what it would do.
    --rule door-opened
      There is no rule `door-opened`; did you mean `door-open`?
    --rule pump-slow --topic door/2
      Rule pump-slow does not look at door/2: it looks at pump/{pump}.
    --contact ben --since 12h
      ben was not told since TIME: no alert was raised. Whether anything is published, `watchbell record` shows.
    ");
    let said = process.done(&["explain", "--rule", "pump-slow"]).await;
    insta::assert_snapshot!(steady(&said), @r"
    rule pump-slow looks at pump/{pump}
      critical: when payload.rpm < 100 for 1h
      tells ana
      without a result since the start: 1 expression_failed
      expression_failed at TIME, pump/8: `when`: a field is asked of text, which has no fields
      7: pending since TIME, critical, fires SOON, heard of AGO; alert ID

    since TIME:
      nothing was raised, decided or sent

    Nobody was told since TIME: pump-slow 7 is pending since TIME, fires at TIME.
    ");

    let process = &process;
    for (path, part) in [
        ("/v1/explain", "give the id of an alert"),
        ("/v1/explain?topic=a/%23/b", "`#` must be the last level"),
        ("/v1/explain?contcat=ana", "did you mean `contact`?"),
        ("/v1/alerts?state=fireing", "firing, acknowledged or pending"),
    ] {
        let (status, text) = process.api.ask("GET", path, None).await;
        assert!(status == 422 && text.contains(part), "{path}: {status} {text}");
    }
    for path in ["/v1/explain?rule=x", "/v1/silences"] {
        assert_eq!(process.api.keyless().ask("GET", path, None).await.0, 401, "{path}");
    }
    assert_eq!(process.api.keyless().ask("GET", "/v1/alerts", None).await.0, 200);
}

/// What is asked for is looked for, however much else was told since.
#[tokio::test]
async fn explain_finds_one_alert_among_many() {
    const MANY: usize = 520;
    let rules = format!(
        "{RULES}\n[[rule]]\nname = 'busy'\ntopic = 'busy/{{n}}'\nto = ['ana']\nby = ['sms']\n"
    );
    let (fake, _) = Twilio::start().await;
    let config = format!("{QUICK}{}", twilio("twilio-main", &fake));
    let process = Process::start(Place::new(&config).rules(&rules)).await;
    let mut device = process.anonymous("device").connect().await;
    device.publishes("site/kiel/freezer/1", r#"{"t": -10.0}"#).await;
    sent_at_least(&process.api, 2, "kiel freezer 1 is warm").await;
    let freezer = alert(&process.api, "freezer-warm", "kiel/1").await;
    process.done(&["alert", "ack", id(&freezer), "--by", "ana"]).await;
    for n in 0..MANY {
        device.publishes(&format!("busy/{n}"), "x").await;
    }
    for topic in ["site/kiel/freezer/1", "site/+/freezer/#"] {
        let explained = process.done(&["explain", "--contact", "ana", "--topic", topic]).await;
        assert!(explained.contains("raised, warning, by a publish on site/kiel/freezer/1\n"));
        let conclusion = explained.lines().last().unwrap();
        assert!(conclusion.starts_with("ana was told "), "{explained}");
    }
    let explained = process.done(&["explain", "--contact", "ana", "--topic", "busy/#"]).await;
    let conclusion = explained.lines().last().unwrap();
    assert!(conclusion.starts_with("ana was told 500 times or more, last by sms"), "{conclusion}");
}

/// Who was told once and not since is not told; and whose message was refused does not know.
#[tokio::test]
async fn a_message_that_was_lost_is_what_is_said() {
    let (process, fake, mut device) = start().await;
    device.publishes("site/kiel/freezer/1", r#"{"t": -10.0}"#).await;
    sent_at_least(&process.api, 2, "kiel freezer 1 is warm").await;
    let freezer = alert(&process.api, "freezer-warm", "kiel/1").await;
    process.done(&["alert", "ack", id(&freezer), "--by", "ana"]).await;
    let refusing = json!({ "code": 21211, "message": "no such number", "status": 400 });
    fake.script([Answer::json(400, &refusing), Answer::json(400, &refusing)]);
    device.publishes("site/kiel/freezer/2", r#"{"t": -10.0}"#).await;
    let listed = found("the refusal", async || {
        let listed = process.done(&["alert", "list", "--key", "kiel/2"]).await;
        listed.contains("ana: failed, ben: failed").then_some(listed)
    })
    .await;
    assert!(!listed.contains("kiel/1"), "{listed}");
    let second = alert(&process.api, "freezer-warm", "kiel/2").await;
    assert_eq!(second["told"][0]["message"]["reason"], json!("bad_recipient"));
    let shown = process.done(&["alert", "show", id(&second)]).await;
    assert!(shown.contains("told      ana: warning, sms failed: bad_recipient"), "{shown}");
    let explained = process.done(&["explain", "--contact", "ana", "--rule", "freezer-warm"]).await;
    let conclusion = steady(explained.lines().last().unwrap());
    assert!(
        conclusion.contains(
            "(sent). One message after that was lost: the sms of TIME is failed: bad_recipient"
        ),
        "{conclusion}"
    );
}

/// A message that has not been tried waits for a lane that another one has stopped.
#[tokio::test]
async fn what_a_message_waits_for_is_said() {
    let (process, fake, mut device) = start().await;
    let refusing = json!({ "code": 20003, "message": "Authenticate", "status": 401 });
    fake.script([Answer::json(401, &refusing)]);
    device.publishes("site/kiel/freezer/1", r#"{"t": -10.0}"#).await;
    let freezer = alert(&process.api, "freezer-warm", "kiel/1").await;
    let explained = found("the lane", async || {
        let explained = process.done(&["explain", id(&freezer)]).await;
        explained.contains("provider twilio-main is stopped: ").then_some(explained)
    })
    .await;
    let conclusion = steady(explained.lines().last().unwrap());
    assert!(conclusion.contains("bad_credentials, Twilio 20003"), "{explained}");
    device.publishes("site/kiel/freezer/2", r#"{"t": -10.0}"#).await;
    let question = ["explain", "--contact", "ana", "--topic", "site/kiel/freezer/2"];
    let conclusion = found("the message that waits", async || {
        let said = process.done(&question).await;
        said.lines().last().filter(|line| line.contains(" waits")).map(steady)
    })
    .await;
    assert!(
        conclusion.contains("the sms of TIME waits: twilio-main is stopped: bad_credentials"),
        "{conclusion}"
    );
}
