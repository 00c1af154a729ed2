//! What MQTT demands of a server, statement by statement.
//!
//! `docs/conformance.md` is the table: each statement's number, and the test that shows it. Numbers
//! of 3.1.1 are written `MQTT-3.1.0-1`, those of 5.0 `MQTT5-3.1.0-1`, and stand in the tests at the
//! place that shows them. [`paper`] holds table and tests together.

mod connect;
mod paper;
mod publish;
mod session;
mod subscribe;
mod sys;
mod wire;

use std::net::SocketAddr;

use crate::harness::Harness;
use crate::raw::{Connect, Raw, packet, subscribe, v3};

/// Session Expiry Interval of an hour.
const HOUR: &[u8] = b"\x11\x00\x00\x0e\x10";

/// The application, and where it speaks MQTT without TLS.
struct Served {
    harness: Harness,
    address: SocketAddr,
}

impl Served {
    async fn start(config: &str) -> Self {
        let harness = Harness::start(config).await;
        let address = harness.app.instance().mqtt.unwrap();
        Self { harness, address }
    }

    async fn connected(&self, connect: Connect<'_>) -> Raw {
        Raw::connected(self.address, &connect.bytes()).await.0
    }

    /// Connects and says whether the session was there before.
    async fn resumed(&self, connect: &Connect<'_>) -> (Raw, bool) {
        let (raw, connack) = Raw::connected(self.address, &connect.bytes()).await;
        (raw, connack[2] == 1)
    }

    /// Sends a CONNECT that is refused: the CONNACK, behind which the connection is closed.
    async fn refused(&self, connect: &[u8]) -> Vec<u8> {
        let mut raw = Raw::open(self.address).await;
        raw.send(connect).await;
        let connack = raw.packet().await.expect("a CONNACK");
        raw.expect_closed().await;
        connack
    }

    /// An MQTT 3.1.1 client that subscribes to `filter`.
    async fn subscriber(&self, id: &str, filter: &str, qos: u8) -> Raw {
        let mut raw = self.connected(v3(id)).await;
        raw.send(&subscribe(1, filter, qos, None)).await;
        raw.expect(&[0x90, 3, 0, 1, qos]).await;
        raw
    }

    /// Waits until every connection but `count` is gone.
    async fn connections(&self, count: u64) {
        self.harness.api.counted("connections", count).await;
    }
}

/// Subscribes by MQTT 5; each filter has to be granted as it was asked for.
async fn subscribed(raw: &mut Raw, filter: &str, options: u8, properties: &[u8]) {
    raw.send(&subscribe(1, filter, options, Some(properties))).await;
    raw.expect(&[0x90, 4, 0, 1, 0, options & 3]).await;
}

/// An UNSUBSCRIBE; `v5` with an empty property length.
fn unsubscribe(id: u8, filters: &[&str], v5: bool) -> Vec<u8> {
    let mut body = vec![0, id];
    if v5 {
        body.push(0);
    }
    for filter in filters {
        body.extend(u16::try_from(filter.len()).unwrap().to_be_bytes());
        body.extend(filter.as_bytes());
    }
    packet(0xa2, &body)
}

/// The value of a property in a PUBLISH without topic alias: what stands behind its identifier.
fn after<'a>(bytes: &'a [u8], identifier: &[u8]) -> Option<&'a [u8]> {
    let at = bytes.windows(identifier.len()).position(|found| found == identifier)?;
    bytes.get(at + identifier.len()..)
}
