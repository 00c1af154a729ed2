//! `watchbell status`: the running instance at a glance.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::client::Client;
use super::{Context, block_on, text};
use crate::clock::Timestamp;

const EXAMPLES: &str = "\
Examples:
  watchbell status
  watchbell status --json | jq .outbox.waiting";

/// How the running instance is
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Status {
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Answer {
    version: String,
    run: String,
    listeners: Vec<Listener>,
    uptime_secs: u64,
    reason: Option<String>,
    alerts: Alerts,
    outbox: Outbox,
    lanes: Vec<Lane>,
    #[serde(default)]
    people: People,
    #[serde(default)]
    upstreams: Vec<Upstream>,
    rules: Rules,
    disk_free_bytes: Option<u64>,
    #[serde(default)]
    sending_held: bool,
    data_dir: String,
    #[serde(default)]
    clock_problem: Option<String>,
    certificate_problems: Vec<String>,
    #[serde(default)]
    store_problems: Vec<String>,
}

#[derive(Deserialize)]
struct Listener {
    name: String,
    protocol: String,
    address: String,
}

#[derive(Deserialize)]
struct Alerts {
    firing: u64,
    pending: u64,
    silences: u64,
}

#[derive(Deserialize)]
struct Outbox {
    waiting: usize,
    oldest_at: Option<String>,
    dead: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Lane {
    provider: String,
    kind: String,
    channels: Vec<String>,
    state: String,
    reason: Option<String>,
    detail: Option<String>,
    until: Option<String>,
    in_flight: usize,
    ready: usize,
    #[serde(default)]
    warning: Option<String>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    name: String,
    state: String,
    reason: String,
    detail: String,
    until: String,
    waiting: usize,
}

#[derive(Default, Deserialize)]
struct People {
    unreached: Vec<Unreached>,
    fallback: Vec<String>,
}

#[derive(Deserialize)]
struct Unreached {
    contact: String,
    since: String,
    messages: u64,
    why: String,
}

#[derive(Deserialize)]
struct Upstream {
    name: String,
    connected: bool,
    since: String,
    address: String,
    reason: Option<String>,
    refused: Vec<String>,
    /// Publishes that wait for it; none where nothing goes to it.
    queued: Option<usize>,
}

#[derive(Deserialize)]
struct Rules {
    rules: Vec<Rule>,
    loaded_at: String,
    problems: Vec<String>,
}

#[derive(Deserialize)]
struct Rule {
    name: String,
    shadow: bool,
}

impl Status {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let now = context.clock.now();
        let answer: Value =
            block_on(async { Client::connect(&data_dir).await?.get("/v1/status").await })?;
        let out = context.out;
        if self.json {
            return text::json(out, &answer);
        }
        Answer::deserialize(answer)?.write(now, out)
    }
}

impl Answer {
    fn write(&self, now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
        let up = text::length(Duration::from_secs(self.uptime_secs));
        let ready = match &self.reason {
            None => "ready".to_owned(),
            Some(reason) => format!("NOT READY: {reason}"),
        };
        writeln!(out, "watchbell {}, up {up}, {ready}", self.version)?;
        writeln!(out, "run      {}", self.run)?;
        let free = self.disk_free_bytes.map_or("unknown".to_owned(), text::bytes);
        writeln!(out, "data     {}, {free} free", self.data_dir)?;
        if self.sending_held {
            writeln!(
                out,
                "         SENDING IS HELD: the disk is full, and what is sent could not be noted; free at least 64 MiB"
            )?;
        }
        let listeners: Vec<String> = self.listeners.iter().map(Listener::text).collect();
        writeln!(out, "listens  {}", listeners.join(", "))?;
        if let Some(problem) = &self.clock_problem {
            writeln!(out, "clock    {problem}")?;
        }
        for problem in &self.store_problems {
            writeln!(out, "         STORE: {problem}")?;
        }
        for problem in &self.certificate_problems {
            writeln!(out, "         changed certificates refused: {problem}")?;
        }
        let loaded = text::distance(&self.rules.loaded_at, now);
        writeln!(out, "rules    {} in force, loaded {loaded}", self.rules.rules.len())?;
        for problem in &self.rules.problems {
            writeln!(out, "         last reload refused: {problem}")?;
        }
        let shadow: Vec<&str> = self
            .rules
            .rules
            .iter()
            .filter(|rule| rule.shadow)
            .map(|rule| rule.name.as_str())
            .collect();
        if !shadow.is_empty() {
            writeln!(out, "         in shadow, nobody is told: {}", shadow.join(", "))?;
        }
        let Alerts { firing, pending, silences } = self.alerts;
        let silences = match silences {
            0 => String::new(),
            1 => "; 1 silence in force".to_owned(),
            several => format!("; {several} silences in force"),
        };
        writeln!(out, "alerts   {firing} firing, {pending} pending{silences}")?;
        let dead: Vec<String> =
            self.outbox.dead.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let dead = match dead.as_slice() {
            [] => String::new(),
            dead => format!("; dead since the start: {}", dead.join(", ")),
        };
        let oldest = self.outbox.oldest_at.as_deref();
        let oldest = oldest
            .map_or(String::new(), |at| format!(", the oldest came {}", text::distance(at, now)));
        writeln!(out, "outbox   {} waiting{oldest}{dead}", self.outbox.waiting)?;
        self.people.write(now, out)?;
        writeln!(out)?;
        let rows: Vec<Vec<String>> = self.lanes.iter().map(|lane| lane.row(now)).collect();
        let head = ["LANE", "KIND", "CHANNELS", "STATE", "IN FLIGHT", "READY", "WHY"];
        text::table(out, &head, &rows)?;
        let endpoints: Vec<Vec<String>> = self
            .lanes
            .iter()
            .flat_map(|lane| lane.endpoints.iter().map(|endpoint| endpoint.row(lane, now)))
            .collect();
        if !endpoints.is_empty() {
            writeln!(out)?;
            text::table(out, &["ENDPOINT", "LANE", "STATE", "WAITING", "WHY"], &endpoints)?;
        }
        if !self.upstreams.is_empty() {
            let rows: Vec<Vec<String>> =
                self.upstreams.iter().map(|upstream| upstream.row(now)).collect();
            writeln!(out)?;
            text::table(out, &["UPSTREAM", "STATE", "SINCE", "ADDRESS", "QUEUED", "WHY"], &rows)?;
        }
        let stopped = self.lanes.iter().filter(|lane| lane.state == "stopped");
        let stopped: Vec<&str> = stopped.map(|lane| lane.provider.as_str()).collect();
        if let Some(first) = stopped.first() {
            let (refuse, each) = if stopped.len() == 1 {
                ("refuses", String::new())
            } else {
                ("refuse", " and so on for each".to_owned())
            };
            writeln!(
                out,
                "\n{} {refuse} our account or configuration; nothing is lost. Set it right there, then `watchbell outbox resume {first}`{each}, or wait: it is tried again by itself. Restart after a change here.",
                stopped.join(", ")
            )?;
        }
        Ok(())
    }
}

impl People {
    fn write(&self, now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
        let hears = match self.fallback.as_slice() {
            [] => {
                "nobody is told when somebody cannot be reached: set [notify] fallback".to_owned()
            }
            names => format!("{} told when somebody cannot be reached", names.join(", ")),
        };
        match self.unreached.as_slice() {
            [] => writeln!(out, "people   {hears}")?,
            people => {
                writeln!(out, "people   CANNOT BE REACHED: {}; {hears}", people.len())?;
                for one in people.iter().take(10) {
                    let since = text::distance(&one.since, now);
                    let messages = text::counted(usize::try_from(one.messages)?, "message");
                    writeln!(
                        out,
                        "         {}, {messages}, since {since}: {}",
                        one.contact, one.why
                    )?;
                }
            }
        }
        Ok(())
    }
}

impl Listener {
    fn text(&self) -> String {
        let Self { name, protocol, address } = self;
        if name == protocol {
            return format!("{protocol} {address}");
        }
        format!("{protocol} {address} ({name})")
    }
}

impl Upstream {
    fn row(&self, now: Timestamp) -> Vec<String> {
        let mut why: Vec<String> = self.reason.clone().into_iter().collect();
        why.extend(self.refused.iter().map(|filter| format!("refuses {filter}")));
        vec![
            self.name.clone(),
            if self.connected { "connected" } else { "away" }.to_owned(),
            text::distance(&self.since, now),
            self.address.clone(),
            self.queued.map_or_else(|| "-".to_owned(), |queued| queued.to_string()),
            why.join("; "),
        ]
    }
}

/// When something that is left alone is tried again.
fn tried(until: &str, now: Timestamp) -> String {
    let distance = text::distance(until, now);
    if distance.ends_with("ago") {
        return "tried with its next message".to_owned();
    }
    format!("tried again {distance}")
}

impl Endpoint {
    fn row(&self, lane: &Lane, now: Timestamp) -> Vec<String> {
        let why = [self.reason.clone(), text::cut(&self.detail, 80), tried(&self.until, now)];
        vec![
            self.name.clone(),
            lane.provider.clone(),
            self.state.clone(),
            self.waiting.to_string(),
            why.join("; "),
        ]
    }
}

impl Lane {
    fn row(&self, now: Timestamp) -> Vec<String> {
        let mut why: Vec<String> = Vec::new();
        why.extend(self.reason.clone());
        why.extend(self.detail.as_deref().map(|detail| text::cut(detail, 80)));
        why.extend(self.warning.as_deref().map(|warning| text::cut(warning, 160)));
        match &self.until {
            // Its time has come, and one message is the probe.
            Some(_) if self.in_flight > 0 && self.state != "paused" => {
                why.push("being tried now".to_owned());
            }
            Some(until) => why.push(tried(until, now)),
            None => {}
        }
        vec![
            self.provider.clone(),
            self.kind.clone(),
            self.channels.join(", "),
            self.state.clone(),
            self.in_flight.to_string(),
            self.ready.to_string(),
            why.join("; "),
        ]
    }
}
