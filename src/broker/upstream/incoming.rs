//! The way in: publishes of an upstream, through intake, to the local subscribers, and only then
//! acknowledged.
//!
//! In order of receipt, like a device's. What has to be on disk for local subscribers waits a second
//! time, for the hub's journal, and what is behind it does so at the same time. When intake refuses,
//! for want of disk or of room in the outbox, the publish and all after it are held and offered
//! again; nothing is dropped and nothing acknowledged, and the upstream keeps what no longer fits
//! here. At most `inflight_max` are held.
//!
//! Invariant: a publish is acknowledged after its verdict, and only on the connection it came by.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::client::{Client, Received};
use crate::broker::local::Local;
use crate::intake::{Ticket, Verdict};
use crate::model::{Publish, Qos, Reason};
use crate::telemetry::{ByUpstream, ByUpstreamReason};

/// How long a refused publish waits before it is offered again.
const OFFER_AGAIN: Duration = Duration::from_secs(1);

/// What waits of one upstream.
pub(super) struct Incoming {
    local: Local,
    upstream: Arc<str>,
    client_id: Arc<str>,
    prefix: String,
    pending: VecDeque<Pending>,
    pending_max: usize,
    /// The number of the first in `pending`.
    first_number: u64,
    /// The number of the present connection.
    connection: u64,
    to: mpsc::Sender<(u64, Verdict)>,
    verdicts: mpsc::Receiver<(u64, Verdict)>,
    /// When what is held is offered again.
    offer_at: Option<Instant>,
    /// The refusal that was logged, until something is taken again.
    refused: Option<Reason>,
}

struct Pending {
    /// `None`: only its acknowledgement waits for its turn.
    publish: Option<Arc<Publish>>,
    /// Connection and packet id; `None` with QoS 0.
    owed: Option<(u64, u16)>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// With intake.
    Asked,
    /// To be offered again.
    Held,
    /// What the rules make of it is on disk, or no rule wants it.
    Durable,
    /// With the local subscribers, for some of whom it has to be on disk.
    Saving,
    /// Nothing is missing.
    Done,
}

impl Incoming {
    pub(super) fn new(
        local: &Local,
        upstream: Arc<str>,
        client_id: Arc<str>,
        prefix: String,
        pending_max: usize,
    ) -> Self {
        // Room for every ticket that can be out.
        let (to, verdicts) = mpsc::channel(pending_max);
        Self {
            local: local.clone(),
            upstream,
            client_id,
            prefix,
            pending: VecDeque::new(),
            pending_max,
            first_number: 0,
            connection: 0,
            to,
            verdicts,
            offer_at: None,
            refused: None,
        }
    }

    /// A new connection. What is with intake stays until its verdict; what is held comes again, if
    /// it is to be acknowledged.
    pub(super) fn connected(&mut self) {
        self.connection += 1;
        // From the back, so that the numbers of those with intake stay right.
        while let Some(last) = self.pending.back() {
            if last.stage != Stage::Held || last.owed.is_none() {
                break;
            }
            self.pending.pop_back();
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < self.pending_max
    }

    /// Whether a publish is with intake, and its verdict to come.
    pub(super) fn awaits_verdicts(&self) -> bool {
        self.pending.iter().any(|one| matches!(one.stage, Stage::Asked | Stage::Saving))
    }

    /// Takes a publish.
    pub(super) async fn receive(&mut self, received: Received, client: &mut Client) {
        let metrics = self.local.metrics();
        metrics.upstream_received.get_or_create(&self.by()).inc();
        metrics.publishes_received.inc();
        let owed = (received.qos != Qos::AtMostOnce).then_some((self.connection, received.id));
        let topic = received.topic.map(|topic| format!("{}{topic}", self.prefix));
        let checked = match &topic {
            Some(topic) => self.local.check_topic(topic).map_err(|error| error.to_string()),
            None => Err("it is not UTF-8".to_owned()),
        };
        let topic = match checked {
            Ok(topic) => topic,
            Err(problem) => {
                // It would be the same the next time: it goes, and is counted.
                let topic = topic.unwrap_or_default();
                tracing::warn!(
                    upstream = %self.upstream, topic, problem,
                    "a publish is dropped for its topic"
                );
                metrics.refuse(Reason::BadTopic);
                self.count_refusal(Reason::BadTopic);
                self.pending.push_back(Pending { publish: None, owed, stage: Stage::Durable });
                return self.settle(client);
            }
        };
        let publish = Arc::new(Publish {
            topic,
            payload: received.payload,
            qos: received.qos,
            retain: received.retain,
            replayed: received.retain,
            client_id: Arc::clone(&self.client_id),
            identity: None,
            received_at: self.local.now(),
            properties: received.properties,
        });
        self.pending.push_back(Pending { publish: Some(publish), owed, stage: Stage::Held });
        // Behind what is held, so that rules see everything in order.
        if self.offer_at.is_none() {
            self.offer(self.pending.len() - 1).await;
        }
        self.settle(client);
    }

    async fn offer(&mut self, index: usize) {
        let Some(pending) = self.pending.get_mut(index) else { return };
        let Some(publish) = pending.publish.clone() else { return };
        pending.stage = Stage::Asked;
        let number = self.first_number + index as u64;
        let ticket = Ticket { number, to: self.to.clone() };
        if !self.local.submit(&publish, ticket).await
            && let Some(pending) = self.pending.get_mut(index)
        {
            pending.stage = Stage::Durable;
        }
    }

    /// Waits for a verdict, or for the time to offer again what is held. May be cancelled.
    pub(super) async fn next(&mut self) -> Step {
        let offer_at = self.offer_at;
        let again = async {
            match offer_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some((number, verdict)) = self.verdicts.recv() => Step::Verdict(number, verdict),
            () = again => Step::OfferAgain,
        }
    }

    /// Does what [`Incoming::next`] has found.
    pub(super) async fn step(&mut self, step: Step, client: Option<&mut Client>) {
        match step {
            Step::Verdict(number, verdict) => self.judge(number, verdict),
            Step::OfferAgain => {
                self.offer_at = None;
                for index in 0..self.pending.len() {
                    if self.pending.get(index).is_some_and(|one| one.stage == Stage::Held) {
                        self.offer(index).await;
                    }
                }
            }
        }
        match client {
            Some(client) => self.settle(client),
            None => self.settle_without(),
        }
    }

    fn judge(&mut self, number: u64, verdict: Verdict) {
        let index = number.checked_sub(self.first_number).and_then(|at| usize::try_from(at).ok());
        let Some(pending) = index.and_then(|index| self.pending.get_mut(index)) else { return };
        match verdict {
            Verdict::Durable if pending.stage == Stage::Saving => pending.stage = Stage::Done,
            // The store has failed: the process ends, and the upstream sends it again.
            Verdict::Refused(_) if pending.stage == Stage::Saving => {}
            Verdict::Durable => {
                pending.stage = Stage::Durable;
                if let Some(reason) = self.refused.take() {
                    tracing::info!(upstream = %self.upstream, %reason, "publishes are taken again");
                }
            }
            Verdict::Refused(reason) => {
                pending.stage = Stage::Held;
                self.offer_at.get_or_insert(Instant::now() + OFFER_AGAIN);
                self.count_refusal(reason);
                if self.refused.replace(reason).is_none() {
                    tracing::error!(
                        upstream = %self.upstream, %reason,
                        "publishes are not taken: they are held here and at the upstream, unacknowledged, and offered again each second"
                    );
                }
            }
        }
    }

    /// Fans out and acknowledges what has its verdict, in order.
    fn settle(&mut self, client: &mut Client) {
        let connection = self.connection;
        self.settle_to(|owed| {
            if let Some((came_by, id)) = owed
                && came_by == connection
            {
                client.acknowledge(id);
            }
        });
    }

    /// The same while there is no connection: what is acknowledged too late comes again.
    fn settle_without(&mut self) {
        self.settle_to(|_| {});
    }

    fn settle_to(&mut self, mut acknowledge: impl FnMut(Option<(u64, u16)>)) {
        for index in 0..self.pending.len() {
            match self.pending.get(index).map(|pending| pending.stage) {
                Some(Stage::Durable) => self.fan_out(index),
                Some(Stage::Saving | Stage::Done) => {}
                _ => break,
            }
        }
        while self.pending.front().is_some_and(|first| first.stage == Stage::Done) {
            let Some(first) = self.pending.pop_front() else { break };
            self.first_number += 1;
            acknowledge(first.owed);
        }
    }

    fn fan_out(&mut self, index: usize) {
        let number = self.first_number + index as u64;
        let ticket = Ticket { number, to: self.to.clone() };
        let publish = self.pending.get_mut(index).and_then(|pending| pending.publish.take());
        let is_done = publish.is_none_or(|publish| {
            self.local.metrics().upstream_taken.get_or_create(&self.by()).inc();
            self.deliver(&publish, ticket)
        });
        if let Some(pending) = self.pending.get_mut(index) {
            pending.stage = if is_done { Stage::Done } else { Stage::Saving };
        }
    }

    /// What the upstream keeps for its subscribers is not kept here a second time.
    fn deliver(&self, publish: &Arc<Publish>, ticket: Ticket) -> bool {
        if publish.retain {
            let news = Publish { retain: false, ..Publish::clone(publish) };
            self.local.deliver(&Arc::new(news), ticket)
        } else {
            self.local.deliver(publish, ticket)
        }
    }

    fn by(&self) -> ByUpstream {
        ByUpstream { upstream: self.upstream.to_string() }
    }

    fn count_refusal(&self, reason: Reason) {
        let by = ByUpstreamReason { upstream: self.upstream.to_string(), reason };
        self.local.metrics().upstream_refused.get_or_create(&by).inc();
    }
}

/// What there is to do.
pub(super) enum Step {
    Verdict(u64, Verdict),
    OfferAgain,
}
