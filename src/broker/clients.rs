//! Who is connected now, for people who ask: `GET /v1/clients`, `watchbell device list --online`.
//!
//! A table by client id beside the hub's sessions, which also holds those that have no connection.
//! In order, so that a page begins where the last one ended. Nothing in the broker's own work
//! reads it but the check of an identity's connections.
//!
//! Invariant: a client is in it from its CONNACK until its connection lets go of the session, and
//! a connection that was replaced takes nobody but itself out.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};

use super::protocol::Version;
use super::session::{Owner, Session};
use crate::clock::Timestamp;
use crate::model::Reason;
use crate::online::{Client, Query};

/// Who is connected now.
#[derive(Default)]
pub(crate) struct Clients {
    by_id: RwLock<BTreeMap<Arc<str>, Arc<Connected>>>,
}

/// One connection.
pub(crate) struct Connected {
    pub(crate) session: Arc<Session>,
    pub(crate) owner: Owner,
    pub(crate) peer: SocketAddr,
    pub(crate) listener: Arc<str>,
    pub(crate) version: Version,
    pub(crate) since: Timestamp,
    /// Its end has been told of, or is not to be.
    pub(crate) is_end_told: AtomicBool,
}

/// A connection's entry; takes it out when dropped.
pub(crate) struct Presence {
    clients: Arc<Clients>,
    pub(crate) connected: Arc<Connected>,
}

impl Clients {
    /// Enters a connection that has its session. Gives back too the one under the same client id
    /// that is still there: an older one that has not ended in time, or a newer one that overtook
    /// this one, and stays.
    pub(crate) fn enter(
        self: &Arc<Self>,
        connected: Connected,
    ) -> (Presence, Option<Arc<Connected>>) {
        let connected = Arc::new(connected);
        let client_id = Arc::clone(&connected.session.client_id);
        let mut by_id = self.by_id.write().unwrap_or_else(PoisonError::into_inner);
        let other = by_id.get(&client_id).map(Arc::clone);
        if other.as_ref().is_none_or(|other| other.owner < connected.owner) {
            by_id.insert(client_id, Arc::clone(&connected));
        }
        (Presence { clients: Arc::clone(self), connected }, other)
    }

    /// Whether a client of `identity` is connected under this client id.
    pub(crate) fn is_online(&self, client_id: &str, identity: &str) -> bool {
        let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
        let connected = by_id.get(client_id);
        connected.is_some_and(|connected| connected.identity() == Some(identity))
    }

    /// Ends the connections that `fits` says yes to, by session and the address that they come from.
    /// Says how many.
    pub(crate) fn end(&self, reason: Reason, fits: impl Fn(&Session, IpAddr) -> bool) -> usize {
        let all: Vec<Arc<Connected>> = {
            let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
            by_id.values().map(Arc::clone).collect()
        };
        let wanted = all.iter().filter(|one| fits(&one.session, one.peer.ip()));
        wanted.filter(|one| one.tell_to_end(reason)).count()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut by_id = self.clients.by_id.write().unwrap_or_else(PoisonError::into_inner);
        let client_id = &self.connected.session.client_id;
        if by_id.get(client_id).is_some_and(|entry| entry.owner == self.connected.owner) {
            by_id.remove(client_id);
        }
    }
}

impl Connected {
    fn identity(&self) -> Option<&str> {
        self.session.principal.name().map(|name| &**name)
    }

    /// False where the session is another connection's by now.
    fn tell_to_end(&self, reason: Reason) -> bool {
        let mut state = self.session.state();
        let is_its = state.owner == Some(self.owner);
        if is_its {
            state.tell_to_end(reason);
        }
        is_its
    }

    fn fits(&self, query: &Query) -> bool {
        query.identity.as_deref().is_none_or(|identity| self.identity() == Some(identity))
            && query.listener.as_deref().is_none_or(|listener| *self.listener == *listener)
    }

    fn shown(&self) -> Client {
        let backlog = self.session.backlog();
        Client {
            client_id: Arc::clone(&self.session.client_id),
            identity: self.session.principal.name().cloned(),
            address: self.peer,
            listener: Arc::clone(&self.listener),
            version: match self.version {
                Version::V311 => "3.1.1",
                Version::V5 => "5.0",
            },
            since: self.since,
            subscriptions: backlog.subscriptions,
            queued: backlog.queued,
            in_flight: backlog.in_flight,
        }
    }
}

impl crate::online::Clients for Clients {
    fn list(&self, query: &Query) -> Vec<Client> {
        let start = match &query.after {
            Some(after) if **after >= *query.prefix => Bound::Excluded(after.as_str()),
            _ => Bound::Included(query.prefix.as_str()),
        };
        let found: Vec<Arc<Connected>> = {
            let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
            by_id
                .range::<str, _>((start, Bound::Unbounded))
                .take_while(|(client_id, _)| client_id.starts_with(&query.prefix))
                .filter(|(_, connected)| connected.fits(query))
                .take(query.limit)
                .map(|(_, connected)| Arc::clone(connected))
                .collect()
        };
        found.iter().map(|connected| connected.shown()).collect()
    }

    fn disconnect(&self, client_id: &str) -> bool {
        let connected = {
            let by_id = self.by_id.read().unwrap_or_else(PoisonError::into_inner);
            by_id.get(client_id).map(Arc::clone)
        };
        let Some(connected) = connected else {
            return false;
        };
        connected.tell_to_end(Reason::AdminDisconnect)
    }
}
