//! Which subscriptions a publish matches.
//!
//! Every subscription is in one index of filters. The members of a shared subscription stand
//! behind one entry, which gives each publish to one of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::broker::session::{QueueLimits, Session};
use crate::model::Qos;
use crate::store::sessions::SubscriptionRow;
use crate::topic::index::TopicIndex;
use crate::topic::{BadTopic, TopicFilter, TopicLimits, TopicName};

/// Every subscription.
#[derive(Default)]
pub(super) struct Routes {
    index: TopicIndex<Route>,
    shares: HashMap<ShareKey, Arc<Share>>,
}

/// Group and filter of a shared subscription.
type ShareKey = (String, Arc<str>);

enum Route {
    One(Member),
    Shared(Arc<Share>),
}

/// A session's subscription.
#[derive(Clone)]
pub(super) struct Member {
    session: Arc<Session>,
    options: Options,
}

/// What a subscription asks for.
#[derive(Clone, Copy, Debug)]
struct Options {
    qos: Qos,
    no_local: bool,
    retain_as_published: bool,
    identifier: Option<u32>,
}

/// A shared subscription: each publish goes to one of its members.
#[derive(Default)]
struct Share {
    members: Mutex<Vec<Member>>,
    next: AtomicUsize,
}

/// A session that gets a publish, and how.
pub(crate) struct Target {
    pub(super) session: Arc<Session>,
    pub(super) qos: Qos,
    pub(super) retain_as_published: bool,
    pub(super) identifiers: Vec<u32>,
}

/// A filter of a SUBSCRIBE or UNSUBSCRIBE, checked.
#[derive(Debug)]
pub(crate) struct Subscribed {
    /// As the client wrote it.
    pub(crate) text: Arc<str>,
    /// The group of a shared subscription.
    pub(crate) group: Option<String>,
    /// The filter itself.
    pub(crate) filter: TopicFilter,
}

impl Subscribed {
    /// Checks a filter as a SUBSCRIBE carries it, `$share/{group}/{filter}` included.
    pub(crate) fn parse(text: &str, limits: TopicLimits) -> Result<Self, BadFilter> {
        let (group, filter) = match text.strip_prefix("$share") {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                // MQTT5-4.8.2-1 and -2.
                let (group, filter) = rest
                    .strip_prefix('/')
                    .and_then(|rest| rest.split_once('/'))
                    .filter(|(group, _)| !group.is_empty() && !group.contains(['+', '#']))
                    .ok_or(BadFilter::Share)?;
                (Some(group.to_owned()), filter)
            }
            _ => (None, text),
        };
        // The limits are for all that a client can make the broker keep.
        if text.len() > limits.bytes_max {
            return Err(BadTopic::TooLong(limits.bytes_max).into());
        }
        if group.as_ref().is_some_and(|group| group.contains(char::is_control)) {
            return Err(BadTopic::ControlCharacter.into());
        }
        Ok(Self { text: text.into(), group, filter: TopicFilter::parse(filter, limits)? })
    }

    /// Reads a filter again that was checked before.
    pub(super) fn read_back(text: &str) -> Result<Self, BadFilter> {
        let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
        Self::parse(text, limits)
    }
}

/// Why a filter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFilter {
    /// `$share` without a group or a filter.
    #[error("a shared subscription is written $share/GROUP/FILTER")]
    Share,
    /// The filter itself.
    #[error(transparent)]
    Filter(#[from] BadTopic),
}

impl Member {
    pub(super) fn new(session: &Arc<Session>, wanted: &SubscriptionRow) -> Self {
        Self {
            session: Arc::clone(session),
            options: Options {
                qos: wanted.qos,
                no_local: wanted.no_local,
                retain_as_published: wanted.retain_as_published,
                identifier: wanted.identifier,
            },
        }
    }
}

impl Target {
    fn of(member: &Member) -> Self {
        Self {
            session: Arc::clone(&member.session),
            qos: member.options.qos,
            retain_as_published: member.options.retain_as_published,
            identifiers: member.options.identifier.into_iter().collect(),
        }
    }
}

impl Share {
    /// The next member that is connected and has room in its queue; if there is none, the next
    /// that has room, then the next that is connected, then the next.
    fn pick(&self, limits: QueueLimits) -> Option<Member> {
        let members = lock(&self.members);
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = |step: usize| members.get((start.wrapping_add(step)) % members.len());
        let mut best: Option<(u8, &Member)> = None;
        for member in (0..members.len()).filter_map(in_turn) {
            let state = member.session.state();
            let worth = 2 * u8::from(state.has_room(0, limits)) + u8::from(state.owner.is_some());
            if best.is_none_or(|(other, _)| worth > other) {
                best = Some((worth, member));
            }
            if worth == 3 {
                break;
            }
        }
        best.map(|(_, member)| member.clone())
    }
}

impl Routes {
    /// How many there are; a shared subscription counts once.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether anybody subscribes to `topic`; no share takes a turn for it.
    pub(super) fn has(&self, topic: &TopicName) -> bool {
        let mut any = false;
        self.index.visit_matches(topic, &mut |_| any = true);
        any
    }

    /// Who gets a publish of `from` to `topic`: each session once, with the highest QoS of its
    /// subscriptions that match (MQTT-3.3.5-1), and one member of each share.
    pub(super) fn targets(
        &self,
        topic: &TopicName,
        from: &str,
        limits: QueueLimits,
    ) -> Vec<Target> {
        let mut targets = Vec::new();
        let mut shared = Vec::new();
        self.index.visit_matches(topic, &mut |route| match route {
            Route::One(member) => {
                if !(member.options.no_local && member.session.client_id.as_ref() == from) {
                    targets.push(Target::of(member));
                }
            }
            Route::Shared(share) => shared.extend(share.pick(limits).as_ref().map(Target::of)),
        });
        if targets.len() > 1 {
            targets.sort_by_key(|target| Arc::as_ptr(&target.session).addr());
            targets.dedup_by(|other, first| {
                let same = Arc::ptr_eq(&other.session, &first.session);
                if same {
                    first.qos = first.qos.max(other.qos);
                    first.retain_as_published |= other.retain_as_published;
                    first.identifiers.append(&mut other.identifiers);
                }
                same
            });
        }
        // A share's copy is one of its own, also for a member that has another (MQTT 5, 4.8.2).
        targets.append(&mut shared);
        targets
    }

    pub(super) fn insert(&mut self, subscribed: &Subscribed, member: Member) {
        let Some(group) = &subscribed.group else {
            self.index.insert(&subscribed.filter, Route::One(member));
            return;
        };
        let key = (group.clone(), Arc::from(subscribed.filter.as_str()));
        let share = match self.shares.get(&key) {
            Some(share) => Arc::clone(share),
            None => {
                let share = Arc::new(Share::default());
                self.index.insert(&subscribed.filter, Route::Shared(Arc::clone(&share)));
                self.shares.insert(key, Arc::clone(&share));
                share
            }
        };
        lock(&share.members).push(member);
    }

    /// A session that gets every publish, once, with QoS 0. None to a topic that starts with `$`.
    #[cfg(feature = "rumqttd")]
    pub(super) fn insert_for_all(&mut self, session: &Arc<Session>) {
        let everything = Subscribed::read_back("#").expect("a valid filter");
        let wanted = SubscriptionRow {
            filter: Arc::clone(&everything.text),
            qos: Qos::AtMostOnce,
            no_local: false,
            retain_as_published: false,
            identifier: None,
        };
        self.insert(&everything, Member::new(session, &wanted));
    }

    pub(super) fn remove(&mut self, session: &Arc<Session>, subscribed: &Subscribed) {
        let is_its = |member: &Member| Arc::ptr_eq(&member.session, session);
        let Some(group) = &subscribed.group else {
            self.index.remove(
                &subscribed.filter,
                |route| matches!(route, Route::One(member) if is_its(member)),
            );
            return;
        };
        let key = (group.clone(), Arc::from(subscribed.filter.as_str()));
        let Some(share) = self.shares.get(&key).map(Arc::clone) else {
            return;
        };
        let mut members = lock(&share.members);
        members.retain(|member| !is_its(member));
        if members.is_empty() {
            self.shares.remove(&key);
            self.index.remove(
                &subscribed.filter,
                |route| matches!(route, Route::Shared(other) if Arc::ptr_eq(other, &share)),
            );
        }
    }
}
