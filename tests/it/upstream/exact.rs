//! An upstream that sends exactly the bytes that it is told to, and closes when it likes.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{AWAY, upstream};
use crate::harness::{Harness, Place, found};
use crate::process::Process;
use crate::raw::{Connect, Raw, packet, publish, subscribe, v3};

/// It listens; MQTT 3.1.1.
struct Plant {
    listener: TcpListener,
    address: SocketAddr,
}

impl Plant {
    async fn listens() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// The next connection, after CONNACK.
    async fn accept(&self) -> Raw {
        loop {
            let mut raw = Raw::over(self.listener.accept().await.unwrap().0);
            // Whoever was stopped in the middle sends nothing.
            if raw.packet().await.is_some() && raw.try_send(b"\x20\x02\x00\x00").await.is_ok() {
                return raw;
            }
        }
    }

    /// The same, after SUBACK for one filter.
    async fn subscribed(&self) -> Raw {
        let mut raw = self.accept().await;
        let asked = raw.packet().await.unwrap();
        assert_eq!(asked[0], 0x82, "{asked:?}");
        raw.send(&[0x90, 3, asked[2], asked[3], 1]).await;
        raw
    }
}

/// Packet id and payload of a short PUBLISH with QoS 1.
fn read(packet: &[u8]) -> (u16, String) {
    assert_eq!(packet[0] & 0xf6, 0x32, "{packet:?}");
    let after_topic = 4 + usize::from(packet[3]);
    let id = u16::from_be_bytes([packet[after_topic], packet[after_topic + 1]]);
    (id, String::from_utf8(packet[after_topic + 2..].to_vec()).unwrap())
}

#[tokio::test]
async fn a_publish_that_an_upstream_closes_for_each_time_did_hold_up_all_behind_it() {
    let plant = Plant::listens().await;
    let more = "version = '3.1.1'\nprefix = 'plant/'\npublish = ['cmd/#']";
    let harness = Harness::start(&upstream(plant.address, more)).await;
    let mut local = harness.anonymous("local").connect().await;
    for payload in ["one", "two", "poison", "three", "four"] {
        local.publishes("plant/cmd/1", payload).await;
    }
    let (mut taken, mut closes) = (Vec::new(), 0);
    while !taken.contains(&"four".to_owned()) {
        let mut raw = plant.accept().await;
        while let Some(packet) = raw.packet().await {
            let (id, payload) = read(&packet);
            if payload == "poison" {
                closes += 1;
                break;
            }
            let [high, low] = id.to_be_bytes();
            raw.send(&[0x40, 2, high, low]).await;
            taken.push(payload);
            if taken.last().is_some_and(|last| last == "four") {
                let failures = "upstream_pass_failures_total";
                let refused =
                    format!("{failures}{{upstream=\"plant\",reason=\"upstream_refused\"}}");
                harness.api.counted(&refused, 1).await;
                harness.api.counted("upstream_passed_total{upstream=\"plant\"}", 4).await;
                break;
            }
        }
    }
    // The first close may have been for any of several.
    assert!((5..=6).contains(&closes), "{closes}");
    taken.dedup();
    assert_eq!(taken, ["one", "two", "three", "four"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_packet_too_large_at_each_connection_made_an_alert_come_and_go() {
    let plant = Plant::listens().await;
    let more = "version = '3.1.1'\nsubscribe = ['devices/#']\npacket_bytes_max = 1024";
    let place = Place::new(&upstream(plant.address, more)).rules(AWAY);
    let harness = place.start().await;
    let large = publish(0x32, 7, "devices/1", None, &[b'x'; 2000]);
    for _ in 0..8 {
        let mut raw = plant.subscribed().await;
        raw.send(&large).await;
        while raw.packet().await.is_some() {}
    }
    // At whatever moment somebody looks, status says what to do.
    let reason = async || {
        let status = harness.api.status().await;
        let reason = status["upstreams"][0]["reason"].as_str().unwrap_or_default().to_owned();
        reason.contains("packet_bytes_max; nothing more comes").then_some(())
    };
    found("the reason", reason).await;
    let _connected = plant.subscribed().await;
    let is_connected = async || {
        let status = harness.api.status().await;
        (status["upstreams"][0]["connected"] == json!(true)).then_some(status)
    };
    let status: Value = found("a connection", is_connected).await;
    let reason = status["upstreams"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("the connection before did not last: a packet of"), "{reason}");
    let said = harness.api.messages("").await;
    assert!(!said.is_empty() && said.len() <= 4, "{said:#?}");
    harness.stop().await;
}

#[tokio::test]
async fn what_an_upstream_has_an_acknowledgement_for_waits_for_local_subscribers_after_kill_9() {
    let plant = Plant::listens().await;
    let more = "version = '3.1.1'\nsubscribe = ['devices/#']\nprefix = 'plant/'";
    let mut process = Process::start(Place::new(&upstream(plant.address, more))).await;
    let subscriber = Connect { keep: true, ..v3("subscriber") };
    let (mut raw, _) = Raw::connected(process.mqtt(), &subscriber.bytes()).await;
    raw.send(&subscribe(1, "plant/#", 1, None)).await;
    raw.expect(&packet(0x90, &[0, 1, 1])).await;
    raw.send(b"\xe0\x00").await;
    raw.expect_closed().await;

    let mut upstream = plant.subscribed().await;
    upstream.send(&publish(0x32, 7, "devices/1", None, b"hot")).await;
    upstream.expect(b"\x40\x02\x00\x07").await;
    process.kill();
    process.restart().await;

    let (mut raw, connack) = Raw::connected(process.mqtt(), &subscriber.bytes()).await;
    assert_eq!(connack[2], 1, "its session is there");
    let (_, payload) = read(&raw.packet().await.unwrap());
    assert_eq!(payload, "hot");
}
