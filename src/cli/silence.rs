//! `watchbell silence`: have nobody told of something for a while, and see what is silenced.

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::alert::resolve;
use super::client::{Client, level};
use super::{Context, block_on, text};
use crate::clock::Timestamp;
use crate::intake::unfit;
use crate::model::Severity;
use crate::span::Span;

const EXAMPLES: &str = "\
Examples:
  watchbell silence add --rule 'freezer-*' --for 2h --by ana --reason 'we defrost'
  watchbell silence add --topic 'site/kiel/#' --until 2026-12-24T18:00:00+01:00 --by ana --reason x
  watchbell silence add --alert 5d1e --for 8h --by ana --reason 'a part is ordered'
  watchbell silence list
  watchbell silence end 1f3a9c02            or by its name

`*` stands for any characters. What is silenced is recorded and listed all the same; what still
fires at the end of a silence is told then. Silences survive a restart.";

/// Have nobody told of something for a while
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Silences {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Add a silence
    Add(Box<Add>),
    /// Show silences, those of the rule files too
    List {
        /// As JSON, for scripts
        #[arg(long)]
        json: bool,
    },
    /// End a silence: what it has held and still fires is told now
    End {
        /// Its id or name, as the list shows it
        id: String,
    },
}

#[derive(Args)]
struct Add {
    /// One alert, by its id or enough of the beginning or end of it: its rule and key
    #[arg(long, value_name = "ID", conflicts_with_all = ["rule", "key", "topic", "label", "severity"])]
    alert: Option<String>,
    /// Alerts of rules of this name; `*` for any characters
    #[arg(long, value_name = "PATTERN")]
    rule: Option<String>,
    /// Of this instance key; `*` for any characters
    #[arg(long, value_name = "PATTERN")]
    key: Option<String>,
    /// From topics that this MQTT filter matches
    #[arg(long, value_name = "FILTER")]
    topic: Option<String>,
    /// With this label; may be repeated
    #[arg(long, value_name = "NAME=PATTERN", value_parser = name_value)]
    label: Vec<(String, String)>,
    /// Only so urgent; may be repeated
    #[arg(long)]
    severity: Vec<Severity>,
    /// How long, as 2h or 7d
    #[arg(long = "for", value_name = "TIME", required_unless_present = "until")]
    lasts: Option<Span>,
    /// Until when, RFC 3339
    #[arg(long, value_name = "TIME", conflicts_with = "lasts")]
    until: Option<String>,
    /// Who makes it
    #[arg(long, value_name = "NAME")]
    by: String,
    /// Why, for those who wonder
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// What people call it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

fn name_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=PATTERN, as unit=1 or site=ki*".to_owned()),
    }
}

/// A silence as the API shows it.
#[derive(Deserialize)]
pub(super) struct Silence {
    id: Option<String>,
    name: Option<String>,
    rule: Option<String>,
    key: Option<String>,
    topic: Option<String>,
    #[serde(default)]
    severities: Vec<String>,
    #[serde(default)]
    label: BTreeMap<String, String>,
    by: String,
    reason: String,
    file: bool,
    active: bool,
    from: Option<String>,
    until: Option<String>,
}

#[derive(Deserialize)]
struct Page {
    silences: Vec<Silence>,
}

impl Silences {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let now = context.clock.now();
        block_on(async {
            let client = Client::connect(&data_dir).await?;
            let out = context.out;
            match self.command {
                Command::Add(add) => add.run(&client, out).await,
                Command::List { json: true } => {
                    text::json(out, &client.get::<Value>("/v1/silences").await?)
                }
                Command::List { json: false } => {
                    list(&client.get::<Page>("/v1/silences").await?.silences, now, out)
                }
                Command::End { id } => {
                    client.delete(&format!("/v1/silences/{}", level(&id))).await?;
                    writeln!(out, "silence {id} has ended")?;
                    Ok(())
                }
            }
        })
    }
}

impl Add {
    async fn run(self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let alert = match &self.alert {
            Some(part) => Some(resolve(client, part).await?),
            None => None,
        };
        let label: BTreeMap<String, String> = self.label.into_iter().collect();
        let severities: Vec<&str> =
            self.severity.iter().map(|severity| severity.as_str()).collect();
        // What is null is as if it were not there.
        let body = json!({
            "alert": alert,
            "rule": self.rule,
            "key": self.key,
            "topic": self.topic,
            "label": label,
            "severities": severities,
            "for": self.lasts.map(|lasts| lasts.to_string()),
            "until": self.until,
            "by": self.by,
            "reason": self.reason,
            "name": self.name,
        });
        let made: Silence = client.post("/v1/silences", Some(&body)).await?;
        let until = made.until.as_deref().map(text::seconds).unwrap_or_default();
        let id = made.id.clone().unwrap_or_default();
        writeln!(out, "{id}  {} is silenced until {until}", made.covers())?;
        if let Some(pattern) = &self.rule {
            let status: Value = client.get("/v1/status").await?;
            let rules = status["rules"]["rules"].as_array().cloned().unwrap_or_default();
            let names: Vec<&str> = rules.iter().filter_map(|rule| rule["name"].as_str()).collect();
            if let Some(what) = unfit::named(&names, pattern) {
                writeln!(out, "warning: {what} (`watchbell silence end {id}` takes it back)")?;
            }
        }
        Ok(())
    }
}

impl Silence {
    /// What it covers, in one line.
    fn covers(&self) -> String {
        let mut parts = Vec::new();
        let named = [("rule", &self.rule), ("key", &self.key), ("topic", &self.topic)];
        for (name, value) in named {
            parts.extend(value.as_ref().map(|value| format!("{name} {value}").trim().to_owned()));
        }
        parts.extend(self.label.iter().map(|(name, value)| format!("{name}={value}")));
        if !self.severities.is_empty() {
            parts.push(self.severities.join(" or "));
        }
        parts.join(", ")
    }

    /// What it is called, in lists of what is in force.
    pub(super) fn line(&self) -> String {
        let called = self.name.as_ref().or(self.id.as_ref()).cloned().unwrap_or_default();
        let until = self.until.as_deref().map(text::seconds).unwrap_or_default();
        format!("{called} ({}) of {}: {}; until {until}", self.covers(), self.by, self.reason)
    }
}

fn list(silences: &[Silence], now: Timestamp, out: &mut dyn Write) -> anyhow::Result<()> {
    if silences.is_empty() {
        writeln!(out, "Nothing is silenced.")?;
        return Ok(());
    }
    let row = |silence: &Silence| {
        let state = match (silence.active, &silence.from) {
            (true, _) => "in force".to_owned(),
            (false, Some(from)) => format!("begins {}", text::distance(from, now)),
            (false, None) => "not now".to_owned(),
        };
        vec![
            silence.id.clone().unwrap_or_else(|| "(file)".to_owned()),
            silence.name.clone().unwrap_or_else(|| "-".to_owned()),
            state,
            silence.until.as_deref().map_or_else(|| "-".to_owned(), text::seconds),
            silence.by.clone(),
            silence.covers(),
            text::cut(&silence.reason, 60),
        ]
    };
    let rows: Vec<_> = silences.iter().map(row).collect();
    text::table(out, &["ID", "NAME", "STATE", "UNTIL", "BY", "WHAT", "WHY"], &rows)?;
    if silences.iter().any(|silence| silence.file) {
        writeln!(out, "Those marked (file) stand in rule files, and end there.")?;
    }
    Ok(())
}
