//! Why somebody was told, or was not: from publish to outcome, with every decision and its reason.
//!
//! Two questions: what became of one alert or message (`id`), and what happened around a contact, a
//! topic, a rule or a key since some time. Both have the same answer: what rules and instances stand
//! like now, a [`timeline`], and a [`verdict`] in one line. Nothing is decided here: it tells what
//! the engines have noted.

mod timeline;
mod verdict;

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use self::timeline::Entry;
use super::body::fault;
use super::messages::{parse_query, read};
use super::refusal::Refusal;
use super::view::LaneView;
use super::{Shared, State as ApiState};
use crate::clock::{Timestamp, rfc_3339};
use crate::dispatch::{LaneState, LaneStatus};
use crate::intake::desk::alerts::AlertNow;
use crate::intake::desk::why::{self, Asked, Facts};
use crate::intake::pipeline::Caused;
use crate::model::tell::Step;
use crate::model::{AlertId, Channel, Message, MessageId, Reason};
use crate::problem::unknown_key;
use crate::span::Span;

use crate::store::{MessageFilter, ReadError, StepFilter};
use crate::telemetry::ByRule;
use crate::topic::{TopicFilter, TopicLimits};

/// Most lines of a timeline; of more the newest are shown.
const LINES_MAX: usize = 500;

/// How far back, where nobody said.
const SINCE: Span = Span::from_secs(24 * 3600);

/// The answer.
#[derive(Serialize)]
struct Explanation {
    asked: Asked,
    /// What was asked for by its id.
    id: Option<String>,
    /// Since when; `null` where one alert was asked for.
    #[serde(serialize_with = "rfc_3339::or_null")]
    since: Option<Timestamp>,
    /// The alert that was asked for, if it fires or is about to.
    alert: Option<AlertNow>,
    #[serde(flatten)]
    facts: Facts,
    /// Lanes that take nothing now, for which messages of the timeline wait.
    lanes: Vec<LaneView>,
    /// What happened, the oldest first.
    timeline: Vec<Entry>,
    /// Older lines that are not shown.
    left_out: usize,
    /// What it comes to, in one line.
    conclusion: String,
}

/// What happened to alerts: what is in the store.
#[derive(Default)]
struct Past {
    steps: Vec<Step>,
    messages: Vec<Message>,
    /// There may be older ones.
    is_part: bool,
    /// Lanes that take nothing now, for which messages wait.
    lanes: Vec<LaneStatus>,
}

enum Question {
    Id(String),
    Around { asked: Asked, since: Span },
}

/// `GET /v1/explain`
pub(super) async fn explain(
    State(state): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let explanation = match parse(query.as_deref().unwrap_or_default())? {
        Question::Id(id) => of_id(&state, id).await?,
        Question::Around { asked, since } => around(&state, asked, since).await?,
    };
    Ok(Json(explanation).into_response())
}

fn parse(query: &str) -> Result<Question, Refusal> {
    const KNOWN: [&str; 6] = ["id", "contact", "topic", "rule", "key", "since"];
    let (mut asked, mut since, mut id) = (Asked::default(), None, None);
    let mut faults = Vec::new();
    for (key, value) in parse_query(query)? {
        match key.as_str() {
            "id" => id = Some(value),
            "contact" => asked.contact = Some(value),
            "rule" => asked.rule = Some(value),
            "key" => asked.key = Some(value),
            "topic" => match TopicFilter::parse(&value, TopicLimits::default()) {
                Ok(topic) => asked.topic = Some(topic),
                Err(error) => faults.push(fault(&key, error.to_string())),
            },
            "since" => match value.parse::<Span>() {
                Ok(span) => since = Some(span),
                Err(error) => faults.push(fault(&key, error.to_string())),
            },
            other => faults.push(fault(&key, unknown_key(other, &KNOWN))),
        }
    }
    let is_around = asked.contact.is_some()
        || asked.topic.is_some()
        || asked.rule.is_some()
        || asked.key.is_some()
        || since.is_some();
    if faults.is_empty() && is_around == id.is_some() {
        let what =
            "give the id of an alert or a message, or any of contact, topic, rule, key and since";
        faults.push(fault("id", what));
    }
    match id {
        _ if !faults.is_empty() => Err(Refusal::invalid(faults)),
        Some(id) => Ok(Question::Id(id)),
        None => Ok(Question::Around { asked, since: since.unwrap_or(SINCE) }),
    }
}

/// One alert, or one message.
async fn of_id(state: &Shared, id: String) -> Result<Explanation, Refusal> {
    let no_such = || {
        Refusal::not_found(format!(
            "there is no alert and no message {id}; what has ended is kept for store.retention"
        ))
    };
    let message: MessageId = id.parse().map_err(|_| no_such())?;
    let alert: AlertId = id.parse().map_err(|_| no_such())?;
    let (message, alert, mut past) = read(state, move |state| {
        look_up(state, message, alert).map_err(|error| Refusal::internal(&error))
    })
    .await?;
    let Some(alert) = alert else {
        // It came through the API.
        let message = message.ok_or_else(no_such)?;
        let facts = Facts::none();
        let mut past = Past { messages: vec![message], ..Past::default() };
        past.add_lanes(state);
        let conclusion = verdict::of_message(&past);
        return Ok(Explanation::of(Some(id), None, None, facts, &past, conclusion));
    };
    let of = past.of();
    let asked = state.parts.intake.ask(move |pipeline, set, now, _| {
        (Caused::default(), why::of_alert(pipeline, set, alert, of, now))
    });
    let (stands, mut facts) = asked.await.map_err(Refusal::not_now)?.ok_or_else(no_such)?;
    count(state, &mut facts);
    past.add_lanes(state);
    let conclusion = verdict::of_alert(stands.as_ref(), &facts, &past);
    Ok(Explanation::of(Some(id), None, stands, facts, &past, conclusion))
}

fn look_up(
    state: &ApiState,
    message: MessageId,
    alert: AlertId,
) -> Result<(Option<Message>, Option<AlertId>, Past), ReadError> {
    let store = &state.parts.store;
    let message = store.message(message)?;
    let alert = match &message {
        Some(message) => message.alert.as_ref().map(|alert| alert.id),
        None => Some(alert),
    };
    let mut past = Past::default();
    if let Some(alert) = alert {
        past.steps = store.readable_steps(alert);
        past.messages = store.readable_messages_of(alert);
        past.add_shared(state)?;
    }
    Ok((message, alert, past))
}

impl Past {
    /// Adds the messages of several alerts that steps name.
    fn add_shared(&mut self, state: &ApiState) -> Result<(), ReadError> {
        let mut known: HashSet<MessageId> = self.messages.iter().map(|one| one.id).collect();
        for id in self.steps.iter().filter_map(|step| step.message) {
            if known.insert(id) {
                self.messages.extend(state.parts.store.message(id)?);
            }
        }
        self.messages.sort_by_key(|message| (message.created_at, message.id));
        Ok(())
    }

    /// Adds the lanes that keep its messages waiting.
    fn add_lanes(&mut self, state: &ApiState) {
        let waits = |channel: &Channel| {
            let mut messages = self.messages.iter();
            messages.any(|one| one.target.channel == *channel && !one.status.is_final())
        };
        let stands =
            |lane: &LaneStatus| lane.state != LaneState::Up && lane.channels.iter().any(waits);
        self.lanes = state.parts.dispatch.lanes().into_iter().filter(stands).collect();
    }

    /// Rule and key of the alert.
    fn of(&self) -> Option<(Arc<str>, Arc<str>)> {
        let step = self.steps.first().map(|step| (step.rule.clone(), step.key.clone()));
        let alert = || self.messages.first()?.alert.as_ref();
        step.or_else(|| alert().map(|alert| (alert.rule.clone(), alert.key.clone())))
    }
}

/// What happened around something.
async fn around(state: &Shared, asked: Asked, since: Span) -> Result<Explanation, Refusal> {
    let question = asked.clone();
    let found = state.parts.intake.ask(move |pipeline, set, now, _| {
        (Caused::default(), (why::facts(pipeline, set, &question, now), now))
    });
    let (mut facts, now) = found.await.map_err(Refusal::not_now)?;
    count(state, &mut facts);
    let millis = i64::try_from(since.get().as_millis()).unwrap_or(i64::MAX);
    let from = Timestamp::from_millis(now.as_millis().saturating_sub(millis));
    let (question, naming) = (asked.clone(), facts.naming.clone());
    let mut past = read(state, move |state| {
        past(state, &question, &naming, from).map_err(|error| Refusal::internal(&error))
    })
    .await?;
    past.add_lanes(state);
    let conclusion = verdict::around(&asked, &facts, &past, from);
    Ok(Explanation { asked, ..Explanation::of(None, Some(from), None, facts, &past, conclusion) })
}

fn past(
    state: &ApiState,
    asked: &Asked,
    naming: &HashSet<Arc<str>>,
    from: Timestamp,
) -> Result<Past, ReadError> {
    let store = &state.parts.store;
    // The store filters, so that what others were told does not use up the lines of the answer.
    let Asked { contact, topic, rule, key } = asked.clone();
    let naming = if contact.is_some() { naming.clone() } else { HashSet::new() };
    let filter = StepFilter { rule, key, topic, contact, naming, ..StepFilter::default() };
    let mut steps = store.steps_since(&filter, from, LINES_MAX)?;
    steps.reverse();
    let Asked { contact, topic, rule, key } = asked.clone();
    let since = Some(from);
    let filter = MessageFilter { rule, key, topic, contact, since, ..MessageFilter::default() };
    let messages = store.messages(&filter, None, LINES_MAX)?;
    let is_part = steps.len() == LINES_MAX || messages.len() == LINES_MAX;
    let mut past = Past { steps, messages, is_part, lanes: Vec::new() };
    past.add_shared(state)?;
    if let Some(contact) = &asked.contact {
        past.messages.retain(|message| message.contact.as_deref() == Some(contact));
    }
    Ok(past)
}

/// Adds what the metrics have counted.
fn count(state: &Shared, facts: &mut Facts) {
    let metrics = &state.parts.metrics;
    for rule in &mut facts.rules {
        for reason in Reason::ALL.iter().copied() {
            let by = ByRule { rule: rule.name.to_string(), reason };
            if let Some(failures) = metrics.rule_failures.get(&by) {
                rule.failures.insert(reason.as_str(), failures.get());
            }
            if let Some(passed) = metrics.rule_passed.get(&by) {
                rule.passed.insert(reason.as_str(), passed.get());
            }
        }
    }
}

impl Explanation {
    fn of(
        id: Option<String>,
        since: Option<Timestamp>,
        alert: Option<AlertNow>,
        facts: Facts,
        past: &Past,
        conclusion: String,
    ) -> Self {
        let mut timeline = timeline::of(past, since);
        let left_out = timeline.len().saturating_sub(LINES_MAX);
        timeline.drain(..left_out);
        let asked = Asked::default();
        let lanes = past.lanes.iter().cloned().map(LaneView::from).collect();
        Self { asked, id, since, alert, facts, lanes, timeline, left_out, conclusion }
    }
}
