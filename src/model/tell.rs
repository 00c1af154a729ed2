//! Who is told of an alert, and what became of it: the words that rules, notify, store and API share.
//!
//! Data only. What is stored is stored as these types: a field that is added needs a serde default.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Alert, AlertId, Channel, MessageId, Reason, Severity};
use crate::clock::Timestamp;
use crate::topic::TopicName;

/// What a rule says about telling people.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The rule has no condition: each of its alerts is raised, and none is ever cleared.
    #[serde(default)]
    pub event: bool,
    /// Contacts by name.
    pub to: Arc<[Arc<str>]>,
    /// Channels in order; empty: each contact's own.
    pub by: Arc<[Channel]>,
    /// How long a message may wait; the configured default where `None`.
    pub expires_in: Option<Duration>,
    /// How long a message may be without success before the next channel sends too; zero for
    /// never. `None`: as the contact or `notify.fallback_after` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_after: Option<Duration>,
    /// Says it again so often while it fires and nobody has acknowledged it.
    pub repeat: Option<Duration>,
    /// After somebody was told of an instance, so long nobody is told of a new firing of it.
    pub cooldown: Option<Duration>,
    /// Most messages that the rule may cause in a period, for each contact.
    pub max: Option<Quota>,
    /// Alerts that are told together.
    pub group: Option<Group>,
    /// The rule runs silently and only counts what it would have done.
    pub shadow: bool,
    /// Whether people are told that it is over.
    pub tell_clear: bool,
}

/// So many in a period: `20/1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Quota {
    /// How many, at least 1.
    pub count: u32,
    /// In what time, from the first.
    pub per: Duration,
}

/// Alerts of a rule that become one message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Group {
    /// Labels whose values make the group; empty: all alerts of the rule are one.
    pub by: Arc<[Arc<str>]>,
    /// How long the first message waits for more members.
    pub wait: Duration,
    /// At least so long between two messages of a group.
    pub interval: Duration,
}

/// What happened to an alert.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// It fires; for a rule without a condition this is all that ever happens to it.
    Raised,
    /// It fires on with another severity than this one.
    Level(Severity),
    /// It is over.
    Cleared,
    /// Somebody has seen it.
    Acknowledged(Ack),
    /// Its state changes too often to be told (true), or no longer does (false).
    Flapping(bool),
    /// Its rule is gone or means something else: nobody is told that it is over.
    Dropped(Reason),
}

/// That somebody takes care of an alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// Who.
    pub by: Arc<str>,
    /// When.
    pub at: Timestamp,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<Arc<str>>,
}

/// News of one alert, from the rules to notify.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// The alert as it stands now.
    pub alert: Alert,
    /// What happened.
    pub turn: Turn,
    /// A headline.
    pub title: Option<Arc<str>>,
    /// What the rule's text or headline lacked, where one could not be rendered as it is written.
    pub unrendered: Option<Arc<str>>,
    /// Who is to be told, and how.
    pub policy: Arc<Policy>,
}

/// What an alert that fires says now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its text.
    pub text: Arc<str>,
    /// A headline.
    pub title: Option<Arc<str>>,
}

/// One step in the life of an alert that no message tells: what `explain` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The alert.
    pub alert: AlertId,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: StepKind,
    /// Why; always there for `held` and `dropped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The rule's name.
    pub rule: Arc<str>,
    /// The instance key.
    pub key: Arc<str>,
    /// How urgent it was.
    pub severity: Severity,
    /// The topic of the publish that it is about.
    pub topic: TopicName,
    /// Whom it concerns; `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contact: Option<Arc<str>>,
    /// The message that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageId>,
    /// In words: until when, by whom, by which silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Arc<str>>,
}

/// What a [`Step`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// It fired. Left out where messages that went out at once say so.
    Raised,
    /// It has another severity.
    Level,
    /// It is over.
    Cleared,
    /// Somebody has acknowledged it.
    Acknowledged,
    /// Somebody is not told now; it may be made up for.
    Held,
    /// What was held is told now.
    Released,
    /// Somebody is not told, for good.
    Dropped,
    /// It goes out in a message of several alerts.
    Grouped,
}

impl StepKind {
    /// The word in the API and in `explain`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Level => "level",
            Self::Cleared => "cleared",
            Self::Acknowledged => "acknowledged",
            Self::Held => "held",
            Self::Released => "released",
            Self::Dropped => "dropped",
            Self::Grouped => "grouped",
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
