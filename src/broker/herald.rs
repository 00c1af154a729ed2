//! Tells rules and subscribers what becomes of clients: publishes of the process on
//! `$watchbell/client/EVENT/CLIENT_ID`, never retained.
//!
//! | EVENT | when | `reason` |
//! |---|---|---|
//! | `connected` | its CONNACK says success | null |
//! | `disconnected` | its connection has ended, however | why |
//! | `taken_over` | the same, because another connection has the client id now | `taken_over` |
//! | `refused` | a CONNECT that could be read was answered with a refusal | why |
//! | `will` | its will was published: taken by intake, handed to subscribers | null |
//!
//! Payload, JSON: `event`, `client_id`; `identity` and `user`, as they were verified, but of a
//! refused client its user name as it came; `address`, without the port, and `listener`, null for
//! a will; `reason`, a [`Reason`]; `clean`: it said DISCONNECT and wants no will; `at`, RFC 3339.
//!
//! A connection ends in one publish, `disconnected` or `taken_over`: a client that was taken over
//! is not away. What comes before a CONNECT (a port scan, a TLS handshake that fails, a limit of
//! connections) is no client, and one that gave way to a later connection of its own name while it
//! waited for its session was not refused; neither is told.
//!
//! [`tell`] takes a lock for a moment and never waits, so nothing here slows down whoever calls it;
//! where no rule and no subscriber looks, all that it does is look them up. One task ([`run`])
//! takes what waits to intake, many at a time but one of a client, and what intake refuses it
//! offers again. The queue is bounded: when it is full the oldest `refused` goes first, and only
//! then the oldest of all; each is counted as `client_events_dropped`.
//!
//! A stop tells nothing ([`Herald::stop`]): it would alarm at each restart.
//!
//! Invariant: what was told of one client is published in that order, and what it ends in is told
//! before its successor's `connected`.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, mpsc};

use super::auth::Principal;
use super::hub::Hub;
use super::protocol::connect::check_client_id;
use crate::clock::Timestamp;
use crate::intake::{Ticket, Verdict};
use crate::model::{Publish, Qos, Reason};
use crate::telemetry::ByReason;
use crate::topic::{TopicLimits, TopicName};

/// Most that are offered to intake at a time.
const BATCH_MAX: usize = 256;
/// How long what was refused waits before it is offered again.
const OFFER_AGAIN: Duration = Duration::from_secs(1);
/// Longest text that is kept of what a refused client says of itself, characters.
const CLAIM_CHARS_MAX: usize = 64;
/// In the topic, in place of a client id that cannot stand there.
const NO_LEVEL: &str = "-";

/// What became of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Event {
    Connected,
    Disconnected,
    Refused,
    TakenOver,
    Will,
}

impl Event {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Disconnected => "disconnected",
            Self::Refused => "refused",
            Self::TakenOver => "taken_over",
            Self::Will => "will",
        }
    }
}

/// By which way a client came.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) address: IpAddr,
    pub(crate) listener: Arc<str>,
}

/// What there is to tell.
#[derive(Debug)]
pub(crate) struct News<'a> {
    pub(crate) event: Event,
    pub(crate) client_id: &'a str,
    pub(crate) principal: &'a Principal,
    pub(crate) way: Option<&'a Way>,
    pub(crate) reason: Option<Reason>,
    pub(crate) clean: bool,
}

impl<'a> News<'a> {
    /// Of a client that is let in, or was.
    pub(crate) fn of(event: Event, client_id: &'a str, principal: &'a Principal) -> Self {
        Self { event, client_id, principal, way: None, reason: None, clean: false }
    }
}

/// The payload, before it is one.
#[derive(Debug, Serialize)]
struct Told {
    event: Event,
    client_id: Arc<str>,
    identity: Option<Arc<str>>,
    user: Option<Arc<str>>,
    address: Option<IpAddr>,
    listener: Option<Arc<str>>,
    reason: Option<Reason>,
    clean: bool,
    #[serde(serialize_with = "as_text")]
    at: Timestamp,
    #[serde(skip)]
    topic: TopicName,
}

fn as_text<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

/// What waits to be told.
pub(crate) struct Herald {
    waiting: Mutex<Waiting>,
    called: Notify,
    most: usize,
    client_id_chars_max: usize,
}

/// Two lines, so that those who were refused can be dropped first; `number` is the order of both.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    refused: VecDeque<(u64, Told)>,
    others: VecDeque<(u64, Told)>,
    stopping: bool,
}

impl Waiting {
    fn len(&self) -> usize {
        self.refused.len() + self.others.len()
    }

    /// Adds one behind all others. Gives back what had to go for it, which may be itself.
    fn push(&mut self, told: Told, most: usize) -> Option<Told> {
        let mut dropped = None;
        if self.len() >= most {
            dropped = self.refused.pop_front();
            if dropped.is_none() {
                if told.event == Event::Refused {
                    return Some(told);
                }
                dropped = self.others.pop_front();
            }
        }
        let number = self.next;
        self.next += 1;
        let line = match told.event {
            Event::Refused => &mut self.refused,
            _ => &mut self.others,
        };
        line.push_back((number, told));
        dropped.map(|(_, told)| told)
    }

    /// The first that may be offered beside each other: nothing that changes the order of what is
    /// told of one client, whatever is refused of it.
    fn take(&mut self) -> Vec<(u64, Told)> {
        let mut batch: Vec<(u64, Told)> = Vec::new();
        let mut of: HashMap<Arc<str>, Event> = HashMap::new();
        while batch.len() < BATCH_MAX {
            let is_refused = match (self.refused.front(), self.others.front()) {
                (Some((refused, _)), Some((other, _))) => refused < other,
                (refused, _) => refused.is_some(),
            };
            let line = if is_refused { &mut self.refused } else { &mut self.others };
            let Some((_, next)) = line.front() else { break };
            // Several refusals of one client say the same in any order.
            let known = of.insert(Arc::clone(&next.client_id), next.event);
            if known.is_some_and(|known| !is_refused || known != Event::Refused) {
                break;
            }
            batch.extend(line.pop_front());
        }
        batch
    }

    /// Puts back what was not taken, in its order and in front.
    fn put_back(&mut self, untaken: Vec<(u64, Told)>) {
        for (number, told) in untaken.into_iter().rev() {
            let line = match told.event {
                Event::Refused => &mut self.refused,
                _ => &mut self.others,
            };
            line.push_front((number, told));
        }
    }
}

impl Herald {
    pub(crate) fn new(most: usize, client_id_chars_max: usize) -> Self {
        Self { waiting: Mutex::default(), called: Notify::new(), most, client_id_chars_max }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on nothing is told; [`run`] ends when it has told what was before.
    pub(crate) fn stop(&self) {
        self.waiting().stopping = true;
        self.called.notify_one();
    }

    /// Whether a client id can be a level of a topic.
    fn is_level(&self, client_id: &str) -> bool {
        check_client_id(client_id, self.client_id_chars_max).is_ok()
    }

    fn topic(&self, news: &News<'_>) -> TopicName {
        let level = if self.is_level(news.client_id) { news.client_id } else { NO_LEVEL };
        let text = format!("$watchbell/client/{}/{level}", news.event.as_str());
        let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
        TopicName::parse(&text, limits).expect("neither wildcards nor control characters")
    }

    fn told(&self, news: &News<'_>, topic: TopicName, at: Timestamp) -> Told {
        let is_claim = news.event == Event::Refused;
        let user = |text: &Arc<str>| if is_claim { claim(text) } else { Arc::clone(text) };
        let client_id = match self.is_level(news.client_id) {
            true => news.client_id.into(),
            false => claim(news.client_id),
        };
        Told {
            event: news.event,
            client_id,
            identity: news.principal.identity.clone(),
            user: news.principal.user.as_ref().map(user),
            address: news.way.map(|way| way.address),
            listener: news.way.map(|way| Arc::clone(&way.listener)),
            reason: news.reason,
            clean: news.clean,
            at,
            topic,
        }
    }
}

/// Tells of a client, if somebody looks.
pub(crate) fn tell(hub: &Hub, news: &News<'_>) {
    tell_once(hub, news, &AtomicBool::new(false));
}

/// The same, once for all that share `is_told`: the end of a connection may be noticed by itself
/// and by its successor.
pub(crate) fn tell_once(hub: &Hub, news: &News<'_>, is_told: &AtomicBool) {
    let topic = hub.herald.topic(news);
    let is_wanted = hub.wants(&topic);
    let mut waiting = hub.herald.waiting();
    // Under the lock: whoever finds it set finds the other's news in the queue too.
    let was_told = is_told.swap(true, Ordering::Relaxed);
    if was_told || !is_wanted || waiting.stopping {
        return;
    }
    let told = hub.herald.told(news, topic, hub.clock.now());
    let dropped = waiting.push(told, hub.herald.most);
    drop(waiting);
    hub.herald.called.notify_one();
    if let Some(dropped) = dropped {
        note_lost(hub, &dropped, Reason::QueueFull);
    }
}

/// What a stranger says of itself, fit to be shown to people.
fn claim(text: &str) -> Arc<str> {
    let mut shown = String::new();
    let mut characters = text.chars();
    for character in characters.by_ref().take(CLAIM_CHARS_MAX) {
        if character.is_control() {
            write!(shown, "{}", character.escape_default()).expect("a String takes everything");
        } else {
            shown.push(character);
        }
    }
    if characters.next().is_some() {
        shown.push('…');
    }
    shown.into()
}

/// Counts one that nobody will be told of.
fn note_lost(hub: &Hub, told: &Told, reason: Reason) {
    hub.metrics.client_events_dropped.get_or_create(&ByReason { reason }).inc();
    if hub.is_first_of_ours(("client event", told.event.as_str(), reason)) {
        tracing::error!(
            event = told.event.as_str(), client_id = %told.client_id, %reason,
            "rules are not told what became of a client; see broker.client_events_max"
        );
    }
}

/// Publishes what is told. Ends when it was told to stop and nothing waits.
pub(crate) async fn run(hub: &Hub) {
    let herald = &hub.herald;
    loop {
        let (batch, stopping) = {
            let mut waiting = herald.waiting();
            (waiting.take(), waiting.stopping)
        };
        if batch.is_empty() {
            if stopping {
                return;
            }
            herald.called.notified().await;
            continue;
        }
        let Some((untaken, reason)) = publish(hub, batch).await else { continue };
        // The store does not come back while the process lives, and a stop does not wait.
        let is_lost = matches!(reason, Reason::StoreFailed | Reason::ShuttingDown);
        if is_lost || herald.waiting().stopping {
            untaken.iter().for_each(|(_, told)| note_lost(hub, told, reason));
            continue;
        }
        if hub.is_first_of_ours(("client events", reason)) {
            tracing::warn!(
                number = untaken.len(), %reason,
                "what became of clients is not taken; it is offered again"
            );
        }
        herald.waiting().put_back(untaken);
        wait_or_stop(herald).await;
    }
}

/// Waits until it is time to offer again, or there will be none.
async fn wait_or_stop(herald: &Herald) {
    let until = tokio::time::Instant::now() + OFFER_AGAIN;
    loop {
        let called = herald.called.notified();
        let is_over = tokio::time::timeout_at(until, called).await.is_err();
        if is_over || herald.waiting().stopping {
            return;
        }
    }
}

/// Hands a batch to intake, and to subscribers what that has made durable. Gives back what was
/// not taken, and why the first was not.
async fn publish(hub: &Hub, batch: Vec<(u64, Told)>) -> Option<(Vec<(u64, Told)>, Reason)> {
    let (to, mut verdicts) = mpsc::channel(batch.len());
    let mut offered = Vec::with_capacity(batch.len());
    for (index, (number, told)) in batch.into_iter().enumerate() {
        let publish = Arc::new(publish_of(&told));
        // A rule set that was loaded meanwhile may want another lot.
        let mut refused = None;
        match hub.intake.matches(&publish.topic) {
            Some(matches) => {
                hub.metrics.publishes_matched.inc();
                let ticket = Ticket { number: index as u64, to: to.clone() };
                // Without a verdict it was not taken.
                refused = Some(Reason::ShuttingDown);
                hub.intake.submit(Arc::clone(&publish), matches, ticket).await;
            }
            None if hub.intake.is_disk_low() => {
                let targets = hub.targets(&publish.topic, &publish.client_id);
                refused = hub.refusal(&publish, &targets);
            }
            None => {}
        }
        offered.push((number, told, publish, refused));
    }
    drop(to);
    while let Some((index, verdict)) = verdicts.recv().await {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some((.., refused)) = offered.get_mut(index) {
            *refused = match verdict {
                Verdict::Durable => None,
                Verdict::Refused(reason) => Some(reason),
            };
        }
    }
    let mut why = None;
    let mut untaken = Vec::new();
    for (number, told, publish, refused) in offered {
        if let Some(reason) = refused {
            why.get_or_insert(reason);
            untaken.push((number, told));
            continue;
        }
        let targets = hub.targets(&publish.topic, &publish.client_id);
        if !targets.is_empty() {
            hub.deliver(&publish, targets, None);
        }
    }
    why.map(|reason| (untaken, reason))
}

fn publish_of(told: &Told) -> Publish {
    Publish {
        topic: told.topic.clone(),
        payload: Bytes::from(serde_json::to_vec(told).expect("it is JSON: its keys are text")),
        qos: Qos::AtLeastOnce,
        retain: false,
        replayed: false,
        client_id: "$watchbell".into(),
        identity: None,
        received_at: told.at,
        properties: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(event: Event, client_id: &str) -> Told {
        let herald = Herald::new(16, 64);
        let principal = Principal { identity: None, user: Some("u".into()) };
        let way = Way { address: IpAddr::from([192, 0, 2, 1]), listener: "mqtts".into() };
        let news = News {
            way: Some(&way),
            reason: Some(Reason::KeepAliveTimeout),
            ..News::of(event, client_id, &principal)
        };
        let topic = herald.topic(&news);
        herald.told(&news, topic, Timestamp::from_millis(1_790_000_000_120))
    }

    fn event(code: &str) -> Event {
        match code {
            "c" => Event::Connected,
            "d" => Event::Disconnected,
            "r" => Event::Refused,
            "t" => Event::TakenOver,
            _ => Event::Will,
        }
    }

    fn words(told: &[(u64, Told)]) -> String {
        let word = |(_, told): &(u64, Told)| {
            let event = told.event.as_str().chars().next().unwrap_or_default();
            format!("{event}{}", told.client_id)
        };
        told.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    fn waiting(list: &str, most: usize) -> (Waiting, String) {
        let mut waiting = Waiting::default();
        let mut dropped = Vec::new();
        for word in list.split_whitespace() {
            let (code, client_id) = word.split_at(1);
            let gone = waiting.push(told(event(code), client_id), most);
            dropped.extend(gone.map(|told| (0, told)));
        }
        let dropped = words(&dropped);
        (waiting, dropped)
    }

    /// What waits, one batch after the other.
    fn batches(waiting: &mut Waiting) -> String {
        let mut batches = Vec::new();
        loop {
            let batch = waiting.take();
            if batch.is_empty() {
                return batches.join(" | ");
            }
            batches.push(words(&batch));
        }
    }

    #[test]
    fn one_client_is_told_of_in_order_and_others_beside_it() {
        for (list, expected) in [
            ("ca cb dc", "ca cb dc"),
            ("ca da ca", "ca | da | ca"),
            ("ca cb da db cc", "ca cb | da db cc"),
            ("da wa", "da | wa"),
            ("ra ra ra rb", "ra ra ra rb"),
            ("ra ca", "ra | ca"),
            ("ca ra", "ca | ra"),
            ("ta ca", "ta | ca"),
            ("", ""),
        ] {
            let (mut waiting, _) = waiting(list, 100);
            assert_eq!(batches(&mut waiting), expected, "{list}");
        }
    }

    #[test]
    fn refused_ones_are_dropped_first_and_the_oldest_first() {
        for (list, stays, goes) in [
            ("r1 r2 r3 r4 r5", "r2 r3 r4 r5", "r1"),
            ("d1 r2 r3 c4 d5 d6", "d1 c4 d5 d6", "r2 r3"),
            ("d1 d2 d3 d4 r5", "d1 d2 d3 d4", "r5"),
            ("d1 d2 d3 d4 d5", "d2 d3 d4 d5", "d1"),
            ("r1 d2 d3 d4 r5 r6", "d2 d3 d4 r6", "r1 r5"),
        ] {
            let (mut waiting, dropped) = waiting(list, 4);
            assert_eq!((batches(&mut waiting).as_str(), dropped.as_str()), (stays, goes), "{list}");
        }
    }

    #[test]
    fn what_was_not_taken_comes_first_again() {
        let (mut waiting, _) = waiting("ca rb cc da", 100);
        let batch = waiting.take();
        assert_eq!(words(&batch), "ca rb cc");
        waiting.push(told(Event::Connected, "e"), 100);
        waiting.put_back(batch);
        assert_eq!(batches(&mut waiting), "ca rb cc | da ce");
    }

    #[test]
    fn a_client_id_that_is_no_level_stands_in_the_payload_only() {
        let long = "x".repeat(65);
        for (client_id, topic, shown) in [
            ("pump-7", "$watchbell/client/refused/pump-7", "pump-7".to_owned()),
            ("a/b", "$watchbell/client/refused/-", "a/b".to_owned()),
            ("+", "$watchbell/client/refused/-", "+".to_owned()),
            ("#", "$watchbell/client/refused/-", "#".to_owned()),
            ("$SYS", "$watchbell/client/refused/-", "$SYS".to_owned()),
            ("", "$watchbell/client/refused/-", String::new()),
            ("a\nb\u{7}", "$watchbell/client/refused/-", "a\\nb\\u{7}".to_owned()),
            (&long, "$watchbell/client/refused/-", format!("{}…", "x".repeat(64))),
            ("Größe", "$watchbell/client/refused/Größe", "Größe".to_owned()),
        ] {
            let told = told(Event::Refused, client_id);
            assert_eq!((told.topic.as_str(), &*told.client_id), (topic, shown.as_str()));
        }
    }

    #[test]
    fn the_payload_is_json_with_all_keys() {
        let publish = publish_of(&told(Event::Disconnected, "pump-7"));
        let payload = std::str::from_utf8(&publish.payload).expect("text");
        let expected = "{\"event\":\"disconnected\",\"client_id\":\"pump-7\",\"identity\":null,\
            \"user\":\"u\",\"address\":\"192.0.2.1\",\"listener\":\"mqtts\",\
            \"reason\":\"keep_alive_timeout\",\"clean\":false,\"at\":\"2026-09-21T14:13:20.120Z\"}";
        assert_eq!(payload, expected);
        assert_eq!(publish.topic.as_str(), "$watchbell/client/disconnected/pump-7");
    }

    proptest::proptest! {
        #[test]
        fn nothing_a_client_calls_itself_breaks_the_topic(client_id in proptest::prelude::any::<String>()) {
            let told = told(Event::Refused, &client_id);
            proptest::prop_assert_eq!(told.topic.levels().count(), 4);
            proptest::prop_assert!(!told.client_id.contains(char::is_control));
        }
    }
}
