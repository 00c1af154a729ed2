//! How a message looks outside: times as RFC 3339, addresses masked, nothing that the wire needs.

use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::clock::Timestamp;
use crate::model::{
    AlertRef, Attempt, AttemptOutcome, Channel, Fallback, Message, Reason, Segments, Severity,
    Status, Target, Template,
};
use crate::provider::phone::Shown;

/// Writes a time as RFC 3339.
pub(super) fn rfc_3339<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
}

fn rfc_3339_or_null<S: Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => to.collect_str(time),
        None => to.serialize_none(),
    }
}

/// A message.
#[derive(Serialize)]
pub(super) struct MessageView<'a> {
    id: String,
    status: Status,
    reason: Option<Reason>,
    detail: Option<&'a str>,
    channel: Channel,
    /// Masked.
    address: String,
    contact: Option<&'a str>,
    severity: Severity,
    title: Option<&'a str>,
    text: &'a str,
    template: Option<&'a Template>,
    alert: Option<&'a AlertRef>,
    segments: Option<Segments>,
    #[serde(serialize_with = "rfc_3339")]
    created_at: Timestamp,
    #[serde(serialize_with = "rfc_3339")]
    updated_at: Timestamp,
    #[serde(serialize_with = "rfc_3339")]
    expires_at: Timestamp,
    /// When the next attempt is due; only while it waits.
    #[serde(serialize_with = "rfc_3339_or_null")]
    due_at: Option<Timestamp>,
    provider: Option<&'a str>,
    provider_ref: Option<&'a str>,
    attempt_count: u32,
    /// The contact's next channels, should this one fail or take too long.
    then: Vec<TargetView>,
    /// How it stands to the messages on the contact's other channels; `null` where there are none.
    fallback: Option<FallbackView<'a>>,
    /// Only where one message was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<Vec<AttemptView<'a>>>,
}

#[derive(Serialize)]
struct FallbackView<'a> {
    /// The message on the channel before.
    before: Option<String>,
    /// The message on the next channel.
    next: Option<String>,
    /// When it was found that no channel is left.
    #[serde(serialize_with = "rfc_3339_or_null")]
    unheard_at: Option<Timestamp>,
    /// What happened, in words.
    notes: Vec<NoteView<'a>>,
}

#[derive(Serialize)]
struct NoteView<'a> {
    #[serde(serialize_with = "rfc_3339")]
    at: Timestamp,
    text: &'a str,
}

impl<'a> FallbackView<'a> {
    fn of(fallback: &'a Fallback) -> Self {
        Self {
            before: fallback.before.map(|id| id.to_string()),
            next: fallback.next.map(|id| id.to_string()),
            unheard_at: fallback.unheard_at,
            notes: fallback
                .notes
                .iter()
                .map(|note| NoteView { at: note.at, text: &note.text })
                .collect(),
        }
    }
}

#[derive(Serialize)]
struct TargetView {
    channel: Channel,
    address: String,
}

#[derive(Serialize)]
struct AttemptView<'a> {
    number: u32,
    provider: &'a str,
    run: String,
    #[serde(serialize_with = "rfc_3339")]
    started_at: Timestamp,
    #[serde(serialize_with = "rfc_3339_or_null")]
    ended_at: Option<Timestamp>,
    /// `accepted`, `retry`, `rejected`, `unknown`; `running` while there is none.
    outcome: &'static str,
    reason: Option<Reason>,
    detail: Option<&'a str>,
    provider_ref: Option<&'a str>,
}

impl<'a> MessageView<'a> {
    /// Without its attempts, for lists.
    pub(super) fn brief(message: &'a Message) -> Self {
        Self {
            id: message.id.to_string(),
            status: message.status,
            reason: message.reason,
            detail: message.detail.as_deref(),
            channel: message.target.channel,
            address: message.target.address.to_string(),
            contact: message.contact.as_deref(),
            severity: message.severity,
            title: message.content.title.as_deref(),
            text: &message.content.text,
            template: message.content.template.as_ref(),
            alert: message.alert.as_ref(),
            segments: message.segments,
            created_at: message.created_at,
            updated_at: message.updated_at,
            expires_at: message.expires_at,
            due_at: (message.status == Status::Queued).then_some(message.due_at),
            provider: message.provider.as_deref(),
            provider_ref: message.provider_ref.as_deref(),
            attempt_count: message.attempt_count,
            then: message.then.iter().map(TargetView::of).collect(),
            fallback: message.fallback.as_deref().map(FallbackView::of),
            attempts: None,
        }
    }

    /// With its attempts.
    pub(super) fn full(message: &'a Message) -> Self {
        Self {
            attempts: Some(message.attempts.iter().map(AttemptView::of).collect()),
            ..Self::brief(message)
        }
    }
}

impl TargetView {
    fn of(target: &Target) -> Self {
        Self { channel: target.channel, address: target.address.to_string() }
    }
}

impl<'a> AttemptView<'a> {
    fn of(attempt: &'a Attempt) -> Self {
        let (outcome, reason, detail, provider_ref) = match &attempt.outcome {
            None => ("running", None, None, None),
            Some(AttemptOutcome::Accepted { provider_ref }) => {
                ("accepted", None, None, provider_ref.as_deref())
            }
            Some(AttemptOutcome::Retry { reason, detail }) => {
                ("retry", Some(*reason), Some(detail.as_str()), None)
            }
            Some(AttemptOutcome::Rejected { reason, detail }) => {
                ("rejected", Some(*reason), Some(detail.as_str()), None)
            }
            Some(AttemptOutcome::Unknown { detail, .. }) => {
                ("unknown", Some(Reason::NoAnswer), Some(detail.as_str()), None)
            }
        };
        Self {
            number: attempt.number,
            provider: &attempt.provider,
            run: attempt.run.to_string(),
            started_at: attempt.started_at,
            ended_at: attempt.ended_at,
            outcome,
            reason,
            detail,
            provider_ref,
        }
    }
}

/// A lane, with its time as RFC 3339.
#[derive(Serialize)]
pub(super) struct LaneView {
    provider: Arc<str>,
    kind: &'static str,
    channels: Vec<Channel>,
    state: crate::dispatch::LaneState,
    reason: Option<Reason>,
    detail: Option<String>,
    #[serde(serialize_with = "rfc_3339_or_null")]
    until: Option<Timestamp>,
    in_flight: usize,
    ready: usize,
    /// What an operator should know of it though it takes messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
    /// Endpoints behind it that are left alone: those with the most messages.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<EndpointView>,
}

/// An endpoint that is left alone.
#[derive(Serialize)]
struct EndpointView {
    name: Arc<str>,
    state: crate::dispatch::LaneState,
    reason: Reason,
    detail: String,
    #[serde(serialize_with = "rfc_3339")]
    until: Timestamp,
    waiting: usize,
}

impl From<crate::dispatch::EndpointStatus> for EndpointView {
    fn from(endpoint: crate::dispatch::EndpointStatus) -> Self {
        let crate::dispatch::EndpointStatus { name, state, reason, detail, until, waiting } =
            endpoint;
        Self { name, state, reason, detail, until, waiting }
    }
}

impl From<crate::dispatch::LaneStatus> for LaneView {
    fn from(lane: crate::dispatch::LaneStatus) -> Self {
        Self {
            provider: lane.provider,
            kind: lane.kind,
            channels: lane.channels,
            state: lane.state,
            reason: lane.reason,
            detail: lane.detail,
            until: lane.until,
            in_flight: lane.in_flight,
            ready: lane.ready,
            warning: lane.warning,
            endpoints: lane.endpoints.into_iter().map(EndpointView::from).collect(),
        }
    }
}

/// A message as the virtual phone showed it.
#[derive(Serialize)]
pub(super) struct ShownView<'a> {
    id: String,
    #[serde(serialize_with = "rfc_3339")]
    at: Timestamp,
    channel: Channel,
    contact: Option<&'a str>,
    /// Masked by the phone already.
    address: &'a str,
    severity: Severity,
    title: Option<&'a str>,
    text: &'a str,
    alert: Option<&'a AlertRef>,
    segments: Option<Segments>,
}

impl<'a> ShownView<'a> {
    pub(super) fn of(shown: &'a Shown) -> Self {
        Self {
            id: shown.id.to_string(),
            at: shown.at,
            channel: shown.channel,
            contact: shown.contact.as_deref(),
            address: &shown.address,
            severity: shown.severity,
            title: shown.title.as_deref(),
            text: &shown.text,
            alert: shown.alert.as_ref(),
            segments: shown.segments,
        }
    }
}
