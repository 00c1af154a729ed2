//! The store as a whole: a consistent copy for backup and export, and whether its rows can be read.
//!
//! The copy goes to whoever asks for it with the key, as JSON lines; nothing is written on this
//! machine for it, so no path crosses the API.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;

use super::Shared;
use super::messages::read;
use super::refusal::Refusal;
use crate::store::{Counts, Piece, StoreCopy};

/// `GET /v1/store/copy`
pub(super) async fn copy(State(state): State<Shared>) -> Response {
    let begun = Copying { copy: state.parts.store.copy(), rows: 0, ended: false, begun: false };
    let lines = stream::unfold(begun, |mut copying| async move {
        if copying.ended {
            return None;
        }
        let text = copying.next().await;
        copying.ended |= text.is_err();
        Some((text.map(Bytes::from), copying))
    });
    let body = Body::from_stream(lines);
    ([(header::CONTENT_TYPE, "application/jsonl")], body).into_response()
}

struct Copying {
    copy: StoreCopy,
    rows: u64,
    begun: bool,
    ended: bool,
}

impl Copying {
    async fn next(&mut self) -> Result<String, std::io::Error> {
        let piece = self.copy.next().await.map_err(std::io::Error::other)?;
        if piece.unreadable > 0 {
            tracing::error!(
                rows = piece.unreadable,
                "a copy of the store lacks what cannot be read; see `watchbell store verify`"
            );
        }
        let (lines, rows) = piece.to_lines();
        self.rows += rows;
        let mut text = if self.begun { String::new() } else { Piece::first_line() };
        self.begun = true;
        text.push_str(&lines);
        if piece.is_last {
            self.ended = true;
            text.push_str(&Piece::last_line(self.rows));
        }
        Ok(text)
    }
}

#[derive(Serialize)]
struct Verification {
    rows: Counts,
    problems: Vec<String>,
    problem_count: u64,
    left_over: u64,
    /// Whether `watchbell store repair` would mend any of it.
    needs_repair: bool,
}

/// `GET /v1/store/verify`
pub(super) async fn verify(State(state): State<Shared>) -> Result<Response, Refusal> {
    let verified = read(&state, |state| Ok(state.parts.store.verify())).await?;
    let answer = Verification {
        rows: verified.rows,
        problems: verified.problems,
        problem_count: verified.problem_count,
        left_over: verified.left_over,
        needs_repair: verified.needs_repair,
    };
    Ok(Json(answer).into_response())
}
