//! Notify's part of a rule set: contacts, recurring silences, what suppresses what, storms.

use super::Config;
use super::contact::Directory;
use super::silence::{self, Recurring};
use super::storm::{self, StormRule};
use super::suppress::{self, Suppress};
use crate::problem::{Problem, TomlFile};

/// Whom to tell, and what holds a telling back. Never changes; a reload makes another.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Everybody who can be told.
    pub directory: Directory,
    /// `[[silence]]`.
    pub silences: Vec<Recurring>,
    /// `[[suppress]]`.
    pub suppress: Vec<Suppress>,
    /// `[storm]`.
    pub storm: Option<StormRule>,
}

impl Book {
    /// Reads `[[contact]]`, `[[silence]]`, `[[suppress]]` and `[storm]` of all files. Whatever can be
    /// read is in the book, even beside problems.
    pub fn load(files: &[TomlFile], config: &Config) -> (Self, Vec<Problem>) {
        let (directory, mut problems) = Directory::load(files, config);
        let mut book = Self { directory, ..Self::default() };
        for file in files {
            silence::read(file, config, &mut book.silences, &mut problems);
            suppress::read(file, config, &mut book.suppress, &mut problems);
            storm::read(file, &mut book.storm, &mut problems);
        }
        (book, problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> (Book, String) {
        let file = TomlFile::parse("rules/telling.toml", text).expect("TOML");
        let (book, problems) = Book::load(&[file], &Config::default());
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        (book, lines.join("\n"))
    }

    #[test]
    fn every_problem_of_every_table_at_once_with_its_remedy() {
        let (_, problems) = load(
            r#"
[[silence]]
name = "inventory"
rule = "freezer-*"

[[silence]]
name = "inventory"
by = "ana"
reason = "counting"
every = { days = ["mo"], from = "22", to = "06:00", zone = "Europe/Berln" }

[[silence]]
name = "holidays"
topic = "a/#/b"
by = ""
reason = "closed"
dates = ["24.12.2026"]

[[silence]]
name = "works"
rule = "*"
by = "ana"
reason = "works"
from = "2026-12-24T18:00"
until = "tomorrow"
untill = 3

[[silence]]
name = "back"
rule = "*"
by = "ana"
reason = "works"
from = "2026-12-24T18:00:00Z"
until = "2026-12-23T18:00:00Z"

[[suppress]]
while = "gateway-down"
rules = ["gateway-down"]

[[suppress]]
rule = "x"

[[suppress]]
while = "a-*"
rules = ["b-*"]

[[suppress]]
while = "b-x"
rules = ["a-*"]

[storm]
count = 0
within = "30"
level = 2

[[contact]]
name = "ana"
sms = "+4915550100001"
quiet = { from = "22:00", to = "06:00", except = ["crtical"] }
max = "20 an hour"

[[contact]]
name = "ben"
sms = "+4915550100002"
zone = "Europe/Berlin"
quiet = { from = "22:00", too = "06:00" }
max = { count = 0, except = ["critical"] }
"#,
        );
        insta::assert_snapshot!(problems, @r#"
    rules/telling.toml:59: contact "ana": `quiet.except`: unknown word `crtical`; did you mean `critical`?
    rules/telling.toml:59: contact "ana": `zone` is missing; say where it is that time, as zone = "Europe/Berlin"
    rules/telling.toml:60: contact "ana": `max`: write how many in what time, as "20/1h"
    rules/telling.toml:66: contact "ben": `quiet.too`: unknown key; did you mean `to`?
    rules/telling.toml:66: contact "ben": `to` is missing; write a time of day, as "22:00"
    rules/telling.toml:67: contact "ben": `per` is missing from `max`; write { count = 20, per = "1h" }
    rules/telling.toml:67: contact "ben": `max.count`: expected a whole number from 1 to 1000000
    rules/telling.toml:2: silence "inventory": `by` is missing; say who wrote it
    rules/telling.toml:2: silence "inventory": `reason` is missing; say why, for those who wonder
    rules/telling.toml:2: silence "inventory": it has no end; give it `every`, `dates`, or `from` and `until`
    rules/telling.toml:6: silence "inventory": it covers everything; say what, by rule, key, topic, severities or label (rule = "*" if everything is meant)
    rules/telling.toml:10: silence "inventory": `every.days`: unknown word `mo`; did you mean `mon`?
    rules/telling.toml:10: silence "inventory": `every.from`: not a time of day; write hours and minutes, as "22:00"
    rules/telling.toml:10: silence "inventory": `every.zone`: unknown time zone `Europe/Berln`; write one of the IANA names, as "Europe/Berlin"
    rules/telling.toml:14: silence "holidays": `topic`: `#` must be the last level, alone in it
    rules/telling.toml:15: silence "holidays": `by`: it is empty
    rules/telling.toml:17: silence "holidays": `dates`: `24.12.2026` is not a date; write year, month and day: 2026-12-24
    rules/telling.toml:12: silence "holidays": `zone` is missing; say where it is that date, as zone = "Europe/Berlin"
    rules/telling.toml:26: silence "works": `untill`: unknown key; did you mean `until`?
    rules/telling.toml:24: silence "works": `from`: it has no offset; add one, or say `zone`, as zone = "Europe/Berlin"
    rules/telling.toml:25: silence "works": `until`: not a point in time; write it as "2026-12-24T18:00", or with an offset, as "2026-12-24T18:00:00+01:00"
    rules/telling.toml:34: silence "back": `until`: it is not after `from`
    rules/telling.toml:38: suppress 1: `rules`: `gateway-down` would hide itself; take it out of `rules`
    rules/telling.toml:41: suppress 2: `rule`: unknown key; did you mean `rules`?
    rules/telling.toml:40: suppress 2: `while` is missing; name the rule whose alert explains the others
    rules/telling.toml:40: suppress 2: `rules` is missing or empty; name those that are not told meanwhile, as rules = ["freezer-*"]
    rules/telling.toml:47: suppress 4: `b-x` and `a-*` would hide each other, and nobody would hear of either; let one of them be told
    rules/telling.toml:54: storm: `level`: unknown key; did you mean `levels`?
    rules/telling.toml:51: storm: `levels` is missing; write count = 20, levels = 2
    rules/telling.toml:52: storm: `count`: expected a whole number from 2 to 1000
    rules/telling.toml:53: storm: `within`: `30` has no unit; write 30s for seconds (units are ms, s, m, h, d)
    "#);
    }

    #[test]
    fn what_is_right_is_in_the_book() {
        let (book, problems) = load(
            r#"
[[contact]]
name = "ana"
sms = "+4915550100001"
zone = "Europe/Berlin"
quiet = { from = "22:00", to = "06:00", days = ["mon", "fri"], except = ["critical"] }
max = "20/1h"

[[silence]]
name = "inventory"
rule = "freezer-*"
key = "kiel/*"
topic = "site/+/freezer/#"
severities = ["info", "warning"]
label = { site = "kiel" }
by = "ana"
reason = "we count"
every = { days = ["mon"], from = "22:00", to = "06:00", zone = "Europe/Berlin" }

[[silence]]
name = "holidays"
rule = "door-open"
by = "ana"
reason = "closed"
zone = "Europe/Berlin"
dates = ["2026-12-24", 2026-12-31]

[[silence]]
name = "works"
rule = "*"
by = "ana"
reason = "works"
zone = "Europe/Berlin"
from = "2026-12-24T18:00"
until = 2026-12-25T18:00:00+01:00

[[suppress]]
while = "gateway-down"
rules = ["freezer-*"]
same = ["gateway"]

[storm]
count = 20
within = "30s"
levels = 2
"#,
        );
        assert_eq!(problems, "");
        assert_eq!((book.silences.len(), book.suppress.len()), (3, 1));
        assert!(book.storm.is_some());
        let ana = book.directory.contact("ana").expect("there");
        assert!(ana.quiet.is_some() && ana.max.is_some());
    }

    #[test]
    fn the_examples_of_the_page_load() {
        let mut blocks = Vec::new();
        for block in include_str!("../../docs/telling.md").split("```toml\n").skip(1) {
            blocks.push(block.split("```").next().expect("an end"));
        }
        let (book, problems) = load(&blocks.join("\n"));
        assert_eq!(problems, "");
        assert_eq!((blocks.len(), book.silences.len(), book.suppress.len()), (4, 3, 1));
    }
}
