//! Retained messages: the last one of each topic, for those who subscribe later.
//!
//! In memory and, by way of the journal, on disk; bounded by count and bytes. Kept in topic order, so that a filter is compared only
//! with topics that share its literal beginning.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::broker::load::quota::{Most, Owner, Quota};
use crate::broker::session::{bytes_of, is_expired};
use crate::clock::Timestamp;
use crate::model::Publish;
use crate::topic::{FilterLevel, TopicFilter, TopicName};

/// The retained messages.
#[derive(Debug)]
pub(crate) struct Retained {
    messages_max: usize,
    bytes_max: usize,
    bytes: usize,
    by_topic: BTreeMap<TopicName, Arc<Publish>>,
    /// What each identity has of it.
    of_each: Quota,
}

fn owner_of(publish: &Publish) -> Owner {
    Owner::of(publish.identity.as_ref(), &publish.client_id)
}

/// There is no room for another retained message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Retained {
    pub(crate) fn new(messages_max: usize, bytes_max: usize, of_each: Most) -> Self {
        let of_each = Quota::new(of_each);
        Self { messages_max, bytes_max, bytes: 0, by_topic: BTreeMap::new(), of_each }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_topic.len()
    }

    /// Keeps `publish` as the last of its topic; an empty payload deletes what was kept
    /// (MQTT-3.3.1-6). Topics that lost theirs to make room, because it had expired, are told to `gone`.
    pub(crate) fn keep(
        &mut self,
        publish: &Arc<Publish>,
        now: Timestamp,
        gone: &mut dyn FnMut(&TopicName),
    ) -> Result<(), Full> {
        if let Some(old) = self.by_topic.remove(&publish.topic) {
            self.bytes -= bytes_of(&old);
            self.of_each.remove(&owner_of(&old), 1, bytes_of(&old));
        }
        if publish.payload.is_empty() {
            return Ok(());
        }
        let bytes = bytes_of(publish);
        let owner = owner_of(publish);
        if !self.has_room(&owner, bytes) {
            self.drop_expired(now, gone);
            if !self.has_room(&owner, bytes) {
                return Err(Full);
            }
        }
        self.bytes += bytes;
        self.of_each.add(owner, bytes);
        self.by_topic.insert(publish.topic.clone(), Arc::clone(publish));
        Ok(())
    }

    fn drop_expired(&mut self, now: Timestamp, gone: &mut dyn FnMut(&TopicName)) {
        let Self { by_topic, bytes, of_each, .. } = self;
        by_topic.retain(|topic, kept| {
            let is_kept = !is_expired(kept, now);
            if !is_kept {
                *bytes -= bytes_of(kept);
                of_each.remove(&owner_of(kept), 1, bytes_of(kept));
                gone(topic);
            }
            is_kept
        });
    }

    fn has_room(&self, owner: &Owner, bytes: usize) -> bool {
        self.by_topic.len() < self.messages_max
            && self.bytes + bytes <= self.bytes_max
            && self.of_each.has_room(owner, bytes)
    }

    /// The messages whose topics `filter` matches, in topic order.
    pub(crate) fn matching(&self, filter: &TopicFilter, now: Timestamp) -> Vec<Arc<Publish>> {
        let prefix = literal_prefix(filter);
        let start = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        self.by_topic
            .range::<str, _>(start)
            .take_while(|(topic, _)| topic.as_str().starts_with(&prefix))
            .filter(|(topic, kept)| filter.matches(topic) && !is_expired(kept, now))
            .map(|(_, kept)| Arc::clone(kept))
            .collect()
    }
}

/// What every topic that `filter` matches begins with. `a/#` matches `a` too, so the separator
/// before a wildcard is no part of it.
fn literal_prefix(filter: &TopicFilter) -> String {
    let mut prefix = String::new();
    for (index, level) in filter.levels().iter().enumerate() {
        let FilterLevel::Exact(text) = level else {
            break;
        };
        if index > 0 {
            prefix.push('/');
        }
        prefix.push_str(text);
    }
    prefix
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{PublishProperties, Qos};
    use crate::topic::TopicLimits;

    fn publish(topic: &str, payload: &str, expires_after_secs: Option<u32>) -> Arc<Publish> {
        Arc::new(Publish {
            topic: TopicName::parse(topic, TopicLimits::default()).expect("valid"),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            qos: Qos::AtLeastOnce,
            retain: true,
            replayed: false,
            client_id: "p".into(),
            identity: None,
            received_at: Timestamp::default(),
            properties: expires_after_secs.map(|secs| {
                let expires_after_secs = Some(secs);
                Box::new(PublishProperties { expires_after_secs, ..PublishProperties::default() })
            }),
        })
    }

    fn found(retained: &Retained, filter: &str, now: Timestamp) -> String {
        let filter = TopicFilter::parse(filter, TopicLimits::default()).expect("valid");
        let found = retained.matching(&filter, now);
        let topics: Vec<_> = found.iter().map(|kept| kept.topic.as_str()).collect();
        topics.join(" ")
    }

    #[test]
    fn finds_what_a_filter_matches() {
        let now = Timestamp::default();
        let mut retained = Retained::new(100, 1000, Most::default());
        for topic in ["a", "a/b", "a/c/d", "ab", "$x/a", "b"] {
            retained.keep(&publish(topic, "x", None), now, &mut |_| {}).expect("room");
        }
        for (filter, expected) in [
            ("a/#", "a a/b a/c/d"),
            ("a/+", "a/b"),
            ("#", "a a/b a/c/d ab b"),
            ("+/b", "a/b"),
            ("$x/#", "$x/a"),
            ("ab", "ab"),
            ("c/#", ""),
        ] {
            assert_eq!(found(&retained, filter, now), expected, "{filter}");
        }
    }

    #[test]
    fn an_empty_payload_deletes_and_the_bounds_hold() {
        let now = Timestamp::default();
        // Properties weigh what they take.
        let properties = PublishProperties::default().bytes();
        let mut retained = Retained::new(2, 12 + properties, Most::default());
        assert_eq!(retained.keep(&publish("a", "12345", None), now, &mut |_| {}), Ok(()));
        assert_eq!(retained.keep(&publish("b", "123456", Some(5)), now, &mut |_| {}), Err(Full));
        assert_eq!(retained.keep(&publish("b", "12345", Some(5)), now, &mut |_| {}), Ok(()));
        assert_eq!(retained.keep(&publish("c", "1", None), now, &mut |_| {}), Err(Full));
        let later = Timestamp::from_millis(5000);
        assert_eq!(found(&retained, "#", later), "a");
        assert_eq!(retained.keep(&publish("c", "1", None), later, &mut |_| {}), Ok(()));
        assert_eq!(retained.keep(&publish("a", "", None), later, &mut |_| {}), Ok(()));
        assert_eq!(found(&retained, "#", later), "c");
        assert_eq!(retained.bytes, 2);
    }
}
