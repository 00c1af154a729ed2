//! The thread behind [`super::Intake`]: evaluates what comes in and hands it to the store.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot};

use super::ruleset::RuleSet;
use super::{Job, Matches, SendAnswer, SendError, SendRequest, Sent, Ticket, Verdict};
use crate::clock::{Clock, Timestamp};
use crate::dispatch::Dispatch;
use crate::model::tell::{Step, StepKind};
use crate::model::{
    Alert, AlertId, AlertState, Content, IdSource, Message, MessageId, Publish, Reason, Target,
};
use crate::notify::contact;
use crate::notify::plan::{self, Draft, News};
use crate::rules::engine::{Change, Engine, InstanceChange};
use crate::store::rows::Idempotency;
use crate::store::{IDEMPOTENCY_KEPT, Op, Store};
use crate::telemetry::{ByChannel, ByReason, ByRule, Metrics};

/// Most jobs evaluated before their operations go to the store.
const BATCH: usize = 256;

/// A rule that fails on every publish is in the log so often; the metric counts each.
const FAILURES_SAID_EVERY: Duration = Duration::from_secs(60);

/// So many rules and kinds of failure are remembered, across all reloads.
const FAILURES_SAID_MAX: usize = 10_000;

/// When each rule's failure of each kind was last in the log, and how many there were since.
pub(super) type FailuresSaid = HashMap<(Arc<str>, Reason), (Timestamp, u64)>;

/// Idempotency keys whose operation is under way, and what they became.
pub(super) type PendingKeys = Arc<Mutex<HashMap<[u8; 32], (Idempotency, Vec<Message>)>>>;

pub(super) struct Worker {
    pub(super) store: Store,
    pub(super) dispatch: Dispatch,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) rules: Arc<ArcSwap<RuleSet>>,
    pub(super) engine: Engine,
    pub(super) ids: IdSource,
    pub(super) expires_in: Duration,
    pub(super) outbox_messages_max: usize,
    /// Messages that are with the store and not yet with the dispatcher.
    pub(super) uncommitted: Arc<AtomicUsize>,
    pub(super) pending_keys: PendingKeys,
    pub(super) failures_said: FailuresSaid,
    pub(super) disk_low: Arc<AtomicBool>,
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
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.blocking_recv_many(&mut jobs, BATCH) > 0 {
            let now = self.clock.now();
            let mut batch = Batch::default();
            for job in jobs.drain(..) {
                match job {
                    Job::Publish(publish, matches, ticket, also) => {
                        self.publish(&publish, &matches, (ticket, also), now, &mut batch);
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
        (ticket, mut op): (Ticket, Op),
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
            InstanceChange::Remove(instance) => op.remove_instance(instance.alert.id),
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
            op.put_step(&dropped(alert, reason, now));
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

/// That nobody is told of an alert.
fn dropped(alert: &Alert, reason: Reason, at: Timestamp) -> Step {
    Step {
        alert: alert.id,
        at,
        what: StepKind::Dropped,
        reason: Some(reason),
        rule: Arc::clone(&alert.rule),
        key: Arc::clone(&alert.key),
        severity: alert.severity,
        topic: alert.topic.clone(),
        contact: None,
        message: None,
        detail: None,
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
