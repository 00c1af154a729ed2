//! What each contact was told of an alert, and what is held back.
//!
//! An alert without a tale is the plain case: everybody in `to` was told its severity once, at once.
//! So a million alerts of which nobody has more to hear take no memory here.
//!
//! Invariant: a contact is told only where [`Tale::wants`] says that what it was told last differs
//! from how the alert stands, or that it is to be said again.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::hold::Hold;
use crate::clock::Timestamp;
use crate::model::tell::{Ack, Policy};
use crate::model::{Alert, AlertState, Severity};

/// So long after its end a hold is looked at even where what should have ended it has not.
const GRACE: Duration = Duration::from_secs(1);

/// What a contact knows of an alert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Knows {
    /// It was told nothing.
    #[default]
    Nothing,
    /// It was told that it fires, so severe.
    Fires(Severity),
    /// It was told that it is over.
    Over,
}

/// What one contact was told, and what is held back from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Its name.
    pub contact: Arc<str>,
    /// What it knows.
    pub knows: Knows,
    /// Why it is not told how it stands now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// When it is told again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_at: Option<Timestamp>,
    /// It is told again as soon as its group is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub again: bool,
}

impl Told {
    pub(super) fn new(contact: &Arc<str>, knows: Knows) -> Self {
        Self { contact: Arc::clone(contact), knows, hold: None, repeat_at: None, again: false }
    }
}

/// The telling of one alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tale {
    /// The alert as it stands.
    pub alert: Alert,
    /// A headline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<Arc<str>>,
    /// Who is to be told, and how.
    pub policy: Arc<Policy>,
    /// Who takes care of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ack: Option<Ack>,
    /// Everybody whom it concerns.
    pub told: Vec<Told>,
    /// How often it was told that it fires: to several at a time counts once.
    #[serde(default)]
    pub firing_tellings: u32,
    /// How often it was told that it is over.
    #[serde(default)]
    pub over_tellings: u32,
}

impl Tale {
    /// The tale of an alert of which nobody was told.
    pub(super) fn new(alert: Alert, title: Option<Arc<str>>, policy: Arc<Policy>) -> Self {
        let told = policy.to.iter().map(|contact| Told::new(contact, Knows::Nothing)).collect();
        Self { alert, title, policy, ack: None, told, firing_tellings: 0, over_tellings: 0 }
    }

    /// The tale that an alert without one has: everybody was told that it fires, so severe.
    pub(super) fn plain(
        alert: Alert,
        severity: Severity,
        title: Option<Arc<str>>,
        policy: Arc<Policy>,
    ) -> Self {
        let mut tale = Self::new(alert, title, policy);
        for told in &mut tale.told {
            told.knows = Knows::Fires(severity);
        }
        tale.firing_tellings = 1;
        tale
    }

    /// The tale under what its rule says now, and who had something to hear and is named no more.
    pub(super) fn renewed(
        mut self,
        policy: &Arc<Policy>,
        ack: Option<Ack>,
        now: Timestamp,
    ) -> (Self, Vec<Arc<str>>) {
        let mut before = std::mem::take(&mut self.told);
        let least = before.iter().map(|told| told.knows).min().unwrap_or_else(|| self.present());
        let repeat_at = before.iter().filter_map(|told| told.repeat_at).min();
        for contact in policy.to.iter() {
            let known = before.iter().position(|told| told.contact == *contact);
            let told = known.map(|place| before.swap_remove(place));
            let new = || Told { repeat_at, ..Told::new(contact, least) };
            self.told.push(told.unwrap_or_else(new));
        }
        before.retain(|told| told.hold.is_some());
        let unnamed = before.into_iter().map(|told| told.contact).collect();
        self.ack = self.ack.or(ack);
        let present = self.present();
        let every = policy.repeat.filter(|_| self.ack.is_none());
        for told in &mut self.told {
            let usual = every.filter(|_| told.knows == present).map(|every| now.plus(every));
            told.repeat_at = match (told.repeat_at, usual) {
                (Some(before), Some(usual)) => Some(before.min(usual)),
                (_, usual) => usual,
            };
            told.again &= every.is_some();
        }
        self.policy = Arc::clone(policy);
        (self, unnamed)
    }

    /// How the alert stands.
    pub fn present(&self) -> Knows {
        match self.alert.state {
            AlertState::Firing => Knows::Fires(self.alert.severity),
            AlertState::Cleared => Knows::Over,
        }
    }

    /// Whether the contact is to hear something.
    pub fn wants(&self, told: &Told) -> bool {
        match (told.knows, self.present()) {
            // It was over before anybody heard of it.
            (Knows::Nothing, Knows::Over) => false,
            (Knows::Fires(_), Knows::Over) => self.policy.tell_clear,
            // Somebody takes care of it, as it stands.
            (Knows::Nothing, Knows::Fires(_)) if self.ack.is_some() => false,
            (knows, present) => knows != present || told.again,
        }
    }

    /// Whether somebody was to hear of it still, and nobody is noted who takes care of it.
    pub(super) fn acknowledged_unsaid(&self) -> bool {
        self.ack.is_none() && self.told.iter().any(|told| told.knows == Knows::Nothing)
    }

    /// Whether nothing is to be remembered: all that there was to tell is told, and what is told
    /// is what an alert without a tale has been.
    pub(super) fn is_plain(&self) -> bool {
        if self.told.iter().any(|told| self.wants(told) || told.hold.is_some()) {
            return false;
        }
        if self.alert.state == AlertState::Cleared || self.policy.event {
            return true;
        }
        let present = self.present();
        self.firing_tellings <= 1
            && self.ack.is_none()
            && self.told.iter().all(|told| told.knows == present && told.repeat_at.is_none())
    }

    /// When something is to be looked at again.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let due = |told: &Told| match &told.hold {
            // Its group or window ends it; should that row be lost, it is not held for ever.
            Some(hold) if hold.waits_for.is_some() => Some(hold.until?.plus(GRACE)),
            Some(hold) => hold.until,
            None => told.repeat_at,
        };
        self.told.iter().filter_map(due).min()
    }
}
