//! Intake: publish -> alert -> messages, durable before anyone is told.
//!
//! One thread owns the rules engine. It takes all that waits, evaluates it, and hands the store
//! one operation for each publish; while the store syncs, it evaluates what came next. Verdicts go
//! out from the store's writer once the operation is durable.
//!
//! **Invariants:** a [`Verdict::Durable`] means that all that the publish caused is on disk; state
//! in memory runs ahead of the disk only until the next sync, and if that sync fails the process
//! ends, so memory and disk never go separate ways.

pub mod ruleset;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use self::ruleset::RuleSet;
use crate::clock::{Clock, Timestamp};
use crate::dispatch::Dispatch;
use crate::model::{
    AlertId, AlertState, Channel, Content, IdSource, Message, MessageId, Publish, Reason, Severity,
    Target, Template,
};
use crate::notify::contact;
use crate::notify::plan::{self, Draft, News};
use crate::rules::engine::{Change, Engine, InstanceChange};
use crate::rules::set::Matched;
use crate::store::rows::Idempotency;
use crate::store::{IDEMPOTENCY_KEPT, Op, Store};
use crate::telemetry::{ByChannel, ByReason, ByRule, Metrics};
use crate::topic::TopicName;

/// What intake takes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most messages in the outbox; above it nothing new is taken; default 1000000.
    pub outbox_messages_max: usize,
    /// Most publishes and requests that wait for evaluation; default 4096.
    pub queue_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { outbox_messages_max: 1_000_000, queue_max: 4096 }
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
    fn answer(self, verdict: Verdict) {
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

type SendAnswer = oneshot::Sender<Result<Sent, SendError>>;

enum Job {
    Publish(Arc<Publish>, Matches, Ticket),
    Send(Box<SendRequest>, SendAnswer),
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
        if let Err(stopped) = self.jobs.send(Job::Publish(publish, matches, ticket)).await
            && let Job::Publish(_, _, ticket) = stopped.0
        {
            ticket.answer(Verdict::Refused(Reason::ShuttingDown));
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

    /// Puts another rule set in force. Publishes that were looked up before keep the old one.
    pub fn replace_rules(&self, rules: RuleSet) {
        self.rules.store(Arc::new(rules));
    }

    /// The rule set in force.
    pub fn rules(&self) -> Arc<RuleSet> {
        self.rules.load_full()
    }

    /// Stops or resumes the taking of anything new, for want of disk space.
    pub fn set_disk_low(&self, low: bool) {
        self.disk_low.store(low, Ordering::Relaxed);
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
    /// The engine, restored from the store.
    pub engine: Engine,
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
    let rules = Arc::new(ArcSwap::from_pointee(parts.rules));
    let disk_low = Arc::new(AtomicBool::new(false));
    let worker = Worker {
        store: parts.store,
        dispatch: parts.dispatch,
        clock: parts.clock,
        metrics: parts.metrics,
        rules: Arc::clone(&rules),
        engine: parts.engine,
        ids: parts.ids,
        expires_in: parts.expires_in,
        outbox_messages_max: config.outbox_messages_max,
        uncommitted: Arc::default(),
        pending_keys: Arc::default(),
        disk_low: Arc::clone(&disk_low),
        failures_said: HashMap::new(),
    };
    let (ended, has_ended) = oneshot::channel();
    std::thread::Builder::new().name("intake".to_owned()).spawn(move || {
        worker.run(queue);
        drop(ended);
    })?;
    Ok((Intake { jobs, rules, disk_low }, has_ended))
}

/// Most jobs evaluated before their operations go to the store.
const BATCH: usize = 256;

/// A rule that fails on every publish is in the log so often; the metric counts each.
const FAILURES_SAID_EVERY: Duration = Duration::from_secs(60);

/// So many rules and kinds of failure are remembered, across all reloads.
const FAILURES_SAID_MAX: usize = 10_000;

/// Idempotency keys whose operation is under way, and what they became.
type PendingKeys = Arc<Mutex<HashMap<[u8; 32], (Idempotency, Vec<Message>)>>>;

struct Worker {
    store: Store,
    dispatch: Dispatch,
    clock: Clock,
    metrics: Metrics,
    rules: Arc<ArcSwap<RuleSet>>,
    engine: Engine,
    ids: IdSource,
    expires_in: Duration,
    outbox_messages_max: usize,
    /// Messages that are with the store and not yet with the dispatcher.
    uncommitted: Arc<AtomicUsize>,
    pending_keys: PendingKeys,
    disk_low: Arc<AtomicBool>,
    /// When each rule's failure of each kind was last in the log, and how many there were since.
    failures_said: HashMap<(Arc<str>, Reason), (Timestamp, u64)>,
}

/// What a batch of jobs became: operations, and whom to tell when they are durable.
#[derive(Default)]
struct Batch {
    ops: Vec<Op>,
    messages: Vec<Message>,
    tickets: Vec<Ticket>,
    sends: Vec<(SendAnswer, Sent, Option<[u8; 32]>)>,
    drains: Vec<oneshot::Sender<()>>,
}

impl Worker {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut jobs, BATCH) > 0 {
            let now = self.clock.now();
            let mut batch = Batch::default();
            for job in jobs.drain(..) {
                match job {
                    Job::Publish(publish, matches, ticket) => {
                        self.publish(&publish, &matches, ticket, now, &mut batch);
                    }
                    Job::Send(request, answer) => self.send(&request, answer, now, &mut batch),
                    Job::Drain(done) => batch.drains.push(done),
                }
            }
            self.commit(batch);
        }
    }

    /// Why nothing new is taken now.
    fn refusal(&self, batch: &Batch) -> Option<Reason> {
        let waiting = self.dispatch.waiting()
            + self.uncommitted.load(Ordering::Relaxed)
            + batch.messages.len();
        if waiting >= self.outbox_messages_max {
            Some(Reason::OutboxFull)
        } else if self.disk_low.load(Ordering::Relaxed) {
            Some(Reason::DiskLow)
        } else {
            None
        }
    }

    fn publish(
        &mut self,
        publish: &Publish,
        matches: &Matches,
        ticket: Ticket,
        now: Timestamp,
        batch: &mut Batch,
    ) {
        if let Some(reason) = self.refusal(batch) {
            self.metrics.refuse(reason);
            ticket.answer(Verdict::Refused(reason));
            return;
        }
        let rules = &matches.rules;
        let effects = self.engine.handle(&rules.rules, &matches.matched, publish, now);
        for failure in effects.failures {
            let label = ByRule { rule: failure.rule.to_string(), reason: failure.reason };
            self.metrics.rule_failures.get_or_create(&label).inc();
            if self.failures_said.len() >= FAILURES_SAID_MAX {
                self.failures_said.clear();
            }
            let said = self.failures_said.entry((Arc::clone(&failure.rule), failure.reason));
            let said = said.or_insert((Timestamp::default(), 0));
            if now.since(said.0) < FAILURES_SAID_EVERY {
                said.1 += 1;
                continue;
            }
            let unsaid = std::mem::replace(said, (now, 0)).1;
            tracing::warn!(
                rule = %failure.rule, topic = %publish.topic, client_id = %publish.client_id,
                reason = %failure.reason, detail = failure.detail, since_last_said = unsaid,
                "a rule came to no result on a publish"
            );
        }
        let mut op = Op::new();
        for change in &effects.changes {
            self.change(change, rules, now, &mut op, batch);
        }
        // One that changed nothing waits all the same: what it would have changed is as it is
        // because of publishes before it, and those may not be on disk yet.
        if !op.is_empty() {
            batch.ops.push(op);
        }
        batch.tickets.push(ticket);
    }

    /// Adds what an alert's change means: its instance, its messages, or why there are none.
    fn change(
        &self,
        change: &Change,
        rules: &RuleSet,
        now: Timestamp,
        op: &mut Op,
        batch: &mut Batch,
    ) {
        let alert = &change.alert;
        match alert.state {
            AlertState::Firing => self.metrics.alerts_fired.inc(),
            AlertState::Cleared => self.metrics.alerts_cleared.inc(),
        };
        match &change.instance {
            InstanceChange::None => {}
            InstanceChange::Put(instance) => op.put_instance(&instance.alert),
            InstanceChange::Remove(instance) => op.remove_instance(&instance.rule, &instance.key),
        }
        if !change.notify {
            return;
        }
        let news = News {
            alert,
            title: change.title.as_ref(),
            to: &change.to,
            by: &change.by,
            expires_in: change.expires_in.unwrap_or(self.expires_in),
        };
        let planned = plan::plan(&rules.directory, &news, now);
        if let Some(reason) = planned.suppressed {
            op.put_suppressed(alert, reason);
            self.metrics.alerts_suppressed.get_or_create(&ByReason { reason }).inc();
            tracing::warn!(
                rule = %alert.rule, alert_id = %alert.id, %reason,
                "nobody is told of an alert"
            );
        }
        for message in planned.messages {
            op.put_new_message(&message);
            batch.messages.push(message);
        }
    }

    fn commit(&self, batch: Batch) {
        let Batch { ops, messages, tickets, sends, drains } = batch;
        if ops.is_empty() && tickets.is_empty() && sends.is_empty() && drains.is_empty() {
            return;
        }
        let count = messages.len();
        self.uncommitted.fetch_add(count, Ordering::Relaxed);
        let (dispatch, metrics) = (self.dispatch.clone(), self.metrics.clone());
        let (uncommitted, pending) =
            (Arc::clone(&self.uncommitted), Arc::clone(&self.pending_keys));
        self.store.submit(ops, move |result| {
            if result.is_ok() {
                for message in &messages {
                    let label = ByChannel { channel: message.target.channel };
                    metrics.messages_queued.get_or_create(&label).inc();
                }
                dispatch.add(&messages);
            }
            uncommitted.fetch_sub(count, Ordering::Relaxed);
            let verdict = match result {
                Ok(()) => Verdict::Durable,
                Err(_) => Verdict::Refused(Reason::StoreFailed),
            };
            drop(drains);
            for ticket in tickets {
                ticket.answer(verdict);
            }
            for (answer, sent, key) in sends {
                if let Some(key) = key {
                    pending.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                }
                let result = match verdict {
                    Verdict::Durable => Ok(sent),
                    Verdict::Refused(reason) => Err(SendError::Refused(reason)),
                };
                drop(answer.send(result));
            }
        });
    }

    fn send(
        &mut self,
        request: &SendRequest,
        answer: SendAnswer,
        now: Timestamp,
        batch: &mut Batch,
    ) {
        match self.accept(request, now, batch) {
            Ok((sent, key)) => batch.sends.push((answer, sent, key)),
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    fn accept(
        &mut self,
        request: &SendRequest,
        now: Timestamp,
        batch: &mut Batch,
    ) -> Result<(Sent, Option<[u8; 32]>), SendError> {
        let key = request.idempotency_key.as_deref().map(|key| sha256(key.as_bytes()));
        let fingerprint = request_fingerprint(request);
        if let Some((earlier, messages)) = key.and_then(|key| self.earlier(&key, now)) {
            if earlier.request != fingerprint {
                return Err(SendError::KeyReused);
            }
            // Its answer goes out with this batch, which is durable after the earlier one.
            return Ok((Sent { messages, repeated: true }, None));
        }
        if let Some(reason) = self.refusal(batch) {
            self.metrics.refuse(reason);
            return Err(SendError::Refused(reason));
        }
        let messages = self.plan_request(request, now)?;
        let mut op = Op::new();
        for message in &messages {
            op.put_new_message(message);
        }
        if let Some(key) = key {
            let row = Idempotency {
                request: fingerprint,
                messages: messages.iter().map(|message| message.id).collect(),
                at: now,
            };
            op.put_idempotency(&key, &row);
            self.pending_keys
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(key, (row, messages.clone()));
        }
        batch.ops.push(op);
        batch.messages.extend(messages.iter().cloned());
        Ok((Sent { messages, repeated: false }, key))
    }

    /// What the key became less than a day ago.
    fn earlier(&self, key: &[u8; 32], now: Timestamp) -> Option<(Idempotency, Vec<Message>)> {
        let pending = self.pending_keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pending.get(key) {
            return Some(known.clone());
        }
        let row = self.store.idempotency(key).ok().flatten()?;
        let message = |id: &MessageId| self.store.message(*id).ok().flatten();
        let messages = row.messages.iter().filter_map(message).collect();
        (now.since(row.at) < IDEMPOTENCY_KEPT).then_some((row, messages))
    }

    fn plan_request(
        &mut self,
        request: &SendRequest,
        now: Timestamp,
    ) -> Result<Vec<Message>, SendError> {
        let rules = self.rules.load();
        let mut problems = Vec::new();
        let mut recipients: Vec<(Option<Arc<str>>, Vec<Target>)> = Vec::new();
        for name in &request.to {
            match rules.directory.targets(name, &request.by) {
                Ok(targets) => recipients.push((Some(name.as_str().into()), targets)),
                Err(problem) => problems.push(problem.to_string()),
            }
        }
        for target in &request.targets {
            if let Err(problem) = contact::address(target.channel, target.address.expose()) {
                problems.push(format!("{}: {problem}", target.channel));
            }
        }
        recipients.extend(request.targets.iter().map(|target| (None, vec![target.clone()])));
        if recipients.is_empty() && problems.is_empty() {
            problems.push("nobody to send to: name a contact in `to`, or an address".to_owned());
        }
        if request.text.is_empty() && request.template.is_none() {
            problems.push("`text` is empty".to_owned());
        }
        if !problems.is_empty() {
            return Err(SendError::Invalid(problems));
        }
        let origin = AlertId::new(self.ids.next(now));
        let content = Content {
            title: request.title.as_deref().map(Arc::from),
            text: request.text.as_str().into(),
            template: request.template.clone(),
        };
        let mut messages: Vec<Message> = Vec::new();
        for (contact, targets) in recipients {
            let mut targets = targets.into_iter();
            let Some(target) = targets.next() else { continue };
            let id = MessageId::derive(origin, AlertState::Firing, target.channel, &target.address);
            // Two names for one address are one message.
            if messages.iter().any(|message| message.id == id) {
                continue;
            }
            let draft = Draft {
                id,
                alert: None,
                contact,
                target,
                then: targets.collect(),
                severity: request.severity,
                content: content.clone(),
                expires_in: request.expires_in.unwrap_or(self.expires_in),
            };
            messages.push(plan::compose(draft, now));
        }
        Ok(messages)
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn request_fingerprint(request: &SendRequest) -> String {
    let bytes = serde_json::to_vec(request).unwrap_or_default();
    sha256(&bytes).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}
