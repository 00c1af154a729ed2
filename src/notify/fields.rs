//! The keys of one TOML table, read one by one, so that every problem is found at once.
//!
//! Not through serde, whose errors repeat the value: it may be somebody's number.

use jiff::tz::TimeZone;

use crate::problem::{Problem, Step, TomlFile, closest, unknown_key};
use crate::span::Span;

/// One table while it is read.
pub(super) struct Fields<'a, 'p> {
    file: &'a TomlFile,
    path: Vec<Step>,
    /// What problems call the table: `silence "inventory"`.
    pub(super) who: String,
    /// What stands before a key in problems: `every.`.
    prefix: String,
    table: &'a toml::Table,
    problems: &'p mut Vec<Problem>,
}

impl<'a, 'p> Fields<'a, 'p> {
    /// Over `table`, which is at `path`.
    pub(super) fn new(
        file: &'a TomlFile,
        path: &[Step],
        who: impl Into<String>,
        table: &'a toml::Table,
        problems: &'p mut Vec<Problem>,
    ) -> Self {
        let (path, who, prefix) = (path.to_vec(), who.into(), String::new());
        Self { file, path, who, prefix, table, problems }
    }

    /// The tables `[[name]]` of a file, each with its path.
    pub(super) fn tables(
        file: &'a TomlFile,
        name: &str,
        problems: &mut Vec<Problem>,
    ) -> Vec<(Vec<Step>, &'a toml::Table)> {
        let Some(value) = file.table().get(name) else { return Vec::new() };
        let tables: Option<Vec<&toml::Table>> =
            value.as_array().and_then(|array| array.iter().map(toml::Value::as_table).collect());
        let Some(tables) = tables else {
            let what = format!("{name}: write [[{name}]] with two brackets, once for each {name}");
            problems.push(file.problem(&[name.into()], what));
            return Vec::new();
        };
        let at = |(index, table)| (vec![Step::from(name), Step::from(index)], table);
        tables.into_iter().enumerate().map(at).collect()
    }

    /// Notes a problem with `key`, or with the whole table.
    pub(super) fn problem(&mut self, key: Option<&str>, what: &str) {
        let mut path = self.path.clone();
        let who = &self.who;
        let text = match key {
            Some(key) => {
                path.push(key.into());
                format!("{who}: `{}{key}`: {what}", self.prefix)
            }
            None => format!("{who}: {what}"),
        };
        self.problems.push(self.file.problem(&path, text));
    }

    /// Notes every key that is not known.
    pub(super) fn only(&mut self, known: &[&str]) {
        for key in self.table.keys() {
            if !known.contains(&key.as_str()) {
                self.problem(Some(key), &unknown_key(key, known));
            }
        }
    }

    /// Whether the key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value as it stands.
    pub(super) fn value(&self, key: &str) -> Option<&'a toml::Value> {
        self.table.get(key)
    }

    /// A text that is not empty, or a date or time without quotes.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        match self.table.get(key)? {
            toml::Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
            toml::Value::String(_) => {
                self.problem(Some(key), "it is empty");
                None
            }
            toml::Value::Datetime(time) => Some(time.to_string()),
            _ => {
                self.problem(Some(key), "expected text in quotes");
                None
            }
        }
    }

    /// A text that must be there.
    pub(super) fn required(&mut self, key: &str, what_for: &str) -> Option<String> {
        if !self.has(key) {
            self.problem(None, &format!("`{key}` is missing; {what_for}"));
        }
        self.text(key)
    }

    /// A list of texts, or one text; empty if there is none.
    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        let list = match self.table.get(key) {
            None => return Vec::new(),
            Some(toml::Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let mut texts = Vec::new();
        for value in list {
            match value {
                toml::Value::String(text) if !text.is_empty() => texts.push(text.clone()),
                toml::Value::Datetime(time) => texts.push(time.to_string()),
                _ => {
                    self.problem(Some(key), "expected texts in quotes, as [\"a\", \"b\"]");
                    return Vec::new();
                }
            }
        }
        texts
    }

    /// Words of a closed set, in any number.
    pub(super) fn words<T: Copy>(&mut self, key: &str, known: &[(&str, T)]) -> Vec<T> {
        let mut found = Vec::new();
        for text in self.texts(key) {
            match known.iter().find(|(word, _)| *word == text) {
                Some((_, value)) => found.push(*value),
                None => {
                    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
                    let hint = match closest(&text, &words) {
                        Some(near) => format!("did you mean `{near}`?"),
                        None => format!("known are {}", words.join(", ")),
                    };
                    self.problem(Some(key), &format!("unknown word `{text}`; {hint}"));
                }
            }
        }
        found
    }

    /// A length of time that is not zero.
    pub(super) fn span(&mut self, key: &str) -> Option<Span> {
        let text = self.text(key)?;
        match text.parse::<Span>() {
            Ok(span) if !span.is_zero() => Some(span),
            Ok(_) => {
                self.problem(Some(key), "it is no time at all");
                None
            }
            Err(error) => {
                self.problem(Some(key), &error.to_string());
                None
            }
        }
    }

    /// A whole number in a range.
    pub(super) fn number(&mut self, key: &str, least: u32, most: u32) -> Option<u32> {
        let value = self.table.get(key)?;
        let number = value.as_integer().and_then(|number| u32::try_from(number).ok());
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            let what = format!("expected a whole number from {least} to {most}");
            self.problem(Some(key), &what);
        }
        number
    }

    /// A time zone by its name.
    pub(super) fn zone(&mut self, key: &str) -> Option<TimeZone> {
        let name = self.text(key)?;
        match TimeZone::get(&name) {
            Ok(zone) => Some(zone),
            Err(_) => {
                let what = format!(
                    "unknown time zone `{name}`; write one of the IANA names, as \"Europe/Berlin\""
                );
                self.problem(Some(key), &what);
                None
            }
        }
    }

    /// The table under `key`, to be read in turn.
    pub(super) fn table(&mut self, key: &str) -> Option<Fields<'a, '_>> {
        let Some(table) = self.table.get(key)?.as_table() else {
            self.problem(Some(key), "expected a table, as { from = \"22:00\", to = \"06:00\" }");
            return None;
        };
        let mut path = self.path.clone();
        path.push(key.into());
        Some(Fields {
            file: self.file,
            path,
            who: self.who.clone(),
            prefix: format!("{}{key}.", self.prefix),
            table,
            problems: &mut *self.problems,
        })
    }

    /// Names and values of the table under `key`.
    pub(super) fn pairs(&mut self, key: &str) -> Vec<(String, String)> {
        let Some(mut fields) = self.table(key) else { return Vec::new() };
        let table = fields.table;
        let pair = |name: &String| fields.text(name).map(|text| (name.clone(), text));
        table.keys().filter_map(pair).collect()
    }
}
