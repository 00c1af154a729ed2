//! `watchbell store repair`

use clap::Args;

use super::super::Context;
use crate::problem::counted;
use crate::store::offline;

/// Write all that can be read into a new store, and keep the damaged one beside it
///
/// Watchbell must be stopped. It needs room for a second copy of the rows.
#[derive(Args)]
pub(super) struct Repair {}

impl Repair {
    #[expect(clippy::unused_self, reason = "as all commands")]
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let config = super::config(&context)?;
        super::refuse_running(&data_dir)?;
        let repaired = offline::repair(&data_dir, &config)?;
        let out = context.out;
        writeln!(out, "{}", repaired.words())?;
        for (offset, bytes) in &repaired.places {
            writeln!(
                out,
                "  db: {} from byte {offset} on cannot be read",
                counted(*bytes, "byte")
            )?;
        }
        if let Some(mark) = &repaired.mark {
            writeln!(out, "the high-water mark said: {mark}")?;
        }
        writeln!(out, "the store as it was is kept in {}", repaired.kept.display())?;
        if repaired.is_whole() {
            writeln!(out, "Nothing is known to be missing. Start Watchbell.")?;
        } else {
            writeln!(
                out,
                "Something is missing: compare with the last backup. Start Watchbell; delete {} \
                 and store.damage.txt when nobody needs them any more.",
                repaired.kept.display()
            )?;
        }
        Ok(())
    }
}
