//! `[[suppress]]`: while one alert fires, others that it explains are not told.
//!
//! ```toml
//! [[suppress]]
//! while = "gateway-down"
//! rules = ["freezer-*", "door-open"]
//! same  = ["gateway"]              # labels that must be the same in both
//! ```
//!
//! An alert explains others from when it fires to when it is over, whether anybody is told of it or
//! not. Invariant: an alert never explains another of a rule that explains it, or both would be hidden.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::Config;
use super::fields::Fields;
use super::pattern::Pattern;
use crate::model::{Alert, AlertId, Labels};
use crate::problem::{Problem, TomlFile};

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
    fn is_cause(&self, rule: &str) -> bool {
        self.cause.matches(rule)
    }

    /// Whether the alert could be explained. Never one that explains: of two gateways that are down
    /// each would hide the other.
    fn covers(&self, rule: &str) -> bool {
        self.rules.iter().any(|pattern| pattern.matches(rule)) && !self.is_cause(rule)
    }

    /// The values that must be the same; `None` where the alert lacks one of the labels.
    fn values(&self, labels: &Labels) -> Option<Vec<Arc<str>>> {
        let value = |name: &Arc<str>| {
            labels.iter().find(|(known, _)| known == name).map(|(_, value)| Arc::clone(value))
        };
        self.same.iter().map(value).collect()
    }
}

/// Reads the `[[suppress]]` tables of a file.
pub(super) fn read(
    file: &TomlFile,
    config: &Config,
    found: &mut Vec<Suppress>,
    problems: &mut Vec<Problem>,
) {
    for (index, (path, table)) in Fields::tables(file, "suppress", problems).into_iter().enumerate()
    {
        let mut fields =
            Fields::new(file, &path, format!("suppress {}", index + 1), table, problems);
        if found.len() >= config.suppress_max {
            let what = format!(
                "more than {} [[suppress]] tables; raise notify.suppress_max",
                config.suppress_max
            );
            fields.problem(None, &what);
            return;
        }
        fields.only(&["while", "rules", "same"]);
        let cause = fields.required("while", "name the rule whose alert explains the others");
        let rules = fields.texts("rules");
        if rules.is_empty() && table.get("rules").is_none_or(|rules| rules.is_array()) {
            let what = "`rules` is missing or empty; name those that are not told meanwhile, as rules = [\"freezer-*\"]";
            fields.problem(None, what);
        }
        let same = fields.texts("same");
        let Some(cause) = cause else { continue };
        if rules.contains(&cause) {
            let what = format!("`{cause}` would hide itself; take it out of `rules`");
            fields.problem(Some("rules"), &what);
        }
        let hides = |first: &Suppress, by: &str| first.covers(by);
        let new = Suppress {
            cause: Pattern::new(&cause),
            rules: rules.iter().map(|rule| Pattern::new(rule)).collect(),
            same: same.iter().map(|label| Arc::from(label.as_str())).collect(),
        };
        // Two that hide each other: both stay untold for as long as both fire.
        let other = found
            .iter()
            .find(|other| hides(other, new.cause.as_str()) && hides(&new, other.cause.as_str()));
        if let Some(other) = other {
            let what = format!(
                "`{}` and `{}` would hide each other, and nobody would hear of either; let one of them be told",
                new.cause, other.cause
            );
            fields.problem(None, &what);
            continue;
        }
        found.push(new);
    }
}

/// Firing alerts that explain others.
#[derive(Clone, Debug, Default)]
pub(super) struct Causes {
    alerts: HashMap<AlertId, (Arc<str>, Arc<str>, Labels)>,
    /// By the number of the table and the values that must be the same.
    index: HashMap<(usize, Vec<Arc<str>>), BTreeSet<AlertId>>,
}

impl Causes {
    /// The alert fires. Says whether it explains others.
    pub(super) fn begin(&mut self, suppress: &[Suppress], alert: &Alert) -> bool {
        let mut is_cause = false;
        for (number, table) in suppress.iter().enumerate() {
            if !table.is_cause(&alert.rule) {
                continue;
            }
            if let Some(values) = table.values(&alert.labels) {
                is_cause = true;
                self.index.entry((number, values)).or_default().insert(alert.id);
            }
        }
        if is_cause {
            let about =
                (Arc::clone(&alert.rule), Arc::clone(&alert.key), Arc::clone(&alert.labels));
            self.alerts.insert(alert.id, about);
        }
        is_cause
    }

    /// The alert is over. Says whether it explained others.
    pub(super) fn end(&mut self, suppress: &[Suppress], alert: AlertId) -> bool {
        let Some((_, _, labels)) = self.alerts.remove(&alert) else { return false };
        for (number, table) in suppress.iter().enumerate() {
            let Some(values) = table.values(&labels) else { continue };
            let place = (number, values);
            if let Some(alerts) = self.index.get_mut(&place) {
                alerts.remove(&alert);
                if alerts.is_empty() {
                    self.index.remove(&place);
                }
            }
        }
        true
    }

    /// What explains the alert: rule and key of the earliest that fires.
    pub(super) fn of(&self, suppress: &[Suppress], alert: &Alert) -> Option<(&str, &str)> {
        if self.alerts.is_empty() {
            return None;
        }
        suppress.iter().enumerate().find_map(|(number, table)| {
            if !table.covers(&alert.rule) {
                return None;
            }
            let alerts = self.index.get(&(number, table.values(&alert.labels)?))?;
            let (rule, key, _) = self.alerts.get(alerts.first()?)?;
            Some((rule.as_ref(), key.as_ref()))
        })
    }
}
