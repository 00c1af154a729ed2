//! `watchbell replay`: what rules would have made of recorded publishes.
//!
//! Nothing is sent and nothing is stored; the running instance is neither needed nor asked.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{Context, problems, text};
use crate::clock::Timestamp;
use crate::config;
use crate::intake::ruleset::{Limits, RuleSet};
use crate::model::Channel;
use crate::replay::price::{Money, Prices};
use crate::replay::report::{ContactRow, RaisedRow, Report, RuleRow, Seen};
use crate::replay::tally::Setup;
use crate::replay::traffic::{Part, Traffic};
use crate::replay::{self, Replayed};

const EXAMPLES: &str = "\
Examples:
  watchbell replay week.jsonl
  watchbell replay week.jsonl --rules new-rules --against rules     what the change would change
  watchbell replay week.jsonl --price sms=0.08 --price whatsapp=0.03
  mosquitto_sub -h plant -t '#' -F '%U %t %p' > plant.txt; watchbell replay plant.txt

Reads what `watchbell record` writes (FILE, and the older FILE.1, FILE.2 before it) and what
mosquitto_sub prints by -F %j or by -F '%U %t %p'. Nothing is sent and nothing is stored.";

/// How many characters of an alert's text are shown.
const TEXT_WIDTH: usize = 80;

/// What rules would have made of recorded publishes: alerts, messages, what they cost
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Replay {
    /// Recordings; several are merged by time
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The rules [default: those of the configuration]
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Other rules, to show what is different
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Only publishes from this time on, as 2026-05-02 or 2026-05-02T08:00 (UTC) or with a zone
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Only publishes before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// What a message costs, an SMS by the segment; may be repeated
    #[arg(long, value_name = "CHANNEL=PRICE", value_parser = price)]
    price: Vec<(Channel, Money)>,
    /// As JSON, for scripts
    #[arg(long)]
    json: bool,
}

fn price(text: &str) -> Result<(Channel, Money), String> {
    let (channel, price) = text.split_once('=').ok_or("write CHANNEL=PRICE, as sms=0.08")?;
    let channel = channel.parse::<Channel>().map_err(|error| error.to_string())?;
    Ok((channel, price.parse()?))
}

fn time(text: &str) -> Result<Timestamp, String> {
    let instant = text.parse::<jiff::Timestamp>().or_else(|error| {
        let local: jiff::civil::DateTime = text.parse().map_err(|_| error)?;
        local.to_zoned(jiff::tz::TimeZone::UTC).map(|zoned| zoned.timestamp())
    });
    instant.map(|time| Timestamp::from_millis(time.as_millisecond())).map_err(|_| {
        "write a time as 2026-05-02, 2026-05-02T08:00 or 2026-05-02T08:00+02:00".into()
    })
}

impl Replay {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let Context { layers, out, .. } = context;
        let (limits, expires_in) = config::evaluation(&layers).map_err(problems)?;
        let directory = match self.rules {
            Some(directory) => directory,
            None => config::rules_dir(&layers).map_err(problems)?,
        };
        let set = load(&directory, &limits)?;
        let other = self.against.as_deref().map(|other| load(other, &limits)).transpose()?;
        let part = Part { since: self.since, until: self.until };
        let traffic = Traffic::open(&self.files, part).map_err(problems)?;
        let prices = Prices::new(self.price);
        let setup =
            |set| Setup { set, limits: &limits, expires_in: expires_in.get(), prices: &prices };
        let replayed = replay::run(traffic, setup(&set), other.as_ref().map(setup));
        // Zeros would look as if the rules had been tried.
        if let (0, 0, Some(first)) =
            (replayed.seen.publishes, replayed.seen.left_out, &replayed.seen.first_unreadable)
        {
            bail!("nothing of it is a recording: {first}");
        }
        if self.json {
            return text::json(out, &as_json(&replayed));
        }
        show(out, &replayed)?;
        Ok(())
    }
}

fn load(directory: &Path, limits: &Limits) -> anyhow::Result<RuleSet> {
    RuleSet::load_dir(directory, limits).map_err(problems)
}

fn as_json(replayed: &Replayed) -> serde_json::Value {
    let with_price = |report: &Report| json!({ "result": report, "price": report.price() });
    let mut all = json!({ "recording": replayed.seen, "rules": with_price(&replayed.report) });
    if let (Some((report, only)), Some(all)) = (&replayed.against, all.as_object_mut()) {
        all.insert("against".to_owned(), with_price(report));
        all.insert("only".to_owned(), json!(only));
    }
    all
}

fn show(out: &mut dyn Write, replayed: &Replayed) -> io::Result<()> {
    let report = &replayed.report;
    let other = replayed.against.as_ref().map(|(report, _)| report);
    recording(out, &replayed.seen, report)?;
    writeln!(out)?;
    rules(out, report, other)?;
    writeln!(out)?;
    contacts(out, report, other)?;
    not_told(out, report, other)?;
    failures(out, report)?;
    if let Some((_, only)) = &replayed.against {
        raised(out, "Raised by these rules only", only.here.count, &only.here.first)?;
        raised(out, "Raised by the others only", only.there.count, &only.there.first)?;
    }
    Ok(())
}

fn recording(out: &mut dyn Write, seen: &Seen, report: &Report) -> io::Result<()> {
    write!(out, "{}", counted(seen.publishes, "publish", "publishes"))?;
    if let (Some(from), Some(to)) = (seen.from, seen.to) {
        let (from, to) = (from.to_string(), to.to_string());
        write!(out, " from {} to {}", text::seconds(&from), text::seconds(&to))?;
        write!(out, ", {} of them looked at by rules", report.matched)?;
    }
    writeln!(out)?;
    if seen.left_out > 0 {
        let publishes = counted(seen.left_out, "publish", "publishes");
        writeln!(out, "{publishes} outside of --since and --until")?;
    }
    if seen.late > 0 {
        let late = counted(
            seen.late,
            "publish recorded out of order: it comes",
            "publishes recorded out of order: they come",
        );
        writeln!(out, "{late} at the time of the one before")?;
    }
    if let Some(first) = &seen.first_unreadable {
        let lines = counted(seen.unreadable, "line", "lines");
        writeln!(out, "{lines} that cannot be read, the first: {first}")?;
    }
    Ok(())
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// `5`, or `5 (+2)` where the others have 3.
fn number(here: u64, other: Option<u64>) -> String {
    match other.filter(|there| *there != here) {
        None => here.to_string(),
        Some(there) if here > there => format!("{here} (+{})", here - there),
        Some(there) => format!("{here} (-{})", there - here),
    }
}

/// Pairs the rows of two reports by name: those of the first in their order, then what only the other
/// has.
fn paired<'a, T, K: Ord>(
    here: &'a [T],
    other: Option<&'a [T]>,
    key: impl Fn(&T) -> K,
) -> Vec<(Option<&'a T>, Option<&'a T>)> {
    let there: Vec<&T> = other.unwrap_or_default().iter().collect();
    let mut left: BTreeMap<K, &T> = there.iter().map(|row| (key(row), *row)).collect();
    let mut rows: Vec<_> = here.iter().map(|row| (Some(row), left.remove(&key(row)))).collect();
    let only_there = there.into_iter().filter(|row| left.contains_key(&key(row)));
    rows.extend(only_there.map(|row| (None, Some(row))));
    rows
}

fn rules(out: &mut dyn Write, report: &Report, other: Option<&Report>) -> io::Result<()> {
    const HEAD: &[&str] = &["RULE", "RAISED", "LEVELS", "CLEARED", "FIRING", "LONGEST", "FAILED"];
    let name = |row: &RuleRow| Arc::clone(&row.rule);
    let pairs = paired(&report.rules, other.map(|other| &*other.rules), name);
    let rows: Vec<Vec<String>> = pairs
        .into_iter()
        .filter_map(|(here, there)| {
            let row = here.or(there)?;
            let cell = |of: fn(&RuleRow) -> u64| {
                number(here.map_or(0, of), other.map(|_| there.map_or(0, of)))
            };
            let note = match (here, there, other) {
                (None, _, _) => " (gone)",
                (Some(_), None, Some(_)) => " (new)",
                (Some(row), ..) if row.shadow => " (shadow)",
                _ => "",
            };
            Some(vec![
                format!("{}{note}", row.rule),
                cell(|row| row.raised),
                cell(|row| row.levels),
                cell(|row| row.cleared),
                cell(|row| row.firing),
                longest(here, there),
                cell(RuleRow::failed),
            ])
        })
        .collect();
    text::table(out, HEAD, &rows)
}

fn longest(here: Option<&RuleRow>, there: Option<&RuleRow>) -> String {
    let of = |row: &RuleRow| text::length(Duration::from_millis(row.longest_ms));
    match (here.map(of), there.map(of)) {
        (Some(here), Some(there)) if here != there => format!("{here} (was {there})"),
        (Some(here), _) => here,
        (None, there) => format!("- (was {})", there.unwrap_or_default()),
    }
}

fn contacts(out: &mut dyn Write, report: &Report, other: Option<&Report>) -> io::Result<()> {
    const HEAD: &[&str] = &["CONTACT", "CHANNEL", "MESSAGES", "SEGMENTS", "PRICE"];
    let key = |row: &ContactRow| (Arc::clone(&row.contact), row.channel);
    let mut pairs = paired(&report.contacts, other.map(|other| &*other.contacts), key);
    pairs.sort_by_key(|(here, there)| here.or(*there).map(key));
    let mut rows: Vec<Vec<String>> = pairs
        .into_iter()
        .filter_map(|(here, there)| {
            let row = here.or(there)?;
            let cell = |of: fn(&ContactRow) -> u64| {
                number(here.map_or(0, of), other.map(|_| there.map_or(0, of)))
            };
            let segments = if row.segments.is_some() {
                cell(|row| row.segments.unwrap_or(0))
            } else {
                "-".to_owned()
            };
            let price = |row: Option<&ContactRow>| row.and_then(|row| row.price);
            let price = row.price.map(|_| {
                money(
                    price(here).unwrap_or_default(),
                    other.map(|_| price(there).unwrap_or_default()),
                )
            });
            Some(vec![
                row.contact.to_string(),
                row.channel.to_string(),
                cell(|row| row.messages),
                segments,
                price.unwrap_or_else(|| "-".to_owned()),
            ])
        })
        .collect();
    if rows.is_empty() {
        return writeln!(out, "Nobody would have been messaged.");
    }
    let sum = |report: &Report, of: fn(&ContactRow) -> u64| report.contacts.iter().map(of).sum();
    let total =
        |of: fn(&ContactRow) -> u64| number(sum(report, of), other.map(|other| sum(other, of)));
    let priced = report.price().or_else(|| other.and_then(Report::price)).map(|_| {
        let of = |report: &Report| report.price().unwrap_or_default();
        money(of(report), other.map(of))
    });
    rows.push(vec![
        "all".to_owned(),
        String::new(),
        total(|row| row.messages),
        total(|row| row.segments.unwrap_or(0)),
        priced.unwrap_or_else(|| "-".to_owned()),
    ]);
    text::table(out, HEAD, &rows)
}

fn money(here: Money, other: Option<Money>) -> String {
    match other.and_then(|other| here.difference(other)) {
        None => here.to_string(),
        Some(difference) => format!("{here} ({difference})"),
    }
}

fn not_told(out: &mut dyn Write, report: &Report, other: Option<&Report>) -> io::Result<()> {
    let mut pairs =
        paired(&report.not_told, other.map(|other| &*other.not_told), |row| (row.what, row.reason));
    pairs.sort_by_key(|(here, there)| here.or(*there).map(|row| (row.what, row.reason)));
    let rows: Vec<Vec<String>> = pairs
        .into_iter()
        .filter_map(|(here, there)| {
            let row = here.or(there)?;
            let other = other.map(|_| there.map_or(0, |row| row.count));
            let count = number(here.map_or(0, |row| row.count), other);
            Some(vec![row.what.as_str().to_owned(), row.reason.to_string(), count])
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    text::table(out, &["NOT TOLD", "REASON", "TIMES"], &rows)
}

fn failures(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    let failed: Vec<&RuleRow> =
        report.rules.iter().filter(|rule| !rule.failures.is_empty()).collect();
    if !failed.is_empty() {
        writeln!(out, "\nCame to no result:")?;
    }
    for rule in failed {
        for failure in &rule.failures {
            let first_at = failure.first_at.to_string();
            writeln!(
                out,
                "  rule \"{}\", {}, first at {}: {}: {}",
                rule.rule,
                if failure.count == 1 {
                    "once".to_owned()
                } else {
                    format!("{} times", failure.count)
                },
                text::seconds(&first_at),
                failure.reason,
                failure.first
            )?;
        }
    }
    Ok(())
}

fn raised(out: &mut dyn Write, what: &str, count: u64, first: &[RaisedRow]) -> io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let shown = u64::try_from(first.len()).unwrap_or(u64::MAX);
    let of = if shown < count { format!(", the first {shown} of {count}") } else { String::new() };
    writeln!(out, "\n{what}{of}:")?;
    for alert in first {
        let at = alert.at.to_string();
        writeln!(
            out,
            "  {}  {}  {}  {}",
            text::seconds(&at),
            alert.rule,
            alert.severity,
            text::cut(&alert.text, TEXT_WIDTH)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;

    use super::*;
    use crate::capture::Recorded;
    use crate::model::Qos;
    use crate::topic::{TopicLimits, TopicName};

    const CONTACTS: &str = "
        [[contact]]
        name = 'ana'
        sms = '+4915550100001'
        push = 'topic:cold-store'
        [[contact]]
        name = 'ben'
        sms = '+4915550100002'
    ";

    /// The rules as they are.
    const RULES: &str = "
        [[rule]]
        name = 'freezer-warm'
        topic = 'site/{site}/freezer/{unit}'
        when = 'payload.temp_c > -15.0'
        for = '5m'
        severity = 'critical'
        to = ['ana', 'ben']
        by = ['sms']
        text = '{{ site }} freezer {{ unit }}: {{ payload.temp_c }} °C, {{ duration }}'
        [[rule]]
        name = 'silent'
        topic = 'site/{site}/freezer/{unit}'
        silent = '30m'
        to = ['ana']
        by = ['push']
        text = 'nothing of {{ site }} {{ unit }}'
    ";

    /// The rules as somebody would like to have them.
    const NEW_RULES: &str = "
        [[rule]]
        name = 'freezer-warm'
        topic = 'site/{site}/freezer/{unit}'
        when = 'payload.temp_c > -12.0'
        for = '5m'
        severity = 'critical'
        to = ['ana']
        by = ['sms']
        text = '{{ site }} freezer {{ unit }}: {{ payload.temp_c }} °C, {{ duration }}'
        [[rule]]
        name = 'door'
        topic = 'site/{site}/door'
        skip = \"payload == 'test'\"
        when = \"payload == 'open'\"
        mode = 'shadow'
        to = ['ben']
    ";

    /// Minutes, topic and payload of two freezers; the second stops after half an hour.
    fn recording() -> String {
        let mut lines = String::new();
        let mut line = |minute: i64, topic: &str, payload: &str| {
            let at = 1_790_000_000_000 + minute * 60_000;
            let payload = payload.replace('"', "\\\"");
            lines.push_str(&format!(
                "{{\"at\":{at},\"topic\":\"{topic}\",\"payload\":\"{payload}\"}}\n"
            ));
        };
        for minute in 0..120 {
            // Warm by a little from the 20th minute on, and by much from the 60th to the 80th.
            let temp = match minute {
                20..30 => -14,
                60..80 => -10,
                _ => -20,
            };
            line(minute, "site/kiel/freezer/1", &format!("{{\"temp_c\": {temp}.5}}"));
            if minute < 30 {
                line(minute, "site/kiel/freezer/2", "{\"temp_c\": -21}");
            }
        }
        line(120, "site/kiel/door", "test");
        line(121, "site/kiel/door", "open");
        line(119, "site/kiel/freezer/1", "{\"temp\": 1}");
        lines.push_str("{\"at\":1790000000000,\"topic\":\"a/#\",\"payload\":\"\"}\n");
        lines
    }

    fn said(arguments: &[&str]) -> (bool, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let arguments = ["watchbell", "replay"].iter().chain(arguments).map(OsString::from);
        let code = crate::cli::execute(arguments, Vec::new(), &mut out, &mut err);
        let is_fine = code == std::process::ExitCode::SUCCESS;
        let text = if is_fine { out } else { err };
        (is_fine, String::from_utf8(text).expect("text"))
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            let place = Self(tempfile::tempdir().expect("a directory"));
            for (directory, rules) in [("rules", RULES), ("new", NEW_RULES)] {
                fs::create_dir(place.0.path().join(directory)).expect("made");
                place.write(&format!("{directory}/rules.toml"), rules);
                place.write(&format!("{directory}/contacts.toml"), CONTACTS);
            }
            place
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(name), text).expect("written");
        }

        fn said(&self, arguments: &[&str]) -> String {
            let place = |argument: &&str| match argument.strip_prefix('@') {
                Some(name) => self.0.path().join(name).display().to_string(),
                None => (*argument).to_owned(),
            };
            let arguments: Vec<String> = arguments.iter().map(place).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let (is_fine, text) = said(&arguments);
            assert!(is_fine, "{text}");
            text.replace(&format!("{}/", self.0.path().display()), "")
        }
    }

    #[test]
    fn says_what_would_have_happened() {
        let place = Place::new();
        place.write("week.jsonl", &recording());
        let text = place.said(&["@week.jsonl", "--rules", "@rules", "--price", "sms=0.08"]);
        insta::assert_snapshot!(text, @r#"
        153 publishes from 2026-09-21 14:13:20Z to 2026-09-21 16:14:20Z, 151 of them looked at by rules
        1 publish recorded out of order: it comes at the time of the one before
        1 line that cannot be read, the first: week.jsonl:154: expected a topic, found `a/#`: it holds a wildcard (+ or #), which only filters may

        RULE          RAISED  LEVELS  CLEARED  FIRING  LONGEST  FAILED
        freezer-warm  2       0       2        0       15m      1
        silent        1       0       0        1       1h2m     0

        CONTACT  CHANNEL  MESSAGES  SEGMENTS  PRICE
        ana      sms      2         2         0.16
        ana      push     1         -         -
        ben      sms      2         2         0.16
        all               5         4         0.32

        Came to no result:
          rule "freezer-warm", once, first at 2026-09-21 16:14:20Z: expression_failed: `when`: the payload has no field `temp_c`; guard it with has(...) if it may be absent
        "#);
    }

    #[test]
    fn what_is_no_recording_is_an_error_and_not_a_table_of_zeros() {
        let place = Place::new();
        place.write("notes.txt", "to do\n\nbuy milk\n");
        place.write("empty.jsonl", "");
        let path = |name: &str| place.0.path().join(name).display().to_string();
        let (notes, empty, rules) = (path("notes.txt"), path("empty.jsonl"), path("rules"));
        let (is_fine, text) = said(&[&notes, "--rules", &rules]);
        assert!(!is_fine && text.contains("nothing of it is a recording: "), "{text}");
        assert!(text.contains("notes.txt:1: expected lines of `watchbell record`"), "{text}");
        let (is_fine, text) = said(&[&empty, "--rules", &rules]);
        assert!(is_fine && text.starts_with("0 publishes\n"), "{text}");
    }

    #[test]
    fn says_what_other_rules_would_have_changed() {
        let place = Place::new();
        place.write("week.jsonl", &recording());
        let arguments =
            ["@week.jsonl", "--rules", "@new", "--against", "@rules", "--price", "sms=0.08"];
        insta::assert_snapshot!(place.said(&arguments), @r#"
        153 publishes from 2026-09-21 14:13:20Z to 2026-09-21 16:14:20Z, 153 of them looked at by rules
        1 publish recorded out of order: it comes at the time of the one before
        1 line that cannot be read, the first: week.jsonl:154: expected a topic, found `a/#`: it holds a wildcard (+ or #), which only filters may

        RULE           RAISED  LEVELS  CLEARED  FIRING  LONGEST       FAILED
        freezer-warm   1 (-1)  0       1 (-1)   0       15m           1
        door (new)     1 (+1)  0       0        1 (+1)  0s            0
        silent (gone)  0 (-1)  0       0        0 (-1)  - (was 1h2m)  0

        CONTACT  CHANNEL  MESSAGES  SEGMENTS  PRICE
        ana      sms      1 (-1)    1 (-1)    0.08 (-0.08)
        ana      push     0 (-1)    -         -
        ben      sms      0 (-2)    0 (-2)    0.00 (-0.16)
        all               1 (-4)    1 (-3)    0.08 (-0.24)

        NOT TOLD       REASON   TIMES
        not looked at  skipped  1 (+1)

        Came to no result:
          rule "freezer-warm", once, first at 2026-09-21 16:14:20Z: expression_failed: `when`: the payload has no field `temp_c`; guard it with has(...) if it may be absent

        Raised by these rules only:
          2026-09-21 16:14:20Z  door  warning  door: site/kiel/door: "open"

        Raised by the others only:
          2026-09-21 14:38:20Z  freezer-warm  critical  kiel freezer 1: -14.5 °C, 0s
          2026-09-21 15:12:20Z  silent  warning  nothing of kiel 2
        "#);
        // Rules that are the same differ in nothing.
        let text = place.said(&["@week.jsonl", "--rules", "@new", "--against", "@new"]);
        // The line that cannot be read names the wildcards.
        let text = text.replace("(+ or #)", "");
        for sign in ["(+", "(-", "(was", "rules only", "others only"] {
            assert!(!text.contains(sign), "{sign}: {text}");
        }
    }

    #[test]
    fn json_has_the_same_numbers() {
        let place = Place::new();
        place.write("week.jsonl", &recording());
        let text =
            place.said(&["@week.jsonl", "--rules", "@rules", "--price", "sms=0.08", "--json"]);
        let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(all["recording"]["publishes"], 153);
        assert_eq!(all["recording"]["unreadable"], 1);
        let rule = &all["rules"]["result"]["rules"][0];
        assert_eq!((&rule["rule"], &rule["raised"]), (&json!("freezer-warm"), &json!(2)));
        assert_eq!(rule["longest_ms"], 15 * 60_000);
        assert_eq!(all["rules"]["price"], 0.32);
        assert!(all.get("against").is_none());
    }

    #[test]
    fn only_a_part_of_the_time_and_files_of_all_forms() {
        let place = Place::new();
        let topic = TopicName::parse("site/kiel/door", TopicLimits::default()).expect("a topic");
        let one = Recorded {
            at: Timestamp::from_millis(1_790_000_000_000),
            topic,
            payload: "open".into(),
            retain: false,
            replayed: false,
            qos: Qos::AtMostOnce,
        };
        let limits = crate::capture::write::Limits { bytes_max: 4096, files: 3 };
        let path = place.0.path().join("ours.jsonl");
        for _ in 0..2 {
            // The second moves the first to ours.jsonl.1.
            let mut writer = crate::capture::Writer::create(&path, limits).expect("a file");
            writer.write(&one).expect("written");
            writer.flush().expect("written");
        }
        place.write(
            "plain.txt",
            "1790000060.5 site/kiel/door shut\n1790000120 site/kiel/door open\n",
        );
        place.write(
            "json.txt",
            "{\"tst\":\"2026-09-21T14:14:00.000000Z+0000\",\"topic\":\"site/kiel/door\",\"qos\":0,\"retain\":0,\"payloadlen\":4,\"payload\":\"shut\"}\n",
        );
        let all = ["@ours.jsonl", "@ours.jsonl.1", "@plain.txt", "@json.txt", "--rules", "@new"];
        let text = place.said(&all);
        assert!(
            text.starts_with(
                "5 publishes from 2026-09-21 14:13:20Z to 2026-09-21 14:15:20Z, 5 of them"
            ),
            "{text}"
        );
        let part =
            [&all[..], &["--since", "2026-09-21T14:14", "--until", "2026-09-21T16:15:20+02:00"]]
                .concat();
        let text = place.said(&part);
        assert!(text.starts_with("2 publishes") && text.contains("3 publishes outside"), "{text}");
    }

    #[test]
    fn what_makes_no_sense_is_said_before_anything_runs() {
        for (arguments, expected) in [
            (&["x.jsonl", "--price", "sms"][..], "write CHANNEL=PRICE"),
            (&["x.jsonl", "--price", "fax=1"][..], "unknown word `fax`"),
            (&["x.jsonl", "--price", "sms=0,08"][..], "write it as 0.08"),
            (&["x.jsonl", "--since", "yesterday"][..], "write a time as"),
            (&["/nowhere/x.jsonl", "--rules", "rules"][..], "/nowhere/x.jsonl: cannot be read"),
            (&["x.jsonl", "--rules", "/nowhere"][..], "no such directory"),
        ] {
            let (is_fine, text) = said(arguments);
            assert!(!is_fine && text.contains(expected), "{arguments:?}: {text}");
        }
    }
}
