//! The store against a model: what was acknowledged is there after a crash and a reopening.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use watchbell::clock::Timestamp;
use watchbell::model::tell::{Step as TrailStep, StepKind};
use watchbell::model::{
    Address, AlertId, AlertState, Channel, Content, IdSource, Message, MessageId, Publish, Qos,
    Reason, Severity, Status, Target,
};
use watchbell::store::keys::Table;
use watchbell::store::sessions::{QueuedRow, ReceivedRow, SessionRow, WillRow};
use watchbell::store::sweep::{Slice, Sweep};
use watchbell::store::{Config, MessageFilter, Op, OpenError, ReadError, StepFilter, Store, keys};
use watchbell::telemetry::Metrics;
use watchbell::topic::{TopicFilter, TopicLimits};

fn open(directory: &Path) -> Result<Store, OpenError> {
    Store::open(directory, &Config::default(), &Metrics::new())
}

/// sled's own threads hold its lock a moment longer than its handles; another process never sees
/// that, because they end with theirs.
fn open_again(directory: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match open(directory) {
            Err(OpenError::InUse(_)) if Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// What one pass deletes that is older than a minute, by steps of few rows.
fn outlived(store: &Store, now: Timestamp) -> Vec<Op> {
    let slice = Slice { time: Duration::from_secs(60), rows: 3 };
    let (mut sweep, mut ops) = (Sweep::default(), Vec::new());
    while !sweep.is_over() {
        let swept = store.sweep(&mut sweep, Duration::from_secs(60), now, slice);
        assert!(swept.ops.len() <= slice.rows);
        ops.extend(swept.ops);
    }
    ops
}

pub(crate) fn message(number: u64, status: Status) -> Message {
    let now = Timestamp::from_millis(1_790_000_000_000 + i64::try_from(number).unwrap());
    let address = Address::Phone("+4915550100001".parse().unwrap());
    let alert = AlertId::next(&mut IdSource::new(number), now, "rule", &number.to_string());
    Message {
        id: MessageId::derive(alert, AlertState::Firing, Channel::Sms, &address),
        alert: None,
        contact: None,
        target: Target { channel: Channel::Sms, address },
        then: Vec::new(),
        severity: Severity::Warning,
        content: Content { title: None, text: format!("text {number}").into(), template: None },
        segments: None,
        created_at: now,
        expires_at: now,
        status,
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

fn all(store: &Store) -> BTreeMap<MessageId, Message> {
    let newest = store.messages(&MessageFilter::default(), None, usize::MAX).unwrap();
    let ids: Vec<_> = newest.iter().map(|message| message.id).collect();
    let mut sorted = ids.clone();
    sorted.sort_by(|one, other| other.cmp(one));
    assert_eq!(ids, sorted, "newest first");
    newest.into_iter().map(|message| (message.id, message)).collect()
}

/// What a process that is killed leaves behind: the files as they are, with no goodbye.
fn files_as_after_a_kill(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            files_as_after_a_kill(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Commit these messages together, in this state.
    Put(Vec<u64>, Status),
    Close,
    Kill,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let status = prop::sample::select(vec![Status::Queued, Status::Sent, Status::Failed]);
    let step = prop_oneof![
        8 => (prop::collection::vec(0..40_u64, 1..60), status)
            .prop_map(|(numbers, status)| Step::Put(numbers, status)),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
    ];
    prop::collection::vec(step, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn holds_what_was_acknowledged(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut directory = tempfile::tempdir().unwrap();
        let mut store = open(directory.path()).unwrap();
        let mut model = BTreeMap::new();
        for step in steps {
            match step {
                Step::Put(numbers, status) => {
                    let mut ops = Vec::new();
                    for number in numbers {
                        let message = message(number, status);
                        let mut op = Op::new();
                        op.put_message(&message);
                        ops.push(op);
                        model.insert(message.id, message);
                    }
                    runtime.block_on(store.commit(ops)).unwrap();
                }
                Step::Close => {
                    runtime.block_on(store.close()).unwrap();
                    drop(store);
                    store = open_again(directory.path());
                }
                Step::Kill => {
                    let copy = tempfile::tempdir().unwrap();
                    files_as_after_a_kill(directory.path(), copy.path());
                    store = open(copy.path()).unwrap();
                    directory = copy;
                }
            }
            prop_assert_eq!(&all(&store), &model);
            let waiting = store.outbox().count();
            let expected = model.values().filter(|message| !message.status.is_final()).count();
            prop_assert_eq!(waiting, expected);
        }
    }
}

#[test]
fn a_row_of_a_session_that_cannot_be_read_costs_nothing_but_itself() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = open(directory.path()).unwrap();
    let session = SessionRow {
        client_id: "pump".into(),
        identity: None,
        user: Some("pump".into()),
        groups: Vec::new(),
        expiry_secs: 60,
        ends_at: None,
        unsent_from: Some(3),
        subscriptions: Vec::new(),
    };
    let at = Timestamp::from_millis(5);
    let queued = QueuedRow {
        body: Some(9),
        at,
        packet_id: 65_535,
        qos: Qos::ExactlyOnce,
        retain: true,
        identifiers: vec![1, 268_435_455],
    };
    let publish = Publish {
        topic: watchbell::topic::TopicName::parse("a/é", Default::default()).unwrap(),
        payload: bytes::Bytes::from_static(b"{\0\xff"),
        qos: Qos::AtLeastOnce,
        retain: true,
        replayed: false,
        client_id: "pump".into(),
        identity: None,
        received_at: at,
        properties: None,
    };
    let will = WillRow { session: 70, due_at: at };
    let mut op = Op::new();
    op.put_session(1, &session);
    op.put_queued(1, 2, &queued);
    op.put_body(9, &publish);
    op.put_received(1, 7, ReceivedRow::Ruled);
    op.put_will(8, will, &publish);
    op.put_retained(&publish);
    let ours = op.len();
    for key in [
        keys::session(2),
        keys::queued(1, 3),
        keys::body(60),
        keys::received(1, 8),
        keys::will(4),
        keys::retained("b"),
    ] {
        op.put(key, &"nonsense");
    }
    assert_eq!(op.len(), 2 * ours);
    runtime.block_on(store.commit(vec![op])).unwrap();
    let saved = store.saved();
    assert_eq!(saved.sessions, [(1, session)]);
    assert_eq!(saved.queued, [((1, 2), queued)]);
    assert_eq!(saved.received, [((1, 7), ReceivedRow::Ruled)]);
    assert_eq!((saved.wills[0].0, saved.wills[0].1), (8, will));
    for found in [&saved.bodies[0].1, &saved.wills[0].2, &saved.retained[0]] {
        assert_eq!((&found.topic, &found.payload), (&publish.topic, &publish.payload));
        assert_eq!((found.received_at, found.retain), (at, true));
    }
    assert_eq!(saved.unreadable.len(), ours, "{:#?}", saved.unreadable);
    assert_eq!(saved.largest_number, 70, "no number is used twice, also not an ended session's");
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let error = open(directory.path()).err().unwrap();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    drop(store);
}

#[test]
fn a_half_made_conf_does_not_keep_the_store_shut_and_a_whole_one_stays() {
    let directory = tempfile::tempdir().unwrap();
    let conf = directory.path().join("store/conf");
    drop(open(directory.path()).unwrap());
    let whole = std::fs::read(&conf).unwrap();
    let made = std::fs::metadata(&conf).unwrap().modified().unwrap();
    drop(open_again(directory.path()));
    assert_eq!(std::fs::metadata(&conf).unwrap().modified().unwrap(), made);
    for length in 0..whole.len() {
        std::fs::write(&conf, &whole[..length]).unwrap();
        drop(open_again(directory.path()));
        assert_eq!(std::fs::read(&conf).unwrap(), whole);
    }
}

#[test]
fn a_half_made_snapshot_does_not_keep_the_store_shut() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = open(directory.path()).unwrap();
    let mut op = Op::new();
    op.put_message(&message(1, Status::Queued));
    runtime.block_on(store.commit(vec![op])).unwrap();
    runtime.block_on(store.close()).unwrap();
    drop(store);
    std::fs::write(directory.path().join("store/snap.0000000000000FFF.generating"), b"").unwrap();
    assert_eq!(all(&open_again(directory.path())).len(), 1);
}

#[test]
fn what_has_outlived_its_retention_goes_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = open(directory.path()).unwrap();
    let (old, waiting) = (message(1, Status::Sent), message(2, Status::Queued));
    let mut op = Op::new();
    op.put_message(&old);
    op.put_message(&waiting);
    runtime.block_on(store.commit(vec![op])).unwrap();

    let soon = old.updated_at.plus(Duration::from_secs(59));
    assert!(outlived(&store, soon).is_empty());
    let later = old.updated_at.plus(Duration::from_secs(3600));
    runtime.block_on(store.commit(outlived(&store, later))).unwrap();
    assert_eq!(all(&store).into_keys().collect::<Vec<_>>(), [waiting.id]);
}

/// Each table's first young row ended its partition, and history stood before all other tables.
#[test]
fn a_message_that_changed_lately_keeps_no_other_and_history_keeps_no_steps() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = open(directory.path()).unwrap();
    // One partition: all are of one alert's time and instance. The first has just been sent.
    let mut first = message(1, Status::Sent);
    let now = first.updated_at.plus(Duration::from_secs(3600));
    let mut op = Op::new();
    for number in 0..20_u128 {
        let id = first.id.as_uuid().as_u128() + (number << 6);
        let id = MessageId::new(uuid::Uuid::from_u128(id));
        op.put_message(&Message { id, ..first.clone() });
    }
    first.updated_at = now;
    op.put_message(&first);
    let old = step(1, 0, StepKind::Raised);
    op.put_step(&old);
    runtime.block_on(store.commit(vec![op])).unwrap();

    let slice = Slice { time: Duration::from_secs(60), rows: 3 };
    let mut sweep = Sweep::default();
    let deleted = |sweep: &mut Sweep| {
        let swept = store.sweep(sweep, Duration::from_secs(60), now, slice);
        let count = swept.ops.len();
        runtime.block_on(store.commit(swept.ops)).unwrap();
        count
    };
    // Some of the history, then the steps, then history again.
    assert_eq!((deleted(&mut sweep), deleted(&mut sweep)), (3, 1));
    assert!(store.steps(old.alert).unwrap().is_empty());
    while !sweep.is_over() {
        deleted(&mut sweep);
    }
    assert_eq!(all(&store).into_keys().collect::<Vec<_>>(), [first.id]);
}

#[tokio::test]
async fn a_message_that_ends_while_it_is_listed_is_not_listed_twice() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let put = async |status: Status| {
        let ops = (0..64).map(|number| {
            let mut op = Op::new();
            op.put_message(&message(number, status));
            op
        });
        store.commit(ops.collect()).await.unwrap();
    };
    put(Status::Queued).await;
    let listing = store.clone();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let lists = std::thread::spawn(move || {
        let mut count = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) || count == 0 {
            let listed = listing.messages(&MessageFilter::default(), None, usize::MAX).unwrap();
            let mut ids: Vec<_> = listed.iter().map(|message| message.id).collect();
            ids.dedup();
            assert_eq!(ids.len(), listed.len(), "one stands twice in a list");
            count += 1;
        }
    });
    for _ in 0..50 {
        put(Status::Failed).await;
        put(Status::Queued).await;
    }
    drop(stop);
    lists.join().unwrap();
}

const START: i64 = 1_790_000_000_000;

/// A step of alert `number`, which fired that many seconds after the start, `after` seconds later.
fn step(number: u64, after: i64, what: StepKind) -> TrailStep {
    let fired_at = START + 1000 * i64::try_from(number).unwrap();
    let key = number.to_string();
    let mut ids = IdSource::new(number);
    TrailStep {
        alert: AlertId::next(&mut ids, Timestamp::from_millis(fired_at), "rule", &key),
        at: Timestamp::from_millis(fired_at + 1000 * after),
        what,
        reason: (what == StepKind::Held).then_some(Reason::QuietHours),
        rule: "rule".into(),
        key: key.into(),
        severity: Severity::Warning,
        topic: watchbell::topic::TopicName::parse("a/b", Default::default()).unwrap(),
        contact: None,
        message: None,
        detail: None,
    }
}

#[test]
fn the_steps_of_one_alert_come_in_order_and_those_of_all_newest_first() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = open(directory.path()).unwrap();
    let same_moment = [StepKind::Raised, StepKind::Held, StepKind::Cleared];
    let mut op = Op::new();
    for what in same_moment {
        op.put_step(&step(1, 0, what));
    }
    op.put_step(&step(1, 90, StepKind::Dropped));
    for number in 2..60 {
        op.put_step(&step(number, 0, StepKind::Raised));
    }
    runtime.block_on(store.commit(vec![op])).unwrap();

    let one: Vec<StepKind> =
        store.steps(step(1, 0, StepKind::Raised).alert).unwrap().iter().map(|s| s.what).collect();
    assert_eq!(one[..3], same_moment);
    assert_eq!(one[3..], [StepKind::Dropped]);

    let check = |filter: &StepFilter, from: i64, limit: usize, expected: &[(&str, StepKind)]| {
        let from = Timestamp::from_millis(START + 1000 * from);
        let found = store.steps_since(filter, from, limit).unwrap();
        let found: Vec<(&str, StepKind)> = found.iter().map(|s| (&*s.key, s.what)).collect();
        assert_eq!(found, expected, "{filter:?} {from} {limit}");
    };
    let all = StepFilter::default();
    let (dropped, raised) = (("1", StepKind::Dropped), StepKind::Raised);
    check(&all, 0, 3, &[dropped, ("59", raised), ("58", raised)]);
    check(&all, 59, 10, &[dropped, ("59", raised)]);
    check(&all, 0, 0, &[]);
    let before = Some(Timestamp::from_millis(START + 59_000));
    check(&StepFilter { before, ..all.clone() }, 57, 9, &[("58", raised), ("57", raised)]);
    let held = StepFilter { what: vec![StepKind::Held], ..all.clone() };
    check(&held, 0, 9, &[("1", StepKind::Held)]);
    check(
        &StepFilter { reason: Some(Reason::QuietHours), ..all.clone() },
        0,
        9,
        &[("1", StepKind::Held)],
    );
    check(&StepFilter { key: Some("7".to_owned()), ..all.clone() }, 0, 9, &[("7", raised)]);
    let topic = |text| Some(TopicFilter::parse(text, TopicLimits::default()).unwrap());
    check(&StepFilter { topic: topic("elsewhere/#"), ..all.clone() }, 0, 9, &[]);
    check(&StepFilter { topic: topic("#"), ..all.clone() }, 0, 1, &[dropped]);
    let naming = HashSet::from(["other".into()]);
    let contact = Some("nobody".to_owned());
    check(&StepFilter { contact, naming, ..all.clone() }, 0, 9, &[]);
    check(&StepFilter { rule: Some("other".to_owned()), ..all }, 0, 9, &[]);
}

#[test]
fn a_step_goes_when_it_is_old_even_while_its_alert_has_younger_ones() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = open(directory.path()).unwrap();
    let old = step(1, 0, StepKind::Raised);
    let mut op = Op::new();
    op.put_step(&old);
    op.put_step(&step(1, 50, StepKind::Cleared));
    // What a version that knew `s` left behind.
    let mut before = keys::steps(old.alert);
    before[0] = Table::Suppressed as u8;
    op.put(before, &"an alert of which nobody was told");
    runtime.block_on(store.commit(vec![op])).unwrap();

    let left = |after: u64| {
        let now = old.at.plus(Duration::from_secs(after));
        let ops = outlived(&store, now);
        let count = ops.len();
        runtime.block_on(store.commit(ops)).unwrap();
        (count, store.steps(old.alert).unwrap().len())
    };
    assert_eq!(left(59), (0, 2));
    assert_eq!(left(60), (2, 1));
    assert_eq!(left(109), (0, 1));
    assert_eq!(left(110), (1, 0));
}

#[test]
fn engines_find_their_rows_again_and_one_that_cannot_be_read_is_an_error_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = open(directory.path()).unwrap();
    let mut op = Op::new();
    for table in [Table::Instance, Table::Telling, Table::Memory, Table::Engine] {
        op.put_row(table, 0, b"first", &(table as u8, 1));
        op.put_row(table, 63, b"last", &(table as u8, 3));
        op.put_row(table, 9, b"gone", &(0, 0));
        op.remove_row(table, 9, b"gone");
    }
    op.put_row(Table::Memory, 7, b"odd", &"another version's");
    runtime.block_on(store.commit(vec![op])).unwrap();
    for table in [Table::Instance, Table::Telling, Table::Memory, Table::Engine] {
        let found: Vec<Result<(u8, u8), ReadError>> = store.rows(table).collect();
        let read: Vec<(u8, u8)> = found.iter().flatten().copied().collect();
        assert_eq!(read, [(table as u8, 1), (table as u8, 3)]);
        assert_eq!(found.len() - read.len(), usize::from(table == Table::Memory));
    }
    assert_eq!(store.row(Table::Engine, 63, b"last").unwrap(), Some((b'y', 3)));
    assert_eq!(store.row::<(u8, u8)>(Table::Engine, 9, b"gone").unwrap(), None);
}
