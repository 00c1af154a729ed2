//! `$SYS/broker/...`: what the broker says of itself, to those who subscribe to it.
//!
//! The names are mosquitto's, because that is where monitoring tools look (docs/conformance.md
//! lists them). A subscription begins with all values that its filter matches, as retained
//! messages, though none is kept: they are made when they are asked for. After that they
//! come every `sys_interval`, changed or not: what each subscriber has seen last nobody remembers.
//!
//! What it never does: work while nobody subscribes (then an interval costs one look-up a topic),
//! take a place among the retained messages, go through the rules, reach a subscriber of `#`.
//!
//! Invariant: only the process publishes here; `protocol::connect` refuses it to clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior};

use super::Shared;
use crate::model::{Publish, Qos, Reason};
use crate::telemetry::ByReason;
use crate::topic::{TopicFilter, TopicLimits, TopicName};

/// What stands before every name of [`VALUES`].
const BRANCH: &str = "$SYS/broker/";

type Value = fn(&Shared) -> String;

/// Every topic and where its value comes from.
const VALUES: [(&str, Value); 18] = [
    ("version", |_| concat!("watchbell version ", env!("CARGO_PKG_VERSION")).to_owned()),
    ("uptime", |shared| format!("{} seconds", shared.sys.started.elapsed().as_secs())),
    ("clients/connected", |shared| shared.sys.connected().to_string()),
    ("clients/disconnected", |shared| {
        shared.session_count().saturating_sub(shared.sys.connected()).to_string()
    }),
    ("clients/total", |shared| shared.session_count().to_string()),
    ("clients/maximum", |shared| shared.sys.maximum.load(Ordering::Relaxed).to_string()),
    ("clients/expired", |shared| shared.hub.metrics.sessions_expired.get().to_string()),
    ("messages/received", |shared| shared.hub.metrics.packets_received.get().to_string()),
    ("messages/sent", |shared| shared.hub.metrics.packets_sent.get().to_string()),
    ("bytes/received", |shared| shared.hub.metrics.packet_bytes_received.get().to_string()),
    ("bytes/sent", |shared| shared.hub.metrics.packet_bytes_sent.get().to_string()),
    ("publish/messages/received", |shared| shared.hub.metrics.publishes_received.get().to_string()),
    ("publish/messages/sent", |shared| shared.hub.metrics.publishes_sent.get().to_string()),
    ("publish/messages/dropped", |shared| shared.dropped().to_string()),
    ("publish/bytes/received", |shared| {
        shared.hub.metrics.publish_bytes_received.get().to_string()
    }),
    ("publish/bytes/sent", |shared| shared.hub.metrics.publish_bytes_sent.get().to_string()),
    ("retained messages/count", |shared| shared.hub.metrics.retained_messages.get().to_string()),
    ("subscriptions/count", |shared| shared.hub.subscription_count().to_string()),
];

/// What nobody else counts.
pub(crate) struct Sys {
    started: Instant,
    /// Those of [`VALUES`], in its order.
    topics: Vec<TopicName>,
    connected: AtomicUsize,
    /// The most there were at a time.
    maximum: AtomicUsize,
}

/// A connected client: counts as one until it is dropped.
pub(crate) struct Present(Arc<Sys>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sys {
    pub(crate) fn new() -> Self {
        let topic =
            |name: &str| TopicName::parse(&format!("{BRANCH}{name}"), TopicLimits::default());
        Self {
            started: Instant::now(),
            topics: VALUES
                .iter()
                .map(|(name, _)| topic(name).expect("short, and no wildcard"))
                .collect(),
            connected: AtomicUsize::new(0),
            maximum: AtomicUsize::new(0),
        }
    }

    /// Counts a client that has been let in.
    pub(crate) fn enter(self: &Arc<Self>) -> Present {
        let connected = self.connected.fetch_add(1, Ordering::Relaxed) + 1;
        self.maximum.fetch_max(connected, Ordering::Relaxed);
        Present(Arc::clone(self))
    }

    fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// The values that a new subscription to `filter` begins with.
    pub(crate) fn sys_matching(&self, filter: &TopicFilter) -> Vec<Arc<Publish>> {
        if !filter.as_str().starts_with("$SYS/") || self.config.sys_interval.is_zero() {
            return Vec::new();
        }
        self.sys
            .topics
            .iter()
            .zip(VALUES)
            .filter(|(topic, _)| filter.matches(topic))
            .map(|(topic, (_, value))| self.sys_publish(topic, value(self)))
            .collect()
    }

    fn sys_publish(&self, topic: &TopicName, value: String) -> Arc<Publish> {
        Arc::new(Publish {
            topic: topic.clone(),
            payload: Bytes::from(value),
            // The next value comes by itself: nobody who is away gets this one later.
            qos: Qos::AtMostOnce,
            retain: false,
            replayed: false,
            client_id: "".into(),
            identity: None,
            received_at: self.hub.clock.now(),
            properties: None,
        })
    }

    fn session_count(&self) -> usize {
        usize::try_from(self.hub.metrics.sessions.get()).unwrap_or(0)
    }

    fn dropped(&self) -> u64 {
        let drops = &self.hub.metrics.fanout_dropped;
        let by =
            |reason: &Reason| drops.get(&ByReason { reason: *reason }).map(|count| count.get());
        Reason::ALL.iter().filter_map(by).sum()
    }
}

/// Publishes every value, every interval, to those who subscribe. Runs until dropped.
pub(crate) async fn publish(shared: &Shared) {
    let interval = shared.config.sys_interval;
    if interval.is_zero() {
        return std::future::pending().await;
    }
    let first = Instant::now() + interval.get();
    let mut ticks = tokio::time::interval_at(first, interval.get());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (topic, (_, value)) in shared.sys.topics.iter().zip(VALUES) {
            let targets = shared.hub.targets(topic, "");
            if !targets.is_empty() {
                shared.hub.deliver(&shared.sys_publish(topic, value(shared)), targets, None);
            }
        }
    }
}
