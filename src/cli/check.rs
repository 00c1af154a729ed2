//! `watchbell check`: every problem of configuration and rules, at once.

use anyhow::bail;
use clap::Args;

use super::Context;

const EXAMPLES: &str = "\
Examples:
  watchbell check
  watchbell check --config /etc/watchbell.toml && systemctl restart watchbell

Reads what `watchbell run` would read, secrets included, and opens nothing. Exit code 1 where
something is wrong.";

/// Report every problem of configuration and rules
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Check {}

impl Check {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let out = context.out;
        let problems = match crate::config::load(&context.layers) {
            Ok(config) => {
                let file = config.file.as_deref().unwrap_or("no configuration file, defaults");
                writeln!(out, "{file}: fine")?;
                return Ok(());
            }
            Err(problems) => problems,
        };
        for problem in &problems {
            writeln!(out, "{problem}")?;
        }
        match problems.len() {
            1 => bail!("1 problem"),
            count => bail!("{count} problems"),
        }
    }
}
