//! Who may ask what: the key, and the reads that need none.
//!
//! The key is compared in constant time and never logged. Without a key only this machine reads,
//! and only what the console shows; a name in `Host` that is not this machine's is a web page
//! elsewhere that has bent its own name to 127.0.0.1 (DNS rebinding), and a header of a proxy
//! means that somebody else stands behind this machine. Both need the key.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::Response;

use super::refusal::Refusal;
use super::{OpenReads, Shared};
use crate::model::Reason;

/// Where a request came from; put into every request by the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// Lets the key's holders pass.
pub(super) async fn holder(
    State(state): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    check_key(&state, request.headers())?;
    Ok(next.run(request).await)
}

/// Lets the key's holders pass, and this machine's readers.
pub(super) async fn reader(
    State(state): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let open = state.config.open_reads == OpenReads::Loopback && is_local_read(&request);
    if !open {
        check_key(&state, request.headers())?;
    }
    Ok(next.run(request).await)
}

fn check_key(state: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(given) = headers.get(header::AUTHORIZATION) else {
        return Err(Refusal::unauthorized(Reason::NotAuthorized));
    };
    let given = given.as_bytes();
    let key = match given.split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key.trim_ascii(),
        _ => return Err(Refusal::unauthorized(Reason::NotAuthorized)),
    };
    let expected = state.parts.key.expose().as_bytes();
    aws_lc_rs::constant_time::verify_slices_are_equal(key, expected)
        .map_err(|_| Refusal::unauthorized(Reason::BadCredentials))
}

fn is_local_read(request: &Request) -> bool {
    let peer = request.extensions().get::<Peer>();
    let headers = request.headers();
    matches!(*request.method(), Method::GET | Method::HEAD)
        && peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback())
        && headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .is_some_and(is_loopback_name)
        && !["forwarded", "x-forwarded-for", "x-real-ip", "via"]
            .iter()
            .any(|name| headers.contains_key(*name))
}

/// `localhost`, `127.0.0.1:8080`, `[::1]:8080`.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebound_name_is_not_this_machine() {
        for (host, expected) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("127.0.0.1:8080", true),
            ("127.8.0.1", true),
            ("[::1]:8080", true),
            ("[::1]", true),
            ("evil.example", false),
            ("127.0.0.1.evil.example:8080", false),
            ("localhost.evil.example", false),
            ("192.168.1.7:8080", false),
            ("", false),
        ] {
            assert_eq!(is_loopback_name(host), expected, "{host}");
        }
    }
}
