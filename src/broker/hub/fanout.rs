//! Who hands publishes to live subscribers: the hub itself, or rumqttd's router.
//!
//! The router is behind the cargo feature `rumqttd`. It takes the plain subscriptions of sessions
//! that end with their connection ([`Fanout::takes`]) and gives live copies of QoS 0. Everything
//! else stays with the hub whichever is chosen: sessions that outlive their connection, shared
//! subscriptions, topics that start with `$`, No Local, Retain As Published, Subscription
//! Identifiers, retained messages, wills, and what rules and upstreams get.
//!
//! Invariant: a subscription is in the hub's routes or with the router, never in both.

use std::sync::Arc;

use super::routes::Routes;
use crate::broker::config::{self, Config};
use crate::broker::protocol::Wanted;
use crate::broker::session::{QueueLimits, Queues, Session};
use crate::clock::Clock;
use crate::model::Qos;
use crate::store::sessions::SubscriptionRow;
use crate::telemetry::Metrics;

/// Who hands publishes to live subscribers.
pub(super) enum Fanout {
    /// The hub's routes, for everybody.
    Hub,
    /// rumqttd's router, for those who need no more than it can give.
    #[cfg(feature = "rumqttd")]
    Router(super::router::Router),
}

#[cfg_attr(
    not(feature = "rumqttd"),
    expect(unused_variables, reason = "the hub's own fan-out is nothing but its routes")
)]
impl Fanout {
    /// As it is configured. The router subscribes to everything, for those whom it serves.
    pub(super) fn new(
        config: &Config,
        (queues, limits): (&Arc<Queues>, QueueLimits),
        routes: &mut Routes,
        (clock, metrics): (&Clock, &Metrics),
    ) -> Self {
        match config.fanout {
            #[cfg(feature = "rumqttd")]
            config::Fanout::Router => {
                let limits = (limits, config.connections_max);
                let (clock, metrics) = (clock.clone(), metrics.clone());
                let router = super::router::Router::start(queues, limits, clock, metrics);
                routes.insert_for_all(router.session());
                Self::Router(router)
            }
            // Refused by `Config::problems`.
            #[cfg(not(feature = "rumqttd"))]
            config::Fanout::Router => Self::Hub,
            config::Fanout::Hub => Self::Hub,
        }
    }

    /// Whether the router serves this subscription.
    pub(super) fn takes(&self, session: &Session, wanted: &SubscriptionRow) -> bool {
        match self {
            Self::Hub => false,
            #[cfg(feature = "rumqttd")]
            Self::Router(_) => is_plain(session, wanted),
        }
    }

    /// The QoS that a subscriber is granted.
    pub(super) fn granted(
        &self,
        session: &Session,
        wanted: &Wanted,
        identifier: Option<u32>,
    ) -> Qos {
        match self {
            Self::Hub => wanted.qos,
            #[cfg(feature = "rumqttd")]
            Self::Router(_) => {
                let row = SubscriptionRow {
                    filter: wanted.filter.as_str().into(),
                    qos: wanted.qos,
                    no_local: wanted.no_local,
                    retain_as_published: wanted.retain_as_published,
                    identifier,
                };
                if is_plain(session, &row) { Qos::AtMostOnce } else { wanted.qos }
            }
        }
    }

    /// The session's subscriptions have changed, or it has ended.
    pub(super) fn changed(&self, session: &Arc<Session>) {
        match self {
            Self::Hub => {}
            #[cfg(feature = "rumqttd")]
            Self::Router(router) => router.changed(session),
        }
    }
}

/// Whether a subscription asks for nothing that rumqttd's router cannot do, or would do wrongly.
#[cfg(feature = "rumqttd")]
pub(super) fn is_plain(session: &Session, wanted: &SubscriptionRow) -> bool {
    !session.persistent
        && !wanted.filter.starts_with('$')
        && !wanted.no_local
        && !wanted.retain_as_published
        && wanted.identifier.is_none()
}
