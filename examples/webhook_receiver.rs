//! A receiver of Watchbell's webhooks: verifies the signature, drops repeats, prints the alert.
//!
//! ```text
//! export WEBHOOK_SECRET=whsec_$(openssl rand -base64 32)      the `secret` of the provider too
//! cargo run --example webhook_receiver -- 127.0.0.1:9000
//! cargo run --example webhook_receiver -- --self-test         offline, needs nothing
//! ```
//!
//! The signature is that of Standard Webhooks 1.0: `v1,` and the base64 of HMAC-SHA256 over
//! `id.timestamp.body`. Three things are easily forgotten and done here: the *raw* body is signed,
//! not what a JSON parser makes of it; an old timestamp is refused, or a recorded request could be
//! played again; and the same id may come twice, because delivery is at-least-once.

use std::collections::VecDeque;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::hmac;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// How far the sender's clock may be from ours.
const CLOCK_SLACK: Duration = Duration::from_secs(300);
/// How many ids are remembered. A repeat comes within the life of its message; a receiver whose
/// answers matter remembers the ids where it keeps its data.
const IDS_KEPT: usize = 1000;
const BODY_BYTES_MAX: usize = 64 << 10;

struct Receiver {
    key: hmac::Key,
    /// Ids that were printed, oldest first.
    seen: Mutex<VecDeque<String>>,
}

impl Receiver {
    /// `secret` is `whsec_` and base64.
    fn new(secret: &str) -> anyhow::Result<Self> {
        let encoded = secret.strip_prefix("whsec_").context("the secret begins with whsec_")?;
        let bytes = STANDARD.decode(encoded).context("the secret is base64 after whsec_")?;
        Ok(Self { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes), seen: Mutex::default() })
    }

    /// Whether these bytes come from a holder of the secret, and recently.
    fn verify(&self, headers: &HeaderMap, body: &[u8], now: Duration) -> Result<String, &str> {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let id = header("webhook-id").ok_or("no webhook-id")?;
        let timestamp = header("webhook-timestamp").ok_or("no webhook-timestamp")?;
        let signatures = header("webhook-signature").ok_or("no webhook-signature")?;
        let secs = timestamp.parse().map_err(|_| "webhook-timestamp is no number")?;
        if now.abs_diff(Duration::from_secs(secs)) > CLOCK_SLACK {
            return Err("the timestamp is too old, or the clocks differ");
        }
        let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
        // Several while the sender changes from one secret to the next; one has to fit. The
        // comparison takes the same time whatever is given.
        let fits = signatures.split(' ').filter_map(|one| one.strip_prefix("v1,")).any(|one| {
            let tag = STANDARD.decode(one).unwrap_or_default();
            hmac::verify(&self.key, &signed, &tag).is_ok()
        });
        if fits { Ok(id.to_owned()) } else { Err("the signature does not fit") }
    }

    /// Whether this id is new; remembers it.
    fn is_new(&self, id: &str) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.iter().any(|known| known == id) {
            return false;
        }
        if seen.len() >= IDS_KEPT {
            seen.pop_front();
        }
        seen.push_back(id.to_owned());
        true
    }
}

/// Any 2xx says "I have it". 410 would say "send me nothing more"; everything else is tried again
/// until the message expires.
async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    let id = match receiver.verify(&headers, &body, now()) {
        Ok(id) => id,
        Err(why) => {
            say(&format!("refused: {why}"));
            return (StatusCode::UNAUTHORIZED, "not signed as it should be");
        }
    };
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "not JSON");
    };
    if receiver.is_new(&id) {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let data = &message["data"];
        say(&format!(
            "{}  {}  rule {} key {}: {}",
            text(&message["type"]),
            text(&data["severity"]),
            text(&data["alert"]["rule"]),
            text(&data["alert"]["key"]),
            text(&data["text"]),
        ));
    }
    (StatusCode::NO_CONTENT, "")
}

#[expect(clippy::disallowed_methods, reason = "this program has no clock of Watchbell's")]
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn say(line: &str) {
    // Whoever closed our output does not want to hear it.
    writeln!(std::io::stdout(), "{line}").ok();
}

fn router(receiver: &Arc<Receiver>) -> Router {
    Router::new()
        .route("/", post(receive))
        .route("/{*path}", post(receive))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::clone(receiver))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9000".to_owned());
    if argument == "--self-test" {
        return self_test().await;
    }
    let Ok(secret) = std::env::var("WEBHOOK_SECRET") else {
        bail!("set WEBHOOK_SECRET to the provider's secret: whsec_$(openssl rand -base64 32)");
    };
    let receiver = Arc::new(Receiver::new(&secret)?);
    let listener = tokio::net::TcpListener::bind(&argument).await.context(argument)?;
    say(&format!("listening on http://{}", listener.local_addr()?));
    axum::serve(listener, router(&receiver)).await.context("serving")
}

/// Signs requests as Watchbell does, sends them over HTTP, and checks every answer.
async fn self_test() -> anyhow::Result<()> {
    // The published example of the specification: both sides could else be wrong in the same way.
    let example = Receiver::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?;
    let mut headers = HeaderMap::new();
    headers.insert("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek".parse()?);
    headers.insert("webhook-timestamp", "1614265330".parse()?);
    let signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    headers.insert("webhook-signature", signature.parse()?);
    let then = Duration::from_secs(1_614_265_330);
    let found = example.verify(&headers, br#"{"test": 2432232314}"#, then);
    ensure!(found.as_deref() == Ok("msg_p5jXN8AQM9LWM0D4loKWxJek"), "the example: {found:?}");

    let receiver = Arc::new(Receiver::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/alerts", listener.local_addr()?);
    let server = axum::serve(listener, router(&receiver));
    let served = tokio::spawn(async move { server.await });

    let now = now().as_secs();
    let body = r#"{"type":"watchbell.alert.firing","data":{"severity":"critical","text":"freezer 1: -10.5 °C","alert":{"rule":"freezer-warm","key":"kiel/1"}}}"#;
    let cases = [
        ("as it should be", "m1", now, body, body, StatusCode::NO_CONTENT),
        ("the same again", "m1", now, body, body, StatusCode::NO_CONTENT),
        ("another body than the signed one", "m2", now, body, "{}", StatusCode::UNAUTHORIZED),
        ("ten minutes old", "m3", now - 600, body, body, StatusCode::UNAUTHORIZED),
    ];
    let client = reqwest::Client::builder().no_proxy().build()?;
    for (what, id, timestamp, signed, sent, expected) in cases {
        let tag = hmac::sign(&receiver.key, format!("{id}.{timestamp}.{signed}").as_bytes());
        let answer = client
            .post(&url)
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", format!("v1,{}", STANDARD.encode(tag)))
            .body(sent)
            .send()
            .await?;
        ensure!(answer.status() == expected, "{what}: {}", answer.status());
    }
    let printed = receiver.seen.lock().unwrap_or_else(PoisonError::into_inner).len();
    ensure!(printed == 1, "printed {printed} times");
    served.abort();
    say("self-test passed");
    Ok(())
}
