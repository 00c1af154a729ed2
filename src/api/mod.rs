//! The HTTP edge: messages, devices, the virtual phone, health and metrics.
//!
//! Knows HTTP and who may ask; what is asked for is done by the handles of the engines. Every
//! answer that is not the asked-for thing is a problem object (RFC 9457) with a title, a detail
//! and, where there is one, a [`Reason`]. Numbers, tokens and URLs leave here masked.
//!
//! **Invariant:** whatever a peer does, it holds at most one connection permit, for as long as it
//! reads and writes within the time limits.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/messages` | 202 with the messages, 200 when the idempotency key was used before |
//! | `GET /v1/messages?status=&channel=&rule=&contact=&limit=&before=` | newest first |
//! | `GET /v1/messages/{id}` | one, with its attempts |
//! | `POST /v1/messages/{id}/retry`, `/cancel` | the message as it then stands |
//! | `POST /v1/providers/{name}/resume` | 204 |
//! | `GET /v1/status` | version, listeners, lanes, outbox, rules, disk |
//! | `GET`, `POST /v1/devices`, `DELETE /v1/devices/{user}` | credentials of devices |
//! | `GET /v1/clients?identity=&prefix=&listener=&limit=&after=` | who is connected, by client id |
//! | `POST /v1/clients/{client_id}/disconnect` | 204 |
//! | `GET`, `POST /v1/bans`, `DELETE /v1/bans/{kind}/{value}` | who is not let in |
//! | `GET /v1/alerts?state=&rule=&key=&severity=&limit=`, `/v1/alerts/{id}` | what fires, or is about to |
//! | `POST /v1/alerts/{id}/ack`, `/forget` | the alert as it then stands; 204 |
//! | `GET`, `POST /v1/silences`, `DELETE /v1/silences/{id}` | what nobody is told of for a while |
//! | `GET /v1/explain?id=`, `?contact=&topic=&rule=&key=&since=` | why somebody was told, or was not |
//! | `GET /v1/store/copy`, `/v1/store/verify` | a consistent copy of all rows, as JSON lines; which rows cannot be read |
//! | `GET /v1/phone`, `/v1/phone/events` | what the virtual phone showed; live as server-sent events |
//! | `GET /healthz`, `/readyz`, `/metrics` | for machines |

mod alerts;
mod auth;
mod bans;
mod body;
mod clients;
mod devices;
mod explain;
mod messages;
mod phone;
mod refusal;
mod serve;
mod silences;
mod status;
mod store;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::clock::{Clock, Timestamp};
use crate::dispatch::Dispatch;
use crate::intake::Intake;
use crate::model::{Reason, RunId, Severity, UpstreamState};
use crate::online::Clients;
use crate::provider::phone::Screen;
use crate::secret::Secret;
use crate::span::Span;
use crate::store::Store;
use crate::telemetry::Metrics;

pub use self::devices::{Credential, CredentialError, credential};

/// The HTTP edge's settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where it listens; default `127.0.0.1:8080`. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Whether `listen` may be an address that others reach, although HTTP here is not encrypted
    /// and the key crosses the wire; default false.
    pub allow_plain_remote: bool,
    /// Who reads messages, alerts, phone and status without a key: `loopback`, programs and browsers on
    /// this machine; or `never`. Default `loopback`.
    pub open_reads: OpenReads,
    /// Longest request body, bytes; default 65536, 1024 to 1048576.
    pub body_bytes_max: usize,
    /// Most connections at once; default 256, 1 to 65536.
    pub connections_max: usize,
    /// Most of them that may follow the virtual phone live; default 16, at most `connections_max`.
    pub sse_clients_max: usize,
    /// How many messages the virtual phone keeps on its screen; default 200, 1 to 10000.
    pub phone_messages_max: usize,
    /// Most messages in one answer; default 500, 1 to 5000.
    pub page_max: usize,
    /// Most lists that are read from the store at once; default 4, 1 to 64.
    pub scans_max: usize,
    /// How long a request's head, and then its body, may take to arrive; also how long a
    /// connection may idle between requests; default 10s, 100ms to 10m.
    pub read_timeout: Span,
    /// How long a peer may leave what is written to it unread; default 10s, 100ms to 10m.
    pub write_timeout: Span,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            allow_plain_remote: false,
            open_reads: OpenReads::Loopback,
            body_bytes_max: 64 << 10,
            connections_max: 256,
            sse_clients_max: 16,
            phone_messages_max: 200,
            page_max: 500,
            scans_max: 4,
            read_timeout: Span::from_secs(10),
            write_timeout: Span::from_secs(10),
        }
    }
}

/// Who reads without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenReads {
    /// Whoever is on this machine.
    Loopback,
    /// Nobody.
    Never,
}

impl Config {
    /// Everything wrong with the values.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.listen.ip().is_loopback() && !self.allow_plain_remote {
            problems.push(format!(
                "api.listen: {} can be reached from other machines, and HTTP here is not encrypted; \
                 listen on 127.0.0.1 behind a TLS proxy, or set api.allow_plain_remote = true",
                self.listen
            ));
        }
        let mut within = |name: &str, value: usize, least: usize, most: usize| {
            if !(least..=most).contains(&value) {
                problems.push(format!("api.{name}: {least} to {most}, found {value}"));
            }
        };
        within("body_bytes_max", self.body_bytes_max, 1024, 1 << 20);
        within("connections_max", self.connections_max, 1, 65536);
        within("sse_clients_max", self.sse_clients_max, 0, self.connections_max);
        within("phone_messages_max", self.phone_messages_max, 1, 10_000);
        within("page_max", self.page_max, 1, 5000);
        within("scans_max", self.scans_max, 1, 64);
        for (name, value) in
            [("read_timeout", self.read_timeout), ("write_timeout", self.write_timeout)]
        {
            if !(Span::from_millis(100)..=Span::from_secs(600)).contains(&value) {
                problems.push(format!("api.{name}: 100ms to 10m, found {value}"));
            }
        }
        problems
    }
}

/// What the HTTP edge is made of.
pub struct Parts {
    /// Messages and devices.
    pub store: Store,
    /// Retry, cancel, resume, lanes.
    pub dispatch: Dispatch,
    /// Takes messages.
    pub intake: Intake,
    /// Who is connected to the broker.
    pub clients: Arc<dyn Clients>,
    /// What `/metrics` shows, and where refusals are counted.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// The virtual phone.
    pub screen: Screen,
    /// The key that opens everything under `/v1`.
    pub key: Secret,
    /// What this process is.
    pub about: About,
    /// Whether it takes work; see [`Readiness`].
    pub ready: watch::Receiver<Readiness>,
    /// The rules in force.
    pub rules: Arc<ArcSwap<RulesInForce>>,
    /// Why certificates that have changed on disk are not in force; empty where they are.
    pub certificate_problems: Arc<ArcSwap<Vec<String>>>,
    /// How each upstream stands, and how many publishes wait for it.
    pub upstreams: Arc<dyn Fn() -> Vec<(UpstreamState, Option<usize>)> + Send + Sync>,
    /// The pages of the console, served without a key.
    pub console: Router,
}

/// What a process says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// Watchbell's version.
    pub version: &'static str,
    /// This run.
    pub run: RunId,
    /// When it started.
    #[serde(serialize_with = "view::rfc_3339")]
    pub started_at: Timestamp,
    /// Where it listens. The HTTP edge adds its own.
    pub listeners: Vec<Listener>,
    /// A publish that matches a rule, for whoever tries it for the first time.
    pub hint: Option<Hint>,
}

/// A place where the process listens.
#[derive(Clone, Debug, Serialize)]
pub struct Listener {
    /// As it is configured; `mqtt`, `mqtts` and `http` without that.
    pub name: String,
    /// `mqtt`, `mqtts`, `ws`, `wss` or `http`.
    pub protocol: &'static str,
    /// Where.
    pub address: SocketAddr,
}

/// A publish to try.
#[derive(Clone, Debug, Serialize)]
pub struct Hint {
    /// The topic.
    pub topic: String,
    /// The payload.
    pub payload: String,
}

/// Whether the process takes work, as `/readyz` says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// It does not, and why.
    NotReady(Reason),
}

/// The rules in force, and what the last reload found wrong.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RulesInForce {
    /// The rules.
    pub rules: Vec<RuleInForce>,
    /// When they were loaded.
    #[serde(serialize_with = "view::rfc_3339")]
    pub loaded_at: Timestamp,
    /// What kept a later reload from taking their place; empty where nothing did.
    pub problems: Vec<String>,
}

/// One rule, as the status shows it.
#[derive(Clone, Debug, Serialize)]
pub struct RuleInForce {
    /// Its name.
    pub name: String,
    /// Its topic filter.
    pub topic: String,
    /// How urgent.
    pub severity: Severity,
    /// Whether it only counts what it would do.
    pub shadow: bool,
}

/// It cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {error}; {next}", next = next_step(.error))]
pub struct BindError {
    address: SocketAddr,
    error: std::io::Error,
}

fn next_step(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program listens there; stop it, or set api.listen to another address"
        }
        _ => "set api.listen to an address of this machine",
    }
}

/// What every handler sees.
struct State {
    config: Config,
    parts: Parts,
    scans: Semaphore,
    followers: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

type Shared = Arc<State>;

/// The HTTP edge, bound and not yet serving.
pub struct Api {
    listener: TcpListener,
    address: SocketAddr,
    config: Config,
    parts: Parts,
}

impl Api {
    /// Binds the listener. Needs a runtime around it.
    ///
    /// # Errors
    /// The address is in use or not this machine's.
    pub fn bind(config: &Config, mut parts: Parts) -> Result<Self, BindError> {
        let failed = |error| BindError { address: config.listen, error };
        let listener = std::net::TcpListener::bind(config.listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        parts.about.listeners.push(Listener { name: "http".to_owned(), protocol: "http", address });
        Ok(Self { listener, address, config: config.clone(), parts })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the process says of itself, this listener included.
    pub fn about(&self) -> &About {
        &self.parts.about
    }

    /// Serves until `stop` becomes true, or its sender is gone; then finishes the requests that
    /// have begun, ends the event streams, and returns. The caller bounds how long that may take:
    /// dropping the future closes every connection.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let state = Arc::new(State {
            scans: Semaphore::new(self.config.scans_max),
            followers: Arc::new(Semaphore::new(self.config.sse_clients_max)),
            config: self.config,
            parts: self.parts,
            stop: stop.clone(),
        });
        let router = router(&state);
        serve::run(self.listener, &state.config, router, stop).await;
    }
}

fn router(state: &Shared) -> Router {
    let open_to_readers = Router::new()
        .route("/v1/messages", get(messages::list))
        .route("/v1/messages/{id}", get(messages::show))
        .route("/v1/status", get(status::show))
        .route("/v1/alerts", get(alerts::list))
        .route("/v1/alerts/{id}", get(alerts::show))
        .route("/v1/phone", get(phone::recent))
        .route("/v1/phone/events", get(phone::events))
        .route_layer(from_fn_with_state(Arc::clone(state), auth::reader));
    let with_key = Router::new()
        .route("/v1/messages", post(messages::send))
        .route("/v1/messages/{id}/retry", post(messages::retry))
        .route("/v1/messages/{id}/cancel", post(messages::cancel))
        .route("/v1/providers/{name}/resume", post(status::resume))
        .route("/v1/devices", get(devices::list).post(devices::add))
        .route("/v1/clients", get(clients::list))
        .route("/v1/clients/{client_id}/disconnect", post(clients::disconnect))
        .route("/v1/devices/{user}", axum::routing::delete(devices::remove))
        .route("/v1/alerts/{id}/ack", post(alerts::acknowledge))
        .route("/v1/alerts/{id}/forget", post(alerts::forget))
        .route("/v1/silences", get(silences::list).post(silences::add))
        .route("/v1/silences/{id}", axum::routing::delete(silences::end))
        .route("/v1/explain", get(explain::explain))
        .route("/v1/store/copy", get(store::copy))
        .route("/v1/store/verify", get(store::verify))
        .route("/v1/bans", get(bans::list).post(bans::add))
        .route("/v1/bans/{kind}/{value}", axum::routing::delete(bans::remove))
        .route_layer(from_fn_with_state(Arc::clone(state), auth::holder));
    Router::new()
        .route("/healthz", get(status::health))
        .route("/readyz", get(status::ready))
        .route("/metrics", get(status::metrics))
        .with_state(Arc::clone(state))
        .merge(state.parts.console.clone())
        .merge(open_to_readers.with_state(Arc::clone(state)))
        .merge(with_key.with_state(Arc::clone(state)))
        .fallback(refusal::no_such_path)
        .method_not_allowed_fallback(refusal::no_such_method)
        .layer(from_fn_with_state(Arc::clone(state), refusal::count))
        .layer(from_fn(refusal::never_cache))
}
