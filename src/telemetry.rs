//! Logs and metrics: set up once, used everywhere.
//!
//! Labels come from closed enums only, never from what a device or a person sent: a metric whose
//! label an attacker chooses is a memory leak.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde::Deserialize;

use crate::model::{Channel, Reason};

/// How logs look.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace`, or a filter as
    /// `info,watchbell::broker=debug`. Default `info`.
    pub level: String,
    /// `text` for people, `json` for machines. Default `text`.
    pub format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl Config {
    /// Everything wrong with the values.
    pub fn problems(&self) -> Vec<String> {
        match tracing_subscriber::EnvFilter::try_new(&self.level) {
            Ok(_) => Vec::new(),
            Err(error) => vec![format!("telemetry.level: {error}; write info or debug")],
        }
    }
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error, faults of ours included. Call once, from `main`.
///
/// # Errors
/// The level is no filter, or logging has been set up before.
pub fn init(config: &Config) -> Result<(), String> {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::util::SubscriberInitExt as _;

    let filter = tracing_subscriber::EnvFilter::try_new(&config.level)
        .map_err(|error| format!("telemetry.level: {error}"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    let result = match config.format {
        LogFormat::Text => registry.with(layer.with_target(false)).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    result.map_err(|error| error.to_string())?;
    // A panic is a line of the log like any other: nothing else writes between JSON objects.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let payload = panic.payload();
        let what = payload.downcast_ref::<String>().map(String::as_str);
        let what = what.or_else(|| payload.downcast_ref::<&str>().copied());
        tracing::error!(place, what, "a fault of ours, or of a library");
    }));
    Ok(())
}

/// The name of an enum's variant in words: `NotAuthorized` as `not authorized`.
pub fn words(reason: &impl std::fmt::Debug) -> String {
    let mut words = String::new();
    for character in format!("{reason:?}").chars() {
        if character.is_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.extend(character.to_lowercase());
    }
    words
}

/// An error and all that caused it, on one line: `sending: connecting: refused`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

impl EncodeLabelValue for Channel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.as_str())
    }
}

/// `{reason="..."}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    /// Why.
    pub reason: Reason,
}

/// `{provider="..."}`: the names come from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByProvider {
    /// The provider's name in the configuration.
    pub provider: String,
}

/// `{provider="...",outcome="..."}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByOutcome {
    /// The provider's name in the configuration.
    pub provider: String,
    /// accepted, retry, rejected, unknown.
    pub outcome: &'static str,
}

/// `{upstream="..."}`: the names come from the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByUpstream {
    /// The upstream's name in the configuration.
    pub upstream: String,
}

/// `{upstream="...",reason="..."}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByUpstreamReason {
    /// The upstream's name in the configuration.
    pub upstream: String,
    /// Why.
    pub reason: Reason,
}

/// `{channel="..."}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByChannel {
    /// The channel.
    pub channel: Channel,
}

/// `{rule="..."}`: the names come from the rule files.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByRule {
    /// The rule's name.
    pub rule: String,
    /// Why.
    pub reason: Reason,
}

/// `{certificate="..."}`
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByCertificate {
    /// server, ca, crl.
    pub certificate: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ty = $name:literal, $make:expr;)+) => {
        /// Every metric of the process. Clones share the same values.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: Arc<Registry>,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// All at zero.
            pub fn new() -> Self {
                let mut registry = Registry::with_prefix("watchbell");
                // The registry ends each description with a full stop of its own.
                $(let $field: $kind = $make;
                  let help = concat!($($help),+).trim().trim_end_matches('.');
                  registry.register($name, help, $field.clone());)+
                Self { registry: Arc::new(registry), $($field),+ }
            }

            /// The names as Prometheus sees them, for the documentation test.
            pub fn names() -> &'static [&'static str] {
                &[$(concat!("watchbell_", $name)),+]
            }
        }
    };
}

metrics! {
    /// Open MQTT connections.
    connections: Gauge<i64, AtomicI64> = "connections", Gauge::default();
    /// MQTT connections accepted since the start.
    connections_accepted: Counter = "connections_accepted", Counter::default();
    /// Connections closed, by reason.
    connections_closed: Family<ByReason, Counter> = "connections_closed", Family::default();
    /// MQTT sessions, connected or waiting for their client.
    sessions: Gauge<i64, AtomicI64> = "sessions", Gauge::default();
    /// Sessions that have ended because their client did not come back in time.
    sessions_expired: Counter = "sessions_expired", Counter::default();
    /// MQTT packets received.
    packets_received: Counter = "packets_received", Counter::default();
    /// MQTT packets sent.
    packets_sent: Counter = "packets_sent", Counter::default();
    /// Bytes of MQTT packets received.
    packet_bytes_received: Counter = "packet_bytes_received", Counter::default();
    /// Bytes of MQTT packets sent.
    packet_bytes_sent: Counter = "packet_bytes_sent", Counter::default();
    /// Publishes sent to subscribers.
    publishes_sent: Counter = "publishes_sent", Counter::default();
    /// Bytes of PUBLISH packets received.
    publish_bytes_received: Counter = "publish_bytes_received", Counter::default();
    /// Bytes of PUBLISH packets sent.
    publish_bytes_sent: Counter = "publish_bytes_sent", Counter::default();
    /// Retained messages.
    retained_messages: Gauge<i64, AtomicI64> = "retained_messages", Gauge::default();
    /// Publishes received from devices.
    publishes_received: Counter = "publishes_received", Counter::default();
    /// Publishes that matched at least one rule's topic.
    publishes_matched: Counter = "publishes_matched", Counter::default();
    /// Publishes, packets and subscriptions refused, by reason.
    refused: Family<ByReason, Counter> = "refused", Family::default();
    /// Times that a client was not read from for a while, by reason.
    read_pauses: Family<ByReason, Counter> = "read_pauses", Family::default();
    /// Copies of publishes delivered to subscribers' queues.
    fanout_copies: Counter = "fanout_copies", Counter::default();
    /// Copies of publishes not delivered to a subscriber, by reason.
    fanout_dropped: Family<ByReason, Counter> = "fanout_dropped", Family::default();
    /// Rule evaluations that did not come to a result, by rule and reason.
    rule_failures: Family<ByRule, Counter> = "rule_failures", Family::default();
    /// Publishes that a rule did not look at, by rule and reason.
    rule_passed: Family<ByRule, Counter> = "rule_passed", Family::default();
    /// Alerts that fired.
    alerts_fired: Counter = "alerts_fired", Counter::default();
    /// Alerts that cleared.
    alerts_cleared: Counter = "alerts_cleared", Counter::default();
    /// Alerts that fire now.
    alerts_firing: Gauge<i64, AtomicI64> = "alerts_firing", Gauge::default();
    /// Alerts that are about to fire: what they are about holds, and not for long enough yet.
    alerts_pending: Gauge<i64, AtomicI64> = "alerts_pending", Gauge::default();
    /// Instances of rules that are remembered.
    instances: Gauge<i64, AtomicI64> = "instances", Gauge::default();
    /// Silences in force.
    silences: Gauge<i64, AtomicI64> = "silences", Gauge::default();
    /// Alerts of which nobody is told, by reason.
    alerts_suppressed: Family<ByReason, Counter> = "alerts_suppressed", Family::default();
    /// Messages that entered the outbox, by channel.
    messages_queued: Family<ByChannel, Counter> = "messages_queued", Family::default();
    /// Messages that ended, by reason; `sent` ones count in attempts with outcome accepted.
    messages_dead: Family<ByReason, Counter> = "messages_dead", Family::default();
    /// Messages that another one made needless, by reason.
    messages_left_out: Family<ByReason, Counter> = "messages_left_out", Family::default();
    /// Messages whose contact's next channel sent too, because theirs had no success in time, by reason.
    fallbacks: Family<ByReason, Counter> = "fallbacks", Family::default();
    /// People whom no channel reaches, and has not reached since.
    contacts_unreached: Gauge<i64, AtomicI64> = "contacts_unreached", Gauge::default();
    /// Messages in the outbox that have not ended.
    outbox_messages: Gauge<i64, AtomicI64> = "outbox_messages", Gauge::default();
    /// When the oldest message in the outbox entered it, seconds since 1970; 0 while it is empty.
    outbox_oldest: Gauge<i64, AtomicI64> = "outbox_oldest_timestamp_seconds", Gauge::default();
    /// Provider calls, by provider and outcome.
    attempts: Family<ByOutcome, Counter> = "attempts", Family::default();
    /// Provider calls that wait for an answer, by provider.
    attempts_in_flight: Family<ByProvider, Gauge<i64, AtomicI64>> = "attempts_in_flight", Family::default();
    /// 1 while a provider is stopped because it refuses our account or configuration.
    provider_stopped: Family<ByProvider, Gauge<i64, AtomicI64>> = "provider_stopped", Family::default();
    /// 1 while a provider's circuit breaker is open.
    provider_breaker_open: Family<ByProvider, Gauge<i64, AtomicI64>> = "provider_breaker_open", Family::default();
    /// 1 while this machine lacks open files, memory or ports to ask any provider.
    out_of_resources: Gauge<i64, AtomicI64> = "out_of_resources", Gauge::default();
    /// Seconds from request to outcome of a provider call.
    attempt_seconds: Histogram = "attempt_seconds", Histogram::new(exponential_buckets(0.001, 2.5, 12));
    /// Seconds that one commit of the store takes, all its operations together.
    commit_seconds: Histogram = "commit_seconds", Histogram::new(exponential_buckets(0.0001, 2.5, 12));
    /// Operations committed.
    operations_committed: Counter = "operations_committed", Counter::default();
    /// Times that somebody set the wall clock.
    clock_steps: Counter = "clock_steps", Counter::default();
    /// Seconds by which the wall clock is ahead of Watchbell's own time.
    clock_ahead: Gauge<i64, AtomicI64> = "clock_ahead_seconds", Gauge::default();
    /// 1 while the store takes no writes.
    store_failed: Gauge<i64, AtomicI64> = "store_failed", Gauge::default();
    /// Rows of the store that could not be read since the start; they are kept, and the others are served.
    store_rows_unreadable: Gauge<i64, AtomicI64> = "store_rows_unreadable", Gauge::default();
    /// Commits that the start found missing, by the high-water mark beside the store.
    store_commits_lost: Gauge<i64, AtomicI64> = "store_commits_lost", Gauge::default();
    /// Rows of the outbox that could not be read when they were due, and are tried again.
    outbox_reads_failed: Counter = "outbox_reads_failed", Counter::default();
    /// Free bytes on the disk of the data directory.
    disk_free_bytes: Gauge<i64, AtomicI64> = "disk_free_bytes", Gauge::default();
    /// With less free than this on the disk of the data directory nothing new is taken: the floor, and what the messages that wait will still cost.
    disk_needed_bytes: Gauge<i64, AtomicI64> = "disk_needed_bytes", Gauge::default();
    /// 1 while nothing is sent because the disk is full.
    sending_held: Gauge<i64, AtomicI64> = "sending_held", Gauge::default();
    /// Ended messages and steps of alerts that were deleted before their retention was over, because the disk ran low.
    history_given_up: Counter = "history_given_up", Counter::default();
    /// Rules in force.
    rules_loaded: Gauge<i64, AtomicI64> = "rules_loaded", Gauge::default();
    /// Reloads of the rules that were refused because a file was bad.
    rule_reloads_failed: Counter = "rule_reloads_failed", Counter::default();
    /// When a certificate of the broker, or its revocation list, ends, seconds since 1970.
    certificate_ends: Family<ByCertificate, Gauge<i64, AtomicI64>> = "certificate_ends_timestamp_seconds", Family::default();
    /// Reloads of a listener's certificates that were refused because a file was bad.
    tls_reloads_failed: Counter = "tls_reloads_failed", Counter::default();
    /// 1 while an upstream is connected and subscribed.
    upstream_connected: Family<ByUpstream, Gauge<i64, AtomicI64>> = "upstream_connected", Family::default();
    /// Connections made to an upstream.
    upstream_connects: Family<ByUpstream, Counter> = "upstream_connects", Family::default();
    /// Publishes read from an upstream, those that came again included.
    upstream_received: Family<ByUpstream, Counter> = "upstream_received", Family::default();
    /// Publishes of an upstream that are on disk, or that no rule wants.
    upstream_taken: Family<ByUpstream, Counter> = "upstream_taken", Family::default();
    /// Publishes of an upstream that were not taken, by reason; what is tried again counts each time.
    upstream_refused: Family<ByUpstreamReason, Counter> = "upstream_refused", Family::default();
    /// Publishes passed on to an upstream, and acknowledged by it.
    upstream_passed: Family<ByUpstream, Counter> = "upstream_passed", Family::default();
    /// Publishes that an upstream refused, or that are too large for it, by reason.
    upstream_pass_failures: Family<ByUpstreamReason, Counter> = "upstream_pass_failures", Family::default();
    /// Client events that no rule and no subscriber was told of, by reason.
    client_events_dropped: Family<ByReason, Counter> = "client_events_dropped", Family::default();
    /// HTTP requests refused, by reason.
    http_refused: Family<ByReason, Counter> = "http_refused", Family::default();
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counts something refused.
    pub fn refuse(&self, reason: Reason) {
        self.refused.get_or_create(&ByReason { reason }).inc();
    }

    /// All metrics in the OpenMetrics text format, which Prometheus reads.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a String cannot fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_named_and_labelled() {
        let metrics = Metrics::new();
        metrics.refuse(Reason::BadTopic);
        let text = metrics.encode();
        assert!(text.contains("watchbell_refused_total{reason=\"bad_topic\"} 1"), "{text}");
        assert!(text.contains("# HELP watchbell_connections Open MQTT connections.\n"), "{text}");
        assert!(text.ends_with("# EOF\n"));
        assert!(!text.contains(".."), "prometheus-client adds a full stop of its own");
    }
}
