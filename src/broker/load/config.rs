//! `[broker.limits]`: what each limit means, its unit, its default and its range. 0 is no limit.
//!
//! What is limited for each client in any case (queues, windows, sizes, subscriptions) stands in
//! `[broker]`.

use serde::Deserialize;

use crate::span::Span;

/// `[broker.limits]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// For each client.
    pub client: Client,
    /// For each address; this machine is excepted.
    pub address: Address,
    /// For all connections together that have authenticated by the same name.
    pub identity: Identity,
    /// For each listener.
    pub listener: Listener,
    /// For all together.
    pub total: Total,
}

/// `[broker.limits.client]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Client {
    /// Publishes a second; default 0. Then the client is not read from until there is room.
    pub publishes_per_second: u32,
    /// Bytes a second of all its packets; default 0. Likewise.
    pub bytes_per_second: u32,
    /// As much as a rate of this table allows in this time may come at once; default 1s, 10ms to
    /// 1h.
    pub burst: Span,
}

/// `[broker.limits.address]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Address {
    /// New connections a second of one IPv4 address or IPv6 /64; default 0. More are closed.
    pub handshakes_per_second: u32,
    /// As for a client, default 10s.
    pub burst: Span,
}

/// `[broker.limits.identity]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Open connections; default 0. More are refused after their CONNECT.
    pub connections_max: usize,
    /// Publishes a second; default 0.
    pub publishes_per_second: u32,
    /// Bytes a second of all packets; default 0.
    pub bytes_per_second: u32,
    /// Subscriptions of all its sessions; default 0. More are refused.
    pub subscriptions_max: usize,
    /// Retained messages that it has published; default 0. More are not retained.
    pub retained_messages_max: usize,
    /// Bytes of topics and payloads of them; default 0.
    pub retained_bytes_max: usize,
    /// As for a client, default 1s.
    pub burst: Span,
}

/// `[broker.limits.listener]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Listener {
    /// New connections a second; default 0. More are closed.
    pub handshakes_per_second: u32,
    /// Publishes a second; default 0.
    pub publishes_per_second: u32,
    /// Bytes a second of all packets; default 0.
    pub bytes_per_second: u32,
    /// As for a client, default 1s.
    pub burst: Span,
}

/// `[broker.limits.total]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Total {
    /// New connections a second; default 0. More are closed.
    pub handshakes_per_second: u32,
    /// Publishes a second; default 0.
    pub publishes_per_second: u32,
    /// Bytes a second of all packets; default 0.
    pub bytes_per_second: u32,
    /// Bytes of packets that have begun and not ended, those of at most 32768 (32 KiB) not counted;
    /// default 268435456 (256 MiB), at least `packet_bytes_max`. Whose packet would be over it is
    /// disconnected.
    pub input_bytes_max: usize,
    /// Subscriptions of all sessions; default 1000000, 0 for no limit. More are refused.
    pub subscriptions_max: usize,
    /// As for a client, default 1s.
    pub burst: Span,
}

const SECOND: Span = Span::from_secs(1);

impl Default for Client {
    fn default() -> Self {
        Self { publishes_per_second: 0, bytes_per_second: 0, burst: SECOND }
    }
}

impl Default for Address {
    fn default() -> Self {
        Self { handshakes_per_second: 0, burst: Span::from_secs(10) }
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            connections_max: 0,
            publishes_per_second: 0,
            bytes_per_second: 0,
            subscriptions_max: 0,
            retained_messages_max: 0,
            retained_bytes_max: 0,
            burst: SECOND,
        }
    }
}

impl Default for Listener {
    fn default() -> Self {
        Self {
            handshakes_per_second: 0,
            publishes_per_second: 0,
            bytes_per_second: 0,
            burst: SECOND,
        }
    }
}

impl Default for Total {
    fn default() -> Self {
        Self {
            handshakes_per_second: 0,
            publishes_per_second: 0,
            bytes_per_second: 0,
            input_bytes_max: 256 << 20,
            subscriptions_max: 1_000_000,
            burst: SECOND,
        }
    }
}

impl Limits {
    /// Everything wrong with the values.
    pub fn problems(&self) -> Vec<String> {
        let within = Span::from_millis(10)..=Span::from_secs(3600);
        [
            ("client", self.client.burst),
            ("address", self.address.burst),
            ("identity", self.identity.burst),
            ("listener", self.listener.burst),
            ("total", self.total.burst),
        ]
        .into_iter()
        .filter(|(_, burst)| !within.contains(burst))
        .map(|(table, burst)| format!("broker.limits.{table}.burst: 10ms to 1h, found {burst}"))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_burst_has_its_range() {
        let limits = |toml: &str| toml::from_str::<Limits>(toml).expect("valid TOML");
        assert!(limits("").problems().is_empty());
        let found = limits("client.burst = '0s'\ntotal.burst = '2h'").problems();
        assert_eq!(
            found,
            [
                "broker.limits.client.burst: 10ms to 1h, found 0s",
                "broker.limits.total.burst: 10ms to 1h, found 2h"
            ]
        );
    }
}
