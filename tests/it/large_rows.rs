//! Large rows: whatever their size, they are found whole, leave nothing behind when they go, and
//! none of sled's pages becomes a file of its own under `blobs/`, which is never synced.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use watchbell::clock::Timestamp;
use watchbell::model::{Publish, Qos, Status};
use watchbell::store::keys::Table;
use watchbell::store::{Config, Op, OpenError, Store};
use watchbell::telemetry::Metrics;
use watchbell::topic::{TopicLimits, TopicName};

/// The largest value that stands in one piece, and what one part holds of a larger one.
const ROW_BYTES_MAX: usize = 3584;
const PART_BYTES: usize = ROW_BYTES_MAX - 1;

/// Also while sled's own threads still hold the lock of the store that was closed last.
fn open(directory: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Store::open(directory, &Config::default(), &Metrics::new()) {
            Err(OpenError::InUse(_)) if Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// The store's tree as sled has it; a new store is as an older program makes it.
fn raw(directory: &Path) -> sled::Db {
    let deadline = Instant::now() + Duration::from_secs(30);
    let path = directory.join("store");
    let conf = std::fs::read(path.join("conf")).unwrap_or_default();
    let conf = String::from_utf8_lossy(&conf).into_owned();
    let segment_bytes = conf.lines().find_map(|line| line.strip_prefix("segment_size: "));
    let segment_bytes = segment_bytes.map_or(512 << 10, |size| size.trim().parse().unwrap());
    loop {
        match sled::Config::new().path(&path).segment_size(segment_bytes).open() {
            Err(sled::Error::Io(error)) if Instant::now() < deadline => {
                assert!(error.to_string().contains("lock"), "{error}");
                std::thread::park_timeout(Duration::from_millis(2));
            }
            opened => return opened.unwrap(),
        }
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn close(store: &Store) {
    runtime().block_on(store.close()).unwrap();
}

fn blobs(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("store/blobs")).unwrap().count()
}

/// All parts, and all other rows.
fn parts_and_rows(directory: &Path) -> (usize, usize) {
    let db = raw(directory);
    // Whether it has noted its commits yet is a matter of the time.
    let keys = db.iter().keys().map(Result::unwrap).filter(|key| key != b"M\0commit");
    let keys: Vec<_> = keys.collect();
    let parts = keys.iter().filter(|key| key.first() == Some(&b'p')).count();
    (parts, keys.len() - parts)
}

pub(crate) fn publish(topic: &str, payload: Vec<u8>) -> Publish {
    let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
    Publish {
        topic: TopicName::parse(topic, limits).unwrap(),
        payload: payload.into(),
        qos: Qos::AtLeastOnce,
        retain: true,
        replayed: false,
        client_id: "pump".into(),
        identity: None,
        received_at: Timestamp::from_millis(5),
        properties: None,
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// In one operation: which rows, and how many bytes; `None` takes the row out.
    Write(Vec<(u8, Option<usize>)>),
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![
        4 => 0..200_usize,
        4 => ROW_BYTES_MAX - 8..ROW_BYTES_MAX + 8,
        4 => 4000..40_000_usize,
        1 => 300_000..700_000_usize,
    ];
    let write = (0..20_u8, prop::option::weighted(0.8, size));
    let step = prop_oneof![
        8 => prop::collection::vec(write, 1..12).prop_map(Step::Write),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..16)
}

/// Even rows are of engines, odd ones retained messages; every third has a long key.
fn write(op: &mut Op, row: u8, size: Option<usize>) {
    let long = if row.is_multiple_of(3) { 300 + usize::from(row) * 1000 } else { 3 };
    let name = format!("{}/{row}", "n".repeat(long));
    let text = |size: usize| char::from(b'a' + row).to_string().repeat(size);
    match (row % 2, size) {
        (0, Some(size)) => op.put_row(Table::Memory, 1, name.as_bytes(), &(row, text(size))),
        (0, None) => op.remove_row(Table::Memory, 1, name.as_bytes()),
        (_, Some(size)) => op.put_retained(&publish(&name, text(size).into_bytes())),
        (_, None) => op.remove(watchbell::store::keys::retained(&name)),
    }
}

fn check(store: &Store, model: &BTreeMap<u8, usize>) {
    let mut found = BTreeMap::new();
    for row in store.rows::<(u8, String)>(Table::Memory) {
        let (row, text) = row.unwrap();
        assert!(text.bytes().all(|byte| byte == b'a' + row));
        assert_eq!(found.insert(row, text.len()), None, "once");
    }
    let saved = store.saved();
    assert_eq!(saved.unreadable, Vec::<String>::new());
    for one in saved.retained {
        let row: u8 = one.topic.as_str().rsplit_once('/').unwrap().1.parse().unwrap();
        assert!(one.payload.iter().all(|byte| *byte == b'a' + row));
        assert_eq!(found.insert(row, one.payload.len()), None, "once");
    }
    assert_eq!(&found, model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn rows_of_any_size_are_found_whole_and_leave_nothing_behind(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let mut store = open(directory.path());
        let mut model = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(writes) => {
                    let mut op = Op::new();
                    for (row, size) in writes {
                        write(&mut op, row, size);
                        match size {
                            Some(size) => drop(model.insert(row, size)),
                            None => drop(model.remove(&row)),
                        }
                    }
                    runtime().block_on(store.commit(vec![op])).unwrap();
                }
                Step::Close => {
                    close(&store);
                    drop(store);
                    store = open(directory.path());
                }
            }
            check(&store, &model);
        }
        let mut op = Op::new();
        model.keys().for_each(|row| write(&mut op, *row, None));
        runtime().block_on(store.commit(vec![op])).unwrap();
        check(&store, &BTreeMap::new());
        close(&store);
        drop(store);
        prop_assert_eq!(blobs(directory.path()), 0);
        // What is left says which format it is, and that large rows were looked for.
        prop_assert_eq!(parts_and_rows(directory.path()), (0, 2));
    }
}

#[test]
fn a_row_that_is_replaced_while_it_is_read_is_read_as_it_was_or_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let ended = AtomicBool::new(false);
    let key = b"row";
    std::thread::scope(|scope| {
        let readers = [0, 1].map(|_| {
            let (store, ended) = (&store, &ended);
            scope.spawn(move || {
                let mut read = 0;
                while !ended.load(Ordering::Acquire) || read == 0 {
                    for row in store.rows::<(usize, String)>(Table::Engine) {
                        let (size, text) = row.unwrap();
                        assert_eq!(text.len(), size);
                        read += 1;
                    }
                    if let Some((size, text)) =
                        store.row::<(usize, String)>(Table::Engine, 0, key).unwrap()
                    {
                        assert_eq!(text.len(), size);
                    }
                }
            })
        });
        for round in 0..150 {
            let size = [20_000, 10, 4000, 500_000][round % 4];
            let mut op = Op::new();
            op.put_row(Table::Engine, 0, key, &(size, "x".repeat(size)));
            runtime().block_on(store.commit(vec![op])).unwrap();
        }
        ended.store(true, Ordering::Release);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

/// A retained message in one piece, made from a small one.
fn in_one_piece(small: &[u8], topic: &str, payload: usize) -> Vec<u8> {
    let length = u32::from_be_bytes(small[1..5].try_into().unwrap()) as usize;
    let mut json: serde_json::Value = serde_json::from_slice(&small[5..5 + length]).unwrap();
    json["topic"] = topic.into();
    let json = serde_json::to_vec(&json).unwrap();
    let mut value = vec![1];
    value.extend(u32::try_from(json.len()).unwrap().to_be_bytes());
    value.extend(json);
    value.extend(vec![b'x'; payload]);
    value
}

#[test]
fn large_rows_of_an_older_program_are_read_and_taken_apart() {
    let directory = tempfile::tempdir().unwrap();
    let key = |topic: &str| [b"t\0", topic.as_bytes()].concat();
    let long = format!("long/{}", "t".repeat(5000));
    let store = open(directory.path());
    let mut op = Op::new();
    op.put_retained(&publish("small", vec![b'x'; 10]));
    runtime().block_on(store.commit(vec![op])).unwrap();
    close(&store);
    drop(store);
    let db = raw(directory.path());
    let small = db.get(key("small")).unwrap().unwrap();
    for (topic, payload) in [("larger", 50_000), (&*long, 7), ("a second", 9000)] {
        db.insert(key(topic), in_one_piece(&small, topic, payload)).unwrap();
    }
    db.remove(b"M\0parts").unwrap();
    drop(db);

    let store = open(directory.path());
    let sizes = |store: &Store| {
        let saved = store.saved();
        assert_eq!(saved.unreadable, Vec::<String>::new());
        let sizes = saved.retained.iter().map(|one| (one.topic.as_str().len(), one.payload.len()));
        sizes.collect::<Vec<_>>()
    };
    // In the order of the keys.
    let expected = |second, larger, of_long, small| {
        [(8, second), (6, larger), (long.len(), of_long), (5, small)]
    };
    assert_eq!(sizes(&store), expected(9000, 50_000, 7, 10));
    close(&store);
    drop(store);
    let db = raw(directory.path());
    for item in db.iter() {
        let (key, value) = item.unwrap();
        assert!(key.len() <= 192 && value.len() <= ROW_BYTES_MAX, "{} {}", key.len(), value.len());
    }
    // The older program again, beside rows that are in parts now: what it wrote last counts.
    db.insert(key(&long), in_one_piece(&small, &long, 8)).unwrap();
    db.insert(key("a second"), in_one_piece(&small, "a second", 20)).unwrap();
    drop(db);
    let store = open(directory.path());
    assert_eq!(sizes(&store), expected(20, 50_000, 8, 10));
    let mut op = Op::new();
    for topic in ["small", "larger", "a second", &long] {
        op.remove(watchbell::store::keys::retained(topic));
    }
    runtime().block_on(store.commit(vec![op])).unwrap();
    assert_eq!(sizes(&store), []);
    close(&store);
    drop(store);
    assert_eq!(parts_and_rows(directory.path()), (0, 2));
}

#[test]
fn parts_that_a_crash_left_without_a_row_are_deleted_by_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let mut op = Op::new();
    for (row, size) in [(0_u8, 500_000), (1, 9000), (2, 9000)] {
        op.put_row(Table::Engine, 0, &[row], &(row, "x".repeat(size)));
    }
    runtime().block_on(store.commit(vec![op])).unwrap();
    close(&store);
    drop(store);
    let (parts, rows) = parts_and_rows(directory.path());
    assert_eq!(rows, 2 + 3);
    assert!(parts > 500_000 / PART_BYTES, "{parts}");

    // As if the power had failed before the last batch, and after it before old parts were deleted.
    let db = raw(directory.path());
    db.remove([b'y', 0, 0]).unwrap();
    db.insert([b'y', 0, 1], &b"\x01[1,\"small\"]"[..]).unwrap();
    drop(db);
    let store = open(directory.path());
    let found: Result<Vec<(u8, String)>, _> = store.rows(Table::Engine).collect();
    let found: Vec<_> = found.unwrap().into_iter().map(|(row, text)| (row, text.len())).collect();
    assert_eq!(found, [(1, 5), (2, 9000)]);
    close(&store);
    drop(store);
    assert_eq!(parts_and_rows(directory.path()), (9000_usize.div_ceil(PART_BYTES), 2 + 2));
}

#[test]
fn the_largest_rows_that_the_limits_allow_make_no_blob() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open(directory.path());
    let text = |nth: usize, size: usize| {
        char::from(b'a' + u8::try_from(nth % 26).unwrap()).to_string().repeat(size)
    };
    for round in 0..4 {
        let size = |largest: usize| if round == 2 { largest / 3 } else { largest - round };
        let mut ops = Vec::new();
        for neighbour in 0..16_usize {
            // `broker.packet_bytes_max` and `topic_bytes_max`: the default, and the most.
            for (topic, bytes) in [(20, 1 << 20), (512, 1 << 20), (65_000, 100)] {
                let topic = format!("{}{neighbour:02}", text(topic, topic));
                let mut op = Op::new();
                op.put_retained(&publish(&topic, text(round, size(bytes)).into_bytes()));
                ops.push(op);
            }
            let mut op = Op::new();
            let body = u64::try_from(16 * round + neighbour).unwrap();
            op.put_body(body, &publish("queued", text(round, size(1 << 20)).into_bytes()));
            ops.push(op);
            // A window's points, `previous` payloads, and a text.
            for (table, bytes) in
                [(Table::Memory, 400_000), (Table::Instance, 1 << 20), (Table::Telling, 9000)]
            {
                let mut op = Op::new();
                let place = u8::try_from(neighbour % 2).unwrap();
                op.put_row(
                    table,
                    place,
                    &[u8::try_from(neighbour).unwrap()],
                    &text(round, size(bytes)),
                );
                ops.push(op);
            }
            let mut message =
                super::store::message(u64::try_from(neighbour).unwrap(), Status::Queued);
            message.content.text = text(round, size(64_000)).into();
            let mut op = Op::new();
            op.put_message(&message);
            ops.push(op);
        }
        let mut op = Op::new();
        op.put_retained(&publish("one", text(round, size(8 << 20)).into_bytes()));
        ops.push(op);
        runtime().block_on(store.commit(ops)).unwrap();
        assert_eq!(blobs(directory.path()), 0, "round {round}");
        if round == 1 {
            close(&store);
            drop(store);
            store = open(directory.path());
        }
    }
    // Pages are put together again and again where small rows stand among large ones.
    for round in 0..60_usize {
        let mut op = Op::new();
        for neighbour in 0..16_u8 {
            let bytes = [ROW_BYTES_MAX - 3, 30, 9000][(round + usize::from(neighbour)) % 3];
            op.put_row(Table::Engine, 0, &[neighbour], &text(round, bytes));
        }
        runtime().block_on(store.commit(vec![op])).unwrap();
    }
    assert_eq!(blobs(directory.path()), 0);
    let saved = store.saved();
    assert_eq!(saved.unreadable, Vec::<String>::new());
    assert_eq!((saved.retained.len(), saved.bodies.len()), (3 * 16 + 1, 4 * 16));
    for table in [Table::Memory, Table::Instance, Table::Telling, Table::Engine] {
        assert_eq!(store.rows::<String>(table).filter(Result::is_ok).count(), 16);
    }
    close(&store);
    drop(store);
    drop(open(directory.path()));
    assert_eq!(blobs(directory.path()), 0);
}
