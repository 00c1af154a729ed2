//! The virtual phone over HTTP: what it showed, and live what it shows.
//!
//! The event stream begins with what is on the screen, so that a follower misses nothing between
//! two requests. It ends when the process stops, and when the follower does not read for
//! `api.write_timeout`; one that reads too slowly is told to start over.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};

use super::Shared;
use super::refusal::Refusal;
use super::view::ShownView;
use crate::model::Reason;
use crate::provider::phone::Shown;

/// A comment this often shows both sides that the other is there.
const HEARTBEAT: Duration = Duration::from_secs(15);

#[derive(Serialize)]
struct RecentView<'a> {
    messages: Vec<ShownView<'a>>,
}

/// `GET /v1/phone`
pub(super) async fn recent(State(state): State<Shared>) -> Response {
    let shown = state.parts.screen.recent();
    let messages = shown.iter().map(|shown| ShownView::of(shown)).collect();
    Json(RecentView { messages }).into_response()
}

/// `GET /v1/phone/events`
pub(super) async fn events(State(state): State<Shared>) -> Result<Response, Refusal> {
    let permit = Arc::clone(&state.followers)
        .try_acquire_owned()
        .map_err(|_| Refusal::not_now(Reason::TooMany))?;
    // In this order nothing falls between the two; what is in both is told once.
    let live = state.parts.screen.subscribe();
    let recent = state.parts.screen.recent();
    let follower = Follower {
        pending: recent.iter().rev().cloned().collect(),
        recent,
        live,
        stop: state.stop.clone(),
        _permit: permit,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let heartbeat = KeepAlive::new().interval(HEARTBEAT);
    Ok(Sse::new(events).keep_alive(heartbeat).into_response())
}

struct Follower {
    /// What was on the screen at the start and has not been told yet, the next one last.
    pending: Vec<Arc<Shown>>,
    /// What was on the screen at the start.
    recent: Vec<Arc<Shown>>,
    live: broadcast::Receiver<Arc<Shown>>,
    stop: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    async fn next(&mut self) -> Option<Event> {
        if let Some(shown) = self.pending.pop() {
            return Some(event(&shown));
        }
        loop {
            let shown = tokio::select! {
                biased;
                _ = self.stop.wait_for(|stop| *stop) => return None,
                shown = self.live.recv() => shown,
            };
            match shown {
                Ok(shown) if self.recent.iter().any(|told| Arc::ptr_eq(told, &shown)) => {}
                Ok(shown) => {
                    // From the first new one on, nothing of the start comes again.
                    self.recent = Vec::new();
                    return Some(event(&shown));
                }
                Err(RecvError::Lagged(_)) => {
                    return Some(Event::default().event("lagged").data("{}"));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

fn event(shown: &Shown) -> Event {
    let event = Event::default().event("shown");
    event
        .json_data(ShownView::of(shown))
        .unwrap_or_else(|_| Event::default().event("lagged").data("{}"))
}
