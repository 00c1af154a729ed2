//! One client's connection after its CONNECT: the loop, and what each packet does.
//!
//! A round of the loop: read while there is room, settle the commits that have finished (fan out,
//! then acknowledge), pump the session's queue, write, wait. No linger and no timer of length
//! zero; one sleep for keep-alive and stuck writes together.
//!
//! A PUBLISH that a rule wants goes to intake and waits in `pending` for its verdict; what comes
//! behind it waits too, so that fan-out and acknowledgements keep the order of receipt
//! (MQTT-4.6.0). While `commits_max` wait, or `output_bytes_max` are unsent, nothing is read:
//! that is how a fast client is slowed down.
//!
//! Invariant: nothing is acknowledged or fanned out before intake has said that it is durable, and
//! nothing that intake refused ever is.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::Shared;
use super::acl::Grants;
use super::connect::{self, RefusedTopic, Will};
use super::hub::{Detach, Subscribed};
use super::protocol::{
    self, Ack, Bad, Disconnect, Packet, PublishIn, Retained, Subscribe, Unsubscribe, Version, code,
};
use super::session::{NotOwner, Owner, Session, Writer};
use super::stream::Stream;
use crate::intake::{Matches, Ticket, Verdict};
use crate::model::{Publish, Qos, Reason};
use crate::topic::{BadTopic, TopicName};

/// A client's connection.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) session: Arc<Session>,
    pub(crate) owner: Owner,
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
    pub(crate) state: State,
}

/// What a connection starts without.
pub(crate) struct State {
    /// Written, and not yet flushed through TLS to the operating system.
    unflushed: bool,
    /// Since when the client has not taken what is written to it.
    stuck_since: Option<Instant>,
    last_packet: Instant,
    pending: VecDeque<Pending>,
    /// The ticket number of the first in `pending`.
    first_number: u64,
    /// How many in `pending` have QoS 1 or 2.
    unacknowledged: usize,
    /// QoS 2 publishes that were taken and not released: a copy of the session's count.
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
}

type Answer = (u64, Verdict);

impl State {
    pub(crate) fn new(unreleased: usize) -> Self {
        Self {
            unflushed: false,
            stuck_since: None,
            last_packet: Instant::now(),
            pending: VecDeque::new(),
            first_number: 0,
            unacknowledged: 0,
            unreleased,
            verdicts: None,
            last_topic: None,
            aliases: Vec::new(),
            called: true,
            received: 0,
        }
    }
}

/// A PUBLISH that has not been answered.
struct Pending {
    qos: Qos,
    id: u16,
    /// To be fanned out when it is durable.
    publish: Option<Arc<Publish>>,
    outcome: Option<Outcome>,
}

/// What is to become of a PUBLISH.
enum Outcome {
    /// Fan it out and acknowledge it.
    Durable,
    /// Neither.
    Refused(Reason),
    /// Only answer it, with this code.
    Answer(u8),
}

/// What a packet asks of the loop.
enum Next {
    Go,
    Commit(Arc<Publish>, Matches, Ticket),
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
}

impl Close {
    const fn new(reason: Reason, code: u8, what: &'static str) -> Self {
        Self { reason, code: Some(code), what, drops_will: false }
    }

    pub(crate) const fn lost(what: &'static str) -> Self {
        Self { reason: Reason::ConnectionLost, code: None, what, drops_will: false }
    }

    const fn told(reason: Reason) -> Self {
        match reason {
            Reason::ShuttingDown => Self {
                // Wills of a planned stop would raise an alarm for each device that is well.
                drops_will: true,
                ..Self::new(reason, code::SHUTTING_DOWN, "the broker stops")
            },
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
    /// Keep-alive or a stuck write may be due.
    Timer,
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
            self.settle()?;
            self.pump()?;
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
            match self.wait(stream, input, sleep.as_mut()).await {
                Woken::Go => {}
                Woken::End(close) => return Err(close),
                Woken::Timer => self.check_times()?,
            }
        }
    }

    // Waiting.

    fn has_room(&self) -> bool {
        self.state.pending.len() < self.shared.config.commits_max
            && self.out.len() < self.shared.config.output_bytes_max
    }

    /// Writes, and waits until there is something to do.
    async fn wait(
        &mut self,
        stream: &mut Stream,
        input: &mut Vec<u8>,
        mut sleep: Pin<&mut Sleep>,
    ) -> Woken {
        let room = self.has_room();
        if !room {
            // While nothing is read, nothing can be missed.
            self.state.last_packet = Instant::now();
        }
        poll_fn(|context| {
            let mut go = false;
            match self.poll_write(stream, context, &mut go) {
                Ok(()) => {}
                Err(_) => return Poll::Ready(Woken::End(Close::lost("writing failed"))),
            }
            if self.poll_verdicts(context) {
                go = true;
            }
            if self.session.poll_ready(context) {
                self.state.called = true;
                go = true;
            }
            if room {
                match stream.poll_fill(context, input) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Woken::End(Close::lost("closed without DISCONNECT")));
                    }
                    Poll::Ready(Ok(_)) => go = true,
                    Poll::Ready(Err(_)) => {
                        return Poll::Ready(Woken::End(Close::lost("reading failed")));
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
            let Some(deadline) = self.deadline(room) else {
                return Poll::Pending;
            };
            if sleep.is_elapsed() || sleep.deadline() > deadline {
                sleep.as_mut().reset(deadline);
            }
            sleep.as_mut().poll(context).map(|()| Woken::Timer)
        })
        .await
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
        if let Some(pending) = index.and_then(|index| self.state.pending.get_mut(index)) {
            pending.outcome = Some(match verdict {
                Verdict::Durable => Outcome::Durable,
                Verdict::Refused(reason) => Outcome::Refused(reason),
            });
        }
    }

    /// When keep-alive or a stuck write is due next.
    fn deadline(&self, room: bool) -> Option<Instant> {
        let watched = room && !self.patience.is_zero();
        let silent = watched.then(|| self.state.last_packet + self.patience);
        let stuck =
            self.state.stuck_since.map(|since| since + self.shared.config.write_timeout.get());
        match (silent, stuck) {
            (Some(silent), Some(stuck)) => Some(silent.min(stuck)),
            (one, other) => one.or(other),
        }
    }

    fn check_times(&self) -> Result<(), Close> {
        let now = Instant::now();
        let write_timeout = self.shared.config.write_timeout.get();
        let stuck_since = self.state.stuck_since;
        if stuck_since.is_some_and(|since| since + write_timeout <= now) {
            let what = "the client does not read what is written to it";
            return Err(Close::new(Reason::WriteTimeout, code::UNSPECIFIED, what));
        }
        let watched = self.has_room() && !self.patience.is_zero();
        if watched && self.state.last_packet + self.patience <= now {
            let what = "no packet within one and a half keep-alive intervals";
            return Err(Close::new(Reason::KeepAliveTimeout, code::KEEP_ALIVE, what));
        }
        Ok(())
    }

    /// Takes what has arrived, without waiting.
    async fn look_once(&mut self, stream: &mut Stream, input: &mut Vec<u8>) {
        poll_fn(|context| {
            // An error ends the connection, which is ending in any case.
            Poll::Ready(drop(stream.poll_fill(context, input)))
        })
        .await;
    }

    // Packets.

    /// Handles the packets in `input` while there is room.
    async fn take_in(&mut self, input: &mut Vec<u8>) -> Result<(), Close> {
        let mut taken = 0;
        let result = self.take_in_from(input, &mut taken).await;
        if taken > 0 {
            self.state.last_packet = Instant::now();
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
            let packet = protocol::parse(self.writer.version, frame)?;
            match self.handle(packet)? {
                Next::Go => {}
                Next::Commit(publish, matches, ticket) => {
                    let intake = &self.shared.hub.intake;
                    intake.submit(publish, matches, ticket).await;
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, packet: Packet<'_>) -> Result<Next, Close> {
        match packet {
            Packet::Publish(publish) => return self.publish(publish),
            Packet::Ack(Ack::Pubrel, id, _) => self.release(id)?,
            Packet::Ack(ack, id, reason) => {
                let answer = self.session.acknowledge(self.owner, ack, id, reason)?;
                if let Some((ack, code)) = answer {
                    protocol::write_ack(&mut self.out, self.writer.version, ack, id, code);
                }
            }
            Packet::Subscribe(packet) => self.subscribe(&packet)?,
            Packet::Unsubscribe(packet) => self.unsubscribe(&packet)?,
            Packet::Ping => protocol::write_pong(&mut self.out),
            Packet::Disconnect(packet) => return Err(self.disconnect(packet)),
            Packet::Connect => return Err(Bad::protocol("a second CONNECT").into()),
            Packet::Auth => {
                return Err(Bad::protocol("AUTH without an authentication method").into());
            }
        }
        Ok(Next::Go)
    }

    fn disconnect(&mut self, packet: Disconnect) -> Close {
        if let Some(secs) = packet.session_expiry {
            // MQTT5-3.14.2-2.
            if self.session_expiry == 0 && secs != 0 {
                return Bad::protocol("a session expiry in DISCONNECT, and none in CONNECT").into();
            }
            self.session_expiry = secs.min(self.shared.session_expiry_max());
        }
        Close {
            reason: Reason::ClientDisconnect,
            code: None,
            what: "DISCONNECT",
            drops_will: packet.code == code::SUCCESS,
        }
    }

    fn publish(&mut self, packet: PublishIn<'_>) -> Result<Next, Close> {
        self.state.received += 1;
        let is_v5 = self.writer.version == Version::V5;
        if packet.qos == Qos::ExactlyOnce {
            let same =
                |pending: &Pending| pending.qos == Qos::ExactlyOnce && pending.id == packet.id;
            if self.state.pending.iter().any(same) {
                // Its first copy waits for the store: one PUBREC will do for both.
                return Ok(Next::Go);
            }
            if self.session.has_received(self.owner, packet.id)? {
                self.answer(packet.qos, packet.id, code::SUCCESS);
                return Ok(Next::Go);
            }
        }
        let open = self.state.unacknowledged + self.state.unreleased;
        if is_v5 && packet.qos != Qos::AtMostOnce && open >= self.shared.config.commits_max {
            let what = "more unacknowledged publishes than Receive Maximum";
            return Err(Close::new(Reason::TooMany, code::RECEIVE_MAXIMUM, what));
        }
        let topic = match self.topic(&packet)? {
            Ok(topic) => topic,
            Err((reason, code)) => return self.refuse_publish(&packet, reason, code),
        };
        let matches = self.shared.hub.intake.matches(&topic);
        if matches.is_none() && self.state.pending.is_empty() {
            let hub = &self.shared.hub;
            let targets = hub.targets(&topic, &self.session.client_id);
            if packet.retain || !targets.is_empty() {
                let (qos, id) = (packet.qos, packet.id);
                let publish = self.receive(topic, packet);
                self.shared.hub.deliver(&publish, targets);
                self.acknowledge(qos, id, code::SUCCESS)?;
            } else {
                self.acknowledge(packet.qos, packet.id, code::SUCCESS)?;
            }
            return Ok(Next::Go);
        }
        let (qos, id) = (packet.qos, packet.id);
        let publish = self.receive(topic, packet);
        let outcome = matches.is_none().then_some(Outcome::Durable);
        self.hold(qos, id, Some(Arc::clone(&publish)), outcome);
        match matches {
            None => Ok(Next::Go),
            Some(matches) => {
                self.shared.hub.metrics.publishes_matched.inc();
                Ok(Next::Commit(publish, matches, self.ticket()))
            }
        }
    }

    /// The topic of a PUBLISH, if this client may publish to it; otherwise the reason and the
    /// code. `Err` outside ends the connection.
    fn topic(&mut self, packet: &PublishIn<'_>) -> Result<Result<TopicName, (Reason, u8)>, Close> {
        let state = &mut self.state;
        let alias = match packet.alias {
            Some(alias) if alias > self.shared.config.topic_alias_max => {
                let what = "a topic alias over the maximum";
                return Err(Close::new(Reason::ProtocolError, code::TOPIC_ALIAS, what));
            }
            Some(alias) => Some(usize::from(alias) - 1),
            None => None,
        };
        let known = match (packet.topic.is_empty(), alias) {
            (true, Some(index)) => match state.aliases.get(index).cloned().flatten() {
                Some(topic) => Some(topic),
                None => {
                    let what = "a topic alias that stands for nothing";
                    return Err(Close::new(Reason::ProtocolError, code::TOPIC_ALIAS, what));
                }
            },
            (true, None) if self.writer.version == Version::V5 => {
                return Err(Bad::protocol("neither topic nor topic alias").into());
            }
            _ => None,
        };
        let is_last = |last: &TopicName| match &known {
            Some(topic) => last == topic,
            None => last.as_str().as_bytes() == packet.topic,
        };
        let topic = match state.last_topic.as_ref().filter(|last| is_last(last)) {
            Some(last) => last.clone(),
            None => {
                let topic = match known {
                    Some(topic) => topic,
                    None => match self.shared.check_topic(packet.topic)? {
                        Ok(topic) => topic,
                        Err(refused) => return Ok(Err(refused)),
                    },
                };
                if !self.grants.may_publish(&topic) {
                    return Ok(Err((Reason::NotAuthorized, code::NOT_AUTHORIZED)));
                }
                state.last_topic = Some(topic.clone());
                topic
            }
        };
        if let Some(index) = alias {
            if state.aliases.len() <= index {
                state.aliases.resize(index + 1, None);
            }
            if let Some(place) = state.aliases.get_mut(index) {
                *place = Some(topic.clone());
            }
        }
        Ok(Ok(topic))
    }

    /// A PUBLISH that may not be: MQTT 5 says why, 3.1.1 can only be closed (MQTT-3.3.5-2).
    fn refuse_publish(
        &mut self,
        packet: &PublishIn<'_>,
        reason: Reason,
        code: u8,
    ) -> Result<Next, Close> {
        self.note_refusal(reason, "publish refused", &String::from_utf8_lossy(packet.topic));
        if self.writer.version == Version::V311 {
            return Err(Close {
                // Counted and logged with the topic already.
                code: None,
                ..Close::new(reason, code, "a publish was refused")
            });
        }
        self.answer(packet.qos, packet.id, code);
        Ok(Next::Go)
    }

    /// The publish as everyone behind this knows it. Copies the payload, so that nobody holds the
    /// read buffer.
    fn receive(&self, topic: TopicName, packet: PublishIn<'_>) -> Arc<Publish> {
        Arc::new(Publish {
            topic,
            payload: Bytes::copy_from_slice(packet.payload),
            qos: packet.qos,
            retain: packet.retain,
            client_id: Arc::clone(&self.session.client_id),
            identity: self.session.principal.name().cloned(),
            received_at: self.shared.hub.clock.now(),
            properties: packet.properties,
        })
    }

    /// Puts a PUBLISH behind those that wait.
    fn hold(&mut self, qos: Qos, id: u16, publish: Option<Arc<Publish>>, outcome: Option<Outcome>) {
        self.state.unacknowledged += usize::from(qos != Qos::AtMostOnce);
        self.state.pending.push_back(Pending { qos, id, publish, outcome });
    }

    /// The ticket of the last in `pending`.
    fn ticket(&mut self) -> Ticket {
        let commits_max = self.shared.config.commits_max;
        let verdicts = self.state.verdicts.get_or_insert_with(|| mpsc::channel(commits_max));
        Ticket {
            number: self.state.first_number + self.state.pending.len() as u64 - 1,
            to: verdicts.0.clone(),
        }
    }

    /// Answers a PUBLISH in its turn, without fanning it out.
    fn answer(&mut self, qos: Qos, id: u16, code: u8) {
        if qos != Qos::AtMostOnce {
            self.hold(qos, id, None, Some(Outcome::Answer(code)));
        }
    }

    /// Fans out and answers what has its verdict, in order.
    fn settle(&mut self) -> Result<(), Close> {
        let version = self.writer.version;
        while let Some(Some(_)) = self.state.pending.front().map(|first| &first.outcome) {
            let Some(first) = self.state.pending.pop_front() else {
                break;
            };
            self.state.first_number += 1;
            let acknowledged = first.qos != Qos::AtMostOnce;
            self.state.unacknowledged -= usize::from(acknowledged);
            match (first.outcome, first.publish) {
                (Some(Outcome::Durable), Some(publish)) => {
                    let hub = &self.shared.hub;
                    let targets = hub.targets(&publish.topic, &publish.client_id);
                    hub.deliver(&publish, targets);
                    self.acknowledge(first.qos, first.id, code::SUCCESS)?;
                }
                (Some(Outcome::Answer(code)), _) => {
                    let ack = ack_of(first.qos);
                    protocol::write_ack(&mut self.out, version, ack, first.id, code);
                }
                (Some(Outcome::Refused(reason)), publish) => {
                    let topic = publish.as_ref().map_or("", |publish| publish.topic.as_str());
                    self.note_refusal(reason, "publish not taken", topic);
                    if !acknowledged {
                        continue;
                    }
                    if version == Version::V311 {
                        // No answer: the device sends it again (BROKER.md, rule 5).
                        return Err(Close {
                            code: None,
                            ..Close::new(reason, code::UNSPECIFIED, "a publish was not taken")
                        });
                    }
                    let code = match reason {
                        Reason::OutboxFull | Reason::DiskLow | Reason::TooMany => code::QUOTA,
                        _ => code::UNSPECIFIED,
                    };
                    protocol::write_ack(&mut self.out, version, ack_of(first.qos), first.id, code);
                }
                // Only a publish that is held for its verdict has one.
                (Some(Outcome::Durable) | None, _) => {}
            }
        }
        if self.state.pending.is_empty() {
            self.state.verdicts = None;
            if self.state.pending.capacity() > 16 {
                self.state.pending = VecDeque::new();
            }
        }
        Ok(())
    }

    /// PUBACK or PUBREC for a PUBLISH that was taken.
    fn acknowledge(&mut self, qos: Qos, id: u16, code: u8) -> Result<(), NotOwner> {
        if qos == Qos::AtMostOnce {
            return Ok(());
        }
        if qos == Qos::ExactlyOnce {
            self.session.note_received(self.owner, id)?;
            self.state.unreleased += 1;
        }
        protocol::write_ack(&mut self.out, self.writer.version, ack_of(qos), id, code);
        Ok(())
    }

    fn release(&mut self, id: u16) -> Result<(), Close> {
        let waits = |pending: &Pending| pending.qos == Qos::ExactlyOnce && pending.id == id;
        if self.state.pending.iter().any(waits) {
            return Err(Bad::protocol("PUBREL before PUBREC").into());
        }
        let code = if self.session.release(self.owner, id)? {
            self.state.unreleased = self.state.unreleased.saturating_sub(1);
            code::SUCCESS
        } else {
            code::UNKNOWN_PACKET_ID
        };
        protocol::write_ack(&mut self.out, self.writer.version, Ack::Pubcomp, id, code);
        Ok(())
    }

    fn subscribe(&mut self, packet: &Subscribe) -> Result<(), Close> {
        let mut codes = Vec::with_capacity(packet.filters.len());
        let mut granted = Vec::new();
        for wanted in &packet.filters {
            let (reason, code) = match Subscribed::parse(&wanted.filter, self.shared.topic_limits())
            {
                Ok(subscribed) if subscribed.group.is_some() && wanted.no_local => {
                    // MQTT5-3.8.3-4.
                    return Err(Bad::protocol("No Local on a shared subscription").into());
                }
                Ok(subscribed) if self.grants.may_subscribe(&subscribed.filter) => {
                    let done = self.shared.hub.subscribe(
                        &self.session,
                        self.owner,
                        &subscribed,
                        wanted,
                        packet.identifier,
                    )?;
                    match done {
                        Ok(existed) => {
                            codes.push(wanted.qos as u8);
                            granted.push((subscribed, wanted, existed));
                            continue;
                        }
                        Err(reason) => (reason, code::QUOTA),
                    }
                }
                Ok(_) => (Reason::NotAuthorized, code::NOT_AUTHORIZED),
                Err(_) => (Reason::BadFilter, code::BAD_FILTER),
            };
            self.note_refusal(reason, "subscription refused", &wanted.filter);
            codes.push(code);
        }
        protocol::write_suback(&mut self.out, self.writer.version, packet.id, &codes);
        for (subscribed, wanted, existed) in granted {
            let wants_retained = match wanted.retained {
                Retained::Always => true,
                Retained::IfNew => !existed,
                Retained::Never => false,
            };
            // A shared subscription starts with none (MQTT 5, 4.8.2).
            if wants_retained && subscribed.group.is_none() {
                let hub = &self.shared.hub;
                hub.send_retained(&self.session, &subscribed, wanted, packet.identifier);
            }
        }
        Ok(())
    }

    fn unsubscribe(&mut self, packet: &Unsubscribe) -> Result<(), Close> {
        let mut codes = Vec::with_capacity(packet.filters.len());
        for filter in &packet.filters {
            codes.push(match Subscribed::parse(filter, self.shared.topic_limits()) {
                Ok(subscribed) => {
                    let hub = &self.shared.hub;
                    match hub.unsubscribe(&self.session, self.owner, &subscribed)? {
                        true => code::SUCCESS,
                        false => code::NO_SUBSCRIPTION,
                    }
                }
                Err(_) => code::BAD_FILTER,
            });
        }
        protocol::write_unsuback(&mut self.out, self.writer.version, packet.id, &codes);
        Ok(())
    }

    fn pump(&mut self) -> Result<(), NotOwner> {
        let hub = &self.shared.hub;
        let now = hub.clock.now();
        self.session.pump(self.owner, &mut self.writer, &mut self.out, now, &mut |reason| {
            hub.note_dropped(reason);
        })
    }

    fn note_refusal(&self, reason: Reason, what: &'static str, topic: &str) {
        self.shared.hub.metrics.refuse(reason);
        let client_id = &*self.session.client_id;
        // What a client wrote may hold anything: `?` escapes it.
        if self.shared.is_first(self.peer, reason) {
            tracing::warn!(client_id, peer = %self.peer, ?topic, %reason, "{what}");
        } else {
            tracing::debug!(client_id, peer = %self.peer, ?topic, %reason, "{what}");
        }
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
            let Some((_, answers)) = &mut self.state.verdicts else {
                return;
            };
            match tokio::time::timeout_at(until, answers.recv()).await {
                Ok(Some((number, verdict))) => self.note_verdict(number, verdict),
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Lets go of the session and publishes the will if it is due. Gives back the last words.
    pub(crate) async fn leave(&mut self, close: &Close) -> Vec<u8> {
        let expires_after = match self.session_expiry {
            u32::MAX => None,
            secs => Some(Duration::from_secs(secs.into())),
        };
        let will = self.will.take().filter(|_| !close.drops_will);
        let leaving = Detach { expires_after, will };
        let hub = &self.shared.hub;
        if let Some(will) = hub.detach(&self.session, self.owner, leaving) {
            hub.publish_will(&self.session, *will).await;
        }
        let mut last_words = std::mem::take(&mut self.out);
        if let (Version::V5, Some(code)) = (self.writer.version, close.code) {
            protocol::write_disconnect(&mut last_words, code, close.what);
        }
        last_words
    }
}

const fn ack_of(qos: Qos) -> Ack {
    match qos {
        Qos::AtMostOnce | Qos::AtLeastOnce => Ack::Puback,
        Qos::ExactlyOnce => Ack::Pubrec,
    }
}

impl Shared {
    /// Checks the bytes of a topic. `Err` outside ends the connection: MQTT forbids such a topic,
    /// inside: it is our limits that forbid it.
    fn check_topic(&self, bytes: &[u8]) -> Result<Result<TopicName, (Reason, u8)>, Close> {
        let text =
            std::str::from_utf8(bytes).map_err(|_| Bad::malformed("a topic that is not UTF-8"))?;
        if text.contains('\0') {
            return Err(Bad::malformed("U+0000 in a topic").into());
        }
        match connect::check_topic(text, self.topic_limits()) {
            Ok(topic) => Ok(Ok(topic)),
            Err(RefusedTopic::Bad(BadTopic::Empty | BadTopic::Wildcard)) => {
                let what = "an empty topic, or one with a wildcard";
                Err(Close::new(Reason::BadTopic, code::BAD_TOPIC, what))
            }
            Err(_) => Ok(Err((Reason::BadTopic, code::BAD_TOPIC))),
        }
    }
}
