//! Two rule sets over the same recording: which alerts only one of them raised.
//!
//! Alerts are the same that have rule, key and time in common. Both sets get the same batches, so that
//! the same alert is in the same batch of both, and a batch is all that has to be remembered.

use std::cmp::Ordering;

use serde::Serialize;

use super::tally::Raised;

/// How many alerts of each set are named.
const NAMED_MAX: usize = 5;

/// Alerts that only one of two rule sets raised.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OnlyOne {
    /// Those of the rule set that is looked at.
    pub here: Alerts,
    /// Those of the one that it is compared with.
    pub there: Alerts,
}

/// Some alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Alerts {
    /// How many there are.
    pub count: u64,
    /// The first of them.
    pub first: Vec<Raised>,
}

impl Alerts {
    fn add(&mut self, raised: Raised) {
        self.count += 1;
        if self.first.len() < NAMED_MAX {
            self.first.push(raised);
        }
    }
}

/// A comparison under way.
#[derive(Debug, Default)]
pub struct Comparison(OnlyOne);

impl Comparison {
    /// What was raised in one batch: by the set that is looked at, and by the other.
    pub fn compare(&mut self, mut here: Vec<Raised>, mut there: Vec<Raised>) {
        here.sort_by(order);
        there.sort_by(order);
        let (mut here, mut there) = (here.into_iter().peekable(), there.into_iter().peekable());
        loop {
            let which = match (here.peek(), there.peek()) {
                (Some(one), Some(other)) => order(one, other),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return,
            };
            let one = if which.is_le() { here.next() } else { None };
            let other = if which.is_ge() { there.next() } else { None };
            match (one, other) {
                (Some(one), None) => self.0.here.add(one),
                (None, Some(other)) => self.0.there.add(other),
                _ => {}
            }
        }
    }

    /// The result.
    pub fn finish(self) -> OnlyOne {
        self.0
    }
}

fn order(one: &Raised, other: &Raised) -> Ordering {
    (one.at, &one.rule, &one.key).cmp(&(other.at, &other.rule, &other.key))
}
