//! How an upstream stands: for `watchbell status`, as a metric, and as a publish that rules see.
//!
//! The publish goes to `$watchbell/upstream/{name}`, retained, at each change and never between:
//! through intake, so that the alert that a rule makes of it is on disk, and offered again until
//! it is taken. Devices may not publish there.
//!
//! Invariant: what is published last is how it stands; what changed while intake took nothing is
//! not told twice.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::config::{Address, Upstream};
use crate::broker::local::Local;
use crate::intake::{Ticket, Verdict};
use crate::model::{Publish, Qos, Reason, UpstreamState};
use crate::telemetry::ByUpstream;
use crate::topic::{TopicLimits, TopicName};

/// How long a state that was refused waits before it is offered again.
const OFFER_AGAIN: Duration = Duration::from_secs(1);

/// How one upstream stands.
pub(super) struct Standing {
    local: Local,
    name: Arc<str>,
    state: watch::Sender<UpstreamState>,
    was_connected: bool,
    /// The failure that was logged, and how often it came since.
    failure: Option<(String, u64)>,
}

impl Standing {
    /// It stands nowhere yet, of which nobody is told. The task that tells ends with it.
    pub(super) fn new(
        local: &Local,
        upstream: &Upstream,
    ) -> (Self, watch::Receiver<UpstreamState>) {
        let name = Arc::clone(&upstream.name);
        let (state, seen) = watch::channel(UpstreamState {
            name: Arc::clone(&name),
            connected: false,
            since: local.now().to_string(),
            address: upstream.addresses.first().map(Address::to_string).unwrap_or_default(),
            reason: Some("not tried yet".to_owned()),
            refused: Vec::new(),
        });
        tokio::spawn(tell(local.clone(), seen.clone()));
        let by = ByUpstream { upstream: name.to_string() };
        local.metrics().upstream_connected.get_or_create(&by).set(0);
        let standing =
            Self { local: local.clone(), name, state, was_connected: false, failure: None };
        (standing, seen)
    }

    /// It is connected and subscribed; `refused` where it was asked anew.
    pub(super) fn connected(&mut self, address: &Address, refused: Option<Vec<String>>) {
        let by = ByUpstream { upstream: self.name.to_string() };
        let metrics = self.local.metrics();
        metrics.upstream_connected.get_or_create(&by).set(1);
        metrics.upstream_connects.get_or_create(&by).inc();
        let repeats = self.failure.take().map_or(0, |(_, repeats)| repeats);
        tracing::info!(upstream = %self.name, %address, repeats, "the upstream is connected");
        self.was_connected = true;
        let now = self.local.now().to_string();
        let address = address.to_string();
        self.state.send_modify(|state| {
            let refused = refused.unwrap_or_default();
            let (name, connected) = (Arc::clone(&self.name), true);
            *state = UpstreamState { name, connected, since: now, address, reason: None, refused };
        });
    }

    /// A connection was lost, or could not be made.
    pub(super) fn lost(&mut self, address: &Address, reason: &str) {
        let by = ByUpstream { upstream: self.name.to_string() };
        self.local.metrics().upstream_connected.get_or_create(&by).set(0);
        let failure = format!("{address}: {reason}");
        match &mut self.failure {
            // Several addresses, or one: the same failures in a row are one line.
            Some((known, repeats)) if *known == failure => {
                *repeats += 1;
                tracing::debug!(upstream = %self.name, %address, reason, "still no upstream");
            }
            _ => {
                tracing::warn!(
                    upstream = %self.name, %address, reason,
                    "the upstream is not connected; it is tried again with back-off"
                );
                self.failure = Some((failure, 0));
            }
        }
        let now = self.local.now().to_string();
        let address = address.to_string();
        let reason = reason.to_owned();
        self.state.send_modify(|state| {
            // `since` is the change, not the last try.
            if state.connected {
                state.since = now;
            }
            state.connected = false;
            state.address = address;
            state.reason = Some(reason);
        });
    }

    /// Whether the connection that has ended had come to be one.
    pub(super) fn take_was_connected(&mut self) -> bool {
        std::mem::take(&mut self.was_connected)
    }
}

/// Publishes each change of `connected` or `refused`. Ends with the sender.
async fn tell(local: Local, mut seen: watch::Receiver<UpstreamState>) {
    let name = Arc::clone(&seen.borrow().name);
    let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
    let topic = TopicName::parse(&format!("$watchbell/upstream/{name}"), limits)
        .expect("the configuration has checked the name");
    let mut told = None;
    while seen.changed().await.is_ok() {
        let state = seen.borrow_and_update().clone();
        let news = (state.connected, state.refused.clone());
        if told.as_ref() == Some(&news) {
            continue;
        }
        let publish = Arc::new(Publish {
            topic: topic.clone(),
            payload: Bytes::from(
                serde_json::to_vec(&state).expect("a state is JSON: its keys are text"),
            ),
            qos: Qos::AtLeastOnce,
            retain: true,
            client_id: "$watchbell".into(),
            identity: None,
            received_at: local.now(),
            properties: None,
        });
        match taken(&local, &publish).await {
            Ok(()) => {
                local.tell(&publish);
                told = Some(news);
            }
            Err(reason) => {
                tracing::warn!(
                    upstream = %name, %reason,
                    "the state of an upstream is not taken; it is offered again"
                );
                tokio::time::sleep(OFFER_AGAIN).await;
                seen.mark_changed();
            }
        }
    }
}

async fn taken(local: &Local, publish: &Arc<Publish>) -> Result<(), Reason> {
    let (to, mut verdict) = mpsc::channel(1);
    if !local.submit(publish, Ticket { number: 0, to }).await {
        return Ok(());
    }
    match verdict.recv().await {
        Some((_, Verdict::Durable)) => Ok(()),
        Some((_, Verdict::Refused(reason))) => Err(reason),
        None => Err(Reason::ShuttingDown),
    }
}
