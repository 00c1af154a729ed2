//! Alerts of a rule that become one message.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::row::RowId;
use crate::clock::Timestamp;
use crate::model::Alert;
use crate::model::tell;

/// Alerts of a rule that become one message, as they are stored. Who is in it is in their tales.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// The rule's name.
    pub rule: Arc<str>,
    /// The values of the labels that make it, joined by `/`.
    pub values: Arc<str>,
    /// When it is told next; `None` while there is nothing to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// When it was told last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told_at: Option<Timestamp>,
    /// How many alerts it has told of since it began.
    #[serde(default)]
    pub total: usize,
}

impl Group {
    pub(super) fn id(&self) -> RowId {
        RowId::Group { rule: Arc::clone(&self.rule), values: Arc::clone(&self.values) }
    }

    /// The group of an alert.
    pub(super) fn of(alert: &Alert, by: &tell::Group) -> Self {
        let values: Vec<&str> = by.by.iter().map(|name| alert.label(name).unwrap_or("")).collect();
        Self {
            rule: Arc::clone(&alert.rule),
            values: values.join("/").into(),
            due_at: None,
            told_at: None,
            total: 0,
        }
    }

    /// When news that comes now is told: at the time that is set already, an interval after the
    /// last message, or, if that is past, after having waited for others.
    pub(super) fn next_at(&self, by: &tell::Group, now: Timestamp) -> Timestamp {
        let after = |from: Timestamp, by: Duration| from.plus(by);
        self.due_at.unwrap_or_else(|| {
            let spaced = self.told_at.map(|told| after(told, by.interval)).filter(|at| *at > now);
            spaced.unwrap_or_else(|| after(now, by.wait))
        })
    }
}
