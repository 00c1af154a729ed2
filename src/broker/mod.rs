//! The MQTT edge: devices come in here, and subscribers get their publishes.
//!
//! `accept` takes a socket through TLS and CONNECT (`protocol::connect`, `auth`) to a session (`hub`,
//! `session`) and serves it (`connection`); `protocol` is the only module that knows MQTT's bytes,
//! `acl` who may do what, `limits` what an address may do.
//!
//! What it never does: acknowledge a publish that a rule wants before intake says that it is on
//! disk; hand a session to someone who has not shown that the client id is theirs; read faster
//! than it can store.
//!
//! Sessions, subscriptions, what waits for them, retained messages and delayed wills survive the
//! process, kill -9 included: see `hub`.

mod accept;
pub mod acl;
pub mod auth;
pub mod config;
mod connection;
mod hub;
mod limits;
mod protocol;
mod session;
mod stream;
pub mod tls;

use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use self::acl::AccessEntry;
use self::auth::Authenticator;
use self::config::{Config, parse_address};
use self::hub::Hub;
use self::limits::{Addresses, FailedLogins, Repeats};
use crate::clock::Clock;
use crate::intake::Intake;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::topic::TopicLimits;

/// What the broker works with.
pub struct Parts {
    /// Where publishes go that a rule wants.
    pub intake: Intake,
    /// Where devices and their passwords are.
    pub store: Store,
    /// What is counted.
    pub metrics: Metrics,
    /// What time it is.
    pub clock: Clock,
}

/// Why the broker cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error("{address}: address in use; another broker is running there, or set {key}")]
    InUse {
        /// The address.
        address: SocketAddr,
        /// The configuration key.
        key: &'static str,
    },
    /// The address cannot be had.
    #[error("{address}: cannot listen ({key})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The configuration key.
        key: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration is not valid; what [`Config::problems`] says.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The sessions of before the start cannot be read.
    #[error("reading the sessions of before the start failed; the log says where")]
    Saved,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// The broker, listening and not yet running.
pub struct Broker {
    shared: Arc<Shared>,
    plain: Option<(TcpListener, SocketAddr)>,
    tls: Option<(TcpListener, SocketAddr, TlsAcceptor)>,
}

/// What all connections share.
pub(crate) struct Shared {
    config: Config,
    access: Vec<AccessEntry>,
    hub: Hub,
    authenticator: Authenticator,
    failed_logins: FailedLogins,
    repeats: Repeats,
    addresses: Arc<Addresses>,
    permits: Arc<Semaphore>,
}

impl Shared {
    fn topic_limits(&self) -> TopicLimits {
        TopicLimits {
            bytes_max: self.config.topic_bytes_max,
            levels_max: self.config.topic_levels_max,
        }
    }

    /// Seconds, as MQTT counts them.
    fn session_expiry_max(&self) -> u32 {
        let secs = self.config.session_expiry_max.get().as_secs();
        u32::try_from(secs).unwrap_or(u32::MAX)
    }

    /// Whether a failure of this peer is to be logged in full: the first of its kind.
    fn is_first(&self, peer: SocketAddr, failure: impl Hash) -> bool {
        self.repeats.is_first(peer.ip(), failure, Instant::now())
    }
}

/// Word to stop.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Returns when the broker is to stop.
    async fn told(&mut self) {
        // Whoever could have said so is gone: that is word enough.
        self.0.wait_for(|stop| *stop).await.ok();
    }
}

impl Broker {
    /// Opens the listeners; nothing is accepted before [`Broker::run`]. Port 0 takes any.
    ///
    /// # Errors
    /// The configuration is not valid, an address cannot be had, or TLS cannot be set up.
    pub async fn bind(
        config: &Config,
        access: Vec<AccessEntry>,
        parts: Parts,
    ) -> Result<Self, BindError> {
        let mut problems = config.problems();
        for (index, entry) in access.iter().enumerate() {
            let of_entry = entry.problems().into_iter();
            problems.extend(of_entry.map(|problem| format!("access[{index}].{problem}")));
        }
        if !problems.is_empty() {
            return Err(BindError::Config(problems));
        }
        let plain = listen(&config.listen, "broker.listen").await?;
        let tls = match listen(&config.listen_tls, "broker.listen_tls").await? {
            Some((listener, address)) => {
                let acceptor = TlsAcceptor::from(tls::server_config(config)?);
                Some((listener, address, acceptor))
            }
            None => None,
        };
        let Parts { intake, store, metrics, clock } = parts;
        let reading = store.clone();
        let saved = tokio::task::spawn_blocking(move || reading.saved());
        let hub = Hub::new(config, (intake, store.clone()), clock, metrics);
        hub.restore(saved.await.map_err(|_| BindError::Saved)?, &access);
        let shared = Shared {
            hub,
            authenticator: Authenticator::new(store, config.anonymous, config.password_checks_max),
            failed_logins: FailedLogins::new(config.failed_logins_max),
            repeats: Repeats::default(),
            addresses: Addresses::new(config.connections_per_address_max),
            permits: Arc::new(Semaphore::new(config.connections_max)),
            config: config.clone(),
            access,
        };
        Ok(Self { shared: Arc::new(shared), plain, tls })
    }

    /// Where it listens without TLS.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.plain.as_ref().map(|(_, address)| *address)
    }

    /// Where it listens with TLS.
    pub fn listen_tls(&self) -> Option<SocketAddr> {
        self.tls.as_ref().map(|(_, address, _)| *address)
    }

    /// Serves until `stop` becomes true (or its sender is gone). Then nothing is accepted any
    /// more, every connection finishes the acknowledgements that it owes, says DISCONNECT and
    /// ends, and this returns. Wills are not published at a stop.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let shared = Arc::clone(&self.shared);
        let serve = async {
            self.serve(stop).await;
            shared.hub.journal().close();
        };
        tokio::join!(serve, shared.hub.write());
    }

    async fn serve(self, stop: watch::Receiver<bool>) {
        let Self { shared, plain, tls } = self;
        let mut stop = Stop(stop);
        let accept =
            |listener, tls| accept::accept(Arc::clone(&shared), listener, tls, stop.clone());
        let plain = plain.map(|(listener, _)| accept(listener, None));
        let tls = tls.map(|(listener, _, acceptor)| accept(listener, Some(acceptor)));
        {
            let listeners = async {
                tokio::join!(maybe(plain), maybe(tls));
            };
            let mut told = stop.clone();
            tokio::select! {
                () = told.told() => {}
                () = listeners => {}
                () = shared.hub.tend() => {}
            }
        }
        stop.told().await;
        shared.hub.stop();
        // The last permit is back when the last connection's task is done.
        let all = u32::try_from(shared.config.connections_max).unwrap_or(u32::MAX);
        drop(shared.permits.acquire_many(all).await);
    }
}

/// Waits for ever where there is nothing to wait for.
async fn maybe(listener: Option<impl Future<Output = ()>>) {
    match listener {
        Some(listener) => listener.await,
        None => std::future::pending().await,
    }
}

async fn listen(
    text: &str,
    key: &'static str,
) -> Result<Option<(TcpListener, SocketAddr)>, BindError> {
    let Ok(Some(address)) = parse_address(text) else {
        return Ok(None);
    };
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => BindError::InUse { address, key },
        _ => BindError::Listen { address, key, source },
    };
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let address = listener.local_addr().map_err(error)?;
    Ok(Some((listener, address)))
}
