//! kill -9 at any moment: what was acknowledged arrives, and what arrives twice says why.
//!
//! The real binary takes alerts from a device that, as MQTT wants it, sends again what was not
//! acknowledged, while it is killed and started again at random points, under every bad manner of
//! a provider. `TEST_SOAK=1` makes it 1000 alerts and several rounds; a failure names its
//! seed, and `TEST_SEED` repeats it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::device::{Seen, Version};
use crate::fake::{Answer, Cut, Fake, Request, Twilio};
use crate::harness::{ALARM, Place, QUICK, found, twilio};
use crate::process::Process;

/// How the provider behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It refuses connections until every alert is acknowledged.
    Down,
    /// Half of its answers are 503.
    Failing,
    /// Now and then it answers 429 and asks for a second's rest.
    Throttling,
    /// It breaks connections after it has read a request, most of which it has taken; its list of
    /// messages tells which.
    Cutting,
    /// The same, and the list cannot be had.
    CuttingBlindly,
}

/// Numbers that look random and are the same for the same seed.
#[derive(Clone, Debug)]
struct Dice(Arc<AtomicU64>);

impl Dice {
    fn throw(&self, sides: u64) -> u64 {
        // SplitMix64.
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let mut value = self.0.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (value ^ (value >> 31)) % sides
    }
}

fn soaking() -> bool {
    std::env::var_os("TEST_SOAK").is_some()
}

fn answer(manner: Manner, twilio: &Twilio, dice: &Dice, request: &Request) -> Answer {
    let is_list = request.method != "POST";
    match manner {
        Manner::CuttingBlindly if is_list => Answer::new(500),
        _ if is_list => twilio.answer(request),
        Manner::Failing if dice.throw(2) == 0 => Answer::new(503),
        Manner::Throttling if dice.throw(100) == 0 => Answer::new(429).header("retry-after", "1"),
        Manner::Cutting | Manner::CuttingBlindly => match dice.throw(6) {
            0 | 1 => twilio.answer(request).but_cut(Cut::AfterReading),
            2 => Answer::cut(Cut::AfterReading),
            _ => twilio.answer(request),
        },
        _ => twilio.answer(request),
    }
}

/// The process under test, the provider, and the points at which the process is killed.
struct Ordeal {
    process: Process,
    twilio: Twilio,
    manner: Manner,
    count: usize,
    /// When so much has happened, the process is killed; the latest first.
    kills: Vec<usize>,
    acknowledged: BTreeSet<usize>,
    /// How often each publish has left.
    sent: Vec<usize>,
}

impl Ordeal {
    /// Kills the process and starts it again, if it is time.
    async fn perhaps_kill(&mut self) -> bool {
        let happened = self.acknowledged.len() + self.twilio.count();
        let killed = self.kills.pop_if(|at| *at <= happened).is_some();
        if killed {
            self.process.kill();
        }
        killed
    }

    /// Publishes until every alert is acknowledged, over as many connections as it takes.
    async fn publish(&mut self) {
        while self.acknowledged.len() < self.count {
            let mut device = self.process.device("pump-7").version(Version::V311).connect().await;
            let left: Vec<usize> =
                (0..self.count).filter(|number| !self.acknowledged.contains(number)).collect();
            for number in &left {
                device.send("devices/pump-7/alarm", 1, &number.to_string()).await;
            }
            let mut killed = false;
            let mut answered = 0;
            while answered < left.len() {
                match device.see().await {
                    Seen::Sent(at) => self.sent[left[at]] += 1,
                    Seen::Answered(at, code) => {
                        assert_eq!(code, "Success");
                        self.acknowledged.insert(left[at]);
                        answered += 1;
                        killed = killed || self.perhaps_kill().await;
                    }
                    Seen::Closed(why) => {
                        assert!(killed, "the connection broke by itself: {why}");
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            if killed {
                self.process.restart().await;
            }
        }
    }

    /// Waits until everything has been sent, with the kills that are left.
    async fn deliver(&mut self) {
        loop {
            let waiting = found("progress", async || {
                let happened = self.acknowledged.len() + self.twilio.count();
                let waiting = self.process.api.status().await["outbox"]["waiting"].clone();
                let is_time = self.kills.last().is_some_and(|at| *at <= happened);
                (is_time || waiting == json!(0)).then_some(waiting)
            })
            .await;
            if self.perhaps_kill().await {
                self.process.restart().await;
            } else if waiting == json!(0) {
                return;
            }
        }
    }

    /// Every alert has arrived, and every copy is accounted for.
    async fn judge(&self, what: &str) {
        let mut copies: BTreeMap<String, usize> = BTreeMap::new();
        for text in self.twilio.texts() {
            *copies.entry(text).or_default() += 1;
        }
        let mut messages: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for message in self.process.api.messages("rule=alarm").await {
            let text = message["text"].as_str().unwrap().to_owned();
            messages.entry(text).or_default().push(message);
        }
        assert!(messages.len() <= self.count, "{what}: alerts that nobody published");
        for number in 0..self.count {
            let text = format!("alarm {number}");
            let copies = copies.remove(&text).unwrap_or(0);
            let messages = messages.get(&text).map(Vec::as_slice).unwrap_or_default();
            // Where nobody can be asked, three attempts without answer are the end, and said.
            let is_blind = self.manner == Manner::CuttingBlindly;
            let may_be_over = |message: &Value| {
                is_blind
                    && message["status"] == json!("failed")
                    && message["reason"] == json!("no_answer")
            };
            assert!(
                copies > 0 || (!messages.is_empty() && messages.iter().all(may_be_over)),
                "{what}: {text} was acknowledged and never arrived: {messages:#?}"
            );
            assert!(
                messages
                    .iter()
                    .all(|message| message["status"] == json!("sent") || may_be_over(message)),
                "{what}: {text}: {messages:#?}"
            );
            // A publish that left twice, because its first PUBACK never came, may be two alerts.
            let sent = self.sent[number];
            assert!(
                (1..=sent).contains(&messages.len()),
                "{what}: {text} left {sent} times and became {messages:#?}"
            );
            if copies > messages.len() {
                let unknown = self.unknown_attempts(messages).await;
                assert!(
                    copies <= messages.len() + unknown,
                    "{what}: {text} arrived {copies} times, with {unknown} unknown attempts: {messages:#?}"
                );
            }
        }
        assert!(copies.is_empty(), "{what}: nobody published {copies:?}");
    }

    async fn unknown_attempts(&self, messages: &[Value]) -> usize {
        let mut unknown = 0;
        for message in messages {
            let message = self.process.api.message(message["id"].as_str().unwrap()).await;
            let attempts = message["attempts"].as_array().unwrap();
            unknown += attempts.iter().filter(|one| one["outcome"] == json!("unknown")).count();
        }
        unknown
    }
}

async fn check(manner: Manner) {
    let (count, rounds) = if soaking() { (1000, 5) } else { (200, 1) };
    for _ in 0..rounds {
        let seed = std::env::var("TEST_SEED").map(|seed| seed.parse().unwrap());
        let seed = seed.unwrap_or_else(|_| getrandom::u64().unwrap());
        let what = format!("{manner:?}, TEST_SEED={seed}");
        let dice = Dice(Arc::new(AtomicU64::new(seed)));
        // Acknowledgements and arrivals are what happens: twice the count in all.
        let last = u64::try_from(2 * count).unwrap();
        let mut kills: Vec<_> =
            (0..6).map(|_| usize::try_from(1 + dice.throw(last)).unwrap()).collect();
        kills.sort_unstable_by_key(|at| std::cmp::Reverse(*at));

        let twilio = Twilio::default();
        let (taking, throwing) = (twilio.clone(), dice.clone());
        let fake =
            Fake::answering(move |request| answer(manner, &taking, &throwing, request)).await;
        if manner == Manner::Down {
            fake.stop().await;
        }
        let process = start(&fake).await;
        let acknowledged = BTreeSet::new();
        let sent = vec![0; count];
        let mut ordeal = Ordeal { process, twilio, manner, count, kills, acknowledged, sent };
        ordeal.publish().await;
        if manner == Manner::Down {
            assert_eq!(fake.count(), 0);
            fake.restart().await;
        }
        ordeal.deliver().await;
        ordeal.judge(&what).await;
    }
}

async fn start(fake: &Fake) -> Process {
    let config = format!("{QUICK}{}", twilio("twilio-main", fake));
    Process::start(Place::new(&config).rules(ALARM)).await
}

#[tokio::test]
async fn nothing_is_lost_while_the_provider_is_down() {
    check(Manner::Down).await;
}

#[tokio::test]
async fn nothing_is_lost_while_the_provider_fails_half_the_time() {
    check(Manner::Failing).await;
}

#[tokio::test]
async fn nothing_is_lost_while_the_provider_asks_for_rests() {
    check(Manner::Throttling).await;
}

#[tokio::test]
async fn nothing_is_lost_while_answers_are_cut_off() {
    check(Manner::Cutting).await;
}

#[tokio::test]
async fn nothing_is_lost_while_answers_are_cut_off_and_nobody_can_be_asked() {
    check(Manner::CuttingBlindly).await;
}

#[tokio::test]
async fn what_fires_goes_on_firing_after_a_kill() {
    let (fake, _) = Twilio::start().await;
    let rules = r#"
        [[rule]]
        name = "freezer-warm"
        topic = "devices/{device}/temp"
        when = "payload > -15.0"
        to = ["ana"]
        by = ["sms"]
        text = "warm: {{ payload }}"
        text_clear = "cold: {{ payload }}"
    "#;
    let config = format!("{QUICK}{}", twilio("twilio-main", &fake));
    let mut process = Process::start(Place::new(&config).rules(rules)).await;
    for temperature in ["-10.0", "-9.0", "-8.0"] {
        let mut device = process.device("pump-7").connect().await;
        device.publishes("devices/pump-7/temp", temperature).await;
        process.kill();
        process.restart().await;
    }
    let mut device = process.device("pump-7").connect().await;
    device.publishes("devices/pump-7/temp", "-20.0").await;
    process.kill();
    process.restart().await;
    process.api.emptied().await;
    let texts: BTreeSet<String> = fake.texts().into_iter().collect();
    assert_eq!(
        texts.iter().map(String::as_str).collect::<Vec<_>>(),
        ["cold: -20.0", "warm: -10.0"]
    );
    assert_eq!(process.api.messages("").await.len(), 2);
}

#[tokio::test]
async fn what_the_api_has_answered_survives_a_kill() {
    let (fake, _) = Twilio::start().await;
    fake.stop().await;
    let mut process = start(&fake).await;
    let body = json!({ "to": ["ana"], "text": "backup failed", "idempotency_key": "k-1" });
    let id = process.api.send(body.clone()).await;
    let (status, device) = process.api.post("/v1/devices", &json!({ "user": "pump-8" })).await;
    assert_eq!(status, 201);
    process.kill();
    process.restart().await;
    let (status, again) = process.api.post("/v1/messages", &body).await;
    assert_eq!((status, &again["messages"][0]["id"]), (200, &json!(id)));
    let password = device["password"].as_str().unwrap();
    process.anonymous("pump-8").login("pump-8", password).connect().await;
    fake.restart().await;
    process.api.message_that_is("sent", "backup failed").await;
    assert_eq!(fake.texts(), ["backup failed"]);
}

#[tokio::test]
async fn sigterm_ends_it_in_order_and_sighup_loads_the_rules() {
    let (fake, _) = Twilio::start().await;
    let mut process = start(&fake).await;
    process.place.write("rules/second.toml", &ALARM.replace("\"alarm\"", "\"second\""));
    process.signal(Signal::HUP);
    let loaded = async || {
        let status = process.api.status().await;
        (status["rules"]["rules"].as_array().unwrap().len() == 2).then_some(())
    };
    found("the second rule", loaded).await;

    let mut device = process.device("pump-7").connect().await;
    process.signal(Signal::TERM);
    let status = process.ended().await;
    assert_eq!(status.code(), Some(0), "{}", process.log());
    assert_eq!(device.closed().await, "ServerShuttingDown");
    assert!(!process.place.path("data/instance.json").exists());
    process.restart().await;
    assert_eq!(process.api.ask("GET", "/readyz", None).await.0, 200);
}
