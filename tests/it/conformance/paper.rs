//! The table in `docs/conformance.md` and the tests say the same.

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

const FILES: [&str; 6] = ["connect", "publish", "session", "subscribe", "sys", "wire"];

/// The statement numbers in a text, as `MQTT-3.1.0-1` or `MQTT5-3.1.0-1`.
fn numbers(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '.'));
    let words = words.map(|word| word.trim_end_matches(['.', '-']));
    let is_number = |word: &&str| {
        word.strip_prefix("MQTT5-").or_else(|| word.strip_prefix("MQTT-")).is_some_and(|rest| {
            let (section, number) = rest.split_once('-').unwrap_or_default();
            section.split('.').count() == 3 && number.parse::<u8>().is_ok()
        })
    };
    words.filter(is_number).map(str::to_owned).collect()
}

/// Rows of the tables: number, and what shows it.
fn rows() -> Vec<(String, String)> {
    let paper = read("docs/conformance.md");
    let rows = paper.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| MQTT")?.split(" | ");
        let number = format!("MQTT{}", cells.next()?);
        // MQTT.js has a row too.
        numbers(&number).first()?;
        Some((number, cells.nth(1)?.trim_end_matches(" |").to_owned()))
    });
    rows.collect()
}

/// The tests that a row names: what stands in back quotes.
fn tests(shown_by: &str) -> impl Iterator<Item = &str> {
    shown_by.split('`').skip(1).step_by(2).filter(|name| name.contains("::"))
}

#[test]
fn every_test_that_the_table_names_is_there_and_shows_it() {
    let mut broken = Vec::new();
    for (number, shown_by) in rows() {
        if tests(&shown_by).next().is_none() && !shown_by.starts_with("not tested: ") {
            broken.push(format!("{number}: names no test, and no reason: {shown_by}"));
        }
        for test in tests(&shown_by) {
            let (module, name) = test.rsplit_once("::").unwrap();
            let source = read(&match module.strip_suffix(".rs") {
                Some(path) => format!("{path}.rs"),
                None => format!("tests/it/{}.rs", module.replace("::", "/")),
            });
            if !source.contains(&format!("fn {name}(")) {
                broken.push(format!("{number}: there is no test {test}"));
            }
            if module.starts_with("conformance::") && !numbers(&source).contains(&number) {
                broken.push(format!("{number}: {test} does not name it"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_statement_that_a_test_names_is_in_the_table_once() {
    let rows = rows();
    let known: BTreeSet<_> = rows.iter().map(|(number, _)| number.clone()).collect();
    assert_eq!(known.len(), rows.len(), "a number has two rows");
    assert!(known.len() > 200, "the search for rows finds too little: {}", known.len());
    for file in FILES {
        let named = numbers(&read(&format!("tests/it/conformance/{file}.rs")));
        let missing: Vec<_> = named.difference(&known).collect();
        assert!(
            missing.is_empty(),
            "{file}.rs names what docs/conformance.md has not: {missing:?}"
        );
    }
}

#[test]
fn no_statement_is_forgotten_between_others() {
    // Rows, and those that are listed as the clients'. The appendix of 5.0 begins 2.2.1 at 2.
    let mut known = numbers(&read("docs/conformance.md"));
    known.insert("MQTT5-2.2.1-1".to_owned());
    let missing = known.iter().filter_map(|number| {
        let (section, last) = number.rsplit_once('-').unwrap();
        let before = last.parse::<u8>().unwrap() - 1;
        let before = (before > 0).then(|| format!("{section}-{before}"))?;
        (!known.contains(&before)).then_some(before)
    });
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<String>::new());
}
