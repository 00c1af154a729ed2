//! The broker's door for the process itself: what upstreams bring comes in here, and what they are
//! to get goes out.
//!
//! It never goes round intake: a publish of ours is handed to subscribers after its verdict, like
//! a device's. Its sessions are the hub's, under client ids that begin with `$`, which no device
//! may have; access lists do not apply.
//!
//! Invariant: a publish that a rule matches is delivered by [`Local::deliver`] only after its
//! [`crate::intake::Verdict::Durable`].

use std::sync::Arc;
use std::task::Poll;

use super::Shared;
use super::auth::Principal;
use super::hub::journal::Waiter;
use super::hub::{Attach, Attached, Detach, Subscribed};
use super::protocol::connect::{RefusedTopic, check_topic};
use super::protocol::{Ack, Retained, Wanted, code};
use super::session::{Owner, Session, Signal, Taken};
use crate::clock::Timestamp;
use crate::intake::{Intake, Ticket};
use crate::model::{Publish, Qos, Reason};
use crate::telemetry::Metrics;
use crate::topic::{TopicFilter, TopicLimits, TopicName};

/// The door.
#[derive(Clone)]
pub(crate) struct Local {
    shared: Arc<Shared>,
}

impl Local {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.shared.hub.clock.now()
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.shared.hub.metrics
    }

    /// Checks a topic that comes from outside, as a device's is checked.
    pub(crate) fn check_topic(&self, text: &str) -> Result<TopicName, RefusedTopic> {
        check_topic(text, self.shared.topic_limits())
    }

    /// Hands a publish to intake, where a rule wants it: then its verdict comes to the ticket.
    /// False: nothing is to be waited for.
    pub(crate) async fn submit(&self, publish: &Arc<Publish>, ticket: Ticket) -> bool {
        let intake: &Intake = &self.shared.hub.intake;
        let Some(matches) = intake.matches(&publish.topic) else { return false };
        self.metrics().publishes_matched.inc();
        intake.submit(Arc::clone(publish), matches, ticket).await;
        true
    }

    /// Hands a publish to its subscribers, and keeps it if it is to be retained. True if all that
    /// it left is on disk; otherwise `ticket` is told when it is.
    pub(crate) fn deliver(&self, publish: &Arc<Publish>, ticket: Ticket) -> bool {
        let hub = &self.shared.hub;
        let targets = hub.targets(&publish.topic, &publish.client_id);
        if !publish.retain && targets.is_empty() {
            return true;
        }
        let position = hub.deliver(publish, targets, None).position;
        let is_durable = hub.journal().is_durable(position);
        if !is_durable {
            hub.journal().tell(position, Waiter::Ticket(ticket));
        }
        is_durable
    }

    /// The same for news of ours, which nobody waits for.
    pub(crate) fn tell(&self, publish: &Arc<Publish>) {
        let hub = &self.shared.hub;
        let targets = hub.targets(&publish.topic, &publish.client_id);
        if publish.retain || !targets.is_empty() {
            hub.deliver(publish, targets, None);
        }
    }

    /// Ends the sessions whose client ids begin with `prefix`, but for those in `kept`: what they
    /// were called, and how many publishes waited in each.
    pub(crate) fn end_others(&self, prefix: &str, kept: &[Arc<str>]) -> Vec<(Arc<str>, usize)> {
        self.shared.hub.end_sessions(|client_id| {
            client_id.starts_with(prefix) && !kept.iter().any(|one| **one == *client_id)
        })
    }

    /// How many publishes wait in this session or are under way.
    pub(crate) fn queued(&self, client_id: &str) -> Option<usize> {
        let backlog = self.shared.hub.backlog_of(client_id)?;
        Some(backlog.queued + backlog.in_flight)
    }

    /// Forgets what is retained on topics that match `filter`. Nobody is told.
    pub(crate) fn forget_retained(&self, filter: &str) {
        let Ok(filter) = TopicFilter::parse(filter, TopicLimits::default()) else { return };
        self.shared.hub.forget_retained(&filter);
    }

    /// The session `client_id`, subscribed to `filters` and no others. What `client_id` publishes
    /// itself does not come to it.
    pub(crate) async fn attach(
        &self,
        client_id: Arc<str>,
        filters: &[String],
    ) -> Result<LocalSession, Reason> {
        let principal = Principal::default();
        let wish = Attach {
            client_id,
            principal,
            clean_start: false,
            // What waits for an upstream waits over restarts.
            expiry_secs: u32::MAX,
            groups: Vec::new(),
            grants: None,
        };
        let Attached { session, owner, signal, .. } = self.shared.hub.attach(wish).await?;
        let attached = LocalSession { local: self.clone(), session, owner, signal };
        attached.subscribe(filters)?;
        Ok(attached)
    }
}

/// A session of the process itself. Dropped, it stays and goes on to collect.
pub(crate) struct LocalSession {
    local: Local,
    session: Arc<Session>,
    owner: Owner,
    signal: Arc<Signal>,
}

impl LocalSession {
    fn subscribe(&self, filters: &[String]) -> Result<(), Reason> {
        let (hub, limits) = (&self.local.shared.hub, self.local.shared.topic_limits());
        let known: Vec<Arc<str>> =
            self.session.state().subscriptions.keys().map(Arc::clone).collect();
        // Those of an earlier configuration.
        for old in known.iter().filter(|old| !filters.iter().any(|one| *one == ***old)) {
            if let Ok(subscribed) = Subscribed::parse(old, limits) {
                hub.unsubscribe(&self.session, self.owner, &subscribed)
                    .map_err(|_| Reason::TakenOver)?;
            }
        }
        for filter in filters {
            let wanted = Wanted {
                filter: filter.clone(),
                // What waits for an upstream is kept until it has it.
                qos: Qos::AtLeastOnce,
                no_local: true,
                retain_as_published: true,
                retained: Retained::Never,
            };
            let subscribed = Subscribed::parse(filter, limits).map_err(|_| Reason::BadFilter)?;
            hub.subscribe(&self.session, self.owner, &subscribed, &wanted, None)
                .map_err(|_| Reason::TakenOver)??;
        }
        // Before anything waits in it: what waits is found again by its session's row.
        hub.save(&self.session, self.owner).map_err(|_| Reason::TakenOver)?;
        Ok(())
    }

    /// The next publish to pass on, while fewer than `window_max` are under way.
    pub(crate) fn take(&self, window_max: usize) -> Option<Taken> {
        let hub = &self.local.shared.hub;
        let now = (self.local.now(), hub.age_max());
        let mut dropped = |reason| hub.note_dropped(reason);
        self.session.take(self.owner, window_max, now, &mut dropped).ok().flatten()
    }

    /// The publish taken under this id has arrived, or never will.
    pub(crate) fn done(&self, id: u16) {
        // Not its owner any more: then it has been taken again.
        drop(self.session.acknowledge(self.owner, Ack::Puback, id, code::SUCCESS));
    }

    /// Counts a publish that cannot be passed on.
    pub(crate) fn note_dropped(&self, reason: Reason) {
        self.local.shared.hub.note_dropped(reason);
    }

    /// Everything that is under way is to be taken again.
    pub(crate) fn again(&self) {
        drop(self.session.again(self.owner));
    }

    /// Returns when there may be something to take.
    pub(crate) async fn called(&self) {
        std::future::poll_fn(|context| match self.signal.poll(context) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// Leaves the session to wait for the next start.
    pub(crate) fn leave(self) {
        let leaving = Detach { expires_after: None, will: None };
        // It has no will.
        drop(self.local.shared.hub.detach(&self.session, self.owner, leaving));
    }
}
