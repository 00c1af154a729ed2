//! What each packet of a client does.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Close, Connection, Next, Outcome, Pending};
use crate::broker::Shared;
use crate::broker::hub::journal::Waiter;
use crate::broker::hub::{Origin, Subscribed, needs_disk};
use crate::broker::protocol::connect::{RefusedTopic, check_topic};
use crate::broker::protocol::{
    self, Ack, Bad, Disconnect, Packet, PublishIn, Retained, Subscribe, Unsubscribe, Version, code,
};
use crate::broker::session::NotOwner;
use crate::intake::Ticket;
use crate::model::{Publish, Qos, Reason};
use crate::store::sessions::ReceivedRow;
use crate::topic::{BadTopic, TopicName};

impl Connection {
    pub(super) fn handle(&mut self, packet: Packet<'_>) -> Result<Next, Close> {
        match packet {
            Packet::Publish(publish) => return self.publish(publish),
            Packet::Ack(Ack::Pubrel, id, _) => self.release(id)?,
            Packet::Ack(ack, id, reason) => {
                let answer = self.session.acknowledge(self.owner, ack, id, reason)?;
                if let Some((ack, code)) = answer {
                    protocol::write_ack(&mut self.out, self.writer.version, ack, id, code);
                }
            }
            Packet::Subscribe(packet) => return Ok(Next::Subscribe(packet)),
            Packet::Unsubscribe(packet) => return Ok(Next::Unsubscribe(packet)),
            Packet::Ping => protocol::write_pong(&mut self.out),
            Packet::Disconnect(packet) => return Err(self.disconnect(packet)),
            // Not answered: only an error in another packet than CONNECT should be (MQTT 5, 4.13.2),
            // and a client that has just sent one waits for a CONNACK, not for this.
            Packet::Connect => {
                let close = Close::from(Bad::protocol("a second CONNECT"));
                return Err(Close { silent: true, ..close });
            }
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
            silent: true,
        }
    }

    fn publish(&mut self, packet: PublishIn<'_>) -> Result<Next, Close> {
        self.state.received += 1;
        let is_v5 = self.writer.version == Version::V5;
        // The rules had it before a crash, its subscribers perhaps not.
        let mut is_ruled = false;
        if packet.qos == Qos::ExactlyOnce {
            let same =
                |pending: &Pending| pending.qos == Qos::ExactlyOnce && pending.id == packet.id;
            if self.state.pending.iter().any(same) {
                // Its first copy waits for the store: one PUBREC will do for both.
                return Ok(Next::Go);
            }
            match self.session.received(self.owner, packet.id)?.map(|received| received.stage) {
                Some(ReceivedRow::Taken) => {
                    self.answer(packet.qos, packet.id, code::SUCCESS);
                    return Ok(Next::Go);
                }
                Some(ReceivedRow::Ruled) => is_ruled = true,
                None => {}
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
        let matches = self.shared.hub.intake.matches(&topic).filter(|_| !is_ruled);
        if matches.is_none() && self.state.pending.is_empty() {
            let hub = &self.shared.hub;
            let targets = hub.targets(&topic, &self.session.client_id);
            let (qos, id) = (packet.qos, packet.id);
            if needs_disk(qos, packet.retain, &targets) {
                // The next round fans it out, and it waits.
                let publish = self.receive(topic, packet);
                self.hold(qos, id, Some(publish), Some(Outcome::Durable));
                return Ok(Next::Go);
            }
            if packet.retain || !targets.is_empty() {
                let publish = self.receive(topic, packet);
                self.shared.hub.deliver(&publish, targets, None);
            }
            self.acknowledge(qos, id, false)?;
            return Ok(Next::Go);
        }
        let (qos, id) = (packet.qos, packet.id);
        let publish = self.receive(topic, packet);
        let outcome = matches.is_none().then_some(Outcome::Durable);
        self.hold(qos, id, Some(Arc::clone(&publish)), outcome);
        match matches {
            None => Ok(Next::Go),
            Some(matches) => {
                if let Some(pending) = self.state.pending.back_mut() {
                    pending.is_matched = true;
                }
                self.shared.hub.metrics.publishes_matched.inc();
                let last = self.state.pending.len() - 1;
                Ok(Next::Commit(publish, matches, self.ticket(last)))
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
        let last = state.last_topic.as_ref().filter(|last| is_last(last)).cloned();
        let is_allowed = last.is_some();
        let topic = match last.or(known) {
            Some(topic) => topic,
            None => match self.shared.check_topic(packet.topic)? {
                Ok(topic) => topic,
                Err(refused) => return Ok(Err(refused)),
            },
        };
        // The alias stands for the topic whether or not this client may publish to it.
        if let Some(index) = alias {
            if state.aliases.len() <= index {
                state.aliases.resize(index + 1, None);
            }
            if let Some(place) = state.aliases.get_mut(index) {
                *place = Some(topic.clone());
            }
        }
        if !is_allowed {
            if !self.grants.may_publish(&topic) {
                return Ok(Err((Reason::NotAuthorized, code::NOT_AUTHORIZED)));
            }
            state.last_topic = Some(topic.clone());
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
            replayed: false,
            client_id: Arc::clone(&self.session.client_id),
            identity: self.session.principal.name().cloned(),
            received_at: self.shared.hub.clock.now(),
            properties: packet.properties,
        })
    }

    /// Puts a PUBLISH behind those that wait.
    fn hold(&mut self, qos: Qos, id: u16, publish: Option<Arc<Publish>>, outcome: Option<Outcome>) {
        self.state.unacknowledged += usize::from(qos != Qos::AtMostOnce);
        let pending = Pending {
            qos,
            id,
            publish,
            outcome,
            is_matched: false,
            is_saved: false,
            is_release: false,
        };
        self.state.pending_bytes += pending.bytes();
        self.state.pending.push_back(pending);
    }

    /// The ticket of the one at `index` in `pending`. Each has one out at a time.
    fn ticket(&mut self, index: usize) -> Ticket {
        let commits_max = self.shared.config.commits_max;
        let verdicts = self.state.verdicts.get_or_insert_with(|| mpsc::channel(commits_max));
        Ticket { number: self.state.first_number + index as u64, to: verdicts.0.clone() }
    }

    /// Answers a PUBLISH in its turn, without fanning it out.
    fn answer(&mut self, qos: Qos, id: u16, code: u8) {
        if qos != Qos::AtMostOnce {
            self.hold(qos, id, None, Some(Outcome::Answer(code)));
        }
    }

    /// Fans out what has its verdict and nothing before it that has none; then answers, in order,
    /// what is settled.
    pub(super) fn settle(&mut self) -> Result<(), Close> {
        while let Some(next) = self.state.pending.get(self.state.fanned_out)
            && let Some(outcome) = &next.outcome
        {
            if matches!(outcome, Outcome::Durable) {
                self.fan_out(self.state.fanned_out);
            }
            self.state.fanned_out += 1;
        }
        let version = self.writer.version;
        while let Some(Some(_)) = self.state.pending.front().map(|first| &first.outcome) {
            let Some(first) = self.state.pending.pop_front() else {
                break;
            };
            self.state.fanned_out -= 1;
            self.state.first_number += 1;
            self.state.pending_bytes -= first.bytes();
            let acknowledged = first.qos != Qos::AtMostOnce;
            self.state.unacknowledged -= usize::from(acknowledged);
            match (first.outcome, first.publish) {
                (Some(Outcome::Settled), _) if first.is_release => {
                    let ack = Ack::Pubcomp;
                    protocol::write_ack(&mut self.out, version, ack, first.id, code::SUCCESS);
                }
                (Some(Outcome::Settled), _) => {
                    self.acknowledge(first.qos, first.id, first.is_saved)?;
                }
                (Some(Outcome::Answer(code)), _) => {
                    let ack = ack_of(first.qos);
                    protocol::write_ack(&mut self.out, version, ack, first.id, code);
                }
                (Some(Outcome::Refused(reason)), publish) => {
                    let topic = publish.as_ref().map_or("", |publish| publish.topic.as_str());
                    // Intake has counted it. It is our state and not this client's: said once a
                    // minute, and not for each publish of each device while the disk is full.
                    if self.shared.hub.is_first_of_ours(reason) {
                        let client_id = &*self.session.client_id;
                        tracing::warn!(client_id, topic, %reason, "publishes are not taken");
                    } else {
                        tracing::debug!(topic, %reason, "a publish was not taken");
                    }
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
                // Fanned out above.
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

    /// Hands the publish at `index` in `pending` to its subscribers; it is settled when all that
    /// they are promised is on disk.
    fn fan_out(&mut self, index: usize) {
        let hub = &self.shared.hub;
        let Some(pending) = self.state.pending.get_mut(index) else { return };
        let Some(publish) = &pending.publish else {
            pending.outcome = Some(Outcome::Settled);
            return;
        };
        let targets = hub.targets(&publish.topic, &publish.client_id);
        // What a rule has taken is taken.
        if !pending.is_matched
            && let Some(reason) = hub.refusal(publish, &targets)
        {
            hub.metrics.refuse(reason);
            pending.outcome = Some(Outcome::Refused(reason));
            return;
        }
        let needs_id = pending.qos == Qos::ExactlyOnce && self.session.persistent;
        let origin = needs_id.then(|| Origin { session: &self.session, id: pending.id });
        let delivered = hub.deliver(publish, targets, origin);
        pending.is_saved |= delivered.is_saved;
        if hub.journal().is_durable(delivered.position) {
            pending.outcome = Some(Outcome::Settled);
            return;
        }
        pending.outcome = None;
        let ticket = self.ticket(index);
        self.shared.hub.journal().tell(delivered.position, Waiter::Ticket(ticket));
    }

    /// PUBACK or PUBREC for a PUBLISH that was taken. `is_saved`: its packet id has a row.
    fn acknowledge(&mut self, qos: Qos, id: u16, is_saved: bool) -> Result<(), NotOwner> {
        if qos == Qos::AtMostOnce {
            return Ok(());
        }
        if qos == Qos::ExactlyOnce {
            self.session.note_received(self.owner, id, is_saved)?;
            self.state.unreleased += 1;
        }
        protocol::write_ack(&mut self.out, self.writer.version, ack_of(qos), id, code::SUCCESS);
        Ok(())
    }

    fn release(&mut self, id: u16) -> Result<(), Close> {
        let waits = |pending: &Pending| pending.qos == Qos::ExactlyOnce && pending.id == id;
        if self.state.pending.iter().any(waits) {
            return Err(Bad::protocol("PUBREL before PUBREC").into());
        }
        let Some(position) = self.session.release(self.owner, id)? else {
            let (ack, code) = (Ack::Pubcomp, code::UNKNOWN_PACKET_ID);
            protocol::write_ack(&mut self.out, self.writer.version, ack, id, code);
            return Ok(());
        };
        self.state.unreleased = self.state.unreleased.saturating_sub(1);
        if self.shared.hub.journal().is_durable(position) {
            let (ack, code) = (Ack::Pubcomp, code::SUCCESS);
            protocol::write_ack(&mut self.out, self.writer.version, ack, id, code);
            return Ok(());
        }
        // PUBCOMP in its turn, when it is on disk that the id is free.
        self.hold(Qos::AtMostOnce, id, None, None);
        if let Some(pending) = self.state.pending.back_mut() {
            pending.is_release = true;
        }
        let ticket = self.ticket(self.state.pending.len() - 1);
        self.shared.hub.journal().tell(position, Waiter::Ticket(ticket));
        Ok(())
    }

    /// Waits until the session is on disk with its subscriptions as they are now.
    async fn save(&mut self) -> Result<(), Close> {
        let hub = &self.shared.hub;
        let position = hub.save(&self.session, self.owner)?;
        hub.journal().wait(position).await.map_err(|reason| {
            let what = "the subscriptions could not be written";
            Close::new(reason, code::UNSPECIFIED, what)
        })
    }

    pub(super) async fn subscribe(&mut self, packet: &Subscribe) -> Result<(), Close> {
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
                            let hub = &self.shared.hub;
                            codes.push(hub.granted(&self.session, wanted, packet.identifier) as u8);
                            granted.push((subscribed, wanted, existed));
                            continue;
                        }
                        Err(reason) => (reason, code::QUOTA),
                    }
                }
                // Not 0x87: which filters there are is not for those to know who may not use them
                // (MQTT 5, 3.9.3), and Eclipse's conformance suite takes no other code.
                Ok(_) => (Reason::NotAuthorized, code::UNSPECIFIED),
                Err(_) => (Reason::BadFilter, code::BAD_FILTER),
            };
            self.note_refusal(reason, "subscription refused", &wanted.filter);
            codes.push(code);
        }
        if !granted.is_empty() {
            self.save().await?;
        }
        let before = self.out.len();
        protocol::write_suback(&mut self.out, self.writer.version, packet.id, &codes);
        self.check_size(before)?;
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
                let own = self.shared.sys_matching(&subscribed.filter);
                hub.send_now(&self.session, own, wanted, packet.identifier);
            }
        }
        Ok(())
    }

    pub(super) async fn unsubscribe(&mut self, packet: &Unsubscribe) -> Result<(), Close> {
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
        if codes.contains(&code::SUCCESS) {
            self.save().await?;
        }
        let before = self.out.len();
        protocol::write_unsuback(&mut self.out, self.writer.version, packet.id, &codes);
        self.check_size(before)
    }

    /// Ends the connection if the packet that was written from `before` on is more than the client
    /// takes (MQTT5-3.1.2-24): it cannot be told what became of its filters.
    fn check_size(&mut self, before: usize) -> Result<(), Close> {
        if self.out.len() - before <= self.writer.bytes_max {
            return Ok(());
        }
        self.out.truncate(before);
        let what = "the answer is over the client's Maximum Packet Size";
        Err(Close::new(Reason::PacketTooLarge, code::TOO_LARGE, what))
    }

    fn note_refusal(&self, reason: Reason, what: &'static str, topic: &str) {
        self.shared.hub.metrics.refuse(reason);
        self.log_refusal(reason, what, topic);
    }

    fn log_refusal(&self, reason: Reason, what: &'static str, topic: &str) {
        let client_id = &*self.session.client_id;
        // What a client wrote may hold anything: `?` escapes it.
        if self.shared.is_first(self.peer, (client_id, reason, topic)) {
            tracing::warn!(client_id, peer = %self.peer, ?topic, %reason, "{what}");
        } else {
            tracing::debug!(client_id, peer = %self.peer, ?topic, %reason, "{what}");
        }
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
        match check_topic(text, self.topic_limits()) {
            Ok(topic) => Ok(Ok(topic)),
            Err(RefusedTopic::Bad(BadTopic::Empty | BadTopic::Wildcard)) => {
                let what = "an empty topic, or one with a wildcard";
                Err(Close::new(Reason::BadTopic, code::BAD_TOPIC, what))
            }
            Err(_) => Ok(Err((Reason::BadTopic, code::BAD_TOPIC))),
        }
    }
}
