//! Too many alerts under one prefix of topics: one message in place of many.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::model::Severity;
use crate::topic::TopicName;

/// The alerts under one prefix. It has a row only once it is a storm: what is counted before that
/// is counted anew after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Storm {
    /// The first levels of the topics.
    pub prefix: Arc<str>,
    /// When the latest ones fired, oldest first; no more than make a storm.
    #[serde(skip)]
    pub(super) recent: VecDeque<Timestamp>,
    /// The first ones by name, so many as a message names.
    pub names: Vec<Arc<str>>,
    /// When it began; `None`: it is none.
    pub since: Option<Timestamp>,
    /// When the latest fired.
    pub latest_at: Timestamp,
    /// How many fired since it began.
    pub total: usize,
    /// Who was told that it began, and how severe it was said to be.
    pub told: BTreeMap<Arc<str>, Severity>,
}

/// The first levels of a topic.
pub(super) fn prefix(topic: &TopicName, levels: usize) -> Arc<str> {
    let levels: Vec<&str> = topic.levels().take(levels).collect();
    levels.join("/").into()
}
