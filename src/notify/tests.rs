//! What the notifier promises, in virtual time: each test is named by its semantic.
//!
//! A script is lines of `HH:MM[:SS] VERB ...`; hours go on after 24. Every script runs twice: as it is,
//! and with a restart from its rows before each line. Both must say the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::book::Book;
use super::notifier::{Firing, Notifier, Outcome};
use super::row::{Row, RowChange};
use super::silence::{Edge, Matcher, Silence};
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::model::tell::{Ack, Group, News, Policy, Quota, StepKind, Turn};
use crate::model::{Alert, AlertId, AlertState, IdSource, MessageId, Reason, Severity};
use crate::problem::TomlFile;
use crate::topic::{TopicLimits, TopicName};

/// 2026-11-26T00:00:00Z, a Thursday.
const MIDNIGHT: Timestamp = Timestamp::from_millis(1_795_651_200_000);

const CONTACTS: &str = r#"
[[contact]]
name = "ana"
sms = "+4915550100001"

[[contact]]
name = "ben"
sms = "+4915550100002"
zone = "Europe/Berlin"
quiet = { from = "22:00", to = "06:00", except = ["critical"] }
"#;

fn mins(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

fn policy(to: &[&str]) -> Policy {
    Policy {
        to: to.iter().map(|name| Arc::from(*name)).collect(),
        tell_clear: true,
        ..Policy::default()
    }
}

fn book(more: &str) -> Book {
    let file = TomlFile::parse("b.toml", format!("{CONTACTS}\n{more}")).expect("TOML");
    let (book, problems) = Book::load(&[file], &Config::default());
    assert_eq!(problems, []);
    book
}

/// A notifier, its store, and the alerts that fire.
struct World {
    book: Book,
    config: Config,
    notifier: Notifier,
    rows: BTreeMap<(u8, Vec<u8>), String>,
    firing: BTreeMap<String, Alert>,
    policies: BTreeMap<&'static str, Arc<Policy>>,
    ids: IdSource,
    said: std::collections::BTreeSet<MessageId>,
    log: String,
    /// What the messages say, and whether anybody can find out about the alert.
    known: BTreeMap<(AlertId, Arc<str>), (AlertState, Severity)>,
    explained: std::collections::BTreeSet<AlertId>,
    /// Who was to hear of an alert, and does not because somebody takes care of it.
    spared: std::collections::BTreeSet<(AlertId, Arc<str>)>,
    raised: BTreeMap<AlertId, Alert>,
    acks: BTreeMap<AlertId, Ack>,
    /// Rules whose instances have ceased to flap without news.
    steady: std::collections::BTreeSet<&'static str>,
}

impl World {
    fn new(more: &str, policies: &[(&'static str, Policy)]) -> Self {
        let config = Config { names_max: 3, digest_above: 3, ..Config::default() };
        let shared = |(name, policy): &(&'static str, Policy)| (*name, Arc::new(policy.clone()));
        Self {
            book: book(more),
            notifier: Notifier::new(&config, mins(60)),
            config,
            rows: BTreeMap::new(),
            firing: BTreeMap::new(),
            policies: policies.iter().map(shared).collect(),
            ids: IdSource::new(1),
            said: std::collections::BTreeSet::new(),
            log: String::new(),
            known: BTreeMap::new(),
            explained: std::collections::BTreeSet::new(),
            spared: std::collections::BTreeSet::new(),
            raised: BTreeMap::new(),
            acks: BTreeMap::new(),
            steady: std::collections::BTreeSet::new(),
        }
    }

    /// Forgets everything but rows and firing alerts.
    fn restart(&mut self) {
        self.notifier = Notifier::new(&self.config, mins(60));
        for row in self.rows.values() {
            let row: Row = serde_json::from_str(row).expect("a row reads back");
            self.notifier.restore(row);
        }
        self.adopt();
    }

    fn adopt(&mut self) {
        let firing = self.firing.values().filter_map(|alert| {
            let policy = self.policies.get(alert.rule.as_ref())?;
            let ack = self.acks.get(&alert.id);
            Some(Firing { alert: alert.clone(), policy, ack })
        });
        self.notifier.adopt(&self.book, firing, |rule, _| !self.steady.contains(rule));
    }

    /// Rules say something else from now on.
    fn reload(&mut self, policies: &[(&'static str, Policy)], now: Timestamp) -> String {
        for (name, policy) in policies {
            self.policies.insert(name, Arc::new(policy.clone()));
        }
        self.log.clear();
        self.adopt();
        let outcome = self.notifier.reconsider(&self.book, now);
        self.take(outcome, now);
        std::mem::take(&mut self.log)
    }

    fn take(&mut self, outcome: Outcome, now: Timestamp) {
        let since = now.as_millis() - MIDNIGHT.as_millis();
        let (minutes, seconds) = (since / 60_000, since / 1_000 % 60);
        let seconds = if seconds == 0 { String::new() } else { format!(":{seconds:02}") };
        let time = format!("{:02}:{:02}{seconds}", minutes / 60, minutes % 60);
        for message in &outcome.messages {
            assert!(self.said.insert(message.id), "an id twice: {message:?}");
            let (about, to) = (message.alert.as_ref().expect("of an alert"), &message.contact);
            let to = to.as_ref().expect("to a contact");
            self.explained.insert(about.id);
            self.known.insert((about.id, Arc::clone(to)), (about.state, message.severity));
            let contact = message.contact.as_deref().unwrap_or("-");
            let text = message.content.text.replace('\n', " / ");
            writeln!(self.log, "{time} -> {contact}: {text}").expect("a String");
        }
        for step in &outcome.steps {
            if step.reason.is_some() {
                self.explained.insert(step.alert);
            }
            // Told with others, or what there was to tell is no news any more.
            let settles = step.what == StepKind::Grouped || step.reason == Some(Reason::Superseded);
            if let Some(contact) = step.contact.as_ref().filter(|_| settles) {
                let fires = self.firing.values().any(|alert| alert.id == step.alert);
                let state = if fires { AlertState::Firing } else { AlertState::Cleared };
                let of = (step.alert, Arc::clone(contact));
                if step.what == StepKind::Dropped && !self.known.contains_key(&of) {
                    self.spared.insert(of);
                } else {
                    self.known.insert(of, (state, step.severity));
                }
            }
            let mut line = format!("{time} {} {}", step.what, step.rule);
            if !step.key.is_empty() {
                write!(line, " {}", step.key).expect("a String");
            }
            if let Some(contact) = &step.contact {
                write!(line, " [{contact}]").expect("a String");
            }
            if let Some(reason) = &step.reason {
                write!(line, " {reason}").expect("a String");
            }
            if let Some(detail) = &step.detail {
                write!(line, " ({detail})").expect("a String");
            }
            writeln!(self.log, "{line}").expect("a String");
        }
        for change in outcome.rows {
            match change {
                RowChange::Put(row) => {
                    let id = row.id();
                    let text = serde_json::to_string(&row).expect("a row is JSON");
                    self.rows.insert((id.partition(), id.bytes()), text);
                }
                RowChange::Remove(id) => {
                    let removed = self.rows.remove(&(id.partition(), id.bytes()));
                    assert!(removed.is_some(), "{id:?} was not stored");
                }
            }
        }
    }

    fn wake_until(&mut self, until: Timestamp) {
        while let Some(due) = self.notifier.due().filter(|due| *due <= until) {
            let outcome = self.notifier.wake(&self.book, due);
            self.take(outcome, due);
            assert!(self.notifier.due().is_none_or(|next| next > due), "wake left work");
        }
    }

    fn news(&mut self, alert: Alert, turn: Turn, now: Timestamp) {
        let policy = Arc::clone(&self.policies[alert.rule.as_ref()]);
        let news = News { alert, turn, title: None, unrendered: None, policy };
        let outcome = self.notifier.handle(&self.book, &news, now);
        self.take(outcome, now);
    }

    fn line(&mut self, now: Timestamp, words: &[&str]) {
        let severity = |word: Option<&&str>| -> Severity {
            word.map_or(Severity::Warning, |word| word.parse().expect("a severity"))
        };
        let name = words.get(1..3).map(|words| words.join(" ")).unwrap_or_default();
        match words {
            ["raise", rule, key, more @ ..] => {
                let key = if *key == "-" { "" } else { key };
                let topic = format!("site/{key}");
                let labels: Vec<(Arc<str>, Arc<str>)> =
                    vec![("site".into(), key.split('/').next().unwrap_or("").into())];
                let alert = Alert {
                    id: AlertId::next(&mut self.ids, now, rule, key),
                    rule: (*rule).into(),
                    key: key.into(),
                    severity: severity(more.first()),
                    state: AlertState::Firing,
                    labels: labels.into(),
                    topic: TopicName::parse(&topic, TopicLimits::default()).expect("valid"),
                    fired_at: now,
                    changed_at: now,
                    text: format!("{key} on").into(),
                };
                self.raised.insert(alert.id, alert.clone());
                if !self.policies[rule].event {
                    self.firing.insert(name, alert.clone());
                }
                self.news(alert, Turn::Raised, now);
            }
            ["level", _, key, to] => {
                let alert = self.firing.get_mut(&name).expect("it fires");
                let from = alert.severity;
                alert.severity = severity(Some(to));
                if alert.severity > from {
                    self.acks.remove(&alert.id);
                }
                alert.changed_at = now;
                alert.text = format!("{key} now {to}").into();
                let alert = alert.clone();
                self.news(alert, Turn::Level(from), now);
            }
            ["clear", _, key] => {
                let mut alert = self.firing.remove(&name).expect("it fires");
                alert.state = AlertState::Cleared;
                alert.changed_at = now;
                alert.text = format!("{key} off").into();
                self.news(alert, Turn::Cleared, now);
            }
            ["drop", ..] => {
                let alert = self.firing.remove(&name).expect("it fires");
                self.news(alert, Turn::Dropped(Reason::RuleChanged), now);
            }
            ["ack", ..] => {
                let alert = self.firing[&name].clone();
                let ack = Ack { by: "ana".into(), at: now, note: None };
                self.acks.insert(alert.id, ack.clone());
                self.news(alert, Turn::Acknowledged(ack), now);
            }
            ["flap", .., on] => {
                let alert = self.firing[&name].clone();
                self.news(alert, Turn::Flapping(*on == "on"), now);
            }
            ["silence", id, rule, minutes] => {
                let silence = Silence {
                    id: (*id).into(),
                    name: None,
                    matcher: Matcher {
                        rule: Some(super::pattern::Pattern::new(rule)),
                        ..Matcher::default()
                    },
                    by: "cleo".into(),
                    reason: "works".into(),
                    from: Edge::Ours(now),
                    until: Edge::Ours(now.plus(mins(minutes.parse().expect("minutes")))),
                };
                let outcome = self.notifier.add_silence(&self.book, silence, now).expect("right");
                self.take(outcome, now);
            }
            ["unsilence", id] => {
                let outcome = self.notifier.end_silence(&self.book, id, now);
                self.take(outcome.unwrap_or_default(), now);
            }
            ["clock", ahead] => {
                let ahead: i64 = ahead.parse().expect("hours");
                crate::clock::wall::testing::set_wall_clock(now, ahead * 3_600_000);
                let outcome = self.notifier.clock_stepped(&self.book, now);
                self.take(outcome, now);
            }
            ["silence-until", id, rule, hour] => {
                let hours: i64 = hour.parse().expect("an hour");
                let wall = WallTime::from_millis(MIDNIGHT.as_millis() + hours * 3_600_000);
                let silence = Silence {
                    id: (*id).into(),
                    name: None,
                    matcher: Matcher {
                        rule: Some(super::pattern::Pattern::new(rule)),
                        ..Matcher::default()
                    },
                    by: "cleo".into(),
                    reason: "works".into(),
                    from: Edge::Ours(now),
                    until: Edge::Wall { wall },
                };
                let outcome = self.notifier.add_silence(&self.book, silence, now).expect("right");
                self.take(outcome, now);
            }
            ["restart"] => self.restart(),
            ["wait"] => {}
            _ => panic!("{words:?}"),
        }
    }

    fn run(&mut self, script: &str, restarts: bool) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split(' ').collect();
            let mut parts = words[0].split(':').map(|part| part.parse::<u64>().expect("a time"));
            let mut part = || parts.next().unwrap_or(0);
            let seconds = part() * 3600 + part() * 60 + part();
            let now = MIDNIGHT.plus(Duration::from_secs(seconds));
            if restarts {
                self.restart();
            }
            self.wake_until(now);
            self.line(now, &words[1..]);
        }
    }
}

/// The log of a script, which must be the same with a restart before each line.
fn told(more: &str, policies: &[(&'static str, Policy)], script: &str) -> String {
    let mut world = World::new(more, policies);
    world.run(script, false);
    let mut again = World::new(more, policies);
    again.run(script, true);
    assert_eq!(world.log, again.log, "a restart changed something");
    assert_eq!(world.rows, again.rows);
    world.log
}

fn one(to: &[&str]) -> [(&'static str, Policy); 1] {
    [("hot", policy(to))]
}

#[test]
fn the_plain_case_keeps_no_tale_no_row_and_no_step() {
    let mut world = World::new("", &one(&["ana", "ben"]));
    world.run("12:00 raise hot a/1", false);
    assert_eq!(world.log, "12:00 -> ana: a/1 on\n12:00 -> ben: a/1 on\n");
    assert!(world.rows.is_empty() && world.notifier.is_empty());
    assert_eq!(world.notifier.due(), None);
    world.run("12:10 clear hot a/1", true);
    assert!(
        world
            .log
            .ends_with("12:10 -> ana: a/1 off\n12:10 -> ben: a/1 off\n12:10 cleared hot a/1\n")
    );
    assert!(world.rows.is_empty() && world.notifier.is_empty());
}

#[test]
fn a_level_is_told_to_those_who_were_told_up_and_down() {
    insta::assert_snapshot!(told("", &one(&["ana"]), "
        12:00 raise hot a/1
        12:10 level hot a/1 critical
        12:20 level hot a/1 info
        12:30 level hot a/1 critical
        12:40 clear hot a/1
    "), @r"
    12:00 -> ana: a/1 on
    12:10 -> ana: a/1 now critical
    12:10 level hot a/1
    12:20 -> ana: a/1 now info
    12:20 level hot a/1
    12:30 -> ana: a/1 now critical
    12:30 level hot a/1
    12:40 -> ana: a/1 off
    12:40 cleared hot a/1
    ");
}

#[test]
fn over_before_anybody_heard_is_dropped_and_nobody_hears_of_the_clear() {
    insta::assert_snapshot!(told("", &one(&["ben"]), "
        22:00 raise hot a/1
        22:10 clear hot a/1
        31:00 wait
    "), @r"
    22:00 raised hot a/1
    22:00 held hot a/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    22:10 cleared hot a/1
    22:10 dropped hot a/1 [ben] over (it was held: quiet_hours)
    ");
}

#[test]
fn a_level_that_changes_while_held_is_told_once_as_it_stands() {
    insta::assert_snapshot!(told("", &one(&["ben"]), "
        22:00 raise hot a/1 info
        22:10 level hot a/1 warning
        22:20 level hot a/1 info
        31:00 wait
    "), @r"
    22:00 raised hot a/1
    22:00 held hot a/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    22:10 level hot a/1
    22:20 level hot a/1
    29:00 -> ben: a/1 now info (at 23:20)
    29:00 released hot a/1 [ben] quiet_hours
    ");
}

#[test]
fn quiet_hours_hold_for_that_contact_only_and_not_what_is_excepted() {
    insta::assert_snapshot!(told("", &one(&["ana", "ben"]), "
        22:00 raise hot a/1
        22:10 raise hot a/2 critical
        22:20 level hot a/1 critical
        22:30 clear hot a/1
        31:00 wait
    "), @r"
    22:00 -> ana: a/1 on
    22:00 held hot a/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    22:10 -> ana: a/2 on
    22:10 -> ben: a/2 on
    22:20 -> ana: a/1 now critical
    22:20 -> ben: a/1 now critical
    22:20 level hot a/1
    22:20 released hot a/1 [ben] quiet_hours
    22:30 -> ana: a/1 off
    22:30 -> ben: a/1 off
    22:30 cleared hot a/1
    ");
}

#[test]
fn an_acknowledgement_ends_what_a_hold_kept() {
    let (cool, few) = (Some(mins(20)), Some(Quota { count: 1, per: mins(30) }));
    let by: Vec<Arc<str>> = Vec::new();
    let group = Some(Group { by: by.into(), wait: mins(5), interval: mins(15) });
    let policies = [
        ("hot", policy(&["ben"])),
        ("cool", Policy { cooldown: cool, ..policy(&["ana"]) }),
        ("few", Policy { max: few, ..policy(&["ana"]) }),
        ("grp", Policy { group, ..policy(&["ana"]) }),
        ("gateway", policy(&["ana"])),
        ("known", policy(&["ana"])),
        ("flaps", policy(&["ana"])),
    ];
    let more = "[[suppress]]\nwhile = 'gateway'\nrules = ['known']\n\n[storm]\ncount = 2\nwithin = '10m'\nlevels = 2\n";
    // Quiet hours, a silence, a cooldown, `max`, a group, a cause: nobody hears of it, nor that it is
    // over; what gets worse is another matter.
    insta::assert_snapshot!(told(more, &policies, "
        22:00 raise hot q/1
        22:01 ack hot q/1
        31:00 clear hot q/1
        32:00 silence s1 hot 60
        32:00 raise hot s/1
        32:00 raise hot s/2
        32:01 ack hot s/1
        33:05 level hot s/1 critical
        34:00 raise cool c/1
        34:01 clear cool c/1
        34:02 raise cool c/1
        34:03 ack cool c/1
        35:00 raise few f/1
        35:01 raise few f/2
        35:02 ack few f/2
        36:00 raise grp g/1
        36:01 raise grp g/2
        36:02 ack grp g/1
        37:00 raise gateway x/1
        37:01 raise known x/1
        37:02 ack known x/1
        37:03 clear gateway x/1
        38:00 raise flaps y/1
        38:01 flap flaps y/1 on
        38:02 clear flaps y/1
        38:03 raise flaps y/1 critical
        38:04 ack flaps y/1
        38:05 flap flaps y/1 off
        40:00 raise cool z/1
        40:00 raise few z/1
        40:00 raise flaps z/1
        40:01 ack flaps z/1
        41:00 wait
    "), @r"
    22:00 raised hot q/1
    22:00 held hot q/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    22:01 acknowledged hot q/1 (by ana)
    22:01 dropped hot q/1 [ben] superseded (acknowledged by ana)
    31:00 cleared hot q/1
    32:00 raised hot s/1
    32:00 held hot s/1 [ben] silenced (silence s1 of cleo: works; until 09:00 UTC)
    32:00 raised hot s/2
    32:00 held hot s/2 [ben] silenced (silence s1 of cleo: works; until 09:00 UTC)
    32:01 acknowledged hot s/1 (by ana)
    32:01 dropped hot s/1 [ben] superseded (acknowledged by ana)
    33:00 -> ben: s/2 on (at 09:00)
    33:00 released hot s/2 [ben] silenced
    33:05 -> ben: s/1 now critical
    33:05 level hot s/1
    34:00 -> ana: c/1 on
    34:01 -> ana: c/1 off
    34:01 cleared cool c/1
    34:02 raised cool c/1
    34:02 held cool c/1 [ana] cooldown (until 10:20 UTC)
    34:03 acknowledged cool c/1 (by ana)
    34:03 dropped cool c/1 [ana] superseded (acknowledged by ana)
    35:00 -> ana: f/1 on
    35:01 raised few f/2
    35:01 held few f/2 [ana] quota_reached (after 1 message, until 11:30 UTC)
    35:02 acknowledged few f/2 (by ana)
    35:02 dropped few f/2 [ana] superseded (acknowledged by ana)
    36:00 raised grp g/1
    36:00 held grp g/1 [ana] grouped (until 12:05 UTC)
    36:01 raised grp g/2
    36:01 held grp g/2 [ana] grouped (until 12:05 UTC)
    36:02 acknowledged grp g/1 (by ana)
    36:02 dropped grp g/1 [ana] superseded (acknowledged by ana)
    36:05 -> ana: g/2 on
    36:05 released grp g/2 [ana] grouped
    37:00 -> ana: x/1 on
    37:01 raised known x/1
    37:01 held known x/1 [ana] inhibited (while gateway x/1 fires)
    37:02 acknowledged known x/1 (by ana)
    37:02 dropped known x/1 [ana] superseded (acknowledged by ana)
    37:03 -> ana: x/1 off
    37:03 cleared gateway x/1
    38:00 -> ana: y/1 on
    38:01 -> ana: flaps y/1 is flapping: it begins and ends too often to be told; you hear how it stands when it is steady
    38:02 cleared flaps y/1
    38:02 held flaps y/1 [ana] flapping (until it is steady)
    38:03 raised flaps y/1
    38:03 dropped flaps y/1 superseded
    38:03 held flaps y/1 [ana] flapping (until it is steady)
    38:04 acknowledged flaps y/1 (by ana)
    38:04 dropped flaps y/1 [ana] superseded (acknowledged by ana)
    40:00 -> ana: z/1 on
    40:00 -> ana: z/1 on
    40:00 -> ana: site/z: 3 alerts since 16:00 UTC (worst warning): cool z/1, few z/1, flaps z/1
    40:00 held flaps z/1 [ana] storm (until the storm under site/z is over)
    40:01 acknowledged flaps z/1 (by ana)
    40:01 dropped flaps z/1 [ana] superseded (acknowledged by ana)
    40:10 -> ana: site/z: no new alerts, 3 in all since 16:00 UTC
    ");
}

#[test]
fn nobody_reachable_is_a_step() {
    insta::assert_snapshot!(told("", &[("hot", policy(&["gone"])), ("none", policy(&[]))], "
        12:00 raise hot a/1
        12:00 raise none a/1
        12:01 clear hot a/1
    "), @r"
    12:00 raised hot a/1
    12:00 dropped hot a/1 no_recipient (none of gone can be reached)
    12:00 raised none a/1
    12:00 dropped none a/1 no_recipient (the rule names nobody)
    12:01 cleared hot a/1
    12:01 dropped hot a/1 [gone] no_recipient (there is no contact `gone`)
    ");
}

#[test]
fn repeat_goes_on_until_acknowledged_and_begins_again_when_it_is_worse() {
    let policy = Policy { repeat: Some(mins(30)), ..policy(&["ana"]) };
    insta::assert_snapshot!(told("", &[("hot", policy)], "
        12:00 raise hot a/1
        13:10 ack hot a/1
        14:30 level hot a/1 critical
        15:10 clear hot a/1
        16:00 wait
    "), @r"
    12:00 -> ana: a/1 on
    12:30 -> ana: a/1 on
    13:00 -> ana: a/1 on
    13:10 acknowledged hot a/1 (by ana)
    14:30 -> ana: a/1 now critical
    14:30 level hot a/1
    15:00 -> ana: a/1 now critical
    15:10 -> ana: a/1 off
    15:10 cleared hot a/1
    ");
}

#[test]
fn a_repetition_in_quiet_hours_is_not_made_up_for() {
    let policy = Policy { repeat: Some(mins(60)), ..policy(&["ben"]) };
    insta::assert_snapshot!(told("", &[("hot", policy)], "
        20:30 raise hot a/1
        30:00 wait
    "), @r"
    20:30 -> ben: a/1 on
    29:30 -> ben: a/1 on
    ");
}

#[test]
fn cooldown_holds_a_new_firing_until_its_end_and_tells_it_if_it_still_fires() {
    let policy = Policy { cooldown: Some(mins(30)), ..policy(&["ana"]) };
    insta::assert_snapshot!(told("", &[("hot", policy)], "
        12:00 raise hot a/1
        12:05 clear hot a/1
        12:06 raise hot a/1
        12:07 clear hot a/1
        12:08 raise hot a/1
        12:31 clear hot a/1
        14:00 raise hot a/1
    "), @r"
    12:00 -> ana: a/1 on
    12:05 -> ana: a/1 off
    12:05 cleared hot a/1
    12:06 raised hot a/1
    12:06 held hot a/1 [ana] cooldown (until 12:30 UTC)
    12:07 cleared hot a/1
    12:07 dropped hot a/1 [ana] over (it was held: cooldown)
    12:08 raised hot a/1
    12:08 held hot a/1 [ana] cooldown (until 12:30 UTC)
    12:30 -> ana: a/1 on (at 12:08 UTC)
    12:30 released hot a/1 [ana] cooldown
    12:31 -> ana: a/1 off
    12:31 cleared hot a/1
    14:00 -> ana: a/1 on
    ");
}

#[test]
fn beyond_the_rules_max_one_digest_at_the_end_of_the_window() {
    let policy = Policy { max: Some(Quota { count: 2, per: mins(60) }), ..policy(&["ana"]) };
    insta::assert_snapshot!(told("", &[("hot", policy)], "
        12:00 raise hot a/1
        12:01 raise hot a/2
        12:02 raise hot a/3
        12:03 raise hot a/4 critical
        12:04 raise hot a/5
        12:05 raise hot a/6
        12:06 raise hot a/7
        12:07 clear hot a/7
        13:01 clear hot a/4
        14:30 wait
    "), @r"
    12:00 -> ana: a/1 on
    12:01 -> ana: a/2 on
    12:02 raised hot a/3
    12:02 held hot a/3 [ana] quota_reached (after 2 messages, until 13:00 UTC)
    12:03 raised hot a/4
    12:03 held hot a/4 [ana] quota_reached (after 2 messages, until 13:00 UTC)
    12:04 raised hot a/5
    12:04 held hot a/5 [ana] quota_reached (after 2 messages, until 13:00 UTC)
    12:05 raised hot a/6
    12:05 held hot a/6 [ana] quota_reached (after 2 messages, until 13:00 UTC)
    12:06 raised hot a/7
    12:06 held hot a/7 [ana] quota_reached (after 2 messages, until 13:00 UTC)
    12:07 cleared hot a/7
    12:07 dropped hot a/7 [ana] over (it was held: quota_reached)
    13:00 -> ana: and 4 more (worst critical): hot a/4, hot a/3, hot a/5 and 1 more
    13:00 grouped hot a/4 [ana] quota_reached
    13:00 grouped hot a/3 [ana] quota_reached
    13:00 grouped hot a/5 [ana] quota_reached
    13:00 grouped hot a/6 [ana] quota_reached
    13:01 -> ana: a/4 off
    13:01 cleared hot a/4
    ");
}

#[test]
fn the_contacts_max_counts_all_rules_but_not_what_is_excepted() {
    let dora = r#"
[[contact]]
name = "dora"
sms = "+4915550100004"
max = { count = 1, per = "1h", except = ["critical"] }
"#;
    let policies = [("hot", policy(&["dora"])), ("wet", policy(&["dora"]))];
    insta::assert_snapshot!(told(dora, &policies, "
        12:00 raise hot a/1
        12:01 raise wet a/1
        12:02 raise wet a/2 critical
        13:30 wait
    "), @r"
    12:00 -> dora: a/1 on
    12:01 raised wet a/1
    12:01 held wet a/1 [dora] quota_reached (after 1 message, until 13:00 UTC)
    12:02 -> dora: a/2 on
    13:00 -> dora: a/1 on (at 12:01 UTC)
    13:00 released wet a/1 [dora] quota_reached
    ");
}

fn grouped() -> Policy {
    let by: Vec<Arc<str>> = vec!["site".into()];
    let group = Group { by: by.into(), wait: mins(1), interval: mins(5) };
    Policy { group: Some(group), ..policy(&["ana"]) }
}

#[test]
fn a_group_waits_names_its_members_and_gathers_what_follows() {
    insta::assert_snapshot!(told("", &[("hot", grouped())], "
        12:00 raise hot a/1
        12:00:10 raise hot a/2 critical
        12:00:20 raise hot a/3
        12:00:25 raise hot a/4
        12:00:30 raise hot a/5
        12:00:31 raise hot b/1
        12:00:40 clear hot a/5
        12:02 raise hot a/6
        12:03 clear hot a/1
        12:20 clear hot a/2
        12:20:10 clear hot a/3
        12:20:20 clear hot a/4
        12:20:30 clear hot a/6
        12:30 raise hot a/1
        12:40 wait
    "), @r"
    12:00 raised hot a/1
    12:00 held hot a/1 [ana] grouped (until 12:01 UTC)
    12:00:10 raised hot a/2
    12:00:10 held hot a/2 [ana] grouped (until 12:01 UTC)
    12:00:20 raised hot a/3
    12:00:20 held hot a/3 [ana] grouped (until 12:01 UTC)
    12:00:25 raised hot a/4
    12:00:25 held hot a/4 [ana] grouped (until 12:01 UTC)
    12:00:30 raised hot a/5
    12:00:30 held hot a/5 [ana] grouped (until 12:01 UTC)
    12:00:31 raised hot b/1
    12:00:31 held hot b/1 [ana] grouped (until 12:01 UTC)
    12:00:40 cleared hot a/5
    12:00:40 dropped hot a/5 [ana] over (it was held: grouped)
    12:01 -> ana: 4 alerts (worst critical): / a/2 on / a/1 on / a/3 on / and 1 more
    12:01 grouped hot a/2 [ana] grouped
    12:01 grouped hot a/1 [ana] grouped
    12:01 grouped hot a/3 [ana] grouped
    12:01 grouped hot a/4 [ana] grouped
    12:01:31 -> ana: b/1 on
    12:01:31 released hot b/1 [ana] grouped
    12:02 raised hot a/6
    12:02 held hot a/6 [ana] grouped (until 12:06 UTC)
    12:03 cleared hot a/1
    12:03 held hot a/1 [ana] grouped (until 12:06 UTC)
    12:06 -> ana: 1 alert (worst warning): / a/6 on / over: hot a/1
    12:06 grouped hot a/6 [ana] grouped
    12:06 grouped hot a/1 [ana] grouped
    12:20 cleared hot a/2
    12:20 held hot a/2 [ana] grouped (until 12:21 UTC)
    12:20:10 cleared hot a/3
    12:20:10 held hot a/3 [ana] grouped (until 12:21 UTC)
    12:20:20 cleared hot a/4
    12:20:20 held hot a/4 [ana] grouped (until 12:21 UTC)
    12:20:30 cleared hot a/6
    12:20:30 held hot a/6 [ana] grouped (until 12:21 UTC)
    12:21 -> ana: hot: all 5 over
    12:21 grouped hot a/2 [ana] grouped
    12:21 grouped hot a/3 [ana] grouped
    12:21 grouped hot a/4 [ana] grouped
    12:21 grouped hot a/6 [ana] grouped
    12:30 raised hot a/1
    12:30 held hot a/1 [ana] grouped (until 12:31 UTC)
    12:31 -> ana: a/1 on
    12:31 released hot a/1 [ana] grouped
    ");
}

#[test]
fn a_group_is_repeated_in_one_message() {
    let policy = Policy { repeat: Some(mins(30)), ..grouped() };
    insta::assert_snapshot!(told("", &[("hot", policy)], "
        12:00 raise hot a/1
        12:00:10 raise hot a/2
        12:40 ack hot a/1
        13:10 wait
    "), @r"
    12:00 raised hot a/1
    12:00 held hot a/1 [ana] grouped (until 12:01 UTC)
    12:00:10 raised hot a/2
    12:00:10 held hot a/2 [ana] grouped (until 12:01 UTC)
    12:01 -> ana: 2 alerts (worst warning): / a/1 on / a/2 on
    12:01 grouped hot a/1 [ana] grouped
    12:01 grouped hot a/2 [ana] grouped
    12:32 -> ana: still 2 alerts (worst warning): / a/1 on / a/2 on
    12:32 grouped hot a/1 [ana] grouped
    12:32 grouped hot a/2 [ana] grouped
    12:40 acknowledged hot a/1 (by ana)
    13:03 -> ana: a/2 on
    13:03 released hot a/2 [ana] grouped
    ");
}

const STORM: &str = "[storm]\ncount = 2\nwithin = '30s'\nlevels = 2\n";

#[test]
fn a_storm_is_one_message_when_it_begins_and_one_when_it_ends() {
    insta::assert_snapshot!(told(STORM, &one(&["ana"]), "
        12:00 raise hot a/1
        12:00:01 raise hot a/2
        12:05:00 raise hot a/3
        12:05:01 raise hot a/4
        12:05:02 raise hot a/5
        12:05:03 raise hot a/6
        12:05:04 raise hot b/1
        12:05:05 clear hot a/6
        12:05:06 raise hot a/7 critical
        12:10 clear hot a/7
    "), @r"
    12:00 -> ana: a/1 on
    12:00:01 -> ana: a/2 on
    12:05 -> ana: a/3 on
    12:05:01 -> ana: a/4 on
    12:05:02 -> ana: site/a: 3 alerts since 12:05 UTC (worst warning): hot a/3, hot a/4, hot a/5
    12:05:02 held hot a/5 [ana] storm (until the storm under site/a is over)
    12:05:03 raised hot a/6
    12:05:03 held hot a/6 [ana] storm (until the storm under site/a is over)
    12:05:04 -> ana: b/1 on
    12:05:05 cleared hot a/6
    12:05:05 dropped hot a/6 [ana] over (it was held: storm)
    12:05:06 -> ana: site/a: 5 alerts since 12:05 UTC (worst critical): hot a/7, hot a/3, hot a/4 and 2 more
    12:05:06 held hot a/7 [ana] storm (until the storm under site/a is over)
    12:05:36 -> ana: site/a: no new alerts, 5 in all since 12:05 UTC, 2 of them fire still: hot a/7, hot a/5
    12:05:36 grouped hot a/7 [ana] storm
    12:05:36 grouped hot a/5 [ana] storm
    12:10 -> ana: a/7 off
    12:10 cleared hot a/7
    ");
}

const SUPPRESS: &str =
    "[[suppress]]\nwhile = 'gateway-*'\nrules = ['hot', '*-down']\nsame = ['site']\n";

#[test]
fn while_the_cause_fires_what_it_explains_is_inhibited() {
    let policies = [("hot", policy(&["ana"])), ("gateway-down", policy(&["ben"]))];
    insta::assert_snapshot!(told(SUPPRESS, &policies, "
        12:00 raise gateway-down a/1
        12:00 raise gateway-down a/2
        12:01 raise hot a/1
        12:02 raise hot a/2
        12:03 raise hot b/1
        12:04 clear hot a/2
        12:05 clear gateway-down a/1
        12:06 clear gateway-down a/2
    "), @r"
    12:00 -> ben: a/1 on
    12:00 -> ben: a/2 on
    12:01 raised hot a/1
    12:01 held hot a/1 [ana] inhibited (while gateway-down a/1 fires)
    12:02 raised hot a/2
    12:02 held hot a/2 [ana] inhibited (while gateway-down a/1 fires)
    12:03 -> ana: b/1 on
    12:04 cleared hot a/2
    12:04 dropped hot a/2 [ana] over (it was held: inhibited)
    12:05 -> ben: a/1 off
    12:05 cleared gateway-down a/1
    12:06 -> ben: a/2 off
    12:06 -> ana: a/1 on (at 12:01 UTC)
    12:06 cleared gateway-down a/2
    12:06 released hot a/1 [ana] inhibited
    ");
}

#[test]
fn a_silence_holds_and_at_its_end_what_still_fires_is_told() {
    insta::assert_snapshot!(told("", &one(&["ana", "ben"]), "
        11:00 raise hot a/0
        12:00 silence s1 h* 30
        12:01 raise hot a/1
        12:02 raise hot a/2
        12:03 clear hot a/2
        12:04 clear hot a/0
        12:05 silence s2 hot 10
        12:40 silence s3 hot 60
        12:41 raise hot a/3
        12:50 unsilence s3
    "), @r"
    11:00 -> ana: a/0 on
    11:00 -> ben: a/0 on
    12:01 raised hot a/1
    12:01 held hot a/1 silenced (silence s1 of cleo: works; until 12:30 UTC)
    12:02 raised hot a/2
    12:02 held hot a/2 silenced (silence s1 of cleo: works; until 12:30 UTC)
    12:03 cleared hot a/2
    12:03 dropped hot a/2 over (it was held: silenced)
    12:04 cleared hot a/0
    12:04 held hot a/0 silenced (silence s1 of cleo: works; until 12:30 UTC)
    12:30 -> ana: a/0 off (at 12:04 UTC)
    12:30 -> ana: a/1 on (at 12:01 UTC)
    12:30 -> ben: a/0 off (at 13:04)
    12:30 -> ben: a/1 on (at 13:01)
    12:30 released hot a/0 [ana] silenced
    12:30 released hot a/1 [ana] silenced
    12:30 released hot a/0 [ben] silenced
    12:30 released hot a/1 [ben] silenced
    12:41 raised hot a/3
    12:41 held hot a/3 silenced (silence s3 of cleo: works; until 13:40 UTC)
    12:50 -> ana: a/3 on (at 12:41 UTC)
    12:50 -> ben: a/3 on (at 13:41)
    12:50 released hot a/3 [ana] silenced
    12:50 released hot a/3 [ben] silenced
    ");
}

#[test]
fn a_recurring_silence_ends_on_the_wall() {
    let silence = r#"
[[silence]]
name = "inventory"
rule = "hot"
key = "a/*"
by = "cleo"
reason = "we count"
every = { days = ["thu"], from = "22:00", to = "06:00", zone = "Europe/Berlin" }
"#;
    insta::assert_snapshot!(told(silence, &one(&["ana"]), "
        22:00 raise hot a/1
        22:00 raise hot b/1
        30:00 raise hot a/2
    "), @r"
    22:00 raised hot a/1
    22:00 held hot a/1 [ana] silenced (silence inventory of cleo: we count; until 06:00 Europe/Berlin)
    22:00 -> ana: b/1 on
    29:00 -> ana: a/1 on (at 22:00 UTC)
    29:00 released hot a/1 [ana] silenced
    30:00 -> ana: a/2 on
    ");
}

/// Quiet hours went by a clock that had been set, or not, as it happened.
#[test]
fn quiet_hours_follow_the_wall_clock_when_it_is_set() {
    let mut world = World::new("", &one(&["ben"]));
    world.run("22:00 raise hot a/1\n22:10 clock 8", false);
    assert!(world.log.contains("22:10 -> ben: a/1 on"), "{}", world.log);
    crate::clock::wall::testing::forget_steps();
    let mut world = World::new("", &one(&["ben"]));
    world.run("23:00 clock -14\n23:01 raise hot a/1\n35:59 wait", false);
    // It is 09:01 on the wall, and nobody sleeps.
    assert!(world.log.contains("23:01 -> ben: a/1 on"), "{}", world.log);
}

#[test]
fn a_silence_until_a_time_ends_when_the_wall_clock_shows_it_and_one_for_a_time_does_not() {
    // An hour back: it is 14:00 on the wall at 15:00.
    let mut world = World::new("", &one(&["ana"]));
    world.run(
        "12:00 silence-until s hot 14\n12:05 raise hot a/1\n12:10 clock -1\n14:59 wait",
        false,
    );
    assert!(!world.log.contains("-> ana"), "{}", world.log);
    world.run("15:01 wait", false);
    assert!(world.log.contains("15:00 -> ana: a/1 on"), "{}", world.log);
    // A day forward.
    for (silence, at) in [("silence-until s hot 14", "12:10"), ("silence s hot 120", "14:00")] {
        let mut world = World::new("", &one(&["ana"]));
        crate::clock::wall::testing::forget_steps();
        world.run(
            &format!("12:00 {silence}\n12:05 raise hot a/1\n12:10 clock 24\n14:01 wait"),
            false,
        );
        assert!(world.log.contains(&format!("{at} -> ana: a/1 on")), "{}", world.log);
    }
}

#[test]
fn a_silence_needs_author_reason_end_and_something_to_cover() {
    let silence = Silence {
        id: "s".into(),
        name: None,
        matcher: Matcher::default(),
        by: "".into(),
        reason: " ".into(),
        from: Edge::Ours(MIDNIGHT),
        until: Edge::Ours(MIDNIGHT),
    };
    let error = silence.check(MIDNIGHT).expect_err("wrong");
    insta::assert_snapshot!(error, @r#"`by` is empty; `reason` is empty; it covers everything; say rule = "*" if that is meant; `until` is not after `from`"#);
}

#[test]
fn shadow_is_steps_and_no_messages() {
    let policy = Policy { shadow: true, ..policy(&["ana"]) };
    insta::assert_snapshot!(told("", &[("hot", policy)], "
        12:00 raise hot a/1
        12:01 clear hot a/1
    "), @r"
    12:00 raised hot a/1 shadow
    12:01 cleared hot a/1 shadow
    ");
}

#[test]
fn flapping_is_said_once_and_then_how_it_stands_if_that_differs() {
    insta::assert_snapshot!(told("", &one(&["ana"]), "
        12:00 raise hot a/1
        12:01 flap hot a/1 on
        12:02 clear hot a/1
        12:03 raise hot a/1
        12:04 clear hot a/1
        12:05 raise hot a/1
        12:06 flap hot a/1 off
        12:07 flap hot a/1 on
        12:08 level hot a/1 critical
        12:09 flap hot a/1 off
        12:10 clear hot a/1
    "), @r"
    12:00 -> ana: a/1 on
    12:01 -> ana: hot a/1 is flapping: it begins and ends too often to be told; you hear how it stands when it is steady
    12:02 cleared hot a/1
    12:02 held hot a/1 [ana] flapping (until it is steady)
    12:03 raised hot a/1
    12:03 dropped hot a/1 superseded
    12:04 cleared hot a/1
    12:04 held hot a/1 [ana] flapping (until it is steady)
    12:05 raised hot a/1
    12:05 dropped hot a/1 superseded
    12:07 -> ana: hot a/1 is flapping: it begins and ends too often to be told; you hear how it stands when it is steady
    12:08 level hot a/1
    12:08 held hot a/1 [ana] flapping (until it is steady)
    12:09 -> ana: a/1 now critical (at 12:08 UTC)
    12:09 released hot a/1 [ana] flapping
    12:10 -> ana: a/1 off
    12:10 cleared hot a/1
    ");
}

#[test]
fn a_held_event_is_told_with_its_time_and_leaves_nothing_behind() {
    let event = Policy { event: true, repeat: Some(mins(10)), ..policy(&["ana", "ben"]) };
    insta::assert_snapshot!(told("", &[("door", event)], "
        01:10 raise door a/1
        02:10 raise door a/1
        05:00 wait
    "), @r"
    01:10 -> ana: a/1 on
    01:10 held door a/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    02:10 -> ana: a/1 on
    02:10 held door a/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    05:00 -> ben: a/1 on (at 02:10)
    05:00 -> ben: a/1 on (at 03:10)
    05:00 released door a/1 [ben] quiet_hours
    05:00 released door a/1 [ben] quiet_hours
    ");
}

#[test]
fn many_that_were_held_are_told_in_one_message_worst_first() {
    insta::assert_snapshot!(told("", &one(&["ben"]), "
        01:10 raise hot a/1 info
        01:20 raise hot a/2
        01:30 raise hot a/3
        02:10 raise hot a/4
        02:20 raise hot a/5
        02:30 clear hot a/3
        05:10 clear hot a/1
        05:20 clear hot a/2
    "), @r"
    01:10 raised hot a/1
    01:10 held hot a/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    01:20 raised hot a/2
    01:20 held hot a/2 [ben] quiet_hours (until 06:00 Europe/Berlin)
    01:30 raised hot a/3
    01:30 held hot a/3 [ben] quiet_hours (until 06:00 Europe/Berlin)
    02:10 raised hot a/4
    02:10 held hot a/4 [ben] quiet_hours (until 06:00 Europe/Berlin)
    02:20 raised hot a/5
    02:20 held hot a/5 [ben] quiet_hours (until 06:00 Europe/Berlin)
    02:30 cleared hot a/3
    02:30 dropped hot a/3 [ben] over (it was held: quiet_hours)
    05:00 -> ben: 4 alerts from 02:10 to 03:20 (worst warning): hot a/2, hot a/4, hot a/5 and 1 more
    05:00 grouped hot a/2 [ben] quiet_hours
    05:00 grouped hot a/4 [ben] quiet_hours
    05:00 grouped hot a/5 [ben] quiet_hours
    05:00 grouped hot a/1 [ben] quiet_hours
    05:10 -> ben: a/1 off
    05:10 cleared hot a/1
    05:20 -> ben: a/2 off
    05:20 cleared hot a/2
    ");
}

#[test]
fn a_dropped_alert_tells_nobody() {
    insta::assert_snapshot!(told("", &[("hot", grouped())], "
        12:00 raise hot a/1
        12:02 drop hot a/1
        12:03 raise hot a/2
        12:03:10 drop hot a/2
        12:30 wait
    "), @r"
    12:00 raised hot a/1
    12:00 held hot a/1 [ana] grouped (until 12:01 UTC)
    12:01 -> ana: a/1 on
    12:01 released hot a/1 [ana] grouped
    12:02 dropped hot a/1 rule_changed
    12:03 raised hot a/2
    12:03 held hot a/2 [ana] grouped (until 12:06 UTC)
    12:03:10 dropped hot a/2 rule_changed
    ");
}

#[test]
fn a_reload_tells_what_is_held_no_more() {
    let mut world =
        World::new(SUPPRESS, &[("hot", policy(&["ana"])), ("gateway-x", policy(&["ana"]))]);
    world.run("12:00 raise gateway-x a/1\n12:01 raise hot a/1", false);
    world.log.clear();
    world.book = book("");
    let log = world.reload(&[], MIDNIGHT.plus(mins(13 * 60)));
    insta::assert_snapshot!(log, @r"
    13:00 -> ana: a/1 on (at 12:01 UTC)
    13:00 released hot a/1 [ana] inhibited
    ");
}

/// Midnight and so many minutes.
fn at(minutes: u64) -> Timestamp {
    MIDNIGHT.plus(mins(minutes))
}

#[test]
fn a_contact_that_a_rule_names_no_more_was_told_on_and_the_new_one_was_not() {
    let repeating = |to: &[&str]| Policy { repeat: Some(mins(30)), ..policy(to) };
    let mut world = World::new("", &[("hot", repeating(&["ana"]))]);
    world.run("12:00 raise hot a/1", false);
    assert_eq!(world.reload(&[("hot", repeating(&["ben"]))], at(12 * 60 + 10)), "");
    world.run("13:00 clear hot a/1", true);
    insta::assert_snapshot!(world.log, @r"
    12:30 -> ben: a/1 on
    13:00 -> ben: a/1 on
    13:00 -> ben: a/1 off
    13:00 cleared hot a/1
    ");
    // What nobody has heard yet, the new one hears.
    let mut world = World::new("", &one(&["ben"]));
    world.run("23:00 raise hot a/1", false);
    insta::assert_snapshot!(world.reload(&one(&["ana"]), at(24 * 60)), @r"
    24:00 -> ana: a/1 on (at 23:00 UTC)
    24:00 dropped hot a/1 [ben] rule_changed (the rule names it no more)
    ");
    world.run("36:00 clear hot a/1", false);
    assert_eq!(world.log, "36:00 -> ana: a/1 off\n36:00 cleared hot a/1\n");
}

#[test]
fn a_repetition_came_after_repeat_was_taken_out_and_none_where_it_was_put_in() {
    let every = |minutes| Policy { repeat: minutes, ..policy(&["ana"]) };
    let mut world = World::new("", &[("hot", every(Some(mins(30))))]);
    world.run("12:00 raise hot a/1", false);
    assert_eq!(world.reload(&[("hot", every(None))], at(12 * 60 + 10)), "");
    world.run("15:00 wait", true);
    assert_eq!(world.log, "");
    assert!(world.rows.is_empty());
    assert_eq!(world.reload(&[("hot", every(Some(mins(30))))], at(15 * 60)), "");
    world.run("15:31 ack hot a/1\n18:00 wait", true);
    assert_eq!(world.log, "15:30 -> ana: a/1 on\n15:31 acknowledged hot a/1 (by ana)\n");
    // Sooner than before; somebody takes care of it.
    world.log.clear();
    world.reload(&[("hot", every(Some(mins(1))))], at(18 * 60));
    world.run("19:00 raise hot a/2\n19:00:30 wait", true);
    assert_eq!(world.log, "19:00 -> ana: a/2 on\n");
    world.reload(&[("hot", every(Some(mins(5))))], at(19 * 60));
    world.run("19:06 wait", false);
    assert_eq!(world.log, "19:01 -> ana: a/2 on\n19:06 -> ana: a/2 on\n");
}

#[test]
fn a_rule_that_went_into_shadow_went_on_to_repeat_to_hold_and_to_explain() {
    let live = Policy { repeat: Some(mins(30)), ..policy(&["ben"]) };
    let shadow = Policy { shadow: true, ..live.clone() };
    let mut world = World::new(SUPPRESS, &[("gateway-x", live), ("hot", policy(&["ana"]))]);
    world.run("12:00 raise gateway-x a/1\n12:01 raise hot a/1\n22:00 raise gateway-x a/2", false);
    insta::assert_snapshot!(world.reload(&[("gateway-x", shadow)], at(22 * 60 + 10)), @r"
    22:10 -> ana: a/1 on (at 12:01 UTC)
    22:10 dropped gateway-x a/1 shadow
    22:10 dropped gateway-x a/2 shadow
    22:10 released hot a/1 [ana] inhibited
    ");
    world.run("40:00 wait", true);
    assert_eq!(world.log, "");
    assert!(world.rows.is_empty(), "{:?}", world.rows);
}

#[test]
fn an_instance_whose_rule_had_lost_its_flapping_was_never_told_of_again() {
    let script =
        "12:00 raise hot a/1\n12:01 flap hot a/1 on\n12:02 clear hot a/1\n12:03 raise hot a/1";
    let mut world = World::new("", &one(&["ana"]));
    world.run(script, false);
    world.steady.insert("hot");
    assert_eq!(world.reload(&[], at(13 * 60)), "");
    world.run("13:01 clear hot a/1\n13:02 raise hot a/1", true);
    insta::assert_snapshot!(world.log, @r"
    13:01 -> ana: a/1 off
    13:01 cleared hot a/1
    13:02 -> ana: a/1 on
    ");
    // The same where the instance is gone, and people were told that it fires.
    let mut world = World::new("", &one(&["ana"]));
    world.run("12:00 raise hot a/1\n12:01 flap hot a/1 on\n12:02 clear hot a/1", false);
    world.log.clear();
    let (rule, key) = (Arc::from("hot"), Arc::from("a/1"));
    let outcome = world.notifier.steadied(&world.book, &rule, &key, at(13 * 60));
    world.take(outcome, at(13 * 60));
    insta::assert_snapshot!(world.log, @r"
    13:00 -> ana: a/1 off (at 12:02 UTC)
    13:00 released hot a/1 [ana] flapping
    ");
    assert!(world.rows.is_empty());
}

#[test]
fn a_cooldown_that_was_taken_out_held_on() {
    let cool = Policy { cooldown: Some(mins(60)), ..policy(&["ana"]) };
    let mut world = World::new("", &[("hot", cool)]);
    world.run("12:00 raise hot a/1\n12:01 clear hot a/1\n12:02 raise hot a/1", false);
    insta::assert_snapshot!(world.reload(&one(&["ana"]), at(12 * 60 + 10)), @r"
    12:10 -> ana: a/1 on (at 12:02 UTC)
    12:10 released hot a/1 [ana] cooldown
    ");
}

#[test]
fn a_group_counted_the_alerts_of_a_rule_that_was_gone() {
    let mut world = World::new("", &[("hot", grouped())]);
    world.run("12:00 raise hot a/1\n12:10 wait", false);
    assert_eq!(world.rows.len(), 1);
    // As the engine drops the alerts of a rule that is gone: it knows nothing of their group.
    let mut gone = world.firing.remove("hot a/1").expect("fires");
    gone.changed_at = at(13 * 60);
    world.adopt();
    let policy = Arc::<Policy>::default();
    let turn = Turn::Dropped(Reason::RuleRemoved);
    let news = News { alert: gone, turn, title: None, unrendered: None, policy };
    let outcome = world.notifier.handle(&world.book, &news, at(13 * 60));
    world.take(outcome, at(13 * 60));
    let outcome = world.notifier.reconsider(&world.book, at(13 * 60));
    world.take(outcome, at(13 * 60));
    assert!(world.rows.is_empty(), "{:?}", world.rows);
}

#[test]
fn beyond_the_bound_nothing_is_held_and_that_is_said() {
    let mut world = World::new("", &one(&["ben"]));
    world.config.tales_max = 1;
    world.restart();
    world.run("22:00 raise hot a/1\n22:01 raise hot a/2", false);
    insta::assert_snapshot!(world.log, @r"
    22:00 raised hot a/1
    22:00 held hot a/1 [ben] quiet_hours (until 06:00 Europe/Berlin)
    22:01 -> ben: a/2 on
    22:01 released hot a/2 [ben] too_many (not held: 1 alerts are (notify.tales_max))
    ");
}

#[test]
fn a_shared_phone_rings_once_and_later_again_under_another_id() {
    let twin = "[[contact]]\nname = 'twin'\nsms = '+4915550100002'\n";
    insta::assert_snapshot!(told(twin, &one(&["twin", "ben"]), "
        12:00 raise hot a/1
        22:00 raise hot a/2
        30:00 wait
    "), @r"
    12:00 -> twin: a/1 on
    22:00 -> twin: a/2 on
    22:00 held hot a/2 [ben] quiet_hours (until 06:00 Europe/Berlin)
    29:00 -> ben: a/2 on (at 23:00)
    29:00 released hot a/2 [ben] quiet_hours
    ");
}

/// Two rules with all that a rule can say, one that explains the first, and one in groups.
fn many_policies() -> Vec<(&'static str, Policy)> {
    let everybody = ["ana", "ben", "dora"];
    let wet = Policy {
        repeat: Some(mins(30)),
        cooldown: Some(mins(20)),
        max: Some(Quota { count: 3, per: mins(60) }),
        ..policy(&everybody)
    };
    let by: Vec<Arc<str>> = vec!["site".into()];
    let group = Group { by: by.into(), wait: mins(1), interval: mins(15) };
    vec![
        ("hot", policy(&everybody)),
        ("wet", wet),
        ("grp", Policy { group: Some(group), repeat: Some(mins(120)), ..policy(&everybody) }),
        ("gateway-x", policy(&["ana"])),
    ]
}

const MANY: &str = r#"
[[contact]]
name = "dora"
sms = "+4915550100004"
max = { count = 2, per = "1h", except = ["critical"] }

[[silence]]
name = "lunch"
rule = "*"
key = "a/*"
by = "cleo"
reason = "lunch"
every = { from = "12:00", to = "13:00", zone = "UTC" }

[[suppress]]
while = "gateway-*"
rules = ["hot"]
same = ["site"]
"#;

/// A script from random numbers: each line does what makes sense as things stand.
fn script(numbers: &[(u8, u8, u8, u16)], flapping: bool) -> String {
    let rules = ["hot", "wet", "grp", "gateway-x"];
    let keys = ["a/1", "a/2", "b/1"];
    let words = ["info", "warning", "critical"];
    let mut firing: BTreeMap<String, usize> = BTreeMap::new();
    let (mut lines, mut at, mut flaps) = (String::new(), 8 * 3600_u64, None::<String>);
    for (what, rule, severity, wait) in numbers {
        at += u64::from(*wait);
        let name = format!("{} {}", rules[usize::from(rule % 4)], keys[usize::from(rule / 4 % 3)]);
        let level = usize::from(severity % 3);
        let time = format!("{:02}:{:02}:{:02}", at / 3600, at / 60 % 60, at % 60);
        let line = match (what % 10, firing.get(&name)) {
            (0, _) => format!(
                "silence s{} {} {}",
                severity % 2,
                ["wet", "*"][usize::from(rule % 2)],
                1 + wait / 60
            ),
            (1, _) => format!("unsilence s{}", severity % 2),
            (2, Some(_)) if flapping && flaps.is_none() => {
                flaps = Some(name.clone());
                format!("flap {name} on")
            }
            (3, Some(_)) if flaps.as_ref() == Some(&name) => {
                flaps = None;
                format!("flap {name} off")
            }
            (4, Some(_)) => format!("ack {name}"),
            (5 | 6, Some(from)) if *from != level => {
                firing.insert(name.clone(), level);
                format!("level {name} {}", words[level])
            }
            (_, Some(_)) => {
                firing.remove(&name);
                format!("clear {name}")
            }
            (_, None) => {
                firing.insert(name.clone(), level);
                format!("raise {name} {}", words[level])
            }
        };
        writeln!(lines, "{time} {line}").expect("a String");
    }
    lines
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(40))]

    #[test]
    fn in_the_end_everybody_knows_how_it_stands(
        numbers in proptest::collection::vec((0..10_u8, 0..12_u8, 0..3_u8, 0..4000_u16), 1..40),
    ) {
        let mut world = World::new(MANY, &many_policies());
        world.run(&script(&numbers, false), false);
        // A night, in which all silences and windows end; then the causes do.
        world.run("60:00 wait", false);
        let causes: Vec<String> =
            world.firing.keys().filter(|name| name.starts_with("gateway")).cloned().collect();
        for cause in causes {
            world.run(&format!("60:01 clear {cause}"), false);
        }
        world.run("90:00 wait", false);
        for alert in world.raised.values() {
            proptest::prop_assert!(world.explained.contains(&alert.id), "{alert:?}\n{}", world.log);
            let fires = world.firing.values().find(|firing| firing.id == alert.id);
            if fires.is_none() {
                proptest::prop_assert!(world.notifier.tale(alert.id).is_none(), "{alert:?}");
            }
            for contact in world.policies[alert.rule.as_ref()].to.iter() {
                let of = (alert.id, Arc::clone(contact));
                let known = world.known.get(&of).copied();
                let is_spared = world.spared.contains(&of) && world.acks.contains_key(&alert.id);
                match fires {
                    // Nobody took it to be less than it is now.
                    Some(_) if known.is_none() && is_spared => {}
                    Some(now) => proptest::prop_assert_eq!(
                        known, Some((AlertState::Firing, now.severity)),
                        "{} {} {}\n{}", now.rule, now.key, contact, world.log
                    ),
                    None => proptest::prop_assert!(
                        known.is_none_or(|(state, _)| state == AlertState::Cleared),
                        "{} {} {}\n{}", alert.rule, alert.key, contact, world.log
                    ),
                }
            }
        }
    }

    #[test]
    fn a_restart_at_any_point_changes_nothing(
        numbers in proptest::collection::vec((0..10_u8, 0..12_u8, 0..3_u8, 0..4000_u16), 1..40),
    ) {
        told(MANY, &many_policies(), &format!("{}70:00 wait", script(&numbers, true)));
    }
}
