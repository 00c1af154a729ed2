//! The real application in-process: a temporary directory, free ports, real MQTT, real HTTP.
//!
//! A [`Place`] is what is on disk: certificates, rules, data. A [`Harness`] is the application
//! running there; stopped, it gives its place back, for the next start. Nothing outlives the test:
//! the application ends with the test's runtime, the directory with the place.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use watchbell::app::{App, StartError};
use watchbell::certs::{self, Pair};
use watchbell::clock::Clock;
use watchbell::config::layers::{FileLayer, Flag, Layers};
use watchbell::instance;

use crate::device::{Options, Version};
use crate::fake::Fake;

/// Retries in milliseconds, so that a test of a failure is over soon.
pub(crate) const QUICK: &str = "
    [dispatch]
    retry = { first = '10ms', max = '100ms' }
    breaker = { failures = 5, first = '20ms', max = '100ms' }
";

/// Ana's number, which nobody but a provider may see whole.
pub(crate) const ANA: &str = "+4915550100001";
/// The Twilio account of [`twilio`].
pub(crate) const ACCOUNT: &str = "AC0123456789abcdef0123456789abcdef";
/// Its auth token, which nobody but Twilio may see.
pub(crate) const TOKEN: &str = "s3cret-t0ken-42";
/// Its sender.
pub(crate) const SENDER: &str = "+15005550006";

/// A rule whose every publish is an alert of its own, to Ana by SMS.
pub(crate) const ALARM: &str = r#"
[[rule]]
name = "alarm"
topic = "devices/{device}/alarm"
decode = "text"
to = ["ana"]
by = ["sms"]
text = "alarm {{ payload }}"
"#;

const CONTACTS: &str = "
    [[contact]]
    name = 'ana'
    sms = '+4915550100001'
    push = 'registration-token-of-ana'
    [[contact]]
    name = 'ben'
    sms = '+4915550100002'
";

/// The provider `name`: Twilio, whose API is at `fake`.
pub(crate) fn twilio(name: &str, fake: &Fake) -> String {
    let url = fake.url();
    format!(
        "
        [[provider]]
        name = '{name}'
        kind = 'twilio'
        base_url = '{url}'
        account_sid = '{ACCOUNT}'
        auth_token = '{TOKEN}'
        from = '{SENDER}'
        "
    )
}

/// Waits until `look` has found something. Generous, so that a slow machine only makes the test
/// slow.
pub(crate) async fn found<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What is on disk.
pub(crate) struct Place {
    directory: TempDir,
    config: String,
}

impl Place {
    /// A directory with certificates, the contacts Ana and Ben, no rules, and this configuration.
    pub(crate) fn new(config: &str) -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap(), config: config.to_owned() };
        certs::ensure_development(&place.path("certs"), Clock::System.now()).unwrap();
        std::fs::create_dir(place.path("rules")).unwrap();
        place.write("rules/contacts.toml", CONTACTS);
        place.write("watchbell.toml", config);
        place
    }

    /// With this configuration in place of the one that it was made with.
    pub(crate) fn configured(mut self, config: &str) -> Self {
        self.write("watchbell.toml", config);
        config.clone_into(&mut self.config);
        self
    }

    /// With these rules, in `rules/rules.toml`.
    pub(crate) fn rules(self, rules: &str) -> Self {
        self.write("rules/rules.toml", rules);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// The client certificate of `id`, made at the first call.
    pub(crate) fn certificate(&self, id: &str) -> Pair {
        let pair = Pair::of(&self.path("certs"), id);
        if !pair.cert.exists() {
            certs::client(&self.path("certs"), id, false, Clock::System.now()).unwrap();
        }
        pair
    }

    /// A device with a certificate of its own.
    pub(crate) fn device(&self, address: SocketAddr, id: &str) -> Options {
        let pair = self.certificate(id);
        Options {
            version: Version::V5,
            client_id: id.to_owned(),
            address,
            tls: Some((self.path("certs/ca.pem"), Some(pair))),
            login: None,
        }
    }

    /// A client without TLS and without a name.
    pub(crate) fn plain(address: SocketAddr, id: &str) -> Options {
        let client_id = id.to_owned();
        Options { version: Version::V5, client_id, address, tls: None, login: None }
    }

    /// Starts the application here.
    pub(crate) async fn start(self) -> Harness {
        let app = found("the store's lock", async || match self.try_start().await {
            // sled's own threads hold it a moment longer than an application that has stopped.
            Err(why) if why.contains("another watchbell") => None,
            started => Some(started.unwrap_or_else(|why| panic!("{why}"))),
        })
        .await;
        Harness { app, api: Api::of(&self.path("data")), place: self }
    }

    /// Starts the application here, where another may run: why it cannot.
    pub(crate) async fn try_start(&self) -> Result<App, String> {
        let layers = Layers {
            file: FileLayer::Text { name: "watchbell.toml".to_owned(), text: self.config.clone() },
            env: Vec::new(),
            flags: self.flags(),
        };
        let config = watchbell::config::load(&layers, &Clock::System)
            .unwrap_or_else(|problems| panic!("{problems:#?}"));
        Box::pin(App::start(config)).await.map_err(|error| match error {
            StartError::Problems(problems) => format!("{problems:#?}"),
            StartError::Other(error) => format!("{error:#}"),
        })
    }

    /// Free ports, and everything in this directory.
    fn flags(&self) -> Vec<Flag> {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let any = || "127.0.0.1:0".to_owned();
        [
            ("data_dir", path("data")),
            ("rules_dir", path("rules")),
            ("broker.listen", any()),
            ("broker.listen_tls", any()),
            ("broker.cert", path("certs/server.pem")),
            ("broker.key", path("certs/server.key")),
            ("broker.client_ca", path("certs/ca.pem")),
            ("api.listen", any()),
        ]
        .into_iter()
        .map(|(key, value)| Flag { name: format!("--set {key}"), key: key.to_owned(), value })
        .collect()
    }
}

/// The application, running.
pub(crate) struct Harness {
    pub(crate) app: App,
    pub(crate) api: Api,
    pub(crate) place: Place,
}

impl Harness {
    /// Starts one with this configuration and no rules.
    pub(crate) async fn start(config: &str) -> Self {
        Place::new(config).start().await
    }

    /// A device that has a certificate, by TLS and MQTT 5.
    pub(crate) fn device(&self, id: &str) -> Options {
        self.place.device(self.app.instance().mqtts.unwrap(), id)
    }

    /// A client that comes by plain TCP and has no name.
    pub(crate) fn anonymous(&self, id: &str) -> Options {
        Place::plain(self.app.instance().mqtt.unwrap(), id)
    }

    /// Stops it in order. What is on disk stays.
    pub(crate) async fn stop(self) -> Place {
        self.app.stop().await.unwrap();
        self.place
    }
}

/// The HTTP API of a running instance, with its key.
#[derive(Clone)]
pub(crate) struct Api {
    http: reqwest::Client,
    base: String,
    key: String,
}

impl Api {
    /// Of the instance that runs with this data directory.
    pub(crate) fn of(data_dir: &Path) -> Self {
        let instance = instance::Instance::running(data_dir).unwrap().unwrap();
        let key = instance::read_key(data_dir).unwrap().unwrap();
        let timeout = Duration::from_secs(30);
        let http = reqwest::Client::builder().no_proxy().timeout(timeout).build().unwrap();
        Self { http, base: format!("http://{}", instance.api), key: key.expose().to_owned() }
    }

    /// The same without the key.
    pub(crate) fn keyless(&self) -> Self {
        Self { key: String::new(), ..self.clone() }
    }

    /// Status and body of any request.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> (u16, String) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if !self.key.is_empty() {
            request = request.bearer_auth(&self.key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    /// What is at `path`, which has to be there.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, text) = self.ask("GET", path, None).await;
        assert_eq!(status, 200, "GET {path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Status and JSON of a POST; null where the answer has no body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.ask("POST", path, Some(body)).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// Sends a message by the API: its id.
    pub(crate) async fn send(&self, body: Value) -> String {
        let (status, answer) = self.post("/v1/messages", &body).await;
        assert_eq!(status, 202, "{answer}");
        answer["messages"][0]["id"].as_str().unwrap().to_owned()
    }

    /// What the instance says of itself.
    pub(crate) async fn status(&self) -> Value {
        self.get("/v1/status").await
    }

    /// The lane of a provider.
    pub(crate) async fn lane(&self, provider: &str) -> Value {
        let status = self.status().await;
        let lanes = status["lanes"].as_array().unwrap();
        lanes.iter().find(|lane| lane["provider"] == json!(provider)).unwrap().clone()
    }

    /// The value of a metric, its labels included in the name; 0 where it is not there yet.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let (status, text) = self.ask("GET", "/metrics", None).await;
        assert_eq!(status, 200);
        let value = text.lines().find_map(|line| {
            line.strip_prefix("watchbell_")?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()
        });
        value.unwrap_or(0)
    }

    /// Waits until a metric has this value.
    pub(crate) async fn counted(&self, name: &str, value: u64) {
        let what = format!("{name} {value}");
        found(&what, async || (self.metric(name).await == value).then_some(())).await;
    }

    /// Messages, the newest first. `query` as in `status=failed&channel=sms`.
    pub(crate) async fn messages(&self, query: &str) -> Vec<Value> {
        let mut messages = Vec::new();
        let mut before = String::new();
        loop {
            let page = self.get(&format!("/v1/messages?limit=500&{query}{before}")).await;
            messages.extend(page["messages"].as_array().unwrap().iter().cloned());
            match page["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => return messages,
            }
        }
    }

    /// One message with its attempts.
    pub(crate) async fn message(&self, id: &str) -> Value {
        self.get(&format!("/v1/messages/{id}")).await
    }

    /// Waits until the only message with this text stands so.
    pub(crate) async fn message_that_is(&self, status: &str, text: &str) -> Value {
        let what = format!("a message that is {status}: {text}");
        let id = found(&what, async || {
            let messages = self.messages("").await;
            let ours: Vec<_> = messages.iter().filter(|one| one["text"] == json!(text)).collect();
            assert!(ours.len() <= 1, "{ours:#?}");
            let one = ours.first().filter(|one| one["status"] == json!(status))?;
            one["id"].as_str().map(str::to_owned)
        })
        .await;
        self.message(&id).await
    }

    /// Waits until nothing waits in the outbox.
    pub(crate) async fn emptied(&self) {
        let empty = async || {
            let status = self.status().await;
            (status["outbox"]["waiting"] == json!(0)).then_some(())
        };
        found("an empty outbox", empty).await;
    }
}
