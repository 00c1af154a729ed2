//! `watchbell certs`: certificates for a first try and for devices.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Context, text};
use crate::certs::{self, Pair};

const EXAMPLES: &str = "\
Examples:
  watchbell certs init --host broker.example.org --host 192.168.1.7
  watchbell certs client pump-7
  watchbell certs list

The CA's key signs every certificate: keep certs/ca.key safe, and off devices. A device gets
ca.pem, and its own .pem and .key.";

/// Make and list TLS certificates
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Certs {
    #[command(subcommand)]
    command: Command,
    /// Where the certificates are
    #[arg(long, global = true, value_name = "DIR", default_value = certs::DIRECTORY)]
    dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Make a CA, if there is none, and a server certificate
    Init {
        /// A name or address of this server, beside localhost and this machine's name; may be
        /// repeated. The first one becomes the subject
        #[arg(long = "host", value_name = "NAME")]
        hosts: Vec<String>,
        /// Replace the server certificate; the CA stays, so devices need nothing new
        #[arg(long)]
        force: bool,
    },
    /// Make a client certificate, by which a device logs in
    Client {
        /// The device's client id, which is also its identity in the access rules
        #[arg(value_name = "ID")]
        id: String,
        /// Replace the one that is there
        #[arg(long)]
        force: bool,
    },
    /// Show what is there, and when it ends
    List {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
}

impl Certs {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let now = context.clock.now();
        let (dir, out) = (self.dir.as_path(), context.out);
        match self.command {
            Command::Init { hosts, force } => {
                let made = certs::init(dir, &hosts, force, now)?;
                for path in &made.written {
                    writeln!(out, "wrote {}", path.display())?;
                }
                if made.ca_kept {
                    writeln!(out, "The CA is the one that was there: devices need nothing new.")?;
                }
                writeln!(out, "A running watchbell takes them at its next start.")?;
                writeln!(out, "Next: `watchbell certs client ID` for each device.")?;
            }
            Command::Client { id, force } => {
                let pair = certs::client(dir, &id, force, now)?;
                let ca = Pair::of(dir, "ca").cert;
                writeln!(out, "wrote {}", pair.cert.display())?;
                writeln!(out, "wrote {}", pair.key.display())?;
                writeln!(out, "\nPublish with it:")?;
                writeln!(
                    out,
                    "  mosquitto_pub -h localhost -p 8883 --cafile {} --cert {} --key {} -i {id} -q 1 -t devices/{id}/status -m up",
                    ca.display(),
                    pair.cert.display(),
                    pair.key.display(),
                )?;
            }
            Command::List { json } => {
                let listed = certs::list(dir, now)?;
                if json {
                    return text::json(out, &listed);
                }
                let rows: Vec<Vec<String>> = listed
                    .iter()
                    .map(|one| {
                        let ends = match one.days_left {
                            days @ ..0 => format!("ended {} days ago", -days),
                            days => format!("in {days} days"),
                        };
                        vec![
                            one.file.display().to_string(),
                            one.subject.clone(),
                            ends,
                            one.names.join(", "),
                        ]
                    })
                    .collect();
                text::table(out, &["FILE", "SUBJECT", "ENDS", "NAMES"], &rows)?;
            }
        }
        Ok(())
    }
}
