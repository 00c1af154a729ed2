//! The last publishes on which each rule came to no result, for whoever asks why nobody was told.
//!
//! Counted by rule, reason, topic and what went wrong. Never anything of a payload; forgotten with
//! the process.
//!
//! Invariant: at most [`OF_A_RULE_MAX`] of a rule, of at most [`RULES_MAX`] rules.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::model::Reason;
use crate::rules::engine::Failure;
use crate::topic::TopicName;

/// Most of a rule; the one that came last longest ago makes room.
const OF_A_RULE_MAX: usize = 20;

/// Most rules that are remembered.
const RULES_MAX: usize = 1_000;

/// What went wrong, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Why the rule came to no result.
    pub reason: Reason,
    /// On which topic; `None`: when a clock ran out.
    pub topic: Option<TopicName>,
    /// The clause, and what is the matter with it.
    pub detail: String,
    /// When it came last.
    pub at: Timestamp,
    /// How often it came since it is remembered.
    pub times: u64,
}

/// What went wrong, by rule.
#[derive(Debug, Default)]
pub struct Troubles {
    by_rule: HashMap<Arc<str>, VecDeque<Trouble>>,
}

impl Troubles {
    /// Notes what a publish, or time that passed, came to no result for. Of one rule and reason the
    /// first counts: what follows is mostly its consequence.
    pub fn note(&mut self, failures: &[Failure], topic: Option<&TopicName>, now: Timestamp) {
        for (position, failure) in failures.iter().enumerate() {
            let same =
                |other: &Failure| other.rule == failure.rule && other.reason == failure.reason;
            if !failures.iter().take(position).any(same) {
                self.note_one(failure, topic, now);
            }
        }
    }

    fn note_one(&mut self, failure: &Failure, topic: Option<&TopicName>, now: Timestamp) {
        if self.by_rule.len() >= RULES_MAX && !self.by_rule.contains_key(&failure.rule) {
            return;
        }
        let known = self.by_rule.entry(Arc::clone(&failure.rule)).or_default();
        let same = |one: &Trouble| {
            one.reason == failure.reason
                && one.topic.as_ref() == topic
                && one.detail == failure.detail
        };
        let before = known.iter().rposition(same).and_then(|position| known.remove(position));
        if known.len() >= OF_A_RULE_MAX {
            known.pop_front();
        }
        known.push_back(match before {
            Some(before) => Trouble { at: now, times: before.times + 1, ..before },
            None => Trouble {
                reason: failure.reason,
                topic: topic.cloned(),
                detail: failure.detail.clone(),
                at: now,
                times: 1,
            },
        });
    }

    /// Whether all that the rule came to no result on is remembered.
    pub fn are_all_of(&self, rule: &str) -> bool {
        match self.by_rule.get(rule) {
            Some(known) => known.len() < OF_A_RULE_MAX,
            None => self.by_rule.len() < RULES_MAX,
        }
    }

    /// What is remembered of a rule, the newest last.
    pub fn of(&self, rule: &str) -> impl DoubleEndedIterator<Item = &Trouble> {
        self.by_rule.get(rule).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::TopicLimits;

    fn failure(rule: &str, reason: Reason, detail: &str) -> Failure {
        Failure { rule: rule.into(), reason, detail: detail.to_owned() }
    }

    #[test]
    fn the_last_of_each_topic_are_remembered_and_counted_and_no_more() {
        let topic = |text: &str| TopicName::parse(text, TopicLimits::default()).expect("a topic");
        let mut troubles = Troubles::default();
        let missing = failure("a", Reason::ExpressionFailed, "`let.t`: missing");
        let follows = failure("a", Reason::ExpressionFailed, "`when`: `t` has no value");
        for minute in 0..3 {
            let now = Timestamp::from_millis(minute * 60_000);
            let failures = [missing.clone(), follows.clone()];
            troubles.note(&failures, Some(&topic("x/1")), now);
        }
        troubles.note(&[failure("a", Reason::TooMany, "")], None, Timestamp::from_millis(5));
        let said = |troubles: &Troubles| -> Vec<String> {
            let said = |one: &Trouble| {
                let topic = one.topic.as_ref().map_or("-", TopicName::as_str);
                format!("{} {topic} {} {}", one.reason, one.detail, one.times)
            };
            troubles.of("a").map(said).collect()
        };
        assert_eq!(said(&troubles), ["expression_failed x/1 `let.t`: missing 3", "too_many -  1"]);
        assert_eq!(troubles.of("b").count(), 0);

        for device in 0..100 {
            let topic = topic(&format!("x/{device}"));
            troubles.note(std::slice::from_ref(&missing), Some(&topic), Timestamp::default());
        }
        assert_eq!(troubles.of("a").count(), OF_A_RULE_MAX);
        assert!(!troubles.are_all_of("a") && troubles.are_all_of("b"));
        assert_eq!(said(&troubles).last().unwrap(), "expression_failed x/99 `let.t`: missing 1");

        for rule in 0..2 * RULES_MAX {
            let failures = [failure(&format!("rule-{rule}"), Reason::TooMany, "")];
            troubles.note(&failures, None, Timestamp::default());
        }
        assert_eq!(troubles.by_rule.len(), RULES_MAX);
    }
}
