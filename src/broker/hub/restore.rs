//! The start: what was on disk is in memory again.
//!
//! A session whose client was connected when the process ended waits for it from now on. Wills of
//! connections that were open then are not published: it was the broker that died, not the device.
//! Rows that lead nowhere are deleted; one that cannot be read is said in the log, stays, and costs
//! nobody else anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::journal::Body;
use super::routes::{Member, Subscribed};
use super::{Hub, lock, write};
use crate::broker::acl::{AccessEntry, Client, Grants};
use crate::broker::auth::Principal;
use crate::broker::protocol::connect::Will;
use crate::broker::session::{PendingWill, Session, is_expired};
use crate::clock::Timestamp;
use crate::model::Publish;
use crate::store::keys::{self, Key};
use crate::store::sessions::{Saved, SessionRow, WillRow};

/// Unreadable rows that are named one by one in the log.
const SAID_MAX: usize = 20;

impl Hub {
    /// Takes back what was saved. Call once, before the first connection.
    pub(crate) fn restore(&self, saved: Saved, access: &[AccessEntry]) {
        let now = self.clock.now();
        self.last_number.fetch_max(saved.largest_number, Ordering::Relaxed);
        let mut leftover = Vec::new();
        let mut rows: HashMap<u64, (Arc<Session>, SessionRow)> = HashMap::new();
        for (number, row) in saved.sessions {
            if row.ends_at.is_some_and(|at| at <= now) {
                leftover.push(keys::session(number));
                continue;
            }
            let session = self.session_of(number, &row, access);
            rows.insert(number, (session, row));
        }
        let mut bodies: HashMap<u64, (Arc<Publish>, Arc<Body>)> = HashMap::new();
        for (number, publish) in saved.bodies {
            bodies.insert(number, (Arc::new(publish), Arc::new(Body::found(number))));
        }
        for ((number, turn), row) in saved.queued {
            let found = row.body.and_then(|body| bodies.get(&body));
            let Some((session, session_row)) = rows.get(&number) else {
                leftover.push(keys::queued(number, turn));
                continue;
            };
            if row.body.is_some() && found.is_none() {
                leftover.push(keys::queued(number, turn));
                continue;
            }
            if let Some((_, body)) = found {
                body.add_found();
            }
            session.restore(turn, row, found.cloned(), session_row.unsent_from);
        }
        let unused = |(_, body): &(_, Arc<Body>)| Arc::strong_count(body) == 1;
        leftover.extend(
            bodies.values().filter(|body| unused(body)).map(|(_, body)| keys::body(body.number())),
        );
        for ((number, id), stage) in saved.received {
            match rows.get(&number) {
                Some((session, _)) => session.restore_received(id, stage),
                None => leftover.push(keys::received(number, id)),
            }
        }
        for (number, row, publish) in saved.wills {
            let session = rows.get(&row.session).map(|(session, _)| Arc::clone(session));
            self.restore_will(session, number, row, publish, now);
        }
        let count = rows.len();
        for (session, row) in rows.into_values() {
            self.take_in(&session, &row, now);
        }
        for publish in saved.retained {
            self.restore_retained(publish, now, &mut leftover);
        }
        self.report(&saved.unreadable, leftover, count);
    }

    fn session_of(&self, number: u64, row: &SessionRow, access: &[AccessEntry]) -> Arc<Session> {
        let principal = Principal { identity: row.identity.clone(), user: row.user.clone() };
        let client = Client {
            client_id: &row.client_id,
            identity: principal.identity.as_deref(),
            user: principal.user.as_deref(),
            groups: &row.groups,
        };
        let (grants, _) = Grants::of(&client, access);
        let client_id = Arc::clone(&row.client_id);
        let session = Session::new(client_id, principal, number, true, &self.queues);
        {
            let mut state = session.state();
            state.is_saved = true;
            state.expiry_secs = row.expiry_secs;
            // What is queued from now on was not sent either, whatever comes before the client.
            state.next_turn = row.unsent_from.unwrap_or_default();
            state.groups.clone_from(&row.groups);
            state.denied = (!grants.deny().is_empty()).then(|| Arc::new(grants));
        }
        Arc::new(session)
    }

    /// Puts the session where it can be found, with its subscriptions and its deadline.
    fn take_in(&self, session: &Arc<Session>, row: &SessionRow, now: Timestamp) {
        let mut routes = write(&self.routes);
        for subscription in &row.subscriptions {
            if let Ok(subscribed) = Subscribed::read_back(&subscription.filter) {
                routes.insert(&subscribed, Member::new(session, subscription));
            }
        }
        self.route_count.store(routes.len(), Ordering::Release);
        drop(routes);
        let mut sessions = lock(&self.sessions);
        let mut state = session.state();
        for subscription in &row.subscriptions {
            state.subscriptions.insert(Arc::clone(&subscription.filter), subscription.clone());
        }
        self.count_subscriptions(session, state.subscriptions.len());
        let is_for_ever = row.expiry_secs == u32::MAX;
        let expiry = Duration::from_secs(row.expiry_secs.into());
        let ends_at = match row.ends_at {
            // Its client was connected: the time runs from now, and on over the next restart.
            None if !is_for_ever => Some(now.plus(expiry)),
            ends_at => ends_at,
        };
        state.ends_at = ends_at.map(|at| Instant::now() + at.since(now));
        if row.unsent_from.is_none() {
            session.save(&mut state, ends_at);
        }
        self.set_deadline(session, &mut state);
        drop(state);
        sessions.insert(Arc::clone(&session.client_id), Arc::clone(session));
        self.count_sessions(&sessions);
    }

    fn restore_will(
        &self,
        session: Option<Arc<Session>>,
        number: u64,
        row: WillRow,
        publish: Publish,
        now: Timestamp,
    ) {
        let at = Instant::now() + row.due_at.since(now);
        let will = Box::new(Will {
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            delay_secs: 0,
            properties: publish.properties,
        });
        let pending = PendingWill { at, number, will };
        if let Some(session) = session {
            // Its deadline is set when it is taken in.
            session.state().will = Some(pending);
            return;
        }
        // The session has ended: one stands in for it that only has the will.
        let principal = Principal { identity: publish.identity, user: None };
        let session = Session::new(publish.client_id, principal, row.session, true, &self.queues);
        let session = Arc::new(session);
        let mut state = session.state();
        state.will = Some(pending);
        state.ends_at = Some(at);
        self.set_deadline(&session, &mut state);
    }

    fn restore_retained(&self, publish: Publish, now: Timestamp, leftover: &mut Vec<Key>) {
        let key = keys::retained(publish.topic.as_str());
        let publish = Arc::new(publish);
        let mut retained = write(&self.retained);
        let is_over = is_expired(&publish, now);
        if is_over || retained.keep(&publish, now, &mut |_| {}).is_err() {
            if !is_over {
                tracing::warn!(
                    topic = %publish.topic,
                    "a retained message of before the start has no room; see \
                     broker.retained_messages_max and broker.retained_bytes_max"
                );
            }
            leftover.push(key);
        }
        let count = i64::try_from(retained.len()).unwrap_or(i64::MAX);
        self.metrics.retained_messages.set(count);
    }

    /// Says what was found, and deletes what leads nowhere.
    fn report(&self, unreadable: &[String], leftover: Vec<Key>, sessions: usize) {
        for problem in unreadable.iter().take(SAID_MAX) {
            self.metrics.refuse(crate::model::Reason::StoreFailed);
            tracing::error!(
                problem,
                "a row of a session, its queue or a retained message cannot be read; it is left \
                 where it is, everything else is served"
            );
        }
        if !unreadable.is_empty() {
            tracing::error!(
                count = unreadable.len(),
                "rows that cannot be read; restore a backup of the data directory if clients miss \
                 something"
            );
        } else {
            // With all rows read, what leads nowhere was on its way out when the process ended.
            for key in leftover {
                self.journal().note(|op| op.remove(key));
            }
        }
        if sessions > 0 {
            tracing::info!(sessions, "sessions of before the start wait for their clients");
        }
    }
}
