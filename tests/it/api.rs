//! The HTTP edge and the commands that use it, against the whole application.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::eventually;
use crate::harness::{Harness, Place};

const CONTACTS: &str = "[[contact]]\nname = 'ana'\nsms = '+4915550100001'\n";

/// The application and a client of its own, for requests that are not as they should be.
struct Edge {
    harness: Harness,
    http: reqwest::Client,
    key: String,
}

impl Edge {
    async fn start(config: &str) -> Self {
        let harness = Harness::start(config).await;
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let key = std::fs::read_to_string(harness.place.path("data/api.key")).unwrap();
        Self { harness, http, key }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("http://{}{path}", self.harness.app.instance().api))
    }

    /// Asks with the key; answers status and body.
    async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let request = self.request(method, path).bearer_auth(&self.key);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let response = request.send().await.unwrap();
        let status = response.status();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// Sends bytes as they are, reads until the other side closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.harness.app.instance().api).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// The exit code and what the command line says.
    async fn command(&self, arguments: &[&str]) -> (ExitCode, String) {
        run(&self.harness.place.path(""), arguments).await
    }

    async fn stop(self) -> Place {
        self.harness.stop().await
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{headers}\r\n")
}

/// Every provider call fails at once, and is tried again much later.
const DOWN: &str = "
[dispatch]
retry = { first = '1h', max = '1h' }
[[provider]]
name = 'down'
kind = 'twilio'
base_url = 'http://127.0.0.1:1'
account_sid = 'AC00000000000000000000000000000000'
auth_token = 'x'
from = '+15005550006'
";

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_taken_shown_and_masked() {
    let edge = Edge::start("").await;
    let body = json!({
        "to": ["ana"], "sms": "+4915550100002", "text": "hello", "title": "T",
        "severity": "critical", "expires_in": "1h",
    });
    let (status, sent) = edge.ask(Method::POST, "/v1/messages", Some(body)).await;
    assert_eq!((status, &sent["repeated"]), (StatusCode::ACCEPTED, &json!(false)));
    let ids: Vec<&str> = sent["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 2);
    eventually(|| edge.harness.app.screen().recent().len() == 2).await;
    eventually(|| edge.harness.app.waiting() == 0).await;

    let one = edge.get(&format!("/v1/messages/{}", ids[0])).await;
    assert_eq!(one["status"], "delivered");
    assert_eq!(one["attempts"][0]["outcome"], "accepted");
    assert_eq!((&one["contact"], &one["address"]), (&json!("ana"), &json!("+49…001")));
    let phone = edge.get("/v1/phone").await;
    assert_eq!(phone["messages"].as_array().unwrap().len(), 2);
    let list = edge.get("/v1/messages").await;
    assert_eq!(list["messages"].as_array().unwrap().len(), 2);
    for text in [one, phone, list, sent.clone()].map(|value| value.to_string()) {
        assert!(!text.contains("0100001") && !text.contains("0100002"), "{text}");
    }

    let page = edge.get("/v1/messages?limit=1&status=delivered,read&channel=sms").await;
    let next = page["next"].as_str().expect("there is another page");
    let page = edge.get(&format!("/v1/messages?limit=1&before={next}")).await;
    assert_eq!(page["messages"].as_array().unwrap().len(), 1);
    assert_ne!(page["messages"][0]["id"], *next);
    assert_eq!(edge.get("/v1/messages?contact=ben").await["messages"], json!([]));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotency_key_sends_once() {
    let edge = Edge::start("").await;
    let send = |text: &str| {
        edge.request(Method::POST, "/v1/messages")
            .bearer_auth(&edge.key)
            .header("idempotency-key", "k-1")
            .json(&json!({ "to": ["ana"], "text": text }))
            .send()
    };
    let first = send("a").await.unwrap();
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let first: Value = first.json().await.unwrap();
    let again = send("a").await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    let again: Value = again.json().await.unwrap();
    assert_eq!(again["messages"][0]["id"], first["messages"][0]["id"]);
    assert_eq!(again["repeated"], true);
    let other = send("b").await.unwrap();
    assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_request_is_told_at_once() {
    let edge = Edge::start("[api]\nbody_bytes_max = 1024").await;
    let mut said = Vec::new();
    for (path, body) in [
        ("/v1/messages", "{"),
        ("/v1/messages", "[1]"),
        ("/v1/messages", "{}"),
        ("/v1/messages", r#"{"too":["x"],"sms":["12",7],"text":5,"severity":"bad"}"#),
        ("/v1/messages", r#"{"sms":"12","text":" ","idempotency_key":"","expires_in":"5"}"#),
        ("/v1/messages", r#"{"to":["nobody"],"text":"a","title":null}"#),
        ("/v1/devices", r#"{"user":"a/b","password":"short","client_ids":["ok-*","a b"]}"#),
        ("/v1/messages/x/retry", ""),
        ("/v1/messages/00000000-0000-7000-8000-000000000000/cancel", ""),
        ("/v1/providers/nobody/resume", ""),
        ("/v1/nothing", ""),
        ("/v1/phone", ""),
    ] {
        let request = edge.request(Method::POST, path).bearer_auth(&edge.key);
        let response = request.body(body.to_owned()).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let status = response.status().as_u16();
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["status"], status);
        let reason = problem["reason"].as_str().unwrap_or("-");
        let detail = problem["detail"].as_str().unwrap();
        said.push(format!("{status} {reason}: {detail}"));
    }
    insta::assert_snapshot!(said.join("\n"), @r#"
    400 bad_request: the body is not JSON: EOF while parsing an object at line 1 column 1
    400 bad_request: the body must be a JSON object
    422 bad_request: to: nobody to send to; name contacts here, or addresses in `sms`, `whatsapp`, `push` or `webhook`; text: it is empty
    422 bad_request: severity: unknown variant `bad`, expected one of `info`, `warning`, `critical`; sms[1]: invalid type: integer `7`, expected a string; text: invalid type: integer `5`, expected a string; too: unknown key; did you mean `to`?; to: nobody to send to; name contacts here, or addresses in `sms`, `whatsapp`, `push` or `webhook`
    422 bad_request: expires_in: `5` has no unit; write 5s for seconds (units are ms, s, m, h, d); sms[0]: not a phone number in E.164 form; write + and country code, 7 to 15 digits, no spaces: +4915112345678; text: it is empty; idempotency_key: 1 to 128 bytes
    422 bad_request: there is no contact `nobody`
    422 bad_request: user: 1 to 64 characters, no spaces or control characters, none of / + # $ *; password: 8 to 256 bytes; client_ids[1]: a client id of 1 to 64 characters, or a pattern with `*`, as pump-*
    404 -: a message id is a UUID; `watchbell outbox list` shows them
    404 -: there is no message 00000000-0000-7000-8000-000000000000; ended ones are kept for store.retention
    404 -: there is no provider nobody
    404 -: there is no such path; the API's paths begin with /v1, the console is at /
    405 -: the path is there, the method is not
    "#);

    let long = json!({ "to": ["ana"], "text": "x".repeat(2000) });
    let (status, problem) = edge.ask(Method::POST, "/v1/messages", Some(long)).await;
    assert_eq!((status.as_u16(), &problem["reason"]), (413, &json!("packet_too_large")));
    assert_eq!(edge.harness.app.waiting(), 0);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_open_to_this_machine_and_to_nobody_behind_it() {
    let edge = Edge::start("").await;
    let key = format!("authorization: Bearer {}\r\n", edge.key);
    for (path, headers, expected) in [
        ("/v1/status", "host: localhost:8080\r\n", "200"),
        ("/v1/messages", "host: 127.0.0.1\r\n", "200"),
        ("/v1/phone", "host: [::1]:1\r\n", "200"),
        ("/v1/status", "host: rebound.example:8080\r\n", "401"),
        ("/v1/status", "host: localhost\r\nx-forwarded-for: 10.0.0.1\r\n", "401"),
        ("/v1/devices", "host: localhost\r\n", "401"),
        ("/v1/devices", "host: localhost\r\nauthorization: Bearer nonsense\r\n", "401"),
        ("/v1/devices", "host: localhost\r\nauthorization: Basic eDp5\r\n", "401"),
        ("/v1/devices", &format!("host: x\r\n{key}"), "200"),
        ("/healthz", "host: x\r\n", "200"),
        ("/readyz", "host: x\r\n", "200"),
        ("/metrics", "host: x\r\n", "200"),
        ("/", "host: x\r\n", "200"),
    ] {
        let answer = edge.raw(&get(path, headers)).await;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert_eq!(status, expected, "{path} {headers}");
    }
    let post = "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
    assert!(edge.raw(post).await.starts_with("HTTP/1.1 401"));
    let metrics = edge.raw(&get("/metrics", "host: x\r\n")).await;
    for line in [
        "watchbell_http_refused_total{reason=\"not_authorized\"} 5",
        "watchbell_http_refused_total{reason=\"bad_credentials\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    edge.stop().await;

    let edge = Edge::start("[api]\nopen_reads = 'never'").await;
    let answer = edge.raw(&get("/v1/status", "host: localhost\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    edge.get("/v1/status").await;
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_of_the_phone_misses_nothing_and_is_let_go() {
    let edge = Edge::start("[api]\nsse_clients_max = 1").await;
    let send = |text: &str| json!({ "to": ["ana"], "text": text });
    edge.ask(Method::POST, "/v1/messages", Some(send("before"))).await;
    eventually(|| edge.harness.app.screen().recent().len() == 1).await;
    let mut stream = edge.request(Method::GET, "/v1/phone/events").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let refused = edge.request(Method::GET, "/v1/phone/events").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));

    let mut told = String::new();
    while !told.contains("\"before\"") {
        told.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
    }
    edge.ask(Method::POST, "/v1/messages", Some(send("after"))).await;
    while !told.contains("\"after\"") {
        told.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
    }
    assert_eq!(told.matches("event: shown").count(), 2, "{told}");
    assert!(!told.contains("0100001"), "{told}");
    // The stream ends in order when the process stops, and does not hold it up.
    let to_its_end = async { while stream.chunk().await.unwrap().is_some() {} };
    tokio::join!(edge.stop(), to_its_end);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_says_nothing_is_let_go_and_holds_up_nobody_else() {
    let edge =
        Edge::start("[api]\nread_timeout = '200ms'\nconnections_max = 1\nsse_clients_max = 0")
            .await;
    let mut silent = TcpStream::connect(edge.harness.app.instance().api).await.unwrap();
    silent.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    // The only permit is the silent one's until its time is over.
    let answer = edge.raw(&get("/healthz", "host: x\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).await.unwrap();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));

    let post = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-length: 9\r\n\r\n{{",
        edge.key
    );
    assert!(edge.raw(&post).await.starts_with("HTTP/1.1 408"));
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_added_listed_and_removed() {
    let edge = Edge::start("").await;
    let (status, made) =
        edge.ask(Method::POST, "/v1/devices", Some(json!({ "user": "pump-7" }))).await;
    assert_eq!((status.as_u16(), made["password"].as_str().unwrap().len()), (201, 24));
    let given = json!({ "user": "gw", "password": "correct horse", "client_ids": ["gw-*"] });
    let (status, added) = edge.ask(Method::POST, "/v1/devices", Some(given)).await;
    assert_eq!((status.as_u16(), added.get("password")), (201, None));
    let listed = edge.get("/v1/devices").await;
    assert_eq!(listed["devices"][0]["client_ids"], json!(["gw-*"]));
    assert_eq!(listed["devices"][1]["user"], "pump-7");
    assert!(!listed.to_string().contains("argon2"), "{listed}");
    let (status, _) = edge.ask(Method::DELETE, "/v1/devices/gw", None).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let (status, _) = edge.ask(Method::DELETE, "/v1/devices/gw", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outbox_is_looked_into_and_handled() {
    let edge = Edge::start(DOWN).await;
    let (code, said) = edge.command(&["send", "--to", "ana", "--key", "k", "down there"]).await;
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
    let id = said.split(' ').next().unwrap().to_owned();
    assert!(said.ends_with("sms to ana: queued\n"), "{said}");
    let (_, said) = edge.command(&["send", "--to", "ana", "--key", "k", "down there"]).await;
    assert!(said.ends_with("was queued before\n"), "{said}");

    let path = format!("/v1/messages/{id}");
    while edge.get(&path).await["attempts"][0]["outcome"] != "retry" {
        tokio::task::yield_now().await;
    }
    let (_, said) = edge.command(&["outbox", "list", "--status", "queued"]).await;
    assert!(said.contains(&id) && said.contains("queued: connect_failed"), "{said}");
    let tail = &id[id.len() - 6..];
    let (_, said) = edge.command(&["outbox", "show", tail]).await;
    for part in [
        &format!("message {id}"),
        "to        ana, +49…001, by sms",
        "attempt 1 by down: not taken, tried again: connect_failed",
        "next attempt due (in ",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    let (_, said) = edge.command(&["outbox", "list", "--json"]).await;
    let list: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(list[0]["id"], json!(id));

    let (code, said) = edge.command(&["outbox", "cancel", tail]).await;
    assert_eq!((code, said.as_str()), (ExitCode::SUCCESS, &*format!("{id}  canceled\n")));
    let (code, said) = edge.command(&["outbox", "cancel", tail]).await;
    assert_eq!(code, ExitCode::FAILURE);
    assert!(said.starts_with("error: not allowed now: "), "{said}");
    let (code, said) = edge.command(&["outbox", "retry", &id]).await;
    assert_eq!((code, said.as_str()), (ExitCode::SUCCESS, &*format!("{id}  queued\n")));
    let (code, said) = edge.command(&["outbox", "retry", "--all-failed"]).await;
    assert_eq!((code, said.as_str()), (ExitCode::SUCCESS, "0 messages will be sent again\n"));
    for (part, expected) in [("ffff", "begins or ends with"), ("xyz", "is no message id")] {
        let (code, said) = edge.command(&["outbox", "show", part]).await;
        assert_eq!(code, ExitCode::FAILURE);
        assert!(said.contains(expected), "{said}");
    }

    let (_, said) = edge.command(&["status"]).await;
    for part in ["ready\n", "outbox   1 waiting", "down  twilio  sms"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    edge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_managed_with_and_without_an_instance() {
    let edge = Edge::start("").await;
    let (code, said) = edge.command(&["device", "add", "pump-7", "--client-id", "p-*"]).await;
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
    assert!(said.contains("\npassword ") && said.contains(" -i p-1 "), "{said}");
    let (code, said) = edge.command(&["device", "remove", "nobody"]).await;
    assert_eq!(code, ExitCode::FAILURE, "{said}");
    let place = edge.stop().await;

    // The same directory without an instance: straight to the store.
    let offline = &place.path("");
    // In one process the store's lock is held until its last thread has gone.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (code, said) = run(offline, &["device", "list"]).await;
        if code == ExitCode::SUCCESS {
            assert!(said.contains("pump-7  p-*"), "{said}");
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
    }
    let (code, said) = run(offline, &["device", "remove", "pump-7"]).await;
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
    let (_, said) = run(offline, &["device", "list"]).await;
    assert!(said.starts_with("There are no devices"), "{said}");
    let (code, said) = run(offline, &["outbox", "list"]).await;
    assert_eq!(code, ExitCode::FAILURE);
    assert!(said.contains("start it with `watchbell run`"), "{said}");
}

/// A command against the data directory in `directory`.
async fn run(directory: &Path, arguments: &[&str]) -> (ExitCode, String) {
    let data_dir = directory.join("data").into_os_string();
    let arguments: Vec<OsString> = ["watchbell"]
        .iter()
        .chain(arguments)
        .map(OsString::from)
        .chain(["--data-dir".into(), data_dir])
        .collect();
    let run = move || {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = watchbell::cli::execute(arguments, Vec::new(), &mut out, &mut err);
        out.extend(err);
        (code, String::from_utf8(out).unwrap())
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_from_the_command_line_is_acknowledged() {
    let edge = Edge::start("").await;
    let (code, said) = edge.command(&["pub", "a/b", "hello"]).await;
    let place = edge.harness.app.instance().mqtt.unwrap();
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
    assert!(said.starts_with(&format!("published 5 bytes to a/b at {place}: ")), "{said}");
    for qos in ["0", "2"] {
        let (code, said) = edge.command(&["pub", "a/b", "hello", "--qos", qos]).await;
        assert_eq!(code, ExitCode::SUCCESS, "{said}");
    }
    let (code, said) = edge.command(&["pub", "a/+", "hello"]).await;
    assert_eq!(code, ExitCode::FAILURE);
    assert!(said.contains("it holds a wildcard"), "{said}");
    edge.stop().await;

    let dir = tempfile::tempdir().unwrap();
    let (code, said) = run(dir.path(), &["pub", "a", "b", "--port", "1"]).await;
    assert_eq!(code, ExitCode::FAILURE);
    assert!(said.contains("nothing listens there; is watchbell running?"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_of_configuration_and_rules_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(path("rules")).unwrap();
    std::fs::write(path("rules/contacts.toml"), CONTACTS).unwrap();
    std::fs::write(path("w.toml"), "[api]\npage_max = 3\n").unwrap();
    let (config, rules) = (path("w.toml"), path("rules"));
    let arguments = ["check", "--config", &config, "--rules-dir", &rules];
    let (code, said) = run(dir.path(), &arguments).await;
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
    assert!(
        said.contains("fine, delivers by phone; ") && said.contains("1 contact in 1 file"),
        "{said}"
    );

    std::fs::write(path("w.toml"), "[api]\npage_mx = 3\n").unwrap();
    std::fs::write(path("rules/a.toml"), "[[rule]]\nname = 'r'\ntopic = 'a/#/b'\n").unwrap();
    let (code, said) = run(dir.path(), &arguments).await;
    assert_eq!(code, ExitCode::FAILURE);
    for part in ["w.toml:2: api.page_mx: unknown key; did you mean `page_max`?", "rules/a.toml:3: "]
    {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(said.ends_with(" problems\n"), "{said}");
}
