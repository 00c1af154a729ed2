//! The real binary beside Debian's mosquitto, doing its part of the same work in the same run.
//!
//! `cargo bench --bench spine` measures everything; `cargo bench --bench spine -- durable` (or
//! `no-match`, `latency`, `memory`) one thing. Both brokers are started on free ports of the
//! loopback, driven by the same raw client, and stopped again. Figures do not travel between
//! machines; the ratios do.
//!
//! | what | Watchbell does | mosquitto does |
//! |---|---|---|
//! | durable | QoS 1, every publish is evaluated and makes a message row, PUBACK after the sync; once with an event rule, once with a condition whose every publish is a new instance, which is a second row | QoS 1, PUBACK, no disk |
//! | no-match | QoS 1, no rule matches | the same |
//! | latency | publish to provider request, 500/s | publish to subscriber, 500/s |
//! | memory | resident bytes of an idle TLS connection | the same |
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod beside;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use self::beside::*;

const CONNECTIONS: usize = 8;
const IN_FLIGHT: usize = 50;
/// Rounds of each throughput measurement, Watchbell and mosquitto in turn; the median counts.
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
    println!("| what | Watchbell | mosquitto | ratio |\n|---|---|---|---|");
    if wants("durable") {
        throughput("durable: each publish a message row, publishes/s", "event", 20_000);
        throughput("durable: each publish a new instance too, publishes/s", "alarm", 20_000);
    }
    if wants("no-match") {
        throughput("no rule matches, publishes/s", "quiet", 200_000);
    }
    if wants("latency") {
        latency();
    }
    if wants("memory") {
        memory();
    }
}

/// Publishes `count` with [`IN_FLIGHT`] unacknowledged and returns when all are acknowledged.
fn publish_all(mut stream: &TcpStream, topic: &str, first: usize, count: usize) {
    let (mut sent, mut acknowledged) = (0, 0);
    let mut out = Vec::new();
    let mut answers = [0; 4096];
    let mut rest = 0;
    while acknowledged < count {
        out.clear();
        while sent < count && sent - acknowledged < IN_FLIGHT {
            let number = first + sent;
            let payload = format!("{{\"temp\": 21.5, \"unit\": \"C\", \"n\": {number}}}");
            let packet_id = u16::try_from(sent % 60_000 + 1).unwrap();
            publish_packet(&mut out, topic, packet_id, &payload);
            sent += 1;
        }
        stream.write_all(&out).unwrap();
        // PUBACKs are four bytes each; a read may end within one.
        let read = stream.read(&mut answers).unwrap();
        assert!(read > 0, "the broker closed the connection");
        acknowledged += (rest + read) / 4;
        rest = (rest + read) % 4;
    }
}

fn rate(port: u16, topic: &str, round: usize, count: usize) -> f64 {
    let streams: Vec<_> =
        (0..CONNECTIONS).map(|index| connect(port, &format!("bench-{index}"))).collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for (index, stream) in streams.iter().enumerate() {
            let topic = format!("{topic}/{index}");
            scope.spawn(move || publish_all(stream, &topic, round * count, count));
        }
    });
    #[expect(clippy::cast_precision_loss)]
    let publishes = (CONNECTIONS * count) as f64;
    publishes / started.elapsed().as_secs_f64()
}

fn throughput(what: &str, topic: &str, count: usize) {
    let ours = watchbell(free_port(), "rate = \"1/s\"");
    let theirs = mosquitto(None);
    let (mut our_rates, mut their_rates, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (our, their) =
            (rate(ours.port, topic, round, count), rate(theirs.port, topic, round, count));
        our_rates.push(our);
        their_rates.push(their);
        ratios.push(our / their);
    }
    println!(
        "| {what} | {:.0} | {:.0} | {:.2} |",
        median(our_rates),
        median(their_rates),
        median(ratios)
    );
}

// ---- latency ----------------------------------------------------------------------------------

const LATENCY_RATE: u32 = 500;
const LATENCY_COUNT: usize = 5_000;

fn latency() {
    let sink = TcpListener::bind("127.0.0.1:0").unwrap();
    let sink_port = sink.local_addr().unwrap().port();
    let (seen, arrivals) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in sink.incoming() {
            let (stream, seen) = (stream.unwrap(), seen.clone());
            std::thread::spawn(move || answer_requests(stream, &seen));
        }
    });
    let ours = watchbell(sink_port, "");
    let theirs = mosquitto(None);

    let start = Instant::now();
    let stream = connect(ours.port, "bench-latency");
    publish_paced(&stream, start);
    let our_delays = delays(&arrivals);

    let mut subscriber = connect(theirs.port, "bench-subscriber");
    subscriber.write_all(b"\x82\x0c\0\x01\0\x07timed/#\x00").unwrap();
    subscriber.read_exact(&mut [0; 5]).unwrap();
    let (seen, arrivals) = std::sync::mpsc::channel();
    let start = Instant::now();
    std::thread::spawn(move || read_publishes(subscriber, start, &seen));
    let stream = connect(theirs.port, "bench-latency");
    publish_paced(&stream, start);
    let their_delays = delays(&arrivals);

    for (name, share) in [("p50", 0.50), ("p99", 0.99)] {
        let (our, their) = (quantile(&our_delays, share), quantile(&their_delays, share));
        println!(
            "| publish to provider request (mosquitto: to subscriber) at {LATENCY_RATE}/s, {name}, ms | {our:.2} | {their:.2} | {:.1} |",
            our / their
        );
    }
    drop(ours);
    // The sink's clock is the process's: `start` is shared by way of the payload.
}

fn publish_paced(mut stream: &TcpStream, start: Instant) {
    epoch();
    let reader = stream.try_clone().unwrap();
    std::thread::spawn(move || drop(std::io::copy(&mut &reader, &mut std::io::sink())));
    let mut out = Vec::new();
    for number in 0..LATENCY_COUNT {
        let due = start + Duration::from_secs(1) / LATENCY_RATE * u32::try_from(number).unwrap();
        while let Some(wait) = due.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(wait);
        }
        out.clear();
        let packet_id = u16::try_from(number % 60_000 + 1).unwrap();
        let payload = format!("at={:012}", epoch().elapsed().as_micros());
        publish_packet(&mut out, "timed/1", packet_id, &payload);
        stream.write_all(&out).unwrap();
    }
}

/// Milliseconds from publish to arrival, sorted.
fn delays(arrivals: &std::sync::mpsc::Receiver<f64>) -> Vec<f64> {
    let mut delays: Vec<f64> = (0..LATENCY_COUNT)
        .map(|_| arrivals.recv_timeout(Duration::from_secs(30)).expect("all arrive"))
        .collect();
    delays.sort_by(f64::total_cmp);
    delays
}

fn read_publishes(mut stream: TcpStream, _start: Instant, seen: &std::sync::mpsc::Sender<f64>) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..read]);
        let done = report_ages(&bytes, seen);
        bytes.drain(..done);
    }
}

/// HTTP/1.1 as far as the one client needs it: headers, Content-Length, 200.
fn answer_requests(mut stream: TcpStream, seen: &std::sync::mpsc::Sender<f64>) {
    stream.set_nodelay(true).unwrap();
    let mut bytes = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..read]);
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"))
                .map_or(0, |value| value.trim().parse().unwrap());
            if bytes.len() < end + 4 + length {
                break;
            }
            // One age a request, although the text may stand in the body twice.
            let body: Vec<u8> = bytes.drain(..end + 4 + length).skip(end + 4).collect();
            if let Some(at) = body.windows(3).position(|window| window == b"at=") {
                report_ages(&body[at..at + 15], seen);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    }
}

// ---- memory -----------------------------------------------------------------------------------

fn memory() {
    let count: usize =
        std::env::var("IDLE_CONNECTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let ours = watchbell(free_port(), "");
    let theirs = mosquitto(Some(&ours.certificates()));
    wait_for(theirs.tls_port);
    let ca = ours.certificates().join("ca.pem");
    let our = idle_cost(&ours, &ca, count);
    let their = idle_cost(&theirs, &ca, count);
    println!(
        "| idle TLS connection, KB each of {count} | {:.1} | {:.1} | {:.2} |",
        our / 1e3,
        their / 1e3,
        our / their
    );
}

fn idle_cost(server: &Server, ca: &Path, count: usize) -> f64 {
    let connector = connector(ca);
    runtime().block_on(async {
        let open = async |index: usize| {
            let stream =
                tokio::net::TcpStream::connect(("127.0.0.1", server.tls_port)).await.unwrap();
            let name = "localhost".try_into().unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            introduce(&mut stream, &format!("idle-{index}")).await.unwrap();
            stream
        };
        // What the first connections cost once is not the price of one more.
        let mut streams = Vec::new();
        for index in 0..100 {
            streams.push(open(index).await);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = server.resident();
        for index in 0..count {
            streams.push(open(100 + index).await);
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        #[expect(clippy::cast_precision_loss)]
        let each = (server.resident() - before) / count as f64;
        each
    })
}
