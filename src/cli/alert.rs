//! `watchbell alert`: what fires or is about to, who knows of it, and what to do about it.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, level};
use super::outbox::at_least_one;
use super::{Context, block_on, text};
use crate::clock::Timestamp;
use crate::model::Severity;

const EXAMPLES: &str = "\
Examples:
  watchbell alert list
  watchbell alert list --state firing --severity critical
  watchbell alert show 5d1e                 the end or the beginning of an id will do
  watchbell alert ack 5d1e --by ana --note 'on my way'
  watchbell alert forget 5d1e               a device that is gone: nobody is told

An alert is firing, acknowledged or pending: pending ones fire when their `for` has passed.
To have nobody told for a while: watchbell silence add --alert ID.
Why it is so: watchbell explain ID.";

/// How many alerts the part of an id is looked for in.
const PAGE: usize = 500;

/// Look at what fires; acknowledge it
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Alerts {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    /// Nobody has acknowledged it
    Firing,
    /// Somebody takes care of it
    Acknowledged,
    /// It fires if this goes on
    Pending,
}

#[derive(Subcommand)]
enum Command {
    /// Show alerts: those that nobody has acknowledged first, and of these the worst
    List {
        /// Only those that stand so; may be repeated
        #[arg(long)]
        state: Vec<State>,
        /// Only of this rule
        #[arg(long)]
        rule: Option<String>,
        /// Only of this instance key
        #[arg(long)]
        key: Option<String>,
        /// Only so urgent; may be repeated
        #[arg(long)]
        severity: Vec<Severity>,
        /// At most so many
        #[arg(long, default_value_t = 50, value_parser = at_least_one)]
        limit: usize,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Show one alert, and who was told of it or is held
    Show {
        /// Its id, or enough of the beginning or end of it
        id: String,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Say that somebody takes care of it: it is not repeated any more
    Ack {
        /// Its id, or enough of the beginning or end of it
        id: String,
        /// Who takes care of it
        #[arg(long, value_name = "NAME")]
        by: String,
        /// A note for the others
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Have its instance forgotten, as if it had never been heard of
    Forget {
        /// Its id, or enough of the beginning or end of it
        id: String,
    },
}

/// An alert as the API shows it.
#[derive(Deserialize)]
pub(super) struct Alert {
    pub(super) id: String,
    state: String,
    rule: String,
    key: String,
    severity: String,
    labels: BTreeMap<String, String>,
    topic: String,
    text: String,
    since: String,
    next_at: Option<String>,
    seen_at: Option<String>,
    ack: Option<Ack>,
    shadow: bool,
    told: Vec<Told>,
}

#[derive(Deserialize)]
struct Ack {
    by: String,
    at: String,
    note: Option<String>,
}

#[derive(Deserialize)]
struct Told {
    contact: String,
    knows: Option<String>,
    held: Option<Held>,
    repeat_at: Option<String>,
    #[serde(default)]
    message: Option<Message>,
}

/// What became of the message that told it.
#[derive(Deserialize)]
struct Message {
    channel: String,
    status: String,
    reason: Option<String>,
}

#[derive(Deserialize)]
struct Held {
    reason: String,
    until: Option<String>,
    detail: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    alerts: Vec<Alert>,
    total: usize,
}

impl Alerts {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let now = context.clock.now();
        block_on(async {
            let client = Client::connect(&data_dir).await?;
            let out = context.out;
            match self.command {
                Command::List { state, rule, key, severity, limit, json } => {
                    let mut path = format!("/v1/alerts?limit={limit}");
                    let mut add = |name: &str, value: &str| {
                        path.push_str(&format!("&{name}={}", level(value)));
                    };
                    state.iter().for_each(|state| add("state", state.word()));
                    rule.iter().for_each(|rule| add("rule", rule));
                    key.iter().for_each(|key| add("key", key));
                    severity.iter().for_each(|severity| add("severity", severity.as_str()));
                    if json {
                        return text::json(out, &client.get::<Value>(&path).await?);
                    }
                    list(&client.get(&path).await?, limit, now, out)
                }
                Command::Show { id, json } => {
                    let path = format!("/v1/alerts/{}", resolve(&client, &id).await?);
                    if json {
                        return text::json(out, &client.get::<Value>(&path).await?);
                    }
                    client.get::<Alert>(&path).await?.show(now, out)
                }
                Command::Ack { id, by, note } => {
                    let id = resolve(&client, &id).await?;
                    let body = json!({ "by": by, "note": note });
                    let path = format!("/v1/alerts/{id}/ack");
                    let alert: Alert = client.post(&path, Some(&body)).await?;
                    writeln!(out, "{id}  {}, acknowledged by {by}", alert.name())?;
                    Ok(())
                }
                Command::Forget { id } => {
                    let id = resolve(&client, &id).await?;
                    client.command(&format!("/v1/alerts/{id}/forget")).await?;
                    writeln!(out, "{id}  forgotten; nobody is told")?;
                    Ok(())
                }
            }
        })
    }
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Acknowledged => "acknowledged",
            Self::Pending => "pending",
        }
    }
}

fn list(page: &Page, limit: usize, now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
    if page.alerts.is_empty() {
        writeln!(out, "There are no such alerts.")?;
        return Ok(());
    }
    let row = |alert: &Alert| {
        vec![
            alert.id.clone(),
            alert.stands(now),
            alert.severity.clone(),
            text::seconds(&alert.since),
            alert.name(),
            alert.told_briefly(),
            text::cut(&alert.text, 40),
        ]
    };
    let rows: Vec<_> = page.alerts.iter().map(row).collect();
    text::table(out, &["ID", "STATE", "SEVERITY", "SINCE", "ALERT", "TOLD", "TEXT"], &rows)?;
    if page.total > page.alerts.len() {
        let total = page.total;
        // What was asked for may be more than one answer holds.
        let is_most = page.alerts.len() < limit;
        let more = if is_most { "" } else { &format!("--limit {total}, or ") };
        writeln!(out, "There are {total} in all: {more}narrow the list.")?;
    }
    Ok(())
}

impl Alert {
    /// `freezer-warm kiel/1`
    fn name(&self) -> String {
        format!("{} {}", self.rule, self.key).trim_end().to_owned()
    }

    /// How it stands: `firing since ..., critical`.
    pub(super) fn brief(&self, now: Timestamp) -> String {
        let since = text::seconds(&self.since);
        let next = match (self.state.as_str(), &self.next_at) {
            ("pending", Some(at)) => format!(", fires {}", text::distance(at, now)),
            _ => String::new(),
        };
        format!("{} since {since}, {}{next}", self.state, self.severity)
    }

    fn stands(&self, now: Timestamp) -> String {
        match (self.state.as_str(), &self.next_at) {
            ("pending", Some(at)) => format!("fires {}", text::distance(at, now)),
            _ => self.state.clone(),
        }
    }

    /// Who was told, and who is held and why.
    fn told_briefly(&self) -> String {
        if self.shadow {
            return "shadow".to_owned();
        }
        let one = |told: &Told| match (&told.held, &told.knows) {
            (Some(held), _) => format!("{}: {}", told.contact, held.reason),
            (None, Some(_)) => match told.message.as_ref().filter(|message| !message.is_sent()) {
                Some(message) => format!("{}: {}", told.contact, message.status),
                None => told.contact.clone(),
            },
            (None, None) => format!("{}: nothing", told.contact),
        };
        let told: Vec<String> = self.told.iter().map(one).collect();
        if told.is_empty() { "-".to_owned() } else { text::cut(&told.join(", "), 40) }
    }

    fn show(&self, now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
        let when = |time: &str| format!("{} ({})", text::seconds(time), text::distance(time, now));
        writeln!(out, "alert {}", self.id)?;
        writeln!(out, "  rule      {}", self.name())?;
        let shadow = if self.shadow { ", in shadow: nobody is told" } else { "" };
        writeln!(out, "  state     {}, {}{shadow}", self.state, self.severity)?;
        writeln!(out, "  since     {}", when(&self.since))?;
        if let Some(at) = &self.next_at {
            let what = if self.state == "pending" { "fires" } else { "changes" };
            writeln!(out, "  {what:8}  {}", when(at))?;
        }
        if let Some(at) = &self.seen_at {
            writeln!(out, "  heard of  {}", when(at))?;
        }
        writeln!(out, "  topic     {}", self.topic)?;
        let labels: Vec<String> =
            self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !labels.is_empty() {
            writeln!(out, "  labels    {}", labels.join(", "))?;
        }
        if !self.text.is_empty() {
            writeln!(out, "  text      {}", text::cut(&self.text, 2000))?;
        }
        if let Some(ack) = &self.ack {
            let note = ack.note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
            writeln!(out, "  ack       by {} at {}{note}", ack.by, text::seconds(&ack.at))?;
        }
        for told in &self.told {
            writeln!(out, "  told      {}", told.line(now))?;
        }
        Ok(())
    }
}

impl Message {
    /// Whether a provider has it.
    fn is_sent(&self) -> bool {
        matches!(self.status.as_str(), "sent" | "delivered" | "read")
    }
}

impl Told {
    fn line(&self, now: Timestamp) -> String {
        let mut line = match &self.knows {
            Some(knows) => format!("{}: {knows}", self.contact),
            None => format!("{}: nothing", self.contact),
        };
        if let Some(message) = &self.message {
            let Message { channel, status, reason } = message;
            line.push_str(&format!(", {channel} {status}"));
            if let Some(reason) = reason.as_ref().filter(|_| !message.is_sent()) {
                line.push_str(&format!(": {reason}"));
            }
        }
        if let Some(held) = &self.held {
            line.push_str(&format!("; held: {}", held.reason));
            match (&held.detail, &held.until) {
                (Some(detail), _) => line.push_str(&format!(", {detail}")),
                (None, Some(until)) => line.push_str(&format!(", {}", text::distance(until, now))),
                (None, None) => {}
            }
        }
        if let Some(at) = &self.repeat_at {
            line.push_str(&format!("; again {}", text::distance(at, now)));
        }
        line
    }
}

/// The whole id for a part of it: a UUID as it is, else what one of the alerts begins or ends with.
pub(super) async fn resolve(client: &Client, part: &str) -> anyhow::Result<String> {
    let part = part.to_ascii_lowercase();
    if part.parse::<uuid::Uuid>().is_ok() {
        return Ok(part);
    }
    let page: Page = client.get(&format!("/v1/alerts?limit={PAGE}")).await?;
    one_of(page.alerts.iter().map(|alert| alert.id.clone()), &part, "alert")
}

/// The one id that begins or ends with `part`.
pub(super) fn one_of(
    ids: impl Iterator<Item = String>,
    part: &str,
    what: &str,
) -> anyhow::Result<String> {
    if part.len() < 4 || !part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        bail!(
            "`{part}` is no {what} id; write the id, or 4 or more characters of its beginning or end"
        );
    }
    let mut found: Vec<String> =
        ids.filter(|id| id.starts_with(part) || id.ends_with(part)).collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("no {what} now has an id that begins or ends with {part}; write the whole id"),
        several => {
            let ids: Vec<&str> = several.iter().take(5).map(String::as_str).collect();
            bail!("{part} could be any of {}; write more of it", ids.join(", "))
        }
    }
}
