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
        insta::assert_snapshot!(problems, @"");
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
}
