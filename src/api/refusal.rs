//! What the API answers when it does not do what was asked: a problem object (RFC 9457).
//!
//! Never repeats a secret or an address in full. Everything refused for a [`Reason`] is counted
//! here and nowhere else.

use std::borrow::Cow;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Shared;
use crate::model::Reason;
use crate::problem::{Fault, path_text};
use crate::telemetry::ByReason;

/// Seconds after which a client that was turned away for the present may come again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("5");

/// A request that is not done.
#[derive(Debug, Serialize)]
pub(super) struct Refusal {
    /// What went wrong, the same text for the same kind.
    title: &'static str,
    #[serde(serialize_with = "status_number")]
    status: StatusCode,
    /// What went wrong this time, and what next.
    detail: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<Reason>,
    /// Each field that is wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

/// One wrong field of a request.
#[derive(Debug, Serialize)]
pub(super) struct FieldError {
    /// Empty where it concerns the whole request.
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
    detail: String,
}

/// Marks a response for counting.
#[derive(Clone, Copy)]
struct Refused(Reason);

fn status_number<S: serde::Serializer>(status: &StatusCode, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u16(status.as_u16())
}

impl Refusal {
    fn new(
        status: StatusCode,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
        reason: Option<Reason>,
    ) -> Self {
        Self { title, status, detail: detail.into(), reason, errors: Vec::new() }
    }

    /// The request cannot be understood.
    pub(super) fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        let reason = Some(Reason::BadRequest);
        Self::new(StatusCode::BAD_REQUEST, "malformed request", detail, reason)
    }

    /// The request is understood, and these fields of it make no sense.
    pub(super) fn invalid(faults: Vec<Fault>) -> Self {
        let errors: Vec<FieldError> = faults
            .into_iter()
            .map(|fault| FieldError { field: path_text(&fault.path), detail: fault.what })
            .collect();
        let lines: Vec<String> = errors
            .iter()
            .map(|error| match &*error.field {
                "" => error.detail.clone(),
                field => format!("{field}: {}", error.detail),
            })
            .collect();
        Self {
            errors,
            ..Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "invalid request",
                lines.join("; "),
                Some(Reason::BadRequest),
            )
        }
    }

    /// Over a limit of size.
    pub(super) fn too_large(limit: usize) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request too large",
            format!("the body is longer than {limit} bytes (api.body_bytes_max)"),
            Some(Reason::PacketTooLarge),
        )
    }

    /// The body did not come in time.
    pub(super) fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "request too slow",
            "the body did not arrive within api.read_timeout",
            Some(Reason::ConnectTimeout),
        )
    }

    /// No key, or a wrong one.
    pub(super) fn unauthorized(reason: Reason) -> Self {
        let detail = match reason {
            Reason::BadCredentials => {
                "the key is wrong; it is in the file api.key of the data directory"
            }
            _ => {
                "this needs the header `Authorization: Bearer KEY`; the key is in the file api.key of the data directory"
            }
        };
        Self::new(StatusCode::UNAUTHORIZED, "key needed", detail, Some(reason))
    }

    /// There is no such thing.
    pub(super) fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not found", detail, None)
    }

    /// It is there, and its state does not allow what was asked.
    pub(super) fn conflict(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::CONFLICT, "not allowed now", detail, None)
    }

    /// The idempotency key belongs to another request.
    pub(super) fn key_reused() -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency key reused",
            "this idempotency key was used for a different request; use a new one for each message",
            Some(Reason::BadRequest),
        )
    }

    /// Not now; later perhaps.
    pub(super) fn not_now(reason: Reason) -> Self {
        let detail = match reason {
            Reason::OutboxFull => {
                "the outbox is full; messages leave when their providers take them"
            }
            Reason::DiskLow => "the disk is almost full; free some space",
            Reason::StoreFailed => "the store takes no writes; watchbell has to be started again",
            Reason::ShuttingDown => "watchbell is stopping",
            Reason::TooMany => "too many clients do this at once",
            _ => "it cannot be done now",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not taken now", detail, Some(reason))
    }

    /// Our own fault.
    pub(super) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let error = crate::telemetry::chain(error);
        tracing::error!(%error, "an HTTP request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal error",
            error,
            Some(Reason::StoreFailed),
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, reason) = (self.status, self.reason);
        let mut response = (status, axum::Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What was not read of the request must not be taken for the next one's head.
        if matches!(status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(reason) = reason {
            response.extensions_mut().insert(Refused(reason));
        }
        response
    }
}

/// Counts what was refused.
pub(super) async fn count(State(state): State<Shared>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    if let Some(Refused(reason)) = response.extensions().get() {
        let by = ByReason { reason: *reason };
        state.parts.metrics.http_refused.get_or_create(&by).inc();
    }
    response
}

/// Answers hold what people were told: no cache keeps them, no browser guesses their type.
pub(super) async fn never_cache(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// A path that is none.
pub(super) async fn no_such_path() -> Refusal {
    Refusal::not_found("there is no such path; the API's paths begin with /v1, the console is at /")
}

/// A method that the path does not know.
pub(super) async fn no_such_method() -> Refusal {
    let title = "method not allowed";
    let detail = "the path is there, the method is not";
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, title, detail, None)
}
