//! What the papers show must load: the TOML of README.md and of docs/.

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
fn the_configuration_of_the_papers_loads() {
    let mut checked = 0;
    for block in ["README.md", "docs/operating.md"].into_iter().flat_map(blocks) {
        if block.text.contains("[[rule]]") {
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
    assert_eq!(checked, 3);
}
