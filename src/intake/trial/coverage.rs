//! What no test has exercised: rules that never fired or never cleared, clauses that never came out
//! one way, levels that were never reached.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::run::Ran;
use crate::model::Severity;
use crate::rules::engine::Exercised;
use crate::rules::set::{Rule, Rules};

/// Of all rules together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// How many there are to be met.
    pub total: usize,
    /// Those that were not: the rule's name, and what.
    pub missing: Vec<(Arc<str>, String)>,
}

impl Coverage {
    /// What these runs have left out.
    pub fn of<'a>(rules: &Rules, runs: impl Iterator<Item = &'a Ran>) -> Self {
        let (mut exercised, mut turned) = (BTreeSet::new(), BTreeSet::new());
        for ran in runs {
            exercised.extend(ran.exercised.iter());
            turned.extend(ran.turned.iter().cloned());
        }
        let mut coverage = Self::default();
        for rule in rules.rules() {
            for (is_met, what) in points(rule, &exercised, &turned) {
                coverage.total += 1;
                if !is_met {
                    coverage.missing.push((Arc::clone(&rule.name), what));
                }
            }
        }
        coverage
    }

    /// How many were met.
    pub fn met(&self) -> usize {
        self.total - self.missing.len()
    }

    /// The same in percent, rounded down; 100 where there is nothing to be met.
    pub fn percent(&self) -> usize {
        (self.met() * 100).checked_div(self.total).unwrap_or(100)
    }
}

/// What is to be met of a rule, and whether it was.
fn points(
    rule: &Rule,
    exercised: &BTreeSet<&Exercised>,
    turned: &BTreeSet<(Arc<str>, Option<Severity>)>,
) -> Vec<(bool, String)> {
    let name = &rule.name;
    let of_rule = |level: Option<Severity>| turned.contains(&(Arc::clone(name), level));
    let fired = Severity::ALL.iter().any(|level| of_rule(Some(*level)));
    let mut points = Vec::new();
    match &rule.silent {
        Some(_) => points.push((fired, "never silent".to_owned())),
        None => points.push((fired, "never fired".to_owned())),
    }
    if !rule.is_event() {
        let what = if rule.silent.is_some() { "never heard again" } else { "never cleared" };
        points.push((of_rule(None), what.to_owned()));
    }
    if rule.levels.len() > 1 {
        for level in &rule.levels {
            points.push((of_rule(Some(level.severity)), format!("never {}", level.severity)));
        }
    }
    // A `time` that fails is the time of arrival, and nothing says so.
    if rule.time.is_some() {
        let is_met = exercised.contains(&(Arc::clone(name), "time".to_owned(), true));
        points.push((is_met, "`time` never gave a time".to_owned()));
    }
    for clause in rule.clauses() {
        for came_out in [true, false] {
            let is_met = exercised.contains(&(Arc::clone(name), clause.clone(), came_out));
            points.push((is_met, format!("`{clause}` never {came_out}")));
        }
    }
    points
}
