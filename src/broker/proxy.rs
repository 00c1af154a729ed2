//! PROXY protocol, version 2: whom a load balancer speaks for.
//!
//! | bytes | what |
//! |---|---|
//! | 12 | the signature `\r\n\r\n\0\r\nQUIT\n` |
//! | 1 | `0x20` LOCAL: the proxy itself, as for a health check; `0x21` PROXY: a client of it |
//! | 1 | `0x11` TCP over IPv4, `0x21` TCP over IPv6; others are refused |
//! | 2 | length of what follows, big-endian; at most 4 KiB here |
//! | 12 or 36 | source and destination address, source and destination port |
//! | | more about the client (TLVs), which is skipped |
//!
//! Source: the PROXY protocol of HAProxy, sections 2.2 and 5. What it never does: read a byte more
//! than the header, or believe a peer that `proxy_from` does not name; the caller asks that first.
//!
//! Invariant: nobody is on this machine because a proxy is, see [`Told::peer`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const HEAD_BYTES: usize = 16;
const REST_BYTES_MAX: usize = 4 << 10;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// The proxy speaks for itself.
    Local,
    /// It speaks for this client.
    Client(SocketAddr),
}

impl Told {
    /// Who the peer is, of a header that came from `proxy`. A loopback address that a proxy on
    /// another machine tells is that machine's own: the proxy's address stands for it.
    pub(crate) fn peer(self, proxy: SocketAddr) -> SocketAddr {
        match self {
            Self::Client(client)
                if !client.ip().is_loopback() || proxy.ip().to_canonical().is_loopback() =>
            {
                client
            }
            Self::Client(_) | Self::Local => proxy,
        }
    }
}

/// Why there is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHeader {
    /// As by a health check that only connects.
    Closed,
    /// What is wrong.
    Bad(&'static str),
}

impl From<&'static str> for NoHeader {
    fn from(what: &'static str) -> Self {
        Self::Bad(what)
    }
}

/// Reads the header, and not a byte of what comes behind it.
pub(crate) async fn read(socket: &mut (impl AsyncRead + Unpin)) -> Result<Told, NoHeader> {
    let mut head = [0; HEAD_BYTES];
    let mut filled = 0;
    // Piece by piece, so that a peer that speaks something else is known by its first bytes and
    // does not wait for the time limit.
    while let Some(rest) = head.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match socket.read(rest).await {
            Ok(0) | Err(_) => return Err(NoHeader::Closed),
            Ok(count) => filled += count,
        }
        check_signature(head.get(..filled).unwrap_or_default())?;
    }
    let [.., command, family, high, low] = head;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if command >> 4 != 2 {
        return Err("a PROXY protocol header of a version that there is not".into());
    }
    if len > REST_BYTES_MAX {
        return Err("a PROXY protocol header of more than 4 KiB".into());
    }
    let mut rest = vec![0; len];
    socket.read_exact(&mut rest).await.map_err(|_| NoHeader::Closed)?;
    match command & 0x0f {
        0 => Ok(Told::Local),
        1 => Ok(Told::Client(source(family, &rest)?)),
        _ => Err("a PROXY protocol header with a command that there is not".into()),
    }
}

fn check_signature(start: &[u8]) -> Result<(), &'static str> {
    let signature = start.iter().zip(SIGNATURE).all(|(byte, expected)| *byte == expected);
    if signature {
        return Ok(());
    }
    let version_1 = start.iter().zip(*b"PROXY ").all(|(byte, expected)| *byte == expected);
    Err(if version_1 {
        "the proxy speaks version 1 of the PROXY protocol; set it to version 2 (HAProxy: \
         send-proxy-v2)"
    } else {
        "no PROXY protocol header; switch it on at the load balancer, or set this listener's \
         proxy_protocol = false"
    })
}

fn source(family: u8, addresses: &[u8]) -> Result<SocketAddr, &'static str> {
    const SHORT: &str = "a PROXY protocol header that is too short for its addresses";
    let port = |at: usize| {
        let bytes = addresses.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u16::from_be_bytes).ok_or(SHORT)
    };
    match family {
        0x11 => {
            let source = addresses.first_chunk::<4>().ok_or(SHORT)?;
            Ok(SocketAddr::from((Ipv4Addr::from(*source), port(8)?)))
        }
        0x21 => {
            let source = Ipv6Addr::from(*addresses.first_chunk::<16>().ok_or(SHORT)?);
            Ok(SocketAddr::from((source.to_canonical(), port(32)?)))
        }
        _ => Err("a PROXY protocol header without a TCP address in it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(rest.len()).expect("short").to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    fn v4() -> Vec<u8> {
        header(0x21, 0x11, &[203, 0, 113, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x22, 0xb3])
    }

    fn v6() -> Vec<u8> {
        let mut rest = [0; 36];
        rest[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        rest[15] = 9;
        rest[32..34].copy_from_slice(&443_u16.to_be_bytes());
        let mut bytes = header(0x21, 0x21, &rest);
        // A TLV behind the addresses.
        bytes.extend([0x04, 0, 1, 7]);
        bytes[15] += 4;
        bytes
    }

    async fn told(mut bytes: &[u8]) -> (String, usize) {
        let told = match read(&mut bytes).await {
            Ok(Told::Local) => "local".to_owned(),
            Ok(Told::Client(client)) => client.to_string(),
            Err(NoHeader::Closed) => "closed".to_owned(),
            Err(NoHeader::Bad(what)) => what.to_owned(),
        };
        (told, bytes.len())
    }

    #[tokio::test]
    async fn a_header_is_read_and_nothing_behind_it() {
        let mut mapped = [0; 36];
        mapped[10..16].copy_from_slice(&[0xff, 0xff, 203, 0, 113, 7]);
        for (name, mut bytes, expected) in [
            ("IPv4", v4(), "203.0.113.7:8080"),
            ("IPv6 with a TLV", v6(), "[2001:db8::9]:443"),
            ("IPv4 in IPv6", header(0x21, 0x21, &mapped), "203.0.113.7:0"),
            ("LOCAL", header(0x20, 0, &[]), "local"),
            ("LOCAL with what is to be skipped", header(0x20, 0x11, &[1; 40]), "local"),
            ("IPv4 with the longest rest", header(0x21, 0x11, &[9; 4096]), "9.9.9.9:2313"),
        ] {
            bytes.extend(b"MQTT");
            assert_eq!(told(&bytes).await, (expected.to_owned(), 4), "{name}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for (name, bytes, expected) in [
            ("version 1", b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(), "version 1"),
            ("a CONNECT", b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00".to_vec(), "no PROXY"),
            ("one byte of TLS", b"\x16".to_vec(), "no PROXY"),
            ("version 3", header(0x31, 0x11, &[0; 12]), "version that there is not"),
            ("another command", header(0x22, 0x11, &[0; 12]), "command"),
            ("UDP", header(0x21, 0x12, &[0; 12]), "without a TCP address"),
            ("a Unix socket", header(0x21, 0x31, &[0; 216]), "without a TCP address"),
            ("no address", header(0x21, 0, &[]), "without a TCP address"),
            ("short IPv4", header(0x21, 0x11, &[0; 9]), "too short"),
            ("short IPv6", header(0x21, 0x21, &[0; 33]), "too short"),
            ("too long", header(0x21, 0x11, &[0; 4097]), "4 KiB"),
        ] {
            let (told, _) = told(&bytes).await;
            assert!(told.contains(expected), "{name}: {told}");
        }
    }

    #[tokio::test]
    async fn a_header_that_is_cut_anywhere_is_none() {
        for whole in [v4(), v6(), header(0x20, 0x11, &[1; 12])] {
            for len in 0..whole.len() {
                let (told, _) = told(&whole[..len]).await;
                assert!(told == "closed", "{len}: {told}");
            }
        }
    }

    #[test]
    fn a_proxied_client_was_on_this_machine_because_the_proxy_said_127_0_0_1() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let far = address("10.0.0.5:999");
        let here = address("127.0.0.1:999");
        for (told, proxy, expected) in [
            (Told::Client(address("203.0.113.7:1")), far, "203.0.113.7:1"),
            (Told::Client(address("203.0.113.7:1")), here, "203.0.113.7:1"),
            (Told::Client(address("127.0.0.1:1")), far, "10.0.0.5:999"),
            (Told::Client(address("[::1]:1")), far, "10.0.0.5:999"),
            (Told::Client(address("127.0.0.1:1")), here, "127.0.0.1:1"),
            (Told::Local, far, "10.0.0.5:999"),
        ] {
            assert_eq!(told.peer(proxy), address(expected), "{told:?} by {proxy}");
        }
    }
}
