//! `[[rule]]` tables -> compiled rules.
//!
//! ```toml
//! [[rule]]
//! name       = "freezer-warm"                       # a-z, 0-9, - _ .; unique in all files
//! topic      = "site/{site}/freezer/{unit}/telemetry"  # MQTT filter; {name} captures one level
//! decode     = "json"                               # auto (default) | json | number | text | ...
//! when       = "payload.temp_c > -15.0"             # CEL; without it every publish is an alert
//! clear      = "payload.temp_c < -17.0"             # CEL; default: not `when`
//! key        = ["site", "unit"]                     # CEL or captures; default: all captures
//! severity   = "critical"                           # info | warning (default) | critical
//! title      = "{{ site }}"                         # headline, for channels that show one
//! text       = "{{ site }} {{ unit }}: {{ payload.temp_c }}"
//! text_clear = "cold again after {{ duration }}"    # without it nobody hears that it is over
//! to         = ["ana"]                              # contacts
//! by         = ["push", "sms"]                      # channels in order; default: the contact's
//! expires_in = "4h"                                 # how long a message may wait
//! ```
//!
//! Loading is all or nothing and reports every problem of every file at once.

mod compile;
mod written;

use std::collections::HashMap;
use std::sync::Arc;

use self::written::Written;
use super::Config;
use super::lower;
use super::set::{Known, Rules};
use super::template;
use crate::model::{Channel, is_name};
use crate::problem::{Problem, Step, TomlFile, closest, path_text, read};
use crate::topic::{TopicFilter, TopicLimits};

/// Names that a capture cannot have: words of CEL and of templates.
const RESERVED: &[&str] = &[
    "and",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "is",
    "let",
    "loop",
    "namespace",
    "none",
    "not",
    "null",
    "optional",
    "or",
    "package",
    "previous",
    "return",
    "self",
    "true",
    "var",
    "void",
    "while",
];

impl Rules {
    /// Compiles the `[[rule]]` tables of all files. `contacts` is `None` where it is not known who
    /// there is, because a file could not be read: then nobody in `to` is missed.
    ///
    /// # Errors
    /// Every problem of every file, in the order of the files.
    pub fn load(
        files: &[TomlFile],
        contacts: Option<&[Known]>,
        config: &Config,
    ) -> Result<Self, Vec<Problem>> {
        let mut loader = Loader {
            rules: Self::empty(config),
            contacts,
            by_name: contacts
                .iter()
                .flat_map(|contacts| contacts.iter())
                .map(|contact| (contact.name.as_ref(), contact))
                .collect(),
            config,
            places: HashMap::new(),
            problems: Vec::new(),
        };
        for file in files {
            loader.file(file);
        }
        if loader.problems.is_empty() { Ok(loader.rules) } else { Err(loader.problems) }
    }
}

struct Loader<'a> {
    rules: Rules,
    contacts: Option<&'a [Known]>,
    by_name: HashMap<&'a str, &'a Known>,
    config: &'a Config,
    /// Where each name was taken: file and number. The line is only looked up for a problem.
    places: HashMap<Arc<str>, (&'a TomlFile, usize)>,
    problems: Vec<Problem>,
}

/// One table while it is read.
struct Entry<'a> {
    file: &'a TomlFile,
    index: usize,
    /// `rule "name"`, or its number where it has no name.
    who: String,
    /// With their lines, to tell them from top to bottom.
    problems: Vec<(usize, Problem)>,
}

impl Entry<'_> {
    fn path(&self, below: &[Step]) -> Vec<Step> {
        let mut path = vec![Step::from("rule"), Step::from(self.index)];
        path.extend_from_slice(below);
        path
    }

    fn problem(&mut self, below: &[Step], what: &str) {
        // The number of an element says less than its line does.
        let named = below.iter().rposition(|step| matches!(step, Step::Key(_)));
        let text = match named.and_then(|last| below.get(..=last)) {
            Some(path) => format!("{}: `{}`: {what}", self.who, path_text(path)),
            None => format!("{}: {what}", self.who),
        };
        let line = self.file.line(&self.path(below));
        let place = format!("{}:{line}", self.file.name());
        self.problems.push((line, Problem::new(place, text)));
    }

    fn problems(&mut self, below: &[Step], all: Vec<String>) {
        for what in all {
            self.problem(below, &what);
        }
    }

    /// Of the problems after the first `before`: a name that is unknown because it is written
    /// further down, or in the place where it is looked for.
    fn say_written_later(&mut self, before: usize, later: &[&str]) {
        for (_, problem) in self.problems.iter_mut().skip(before) {
            for name in later {
                if let Some((head, _)) = problem.what.split_once(&format!("unknown name `{name}`;"))
                {
                    problem.what =
                        format!("{head}`{name}` is not known here yet; write it above this");
                }
            }
        }
    }

    /// A word of a closed set.
    fn word<T: Copy>(
        &mut self,
        below: &[Step],
        word: &str,
        known: &[(&'static str, T)],
    ) -> Option<T> {
        if let Some((_, value)) = known.iter().find(|(name, _)| *name == word) {
            return Some(*value);
        }
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let what = match closest(word, &names) {
            Some(near) => format!("unknown word `{word}`; did you mean `{near}`?"),
            None => format!("unknown word `{word}`; known are {}", names.join(", ")),
        };
        self.problem(below, &what);
        None
    }
}

impl<'a> Loader<'a> {
    fn file(&mut self, file: &'a TomlFile) {
        let Some(tables) = file.table().get("rule") else {
            return;
        };
        let Some(tables) = tables.as_array() else {
            let what = "rule: write [[rule]] with two brackets, once for each rule";
            self.problems.push(file.problem(&["rule".into()], what));
            return;
        };
        for (index, table) in tables.iter().enumerate() {
            if self.rules.len() >= self.config.rules_max {
                let what =
                    format!("more than {} rules; raise rules.rules_max", self.config.rules_max);
                let path = [Step::from("rule"), Step::from(index)];
                self.problems.push(file.problem(&path, what));
                return;
            }
            self.table(file, index, table);
        }
    }

    fn table(&mut self, file: &'a TomlFile, index: usize, table: &toml::Value) {
        let name = table.get("name").and_then(toml::Value::as_str);
        let mut entry = Entry {
            file,
            index,
            who: match name {
                Some(name) => format!("rule \"{name}\""),
                None => format!("rule {}", index + 1),
            },
            problems: Vec::new(),
        };
        if !table.is_table() {
            entry.problem(&[], "write [[rule]], then its keys, one a line");
            self.problems.extend(entry.problems.into_iter().map(|(_, problem)| problem));
            return;
        }
        // What is left after the faulty keys are out is read all the same, so that its problems are
        // told in the same run.
        let mut table = table.clone();
        let mut faulty: Vec<String> = Vec::new();
        let written = loop {
            let faults = match read::<Written>(table.clone()) {
                Ok(written) => break written,
                Err(faults) => faults,
            };
            let mut removed = false;
            for fault in faults {
                let what = in_words(&fault.what);
                entry.problem(&fault.path, &what);
                if let (Some(Step::Key(key)), Some(table)) =
                    (fault.path.first(), table.as_table_mut())
                {
                    removed |= table.remove(key).is_some();
                    faulty.push(key.clone());
                }
            }
            if !removed {
                break Written::default();
            }
        };
        for (key, is_there, what) in [
            (
                "name",
                written.name.is_some(),
                "`name` is missing; messages and metrics are told by it",
            ),
            (
                "topic",
                written.topic.is_some() || written.on.is_some(),
                "`topic` is missing; write an MQTT filter, as in topic = \"site/{site}/door\"",
            ),
            (
                "to",
                written.to.is_some(),
                "`to` is missing; name who hears of it, as in to = [\"ana\"], or write to = [] to keep it on record only",
            ),
        ] {
            if !is_there && !faulty.iter().any(|other| other == key) {
                entry.problem(&[], what);
            }
        }
        let rule = self.compile(&mut entry, &written, &table);
        if entry.problems.is_empty()
            && let Some(rule) = rule
        {
            self.rules.add(rule);
        }
        entry.problems.sort_by_key(|(line, _)| *line);
        let problems = entry.problems.into_iter().map(|(_, problem)| problem);
        self.problems.extend(problems);
    }

    fn name(&mut self, entry: &mut Entry<'a>, name: Option<&str>) -> Option<Arc<str>> {
        let name = name?;
        let below = ["name".into()];
        if !is_name(name) {
            let what = "a name has 1 to 64 of a-z, 0-9, - _ . and nothing else";
            entry.problem(&below, what);
            return None;
        }
        if let Some((file, index)) = self.places.get(name) {
            let line = file.line(&["rule".into(), (*index).into(), "name".into()]);
            let what =
                format!("the name is taken by the rule at {}:{line}; choose another", file.name());
            entry.problem(&below, &what);
            return None;
        }
        let name: Arc<str> = name.into();
        self.places.insert(Arc::clone(&name), (entry.file, entry.index));
        Some(name)
    }

    fn contacts(&self, entry: &mut Entry<'_>, written: &[String]) -> Vec<Arc<str>> {
        let mut to: Vec<Arc<str>> = Vec::new();
        let Some(contacts) = self.contacts else {
            return to;
        };
        for (index, name) in written.iter().enumerate() {
            let below = ["to".into(), index.into()];
            let Some(known) = self.by_name.get(name.as_str()) else {
                let names: Vec<&str> = contacts.iter().map(|c| c.name.as_ref()).collect();
                let what = match closest(name, &names) {
                    Some(near) => format!("there is no contact `{name}`; did you mean `{near}`?"),
                    None => format!("there is no contact `{name}`; add a [[contact]] of that name"),
                };
                entry.problem(&below, &what);
                continue;
            };
            if to.contains(&known.name) {
                entry.problem(&below, &format!("contact `{name}` stands there twice"));
            } else {
                to.push(Arc::clone(&known.name));
            }
        }
        to
    }

    /// A contact that no channel of `by` reaches would never be told.
    fn reachable(
        &self,
        entry: &mut Entry<'_>,
        to: &[Arc<str>],
        by: &[Channel],
        written: Option<&[String]>,
    ) {
        if by.is_empty() || written.map(<[String]>::len) != Some(by.len()) {
            return;
        }
        for name in to {
            let reached = self
                .by_name
                .get(name.as_ref())
                .is_none_or(|contact| by.iter().any(|channel| contact.channels.contains(channel)));
            if !reached {
                let words: Vec<&str> = by.iter().map(|channel| channel.as_str()).collect();
                let what = format!(
                    "contact `{name}` has no address for {}; give it one, or name another channel",
                    words.join(", ")
                );
                entry.problem(&["by".into()], &what);
            }
        }
    }
}

/// What serde expects, as people write it.
fn in_words(what: &str) -> String {
    what.replace("expected a sequence", "expected a list, as in [\"...\"]")
        .replace("expected a string", "expected text in quotes")
        .replace("expected a boolean", "expected true or false without quotes")
        .replace("expected a map", "expected a table, as in { name = \"...\" }")
}

fn channels(entry: &mut Entry<'_>, written: &[String]) -> Vec<Channel> {
    let known: Vec<_> = Channel::ALL.iter().map(|c| (c.as_str(), *c)).collect();
    let mut by = Vec::new();
    for (index, word) in written.iter().enumerate() {
        let below = ["by".into(), index.into()];
        if let Some(channel) = entry.word(&below, word, &known) {
            if by.contains(&channel) {
                entry.problem(&below, &format!("channel `{channel}` stands there twice"));
            } else {
                by.push(channel);
            }
        }
    }
    by
}

fn filter(entry: &mut Entry<'_>, topic: Option<&str>) -> Option<TopicFilter> {
    let below = ["topic".into()];
    let filter = match TopicFilter::parse_with_captures(topic?, TopicLimits::default()) {
        Ok(filter) => filter,
        Err(error) => {
            entry.problem(&below, &error.to_string());
            return None;
        }
    };
    let mut good = true;
    for (_, name) in filter.captures() {
        let name = name.as_ref();
        let taken = lower::NAMES.contains(&name)
            || template::NAMES.contains(&name)
            || lower::NAMES_EACH.contains(&name)
            || RESERVED.contains(&name);
        if taken {
            let what = format!(
                "a capture cannot be called `{name}`, which means something else; choose another name"
            );
            entry.problem(&below, &what);
            good = false;
        }
    }
    good.then_some(filter)
}

#[cfg(test)]
mod tests {
    use super::super::set::KeyPart;
    use super::*;
    use crate::model::Severity;
    use crate::payload::Decode;

    fn load(text: &str) -> Result<Rules, String> {
        load_all(&[("rules/a.toml", text)], &Config::default())
    }

    fn load_all(files: &[(&str, &str)], config: &Config) -> Result<Rules, String> {
        let files: Vec<TomlFile> =
            files.iter().map(|(name, text)| TomlFile::parse(*name, *text).expect("TOML")).collect();
        let contact = |name: &str, channels: &[Channel]| Known {
            name: name.into(),
            channels: channels.to_vec(),
        };
        let contacts =
            [contact("ana", &[Channel::Push, Channel::Sms]), contact("ben", &[Channel::Sms])];
        Rules::load(&files, Some(&contacts), config).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n")
        })
    }

    fn problems(text: &str) -> String {
        load(text).expect_err("it is wrong")
    }

    #[test]
    fn a_full_rule_is_read() {
        let rules = load(
            r#"
[[rule]]
name = "freezer-warm"
topic = "site/{site}/freezer/{unit}/telemetry"
decode = "json"
when = "payload.temp_c > -15.0"
clear = "payload.temp_c < -17.0"
key = ["site", "payload.sensor"]
severity = "critical"
title = "{{ site }}"
text = "{{ unit }}: {{ payload.temp_c }}"
text_clear = "cold again after {{ duration }}"
to = ["ana", "ben"]
by = ["sms", "push"]
expires_in = "4h"

[[rule]]
name = "panic"
topic = "panic/+"
to = []
"#,
        )
        .expect("it is right");
        let [warm, panic] = rules.rules() else {
            panic!("{rules:?}");
        };
        assert_eq!(warm.name.as_ref(), "freezer-warm");
        assert_eq!(warm.codec.how, Decode::Json);
        assert_eq!(warm.severity, Severity::Critical);
        assert_eq!(warm.policy.by.as_ref(), [Channel::Sms, Channel::Push]);
        assert_eq!(warm.policy.to.len(), 2);
        assert_eq!(warm.policy.expires_in, Some(std::time::Duration::from_secs(14_400)));
        assert!(matches!(warm.key.as_slice(), [KeyPart::Capture(_), KeyPart::Expression(_)]));
        assert!(panic.is_event() && panic.key.is_empty() && panic.policy.to.is_empty());
        assert_eq!((panic.codec.how, panic.severity), (Decode::Auto, Severity::Warning));
    }

    /// One wrong file a case; what an operator reads is the specification.
    #[test]
    fn a_wrong_file_says_where_what_and_what_next() {
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "typo"
topic = "a/{unit}"
wehn = "payload > 1"
severty = "critical"
to = ["ana"]
"#), @r#"
        rules/a.toml:5: rule "typo": `wehn`: unknown key; did you mean `when`?
        rules/a.toml:6: rule "typo": `severty`: unknown key; did you mean `severity`?
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
when = "payload > 1"
"#), @r#"
        rules/a.toml:2: rule 1: `name` is missing; messages and metrics are told by it
        rules/a.toml:2: rule 1: `topic` is missing; write an MQTT filter, as in topic = "site/{site}/door"
        rules/a.toml:2: rule 1: `to` is missing; name who hears of it, as in to = ["ana"], or write to = [] to keep it on record only
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "Oven hot"
topic = "oven/#/temp"
when = 5
to = "ana"
"#), @r#"
        rules/a.toml:3: rule "Oven hot": `name`: a name has 1 to 64 of a-z, 0-9, - _ . and nothing else
        rules/a.toml:4: rule "Oven hot": `topic`: `#` must be the last level, alone in it
        rules/a.toml:5: rule "Oven hot": `when`: invalid type: integer `5`, expected text in quotes
        rules/a.toml:6: rule "Oven hot": `to`: invalid type: string "ana", expected a list, as in ["..."]
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "words"
topic = "a"
decode = "jsn"
severity = "urgent"
by = ["smss", "fax", "sms", "sms"]
expires_in = "30"
to = ["anna", "ben", "ben", "zoe"]
"#), @r#"
        rules/a.toml:5: rule "words": `decode`: unknown word `jsn`; did you mean `json`?
        rules/a.toml:6: rule "words": `severity`: unknown word `urgent`; known are info, warning, critical
        rules/a.toml:7: rule "words": `by`: unknown word `smss`; did you mean `sms`?
        rules/a.toml:7: rule "words": `by`: unknown word `fax`; known are sms, whatsapp, push, webhook
        rules/a.toml:7: rule "words": `by`: channel `sms` stands there twice
        rules/a.toml:8: rule "words": `expires_in`: `30` has no unit; write 30s for seconds (units are ms, s, m, h, d)
        rules/a.toml:9: rule "words": `to`: there is no contact `anna`; did you mean `ana`?
        rules/a.toml:9: rule "words": `to`: contact `ben` stands there twice
        rules/a.toml:9: rule "words": `to`: there is no contact `zoe`; add a [[contact]] of that name
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "captures"
topic = "site/{payload}/{for}/{x}"
when = "x == '1'"
to = ["ana"]

[[rule]]
name = "braces"
topic = "site/{x"
when = "nothing is known of x"
to = ["ana"]
"#), @r#"
        rules/a.toml:4: rule "captures": `topic`: a capture cannot be called `payload`, which means something else; choose another name
        rules/a.toml:4: rule "captures": `topic`: a capture cannot be called `for`, which means something else; choose another name
        rules/a.toml:10: rule "braces": `topic`: a capture is written {name} and fills its level; names have letters, digits and _
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "expressions"
topic = "site/{site}"
when = "paylod.temp > 5 && sites == 'kiel'"
clear = "payload.temp <"
key = ["site", "payload.id +", "nit"]
to = ["ana"]
"#), @r#"
        rules/a.toml:5: rule "expressions": `when`: unknown name `paylod`; did you mean `payload`?
        rules/a.toml:5: rule "expressions": `when`: unknown name `sites`; did you mean `site`?
        rules/a.toml:6: rule "expressions": `clear`: column 15: mismatched input the end: something is missing there; complete it
        rules/a.toml:7: rule "expressions": `key`: column 13: mismatched input the end: something is missing there; complete it
        rules/a.toml:7: rule "expressions": `key`: unknown name `nit`; did you mean `site`?
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "loops"
topic = "a"
when = "payload.a.exists(x, payload.b.all(y, x == y))"
to = ["ana"]
"#), @r#"rules/a.toml:5: rule "loops": `when`: a loop (all, exists, map, ...) inside a loop is not allowed: a device could make it run for ever"#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "texts"
topic = "site/{site}"
text = "{{ sit }} has {{ payload.temp"
title = "{{ sit }} {{ duration }}"
when = "payload > 1"
text_clear = "{{ site | uper }} {{ duration }}"
to = ["ana"]
"#), @r#"
        rules/a.toml:5: rule "texts": `text`: syntax error: unexpected end of input, expected end of variable block
        rules/a.toml:6: rule "texts": `title`: unknown name `sit`; did you mean `site`?
        rules/a.toml:8: rule "texts": `text_clear`: unknown filter `uper`; did you mean `upper`?
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "event"
topic = "a"
clear = "payload < 1"
text_clear = "over"
to = ["ana"]
expires_in = "0s"
"#), @r#"
        rules/a.toml:5: rule "event": `clear`: there is nothing to clear: a rule without `when` raises an alert at each publish; give it a `when`
        rules/a.toml:6: rule "event": `text_clear`: there is nothing to clear: a rule without `when` raises an alert at each publish; give it a `when`
        rules/a.toml:8: rule "event": `expires_in`: a message that may not wait is never sent; write at least 1s
        "#);
        insta::assert_snapshot!(problems(r#"
[[rule]]
name = "deaf"
topic = "a"
to = ["ana", "ben"]
by = ["push"]
"#), @r#"rules/a.toml:6: rule "deaf": `by`: contact `ben` has no address for push; give it one, or name another channel"#);
        insta::assert_snapshot!(problems("[rule]\nname = 'x'\n"), @r#"rules/a.toml:1: rule: write [[rule]] with two brackets, once for each rule"#);
        insta::assert_snapshot!(problems("rule = [1]\n"), @r#"rules/a.toml:1: rule 1: write [[rule]], then its keys, one a line"#);
    }

    #[test]
    fn a_name_is_taken_once_in_all_files() {
        let text = "\n[[rule]]\ntopic = 'a'\nto = []\nname = 'x'\n";
        let found = load_all(&[("rules/a.toml", text), ("rules/b.toml", text)], &Config::default());
        insta::assert_snapshot!(found.expect_err("taken"), @r#"rules/b.toml:5: rule "x": `name`: the name is taken by the rule at rules/a.toml:5; choose another"#);
    }

    #[test]
    fn limits_are_kept() {
        let rule = |name: &str, when: &str| {
            format!("[[rule]]\nname = '{name}'\ntopic = 'a'\nwhen = \"{when}\"\nto = []\n")
        };
        let config = Config { rules_max: 1, expression_bytes_max: 20, ..Config::default() };
        let text = rule("a", "payload > 1") + &rule("b", "payload > 1");
        let found = load_all(&[("a.toml", &text)], &config).expect_err("two");
        assert_eq!(found, "a.toml:6: more than 1 rules; raise rules.rules_max");
        let text = rule("a", "payload > 100000000000000");
        let found = load_all(&[("a.toml", &text)], &config).expect_err("long");
        assert!(found.contains("`when`: it is longer than 20 bytes"), "{found}");
    }

    #[test]
    fn a_topic_finds_its_rules_in_the_order_of_the_files() {
        let rule = |name: &str, topic: &str| {
            format!("[[rule]]\nname = '{name}'\ntopic = '{topic}'\nto = []\n")
        };
        let text = rule("d", "a/b") + &rule("c", "a/#") + &rule("b", "x") + &rule("a", "{x}/b");
        let rules = load(&text).expect("right");
        let names = |topic: &str| -> Vec<String> {
            let topic =
                crate::topic::TopicName::parse(topic, TopicLimits::default()).expect("valid");
            let matched = rules.matches(&topic);
            let Some(matched) = matched else { return Vec::new() };
            let names = rules.matched(&matched).map(|rule| rule.name.to_string());
            names.collect()
        };
        assert_eq!(names("a/b"), ["d", "c", "a"]);
        assert_eq!(names("x"), ["b"]);
        assert!(names("y").is_empty());
        assert_eq!(rules.len(), 4);
        assert!(!rules.is_empty() && Rules::empty(&Config::default()).is_empty());
    }
}
