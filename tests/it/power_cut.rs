//! Power cuts: the system calls of the real store at work are recorded, and replayed up to a cut at
//! which everything that no sync had covered is kept, dropped or torn. Whatever had been acknowledged
//! by then must be found.
//!
//! Strict on purpose: only fsync and fdatasync of a file make its contents durable (not
//! `sync_file_range`), only those of a directory the names in it; what they cover is what had been
//! done when they began. Names and contents that nothing covers live and die independently, by
//! sectors of 512 bytes.
//!
//! `TEST_SEED` repeats a run's choices, `TEST_SOAK=1` makes many more of them. Without strace there is
//! nothing to replay: `TEST_STRACE=required` makes that a failure.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use watchbell::model::Status;
use watchbell::store::keys::{self, Table};
use watchbell::store::{Config, MessageFilter, Op, Store};
use watchbell::telemetry::Metrics;

use super::large_rows::{publish, runtime};
use super::store::message;

/// What a recorded process gets: its directory, and what it is to do.
const DIRECTORY: &str = "TEST_POWER_CUT_DIRECTORY";
const FROM_COMMIT: &str = "TEST_POWER_CUT_FROM";
/// So many that segments are used again, several times.
const COMMITS: usize = 44;
const WORKERS: usize = 5;

// What is written: the same in the recorded process and in the one that checks.

/// What the commit with this number of a worker writes: rows and their sizes; `None` removes one.
fn commit(worker: usize, number: usize) -> Vec<(String, Option<usize>)> {
    let slot = number % 16;
    match worker {
        0 => (0..12).map(|nth| (format!("alert/{}", number * 12 + nth), Some(20))).collect(),
        1 => {
            let size = [20_000, 9_000, 200_000, 20_000, 40][number % 5];
            let gone = (number % 7 == 6).then(|| (format!("retained/{}", (slot + 3) % 16), None));
            let mut rows = vec![
                (format!("retained/{slot}"), Some(size)),
                (format!("retained/{}", (slot + 8) % 16), Some(20_000)),
                (format!("long/{}", number % 3), Some(3000)),
            ];
            rows.extend(gone);
            rows
        }
        2 => {
            let mut rows = vec![(format!("body/{number}"), Some(20_000))];
            rows.extend(number.checked_sub(17).map(|old| (format!("body/{old}"), None)));
            rows
        }
        3 => vec![
            (format!("window/{slot}"), Some(30_000)),
            (format!("previous/{slot}"), Some(if number % 4 == 3 { 100 } else { 9_000 })),
        ],
        _ => vec![(format!("text/{slot}"), Some(12_000))],
    }
}

fn fill(version: usize, size: usize) -> String {
    char::from(b'a' + u8::try_from(version % 26).unwrap()).to_string().repeat(size)
}

fn put(op: &mut Op, row: &str, version: usize, size: Option<usize>) {
    let (kind, number) = row.split_once('/').unwrap();
    let number: u8 = (number.parse::<usize>().unwrap() % 64).try_into().unwrap();
    let payload = |size| format!("{version} {}", fill(version, size)).into_bytes();
    let topic = if kind == "long" { format!("{row}/{}", "n".repeat(700)) } else { row.to_owned() };
    match (kind, size) {
        ("alert" | "text", Some(size)) => {
            let of_kind = if kind == "text" { 1_000_000 } else { 0 };
            let number: u64 = row.split_once('/').unwrap().1.parse().unwrap();
            let status = if version.is_multiple_of(2) { Status::Queued } else { Status::Sent };
            let mut message = message(number + of_kind, status);
            message.content.text = format!("{row} {version} {}", fill(version, size)).into();
            op.put_message(&message);
        }
        ("retained" | "long", Some(size)) => op.put_retained(&publish(&topic, payload(size))),
        ("retained" | "long", None) => op.remove(keys::retained(&topic)),
        ("body", Some(size)) => {
            let number = row.split_once('/').unwrap().1.parse().unwrap();
            op.put_body(number, &publish(row, payload(size)));
        }
        ("body", None) => op.remove(keys::body(row.split_once('/').unwrap().1.parse().unwrap())),
        ("window" | "previous", Some(size)) => {
            let table = if kind == "window" { Table::Memory } else { Table::Instance };
            op.put_row(table, number, row.as_bytes(), &(row, version, fill(version, size)));
        }
        _ => unreachable!("no such row is taken out"),
    }
}

type Rows = BTreeMap<String, (usize, usize)>;

/// Rows, their versions and sizes after so many commits of a worker.
fn states(worker: usize) -> Vec<Rows> {
    let mut now = Rows::new();
    let mut states = vec![now.clone()];
    for number in 0..COMMITS {
        for (row, size) in commit(worker, number) {
            match size {
                Some(size) => drop(now.insert(row, (number, size))),
                None => drop(now.remove(&row)),
            }
        }
        states.push(now.clone());
    }
    states
}

fn worker_of(row: &str) -> usize {
    match row.split_once('/').unwrap().0 {
        "alert" => 0,
        "retained" | "long" => 1,
        "body" => 2,
        "window" | "previous" => 3,
        _ => 4,
    }
}

/// All rows that are in the store, by worker.
fn found(store: &Store) -> Result<Vec<Rows>, String> {
    let mut found = vec![Rows::new(); WORKERS];
    let mut take = |row: &str, version: usize, text: &str| {
        let right = text.chars().all(|c| fill(version, 1).starts_with(c));
        let before = found[worker_of(row)].insert(row.to_owned(), (version, text.len()));
        match (right, before) {
            (true, None) => Ok(()),
            (false, _) => Err(format!("{row}: the text of another version")),
            (_, Some(_)) => Err(format!("{row}: twice")),
        }
    };
    let saved = store.saved();
    if !saved.unreadable.is_empty() {
        return Err(format!("unreadable: {:?}", saved.unreadable));
    }
    for one in saved.retained.iter().chain(saved.bodies.iter().map(|(_, body)| body)) {
        let row = one.topic.as_str().splitn(3, '/').take(2).collect::<Vec<_>>().join("/");
        let text = std::str::from_utf8(&one.payload).map_err(|error| error.to_string())?;
        let (version, text) = text.split_once(' ').ok_or("a payload")?;
        take(&row, version.parse().map_err(|_| "a version")?, text)?;
    }
    for table in [Table::Memory, Table::Instance] {
        for row in store.rows::<(String, usize, String)>(table) {
            let (row, version, text) = row.map_err(|error| error.to_string())?;
            take(&row, version, &text)?;
        }
    }
    let messages = store.messages(&MessageFilter::default(), None, usize::MAX);
    for message in messages.map_err(|error| error.to_string())? {
        let text = &*message.content.text;
        let [row, version, text] = text.splitn(3, ' ').collect::<Vec<_>>()[..] else {
            return Err("a text".to_owned());
        };
        take(row, version.parse().map_err(|_| "a version")?, text)?;
    }
    Ok(found)
}

/// The work that is recorded: does nothing unless it is told where.
#[test]
fn work_under_the_recorder() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let from: usize = std::env::var(FROM_COMMIT).unwrap().parse().unwrap();
    let config = config(1 << 20);
    let store = Store::open(&directory.join("data"), &config, &Metrics::new()).unwrap();
    let acks = File::options().create(true).append(true).open(directory.join("acks")).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (store, mut acks) = (&store, &acks);
            scope.spawn(move || {
                // A process goes on where the one before it ended, which may have written more.
                for number in from..(from + COMMITS / 2).min(COMMITS) {
                    let mut op = Op::new();
                    for (row, size) in commit(worker, number) {
                        put(&mut op, &row, number, size);
                    }
                    runtime().block_on(store.commit(vec![op])).unwrap();
                    acks.write_all(format!("{worker} {}\n", number + 1).as_bytes()).unwrap();
                }
            });
        }
    });
    // Killed: nothing is closed.
    std::process::exit(0);
}

// The recorder.

type Inode = usize;

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, data: Vec<u8> },
    Truncate(u64),
    Link { name: String, inode: Inode },
    Unlink { name: String },
    Rename { from: String, to: String },
    Exchange { one: String, other: String },
}

#[derive(Clone, Debug)]
enum Event {
    Change(Inode, Change),
    /// Covers the changes of the inode that had been made when it began.
    Sync {
        inode: Inode,
        began: usize,
    },
    Acknowledged {
        worker: usize,
        commits: usize,
    },
}

/// Files and directories as a running system sees them.
#[derive(Default)]
struct Recording {
    directories: HashMap<Inode, BTreeMap<String, Inode>>,
    inodes: usize,
    /// With their times: lines of what strace has written. In order once all of it is read.
    events: Vec<(usize, Event)>,
    /// The present time.
    now: usize,
}

const ROOT: Inode = 0;

enum Open {
    File { inode: Inode, at: u64 },
    Acks,
}

impl Recording {
    /// Begins with what is on disk.
    fn of(directory: &Path) -> (Self, Disk) {
        let mut recording = Self::default();
        recording.new_inode(true);
        let mut disk = Disk::default();
        disk.directories.insert(ROOT, BTreeMap::new());
        recording.adopt(ROOT, directory, &mut disk);
        (recording, disk)
    }

    fn adopt(&mut self, inode: Inode, directory: &Path, disk: &mut Disk) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let is_directory = entry.file_type().unwrap().is_dir();
            let new = self.new_inode(is_directory);
            self.directories.get_mut(&inode).unwrap().insert(name.clone(), new);
            disk.directories.get_mut(&inode).unwrap().insert(name, new);
            if is_directory {
                disk.directories.insert(new, BTreeMap::new());
                self.adopt(new, &entry.path(), disk);
            } else {
                disk.files.insert(new, fs::read(entry.path()).unwrap());
            }
        }
    }

    fn new_inode(&mut self, directory: bool) -> Inode {
        let inode = self.inodes;
        self.inodes += 1;
        if directory {
            self.directories.insert(inode, BTreeMap::new());
        }
        inode
    }

    fn change(&mut self, inode: Inode, change: Change) {
        if let Some(entries) = self.directories.get_mut(&inode) {
            apply_names(entries, &change);
        }
        self.events.push((self.now, Event::Change(inode, change)));
    }

    /// The directory and the name in it that a path means.
    fn place(&self, from: Inode, path: &str) -> Option<(Inode, String)> {
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let name = parts.pop()?.to_owned();
        let mut inode = from;
        for part in parts {
            inode = *self.directories.get(&inode)?.get(part)?;
        }
        self.directories.contains_key(&inode).then_some((inode, name))
    }

    fn find(&self, from: Inode, path: &str) -> Option<Inode> {
        match self.place(from, path) {
            Some((directory, name)) => self.directories[&directory].get(&name).copied(),
            None => path.trim_matches('/').is_empty().then_some(from),
        }
    }

    /// Adds what strace has written of one process.
    fn read(&mut self, trace: &Path, directory: &Path) {
        let root = directory.join("data").to_str().unwrap().to_owned();
        let acks = directory.join("acks").to_str().unwrap().to_owned();
        let mut open: HashMap<i64, Open> = HashMap::new();
        let mut unfinished: HashMap<String, (String, usize)> = HashMap::new();
        for line in BufReader::new(File::open(trace).unwrap()).lines() {
            self.now += 1;
            let line = line.unwrap();
            let (thread, call) = line.split_once(' ').unwrap();
            let call = call.trim_start();
            let (call, began) = if let Some(begin) = call.strip_suffix(" <unfinished ...>") {
                unfinished.insert(thread.to_owned(), (begin.to_owned(), self.now));
                continue;
            } else if call.starts_with("<... ") {
                let Some((begin, began)) = unfinished.remove(thread) else { continue };
                (begin + call.split_once(" resumed>").unwrap().1, began)
            } else {
                (call.to_owned(), self.now)
            };
            self.call(&call, began, &root, &acks, &mut open);
        }
        self.events.sort_by_key(|(at, _)| *at);
    }

    fn call(
        &mut self,
        call: &str,
        began: usize,
        root: &str,
        acks: &str,
        open: &mut HashMap<i64, Open>,
    ) {
        let Some((name, rest)) = call.split_once('(') else { return };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { return };
        let result: i64 = result.split(' ').next().unwrap().parse().unwrap_or(-1);
        if result < 0 {
            return;
        }
        let strings: Vec<Vec<u8>> = arguments.split('"').skip(1).step_by(2).map(unescape).collect();
        let numbers: Vec<&str> = arguments.trim_end().trim_end_matches(')').split(", ").collect();
        let descriptor: Option<i64> = numbers[0].parse().ok();
        // Where the path with this number leads: a directory that is open, and the rest of it.
        let path = |nth: usize, at: usize, open: &HashMap<i64, Open>| {
            let path = String::from_utf8(strings[nth].clone()).unwrap();
            match numbers
                .get(at)
                .and_then(|number| number.parse::<i64>().ok())
                .map(|fd| open.get(&fd))
            {
                Some(Some(Open::File { inode, .. })) => Some((*inode, path)),
                Some(_) => None,
                None if path == root => Some((ROOT, String::new())),
                None => Some((ROOT, path.strip_prefix(&format!("{root}/"))?.to_owned())),
            }
        };
        match name {
            "open" | "openat" => {
                open.remove(&result);
                if strings[0] == acks.as_bytes() {
                    open.insert(result, Open::Acks);
                    return;
                }
                let at = if name == "open" { usize::MAX } else { 0 };
                let Some((from, path)) = path(0, at, open) else { return };
                let inode = match self.find(from, &path) {
                    Some(inode) => inode,
                    None if arguments.contains("O_CREAT") => {
                        let (directory, name) = self.place(from, &path).unwrap();
                        let inode = self.new_inode(false);
                        self.change(directory, Change::Link { name, inode });
                        inode
                    }
                    None => panic!("{path} is open and was never made"),
                };
                if arguments.contains("O_TRUNC") {
                    self.change(inode, Change::Truncate(0));
                }
                open.insert(result, Open::File { inode, at: 0 });
            }
            "close" => drop(open.remove(&descriptor.unwrap())),
            "write" | "pwrite64" => match open.get_mut(&descriptor.unwrap()) {
                Some(Open::Acks) => {
                    let line = String::from_utf8(strings[0].clone()).unwrap();
                    let (worker, commits) = line.trim().split_once(' ').unwrap();
                    let worker = worker.parse().unwrap();
                    let commits = commits.parse().unwrap();
                    // Whoever it was told knew it from when the call began.
                    self.events.push((began, Event::Acknowledged { worker, commits }));
                }
                Some(Open::File { inode, at }) => {
                    let mut data = strings[0].clone();
                    data.truncate(usize::try_from(result).unwrap());
                    let inode = *inode;
                    let offset = if name == "write" {
                        *at += data.len() as u64;
                        *at - data.len() as u64
                    } else {
                        numbers.last().unwrap().parse().unwrap()
                    };
                    self.change(inode, Change::Write { offset, data });
                }
                None => {}
            },
            "ftruncate" => {
                if let Some(Open::File { inode, .. }) = open.get(&descriptor.unwrap()) {
                    self.change(*inode, Change::Truncate(numbers[1].parse().unwrap()));
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(Open::File { inode, .. }) = open.get(&descriptor.unwrap()) {
                    self.events.push((self.now, Event::Sync { inode: *inode, began }));
                }
            }
            "mkdir" | "mkdirat" => {
                let at = if name == "mkdir" { usize::MAX } else { 0 };
                let Some((from, path)) = path(0, at, open) else { return };
                if let Some((directory, name)) = self.place(from, &path) {
                    let inode = self.new_inode(true);
                    self.change(directory, Change::Link { name, inode });
                }
            }
            "unlink" | "unlinkat" | "rmdir" => {
                let at = if name == "unlinkat" { 0 } else { usize::MAX };
                let Some((from, path)) = path(0, at, open) else { return };
                let (directory, name) = self.place(from, &path).unwrap();
                self.change(directory, Change::Unlink { name });
            }
            "rename" | "renameat" | "renameat2" => {
                let (one_at, other_at) =
                    if name == "rename" { (usize::MAX, usize::MAX) } else { (0, 2) };
                let Some((one_from, one)) = path(0, one_at, open) else { return };
                let Some((other_from, other)) = path(1, other_at, open) else { return };
                let (directory, one) = self.place(one_from, &one).unwrap();
                let (other_directory, other) = self.place(other_from, &other).unwrap();
                assert_eq!(directory, other_directory, "all of ours stay in their directory");
                let change = if arguments.contains("RENAME_EXCHANGE") {
                    Change::Exchange { one, other }
                } else {
                    Change::Rename { from: one, to: other }
                };
                self.change(directory, change);
            }
            _ => {}
        }
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => byte - b'0',
        _ => byte - b'a' + 10,
    };
    text.as_bytes().chunks_exact(4).map(|hex| digit(hex[2]) * 16 + digit(hex[3])).collect()
}

fn apply_names(entries: &mut BTreeMap<String, Inode>, change: &Change) {
    match change {
        Change::Link { name, inode } => drop(entries.insert(name.clone(), *inode)),
        Change::Unlink { name } => drop(entries.remove(name)),
        Change::Rename { from, to } => {
            if let Some(inode) = entries.remove(from) {
                entries.insert(to.clone(), inode);
            }
        }
        Change::Exchange { one, other } => {
            if let (Some(first), Some(second)) =
                (entries.get(one).copied(), entries.get(other).copied())
            {
                entries.insert(one.clone(), second);
                entries.insert(other.clone(), first);
            }
        }
        Change::Write { .. } | Change::Truncate(_) => unreachable!("not of a directory"),
    }
}

fn apply_data(data: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, data: new } => {
            let offset = usize::try_from(*offset).unwrap();
            data.resize(data.len().max(offset + new.len()), 0);
            data[offset..offset + new.len()].copy_from_slice(new);
        }
        Change::Truncate(length) => data.resize(usize::try_from(*length).unwrap(), 0),
        _ => unreachable!("of a directory"),
    }
}

/// What would be found after the power has come back.
#[derive(Clone, Default)]
struct Disk {
    directories: HashMap<Inode, BTreeMap<String, Inode>>,
    files: HashMap<Inode, Vec<u8>>,
}

impl Disk {
    fn apply(&mut self, inode: Inode, change: &Change) {
        match change {
            Change::Write { .. } | Change::Truncate(_) => {
                apply_data(self.files.entry(inode).or_default(), change);
            }
            _ => apply_names(self.directories.entry(inode).or_default(), change),
        }
    }

    fn write_to(&self, inode: Inode, directory: &Path, recording: &Recording) {
        fs::create_dir_all(directory).unwrap();
        for (name, child) in self.directories.get(&inode).into_iter().flatten() {
            let path = directory.join(name);
            if recording.directories.contains_key(child) {
                self.write_to(*child, &path, recording);
            } else {
                let nothing = Vec::new();
                fs::write(path, self.files.get(child).unwrap_or(&nothing)).unwrap();
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Dropped,
    Kept,
    Random,
    Torn,
}

const FATES: [Fate; 4] = [Fate::Dropped, Fate::Kept, Fate::Random, Fate::Torn];

/// SplitMix64.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn even(&mut self) -> bool {
        self.next().is_multiple_of(2)
    }
}

/// Replays a recording, cut by cut.
struct Replay<'a> {
    recording: &'a Recording,
    /// What every possible future has.
    durable: Disk,
    /// What no sync has covered, in order, with its time.
    pending: Vec<(usize, Inode, &'a Change)>,
    acknowledged: [usize; WORKERS],
    at: usize,
}

impl<'a> Replay<'a> {
    fn new(recording: &'a Recording, disk: Disk) -> Self {
        Self { recording, durable: disk, pending: Vec::new(), acknowledged: [0; WORKERS], at: 0 }
    }

    fn go_on_to(&mut self, cut: usize) {
        while self.at < cut {
            let (now, event) = &self.recording.events[self.at];
            match event {
                Event::Change(inode, change) => self.pending.push((*now, *inode, change)),
                Event::Acknowledged { worker, commits } => self.acknowledged[*worker] = *commits,
                Event::Sync { inode, began } => {
                    for (at, of, change) in std::mem::take(&mut self.pending) {
                        if of == *inode && at < *began {
                            self.durable.apply(of, change);
                        } else {
                            self.pending.push((at, of, change));
                        }
                    }
                }
            }
            self.at += 1;
        }
    }

    /// One of the futures.
    fn cut(&self, fate: Fate, dice: &mut Dice) -> Disk {
        let mut disk = self.durable.clone();
        for (_, inode, change) in &self.pending {
            match (fate, change) {
                (Fate::Dropped, _) => {}
                (Fate::Kept, _) => disk.apply(*inode, change),
                (Fate::Torn, Change::Write { offset, data }) => {
                    // Sector by sector, or all up to one of them.
                    let prefix = dice.even().then(|| dice.next() % (data.len() as u64 + 1));
                    let mut at = 0;
                    while at < data.len() {
                        let sector_left = 512 - (offset + at as u64) % 512;
                        let end = data.len().min(at + usize::try_from(sector_left).unwrap());
                        if prefix.map_or_else(|| dice.even(), |prefix| (end as u64) <= prefix) {
                            let piece = Change::Write {
                                offset: offset + at as u64,
                                data: data[at..end].to_vec(),
                            };
                            disk.apply(*inode, &piece);
                        }
                        at = end;
                    }
                }
                (Fate::Random | Fate::Torn, _) => {
                    if dice.even() {
                        disk.apply(*inode, change);
                    }
                }
            }
        }
        disk
    }
}

/// Runs a recorded process; `None`: there is no strace here, and none is required.
fn record(directory: &Path, from: usize) -> Option<PathBuf> {
    let trace = directory.join(format!("trace-{from}"));
    let calls = "trace=open,openat,close,write,pwrite64,ftruncate,fsync,fdatasync,mkdir,mkdirat,\
                 unlink,unlinkat,rmdir,rename,renameat,renameat2,fadvise64,flock";
    let traced = Command::new("strace")
        .args(["-f", "-xx", "-s", "100000000", "-e", "signal=none", "-e", calls, "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["power_cut::work_under_the_recorder", "--exact", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(FROM_COMMIT, from.to_string())
        .output();
    match traced {
        Ok(output) if output.status.success() => Some(trace),
        failed if std::env::var_os("TEST_STRACE").is_some() => {
            panic!("the recorded process: {failed:?}")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let told = std::io::stderr().write_all(b"SKIPPED: strace is not installed\n");
            told.unwrap();
            None
        }
        failed => panic!("the recorded process: {failed:?}"),
    }
}

fn seed() -> u64 {
    let seed = std::env::var("TEST_SEED").ok().map(|seed| seed.parse().unwrap());
    seed.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0))
}

fn soak() -> usize {
    if std::env::var_os("TEST_SOAK").is_some() { 10 } else { 1 }
}

/// Cuts at as many points, each in every way, and checks what is found.
fn cut(
    recording: &Recording,
    disk: Disk,
    points: usize,
    check: impl Fn(&Path, &[usize; WORKERS]) -> Result<(), String> + Sync,
) {
    let seed = seed();
    let mut dice = Dice(seed);
    let mut cuts: Vec<usize> = (0..points)
        .map(|_| usize::try_from(dice.next()).unwrap() % recording.events.len())
        .collect();
    // Also each of the first moments, in which files are made.
    cuts.extend(0..recording.events.len().min(40));
    cuts.push(recording.events.len());
    cuts.sort_unstable();
    let replay = Mutex::new((Replay::new(recording, disk), cuts.into_iter(), dice));
    let failures = Mutex::new(Vec::new());
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let (at, acknowledged, futures) = {
                        let mut guard = replay.lock().unwrap();
                        let (replay, cuts, dice) = &mut *guard;
                        let Some(cut) = cuts.next() else { break };
                        replay.go_on_to(cut);
                        let futures = FATES.map(|fate| (fate, replay.cut(fate, dice)));
                        (cut, replay.acknowledged, futures)
                    };
                    for (fate, disk) in futures {
                        let directory = in_memory();
                        disk.write_to(ROOT, directory.path(), recording);
                        let check = AssertUnwindSafe(|| check(directory.path(), &acknowledged));
                        let checked = catch_unwind(check);
                        let checked = checked.unwrap_or_else(|_| Err("it panicked".to_owned()));
                        if let Err(error) = checked {
                            failures.lock().unwrap().push(format!("{at}, {fate:?}: {error}"));
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "TEST_SEED={seed}: {} of {} futures lost something, the first of them:\n{}",
        failures.len(),
        done.into_inner(),
        failures.iter().take(10).cloned().collect::<Vec<_>>().join("\n")
    );
}

/// How many files were synced and then given up by the page cache before sled locked its own: after
/// an fsync that failed, the cache shows what the disk does not have.
fn given_up_before_sled(trace: &Path) -> usize {
    let (mut synced, mut given_up) = (None, 0);
    for line in BufReader::new(File::open(trace).unwrap()).lines() {
        let line = line.unwrap();
        let Some((name, arguments)) =
            line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('('))
        else {
            continue;
        };
        let descriptor = arguments.split([',', ')']).next().unwrap().to_owned();
        match name {
            "fsync" => synced = Some(descriptor),
            "fadvise64" if arguments.contains("POSIX_FADV_DONTNEED") => {
                assert_eq!(synced.take(), Some(descriptor));
                given_up += 1;
            }
            // Whether another process has it is asked before.
            "flock" if arguments.contains("LOCK_EX") => break,
            _ => {}
        }
    }
    given_up
}

/// A directory that costs no disk, where there is one.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// With segments a quarter as large as those of a real store, as the rows are too.
fn config(cache_bytes: u64) -> Config {
    Config { cache_bytes, segment_bytes: 2 << 20, ..Config::default() }
}

fn open(data: &Path) -> Result<Store, String> {
    Store::open(data, &config(8 << 20), &Metrics::new()).map_err(|error| error.to_string())
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_moment() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    let (mut recording, disk) = Recording::of(&data);
    for from in [0, COMMITS / 2] {
        let Some(trace) = record(directory.path(), from) else { return };
        recording.read(&trace, directory.path());
        if from > 0 {
            assert_eq!(given_up_before_sled(&trace), 2, "conf and db");
        }
        fs::remove_file(trace).unwrap();
    }
    let states: Vec<Vec<Rows>> = (0..WORKERS).map(states).collect();
    let check = |data: &Path, acknowledged: &[usize; WORKERS]| {
        let store = open(data)?;
        // What the cut took had not been acknowledged: nobody is to be alarmed.
        if let Some(problem) = store.problems().first() {
            return Err(format!("a false alarm: {problem}"));
        }
        let found = found(&store)?;
        for (worker, found) in found.iter().enumerate() {
            let least = acknowledged[worker];
            let allowed = &states[worker][least..states[worker].len().min(least + 2)];
            if !allowed.contains(found) {
                let missing: Vec<_> =
                    allowed[0].iter().filter(|(row, is)| found.get(*row) != Some(is)).collect();
                return Err(format!("worker {worker}, {least} acknowledged: {missing:?}"));
            }
        }
        Ok(())
    };
    cut(&recording, disk, 200 * soak(), check);
}

/// A store as an older program left it: rows in one piece, and pages of them under `blobs/`.
fn with_blobs(data: &Path) {
    let db = sled::open(data.join("store")).unwrap();
    fn json(value: &impl serde::Serialize) -> Vec<u8> {
        [vec![1], serde_json::to_vec(value).unwrap()].concat()
    }
    for worker in [0, 3, 4] {
        for (row, (version, size)) in states(worker).pop().unwrap() {
            let (kind, number) = row.split_once('/').unwrap();
            let number: u64 = number.parse().unwrap();
            let text = fill(version, size);
            let (key, value) = match kind {
                "window" | "previous" => {
                    let table = if kind == "window" { Table::Memory } else { Table::Instance };
                    let place = [table as u8, u8::try_from(number % 64).unwrap()];
                    ([&place, row.as_bytes()].concat(), json(&(&row, version, text)))
                }
                _ => {
                    let number = if kind == "text" { number + 1_000_000 } else { number };
                    let mut message = message(number, Status::Queued);
                    message.content.text = format!("{row} {version} {text}").into();
                    (keys::message(Table::Outbox, message.id), json(&message))
                }
            };
            db.insert(key, value).unwrap();
        }
    }
    db.insert(b"M\0format", &b"1"[..]).unwrap();
}

#[test]
fn a_store_with_blobs_is_written_anew_and_a_power_cut_meanwhile_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    with_blobs(&data);
    let blobs = |data: &Path| fs::read_dir(data.join("store/blobs")).unwrap().count();
    assert!(blobs(&data) > 0, "that is what is to be cured");
    let (mut recording, disk) = Recording::of(&data);
    let Some(trace) = record(directory.path(), COMMITS) else { return };
    assert_eq!(blobs(&data), 0);
    let mut names: Vec<_> =
        fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["store", "store.mark"]);
    recording.read(&trace, directory.path());
    let expected: Vec<Rows> = (0..WORKERS)
        .map(|worker| match worker {
            0 | 3 | 4 => states(worker).pop().unwrap(),
            _ => Rows::new(),
        })
        .collect();
    let check = |data: &Path, _: &[usize; WORKERS]| {
        let store = open(data)?;
        let found = found(&store)?;
        runtime().block_on(store.close()).map_err(|error| error.to_string())?;
        match (found == expected, blobs(data)) {
            (true, 0) => Ok(()),
            (true, files) => Err(format!("{files} files under blobs/")),
            (false, _) => Err("rows are missing".to_owned()),
        }
    };
    cut(&recording, disk, 50 * soak(), check);
}
