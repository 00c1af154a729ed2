//! Intake: publish -> alert -> messages, durable before anyone is told.
//!
//! One thread owns the [`pipeline`] of rules and telling. It takes all that waits, wakes what is due,
//! evaluates, and hands the store one operation for each publish; while the store syncs, it evaluates
//! what came next. Verdicts go out from the store's writer once the operation is durable.
//!
//! **Invariants:** a [`Verdict::Durable`] means that all that the publish caused is on disk; state
//! in memory runs ahead of the disk only until the next sync, and if that sync fails the process
//! ends, so memory and disk never go separate ways.

pub mod desk;
pub mod pipeline;
pub mod ruleset;
pub mod trial;
pub mod troubles;
pub mod unfit;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use self::pipeline::{Caused, Pipeline};
use self::ruleset::RuleSet;
use self::worker::{FailuresSaid, Heard, Worker};
use crate::clock::line::{Saved, Step};
use crate::clock::machine::Source;
use crate::clock::{Clock, Timestamp};
use crate::dispatch::Dispatch;
use crate::model::{Channel, IdSource, Message, Publish, Reason, Severity, Target, Template};
use crate::rules::engine::Adopted;
use crate::rules::set::Matched;
use crate::span::Span;
use crate::store::keys::Table;
use crate::store::{Op, ReadError, Store};
use crate::telemetry::Metrics;
use crate::topic::TopicName;

/// What intake takes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most messages in the outbox; above it nothing new is taken; default 1000000.
    pub outbox_messages_max: usize,
    /// Most publishes and requests that wait for evaluation; default 4096.
    pub queue_max: usize,
    /// How often what telemetry changes and no alert depends on yet is written: last payloads,
    /// windows, when a device was heard of; default 1s, 100ms to 1m.
    pub checkpoint: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self { outbox_messages_max: 1_000_000, queue_max: 4096, checkpoint: Span::from_secs(1) }
    }
}

impl Config {
    /// Everything wrong with the values.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.outbox_messages_max == 0 {
            problems.push("intake.outbox_messages_max: at least 1".to_owned());
        }
        if self.queue_max == 0 {
            problems.push("intake.queue_max: at least 1".to_owned());
        }
        let checkpoint = Duration::from(self.checkpoint);
        if !(Duration::from_millis(100)..=Duration::from_secs(60)).contains(&checkpoint) {
            problems.push(format!("intake.checkpoint: 100ms to 1m, found {}", self.checkpoint));
        }
        problems
    }
}

/// The way into the engine for everything that may become a message; clones share it.
#[derive(Clone)]
pub struct Intake {
    jobs: mpsc::Sender<Job>,
    rules: Arc<ArcSwap<RuleSet>>,
    disk_low: Arc<AtomicBool>,
}

/// The rules that match a publish's topic, of the rule set in force when it was looked up.
pub struct Matches {
    rules: Arc<RuleSet>,
    matched: Matched,
}

/// What became of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that it caused is on disk: acknowledge it, fan it out.
    Durable,
    /// Nothing of it is on disk: do not acknowledge it (MQTT 5: answer with the reason code).
    Refused(Reason),
}

/// Where a verdict goes. The channel must have room for every ticket that is out: the sender does
/// not wait.
#[derive(Debug)]
pub struct Ticket {
    /// The asker's own number.
    pub number: u64,
    /// The asker's queue.
    pub to: mpsc::Sender<(u64, Verdict)>,
}

impl Ticket {
    /// Tells the asker; never waits.
    pub(crate) fn answer(self, verdict: Verdict) {
        // No room breaks the contract above; no receiver means that the asker has gone.
        if let Err(mpsc::error::TrySendError::Full(_)) = self.to.try_send((self.number, verdict)) {
            tracing::error!("a verdict found no room; its publish stays unacknowledged");
        }
    }
}

/// A message that came through the HTTP API or the command line.
#[derive(Clone, Debug, serde::Serialize)]
pub struct SendRequest {
    /// Contacts by name; each gets it by the first of `by` that it has, the others follow.
    pub to: Vec<String>,
    /// Channels in order, for `to`; empty for the contact's own order.
    pub by: Vec<Channel>,
    /// Addresses given outright.
    pub targets: Vec<Target>,
    /// How urgent.
    pub severity: Severity,
    /// A short headline.
    pub title: Option<String>,
    /// The text.
    pub text: String,
    /// A template in place of the text (WhatsApp).
    pub template: Option<Template>,
    /// How long it may wait; the configured default where `None`.
    pub expires_in: Option<Duration>,
    /// The same key again gives the same messages and sends nothing (for 24 h); 1 to 128 bytes.
    #[serde(skip)]
    pub idempotency_key: Option<String>,
}

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The request makes no sense; all that is wrong with it.
    #[error("{}", .0.join("; "))]
    Invalid(Vec<String>),
    /// The key was used for another request.
    #[error("this idempotency key was used for a different request")]
    KeyReused,
    /// Try again later.
    #[error("not taken: {0}")]
    Refused(Reason),
}

/// The messages that a request became, or had become before.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The messages, durable.
    pub messages: Vec<Message>,
    /// Whether they are those of an earlier request with the same key.
    pub repeated: bool,
}

/// Something to be done with the pipeline, on its thread; and whom to tell once that is durable.
type Ask = Box<dyn FnOnce(&mut Pipeline, &RuleSet, Timestamp, &mut Op) -> (Caused, Answer) + Send>;
type Answer = Box<dyn FnOnce(Verdict) + Send>;

/// The row that says when the process was last alive.
const ALIVE: &[u8] = b"alive";
/// The row with our own time and the wall clock's distance from it.
const CLOCK: &[u8] = b"clock";

type SendAnswer = oneshot::Sender<Result<Sent, SendError>>;

enum Job {
    Publish(Arc<Publish>, Matches, Ticket, Op),
    Send(Box<SendRequest>, SendAnswer),
    Ask(Ask),
    Reload(Arc<RuleSet>, oneshot::Sender<Adopted>),
    Drain(oneshot::Sender<()>),
}

impl Intake {
    /// The rules that match `topic`; `None` where there is none, and the publish needs no intake.
    pub fn matches(&self, topic: &TopicName) -> Option<Matches> {
        let rules = self.rules.load();
        let matched = rules.rules.matches(topic)?;
        Some(Matches { rules: Arc::clone(&rules), matched })
    }

    /// Hands a publish in. Waits while intake is full, which is how devices are slowed down.
    /// The verdict comes to the ticket; one also comes when the process stops.
    pub async fn submit(&self, publish: Arc<Publish>, matches: Matches, ticket: Ticket) {
        self.submit_with(publish, matches, ticket, Op::new()).await;
    }

    /// The same; `also` is written with what the publish causes, in one operation: both are on
    /// disk or neither.
    pub async fn submit_with(
        &self,
        publish: Arc<Publish>,
        matches: Matches,
        ticket: Ticket,
        also: Op,
    ) {
        if let Err(stopped) = self.jobs.send(Job::Publish(publish, matches, ticket, also)).await
            && let Job::Publish(_, _, ticket, _) = stopped.0
        {
            ticket.answer(Verdict::Refused(Reason::ShuttingDown));
        }
    }

    /// Hands a publish in, for those who have more to do than to wait. `None` if it is in; where
    /// intake is full, what waits for room and then hands it in. Dropped before that, the publish
    /// is not taken and no verdict comes. `also` as in [`Intake::submit_with`].
    pub fn offer(
        &self,
        publish: Arc<Publish>,
        matches: Matches,
        ticket: Ticket,
        also: Op,
    ) -> Option<BoxFuture<'static, ()>> {
        match self.jobs.try_send(Job::Publish(publish, matches, ticket, also)) {
            Err(mpsc::error::TrySendError::Full(Job::Publish(publish, matches, ticket, also))) => {
                let intake = self.clone();
                Some(Box::pin(async move {
                    intake.submit_with(publish, matches, ticket, also).await;
                }))
            }
            Err(mpsc::error::TrySendError::Closed(Job::Publish(_, _, ticket, _))) => {
                ticket.answer(Verdict::Refused(Reason::ShuttingDown));
                None
            }
            _ => None,
        }
    }

    /// Takes a message from the API; durable on return.
    ///
    /// # Errors
    /// See [`SendError`]; nothing is kept of a request that is refused.
    pub async fn send(&self, request: SendRequest) -> Result<Sent, SendError> {
        let stopped = || SendError::Refused(Reason::ShuttingDown);
        let (answer, answered) = oneshot::channel();
        let job = Job::Send(Box::new(request), answer);
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answered.await.unwrap_or_else(|_| Err(stopped()))
    }

    /// Returns when everything handed in before is durable, or refused.
    pub async fn drain(&self) {
        let (done, drained) = oneshot::channel();
        if self.jobs.send(Job::Drain(done)).await.is_ok() {
            // The sender is dropped by the store's writer when its turn has come.
            drop(drained.await);
        }
    }

    /// Puts another rule set in force and fits all state to it; durable on return. Publishes that
    /// were looked up before are evaluated by the new one.
    ///
    /// # Errors
    /// The process stops.
    pub async fn replace_rules(&self, rules: RuleSet) -> Result<Adopted, Reason> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Reload(Arc::new(rules), answer);
        self.jobs.send(job).await.map_err(|_| Reason::ShuttingDown)?;
        answered.await.map_err(|_| Reason::ShuttingDown)
    }

    /// Does something with the pipeline, or looks into it; what it caused is durable on return.
    ///
    /// # Errors
    /// Nothing of it is durable: the store failed, or the process stops.
    pub async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Pipeline, &RuleSet, Timestamp, &mut Op) -> (Caused, T) + Send + 'static,
    ) -> Result<T, Reason> {
        let (answer, answered) = oneshot::channel();
        let ask: Ask = Box::new(move |pipeline, set, now, op| {
            let (caused, found) = ask(pipeline, set, now, op);
            let tell: Answer = Box::new(move |verdict| {
                drop(answer.send(match verdict {
                    Verdict::Durable => Ok(found),
                    Verdict::Refused(reason) => Err(reason),
                }));
            });
            (caused, tell)
        });
        self.jobs.send(Job::Ask(ask)).await.map_err(|_| Reason::ShuttingDown)?;
        answered.await.unwrap_or(Err(Reason::ShuttingDown))
    }

    /// The rule set in force.
    pub fn rules(&self) -> Arc<RuleSet> {
        self.rules.load_full()
    }

    /// Stops or resumes the taking of anything new, for want of disk space.
    pub fn set_disk_low(&self, low: bool) {
        self.disk_low.store(low, Ordering::Relaxed);
    }

    /// Whether nothing new is taken for want of disk space.
    pub fn is_disk_low(&self) -> bool {
        self.disk_low.load(Ordering::Relaxed)
    }
}

/// What intake is made of.
pub struct Parts {
    /// Where everything goes.
    pub store: Store,
    /// Who sends it.
    pub dispatch: Dispatch,
    /// The time.
    pub clock: Clock,
    /// Where it counts.
    pub metrics: Metrics,
    /// The first rule set.
    pub rules: RuleSet,
    /// What rules and telling know, as [`restore`] found it.
    pub pipeline: Pipeline,
    /// What happened to the wall clock since the process before this one.
    pub step: Option<Step>,
    /// When the process before this one was last alive.
    pub stopped_at: Option<Timestamp>,
    /// Makes the ids of API messages; another seed than the engine's.
    pub ids: IdSource,
    /// How long a message may wait, where nobody said otherwise.
    pub expires_in: Duration,
}

/// Starts the thread. It ends when every [`Intake`] has gone and all it took is with the store;
/// `ended` then resolves.
///
/// # Errors
/// The system gives no thread.
pub fn start(config: &Config, parts: Parts) -> std::io::Result<(Intake, oneshot::Receiver<()>)> {
    let (jobs, queue) = mpsc::channel(config.queue_max);
    let set = Arc::new(parts.rules);
    let rules = Arc::new(ArcSwap::new(Arc::clone(&set)));
    let now = parts.clock.now();
    let mut pipeline = parts.pipeline;
    // Written with the first publish or checkpoint: until then it is as it was, and found again.
    let mut fitted = Op::new();
    let (caused, adopted) = pipeline.adopt(&set, parts.stopped_at, now, &mut fitted);
    if !adopted.changed.is_empty() || !adopted.removed.is_empty() {
        tracing::info!(changed = ?adopted.changed, removed = ?adopted.removed, kept = adopted.kept, "rules have changed since the last run");
    }
    let unsaved = pipeline.engine().unsaved();
    let disk_low = Arc::new(AtomicBool::new(false));
    let worker = Worker {
        store: parts.store,
        dispatch: parts.dispatch,
        clock: parts.clock,
        metrics: parts.metrics,
        rules: Arc::clone(&rules),
        set,
        pipeline,
        checkpoint: config.checkpoint.into(),
        checkpointed_at: now,
        alive_at: Timestamp::default(),
        // What the start itself changed is written by the first checkpoints.
        heard: Heard::new(parts.stopped_at.unwrap_or(now), now, unsaved),
        compared_at: now,
        clock_saved_at: now,
        step: parts.step,
        looked_at: now,
        ids: parts.ids,
        expires_in: parts.expires_in,
        outbox_messages_max: config.outbox_messages_max,
        uncommitted: Arc::default(),
        pending_keys: Arc::default(),
        failures_said: FailuresSaid::new(),
        disk_low: Arc::clone(&disk_low),
    };
    let (ended, has_ended) = oneshot::channel();
    // Waits with a time-out; nothing else runs in it.
    let timer = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    std::thread::Builder::new().name("intake".to_owned()).spawn(move || {
        worker.run(queue, caused, fitted, &timer);
        drop(ended);
    })?;
    Ok((Intake { jobs, rules, disk_low }, has_ended))
}

/// Our own time, which goes on from where the store says that it was; and what happened to the wall
/// clock meanwhile.
///
/// # Errors
/// The store cannot be read.
pub fn clock(store: &Store, source: Source) -> Result<(Clock, Option<Step>), ReadError> {
    let saved: Option<Saved> = match store.row(Table::Engine, 0, CLOCK)? {
        Some(saved) => Some(saved),
        // Of a version that knew the wall clock only.
        None => store.row(Table::Engine, 0, ALIVE)?.map(Saved::alive_at),
    };
    Ok(Clock::steady(source, saved.as_ref()))
}

/// What rules and telling knew when the store was last written, and when that process was last
/// alive.
///
/// # Errors
/// The store cannot be read.
pub fn restore(
    store: &Store,
    mut pipeline: Pipeline,
) -> Result<(Pipeline, Option<Timestamp>), ReadError> {
    store.each_row(Table::Instance, |row| pipeline.restore_instance(row));
    store.each_row(Table::Telling, |row| pipeline.restore_telling(row));
    // What cannot be read was said, and hides nothing else.
    for row in store.rows(Table::Memory).flatten() {
        pipeline.restore_node(row);
    }
    Ok((pipeline, store.row(Table::Engine, 0, ALIVE).unwrap_or_default()))
}
