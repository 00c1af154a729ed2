//! `watchbell store`: is it whole; mend it; copy it; bring a copy back. One file a command.
//!
//! What changes the store needs Watchbell to be stopped; what copies it works on a running process
//! too, through its API, and then everything is written by this command, never by the process.

mod backup;
mod compact;
mod export;
mod import;
mod repair;
mod restore;
mod verify;

use std::path::Path;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::Context;
use super::client::Client;
use crate::instance::Instance;
use crate::store::offline::BackupWriter;
use crate::store::{self, Counts};

const EXAMPLES: &str = "\
Examples:
  watchbell store verify                          reads every row; exit code 1 if anything is wrong
  watchbell store backup /backup/watchbell-monday a copy of the running store, verified
  watchbell store repair                          stopped: save what can be read, keep the rest aside
  watchbell store restore /backup/watchbell-monday --replace
  watchbell store export store.jsonl              one row a line, for another machine or format
  watchbell store import store.jsonl
  watchbell store compact                         stopped: give the disk back what deleted rows took

At three in the morning: docs/operating.md, \"The store: verify, repair, backup\".";

/// Verify, repair, back up, restore, export, import, compact the store
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Store {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Read every row and every reference; exit code 1 if anything is wrong
    Verify(verify::Verify),
    /// Write all that can be read into a new store, and keep the damaged one beside it
    Repair(repair::Repair),
    /// Copy the store, of a running process too, into a new directory, and verify the copy
    Backup(backup::Backup),
    /// Bring a backup back; the store that was there is kept beside it
    Restore(restore::Restore),
    /// Write every row as a line of JSON
    Export(export::Export),
    /// Make a store of exported lines
    Import(import::Import),
    /// Rewrite the store, without the room that deleted rows took
    Compact(compact::Compact),
}

impl Store {
    pub(super) fn run(self, mut context: Context<'_>) -> anyhow::Result<()> {
        match self.command {
            Command::Verify(verify) => verify.run(context),
            Command::Repair(repair) => repair.run(context),
            Command::Backup(backup) => backup.run(context),
            Command::Restore(restore) => restore.run(context),
            Command::Export(export) => export.run(&mut context),
            Command::Import(import) => import.run(context),
            Command::Compact(compact) => compact.run(&mut context),
        }
    }
}

fn config(context: &Context<'_>) -> anyhow::Result<store::Config> {
    crate::config::store(&context.layers).map_err(super::problems)
}

/// What changes the store is not done under a running process.
fn refuse_running(data_dir: &Path) -> anyhow::Result<()> {
    if let Some(instance) = Instance::running(data_dir)? {
        bail!(
            "watchbell is running with data directory {} (process {}); stop it first",
            data_dir.display(),
            instance.pid
        );
    }
    Ok(())
}

/// `alert 3, outbox 5`.
fn tables(counts: &Counts) -> String {
    let tables: Vec<String> =
        counts.iter().map(|(table, count)| format!("{table} {count}")).collect();
    if tables.is_empty() { "no rows".to_owned() } else { tables.join(", ") }
}

/// Copies the store of a running process into `target`, a directory that must not exist.
async fn copy_running(
    client: &Client,
    target: &Path,
    config: &store::Config,
) -> anyhow::Result<Counts> {
    let mut writer = BackupWriter::new(target, config)?;
    let mut lines = client.lines("/v1/store/copy").await?;
    let (mut rows, mut said) = (0, None);
    while let Some(line) = lines.next().await? {
        let last = writer.put_line(&line)?;
        rows += 1;
        if last.is_some() {
            said = last;
        }
    }
    // Beside rows there is a first line, and a last one.
    if said.is_none_or(|said| said + 2 != rows) {
        bail!("the copy was cut off; nothing was kept of it. See the log of the running process");
    }
    Ok(writer.finish(1)?)
}
