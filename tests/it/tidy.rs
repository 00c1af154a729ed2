//! The house rules that no compiler knows: who may import whom, headers, papers, no stray files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The floors of ARCHITECTURE.md, and what else a module of a floor may name.
fn floor(module: &str) -> u8 {
    match module {
        "clock" | "model" | "network" | "online" | "password" | "problem" | "secret" | "span"
        | "telemetry" | "topic" => 0,
        "payload" | "rules" | "notify" | "channel" => 1,
        "capture" | "store" | "provider" => 2,
        "intake" | "dispatch" => 3,
        "broker" | "api" | "console" => 4,
        "app" | "certs" | "cli" | "config" | "housekeeping" | "instance" | "main" | "replay" => 5,
        _ => panic!("module `{module}` has no floor: give it one here and in ARCHITECTURE.md"),
    }
}

fn may_use(from: &str, to: &str) -> bool {
    if from == to {
        return true;
    }
    match (floor(from), floor(to)) {
        (5, 5) => to != "config" || matches!(from, "app" | "cli" | "main" | "certs"),
        (0, 0) => true,
        (1, 1) => matches!((from, to), ("rules", "payload") | ("notify", "channel")),
        (2, to) => to == 0,
        (3, 3) => matches!((from, to), ("intake", "dispatch")),
        // The read side of the store, the engines' handles, and the phone that the page shows.
        (4, 4) => matches!((from, to), ("api", "console")),
        (4, 2) => to == "store" || (from, to) == ("api", "provider"),
        (4, 1) => false,
        (from, to) => from > to,
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|known| known == extension) {
            found.push(path);
        }
    }
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The names after `crate::`, also those of `use crate::{a, b::c}`.
fn imports(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in source.match_indices("crate::") {
        let rest = &source[at + "crate::".len()..];
        let list = rest.strip_prefix('{').map_or(rest, |rest| rest);
        let name: String =
            list.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        if name.chars().next().is_some_and(|first| first.is_ascii_lowercase()) {
            names.insert(name);
        }
    }
    names
}

#[test]
fn modules_import_only_from_floors_below() {
    let source = root().join("src");
    let mut broken = Vec::new();
    for file in files(&source, "rs") {
        let relative = file.strip_prefix(&source).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_string_lossy();
        let module = module.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        // Unit tests may look further down, for data to test with.
        let text = read(&file);
        let code = text.split("#[cfg(test)]").next().unwrap();
        for name in imports(code) {
            if !may_use(module, &name) {
                broken.push(format!("{}: {module} may not use {name}", relative.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn pure_modules_have_no_runtime_no_disk_no_network_and_no_clock() {
    let mut broken = Vec::new();
    for module in ["payload", "rules", "notify", "channel"] {
        for file in files(&root().join("src").join(module), "rs") {
            let text = read(&file);
            let code = text.split("#[cfg(test)]").next().unwrap();
            for forbidden in [
                "tokio::",
                "sled::",
                "reqwest::",
                "std::fs",
                "std::net",
                "clock::Clock",
                "Clock::",
                "Instant::now",
            ] {
                if code.contains(forbidden) {
                    broken.push(format!("{}: {forbidden}", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    for directory in ["src", "tests", "benches", "examples"] {
        for file in files(&root().join(directory), "rs") {
            let text = read(&file);
            assert!(text.starts_with("//! "), "{} has no `//!` header", file.display());
        }
    }
}

/// Field names of every struct that is read from the configuration.
fn config_keys() -> BTreeSet<(String, PathBuf)> {
    let mut keys = BTreeSet::new();
    for file in files(&root().join("src"), "rs") {
        let text = read(&file);
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (at, _) in code.match_indices("#[serde(deny_unknown_fields, default)]") {
            let Some(body) = code[at..].split_once('{').map(|(_, rest)| rest) else { continue };
            let body = body.split("\n}").next().unwrap();
            for line in body.lines().map(str::trim) {
                let line = line.strip_prefix("pub(crate) ").unwrap_or(line);
                let line = line.strip_prefix("pub(super) ").unwrap_or(line);
                let line = line.strip_prefix("pub ").unwrap_or(line);
                let Some((name, _)) = line.split_once(": ") else { continue };
                if name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                    keys.insert((name.to_owned(), file.clone()));
                }
            }
        }
    }
    assert!(keys.len() > 30, "the search for configuration keys finds too little");
    keys
}

#[test]
fn every_configuration_key_is_in_the_example() {
    let mut papers = read(&root().join("examples/watchbell.toml"));
    papers.push_str(&read(&root().join("docs/rules.md")));
    papers.push_str(&read(&root().join("docs/expressions.md")));
    let missing: Vec<String> = config_keys()
        .into_iter()
        .filter(|(key, _)| {
            !papers.contains(&format!("{key} "))
                && !papers.contains(&format!("{key}="))
                && !papers.contains(&format!("{key}]"))
                && !papers.contains(&format!("`{key}`"))
        })
        .map(|(key, file)| format!("{key} ({})", file.display()))
        .collect();
    assert!(missing.is_empty(), "not in examples/watchbell.toml:\n{}", missing.join("\n"));
}

#[test]
fn every_metric_is_in_the_papers() {
    let papers = read(&root().join("docs/operating.md"));
    let names = watchbell::telemetry::Metrics::names();
    let missing: Vec<_> = names.iter().filter(|name| !papers.contains(**name)).collect();
    assert!(missing.is_empty(), "not in docs/operating.md: {missing:?}");
}

#[test]
fn every_reason_is_in_the_papers() {
    let papers = read(&root().join("docs/operating.md"));
    let missing: Vec<_> = watchbell::model::Reason::ALL
        .iter()
        .filter(|reason| !papers.contains(&format!("`{reason}`")))
        .collect();
    assert!(missing.is_empty(), "not in docs/operating.md: {missing:?}");
}

#[test]
fn every_test_that_shows_what_is_reliable_is_there() {
    let paper = read(&root().join("docs/reliability.md"));
    let sources: String = ["src", "tests/it"]
        .iter()
        .flat_map(|directory| files(&root().join(directory), "rs"))
        .map(|path| read(&path))
        .collect();
    let named: Vec<&str> = paper
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|name| Some(name.rsplit_once("::")?.1))
        .filter(|name| *name != "test")
        .collect();
    assert!(named.len() > 20, "{named:?}");
    let missing: Vec<_> =
        named.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "no such test: {missing:?}");
}

#[test]
fn no_keys_and_no_blobs_are_committed() {
    let output = std::process::Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        assert!(!name.ends_with(".key") && !name.ends_with(".pem"), "{name} is a key file");
        let size = std::fs::metadata(root().join(name)).map_or(0, |metadata| metadata.len());
        assert!(size < 256 * 1024, "{name} has {size} bytes");
    }
}
