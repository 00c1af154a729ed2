//! Alerts of a rule that become one message.
//!
//! The first alert waits for others; what follows is gathered until an interval has passed since the
//! last message. A group ends when nothing of it fires and nothing of it is untold.

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
    /// Its next message comes no earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_until: Option<Timestamp>,
    /// At least so long between two messages.
    pub interval: Duration,
    /// How many alerts it has told of since it began.
    #[serde(default)]
    pub total: usize,
}

impl Group {
    pub(super) fn id(&self) -> RowId {
        RowId::Group { rule: Arc::clone(&self.rule), values: Arc::clone(&self.values) }
    }

    /// The group of an alert, as it begins.
    pub(super) fn of(alert: &Alert, by: &tell::Group) -> Self {
        let values: Vec<&str> = by.by.iter().map(|name| alert.label(name).unwrap_or("")).collect();
        Self {
            rule: Arc::clone(&alert.rule),
            values: values.join("/").into(),
            due_at: None,
            quiet_until: None,
            interval: by.interval,
            total: 0,
        }
    }

    /// When news that comes now is told: at the time that is set already, an interval after the
    /// last message, or, if that is past, after having waited for others.
    pub(super) fn next_at(&self, wait: Duration, now: Timestamp) -> Timestamp {
        let spaced = self.quiet_until.filter(|at| *at > now);
        self.due_at.or(spaced).unwrap_or_else(|| now.plus(wait))
    }

    pub(super) fn timer(&self) -> Option<Timestamp> {
        self.due_at.or(self.quiet_until)
    }

    /// Of a group in which nothing fires and nothing waits: makes it new, and says whether it can be
    /// forgotten altogether.
    pub(super) fn is_done(&mut self, now: Timestamp) -> bool {
        self.due_at = None;
        self.total = 0;
        self.quiet_until.is_none_or(|at| at <= now)
    }
}
