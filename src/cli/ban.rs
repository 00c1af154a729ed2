//! `watchbell ban`: who is not let in.
//!
//! Goes through the running instance, which disconnects at once whom a new ban is about; where none
//! runs, straight to the store.

use std::path::Path;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{Client, level};
use super::{Context, block_on, text};
use crate::clock::Timestamp;
use crate::clock::machine::Source;
use crate::network::Network;
use crate::span::Span;
use crate::store::{Ban, BanKind, Store};
use crate::telemetry::Metrics;

const EXAMPLES: &str = "\
Examples:
  watchbell ban add --client-id pump-7 --why 'stolen on 23 November'
  watchbell ban add --address 203.0.113.0/24 --for 12h
  watchbell ban add --user 'guest-*'
  watchbell ban remove --client-id pump-7

A connected client that a ban is about is disconnected. Bans survive a restart.";

/// Keep somebody out: a client, an identity, a user, an address
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Bans {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a ban, or change one that is there
    Add {
        #[command(flatten)]
        whom: Whom,
        /// How long, as 1h or 7d [default: until it is removed]
        #[arg(long = "for", value_name = "TIME")]
        lasts: Option<Span>,
        /// A note for people who see the list
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        why: String,
    },
    /// Show the bans
    List {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Remove a ban
    Remove {
        #[command(flatten)]
        whom: Whom,
    },
}

/// Whom a ban is about.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// The MQTT client id; `*` stands for any characters
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// The name in the certificate or token; `*` stands for any characters
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// The user name; `*` stands for any characters
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// An address, or a range as 10.0.0.0/8
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Network>,
}

impl Whom {
    fn take(self) -> (BanKind, String) {
        let Self { client_id, identity, user, address } = self;
        let address = address.map(|address| address.to_string());
        let named = [
            (BanKind::ClientId, client_id),
            (BanKind::Identity, identity),
            (BanKind::User, user),
            (BanKind::Address, address),
        ];
        let mut named = named.into_iter().filter_map(|(kind, value)| Some((kind, value?)));
        named.next().expect("clap has insisted on one")
    }
}

/// A ban as the API shows it.
#[derive(Serialize, Deserialize)]
struct Row {
    kind: String,
    value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    why: String,
    added_at: String,
}

impl Row {
    fn of(ban: &Ban) -> Self {
        Self {
            kind: ban.kind.as_str().to_owned(),
            value: ban.value.clone(),
            until: ban.until.map(|until| until.to_string()),
            why: ban.why.clone(),
            added_at: ban.added_at.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct Rows {
    bans: Vec<Row>,
}

impl Bans {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        block_on(async move {
            let client = Client::find(&data_dir).await?;
            let client = client.as_ref();
            match self.command {
                Command::Add { whom, lasts, why } => {
                    add(client, &data_dir, whom.take(), lasts, why, context).await
                }
                Command::List { json } => list(client, &data_dir, json, context).await,
                Command::Remove { whom } => remove(client, &data_dir, whom.take(), context).await,
            }
        })
    }
}

/// The time that rows of the store are of.
fn now(store: &Store) -> anyhow::Result<Timestamp> {
    Ok(crate::intake::clock(store, Source::machine())?.0.now())
}

async fn add(
    client: Option<&Client>,
    data_dir: &Path,
    (kind, value): (BanKind, String),
    lasts: Option<Span>,
    why: String,
    context: Context<'_>,
) -> anyhow::Result<()> {
    let row = match client {
        Some(client) => {
            let mut body = json!({ "kind": kind.as_str(), "value": value, "why": why });
            if let Some(lasts) = lasts {
                body["for"] = lasts.to_string().into();
            }
            client.post::<Row>("/v1/bans", Some(&body)).await?
        }
        None => {
            let store = open(data_dir, &context)?;
            let now = now(&store)?;
            let until = lasts.map(|lasts| now.plus(lasts.get()));
            let ban = Ban { kind, value, until, why, added_at: now };
            let ban = ban.checked().map_err(anyhow::Error::msg)?;
            store.put_ban(&ban).await?;
            store.close().await?;
            Row::of(&ban)
        }
    };
    let until = match &row.until {
        Some(until) => format!("until {}", text::seconds(until)),
        None => "until it is removed".to_owned(),
    };
    writeln!(context.out, "banned {} {} {until}", row.kind, row.value)?;
    Ok(())
}

async fn list(
    client: Option<&Client>,
    data_dir: &Path,
    json: bool,
    context: Context<'_>,
) -> anyhow::Result<()> {
    let rows = match client {
        Some(client) => client.get::<Rows>("/v1/bans").await?.bans,
        None => {
            let store = open(data_dir, &context)?;
            let bans = store.bans(now(&store)?)?;
            store.close().await?;
            bans.iter().map(Row::of).collect()
        }
    };
    let out = context.out;
    if json {
        text::json(out, &rows)?;
    } else if rows.is_empty() {
        writeln!(out, "Nobody is banned.")?;
    } else {
        let row = |row: &Row| {
            let until = row.until.as_deref().map_or("removed".to_owned(), text::seconds);
            let added_at = text::seconds(&row.added_at);
            vec![row.kind.clone(), row.value.clone(), until, added_at, row.why.clone()]
        };
        let rows: Vec<_> = rows.iter().map(row).collect();
        text::table(out, &["KIND", "VALUE", "UNTIL", "ADDED", "WHY"], &rows)?;
    }
    Ok(())
}

async fn remove(
    client: Option<&Client>,
    data_dir: &Path,
    (kind, value): (BanKind, String),
    context: Context<'_>,
) -> anyhow::Result<()> {
    let name = kind.as_str();
    match client {
        Some(client) => client.delete(&format!("/v1/bans/{name}/{}", level(&value))).await?,
        None => {
            let store = open(data_dir, &context)?;
            let known = store.remove_ban(kind, &value).await?;
            store.close().await?;
            anyhow::ensure!(
                known,
                "there is no ban on {name} `{value}`; `watchbell ban list` shows them"
            );
        }
    }
    writeln!(context.out, "{name} {value} is no longer banned")?;
    Ok(())
}

fn open(data_dir: &Path, context: &Context<'_>) -> anyhow::Result<Store> {
    let config = crate::config::store(&context.layers).map_err(super::problems)?;
    Ok(Store::open(data_dir, &config, &Metrics::new())?)
}
