//! `watchbell test`: tries the `[[test]]` tables of the rule files out, in virtual time.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use super::{Context, junit, problems};
use crate::config;
use crate::intake::ruleset::RuleSet;
use crate::intake::trial::coverage::Coverage;
use crate::intake::trial::happening::{Difference, Happening};
use crate::intake::trial::run::{self, Ran};
use crate::intake::trial::{Trial, read};
use crate::problem::TomlFile;

/// Most lines of a kind that a step shows.
const SHOWN_MAX: usize = 50;

const EXAMPLES: &str = "\
Examples:
  watchbell test
  watchbell test --filter freezer
  watchbell test --junit target/rules.xml --coverage-min 100

Each test begins with nothing and runs in virtual time; nothing is sent and nothing is stored. Of a
step that came out otherwise, lines with - were expected and did not happen, lines with + happened
and were not expected: as they would stand in the file. Exit code 1 where a test fails or too little
is covered. docs/testing.md has the whole language.";

/// Try rules out: run the tests in the rule files
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Test {
    /// Only tests with this in their name
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Also write what came out as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Fail where the tests exercise less of the rules, percent
    #[arg(long, value_name = "PERCENT", conflicts_with = "filter",
        value_parser = clap::value_parser!(u8).range(0..=100))]
    coverage_min: Option<u8>,
}

impl Test {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let dir = config::rules_dir(&context.layers).map_err(problems)?;
        // The rest of the configuration does not matter here, its secrets least of all.
        let limits = config::limits(&context.layers).map_err(problems)?;
        let (set, files) = RuleSet::load_dir_with_files(&dir, &limits).map_err(problems)?;
        let (mut trials, _) = read::read(&files, true);
        if let Some(filter) = &self.filter {
            trials.retain(|trial| trial.name.contains(filter.as_str()));
            if trials.is_empty() {
                bail!("no test has \"{filter}\" in its name; `watchbell test` alone runs all");
            }
        }
        let runs: Vec<Ran> = trials.iter().map(|trial| run::run(&set, &limits, trial)).collect();
        // What some of the tests leave out says nothing.
        let coverage = self.filter.is_none().then(|| Coverage::of(&set.rules, runs.iter()));
        let results = results(&files, &trials, &runs);
        if let Some(path) = &self.junit {
            std::fs::write(path, junit::render(&results))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let failed = results.iter().filter(|result| !result.failed.is_empty()).count();
        let text = if self.json {
            json(&results, failed, coverage.as_ref())
        } else {
            text(&results, failed, coverage.as_ref())
        };
        let out = context.out;
        write!(out, "{text}")?;
        let covered = coverage.map_or(100, |coverage| coverage.percent());
        let too_little = self.coverage_min.filter(|least| covered < usize::from(*least));
        match (failed, too_little) {
            (0, None) => Ok(()),
            (0, Some(least)) => {
                bail!("the tests exercise {covered} % of the rules, less than {least} %")
            }
            (1, _) => bail!("1 test failed"),
            (count, _) => bail!("{count} tests failed"),
        }
    }
}

/// What came of one test, with the places of all that is to be said of it.
pub(super) struct TestResult<'a> {
    pub(super) name: &'a str,
    pub(super) file: &'a str,
    pub(super) line: usize,
    failed: Vec<Failed<'a>>,
}

/// A step that came out otherwise.
struct Failed<'a> {
    /// The first is 1.
    number: usize,
    at: String,
    line: usize,
    difference: &'a Difference,
}

fn results<'a>(files: &'a [TomlFile], trials: &'a [Trial], runs: &'a [Ran]) -> Vec<TestResult<'a>> {
    // One look at each file for all of its lines.
    let mut paths: HashMap<usize, Vec<Vec<crate::problem::Step>>> = HashMap::new();
    for (trial, ran) in trials.iter().zip(runs) {
        let of_file = paths.entry(trial.file).or_default();
        of_file.push(trial.path());
        of_file.extend(ran.failed.iter().map(|(step, _)| trial.step_path(*step)));
    }
    let mut lines: HashMap<usize, _> = paths
        .into_iter()
        .filter_map(|(file, paths)| Some((file, files.get(file)?.lines(&paths).into_iter())))
        .collect();
    let mut results = Vec::new();
    for (trial, ran) in trials.iter().zip(runs) {
        let mut next = || lines.get_mut(&trial.file).and_then(Iterator::next).unwrap_or(1);
        let line = next();
        let mut failed = Vec::new();
        for (step, difference) in &ran.failed {
            let ends_at = trial.steps.get(*step).map(crate::intake::trial::Step::ends_at);
            let at = read::span(ends_at.unwrap_or_default()).to_string();
            failed.push(Failed { number: step + 1, at, line: next(), difference });
        }
        let file = files.get(trial.file).map_or("", TomlFile::name);
        results.push(TestResult { name: &trial.name, file, line, failed });
    }
    results
}

impl TestResult<'_> {
    /// What came out otherwise, for people; `None`: nothing.
    pub(super) fn failure(&self) -> Option<String> {
        if self.failed.is_empty() {
            return None;
        }
        let mut lines = Vec::new();
        for failed in &self.failed {
            let Failed { number, at, line, difference } = failed;
            lines.push(format!("  {}:{line}: step {number}, at {at}", self.file));
            if let Some(trouble) = &difference.trouble {
                lines.push(format!("    ! {trouble}"));
            }
            let missing = difference.missing.iter().map(|(one, count)| match (count, one.times) {
                (1, None | Some(1)) => format!("    - {one}"),
                (count, _) => format!("    - {one}  # {count} more"),
            });
            cut(&mut lines, missing);
            let happened = |sign: char| {
                move |one: &Happening| {
                    let note =
                        one.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
                    format!("    {sign} {one}  # at {}{note}", run::at(one))
                }
            };
            cut(&mut lines, difference.unexpected.iter().map(happened('+')));
            cut(&mut lines, difference.matched.iter().map(happened(' ')));
            cut(&mut lines, difference.passed.iter().map(happened('~')));
            let nothing = difference.unexpected.is_empty() && difference.matched.is_empty();
            if nothing && difference.trouble.is_none() {
                lines.push("    (nothing happened)".to_owned());
            }
        }
        Some(lines.join("\n"))
    }
}

fn cut(lines: &mut Vec<String>, more: impl Iterator<Item = String>) {
    let mut more = more;
    lines.extend(more.by_ref().take(SHOWN_MAX));
    match more.count() {
        0 => {}
        count => lines.push(format!("      ... and {count} more")),
    }
}

fn text(results: &[TestResult<'_>], failed: usize, coverage: Option<&Coverage>) -> String {
    let mut lines = Vec::new();
    for result in results {
        match result.failure() {
            None => lines.push(format!("ok      {} ({})", result.name, result.file)),
            Some(failure) => {
                lines.push(format!("FAILED  {} ({}:{})", result.name, result.file, result.line));
                lines.push(failure);
            }
        }
    }
    if let Some(coverage) = coverage {
        lines.push(String::new());
        lines.push(format!("coverage: {} of {} clauses", coverage.met(), coverage.total));
        for (rule, what) in &coverage.missing {
            lines.push(format!("  {rule}: {what}"));
        }
    }
    lines.push(String::new());
    lines.push(format!("{} passed, {failed} failed", results.len() - failed));
    lines.push(String::new());
    lines.join("\n")
}

fn json(results: &[TestResult<'_>], failed: usize, coverage: Option<&Coverage>) -> String {
    let happening = |one: &Happening| {
        serde_json::json!({
            "at": run::at(one),
            "rule": one.rule,
            "key": one.key,
            "what": one.to_string(),
            "reason": one.reason,
            "note": one.note,
        })
    };
    let step = |failed: &Failed<'_>| {
        let difference = failed.difference;
        let missing = difference.missing.iter();
        serde_json::json!({
            "step": failed.number,
            "at": failed.at,
            "line": failed.line,
            "trouble": difference.trouble,
            "missing": missing
                .map(|(one, count)| serde_json::json!({ "what": one.to_string(), "count": count }))
                .collect::<Vec<_>>(),
            "unexpected": difference.unexpected.iter().map(happening).collect::<Vec<_>>(),
            "matched": difference.matched.iter().map(happening).collect::<Vec<_>>(),
        })
    };
    let tests: Vec<serde_json::Value> = results
        .iter()
        .map(|result| {
            serde_json::json!({
                "name": result.name,
                "file": result.file,
                "line": result.line,
                "passed": result.failed.is_empty(),
                "failed_steps": result.failed.iter().map(step).collect::<Vec<_>>(),
            })
        })
        .collect();
    let coverage = coverage.map(|coverage| {
        let missing = coverage.missing.iter();
        serde_json::json!({
            "clauses": coverage.total,
            "exercised": coverage.met(),
            "percent": coverage.percent(),
            "missing": missing
                .map(|(rule, what)| serde_json::json!({ "rule": rule, "what": what }))
                .collect::<Vec<_>>(),
        })
    });
    let whole = serde_json::json!({
        "passed": results.len() - failed,
        "failed": failed,
        "coverage": coverage,
        "tests": tests,
    });
    format!("{whole:#}\n")
}
