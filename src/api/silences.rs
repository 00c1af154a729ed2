//! Silences: listed with those of the rule files, made, ended.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Shared;
use super::body;
use super::refusal::Refusal;
use crate::intake::desk::silences::{self, SilenceNow, Wanted};
use crate::intake::pipeline::Caused;
use crate::problem::Fault;

#[derive(Serialize)]
struct PageView {
    silences: Vec<SilenceNow>,
}

/// `GET /v1/silences`
pub(super) async fn list(State(state): State<Shared>) -> Result<Response, Refusal> {
    let asked = state
        .parts
        .intake
        .ask(|pipeline, set, now, _| (Caused::default(), silences::list(pipeline, set, now)));
    let silences = asked.await.map_err(Refusal::not_now)?;
    Ok(Json(PageView { silences }).into_response())
}

/// `POST /v1/silences`: what it covers is held from now on, until it ends.
pub(super) async fn add(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let (body, mut faults): (Wanted, _) = body::json(request, &state.config).await?;
    let checked = body.check(state.parts.clock.now());
    let checked = match checked {
        Ok(checked) if faults.is_empty() => checked,
        Ok(_) => return Err(Refusal::invalid(faults)),
        Err(found) => {
            body::add(&mut faults, found);
            return Err(Refusal::invalid(faults));
        }
    };
    let asked = state.parts.intake.ask(move |pipeline, set, now, op| {
        let silence = match checked.resolve(pipeline) {
            Ok(silence) => silence,
            Err(problem) => return (Caused::default(), Err(vec![problem])),
        };
        let shown = SilenceNow::of(&silence, now);
        match pipeline.add_silence(set, silence, now, op) {
            Ok(caused) => (caused, Ok(shown)),
            Err(bad) => (Caused::default(), Err(bad.0)),
        }
    });
    let silence = asked.await.map_err(Refusal::not_now)?.map_err(|problems| {
        let fault = |what| Fault { path: Vec::new(), what };
        Refusal::invalid(problems.into_iter().map(fault).collect())
    })?;
    tracing::info!(silence = silence.id.as_deref(), by = %silence.by, "silenced");
    Ok((StatusCode::CREATED, Json(silence)).into_response())
}

/// `DELETE /v1/silences/{id}`: ends it; what it has held and still stands is told now.
pub(super) async fn end(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let wanted = id.clone();
    let asked = state.parts.intake.ask(move |pipeline, set, now, op| {
        if let Some(caused) = pipeline.end_silence(set, &wanted, now, op) {
            return (caused, Ok(()));
        }
        let is_it = |silence: &SilenceNow| silence.name.as_deref() == Some(&*wanted);
        (Caused::default(), Err(silences::list(pipeline, set, now).iter().any(is_it)))
    });
    match asked.await.map_err(Refusal::not_now)? {
        Ok(()) => {
            tracing::info!(silence = id, "a silence is ended by request");
            Ok(StatusCode::NO_CONTENT)
        }
        Err(true) => Err(Refusal::conflict(format!(
            "silence `{id}` stands in a rule file; take it out there, and load the rules again"
        ))),
        Err(false) => Err(Refusal::not_found(format!(
            "there is no silence `{id}`; `watchbell silence list` shows them"
        ))),
    }
}
