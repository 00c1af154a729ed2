//! One test at work: a pipeline that begins with nothing, and the rows that a store would hold.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::happening::{Difference, Expected, Happening, State, compare, happenings};
use super::read::span;
use super::{Act, Step, Trial};
use crate::clock::Timestamp;
use crate::intake::pipeline::{Caused, Pipeline};
use crate::intake::ruleset::{Limits, RuleSet};
use crate::model::tell::{Ack, Turn};
use crate::model::{AlertId, IdSource, Publish, Reason};
use crate::notify::silence::{Edge, Silence};
use crate::payload::{self, Value};
use crate::rules::engine::Exercised;
use crate::store::keys::Table;
use crate::store::shelf::Shelf;
use crate::store::{Op, ReadError};

/// As intake's default: what telemetry changes is written so often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// A process that is killed was known to be alive so long ago at most.
const ALIVE_EVERY: Duration = Duration::from_secs(10);
/// How long messages may wait; nothing here does.
const EXPIRES_IN: Duration = Duration::from_secs(86_400);
/// Most that time may be let pass for in one test.
const WAKES_MAX: u32 = 1_000_000;
/// Most fields of a payload that are named.
const FIELDS_MAX: usize = 20;

/// What came of a test.
#[derive(Debug, Default)]
pub struct Ran {
    /// Steps that came out otherwise than expected, the first is 0.
    pub failed: Vec<(usize, Difference)>,
    /// Rules that came to no result where nobody expected it.
    pub failures: Vec<Happening>,
    /// What the rules' clauses came to.
    pub exercised: BTreeSet<Exercised>,
    /// What became of alerts: rule, severity if it fires, else `None`.
    pub turned: BTreeSet<(Arc<str>, Option<crate::model::Severity>)>,
}

impl Ran {
    /// Whether all was as expected.
    pub fn passed(&self) -> bool {
        self.failed.is_empty()
    }
}

/// Runs a test. Nothing of it leaves this call.
pub fn run(set: &RuleSet, limits: &Limits, trial: &Trial) -> Ran {
    let mut bench = Bench {
        set,
        limits,
        start: trial.start,
        now: trial.start,
        began_at: trial.start,
        step: 0,
        pipeline: pipeline(limits, 1),
        shelf: Shelf::default(),
        runs: 1,
        silences: 0,
        wakes: 0,
        about: trial.about.as_ref(),
        happened: Vec::new(),
        trouble: None,
        ran: Ran::default(),
    };
    bench.adopt(None);
    for (index, step) in trial.steps.iter().enumerate() {
        bench.step = index;
        bench.step(step);
    }
    bench.end()
}

fn pipeline(limits: &Limits, seed: u64) -> Pipeline {
    let mut pipeline =
        Pipeline::new(IdSource::new(seed), &limits.rules, &limits.contacts, EXPIRES_IN);
    pipeline.engine_mut().note_exercised();
    pipeline
}

struct Bench<'a> {
    set: &'a RuleSet,
    limits: &'a Limits,
    start: Timestamp,
    now: Timestamp,
    /// When the present process began.
    began_at: Timestamp,
    step: usize,
    pipeline: Pipeline,
    shelf: Shelf,
    runs: u64,
    silences: u32,
    wakes: u32,
    about: Option<&'a BTreeSet<String>>,
    /// Since the last step that says what is expected.
    happened: Vec<Happening>,
    trouble: Option<String>,
    ran: Ran,
}

impl Bench<'_> {
    fn step(&mut self, step: &Step) {
        self.pass_to(self.start.plus(step.at));
        match &step.act {
            Act::Wait => {}
            Act::Publish { publish, every, times } => {
                for turn in 0..*times {
                    self.pass_to(self.start.plus(step.at).plus(every.saturating_mul(turn)));
                    self.publish(publish);
                }
            }
            Act::Event(publish) => self.publish(publish),
            Act::Acknowledge { rule, key, by, note } => {
                let note = note.as_deref().map(Arc::from);
                let ack = Ack { by: by.as_str().into(), at: self.now, note };
                self.acknowledge(rule, key.as_deref(), ack);
            }
            Act::Restart { away, kill } => self.restart(*away, *kill),
            Act::Silence { matcher, lasts, by, reason } => {
                self.silences += 1;
                let silence = Silence {
                    id: format!("test-{}", self.silences).into(),
                    name: None,
                    matcher: (**matcher).clone(),
                    by: by.as_str().into(),
                    reason: reason.as_str().into(),
                    from: Edge::Ours(self.now),
                    until: Edge::Ours(self.now.plus(*lasts)),
                };
                let mut op = Op::new();
                match self.pipeline.add_silence(self.set, silence, self.now, &mut op) {
                    Ok(caused) => self.caused(&caused, op, None),
                    Err(error) => self.trouble(format!("the silence is refused: {error}")),
                }
            }
        }
        self.wake();
        if let Some(expected) = &step.expect {
            self.compare(expected);
        } else if let Some(trouble) = self.trouble.take() {
            let difference = Difference { trouble: Some(trouble), ..Difference::default() };
            self.ran.failed.push((self.step, difference));
        }
    }

    fn compare(&mut self, expected: &[Expected]) {
        let (pending, told): (Vec<Expected>, Vec<Expected>) =
            expected.iter().cloned().partition(|one| one.state == Some(State::Pending));
        let mut difference = compare(&told, std::mem::take(&mut self.happened));
        for one in pending {
            let least = usize::try_from(one.times.unwrap_or(1)).unwrap_or(usize::MAX);
            let found = self.pending(&one);
            if found < least || one.times.is_some() && found > least {
                difference.missing.push((one, least.saturating_sub(found).max(1)));
            }
        }
        difference.trouble = self.trouble.take();
        let failures = difference.unexpected.iter().filter(|one| one.without_result);
        self.ran.failures.extend(failures.cloned());
        if !difference.is_none() {
            self.ran.failed.push((self.step, difference));
        }
    }

    /// How many instances wait to fire.
    fn pending(&self, one: &Expected) -> usize {
        let Some(rule) = one.rule.as_deref().and_then(|name| self.set.rules.by_name(name)) else {
            return 0;
        };
        let of_rule = self.pipeline.engine().instances_of(&rule.name);
        of_rule
            .filter(|instance| one.key.as_deref().is_none_or(|key| *instance.key == *key))
            .filter(|instance| instance.life.level().is_none())
            .filter(|instance| instance.life.is_pending(&rule.clocks))
            .count()
    }

    fn end(mut self) -> Ran {
        let failures = self.happened.iter().filter(|one| one.without_result && !one.optional);
        self.ran.failures.extend(failures.cloned());
        self.collect();
        self.ran
    }

    /// Lets time pass; what is due is met when it is.
    fn pass_to(&mut self, to: Timestamp) {
        while let Some(due) = self.pipeline.due().filter(|due| *due <= to) {
            self.move_to(due.max(self.now));
            if !self.wake_once() {
                break;
            }
        }
        self.move_to(to);
    }

    fn wake(&mut self) {
        while self.pipeline.due().is_some_and(|due| due <= self.now) && self.wake_once() {}
    }

    fn wake_once(&mut self) -> bool {
        self.wakes += 1;
        if self.wakes > WAKES_MAX {
            self.trouble(format!("more than {WAKES_MAX} timers ran; make the test shorter"));
            return false;
        }
        let mut op = Op::new();
        let caused = self.pipeline.wake(self.set, self.now, &mut op);
        self.caused(&caused, op, None);
        true
    }

    /// The checkpoints that lie on the way are made: nothing changes in between, so one will do.
    fn move_to(&mut self, to: Timestamp) {
        let ticks =
            |at: Timestamp| at.since(self.began_at).as_millis() / CHECKPOINT_EVERY.as_millis();
        if ticks(to) > ticks(self.now) {
            self.checkpoint();
        }
        self.now = to;
    }

    fn checkpoint(&mut self) {
        let shelf = &mut self.shelf;
        self.pipeline.checkpoint(usize::MAX, &mut |op| shelf.apply(op));
    }

    fn publish(&mut self, publish: &Publish) {
        let Some(matched) = self.set.rules.matches(&publish.topic) else { return };
        let publish = Publish { received_at: self.now, ..publish.clone() };
        let mut op = Op::new();
        let caused = self.pipeline.publish(self.set, &matched, &publish, self.now, &mut op);
        self.caused(&caused, op, Some(&publish));
    }

    fn acknowledge(&mut self, rule: &str, key: Option<&str>, ack: Ack) {
        let engine = self.pipeline.engine();
        let of_rule = engine.firing().filter(|alert| *alert.rule == *rule);
        let found: Vec<AlertId> = of_rule
            .filter(|alert| key.is_none_or(|key| *alert.key == *key))
            .map(|alert| alert.id)
            .collect();
        let mut op = Op::new();
        match found.as_slice() {
            [id] => {
                let (set, now) = (self.set, self.now);
                if let Some(caused) = self.pipeline.acknowledge(set, *id, ack, now, &mut op) {
                    self.caused(&caused, op, None);
                }
            }
            [] => self.trouble(format!("no alert of `{rule}` fires that could be acknowledged")),
            several => self.trouble(format!(
                "{} alerts of `{rule}` fire; say which with `key`",
                several.len()
            )),
        }
    }

    fn restart(&mut self, away: Duration, kill: bool) {
        let stopped_at = if kill {
            // The row that says so is written every ten seconds.
            let ran = self.now.since(self.began_at);
            let periods = ran.as_millis() / ALIVE_EVERY.as_millis();
            self.began_at
                .plus(ALIVE_EVERY.saturating_mul(u32::try_from(periods).unwrap_or(u32::MAX)))
        } else {
            self.checkpoint();
            self.now
        };
        self.collect();
        self.runs += 1;
        self.now = self.now.plus(away);
        self.began_at = self.now;
        self.pipeline = pipeline(self.limits, self.runs);
        if let Err(error) = self.restore() {
            self.trouble(error.to_string());
        }
        self.adopt(Some(stopped_at));
    }

    fn restore(&mut self) -> Result<(), ReadError> {
        for row in self.shelf.rows(Table::Instance)? {
            self.pipeline.restore_instance(row);
        }
        for row in self.shelf.rows(Table::Telling)? {
            self.pipeline.restore_telling(row);
        }
        for row in self.shelf.rows(Table::Memory)? {
            self.pipeline.restore_node(row);
        }
        Ok(())
    }

    fn adopt(&mut self, stopped_at: Option<Timestamp>) {
        let mut op = Op::new();
        let (caused, _) = self.pipeline.adopt(self.set, stopped_at, self.now, &mut op);
        self.caused(&caused, op, None);
    }

    fn trouble(&mut self, what: String) {
        self.trouble.get_or_insert(what);
    }

    /// What the engine of this run has noted, before it goes.
    fn collect(&mut self) {
        self.ran.exercised.extend(self.pipeline.engine().exercised().cloned());
    }

    fn caused(&mut self, caused: &Caused, op: Op, publish: Option<&Publish>) {
        self.shelf.apply(op);
        for news in &caused.news {
            let rule = Arc::clone(&news.alert.rule);
            match news.turn {
                Turn::Raised | Turn::Level(_) => {
                    self.ran.turned.insert((rule, Some(news.alert.severity)));
                }
                Turn::Cleared => drop(self.ran.turned.insert((rule, None))),
                Turn::Acknowledged(_) | Turn::Flapping(_) | Turn::Dropped(_) => {}
            }
        }
        let mut found = happenings(caused, self.set, self.now, (self.start, self.step));
        for happening in &mut found {
            let is_about = |rule| self.about.is_none_or(|about| about.contains(rule));
            happening.optional |= happening.rule.as_deref().is_some_and(|rule| !is_about(rule));
        }
        if let Some(publish) = publish {
            for happening in &mut found {
                self.explain(happening, publish);
            }
        }
        self.happened.append(&mut found);
    }

    /// Where a field is missing, those that are there.
    fn explain(&self, happening: &mut Happening, publish: &Publish) {
        let Some(note) = &mut happening.note else { return };
        if happening.reason != Some(Reason::ExpressionFailed) || !note.contains("has no field") {
            return;
        }
        let rule = happening.rule.as_deref().and_then(|name| self.set.rules.by_name(name));
        let Some(rule) = rule else { return };
        let limits = self.limits.rules.payload_limits();
        let decoded = payload::decode(&rule.codec, &publish.payload, limits, self.now);
        if let Ok(Value::Map(map)) = decoded {
            let names: Vec<&str> =
                map.entries().iter().take(FIELDS_MAX).map(|(name, _)| &**name).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            note.push_str(&format!("; the test payload has {names}"));
        }
    }
}

/// When a happening was, as it is written.
pub fn at(happening: &Happening) -> String {
    span(happening.at).to_string()
}
