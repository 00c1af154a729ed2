//! Topic sections, `[failover]` and `[cron]` -> rules.
//!
//! mqttwarn tells of each publish that a section's topic matches, so a section is a rule without `when`.
//! A rule that would tell more, less or somebody else than the section did is written as comments: it
//! neither pages people nor is forgotten.

use std::collections::BTreeSet;

use super::defaults::{Broker, NAME, covers, meet};
use super::format::{self, Scene, Text, function};
use super::ini::{Entry, Ini, Section};
use super::literal::{self, Literal};
use super::report::Part;
use super::services::{Reach, Services, name, shown};
use super::toml_text;
use crate::span::Span;

/// Keys of a section that are looked at.
const KEYS: &[&str] = &[
    "topic",
    "targets",
    "filter",
    "format",
    "title",
    "image",
    "priority",
    "template",
    "qos",
    "datamap",
    "alldata",
    "timeout",
    "notify_only_on_timeout",
];

/// One rule, as it will be written.
#[derive(Debug)]
pub(super) struct Rule {
    /// Whose it is: an index of the report's parts.
    pub(super) part: usize,
    /// What stands above it.
    pub(super) comment: String,
    pub(super) name: String,
    /// Its other keys, with their values as TOML.
    pub(super) keys: Vec<(&'static str, String)>,
    /// Why it is written as comments.
    pub(super) held: Vec<String>,
}

impl Rule {
    pub(super) fn table(&self) -> String {
        let mut text = format!("[[rule]]\nname = {}\n", toml_text(&self.name));
        for (key, value) in &self.keys {
            text.push_str(&format!("{key} = {value}\n"));
        }
        text
    }
}

/// Whence templates are read; `None` where there is none of that name.
pub(super) type Templates<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What sections are made of.
pub(super) struct Sections<'a> {
    pub(super) file: &'a str,
    pub(super) services: &'a Services,
    pub(super) broker: &'a Broker,
    pub(super) templates: Templates<'a>,
    /// Whether a rule may have this line.
    pub(super) knows: &'a dyn Fn(&str) -> bool,
    pub(super) names: BTreeSet<String>,
    pub(super) rules: Vec<Rule>,
    pub(super) topics: Vec<String>,
}

/// What a section is told by, beside its topic and its targets.
#[derive(Default)]
struct Said {
    text: Text,
    title: Option<Text>,
    severity: Option<&'static str>,
    held: Vec<String>,
}

/// Who is told of what.
struct Route {
    topic: String,
    targets: Vec<String>,
    /// Topics that a more specific route has.
    except: Vec<String>,
}

impl Sections<'_> {
    /// Makes the rules of all sections, and says what became of each.
    pub(super) fn read(&mut self, ini: &Ini, parts: &mut Vec<Part>) {
        for section in &ini.sections {
            let mut part = Part::new(section.line, &format!("[{}]", section.name));
            match section.name.as_str() {
                "defaults" => continue,
                name if name.starts_with("config:") => continue,
                "cron" => cron(section, &mut part),
                "failover" => self.failover(section, parts.len(), &mut part),
                _ => self.section(section, parts.len(), &mut part),
            }
            parts.push(part);
        }
    }

    fn section(&mut self, section: &Section, index: usize, part: &mut Part) {
        let Some(targets) = section.entry("targets") else {
            part.done("has no `targets`, so mqttwarn does nothing with it");
            return;
        };
        let topic = section.text("topic").unwrap_or(&section.name).to_owned();
        self.topics.push(topic.clone());
        for entry in section.entries.iter().filter(|entry| !KEYS.contains(&entry.key.as_str())) {
            part.done(format!("line {}: `{}` was left out", entry.line, entry.key));
        }
        let said = self.said(section, part);
        let mut held = said.held.clone();
        let routes = routes(&topic, targets, &mut held, part);
        let quiet = section.text("notify_only_on_timeout").is_some_and(|text| !text.is_empty());
        let timeout = section.entry("timeout").and_then(|entry| timeout(entry, part));
        for route in &routes {
            let mut held = held.clone();
            let to = self.contacts(&route.targets, &mut held, part);
            if timeout.is_none() || !quiet {
                let keys = self.keys(route, &said, &to);
                self.rule(section, index, "", keys, held.clone());
            }
        }
        // One timer for the section, whatever its targets: those of the section's own topic.
        if let Some(timeout) = timeout {
            let own = routes.iter().find(|route| covers(&route.topic, &topic));
            match own {
                Some(route) => {
                    let to = self.contacts(&route.targets, &mut held, part);
                    let keys = silent(section, &topic, timeout, quiet, &said, &to);
                    self.rule(section, index, "-silent", keys, held);
                }
                None => part.hand("`timeout`: no target is for the whole topic; write a rule with `silent` for each"),
            }
        }
    }

    fn rule(
        &mut self,
        section: &Section,
        part_index: usize,
        suffix: &str,
        keys: Vec<(&'static str, String)>,
        held: Vec<String>,
    ) {
        let name = name(&format!("{}{suffix}", section.name), &mut self.names);
        let comment = format!("{}:{}: [{}]", self.file, section.line, section.name);
        self.rules.push(Rule { part: part_index, comment, name, keys, held });
    }

    fn keys(&self, route: &Route, said: &Said, to: &[String]) -> Vec<(&'static str, String)> {
        let mut keys = vec![("topic", toml_text(&route.topic))];
        let reads = said.text.reads_payload || said.title.as_ref().is_some_and(|t| t.reads_payload);
        if !reads {
            keys.push(("decode", toml_text("text")));
        }
        // mqttwarn tells of retained messages at each connection, if nobody forbids it.
        if self.broker.skips_retained {
            keys.push(("replayed", toml_text("ignore")));
        } else if (self.knows)("replayed = \"raise\"") {
            keys.push(("replayed", toml_text("raise")));
        }
        if !route.except.is_empty() {
            let other = route.except.iter().map(|filter| matches(filter));
            keys.push(("skip", toml_text(&other.collect::<Vec<_>>().join(" || "))));
        }
        said_keys(&mut keys, said, to);
        keys.push(("text", toml_text(&said.text.template)));
        keys
    }

    /// What is said, in which words.
    fn said(&self, section: &Section, part: &mut Part) -> Said {
        let mut said = Said { text: format::payload(), ..Said::default() };
        for key in ["filter", "datamap", "alldata"] {
            let Some(entry) = section.entry(key) else { continue };
            let name = function(&entry.value).unwrap_or("?");
            let what = match key {
                "filter" => {
                    "keeps back what it says True for; write what is to be told as `when` (then it is told when that becomes true, not each time)"
                }
                _ => "makes data for the text; write it with the payload's own fields",
            };
            said.held.push(format!("line {}: `{key}`: function {name}() {what}", entry.line));
        }
        if let Some(entry) = section.entry("format") {
            match format::convert(&entry.value, Scene::Publish) {
                Ok(text) => said.text = text,
                Err(why) => said.held.push(format!("line {}: `format`: {why}", entry.line)),
            }
        }
        if let Some(entry) = section.entry("template") {
            let text = match (self.templates)(&entry.value) {
                Some(source) => format::jinja(&source),
                None => Err("cannot be read from `templates` beside the file".to_owned()),
            };
            match text {
                Ok(text) => said.text = text,
                Err(why) => said.held.push(format!("line {}: `template`: {why}", entry.line)),
            }
        }
        if let Some(entry) = section.entry("title") {
            match format::convert(&entry.value, Scene::Publish) {
                Ok(text) => said.title = Some(text),
                Err(why) => {
                    part.hand(format!("line {}: `title`: {why}; it was left out", entry.line))
                }
            }
        }
        let notes = said.text.notes.iter().chain(said.title.iter().flat_map(|title| &title.notes));
        for note in notes {
            part.done(*note);
        }
        if let Some(entry) = section.entry("priority") {
            match entry.value.parse::<i64>() {
                Ok(number) => {
                    let severity = match number {
                        ..0 => "info",
                        0 => "warning",
                        1.. => "critical",
                    };
                    part.done(format!("`priority` {number} is severity {severity}"));
                    said.severity = Some(severity);
                }
                Err(_) => part.hand(format!(
                    "line {}: `priority` is no number here; choose a `severity`",
                    entry.line
                )),
            }
        }
        if section.entry("image").is_some() {
            part.done("`image` was left out: no channel shows any");
        }
        if section.text("qos") == Some("2") {
            part.done("`qos` 2 is 1 here: what comes twice is told twice");
        }
        said
    }

    /// The contacts of targets; those who are not told are named.
    fn contacts(&self, targets: &[String], held: &mut Vec<String>, part: &mut Part) -> Vec<String> {
        let mut to: Vec<String> = Vec::new();
        let mut reached = false;
        for target in targets {
            if target.contains(['{', '}']) {
                held.push(format!(
                    "target `{}` depends on the payload; write a rule for each",
                    shown(target)
                ));
                continue;
            }
            match self.services.reach(target) {
                Err(why) => part.hand(format!("target `{}`: {why}", shown(target))),
                Ok(all) => {
                    for reach in all {
                        match reach {
                            Reach::Contact(name) if to.contains(&name) => {}
                            Reach::Contact(name) => to.push(name),
                            Reach::Record => reached = true,
                            Reach::Nobody(why) => {
                                part.hand(format!("target `{}` is not told: {why}", shown(target)));
                            }
                        }
                    }
                }
            }
        }
        if to.is_empty() && !reached && held.is_empty() {
            held.push("nobody is told; name contacts in `to`".to_owned());
        }
        to
    }

    fn failover(&mut self, section: &Section, index: usize, part: &mut Part) {
        let Some(targets) = section.entry("targets") else {
            part.done("has no `targets`, so mqttwarn tells nobody");
            return;
        };
        let topic = format!("$watchbell/upstream/{NAME}");
        let mut held = Vec::new();
        let routes = routes("brokerdisconnected", targets, &mut held, part);
        let targets = routes.into_iter().next().map(|route| route.targets).unwrap_or_default();
        let to = self.contacts(&targets, &mut held, part);
        let payload = "Broker connection lost.";
        let format = section.text("format").unwrap_or("{payload}");
        let scene = Scene::Said { topic: "brokerdisconnected", payload };
        let text = match format::convert(format, scene) {
            Ok(text) if !text.reads_payload => text.template,
            Ok(_) | Err(_) => payload.to_owned(),
        };
        let mut keys = vec![
            ("topic", toml_text(&topic)),
            ("when", toml_text("!payload.connected")),
            ("severity", toml_text("critical")),
        ];
        said_keys(&mut keys, &Said::default(), &to);
        keys.push(("text", toml_text(&text)));
        self.rule(section, index, "", keys, held);
    }
}

fn said_keys(keys: &mut Vec<(&'static str, String)>, said: &Said, to: &[String]) {
    if let Some(severity) = said.severity {
        keys.push(("severity", toml_text(severity)));
    }
    let to: Vec<String> = to.iter().map(|name| toml_text(name)).collect();
    keys.push(("to", format!("[{}]", to.join(", "))));
    if let Some(title) = &said.title {
        keys.push(("title", toml_text(&title.template)));
    }
}

/// mqttwarn says it anew after each further `timeout`.
fn silent(
    section: &Section,
    topic: &str,
    timeout: Span,
    quiet: bool,
    said: &Said,
    to: &[String],
) -> Vec<(&'static str, String)> {
    let secs = timeout.get().as_secs();
    let mut keys = vec![
        ("topic", toml_text(topic)),
        ("silent", toml_text(&timeout.to_string())),
        ("repeat", toml_text(&timeout.to_string())),
    ];
    let said = Said { severity: said.severity, ..Said::default() };
    said_keys(&mut keys, &said, to);
    let text = |payload: &str| {
        let format = section.text("format").unwrap_or("{payload}");
        let text = match format::convert(format, Scene::Said { topic, payload }) {
            Ok(text) if !text.reads_payload => text.template,
            Ok(_) | Err(_) => format::literal(payload),
        };
        toml_text(&text)
    };
    keys.push(("text", text(&format!("Timeout for topic {topic} after {secs}"))));
    if quiet {
        keys.push((
            "text_clear",
            text(&format!("Message received for topic {topic} within {secs}")),
        ));
    }
    keys
}

fn timeout(entry: &Entry, part: &mut Part) -> Option<Span> {
    match entry.value.parse::<u64>() {
        Ok(0) => None,
        Ok(secs) if secs <= 31_536_000 => Some(Span::from_secs(secs)),
        _ if entry.value.starts_with('-') => None,
        _ => {
            part.hand(format!("line {}: `timeout` is no number of seconds", entry.line));
            None
        }
    }
}

/// Who is told of which topics.
fn routes(topic: &str, targets: &Entry, held: &mut Vec<String>, part: &mut Part) -> Vec<Route> {
    let route = |topic: &str, targets: Vec<String>| Route {
        topic: topic.to_owned(),
        targets,
        except: Vec::new(),
    };
    if let Some(name) = function(&targets.value) {
        held.push(format!(
            "line {}: function {name}() chooses the targets; write a rule for each",
            targets.line
        ));
        return vec![route(topic, Vec::new())];
    }
    let list = |items: &[Literal]| -> Vec<String> {
        items.iter().filter_map(Literal::plain).map(str::to_owned).collect()
    };
    match literal::parse(&targets.value) {
        Some(Literal::Dict(pairs)) => {
            let mut pairs: Vec<(String, Vec<String>)> = pairs
                .iter()
                .filter_map(|(key, value)| {
                    let targets = match value {
                        Literal::List(items) => list(items),
                        other => vec![other.plain()?.to_owned()],
                    };
                    Some((key.text()?.to_owned(), targets))
                })
                .collect();
            // The first that matches is told, in mqttwarn's order: the more levels the sooner.
            pairs.sort_by_cached_key(|(filter, _)| {
                let order = filter.replace('#', "\u{1}").replace('+', "\u{2}");
                std::cmp::Reverse((filter.split('/').count(), order))
            });
            most_specific(topic, pairs, held, part)
        }
        Some(Literal::List(items)) => {
            held.push(format!(
                "line {}: mqttwarn reads the list in brackets as one name and tells nobody; write targets = a:b, c:d",
                targets.line
            ));
            vec![route(topic, list(&items))]
        }
        _ => {
            let names = targets.value.split(',').map(str::trim).filter(|name| !name.is_empty());
            vec![route(topic, names.map(str::to_owned).collect())]
        }
    }
}

fn most_specific(
    topic: &str,
    pairs: Vec<(String, Vec<String>)>,
    held: &mut Vec<String>,
    part: &mut Part,
) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    let mut before: Vec<String> = Vec::new();
    for (filter, targets) in pairs {
        if !meet(topic, &filter) {
            part.done(format!(
                "target `{}` is never told: the section's topic is another",
                shown(&filter)
            ));
            continue;
        }
        let both = match (covers(topic, &filter), covers(&filter, topic)) {
            (true, _) => filter.clone(),
            (false, true) => topic.to_owned(),
            (false, false) => {
                held.push(format!(
                    "target `{}` and the section's topic meet in a part; write the topic of both",
                    shown(&filter)
                ));
                filter.clone()
            }
        };
        let except = before.iter().filter(|other| meet(other, &both)).cloned().collect();
        before.push(filter);
        routes.push(Route { topic: both, targets, except });
    }
    if routes.is_empty() {
        part.done("no target is for its topic, so mqttwarn tells nobody");
    }
    routes
}

/// CEL for: the topic matches this filter.
fn matches(filter: &str) -> String {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    if !filter.contains(['+', '#']) {
        return format!("topic == {}", quoted(filter));
    }
    let mut pattern = String::from("^");
    for (index, level) in filter.split('/').enumerate() {
        let slash = if index == 0 { "" } else { "/" };
        match level {
            "#" if index == 0 => pattern.push_str(".*"),
            "#" => pattern.push_str("(/.*)?"),
            "+" => pattern.push_str(&format!("{slash}[^/]*")),
            level => {
                pattern.push_str(slash);
                for c in level.chars() {
                    if !c.is_alphanumeric() && c.is_ascii() {
                        pattern.push('\\');
                    }
                    pattern.push(c);
                }
            }
        }
    }
    pattern.push('$');
    format!("topic.matches({})", quoted(&pattern))
}

fn cron(section: &Section, part: &mut Part) {
    for entry in &section.entries {
        let interval = entry.value.split(';').next().unwrap_or_default().trim();
        let each = match interval.parse::<f64>() {
            Ok(_) => format!("each {interval} seconds"),
            Err(_) => "now and then".to_owned(),
        };
        part.cannot(format!(
            "line {}: function {}() is called {each}; let the system's cron run what it does, and tell people with `watchbell send`",
            entry.line,
            shown(&entry.key)
        ));
    }
    if section.entries.is_empty() {
        part.done("is empty");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_condition_too() {
        assert_eq!(matches("a/b"), "topic == \"a/b\"");
        assert_eq!(matches("a.b/+/#"), "topic.matches(\"^a\\\\.b/[^/]*(/.*)?$\")");
        assert_eq!(matches("#"), "topic.matches(\"^.*$\")");
    }
}
