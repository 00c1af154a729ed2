//! From an HTTP request to a WebSocket: the opening handshake of RFC 6455, section 4, for MQTT.
//!
//! Every refusal is an HTTP answer with a sentence in it, because whoever looks at this port with
//! a browser or curl shall learn what it is.
//!
//! A web page that somebody looks at can open WebSockets to any address that the browser reaches,
//! this machine's own included, where clients may need no login. So a request with an `Origin`,
//! which browsers always send, must come from a page of the same host, or of one that `origins`
//! names. To a client on this machine a host's name says nothing (a page's owner can let its name
//! point to 127.0.0.1, DNS rebinding): there only `localhost` and addresses count.
//!
//! Invariant: at most [`HEAD_BYTES_MAX`] are ever read before the answer.

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use httparse::{Header, Request, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::stream::Wire;
use crate::model::Reason;

/// Browsers send cookies of the host along; more than this is no client's head.
const HEAD_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// RFC 6455, 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// MQTT-6.0.0-3.
const SUBPROTOCOL: &str = "mqtt";

/// What a listener asks of an upgrade.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) path: String,
    /// Pages that may connect, beside those of the same host; `*` for any.
    pub(crate) origins: Vec<String>,
}

/// A request that was granted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// What came behind its head.
    pub(crate) early: Vec<u8>,
    /// It came through a proxy that says so: the peer is not the client.
    pub(crate) forwarded: bool,
}

/// A request that was not.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) what: &'static str,
    /// To be sent; empty where there is nobody to answer.
    pub(crate) answer: Vec<u8>,
}

impl Refused {
    fn new(reason: Reason, status: &str, headers: &str, what: &'static str) -> Self {
        let len = what.len() + 1;
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\n\
             Connection: close\r\n{headers}\r\n{what}\n"
        );
        Self { reason, what, answer: answer.into_bytes() }
    }

    fn bad(status: &str, what: &'static str) -> Self {
        Self::new(Reason::BadRequest, status, "", what)
    }
}

/// Reads the request and answers it, if it is granted. `is_local`: the peer is on this machine.
pub(crate) async fn upgrade(
    wire: &mut Wire,
    terms: &Terms,
    is_local: bool,
) -> Result<Granted, Refused> {
    let mut head = Vec::new();
    loop {
        if let Some((len, accept, forwarded)) = check(&head, terms, is_local)? {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
            );
            let early = head.split_off(len);
            let sent = async {
                wire.write_all(answer.as_bytes()).await?;
                wire.flush().await
            };
            return match sent.await {
                Ok(()) => Ok(Granted { early, forwarded }),
                Err(_) => Err(lost()),
            };
        }
        let mut chunk = [0; 1024];
        match wire.read(&mut chunk).await {
            Ok(0) | Err(_) => return Err(lost()),
            Ok(count) => head.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
    }
}

fn lost() -> Refused {
    let what = "closed before the WebSocket was open";
    Refused { reason: Reason::ConnectionLost, what, answer: Vec::new() }
}

/// Length of the head, Sec-WebSocket-Accept, and whether a proxy has passed it on; `None` while
/// the head is not complete.
pub(super) fn check(
    head: &[u8],
    terms: &Terms,
    is_local: bool,
) -> Result<Option<(usize, String, bool)>, Refused> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = Request::new(&mut headers);
    let len = match request.parse(head) {
        Ok(Status::Complete(len)) if len <= HEAD_BYTES_MAX => len,
        Ok(Status::Partial) if head.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            let status = "431 Request Header Fields Too Large";
            return Err(Refused::bad(status, "the request's head is too long"));
        }
        Err(_) => {
            let what = "no HTTP request; is the client set to WebSocket, and to TLS where this port has it?";
            return Err(Refused::bad("400 Bad Request", what));
        }
    };
    let accept = check_request(&request, terms, is_local)?;
    let passed_on = ["forwarded", "x-forwarded-for", "x-real-ip", "via"];
    let forwarded = passed_on.iter().any(|name| values(request.headers, name).next().is_some());
    Ok(Some((len, accept, forwarded)))
}

fn check_request(
    request: &Request<'_, '_>,
    terms: &Terms,
    is_local: bool,
) -> Result<String, Refused> {
    let headers = &*request.headers;
    if !has_token(headers, "upgrade", "websocket") || !has_token(headers, "connection", "upgrade") {
        return Err(Refused::new(
            Reason::BadRequest,
            "426 Upgrade Required",
            "Upgrade: websocket\r\nConnection: Upgrade\r\n",
            "this is an MQTT broker; connect to it by WebSocket, with the subprotocol mqtt",
        ));
    }
    if request.method != Some("GET") || request.version != Some(1) {
        return Err(Refused::bad("400 Bad Request", "a WebSocket begins with GET and HTTP/1.1"));
    }
    let path = request.path.unwrap_or_default();
    if path.split('?').next() != Some(&terms.path) {
        let what = "there is no WebSocket at this path; the listener's `path` says where, /mqtt by default";
        return Err(Refused::bad("404 Not Found", what));
    }
    if values(headers, "sec-websocket-version").next() != Some("13") {
        return Err(Refused::new(
            Reason::BadRequest,
            "426 Upgrade Required",
            "Sec-WebSocket-Version: 13\r\n",
            "this is WebSocket version 13 (RFC 6455) only",
        ));
    }
    let key = values(headers, "sec-websocket-key").next().unwrap_or_default();
    if STANDARD.decode(key).ok().is_none_or(|key| key.len() != 16) {
        return Err(Refused::bad("400 Bad Request", "Sec-WebSocket-Key is not 16 bytes of base64"));
    }
    if !has_token(headers, "sec-websocket-protocol", SUBPROTOCOL) {
        let what = "the client does not offer the WebSocket subprotocol mqtt";
        return Err(Refused::bad("400 Bad Request", what));
    }
    check_origin(headers, terms, is_local)?;
    Ok(accept_of(key))
}

fn check_origin(headers: &[Header<'_>], terms: &Terms, is_local: bool) -> Result<(), Refused> {
    let allowed = |origin: &str| {
        let named = |one: &String| one == "*" || one.eq_ignore_ascii_case(origin);
        if terms.origins.iter().any(named) {
            return true;
        }
        let page = origin.split_once("://").and_then(|(_, authority)| host(authority));
        let here = values(headers, "host").next().and_then(host);
        page.zip(here).is_some_and(|(page, here)| {
            page.eq_ignore_ascii_case(here) && (!is_local || cannot_be_rebound(here))
        })
    };
    // More than one is no browser's, and not one may be strange.
    if values(headers, "origin").all(allowed) {
        return Ok(());
    }
    let what = "a web page of another host; the listener's `origins` can allow it";
    Err(Refused::new(Reason::NotAuthorized, "403 Forbidden", "", what))
}

/// Without its port.
fn host(authority: &str) -> Option<&str> {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(address, _)| address),
        None => authority.split(':').next(),
    }
    .filter(|host| !host.is_empty())
}

/// No name server decides where it is.
fn cannot_be_rebound(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok()
}

fn accept_of(key: &str) -> String {
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID);
    STANDARD.encode(hash.finish())
}

/// The values of a header, without the space around them; what is no text is none.
fn values<'a>(headers: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
}

fn has_token(headers: &[Header<'_>], name: &str, token: &str) -> bool {
    values(headers, name)
        .flat_map(|value| value.split(','))
        .any(|one| one.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: broker:8083\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqttv3.1, mqtt\r\n";

    /// What becomes of a request with these headers in addition, from this machine or not.
    fn said(head: &str, origins: &[&str], is_local: bool) -> String {
        let origins = origins.iter().map(|one| (*one).to_owned()).collect();
        let terms = Terms { path: "/mqtt".to_owned(), origins };
        match check(format!("{head}\r\n").as_bytes(), &terms, is_local) {
            Ok(Some((len, accept, forwarded))) => {
                assert_eq!(
                    (len, accept.as_str()),
                    (head.len() + 2, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
                );
                if forwarded { "forwarded".to_owned() } else { "granted".to_owned() }
            }
            Ok(None) => "more".to_owned(),
            Err(refused) => {
                let answer = String::from_utf8(refused.answer).expect("text");
                assert!(answer.ends_with(&format!("\r\n\r\n{}\n", refused.what)), "{answer}");
                answer.split(' ').nth(1).expect("a status").to_owned()
            }
        }
    }

    #[test]
    fn a_request_is_granted_or_told_what_is_wrong() {
        let without = |line: &str| {
            let kept: Vec<&str> =
                GOOD.split_inclusive("\r\n").filter(|l| !l.starts_with(line)).collect();
            kept.concat()
        };
        let long = format!("{GOOD}Cookie: {}\r\n", "x".repeat(HEAD_BYTES_MAX));
        for (name, head, expected) in [
            ("good", GOOD.to_owned(), "granted"),
            ("with a query", GOOD.replace("/mqtt ", "/mqtt?token=1 "), "granted"),
            ("a plain GET", "GET / HTTP/1.1\r\nHost: x\r\n".to_owned(), "426"),
            ("a plain GET of HTTP/1.0", "GET /mqtt HTTP/1.0\r\n".to_owned(), "426"),
            ("no Upgrade", without("Upgrade"), "426"),
            ("no Connection", without("Connection"), "426"),
            ("POST", GOOD.replace("GET", "POST"), "400"),
            ("HTTP/1.0", GOOD.replace("HTTP/1.1", "HTTP/1.0"), "400"),
            ("another path", GOOD.replace("/mqtt ", "/ws "), "404"),
            ("version 8", GOOD.replace("Version: 13", "Version: 8"), "426"),
            ("no key", without("Sec-WebSocket-Key"), "400"),
            ("a short key", GOOD.replace("dGhlIHNhbXBsZSBub25jZQ==", "AAAA"), "400"),
            ("no subprotocol", without("Sec-WebSocket-Protocol"), "400"),
            ("only MQTT 3.1", GOOD.replace(", mqtt", ""), "400"),
            ("a CONNECT", "\x10\x0c\0\x04MQTT".to_owned(), "400"),
            ("TLS", "\x16\x03\x01".to_owned(), "400"),
            ("too long", long, "431"),
            ("too many headers", format!("{GOOD}{}", "A: b\r\n".repeat(HEADERS_MAX)), "431"),
            ("a proxy's", format!("{GOOD}X-Forwarded-For: 203.0.113.7\r\n"), "forwarded"),
        ] {
            assert_eq!(said(&head, &[], false), expected, "{name}");
        }
    }

    #[test]
    fn pages_of_other_hosts_are_refused() {
        let dash = ["https://dash.example.org"];
        for (origin, host, origins, is_local, expected) in [
            ("http://broker:8080", "broker:8083", &[][..], false, "granted"),
            ("https://BROKER", "broker:8083", &[], false, "granted"),
            ("http://evil.example", "broker:8083", &[], false, "403"),
            ("null", "broker:8083", &[], false, "403"),
            ("", "broker:8083", &[], false, "403"),
            ("http://evil.example", "", &[], false, "403"),
            ("http://localhost:3000", "localhost:8083", &[], true, "granted"),
            ("http://127.0.0.1:3000", "127.0.0.1:8083", &[], true, "granted"),
            ("http://[::1]:3000", "[::1]:8083", &[], true, "granted"),
            ("http://localhost.evil.example", "localhost:8083", &[], true, "403"),
            // DNS rebinding: the page's own name points here.
            ("http://evil.example:8083", "evil.example:8083", &[], true, "403"),
            ("https://dash.example.org", "broker:8083", &dash, true, "granted"),
            ("https://dash.example.org:444", "broker:8083", &dash, false, "403"),
            ("http://evil.example", "broker:8083", &["*"], false, "granted"),
        ] {
            let head = GOOD.replace("broker:8083", host) + &format!("Origin: {origin}\r\n");
            assert_eq!(said(&head, origins, is_local), expected, "{origin} {host} {is_local}");
        }
        let two = format!("{GOOD}Origin: http://broker\r\nOrigin: http://evil.example\r\n");
        assert_eq!(said(&two, &[], false), "403");
    }

    #[test]
    fn a_head_that_is_cut_anywhere_is_waited_for() {
        let whole = format!("{GOOD}\r\n");
        let terms = Terms { path: "/mqtt".to_owned(), origins: Vec::new() };
        for len in 0..whole.len() {
            let head = &whole.as_bytes()[..len];
            assert!(matches!(check(head, &terms, false), Ok(None)), "{len}");
        }
    }
}
