//! How an upstream stands: for `watchbell status`, as a metric, and as a publish that rules see.
//!
//! The publish goes to `$watchbell/upstream/{name}`, retained, at each change and never between:
//! through intake, so that the alert that a rule makes of it is on disk, and offered again until
//! it is taken. Devices may not publish there.
//!
//! A start tells nothing until there is a connection or every address was tried; and what was
//! retained before the start, when nobody knew that this would end, is forgotten at once. A stop
//! tells nothing either: it would alarm at each restart. A connection that ends over and over as
//! soon as it is made (a publish that is too large comes again each time) is told as `connected`
//! when it has lasted [`STABLE`], so that an alert does not come and go with each try.
//!
//! Invariant: what is published last is how it stands; what changed while intake took nothing is
//! not told twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::address::Address;
use super::config::Upstream;
use crate::broker::local::Local;
use crate::intake::{Ticket, Verdict};
use crate::model::{Publish, Qos, Reason, UpstreamState};
use crate::telemetry::ByUpstream;
use crate::topic::{TopicLimits, TopicName};

/// A connection that has lasted so long was a good one: after it, back-off starts anew.
pub(super) const STABLE: Duration = Duration::from_secs(10);
/// So many connections in a row that did not last: the next is news only when it has.
const BRIEF_MAX: u32 = 2;
/// Where the states of all upstreams are.
pub(super) const TOPICS: &str = "$watchbell/upstream/+";
/// How long a state that was refused waits before it is offered again.
const OFFER_AGAIN: Duration = Duration::from_secs(1);

const BEFORE: &str = "the connection before did not last: ";

/// How one upstream stands.
pub(super) struct Standing {
    local: Local,
    name: Arc<str>,
    state: watch::Sender<UpstreamState>,
    connected_at: Option<Instant>,
    /// Connections in a row that did not last.
    brief: u32,
    /// By address the failure that was logged last, and how often it came since. At most as many
    /// as there are addresses.
    failures: HashMap<String, (String, u64)>,
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
            is_news: false,
        });
        tokio::spawn(tell(local.clone(), seen.clone()));
        let by = ByUpstream { upstream: name.to_string() };
        local.metrics().upstream_connected.get_or_create(&by).set(0);
        let standing = Self {
            local: local.clone(),
            name,
            state,
            connected_at: None,
            brief: 0,
            failures: HashMap::new(),
        };
        (standing, seen)
    }

    /// It is connected and subscribed; `refused` where it was asked anew.
    pub(super) fn connected(&mut self, address: &Address, refused: Option<Vec<String>>) {
        let by = ByUpstream { upstream: self.name.to_string() };
        let metrics = self.local.metrics();
        metrics.upstream_connected.get_or_create(&by).set(1);
        metrics.upstream_connects.get_or_create(&by).inc();
        self.connected_at = Some(Instant::now());
        let is_news = self.brief < BRIEF_MAX;
        if is_news {
            let repeats: u64 = self.failures.drain().map(|(_, (_, repeats))| repeats).sum();
            tracing::info!(upstream = %self.name, %address, repeats, "the upstream is connected");
        } else {
            tracing::debug!(upstream = %self.name, %address, "the upstream is connected again");
        }
        let is_brief = self.brief > 0;
        let now = self.local.now().to_string();
        let address = address.to_string();
        self.state.send_modify(|state| {
            let refused = refused.unwrap_or_default();
            let (name, connected) = (Arc::clone(&self.name), true);
            // Whoever looks in the moment between two failures is to see them too.
            let before = state.reason.take().filter(|_| is_brief);
            let reason = before.map(|why| format!("{BEFORE}{}", why.trim_start_matches(BEFORE)));
            let since = now;
            *state = UpstreamState { name, connected, since, address, reason, refused, is_news };
        });
    }

    /// How long the present connection has lasted; `None` where there is none.
    pub(super) fn lasted(&self) -> Option<Duration> {
        self.connected_at.map(|at| at.elapsed())
    }

    /// When the present connection will have lasted long enough, where that makes a difference.
    pub(super) fn stable_at(&self) -> Option<Instant> {
        self.connected_at.filter(|_| self.brief > 0).map(|at| at + STABLE)
    }

    /// The present connection has lasted.
    pub(super) fn stable(&mut self) {
        if self.brief >= BRIEF_MAX {
            tracing::info!(upstream = %self.name, "the upstream's connection lasts again");
        }
        self.brief = 0;
        self.failures.clear();
        self.state.send_modify(|state| {
            state.reason = None;
            state.is_news = true;
        });
    }

    /// A connection was lost, or could not be made; `is_round_over`: every address was tried.
    pub(super) fn lost(&mut self, address: &Address, reason: &str, is_round_over: bool) {
        let lasted = self.lasted();
        self.connected_at = None;
        match lasted {
            Some(lasted) if lasted >= STABLE => self.brief = 0,
            Some(_) => self.brief += 1,
            None => {}
        }
        let by = ByUpstream { upstream: self.name.to_string() };
        self.local.metrics().upstream_connected.get_or_create(&by).set(0);
        let address = address.to_string();
        match self.failures.get_mut(&address) {
            // The same failure in a row is one line.
            Some((known, repeats)) if known == reason => {
                *repeats += 1;
                tracing::debug!(upstream = %self.name, %address, reason, "still no upstream");
            }
            _ => {
                tracing::warn!(
                    upstream = %self.name, %address, reason,
                    "the upstream is not connected; it is tried again with back-off"
                );
                self.failures.insert(address.clone(), (reason.to_owned(), 0));
            }
        }
        let now = self.local.now().to_string();
        let reason = reason.to_owned();
        self.state.send_modify(|state| {
            // `since` is the change, not the last try.
            if state.connected {
                state.since = now;
            }
            state.connected = false;
            state.address = address;
            state.reason = Some(reason);
            state.is_news |= is_round_over || lasted.is_some();
        });
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
        if !state.is_news || told.as_ref() == Some(&news) {
            continue;
        }
        let publish = Arc::new(Publish {
            topic: topic.clone(),
            payload: Bytes::from(
                serde_json::to_vec(&state).expect("a state is JSON: its keys are text"),
            ),
            qos: Qos::AtLeastOnce,
            retain: true,
            replayed: false,
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
