//! The edge beside Debian's mosquitto: many clients at once, on one machine, in one run.
//!
//! `cargo bench --bench edge` measures everything; `cargo bench --bench edge -- storm` (or
//! `fan-out`, `fan-in`, `reconnect`) one thing. `CLIENTS=1000` makes it smaller. The clients share
//! the machine with the broker and cost as much on both sides of a ratio.
//!
//! | what | measured |
//! |---|---|
//! | storm | how many of as many TLS clients that connect at once have their CONNACK within a minute, and when the last had it |
//! | fan-out | deliveries a second of QoS 1 publishes to as many QoS 0 subscribers |
//! | fan-in | publishes a second of as many QoS 1 publishers that reach one subscriber |
//! | reconnect | publish to subscriber at 200/s, p99, while 1,000 clients a second connect and leave, over the same in quiet |
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod beside;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use self::beside::*;

/// Rounds of fan-out and fan-in, Watchbell and mosquitto in turn; the median counts.
const ROUNDS: usize = 5;

fn main() {
    raise_file_limit();
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    if !mosquitto_is_there() {
        println!(
            "mosquitto is not installed (Debian: apt-get install mosquitto): nothing to compare with"
        );
        return;
    }
    let clients: usize =
        std::env::var("CLIENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    println!("| what | Watchbell | mosquitto | ratio |\n|---|---|---|---|");
    if wants("storm") {
        storm(clients);
    }
    if wants("fan-out") {
        in_turn(&format!("one publish to {clients} subscribers, deliveries/s"), |port| {
            runtime().block_on(fan_out(port, clients))
        });
    }
    if wants("fan-in") {
        in_turn(&format!("{clients} publishers to one subscriber, publishes/s"), |port| {
            runtime().block_on(fan_in(port, clients))
        });
    }
    if wants("reconnect") {
        reconnect();
    }
}

/// Rates of both brokers, each started once, measured in turn.
fn in_turn(what: &str, measure: impl Fn(u16) -> f64) {
    let ours = watchbell(free_port(), "");
    let theirs = mosquitto(None);
    let (mut our_rates, mut their_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (our, their) = (measure(ours.port), measure(theirs.port));
        our_rates.push(our);
        their_rates.push(their);
        ratios.push(our / their);
    }
    let (our, their) = (median(our_rates), median(their_rates));
    println!("| {what} | {our:.0} | {their:.0} | {:.2} |", median(ratios));
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn per_second(count: usize, started: Instant) -> f64 {
    count as f64 / started.elapsed().as_secs_f64()
}

async fn open(port: u16, client_id: &str) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    introduce(&mut stream, client_id).await.unwrap();
    stream
}

// ---- storm ------------------------------------------------------------------------------------

fn storm(clients: usize) {
    let ours = watchbell(free_port(), "");
    let theirs = mosquitto(Some(&ours.certificates()));
    wait_for(theirs.tls_port);
    let ca = ours.certificates().join("ca.pem");
    let mut say = Vec::new();
    for server in [&ours, &theirs] {
        let (all_in, seconds) = runtime().block_on(storm_of(server.tls_port, &ca, clients));
        say.push((all_in, seconds));
    }
    let [(our, our_seconds), (their, their_seconds)] = say[..] else { unreachable!() };
    println!(
        "| {clients} TLS clients at once: in, of them (seconds) | {our} ({our_seconds:.1}) | {their} ({their_seconds:.1}) | {:.2} |",
        our_seconds / their_seconds
    );
}

/// How long a client of a storm waits at most.
const PATIENCE: Duration = Duration::from_secs(60);

async fn storm_of(port: u16, ca: &std::path::Path, clients: usize) -> (usize, f64) {
    let connector = connector(ca);
    let started = Instant::now();
    let mut connecting = JoinSet::new();
    for index in 0..clients {
        let connector = connector.clone();
        connecting.spawn(tokio::time::timeout(PATIENCE, async move {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await?;
            introduce(&mut stream, &format!("storm-{index}")).await?;
            std::io::Result::Ok(stream)
        }));
    }
    // Those who are in stay in.
    let mut streams = Vec::new();
    while let Some(connected) = connecting.join_next().await {
        streams.extend(connected.unwrap().ok().and_then(Result::ok));
    }
    (streams.len(), started.elapsed().as_secs_f64())
}

// ---- fan-out ----------------------------------------------------------------------------------

/// Publishes of a fan-out round.
const FAN_OUT_PUBLISHES: usize = 20;

async fn fan_out(port: u16, clients: usize) -> f64 {
    let mut subscribers = Vec::new();
    for index in 0..clients {
        let mut stream = open(port, &format!("sub-{index}")).await;
        stream.write_all(b"\x82\x0a\0\x01\0\x05fan/#\x00").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        subscribers.push(stream);
    }
    let payload = "x".repeat(100);
    let mut delivered_bytes = Vec::new();
    publish_packet(&mut delivered_bytes, "fan/1", 1, &payload);
    // QoS 0 has no packet id.
    let each_bytes = (delivered_bytes.len() - 2) * FAN_OUT_PUBLISHES;
    let mut publisher = open(port, "publisher").await;
    let started = Instant::now();
    let mut reading = JoinSet::new();
    for mut stream in subscribers {
        reading.spawn(async move {
            let mut left = each_bytes;
            let mut buffer = [0; 4096];
            while left > 0 {
                let read = stream.read(&mut buffer).await.unwrap();
                assert!(read > 0, "a subscriber was disconnected");
                left -= read;
            }
            stream
        });
    }
    let mut out = Vec::new();
    for number in 0..FAN_OUT_PUBLISHES {
        publish_packet(&mut out, "fan/1", u16::try_from(number + 1).unwrap(), &payload);
    }
    publisher.write_all(&out).await.unwrap();
    while let Some(read) = reading.join_next().await {
        drop(read.unwrap());
    }
    per_second(clients * FAN_OUT_PUBLISHES, started)
}

// ---- fan-in -----------------------------------------------------------------------------------

/// Publishes of each publisher of a fan-in round, one at a time.
const FAN_IN_PUBLISHES: usize = 10;

async fn fan_in(port: u16, clients: usize) -> f64 {
    let mut subscriber = open(port, "subscriber").await;
    subscriber.write_all(b"\x82\x09\0\x01\0\x04in/#\x00").await.unwrap();
    subscriber.read_exact(&mut [0; 5]).await.unwrap();
    let mut packet = Vec::new();
    publish_packet(&mut packet, "in/1", 1, &"x".repeat(100));
    let bytes = (packet.len() - 2) * clients * FAN_IN_PUBLISHES;
    let mut publishers = Vec::new();
    for index in 0..clients {
        publishers.push(open(port, &format!("pub-{index}")).await);
    }
    let started = Instant::now();
    let mut publishing = JoinSet::new();
    publishing.spawn(async move {
        let mut left = bytes;
        let mut buffer = vec![0; 1 << 16];
        while left > 0 {
            let read = subscriber.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the subscriber was disconnected");
            left -= read;
        }
    });
    for mut stream in publishers {
        let packet = packet.clone();
        publishing.spawn(async move {
            for _ in 0..FAN_IN_PUBLISHES {
                stream.write_all(&packet).await.unwrap();
                stream.read_exact(&mut [0; 4]).await.unwrap();
            }
        });
    }
    while let Some(done) = publishing.join_next().await {
        done.unwrap();
    }
    per_second(clients * FAN_IN_PUBLISHES, started)
}

// ---- reconnect --------------------------------------------------------------------------------

const RECONNECTS_PER_SECOND: u32 = 1000;
const LATENCY_PER_SECOND: u32 = 200;
const LATENCY_PUBLISHES: u32 = 2000;

fn reconnect() {
    let ours = watchbell(free_port(), "");
    let theirs = mosquitto(None);
    let p99 = |port: u16| {
        let quiet = latency_p99(port);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reconnecting = scope.spawn(|| runtime().block_on(reconnect_until(port, &stop)));
            let busy = latency_p99(port);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            let rate = reconnecting.join().unwrap();
            (quiet, busy, rate)
        })
    };
    let (our, their) = (p99(ours.port), p99(theirs.port));
    let say = |(quiet, busy, rate): (f64, f64, f64)| {
        format!("{busy:.2} / {quiet:.2} = {:.1} ({rate:.0}/s)", busy / quiet)
    };
    println!(
        "| publish to subscriber, p99 ms, during {RECONNECTS_PER_SECOND} reconnects/s over quiet | {} | {} | {:.2} |",
        say(our),
        say(their),
        (our.1 / our.0) / (their.1 / their.0)
    );
}

/// Connects and leaves, so many times a second; gives back how many a second it were.
async fn reconnect_until(port: u16, stop: &std::sync::atomic::AtomicBool) -> f64 {
    let started = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let mut connections = JoinSet::new();
    let mut count = 0_usize;
    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
        tick.tick().await;
        for _ in 0..RECONNECTS_PER_SECOND / 100 {
            let client_id = format!("again-{}", count % 1000);
            count += 1;
            connections.spawn(async move {
                let mut stream = open(port, &client_id).await;
                stream.write_all(&[0xe0, 0]).await.unwrap();
            });
        }
        while let Some(done) = connections.try_join_next() {
            done.unwrap();
        }
    }
    per_second(count, started)
}

fn latency_p99(port: u16) -> f64 {
    epoch();
    let mut subscriber = connect(port, "latency-subscriber");
    subscriber.write_all(b"\x82\x0c\0\x01\0\x07delay/#\x00").unwrap();
    subscriber.read_exact(&mut [0; 5]).unwrap();
    let (seen, arrivals) = std::sync::mpsc::channel();
    let at_the_end = subscriber.try_clone().unwrap();
    let reading = std::thread::spawn(move || read_ages(subscriber, &seen));
    let publisher = connect(port, "latency-publisher");
    publish_paced(&publisher);
    let mut delays: Vec<f64> = (0..LATENCY_PUBLISHES)
        .map(|_| arrivals.recv_timeout(Duration::from_secs(30)).expect("all arrive"))
        .collect();
    at_the_end.shutdown(std::net::Shutdown::Both).unwrap();
    reading.join().unwrap();
    delays.sort_by(f64::total_cmp);
    quantile(&delays, 0.99)
}

fn publish_paced(mut stream: &TcpStream) {
    let start = Instant::now();
    let mut out = Vec::new();
    for number in 0..LATENCY_PUBLISHES {
        let due = start + Duration::from_secs(1) / LATENCY_PER_SECOND * number;
        while let Some(wait) = due.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(wait);
        }
        out.clear();
        let payload = format!("at={:012}", epoch().elapsed().as_micros());
        publish_packet(&mut out, "delay/1", u16::try_from(number + 1).unwrap(), &payload);
        stream.write_all(&out).unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
}

/// Until the connection is shut down.
fn read_ages(mut stream: TcpStream, seen: &std::sync::mpsc::Sender<f64>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..read]);
        let done = report_ages(&bytes, seen);
        bytes.drain(..done);
    }
}
