//! A stand-in for a provider: real HTTP/1.1 on a real port, with every bad manner that the real
//! ones have.
//!
//! What it answers comes from the script first (one answer a request, in order), then from the
//! responder. It notes every request that it has read whole, in order of arrival, before it
//! answers. It can be stopped (connections refused, open ones cut) and started again on the same
//! port.
//!
//! Written on the socket and not on an HTTP library, because a library will not cut a connection
//! in the middle of a body.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, or the whole URL where the fake is used as a proxy.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) at: Instant,
}

impl Request {
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The fields of a form in the body.
    pub(crate) fn form(&self) -> HashMap<String, String> {
        pairs(&self.text())
    }

    /// The fields of the query.
    pub(crate) fn query(&self) -> HashMap<String, String> {
        pairs(self.target.split_once('?').map_or("", |(_, query)| query))
    }
}

fn pairs(text: &str) -> HashMap<String, String> {
    let url = reqwest::Url::parse(&format!("http://x/?{text}")).unwrap();
    url.query_pairs().into_owned().collect()
}

/// Where an answer breaks off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Nowhere.
    No,
    /// The connection is closed before anything of the request is read.
    BeforeReading,
    /// The request is read whole and noted, then the connection is closed.
    AfterReading,
    /// Status, headers and half of the body are written, then the connection is closed.
    InBody,
    /// The request is read whole and noted; then nothing, until the client gives up.
    Never,
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    delay: Duration,
    held: Option<watch::Receiver<bool>>,
    cut: Cut,
}

impl Answer {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
            delay: Duration::ZERO,
            held: None,
            cut: Cut::No,
        }
    }

    pub(crate) fn json(status: u16, body: &Value) -> Self {
        let mut answer = Self::new(status).header("content-type", "application/json");
        answer.body = body.to_string().into_bytes();
        answer
    }

    pub(crate) fn cut(cut: Cut) -> Self {
        Self { cut, ..Self::json(200, &json!({"cut": "somewhere in here"})) }
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// This answer, not before the gate is open.
    pub(crate) fn held(mut self, gate: &watch::Sender<bool>) -> Self {
        self.held = Some(gate.subscribe());
        self
    }

    /// This answer, broken off.
    pub(crate) fn but_cut(mut self, cut: Cut) -> Self {
        self.cut = cut;
        self
    }
}

/// An answer of JSON text that a gateway has compressed without being asked.
pub(crate) fn packed(status: u16, json: &str) -> Answer {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, json.as_bytes()).unwrap();
    Answer::new(status)
        .header("content-type", "application/json")
        .header("content-encoding", "gzip")
        .body(encoder.finish().unwrap())
}

type Responder = Arc<dyn Fn(&Request) -> Answer + Send + Sync>;

struct Inner {
    script: Mutex<VecDeque<Answer>>,
    responder: Mutex<Responder>,
    requests: Mutex<Vec<Request>>,
    /// The accept loop; its end cuts every connection.
    running: Mutex<Option<AbortHandle>>,
}

/// The stand-in; clones are the same one. It ends with its runtime, or with [`Fake::stop`].
#[derive(Clone)]
pub(crate) struct Fake {
    inner: Arc<Inner>,
    address: SocketAddr,
    /// Holds the port while the fake is stopped: bound and not listening, it refuses connections.
    _port: Arc<TcpSocket>,
}

/// A socket on `address` that lets another of ours be on it too.
fn bind(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

impl Fake {
    /// Starts one that answers 200 without a body.
    pub(crate) async fn start() -> Self {
        let port = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let fake = Self {
            address: port.local_addr().unwrap(),
            _port: Arc::new(port),
            inner: Arc::new(Inner {
                script: Mutex::default(),
                responder: Mutex::new(Arc::new(|_| Answer::new(200))),
                requests: Mutex::default(),
                running: Mutex::default(),
            }),
        };
        fake.run();
        fake
    }

    /// Starts one that answers by a function of the request.
    pub(crate) async fn answering(
        responder: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let fake = Self::start().await;
        fake.respond(responder);
        fake
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Appends to the script.
    pub(crate) fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.inner.script.lock().unwrap().extend(answers);
    }

    /// What is answered when the script has run out.
    pub(crate) fn respond(&self, responder: impl Fn(&Request) -> Answer + Send + Sync + 'static) {
        *self.inner.responder.lock().unwrap() = Arc::new(responder);
    }

    /// What has arrived, in order.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.inner.requests.lock().unwrap().clone()
    }

    /// How many requests have arrived.
    pub(crate) fn count(&self) -> usize {
        self.inner.requests.lock().unwrap().len()
    }

    /// The texts of the messages that have arrived, as Twilio is sent them.
    pub(crate) fn texts(&self) -> Vec<String> {
        let posts = self.requests().into_iter().filter(|request| request.method == "POST");
        posts.map(|request| request.form()["Body"].clone()).collect()
    }

    /// The only request that has arrived.
    pub(crate) fn only(&self) -> Request {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        requests.into_iter().next().unwrap()
    }

    /// How many different bodies have arrived: what is left when repeats are dropped.
    pub(crate) fn distinct_bodies(&self) -> usize {
        let requests = self.inner.requests.lock().unwrap();
        requests.iter().map(|request| &request.body).collect::<BTreeSet<_>>().len()
    }

    /// Refuses connections from now on and cuts the open ones.
    pub(crate) async fn stop(&self) {
        let running = self.inner.running.lock().unwrap().take();
        if let Some(running) = running {
            running.abort();
            while !running.is_finished() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes connections again, on the same port.
    pub(crate) async fn restart(&self) {
        self.stop().await;
        self.run();
    }

    fn run(&self) {
        let listener = bind(self.address).listen(1024).unwrap();
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                while connections.try_join_next().is_some() {}
                let inner = Arc::clone(&inner);
                connections.spawn(async move {
                    // A connection that breaks is what many tests are about.
                    drop(inner.serve(stream).await);
                });
            }
        });
        *self.inner.running.lock().unwrap() = Some(task.abort_handle());
    }
}

impl Inner {
    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut buffer = Vec::new();
        loop {
            // A cut before reading takes its turn when the request's first byte is there. Closed
            // with bytes unread, the connection is reset.
            if stream.peek(&mut [0]).await? == 0 || self.takes_cut_before_reading() {
                return Ok(());
            }
            let Some(request) = read(&mut stream, &mut buffer).await? else {
                return Ok(());
            };
            self.requests.lock().unwrap().push(request.clone());
            let scripted = self.script.lock().unwrap().pop_front();
            let responder = Arc::clone(&self.responder.lock().unwrap());
            let mut answer = scripted.unwrap_or_else(|| responder(&request));
            tokio::time::sleep(answer.delay).await;
            if let Some(gate) = &mut answer.held {
                // A gate that has gone holds nothing up.
                drop(gate.wait_for(|open| *open).await);
            }
            let (head, body) = write(&answer);
            match answer.cut {
                Cut::No => {
                    stream.write_all(&[head, body].concat()).await?;
                }
                Cut::InBody => {
                    let half = body.get(..body.len() / 2).unwrap_or_default().to_vec();
                    stream.write_all(&[head, half].concat()).await?;
                    return stream.shutdown().await;
                }
                Cut::BeforeReading | Cut::AfterReading => return stream.shutdown().await,
                Cut::Never => {
                    // Until the client closes.
                    while stream.read(&mut [0; 64]).await? > 0 {}
                    return Ok(());
                }
            }
        }
    }

    fn takes_cut_before_reading(&self) -> bool {
        let mut script = self.script.lock().unwrap();
        let cut = script.front().is_some_and(|answer| answer.cut == Cut::BeforeReading);
        if cut {
            script.pop_front();
        }
        cut
    }
}

fn write(answer: &Answer) -> (Vec<u8>, Vec<u8>) {
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    (head.into_bytes(), answer.body.clone())
}

/// Reads one request; `None` when the client has closed. What is read beyond it stays in `buffer`.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Request>> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let target = first.next().unwrap_or_default().to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    // Providers are sent whole bodies; a chunked one would be a surprise worth failing on.
    assert!(!headers.contains_key("transfer-encoding"), "{head}");
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    let body_start = head_end + 4;
    while buffer.len() < body_start + length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let body = buffer[body_start..body_start + length].to_vec();
    buffer.drain(..body_start + length);
    Ok(Some(Request { method, target, headers, body, at: Instant::now() }))
}

/// Twilio, as far as a sender sees it: takes messages and lists what it has taken. For a fake's
/// responder; an answer from the fake's script takes nothing.
#[derive(Clone, Default)]
pub(crate) struct Twilio {
    taken: Arc<Mutex<Vec<Value>>>,
}

impl Twilio {
    /// One that takes everything, and where it is.
    pub(crate) async fn start() -> (Fake, Self) {
        let twilio = Self::default();
        let answering = twilio.clone();
        (Fake::answering(move |request| answering.answer(request)).await, twilio)
    }

    /// Takes the message of `request`: the answer.
    pub(crate) fn took(&self, request: &Request) -> Value {
        let form = request.form();
        let mut taken = self.taken.lock().unwrap();
        let row = json!({
            "sid": format!("SM{:032x}", taken.len() + 1),
            "status": "queued",
            "direction": "outbound-api",
            "to": form.get("To"),
            "from": form.get("From"),
            "messaging_service_sid": form.get("MessagingServiceSid"),
            "body": form.get("Body"),
            "num_segments": "1",
            "date_created": null,
        });
        taken.push(row.clone());
        row
    }

    /// The texts that it has taken, in order.
    pub(crate) fn texts(&self) -> Vec<String> {
        let taken = self.taken.lock().unwrap();
        taken.iter().map(|row| row["body"].as_str().unwrap().to_owned()).collect()
    }

    /// How many messages it has taken.
    pub(crate) fn count(&self) -> usize {
        self.taken.lock().unwrap().len()
    }

    /// 201 to a message, the list to a GET.
    pub(crate) fn answer(&self, request: &Request) -> Answer {
        if request.method == "POST" {
            return Answer::json(201, &self.took(request));
        }
        let query = request.query();
        let is = |row: &Value, name: &str, field: &str| {
            query.get(name).is_none_or(|value| row[field] == json!(value))
        };
        let taken = self.taken.lock().unwrap();
        // Newest first.
        let rows: Vec<Value> = taken
            .iter()
            .rev()
            .filter(|row| is(row, "To", "to") && is(row, "From", "from"))
            .cloned()
            .collect();
        Answer::json(200, &json!({ "messages": rows, "next_page_uri": null }))
    }
}
