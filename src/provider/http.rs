//! The HTTP client that every provider uses, and what its failures mean.
//!
//! **Invariant:** a failure is called [`Lost::NotSent`] only where nothing of the request can have
//! reached the provider: the name could not be resolved, no connection could be made, the TLS
//! handshake failed. Whatever happens later is [`Lost::NoAnswer`], because an SMS that has been
//! sent cannot be taken back.
//!
//! What is repeated below this line, and why that is safe: hyper repeats a request that it had
//! handed to a pooled connection which closed before one byte of it was written, and reqwest
//! repeats one that an HTTP/2 server says it has not processed (REFUSED_STREAM, or a stream above
//! the last one of a GOAWAY; RFC 9113, section 8.7). Neither can send twice. Everything else is
//! the dispatcher's business.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use tokio::time::Instant;

use super::public::{NotPublic, PublicOnly};
use super::scrub::Scrub;
use super::{RetryScope, SendOutcome};
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::model::Reason;
use crate::telemetry::chain;

/// An answer to a send is read this far.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;
/// A provider may ask for a pause of at most this length; a larger wish is cut to it, so that a
/// slip in a header cannot keep alerts back until they expire.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Name, connection and TLS handshake together.
const CONNECT_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// Shorter than the keep-alive of any provider, so that a request seldom meets a connection that
/// the other side is just closing: that would be a [`Lost::NoAnswer`].
const IDLE_MAX: Duration = Duration::from_secs(20);
/// HTTP/2 shares one connection among all requests. One that a NAT has forgotten would swallow
/// each of them until its time limit, so it is asked for signs of life.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER_MAX: Duration = Duration::from_secs(5);

/// How a client is built.
#[derive(Debug)]
pub(super) struct Settings {
    /// For one `send` in all, however many requests it makes.
    pub(super) timeout: Duration,
    /// How many idle connections are kept to one host.
    pub(super) connections_kept: usize,
    /// The proxy to go through; none, whatever the environment says.
    pub(super) proxy: Option<reqwest::Proxy>,
    /// Only addresses of the public internet are connected to.
    pub(super) public_only: bool,
}

/// A client for one provider: it keeps connections, time limits and the way outside.
#[derive(Clone, Debug)]
pub(super) struct Http {
    client: Client,
    timeout: Duration,
}

/// When a `send` must be over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Its Retry-After, at most [`RETRY_AFTER_MAX`].
    pub(super) retry_after: Option<Duration>,
    /// The body, decompressed; `None` where it was cut off, too long, or came too late.
    pub(super) body: Option<Vec<u8>>,
    /// It is a page for people: no provider's API answers so.
    is_page: bool,
}

/// Why nothing came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The request has not left.
    NotSent(String),
    /// The request has not left, for want of something on this machine: open files, memory, ports.
    Ours(String),
    /// The address is one that this client must not connect to.
    Forbidden(String),
    /// The request has left, or may have.
    NoAnswer(String),
}

impl Http {
    /// # Errors
    /// The system's root certificates cannot be read, in words for an operator.
    pub(super) fn new(settings: Settings) -> Result<Self, String> {
        let timeout = settings.timeout;
        let mut builder = Client::builder()
            .user_agent(concat!("watchbell/", env!("CARGO_PKG_VERSION")))
            .timeout(timeout)
            // Shorter than the whole, so that the two can be told apart.
            .connect_timeout(CONNECT_TIMEOUT_MAX.min(timeout.mul_f32(0.7)))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(settings.connections_kept)
            .http2_keep_alive_interval(PING_EVERY)
            .http2_keep_alive_timeout(PING_ANSWER_MAX)
            .tcp_nodelay(true);
        if let Some(proxy) = settings.proxy {
            builder = builder.proxy(proxy);
        }
        if settings.public_only {
            builder = builder.dns_resolver(Arc::new(PublicOnly));
        }
        match builder.build() {
            Ok(client) => Ok(Self { client, timeout }),
            Err(error) => Err(format!(
                "the HTTPS client cannot start: {}; install the system's CA certificates \
                 (package ca-certificates), or name their file in SSL_CERT_FILE",
                chain(&error)
            )),
        }
    }

    /// From now until this provider's time limit.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline(Instant::now() + self.timeout)
    }

    /// A POST that is not sent yet.
    pub(super) fn post(&self, url: Url) -> RequestBuilder {
        self.client.post(url)
    }

    /// A GET that is not sent yet.
    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.client.get(url)
    }
}

impl Deadline {
    /// For waits that are no request.
    pub(super) fn instant(self) -> Instant {
        self.0
    }
}

/// Makes one request. `now` is for a Retry-After that names a date.
pub(super) async fn call(
    request: RequestBuilder,
    by: Deadline,
    body_bytes_max: usize,
    now: Timestamp,
    scrub: &Scrub,
) -> Result<Answer, Lost> {
    let left = by.0.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Lost::NotSent("no time was left to send it".to_owned()));
    }
    let mut response = match request.timeout(left).send().await {
        Ok(response) => response,
        Err(error) => return Err(lost(error, scrub)),
    };
    let status = response.status();
    let retry_after = retry_after(response.headers(), now);
    let coding = header(response.headers(), CONTENT_ENCODING);
    let html = header(response.headers(), CONTENT_TYPE).contains("html");
    let (mut read, mut is_whole) = (Vec::new(), true);
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if read.len() + chunk.len() <= body_bytes_max => {
                read.extend_from_slice(&chunk);
            }
            Ok(None) => break,
            Ok(Some(chunk)) => {
                read.extend_from_slice(chunk.get(..1).unwrap_or_default());
                is_whole = false;
                break;
            }
            // Cut off or too late: the status is known, and has to do.
            Err(_) => {
                is_whole = false;
                break;
            }
        }
    }
    // Nobody was asked to compress; a gateway on the way may do it all the same.
    let read = decoded(&coding, &read, body_bytes_max).unwrap_or(read);
    let first = read.iter().find(|byte| !byte.is_ascii_whitespace());
    let is_page = html || first == Some(&b'<');
    Ok(Answer { status, retry_after, body: is_whole.then_some(read), is_page })
}

/// A header's value in lower case, empty where there is none.
fn header(headers: &HeaderMap, name: reqwest::header::HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().trim().to_ascii_lowercase()
}

/// What `bytes` are without their content coding, at most `bytes_max` of it; `None` where that
/// cannot be had.
fn decoded(coding: &str, bytes: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let mut decoder: Box<dyn Read + '_> = match coding {
        "gzip" | "x-gzip" => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
        "deflate" => Box::new(flate2::read::ZlibDecoder::new(bytes)),
        _ => return None,
    };
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    let mut plain = Vec::new();
    decoder.by_ref().take(limit).read_to_end(&mut plain).ok()?;
    (plain.len() <= bytes_max).then_some(plain)
}

impl Answer {
    /// The body as JSON of the given shape; `None` where it is something else.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(self.body.as_deref()?).ok()
    }

    /// Whether it is a page for people, so somebody else's answer.
    pub(super) fn is_page(&self) -> bool {
        self.is_page
    }

    /// What follows where the status says success and the body cannot be read: nobody knows whether
    /// `provider` has taken it.
    pub(super) fn not_read(&self, provider: &str, scrub: &Scrub) -> SendOutcome {
        let words = self.words(scrub);
        let detail = if self.body.is_some() || self.is_page {
            format!("not {provider}'s answer ({words}); check base_url")
        } else {
            format!("{words}, and the rest of {provider}'s answer could not be read")
        };
        SendOutcome::Unknown { detail, answered: true }
    }

    /// "HTTP 503", with the start of a textual body where `scrub` leaves something of it.
    pub(super) fn words(&self, scrub: &Scrub) -> String {
        let status = self.status.as_u16();
        let body = self.body.as_deref().unwrap_or_default();
        let text = match std::str::from_utf8(body) {
            // Markup says nothing to an operator.
            Ok(text) if !self.is_page => scrub.clean(text),
            _ => String::new(),
        };
        if text.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {text}") }
    }
}

impl Lost {
    /// What follows for a message whose one request this was.
    pub(super) fn outcome(self) -> SendOutcome {
        match self {
            Self::NotSent(detail) | Self::Forbidden(detail) => SendOutcome::Retry {
                reason: Reason::ConnectFailed,
                after: None,
                scope: RetryScope::Provider,
                detail,
            },
            Self::Ours(detail) => ours(detail),
            Self::NoAnswer(detail) => SendOutcome::Unknown { detail, answered: false },
        }
    }

    /// In words, masked.
    pub(super) fn detail(self) -> String {
        match self {
            Self::NotSent(detail)
            | Self::Ours(detail)
            | Self::Forbidden(detail)
            | Self::NoAnswer(detail) => detail,
        }
    }
}

/// What follows where this machine could not even ask.
pub(super) fn ours(detail: String) -> SendOutcome {
    SendOutcome::Retry {
        reason: Reason::OutOfResources,
        after: None,
        scope: RetryScope::Here,
        detail,
    }
}

/// What reqwest's error tells of the request. Its own text is never used whole: it names the URL,
/// and a URL may hold a token.
fn lost(error: reqwest::Error, scrub: &Scrub) -> Lost {
    // The host alone holds no token.
    let host = error.url().and_then(Url::host_str).map_or_else(String::new, str::to_owned);
    let port = error.url().and_then(Url::port).map_or_else(String::new, |port| format!(":{port}"));
    let error = error.without_url();
    let mut root: &(dyn std::error::Error + 'static) = &error;
    while let Some(source) = root.source() {
        if let Some(forbidden) = root.downcast_ref::<NotPublic>() {
            return Lost::Forbidden(forbidden.to_string());
        }
        root = source;
    }
    if let Some(forbidden) = root.downcast_ref::<NotPublic>() {
        return Lost::Forbidden(forbidden.to_string());
    }
    let cause = scrub.clean(&root.to_string());
    if error.is_builder() {
        Lost::NotSent(format!("the request cannot be made: {cause}"))
    } else if error.is_connect() && (is_ours(root) || (error.is_dns() && no_file_can_be_opened())) {
        Lost::Ours(format!(
            "this machine has nothing left to connect to {host}{port} with: {cause}"
        ))
    } else if error.is_connect() {
        let doing = if error.is_dns() { "cannot resolve" } else { "no connection to" };
        Lost::NotSent(format!("{doing} {host}{port}: {cause}"))
    } else if error.is_timeout() {
        Lost::NoAnswer("no answer within the time limit".to_owned())
    } else {
        Lost::NoAnswer(format!("the connection broke before an answer: {cause}"))
    }
}

/// Errors of this machine: ENOMEM, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS of Linux.
const OURS: [i32; 5] = [12, 23, 24, 99, 105];

/// Whether an operating system's error says that something has run out here.
fn is_ours(error: &(dyn std::error::Error + 'static)) -> bool {
    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| OURS.contains(&code))
}

/// A name that cannot be resolved may be for want of a file descriptor, and the resolver does not
/// say so.
fn no_file_can_be_opened() -> bool {
    matches!(std::fs::File::open("/dev/null"), Err(error) if is_ours(&error))
}

/// Retry-After as seconds or as an HTTP date (RFC 9110, sections 10.2.3 and 5.6.7), at most
/// [`RETRY_AFTER_MAX`]. Nothing, or a time that has come, is no wish.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let after = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit mean "very long".
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        http_date(text)?.since(now.wall())
    };
    (!after.is_zero()).then(|| after.min(RETRY_AFTER_MAX))
}

/// The three forms that a recipient must know.
fn http_date(text: &str) -> Option<WallTime> {
    let fixed = jiff::fmt::rfc2822::parse(text).map(|time| time.timestamp());
    let time = fixed.or_else(|_| {
        let read = |format: &str| {
            jiff::fmt::strtime::parse(format, text)?
                .to_datetime()?
                .to_zoned(jiff::tz::TimeZone::UTC)
                .map(|time| time.timestamp())
        };
        read("%A, %d-%b-%y %H:%M:%S GMT").or_else(|_| read("%a %b %e %H:%M:%S %Y"))
    });
    time.ok().map(|time| WallTime::from_millis(time.as_millisecond()))
}

/// `base` and `segments` below it, each escaped.
pub(super) fn below(base: &Url, segments: &[&str]) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_compressed_answer_is_read_and_a_bomb_is_not() {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        writer.write_all(&[b'x'; 1000]).expect("memory");
        let gzip = writer.finish().expect("memory");
        assert_eq!(decoded("gzip", &gzip, 1000), Some(vec![b'x'; 1000]));
        assert_eq!(decoded("x-gzip", &gzip, 999), None);
        assert_eq!(decoded("gzip", b"{}", 1000), None);
        assert_eq!(decoded("gzip", gzip.get(..15).unwrap_or_default(), 1000), None);
        for other in ["", "identity", "br"] {
            assert_eq!(decoded(other, &gzip, 1000), None, "{other}");
        }
    }

    #[test]
    fn what_has_run_out_here_is_told_from_what_failed_there() {
        for (code, ours) in [
            (24, true),
            (23, true),
            (12, true),
            (99, true),
            (105, true),
            (111, false),
            (113, false),
            (104, false),
        ] {
            assert_eq!(is_ours(&std::io::Error::from_raw_os_error(code)), ours, "{code}");
        }
        assert!(!no_file_can_be_opened());
    }

    /// 2026-11-23T10:00:00Z.
    const NOW: Timestamp = Timestamp::from_millis(1_795_428_000_000);

    fn wish(text: &str) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, text.parse().expect("a header"));
        retry_after(&headers, NOW).map(|after| after.as_secs())
    }

    #[test]
    fn retry_after_has_two_forms_and_a_limit() {
        for (text, seconds) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("0", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("86400", Some(3600)),
            ("99999999999999999999999", Some(3600)),
            ("Mon, 23 Nov 2026 10:00:30 GMT", Some(30)),
            ("Monday, 23-Nov-26 10:00:31 GMT", Some(31)),
            ("Mon Nov 23 10:00:32 2026", Some(32)),
            ("Mon, 23 Nov 2026 09:59:00 GMT", None),
            ("Tue, 24 Nov 2026 10:00:00 GMT", Some(3600)),
        ] {
            assert_eq!(wish(text), seconds, "{text:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), NOW), None);
    }

    #[test]
    fn paths_are_joined_and_escaped() {
        let base = |text: &str| Url::parse(text).expect("a URL");
        for (root, joined) in [
            ("https://h", "https://h/v1/a%2Fb/messages:send"),
            ("https://h/", "https://h/v1/a%2Fb/messages:send"),
            ("https://h/x/", "https://h/x/v1/a%2Fb/messages:send"),
            ("https://h/x", "https://h/x/v1/a%2Fb/messages:send"),
        ] {
            assert_eq!(below(&base(root), &["v1", "a/b", "messages:send"]).as_str(), joined);
        }
    }
}
