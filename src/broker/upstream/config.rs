//! `[[upstream]]`: the settings of one broker that Watchbell is a client of, and their check.
//!
//! Reads certificates and secrets to see that they are there, and connects to nothing. Never
//! prints a password. Invariant: an [`Upstream`] exists only of settings without a problem.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::address::Address;
use super::tls;
use crate::model::Qos;
use crate::secret::{Secret, SecretSource};
use crate::span::Span;
use crate::topic::{FilterLevel, TopicFilter, TopicLimits};

/// Which MQTT an upstream is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Version {
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V311,
    /// MQTT 5.0.
    #[default]
    #[serde(rename = "5.0")]
    V5,
}

/// A filter to subscribe to: `"plant/#"`, or `{ filter = "plant/#", qos = 0 }`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a filter, or { filter = \"plant/#\", qos = 0 }")]
pub enum Subscribe {
    /// With QoS 1.
    Filter(String),
    /// With its own QoS.
    Full(FullSubscribe),
}

/// `{ filter = "plant/#", qos = 0 }`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullSubscribe {
    filter: String,
    /// 0 or 1, default 1. There is no 2: rumqttc forgets at a reconnect which publishes it has
    /// half received, and then breaks each connection at the first PUBREL.
    #[serde(default = "at_least_once")]
    qos: u8,
}

fn at_least_once() -> u8 {
    1
}

impl Subscribe {
    fn filter(&self) -> &str {
        match self {
            Self::Filter(filter) => filter,
            Self::Full(full) => &full.filter,
        }
    }

    fn qos(&self) -> u8 {
        match self {
            Self::Filter(_) => at_least_once(),
            Self::Full(full) => full.qos,
        }
    }
}

/// The settings of one upstream, as they are written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its name in logs, metrics and topics: 1 to 32 of a-z, A-Z, 0-9, `_` and `-`. Required.
    pub name: String,
    /// `mqtts://host:8883` or `mqtt://host:1883`; several addresses of one cluster are tried in
    /// turn. Required, at most 16.
    pub url: Vec<String>,
    /// `3.1.1` or `5.0`. Default `5.0`.
    pub version: Version,
    /// Stable, because the upstream keeps the session under it, and different for each instance.
    /// Default `watchbell-{name}`; at most 256 characters.
    pub client_id: Option<String>,
    /// User name. Default none.
    pub user: Option<String>,
    /// Password, a secret. Default none.
    pub password: Option<SecretSource>,
    /// The CAs that the upstream's certificate may come from, PEM; required with mqtts.
    pub ca: Option<PathBuf>,
    /// Our certificate chain, PEM. Default none.
    pub cert: Option<PathBuf>,
    /// Its private key, PEM. Default none.
    pub key: Option<PathBuf>,
    /// Allows `mqtt://` to another machine: passwords and messages then travel in the clear.
    /// Default false.
    pub allow_plain: bool,
    /// What is taken from the upstream; at most 100 filters. Default none.
    pub subscribe: Vec<Subscribe>,
    /// The group of a shared subscription, so that several instances share one stream. Default
    /// none.
    pub share: Option<String>,
    /// Put before each topic that comes, taken off each that goes; ends with `/`. Default none.
    pub prefix: String,
    /// What is given to the upstream: filters of local topics, without the prefix; at most 100.
    /// Default none.
    pub publish: Vec<String>,
    /// How often the upstream is asked whether it is there; default 30s, 5s to 65535s.
    pub keep_alive: Span,
    /// Time for TCP, TLS and CONNACK together; default 10s, 1s to 5m.
    pub connect_timeout: Span,
    /// Whether the upstream forgets us at each disconnect, and with us what came meanwhile.
    /// Default false.
    pub clean_session: bool,
    /// How long it is asked to remember us (MQTT 5); default 24h.
    pub session_expiry: Span,
    /// The longest wait before the second try, doubled for each further one; default 1s, at least
    /// 10ms. The wait itself is random.
    pub backoff_min: Span,
    /// The longest wait of all; default 1m, at least `backoff_min`.
    pub backoff_max: Span,
    /// Most publishes that were read and are not on disk yet; default 100, 1 to 10000.
    pub inflight_max: u16,
    /// Most publishes to the upstream that it has not acknowledged; default 20, 1 to 500. On a long
    /// way it bounds what passes in a second: this many for each round trip.
    pub publish_inflight_max: u16,
    /// Largest packet taken, bytes; default 1048576 (1 MiB), 1024 to 268435455.
    pub packet_bytes_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: String::new(),
            url: Vec::new(),
            version: Version::V5,
            client_id: None,
            user: None,
            password: None,
            ca: None,
            cert: None,
            key: None,
            allow_plain: false,
            subscribe: Vec::new(),
            share: None,
            prefix: String::new(),
            publish: Vec::new(),
            keep_alive: Span::from_secs(30),
            connect_timeout: Span::from_secs(10),
            clean_session: false,
            session_expiry: Span::from_secs(24 * 3600),
            backoff_min: Span::from_secs(1),
            backoff_max: Span::from_secs(60),
            inflight_max: 100,
            publish_inflight_max: 20,
            packet_bytes_max: 1 << 20,
        }
    }
}

/// A filter as the upstream gets it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) filter: String,
    pub(super) qos: Qos,
    /// Our own publishes are not to come back (MQTT 5); not possible with a share.
    pub(super) no_local: bool,
}

/// One upstream, checked.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub(super) name: Arc<str>,
    pub(super) addresses: Vec<Address>,
    pub(super) client_id: String,
    pub(super) login: Option<(String, Secret)>,
    pub(super) wanted: Vec<Wanted>,
    pub(super) config: Config,
}

impl Upstream {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id that it knows us by.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The TLS settings. The files are read again each time, so that a renewed certificate counts
    /// from the next connection on.
    pub(super) fn tls(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        tls::client_config(&self.config)
    }
}

impl Config {
    /// Checks everything.
    ///
    /// # Errors
    /// All that is wrong: key and what.
    pub fn check(self, limits: TopicLimits) -> Result<Upstream, Vec<String>> {
        let mut problems = Vec::new();
        self.check_name(&mut problems);
        let addresses = self.check_urls(&mut problems);
        self.check_bounds(&mut problems);
        self.check_topics(limits, &mut problems);
        self.check_tls(&addresses, &mut problems);
        let mut login = None;
        match (&self.user, &self.password) {
            (Some(user), Some(source)) => match source.resolve() {
                Ok(password) => login = Some((user.clone(), password)),
                Err(error) => problems.push(format!("password: {error}")),
            },
            (Some(user), None) => login = Some((user.clone(), Secret::default())),
            (None, Some(_)) => problems.push("user: a password needs a user name".to_owned()),
            (None, None) => {}
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let is_shared = self.share.is_some();
        let wanted = |one: &Subscribe| Wanted {
            filter: match &self.share {
                Some(group) => format!("$share/{group}/{}", one.filter()),
                None => one.filter().to_owned(),
            },
            qos: if one.qos() == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce },
            no_local: !is_shared,
        };
        Ok(Upstream {
            name: self.name.as_str().into(),
            addresses,
            client_id: self.client_id.clone().unwrap_or(format!("watchbell-{}", self.name)),
            login,
            wanted: self.subscribe.iter().map(wanted).collect(),
            config: self,
        })
    }

    fn check_name(&self, problems: &mut Vec<String>) {
        let is_plain = |text: &str| {
            text.chars().all(|one| one.is_ascii_alphanumeric() || one == '_' || one == '-')
        };
        if !(1..=32).contains(&self.name.len()) || !is_plain(&self.name) {
            let what = "1 to 32 letters, digits, _ and -, as in \"plant-a\"";
            problems.push(format!("name: \"{}\" is no name; {what}", self.name));
        }
        if let Some(id) = &self.client_id
            && (!(1..=256).contains(&id.chars().count()) || id.chars().any(char::is_control))
        {
            problems.push("client_id: 1 to 256 characters, none of them control".to_owned());
        }
        if let Some(share) = &self.share
            && (share.is_empty() || share.contains(['/', '+', '#']))
        {
            problems.push(format!(
                "share: \"{share}\" is no group; it holds none of / + #, as in \"watchbell\""
            ));
        }
        if self.cert.is_some() != self.key.is_some() {
            problems.push("cert: a certificate and its key go together".to_owned());
        }
    }

    fn check_tls(&self, addresses: &[Address], problems: &mut Vec<String>) {
        if addresses.iter().any(|address| address.tls) {
            problems.extend(tls::client_config(self).err());
        } else if addresses.len() == self.url.len() {
            // Whoever named a CA or a certificate believes that the connection is encrypted.
            for (key, file) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
                if file.is_some() {
                    problems.push(format!(
                        "{key}: does nothing, because no address in `url` is mqtts; write mqtts://, or take it out"
                    ));
                }
            }
        }
    }

    fn check_urls(&self, problems: &mut Vec<String>) -> Vec<Address> {
        if !(1..=16).contains(&self.url.len()) {
            problems.push(
                "url: one to 16 addresses, as in [\"mqtts://broker.example.org:8883\"]".to_owned(),
            );
        }
        let mut addresses = Vec::new();
        for (index, text) in self.url.iter().enumerate() {
            match Address::parse(text) {
                None => problems.push(format!(
                    "url[{index}]: \"{text}\" is no address; write mqtts://host:8883 or mqtt://host:1883"
                )),
                Some(address) => {
                    if !address.tls && !address.is_this_machine() && !self.allow_plain {
                        problems.push(format!(
                            "url[{index}]: {address} is another machine, without TLS; use mqtts, or set allow_plain = true"
                        ));
                    }
                    addresses.push(address);
                }
            }
        }
        addresses
    }

    fn check_bounds(&self, problems: &mut Vec<String>) {
        for (key, value, least, most) in [
            ("keep_alive", self.keep_alive, 5_000, 65_535_000),
            ("connect_timeout", self.connect_timeout, 1_000, 300_000),
            ("backoff_min", self.backoff_min, 10, 3_600_000),
            ("backoff_max", self.backoff_max, 10, 86_400_000),
        ] {
            let (least, most) = (Span::from_millis(least), Span::from_millis(most));
            if !(least..=most).contains(&value) {
                problems.push(format!("{key}: {least} to {most}, found {value}"));
            }
        }
        if self.backoff_max < self.backoff_min {
            problems.push(format!("backoff_max: at least backoff_min, {}", self.backoff_min));
        }
        if !(1..=10_000).contains(&self.inflight_max) {
            problems.push(format!("inflight_max: 1 to 10000, found {}", self.inflight_max));
        }
        if !(1..=500).contains(&self.publish_inflight_max) {
            let found = self.publish_inflight_max;
            problems.push(format!("publish_inflight_max: 1 to 500, found {found}"));
        }
        if !(1024..=268_435_455).contains(&self.packet_bytes_max) {
            let found = self.packet_bytes_max;
            problems.push(format!("packet_bytes_max: 1024 to 268435455, found {found}"));
        }
    }

    fn check_topics(&self, limits: TopicLimits, problems: &mut Vec<String>) {
        let prefix = &self.prefix;
        if !prefix.is_empty()
            && (!prefix.ends_with('/') || prefix.starts_with('$') || prefix.contains(['+', '#']))
        {
            problems.push(format!(
                "prefix: \"{prefix}\" is no prefix; it ends with /, holds no + or #, and does not begin with $, as in \"plant-a/\""
            ));
        }
        if self.subscribe.is_empty() && self.publish.is_empty() {
            problems
                .push("subscribe: nothing is taken and nothing given; write [\"#\"]".to_owned());
        }
        let mut parse = |key: &str, texts: Vec<&str>| {
            if texts.len() > 100 {
                problems.push(format!("{key}: at most 100 filters"));
            }
            let mut filters = Vec::new();
            for (index, text) in texts.into_iter().enumerate() {
                // The prefix is on it wherever it is used here.
                let local = format!("{prefix}{text}");
                match TopicFilter::parse(text, limits)
                    .and_then(|filter| TopicFilter::parse(&local, limits).map(|_| filter))
                {
                    Ok(_) if text.starts_with("$share/") => problems
                        .push(format!("{key}[{index}]: write the group of \"{text}\" in `share`")),
                    Ok(filter) => filters.push(filter),
                    Err(error) => problems.push(format!("{key}[{index}]: \"{text}\": {error}")),
                }
            }
            filters
        };
        let taken = parse("subscribe", self.subscribe.iter().map(Subscribe::filter).collect());
        let given = parse("publish", self.publish.iter().map(String::as_str).collect());
        for (index, one) in self.subscribe.iter().enumerate().filter(|(_, one)| one.qos() > 1) {
            let found = one.qos();
            problems.push(format!(
                "subscribe[{index}].qos: 0 or 1, found {found}; a publish with QoS 2 comes with QoS 1"
            ));
        }
        // MQTT 5 has No Local for this, but not on a share.
        if self.version == Version::V5 && self.share.is_none() {
            return;
        }
        for (index, give) in given.iter().enumerate() {
            if let Some(take) = taken.iter().find(|take| overlaps(take, give)) {
                problems.push(format!(
                    "publish[{index}]: what goes by \"{give}\" would come back by \"{take}\" of `subscribe`; make them disjoint, or use version 5.0 without share"
                ));
            }
        }
    }
}

/// Whether there is a topic that both match.
fn overlaps(one: &TopicFilter, other: &TopicFilter) -> bool {
    let (mut one, mut other) = (one.levels().iter(), other.levels().iter());
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some(FilterLevel::Rest), _) | (_, Some(FilterLevel::Rest)) => return true,
            (None, _) | (_, None) => return false,
            (Some(FilterLevel::Exact(a)), Some(FilterLevel::Exact(b))) if a != b => return false,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(toml: &str) -> Result<Upstream, Vec<String>> {
        toml::from_str::<Config>(toml).expect("valid TOML").check(TopicLimits::default())
    }

    #[test]
    fn filters_overlap_where_one_topic_fits_both() {
        let filter = |text| TopicFilter::parse(text, TopicLimits::default()).expect("valid");
        for (one, other, expected) in [
            ("a/#", "a/b", true),
            ("a/#", "a", true),
            ("a/+/c", "a/b/+", true),
            ("a/+", "a/b/c", false),
            ("a/b", "a/c", false),
            ("#", "cmd/#", true),
            ("plant/#", "cmd/#", false),
        ] {
            assert_eq!(overlaps(&filter(one), &filter(other)), expected, "{one} {other}");
            assert_eq!(overlaps(&filter(other), &filter(one)), expected, "{other} {one}");
        }
    }

    #[test]
    fn little_is_enough_and_the_share_is_in_the_filters() {
        let upstream = check(
            "name = 'plant'\nurl = ['mqtt://localhost']\nshare = 'g'\n\
             subscribe = ['a/#', { filter = 'b', qos = 0 }]",
        )
        .expect("valid");
        assert_eq!(upstream.client_id, "watchbell-plant");
        let wanted: Vec<_> =
            upstream.wanted.iter().map(|one| (one.filter.as_str(), one.qos)).collect();
        let expected = [("$share/g/a/#", Qos::AtLeastOnce), ("$share/g/b", Qos::AtMostOnce)];
        assert_eq!(wanted, expected);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_key() {
        let base = "name = 'plant'\nurl = ['mqtt://localhost']\n";
        for (toml, expected) in [
            ("url = ['mqtt://localhost']\nsubscribe = ['#']", "name: \"\" is no name"),
            ("name = 'a'\nsubscribe = ['#']", "url: one to 16"),
            ("name = 'a'\nurl = ['mqtt://b.example.org']\nsubscribe = ['#']", "allow_plain"),
            ("name = 'a'\nurl = ['mqtts://localhost']\nsubscribe = ['#']", "ca: mqtts needs"),
            (base, "subscribe: nothing"),
            (&format!("{base}subscribe = ['a/#/b']"), "subscribe[0]: \"a/#/b\""),
            (&format!("{base}subscribe = ['$share/g/a']"), "in `share`"),
            (&format!("{base}subscribe = [{{ filter = 'a', qos = 2 }}]"), "0 or 1, found 2"),
            (&format!("{base}subscribe = ['a']\nprefix = 'plant'"), "ends with /"),
            (&format!("{base}subscribe = ['a']\npassword = 'x'"), "needs a user name"),
            (&format!("{base}subscribe = ['a']\npublish = ['+a']"), "publish[0]: \"+a\""),
            (&format!("{base}subscribe = ['a']\nkeep_alive = '1s'"), "keep_alive: 5s to"),
            (&format!("{base}subscribe = ['a']\nca = 'x'"), "ca: does nothing"),
            (&format!("{base}subscribe = ['a']\npublish_inflight_max = 0"), "max: 1 to 500"),
            (&format!("{base}subscribe = ['a']\ninflight_max = 0"), "inflight_max: 1 to"),
            (
                &format!("{base}version = '3.1.1'\nsubscribe = ['#']\npublish = ['cmd/#']"),
                "would come back",
            ),
            (&format!("{base}share = 'g'\nsubscribe = ['#']\npublish = ['cmd/#']"), "come back"),
        ] {
            let problems = check(toml).err().unwrap_or_default();
            assert_eq!(problems.len(), 1, "{toml}: {problems:#?}");
            assert!(problems[0].contains(expected), "{toml}: {problems:#?}");
        }
        check(&format!("{base}subscribe = ['#']\npublish = ['cmd/#']")).expect("No Local");
        let problems = check(&format!("{base}subscribe = ['a']\ncert = 'x'")).expect_err("half");
        assert!(problems.iter().any(|one| one.contains("go together")), "{problems:#?}");
    }
}
