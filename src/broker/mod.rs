//! The MQTT edge: devices come in here, and subscribers get their publishes.
//!
//! `accept` takes a socket of a `listener` through PROXY protocol (`proxy`), TLS (`tls`), WebSocket
//! (`upgrade`, `websocket`) and CONNECT (`protocol::connect`, `auth`) to a session (`hub`, `session`)
//! and serves it (`connection`); `protocol` is the only module that knows MQTT's bytes, `acl` who may
//! do what, `limits` what an address may do, `load` how fast and how much, `clients` who is there.
//! `accept` takes a socket through TLS and CONNECT (`protocol::connect`, `auth`) to a session (`hub`,
//! `session`) and serves it (`connection`); `protocol` is the only module that knows MQTT's bytes,
//! `acl` who may do what, `limits` what an address may do, `bans` who is not let in, `sys` what the
//! broker says of itself, `herald` what rules hear of clients.
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
mod bans;
mod clients;
pub mod config;
mod connection;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod herald;
mod hub;
mod limits;
pub mod listener;
mod load;
mod local;
mod protocol;
mod proxy;
mod session;
mod stream;
mod sys;
pub mod tls;
mod upgrade;
pub mod upstream;
mod websocket;

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::acl::AccessEntry;
use self::auth::Authenticator;
use self::bans::{Bans, Flapping};
use self::config::Config;
use self::hub::Hub;
use self::limits::{Addresses, Repeats};
use self::listener::{Bound, Listener, Transport, is_v6_only};
use self::load::Load;
use self::load::handshakes::Handshakes;
use self::sys::Sys;
use self::tls::files::{Note, TlsError};
use self::tls::{Looked, Tls};
use crate::clock::Clock;
use crate::clock::wall::WallTime;
use crate::intake::Intake;
use crate::store::{ReadError, Store};
use crate::telemetry::{ByCertificate, Metrics};
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
        key: String,
    },
    /// The address cannot be had.
    #[error("{address}: cannot listen ({key})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The configuration key.
        key: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration is not valid; what [`Config::problems`] says.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The bans cannot be read, and nobody is let in without them.
    #[error("the list of bans")]
    Bans(#[from] ReadError),
    /// The sessions of before the start cannot be read.
    #[error("reading the sessions of before the start failed; the log says where")]
    Saved,
    /// TLS cannot be set up: everything wrong.
    #[error("{}", tls::files::lines(.0))]
    Tls(Vec<TlsError>),
}

/// The broker, listening and not yet running.
pub struct Broker {
    shared: Arc<Shared>,
    bound: Vec<Bound>,
}

/// A place where the broker listens.
#[derive(Clone, Debug)]
pub struct Listening {
    /// As it is configured; `mqtt` and `mqtts` are those of `[broker]`.
    pub name: Arc<str>,
    /// How.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

/// What all connections share.
pub(crate) struct Shared {
    config: Config,
    access: Vec<AccessEntry>,
    hub: Hub,
    authenticator: Authenticator,
    bans: Bans,
    flapping: Flapping,
    store: Store,
    repeats: Repeats,
    addresses: Arc<Addresses>,
    permits: Arc<Semaphore>,
    load: Load,
    handshakes: Handshakes,
    clients: Arc<clients::Clients>,
    sys: Arc<Sys>,
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

    /// Whether limits hold for this address.
    fn is_limited(&self, address: IpAddr) -> bool {
        !self.config.limits_exempt.iter().any(|network| network.contains(address))
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
        let (settings, _) = config.all_listeners();
        let addresses: Vec<SocketAddr> = settings.iter().map(|one| one.address).collect();
        let load = Load::new(config.limits.clone());
        let mut bound = Vec::new();
        let mut errors = Vec::new();
        for one in settings {
            let tls = match one.files.clone().map(Tls::load).transpose() {
                Ok(tls) => tls,
                Err(wrong) => {
                    errors.extend(wrong);
                    continue;
                }
            };
            let v6_only = is_v6_only(one.address, &addresses);
            bound.push(one.bind(v6_only, tls, load.listener())?);
        }
        if !errors.is_empty() {
            return Err(BindError::Tls(errors));
        }
        let Parts { intake, store, metrics, clock } = parts;
        let authenticator =
            Authenticator::new(config, store.clone(), clock.clone()).map_err(BindError::Config)?;
        let bans = Bans::load(&store, clock.now())?;
        let reading = store.clone();
        let saved = tokio::task::spawn_blocking(move || reading.saved());
        let hub = Hub::new(config, (intake, store.clone()), clock, metrics);
        hub.restore(saved.await.map_err(|_| BindError::Saved)?, &access);
        let shared = Shared {
            hub,
            authenticator,
            bans,
            flapping: Flapping::new(config),
            store,
            repeats: Repeats::default(),
            addresses: Addresses::new(config.connections_per_address_max),
            permits: Arc::new(Semaphore::new(config.connections_max)),
            load,
            handshakes: Handshakes::new(
                config.handshakes_max,
                config.handshake_timeout.get(),
                config.handshake_wait.get(),
            ),
            clients: Arc::default(),
            sys: Arc::new(Sys::new()),
            config: config.clone(),
            access,
        };
        Ok(Self { shared: Arc::new(shared), bound })
    }

    /// The upstreams, which come and go by this broker's door.
    pub fn upstreams(&self, upstreams: Vec<upstream::config::Upstream>) -> upstream::Bridges {
        upstream::Bridges::new(&local::Local::new(Arc::clone(&self.shared)), upstreams)
    }

    /// Where it listens without TLS by `broker.listen`.
    pub fn listen(&self) -> Option<SocketAddr> {
        self.address_of("broker.listen")
    }

    /// Where it listens with TLS by `broker.listen_tls`.
    pub fn listen_tls(&self) -> Option<SocketAddr> {
        self.address_of("broker.listen_tls")
    }

    fn address_of(&self, key: &str) -> Option<SocketAddr> {
        self.bound.iter().find(|one| one.key == key).map(|one| one.listener.address)
    }

    /// Where it listens, and how.
    pub fn listening(&self) -> Vec<Listening> {
        let listening = |Bound { listener, .. }: &Bound| Listening {
            name: Arc::clone(&listener.name),
            transport: listener.transport,
            address: listener.address,
        };
        self.bound.iter().map(listening).collect()
    }

    /// The certificates, keys, CAs and CRLs of all listeners, to be loaded again.
    pub fn certificates(&self) -> Certificates {
        let listeners = self.bound.iter().map(|one| Arc::clone(&one.listener));
        Certificates { shared: Arc::clone(&self.shared), listeners: listeners.collect() }
    }

    /// Who is connected.
    pub fn clients(&self) -> Arc<dyn crate::online::Clients> {
        Arc::<clients::Clients>::clone(&self.shared.clients)
    }

    /// For tests: what makes the thread of rumqttd's router panic, where there is one.
    #[cfg(feature = "rumqttd")]
    #[doc(hidden)]
    pub fn router_breaker(&self) -> Option<impl Fn() + Send + Sync + use<>> {
        self.shared.hub.router_breaker()
    }

    /// Serves until `stop` becomes true (or its sender is gone). Then nothing is accepted any
    /// more, every connection finishes the acknowledgements that it owes, says DISCONNECT and
    /// ends, and this returns. Wills are not published at a stop.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let shared = Arc::clone(&self.shared);
        // A task of its own, so that what it has to do keeps nobody from being accepted.
        let mut telling = JoinSet::new();
        let hub = Arc::clone(&self.shared);
        telling.spawn(async move { herald::run(&hub.hub).await });
        let tell = async {
            // It ends when it has told what was before the stop.
            if let Some(Err(panicked)) = telling.join_next().await {
                std::panic::resume_unwind(panicked.into_panic());
            }
        };
        let serve = async {
            tokio::join!(self.serve(stop), tell);
            shared.hub.journal().close();
        };
        tokio::join!(serve, shared.hub.write());
    }

    async fn serve(self, stop: watch::Receiver<bool>) {
        let Self { shared, bound } = self;
        let mut stop = Stop(stop);
        {
            let accept = |Bound { socket, listener, .. }| {
                accept::accept(Arc::clone(&shared), socket, listener, stop.clone())
            };
            let listeners = join_all(bound.into_iter().map(accept));
            let mut told = stop.clone();
            tokio::select! {
                () = told.told() => {}
                // Without listeners there is nothing to wait for, and still sessions to tend.
                () = async { listeners.await; std::future::pending().await } => {}
                () = shared.hub.tend() => {}
                () = sys::publish(&shared) => {}
                () = bans::tend(&shared, &shared.store) => {}
            }
        }
        stop.told().await;
        shared.hub.stop();
        // The last permit is back when the last connection's task is done.
        let all = u32::try_from(shared.config.connections_max).unwrap_or(u32::MAX);
        drop(shared.permits.acquire_many(all).await);
    }
}

/// What the listeners' TLS is made of; see [`Broker::certificates`].
pub struct Certificates {
    shared: Arc<Shared>,
    listeners: Vec<Arc<Listener>>,
}

impl Certificates {
    /// Loads again what has changed, or everything if `asked`. New handshakes use it; connections
    /// whose client would not be let in any more are closed. What is wrong leaves the old in force.
    pub fn look(&self, asked: bool) {
        let now = self.shared.hub.clock.now();
        let mut loaded = false;
        let mut ends: BTreeMap<&str, WallTime> = BTreeMap::new();
        for listener in &self.listeners {
            let Some(tls) = &listener.tls else { continue };
            let name = &listener.name;
            match tls.look(asked) {
                Looked::Same => {}
                Looked::Loaded => {
                    loaded = true;
                    tracing::info!(listener = %name, "the certificates are loaded again");
                }
                Looked::Refused => {
                    self.shared.hub.metrics.tls_reloads_failed.inc();
                    for problem in tls.problems() {
                        tracing::error!(
                            listener = %name, %problem,
                            "the changed certificates are refused; the old ones stay in force"
                        );
                    }
                }
            }
            for (certificate, at) in tls.ends() {
                ends.entry(certificate).and_modify(|first| *first = at.min(*first)).or_insert(at);
            }
            for Note { is_over, text, .. } in tls.notes_of_today(now) {
                if is_over {
                    tracing::error!(listener = %name, "{text}");
                } else {
                    tracing::warn!(listener = %name, "{text}");
                }
            }
        }
        for (certificate, ends) in ends {
            let label = ByCertificate { certificate };
            self.shared.hub.metrics.certificate_ends.get_or_create(&label).set(ends.as_secs());
        }
        if loaded {
            self.shared.hub.call_all();
        }
    }

    /// Why what is on disk is not in force; empty where it is.
    pub fn problems(&self) -> Vec<String> {
        let tls = self.listeners.iter().filter_map(|listener| listener.tls.as_ref());
        let mut problems: Vec<String> = tls.flat_map(Tls::problems).collect();
        // Listeners share what they inherit.
        problems.sort();
        problems.dedup();
        problems
    }
}
