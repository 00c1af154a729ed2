//! Clients that are connected now, as one edge shows them to another.
//!
//! The broker knows them, the HTTP API shows them and has them disconnected; neither knows the
//! other. Data and the one trait between them; nothing here does anything.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::clock::Timestamp;

/// A connected client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its client id.
    pub client_id: Arc<str>,
    /// The name it has authenticated with; `None` for an anonymous one.
    pub identity: Option<Arc<str>>,
    /// Where it comes from.
    pub address: SocketAddr,
    /// The name of the listener that it has come to.
    pub listener: Arc<str>,
    /// `3.1.1` or `5.0`.
    pub version: &'static str,
    /// Since when it is connected.
    pub since: Timestamp,
    /// How many subscriptions its session has.
    pub subscriptions: usize,
    /// Publishes that wait for it.
    pub queued: usize,
    /// Publishes that were sent to it and that it has not acknowledged.
    pub in_flight: usize,
}

/// Which clients are asked for, in the order of their client ids.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Only of this identity.
    pub identity: Option<String>,
    /// Only whose client id begins so.
    pub prefix: String,
    /// Only of this listener.
    pub listener: Option<String>,
    /// Only behind this client id.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

/// Who knows the clients that are connected.
pub trait Clients: Send + Sync {
    /// Those that are asked for.
    fn list(&self, query: &Query) -> Vec<Client>;

    /// Has a client disconnected; false if it is not connected. Its session stays as the client
    /// has asked for it, and its will is published: to everybody else it is gone.
    fn disconnect(&self, client_id: &str) -> bool;
}
