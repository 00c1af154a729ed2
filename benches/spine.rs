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

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CONNECTIONS: usize = 8;
const IN_FLIGHT: usize = 50;
/// Rounds of each throughput measurement, Watchbell and mosquitto in turn; the median counts.
const ROUNDS: usize = 5;

fn main() {
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

fn mosquitto_is_there() -> bool {
    Command::new("mosquitto").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

// ---- the brokers ------------------------------------------------------------------------------

/// A process that ends with its owner.
struct Server {
    child: Child,
    port: u16,
    tls_port: u16,
    directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Server {
    /// Resident memory, bytes.
    fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
    }

    fn certificates(&self) -> PathBuf {
        self.directory.path().join("certs")
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn wait_for(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on port {port}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// `provider` is where alerts go; `rate` keeps the dispatcher from competing with the intake.
fn watchbell(provider: u16, rate: &str) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (port, tls_port, api) = (free_port(), free_port(), free_port());
    std::fs::create_dir(path.join("rules")).unwrap();
    std::fs::write(
        path.join("rules/bench.toml"),
        "[[rule]]\nname = \"alarm\"\ntopic = \"alarm/{unit}\"\nwhen = \"payload.temp > 10.0\"\n\
         key = [\"unit\", \"payload.n\"]\ntext = \"{{ unit }} at {{ payload.temp }}, {{ payload.n }}\"\n\
         to = [\"ana\"]\nby = [\"webhook\"]\n\n\
         [[rule]]\nname = \"event\"\ntopic = \"event/{unit}\"\n\
         text = \"{{ unit }} at {{ payload.temp }}, {{ payload.n }}\"\nto = [\"ana\"]\nby = [\"webhook\"]\n\n\
         [[rule]]\nname = \"timed\"\ntopic = \"timed/{unit}\"\ntext = \"{{ payload }}\"\n\
         to = [\"ana\"]\nby = [\"webhook\"]\n\n"
            .to_owned()
            + &format!("[[contact]]\nname = \"ana\"\nwebhook = \"http://127.0.0.1:{provider}/in\"\n"),
    )
    .unwrap();
    std::fs::write(
        path.join("watchbell.toml"),
        format!(
            "[telemetry]\nlevel = \"error\"\n\
             [broker]\nlisten = \"127.0.0.1:{port}\"\nlisten_tls = \"127.0.0.1:{tls_port}\"\n\
             connections_max = 20000\nconnections_per_address_max = 20000\n\
             [api]\nlisten = \"127.0.0.1:{api}\"\n\
             [[provider]]\nname = \"sink\"\nkind = \"webhook\"\nsecret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n\
             allow_http = true\nallow_private = true\nconcurrency = 16\n{rate}\n"
        ),
    )
    .unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_watchbell"))
        .arg("run")
        .current_dir(path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(port);
    wait_for(tls_port);
    Server { child, port, tls_port, directory }
}

/// mosquitto with everything that could slow it down turned off; `certificates` for its TLS port.
fn mosquitto(certificates: Option<&Path>) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let (port, tls_port) = (free_port(), free_port());
    let mut config = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type none\n\
         max_inflight_messages 0\nmax_queued_messages 0\nset_tcp_nodelay true\nuser root\n"
    );
    if let Some(path) = certificates {
        let path = path.display();
        writeln!(
            config,
            "listener {tls_port} 127.0.0.1\ncafile {path}/ca.pem\ncertfile {path}/server.pem\nkeyfile {path}/server.key"
        )
        .unwrap();
    }
    let file = directory.path().join("mosquitto.conf");
    std::fs::write(&file, config).unwrap();
    let child = Command::new("mosquitto")
        .arg("-c")
        .arg(file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(port);
    Server { child, port, tls_port, directory }
}

// ---- the raw client ---------------------------------------------------------------------------

fn connect_packet(client_id: &str) -> Vec<u8> {
    let mut packet = vec![0x10, u8::try_from(12 + client_id.len()).unwrap()];
    packet.extend_from_slice(b"\0\x04MQTT\x04\x02\0\0");
    packet.extend_from_slice(&u16::try_from(client_id.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(client_id.as_bytes());
    packet
}

fn connect(port: u16, client_id: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&connect_packet(client_id)).unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0], "CONNACK");
    stream
}

fn publish_packet(out: &mut Vec<u8>, topic: &str, packet_id: u16, payload: &str) {
    let remaining = 2 + topic.len() + 2 + payload.len();
    assert!(remaining < 128 * 128);
    out.push(0x32);
    if remaining >= 128 {
        out.push(u8::try_from(remaining % 128).unwrap() | 0x80);
        out.push(u8::try_from(remaining / 128).unwrap());
    } else {
        out.push(u8::try_from(remaining).unwrap());
    }
    out.extend_from_slice(&u16::try_from(topic.len()).unwrap().to_be_bytes());
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(&packet_id.to_be_bytes());
    out.extend_from_slice(payload.as_bytes());
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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

/// A payload is the microseconds since `EPOCH`, so that who sees it knows how old it is.
fn epoch() -> Instant {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
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

fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (sorted.len() as f64 * share) as usize;
    sorted[index.min(sorted.len() - 1)]
}

/// The age in milliseconds of each `at=...` in `bytes`, and how much of `bytes` is done with.
fn report_ages(bytes: &[u8], seen: &std::sync::mpsc::Sender<f64>) -> usize {
    let now = epoch().elapsed().as_secs_f64() * 1e3;
    let mut done = 0;
    while let Some(at) = bytes[done..].windows(3).position(|window| window == b"at=") {
        let digits = done + at + 3..done + at + 15;
        let Some(text) = bytes.get(digits.clone()) else {
            return done;
        };
        let micros: f64 = std::str::from_utf8(text).unwrap().parse().unwrap();
        seen.send(now - micros / 1e3).unwrap_or_default();
        done = digits.end;
    }
    bytes.len().saturating_sub(2).max(done)
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
        std::env::var("IDLE_CONNECTIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(5_000);
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
    use rustls::pki_types::pem::PemObject as _;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let open = async |index: usize| {
            let stream =
                tokio::net::TcpStream::connect(("127.0.0.1", server.tls_port)).await.unwrap();
            let name = "localhost".try_into().unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(&connect_packet(&format!("idle-{index}"))).await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = [0; 4];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [0x20, 2, 0, 0], "CONNACK");
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
