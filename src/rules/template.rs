//! minijinja templates: `text`, `text_clear` and `title`.
//!
//! Compiled when the rule is loaded; a variable, filter or test that there is not refuses the load.
//! Strict: a field that a payload lacks fails the rendering, because half a sentence reads like a
//! whole one. No loader, no includes, no files; work is limited by fuel, length by
//! `text_bytes_max`. What cannot be rendered is told with what could be, a [`GAP`] for each place
//! that failed, and the payload as it came: an alert always goes out, and never without its
//! reading.
//!
//! A number that a device has put in quotes is one for `format`, `round` and `abs`.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};

use super::condition::capture;
use super::named::Named;
use super::view::to_template;
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::model::{Alert, AlertState, Severity};
use crate::payload::Value;
use crate::problem::closest;
use crate::span::Span;
use crate::topic::{TopicFilter, TopicName};

/// What every template sees besides what its rule names and its captures.
pub(super) const NAMES: &[&str] = &[
    "payload",
    "previous",
    "topic",
    "client_id",
    "replayed",
    "key",
    "rule",
    "severity",
    "level",
    "from_level",
    "last_seen",
    "events",
    "at",
    "now",
    "time",
    "duration",
];

/// The filters of minijinja that people use, for the message about one that there is not.
const FILTERS: &[&str] = &[
    "abs",
    "bool",
    "capitalize",
    "default",
    "dictsort",
    "first",
    "float",
    "format",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "max",
    "min",
    "replace",
    "reverse",
    "round",
    "slice",
    "sort",
    "split",
    "sum",
    "title",
    "tojson",
    "trim",
    "unique",
    "upper",
];

/// And its tests.
const TESTS: &[&str] = &[
    "boolean",
    "containing",
    "defined",
    "divisibleby",
    "endingwith",
    "even",
    "false",
    "in",
    "none",
    "number",
    "odd",
    "startingwith",
    "string",
    "true",
    "undefined",
];

/// What minijinja itself brings.
const GLOBALS: &[&str] = &["range", "dict", "namespace", "loop"];

/// What stands in a text for a place that could not be rendered.
const GAP: &str = "?";
/// Most of them in one text: each has it rendered once more.
const GAPS_MAX: usize = 16;
/// A payload that stands in for a text is cut at so many bytes, and what could be rendered beside
/// it: so that both fit into the longest SMS.
const PAYLOAD_BYTES_MAX: usize = 300;
const RENDERED_BYTES_MAX: usize = 700;

/// minijinja's own filters that ours lead to, by the names that they have besides.
const FORMAT: &str = "minijinja_format";
const ROUND: &str = "minijinja_round";
const ABS: &str = "minijinja_abs";

/// All templates of a rule set.
pub(super) struct Templates {
    environment: Environment<'static>,
    bytes_max: usize,
}

impl fmt::Debug for Templates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Templates").finish_non_exhaustive()
    }
}

/// What a template sees.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    /// The decoded payload.
    pub(super) payload: Value,
    /// The payload of the instance before this one.
    pub(super) previous: Option<Value>,
    /// Of a rule with `each`: the key and the element that it looks at.
    pub(super) item: Option<(Value, Value)>,
    /// The results of `let` and `window`.
    pub(super) named: Named,
    /// The topic of the publish.
    pub(super) topic: TopicName,
    /// The rule's filter, which names the captures.
    pub(super) filter: Arc<TopicFilter>,
    /// Who published.
    pub(super) client_id: Arc<str>,
    /// Whether it is a reading that an upstream had kept.
    pub(super) replayed: bool,
    /// The instance.
    pub(super) key: Arc<str>,
    /// The rule's name.
    pub(super) rule: Arc<str>,
    /// How urgent the alert is.
    pub(super) severity: Severity,
    /// The level that the instance is on now, or was on until it cleared.
    pub(super) level: Severity,
    /// The level that it was on before, if it fired already.
    pub(super) from_level: Option<Severity>,
    /// When the instance was heard of last, if it was.
    pub(super) last_seen: Option<Timestamp>,
    /// How many publishes the alert has counted.
    pub(super) events: u32,
    /// When the reading was taken.
    pub(super) at: Timestamp,
    /// The present time.
    pub(super) now: Timestamp,
    /// When the alert fired.
    pub(super) fired_at: Timestamp,
}

impl Object for Scene {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, name: &str) -> Option<minijinja::Value> {
        Some(match name {
            "payload" => to_template(&self.payload),
            "previous" => to_template(self.previous.as_ref().unwrap_or(&Value::Null)),
            "item" => to_template(&self.item.as_ref()?.1),
            "item_key" => to_template(&self.item.as_ref()?.0),
            "topic" => self.topic.as_str().into(),
            "client_id" => Arc::clone(&self.client_id).into(),
            "key" => Arc::clone(&self.key).into(),
            "rule" => Arc::clone(&self.rule).into(),
            "severity" => self.severity.as_str().into(),
            "level" => self.level.as_str().into(),
            // Empty, so that `{% if from_level %}` asks whether there was one.
            "from_level" => self.from_level.map_or("", Severity::as_str).into(),
            "last_seen" => {
                self.last_seen.map_or_else(|| "never".to_owned(), |at| moment(at.wall())).into()
            }
            "events" => self.events.into(),
            "replayed" => self.replayed.into(),
            "at" => moment(self.at.wall_as_of(self.now)).into(),
            "now" => moment(self.now.wall()).into(),
            "time" => clock(self.now.wall(), "%H:%M UTC").into(),
            "duration" => elapsed(self.fired_at, self.now).into(),
            _ => match self.named.get(name) {
                Some(value) => to_template(value),
                None => capture(&self.filter, &self.topic, name)?.into(),
            },
        })
    }
}

fn moment(time: WallTime) -> String {
    clock(time, "%Y-%m-%dT%H:%M:%SZ")
}

fn clock(time: WallTime, format: &str) -> String {
    jiff::Timestamp::from_millisecond(time.as_millis())
        .map_or_else(|_| time.to_string(), |time| time.strftime(format).to_string())
}

/// `42s`, `5m12s`, `1h30m`, `2d4h`: the two largest units, which is what a person wants to know.
fn elapsed(since: Timestamp, now: Timestamp) -> String {
    let secs = now.since(since).as_secs();
    let coarse = match secs {
        0..3_600 => 1,
        3_600..86_400 => 60,
        _ => 3_600,
    };
    Span::from_secs(secs - secs % coarse).to_string()
}

impl Templates {
    pub(super) fn new(bytes_max: usize, fuel: u64) -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(fuel));
        environment.set_debug(false);
        environment.set_recursion_limit(32);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        // As the device wrote them, not Python's `True` and `None`.
        environment.set_formatter(|out, state, value| {
            let word = match value.kind() {
                ValueKind::Bool if value.is_true() => "true",
                ValueKind::Bool => "false",
                ValueKind::None => "null",
                _ => return minijinja::escape_formatter(out, state, value),
            };
            out.write_str(word).map_err(Error::from)
        });
        // It prints the whole context, and with it payloads.
        environment.remove_global("debug");
        environment.add_filter(FORMAT, minijinja::filters::format);
        environment.add_filter(ROUND, minijinja::filters::round);
        environment.add_filter(ABS, minijinja::filters::abs);
        environment.add_filter("format", format);
        environment.add_filter("round", round);
        environment.add_filter("abs", abs);
        Self { environment, bytes_max }
    }

    /// Adds `source` under `name`; `known` are the names that it may use.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub(super) fn add(
        &mut self,
        name: &str,
        source: &str,
        known: &[&str],
    ) -> Result<(), Vec<String>> {
        if source.trim().is_empty() {
            return Err(vec!["it is empty; leave the key out for the default".to_owned()]);
        }
        if source.len() > self.bytes_max {
            return Err(vec![format!(
                "it is longer than {} bytes; raise rules.text_bytes_max",
                self.bytes_max
            )]);
        }
        self.environment
            .add_template_owned(name.to_owned(), source.to_owned())
            .map_err(|error| vec![explain(&error, source)])?;
        let problems = self.check(name, source, known);
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    fn check(&self, name: &str, source: &str, known: &[&str]) -> Vec<String> {
        let mut problems = Vec::new();
        let undeclared = self
            .environment
            .get_template(name)
            .map(|template| template.undeclared_variables(false))
            .unwrap_or_default();
        let mut undeclared: Vec<String> = undeclared.into_iter().collect();
        undeclared.sort();
        for variable in undeclared {
            if known.contains(&variable.as_str()) || GLOBALS.contains(&variable.as_str()) {
                continue;
            }
            problems.push(match closest(&variable, known) {
                Some(near) => format!("unknown name `{variable}`; did you mean `{near}`?"),
                None => format!(
                    "unknown name `{variable}`; a field of the payload is written payload.{variable}, and known are {}",
                    known.join(", ")
                ),
            });
        }
        // minijinja looks filters and tests up when it renders, which would be in an alarm.
        for (kind, used) in filters_and_tests(source) {
            let question = format!("used is {kind}");
            let exists = self
                .environment
                .compile_expression(&question)
                .and_then(|question| question.eval(minijinja::context! { used }));
            if exists.is_ok_and(|exists| !exists.is_true()) {
                let known = if kind == "filter" { FILTERS } else { TESTS };
                problems.push(match closest(used, known) {
                    Some(near) => format!("unknown {kind} `{used}`; did you mean `{near}`?"),
                    None => format!("unknown {kind} `{used}`; known are {}", known.join(", ")),
                });
            }
        }
        problems
    }

    /// Renders the template `name`.
    ///
    /// # Errors
    /// Why not, and what could be rendered.
    pub(super) fn render(&self, name: &str, scene: Scene) -> Result<Arc<str>, Unrendered> {
        let nothing = |error: &Error, source: &str| {
            let detail = explain(error, source);
            Unrendered { detail, partial: None }
        };
        let scene = minijinja::Value::from_object(scene);
        let template = self.environment.get_template(name).map_err(|error| nothing(&error, ""))?;
        match template.render(scene.clone()) {
            Ok(text) if text.trim().is_empty() => {
                let detail = "it rendered to nothing".to_owned();
                Err(Unrendered { detail, partial: None })
            }
            Ok(text) => Ok(shorten(text, self.bytes_max).into()),
            Err(error) => Err(self.with_gaps(template.source(), &scene, error)),
        }
    }

    /// The template with a [`GAP`] in the place of each `{{ }}` that fails. None at all where
    /// something else fails: the condition of an `{% if %}` decides what is said.
    fn with_gaps(&self, source: &str, scene: &minijinja::Value, error: Error) -> Unrendered {
        let mut source = source.to_owned();
        let mut error = error;
        let mut details: Vec<String> = Vec::new();
        let mut partial = None;
        for _ in 0..GAPS_MAX {
            let detail = explain(&error, &source);
            if !details.contains(&detail) {
                details.push(detail);
            }
            // Whatever is tried again would only run out of it once more.
            if matches!(error.kind(), ErrorKind::OutOfFuel) {
                break;
            }
            let Some(place) = error.range().and_then(|range| block(&source, range.start)) else {
                break;
            };
            source.replace_range(place, GAP);
            match self.environment.render_str(&source, scene.clone()) {
                Ok(text) => {
                    let says_something = text.contains(char::is_alphanumeric);
                    partial = says_something.then(|| shorten(text, self.bytes_max));
                    break;
                }
                Err(next) => error = next,
            }
        }
        Unrendered { detail: details.join("; "), partial }
    }
}

/// A text that could not be rendered as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unrendered {
    /// Why not, without anything of the payload.
    pub(super) detail: String,
    /// The text with a [`GAP`] for each place that failed, where there is more than them.
    pub(super) partial: Option<String>,
}

/// `format` of minijinja, for numbers in quotes too.
fn format(
    state: &mut State<'_, '_>,
    pattern: &minijinja::Value,
    arguments: Rest<ValueOrKwargs>,
) -> Result<minijinja::Value, Error> {
    let mut all = vec![pattern.clone()];
    all.extend(arguments.into_values());
    let conversions = pattern.as_str().map(conversions).unwrap_or_default();
    for (argument, conversion) in all.iter_mut().skip(1).zip(conversions) {
        if "diuoxXeEfFgG".contains(conversion) {
            *argument = number(argument);
        }
    }
    state.apply_filter(FORMAT, &all)
}

fn round(
    state: &mut State<'_, '_>,
    value: &minijinja::Value,
    arguments: Rest<ValueOrKwargs>,
) -> Result<minijinja::Value, Error> {
    let mut all = vec![number(value)];
    all.extend(arguments.into_values());
    state.apply_filter(ROUND, &all)
}

fn abs(state: &mut State<'_, '_>, value: &minijinja::Value) -> Result<minijinja::Value, Error> {
    state.apply_filter(ABS, &[number(value)])
}

/// The number that stands in quotes; anything else as it is.
fn number(value: &minijinja::Value) -> minijinja::Value {
    let Some(text) = value.as_str().map(str::trim) else { return value.clone() };
    // What Rust reads besides (`inf`, `nan`) is no reading.
    if !text.ends_with(|c: char| c.is_ascii_digit() || c == '.') {
        return value.clone();
    }
    if let Ok(whole) = text.parse::<i64>() {
        return whole.into();
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => number.into(),
        _ => value.clone(),
    }
}

/// What a printf pattern makes of each of its arguments, in order. Nothing where it names them.
fn conversions(pattern: &str) -> Vec<char> {
    let mut found = Vec::new();
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            continue;
        }
        for character in characters.by_ref() {
            match character {
                '(' => return Vec::new(),
                '%' => break,
                'l' | 'h' | 'L' => {}
                _ if character.is_ascii_alphabetic() => {
                    found.push(character);
                    break;
                }
                _ => {}
            }
        }
    }
    found
}

/// Where the `{{ }}` stands that `at` is in.
fn block(source: &str, at: usize) -> Option<std::ops::Range<usize>> {
    let mut from = 0;
    while let Some(open) = source.get(from..)?.find('{').map(|found| from + found) {
        if open > at {
            return None;
        }
        let rest = source.get(open..)?;
        let end = match rest.as_bytes().get(1) {
            Some(b'{') => expression_end(rest)?,
            Some(b'%') => rest.find("%}")? + 2,
            Some(b'#') => rest.find("#}")? + 2,
            _ => 1,
        };
        if at < open + end {
            return rest.starts_with("{{").then_some(open..open + end);
        }
        from = open + end;
    }
    None
}

/// The length of a `{{ }}`, in which quotes may hold braces.
fn expression_end(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut nested = 0_usize;
    let mut before = ' ';
    for (at, character) in text.char_indices().skip(2) {
        match (quote, character) {
            (Some(open), _) if open == character && before != '\\' => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(character),
            (None, '{') => nested += 1,
            (None, '}') if nested > 0 => nested -= 1,
            (None, '}') if before == '}' => return Some(at + 1),
            (None, _) => {}
        }
        before = character;
    }
    None
}

/// At most `bytes_max` bytes, cut between characters.
fn shorten(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        truncate(&mut text, bytes_max.saturating_sub('…'.len_utf8()));
        text.push('…');
    }
    text
}

/// Cuts `text` to at most `bytes_max` bytes, between characters.
pub(super) fn truncate(text: &mut String, mut bytes_max: usize) {
    while !text.is_char_boundary(bytes_max.min(text.len())) {
        bytes_max -= 1;
    }
    text.truncate(bytes_max);
}

/// The text of a rule that has none: its name, what happened, the topic and the payload.
pub(super) fn default_text(rule: &str, topic: &TopicName, payload: &Value) -> Arc<str> {
    // A payload may be long, and the rest is what tells where to look.
    let payload = shorten(payload.to_string(), PAYLOAD_BYTES_MAX);
    if payload.is_empty() {
        format!("{rule}: {topic}").into()
    } else {
        format!("{rule}: {topic}: {payload}").into()
    }
}

/// What goes out where the rule's own text could not be rendered: what of it could, and what the
/// device said. `item`: key and element of a rule with `each`.
pub(super) fn fallback(
    unrendered: Unrendered,
    alert: &Alert,
    payload: &Value,
    item: Option<&(Value, Value)>,
) -> Arc<str> {
    let said = match (item, payload) {
        (Some((key, item)), _) => format!("{key}: {item}"),
        (None, Value::Null) => String::new(),
        (None, payload) => payload.to_string(),
    };
    let said = shorten(said, PAYLOAD_BYTES_MAX);
    let head = match unrendered.partial {
        Some(partial) if said.is_empty() => return partial.into(),
        Some(partial) => {
            return format!("{} ({said})", shorten(partial, RENDERED_BYTES_MAX)).into();
        }
        None if alert.key.is_empty() => alert.rule.to_string(),
        None => format!("{} {}", alert.rule, alert.key),
    };
    let over = if alert.state == AlertState::Cleared { " is over" } else { "" };
    let head = format!("{}{over}: {}", shorten(head, RENDERED_BYTES_MAX), alert.topic);
    if said.is_empty() { head.into() } else { format!("{head}: {said}").into() }
}

/// The error in words; its detail only where that is about the template, not the payload.
fn explain(error: &Error, source: &str) -> String {
    let detail = match error.kind() {
        ErrorKind::SyntaxError | ErrorKind::UnknownFilter | ErrorKind::UnknownTest => {
            error.detail().unwrap_or_default()
        }
        ErrorKind::UndefinedError => {
            let line = error.line().unwrap_or(1).saturating_sub(1);
            let place = error
                .range()
                .and_then(|range| source.get(path_start(source, range.start)..range.end));
            return match place.or_else(|| source.lines().nth(line)) {
                Some(place) => format!("a value is missing: {}", place.trim()),
                None => "a value is missing".to_owned(),
            };
        }
        ErrorKind::OutOfFuel => "raise rules.text_fuel or write less",
        // What stands in the template, never what came.
        _ => {
            let place = error.range().and_then(|range| block(source, range.start));
            place.and_then(|place| source.get(place)).unwrap_or_default()
        }
    };
    let line = match error.line() {
        Some(line) if line > 1 => format!("line {line}: "),
        _ => String::new(),
    };
    if detail.is_empty() {
        format!("{line}{}", error.kind())
    } else {
        format!("{line}{}: {detail}", error.kind())
    }
}

/// minijinja's place of `a.b.c` may begin in the middle of it.
fn path_start(source: &str, start: usize) -> usize {
    let before = source.get(..start).unwrap_or_default();
    before.trim_end_matches(|c: char| c.is_alphanumeric() || "_.[]'\"".contains(c)).len()
}

/// The names after `|` and `is` inside a template's braces.
fn filters_and_tests(source: &str) -> Vec<(&'static str, &str)> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(open) = rest.find(['{']) {
        let (_, tail) = rest.split_at(open);
        let close = match tail.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                rest = tail.split_once("#}").map_or("", |(_, after)| after);
                continue;
            }
            _ => {
                rest = tail.strip_prefix('{').unwrap_or_default();
                continue;
            }
        };
        let (body, after) = tail.split_once(close).unwrap_or((tail, ""));
        rest = after;
        let mut expected = None;
        for word in words(body) {
            match (word, expected) {
                ("|", _) => expected = Some("filter"),
                ("is", _) => expected = Some("test"),
                ("not", Some("test")) => {}
                (_, Some(kind)) => {
                    if word.starts_with(|c: char| c.is_alphabetic() || c == '_') {
                        found.push((kind, word));
                    }
                    expected = None;
                }
                _ => {}
            }
        }
    }
    found
}

/// Identifiers and single other characters, without what stands in quotes.
fn words(body: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = body.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if first == '"' || first == '\'' {
            let inner = rest.get(1..).unwrap_or_default();
            inner.find(first).map_or(rest.len(), |end| end + 2)
        } else {
            first.len_utf8()
        };
        let (word, tail) = rest.split_at(length);
        words.push(word);
        rest = tail.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::payload::{Decode, Limits, decode};
    use crate::topic::TopicLimits;

    const KNOWN: &[&str] = &[
        "payload",
        "topic",
        "client_id",
        "key",
        "rule",
        "severity",
        "now",
        "time",
        "duration",
        "site",
    ];

    fn templates() -> Templates {
        Templates::new(400, 2_000)
    }

    fn scene(payload: &[u8]) -> Option<Scene> {
        let limits = TopicLimits::default();
        let fired_at = Timestamp::from_millis(1_790_000_000_000);
        Some(Scene {
            payload: decode(&Decode::Auto.into(), payload, Limits::default(), Timestamp::default())
                .ok()?,
            previous: None,
            item: None,
            named: Named::new(),
            topic: TopicName::parse("site/kiel/1", limits).expect("a topic"),
            filter: Arc::new(
                TopicFilter::parse_with_captures("site/{site}/+", limits).expect("a filter"),
            ),
            client_id: "pump-7".into(),
            replayed: false,
            key: "kiel".into(),
            rule: "warm".into(),
            severity: Severity::Critical,
            level: Severity::Critical,
            from_level: None,
            last_seen: None,
            events: 1,
            at: fired_at,
            now: fired_at.plus(std::time::Duration::from_secs(312)),
            fired_at,
        })
    }

    fn render(source: &str, payload: &str) -> String {
        let mut templates = templates();
        if let Err(problems) = templates.add("t", source, KNOWN) {
            return format!("refused: {}", problems.join(" | "));
        }
        match templates.render("t", scene(payload.as_bytes()).expect("decodes")) {
            Ok(text) => text.to_string(),
            Err(Unrendered { detail, partial }) => {
                let partial = partial.map(|text| format!(" -> {text}")).unwrap_or_default();
                format!("failed: {detail}{partial}")
            }
        }
    }

    #[test]
    fn tells_what_happened() {
        let payload = r#"{"t":-10.5,"n":3,"l":[1,{"x":"y"}],"null":null,"dp:0":7,"yes":true}"#;
        for (source, expected) in [
            ("{{ site }}: {{ payload.t }} °C", "kiel: -10.5 °C"),
            ("{{ topic }} {{ client_id }} {{ key }}", "site/kiel/1 pump-7 kiel"),
            ("{{ rule }} is {{ severity }}", "warm is critical"),
            ("{{ now }}, {{ time }}, {{ duration }}", "2026-09-21T14:18:32Z, 14:18 UTC, 5m12s"),
            ("{{ payload.n }} {{ payload.n + 1 }}", "3 4"),
            ("{{ payload.l[1].x }} {{ payload.l | length }}", "y 2"),
            ("{{ payload['dp:0'] }}", "7"),
            ("{% for k in payload %}{{ k }} {% endfor %}", "dp:0 l n null t yes "),
            ("{% for k, v in payload | items %}{{ k }};{% endfor %}", "dp:0;l;n;null;t;yes;"),
            ("{% if payload.t < 0 %}cold{% else %}warm{% endif %}", "cold"),
            ("{{ payload.x | default('no') }}", "no"),
            ("{{ payload.x is defined }} {{ payload.yes }}", "false true"),
            ("{{ payload.t | round(1) | abs }}", "10.5"),
            ("{{ payload.l }}", "[1,{\"x\":\"y\"}]"),
            ("{{ payload.null }}", "null"),
            ("<b>&", "<b>&"),
        ] {
            assert_eq!(render(source, payload), expected, "{source}");
        }
    }

    #[test]
    fn tells_what_the_rule_knows() {
        let decode = |json: &str| {
            decode(&Decode::Json.into(), json.as_bytes(), Limits::default(), Timestamp::default())
        };
        let mut full = scene(b"{}").expect("decodes");
        full.named.push("avg5".into(), Value::Float(21.5));
        full.named.push("site".into(), Value::Null);
        full.previous = decode("{\"t\":1}").ok();
        full.item = decode("{\"x\":2}").ok().map(|item| (Value::Text("k".into()), item));
        full.from_level = Some(Severity::Warning);
        full.last_seen = Some(Timestamp::from_millis(1_789_999_000_000));
        full.events = 3;
        full.replayed = true;
        let bare = scene(b"{}").expect("decodes");
        let mut known = NAMES.to_vec();
        known.extend(["item", "item_key", "avg5", "site"]);
        for (source, in_full, in_bare) in [
            ("{{ avg5 }}", "21.5", "failed: a value is missing: avg5"),
            ("{{ site }}", "null", "kiel"),
            ("{{ previous.t }}", "1", "failed: a value is missing: previous.t"),
            ("{{ previous is none }}", "false", "true"),
            (
                "{{ item_key }} {{ item.x }}",
                "k 2",
                "failed: a value is missing: item_key; a value is missing: item.x",
            ),
            ("{{ level }}<{{ from_level }}>", "critical<warning>", "critical<>"),
            ("-{{ last_seen }}", "-2026-09-21T13:56:40Z", "-never"),
            ("{{ events }} {{ replayed }}", "3 true", "1 false"),
            ("{{ at }} {{ duration }}", "2026-09-21T14:13:20Z 5m12s", "2026-09-21T14:13:20Z 5m12s"),
        ] {
            let mut templates = templates();
            templates.add("t", source, &known).expect(source);
            for (scene, expected) in [(&full, in_full), (&bare, in_bare)] {
                let text = match templates.render("t", scene.clone()) {
                    Ok(text) => text.to_string(),
                    Err(unrendered) => format!("failed: {}", unrendered.detail),
                };
                assert_eq!(text, expected, "{source}");
            }
        }
    }

    #[test]
    fn what_cannot_work_is_refused_at_load() {
        let all: Vec<String> = [
            " ",
            "{{ payload.t",
            "{{ paylod.t }}",
            "{{ temp }} and {{ code }}",
            "a\nb {{ site | uper }}",
            "{{ site is emty }} {{ site is not defned }}",
            "{% include 'x' %}",
            "{{ debug() }}",
            "{# {{ x | nothing }} #}{{ 'a | nothing' }}",
        ]
        .iter()
        .map(|source| format!("{source}\n    {}", render(source, "1")))
        .collect();
        insta::assert_snapshot!(all.join("\n"), @r#"
         
            refused: it is empty; leave the key out for the default
        {{ payload.t
            refused: syntax error: unexpected end of input, expected end of variable block
        {{ paylod.t }}
            refused: unknown name `paylod`; did you mean `payload`?
        {{ temp }} and {{ code }}
            refused: unknown name `code`; a field of the payload is written payload.code, and known are payload, topic, client_id, key, rule, severity, now, time, duration, site | unknown name `temp`; did you mean `time`?
        a
        b {{ site | uper }}
            refused: unknown filter `uper`; did you mean `upper`?
        {{ site is emty }} {{ site is not defned }}
            refused: unknown test `emty`; known are boolean, containing, defined, divisibleby, endingwith, even, false, in, none, number, odd, startingwith, string, true, undefined | unknown test `defned`; did you mean `defined`?
        {% include 'x' %}
            refused: syntax error: unknown statement include
        {{ debug() }}
            refused: unknown name `debug`; a field of the payload is written payload.debug, and known are payload, topic, client_id, key, rule, severity, now, time, duration, site
        {# {{ x | nothing }} #}{{ 'a | nothing' }}
            a | nothing
        "#);
        assert!(render(&"x".repeat(401), "1").contains("longer than 400 bytes"));
    }

    #[test]
    fn what_fails_says_why_and_repeats_no_payload() {
        let payload = r#"{"secret":"sesame","n":50000}"#;
        for (source, expected) in [
            (
                "it is {{ payload.temp }} now",
                "failed: a value is missing: payload.temp -> it is ? now",
            ),
            ("{{ payload.a.b }}", "failed: a value is missing: payload.a.b"),
            ("{{ payload.secret + 1 }}", "failed: invalid operation: {{ payload.secret + 1 }}"),
            (
                "{{ payload.secret | int }} is it",
                "failed: invalid operation: {{ payload.secret | int }} -> ? is it",
            ),
            ("{% if payload.n < 0 %}x{% endif %}", "failed: it rendered to nothing"),
            (
                "{% for x in range(payload.n) %}x{% endfor %}",
                "failed: engine ran out of fuel: raise rules.text_fuel or write less",
            ),
            (
                "{{ payload.secret * payload.n }}",
                "failed: engine ran out of fuel: raise rules.text_fuel or write less",
            ),
        ] {
            assert_eq!(render(source, payload), expected, "{source}");
        }
        let long = render("{{ payload }}", &format!("\"{}\"", "ä".repeat(1_000)));
        assert!(long.len() <= 400 && long.ends_with("ä…"), "{long}");
    }

    #[test]
    fn each_place_that_fails_is_a_gap_and_the_rest_is_kept() {
        let payload = r#"{"id":"node7","q":3,"l":[1,"x",2]}"#;
        for (source, expected) in [
            (
                "{{ payload.id }} runs {{ payload.q }} at {{ payload.heap }}/{{ payload.of }}",
                "failed: a value is missing: payload.heap; a value is missing: payload.of -> node7 runs 3 at ?/?",
            ),
            (
                "{{ payload.id }} {{- payload.x | round(1) -}} {{ '}}' }}",
                "failed: invalid operation: {{- payload.x | round(1) -}} -> node7 ? }}",
            ),
            (
                "{% for one in payload.l %}{{ one + 1 }},{{ one }} {% endfor %}",
                "failed: invalid operation: {{ one + 1 }} -> ?,1 ?,x ?,2 ",
            ),
            // What decides on the words is no place for a gap.
            (
                "{% if payload.heap > 3 %}full{% else %}fine{% endif %}",
                "failed: a value is missing: if payload.heap > 3",
            ),
            (
                "{% for one in payload.heap %}{{ one }}{% endfor %} {{ payload.q }}",
                "failed: a value is missing: payload.heap",
            ),
            (
                "{# {{ a }} #}{x {{ payload.heap }}",
                "failed: a value is missing: payload.heap -> {x ?",
            ),
            (&"{{ payload.x }}".repeat(17), "failed: a value is missing: payload.x"),
        ] {
            assert_eq!(render(source, payload), expected, "{source}");
        }
    }

    #[test]
    fn a_number_in_quotes_is_one_where_a_number_is_wanted() {
        let payload = r#"{"b":"21.55","n":"7","x":"no","inf":"inf","neg":"-1.26"}"#;
        for (source, expected) in [
            ("{{ '%.1f' | format(payload.b) }}", "21.6"),
            ("{{ '%d %5.1f %s' | format(payload.n, payload.b, payload.b) }}", "7  21.6 21.55"),
            ("{{ '100%% %3d' | format(payload.n) }}", "100%   7"),
            ("{{ '%(n).1f' | format({'n': 7.04}) }}", "7.0"),
            ("{{ payload.b | round(1) }} {{ payload.neg | abs }}", "21.6 1.26"),
            ("{{ payload.b | round(method='floor') }}", "21.0"),
            ("{{ payload.b }}", "21.55"),
        ] {
            assert_eq!(render(source, payload), expected, "{source}");
        }
        for source in ["{{ '%.1f' | format(payload.x) }}", "{{ payload.inf | round }}"] {
            assert!(render(source, payload).starts_with("failed: "), "{source}");
        }
    }

    #[test]
    fn a_duration_is_told_in_two_units() {
        let start = Timestamp::from_millis(0);
        for (millis, expected) in [
            (0, "0s"),
            (42_900, "42s"),
            (312_000, "5m12s"),
            (5_423_000, "1h30m"),
            (187_500_000, "2d4h"),
        ] {
            assert_eq!(elapsed(start, Timestamp::from_millis(millis)), expected);
        }
    }

    proptest! {
        #[test]
        fn any_payload_never_panics(
            text in "[\\[\\]{}:,\"a-c0-9.e-]{0,40}",
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut templates = templates();
            let sources = [
                "{{ payload }}", "{{ payload.a + payload.b }}", "{{ payload[0] }}", "{{ payload | tojson }}",
                "{% for k, v in payload | items %}{{ k }}{{ v }}{% endfor %}", "{{ payload * payload }}",
                "{{ payload | sort | join }}", "{{ payload == payload and payload < payload.a }}",
            ];
            for source in sources {
                templates.add("t", source, KNOWN).expect("compiles");
                for payload in [text.as_bytes(), &bytes] {
                    if let Some(scene) = scene(payload) {
                        drop(templates.render("t", scene));
                    }
                }
            }
        }

        #[test]
        fn any_source_never_panics(source in "[a-z.(){}%#|'\" ]{0,40}") {
            let _ = render(&source, "{\"a\":1}");
        }
    }
}
