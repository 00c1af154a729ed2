//! Watchbell as a client of brokers that are there already: rumqttd in this process, and Debian's
//! mosquitto where it is installed.
//!
//! `TEST_MOSQUITTO=required` or `CI=true` makes it a failure where mosquitto is missing.

mod exact;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::device::{Options, Seen, Version};
use crate::fake::Twilio;
use crate::harness::{ALARM, Api, Harness, Place, QUICK, found, twilio};
use crate::process::Process;

/// Every publish of the plant is an alert of its own.
const PLANT_ALARM: &str = r#"
[[rule]]
name = "plant-alarm"
topic = "plant/devices/{device}/alarm"
decode = "text"
to = ["ana"]
by = ["push"]
text = "alarm {{ payload }}"
"#;

/// The plant's broker is away.
const AWAY: &str = r#"
[[rule]]
name = "upstream-away"
topic = "$watchbell/upstream/{upstream}"
when = "!payload.connected"
to = ["ana"]
by = ["push"]
text = "{{ upstream }} is away"
text_clear = "{{ upstream }} is back"
"#;

/// `[[upstream]]`, quick to come back.
fn upstream(address: SocketAddr, more: &str) -> String {
    format!(
        "
        [[upstream]]
        name = 'plant'
        url = ['mqtt://{address}']
        backoff_min = '10ms'
        backoff_max = '50ms'
        {more}
        "
    )
}

/// A port of this machine that nobody had a moment ago.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Debian's mosquitto, in a directory of its own. Dropped, it is killed.
struct Mosquitto {
    child: Child,
    address: SocketAddr,
    directory: TempDir,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Mosquitto {
    fn program() -> Option<PathBuf> {
        let places = ["/usr/sbin/mosquitto", "/usr/bin/mosquitto", "/usr/local/sbin/mosquitto"];
        let program = places.iter().map(PathBuf::from).find(|place| place.exists());
        if program.is_none() {
            let is_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty() && ci != "false");
            let is_required = is_ci || std::env::var_os("TEST_MOSQUITTO").is_some();
            assert!(!is_required, "mosquitto is not installed");
            let told = std::io::stderr().write_all(b"SKIPPED: mosquitto is not installed\n");
            told.unwrap();
        }
        program
    }

    /// One that keeps sessions over restarts; `more` is of its configuration. `None` where it is
    /// not installed.
    async fn start(more: &str) -> Option<Self> {
        let program = Self::program()?;
        let directory = tempfile::tempdir().unwrap();
        // Whoever else has taken the port meanwhile: then another.
        for _ in 0..20 {
            let address = free_port();
            let path = directory.path().display();
            // Started by root it would become another user, who has no rights in this directory.
            let config = format!(
                "user root\nlistener {} 127.0.0.1\npersistence true\npersistence_location {path}/\n\
                 max_inflight_messages 20\n{more}\n",
                address.port()
            );
            std::fs::write(directory.path().join("mosquitto.conf"), config).unwrap();
            let mut child = Self::spawn(&program, &directory);
            if Self::listens(&mut child, address).await {
                return Some(Self { child, address, directory });
            }
        }
        panic!("no port for mosquitto: {}", Self::log(&directory));
    }

    fn spawn(program: &PathBuf, directory: &TempDir) -> Child {
        let path = directory.path().join("log.txt");
        let log = std::fs::File::options().create(true).append(true).open(path).unwrap();
        Command::new(program)
            .arg("-c")
            .arg(directory.path().join("mosquitto.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn log(directory: &TempDir) -> String {
        std::fs::read_to_string(directory.path().join("log.txt")).unwrap_or_default()
    }

    async fn listens(child: &mut Child, address: SocketAddr) -> bool {
        found("mosquitto, listening or ended", async || {
            if child.try_wait().unwrap().is_some() {
                return Some(false);
            }
            tokio::net::TcpStream::connect(address).await.ok().map(|_| true)
        })
        .await
    }

    /// Stops it in order: its sessions are written.
    async fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let child = &mut self.child;
        found("mosquitto's end", async || child.try_wait().unwrap()).await;
    }

    /// Starts it again, on the same port.
    async fn restart(&mut self) {
        let program = Self::program().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.child = Self::spawn(&program, &self.directory);
            if Self::listens(&mut self.child, self.address).await {
                return;
            }
            assert!(Instant::now() < deadline, "{}", Self::log(&self.directory));
        }
    }

    fn client(&self, id: &str) -> Options {
        Place::plain(self.address, id)
    }
}

/// rumqttd in this process, for each version of MQTT a port; it lasts as long as the process.
async fn rumqttd(version: Version) -> SocketAddr {
    // Whoever else has taken the port meanwhile: then another.
    for _ in 0..20 {
        let address = free_port();
        let config = rumqttd_config(version, address);
        // Its error is large, and nobody asks for it.
        let broker = std::thread::spawn(move || rumqttd::Broker::new(config).start().is_ok());
        let is_there =
            async || match Place::plain(address, "probe").version(version).try_connect().await {
                Ok(_) => Some(true),
                Err(_) => broker.is_finished().then_some(false),
            };
        if found("rumqttd, listening or ended", is_there).await {
            return address;
        }
    }
    panic!("no port for rumqttd");
}

fn rumqttd_config(version: Version, address: SocketAddr) -> rumqttd::Config {
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: 1 << 20,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: false,
    };
    let server = rumqttd::ServerSettings {
        name: "plant".to_owned(),
        listen: address,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    let servers = std::collections::HashMap::from([("plant".to_owned(), server)]);
    let (v4, v5) = match version {
        Version::V311 => (Some(servers), None),
        Version::V5 => (None, Some(servers)),
    };
    let router = rumqttd::RouterConfig {
        max_connections: 100,
        max_outgoing_packet_count: 200,
        max_segment_size: 1 << 20,
        max_segment_count: 10,
        custom_segment: None,
        initialized_filters: None,
        shared_subscriptions_strategy: rumqttd::Strategy::default(),
    };
    rumqttd::Config {
        id: 0,
        router,
        v4,
        v5,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    }
}

async fn connected(harness: &Harness) {
    harness.api.counted("upstream_connected{upstream=\"plant\"}", 1).await;
}

/// The alarms that became messages, in any order, each once.
async fn alarms(harness: &Harness) -> Vec<String> {
    let messages = harness.api.messages("").await;
    let mut texts: Vec<String> = messages
        .iter()
        .filter_map(|message| message["text"].as_str()?.strip_prefix("alarm ").map(str::to_owned))
        .collect();
    texts.sort();
    texts
}

async fn check_rumqttd(version: Version) {
    let address = rumqttd(version).await;
    let word = if version == Version::V5 { "5.0" } else { "3.1.1" };
    let more = format!(
        "version = '{word}'\nsubscribe = ['devices/#']\nprefix = 'plant/'\npublish = ['cmd/#']"
    );
    let harness = Place::new(&upstream(address, &more)).rules(PLANT_ALARM).start().await;
    connected(&harness).await;
    let mut watcher = harness.anonymous("watcher").connect().await;
    watcher.subscribe("plant/#").await;
    let mut device = Place::plain(address, "pump-7").version(version).connect().await;
    device.subscribe("cmd/#").await;
    device.publishes("devices/pump-7/alarm", "hot").await;
    // On disk before it is handed on.
    let (topic, payload) = watcher.receive().await;
    assert_eq!((topic.as_str(), payload.as_str()), ("plant/devices/pump-7/alarm", "hot"));
    assert_eq!(alarms(&harness).await, ["hot"]);

    watcher.publishes("plant/cmd/pump-7", "stop").await;
    assert_eq!(device.receive().await, ("cmd/pump-7".to_owned(), "stop".to_owned()));
    harness.api.counted("upstream_passed_total{upstream=\"plant\"}", 1).await;
    harness.stop().await;
}

#[tokio::test]
async fn rules_apply_to_the_devices_of_rumqttd_by_mqtt_3() {
    check_rumqttd(Version::V311).await;
}

#[tokio::test]
async fn rules_apply_to_the_devices_of_rumqttd_by_mqtt_5() {
    check_rumqttd(Version::V5).await;
}

#[tokio::test]
async fn what_came_while_we_were_away_and_what_was_to_go_is_there_after_both_restart() {
    let Some(mut plant) = Mosquitto::start("allow_anonymous true").await else { return };
    let more = "subscribe = ['devices/#']\nprefix = 'plant/'\npublish = ['cmd/#']";
    let rules = format!("{PLANT_ALARM}{AWAY}");
    let harness = Place::new(&upstream(plant.address, more)).rules(&rules).start().await;
    connected(&harness).await;
    assert!(harness.api.messages("").await.is_empty(), "a start is no alert");
    let mut local = harness.anonymous("local").connect().await;

    plant.stop().await;
    harness.api.message_that_is("delivered", "plant is away").await;
    let state = &harness.api.status().await["upstreams"][0];
    assert_eq!((&state["name"], &state["connected"]), (&json!("plant"), &json!(false)));
    assert!(state["reason"].as_str().unwrap().len() > 5, "{state}");
    local.publishes("plant/cmd/1", "while away").await;
    plant.restart().await;
    harness.api.message_that_is("delivered", "plant is back").await;
    harness.api.counted("upstream_passed_total{upstream=\"plant\"}", 1).await;

    // And the other way round: the upstream keeps what comes while we are down.
    let place = harness.stop().await;
    let mut device = plant.client("pump-7").connect().await;
    for number in 0..5 {
        device.publishes("devices/pump-7/alarm", &number.to_string()).await;
    }
    let harness = place.start().await;
    found("all five", async || (alarms(&harness).await.len() == 5).then_some(())).await;
    assert_eq!(alarms(&harness).await, ["0", "1", "2", "3", "4"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_publish_that_is_not_taken_is_not_acknowledged_and_offered_again() {
    let Some(plant) = Mosquitto::start("allow_anonymous true").await else { return };
    let (fake, _) = Twilio::start().await;
    fake.stop().await;
    let config = format!(
        "{}{QUICK}\n[intake]\noutbox_messages_max = 1\n{}",
        twilio("twilio-main", &fake),
        upstream(plant.address, "subscribe = ['devices/#']\ninflight_max = 2"),
    );
    let harness = Place::new(&config).rules(ALARM).start().await;
    connected(&harness).await;
    let mut device = plant.client("pump-7").connect().await;
    for number in 0..10 {
        device.publishes("devices/pump-7/alarm", &number.to_string()).await;
    }
    let refused = "upstream_refused_total{upstream=\"plant\",reason=\"outbox_full\"}";
    found("a refusal", async || (harness.api.metric(refused).await > 0).then_some(())).await;
    // The first is with the store, or is there already; no second follows it.
    harness.api.counted("upstream_taken_total{upstream=\"plant\"}", 1).await;
    // In the same run, as soon as there is room: each once, in order, and none lost.
    fake.restart().await;
    harness.api.counted("upstream_taken_total{upstream=\"plant\"}", 10).await;
    let expected: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    assert_eq!(alarms(&harness).await, expected);
    // And all were acknowledged: another run gets from the upstream only what is new.
    let harness = harness.stop().await.start().await;
    connected(&harness).await;
    device.publishes("devices/pump-7/alarm", "new").await;
    harness.api.counted("upstream_taken_total{upstream=\"plant\"}", 1).await;
    assert_eq!(alarms(&harness).await, [expected, vec!["new".to_owned()]].concat());
    harness.stop().await;
}

#[tokio::test]
async fn two_instances_share_one_stream_and_one_goes_on_while_the_other_is_killed() {
    let Some(plant) = Mosquitto::start("allow_anonymous true\nmax_queued_messages 0").await else {
        return;
    };
    let start = async |id: &str| {
        let more = format!(
            "client_id = '{id}'\nshare = 'watchbell'\nsubscribe = ['devices/#']\nprefix = 'plant/'"
        );
        let place = Place::new(&upstream(plant.address, &more)).rules(PLANT_ALARM);
        let process = Process::start(place).await;
        process.api.counted("upstream_connected{upstream=\"plant\"}", 1).await;
        process
    };
    let (mut one, other) = (start("one").await, start("other").await);
    let texts = async |api: &Api| {
        let mut texts: Vec<String> = Vec::new();
        for message in api.messages("").await {
            texts.extend(message["text"].as_str().map(str::to_owned));
        }
        texts
    };
    let numbered = |numbers: std::ops::Range<u32>| {
        numbers.map(|number| format!("alarm {number}")).collect::<Vec<_>>()
    };
    let all = async |one: &Process, total: usize| {
        found("all of them", async || {
            let mut all = [texts(&one.api).await, texts(&other.api).await].concat();
            all.sort();
            // What was under way at the kill comes again.
            all.dedup();
            (all.len() == total).then_some(all)
        })
        .await
    };
    let mut device = plant.client("pump-7").connect().await;
    for number in 10..30 {
        device.publishes("devices/pump-7/alarm", &number.to_string()).await;
    }
    assert_eq!(all(&one, 20).await, numbered(10..30));
    let before = texts(&other.api).await.len();
    assert!(before > 0 && before < 20, "{before}");
    // With twenty under way; those that it has not acknowledged are its own to fetch.
    for number in 30..50 {
        device.send("devices/pump-7/alarm", 1, &number.to_string()).await;
    }
    one.kill();
    for number in 50..70 {
        device.publishes("devices/pump-7/alarm", &number.to_string()).await;
    }
    found("the other's share", async || {
        (texts(&other.api).await.len() >= before + 10).then_some(())
    })
    .await;
    one.restart().await;
    assert_eq!(all(&one, 60).await, numbered(10..70));
}

#[tokio::test]
async fn a_client_certificate_opens_a_broker_that_wants_one() {
    let place = Place::new("");
    let pair = place.certificate("watchbell");
    let path = |name: &str| place.path(name).display().to_string();
    let more = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true",
        path("certs/ca.pem"),
        path("certs/server.pem"),
        path("certs/server.key"),
    );
    let Some(plant) = Mosquitto::start(&more).await else { return };
    let upstream = |ca: &str, cert: &str| {
        let port = plant.address.port();
        format!(
            "
            [[upstream]]
            name = 'plant'
            url = ['mqtts://localhost:{port}']
            backoff_max = '1s'
            subscribe = ['devices/#']
            ca = '{ca}'
            {cert}
            "
        )
    };
    let ours = format!("cert = '{}'\nkey = '{}'", pair.cert.display(), pair.key.display());
    let good = Harness::start(&upstream(&path("certs/ca.pem"), &ours)).await;
    connected(&good).await;
    good.stop().await;

    let stranger = Place::new("");
    let foreign = stranger.path("certs/ca.pem").display().to_string();
    for (ca, cert, expected) in [
        (foreign, ours.as_str(), "a CA that is not in `ca`"),
        (path("certs/ca.pem"), "", "set cert and key"),
    ] {
        let bad = Harness::start(&upstream(&ca, cert)).await;
        let told = async || {
            let status = bad.api.status().await;
            let reason = status["upstreams"][0]["reason"].as_str()?.to_owned();
            reason.contains(expected).then_some(())
        };
        found(expected, told).await;
        bad.stop().await;
    }
}

#[tokio::test]
async fn a_refused_filter_is_told_with_its_reason() {
    // Debian's mosquitto grants every subscription; Watchbell grants one.
    let plant = Harness::start("[broker]\nsubscriptions_max = 1").await;
    let address = plant.app.instance().mqtt.unwrap();
    for (version, expected) in [("3.1.1", "b/#: refused"), ("5.0", "b/#: quota exceeded")] {
        let more = format!("version = '{version}'\nsubscribe = ['a/#', 'b/#']");
        let process = Process::start(Place::new(&upstream(address, &more))).await;
        process.api.counted("upstream_connected{upstream=\"plant\"}", 1).await;
        let status = process.api.status().await;
        assert_eq!(status["upstreams"][0]["refused"], json!([expected]), "{version}");
        let out = process.done(&["status"]).await;
        assert!(out.contains(&format!("refuses {expected}")), "{out}");
    }
    plant.stop().await;
}

#[tokio::test]
async fn a_refused_login_is_told_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let acl = directory.path().join("acl");
    std::fs::write(&acl, "topic readwrite devices/#\n").unwrap();
    let passwords = directory.path().join("passwords");
    std::fs::write(&passwords, "").unwrap();
    let more = format!(
        "allow_anonymous false\npassword_file {}\nacl_file {}",
        passwords.display(),
        acl.display()
    );
    let Some(plant) = Mosquitto::start(&more).await else { return };
    for version in ["3.1.1", "5.0"] {
        let login = format!("version = '{version}'\nuser = 'ana'\npassword = 'hunter2'");
        let more = format!("{login}\nsubscribe = ['devices/#']");
        let harness = Harness::start(&upstream(plant.address, &more)).await;
        let told = async || {
            let status = harness.api.status().await;
            assert!(!status.to_string().contains("hunter2"));
            let reason = status["upstreams"][0]["reason"].as_str()?.to_owned();
            reason.contains("see user, password and cert").then_some(())
        };
        found("a refused login", told).await;
        harness.stop().await;
    }
}

#[tokio::test]
async fn nobody_but_the_process_publishes_below_its_own_topic() {
    let harness = Place::new("").rules(AWAY).start().await;
    let mut device = harness.anonymous("liar").connect().await;
    let said = device.publish("$watchbell/upstream/plant", r#"{"connected": false}"#).await;
    assert_eq!(said, "TopicNameInvalid");
    assert!(harness.api.messages("").await.is_empty());
    harness.stop().await;
}

#[tokio::test]
async fn everything_that_a_plant_s_broker_acknowledged_is_an_alert_after_kill_9() {
    let Some(plant) = Mosquitto::start("allow_anonymous true\nmax_queued_messages 0").await else {
        return;
    };
    let config = upstream(plant.address, "subscribe = ['devices/#']\nprefix = 'plant/'");
    let mut process = Process::start(Place::new(&config).rules(PLANT_ALARM)).await;
    process.api.counted("upstream_connected{upstream=\"plant\"}", 1).await;
    let mut device = plant.client("pump-7").connect().await;
    let total = 200;
    let (mut sent, mut answered) = (0, 0);
    while answered < total {
        // Some at a time, so that it is killed in the middle of a stream.
        while sent < total && sent < answered + 10 {
            device.send("devices/pump-7/alarm", 1, &format!("{sent:03}")).await;
            sent += 1;
        }
        if let Seen::Answered(..) = device.see().await {
            answered += 1;
            if answered == 60 || answered == 130 {
                process.kill();
                process.restart().await;
            }
        }
    }
    let texts = async || {
        let mut texts: Vec<String> = Vec::new();
        for message in process.api.messages("").await {
            texts.extend(message["text"].as_str().map(str::to_owned));
        }
        texts.sort();
        texts.dedup();
        (texts.len() == total).then_some(texts)
    };
    let texts = found("every alarm", texts).await;
    let expected: Vec<String> = (0..total).map(|number| format!("alarm {number:03}")).collect();
    assert_eq!(texts, expected);
}

#[tokio::test]
async fn every_upstream_is_in_the_status_that_people_read() {
    let nobody = free_port();
    let place = Place::new(&upstream(nobody, "subscribe = ['#']"));
    let process = Process::start(place).await;
    let told = async || {
        let out = process.done(&["status"]).await;
        out.contains("nothing listens there").then_some(out)
    };
    let out = found("the reason", told).await;
    assert!(out.contains("UPSTREAM") && out.contains("plant") && out.contains("away"), "{out}");
    let status: Value = process.api.status().await;
    assert_eq!(status["upstreams"][0]["address"], json!(format!("mqtt://{nobody}")));
}

#[tokio::test]
async fn what_waits_for_an_upstream_is_counted_and_ends_with_its_configuration() {
    let config = upstream(free_port(), "publish = ['cmd/#']\nprefix = 'plant/'");
    let harness = Harness::start(&config).await;
    let mut local = harness.anonymous("local").connect().await;
    let queued =
        async |harness: &Harness| harness.api.status().await["upstreams"][0]["queued"].clone();
    for number in 0..3 {
        local.publishes("plant/cmd/1", &number.to_string()).await;
    }
    assert_eq!(queued(&harness).await, json!(3));
    // It waits over a restart, and goes when nobody is left whom it waits for.
    let harness = harness.stop().await.start().await;
    assert_eq!(queued(&harness).await, json!(3));
    let place = harness.stop().await.configured("");
    let place = place.start().await.stop().await.configured(&config);
    let harness = place.start().await;
    found("its session", async || (queued(&harness).await == json!(0)).then_some(())).await;
    harness.stop().await;
}

#[tokio::test]
async fn a_state_of_before_a_kill_is_not_told_as_the_present_one() {
    let Some(plant) = Mosquitto::start("allow_anonymous true").await else { return };
    let subscribe = "subscribe = ['devices/#']";
    let place = Place::new(&upstream(plant.address, subscribe)).rules(AWAY);
    let mut process = Process::start(place).await;
    process.api.counted("upstream_connected{upstream=\"plant\"}", 1).await;
    let state = "$watchbell/upstream/plant";
    let told = async |process: &Process, id: &str| {
        let mut watcher = process.anonymous(id).connect().await;
        watcher.subscribe(state).await;
        let (_, payload) = watcher.receive().await;
        serde_json::from_str::<Value>(&payload).unwrap()["connected"].clone()
    };
    assert_eq!(told(&process, "one").await, json!(true));
    process.kill();
    // A broker that takes the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = upstream(silent.local_addr().unwrap(), "connect_timeout = '5m'");
    process.place.write("watchbell.toml", &format!("{config}\n{subscribe}"));
    process.restart().await;
    let mut watcher = process.anonymous("two").connect().await;
    watcher.subscribe(state).await;
    watcher.subscribe("marker").await;
    watcher.publishes("marker", "").await;
    assert_eq!(watcher.receive().await.0, "marker", "nothing is known yet");
    assert!(process.api.messages("").await.is_empty(), "a start is no alert");
    // One that has gone while we were away is an alert, and the present state.
    process.kill();
    drop(silent);
    process.restart().await;
    process.api.message_that_is("delivered", "plant is away").await;
    found("the state", async || (told(&process, "three").await == json!(false)).then_some(()))
        .await;
}
