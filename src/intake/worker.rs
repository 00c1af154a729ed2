//! The thread behind [`super::Intake`]: evaluates what comes in and hands it to the store.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};

use super::pipeline::{Caused, Pipeline};
use super::ruleset::RuleSet;
use super::{
    ALIVE, Answer, CLOCK, Job, Matches, SendAnswer, SendError, SendRequest, Sent, Ticket, Verdict,
};
use crate::clock::line::{self, Step};
use crate::clock::{Clock, Timestamp};
use crate::dispatch::Dispatch;
use crate::model::tell::StepKind;
use crate::model::{
    AlertId, AlertState, Content, IdSource, Message, MessageId, Publish, Reason, Target,
};
use crate::notify::contact;
use crate::notify::plan::{self, Draft};
use crate::rules::engine::Adopted;
use crate::store::keys::Table;
use crate::store::rows::Idempotency;
use crate::store::{IDEMPOTENCY_KEPT, Op, Store};
use crate::telemetry::{ByChannel, ByReason, ByRule, Metrics};

/// Most jobs evaluated before their operations go to the store.
const BATCH: usize = 256;

/// Most instances that one checkpoint writes.
const CHECKPOINT_MAX: usize = 10_000;

/// How exactly the time is known at which a process ended that was killed.
const ALIVE_EVERY: Duration = Duration::from_secs(10);

/// How often the wall clock is compared with our own time.
const COMPARE_EVERY: Duration = Duration::from_millis(250);

/// How often our own time is written where nothing else is.
const CLOCK_ALONE_EVERY: Duration = Duration::from_secs(60);

/// Where nothing was looked at for so long beyond a checkpoint, the process was stopped or the machine
/// slept: nobody could be heard, as while the process does not run.
const STOOD_STILL: Duration = Duration::from_secs(10);

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
    /// What connections look topics up in.
    pub(super) rules: Arc<ArcSwap<RuleSet>>,
    /// The same, as the pipeline was fitted to it.
    pub(super) set: Arc<RuleSet>,
    pub(super) pipeline: Pipeline,
    pub(super) ids: IdSource,
    pub(super) expires_in: Duration,
    pub(super) outbox_messages_max: usize,
    pub(super) checkpoint: Duration,
    /// When the last checkpoint was, and when the process last said that it is alive.
    pub(super) checkpointed_at: Timestamp,
    pub(super) alive_at: Timestamp,
    /// Until when all that was heard is on disk.
    pub(super) heard: Heard,
    /// When the wall clock was last compared with our own time, and when that was last written.
    pub(super) compared_at: Timestamp,
    pub(super) clock_saved_at: Timestamp,
    /// What happened to the wall clock while nothing ran.
    pub(super) step: Option<Step>,
    /// When the time was last looked at.
    pub(super) looked_at: Timestamp,
    /// Messages that are with the store and not yet with the dispatcher.
    pub(super) uncommitted: Arc<AtomicUsize>,
    pub(super) pending_keys: PendingKeys,
    pub(super) failures_said: FailuresSaid,
    pub(super) disk_low: Arc<AtomicBool>,
}

/// Until when all that devices said is on disk. Where more wait for a checkpoint than one takes, what a
/// device said last is written only some checkpoints later; until then its silence must not count.
pub(super) struct Heard {
    /// Until then.
    pub(super) until: Timestamp,
    /// What is next, once so many more instances are written.
    next: (Timestamp, usize),
}

impl Heard {
    /// At a start, with so many instances that its checkpoints are to write first.
    pub(super) const fn new(until: Timestamp, now: Timestamp, unsaved: usize) -> Self {
        Self { until, next: (now, unsaved) }
    }

    /// A checkpoint: so many waited for it, and so many do still.
    fn checkpointed(&mut self, before: usize, left: usize, now: Timestamp) {
        let (at, more) = &mut self.next;
        *more = more.saturating_sub(before.saturating_sub(left));
        if *more == 0 {
            self.until = if left == 0 { now } else { *at };
            self.next = (now, left);
        }
    }
}

/// What a batch of jobs became: operations, and whom to tell when they are durable.
#[derive(Default)]
struct Batch {
    ops: Vec<Op>,
    messages: Vec<Message>,
    tickets: Vec<Ticket>,
    sends: Vec<(SendAnswer, Sent, Option<[u8; 32]>)>,
    answers: Vec<Answer>,
    drains: Vec<oneshot::Sender<()>>,
}

impl Worker {
    /// `fitted` and `caused` are what the start itself changed.
    pub(super) fn run(
        mut self,
        mut queue: mpsc::Receiver<Job>,
        caused: Caused,
        fitted: Op,
        timer: &Runtime,
    ) {
        let mut jobs = Vec::with_capacity(BATCH);
        let mut batch = Batch::default();
        self.caused(caused, fitted, &mut batch);
        match self.step.take() {
            Some(step) => self.stepped(step, &mut batch),
            None => self.save_clock(self.looked_at, &mut batch),
        }
        self.commit(batch);
        loop {
            let wait = self.wait();
            let taken = timer.block_on(async {
                tokio::time::timeout(wait, queue.recv_many(&mut jobs, BATCH)).await
            });
            let now = self.clock.now();
            self.notice_standstill(now);
            let mut batch = Batch::default();
            self.notice_step(now, &mut batch);
            self.wake(now, &mut batch);
            for job in jobs.drain(..) {
                match job {
                    Job::Publish(publish, matches, ticket, also) => {
                        self.publish(&publish, matches, (ticket, also), now, &mut batch);
                    }
                    Job::Send(request, answer) => self.send(&request, answer, now, &mut batch),
                    Job::Ask(ask) => {
                        let mut op = Op::new();
                        let set = Arc::clone(&self.set);
                        let (caused, answer) = ask(&mut self.pipeline, &set, now, &mut op);
                        self.caused(caused, op, &mut batch);
                        batch.answers.push(answer);
                    }
                    Job::Reload(set, answer) => self.reload(set, answer, now, &mut batch),
                    Job::Drain(done) => batch.drains.push(done),
                }
            }
            let has_ended = taken == Ok(0);
            self.checkpoint(now, has_ended, &mut batch);
            self.commit(batch);
            if has_ended {
                return;
            }
        }
    }

    /// Takes a time in which nothing ran for what it is. The loop never waits longer than a checkpoint.
    fn notice_standstill(&mut self, now: Timestamp) {
        let before = std::mem::replace(&mut self.looked_at, now);
        let away = now.since(before);
        // One that is set by hand means what it says.
        if matches!(self.clock, Clock::Manual(_)) || away < self.checkpoint + STOOD_STILL {
            return;
        }
        tracing::warn!(
            seconds = away.as_secs(),
            "the process stood still: silence does not count for that time, as over a restart"
        );
        self.pipeline.stood_still(&self.set, before, now);
    }

    /// Looks whether somebody has set the wall clock. What lasts goes on as it was; what goes by the
    /// clock on the wall is looked at anew.
    fn notice_step(&mut self, now: Timestamp, batch: &mut Batch) {
        if now.since(self.compared_at) < COMPARE_EVERY {
            return;
        }
        self.compared_at = now;
        if let Some(step) = self.clock.look() {
            self.stepped(step, batch);
        }
    }

    fn stepped(&mut self, step: Step, batch: &mut Batch) {
        self.metrics.clock_steps.inc();
        self.metrics.clock_ahead.set(self.clock.ahead() / 1000);
        tracing::warn!(
            seconds = step.by / 1000, wall_clock = %step.at,
            "the wall clock was set {}: timers and expiry go on as they were; quiet hours, silences until a time and tokens go by the new time; look at NTP",
            line::moved(step.by)
        );
        let mut op = Op::new();
        let caused = self.pipeline.clock_stepped(&self.set, step.at, &mut op);
        self.caused(caused, op, batch);
        self.save_clock(step.at, batch);
    }

    /// Writes where our own time stands, and the wall clock beside it.
    fn save_clock(&mut self, now: Timestamp, batch: &mut Batch) {
        self.clock_saved_at = now;
        if let Some(saved) = self.clock.saved() {
            let mut op = Op::new();
            op.put_row(Table::Engine, 0, CLOCK, &saved);
            batch.ops.push(op);
        }
    }

    /// How long to wait for jobs before something else is to be done.
    fn wait(&self) -> Duration {
        let most = match self.clock {
            Clock::System | Clock::Steady(_) => self.checkpoint,
            // It may be moved at any moment.
            Clock::Manual(_) => Duration::from_millis(20),
        };
        let now = self.clock.now();
        self.pipeline.due().map_or(most, |due| due.since(now).min(most))
    }

    /// Does all that is due.
    fn wake(&mut self, now: Timestamp, batch: &mut Batch) {
        while self.pipeline.due().is_some_and(|due| due <= now) {
            let mut op = Op::new();
            let set = Arc::clone(&self.set);
            let caused = self.pipeline.wake(&set, now, &mut op);
            self.say_failures(&caused, None, now);
            self.caused(caused, op, batch);
            if batch.ops.len() >= BATCH {
                // What is left comes with the next round, which does not wait.
                break;
            }
        }
    }

    fn reload(
        &mut self,
        set: Arc<RuleSet>,
        answer: oneshot::Sender<Adopted>,
        now: Timestamp,
        batch: &mut Batch,
    ) {
        self.rules.store(Arc::clone(&set));
        self.set = set;
        let mut op = Op::new();
        let (caused, adopted) = self.pipeline.adopt(&self.set, None, now, &mut op);
        self.caused(caused, op, batch);
        batch.answers.push(Box::new(move |_| drop(answer.send(adopted))));
    }

    /// Writes what telemetry has changed and no alert depends on yet, and that the process is alive.
    fn checkpoint(&mut self, now: Timestamp, is_last: bool, batch: &mut Batch) {
        if now.since(self.checkpointed_at) < self.checkpoint && !is_last {
            return;
        }
        self.checkpointed_at = now;
        self.gauge(now);
        let limit = if is_last { usize::MAX } else { CHECKPOINT_MAX };
        let unsaved = self.pipeline.engine().unsaved();
        self.pipeline.checkpoint(limit, &mut |op| batch.ops.push(op));
        self.heard.checkpointed(unsaved, self.pipeline.engine().unsaved(), now);
        // Nobody asks where no clock stands still while nothing runs.
        let is_asked = self.set.rules.has_standing_clocks() && !self.pipeline.engine().is_empty();
        if is_asked && (now.since(self.alive_at) >= ALIVE_EVERY || is_last) {
            self.alive_at = now;
            let mut op = Op::new();
            op.put_row(Table::Engine, 0, ALIVE, &self.heard.until);
            batch.ops.push(op);
        }
        // With others it costs no sync; alone it can wait, for it matters after another boot only.
        let since = now.since(self.clock_saved_at);
        let every = if batch.ops.is_empty() { CLOCK_ALONE_EVERY } else { ALIVE_EVERY };
        if since >= every || is_last {
            self.save_clock(now, batch);
        }
    }

    /// Shows how much there is now.
    fn gauge(&self, now: Timestamp) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let tally = self.pipeline.engine().tally();
        self.metrics.alerts_firing.set(count(tally.firing));
        self.metrics.alerts_pending.set(count(tally.pending));
        self.metrics.instances.set(count(self.pipeline.engine().len()));
        let silences = self.pipeline.silences_in_force(&self.set, now);
        self.metrics.silences.set(count(silences));
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
        matches: Matches,
        (ticket, mut op): (Ticket, Op),
        now: Timestamp,
        batch: &mut Batch,
    ) {
        if let Some(reason) = self.refusal(batch) {
            self.metrics.refuse(reason);
            ticket.answer(Verdict::Refused(reason));
            return;
        }
        let set = Arc::clone(&self.set);
        // It may have been looked up before a reload.
        let matched = if Arc::ptr_eq(&matches.rules, &set) {
            Some(matches.matched)
        } else {
            set.rules.matches(&publish.topic)
        };
        let caused = match matched {
            Some(matched) => self.pipeline.publish(&set, &matched, publish, now, &mut op),
            None => Caused::default(),
        };
        self.say_failures(&caused, Some(publish), now);
        // One that changed nothing waits all the same: what it would have changed is as it is
        // because of publishes before it, and those may not be on disk yet.
        self.caused(caused, op, batch);
        batch.tickets.push(ticket);
    }

    /// `publish`: on which; `None`: when a clock ran out.
    fn say_failures(&mut self, caused: &Caused, publish: Option<&Publish>, now: Timestamp) {
        for (rule, reason) in &caused.passed {
            let label = ByRule { rule: rule.to_string(), reason: *reason };
            self.metrics.rule_passed.get_or_create(&label).inc();
        }
        for failure in &caused.failures {
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
            let topic = publish.map(|publish| publish.topic.as_str());
            let client_id = publish.map(|publish| &*publish.client_id);
            let what = match failure.reason {
                Reason::TemplateFailed => {
                    "a text of a rule could not be rendered: the payload was told instead"
                }
                _ => "a rule came to no result on a publish",
            };
            tracing::warn!(
                rule = %failure.rule, topic, client_id,
                reason = %failure.reason, detail = failure.detail, since_last_said = unsaid,
                "{what}"
            );
        }
    }

    /// Counts what was caused, and adds its rows and messages.
    fn caused(&mut self, caused: Caused, op: Op, batch: &mut Batch) {
        for failure in &caused.failures {
            let label = ByRule { rule: failure.rule.to_string(), reason: failure.reason };
            self.metrics.rule_failures.get_or_create(&label).inc();
        }
        let (fired, cleared) = caused.counts();
        self.metrics.alerts_fired.inc_by(fired);
        self.metrics.alerts_cleared.inc_by(cleared);
        for step in &caused.steps {
            if let (StepKind::Held | StepKind::Dropped, Some(reason)) = (step.what, step.reason) {
                self.metrics.alerts_suppressed.get_or_create(&ByReason { reason }).inc();
                if reason == Reason::NoRecipient {
                    tracing::warn!(
                        rule = %step.rule, alert_id = %step.alert, %reason,
                        "nobody is told of an alert"
                    );
                }
            }
        }
        batch.messages.extend(caused.messages);
        if !op.is_empty() {
            batch.ops.push(op);
        }
    }

    fn commit(&self, batch: Batch) {
        let Batch { ops, messages, tickets, sends, answers, drains } = batch;
        let is_asked = !tickets.is_empty() || !sends.is_empty() || !answers.is_empty();
        if ops.is_empty() && !is_asked && drains.is_empty() {
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
            for answer in answers {
                answer(verdict);
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
            match rules.book.directory.targets(name, &request.by) {
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
            let fallback_after = contact
                .as_deref()
                .and_then(|name| rules.book.directory.fallback_after(name, request.severity, None));
            let draft = Draft {
                id,
                alert: None,
                contact,
                target,
                then: targets.collect(),
                severity: request.severity,
                content: content.clone(),
                expires_in: request.expires_in.unwrap_or(self.expires_in),
                fallback_after,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Killed with 30,000 devices that wait for their checkpoint, those heard last were taken for
    /// silent since their row.
    #[test]
    fn what_was_heard_counts_once_it_is_written() {
        let at = Timestamp::from_millis;
        let mut heard = Heard::new(at(0), at(1), 25);
        for (before, left, now, until) in [
            (25, 15, 2, 0), // Ten of what the start changed.
            (20, 10, 3, 0), // Five have come meanwhile.
            (20, 10, 4, 1), // The 25 of the start, and not those of since.
            (12, 2, 5, 4),  // All that waited at 4.
            (2, 0, 6, 6),
            (0, 0, 7, 7),
        ] {
            heard.checkpointed(before, left, at(now));
            assert_eq!(heard.until, at(until), "{now}");
        }
    }
}
