//! `watchbell store backup`

use std::path::PathBuf;

use clap::Args;

use super::super::client::Client;
use super::super::{Context, block_on};
use crate::problem::counted;
use crate::store::offline;

/// Copy the store, of a running process too, into a new directory, and verify the copy
///
/// The copy is the store as it was after one of its commits. It is synced, and verified, before
/// this command ends. Configuration, rules and certificates are files that you copy yourself.
#[derive(Args)]
pub(super) struct Backup {
    /// A directory that does not exist yet
    directory: PathBuf,
}

impl Backup {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let config = super::config(&context)?;
        let counts = block_on(async {
            match Client::find(&data_dir).await? {
                Some(client) => super::copy_running(&client, &self.directory, &config).await,
                None => Ok(offline::backup(&data_dir, &self.directory, &config)?),
            }
        })?;
        let verified = offline::verify(&self.directory, &config)?;
        let out = context.out;
        writeln!(out, "{}: {}", self.directory.display(), super::tables(&counts))?;
        for problem in &verified.problems {
            writeln!(out, "  {problem}")?;
        }
        anyhow::ensure!(
            verified.problem_count == 0,
            "{}: {} in the copy, and so in the store or on the disk of the copy",
            self.directory.display(),
            counted(verified.problem_count, "problem")
        );
        writeln!(out, "The copy is verified.")?;
        Ok(())
    }
}
