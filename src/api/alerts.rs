//! Alerts that fire or are about to: listed, shown, acknowledged, forgotten.

use axum::Json;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::body::{self, fault};
use super::messages::{parse_query, read};
use super::refusal::Refusal;
use crate::intake::desk::alerts::{self, AlertNow, Query, Stand};
use crate::intake::pipeline::Caused;
use crate::model::tell::Ack;
use crate::model::{AlertId, Severity, UnknownWord};
use crate::problem::{Fault, unknown_key};

/// The longest name and note of an acknowledgement, bytes.
const TEXT_BYTES_MAX: usize = 1024;

#[derive(Serialize)]
struct PageView {
    alerts: Vec<AlertNow>,
    /// How many there are, listed or not.
    total: usize,
}

/// `GET /v1/alerts`
pub(super) async fn list(
    State(state): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let query = parse(query.as_deref().unwrap_or_default(), state.config.page_max)?;
    let permit = state.scans.acquire().await;
    let asked = state
        .parts
        .intake
        .ask(move |pipeline, set, _, _| (Caused::default(), alerts::list(pipeline, set, &query)));
    let (alerts, total) = asked.await.map_err(Refusal::not_now)?;
    drop(permit);
    let alerts = with_messages(&state, alerts).await?;
    Ok(Json(PageView { alerts, total }).into_response())
}

/// The alerts, with what became of the messages that told of them.
async fn with_messages(
    state: &Shared,
    mut alerts: Vec<AlertNow>,
) -> Result<Vec<AlertNow>, Refusal> {
    read(state, move |state| {
        for alert in &mut alerts {
            alert.note(&state.parts.store.readable_messages_of(alert.id));
        }
        Ok(alerts)
    })
    .await
}

fn parse(query: &str, most: usize) -> Result<Query, Refusal> {
    const KNOWN: [&str; 5] = ["state", "rule", "key", "severity", "limit"];
    let mut parsed = Query { limit: 50.min(most), ..Query::default() };
    let mut faults = Vec::new();
    for (key, value) in parse_query(query)? {
        let words = || value.split(',').filter(|word| !word.is_empty());
        match key.as_str() {
            "state" => match words().map(Stand::named).collect::<Option<Vec<_>>>() {
                Some(stands) => parsed.stands.extend(stands),
                None => faults.push(fault(&key, "firing, acknowledged or pending")),
            },
            "rule" => parsed.rule = Some(value),
            "key" => parsed.key = Some(value),
            "severity" => {
                match words().map(str::parse).collect::<Result<Vec<Severity>, UnknownWord>>() {
                    Ok(severities) => parsed.severities.extend(severities),
                    Err(error) => faults.push(fault(&key, error.to_string())),
                }
            }
            "limit" => match value.parse() {
                Ok(limit) if limit > 0 => parsed.limit = most.min(limit),
                _ => faults.push(fault(&key, "expected a whole number greater than 0")),
            },
            other => faults.push(fault(&key, unknown_key(other, &KNOWN))),
        }
    }
    if faults.is_empty() { Ok(parsed) } else { Err(Refusal::invalid(faults)) }
}

/// `GET /v1/alerts/{id}`
pub(super) async fn show(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id = alert_id(&id)?;
    let asked = state
        .parts
        .intake
        .ask(move |pipeline, set, _, _| (Caused::default(), alerts::one(pipeline, set, id)));
    let alert = asked.await.map_err(Refusal::not_now)?.ok_or_else(|| no_alert(id))?;
    let mut alerts = with_messages(&state, vec![alert]).await?;
    Ok(Json(alerts.pop()).into_response())
}

/// What `POST /v1/alerts/{id}/ack` takes.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AckBody {
    /// Who takes care of it.
    by: String,
    /// In their words.
    note: Option<String>,
}

impl AckBody {
    fn check(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.by.trim().is_empty() {
            faults.push(fault("by", "say who takes care of it"));
        }
        for (field, text) in [("by", Some(&self.by)), ("note", self.note.as_ref())] {
            if text.is_some_and(|text| text.len() > TEXT_BYTES_MAX) {
                faults.push(fault(field, format!("at most {TEXT_BYTES_MAX} bytes")));
            }
        }
        faults
    }
}

/// `POST /v1/alerts/{id}/ack`: somebody takes care of it; it is not repeated any more.
pub(super) async fn acknowledge(
    State(state): State<Shared>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let id = alert_id(&id)?;
    let (body, mut faults): (AckBody, _) = body::json(request, &state.config).await?;
    body::add(&mut faults, body.check());
    if !faults.is_empty() {
        return Err(Refusal::invalid(faults));
    }
    let (by, note) = (body.by.trim().into(), body.note.map(Into::into));
    let asked = state.parts.intake.ask(move |pipeline, set, now, op| {
        let ack = Ack { by, at: now, note };
        match pipeline.acknowledge(set, id, ack, now, op) {
            Some(caused) => (caused, Ok(alerts::one(pipeline, set, id))),
            // It may be one that does not fire yet.
            None => (Caused::default(), Err(alerts::one(pipeline, set, id).is_some())),
        }
    });
    let alert = match asked.await.map_err(Refusal::not_now)? {
        Ok(alert) => alert.ok_or_else(|| no_alert(id))?,
        Err(true) => {
            return Err(Refusal::conflict(format!(
                "alert {id} does not fire yet: there is nothing to acknowledge"
            )));
        }
        Err(false) => return Err(no_alert(id)),
    };
    let by = alert.ack.as_ref().map(|ack| &*ack.by);
    tracing::info!(alert_id = %id, rule = %alert.rule, by, "acknowledged");
    Ok(Json(alert).into_response())
}

/// `POST /v1/alerts/{id}/forget`: its instance is as if it had never been heard of; nobody is told.
pub(super) async fn forget(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = alert_id(&id)?;
    let asked = state.parts.intake.ask(move |pipeline, set, now, op| {
        match pipeline.forget(set, id, now, op) {
            Some(caused) => (caused, true),
            None => (Caused::default(), false),
        }
    });
    if !asked.await.map_err(Refusal::not_now)? {
        return Err(no_alert(id));
    }
    tracing::info!(alert_id = %id, "an instance is forgotten by request");
    Ok(StatusCode::NO_CONTENT)
}

fn no_alert(id: AlertId) -> Refusal {
    Refusal::not_found(format!(
        "alert {id} neither fires nor is about to; `watchbell alert list` shows those that do, `watchbell explain {id}` what became of it"
    ))
}

fn alert_id(text: &str) -> Result<AlertId, Refusal> {
    text.parse()
        .map_err(|_| Refusal::not_found("an alert id is a UUID; `watchbell alert list` shows them"))
}
