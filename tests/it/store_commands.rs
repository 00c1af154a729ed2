//! `watchbell store ...`, by the real binary: beside a running process, without one, and used wrongly.

use std::fs;

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Place, QUICK};
use crate::process::{Process, Said, command};

/// What a command said, with its exit code, must hold these.
fn check(said: &Said, code: i32, parts: &[&str]) {
    let text = format!("{}{}", said.out, said.err);
    assert_eq!(said.code, code, "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

/// A process that has told the virtual phone of two things.
async fn with_messages() -> Process {
    let process = Process::start(Place::new(QUICK)).await;
    for text in ["one", "two"] {
        process.api.send(json!({ "sms": "+4915550100001", "text": text })).await;
        process.api.message_that_is("delivered", text).await;
    }
    process
}

/// The same, stopped.
async fn stopped() -> Process {
    let mut process = with_messages().await;
    process.signal(Signal::TERM);
    assert!(process.ended().await.success());
    process
}

/// Damages the file.
fn spoil(place: &Place, change: impl FnOnce(&mut [u8])) {
    let path = place.path("data/store/db");
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_running_store_is_verified_copied_and_exported_and_not_changed() {
    let process = with_messages().await;
    let place = &process.place;
    check(&command(place, &["store", "verify"]).await, 0, &["history 2", "Nothing is wrong."]);
    check(&command(place, &["store", "backup", "copy"]).await, 0, &["history 2", "is verified"]);
    let again = command(place, &["store", "backup", "copy"]).await;
    check(&again, 1, &["copy: it exists already; name a directory that does not exist yet"]);
    assert!(!again.err.contains("--replace"), "{again:?}");
    check(&command(place, &["store", "export", "all.jsonl"]).await, 0, &["all.jsonl: ", " rows"]);
    check(&command(place, &["store", "export", "all.jsonl"]).await, 1, &["all.jsonl: ", "exists"]);
    for arguments in [
        &["store", "repair"] as &[&str],
        &["store", "compact"],
        &["store", "restore", "copy", "--replace"],
        &["store", "import", "all.jsonl", "--replace"],
    ] {
        let said = command(place, arguments).await;
        check(&said, 1, &["watchbell is running with data directory", "stop it first"]);
    }
}

#[tokio::test]
async fn a_backup_or_an_export_comes_back_only_where_nothing_is_overwritten() {
    let process = stopped().await;
    let place = &process.place;
    check(&command(place, &["store", "backup", "copy"]).await, 0, &["history 2"]);
    check(&command(place, &["store", "export", "all.jsonl"]).await, 0, &["all.jsonl: "]);
    for arguments in [["store", "restore", "copy"], ["store", "import", "all.jsonl"]] {
        let said = command(place, &arguments).await;
        check(&said, 1, &["there is a store already; --replace keeps it beside the new one"]);
        let replace = [arguments[0], arguments[1], arguments[2], "--replace"];
        let said = command(place, &replace).await;
        check(&said, 0, &["history 2", "the store that was there is kept in data/store.replaced-"]);
    }
    let own = command(place, &["store", "restore", "data", "--replace"]).await;
    check(&own, 1, &["data: that is the data directory itself"]);
    let none = command(place, &["store", "restore", "rules", "--replace"]).await;
    check(&none, 1, &["rules/store: there is no store\n"]);
    place.write("cut.jsonl", "{\"watchbell\":\"store\",\"format\":\"1\"}\nnonsense\n");
    let cut = command(place, &["store", "import", "cut.jsonl", "--replace"]).await;
    check(&cut, 1, &["nothing was imported", "cut.jsonl:2: "]);
    check(&command(place, &["store", "verify"]).await, 0, &["history 2", "Nothing is wrong."]);
}

/// Verify said `0 rows can be read:` of a store of which a repair saved every row, and a repair by hand
/// left no word for whoever looks at `watchbell status` later.
#[tokio::test]
async fn what_a_repair_would_save_is_said_before_it_is_done_and_what_it_did_after() {
    let mut process = stopped().await;
    let mark = fs::read(process.place.path("data/store.mark")).unwrap();
    spoil(&process.place, |bytes| bytes[bytes.len() / 2] ^= 4);
    let found = command(&process.place, &["store", "verify"]).await;
    check(&found, 1, &["a repair would save ", "history 2", "; run `watchbell store repair`"]);
    assert!(!found.out.contains("can be read:"), "{found:?}");
    assert_eq!(fs::read(process.place.path("data/store.mark")).unwrap(), mark, "only looked at");
    let repaired = command(&process.place, &["store", "repair"]).await;
    check(&repaired, 0, &[" saved (", "kept in data/store.damaged-"]);
    assert!(!repaired.out.contains("1 rows") && !repaired.out.contains("1 damaged places"));
    check(&command(&process.place, &["store", "verify"]).await, 0, &["Nothing is wrong."]);

    process.restart().await;
    let status = process.done(&["status"]).await;
    assert!(status.contains("STORE: ") && status.contains("repaired by hand"), "{status}");
    // It is repaired: what is left is to look, and to take the note away.
    let said = command(&process.place, &["store", "verify"]).await;
    check(&said, 1, &["1 problem; a repair would mend nothing", "store.damage.txt is deleted"]);
}

#[tokio::test]
async fn where_there_was_a_store_its_absence_is_said_with_what_it_held() {
    let process = stopped().await;
    fs::remove_file(process.place.path("data/store/db")).unwrap();
    for arguments in [&["store", "verify"] as &[&str], &["store", "backup", "copy"]] {
        let said = command(&process.place, arguments).await;
        let parts = ["there is no store, and there was one", " commits until ", "restore BACKUP"];
        check(&said, 1, &parts);
    }
    let nothing = Place::new(QUICK);
    let said = command(&nothing, &["store", "verify"]).await;
    check(&said, 1, &["data/store: there is no store\n"]);
}

#[tokio::test]
async fn compacting_says_what_it_did_and_does_nothing_for_nothing() {
    let process = stopped().await;
    let first = command(&process.place, &["store", "compact"]).await;
    check(&first, 0, &["db: "]);
    let again = command(&process.place, &["store", "compact"]).await;
    check(&again, 0, &["if it were rewritten: it stays as it is"]);
    check(&command(&process.place, &["store", "verify"]).await, 0, &["history 2"]);
}
