//! The whole: builds every part, starts them, watches them, stops them in order.
//!
//! The only module that knows all the others. **Invariant:** a core task that ends early ends the
//! process, with the reason: a broker that accepts and cannot store is worse than none.
//!
//! The order of stopping: not ready -> upstreams get their acknowledgements and DISCONNECT -> no new
//! connections -> sessions get their acknowledgements and
//! DISCONNECT -> intake drains -> dispatch waits for calls in flight -> HTTP -> the last commit.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::api::{self, About, Api, Hint, Listener, Readiness, RuleInForce, RulesInForce};
use crate::broker::{self, Broker, Certificates};
use crate::certs;
use crate::clock::machine::Source;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::console;
use crate::dispatch::{Dispatch, Dispatcher};
use crate::housekeeping::{self, Housekeeping};
use crate::instance::{self, Instance, Living};
use crate::intake::pipeline::Pipeline;
use crate::intake::ruleset::{Limits, RuleSet};
use crate::intake::{self, Intake};
use crate::model::{IdSource, Reason, RunId, Target};
use crate::problem::Problem;
use crate::provider::phone::Screen;
use crate::provider::reach::Reach;
use crate::rules;
use crate::store::reserve::{self, Reserve};
use crate::store::{CommitError, Store};
use crate::telemetry::Metrics;

/// How often rule files and certificates are looked at for changes.
const LOOK_AROUND: Duration = Duration::from_secs(2);

/// A running Watchbell.
pub struct App {
    data_dir: PathBuf,
    grace: Duration,
    store: Store,
    intake: Intake,
    dispatch: Dispatch,
    screen: Screen,
    ready: watch::Sender<Readiness>,
    reload: mpsc::Sender<()>,
    about: About,
    instance: Instance,
    living: Living,
    broker: Part,
    upstreams: Part,
    dispatcher: Part,
    http: Part,
    chores: Part,
    housekeeping: Part,
    intake_ended: oneshot::Receiver<()>,
}

/// A task that can be told to stop.
struct Part {
    name: &'static str,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Part {
    fn start<F: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        run: impl FnOnce(watch::Receiver<bool>) -> F,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { name, stop, task: tokio::spawn(run(stopped)) }
    }

    async fn stop(&mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.task).await {
            tracing::error!(part = self.name, %error, "a part ended in a fault");
        }
    }
}

/// Watchbell cannot start.
#[derive(Debug)]
pub enum StartError {
    /// Something that an operator wrote is wrong; all of it.
    Problems(Vec<Problem>),
    /// Something else.
    Other(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for StartError {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Open files for everything that is no connection: the store, listeners, calls to providers.
const OWN_FILES: u64 = 128;

/// A connection is a file: as many as the system allows, not the customary 1024. Answers how many
/// that is; `None` for no limit.
fn raise_file_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current
}

/// Keeps files back for the API and the store: devices must not have them all, or nobody could
/// look what is wrong, and nothing could be stored.
fn keep_files_back(config: &mut Config, files: Option<u64>) {
    let Some(files) = files else { return };
    let own = OWN_FILES + config.api.connections_max as u64;
    let most = config.broker.connections_max;
    let room = files.saturating_sub(own).max(files / 2).max(1);
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if most > room {
        config.broker.connections_max = room;
        let wanted = most as u64 + own;
        let what = format!(
            "this process may have {files} open files, so it takes {room} MQTT connections at a \
             time and not broker.connections_max = {most}; allow it {wanted} open files \
             (LimitNOFILE= of its systemd unit, or `ulimit -n`), or lower broker.connections_max"
        );
        // Nobody asked for the default: then it is worth knowing, and no reason to worry.
        if most == broker::config::Config::default().connections_max {
            tracing::info!("{what}");
        } else {
            tracing::warn!("{what}");
        }
    }
}

impl App {
    /// Builds and starts everything. All sockets are bound before the first device is served.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(mut config: Config) -> Result<Self, StartError> {
        let files = raise_file_limit();
        keep_files_back(&mut config, files);
        let metrics = Metrics::new();
        if uses_development_certificates(&config.broker) {
            certs::ensure_development(Path::new(certs::DIRECTORY), Clock::System.now())
                .context("certificates for development, because broker.cert, broker.key and broker.client_ca name no others")?;
        }
        let rules =
            RuleSet::load_dir(&config.rules_dir, &config.limits).map_err(StartError::Problems)?;
        metrics.rules_loaded.set(count(rules.rules.len()));
        let reach = config.reach();
        warn_unreached(&rules, &reach);

        let key = instance::ensure_key(&config.data_dir)?;
        let reserve = Reserve::new(&config.data_dir, config.store.disk_reserve_bytes);
        match reserve::free_bytes(&config.data_dir) {
            Ok(free) => housekeeping::make_room(&reserve, free),
            Err(error) => tracing::error!(%error, "the disk's free space cannot be read"),
        }
        let store = Store::open(&config.data_dir, &config.store, &metrics)?;
        let (clock, step) = intake::clock(&store, Source::machine())?;
        metrics.clock_ahead.set(clock.ahead() / 1000);
        let now = clock.now();
        let in_force = Arc::new(ArcSwap::from_pointee(rules_in_force(&rules, now, &[])));
        let run = RunId::new(IdSource::new(random_seed()?).next(now));
        let (dispatch, dispatcher) = {
            let parts = crate::dispatch::Parts {
                store: store.clone(),
                clock: clock.clone(),
                metrics: metrics.clone(),
                run,
                lanes: config.lanes(),
                routes: config.routes.clone(),
                notify: config.limits.contacts.clone(),
            };
            Dispatcher::open(&config.dispatch, parts).await?
        };
        dispatch.set_fallback(fallback_contacts(&rules, &config.limits));
        let pipeline = Pipeline::new(
            IdSource::new(random_seed()?),
            &config.limits.rules,
            &config.limits.contacts,
            config.dispatch.expires_in.into(),
        );
        let (pipeline, stopped_at) = intake::restore(&store, pipeline)?;
        let (intake, intake_ended) = {
            let parts = intake::Parts {
                store: store.clone(),
                dispatch: dispatch.clone(),
                clock: clock.clone(),
                metrics: metrics.clone(),
                rules,
                pipeline,
                step,
                stopped_at,
                ids: IdSource::new(random_seed()?),
                expires_in: config.dispatch.expires_in.into(),
            };
            intake::start(&config.intake, parts)?
        };

        let broker = {
            let parts = broker::Parts {
                intake: intake.clone(),
                store: store.clone(),
                metrics: metrics.clone(),
                clock: clock.clone(),
            };
            Broker::bind(&config.broker, config.access, parts).await?
        };
        let (mqtt, mqtts) = (broker.listen(), broker.listen_tls());
        let listeners: Vec<Listener> = broker
            .listening()
            .into_iter()
            .map(|one| Listener {
                name: one.name.to_string(),
                protocol: one.transport.protocol(),
                address: one.address,
            })
            .collect();
        let certificates = broker.certificates();
        let certificate_problems = Arc::new(ArcSwap::default());
        let upstreams = broker.upstreams(config.upstreams);
        let (ready, readiness) = watch::channel(Readiness::Ready);
        let api = {
            let about = About {
                version: env!("CARGO_PKG_VERSION"),
                run,
                started_at: now,
                listeners,
                hint: hint(&in_force.load()),
            };
            let parts = api::Parts {
                store: store.clone(),
                dispatch: dispatch.clone(),
                intake: intake.clone(),
                clients: broker.clients(),
                metrics: metrics.clone(),
                clock: clock.clone(),
                screen: config.screen.clone(),
                key,
                about,
                ready: readiness,
                rules: Arc::clone(&in_force),
                certificate_problems: Arc::clone(&certificate_problems),
                upstreams: upstreams.states(),
                console: console::router(),
            };
            Api::bind(&config.api, parts)?
        };
        let about = api.about().clone();
        let listening = |one: &Listener| instance::Listening {
            name: one.name.clone(),
            protocol: one.protocol.to_owned(),
            address: one.address,
        };
        let instance = Instance {
            pid: std::process::id(),
            api: api.address(),
            mqtt,
            mqtts,
            listeners: about.listeners.iter().map(listening).collect(),
            run,
        };
        let living = instance.write(&config.data_dir)?;

        let (reload, reloads) = mpsc::channel(1);
        let housekeeping = Housekeeping::new(housekeeping::Parts {
            store: store.clone(),
            dispatch: dispatch.clone(),
            intake: intake.clone(),
            metrics: metrics.clone(),
            clock: clock.clone(),
            config: config.store.clone(),
            reserve,
        });
        let chores = Chores {
            rules_dir: config.rules_dir.clone(),
            limits: config.limits,
            reach,
            outbox_messages_max: config.intake.outbox_messages_max,
            ready: ready.clone(),
            dispatch: dispatch.clone(),
            intake: intake.clone(),
            metrics,
            clock,
            in_force,
            certificates,
            certificate_problems,
        };
        Ok(Self {
            broker: Part::start("broker", |stop| broker.run(stop)),
            upstreams: Part::start("upstreams", |stop| upstreams.run(stop)),
            dispatcher: Part::start("dispatch", |stop| dispatcher.run(stop)),
            http: Part::start("api", |stop| api.run(stop)),
            chores: Part::start("chores", |stop| chores.run(reloads, stop)),
            housekeeping: Part::start("housekeeping", |stop| housekeeping.run(stop)),
            intake_ended,
            screen: config.screen,
            data_dir: config.data_dir,
            grace: config.grace.into(),
            store,
            intake,
            dispatch,
            ready,
            reload,
            about,
            instance,
            living,
        })
    }

    /// What it is, and what listens where.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The same for other processes.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The virtual phone.
    pub fn screen(&self) -> &Screen {
        &self.screen
    }

    /// How many messages have not ended.
    pub fn waiting(&self) -> usize {
        self.dispatch.waiting()
    }

    /// The store, for tests that look into it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Loads rules and certificates again; a bad file leaves the old ones in force.
    pub fn reload(&self) {
        // One that waits already will see the same files.
        self.reload.try_send(()).unwrap_or_default();
    }

    /// Returns when a core part has ended, or the store takes no more writes: why.
    pub async fn failure(&mut self) -> String {
        let mut failed = self.store.failed();
        let ended = |name: &str| format!("the {name} ended unexpectedly; see the log");
        tokio::select! {
            result = failed.wait_for(Option::is_some) => match result.as_deref() {
                Ok(Some(error)) => format!(
                    "{}: {error}; free the disk or mend it, then start again: nothing acknowledged is lost",
                    self.data_dir.display()
                ),
                _ => ended("store"),
            },
            _ = &mut self.intake_ended => ended("intake"),
            _ = &mut self.broker.task => ended("broker"),
            _ = &mut self.upstreams.task => ended("upstreams"),
            _ = &mut self.dispatcher.task => ended("dispatcher"),
            _ = &mut self.http.task => ended("HTTP server"),
            _ = &mut self.chores.task => ended("look at files"),
            _ = &mut self.housekeeping.task => ended("housekeeping"),
        }
    }

    /// Stops everything in order, within the grace period.
    ///
    /// # Errors
    /// The grace period ran out: what was waited for.
    pub async fn stop(mut self) -> Result<(), StopError> {
        self.ready.send_replace(Readiness::NotReady(Reason::ShuttingDown));
        let step = Mutex::new("");
        let now_for = |what| *step.lock().unwrap_or_else(PoisonError::into_inner) = what;
        let grace = self.grace;
        let intake = self.intake;
        let stopped = tokio::time::timeout(grace, async {
            now_for("upstreams' last acknowledgements");
            self.upstreams.stop().await;
            now_for("devices' last acknowledgements");
            self.broker.stop().await;
            self.chores.stop().await;
            self.housekeeping.stop().await;
            now_for("publishes that are being evaluated");
            intake.drain().await;
            now_for("answers of providers");
            self.dispatcher.stop().await;
            now_for("HTTP clients");
            self.http.stop().await;
            now_for("the last write to disk");
            // This was the last handle: its thread ends and lets go of the store, so that whoever
            // stopped us may start again in the same directory. The sender never sends.
            drop(intake);
            drop((&mut self.intake_ended).await);
            self.store.close().await
        })
        .await;
        drop(self.instance.remove(&self.data_dir));
        drop(self.living);
        match stopped {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(StopError::Store(error)),
            Err(_) => {
                let waiting_for = *step.lock().unwrap_or_else(PoisonError::into_inner);
                Err(StopError::Late { grace, waiting_for })
            }
        }
    }
}

/// Watchbell did not stop as it should.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The last commit failed.
    #[error(transparent)]
    Store(#[from] CommitError),
    /// The grace period ran out.
    #[error(
        "not stopped within {grace:?}: still waiting for {waiting_for}; nothing acknowledged is lost"
    )]
    Late {
        /// How long it was.
        grace: Duration,
        /// What for.
        waiting_for: &'static str,
    },
}

fn random_seed() -> anyhow::Result<u64> {
    getrandom::u64().map_err(|error| anyhow::anyhow!("the system gives no random numbers: {error}"))
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn rules_in_force(set: &RuleSet, now: Timestamp, problems: &[Problem]) -> RulesInForce {
    let rule = |rule: &rules::set::Rule| RuleInForce {
        name: rule.name.to_string(),
        topic: rule.filter.as_str().to_owned(),
        severity: rule.severity,
        shadow: rule.is_shadow(),
    };
    RulesInForce {
        rules: set.rules.rules().iter().map(rule).collect(),
        loaded_at: now,
        problems: problems.iter().map(Problem::to_string).collect(),
    }
}

/// Where those are reached who hear of people whom no channel reaches. The set has them: it was
/// loaded with these limits.
fn fallback_contacts(set: &RuleSet, limits: &Limits) -> Vec<(Arc<str>, Vec<Target>)> {
    let names = limits.contacts.fallback.iter();
    let targets = |name: &String| set.book.directory.targets(name, &[]).ok();
    names.filter_map(|name| Some((name.as_str().into(), targets(name)?))).collect()
}

/// An alert that no provider takes anywhere ends dead; better that somebody knows before it does.
fn warn_unreached(set: &RuleSet, reach: &Reach) {
    for problem in set.unreached(|target| reach.objection(target)) {
        tracing::warn!(%problem, "alerts of this rule will not reach everybody");
    }
}

/// Nobody has named other certificates: then there shall be some.
pub(crate) fn uses_development_certificates(config: &broker::config::Config) -> bool {
    let defaults = broker::config::Config::default();
    config.serves_with(&defaults.cert) && config.key == defaults.key
}

/// What a person who has never seen Watchbell can publish: the example of the repository's rules,
/// if they are what is loaded.
fn hint(rules: &RulesInForce) -> Option<Hint> {
    // Others may call a rule so, and look elsewhere.
    const TOPIC: &str = "site/{site}/freezer/{unit}/telemetry";
    let is_it = |rule: &RuleInForce| rule.name == "freezer-warm" && rule.topic == TOPIC;
    rules.rules.iter().any(is_it).then(|| Hint {
        topic: "site/kiel/freezer/1/telemetry".to_owned(),
        payload: r#"{"temp_c": -10.5}"#.to_owned(),
    })
}

/// What is done now and then: reload changed rules and certificates, say whether it is ready.
struct Chores {
    rules_dir: PathBuf,
    limits: Limits,
    /// What the providers can reach.
    reach: Reach,
    outbox_messages_max: usize,
    ready: watch::Sender<Readiness>,
    dispatch: Dispatch,
    intake: Intake,
    metrics: Metrics,
    clock: Clock,
    in_force: Arc<ArcSwap<RulesInForce>>,
    certificates: Certificates,
    certificate_problems: Arc<ArcSwap<Vec<String>>>,
}

impl Chores {
    async fn run(self, mut reloads: mpsc::Receiver<()>, mut stop: watch::Receiver<bool>) {
        let mut seen = fingerprint(&self.rules_dir);
        let mut ticks = tokio::time::interval(LOOK_AROUND);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = stop.changed() => return,
                Some(()) = reloads.recv() => true,
                _ = ticks.tick() => false,
            };
            let now_there = fingerprint(&self.rules_dir);
            if asked || now_there != seen {
                seen = now_there;
                self.reload().await;
            }
            self.certificates.look(asked);
            self.certificate_problems.store(Arc::new(self.certificates.problems()));
            self.say_whether_ready();
        }
    }

    async fn reload(&self) {
        let now = self.clock.now();
        match RuleSet::load_dir(&self.rules_dir, &self.limits) {
            Ok(set) => {
                let rules = set.rules.len();
                warn_unreached(&set, &self.reach);
                let in_force = rules_in_force(&set, now, &[]);
                let fallback = fallback_contacts(&set, &self.limits);
                match self.intake.replace_rules(set).await {
                    Ok(adopted) => {
                        // Nobody is told of rules that publishes do not meet yet.
                        self.metrics.rules_loaded.set(count(rules));
                        self.in_force.store(Arc::new(in_force));
                        self.dispatch.set_fallback(fallback);
                        tracing::info!(
                            rules, instances_kept = adopted.kept, changed = ?adopted.changed,
                            removed = ?adopted.removed, "the rules are loaded again"
                        );
                    }
                    Err(reason) => tracing::warn!(%reason, "the rules are not loaded again"),
                }
            }
            Err(problems) => self.refuse(&problems),
        }
    }

    fn refuse(&self, problems: &[Problem]) {
        self.metrics.rule_reloads_failed.inc();
        for problem in problems {
            tracing::error!(%problem, "the changed rules are refused; the old ones stay in force");
        }
        let mut in_force = RulesInForce::clone(&self.in_force.load());
        in_force.problems = problems.iter().map(Problem::to_string).collect();
        self.in_force.store(Arc::new(in_force));
    }

    /// Not ready is who takes nothing new. Stopping has the last word.
    fn say_whether_ready(&self) {
        let readiness = if self.intake.is_disk_low() {
            Readiness::NotReady(Reason::DiskLow)
        } else if self.dispatch.waiting() >= self.outbox_messages_max {
            Readiness::NotReady(Reason::OutboxFull)
        } else {
            Readiness::Ready
        };
        self.ready.send_if_modified(|known| {
            let changes =
                *known != readiness && *known != Readiness::NotReady(Reason::ShuttingDown);
            if changes {
                *known = readiness;
            }
            changes
        });
    }
}

/// Names, sizes and times of the rule files: another value means that something has changed.
fn fingerprint(directory: &Path) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "toml"))
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.path(), metadata.len(), metadata.modified().ok()))
        })
        .collect();
    files.sort();
    files
}
