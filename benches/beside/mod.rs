//! What the benches share: the real binary and Debian's mosquitto on free ports of the loopback,
//! a raw client, and the age of a publish.
//!
//! Never more than the wire needs, so that what is measured is the broker.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn mosquitto_is_there() -> bool {
    Command::new("mosquitto").arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

// ---- the brokers ------------------------------------------------------------------------------

/// A process that ends with its owner.
pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
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
    pub(crate) fn resident(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
    }

    pub(crate) fn certificates(&self) -> PathBuf {
        self.directory.path().join("certs")
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn wait_for(port: u16) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "nothing listens on port {port}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// `provider` is where alerts go; `rate` keeps the dispatcher from competing with the intake.
pub(crate) fn watchbell(provider: u16, rate: &str) -> Server {
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
             connections_max = 20000\nconnections_per_address_max = 20000\nqueue_messages_max = 60000\n\
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
pub(crate) fn mosquitto(certificates: Option<&Path>) -> Server {
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

pub(crate) fn connect_packet(client_id: &str) -> Vec<u8> {
    let mut packet = vec![0x10, u8::try_from(12 + client_id.len()).unwrap()];
    packet.extend_from_slice(b"\0\x04MQTT\x04\x02\0\0");
    packet.extend_from_slice(&u16::try_from(client_id.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(client_id.as_bytes());
    packet
}

pub(crate) fn connect(port: u16, client_id: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(&connect_packet(client_id)).unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0], "CONNACK");
    stream
}

pub(crate) fn publish_packet(out: &mut Vec<u8>, topic: &str, packet_id: u16, payload: &str) {
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

// ---- figures -----------------------------------------------------------------------------------

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let index = (sorted.len() as f64 * share) as usize;
    sorted[index.min(sorted.len() - 1)]
}

/// A payload is the microseconds since `EPOCH`, so that who sees it knows how old it is.
pub(crate) fn epoch() -> Instant {
    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// The age in milliseconds of each `at=...` in `bytes`, and how much of `bytes` is done with.
pub(crate) fn report_ages(bytes: &[u8], seen: &std::sync::mpsc::Sender<f64>) -> usize {
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

// ---- many clients at once ----------------------------------------------------------------------

/// A client of ours is a file too.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
}

/// TLS with the CA that `server` uses; one session cache for all, as a device keeps its ticket.
pub(crate) fn connector(ca: &Path) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::pem::PemObject as _;

    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// CONNECT and CONNACK on a stream of any kind.
pub(crate) async fn introduce<S>(stream: &mut S, client_id: &str) -> std::io::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    stream.write_all(&connect_packet(client_id)).await?;
    stream.flush().await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    assert_eq!(answer, [0x20, 2, 0, 0], "CONNACK");
    Ok(())
}

/// One thread, so that the clients leave the other core to the broker.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
