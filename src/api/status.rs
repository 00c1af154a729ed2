//! What stands how: health, readiness, metrics, the operator's overview, and resuming a lane.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::refusal::Refusal;
use super::view::LaneView;
use super::{About, Readiness, RulesInForce, Shared, messages};
use crate::dispatch::Unreached;
use crate::model::{Reason, UpstreamState};

/// How long the status says that the wall clock was set.
const STEP_SHOWN: Duration = Duration::from_secs(86_400);

/// So many people who are not reached are named.
const UNREACHED_SHOWN: usize = 100;

/// `GET /healthz`: the process lives.
pub(super) async fn health() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: it takes work.
pub(super) async fn ready(State(state): State<Shared>) -> Response {
    match readiness(&state) {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::NotReady(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response()
        }
    }
}

fn readiness(state: &Shared) -> Readiness {
    if state.parts.store.failed().borrow().is_some() {
        return Readiness::NotReady(Reason::StoreFailed);
    }
    state.parts.ready.borrow().clone()
}

/// `GET /metrics`
pub(super) async fn metrics(State(state): State<Shared>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = state.parts.metrics.encode();
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

#[derive(Serialize)]
struct StatusView<'a> {
    #[serde(flatten)]
    about: &'a About,
    now: String,
    uptime_secs: u64,
    ready: bool,
    /// Why it is not ready.
    reason: Option<Reason>,
    alerts: Alerts,
    outbox: Outbox,
    lanes: Vec<LaneView>,
    people: People,
    upstreams: Vec<UpstreamView>,
    rules: &'a RulesInForce,
    /// Why certificates that have changed on disk are not in force.
    certificate_problems: &'a [String],
    /// What is to be known of the wall clock: that it was set, or is not set.
    clock_problem: Option<String>,
    /// What is wrong with the store, and what to do.
    store_problems: Vec<String>,
    disk_free_bytes: Option<u64>,
    /// Nothing is sent, because the disk is full.
    sending_held: bool,
    data_dir: String,
}

#[derive(Serialize)]
struct UpstreamView {
    name: Arc<str>,
    /// Publishes that wait for it; `null` where nothing goes to it.
    queued: Option<usize>,
    #[serde(flatten)]
    state: UpstreamState,
}

/// As the last checkpoint of the engine found them, within `intake.checkpoint`.
#[derive(Serialize)]
struct Alerts {
    firing: i64,
    pending: i64,
    /// Instances that are remembered.
    instances: i64,
    /// Silences in force.
    silences: i64,
}

#[derive(Serialize)]
struct Outbox {
    /// Messages that have not ended.
    waiting: usize,
    /// When the oldest of them entered the outbox.
    oldest_at: Option<String>,
    /// Messages that ended since the start, by reason.
    dead: BTreeMap<&'static str, u64>,
}

/// Whom no channel reaches, and who hears of that.
#[derive(Serialize)]
struct People {
    unreached: Vec<Unreached>,
    /// `notify.fallback`.
    fallback: Vec<Arc<str>>,
}

/// `GET /v1/status`
pub(super) async fn show(State(state): State<Shared>) -> Response {
    let parts = &state.parts;
    let now = parts.clock.now();
    let reason = match readiness(&state) {
        Readiness::Ready => None,
        Readiness::NotReady(reason) => Some(reason),
    };
    let rules = parts.rules.load();
    let certificate_problems = parts.certificate_problems.load();
    let dead = Reason::ALL.iter().filter_map(|&reason| {
        let by = crate::telemetry::ByReason { reason };
        let count = parts.metrics.messages_dead.get(&by)?.get();
        Some((reason.as_str(), count))
    });
    let view = StatusView {
        about: &parts.about,
        now: now.to_string(),
        uptime_secs: now.since(parts.about.started_at).as_secs(),
        ready: reason.is_none(),
        reason,
        alerts: Alerts {
            firing: parts.metrics.alerts_firing.get(),
            pending: parts.metrics.alerts_pending.get(),
            instances: parts.metrics.instances.get(),
            silences: parts.metrics.silences.get(),
        },
        outbox: Outbox {
            waiting: parts.dispatch.waiting(),
            oldest_at: parts.dispatch.oldest_at().map(|at| at.to_string()),
            dead: dead.collect(),
        },
        lanes: parts.dispatch.lanes().into_iter().map(LaneView::from).collect(),
        people: People {
            unreached: parts.dispatch.unreached().into_iter().take(UNREACHED_SHOWN).collect(),
            fallback: parts.dispatch.fallback(),
        },
        upstreams: (parts.upstreams)().into_iter().map(upstream).collect(),
        rules: &rules,
        certificate_problems: &certificate_problems,
        clock_problem: parts.clock.problem(STEP_SHOWN),
        store_problems: parts.store.problems(),
        disk_free_bytes: parts.store.disk_free_bytes().ok(),
        sending_held: parts.dispatch.is_held(),
        data_dir: parts.store.directory().display().to_string(),
    };
    Json(view).into_response()
}

fn upstream((state, queued): (UpstreamState, Option<usize>)) -> UpstreamView {
    UpstreamView { name: Arc::clone(&state.name), queued, state }
}

/// `POST /v1/providers/{name}/resume`
pub(super) async fn resume(
    State(state): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    let dispatch = &state.parts.dispatch;
    dispatch.resume(&name).await.map_err(messages::refuse)?;
    Ok(StatusCode::NO_CONTENT)
}
