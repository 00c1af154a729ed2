//! What a replay found, as numbers: for the table and as JSON.
//!
//! Data only. Rows come in the order of the rule files; contacts by name.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::price::Money;
use crate::clock::Timestamp;
use crate::model::{Channel, Reason, Severity};
use crate::problem::Problem;

/// The recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// How many publishes were replayed.
    pub publishes: u64,
    /// The time of the first.
    #[serde(serialize_with = "time", skip_serializing_if = "Option::is_none")]
    pub from: Option<Timestamp>,
    /// The time of the last.
    #[serde(serialize_with = "time", skip_serializing_if = "Option::is_none")]
    pub to: Option<Timestamp>,
    /// Publishes before or behind the part that was asked for.
    pub left_out: u64,
    /// Publishes that were recorded with an earlier time than one before them.
    pub late: u64,
    /// Lines that could not be read.
    pub unreadable: u64,
    /// The first of them, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_unreadable: Option<String>,
}

impl Seen {
    /// One more publish.
    pub(super) fn publish(&mut self, at: Timestamp) {
        self.publishes += 1;
        self.from.get_or_insert(at);
        self.to = Some(at);
    }

    /// A line that could not be read.
    pub(super) fn unreadable(&mut self, problem: &Problem) {
        self.unreadable += 1;
        self.first_unreadable.get_or_insert_with(|| problem.to_string());
    }
}

/// What one rule set made of a recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Publishes that a rule looked at.
    pub matched: u64,
    /// The rules, all of them.
    pub rules: Vec<RuleRow>,
    /// Who would have been messaged.
    pub contacts: Vec<ContactRow>,
    /// Who would not, or later, or what was not looked at, and why.
    pub not_told: Vec<NotToldRow>,
}

/// What one rule did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RuleRow {
    /// Its name.
    pub rule: Arc<str>,
    /// It only counts (`mode = "shadow"`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shadow: bool,
    /// How many alerts it raised.
    pub raised: u64,
    /// How often an alert changed its level.
    pub levels: u64,
    /// How many alerts were over.
    pub cleared: u64,
    /// How many alerts fire at the end.
    pub firing: u64,
    /// How long the longest fired, in milliseconds, one that still does included.
    pub longest_ms: u64,
    /// Where it came to no result.
    pub failures: Vec<FailureRow>,
}

impl RuleRow {
    /// A rule that has done nothing.
    pub(super) fn new(rule: &Arc<str>, shadow: bool) -> Self {
        Self {
            rule: Arc::clone(rule),
            shadow,
            raised: 0,
            levels: 0,
            cleared: 0,
            firing: 0,
            longest_ms: 0,
            failures: Vec::new(),
        }
    }

    /// How often it came to no result.
    pub fn failed(&self) -> u64 {
        self.failures.iter().map(|failure| failure.count).sum()
    }
}

/// Why a rule came to no result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailureRow {
    /// In one word.
    pub reason: Reason,
    /// How often.
    pub count: u64,
    /// When first.
    #[serde(serialize_with = "at")]
    pub first_at: Timestamp,
    /// What was said then; never anything of the payload.
    pub first: String,
}

/// What one contact would have got by one channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ContactRow {
    /// Its name.
    pub contact: Arc<str>,
    /// The channel: the first of those that it could have been.
    pub channel: Channel,
    /// How many messages.
    pub messages: u64,
    /// For SMS: how many parts are billed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<u64>,
    /// What they cost; `None` where no price is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<Money>,
}

/// Why something was not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NotToldRow {
    /// What became of it.
    pub what: NotTold,
    /// Why.
    pub reason: Reason,
    /// How often.
    pub count: u64,
}

/// What became of something that was not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotTold {
    /// Somebody was not told at once; it may have been made up for.
    Held,
    /// Somebody was not told.
    Dropped,
    /// A rule did not look at a publish.
    Passed,
}

impl NotTold {
    /// The word in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Dropped => "dropped",
            Self::Passed => "not looked at",
        }
    }
}

/// An alert that was raised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RaisedRow {
    /// When.
    #[serde(serialize_with = "at")]
    pub at: Timestamp,
    /// By which rule.
    pub rule: Arc<str>,
    /// Which instance.
    pub key: Arc<str>,
    /// How urgent.
    pub severity: Severity,
    /// What it says.
    pub text: Arc<str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn at<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(time)
}

#[expect(clippy::ref_option, reason = "serde asks so")]
fn time<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(time),
        None => serializer.serialize_none(),
    }
}
