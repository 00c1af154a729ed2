//! Sessions, subscriptions, retained messages, and who gets a publish.
//!
//! What must survive a crash is in the store as well (`journal`, `restore`): sessions that outlive
//! their connection and have something to lose (a subscription, a QoS 2 id, a delayed will), what
//! waits for them with QoS 1 or 2, retained messages. A device that only publishes has nothing of
//! it on disk and costs no commit. A publish that such sessions wait for, or that is retained, is
//! on disk before it is acknowledged if it has QoS 1 or 2; nothing else waits for the disk.
//!
//! No task of its own but [`Hub::tend`], which ends sessions and fires delayed wills in time: a
//! publish is handed to its subscribers' queues by the connection that received it. Looking up who
//! gets it takes one read lock; only SUBSCRIBE, UNSUBSCRIBE and the end of a session write.
//!
//! Locks are taken in this order and never across an await: `sessions`, `routes`, a share's
//! members, a session's state, `deadlines`; `retained` is taken without these. The journal's lock is
//! taken under any of them, and nothing under it.
//!
//! Invariant: a session is in `sessions` until it has ended, and after that no route leads to it.

mod fanout;
pub(super) mod journal;
mod restore;
mod retained;
#[cfg(feature = "rumqttd")]
mod router;
mod routes;

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use self::fanout::Fanout;
use self::journal::{Journal, Position};
use self::retained::{Full, Retained};
pub(crate) use self::routes::Subscribed;
use self::routes::{Member, Routes, Target};
use super::acl::Grants;
use super::auth::Principal;
use super::config::Config;
use super::herald::{self, Event, Herald, News, Way};
use super::limits::Repeats;
use super::load::quota::{Most, Owner as Whose, Quota};
use super::protocol::Wanted;
use super::protocol::connect::Will;
use super::session::{
    Backlog, NotOwner, Outgoing, Owner, PendingWill, Pushed, QueueLimits, Queues, Session, Signal,
    State,
};
use crate::clock::Clock;
use crate::intake::{Intake, Ticket, Verdict};
use crate::model::{Publish, Qos, Reason};
use crate::store::sessions::{ReceivedRow, SubscriptionRow, WillRow};
use crate::store::{Store, keys};
use crate::telemetry::{ByReason, Metrics};
use crate::topic::{TopicFilter, TopicName};

/// The address of what no peer is the cause of.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Wills that are published at a time. More that are due wait.
const WILLS_MAX: usize = 256;
/// How often what is too old is dropped from the queues of those who are away.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Sessions, subscriptions and retained messages.
pub(crate) struct Hub {
    pub(crate) intake: Intake,
    store: Store,
    pub(crate) queues: Arc<Queues>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) herald: Herald,
    limits: Limits,
    sessions: Mutex<HashMap<Arc<str>, Arc<Session>>>,
    routes: RwLock<Routes>,
    fanout: Fanout,
    /// So that a publish costs no lock while nobody subscribes to anything.
    route_count: AtomicUsize,
    retained: RwLock<Retained>,
    deadlines: Mutex<BTreeMap<(Instant, u64), Arc<Session>>>,
    deadline_set: Notify,
    /// Called whenever a connection lets go of its session.
    let_go: Notify,
    last_number: AtomicU64,
    stopping: AtomicBool,
    /// Subscriptions of all sessions, those of a shared subscription each.
    subscriptions: AtomicUsize,
    /// Those of each identity.
    subscriptions_of: Mutex<Quota>,
    /// Which failures of our own were logged of late.
    repeats: Repeats,
    /// Which subscribers were named of late that do not get all. By themselves: there may be many,
    /// and failures of our own are to be seen beside them.
    slow: Repeats,
}

struct Limits {
    sessions_max: usize,
    subscriptions_max: usize,
    subscriptions_total_max: usize,
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
    /// Session Expiry Interval, seconds; `u32::MAX` for ever.
    pub(crate) expiry_secs: u32,
    pub(crate) groups: Vec<Arc<str>>,
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
    /// When this is durable it is on disk that the session has its client again, or that the one
    /// that was replaced is gone.
    pub(crate) position: Position,
    /// The will of a session that this one replaced, to be published now, and its row.
    pub(crate) old_will: Option<(Box<Will>, u64)>,
}

/// Whose QoS 2 publish it is, and its packet id, where that is to be on disk with the copies.
#[derive(Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) session: &'a Session,
    pub(crate) id: u16,
}

/// A publish that was handed to its subscribers' queues.
#[derive(Default)]
pub(crate) struct Delivered {
    /// When this is durable, so is all that it left.
    pub(crate) position: Position,
    /// Its packet id has a row.
    pub(crate) is_saved: bool,
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
    pub(crate) fn new(
        config: &Config,
        (intake, store): (Intake, Store),
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let queue = QueueLimits {
            messages_max: config.queue_messages_max,
            bytes_max: config.queue_bytes_max,
            age_max: config.queue_age_max.get(),
            stuck_max: config.write_timeout.get(),
            connected_bytes: config.output_bytes_max,
        };
        let queues = Arc::new(Queues::new(config.queued_bytes_max));
        let mut routes = Routes::default();
        let fanout = Fanout::new(config, (&queues, queue), &mut routes, (&clock, &metrics));
        Self {
            intake,
            store,
            queues,
            clock,
            metrics,
            herald: Herald::new(config.client_events_max, config.client_id_chars_max),
            limits: Limits {
                sessions_max: config.sessions_max,
                subscriptions_max: config.subscriptions_max,
                subscriptions_total_max: config.limits.total.subscriptions_max,
                queue,
                retained_queue: QueueLimits {
                    messages_max: queue.messages_max + config.retained_messages_max,
                    bytes_max: queue.bytes_max + config.retained_bytes_max,
                    ..queue
                },
                // The old connection waits for its commits, then says goodbye.
                takeover_wait: config.close_timeout.get() + Duration::from_secs(1),
            },
            sessions: Mutex::default(),
            route_count: AtomicUsize::new(routes.len()),
            routes: RwLock::new(routes),
            fanout,
            retained: RwLock::new(Retained::new(
                config.retained_messages_max,
                config.retained_bytes_max,
                Most {
                    count: config.limits.identity.retained_messages_max,
                    bytes: config.limits.identity.retained_bytes_max,
                },
            )),
            deadlines: Mutex::default(),
            deadline_set: Notify::new(),
            let_go: Notify::new(),
            last_number: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            subscriptions: AtomicUsize::new(0),
            subscriptions_of: Mutex::new(Quota::new(Most {
                count: config.limits.identity.subscriptions_max,
                bytes: 0,
            })),
            repeats: Repeats::default(),
            slow: Repeats::default(),
        }
    }

    /// Whether a failure of our own, whoever meets it, is to be logged in full: the first of its
    /// kind.
    pub(crate) fn is_first_of_ours(&self, failure: impl Hash) -> bool {
        self.repeats.is_first(NOBODY, failure, Instant::now())
    }

    /// What makes the router's thread panic, where there is one.
    #[cfg(feature = "rumqttd")]
    pub(crate) fn router_breaker(&self) -> Option<impl Fn() + Send + Sync + use<>> {
        match &self.fanout {
            Fanout::Hub => None,
            Fanout::Router(router) => Some(router.breaker()),
        }
    }

    fn number(&self) -> u64 {
        self.last_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn journal(&self) -> &Arc<Journal> {
        &self.queues.journal
    }

    /// How long a publish may wait for a client.
    pub(crate) fn age_max(&self) -> Duration {
        self.limits.queue.age_max
    }

    /// Writes what changes until [`Journal::close`].
    pub(crate) async fn write(&self) {
        self.journal().run(&self.store).await;
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
        let (mut old_will, mut position) = (None, 0);
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
            // One that does not outlive its connection is over, though that has not noticed yet.
            let is_over =
                state.ends_at.is_some_and(|at| at <= Instant::now()) || !session.persistent;
            if !wish.clean_start && !is_over && session.principal == wish.principal {
                state.hand_to(owner);
                state.ends_at = None;
                // MQTT5-3.1.3-9: the client is back before the will was due.
                if let Some(will) = state.will.take() {
                    self.forget_will(will.number);
                }
                state.expiry_secs = wish.expiry_secs;
                state.groups.clone_from(&wish.groups);
                let position = if state.is_saved { session.save(&mut state, None) } else { 0 };
                state.denied.clone_from(&wish.grants);
                self.clear_deadline(&mut state);
                drop(state);
                let signal = session.signal();
                return Ok(Some(Attached {
                    session,
                    owner,
                    signal,
                    present: true,
                    position,
                    old_will: None,
                }));
            }
            old_will = state.will.take().map(|pending| (pending.will, pending.number));
            drop(state);
            sessions.remove(&wish.client_id);
            position = self.end(&session);
        }
        if sessions.len() >= self.limits.sessions_max {
            return Err(Reason::TooMany);
        }
        let session = Arc::new(Session::new(
            Arc::clone(&wish.client_id),
            wish.principal.clone(),
            self.number(),
            wish.expiry_secs > 0,
            &self.queues,
        ));
        {
            let mut state = session.state();
            (state.owner, state.newest) = (Some(owner), owner);
            state.expiry_secs = wish.expiry_secs;
            state.groups.clone_from(&wish.groups);
            state.denied.clone_from(&wish.grants);
        }
        sessions.insert(Arc::clone(&wish.client_id), Arc::clone(&session));
        self.count_sessions(&sessions);
        let signal = session.signal();
        Ok(Some(Attached { session, owner, signal, present: false, position, old_will }))
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
        if state.owner != Some(owner) || state.ended {
            // Another connection has it, or its successor, and with it the say over its will.
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
                let number = self.number();
                let due_at = self.clock.now().plus(after);
                let publish = self.publish_of(session, &will);
                self.journal().note(|op| {
                    op.put_will(number, WillRow { session: session.number, due_at }, &publish);
                });
                state.will = Some(PendingWill { at: now + after, number, will });
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
            state.expiry_secs = leaving
                .expires_after
                .map_or(u32::MAX, |after| u32::try_from(after.as_secs()).unwrap_or(u32::MAX));
            if state.is_saved || state.will.is_some() {
                let ends_at = leaving.expires_after.map(|after| self.clock.now().plus(after));
                session.save(&mut state, ends_at);
            }
            self.set_deadline(session, &mut state);
            drop(state);
            drop(sessions);
        }
        self.let_go.notify_waiters();
        will_now
    }

    /// Takes a session that is out of `sessions` out of everything else. Its rows are gone when the
    /// position is durable.
    fn end(&self, session: &Arc<Session>) -> Position {
        self.clear_deadline(&mut session.state());
        let (subscriptions, position) = session.end();
        if subscriptions.is_empty() {
            return position;
        }
        self.give_back_subscriptions(session, subscriptions.len());
        let mut routes = write(&self.routes);
        for text in &subscriptions {
            if let Ok(subscribed) = Subscribed::read_back(text) {
                routes.remove(session, &subscribed);
            }
        }
        self.route_count.store(routes.len(), Ordering::Release);
        drop(routes);
        self.fanout.changed(session);
        position
    }

    /// Ends the sessions that `is_over` names, and nobody has: how many publishes waited in each.
    pub(crate) fn end_sessions(&self, is_over: impl Fn(&str) -> bool) -> Vec<(Arc<str>, usize)> {
        let mut sessions = lock(&self.sessions);
        let over: Vec<_> =
            sessions.extract_if(|client_id, _| is_over(client_id)).map(|(_, one)| one).collect();
        self.count_sessions(&sessions);
        drop(sessions);
        let mut ended = Vec::new();
        for session in over {
            let backlog = session.backlog();
            self.end(&session);
            ended.push((Arc::clone(&session.client_id), backlog.queued + backlog.in_flight));
        }
        ended
    }

    /// What the session of this client holds.
    pub(crate) fn backlog_of(&self, client_id: &str) -> Option<Backlog> {
        lock(&self.sessions).get(client_id).map(|session| session.backlog())
    }

    fn count_sessions(&self, sessions: &HashMap<Arc<str>, Arc<Session>>) {
        let count = i64::try_from(sessions.len()).unwrap_or(i64::MAX);
        self.metrics.sessions.set(count);
    }

    /// Tells every connection to end, and takes no more.
    pub(crate) fn stop(&self) {
        self.herald.stop();
        let sessions = lock(&self.sessions);
        // Under the lock: whoever attaches later sees it.
        self.stopping.store(true, Ordering::Release);
        for session in sessions.values() {
            session.tell_to_end(Reason::ShuttingDown);
        }
    }

    /// Wakes every connection: something has changed that each has to look at.
    pub(crate) fn call_all(&self) {
        for session in lock(&self.sessions).values() {
            session.call();
        }
    }

    // Deadlines.

    fn set_deadline(&self, session: &Arc<Session>, state: &mut State) {
        self.clear_deadline(state);
        let will_at = state.will.as_ref().map(|pending| pending.at);
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

    /// Ends sessions and publishes delayed wills when their time has come. Runs until dropped: a
    /// will whose publishing is cut off there is published after the next start.
    pub(crate) async fn tend(&self) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        // One does not wait for another's commit.
        let mut wills = FuturesUnordered::new();
        loop {
            let next = lock(&self.deadlines).keys().next().map(|(at, _)| *at);
            let changed = self.deadline_set.notified();
            let has_room = wills.len() < WILLS_MAX;
            if has_room && next.is_some_and(|at| at <= Instant::now()) {
                let due = lock(&self.deadlines).pop_first();
                if let Some((_, session)) = due
                    && let Some(PendingWill { number, will, .. }) = self.overdue(&session)
                {
                    wills.push(async move {
                        self.publish_will(&session, *will, Some(number), None).await;
                    });
                }
                continue;
            }
            let at = next.unwrap_or_else(|| Instant::now() + SWEEP_EVERY);
            tokio::select! {
                () = tokio::time::sleep_until(at), if has_room => {}
                // A new deadline may be an earlier one.
                () = changed => {}
                Some(()) = wills.next() => {}
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    fn sweep(&self) {
        let sessions: Vec<_> = lock(&self.sessions).values().map(Arc::clone).collect();
        let now = self.clock.now();
        for session in sessions {
            session.drop_old(now, self.age_max(), &mut |reason| self.note_dropped(reason));
        }
    }

    fn overdue(&self, session: &Arc<Session>) -> Option<PendingWill> {
        let mut sessions = lock(&self.sessions);
        let mut state = session.state();
        if state.owner.is_some() || state.ended {
            return None;
        }
        state.deadline = None;
        let now = Instant::now();
        let will = state.will.take_if(|pending| pending.at <= now);
        if state.ends_at.is_some_and(|at| at <= now) {
            drop(state);
            self.metrics.sessions_expired.inc();
            // One that only has a will of before the start may not be in there.
            if sessions.get(&session.client_id).is_some_and(|other| Arc::ptr_eq(other, session)) {
                sessions.remove(&session.client_id);
            }
            self.count_sessions(&sessions);
            drop(sessions);
            self.end(session);
        } else {
            self.set_deadline(session, &mut state);
        }
        will
    }

    fn publish_of(&self, session: &Session, will: &Will) -> Publish {
        Publish {
            topic: will.topic.clone(),
            payload: will.payload.clone(),
            qos: will.qos,
            retain: will.retain,
            replayed: false,
            client_id: Arc::clone(&session.client_id),
            identity: session.principal.name().cloned(),
            received_at: self.clock.now(),
            properties: will.properties.clone(),
        }
    }

    fn forget_will(&self, number: u64) {
        self.journal().note(|op| op.remove(keys::will(number)));
    }

    /// Publishes a will: through intake like any other publish, then to the subscribers. Its row,
    /// where it has one, goes when all that is on disk. `way` is how its client had come, where that
    /// is still known.
    pub(crate) async fn publish_will(
        &self,
        session: &Session,
        will: Will,
        row: Option<u64>,
        way: Option<&Way>,
    ) {
        let publish = Arc::new(self.publish_of(session, &will));
        let refused = match self.try_publish_will(&publish).await {
            Ok(()) => {
                let news = News::of(Event::Will, &session.client_id, &session.principal);
                herald::tell(self, &News { way, ..news });
                None
            }
            Err(reason) => {
                // Counted already; said once a minute, and not for each device while the disk is full.
                if self.is_first_of_ours(("will", reason)) {
                    tracing::warn!(
                        client_id = %session.client_id, topic = %publish.topic, %reason,
                        "wills are not taken"
                    );
                }
                Some(reason)
            }
        };
        // What the end of this process has cut off, the next one does.
        if let Some(number) = row
            && !matches!(refused, Some(Reason::ShuttingDown | Reason::StoreFailed))
        {
            self.forget_will(number);
        }
    }

    async fn try_publish_will(&self, publish: &Arc<Publish>) -> Result<(), Reason> {
        let matches = self.intake.matches(&publish.topic);
        let is_matched = matches.is_some();
        if let Some(matches) = matches {
            self.metrics.publishes_matched.inc();
            let (to, mut verdict) = mpsc::channel(1);
            let ticket = Ticket { number: 0, to };
            self.intake.submit(Arc::clone(publish), matches, ticket).await;
            if let Some((_, Verdict::Refused(reason))) = verdict.recv().await {
                return Err(reason);
            }
        }
        let targets = self.targets(&publish.topic, &publish.client_id);
        if !is_matched && let Some(reason) = self.refusal(publish, &targets) {
            return Err(reason);
        }
        let delivered = self.deliver(publish, targets, None);
        self.journal().wait(delivered.position).await
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
        let wanted = SubscriptionRow {
            filter: Arc::clone(&subscribed.text),
            qos: self.granted(session, wanted, identifier),
            no_local: wanted.no_local,
            retain_as_published: wanted.retain_as_published,
            identifier,
        };
        let is_routers = self.fanout.takes(session, &wanted);
        let member = Member::new(session, &wanted);
        let existed = {
            let mut state = session.state();
            if state.owner != Some(owner) {
                return Err(NotOwner);
            }
            let existed = state.subscriptions.contains_key(&subscribed.text);
            if !existed
                && (state.subscriptions.len() >= self.limits.subscriptions_max
                    || !self.take_subscription(session))
            {
                return Ok(Err(Reason::TooMany));
            }
            state.subscriptions.insert(Arc::clone(&subscribed.text), wanted);
            existed
        };
        let mut routes = write(&self.routes);
        // Whoever has ended it meanwhile has been through its routes, and would not find this one.
        if session.state().ended {
            return Err(NotOwner);
        }
        // Both under one lock: no publish falls between the old and the new one (MQTT-3.8.4-3).
        if existed {
            routes.remove(session, subscribed);
        }
        if !is_routers {
            routes.insert(subscribed, member);
        }
        self.route_count.store(routes.len(), Ordering::Release);
        drop(routes);
        self.fanout.changed(session);
        Ok(Ok(existed))
    }

    /// The QoS that a subscription is granted.
    pub(crate) fn granted(
        &self,
        session: &Session,
        wanted: &Wanted,
        identifier: Option<u32>,
    ) -> Qos {
        self.fanout.granted(session, wanted, identifier)
    }

    /// Counts one more subscription, if there may be one more in all and of this identity.
    fn take_subscription(&self, session: &Session) -> bool {
        let whose = Whose::of(session.principal.name(), &session.client_id);
        let mut of_each = lock(&self.subscriptions_of);
        let most = self.limits.subscriptions_total_max;
        let has_room = most == 0 || self.subscriptions.load(Ordering::Relaxed) < most;
        let is_taken = has_room && of_each.has_room(&whose, 0);
        if is_taken {
            // Under the lock, so that two cannot take the last.
            self.subscriptions.fetch_add(1, Ordering::Relaxed);
            of_each.add(whose, 0);
        }
        is_taken
    }

    /// Counts the subscriptions that a session had before the start, however many there may be.
    fn count_subscriptions(&self, session: &Session, count: usize) {
        let whose = Whose::of(session.principal.name(), &session.client_id);
        let mut of_each = lock(&self.subscriptions_of);
        self.subscriptions.fetch_add(count, Ordering::Relaxed);
        for _ in 0..count {
            of_each.add(whose.clone(), 0);
        }
    }

    fn give_back_subscriptions(&self, session: &Session, count: usize) {
        let whose = Whose::of(session.principal.name(), &session.client_id);
        self.subscriptions.fetch_sub(count, Ordering::Relaxed);
        lock(&self.subscriptions_of).remove(&whose, count, 0);
    }

    /// Notes the session's subscriptions. They are on disk when the position is durable.
    pub(crate) fn save(&self, session: &Session, owner: Owner) -> Result<Position, NotOwner> {
        let mut state = session.state();
        if state.owner != Some(owner) {
            return Err(NotOwner);
        }
        if !state.is_saved && state.subscriptions.is_empty() {
            return Ok(0);
        }
        Ok(session.save(&mut state, None))
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
        self.send_now(session, found, wanted, identifier);
    }

    /// Queues what a subscription starts with, as retained messages.
    pub(crate) fn send_now(
        &self,
        session: &Session,
        found: Vec<Arc<Publish>>,
        wanted: &Wanted,
        identifier: Option<u32>,
    ) {
        let now = self.clock.now();
        let is_disk_low = self.intake.is_disk_low();
        let granted = self.granted(session, wanted, identifier);
        for publish in found {
            let qos = publish.qos.min(granted);
            let needs_row = session.persistent && qos != Qos::AtMostOnce && !is_disk_low;
            let mut draft = needs_row.then(|| self.journal().draft(self.number(), &publish));
            let outgoing = Outgoing {
                publish: Arc::clone(&publish),
                at: now,
                qos,
                retain: true,
                identifiers: identifier.map(|identifier| Box::from([identifier])),
                saved: None,
            };
            self.note(session, session.push(outgoing, self.limits.retained_queue, draft.as_mut()));
        }
    }

    /// How many subscriptions there are; a shared one counts once.
    pub(crate) fn subscription_count(&self) -> usize {
        self.route_count.load(Ordering::Acquire)
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
            if state.subscriptions.remove(&subscribed.text).is_none() {
                return Ok(false);
            }
            self.give_back_subscriptions(session, 1);
        }
        let mut routes = write(&self.routes);
        routes.remove(session, subscribed);
        self.route_count.store(routes.len(), Ordering::Release);
        drop(routes);
        self.fanout.changed(session);
        Ok(true)
    }

    // Publishes.

    /// Who gets a publish of `from` to `topic`: each session once, with the highest QoS of its
    /// subscriptions that match (MQTT-3.3.5-1).
    pub(crate) fn targets(&self, topic: &TopicName, from: &str) -> Vec<Target> {
        if self.route_count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        read(&self.routes).targets(topic, from, self.limits.queue)
    }

    /// Whether a rule or a subscription looks at this topic, of which the process itself would
    /// publish.
    pub(crate) fn wants(&self, topic: &TopicName) -> bool {
        self.intake.matches(topic).is_some()
            || (self.route_count.load(Ordering::Acquire) > 0 && read(&self.routes).has(topic))
    }

    /// Why a publish cannot be taken that would have to be on disk for somebody: there is no room.
    pub(crate) fn refusal(&self, publish: &Publish, targets: &[Target]) -> Option<Reason> {
        (needs_disk(publish.qos, publish.retain, targets) && self.intake.is_disk_low())
            .then_some(Reason::DiskLow)
    }

    /// Hands a publish to its subscribers, and keeps it if it is to be retained. It may be
    /// acknowledged when the position is durable.
    pub(crate) fn deliver(
        &self,
        publish: &Arc<Publish>,
        targets: Vec<Target>,
        from: Option<Origin<'_>>,
    ) -> Delivered {
        let mut draft = None;
        if needs_disk(publish.qos, publish.retain, &targets) {
            if let Some(origin) = &from {
                // A packet id is of no use without the session that it belongs to.
                origin.session.save_first();
            }
            draft = Some(self.journal().draft(self.number(), publish));
        }
        if publish.retain {
            self.retain(publish);
        }
        for target in targets {
            let outgoing = Outgoing {
                publish: Arc::clone(publish),
                at: publish.received_at,
                qos: publish.qos.min(target.qos),
                retain: publish.retain && target.retain_as_published,
                identifiers: (!target.identifiers.is_empty())
                    .then(|| target.identifiers.into_boxed_slice()),
                saved: None,
            };
            let session = &target.session;
            self.note(session, session.push(outgoing, self.limits.queue, draft.as_mut()));
        }
        let Some(mut draft) = draft.filter(|draft| publish.retain || draft.is_stored()) else {
            return Delivered::default();
        };
        let is_saved = from.is_some();
        if let Some(Origin { session, id }) = from {
            draft.also().put_received(session.number, id, ReceivedRow::Taken);
        }
        Delivered { position: draft.position, is_saved }
    }

    fn retain(&self, publish: &Arc<Publish>) {
        let mut retained = write(&self.retained);
        let kept = retained.keep(publish, self.clock.now(), &mut |topic| {
            self.journal().note_retained(topic, None);
        });
        let stays = kept.is_ok() && !publish.payload.is_empty();
        self.journal().note_retained(&publish.topic, stays.then_some(publish));
        let count = i64::try_from(retained.len()).unwrap_or(i64::MAX);
        drop(retained);
        self.metrics.retained_messages.set(count);
        if kept == Err(Full) {
            self.metrics.refuse(Reason::TooMany);
            if self.is_first_of_ours(("retained", &publish.client_id)) {
                tracing::warn!(
                    client_id = %publish.client_id, topic = %publish.topic,
                    "not retained: too many or too large; see broker.retained_messages_max, \
                     broker.retained_bytes_max and the like in [broker.limits.identity]"
                );
            }
        }
    }

    /// Forgets what is retained on topics that `filter` matches; nobody is told.
    pub(crate) fn forget_retained(&self, filter: &TopicFilter) {
        let kept = read(&self.retained).matching(filter, self.clock.now());
        for old in kept {
            // An empty payload deletes (MQTT-3.3.1-6).
            let nothing = Publish { payload: Bytes::new(), ..Publish::clone(&old) };
            self.retain(&Arc::new(nothing));
        }
    }

    fn note(&self, session: &Session, pushed: Pushed) {
        note(&self.metrics, pushed);
        let client_id = &session.client_id;
        if let Pushed::Dropped(reason @ Reason::QueueFull) = pushed
            && self.slow.is_first(NOBODY, client_id, Instant::now())
        {
            tracing::warn!(
                %client_id, %reason,
                "a subscriber does not get all: it takes less than is published, or is away; see \
                 broker.queue_messages_max and watchbell_fanout_dropped_total"
            );
        }
    }

    /// Counts a copy that a subscriber does not get.
    pub(crate) fn note_dropped(&self, reason: Reason) {
        let drops = &self.metrics.fanout_dropped;
        drops.get_or_create(&ByReason { reason }).inc();
    }
}

/// Counts what became of a copy.
fn note(metrics: &Metrics, pushed: Pushed) {
    let dropped = |reason| metrics.fanout_dropped.get_or_create(&ByReason { reason }).inc();
    match pushed {
        Pushed::Queued => {
            metrics.fanout_copies.inc();
        }
        Pushed::QueuedFor(expendable) => {
            metrics.fanout_copies.inc();
            for _ in 0..expendable {
                dropped(Reason::QueueFull);
            }
        }
        Pushed::NotKept => {}
        Pushed::Dropped(reason) => {
            dropped(reason);
        }
    }
}

/// Whether a publish has to be on disk before it is acknowledged: it is retained, or somebody
/// waits for it whose session outlives a crash.
pub(crate) fn needs_disk(qos: Qos, retain: bool, targets: &[Target]) -> bool {
    let waits = |target: &Target| target.session.persistent && target.qos != Qos::AtMostOnce;
    qos != Qos::AtMostOnce && (retain || targets.iter().any(waits))
}
