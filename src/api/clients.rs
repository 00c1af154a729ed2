//! Clients that are connected now: listed a page at a time, and disconnected.

use std::net::SocketAddr;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Shared;
use super::body::fault;
use super::messages::parse_query;
use super::refusal::Refusal;
use super::view::rfc_3339;
use crate::clock::Timestamp;
use crate::online::{Client, Query};
use crate::problem::unknown_key;

#[derive(Serialize)]
struct ClientView<'a> {
    client_id: &'a str,
    /// `null` for an anonymous one.
    identity: Option<&'a str>,
    address: SocketAddr,
    listener: &'a str,
    version: &'static str,
    #[serde(serialize_with = "rfc_3339")]
    since: Timestamp,
    subscriptions: usize,
    queued: usize,
    in_flight: usize,
}

#[derive(Serialize)]
struct PageView<'a> {
    clients: Vec<ClientView<'a>>,
    /// Give this as `after` for the next page; `null` where there is none.
    next: Option<&'a str>,
}

/// `GET /v1/clients`
pub(super) async fn list(
    State(state): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let most = state.config.page_max;
    let mut query = parse(query.as_deref().unwrap_or_default(), most)?;
    // One more, to know whether there is another page.
    query.limit += 1;
    let mut clients = state.parts.clients.list(&query);
    let is_more = clients.len() == query.limit;
    clients.truncate(query.limit - 1);
    let view = PageView {
        next: clients.last().filter(|_| is_more).map(|last| &*last.client_id),
        clients: clients.iter().map(ClientView::of).collect(),
    };
    Ok(Json(view).into_response())
}

impl<'a> ClientView<'a> {
    fn of(client: &'a Client) -> Self {
        Self {
            client_id: &client.client_id,
            identity: client.identity.as_deref(),
            address: client.address,
            listener: &client.listener,
            version: client.version,
            since: client.since,
            subscriptions: client.subscriptions,
            queued: client.queued,
            in_flight: client.in_flight,
        }
    }
}

fn parse(query: &str, most: usize) -> Result<Query, Refusal> {
    const KNOWN: [&str; 5] = ["identity", "prefix", "listener", "limit", "after"];
    let mut parsed = Query { limit: 50.min(most), ..Query::default() };
    let mut faults = Vec::new();
    for (key, value) in parse_query(query)? {
        match key.as_str() {
            "identity" => parsed.identity = Some(value),
            "prefix" => parsed.prefix = value,
            "listener" => parsed.listener = Some(value),
            "after" => parsed.after = Some(value),
            "limit" => match value.parse() {
                Ok(limit) if limit > 0 => parsed.limit = most.min(limit),
                _ => faults.push(fault(&key, "expected a whole number greater than 0")),
            },
            other => faults.push(fault(&key, unknown_key(other, &KNOWN))),
        }
    }
    if faults.is_empty() { Ok(parsed) } else { Err(Refusal::invalid(faults)) }
}

/// `POST /v1/clients/{client_id}/disconnect`
pub(super) async fn disconnect(
    State(state): State<Shared>,
    Path(client_id): Path<String>,
) -> Result<StatusCode, Refusal> {
    if state.parts.clients.disconnect(&client_id) {
        tracing::info!(client_id, "a client is disconnected by request");
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(Refusal::not_found(format!(
        "no client is connected as `{client_id}`; `watchbell device list --online` shows them"
    )))
}
