//! `[storm]`: too many alerts under one prefix of topics become one message.
//!
//! ```toml
//! [storm]
//! count  = 20         # more than this ...
//! within = "30s"      # ... in this time ...
//! levels = 2          # ... under the same first levels of their topics
//! ```
//!
//! A storm ends when nothing new fires under its prefix for `within`. Each contact hears of it when it
//! begins, when something worse joins it, and when it ends; what it holds is told with its end.
//!
//! Invariant: a storm hides no alert that is worse than what the contact was told of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fields::Fields;
use crate::clock::Timestamp;
use crate::model::{AlertRef, Channel, Severity};
use crate::problem::{Problem, TomlFile};
use crate::topic::TopicName;

/// The `[storm]` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StormRule {
    /// More alerts than this make a storm.
    pub count: usize,
    /// In this time.
    pub within: Duration,
    /// Under the same first levels, so many.
    pub levels: usize,
}

/// Reads `[storm]`, which only one file may have.
pub(super) fn read(file: &TomlFile, found: &mut Option<StormRule>, problems: &mut Vec<Problem>) {
    let Some(value) = file.table().get("storm") else { return };
    let path = ["storm".into()];
    let Some(table) = value.as_table() else {
        problems.push(file.problem(&path, "storm: write [storm] with one bracket, once"));
        return;
    };
    let mut fields = Fields::new(file, &path, "storm", table, problems);
    if found.is_some() {
        fields.problem(None, "another file has a [storm] already; there is one for all");
        return;
    }
    fields.only(&["count", "within", "levels"]);
    fields.required("within", "say in what time, as within = \"30s\"");
    for key in ["count", "levels"] {
        if !fields.has(key) {
            fields.problem(None, &format!("`{key}` is missing; write count = 20, levels = 2"));
        }
    }
    let count = fields.number("count", 2, 1000);
    let levels = fields.number("levels", 1, 16);
    // A second time for its value: what is missing or no text is told already.
    let within = table.get("within").and_then(|within| within.as_str());
    let within = within.filter(|within| !within.is_empty()).and_then(|_| fields.span("within"));
    if let (Some(count), Some(within), Some(levels)) = (count, within, levels) {
        let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        *found = Some(StormRule { count: size(count), within: within.get(), levels: size(levels) });
    }
}

/// The alerts under one prefix. It has a row only once it is a storm: what is counted before that
/// is counted anew after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Storm {
    /// The first levels of the topics.
    pub prefix: Arc<str>,
    /// When the latest ones fired, oldest first; no more than make a storm.
    #[serde(skip)]
    pub(super) recent: VecDeque<(Timestamp, Arc<str>)>,
    /// Alerts of it by name, so many as a message names.
    pub names: Vec<Arc<str>>,
    /// When it began; `None`: it is none.
    pub since: Option<Timestamp>,
    /// When the latest fired.
    pub latest_at: Timestamp,
    /// When it ends if nothing more fires.
    pub until: Timestamp,
    /// How many fired since it began.
    pub total: usize,
    /// Who was told that it began, and how severe it was said to be.
    pub told: BTreeMap<Arc<str>, Severity>,
    /// An alert of it, to which its messages lead.
    pub about: Option<AlertRef>,
    /// The channels of that alert's rule.
    pub by: Arc<[Channel]>,
}

impl Storm {
    /// Nothing has fired.
    pub(super) fn new(prefix: Arc<str>) -> Self {
        let none = Timestamp::default();
        Self {
            prefix,
            recent: VecDeque::new(),
            names: Vec::new(),
            since: None,
            latest_at: none,
            until: none,
            total: 0,
            told: BTreeMap::new(),
            about: None,
            by: Arc::default(),
        }
    }

    /// One fires since then: what a restart knows of those that make a storm.
    pub(super) fn recount(&mut self, rule: &StormRule, name: Arc<str>, fired_at: Timestamp) {
        let one = (fired_at, name);
        if self.since.is_some() || self.recent.contains(&one) {
            return;
        }
        let place = self.recent.partition_point(|other| *other < one);
        self.recent.insert(place, one);
        if self.recent.len() > rule.count {
            self.recent.pop_front();
        }
        self.latest_at = self.latest_at.max(fired_at);
        self.until = self.latest_at.plus(rule.within);
    }

    /// One more fires.
    pub(super) fn count(
        &mut self,
        rule: &StormRule,
        name: Arc<str>,
        names_max: usize,
        now: Timestamp,
    ) {
        self.latest_at = now;
        self.until = now.plus(rule.within);
        if self.since.is_some() {
            self.total += 1;
            if self.names.len() < names_max {
                self.names.push(name);
            }
            return;
        }
        while self.recent.front().is_some_and(|(at, _)| now.since(*at) > rule.within) {
            self.recent.pop_front();
        }
        self.recent.push_back((now, name));
        if self.recent.len() > rule.count {
            self.since = self.recent.front().map(|(at, _)| *at);
            self.total = self.recent.len();
            let names = std::mem::take(&mut self.recent).into_iter().map(|(_, name)| name);
            self.names = names.take(names_max).collect();
        }
    }
}

/// The first levels of a topic.
pub(super) fn prefix(topic: &TopicName, levels: usize) -> Arc<str> {
    let levels: Vec<&str> = topic.levels().take(levels).collect();
    levels.join("/").into()
}
