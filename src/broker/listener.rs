//! Listeners: the two of `[broker]`, and `[[listener]]` with settings of its own.
//!
//! [`Config`] is what an operator writes, [`Settings`] what it comes to with what is inherited from
//! `[broker]`, [`Listener`] what a connection keeps of the one that it came by.
//!
//! Invariant: a setting that would do nothing on its transport is a problem, not a surprise.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::BindError;
use super::auth::Anonymous;
use super::config::{self, Paths, is_loopback};
use super::load::Scope;
use super::tls::Tls;
use super::tls::files::{Files, Keyed};
use super::upgrade::Terms;
use crate::network::Network;

/// Connections that the system keeps for us until they are accepted.
const BACKLOG: i32 = 1024;

/// How a listener's bytes travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// MQTT on TCP.
    Tcp,
    /// MQTT on TLS.
    #[default]
    Tls,
    /// MQTT in WebSocket frames on TCP.
    Ws,
    /// MQTT in WebSocket frames on TLS.
    Wss,
}

impl Transport {
    fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }

    fn has_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// As URLs call it.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Tcp => "mqtt",
            Self::Tls => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }
}

/// A further listener, `[[listener]]`. What is not said is as in `[broker]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What it is called, in `watchbell status` and the log; required, 1 to 64 characters.
    pub name: String,
    /// Address and port; required. `[::]:8883` takes IPv6 and IPv4, unless another listener has
    /// the same port at `0.0.0.0`.
    pub address: String,
    /// `tcp`, `tls`, `ws` (WebSocket) or `wss` (WebSocket on TLS). Default `tls`.
    pub transport: Transport,
    /// Where the WebSocket is; default `/mqtt`. `ws` and `wss` only.
    pub path: Option<String>,
    /// Web pages that may open a WebSocket beside those of the same host, as
    /// `https://dash.example.org`; `*` for any. Default none. Clients that are no browsers are not
    /// asked. `ws` and `wss` only.
    pub origins: Vec<String>,
    /// Whether every connection begins with a PROXY protocol header, version 2, that says who the
    /// client is. Default false.
    pub proxy_protocol: bool,
    /// Whose header is believed: addresses and networks of the load balancers. Required with
    /// `proxy_protocol`; all others are refused.
    pub proxy_from: Vec<String>,
    /// As in `[broker]`; `cert` and `key` go together.
    pub cert: Option<PathBuf>,
    /// As in `[broker]`.
    pub key: Option<PathBuf>,
    /// As in `[broker]`.
    pub client_ca: Option<Paths>,
    /// As in `[broker]`.
    pub crl: Option<Paths>,
    /// As in `[broker]`.
    pub require_client_cert: Option<bool>,
    /// As in `[broker]`.
    pub anonymous: Option<Anonymous>,
    /// As in `[broker]`, for `tcp` and `ws`.
    pub allow_plain_remote: Option<bool>,
    /// Most open connections of this listener; default, and in all, `connections_max` of `[broker]`.
    /// 1 to 1000000.
    pub connections_max: Option<usize>,
}

impl Config {
    /// What it comes to, or everything wrong with it. `prefix` is what its keys begin with.
    pub(super) fn settings(
        &self,
        broker: &config::Config,
        prefix: &str,
    ) -> Result<Settings, Vec<String>> {
        let mut problems = self.useless_keys(prefix);
        let mut wrong = |key: &str, what: &str| problems.push(format!("{prefix}.{key}: {what}"));
        if self.name.is_empty() || self.name.chars().count() > 64 {
            wrong("name", "is missing; give it a name of 1 to 64 characters");
        }
        let address: Option<SocketAddr> = self.address.parse().ok();
        let allow_plain = self.allow_plain_remote.unwrap_or(broker.allow_plain_remote);
        match address {
            None => wrong(
                "address",
                "is no address; write one and a port, as in 0.0.0.0:8883 or [::]:8883",
            ),
            Some(address) if !self.transport.has_tls() && !is_loopback(address) && !allow_plain => {
                let secure = if self.transport.has_websocket() { "wss" } else { "tls" };
                wrong(
                    "address",
                    &format!(
                        "{address} can be reached from other machines without TLS; set transport \
                         = \"{secure}\", or allow_plain_remote = true"
                    ),
                );
            }
            Some(_) => {}
        }
        let path = self.path.clone().unwrap_or_else(|| "/mqtt".to_owned());
        if !path.starts_with('/') || path.contains(['?', '#', ' ']) {
            wrong("path", "write it as /mqtt");
        }
        for origin in self.origins.iter().filter(|origin| *origin != "*") {
            let authority =
                origin.split_once("://").filter(|(scheme, _)| scheme.starts_with("http"));
            if authority.is_none_or(|(_, host)| host.is_empty() || host.contains('/')) {
                wrong(
                    "origins",
                    &format!(
                        "`{origin}` is no origin; write it as https://dash.example.org, without a path"
                    ),
                );
            }
        }
        let mut proxy_from = Vec::new();
        for net in &self.proxy_from {
            match net.parse::<Network>() {
                Ok(net) => proxy_from.push(net),
                Err(what) => wrong("proxy_from", &what.to_string()),
            }
        }
        if self.proxy_protocol && self.proxy_from.is_empty() {
            wrong(
                "proxy_from",
                "is missing; proxy_protocol needs the addresses of the load balancers, as in [\"10.0.0.0/8\"]",
            );
        }
        match (&self.cert, &self.key) {
            (Some(_), None) => wrong("key", "is missing; cert and key go together"),
            (None, Some(_)) => wrong("cert", "is missing; cert and key go together"),
            _ => {}
        }
        let files = self.files(broker, prefix);
        if self.transport.has_tls() && files.require_client_cert && files.client_ca.value.is_empty()
        {
            wrong("client_ca", "is missing; require_client_cert needs it");
        }
        let connections_max = self.connections_max.unwrap_or(broker.connections_max);
        if !(1..=1_000_000).contains(&connections_max) {
            wrong(
                "connections_max",
                &format!("{connections_max} is not at least 1 and at most 1000000"),
            );
        }
        match address {
            Some(address) if problems.is_empty() => Ok(Settings {
                key: format!("{prefix}.address"),
                prefix: prefix.to_owned(),
                name: self.name.clone(),
                transport: self.transport,
                address,
                terms: self
                    .transport
                    .has_websocket()
                    .then(|| Terms { path, origins: self.origins.clone() }),
                proxy_from: self.proxy_protocol.then_some(proxy_from),
                files: self.transport.has_tls().then_some(files),
                anonymous: self.anonymous.unwrap_or(broker.anonymous),
                connections_max,
            }),
            _ => Err(problems),
        }
    }

    fn useless_keys(&self, prefix: &str) -> Vec<String> {
        let (tls, websocket) = (self.transport.has_tls(), self.transport.has_websocket());
        let transport = self.transport.protocol();
        [
            ("path", self.path.is_some() && !websocket, "has no WebSocket"),
            ("origins", !self.origins.is_empty() && !websocket, "has no WebSocket"),
            ("cert", self.cert.is_some() && !tls, "has no TLS"),
            ("key", self.key.is_some() && !tls, "has no TLS"),
            ("client_ca", self.client_ca.is_some() && !tls, "has no TLS"),
            ("crl", self.crl.is_some() && !tls, "has no TLS"),
            ("require_client_cert", self.require_client_cert.is_some() && !tls, "has no TLS"),
            ("allow_plain_remote", self.allow_plain_remote.is_some() && tls, "has TLS anyway"),
            (
                "proxy_from",
                !self.proxy_from.is_empty() && !self.proxy_protocol,
                "does not ask for a header without proxy_protocol = true",
            ),
        ]
        .into_iter()
        .filter(|(_, useless, _)| *useless)
        .map(|(key, _, why)| {
            format!("{prefix}.{key}: does nothing here: a listener by {transport} {why}")
        })
        .collect()
    }

    fn files(&self, broker: &config::Config, prefix: &str) -> Files {
        let inherited = Files::of(broker);
        let own = |key: &str| format!("{prefix}.{key}");
        Files {
            cert: Keyed::or(own("cert"), self.cert.clone(), inherited.cert),
            key: Keyed::or(own("key"), self.key.clone(), inherited.key),
            client_ca: Keyed::or(own("client_ca"), self.client_ca.clone(), inherited.client_ca),
            crl: Keyed::or(own("crl"), self.crl.clone(), inherited.crl),
            require_client_cert: self.require_client_cert.unwrap_or(inherited.require_client_cert),
        }
    }
}

/// A listener with all that it inherits.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The configuration key of its address.
    pub(super) key: String,
    /// What its own keys begin with.
    pub(super) prefix: String,
    pub(super) name: String,
    pub(super) transport: Transport,
    pub(super) address: SocketAddr,
    terms: Option<Terms>,
    proxy_from: Option<Vec<Network>>,
    pub(super) files: Option<Files>,
    anonymous: Anonymous,
    connections_max: usize,
}

impl Settings {
    /// `broker.listen`.
    pub(super) fn plain(broker: &config::Config, address: SocketAddr) -> Self {
        Self {
            key: "broker.listen".to_owned(),
            prefix: "broker".to_owned(),
            name: "mqtt".to_owned(),
            transport: Transport::Tcp,
            address,
            terms: None,
            proxy_from: None,
            files: None,
            anonymous: broker.anonymous,
            connections_max: broker.connections_max,
        }
    }

    /// `broker.listen_tls`.
    pub(super) fn tls(broker: &config::Config, address: SocketAddr) -> Self {
        Self {
            key: "broker.listen_tls".to_owned(),
            name: "mqtts".to_owned(),
            transport: Transport::Tls,
            files: Some(Files::of(broker)),
            ..Self::plain(broker, address)
        }
    }

    /// Opens it. `v6_only`: IPv4 is another listener's.
    pub(super) fn bind(
        self,
        v6_only: bool,
        tls: Option<Tls>,
        load: Arc<Scope>,
    ) -> Result<Bound, BindError> {
        let wanted = self.address;
        let key = self.key.clone();
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse => BindError::InUse { address: wanted, key: key.clone() },
            _ => BindError::Listen { address: wanted, key: key.clone(), source },
        };
        let socket = open(wanted, v6_only).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let listener = Listener {
            name: self.name.into(),
            transport: self.transport,
            address,
            terms: self.terms,
            proxy_from: self.proxy_from,
            tls,
            anonymous: self.anonymous,
            permits: Arc::new(Semaphore::new(self.connections_max)),
            load,
        };
        Ok(Bound { socket, key: self.key, listener: Arc::new(listener) })
    }
}

fn open(address: SocketAddr, v6_only: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // Said, because what the system would do is its own setting.
        socket.set_only_v6(v6_only)?;
    }
    // A restart does not wait for the last connections' end.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Whether `address` is to leave IPv4 to another of `all`: both cannot have the port.
pub(super) fn is_v6_only(address: SocketAddr, all: &[SocketAddr]) -> bool {
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) || all.contains(&v4)
}

/// A listener that is open.
pub(super) struct Bound {
    pub(super) socket: TcpListener,
    pub(super) key: String,
    pub(super) listener: Arc<Listener>,
}

/// The listener that a connection came by.
pub(crate) struct Listener {
    pub(crate) name: Arc<str>,
    pub(crate) transport: Transport,
    /// Where it is, also where port 0 was asked for.
    pub(crate) address: SocketAddr,
    /// Of WebSockets.
    pub(crate) terms: Option<Terms>,
    /// Whose PROXY protocol header is believed; `None` where there is to be no header.
    pub(crate) proxy_from: Option<Vec<Network>>,
    pub(crate) tls: Option<Tls>,
    pub(crate) anonymous: Anonymous,
    /// One a connection.
    pub(crate) permits: Arc<Semaphore>,
    /// How fast all who come this way may go on.
    pub(crate) load: Arc<Scope>,
}

impl Listener {
    /// Whether the address of a connection's other end is known without reading from it.
    pub(crate) fn knows_peers(&self) -> bool {
        self.proxy_from.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The listener as it comes out, or every problem.
    fn said(toml: &str) -> Result<Settings, String> {
        let listener: Config = toml::from_str(toml).expect("valid TOML");
        let broker = config::Config::default();
        listener.settings(&broker, "listener[0]").map_err(|problems| problems.join("\n"))
    }

    #[test]
    fn what_is_not_said_is_inherited() {
        let settings = said("name = 'a'\naddress = '[::]:8884'").expect("fine");
        assert_eq!(settings.transport, Transport::Tls);
        let files = settings.files.expect("TLS");
        assert_eq!(
            (files.cert.key.as_str(), files.crl.key.as_str()),
            ("broker.cert", "broker.crl")
        );
        assert_eq!((settings.anonymous, settings.connections_max), (Anonymous::Loopback, 20_000));
        assert!(settings.proxy_from.is_none() && settings.terms.is_none());

        let settings = said(
            "name = 'a'\naddress = '127.0.0.1:1'\ntransport = 'wss'\ncert = 'c'\nkey = 'k'\n\
             client_ca = ['x', 'y']\ncrl = 'z'\nanonymous = 'never'\nconnections_max = 7\n\
             proxy_protocol = true\nproxy_from = ['10.0.0.0/8', '::1']\npath = '/'\norigins = ['https://a']",
        )
        .expect("fine");
        let files = settings.files.expect("TLS");
        assert_eq!(files.cert.key, "listener[0].cert");
        assert_eq!(files.client_ca.value.to_string(), "x, y");
        assert_eq!((settings.anonymous, settings.connections_max), (Anonymous::Never, 7));
        assert_eq!(settings.proxy_from.map(|nets| nets.len()), Some(2));
    }

    #[test]
    fn every_problem_names_its_key() {
        for (toml, expected) in [
            (
                "",
                "listener[0].name: is missing; give it a name of 1 to 64 characters\nlistener[0].address: is no address; write one and a port, as in 0.0.0.0:8883 or [::]:8883",
            ),
            (
                "name = 'a'\naddress = '0.0.0.0:1'\ntransport = 'ws'",
                "listener[0].address: 0.0.0.0:1 can be reached from other machines without TLS; set transport = \"wss\", or allow_plain_remote = true",
            ),
            ("name = 'a'\naddress = '[::]:1'\ntransport = 'tcp'\nallow_plain_remote = true", ""),
            (
                "name = 'a'\naddress = '[::1]:1'\ntransport = 'tcp'\ncert = 'c'\npath = '/'",
                "listener[0].path: does nothing here: a listener by mqtt has no WebSocket\nlistener[0].cert: does nothing here: a listener by mqtt has no TLS\nlistener[0].key: is missing; cert and key go together",
            ),
            (
                "name = 'a'\naddress = '0.0.0.0:1'\nallow_plain_remote = true",
                "listener[0].allow_plain_remote: does nothing here: a listener by mqtts has TLS anyway",
            ),
            (
                "name = 'a'\naddress = '0.0.0.0:1'\nproxy_protocol = true",
                "listener[0].proxy_from: is missing; proxy_protocol needs the addresses of the load balancers, as in [\"10.0.0.0/8\"]",
            ),
            (
                "name = 'a'\naddress = '0.0.0.0:1'\nproxy_from = ['x']",
                "listener[0].proxy_from: does nothing here: a listener by mqtts does not ask for a header without proxy_protocol = true\nlistener[0].proxy_from: `x` is no address range; write an address, as 192.0.2.7, or a range, as 10.0.0.0/8",
            ),
            (
                "name = 'a'\naddress = '0.0.0.0:1'\nclient_ca = ''\nrequire_client_cert = true",
                "listener[0].client_ca: is missing; require_client_cert needs it",
            ),
            (
                "name = 'a'\naddress = '0.0.0.0:1'\ntransport = 'wss'\npath = 'mqtt'\norigins = ['dash', 'https://a/b', '*']\nconnections_max = 0",
                "listener[0].path: write it as /mqtt\nlistener[0].origins: `dash` is no origin; write it as https://dash.example.org, without a path\nlistener[0].origins: `https://a/b` is no origin; write it as https://dash.example.org, without a path\nlistener[0].connections_max: 0 is not at least 1 and at most 1000000",
            ),
        ] {
            assert_eq!(said(toml).err().unwrap_or_default(), expected, "{toml}");
        }
    }

    #[test]
    fn ipv6_takes_ipv4_too_unless_another_listener_does() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let all = [address("0.0.0.0:1883"), address("[::]:1883"), address("[::]:8883")];
        for (one, expected) in [("[::]:1883", true), ("[::]:8883", false), ("[::1]:8883", true)] {
            assert_eq!(is_v6_only(address(one), &all), expected, "{one}");
        }
    }
}
