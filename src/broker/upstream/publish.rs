//! The way back: local publishes that an upstream is to get, feedback and commands.
//!
//! They wait in a session of the hub, which bounds them and counts what it drops; a publish leaves
//! the session when the upstream has acknowledged it. What was under way when a connection ended
//! goes again on the next, so the upstream may get it twice.
//!
//! A publish that an upstream closes the connection for would be the first again on the next, for
//! ever: after a close what was under way goes one at a time, so that the one at fault is known, and
//! after [`CLOSES_MAX`] closes it is given up.
//!
//! Invariant: `requested` holds what rumqttc was given and has not sent, in that order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::client::{Client, Connected, Passed, Stuck, packet_bytes};
use crate::broker::local::LocalSession;
use crate::model::Reason;
use crate::telemetry::{ByUpstream, ByUpstreamReason, Metrics};

/// Closes in a row, with one and the same publish alone under way, until it is given up. Network
/// faults and restarts of the upstream do not hit the same publish so often.
const CLOSES_MAX: u32 = 5;

/// The way back to one upstream.
pub(super) struct Back {
    session: LocalSession,
    upstream: Arc<str>,
    prefix: String,
    metrics: Metrics,
    /// Of the configuration.
    inflight_max: usize,
    window_max: usize,
    packet_bytes_max: usize,
    /// The session's ids; 0 for QoS 0.
    requested: VecDeque<u16>,
    /// The session's ids by those on the wire.
    sent: HashMap<u16, u16>,
    /// How many go one at a time yet, after a close.
    singly: usize,
    /// The publish that was alone under way at the last close, and at how many in a row.
    suspect: Option<(u16, u32)>,
}

impl Back {
    pub(super) fn new(
        session: LocalSession,
        upstream: Arc<str>,
        prefix: String,
        metrics: Metrics,
        inflight_max: u16,
    ) -> Self {
        Self {
            session,
            upstream,
            prefix,
            metrics,
            inflight_max: inflight_max.into(),
            window_max: inflight_max.into(),
            packet_bytes_max: usize::MAX,
            requested: VecDeque::new(),
            sent: HashMap::new(),
            singly: 0,
            suspect: None,
        }
    }

    /// A new connection: what was under way goes again.
    pub(super) fn connected(&mut self, connected: &Connected) {
        self.window_max = connected.window_max.min(self.inflight_max);
        self.packet_bytes_max = connected.packet_bytes_max;
        self.requested.clear();
        self.sent.clear();
        self.session.again();
    }

    /// The connection has ended; `is_close`: perhaps for something that was under way.
    pub(super) fn lost(&mut self, is_close: bool) {
        let sent = self.sent.values().copied();
        let under_way: Vec<u16> =
            sent.chain(self.requested.iter().copied().filter(|id| *id != 0)).collect();
        self.requested.clear();
        self.sent.clear();
        if !is_close || under_way.is_empty() {
            return;
        }
        self.singly = self.singly.max(under_way.len());
        if let [alone] = *under_way {
            let closes =
                self.suspect.filter(|(id, _)| *id == alone).map_or(0, |(_, closes)| closes);
            self.suspect = Some((alone, closes + 1));
        }
    }

    /// Returns when there may be something to pass on.
    pub(super) async fn called(&self) {
        self.session.called().await;
    }

    /// Passes on what the window allows.
    pub(super) fn pump(&mut self, client: &Client) -> Result<(), Stuck> {
        loop {
            let window_max = if self.singly > 0 { 1 } else { self.window_max };
            if self.requested.len() >= window_max {
                return Ok(());
            }
            let Some(taken) = self.session.take(window_max) else { return Ok(()) };
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
            } else if self.suspect.is_some_and(|(id, n)| id == taken.id && n >= CLOSES_MAX) {
                Some((Reason::UpstreamRefused, "the upstream closes the connection for it"))
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
                self.over(taken.id);
                continue;
            }
            client.publish(&passed)?;
            self.requested.push_back(taken.id);
        }
    }

    /// This one is passed on, or never will be.
    fn over(&mut self, id: u16) {
        self.session.done(id);
        self.suspect.take_if(|(suspect, _)| *suspect == id);
        self.singly = self.singly.saturating_sub(1);
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
        self.over(ours);
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
