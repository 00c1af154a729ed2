//! Which instances fire: one publish in, what changes out.
//!
//! An instance is a rule and a key. It is kept from the publish that fires it to the one that clears
//! it: firing means present. Only edges are told: a condition that goes on holding says nothing.
//!
//! Invariant: `handle` has changed the state by the time it returns. A caller that cannot make the
//! effects durable must not go on, or the alert would be known here and nowhere else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cel::Context;
use serde::{Deserialize, Serialize};

use super::Config;
use super::condition::{self, Expression};
use super::set::{KeyPart, Matched, Rule, Rules};
use super::template::{self, default_text, plain};
use crate::clock::Timestamp;
use crate::model::{Alert, AlertId, AlertState, Channel, Fnv, IdSource, Publish, Reason};
use crate::payload::{self, Decode, Undecodable, Value};

/// The longest key, bytes. A longer one keeps its head and a hash of the whole.
const KEY_BYTES_MAX: usize = 256;

/// A firing instance, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Which instance of it.
    pub key: Arc<str>,
    /// The alert as it fired.
    pub alert: Alert,
}

/// What a publish caused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Alerts that fired or cleared, in the order of the rules.
    pub changes: Vec<Change>,
    /// Rules that could not come to a result.
    pub failures: Vec<Failure>,
}

/// One alert that fired or cleared.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The alert as it stands now.
    pub alert: Alert,
    /// Whether anybody is to be told: a clear without `text_clear` is recorded only.
    pub notify: bool,
    /// A headline.
    pub title: Option<Arc<str>>,
    /// Contacts by name.
    pub to: Arc<[Arc<str>]>,
    /// Channels in order; empty: each contact's own.
    pub by: Arc<[Channel]>,
    /// How long a message may wait; the configured default where `None`.
    pub expires_in: Option<Duration>,
    /// What becomes of the stored instance.
    pub instance: InstanceChange,
}

/// What becomes of a stored instance.
#[derive(Clone, Debug, PartialEq)]
pub enum InstanceChange {
    /// The rule keeps no state.
    None,
    /// It fires: store it.
    Put(Instance),
    /// It has cleared: remove it. This is what was stored.
    Remove(Instance),
}

/// A rule that did not come to a result on a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Undecodable payload, failed expression, failed template, or too many instances.
    pub reason: Reason,
    /// In words; never anything of the payload.
    pub detail: String,
}

/// The state of every firing instance.
#[derive(Debug)]
pub struct Engine {
    ids: IdSource,
    instances_max: usize,
    /// By rule, then by key. Keyed by names, so that it outlives a reload; what belongs to a rule
    /// that is gone stays until somebody decides on it.
    firing: HashMap<Arc<str>, HashMap<Arc<str>, Alert>>,
    len: usize,
}

impl Engine {
    /// Nothing fires.
    pub fn new(ids: IdSource, config: &Config) -> Self {
        Self { ids, instances_max: config.instances_max, firing: HashMap::new(), len: 0 }
    }

    /// Puts back an instance that was stored. Not held to the limit: it was within it once.
    pub fn restore(&mut self, instance: Instance) {
        let Instance { rule, key, alert } = instance;
        if self.firing.entry(rule).or_default().insert(key, alert).is_none() {
            self.len += 1;
        }
    }

    /// How many instances fire.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none fires.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Every alert that fires, in no order.
    pub fn firing(&self) -> impl Iterator<Item = &Alert> {
        self.firing.values().flat_map(HashMap::values)
    }

    /// Runs the rules that match a publish. `matched` must come from `rules`.
    pub fn handle(
        &mut self,
        rules: &Rules,
        matched: &Matched,
        publish: &Publish,
        now: Timestamp,
    ) -> Effects {
        let mut run = Run { engine: self, rules, publish, now, effects: Effects::default() };
        // Decoded once a codec, however many rules match.
        let mut decoded: [Option<Result<Value, Undecodable>>; Decode::ALL.len()] =
            [const { None }; Decode::ALL.len()];
        for position in matched.positions() {
            let Some(rule) = rules.at(position) else {
                continue;
            };
            let slot = decoded.get_mut(rule.decode as usize);
            let payload = slot.map(|slot| {
                slot.get_or_insert_with(|| {
                    payload::decode(
                        &rule.decode.into(),
                        &publish.payload,
                        rules.payload_limits,
                        now,
                    )
                })
            });
            match payload {
                Some(Ok(payload)) => run.rule(rule, payload),
                Some(Err(error)) => {
                    run.fail(rule, Reason::UndecodablePayload, error.to_string());
                }
                None => {}
            }
        }
        run.effects
    }

    fn remove(&mut self, rule: &str, key: &str) -> Option<Alert> {
        let keys = self.firing.get_mut(rule)?;
        let alert = keys.remove(key)?;
        self.len -= 1;
        if keys.is_empty() {
            self.firing.remove(rule);
        }
        Some(alert)
    }
}

/// One publish on its way through the rules.
struct Run<'a> {
    engine: &'a mut Engine,
    rules: &'a Rules,
    publish: &'a Publish,
    now: Timestamp,
    effects: Effects,
}

impl Run<'_> {
    fn fail(&mut self, rule: &Rule, reason: Reason, detail: String) {
        self.effects.failures.push(Failure { rule: Arc::clone(&rule.name), reason, detail });
    }

    fn fail_expression(&mut self, rule: &Rule, key: &str, detail: &str) {
        self.fail(rule, Reason::ExpressionFailed, format!("`{key}`: {detail}"));
    }

    fn rule(&mut self, rule: &Rule, payload: &Value) {
        let publish = self.publish;
        let scene = condition::Scene {
            payload,
            topic: &publish.topic,
            filter: &rule.filter,
            client_id: &publish.client_id,
            retain: publish.retain,
            now: self.now,
        };
        let context = scene.context();
        let Some(when) = &rule.when else {
            self.event(rule, payload, &context);
            return;
        };
        // While nothing of the rule fires, its key matters only once it does.
        let fires = |run: &mut Self| match when.holds(&context) {
            Ok(holds) => holds,
            Err(detail) => {
                run.fail_expression(rule, "when", &detail);
                false
            }
        };
        let idle = !self.engine.firing.contains_key(&rule.name);
        if idle && !fires(self) {
            return;
        }
        let key = match key_of(rule, publish, &context) {
            Ok(key) => key,
            Err(detail) => {
                self.fail_expression(rule, "key", &detail);
                return;
            }
        };
        let firing = self.engine.firing.get(&rule.name);
        if firing.is_some_and(|keys| keys.contains_key(key.as_str())) {
            match clears(rule, when, &context) {
                Ok(true) => self.clear(rule, payload, &key),
                Ok(false) => {}
                Err((expression, detail)) => self.fail_expression(rule, expression, &detail),
            }
        } else if idle || fires(self) {
            self.fire(rule, payload, key.into());
        }
    }

    /// A rule without a condition: the publish itself is the alert.
    fn event(&mut self, rule: &Rule, payload: &Value, context: &Context<'_, '_>) {
        let key = key_of(rule, self.publish, context).unwrap_or_else(|detail| {
            // The key of an event is information only: better an alert without it than none.
            self.fail_expression(rule, "key", &detail);
            "?".to_owned()
        });
        let alert = self.alert(rule, payload, key.into());
        self.change(rule, payload, alert, InstanceChange::None);
    }

    fn fire(&mut self, rule: &Rule, payload: &Value, key: Arc<str>) {
        if self.engine.len >= self.engine.instances_max {
            let detail = format!(
                "{} instances fire already (rules.instances_max); this one is not raised",
                self.engine.instances_max
            );
            self.fail(rule, Reason::TooMany, detail);
            return;
        }
        let alert = self.alert(rule, payload, key);
        let instance = Instance {
            rule: Arc::clone(&alert.rule),
            key: Arc::clone(&alert.key),
            alert: alert.clone(),
        };
        self.engine.restore(instance.clone());
        self.change(rule, payload, alert, InstanceChange::Put(instance));
    }

    fn clear(&mut self, rule: &Rule, payload: &Value, key: &str) {
        let Some(fired) = self.engine.remove(&rule.name, key) else {
            return;
        };
        let mut alert = Alert {
            state: AlertState::Cleared,
            topic: self.publish.topic.clone(),
            changed_at: self.now,
            ..fired.clone()
        };
        if let Some(name) = &rule.text_clear {
            alert.text = self.render(rule, name, payload, &alert);
        }
        let instance =
            Instance { rule: Arc::clone(&fired.rule), key: Arc::clone(&fired.key), alert: fired };
        self.change(rule, payload, alert, InstanceChange::Remove(instance));
    }

    fn alert(&mut self, rule: &Rule, payload: &Value, key: Arc<str>) -> Alert {
        let mut alert = Alert {
            id: AlertId::next(&mut self.engine.ids, self.now, &rule.name, &key),
            rule: Arc::clone(&rule.name),
            key,
            severity: rule.severity,
            state: AlertState::Firing,
            labels: Arc::default(),
            topic: self.publish.topic.clone(),
            fired_at: self.now,
            changed_at: self.now,
            text: Arc::default(),
        };
        alert.text = match &rule.text {
            Some(name) => self.render(rule, name, payload, &alert),
            None => default_text(&rule.name, &alert.topic, payload),
        };
        alert
    }

    fn change(&mut self, rule: &Rule, payload: &Value, alert: Alert, instance: InstanceChange) {
        let notify = alert.state == AlertState::Firing || rule.text_clear.is_some();
        let title = rule.title.as_ref().filter(|_| notify);
        let title = title.and_then(|name| self.try_render(rule, name, payload, &alert));
        self.effects.changes.push(Change {
            alert,
            notify,
            title,
            to: Arc::clone(&rule.to),
            by: Arc::clone(&rule.by),
            expires_in: rule.expires_in,
            instance,
        });
    }

    /// The template's text, or a plain one: whatever happens, the alert goes out.
    fn render(&mut self, rule: &Rule, name: &str, payload: &Value, alert: &Alert) -> Arc<str> {
        self.try_render(rule, name, payload, alert)
            .unwrap_or_else(|| plain(&rule.name, alert.state, &alert.topic))
    }

    fn try_render(
        &mut self,
        rule: &Rule,
        name: &str,
        payload: &Value,
        alert: &Alert,
    ) -> Option<Arc<str>> {
        let scene = template::Scene {
            payload: payload.clone(),
            topic: alert.topic.clone(),
            filter: Arc::clone(&rule.filter),
            client_id: Arc::clone(&self.publish.client_id),
            key: Arc::clone(&alert.key),
            rule: Arc::clone(&rule.name),
            severity: rule.severity,
            now: self.now,
            fired_at: alert.fired_at,
        };
        match self.rules.templates.render(name, scene) {
            Ok(text) => Some(text),
            Err(detail) => {
                let key = name.rsplit('/').next().unwrap_or(name);
                self.fail(rule, Reason::TemplateFailed, format!("`{key}`: {detail}"));
                None
            }
        }
    }
}

/// Whether a firing instance clears: its `clear` holds and its `when` does not. A rule whose two
/// conditions can hold at once would else fire and clear at every other publish. Where `clear` is
/// given, a `when` that fails does not stop it: the two may look at different payloads.
fn clears(
    rule: &Rule,
    when: &Expression,
    context: &Context<'_, '_>,
) -> Result<bool, (&'static str, String)> {
    match &rule.clear {
        None => when.holds(context).map(|holds| !holds).map_err(|detail| ("when", detail)),
        Some(clear) => {
            let clear = clear.holds(context).map_err(|detail| ("clear", detail))?;
            Ok(clear && when.holds(context) != Ok(true))
        }
    }
}

/// The instance that a publish is about.
fn key_of(rule: &Rule, publish: &Publish, context: &Context<'_, '_>) -> Result<String, String> {
    let mut key = String::new();
    let several = rule.key.len() > 1;
    for (index, part) in rule.key.iter().enumerate() {
        if index > 0 {
            key.push('/');
        }
        match part {
            KeyPart::Capture(name) => {
                let level = condition::capture(&rule.filter, &publish.topic, name);
                key.push_str(level.unwrap_or_default());
            }
            KeyPart::Expression(expression) => {
                for character in expression.key(context)?.chars() {
                    match character {
                        // `a/b` and `c` must not be the same instance as `a` and `b/c`.
                        '/' if several => key.push_str("%2F"),
                        '%' if several => key.push_str("%25"),
                        _ if character.is_control() => key.push(' '),
                        _ => key.push(character),
                    }
                }
            }
        }
    }
    if key.len() > KEY_BYTES_MAX {
        let mut hash = Fnv::new();
        hash.write(key.as_bytes());
        template::truncate(&mut key, KEY_BYTES_MAX - 20);
        key.push_str(&format!("…{:016x}", hash.finish()));
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Qos, Severity};
    use crate::problem::TomlFile;
    use crate::rules::set::Known;
    use crate::topic::{TopicLimits, TopicName};

    const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn rules(text: &str) -> Rules {
        let file = TomlFile::parse("rules/a.toml", text).expect("TOML");
        let contacts = [Known { name: "ana".into(), channels: vec![Channel::Sms] }];
        Rules::load(&[file], Some(&contacts), &Config::default()).expect("right")
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

    struct Bench {
        engine: Engine,
        rules: Rules,
        now: Timestamp,
    }

    impl Bench {
        fn new(text: &str) -> Self {
            Self::with(text, &Config::default())
        }

        fn with(text: &str, config: &Config) -> Self {
            Self { engine: Engine::new(IdSource::new(1), config), rules: rules(text), now: START }
        }

        fn effects(&mut self, topic: &str, payload: &str) -> Effects {
            self.now = self.now.plus(Duration::from_secs(1));
            let publish = publish(topic, payload);
            match self.rules.matches(&publish.topic) {
                None => Effects::default(),
                Some(matched) => self.engine.handle(&self.rules, &matched, &publish, self.now),
            }
        }

        /// What happened, one line a change or failure.
        fn told(&mut self, topic: &str, payload: &str) -> Vec<String> {
            let effects = self.effects(topic, payload);
            let changes = effects.changes.iter().map(|change| {
                let Alert { rule, key, state, text, .. } = &change.alert;
                let quiet = if change.notify { "" } else { " (quiet)" };
                format!("{rule} {key} {state}{quiet}: {text}")
            });
            let failures = effects.failures.iter();
            let failures = failures.map(|f| format!("! {} {}: {}", f.rule, f.reason, f.detail));
            changes.chain(failures).collect()
        }
    }

    /// Publishes in order, each with the lines that it must cause.
    fn check(text: &str, steps: &[(&str, &str, &[&str])]) {
        let mut bench = Bench::new(text);
        for (topic, payload, expected) in steps {
            assert_eq!(bench.told(topic, payload), *expected, "{payload} on {topic}");
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
        let mut bench =
            Bench::new("[[rule]]\nname = 'panic'\ntopic = 'panic/{who}'\nto = ['ana']\n");
        let first = bench.effects("panic/joe", "1");
        let second = bench.effects("panic/joe", "1");
        assert_ne!(first.changes[0].alert.id, second.changes[0].alert.id);
        assert_eq!(second.changes[0].instance, InstanceChange::None);
        assert_eq!(second.changes[0].alert.key.as_ref(), "joe");
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
                        "! warm expression_failed: `when`: `.` does not take double and string",
                    ],
                ),
                (
                    "f/1",
                    "nan",
                    &[
                        "! warm expression_failed: `when`: `.` does not take string and string",
                        "! number undecodable_payload: the payload is not a finite number: the device has no reading",
                    ],
                ),
                (
                    "f/1",
                    "",
                    &[
                        "! warm expression_failed: `when`: `.` does not take string and string",
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
                        "r  firing: r: firing on a (the rule's text could not be rendered)",
                        "! r template_failed: `text`: a value is missing: payload.name",
                        "! r template_failed: `title`: a value is missing: payload.title",
                    ],
                ),
                (
                    "a",
                    r#"{"t":1,"title":"x"}"#,
                    &[
                        "r  cleared: r: cleared on a (the rule's text could not be rendered)",
                        "! r template_failed: `text_clear`: a value is missing: payload.name",
                    ],
                ),
            ],
        );
    }

    #[test]
    fn two_conditions_that_hold_at_once_do_not_flap() {
        let text = "[[rule]]\nname = 'r'\ntopic = 'a'\nwhen = 'payload > 1'\nclear = 'payload > 0'\nto = ['ana']\n";
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
            effects.changes[0].alert.key.to_string()
        };
        assert_eq!(key(r#"["b"]"#, "x/y", "1"), "y");
        assert_eq!(key(r#"["a", "payload.id"]"#, "x/y", r#"{"id":7}"#), "x/7");
        assert_eq!(key(r#"["payload.id"]"#, "x/y", r#"{"id":"a/b%"}"#), "a/b%");
        assert_eq!(key(r#"["payload.id", "b"]"#, "x/y", r#"{"id":"a/b%"}"#), "a%2Fb%25/y");
        assert_eq!(key(r#"["payload.id"]"#, "x/y", r#"{"id":"a\nb"}"#), "a b");
        assert_eq!(key("[]", "x/y", "1"), "");
        assert_eq!(key(r#"["payload.id"]"#, "x/y", "{}"), "?");
        let long =
            |end: &str| key(r#"["payload"]"#, "x/y", &format!("\"{}{end}\"", "ä".repeat(300)));
        assert!(long("a").len() <= KEY_BYTES_MAX && long("a") != long("b"));
    }

    #[test]
    fn a_change_carries_what_its_rule_says() {
        let mut bench = Bench::new(
            r#"
            [[rule]]
            name = "r"
            topic = "a"
            severity = "critical"
            title = "{{ rule }} {{ severity }}"
            to = ["ana"]
            by = ["sms"]
            expires_in = "1h"
            "#,
        );
        let effects = bench.effects("a", "1");
        let change = &effects.changes[0];
        assert_eq!(change.title.as_deref(), Some("r critical"));
        assert_eq!(change.to.as_ref(), [Arc::from("ana")]);
        assert_eq!(change.by.as_ref(), [Channel::Sms]);
        assert_eq!(change.expires_in, Some(Duration::from_secs(3600)));
        assert_eq!(change.alert.severity, Severity::Critical);
        assert_eq!(change.alert.fired_at, bench.now);
    }

    #[test]
    fn at_the_limit_nothing_more_is_raised_and_that_is_said() {
        let config = Config { instances_max: 1, ..Config::default() };
        let mut bench = Bench::with(WARM, &config);
        assert_eq!(bench.told("f/1", r#"{"t":0}"#).len(), 1);
        assert_eq!(
            bench.told("f/2", r#"{"t":0}"#),
            [
                "! warm too_many: 1 instances fire already (rules.instances_max); this one is not raised"
            ]
        );
        bench.effects("f/1", r#"{"t":-20}"#);
        assert_eq!(bench.told("f/2", r#"{"t":0}"#), ["warm 2 firing: 2 has 0"]);
    }

    #[test]
    fn a_stored_instance_goes_on_where_it_was() {
        let mut before = Bench::new(WARM);
        let effects = before.effects("f/1", r#"{"t":0}"#);
        let InstanceChange::Put(instance) = &effects.changes[0].instance else {
            panic!("{effects:?}");
        };
        let stored = serde_json::to_string(instance).expect("serializes");
        let mut after = Bench::new(WARM);
        after.engine.restore(serde_json::from_str(&stored).expect("deserializes"));
        assert_eq!(after.told("f/1", r#"{"t":0}"#), [""; 0]);
        let cleared = after.effects("f/1", r#"{"t":-20}"#);
        assert_eq!(cleared.changes[0].alert.id, instance.alert.id);
        assert_eq!(cleared.changes[0].alert.fired_at, instance.alert.fired_at);
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
                for change in effects.changes {
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
}
