//! A loaded set of rules: what each says, and which of them match a topic.
//!
//! Never changes once it is loaded; a reload makes another ([`super::load`]).

use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::condition::Expression;
use super::template::Templates;
use crate::model::{Channel, Severity};
use crate::payload::{self, Decode};
use crate::topic::index::TopicIndex;
use crate::topic::{TopicFilter, TopicName};

/// A compiled rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name, unique in its set.
    pub name: Arc<str>,
    /// Which topics it looks at.
    pub filter: Arc<TopicFilter>,
    /// How it reads payloads.
    pub decode: Decode,
    /// When it fires; `None`: each publish is an alert of its own, and no state is kept.
    pub when: Option<Expression>,
    /// When it clears; `None`: when `when` is false.
    pub clear: Option<Expression>,
    /// What makes an instance.
    pub key: Vec<KeyPart>,
    /// How urgent it is.
    pub severity: Severity,
    /// Contacts by name.
    pub to: Arc<[Arc<str>]>,
    /// Channels in order; empty: each contact's own.
    pub by: Arc<[Channel]>,
    /// How long its messages may wait; `None`: the configured default.
    pub expires_in: Option<Duration>,
    /// Names of its templates in the set, where it has them.
    pub(super) text: Option<String>,
    pub(super) text_clear: Option<String>,
    pub(super) title: Option<String>,
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

    /// Adds a rule whose name is not in the set.
    pub(super) fn add(&mut self, rule: Rule) {
        let position = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        self.index.insert(&rule.filter, position);
        self.rules.push(rule);
    }

    /// The rule at a position of a [`Matched`] of this set.
    pub(super) fn at(&self, position: usize) -> Option<&Rule> {
        self.rules.get(position)
    }
}
