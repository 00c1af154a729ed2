//! The configuration: the modules' own `Config` structs in one tree.
//!
//! Reads the layers ([`layers`]), hands each section to the module that owns it, and checks what
//! no module can see alone: that providers are named once, and that each channel's list names
//! providers that serve it. Every problem is reported at once. Nothing below imports this module.

pub mod layers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use self::layers::{Layers, Merged};
use crate::model::Channel;
use crate::problem::{Problem, Step, closest};

/// Everything that an operator can set.
pub struct Config {
    /// Where the store, the API key and the instance file are; default `data`.
    pub data_dir: PathBuf,
    /// Where the rule files are; default `rules`.
    pub rules_dir: PathBuf,
    /// Logs.
    pub telemetry: crate::telemetry::Config,
    /// The HTTP edge.
    pub api: crate::api::Config,
    /// Retry, breaker, expiry.
    pub dispatch: crate::dispatch::Config,
    /// The store.
    pub store: crate::store::Config,
    /// Which providers serve a channel, by name, in failover order.
    pub routes: BTreeMap<Channel, Vec<Arc<str>>>,
    /// The file that was read, if one was.
    pub file: Option<String>,
}

/// `[channel.sms]` and its like.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Channels {
    sms: Option<ChannelConfig>,
    whatsapp: Option<ChannelConfig>,
    push: Option<ChannelConfig>,
    webhook: Option<ChannelConfig>,
}

impl Channels {
    fn get(&self, channel: Channel) -> Option<&ChannelConfig> {
        match channel {
            Channel::Sms => self.sms.as_ref(),
            Channel::Whatsapp => self.whatsapp.as_ref(),
            Channel::Push => self.push.as_ref(),
            Channel::Webhook => self.webhook.as_ref(),
        }
    }
}

/// How a channel is served.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChannelConfig {
    /// Providers by name, in failover order. Default: every provider that serves the channel, in
    /// the order of the file.
    providers: Vec<String>,
}

/// What the routes need to know of a provider.
struct Served<'a> {
    index: usize,
    name: &'a str,
    channels: &'a [Channel],
}

/// Loads the configuration.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(layers: &Layers) -> Result<Config, Vec<Problem>> {
    let mut merged = Merged::new(layers)?;
    let channels: Channels = merged.section("channel");
    let routes = routes(&[], &channels, &mut merged);
    let config = Config {
        data_dir: merged.optional("data_dir").unwrap_or_else(default_data_dir),
        rules_dir: merged.optional("rules_dir").unwrap_or_else(|| "rules".into()),
        telemetry: merged.section("telemetry"),
        api: merged.section("api"),
        dispatch: merged.section("dispatch"),
        store: merged.section("store"),
        routes,
        file: merged.file_name().map(str::to_owned),
    };
    merged.said(config.api.problems());
    merged.said(config.dispatch.problems());
    merged.said(config.store.problems());
    match merged.finish() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(problems),
    }
}

/// The data directory alone, for commands that look for a running instance: they must work while
/// something else in the file is wrong.
///
/// # Errors
/// The file cannot be read, or the key is no path.
pub fn data_dir(layers: &Layers) -> Result<PathBuf, Vec<Problem>> {
    let mut merged = Merged::new(layers)?;
    merged.only("data_dir");
    let directory = merged.optional("data_dir").unwrap_or_else(default_data_dir);
    match merged.finish() {
        problems if problems.is_empty() => Ok(directory),
        problems => Err(problems),
    }
}

/// The store's settings alone, for commands that open it themselves while no instance runs.
///
/// # Errors
/// Something is wrong with them.
pub fn store(layers: &Layers) -> Result<crate::store::Config, Vec<Problem>> {
    let mut merged = Merged::new(layers)?;
    merged.only("store");
    let config: crate::store::Config = merged.section("store");
    merged.said(config.problems());
    match merged.finish() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(problems),
    }
}

fn default_data_dir() -> PathBuf {
    "data".into()
}

fn routes(
    providers: &[Served<'_>],
    channels: &Channels,
    merged: &mut Merged,
) -> BTreeMap<Channel, Vec<Arc<str>>> {
    let mut problems: Vec<(Vec<Step>, String)> = Vec::new();
    for (at, provider) in providers.iter().enumerate() {
        let earlier = providers.iter().take(at);
        if let Some(first) = earlier.into_iter().find(|first| first.name == provider.name) {
            let path = vec!["provider".into(), provider.index.into(), "name".into()];
            let what = format!("`{}` is the name of provider[{}] already", first.name, first.index);
            problems.push((path, what));
        }
    }
    let mut routes = BTreeMap::new();
    for &channel in Channel::ALL {
        let serving = || providers.iter().filter(|one| one.channels.contains(&channel));
        let Some(config) = channels.get(channel) else {
            routes.insert(channel, serving().map(|one| one.name.into()).collect());
            continue;
        };
        let path = |index: usize| -> Vec<Step> {
            let list = ["channel", channel.as_str(), "providers"];
            let list = list.into_iter().map(Step::from);
            list.chain([Step::from(index)]).collect()
        };
        let mut route: Vec<Arc<str>> = Vec::new();
        for (index, name) in config.providers.iter().enumerate() {
            let what = match providers.iter().find(|one| one.name == name) {
                None => unknown_provider(name, providers),
                Some(one) if !one.channels.contains(&channel) => format!(
                    "provider `{name}` does not serve {channel}; add it to the provider's `channels`, or take it out here"
                ),
                Some(_) if route.iter().any(|earlier| **earlier == **name) => {
                    format!("`{name}` stands here twice")
                }
                Some(_) => {
                    route.push(name.as_str().into());
                    continue;
                }
            };
            problems.push((path(index), what));
        }
        if config.providers.is_empty() {
            let what = format!(
                "it names no provider; take the key out to use every provider that serves {channel}"
            );
            problems.push((path(0), what));
        }
        routes.insert(channel, route);
    }
    for (path, what) in problems {
        merged.problem(&path, &what);
    }
    routes
}

fn unknown_provider(name: &str, providers: &[Served<'_>]) -> String {
    let names: Vec<&str> = providers.iter().map(|one| one.name).collect();
    match closest(name, &names) {
        Some(near) => format!("there is no provider `{name}`; did you mean `{near}`?"),
        None => {
            format!("there is no provider `{name}`; the configuration has {}", names.join(", "))
        }
    }
}
