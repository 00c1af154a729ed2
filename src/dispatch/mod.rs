//! Dispatch: due -> attempt -> outcome.
//!
//! One task owns the due order ([`queue`]) and the lanes ([`lane`]), both pure. It takes all that
//! waits (new messages, finished attempts, commands), starts what may start, and sleeps until the
//! next due time. Each attempt runs in a task of its own ([`attempt`]), which reads the row, makes
//! "started" durable, calls the provider, and writes what came of it ([`outcome`]). What waited
//! long is put together first ([`collapse`]), so that the end of an outage is no flood; that, and what
//! ends without being sent, is done to many at once, in batches of bounded size ([`batch`]). What has
//! no success in time goes by the contact's next channel too ([`fallback`] says when and why,
//! [`handover`] writes it); who is reached by none is told to those of `notify.fallback`.
//!
//! **Invariants:** a message is taken by at most one attempt or command at a time; a message that
//! is in the outbox table is in the queue; nothing leaves after its expiry.

mod attempt;
mod batch;
mod collapse;
mod fallback;
mod handover;
mod lane;
mod outcome;
mod peer;
mod queue;
mod run;
mod unreached;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};

use self::queue::Waiting;
pub use self::run::Dispatcher;
use self::unreached::UnreachedContacts;
use crate::clock::{Clock, Timestamp};
use crate::model::{Channel, Message, MessageId, Reason, RunId, Status, Target};
use crate::notify;
use crate::provider::Provider;
use crate::span::Span;
use crate::store::{ReadError, Store};
use crate::telemetry::Metrics;

/// How messages are sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a message may wait before it expires, where nobody said otherwise; default 24h.
    pub expires_in: Span,
    /// When messages of one instance to one target have waited so long, only the newest is sent, with
    /// a line on the others; default 2m, 0s for never.
    pub collapse_after: Span,
    /// The time zone of such a line, an IANA name; default UTC.
    pub zone: String,
    /// How many messages are put together at once, of each channel, or end at once because they have
    /// expired or have no provider; default 1000, 2 to 20000. What is more waits for its turn.
    pub batch_messages_max: usize,
    /// When a failed attempt is repeated.
    pub retry: RetryConfig,
    /// When a provider that fails is left alone.
    pub breaker: BreakerConfig,
    /// When a message is not offered to a provider any more.
    pub give_up: GiveUpConfig,
    /// How much one webhook host may take of its lane.
    pub endpoint: EndpointConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            expires_in: Span::from_secs(24 * 3600),
            collapse_after: Span::from_secs(120),
            zone: "UTC".to_owned(),
            batch_messages_max: 1000,
            retry: RetryConfig::default(),
            breaker: BreakerConfig::default(),
            give_up: GiveUpConfig::default(),
            endpoint: EndpointConfig::default(),
        }
    }
}

impl Config {
    /// Everything wrong with the values.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut at_least = |name: &str, value: Span, least: Span| {
            if value < least {
                problems.push(format!("dispatch.{name}: at least {least}, found {value}"));
            }
        };
        at_least("expires_in", self.expires_in, Span::from_secs(1));
        at_least("retry.first", self.retry.first, Span::from_millis(10));
        at_least("retry.max", self.retry.max, self.retry.first);
        at_least("breaker.first", self.breaker.first, Span::from_millis(10));
        at_least("breaker.max", self.breaker.max, self.breaker.first);
        at_least("breaker.probe_refused", self.breaker.probe_refused, Span::from_millis(10));
        if jiff::tz::TimeZone::get(&self.zone).is_err() {
            problems.push(format!(
                "dispatch.zone: there is no time zone `{}`; write an IANA name, as Europe/Berlin",
                self.zone
            ));
        }
        if !(2..=20_000).contains(&self.batch_messages_max) {
            problems.push(format!(
                "dispatch.batch_messages_max: 2 to 20000, found {}",
                self.batch_messages_max
            ));
        }
        if !(1..=REFUSALS_MAX).contains(&self.give_up.refusals) {
            problems.push(format!(
                "dispatch.give_up.refusals: 1 to {REFUSALS_MAX}, found {}",
                self.give_up.refusals
            ));
        }
        if self.give_up.unanswered_repeats > UNANSWERED_REPEATS_MAX {
            problems.push(format!(
                "dispatch.give_up.unanswered_repeats: at most {UNANSWERED_REPEATS_MAX}, found {}",
                self.give_up.unanswered_repeats
            ));
        }
        if !(1..=1000).contains(&self.endpoint.concurrency) {
            let found = self.endpoint.concurrency;
            problems.push(format!("dispatch.endpoint.concurrency: 1 to 1000, found {found}"));
        }
        if !(100..=1_000_000).contains(&self.endpoint.count_max) {
            let found = self.endpoint.count_max;
            problems.push(format!("dispatch.endpoint.count_max: 100 to 1000000, found {found}"));
        }
        if self.breaker.failures == 0 {
            problems.push("dispatch.breaker.failures: at least 1".to_owned());
        }
        problems
    }
}

/// Exponential back-off with full jitter: before attempt n+1 a random time between nothing and
/// `first * 2^(n-1)`, at most `max`. A provider's Retry-After wins over it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryConfig {
    /// The first ceiling; default 1s.
    pub first: Span,
    /// The last ceiling; default 5m.
    pub max: Span,
    /// After so many attempts a message is dead; 0, the default, for as many as its time allows.
    pub attempts_max: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { first: Span::from_secs(1), max: Span::from_secs(300), attempts_max: 0 }
    }
}

/// The circuit breaker of each provider.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// It opens after so many failures in a row; default 5.
    pub failures: u32,
    /// How long it stays open at first; it doubles with each probe that fails; default 1s.
    pub first: Span,
    /// How long it stays open at most; default 30s.
    pub max: Span,
    /// How often one message is tried at a provider that refuses our account; default 5m.
    pub probe_refused: Span,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures: 5,
            first: Span::from_secs(1),
            max: Span::from_secs(30),
            probe_refused: Span::from_secs(300),
        }
    }
}

/// More would not be kept in a message's record.
const UNANSWERED_REPEATS_MAX: u32 = 10;
const REFUSALS_MAX: usize = 10;

/// When a message is not offered to a provider any more; it goes on to the channel's next provider,
/// then to the contact's next channel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GiveUpConfig {
    /// A provider that refuses so many different recipients in a row for the sake of our account
    /// is stopped; and so many refusals of one message, where others are taken, are enough: 1 to
    /// 10, default 3.
    pub refusals: usize,
    /// How often a message is sent to the same provider again where nobody knows whether it has
    /// been sent: 0 to 10, default 2.
    pub unanswered_repeats: u32,
}

impl Default for GiveUpConfig {
    fn default() -> Self {
        Self { refusals: 3, unanswered_repeats: 2 }
    }
}

/// The endpoints before a lane: the host of a webhook, a recipient with a quota of its own. What fails
/// there closes it by the rules of the breaker, and not the lane.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointConfig {
    /// Calls at once to one webhook host: 1 to 1000, default 2.
    pub concurrency: usize,
    /// Endpoints in trouble that are remembered: 100 to 1000000, default 10000. Above it the one
    /// whose trouble is over first is forgotten, and tried again.
    pub count_max: usize,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self { concurrency: 2, count_max: 10_000 }
    }
}

/// A provider and how it may be used.
pub struct LaneSpec {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Its kind.
    pub kind: &'static str,
    /// Which channels it serves.
    pub channels: Vec<Channel>,
    /// Calls a second; `None` for no limit.
    pub per_second: Option<f64>,
    /// Calls at once.
    pub concurrency: usize,
    /// The provider itself.
    pub provider: Arc<dyn Provider>,
}

/// What the dispatcher is made of.
pub struct Parts {
    /// Where the messages are.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// Where it counts.
    pub metrics: Metrics,
    /// This run of the process.
    pub run: RunId,
    /// The providers.
    pub lanes: Vec<LaneSpec>,
    /// Which providers serve a channel, by name, in failover order.
    pub routes: BTreeMap<Channel, Vec<Arc<str>>>,
    /// When the next channel sends too, and who hears of the unreached: `[notify]`.
    pub notify: notify::Config,
}

/// Somebody whom no channel reaches, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreached {
    /// The contact's name; where it is none, the address, masked.
    pub contact: Arc<str>,
    /// Since when.
    #[serde(serialize_with = "crate::clock::rfc_3339::serialize")]
    pub since: Timestamp,
    /// Messages that it has not heard.
    pub messages: u64,
    /// Why, of the latest.
    pub why: String,
}

/// A handle on the running dispatcher; clones share it.
#[derive(Clone)]
pub struct Dispatch {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

struct Shared {
    /// New messages. Bounded by the outbox itself: intake refuses what does not fit.
    inbox: Mutex<Vec<Waiting>>,
    woken: Notify,
    waiting: AtomicUsize,
    waiting_bytes: AtomicU64,
    /// Nothing is sent.
    held: AtomicBool,
    oldest_at: Mutex<Option<Timestamp>>,
    lanes: RwLock<Vec<LaneStatus>>,
    /// Who hears of the unreached, and where.
    fallback: RwLock<Vec<(Arc<str>, Vec<Target>)>>,
    unreached: Arc<UnreachedContacts>,
    /// The disk is nearly full.
    low: AtomicBool,
}

enum Command {
    Retry(MessageId, oneshot::Sender<Result<Message, ControlError>>),
    Cancel(MessageId, oneshot::Sender<Result<Message, ControlError>>),
    Resume(String, oneshot::Sender<Result<(), ControlError>>),
}

/// What an operator asked of a message cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such message.
    #[error("there is no message {0}")]
    NotFound(MessageId),
    /// Its status does not allow it.
    #[error("message {id} is {status}; {rule}")]
    NotAllowed {
        /// Which.
        id: MessageId,
        /// Its status.
        status: Status,
        /// What would be allowed.
        rule: &'static str,
    },
    /// There is no such provider.
    #[error("there is no provider {0}")]
    NoProvider(String),
    /// The row cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store failed or the process is stopping.
    #[error("the dispatcher has stopped")]
    Stopped,
}

/// One provider's lane, for people.
#[derive(Clone, Debug, Serialize)]
pub struct LaneStatus {
    /// The provider's name.
    pub provider: Arc<str>,
    /// The provider's kind, as in the configuration.
    pub kind: &'static str,
    /// Which channels it serves.
    pub channels: Vec<Channel>,
    /// Whether it takes messages.
    pub state: LaneState,
    /// Why not, where it does not.
    pub reason: Option<Reason>,
    /// The provider's words on it.
    pub detail: Option<String>,
    /// When it will be tried next, where it waits.
    pub until: Option<Timestamp>,
    /// Calls that wait for an answer.
    pub in_flight: usize,
    /// Messages ready to leave on its channels.
    pub ready: usize,
    /// What an operator should know of it though it takes messages.
    pub warning: Option<String>,
    /// Endpoints of its channels that are left alone: those with the most messages, ten at most.
    pub endpoints: Vec<EndpointStatus>,
}

/// An endpoint that is left alone, for people.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus {
    /// A webhook's host, or a masked address.
    pub name: Arc<str>,
    /// Paused or its breaker open.
    pub state: LaneState,
    /// Why.
    pub reason: Reason,
    /// In words.
    pub detail: String,
    /// When it is tried next.
    pub until: Timestamp,
    /// Messages that are held back for it.
    pub waiting: usize,
}

/// Whether a lane takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// It does.
    Up,
    /// The provider asked for a pause (Retry-After).
    Paused,
    /// The circuit breaker is open after failures in a row.
    BreakerOpen,
    /// The provider refuses our account or configuration: an operator must act.
    Stopped,
}

impl Dispatch {
    /// Tells of new messages that are durable. Never blocks.
    pub fn add<'a>(&self, messages: impl IntoIterator<Item = &'a Message>) {
        let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inbox.len();
        inbox.extend(messages.into_iter().map(Waiting::of));
        let added = inbox.len() - before;
        let bytes = inbox.iter().skip(before).map(|waiting| u64::from(waiting.bytes)).sum();
        self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.waiting.fetch_add(added, Ordering::Relaxed);
        drop(inbox);
        if added > 0 {
            self.shared.woken.notify_one();
        }
    }

    /// Puts a message that has ended without success, or waits, at the head of its queue. One that
    /// had expired gets its time to live anew.
    pub async fn retry(&self, id: MessageId) -> Result<Message, ControlError> {
        self.ask(|answer| Command::Retry(id, answer)).await
    }

    /// Withdraws a message that no provider has taken.
    pub async fn cancel(&self, id: MessageId) -> Result<Message, ControlError> {
        self.ask(|answer| Command::Cancel(id, answer)).await
    }

    /// Lets a stopped, paused or broken lane try again at once.
    pub async fn resume(&self, provider: &str) -> Result<(), ControlError> {
        self.ask(|answer| Command::Resume(provider.to_owned(), answer)).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ControlError>>) -> Command,
    ) -> Result<T, ControlError> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| ControlError::Stopped)?;
        answered.await.unwrap_or(Err(ControlError::Stopped))
    }

    /// Every lane as it stands.
    pub fn lanes(&self) -> Vec<LaneStatus> {
        self.shared.lanes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says where those of `notify.fallback` are reached: after each load of the rules.
    pub fn set_fallback(&self, contacts: Vec<(Arc<str>, Vec<Target>)>) {
        *self.shared.fallback.write().unwrap_or_else(PoisonError::into_inner) = contacts;
    }

    /// The names of those who hear of the unreached.
    pub fn fallback(&self) -> Vec<Arc<str>> {
        let contacts = self.shared.fallback.read().unwrap_or_else(PoisonError::into_inner);
        contacts.iter().map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Who could be reached by no channel, and has not been since.
    pub fn unreached(&self) -> Vec<Unreached> {
        self.shared.unreached.now()
    }

    /// How many messages have not ended.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Relaxed)
    }

    /// About how many bytes they take.
    pub fn waiting_bytes(&self) -> u64 {
        self.shared.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Whether the disk is nearly full: nothing is written that sending can do without.
    pub fn set_low(&self, low: bool) {
        self.shared.low.store(low, Ordering::Relaxed);
    }

    /// Whether nothing is sent: what is under way ends, what waits goes on waiting.
    pub fn set_held(&self, held: bool) {
        self.shared.held.store(held, Ordering::Relaxed);
        self.shared.woken.notify_one();
    }

    /// Whether that is so.
    pub fn is_held(&self) -> bool {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// When the oldest of them entered the outbox.
    pub fn oldest_at(&self) -> Option<Timestamp> {
        *self.shared.oldest_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
