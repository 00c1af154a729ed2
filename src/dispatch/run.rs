//! The task behind [`super::Dispatch`]: takes all that waits, decides, and sleeps until the next
//! due time.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{Id, JoinSet};

use super::attempt::{self, Alike, Context, Ended, Report};
use super::batch;
use super::collapse::Collapse;
use super::fallback::{self, Cause, Leg};
use super::handover::{self, Calls, FellBack, Late};
use super::lane::{Lane, LaneChange, LaneNews, LaneSettings, Standing};
use super::outcome::{Elsewhere, Limits};
use super::peer::{PeerNews, Peers, Trouble};
use super::queue::{Overdue, Prospect, Queue, Room, Routes, Together, Waiting, prospect};
use super::{
    Command, Config, ControlError, Dispatch, EndpointStatus, LaneState, LaneStatus, Parts, Shared,
    outcome,
};
use crate::clock::Timestamp;
use crate::model::{Channel, Message, MessageId, Reason, Severity, Status};
use crate::provider::Provider;
use crate::store::Op;
use crate::telemetry::ByProvider;

/// So many that come in at once keep their room for the next.
const INBOX_KEPT: usize = 4096;

/// A message in which others have just been put together is sent as it is for so long, also when
/// newer ones have come: they could hold it up for ever.
pub(super) const DECIDED_FOR: Duration = Duration::from_secs(5);

/// After so long without a call that wanted for files, memory or ports, there are enough again. Longer
/// than any such message waits.
const WANTING_OVER_AFTER: Duration = Duration::from_secs(30);

/// Whose time without success was up and whom something short has is looked at again after this.
const CLOCK_AGAIN: Duration = Duration::from_millis(50);

/// The same of one that only keeps its lane's rate, or its turn: something may happen to the lane.
const RATE_AGAIN: Duration = Duration::from_secs(2);

/// So long those who are not reached are gathered before somebody else is told of them: what closes
/// one channel closes it for many.
const GATHER: Duration = Duration::from_secs(5);

/// The dispatcher, ready to run.
pub struct Dispatcher {
    context: Arc<Context>,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    queue: Queue,
    /// The inbox by turns, so that neither grows anew with each commit.
    new: Vec<Waiting>,
    lanes: Vec<Lane>,
    providers: Vec<Arc<dyn Provider>>,
    routes: Routes,
    tasks: JoinSet<Finished>,
    /// Which messages and lane a task has, should it panic.
    running: HashMap<Id, (Vec<MessageId>, Option<usize>)>,
    /// What is done to many messages at once: one of a kind at a time, and which task it is.
    batches: HashMap<Id, Batch>,
    /// Messages that are taken because they have expired, and whose end is still to be written.
    expired: VecDeque<MessageId>,
    batch_messages_max: usize,
    /// When this machine last lacked what it needs to ask a provider, while that lasts.
    wanting_at: Option<Timestamp>,
    /// Messages whose row could not be read, and how often. As many at most as the queue holds.
    unread: HashMap<MessageId, u32>,
    /// Commands on messages whose attempt has ended on disk and not here yet. As many at most as
    /// there are askers.
    early: Vec<Command>,
    /// Messages that somebody has and that another channel had first: as many at most as are taken.
    had: HashMap<MessageId, Channel>,
    /// When those of `notify.fallback` are told who was not reached, and when they were told last.
    tell_at: Option<Timestamp>,
    told_at: Option<Timestamp>,
    /// A batch of messages goes on to its next channels.
    is_falling_back: bool,
}

/// A kind of work on many messages at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Batch {
    /// Of this channel's what waited long is put together.
    Together(Channel),
    /// They have expired.
    Expired,
    /// No provider serves their channel.
    Homeless,
}

struct Finished {
    lane: Option<usize>,
    report: Report,
    news: LaneNews,
}

impl Dispatcher {
    /// Reads the outbox and closes the attempts that a crash cut off; those are `Unknown`, and
    /// durable as such on return.
    ///
    /// # Errors
    /// The store could not be read or written.
    pub async fn open(config: &Config, parts: Parts) -> anyhow::Result<(Dispatch, Self)> {
        let Parts { store, clock, metrics, run, lanes: specs, routes, notify } = parts;
        let now = clock.now();
        let limits = Limits { unanswered_repeats: config.give_up.unanswered_repeats };
        let mut queue = Queue::new(
            config.collapse_after.into(),
            Peers::new(config.endpoint.clone(), config.breaker.clone()),
        )
        .falling_back(notify.fallback_after);
        let (unreached, told_at) = handover::unreached_before(&store).await?;
        let unreached = Arc::new(unreached);
        let at_start = outcome::AtStart {
            now,
            unsure_since: clock.unsure_since(),
            wait_max: Duration::from(config.retry.max).max(super::lane::PAUSE_MAX),
        };
        let mut cut_off = Vec::new();
        let mut cut_off_count = 0_usize;
        for message in store.outbox() {
            let mut message = match message {
                Ok(message) => message,
                Err(error) => {
                    tracing::error!(%error, "a message in the outbox cannot be read; it is left alone");
                    continue;
                }
            };
            let was_sending = message.status == Status::Sending;
            if was_sending {
                outcome::settle_cut_off(&mut message, &config.retry, now);
                cut_off_count += 1;
            }
            if outcome::put_right(&mut message, at_start) || was_sending {
                let mut op = Op::new();
                op.put_message(&message);
                cut_off.push(op);
                if cut_off.len() >= 1000 {
                    store.commit(std::mem::take(&mut cut_off)).await?;
                }
            }
            // A crash came between the success of another channel and the end of this one.
            if message.fallback.is_some()
                && let Some(by) = handover::had_by(&store, &message)
            {
                handover::supersede(&mut message, by, now);
                let mut op = Op::new();
                op.put_message(&message);
                store.commit(vec![op]).await?;
                continue;
            }
            let mut waiting = Waiting::of(&message);
            for (index, spec) in specs.iter().enumerate().filter(|_| !message.attempts.is_empty()) {
                // One that can be asked is asked first whether it has it.
                if !spec.provider.can_look_up() && limits.hold_back(&message, &spec.name) {
                    waiting.done_by.insert(index);
                }
            }
            queue.put(waiting);
        }
        store.commit(cut_off).await?;
        if queue.len() > 0 {
            tracing::info!(
                messages = queue.len(),
                cut_off = cut_off_count,
                "the outbox holds messages from before"
            );
        }

        let mut lanes = Vec::new();
        let mut providers = Vec::new();
        let mut by_name = HashMap::new();
        for spec in specs {
            by_name.insert(Arc::clone(&spec.name), lanes.len());
            let settings = LaneSettings {
                name: spec.name,
                kind: spec.kind,
                channels: spec.channels,
                per_second: spec.per_second,
                concurrency: spec.concurrency,
                breaker: config.breaker.clone(),
                refusals: config.give_up.refusals,
            };
            lanes.push(Lane::new(settings, now));
            providers.push(spec.provider);
        }
        let routes = routes
            .into_iter()
            .map(|(channel, names)| {
                (channel, names.iter().filter_map(|name| by_name.get(name).copied()).collect())
            })
            .collect();

        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            woken: Notify::new(),
            waiting: AtomicUsize::new(queue.len()),
            waiting_bytes: AtomicU64::new(queue.bytes()),
            held: AtomicBool::new(false),
            oldest_at: Mutex::default(),
            lanes: RwLock::default(),
            fallback: RwLock::default(),
            unreached: Arc::clone(&unreached),
            low: AtomicBool::new(false),
        });
        let (sender, commands) = mpsc::channel(64);
        let context = Context {
            store,
            clock,
            metrics,
            retry: config.retry.clone(),
            limits,
            collapse: Collapse::new(config),
            run,
            ended_unsent: batch::EndedUnsent::default(),
            claims: Mutex::default(),
            alike: Alike::default(),
            calls: Calls::default(),
            notify,
            unreached,
            expires_in: config.expires_in.into(),
        };
        let mut dispatcher = Self {
            context: Arc::new(context),
            shared: Arc::clone(&shared),
            commands,
            queue,
            new: Vec::new(),
            lanes,
            providers,
            routes: Routes::new(routes),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            batches: HashMap::new(),
            expired: VecDeque::new(),
            batch_messages_max: config.batch_messages_max,
            wanting_at: None,
            unread: HashMap::new(),
            early: Vec::new(),
            had: HashMap::new(),
            tell_at: None,
            told_at,
            is_falling_back: false,
        };
        if dispatcher.context.unreached.untold_since().is_some() {
            dispatcher.not_reached(now);
        }
        dispatcher.show(now);
        Ok((Dispatch { shared, commands: sender }, dispatcher))
    }

    /// Sends until told to stop; then waits for the calls in flight.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow_and_update() && stop.has_changed().is_ok() {
            self.take_all();
            let now = self.context.clock.now();
            let wake_at = self.start_due(now);
            let clock_at = self.fall_back(now);
            let tell_at = self.tell_due(now);
            let wake_at = [wake_at, clock_at, tell_at].into_iter().flatten().min();
            self.show(now);
            let nap = wake_at.map_or(Duration::from_secs(60), |at| at.since(now));
            let shared = Arc::clone(&self.shared);
            tokio::select! {
                _ = stop.changed() => {}
                () = shared.woken.notified() => {}
                Some(finished) = self.tasks.join_next_with_id() => self.finished(finished),
                Some(command) = self.commands.recv() => self.obey(command),
                // Timers count whole milliseconds: one more, so that it is not woken just too early.
                () = tokio::time::sleep(nap.min(Duration::from_secs(60)) + Duration::from_millis(1)) => {}
            }
        }
        self.commands.close();
        while let Some(finished) = self.tasks.join_next_with_id().await {
            self.finished(finished);
        }
        self.context.ended_unsent.say_counts(true);
    }

    /// Everything that has come in, before anything is decided.
    fn take_all(&mut self) {
        std::mem::swap(
            &mut *self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner),
            &mut self.new,
        );
        let now = self.context.clock.now();
        let mut new = std::mem::take(&mut self.new);
        for waiting in new.drain(..) {
            let shut = self.is_shut_for(&waiting, now).then_some(waiting.id);
            self.queue.put(waiting);
            shut.into_iter().for_each(|id| self.queue.look_at(id, now));
        }
        self.new = new;
        self.new.shrink_to(INBOX_KEPT);
        while let Some(finished) = self.tasks.try_join_next_with_id() {
            self.finished(finished);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.obey(command);
        }
    }

    /// Commands that came before the news of the attempt they are about.
    fn obey_early(&mut self) {
        for command in std::mem::take(&mut self.early) {
            self.obey(command);
        }
    }

    fn start_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        self.end_wanting(now);
        if self.shared.held.load(Ordering::Relaxed) {
            // Whoever ends this wakes us.
            return None;
        }
        self.expired.extend(self.queue.take_expired(now));
        if !self.expired.is_empty() && !self.is_under_way(Batch::Expired) {
            let most = self.batch_messages_max.min(self.expired.len());
            let ids = self.expired.drain(..most).collect();
            let why = (Status::Expired, Reason::Expired, attempt::TIME_IS_OVER);
            self.give_up(Batch::Expired, ids, why);
        }
        let busy: BTreeSet<Channel> = self
            .batches
            .values()
            .filter_map(|batch| match batch {
                Batch::Together(channel) => Some(*channel),
                Batch::Expired | Batch::Homeless => None,
            })
            .collect();
        let most = self.batch_messages_max;
        let homeless = if self.is_under_way(Batch::Homeless) { 0 } else { most };
        let room = Room { together: most, busy: &busy, homeless };
        let picked = self.queue.pick(&mut self.lanes, &self.routes, room, now);
        if !picked.homeless.is_empty() {
            let detail = "no provider is configured for its channel; add one to [channel.NAME]";
            let why = (Status::Failed, Reason::NoProvider, detail);
            self.give_up(Batch::Homeless, picked.homeless, why);
        }
        for id in picked.unwanted {
            self.give_up_refused(id);
        }
        for (channel, threads) in picked.collapse {
            self.put_together(channel, threads);
        }
        for (id, index) in picked.start {
            let (Some(lane), Some(provider)) = (self.lanes.get(index), self.providers.get(index))
            else {
                continue;
            };
            let (context, provider) = (Arc::clone(&self.context), Arc::clone(provider));
            let name = Arc::clone(&lane.settings.name);
            self.context.calls.begin(id);
            self.spawn(vec![id], Some(index), async move {
                attempt::run(&context, id, &name, &*provider).await
            });
        }
        picked.wake_at
    }

    fn is_under_way(&self, batch: Batch) -> bool {
        self.batches.values().any(|one| *one == batch)
    }

    fn give_up_refused(&mut self, id: MessageId) {
        let context = Arc::clone(&self.context);
        self.spawn(vec![id], None, async move {
            (attempt::give_up_refused(&context, id).await, LaneNews::Nothing)
        });
    }

    fn give_up(&mut self, batch: Batch, ids: Vec<MessageId>, why: (Status, Reason, &'static str)) {
        let context = Arc::clone(&self.context);
        let task = self.spawn(ids.clone(), None, async move {
            (batch::give_up(&context, ids, why).await, LaneNews::Nothing)
        });
        self.batches.insert(task, batch);
    }

    fn put_together(&mut self, channel: Channel, threads: Vec<Together>) {
        let context = Arc::clone(&self.context);
        let ids = threads.iter().flat_map(|together| together.ids.iter().copied()).collect();
        let task = self.spawn(ids, None, async move {
            (batch::put_together(&context, threads).await, LaneNews::Nothing)
        });
        self.batches.insert(task, Batch::Together(channel));
    }

    fn spawn(
        &mut self,
        ids: Vec<MessageId>,
        lane: Option<usize>,
        work: impl Future<Output = (Report, LaneNews)> + Send + 'static,
    ) -> Id {
        let handle = self.tasks.spawn(async move {
            let (report, news) = work.await;
            Finished { lane, report, news }
        });
        self.running.insert(handle.id(), (ids, lane));
        handle.id()
    }

    fn finished(&mut self, result: Result<(Id, Finished), tokio::task::JoinError>) {
        let now = self.context.clock.now();
        self.batches.remove(&match &result {
            Ok((task, _)) => *task,
            Err(error) => error.id(),
        });
        let (ids, finished) = match result {
            Ok((task, finished)) => {
                (self.running.remove(&task).map(|(ids, _)| ids).unwrap_or_default(), finished)
            }
            Err(error) => {
                let Some((ids, lane)) = self.running.remove(&error.id()) else {
                    return;
                };
                tracing::error!(message_ids = ?ids, %error, "an attempt ended in a fault of ours");
                let detail = "an attempt ended in a fault of ours; see the log".to_owned();
                let reason = Reason::NoAnswer;
                let news = LaneNews::Failed { reason, detail, after: None };
                for id in ids {
                    if lane.is_some() {
                        self.call_ended(id, &news, now);
                    }
                    self.context.calls.forget(id);
                    self.requeue_from_store(id, now);
                }
                self.is_falling_back = false;
                self.lane_news(lane, news, now);
                return;
            }
        };
        if finished.lane.is_some() {
            ids.iter().for_each(|id| self.call_ended(*id, &finished.news, now));
            ids.iter().for_each(|id| self.context.calls.forget(*id));
        }
        self.lane_news(finished.lane, finished.news, now);
        match finished.report {
            Report::Waits { message, elsewhere } => {
                self.waits(&message, elsewhere, finished.lane, now);
            }
            Report::Ended { follow_up, ended } => {
                self.forget(&ids);
                if let Some(message) = follow_up {
                    self.queue.put(Waiting::of(&message));
                }
                match ended {
                    Ended::Heard { who, channel, beside } => {
                        self.heard(&ids, &who, channel, beside.as_deref());
                    }
                    Ended::Unheard => self.not_reached(now),
                    Ended::Other => {}
                }
            }
            Report::FellBack(fell) => self.fell_back(&fell, now),
            Report::Told(messages) => {
                self.told_at = Some(now);
                messages.iter().for_each(|message| self.queue.put(Waiting::of(message)));
            }
            Report::Unread => self.put_off(&ids, now),
            // The store has failed, and with it this process; or another has ended it.
            Report::Lost => self.forget(&ids),
            Report::Batch(done) => self.batch_done(done, now),
        }
        self.withdraw_had();
        self.obey_early();
    }

    fn batch_done(&mut self, done: batch::Done, now: Timestamp) {
        self.forget(&done.gone);
        self.put_off(&done.unread, now);
        if done.unheard {
            self.not_reached(now);
        }
        for id in done.untouched {
            if let Some(waiting) = self.queue.get(id) {
                self.queue.put(waiting);
            }
        }
        for (mut waiting, is_decided) in done.waiting {
            if let Some(known) = self.queue.get(waiting.id) {
                waiting.goes_on_from(&known);
            }
            if is_decided {
                waiting.decided_until = now.plus(DECIDED_FOR);
            }
            self.queue.put(waiting);
        }
    }

    /// Puts a message back after an attempt, or ends it where nobody will take it.
    fn waits(
        &mut self,
        message: &Message,
        elsewhere: Elsewhere,
        lane: Option<usize>,
        now: Timestamp,
    ) {
        let mut waiting = Waiting::of(message);
        if let Some(known) = self.queue.get(message.id) {
            waiting.goes_on_from(&known);
            waiting.failed_on = None;
        }
        if elsewhere == Elsewhere::No {
            return self.queue.put(waiting);
        }
        waiting.failed_on = lane;
        if let Some(index) = lane {
            match elsewhere {
                Elsewhere::No | Elsewhere::Failed => {}
                Elsewhere::Done => waiting.done_by.insert(index),
                Elsewhere::Refused => {
                    waiting.refused_by.insert(index);
                    waiting.refused_until = now.plus(self.context.retry.max.into());
                    // So many are enough, where the lane is well for others.
                    if self.lanes.get(index).is_some_and(|lane| {
                        let (refusals, first_at) = outcome::refusals(message, &lane.settings.name);
                        refusals >= lane.settings.refusals
                            && first_at.is_some_and(|at| lane.has_accepted_since(at))
                    }) {
                        waiting.done_by.insert(index);
                    }
                }
            }
        }
        let route = self.routes.of(message.target.channel);
        let goes_on = !message.then.is_empty();
        match prospect(&waiting, route, &self.lanes, now) {
            Prospect::Open => {
                let may_now = match elsewhere {
                    Elsewhere::Refused | Elsewhere::Done => true,
                    Elsewhere::No | Elsewhere::Failed => {
                        self.another_may_try(message, &waiting, lane, now)
                    }
                };
                if may_now {
                    waiting.due_at = now;
                }
            }
            // The closed lane holds it, and it is the first to go when that opens; the contact's next
            // channel does not wait for that.
            Prospect::Stopped => {
                waiting.due_at = now;
                self.queue.put(waiting);
                return self.queue.look_at(message.id, now);
            }
            Prospect::Refused if goes_on => return self.give_up_refused(message.id),
            // There is no other way: once more, when it has waited.
            Prospect::Refused => waiting.refused_until = waiting.due_at,
            Prospect::Done => return self.give_up_refused(message.id),
        }
        let is_shut = self.is_shut_for(&waiting, now);
        self.queue.put(waiting);
        if is_shut {
            self.queue.look_at(message.id, now);
        }
    }

    /// Whether a critical message's channel will not open within its time: what keeps its lanes shut is
    /// known to last longer. The contact's next channel need not wait for that.
    fn is_shut_for(&self, waiting: &Waiting, now: Timestamp) -> bool {
        if waiting.clock.severity != Severity::Critical || waiting.clock.leg != Some(Leg::Next) {
            return false;
        }
        let Some(ends_at) = waiting.clock.ends_at(&self.context.notify.fallback_after) else {
            return false;
        };
        let route = self.routes.of(waiting.channel);
        !route.is_empty()
            && route.iter().filter_map(|index| self.lanes.get(*index)).all(|lane| {
                match lane.state(now) {
                    (LaneState::Stopped, ..) => true,
                    (LaneState::Paused, .., until) => until.is_some_and(|until| until >= ends_at),
                    _ => false,
                }
            })
    }

    /// Has the next channel send of what had no success in time. Answers when to look again.
    fn fall_back(&mut self, now: Timestamp) -> Option<Timestamp> {
        // The end of the batch wakes us, and so does whoever lets go on.
        if self.is_falling_back || self.shared.held.load(Ordering::Relaxed) {
            return None;
        }
        let closed: Vec<Channel> = Channel::ALL
            .iter()
            .copied()
            .filter(|channel| {
                let states = self.lane_states(*channel, now);
                states.contains(&LaneState::Stopped) && !states.contains(&LaneState::Up)
            })
            .collect();
        let mut late = Vec::new();
        for Overdue { id, at_once } in self.queue.overdue(now, &closed, handover::TOGETHER_MAX) {
            let Some(waiting) = self.queue.get(id) else { continue };
            let is_taken = self.queue.is_taken(id) == Some(true);
            if is_taken && !self.context.calls.is_under_way(id) {
                // Something short has it.
                self.queue.look_at(id, now.plus(CLOCK_AGAIN));
                continue;
            }
            let cause = self.cause(&waiting, is_taken, now);
            if !at_once && waiting.clock.severity != Severity::Critical && cause.is_none() {
                // It keeps its lane's rate, or its turn.
                self.queue.look_at(id, now.plus(RATE_AGAIN));
                continue;
            }
            self.queue.stop_clock(id);
            if !is_taken {
                self.queue.take(id);
            }
            let is_sparing = self.shared.low.load(Ordering::Relaxed);
            late.push(Late { id, cause: cause.unwrap_or_default(), at_once, is_sparing });
        }
        if late.is_empty() {
            return self.queue.next_clock();
        }
        self.is_falling_back = true;
        let context = Arc::clone(&self.context);
        let ids = late.iter().filter(|one| !one.cause.is_calling).map(|one| one.id).collect();
        self.spawn(ids, None, async move {
            (handover::fall_back(&context, late).await, LaneNews::Nothing)
        });
        None
    }

    fn lane_states(&self, channel: Channel, now: Timestamp) -> Vec<LaneState> {
        let lanes = self.routes.of(channel).iter().filter_map(|index| self.lanes.get(*index));
        lanes.map(|lane| lane.state(now).0).collect()
    }

    /// What keeps the message from its success, where that is more than its lane's rate or its turn.
    fn cause(&self, waiting: &Waiting, is_calling: bool, now: Timestamp) -> Option<Cause> {
        let mut closed = Vec::new();
        for lane in
            self.routes.of(waiting.channel).iter().filter_map(|index| self.lanes.get(*index))
        {
            let (state, reason, ..) = lane.state(now);
            if state != LaneState::Up {
                let reason = reason.unwrap_or(Reason::ProviderUnavailable);
                closed.push((Arc::clone(&lane.settings.name), state, reason));
            }
        }
        // One that is stopped says more than one that is left alone for a moment.
        closed.sort_by_key(|(_, state, _)| *state != LaneState::Stopped);
        if closed.len() < self.routes.of(waiting.channel).len() {
            closed.clear();
        }
        let endpoint = self.queue.trouble(waiting, now);
        let endpoint = endpoint.map(|one| (Arc::clone(&one.name), one.state, one.reason));
        let lanes = if closed.is_empty() { endpoint.into_iter().collect() } else { closed };
        let head = self.queue.head(waiting);
        let was_tried = waiting.was_tried || head.is_some_and(|head| head.was_tried);
        (!lanes.is_empty() || is_calling || was_tried).then_some(Cause { lanes, is_calling })
    }

    fn fell_back(&mut self, fell: &FellBack, now: Timestamp) {
        self.is_falling_back = false;
        self.forget(&fell.gone);
        for message in &fell.waiting {
            let mut waiting = Waiting::of(message);
            if let Some(known) = self.queue.get(message.id) {
                waiting.goes_on_from(&known);
            }
            self.queue.put(waiting);
        }
        for (of, next) in &fell.next {
            let before = self.context.store.message(*of).ok().flatten();
            let had = |message: &Message| {
                fallback::is_success(message.status).then_some(message.target.channel)
            };
            if let Some(by) = had(next) {
                self.had.insert(*of, by);
                continue;
            }
            if next.status.is_final() {
                continue;
            }
            if self.queue.get(next.id).is_none() {
                self.queue.put(Waiting::of(next));
            }
            // It had success while this was written.
            if let Some(by) = before.as_ref().and_then(had) {
                self.had.insert(next.id, by);
            }
        }
        fell.over.iter().for_each(|id| self.queue.look_at(*id, now));
        fell.later.iter().for_each(|id| self.queue.look_again(*id, now.plus(CLOCK_AGAIN)));
        if fell.unheard {
            self.not_reached(now);
        }
    }

    /// A message had success: what says the same elsewhere is needless.
    fn heard(
        &mut self,
        ids: &[MessageId],
        who: &Arc<str>,
        channel: Channel,
        message: Option<&Message>,
    ) {
        let noted = message
            .map(|message| handover::noted_as_unheard(&self.context.store, message))
            .unwrap_or_default();
        if let Some(op) = self.context.unreached.heard(who, &noted) {
            let context = Arc::clone(&self.context);
            self.spawn(Vec::new(), None, async move {
                // Where it fails, the store has, and with it this process.
                drop(context.store.commit(vec![op]).await);
                (Report::Lost, LaneNews::Nothing)
            });
        }
        for id in ids {
            self.had.remove(id);
        }
        let Some(message) = message else { return };
        // Its attempt was under way when another had success: it could not be called back.
        if let Some(by) = handover::had_before(&self.context.store, message) {
            let (context, id) = (Arc::clone(&self.context), message.id);
            self.spawn(Vec::new(), None, async move {
                (handover::explain_copy(&context, id, by).await, LaneNews::Nothing)
            });
        }
        let needless = match handover::made_needless(&self.context.store, message) {
            Ok(needless) => needless,
            Err(error) => {
                tracing::error!(message_id = %message.id, %error, "what it makes needless cannot be read");
                return;
            }
        };
        for id in needless {
            if self.queue.get(id).is_some() {
                self.had.insert(id, channel);
            }
        }
    }

    /// Withdraws what another channel had first and nobody has.
    fn withdraw_had(&mut self) {
        if self.had.is_empty() {
            return;
        }
        let queue = &self.queue;
        self.had.retain(|id, _| queue.get(*id).is_some());
        let free = |(id, by): (&MessageId, &Channel)| {
            (queue.is_taken(*id) == Some(false)).then_some((*id, *by))
        };
        let mut by_channel: BTreeMap<Channel, Vec<MessageId>> = BTreeMap::new();
        for (id, by) in self.had.iter().filter_map(free) {
            by_channel.entry(by).or_default().push(id);
        }
        for (by, ids) in by_channel {
            for id in &ids {
                self.had.remove(id);
                self.queue.take(*id);
            }
            let context = Arc::clone(&self.context);
            self.spawn(ids.clone(), None, async move {
                (handover::withdraw(&context, ids, by).await, LaneNews::Nothing)
            });
        }
    }

    /// No channel is left for somebody: those of `notify.fallback` are told soon, with what comes
    /// until then. Neither what comes later nor a restart puts it off.
    fn not_reached(&mut self, now: Timestamp) {
        let soon = self.context.unreached.untold_since().unwrap_or(now).plus(GATHER);
        let interval = self.context.notify.fallback_interval.get();
        let at = self.told_at.map_or(soon, |told_at| soon.max(told_at.plus(interval)));
        self.tell_at.get_or_insert(at);
    }

    /// Tells those of `notify.fallback` of all that have not been reached, in one message each.
    fn tell_due(&mut self, now: Timestamp) -> Option<Timestamp> {
        let at = self.tell_at?;
        if now < at {
            return Some(at);
        }
        self.tell_at = None;
        let to = self.shared.fallback.read().unwrap_or_else(PoisonError::into_inner).clone();
        let context = Arc::clone(&self.context);
        self.spawn(Vec::new(), None, async move {
            (handover::tell(&context, to).await, LaneNews::Nothing)
        });
        None
    }

    fn forget(&mut self, ids: &[MessageId]) {
        for id in ids {
            self.queue.remove(*id);
            self.unread.remove(id);
        }
    }

    /// Rows that cannot be read are tried again, each time after twice as long: the disk may only
    /// have stumbled, and nobody is to wait for the next start. The store says which they are.
    fn put_off(&mut self, ids: &[MessageId], now: Timestamp) {
        for id in ids {
            let Some(mut waiting) = self.queue.get(*id) else { continue };
            if now >= waiting.expires_at {
                tracing::error!(
                    message_id = %id, channel = %waiting.channel,
                    "a message could not be read until its time was over; its row is kept"
                );
                self.forget(&[*id]);
                continue;
            }
            let times = self.unread.entry(*id).or_default();
            let (first, most) = (self.context.retry.first, self.context.retry.max);
            let delay = Duration::from(first).saturating_mul(1 << (*times).min(16));
            let delay = delay.min(most.into());
            *times += 1;
            self.context.metrics.outbox_reads_failed.inc();
            waiting.due_at = now.plus(delay);
            self.queue.put(waiting);
        }
    }

    /// After a fault of ours the row says where the message stands.
    fn requeue_from_store(&mut self, id: MessageId, now: Timestamp) {
        match self.context.store.message(id) {
            Ok(Some(mut message)) if !message.status.is_final() => {
                // Without a start on disk there was no attempt.
                if message.status == Status::Sending {
                    outcome::settle_cut_off(&mut message, &self.context.retry, now);
                }
                message.due_at = now.plus(self.context.retry.max.into());
                self.queue.put(Waiting::of(&message));
            }
            _ => self.queue.remove(id),
        }
    }

    /// Whether another provider of the channel can take over at once: until each has had its turn;
    /// then the message waits its back-off.
    fn another_may_try(
        &mut self,
        message: &Message,
        waiting: &Waiting,
        failed: Option<usize>,
        now: Timestamp,
    ) -> bool {
        let route = self.routes.of(message.target.channel);
        let turn = usize::try_from(message.attempt_count).unwrap_or(usize::MAX);
        if route.len() < 2 || turn.is_multiple_of(route.len()) {
            return false;
        }
        let mut others = route.iter().filter(|index| Some(**index) != failed);
        others.any(|index| {
            waiting.may_go_to(*index, now)
                && self
                    .lanes
                    .get_mut(*index)
                    .is_some_and(|lane| !matches!(lane.standing(now), Standing::Down(_)))
        })
    }

    /// What a call says of the endpoint behind the provider.
    fn call_ended(&mut self, id: MessageId, news: &LaneNews, now: Timestamp) {
        let news = match news {
            LaneNews::Accepted | LaneNews::Works | LaneNews::Refused { .. } => PeerNews::Works,
            LaneNews::Endpoint { name, reason, detail, after } => PeerNews::Failed {
                name: Arc::clone(name),
                reason: *reason,
                detail: detail.clone(),
                after: *after,
            },
            LaneNews::Failed { .. } | LaneNews::Ours { .. } | LaneNews::Nothing => {
                PeerNews::Nothing
            }
        };
        match self.queue.call_ended(id, news, now) {
            None => {}
            Some((true, trouble)) => tracing::warn!(
                endpoint = %trouble.name, reason = %trouble.reason, detail = trouble.detail,
                until = %trouble.until,
                "an endpoint is left alone for a while; its messages are kept, others go on"
            ),
            Some((false, trouble)) => {
                tracing::info!(endpoint = %trouble.name, "the endpoint works again");
            }
        }
    }

    /// Says once that this machine lacks what it needs to ask anyone.
    fn own_news(&mut self, news: &LaneNews, now: Timestamp) {
        let LaneNews::Ours { detail } = news else { return };
        if self.wanting_at.replace(now).is_none() {
            tracing::error!(
                detail,
                "this machine has run out of open files, memory or ports; no provider is blamed, \
                 messages are kept and tried again: raise the limits (LimitNOFILE)"
            );
            self.context.metrics.out_of_resources.set(1);
        }
    }

    /// Says that it has it again, when no call has wanted for it for a while: calls that had begun
    /// before go on ending well meanwhile.
    fn end_wanting(&mut self, now: Timestamp) {
        if self.wanting_at.is_some_and(|at| now.since(at) >= WANTING_OVER_AFTER) {
            self.wanting_at = None;
            tracing::info!("this machine can ask its providers again");
            self.context.metrics.out_of_resources.set(0);
        }
    }

    /// Whether nobody outside can be connected to, where there are several: then it is this machine's
    /// network.
    fn is_cut_off(&self, now: Timestamp) -> bool {
        let outside = || self.lanes.iter().filter(|lane| lane.settings.kind != "phone");
        outside().count() > 1
            && outside().all(|lane| lane.state(now).1 == Some(Reason::ConnectFailed))
    }

    fn lane_news(&mut self, index: Option<usize>, news: LaneNews, now: Timestamp) {
        let Some(index) = index.filter(|index| *index < self.lanes.len()) else {
            return;
        };
        self.own_news(&news, now);
        let Some(lane) = self.lanes.get_mut(index) else { return };
        let before = lane.state(now).0;
        let change = lane.finish(news, now);
        let quiet = lane.state(now).0 == LaneState::Paused && !lane.says_pause(now);
        let is_cut_off = change == LaneChange::Closed && self.is_cut_off(now);
        let Some(lane) = self.lanes.get(index) else { return };
        let (state, reason, detail, until) = lane.state(now);
        let provider = &lane.settings.name;
        match change {
            LaneChange::None => {}
            LaneChange::Refuses => tracing::error!(
                %provider, warning = lane.warning().unwrap_or_default(),
                "the provider refuses messages for our account or configuration: look into it; they \
                 go on by other providers and channels"
            ),
            LaneChange::Opened => {
                tracing::info!(%provider, "the provider works again");
                self.queue.lane_opened(index, now);
            }
            LaneChange::Closed => {
                let reason = reason.unwrap_or(Reason::ProviderUnavailable);
                let (detail, until) = (detail.unwrap_or_default(), until.unwrap_or(now));
                match state {
                    // The same in a row is said once.
                    LaneState::Stopped if before == LaneState::Stopped => {
                        tracing::debug!(%provider, %reason, detail, %until, "still refused");
                    }
                    LaneState::Stopped => tracing::error!(
                        %provider, %reason, detail, next_probe = %until,
                        "the provider refuses our account or configuration: mend it; messages are kept"
                    ),
                    LaneState::BreakerOpen if before == LaneState::BreakerOpen => {
                        tracing::debug!(%provider, %reason, detail, %until, "still failing");
                    }
                    LaneState::Paused if quiet => {
                        tracing::debug!(%provider, %reason, detail, %until, "still paused");
                    }
                    _ if is_cut_off => tracing::error!(
                        %provider, %reason, detail,
                        "no provider can be connected to: this machine's network or name server is \
                         down; messages are kept"
                    ),
                    LaneState::Up | LaneState::Paused | LaneState::BreakerOpen => tracing::warn!(
                        %provider, %reason, detail, %until,
                        "the provider is left alone for a while; messages are kept"
                    ),
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Resume(name, answer) => {
                let known = self.lanes.iter().position(|lane| *lane.settings.name == *name);
                let result = known.ok_or(ControlError::NoProvider(name)).map(|index| {
                    if let Some(lane) = self.lanes.get_mut(index) {
                        lane.open();
                    }
                    self.queue.lane_opened(index, self.context.clock.now());
                });
                drop(answer.send(result));
            }
            // What the asker has read from disk is ahead of what has been heard here.
            Command::Retry(id, _) | Command::Cancel(id, _) if self.has_just_ended(id) => {
                self.early.push(command);
            }
            Command::Retry(id, answer) => {
                let rule = "only one that waits, failed, expired or was canceled can be sent again";
                self.change(id, answer, rule, |message, now| {
                    let again = matches!(message.status, Status::Queued | Status::Undelivered)
                        || message.status.advance(Status::Queued).is_some();
                    if !again {
                        return None;
                    }
                    let lifetime = message.expires_at.since(message.began_at());
                    // What had ended begins anew, and stands for itself; what waits goes on waiting.
                    if message.status.is_final() {
                        let fallback = message.fallback.get_or_insert_default();
                        (fallback.before, fallback.next) = (None, None);
                        (fallback.since, fallback.unheard_at) = (Some(now), None);
                        fallback.is_alone = true;
                    }
                    if message.expires_at <= now {
                        message.expires_at = now.plus(lifetime);
                    }
                    message.status = Status::Queued;
                    message.due_at = now;
                    message.updated_at = now;
                    message.detail = Some("put back by an operator".to_owned());
                    message.reason = None;
                    Some(Report::Waits {
                        message: Box::new(message.clone()),
                        elsewhere: Elsewhere::No,
                    })
                });
            }
            Command::Cancel(id, answer) => {
                let rule = "only one that waits can be canceled";
                self.change(id, answer, rule, |message, now| {
                    if message.status != Status::Queued {
                        return None;
                    }
                    let detail = "withdrawn before a provider took it".to_owned();
                    outcome::end(message, Status::Canceled, Reason::Canceled, detail, now);
                    Some(Report::Ended { follow_up: None, ended: Ended::Other })
                });
            }
        }
    }

    fn has_just_ended(&self, id: MessageId) -> bool {
        self.queue.is_taken(id) == Some(true)
            && matches!(self.context.store.message(id), Ok(Some(message)) if message.status.is_final())
    }

    /// Changes a row that no attempt has, and answers when the change is durable.
    fn change(
        &mut self,
        id: MessageId,
        answer: oneshot::Sender<Result<Message, ControlError>>,
        rule: &'static str,
        edit: impl FnOnce(&mut Message, Timestamp) -> Option<Report> + Send + 'static,
    ) {
        if self.queue.is_taken(id) == Some(true) {
            let rule = "an attempt is under way; ask again when it has ended";
            let status = Status::Sending;
            drop(answer.send(Err(ControlError::NotAllowed { id, status, rule })));
            return;
        }
        let mut message = match self.context.store.message(id) {
            Ok(Some(message)) => message,
            Ok(None) => return drop(answer.send(Err(ControlError::NotFound(id)))),
            Err(error) => return drop(answer.send(Err(error.into()))),
        };
        let status = message.status;
        let Some(report) = edit(&mut message, self.context.clock.now()) else {
            drop(answer.send(Err(ControlError::NotAllowed { id, status, rule })));
            return;
        };
        // Held until it is durable: an ended message that comes back is put in as taken.
        self.queue.put(Waiting::of(&message));
        self.queue.take(id);
        let store = self.context.store.clone();
        self.spawn(vec![id], None, async move {
            let mut op = Op::new();
            op.put_message(&message);
            match store.commit(vec![op]).await {
                Ok(()) => {
                    drop(answer.send(Ok(message)));
                    (report, LaneNews::Nothing)
                }
                Err(_) => (Report::Lost, LaneNews::Nothing),
            }
        });
    }

    /// Publishes what others may see: counts, lanes, gauges.
    fn show(&self, now: Timestamp) {
        self.context.ended_unsent.say_counts(false);
        let inbox = {
            let inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes: u64 = inbox.iter().map(|waiting| u64::from(waiting.bytes)).sum();
            // Under the lock, or what is added meanwhile would not be counted.
            self.shared.waiting.store(self.queue.len() + inbox.len(), Ordering::Relaxed);
            self.shared.waiting_bytes.store(self.queue.bytes() + bytes, Ordering::Relaxed);
            inbox.len()
        };
        let metrics = &self.context.metrics;
        metrics.outbox_messages.set(i64::try_from(self.queue.len() + inbox).unwrap_or(i64::MAX));
        let oldest_at = self.queue.oldest_at();
        *self.shared.oldest_at.lock().unwrap_or_else(PoisonError::into_inner) = oldest_at;
        metrics.outbox_oldest.set(oldest_at.map_or(0, |at| at.wall().as_secs()));
        let unreached = self.context.unreached.count();
        metrics.contacts_unreached.set(i64::try_from(unreached).unwrap_or(i64::MAX));
        let lanes: Vec<LaneStatus> =
            self.lanes.iter().map(|lane| self.lane_status(lane, now)).collect();
        for lane in &lanes {
            let label = ByProvider { provider: lane.provider.to_string() };
            let stopped = i64::from(lane.state == LaneState::Stopped);
            metrics.provider_stopped.get_or_create(&label).set(stopped);
            let broken = i64::from(lane.state == LaneState::BreakerOpen);
            metrics.provider_breaker_open.get_or_create(&label).set(broken);
            let in_flight = i64::try_from(lane.in_flight).unwrap_or(i64::MAX);
            metrics.attempts_in_flight.get_or_create(&label).set(in_flight);
        }
        *self.shared.lanes.write().unwrap_or_else(PoisonError::into_inner) = lanes;
    }

    fn lane_status(&self, lane: &Lane, now: Timestamp) -> LaneStatus {
        let (state, reason, detail, until) = lane.state(now);
        let channels = &lane.settings.channels;
        LaneStatus {
            provider: Arc::clone(&lane.settings.name),
            kind: lane.settings.kind,
            channels: channels.clone(),
            state,
            reason,
            detail: detail.map(str::to_owned),
            until,
            in_flight: lane.in_flight,
            ready: channels.iter().map(|channel| self.queue.ready_on(*channel)).sum(),
            warning: lane.warning(),
            endpoints: self.endpoints(channels, now),
        }
    }

    fn endpoints(&self, channels: &[Channel], now: Timestamp) -> Vec<EndpointStatus> {
        let status = |(trouble, waiting): (Trouble, usize)| EndpointStatus {
            name: trouble.name,
            state: trouble.state,
            reason: trouble.reason,
            detail: trouble.detail,
            until: trouble.until,
            waiting,
        };
        self.queue.troubles(channels, now).into_iter().map(status).collect()
    }
}
