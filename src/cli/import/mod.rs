//! `watchbell import`: what another tool was told, as rules and configuration.
//!
//! From mqttwarn (0.36): [`ini`] reads the file, [`literal`] its values, [`services`] and [`defaults`]
//! make contacts, providers and the upstream, [`sections`] the rules with the texts of [`mod@format`], and
//! [`report`] says what became of each section. Everything is checked before it is written, by the same
//! code that loads it; a rule that would not load, or not do what it did, is written as comments.
//!
//! Writes into the directory that it is told, replaces nothing without being told, starts nothing. No
//! secret of the file is written or shown.

mod defaults;
mod format;
mod ini;
mod literal;
mod report;
mod sections;
mod services;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, Subcommand};

use self::defaults::Broker;
use self::ini::Ini;
use self::report::{Part, Report};
use self::sections::{Rule, Sections, Templates};
use self::services::Services;
use super::{ByHand, Context};
use crate::clock::Clock;
use crate::config::layers::{FileLayer, Layers};
use crate::intake::ruleset::{Limits, RuleSet};
use crate::problem::{Problem, TomlFile};

const EXAMPLES: &str = "\
Examples:
  watchbell import mqttwarn /etc/mqttwarn/mqttwarn.ini
  watchbell import mqttwarn mqttwarn.ini --out /srv/watchbell --force

Writes watchbell.toml and rules/mqttwarn-rules.toml, and says what became of each section. Exit code
3 where somebody has to do something by hand. docs/import.md says how each thing is converted.";

/// The largest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The largest template that is read, bytes; a larger one would not load.
const TEMPLATE_BYTES_MAX: u64 = 16_384;

/// Rules and configuration from another tool's
#[derive(Args)]
pub(super) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Subcommand)]
enum From {
    /// From an mqttwarn.ini
    Mqttwarn(Mqttwarn),
}

/// From an mqttwarn.ini
#[derive(Args)]
#[command(after_help = EXAMPLES)]
struct Mqttwarn {
    /// The mqttwarn.ini
    file: PathBuf,
    /// Where to write
    #[arg(long, value_name = "DIR", default_value = "imported")]
    out: PathBuf,
    /// Replace what was imported before
    #[arg(long)]
    force: bool,
}

/// What a file comes to.
struct Imported {
    config: String,
    rules: String,
    report: Report,
}

impl Import {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        match self.from {
            From::Mqttwarn(mqttwarn) => mqttwarn.run(context),
        }
    }
}

impl Mqttwarn {
    fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let shown = self.file.display().to_string();
        let text =
            read(&self.file, FILE_BYTES_MAX).with_context(|| format!("cannot read {shown}"))?;
        let ini = ini::parse(&text);
        if ini.sections.is_empty() {
            bail!("{shown}: there is no [section] in it; is it an mqttwarn.ini?");
        }
        let templates = self.file.parent().unwrap_or(Path::new("")).join("templates");
        let template = |name: &str| template(&templates, name);
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let imported = convert(&name, &ini, &template, &context.clock)?;
        let rules_dir = self.out.join("rules");
        let files = [
            (self.out.join("watchbell.toml"), &imported.config),
            (rules_dir.join("mqttwarn-rules.toml"), &imported.rules),
        ];
        if !self.force
            && let Some((path, _)) = files.iter().find(|(path, _)| path.symlink_metadata().is_ok())
        {
            bail!(
                "{} is there already; name another directory with --out, or replace it with --force",
                path.display()
            );
        }
        std::fs::create_dir_all(&rules_dir)
            .with_context(|| format!("cannot make {}", rules_dir.display()))?;
        for (path, text) in &files {
            replace(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let out = context.out;
        imported.report.write(out)?;
        writeln!(
            out,
            "\nwritten: {}",
            files.each_ref().map(|(path, _)| path.display().to_string()).join(", ")
        )?;
        let config = self.out.join("watchbell.toml");
        writeln!(
            out,
            "next: watchbell check --config {} --rules-dir {}",
            config.display(),
            rules_dir.display()
        )?;
        if imported.report.is_whole() { Ok(()) } else { Err(ByHand.into()) }
    }
}

/// Reads a file that may have at most `bytes_max` bytes.
fn read(path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        bail!("it is larger than {bytes_max} bytes");
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        let line = before.filter(|byte| **byte == b'\n').count() + 1;
        anyhow!(
            "line {line} is not UTF-8, which mqttwarn does not read either; save the file as UTF-8"
        )
    })
}

/// A template of mqttwarn's, which lies in its own directory and nowhere else.
fn template(directory: &Path, name: &str) -> Option<String> {
    let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside || name.is_empty() {
        return None;
    }
    read(&directory.join(name), TEMPLATE_BYTES_MAX).ok()
}

/// Writes beside and renames: whoever reads meanwhile reads a whole file, and a link that stands there
/// is replaced, not followed.
fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = directory.join(format!(".{name}.new"));
    // Left by a run that was killed, or put there by somebody.
    drop(std::fs::remove_file(&beside));
    let mut file = File::options().write(true).create_new(true).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    Ok(())
}

/// The whole conversion; `file` is what the report calls it.
///
/// # Errors
/// What was made does not load: a fault of ours.
fn convert(
    file: &str,
    ini: &Ini,
    templates: Templates<'_>,
    clock: &Clock,
) -> anyhow::Result<Imported> {
    let mut parts: Vec<Part> = Vec::new();
    for refused in &ini.refused {
        let mut part = Part::new(refused.line, "a line");
        part.hand(refused.what.clone());
        parts.push(part);
    }
    let defaults = parts.len();
    let broker = Broker::read(ini, &mut parts);
    let services = Services::read(ini, &mut parts);
    let contacts = services.contact_tables();
    let knows = |line: &str| {
        rule_problems("", &format!("[[rule]]\nname = 'x'\ntopic = 'x'\nto = []\n{line}\n"))
            .is_empty()
    };
    let mut sections = Sections {
        file,
        services: &services,
        broker: &broker,
        templates,
        knows: &knows,
        names: BTreeSet::new(),
        rules: Vec::new(),
        topics: Vec::new(),
    };
    sections.read(ini, &mut parts);
    let rules = rules_file(file, &contacts, &mut sections.rules, &mut parts)?;

    let mut config =
        format!("# Imported from {}. See `watchbell import mqttwarn --help`.\n", comment(file));
    let tables: [&dyn Fn(bool) -> String; 2] =
        [&|secrets| services.provider_tables(secrets), &|secrets| {
            broker.tables(&sections.topics, secrets)
        }];
    for tables in tables {
        // What is secret, or lies on the disk of another machine, is looked for by `watchbell check`.
        let problems = config_problems(&tables(false), clock);
        let mut text = tables(true);
        if !problems.is_empty() {
            text = format!("\n{}", commented(&text));
            for problem in problems {
                parts[defaults].hand(format!("watchbell.toml, commented out: {}", problem.what));
            }
        }
        config.push_str(&text);
    }
    if let Some(problem) = config_toml_problem(&config) {
        bail!("what was made does not load: {problem}");
    }
    Ok(Imported { config, rules, report: Report { file: comment(file), parts } })
}

/// The rule file. Each rule is tried: what does not load is commented out.
fn rules_file(
    file: &str,
    contacts: &str,
    rules: &mut [Rule],
    parts: &mut [Part],
) -> anyhow::Result<String> {
    let mut text = format!(
        "# Imported from {}. What is commented out would not do what it did; the reason stands above it.\n",
        comment(file)
    );
    if !contacts.is_empty() {
        text.push_str(&format!("\n{contacts}"));
    }
    for rule in rules {
        let table = rule.table();
        let problems = rule_problems(contacts, &table);
        if rule.held.is_empty() {
            let who = format!("rule \"{}\": ", rule.name);
            let short = |what: String| {
                let what = what.strip_prefix(&who).unwrap_or(&what);
                what.split("; known here are").next().unwrap_or(what).to_owned()
            };
            rule.held = problems.into_iter().map(short).collect();
        }
        text.push_str(&format!("\n# {}\n", comment(&rule.comment)));
        if rule.held.is_empty() {
            text.push_str(&table);
            if let Some(part) = parts.get_mut(rule.part) {
                part.done(format!("rule \"{}\"", rule.name));
            }
            continue;
        }
        for why in &rule.held {
            text.push_str(&format!("# BY HAND: {}\n", comment(why)));
            if let Some(part) = parts.get_mut(rule.part) {
                part.hand(format!("rule \"{}\", commented out: {why}", rule.name));
            }
        }
        text.push_str(&commented(&table));
    }
    match rule_problems("", &text) {
        problems if problems.is_empty() => Ok(text),
        problems => bail!("what was made does not load: {}", problems.join("; ")),
    }
}

fn rule_problems(contacts: &str, rules: &str) -> Vec<String> {
    let found = TomlFile::parse("rules", format!("{contacts}\n{rules}"))
        .map_err(|problem| vec![problem])
        .and_then(|file| RuleSet::parse(&[file], &Limits::default()));
    found.err().unwrap_or_default().into_iter().map(|problem| problem.what).collect()
}

fn config_problems(text: &str, clock: &Clock) -> Vec<Problem> {
    let file = FileLayer::Text { name: "watchbell.toml".to_owned(), text: text.to_owned() };
    let layers = Layers { file, ..Layers::default() };
    crate::config::load(&layers, clock).err().unwrap_or_default()
}

fn config_toml_problem(text: &str) -> Option<Problem> {
    TomlFile::parse("watchbell.toml", text).err()
}

/// Text as TOML writes it, on one line.
fn toml_text(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Text that stays in its comment.
fn comment(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Each line as a comment.
fn commented(text: &str) -> String {
    text.lines().map(|line| format!("# {}\n", comment(line)).replace("# \n", "\n")).collect()
}

#[cfg(test)]
mod tests;
