//! `watchbell check`: every problem of configuration and rules, at once.

use anyhow::bail;
use clap::Args;

use super::{Context, text};
use crate::config;
use crate::intake::ruleset::{Limits, RuleSet};
use crate::intake::{trial, unfit};
use crate::problem::Problem;

const EXAMPLES: &str = "\
Examples:
  watchbell check
  watchbell check --config /etc/watchbell.toml && systemctl restart watchbell

Reads what `watchbell run` would read, secrets and certificates included, and opens nothing. Tests
in rule files are run, and expressions told that fail on what they publish; whether they pass is
what `watchbell test` says. Exit code 1 where something is wrong.";

/// Report every problem of configuration and rules
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Check {}

impl Check {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let out = context.out;
        let (mut problems, mut fine) = (Vec::new(), Vec::new());
        // The rules are looked at even where the configuration is wrong, with the limits and in
        // the directory that can be made out.
        let mut is_real = false;
        let (rules_dir, limits, reach) = match config::load(&context.layers, &context.clock) {
            Ok(config) => {
                // What is missing of the development certificates is made at the start.
                let made_later = crate::app::uses_development_certificates(&config.broker)
                    && !config.broker.cert.exists();
                if !made_later {
                    let now = context.clock.now();
                    let (wrong, warnings) = crate::broker::tls::files::check(&config.broker, now);
                    problems.extend(config::placed(&context.layers, wrong));
                    for warning in config::placed(&context.layers, warnings) {
                        writeln!(out, "warning: {warning}")?;
                    }
                }
                for warning in crate::store::disk_warnings(&config.data_dir, &config.store) {
                    writeln!(out, "warning: {warning}")?;
                }
                let file = config.file.as_deref().unwrap_or("no configuration file, defaults");
                let names: Vec<&str> = config.providers.iter().map(|one| &*one.name).collect();
                fine.push(format!("{file}: fine, delivers by {}", names.join(", ")));
                is_real = config.providers.iter().any(|one| one.kind != "phone");
                let reach = config.reach();
                (config.rules_dir, config.limits, Some(reach))
            }
            Err(found) => {
                problems.extend(found);
                let rules_dir = config::rules_dir(&context.layers);
                (rules_dir.unwrap_or_else(|_| "rules".into()), Limits::default(), None)
            }
        };
        match RuleSet::load_dir_with_files(&rules_dir, &limits) {
            Ok((set, files)) => {
                let place = rules_dir.display().to_string();
                let (trials, _) = trial::read::read(&files, true);
                problems.extend(trial::surprise::surprises(&set, &limits, &files, &trials));
                // What can be reached is only known from a configuration that is right.
                let unreached = reach
                    .map_or_else(Vec::new, |reach| set.unreached(|target| reach.objection(target)));
                problems
                    .extend(unreached.into_iter().map(|what| Problem::new(place.clone(), what)));
                // The virtual phone has no second channel to go by.
                if is_real && limits.contacts.fallback.is_empty() && !set.rules.is_empty() {
                    writeln!(
                        out,
                        "warning: nobody is told when somebody cannot be reached by any channel; name contacts in `[notify] fallback`, as fallback = [\"duty\"]"
                    )?;
                }
                for warning in unfit::warnings(&set, &files) {
                    writeln!(out, "warning: {warning}")?;
                }
                fine.push(format!(
                    "{place}: fine, {} and {} in {}",
                    text::counted(set.rules.len(), "rule"),
                    text::counted(set.book.directory.contacts().len(), "contact"),
                    text::counted(set.files, "file")
                ));
            }
            Err(found) => problems.extend(found),
        }
        if problems.is_empty() {
            writeln!(out, "{}", fine.join("; "))?;
            return Ok(());
        }
        for problem in &problems {
            writeln!(out, "{problem}")?;
        }
        bail!("{}", text::counted(problems.len(), "problem"))
    }
}
