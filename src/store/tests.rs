//! Damage, and what becomes of it: the real store, spoilt on purpose.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::keys::Table;
use super::{Config, MessageFilter, Op, OpenError, Store, keys, mark, offline, open};
use crate::clock::Timestamp;
use crate::model::{
    Address, AlertId, AlertState, Channel, Content, IdSource, Message, MessageId, Severity, Status,
};
use crate::telemetry::Metrics;

const MESSAGES: u64 = 1_500;

fn message(number: u64) -> Message {
    let now = Timestamp::from_millis(1_790_000_000_000 + i64::try_from(number).expect("small"));
    let address = Address::Phone("+4915550100001".parse().expect("a number"));
    let alert = AlertId::next(&mut IdSource::new(number), now, "rule", &number.to_string());
    let json = serde_json::json!({
        "id": MessageId::derive(alert, AlertState::Firing, Channel::Sms, &address),
        "channel": Channel::Sms, "address": address,
        "severity": Severity::Critical,
        "content": Content { title: None, text: format!("text {number}").into(), template: None },
        "created_at": now, "expires_at": now, "status": Status::Queued, "due_at": now,
        "updated_at": now, "attempt_count": 0, "attempts": [],
    });
    serde_json::from_value(json).expect("a message")
}

fn try_open(directory: &Path, metrics: &Metrics) -> Store {
    open_with(directory, &Config::default(), metrics)
}

fn open_with(directory: &Path, config: &Config, metrics: &Metrics) -> Store {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match Store::open(directory, config, metrics) {
            // sled's own threads hold its lock a moment longer than its handles.
            Err(OpenError::InUse(_)) if Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            opened => return opened.expect("opens"),
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

/// A store with many messages, closed in order.
fn full() -> tempfile::TempDir {
    full_with(&Config::default())
}

fn full_with(config: &Config) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open_with(dir.path(), config, &Metrics::new());
    block_on(async {
        for first in (0..MESSAGES).step_by(50) {
            let ops = (first..first + 50).map(|number| {
                let mut op = Op::new();
                op.put_new_message(&message(number));
                op
            });
            store.commit(ops.collect()).await.expect("committed");
        }
        store.close().await.expect("closed");
    });
    drop(store);
    wait_until_closed(dir.path());
    dir
}

fn wait_until_closed(directory: &Path) {
    while open::refuse_if_in_use(directory).is_err() {
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn spoil(directory: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = directory.join("store/db");
    let mut bytes = fs::read(&path).expect("read");
    change(&mut bytes);
    fs::write(&path, bytes).expect("written");
}

fn texts(store: &Store) -> BTreeSet<String> {
    let all = usize::try_from(MESSAGES).expect("small") + 10;
    let messages = store.messages(&MessageFilter::default(), None, all).expect("readable");
    messages.iter().map(|message| message.content.text.to_string()).collect()
}

fn kept(directory: &Path) -> usize {
    let names = fs::read_dir(directory).expect("read").flatten();
    names.filter(|one| one.file_name().to_string_lossy().starts_with("store.damaged-")).count()
}

#[test]
fn a_store_that_is_gone_was_once_an_empty_one() {
    let dir = full();
    fs::remove_file(dir.path().join("store/db")).expect("deleted");
    let metrics = Metrics::new();
    let store = try_open(dir.path(), &metrics);
    assert_eq!(texts(&store).len(), 0);
    assert!(metrics.store_commits_lost.get() >= 30, "{}", metrics.store_commits_lost.get());
    let problems = store.problems().join("\n");
    assert!(problems.contains("the store was gone (30 commits"), "{problems}");
    assert_eq!(kept(dir.path()), 1, "what was left is kept");
    block_on(store.close()).expect("closed");
    drop(store);
    // The next start says it too, until somebody has seen it, and raises no new alarm.
    let metrics = Metrics::new();
    let store = try_open(dir.path(), &metrics);
    assert_eq!(store.problems().len(), 1);
    assert_eq!(metrics.store_commits_lost.get(), 0);
    fs::remove_file(open::notes_path(dir.path())).expect("deleted");
    block_on(store.close()).expect("closed");
    drop(store);
    assert_eq!(try_open(dir.path(), &Metrics::new()).problems(), Vec::<String>::new());
}

/// sled takes a file of zeros for an empty store, and the start said that "the end" of it was missing.
#[test]
fn a_store_of_zeros_is_a_store_that_is_gone() {
    let dir = full();
    spoil(dir.path(), |bytes| bytes.fill(0));
    let store = try_open(dir.path(), &Metrics::new());
    let problems = store.problems().join("\n");
    assert!(problems.contains("the store was gone (30 commits"), "{problems}");
    assert!(problems.contains("store restore BACKUP"), "{problems}");
    assert_eq!(kept(dir.path()), 1, "what was left is kept");
}

#[test]
fn half_a_file_is_said_and_what_it_holds_is_saved() {
    let dir = full();
    spoil(dir.path(), |bytes| bytes.truncate(bytes.len() / 2));
    let metrics = Metrics::new();
    let store = try_open(dir.path(), &metrics);
    let saved = texts(&store).len();
    assert!(saved > 100 && saved < 1_500, "{saved}");
    assert!(metrics.store_commits_lost.get() > 0);
    let problems = store.problems().join("\n");
    assert!(
        problems.contains("was repaired") && problems.contains("missing at the end"),
        "{problems}"
    );
    assert_eq!(kept(dir.path()), 1);
}

#[test]
fn a_hundred_flipped_bits_cost_no_message() {
    let dir = full();
    let mut place = 12_345_u64;
    spoil(dir.path(), |bytes| {
        for _ in 0..100 {
            place = place
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = usize::try_from((place >> 20) % bytes.len() as u64).expect("small");
            bytes[at] ^= 1 << (place >> 61);
        }
    });
    let store = try_open(dir.path(), &Metrics::new());
    let there = texts(&store);
    // Two bits in one message of the log are more than its checksum can tell apart.
    assert!(there.len() as u64 >= MESSAGES - 40, "{}", there.len());
    assert!(!store.problems().is_empty());
}

/// sled takes a segment whose head it cannot read for one that nobody uses: the start after one flipped
/// bit there had none of 3,000 messages, kept nothing aside, and wrote over what a repair would have read.
#[test]
fn a_flipped_bit_in_the_head_of_a_segment_costs_no_message() {
    let config = Config { segment_bytes: 256 << 10, ..Config::default() };
    let dir = full_with(&config);
    let whole = fs::read(dir.path().join("store/db")).expect("read");
    let snapshots = super::salvage::snapshots(&dir.path().join("store"));
    let heads: Vec<usize> = (0..whole.len()).step_by(config.segment_bytes).collect();
    assert!(heads.len() > 3, "{heads:?}");
    for (nth, head) in heads.iter().enumerate() {
        let dir_of_one = tempfile::tempdir().expect("a directory");
        let path = dir_of_one.path().join("store");
        fs::create_dir(&path).expect("made");
        fs::copy(dir.path().join("store/conf"), path.join("conf")).expect("copied");
        fs::copy(dir.path().join("store.mark"), dir_of_one.path().join("store.mark"))
            .expect("copied");
        // With what sled remembers of its log, and without.
        for snapshot in snapshots.iter().filter(|_| nth % 2 == 0) {
            fs::copy(snapshot, path.join(snapshot.file_name().expect("a name"))).expect("copied");
        }
        let mut bytes = whole.clone();
        let is_used = bytes[*head..].iter().take(config.segment_bytes).any(|byte| *byte != 0);
        bytes[head + [0, 5, 13][nth % 3]] ^= 0x10;
        fs::write(path.join("db"), bytes).expect("written");
        let store = open_with(dir_of_one.path(), &config, &Metrics::new());
        assert_eq!(texts(&store).len() as u64, MESSAGES, "the head at {head}");
        let is_said = !store.problems().is_empty() && kept(dir_of_one.path()) == 1;
        assert!(is_said || nth % 2 == 0 || !is_used, "the head at {head}: {:?}", store.problems());
    }
}

/// A bit that is wrong in the head of one of the first messages was mended, and not taken for damage:
/// sled, which mends nothing, took it for the end of everything.
#[test]
fn a_flipped_bit_at_the_beginning_costs_no_message() {
    let whole = full();
    for at in (0..120).step_by(7) {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("store")).expect("made");
        for file in ["store/conf", "store/db", "store.mark"] {
            fs::copy(whole.path().join(file), dir.path().join(file)).expect("copied");
        }
        spoil(dir.path(), |bytes| bytes[at] ^= 1 << (at % 8));
        let store = try_open(dir.path(), &Metrics::new());
        assert_eq!(texts(&store).len() as u64, MESSAGES, "the bit at {at}");
        assert!(!store.problems().is_empty() && kept(dir.path()) == 1, "the bit at {at}");
    }
}

#[test]
fn a_damaged_end_is_said() {
    let dir = full();
    spoil(dir.path(), |bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("something");
        bytes[end - 20_000..].fill(0);
    });
    let metrics = Metrics::new();
    let store = try_open(dir.path(), &metrics);
    assert!(texts(&store).len() > 100);
    assert!(metrics.store_commits_lost.get() > 0);
    assert!(store.problems().join("\n").contains("missing"), "{:?}", store.problems());
}

#[test]
fn a_damaged_snapshot_is_made_anew_and_costs_nothing() {
    let dir = full();
    drop(try_open(dir.path(), &Metrics::new()));
    wait_until_closed(dir.path());
    for snapshot in super::salvage::snapshots(&dir.path().join("store")) {
        fs::write(snapshot, b"nonsense").expect("written");
    }
    let found = offline::verify(dir.path(), &Config::default()).expect("verified");
    assert!(found.problem_count == 1 && !found.needs_repair, "{:?}", found.problems);
    let store = try_open(dir.path(), &Metrics::new());
    assert_eq!(texts(&store).len() as u64, MESSAGES);
    assert_eq!(store.problems(), Vec::<String>::new());
}

#[test]
fn a_page_that_cannot_be_read_was_read_again_and_again_for_ever() {
    let dir = full();
    // Behind a snapshot, sled looks at a page only when it wants it.
    for _ in 0..2 {
        drop(try_open(dir.path(), &Metrics::new()));
        wait_until_closed(dir.path());
    }
    let text = b"text 700\"";
    spoil(dir.path(), |bytes| {
        let places: Vec<usize> = bytes
            .windows(text.len())
            .enumerate()
            .filter(|(_, w)| w == text)
            .map(|(at, _)| at)
            .collect();
        for at in places {
            bytes[at..at + 5].copy_from_slice(b"XXXXX");
        }
    });
    let store = try_open(dir.path(), &Metrics::new());
    let there = texts(&store);
    assert!(there.len() as u64 >= MESSAGES - 40, "{}", there.len());
    assert!(there.contains("text 1499") && there.contains("text 0"));
    assert!(!store.problems().is_empty());
    assert_eq!(kept(dir.path()), 1);
}

#[test]
fn a_row_that_cannot_be_read_hides_no_other() {
    let dir = full();
    let store = try_open(dir.path(), &Metrics::new());
    let bad = message(700).id;
    let mut op = Op::new();
    op.put(keys::message(Table::Outbox, bad), &"no message");
    for table in [Table::Device, Table::Ban] {
        op.put([&[table as u8, 0], &b"a"[..]].concat(), &"nothing of the kind");
    }
    block_on(store.commit(vec![op])).expect("committed");
    assert_eq!(texts(&store).len() as u64, MESSAGES - 1);
    assert_eq!(store.outbox().flatten().count() as u64, MESSAGES - 1);
    assert_eq!(store.devices().expect("readable").len(), 0);
    assert_eq!(store.bans(Timestamp::default()).expect("readable").len(), 0);
    let mut count = 0;
    store.each_row(Table::Instance, |_: serde_json::Value| count += 1);
    assert!(store.message(bad).is_err());
    let problems = store.problems();
    assert!(problems.len() == 1 && problems[0].starts_with("3 rows"), "{problems:?}");
    let verified = store.verify();
    assert_eq!((verified.rows["outbox"], verified.problem_count), (MESSAGES - 1, 3));
}

#[test]
fn a_process_that_was_killed_raises_no_alarm() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = try_open(dir.path(), &Metrics::new());
    let copy = tempfile::tempdir().expect("a directory");
    for number in 0..40 {
        let mut op = Op::new();
        op.put_new_message(&message(number));
        block_on(store.commit(vec![op])).expect("committed");
        if number % 10 == 9 {
            // What kill -9 would leave: the mark first, because it must never be ahead.
            let to = copy.path().join(number.to_string());
            fs::create_dir_all(to.join("store/blobs")).expect("made");
            for name in ["store.mark", "store/conf", "store/db"] {
                fs::copy(dir.path().join(name), to.join(name)).expect("copied");
            }
            let killed = try_open(&to, &Metrics::new());
            assert_eq!(killed.problems(), Vec::<String>::new(), "{number}");
            assert_eq!(texts(&killed).len() as u64, number + 1);
        }
    }
    block_on(store.close()).expect("closed");
    let said = mark::read(dir.path()).expect("read").expect("there");
    assert_eq!(said.commit, 40, "and closing in order leaves a mark that says all");
}

#[test]
fn what_was_exported_and_imported_is_exported_as_it_was() {
    let (from, to) = (full(), tempfile::tempdir().expect("a directory"));
    let config = Config::default();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let rows = offline::export(from.path(), &mut first, &config).expect("exported");
    assert_eq!(rows, MESSAGES);
    let file = to.path().join("export.jsonl");
    fs::write(&file, &first).expect("written");
    let (counts, kept) = offline::import(to.path(), &file, false, &config).expect("imported");
    assert_eq!((counts["outbox"], kept), (MESSAGES, None));
    wait_until_closed(to.path());
    offline::export(to.path(), &mut second, &config).expect("exported");
    assert!(first == second);
    wait_until_closed(to.path());
    let verified = offline::verify(to.path(), &config).expect("verified");
    assert_eq!(verified.problems, Vec::<String>::new());
    wait_until_closed(to.path());

    // A store that is there is not overwritten without a word, and kept with one.
    let refused = offline::import(to.path(), &file, false, &config).expect_err("there is one");
    assert!(refused.to_string().contains("--replace"), "{refused}");
    wait_until_closed(to.path());
    let (_, kept) = offline::import(to.path(), &file, true, &config).expect("imported");
    assert!(kept.expect("the old one is kept").join("db").exists());

    // Bad lines: all at once, and nothing is imported.
    let mut lines: Vec<&str> = std::str::from_utf8(&first).expect("text").lines().collect();
    lines[3] = "{";
    lines[7] = r#"{"table":"outbox","key":"00","json":{}}"#;
    lines.pop();
    fs::write(&file, lines.join("\n")).expect("written");
    let empty = tempfile::tempdir().expect("a directory");
    let error = offline::import(empty.path(), &file, false, &config).expect_err("bad").to_string();
    assert!(error.contains(".jsonl:4: ") && error.contains(".jsonl:8: "), "{error}");
    assert!(!empty.path().join("store").exists());
}

#[test]
fn a_copy_of_a_store_that_is_written_is_the_store_after_one_of_its_commits() {
    let dir = full();
    let store = try_open(dir.path(), &Metrics::new());
    let target = dir.path().join("backup");
    let config = Config::default();
    block_on(async {
        let mut copy = store.copy();
        let mut writer = offline::BackupWriter::new(&target, &config).expect("made");
        let mut pieces = 0;
        loop {
            let piece = copy.next().await.expect("a piece");
            let (lines, _) = piece.to_lines();
            for line in lines.lines() {
                writer.put_line(line).expect("a line");
            }
            pieces += 1;
            if piece.is_last {
                break;
            }
            // Messages end meanwhile: each is in exactly one table in the copy.
            let mut op = Op::new();
            for number in [1, 500, 900, 1400] {
                let mut ended = message(number + pieces);
                ended.status = Status::Sent;
                op.put_message(&ended);
            }
            store.commit(vec![op]).await.expect("committed");
        }
        assert!(pieces > 1);
        writer.finish(1).expect("finished");
        // A second one takes the place of the first.
        let (mut old, mut new) = (store.copy(), store.copy());
        old.next().await.expect("a piece");
        new.next().await.expect("a piece");
        assert!(old.next().await.is_err());
    });
    wait_until_closed(&target);
    let verified = offline::verify(&target, &config).expect("verified");
    assert_eq!(verified.problems, Vec::<String>::new());
    assert_eq!(verified.rows["outbox"] + verified.rows["history"], MESSAGES);
    wait_until_closed(&target);
    let restored = tempfile::tempdir().expect("a directory");
    let (counts, _) = offline::restore(restored.path(), &target, false, &config).expect("restored");
    assert_eq!(counts["outbox"] + counts["history"], MESSAGES);
    wait_until_closed(restored.path());
    assert_eq!(try_open(restored.path(), &Metrics::new()).problems(), Vec::<String>::new());
}

#[test]
fn compacting_keeps_every_row() {
    let dir = full();
    let config = Config::default();
    let store = try_open(dir.path(), &Metrics::new());
    block_on(async {
        // What is deleted again leaves its room behind.
        for first in (MESSAGES..4 * MESSAGES).step_by(50) {
            let (mut put, mut gone) = (Op::new(), Op::new());
            for number in first..first + 50 {
                put.put_new_message(&message(number));
                gone.remove(keys::message(Table::Outbox, message(number).id));
            }
            store.commit(vec![put]).await.expect("committed");
            store.commit(vec![gone]).await.expect("committed");
        }
        store.close().await.expect("closed");
    });
    drop(store);
    wait_until_closed(dir.path());
    // What a kill in the middle of an older program's `compact` has left.
    let left = ["store.compacted-20261201-031500", "store.compacting", "store.new"];
    for name in left {
        fs::create_dir(dir.path().join(name)).expect("made");
    }
    let compacted = offline::compact(dir.path(), &config).expect("compacted");
    assert!(compacted.is_replaced && compacted.after < compacted.before, "{compacted:?}");
    for name in left {
        assert!(!dir.path().join(name).exists(), "{name}");
    }
    wait_until_closed(dir.path());
    let again = offline::compact(dir.path(), &config).expect("compacted");
    assert!(!again.is_replaced && again.before == compacted.after, "{again:?}");
    wait_until_closed(dir.path());
    let store = try_open(dir.path(), &Metrics::new());
    assert_eq!(texts(&store).len() as u64, MESSAGES);
    assert_eq!(store.problems(), Vec::<String>::new());
}

#[test]
fn a_repair_says_what_it_saved_and_keeps_the_damaged_files() {
    let dir = full();
    let config = Config::default();
    spoil(dir.path(), |bytes| {
        let at = bytes.len() / 3;
        bytes[at..at + 512].fill(0xEE);
    });
    let found = offline::verify(dir.path(), &config).expect("verified");
    assert!(found.problem_count > 0 && found.needs_repair && found.is_salvage);
    wait_until_closed(dir.path());
    let repaired = offline::repair(dir.path(), &config).expect("repaired");
    assert!(repaired.kept.join("db").exists());
    assert!(repaired.rows["outbox"] >= MESSAGES - 40, "{}", repaired.words());
    assert_eq!(repaired.damaged, 1, "{}", repaired.words());
    assert_eq!(found.rows["outbox"], repaired.rows["outbox"], "a look says what a repair saves");
    let note = fs::read_to_string(open::notes_path(dir.path())).expect("it is noted");
    assert!(note.contains("repaired by hand: "), "{note}");
    wait_until_closed(dir.path());
    let verified = offline::verify(dir.path(), &config).expect("verified");
    assert_eq!(verified.problems, Vec::<String>::new());
}
