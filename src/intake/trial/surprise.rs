//! Mistakes in rules that their tests reveal though no test looks for them: expressions and texts
//! that fail on what a test publishes, with the place of the clause.

use std::collections::BTreeSet;

use super::Trial;
use super::run::{self, Ran, at};
use crate::intake::ruleset::{Limits, RuleSet};
use crate::model::Reason;
use crate::problem::{Problem, Step as PathStep, TomlFile};

/// Runs the tests and tells which clauses fail where no test expects it. Whether the tests pass is
/// not looked at.
pub fn surprises(
    set: &RuleSet,
    limits: &Limits,
    files: &[TomlFile],
    trials: &[Trial],
) -> Vec<Problem> {
    let mut said = BTreeSet::new();
    let mut problems = Vec::new();
    for trial in trials {
        let ran = run::run(set, limits, trial);
        problems.extend(of_run(files, trial, &ran, &mut said));
    }
    problems
}

fn of_run(
    files: &[TomlFile],
    trial: &Trial,
    ran: &Ran,
    said: &mut BTreeSet<(String, String)>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for failure in &ran.failures {
        let is_mistake =
            matches!(failure.reason, Some(Reason::ExpressionFailed | Reason::TemplateFailed));
        let (Some(rule), Some(note)) = (&failure.rule, &failure.note) else { continue };
        // Once for each clause and way to fail.
        if !is_mistake || !said.insert((rule.to_string(), note.clone())) {
            continue;
        }
        let what = format!(
            "rule \"{rule}\": {note} (test \"{}\", step {}, at {}; if that is meant, expect {{ rule = \"{rule}\", reason = \"{}\" }})",
            trial.name,
            failure.step + 1,
            at(failure),
            failure.reason.map_or("", Reason::as_str),
        );
        problems.push(match place(files, rule, note) {
            Some((file, path)) => file.problem(&path, what),
            None => Problem::new("rules", what),
        });
    }
    problems
}

/// Where the clause stands that a failure names first, in backticks.
fn place<'a>(
    files: &'a [TomlFile],
    rule: &str,
    note: &str,
) -> Option<(&'a TomlFile, Vec<PathStep>)> {
    let clause = note.split('`').nth(1).unwrap_or_default();
    files.iter().find_map(|file| {
        let tables = file.table().get("rule")?.as_array()?;
        let of_rule =
            |table: &toml::Value| table.get("name").and_then(toml::Value::as_str) == Some(rule);
        let index = tables.iter().position(of_rule)?;
        let mut path = vec![PathStep::from("rule"), index.into()];
        let table = tables.get(index)?;
        // A rule of one level may have written it as `critical = { when = ... }`.
        let level = ["info", "warning", "critical"].into_iter().find(|level| {
            table.get(clause).is_none()
                && table.get(level).is_some_and(|level| level.get(clause).is_some())
        });
        path.extend(level.map(PathStep::from));
        path.extend(clause.split('.').map(PathStep::from));
        Some((file, path))
    })
}
