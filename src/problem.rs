//! What is wrong with a file that an operator wrote: where, what, and what to do next.
//!
//! serde stops at its first error. [`read`] does not: it notes the error, takes the offending key
//! out, and goes on, so that every problem of a file is reported at once.

use std::fmt;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Value;

/// One problem, ready to print: `rules/oven.toml:7: rule "oven-hot": ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File and line, or the name of an environment variable or flag.
    pub place: String,
    /// What is wrong, and what to do next.
    pub what: String,
}

impl Problem {
    /// A problem at `place`.
    pub fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// One step into a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into the table's entry of that name.
    Key(String),
    /// Into the array's element.
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// `a.b[2].c`
pub fn path_text(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// A TOML file that knows its lines.
#[derive(Clone, Debug)]
pub struct TomlFile {
    name: String,
    text: String,
    table: toml::Table,
}

impl TomlFile {
    /// Parses `text`; `name` is what problems call the file.
    ///
    /// # Errors
    /// A syntax error, with its line.
    pub fn parse(name: impl Into<String>, text: impl Into<String>) -> Result<Self, Problem> {
        let (name, text) = (name.into(), text.into());
        match text.parse::<toml::Table>() {
            Ok(table) => Ok(Self { name, text, table }),
            Err(error) => {
                let at = error.span().unwrap_or_default();
                let line = line_at(&text, at.start);
                let mut what = error.message().replace('\n', "; ");
                if let Some(remedy) = remedy(&what, &text, at) {
                    what = format!("{what}; {remedy}");
                }
                Err(Problem::new(format!("{name}:{line}"), what))
            }
        }
    }

    /// The file's name as problems call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parsed document.
    pub fn table(&self) -> &toml::Table {
        &self.table
    }

    /// The line of `path`, or of as much of it as there is; counted from 1.
    pub fn line(&self, path: &[Step]) -> usize {
        self.lines(&[path]).first().copied().unwrap_or(1)
    }

    /// The lines of several paths, for the price of little more than one.
    pub fn lines(&self, paths: &[impl AsRef<[Step]>]) -> Vec<usize> {
        let Ok(root) = toml::de::DeTable::parse(&self.text) else {
            return vec![1; paths.len()];
        };
        let offsets = paths.iter().map(|path| offset(root.get_ref(), path.as_ref()));
        offsets.map(|at| line_at(&self.text, at)).collect()
    }

    /// A problem at `path`.
    pub fn problem(&self, path: &[Step], what: impl Into<String>) -> Problem {
        Problem::new(format!("{}:{}", self.name, self.line(path)), what)
    }
}

/// What to write instead, where `what` is wrong with the TOML of `text` at `at`.
fn remedy(what: &str, text: &str, at: Range<usize>) -> Option<String> {
    let begin = text.get(..at.start)?.rfind('\n').map_or(0, |before| before + 1);
    let line = text.get(begin..)?.lines().next()?;
    if line.contains(['“', '”', '„', '‘', '’']) {
        return Some("quotes are straight: \"...\" or '...'".to_owned());
    }
    let is = |part: &str| what.contains(part);
    Some(if is("duplicate key") {
        let key = text.get(at).filter(|key| !key.contains('\n'))?;
        format!(
            "`{key}` stands twice in its table: keep one, or begin the next [[table]] before it"
        )
    } else if is("string values must be quoted") {
        let (key, value) = line.split_once('=')?;
        let value = value.split('#').next().unwrap_or_default().trim();
        if value.contains(['"', '\'', '[', '{']) {
            return None;
        }
        format!("write {} = \"{value}\"", key.trim())
    } else if is("key with no value") {
        "write key = value".to_owned()
    } else if is("invalid boolean") {
        "write true or false, in small letters".to_owned()
    } else if is("escaped value") {
        "a backslash is written \\\\, or the text stands in single quotes".to_owned()
    } else if is("invalid basic string") {
        "the text ends on its line with the quote that it began with".to_owned()
    } else if is("unexpected key or value") && line.matches('"').count() > 2 {
        "within \"...\" write '...', as in when = \"payload.state == 'on'\"".to_owned()
    } else if is("unclosed array table") {
        "write two brackets on both sides, as in [[rule]]".to_owned()
    } else {
        return None;
    })
}

/// Where `path`, or as much of it as there is, begins in the text.
fn offset(root: &toml::de::DeTable<'_>, path: &[Step]) -> usize {
    let mut at = 0;
    let mut table = Some(root);
    let mut array: Option<&toml::de::DeArray<'_>> = None;
    for step in path {
        let value = match step {
            Step::Key(key) => {
                let Some((name, value)) =
                    table.and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key))
                else {
                    break;
                };
                at = name.span().start;
                value
            }
            Step::Index(index) => {
                let Some(value) = array.and_then(|array| array.get(*index)) else {
                    break;
                };
                at = value.span().start;
                value
            }
        };
        table = value.get_ref().as_table();
        array = value.get_ref().as_array();
    }
    at
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// What [`read`] found wrong, and where in the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where, from the root of the value that was read.
    pub path: Vec<Step>,
    /// What, and what next.
    pub what: String,
}

/// A parsed document that [`read`] can take wrong keys out of: TOML of files, JSON of requests.
pub trait Document: Clone {
    /// Reads it as `T`; an error is serde's message, and `track` then knows where.
    ///
    /// # Errors
    /// The first thing that is wrong.
    fn read_as<T: DeserializeOwned>(
        self,
        track: &mut serde_path_to_error::Track,
    ) -> Result<T, String>;

    /// What stands at `step`.
    fn child(&mut self, step: &Step) -> Option<&mut Self>;

    /// Takes `key` out, where this is a table that has it; answers whether it did.
    fn take_key(&mut self, key: &str) -> bool;
}

impl Document for Value {
    fn read_as<T: DeserializeOwned>(
        self,
        track: &mut serde_path_to_error::Track,
    ) -> Result<T, String> {
        T::deserialize(serde_path_to_error::Deserializer::new(self, track))
            .map_err(|error: toml::de::Error| error.message().to_owned())
    }

    fn child(&mut self, step: &Step) -> Option<&mut Self> {
        match step {
            Step::Key(key) => self.get_mut(key.as_str()),
            Step::Index(index) => self.get_mut(*index),
        }
    }

    fn take_key(&mut self, key: &str) -> bool {
        self.as_table_mut().is_some_and(|table| table.remove(key).is_some())
    }
}

impl Document for serde_json::Value {
    fn read_as<T: DeserializeOwned>(
        self,
        track: &mut serde_path_to_error::Track,
    ) -> Result<T, String> {
        T::deserialize(serde_path_to_error::Deserializer::new(self, track))
            .map_err(|error: serde_json::Error| error.to_string())
    }

    fn child(&mut self, step: &Step) -> Option<&mut Self> {
        match step {
            Step::Key(key) => self.get_mut(key.as_str()),
            Step::Index(index) => self.get_mut(*index),
        }
    }

    fn take_key(&mut self, key: &str) -> bool {
        self.as_object_mut().is_some_and(|object| object.remove(key).is_some())
    }
}

/// Reads `value` as `T` and reports everything wrong with it at once.
///
/// `T` should be `deny_unknown_fields` and `default`; a required key is best an `Option` that the
/// caller checks, because serde cannot go on past a missing one. A value is returned only if it
/// was read without a fault.
pub fn read<T: DeserializeOwned>(value: impl Document) -> Result<T, Vec<Fault>> {
    match read_what_is_right(value) {
        (Some(read), faults) if faults.is_empty() => Ok(read),
        (_, faults) => Err(faults),
    }
}

/// Reads `value` as `T` without the keys that are wrong, so that the others can be looked at
/// further; `None` where nothing can be made of what is left.
pub fn read_what_is_right<T: DeserializeOwned>(
    mut value: impl Document,
) -> (Option<T>, Vec<Fault>) {
    let mut faults = Vec::new();
    loop {
        let mut track = serde_path_to_error::Track::new();
        let message = match value.clone().read_as(&mut track) {
            Ok(read) => return (Some(read), faults),
            Err(message) => message,
        };
        let path = steps(&track.path());
        let removed = remove(&mut value, &path);
        faults.push(Fault { what: explain(&message), path });
        // A bound against a type that fails whatever is taken out of the value.
        if !removed || faults.len() >= 100 {
            return (None, faults);
        }
    }
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(Step::Index(*index)),
            Segment::Map { key } => Some(Step::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

/// Takes the key at `path` out of its table. Array elements stay: their indices are in other paths.
fn remove(value: &mut impl Document, path: &[Step]) -> bool {
    // Where a list's element is at fault the whole list goes: better one report less than a
    // wrong index.
    let Some(last) = path.iter().rposition(|step| matches!(step, Step::Key(_))) else {
        return false;
    };
    let mut at = value;
    for step in path.iter().take(last) {
        let Some(next) = at.child(step) else { return false };
        at = next;
    }
    matches!(path.get(last), Some(Step::Key(key)) if at.take_key(key))
}

/// serde's message in an operator's words; an unknown key gets a suggestion.
fn explain(message: &str) -> String {
    let message = message.trim().replace('\n', "; ");
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message;
    };
    let Some((key, expected)) = rest.split_once('`') else {
        return message;
    };
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    unknown_key(key, &known)
}

/// "unknown key; did you mean `x`?" or the list of what is known.
pub fn unknown_key(key: &str, known: &[&str]) -> String {
    match closest(key, known) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None if known.is_empty() => "unknown key".to_owned(),
        None => format!("unknown key; known here are {}", known.join(", ")),
    }
}

/// The known word that `word` was probably meant to be.
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

/// `1 rule`, `2 rules`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        listen: String,
        depth: u32,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        account_sid: String,
        names: Vec<String>,
    }

    #[test]
    fn slips_in_toml_are_told_with_what_to_write() {
        for (text, expected) in [
            (
                "a = 1\nname = “x”",
                "w.toml:2: string values must be quoted, expected literal string; quotes are straight: \"...\" or '...'",
            ),
            (
                "name = 'x'\nname = 'y'",
                "w.toml:2: duplicate key; `name` stands twice in its table: keep one, or begin the next [[table]] before it",
            ),
            (
                "for = 5m # five",
                "w.toml:1: string values must be quoted, expected literal string; write for = \"5m\"",
            ),
            ("name : 'x'", "w.toml:1: key with no value, expected `=`; write key = value"),
            (
                "a = True",
                "w.toml:1: invalid boolean, expected `true`; write true or false, in small letters",
            ),
            (
                "when = \"payload > \"5\"\"",
                "w.toml:1: unexpected key or value, expected newline, `#`; within \"...\" write '...', as in when = \"payload.state == 'on'\"",
            ),
            (
                "name = \"x\n",
                "w.toml:1: invalid basic string, expected `\"`; the text ends on its line with the quote that it began with",
            ),
            (
                "[[rule]\n",
                "w.toml:1: unclosed array table, expected `]`; write two brackets on both sides, as in [[rule]]",
            ),
        ] {
            let problem = TomlFile::parse("w.toml", text).expect_err("wrong");
            assert_eq!(problem.to_string(), expected);
        }
        let problem = TomlFile::parse("w.toml", "text = \"\\d\"").expect_err("wrong").to_string();
        assert!(
            problem.ends_with("; a backslash is written \\\\, or the text stands in single quotes"),
            "{problem}"
        );
        // Nothing is guessed of the rest, whatever stands there.
        assert_eq!(
            TomlFile::parse("w.toml", "a = }").expect_err("wrong").to_string(),
            "w.toml:1: missing inline table opening, expected `{`"
        );
    }

    fn problems(text: &str) -> Vec<String> {
        let file = TomlFile::parse("w.toml", text).expect("valid TOML");
        match read::<Outer>(Value::Table(file.table().clone())) {
            Ok(_) => Vec::new(),
            Err(faults) => faults
                .into_iter()
                .map(|fault| {
                    let what = format!("{}: {}", path_text(&fault.path), fault.what);
                    file.problem(&fault.path, what).to_string()
                })
                .collect(),
        }
    }

    #[test]
    fn reports_every_problem_with_its_line() {
        let found = problems(
            "listen = 7\ndepth = 'x'\nlisten_tsl = ''\n\n[inner]\nacount_sid = ''\nnames = ['a', 3]\n",
        );
        assert_eq!(found.len(), 5, "{found:#?}");
        for expected in [
            "w.toml:1: listen: invalid type: integer `7`, expected a string",
            "w.toml:2: depth: invalid type: string \"x\", expected u32",
            "w.toml:6: inner.acount_sid: unknown key; did you mean `account_sid`?",
            "w.toml:7: inner.names[1]: invalid type: integer `3`, expected a string",
        ] {
            assert!(found.iter().any(|line| line == expected), "{expected}\n{found:#?}");
        }
        assert!(found.iter().any(|line| line.starts_with("w.toml:3: listen_tsl: unknown key")));
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        let error = TomlFile::parse("w.toml", "a = 1\nb = = 2\n").expect_err("not TOML");
        assert!(error.to_string().starts_with("w.toml:2: "), "{error}");
    }

    #[test]
    fn a_good_value_is_read() {
        let value: Value = toml::from_str("depth = 3").expect("valid");
        assert_eq!(read::<Outer>(value).map(|outer| outer.depth), Ok(3));
    }
}
