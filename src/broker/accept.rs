//! From a new socket to a served client and to its end: listeners, permits, handshake, CONNECT.
//!
//! The accept loop only accepts: everything a peer can delay (PROXY header, TLS handshake, WebSocket
//! upgrade, CONNECT, the password check) happens inside the connection's own task, under a time
//! limit and with one of `connections_max` permits. A connection runs under `catch_unwind`, so that its session is let
//! go whatever happens.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;

use super::acl::Grants;
use super::auth::{Anonymous, Credentials, Holder, Principal, holder};
use super::bans::Suspect;
use super::clients::{Connected, Presence};
use super::connection::{Close, Connection, State};
use super::herald::{self, Event, News, Way};
use super::hub::Attach;
use super::limits::Place;
use super::listener::Listener;
use super::protocol::connect::{self, Connect, Refusal, check_client_id};
use super::protocol::{self, Connack, Version, code};
use super::proxy::{self, NoHeader};
use super::session::{Aliases, Writer};
use super::stream::{Stream, Wire};
use super::upgrade::{Granted, upgrade};
use super::websocket::WebSocket;
use super::{Shared, Stop};
use crate::model::Reason;
use crate::telemetry::ByReason;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Accepts until dropped.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    socket: TcpListener,
    listener: Arc<Listener>,
    stop: Stop,
) {
    let mut failing = false;
    loop {
        match socket.accept().await {
            Ok((socket, peer)) => {
                failing = false;
                // By an IPv6 socket IPv4 comes as ::ffff:192.0.2.1.
                let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                admit(&shared, &listener, socket, peer, &stop);
            }
            // Out of file descriptors or memory: those who are in keep working, and a moment
            // later there may be room again. A peer that gave up is nothing to wait for.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if !failing {
                    tracing::error!(
                        error = %error,
                        "no connection can be accepted; raise the limit of open files, or lower \
                         broker.connections_max"
                    );
                }
                failing = true;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// What a connection holds as long as it lives.
struct Admission {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
    /// Taken later where the peer is not known yet.
    place: Option<Place>,
    _of_listener: OwnedSemaphorePermit,
    /// Given back last: who waits for all permits knows that all tasks are done.
    _permit: OwnedSemaphorePermit,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.shared.hub.metrics.connections.dec();
    }
}

fn admit(
    shared: &Arc<Shared>,
    listener: &Arc<Listener>,
    socket: TcpStream,
    peer: SocketAddr,
    stop: &Stop,
) {
    let metrics = &shared.hub.metrics;
    metrics.connections_accepted.inc();
    let place = match listener.knows_peers() {
        true => match shared.admit(listener, peer.ip()) {
            Ok(place) => place,
            Err(Failed { reason, what, .. }) => {
                shared.note_end(peer, "", reason, &what, true);
                return;
            }
        },
        // Who it is stands in the header.
        false => None,
    };
    let of_listener = Arc::clone(&listener.permits).try_acquire_owned();
    let permit = Arc::clone(&shared.permits).try_acquire_owned();
    let (Ok(of_listener), Ok(permit)) = (of_listener, permit) else {
        // Closed before a word: it costs nothing, and the client tries again later.
        shared.note_end(peer, "", Reason::TooMany, "too many connections", true);
        return;
    };
    metrics.connections.inc();
    let admission = Admission {
        shared: Arc::clone(shared),
        listener: Arc::clone(listener),
        place,
        _of_listener: of_listener,
        _permit: permit,
    };
    // Acknowledgements are small and are awaited: they must not wait for more (RFC 896).
    socket.set_nodelay(true).ok();
    tokio::spawn(run(admission, socket, peer, stop.clone()));
}

async fn run(mut admission: Admission, socket: TcpStream, mut peer: SocketAddr, stop: Stop) {
    // Each phase is boxed: what waits for hours is only the loop, and the others' memory is gone.
    let established = Box::pin(establish(&mut admission, socket, &mut peer, stop));
    let established = AssertUnwindSafe(established).catch_unwind().await;
    let shared = &admission.shared;
    let (mut stream, mut connection, input) = match established {
        Ok(Ok(established)) => established,
        Ok(Err(failed)) => {
            let Failed { reason, what, client_id, goodbye } = failed;
            let is_fault = !matches!(
                reason,
                Reason::ConnectionLost | Reason::ShuttingDown | Reason::TakenOver
            );
            shared.note_end(peer, &client_id, reason, &what, is_fault);
            if let Some((stream, last_words)) = goodbye {
                Box::pin(stream.close(&last_words)).await;
            }
            return;
        }
        Err(_) => {
            tracing::error!(%peer, "a connection's task panicked before CONNECT");
            shared.note_end(peer, "", Reason::ConnectionLost, "panic", false);
            return;
        }
    };
    let served = AssertUnwindSafe(connection.serve(&mut stream, input)).catch_unwind();
    let close = served.await.unwrap_or_else(|_| {
        let client_id = &*connection.session.client_id;
        tracing::error!(client_id, %peer, "a connection's task panicked; its session is kept");
        Close::lost("panic")
    });
    Box::pin(end(connection, stream, close)).await;
}

async fn end(mut connection: Connection, stream: Stream, close: Close) {
    let finished = AssertUnwindSafe(connection.finish_commits()).catch_unwind();
    if finished.await.is_err() {
        tracing::error!(peer = %connection.peer, "settling the last commits panicked");
    }
    let last_words = connection.leave(&close).await;
    let is_planned =
        matches!(close.reason, Reason::TakenOver | Reason::ShuttingDown | Reason::AdminDisconnect);
    let is_fault = close.code.is_some() && !is_planned;
    let client_id = &connection.session.client_id;
    let shared = &connection.shared;
    shared.note_end(connection.peer, client_id, close.reason, close.what, is_fault);
    stream.close(&last_words).await;
}

type Established = (Stream, Connection, Vec<u8>);

/// A connection that has come to nothing.
struct Failed {
    reason: Reason,
    what: Cow<'static, str>,
    /// As it asked for, where it got so far.
    client_id: String,
    /// Where there is somebody to tell.
    goodbye: Option<(Stream, Vec<u8>)>,
}

impl Failed {
    fn silent(reason: Reason, what: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, what: what.into(), client_id: String::new(), goodbye: None }
    }
}

/// Handshakes, CONNECT, authentication, session; each within its time. `peer` is set right where a
/// proxy says who it is.
async fn establish(
    admission: &mut Admission,
    socket: TcpStream,
    peer: &mut SocketAddr,
    mut stop: Stop,
) -> Result<Established, Failed> {
    let stopping = Failed::silent(Reason::ShuttingDown, "the broker stops");
    let mut arrival = tokio::select! {
        arrival = handshake(admission, socket, peer) => arrival?,
        () = stop.told() => return Err(stopping),
    };
    let mut asked = Asked::default();
    let introduced = tokio::select! {
        introduced = introduce(admission, &mut arrival, *peer, &mut asked) => introduced,
        () = stop.told() => return Err(stopping),
    };
    let stream = arrival.stream;
    match introduced {
        Ok((connection, input)) => Ok((stream, connection, input)),
        Err(refusal) => {
            tell_refused(admission, *peer, &mut asked, &refusal);
            let mut last_words = Vec::new();
            if let Some((version, code)) = refusal.connack {
                let (what, bytes_max) = (refusal.what, asked.packet_bytes_max);
                protocol::write_refusal(&mut last_words, version, code, what, bytes_max);
            }
            let goodbye = Some((stream, last_words));
            let Refusal { reason, what, .. } = refusal;
            Err(Failed { reason, what: what.into(), client_id: asked.client_id, goodbye })
        }
    }
}

/// A client whose bytes are MQTT's from here on.
struct Arrival {
    stream: Stream,
    /// Which load of the certificates it was let in by.
    certificates: u64,
    /// Who may come without a name, this way.
    anonymous: Anonymous,
}

/// PROXY header, TLS, WebSocket upgrade: what the listener has of them, each in its time.
async fn handshake(
    admission: &mut Admission,
    mut socket: TcpStream,
    peer: &mut SocketAddr,
) -> Result<Arrival, Failed> {
    let limit = admission.shared.config.handshake_timeout.get();
    let late = |what| Failed::silent(Reason::ConnectTimeout, what);
    tokio::time::timeout(limit, hear_proxy(admission, &mut socket, peer))
        .await
        .unwrap_or_else(|_| Err(late("no PROXY protocol header in time")))?;
    let Admission { shared, listener, .. } = &*admission;
    let (wire, certificates) = match &listener.tls {
        None => (Wire::Plain(socket), 0),
        Some(tls) => {
            let shaken = tls.accept(socket, &shared.handshakes).await;
            let (stream, certificates) =
                shaken.map_err(|(reason, what)| Failed::silent(reason, what))?;
            (Wire::Tls(stream), certificates)
        }
    };
    let (stream, forwarded) = tokio::time::timeout(limit, open_websocket(listener, wire, *peer))
        .await
        .unwrap_or_else(|_| Err(late("no WebSocket upgrade in time")))?;
    // Behind a proxy on this machine everybody is local, and nobody is.
    let anonymous = if forwarded { Anonymous::Never } else { listener.anonymous };
    Ok(Arrival { stream, certificates, anonymous })
}

/// Sets `peer` right, where the listener is behind a proxy.
async fn hear_proxy(
    admission: &mut Admission,
    socket: &mut TcpStream,
    peer: &mut SocketAddr,
) -> Result<(), Failed> {
    let Some(proxies) = &admission.listener.proxy_from else {
        return Ok(());
    };
    if !proxies.iter().any(|net| net.contains(peer.ip())) {
        let what = "only those in proxy_from may connect to this listener";
        return Err(Failed::silent(Reason::BadProxyHeader, what));
    }
    let told = proxy::read(socket).await.map_err(|error| match error {
        NoHeader::Closed => {
            Failed::silent(Reason::ConnectionLost, "closed before its PROXY protocol header")
        }
        NoHeader::Bad(what) => Failed::silent(Reason::BadProxyHeader, what),
    })?;
    *peer = told.peer(*peer);
    admission.place = admission.shared.admit(&admission.listener, peer.ip())?;
    Ok(())
}

/// Opens the WebSocket, where the listener has that. Says too whether a proxy has passed it on.
async fn open_websocket(
    listener: &Listener,
    mut wire: Wire,
    peer: SocketAddr,
) -> Result<(Stream, bool), Failed> {
    let Some(terms) = &listener.terms else {
        return Ok((Stream::Bare(wire), false));
    };
    match upgrade(&mut wire, terms, peer.ip().is_loopback()).await {
        Ok(Granted { early, forwarded }) => {
            Ok((Stream::WebSocket(Box::new(WebSocket::new(wire, early))), forwarded))
        }
        Err(refused) => Err(Failed {
            goodbye: Some((Stream::Bare(wire), refused.answer)),
            ..Failed::silent(refused.reason, refused.what)
        }),
    }
}

/// Who holds the certificate of a client that showed one. TLS has verified it.
fn certified(shared: &Shared, stream: &Stream) -> Result<Option<Holder>, &'static str> {
    let Some(tls) = stream.tls() else {
        return Ok(None);
    };
    match tls.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        None => Ok(None),
        Some(certificate) => holder(certificate, &shared.config.auth.identity_from)
            .map(Some)
            .ok_or("the client certificate has no name where auth.identity_from looks for one"),
    }
}

/// What a CONNECT asked for that matters even where it is refused.
struct Asked {
    /// For the log; cut to its limit.
    client_id: String,
    /// There was more of it.
    is_cut: bool,
    /// As it calls itself, and as its certificate does.
    principal: Principal,
    /// For the CONNACK.
    packet_bytes_max: usize,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            client_id: String::new(),
            is_cut: false,
            principal: Principal::default(),
            packet_bytes_max: usize::MAX,
        }
    }
}

/// Tells rules of a client whose CONNECT was answered with a refusal.
fn tell_refused(admission: &Admission, peer: SocketAddr, asked: &mut Asked, refusal: &Refusal) {
    let is_news = !matches!(refusal.reason, Reason::ShuttingDown | Reason::TakenOver);
    if refusal.connack.is_none() || !is_news {
        return;
    }
    let way = Way { address: peer.ip(), listener: Arc::clone(&admission.listener.name) };
    // What was cut is no longer the id that it has asked for, and may be another's.
    let cut = asked.is_cut.then(|| format!("{}…", asked.client_id));
    let news = News {
        way: Some(&way),
        reason: Some(refusal.reason),
        ..News::of(Event::Refused, cut.as_deref().unwrap_or(&asked.client_id), &asked.principal)
    };
    herald::tell(&admission.shared.hub, &news);
}

/// Reads the CONNECT and gives the client its session.
async fn introduce(
    admission: &Admission,
    arrival: &mut Arrival,
    peer: SocketAddr,
    asked: &mut Asked,
) -> Result<(Connection, Vec<u8>), Refusal> {
    let Admission { shared, listener, .. } = admission;
    let Arrival { stream, certificates, anonymous } = arrival;
    let mut input = Vec::new();
    let read = connect::read(stream, &mut input, shared.config.connect_bytes_max);
    let limit = shared.config.connect_timeout.get();
    let len = tokio::time::timeout(limit, read).await.unwrap_or(Err(Refusal {
        reason: Reason::ConnectTimeout,
        what: "no CONNECT in time",
        connack: None,
    }))?;
    let packet: Vec<u8> = input.drain(..len).collect();
    shared.hub.metrics.packets_received.inc();
    shared.hub.metrics.packet_bytes_received.inc_by(len as u64);
    let mut connect = connect::parse(&packet, shared.topic_limits())?;
    let version = connect.version;
    let mut characters = connect.client_id.chars();
    asked.client_id.extend(characters.by_ref().take(shared.config.client_id_chars_max));
    asked.is_cut = characters.next().is_some();
    asked.principal.user = connect.user.as_deref().map(Arc::from);
    asked.packet_bytes_max = connect.packet_bytes_max;
    let refusal =
        |reason: Reason, code: u8, what: &'static str| Refusal::new(version, reason, code, what);
    if connect.authentication_method {
        return Err(refusal(
            Reason::NotAuthorized,
            code::BAD_AUTHENTICATION_METHOD,
            "there is no enhanced authentication here",
        ));
    }
    // MQTT-3.1.3-8: only a clean session of 3.1.1 may leave its name to us.
    if version == Version::V311 && connect.client_id.is_empty() && !connect.clean_start {
        return Err(refusal(
            Reason::BadClientId,
            code::BAD_CLIENT_ID,
            "an empty client id needs a clean session",
        ));
    }
    if !connect.client_id.is_empty() {
        check_client_id(&connect.client_id, shared.config.client_id_chars_max)
            .map_err(|what| refusal(Reason::BadClientId, code::BAD_CLIENT_ID, what))?;
    }
    let is_banned = |client_id: &str, identity: Option<&str>, user: Option<&str>| {
        let suspect = Suspect { client_id, identity, user, address: peer.ip() };
        let banned = shared.bans.has(&suspect, shared.hub.clock.now());
        banned.then(|| refusal(Reason::Banned, code::BANNED, "this client is banned"))
    };
    let holder = certified(shared, stream)
        .map_err(|what| refusal(Reason::NotAuthorized, code::NOT_AUTHORIZED, what))?;
    // Before any work is done for it, and again when it is known who it is.
    let identity = holder.as_ref().map(|holder| &*holder.identity);
    asked.principal.identity = identity.map(Arc::from);
    if let Some(refusal) = is_banned(&connect.client_id, identity, connect.user.as_deref()) {
        return Err(refusal);
    }
    let is_limited = shared.is_limited(peer.ip());
    let credentials = Credentials {
        holder,
        user: connect.user.take(),
        password: connect.password.take(),
        client_id: std::mem::take(&mut connect.client_id),
        peer: peer.ip(),
        is_limited,
        listener: Arc::clone(&listener.name),
        anonymous: *anonymous,
    };
    let asked_for_none = credentials.client_id.is_empty();
    let mut admitted = Box::pin(shared.authenticator.check(credentials))
        .await
        .map_err(|denied| refusal(denied.reason, denied.code, denied.what))?;
    let mut client_id = std::mem::take(&mut admitted.client_id);
    if client_id.is_empty() {
        client_id = made_up_client_id().ok_or_else(|| {
            let what = "the system has no random numbers";
            refusal(Reason::TooMany, code::UNAVAILABLE, what)
        })?;
    }
    // Once more: it may come from a certificate or from the list of devices.
    check_client_id(&client_id, shared.config.client_id_chars_max)
        .map_err(|what| refusal(Reason::BadClientId, code::BAD_CLIENT_ID, what))?;
    let client = admitted.as_client(&client_id);
    if let Some(refusal) = is_banned(&client_id, client.identity, client.user) {
        return Err(refusal);
    }
    let name = admitted.principal.name().map(|name| &**name);
    let now = tokio::time::Instant::now();
    if is_limited && !shared.flapping.may_connect(name, &client_id, now) {
        let what = "this client connects too often";
        return Err(refusal(Reason::RateLimited, code::CONNECTION_RATE, what));
    }
    let (grants, problem) = Grants::of(&client, &shared.access);
    if let Some(problem) = problem {
        tracing::warn!(client_id, %peer, problem, "the client's access entry grants it nothing");
    }
    let grants = Arc::new(grants);
    if let Some(will) = &connect.will
        && !grants.may_publish(&will.topic)
    {
        return Err(refusal(
            Reason::NotAuthorized,
            code::NOT_AUTHORIZED,
            "the will's topic is not this client's",
        ));
    }
    let place = match admitted.principal.name() {
        None => None,
        Some(identity) => {
            let replaces = shared.clients.is_online(&client_id, identity);
            let place = shared.load.enter(identity, replaces, now).map_err(|reason| {
                refusal(reason, code::QUOTA, "this identity has too many connections")
            })?;
            Some(place)
        }
    };
    let pace = shared.load.pace(place.as_ref(), &listener.load);
    let assigned = asked_for_none.then(|| client_id.clone());
    let (mut connack, session_expiry, keep_alive) = accept_terms(shared, &connect, assigned);
    let mut out = Vec::new();
    protocol::write_connack(&mut out, version, &connack);
    if out.len() > connect.packet_bytes_max {
        let what = "the CONNACK is over the client's Maximum Packet Size";
        return Err(Refusal { reason: Reason::PacketTooLarge, what, connack: None });
    }
    let attached = shared
        .hub
        .attach(Attach {
            client_id: client_id.as_str().into(),
            principal: admitted.principal.clone(),
            clean_start: connect.clean_start,
            expiry_secs: session_expiry,
            groups: admitted.groups.clone(),
            grants: (!grants.deny().is_empty()).then(|| Arc::clone(&grants)),
        })
        .await
        .map_err(|reason| match reason {
            Reason::ShuttingDown => refusal(reason, code::UNAVAILABLE, "the broker stops"),
            Reason::TakenOver => {
                let what = "a later connection has asked for the same client id";
                refusal(reason, code::UNAVAILABLE, what)
            }
            _ => refusal(reason, code::QUOTA, "there are too many sessions"),
        })?;
    if let Some((will, row)) = attached.old_will {
        shared.hub.publish_will(&attached.session, *will, Some(row), None).await;
    }
    // From here on publishes go out: what was queued before may have been sent when a crash comes.
    // And a session that the client was told to be gone must not be back after it.
    // A failure has ended the process' work anyway; the client notices with its first packet.
    shared.hub.journal().wait(attached.position).await.ok();
    // A ban that came in since the look above has not found this connection.
    if is_banned(&client_id, client.identity, client.user).is_some() {
        attached.session.tell_to_end(Reason::Banned);
    }
    connack.session_present = attached.present;
    out.clear();
    protocol::write_connack(&mut out, version, &connack);
    tracing::debug!(
        client_id = %attached.session.client_id, %peer, present = attached.present, "connected"
    );
    let presence = enter(
        shared,
        Connected {
            session: Arc::clone(&attached.session),
            owner: attached.owner,
            peer,
            listener: Arc::clone(&listener.name),
            version,
            since: shared.hub.clock.now(),
            is_end_told: AtomicBool::new(false),
        },
    );
    let connection = Connection {
        shared: Arc::clone(shared),
        pace,
        held: shared.load.input(),
        stays: Some((presence, place)),
        listener: Arc::clone(listener),
        certificates: *certificates,
        session: attached.session,
        owner: attached.owner,
        signal: attached.signal,
        peer,
        grants,
        writer: writer(shared, &connect),
        out,
        will: connect.will,
        patience: Duration::from_secs(keep_alive.into()) * 3 / 2,
        session_expiry,
        // A token of a thousand years is one without an end.
        ends_at: admitted
            .ends_at
            .and_then(|at| now.checked_add(at.since(shared.hub.clock.now()).min(YEAR * 10))),
        state: State::new(),
        _present: shared.sys.enter(),
    };
    Ok((connection, input))
}

/// Enters a client among those that are connected, and tells rules of it.
fn enter(shared: &Shared, connected: Connected) -> Presence {
    let (presence, other) = shared.clients.enter(connected);
    let connected = &*presence.connected;
    if let Some(other) = other {
        if other.owner > connected.owner {
            // Its session is the other's already: it ends as soon as it begins.
            connected.is_end_told.store(true, Ordering::Relaxed);
            return presence;
        }
        // One that has not ended in time has lost its session all the same.
        tell_of(shared, &other, Event::TakenOver, &other.is_end_told);
    }
    tell_of(shared, connected, Event::Connected, &AtomicBool::new(false));
    presence
}

fn tell_of(shared: &Shared, connected: &Connected, event: Event, is_told: &AtomicBool) {
    let session = &connected.session;
    let way = Way { address: connected.peer.ip(), listener: Arc::clone(&connected.listener) };
    let news = News {
        way: Some(&way),
        reason: (event == Event::TakenOver).then_some(Reason::TakenOver),
        ..News::of(event, &session.client_id, &session.principal)
    };
    herald::tell_once(&shared.hub, &news, is_told);
}

/// What the broker agrees to: the CONNACK for a new session, the session's expiry and the
/// keep-alive in force.
fn accept_terms(
    shared: &Shared,
    connect: &Connect,
    assigned_client_id: Option<String>,
) -> (Connack, u32, u16) {
    let config = &shared.config;
    let session_expiry = connect.session_expiry.min(shared.session_expiry_max());
    let mut keep_alive = connect.keep_alive;
    let longest = u16::try_from(config.keep_alive_max.get().as_secs()).unwrap_or(u16::MAX);
    // 3.1.1 has no way to tell the client.
    if connect.version == Version::V5 && longest > 0 && (keep_alive == 0 || keep_alive > longest) {
        keep_alive = longest;
    }
    let connack = Connack {
        session_present: false,
        receive_max: u16::try_from(config.commits_max).unwrap_or(u16::MAX),
        packet_bytes_max: u32::try_from(config.packet_bytes_max).unwrap_or(u32::MAX),
        alias_max: config.topic_alias_max,
        session_expiry: (session_expiry != connect.session_expiry).then_some(session_expiry),
        assigned_client_id,
        keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
    };
    (connack, session_expiry, keep_alive)
}

fn writer(shared: &Shared, connect: &Connect) -> Writer {
    let config = &shared.config;
    let alias_max = connect.alias_max.min(config.topic_alias_max);
    Writer {
        version: connect.version,
        bytes_max: connect.packet_bytes_max,
        window_max: config.inflight_max.min(connect.receive_max.into()),
        output_bytes_max: config.output_bytes_max,
        aliases: (alias_max > 0)
            .then(|| Box::new(Aliases { max: alias_max.into(), topics: Vec::new() })),
    }
}

/// An id that nobody else has.
fn made_up_client_id() -> Option<String> {
    let random = getrandom::u64().ok()?;
    Some(format!("auto-{random:016x}"))
}

impl Shared {
    /// Whether one more connection from `address` may begin; its place among the others of it,
    /// where there is a limit for them.
    fn admit(&self, listener: &Listener, address: IpAddr) -> Result<Option<Place>, Failed> {
        if self.bans.has_address(address, self.hub.clock.now()) {
            return Err(Failed::silent(Reason::Banned, "its address is banned"));
        }
        let limited = self.is_limited(address).then_some(address);
        self.load
            .may_begin(&listener.load, limited, tokio::time::Instant::now())
            .map_err(|limit| Failed::silent(Reason::RateLimited, limit))?;
        let place = limited.map(|address| self.addresses.enter(address)).transpose();
        place.map_err(|reason| Failed::silent(reason, "too many connections from its address"))
    }

    /// Counts and logs the end of a connection.
    fn note_end(
        &self,
        peer: SocketAddr,
        client_id: &str,
        reason: Reason,
        what: &str,
        is_fault: bool,
    ) {
        let metrics = &self.hub.metrics;
        let closed = &metrics.connections_closed;
        closed.get_or_create(&ByReason { reason }).inc();
        if is_fault {
            metrics.refuse(reason);
        }
        if is_fault && self.is_first(peer, (client_id, reason, what)) {
            tracing::warn!(client_id, %peer, %reason, what, "closed a connection for a fault");
        } else {
            tracing::debug!(client_id, %peer, %reason, what, "a connection ended");
        }
    }
}
