//! Topic names and topic filters, and whether one matches the other (MQTT 5, section 4.7).
//!
//! The matcher is our own: those of rumqttc and rumqttd panic on a topic whose first character
//! is not ASCII. Nothing here ever panics on a topic that a device sent; proptests hold it to a
//! naive oracle.

pub mod index;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// Bounds on topics and filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicLimits {
    /// Longest name or filter, bytes.
    pub bytes_max: usize,
    /// Most levels.
    pub levels_max: usize,
}

impl Default for TopicLimits {
    fn default() -> Self {
        Self { bytes_max: 512, levels_max: 16 }
    }
}

/// Why a topic name or filter is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTopic {
    /// MQTT-4.7.3-1.
    #[error("it is empty; a topic has at least one character")]
    Empty,
    /// Over [`TopicLimits::bytes_max`].
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    /// Over [`TopicLimits::levels_max`].
    #[error("it has more than {0} levels")]
    TooDeep(usize),
    /// MQTT-4.7.3-2 and the specification's advice on control characters (1.5.4).
    #[error("it holds a control character")]
    ControlCharacter,
    /// MQTT-3.3.2-2.
    #[error("it holds a wildcard (+ or #), which only filters may")]
    Wildcard,
    /// MQTT-4.7.1-1.
    #[error("`#` must be the last level, alone in it")]
    MisplacedHash,
    /// MQTT-4.7.1-2.
    #[error("`+` must stand alone in its level")]
    MisplacedPlus,
    /// A malformed `{capture}` in a rule's topic.
    #[error("a capture is written {{name}} and fills its level; names have letters, digits and _")]
    BadCapture,
    /// The same capture twice.
    #[error("a capture is named twice")]
    RepeatedCapture,
}

/// A checked topic name: not empty, no wildcards, no control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// Checks `text` as a topic name.
    pub fn parse(text: &str, limits: TopicLimits) -> Result<Self, BadTopic> {
        check_common(text, limits)?;
        if text.contains(['+', '#']) {
            return Err(BadTopic::Wildcard);
        }
        Ok(Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its levels, from the left.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

/// A topic orders and hashes as its text does.
impl std::borrow::Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for TopicName {
    /// Reads back what was checked when it was written: no limits are applied.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limits = TopicLimits { bytes_max: usize::MAX, levels_max: usize::MAX };
        let text = String::deserialize(deserializer)?;
        Self::parse(&text, limits).map_err(serde::de::Error::custom)
    }
}

fn check_common(text: &str, limits: TopicLimits) -> Result<(), BadTopic> {
    if text.is_empty() {
        return Err(BadTopic::Empty);
    }
    if text.len() > limits.bytes_max {
        return Err(BadTopic::TooLong(limits.bytes_max));
    }
    if text.chars().any(char::is_control) {
        return Err(BadTopic::ControlCharacter);
    }
    if text.bytes().filter(|byte| *byte == b'/').count() >= limits.levels_max {
        return Err(BadTopic::TooDeep(limits.levels_max));
    }
    Ok(())
}

/// One level of a filter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum FilterLevel {
    /// This text and no other.
    Exact(Arc<str>),
    /// `+`, or `{name}` in a rule: any one level.
    One,
    /// `#`: this level's parent and all below; always last.
    Rest,
}

/// A checked topic filter, with the names of its captures where it is a rule's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFilter {
    text: Arc<str>,
    levels: Vec<FilterLevel>,
    captures: Vec<(usize, Arc<str>)>,
}

impl TopicFilter {
    /// Checks `text` as an MQTT topic filter, as a SUBSCRIBE carries it (without `$share`).
    pub fn parse(text: &str, limits: TopicLimits) -> Result<Self, BadTopic> {
        Self::parse_with(text, limits, |_| Ok(None))
    }

    /// Checks `text` as a rule's filter, in which `{name}` captures one level.
    pub fn parse_with_captures(text: &str, limits: TopicLimits) -> Result<Self, BadTopic> {
        Self::parse_with(text, limits, |level| {
            if !level.contains(['{', '}']) {
                return Ok(None);
            }
            let name = level
                .strip_prefix('{')
                .and_then(|rest| rest.strip_suffix('}'))
                .filter(|name| {
                    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
                        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                })
                .ok_or(BadTopic::BadCapture)?;
            Ok(Some(name.into()))
        })
    }

    fn parse_with(
        text: &str,
        limits: TopicLimits,
        capture: impl Fn(&str) -> Result<Option<Arc<str>>, BadTopic>,
    ) -> Result<Self, BadTopic> {
        check_common(text, limits)?;
        let mut levels = Vec::new();
        let mut captures: Vec<(usize, Arc<str>)> = Vec::new();
        for (index, level) in text.split('/').enumerate() {
            if levels.last() == Some(&FilterLevel::Rest) {
                return Err(BadTopic::MisplacedHash);
            }
            levels.push(match level {
                "+" => FilterLevel::One,
                "#" => FilterLevel::Rest,
                _ if level.contains('#') => return Err(BadTopic::MisplacedHash),
                _ if level.contains('+') => return Err(BadTopic::MisplacedPlus),
                _ => match capture(level)? {
                    Some(name) => {
                        if captures.iter().any(|(_, known)| *known == name) {
                            return Err(BadTopic::RepeatedCapture);
                        }
                        captures.push((index, name));
                        FilterLevel::One
                    }
                    None => FilterLevel::Exact(level.into()),
                },
            });
        }
        Ok(Self { text: text.into(), levels, captures })
    }

    /// The filter as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its levels, from the left.
    pub fn levels(&self) -> &[FilterLevel] {
        &self.levels
    }

    /// The captures: index of the level, name.
    pub fn captures(&self) -> &[(usize, Arc<str>)] {
        &self.captures
    }

    /// The captured levels of a topic that this filter matches, in the order of `captures`.
    pub fn captured<'a>(
        &'a self,
        topic: &'a TopicName,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a str)> {
        let mut levels = topic.levels().enumerate();
        self.captures.iter().filter_map(move |(wanted, name)| {
            levels.find(|(index, _)| index == wanted).map(|(_, text)| (name, text))
        })
    }

    /// Whether there is a topic that both match.
    pub fn overlaps(&self, other: &Self) -> bool {
        let is_wild = |filter: &Self| !matches!(filter.levels.first(), Some(FilterLevel::Exact(_)));
        let is_dollar = |filter: &Self| filter.text.starts_with('$');
        if is_wild(self) && is_dollar(other) || is_dollar(self) && is_wild(other) {
            return false;
        }
        let (mut ours, mut theirs) = (self.levels.iter(), other.levels.iter());
        loop {
            match (ours.next(), theirs.next()) {
                (Some(FilterLevel::Rest), _) | (_, Some(FilterLevel::Rest)) | (None, None) => {
                    return true;
                }
                (Some(FilterLevel::Exact(one)), Some(FilterLevel::Exact(two))) if one != two => {
                    return false;
                }
                (Some(_), Some(_)) => {}
                (Some(_), None) | (None, Some(_)) => return false,
            }
        }
    }

    /// Whether the filter matches `topic` (MQTT 5, 4.7). A filter that starts with a wildcard does
    /// not match a topic that starts with `$` (MQTT-4.7.2-1).
    pub fn matches(&self, topic: &TopicName) -> bool {
        let starts_wild = !matches!(self.levels.first(), Some(FilterLevel::Exact(_)));
        if starts_wild && topic.as_str().starts_with('$') {
            return false;
        }
        let mut names = topic.levels();
        for level in &self.levels {
            match level {
                FilterLevel::Rest => return true,
                FilterLevel::One => {
                    if names.next().is_none() {
                        return false;
                    }
                }
                FilterLevel::Exact(text) => {
                    if names.next() != Some(text) {
                        return false;
                    }
                }
            }
        }
        names.next().is_none()
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> TopicName {
        TopicName::parse(text, TopicLimits::default()).expect("a valid topic")
    }

    fn matches(filter: &str, topic: &str) -> bool {
        TopicFilter::parse(filter, TopicLimits::default())
            .expect("a valid filter")
            .matches(&name(topic))
    }

    #[test]
    fn filters_overlap_where_a_topic_fits_both() {
        for (one, other, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/c", false),
            ("a/+", "+/b", true),
            ("a/+", "a", false),
            ("a/#", "a", true),
            ("a/b/#", "a/+", true),
            ("#", "x/y/z", true),
            ("+/x", "a/b/x", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/+", false),
            ("$SYS/#", "$SYS/x", true),
        ] {
            let filter = |text| TopicFilter::parse(text, TopicLimits::default()).expect("a filter");
            assert_eq!(filter(one).overlaps(&filter(other)), expected, "{one} {other}");
            assert_eq!(filter(other).overlaps(&filter(one)), expected, "{other} {one}");
        }
    }

    #[test]
    fn matches_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/#", "sport/tennis", true),
            ("sport/tennis/#", "sport/tennis/p1/score", true),
            ("#", "a", true),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("a", "A", false),
            ("ä/+", "ä/ö", true),
            ("a//b", "a//b", true),
            ("a/+/b", "a//b", true),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn refuses_what_the_specification_forbids() {
        let filter = |text| TopicFilter::parse(text, TopicLimits::default()).err();
        assert_eq!(filter("a/#/b"), Some(BadTopic::MisplacedHash));
        assert_eq!(filter("#a"), Some(BadTopic::MisplacedHash));
        assert_eq!(filter("a+"), Some(BadTopic::MisplacedPlus));
        assert_eq!(filter(""), Some(BadTopic::Empty));
        assert_eq!(filter("a\0b"), Some(BadTopic::ControlCharacter));
        assert_eq!(filter(&"x/".repeat(16)), Some(BadTopic::TooDeep(16)));
        let topic = |text| TopicName::parse(text, TopicLimits::default()).err();
        assert_eq!(topic("a/+"), Some(BadTopic::Wildcard));
        assert_eq!(topic(&"x".repeat(513)), Some(BadTopic::TooLong(512)));
    }

    #[test]
    fn captures_name_levels() {
        let filter =
            TopicFilter::parse_with_captures("site/{site}/+/{unit}/#", TopicLimits::default())
                .expect("a valid filter");
        let topic = name("site/kiel/freezer/1/telemetry");
        assert!(filter.matches(&topic));
        let captured: Vec<_> =
            filter.captured(&topic).map(|(name, text)| (name.as_ref(), text)).collect();
        assert_eq!(captured, [("site", "kiel"), ("unit", "1")]);
        for bad in ["a/{}", "a/{x", "a/b{x}", "a/{1}", "a/{x y}"] {
            let error = TopicFilter::parse_with_captures(bad, TopicLimits::default()).err();
            assert_eq!(error, Some(BadTopic::BadCapture), "{bad}");
        }
        let error = TopicFilter::parse_with_captures("{a}/{a}", TopicLimits::default()).err();
        assert_eq!(error, Some(BadTopic::RepeatedCapture));
    }

    /// Recursion over slices of levels: slow, and plainly the specification.
    fn oracle(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) => true,
            ([], []) => true,
            (["+", filter @ ..], [_, topic @ ..]) => oracle(filter, topic),
            ([level, filter @ ..], [name, topic @ ..]) => level == name && oracle(filter, topic),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_oracle(
            filter in prop::collection::vec(prop::sample::select(vec!["a", "b", "", "é", "+", "$s"]), 1..6),
            rest in any::<bool>(),
            topic in prop::collection::vec(prop::sample::select(vec!["a", "b", "", "é", "$s"]), 1..6),
        ) {
            let mut filter = filter;
            if rest {
                filter.push("#");
            }
            let (filter_text, topic_text) = (filter.join("/"), topic.join("/"));
            prop_assume!(!filter_text.is_empty() && !topic_text.is_empty());
            let hidden = topic_text.starts_with('$') && matches!(filter[0], "+" | "#");
            let expected = !hidden && oracle(&filter, &topic);
            prop_assert_eq!(matches(&filter_text, &topic_text), expected);
        }

        #[test]
        fn never_panics(text in any::<String>(), topic in any::<String>()) {
            let limits = TopicLimits::default();
            let topic = TopicName::parse(&topic, limits);
            for filter in [
                TopicFilter::parse(&text, limits),
                TopicFilter::parse_with_captures(&text, limits),
            ] {
                if let (Ok(filter), Ok(topic)) = (filter, &topic) {
                    let _ = filter.matches(topic);
                    let _ = filter.captured(topic).count();
                }
            }
        }
    }
}
