//! The commands of the real binary, beside a running one and without: what they do, what they say,
//! their exit codes, and that nobody sees a secret.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::fake::{Answer, Fake, Twilio};
use crate::harness::{ALARM, ANA, Place, QUICK, TOKEN, found, twilio};
use crate::process::{Process, command, command_with};

const OTHER: &str = "+4915550100009";

/// What people read must hold these and nothing that is secret.
fn check(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part} is not in:\n{said}");
    }
    for secret in [ANA, OTHER, TOKEN, "5550100001", "5550100009", "argon2"] {
        assert!(!said.contains(secret), "{secret} is in:\n{said}");
    }
}

async fn start(fake: &Fake) -> Process {
    let config = format!("{QUICK}{}", twilio("twilio-main", fake));
    Process::start(Place::new(&config).rules(ALARM)).await
}

/// An id in the first column of what a command says.
fn first_word(said: &str) -> &str {
    said.split_whitespace().next().unwrap()
}

#[tokio::test]
async fn check_says_whom_the_configuration_keeps_from_being_reached() {
    let config = "
        [[provider]]
        name = 'hooks'
        kind = 'webhook'
        secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'
    ";
    let rules = "
        [[rule]]
        name = 'hot'
        topic = 'oven'
        when = 'payload > 200.0'
        to = ['plain', 'safe', 'dora']
        text = 'hot'
        [[contact]]
        name = 'plain'
        webhook = 'http://example.org/secret-path'
        [[contact]]
        name = 'safe'
        webhook = 'https://example.org/secret-path'
        [[contact]]
        name = 'dora'
        sms = '+4915550100007'
    ";
    let place = Place::new(config);
    place.write("rules/oven.toml", rules);
    let said = command(&place, &["check"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    let problems = [
        "rule \"hot\": `plain` is told by webhook (hooks: the address is plain http; `allow_http = true` would allow it); mend that",
        "rule \"hot\": `dora` is told by sms (no provider serves that); mend that",
    ];
    check(&said.out, &problems);
    assert!(!said.out.contains("`safe`") && !said.out.contains("secret-path"), "{said:?}");
}

#[tokio::test]
async fn check_says_what_is_wrong_and_where() {
    let place = Place::new(
        "
[broker]
listen = '127.0.0.1:0'

[[provider]]
name = 'twilio-main'
kind = 'twilio'
account_sid = 'AC0123456789abcdef0123456789abcdef'
auth_token = { env = 'TWILIO_AUTH_TOKEN' }
from = '+15005550006'
",
    )
    .rules(ALARM);
    let secret = [("TWILIO_AUTH_TOKEN", TOKEN)];
    let said = command_with(&place, &["check"], "", &secret).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    let fine = [
        "watchbell.toml: fine, delivers by twilio-main",
        "rules: fine, 1 rule and 2 contacts in 2 files",
    ];
    check(&said.out, &fine);

    // Secrets are fetched too: one that is not there is found before the start.
    let said = command(&place, &["check"]).await;
    assert_eq!((said.code, said.err.as_str()), (1, "error: 1 problem\n"));
    check(&said.out, &["watchbell.toml:9: provider[0].auth_token: ", "TWILIO_AUTH_TOKEN"]);

    place.write("rules/rules.toml", &ALARM.replace("payload }}", "paylod }}"));
    place.write("rules/more.toml", &format!("[[contact]]\nname = 'cleo'\nsms = '{ANA}x'\n"));
    place.write("watchbell.toml", "[broker]\nlisten = '0.0.0.0:1883'\n[api]\nlisten = 'here'\n");
    let said = command(&place, &["check"]).await;
    assert_eq!((said.code, said.err.as_str()), (1, "error: 4 problems\n"));
    let problems = [
        "watchbell.toml:2: broker.listen: 0.0.0.0:1883 can be reached",
        "watchbell.toml:4: api.listen: expected an address and a port",
        "rules/more.toml:3: contact \"cleo\": `sms`: not a phone number",
        "rules/rules.toml:8: rule \"alarm\": `text`: ",
    ];
    check(&said.out, &problems);

    place.write("rules/rules.toml", ALARM);
    place.write(
        "rules/more.toml",
        "[[suppress]]\nwhile = 'alrm'\nrules = ['alarm']\nsame = ['x']\n",
    );
    let said = command(&place, &["check"]).await;
    let warnings = [
        "warning: rules/more.toml:2: suppress 1: `while`: no rule is called `alrm`; did you mean `alarm`?",
        "warning: rules/more.toml:4: suppress 1: `same`: no rule of `rules` captures `x` in its topic",
    ];
    check(&said.out, &warnings);

    let said = command(&place, &["check", "--config", "no-such.toml"]).await;
    assert_eq!(said.code, 1);
    check(&said.out, &["no-such.toml: cannot be read"]);
    // A command line that makes no sense is another thing than one that fails.
    assert_eq!(command(&place, &["chekc"]).await.code, 2);
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_told_before_anything_runs() {
    let (fake, _) = Twilio::start().await;
    let process = start(&fake).await;
    let anywhere = ["--set", "api.listen=127.0.0.1:0", "--set", "broker.listen_tls=127.0.0.1:0"];
    let run = |more: &[&'static str]| [&["run"], more, &anywhere].concat();

    let why = process.refused(&run(&["--set", "broker.listen=127.0.0.1:0"])).await;
    check(&why, &["another watchbell is running with this data directory"]);

    let taken = format!("broker.listen={}", process.anonymous("x").address);
    let arguments = [&run(&["--data-dir", "other", "--set"])[..4], &[&taken], &anywhere].concat();
    let why = process.refused(&arguments).await;
    check(&why, &["address in use", "broker.listen"]);

    let why = process.refused(&run(&["--data-dir", "third", "--set", "api.page_max=0"])).await;
    check(&why, &["--set api.page_max", "api.page_max: 1 to 5000, found 0"]);
    assert!(!process.place.path("third").exists());
    // The one that runs has noticed nothing.
    check(&process.done(&["status"]).await, &["ready"]);
}

#[tokio::test]
async fn messages_are_sent_listed_shown_withdrawn_and_repeated() {
    let (fake, twilio) = Twilio::start().await;
    let refusing = json!({ "code": 21211, "message": format!("{ANA}, {TOKEN}"), "status": 400 });
    fake.script([Answer::json(400, &refusing)]);
    let process = start(&fake).await;

    let sent = process.done(&["send", "--to", "ana", "--by", "sms", "Pump 7 stands still"]).await;
    check(&sent, &["sms to ana: queued\n"]);
    let id = first_word(&sent).to_owned();
    process.api.message_that_is("failed", "Pump 7 stands still").await;
    let tail = &id[id.len() - 8..];
    let shown = process.done(&["outbox", "show", tail]).await;
    let parts = [
        "status    failed: bad_recipient",
        "Twilio 21211: +49…001, ***",
        "to        ana, +49…001, by sms",
        "attempt 1 by twilio-main: refused: bad_recipient",
    ];
    check(&shown, &parts);
    check(&process.done(&["outbox", "show", &id, "--json"]).await, &["\"attempts\"", &id]);
    check(&process.done(&["status"]).await, &["dead since the start: bad_recipient 1"]);

    let listed = process.done(&["outbox", "list", "--status", "failed"]).await;
    check(&listed, &[&id, "failed: bad_recipient", "ana", "Pump 7 stands still"]);
    check(&process.done(&["outbox", "list", "--status", "sent"]).await, &["no such messages"]);
    check(&process.done(&["outbox", "retry", "--all-failed"]).await, &[&id, "1 messages will be"]);
    process.api.message_that_is("sent", "Pump 7 stands still").await;
    check(&process.refused(&["outbox", "retry", tail]).await, &["not allowed now", "is sent"]);
    check(&process.refused(&["outbox", "cancel", tail]).await, &["only one that waits"]);
    check(&process.refused(&["outbox", "show", "ffffffff"]).await, &["begins or ends with"]);

    fake.stop().await;
    let sent = process.done(&["send", "--sms", OTHER, "--key", "k-1", "late"]).await;
    check(&sent, &["sms to +49…009: queued\n"]);
    let again = process.done(&["send", "--sms", OTHER, "--key", "k-1", "late"]).await;
    check(&again, &[first_word(&sent), "was queued before"]);
    let canceled = found("a cancellation", async || {
        let said = command(&process.place, &["outbox", "cancel", first_word(&sent)]).await;
        assert!(said.code == 0 || said.err.contains("under way"), "{said:?}");
        (said.code == 0).then_some(said.out)
    })
    .await;
    check(&canceled, &[first_word(&sent), "canceled"]);

    let why = process.refused(&["send", "--to", "anna", "x"]).await;
    check(&why, &["there is no contact `anna`; did you mean `ana`?"]);
    check(&process.refused(&["send", "--sms", "0155", "x"]).await, &["not a phone number"]);
    assert_eq!(twilio.texts(), ["Pump 7 stands still"]);
    check(&format!("{}{}", process.log(), process.out()), &["a message has ended"]);
}

#[tokio::test]
async fn a_stopped_lane_is_what_the_status_shows() {
    let refusing = json!({ "code": 20003, "message": TOKEN, "status": 401 });
    let fake = Fake::answering(move |_| Answer::json(401, &refusing)).await;
    let process = start(&fake).await;
    process.done(&["send", "--to", "ana", "--by", "sms", "a text that is in no log"]).await;
    let stopped = async || {
        let said = process.done(&["status"]).await;
        said.contains("stopped").then_some(said)
    };
    let said = found("a stopped lane", stopped).await;
    let parts = [
        "outbox   1 waiting",
        "twilio-main",
        "bad_credentials",
        "Twilio 20003: ***",
        "refuses our account or configuration; nothing is lost",
    ];
    check(&said, &parts);
    let status: Value = serde_json::from_str(&process.done(&["status", "--json"]).await).unwrap();
    assert_eq!(status["lanes"][0]["state"], "stopped");
    let log = process.log();
    check(&log, &["ERROR", "the provider refuses our account", "bad_credentials"]);
    assert!(!log.contains("a text that is in no log"), "{log}");
}

#[tokio::test]
async fn a_device_with_a_certificate_publishes_what_it_may() {
    let (fake, _) = Twilio::start().await;
    let process = start(&fake).await;
    check(&process.done(&["certs", "client", "pump-7"]).await, &["wrote certs/pump-7.key"]);
    check(&process.refused(&["certs", "client", "pump-7"]).await, &["--force replaces it"]);
    let listed = process.done(&["certs", "list"]).await;
    check(&listed, &["certs/ca.pem", "certs/pump-7.pem", "certs/server.pem", "in 39"]);

    let cert = ["pub", "--tls", "--cert", "certs/pump-7.pem", "--key", "certs/pump-7.key"];
    let publish = |more: &[&'static str]| [&cert, more].concat();
    let said = process.done(&publish(&["devices/pump-7/alarm", "by TLS"])).await;
    check(&said, &["published 6 bytes to devices/pump-7/alarm", "on disk"]);
    process.api.message_that_is("sent", "alarm by TLS").await;
    let why = process.refused(&publish(&["devices/pump-8/alarm", "x"])).await;
    check(&why, &["the publish was refused: not authorized", "[[access]]"]);
    let why = process.refused(&publish(&["--id", "pump-8", "devices/pump-8/alarm", "x"])).await;
    check(&why, &["the broker refused the connection: not authorized"]);
    check(&process.refused(&["pub", "a/#", "x"]).await, &["wildcard"]);
    // The log says who tried what.
    let parts = ["publish refused", "pump-7", "devices/pump-8/alarm", "not_authorized"];
    check(&process.log(), &parts);

    let arguments = ["pub", "--qos", "2", "devices/x/alarm", "-"];
    let said = command_with(&process.place, &arguments, "from a pipe", &[]).await;
    assert_eq!(said.code, 0, "{said:?}");
    process.api.message_that_is("sent", "alarm from a pipe").await;
    assert_eq!(fake.texts(), ["alarm by TLS", "alarm from a pipe"]);
}

#[tokio::test]
async fn devices_with_passwords_before_the_start_and_beside_it() {
    let place = Place::new("[broker]\nanonymous = 'never'").rules(ALARM);
    // Nothing runs: straight to the store.
    let password = "a given passw0rd";
    let arguments = ["device", "add", "gateway", "--client-id", "gw-*", "--password-stdin"];
    let said = command_with(&place, &arguments, &format!("{password}\n"), &[]).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    assert!(!said.out.contains(password), "{}", said.out);
    let short = command_with(&place, &arguments, "short\n", &[]).await;
    assert_eq!(short.code, 1);
    check(&short.err, &["password: 8 to 256"]);

    let process = Process::start(place).await;
    let added = process.done(&["device", "add", "pump-8"]).await;
    let made = added.lines().find_map(|line| line.strip_prefix("password ")).unwrap();
    let listed = process.done(&["device", "list"]).await;
    check(&listed, &["gateway  gw-*", "pump-8   pump-8"]);
    for (user, id, password, topic, expected) in [
        ("gateway", "gw-3", password, "devices/gw-3/alarm", Ok(())),
        ("pump-8", "pump-8", made, "devices/pump-8/alarm", Ok(())),
        ("pump-8", "pump-8", "wrong", "devices/pump-8/alarm", Err("user name")),
        ("gateway", "pump-8", password, "devices/pump-8/alarm", Err("not authorized")),
        ("pump-8", "pump-8", made, "devices/gw-3/alarm", Err("not authorized")),
    ] {
        let arguments =
            ["pub", "--tls", "--user", user, "--password-stdin", "--id", id, topic, "hi"];
        let said = command_with(&process.place, &arguments, password, &[]).await;
        match expected {
            Ok(()) => assert_eq!(said.code, 0, "{user} {id}: {said:?}"),
            Err(why) => {
                assert_eq!(said.code, 1, "{user} {id}");
                check(&said.err, &[why]);
            }
        }
    }
    process.done(&["device", "remove", "pump-8"]).await;
    check(&process.refused(&["device", "remove", "pump-8"]).await, &["there is no device"]);
    let everything = format!("{listed}{}{}", process.log(), process.out());
    assert!(!everything.contains(password) && !everything.contains(made), "{everything}");
}

#[tokio::test]
async fn a_newcomer_is_told_what_listens_and_what_to_type() {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/rules");
    let place = Place::new(&format!("rules_dir = '{rules}'"));
    let process = Process::start(place).await;
    let welcome = found("the welcome", async || {
        let out = process.out();
        out.contains("\n  watchbell pub ").then_some(out)
    })
    .await;
    for listener in process.api.status().await["listeners"].as_array().unwrap() {
        check(&welcome, &[listener["address"].as_str().unwrap()]);
    }
    // What it says to type is typed.
    let line = welcome.lines().find_map(|line| line.strip_prefix("  watchbell ")).unwrap();
    let words = crate::papers::words(line);
    process.done(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let shown = async || {
        let out = process.out();
        out.lines().find(|line| line.starts_with("phone ")).map(str::to_owned)
    };
    check(&found("the phone", shown).await, &["critical sms to ana: kiel freezer 1 is too warm"]);
}

#[tokio::test]
async fn what_a_crash_leaves_behind_is_no_instance() {
    let mut process = Process::start(Place::new("").rules(ALARM)).await;
    process.kill();
    assert!(process.place.path("data/instance.json").exists());
    for arguments in [&["status"][..], &["outbox", "list"], &["send", "--to", "ana", "x"]] {
        check(&process.refused(arguments).await, &["no watchbell is running with data directory"]);
    }
    check(&process.refused(&["pub", "a", "b"]).await, &["nothing listens there"]);
    check(&process.done(&["device", "list"]).await, &["There are no devices"]);
}

#[tokio::test]
async fn logs_for_machines_are_json() {
    let (fake, _) = Twilio::start().await;
    let config = format!("[telemetry]\nformat = 'json'\n{}", twilio("twilio-main", &fake));
    let mut process = Process::start(Place::new(&config).rules(ALARM)).await;
    process.done(&["send", "--to", "ana", "hello"]).await;
    process.api.message_that_is("sent", "hello").await;
    process.signal(rustix::process::Signal::TERM);
    assert!(process.ended().await.success());
    let log = process.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sent = lines.iter().find(|line| line["message"] == json!("sent")).unwrap();
    assert_eq!((&sent["level"], &sent["to"]), (&json!("INFO"), &json!("+49…001")));
    assert_eq!((&sent["provider"], &sent["attempt"]), (&json!("twilio-main"), &json!(1)));
    let fields: BTreeSet<&str> = sent.as_object().unwrap().keys().map(String::as_str).collect();
    assert!(fields.contains("message_id") && fields.contains("elapsed_ms"), "{fields:?}");
    check(&log, &["stopping"]);
}

#[tokio::test]
async fn record_writes_what_is_published_and_says_how_much() {
    let process = Process::start(Place::new("")).await;
    let mut device = process.anonymous("device").connect().await;
    let record = ["record", "--out", "traffic.jsonl", "--topic", "site/#", "--count", "3"];
    // It publishes until the recording has what it wants: when that began to listen nobody knows.
    let publish = async {
        loop {
            device.publish_with("site/kiel/1", 1, "{\"t\": \"ü\"}").await;
            device.publish_with("other", 1, "unheard").await;
        }
    };
    let said = tokio::select! {
        said = process.done(&record) => said,
        () = publish => unreachable!("it never ends"),
    };
    check(&said, &["3 publishes, ", " bytes in traffic.jsonl\n"]);
    let path = process.place.path("traffic.jsonl");
    let read: Vec<_> =
        watchbell::capture::Reader::open(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(read.len(), 3);
    for one in read {
        assert_eq!(
            (one.topic.as_str(), &*one.payload),
            ("site/kiel/1", "{\"t\": \"ü\"}".as_bytes())
        );
    }
    // Time is another end, and a file that is there is not overwritten.
    let said = process.done(&["record", "--out", "traffic.jsonl", "--for", "10ms"]).await;
    check(&said, &["0 publishes, 0 bytes in traffic.jsonl\n"]);
    assert!(process.place.path("traffic.jsonl.1").exists());

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let broker = port.to_string();
    let why = command(&process.place, &["record", "--out", "x", "--broker", &broker]).await;
    assert_eq!(why.code, 1);
    check(&why.err, &["nothing listens there"]);
    check(
        &process.refused(&["record", "--out", "x", "--topic", "a/#/b"]).await,
        &["--topic a/#/b"],
    );
}
