//! Messages: send, list, show, retry, cancel.

use axum::Json;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::body::{self, fault, fault_in};
use super::refusal::Refusal;
use super::view::MessageView;
use super::{Shared, State as ApiState};
use crate::dispatch::ControlError;
use crate::intake::{SendError, SendRequest};
use crate::model::{
    Address, Channel, Message, MessageId, Reason, Severity, Status, Target, Template,
};
use crate::problem::{Fault, unknown_key};
use crate::span::Span;
use crate::store::MessageFilter;

/// What `POST /v1/messages` takes.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SendBody {
    to: Vec<String>,
    by: Vec<Channel>,
    sms: OneOrMany,
    whatsapp: OneOrMany,
    push: OneOrMany,
    webhook: OneOrMany,
    text: String,
    title: Option<String>,
    severity: Severity,
    template: Option<Template>,
    expires_in: Option<Span>,
    idempotency_key: Option<String>,
}

/// `"x"` or `["x", "y"]`.
#[derive(Debug, Default)]
struct OneOrMany(Vec<String>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address or a list of addresses")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![text.to_owned()]))
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<OneOrMany, A::Error> {
                let mut list = Vec::new();
                while let Some(text) = seq.next_element()? {
                    list.push(text);
                }
                Ok(OneOrMany(list))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Serialize)]
struct SentView<'a> {
    messages: Vec<MessageView<'a>>,
    repeated: bool,
}

/// `POST /v1/messages`
pub(super) async fn send(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let header = request
        .headers()
        .get("idempotency-key")
        .map(|value| value.to_str().map(str::to_owned))
        .transpose()
        .map_err(|_| Refusal::malformed("the header Idempotency-Key is not text"))?;
    let (body, mut faults): (SendBody, _) = body::json(request, &state.config).await?;
    let (request, found) = body.check(header);
    body::add(&mut faults, found);
    if !faults.is_empty() {
        return Err(Refusal::invalid(faults));
    }
    let sent = state.parts.intake.send(request).await.map_err(|error| match error {
        SendError::Invalid(problems) => {
            Refusal::invalid(problems.into_iter().map(as_fault).collect())
        }
        SendError::KeyReused => Refusal::key_reused(),
        SendError::Refused(reason) => Refusal::not_now(reason),
    })?;
    let status = if sent.repeated { StatusCode::OK } else { StatusCode::ACCEPTED };
    let view = SentView {
        messages: sent.messages.iter().map(MessageView::brief).collect(),
        repeated: sent.repeated,
    };
    Ok((status, Json(view)).into_response())
}

/// The engine names the field first, as `to[0]: there is no contact ...`, where there is one.
fn as_fault(problem: String) -> Fault {
    match problem.split_once(": ") {
        Some((field, what)) if !field.contains(' ') => fault(field, what),
        _ => Fault { path: Vec::new(), what: problem },
    }
}

impl SendBody {
    /// As a request to the engine, which checks what only it knows (contacts, tokens, URLs), and
    /// what is wrong with it.
    fn check(self, header: Option<String>) -> (SendRequest, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut targets = Vec::new();
        for (channel, list) in [(Channel::Sms, self.sms), (Channel::Whatsapp, self.whatsapp)] {
            for (index, text) in list.0.iter().enumerate() {
                match text.parse() {
                    Ok(number) => targets.push(Target { channel, address: Address::Phone(number) }),
                    Err(error) => faults.push(fault_in(
                        channel.as_str(),
                        index,
                        crate::telemetry::chain(&error as &crate::model::BadNumber),
                    )),
                }
            }
        }
        targets.extend(
            self.push.0.into_iter().map(|token| Target {
                channel: Channel::Push,
                address: Address::Token(token.into()),
            }),
        );
        targets.extend(
            self.webhook
                .0
                .into_iter()
                .map(|url| Target { channel: Channel::Webhook, address: Address::Url(url.into()) }),
        );
        if self.to.is_empty() && targets.is_empty() && faults.is_empty() {
            let what = "nobody to send to; name contacts here, or addresses in `sms`, `whatsapp`, `push` or `webhook`";
            faults.push(fault("to", what));
        }
        if self.text.trim().is_empty() && self.template.is_none() {
            faults.push(fault("text", "it is empty"));
        }
        let idempotency_key = match (self.idempotency_key, header) {
            (Some(body), Some(header)) if body != header => {
                let what = "it differs from the header Idempotency-Key; give one of them";
                faults.push(fault("idempotency_key", what));
                None
            }
            (body, header) => body.or(header),
        };
        if let Some(key) = &idempotency_key
            && !(1..=128).contains(&key.len())
        {
            faults.push(fault("idempotency_key", "1 to 128 bytes"));
        }
        let request = SendRequest {
            to: self.to,
            by: self.by,
            targets,
            severity: self.severity,
            title: self.title,
            text: self.text,
            template: self.template,
            expires_in: self.expires_in.map(Span::get),
            idempotency_key,
        };
        (request, faults)
    }
}

/// What `GET /v1/messages` is asked for.
#[derive(Debug, Default)]
struct Page {
    filter: MessageFilter,
    before: Option<MessageId>,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct PageView<'a> {
    messages: Vec<MessageView<'a>>,
    /// Give this as `before` for the next page; `null` where there is none.
    next: Option<String>,
}

/// `GET /v1/messages`
pub(super) async fn list(
    State(state): State<Shared>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let page = Page::parse(query.as_deref().unwrap_or_default())?;
    let most = state.config.page_max;
    let limit = page.limit.unwrap_or(50.min(most)).min(most);
    let messages = read(&state, move |state| {
        state
            .parts
            .store
            .messages(&page.filter, page.before, limit)
            .map_err(|error| Refusal::internal(&error))
    })
    .await?;
    let full = messages.len() == limit;
    let view = PageView {
        next: messages.last().filter(|_| full).map(|last| last.id.to_string()),
        messages: messages.iter().map(MessageView::brief).collect(),
    };
    Ok(Json(view).into_response())
}

impl Page {
    fn parse(query: &str) -> Result<Self, Refusal> {
        const KNOWN: [&str; 6] = ["status", "channel", "rule", "contact", "limit", "before"];
        let pairs: Vec<(String, String)> = parse_query(query)?;
        let mut page = Self::default();
        let mut faults = Vec::new();
        for (key, value) in pairs {
            let result = match key.as_str() {
                "status" => value
                    .split(',')
                    .filter(|word| !word.is_empty())
                    .map(str::parse::<Status>)
                    .collect::<Result<Vec<_>, crate::model::UnknownWord>>()
                    .map(|words| page.filter.status.extend(words))
                    .map_err(|error| error.to_string()),
                "channel" => value
                    .parse()
                    .map(|channel| page.filter.channel = Some(channel))
                    .map_err(|error: crate::model::UnknownWord| error.to_string()),
                "rule" => {
                    page.filter.rule = Some(value);
                    Ok(())
                }
                "contact" => {
                    page.filter.contact = Some(value);
                    Ok(())
                }
                "limit" => match value.parse() {
                    Ok(limit) if limit > 0 => {
                        page.limit = Some(limit);
                        Ok(())
                    }
                    _ => Err("expected a whole number greater than 0".to_owned()),
                },
                "before" => value
                    .parse()
                    .map(|id| page.before = Some(id))
                    .map_err(|_| "expected a message id".to_owned()),
                other => Err(unknown_key(other, &KNOWN)),
            };
            if let Err(what) = result {
                faults.push(fault(&key, what));
            }
        }
        if faults.is_empty() { Ok(page) } else { Err(Refusal::invalid(faults)) }
    }
}

/// The pairs of a query, in their order.
pub(super) fn parse_query(query: &str) -> Result<Vec<(String, String)>, Refusal> {
    let uri =
        format!("/?{query}").parse().map_err(|_| Refusal::malformed("the query is not a query"))?;
    axum::extract::Query::try_from_uri(&uri)
        .map(|axum::extract::Query(pairs)| pairs)
        .map_err(|_| Refusal::malformed("the query is not a query"))
}

/// Reads from the store off the async threads, a bounded number at a time.
pub(super) async fn read<T: Send + 'static>(
    state: &Shared,
    work: impl FnOnce(&ApiState) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let permit = state.scans.acquire().await;
    let shared = std::sync::Arc::clone(state);
    let result = spawn_blocking(move || work(&shared)).await;
    drop(permit);
    result.unwrap_or_else(|error| Err(Refusal::internal(&error)))
}

/// `GET /v1/messages/{id}`
pub(super) async fn show(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let id = message_id(&id)?;
    let message = state
        .parts
        .store
        .message(id)
        .map_err(|error| Refusal::internal(&error))?
        .ok_or_else(|| no_message(id))?;
    Ok(Json(MessageView::full(&message)).into_response())
}

/// `POST /v1/messages/{id}/retry`
pub(super) async fn retry(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    answer(state.parts.dispatch.retry(message_id(&id)?).await)
}

/// `POST /v1/messages/{id}/cancel`
pub(super) async fn cancel(
    State(state): State<Shared>,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    answer(state.parts.dispatch.cancel(message_id(&id)?).await)
}

fn answer(result: Result<Message, ControlError>) -> Result<Response, Refusal> {
    let message = result.map_err(refuse)?;
    Ok(Json(MessageView::full(&message)).into_response())
}

/// What the dispatcher refuses, in HTTP's words.
pub(super) fn refuse(error: ControlError) -> Refusal {
    match error {
        ControlError::NotFound(id) => no_message(id),
        ControlError::NotAllowed { .. } => Refusal::conflict(error.to_string()),
        ControlError::NoProvider(_) => Refusal::not_found(error.to_string()),
        ControlError::Read(error) => Refusal::internal(&error),
        ControlError::Stopped => Refusal::not_now(Reason::ShuttingDown),
    }
}

fn no_message(id: MessageId) -> Refusal {
    Refusal::not_found(format!("there is no message {id}; ended ones are kept for store.retention"))
}

fn message_id(text: &str) -> Result<MessageId, Refusal> {
    text.parse().map_err(|_| {
        Refusal::not_found("a message id is a UUID; `watchbell outbox list` shows them")
    })
}
