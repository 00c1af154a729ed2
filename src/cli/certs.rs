//! `watchbell certs`: a small CA: certificates for a first try, for a site, and for its devices.
//!
//! Works on files alone; nothing has to run. Exit code 3 says that `list --expiring` has found
//! something, so that a timer can tell it from a failure.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use rcgen::RevocationReason;

use super::{Context, Due, text};
use crate::certs::crl::{self, Published, REASONS, Revoked};
use crate::certs::issue::{self, Issued, Order, Renewal, Request};
use crate::certs::ledger::{self, Listed, State};
use crate::certs::{self, Init, Pair};
use crate::span::Span;

const EXAMPLES: &str = "\
Examples:
  watchbell certs init --name 'Kiel site' --intermediate --host broker.example.org
  watchbell certs issue pump-7 pump-8
  watchbell certs issue pump-9 --csr pump-9.csr      the device keeps its key
  watchbell certs renew --expiring 30d
  watchbell certs revoke pump-7 --reason keyCompromise
  watchbell certs list --expiring 30d || mail -s 'certificates end' ops@example.org
  xargs watchbell certs issue < names.txt

A device gets ca.pem, and its own .pem and .key. A CA's key signs in its name and has no other
protection than the permissions of its file: keep it off devices. With an issuing CA, ca.key can
be put away offline until the issuing CA is replaced. All of it: docs/certificates.md.";

/// Make, list, renew and revoke TLS certificates
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
        /// The CA's name [default: Watchbell CA of this machine]
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        /// Days that the CA counts, 1 to 10950 [default: 3650]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10950))]
        days: Option<u16>,
        /// Make an issuing CA below the root, also a root that is there; then the root's key can
        /// be put away
        #[arg(long)]
        intermediate: bool,
        /// Replace the server certificate; the CA stays, so devices need nothing new
        #[arg(long)]
        force: bool,
    },
    /// Issue certificates, by which devices log in
    #[command(visible_alias = "client")]
    Issue(Issue),
    /// Issue new certificates for names that have one; the key stays
    Renew(Renew),
    /// Revoke a certificate, and write the list of revoked ones, crl.pem
    Revoke {
        /// A name: all its certificates that still count; or one serial number
        #[arg(value_name = "NAME|SERIAL")]
        wanted: String,
        /// Why: unspecified, keyCompromise, cACompromise, affiliationChanged, superseded,
        /// cessationOfOperation or privilegeWithdrawn
        #[arg(long, default_value = "unspecified", hide_default_value = true, value_parser = reason)]
        reason: RevocationReason,
    },
    /// Write crl.pem again before it ends, or for the first time
    Crl {
        /// Days that it counts, 1 to 3650
        #[arg(long, value_name = "N", default_value_t = crl::DAYS, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
    },
    /// Show what was issued, what it is worth, and when it ends
    List {
        /// Only what is in use and ends within this time, or has ended; exit code 3 if there is any
        #[arg(long, value_name = "TIME")]
        expiring: Option<Span>,
        /// Only what is revoked
        #[arg(long, conflicts_with = "expiring")]
        revoked: bool,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Issue {
    /// Names: of a device its client id, which is also its identity in the access rules. With --csr
    /// it may be left out: then it is the request's
    #[arg(value_name = "NAME", required_unless_present = "csr")]
    names: Vec<String>,
    /// For a server, as another broker or a proxy
    #[arg(long)]
    server: bool,
    /// A further host name; may be repeated
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// A further address; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// A further name as a URI; may be repeated
    #[arg(long, value_name = "URI")]
    uri: Vec<String>,
    /// Days that it counts, 1 to 10950, never longer than its CA [default: 397]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10950))]
    days: Option<u16>,
    /// A certificate signing request (PEM) of a device that keeps its key. Only the key is taken
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    /// Replace the one that is there; it counts until it ends, or is revoked
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct Renew {
    /// Names, as `certs list` shows them
    #[arg(value_name = "NAME", required_unless_present = "expiring", conflicts_with = "expiring")]
    names: Vec<String>,
    /// Every certificate in use that ends within this time
    #[arg(long, value_name = "TIME")]
    expiring: Option<Span>,
    /// With a new key, made here
    #[arg(long, conflicts_with = "csr")]
    new_key: bool,
    /// With the key of this certificate signing request (PEM)
    #[arg(long, value_name = "FILE", conflicts_with = "expiring")]
    csr: Option<PathBuf>,
    /// Days that it counts, 1 to 10950 [default: as many as before]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10950))]
    days: Option<u16>,
    /// Revoke the earlier ones, which otherwise count until they end
    #[arg(long)]
    revoke_old: bool,
}

fn reason(word: &str) -> Result<RevocationReason, String> {
    let words = || REASONS.map(|(name, _)| name).join(", ");
    crl::reason_named(word).ok_or_else(|| format!("one of {}", words()))
}

impl Certs {
    pub(super) fn run(self, mut context: Context<'_>) -> anyhow::Result<()> {
        let dir = self.dir.as_path();
        match self.command {
            Command::Init { hosts, name, days, intermediate, force } => {
                init(dir, &Init { hosts, name, days, intermediate, force }, context)
            }
            Command::Issue(wanted) => wanted.run(dir, &mut context),
            Command::Renew(wanted) => wanted.run(dir, context),
            Command::Revoke { wanted, reason } => {
                let revoked = crl::revoke(dir, &wanted, reason, context.clock.now())?;
                let known = names_crl(&context);
                say_revoked(&revoked, known, context)
            }
            Command::Crl { days } => {
                let published = crl::publish(dir, days, context.clock.now())?;
                let known = names_crl(&context);
                say_published(&published, known, context)
            }
            Command::List { expiring, revoked, json } => {
                list(dir, expiring, revoked, json, context)
            }
        }
    }
}

fn init(dir: &Path, wanted: &Init, context: Context<'_>) -> anyhow::Result<()> {
    let made = certs::init(dir, wanted, context.clock.now())?;
    let out = context.out;
    for path in &made.written {
        writeln!(out, "wrote {}", path.display())?;
    }
    if made.ca_kept {
        writeln!(out, "The CA is the one that was there: devices need nothing new.")?;
    }
    if wanted.intermediate {
        writeln!(
            out,
            "Now copy {} to a safe place offline, and delete it here: the issuing CA signs.",
            Pair::of(dir, "ca").key.display()
        )?;
    }
    writeln!(out, "Next: `watchbell certs issue NAME` for each device.")?;
    Ok(())
}

impl Issue {
    fn run(self, dir: &Path, context: &mut Context<'_>) -> anyhow::Result<()> {
        let request = self.csr.as_deref().map(read_request).transpose()?;
        let asked = match &request {
            Some(text) => Request::read(text)?.name,
            None => None,
        };
        let names = match (self.names, &asked) {
            (names, Some(asked)) if names.is_empty() => vec![asked.clone()],
            (names, _) if names.is_empty() => {
                bail!("the request has no common name; give the certificate's NAME before --csr")
            }
            (names, _) => names,
        };
        let own = !self.dns.is_empty() || !self.ip.is_empty() || !self.uri.is_empty();
        if names.len() > 1 && (own || request.is_some()) {
            bail!(
                "--dns, --ip, --uri and --csr belong to one certificate; issue one NAME at a time"
            );
        }
        let mut hosts = self.dns;
        hosts.extend(self.ip.iter().map(IpAddr::to_string));
        let now = context.clock.now();
        let one = names.len() == 1;
        for name in names {
            let order = Order {
                name,
                server: self.server,
                hosts: hosts.clone(),
                uris: self.uri.clone(),
                days: self.days,
                request: request.clone(),
                force: self.force,
            };
            let issued = issue::issue(dir, &order, now)?;
            say_issued(&issued, context.out)?;
            if let Some(asked) = asked.as_ref().filter(|asked| **asked != issued.name) {
                let name = &issued.name;
                writeln!(context.out, "The request names {asked}; the certificate is for {name}.")?;
            }
            if let (true, false, Some(key)) = (one, self.server, &issued.key) {
                let (id, port) = (&issued.name, context.tls_port());
                let (ca, cert) = (Pair::of(dir, "ca").cert, issued.cert.display());
                writeln!(context.out, "\nPublish with it:")?;
                writeln!(
                    context.out,
                    "  mosquitto_pub -h localhost -p {port} --cafile {} --cert {cert} --key {} -i {id} -q 1 -t devices/{id}/status -m up",
                    ca.display(),
                    key.display(),
                )?;
            }
        }
        Ok(())
    }
}

impl Renew {
    fn run(self, dir: &Path, context: Context<'_>) -> anyhow::Result<()> {
        let now = context.clock.now();
        let names = match self.expiring {
            Some(within) => ledger::due(dir, days(within), now)?,
            None => self.names,
        };
        if names.is_empty() {
            writeln!(context.out, "Nothing ends in that time.")?;
            return Ok(());
        }
        if names.len() > 1 && self.csr.is_some() {
            bail!("--csr belongs to one certificate; renew one NAME at a time");
        }
        let renewal = Renewal {
            new_key: self.new_key,
            request: self.csr.as_deref().map(read_request).transpose()?,
            days: self.days,
            revoke_old: self.revoke_old,
        };
        let mut published = None;
        for name in &names {
            let issued = issue::renew(dir, name, &renewal, now)?;
            say_issued(&issued, context.out)?;
            if let Some(Revoked { certificates, published: list }) = issued.revoked {
                for (name, serial) in &certificates {
                    writeln!(context.out, "revoked {name} {serial}")?;
                }
                published = Some(list);
            }
        }
        match published {
            Some(published) => {
                let known = names_crl(&context);
                say_published(&published, known, context)
            }
            None => {
                writeln!(context.out, "Those before count until they end, or are revoked.")?;
                Ok(())
            }
        }
    }
}

fn read_request(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn say_issued(issued: &Issued, out: &mut dyn std::io::Write) -> std::io::Result<()> {
    writeln!(out, "wrote {}", issued.cert.display())?;
    if let Some(key) = &issued.key {
        writeln!(out, "wrote {}", key.display())?;
    }
    let with = if issued.cut { ", with its CA" } else { "" };
    let ends = text::seconds(&issued.ends.to_string());
    writeln!(out, "{} ends {ends}{with}; serial {}", issued.name, issued.serial)
}

fn say_revoked(revoked: &Revoked, known: bool, context: Context<'_>) -> anyhow::Result<()> {
    for (name, serial) in &revoked.certificates {
        writeln!(context.out, "revoked {name} {serial}")?;
    }
    say_published(&revoked.published, known, context)
}

fn say_published(published: &Published, known: bool, context: Context<'_>) -> anyhow::Result<()> {
    let out = context.out;
    let (path, ends) = (published.path.display(), text::seconds(&published.ends.to_string()));
    let (number, revoked) = (published.number, published.revoked);
    writeln!(out, "wrote {path}: number {number}, {revoked} revoked, ends {ends}")?;
    for key in &published.without {
        writeln!(out, "{} is elsewhere: the list of that CA stays as it was.", key.display())?;
    }
    writeln!(out, "Next: `watchbell certs crl` before it ends.")?;
    if !known {
        writeln!(
            out,
            "Next: name it in watchbell.toml, so that the broker refuses what is on it:"
        )?;
        writeln!(out, "  broker.crl = {path}")?;
    }
    Ok(())
}

/// Whether the configuration names a CRL. One that cannot be read does not matter here.
fn names_crl(context: &Context<'_>) -> bool {
    crate::config::names_crl(&context.layers)
}

fn days(span: Span) -> i64 {
    i64::try_from(span.get().as_secs().div_ceil(86_400)).unwrap_or(i64::MAX)
}

fn list(
    dir: &Path,
    expiring: Option<Span>,
    revoked: bool,
    json: bool,
    context: Context<'_>,
) -> anyhow::Result<()> {
    let out = context.out;
    let (mut listed, problems) = ledger::list(dir, context.clock.now())?;
    if let Some(within) = expiring {
        listed.retain(|one| one.is_due(days(within)));
    }
    if revoked {
        listed.retain(|one| one.state == State::Revoked);
    }
    if json {
        text::json(out, &listed)?;
    } else if listed.is_empty() {
        let what = match (expiring, revoked) {
            (Some(_), _) => "Nothing ends in that time.",
            (None, true) => "Nothing is revoked.",
            (None, false) => "There are no certificates; `watchbell certs init` makes the first.",
        };
        writeln!(out, "{what}")?;
    } else {
        let rows: Vec<Vec<String>> = listed.iter().map(row).collect();
        text::table(out, &["NAME", "KIND", "STATE", "ENDS", "SERIAL", "FILE", "NAMES"], &rows)?;
    }
    if !problems.is_empty() {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!(lines.join("\n"));
    }
    if expiring.is_some() && !listed.is_empty() {
        return Err(Due.into());
    }
    Ok(())
}

fn row(one: &Listed) -> Vec<String> {
    let ends = match one.days_left {
        days @ ..0 => format!("ended {} days ago", -days),
        days => format!("in {days} days"),
    };
    let state = match one.reason {
        Some(reason) => format!("revoked: {reason}"),
        None => one.state.as_str().to_owned(),
    };
    // A CA has no other names, and people know it by this one.
    let names = match one.names.as_slice() {
        [] => one.subject.clone(),
        names => names.join(", "),
    };
    vec![
        one.name.clone(),
        one.kind.as_str().to_owned(),
        state,
        ends,
        one.serial.clone(),
        one.file.display().to_string(),
        names,
    ]
}
