//! Upstreams: Watchbell as a client of brokers that are there already, so that rules apply to a
//! plant's devices without touching them.
//!
//! One task for each `[[upstream]]` (`config`): it connects (`client`), subscribes, takes what comes
//! through intake (`incoming`), passes on what is to go back (`publish`), and tries again for ever,
//! with back-off. How it stands is a metric, a line of `watchbell status`, and a retained publish
//! to `$watchbell/upstream/{name}`, which a rule may match.
//!
//! What it never does: acknowledge a publish that is not on disk; take a publish back to the
//! upstream that it came from; end the process for want of an upstream.

mod address;
mod client;
pub mod config;
mod explain;
mod incoming;
mod publish;
mod state;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::address::Address;
use self::client::{Client, Connected, Happening, Stuck};
use self::config::Upstream;
use self::explain::Loss;
use self::incoming::Incoming;
use self::publish::Back;
use self::state::{STABLE, Standing};
use super::Stop;
use super::local::Local;
use crate::model::{Qos, UpstreamState};

/// At a stop, the time for the last acknowledgements and DISCONNECT.
const LEAVE: Duration = Duration::from_secs(5);

/// Every upstream, not running yet.
pub struct Bridges {
    local: Local,
    bridges: Vec<Bridge>,
    states: Vec<watch::Receiver<UpstreamState>>,
}

/// How an upstream stands, and how much waits for it; `None` where nothing goes to it.
pub type Stand = (UpstreamState, Option<usize>);

/// The session in which waits what goes to this upstream.
fn session_id(name: &str) -> Arc<str> {
    format!("$upstream/{name}").into()
}

impl Bridges {
    /// What upstreams that are configured no more, or get nothing any more, have left behind ends
    /// here: nobody would ever empty their sessions.
    pub(super) fn new(local: &Local, upstreams: Vec<Upstream>) -> Self {
        let gives = upstreams.iter().filter(|one| !one.config.publish.is_empty());
        let kept: Vec<Arc<str>> = gives.map(|one| session_id(&one.name)).collect();
        for (client_id, queued) in local.end_others(&session_id(""), &kept) {
            tracing::warn!(
                %client_id, queued,
                "an upstream that is not configured any more, or without `publish`: what waited for it is dropped"
            );
        }
        local.forget_retained(state::TOPICS);
        let (mut bridges, mut states) = (Vec::new(), Vec::new());
        for upstream in upstreams {
            let (standing, state) = Standing::new(local, &upstream);
            bridges.push(Bridge { local: local.clone(), standing, upstream: Arc::new(upstream) });
            states.push(state);
        }
        Self { local: local.clone(), bridges, states }
    }

    /// How each stands, in the order of the configuration.
    pub fn states(&self) -> Arc<dyn Fn() -> Vec<Stand> + Send + Sync> {
        let (local, states) = (self.local.clone(), self.states.clone());
        Arc::new(move || {
            let stand = |state: &watch::Receiver<UpstreamState>| {
                let state = state.borrow().clone();
                let queued = local.queued(&session_id(&state.name));
                (state, queued)
            };
            states.iter().map(stand).collect()
        })
    }

    /// Serves them until `stop` becomes true. Then what is with intake is waited for and
    /// acknowledged, every upstream is told goodbye, and this returns.
    pub async fn run(self, stop: watch::Receiver<bool>) {
        let mut tasks = JoinSet::new();
        for bridge in self.bridges {
            tasks.spawn(bridge.run(Stop(stop.clone())));
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "an upstream's task ended in a fault; restart to have it back");
            }
        }
        // Where there are none, this lasts as long as with some.
        Stop(stop).told().await;
    }
}

/// One upstream.
struct Bridge {
    local: Local,
    standing: Standing,
    upstream: Arc<Upstream>,
}

/// How a connection ended.
enum End {
    Stopped,
    Lost(Loss),
}

impl Bridge {
    async fn run(self, mut stop: Stop) {
        let Self { local, standing, upstream } = self;
        let client_id = session_id(&upstream.name);
        let prefix = upstream.config.prefix.clone();
        let mut link = Link {
            incoming: Incoming::new(
                &local,
                Arc::clone(&upstream.name),
                Arc::clone(&client_id),
                prefix.clone(),
                upstream.config.inflight_max.into(),
            ),
            back: None,
            is_subscribed: false,
            standing,
            upstream,
        };
        let filters: Vec<String> =
            link.upstream.config.publish.iter().map(|filter| format!("{prefix}{filter}")).collect();
        if !filters.is_empty() {
            match local.attach(client_id, &filters).await {
                Ok(session) => {
                    let name = Arc::clone(&link.upstream.name);
                    let inflight_max = link.upstream.config.publish_inflight_max;
                    let metrics = local.metrics().clone();
                    link.back = Some(Back::new(session, name, prefix, metrics, inflight_max));
                }
                Err(reason) => tracing::error!(
                    upstream = %link.upstream.name, %reason,
                    "nothing is passed on to this upstream: its session cannot be had; see broker.sessions_max and broker.subscriptions_max"
                ),
            }
        }
        link.serve(&mut stop).await;
        if let Some(back) = link.back.take() {
            back.leave();
        }
    }
}

/// The connections to one upstream, one after the other.
struct Link {
    upstream: Arc<Upstream>,
    incoming: Incoming,
    back: Option<Back>,
    standing: Standing,
    /// In this process: what was configured before may differ, whatever the upstream remembers.
    is_subscribed: bool,
}

impl Link {
    async fn serve(&mut self, stop: &mut Stop) {
        let upstream = Arc::clone(&self.upstream);
        let (mut turn, mut failed) = (0_usize, 0_u32);
        loop {
            let Some(address) = upstream.addresses.get(turn % upstream.addresses.len()) else {
                return;
            };
            let loss = match self.connection(address, stop).await {
                End::Stopped => return,
                End::Lost(loss) => loss,
            };
            let lasted = self.standing.lasted();
            let reason = match lasted {
                None if loss.is_close && !address.tls => loss.reason + explain::EARLY,
                _ => loss.reason,
            };
            if let Some(back) = &mut self.back {
                back.lost(loss.is_close);
            }
            let is_good = lasted.is_some_and(|lasted| lasted >= STABLE);
            if is_good {
                failed = 0;
            } else {
                turn += 1;
                failed = failed.saturating_add(1);
            }
            // The next address of the cluster at once; a rest after each round.
            let is_round_over = is_good || turn.is_multiple_of(upstream.addresses.len());
            self.standing.lost(address, &reason, is_round_over);
            if !is_round_over {
                continue;
            }
            let round = failed / u32::try_from(upstream.addresses.len()).unwrap_or(u32::MAX);
            if self.rest(round, stop).await.is_break() {
                return;
            }
        }
    }

    /// Waits before the next connection: a random time, so that not all instances come at once to
    /// an upstream that is back. What is with intake goes on meanwhile.
    async fn rest(&mut self, round: u32, stop: &mut Stop) -> std::ops::ControlFlow<()> {
        let config = &self.upstream.config;
        let (least, most) = (config.backoff_min.get(), config.backoff_max.get());
        let until = Instant::now() + backoff(least, most, round);
        loop {
            tokio::select! {
                () = stop.told() => return std::ops::ControlFlow::Break(()),
                () = tokio::time::sleep_until(until) => return std::ops::ControlFlow::Continue(()),
                step = self.incoming.next() => self.incoming.step(step, None).await,
            }
        }
    }

    /// One connection, from the first packet to the last.
    async fn connection(&mut self, address: &Address, stop: &mut Stop) -> End {
        let mut client = match Client::connect(&self.upstream, address) {
            Ok(client) => client,
            Err(reason) => return End::Lost(reason.as_str().into()),
        };
        self.incoming.connected();
        let mut is_connected = false;
        loop {
            let has_room = self.incoming.has_room();
            let back = self.back.as_ref().filter(|_| is_connected);
            let done = tokio::select! {
                () = stop.told() => {
                    self.leave(&mut client, is_connected).await;
                    return End::Stopped;
                }
                happening = client.next(), if has_room => {
                    is_connected |= matches!(happening, Happening::Connected(_));
                    self.happened(happening, &mut client, address).await
                }
                step = self.incoming.next() => {
                    self.incoming.step(step, Some(&mut client)).await;
                    Ok(())
                }
                () = called(back) => Ok(()),
                () = until(self.standing.stable_at()) => {
                    self.standing.stable();
                    Ok(())
                }
            };
            let pumped = match (&mut self.back, is_connected) {
                (Some(back), true) => back.pump(&client),
                _ => Ok(()),
            };
            if let Err(end) = done {
                return end;
            }
            if let Err(Stuck) = pumped {
                return End::Lost("the connection takes no more requests".into());
            }
        }
    }

    async fn happened(
        &mut self,
        happening: Happening,
        client: &mut Client,
        address: &Address,
    ) -> Result<(), End> {
        match happening {
            Happening::Connected(connected) => return self.connected(&connected, client, address),
            Happening::Subscribed(granted) => self.subscribed(&granted, address),
            Happening::Received(received) => self.incoming.receive(received, client).await,
            Happening::Sent(id) => {
                if let Some(back) = &mut self.back {
                    back.sent(id);
                }
            }
            Happening::Acknowledged(id, refusal) => {
                if let Some(back) = &mut self.back {
                    back.acknowledged(id, refusal.as_deref());
                }
            }
            Happening::AckSent | Happening::Left => {}
            Happening::Lost(loss) => return Err(End::Lost(loss)),
        }
        Ok(())
    }

    fn connected(
        &mut self,
        connected: &Connected,
        client: &Client,
        address: &Address,
    ) -> Result<(), End> {
        if let Some(back) = &mut self.back {
            back.connected(connected);
        }
        let wanted = &self.upstream.wanted;
        if wanted.is_empty() || (connected.session_present && self.is_subscribed) {
            self.standing.connected(address, None);
            return Ok(());
        }
        client
            .subscribe(wanted)
            .map_err(|Stuck| End::Lost("the subscriptions cannot be sent".into()))
    }

    fn subscribed(&mut self, granted: &[Result<Qos, String>], address: &Address) {
        let mut refused = Vec::new();
        for (wanted, granted) in self.upstream.wanted.iter().zip(granted) {
            match granted {
                Ok(qos) if *qos < wanted.qos => tracing::warn!(
                    upstream = %self.upstream.name, filter = %wanted.filter,
                    "the upstream grants QoS 0 only: what it sends may get lost on the way"
                ),
                Ok(_) => {}
                Err(reason) => {
                    tracing::error!(
                        upstream = %self.upstream.name, filter = %wanted.filter, %reason,
                        "the upstream refuses a subscription: nothing comes by it; see its access lists"
                    );
                    refused.push(format!("{}: {reason}", wanted.filter));
                }
            }
        }
        // One that was refused is asked for again on the next connection.
        self.is_subscribed = refused.is_empty();
        self.standing.connected(address, Some(refused));
    }

    /// Waits for what is with intake, acknowledges it, and says DISCONNECT.
    async fn leave(&mut self, client: &mut Client, is_connected: bool) {
        let until = Instant::now() + LEAVE;
        while self.incoming.awaits_verdicts() {
            let Ok(step) = tokio::time::timeout_at(until, self.incoming.next()).await else {
                break;
            };
            self.incoming.step(step, Some(&mut *client)).await;
        }
        if !is_connected {
            return;
        }
        let goodbye = async {
            let mut has_said = false;
            loop {
                if !client.owes_acks() && !has_said {
                    has_said = true;
                    if client.leave().is_err() {
                        return;
                    }
                }
                if let Happening::Left | Happening::Lost(_) = client.next().await {
                    return;
                }
            }
        };
        // Without it the upstream keeps what was not acknowledged, and finds out for itself.
        tokio::time::timeout_at(until, goodbye).await.ok();
    }
}

async fn called(back: Option<&Back>) {
    match back {
        Some(back) => back.called().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Full jitter: uniform between nothing and `least * 2^round`, at most `most`.
fn backoff(least: Duration, most: Duration, round: u32) -> Duration {
    let longest = least.saturating_mul(1_u32.checked_shl(round.min(30)).unwrap_or(u32::MAX));
    let millis = u64::try_from(longest.min(most).as_millis()).unwrap_or(u64::MAX);
    // Without random numbers the longest wait is a good one.
    let random = getrandom::u64().map_or(millis, |random| random % millis.saturating_add(1));
    Duration::from_millis(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_grows_and_has_a_bound() {
        let (least, most) = (Duration::from_millis(100), Duration::from_secs(1));
        for (round, longest) in [(0, 100), (1, 200), (3, 800), (4, 1000), (1000, 1000)] {
            let longest = Duration::from_millis(longest);
            let rests: Vec<_> = (0..200).map(|_| backoff(least, most, round)).collect();
            assert!(rests.iter().all(|rest| *rest <= longest), "{round}");
            assert!(rests.iter().any(|rest| *rest > longest / 4), "{round}: no spread");
            assert!(rests.iter().any(|rest| *rest < longest * 3 / 4), "{round}: no spread");
        }
    }
}
