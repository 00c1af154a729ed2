//! `[[test]]` tables to tests, and whatever is wrong with them, at once.
//!
//! Names of rules and contacts are looked up in the files and not in the rule set, so that a test is
//! not blamed for a rule that is wrong elsewhere.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::tz::TimeZone;
use serde::Deserialize;
use toml::Value;

use super::happening::{Expected, State};
use super::{Act, Step, Trial};
use crate::clock::Timestamp;
use crate::model::{Publish, Qos, Reason};
use crate::notify::pattern::Pattern;
use crate::notify::silence::Matcher;
use crate::problem::{self, Problem, Step as PathStep, TomlFile, closest, path_text, unknown_key};
use crate::span::Span;
use crate::topic::{TopicLimits, TopicName};

/// A Monday.
const START: &str = "2026-11-23T08:00:00";
/// Most publishes of one test.
const PUBLISHES_MAX: u64 = 100_000;
/// Most steps of a test, and most that one may expect.
const STEPS_MAX: usize = 1_000;
/// Longest virtual time of a test.
const LONGEST: Duration = Duration::from_secs(400 * 86_400);
/// What may become of a client.
const EVENTS: &[&str] = &["connected", "disconnected", "refused", "taken_over", "will"];

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenTest {
    name: Option<String>,
    start: Option<Value>,
    zone: Option<String>,
    rules: Option<Vec<String>>,
    steps: Vec<WrittenStep>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenStep {
    at: Option<Span>,
    topic: Option<String>,
    payload: Option<Value>,
    payload_hex: Option<String>,
    payload_base64: Option<String>,
    retain: bool,
    replayed: bool,
    client_id: Option<String>,
    identity: Option<String>,
    every: Option<Span>,
    times: Option<u32>,
    client: Option<String>,
    event: Option<String>,
    user: Option<String>,
    address: Option<String>,
    listener: Option<String>,
    reason: Option<String>,
    clean: Option<bool>,
    ack: Option<String>,
    key: Option<String>,
    by: Option<String>,
    note: Option<String>,
    restart_for: Option<Span>,
    kill: bool,
    silence: Option<toml::Table>,
    expect: Option<Vec<WrittenExpected>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenExpected {
    rule: Option<String>,
    key: Option<String>,
    state: Option<String>,
    severity: Option<String>,
    to: Option<String>,
    by: Option<String>,
    text: Option<String>,
    text_contains: Option<String>,
    reason: Option<String>,
    times: Option<u32>,
}

/// What a step can be, by the key that makes it so, and what else may stand in it.
const KINDS: &[(&str, &[&str])] = &[
    (
        "topic",
        &[
            "payload",
            "payload_hex",
            "payload_base64",
            "retain",
            "replayed",
            "client_id",
            "identity",
            "every",
            "times",
        ],
    ),
    ("client", &["event", "identity", "user", "address", "listener", "reason", "clean"]),
    ("ack", &["key", "by", "note"]),
    ("restart_for", &["kill"]),
    ("silence", &[]),
];

/// The names that files give.
struct Names {
    rules: BTreeSet<String>,
    contacts: BTreeSet<String>,
}

impl Names {
    fn of(files: &[TomlFile]) -> Self {
        let names = |table: &str| {
            let tables = files.iter().filter_map(|file| file.table().get(table)?.as_array());
            let names = tables.flatten().filter_map(|one| one.get("name")?.as_str());
            names.map(str::to_owned).collect()
        };
        Self { rules: names("rule"), contacts: names("contact") }
    }
}

/// Reads the tests of all files; `complete`: there is no file that could not be read. Tests are given
/// only where nothing is wrong with them.
pub fn read(files: &[TomlFile], complete: bool) -> (Vec<Trial>, Vec<Problem>) {
    let names = complete.then(|| Names::of(files));
    let (mut trials, mut problems) = (Vec::new(), Vec::new());
    let mut taken: HashMap<String, String> = HashMap::new();
    for (number, file) in files.iter().enumerate() {
        let Some(value) = file.table().get("test") else { continue };
        let tables = value.as_array().filter(|tables| tables.iter().all(Value::is_table));
        let Some(tables) = tables else {
            let what = "test: write [[test]] with two brackets, once for each test";
            problems.push(file.problem(&["test".into()], what));
            continue;
        };
        for (index, table) in tables.iter().enumerate() {
            let path = vec![PathStep::from("test"), index.into()];
            let who = format!("test {}", index + 1);
            let before = problems.len();
            let mut reader =
                Reader { file, names: names.as_ref(), path, who, problems: &mut problems };
            let trial = reader.trial(table, &mut taken);
            if let Some(trial) = trial
                && problems.len() == before
            {
                trials.push(Trial { file: number, index, ..trial });
            }
        }
    }
    (trials, problems)
}

/// One `[[test]]` while it is read.
struct Reader<'a, 'p> {
    file: &'a TomlFile,
    names: Option<&'a Names>,
    path: Vec<PathStep>,
    who: String,
    problems: &'p mut Vec<Problem>,
}

impl Reader<'_, '_> {
    fn problem(&mut self, at: &[PathStep], what: &str) {
        let mut path = self.path.clone();
        path.extend_from_slice(at);
        let text = match at {
            [] => format!("{}: {what}", self.who),
            at => format!("{}: `{}`: {what}", self.who, path_text(at)),
        };
        self.problems.push(self.file.problem(&path, text));
    }

    fn trial(&mut self, table: &Value, taken: &mut HashMap<String, String>) -> Option<Trial> {
        if let Some(name) = table.get("name").and_then(Value::as_str) {
            self.who = format!("test \"{name}\"");
        }
        let (written, faults) = problem::read_what_is_right::<WrittenTest>(table.clone());
        for fault in &faults {
            self.problem(&fault.path, &fault.what);
        }
        let written = written?;
        match written.name.as_deref().map(str::trim) {
            None if table.get("name").is_some() => {}
            None | Some("") => {
                self.problem(&[], "`name` is missing; say in a few words what it shows");
            }
            Some(name) => {
                let place = format!("{}:{}", self.file.name(), self.file.line(&self.path));
                if let Some(first) = taken.get(name) {
                    let what = format!("the name is taken by the test at {first}; choose another");
                    self.problem(&["name".into()], &what);
                } else {
                    taken.insert(name.to_owned(), place);
                }
            }
        }
        let start = self.start(&written);
        let about = self.about(written.rules.as_deref());
        let raw = table.get("steps").and_then(Value::as_array);
        if written.steps.is_empty() && !faults.iter().any(|fault| is_steps(&fault.path)) {
            let what = "`steps` is missing; write steps = [{ at = \"0s\", topic = \"a/b\", payload = 1, expect = [] }]";
            self.problem(&[], what);
            return None;
        }
        if written.steps.len() > STEPS_MAX {
            self.problem(
                &["steps".into()],
                &format!("more than {STEPS_MAX} steps; make two tests"),
            );
            return None;
        }
        if !written.steps.is_empty() && written.steps.iter().all(|step| step.expect.is_none()) {
            let what = "no step says what is to happen; give one `expect`, which may be empty";
            self.problem(&["steps".into()], what);
        }
        // Steps are looked at all the same.
        let begins_at = start.unwrap_or_default();
        let (mut steps, mut now, mut publishes) = (Vec::new(), Duration::ZERO, 0_u64);
        for (index, step) in written.steps.iter().enumerate() {
            let raw = raw.and_then(|raw| raw.get(index)).and_then(Value::as_table);
            let Some(step) = self.step(index, step, raw, (begins_at, now)) else { continue };
            now = step.ends_at();
            if let Act::Publish { times, .. } = &step.act {
                publishes += u64::from(*times);
            }
            steps.push(step);
        }
        if publishes > PUBLISHES_MAX {
            let what = format!("more than {PUBLISHES_MAX} publishes; use fewer `times`");
            self.problem(&["steps".into()], &what);
        }
        if now > LONGEST {
            self.problem(&["steps".into()], "it lasts longer than 400 days");
        }
        Some(Trial { name: written.name?, file: 0, index: 0, start: start?, about, steps })
    }

    /// The rules that the test is about: those that it names, else those of its file, else all.
    fn about(&mut self, written: Option<&[String]>) -> Option<BTreeSet<String>> {
        let own = || {
            let tables = self.file.table().get("rule").and_then(Value::as_array);
            let names = tables.into_iter().flatten().filter_map(|one| one.get("name")?.as_str());
            names.map(str::to_owned).collect::<BTreeSet<String>>()
        };
        let Some(written) = written else { return Some(own()).filter(|own| !own.is_empty()) };
        if written.is_empty() {
            let what = "it is empty; name rules, as rules = [\"freezer-*\"], or leave it out for those of this file";
            self.problem(&["rules".into()], what);
        }
        let names = self.names?;
        let mut about = BTreeSet::new();
        for (index, text) in written.iter().enumerate() {
            let pattern = Pattern::new(text);
            let before = about.len();
            about.extend(names.rules.iter().filter(|name| pattern.matches(name)).cloned());
            if about.len() == before && !names.rules.iter().any(|name| pattern.matches(name)) {
                let what = format!("there is no rule `{text}`{}", near(text, &names.rules));
                self.problem(&["rules".into(), index.into()], &what);
            }
        }
        Some(about)
    }

    fn start(&mut self, written: &WrittenTest) -> Option<Timestamp> {
        let zone = match written.zone.as_deref() {
            None => None,
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => Some(zone),
                Err(_) => {
                    let what = "unknown time zone; write an IANA name, as Europe/Berlin";
                    self.problem(&["zone".into()], what);
                    None
                }
            },
        };
        let text = match &written.start {
            None => START.to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Datetime(time)) => time.to_string(),
            Some(_) => String::new(),
        };
        if let Ok(time) = text.parse::<jiff::Timestamp>() {
            return Some(Timestamp::from_millis(time.as_millisecond()));
        }
        let local = text.parse::<jiff::civil::DateTime>();
        let time = local.and_then(|local| local.to_zoned(zone.unwrap_or(TimeZone::UTC)));
        let Ok(time) = time else {
            let what = "not a point in time; write it as \"2026-11-26T08:00:00Z\", or without an offset in `zone`";
            self.problem(&["start".into()], what);
            return None;
        };
        Some(Timestamp::from_millis(time.timestamp().as_millisecond()))
    }

    fn step(
        &mut self,
        index: usize,
        written: &WrittenStep,
        raw: Option<&toml::Table>,
        (start, now): (Timestamp, Duration),
    ) -> Option<Step> {
        let here = |key: &str| vec![PathStep::from("steps"), index.into(), key.into()];
        let at = written.at.map_or(now, Duration::from);
        if at < now {
            let what = format!(
                "the step before ends at {} only; steps stand in the order of time",
                span(now)
            );
            self.problem(&here("at"), &what);
        }
        let has = |key: &str| raw.is_some_and(|raw| raw.contains_key(key));
        let kinds: Vec<&(&str, &[&str])> = KINDS.iter().filter(|(key, _)| has(key)).collect();
        let (kind, allowed) = match kinds.as_slice() {
            [] => ("", [].as_slice()),
            [(kind, allowed)] => (*kind, *allowed),
            [(first, _), (second, _), ..] => {
                let what = format!("it has `{first}` already; make two steps of it");
                self.problem(&here(second), &what);
                return None;
            }
        };
        for key in raw.into_iter().flat_map(toml::Table::keys) {
            let known = KINDS.iter().find(|(_, keys)| keys.contains(&key.as_str()));
            if let Some((of, _)) = known
                && !allowed.contains(&key.as_str())
            {
                let what = match kind {
                    "" => format!("it says nothing without `{of}`"),
                    kind => format!("it does not go with `{kind}`"),
                };
                self.problem(&here(key), &what);
            }
        }
        if kind.is_empty() && written.expect.is_none() && written.at.is_none() {
            let what = "nothing happens in it; give it `topic`, `client`, `ack`, `restart_for`, `silence` or `expect`";
            self.problem(&[PathStep::from("steps"), index.into()], what);
        }
        let act = match kind {
            "topic" => self.publish(index, written, start.plus(at)),
            "client" => self.event(index, written, start.plus(at)),
            "ack" => self.ack(index, written),
            "restart_for" => {
                let away = Duration::from(written.restart_for?);
                Some(Act::Restart { away, kill: written.kill })
            }
            "silence" => self.silence(index, written.silence.as_ref()?),
            _ => Some(Act::Wait),
        };
        let expect = written.expect.as_ref().map(|lines| self.expect(index, lines));
        Some(Step { at, act: act?, expect })
    }

    fn publish(&mut self, index: usize, written: &WrittenStep, at: Timestamp) -> Option<Act> {
        let here = |key: &str| vec![PathStep::from("steps"), index.into(), key.into()];
        let payload = self.payload(index, written);
        let times = written.times.unwrap_or(1);
        if times == 0 {
            self.problem(&here("times"), "expected a whole number of at least 1");
        }
        let every = written.every.map_or(Duration::ZERO, Duration::from);
        if written.every.is_some() != written.times.is_some() {
            let key = if written.every.is_some() { "every" } else { "times" };
            let what = "`every` and `times` belong together: every = \"10s\", times = 30";
            self.problem(&here(key), what);
        }
        let topic = self.topic(index, "topic", written.topic.as_deref()?);
        let client_id = written.client_id.as_deref().unwrap_or("test");
        let publish = Publish {
            retain: written.retain,
            replayed: written.replayed,
            identity: written.identity.as_deref().map(Arc::from),
            ..publish(topic?, payload?, client_id, at)
        };
        Some(Act::Publish { publish: Box::new(publish), every, times })
    }

    fn topic(&mut self, index: usize, key: &str, text: &str) -> Option<TopicName> {
        match TopicName::parse(text, TopicLimits::default()) {
            Ok(topic) => Some(topic),
            Err(error) => {
                let path = [PathStep::from("steps"), index.into(), key.into()];
                self.problem(&path, &error.to_string());
                None
            }
        }
    }

    fn payload(&mut self, index: usize, written: &WrittenStep) -> Option<Vec<u8>> {
        let here = |key: &str| vec![PathStep::from("steps"), index.into(), key.into()];
        let (hex, base64) = (written.payload_hex.as_deref(), written.payload_base64.as_deref());
        match (&written.payload, hex, base64) {
            (None, None, None) => Some(Vec::new()),
            (Some(value), None, None) => match bytes_of(value) {
                Ok(bytes) => Some(bytes),
                Err(what) => {
                    self.problem(&here("payload"), what);
                    None
                }
            },
            (None, Some(hex), None) => {
                let bytes = from_hex(hex);
                if bytes.is_none() {
                    let what = "expected pairs of hexadecimal digits: \"01 ff 3c\"";
                    self.problem(&here("payload_hex"), what);
                }
                bytes
            }
            (None, None, Some(text)) => {
                let bytes = STANDARD.decode(text.trim()).ok();
                if bytes.is_none() {
                    self.problem(&here("payload_base64"), "expected base64, padded with `=`");
                }
                bytes
            }
            _ => {
                let key = if hex.is_some() { "payload_hex" } else { "payload_base64" };
                self.problem(&here(key), "it has a payload already; leave one out");
                None
            }
        }
    }

    fn event(&mut self, index: usize, written: &WrittenStep, at: Timestamp) -> Option<Act> {
        let here = |key: &str| vec![PathStep::from("steps"), index.into(), key.into()];
        let client = written.client.as_deref()?;
        let Some(event) = written.event.as_deref() else {
            let what =
                format!("`event` is missing beside `client`; known are {}", EVENTS.join(", "));
            self.problem(&[PathStep::from("steps"), index.into()], &what);
            return None;
        };
        if !EVENTS.contains(&event) {
            self.problem(&here("event"), &unknown_word(event, EVENTS));
            return None;
        }
        let reason = match (written.reason.as_deref(), event) {
            (Some(text), _) => Some(self.reason(&here("reason"), text)?),
            (None, "disconnected") => Some(Reason::ConnectionLost),
            (None, "taken_over") => Some(Reason::TakenOver),
            (None, "refused") => Some(Reason::BadCredentials),
            (None, _) => None,
        };
        let is_will = event == "will";
        let or = |given: &Option<String>, default: &str| {
            given.clone().or_else(|| (!is_will).then(|| default.to_owned()))
        };
        // As src/broker/herald.rs publishes it.
        let payload = serde_json::json!({
            "event": event,
            "client_id": client,
            "identity": written.identity,
            "user": written.user,
            "address": or(&written.address, "192.0.2.1"),
            "listener": or(&written.listener, "mqtts"),
            "reason": reason,
            "clean": written.clean.unwrap_or(reason == Some(Reason::ClientDisconnect)),
            "at": at.to_string(),
        });
        let topic = self.topic(index, "client", &format!("$watchbell/client/{event}/{client}"))?;
        let publish = publish(topic, payload.to_string().into_bytes(), "$watchbell", at);
        Some(Act::Event(Box::new(publish)))
    }

    fn ack(&mut self, index: usize, written: &WrittenStep) -> Option<Act> {
        let rule = written.ack.clone()?;
        self.rule(&[PathStep::from("steps"), index.into(), "ack".into()], &rule);
        let Some(by) = written.by.clone() else {
            let what = "`by` is missing beside `ack`; say who takes care of it";
            self.problem(&[PathStep::from("steps"), index.into()], what);
            return None;
        };
        let (key, note) = (written.key.clone(), written.note.clone());
        Some(Act::Acknowledge { rule, key, by, note })
    }

    fn silence(&mut self, index: usize, table: &toml::Table) -> Option<Act> {
        let path = [PathStep::from("steps"), index.into(), "silence".into()];
        let mut rest = table.clone();
        let mut missing = Vec::new();
        let mut text = |key: &str| {
            let text = rest.remove(key).and_then(|value| value.as_str().map(str::to_owned));
            if text.is_none() {
                missing.push(format!("`{key}`"));
            }
            text.unwrap_or_default()
        };
        let (lasts, by, reason) = (text("for"), text("by"), text("reason"));
        if !missing.is_empty() {
            let what = format!(
                "without {}; write {{ rule = \"...\", for = \"1h\", by = \"ana\", reason = \"...\" }}",
                missing.join(", ")
            );
            self.problem(&path, &what);
            return None;
        }
        let lasts = match lasts.parse::<Span>() {
            Ok(lasts) => Duration::from(lasts),
            Err(error) => {
                self.problem(&path, &format!("for: {error}"));
                return None;
            }
        };
        match problem::read::<Matcher>(Value::Table(rest)) {
            Ok(matcher) if matcher.is_empty() => {
                let what = "it covers everything; say what, by rule, key, topic, severities or label (rule = \"*\" if everything is meant)";
                self.problem(&path, what);
                None
            }
            Ok(matcher) => Some(Act::Silence { matcher: Box::new(matcher), lasts, by, reason }),
            Err(faults) => {
                for fault in faults {
                    let mut at = path.to_vec();
                    at.extend(fault.path);
                    self.problem(&at, &fault.what);
                }
                None
            }
        }
    }

    fn expect(&mut self, index: usize, lines: &[WrittenExpected]) -> Vec<Expected> {
        if lines.len() > STEPS_MAX {
            let path = [PathStep::from("steps"), index.into(), "expect".into()];
            self.problem(&path, &format!("more than {STEPS_MAX} lines; use `times`"));
            return Vec::new();
        }
        lines.iter().enumerate().map(|(number, line)| self.expected(index, number, line)).collect()
    }

    fn expected(&mut self, index: usize, number: usize, line: &WrittenExpected) -> Expected {
        let row = [PathStep::from("steps"), index.into(), "expect".into(), number.into()];
        let here = |key: &str| {
            let mut path = row.to_vec();
            path.push(key.into());
            path
        };
        if let Some(rule) = &line.rule {
            self.rule(&here("rule"), rule);
        }
        if let (Some(contact), Some(names)) = (&line.to, self.names)
            && !names.contacts.contains(contact)
        {
            let what = format!("there is no contact `{contact}`{}", near(contact, &names.contacts));
            self.problem(&here("to"), &what);
        }
        let state = line.state.as_deref().and_then(|word| {
            let known = State::WORDS.iter().find(|(known, _)| *known == word);
            if known.is_none() {
                let words: Vec<&str> = State::WORDS.iter().map(|(word, _)| *word).collect();
                self.problem(&here("state"), &unknown_word(word, &words));
            }
            known.map(|(_, state)| *state)
        });
        if state == Some(State::Pending) {
            let others = [&line.severity, &line.to, &line.by, &line.text, &line.text_contains];
            if line.rule.is_none() || others.into_iter().chain([&line.reason]).any(Option::is_some)
            {
                let what = "what is pending has told nobody anything yet; give it `rule` and, if there are several, `key`";
                self.problem(&here("state"), what);
            }
        }
        if line.times == Some(0) {
            self.problem(
                &here("times"),
                "expected a whole number of at least 1; leave the line out",
            );
        }
        let severity = line.severity.as_deref().and_then(|word| self.word(&here("severity"), word));
        let by = line.by.as_deref().and_then(|word| self.word(&here("by"), word));
        let reason = line.reason.as_deref().and_then(|text| self.reason(&here("reason"), text));
        Expected {
            rule: line.rule.clone(),
            key: line.key.clone(),
            state,
            severity,
            to: line.to.clone(),
            by,
            text: line.text.clone(),
            text_contains: line.text_contains.clone(),
            reason,
            times: line.times,
        }
    }

    fn word<T: std::str::FromStr<Err: std::fmt::Display>>(
        &mut self,
        path: &[PathStep],
        word: &str,
    ) -> Option<T> {
        word.parse().map_err(|error: T::Err| self.problem(path, &error.to_string())).ok()
    }

    fn reason(&mut self, path: &[PathStep], text: &str) -> Option<Reason> {
        let found = text.parse().ok();
        if found.is_none() {
            let words: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
            let what = match closest(text, &words) {
                Some(near) => format!("unknown reason `{text}`; did you mean `{near}`?"),
                None => format!("unknown reason `{text}`; docs/operating.md lists them"),
            };
            self.problem(path, &what);
        }
        found
    }

    fn rule(&mut self, path: &[PathStep], name: &str) {
        if let Some(names) = self.names
            && !names.rules.contains(name)
        {
            let what = format!("there is no rule `{name}`{}", near(name, &names.rules));
            self.problem(path, &what);
        }
    }
}

fn is_steps(path: &[PathStep]) -> bool {
    path.first() == Some(&PathStep::from("steps"))
}

fn near(word: &str, known: &BTreeSet<String>) -> String {
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    closest(word, &known).map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

fn unknown_word(word: &str, known: &[&str]) -> String {
    format!("`{word}`: {}", unknown_key(word, known).replace("unknown key", "unknown word"))
}

/// A time since the start, as it is written.
pub fn span(time: Duration) -> Span {
    Span::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

fn publish(topic: TopicName, payload: Vec<u8>, client_id: &str, at: Timestamp) -> Publish {
    Publish {
        topic,
        payload: Bytes::from(payload),
        qos: Qos::AtLeastOnce,
        retain: false,
        replayed: false,
        client_id: client_id.into(),
        identity: None,
        received_at: at,
        properties: None,
    }
}

/// Text as it is; anything else as JSON.
fn bytes_of(value: &Value) -> Result<Vec<u8>, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone().into_bytes()),
        other => Ok(json_of(other)?.to_string().into_bytes()),
    }
}

fn json_of(value: &Value) -> Result<serde_json::Value, &'static str> {
    Ok(match value {
        Value::String(text) => text.clone().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => serde_json::Number::from_f64(*number)
            .ok_or("JSON has no nan and no inf; write the payload as text")?
            .into(),
        Value::Boolean(yes) => (*yes).into(),
        Value::Datetime(time) => time.to_string().into(),
        Value::Array(list) => list.iter().map(json_of).collect::<Result<Vec<_>, _>>()?.into(),
        Value::Table(table) => {
            let pairs = table.iter().map(|(key, value)| Ok((key.clone(), json_of(value)?)));
            serde_json::Value::Object(pairs.collect::<Result<_, &'static str>>()?)
        }
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> =
        text.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16)).collect();
    let digits = digits?;
    if digits.len() % 2 != 0 {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte * 16 + digit))
        .map(|byte| u8::try_from(byte).ok())
        .collect()
}
