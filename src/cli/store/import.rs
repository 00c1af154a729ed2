//! `watchbell store import`

use std::path::PathBuf;

use clap::Args;

use super::super::Context;
use crate::store::offline;

/// Make a store of exported lines
///
/// Watchbell must be stopped. Every line is checked first, and every bad one is named; then all of
/// it is imported, or nothing.
#[derive(Args)]
pub(super) struct Import {
    /// What `watchbell store export` has written
    file: PathBuf,
    /// Also where there is a store, which is then kept under another name
    #[arg(long)]
    replace: bool,
}

impl Import {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let config = super::config(&context)?;
        super::refuse_running(&data_dir)?;
        let (counts, kept) = offline::import(&data_dir, &self.file, self.replace, &config)?;
        let out = context.out;
        writeln!(out, "imported: {}", super::tables(&counts))?;
        if let Some(kept) = kept {
            writeln!(out, "the store that was there is kept in {}", kept.display())?;
        }
        Ok(())
    }
}
