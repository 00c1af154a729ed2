//! Integration tests: the whole application over real sockets.
#![allow(clippy::unwrap_used, clippy::string_slice, missing_docs)]

use std::time::{Duration, Instant};

mod alerts;
mod api;
mod attacks;
mod auth;
mod broker;
mod certs;
mod cli;
#[cfg(debug_assertions)]
mod clocks;
mod config;
mod conformance;
mod device;
mod dispatch;
mod events;
mod fake;
mod fallback;
mod harness;
mod import;
mod intake;
mod large_rows;
mod limits;
mod outbox;
mod papers;
mod path;
mod power_cut;
mod process;
mod providers;
mod raw;
mod restart;
mod retold;
#[cfg(feature = "rumqttd")]
mod router;
mod sessions;
mod store;
mod store_commands;
mod tidy;
mod transports;
mod trial;
mod unheard;
mod upstream;
mod wrong_rules;

/// Waits until a level is reached; never for a fixed time. Generous, so that a slow machine only
/// makes the test slow.
async fn eventually(mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reached() {
        assert!(Instant::now() < deadline, "not reached within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
