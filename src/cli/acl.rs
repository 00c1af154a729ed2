//! `watchbell acl check`: may a client do something, and which line of the configuration says so.
//!
//! Reads the configuration as `watchbell run` would, so that a change can be tried before the
//! restart; a device's groups come from the running instance, or from the store where none runs.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;

use super::client::Client;
use super::{Context, block_on, problems, say};
use crate::broker::acl::{self, Action, Explanation, Line, OWN_BRANCH};
use crate::config::Access;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::topic::{TopicFilter, TopicLimits, TopicName};

const EXAMPLES: &str = "\
Examples:
  watchbell acl check pump-7 publish site/kiel/pump-7/temp
  watchbell acl check pump-7 subscribe 'site/kiel/#'
  watchbell acl check gw-1 publish site/a/b --identity gateway --group gateways
  watchbell acl check anyone subscribe '#' --anonymous

Without --identity, --user or --anonymous CLIENT is taken for the device of that name in the store,
and where there is none, for one whose certificate names it. Exit code 0: allowed, 1: denied, 2: it
could not be found out.";

/// Say whether a client may publish or subscribe, and which line decides
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Acl {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check one topic or filter for one client
    Check(Check),
}

#[derive(Args)]
struct Check {
    /// The MQTT client id
    client: String,
    /// What it wants to do
    action: Verb,
    /// The topic, or the filter of a subscription
    topic: String,
    /// The name in its certificate or token
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// Its user name
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A group that it is in, besides those of the store; may be repeated
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
    /// It comes without a name
    #[arg(long, conflicts_with_all = ["identity", "user", "groups"])]
    anonymous: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Verb {
    Publish,
    Subscribe,
}

/// As much of a device as is needed here, by the API or from the store.
#[derive(Deserialize)]
struct Device {
    user: String,
    #[serde(default)]
    groups: Vec<String>,
}

impl Acl {
    pub(super) fn run(self, mut context: Context<'_>, err: &mut dyn Write) -> ExitCode {
        let Command::Check(check) = self.command;
        match check.run(&mut context) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                say(err, &error);
                ExitCode::from(2)
            }
        }
    }
}

impl Check {
    fn run(mut self, context: &mut Context<'_>) -> anyhow::Result<bool> {
        let access = crate::config::access_alone(&context.layers).map_err(problems)?;
        let action = self.action()?;
        let found = match self.user.as_deref().or(self.identity.is_none().then_some(&*self.client))
        {
            Some(user) if !self.anonymous => device(context, user)?,
            _ => None,
        };
        let mut who = format!("client id {}", self.client);
        if let Some(device) = found {
            self.user = Some(device.user);
            self.groups.extend(device.groups);
        } else if self.identity.is_none() && self.user.is_none() && !self.anonymous {
            self.identity = Some(self.client.clone());
        }
        for (name, value) in [("identity", &self.identity), ("user", &self.user)] {
            if let Some(value) = value {
                who.push_str(&format!(", {name} {value}"));
            }
        }
        if !self.groups.is_empty() {
            who.push_str(&format!(", groups {}", self.groups.join(" ")));
        }
        if self.anonymous {
            who.push_str(", anonymous");
        }
        let groups: Vec<Arc<str>> = self.groups.iter().map(|group| group.as_str().into()).collect();
        let client = acl::Client {
            client_id: &self.client,
            identity: self.identity.as_deref(),
            user: self.user.as_deref(),
            groups: &groups,
        };
        let said = acl::explain(&client, &access.entries, &action);
        let word = if said.allowed { "allowed" } else { "denied" };
        writeln!(context.out, "{word}: {} {} ({who})", self.verb(), self.topic)?;
        self.reasons(context.out, &access, &said)?;
        Ok(said.allowed)
    }

    fn verb(&self) -> &'static str {
        match self.action {
            Verb::Publish => "publish",
            Verb::Subscribe => "subscribe",
        }
    }

    fn action(&self) -> anyhow::Result<Action> {
        let limits = TopicLimits::default();
        let wrong = |error: &dyn std::fmt::Display| anyhow!("{}: {error}", self.topic);
        match self.action {
            Verb::Publish => {
                let topic = TopicName::parse(&self.topic, limits);
                topic.map(Action::Publish).map_err(|error| wrong(&error))
            }
            Verb::Subscribe => {
                // A shared subscription needs the right to its filter.
                let shared = self.topic.strip_prefix("$share/");
                let filter = shared.and_then(|rest| rest.split_once('/')).map(|(_, filter)| filter);
                let filter = TopicFilter::parse(filter.unwrap_or(&self.topic), limits);
                filter.map(Action::Subscribe).map_err(|error| wrong(&error))
            }
        }
    }

    fn reasons(
        &self,
        out: &mut dyn Write,
        access: &Access,
        said: &Explanation,
    ) -> anyhow::Result<()> {
        let Some((index, entry, places)) = said
            .entry
            .and_then(|index| Some((index, access.entries.get(index)?, access.places.get(index)?)))
        else {
            return self.by_default(out, said);
        };
        let pattern = |line: &Line| {
            let list = match line.list {
                "publish" => &entry.publish,
                "subscribe" => &entry.subscribe,
                _ => &entry.deny,
            };
            let pattern = list.get(line.index).map_or("", String::as_str);
            format!(
                "{}: access[{index}]: {} \"{pattern}\"",
                places.of(line.list, line.index),
                line.list
            )
        };
        match (&said.line, &said.problem) {
            (Some(line), _) => {
                let verb = if said.allowed { "allows it" } else { "forbids it" };
                writeln!(out, "{} {verb}", pattern(line))?;
            }
            (None, Some(problem)) => {
                writeln!(
                    out,
                    "{}: access[{index}] grants this client nothing: {problem}",
                    places.whole
                )?;
            }
            (None, None) => {
                let verb = self.verb();
                writeln!(
                    out,
                    "{}: access[{index}] is the first whose `who` fits, and its `{verb}` does not list it",
                    places.whole
                )?;
            }
        }
        for line in &said.parts {
            let what = if said.allowed { "is held back" } else { "would be a part of it" };
            writeln!(out, "{} {what}", pattern(line))?;
        }
        Ok(())
    }

    /// Nobody has written a line about this client.
    fn by_default(&self, out: &mut dyn Write, said: &Explanation) -> anyhow::Result<()> {
        if self.anonymous {
            writeln!(
                out,
                "no [[access]] is about it, and an anonymous client has every topic (broker.anonymous says where one may come from)"
            )?;
            return Ok(());
        }
        let own = OWN_BRANCH.replace("{client_id}", &self.client);
        match &said.problem {
            Some(problem) => writeln!(
                out,
                "no [[access]] is about it, and it has no topics of its own: {problem}"
            )?,
            None => writeln!(
                out,
                "no [[access]] is about it, and by default it has {own} and nothing else"
            )?,
        }
        Ok(())
    }
}

/// The device of this name, of the running instance or of the store.
fn device(context: &Context<'_>, user: &str) -> anyhow::Result<Option<Device>> {
    #[derive(Deserialize)]
    struct Devices {
        devices: Vec<Device>,
    }
    let data_dir = context.data_dir()?;
    block_on(async {
        if let Some(client) = Client::find(&data_dir).await? {
            let Devices { devices } = client.get("/v1/devices").await?;
            return Ok(devices.into_iter().find(|device| device.user == user));
        }
        // Looking is no reason to make a store.
        if !Path::new(&data_dir).join("store").exists() {
            return Ok(None);
        }
        let config = crate::config::store(&context.layers).map_err(problems)?;
        let store = Store::open(&data_dir, &config, &Metrics::new())?;
        let found = store.device(user)?;
        store.close().await?;
        Ok(found.map(|found| Device { user: found.user, groups: found.groups }))
    })
}
