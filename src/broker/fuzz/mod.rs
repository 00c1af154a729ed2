//! The door for fuzzers (`fuzz/`), and for the test that plays their seeds back.
//!
//! Each target takes any bytes and panics where something is not as it has to be. Not compiled
//! into what is shipped: `cfg(fuzzing)` is set by cargo-fuzz only.
//!
//! Invariant: the same bytes always do the same. No clock is asked, nothing is drawn by lot.

mod filters;
mod packets;

use std::net::SocketAddr;

use futures_util::FutureExt as _;

use super::protocol::connect::{self, check_client_id};
use super::protocol::{self, Connack, Version};
use super::websocket::Reader;
use super::{proxy, upgrade};
use crate::topic::{TopicLimits, TopicName};

/// A session and all that its clients say to it: see `fuzz/packets.rs`.
pub fn packets(bytes: &[u8]) {
    packets::run(bytes);
}

/// Topics, filters and rights: see `fuzz/filters.rs`.
pub fn filters(bytes: &[u8]) {
    filters::run(bytes);
}

/// The first packet of a client, as its socket would give it.
pub fn connect(bytes: &[u8]) {
    let mut input = Vec::new();
    let read = connect::read(&mut &*bytes, &mut input, 4096).now_or_never();
    let Ok(len) = read.expect("a slice never lets anyone wait") else { return };
    let mut out = Vec::new();
    let version = match connect::parse(&input[..len], TopicLimits::default()) {
        Ok(connect) => {
            let id_is_good = check_client_id(&connect.client_id, 64).is_ok();
            assert!(!id_is_good || !connect.client_id.contains(['/', '+', '#', '\0']));
            assert!(connect.receive_max > 0 && connect.packet_bytes_max > 0);
            assert!(connect.password.is_none() || connect.user.is_some());
            for text in [Some(&connect.client_id), connect.user.as_ref()].into_iter().flatten() {
                assert!(!text.contains('\0'));
            }
            if let Some(will) = &connect.will {
                let topic = TopicName::parse(will.topic.as_str(), TopicLimits::default());
                assert_eq!(topic.as_ref(), Ok(&will.topic));
            }
            let connack = Connack {
                session_present: !connect.clean_start,
                receive_max: connect.receive_max,
                packet_bytes_max: u32::try_from(len).expect("at most 4096"),
                alias_max: connect.alias_max,
                session_expiry: Some(connect.session_expiry),
                assigned_client_id: Some(connect.client_id),
                keep_alive: Some(connect.keep_alive),
            };
            protocol::write_connack(&mut out, connect.version, &connack);
            connect.version
        }
        Err(refusal) => {
            let Some((version, code)) = refusal.connack else { return };
            protocol::write_refusal(&mut out, version, code, refusal.what, usize::MAX);
            for bytes_max in 0..out.len().min(16) {
                let mut short = Vec::new();
                protocol::write_refusal(&mut short, version, code, refusal.what, bytes_max);
                assert!(short.len() <= bytes_max || version == Version::V311);
            }
            version
        }
    };
    assert_eq!(out.first(), Some(&0x20), "{version:?}");
    assert_eq!(protocol::tally(&out).packets, 1);
    is_whole(&out);
}

/// Nothing but whole packets.
fn is_whole(mut out: &[u8]) {
    while !out.is_empty() {
        let frame = protocol::frame(out, usize::MAX).expect("ours is well-formed");
        out = &out[frame.expect("and whole").len..];
    }
}

/// What stands before MQTT's bytes. The first byte says what comes: WebSocket frames, a PROXY
/// header, the head of an upgrade.
pub fn wire(bytes: &[u8]) {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    match first % 3 {
        0 => frames(usize::from(first / 3) + 1, bytes),
        1 => proxied(bytes),
        _ => upgraded(first & 0x80 != 0, bytes),
    }
}

/// In pieces and at once, the same comes out.
fn frames(piece_bytes: usize, bytes: &[u8]) {
    let take = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut reader, mut input, mut replies) = (Reader::default(), Vec::new(), Vec::new());
        for piece in pieces {
            reader.take(piece, &mut input, &mut replies);
        }
        (input, replies)
    };
    let whole = take(&mut std::iter::once(bytes));
    assert!(whole.0.len() + whole.1.len() <= bytes.len(), "more comes out than went in");
    assert_eq!(whole, take(&mut bytes.chunks(piece_bytes)));
}

fn proxied(bytes: &[u8]) {
    let mut rest = bytes;
    let told = proxy::read(&mut rest).now_or_never().expect("a slice never lets anyone wait");
    let Ok(told) = told else { return };
    let len = 16 + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    assert_eq!(bytes.len() - rest.len(), len, "a byte more or less than the header");
    let peer = told.peer(SocketAddr::from(([203, 0, 113, 1], 1)));
    assert!(
        !peer.ip().to_canonical().is_loopback(),
        "nobody is on this machine because a proxy is"
    );
}

fn upgraded(is_local: bool, bytes: &[u8]) {
    let terms = upgrade::Terms { path: "/mqtt".into(), origins: vec!["https://a.example".into()] };
    match upgrade::check(bytes, &terms, is_local) {
        Ok(Some((len, accept, _))) => {
            assert_eq!(accept.len(), 28, "base64 of SHA-1");
            let again = upgrade::check(&bytes[..len], &terms, is_local);
            assert!(matches!(again, Ok(Some((same, ..))) if same == len));
            let cut = upgrade::check(&bytes[..len - 1], &terms, is_local);
            assert!(matches!(cut, Ok(None)), "granted before its end");
        }
        Ok(None) => assert!(bytes.len() < 8 << 10),
        Err(refused) => assert!(refused.answer.starts_with(b"HTTP/1.1 4")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Plays the seeds of one target back.
    fn check(target: &str, run: fn(&[u8])) {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
        let mut files: Vec<_> = std::fs::read_dir(&seeds)
            .expect("there are seeds")
            .map(|entry| entry.expect("a seed").path())
            .collect();
        files.sort();
        assert!(files.len() > 10, "{} has hardly any seeds", seeds.display());
        for file in files {
            let bytes = std::fs::read(&file).expect("a seed can be read");
            if let Err(panic) = std::panic::catch_unwind(|| run(&bytes)) {
                let what = panic.downcast_ref::<String>().map_or("see above", String::as_str);
                panic!("{}: {what}", file.display());
            }
        }
    }

    #[test]
    fn the_seeds_of_the_fuzzers_find_nothing() {
        for (target, run) in [
            ("connect", super::connect as fn(&[u8])),
            ("packets", super::packets),
            ("filters", super::filters),
            ("wire", super::wire),
        ] {
            check(target, run);
        }
    }
}
