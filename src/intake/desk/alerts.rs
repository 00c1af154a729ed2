//! Alerts that fire or are about to: looked up, acknowledged, forgotten.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::clock::{Timestamp, rfc_3339};
use crate::intake::pipeline::Pipeline;
use crate::intake::ruleset::RuleSet;
use crate::model::tell::Ack;
use crate::model::{AlertId, Channel, Message, MessageId, Reason, Severity, Status};
use crate::notify::hold::Hold;
use crate::notify::tale::{Knows, Tale};
use crate::rules::instance::Instance;
use crate::rules::set::Rule;

/// Where an alert stands, for those who look after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stand {
    /// It fires and nobody has acknowledged it.
    Firing,
    /// It fires and somebody takes care of it.
    Acknowledged,
    /// It will fire if what it is about goes on.
    Pending,
}

impl Stand {
    /// By its word.
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "firing" => Some(Self::Firing),
            "acknowledged" => Some(Self::Acknowledged),
            "pending" => Some(Self::Pending),
            _ => None,
        }
    }

    fn of(instance: &Instance) -> Option<Self> {
        if instance.life.level().is_some() && instance.fired_at.is_some() {
            return Some(if instance.ack.is_some() { Self::Acknowledged } else { Self::Firing });
        }
        instance.life.pending_since().map(|_| Self::Pending)
    }
}

/// Which alerts to list. Empty: all.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only those that stand so; empty for any.
    pub stands: Vec<Stand>,
    /// Only of this rule.
    pub rule: Option<String>,
    /// Only of this instance key.
    pub key: Option<String>,
    /// Only so urgent; empty for any.
    pub severities: Vec<Severity>,
    /// At most so many.
    pub limit: usize,
}

/// An alert as it stands.
#[derive(Clone, Debug, Serialize)]
pub struct AlertNow {
    /// Its id.
    pub id: AlertId,
    /// `firing`, `acknowledged` or `pending`.
    pub state: Stand,
    /// The rule's name.
    pub rule: Arc<str>,
    /// The instance key.
    pub key: Arc<str>,
    /// How urgent it is; of a pending one, how urgent it will be.
    pub severity: Severity,
    /// The captured levels of its topic.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// The topic of the publish that it is about.
    pub topic: Arc<str>,
    /// What it says; empty while it is pending.
    pub text: Arc<str>,
    /// Since when it fires, or is pending.
    #[serde(serialize_with = "rfc_3339::serialize")]
    pub since: Timestamp,
    /// When its level changed last.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub changed_at: Option<Timestamp>,
    /// When it will fire, rise or fall, if what is now goes on.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub next_at: Option<Timestamp>,
    /// When its instance was heard of last.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub seen_at: Option<Timestamp>,
    /// Who takes care of it.
    pub ack: Option<AckNow>,
    /// Its rule only counts what it would do.
    pub shadow: bool,
    /// Whom it concerns; empty while it is pending.
    pub told: Vec<ToldNow>,
}

/// That somebody takes care of an alert.
#[derive(Clone, Debug, Serialize)]
pub struct AckNow {
    /// Who.
    pub by: Arc<str>,
    /// When.
    #[serde(serialize_with = "rfc_3339::serialize")]
    pub at: Timestamp,
    /// In their words.
    pub note: Option<Arc<str>>,
}

/// What a contact was told of an alert.
#[derive(Clone, Debug, Serialize)]
pub struct ToldNow {
    /// Its name.
    pub contact: Arc<str>,
    /// What it was told last: a severity, or `over`; `null`: nothing.
    pub knows: Option<&'static str>,
    /// Why it is not told how it stands now.
    pub held: Option<HeldNow>,
    /// When it is told again.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub repeat_at: Option<Timestamp>,
    /// What became of the newest message to it that tells of this alert alone; `null` where there is
    /// none.
    pub message: Option<MessageNow>,
}

/// What became of a message.
#[derive(Clone, Debug, Serialize)]
pub struct MessageNow {
    /// Its id.
    pub id: MessageId,
    /// By which channel.
    pub channel: Channel,
    /// How it stands.
    pub status: Status,
    /// Why it waits or was lost.
    pub reason: Option<Reason>,
}

impl AlertNow {
    /// Notes what became of the messages that told of it.
    pub fn note(&mut self, messages: &[Message]) {
        for told in &mut self.told {
            let is_for = |message: &&Message| message.contact.as_ref() == Some(&told.contact);
            let of_it = messages.iter().filter(is_for);
            // One that was withdrawn because another has told it says nothing of whoever was told.
            let newest = of_it.max_by_key(|message| {
                let is_canceled = message.status == Status::Canceled;
                let is_sent =
                    matches!(message.status, Status::Sent | Status::Delivered | Status::Read);
                (is_sent, !is_canceled, message.created_at, message.id)
            });
            told.message = newest.map(|message| MessageNow {
                id: message.id,
                channel: message.target.channel,
                status: message.status,
                reason: message.reason,
            });
        }
    }
}

/// That somebody is not told now.
#[derive(Clone, Debug, Serialize)]
pub struct HeldNow {
    /// Why.
    pub reason: Reason,
    /// Since when.
    #[serde(serialize_with = "rfc_3339::serialize")]
    pub since: Timestamp,
    /// Until when, where that is known.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub until: Option<Timestamp>,
    /// In words.
    pub detail: Option<Arc<str>>,
}

impl HeldNow {
    fn of(hold: &Hold) -> Self {
        let Hold { reason, since, until, detail, .. } = hold.clone();
        Self { reason, since, until, detail }
    }
}

/// The alerts that pass `query`, those first that nobody has acknowledged, then those that somebody
/// has, then those that do not fire yet, of each the worst and newest first; and how many pass it in
/// all.
pub fn list(pipeline: &Pipeline, set: &RuleSet, query: &Query) -> (Vec<AlertNow>, usize) {
    let engine = pipeline.engine();
    let passes = |instance: &&Instance| {
        let Some(stand) = Stand::of(instance) else { return false };
        (query.stands.is_empty() || query.stands.contains(&stand))
            && query.key.as_deref().is_none_or(|key| *instance.key == *key)
            && (query.severities.is_empty() || query.severities.contains(&severity(set, instance)))
    };
    let mut found: Vec<&Instance> = match &query.rule {
        Some(rule) => engine.instances_of(rule).filter(passes).collect(),
        None => engine.instances().filter(passes).collect(),
    };
    let order = |instance: &&Instance| {
        let (stand, severity) = (Stand::of(instance), severity(set, instance));
        (stand, Reverse(severity), Reverse(since(instance)), instance.id)
    };
    let total = found.len();
    if total > query.limit && query.limit > 0 {
        found.select_nth_unstable_by_key(query.limit - 1, order);
    }
    found.truncate(query.limit);
    found.sort_unstable_by_key(order);
    (found.into_iter().filter_map(|instance| show(pipeline, set, instance)).collect(), total)
}

/// One alert.
pub fn one(pipeline: &Pipeline, set: &RuleSet, id: AlertId) -> Option<AlertNow> {
    let instance = pipeline.engine().instances().find(|instance| instance.id == id)?;
    show(pipeline, set, instance)
}

fn severity(set: &RuleSet, instance: &Instance) -> Severity {
    let rule = || set.rules.by_name(&instance.rule);
    let level = instance.life.level().or_else(|| instance.life.next_level(&rule()?.clocks));
    level.or_else(|| rule().map(|rule| rule.severity)).unwrap_or_default()
}

fn since(instance: &Instance) -> Timestamp {
    let since = instance.fired_at.filter(|_| instance.life.level().is_some());
    since.or_else(|| instance.life.pending_since()).unwrap_or(instance.known_since)
}

pub(super) fn show(pipeline: &Pipeline, set: &RuleSet, instance: &Instance) -> Option<AlertNow> {
    let state = Stand::of(instance)?;
    let rule = set.rules.by_name(&instance.rule);
    let told = match (state, rule) {
        (Stand::Pending, _) | (_, None) => Vec::new(),
        (Stand::Firing | Stand::Acknowledged, Some(rule)) => told(pipeline, set, rule, instance),
    };
    let ack = instance.ack.as_deref().cloned().map(|Ack { by, at, note }| AckNow { by, at, note });
    Some(AlertNow {
        id: instance.id,
        state,
        rule: Arc::clone(&instance.rule),
        key: Arc::clone(&instance.key),
        severity: severity(set, instance),
        labels: instance.labels.iter().cloned().collect(),
        topic: instance.topic.as_str().into(),
        text: Arc::clone(&instance.text),
        since: since(instance),
        changed_at: instance.changed_at.filter(|_| state != Stand::Pending),
        next_at: rule.and_then(|rule| instance.life.due(&rule.clocks)),
        seen_at: instance.seen_at,
        ack,
        shadow: rule.is_some_and(Rule::is_shadow),
        told,
    })
}

fn told(pipeline: &Pipeline, set: &RuleSet, rule: &Rule, instance: &Instance) -> Vec<ToldNow> {
    if let Some(tale) = pipeline.notifier().tale(instance.id) {
        return of_tale(tale);
    }
    // Without a tale everybody who can be reached was told once, at once.
    let level = instance.life.level().filter(|_| !rule.is_shadow());
    let reached = |contact: &str| set.book.directory.targets(contact, &rule.policy.by).is_ok();
    let told = |contact: &Arc<str>| ToldNow {
        contact: Arc::clone(contact),
        knows: level.filter(|_| reached(contact)).map(Severity::as_str),
        held: None,
        repeat_at: None,
        message: None,
    };
    rule.policy.to.iter().map(told).collect()
}

fn of_tale(tale: &Tale) -> Vec<ToldNow> {
    let told = tale.told.iter().map(|told| ToldNow {
        contact: Arc::clone(&told.contact),
        knows: match told.knows {
            Knows::Nothing => None,
            Knows::Fires(severity) => Some(severity.as_str()),
            Knows::Over => Some("over"),
        },
        held: told.hold.as_ref().map(HeldNow::of),
        repeat_at: told.repeat_at,
        message: None,
    });
    told.collect()
}
