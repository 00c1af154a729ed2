//! The address of an upstream, as `url` has it.
//!
//! Resolves no name and connects to nothing. Invariant: an [`Address`] has a host and a port.

/// Where an upstream listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl Address {
    /// `mqtts://host:8883` or `mqtt://host:1883`; user and password have keys of their own.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match text.split_once("://")? {
            ("mqtts", rest) => (true, rest),
            ("mqtt", rest) => (false, rest),
            _ => return None,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let default = if tls { 8883 } else { 1883 };
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                host.parse::<std::net::Ipv6Addr>().ok()?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port =
            port.map_or(Some(default), |port| port.parse().ok()).filter(|port| *port != 0)?;
        let is_odd = |one: char| one.is_whitespace() || one.is_control() || "/@?#".contains(one);
        (!host.is_empty() && !host.contains(is_odd)).then(|| Self {
            host: host.to_owned(),
            port,
            tls,
        })
    }

    /// Whether what is sent there never leaves this machine.
    pub(super) fn is_this_machine(&self) -> bool {
        let host = self.host.as_str();
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, expected) in [
            ("mqtts://b.example.org:8884", Some("mqtts://b.example.org:8884")),
            ("mqtts://b.example.org", Some("mqtts://b.example.org:8883")),
            ("mqtt://127.0.0.1/", Some("mqtt://127.0.0.1:1883")),
            ("mqtt://[::1]:1884", Some("mqtt://[::1]:1884")),
            ("mqtt://[::1]", Some("mqtt://[::1]:1883")),
            ("mqtt://[x]", None),
            ("b.example.org:1883", None),
            ("tcp://b:1883", None),
            ("mqtt://user:secret@b:1883", None),
            ("mqtt://b:0", None),
            ("mqtt://b:99999", None),
            ("mqtt://", None),
        ] {
            let read = Address::parse(text).map(|address| address.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }
}
