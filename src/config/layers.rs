//! The layers of the configuration, merged, with every value's origin kept.
//!
//! Defaults < file < environment < flags; the defaults are those of the modules' own structs.
//! figment merges and remembers who said what; it forgets lines, so the file is kept beside it
//! and every problem is placed here: `watchbell.toml:14`, `env WATCHBELL_A__B` or `--flag`.
//!
//! What comes from the environment or a flag is text. It is read as text where text is wanted, and
//! as TOML (`8`, `true`, `["a", "b"]`) where it is not; so nobody has to quote twice.

use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use serde::de::DeserializeOwned;
use toml::Value;

use crate::problem::{
    Fault, Problem, Step, TomlFile, path_text, read, read_what_is_right, unknown_key,
};

/// The file that is read where nobody names one.
pub const FILE: &str = "watchbell.toml";

/// What the environment's names begin with.
const PREFIX: &str = "WATCHBELL_";

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// The file.
    pub file: FileLayer,
    /// Environment variables: name and value. Those without our prefix are not looked at.
    pub env: Vec<(String, String)>,
    /// Flags of the command line, the last one wins.
    pub flags: Vec<Flag>,
}

/// The configuration file.
#[derive(Clone, Debug, Default)]
pub enum FileLayer {
    /// `watchbell.toml` in the current directory, if it is there.
    #[default]
    IfThere,
    /// This one, which must be there.
    Named(PathBuf),
    /// This text, under a name for problems.
    Text {
        /// What problems call it.
        name: String,
        /// TOML.
        text: String,
    },
}

/// One flag of the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As problems call it: `--data-dir`.
    pub name: String,
    /// The key that it sets: `data_dir`, `broker.listen`.
    pub key: String,
    /// Its text.
    pub value: String,
}

/// One value of environment or command line, on its way into figment.
struct Said<'a> {
    by: String,
    key: &'a str,
    text: &'a str,
}

impl Provider for Said<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.by.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Serialized::default(self.key, self.text).data()
    }
}

/// All layers in one, being read section by section.
pub(super) struct Merged {
    figment: Figment,
    file: Option<TomlFile>,
    tree: toml::Table,
    known: Vec<&'static str>,
    /// With the line, so that a file's problems can be told in its order.
    problems: Vec<(usize, Problem)>,
}

impl Merged {
    /// Reads the file and merges.
    pub(super) fn new(layers: &Layers) -> Result<Self, Vec<Problem>> {
        let file = read_file(&layers.file).map_err(|problem| vec![problem])?;
        let table = file.as_ref().map(TomlFile::table);
        let mut figment = Figment::new();
        if let Some(table) = table {
            figment = figment.merge(Serialized::defaults(table));
        }
        let secrets = table.map(environment_of_secrets).unwrap_or_default();
        let mut env: Vec<_> = layers
            .env
            .iter()
            .filter(|(name, _)| !secrets.contains(name))
            .filter_map(|(name, text)| Some((name, name.strip_prefix(PREFIX)?, text)))
            .filter(|(_, rest, _)| !is_service_link(rest))
            .collect();
        env.sort();
        for (name, rest, text) in env {
            let key = rest.to_ascii_lowercase().replace("__", ".");
            let by = format!("env {name}");
            figment = figment.merge(Said { by, key: &key, text });
        }
        for flag in &layers.flags {
            let (by, key, text) = (flag.name.clone(), &*flag.key, &*flag.value);
            figment = figment.merge(Said { by, key, text });
        }
        let tree = figment.extract().map_err(|error| {
            let place = file.as_ref().map_or("configuration", TomlFile::name);
            vec![Problem::new(place, error.to_string())]
        })?;
        Ok(Self { figment, file, tree, known: Vec::new(), problems: Vec::new() })
    }

    /// Forgets everything but `name`.
    pub(super) fn only(&mut self, name: &str) {
        self.tree.retain(|key, _| key == name);
    }

    /// The file that was read.
    pub(super) fn file_name(&self) -> Option<&str> {
        self.file.as_ref().map(TomlFile::name)
    }

    /// Takes the section `name` out and reads it. Keys that are wrong have their defaults, so that
    /// the others can still be checked.
    pub(super) fn section<T: DeserializeOwned + Default>(&mut self, name: &'static str) -> T {
        self.known.push(name);
        let Some(mut value) = self.tree.remove(name) else {
            return T::default();
        };
        match self.try_read(&[Step::from(name)], &mut value, &mut read) {
            Ok(section) => section,
            Err(_) => read_what_is_right(value).0.unwrap_or_default(),
        }
    }

    /// Takes the section `name` out and reads it; `None` where it is not there or wrong.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        self.known.push(name);
        let value = self.tree.remove(name)?;
        self.read_at(&[Step::from(name)], value, read)
    }

    /// Takes the list `name` out and reads it element by element with `one`; elements that are
    /// wrong are left out. Also says at which index each stands.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        mut one: impl FnMut(usize, Value) -> Result<T, Vec<Fault>>,
    ) -> Vec<(usize, T)> {
        self.known.push(name);
        let Some(value) = self.tree.remove(name) else {
            return Vec::new();
        };
        let path = [Step::from(name)];
        let Some(list) = self.read_at::<Vec<Value>>(&path, value, |value| match value {
            Value::Array(list) => Ok(list),
            other => Err(vec![Fault {
                path: Vec::new(),
                what: format!("expected [[{name}]] tables, found {}", other.type_str()),
            }]),
        }) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (index, value) in list.into_iter().enumerate() {
            let path = [Step::from(name), Step::from(index)];
            if let Some(element) = self.read_at(&path, value, |value| one(index, value)) {
                found.push((index, element));
            }
        }
        found
    }

    /// Who said it: of the value itself, or of the nearest table around it.
    fn said_by(&self, path: &[Step]) -> Option<String> {
        (1..=path.len()).rev().find_map(|length| {
            let key = dotted(path.get(..length)?)?;
            let metadata = self.figment.find_metadata(&key)?;
            Some(metadata.name.to_string())
        })
    }

    /// Where the value at `path` was said: `watchbell.toml:14`, `env WATCHBELL_A__B`, `--flag`.
    pub(super) fn place(&self, path: &[Step]) -> String {
        match (self.said_by(path), &self.file) {
            (Some(by), _) if by.starts_with("env ") || by.starts_with("--") => by,
            (_, Some(file)) => format!("{}:{}", file.name(), file.line(path)),
            (_, None) => "configuration".to_owned(),
        }
    }

    /// Notes a problem at `path`.
    pub(super) fn problem(&mut self, path: &[Step], what: &str) {
        let named = format!("{}: {what}", path_text(path));
        match (self.said_by(path), &self.file) {
            (Some(by), _) if by.starts_with("env ") || by.starts_with("--") => {
                self.problems.push((usize::MAX, Problem::new(by, what)));
            }
            (_, Some(file)) => {
                let line = file.line(path);
                self.problems.push((line, file.problem(path, named)));
            }
            (_, None) => {
                let problem = Problem::new("configuration", named);
                self.problems.push((usize::MAX, problem));
            }
        }
    }

    /// Notes what a module's `problems()` said: `store.cache_bytes: at least 1 MiB`.
    pub(super) fn said(&mut self, problems: impl IntoIterator<Item = String>) {
        for problem in problems {
            match problem.split_once(": ") {
                Some((path, what)) => self.problem(&steps(path), what),
                None => self.problem(&[], &problem),
            }
        }
    }

    /// Everything wrong, a file's problems in its order; what nobody has read is unknown.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        let left: Vec<String> = self.tree.keys().cloned().collect();
        for key in left {
            let what = unknown_key(&key, &self.known);
            self.problem(&[Step::Key(key)], &what);
        }
        self.problems.sort_by_key(|(line, _)| *line);
        self.problems.dedup();
        self.problems.into_iter().map(|(_, problem)| problem).collect()
    }

    fn read_at<T>(
        &mut self,
        path: &[Step],
        mut value: Value,
        mut one: impl FnMut(Value) -> Result<T, Vec<Fault>>,
    ) -> Option<T> {
        self.try_read(path, &mut value, &mut one).ok()
    }

    /// Reads a value at `path`; what was said in text is tried as TOML where text will not do.
    /// Faults are noted, and answered for the caller's use.
    fn try_read<T>(
        &mut self,
        path: &[Step],
        value: &mut Value,
        one: &mut impl FnMut(Value) -> Result<T, Vec<Fault>>,
    ) -> Result<T, Vec<Fault>> {
        let whole =
            |fault: &Fault| -> Vec<Step> { path.iter().chain(&fault.path).cloned().collect() };
        let mut as_text: Vec<Fault> = Vec::new();
        loop {
            let faults = match one(value.clone()) {
                Ok(read) => return Ok(read),
                Err(faults) => faults,
            };
            let mut again = false;
            for fault in &faults {
                if self.is_said(&whole(fault))
                    && let Some(place) = at_mut(value, &fault.path)
                    && let Some(other) = as_toml(place)
                {
                    *place = other;
                    as_text.push(fault.clone());
                    again = true;
                }
            }
            if again {
                continue;
            }
            for fault in &faults {
                // What was wrong with the text says more than what is wrong with its reading.
                let first = as_text.iter().find(|first| first.path == fault.path);
                self.problem(&whole(fault), &plain(&first.unwrap_or(fault).what));
            }
            return Err(faults);
        }
    }

    /// Whether environment or command line said the value at `path`.
    fn is_said(&self, path: &[Step]) -> bool {
        dotted(path).and_then(|key| self.figment.find_metadata(&key)).is_some_and(|metadata| {
            metadata.name.starts_with("env ") || metadata.name.starts_with("--")
        })
    }
}

fn read_file(layer: &FileLayer) -> Result<Option<TomlFile>, Problem> {
    let (path, required) = match layer {
        FileLayer::IfThere => (Path::new(FILE), false),
        FileLayer::Named(path) => (path.as_path(), true),
        FileLayer::Text { name, text } => return TomlFile::parse(name, text).map(Some),
    };
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => TomlFile::parse(name, text).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => Ok(None),
        Err(error) => Err(Problem::new(
            name,
            format!("cannot be read: {error}; name another file with --config"),
        )),
    }
}

/// Whether `WATCHBELL_` with `rest` behind it is what Kubernetes and Docker links set for every
/// container beside a service called `watchbell`: `WATCHBELL_SERVICE_HOST`, `WATCHBELL_PORT`,
/// `WATCHBELL_PORT_1883_TCP_ADDR`. Nobody has meant a setting by them.
fn is_service_link(rest: &str) -> bool {
    rest == "PORT" || rest.starts_with("PORT_") || rest.starts_with("SERVICE_")
}

/// The variables that `{ env = "NAME" }` names: they are secrets, whatever their names begin with.
fn environment_of_secrets(table: &toml::Table) -> Vec<String> {
    let mut names = Vec::new();
    let mut left: Vec<&Value> = table.values().collect();
    while let Some(value) = left.pop() {
        match value {
            Value::Table(table) => {
                if let (1, Some(Value::String(name))) = (table.len(), table.get("env")) {
                    names.push(name.clone());
                }
                left.extend(table.values());
            }
            Value::Array(list) => left.extend(list),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_) => {}
        }
    }
    names
}

/// figment's way to write a path; `None` for one that goes into a list, which it cannot say.
fn dotted(path: &[Step]) -> Option<String> {
    path.iter()
        .map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
        .collect::<Option<Vec<_>>>()
        .map(|keys| keys.join("."))
}

/// `access[2].publish` as steps.
fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let (key, indices) = part.split_once('[').unwrap_or((part, ""));
        steps.push(Step::from(key));
        let indices = indices.split(['[', ']']).filter_map(|text| text.parse().ok());
        steps.extend(indices.map(Step::Index));
    }
    steps
}

fn at_mut<'a>(value: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(*index),
    })
}

/// Text as the TOML value that it spells; `None` where it spells none, or only itself.
fn as_toml(value: &Value) -> Option<Value> {
    let text = value.as_str()?;
    let table: toml::Table = format!("value = {text}").parse().ok()?;
    table.get("value").filter(|read| table.len() == 1 && !read.is_str()).cloned()
}

/// What serde and the standard library say, in an operator's words.
fn plain(what: &str) -> String {
    if what == "invalid socket address syntax" {
        return "expected an address and a port, as in 127.0.0.1:8080".to_owned();
    }
    let Some((found, expected)) = what
        .strip_prefix("invalid type: ")
        .or_else(|| what.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "))
    else {
        return what.to_owned();
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" if found.contains('-') => {
            "a whole number that is not negative"
        }
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => {
            "a whole number"
        }
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    // `integer `7`` and `string "x"`: the value says what it is.
    let found = match found.split_once(' ') {
        Some((_, value)) if value.starts_with(['`', '"']) => value.trim_matches('`'),
        _ => found,
    };
    format!("expected {expected}, found {found}")
}
