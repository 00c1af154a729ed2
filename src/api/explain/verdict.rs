//! What it comes to, in one line: who was told, who was not, and why.
//!
//! Of each alert and contact the last word counts: a message, or a decision against one.

use std::collections::{BTreeMap, BTreeSet};

use super::Past;
use super::timeline::{because, began, name, shown};
use crate::clock::Timestamp;
use crate::dispatch::{LaneState, LaneStatus};
use crate::intake::desk::alerts::{AlertNow, Stand};
use crate::intake::desk::why::{Asked, Facts, RuleFacts};
use crate::model::tell::{Step, StepKind};
use crate::model::{AlertId, AttemptOutcome, Message, Reason, Status};

/// Most contacts that a conclusion names.
const NAMED_MAX: usize = 5;

/// Of a message that tells of no alert.
pub(super) fn of_message(past: &Past) -> String {
    let messages: Vec<&Message> = past.messages.iter().collect();
    let whom = messages.iter().find_map(|message| message.contact.as_deref());
    let fate = of_messages(&messages, past).unwrap_or_default();
    format!("{} {fate}", whom.unwrap_or("The address"))
}

/// Of one alert.
pub(super) fn of_alert(stands: Option<&AlertNow>, facts: &Facts, past: &Past) -> String {
    let mut parts = vec![state(stands, past)];
    let is_shadow = |step: &Step| step.reason == Some(Reason::Shadow);
    if past.steps.iter().any(is_shadow) && past.messages.is_empty() {
        parts.push(format!("Nobody is told: {}", Reason::Shadow.sentence()));
        return parts.join(" ");
    }
    let mut contacts: BTreeSet<&str> = BTreeSet::new();
    contacts.extend(facts.rules.iter().flat_map(|rule| rule.to.iter().map(AsRef::as_ref)));
    contacts.extend(past.steps.iter().filter_map(|step| step.contact.as_deref()));
    contacts.extend(past.messages.iter().filter_map(|message| message.contact.as_deref()));
    if stands.is_none_or(|alert| alert.state != Stand::Pending) {
        parts.extend(people(&contacts, facts, past));
        parts.extend(nobody(facts, past).filter(|_| contacts.is_empty()));
    }
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

fn state(stands: Option<&AlertNow>, past: &Past) -> String {
    if let Some(alert) = stands {
        return match (alert.state, &alert.ack, alert.next_at) {
            (Stand::Pending, _, Some(at)) => format!("It fires at {} if this goes on.", shown(at)),
            (Stand::Pending, ..) => "It is about to fire.".to_owned(),
            (Stand::Acknowledged, Some(ack), _) => {
                format!("It fires since {}, acknowledged by {}.", shown(alert.since), ack.by)
            }
            (Stand::Firing | Stand::Acknowledged, ..) => {
                format!("It fires since {}.", shown(alert.since))
            }
        };
    }
    let ended = |step: &&Step| {
        step.what == StepKind::Cleared
            || (step.what == StepKind::Dropped
                && step.contact.is_none()
                && matches!(
                    step.reason,
                    Some(Reason::Forgotten | Reason::RuleChanged | Reason::RuleRemoved)
                ))
    };
    match past.steps.iter().rev().find(ended) {
        Some(step) if step.what == StepKind::Cleared => {
            format!("It was over at {}.", shown(step.at))
        }
        Some(step) => {
            let why = step.reason.map_or("", Reason::sentence);
            format!("It ended at {}: {why}", shown(step.at))
        }
        None => String::new(),
    }
}

/// What became of the first few contacts; those alike in one sentence.
fn people(contacts: &BTreeSet<&str>, facts: &Facts, past: &Past) -> Vec<String> {
    let mut alike: Vec<(String, Vec<&str>)> = Vec::new();
    for contact in contacts.iter().take(NAMED_MAX) {
        let fate = fate(contact, facts, past);
        match alike.iter_mut().find(|(known, _)| *known == fate) {
            Some((_, names)) => names.push(contact),
            None => alike.push((fate, vec![contact])),
        }
    }
    let sentence = |(fate, names): (String, Vec<&str>)| match names.as_slice() {
        [one] => format!("{one} {fate}"),
        several => {
            let (names, fate) = (several.join(", "), plural(&fate));
            format!("{names} {fate}")
        }
    };
    let mut said: Vec<String> = alike.into_iter().map(sentence).collect();
    if contacts.len() > NAMED_MAX {
        said.push(format!("And {} more.", contacts.len() - NAMED_MAX));
    }
    said
}

/// The same of several.
fn plural(fate: &str) -> String {
    match fate.split_once(' ') {
        Some(("was", rest)) => format!("were {rest}"),
        Some(("is", rest)) => format!("are {rest}"),
        _ => fate.to_owned(),
    }
}

/// What became of a contact, without its name: `was told by sms at ...`.
fn fate(contact: &str, facts: &Facts, past: &Past) -> String {
    let is_for = |message: &&Message| message.contact.as_deref() == Some(contact);
    let messages: Vec<&Message> = past.messages.iter().filter(is_for).collect();
    let against = against(&last_words(contact, facts, past));
    match (of_messages(&messages, past), against) {
        (Some(told), None) => told,
        (Some(told), Some(against)) => format!("{told} Not told{against}"),
        (None, Some(against)) => format!("was not told{against}"),
        (None, None) => "was told nothing, and no decision is on record.".to_owned(),
    }
}

/// Of each alert the newest decision on the contact, where it was one against telling it and no
/// message has gone out since; the oldest first.
fn last_words<'a>(contact: &str, facts: &Facts, past: &'a Past) -> Vec<&'a Step> {
    // What concerns everybody concerns those whom the rule names; if it names nobody, nobody.
    let is_named = |step: &Step| {
        let rule = facts.rules.iter().find(|rule| rule.name == step.rule);
        rule.is_none_or(|rule| {
            rule.to.iter().any(|named| **named == *contact)
                || rule.to.is_empty() && contact.is_empty()
        })
    };
    let mut last: BTreeMap<AlertId, &Step> = BTreeMap::new();
    for step in &past.steps {
        let is_for = match step.contact.as_deref() {
            Some(named) => named == contact,
            None => is_named(step),
        };
        let decides = match step.what {
            StepKind::Held | StepKind::Dropped | StepKind::Released | StepKind::Grouped => true,
            StepKind::Raised => step.reason == Some(Reason::Shadow),
            StepKind::Level | StepKind::Cleared | StepKind::Acknowledged => false,
        };
        if is_for && decides {
            last.insert(step.alert, step);
        }
    }
    let is_told = |step: &Step| {
        let says_it = |message: &Message| {
            message.contact.as_deref() == Some(contact)
                && message.created_at >= step.at
                && message.alert.as_ref().is_some_and(|alert| alert.id == step.alert)
        };
        matches!(step.what, StepKind::Released | StepKind::Grouped)
            || past.messages.iter().any(says_it)
    };
    let mut against: Vec<&Step> = last.into_values().filter(|step| !is_told(step)).collect();
    against.sort_by_key(|step| step.at);
    against
}

/// Why somebody was not told: ` of freezer-warm kiel/1 at ...`.
fn against(steps: &[&Step]) -> Option<String> {
    let last = steps.last()?;
    let because = because(last.reason, last.detail.as_deref());
    let why = last.reason.map_or("", Reason::sentence);
    let alert = name(&last.rule, Some(&last.key));
    let of_last = format!("of {alert} at {}: {because}. {why}", shown(last.at));
    if steps.len() == 1 {
        return Some(format!(" {of_last}"));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in steps.iter().filter_map(|step| step.reason) {
        *counts.entry(reason.as_str()).or_default() += 1;
    }
    let counts: Vec<String> =
        counts.into_iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    Some(format!(" of {} alerts ({}), last {of_last}", steps.len(), counts.join(", ")))
}

/// When a provider took it.
fn sent_at(message: &Message) -> Timestamp {
    let taken = message
        .attempts
        .iter()
        .rev()
        .find(|attempt| matches!(attempt.outcome, Some(AttemptOutcome::Accepted { .. })));
    taken.and_then(|attempt| attempt.ended_at).unwrap_or(message.updated_at)
}

fn is_reached(message: &Message) -> bool {
    matches!(message.status, Status::Sent | Status::Delivered | Status::Read)
}

/// Why there is nobody to be told; `None` where nothing was decided.
fn nobody(facts: &Facts, past: &Past) -> Option<String> {
    Some(format!("Nobody was told{}", against(&last_words("", facts, past))?))
}

/// What became of messages to one contact; `None` where there is none.
fn of_messages(messages: &[&Message], past: &Past) -> Option<String> {
    let reached = |message: &&&Message| is_reached(message);
    let last = messages.iter().max_by_key(|message| began(message))?;
    let told = messages.iter().filter(reached).max_by_key(|message| began(message));
    let waiting = messages.iter().filter(|message| !message.status.is_final());
    let count = waiting.clone().count();
    let waiting = waiting.max_by_key(|message| began(message));
    let waits = waiting.map_or_else(String::new, |waiting| {
        let because = waits_because(waiting, past);
        match count {
            1 => format!("; one message still waits{because}"),
            several => format!("; {several} messages still wait{because}"),
        }
    });
    Some(match (told, waiting) {
        (Some(told), _) => {
            let times = messages.iter().filter(reached).count();
            let more = if past.is_part { " or more" } else { "" };
            let times =
                if times > 1 { format!(" {times} times{more}, last") } else { String::new() };
            let (channel, at, status) = (told.target.channel, shown(sent_at(told)), told.status);
            let lost = lost_since(told, messages);
            format!("was told{times} by {channel} at {at} ({status}){waits}.{lost}")
        }
        (None, Some(waiting)) => {
            let (channel, at) = (waiting.target.channel, shown(began(waiting)));
            let because = waits_because(waiting, past);
            format!("is not reached yet: the {channel} of {at} waits{because}.")
        }
        (None, None) => {
            let (channel, status) = (last.target.channel, last.status);
            let because = because(last.reason, last.detail.as_deref());
            let why = last.reason.map_or("", Reason::sentence);
            format!("was not reached: the {channel} is {status}: {because}. {why}")
        }
    })
}

/// Why a message waits, behind a colon; empty: it is its turn.
fn waits_because(message: &Message, past: &Past) -> String {
    let mut because = because(message.reason, message.detail.as_deref());
    // What has not been tried yet waits for what others have met.
    if because.is_empty() {
        let channel = message.target.channel;
        let lanes = past.lanes.iter().filter(|lane| lane.channels.contains(&channel));
        because = lanes.map(stopped).collect::<Vec<_>>().join("; ");
    }
    if because.is_empty() { because } else { format!(": {because}") }
}

/// That a lane takes nothing, and why.
fn stopped(lane: &LaneStatus) -> String {
    let state = match lane.state {
        LaneState::Up => "up",
        LaneState::Paused => "paused",
        LaneState::BreakerOpen => "left alone after failures",
        LaneState::Stopped => "stopped",
    };
    let because = because(lane.reason, lane.detail.as_deref());
    let until = lane.until.map_or_else(String::new, |at| format!(", tried again at {}", shown(at)));
    format!("{} is {state}: {because}{until}", lane.provider)
}

/// What came after the last message that has reached its contact, and did not: a sentence.
fn lost_since(told: &Message, messages: &[&Message]) -> String {
    let is_lost = |message: &&&Message| {
        // What another message made needless is not missed.
        let is_needless = matches!(message.reason, Some(Reason::Superseded | Reason::Over));
        message.status.is_final() && !is_reached(message) && !is_needless
    };
    let since = (began(told), told.id);
    let lost = messages.iter().filter(is_lost);
    let lost = lost.filter(|message| (began(message), message.id) > since);
    let Some(last) = lost.clone().max_by_key(|message| (began(message), message.id)) else {
        return String::new();
    };
    let (channel, at, status) = (last.target.channel, shown(began(last)), last.status);
    let because = because(last.reason, last.detail.as_deref());
    let why = last.reason.map_or("", Reason::sentence);
    let lost = match lost.count() {
        1 => "One message after that was lost".to_owned(),
        several => format!("{several} messages after that were lost, the last"),
    };
    format!(" {lost}: the {channel} of {at} is {status}: {because}. {why}")
}

/// Of what happened around something.
pub(super) fn around(asked: &Asked, facts: &Facts, past: &Past, from: Timestamp) -> String {
    if let Some(problem) = nobody_asked_about(asked, facts) {
        return problem;
    }
    let mut contacts: BTreeSet<&str> = BTreeSet::new();
    match &asked.contact {
        Some(contact) => drop(contacts.insert(contact)),
        None => {
            contacts.extend(past.steps.iter().filter_map(|step| step.contact.as_deref()));
            contacts.extend(past.messages.iter().filter_map(|message| message.contact.as_deref()));
            let held = |step: &Step| matches!(step.what, StepKind::Held | StepKind::Dropped);
            if past.steps.iter().any(held) {
                let to = facts.rules.iter().flat_map(|rule| rule.to.iter().map(AsRef::as_ref));
                contacts.extend(to);
            }
        }
    }
    let decided = |contact: &&str| {
        past.messages.iter().any(|message| message.contact.as_deref() == Some(*contact))
            || !last_words(contact, facts, past).is_empty()
    };
    contacts.retain(decided);
    if !contacts.is_empty() {
        return people(&contacts, facts, past).join(" ");
    }
    if let Some(nobody) = nobody(facts, past).filter(|_| asked.contact.is_none()) {
        return nobody;
    }
    let whom = asked.contact.as_deref().unwrap_or("nobody");
    let told = if whom == "nobody" { "Nobody was told" } else { &format!("{whom} was not told") };
    format!("{told} since {}: {}", shown(from), nothing(asked, facts, from))
}

/// What is asked about is not there, or has nothing to do with each other.
fn nobody_asked_about(asked: &Asked, facts: &Facts) -> Option<String> {
    let near = |near: &Option<String>| {
        near.as_ref().map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
    };
    if let Some(contact) = facts.contact.as_ref().filter(|contact| !contact.known) {
        return Some(format!("There is no contact `{}`{}", contact.name, near(&contact.near)));
    }
    if facts.rules.is_empty() {
        return Some(match (&asked.rule, &asked.topic, &asked.contact) {
            (Some(rule), ..) => format!("There is no rule `{rule}`{}", near(&facts.near)),
            (None, Some(topic), _) => {
                format!(
                    "No rule looks at {}: nothing published there raises an alert.",
                    topic.as_str()
                )
            }
            (None, None, Some(contact)) => {
                format!("No rule names {contact} in its `to`: only messages sent by hand reach it.")
            }
            (None, None, None) => "There are no rules.".to_owned(),
        });
    }
    if let (Some(topic), Some(rule)) = (&asked.topic, facts.rules.iter().find(|rule| !rule.looks)) {
        let (name, filter, topic) = (&rule.name, &rule.topic, topic.as_str());
        return Some(format!("Rule {name} does not look at {topic}: it looks at {filter}."));
    }
    let contact = asked.contact.as_deref().filter(|_| facts.naming.is_empty())?;
    let names: Vec<&str> =
        facts.rules.iter().take(NAMED_MAX).map(|rule| rule.name.as_ref()).collect();
    Some(format!("{contact} is not told: {} does not name {contact} in `to`.", names.join(", ")))
}

/// Why there was nothing to tell, as far as the present says it.
fn nothing(asked: &Asked, facts: &Facts, from: Timestamp) -> String {
    let instances =
        || facts.rules.iter().flat_map(|rule| rule.instances.iter().map(move |one| (rule, one)));
    let alerts = || instances().filter_map(|(rule, one)| Some((rule, one.alert.as_ref()?)));
    if facts.rules.iter().all(|rule| rule.shadow) {
        return Reason::Shadow.sentence().to_owned();
    }
    if let Some((rule, alert)) = alerts().find(|(_, alert)| alert.state != Stand::Pending) {
        let (alert_name, since) = (name(&rule.name, Some(&alert.key)), shown(alert.since));
        let before = if alert.since < from { ", before the time that was asked about" } else { "" };
        return format!(
            "{alert_name} fires since {since}{before}; `watchbell explain {}`.",
            alert.id
        );
    }
    if let Some((rule, alert)) = alerts().next() {
        let at = alert.next_at.map_or_else(String::new, |at| format!(", fires at {}", shown(at)));
        let since = shown(alert.since);
        return format!("{} is pending since {since}{at}.", name(&rule.name, Some(&alert.key)));
    }
    let troubles = facts.rules.iter().filter_map(|rule| trouble(rule, from));
    if let Some((_, why)) = troubles.max_by_key(|(at, _)| *at) {
        return format!("no alert was raised; {why}");
    }
    // Of a topic what is remembered of it counts, and not how often others failed.
    let failed = |rule: &RuleFacts| {
        failed(rule).filter(|_| asked.topic.is_none() || !rule.knows_all_troubles)
    };
    let counted = facts.rules.iter().filter(|_| asked.topic.is_none()).find_map(failed);
    if let Some(why) = counted {
        return format!("no alert was raised; {why}");
    }
    match instances()
        .filter_map(|(rule, one)| Some((rule, one, one.seen_at?)))
        .max_by_key(|found| found.2)
    {
        Some((rule, one, seen_at)) => {
            let passed = passed(rule).map_or_else(String::new, |passed| format!(" {passed}"));
            format!(
                "no alert was raised; {} was heard of last at {}, and nothing holds.{passed}",
                name(&rule.name, Some(&one.key)),
                shown(seen_at)
            )
        }
        None => match facts.rules.iter().find_map(|rule| failed(rule).or_else(|| passed(rule))) {
            Some(why) => format!("no alert was raised; {why}"),
            None => "no alert was raised. Whether anything is published, `watchbell record` shows."
                .to_owned(),
        },
    }
}

/// The last time since `from` that the rule came to no result, and on what.
fn trouble(rule: &RuleFacts, from: Timestamp) -> Option<(Timestamp, String)> {
    let name = &rule.name;
    let said = |at: Timestamp, topic: Option<&str>, reason: Reason, detail: &str, times: u64| {
        let on = topic.map_or_else(String::new, |topic| format!(" on {topic}"));
        let times = if times > 1 { format!(", {times} times") } else { String::new() };
        let said =
            format!("{name} came to no result{on} at {}{times}: {reason}, {detail}.", shown(at));
        (at, said)
    };
    let troubles = rule
        .troubles
        .iter()
        .map(|one| said(one.at, one.topic.as_deref(), one.reason, &one.detail, one.times));
    let reason = Reason::UndecodablePayload;
    let samples =
        rule.samples.iter().map(|one| said(one.at, Some(&one.topic), reason, &one.detail, 1));
    troubles.chain(samples).filter(|(at, _)| *at >= from).max_by_key(|(at, _)| *at)
}

/// On how many publishes the rule came to no result.
fn failed(rule: &RuleFacts) -> Option<String> {
    let (reason, count) = most(&rule.failures)?;
    let (name, publishes) = (&rule.name, publishes(count));
    Some(format!(
        "{name} came to no result on {publishes} since the start: {reason}; `watchbell explain --rule {name}` names the last."
    ))
}

/// How many publishes the rule did not look at.
fn passed(rule: &RuleFacts) -> Option<String> {
    let (reason, count) = most(&rule.passed)?;
    let (name, publishes, why) = (&rule.name, publishes(count), reason.sentence());
    Some(format!("{name} passed over {publishes} since the start: {reason}. {why}"))
}

fn most(counts: &BTreeMap<&'static str, u64>) -> Option<(Reason, u64)> {
    let (word, count) = counts.iter().max_by_key(|(_, count)| **count)?;
    Some((word.parse::<Reason>().ok()?, *count))
}

fn publishes(count: u64) -> String {
    if count == 1 { "one publish".to_owned() } else { format!("{count} publishes") }
}
