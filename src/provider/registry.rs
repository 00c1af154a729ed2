//! The kinds of providers, and how a `[[provider]]` table becomes one.
//!
//! A new provider is a file beside this one with a `KIND`, and one line in [`KINDS`].

use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use super::http::{Http, Settings};
use super::phone::Screen;
use super::rate::Rate;
use super::{Provider, fcm, phone, twilio, webhook, whatsapp_cloud};
use crate::clock::Clock;
use crate::model::Channel;
use crate::problem::{self, Fault, Step, closest, unknown_key};
use crate::secret::{Secret, SecretSource};
use crate::span::Span;

/// Every kind of provider.
pub const KINDS: &[Kind] =
    &[twilio::KIND, whatsapp_cloud::KIND, fcm::KIND, webhook::KIND, phone::KIND];

/// One kind of provider: what it can do, and how it is built.
#[derive(Debug)]
pub struct Kind {
    /// The word in the configuration.
    pub(super) name: &'static str,
    /// What it can serve; also the default of `channels`.
    pub(super) channels: &'static [Channel],
    /// What it talks to.
    pub(super) reach: Reach,
    /// The default of `rate`.
    pub(super) rate: Option<Rate>,
    /// The default of `concurrency`.
    pub(super) concurrency: usize,
    /// Its own keys, beside the common ones.
    pub(super) keys: fn() -> &'static [&'static str],
    pub(super) build: Build,
}

/// Makes the provider, or says everything that is wrong with its own keys.
pub(super) type Build = fn(&mut Parts<'_>) -> Option<Arc<dyn Provider>>;

/// What a kind talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Nothing outside this process: `base_url`, `timeout`, `proxy` and `allow_http` make no sense.
    Inside,
    /// One service, here by default.
    Service(&'static str),
    /// Whatever a message's address names: `base_url` makes no sense.
    Anywhere,
}

/// The keys that every `[[provider]]` table may have.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Common {
    /// Its name, by which channels, logs and metrics call it: 1 to 64 of a-z, 0-9, `-`, `_`.
    /// Required.
    pub name: Option<String>,
    /// Which kind of provider it is: one of [`KINDS`]. Required.
    pub kind: Option<String>,
    /// Which channels it serves; default: all that its kind can.
    pub channels: Option<Vec<Channel>>,
    /// How fast it may be called at most, as `1/s`, `300/m`, `1000/h`; default: what the
    /// provider's own limit is where it has one and refuses what is above (`whatsapp-cloud` 80/s,
    /// `fcm` 10000/s), else unlimited. Twilio queues by itself, first come first served: set this
    /// to your sender's throughput (US long code 1/s, toll-free 3/s, short code 100/s) and urgent
    /// messages overtake the others here.
    pub rate: Option<Rate>,
    /// How many calls may wait for an answer at a time: 1 to 1000, default 4; for `webhook` 32, because
    /// each host has its own few of them (`dispatch.endpoint.concurrency`).
    pub concurrency: Option<usize>,
    /// Where its API is; default: the provider's public address. Not for `webhook` and `phone`.
    pub base_url: Option<String>,
    /// How long one call may take in all: 1s to 2m, default 15s. Not for `phone`.
    pub timeout: Option<Span>,
    /// An HTTP proxy to go through, as `http://user:password@proxy:3128`; default none: what the
    /// environment says of proxies is not heeded. Not for `phone`.
    pub proxy: Option<SecretSource>,
    /// Allows plain `http://` to other machines, where credentials and messages can be read on
    /// the way; default false. To this machine it is always allowed. Not for `phone`.
    pub allow_http: Option<bool>,
}

/// What providers share with the rest of the process.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Where the virtual phone shows what it gets.
    pub screen: Screen,
    /// The time, for signatures, tokens and validity periods.
    pub clock: Clock,
}

/// A provider as configured.
pub struct Entry {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: &'static str,
    /// Which channels it serves.
    pub channels: Vec<Channel>,
    /// How fast it may be called at most.
    pub rate: Option<Rate>,
    /// How many calls may wait for an answer at a time.
    pub concurrency: usize,
    /// The provider.
    pub provider: Arc<dyn Provider>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("channels", &self.channels)
            .field("rate", &self.rate)
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl Kind {
    /// The word in the configuration.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What it can serve.
    pub const fn channels(&self) -> &'static [Channel] {
        self.channels
    }

    /// Every key that a table of this kind may have: the common ones, then its own.
    pub fn keys(&self) -> Vec<&'static str> {
        let senseless: &[&str] = match self.reach {
            Reach::Inside => &["base_url", "timeout", "proxy", "allow_http"],
            Reach::Service(_) => &[],
            Reach::Anywhere => &["base_url"],
        };
        let common = fields::<Common>().iter().copied();
        common.filter(|key| !senseless.contains(key)).chain((self.keys)().iter().copied()).collect()
    }
}

/// Makes a provider from its table. Secrets are fetched here: files are read and commands run.
///
/// # Errors
/// Everything that is wrong with the table, each with its path from the table's root.
pub fn read(table: &Table, shared: &Shared) -> Result<Entry, Vec<Fault>> {
    let mut faults = Faults::default();
    let Some(kind) = kind(table, &mut faults) else {
        return Err(faults.0);
    };
    let keys = kind.keys();
    let (mut common, mut own) = (Table::new(), Table::new());
    for (key, value) in table {
        if fields::<Common>().contains(&key.as_str()) && keys.contains(&key.as_str()) {
            common.insert(key.clone(), value.clone());
        } else if keys.contains(&key.as_str()) {
            own.insert(key.clone(), value.clone());
        } else if fields::<Common>().contains(&key.as_str()) {
            faults.at(key, format!("makes no sense for kind `{}`; remove it", kind.name));
        } else {
            faults.at(key, unknown_key(key, &keys));
        }
    }
    let common: Common = faults.read(common);
    let name = name(common.name.as_deref(), &mut faults);
    let channels = channels(kind, common.channels, &mut faults);
    let concurrency = common.concurrency.unwrap_or(kind.concurrency);
    if !(1..=1000).contains(&concurrency) {
        faults.at("concurrency", format!("1 to 1000, found {concurrency}"));
    }
    let way = way(kind, &common.base_url, common.timeout, &common.proxy, &mut faults);
    let mut parts = Parts {
        table: own,
        base_url: way.base_url,
        timeout: way.timeout,
        concurrency,
        proxy: way.proxy,
        allow_http: common.allow_http.unwrap_or(false),
        shared,
        faults,
    };
    parts.check_plain_http();
    let provider = (kind.build)(&mut parts);
    match provider {
        Some(provider) if parts.faults.0.is_empty() => Ok(Entry {
            name,
            kind: kind.name,
            channels,
            rate: common.rate.or(kind.rate),
            concurrency,
            provider,
        }),
        _ => Err(parts.faults.0),
    }
}

fn kind(table: &Table, faults: &mut Faults) -> Option<&'static Kind> {
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let known = names.join(", ");
    let word = match table.get("kind") {
        Some(Value::String(word)) => word,
        Some(_) => {
            faults.at("kind", format!("expected text; known kinds are {known}"));
            return None;
        }
        None => {
            faults.at("kind", format!("is missing; known kinds are {known}"));
            return None;
        }
    };
    let found = KINDS.iter().find(|kind| kind.name == word);
    if found.is_none() {
        let next = match closest(word, &names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("known kinds are {known}"),
        };
        faults.at("kind", format!("unknown kind `{word}`; {next}"));
    }
    found
}

fn name(name: Option<&str>, faults: &mut Faults) -> Arc<str> {
    let Some(name) = faults.need("name", name) else {
        return Arc::from("");
    };
    let ok = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    if !(1..=64).contains(&name.len()) || !name.bytes().all(ok) {
        faults.at("name", "1 to 64 of a-z, 0-9, - and _");
    }
    Arc::from(name)
}

fn channels(kind: &Kind, asked: Option<Vec<Channel>>, faults: &mut Faults) -> Vec<Channel> {
    let Some(asked) = asked else {
        return kind.channels.to_vec();
    };
    if asked.is_empty() {
        faults.at("channels", "is empty; leave it out for all that the kind can serve");
    }
    let can: Vec<&str> = kind.channels.iter().map(|channel| channel.as_str()).collect();
    let mut channels = Vec::new();
    for channel in asked {
        if !kind.channels.contains(&channel) {
            let others: Vec<&str> = KINDS
                .iter()
                .filter(|kind| kind.channels.contains(&channel))
                .map(|kind| kind.name)
                .collect();
            faults.at(
                "channels",
                format!(
                    "`{}` serves {}, not {channel}; for {channel} there are {}",
                    kind.name,
                    can.join(", "),
                    others.join(", ")
                ),
            );
        } else if !channels.contains(&channel) {
            channels.push(channel);
        }
    }
    channels
}

struct Way {
    base_url: Option<Url>,
    timeout: Duration,
    proxy: Option<reqwest::Proxy>,
}

fn way(
    kind: &Kind,
    base_url: &Option<String>,
    timeout: Option<Span>,
    proxy: &Option<SecretSource>,
    faults: &mut Faults,
) -> Way {
    let base_url = match (kind.reach, base_url) {
        (Reach::Service(default), text) => {
            faults.url("base_url", text.as_deref().unwrap_or(default))
        }
        _ => None,
    };
    let timeout = timeout.unwrap_or(Span::from_secs(15));
    if !(Span::from_secs(1)..=Span::from_secs(120)).contains(&timeout) {
        faults.at("timeout", format!("1s to 2m, found {timeout}"));
    }
    let proxy = faults.secret("proxy", proxy.clone()).and_then(|url| {
        let proxy = reqwest::Proxy::all(url.expose()).ok();
        if proxy.is_none() {
            faults.at("proxy", "not a proxy's URL; write http://proxy.example.org:3128");
        }
        proxy
    });
    Way { base_url, timeout: timeout.get(), proxy }
}

/// What a kind is built from, and where it reports what is wrong.
pub(super) struct Parts<'a> {
    /// Its own keys; see [`Parts::own`].
    table: Table,
    base_url: Option<Url>,
    timeout: Duration,
    concurrency: usize,
    proxy: Option<reqwest::Proxy>,
    /// Whether plain http to other machines is allowed.
    pub(super) allow_http: bool,
    pub(super) shared: &'a Shared,
    pub(super) faults: Faults,
}

impl Parts<'_> {
    /// The kind's own keys as its `Config`; the default after a fault.
    pub(super) fn own<T: DeserializeOwned + Default>(&mut self) -> T {
        self.faults.read(std::mem::take(&mut self.table))
    }

    /// The service's address. `None` only after a fault.
    pub(super) fn base_url(&self) -> Option<Url> {
        self.base_url.clone()
    }

    /// Whether a proxy stands between us and the receiver.
    pub(super) fn has_proxy(&self) -> bool {
        self.proxy.is_some()
    }

    /// The client. `None` only after a fault.
    pub(super) fn http(&mut self, public_only: bool) -> Option<Http> {
        let settings = Settings {
            timeout: self.timeout,
            connections_kept: self.concurrency,
            proxy: self.proxy.take(),
            public_only,
        };
        match Http::new(settings) {
            Ok(http) => Some(http),
            Err(what) => {
                self.faults.0.push(Fault { path: Vec::new(), what });
                None
            }
        }
    }

    fn check_plain_http(&mut self) {
        let Some(url) = self.base_url.clone() else {
            return;
        };
        self.refuse_plain("base_url", &url);
    }

    /// A fault where `url` would carry secrets over the network in the clear.
    pub(super) fn refuse_plain(&mut self, key: &str, url: &Url) {
        if url.scheme() == "http" && !self.allow_http && !is_loopback(url) {
            self.faults.at(
                key,
                "plain http to another machine shows credentials and messages to everyone on the \
                 way; use https, or set allow_http = true",
            );
        }
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What is wrong with a table, so far.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// Notes what is wrong with a key.
    pub(super) fn at(&mut self, key: &str, what: impl Into<String>) {
        self.0.push(Fault { path: vec![Step::from(key)], what: what.into() });
    }

    /// Reads what can be read; keys at fault are left out, so that the others are checked too.
    fn read<T: DeserializeOwned + Default>(&mut self, mut table: Table) -> T {
        match problem::read(Value::Table(table.clone())) {
            Ok(read) => read,
            Err(faults) => {
                table.retain(|key, _| {
                    !faults.iter().any(|fault| fault.path.first() == Some(&Step::from(key)))
                });
                self.0.extend(faults);
                problem::read(Value::Table(table)).unwrap_or_default()
            }
        }
    }

    /// The value of a required key.
    pub(super) fn need<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        // A key that could not be read has its fault already.
        let reported = self.0.iter().any(|fault| fault.path.first() == Some(&Step::from(key)));
        if value.is_none() && !reported {
            self.at(key, "is missing");
        }
        value
    }

    /// The secret behind a key, where the key is there.
    pub(super) fn secret(&mut self, key: &str, source: Option<SecretSource>) -> Option<Secret> {
        match source?.resolve() {
            Ok(secret) => Some(secret),
            Err(error) => {
                self.at(key, error.to_string());
                None
            }
        }
    }

    /// A required secret.
    pub(super) fn need_secret(
        &mut self,
        key: &str,
        source: Option<SecretSource>,
    ) -> Option<Secret> {
        let source = self.need(key, source)?;
        self.secret(key, Some(source))
    }

    /// An http or https URL without query, fragment and credentials.
    pub(super) fn url(&mut self, key: &str, text: &str) -> Option<Url> {
        let url = Url::parse(text).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        });
        if url.is_none() {
            self.at(key, "not a URL as https://api.example.org, without query and credentials");
        }
        url
    }
}

/// The keys of a struct, from its `Deserialize`.
pub(super) fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut fields: &'static [&'static str] = &[];
    // It notes the names and refuses to go on; there is nothing to read.
    drop(T::deserialize(Fields(&mut fields)));
    fields
}

struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("only the fields"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}
