//! The broker's settings, `[broker]`: what each means, in which unit, its default and its range.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::auth::{self, Anonymous};
use super::listener::{self, Settings};
use super::load::config::Limits;
use crate::network::Network;
use crate::span::Span;

/// The broker's settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port for MQTT without TLS; empty for none. Default `127.0.0.1:1883`. An address
    /// that other machines can reach is refused unless `allow_plain_remote` is set.
    pub listen: String,
    /// Allows `listen` on an address that other machines can reach: passwords and alerts then
    /// travel in the clear. Default false.
    pub allow_plain_remote: bool,
    /// Address and port for MQTT over TLS 1.2 and 1.3; empty for none. Default `0.0.0.0:8883`.
    pub listen_tls: String,
    /// The server's certificate chain, PEM. Default `certs/server.pem`.
    pub cert: PathBuf,
    /// The server's private key, PEM. Default `certs/server.key`.
    pub key: PathBuf,
    /// The CAs of client certificates, PEM, one file or a list; empty: clients are not asked for
    /// one. Default `certs/ca.pem`.
    pub client_ca: Paths,
    /// Lists of revoked client certificates (CRLs), PEM, one file or a list; default none. One
    /// that has expired stays in force: what it revokes stays revoked, and nobody else is locked
    /// out.
    pub crl: Paths,
    /// Whether a client without a certificate is refused in the TLS handshake. Default false.
    pub require_client_cert: bool,
    /// Who may come without a name: `loopback` (peers on this machine) or `never`. Default
    /// `loopback`.
    pub anonymous: Anonymous,
    /// Further listeners, `[[listener]]`.
    #[serde(skip)]
    pub listeners: Vec<listener::Config>,

    /// Most open connections; default 20000, 1 to 1000000. Each takes a file descriptor.
    pub connections_max: usize,
    /// Most open connections from one address, this machine excepted; default 1000, at least 1.
    pub connections_per_address_max: usize,
    /// Failed logins of one user name from one address within `failed_logins_window`, after which
    /// that user is refused unheard there; default 10, at least 1.
    pub failed_logins_max: u32,
    /// Failed logins from one address in all within `failed_logins_window`, after which nobody is
    /// heard there but certificates, tokens, and passwords that were right a short while ago; default
    /// 100, at least 1. Tokens that none of our keys has signed count by themselves.
    pub failed_logins_per_address_max: u32,
    /// How long a failed login counts; default 1m, 1s to 24h.
    pub failed_logins_window: Span,
    /// How long the first such refusal lasts, and each further one twice as long as the one before;
    /// default 1m, 1s to 24h.
    pub failed_logins_ban: Span,
    /// The longest such refusal; default 1h, at least `failed_logins_ban`, at most 30d.
    pub failed_logins_ban_max: Span,
    /// Connections of one client within `flapping_window`, after which it is refused for
    /// `flapping_ban`; default 60, 0: as many as it likes.
    pub flapping_connects_max: u32,
    /// How long a connection counts; default 1m, 1s to 24h.
    pub flapping_window: Span,
    /// How long a client that flaps is refused; default 1m, 1s to 24h.
    pub flapping_ban: Span,
    /// Addresses for which the limits on addresses, failed logins and flapping do not hold; default
    /// this machine, `["127.0.0.0/8", "::1/128"]`.
    pub limits_exempt: Vec<Network>,
    /// Passwords checked at a time; each takes about 19 MiB and a CPU. Default 2, 1 to 64. Who has
    /// waited for its turn for `connect_timeout` is told to come again.
    pub password_checks_max: usize,
    /// Time for the PROXY protocol header, for the peer's first message of the TLS handshake, for the
    /// rest of that, and for the WebSocket upgrade, each; default 10s.
    pub handshake_timeout: Span,
    /// Most TLS handshakes whose costly step is done at a time; the others stand in line. Default
    /// 64, 1 to 65536.
    pub handshakes_max: usize,
    /// How long one may stand in line, which does not count as its `handshake_timeout`; default
    /// 60s.
    pub handshake_wait: Span,
    /// Time for the CONNECT after that; default 5s.
    pub connect_timeout: Span,
    /// How long a client may leave what is written to it unread; default 10s.
    pub write_timeout: Span,
    /// How long a connection that has ended waits for its commits; default 5s.
    pub close_timeout: Span,
    /// Longest keep-alive, MQTT 5 clients are told; 0s for any, none included. Default 0s, at most
    /// 65535s.
    pub keep_alive_max: Span,

    /// Largest CONNECT, bytes; default 8192, 256 to 1048576.
    pub connect_bytes_max: usize,
    /// Largest packet, bytes; default 1048576 (1 MiB), 1024 to 268435455.
    pub packet_bytes_max: usize,
    /// Most client events (`$watchbell/client/...`) that wait to be told; default 10000, 16 to
    /// 1000000. Then `refused` ones are dropped first.
    pub client_events_max: usize,
    /// Longest client id, characters; default 64, 23 to 256.
    pub client_id_chars_max: usize,
    /// Longest topic or filter, bytes; default 512, 1 to 65535.
    pub topic_bytes_max: usize,
    /// Most levels of a topic or filter; default 16, 1 to 128.
    pub topic_levels_max: usize,
    /// Most topic aliases in each direction of an MQTT 5 connection; default 16, 0 to 1024.
    pub topic_alias_max: u16,

    /// Most publishes of one connection that are not acknowledged yet, which is Receive Maximum
    /// towards MQTT 5 clients; default 256, 1 to 65535. Then it is not read from.
    pub commits_max: usize,
    /// Bytes that may wait for one socket; default 65536, 1024 to 16777216. Then it is not read
    /// from.
    pub output_bytes_max: usize,
    /// Most unacknowledged publishes on the way to one client; default 64, 1 to 10000.
    pub inflight_max: usize,
    /// Most publishes that wait for one client; default 1000, 1 to 60000. QoS 0 makes room for the
    /// others; then the newest is dropped, and a connected client whose queue has been full for
    /// `write_timeout` is disconnected.
    pub queue_messages_max: usize,
    /// Bytes of publishes that wait for one client: topics, payloads, and properties, of which each
    /// User Property counts as at least 96; default 4194304 (4 MiB), at least `packet_bytes_max`.
    /// More are dropped. When as many that it sent wait for the store, it is
    /// not read from.
    pub queue_bytes_max: usize,
    /// How long a publish waits for one client at most; default 24h. Then it is dropped.
    pub queue_age_max: Span,
    /// The same for all clients together, each copy counted; default 268435456 (256 MiB), at least
    /// `packet_bytes_max`. More are dropped, but for a connected client for which less than
    /// `output_bytes_max` waits.
    pub queued_bytes_max: usize,
    /// Most subscriptions of one client; default 100, at least 1.
    pub subscriptions_max: usize,
    /// Most sessions, connected or not; default 50000, at least `connections_max`.
    pub sessions_max: usize,
    /// How long a session waits for its client at most; default 24h. On disk with what waits in it
    /// as soon as it has a subscription.
    pub session_expiry_max: Span,
    /// Most retained messages; default 10000.
    pub retained_messages_max: usize,
    /// Bytes of retained messages, properties included; default 16777216 (16 MiB).
    pub retained_bytes_max: usize,

    /// Limits on load: how fast clients may send and connect, and how much one identity may have.
    pub limits: Limits,
    /// Who hands publishes to subscribers: `hub`, or `router`, which is rumqttd's and in the build
    /// only with the cargo feature `rumqttd`; it gives plain subscriptions of sessions that end with
    /// their connection live copies of QoS 0. Default `hub`.
    pub fanout: Fanout,
    /// How often subscribers of `$SYS/broker/...` get the values there; 0s: there is no `$SYS`.
    /// Default 10s.
    pub sys_interval: Span,
    /// `[auth]`: a section of its own, put here by whoever reads the configuration.
    #[serde(skip)]
    pub auth: auth::Config,
}

/// Who hands publishes to subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fanout {
    /// The hub, to everybody.
    Hub,
    /// rumqttd's router, where it can; needs the cargo feature `rumqttd`.
    Router,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:1883".to_owned(),
            allow_plain_remote: false,
            listen_tls: "0.0.0.0:8883".to_owned(),
            cert: "certs/server.pem".into(),
            key: "certs/server.key".into(),
            client_ca: PathBuf::from("certs/ca.pem").into(),
            require_client_cert: false,
            anonymous: Anonymous::Loopback,
            crl: Paths::default(),
            listeners: Vec::new(),
            connections_max: 20_000,
            connections_per_address_max: 1000,
            failed_logins_max: 10,
            failed_logins_per_address_max: 100,
            failed_logins_window: Span::from_secs(60),
            failed_logins_ban: Span::from_secs(60),
            failed_logins_ban_max: Span::from_secs(3600),
            flapping_connects_max: 60,
            flapping_window: Span::from_secs(60),
            flapping_ban: Span::from_secs(60),
            limits_exempt: ["127.0.0.0/8", "::1/128"]
                .map(|text| text.parse().expect("an address range"))
                .to_vec(),
            password_checks_max: 2,
            handshake_timeout: Span::from_secs(10),
            handshakes_max: 64,
            handshake_wait: Span::from_secs(60),
            connect_timeout: Span::from_secs(5),
            write_timeout: Span::from_secs(10),
            close_timeout: Span::from_secs(5),
            keep_alive_max: Span::from_secs(0),
            connect_bytes_max: 8192,
            packet_bytes_max: 1 << 20,
            client_events_max: 10_000,
            client_id_chars_max: 64,
            topic_bytes_max: 512,
            topic_levels_max: 16,
            topic_alias_max: 16,
            commits_max: 256,
            output_bytes_max: 64 << 10,
            inflight_max: 64,
            queue_messages_max: 1000,
            queue_bytes_max: 4 << 20,
            queue_age_max: Span::from_secs(24 * 3600),
            queued_bytes_max: 256 << 20,
            subscriptions_max: 100,
            sessions_max: 50_000,
            session_expiry_max: Span::from_secs(24 * 3600),
            retained_messages_max: 10_000,
            retained_bytes_max: 16 << 20,
            limits: Limits::default(),
            fanout: Fanout::Hub,
            sys_interval: Span::from_secs(10),
            auth: auth::Config::default(),
        }
    }
}

impl Config {
    /// Everything wrong with the values.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.listener_problems();
        let mut range = |key: &str, value: usize, least: usize, most: usize| {
            if !(least..=most).contains(&value) {
                let most = match most {
                    usize::MAX => String::new(),
                    most => format!(" and at most {most}"),
                };
                problems.push(format!("broker.{key}: {value} is not at least {least}{most}"));
            }
        };
        range("connections_max", self.connections_max, 1, 1_000_000);
        range("connections_per_address_max", self.connections_per_address_max, 1, usize::MAX);
        range("failed_logins_max", self.failed_logins_max as usize, 1, usize::MAX);
        let per_address = self.failed_logins_per_address_max as usize;
        range("failed_logins_per_address_max", per_address, 1, usize::MAX);
        range("limits_exempt", self.limits_exempt.len(), 0, 1000);
        range("password_checks_max", self.password_checks_max, 1, 64);
        range("handshakes_max", self.handshakes_max, 1, 65_536);
        range("connect_bytes_max", self.connect_bytes_max, 256, 1 << 20);
        range("packet_bytes_max", self.packet_bytes_max, 1024, 268_435_455);
        range("client_events_max", self.client_events_max, 16, 1_000_000);
        range("client_id_chars_max", self.client_id_chars_max, 23, 256);
        range("topic_bytes_max", self.topic_bytes_max, 1, 65_535);
        range("topic_levels_max", self.topic_levels_max, 1, 128);
        range("topic_alias_max", self.topic_alias_max.into(), 0, 1024);
        range("commits_max", self.commits_max, 1, 65_535);
        range("output_bytes_max", self.output_bytes_max, 1024, 16 << 20);
        range("inflight_max", self.inflight_max, 1, 10_000);
        range("queue_messages_max", self.queue_messages_max, 1, 60_000);
        range("queue_bytes_max", self.queue_bytes_max, self.packet_bytes_max, usize::MAX);
        range("queued_bytes_max", self.queued_bytes_max, self.packet_bytes_max, usize::MAX);
        let key = "limits.total.input_bytes_max";
        range(key, self.limits.total.input_bytes_max, self.packet_bytes_max, usize::MAX);
        range("subscriptions_max", self.subscriptions_max, 1, usize::MAX);
        range("sessions_max", self.sessions_max, self.connections_max, usize::MAX);
        for (key, span) in [
            ("handshake_timeout", self.handshake_timeout),
            ("handshake_wait", self.handshake_wait),
            ("connect_timeout", self.connect_timeout),
            ("write_timeout", self.write_timeout),
            ("close_timeout", self.close_timeout),
            ("queue_age_max", self.queue_age_max),
        ] {
            if span.is_zero() {
                problems.push(format!("broker.{key}: nothing is done in no time; write 5s"));
            }
        }
        for (key, span) in [
            ("failed_logins_window", self.failed_logins_window),
            ("failed_logins_ban", self.failed_logins_ban),
            ("flapping_window", self.flapping_window),
            ("flapping_ban", self.flapping_ban),
        ] {
            if !(Span::from_secs(1)..=Span::from_secs(24 * 3600)).contains(&span) {
                problems.push(format!("broker.{key}: 1s to 24h, found {span}"));
            }
        }
        let longest = Span::from_secs(30 * 24 * 3600);
        if !(self.failed_logins_ban..=longest).contains(&self.failed_logins_ban_max) {
            let found = self.failed_logins_ban_max;
            problems.push(format!(
                "broker.failed_logins_ban_max: broker.failed_logins_ban to 30d, found {found}"
            ));
        }
        if self.keep_alive_max > Span::from_secs(65_535) {
            problems.push("broker.keep_alive_max: MQTT has at most 65535s".to_owned());
        }
        if self.fanout == Fanout::Router && !cfg!(feature = "rumqttd") {
            problems.push(
                "broker.fanout: \"router\" is not in this build; build it with `cargo build \
                 --release --features rumqttd`, or write \"hub\""
                    .to_owned(),
            );
        }
        problems.extend(self.limits.problems());
        problems
    }

    fn listener_problems(&self) -> Vec<String> {
        let (listeners, mut problems) = self.all_listeners();
        if self.require_client_cert && self.client_ca.is_empty() {
            problems.push(
                "broker.require_client_cert: needs broker.client_ca, whose certificates count"
                    .to_owned(),
            );
        }
        let mut names = HashSet::new();
        for listener in listeners.iter().filter(|listener| !names.insert(&listener.name)) {
            let (prefix, name) = (&listener.prefix, &listener.name);
            problems.push(format!("{prefix}.name: `{name}` is the name of another listener"));
        }
        problems
    }

    /// Whether a listener has this certificate.
    pub fn serves_with(&self, cert: &Path) -> bool {
        let (listeners, _) = self.all_listeners();
        let mut files = listeners.iter().filter_map(|listener| listener.files.as_ref());
        files.any(|files| files.cert.value == cert)
    }

    /// The listeners of `[broker]` and `[[listener]]` with what they inherit, and what is wrong with
    /// them. The names `mqtt` and `mqtts` are those of `listen` and `listen_tls`.
    pub(super) fn all_listeners(&self) -> (Vec<Settings>, Vec<String>) {
        let mut problems = Vec::new();
        let mut found = Vec::new();
        let example = "write an address and a port, as in 127.0.0.1:1883, or \"\" for none";
        match parse_address(&self.listen) {
            Err(()) => {
                problems
                    .push(format!("broker.listen: \"{}\" is no address; {example}", self.listen));
            }
            Ok(Some(address)) if !is_loopback(address) && !self.allow_plain_remote => {
                problems.push(format!(
                    "broker.listen: {address} can be reached from other machines without TLS; use \
                     listen_tls, or set broker.allow_plain_remote = true"
                ));
            }
            Ok(address) => found.extend(address.map(|address| Settings::plain(self, address))),
        }
        match parse_address(&self.listen_tls) {
            Err(()) => problems.push(format!(
                "broker.listen_tls: \"{}\" is no address; {example}",
                self.listen_tls
            )),
            Ok(address) => found.extend(address.map(|address| Settings::tls(self, address))),
        }
        for (index, listener) in self.listeners.iter().enumerate() {
            match listener.settings(self, &format!("listener[{index}]")) {
                Ok(settings) => found.push(settings),
                Err(wrong) => problems.extend(wrong),
            }
        }
        (found, problems)
    }
}

/// Whether nobody but this machine reaches it.
pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Files: one, several, or none, which is written as an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths(Vec<PathBuf>);

impl Paths {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(PathBuf::as_path)
    }
}

impl From<PathBuf> for Paths {
    fn from(path: PathBuf) -> Self {
        Self(vec![path])
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<String> = self.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&paths.join(", "))
    }
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Vec<PathBuf>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }

            fn visit_str<E>(self, path: &str) -> Result<Self::Value, E> {
                Ok(vec![path.into()])
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(paths)
            }
        }

        let mut paths = deserializer.deserialize_any(OneOrMore)?;
        paths.retain(|path| !path.as_os_str().is_empty());
        Ok(Self(paths))
    }
}

/// Empty is no listener.
pub(super) fn parse_address(text: &str) -> Result<Option<SocketAddr>, ()> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(toml: &str) -> Vec<String> {
        toml::from_str::<Config>(toml).expect("valid TOML").problems()
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(problems("").is_empty());
        assert!(problems("listen = ''\nlisten_tls = ''\nclient_ca = ''").is_empty());
    }

    #[test]
    #[cfg(not(feature = "rumqttd"))]
    fn a_fanout_that_is_not_in_the_build_says_how_to_build_it() {
        let found = problems("fanout = 'router'");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("--features rumqttd"), "{found:#?}");
    }

    #[test]
    fn every_problem_is_said_at_once() {
        let found = problems(
            "listen = '0.0.0.0:1883'\nlisten_tls = 'x'\nclient_ca = ''\nrequire_client_cert = true\n\
             commits_max = 0\nwrite_timeout = '0s'\nsessions_max = 5",
        );
        assert_eq!(found.len(), 6, "{found:#?}");
        assert!(found[0].contains("allow_plain_remote = true"));
        assert!(problems("listen = '0.0.0.0:1883'\nallow_plain_remote = true").is_empty());
    }
}
