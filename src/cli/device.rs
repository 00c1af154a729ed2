//! `watchbell device`: devices that log in with user name and password, and clients that are
//! connected.
//!
//! Goes through the running instance; where none runs, straight to the store, so that devices can
//! be prepared before the first start. A password is read from standard input or made here; it
//! never stands on the command line, where every user of the machine could read it.

use std::io::{Read as _, Write};
use std::path::Path;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client::{Client, level};
use super::{Context, block_on, text};
use crate::api::{Credential, credential};
use crate::secret::Secret;
use crate::store::Store;
use crate::telemetry::Metrics;

/// Clients are read by pages of so many.
const PAGE: usize = 500;

const EXAMPLES: &str = "\
Examples:
  watchbell device add pump-7                       the password is made and shown once
  watchbell device add pump-8 --group pumps         for [[access]] entries about the group pumps
  watchbell device add gateway --client-id 'gw-*'   may use every client id that begins with gw-
  pass show pump-7 | watchbell device add pump-7 --password-stdin
  watchbell device remove pump-7
  watchbell device list --online                    who is connected now, whatever it logged in with
  watchbell device list --online --identity gateway --json
  watchbell device disconnect pump-7                it may connect again at once: first take its
                                                    password away to keep it out";

/// Devices: those that log in with a password, and those that are connected
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Device {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a device, or give one that is there a new password
    Add {
        /// The user name
        #[arg(value_name = "NAME")]
        name: String,
        /// A client id that it may use, exact or with `*`; may be repeated [default: its name]
        #[arg(long = "client-id", value_name = "PATTERN")]
        client_ids: Vec<String>,
        /// A group that it is in, for who.group of an access table; may be repeated
        #[arg(long = "group", value_name = "NAME")]
        groups: Vec<String>,
        /// Read the password from standard input instead of making one
        #[arg(long)]
        password_stdin: bool,
    },
    /// Show the devices that log in with a password; or with --online all that are connected
    List {
        /// Show the clients that are connected to the running instance
        #[arg(long)]
        online: bool,
        /// Only of this identity: the name in the certificate, else the user name
        #[arg(long, requires = "online", value_name = "NAME")]
        identity: Option<String>,
        /// Only whose client id begins so
        #[arg(long, requires = "online", value_name = "TEXT")]
        prefix: Option<String>,
        /// Only of this listener, by its name: mqtt, mqtts, or that of a `[[listener]]`
        #[arg(long, requires = "online", value_name = "ADDRESS")]
        listener: Option<String>,
        /// At most so many [default: all]
        #[arg(long, requires = "online", value_parser = super::outbox::at_least_one)]
        limit: Option<usize>,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Disconnect a client; its session stays, its will is published
    Disconnect {
        /// Its client id
        #[arg(value_name = "CLIENT_ID")]
        client_id: String,
    },
    /// Remove a device
    Remove {
        /// The user name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

/// A connected client as the API shows it.
#[derive(Serialize, Deserialize)]
struct Online {
    client_id: String,
    identity: Option<String>,
    address: String,
    listener: String,
    version: String,
    since: String,
    subscriptions: u64,
    queued: u64,
    in_flight: u64,
}

#[derive(Deserialize)]
struct OnlinePage {
    clients: Vec<Online>,
    next: Option<String>,
}

/// A device as the API shows it.
#[derive(Serialize, Deserialize)]
struct Row {
    user: String,
    client_ids: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    added_at: String,
}

#[derive(Deserialize)]
struct Rows {
    devices: Vec<Row>,
}

impl Device {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        block_on(async move {
            let client = Client::find(&data_dir).await?;
            let client = client.as_ref();
            match self.command {
                Command::Add { name, client_ids, groups, password_stdin } => {
                    let password = if password_stdin { Some(read_password()?) } else { None };
                    let wanted = Credential { user: name, password, client_ids, groups };
                    add(client, &data_dir, wanted, context).await
                }
                Command::List { online: true, identity, prefix, listener, limit, json } => {
                    let client = Client::connect(&data_dir).await?;
                    let filters = filters([
                        ("identity", identity),
                        ("prefix", prefix),
                        ("listener", listener),
                    ]);
                    let limit = limit.unwrap_or(usize::MAX);
                    list_online(&client, &filters, limit, json, context).await
                }
                Command::List { json, .. } => list(client, &data_dir, json, context).await,
                Command::Disconnect { client_id } => {
                    let client = Client::connect(&data_dir).await?;
                    disconnect(&client, &client_id, context.out).await
                }
                Command::Remove { name } => remove(client, &data_dir, &name, context).await,
            }
        })
    }
}

async fn add(
    client: Option<&Client>,
    data_dir: &Path,
    wanted: Credential,
    context: Context<'_>,
) -> anyhow::Result<()> {
    #[derive(Deserialize)]
    struct Added {
        user: String,
        client_ids: Vec<String>,
        #[serde(default)]
        groups: Vec<String>,
        password: Option<String>,
    }
    let made = wanted.password.is_none();
    let added = match client {
        Some(client) => {
            let mut body = json!({
                "user": wanted.user,
                "client_ids": wanted.client_ids,
                "groups": wanted.groups,
            });
            if let Some(password) = &wanted.password {
                body["password"] = password.expose().into();
            }
            client.post::<Added>("/v1/devices", Some(&body)).await?
        }
        None => {
            let (device, password) = credential(wanted, context.clock.now())?;
            let store = open(data_dir, &context)?;
            store.put_device(&device).await?;
            store.close().await?;
            Added {
                user: device.user,
                client_ids: device.client_ids,
                groups: device.groups,
                password: made.then(|| password.expose().to_owned()),
            }
        }
    };
    let port = context.tls_port();
    let (out, user) = (context.out, &added.user);
    write!(out, "device {user}, client ids {}", added.client_ids.join(", "))?;
    match added.groups.join(", ") {
        groups if groups.is_empty() => writeln!(out)?,
        groups => writeln!(out, ", groups {groups}")?,
    }
    if let Some(password) = added.password {
        writeln!(out, "password {password}")?;
        writeln!(out, "It is shown this once; add the device again for a new one.")?;
    }
    let id = added.client_ids.iter().find(|id| !id.contains('*'));
    let id = id.or(added.client_ids.first()).unwrap_or(user).replace('*', "1");
    writeln!(out, "\nPublish as the device:")?;
    writeln!(
        out,
        "  mosquitto_pub -h localhost -p {port} --cafile certs/ca.pem -u {user} -P PASSWORD -i {id} -q 1 -t devices/{id}/status -m up"
    )?;
    Ok(())
}

async fn list(
    client: Option<&Client>,
    data_dir: &Path,
    json: bool,
    context: Context<'_>,
) -> anyhow::Result<()> {
    let rows = match client {
        Some(client) => client.get::<Rows>("/v1/devices").await?.devices,
        None => {
            let store = open(data_dir, &context)?;
            let devices = store.devices()?;
            store.close().await?;
            let row = |device: crate::store::Device| Row {
                user: device.user,
                client_ids: device.client_ids,
                groups: device.groups,
                added_at: device.added_at.to_string(),
            };
            devices.into_iter().map(row).collect()
        }
    };
    let out = context.out;
    if json {
        text::json(out, &rows)?;
    } else if rows.is_empty() {
        writeln!(out, "There are no devices; add one with `watchbell device add NAME`.")?;
    } else {
        let row = |row: &Row| {
            vec![
                row.user.clone(),
                row.client_ids.join(", "),
                row.groups.join(", "),
                text::seconds(&row.added_at),
            ]
        };
        let rows: Vec<_> = rows.iter().map(row).collect();
        text::table(out, &["DEVICE", "CLIENT IDS", "GROUPS", "ADDED"], &rows)?;
    }
    Ok(())
}

async fn list_online(
    client: &Client,
    filters: &str,
    limit: usize,
    json: bool,
    context: Context<'_>,
) -> anyhow::Result<()> {
    let mut rows: Vec<Online> = Vec::new();
    let mut after = String::new();
    while rows.len() < limit {
        let wanted = (limit - rows.len()).min(PAGE);
        let path = format!("/v1/clients?limit={wanted}{filters}{after}");
        let page: OnlinePage = client.get(&path).await?;
        rows.extend(page.clients);
        match page.next {
            Some(next) => after = format!("&after={}", level(&next)),
            None => break,
        }
    }
    let out = context.out;
    if json {
        return text::json(out, &rows);
    }
    if rows.is_empty() {
        let what = if filters.is_empty() { "is connected" } else { "that fits is connected" };
        writeln!(out, "No client {what}.")?;
        return Ok(());
    }
    let row = |row: &Online| {
        vec![
            row.client_id.clone(),
            row.identity.clone().unwrap_or_else(|| "-".to_owned()),
            row.address.clone(),
            row.listener.clone(),
            row.version.clone(),
            text::seconds(&row.since),
            row.subscriptions.to_string(),
            row.queued.to_string(),
            row.in_flight.to_string(),
        ]
    };
    let rows: Vec<_> = rows.iter().map(row).collect();
    let head = [
        "CLIENT ID",
        "IDENTITY",
        "ADDRESS",
        "LISTENER",
        "MQTT",
        "SINCE",
        "SUBSCRIPTIONS",
        "QUEUED",
        "IN FLIGHT",
    ];
    text::table(out, &head, &rows)?;
    Ok(())
}

/// What `GET /v1/clients` is to be asked, after its limit.
fn filters(pairs: [(&str, Option<String>); 3]) -> String {
    let pair = |(key, value): (&str, Option<String>)| Some(format!("&{key}={}", level(&value?)));
    pairs.into_iter().filter_map(pair).collect()
}

async fn disconnect(client: &Client, client_id: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    client.command(&format!("/v1/clients/{}/disconnect", level(client_id))).await?;
    writeln!(out, "{client_id} is told to go; nothing keeps it from connecting again")?;
    Ok(())
}

async fn remove(
    client: Option<&Client>,
    data_dir: &Path,
    name: &str,
    context: Context<'_>,
) -> anyhow::Result<()> {
    match client {
        Some(client) => client.delete(&format!("/v1/devices/{}", level(name))).await?,
        None => {
            let store = open(data_dir, &context)?;
            let known = store.remove_device(name).await?;
            store.close().await?;
            anyhow::ensure!(
                known,
                "there is no device `{name}`; `watchbell device list` shows them"
            );
        }
    }
    writeln!(context.out, "removed {name}; its next connection is refused")?;
    Ok(())
}

fn open(data_dir: &Path, context: &Context<'_>) -> anyhow::Result<Store> {
    let config = crate::config::store(&context.layers).map_err(super::problems)?;
    Ok(Store::open(data_dir, &config, &Metrics::new())?)
}

fn read_password() -> anyhow::Result<Secret> {
    let mut text = String::new();
    // A little more than the longest password: what is longer is refused, not cut.
    std::io::stdin()
        .take(1024)
        .read_to_string(&mut text)
        .context("reading the password from standard input")?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(text.strip_suffix('\r').unwrap_or(text)))
}
