//! An MQTT client that sends exactly the bytes it is told to.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than anything that is waited for; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// One connection.
pub(crate) struct Raw {
    stream: Box<dyn Wire>,
    input: Vec<u8>,
}

impl Raw {
    pub(crate) fn over(stream: impl Wire + 'static) -> Self {
        Self { stream: Box::new(stream), input: Vec::new() }
    }

    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap())
    }

    /// Connects and expects to be let in; says what the CONNACK was.
    pub(crate) async fn connected(address: SocketAddr, connect: &[u8]) -> (Self, Vec<u8>) {
        let mut raw = Self::open(address).await;
        raw.send(connect).await;
        let connack = raw.packet().await.expect("a CONNACK");
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:02x?}");
        (raw, connack)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The same where the broker may have closed already.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next packet; `None` when the broker has closed.
    pub(crate) async fn packet(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(len) = packet_len(&self.input) {
                return Some(self.input.drain(..len).collect());
            }
            let mut chunk = [0; 4096];
            let read = self.stream.read(&mut chunk);
            match tokio::time::timeout(PATIENCE, read).await.expect("silence from the broker") {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.input.extend(&chunk[..count]),
            }
        }
    }

    /// The next packet, which has to be this one.
    pub(crate) async fn expect(&mut self, expected: &[u8]) {
        let found = self.packet().await;
        assert_eq!(found.as_deref(), Some(expected), "{found:02x?} is not {expected:02x?}");
    }

    /// What is left of an MQTT 5 or 3.1.1 connection: it answers a ping.
    pub(crate) async fn expect_alive(&mut self) {
        self.send(b"\xc0\x00").await;
        self.expect(b"\xd0\x00").await;
    }

    pub(crate) async fn expect_closed(&mut self) {
        assert_eq!(self.packet().await, None);
    }

    /// Ends it without DISCONNECT, and waits until the broker has noticed.
    pub(crate) async fn hang_up(mut self) {
        self.stream.shutdown().await.unwrap();
        while self.packet().await.is_some() {}
    }
}

fn packet_len(input: &[u8]) -> Option<usize> {
    let mut length = 0;
    for (index, byte) in input.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let len = 2 + index + length;
            return (input.len() >= len).then_some(len);
        }
    }
    None
}

fn text(text: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// A packet with its length.
pub(crate) fn packet(header: u8, body: &[u8]) -> Vec<u8> {
    [&[header][..], &sized(body)].concat()
}

/// Behind its length as a variable byte integer: a packet's body, or properties.
pub(crate) fn sized(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut length = body.len();
    loop {
        let low = u8::try_from(length & 0x7f).unwrap();
        length >>= 7;
        bytes.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

/// What a CONNECT asks for.
#[derive(Clone, Default)]
pub(crate) struct Connect<'a> {
    pub(crate) v5: bool,
    pub(crate) id: &'a str,
    /// Clean session and clean start are the default.
    pub(crate) keep: bool,
    pub(crate) keep_alive: u16,
    /// Encoded, without their length; MQTT 5 only.
    pub(crate) properties: &'a [u8],
    /// Flags (will QoS and retain), topic, payload, encoded properties.
    pub(crate) will: Option<(u8, &'a str, &'a [u8], &'a [u8])>,
    pub(crate) user: Option<(&'a str, &'a str)>,
}

impl Connect<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut flags = u8::from(!self.keep) << 1;
        if let Some((will, ..)) = self.will {
            flags |= 0b100 | will;
        }
        if self.user.is_some() {
            flags |= 0b1100_0000;
        }
        let mut body = b"\x00\x04MQTT".to_vec();
        body.extend([if self.v5 { 5 } else { 4 }, flags]);
        body.extend(self.keep_alive.to_be_bytes());
        if self.v5 {
            body.extend(sized(self.properties));
        }
        body.extend(text(self.id.as_bytes()));
        if let Some((_, topic, payload, properties)) = self.will {
            if self.v5 {
                body.extend(sized(properties));
            }
            body.extend(text(topic.as_bytes()));
            body.extend(text(payload));
        }
        if let Some((user, password)) = self.user {
            body.extend(text(user.as_bytes()));
            body.extend(text(password.as_bytes()));
        }
        packet(0x10, &body)
    }
}

pub(crate) fn v3(id: &str) -> Connect<'_> {
    Connect { id, ..Connect::default() }
}

pub(crate) fn v5(id: &str) -> Connect<'_> {
    Connect { id, v5: true, ..Connect::default() }
}

/// Flags are those of the first byte: 2 for QoS 1, 4 for QoS 2, 1 for retain, 8 for DUP.
/// `properties` is `None` for 3.1.1.
pub(crate) fn publish(
    flags: u8,
    id: u16,
    topic: &str,
    properties: Option<&[u8]>,
    payload: &[u8],
) -> Vec<u8> {
    let mut body = text(topic.as_bytes());
    if flags & 0b110 != 0 {
        body.extend(id.to_be_bytes());
    }
    if let Some(properties) = properties {
        body.extend(sized(properties));
    }
    body.extend(payload);
    packet(0x30 | flags, &body)
}

/// One filter; `properties` is `None` for 3.1.1.
pub(crate) fn subscribe(id: u16, filter: &str, options: u8, properties: Option<&[u8]>) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if let Some(properties) = properties {
        body.extend(sized(properties));
    }
    body.extend(text(filter.as_bytes()));
    body.push(options);
    packet(0x82, &body)
}
