//! What it comes to, in one line: who was told, who was not, and why.
//!
//! Of each alert and contact the last word counts: a message, or a decision against one.

use std::collections::{BTreeMap, BTreeSet};

use super::Past;
use super::timeline::{because, name, shown};
use crate::clock::Timestamp;
use crate::intake::desk::alerts::{AlertNow, Stand};
use crate::intake::desk::why::{Asked, Facts, RuleFacts};
use crate::model::tell::{Step, StepKind};
use crate::model::{AlertId, Message, Reason, Status};

/// Most contacts that a conclusion names.
const NAMED_MAX: usize = 5;

/// Of a message that tells of no alert.
pub(super) fn of_message(past: &Past) -> String {
    let messages: Vec<&Message> = past.messages.iter().collect();
    let whom = messages.iter().find_map(|message| message.contact.as_deref());
    let fate = of_messages(&messages).unwrap_or_default();
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
        parts.extend(people(&contacts, past));
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
fn people(contacts: &BTreeSet<&str>, past: &Past) -> Vec<String> {
    let mut alike: Vec<(String, Vec<&str>)> = Vec::new();
    for contact in contacts.iter().take(NAMED_MAX) {
        let fate = fate(contact, past);
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
fn fate(contact: &str, past: &Past) -> String {
    let is_for = |message: &&Message| message.contact.as_deref() == Some(contact);
    let messages: Vec<&Message> = past.messages.iter().filter(is_for).collect();
    let against = against(&last_words(contact, past));
    match (of_messages(&messages), against) {
        (Some(told), None) => told,
        (Some(told), Some(against)) => format!("{told} Not told{against}"),
        (None, Some(against)) => format!("was not told{against}"),
        (None, None) => "was told nothing, and no decision is on record.".to_owned(),
    }
}

/// Of each alert the newest decision on the contact, where it was one against telling it and no
/// message has gone out since; the oldest first.
fn last_words<'a>(contact: &str, past: &'a Past) -> Vec<&'a Step> {
    let mut last: BTreeMap<AlertId, &Step> = BTreeMap::new();
    for step in &past.steps {
        let is_for = step.contact.as_deref().is_none_or(|named| named == contact);
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

/// What became of messages to one contact; `None` where there is none.
fn of_messages(messages: &[&Message]) -> Option<String> {
    let reached = |message: &&&Message| {
        matches!(message.status, Status::Sent | Status::Delivered | Status::Read)
    };
    let last = messages.iter().max_by_key(|message| message.created_at)?;
    let told = messages.iter().filter(reached).max_by_key(|message| message.created_at);
    let waits = messages.iter().filter(|message| !message.status.is_final()).count();
    let waits = match waits {
        0 => String::new(),
        1 => "; one message still waits".to_owned(),
        several => format!("; {several} messages still wait"),
    };
    Some(match told {
        Some(told) => {
            let times = messages.iter().filter(reached).count();
            let times = if times > 1 { format!(" {times} times, last") } else { String::new() };
            let (channel, at, status) = (told.target.channel, shown(told.created_at), told.status);
            format!("was told{times} by {channel} at {at} ({status}){waits}.")
        }
        None if !waits.is_empty() => {
            let (channel, at) = (last.target.channel, shown(last.created_at));
            let because = because(last.reason, last.detail.as_deref());
            let because = if because.is_empty() { because } else { format!(": {because}") };
            format!("is not reached yet: the {channel} of {at} waits{because}.")
        }
        None => {
            let (channel, status) = (last.target.channel, last.status);
            let because = because(last.reason, last.detail.as_deref());
            let why = last.reason.map_or("", Reason::sentence);
            format!("was not reached: the {channel} is {status}: {because}. {why}")
        }
    })
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
    let decided = |contact: &&&str| {
        past.messages.iter().any(|message| message.contact.as_deref() == Some(**contact))
            || !last_words(contact, past).is_empty()
    };
    if contacts.iter().filter(decided).count() > 0 {
        return people(&contacts, past).join(" ");
    }
    let whom = asked.contact.as_deref().unwrap_or("nobody");
    let told = if whom == "nobody" { "Nobody was told" } else { &format!("{whom} was not told") };
    format!("{told} since {}: {}", shown(from), nothing(facts, from))
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
fn nothing(facts: &Facts, from: Timestamp) -> String {
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
    if let Some(why) = facts.rules.iter().find_map(no_result) {
        return format!("no alert was raised; {why}");
    }
    match instances()
        .filter_map(|(rule, one)| Some((rule, one, one.seen_at?)))
        .max_by_key(|found| found.2)
    {
        Some((rule, one, seen_at)) => format!(
            "no alert was raised; {} was heard of last at {}, and nothing holds.",
            name(&rule.name, Some(&one.key)),
            shown(seen_at)
        ),
        None => "no alert was raised. Whether anything is published, `watchbell record` shows."
            .to_owned(),
    }
}

/// On how many publishes the rule came to no result, or did not look at.
fn no_result(rule: &RuleFacts) -> Option<String> {
    let most = |counts: &BTreeMap<&'static str, u64>| {
        let (word, count) = counts.iter().max_by_key(|(_, count)| **count)?;
        Some((word.parse::<Reason>().ok()?, *count))
    };
    let name = &rule.name;
    if let Some((reason, count)) = most(&rule.failures) {
        let why = reason.sentence();
        return Some(format!(
            "{name} came to no result on {} since the start: {reason}. {why}",
            publishes(count)
        ));
    }
    let (reason, count) = most(&rule.passed)?;
    let why = reason.sentence();
    let publishes = publishes(count);
    Some(format!("{name} passed over {publishes} since the start: {reason}. {why}"))
}

fn publishes(count: u64) -> String {
    if count == 1 { "one publish".to_owned() } else { format!("{count} publishes") }
}
