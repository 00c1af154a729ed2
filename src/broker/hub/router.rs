//! rumqttd's `Router` as the fan-out of plain subscriptions (feature `rumqttd`).
//!
//! To the hub it is one more subscriber: a session with the filter `#`, whose queue is bounded like
//! any other and counts what it cannot hold. A thread of ours takes from that queue, after the
//! publish was committed, and publishes with QoS 0 to the router; each session that the router
//! serves has one link to it, made at its first SUBSCRIBE, and a task that puts what comes out of
//! the link into the session's queue. So nobody ever waits for the router.
//!
//! What the router cannot stand it never gets: [`PREFIX`] is in front of every topic and filter,
//! because a topic that starts with a non-ASCII letter makes it panic; no retained messages, shares,
//! `$` topics or wills; a link ends with DISCONNECT, and only when its task has stopped, because word
//! from a link that is gone makes it panic too. When its thread has died all the same, the
//! connections of its subscribers are closed, so that they subscribe again, and another is started.
//!
//! The thread does not follow events but levels: it is told which sessions have `changed`, and makes
//! their links as their subscriptions are. So there is nothing to lose on the way.
//!
//! Invariant: only the thread makes, changes and ends links.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::protocol::{self as wire, Disconnect, DisconnectReasonCode, Packet};
use rumqttd::{Forward, Notification, RouterConfig};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::fanout::is_plain;
use super::{lock, note};
use crate::broker::auth::Principal;
use crate::broker::session::{Outgoing, Owner, QueueLimits, Queues, Session, Signal};
use crate::clock::Clock;
use crate::model::{Publish, PublishProperties, Qos, Reason};
use crate::telemetry::{ByReason, Metrics};
use crate::topic::{TopicLimits, TopicName};

/// In front of every topic and filter.
const PREFIX: &str = "w/";
/// The number of the thread, as owner of the session that feeds it. Connections count from 1.
const THREAD: Owner = 0;
/// The link that publishes. Sessions' links are named by numbers.
const PUBLISHER: &str = "publisher";
/// How often to look whether the router is still there, while it does not answer.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes of a segment of the router's log, which it has for each filter.
const SEGMENT_BYTES_MAX: usize = 256 << 10;
/// Segments of each log. A link that is further behind than these has lost the oldest.
const SEGMENTS_MAX: usize = 8;
/// Publishes that the router hands to a link at a time.
const FORWARDS_MAX: u64 = 100;

/// The router, as the hub knows it. Dropped, it ends.
pub(super) struct Router {
    shared: Arc<Shared>,
}

struct Shared {
    /// What waits for the router.
    session: Arc<Session>,
    signal: Arc<Signal>,
    /// Sessions whose link has to be looked at, by their number.
    changed: Mutex<HashMap<u64, Arc<Session>>>,
    is_over: AtomicBool,
    /// A test wants the router to panic.
    is_poisoned: AtomicBool,
    links_max: usize,
    limits: QueueLimits,
    clock: Clock,
    metrics: Metrics,
}

/// The router has died, or never answered.
struct Dead;

impl From<LinkError> for Dead {
    fn from(_: LinkError) -> Self {
        Self
    }
}

impl Router {
    /// Starts it. To be called within a runtime.
    pub(super) fn start(
        queues: &Arc<Queues>,
        (limits, links_max): (QueueLimits, usize),
        clock: Clock,
        metrics: Metrics,
    ) -> Self {
        let session = Session::new("router".into(), Principal::default(), 0, false, queues);
        session.state().owner = Some(THREAD);
        let signal = session.signal();
        let shared = Arc::new(Shared {
            session: Arc::new(session),
            signal,
            changed: Mutex::default(),
            is_over: AtomicBool::new(false),
            is_poisoned: AtomicBool::new(false),
            links_max,
            limits,
            clock,
            metrics,
        });
        let of_thread = Arc::clone(&shared);
        let runtime = Handle::current();
        std::thread::spawn(move || keep(&of_thread, &runtime));
        Self { shared }
    }

    /// The subscriber that stands for all whom the router serves.
    pub(super) fn session(&self) -> &Arc<Session> {
        &self.shared.session
    }

    /// The subscriptions of a session have changed, or it has ended.
    pub(super) fn changed(&self, session: &Arc<Session>) {
        // Only a session that ends with its connection can have a link.
        if !session.persistent {
            lock(&self.shared.changed).insert(session.number, Arc::clone(session));
            self.shared.signal.call();
        }
    }

    /// What makes the router's thread panic.
    pub(super) fn breaker(&self) -> impl Fn() + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || {
            shared.is_poisoned.store(true, Ordering::Release);
            shared.signal.call();
        }
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.signal.call();
    }
}

/// Keeps a router running: when it has died, another is started.
fn keep(shared: &Arc<Shared>, runtime: &Handle) {
    while !shared.is_over.load(Ordering::Acquire) {
        let Ok(mut engine) = Engine::start(shared, runtime) else {
            tracing::error!("rumqttd's router does not start; there are no live copies");
            return;
        };
        let Err(Dead) = engine.serve() else { return };
        tracing::error!(
            subscribers = engine.links.len(),
            "rumqttd's router has died; its subscribers are disconnected, another is started"
        );
        for (_, link) in engine.links.drain() {
            link.session.tell_to_end(Reason::FanoutFailed);
        }
    }
}

/// A session's way out of the router.
struct Link {
    session: Arc<Session>,
    to_router: LinkTx,
    filters: HashSet<Arc<str>>,
    forwarding: JoinHandle<()>,
}

/// Makes a link of this name.
type Connect = Box<dyn Fn(String) -> Result<(LinkTx, LinkRx), Dead>>;

/// One router and its links.
struct Engine<'a> {
    shared: &'a Arc<Shared>,
    runtime: &'a Handle,
    connect: Connect,
    is_dead: Box<dyn Fn() -> bool>,
    publisher: LinkTx,
    /// Nothing comes out of it, but without it the link would end.
    _from_router: LinkRx,
    links: HashMap<u64, Link>,
}

impl<'a> Engine<'a> {
    fn start(shared: &'a Arc<Shared>, runtime: &'a Handle) -> Result<Self, Dead> {
        let config = RouterConfig {
            // One more for the publisher.
            max_connections: shared.links_max + 1,
            max_outgoing_packet_count: FORWARDS_MAX,
            max_segment_size: SEGMENT_BYTES_MAX,
            max_segment_count: SEGMENTS_MAX,
            ..RouterConfig::default()
        };
        // The type of the channel has no public name, so what it is for is kept in closures.
        let events = rumqttd::Router::new(0, config).spawn();
        let watched = events.clone();
        let is_dead = Box::new(move || watched.is_disconnected());
        let connect: Connect = Box::new(move |name| {
            // `build` waits for the router's answer without end, also for one that has died with
            // the question in its channel. Then this is a thread that stays, and nobody waits.
            let (answer, answered) = sync_channel(1);
            let of_link = events.clone();
            let build = move || {
                answer.send(LinkBuilder::new(&name, of_link).build()).ok();
            };
            std::thread::Builder::new().spawn(build).map_err(|_| Dead)?;
            loop {
                match answered.recv_timeout(LOOK_EVERY) {
                    Ok(built) => return built.map(|(tx, rx, _)| (tx, rx)).map_err(Dead::from),
                    Err(RecvTimeoutError::Timeout) if !events.is_disconnected() => {}
                    Err(_) => return Err(Dead),
                }
            }
        });
        let (publisher, from_router) = connect(PUBLISHER.to_owned())?;
        let links = HashMap::new();
        Ok(Self { shared, runtime, connect, is_dead, publisher, _from_router: from_router, links })
    }

    /// Passes on what comes, until the hub is gone (`Ok`) or the router is.
    fn serve(&mut self) -> Result<(), Dead> {
        loop {
            if self.shared.is_over.load(Ordering::Acquire) {
                return Ok(());
            }
            if (self.is_dead)() {
                return Err(Dead);
            }
            if self.shared.is_poisoned.swap(false, Ordering::AcqRel) {
                self.publish(Packet::Publish(wire::Publish::new("ü", "", false), None))?;
            }
            // A subscription counts for every publish that was queued after it.
            let Some(publish) = self.next()? else {
                let signal = &self.shared.signal;
                self.runtime.block_on(std::future::poll_fn(|context| {
                    if signal.poll(context) { Poll::Ready(()) } else { Poll::Pending }
                }));
                continue;
            };
            if !self.links.is_empty() {
                self.publish(publish)?;
            }
        }
    }

    /// Brings the links up to date, then takes the next publish. In this order: whoever has
    /// subscribed before it was queued is told before it goes in.
    fn next(&mut self) -> Result<Option<Packet>, Dead> {
        let shared = self.shared;
        let now = shared.clock.now();
        let mut drop = |reason| {
            shared.metrics.fanout_dropped.get_or_create(&ByReason { reason }).inc();
        };
        let times = (now, shared.limits.age_max);
        let taken = shared.session.take(THREAD, 1, times, &mut drop).ok().flatten();
        for session in std::mem::take(&mut *lock(&shared.changed)).into_values() {
            self.align(&session)?;
        }
        Ok(taken.map(|taken| packet(&taken.outgoing.publish, taken.expires_after_secs)))
    }

    fn publish(&mut self, packet: Packet) -> Result<(), Dead> {
        // It waits for the router, though it does not look so.
        self.runtime.block_on(self.publisher.send(packet))?;
        Ok(())
    }

    /// Makes the link of a session as its subscriptions are.
    fn align(&mut self, session: &Arc<Session>) -> Result<(), Dead> {
        let (filters, has_ended) = {
            let state = session.state();
            let plain = state.subscriptions.values().filter(|row| is_plain(session, row));
            let filters: HashSet<_> = plain.map(|row| Arc::clone(&row.filter)).collect();
            (filters, state.ended)
        };
        if has_ended {
            return self.end(session.number);
        }
        if !self.links.contains_key(&session.number) {
            if filters.is_empty() {
                return Ok(());
            }
            let Ok((to_router, from_router)) = (self.connect)(session.number.to_string()) else {
                session.tell_to_end(Reason::FanoutFailed);
                return if (self.is_dead)() { Err(Dead) } else { Ok(()) };
            };
            let forwarding = forward(from_router, Arc::clone(session), Arc::clone(self.shared));
            let link = Link {
                session: Arc::clone(session),
                to_router,
                filters: HashSet::new(),
                forwarding: self.runtime.spawn(forwarding),
            };
            self.links.insert(session.number, link);
        }
        let Some(link) = self.links.get_mut(&session.number) else { return Ok(()) };
        for filter in link.filters.difference(&filters) {
            link.to_router.unsubscribe(format!("{PREFIX}{filter}"))?;
        }
        for filter in filters.difference(&link.filters) {
            link.to_router.subscribe(format!("{PREFIX}{filter}"))?;
        }
        link.filters = filters;
        Ok(())
    }

    fn end(&mut self, number: u64) -> Result<(), Dead> {
        let Some(mut link) = self.links.remove(&number) else { return Ok(()) };
        link.forwarding.abort();
        // Cancelled, which is what was asked for.
        self.runtime.block_on(link.forwarding).ok();
        let reason_code = DisconnectReasonCode::NormalDisconnection;
        let goodbye = Packet::Disconnect(Disconnect { reason_code }, None);
        self.runtime.block_on(link.to_router.send(goodbye))?;
        Ok(())
    }
}

/// Puts what comes out of a link into its session's queue.
async fn forward(mut from_router: LinkRx, session: Arc<Session>, shared: Arc<Shared>) {
    loop {
        match from_router.next().await {
            Ok(Some(Notification::Forward(copy))) => {
                let Some(publish) = publish_of(copy, &shared.clock) else { continue };
                let outgoing = Outgoing {
                    at: publish.received_at,
                    publish: Arc::new(publish),
                    qos: Qos::AtMostOnce,
                    retain: false,
                    identifiers: None,
                    saved: None,
                };
                note(&shared.metrics, session.push(outgoing, shared.limits, None));
            }
            // It hands out no more before it is told to.
            Ok(Some(Notification::Unschedule)) => {
                tokio::task::yield_now().await;
                if from_router.wake().await.is_err() {
                    break;
                }
            }
            // What it says of itself.
            Ok(_) => {}
            Err(_) => break,
        }
    }
    session.tell_to_end(Reason::FanoutFailed);
    // The thread is to see that the router is gone.
    shared.signal.call();
}

/// The packet that goes into the router.
fn packet(publish: &Publish, expires_after_secs: Option<u32>) -> Packet {
    let topic = format!("{PREFIX}{}", publish.topic.as_str());
    let properties = publish.properties.as_deref().map(|properties| wire::PublishProperties {
        payload_format_indicator: properties.utf8.map(u8::from),
        message_expiry_interval: expires_after_secs,
        topic_alias: None,
        response_topic: properties.response_topic.clone(),
        correlation_data: properties.correlation_data.clone().map(Bytes::from),
        user_properties: properties.user.clone(),
        subscription_identifiers: Vec::new(),
        content_type: properties.content_type.clone(),
    });
    let publish = wire::Publish::new(Bytes::from(topic), publish.payload.clone(), false);
    Packet::Publish(publish, properties)
}

/// What came out of the router.
fn publish_of(Forward { publish, properties, .. }: Forward, clock: &Clock) -> Option<Publish> {
    // It had passed the limits when it came in.
    let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
    let topic = std::str::from_utf8(&publish.topic).ok()?.strip_prefix(PREFIX)?;
    let properties = properties.map(|properties| {
        Box::new(PublishProperties {
            utf8: properties.payload_format_indicator.map(|indicator| indicator == 1),
            expires_after_secs: properties.message_expiry_interval,
            content_type: properties.content_type,
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data.map(Vec::from),
            user: properties.user_properties,
        })
    });
    Some(Publish {
        topic: TopicName::parse(topic, limits).ok()?,
        payload: publish.payload,
        qos: Qos::AtMostOnce,
        retain: false,
        replayed: false,
        client_id: "".into(),
        identity: None,
        received_at: clock.now(),
        properties,
    })
}
