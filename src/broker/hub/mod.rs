//! Sessions, subscriptions, retained messages, and who gets a publish.
//!
//! No task of its own but [`Hub::tend`], which ends sessions and fires delayed wills in time: a
//! publish is handed to its subscribers' queues by the connection that received it. Looking up who
//! gets it takes one read lock; only SUBSCRIBE, UNSUBSCRIBE and the end of a session write.
//!
//! Locks are taken in this order and never across an await: `sessions`, `routes`, a share's
//! members, a session's state, `deadlines`; `retained` is taken alone.
//!
//! Invariant: a session is in `sessions` until it has ended, and after that no route leads to it.

mod retained;
mod routes;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use self::retained::{Full, Retained};
pub(crate) use self::routes::Subscribed;
use self::routes::{Member, Routes, Target};
use super::acl::Grants;
use super::auth::Principal;
use super::config::Config;
use super::protocol::Wanted;
use super::protocol::connect::Will;
use super::session::{NotOwner, Outgoing, Owner, Pushed, QueueLimits, Session, Signal, State};
use crate::clock::Clock;
use crate::intake::{Intake, Ticket, Verdict};
use crate::model::{Publish, Reason};
use crate::telemetry::{ByReason, Metrics};
use crate::topic::TopicName;

/// Sessions, subscriptions and retained messages.
pub(crate) struct Hub {
    pub(crate) intake: Intake,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    limits: Limits,
    sessions: Mutex<HashMap<Arc<str>, Arc<Session>>>,
    routes: RwLock<Routes>,
    /// So that a publish costs no lock while nobody subscribes to anything.
    route_count: AtomicUsize,
    retained: RwLock<Retained>,
    deadlines: Mutex<BTreeMap<(Instant, u64), Arc<Session>>>,
    deadline_set: Notify,
    /// Called whenever a connection lets go of its session.
    let_go: Notify,
    last_number: AtomicU64,
    stopping: AtomicBool,
}

struct Limits {
    sessions_max: usize,
    subscriptions_max: usize,
    queue: QueueLimits,
    /// For the retained messages that a new subscription starts with, which are all there at once.
    retained_queue: QueueLimits,
    takeover_wait: Duration,
}

/// Who wants a session.
pub(crate) struct Attach {
    pub(crate) client_id: Arc<str>,
    pub(crate) principal: Principal,
    pub(crate) clean_start: bool,
    pub(crate) grants: Option<Arc<Grants>>,
}

/// A session, attached.
pub(crate) struct Attached {
    pub(crate) session: Arc<Session>,
    pub(crate) owner: Owner,
    /// Calls the owner.
    pub(crate) signal: Arc<Signal>,
    /// It was there before.
    pub(crate) present: bool,
    /// The will of a session that this one replaced, to be published now.
    pub(crate) old_will: Option<Box<Will>>,
}

/// How a connection leaves its session.
pub(crate) struct Detach {
    /// How long the session goes on; `None` for ever.
    pub(crate) expires_after: Option<Duration>,
    /// The will, where it is to be published.
    pub(crate) will: Option<Box<Will>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    pub(crate) fn new(config: &Config, intake: Intake, clock: Clock, metrics: Metrics) -> Self {
        let queue = QueueLimits {
            messages_max: config.queue_messages_max,
            bytes_max: config.queue_bytes_max,
        };
        Self {
            intake,
            clock,
            metrics,
            limits: Limits {
                sessions_max: config.sessions_max,
                subscriptions_max: config.subscriptions_max,
                queue,
                retained_queue: QueueLimits {
                    messages_max: queue.messages_max + config.retained_messages_max,
                    bytes_max: queue.bytes_max + config.retained_bytes_max,
                },
                // The old connection waits for its commits, then says goodbye.
                takeover_wait: config.close_timeout.get() + Duration::from_secs(1),
            },
            sessions: Mutex::default(),
            routes: RwLock::default(),
            route_count: AtomicUsize::new(0),
            retained: RwLock::new(Retained::new(
                config.retained_messages_max,
                config.retained_bytes_max,
            )),
            deadlines: Mutex::default(),
            deadline_set: Notify::new(),
            let_go: Notify::new(),
            last_number: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    fn number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    // Sessions.

    /// Gives the client its session. A connection that has it is told to end and waited for, so
    /// that what it took is fanned out and remembered before the next one begins. Of several that
    /// wait, only the newest gets it: a device that reconnects over and over costs one turn.
    pub(crate) async fn attach(&self, wish: Attach) -> Result<Attached, Reason> {
        let owner = self.number();
        let patience = Instant::now() + self.limits.takeover_wait;
        loop {
            let mut let_go = std::pin::pin!(self.let_go.notified());
            let_go.as_mut().enable();
            let out_of_patience = Instant::now() >= patience;
            if let Some(attached) = self.try_attach(&wish, owner, out_of_patience)? {
                return Ok(attached);
            }
            // An old connection that does not end in time has lost its session all the same.
            tokio::time::timeout_at(patience, let_go).await.ok();
        }
    }

    fn try_attach(
        &self,
        wish: &Attach,
        owner: Owner,
        force: bool,
    ) -> Result<Option<Attached>, Reason> {
        let mut sessions = lock(&self.sessions);
        if self.stopping.load(Ordering::Acquire) {
            return Err(Reason::ShuttingDown);
        }
        let mut old_will = None;
        if let Some(session) = sessions.get(&wish.client_id).map(Arc::clone) {
            let mut state = session.state();
            if state.newest > owner {
                return Err(Reason::TakenOver);
            }
            state.newest = owner;
            if state.owner.is_some() {
                state.tell_to_end(Reason::TakenOver);
                if !force {
                    return Ok(None);
                }
            }
            let is_over = state.ends_at.is_some_and(|at| at <= Instant::now());
            if !wish.clean_start && !is_over && session.principal == wish.principal {
                state.hand_to(owner);
                state.ends_at = None;
                // MQTT5-3.1.3-9: the client is back before the will was due.
                state.will = None;
                state.denied.clone_from(&wish.grants);
                self.clear_deadline(&mut state);
                drop(state);
                let signal = session.signal();
                return Ok(Some(Attached {
                    session,
                    owner,
                    signal,
                    present: true,
                    old_will: None,
                }));
            }
            old_will = state.will.take().map(|(_, will)| will);
            drop(state);
            sessions.remove(&wish.client_id);
            self.end(&session);
        }
        if sessions.len() >= self.limits.sessions_max {
            return Err(Reason::TooMany);
        }
        let session =
            Arc::new(Session::new(Arc::clone(&wish.client_id), wish.principal.clone(), owner));
        session.state().denied.clone_from(&wish.grants);
        sessions.insert(Arc::clone(&wish.client_id), Arc::clone(&session));
        self.count_sessions(&sessions);
        let signal = session.signal();
        Ok(Some(Attached { session, owner, signal, present: false, old_will }))
    }

    /// Takes the session from its connection. Gives back the will if it is to be published now.
    pub(crate) fn detach(
        &self,
        session: &Arc<Session>,
        owner: Owner,
        leaving: Detach,
    ) -> Option<Box<Will>> {
        let mut will_now = None;
        let mut sessions = lock(&self.sessions);
        let mut state = session.state();
        if state.owner != Some(owner) {
            // Another connection has it, and with it the say over its will.
            return leaving.will.filter(|will| will.delay_secs == 0);
        }
        state.owner = None;
        state.word_to_end = None;
        let now = Instant::now();
        let ends_now = leaving.expires_after == Some(Duration::ZERO);
        if let Some(will) = leaving.will {
            let delay = Duration::from_secs(will.delay_secs.into());
            if ends_now || delay.is_zero() {
                will_now = Some(will);
            } else {
                // Whichever is first: the delay, or the end of the session.
                let after = leaving.expires_after.map_or(delay, |end| end.min(delay));
                state.will = Some((now + after, will));
            }
        }
        if ends_now {
            drop(state);
            sessions.remove(&session.client_id);
            self.count_sessions(&sessions);
            drop(sessions);
            self.end(session);
        } else {
            state.ends_at = leaving.expires_after.map(|after| now + after);
            self.set_deadline(session, &mut state);
            drop(state);
            drop(sessions);
        }
        self.let_go.notify_waiters();
        will_now
    }

    /// Ends the connections of those clients that `fits` says yes to, by session and the address
    /// that the client comes from. Says how many.
    pub(crate) fn disconnect(
        &self,
        reason: Reason,
        fits: impl Fn(&Session, IpAddr) -> bool,
    ) -> usize {
        let sessions: Vec<_> = lock(&self.sessions).values().map(Arc::clone).collect();
        let connected = |session: &&Arc<Session>| {
            let state = session.state();
            let peer = state.owner.and(state.peer);
            drop(state);
            peer.is_some_and(|peer| fits(session, peer))
        };
        let ended = sessions.iter().filter(connected);
        ended.map(|session| session.tell_to_end(reason)).count()
    }

    /// Takes a session that is out of `sessions` out of everything else.
    fn end(&self, session: &Arc<Session>) {
        let subscriptions = {
            let mut state = session.state();
            self.clear_deadline(&mut state);
            let subscriptions = std::mem::take(&mut state.subscriptions);
            state.clear();
            subscriptions
        };
        if subscriptions.is_empty() {
            return;
        }
        let mut routes = write(&self.routes);
        for text in &subscriptions {
            if let Ok(subscribed) = Subscribed::read_back(text) {
                routes.remove(session, &subscribed);
            }
        }
        self.route_count.store(routes.len(), Ordering::Release);
    }

    fn count_sessions(&self, sessions: &HashMap<Arc<str>, Arc<Session>>) {
        let count = i64::try_from(sessions.len()).unwrap_or(i64::MAX);
        self.metrics.sessions.set(count);
    }

    /// Tells every connection to end, and takes no more.
    pub(crate) fn stop(&self) {
        let sessions = lock(&self.sessions);
        // Under the lock: whoever attaches later sees it.
        self.stopping.store(true, Ordering::Release);
        for session in sessions.values() {
            session.tell_to_end(Reason::ShuttingDown);
        }
    }

    // Deadlines.

    fn set_deadline(&self, session: &Arc<Session>, state: &mut State) {
        self.clear_deadline(state);
        let will_at = state.will.as_ref().map(|(at, _)| *at);
        let earliest = match (will_at, state.ends_at) {
            (Some(will), Some(end)) => Some(will.min(end)),
            (one, other) => one.or(other),
        };
        if let Some(at) = earliest {
            let key = (at, self.number());
            state.deadline = Some(key);
            lock(&self.deadlines).insert(key, Arc::clone(session));
            self.deadline_set.notify_one();
        }
    }

    fn clear_deadline(&self, state: &mut State) {
        if let Some(key) = state.deadline.take() {
            lock(&self.deadlines).remove(&key);
        }
    }

    /// Ends sessions and publishes delayed wills when their time has come. Runs until dropped.
    pub(crate) async fn tend(&self) {
        loop {
            let next = lock(&self.deadlines).keys().next().map(|(at, _)| *at);
            let changed = self.deadline_set.notified();
            match next {
                Some(at) if at <= Instant::now() => self.meet_deadline().await,
                // A new deadline may be an earlier one.
                Some(at) => {
                    tokio::time::timeout_at(at, changed).await.ok();
                }
                None => changed.await,
            }
        }
    }

    async fn meet_deadline(&self) {
        let Some((_, session)) = lock(&self.deadlines).pop_first() else {
            return;
        };
        let will = self.overdue(&session);
        if let Some(will) = will {
            self.publish_will(&session, *will).await;
        }
    }

    fn overdue(&self, session: &Arc<Session>) -> Option<Box<Will>> {
        let mut sessions = lock(&self.sessions);
        let mut state = session.state();
        if state.owner.is_some() || state.ended {
            return None;
        }
        state.deadline = None;
        let now = Instant::now();
        let will = state.will.take_if(|(at, _)| *at <= now).map(|(_, will)| will);
        if state.ends_at.is_some_and(|at| at <= now) {
            drop(state);
            sessions.remove(&session.client_id);
            self.count_sessions(&sessions);
            drop(sessions);
            self.end(session);
        } else {
            self.set_deadline(session, &mut state);
        }
        will
    }

    /// Publishes a will: through intake like any other publish, then to the subscribers.
    pub(crate) async fn publish_will(&self, session: &Session, will: Will) {
        let publish = Arc::new(Publish {
            topic: will.topic,
            payload: will.payload,
            qos: will.qos,
            retain: will.retain,
            client_id: Arc::clone(&session.client_id),
            identity: session.principal.name().cloned(),
            received_at: self.clock.now(),
            properties: will.properties,
        });
        if let Some(matches) = self.intake.matches(&publish.topic) {
            self.metrics.publishes_matched.inc();
            let (to, mut verdict) = mpsc::channel(1);
            let ticket = Ticket { number: 0, to };
            self.intake.submit(Arc::clone(&publish), matches, ticket).await;
            if let Some((_, Verdict::Refused(reason))) = verdict.recv().await {
                tracing::warn!(
                    client_id = %session.client_id, topic = %publish.topic, %reason,
                    "a will was not taken"
                );
                return;
            }
        }
        let targets = self.targets(&publish.topic, &publish.client_id);
        self.deliver(&publish, targets);
    }

    // Subscriptions.

    /// Subscribes. Says whether the subscription was there before.
    pub(crate) fn subscribe(
        &self,
        session: &Arc<Session>,
        owner: Owner,
        subscribed: &Subscribed,
        wanted: &Wanted,
        identifier: Option<u32>,
    ) -> Result<Result<bool, Reason>, NotOwner> {
        let existed = {
            let mut state = session.state();
            if state.owner != Some(owner) {
                return Err(NotOwner);
            }
            let existed = state.subscriptions.contains(&subscribed.text);
            if !existed && state.subscriptions.len() >= self.limits.subscriptions_max {
                return Ok(Err(Reason::TooMany));
            }
            state.subscriptions.insert(Arc::clone(&subscribed.text));
            existed
        };
        let member = Member::new(session, wanted, identifier);
        let mut routes = write(&self.routes);
        // Whoever has ended it meanwhile has been through its routes, and would not find this one.
        if session.state().ended {
            return Err(NotOwner);
        }
        // Both under one lock: no publish falls between the old and the new one (MQTT-3.8.4-3).
        if existed {
            routes.remove(session, subscribed);
        }
        routes.insert(subscribed, member);
        self.route_count.store(routes.len(), Ordering::Release);
        Ok(Ok(existed))
    }

    /// Queues the retained messages that a new subscription starts with.
    pub(crate) fn send_retained(
        &self,
        session: &Session,
        subscribed: &Subscribed,
        wanted: &Wanted,
        identifier: Option<u32>,
    ) {
        let found = read(&self.retained).matching(&subscribed.filter, self.clock.now());
        for publish in found {
            let qos = publish.qos.min(wanted.qos);
            let outgoing = Outgoing {
                publish,
                qos,
                retain: true,
                identifiers: identifier.map(|identifier| Box::from([identifier])),
            };
            self.note(session.push(outgoing, self.limits.retained_queue));
        }
    }

    /// Unsubscribes. Says whether there was such a subscription.
    pub(crate) fn unsubscribe(
        &self,
        session: &Arc<Session>,
        owner: Owner,
        subscribed: &Subscribed,
    ) -> Result<bool, NotOwner> {
        {
            let mut state = session.state();
            if state.owner != Some(owner) {
                return Err(NotOwner);
            }
            if !state.subscriptions.remove(&subscribed.text) {
                return Ok(false);
            }
        }
        let mut routes = write(&self.routes);
        routes.remove(session, subscribed);
        self.route_count.store(routes.len(), Ordering::Release);
        Ok(true)
    }

    // Publishes.

    /// Who gets a publish of `from` to `topic`: each session once, with the highest QoS of its
    /// subscriptions that match (MQTT-3.3.5-1).
    pub(crate) fn targets(&self, topic: &TopicName, from: &str) -> Vec<Target> {
        if self.route_count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        read(&self.routes).targets(topic, from)
    }

    /// Hands a publish to its subscribers, and keeps it if it is to be retained.
    pub(crate) fn deliver(&self, publish: &Arc<Publish>, targets: Vec<Target>) {
        if publish.retain {
            let mut retained = write(&self.retained);
            let kept = retained.keep(publish, self.clock.now());
            let count = i64::try_from(retained.len()).unwrap_or(i64::MAX);
            drop(retained);
            self.metrics.retained_messages.set(count);
            if kept == Err(Full) {
                self.metrics.refuse(Reason::TooMany);
                tracing::warn!(
                    client_id = %publish.client_id, topic = %publish.topic,
                    "not retained: too many or too large; see broker.retained_messages_max and \
                     broker.retained_bytes_max"
                );
            }
        }
        for target in targets {
            let outgoing = Outgoing {
                publish: Arc::clone(publish),
                qos: publish.qos.min(target.qos),
                retain: publish.retain && target.retain_as_published,
                identifiers: (!target.identifiers.is_empty())
                    .then(|| target.identifiers.into_boxed_slice()),
            };
            self.note(target.session.push(outgoing, self.limits.queue));
        }
    }

    fn note(&self, pushed: Pushed) {
        match pushed {
            Pushed::Queued => {
                self.metrics.fanout_copies.inc();
            }
            Pushed::NotKept => {}
            Pushed::Dropped(reason) => self.note_dropped(reason),
        }
    }

    /// Counts a copy that a subscriber does not get.
    pub(crate) fn note_dropped(&self, reason: Reason) {
        let drops = &self.metrics.fanout_dropped;
        drops.get_or_create(&ByReason { reason }).inc();
    }
}
