//! `[[test]]`: what rules are to do, tried out in virtual time before they are live.
//!
//! ```toml
//! [[test]]
//! name = "five warm minutes reach Ana once"
//! steps = [
//!   { at = "0s",    topic = "site/kiel/freezer/1/telemetry", payload = { temp_c = -10.0 } },
//!   { at = "4m59s", topic = "site/kiel/freezer/1/telemetry", payload = { temp_c = -10.0 }, expect = [] },
//!   { at = "5m",    expect = [{ rule = "freezer-warm", state = "firing", to = "ana", by = "push" }] },
//! ]
//! ```
//!
//! A test is about the rules of its own file, or those that its `rules` names (`*` is any characters):
//! whatever they do has to be expected. What others do may be expected and need not be.
//!
//! - [`read`]: the tables of all files, and whatever is wrong with them.
//! - [`run`]: one test from an empty state, through the same [`super::pipeline`] as live publishes;
//!   timers are met at their time, a restart goes through the rows as they are stored.
//! - [`happening`]: what happened, as `expect` says it, and how the two are compared.
//! - [`surprise`]: what fails in rules though no test looks for it.
//! - [`coverage`]: which clauses of which rules no test has exercised.
//!
//! Reads no clock and no file, and sends nothing. Invariant: a test comes to the same each time.

pub mod coverage;
pub mod happening;
pub mod read;
pub mod run;
pub mod surprise;

use std::collections::BTreeSet;
use std::time::Duration;

use self::happening::Expected;
use crate::clock::Timestamp;
use crate::model::Publish;
use crate::notify::silence::Matcher;
use crate::problem::Step as PathStep;

/// One `[[test]]`.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What it is called.
    pub name: String,
    /// Which of the files it stands in.
    pub file: usize,
    /// The how manieth `[[test]]` of its file it is, from 0.
    pub index: usize,
    /// When it begins.
    pub start: Timestamp,
    /// The rules whose every doing is to be expected; `None`: all. Of the others nothing has to be.
    pub about: Option<BTreeSet<String>>,
    /// In order of time.
    pub steps: Vec<Step>,
}

impl Trial {
    /// Where it stands in its file.
    pub fn path(&self) -> Vec<PathStep> {
        vec!["test".into(), self.index.into()]
    }

    /// Where one of its steps stands, the first is 0.
    pub fn step_path(&self, step: usize) -> Vec<PathStep> {
        let mut path = self.path();
        path.extend(["steps".into(), step.into()]);
        path
    }
}

/// One step of a test.
#[derive(Clone, Debug)]
pub struct Step {
    /// When, after the start.
    pub at: Duration,
    /// What is done then.
    pub act: Act,
    /// All that has happened since the last step that says so; `None`: nothing is compared.
    pub expect: Option<Vec<Expected>>,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Act {
    /// Nothing: time passes.
    Wait,
    /// Somebody publishes.
    Publish {
        /// What; its time is that of the step.
        publish: Box<Publish>,
        /// How long after each the next follows.
        every: Duration,
        /// How often.
        times: u32,
    },
    /// What happens to a client, as the broker tells of it.
    Event(Box<Publish>),
    /// Somebody takes care of an alert.
    Acknowledge {
        /// The rule's name.
        rule: String,
        /// The instance key; `None` where only one of the rule's fires.
        key: Option<String>,
        /// Who.
        by: String,
        /// In their words.
        note: Option<String>,
    },
    /// The process ends and is started again.
    Restart {
        /// How long it is away.
        away: Duration,
        /// Without the last checkpoint.
        kill: bool,
    },
    /// An operator makes a silence.
    Silence {
        /// What it covers.
        matcher: Box<Matcher>,
        /// How long it lasts.
        lasts: Duration,
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
}

impl Step {
    /// When it is over, after the start: the last of its publishes, or the process runs again.
    pub fn ends_at(&self) -> Duration {
        match &self.act {
            Act::Publish { every, times, .. } => {
                self.at.saturating_add(every.saturating_mul(times.saturating_sub(1)))
            }
            Act::Restart { away, .. } => self.at.saturating_add(*away),
            Act::Wait | Act::Event(_) | Act::Acknowledge { .. } | Act::Silence { .. } => self.at,
        }
    }
}
