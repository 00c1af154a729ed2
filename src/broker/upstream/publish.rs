//! The way back: local publishes that an upstream is to get, feedback and commands.
//!
//! They wait in a session of the hub, which bounds them and counts what it drops; a publish leaves
//! the session when the upstream has acknowledged it. What was under way when a connection ended
//! goes again on the next, so the upstream may get it twice.
//!
//! Invariant: `requested` holds what rumqttc was given and has not sent, in that order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::client::{Client, Passed, Stuck, WINDOW, packet_bytes};
use crate::broker::local::LocalSession;
use crate::model::Reason;
use crate::telemetry::{ByUpstream, ByUpstreamReason, Metrics};

/// The way back to one upstream.
pub(super) struct Back {
    session: LocalSession,
    upstream: Arc<str>,
    prefix: String,
    metrics: Metrics,
    window_max: usize,
    packet_bytes_max: usize,
    /// The session's ids; 0 for QoS 0.
    requested: VecDeque<u16>,
    /// The session's ids by those on the wire.
    sent: HashMap<u16, u16>,
}

impl Back {
    pub(super) fn new(
        session: LocalSession,
        upstream: Arc<str>,
        prefix: String,
        metrics: Metrics,
    ) -> Self {
        Self {
            session,
            upstream,
            prefix,
            metrics,
            window_max: WINDOW,
            packet_bytes_max: usize::MAX,
            requested: VecDeque::new(),
            sent: HashMap::new(),
        }
    }

    /// A new connection: what was under way goes again.
    pub(super) fn connected(&mut self, window_max: usize, packet_bytes_max: usize) {
        self.window_max = window_max;
        self.packet_bytes_max = packet_bytes_max;
        self.requested.clear();
        self.sent.clear();
        self.session.again();
    }

    /// Returns when there may be something to pass on.
    pub(super) async fn called(&self) {
        self.session.called().await;
    }

    /// Passes on what the window allows.
    pub(super) fn pump(&mut self, client: &Client) -> Result<(), Stuck> {
        while self.requested.len() < self.window_max
            && let Some(taken) = self.session.take(self.window_max)
        {
            let publish = &taken.outgoing.publish;
            let topic = publish.topic.as_str();
            let passed = Passed {
                // The session's filters all begin with the prefix.
                topic: topic.strip_prefix(self.prefix.as_str()).unwrap_or(topic),
                payload: &publish.payload,
                qos: taken.outgoing.qos,
                retain: publish.retain,
                properties: publish.properties.as_deref(),
                expires_after_secs: taken.expires_after_secs,
            };
            // rumqttc would end the connection, and again each time that it came to this one.
            let bytes = packet_bytes(&passed);
            let fault = if passed.topic.is_empty() {
                Some((Reason::BadTopic, "its topic is the prefix and nothing else"))
            } else if bytes > self.packet_bytes_max {
                Some((Reason::PacketTooLarge, "it is larger than the upstream takes"))
            } else {
                None
            };
            if let Some((reason, what)) = fault {
                tracing::warn!(
                    upstream = %self.upstream, topic, bytes, what,
                    "a publish is not passed on"
                );
                self.failed(reason);
                self.session.note_dropped(reason);
                self.session.done(taken.id);
                continue;
            }
            client.publish(&passed)?;
            self.requested.push_back(taken.id);
        }
        Ok(())
    }

    /// The first that was requested is on its way, as `id`.
    pub(super) fn sent(&mut self, id: u16) {
        match self.requested.pop_front() {
            Some(ours) if ours != 0 => {
                self.sent.insert(id, ours);
            }
            Some(_) => self.passed(),
            None => {}
        }
    }

    /// The upstream has answered `id`.
    pub(super) fn acknowledged(&mut self, id: u16, refusal: Option<&str>) {
        let Some(ours) = self.sent.remove(&id) else { return };
        match refusal {
            None => self.passed(),
            Some(reason) => {
                tracing::warn!(
                    upstream = %self.upstream, reason,
                    "the upstream refuses a publish; see its access lists"
                );
                self.failed(Reason::NotAuthorized);
            }
        }
        self.session.done(ours);
    }

    fn passed(&self) {
        let by = ByUpstream { upstream: self.upstream.to_string() };
        self.metrics.upstream_passed.get_or_create(&by).inc();
    }

    fn failed(&self, reason: Reason) {
        let by = ByUpstreamReason { upstream: self.upstream.to_string(), reason };
        self.metrics.upstream_pass_failures.get_or_create(&by).inc();
    }

    /// Leaves the session to collect until the next start.
    pub(super) fn leave(self) {
        self.session.leave();
    }
}
