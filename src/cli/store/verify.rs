//! `watchbell store verify`

use clap::Args;
use serde::Deserialize;

use super::super::client::Client;
use super::super::{Context, block_on};
use crate::problem::counted;
use crate::store::offline;

/// Read every row and every reference; exit code 1 if anything is wrong
///
/// With Watchbell stopped it also reads the file itself and compares with the high-water mark.
/// Changes nothing that matters.
#[derive(Args)]
pub(super) struct Verify {}

#[derive(Deserialize)]
struct Answer {
    rows: std::collections::BTreeMap<String, u64>,
    problems: Vec<String>,
    problem_count: u64,
    left_over: u64,
    needs_repair: bool,
    #[serde(default)]
    is_salvage: bool,
}

impl Verify {
    #[expect(clippy::unused_self, reason = "as all commands")]
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let config = super::config(&context)?;
        let running = block_on(async {
            Ok(match Client::find(&data_dir).await? {
                Some(client) => Some(client.get_slowly::<Answer>("/v1/store/verify").await?),
                None => None,
            })
        })?;
        let is_running = running.is_some();
        let answer = match running {
            Some(answer) => answer,
            None => {
                let verified = offline::verify(&data_dir, &config)?;
                Answer {
                    rows: verified.rows.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
                    problems: verified.problems,
                    problem_count: verified.problem_count,
                    left_over: verified.left_over,
                    needs_repair: verified.needs_repair,
                    is_salvage: verified.is_salvage,
                }
            }
        };
        let out = context.out;
        let tables: Vec<String> =
            answer.rows.iter().map(|(table, count)| format!("{table} {count}")).collect();
        let total: u64 = answer.rows.values().sum();
        let tables = if total == 0 { String::new() } else { format!(": {}", tables.join(", ")) };
        let rows = counted(total, "row");
        if answer.is_salvage {
            writeln!(out, "a repair would save {rows}{tables}")?;
        } else {
            writeln!(out, "{rows} can be read{tables}")?;
        }
        if answer.left_over > 0 {
            let rows = counted(answer.left_over, "row");
            writeln!(out, "{rows} without what they belong to; that goes by itself")?;
        }
        if is_running {
            writeln!(
                out,
                "Watchbell is running: what rows lead to, and the file, are looked at when it is \
                 stopped, or in a backup"
            )?;
        }
        for problem in &answer.problems {
            writeln!(out, "  {problem}")?;
        }
        if answer.problem_count == 0 {
            writeln!(out, "Nothing is wrong.")?;
            return Ok(());
        }
        let problems = counted(answer.problem_count, "problem");
        let next = match (answer.needs_repair, is_running) {
            (false, _) => "a repair would mend nothing; what to do is said above",
            (true, true) => {
                "stop Watchbell and run `watchbell store repair`, which keeps the damaged files"
            }
            (true, false) => "run `watchbell store repair`, which keeps the damaged files",
        };
        anyhow::bail!("{}: {problems}; {next}", data_dir.display())
    }
}
