//! `watchbell outbox`: what waits, what became of it, and what to do about it.

use std::io::Write;

use anyhow::{anyhow, bail};
use clap::{Args, Subcommand};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::Client;
use super::{Context, block_on, text};
use crate::clock::Timestamp;
use crate::model::{Channel, Status};

const EXAMPLES: &str = "\
Examples:
  watchbell outbox list
  watchbell outbox list --status failed --channel sms
  watchbell outbox show 5d1e                the end or the beginning of an id will do
  watchbell outbox retry 5d1e
  watchbell outbox retry --all-failed
  watchbell outbox resume twilio-main       its account is in order again: do not wait, try now

A message is queued, sending, sent, delivered, read; or undelivered, failed, expired, canceled.";

/// How many of the newest messages the part of an id is looked for in, and pages are read by.
const PAGE: usize = 500;

/// Look into the outbox; retry and cancel messages
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Outbox {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show messages, the newest first
    List {
        /// Only with this status; may be repeated
        #[arg(long)]
        status: Vec<Status>,
        /// Only of this channel
        #[arg(long)]
        channel: Option<Channel>,
        /// Only of alerts of this rule
        #[arg(long)]
        rule: Option<String>,
        /// Only to this contact
        #[arg(long)]
        contact: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 20, value_parser = at_least_one)]
        limit: usize,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Show one message with everything that happened to it
    Show {
        /// Its id, or enough of the beginning or end of it
        id: String,
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// Send a message again that has failed or expired, or that waits
    Retry {
        /// Its id, or enough of the beginning or end of it
        #[arg(required_unless_present = "all_failed")]
        id: Option<String>,
        /// All that have failed
        #[arg(long, conflicts_with = "id")]
        all_failed: bool,
    },
    /// Withdraw a message that no provider has taken
    Cancel {
        /// Its id, or enough of the beginning or end of it
        id: String,
    },
    /// Let a provider that is stopped, paused or left alone try again at once
    Resume {
        /// Its name in the configuration, as `watchbell status` shows it
        provider: String,
    },
}

/// Reads a number that is not 0.
pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| *limit > 0).ok_or_else(|| "a whole number from 1".to_owned())
}

/// A page of messages, as the API answers it.
#[derive(Serialize, Deserialize)]
struct Page<M = Message> {
    messages: Vec<M>,
    next: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    id: String,
    status: String,
    reason: Option<String>,
    detail: Option<String>,
    channel: String,
    address: String,
    contact: Option<String>,
    severity: String,
    title: Option<String>,
    text: String,
    alert: Option<Alert>,
    segments: Option<Value>,
    created_at: String,
    updated_at: String,
    expires_at: String,
    due_at: Option<String>,
    provider: Option<String>,
    provider_ref: Option<String>,
    attempt_count: u32,
    then: Vec<Target>,
    #[serde(default)]
    fallback: Option<Fallback>,
    #[serde(default)]
    attempts: Vec<Attempt>,
}

#[derive(Serialize, Deserialize)]
struct Alert {
    id: String,
    rule: String,
    key: String,
    state: String,
    topic: String,
}

#[derive(Serialize, Deserialize)]
struct Target {
    channel: String,
    address: String,
}

#[derive(Serialize, Deserialize)]
struct Fallback {
    before: Option<String>,
    next: Option<String>,
    unheard_at: Option<String>,
    notes: Vec<Note>,
}

#[derive(Serialize, Deserialize)]
struct Note {
    at: String,
    text: String,
}

#[derive(Serialize, Deserialize)]
struct Attempt {
    number: u32,
    provider: String,
    started_at: String,
    ended_at: Option<String>,
    outcome: String,
    reason: Option<String>,
    detail: Option<String>,
}

impl Outbox {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let now = context.clock.now();
        block_on(async {
            let client = Client::connect(&data_dir).await?;
            let out = context.out;
            match self.command {
                Command::List { status, channel, rule, contact, limit, json } => {
                    let query = Query { status, channel, rule, contact };
                    list(&client, &query, limit, json, out).await
                }
                Command::Show { id, json } => {
                    let path = format!("/v1/messages/{}", resolve(&client, &id).await?);
                    if json {
                        let message: Value = client.get(&path).await?;
                        return text::json(out, &message);
                    }
                    show(&client.get(&path).await?, now, out)
                }
                Command::Retry { id: Some(id), .. } => {
                    let id = resolve(&client, &id).await?;
                    act(&client, &id, "retry", out).await
                }
                Command::Retry { id: None, .. } => retry_all_failed(&client, out).await,
                Command::Cancel { id } => {
                    let id = resolve(&client, &id).await?;
                    act(&client, &id, "cancel", out).await
                }
                Command::Resume { provider } => {
                    let path = format!("/v1/providers/{}/resume", super::client::level(&provider));
                    client.command(&path).await?;
                    writeln!(out, "{provider} is tried again now; see `watchbell status`")?;
                    Ok(())
                }
            }
        })
    }
}

#[derive(Default)]
struct Query {
    status: Vec<Status>,
    channel: Option<Channel>,
    rule: Option<String>,
    contact: Option<String>,
}

impl Query {
    fn path(&self, limit: usize, before: Option<&str>) -> String {
        let mut path = format!("/v1/messages?limit={limit}");
        let mut add = |key: &str, value: &str| {
            path.push_str(&format!("&{key}={}", super::client::level(value)));
        };
        for status in &self.status {
            add("status", status.as_str());
        }
        self.channel.iter().for_each(|channel| add("channel", channel.as_str()));
        self.rule.iter().for_each(|rule| add("rule", rule));
        self.contact.iter().for_each(|contact| add("contact", contact));
        before.iter().for_each(|before| add("before", before));
        path
    }
}

async fn list(
    client: &Client,
    query: &Query,
    limit: usize,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    if json {
        return text::json(out, &Value::from(pages::<Value>(client, query, limit).await?.messages));
    }
    let page: Page<Message> = pages(client, query, limit).await?;
    if page.messages.is_empty() {
        writeln!(out, "There are no such messages.")?;
        return Ok(());
    }
    let row = |message: &Message| {
        let status = format!("{}{}", message.status, because(message));
        let rule = message.alert.as_ref().map_or("-", |alert| &alert.rule);
        vec![
            message.id.clone(),
            text::seconds(&message.created_at),
            status,
            message.channel.clone(),
            message.contact.clone().unwrap_or_else(|| message.address.clone()),
            rule.to_owned(),
            text::cut(&message.text, 40),
        ]
    };
    // Ids of the same second or so stand in no order.
    let mut newest: Vec<&Message> = page.messages.iter().collect();
    newest.sort_by(|one, other| other.created_at.cmp(&one.created_at));
    let rows: Vec<_> = newest.into_iter().map(row).collect();
    text::table(out, &["ID", "CREATED", "STATUS", "BY", "TO", "RULE", "TEXT"], &rows)?;
    if page.next.is_some() {
        writeln!(out, "There are more: --limit {}, or narrow the list.", limit.saturating_mul(5))?;
    }
    Ok(())
}

/// The newest `limit` messages: in as many answers as the API's page size makes it.
async fn pages<M: DeserializeOwned>(
    client: &Client,
    query: &Query,
    limit: usize,
) -> anyhow::Result<Page<M>> {
    let mut all = Page { messages: Vec::new(), next: None };
    loop {
        let left = limit - all.messages.len();
        let page: Page<M> = client.get(&query.path(left, all.next.as_deref())).await?;
        all.messages.extend(page.messages);
        all.next = page.next;
        if all.next.is_none() || all.messages.len() >= limit {
            return Ok(all);
        }
    }
}

/// Why it stands as it does, where its status does not say so itself.
fn because(message: &Message) -> String {
    match &message.reason {
        Some(reason) if *reason != message.status => format!(": {reason}"),
        _ => String::new(),
    }
}

fn show(message: &Message, now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
    let because = because(message);
    writeln!(out, "message {}", message.id)?;
    writeln!(out, "  status    {}{because}", message.status)?;
    if let Some(detail) = &message.detail {
        writeln!(out, "            {}", text::cut(detail, 300))?;
    }
    let whom = match &message.contact {
        Some(contact) => format!("{contact}, {}", message.address),
        None => message.address.clone(),
    };
    writeln!(out, "  to        {whom}, by {}", message.channel)?;
    if let Some(alert) = &message.alert {
        let key = if alert.key.is_empty() { String::new() } else { format!(" ({})", alert.key) };
        writeln!(out, "  alert     {}{key} {}, from {}", alert.rule, alert.state, alert.topic)?;
    }
    writeln!(out, "  severity  {}", message.severity)?;
    if let Some(title) = &message.title {
        writeln!(out, "  title     {}", text::cut(title, 300))?;
    }
    writeln!(out, "  text      {}", text::cut(&message.text, 2000))?;
    let expiry = text::distance(&message.expires_at, now);
    writeln!(out, "  expires   {} ({expiry})", text::seconds(&message.expires_at))?;
    for target in &message.then {
        writeln!(out, "  then      {} by {}", target.address, target.channel)?;
    }
    if let Some(fallback) = &message.fallback {
        for (what, id) in [("before", &fallback.before), ("also", &fallback.next)] {
            if let Some(id) = id {
                writeln!(out, "  {what:9} message {id}")?;
            }
        }
    }
    if let Some(provider) = &message.provider {
        let reference = message.provider_ref.as_deref().unwrap_or("no id");
        writeln!(out, "  taken by  {provider} ({reference})")?;
    }

    writeln!(out, "\n  {}  entered the outbox", message.created_at)?;
    let kept = message.attempts.len();
    let earlier = usize::try_from(message.attempt_count).unwrap_or(kept).saturating_sub(kept);
    if earlier > 0 {
        writeln!(out, "  {:24}  {earlier} attempts before the latest {kept}", "…")?;
    }
    let mut lines: Vec<(&str, String)> = Vec::new();
    for attempt in &message.attempts {
        let what = format!("attempt {} by {}", attempt.number, attempt.provider);
        lines.push((&attempt.started_at, format!("{what} started")));
        let because = [attempt.reason.as_deref(), attempt.detail.as_deref()];
        let because: Vec<&str> = because.into_iter().flatten().collect();
        let outcome = match attempt.outcome.as_str() {
            "accepted" => "taken by the provider".to_owned(),
            "retry" => format!("not taken, tried again: {}", because.join(": ")),
            "rejected" => format!("refused: {}", because.join(": ")),
            "unknown" => format!("it may have been sent, nobody knows: {}", because.join(": ")),
            _ => "no outcome yet".to_owned(),
        };
        let ended = attempt.ended_at.as_deref().unwrap_or("…");
        lines.push((ended, format!("{what}: {}", text::cut(&outcome, 300))));
    }
    for note in message.fallback.iter().flat_map(|fallback| &fallback.notes) {
        lines.push((&note.at, text::cut(&note.text, 300)));
    }
    // RFC 3339 of one length sorts as text, and what has no time yet comes last.
    lines.sort_by_key(|(at, _)| *at);
    for (at, line) in lines {
        writeln!(out, "  {at:24}  {line}")?;
    }
    if let Some(due) = &message.due_at {
        let distance = text::distance(due, now);
        let when =
            if distance.ends_with("ago") { "now".to_owned() } else { format!("({distance})") };
        writeln!(out, "  {due}  next attempt due {when}")?;
    } else if message.status != "sending" {
        writeln!(out, "  {}  {}{because}", message.updated_at, message.status)?;
    }
    Ok(())
}

async fn act(client: &Client, id: &str, what: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    let message: Message = client.post(&format!("/v1/messages/{id}/{what}"), None).await?;
    writeln!(out, "{id}  {}", message.status)?;
    Ok(())
}

async fn retry_all_failed(client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
    let query = Query { status: vec![Status::Failed], ..Query::default() };
    let (mut before, mut retried, mut refused) = (None::<String>, 0_usize, 0_usize);
    loop {
        let page: Page = client.get(&query.path(PAGE, before.as_deref())).await?;
        for message in &page.messages {
            match act(client, &message.id, "retry", out).await {
                Ok(()) => retried += 1,
                Err(error) => {
                    refused += 1;
                    writeln!(out, "{}  {error}", message.id)?;
                }
            }
        }
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    writeln!(out, "{retried} messages will be sent again")?;
    if refused > 0 {
        bail!("{refused} messages could not be put back");
    }
    Ok(())
}

/// The whole id for a part of it: a UUID as it is, else what one of the newest messages begins or
/// ends with.
async fn resolve(client: &Client, part: &str) -> anyhow::Result<String> {
    let part = part.to_ascii_lowercase();
    if part.parse::<uuid::Uuid>().is_ok() {
        return Ok(part);
    }
    if part.len() < 4 || !part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        bail!(
            "`{part}` is no message id; write the id, or 4 or more characters of its beginning or end"
        );
    }
    let page: Page = client.get(&Query::default().path(PAGE, None)).await?;
    let matching: Vec<&Message> = page
        .messages
        .iter()
        .filter(|message| message.id.starts_with(&part) || message.id.ends_with(&part))
        .collect();
    match matching.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => Err(anyhow!(
            "none of the newest {} messages has an id that begins or ends with {part}",
            page.messages.len()
        )),
        several => {
            let ids: Vec<&str> = several.iter().take(5).map(|one| one.id.as_str()).collect();
            Err(anyhow!("{part} could be any of {}; write more of it", ids.join(", ")))
        }
    }
}
