//! What the papers show must load, and what they say to type must run: the TOML of README.md and
//! of docs/, the commands of README.md.

use std::path::Path;

use watchbell::clock::Clock;
use watchbell::config::layers::{FileLayer, Layers};
use watchbell::config::{self, Config};
use watchbell::intake::ruleset::{Limits, RuleSet};
use watchbell::intake::trial;
use watchbell::problem::TomlFile;

use crate::harness::Place;
use crate::process::Process;

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
    blocks_of(paper, "toml")
}

/// The blocks of a paper in this language.
fn blocks_of(paper: &str, language: &str) -> Vec<Block> {
    let fence = format!("```{language}");
    let (mut found, mut open) = (Vec::new(), None::<Block>);
    for (index, line) in read(paper).lines().enumerate() {
        match &mut open {
            None if line == fence => {
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
    assert!(!found.is_empty(), "{paper}: no {fence} block");
    found
}

fn lines(problems: &[impl ToString]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn load_rules(blocks: &[Block]) -> RuleSet {
    match RuleSet::parse(&files(blocks), &Limits::default()) {
        Ok(set) => set,
        Err(problems) => panic!("{}", lines(&problems)),
    }
}

fn files(blocks: &[Block]) -> Vec<TomlFile> {
    let file = |block: &Block| TomlFile::parse(block.name.clone(), block.text.clone()).unwrap();
    blocks.iter().map(file).collect()
}

/// Whether a block stands in a rule file, and not in the configuration.
fn is_of_rules(block: &Block) -> bool {
    block.text.contains("[[rule]]") || block.text.contains("[[test]]")
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
    assert_eq!(load_rules(&all).rules.len(), 11);
    assert_eq!(load_rules(&blocks("docs/expressions.md")).rules.len(), 3);
    assert_eq!(load_rules(&blocks("docs/payloads.md")).rules.len(), 8);
    let readme = blocks("README.md");
    let rules: Vec<Block> = readme.into_iter().filter(is_of_rules).collect();
    assert_eq!(load_rules(&rules).rules.len(), 4);
    let contact = "[[contact]]\nname = 'ana'\npush = 'topic:plant'".to_owned();
    let mut upstream = blocks("docs/upstream.md");
    upstream.retain(|block| block.text.contains("[[rule]]"));
    upstream.push(Block { name: "a contact".to_owned(), text: contact });
    assert_eq!(load_rules(&upstream).rules.len(), 1);
}

/// The tests that the papers show pass, with the rules beside them.
#[test]
fn the_tests_of_the_papers_pass() {
    for (paper, count) in [("README.md", 1), ("docs/testing.md", 4)] {
        let mut blocks = blocks(paper);
        blocks.retain(is_of_rules);
        let set = load_rules(&blocks);
        let (trials, problems) = trial::read::read(&files(&blocks), true);
        assert_eq!((trials.len(), lines(&problems)), (count, String::new()), "{paper}");
        for test in trials {
            let ran = trial::run::run(&set, &Limits::default(), &test);
            assert!(ran.passed(), "{paper}, {}: {:#?}", test.name, ran.failed);
            assert_eq!(ran.failures, [], "{paper}, {}", test.name);
        }
    }
}

#[test]
fn the_configuration_of_the_papers_loads() {
    let mut checked = 0;
    for block in ["README.md", "docs/operating.md", "docs/upstream.md"].into_iter().flat_map(blocks)
    {
        if is_of_rules(&block) {
            continue;
        }
        checked += 1;
        match load_config(&block.name, &block.text) {
            Ok(_) => {}
            // The one secret that cannot be made up in a line.
            Err(problems) => assert!(
                problems.lines().count() == 1
                    && problems.contains("service_account: not a service account's JSON key"),
                "{problems}"
            ),
        }
    }
    assert_eq!(checked, 5);
}

/// The words of a command line as a shell would cut it, up to its comment.
pub(crate) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    assert!(quote.is_none(), "a quote has no end: {line}");
    words.extend(word);
    words
}

#[tokio::test]
async fn the_commands_of_the_readme_run() {
    let readme = blocks("README.md");
    let rules = readme.iter().find(|block| block.text.contains("[[rule]]")).unwrap();
    let place = Place::new("");
    // The README has its own contacts.
    std::fs::remove_file(place.path("rules/contacts.toml")).unwrap();
    let process = Process::start(place.rules(&rules.text)).await;
    let mut ran = 0;
    for block in blocks_of("README.md", "sh") {
        for line in block.text.lines() {
            let line = line.strip_prefix("cargo run --").or_else(|| line.strip_prefix("watchbell"));
            let Some(line) = line else { continue };
            let words = words(line);
            process.done(&words.iter().map(String::as_str).collect::<Vec<_>>()).await;
            ran += 1;
        }
    }
    assert!(ran >= 6, "only {ran} commands in README.md");
    process.api.message_that_is("delivered", "kiel freezer 1: -10.5 °C").await;
    process.api.message_that_is("delivered", "Pump 7 is back").await;
    assert!(process.place.path("certs/pump-7.key").exists());
}
