//! What happened, line by line: steps and messages as sentences.
//!
//! Times are when it happened; of the same millisecond decisions come before messages, as they do in
//! the engines. Addresses are masked.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;

use super::Past;
use crate::clock::{Timestamp, rfc_3339};
use crate::model::tell::{Step, StepKind};
use crate::model::{
    AlertId, AlertState, Attempt, AttemptOutcome, Message, MessageId, Reason, Status,
};

/// One line.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Entry {
    #[serde(serialize_with = "rfc_3339::serialize")]
    at: Timestamp,
    /// A step's word, or `queued`, `attempt`, or a message's status.
    kind: &'static str,
    alert: Option<AlertId>,
    rule: Option<Arc<str>>,
    key: Option<Arc<str>>,
    contact: Option<Arc<str>>,
    message: Option<MessageId>,
    reason: Option<Reason>,
    /// What the reason means.
    why: Option<&'static str>,
    /// The line in words, but for what the reason means.
    text: String,
}

/// The lines of what happened, the oldest first. With `since` they are of any alerts, and each says
/// of which it is.
pub(super) fn of(past: &Past, since: Option<Timestamp>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    entries.extend(raised_unsaid(past, since));
    entries.extend(past.steps.iter().map(of_step));
    for message in &past.messages {
        of_message(message, &mut entries);
    }
    entries.sort_by_key(|entry| entry.at);
    if since.is_some() {
        for entry in &mut entries {
            let alert = entry.rule.as_deref().map(|rule| name(rule, entry.key.as_deref()));
            if let Some(alert) = alert {
                entry.text = format!("{alert}: {}", entry.text);
            }
        }
    }
    entries
}

/// What an alert is called.
pub(super) fn name(rule: &str, key: Option<&str>) -> String {
    match key {
        Some(key) if !key.is_empty() => format!("{rule} {key}"),
        _ => rule.to_owned(),
    }
}

/// A time for sentences: `2026-11-26 02:10:04Z`.
pub(super) fn shown(time: Timestamp) -> String {
    let text = time.to_string();
    match text.split_once('.') {
        Some((whole, _)) => format!("{}Z", whole.replace('T', " ")),
        None => text,
    }
}

/// A reason and what is said of it: `quiet_hours, until 06:00`.
pub(super) fn because(reason: Option<Reason>, detail: Option<&str>) -> String {
    let reason = reason.map(Reason::as_str);
    reason.into_iter().chain(detail).collect::<Vec<_>>().join(", ")
}

/// That alerts fired is no step where messages that went out at once say so: of each alert since
/// `since` the first message that tells that it fires.
fn raised_unsaid(past: &Past, since: Option<Timestamp>) -> impl Iterator<Item = Entry> {
    let is_raised = |step: &&Step| step.what == StepKind::Raised;
    let said = past.steps.iter().filter(is_raised).map(|step| step.alert);
    let mut seen: HashSet<AlertId> = said.collect();
    // Of an alert that is older the first message here may be any.
    let oldest = past.messages.first().filter(|_| past.is_part);
    let from = oldest.map(|message| message.created_at).max(since);
    let unsaid = move |message: &&Message| {
        let alert = message.alert.as_ref().map(|alert| alert.id);
        alert.is_some_and(|alert| {
            from.is_none_or(|from| alert.made_at() >= from) && seen.insert(alert)
        })
    };
    past.messages.iter().filter(unsaid).filter_map(raised)
}

/// That the alert fired, told by its first message.
fn raised(message: &Message) -> Option<Entry> {
    let alert = message.alert.as_ref().filter(|alert| alert.state == AlertState::Firing)?;
    let severity = message.severity;
    Some(Entry {
        at: message.created_at,
        kind: StepKind::Raised.as_str(),
        contact: None,
        message: None,
        reason: None,
        why: None,
        text: format!("raised, {severity}, by a publish on {}", alert.topic.as_str()),
        ..blank(message)
    })
}

fn of_step(step: &Step) -> Entry {
    let who = step.contact.as_deref().unwrap_or("everybody");
    let detail = step.detail.as_deref();
    let because = because(step.reason, detail);
    // What is told now was held for the reason: that no longer is.
    let says_why = !matches!(step.what, StepKind::Released | StepKind::Grouped);
    let shadow = if step.reason == Some(Reason::Shadow) { " (nobody is told: shadow)" } else { "" };
    let lacks = match (step.reason, detail) {
        (Some(Reason::TemplateFailed), Some(detail)) => {
            format!("; told with the payload: {detail}")
        }
        _ => String::new(),
    };
    let text = match step.what {
        StepKind::Raised => {
            let topic = step.topic.as_str();
            format!("raised, {}, by a publish on {topic}{shadow}{lacks}", step.severity)
        }
        StepKind::Level => format!("is {} now{shadow}{lacks}", step.severity),
        StepKind::Cleared => format!("over{shadow}{lacks}"),
        StepKind::Acknowledged => {
            format!("acknowledged{}", detail.map(|by| format!(" {by}")).unwrap_or_default())
        }
        StepKind::Held => format!("{who}: not told now: {because}"),
        StepKind::Released if because.is_empty() => format!("{who}: told now"),
        StepKind::Released => format!("{who}: told now, no longer held: {because}"),
        StepKind::Dropped => format!("{who}: not told, for good: {because}"),
        StepKind::Grouped => format!("{who}: told in a message of several alerts"),
    };
    Entry {
        at: step.at,
        kind: step.what.as_str(),
        alert: Some(step.alert),
        rule: Some(Arc::clone(&step.rule)),
        key: Some(Arc::clone(&step.key)),
        contact: step.contact.clone(),
        message: step.message,
        reason: step.reason,
        why: step.reason.filter(|_| says_why).map(Reason::sentence),
        text,
    }
}

fn blank(message: &Message) -> Entry {
    let alert = message.alert.as_ref();
    Entry {
        at: message.created_at,
        kind: "queued",
        alert: alert.map(|alert| alert.id),
        rule: alert.map(|alert| Arc::clone(&alert.rule)),
        key: alert.map(|alert| Arc::clone(&alert.key)),
        contact: message.contact.clone(),
        message: Some(message.id),
        reason: None,
        why: None,
        text: String::new(),
    }
}

/// When it came into the outbox: one that goes on with another keeps that one's place, and not its
/// time.
pub(super) fn began(message: &Message) -> Timestamp {
    message.began_at().max(message.created_at)
}

fn of_message(message: &Message, entries: &mut Vec<Entry>) {
    let who = message.contact.as_deref().unwrap_or("nobody by name");
    let (channel, address) = (message.target.channel, &message.target.address);
    let mut add = |at, kind, reason: Option<Reason>, text| {
        let why = reason.map(Reason::sentence);
        entries.push(Entry { at, kind, reason, why, text, ..blank(message) });
    };
    let text = format!("{who}: {channel} to {address}: {:?}", message.content.text);
    add(began(message), "queued", None, text);
    for attempt in &message.attempts {
        let (at, reason, text) = of_attempt(attempt);
        add(at, "attempt", reason, format!("{who}: {text}"));
    }
    for note in message.fallback.iter().flat_map(|fallback| &fallback.notes) {
        add(note.at, "fallback", None, format!("{who}: {channel}: {}", note.text));
    }
    let status = message.status;
    match status {
        Status::Sending => {}
        Status::Queued => {
            let because = because(message.reason, message.detail.as_deref());
            let because = if because.is_empty() { because } else { format!(": {because}") };
            let text = format!("{who}: {channel} waits for its turn{because}");
            add(message.updated_at, status.as_str(), message.reason, text);
        }
        Status::Sent | Status::Delivered | Status::Read => {
            add(message.updated_at, status.as_str(), None, format!("{who}: {channel} {status}"));
        }
        Status::Undelivered | Status::Failed | Status::Expired | Status::Canceled => {
            let because = because(message.reason, message.detail.as_deref());
            let text = format!("{who}: {channel} {status}: {because}");
            add(message.updated_at, status.as_str(), message.reason, text);
        }
    }
}

fn of_attempt(attempt: &Attempt) -> (Timestamp, Option<Reason>, String) {
    let Attempt { number, provider, .. } = attempt;
    let (reason, outcome) = match &attempt.outcome {
        None => (None, "no outcome yet".to_owned()),
        Some(AttemptOutcome::Accepted { .. }) => (None, "taken by the provider".to_owned()),
        Some(AttemptOutcome::Retry { reason, detail }) => {
            (Some(*reason), format!("not taken, to be tried again: {reason}, {detail}"))
        }
        Some(AttemptOutcome::Rejected { reason, detail }) => {
            (Some(*reason), format!("refused: {reason}, {detail}"))
        }
        Some(AttemptOutcome::Unknown { detail, .. }) => {
            (Some(Reason::NoAnswer), format!("it may have been sent, nobody knows: {detail}"))
        }
    };
    let at = attempt.ended_at.unwrap_or(attempt.started_at);
    (at, reason, format!("attempt {number} by {provider}: {outcome}"))
}
