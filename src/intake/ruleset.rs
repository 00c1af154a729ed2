//! The rule set in force: every `*.toml` of the rules directory, read as one.
//!
//! Loading is all or nothing, and tells every problem of every file at once. What is loaded never
//! changes; a reload makes another and swaps it in. Blocks on the disk: at the start, and off the
//! runtime's threads on a reload.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::trial;
use crate::model::{Channel, Target};
use crate::notify;
use crate::notify::book::Book;
use crate::problem::{Problem, Step, TomlFile, closest, unknown_key};
use crate::rules;
use crate::rules::set::{Known, Rules};

/// The tables that a rule file may hold.
const TABLES: &[&str] = &["rule", "contact", "silence", "suppress", "storm", "test"];

/// Rules and the contacts that they name.
#[derive(Debug)]
pub struct RuleSet {
    /// The compiled rules.
    pub rules: Rules,
    /// Who is told how, and when not.
    pub book: Book,
    /// How many files it came from.
    pub files: usize,
}

/// The bounds on a rule set.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// On files and rules.
    pub rules: rules::Config,
    /// On contacts.
    pub contacts: notify::Config,
}

impl RuleSet {
    /// No rules and no contacts.
    pub fn empty(limits: &Limits) -> Self {
        Self { rules: Rules::empty(&limits.rules), book: Book::default(), files: 0 }
    }

    /// Alerts that would reach nobody: for each rule the contacts none of whose channels, as the rule
    /// names them, leads to them. What does the sending is not known here: `objection` says why a
    /// target cannot be reached.
    pub fn unreached(&self, objection: impl Fn(&Target) -> Option<String>) -> Vec<String> {
        let mut found = Vec::new();
        for rule in self.rules.rules() {
            for name in &*rule.policy.to {
                let Ok(targets) = self.book.directory.targets(name, &rule.policy.by) else {
                    continue;
                };
                let why: Option<Vec<String>> = targets
                    .iter()
                    .map(|target| Some(format!("{} ({})", target.channel, objection(target)?)))
                    .collect();
                let Some(why) = why else { continue };
                found.push(format!(
                    "rule \"{}\": `{name}` is told by {}; mend that, or add another channel to `by` and to the contact",
                    rule.name,
                    why.join(" or ")
                ));
            }
        }
        found
    }

    /// Reads every `*.toml` directly in `dir`, in the order of their names; hidden files are not
    /// looked at. A directory that does not exist is a problem like any other: an alert that is
    /// never raised because a path is mistyped, or a mount is late, would be missed too late.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn load_dir(dir: &Path, limits: &Limits) -> Result<Self, Vec<Problem>> {
        let (files, problems) = read_dir(dir, limits)?;
        Self::build(&files, problems, limits)
    }

    /// The same, with the files, to be looked into further: their tests are no part of the set.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn load_dir_with_files(
        dir: &Path,
        limits: &Limits,
    ) -> Result<(Self, Vec<TomlFile>), Vec<Problem>> {
        let (files, problems) = read_dir(dir, limits)?;
        Ok((Self::build(&files, problems, limits)?, files))
    }

    /// The set that these files make.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn parse(files: &[TomlFile], limits: &Limits) -> Result<Self, Vec<Problem>> {
        Self::build(files, Vec::new(), limits)
    }

    fn build(
        files: &[TomlFile],
        mut problems: Vec<Problem>,
        limits: &Limits,
    ) -> Result<Self, Vec<Problem>> {
        // Contacts may stand in what could not be read; nobody is missed on that ground.
        let complete = problems.is_empty() && !files.iter().any(has_mistyped_contacts);
        problems.extend(files.iter().flat_map(unknown_tables));
        let (book, contact_problems) = Book::load(files, &limits.contacts);
        let known: Vec<Known> = book
            .directory
            .contacts()
            .iter()
            .map(|contact| Known {
                name: contact.name.clone(),
                channels: if contact_problems.is_empty() {
                    contact.targets.iter().map(|t| t.channel).collect()
                } else {
                    Channel::ALL.to_vec()
                },
            })
            .collect();
        problems.extend(contact_problems);
        if complete {
            problems.extend(no_fallback(&known, &limits.contacts.fallback));
        }
        // A test that fails is no reason not to load; one that makes no sense is.
        problems.extend(trial::read::read(files, complete).1);
        match Rules::load(files, complete.then_some(&known), &limits.rules) {
            Ok(rules) if problems.is_empty() => Ok(Self { rules, book, files: files.len() }),
            Ok(_) => Err(in_order(problems)),
            Err(rule_problems) => {
                problems.extend(rule_problems);
                Err(in_order(problems))
            }
        }
    }
}

/// Who is to hear of the unreached, and is no contact: found out now, and not when it matters.
fn no_fallback(known: &[Known], fallback: &[String]) -> Vec<Problem> {
    let names: Vec<&str> = known.iter().map(|contact| contact.name.as_ref()).collect();
    let missing = fallback.iter().filter(|name| !names.contains(&name.as_str()));
    missing
        .map(|name| {
            let near = closest(name, &names);
            let hint = near.map_or_else(
                || "add a [[contact]] of that name to the rules".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            Problem::new("notify.fallback", format!("there is no contact `{name}`; {hint}"))
        })
        .collect()
}

/// The files of a directory that are TOML, and what is wrong with the others.
fn read_dir(dir: &Path, limits: &Limits) -> Result<(Vec<TomlFile>, Vec<Problem>), Vec<Problem>> {
    let paths = match toml_files(dir) {
        Ok(paths) => paths,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = "there is no such directory, so there are no rules; make it, or name another with --rules-dir";
            return Err(vec![Problem::new(dir.display().to_string(), what)]);
        }
        Err(error) => {
            let what = format!("cannot read the directory: {error}");
            return Err(vec![Problem::new(dir.display().to_string(), what)]);
        }
    };
    if paths.len() > limits.rules.files_max {
        let what = format!(
            "holds {} rule files, more than {}; raise rules.files_max",
            paths.len(),
            limits.rules.files_max
        );
        return Err(vec![Problem::new(dir.display().to_string(), what)]);
    }
    let mut files = Vec::new();
    let mut problems = Vec::new();
    for path in paths {
        let name = path.display().to_string();
        let read = read_bounded(&path, limits.rules.file_bytes_max)
            .map_err(|what| Problem::new(name.clone(), what))
            .and_then(|text| TomlFile::parse(name, text));
        match read {
            Ok(file) => files.push(file),
            Err(problem) => problems.push(problem),
        }
    }
    Ok((files, problems))
}

/// By file and line, as they are mended.
fn in_order(mut problems: Vec<Problem>) -> Vec<Problem> {
    problems.sort_by_cached_key(|problem| {
        let (file, line) = problem.place.rsplit_once(':').unwrap_or((&problem.place, ""));
        (file.to_owned(), line.parse::<usize>().unwrap_or(0))
    });
    problems
}

/// Whether a table that nobody knows was probably meant to hold contacts.
fn has_mistyped_contacts(file: &TomlFile) -> bool {
    let mut unknown = file.table().keys().filter(|key| !TABLES.contains(&key.as_str()));
    unknown.any(|key| closest(key, TABLES) == Some("contact"))
}

fn unknown_tables(file: &TomlFile) -> Vec<Problem> {
    let unknown = file.table().keys();
    unknown
        .filter(|key| !TABLES.contains(&key.as_str()))
        .map(|key| {
            let what = match key.as_str() {
                "route" => "it is not there yet; a rule's `to` names who hears of it".to_owned(),
                _ => unknown_key(key, TABLES),
            };
            let what = format!("{key}: {what}");
            file.problem(&[Step::from(key.as_str())], what)
        })
        .collect()
}

/// The visible `*.toml` files of a directory, sorted by name.
fn toml_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot read the file: {error}");
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(format!(
            "is larger than {bytes_max} bytes; split it, or raise rules.file_bytes_max"
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let lines = error.as_bytes().iter().take(good);
        let line = lines.filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8; save the file as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::clock::Timestamp;
    use crate::intake::pipeline::Pipeline;
    use crate::model::{IdSource, Publish, Qos};
    use crate::store::Op;
    use crate::topic::{TopicLimits, TopicName};

    fn write(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).expect("written");
        }
        dir
    }

    fn load(files: &[(&str, &[u8])], limits: &Limits) -> Result<RuleSet, String> {
        let dir = write(files);
        RuleSet::load_dir(dir.path(), limits).map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let place = format!("{}/", dir.path().display());
            lines.join("\n").replace(&place, "rules/")
        })
    }

    const ANA: &[u8] = b"[[contact]]\nname = 'ana'\nsms = '+4915550100001'\n";
    const RULE: &[u8] = b"[[rule]]\nname = 'r'\ntopic = 'a'\nto = ['ana']\n";

    #[test]
    fn all_files_together_are_one_set() {
        let set = load(
            &[
                ("b-rules.toml", RULE),
                ("z-contacts.toml", ANA),
                (".hidden.toml", b"= broken"),
                ("notes.txt", b"= broken"),
            ],
            &Limits::default(),
        )
        .expect("right");
        assert_eq!((set.rules.len(), set.book.directory.contacts().len()), (1, 1));
        assert_eq!(set.files, 2);
    }

    #[test]
    fn a_mistyped_directory_was_a_set_without_rules() {
        let dir = write(&[]);
        let found = RuleSet::load_dir(&dir.path().join("rulse"), &Limits::default());
        let problems = found.expect_err("not there");
        assert!(problems[0].what.contains("no such directory"), "{problems:?}");
        let set = RuleSet::load_dir(dir.path(), &Limits::default()).expect("empty");
        assert!(set.rules.is_empty());
    }

    #[test]
    fn a_contact_that_no_provider_reaches_is_told_of() {
        let files = [("a.toml", RULE), ("contacts.toml", ANA)];
        let dir = write(&files);
        let set = RuleSet::load_dir(dir.path(), &Limits::default()).expect("right");
        assert_eq!(set.unreached(|_| None), Vec::<String>::new());
        let found = set.unreached(|target| {
            (target.channel == Channel::Sms).then(|| "no provider serves that".to_owned())
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("`ana` is told by sms (no provider serves that); mend that"),
            "{found:?}"
        );
    }

    #[test]
    fn every_problem_of_every_file_is_told_at_once() {
        let found = load(
            &[
                (
                    "a.toml",
                    b"[[rule]]\nname = 'r'\ntopic = 'a'\nto = ['ana']\nwhen = 'payloda > 1'\n",
                ),
                ("b.toml", b"[[rule]\n"),
                ("c.toml", b"[[contcat]]\nname = 'ana'\n\n[[route]]\nname = 'x'\n"),
                ("d.toml", b"[[contact]]\nname = 'ben'\nsms = '123'\n"),
                ("e.toml", RULE),
                ("f.toml", b"ok = 1\n# \xff\n"),
            ],
            &Limits::default(),
        );
        insta::assert_snapshot!(found.expect_err("wrong"), @r#"
        rules/a.toml:5: rule "r": `when`: unknown name `payloda`; did you mean `payload`?
        rules/b.toml:1: unclosed array table, expected `]`; write two brackets on both sides, as in [[rule]]
        rules/c.toml:1: contcat: unknown key; did you mean `contact`?
        rules/c.toml:4: route: it is not there yet; a rule's `to` names who hears of it
        rules/d.toml:3: contact "ben": `sms`: not a phone number in E.164 form; write + and country code, 7 to 15 digits, no spaces: +4915112345678
        rules/e.toml:2: rule "r": `name`: the name is taken by the rule at rules/a.toml:2; choose another
        rules/f.toml: line 2 is not UTF-8; save the file as UTF-8
        "#);
    }

    #[test]
    fn a_contact_that_is_missing_is_only_missed_where_all_files_were_read() {
        let found = load(&[("a.toml", RULE)], &Limits::default()).expect_err("nobody");
        assert_eq!(
            found,
            "rules/a.toml:4: rule \"r\": `to`: there is no contact `ana`; add a [[contact]] of that name"
        );
    }

    #[test]
    fn limits_are_kept() {
        let mut limits = Limits::default();
        limits.rules.file_bytes_max = 20;
        let found = load(&[("a.toml", RULE)], &limits).expect_err("large");
        assert_eq!(
            found,
            "rules/a.toml: is larger than 20 bytes; split it, or raise rules.file_bytes_max"
        );
        let mut limits = Limits::default();
        limits.rules.files_max = 1;
        let found = load(&[("a.toml", RULE), ("b.toml", ANA)], &limits).expect_err("many");
        assert!(
            found.ends_with("holds 2 rule files, more than 1; raise rules.files_max"),
            "{found}"
        );
    }

    /// The repository's own rules are what a newcomer sees first, and their comments what is typed.
    #[test]
    fn the_rules_of_the_repository_do_what_their_comments_say() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
        let limits = Limits::default();
        let set = RuleSet::load_dir(&dir, &limits).expect("right");
        let a_day = Duration::from_secs(86_400);
        let mut pipeline = Pipeline::new(IdSource::new(1), &limits.rules, &limits.contacts, a_day);
        let now = Timestamp::from_millis(1_790_000_000_000);
        let mut told = |topic: &str, payload: &str| -> Vec<String> {
            let topic = TopicName::parse(topic, TopicLimits::default()).expect("a topic");
            let matched = set.rules.matches(&topic).expect("a rule matches");
            let publish = Publish {
                topic,
                payload: Bytes::copy_from_slice(payload.as_bytes()),
                qos: Qos::AtLeastOnce,
                retain: false,
                replayed: false,
                client_id: "mosq".into(),
                identity: None,
                received_at: now,
                properties: None,
            };
            let caused = pipeline.publish(&set, &matched, &publish, now, &mut Op::new());
            assert_eq!(caused.failures, []);
            let mut lines = Vec::new();
            for message in caused.messages {
                let contact = message.contact.unwrap_or_default();
                assert_eq!(message.segments.map(|segments| segments.count), Some(1));
                lines.push(format!(
                    "{contact} {}: {}",
                    message.target.channel, message.content.text
                ));
            }
            lines
        };
        let freezer = "site/kiel/freezer/1/telemetry";
        assert_eq!(
            told(freezer, "{\"temp_c\": -10.5}"),
            ["ana sms: kiel freezer 1 is too warm: -10.5 °C at 14:13 UTC"]
        );
        assert_eq!(told(freezer, "{\"temp_c\": -10.0}"), [""; 0]);
        assert_eq!(
            told(freezer, "{\"temp_c\": -18.0}"),
            ["ana sms: kiel freezer 1 is cold again after 0s: -18.0 °C"]
        );
        assert_eq!(told("site/kiel/door/2", "open"), ["ben sms: kiel: door 2 is open"]);
        assert_eq!(
            told("panic/workshop", "pressed"),
            [
                "ana sms: PANIC BUTTON pressed at workshop, 14:13 UTC",
                "ben sms: PANIC BUTTON pressed at workshop, 14:13 UTC",
            ]
        );
    }
}
