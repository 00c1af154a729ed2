//! One client's connection after its CONNECT: the loop, and what each packet does.
//!
//! A round of the loop: read while there is room, settle the commits that have finished (fan out,
//! then acknowledge), pump the session's queue, write, wait. No linger and no timer of length
//! zero; one sleep for keep-alive and stuck writes together.
//!
//! A PUBLISH that a rule wants goes to intake and waits in `pending` for its verdict; what comes
//! behind it waits too, so that fan-out and acknowledgements keep the order of receipt
//! (MQTT-4.6.0). One that also has to be on disk for subscribers, or to be retained, waits there a
//! second time, for the hub's journal: it is fanned out as soon as all before it are, so those
//! commits run beside each other, and acknowledged in order. While `commits_max` or
//! `queue_bytes_max` wait, or `output_bytes_max` are unsent, nothing is read: that is how a fast
//! client is slowed down. So it is while intake has no room, and while a rate of `[broker.limits]`
//! is overdrawn.
//!
//! Invariant: nothing is acknowledged or fanned out before intake has said that it is durable, and
//! nothing that intake refused ever is.

mod packets;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::Shared;
use super::acl::Grants;
use super::clients::Presence;
use super::herald::{self, Event, News, Way};
use super::hub::Detach;
use super::listener::Listener;
use super::load::{IdentityPlace, Input, Pace};
use super::protocol::connect::Will;
use super::protocol::{self, Bad, Subscribe, Unsubscribe, Version, code};
use super::session::{NotOwner, Owner, Session, Signal, Writer, bytes_of};
use super::stream::Stream;
use super::sys::Present;
use super::websocket::Fault;
use crate::intake::{Matches, Ticket, Verdict};
use crate::model::{Publish, Qos, Reason};
use crate::store::Op;
use crate::store::sessions::ReceivedRow;
use crate::telemetry::ByReason;
use crate::topic::TopicName;

/// A client's connection.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    /// By which it came.
    pub(crate) listener: Arc<Listener>,
    /// By which load of the listener's certificates it was last let in.
    pub(crate) certificates: u64,
    pub(crate) session: Arc<Session>,
    pub(crate) owner: Owner,
    pub(crate) signal: Arc<Signal>,
    pub(crate) peer: SocketAddr,
    pub(crate) grants: Arc<Grants>,
    pub(crate) writer: Writer,
    /// What waits for the socket.
    pub(crate) out: Vec<u8>,
    pub(crate) will: Option<Box<Will>>,
    /// Keep Alive times one and a half; zero for none.
    pub(crate) patience: Duration,
    /// Session Expiry Interval in force, seconds; `u32::MAX` for ever.
    pub(crate) session_expiry: u32,
    /// How fast it may go on, where something limits that.
    pub(crate) pace: Option<Box<Pace>>,
    /// What it holds of a packet that has begun.
    pub(crate) held: Input,
    /// That it is there, and its place among those of its identity; until it leaves.
    pub(crate) stays: Option<(Presence, Option<IdentityPlace>)>,
    /// When what let the client in is over.
    pub(crate) ends_at: Option<Instant>,
    pub(crate) state: State,
    /// It counts as a connected client for as long as it lives.
    pub(crate) _present: Present,
}

/// What a connection starts without.
pub(crate) struct State {
    /// Written, and not yet flushed through TLS to the operating system.
    unflushed: bool,
    /// Since when the client has not taken what is written to it.
    stuck_since: Option<Instant>,
    last_packet: Instant,
    pending: VecDeque<Pending>,
    /// Bytes of publishes in `pending`.
    pending_bytes: usize,
    /// The ticket number of the first in `pending`.
    first_number: u64,
    /// How many at the front of `pending` have been fanned out, or never will be.
    fanned_out: usize,
    /// How many in `pending` have QoS 1 or 2.
    unacknowledged: usize,
    /// QoS 2 publishes that were taken on this connection and not released. Those of an earlier
    /// one do not count towards Receive Maximum (MQTT 5, 4.9).
    unreleased: usize,
    /// Where verdicts come; made for the first commit, dropped when none is out.
    verdicts: Option<(mpsc::Sender<Answer>, mpsc::Receiver<Answer>)>,
    /// The last topic that it was allowed to publish to: most devices have one.
    last_topic: Option<TopicName>,
    /// What the client's topic aliases stand for, from 1.
    aliases: Vec<Option<TopicName>>,
    /// There may be word to end.
    called: bool,
    /// Publishes received and not counted yet.
    received: u64,
    /// Until when it is not read from, because it was faster than it may be.
    paused_until: Option<Instant>,
    /// A publish on its way into intake, which is full.
    submitting: Option<BoxFuture<'static, ()>>,
    /// How much of the output has been counted as sent.
    counted: usize,
}

type Answer = (u64, Verdict);

impl State {
    pub(crate) fn new() -> Self {
        Self {
            unflushed: false,
            stuck_since: None,
            last_packet: Instant::now(),
            pending: VecDeque::new(),
            pending_bytes: 0,
            first_number: 0,
            fanned_out: 0,
            unacknowledged: 0,
            unreleased: 0,
            verdicts: None,
            last_topic: None,
            aliases: Vec::new(),
            called: true,
            received: 0,
            paused_until: None,
            submitting: None,
            counted: 0,
        }
    }
}

/// A PUBLISH that has not been answered, or a PUBREL.
struct Pending {
    qos: Qos,
    id: u16,
    /// To be fanned out when it is durable.
    publish: Option<Arc<Publish>>,
    outcome: Option<Outcome>,
    /// A rule wants it: intake says what becomes of it.
    is_matched: bool,
    /// Its packet id has a row.
    is_saved: bool,
    /// It is a PUBREL.
    is_release: bool,
}

impl Pending {
    fn bytes(&self) -> usize {
        self.publish.as_ref().map_or(0, |publish| bytes_of(publish))
    }
}

/// What is to become of a PUBLISH.
enum Outcome {
    /// What the rules make of it is on disk: fan it out.
    Durable,
    /// All of it is: acknowledge it.
    Settled,
    /// Neither.
    Refused(Reason),
    /// Only answer it, with this code.
    Answer(u8),
}

/// What a packet asks of the loop.
enum Next {
    Go,
    Commit(Arc<Publish>, Matches, Ticket),
    Subscribe(Box<Subscribe>),
    Unsubscribe(Box<Unsubscribe>),
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Close {
    pub(crate) reason: Reason,
    /// The DISCONNECT that MQTT 5 gets; `None` where the client has ended it.
    pub(crate) code: Option<u8>,
    pub(crate) what: &'static str,
    /// The client said DISCONNECT and does not want its will published.
    pub(crate) drops_will: bool,
    /// Nothing is said, whatever the code.
    silent: bool,
}

impl Close {
    const fn new(reason: Reason, code: u8, what: &'static str) -> Self {
        Self { reason, code: Some(code), what, drops_will: false, silent: false }
    }

    pub(crate) const fn lost(what: &'static str) -> Self {
        let reason = Reason::ConnectionLost;
        Self { reason, code: None, what, drops_will: false, silent: true }
    }

    /// The stream cannot be read on.
    fn unreadable(error: &std::io::Error) -> Self {
        match Fault::of(error) {
            Some(what) => Self::new(Reason::ProtocolError, code::PROTOCOL_ERROR, what),
            None => Self::lost("reading failed"),
        }
    }

    const fn told(reason: Reason) -> Self {
        match reason {
            Reason::ShuttingDown => Self {
                // Wills of a planned stop would raise an alarm for each device that is well.
                drops_will: true,
                ..Self::new(reason, code::SHUTTING_DOWN, "the broker stops")
            },
            Reason::AdminDisconnect => {
                Self::new(reason, code::ADMINISTRATIVE_ACTION, "an operator disconnected it")
            }
            // DISCONNECT has no code for a ban (MQTT 5, 2.4).
            Reason::Banned => {
                Self::new(reason, code::ADMINISTRATIVE_ACTION, "this client is banned")
            }
            Reason::QueueFull => {
                Self::new(reason, code::QUOTA, "the client does not take what waits for it")
            }
            Reason::FanoutFailed => {
                Self::new(reason, code::UNSPECIFIED, "rumqttd's router has died; subscribe again")
            }
            _ => Self::new(reason, code::TAKEN_OVER, "another connection took the session over"),
        }
    }
}

impl From<Bad> for Close {
    fn from(bad: Bad) -> Self {
        Self::new(bad.reason, bad.code, bad.what)
    }
}

impl From<NotOwner> for Close {
    fn from(_: NotOwner) -> Self {
        Self::told(Reason::TakenOver)
    }
}

/// What ended a wait.
enum Woken {
    Go,
    End(Close),
    /// Keep-alive, a stuck write or the end of a pause may be due.
    Timer,
}

/// Lets the tasks that are ready already run first. (`yield_now` may let this one go on before them.)
async fn give_way() {
    let mut gave_way = false;
    poll_fn(|context| {
        if std::mem::replace(&mut gave_way, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Connection {
    /// Serves the client until one side ends it.
    pub(crate) async fn serve(&mut self, stream: &mut Stream, mut input: Vec<u8>) -> Close {
        match self.serve_until_error(stream, &mut input).await {
            Ok(never) => match never {},
            Err(close) => close,
        }
    }

    async fn serve_until_error(
        &mut self,
        stream: &mut Stream,
        input: &mut Vec<u8>,
    ) -> Result<std::convert::Infallible, Close> {
        let mut sleep = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            self.take_in(input).await?;
            if !self.held.note(input.len()) {
                let what = "packets that have begun are too many bytes in all";
                return Err(Close::new(Reason::TooMany, code::QUOTA, what));
            }
            let had_room = self.has_room();
            self.settle()?;
            self.pump()?;
            if !had_room && self.has_room() {
                // What was left in `input` would wake nobody.
                continue;
            }
            if std::mem::take(&mut self.state.called)
                && let Some(reason) = self.session.word_to_end(self.owner)
            {
                if reason == Reason::TakenOver {
                    // A client that said DISCONNECT and came back at once is not to get its will
                    // published, only because the new connection was faster.
                    self.look_once(stream, input).await;
                    self.take_in(input).await?;
                }
                return Err(Close::told(reason));
            }
            self.check_certificate(stream)?;
            match self.wait(stream, input, sleep.as_mut()).await {
                Woken::Go => {}
                Woken::End(close) => return Err(close),
                Woken::Timer => self.check_times()?,
            }
        }
    }

    // Waiting.

    fn has_room(&self) -> bool {
        self.state.paused_until.is_none()
            && self.state.submitting.is_none()
            && self.state.pending.len() < self.shared.config.commits_max
            && self.state.pending_bytes < self.shared.config.queue_bytes_max
            && self.out.len() < self.shared.config.output_bytes_max
    }

    /// Writes, and waits until there is something to do.
    async fn wait(
        &mut self,
        stream: &mut Stream,
        input: &mut Vec<u8>,
        mut sleep: Pin<&mut Sleep>,
    ) -> Woken {
        self.count_sent();
        let room = self.has_room();
        if !room {
            // While nothing is read, nothing can be missed.
            self.state.last_packet = Instant::now();
        }
        let (mut slept, mut arrived) = (false, false);
        let woken = poll_fn(|context| {
            let mut go = false;
            match self.poll_write(stream, context, &mut go) {
                Ok(()) => {}
                Err(_) => return Poll::Ready(Woken::End(Close::lost("writing failed"))),
            }
            if self.poll_verdicts(context) || self.poll_submitting(context) {
                go = true;
            }
            if self.signal.poll(context) {
                self.state.called = true;
                go = true;
            }
            if room {
                match stream.poll_fill(context, input) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Woken::End(Close::lost("closed without DISCONNECT")));
                    }
                    Poll::Ready(Ok(_)) => (go, arrived) = (true, true),
                    Poll::Ready(Err(error)) => {
                        return Poll::Ready(Woken::End(Close::unreadable(&error)));
                    }
                    Poll::Pending => {}
                }
            }
            if go {
                return Poll::Ready(Woken::Go);
            }
            // About to be idle: give the buffers of the last burst back.
            if input.is_empty() {
                *input = Vec::new();
            }
            if self.out.is_empty() {
                self.out = Vec::new();
            }
            slept = true;
            let Some(deadline) = self.deadline(room) else {
                return Poll::Pending;
            };
            if sleep.is_elapsed() || sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            sleep.as_mut().poll(context).map(|()| Woken::Timer)
        })
        .await;
        if slept && arrived && input.first().is_some_and(|first| first >> 4 == protocol::PUBLISH) {
            // Of connections that become readable together the runtime runs the last one first.
            // A SUBSCRIBE that came in before this PUBLISH, on another connection, is to be
            // served before it: clients expect as much, though MQTT does not promise it.
            give_way().await;
        }
        woken
    }

    fn poll_write(
        &mut self,
        stream: &mut Stream,
        context: &mut Context<'_>,
        go: &mut bool,
    ) -> std::io::Result<()> {
        let before = self.out.len();
        if before == 0 && !self.state.unflushed {
            return Ok(());
        }
        let drained = stream.poll_drain(context, &mut self.out);
        self.state.counted = self.out.len();
        match drained {
            Poll::Ready(Ok(())) => {
                self.state.unflushed = false;
                self.state.stuck_since = None;
            }
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => {
                self.state.unflushed = true;
                if self.out.len() < before || self.state.stuck_since.is_none() {
                    self.state.stuck_since = Some(Instant::now());
                }
            }
        }
        // Room again for what was held back.
        *go |= before >= self.shared.config.output_bytes_max && self.out.len() < before;
        Ok(())
    }

    fn poll_submitting(&mut self, context: &mut Context<'_>) -> bool {
        let Some(submitting) = &mut self.state.submitting else {
            return false;
        };
        let is_done = submitting.as_mut().poll(context).is_ready();
        if is_done {
            self.state.submitting = None;
        }
        is_done
    }

    fn poll_verdicts(&mut self, context: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Some((_, answers)) = &mut self.state.verdicts
            && let Poll::Ready(Some((number, verdict))) = answers.poll_recv(context)
        {
            self.note_verdict(number, verdict);
            any = true;
        }
        any
    }

    fn note_verdict(&mut self, number: u64, verdict: Verdict) {
        let index = number.checked_sub(self.state.first_number);
        let index = index.and_then(|index| usize::try_from(index).ok());
        let Some(index) = index else { return };
        let was_fanned_out = index < self.state.fanned_out;
        if let Some(pending) = self.state.pending.get_mut(index) {
            pending.outcome = Some(match verdict {
                Verdict::Durable if was_fanned_out => Outcome::Settled,
                Verdict::Durable => Outcome::Durable,
                Verdict::Refused(reason) => {
                    if was_fanned_out {
                        // Intake has counted its own.
                        self.shared.hub.metrics.refuse(reason);
                    }
                    Outcome::Refused(reason)
                }
            });
        }
    }

    /// When keep-alive, a stuck write, the end of a pause or of the credentials is due next.
    fn deadline(&self, room: bool) -> Option<Instant> {
        let watched = room && !self.patience.is_zero();
        let silent = watched.then(|| self.state.last_packet + self.patience);
        let stuck =
            self.state.stuck_since.map(|since| since + self.shared.config.write_timeout.get());
        [silent, stuck, self.state.paused_until, self.ends_at].into_iter().flatten().min()
    }

    fn check_times(&self) -> Result<(), Close> {
        let now = Instant::now();
        let write_timeout = self.shared.config.write_timeout.get();
        let stuck_since = self.state.stuck_since;
        if stuck_since.is_some_and(|since| since + write_timeout <= now) {
            let what = "the client does not read what is written to it";
            return Err(Close::new(Reason::WriteTimeout, code::UNSPECIFIED, what));
        }
        if self.ends_at.is_some_and(|at| at <= now) {
            let what = "the token that let it in has expired";
            return Err(Close::new(Reason::CredentialExpired, code::CONNECT_TIME, what));
        }
        let watched = self.has_room() && !self.patience.is_zero();
        if watched && self.state.last_packet + self.patience <= now {
            let what = "no packet within one and a half keep-alive intervals";
            return Err(Close::new(Reason::KeepAliveTimeout, code::KEEP_ALIVE, what));
        }
        Ok(())
    }

    /// A client whose certificate has been revoked since it came does not stay.
    fn check_certificate(&mut self, stream: &Stream) -> Result<(), Close> {
        let (Some(tls), Some(own)) = (&self.listener.tls, stream.tls()) else {
            return Ok(());
        };
        if tls.still_accepts(own, &mut self.certificates, self.shared.hub.clock.now()) {
            return Ok(());
        }
        let what = "the client's certificate is no longer accepted";
        Err(Close::new(Reason::CertificateRefused, code::ADMINISTRATIVE_ACTION, what))
    }

    /// Takes what has arrived, without waiting.
    async fn look_once(&mut self, stream: &mut Stream, input: &mut Vec<u8>) {
        poll_fn(|context| {
            // What comes of it, even an error, changes nothing: the connection is ending.
            Poll::Ready(stream.poll_fill(context, input).is_ready())
        })
        .await;
    }

    // Packets.

    /// Handles the packets in `input` while there is room.
    async fn take_in(&mut self, input: &mut Vec<u8>) -> Result<(), Close> {
        let mut taken = 0;
        if self.state.paused_until.is_some_and(|until| until <= Instant::now()) {
            self.state.paused_until = None;
        }
        let result = self.take_in_from(input, &mut taken).await;
        if taken > 0 {
            self.state.last_packet = Instant::now();
            let metrics = &self.shared.hub.metrics;
            let tally = protocol::tally(input.get(..taken).unwrap_or_default());
            metrics.packets_received.inc_by(tally.packets);
            metrics.packet_bytes_received.inc_by(taken as u64);
            metrics.publish_bytes_received.inc_by(tally.publish_bytes);
            input.drain(..taken);
        }
        if self.state.received > 0 {
            let received = std::mem::take(&mut self.state.received);
            self.shared.hub.metrics.publishes_received.inc_by(received);
        }
        result
    }

    async fn take_in_from(&mut self, input: &[u8], taken: &mut usize) -> Result<(), Close> {
        while self.has_room() {
            let rest = input.get(*taken..).unwrap_or_default();
            let Some(frame) = protocol::frame(rest, self.shared.config.packet_bytes_max)? else {
                break;
            };
            *taken += frame.len;
            let bytes = frame.len;
            let packet = protocol::parse(self.writer.version, frame)?;
            let before = self.state.received;
            match self.handle(packet)? {
                Next::Go => {}
                Next::Commit(publish, matches, ticket) => {
                    let also = self.packet_id_row(&publish).await;
                    let intake = &self.shared.hub.intake;
                    self.state.submitting = intake.offer(publish, matches, ticket, also);
                }
                Next::Subscribe(packet) => self.subscribe(&packet).await?,
                Next::Unsubscribe(packet) => self.unsubscribe(&packet).await?,
            }
            self.charge(self.state.received - before, bytes);
        }
        Ok(())
    }

    /// Charges what was received to all that limit it; reading waits where that is too much.
    fn charge(&mut self, publishes: u64, bytes: usize) {
        let Some(pace) = &self.pace else {
            return;
        };
        let Some(pause) = pace.charge(publishes, bytes as u64, Instant::now()) else {
            return;
        };
        self.state.paused_until = Some(pause.until);
        let (reason, limit) = (Reason::RateLimited, pause.limit);
        self.shared.hub.metrics.read_pauses.get_or_create(&ByReason { reason }).inc();
        let client_id = &*self.session.client_id;
        if self.shared.is_first(self.peer, (client_id, limit)) {
            tracing::warn!(client_id, peer = %self.peer, %reason, limit, "a client is slowed down");
        }
    }

    /// Counts what has been added to the output since the last time.
    fn count_sent(&mut self) {
        let new = self.out.get(self.state.counted..).unwrap_or_default();
        if new.is_empty() {
            return;
        }
        let tally = protocol::tally(new);
        let metrics = &self.shared.hub.metrics;
        metrics.packets_sent.inc_by(tally.packets);
        metrics.packet_bytes_sent.inc_by(new.len() as u64);
        metrics.publishes_sent.inc_by(tally.publishes);
        metrics.publish_bytes_sent.inc_by(tally.publish_bytes);
        self.state.counted = self.out.len();
    }

    /// What is to be on disk with what the rules make of a QoS 2 publish, so that it makes that only
    /// once: its packet id, and before it, once, the session that the id belongs to.
    async fn packet_id_row(&mut self, publish: &Publish) -> Op {
        let mut also = Op::new();
        if publish.qos != Qos::ExactlyOnce || !self.session.persistent {
            return also;
        }
        let position = self.session.save_first();
        // Without it the id is of no use, and the store has failed for intake too.
        self.shared.hub.journal().wait(position).await.ok();
        if let Some(pending) = self.state.pending.back_mut() {
            also.put_received(self.session.number, pending.id, ReceivedRow::Ruled);
            pending.is_saved = true;
        }
        also
    }

    fn pump(&mut self) -> Result<(), NotOwner> {
        let hub = &self.shared.hub;
        let now = (hub.clock.now(), hub.age_max());
        self.session.pump(self.owner, &mut self.writer, &mut self.out, now, &mut |reason| {
            hub.note_dropped(reason);
        })
    }

    // The end.

    /// Waits for the commits that are out, for a while: what was read and committed is fanned out
    /// though its publisher has gone, and a QoS 2 id that was taken is remembered.
    pub(crate) async fn finish_commits(&mut self) {
        let until = Instant::now() + self.shared.config.close_timeout.get();
        loop {
            // A refused 3.1.1 publish ends the connection, which is ending already; each error
            // has taken one from the front.
            while self.settle().is_err() {}
            if self.state.verdicts.is_none() {
                return;
            }
            let progress = poll_fn(|context| {
                let any = self.poll_verdicts(context) | self.poll_submitting(context);
                if any { Poll::Ready(()) } else { Poll::Pending }
            });
            if tokio::time::timeout_at(until, progress).await.is_err() {
                return;
            }
        }
    }

    fn way(&self) -> Way {
        Way { address: self.peer.ip(), listener: Arc::clone(&self.listener.name) }
    }

    /// Tells rules that the client has left, or was taken over.
    fn tell_end(&self, close: &Close) {
        let Some((presence, _)) = &self.stays else { return };
        let event = match close.reason {
            Reason::TakenOver => Event::TakenOver,
            _ => Event::Disconnected,
        };
        let news = News {
            way: Some(&self.way()),
            reason: Some(close.reason),
            clean: close.reason == Reason::ClientDisconnect && close.drops_will,
            ..News::of(event, &self.session.client_id, &self.session.principal)
        };
        herald::tell_once(&self.shared.hub, &news, &presence.connected.is_end_told);
    }

    /// Lets go of the session and publishes the will if it is due. Gives back the last words.
    pub(crate) async fn leave(&mut self, close: &Close) -> Vec<u8> {
        let expires_after = match self.session_expiry {
            u32::MAX => None,
            secs => Some(Duration::from_secs(secs.into())),
        };
        let will = self.will.take().filter(|_| !close.drops_will);
        if let Some(will) = &will {
            // Nobody is slowed down by it now, but whoever comes next: a storm of wills is one of
            // publishes.
            self.charge(1, will.topic.as_str().len() + will.payload.len());
        }
        // Before the session is let go, so that whoever takes it over is told of after it, and finds
        // the place free.
        self.tell_end(close);
        self.stays = None;
        let leaving = Detach { expires_after, will };
        let hub = &self.shared.hub;
        if let Some(will) = hub.detach(&self.session, self.owner, leaving) {
            hub.publish_will(&self.session, *will, None, Some(&self.way())).await;
        }
        let mut last_words = std::mem::take(&mut self.out);
        if let (Version::V5, Some(code), false) = (self.writer.version, close.code, close.silent) {
            let bytes_max = self.writer.bytes_max;
            protocol::write_disconnect(&mut last_words, code, close.what, bytes_max);
        }
        last_words
    }
}
