//! One rule on one publish, or on the passing of time: what holds, and what follows from it.
//!
//! An instance is taken out of the engine, changed, and put back or dropped. Nothing here decides
//! who is told.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::condition::{self, Expression, Scene};
use super::engine::{Effects, Engine, Failure, Touched, drop_instance};
use super::functions::time::reading_time;
use super::instance::{Instance, Last, Memory};
use super::life::Move;
use super::named::Named;
use super::set::{Expected, KeyPart, Level, Replayed, Rule, Rules, Silent};
use super::template::{self, Unrendered, default_text, fallback};
use super::window::Window;
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::model::tell::{News, Said, Turn};
use crate::model::{Alert, AlertId, AlertState, Fnv, Labels, Publish, Reason, Severity};
use crate::payload::Value;
use crate::payload::value::Map;
use crate::topic::{TopicFilter, TopicName};

/// The longest key, bytes. A longer one keeps its head and a hash of the whole.
const KEY_BYTES_MAX: usize = 256;
/// Times before 2020 are those of clocks that were never set.
const PLAUSIBLE_FROM: WallTime = WallTime::from_millis(1_577_836_800_000);
/// A reading so far ahead has a wrong time.
pub(super) const AHEAD_MAX: Duration = Duration::from_secs(86_400);
/// Most elements of `each` that one publish has the rule look at.
const EACH_MAX: usize = 1_000;

/// A rule at work.
pub(super) struct Run<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) rules: &'a Rules,
    pub(super) rule: &'a Rule,
    pub(super) now: Timestamp,
    pub(super) effects: &'a mut Effects,
}

/// One reading: a publish, or one element of it.
struct Reading<'a> {
    topic: &'a TopicName,
    client_id: &'a Arc<str>,
    payload: &'a Value,
    item: Option<(Value, Value)>,
    retain: bool,
    replayed: bool,
    at: Timestamp,
}

impl Reading<'_> {
    /// As an instance keeps it.
    fn last(&self, previous: Option<Value>) -> Last {
        Last {
            payload: self.payload.clone(),
            previous,
            item: self.item.clone().map(Box::new),
            client_id: Arc::clone(self.client_id),
            at: self.at,
            retain: self.retain,
            replayed: self.replayed,
        }
    }

    /// The name or number of its element, as text.
    fn item_key(&self) -> Option<Arc<str>> {
        match &self.item.as_ref()?.0 {
            Value::Text(key) => Some(Arc::clone(key)),
            key => Some(key.to_string().into()),
        }
    }
}

/// What came of the levels' conditions.
enum Found {
    /// The worst level that holds.
    Target(Option<Severity>),
    /// No condition came to a result that decides.
    Nothing,
}

/// What holds on the first reading of an instance.
struct First {
    named: Named,
    level: Severity,
}

/// What happens next with an instance without a publish; `None`: nothing.
pub(super) fn due(rule: &Rule, instance: &Instance) -> Option<Timestamp> {
    let level = instance.life.due(&rule.clocks);
    let silent = rule.silent.as_ref().filter(|_| instance.life.is_idle());
    let silent = silent.map(|silent| instance.silent_since().plus(silent.after));
    let window = || {
        let memory = instance.memory.as_ref()?;
        let pairs = memory.windows.iter().zip(&rule.windows);
        pairs.filter_map(|(window, spec)| window.due(spec)).min()
    };
    let window = if rule.needs.time_window && !instance.life.is_idle() { window() } else { None };
    let forget = forgotten_at(rule, instance);
    [level, silent, window, forget].into_iter().flatten().min()
}

/// When the instance is forgotten; `None`: never. One that is expected is waited for, whatever happens.
fn forgotten_at(rule: &Rule, instance: &Instance) -> Option<Timestamp> {
    let after = rule.forget?;
    let expects = |silent: &Silent| silent.expects(&instance.key);
    (!rule.silent.as_ref().is_some_and(expects)).then(|| instance.heard_at().plus(after))
}

/// Whether the rule, which means something else now, could still hear of the instance, or waits for
/// it: its topic and key are such as the rule makes them.
pub(super) fn fits(rule: &Rule, instance: &Instance) -> bool {
    let waits = |silent: &Silent| instance.seen_at.is_some() || silent.expects(&instance.key);
    rule.filter.matches(&instance.topic)
        && rule.silent.as_ref().is_none_or(waits)
        && key_fits(rule, &instance.topic, &instance.key)
}

/// Whether a reading of this topic could have this key. What expressions give is not known here.
fn key_fits(rule: &Rule, topic: &TopicName, key: &str) -> bool {
    if key.len() > KEY_BYTES_MAX - 30 {
        // It may have been cut.
        return true;
    }
    let parts: Vec<&str> = match rule.key.len() {
        0 => return key.is_empty(),
        1 => vec![key],
        _ => key.split('/').collect(),
    };
    let is_right = |(part, text): (&KeyPart, &str)| match part {
        KeyPart::Capture(name) => {
            condition::capture(&rule.filter, topic, name).unwrap_or_default() == text
        }
        KeyPart::Expression(_) => true,
    };
    parts.len() == rule.key.len() && rule.key.iter().zip(parts).all(is_right)
}

/// The instance's labels as its rule names them now.
pub(super) fn labels_anew(rule: &Rule, instance: &Instance) -> Labels {
    let item = instance.labels.iter().find(|(name, _)| &**name == "item_key");
    let item = item.filter(|_| rule.each.is_some()).map(|(_, key)| Arc::clone(key));
    labels(&rule.filter, &instance.topic, item, &instance.key)
}

impl Run<'_> {
    /// The rule on a publish that it matches.
    pub(super) fn publish(&mut self, publish: &Publish, payload: &Value) {
        let rule = self.rule;
        let mut reading = Reading {
            topic: &publish.topic,
            client_id: &publish.client_id,
            payload,
            item: None,
            retain: publish.retain,
            replayed: publish.replayed,
            at: self.now,
        };
        let empty = Named::new();
        if let Some(skip) = &rule.skip
            && self.holds(skip, "skip", &self.scene(&reading, None, &empty)) == Some(true)
        {
            return self.pass(Reason::Skipped);
        }
        reading.at = self.taken_at(&self.scene(&reading, None, &empty));
        let is_old = |most| self.now.since(reading.at) > most;
        if rule.max_age.is_some_and(is_old) {
            return self.pass(Reason::TooOld);
        }
        let Some(each) = &rule.each else {
            return self.reading(&reading);
        };
        let items: Vec<(Value, Value)> =
            match each.evaluate_value(&self.scene(&reading, None, &empty)) {
                Ok(Value::List(items)) => {
                    (0_i64..).map(Value::Int).zip(items.iter().cloned()).collect()
                }
                Ok(Value::Map(map)) => {
                    let entries = map.entries().iter();
                    entries
                        .map(|(name, value)| (Value::Text(Arc::clone(name)), value.clone()))
                        .collect()
                }
                Ok(_) => return self.fail_expression("each", "it is neither a list nor a map"),
                Err(detail) => return self.fail_expression("each", &detail),
            };
        if items.len() > EACH_MAX {
            let detail = format!("`each`: only the first {EACH_MAX} elements are looked at");
            self.fail(Reason::TooMany, detail);
        }
        for item in items.into_iter().take(EACH_MAX) {
            reading.item = Some(item);
            self.reading(&reading);
        }
    }

    /// When the reading was taken: as it says, if that is likely.
    fn taken_at(&mut self, scene: &Scene<'_>) -> Timestamp {
        let Some(time) = &self.rule.time else { return self.now };
        let said = match time.evaluate_value(scene) {
            Ok(value) => reading_time(&value, self.rule.zone.as_ref()),
            Err(_) => None,
        };
        self.engine.exercise(self.rule, "time", said.is_some());
        let latest = self.now.wall().plus(AHEAD_MAX);
        let said = said.filter(|said| (PLAUSIBLE_FROM..=latest).contains(said));
        said.map_or(self.now, WallTime::ours)
    }

    fn reading(&mut self, reading: &Reading<'_>) {
        let rule = self.rule;
        let is_simple = !rule.needs.instance;
        if rule.is_event() && is_simple {
            let mut named = Named::new();
            self.lets(reading, None, &mut named);
            return self.event(reading, None, &named);
        }
        // While nothing of the rule is there, its key matters only once something holds.
        let mut first = None;
        if is_simple && !self.engine.has_any(&rule.name) {
            first = self.first(reading);
            if first.is_none() {
                return;
            }
        }
        let mut key = std::mem::take(&mut self.engine.key);
        let is_known =
            key_of(rule, reading.topic, &self.scene(reading, None, &Named::new()), &mut key);
        match is_known {
            Ok(()) => self.keyed(&key, reading, first),
            Err(detail) => self.fail_expression("key", &detail),
        }
        self.engine.key = key;
    }

    /// A reading of the instance of this key, whether it is there or not.
    fn keyed(&mut self, key: &str, reading: &Reading<'_>, mut first: Option<First>) {
        let rule = self.rule;
        if let Some(instance) = self.engine.take(&rule.name, key) {
            return self.on(instance, reading, None);
        }
        if !rule.needs.instance && first.is_none() {
            first = self.first(reading);
            if first.is_none() {
                return;
            }
        }
        if let Some(instance) = self.make(key.into(), reading) {
            self.on(instance, reading, first);
        }
    }

    /// What holds for an instance that is not there, of a rule that remembers nothing; `None`:
    /// nothing, so that none need be made.
    fn first(&mut self, reading: &Reading<'_>) -> Option<First> {
        let mut named = Named::new();
        self.lets(reading, None, &mut named);
        match self.found(None, &self.scene(reading, None, &named)) {
            Found::Target(Some(level)) => Some(First { named, level }),
            Found::Target(None) | Found::Nothing => None,
        }
    }

    /// An instance that was not there; `None`: there are too many.
    fn make(&mut self, key: Arc<str>, reading: &Reading<'_>) -> Option<Box<Instance>> {
        if !self.engine.has_room() {
            let detail = format!(
                "{} instances are there already (rules.instances_max); this one is not looked at",
                self.engine.instances_max()
            );
            self.fail(Reason::TooMany, detail);
            return None;
        }
        let rule = self.rule;
        let id = AlertId::next(&mut self.engine.ids, self.now, &rule.name, &key);
        let mut instance = Instance::new(id, &rule.name, key, reading.topic.clone());
        instance.meaning = rule.meaning;
        instance.known_since = self.now;
        instance.labels = labels(&rule.filter, reading.topic, reading.item_key(), &instance.key);
        Some(Box::new(instance))
    }

    /// A reading of this instance; `first`: what of it is known already.
    fn on(&mut self, mut instance: Box<Instance>, reading: &Reading<'_>, first: Option<First>) {
        let rule = self.rule;
        if let Some(dedupe) = &rule.dedupe {
            let empty = Named::new();
            match dedupe.key(&self.scene(reading, None, &empty)) {
                Ok(value) => {
                    let mut hash = Fnv::new();
                    hash.write(value.as_bytes());
                    if !instance.memory_mut().take(hash.finish()) {
                        self.pass(Reason::Duplicate);
                        return self.engine.put(instance);
                    }
                }
                Err(detail) => self.fail_expression("dedupe", &detail),
            }
        }
        let is_new = !instance.is_stored && instance.seen_at.is_none() && instance.life.is_idle();
        let mut memory = instance.memory.take().unwrap_or_default();
        let before = memory.last.take();
        let mut windows = std::mem::take(&mut memory.windows);
        let flaps_before = memory.flaps;
        let merged = match (&before, rule.merge) {
            (Some(last), true) => Some(merge(&last.payload, reading.payload, 0)),
            _ => None,
        };
        let payload = merged.as_ref().unwrap_or(reading.payload);
        let previous = before.as_ref().map(|last| &last.payload).filter(|_| rule.needs.previous);
        let reading = Reading { payload, item: reading.item.clone(), ..*reading };
        let (mut named, first) = match first {
            Some(First { named, level }) => (named, Some(level)),
            None => (Named::new(), None),
        };
        if first.is_none() {
            self.lets(&reading, previous, &mut named);
        }
        let counted = self.windows(&reading, previous, &mut windows, &mut named);

        instance.seen_at = Some(self.now);
        instance.silent_from = None;
        let scene = self.scene(&reading, previous, &named);
        let mut changed = is_new && rule.silent.is_some();
        let (mut flapping, mut flaps_now) = (None, flaps_before);
        let mut moves = Vec::new();
        let mut has_result = true;
        // The memory of one without a condition is for `previous`, windows and `dedupe`.
        if !rule.is_event() {
            let target = if rule.silent.is_some() || first.is_some() {
                Found::Target(first)
            } else {
                self.found(instance.life.level(), &scene)
            };
            if let Found::Target(target) = target {
                let target = self.allowed(target, instance.life.level(), reading.replayed);
                changed |= instance.life.observe(&rule.clocks, target, self.now);
                while let Some(step) = instance.life.advance(&rule.clocks, self.now) {
                    moves.push(step);
                }
                if let Some(spec) = rule.flapping {
                    let mut flaps = flaps_before.unwrap_or_default();
                    let fires = instance.life.level().is_some();
                    flapping = flaps.note(fires, spec.last, (spec.low, spec.high));
                    flaps_now = Some(flaps);
                }
            } else {
                has_result = false;
            }
        }
        // What a text tells of is a reading on which the rule could decide.
        let is_told_of = has_result || instance.life.is_idle();
        if is_told_of {
            instance.topic = reading.topic.clone();
        }
        let fires = instance.life.level().is_some();
        if fires {
            instance.events = instance.events.saturating_add(1);
        }
        if rule.needs.last {
            let last = reading.last(previous.cloned());
            memory.decided = match memory.decided.take() {
                _ if is_told_of => None,
                None => before.clone().map(Box::new),
                decided => decided,
            };
            memory.last = Some(last);
        } else if !fires {
            memory.decided = None;
        } else if is_told_of && instance.is_retold {
            memory.decided = Some(Box::new(reading.last(None)));
        }
        memory.windows = windows;
        memory.flaps = flaps_now;
        let must_be_written = changed || counted || rule.durable || flapping.is_some();
        if rule.is_event() {
            self.event(&reading, previous, &named);
        }
        let telling = Telling { reading: &reading, previous: previous.cloned(), named: &named };
        self.finish(instance, memory, &moves, flapping, must_be_written, &telling);
    }

    /// Lets time pass for an instance.
    pub(super) fn time(&mut self, mut instance: Box<Instance>) {
        let rule = self.rule;
        if forgotten_at(rule, &instance).is_some_and(|at| at <= self.now) {
            let policy = Some(Arc::clone(&rule.policy));
            return drop_instance(&instance, policy, Reason::Forgotten, self.now, self.effects);
        }
        let mut memory = instance.memory.take().unwrap_or_default();
        let last = memory.decided.as_deref().or(memory.last.as_ref()).cloned();
        let nothing: (Value, Arc<str>) = (Value::Null, Arc::default());
        let topic = instance.topic.clone();
        let reading = Reading {
            topic: &topic,
            client_id: last.as_ref().map_or(&nothing.1, |last| &last.client_id),
            payload: last.as_ref().map_or(&nothing.0, |last| &last.payload),
            item: last.as_ref().and_then(|last| last.item.as_deref().cloned()),
            retain: last.as_ref().is_some_and(|last| last.retain),
            replayed: last.as_ref().is_some_and(|last| last.replayed),
            at: last.as_ref().map_or(self.now, |last| last.at),
        };
        let previous = last.as_ref().and_then(|last| last.previous.as_ref());
        let mut named = Named::new();
        if last.is_some() {
            self.lets(&reading, previous, &mut named);
        }
        let mut passed = false;
        for (window, spec) in memory.windows.iter_mut().zip(&rule.windows) {
            passed |= window.due(spec).is_some_and(|due| due <= self.now);
            window.expire(spec, self.now);
            named.push(Arc::clone(&spec.name), window.value(spec, self.now));
        }
        let mut changed = false;
        if let Some(silent) = &rule.silent {
            if instance.silent_since().plus(silent.after) <= self.now {
                let target = Some(rule.severity);
                changed |= instance.life.observe(&rule.clocks, target, self.now);
            }
        } else if passed && !instance.life.is_idle() && last.is_some() {
            // Clocks that ran out before are first.
            let scene = self.scene(&reading, previous, &named);
            if let Found::Target(target) = self.found(instance.life.level(), &scene) {
                let target = self.allowed(target, instance.life.level(), reading.replayed);
                changed |= instance.life.observe(&rule.clocks, target, self.now);
            }
        }
        let mut moves = Vec::new();
        while let Some(step) = instance.life.advance(&rule.clocks, self.now) {
            moves.push(step);
        }
        let telling = Telling { reading: &reading, previous: previous.cloned(), named: &named };
        self.finish(instance, memory, &moves, None, changed, &telling);
    }

    /// Makes the instance that is expected, if it is not there. False: there are too many.
    pub(super) fn expect(&mut self, expected: &Expected) -> bool {
        let rule = self.rule;
        if self.engine.instance(&rule.name, &expected.key).is_some() {
            return true;
        }
        let nobody: Arc<str> = Arc::default();
        let reading = Reading {
            topic: &expected.topic,
            client_id: &nobody,
            payload: &Value::Null,
            item: None,
            retain: false,
            replayed: false,
            at: self.now,
        };
        let Some(mut instance) = self.make(Arc::clone(&expected.key), &reading) else {
            return false;
        };
        instance.labels = Arc::clone(&expected.labels);
        self.touch(&mut instance);
        self.engine.schedule(rule, &mut instance);
        self.engine.put(instance);
        true
    }

    /// Tells what moved, keeps or drops the instance, and has it written if it must be.
    fn finish(
        &mut self,
        mut instance: Box<Instance>,
        memory: Box<Memory>,
        moves: &[Move],
        flapping: Option<bool>,
        mut must_be_written: bool,
        telling: &Telling<'_, '_>,
    ) {
        let rule = self.rule;
        for step in moves {
            self.moved(&mut instance, *step, telling);
            must_be_written = true;
        }
        if let Some(on) = flapping {
            let severity = instance.life.level().unwrap_or(rule.worst());
            let state = match instance.life.level() {
                Some(_) => AlertState::Firing,
                None => AlertState::Cleared,
            };
            let alert = self.alert(&instance, state, severity);
            self.tell(alert, Turn::Flapping(on), None, telling);
        }
        if *memory != Memory::default() {
            instance.memory = Some(memory);
        }
        if instance.life.is_idle() && !rule.needs.instance {
            self.engine.unschedule(&mut instance);
            if instance.is_stored {
                self.effects.touched.push(Touched::Remove(instance.id));
            }
            return;
        }
        if must_be_written {
            self.touch(&mut instance);
        } else {
            // What a text will tell of when a clock runs out: the last payload, how many there were.
            self.engine.mark(&mut instance);
        }
        self.engine.schedule(rule, &mut instance);
        self.engine.put(instance);
    }

    fn touch(&mut self, instance: &mut Instance) {
        instance.is_stored = true;
        instance.is_dirty = false;
        let (rule, key) = (Arc::clone(&instance.rule), Arc::clone(&instance.key));
        self.effects.touched.push(Touched::Put(rule, key));
    }

    /// The level changed.
    fn moved(&mut self, instance: &mut Instance, step: Move, telling: &Telling<'_, '_>) {
        let rule = self.rule;
        instance.changed_at = Some(self.now);
        match (step.from, step.to) {
            (None, Some(level)) => {
                instance.fired_at = Some(self.now);
                instance.ack = None;
                instance.events = 1;
                instance.untold = rule.is_shadow();
                instance.from_level = None;
                self.told_of(instance, telling);
                let alert = self.alert(instance, AlertState::Firing, level);
                self.tell_anew(alert, Turn::Raised, instance, telling);
            }
            (Some(from), Some(level)) => {
                if level > from {
                    // Who saw the lesser one has not seen this one.
                    instance.ack = None;
                }
                instance.from_level = Some(from);
                self.told_of(instance, telling);
                let alert = self.alert(instance, AlertState::Firing, level);
                self.tell_anew(alert, Turn::Level(from), instance, telling);
            }
            (Some(from), None) => {
                let mut alert = self.alert(instance, AlertState::Cleared, from);
                let mut unrendered = None;
                if let Some(name) = &rule.text_clear {
                    (alert.text, unrendered) =
                        self.text(Some(name), &alert, Some(from), instance, telling);
                }
                self.tell(alert, Turn::Cleared, unrendered, telling);
                // Its next alert is another one.
                if instance.is_stored {
                    self.effects.touched.push(Touched::Remove(instance.id));
                    instance.is_stored = false;
                }
                let ids = &mut self.engine.ids;
                instance.next_alert(AlertId::next(ids, self.now, &rule.name, &instance.key));
            }
            (None, None) => {}
        }
    }

    /// A rule without a condition: the reading itself is the alert.
    fn event(&mut self, reading: &Reading<'_>, previous: Option<&Value>, named: &Named) {
        let rule = self.rule;
        let mut key = String::new();
        let is_known = key_of(rule, reading.topic, &self.scene(reading, previous, named), &mut key);
        let key: Arc<str> = match is_known {
            Ok(()) => key.into(),
            Err(detail) => {
                // The key of an event is information only: better an alert without it than none.
                self.fail_expression("key", &detail);
                "?".into()
            }
        };
        if reading.replayed && rule.replayed == Replayed::State {
            return self.pass(Reason::Replayed);
        }
        self.engine.exercise(rule, "raised", true);
        let id = AlertId::next(&mut self.engine.ids, self.now, &rule.name, &key);
        let mut instance = Instance::new(id, &rule.name, key, reading.topic.clone());
        instance.labels = labels(&rule.filter, reading.topic, reading.item_key(), &instance.key);
        instance.events = 1;
        let telling = Telling { reading, previous: previous.cloned(), named };
        let alert = self.alert(&instance, AlertState::Firing, rule.severity);
        self.tell_anew(alert, Turn::Raised, &mut instance, &telling);
    }

    fn lets(&mut self, reading: &Reading<'_>, previous: Option<&Value>, named: &mut Named) {
        for (name, expression) in &self.rule.lets {
            match expression.evaluate_value(&self.scene(reading, previous, named)) {
                Ok(value) => named.push(Arc::clone(name), value),
                Err(detail) => self.fail_expression(format_args!("let.{name}"), &detail),
            }
        }
    }

    /// Adds the reading to the windows and names their values. True: something was counted, which
    /// is to be durable.
    fn windows(
        &mut self,
        reading: &Reading<'_>,
        previous: Option<&Value>,
        windows: &mut Vec<Window>,
        named: &mut Named,
    ) -> bool {
        let rule = self.rule;
        windows.resize(rule.windows.len(), Window::default());
        let mut counted = false;
        for (window, spec) in windows.iter_mut().zip(&rule.windows) {
            match spec.of.evaluate_value(&self.scene(reading, previous, named)) {
                Ok(value) => {
                    let added = window.add(spec, &value, reading.at, self.now);
                    counted |= added && spec.function == super::window::Function::Count;
                }
                Err(detail) => {
                    window.expire(spec, self.now);
                    self.fail_expression(format_args!("window.{}", spec.name), &detail);
                }
            }
            named.push(Arc::clone(&spec.name), window.value(spec, self.now));
        }
        counted
    }

    fn scene<'s>(
        &self,
        reading: &'s Reading<'_>,
        previous: Option<&'s Value>,
        named: &'s Named,
    ) -> Scene<'s>
    where
        Self: 's,
    {
        scene(self.rule, self.now, reading, previous, named)
    }

    /// The worst level that holds, seen from the active one (Kapacitor's semantics): worse levels by
    /// their conditions; the active one falls only where its reset holds, to the worst that holds.
    fn found(&mut self, active: Option<Severity>, scene: &Scene<'_>) -> Found {
        let rule = self.rule;
        let mut unknown = false;
        for level in rule.levels.iter().rev().filter(|level| Some(level.severity) > active) {
            match self.when(level, scene) {
                Some(true) => return Found::Target(Some(level.severity)),
                Some(false) => {}
                None => unknown = true,
            }
        }
        let active_level = rule.levels.iter().find(|level| Some(level.severity) == active);
        let Some(level) = active_level else {
            return if unknown { Found::Nothing } else { Found::Target(None) };
        };
        let mut has_reset = false;
        if let Some(clear) = &level.clear {
            match self.holds(clear, rule.clause(level, "clear"), scene) {
                Some(true) => has_reset = true,
                Some(false) => return Found::Target(active),
                None => return Found::Nothing,
            }
        }
        for level in rule.levels.iter().rev().filter(|level| Some(level.severity) <= active) {
            match self.when(level, scene) {
                Some(true) => return Found::Target(Some(level.severity)),
                Some(false) => {}
                // A reset decides alone: it and `when` may look at different payloads.
                None => unknown |= !has_reset,
            }
        }
        if unknown { Found::Nothing } else { Found::Target(None) }
    }

    fn when(&mut self, level: &Level, scene: &Scene<'_>) -> Option<bool> {
        self.holds(&level.when, self.rule.clause(level, "when"), scene)
    }

    /// What a reading may change: one that an upstream had kept raises nothing.
    fn allowed(
        &mut self,
        target: Option<Severity>,
        active: Option<Severity>,
        replayed: bool,
    ) -> Option<Severity> {
        if replayed && self.rule.replayed == Replayed::State && target > active {
            self.pass(Reason::Replayed);
            return active;
        }
        target
    }

    /// Whether an expression holds; `None` where it failed, which is counted.
    fn holds(
        &mut self,
        expression: &Expression,
        clause: impl Display + Copy,
        scene: &Scene<'_>,
    ) -> Option<bool> {
        match expression.holds(scene) {
            Ok(holds) => {
                self.engine.exercise(self.rule, clause, holds);
                Some(holds)
            }
            Err(detail) => {
                self.fail_expression(clause, &detail);
                None
            }
        }
    }

    fn pass(&mut self, reason: Reason) {
        self.effects.passed.push((Arc::clone(&self.rule.name), reason));
    }

    fn fail(&mut self, reason: Reason, detail: String) {
        let rule = Arc::clone(&self.rule.name);
        self.effects.failures.push(Failure { rule, reason, detail });
    }

    fn fail_expression(&mut self, clause: impl Display, detail: &str) {
        // The `let` itself was counted, and said why.
        if condition::is_consequence(detail) {
            return;
        }
        self.fail(Reason::ExpressionFailed, format!("`{clause}`: {detail}"));
    }

    fn alert(&self, instance: &Instance, state: AlertState, severity: Severity) -> Alert {
        Alert {
            id: instance.id,
            rule: Arc::clone(&instance.rule),
            key: Arc::clone(&instance.key),
            severity,
            state,
            labels: Arc::clone(&instance.labels),
            topic: instance.topic.clone(),
            fired_at: instance.fired_at.unwrap_or(self.now),
            changed_at: self.now,
            text: Arc::clone(&instance.text),
        }
    }

    /// Keeps what a firing alert is told of at hand, should it be told later or again.
    fn told_of(&mut self, instance: &Instance, telling: &Telling<'_, '_>) {
        if !self.rule.needs.last {
            self.effects.readings.push((instance.id, telling.reading.last(None)));
        }
    }

    /// An alert that fires, with its text of now.
    fn tell_anew(
        &mut self,
        mut alert: Alert,
        turn: Turn,
        instance: &mut Instance,
        telling: &Telling<'_, '_>,
    ) {
        let from = instance.from_level;
        let unrendered;
        (alert.text, unrendered) =
            self.text(self.rule.text.as_ref(), &alert, from, instance, telling);
        instance.text = Arc::clone(&alert.text);
        self.tell(alert, turn, unrendered, telling);
    }

    /// `unrendered`: what its text lacked.
    fn tell(
        &mut self,
        alert: Alert,
        turn: Turn,
        mut unrendered: Option<Arc<str>>,
        telling: &Telling<'_, '_>,
    ) {
        let rule = self.rule;
        let from = match turn {
            Turn::Level(from) => Some(from),
            _ => None,
        };
        let is_told = alert.state == AlertState::Firing || rule.text_clear.is_some();
        let mut title = None;
        if let Some(name) = rule.title.as_ref().filter(|_| is_told) {
            let place = Place { rules: self.rules, rule, now: self.now };
            match place.render(name, &alert, from, None, telling) {
                Ok(text) => title = Some(text),
                Err(failed) => {
                    title = failed.partial.as_deref().map(Arc::from);
                    let failed = self.fail_template(name, &failed);
                    unrendered.get_or_insert(failed);
                }
            }
        }
        let policy = Arc::clone(&rule.policy);
        self.effects.news.push(News { alert, turn, title, unrendered, policy });
    }

    /// The template's text, or what can be told instead and what it lacked: whatever happens, the
    /// alert goes out with its reading.
    fn text(
        &mut self,
        name: Option<&String>,
        alert: &Alert,
        from: Option<Severity>,
        instance: &Instance,
        telling: &Telling<'_, '_>,
    ) -> (Arc<str>, Option<Arc<str>>) {
        let place = Place { rules: self.rules, rule: self.rule, now: self.now };
        match place.text(name, alert, from, instance, telling) {
            (text, None) => (text, None),
            (text, Some((name, failed))) => (text, Some(self.fail_template(name, &failed))),
        }
    }

    fn fail_template(&mut self, name: &str, failed: &Unrendered) -> Arc<str> {
        let failure = unrendered(&self.rule.name, name, failed);
        let detail = failure.detail.as_str().into();
        self.effects.failures.push(failure);
        detail
    }
}

/// That a template could not be rendered; `name` as it is in the set.
fn unrendered(rule: &Arc<str>, name: &str, failed: &Unrendered) -> Failure {
    let key = name.rsplit('/').next().unwrap_or(name);
    let detail = format!("`{key}`: {}", failed.detail);
    Failure { rule: Arc::clone(rule), reason: Reason::TemplateFailed, detail }
}

/// Which rule says something, and when.
#[derive(Clone, Copy)]
struct Place<'a> {
    rules: &'a Rules,
    rule: &'a Rule,
    now: Timestamp,
}

impl<'a> Place<'a> {
    /// What the alert says, and which template failed on the way.
    fn text(
        self,
        name: Option<&'a String>,
        alert: &Alert,
        from: Option<Severity>,
        instance: &Instance,
        telling: &Telling<'_, '_>,
    ) -> (Arc<str>, Option<(&'a str, Unrendered)>) {
        let Some(name) = name else {
            if self.rule.silent.is_some() {
                return (format!("{}: {} is silent", alert.rule, alert.topic).into(), None);
            }
            let text = default_text(&alert.rule, &alert.topic, telling.reading.payload);
            return (text, None);
        };
        match self.render(name, alert, from, Some(instance), telling) {
            Ok(text) => (text, None),
            Err(failed) => {
                let reading = telling.reading;
                let item = reading.item.as_ref();
                let text = fallback(failed.clone(), alert, reading.payload, item);
                (text, Some((name, failed)))
            }
        }
    }

    fn render(
        self,
        name: &str,
        alert: &Alert,
        from_level: Option<Severity>,
        instance: Option<&Instance>,
        telling: &Telling<'_, '_>,
    ) -> Result<Arc<str>, Unrendered> {
        let reading = telling.reading;
        let scene = template::Scene {
            payload: reading.payload.clone(),
            previous: telling.previous.clone(),
            item: reading.item.clone(),
            named: telling.named.clone(),
            topic: alert.topic.clone(),
            filter: Arc::clone(&self.rule.filter),
            client_id: Arc::clone(reading.client_id),
            replayed: reading.replayed,
            key: Arc::clone(&alert.key),
            rule: Arc::clone(&alert.rule),
            severity: alert.severity,
            level: alert.severity,
            from_level,
            last_seen: instance.and_then(|instance| instance.seen_at),
            events: instance.map_or(1, |instance| instance.events),
            at: reading.at,
            now: self.now,
            fired_at: alert.fired_at,
        };
        self.rules.templates.render(name, scene)
    }
}

/// What the alert of this instance says at `now`, and what of it could not be rendered. `None`:
/// there is no reading to tell of.
pub(super) fn say(
    rules: &Rules,
    rule: &Rule,
    instance: &Instance,
    now: Timestamp,
) -> Option<(Said, Vec<Failure>)> {
    let alert = instance.alert()?;
    let last = instance.told_of();
    if last.is_none() && rule.silent.is_none() {
        return None;
    }
    let nothing: (Value, Arc<str>) = (Value::Null, Arc::default());
    let reading = Reading {
        topic: &instance.topic,
        client_id: last.map_or(&nothing.1, |last| &last.client_id),
        payload: last.map_or(&nothing.0, |last| &last.payload),
        item: last.and_then(|last| last.item.as_deref().cloned()),
        retain: last.is_some_and(|last| last.retain),
        replayed: last.is_some_and(|last| last.replayed),
        at: last.map_or(now, |last| last.at),
    };
    let previous = last.and_then(|last| last.previous.as_ref());
    let mut named = Named::new();
    for (name, expression) in rule.lets.iter().filter(|_| last.is_some()) {
        // What fails was counted when the reading came.
        if let Ok(value) = expression.evaluate_value(&scene(rule, now, &reading, previous, &named))
        {
            named.push(Arc::clone(name), value);
        }
    }
    let windows = instance.memory.as_ref().map_or(&[][..], |memory| &memory.windows);
    for (window, spec) in windows.iter().zip(&rule.windows) {
        named.push(Arc::clone(&spec.name), window.value(spec, now));
    }
    let telling = Telling { reading: &reading, previous: previous.cloned(), named: &named };
    let place = Place { rules, rule, now };
    let from = instance.from_level;
    let mut failures = Vec::new();
    let (text, failed) = place.text(rule.text.as_ref(), &alert, from, instance, &telling);
    failures.extend(failed.map(|(name, failed)| unrendered(&rule.name, name, &failed)));
    let title = rule.title.as_ref().and_then(|name| {
        match place.render(name, &alert, from, Some(instance), &telling) {
            Ok(title) => Some(title),
            Err(failed) => {
                failures.push(unrendered(&rule.name, name, &failed));
                failed.partial.as_deref().map(Arc::from)
            }
        }
    });
    Some((Said { text, title }, failures))
}

/// What an expression of the rule sees.
fn scene<'s>(
    rule: &'s Rule,
    now: Timestamp,
    reading: &'s Reading<'_>,
    previous: Option<&'s Value>,
    named: &'s Named,
) -> Scene<'s> {
    Scene {
        payload: reading.payload,
        previous,
        item: reading.item.as_ref().map(|(key, item)| (key, item)),
        named,
        topic: reading.topic,
        filter: &rule.filter,
        client_id: reading.client_id,
        retain: reading.retain,
        replayed: reading.replayed,
        at: reading.at,
        now,
    }
}

/// What a text tells of besides its alert.
struct Telling<'r, 'p> {
    reading: &'r Reading<'p>,
    previous: Option<Value>,
    named: &'r Named,
}

/// The captures of its topic, and the key of its element, sorted by name. What is the instance's key
/// shares its text: there may be a million of them.
fn labels(
    filter: &TopicFilter,
    topic: &TopicName,
    item: Option<Arc<str>>,
    instance: &Arc<str>,
) -> Labels {
    let captured = filter.captured(topic);
    let text = |level: &str| if level == &**instance { Arc::clone(instance) } else { level.into() };
    let mut labels: Vec<(Arc<str>, Arc<str>)> =
        captured.map(|(name, level)| (Arc::clone(name), text(level))).collect();
    labels.extend(item.map(|key| (Arc::from("item_key"), key)));
    labels.sort();
    labels.into()
}

/// `news` over what was known: maps field by field, anything else as a whole.
fn merge(known: &Value, news: &Value, depth: usize) -> Value {
    let (Value::Map(known), Value::Map(news)) = (known, news) else { return news.clone() };
    // Payloads are not nested deeper than the codecs allow.
    if depth > 100 {
        return Value::Map(Arc::clone(news));
    }
    let mut fields = known.entries().to_vec();
    for (name, value) in news.entries() {
        let merged = match known.get(name) {
            Some(before) => merge(before, value, depth + 1),
            None => value.clone(),
        };
        fields.push((Arc::clone(name), merged));
    }
    Value::Map(Arc::new(Map::new(fields)))
}

/// The instance that a reading is about.
fn key_of(
    rule: &Rule,
    topic: &TopicName,
    scene: &Scene<'_>,
    key: &mut String,
) -> Result<(), String> {
    key.clear();
    let several = rule.key.len() > 1;
    for (index, part) in rule.key.iter().enumerate() {
        if index > 0 {
            key.push('/');
        }
        match part {
            KeyPart::Capture(name) => {
                let level = condition::capture(&rule.filter, topic, name);
                key.push_str(level.unwrap_or_default());
            }
            KeyPart::Expression(expression) => {
                for character in expression.key(scene)?.chars() {
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
        template::truncate(key, KEY_BYTES_MAX - 20);
        key.push_str(&format!("…{:016x}", hash.finish()));
    }
    Ok(())
}
