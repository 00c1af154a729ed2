//! `watchbell store export`

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::super::client::Client;
use super::super::{Context, block_on};
use crate::problem::counted;
use crate::store::offline;

/// Write every row as a line of JSON
///
/// Phone numbers and texts are in it, unmasked: keep it as you keep the store.
#[derive(Args)]
pub(super) struct Export {
    /// A file that does not exist yet
    file: PathBuf,
}

impl Export {
    pub(super) fn run(self, context: &mut Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let config = super::config(context)?;
        let exported = block_on(async {
            // Of a running process the copy comes first, because rows change while they are read.
            match Client::find(&data_dir).await? {
                Some(client) => {
                    let copy = self.file.with_extension("copying");
                    super::copy_running(&client, &copy, &config).await?;
                    let exported = self.write(&copy, &config);
                    std::fs::remove_dir_all(&copy)
                        .with_context(|| format!("removing {}", copy.display()))?;
                    exported
                }
                None => self.write(&data_dir, &config),
            }
        })?;
        writeln!(context.out, "{}: {}", self.file.display(), counted(exported, "row"))?;
        Ok(())
    }

    fn write(&self, data_dir: &Path, config: &crate::store::Config) -> anyhow::Result<u64> {
        let at = || self.file.display().to_string();
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.file)
            .with_context(at)?;
        let mut out = BufWriter::new(file);
        let written = offline::export(data_dir, &mut out, config).map_err(anyhow::Error::from);
        let written = written.and_then(|rows| {
            out.flush().with_context(at)?;
            out.get_ref().sync_all().with_context(at)?;
            Ok(rows)
        });
        if written.is_err() {
            drop(std::fs::remove_file(&self.file));
        }
        written
    }
}
