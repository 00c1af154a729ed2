//! The engine in virtual time: each semantic with its name, with restarts in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::Config;
use super::engine::{Adopted, Effects, Engine, Touched};
use super::instance::Instance;
use super::life::Away;
use super::set::{Known, Rules};
use crate::clock::Timestamp;
use crate::model::tell::{Ack, News, Turn};
use crate::model::{AlertId, AlertState, Channel, IdSource, Publish, Qos, Severity};
use crate::problem::TomlFile;
use crate::topic::{TopicLimits, TopicName};

const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const KEY_BYTES_MAX: usize = 256;

fn rules(text: &str) -> Rules {
    let file = TomlFile::parse("rules/a.toml", text).expect("TOML");
    let contacts = [Known { name: "ana".into(), channels: vec![Channel::Sms] }];
    Rules::load(&[file], Some(&contacts), &Config::default()).unwrap_or_else(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        panic!("{}", lines.join("\n"))
    })
}

fn publish(topic: &str, payload: &str) -> Publish {
    Publish {
        topic: TopicName::parse(topic, TopicLimits::default()).expect("a topic"),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: Qos::AtLeastOnce,
        retain: false,
        replayed: false,
        client_id: "pump-7".into(),
        identity: None,
        received_at: START,
        properties: None,
    }
}

/// The engine, and the rows that a store would hold.
struct Bench {
    engine: Engine,
    rules: Rules,
    config: Config,
    now: Timestamp,
    rows: BTreeMap<AlertId, String>,
    seed: u64,
}

impl Bench {
    fn new(text: &str) -> Self {
        Self::with(text, &Config::default())
    }

    fn with(text: &str, config: &Config) -> Self {
        let engine = Engine::new(IdSource::new(1), config);
        let rows = BTreeMap::new();
        let mut bench =
            Self { engine, rules: rules(text), config: *config, now: START, rows, seed: 1 };
        let (pieces, _) = bench.engine.adopt(&bench.rules, bench.now);
        pieces.iter().for_each(|effects| bench.write(effects));
        bench
    }

    fn write(&mut self, effects: &Effects) {
        for touched in &effects.touched {
            match touched {
                Touched::Put(rule, key) => self.row(rule, key),
                Touched::Remove(id) => drop(self.rows.remove(id)),
            }
        }
    }

    fn row(&mut self, rule: &str, key: &str) {
        if let Some(instance) = self.engine.instance(rule, key) {
            let row = serde_json::to_string(instance).expect("serializes");
            self.rows.insert(instance.id, row);
        }
    }

    fn checkpoint(&mut self) {
        for (rule, key) in self.engine.checkpoint(usize::MAX) {
            self.row(&rule, &key);
        }
    }

    /// Ends the process (`clean`: with a last checkpoint) and starts it again `after` later.
    fn restart(&mut self, clean: bool, after: Duration) -> Vec<String> {
        self.restart_alive_at(clean, self.now, after)
    }

    /// The same, where it said last at `alive_at` that it is alive.
    fn restart_alive_at(
        &mut self,
        clean: bool,
        alive_at: Timestamp,
        after: Duration,
    ) -> Vec<String> {
        if clean {
            self.checkpoint();
        }
        self.now = self.now.plus(after);
        self.seed += 1;
        self.engine = Engine::new(IdSource::new(self.seed), &self.config);
        for row in self.rows.values() {
            let instance: Instance = serde_json::from_str(row).expect("a row");
            self.engine.restore(instance);
        }
        let (pieces, _) = self.engine.adopt(&self.rules, self.now);
        self.engine.resume(&self.rules, Away { from: alive_at, until: self.now });
        self.wrote(&pieces)
    }

    fn reload(&mut self, text: &str) -> (Vec<String>, Adopted) {
        self.rules = rules(text);
        let (pieces, adopted) = self.engine.adopt(&self.rules, self.now);
        (self.wrote(&pieces), adopted)
    }

    fn wrote(&mut self, pieces: &[Effects]) -> Vec<String> {
        pieces.iter().for_each(|effects| self.write(effects));
        pieces.iter().flat_map(|effects| self.lines(effects)).collect()
    }

    /// A publish, a second after what was before.
    fn effects(&mut self, topic: &str, payload: &str) -> Effects {
        self.now = self.now.plus(Duration::from_secs(1));
        self.at_once(&publish(topic, payload))
    }

    fn at_once(&mut self, publish: &Publish) -> Effects {
        let effects = match self.rules.matches(&publish.topic) {
            None => Effects::default(),
            Some(matched) => self.engine.handle(&self.rules, &matched, publish, self.now),
        };
        self.write(&effects);
        effects
    }

    /// Time passes; timers are met when they are due.
    fn pass(&mut self, time: Duration) -> Vec<String> {
        let end = self.now.plus(time);
        let mut lines = Vec::new();
        while let Some(due) = self.engine.due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let effects = self.engine.wake(&self.rules, self.now);
            self.write(&effects);
            lines.extend(self.lines(&effects));
        }
        self.now = end;
        lines
    }

    fn lines(&self, effects: &Effects) -> Vec<String> {
        let at = |news: &News| news.alert.changed_at.since(START).as_secs();
        let news = effects.news.iter().map(|news| {
            let alert = &news.alert;
            let turn = match &news.turn {
                Turn::Raised => "firing".to_owned(),
                Turn::Level(from) => format!("{from}->{}", alert.severity),
                Turn::Cleared if news.policy.tell_clear => "cleared".to_owned(),
                Turn::Cleared => "cleared (quiet)".to_owned(),
                Turn::Acknowledged(ack) => format!("acknowledged by {}", ack.by),
                Turn::Flapping(on) => format!("flapping {on}"),
                Turn::Dropped(reason) => format!("dropped {reason} at {}", at(news)),
            };
            format!("{} {} {turn}: {}", alert.rule, alert.key, alert.text)
        });
        let failures = effects.failures.iter();
        let failures = failures.map(|f| format!("! {} {}: {}", f.rule, f.reason, f.detail));
        let passed = effects.passed.iter().map(|(rule, reason)| format!("- {rule} {reason}"));
        news.chain(failures).chain(passed).collect()
    }

    /// What happened, one line a change or failure.
    fn told(&mut self, topic: &str, payload: &str) -> Vec<String> {
        let effects = self.effects(topic, payload);
        self.lines(&effects)
    }
}

/// Publishes in order, each with the lines that it must cause.
fn check(text: &str, steps: &[(&str, &str, &[&str])]) {
    let mut bench = Bench::new(text);
    for (topic, payload, expected) in steps {
        assert_eq!(bench.told(topic, payload), *expected, "{payload} on {topic}");
    }
}

/// What happens in virtual time, for [`script`].
enum Do {
    /// Publishes at this second.
    Pub(u64, &'static str, &'static str),
    /// Lets time pass up to this second.
    Till(u64),
    /// Ends and starts again: cleanly, away for so many seconds.
    Restart(u64),
    /// Is killed: what no checkpoint has written is gone.
    Kill(u64),
    /// Acknowledges what fires.
    Ack,
}

/// Steps in order, each with the lines that it must cause.
fn script(text: &str, steps: &[(Do, &[&str])]) {
    let mut bench = Bench::new(text);
    for (number, (step, expected)) in steps.iter().enumerate() {
        let found = match step {
            Do::Pub(second, topic, payload) => {
                let until = START.plus(Duration::from_secs(*second)).since(bench.now);
                let mut lines = bench.pass(until);
                let effects = bench.at_once(&publish(topic, payload));
                lines.extend(bench.lines(&effects));
                lines
            }
            Do::Till(second) => {
                bench.pass(START.plus(Duration::from_secs(*second)).since(bench.now))
            }
            Do::Restart(away) => bench.restart(true, Duration::from_secs(*away)),
            Do::Kill(away) => bench.restart(false, Duration::from_secs(*away)),
            Do::Ack => {
                let id = bench.engine.firing().next().expect("something fires").id;
                let ack = Ack { by: "ana".into(), at: bench.now, note: None };
                let effects = bench.engine.acknowledge(&bench.rules, id, ack).expect("fires");
                bench.write(&effects);
                bench.lines(&effects)
            }
        };
        assert_eq!(found, *expected, "step {number}");
    }
}

const WARM: &str = r#"
    [[rule]]
    name = "warm"
    topic = "f/{unit}"
    when = "payload.t > -15"
    clear = "payload.t < -17"
    text = "{{ unit }} has {{ payload.t }}"
    text_clear = "{{ unit }} is cold after {{ duration }}"
    to = ["ana"]
"#;

#[test]
fn it_fires_once_and_clears_once_for_each_key() {
    check(
        WARM,
        &[
            ("f/1", r#"{"t":-20}"#, &[]),
            ("f/1", r#"{"t":-10}"#, &["warm 1 firing: 1 has -10"]),
            ("f/1", r#"{"t":-9}"#, &[]),
            ("f/2", r#"{"t":-9}"#, &["warm 2 firing: 2 has -9"]),
            ("f/1", r#"{"t":-16}"#, &[]),
            ("f/1", r#"{"t":-18}"#, &["warm 1 cleared: 1 is cold after 4s"]),
            ("f/1", r#"{"t":-18}"#, &[]),
            ("f/2", r#"{"t":-18}"#, &["warm 2 cleared: 2 is cold after 4s"]),
            ("f/1", r#"{"t":-10}"#, &["warm 1 firing: 1 has -10"]),
            ("elsewhere", r#"{"t":-10}"#, &[]),
        ],
    );
}

#[test]
fn without_clear_it_clears_when_the_condition_ends_and_without_a_text_quietly() {
    check(
        "[[rule]]\nname = 'door'\ntopic = 'door'\nwhen = \"payload == 'open'\"\nto = ['ana']\n",
        &[
            ("door", "open", &[r#"door  firing: door: door: "open""#]),
            ("door", "open", &[]),
            ("door", "shut", &[r#"door  cleared (quiet): door: door: "open""#]),
            ("door", "open", &[r#"door  firing: door: door: "open""#]),
        ],
    );
}

#[test]
fn without_a_condition_every_publish_is_an_alert() {
    let mut bench = Bench::new("[[rule]]\nname = 'panic'\ntopic = 'panic/{who}'\nto = ['ana']\n");
    let first = bench.effects("panic/joe", "1");
    let second = bench.effects("panic/joe", "1");
    assert_ne!(first.news[0].alert.id, second.news[0].alert.id);
    assert!(second.touched.is_empty());
    assert_eq!(second.news[0].alert.key.as_ref(), "joe");
    assert!(bench.engine.is_empty());
    assert_eq!(bench.told("panic/joe", ""), [r#"panic joe firing: panic: panic/joe: """#]);
}

#[test]
fn what_fails_does_not_raise_clear_or_stop_other_rules() {
    let text = format!(
        "{WARM}\n[[rule]]\nname = 'number'\ntopic = 'f/+'\ndecode = 'number'\nwhen = 'payload > 5'\nto = ['ana']\n"
    );
    let no_field =
        "`when`: the payload has no field `t`; guard it with has(...) if it may be absent";
    check(
        &text,
        &[
            (
                "f/1",
                r#"{"x":1}"#,
                &[
                    &format!("! warm expression_failed: {no_field}"),
                    "! number undecodable_payload: the payload is not a number (digits, one point, no comma, no unit)",
                ],
            ),
            (
                "f/1",
                "6",
                &[
                    "number  firing: number: f/1: 6",
                    "! warm expression_failed: `when`: a field is asked of a number, which has no fields",
                ],
            ),
            (
                "f/1",
                "nan",
                &[
                    "! warm expression_failed: `when`: a field is asked of text, which has no fields",
                    "! number undecodable_payload: the payload is not a finite number: the device has no reading",
                ],
            ),
            (
                "f/1",
                "",
                &[
                    "! warm expression_failed: `when`: a field is asked of text, which has no fields",
                    "! number undecodable_payload: the payload is empty",
                ],
            ),
        ],
    );
}

#[test]
fn a_text_that_fails_does_not_hold_the_alert_back() {
    check(
        r#"
        [[rule]]
        name = "r"
        topic = "a"
        when = "payload.t > 1"
        text = "{{ payload.name }} is {{ payload.t }}"
        text_clear = "{{ payload.name }} is over"
        title = "{{ payload.title }}"
        to = ["ana"]
        "#,
        &[
            (
                "a",
                r#"{"t":2}"#,
                &[
                    r#"r  firing: ? is 2 ({"t":2})"#,
                    "! r template_failed: `text`: a value is missing: payload.name",
                    "! r template_failed: `title`: a value is missing: payload.title",
                ],
            ),
            (
                "a",
                r#"{"t":1,"title":"x"}"#,
                &[
                    r#"r  cleared: ? is over ({"t":1,"title":"x"})"#,
                    "! r template_failed: `text_clear`: a value is missing: payload.name",
                ],
            ),
        ],
    );
}

#[test]
fn a_text_of_which_nothing_can_be_rendered_tells_rule_key_and_payload() {
    check(
        r#"
        [[rule]]
        name = "r"
        topic = "a/{k}"
        when = "payload.t > 1"
        text = "{% if payload.heap > 3 %}full{% endif %}"
        text_clear = "{{ payload.heap }}"
        to = ["ana"]

        [[rule]]
        name = "each"
        topic = "e/{k}"
        each = "payload.m"
        when = "item > 1"
        key = ["k", "item_key"]
        text = "{{ item.x }}"
        to = ["ana"]

        [[rule]]
        name = "long"
        topic = "l"
        when = "payload.t > 1"
        text = "{{ payload.x }}: {{ payload.long }}"
        to = ["ana"]
        "#,
        &[
            (
                "a/k",
                r#"{"t":2}"#,
                &[
                    r#"r k firing: r k: a/k: {"t":2}"#,
                    "! r template_failed: `text`: a value is missing: if payload.heap > 3",
                ],
            ),
            (
                "a/k",
                r#"{"t":1}"#,
                &[
                    r#"r k cleared: r k is over: a/k: {"t":1}"#,
                    "! r template_failed: `text_clear`: a value is missing: payload.heap",
                ],
            ),
            (
                "e/k",
                r#"{"m":{"b":1,"c":2}}"#,
                &[
                    r#"each k/c firing: each k/c: e/k: "c": 2"#,
                    "! each template_failed: `text`: a value is missing: item.x",
                ],
            ),
            (
                "l",
                &format!(r#"{{"long":"{}","t":2}}"#, "a".repeat(2_000)),
                &[
                    &format!(
                        "long  firing: ?: {}… ({{\"long\":\"{}…)",
                        "a".repeat(694),
                        "a".repeat(288)
                    ),
                    "! long template_failed: `text`: a value is missing: payload.x",
                ],
            ),
        ],
    );
}

/// A reading without the field came while `for` ran, and the text told of that one.
#[test]
fn a_clock_that_runs_out_is_told_with_the_last_reading_that_gave_a_result() {
    for previous in ["", " was {{ previous.t | default('unknown') }}"] {
        let text = format!(
            r#"
            [[rule]]
            name = "r"
            topic = "x/{{h}}/+"
            key = ["h"]
            when = "payload.t > 10"
            for = "5m"
            text = "{{{{ h }}}}: {{{{ payload.t }}}} C on {{{{ topic }}}}{previous}"
            to = ["ana"]
            "#
        );
        let was = |value: &str| {
            if previous.is_empty() { String::new() } else { format!(" was {value}") }
        };
        let failed = "! r expression_failed: `when`: the payload has no field `t`; guard it with has(...) if it may be absent";
        let (first, second) = (was("9"), was("unknown"));
        script(
            &text,
            &[
                (Do::Pub(0, "x/a/1", r#"{"t":9}"#), &[]),
                (Do::Pub(1, "x/a/1", r#"{"t":11}"#), &[]),
                (Do::Pub(60, "x/a/2", r#"{"bat":3.1}"#), &[failed]),
                (Do::Restart(1), &[]),
                (Do::Pub(70, "x/a/2", r#"{"bat":3}"#), &[failed]),
                (Do::Till(301), &[&format!("r a firing: a: 11 C on x/a/1{first}")]),
                (
                    Do::Pub(310, "x/a/1", r#"{"t":1}"#),
                    &[&format!("r a cleared (quiet): a: 11 C on x/a/1{first}")],
                ),
                // The next tells of its own: what failed is the reading before it.
                (Do::Pub(320, "x/a/2", r#"{"bat":3}"#), &[failed]),
                (Do::Pub(330, "x/a/1", r#"{"t":12}"#), &[]),
                (Do::Till(700), &[&format!("r a firing: a: 12 C on x/a/1{second}")]),
            ],
        );
    }
}

#[test]
fn two_conditions_that_hold_at_once_do_not_flap() {
    let text = "[[rule]]\nname = 'r'\ntopic = 'a'\nwhen = 'payload > 1'\nclear = 'payload == 1 || payload == 2'\nto = ['ana']\n";
    check(
        text,
        &[
            ("a", "2", &["r  firing: r: a: 2"]),
            ("a", "2", &[]),
            ("a", "1", &["r  cleared (quiet): r: a: 2"]),
        ],
    );
}

#[test]
fn a_reset_of_its_own_clears() {
    let text = "[[rule]]\nname = 'r'\ntopic = 'a'\nwhen = 'has(payload.alarm) && payload.alarm'\nclear = 'has(payload.reset)'\nto = ['ana']\n";
    check(
        text,
        &[
            ("a", r#"{"alarm":true}"#, &[r#"r  firing: r: a: {"alarm":true}"#]),
            ("a", r#"{"other":1}"#, &[]),
            ("a", r#"{"reset":1}"#, &[r#"r  cleared (quiet): r: a: {"alarm":true}"#]),
        ],
    );
}

#[test]
fn keys_tell_instances_apart() {
    let key = |key: &str, topic: &str, payload: &str| -> String {
        let text =
            format!("[[rule]]\nname = 'r'\ntopic = '{{a}}/{{b}}'\nkey = {key}\nto = ['ana']\n");
        let mut bench = Bench::new(&text);
        let effects = bench.effects(topic, payload);
        effects.news[0].alert.key.to_string()
    };
    assert_eq!(key(r#"["b"]"#, "x/y", "1"), "y");
    assert_eq!(key(r#"["a", "payload.id"]"#, "x/y", r#"{"id":7}"#), "x/7");
    assert_eq!(key(r#"["payload.id"]"#, "x/y", r#"{"id":"a/b%"}"#), "a/b%");
    assert_eq!(key(r#"["payload.id", "b"]"#, "x/y", r#"{"id":"a/b%"}"#), "a%2Fb%25/y");
    assert_eq!(key(r#"["payload.id"]"#, "x/y", r#"{"id":"a\nb"}"#), "a b");
    assert_eq!(key("[]", "x/y", "1"), "");
    assert_eq!(key(r#"["payload.id"]"#, "x/y", "{}"), "?");
    let long = |end: &str| key(r#"["payload"]"#, "x/y", &format!("\"{}{end}\"", "ä".repeat(300)));
    assert!(long("a").len() <= KEY_BYTES_MAX && long("a") != long("b"));
}

#[test]
fn news_carry_what_the_rule_says() {
    let mut bench = Bench::new(
        r#"
        [[rule]]
        name = "r"
        topic = "a/{unit}"
        severity = "critical"
        title = "{{ rule }} {{ severity }}"
        to = ["ana"]
        by = ["sms"]
        expires_in = "1h"
        "#,
    );
    let effects = bench.effects("a/7", "1");
    let news = &effects.news[0];
    assert_eq!(news.title.as_deref(), Some("r critical"));
    assert_eq!(news.policy.to.as_ref(), [Arc::from("ana")]);
    assert_eq!(news.policy.by.as_ref(), [Channel::Sms]);
    assert_eq!(news.policy.expires_in, Some(Duration::from_secs(3600)));
    assert!(news.policy.event);
    assert_eq!(news.alert.severity, Severity::Critical);
    assert_eq!(news.alert.fired_at, bench.now);
    assert_eq!(news.alert.label("unit"), Some("7"));
}

#[test]
fn at_the_limit_nothing_more_is_raised_and_that_is_said() {
    let config = Config { instances_max: 1, ..Config::default() };
    let mut bench = Bench::with(WARM, &config);
    assert_eq!(bench.told("f/1", r#"{"t":0}"#).len(), 1);
    assert_eq!(
        bench.told("f/2", r#"{"t":0}"#),
        [
            "! warm too_many: 1 instances are there already (rules.instances_max); this one is not looked at"
        ]
    );
    bench.effects("f/1", r#"{"t":-20}"#);
    assert_eq!(bench.told("f/2", r#"{"t":0}"#), ["warm 2 firing: 2 has 0"]);
}

/// Looks at the whole history at each step: an instance fires if, since it last cleared, its
/// condition has held. Slow, and plainly the definition.
fn oracle(history: &[(u8, i64)]) -> Vec<(u8, AlertState)> {
    let mut told = Vec::new();
    for end in 1..=history.len() {
        let (unit, value) = history[end - 1];
        let earlier: Vec<i64> = history[..end - 1]
            .iter()
            .filter(|(other, _)| *other == unit)
            .map(|(_, value)| *value)
            .collect();
        let last_decisive = earlier.iter().rev().find(|v| **v > 5 || **v < 3);
        let was_firing = last_decisive.is_some_and(|v| *v > 5);
        if value > 5 && !was_firing {
            told.push((unit, AlertState::Firing));
        } else if value < 3 && was_firing {
            told.push((unit, AlertState::Cleared));
        }
    }
    told
}

proptest! {
    #[test]
    fn edges_agree_with_the_whole_history(
        history in prop::collection::vec((0_u8..3, 0_i64..9), 0..40),
    ) {
        let text = "[[rule]]\nname = 'r'\ntopic = 'u/{unit}'\nwhen = 'payload > 5'\nclear = 'payload < 3'\nto = ['ana']\n";
        let mut bench = Bench::new(text);
        let mut told = Vec::new();
        let mut ids: BTreeMap<u8, AlertId> = BTreeMap::new();
        for (unit, value) in &history {
            let effects = bench.effects(&format!("u/{unit}"), &value.to_string());
            for change in effects.news {
                told.push((*unit, change.alert.state));
                match change.alert.state {
                    AlertState::Firing => {
                        ids.insert(*unit, change.alert.id);
                    }
                    AlertState::Cleared => {
                        prop_assert_eq!(ids.remove(unit), Some(change.alert.id));
                    }
                }
            }
            prop_assert_eq!(bench.engine.len(), ids.len());
            prop_assert_eq!(bench.engine.firing().count(), ids.len());
        }
        prop_assert_eq!(told, oracle(&history));
    }
}

use Do::{Ack as Acked, Kill, Pub, Restart, Till};

const HELD: &str = r#"
    [[rule]]
    name = "warm"
    topic = "f/{unit}"
    when = "payload > 5"
    for = "5m"
    clear_for = "1m"
    text = "{{ unit }} has {{ payload }}"
    text_clear = "over after {{ duration }}"
    to = ["ana"]
"#;

#[test]
fn for_must_hold_and_tells_the_last_reading() {
    script(
        HELD,
        &[
            (Pub(0, "f/1", "6"), &[]),
            (Pub(299, "f/1", "7"), &[]),
            (Till(299), &[]),
            (Till(300), &["warm 1 firing: 1 has 7"]),
            (Pub(310, "f/1", "5"), &[]),
            (Pub(350, "f/1", "6"), &[]),
            (Pub(360, "f/1", "5"), &[]),
            (Till(419), &[]),
            (Till(420), &["warm 1 cleared: over after 2m"]),
        ],
    );
}

#[test]
fn after_a_restart_the_text_told_of_the_first_reading_and_not_of_the_last() {
    script(
        HELD,
        &[
            (Pub(0, "f/1", "6"), &[]),
            (Pub(200, "f/1", "9"), &[]),
            (Restart(10), &[]),
            (Till(300), &["warm 1 firing: 1 has 9"]),
        ],
    );
    let text = HELD.replace("over after {{ duration }}", "{{ events }} events");
    let mut bench = Bench::new(&text.replace("for = \"5m\"", "for = \"0s\""));
    for _ in 0..3 {
        bench.effects("f/1", "6");
    }
    bench.restart(true, Duration::ZERO);
    bench.effects("f/1", "1");
    assert_eq!(bench.pass(Duration::from_secs(60)), ["warm 1 cleared: 4 events"]);
}

#[test]
fn for_counts_over_a_restart_and_a_kill() {
    script(
        HELD,
        &[
            (Pub(0, "f/1", "6"), &[]),
            (Restart(100), &[]),
            (Kill(100), &[]),
            (Till(299), &[]),
            (Till(300), &["warm 1 firing: 1 has 6"]),
            (Pub(301, "f/1", "5"), &[]),
            (Kill(100), &[]),
            (Till(402), &["warm 1 cleared: over after 1m41s"]),
        ],
    );
}

#[test]
fn clocks_pause_or_begin_anew_where_the_rule_says_so() {
    for (word, at) in [("pause", 400), ("reset", 410)] {
        let text = format!("{HELD}on_downtime = \"{word}\"\n");
        let mut bench = Bench::new(&text);
        bench.at_once(&publish("f/1", "6"));
        bench.pass(Duration::from_secs(10));
        bench.restart(true, Duration::from_secs(100));
        let missing = START.plus(Duration::from_secs(at)).since(bench.now);
        assert_eq!(bench.pass(missing - Duration::from_secs(1)), [""; 0], "{word}");
        assert_eq!(bench.pass(Duration::from_secs(1)), ["warm 1 firing: 1 has 6"], "{word}");
    }
}

/// Killed, it says up to ten seconds before that it was alive: a device heard since was missed at the
/// next start, however long that took.
#[test]
fn a_device_heard_after_the_last_sign_of_life_is_not_missed_for_the_downtime() {
    let at = |second| START.plus(Duration::from_secs(second));
    for (word, heard, fires_at) in [
        // Nothing of its silence is known to be its own.
        ("pause", 14, 65),
        ("reset", 14, 65),
        // Eight seconds are: it is late by those between 10 and 15, no more.
        ("pause", 2, 57),
        ("reset", 2, 65),
    ] {
        let text = format!(
            "[[rule]]\nname = 'mute'\ntopic = 'd/{{d}}'\nsilent = '30s'\nto = ['ana']\n\
             text = 'silent'\non_downtime = '{word}'\n"
        );
        let mut bench = Bench::new(&text);
        bench.pass(Duration::from_secs(heard));
        bench.at_once(&publish("d/1", "1"));
        bench.checkpoint();
        bench.pass(at(15).since(bench.now));
        assert_eq!(bench.restart_alive_at(false, at(10), Duration::from_secs(20)), [""; 0]);
        let before = at(fires_at - 1).since(bench.now);
        assert_eq!(bench.pass(before), [""; 0], "{word} {heard}");
        assert_eq!(bench.pass(Duration::from_secs(1)), ["mute 1 firing: silent"], "{word} {heard}");
    }
}

/// Rows of a version that lived on a wall clock which went two days ahead.
#[test]
fn what_was_written_ahead_of_time_is_of_now() {
    for text in
        ["silent = '30s'\ntext = 'fires'\n", "when = 'payload > 0'\nfor = '30s'\ntext = 'fires'\n"]
    {
        let mut bench =
            Bench::new(&format!("[[rule]]\nname = 'r'\ntopic = 'd/{{d}}'\nto = ['ana']\n{text}"));
        bench.at_once(&publish("d/1", "1"));
        bench.checkpoint();
        bench.now = START.minus(Duration::from_secs(2 * 86_400));
        bench.restart(true, Duration::ZERO);
        assert_eq!(bench.pass(Duration::from_secs(29)), [""; 0]);
        assert_eq!(bench.pass(Duration::from_secs(1)), ["r 1 firing: fires"]);
    }
}

/// The clock of a `for` that began after the last sign of life was put into the future.
#[test]
fn a_clock_that_began_after_the_last_sign_of_life_begins_at_the_start() {
    let mut bench = Bench::new(&format!("{HELD}on_downtime = \"pause\"\n"));
    bench.pass(Duration::from_secs(8));
    bench.at_once(&publish("f/1", "6"));
    bench.restart_alive_at(false, START, Duration::from_secs(100));
    assert_eq!(bench.pass(Duration::from_secs(299)), [""; 0]);
    assert_eq!(bench.pass(Duration::from_secs(1)), ["warm 1 firing: 1 has 6"]);
}

const LEVELS: &str = r#"
    [[rule]]
    name = "hot"
    topic = "oven/{oven}"
    warning = { when = "payload > 60", clear = "payload < 55" }
    critical = { when = "payload > 80", clear = "payload < 75" }
    text = "{{ level }}{% if from_level %}, was {{ from_level }}{% endif %}: {{ payload }}"
    text_clear = "over: {{ payload }}"
    to = ["ana"]
"#;

#[test]
fn a_level_drops_only_when_its_reset_holds() {
    check(
        LEVELS,
        &[
            ("oven/1", "61", &["hot 1 firing: warning: 61"]),
            ("oven/1", "81", &["hot 1 warning->critical: critical, was warning: 81"]),
            ("oven/1", "76", &[]),
            ("oven/1", "74", &["hot 1 critical->warning: warning, was critical: 74"]),
            ("oven/1", "56", &[]),
            ("oven/1", "90", &["hot 1 warning->critical: critical, was warning: 90"]),
            // From the worst straight to nothing: the reset of critical holds, and no level.
            ("oven/1", "50", &["hot 1 cleared: over: 50"]),
        ],
    );
}

#[test]
fn an_acknowledgement_lasts_until_it_gets_worse() {
    let acknowledged =
        |bench: &Bench| bench.engine.instance("hot", "1").expect("there").ack.is_some();
    let mut bench = Bench::new(LEVELS);
    bench.effects("oven/1", "61");
    let id = bench.engine.firing().next().expect("fires").id;
    let ack = Ack { by: "ana".into(), at: bench.now, note: None };
    let effects = bench.engine.acknowledge(&bench.rules, id, ack).expect("fires");
    bench.write(&effects);
    assert_eq!(bench.restart(false, Duration::ZERO), [""; 0]);
    assert!(acknowledged(&bench));
    bench.effects("oven/1", "81");
    assert!(!acknowledged(&bench), "who saw the warning has not seen this");
    script(
        LEVELS,
        &[
            (Pub(1, "oven/1", "61"), &["hot 1 firing: warning: 61"]),
            (Acked, &["hot 1 acknowledged by ana: warning: 61"]),
        ],
    );
}

const SILENT: &str = r#"
    [[rule]]
    name = "silent"
    topic = "site/{site}/pump/{unit}"
    silent = "15m"
    expect = [{ site = "kiel", unit = "1" }]
    text = "{{ site }} pump {{ unit }} is silent (last {{ last_seen }})"
    text_clear = "{{ site }} pump {{ unit }} is back"
    to = ["ana"]
"#;

#[test]
fn a_dead_man_alarms_for_the_expected_and_for_the_known() {
    script(
        SILENT,
        &[
            (Till(899), &[]),
            (Till(900), &["silent kiel/1 firing: kiel pump 1 is silent (last never)"]),
            (Pub(1000, "site/kiel/pump/2", "1"), &[]),
            (Pub(1100, "site/kiel/pump/1", "1"), &["silent kiel/1 cleared: kiel pump 1 is back"]),
            (Pub(1800, "site/kiel/pump/2", "1"), &[]),
            (
                Till(2000),
                &["silent kiel/1 firing: kiel pump 1 is silent (last 2026-09-21T14:31:40Z)"],
            ),
            (Till(2699), &[]),
            (
                Till(2700),
                &["silent kiel/2 firing: kiel pump 2 is silent (last 2026-09-21T14:43:20Z)"],
            ),
        ],
    );
}

#[test]
fn a_dead_man_knows_its_devices_after_a_restart_and_does_not_blame_them_for_it() {
    script(
        SILENT,
        &[
            (Pub(0, "site/kiel/pump/1", "1"), &[]),
            (Pub(0, "site/kiel/pump/2", "1"), &[]),
            (Restart(3600), &[]),
            (Till(4499), &[]),
            (
                Till(4500),
                &[
                    "silent kiel/1 firing: kiel pump 1 is silent (last 2026-09-21T14:13:20Z)",
                    "silent kiel/2 firing: kiel pump 2 is silent (last 2026-09-21T14:13:20Z)",
                ],
            ),
            (Kill(10), &[]),
            (Pub(4600, "site/kiel/pump/2", "1"), &["silent kiel/2 cleared: kiel pump 2 is back"]),
        ],
    );
}

#[test]
fn a_count_is_durable_and_falls_as_time_passes() {
    let text = r#"
        [[rule]]
        name = "errors"
        topic = "d/{unit}"
        window = { errors = { count = "payload == 'error'", over = "10m" } }
        when = "errors >= 3"
        text = "{{ errors }} errors"
        text_clear = "{{ errors }} errors left"
        to = ["ana"]
    "#;
    script(
        text,
        &[
            (Pub(0, "d/1", "error"), &[]),
            (Pub(60, "d/1", "fine"), &[]),
            (Pub(120, "d/1", "error"), &[]),
            (Kill(60), &[]),
            (Pub(240, "d/1", "error"), &["errors 1 firing: 3 errors"]),
            (Till(599), &[]),
            (Till(600), &["errors 1 cleared: 2 errors left"]),
        ],
    );
}

#[test]
fn windows_are_named_values_and_survive_a_clean_restart() {
    let text = r#"
        [[rule]]
        name = "mean"
        topic = "d/{unit}"
        let = { celsius_now = "(payload.f - 32) / 1.8" }
        window = { mean = { avg = "celsius_now", last = 3 }, top = { max = "celsius_now", over = "1h" } }
        when = "mean > 20.0"
        text = "{{ mean | round(1) }} of {{ top | round(1) }}"
        to = ["ana"]
    "#;
    script(
        text,
        &[
            (Pub(0, "d/1", r#"{"f":50}"#), &[]),
            (Pub(1, "d/1", r#"{"f":77}"#), &[]),
            (Restart(1), &[]),
            (Pub(3, "d/1", r#"{"f":86}"#), &["mean 1 firing: 21.7 of 30.0"]),
        ],
    );
}

#[test]
fn named_values_of_a_rule_without_instances_had_no_value() {
    check(
        r#"
        [[rule]]
        name = "frost"
        topic = "t/{unit}"
        let = { temp_c = "celsius(num(payload.f))", gone = "payload.gone" }
        when = "temp_c < 4.0"
        text = "{{ temp_c }} C"
        to = ["ana"]

        [[rule]]
        name = "event"
        topic = "e"
        let = { twice = "payload * 2.0" }
        text = "{{ twice }}"
        to = ["ana"]
        "#,
        &[
            ("t/1", r#"{"f":"50","gone":1}"#, &[]),
            ("t/1", r#"{"f":"32","gone":1}"#, &["frost 1 firing: 0 C"]),
            ("t/1", r#"{"f":"50","gone":1}"#, &["frost 1 cleared (quiet): 0 C"]),
            (
                "t/2",
                r#"{"f":"32"}"#,
                &[
                    "frost 2 firing: 0 C",
                    "! frost expression_failed: `let.gone`: the payload has no field `gone`; guard it with has(...) if it may be absent",
                ],
            ),
            ("e", "4", &["event  firing: 8"]),
        ],
    );
}

#[test]
fn a_let_had_no_value_in_a_rule_that_remembers_nothing() {
    let text = r#"
        [[rule]]
        name = "hot"
        topic = "d/{unit}"
        let = { c = "(payload.f - 32) / 1.8" }
        when = "c > 50.0"
        text = "{{ c | round(0) }}"
        to = ["ana"]

        [[rule]]
        name = "said"
        topic = "e/{unit}"
        let = { c = "(payload.f - 32) / 1.8" }
        text = "{{ c | round(0) }}"
        to = ["ana"]
    "#;
    script(
        text,
        &[
            (Pub(0, "d/1", r#"{"f":50}"#), &[]),
            (Pub(1, "d/1", r#"{"f":212}"#), &["hot 1 firing: 100"]),
            (Pub(2, "d/2", r#"{"f":50}"#), &[]),
            (Pub(3, "d/2", r#"{"f":212}"#), &["hot 2 firing: 100"]),
            (Pub(4, "e/1", r#"{"f":212}"#), &["said 1 firing: 100"]),
        ],
    );
}

#[test]
fn previous_and_merge_look_back() {
    let text = r#"
        [[rule]]
        name = "jump"
        topic = "d/{unit}"
        when = "previous != null && payload.v - previous.v > 5.0"
        text = "{{ previous.v }} -> {{ payload.v }}"
        to = ["ana"]

        [[rule]]
        name = "door"
        topic = "m/{unit}"
        merge = true
        when = "payload.open && payload.alarm.armed"
        text = "{{ payload }}"
        to = ["ana"]
    "#;
    check(
        text,
        &[
            ("d/1", r#"{"v":1}"#, &[]),
            ("d/1", r#"{"v":9}"#, &["jump 1 firing: 1 -> 9"]),
            ("d/1", r#"{"v":9}"#, &["jump 1 cleared (quiet): 1 -> 9"]),
            ("m/1", r#"{"open":false,"alarm":{"armed":true}}"#, &[]),
            ("m/1", r#"{"alarm":{"zone":3}}"#, &[]),
            (
                "m/1",
                r#"{"open":true}"#,
                &[r#"door 1 firing: {"alarm":{"armed":true,"zone":3},"open":true}"#],
            ),
        ],
    );
}

#[test]
fn each_element_is_an_instance() {
    let text = r#"
        [[rule]]
        name = "battery"
        topic = "tele/{bridge}/SENSOR"
        each = "payload.ZbReceived"
        when = "has(item.Battery) && item.Battery < 15"
        text = "{{ bridge }} {{ item_key }}: {{ item.Battery }} %"
        to = ["ana"]
    "#;
    check(
        text,
        &[
            (
                "tele/z/SENSOR",
                r#"{"ZbReceived":{"0x4C11":{"Battery":14},"0x4C12":{"Battery":90}}}"#,
                &["battery z/0x4C11 firing: z 0x4C11: 14 %"],
            ),
            (
                "tele/z/SENSOR",
                r#"{"ZbReceived":{"0x4C12":{"Battery":3}}}"#,
                &["battery z/0x4C12 firing: z 0x4C12: 3 %"],
            ),
            (
                "tele/z/SENSOR",
                r#"{"ZbReceived":7}"#,
                &["! battery expression_failed: `each`: it is neither a list nor a map"],
            ),
        ],
    );
}

#[test]
fn what_is_no_reading_is_passed_over_and_counted() {
    let text = r#"
        [[rule]]
        name = "r"
        topic = "d/{unit}"
        skip = "has(payload.retransmit)"
        dedupe = "payload.id"
        when = "payload.v > 1"
        to = ["ana"]
        text = "{{ payload.v }}"
    "#;
    check(
        text,
        &[
            ("d/1", r#"{"id":1,"v":9,"retransmit":true}"#, &["- r skipped"]),
            ("d/1", r#"{"id":1,"v":9}"#, &["r 1 firing: 9"]),
            ("d/1", r#"{"id":1,"v":0}"#, &["- r duplicate"]),
            ("d/1", r#"{"id":2,"v":0}"#, &["r 1 cleared (quiet): 9"]),
        ],
    );
}

#[test]
fn a_reading_that_an_upstream_kept_sets_state_and_raises_nothing() {
    for (word, raises, clears) in
        [("state", false, true), ("raise", true, true), ("ignore", false, false)]
    {
        let text = format!("{WARM}replayed = \"{word}\"\n");
        let mut bench = Bench::new(&text);
        let kept = |payload| Publish { replayed: true, ..publish("f/1", payload) };
        let effects = bench.at_once(&kept(r#"{"t":0}"#));
        assert_eq!(!effects.news.is_empty(), raises, "{word}");
        bench.effects("f/1", r#"{"t":0}"#);
        let effects = bench.at_once(&kept(r#"{"t":-20}"#));
        assert_eq!(!effects.news.is_empty(), clears, "{word}");
    }
}

#[test]
fn flapping_is_told_at_its_begin_and_its_end() {
    let text = "[[rule]]\nname = 'r'\ntopic = 'a'\nwhen = 'payload > 0'\nflapping = { low = 0.25, high = 0.5, last = 5 }\ntext = 'x'\nto = ['ana']\n";
    let mut bench = Bench::new(text);
    let mut turns = Vec::new();
    for payload in [0, 1, 0, 1, 1, 1] {
        for news in bench.effects("a", &payload.to_string()).news {
            if let Turn::Flapping(on) = news.turn {
                turns.push(on);
            }
        }
        bench.restart(true, Duration::ZERO);
    }
    assert_eq!(turns, [true]);
    assert_eq!(bench.told("a", "1"), ["r  flapping false: x"]);
}

#[test]
fn forgotten_instances_end_without_a_word() {
    let expect = "expect = [{ site = \"kiel\", unit = \"1\" }]";
    let text = format!("{}forget = \"1d\"\n", SILENT.replace(expect, ""));
    let mut bench = Bench::new(&text);
    bench.at_once(&publish("site/kiel/pump/9", "1"));
    assert_eq!(bench.pass(Duration::from_secs(900)).len(), 1);
    let lines = bench.pass(Duration::from_secs(86_400));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("dropped forgotten"), "{lines:?}");
    assert!(bench.engine.is_empty() && bench.rows.is_empty());
}

#[test]
fn a_reload_keeps_what_means_the_same_and_says_what_does_not() {
    let mut bench = Bench::new(HELD);
    bench.effects("f/1", "6");
    bench.pass(Duration::from_secs(100));
    let (lines, adopted) = bench.reload(&HELD.replace("has {{", "shows {{"));
    assert_eq!((lines.len(), adopted.kept, adopted.changed.len()), (0, 1, 0));
    assert_eq!(bench.pass(Duration::from_secs(200)), ["warm 1 firing: 1 shows 6"]);
    // Another meaning: what fires goes on firing, clocks begin anew.
    bench.effects("f/2", "6");
    let (lines, adopted) = bench.reload(&HELD.replace("> 5", "> 4"));
    assert_eq!(lines, [""; 0]);
    assert_eq!(adopted.changed, [Arc::from("warm")]);
    assert_eq!(bench.engine.firing().count(), 1);
    assert_eq!(bench.pass(Duration::from_secs(1000)), [""; 0]);
    bench.effects("f/1", "1");
    assert_eq!(bench.pass(Duration::from_secs(60)).len(), 1);
    // A rule that is gone ends its alerts without a word.
    bench.effects("f/3", "6");
    bench.pass(Duration::from_secs(300));
    let (lines, adopted) = bench.reload(WARM.replace("\"warm\"", "\"other\"").as_str());
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("dropped rule_removed"), "{lines:?}");
    assert_eq!(adopted.removed, [Arc::from("warm")]);
    assert!(bench.rows.is_empty());
}

#[test]
fn an_alert_had_the_id_of_the_one_before_whose_level_was_gone() {
    let text = "[[rule]]\nname = 'r'\ntopic = 'f/{unit}'\nwhen = 'payload > 5 && previous != null'\nseverity = 'critical'\nto = ['ana']\n";
    let mut bench = Bench::new(text);
    bench.effects("f/1", "6");
    bench.effects("f/1", "6");
    let before = bench.engine.firing().next().expect("fires").id;
    let (lines, _) = bench.reload(&text.replace("critical", "info"));
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("r 1 dropped rule_changed"), "{lines:?}");
    assert_eq!((bench.engine.len(), bench.rows.len()), (1, 1));
    bench.effects("f/1", "6");
    bench.effects("f/1", "6");
    let after = bench.engine.firing().next().expect("fires").id;
    assert_ne!(before, after);
    assert_eq!(bench.rows.keys().collect::<Vec<_>>(), [&after]);
}

#[test]
fn what_a_rule_could_hear_of_no_more_fired_for_ever() {
    for (change, stays) in [
        (("> 5", "> 4"), true),
        (("{unit}", "{pump}"), true),
        (("f/{unit}", "g/{unit}"), false),
        (("f/{unit}", "{area}/{unit}"), false),
        (("topic =", "key = []\ntopic ="), false),
        (("topic =", "each = 'payload'\ntopic ="), false),
        (("topic =", "key = ['string(payload)']\ntopic ="), true),
    ] {
        let held = HELD.replace("{{ unit }}", "it");
        let mut bench = Bench::new(&held);
        bench.effects("f/1", "6");
        bench.pass(Duration::from_secs(300));
        assert_eq!(bench.engine.firing().count(), 1);
        let (lines, adopted) = bench.reload(&held.replace(change.0, change.1));
        assert_eq!(lines.is_empty(), stays, "{change:?} {lines:?}");
        assert_eq!(adopted.changed, [Arc::from("warm")]);
        assert_eq!(bench.engine.firing().count(), usize::from(stays), "{change:?}");
        bench.checkpoint();
        assert_eq!(bench.rows.len(), usize::from(stays), "{change:?}");
        for alert in bench.engine.firing() {
            let name = if change.1 == "{pump}" { "pump" } else { "unit" };
            assert_eq!(alert.label(name), Some("1"), "{change:?}");
        }
    }
}

#[test]
fn a_dead_man_missed_what_it_could_hear_no_more_or_was_not_to_hear() {
    let mut bench = Bench::new(SILENT);
    bench.at_once(&publish("site/kiel/pump/9", "1"));
    // The topic: nobody of before is missed.
    let moved = SILENT.replace("site/{site}/pump", "plant/{site}/pump");
    bench.reload(&moved);
    let lines = bench.pass(Duration::from_secs(1800));
    assert_eq!(lines, ["silent kiel/1 firing: kiel pump 1 is silent (last never)"]);
    // Another is expected in its place, or nobody.
    let (lines, _) = bench.reload(&moved.replace("unit = \"1\"", "unit = \"2\""));
    assert!(lines[0].contains("silent kiel/1 dropped rule_changed"), "{lines:?}");
    let keys: Vec<&str> = bench.engine.instances().map(|instance| &*instance.key).collect();
    assert_eq!(keys, ["kiel/2"]);
    bench.at_once(&publish("plant/kiel/pump/2", "1"));
    bench.reload(&moved.replace("expect = [{ site = \"kiel\", unit = \"1\" }]", ""));
    assert_eq!(bench.engine.len(), 1, "one that was heard of is known");
}

#[test]
fn what_is_expected_was_forgotten_until_the_next_start() {
    let text = format!("{SILENT}forget = \"1d\"\n");
    let mut bench = Bench::new(&text);
    bench.at_once(&publish("site/kiel/pump/9", "1"));
    assert_eq!(bench.pass(Duration::from_secs(3 * 86_400)).len(), 3);
    assert_eq!(bench.engine.firing().count(), 1);
    // By an operator: it is as if it had never been heard of, and is waited for.
    let id = bench.engine.instance("silent", "kiel/1").expect("there").id;
    let effects = bench.engine.forget(&bench.rules, id, bench.now).expect("there");
    bench.write(&effects);
    assert_eq!(bench.rows.len(), 1);
    assert_eq!(
        bench.pass(Duration::from_secs(900)),
        ["silent kiel/1 firing: kiel pump 1 is silent (last never)"]
    );
}

#[test]
fn an_alert_that_was_raised_in_shadow_was_never_told_once_its_rule_was_live() {
    let shadow = format!("{WARM}mode = \"shadow\"\n");
    let mut bench = Bench::new(&shadow);
    bench.effects("f/1", r#"{"t": -10}"#);
    assert_eq!(bench.restart(false, Duration::from_secs(1)), [""; 0]);
    assert_eq!(bench.reload(WARM).0, ["warm 1 firing: 1 has -10"]);
    assert_eq!(bench.restart(false, Duration::from_secs(1)), [""; 0]);
    // Whoever was told is not told again.
    assert_eq!(bench.reload(&shadow).0, [""; 0]);
    assert_eq!(bench.reload(WARM).0, [""; 0]);
}

#[test]
fn a_reload_with_many_instances_was_one_large_operation() {
    let mut bench = Bench::new(HELD);
    for unit in 0..1000 {
        bench.at_once(&publish(&format!("f/{unit}"), "6"));
    }
    bench.pass(Duration::from_secs(300));
    bench.rules = rules(&HELD.replace("> 5", "> 4"));
    let (pieces, _) = bench.engine.adopt(&bench.rules, bench.now);
    // The rows are written by checkpoints; a start before that finds what they meant.
    assert!(pieces.iter().all(|piece| piece.touched.is_empty() && piece.news.is_empty()));
    assert_eq!(bench.engine.unsaved(), 1000);
    assert_eq!(bench.restart(false, Duration::from_secs(1)), [""; 0]);
    assert_eq!((bench.engine.unsaved(), bench.engine.firing().count()), (1000, 1000));
    bench.rules = rules("");
    let (pieces, _) = bench.engine.adopt(&bench.rules, bench.now);
    assert!(pieces.iter().all(|piece| piece.touched.len() + piece.news.len() <= 64));
    assert_eq!(pieces.iter().map(|piece| piece.news.len()).sum::<usize>(), 1000);
    pieces.iter().for_each(|effects| bench.write(effects));
    assert!(bench.rows.is_empty());
}

#[test]
fn only_what_an_alert_depends_on_is_written_at_once() {
    let mut bench = Bench::new(HELD);
    assert!(!bench.effects("f/1", "6").touched.is_empty(), "a clock began");
    assert!(bench.effects("f/1", "7").touched.is_empty(), "it goes on");
    assert!(bench.engine.unsaved() <= 1);
    let durable = format!("{HELD}durable = true\n");
    let mut bench = Bench::new(&durable);
    bench.effects("f/1", "6");
    assert!(!bench.effects("f/1", "7").touched.is_empty());
}

/// What happens in the property test.
#[derive(Clone, Debug)]
enum Event {
    Publish(u8, i64),
    Pass(u64),
    Acknowledge,
    Restart(bool, u64),
    Reload,
}

/// One instance by its whole history: every publish with its second, read again at each question.
#[derive(Clone, Default)]
struct Naive {
    /// When, and the worst level that was found to hold.
    seen: Vec<(u64, Option<Severity>)>,
    /// How many of `seen` there were when the level changed last.
    moved: usize,
    level: Option<Severity>,
    acked: bool,
    told: Vec<(u64, Option<Severity>)>,
}

const WHEN: [(Severity, i64, i64); 2] = [(Severity::Warning, 5, 3), (Severity::Critical, 8, 6)];
const HOLD: u64 = 30;
const CLEAR: u64 = 20;

impl Naive {
    /// Since which second all that was seen fits `fits`, without a gap until now.
    fn since(&self, from: usize, fits: impl Fn(Option<Severity>) -> bool) -> Option<u64> {
        let run = self.seen.iter().skip(from).rev().take_while(|(_, target)| fits(*target));
        run.last().map(|(second, _)| *second)
    }

    fn step(&mut self, second: u64) {
        loop {
            let ready = WHEN.iter().rev().map(|(level, ..)| *level).find(|level| {
                let since = self.since(0, |target| target >= Some(*level));
                since.is_some_and(|since| since + HOLD <= second)
            });
            let active = self.level;
            let drops = self.since(self.moved, |target| target < active);
            let next = if ready > active {
                ready
            } else if active.is_some() && drops.is_some_and(|since| since + CLEAR <= second) {
                self.seen.last().and_then(|(_, target)| *target)
            } else {
                return;
            };
            if next != active {
                self.acked &= next.is_some() && next < active;
                self.told.push((second, next));
            }
            self.moved = self.seen.len();
            self.level = next;
        }
    }

    fn publish(&mut self, second: u64, value: i64) {
        let holds = |level: &&(Severity, i64, i64)| value > level.1;
        let worse = WHEN.iter().rev().filter(|(level, ..)| Some(*level) > self.level).find(holds);
        let reset = WHEN.iter().find(|(level, ..)| Some(*level) == self.level);
        let target = match (worse, reset) {
            (Some((level, ..)), _) => Some(*level),
            (None, Some((level, _, reset))) if value >= *reset => Some(*level),
            (None, _) => {
                let held = WHEN.iter().rev().filter(|(level, ..)| Some(*level) <= self.level);
                held.clone().find(holds).map(|(level, ..)| *level)
            }
        };
        self.seen.push((second, target));
        self.step(second);
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        6 => (0_u8..2, 0_i64..11).prop_map(|(unit, value)| Event::Publish(unit, value)),
        4 => (1_u64..40).prop_map(Event::Pass),
        1 => Just(Event::Acknowledge),
        1 => (any::<bool>(), 0_u64..50).prop_map(|(clean, away)| Event::Restart(clean, away)),
        1 => Just(Event::Reload),
    ];
    prop::collection::vec(event, 0..40)
}

proptest! {
    /// For any sequence of publishes, acknowledgements, restarts, kills and reloads, what fires and
    /// what was told is what the whole history says.
    #[test]
    fn the_state_is_that_of_the_whole_history(events in events()) {
        let text = |says: &str| format!(
            "[[rule]]\nname = 'r'\ntopic = 'u/{{unit}}'\nfor = '30s'\nclear_for = '20s'\nwarning = {{ when = 'payload > 5', clear = 'payload < 3' }}\ncritical = {{ when = 'payload > 8', clear = 'payload < 6' }}\ntext = '{says}'\nto = ['ana']\n"
        );
        let mut bench = Bench::new(&text("a"));
        let mut naive: BTreeMap<u8, Naive> = BTreeMap::new();
        let mut told: BTreeMap<u8, Vec<(u64, Option<Severity>)>> = BTreeMap::new();
        let mut second = 0;
        let mut note = |effects: &Effects, second: u64| {
            for news in &effects.news {
                let unit: u8 = news.alert.key.parse().expect("a unit");
                let level = match news.turn {
                    Turn::Raised | Turn::Level(_) => Some(news.alert.severity),
                    Turn::Cleared => None,
                    _ => continue,
                };
                told.entry(unit).or_default().push((second, level));
            }
        };
        for event in events {
            match event {
                Event::Publish(unit, value) => {
                    let effects = bench.at_once(&publish(&format!("u/{unit}"), &value.to_string()));
                    note(&effects, second);
                    naive.entry(unit).or_default().publish(second, value);
                }
                Event::Pass(time) => {
                    for _ in 0..time {
                        second += 1;
                        bench.now = bench.now.plus(Duration::from_secs(1));
                        let effects = bench.engine.wake(&bench.rules, bench.now);
                        bench.write(&effects);
                        note(&effects, second);
                        naive.values_mut().for_each(|one| one.step(second));
                    }
                }
                Event::Acknowledge => {
                    let ids: Vec<AlertId> = bench.engine.firing().map(|alert| alert.id).collect();
                    for id in ids {
                        let ack = Ack { by: "ana".into(), at: bench.now, note: None };
                        let effects = bench.engine.acknowledge(&bench.rules, id, ack).expect("fires");
                        bench.write(&effects);
                    }
                    naive.values_mut().for_each(|one| one.acked = one.level.is_some());
                }
                Event::Restart(clean, away) => {
                    bench.restart(clean, Duration::from_secs(away));
                    second += away;
                    let effects = bench.engine.wake(&bench.rules, bench.now);
                    bench.write(&effects);
                    note(&effects, second);
                    // Nobody looked meanwhile: what was due comes now, and is of now.
                    naive.values_mut().for_each(|one| one.step(second));
                }
                Event::Reload => {
                    let says = if second % 2 == 0 { "b" } else { "c" };
                    let (lines, _) = bench.reload(&text(says));
                    prop_assert!(lines.is_empty());
                }
            }
            for (unit, one) in &naive {
                let found = bench.engine.instance("r", &unit.to_string());
                let level = found.and_then(|instance| instance.life.level());
                prop_assert_eq!(level, one.level, "unit {} at {}", unit, second);
                let acked = found.is_some_and(|instance| instance.ack.is_some());
                prop_assert_eq!(acked, one.acked, "unit {} at {}", unit, second);
            }
        }
        for (unit, one) in &naive {
            prop_assert_eq!(told.get(unit).cloned().unwrap_or_default(), one.told.clone());
        }
    }
}
