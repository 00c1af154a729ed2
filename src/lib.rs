//! Watchbell: one binary between field hardware and people.
//!
//! Devices publish MQTT; rules turn publishes into alerts; alerts become messages; a durable
//! outbox holds them until a provider has taken them. The modules stand in reading order, floor
//! by floor: a module may use the floors above it in this list, never those below
//! (ARCHITECTURE.md; `tests/it/tidy.rs` checks it).

// Floor 0: data.
pub mod clock;
pub mod model;
pub mod network;
pub mod online;
pub mod password;
pub mod problem;
pub mod secret;
pub mod span;
pub mod telemetry;
pub mod topic;

// Floor 1: pure.
pub mod channel;
pub mod notify;
pub mod payload;
pub mod rules;

// Floor 2: adapters.
pub mod capture;
pub mod provider;
pub mod store;

// Floor 3: engines.
pub mod dispatch;
pub mod intake;

// Floor 4: edges.
pub mod api;
pub mod broker;
pub mod console;

// Floor 5: the whole.
pub mod app;
pub mod certs;
pub mod cli;
pub mod config;
mod housekeeping;
pub mod instance;
pub mod replay;
