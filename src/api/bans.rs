//! Bans: added, listed, removed. The broker takes them from the store and acts at once.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::body::{self, fault};
use super::refusal::Refusal;
use super::view::rfc_3339;
use crate::clock::Timestamp;
use crate::model::Reason;
use crate::span::Span;
use crate::store::{Ban, BanError, BanKind};

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AddBody {
    /// `client_id`, `identity`, `user` or `address`.
    kind: String,
    value: String,
    /// How long; for good where it is absent.
    #[serde(rename = "for")]
    lasts: Option<Span>,
    why: String,
}

#[derive(Serialize)]
struct BanView<'a> {
    kind: BanKind,
    value: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'a str,
    #[serde(serialize_with = "rfc_3339")]
    added_at: Timestamp,
}

impl<'a> BanView<'a> {
    fn of(ban: &'a Ban) -> Self {
        let Ban { kind, value, until, why, added_at } = ban;
        let until = until.map(|until| until.to_string());
        Self { kind: *kind, value, until, why, added_at: *added_at }
    }
}

#[derive(Serialize)]
struct BansView<'a> {
    bans: Vec<BanView<'a>>,
}

/// `GET /v1/bans`
pub(super) async fn list(State(state): State<Shared>) -> Result<Response, Refusal> {
    let now = state.parts.clock.now();
    let bans = state.parts.store.bans(now).map_err(|error| Refusal::internal(&error))?;
    let bans = bans.iter().map(BanView::of).collect();
    Ok(Json(BansView { bans }).into_response())
}

/// `POST /v1/bans`: adds a ban or replaces it, and ends the connections that it is about.
pub(super) async fn add(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let (body, mut faults): (AddBody, _) = body::json(request, &state.config).await?;
    let now = state.parts.clock.now();
    let Ok(kind) = body.kind.parse() else {
        faults.push(fault("kind", "client_id, identity, user or address"));
        return Err(Refusal::invalid(faults));
    };
    let until = body.lasts.map(|lasts| now.plus(lasts.get()));
    let ban = Ban { kind, value: body.value, until, why: body.why, added_at: now };
    let ban = match ban.checked() {
        Ok(ban) if faults.is_empty() => ban,
        Ok(_) => return Err(Refusal::invalid(faults)),
        Err(what) => {
            faults.push(fault("value", what));
            return Err(Refusal::invalid(faults));
        }
    };
    state.parts.store.put_ban(&ban).await.map_err(refused)?;
    tracing::info!(kind = kind.as_str(), value = ban.value, why = ban.why, "banned");
    Ok((StatusCode::CREATED, Json(BanView::of(&ban))).into_response())
}

/// `DELETE /v1/bans/{kind}/{value}`
pub(super) async fn remove(
    State(state): State<Shared>,
    Path((kind, value)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let none = || Refusal::not_found(format!("there is no ban on {kind} `{value}`"));
    let parsed: BanKind = kind.parse().map_err(|()| none())?;
    match state.parts.store.remove_ban(parsed, &value).await {
        Ok(true) => {
            tracing::info!(kind, value, "no longer banned");
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(false) => Err(none()),
        Err(error) => Err(refused(error)),
    }
}

fn refused(error: BanError) -> Refusal {
    match error {
        BanError::TooMany(_) => Refusal::conflict(error.to_string()),
        BanError::Read(error) => Refusal::internal(&error),
        BanError::Commit(_) => Refusal::not_now(Reason::StoreFailed),
    }
}
