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
        let compacted = offline::compact(&data_dir, &config)?;
        let (before, after) = (text::bytes(compacted.before), text::bytes(compacted.after));
        if compacted.is_replaced {
            writeln!(context.out, "db: {before} before, {after} now")?;
        } else {
            writeln!(
                context.out,
                "db: {before}, and {after} if it were rewritten: it stays as it is"
            )?;
        }
        Ok(())
    }
}
