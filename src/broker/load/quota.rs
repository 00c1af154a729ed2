//! What one identity may have of something that is kept: subscriptions, retained messages.
//!
//! Pure counting, by name. A client without a name counts by its client id, which stands apart
//! from every name.
//!
//! Invariant: a name is in the table only while something of it is kept, so the table is no
//! larger than what it counts.

use std::collections::HashMap;
use std::sync::Arc;

/// How much each may have; 0 is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Most {
    pub(crate) count: usize,
    pub(crate) bytes: usize,
}

/// What each has.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    most: Most,
    kept: HashMap<Owner, Kept>,
}

/// Whose something is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    Identity(Arc<str>),
    Client(Arc<str>),
}

#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    count: usize,
    bytes: usize,
}

impl Owner {
    pub(crate) fn of(identity: Option<&Arc<str>>, client_id: &Arc<str>) -> Self {
        match identity {
            Some(identity) => Self::Identity(Arc::clone(identity)),
            None => Self::Client(Arc::clone(client_id)),
        }
    }
}

impl Quota {
    pub(crate) fn new(most: Most) -> Self {
        Self { most, kept: HashMap::new() }
    }

    fn is_off(&self) -> bool {
        self.most.count == 0 && self.most.bytes == 0
    }

    /// Whether `owner` may have one more, of so many bytes.
    pub(crate) fn has_room(&self, owner: &Owner, bytes: usize) -> bool {
        let kept = self.kept.get(owner).copied().unwrap_or_default();
        (self.most.count == 0 || kept.count < self.most.count)
            && (self.most.bytes == 0 || kept.bytes + bytes <= self.most.bytes)
    }

    /// Notes one more.
    pub(crate) fn add(&mut self, owner: Owner, bytes: usize) {
        if self.is_off() {
            return;
        }
        let kept = self.kept.entry(owner).or_default();
        kept.count += 1;
        kept.bytes += bytes;
    }

    /// Notes that `count` of them, of so many bytes together, are gone.
    pub(crate) fn remove(&mut self, owner: &Owner, count: usize, bytes: usize) {
        let Some(kept) = self.kept.get_mut(owner) else {
            return;
        };
        kept.count = kept.count.saturating_sub(count);
        kept.bytes = kept.bytes.saturating_sub(bytes);
        if kept.count == 0 {
            self.kept.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_gets_it_back() {
        let mut quota = Quota::new(Most { count: 2, bytes: 10 });
        let name: Arc<str> = "ana".into();
        let (ana, same_id) = (Owner::of(Some(&name), &name), Owner::of(None, &name));
        for (bytes, expected) in [(10, true), (4, true), (7, false), (6, true)] {
            assert_eq!(quota.has_room(&ana, bytes), expected, "{bytes}");
            if bytes == 4 {
                quota.add(ana.clone(), 4);
            }
        }
        quota.add(ana.clone(), 1);
        assert!(!quota.has_room(&ana, 0) && quota.has_room(&same_id, 10));
        quota.remove(&ana, 1, 4);
        assert!(quota.has_room(&ana, 9) && !quota.has_room(&ana, 10));
        quota.remove(&ana, 1, 1);
        quota.remove(&same_id, 1, 1);
        assert!(quota.kept.is_empty());
        let mut off = Quota::new(Most::default());
        off.add(ana.clone(), usize::MAX);
        assert!(off.has_room(&ana, 1) && off.kept.is_empty());
    }
}
