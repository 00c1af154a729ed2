//! What became of each section: converted, needs a hand, cannot be.
//!
//! Holds no address and no secret: it is shown on terminals and pasted into tickets.

use std::io::{self, Write};

use crate::cli::text::cut;

/// Longest name of a section that is shown whole, characters.
const NAME_WIDTH: usize = 80;

/// What became of a section; the worst that is said of it counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    /// It does here what it did there.
    #[default]
    Converted,
    /// Somebody has to do something.
    Hand,
    /// Watchbell does not do it.
    Cannot,
}

/// All that is said of one section.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) line: usize,
    pub(super) name: String,
    outcome: Outcome,
    lines: Vec<String>,
}

impl Part {
    pub(super) fn new(line: usize, name: &str) -> Self {
        Self { line, name: name.to_owned(), ..Self::default() }
    }

    /// What was made of it, or how that differs.
    pub(super) fn done(&mut self, what: impl Into<String>) {
        self.say(Outcome::Converted, what.into());
    }

    /// What somebody has to do.
    pub(super) fn hand(&mut self, what: impl Into<String>) {
        self.say(Outcome::Hand, what.into());
    }

    /// What is not done, and why.
    pub(super) fn cannot(&mut self, why: impl Into<String>) {
        self.say(Outcome::Cannot, why.into());
    }

    fn say(&mut self, outcome: Outcome, what: String) {
        self.outcome = self.outcome.max(outcome);
        if !self.lines.contains(&what) {
            self.lines.push(what);
        }
    }
}

/// What became of a file.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// What the file is called.
    pub(super) file: String,
    pub(super) parts: Vec<Part>,
}

impl Report {
    /// Whether nobody has to do anything more.
    pub(super) fn is_whole(&self) -> bool {
        self.count(Outcome::Converted) == self.parts.len()
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.parts.iter().filter(|part| part.outcome == outcome).count()
    }

    /// Writes it, in the order of what is to be done and then of the file.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for (outcome, title) in [
            (Outcome::Converted, "converted"),
            (Outcome::Hand, "needs a hand"),
            (Outcome::Cannot, "cannot be converted"),
        ] {
            let count = self.count(outcome);
            if count == 0 {
                continue;
            }
            writeln!(out, "{title}: {count}")?;
            let mut parts: Vec<&Part> =
                self.parts.iter().filter(|part| part.outcome == outcome).collect();
            parts.sort_by_key(|part| part.line);
            for part in parts {
                let name = cut(&part.name, NAME_WIDTH);
                writeln!(out, "  {}:{}: {name}", self.file, part.line)?;
                for line in &part.lines {
                    writeln!(out, "    {}", cut(line, 400))?;
                }
            }
        }
        Ok(())
    }
}
