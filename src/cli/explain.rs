//! `watchbell explain`: why somebody was told, or was not, from publish to outcome.
//!
//! The API has the words; here they get their layout.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::alert::{Alert, one_of};
use super::client::{Client, level};
use super::silence::Silence;
use super::{Context, block_on, text};
use crate::clock::Timestamp;
use crate::span::Span;

const EXAMPLES: &str = "\
Examples:
  watchbell explain 5d1e                        an alert or a message, by its id or a part of it
  watchbell explain --contact ana --since 12h   all that concerned Ana
  watchbell explain --contact ana --topic site/kiel/freezer/1/telemetry
  watchbell explain --topic 'site/kiel/#' --since 7d
  watchbell explain --rule freezer-warm --key kiel/1

Why did Ana get nothing for freezer 1 last night? Ask with --contact and --topic, or --rule and
--key. The last line of the answer is what it comes to.";

/// How many alerts and messages the part of an id is looked for in.
const PAGE: usize = 500;

/// Why somebody was told, or was not
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Explain {
    /// An alert or a message, by its id or enough of the beginning or end of it
    #[arg(conflicts_with_all = ["contact", "topic", "rule", "key", "since"])]
    id: Option<String>,
    /// What concerned this contact
    #[arg(long, value_name = "NAME")]
    contact: Option<String>,
    /// What was published on this topic, or on all that an MQTT filter matches
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Alerts of this rule
    #[arg(long)]
    rule: Option<String>,
    /// Of this instance key
    #[arg(long)]
    key: Option<String>,
    /// How far back, as 12h [default: 24h]
    #[arg(long, value_name = "TIME")]
    since: Option<Span>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Answer {
    since: Option<String>,
    contact: Option<Contact>,
    rules: Vec<Rule>,
    rules_total: usize,
    silences: Vec<Silence>,
    lanes: Vec<Lane>,
    timeline: Vec<Entry>,
    left_out: usize,
    conclusion: String,
}

#[derive(Deserialize)]
struct Contact {
    name: String,
    known: bool,
    channels: Vec<String>,
    quiet: bool,
    quiet_until: Option<String>,
}

/// A provider that takes nothing now.
#[derive(Deserialize)]
struct Lane {
    provider: String,
    state: String,
    reason: Option<String>,
    detail: Option<String>,
    until: Option<String>,
}

#[derive(Deserialize)]
struct Rule {
    name: String,
    topic: String,
    to: Vec<String>,
    clauses: Vec<String>,
    shadow: bool,
    instances: Vec<Instance>,
    instances_total: usize,
    failures: BTreeMap<String, u64>,
    passed: BTreeMap<String, u64>,
    troubles: Vec<Trouble>,
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Trouble {
    at: String,
    topic: Option<String>,
    reason: String,
    detail: String,
    times: u64,
}

#[derive(Deserialize)]
struct Instance {
    key: String,
    seen_at: Option<String>,
    silent_at: Option<String>,
    alert: Option<Alert>,
}

#[derive(Deserialize)]
struct Sample {
    at: String,
    topic: String,
    head: String,
    bytes: usize,
    detail: String,
}

#[derive(Deserialize)]
struct Entry {
    at: String,
    why: Option<String>,
    text: String,
}

impl Explain {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let now = context.clock.now();
        block_on(async {
            let client = Client::connect(&data_dir).await?;
            let answer: Value = client.get(&self.path(&client).await?).await?;
            let out = context.out;
            if self.json {
                return text::json(out, &answer);
            }
            Answer::deserialize(answer)?.write(now, out)
        })
    }

    async fn path(&self, client: &Client) -> anyhow::Result<String> {
        if let Some(part) = &self.id {
            return Ok(format!("/v1/explain?id={}", resolve(client, part).await?));
        }
        let since = self.since.unwrap_or(Span::from_secs(24 * 3600));
        let mut path = format!("/v1/explain?since={since}");
        let fields = [
            ("contact", &self.contact),
            ("topic", &self.topic),
            ("rule", &self.rule),
            ("key", &self.key),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", level(value)));
            }
        }
        Ok(path)
    }
}

/// The whole id for a part of it: of an alert that fires, of a message, or of an alert that one of
/// the newest messages tells of.
async fn resolve(client: &Client, part: &str) -> anyhow::Result<String> {
    let part = part.to_ascii_lowercase();
    if part.parse::<uuid::Uuid>().is_ok() {
        return Ok(part);
    }
    let alerts: Value = client.get(&format!("/v1/alerts?limit={PAGE}")).await?;
    let messages: Value = client.get(&format!("/v1/messages?limit={PAGE}")).await?;
    let list = |page: &Value, name: &str| page[name].as_array().cloned().unwrap_or_default();
    let (alerts, messages) = (list(&alerts, "alerts"), list(&messages, "messages"));
    let ids = alerts.iter().chain(&messages).map(|one| &one["id"]);
    let ids = ids.chain(messages.iter().map(|one| &one["alert"]["id"]));
    let ids = ids.filter_map(Value::as_str).map(str::to_owned);
    one_of(ids, &part, "alert or message")
}

impl Answer {
    fn write(&self, now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
        if let Some(contact) = self.contact.as_ref().filter(|contact| contact.known) {
            contact.write(out)?;
        }
        for rule in &self.rules {
            rule.write(now, out)?;
        }
        if self.rules_total > self.rules.len() {
            writeln!(out, "and {} rules more", self.rules_total - self.rules.len())?;
        }
        for silence in &self.silences {
            writeln!(out, "silence {}", silence.line())?;
        }
        for lane in &self.lanes {
            let Lane { provider, state, reason, detail, until } = lane;
            let why: Vec<&str> =
                [reason, detail].into_iter().flatten().map(String::as_str).collect();
            let until = until.as_ref().map(|until| text::distance(until, now));
            let until = until.map_or_else(String::new, |until| format!("; tried again {until}"));
            let (state, why) = (state.replace('_', " "), text::cut(&why.join(", "), 200));
            writeln!(out, "provider {provider} is {state}: {why}{until}")?;
        }
        if let Some(since) = &self.since {
            writeln!(out, "\nsince {}:", text::seconds(since))?;
        } else {
            writeln!(out)?;
        }
        if self.timeline.is_empty() {
            writeln!(out, "  nothing was raised, decided or sent")?;
        }
        if self.left_out > 0 {
            writeln!(out, "  … {} older lines; ask for less", self.left_out)?;
        }
        for entry in &self.timeline {
            writeln!(out, "  {}  {}", text::seconds(&entry.at), text::cut(&entry.text, 400))?;
            if let Some(why) = &entry.why {
                writeln!(out, "  {:20}    {why}", "")?;
            }
        }
        writeln!(out, "\n{}", self.conclusion)?;
        Ok(())
    }
}

impl Contact {
    fn write(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let channels =
            if self.channels.is_empty() { "nothing".to_owned() } else { self.channels.join(", ") };
        let quiet = match (&self.quiet_until, self.quiet) {
            (Some(until), _) => format!("; quiet hours until {}", text::seconds(until)),
            (None, true) => "; quiet hours, not now".to_owned(),
            (None, false) => String::new(),
        };
        writeln!(out, "contact {}, reached by {channels}{quiet}", self.name)?;
        Ok(())
    }
}

impl Rule {
    fn write(&self, now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
        let shadow = if self.shadow { ", in shadow mode" } else { "" };
        writeln!(out, "rule {}{shadow} looks at {}", self.name, self.topic)?;
        for clause in &self.clauses {
            writeln!(out, "  {clause}")?;
        }
        let to = if self.to.is_empty() { "nobody".to_owned() } else { self.to.join(", ") };
        writeln!(out, "  tells {to}")?;
        for (reason, count) in &self.failures {
            writeln!(out, "  without a result since the start: {count} {reason}")?;
        }
        for trouble in &self.troubles {
            let Trouble { reason, detail, times, .. } = trouble;
            let at = text::seconds(&trouble.at);
            let on = trouble.topic.as_ref().map_or_else(String::new, |topic| format!(", {topic}"));
            let times = if *times > 1 { format!(", {times} times") } else { String::new() };
            writeln!(out, "  {reason} at {at}{on}{times}: {}", text::cut(detail, 400))?;
        }
        for (reason, count) in &self.passed {
            writeln!(out, "  passed over since the start: {count} {reason}")?;
        }
        for sample in &self.samples {
            let Sample { topic, bytes, detail, .. } = sample;
            let at = text::seconds(&sample.at);
            writeln!(out, "  not decoded at {at}, {topic}, {bytes} bytes: {detail}")?;
            writeln!(out, "    {}", text::cut(&sample.head, 80))?;
        }
        for instance in &self.instances {
            let key = if instance.key.is_empty() { "its instance" } else { &instance.key };
            writeln!(out, "  {key}: {}", instance.stands(now))?;
        }
        let more = self.instances_total.saturating_sub(self.instances.len());
        if more > 0 {
            writeln!(out, "  and {more} instances more")?;
        }
        Ok(())
    }
}

impl Instance {
    fn stands(&self, now: Timestamp) -> String {
        let heard = match &self.seen_at {
            Some(at) => format!("heard of {}", text::distance(at, now)),
            None => "never heard of".to_owned(),
        };
        if let Some(alert) = &self.alert {
            return format!("{}, {heard}; alert {}", alert.brief(now), alert.id);
        }
        match &self.silent_at {
            Some(at) => format!("{heard}, silent for too long {}", text::distance(at, now)),
            None => format!("nothing holds, {heard}"),
        }
    }
}
