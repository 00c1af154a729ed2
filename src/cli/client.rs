//! Speaks to the running instance through its HTTP API.
//!
//! The data directory says where it listens and holds the key. A file that a crash left behind is
//! no instance, and gets no key; and what answers must be the run that the file names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::instance::{self, Instance};
use crate::secret::Secret;

/// How long an answer may take: an instance on this machine that needs longer is stuck.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The same for what reads the whole store.
const SLOW: Duration = Duration::from_secs(24 * 3600);
/// Longest line of an answer.
const LINE_BYTES_MAX: usize = 1 << 30;

/// A running instance that has answered.
pub(super) struct Client {
    http: reqwest::Client,
    instance: Instance,
    key: Option<Secret>,
    data_dir: PathBuf,
}

/// An answer, line by line.
pub(super) struct Lines<'a> {
    client: &'a Client,
    response: reqwest::Response,
    text: Vec<u8>,
    /// What lies before has been given out.
    from: usize,
}

impl Lines<'_> {
    /// The next whole line, without its end.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let rest = self.text.get(self.from..).unwrap_or_default();
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.get(..length).unwrap_or_default();
                let line = String::from_utf8(line.to_vec()).context("an answer is no text")?;
                self.from += length + 1;
                return Ok(Some(line));
            }
            self.text.drain(..self.from);
            self.from = 0;
            anyhow::ensure!(self.text.len() < LINE_BYTES_MAX, "an answer has no end of line");
            match self.response.chunk().await.map_err(|error| self.client.failed(&error))? {
                Some(chunk) => self.text.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// The API's problem object.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ProblemBody {
    title: String,
    detail: String,
}

impl Client {
    /// The instance that runs with `data_dir`.
    pub(super) async fn connect(data_dir: &Path) -> anyhow::Result<Self> {
        Self::find(data_dir).await?.ok_or_else(|| {
            anyhow!(
                "no watchbell is running with data directory {}; start it with `watchbell run`, or name another with --data-dir",
                data_dir.display()
            )
        })
    }

    /// The instance that runs with `data_dir`, if one does.
    pub(super) async fn find(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let Some(instance) = Instance::running(data_dir)? else {
            return Ok(None);
        };
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            // It is plain HTTP on this machine: no certificates have to be loaded.
            .tls_certs_only([])
            .build()
            .context("making an HTTP client")?;
        let key = instance::read_key(data_dir)?;
        let client = Self { http, instance, key, data_dir: data_dir.to_owned() };
        #[derive(Deserialize)]
        struct Who {
            run: crate::model::RunId,
        }
        let answer = client.request(Method::GET, "/v1/status").send().await;
        let response = match answer {
            Err(error) if error.is_connect() => return Ok(None),
            answer => answer.map_err(|error| client.failed(&error))?,
        };
        if response.status() == StatusCode::UNAUTHORIZED {
            bail!(
                "{} does not take the key in {}; does another watchbell listen there?",
                client.instance.api,
                data_dir.join("api.key").display()
            );
        }
        let who: Option<Who> = response.json().await.ok();
        Ok(who.filter(|who| who.run == client.instance.run).map(|_| client))
    }

    /// Asks for `path`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.answer(self.request(Method::GET, path)).await
    }

    /// Asks for `path`, which may take as long as reading the whole store does.
    pub(super) async fn get_slowly<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.answer(self.request(Method::GET, path).timeout(SLOW)).await
    }

    /// Asks for `path`, whose answer is lines without end.
    pub(super) async fn lines(&self, path: &str) -> anyhow::Result<Lines<'_>> {
        let request = self.request(Method::GET, path).timeout(SLOW);
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        Ok(Lines { client: self, response, text: Vec::new(), from: 0 })
    }

    /// Posts to `path`, with or without a body.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<T> {
        let request = self.request(Method::POST, path);
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        self.answer(request).await
    }

    /// Deletes `path`.
    pub(super) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.done(self.request(Method::DELETE, path)).await
    }

    /// Posts to `path`, where there is nothing to say and nothing to be told.
    pub(super) async fn command(&self, path: &str) -> anyhow::Result<()> {
        self.done(self.request(Method::POST, path)).await
    }

    async fn done(&self, request: RequestBuilder) -> anyhow::Result<()> {
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(refused(response).await)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("http://{}{path}", self.instance.api));
        match &self.key {
            Some(key) => request.bearer_auth(key.expose()),
            None => request,
        }
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        response.json().await.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &reqwest::Error) -> anyhow::Error {
        anyhow!(
            "{} ({}): {}; see its log",
            self.instance.api,
            self.data_dir.display(),
            crate::telemetry::chain(error)
        )
    }
}

async fn refused(response: reqwest::Response) -> anyhow::Error {
    let status = response.status();
    let body: ProblemBody = response.json().await.unwrap_or_default();
    match (body.title.as_str(), body.detail.as_str()) {
        ("", _) => anyhow!("the instance answered {status}"),
        (title, "") => anyhow!("{title}"),
        (title, detail) => anyhow!("{title}: {detail}"),
    }
}

/// One level of a path, with everything escaped that would end it.
pub(super) fn level(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}
