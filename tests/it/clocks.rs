//! Clocks that are set, machines that are booted, processes that are killed: what lasts goes on as it
//! was, what goes by the clock on the wall follows it, and nobody is taken for silent.
//!
//! The real binary, whose clocks a file shifts. That is only in what is built for debugging.

use std::time::Duration;

use serde_json::json;

use crate::device::Device;
use crate::fake::{Answer, Fake, Twilio};
use crate::harness::{ALARM, Place, QUICK, found, twilio};
use crate::process::Process;

const HOUR: i64 = 3_600_000;

/// The clocks of the process's machine.
struct Machine {
    boot: u32,
    since_boot: i64,
    wall: i64,
}

impl Machine {
    /// As it is, in its first boot.
    fn new(place: &Place) -> Self {
        let machine = Self { boot: 1, since_boot: 0, wall: 0 };
        machine.write(place);
        machine
    }

    fn write(&self, place: &Place) {
        let Self { boot, since_boot, wall } = self;
        // Never half of it.
        place.write("clock.new", &format!("boot-{boot} {since_boot} {wall}"));
        std::fs::rename(place.path("clock.new"), place.path("clock")).unwrap();
    }

    /// Somebody sets the wall clock.
    fn set(&mut self, by: i64, place: &Place) {
        self.wall += by;
        self.write(place);
    }

    /// Time passes.
    fn pass(&mut self, millis: i64, place: &Place) {
        self.since_boot += millis;
        self.wall += millis;
        self.write(place);
    }

    /// It is switched off and on again, so long after.
    fn reboot(&mut self, away: i64, place: &Place) {
        self.boot += 1;
        self.wall += away;
        self.write(place);
    }
}

fn config(fake: &Fake) -> String {
    let twilio = twilio("one", fake);
    format!("{QUICK}{twilio}\n[channel.sms]\nproviders = ['one']\n[intake]\ncheckpoint = '100ms'\n")
}

const RULES: &str = r#"
[[rule]]
name = "held"
topic = "held/{d}"
when = "payload > 5"
for = "5m"
to = ["ana"]
by = ["sms"]
text = "held {{ d }}"

[[rule]]
name = "mute"
topic = "dead/{d}"
silent = "5m"
severity = "critical"
to = ["ana"]
by = ["sms"]
text = "{{ d }} is silent"
"#;

fn place(fake: &Fake) -> Place {
    let alarm = format!("{ALARM}severity = \"critical\"\n");
    Place::new(&config(fake)).rules(&format!("{alarm}{RULES}"))
}

/// The provider is away.
fn down(fake: &Fake) {
    fake.respond(|_| Answer::new(503));
}

/// And back.
fn up(fake: &Fake, twilio: &Twilio) {
    let twilio = twilio.clone();
    fake.respond(move |request| twilio.answer(request));
}

/// Waits for a message that says this; one that waited long says besides since when.
async fn told(twilio: &Twilio, text: &str) {
    let says = |told: &String| told.lines().next() == Some(text);
    let is_there = async || twilio.texts().iter().any(says).then_some(());
    found(&format!("{text:?}"), is_there).await;
}

/// A day forward ended every critical alert that waited, and nobody was told; an hour back stopped
/// sending, new alerts too, until the clock had caught up.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_expires_nothing_and_stops_nothing() {
    let (fake, twilio) = Twilio::start().await;
    let place = place(&fake);
    let mut machine = Machine::new(&place);
    let mut process = Process::start(place).await;
    let mut device = process.anonymous("pump-7").connect().await;
    let mut steps = 0;
    for (number, by) in [24 * HOUR, HOUR, -HOUR, -48 * HOUR].into_iter().enumerate() {
        // It waits, and its provider is away.
        down(&fake);
        device.publishes("devices/pump-7/alarm", &format!("waits {number}")).await;
        device.publishes(&format!("held/{number}"), "6").await;
        machine.set(by, &process.place);
        steps += 1;
        process.api.counted("clock_steps_total", steps).await;
        device.publishes("devices/pump-7/alarm", &format!("new {number}")).await;
        up(&fake, &twilio);
        told(&twilio, &format!("alarm waits {number}")).await;
        told(&twilio, &format!("alarm new {number}")).await;
        machine.pass(300_000, &process.place);
        told(&twilio, &format!("held {number}")).await;
        let problem = process.api.status().await["clock_problem"].clone();
        assert!(problem.as_str().is_some_and(|text| text.contains("was set")), "{problem}");
    }
    assert!(process.done(&["status"]).await.contains("clock    the wall clock was set back by 2d"));
    assert_eq!(process.log().matches("the wall clock was set").count(), 4, "{}", process.log());
    assert_eq!(process.api.messages("status=expired").await, [json!(null); 0]);
    // Between stop and start, in the same boot, the same.
    for (number, by) in [24 * HOUR, -48 * HOUR].into_iter().enumerate() {
        down(&fake);
        let mut device = process.anonymous("pump-8").connect().await;
        device.publishes("devices/pump-8/alarm", &format!("stays {number}")).await;
        process.kill();
        machine.set(by, &process.place);
        machine.pass(60_000, &process.place);
        process.restart().await;
        assert_eq!(process.api.metric("clock_steps_total").await, 1);
        up(&fake, &twilio);
        told(&twilio, &format!("alarm stays {number}")).await;
    }
}

/// Over another boot nobody knows whether the clock was set or the machine was off: a critical message
/// expired, and nobody was told.
#[tokio::test(flavor = "multi_thread")]
async fn after_another_boot_nothing_critical_expires_without_one_more_attempt() {
    let (fake, twilio) = Twilio::start().await;
    let place = place(&fake);
    let mut machine = Machine::new(&place);
    let mut process = Process::start(place).await;
    down(&fake);
    let send = |text: &str, severity: &str| json!({"to": ["ana"], "by": ["sms"], "text": text, "severity": severity, "expires_in": "24h"});
    process.api.send(send("critical", "critical")).await;
    process.api.send(send("info", "info")).await;
    process.kill();
    machine.reboot(25 * HOUR, &process.place);
    process.restart().await;
    process.api.message_that_is("expired", "info").await;
    // Once: killed and booted again it is not younger for it.
    let message = process.api.message_that_is("queued", "critical").await;
    process.kill();
    machine.reboot(60_000, &process.place);
    process.restart().await;
    let again = process.api.message_that_is("queued", "critical").await;
    assert_eq!(again["expires_at"], message["expires_at"]);
    up(&fake, &twilio);
    told(&twilio, "critical").await;
    assert_eq!(twilio.count(), 1, "{:?}", twilio.texts());
}

/// A machine without a clock begins each boot in the past: nothing was sent until NTP had answered,
/// and then everything had expired.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_a_clock_sends_before_and_after_it_is_set() {
    let (fake, twilio) = Twilio::start().await;
    let place = place(&fake);
    let mut machine = Machine::new(&place);
    let mut process = Process::start(place).await;
    down(&fake);
    process.anonymous("p").connect().await.publishes("devices/one/alarm", "before").await;
    process.kill();
    machine.reboot(-10_000 * HOUR, &process.place);
    process.restart().await;
    let problem = process.api.status().await["clock_problem"].clone();
    assert!(problem.as_str().is_some_and(|text| text.contains("is not set")), "{problem}");
    process.anonymous("p").connect().await.publishes("devices/two/alarm", "unset").await;
    // NTP: it was off for a day.
    machine.set(10_024 * HOUR, &process.place);
    process.api.counted("clock_steps_total", 2).await;
    process.anonymous("p").connect().await.publishes("devices/three/alarm", "after").await;
    up(&fake, &twilio);
    for text in ["alarm before", "alarm unset", "alarm after"] {
        told(&twilio, text).await;
    }
}

/// Time passes so that the process sees it pass: a leap is taken for a machine that slept.
async fn pass_slowly(machine: &mut Machine, process: &Process, device: &mut Device, secs: i64) {
    for _ in 0..secs / 9 {
        machine.pass(9_000, &process.place);
        // Answered by the thread that looks at the time first.
        device.publishes("held/nothing", "1").await;
    }
}

/// Killed, it says up to ten seconds before that it was alive; what devices said since was taken for
/// nothing, and each was missed at the next start.
#[tokio::test(flavor = "multi_thread")]
async fn devices_heard_just_before_a_kill_are_not_missed_after_it_and_silent_ones_are() {
    let (fake, twilio) = Twilio::start().await;
    let place = place(&fake);
    let mut machine = Machine::new(&place);
    let mut process = Process::start(place).await;
    let mut device = process.anonymous("p").connect().await;
    for name in ["a", "b", "c"] {
        device.publishes(&format!("dead/{name}"), "1").await;
    }
    // Seven seconds later, and not ten: the row that says so is that of the first second.
    machine.pass(7_000, &process.place);
    for name in ["a", "b", "c"] {
        device.publishes(&format!("dead/{name}"), "1").await;
    }
    process.kill();
    machine.pass(20 * 60_000, &process.place);
    process.restart().await;
    let mut device = process.anonymous("p").connect().await;
    pass_slowly(&mut machine, &process, &mut device, 225).await;
    device.publishes("dead/a", "1").await;
    device.publishes("devices/p/alarm", "still").await;
    told(&twilio, "alarm still").await;
    assert_eq!(process.api.metric("alerts_firing").await, 0);
    // Those that say nothing more are missed when their time is over.
    pass_slowly(&mut machine, &process, &mut device, 81).await;
    told(&twilio, "b is silent").await;
    told(&twilio, "c is silent").await;
    assert!(!twilio.texts().iter().any(|text| text == "a is silent"));
}

/// The clock goes back by hours and the silence is until a time on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_silence_until_a_time_follows_the_clock_and_one_for_a_time_does_not() {
    let (fake, twilio) = Twilio::start().await;
    let place = place(&fake);
    let mut machine = Machine::new(&place);
    let process = Process::start(place).await;
    let now = process.api.status().await["now"].as_str().unwrap().to_owned();
    let until = now.parse::<jiff::Timestamp>().unwrap() + Duration::from_secs(7_200);
    for (topic, key, value) in
        [("held/until", "until", until.to_string()), ("held/for", "for", "2h".to_owned())]
    {
        let mut silence = json!({"topic": topic, "by": "ana", "reason": "a test"});
        silence[key] = json!(value);
        let (code, answer) = process.api.post("/v1/silences", &silence).await;
        assert_eq!(code, 201, "{answer}");
    }
    let mut device = process.anonymous("p").connect().await;
    device.publishes("held/until", "6").await;
    device.publishes("held/for", "6").await;
    machine.pass(300_000, &process.place);
    process.api.counted("alerts_firing", 2).await;
    assert_eq!(twilio.count(), 0);
    // A step past its end ends it, and the other one stays.
    machine.set(3 * HOUR, &process.place);
    process.api.counted("clock_steps_total", 1).await;
    let is_told =
        async || twilio.texts().iter().any(|told| told.contains("held until")).then_some(());
    found("what was held until a time", is_told).await;
    assert_eq!(twilio.count(), 1, "{:?}", twilio.texts());
    machine.pass(2 * HOUR, &process.place);
    let is_told =
        async || twilio.texts().iter().any(|told| told.contains("held for")).then_some(());
    found("what was held for a time", is_told).await;
}
