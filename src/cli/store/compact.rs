//! `watchbell store compact`

use clap::Args;

use super::super::{Context, text};
use crate::store::offline;

/// Rewrite the store, without the room that deleted rows took
///
/// Watchbell must be stopped. It needs room for a second copy of the rows.
#[derive(Args)]
pub(super) struct Compact {}

impl Compact {
    #[expect(clippy::unused_self, reason = "as all commands")]
    pub(super) fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let config = super::config(context)?;
        super::refuse_running(&data_dir)?;
        let (before, after) = offline::compact(&data_dir, &config)?;
        writeln!(context.out, "db: {} before, {} now", text::bytes(before), text::bytes(after))?;
        Ok(())
    }
}
