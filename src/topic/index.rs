//! Many topic filters, and which of them match a topic: the rules' index and the hub's.
//!
//! A trie by level. The price of a look-up depends on the topic's levels and on the filters that
//! match, not on how many filters there are.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{FilterLevel, TopicFilter, TopicName};

/// Filters with a value each; the same filter may be there many times.
#[derive(Clone, Debug)]
pub struct TopicIndex<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Node<T> {
    exact: HashMap<Arc<str>, Node<T>, RandomState>,
    one: Option<Box<Node<T>>>,
    /// Values of filters that end here.
    here: Vec<T>,
    /// Values of filters that end in `#` below here.
    rest: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { exact: HashMap::default(), one: None, here: Vec::new(), rest: Vec::new() }
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.one.is_none() && self.here.is_empty() && self.rest.is_empty()
    }
}

impl<T> Default for TopicIndex<T> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<T> TopicIndex<T> {
    /// No filters.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a value under `filter`.
    pub fn insert(&mut self, filter: &TopicFilter, value: T) {
        self.len += 1;
        let mut node = &mut self.root;
        for level in filter.levels() {
            node = match level {
                FilterLevel::Exact(text) => node.exact.entry(Arc::clone(text)).or_default(),
                FilterLevel::One => node.one.get_or_insert_default(),
                FilterLevel::Rest => {
                    node.rest.push(value);
                    return;
                }
            };
        }
        node.here.push(value);
    }

    /// Takes out every value under `filter` that `unwanted` points at, and says how many.
    pub fn remove(&mut self, filter: &TopicFilter, unwanted: impl Fn(&T) -> bool) -> usize {
        let removed = remove_below(&mut self.root, filter.levels(), &unwanted);
        self.len -= removed;
        removed
    }

    /// Calls `visit` with the value of each filter that matches `topic`.
    pub fn visit_matches<'a>(&'a self, topic: &'a TopicName, visit: &mut impl FnMut(&'a T)) {
        let text = topic.as_str();
        // MQTT-4.7.2-1: a wildcard in the first level does not match a topic that starts with `$`.
        visit_below(&self.root, Some(text), text.starts_with('$'), visit);
    }
}

fn visit_below<'a, T>(
    node: &'a Node<T>,
    rest: Option<&str>,
    hidden: bool,
    visit: &mut impl FnMut(&'a T),
) {
    if !hidden {
        node.rest.iter().for_each(&mut *visit);
    }
    let Some(rest) = rest else {
        node.here.iter().for_each(visit);
        return;
    };
    let (level, below) = match rest.split_once('/') {
        Some((level, below)) => (level, Some(below)),
        None => (rest, None),
    };
    if let Some(next) = node.exact.get(level) {
        visit_below(next, below, false, visit);
    }
    if let Some(next) = &node.one
        && !hidden
    {
        visit_below(next, below, false, visit);
    }
}

fn remove_below<T>(
    node: &mut Node<T>,
    levels: &[FilterLevel],
    unwanted: &impl Fn(&T) -> bool,
) -> usize {
    let take_from = |values: &mut Vec<T>| {
        let before = values.len();
        values.retain(|value| !unwanted(value));
        before - values.len()
    };
    // Emptied branches go, so that topics that come and go leave nothing behind.
    match levels.split_first() {
        None => take_from(&mut node.here),
        Some((FilterLevel::Rest, _)) => take_from(&mut node.rest),
        Some((FilterLevel::One, below)) => {
            let Some(next) = &mut node.one else { return 0 };
            let removed = remove_below(next, below, unwanted);
            if next.is_empty() {
                node.one = None;
            }
            removed
        }
        Some((FilterLevel::Exact(text), below)) => {
            let Some(next) = node.exact.get_mut(text) else {
                return 0;
            };
            let removed = remove_below(next, below, unwanted);
            if next.is_empty() {
                node.exact.remove(text);
            }
            removed
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::TopicLimits;
    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text, TopicLimits::default()).expect("a valid filter")
    }

    fn found(index: &TopicIndex<usize>, topic: &str) -> Vec<usize> {
        let topic = TopicName::parse(topic, TopicLimits::default()).expect("a valid topic");
        let mut values = Vec::new();
        index.visit_matches(&topic, &mut |value| values.push(*value));
        values.sort_unstable();
        values
    }

    #[test]
    fn an_emptied_index_keeps_no_branch() {
        let mut index = TopicIndex::new();
        for (value, text) in ["a/+/c", "a/b/#", "a/b/c"].into_iter().enumerate() {
            index.insert(&filter(text), value);
        }
        assert_eq!(found(&index, "a/b/c"), [0, 1, 2]);
        for text in ["a/+/c", "a/b/#", "a/b/c"] {
            assert_eq!(index.remove(&filter(text), |_| true), 1);
        }
        assert!(index.is_empty() && index.root.is_empty());
    }

    proptest! {
        #[test]
        fn finds_what_each_filter_alone_would_match(
            filters in prop::collection::vec(
                prop::collection::vec(prop::sample::select(vec!["a", "b", "", "+", "$x"]), 1..4),
                0..12,
            ),
            rests in prop::collection::vec(any::<bool>(), 12),
            topic in prop::collection::vec(prop::sample::select(vec!["a", "b", "", "$x"]), 1..5),
        ) {
            let topic = topic.join("/");
            prop_assume!(!topic.is_empty());
            let mut index = TopicIndex::new();
            let mut expected = Vec::new();
            for (value, mut levels) in filters.into_iter().enumerate() {
                if rests[value] {
                    levels.push("#");
                }
                let text = levels.join("/");
                if text.is_empty() {
                    continue;
                }
                let filter = filter(&text);
                let name = TopicName::parse(&topic, TopicLimits::default()).expect("valid");
                if filter.matches(&name) {
                    expected.push(value);
                }
                index.insert(&filter, value);
            }
            prop_assert_eq!(found(&index, &topic), expected);
        }
    }
}
