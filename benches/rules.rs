//! What rules cost: `cargo bench --bench rules`, or `cargo bench --bench rules -- set` (`window`,
//! `instances`, `replay`) for one thing.
//!
//! | part | what is measured | goal |
//! |---|---|---|
//! | set | a publish against 10 and against 100,000 loaded rules, one of which matches | at most 1.2 times as much |
//! | window | a publish whose condition has a window of 1,000 points | under 10 µs |
//! | instances | `INSTANCES` (1,000,000) pending instances of a `for` rule: memory of the process; and of another that is started from the store, and how long that takes | 1 GB, 10 s |
//! | replay | `PUBLISHES` (10,000,000) recorded publishes of 1,000 devices, one a minute | a minute |
//!
//! Each part runs in a process of its own, so that its memory is its own.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use watchbell::clock::Timestamp;
use watchbell::intake::pipeline::Pipeline;
use watchbell::intake::restore;
use watchbell::intake::ruleset::{Limits, RuleSet};
use watchbell::model::{IdSource, Publish, Qos};
use watchbell::problem::TomlFile;
use watchbell::replay;
use watchbell::replay::price::Prices;
use watchbell::replay::tally::Setup;
use watchbell::replay::traffic::{Part, Traffic};
use watchbell::store::{self, Op, Store};
use watchbell::telemetry::Metrics;
use watchbell::topic::{TopicLimits, TopicName};

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);
const A_DAY: Duration = Duration::from_secs(86_400);
/// Rounds of a measurement of which the median counts.
const ROUNDS: usize = 7;

const CONTACTS: &str = "
    [[contact]]
    name = 'ana'
    sms = '+4915550100001'
    [[contact]]
    name = 'ben'
    push = 'topic:ben'
";

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let [part, directory] = wanted.as_slice()
        && let Some(part) = part.strip_prefix("at:")
    {
        return run(part, Path::new(directory));
    }
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    println!("| what | figure |\n|---|---|");
    for (part, steps) in [
        ("set", &["set"][..]),
        ("window", &["window"]),
        ("instances", &["memory", "write", "restart"]),
        ("replay", &["replay"]),
    ] {
        if !wants(part) {
            continue;
        }
        let directory = tempfile::tempdir().unwrap();
        for step in steps {
            let own = std::env::current_exe().unwrap();
            let step = format!("at:{step}");
            let status = Command::new(own).arg(step).arg(directory.path()).status().unwrap();
            assert!(status.success(), "{part}");
        }
    }
}

fn run(part: &str, directory: &Path) {
    match part {
        "set" => set(),
        "window" => window(),
        "memory" => memory(),
        "write" => write(directory),
        "restart" => restart(directory),
        "replay" => replay(directory),
        _ => panic!("no such part: {part}"),
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.rules.rules_max = 1_000_000;
    limits.rules.instances_max = 10_000_000;
    limits
}

fn rule_set(rules: &str) -> RuleSet {
    let file = TomlFile::parse("bench.toml", format!("{CONTACTS}\n{rules}")).unwrap();
    match RuleSet::parse(&[file], &limits()) {
        Ok(set) => set,
        Err(problems) => panic!("{}", problems[0]),
    }
}

fn pipeline() -> Pipeline {
    let limits = limits();
    Pipeline::new(IdSource::new(1), &limits.rules, &limits.contacts, A_DAY)
}

fn publish(topic: &str, payload: &str) -> Publish {
    Publish {
        topic: TopicName::parse(topic, TopicLimits::default()).unwrap(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        qos: Qos::AtLeastOnce,
        retain: false,
        replayed: false,
        client_id: "bench".into(),
        identity: None,
        received_at: START,
        properties: None,
    }
}

/// Resident memory of this process, MB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 / 1e6
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Nanoseconds of each of these publishes.
fn each_ns(set: &RuleSet, pipeline: &mut Pipeline, publishes: &[Publish], count: usize) -> f64 {
    let mut op = Op::discarding();
    let start = Instant::now();
    for publish in publishes.iter().cycle().take(count) {
        let matched = set.rules.matches(&publish.topic).unwrap();
        let caused = pipeline.publish(set, &matched, publish, START, &mut op);
        assert!(caused.failures.is_empty());
    }
    #[expect(clippy::cast_precision_loss)]
    let each = start.elapsed().as_nanos() as f64 / count as f64;
    each
}

fn set() {
    let sets = [10, 100_000].map(|count: u32| {
        let mut rules = String::new();
        for number in 0..count {
            write!(
                rules,
                "[[rule]]\nname = 'r{number}'\ntopic = 'site/{number}/oven/{{unit}}/telemetry'\n\
                 when = 'payload.temp > 200.0'\nto = ['ana']\ntext = '{{{{ unit }}}} is hot'\n"
            )
            .unwrap();
        }
        let start = Instant::now();
        let set = rule_set(&rules);
        if count > 10 {
            println!("| 100,000 rules loaded | {:.1} s |", start.elapsed().as_secs_f64());
        }
        let publishes: Vec<Publish> = (0..100)
            .map(|unit| {
                publish(
                    &format!("site/7/oven/{unit}/telemetry"),
                    "{\"temp\": 150.5, \"unit\": \"C\"}",
                )
            })
            .collect();
        (set, pipeline(), publishes, Vec::new())
    });
    let mut sets = sets;
    for _ in 0..ROUNDS {
        for (set, pipeline, publishes, took) in &mut sets {
            took.push(each_ns(set, pipeline, publishes, 200_000));
        }
    }
    // Of so short a work what is least is least disturbed.
    let [few, many] = sets.map(|(.., took)| took.into_iter().fold(f64::INFINITY, f64::min));
    println!("| a publish against 10 rules, one matches | {few:.0} ns |");
    println!(
        "| a publish against 100,000 rules, one matches | {many:.0} ns, {:.2} times |",
        many / few
    );
}

fn window() {
    for (what, window, when) in [
        ("mean", "{ avg = 'payload.ms', last = 1000 }", "w > 1e9"),
        ("standard deviation", "{ stddev = 'payload.ms', last = 1000 }", "w > 1e9"),
        ("mean over an hour", "{ avg = 'payload.ms', over = '1h' }", "w > 1e9"),
        ("95th percentile", "{ percentile = 'payload.ms', p = 95, last = 1000 }", "w > 1e9"),
    ] {
        let set = rule_set(&format!(
            "[[rule]]\nname = 'w'\ntopic = 'a/{{unit}}'\nwindow = {{ w = {window} }}\nwhen = '{when}'\nto = ['ana']\n"
        ));
        let mut pipeline = pipeline();
        // As unordered as measurements are.
        let publishes: Vec<Publish> = (0..1000_u64)
            .map(|number| publish("a/1", &format!("{{\"ms\": {}.5}}", number * 7_919 % 997)))
            .collect();
        each_ns(&set, &mut pipeline, &publishes, 1_000);
        let took = (0..ROUNDS).map(|_| each_ns(&set, &mut pipeline, &publishes, 20_000)).collect();
        println!("| a publish, window of 1,000 points: {what} | {:.2} µs |", median(took) / 1e3);
    }
}

const FOR_RULE: &str = "
    [[rule]]
    name = 'too-warm'
    topic = 'site/{site}/sensor/{unit}/telemetry'
    when = 'payload.temp_c > 30.0'
    for = '1h'
    to = ['ana']
";

/// A publish that makes a pending instance.
fn pending(number: u64) -> Publish {
    let topic = format!("site/plant-{}/sensor/{number:07}/telemetry", number % 100);
    publish(&topic, &format!("{{\"temp_c\": {}.5, \"battery\": 87}}", 31 + number % 20))
}

fn instances() -> u64 {
    from_env("INSTANCES", 1_000_000)
}

fn memory() {
    let set = rule_set(FOR_RULE);
    let mut pipeline = pipeline();
    let start = Instant::now();
    for number in 0..instances() {
        let publish = pending(number);
        let matched = set.rules.matches(&publish.topic).unwrap();
        pipeline.publish(&set, &matched, &publish, START, &mut Op::discarding());
    }
    let took = start.elapsed();
    let count = instances();
    assert_eq!(pipeline.engine().len() as u64, count);
    println!(
        "| {count} pending instances, memory | {:.0} MB, made in {:.1} s |",
        resident(),
        took.as_secs_f64()
    );
}

fn opened(directory: &Path) -> Store {
    let config = store::Config { disk_free_min_bytes: 0, ..store::Config::default() };
    Store::open(&directory.join("data"), &config, &Metrics::new()).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn write(directory: &Path) {
    let set = rule_set(FOR_RULE);
    let mut pipeline = pipeline();
    let store = opened(directory);
    runtime().block_on(async {
        let mut ops = Vec::new();
        for number in 0..instances() {
            let publish = pending(number);
            let matched = set.rules.matches(&publish.topic).unwrap();
            let mut op = Op::new();
            pipeline.publish(&set, &matched, &publish, START, &mut op);
            ops.push(op);
            if ops.len() == 4_096 {
                store.commit(std::mem::take(&mut ops)).await.unwrap();
            }
        }
        store.commit(ops).await.unwrap();
        store.close().await.unwrap();
    });
}

fn restart(directory: &Path) {
    let set = rule_set(FOR_RULE);
    let start = Instant::now();
    let store = opened(directory);
    let is_open = start.elapsed();
    let (mut pipeline, _) = restore(&store, pipeline()).unwrap();
    let is_read = start.elapsed();
    let now = START.plus(Duration::from_secs(60));
    let (_, adopted) = pipeline.adopt(&set, Some(START), now, &mut Op::new());
    let took = start.elapsed();
    assert_eq!(adopted.kept as u64, instances());
    println!(
        "| started again from the store | {:.1} s (open {:.1}, rows {:.1}, adopt {:.1}), {:.0} MB |",
        took.as_secs_f64(),
        is_open.as_secs_f64(),
        (is_read - is_open).as_secs_f64(),
        (took - is_read).as_secs_f64(),
        resident()
    );
    runtime().block_on(store.close()).unwrap();
}

/// What a site of a few kinds of alarm has: a threshold with hysteresis, one that has to hold, a dead
/// man, a mean; each publish is looked at by all four.
const SITE: &str = "
    [[rule]]
    name = 'too-warm'
    topic = 'site/{site}/freezer/{unit}/telemetry'
    when = 'payload.temp_c > -15.0'
    clear = 'payload.temp_c < -17.0'
    severity = 'critical'
    to = ['ana']
    text = '{{ site }} freezer {{ unit }}: {{ payload.temp_c }}'
    [[rule]]
    name = 'door'
    topic = 'site/{site}/freezer/{unit}/telemetry'
    when = \"payload.door == 'open'\"
    for = '5m'
    to = ['ben']
    [[rule]]
    name = 'silent'
    topic = 'site/{site}/freezer/{unit}/telemetry'
    silent = '30m'
    to = ['ben']
    [[rule]]
    name = 'mean'
    topic = 'site/{site}/freezer/{unit}/telemetry'
    window = { avg1h = { avg = 'payload.temp_c', over = '1h' } }
    when = 'avg1h > -18.0'
    to = ['ana']
";

fn replay(directory: &Path) {
    let publishes = from_env("PUBLISHES", 10_000_000);
    let path = directory.join("week.jsonl");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for number in 0..publishes {
        let (minute, device) = (number / 1000, number % 1000);
        let at = START.as_millis() + i64::try_from(minute * 60_000 + device * 60).unwrap();
        // Each device is too warm for a quarter of an hour a day, at a time of its own.
        let is_warm = (minute + device * 7) % 1_440 < 15;
        let temp = if is_warm { 12 } else { 19 + (minute * 31 + device) % 4 };
        let door = if (minute * 7 + device) % 50 == 0 { "open" } else { "shut" };
        writeln!(
            file,
            r#"{{"at":{at},"topic":"site/kiel/freezer/{device}/telemetry","payload":"{{\"temp_c\":-{temp}.5,\"door\":\"{door}\"}}"}}"#
        )
        .unwrap();
    }
    file.into_inner().unwrap();
    let (set, limits) = (rule_set(SITE), limits());
    let only_warm = SITE.split("[[rule]]").take(2).collect::<Vec<_>>().join("[[rule]]");
    let threshold = rule_set(&only_warm);
    let prices = Prices::default();
    let setup = |set| Setup { set, limits: &limits, expires_in: A_DAY, prices: &prices };
    for (what, set, against) in [
        ("1 rule", &threshold, None),
        ("4 rules", &set, None),
        ("4 rules against 1", &set, Some(&threshold)),
    ] {
        let traffic = Traffic::open(std::slice::from_ref(&path), Part::default()).unwrap();
        let start = Instant::now();
        let replayed = replay::run(traffic, setup(set), against.map(setup));
        let took = start.elapsed().as_secs_f64();
        assert_eq!(replayed.seen.publishes, publishes);
        let raised: u64 = replayed.report.rules.iter().map(|rule| rule.raised).sum();
        #[expect(clippy::cast_precision_loss)]
        let rate = publishes as f64 / took;
        println!(
            "| replay of {publishes} publishes, {what} | {took:.1} s, {rate:.0}/s, {raised} alerts, {:.0} MB |",
            resident()
        );
    }
}
