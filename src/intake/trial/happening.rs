//! What happened, in the words of `expect`, and how the one is compared with the other.
//!
//! A happening is a message to one contact; or that one was held or dropped, with its reason; or,
//! where neither tells of it, that an alert changed; or that a rule came to no result. What a rule
//! passed over (`skip`, `dedupe`, `max_age`, `replayed`) may be expected and need not be.
//!
//! Invariant: comparing finds as many pairs as there are, whatever the order of either.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::intake::pipeline::Caused;
use crate::intake::ruleset::RuleSet;
use crate::model::tell::{News, Step, StepKind, Turn};
use crate::model::{AlertId, AlertState, Channel, Message, Reason, Severity};

/// What became of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It fires.
    Firing,
    /// It is over.
    Cleared,
    /// It fires on, with another severity.
    Level,
    /// A clock runs that will have it fire. How it stands, not what happened.
    Pending,
    /// Its state changes too often to be told.
    Flapping,
    /// It no longer flaps.
    Steady,
}

impl State {
    /// The words of `state`.
    pub const WORDS: &[(&str, Self)] = &[
        ("firing", Self::Firing),
        ("cleared", Self::Cleared),
        ("level", Self::Level),
        ("pending", Self::Pending),
        ("flapping", Self::Flapping),
        ("steady", Self::Steady),
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Cleared => "cleared",
            Self::Level => "level",
            Self::Pending => "pending",
            Self::Flapping => "flapping",
            Self::Steady => "steady",
        }
    }

    fn of(turn: &Turn) -> Option<Self> {
        match turn {
            Turn::Raised => Some(Self::Firing),
            Turn::Level(_) => Some(Self::Level),
            Turn::Cleared => Some(Self::Cleared),
            Turn::Flapping(true) => Some(Self::Flapping),
            Turn::Flapping(false) => Some(Self::Steady),
            Turn::Acknowledged(_) | Turn::Dropped(_) => None,
        }
    }
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    /// When, after the start.
    pub at: Duration,
    /// The step during which it did, the first is 0.
    pub step: usize,
    /// The rule's name; `None`: a message of no alert.
    pub rule: Option<Arc<str>>,
    /// The instance key.
    pub key: Option<Arc<str>>,
    /// What became of the alert.
    pub state: Option<State>,
    /// How urgent it is.
    pub severity: Option<Severity>,
    /// Whom it concerns.
    pub to: Vec<Arc<str>>,
    /// By which channel they were told.
    pub by: Option<Channel>,
    /// What was said, or would have been.
    pub text: Option<Arc<str>>,
    /// Why nothing was said, or why the rule came to no result.
    pub reason: Option<Reason>,
    /// In words.
    pub note: Option<String>,
    /// A rule failed, or passed over the publish.
    pub without_result: bool,
    /// Nobody needs to have expected it.
    pub optional: bool,
}

impl Happening {
    fn new((at, step): (Duration, usize)) -> Self {
        Self {
            at,
            step,
            rule: None,
            key: None,
            state: None,
            severity: None,
            to: Vec::new(),
            by: None,
            text: None,
            reason: None,
            note: None,
            without_result: false,
            optional: false,
        }
    }

    /// Of a rule that came to no result.
    pub(super) fn failed(when: (Duration, usize), rule: &Arc<str>, reason: Reason) -> Self {
        Self {
            rule: Some(Arc::clone(rule)),
            reason: Some(reason),
            without_result: true,
            ..Self::new(when)
        }
    }
}

/// As `expect` would say it, so that it can be copied into the file.
impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Line::default();
        line.text("rule", self.rule.as_deref());
        line.text("key", self.key.as_deref().filter(|key| !key.is_empty()));
        line.text("state", self.state.map(State::as_str));
        line.text("severity", self.severity.map(Severity::as_str));
        match self.to.as_slice() {
            [] => {}
            [one] => line.text("to", Some(one)),
            several => line.text("to", Some(&several.join(" and "))),
        }
        line.text("by", self.by.map(Channel::as_str));
        line.text("text", self.text.as_deref());
        line.text("reason", self.reason.map(Reason::as_str));
        f.write_str(&line.done())
    }
}

/// What is expected: any of the fields of a happening.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expected {
    /// The rule's name.
    pub rule: Option<String>,
    /// The instance key.
    pub key: Option<String>,
    /// What became of the alert.
    pub state: Option<State>,
    /// How urgent it is.
    pub severity: Option<Severity>,
    /// Whom it concerns.
    pub to: Option<String>,
    /// By which channel.
    pub by: Option<Channel>,
    /// The whole text.
    pub text: Option<String>,
    /// Part of the text.
    pub text_contains: Option<String>,
    /// Why nothing was said.
    pub reason: Option<Reason>,
    /// How often; `None`: once, or for a rule without a result as often as it happens.
    pub times: Option<u32>,
}

impl Expected {
    fn fits(&self, happening: &Happening) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == found)
        };
        let state = match (self.state, happening.state) {
            (None, _) => true,
            // It fires on.
            (Some(State::Firing), Some(State::Level)) => true,
            (wanted, found) => wanted == found,
        };
        let to = self.to.as_deref();
        let text = happening.text.as_deref();
        state
            && same(&self.rule, happening.rule.as_deref())
            && same(&self.key, happening.key.as_deref())
            && self.severity.is_none_or(|wanted| Some(wanted) == happening.severity)
            && to.is_none_or(|to| happening.to.iter().any(|contact| **contact == *to))
            && self.by.is_none_or(|wanted| Some(wanted) == happening.by)
            && same(&self.text, text)
            && self
                .text_contains
                .as_deref()
                .is_none_or(|part| text.is_some_and(|text| text.contains(part)))
            && self.reason.is_none_or(|wanted| Some(wanted) == happening.reason)
            // An alert that fired is not meant by a line that names no more than the rule of one
            // that failed, and the other way round.
            && (self.reason.is_some() || !happening.without_result)
    }

    fn most(&self, fits_only_without_result: bool) -> usize {
        match self.times {
            Some(times) => usize::try_from(times).unwrap_or(usize::MAX),
            None if fits_only_without_result => usize::MAX,
            None => 1,
        }
    }
}

/// As it stands in the file, but for the order of its keys.
impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = Line::default();
        line.text("rule", self.rule.as_deref());
        line.text("key", self.key.as_deref());
        line.text("state", self.state.map(State::as_str));
        line.text("severity", self.severity.map(Severity::as_str));
        line.text("to", self.to.as_deref());
        line.text("by", self.by.map(Channel::as_str));
        line.text("text", self.text.as_deref());
        line.text("text_contains", self.text_contains.as_deref());
        line.text("reason", self.reason.map(Reason::as_str));
        if let Some(times) = self.times {
            line.pair("times", &times.to_string());
        }
        f.write_str(&line.done())
    }
}

/// An inline table.
#[derive(Default)]
struct Line(String);

impl Line {
    fn text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            // A JSON string is a TOML string.
            self.pair(key, &serde_json::Value::from(value).to_string());
        }
    }

    fn pair(&mut self, key: &str, value: &str) {
        self.0.push_str(if self.0.is_empty() { "{ " } else { ", " });
        for part in [key, " = ", value] {
            self.0.push_str(part);
        }
    }

    fn done(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0.push_str(" }");
        self.0
    }
}

/// What a call of the pipeline caused, as happenings.
pub fn happenings(
    caused: &Caused,
    set: &RuleSet,
    now: Timestamp,
    (start, step): (Timestamp, usize),
) -> Vec<Happening> {
    let when = (now.since(start), step);
    let mut found: Vec<Happening> = Vec::new();
    for message in &caused.messages {
        found.push(of_message(when, message, caused));
    }
    for step in &caused.steps {
        let is_word = match step.what {
            StepKind::Held | StepKind::Dropped => true,
            StepKind::Raised | StepKind::Level | StepKind::Cleared => is_of_shadow(step),
            StepKind::Acknowledged | StepKind::Released | StepKind::Grouped => false,
        };
        if is_word {
            // What an acknowledgement ends is what it is for.
            let ends =
                |other: &Step| other.what == StepKind::Acknowledged && other.alert == step.alert;
            let optional = step.what == StepKind::Dropped && caused.steps.iter().any(ends);
            found.push(Happening { optional, ..of_step(when, step, caused, set) });
        }
    }
    for news in &caused.news {
        if is_told(news, caused) {
            continue;
        }
        let Some(state) = State::of(&news.turn) else { continue };
        let alert = &news.alert;
        let says = alert.state == AlertState::Firing || news.policy.tell_clear;
        found.push(Happening {
            rule: Some(Arc::clone(&alert.rule)),
            key: Some(Arc::clone(&alert.key)),
            state: Some(state),
            severity: Some(alert.severity),
            text: says.then(|| Arc::clone(&alert.text)),
            ..Happening::new(when)
        });
    }
    for failure in &caused.failures {
        found.push(Happening {
            note: Some(failure.detail.clone()),
            ..Happening::failed(when, &failure.rule, failure.reason)
        });
    }
    for (rule, reason) in &caused.passed {
        found.push(Happening { optional: true, ..Happening::failed(when, rule, *reason) });
    }
    found
}

/// Whether the step stands for a message that a rule in shadow does not cause.
fn is_of_shadow(step: &Step) -> bool {
    step.reason == Some(Reason::Shadow)
}

/// The last news of an alert, of those that say how it stands.
fn turn_of(caused: &Caused, alert: AlertId, state: Option<AlertState>) -> Option<&News> {
    let stands = |news: &&News| matches!(news.turn, Turn::Raised | Turn::Level(_) | Turn::Cleared);
    let of_it = caused.news.iter().rev().filter(stands).filter(|news| news.alert.id == alert);
    of_it.into_iter().find(|news| state.is_none_or(|state| news.alert.state == state))
}

fn of_message(when: (Duration, usize), message: &Message, caused: &Caused) -> Happening {
    let about = message.alert.as_ref();
    let state = about.map(|about| match turn_of(caused, about.id, Some(about.state)) {
        Some(News { turn: Turn::Level(_), .. }) => State::Level,
        _ if about.state == AlertState::Cleared => State::Cleared,
        _ => State::Firing,
    });
    Happening {
        rule: about.map(|about| Arc::clone(&about.rule)),
        key: about.map(|about| Arc::clone(&about.key)),
        state,
        severity: Some(message.severity),
        to: message.contact.iter().cloned().collect(),
        by: Some(message.target.channel),
        text: Some(Arc::clone(&message.content.text)),
        ..Happening::new(when)
    }
}

fn of_step(when: (Duration, usize), step: &Step, caused: &Caused, set: &RuleSet) -> Happening {
    let news = turn_of(caused, step.alert, None);
    let all = || set.rules.by_name(&step.rule).map(|rule| rule.policy.to.to_vec());
    Happening {
        rule: Some(Arc::clone(&step.rule)),
        key: Some(Arc::clone(&step.key)),
        state: news.and_then(|news| State::of(&news.turn)),
        severity: Some(step.severity),
        to: match &step.contact {
            Some(contact) => vec![Arc::clone(contact)],
            None => all().unwrap_or_default(),
        },
        text: news.map(|news| Arc::clone(&news.alert.text)),
        reason: step.reason,
        note: step.detail.as_ref().map(ToString::to_string),
        ..Happening::new(when)
    }
}

/// Whether a message or a step says it.
fn is_told(news: &News, caused: &Caused) -> bool {
    let id = news.alert.id;
    let flaps = matches!(news.turn, Turn::Flapping(_));
    let message = caused.messages.iter().filter_map(|message| message.alert.as_ref());
    let step = |step: &&Step| match step.what {
        StepKind::Held | StepKind::Dropped | StepKind::Grouped => true,
        StepKind::Raised | StepKind::Level | StepKind::Cleared => is_of_shadow(step),
        StepKind::Acknowledged | StepKind::Released => false,
    };
    message.into_iter().any(|about| about.id == id && (flaps || about.state == news.alert.state))
        || caused.steps.iter().filter(step).any(|step| step.alert == id)
}

/// What did not fit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// What was expected and did not happen, and how often more it should have.
    pub missing: Vec<(Expected, usize)>,
    /// What happened and was not expected.
    pub unexpected: Vec<Happening>,
    /// What happened as expected.
    pub matched: Vec<Happening>,
    /// What a rule passed over; it explains much.
    pub passed: Vec<Happening>,
    /// What the step could not do.
    pub trouble: Option<String>,
}

impl Difference {
    /// Whether all is as expected.
    pub fn is_none(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.trouble.is_none()
    }
}

/// Compares what was expected with what happened. Those of state `pending` are not for here.
pub fn compare(expected: &[Expected], happened: Vec<Happening>) -> Difference {
    let fitting: Vec<Vec<usize>> = happened
        .iter()
        .map(|happening| {
            let fits = expected.iter().enumerate().filter(|(_, one)| one.fits(happening));
            fits.map(|(index, _)| index).collect()
        })
        .collect();
    let most: Vec<usize> = expected
        .iter()
        .enumerate()
        .map(|(index, one)| {
            let mut fits = happened.iter().zip(&fitting).filter(|(_, fits)| fits.contains(&index));
            one.most(fits.all(|(happening, _)| happening.without_result))
        })
        .collect();
    let mut pairs = Pairs { fitting: &fitting, most: &most, taken: vec![Vec::new(); most.len()] };
    let mut is_matched = vec![false; happened.len()];
    // What has to be expected comes first: once it has a place it keeps one.
    for optional in [false, true] {
        for (index, matched) in is_matched.iter_mut().enumerate() {
            if happened.get(index).is_some_and(|one| one.optional == optional) {
                *matched = pairs.place(index, &mut vec![false; most.len()]);
            }
        }
    }
    let mut difference = Difference::default();
    for (one, taken) in expected.iter().zip(&pairs.taken) {
        let least = usize::try_from(one.times.unwrap_or(1)).unwrap_or(usize::MAX);
        if taken.len() < least {
            difference.missing.push((one.clone(), least - taken.len()));
        }
    }
    for (happening, matched) in happened.into_iter().zip(is_matched) {
        match (matched, happening.optional) {
            (true, _) => difference.matched.push(happening),
            (false, true) => difference.passed.push(happening),
            (false, false) => difference.unexpected.push(happening),
        }
    }
    difference
}

/// Which happening goes with which expectation: augmenting paths (Kuhn), with room for several.
struct Pairs<'a> {
    fitting: &'a [Vec<usize>],
    most: &'a [usize],
    taken: Vec<Vec<usize>>,
}

impl Pairs<'_> {
    /// Finds a place for a happening, if need be by moving others. Not deeper than there are
    /// expectations.
    fn place(&mut self, happening: usize, seen: &mut Vec<bool>) -> bool {
        let Some(fitting) = self.fitting.get(happening) else { return false };
        for one in fitting {
            let Some(seen_one) = seen.get_mut(*one) else { continue };
            if std::mem::replace(seen_one, true) {
                continue;
            }
            let taken = self.taken.get(*one).cloned().unwrap_or_default();
            let room = self.most.get(*one).copied().unwrap_or(0);
            if taken.len() < room {
                self.put(*one, happening);
                return true;
            }
            for (place, other) in taken.into_iter().enumerate() {
                if self.place(other, seen) {
                    if let Some(slot) = self.taken.get_mut(*one).and_then(|t| t.get_mut(place)) {
                        *slot = happening;
                    }
                    return true;
                }
            }
        }
        false
    }

    fn put(&mut self, one: usize, happening: usize) {
        if let Some(taken) = self.taken.get_mut(one) {
            taken.push(happening);
        }
    }
}
