//! Names in `[[silence]]` and `[[suppress]]` that nothing fits: a slip of the pen that would silence
//! nothing, and explain nothing, without a word.
//!
//! It is no problem that refuses the rules: a site may share its silences with sites that have other
//! rules. `watchbell check` warns of it.

use super::ruleset::RuleSet;
use crate::notify::pattern::Pattern;
use crate::problem::{Problem, Step, TomlFile, closest};
use crate::rules::set::Rule;

/// Everything that fits no rule of the set, with its place.
pub fn warnings(set: &RuleSet, files: &[TomlFile]) -> Vec<Problem> {
    let rules: Vec<&Rule> = set.rules.rules().iter().collect();
    let mut found = Vec::new();
    for file in files {
        let mut warn = |path: &[Step], what: String| found.push(file.problem(path, what));
        for (index, table) in tables(file, "silence") {
            let path = [Step::from("silence"), index.into(), "rule".into()];
            if let Some(pattern) = table.get("rule").and_then(toml::Value::as_str)
                && let Some(what) = unfit(&rules, pattern)
            {
                let name = table.get("name").and_then(toml::Value::as_str).unwrap_or_default();
                warn(&path, format!("silence \"{name}\": `rule`: {what}"));
            }
        }
        for (index, table) in tables(file, "suppress") {
            let path = [Step::from("suppress"), index.into()];
            let mut warn = |key: &str, what: String| {
                warn(
                    &[&path[..], &[key.into()]].concat(),
                    format!("suppress {}: `{key}`: {what}", index + 1),
                );
            };
            let causes = texts(table.get("while"));
            let explained = texts(table.get("rules"));
            for (key, patterns) in [("while", &causes), ("rules", &explained)] {
                patterns
                    .iter()
                    .filter_map(|pattern| unfit(&rules, pattern))
                    .for_each(|what| warn(key, what));
            }
            for label in texts(table.get("same")) {
                for (patterns, whose) in [(&causes, "while"), (&explained, "rules")] {
                    let mut fit = rules
                        .iter()
                        .filter(|rule| {
                            patterns.iter().any(|one| Pattern::new(one).matches(&rule.name))
                        })
                        .peekable();
                    let has = |rule: &&Rule| {
                        rule.filter.captures().iter().any(|(_, name)| **name == *label)
                    };
                    if fit.peek().is_some() && !fit.any(has) {
                        warn(
                            "same",
                            format!(
                                "no rule of `{whose}` captures `{label}` in its topic, so nothing is ever the same"
                            ),
                        );
                    }
                }
            }
        }
    }
    found
}

fn tables<'a>(file: &'a TomlFile, name: &str) -> impl Iterator<Item = (usize, &'a toml::Value)> {
    file.table().get(name).and_then(toml::Value::as_array).into_iter().flatten().enumerate()
}

fn texts(value: Option<&toml::Value>) -> Vec<&str> {
    match value {
        Some(toml::Value::Array(list)) => list.iter().filter_map(toml::Value::as_str).collect(),
        Some(value) => value.as_str().into_iter().collect(),
        None => Vec::new(),
    }
}

fn unfit(rules: &[&Rule], pattern: &str) -> Option<String> {
    let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_ref()).collect();
    named(&names, pattern)
}

/// That none of the names fits the pattern, and what may have been meant; `None` where one does.
pub fn named(names: &[&str], pattern: &str) -> Option<String> {
    let fits = Pattern::new(pattern);
    if names.iter().any(|name| fits.matches(name)) {
        return None;
    }
    let near = closest(pattern, names).or_else(|| {
        // Of `frezer-*` the beginning is what was meant.
        let begin = pattern.split('*').next().filter(|begin| begin.len() >= 3)?;
        let parts: Vec<&str> = names.iter().filter_map(|name| name.get(..begin.len())).collect();
        let near = closest(begin, &parts)?;
        names.iter().copied().find(|name| name.starts_with(near))
    });
    let near = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
    Some(format!("no rule is called `{pattern}`{near}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_no_rule_is_told_with_what_was_meant() {
        let names = ["freezer-warm", "freezer-silent", "door"];
        for (pattern, expected) in [
            ("freezer-*", None),
            ("*", None),
            ("door", None),
            ("dor", Some("no rule is called `dor`; did you mean `door`?")),
            ("frezer-*", Some("no rule is called `frezer-*`; did you mean `freezer-warm`?")),
            ("pump-*", Some("no rule is called `pump-*`")),
        ] {
            assert_eq!(named(&names, pattern).as_deref(), expected, "{pattern}");
        }
    }
}
