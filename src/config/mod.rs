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
use serde::de::DeserializeOwned;
use toml::Value;

use self::layers::{Layers, Merged};
use crate::broker::acl::AccessEntry;
use crate::broker::upstream::config::{Config as UpstreamConfig, Upstream};
use crate::clock::Clock;
use crate::dispatch::LaneSpec;
use crate::intake::ruleset::Limits;
use crate::model::Channel;
use crate::problem::{Fault, Problem, Step, closest};
use crate::provider::phone::Screen;
use crate::provider::reach::Reach;
use crate::provider::registry::{self, Entry};
use crate::span::Span;
use crate::topic::TopicLimits;

/// Everything that an operator can set, read and checked.
pub struct Config {
    /// Where the store, the API key and the instance file are; default `data`.
    pub data_dir: PathBuf,
    /// Where the rule files are; default `rules`.
    pub rules_dir: PathBuf,
    /// `grace`: how long stopping may take in all before the process ends all the same; default
    /// 20s, 1s to 10m.
    pub grace: Span,
    /// `[telemetry]`: logs.
    pub telemetry: crate::telemetry::Config,
    /// `[broker]` and `[[listener]]`: the MQTT edge; and `[auth]`: how its clients are told apart.
    pub broker: crate::broker::config::Config,
    /// `[[access]]`: who may publish and subscribe where.
    pub access: Vec<AccessEntry>,
    /// `[[upstream]]`: brokers that Watchbell is a client of.
    pub upstreams: Vec<Upstream>,
    /// `[api]`: the HTTP edge.
    pub api: crate::api::Config,
    /// `[rules]` and `[notify]`: bounds on rules and contacts.
    pub limits: crate::intake::ruleset::Limits,
    /// `[intake]`: what is taken at a time.
    pub intake: crate::intake::Config,
    /// `[dispatch]`: retry, breaker, expiry.
    pub dispatch: crate::dispatch::Config,
    /// `[store]`: cache, retention, disk.
    pub store: crate::store::Config,
    /// `[[provider]]`; the virtual phone alone where there is none.
    pub providers: Vec<Entry>,
    /// `[channel.*]`: which providers serve a channel, by name, in failover order.
    pub routes: BTreeMap<Channel, Vec<Arc<str>>>,
    /// What the virtual phone shows, if one is configured.
    pub screen: Screen,
    /// The file that was read, if one was.
    pub file: Option<String>,
}

impl Config {
    /// The providers as the dispatcher takes them.
    pub fn lanes(&self) -> Vec<LaneSpec> {
        let lane = |entry: &Entry| LaneSpec {
            name: Arc::clone(&entry.name),
            kind: entry.kind,
            channels: entry.channels.clone(),
            per_second: entry.rate.map(|rate| f64::from(rate.calls()) / rate.per().as_secs_f64()),
            concurrency: entry.concurrency,
            provider: Arc::clone(&entry.provider),
        };
        self.providers.iter().map(lane).collect()
    }

    /// What the providers can reach.
    pub fn reach(&self) -> Reach {
        let named = |name: &Arc<str>| {
            let entry = self.providers.iter().find(|entry| entry.name == *name)?;
            Some((Arc::clone(name), Arc::clone(&entry.provider)))
        };
        let channels = self.routes.iter();
        Reach::new(
            channels
                .map(|(channel, names)| (*channel, names.iter().filter_map(named).collect()))
                .collect(),
        )
    }
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

/// Loads the configuration: reads every secret and makes every provider, and opens nothing.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(layers: &Layers, clock: &Clock) -> Result<Config, Vec<Problem>> {
    let mut merged = Merged::new(layers)?;
    let data_dir = merged.optional("data_dir").unwrap_or_else(default_data_dir);
    let rules_dir = merged.optional("rules_dir").unwrap_or_else(default_rules_dir);
    let grace = grace(&mut merged);
    let telemetry: crate::telemetry::Config = merged.section("telemetry");
    merged.said(telemetry.problems());
    let mut broker: crate::broker::config::Config = merged.section("broker");
    let listeners = merged.list("listener", |_, value| crate::problem::read(value));
    broker.listeners = listeners.into_iter().map(|(_, listener)| listener).collect();
    merged.said(broker.problems());
    broker.auth = merged.section("auth");
    merged.said(broker.auth.problems());
    let access = access(&mut merged);
    let upstreams = upstreams(&mut merged, &broker);
    let api: crate::api::Config = merged.section("api");
    merged.said(api.problems());
    let rules: crate::rules::Config = merged.section("rules");
    merged.said(rules.validate().into_iter().map(|what| format!("rules.{what}")));
    let contacts: crate::notify::Config = merged.section("notify");
    merged.said(contacts.validate().into_iter().map(|what| format!("notify.{what}")));
    let intake: crate::intake::Config = merged.section("intake");
    merged.said(intake.problems());
    let dispatch: crate::dispatch::Config = merged.section("dispatch");
    merged.said(dispatch.problems());
    let store: crate::store::Config = merged.section("store");
    merged.said(store.problems());

    let screen = Screen::new(api.phone_messages_max);
    let shared = registry::Shared { screen: screen.clone(), clock: clock.clone() };
    let providers = providers(&mut merged, &shared);
    let channels: Channels = merged.section("channel");
    let routes = routes(&providers, &channels, &mut merged);

    let config = Config {
        data_dir,
        rules_dir,
        grace,
        telemetry,
        broker,
        access,
        upstreams,
        api,
        limits: Limits { rules, contacts },
        intake,
        dispatch,
        store,
        providers: providers.entries,
        routes,
        screen,
        file: merged.file_name().map(str::to_owned),
    };
    match merged.finish() {
        problems if problems.is_empty() => Ok(config),
        problems => Err(problems),
    }
}

/// What was said of values by their keys, `broker.cert: ...`, with the place that says each.
pub fn placed(layers: &Layers, said: Vec<String>) -> Vec<Problem> {
    let Ok(mut merged) = Merged::new(layers) else {
        return said.into_iter().map(|what| Problem::new("configuration", what)).collect();
    };
    merged.only("");
    merged.said(said);
    merged.finish()
}

/// The data directory alone, for commands that look for a running instance: they must work while
/// something else in the file is wrong.
///
/// # Errors
/// The file cannot be read, or the key is no path.
pub fn data_dir(layers: &Layers) -> Result<PathBuf, Vec<Problem>> {
    Ok(alone::<Option<PathBuf>>(layers, "data_dir")?.unwrap_or_else(default_data_dir))
}

/// The rules directory alone.
///
/// # Errors
/// The file cannot be read, or the key is no path.
pub fn rules_dir(layers: &Layers) -> Result<PathBuf, Vec<Problem>> {
    Ok(alone::<Option<PathBuf>>(layers, "rules_dir")?.unwrap_or_else(default_rules_dir))
}

/// The bounds on a rule set alone, for commands that need no secrets.
///
/// # Errors
/// The file cannot be read, or something in `[rules]` or `[notify]` is of the wrong kind.
pub fn limits(layers: &Layers) -> Result<crate::intake::ruleset::Limits, Vec<Problem>> {
    let (rules, contacts) = (alone(layers, "rules")?, alone(layers, "notify")?);
    Ok(crate::intake::ruleset::Limits { rules, contacts })
}

/// The broker's settings alone, unchecked, for commands that say what to type next.
///
/// # Errors
/// The file cannot be read, or something in `[broker]` is of the wrong kind.
pub fn broker(layers: &Layers) -> Result<crate::broker::config::Config, Vec<Problem>> {
    alone(layers, "broker")
}

/// Whether `[broker]` or a `[[listener]]` names a certificate revocation list.
pub fn names_crl(layers: &Layers) -> bool {
    let has = |table: &toml::Table| table.contains_key("crl");
    let listeners = alone::<Vec<toml::Table>>(layers, "listener").unwrap_or_default();
    alone::<toml::Table>(layers, "broker").is_ok_and(|broker| has(&broker))
        || listeners.iter().any(has)
}

/// What rules and contacts are held to, and how long a message waits at most, for commands that
/// evaluate rules by themselves: they need no provider, and none of the secrets.
///
/// # Errors
/// The file cannot be read, or something is wrong with them.
pub fn evaluation(layers: &Layers) -> Result<(Limits, Span), Vec<Problem>> {
    let limits = Limits { rules: alone(layers, "rules")?, contacts: alone(layers, "notify")? };
    let dispatch: crate::dispatch::Config = alone(layers, "dispatch")?;
    let rules = limits.rules.validate().into_iter().map(|what| format!("rules.{what}"));
    let problems: Vec<Problem> = rules
        .chain(limits.contacts.validate().into_iter().map(|what| format!("notify.{what}")))
        .map(|what| Problem::new("configuration", what))
        .collect();
    if problems.is_empty() { Ok((limits, dispatch.expires_in)) } else { Err(problems) }
}

/// The store's settings alone, for commands that open it themselves while no instance runs.
///
/// # Errors
/// The file cannot be read, or something is wrong with them.
pub fn store(layers: &Layers) -> Result<crate::store::Config, Vec<Problem>> {
    let config: crate::store::Config = alone(layers, "store")?;
    match config.problems() {
        problems if problems.is_empty() => Ok(config),
        problems => {
            let problem = |what| Problem::new("configuration", what);
            Err(problems.into_iter().map(problem).collect())
        }
    }
}

/// The access entries alone, and where each of their lines stands.
///
/// # Errors
/// The file cannot be read, or something is wrong with them.
pub fn access_alone(layers: &Layers) -> Result<Access, Vec<Problem>> {
    let mut merged = Merged::new(layers)?;
    merged.only("access");
    let entries = access(&mut merged);
    let place = |entry: usize, list: &'static str, index: usize| {
        let path = ["access".into(), entry.into(), list.into(), index.into()];
        merged.place(&path)
    };
    let places = |(index, entry): (usize, &AccessEntry)| {
        let lists = [
            ("publish", entry.publish.len()),
            ("subscribe", entry.subscribe.len()),
            ("deny", entry.deny.len()),
        ];
        let whole = merged.place(&["access".into(), index.into()]);
        let lines =
            lists.map(|(list, len)| (list, (0..len).map(|at| place(index, list, at)).collect()));
        Places { whole, lines }
    };
    let places = entries.iter().enumerate().map(places).collect();
    match merged.finish() {
        problems if problems.is_empty() => Ok(Access { entries, places }),
        problems => Err(problems),
    }
}

/// The access entries of the configuration.
pub struct Access {
    /// The entries.
    pub entries: Vec<AccessEntry>,
    /// Where each of them stands.
    pub places: Vec<Places>,
}

/// Where the lines of an entry stand: `watchbell.toml:14`.
pub struct Places {
    /// The entry itself.
    pub whole: String,
    lines: [(&'static str, Vec<String>); 3],
}

impl Places {
    /// Where the pattern `index` of `list` stands.
    pub fn of(&self, list: &str, index: usize) -> &str {
        let found = self.lines.iter().find(|(name, _)| *name == list);
        found.and_then(|(_, places)| places.get(index)).map_or(&self.whole, String::as_str)
    }
}

fn alone<T: DeserializeOwned + Default>(
    layers: &Layers,
    name: &'static str,
) -> Result<T, Vec<Problem>> {
    let mut merged = Merged::new(layers)?;
    merged.only(name);
    let value = merged.section(name);
    match merged.finish() {
        problems if problems.is_empty() => Ok(value),
        problems => Err(problems),
    }
}

fn default_data_dir() -> PathBuf {
    "data".into()
}

fn default_rules_dir() -> PathBuf {
    "rules".into()
}

fn grace(merged: &mut Merged) -> Span {
    let grace = merged.optional("grace").unwrap_or(Span::from_secs(20));
    if !(Span::from_secs(1)..=Span::from_secs(600)).contains(&grace) {
        merged.problem(&["grace".into()], &format!("1s to 10m, found {grace}"));
    }
    grace
}

fn access(merged: &mut Merged) -> Vec<AccessEntry> {
    let entries: Vec<(usize, AccessEntry)> =
        merged.list("access", |_, value| crate::problem::read(value));
    for (index, entry) in &entries {
        let problems = entry.problems().into_iter();
        merged.said(problems.map(|what| format!("access[{index}].{what}")));
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn upstreams(merged: &mut Merged, broker: &crate::broker::config::Config) -> Vec<Upstream> {
    let limits =
        TopicLimits { bytes_max: broker.topic_bytes_max, levels_max: broker.topic_levels_max };
    let entries: Vec<(usize, UpstreamConfig)> =
        merged.list("upstream", |_, value| crate::problem::read(value));
    let mut upstreams: Vec<Upstream> = Vec::new();
    for (index, entry) in entries {
        match entry.check(limits) {
            Err(problems) => {
                let problems = problems.into_iter();
                merged.said(problems.map(|what| format!("upstream[{index}].{what}")));
            }
            // The name stands in topics, metrics and a session.
            Ok(new) if upstreams.iter().any(|one| one.name() == new.name()) => {
                let what = format!("upstream[{index}].name: another is `{}` already", new.name());
                merged.said([what]);
            }
            Ok(new) => upstreams.push(new),
        }
    }
    upstreams
}

/// The providers that could be made, and what the tables say of all.
struct Providers {
    entries: Vec<Entry>,
    /// The names and channels of all tables, those in which something is wrong too: it must not
    /// look as if they were not there.
    named: Vec<Named>,
}

struct Named {
    index: usize,
    name: String,
    /// `None` where it cannot be known because the table is wrong.
    channels: Option<Vec<Channel>>,
}

fn providers(merged: &mut Merged, shared: &registry::Shared) -> Providers {
    let mut named: Vec<Named> = Vec::new();
    let mut tables = 0;
    let entries = merged.list("provider", |index, value| {
        tables = tables.max(index + 1);
        let table = match value {
            Value::Table(table) => table,
            other => {
                let what = format!("expected a table, found {}", other.type_str());
                return Err(vec![Fault { path: Vec::new(), what }]);
            }
        };
        let read = registry::read(&table, shared);
        if let Some(name) = table.get("name").and_then(Value::as_str) {
            let channels = read.as_ref().ok().map(|entry| entry.channels.clone());
            named.retain(|one| one.index != index);
            named.push(Named { index, name: name.to_owned(), channels });
        }
        read
    });
    let mut entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
    if tables == 0 {
        // The first try: no account anywhere, and the message is seen all the same.
        let table = toml::toml! {
            name = "phone"
            kind = "phone"
        };
        let phone = registry::read(&table, shared).expect("the phone needs nothing more");
        named.push(Named {
            index: 0,
            name: "phone".to_owned(),
            channels: Some(phone.channels.clone()),
        });
        entries.push(phone);
    }
    Providers { entries, named }
}

fn routes(
    providers: &Providers,
    channels: &Channels,
    merged: &mut Merged,
) -> BTreeMap<Channel, Vec<Arc<str>>> {
    let named = &providers.named;
    for (at, provider) in named.iter().enumerate() {
        if let Some(first) = named.iter().take(at).find(|first| first.name == provider.name) {
            let path = ["provider".into(), provider.index.into(), "name".into()];
            let what = format!("`{}` is the name of provider[{}] already", first.name, first.index);
            merged.problem(&path, &what);
        }
    }
    let mut routes = BTreeMap::new();
    for &channel in Channel::ALL {
        let Some(config) = channels.get(channel) else {
            let serving = providers.entries.iter().filter(|one| one.channels.contains(&channel));
            routes.insert(channel, serving.map(|one| Arc::clone(&one.name)).collect());
            continue;
        };
        let list = ["channel", channel.as_str(), "providers"].map(Step::from);
        let mut route: Vec<Arc<str>> = Vec::new();
        for (index, name) in config.providers.iter().enumerate() {
            let what = match named.iter().find(|one| one.name == *name) {
                None => unknown_provider(name, named),
                Some(Named { channels: Some(served), .. }) if !served.contains(&channel) => {
                    format!(
                        "provider `{name}` does not serve {channel}; add it to the provider's `channels`, or take it out here"
                    )
                }
                Some(_) if route.iter().any(|earlier| **earlier == **name) => {
                    format!("`{name}` stands here twice")
                }
                Some(_) => {
                    route.push(name.as_str().into());
                    continue;
                }
            };
            let path: Vec<Step> = list.iter().cloned().chain([Step::from(index)]).collect();
            merged.problem(&path, &what);
        }
        if config.providers.is_empty() {
            let what = format!(
                "it names no provider; take the key out to use every provider that serves {channel}"
            );
            merged.problem(&list, &what);
        }
        routes.insert(channel, route);
    }
    routes
}

fn unknown_provider(name: &str, providers: &[Named]) -> String {
    let mut names: Vec<&str> = providers.iter().map(|one| one.name.as_str()).collect();
    names.dedup();
    match closest(name, &names) {
        Some(near) => format!("there is no provider `{name}`; did you mean `{near}`?"),
        None => {
            format!("there is no provider `{name}`; the configuration has {}", names.join(", "))
        }
    }
}
