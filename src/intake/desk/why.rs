//! What there is to know of rules and a contact now, for whoever asks why somebody was told nothing.
//!
//! The past is in the store; this is the present of the engine and what the rule files say.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::alerts::{self, AlertNow};
use super::silences::{self, SilenceNow};
use crate::clock::{Timestamp, rfc_3339};
use crate::intake::pipeline::Pipeline;
use crate::intake::ruleset::RuleSet;
use crate::intake::troubles::Trouble;
use crate::model::{AlertId, Channel, Reason, Severity};
use crate::notify::silence::Matcher;
use crate::problem::closest;
use crate::rules::engine::Sample;
use crate::rules::instance::Instance;
use crate::rules::set::Rule;
use crate::span::Span;
use crate::topic::{FilterLevel, TopicFilter, TopicLimits, TopicName};

/// Most rules, instances of a rule, and silences in one answer.
const LISTED_MAX: usize = 20;

/// Most troubles of a rule in one answer.
const TROUBLES_MAX: usize = 5;

/// What is asked about. `None`: all.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Asked {
    /// This contact.
    pub contact: Option<String>,
    /// What is published on this topic, or on those that this filter matches.
    #[serde(serialize_with = "as_text")]
    pub topic: Option<TopicFilter>,
    /// This rule.
    pub rule: Option<String>,
    /// This instance key.
    pub key: Option<String>,
}

fn as_text<S: serde::Serializer>(topic: &Option<TopicFilter>, to: S) -> Result<S::Ok, S::Error> {
    topic.as_ref().map(TopicFilter::as_str).serialize(to)
}

/// What is known of it.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The contact, where one was asked about.
    pub contact: Option<ContactFacts>,
    /// The rules that it is about, at most 20.
    pub rules: Vec<RuleFacts>,
    /// How many there are.
    pub rules_total: usize,
    /// A rule of a name like the one that was asked about and that there is not.
    pub near: Option<String>,
    /// Silences in force that may cover alerts of these rules, at most 20.
    pub silences: Vec<SilenceNow>,
    /// The names of all of the rules that name the contact, if one was asked about.
    #[serde(skip)]
    pub naming: HashSet<Arc<str>>,
}

impl Facts {
    /// Of what no rule is about.
    pub fn none() -> Self {
        Self {
            contact: None,
            rules: Vec::new(),
            rules_total: 0,
            near: None,
            silences: Vec::new(),
            naming: HashSet::new(),
        }
    }
}

/// What is known of a contact.
#[derive(Clone, Debug, Serialize)]
pub struct ContactFacts {
    /// Its name.
    pub name: String,
    /// Whether there is one of that name.
    pub known: bool,
    /// One of a name like it, where there is none of that name.
    pub near: Option<String>,
    /// By what it can be reached.
    pub channels: Vec<Channel>,
    /// Whether it has quiet hours.
    pub quiet: bool,
    /// When they end, if they are in force now for a warning.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub quiet_until: Option<Timestamp>,
}

/// What is known of a rule.
#[derive(Clone, Debug, Serialize)]
pub struct RuleFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Its topic filter.
    pub topic: Arc<str>,
    /// Whether it looks at the topic that was asked about.
    pub looks: bool,
    /// Whom it names.
    pub to: Vec<Arc<str>>,
    /// How urgent it can be.
    pub severity: Severity,
    /// What fires it, a line each.
    pub clauses: Vec<String>,
    /// It only counts what it would do.
    pub shadow: bool,
    /// Its instances, at most 20, those that fire first.
    pub instances: Vec<InstanceFacts>,
    /// How many there are.
    pub instances_total: usize,
    /// Publishes since the start on which it came to no result, by reason.
    pub failures: BTreeMap<&'static str, u64>,
    /// Publishes since the start that it did not look at, by reason.
    pub passed: BTreeMap<&'static str, u64>,
    /// What it came to no result on last, the newest last, of the topic where one was asked about;
    /// without payloads that are in `samples`.
    pub troubles: Vec<TroubleFacts>,
    /// Whether every topic on which it came to no result is remembered.
    #[serde(skip)]
    pub knows_all_troubles: bool,
    /// The last payloads that it could not decode.
    pub samples: Vec<SampleFacts>,
}

/// Where an instance stands.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceFacts {
    /// Its key.
    pub key: Arc<str>,
    /// The topic that it was heard of on last.
    pub topic: Arc<str>,
    /// When it was heard of last; `null`: never.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub seen_at: Option<Timestamp>,
    /// When it is silent for too long, if nothing is heard until then.
    #[serde(serialize_with = "rfc_3339::or_null")]
    pub silent_at: Option<Timestamp>,
    /// Its alert, if it fires or is about to; `null`: all is well.
    pub alert: Option<AlertNow>,
}

/// What a rule came to no result on.
#[derive(Clone, Debug, Serialize)]
pub struct TroubleFacts {
    /// When it came last.
    #[serde(serialize_with = "rfc_3339::serialize")]
    pub at: Timestamp,
    /// On which topic; `null`: when a clock ran out.
    pub topic: Option<Arc<str>>,
    /// Why there was no result.
    pub reason: Reason,
    /// The clause, and what is the matter with it.
    pub detail: String,
    /// How often it came, on this topic, as far as is remembered.
    pub times: u64,
}

/// A payload that could not be decoded.
#[derive(Clone, Debug, Serialize)]
pub struct SampleFacts {
    /// When it came.
    #[serde(serialize_with = "rfc_3339::serialize")]
    pub at: Timestamp,
    /// On which topic.
    pub topic: Arc<str>,
    /// Its beginning, what is not printable escaped.
    pub head: String,
    /// How many bytes it had.
    pub bytes: usize,
    /// Why it could not be decoded.
    pub detail: String,
}

/// What is known of what was asked about.
pub fn facts(pipeline: &Pipeline, set: &RuleSet, asked: &Asked, now: Timestamp) -> Facts {
    let looks = |rule: &Rule| asked.topic.as_ref().is_none_or(|topic| looks_at(rule, topic));
    let is_about = |rule: &&Rule| match &asked.rule {
        Some(name) => *rule.name == **name,
        None if asked.topic.is_some() => looks(rule),
        None => asked
            .contact
            .as_ref()
            .is_none_or(|contact| rule.policy.to.iter().any(|named| **named == **contact)),
    };
    let about: Vec<&Rule> = set.rules.rules().iter().filter(is_about).collect();
    let rules = about.iter().take(LISTED_MAX);
    let rules = rules.map(|rule| rule_facts(pipeline, set, rule, looks(rule), asked));
    let names: Vec<&str> = set.rules.rules().iter().map(|rule| rule.name.as_ref()).collect();
    let missing = asked.rule.as_deref().filter(|_| about.is_empty());
    let may_cover = |silence: &SilenceNow| {
        silence.active && about.iter().any(|rule| may_cover(&silence.matcher, rule, asked))
    };
    let silences = silences::list(pipeline, set, now).into_iter().filter(may_cover);
    let names_contact = |rule: &&&Rule| {
        let is_it = |named: &Arc<str>| asked.contact.as_deref() == Some(&**named);
        asked.contact.is_none() || rule.policy.to.iter().any(is_it)
    };
    let naming = about.iter().filter(names_contact).map(|rule| Arc::clone(&rule.name));
    Facts {
        naming: naming.collect(),
        contact: asked.contact.as_deref().map(|name| contact_facts(set, name, now)),
        rules: rules.collect(),
        rules_total: about.len(),
        near: missing.and_then(|name| closest(name, &names)).map(str::to_owned),
        silences: silences.take(LISTED_MAX).collect(),
    }
}

/// One alert as it stands, and what is known of its rule. `of`: rule and key, where the alert may be
/// over.
pub fn of_alert(
    pipeline: &Pipeline,
    set: &RuleSet,
    alert: AlertId,
    of: Option<(Arc<str>, Arc<str>)>,
    now: Timestamp,
) -> Option<(Option<AlertNow>, Facts)> {
    let stands = alerts::one(pipeline, set, alert);
    let of = of.or_else(|| stands.as_ref().map(|one| (one.rule.clone(), one.key.clone())));
    let (rule, key) = of?;
    let (rule, key) = (Some(rule.to_string()), Some(key.to_string()));
    let asked = Asked { rule, key, ..Asked::default() };
    Some((stands, facts(pipeline, set, &asked, now)))
}

/// Whether the rule looks at what is published on such topics.
fn looks_at(rule: &Rule, topic: &TopicFilter) -> bool {
    let is_meant = |event: &Arc<str>| match topic.levels().get(2) {
        Some(FilterLevel::Exact(level)) => level == event,
        Some(FilterLevel::One | FilterLevel::Rest) | None => true,
    };
    rule.filter.overlaps(topic) && (rule.events.is_empty() || rule.events.iter().any(is_meant))
}

/// Whether a silence may cover what is asked about, as far as that is known without an alert.
fn may_cover(matcher: &Matcher, rule: &Rule, asked: &Asked) -> bool {
    let (rule_name, filter) = (&rule.name, &rule.filter);
    let topic = asked.topic.as_ref();
    let topic =
        topic.and_then(|topic| TopicName::parse(topic.as_str(), TopicLimits::default()).ok());
    let label = |name: &str| {
        let mut captured = filter.captured(topic.as_ref()?);
        captured.find(|(known, _)| ***known == *name).map(|(_, value)| value)
    };
    matcher.rule.as_ref().is_none_or(|pattern| pattern.matches(rule_name))
        && matcher.topic.as_ref().is_none_or(|silenced| {
            silenced.0.overlaps(filter)
                && asked.topic.as_ref().is_none_or(|topic| silenced.0.overlaps(topic))
        })
        && asked
            .key
            .as_ref()
            .is_none_or(|key| matcher.key.as_ref().is_none_or(|pattern| pattern.matches(key)))
        && matcher
            .label
            .iter()
            .all(|(name, pattern)| label(name).is_none_or(|value| pattern.matches(value)))
}

fn contact_facts(set: &RuleSet, name: &str, now: Timestamp) -> ContactFacts {
    let directory = &set.book.directory;
    let contact = directory.contact(name);
    let names = directory.names();
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    let quiet = contact.and_then(|contact| contact.quiet.as_ref());
    let near = if contact.is_some() { None } else { closest(name, &names) };
    let targets = contact.map(|contact| contact.targets.as_slice()).unwrap_or_default();
    ContactFacts {
        name: name.to_owned(),
        known: contact.is_some(),
        near: near.map(str::to_owned),
        channels: targets.iter().map(|target| target.channel).collect(),
        quiet: quiet.is_some(),
        quiet_until: quiet.and_then(|quiet| quiet.until(Severity::Warning, now)),
    }
}

fn rule_facts(
    pipeline: &Pipeline,
    set: &RuleSet,
    rule: &Rule,
    looks: bool,
    asked: &Asked,
) -> RuleFacts {
    let is_asked = |instance: &&Instance| {
        asked.key.as_deref().is_none_or(|key| *instance.key == *key)
            && asked.topic.as_ref().is_none_or(|topic| topic.matches(&instance.topic))
    };
    let mut found: Vec<&Instance> =
        pipeline.engine().instances_of(&rule.name).filter(is_asked).collect();
    let order = |instance: &&Instance| {
        let life = &instance.life;
        (Reverse((life.level(), life.pending_since().is_some())), Arc::clone(&instance.key))
    };
    let total = found.len();
    if total > LISTED_MAX {
        found.select_nth_unstable_by_key(LISTED_MAX - 1, order);
        found.truncate(LISTED_MAX);
    }
    found.sort_by_key(order);
    let instance = |instance: &Instance| {
        let silent = rule.silent.as_ref().filter(|_| instance.life.is_idle());
        InstanceFacts {
            key: Arc::clone(&instance.key),
            topic: instance.topic.as_str().into(),
            seen_at: instance.seen_at,
            silent_at: silent.map(|silent| instance.silent_since().plus(silent.after)),
            alert: alerts::show(pipeline, set, instance),
        }
    };
    let is_on =
        |sample: &&Sample| asked.topic.as_ref().is_none_or(|topic| topic.matches(&sample.topic));
    let samples = pipeline.engine().samples(&rule.name).filter(is_on);
    RuleFacts {
        name: Arc::clone(&rule.name),
        topic: rule.filter.as_str().into(),
        looks,
        to: rule.policy.to.to_vec(),
        severity: rule.worst(),
        clauses: clauses(rule),
        shadow: rule.is_shadow(),
        instances: found.into_iter().map(instance).collect(),
        instances_total: total,
        failures: BTreeMap::new(),
        passed: BTreeMap::new(),
        troubles: troubles(pipeline, rule, asked),
        knows_all_troubles: pipeline.troubles().are_all_of(&rule.name),
        samples: samples.map(sample).collect(),
    }
}

/// The last few troubles with what was asked about, the newest last.
fn troubles(pipeline: &Pipeline, rule: &Rule, asked: &Asked) -> Vec<TroubleFacts> {
    let is_asked = |trouble: &&Trouble| {
        let on =
            |asked: &TopicFilter| trouble.topic.as_ref().is_some_and(|topic| asked.matches(topic));
        let is_sample = |sample: &Sample| Some(&sample.topic) == trouble.topic.as_ref();
        // What has its sample says more there.
        let is_shown = trouble.reason == Reason::UndecodablePayload
            && pipeline.engine().samples(&rule.name).any(is_sample);
        !is_shown && asked.topic.as_ref().is_none_or(on)
    };
    let facts = |trouble: &Trouble| TroubleFacts {
        at: trouble.at,
        topic: trouble.topic.as_ref().map(|topic| topic.as_str().into()),
        reason: trouble.reason,
        detail: trouble.detail.clone(),
        times: trouble.times,
    };
    let newest = pipeline.troubles().of(&rule.name).rev().filter(is_asked).take(TROUBLES_MAX);
    let mut found: Vec<TroubleFacts> = newest.map(facts).collect();
    found.reverse();
    found
}

fn sample(sample: &Sample) -> SampleFacts {
    SampleFacts {
        at: sample.at,
        topic: sample.topic.as_str().into(),
        head: sample.head.escape_ascii().to_string(),
        bytes: sample.bytes,
        detail: sample.detail.clone(),
    }
}

/// What fires the rule, as its file says it.
fn clauses(rule: &Rule) -> Vec<String> {
    if let Some(silent) = &rule.silent {
        let after = span(silent.after);
        return vec![format!("{}: silent for {after}", rule.severity)];
    }
    if rule.is_event() {
        return vec![format!("{}: each publish", rule.severity)];
    }
    let level = |level: &crate::rules::set::Level| {
        let hold = rule.clocks.get(level.severity).map(|clock| span(clock.hold));
        let hold = hold.filter(|hold| !hold.is_zero());
        let hold = hold.map_or_else(String::new, |hold| format!(" for {hold}"));
        let clear = level.clear.as_ref();
        let clear = clear.map_or_else(String::new, |clear| format!("; clear {}", clear.source()));
        format!("{}: when {}{hold}{clear}", level.severity, level.when.source())
    };
    rule.levels.iter().map(level).collect()
}

fn span(length: Duration) -> Span {
    Span::from_millis(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}
