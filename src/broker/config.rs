//! The broker's settings, `[broker]`: what each means, in which unit, its default and its range.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::auth::Anonymous;
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
    /// The CA of client certificates, PEM; empty: clients are not asked for one. Default
    /// `certs/ca.pem`.
    pub client_ca: PathBuf,
    /// Whether a client without a certificate is refused in the TLS handshake. Default false.
    pub require_client_cert: bool,
    /// Who may come without a name: `loopback` (peers on this machine) or `never`. Default
    /// `loopback`.
    pub anonymous: Anonymous,

    /// Most open connections; default 20000, 1 to 1000000. Each takes a file descriptor.
    pub connections_max: usize,
    /// Most open connections from one address, this machine excepted; default 1000, at least 1.
    pub connections_per_address_max: usize,
    /// Failed logins from one address within a minute after which it is refused unheard, this
    /// machine excepted; default 10, at least 1.
    pub failed_logins_max: u32,
    /// Passwords checked at a time; each takes about 19 MiB and a CPU. Default 2, 1 to 64.
    pub password_checks_max: usize,
    /// Time for the TLS handshake; default 10s.
    pub handshake_timeout: Span,
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
    /// Bytes of topics and payloads that wait for one client; default 4194304 (4 MiB), at least
    /// `packet_bytes_max`. More are dropped. When as many that it sent wait for the store, it is
    /// not read from.
    pub queue_bytes_max: usize,
    /// How long a publish waits for one client at most; default 24h. Then it is dropped.
    pub queue_age_max: Span,
    /// Bytes of topics and payloads that wait for all clients together, each copy counted; default
    /// 268435456 (256 MiB), at least `packet_bytes_max`. More are dropped.
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
    /// Bytes of topics and payloads of retained messages; default 16777216 (16 MiB).
    pub retained_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:1883".to_owned(),
            allow_plain_remote: false,
            listen_tls: "0.0.0.0:8883".to_owned(),
            cert: "certs/server.pem".into(),
            key: "certs/server.key".into(),
            client_ca: "certs/ca.pem".into(),
            require_client_cert: false,
            anonymous: Anonymous::Loopback,
            connections_max: 20_000,
            connections_per_address_max: 1000,
            failed_logins_max: 10,
            password_checks_max: 2,
            handshake_timeout: Span::from_secs(10),
            connect_timeout: Span::from_secs(5),
            write_timeout: Span::from_secs(10),
            close_timeout: Span::from_secs(5),
            keep_alive_max: Span::from_secs(0),
            connect_bytes_max: 8192,
            packet_bytes_max: 1 << 20,
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
        range("password_checks_max", self.password_checks_max, 1, 64);
        range("connect_bytes_max", self.connect_bytes_max, 256, 1 << 20);
        range("packet_bytes_max", self.packet_bytes_max, 1024, 268_435_455);
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
        range("subscriptions_max", self.subscriptions_max, 1, usize::MAX);
        range("sessions_max", self.sessions_max, self.connections_max, usize::MAX);
        for (key, span) in [
            ("handshake_timeout", self.handshake_timeout),
            ("connect_timeout", self.connect_timeout),
            ("write_timeout", self.write_timeout),
            ("close_timeout", self.close_timeout),
            ("queue_age_max", self.queue_age_max),
        ] {
            if span.is_zero() {
                problems.push(format!("broker.{key}: nothing is done in no time; write 5s"));
            }
        }
        if self.keep_alive_max > Span::from_secs(65_535) {
            problems.push("broker.keep_alive_max: MQTT has at most 65535s".to_owned());
        }
        problems
    }

    fn listener_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let example = "write an address and a port, as in 127.0.0.1:1883, or \"\" for none";
        match parse_address(&self.listen) {
            Err(()) => {
                problems
                    .push(format!("broker.listen: \"{}\" is no address; {example}", self.listen));
            }
            Ok(Some(address)) if !address.ip().is_loopback() && !self.allow_plain_remote => {
                problems.push(format!(
                    "broker.listen: {address} can be reached from other machines without TLS; use \
                     listen_tls, or set broker.allow_plain_remote = true"
                ));
            }
            Ok(_) => {}
        }
        if parse_address(&self.listen_tls).is_err() {
            problems.push(format!(
                "broker.listen_tls: \"{}\" is no address; {example}",
                self.listen_tls
            ));
        }
        if self.require_client_cert && self.client_ca.as_os_str().is_empty() {
            problems.push(
                "broker.require_client_cert: needs broker.client_ca, whose certificates count"
                    .to_owned(),
            );
        }
        problems
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
