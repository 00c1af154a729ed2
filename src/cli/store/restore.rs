//! `watchbell store restore`

use std::path::PathBuf;

use clap::Args;

use super::super::Context;
use crate::store::offline;

/// Bring a backup back; the store that was there is kept beside it
///
/// Watchbell must be stopped. What was queued in the backup is sent again if it has not expired.
#[derive(Args)]
pub(super) struct Restore {
    /// A directory that `watchbell store backup` has made
    directory: PathBuf,
    /// Also where there is a store, which is then kept under another name
    #[arg(long)]
    replace: bool,
}

impl Restore {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let config = super::config(&context)?;
        super::refuse_running(&data_dir)?;
        let (counts, kept) = offline::restore(&data_dir, &self.directory, self.replace, &config)?;
        let out = context.out;
        writeln!(out, "restored: {}", super::tables(&counts))?;
        if let Some(kept) = kept {
            writeln!(out, "the store that was there is kept in {}", kept.display())?;
        }
        Ok(())
    }
}
