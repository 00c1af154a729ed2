//! The dispatcher with a real store and scripted providers: what becomes of a message.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use watchbell::clock::{Clock, Timestamp};
use watchbell::dispatch::{
    BreakerConfig, Config, ControlError, Dispatch, Dispatcher, EndpointConfig, LaneSpec, LaneState,
    Parts, RetryConfig,
};
use watchbell::model::tell::{Step, StepKind};
use watchbell::model::{
    Address, AlertId, AlertRef, AlertState, Attempt, AttemptOutcome, Channel, Content, IdSource,
    Message, MessageId, Reason, RunId, Severity, Status, Target, Tells,
};
use watchbell::provider::{Lookup, Provider, RetryScope, Scope, SendOutcome};
use watchbell::span::Span;
use watchbell::store::keys::{self, Table};
use watchbell::store::{Op, Store};
use watchbell::telemetry::Metrics;

use crate::eventually;

/// Answers from a list, then accepts; notes what it was asked.
#[derive(Default)]
struct Scripted {
    answers: Mutex<VecDeque<SendOutcome>>,
    sent: Mutex<Vec<MessageId>>,
    knows: Mutex<Option<Vec<String>>>,
    always: Mutex<Option<SendOutcome>>,
    /// What one recipient always gets.
    one: Mutex<Option<(Address, SendOutcome)>>,
    /// What goes there is not answered before it is open.
    hangs: Mutex<Option<(Address, watch::Receiver<bool>)>>,
    /// Nothing is answered before it is open.
    gate: Mutex<Option<watch::Receiver<bool>>>,
}

impl Scripted {
    fn answering(answers: impl IntoIterator<Item = SendOutcome>) -> Arc<Self> {
        let scripted = Self::default();
        scripted.answers.lock().unwrap().extend(answers);
        Arc::new(scripted)
    }

    fn always(answer: SendOutcome) -> Arc<Self> {
        let scripted = Self::default();
        *scripted.always.lock().unwrap() = Some(answer);
        Arc::new(scripted)
    }

    fn held(gate: watch::Receiver<bool>) -> Arc<Self> {
        let scripted = Self::default();
        *scripted.gate.lock().unwrap() = Some(gate);
        Arc::new(scripted)
    }

    fn sent(&self) -> Vec<MessageId> {
        self.sent.lock().unwrap().clone()
    }
}

impl Provider for Scripted {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome> {
        Box::pin(async move {
            self.sent.lock().unwrap().push(message.id);
            let hangs = self.hangs.lock().unwrap().clone();
            if let Some((address, mut gate)) = hangs
                && address == message.target.address
            {
                gate.wait_for(|open| *open).await.unwrap();
            }
            if let Some((address, outcome)) = self.one.lock().unwrap().clone()
                && address == message.target.address
            {
                return outcome;
            }
            let gate = self.gate.lock().unwrap().clone();
            if let Some(mut gate) = gate {
                gate.wait_for(|is_open| *is_open).await.unwrap();
            }
            let next = self.answers.lock().unwrap().pop_front();
            next.or_else(|| self.always.lock().unwrap().clone()).unwrap_or_else(accepted)
        })
    }

    fn can_look_up(&self) -> bool {
        self.knows.lock().unwrap().is_some()
    }

    fn lookup<'a>(&'a self, _message: &'a Message, _since: Timestamp) -> BoxFuture<'a, Lookup> {
        let known = self.knows.lock().unwrap().clone().unwrap_or_default();
        Box::pin(async { if known.is_empty() { Lookup::NotFound } else { Lookup::Found(known) } })
    }
}

fn accepted() -> SendOutcome {
    SendOutcome::Accepted { provider_ref: None, segments: None, delivered: false, note: None }
}

fn unavailable() -> SendOutcome {
    SendOutcome::Retry {
        reason: Reason::ProviderUnavailable,
        after: None,
        scope: RetryScope::Provider,
        detail: "HTTP 503".to_owned(),
    }
}

fn rejected(reason: Reason, scope: Scope) -> SendOutcome {
    SendOutcome::Rejected { reason, scope, detail: "no".to_owned() }
}

fn message(number: u64, channel: Channel) -> Message {
    let now = Clock::System.now();
    let address = Address::Phone("+4915550100001".parse().unwrap());
    let alert = AlertId::next(&mut IdSource::new(number), now, "rule", &number.to_string());
    Message {
        id: MessageId::derive(alert, AlertState::Firing, channel, &address),
        alert: None,
        contact: None,
        target: Target { channel, address },
        then: Vec::new(),
        severity: Severity::Warning,
        content: Content { title: None, text: "text".into(), template: None },
        segments: None,
        created_at: now,
        expires_at: now.plus(Duration::from_secs(3600)),
        status: Status::Queued,
        reason: None,
        detail: None,
        due_at: now,
        updated_at: now,
        attempt_count: 0,
        attempts: Vec::new(),
        left_out: None,
        fallback_after: None,
        fallback: None,
        provider: None,
        extended: false,
        provider_ref: None,
    }
}

struct Running {
    store: Store,
    metrics: Metrics,
    dispatch: Dispatch,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Running {
    /// A dispatcher whose providers serve SMS in the order given, and all other channels not at
    /// all; `stored` is what an earlier run left in the outbox.
    async fn start(providers: &[(&str, Arc<Scripted>)], stored: &[Message]) -> Self {
        Self::start_with(providers, stored, |_| ()).await
    }

    async fn start_with(
        providers: &[(&str, Arc<Scripted>)],
        stored: &[Message],
        edit: impl FnOnce(&mut Config),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let metrics = Metrics::new();
        let store = Store::open(directory.path(), &Default::default(), &metrics).unwrap();
        put(&store, stored).await;
        let lanes = providers
            .iter()
            .map(|(name, provider)| LaneSpec {
                name: (*name).into(),
                kind: "scripted",
                channels: vec![Channel::Sms, Channel::Webhook],
                per_second: None,
                concurrency: 2,
                provider: Arc::clone(provider) as Arc<dyn Provider>,
            })
            .collect();
        let names: Vec<std::sync::Arc<str>> =
            providers.iter().map(|(name, _)| (*name).into()).collect();
        let mut config = Config {
            retry: RetryConfig {
                first: Span::from_millis(10),
                max: Span::from_millis(20),
                attempts_max: 0,
            },
            breaker: BreakerConfig {
                failures: 3,
                first: Span::from_millis(20),
                max: Span::from_millis(20),
                probe_refused: Span::from_secs(3600),
            },
            endpoint: EndpointConfig { concurrency: 1, count_max: 100 },
            ..Config::default()
        };
        edit(&mut config);
        let parts = Parts {
            store: store.clone(),
            clock: Clock::System,
            metrics: metrics.clone(),
            run: RunId::new(IdSource::new(1).next(Timestamp::default())),
            lanes,
            routes: BTreeMap::from([(Channel::Sms, names.clone()), (Channel::Webhook, names)]),
            notify: Default::default(),
        };
        let (dispatch, dispatcher) = Dispatcher::open(&config, parts).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(dispatcher.run(stopped));
        Self { store, metrics, dispatch, stop, task, _directory: directory }
    }

    async fn add(&self, message: &Message) {
        put(&self.store, std::slice::from_ref(message)).await;
        self.dispatch.add([message]);
    }

    fn row(&self, id: MessageId) -> Message {
        self.store.message(id).unwrap().unwrap()
    }

    async fn until(&self, id: MessageId, status: Status) -> Message {
        eventually(|| self.row(id).status == status).await;
        self.row(id)
    }

    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap();
    }
}

async fn put(store: &Store, messages: &[Message]) {
    let mut op = Op::new();
    messages.iter().for_each(|message| op.put_message(message));
    store.commit(vec![op]).await.unwrap();
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_and_both_are_on_record() {
    let provider = Scripted::answering([unavailable()]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let message = message(1, Channel::Sms);
    running.add(&message).await;
    let row = running.until(message.id, Status::Sent).await;
    assert_eq!(row.attempts.len(), 2);
    assert!(matches!(row.attempts[0].outcome, Some(AttemptOutcome::Retry { .. })));
    assert!(matches!(row.attempts[1].outcome, Some(AttemptOutcome::Accepted { .. })));
    eventually(|| running.dispatch.waiting() == 0).await;
    running.stop().await;
}

/// It was forgotten until the next start.
#[tokio::test]
async fn a_message_that_cannot_be_read_is_tried_again_until_it_can() {
    let provider = Scripted::answering([]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let message = message(1, Channel::Sms);
    let mut spoilt = Op::new();
    spoilt.put(keys::message(Table::Outbox, message.id), &"no message");
    running.store.commit(vec![spoilt]).await.unwrap();
    running.dispatch.add([&message]);
    eventually(|| running.metrics.outbox_reads_failed.get() >= 3).await;
    assert_eq!((running.dispatch.waiting(), provider.sent().len()), (1, 0));
    assert_eq!(running.store.problems().len(), 1, "and the store says so");
    put(&running.store, std::slice::from_ref(&message)).await;
    running.until(message.id, Status::Sent).await;
    running.stop().await;
}

#[tokio::test]
async fn the_next_provider_takes_over_from_one_that_is_down() {
    let down = Scripted::always(unavailable());
    let up = Scripted::answering([]);
    let lanes = [("down", Arc::clone(&down)), ("up", Arc::clone(&up))];
    let running = Running::start(&lanes, &[]).await;
    let messages: Vec<_> = (0..20).map(|number| message(number, Channel::Sms)).collect();
    for message in &messages {
        running.add(message).await;
    }
    for message in &messages {
        let row = running.until(message.id, Status::Sent).await;
        assert_eq!(row.provider.as_deref(), Some("up"));
    }
    assert_eq!(up.sent().len(), 20);
    running.stop().await;
}

#[tokio::test]
async fn a_provider_that_refuses_our_account_stops_and_the_messages_are_kept() {
    let provider = Scripted::answering([
        rejected(Reason::BadCredentials, Scope::Account { sure: true }),
        rejected(Reason::BadCredentials, Scope::Account { sure: true }),
    ]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let messages: Vec<_> = (0..50).map(|number| message(number, Channel::Sms)).collect();
    for message in &messages {
        running.add(message).await;
    }
    eventually(|| running.dispatch.lanes()[0].state == LaneState::Stopped).await;
    eventually(|| running.dispatch.lanes()[0].in_flight == 0).await;
    // As many as were under way, and no more: the queue is not burnt.
    assert!(provider.sent().len() <= 2, "{}", provider.sent().len());
    assert_eq!(running.dispatch.lanes()[0].reason, Some(Reason::BadCredentials));
    assert!(messages.iter().all(|message| running.row(message.id).status == Status::Queued));

    running.dispatch.resume("one").await.unwrap();
    for message in &messages {
        running.until(message.id, Status::Sent).await;
    }
    assert!(matches!(running.dispatch.resume("two").await, Err(ControlError::NoProvider(_))));
    running.stop().await;
}

#[tokio::test]
async fn a_refused_recipient_is_reached_by_the_next_channel() {
    let provider = Scripted::answering([rejected(Reason::BadRecipient, Scope::Recipient)]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let mut message = message(1, Channel::Sms);
    let other = Address::Phone("+4915550100002".parse().unwrap());
    message.then = vec![Target { channel: Channel::Sms, address: other }];
    running.add(&message).await;
    let row = running.until(message.id, Status::Failed).await;
    assert_eq!(row.reason, Some(Reason::BadRecipient));
    eventually(|| provider.sent().len() == 2).await;
    let next = provider.sent()[1];
    let row = running.until(next, Status::Sent).await;
    assert_eq!(row.target, message.then[0]);
    running.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_after_its_expiry() {
    let provider = Scripted::always(unavailable());
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let mut short = message(1, Channel::Sms);
    short.expires_at = short.created_at.plus(Duration::from_secs(1));
    let mut over = message(2, Channel::Sms);
    over.expires_at = over.created_at;
    running.add(&over).await;
    running.add(&short).await;
    let row = running.until(short.id, Status::Expired).await;
    assert_eq!(row.reason, Some(Reason::Expired));
    assert!(row.detail.unwrap().contains("provider_unavailable, HTTP 503"));
    assert!(row.attempts.iter().all(|attempt| attempt.started_at < short.expires_at));
    running.until(over.id, Status::Expired).await;
    assert!(!provider.sent().contains(&over.id));
    running.stop().await;
}

#[tokio::test]
async fn an_operator_cancels_and_sends_again() {
    let provider = Scripted::answering([rejected(Reason::ContentRefused, Scope::Content)]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let failing = message(1, Channel::Sms);
    running.add(&failing).await;
    running.until(failing.id, Status::Failed).await;
    assert!(matches!(
        running.dispatch.cancel(failing.id).await,
        Err(ControlError::NotAllowed { status: Status::Failed, .. })
    ));
    running.dispatch.retry(failing.id).await.unwrap();
    running.until(failing.id, Status::Sent).await;
    assert!(running.dispatch.retry(failing.id).await.is_err());

    let mut later = message(2, Channel::Sms);
    later.due_at = later.created_at.plus(Duration::from_secs(600));
    running.add(&later).await;
    let row = running.dispatch.cancel(later.id).await.unwrap();
    assert_eq!((row.status, row.reason), (Status::Canceled, Some(Reason::Canceled)));
    let unknown = message(3, Channel::Sms).id;
    assert!(matches!(running.dispatch.cancel(unknown).await, Err(ControlError::NotFound(_))));
    running.stop().await;
}

#[tokio::test]
async fn a_channel_without_provider_ends_with_a_reason() {
    let running = Running::start(&[], &[]).await;
    let message = message(1, Channel::Push);
    running.add(&message).await;
    let row = running.until(message.id, Status::Failed).await;
    assert_eq!(row.reason, Some(Reason::NoProvider));
    running.stop().await;
}

/// A row as a crash leaves it: an attempt was started and nothing is known of it.
fn cut_off(number: u64) -> Message {
    let mut message = message(number, Channel::Sms);
    message.status = Status::Sending;
    message.attempt_count = 1;
    message.attempts = vec![Attempt {
        number: 1,
        provider: "one".into(),
        run: RunId::new(uuid::Uuid::nil()),
        started_at: message.created_at,
        ended_at: None,
        outcome: None,
    }];
    message
}

#[tokio::test]
async fn an_attempt_that_a_crash_cut_off_is_unknown_and_sent_again() {
    let provider = Scripted::answering([]);
    let message = cut_off(1);
    let lanes = [("one", Arc::clone(&provider))];
    let running = Running::start(&lanes, std::slice::from_ref(&message)).await;
    let row = running.until(message.id, Status::Sent).await;
    assert!(matches!(row.attempts[0].outcome, Some(AttemptOutcome::Unknown { .. })));
    assert_eq!(provider.sent(), [message.id]);
    running.stop().await;
}

#[tokio::test]
async fn what_the_provider_already_has_is_not_sent_again() {
    let provider = Scripted::answering([]);
    *provider.knows.lock().unwrap() = Some(vec!["SM1".to_owned()]);
    // Two with the same text, of which the provider has one.
    let messages = [cut_off(1), cut_off(2)];
    let running = Running::start(&[("one", Arc::clone(&provider))], &messages).await;
    for message in &messages {
        running.until(message.id, Status::Sent).await;
    }
    assert_eq!(provider.sent().len(), 1, "one was found, the other was sent");
    running.stop().await;
}

/// What the nth alert of a freezer, which fired so many seconds ago, tells now.
fn freezer(freezer: &str, number: u64, secs_ago: u64, state: AlertState) -> Message {
    // The same for all, so that two messages of an alert have the same one.
    static NOW: LazyLock<Timestamp> = LazyLock::new(|| Clock::System.now());
    let now = *NOW;
    let mut message = message(number, Channel::Sms);
    let fired_at =
        Timestamp::from_millis(now.as_millis() - 1000 * i64::try_from(secs_ago).unwrap());
    let id = AlertId::next(&mut IdSource::new(number), fired_at, "freezer", freezer);
    message.id = MessageId::derive(id, state, Channel::Sms, &message.target.address);
    message.alert = Some(AlertRef {
        id,
        rule: "freezer".into(),
        key: freezer.into(),
        state,
        topic: watchbell::topic::TopicName::parse("a/b", Default::default()).unwrap(),
        tells: Tells::Alert,
    });
    message.contact = Some("ana".into());
    (message.created_at, message.due_at) = (fired_at, fired_at);
    message.expires_at = now.plus(Duration::from_secs(3600));
    message
}

#[tokio::test]
async fn a_message_that_failed_was_overtaken_by_the_one_that_said_it_was_over() {
    use AlertState::{Cleared, Firing};
    let messages =
        [freezer("it", 1, 9, Firing), freezer("it", 1, 8, Cleared), freezer("it", 2, 7, Firing)];
    let provider = Scripted::answering([unavailable(), unavailable()]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &messages[..1]).await;
    for message in &messages[1..] {
        running.add(message).await;
    }
    eventually(|| running.dispatch.waiting() == 0).await;
    let [one, over, two] = messages.map(|message| message.id);
    assert_eq!(provider.sent(), [one, one, one, over, two]);
    running.stop().await;
}

#[tokio::test]
async fn what_told_of_several_alerts_was_ended_when_one_of_them_was_over() {
    use AlertState::{Cleared, Firing};
    let [mut digest, over] = [freezer("it", 1, 600, Firing), freezer("it", 1, 600, Cleared)];
    digest.alert.as_mut().unwrap().tells = Tells::More;
    let provider = Scripted::answering([]);
    let stored = [digest.clone(), over.clone()];
    let running = Running::start(&[("one", Arc::clone(&provider))], &stored).await;
    eventually(|| running.dispatch.waiting() == 0).await;
    assert_eq!(provider.sent(), [digest.id, over.id]);
    running.stop().await;
}

#[tokio::test]
async fn who_was_told_with_other_alerts_did_not_hear_that_it_was_over() {
    use AlertState::{Cleared, Firing};
    // It has become worse, and is over; that it fires was said in a message of another alert.
    let [worse, over] = [freezer("it", 1, 600, Firing), freezer("it", 1, 600, Cleared)];
    let mut digest = freezer("another", 2, 700, Firing);
    digest.status = Status::Sent;
    let about = worse.alert.clone().unwrap();
    let step = Step {
        alert: about.id,
        at: digest.created_at,
        what: StepKind::Grouped,
        reason: None,
        rule: about.rule,
        key: about.key,
        severity: worse.severity,
        topic: about.topic,
        contact: worse.contact.clone(),
        message: Some(digest.id),
        detail: None,
    };
    let provider = Scripted::answering([]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[digest]).await;
    let mut op = Op::new();
    op.put_step(&step);
    op.put_message(&worse);
    op.put_message(&over);
    running.store.commit(vec![op]).await.unwrap();
    running.dispatch.add([&worse, &over]);
    eventually(|| running.dispatch.waiting() == 0).await;
    assert_eq!(provider.sent(), [over.id]);
    running.stop().await;
}

#[tokio::test]
async fn what_waited_long_is_put_together_and_what_did_not_is_not() {
    use AlertState::{Cleared, Firing};
    let long: Vec<Message> =
        (0..40).map(|number| freezer("long", number, 600 - 10 * number, Firing)).collect();
    let short: Vec<Message> = (40..45).map(|number| freezer("short", number, 60, Firing)).collect();
    let over = [freezer("over", 50, 600, Firing), freezer("over", 50, 600, Cleared)];
    // Of this one somebody was told.
    let mut told = [freezer("told", 60, 600, Firing), freezer("told", 60, 600, Cleared)];
    told[0].status = Status::Sent;
    // This one may have been sent.
    let mut unknown = [freezer("unknown", 70, 600, Firing), freezer("unknown", 71, 500, Firing)];
    unknown[0].status = Status::Sending;
    unknown[0].attempts = cut_off(1).attempts;
    unknown[0].attempt_count = 1;
    let stored = [&long[..], &short, &over, &told, &unknown].concat();

    let provider = Scripted::answering([]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &stored).await;
    eventually(|| running.dispatch.waiting() == 0).await;
    let left_out = |messages: &[Message], reason: Reason| {
        for message in messages {
            let row = running.row(message.id);
            assert_eq!((row.status, row.reason), (Status::Canceled, Some(reason)));
        }
    };
    left_out(&long[..39], Reason::Superseded);
    left_out(&over, Reason::Over);
    let mut expected: Vec<MessageId> = short.iter().map(|message| message.id).collect();
    expected.extend([long[39].id, told[1].id, unknown[0].id, unknown[1].id]);
    expected.sort();
    let mut sent = provider.sent();
    sent.sort();
    assert_eq!(sent, expected);
    let text = |message: &Message| running.row(message.id).content.text;
    assert!(text(&long[39]).contains("\n40 events between "), "{}", text(&long[39]));
    assert!(text(&told[1]).contains("\nat "), "{}", text(&told[1]));
    assert!(text(&unknown[1]).contains("\nsince "), "{}", text(&unknown[1]));
    for untouched in short.iter().chain(&unknown[..1]) {
        assert_eq!(&*text(untouched), "text");
    }
    let messages = running.store.messages_of(told[0].alert.as_ref().unwrap().id).unwrap();
    assert_eq!(messages.len(), 2);
    running.stop().await;
}

/// So many messages of instances of their own that have waited for `secs_ago`.
fn backlog(count: u64, secs_ago: u64) -> Vec<Message> {
    let instance = |number: u64| {
        let key = format!("kiel/{number}");
        freezer(&key, number, secs_ago, AlertState::Firing)
    };
    (1..=count).map(instance).collect()
}

/// A pick took everything that was due: a million rows were read and held before one was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_put_together_as_it_is_sent_and_not_all_at_once() {
    let backlog = backlog(300, 600);
    let (gate, opened) = watch::channel(false);
    let provider = Scripted::held(opened);
    let edit = |config: &mut Config| config.batch_messages_max = 10;
    let running = Running::start_with(&[("one", Arc::clone(&provider))], &backlog, edit).await;
    eventually(|| provider.sent().len() == 2).await;
    let is_dated = |message: &&Message| running.row(message.id).left_out.is_some();
    assert!(backlog.iter().filter(is_dated).count() <= 10);
    gate.send_replace(true);
    eventually(|| provider.sent().len() == 300).await;
    eventually(|| running.dispatch.waiting() == 0).await;
    assert!(backlog.iter().all(|message| is_dated(&message)));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_expire_together_end_in_batches_and_hold_up_nobody() {
    let mut late = backlog(300, 600);
    for message in &mut late {
        message.expires_at = message.created_at.plus(Duration::from_secs(60));
    }
    let fresh = message(1000, Channel::Sms);
    let stored = [late.as_slice(), std::slice::from_ref(&fresh)].concat();
    let provider = Scripted::answering([]);
    let edit = |config: &mut Config| config.batch_messages_max = 10;
    let running = Running::start_with(&[("one", Arc::clone(&provider))], &stored, edit).await;
    running.until(fresh.id, Status::Sent).await;
    eventually(|| running.dispatch.waiting() == 0).await;
    for message in &late {
        let row = running.row(message.id);
        assert_eq!((row.status, row.reason), (Status::Expired, Some(Reason::Expired)));
    }
    assert_eq!(provider.sent(), [fresh.id]);
    running.stop().await;
}

fn unknown(answered: bool) -> SendOutcome {
    SendOutcome::Unknown { detail: "no answer within the time limit".to_owned(), answered }
}

/// To a recipient of its own, and with another channel's address to go on to.
fn to(number: u64, then: &str) -> Message {
    let mut message = message(number, Channel::Sms);
    let phone = |text: &str| Address::Phone(text.parse().unwrap());
    message.target.address = phone(&format!("+49155501{number:05}"));
    if !then.is_empty() {
        message.then = vec![Target { channel: Channel::Sms, address: phone(then) }];
    }
    message
}

#[tokio::test]
async fn what_one_provider_will_not_take_the_next_one_is_asked_for_at_once() {
    for scope in [Scope::Account { sure: false }, Scope::Account { sure: true }, Scope::Route] {
        let first = Scripted::always(rejected(Reason::ProviderRefused, scope));
        let second = Scripted::answering([]);
        let lanes = [("one", Arc::clone(&first)), ("two", Arc::clone(&second))];
        let running = Running::start(&lanes, &[]).await;
        let message = message(1, Channel::Sms);
        running.add(&message).await;
        let row = running.until(message.id, Status::Sent).await;
        assert_eq!(row.provider.as_deref(), Some("two"), "{scope:?}");
        assert_eq!((first.sent().len(), row.attempts.len()), (1, 2));
        running.stop().await;
    }
}

#[tokio::test]
async fn what_no_provider_of_a_channel_will_take_goes_on_by_the_next_channel_at_once() {
    for scope in [Scope::Account { sure: false }, Scope::Route] {
        let refusal = rejected(Reason::ProviderRefused, scope);
        let provider = Scripted::answering([refusal.clone(), refusal]);
        let lanes = [("one", Arc::clone(&provider)), ("two", Arc::clone(&provider))];
        let running = Running::start(&lanes, &[]).await;
        let message = to(1, "+4915550100099");
        running.add(&message).await;
        let row = running.until(message.id, Status::Failed).await;
        assert_eq!(row.reason, Some(Reason::ProviderRefused));
        assert!(row.detail.unwrap().contains("no provider of its channel takes it"));
        eventually(|| provider.sent().len() == 3).await;
        running.until(provider.sent()[2], Status::Sent).await;
        running.stop().await;
    }
}

/// 403 for one number: nine calls, all of them to that number, and five others with none.
#[tokio::test]
async fn one_recipient_who_is_refused_holds_up_nobody_else() {
    let provider = Scripted::answering([]);
    let refused = to(1, "");
    let outcome = rejected(Reason::ProviderRefused, Scope::Account { sure: false });
    *provider.one.lock().unwrap() = Some((refused.target.address.clone(), outcome));
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    running.add(&refused).await;
    // Alone it is tried for as long as its time allows: nobody knows that others would be taken.
    eventually(|| running.row(refused.id).attempts.len() > 4).await;
    assert_eq!(running.row(refused.id).reason, Some(Reason::ProviderRefused));
    let others: Vec<Message> = (2..7).map(|number| to(number, "")).collect();
    for message in &others {
        running.add(message).await;
    }
    for message in &others {
        running.until(message.id, Status::Sent).await;
    }
    // So many refusals that the others survive are enough.
    let row = running.until(refused.id, Status::Failed).await;
    assert_eq!(row.reason, Some(Reason::ProviderRefused));
    assert_eq!(running.dispatch.lanes()[0].state, LaneState::Up);
    running.stop().await;
}

#[tokio::test]
async fn refusals_of_several_recipients_stop_the_lane_and_the_messages_are_kept() {
    let outcome = rejected(Reason::ProviderRefused, Scope::Account { sure: false });
    let provider = Scripted::always(outcome);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let messages: Vec<Message> = (1..20).map(|number| to(number, "")).collect();
    for message in &messages {
        running.add(message).await;
    }
    eventually(|| running.dispatch.lanes()[0].state == LaneState::Stopped).await;
    eventually(|| running.dispatch.lanes()[0].in_flight == 0).await;
    // Three, and those that were under way.
    assert!(provider.sent().len() <= 4, "{}", provider.sent().len());
    assert!(messages.iter().all(|message| running.row(message.id).status == Status::Queued));
    *provider.always.lock().unwrap() = None;
    running.dispatch.resume("one").await.unwrap();
    for message in &messages {
        running.until(message.id, Status::Sent).await;
    }
    running.stop().await;
}

/// Meta took it and answered late: seven copies in a minute.
#[tokio::test]
async fn without_an_answer_a_message_is_repeated_twice_and_then_goes_on() {
    let provider = Scripted::answering([unknown(false), unknown(false), unknown(false)]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let message = to(1, "+4915550100099");
    running.add(&message).await;
    let row = running.until(message.id, Status::Failed).await;
    assert_eq!((row.attempts.len(), row.reason), (3, Some(Reason::NoAnswer)));
    assert!(row.detail.as_deref().unwrap().starts_with("it may have been sent: 3 times"));
    eventually(|| provider.sent().len() == 4).await;
    running.until(provider.sent()[3], Status::Sent).await;
    // An operator may have it sent all the same.
    running.dispatch.retry(message.id).await.unwrap();
    running.until(message.id, Status::Sent).await;
    running.stop().await;
}

/// A gzip answer was not decoded: six copies in 40 s.
#[tokio::test]
async fn after_a_success_that_cannot_be_read_the_message_is_not_sent_there_again() {
    let first = Scripted::always(unknown(true));
    let second = Scripted::answering([]);
    let lanes = [("one", Arc::clone(&first)), ("two", Arc::clone(&second))];
    let running = Running::start(&lanes, &[]).await;
    let message = to(1, "");
    running.add(&message).await;
    running.until(message.id, Status::Sent).await;
    assert_eq!((first.sent().len(), second.sent().len()), (1, 1));
    running.stop().await;
}

#[tokio::test]
async fn a_restart_forgets_no_attempt_without_answer() {
    let mut message = cut_off(1);
    let last = message.attempts.remove(0);
    let detail = "no answer".to_owned();
    let unanswered = AttemptOutcome::Unknown { detail, answered: false, cut_off: false };
    for number in 1..=3 {
        let outcome = Some(unanswered.clone());
        message.attempts.push(Attempt { number, outcome, ..last.clone() });
    }
    message.attempts.push(Attempt { number: 4, ..last });
    message.attempt_count = 4;
    let provider = Scripted::answering([]);
    let lanes = [("one", Arc::clone(&provider))];
    let running = Running::start(&lanes, std::slice::from_ref(&message)).await;
    let row = running.until(message.id, Status::Failed).await;
    assert_eq!((row.reason, provider.sent().len()), (Some(Reason::NoAnswer), 0));
    running.stop().await;
}

/// Three kills while the provider could not even be connected to ended a critical message that had never
/// left the machine.
#[tokio::test]
async fn a_message_outlives_kills_during_its_attempts() {
    let mut message = cut_off(1);
    let last = message.attempts.remove(0);
    let detail = "the process ended before an answer was read".to_owned();
    let killed = AttemptOutcome::Unknown { detail, answered: false, cut_off: true };
    for number in 1..=4 {
        let outcome = Some(killed.clone());
        message.attempts.push(Attempt { number, outcome, ..last.clone() });
    }
    message.attempts.push(Attempt { number: 5, ..last });
    message.attempt_count = 5;
    let mut with_another = message.clone();
    with_another.id = to(2, "").id;
    with_another.then = to(2, "+4915550100099").then;
    let provider = Scripted::answering([]);
    let lanes = [("one", Arc::clone(&provider))];
    let running = Running::start(&lanes, &[message.clone(), with_another.clone()]).await;
    running.until(message.id, Status::Sent).await;
    // Where there is another channel, that is the better way.
    let row = running.until(with_another.id, Status::Failed).await;
    assert_eq!(row.reason, Some(Reason::NoAnswer));
    eventually(|| provider.sent().len() == 2).await;
    running.stop().await;
}

/// A portal that answered everything with its page, for half a minute, ended alerts within a second.
#[tokio::test]
async fn a_page_in_place_of_an_answer_does_not_end_a_message_without_another_channel() {
    let provider = Scripted::answering([unknown(true), unknown(true)]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let message = to(1, "");
    running.add(&message).await;
    let row = running.until(message.id, Status::Sent).await;
    assert_eq!(row.attempts.len(), 3);
    // But not more often than where there was no answer.
    *provider.always.lock().unwrap() = Some(unknown(true));
    let other = to(2, "");
    running.add(&other).await;
    let row = running.until(other.id, Status::Failed).await;
    assert_eq!((row.attempts.len(), row.reason), (3, Some(Reason::NoAnswer)));
    running.stop().await;
}

#[tokio::test]
async fn one_that_can_be_asked_is_asked_before_the_message_is_given_up() {
    let provider = Scripted::answering([unknown(true)]);
    *provider.knows.lock().unwrap() = Some(vec!["SM1".to_owned()]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let message = to(1, "");
    running.add(&message).await;
    let row = running.until(message.id, Status::Sent).await;
    assert_eq!((row.provider_ref.as_deref(), provider.sent().len()), (Some("SM1"), 1));

    *provider.knows.lock().unwrap() = Some(Vec::new());
    *provider.always.lock().unwrap() = Some(unknown(true));
    let other = to(2, "");
    running.add(&other).await;
    let row = running.until(other.id, Status::Failed).await;
    assert_eq!((row.reason, row.attempts.len()), (Some(Reason::NoAnswer), 3));
    // An operator may have it sent all the same.
    *provider.always.lock().unwrap() = None;
    running.dispatch.retry(other.id).await.unwrap();
    running.until(other.id, Status::Sent).await;
    running.stop().await;
}

/// What the provider says that it does not have is sent until it has it: that is no copy.
#[tokio::test]
async fn what_a_look_up_does_not_find_is_sent_again() {
    let provider = Scripted::answering((0..6).map(|_| unknown(false)));
    *provider.knows.lock().unwrap() = Some(Vec::new());
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let message = to(1, "");
    running.add(&message).await;
    let row = running.until(message.id, Status::Sent).await;
    assert_eq!(row.attempts.len(), 7);
    running.stop().await;
}

/// To a URL.
fn hook(number: u64, url: &str) -> Message {
    let mut message = message(number, Channel::Webhook);
    message.target.address = Address::Url(url.into());
    message
}

/// One warning waited 49.7 s behind 40 messages to a URL that hung.
#[tokio::test]
async fn a_url_that_hangs_holds_up_no_other() {
    let (open, gate) = watch::channel(false);
    let provider = Scripted::answering([]);
    let hanging: Vec<Message> =
        (0..40).map(|number| hook(number, "https://dead.example/x")).collect();
    *provider.hangs.lock().unwrap() = Some((hanging[0].target.address.clone(), gate));
    let running = Running::start(&[("hook", Arc::clone(&provider))], &[]).await;
    for message in &hanging {
        running.add(message).await;
    }
    eventually(|| provider.sent().len() == 1).await;
    for number in 100..110 {
        let healthy = hook(number, "https://well.example/x");
        running.add(&healthy).await;
        running.until(healthy.id, Status::Sent).await;
    }
    eventually(|| running.dispatch.waiting() == 40).await;
    assert_eq!(provider.sent().len(), 11);
    open.send(true).unwrap();
    for message in &hanging {
        running.until(message.id, Status::Sent).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_fails_is_left_alone_and_its_lane_is_not() {
    let provider = Scripted::answering([]);
    let failing: Vec<Message> =
        (0..10).map(|number| hook(number, "https://user:secret@dead.example/key")).collect();
    let outcome = SendOutcome::Retry {
        reason: Reason::NoAnswer,
        after: Some(Duration::from_secs(3000)),
        scope: RetryScope::Endpoint,
        detail: "no answer".to_owned(),
    };
    *provider.one.lock().unwrap() = Some((failing[0].target.address.clone(), outcome));
    let running = Running::start(&[("hook", Arc::clone(&provider))], &[]).await;
    for message in &failing {
        running.add(message).await;
    }
    let endpoints = || running.dispatch.lanes()[0].endpoints.clone();
    eventually(|| endpoints().first().is_some_and(|one| one.waiting == 9)).await;
    let endpoint = endpoints().remove(0);
    assert_eq!((&*endpoint.name, endpoint.state), ("dead.example", LaneState::Paused));
    assert_eq!(running.dispatch.lanes()[0].state, LaneState::Up);
    let healthy = hook(100, "https://well.example/x");
    running.add(&healthy).await;
    running.until(healthy.id, Status::Sent).await;
    assert_eq!(provider.sent().len(), 2);
    running.stop().await;
}

#[tokio::test]
async fn what_this_machine_lacks_blames_no_provider() {
    let outcome = SendOutcome::Retry {
        reason: Reason::OutOfResources,
        after: None,
        scope: RetryScope::Here,
        detail: "Too many open files".to_owned(),
    };
    let provider = Scripted::always(outcome);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let message = to(1, "");
    running.add(&message).await;
    eventually(|| provider.sent().len() > 5).await;
    let lane = running.dispatch.lanes().remove(0);
    assert_eq!(lane.state, LaneState::Up);
    assert!(lane.warning.unwrap().contains("Too many open files"));
    *provider.always.lock().unwrap() = None;
    running.until(message.id, Status::Sent).await;
    eventually(|| running.dispatch.lanes()[0].warning.is_none()).await;
    running.stop().await;
}

/// The provider has listed an id before its answer to another message of the same text was read.
#[tokio::test]
async fn a_look_up_does_not_claim_what_another_attempt_is_being_given() {
    let (open, gate) = watch::channel(false);
    let given = SendOutcome::Accepted {
        provider_ref: Some("SM1".to_owned()),
        segments: None,
        delivered: false,
        note: None,
    };
    let provider = Scripted::answering([given]);
    *provider.gate.lock().unwrap() = Some(gate);
    *provider.knows.lock().unwrap() = Some(vec!["SM1".to_owned()]);
    let running = Running::start(&[("one", Arc::clone(&provider))], &[]).await;
    let first = message(1, Channel::Sms);
    running.add(&first).await;
    eventually(|| provider.sent().len() == 1).await;
    let mut second = cut_off(2);
    second.status = Status::Queued;
    second.reason = Some(Reason::NoAnswer);
    let detail = "the process ended".to_owned();
    second.attempts[0].outcome =
        Some(AttemptOutcome::Unknown { detail, answered: false, cut_off: true });
    running.add(&second).await;
    eventually(|| running.dispatch.lanes()[0].in_flight == 2).await;
    open.send(true).unwrap();
    let row = running.until(first.id, Status::Sent).await;
    assert_eq!(row.provider_ref.as_deref(), Some("SM1"));
    running.until(second.id, Status::Sent).await;
    assert_eq!(provider.sent(), [first.id, second.id]);
    running.stop().await;
}
