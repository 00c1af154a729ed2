//! From a publish, or from time that passes, to rows and messages: the rules engine and the notifier
//! as one, without a clock, a store or a thread.
//!
//! Used by the intake's thread, by `watchbell test` and by `watchbell replay`, so that what a test
//! shows is what happens.
//!
//! Invariant: all that a call caused is in the one operation it was given, and in what it returns.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use super::ruleset::RuleSet;
use super::troubles::Troubles;
use crate::clock::Timestamp;
use crate::model::tell::{Ack, News, Said, Step};
use crate::model::{Alert, AlertId, AlertState, IdSource, Message, Publish, Reason, partition};
use crate::notify;
use crate::notify::book::Book;
use crate::notify::notifier::{Firing, Notifier, Outcome, Sources, Texts};
use crate::notify::row::{Row, RowChange};
use crate::notify::silence::{BadSilence, Silence};
use crate::payload::sparkplug;
use crate::rules;
use crate::rules::engine::{Adopted, Effects, Engine, Failure, Touched};
use crate::rules::instance::Instance;
use crate::rules::life::Away;
use crate::rules::set::{Matched, Rules};
use crate::store::Op;
use crate::store::keys::Table;

/// So many rows lie between two seams.
const PIECE: usize = 64;

/// Rules and telling.
#[derive(Debug)]
pub struct Pipeline {
    engine: Engine,
    notifier: Notifier,
    troubles: Troubles,
}

/// What a call caused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caused {
    /// What happened to alerts.
    pub news: Vec<News>,
    /// Messages, queued and due now.
    pub messages: Vec<Message>,
    /// What was decided besides.
    pub steps: Vec<Step>,
    /// Rules that came to no result.
    pub failures: Vec<Failure>,
    /// Rules that did not look at the publish, and why.
    pub passed: Vec<(Arc<str>, Reason)>,
}

impl Pipeline {
    /// Nothing fires, and nobody was told anything.
    pub fn new(
        ids: IdSource,
        rules: &rules::Config,
        notify: &notify::Config,
        expires_in: Duration,
    ) -> Self {
        Self {
            engine: Engine::new(ids, rules),
            notifier: Notifier::new(notify, expires_in),
            troubles: Troubles::default(),
        }
    }

    /// Puts back an instance that was stored.
    pub fn restore_instance(&mut self, instance: Instance) {
        self.engine.restore(instance);
    }

    /// Puts back a row of telling that was stored.
    pub fn restore_telling(&mut self, row: Row) {
        self.notifier.restore(row);
    }

    /// Fits what was restored, or is there, to a rule set, and lets pass the time in which nothing
    /// ran. At the start after the last row, with when the last run was last alive; at a reload
    /// without. The operation has seams: what a crash leaves undone is done by the next start.
    pub fn adopt(
        &mut self,
        set: &RuleSet,
        stopped_at: Option<Timestamp>,
        now: Timestamp,
        op: &mut Op,
    ) -> (Caused, Adopted) {
        let (pieces, adopted) = self.engine.adopt(&set.rules, now);
        if let Some(stopped_at) = stopped_at {
            self.engine.resume(&set.rules, Away { from: stopped_at, until: now });
        }
        let engine = &self.engine;
        let firing = engine.instances().filter_map(|instance| {
            let policy = &set.rules.by_name(&instance.rule)?.policy;
            Some(Firing { alert: instance.alert()?, policy, ack: instance.ack.as_deref() })
        });
        let flaps =
            |rule: &str, key: &str| engine.instance(rule, key).is_some_and(Instance::is_flapping);
        self.notifier.adopt(&set.book, firing, flaps);
        let mut caused = Caused::default();
        for effects in pieces {
            caused.add(self.settle(set, effects, now, op));
            op.seam();
        }
        let texts = Anew::of(&self.engine, &set.rules);
        let outcome = self.notifier.reconsider(texts.with(&set.book), now);
        caused.failures.extend(texts.failures.into_inner());
        take_in_pieces(&mut caused, outcome, op);
        // Of what is held, repeated, or in a row from before readings were kept.
        let notifier = &self.notifier;
        self.engine.retell_where(|alert| notifier.tale(alert).is_some());
        (caused, adopted)
    }

    /// Nothing ran between `before` and `now`, and nobody could be heard.
    pub fn stood_still(&mut self, set: &RuleSet, before: Timestamp, now: Timestamp) {
        self.engine.resume(&set.rules, Away { from: before, until: now });
    }

    /// The wall clock was set: what is held until a time on it is looked at anew.
    pub fn clock_stepped(&mut self, set: &RuleSet, now: Timestamp, op: &mut Op) -> Caused {
        let texts = Anew::of(&self.engine, &set.rules);
        let outcome = self.notifier.clock_stepped(texts.with(&set.book), now);
        let mut caused = Caused { failures: texts.failures.into_inner(), ..Caused::default() };
        take_in_pieces(&mut caused, outcome, op);
        caused
    }

    /// A publish that rules of this set match.
    pub fn publish(
        &mut self,
        set: &RuleSet,
        matched: &Matched,
        publish: &Publish,
        now: Timestamp,
        op: &mut Op,
    ) -> Caused {
        let effects = self.engine.handle(&set.rules, matched, publish, now);
        self.troubles.note(&effects.failures, Some(&publish.topic), now);
        self.settle(set, effects, now, op)
    }

    /// When [`Pipeline::wake`] has something to do next.
    pub fn due(&self) -> Option<Timestamp> {
        [self.engine.due(), self.notifier.due()].into_iter().flatten().min()
    }

    /// Does what is due. It may leave some for the next call: [`Pipeline::due`] says so. The operation
    /// has seams: what a crash leaves undone is due at the next start.
    pub fn wake(&mut self, set: &RuleSet, now: Timestamp, op: &mut Op) -> Caused {
        let effects = self.engine.wake(&set.rules, now);
        self.troubles.note(&effects.failures, None, now);
        let mut caused = self.settle(set, effects, now, op);
        let is_due = |due: Option<Timestamp>| due.is_some_and(|due| due <= now);
        // What fires at the same time is told with what is told then.
        if !is_due(self.engine.due()) && is_due(self.notifier.due()) {
            let texts = Anew::of(&self.engine, &set.rules);
            let outcome = self.notifier.wake(texts.with(&set.book), now);
            let failures = texts.failures.into_inner();
            self.troubles.note(&failures, None, now);
            caused.failures.extend(failures);
            op.seam();
            take_in_pieces(&mut caused, outcome, op);
        }
        caused
    }

    /// Somebody takes care of an alert. `None`: there is no such alert, or it no longer fires.
    pub fn acknowledge(
        &mut self,
        set: &RuleSet,
        alert: AlertId,
        ack: Ack,
        now: Timestamp,
        op: &mut Op,
    ) -> Option<Caused> {
        let effects = self.engine.acknowledge(&set.rules, alert, ack)?;
        Some(self.settle(set, effects, now, op))
    }

    /// An instance is forgotten. `None`: there is no such instance.
    pub fn forget(
        &mut self,
        set: &RuleSet,
        alert: AlertId,
        now: Timestamp,
        op: &mut Op,
    ) -> Option<Caused> {
        let effects = self.engine.forget(&set.rules, alert, now)?;
        Some(self.settle(set, effects, now, op))
    }

    /// Adds a silence, or replaces the one of the same id.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn add_silence(
        &mut self,
        set: &RuleSet,
        silence: Silence,
        now: Timestamp,
        op: &mut Op,
    ) -> Result<Caused, BadSilence> {
        let texts = Anew::of(&self.engine, &set.rules);
        let outcome = self.notifier.add_silence(texts.with(&set.book), silence, now)?;
        let failures = texts.failures.into_inner();
        let mut caused = Caused { failures, ..Caused::default() };
        take(&mut caused, outcome, op);
        Ok(caused)
    }

    /// Ends the silence of that id or name; `None` if there is none.
    pub fn end_silence(
        &mut self,
        set: &RuleSet,
        id: &str,
        now: Timestamp,
        op: &mut Op,
    ) -> Option<Caused> {
        let texts = Anew::of(&self.engine, &set.rules);
        let outcome = self.notifier.end_silence(texts.with(&set.book), id, now)?;
        let failures = texts.failures.into_inner();
        let mut caused = Caused { failures, ..Caused::default() };
        take(&mut caused, outcome, op);
        Some(caused)
    }

    /// How many silences are in force, those of operators and those of files.
    pub fn silences_in_force(&self, set: &RuleSet, now: Timestamp) -> usize {
        let of_files = set.book.silences.iter().filter(|silence| silence.until(now).is_some());
        let of_operators = self.notifier.silences().filter(|silence| silence.is_active(now));
        of_files.count() + of_operators.count()
    }

    /// Writes instances whose rows are older than they are, at most `limit`. How many it were.
    pub fn checkpoint(&mut self, limit: usize, op: &mut dyn FnMut(Op)) -> usize {
        let due = self.engine.checkpoint(limit);
        for (rule, key) in &due {
            if let Some(instance) = self.engine.instance(rule, key) {
                let mut one = Op::new();
                put_instance(&mut one, instance);
                op(one);
            }
        }
        for (id, node) in self.engine.changed_nodes() {
            let mut one = Op::new();
            let (place, rest) = (partition("", &id), id.as_bytes());
            match node {
                Some(node) => one.put_row(Table::Memory, place, rest, &(&id, node)),
                None => one.remove_row(Table::Memory, place, rest),
            }
            op(one);
        }
        due.len()
    }

    /// Takes for written whatever the next checkpoint would write: for those who keep no rows, whose
    /// lists of what is to be written would grow without an end.
    pub fn discard_unsaved(&mut self) {
        self.engine.checkpoint(usize::MAX);
        self.engine.changed_nodes();
    }

    /// Puts back what was stored of a Sparkplug node.
    pub fn restore_node(&mut self, (id, node): (String, sparkplug::Node)) {
        self.engine.restore_node(&id, node);
    }

    /// The instances and what fires.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The same, to be told to note coverage.
    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// What rules came to no result on.
    pub fn troubles(&self) -> &Troubles {
        &self.troubles
    }

    /// Who was told what.
    pub fn notifier(&self) -> &Notifier {
        &self.notifier
    }

    fn settle(&mut self, set: &RuleSet, effects: Effects, now: Timestamp, op: &mut Op) -> Caused {
        let mut caused =
            Caused { failures: effects.failures, passed: effects.passed, ..Caused::default() };
        let texts = Anew::of(&self.engine, &set.rules);
        for news in &effects.news {
            let outcome = self.notifier.handle(texts.with(&set.book), news, now);
            take(&mut caused, outcome, op);
        }
        for (rule, key) in &effects.steadied {
            let outcome = self.notifier.steadied(texts.with(&set.book), rule, key, now);
            take(&mut caused, outcome, op);
        }
        caused.failures.extend(texts.failures.into_inner());
        let mut readings = effects.readings;
        for News { alert, .. } in &effects.news {
            // Of what was told in full at once nothing need be kept.
            if self.notifier.tale(alert.id).is_some() {
                let reading = readings.iter().position(|(id, _)| *id == alert.id);
                let reading = reading.map(|place| readings.swap_remove(place).1);
                self.engine.retell(alert, reading);
            }
        }
        for touched in &effects.touched {
            match touched {
                Touched::Put(rule, key) => {
                    if let Some(instance) = self.engine.instance(rule, key) {
                        put_instance(op, instance);
                    }
                }
                Touched::Remove(id) => {
                    op.remove_row(Table::Instance, id.partition(), id.as_uuid().as_bytes());
                }
            }
        }
        caused.news = effects.news;
        caused
    }
}

/// The engine as the notifier asks it, and what could not be rendered for it.
struct Anew<'a> {
    engine: &'a Engine,
    rules: &'a Rules,
    failures: RefCell<Vec<Failure>>,
}

impl<'a> Anew<'a> {
    fn of(engine: &'a Engine, rules: &'a Rules) -> Self {
        Self { engine, rules, failures: RefCell::default() }
    }

    fn with<'s>(&'s self, book: &'s Book) -> Sources<'s> {
        Sources { book, texts: Some(self) }
    }
}

impl Texts for Anew<'_> {
    fn of(&self, alert: &Alert, now: Timestamp) -> Option<Said> {
        let (said, failures) = self.engine.say(self.rules, alert, now)?;
        self.failures.borrow_mut().extend(failures);
        Some(said)
    }
}

fn put_instance(op: &mut Op, instance: &Instance) {
    let id = instance.id;
    op.put_row(Table::Instance, id.partition(), id.as_uuid().as_bytes(), instance);
}

fn take(caused: &mut Caused, outcome: Outcome, op: &mut Op) {
    put_messages(&outcome.messages, op);
    outcome.rows.iter().for_each(|change| put_telling(change, op));
    outcome.steps.iter().for_each(|step| op.put_step(step));
    caused.steps.extend(outcome.steps);
    caused.messages.extend(outcome.messages);
}

/// What thousands of alerts come to when a hold ends. The messages are first: what a crash cuts off
/// after them is told again, and what it cuts off before them is told then.
fn take_in_pieces(caused: &mut Caused, outcome: Outcome, op: &mut Op) {
    put_messages(&outcome.messages, op);
    for rows in outcome.rows.chunks(PIECE) {
        rows.iter().for_each(|change| put_telling(change, op));
        op.seam();
    }
    for steps in outcome.steps.chunks(PIECE) {
        steps.iter().for_each(|step| op.put_step(step));
        op.seam();
    }
    caused.steps.extend(outcome.steps);
    caused.messages.extend(outcome.messages);
}

fn put_messages(messages: &[Message], op: &mut Op) {
    messages.iter().for_each(|message| op.put_new_message(message));
}

fn put_telling(change: &RowChange, op: &mut Op) {
    match change {
        RowChange::Put(row) => {
            let id = row.id();
            op.put_row(Table::Telling, id.partition(), &id.bytes(), row);
        }
        RowChange::Remove(id) => op.remove_row(Table::Telling, id.partition(), &id.bytes()),
    }
}

impl Caused {
    fn add(&mut self, more: Self) {
        self.news.extend(more.news);
        self.messages.extend(more.messages);
        self.steps.extend(more.steps);
        self.failures.extend(more.failures);
        self.passed.extend(more.passed);
    }

    /// How many alerts began to fire, and how many ended.
    pub fn counts(&self) -> (u64, u64) {
        use crate::model::tell::Turn;
        let count = |wanted: AlertState| {
            let is = |news: &&News| {
                matches!(news.turn, Turn::Raised | Turn::Cleared) && news.alert.state == wanted
            };
            self.news.iter().filter(is).count() as u64
        };
        (count(AlertState::Firing), count(AlertState::Cleared))
    }
}
