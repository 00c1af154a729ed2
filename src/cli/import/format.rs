//! mqttwarn's `format` and `title`, which are Python's `str.format`, and its Jinja templates -> our
//! templates.
//!
//! `{key}` is a key at the top of a JSON payload, or of mqttwarn's own data: `topic`, `payload` and the
//! times. `{key[a][0]}` goes into it, `{key!j}` is JSON, `{key:.1f}` a number's form; `\n` is a line
//! break. What has no counterpart is refused with the reason, never guessed.

use std::fmt::Write as _;

/// A template of ours.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Text {
    pub(super) template: String,
    /// Whether it looks into the payload; if not, the payload is text, as it came.
    pub(super) reads_payload: bool,
    /// What is told in another way than before.
    pub(super) notes: Vec<&'static str>,
}

/// What `topic` and `payload` stand for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scene<'a> {
    /// A publish.
    Publish,
    /// What mqttwarn says of itself, of a section's topic.
    Said { topic: &'a str, payload: &'a str },
}

const DATE: &str = "times are UTC, as 2026-11-23T10:00:00Z";
const TIME: &str = "times of day are UTC, as 10:00 UTC";
const JSON: &str = "`!j` escapes < > & ' as \\u003c and so on, which is the same JSON";

/// The variable of ours for a time of mqttwarn's.
fn time(name: &str) -> Option<(&'static str, &'static str)> {
    match name {
        "_dtiso" | "_ltiso" | "_dtepoch" => Some(("now", DATE)),
        "_dthhmm" | "_dthhmmss" => Some(("time", TIME)),
        _ => None,
    }
}

/// The payload as it came.
pub(super) fn payload() -> Text {
    Text { template: "{{ payload }}".to_owned(), ..Text::default() }
}

/// This text and nothing else.
pub(super) fn literal(text: &str) -> String {
    text.replace('{', "{{ '{' }}")
}

/// Our template for a `format`.
///
/// # Errors
/// What cannot be said in ours, and what mqttwarn does with it.
pub(super) fn convert(format: &str, scene: Scene<'_>) -> Result<Text, String> {
    if let Some(name) = function(format) {
        return Err(format!("function {name}() makes the text; write it as a template"));
    }
    let mut text = Text::default();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, after) = rest.split_at(at);
        text.template.push_str(&literal(before));
        if let Some(after) = after.strip_prefix("{{") {
            text.template.push_str(&literal("{"));
            rest = after;
        } else if let Some(after) = after.strip_prefix("}}") {
            text.template.push('}');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let Some((field, after)) = after.split_once('}') else {
                return Err("a { of the format has no }, so mqttwarn sends the payload".to_owned());
            };
            if field.contains('{') {
                return Err("a { stands in another one".to_owned());
            }
            text.field(field, scene)?;
            rest = after;
        } else {
            return Err("a } of the format has no {, so mqttwarn sends the payload".to_owned());
        }
    }
    text.template.push_str(&literal(rest));
    text.template = text.template.replace("\\n", "\n");
    Ok(text)
}

/// The function that `name()` calls.
pub(super) fn function(text: &str) -> Option<&str> {
    let (name, _) = text.split_once("()")?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    is_name.then_some(name)
}

impl Text {
    fn field(&mut self, field: &str, scene: Scene<'_>) -> Result<(), String> {
        let (field, spec) = field.split_once(':').unwrap_or((field, ""));
        let (path, conversion) = field.split_once('!').unwrap_or((field, ""));
        if !matches!(conversion, "" | "j" | "s" | "r") {
            return Err(format!("{{{field}}}: Python has no conversion !{conversion}"));
        }
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (name, below) = path.split_at(end);
        if name.is_empty() || name.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{{{field}}}: mqttwarn has no fields by number"));
        }
        if let (Scene::Said { topic, payload }, "" | "s" | "r", "", "") =
            (scene, conversion, spec, below)
        {
            let said = match name {
                "topic" => Some(topic),
                "payload" => Some(payload),
                _ => None,
            };
            if let Some(said) = said {
                self.template.push_str(&literal(said));
                return Ok(());
            }
        }
        let mut value = match (name, time(name)) {
            (_, Some((variable, note))) => {
                self.note(note);
                variable.to_owned()
            }
            ("topic" | "payload", None) => name.to_owned(),
            _ => {
                self.reads_payload = true;
                format!("payload{}", member(name))
            }
        };
        if !below.is_empty()
            && value != "payload"
            && !value.starts_with("payload.")
            && !value.starts_with("payload[")
        {
            return Err(format!("{{{field}}}: there is nothing in `{name}`"));
        }
        if !below.is_empty() && name == "payload" {
            return Err(format!("{{{field}}}: the payload is text to mqttwarn"));
        }
        value.push_str(&path_below(field, below)?);
        if conversion == "j" {
            self.note(JSON);
            value.push_str(" | tojson");
        }
        match printf(spec) {
            Some(None) => {}
            Some(Some(printf)) if conversion != "j" => {
                value = format!("'{printf}' | format({value})")
            }
            _ => {
                return Err(format!(
                    "{{{field}:{spec}}}: write this form with a filter of templates"
                ));
            }
        }
        write!(self.template, "{{{{ {value} }}}}").expect("text takes all");
        Ok(())
    }

    fn note(&mut self, note: &'static str) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// `.name`, or `["odd name"]`.
fn member(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if plain { format!(".{name}") } else { format!("[{}]", serde_json::Value::from(name)) }
}

/// `[a][0]` after a field's name.
fn path_below(field: &str, below: &str) -> Result<String, String> {
    let mut path = String::new();
    let mut rest = below;
    while !rest.is_empty() {
        let inner = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let Some((index, after)) = inner.filter(|(index, _)| !index.is_empty()) else {
            return Err(format!(
                "{{{field}}}: values of a payload have no attributes, so mqttwarn sends the payload"
            ));
        };
        if index.bytes().all(|byte| byte.is_ascii_digit()) {
            write!(path, "[{index}]").expect("text takes all");
        } else {
            path.push_str(&member(index));
        }
        rest = after;
    }
    Ok(path)
}

/// The form of `%` for a form of Python's `format()`: `Some(None)` for none at all, `None` where
/// there is no such form.
fn printf(spec: &str) -> Option<Option<String>> {
    if spec.is_empty() {
        return Some(None);
    }
    let (align, rest) = match spec.strip_prefix('<') {
        Some(rest) => ("-", rest),
        None => ("", spec.strip_prefix('>').unwrap_or(spec)),
    };
    let aligned = rest.len() < spec.len();
    let (kind, size) = match rest.strip_suffix(['d', 'f', 'F', 'e', 'E', 's', 'x', 'X']) {
        Some(size) => (rest.strip_prefix(size)?, size),
        None => ("s", rest),
    };
    let (width, precision) = match size.split_once('.') {
        Some((width, precision)) => (width, Some(precision)),
        None => (size, None),
    };
    let digits = |text: &str| text.len() <= 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    let fits = match kind {
        "f" | "F" | "e" | "E" => {
            precision.is_none_or(|precision| !precision.is_empty() && digits(precision))
        }
        _ => precision.is_none(),
    };
    // Text stands left in Python and right in `%s`; with a sign nobody has to know which it is.
    if !fits || !digits(width) || (kind == "s" && !width.is_empty() && !aligned) {
        return None;
    }
    let precision = precision.map_or_else(String::new, |precision| format!(".{precision}"));
    Some(Some(format!("%{align}{width}{precision}{kind}")))
}

/// A Jinja template of mqttwarn's, which sees the keys of the payload by their bare names.
///
/// # Errors
/// It is none.
pub(super) fn jinja(source: &str) -> Result<Text, String> {
    // mqttwarn's Jinja takes the line break after a tag away, and calls one filter otherwise.
    let source = source.replace("%}\n", "%}").replace("|jsonify", "|tojson");
    let source = source.replace("| jsonify", "| tojson");
    let environment = minijinja::Environment::new();
    let template = environment.template_from_str(&source).map_err(|error| {
        format!("line {}: {}", error.line().unwrap_or(1), error.detail().unwrap_or("no template"))
    })?;
    let mut names: Vec<String> = template.undeclared_variables(false).into_iter().collect();
    names.sort();
    let mut text = Text::default();
    for name in names {
        if let Some((variable, note)) = time(&name) {
            text.note(note);
            write!(text.template, "{{% set {name} = {variable} %}}").expect("text takes all");
        } else if !matches!(name.as_str(), "topic" | "payload" | "range" | "dict" | "namespace") {
            text.reads_payload = true;
            // Jinja makes nothing of what is missing, ours would fail.
            write!(text.template, "{{% set {name} = payload{} | default('') %}}", member(&name))
                .expect("text takes all");
        }
    }
    text.template.push_str(&source);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(format: &str, expected: &str) {
        let found = match convert(format, Scene::Publish) {
            Ok(text) if text.reads_payload => text.template,
            Ok(text) => format!("text: {}", text.template),
            Err(why) => format!("no: {why}"),
        };
        assert_eq!(found, expected, "{format}");
    }

    #[test]
    fn formats_become_templates() {
        check("door open", "text: door open");
        check(
            "{name}: {temp:.1f} °C",
            "{{ payload.name }}: {{ '%.1f' | format(payload.temp) }} °C",
        );
        check("{topic}\\n{payload}", "text: {{ topic }}\n{{ payload }}");
        check("{_dtiso} {_dthhmm}", "text: {{ now }} {{ time }}");
        check("{data!j}", "{{ payload.data | tojson }}");
        check("{a[b][0]}", "{{ payload.a.b[0] }}");
        check("{temp-c}", "{{ payload[\"temp-c\"] }}");
        check("100 % {{x}} {% y", "no: a { of the format has no }, so mqttwarn sends the payload");
        check("{{x}}", "text: {{ '{' }}x}");
        check(
            "{n:>5d}|{n:05d}|{s:<8}",
            "{{ '%5d' | format(payload.n) }}|{{ '%05d' | format(payload.n) }}|{{ '%-8s' | format(payload.s) }}",
        );
    }

    #[test]
    fn what_ours_cannot_say_is_refused() {
        check("words()", "no: function words() makes the text; write it as a template");
        check("{}", "no: {}: mqttwarn has no fields by number");
        check(
            "{a.b}",
            "no: {a.b}: values of a payload have no attributes, so mqttwarn sends the payload",
        );
        check("{a:,}", "no: {a:,}: write this form with a filter of templates");
        check("{a:{w}}", "no: a { stands in another one");
        check("a } b", "no: a } of the format has no {, so mqttwarn sends the payload");
        check("{a!x}", "no: {a!x}: Python has no conversion !x");
        check("{topic[0]}", "no: {topic[0]}: there is nothing in `topic`");
    }

    #[test]
    fn jinja_sees_the_keys_of_the_payload() {
        let text = jinja(
            "{% if name %}\n{{ name | jsonify }} at {{ _dthhmm }} on {{ topic }}{% endif %}\n",
        )
        .expect("a template");
        assert_eq!(
            text.template,
            "{% set _dthhmm = time %}{% set name = payload.name | default('') %}{% if name %}{{ name | tojson }} at {{ _dthhmm }} on {{ topic }}{% endif %}"
        );
        assert!(text.reads_payload);
        assert!(jinja("{% if %}").is_err());
    }

    proptest! {
        #[test]
        fn any_format_is_converted_or_refused(format in "([{}!:.\\[\\]a0<>\\\\n]|.){0,60}") {
            drop(convert(&format, Scene::Publish));
            drop(jinja(&format));
        }
    }
}
