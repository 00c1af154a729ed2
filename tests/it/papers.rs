//! What the papers show must load: the TOML of README.md and docs/rules.md, and the commented whole
//! of the configuration, which must also say the true defaults.

use std::fmt::Debug;
use std::path::Path;

use watchbell::clock::Clock;
use watchbell::config::layers::{FileLayer, Layers};
use watchbell::config::{self, Config};
use watchbell::intake::ruleset::{Limits, RuleSet};
use watchbell::problem::TomlFile;

/// A block of a paper, and what problems call it.
struct Block {
    name: String,
    text: String,
}

fn read(paper: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(paper)).unwrap()
}

/// The ```toml blocks of a paper.
fn blocks(paper: &str) -> Vec<Block> {
    let (mut found, mut open) = (Vec::new(), None::<Block>);
    for (index, line) in read(paper).lines().enumerate() {
        match &mut open {
            None if line == "```toml" => {
                open = Some(Block { name: format!("{paper}:{}", index + 1), text: String::new() });
            }
            None => {}
            Some(_) if line == "```" => found.extend(open.take()),
            Some(block) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "{paper}: a block has no end");
    assert!(!found.is_empty(), "{paper}: no ```toml block");
    found
}

fn lines(problems: &[impl ToString]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn load_rules(blocks: &[Block]) -> RuleSet {
    let file = |block: &Block| TomlFile::parse(block.name.clone(), block.text.clone()).unwrap();
    let files: Vec<TomlFile> = blocks.iter().map(file).collect();
    match RuleSet::parse(&files, &Limits::default()) {
        Ok(set) => set,
        Err(problems) => panic!("{}", lines(&problems)),
    }
}

/// Secrets that are elsewhere, as if they were there.
fn with_secrets(text: &str) -> String {
    let line = |line: &str| {
        let elsewhere = ["{ env = ", "{ file = ", "{ command = "];
        match elsewhere.iter().find_map(|sign| line.split_once(sign)) {
            Some((before, after)) => {
                let rest = after.split_once('}').map_or("", |(_, rest)| rest);
                // 32 bytes, as a webhook's secret has to be.
                format!("{before}\"whsec_{}=\"{rest}\n", "A".repeat(43))
            }
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

fn load_config(name: &str, text: &str) -> Result<Config, String> {
    let file = FileLayer::Text { name: name.to_owned(), text: with_secrets(text) };
    let layers = Layers { file, ..Layers::default() };
    config::load(&layers, &Clock::System).map_err(|problems| lines(&problems))
}

#[test]
fn the_rules_of_the_papers_load() {
    let all = blocks("docs/rules.md");
    assert_eq!(load_rules(&all).rules.len(), 4);
    let readme = blocks("README.md");
    let rules: Vec<Block> = readme.into_iter().filter(|b| b.text.contains("[[rule]]")).collect();
    assert_eq!(load_rules(&rules).rules.len(), 1);
}

#[test]
fn the_configuration_of_the_readme_loads() {
    let found: Vec<Block> =
        blocks("README.md").into_iter().filter(|b| !b.text.contains("[[rule]]")).collect();
    assert!(!found.is_empty());
    for block in found {
        if let Err(problems) = load_config(&block.name, &block.text) {
            panic!("{problems}");
        }
    }
}

#[test]
fn the_commented_whole_says_the_true_defaults() {
    fn same(what: &str, written: &impl Debug, default: &impl Debug) {
        assert_eq!(format!("{written:#?}"), format!("{default:#?}"), "[{what}]");
    }
    let example = load_config("examples/watchbell.toml", &read("examples/watchbell.toml")).unwrap();
    let empty = load_config("nothing", "").unwrap();
    same("paths", &example.data_dir, &empty.data_dir);
    same("paths", &example.rules_dir, &empty.rules_dir);
    same("grace", &example.grace, &empty.grace);
    same("telemetry", &example.telemetry, &empty.telemetry);
    same("broker", &example.broker, &empty.broker);
    same("access", &example.access, &empty.access);
    same("api", &example.api, &empty.api);
    same("rules, notify", &example.limits, &empty.limits);
    same("intake", &example.intake, &empty.intake);
    same("dispatch", &example.dispatch, &empty.dispatch);
    same("store", &example.store, &empty.store);
    same("provider", &example.providers, &empty.providers);
    same("channel", &example.routes, &empty.routes);
}

/// What is commented out in it is right too: each run of lines from `# [` to an empty comment.
#[test]
fn what_the_commented_whole_comments_out_loads() {
    let mut text = String::new();
    let mut inside = false;
    for line in read("examples/watchbell.toml").lines() {
        inside = match line.strip_prefix("# ") {
            Some(line) if inside || line.starts_with('[') => {
                text.push_str(line);
                text.push('\n');
                true
            }
            _ => false,
        };
    }
    for word in ["[[access]]", "kind = \"fcm\"", "[channel.webhook]"] {
        assert!(text.contains(word), "{word} is not found in:\n{text}");
    }
    // The one thing that cannot be made up in a line is a service account's key.
    let problems = load_config("commented", &text).err().unwrap();
    assert_eq!(problems.lines().count(), 1, "{problems}");
    assert!(problems.contains("service_account: not a service account's JSON key"), "{problems}");
}
