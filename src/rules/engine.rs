//! Which instances fire: one publish or one point in time in, what changes out.
//!
//! An instance is a rule and a key. It is kept from the publish on that something must be remembered
//! of: a level that holds, a window, when it was heard of. Only edges are told: a condition that goes
//! on holding says nothing.
//!
//! Invariant: `handle` and `wake` have changed the state by the time they return. A caller that cannot
//! make the effects durable must not go on, or the alert would be known here and nowhere else.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::Config;
use super::instance::{Instance, Last};
use super::life::{Away, Life};
use super::run::Run;
use super::set::{Matched, OnDowntime, Replayed, Rule, Rules};
use crate::clock::Timestamp;
use crate::model::tell::{Ack, News, Policy, Said, Turn};
use crate::model::{Alert, AlertId, IdSource, Publish, Reason};
use crate::payload::{self, Codec, Decode, Undecodable, Value, sparkplug};
use crate::topic::TopicName;

/// Most instances that one [`Engine::wake`] looks at, and of which [`Engine::adopt`] tells in one
/// piece: what comes of them is one operation of the store, which is made for small ones.
const PIECE: usize = 32;
/// Undecodable payloads that are kept of each rule, to be looked at, and the bytes of each.
const SAMPLES: (usize, usize) = (5, 256);
/// Of so many rules.
const SAMPLED_RULES_MAX: usize = 1_000;

/// What a publish, or time, caused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Effects {
    /// Alerts that changed, in the order of the rules.
    pub news: Vec<News>,
    /// What those that fire were told of, where their rules remember nothing: for
    /// [`Engine::retell`], where something of them is told later or again.
    pub readings: Vec<(AlertId, Last)>,
    /// Rules that could not come to a result.
    pub failures: Vec<Failure>,
    /// Rules that did not look at the publish, and why.
    pub passed: Vec<(Arc<str>, Reason)>,
    /// Rows to be written before the publish is acknowledged, in order; of an instance the last
    /// counts.
    pub touched: Vec<Touched>,
    /// Instances, by rule and key, that were flapping and are gone without news.
    pub steadied: Vec<(Arc<str>, Arc<str>)>,
}

/// A row to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// The instance of this rule and key, as it now is.
    Put(Arc<str>, Arc<str>),
    /// The row at this address goes.
    Remove(AlertId),
}

/// A rule that did not come to a result on a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rule's name.
    pub rule: Arc<str>,
    /// Undecodable payload, failed expression, failed template, or too many instances.
    pub reason: Reason,
    /// In words; never anything of the payload.
    pub detail: String,
}

/// A payload that a rule could not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it came.
    pub at: Timestamp,
    /// On which topic.
    pub topic: TopicName,
    /// Its first bytes.
    pub head: Vec<u8>,
    /// How many bytes it had.
    pub bytes: usize,
    /// Why it could not be decoded.
    pub detail: String,
}

/// What an evaluation exercised: the rule, the clause, and what came out.
pub type Exercised = (Arc<str>, String, bool);

/// What a new rule set meant for the instances.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// How many instances went on as they were.
    pub kept: usize,
    /// Rules that had instances and now mean something else.
    pub changed: Vec<Arc<str>>,
    /// Rules that had instances and are gone.
    pub removed: Vec<Arc<str>>,
}

/// The instances of one rule by key. It stays where the last has gone, until the next rule set.
type Keys = HashMap<Arc<str>, Box<Instance>, RandomState>;

/// How many instances fire, and how many are about to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// They fire.
    pub firing: usize,
    /// They do not, and a clock runs that will raise them.
    pub pending: usize,
}

impl Tally {
    /// Counts an instance that is put in. Its level changes only while it is out.
    fn add(&mut self, instance: &Instance) {
        match instance.life.level() {
            Some(_) => self.firing += 1,
            None => self.pending += usize::from(instance.life.pending_since().is_some()),
        }
    }

    /// Counts one that is taken out no more.
    fn remove(&mut self, instance: &Instance) {
        match instance.life.level() {
            Some(_) => self.firing -= 1,
            None => self.pending -= usize::from(instance.life.pending_since().is_some()),
        }
    }
}

/// The state of every instance.
#[derive(Debug)]
pub struct Engine {
    pub(super) ids: IdSource,
    instances_max: usize,
    /// By rule, then by key. Keyed by names, so that it outlives a reload.
    instances: HashMap<Arc<str>, Keys, RandomState>,
    len: usize,
    tally: Tally,
    /// When which instance is to be looked at. An entry may be early: the instance knows better.
    timers: BTreeSet<(Timestamp, Arc<str>, Arc<str>)>,
    dirty: VecDeque<(Arc<str>, Arc<str>)>,
    samples: HashMap<Arc<str>, VecDeque<Sample>>,
    /// What the births of Sparkplug nodes said.
    nodes: sparkplug::Book,
    exercised: Option<HashSet<Exercised>>,
    /// Where keys are put together.
    pub(super) key: String,
}

impl Engine {
    /// Nothing fires.
    pub fn new(ids: IdSource, config: &Config) -> Self {
        Self {
            ids,
            instances_max: config.instances_max,
            instances: HashMap::default(),
            len: 0,
            tally: Tally::default(),
            timers: BTreeSet::new(),
            dirty: VecDeque::new(),
            samples: HashMap::new(),
            nodes: sparkplug::Book::new(sparkplug::Room::default()),
            exercised: None,
            key: String::new(),
        }
    }

    /// Notes from now on what is exercised, for the coverage of tests.
    pub fn note_exercised(&mut self) {
        self.exercised.get_or_insert_default();
    }

    /// What was exercised since [`Engine::note_exercised`].
    pub fn exercised(&self) -> impl Iterator<Item = &Exercised> {
        self.exercised.iter().flatten()
    }

    /// Puts back an instance that was stored. Not held to the limit: it was within it once. After
    /// the last, [`Engine::adopt`] and [`Engine::resume`].
    pub fn restore(&mut self, mut instance: Instance) {
        instance.upgrade();
        instance.is_stored = true;
        self.put(Box::new(instance));
    }

    /// How many instances there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many of them fire, and how many are about to.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Every instance, in no order.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values().flat_map(HashMap::values).map(AsRef::as_ref)
    }

    /// The instances of one rule, in no order.
    pub fn instances_of(&self, rule: &str) -> impl Iterator<Item = &Instance> {
        self.instances.get(rule).into_iter().flat_map(HashMap::values).map(AsRef::as_ref)
    }

    /// One instance.
    pub fn instance(&self, rule: &str, key: &str) -> Option<&Instance> {
        self.instances.get(rule)?.get(key).map(AsRef::as_ref)
    }

    /// Every alert that fires, in no order.
    pub fn firing(&self) -> impl Iterator<Item = Alert> {
        self.instances().filter_map(Instance::alert)
    }

    /// Payloads that this rule could not decode, oldest first.
    pub fn samples(&self, rule: &str) -> impl Iterator<Item = &Sample> {
        self.samples.get(rule).into_iter().flatten()
    }

    /// Runs the rules that match a publish. `matched` must come from `rules`.
    pub fn handle(
        &mut self,
        rules: &Rules,
        matched: &Matched,
        publish: &Publish,
        now: Timestamp,
    ) -> Effects {
        let mut effects = Effects::default();
        // Decoded once a codec, however many rules match.
        let mut decoded: Vec<(&Codec, Result<Value, Undecodable>)> = Vec::new();
        for rule in rules.matched(matched) {
            if !is_meant(rule, publish) {
                continue;
            }
            if publish.replayed && rule.replayed == Replayed::Ignore {
                effects.passed.push((Arc::clone(&rule.name), Reason::Replayed));
                continue;
            }
            let position = decoded.iter().position(|(codec, _)| **codec == rule.codec);
            let position = position.unwrap_or_else(|| {
                let value = self.decode(&rule.codec, publish, rules.payload_limits, now);
                decoded.push((&rule.codec, value));
                decoded.len() - 1
            });
            let Some((_, payload)) = decoded.get(position) else { continue };
            match payload {
                Ok(payload) => {
                    Run { engine: self, rules, rule, now, effects: &mut effects }
                        .publish(publish, payload);
                }
                Err(error) => {
                    let detail = error.to_string();
                    self.sample(rule, publish, &detail, now);
                    let reason = Reason::UndecodablePayload;
                    effects.failures.push(Failure { rule: Arc::clone(&rule.name), reason, detail });
                }
            }
        }
        effects
    }

    fn decode(
        &mut self,
        codec: &Codec,
        publish: &Publish,
        limits: payload::Limits,
        now: Timestamp,
    ) -> Result<Value, Undecodable> {
        if codec.how != Decode::Sparkplug {
            return payload::decode(codec, &publish.payload, limits, now);
        }
        let bytes = payload::inflated(codec, &publish.payload, limits)?;
        self.nodes.read(publish.topic.as_str(), &bytes, limits, now)
    }

    /// Births and deaths of Sparkplug nodes since the last call, to be stored; `None`: the node is
    /// no longer known.
    pub fn changed_nodes(&mut self) -> Vec<(String, Option<sparkplug::Node>)> {
        self.nodes.changed()
    }

    /// Puts back a Sparkplug node that was stored.
    pub fn restore_node(&mut self, id: &str, node: sparkplug::Node) {
        self.nodes.restore(id, node);
    }

    /// When [`Engine::wake`] has something to do next.
    pub fn due(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, ..)| *at)
    }

    /// Lets time pass for the instances that wait for it. It may leave some for the next call:
    /// [`Engine::due`] says so.
    pub fn wake(&mut self, rules: &Rules, now: Timestamp) -> Effects {
        let mut effects = Effects::default();
        for _ in 0..PIECE {
            if self.timers.first().is_none_or(|(at, ..)| *at > now) {
                break;
            }
            let Some((_, name, key)) = self.timers.pop_first() else { break };
            if let Some(mut instance) = self.take(&name, &key) {
                instance.timer = None;
                match rules.by_name(&name) {
                    Some(rule) => {
                        Run { engine: self, rules, rule, now, effects: &mut effects }
                            .time(instance);
                    }
                    None => self.put(instance),
                }
            }
        }
        effects
    }

    /// Somebody takes care of an alert. `None`: there is no such alert, or it no longer fires.
    pub fn acknowledge(&mut self, rules: &Rules, id: AlertId, ack: Ack) -> Option<Effects> {
        let (name, key) = self.find(id)?;
        let rule = rules.by_name(&name)?;
        let instance = self.instances.get_mut(&name)?.get_mut(&key)?;
        let alert = instance.alert()?;
        instance.ack = Some(Box::new(ack.clone()));
        let news = News {
            alert,
            turn: Turn::Acknowledged(ack),
            title: None,
            unrendered: None,
            policy: Arc::clone(&rule.policy),
        };
        Some(Effects {
            news: vec![news],
            touched: vec![Touched::Put(name, key)],
            ..Effects::default()
        })
    }

    /// Something of the alert of this instance is told later, or again: what it is told of is kept
    /// from now on. Before the instance is written.
    pub fn retell(&mut self, alert: &Alert, reading: Option<Last>) {
        let keys = self.instances.get_mut(&alert.rule);
        let Some(instance) = keys.and_then(|keys| keys.get_mut(&alert.key)) else { return };
        if instance.id == alert.id && instance.life.level().is_some() {
            instance.is_retold = true;
            if let Some(reading) = reading {
                instance.memory_mut().decided = Some(Box::new(reading));
            }
        }
    }

    /// The same for all alerts that fire and are told so, as at a start: from their next readings on.
    pub fn retell_where(&mut self, is_told: impl Fn(AlertId) -> bool) {
        for instance in self.instances.values_mut().flat_map(HashMap::values_mut) {
            instance.is_retold |= instance.life.level().is_some() && is_told(instance.id);
        }
    }

    /// What an alert that fires says now, of the newest reading that its rule came to a result on, and
    /// what could not be rendered. `None`: there is no such reading, or no such alert.
    pub fn say(
        &self,
        rules: &Rules,
        alert: &Alert,
        now: Timestamp,
    ) -> Option<(Said, Vec<Failure>)> {
        let instance = self.instance(&alert.rule, &alert.key)?;
        let is_it = instance.id == alert.id && instance.life.level() == Some(alert.severity);
        super::run::say(rules, rules.by_name(&alert.rule)?, instance, now).filter(|_| is_it)
    }

    /// An operator has an instance forgotten; nobody is told. One that is expected is waited for from
    /// now on. `None`: there is no such instance.
    pub fn forget(&mut self, rules: &Rules, id: AlertId, now: Timestamp) -> Option<Effects> {
        let (name, key) = self.find(id)?;
        let instance = self.take(&name, &key)?;
        let mut effects = Effects::default();
        let rule = rules.by_name(&name);
        let policy = rule.map(|rule| Arc::clone(&rule.policy));
        drop_instance(&instance, policy, Reason::Forgotten, now, &mut effects);
        if let Some(rule) = rule
            && let Some(expected) = rule.silent.as_ref().and_then(|silent| silent.expected(&key))
        {
            Run { engine: self, rules, rule, now, effects: &mut effects }.expect(expected);
        }
        Some(effects)
    }

    fn find(&self, id: AlertId) -> Option<(Arc<str>, Arc<str>)> {
        let found = self.instances().find(|instance| instance.id == id)?;
        Some((Arc::clone(&found.rule), Arc::clone(&found.key)))
    }

    /// Fits the instances to `rules`: those of rules that mean what they meant go on, those of
    /// others begin anew (what fires goes on firing, where the rule can still hear of it), those of
    /// rules that are gone end without a word. At the start, after the last [`Engine::restore`], and
    /// at each reload.
    ///
    /// What comes of it is in pieces, each of which is to be written whole. An instance that only
    /// begins anew is in none: the next checkpoints write it, and until then its row says what its
    /// rule meant, so that a start finds that it is to begin anew.
    pub fn adopt(&mut self, rules: &Rules, now: Timestamp) -> (Vec<Effects>, Adopted) {
        let (mut pieces, mut adopted) = (Pieces::default(), Adopted::default());
        self.instances.retain(|_, keys| !keys.is_empty());
        let mut names: Vec<Arc<str>> = self.instances.keys().cloned().collect();
        names.sort();
        // Made as a whole: for a million timers this takes a third of the time and half of the room.
        let mut timers = Vec::new();
        for name in names {
            let Some(mut keys) = self.instances.remove(&name) else { continue };
            self.len -= keys.len();
            keys.values().for_each(|instance| self.tally.remove(instance));
            let Some(rule) = rules.by_name(&name) else {
                for instance in keys.values() {
                    drop_instance(instance, None, Reason::RuleRemoved, now, pieces.next());
                }
                adopted.removed.push(name);
                continue;
            };
            let mut is_changed = false;
            keys.retain(|_, instance| {
                instance.put_right(now);
                if instance.meaning == rule.meaning {
                    adopted.kept += 1;
                } else {
                    // Rows from before there were meanings are taken as they are.
                    is_changed |= instance.meaning != 0;
                    if !begin_anew(instance, rule, &mut self.ids, now, pieces.next()) {
                        return false;
                    }
                    mark(&mut self.dirty, instance);
                }
                if instance.untold && !rule.is_shadow() {
                    go_live(instance, rule, pieces.next());
                }
                instance.timer = super::run::due(rule, instance);
                let entry = |at| (at, Arc::clone(&instance.rule), Arc::clone(&instance.key));
                timers.extend(instance.timer.map(entry));
                true
            });
            self.len += keys.len();
            keys.values().for_each(|instance| self.tally.add(instance));
            self.instances.insert(Arc::clone(&name), keys);
            if is_changed {
                adopted.changed.push(name);
            }
        }
        self.timers = timers.into_iter().collect();
        for rule in rules.rules() {
            for expected in rule.expected() {
                let mut run = Run { engine: self, rules, rule, now, effects: pieces.next() };
                if !run.expect(expected) {
                    break;
                }
            }
        }
        (pieces.0, adopted)
    }

    /// Says that nobody could hear a device for a while. After [`Engine::adopt`].
    ///
    /// Where it is not known to the second when the process ended, that is in favour of the device:
    /// what was heard, or began, after the last sign of life counts from now on.
    pub fn resume(&mut self, rules: &Rules, away: Away) {
        if away.until <= away.from {
            return;
        }
        for rule in rules.rules() {
            if rule.on_downtime == OnDowntime::Count {
                continue;
            }
            let Some(keys) = self.instances.get_mut(&rule.name) else { continue };
            let mut keys = std::mem::take(keys);
            for instance in keys.values_mut() {
                match rule.on_downtime {
                    OnDowntime::Count => {}
                    OnDowntime::Pause => instance.life.pause(away),
                    OnDowntime::Reset => instance.life.restart(away.until),
                }
                let silent = instance.silent_since();
                if silent < away.until {
                    instance.silent_from = Some(match rule.on_downtime {
                        OnDowntime::Reset => away.until,
                        OnDowntime::Count | OnDowntime::Pause => away.left_out_of(silent),
                    });
                }
                self.mark(instance);
                self.unschedule(instance);
                self.schedule(rule, instance);
            }
            self.instances.insert(Arc::clone(&rule.name), keys);
        }
    }

    /// Instances whose rows are older than they are, at most `limit`; they count as written.
    pub fn checkpoint(&mut self, limit: usize) -> Vec<(Arc<str>, Arc<str>)> {
        let mut found = Vec::new();
        while found.len() < limit
            && let Some((name, key)) = self.dirty.pop_front()
        {
            let keys = self.instances.get_mut(&name);
            if let Some(instance) = keys.and_then(|keys| keys.get_mut(&key))
                && std::mem::take(&mut instance.is_dirty)
            {
                instance.is_stored = true;
                found.push((name, key));
            }
        }
        found
    }

    /// How many instances wait for the next checkpoint, at most.
    pub fn unsaved(&self) -> usize {
        self.dirty.len()
    }

    /// Whether another instance has room.
    pub(super) fn has_room(&self) -> bool {
        self.len < self.instances_max
    }

    pub(super) fn instances_max(&self) -> usize {
        self.instances_max
    }

    /// Whether the rule has any instance.
    pub(super) fn has_any(&self, rule: &str) -> bool {
        self.instances.get(rule).is_some_and(|keys| !keys.is_empty())
    }

    /// Takes an instance out, to be changed and put back.
    pub(super) fn take(&mut self, rule: &str, key: &str) -> Option<Box<Instance>> {
        let keys = self.instances.get_mut(rule)?;
        let instance = keys.remove(key)?;
        self.len -= 1;
        self.tally.remove(&instance);
        Some(instance)
    }

    pub(super) fn put(&mut self, instance: Box<Instance>) {
        self.tally.add(&instance);
        let keys = match self.instances.get_mut(&instance.rule) {
            Some(keys) => keys,
            None => self.instances.entry(Arc::clone(&instance.rule)).or_default(),
        };
        match keys.insert(Arc::clone(&instance.key), instance) {
            Some(replaced) => self.tally.remove(&replaced),
            None => self.len += 1,
        }
    }

    /// Has the instance written by the next checkpoint.
    pub(super) fn mark(&mut self, instance: &mut Instance) {
        mark(&mut self.dirty, instance);
    }

    /// Sees to it that the instance is looked at when it is due. One that is looked at too early
    /// costs less than a timer that moves with every publish.
    pub(super) fn schedule(&mut self, rule: &Rule, instance: &mut Instance) {
        let Some(due) = super::run::due(rule, instance) else { return };
        if instance.timer.is_some_and(|timer| timer <= due) {
            return;
        }
        let entry = |at| (at, Arc::clone(&instance.rule), Arc::clone(&instance.key));
        if let Some(timer) = instance.timer {
            self.timers.remove(&entry(timer));
        }
        self.timers.insert(entry(due));
        instance.timer = Some(due);
    }

    pub(super) fn unschedule(&mut self, instance: &mut Instance) {
        if let Some(timer) = instance.timer.take() {
            let (rule, key) = (Arc::clone(&instance.rule), Arc::clone(&instance.key));
            self.timers.remove(&(timer, rule, key));
        }
    }

    pub(super) fn exercise(&mut self, rule: &Rule, clause: impl Display, came_out: bool) {
        if let Some(exercised) = &mut self.exercised {
            exercised.insert((Arc::clone(&rule.name), clause.to_string(), came_out));
        }
    }

    fn sample(&mut self, rule: &Rule, publish: &Publish, detail: &str, now: Timestamp) {
        if self.samples.len() >= SAMPLED_RULES_MAX && !self.samples.contains_key(&rule.name) {
            return;
        }
        let samples = self.samples.entry(Arc::clone(&rule.name)).or_default();
        if samples.len() >= SAMPLES.0 {
            samples.pop_front();
        }
        samples.push_back(Sample {
            at: now,
            topic: publish.topic.clone(),
            head: publish.payload.iter().take(SAMPLES.1).copied().collect(),
            bytes: publish.payload.len(),
            detail: detail.to_owned(),
        });
    }
}

/// What comes of many instances, in pieces.
#[derive(Default)]
struct Pieces(Vec<Effects>);

impl Pieces {
    /// Where the next instance goes.
    fn next(&mut self) -> &mut Effects {
        let has_room = |piece: &Effects| piece.touched.len() + piece.news.len() < PIECE;
        if !self.0.last().is_some_and(has_room) {
            self.0.push(Effects::default());
        }
        self.0.last_mut().expect("one was pushed if there was none")
    }
}

fn mark(dirty: &mut VecDeque<(Arc<str>, Arc<str>)>, instance: &mut Instance) {
    if !std::mem::replace(&mut instance.is_dirty, true) {
        dirty.push_back((Arc::clone(&instance.rule), Arc::clone(&instance.key)));
    }
}

/// Whether a rule with `on` means this event: the third level of its topic.
fn is_meant(rule: &Rule, publish: &Publish) -> bool {
    rule.events.is_empty()
        || publish
            .topic
            .levels()
            .nth(2)
            .is_some_and(|event| rule.events.iter().any(|known| known.as_ref() == event))
}

/// The end of an alert of which nobody is told.
fn dropped(alert: Alert, policy: Option<Arc<Policy>>, reason: Reason, now: Timestamp) -> News {
    News {
        alert: Alert { changed_at: now, ..alert },
        turn: Turn::Dropped(reason),
        title: None,
        unrendered: None,
        policy: policy.unwrap_or_default(),
    }
}

/// The end of an instance of which nobody is told. `policy`: of its rule, if that is still there.
pub(super) fn drop_instance(
    instance: &Instance,
    policy: Option<Arc<Policy>>,
    reason: Reason,
    now: Timestamp,
    effects: &mut Effects,
) {
    match instance.alert() {
        Some(alert) => effects.news.push(dropped(alert, policy, reason, now)),
        None if instance.is_flapping() => {
            effects.steadied.push((Arc::clone(&instance.rule), Arc::clone(&instance.key)));
        }
        None => {}
    }
    if instance.is_stored {
        effects.touched.push(Touched::Remove(instance.id));
    }
}

/// Lets an instance go on under a rule that means something else. What fires goes on firing, if the
/// rule still has such a level and could hear that it is over. False: nothing is left of it.
fn begin_anew(
    instance: &mut Instance,
    rule: &Rule,
    ids: &mut IdSource,
    now: Timestamp,
    effects: &mut Effects,
) -> bool {
    let fits = super::run::fits(rule, instance);
    let fired = instance.alert();
    instance.life.forget_clocks(&rule.clocks);
    instance.memory = None;
    instance.meaning = rule.meaning;
    let stays = fits && (instance.life.level().is_some() || rule.needs.instance);
    let ended = fired.filter(|_| !fits || instance.life.level().is_none());
    let has_ended = ended.is_some();
    if let Some(alert) = ended {
        let policy = Some(Arc::clone(&rule.policy));
        effects.news.push(dropped(alert, policy, Reason::RuleChanged, now));
    }
    if instance.is_stored && (has_ended || !stays) {
        effects.touched.push(Touched::Remove(instance.id));
        instance.is_stored = false;
    }
    if has_ended && stays {
        instance.life = Life::default();
        instance.next_alert(AlertId::next(ids, now, &instance.rule, &instance.key));
        put(instance, effects);
    }
    if stays {
        instance.labels = super::run::labels_anew(rule, instance);
    }
    stays
}

/// Has the instance written with what else comes of it.
fn put(instance: &mut Instance, effects: &mut Effects) {
    instance.is_stored = true;
    effects.touched.push(Touched::Put(Arc::clone(&instance.rule), Arc::clone(&instance.key)));
}

/// Nobody was told of an alert because its rule was in shadow, and now it is not: it is as if it
/// began to fire.
fn go_live(instance: &mut Instance, rule: &Rule, effects: &mut Effects) {
    instance.untold = false;
    let Some(alert) = instance.alert() else { return };
    let policy = Arc::clone(&rule.policy);
    let turn = Turn::Raised;
    effects.news.push(News { alert, turn, title: None, unrendered: None, policy });
    put(instance, effects);
}
