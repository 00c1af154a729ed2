//! A loaded set of rules: what each says, and which of them match a topic.
//!
//! Never changes once it is loaded; a reload makes another ([`super::load`]).

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use jiff::tz::TimeZone;

use super::Config;
use super::condition::Expression;
use super::life::Clocks;
use super::template::Templates;
use super::window;
use crate::model::tell::Policy;
use crate::model::{Channel, Labels, Severity};
use crate::payload::{self, Codec};
use crate::topic::index::TopicIndex;
use crate::topic::{TopicFilter, TopicName};

/// A compiled rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name, unique in its set.
    pub name: Arc<str>,
    /// Which topics it looks at.
    pub filter: Arc<TopicFilter>,
    /// Which events of clients it looks at (`on`); empty for a rule with a topic.
    pub events: Vec<Arc<str>>,
    /// How it reads payloads.
    pub codec: Codec,
    /// What fires it, the worst last; empty for a dead man, and for a rule each of whose publishes is
    /// an alert.
    pub levels: Vec<Level>,
    /// The clocks of the levels.
    pub clocks: Clocks,
    /// It fires when nothing was heard for so long.
    pub silent: Option<Silent>,
    /// An instance that was not heard of for so long is forgotten.
    pub forget: Option<Duration>,
    /// What makes an instance.
    pub key: Vec<KeyPart>,
    /// A list or map of the payload, for each element of which the rule is evaluated.
    pub each: Option<Expression>,
    /// Named values, in the order written.
    pub lets: Vec<(Arc<str>, Expression)>,
    /// Windows, in the order written.
    pub windows: Vec<window::Spec>,
    /// Publishes for which it holds are none of its readings.
    pub skip: Option<Expression>,
    /// A value that a reading has once only.
    pub dedupe: Option<Expression>,
    /// When the reading was taken.
    pub time: Option<Expression>,
    /// The zone of local times.
    pub zone: Option<TimeZone>,
    /// Older readings are not looked at.
    pub max_age: Option<Duration>,
    /// The payload is what all payloads so far say together.
    pub merge: bool,
    /// What a reading does that an upstream had kept.
    pub replayed: Replayed,
    /// When its transitions are held back.
    pub flapping: Option<Flapping>,
    /// All state is durable before a publish is acknowledged.
    pub durable: bool,
    /// What its clocks do while the process does not run.
    pub on_downtime: OnDowntime,
    /// How urgent it is, where it has no levels.
    pub severity: Severity,
    /// Who is told, and how.
    pub policy: Arc<Policy>,
    /// A hash of all that decides when it fires: its state survives a reload that leaves this alone.
    pub meaning: u64,
    /// What its instances must remember.
    pub needs: Needs,
    /// Names of its templates in the set, where it has them.
    pub(super) text: Option<String>,
    pub(super) text_clear: Option<String>,
    pub(super) title: Option<String>,
}

/// One level of a rule.
#[derive(Debug)]
pub struct Level {
    /// Which.
    pub severity: Severity,
    /// When it holds.
    pub when: Expression,
    /// When it may fall; `None`: when `when` does not hold.
    pub clear: Option<Expression>,
}

/// A dead man.
#[derive(Debug)]
pub struct Silent {
    /// How long nothing is heard.
    pub after: Duration,
    /// Instances that are known from the start, by key.
    pub expect: Vec<Expected>,
}

impl Silent {
    /// The instance of this key, if it is expected.
    pub fn expected(&self, key: &str) -> Option<&Expected> {
        let found = self.expect.binary_search_by(|expected| expected.key.as_ref().cmp(key));
        self.expect.get(found.ok()?)
    }

    /// Whether the instance of this key is expected.
    pub fn expects(&self, key: &str) -> bool {
        self.expected(key).is_some()
    }
}

/// An instance that is known before it was heard of.
#[derive(Debug)]
pub struct Expected {
    /// Its key.
    pub key: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// The topic that it would be heard on; wildcards that are no captures are `-`.
    pub topic: TopicName,
}

/// What a reading does that an upstream had kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replayed {
    /// It sets state, and may clear, but raises nothing.
    #[default]
    State,
    /// It counts like any other.
    Raise,
    /// It is not looked at.
    Ignore,
}

/// What clocks do while the process does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDowntime {
    /// They go on.
    Count,
    /// They stand still.
    Pause,
    /// They begin anew at the start.
    Reset,
}

/// When an instance is flapping.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flapping {
    /// It ends when no larger share of the last evaluations changed the state.
    pub low: f64,
    /// It begins when so large a share did.
    pub high: f64,
    /// How many evaluations are looked at, 3 to 64.
    pub last: u8,
}

/// What the instances of a rule must remember between publishes, besides what fires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The last payload.
    pub last: bool,
    /// The payload before it too.
    pub previous: bool,
    /// An instance is there from its first publish on, whether anything holds or not.
    pub instance: bool,
    /// It has a window over time: its value changes while nothing is published.
    pub time_window: bool,
}

impl Rule {
    /// Whether each of its publishes is an alert of its own.
    pub fn is_event(&self) -> bool {
        self.levels.is_empty() && self.silent.is_none()
    }

    /// The instances that are known before they are heard of.
    pub fn expected(&self) -> &[Expected] {
        self.silent.as_ref().map_or(&[], |silent| silent.expect.as_slice())
    }

    /// Whether it only counts what it would do.
    pub fn is_shadow(&self) -> bool {
        self.policy.shadow
    }

    /// What problems call a level's expression: `when`, or `critical.when` in a rule of several
    /// levels.
    pub(super) fn clause(&self, level: &Level, key: &'static str) -> Clause {
        Clause { level: (self.levels.len() > 1).then_some(level.severity), key }
    }

    /// The expressions that hold or do not, by the names under which the engine notes what they came
    /// to.
    pub fn clauses(&self) -> Vec<String> {
        let mut clauses = Vec::new();
        clauses.extend(self.skip.is_some().then(|| "skip".to_owned()));
        for level in &self.levels {
            clauses.push(self.clause(level, "when").to_string());
            clauses.extend(level.clear.is_some().then(|| self.clause(level, "clear").to_string()));
        }
        clauses
    }

    /// The most urgent that it can be.
    pub fn worst(&self) -> Severity {
        self.levels.last().map_or(self.severity, |level| level.severity)
    }
}

/// What problems call a level's expression; only written out where somebody reads it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clause {
    /// In a rule of several levels: which.
    level: Option<Severity>,
    key: &'static str,
}

impl fmt::Display for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            Some(level) => write!(f, "{level}.{}", self.key),
            None => f.write_str(self.key),
        }
    }
}

/// One part of an instance's key.
#[derive(Debug)]
pub enum KeyPart {
    /// A captured level of the topic.
    Capture(Arc<str>),
    /// What an expression gives.
    Expression(Expression),
}

/// A contact as rules need to know it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its name.
    pub name: Arc<str>,
    /// The channels that reach it.
    pub channels: Vec<Channel>,
}

/// A loaded set of rules.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<Rule>,
    by_name: HashMap<Arc<str>, usize, RandomState>,
    standing_clocks: bool,
    index: TopicIndex<u32>,
    pub(super) templates: Templates,
    pub(super) payload_limits: payload::Limits,
}

/// The rules that match a topic, in the order of their files. Belongs to the set that gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    first: u32,
    /// Almost always empty, and then it allocates nothing.
    rest: Vec<u32>,
}

impl Matched {
    /// Positions in the set, ascending.
    pub(super) fn positions(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.first)
            .chain(self.rest.iter().copied())
            .map(|position| usize::try_from(position).unwrap_or(usize::MAX))
    }
}

impl Rules {
    /// No rules.
    pub fn empty(config: &Config) -> Self {
        Self {
            rules: Vec::new(),
            by_name: HashMap::default(),
            standing_clocks: false,
            index: TopicIndex::new(),
            templates: Templates::new(config.text_bytes_max, config.text_fuel),
            payload_limits: config.payload_limits(),
        }
    }

    /// The rules that look at `topic`; `None` where there is none. The price does not depend on how
    /// many rules there are that do not.
    pub fn matches(&self, topic: &TopicName) -> Option<Matched> {
        let mut matched: Option<Matched> = None;
        self.index.visit_matches(topic, &mut |position| match &mut matched {
            None => {
                matched = Some(Matched { first: *position, rest: Vec::new() });
            }
            Some(matched) => matched.rest.push(*position),
        });
        if let Some(matched) = &mut matched
            && !matched.rest.is_empty()
        {
            matched.rest.push(matched.first);
            matched.rest.sort_unstable();
            matched.first = matched.rest.remove(0);
        }
        matched
    }

    /// The rules of `matched`, in the order of their files.
    pub fn matched<'a>(&'a self, matched: &'a Matched) -> impl Iterator<Item = &'a Rule> {
        matched.positions().filter_map(|position| self.rules.get(position))
    }

    /// Whether the clocks of any rule do not just go on while the process does not run.
    pub fn has_standing_clocks(&self) -> bool {
        self.standing_clocks
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// All rules, in the order of the files.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule of that name.
    pub fn by_name(&self, name: &str) -> Option<&Rule> {
        self.by_name.get(name).and_then(|position| self.rules.get(*position))
    }

    /// Adds a rule whose name is not in the set.
    pub(super) fn add(&mut self, rule: Rule) {
        let position = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        self.index.insert(&rule.filter, position);
        self.by_name.insert(Arc::clone(&rule.name), self.rules.len());
        self.standing_clocks |= rule.on_downtime != OnDowntime::Count;
        self.rules.push(rule);
    }
}
