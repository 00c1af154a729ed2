//! The target `filters`: lines of text, a topic and then filters.
//!
//! Invariant: matching is what MQTT says word by word, however it is looked up.

use crate::broker::acl::{covers, glob_matches};
use crate::broker::hub::Subscribed;
use crate::topic::index::TopicIndex;
use crate::topic::{FilterLevel, TopicFilter, TopicLimits, TopicName};

/// For what was checked already.
const NO_LIMITS: TopicLimits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };

pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    let name = lines.next().unwrap_or_default();
    let topic = TopicName::parse(name, TopicLimits::default());
    let mut index = TopicIndex::new();
    let mut filters = Vec::new();
    for line in lines.take(12) {
        shared(line);
        captures(line, topic.as_ref().ok());
        if line.len() + name.len() <= 64 {
            assert_eq!(glob_matches(line, name), glob(line.as_bytes(), name.as_bytes()), "{line}");
        }
        let Ok(filter) = TopicFilter::parse(line, TopicLimits::default()) else { continue };
        assert_eq!(filter.as_str(), line);
        index.insert(&filter, filters.len());
        filters.push(filter);
    }
    assert_eq!(index.len(), filters.len());
    if let Ok(topic) = &topic {
        let expected: Vec<_> = filters
            .iter()
            .enumerate()
            .filter(|(_, filter)| {
                let matches = filter.matches(topic);
                assert_eq!(matches, naive(filter.as_str(), name), "{filter:?}");
                matches
            })
            .map(|(number, _)| number)
            .collect();
        let mut found = Vec::new();
        index.visit_matches(topic, &mut |number| found.push(*number));
        found.sort_unstable();
        assert_eq!(found, expected);
    }
    for wide in &filters {
        for narrow in &filters {
            covering(wide, narrow, topic.as_ref().ok());
        }
    }
    for (number, filter) in filters.iter().enumerate() {
        assert_eq!(index.remove(filter, |other| *other == number), 1);
    }
    assert!(index.is_empty());
}

/// MQTT 5, 4.7, word by word.
fn naive(filter: &str, topic: &str) -> bool {
    fn below(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) | ([], []) => true,
            (["+", filter @ ..], [_, topic @ ..]) => below(filter, topic),
            ([level, filter @ ..], [name, topic @ ..]) => level == name && below(filter, topic),
            _ => false,
        }
    }
    let is_hidden = filter.starts_with(['+', '#']) && topic.starts_with('$');
    let levels = |text| str::split(text, '/').collect::<Vec<_>>();
    !is_hidden && below(&levels(filter), &levels(topic))
}

/// `reached[n]`: what there was of the pattern fits the first n bytes. Trying each length of each `*`
/// takes longer than a fuzzer waits.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut reached: Vec<bool> = (0..=text.len()).map(|length| length == 0).collect();
    for byte in pattern {
        if *byte == b'*' {
            let mut any = false;
            for fits in &mut reached {
                any |= *fits;
                *fits = any;
            }
        } else {
            for length in (1..=text.len()).rev() {
                reached[length] = reached[length - 1] && text[length - 1] == *byte;
            }
            reached[0] = false;
        }
    }
    reached[text.len()]
}

fn shared(line: &str) {
    let Ok(subscribed) = Subscribed::parse(line, TopicLimits::default()) else { return };
    assert_eq!(&*subscribed.text, line);
    assert!(line.len() <= TopicLimits::default().bytes_max, "longer than a filter may be");
    match &subscribed.group {
        Some(group) => {
            assert!(!group.is_empty() && !group.contains(['/', '+', '#']));
            assert!(!group.contains(char::is_control), "a control character in a group");
            assert_eq!(format!("$share/{group}/{}", subscribed.filter), line);
        }
        None => {
            assert_eq!(subscribed.filter.as_str(), line);
            assert!(line != "$share" && !line.starts_with("$share/"));
        }
    }
}

fn captures(line: &str, topic: Option<&TopicName>) {
    let Ok(filter) = TopicFilter::parse_with_captures(line, TopicLimits::default()) else { return };
    let Some(topic) = topic.filter(|topic| filter.matches(topic)) else { return };
    let captured = filter.captured(topic).map(|(_, text)| text);
    let levels: Vec<_> = topic.levels().collect();
    let expected = filter.captures().iter().map(|(level, _)| levels[*level]);
    assert!(captured.eq(expected));
}

/// A right to `wide` is one to `narrow` exactly if no topic matches `narrow` only.
fn covering(wide: &TopicFilter, narrow: &TopicFilter, topic: Option<&TopicName>) {
    let covers = covers(wide, narrow);
    if let Some(topic) = topic.filter(|topic| covers && narrow.matches(topic)) {
        assert!(wide.matches(topic), "{wide} covers {narrow}, and not {topic}");
    }
    // A level that no filter names.
    let other = "~".repeat(wide.as_str().len() + narrow.as_str().len());
    let level = |level: &FilterLevel| match level {
        FilterLevel::Exact(text) => text.to_string(),
        FilterLevel::One | FilterLevel::Rest => other.clone(),
    };
    let mut levels: Vec<_> = narrow.levels().iter().map(level).collect();
    let mut topics = vec![levels.join("/")];
    let is_open = narrow.levels().last() == Some(&FilterLevel::Rest);
    if is_open {
        topics.push(levels[..levels.len() - 1].join("/"));
        levels.extend(vec![other.clone(); wide.levels().len()]);
        topics.push(levels.join("/"));
    }
    let all = topics
        .iter()
        .filter_map(|text| TopicName::parse(text, NO_LIMITS).ok())
        .filter(|topic| narrow.matches(topic))
        .all(|topic| wide.matches(&topic));
    assert!(!covers || all, "{wide} covers {narrow}, which has more");
    // `+/#` is all of `#`, and `+/+/#` all of `/#`, because no topic is empty; a right to the one is
    // not taken for one to the other.
    let begins_empty =
        matches!(narrow.levels(), [FilterLevel::Exact(text), FilterLevel::Rest] if text.is_empty());
    if !begins_empty && narrow.levels().len() > 1 {
        assert!(covers || !all, "{wide} has all of {narrow}, and does not cover it");
    }
}
