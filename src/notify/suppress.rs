//! `[[suppress]]`: while one alert fires, others that it explains are not told.

use std::sync::Arc;

use super::pattern::Pattern;
use crate::model::Alert;

/// One `[[suppress]]` table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppress {
    /// Rules whose alerts explain others.
    pub cause: Pattern,
    /// Rules whose alerts are explained.
    pub rules: Vec<Pattern>,
    /// Labels that must be the same.
    pub same: Vec<Arc<str>>,
}

impl Suppress {
    /// Whether alerts of the rule explain others.
    pub(super) fn is_cause(&self, rule: &str) -> bool {
        self.cause.matches(rule)
    }

    /// Whether the alert could be explained. Never one that explains: of two gateways that are down
    /// each would hide the other.
    pub(super) fn covers(&self, alert: &Alert) -> bool {
        self.rules.iter().any(|pattern| pattern.matches(&alert.rule)) && !self.is_cause(&alert.rule)
    }
}
