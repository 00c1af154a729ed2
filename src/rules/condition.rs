//! CEL expressions: `when`, `clear`, and the parts of `key`.
//!
//! Compiled when the rule is loaded, where everything that can be known to be wrong refuses the
//! load. An expression sees a [`Scene`]: the publish, what its rule named, and its captures.
//! One environment is shared by all: making one takes longer than a hundred evaluations.
//! No error text repeats anything of a payload.

use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::common::types::{CelBool, CelDouble, CelInt, CelString, CelTimestamp, CelUInt};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError};

use super::direct::{self, Direct};
use super::functions::{self, words::Words};
use super::lower::types::Kind;
use super::lower::{self, Reads};
use super::named::Named;
use super::pattern::{self, Pattern};
use super::view::{Unusable, from_cel, to_cel};
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;
use crate::payload::Value;
use crate::topic::{TopicFilter, TopicName};

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    functions::register(&mut env);
    pattern::register(&mut env);
    Arc::new(env)
});

/// How the error ends of what uses a `let` that failed.
const CONSEQUENCE: &str = "has no value, because its own expression failed";

/// Whether an error follows from another one, of a `let` that was evaluated before.
pub(super) fn is_consequence(detail: &str) -> bool {
    detail.ends_with(CONSEQUENCE)
}

/// What an expression of a rule may name, besides what every expression sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// The captures of its topic.
    pub captures: &'a [&'a str],
    /// The `let` and `window` names that are known so far.
    pub named: &'a [&'a str],
    /// What these are, one for each, as far as that is known.
    pub kinds: &'a [Kind],
    /// Whether the rule has `each`, and with it `item` and `item_key`.
    pub each: bool,
    /// The rule's words for `is_on`, beside the usual ones.
    pub words: Option<&'a Words>,
}

/// A compiled expression.
#[derive(Debug)]
pub struct Expression {
    root: IdedExpr,
    source: Arc<str>,
    reads: Reads,
    kind: Kind,
    /// The same in a form that needs no CEL, where it is simple enough.
    direct: Option<Direct>,
}

/// What an expression sees: one publish through one rule's filter.
///
/// A name means, in this order: what every expression sees, what the rule names, a capture.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The decoded payload.
    pub payload: &'a Value,
    /// The payload of the instance before this one; `None` (for expressions: null) at its first.
    pub previous: Option<&'a Value>,
    /// Of a rule with `each`: the key and the element that it looks at.
    pub item: Option<(&'a Value, &'a Value)>,
    /// The results of `let` and `window` so far.
    pub named: &'a Named,
    /// The topic of the publish.
    pub topic: &'a TopicName,
    /// The rule's filter, which names the captures.
    pub filter: &'a TopicFilter,
    /// Who published.
    pub client_id: &'a str,
    /// RETAIN as the publisher set it.
    pub retain: bool,
    /// Whether it is a reading that an upstream had kept.
    pub replayed: bool,
    /// When the reading was taken.
    pub at: Timestamp,
    /// The present time.
    pub now: Timestamp,
}

/// What CEL asks for variables.
struct Variables<'a> {
    scene: &'a Scene<'a>,
    patterns: &'a [Pattern],
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let scene = self.scene;
        Some(match name {
            "payload" => CowVal::Owned(to_cel(scene.payload)),
            "previous" => CowVal::Owned(to_cel(scene.previous.unwrap_or(&Value::Null))),
            "item" => CowVal::Owned(to_cel(scene.item?.1)),
            "item_key" => CowVal::Owned(to_cel(scene.item?.0)),
            "topic" => CowVal::owned(CelString::from(scene.topic.as_str())),
            "client_id" => CowVal::owned(CelString::from(scene.client_id)),
            "retain" => CowVal::owned(CelBool::from(scene.retain)),
            "replayed" => CowVal::owned(CelBool::from(scene.replayed)),
            "at" => time_to_cel(scene.at.wall_as_of(scene.now))?,
            "now" => time_to_cel(scene.now.wall())?,
            lower::HAS_PREVIOUS => CowVal::owned(CelBool::from(scene.previous.is_some())),
            _ if name.starts_with('@') => CowVal::Borrowed(pattern::named(self.patterns, name)?),
            // CEL asks for `payload.a` as a name first.
            _ if name.contains('.') => return None,
            _ => match scene.named.get(name) {
                Some(value) => CowVal::Owned(to_cel(value)),
                None => CowVal::owned(CelString::from(capture(scene.filter, scene.topic, name)?)),
            },
        })
    }
}

fn time_to_cel<'v>(time: WallTime) -> Option<CowVal<'v, 'v>> {
    let time = chrono::DateTime::from_timestamp_millis(time.as_millis())?;
    Some(CowVal::owned(CelTimestamp::from(time.fixed_offset())))
}

/// The level of `topic` that `filter` captures as `name`.
pub(super) fn capture<'a>(
    filter: &'a TopicFilter,
    topic: &'a TopicName,
    name: &str,
) -> Option<&'a str> {
    filter.captured(topic).find(|(known, _)| known.as_ref() == name).map(|(_, level)| level)
}

impl Expression {
    /// Compiles `source` for a rule that has these names.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with what to do.
    pub fn compile(source: &str, scope: &Scope<'_>, bytes_max: usize) -> Result<Self, Vec<String>> {
        if source.trim().is_empty() {
            return Err(vec!["it is empty".to_owned()]);
        }
        if source.len() > bytes_max {
            return Err(vec![format!(
                "it is longer than {bytes_max} bytes; raise rules.expression_bytes_max or split the rule"
            )]);
        }
        let mut root = ENV.parser().parse(source).map_err(|errors| {
            let mut found: Vec<String> = errors.errors.iter().map(explain_parse).collect();
            // Of a syntax error the first report is the true one.
            found.truncate(1);
            found
        })?;
        let (kind, mut problems) = lower::types::of(&root, scope);
        let reads = lower::lower(&mut root, scope)?;
        if !problems.is_empty() {
            problems.dedup();
            return Err(problems);
        }
        let direct = direct::compile(&root, scope, &reads.patterns);
        Ok(Self { root, source: source.into(), reads, kind, direct })
    }

    /// What it gives, as far as that is known without a payload.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The expression as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it reads the variable `name`: `previous`, `item`, a `let`, a window, a capture.
    pub fn uses(&self, name: &str) -> bool {
        self.reads.names.iter().any(|known| known == name)
    }

    /// What it looks at in the payload, as `payload.a.b`, as far as it is written out.
    pub fn looks_at(&self) -> &[String] {
        &self.reads.paths
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// The evaluation failed, or its result is neither true nor false.
    pub fn holds(&self, scene: &Scene<'_>) -> Result<bool, String> {
        match self.direct.as_ref().and_then(|direct| direct.holds(scene)) {
            Some(holds) => Ok(holds),
            None => self.holds_in_cel(scene),
        }
    }

    fn holds_in_cel(&self, scene: &Scene<'_>) -> Result<bool, String> {
        self.evaluate(scene, |value| {
            value.downcast_ref::<CelBool>().map(|holds| *holds.inner()).ok_or_else(|| {
                let kind = type_in_words(value.get_type().name());
                format!("it gives {kind}, not true or false; compare it, as in x > 5")
            })
        })
    }

    /// Its result as a part of an instance's key.
    ///
    /// # Errors
    /// The evaluation failed, or its result is no text, number or boolean.
    pub fn key(&self, scene: &Scene<'_>) -> Result<String, String> {
        match self.direct.as_ref().and_then(|direct| direct.key(scene)) {
            Some(key) => Ok(key),
            None => self.key_in_cel(scene),
        }
    }

    fn key_in_cel(&self, scene: &Scene<'_>) -> Result<String, String> {
        self.evaluate(scene, |value| {
            key_text(value).ok_or_else(|| {
                let kind = type_in_words(value.get_type().name());
                format!("it gives {kind}; a key is text, a number or true or false")
            })
        })
    }

    /// Its result, whatever it is: for `let`, windows and `each`.
    ///
    /// A whole number comes back as one, whether it is CEL's `int` or `double`; what is not finite
    /// and an empty optional are null; a time is RFC 3339 text, a duration its seconds.
    ///
    /// # Errors
    /// The evaluation failed, or its result is too large or nothing that can be kept, such as a type.
    pub fn evaluate_value(&self, scene: &Scene<'_>) -> Result<Value, String> {
        match self.direct.as_ref().and_then(|direct| direct.value(scene)) {
            Some(value) => Ok(value),
            None => self.value_in_cel(scene),
        }
    }

    fn value_in_cel(&self, scene: &Scene<'_>) -> Result<Value, String> {
        self.evaluate(scene, |value| match from_cel(value) {
            Ok(value) => Ok(value),
            Err(Unusable::TooLarge) => Err("its result is too large".to_owned()),
            Err(Unusable::NoValue) => {
                let kind = type_in_words(value.get_type().name());
                Err(format!("it gives {kind}, which is no value of a payload"))
            }
        })
    }

    #[cfg(test)]
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Asks both, and they must agree wherever the direct form answers.
    #[cfg(test)]
    pub(super) fn check_against_cel(&self, scene: &Scene<'_>) {
        let Some(direct) = &self.direct else { return };
        let source = &self.source;
        if let Some(holds) = direct.holds(scene) {
            assert_eq!(self.holds_in_cel(scene), Ok(holds), "{source}");
        }
        if let Some(key) = direct.key(scene) {
            assert_eq!(self.key_in_cel(scene), Ok(key), "{source}");
        }
        if let Some(value) = direct.value(scene) {
            let in_cel = self.value_in_cel(scene).expect("cel has a value too");
            // `2.0` of a payload stays what it is, where CEL has forgotten that it had a point.
            assert!(to_cel(&value).equals(to_cel(&in_cel).as_ref()), "{source}: {value} {in_cel}");
        }
    }

    fn evaluate<T>(
        &self,
        scene: &Scene<'_>,
        take: impl FnOnce(&dyn Val) -> Result<T, String>,
    ) -> Result<T, String> {
        let variables = Variables { scene, patterns: &self.reads.patterns };
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(&variables);
        let value = cel::Value::resolve_val(&self.root, &context);
        value.map_err(|error| self.explain(&error)).and_then(|value| take(value.as_ref()))
    }

    /// The error in words, with names from the rule only.
    fn explain(&self, error: &ExecutionError) -> String {
        match error {
            ExecutionError::NoSuchKey(name) if self.source.contains(name.as_str()) => {
                format!(
                    "the payload has no field `{name}`; guard it with has(...) if it may be absent"
                )
            }
            ExecutionError::NoSuchKey(_) => "the payload has no such field".to_owned(),
            ExecutionError::UndeclaredReference(name) if self.uses(name) => {
                format!("`{name}` {CONSEQUENCE}")
            }
            ExecutionError::NoSuchOverload(overload) => {
                let types: Vec<&str> =
                    overload.argument_types().iter().map(|kind| type_in_words(kind)).collect();
                not_taken(overload.function().trim_matches('_'), &types)
            }
            ExecutionError::UnsupportedBinaryOperator(operator, left, right) => {
                let operator = match *operator {
                    "add" => "+",
                    "sub" => "-",
                    other => other,
                };
                let (left, right) = (left.type_of().to_string(), right.type_of().to_string());
                // What CEL's own values cannot hold has become null on its way here.
                let right = if right == "null" { "this" } else { type_in_words(&right) };
                not_taken(operator, &[type_in_words(&left), right])
            }
            ExecutionError::ValuesNotComparable(..) => "the values cannot be compared".to_owned(),
            ExecutionError::UnexpectedType { .. } => "a value is of an unexpected type".to_owned(),
            ExecutionError::IndexOutOfBounds(_) => "the list has no such element".to_owned(),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                "division by zero".to_owned()
            }
            ExecutionError::Overflow(..) => "a number is out of range".to_owned(),
            ExecutionError::FunctionError { function, message }
                if functions::find(function).is_some() =>
            {
                format!("`{function}`: {message}")
            }
            ExecutionError::FunctionError { function, .. } => {
                format!("`{function}` cannot take this value")
            }
            _ => "the expression failed".to_owned(),
        }
    }
}

/// What a function or operator was given and does not take, in words.
fn not_taken(function: &str, types: &[&str]) -> String {
    match (function, types) {
        ("." | "?.", [of, ..]) => format!("a field is asked of {of}, which has no fields"),
        ("[_]" | "[?_]", ["bytes", ..]) => {
            "an element is asked of bytes; read(x, 0, 'u8') takes one".to_owned()
        }
        ("[_]" | "[?_]", [of, by]) => format!("an element of {of} is asked for by {by}"),
        _ => {
            let hint = match types {
                [one, other] if [one, other].contains(&&"null") => "; null is no reading",
                ["text", "a number"] | ["a number", "text"] => {
                    "; num(x) is the number that a text is"
                }
                _ => "",
            };
            format!("`{function}` does not take {}{hint}", types.join(" and "))
        }
    }
}

/// A type of CEL as operators call it.
fn type_in_words(kind: &str) -> &str {
    match kind {
        "int" | "uint" | "double" | "float" => "a number",
        "string" => "text",
        "bool" => "true or false",
        "null" | "null_type" => "null",
        "list" => "a list",
        "map" => "a map",
        "timestamp" | "google.protobuf.Timestamp" => "a time",
        "duration" | "google.protobuf.Duration" => "a length of time",
        other => other,
    }
}

/// `1:5: Syntax error: mismatched input '>' expecting {...}` -> `column 5: mismatched input '>'`.
fn explain_parse(error: &cel::ParseError) -> String {
    let message = error.msg.strip_prefix("Syntax error: ").unwrap_or(&error.msg);
    // The list of all tokens that CEL would have taken helps nobody.
    let message = message.split(" expecting ").next().unwrap_or(message);
    let message = message.replace('\n', " ").replace("'<EOF>'", "the end");
    // What people who know another language write first.
    let hint = [
        ("at: '=", "; equality is written =="),
        ("'and'", "; and is written &&"),
        ("'AND'", "; and is written &&"),
        ("'or'", "; or is written ||"),
        ("'OR'", "; or is written ||"),
        ("'not'", "; not is written !"),
        ("'NOT'", "; not is written !"),
        ("'is'", "; equality is written =="),
        ("'if'", "; a choice is written x > 5 ? 1 : 2"),
        ("input ':'", "; a name with a colon is written payload[\"a:0\"]"),
        ("input ','", "; a number has a point, as 5.5, and a list brackets, as [1, 2]"),
        ("at: '& ", "; and is written &&"),
        ("at: '| ", "; or is written ||"),
        ("at: ';'", "; it ends without one"),
        ("at: '“'", "; text stands in straight quotes, as 'on'"),
        ("at: '„'", "; text stands in straight quotes, as 'on'"),
        ("at: '‘'", "; text stands in straight quotes, as 'on'"),
        ("at: '’'", "; text stands in straight quotes, as 'on'"),
        ("input '.", "; an element is written payload.list[0]"),
        (
            "IndexContext",
            "; one element is written [0], any of them payload.list.exists(x, x.a > 5)",
        ),
        ("'between'", "; a range is written x > 5 && x < 6"),
        ("'like'", "; write x.contains('a') or x.matches('a.*')"),
        ("at: '#'", "; a remark is written // at the end"),
        ("input '>'", "; different is written !="),
        ("the end", ": something is missing there; complete it"),
    ]
    .iter()
    .find(|(sign, _)| message.contains(sign))
    .map_or("", |(_, hint)| hint);
    match error.pos {
        (1, column) => format!("column {column}: {message}{hint}"),
        (line, column) if line > 1 => format!("line {line}, column {column}: {message}{hint}"),
        _ => format!("{message}{hint}"),
    }
}

fn key_text(value: &dyn Val) -> Option<String> {
    if let Some(text) = value.downcast_ref::<CelString>() {
        Some(text.inner().to_owned())
    } else if let Some(number) = value.downcast_ref::<CelDouble>() {
        // `{}` prints a whole double without a point: 7, as the device's JSON had it.
        Some(number.inner().to_string())
    } else if let Some(number) = value.downcast_ref::<CelInt>() {
        Some(number.inner().to_string())
    } else if let Some(number) = value.downcast_ref::<CelUInt>() {
        Some(number.inner().to_string())
    } else {
        value.downcast_ref::<CelBool>().map(|value| value.inner().to_string())
    }
}

/// What tests of expressions share.
#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::payload::{Decode, Limits, decode};
    use crate::topic::TopicLimits;

    /// The names that [`with_scene`] has values for, and one whose own expression failed.
    pub(in crate::rules) const SCOPE: Scope<'_> = Scope {
        captures: &["site", "unit"],
        named: &["avg5", "empty", "state", "failed"],
        kinds: &[],
        each: true,
        words: None,
    };

    /// A publish with these payloads; `None` if they cannot be decoded.
    pub(in crate::rules) fn with_scene<T>(
        payload: &[u8],
        previous: Option<&[u8]>,
        with: impl FnOnce(&Scene<'_>) -> T,
    ) -> Option<T> {
        let decode = |bytes: &[u8]| {
            decode(&Decode::Auto.into(), bytes, Limits::default(), Timestamp::default()).ok()
        };
        let (payload, limits) = (decode(payload)?, TopicLimits::default());
        let previous = match previous {
            Some(previous) => Some(decode(previous)?),
            None => None,
        };
        let mut named = Named::new();
        named.push("avg5".into(), Value::Float(21.5));
        named.push("empty".into(), Value::Null);
        named.push("state".into(), Value::Text("on".into()));
        let (item_key, item) = (Value::Int(2), decode(b"{\"x\":7,\"name\":\"b\"}")?);
        let scene = Scene {
            payload: &payload,
            previous: previous.as_ref(),
            item: Some((&item_key, &item)),
            named: &named,
            topic: &TopicName::parse("site/kiel/freezer/1", limits).expect("a topic"),
            filter: &TopicFilter::parse_with_captures("site/{site}/freezer/{unit}", limits)
                .expect("a filter"),
            client_id: "pump-7",
            retain: false,
            replayed: true,
            at: Timestamp::from_millis(1_789_999_990_000),
            now: Timestamp::from_millis(1_790_000_000_000),
        };
        Some(with(&scene))
    }

    /// The result of `source`, as JSON; or its error; or why it is refused.
    pub(in crate::rules) fn result(source: &str, payload: &str, previous: Option<&str>) -> String {
        let expression = match Expression::compile(source, &SCOPE, 10_000) {
            Ok(expression) => expression,
            Err(problems) => return format!("refused: {}", problems.join(" | ")),
        };
        with_scene(payload.as_bytes(), previous.map(str::as_bytes), |scene| {
            match expression.evaluate_value(scene) {
                Ok(value) => value.to_string(),
                Err(error) => format!("! {error}"),
            }
        })
        .unwrap_or_else(|| "undecodable".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compile(source: &str) -> Result<Expression, Vec<String>> {
        let scope = Scope { captures: &["site", "unit"], ..Scope::default() };
        Expression::compile(source, &scope, 2_000)
    }

    fn with_scene<T>(payload: &[u8], with: impl FnOnce(&Scene<'_>) -> T) -> Option<T> {
        testing::with_scene(payload, None, with)
    }

    fn check(source: &str, payload: &str, expected: &str) {
        let expression =
            compile(source).unwrap_or_else(|problems| panic!("{source}: {problems:?}"));
        let found = with_scene(payload.as_bytes(), |scene| match expression.holds(scene) {
            Ok(holds) => holds.to_string(),
            Err(error) => error,
        });
        assert_eq!(found.as_deref(), Some(expected), "{source} on {payload}");
    }

    #[test]
    fn sees_the_publish() {
        check("payload.temp_c > -15.0", r#"{"temp_c": -10.5}"#, "true");
        check("payload.temp_c > -15.0", r#"{"temp_c": -20}"#, "false");
        check("payload > 20", "21.5", "true");
        check("payload == 'Online'", "Online", "true");
        check("payload", "true", "true");
        check("topic == 'site/kiel/freezer/1'", "1", "true");
        check("site == 'kiel' && unit == '1'", "1", "true");
        check("client_id.startsWith('pump-') && !retain", "1", "true");
        check("now > timestamp('2026-09-21T14:00:00Z')", "1", "true");
        check("now - timestamp(int(payload.ts)) < duration('1m')", r#"{"ts":1789999990}"#, "true");
    }

    #[test]
    fn looks_into_anything_that_devices_send() {
        let shelly =
            r#"{"params":{"devicepower:0":{"battery":{"percent":12}},"sys":{"unixtime":null}}}"#;
        check(r#"payload.params["devicepower:0"].battery.percent < 15"#, shelly, "true");
        check("payload.params.sys.unixtime == null", shelly, "true");
        check("has(payload.params.temp)", shelly, "false");
        check("payload.params.?temp.orValue(0) > 5", shelly, "false");
        check(r#""temp" in payload.params"#, shelly, "false");
        check("size(payload.params) == 2", shelly, "true");
        let lora = r#"{"rx":[{"rssi":-113},{"rssi":-70}],"zones":["yard"],"one":[1,2]}"#;
        check("payload.rx.exists(r, r.rssi > -80)", lora, "true");
        check("payload.rx.all(r, r.rssi > -80)", lora, "false");
        check("payload.rx.map(r, r.rssi + 1)[1] == -69", lora, "true");
        check("payload.rx.filter(r, r.rssi < -100).size() == 1", lora, "true");
        check("payload.rx[0].rssi < payload.rx[1].rssi", lora, "true");
        check("'yard' in payload.zones", lora, "true");
        check("payload.zones == ['yard'] && ['yard'] == payload.zones", lora, "true");
        check("{'rssi': -113} == payload.rx[0]", lora, "true");
        check("payload.one == [1, 2]", lora, "true");
        check("payload.exists(key, key == 'rx')", lora, "true");
        check("payload.one.exists(x, x in [2, 3])", lora, "true");
        check("payload.zones[0].matches('^ya')", lora, "true");
        check("type(payload.rx) == list && type(payload) == map", lora, "true");
    }

    #[test]
    fn whole_and_broken_numbers_calculate_alike() {
        for temp in ["20", "20.0"] {
            let payload = format!(r#"{{"t":{temp},"n":3,"l":[1,2]}}"#);
            check("payload.t * 1.8 + 32 > 67", &payload, "true");
            check("payload.t + 1 == 21", &payload, "true");
            check("1 + payload.t == 21.0", &payload, "true");
            check("(payload.t + payload.n) / 2 == 11.5", &payload, "true");
            check("-payload.t < 2 - payload.n", &payload, "true");
            check("payload.t * size(payload.l) == 40", &payload, "true");
            check("(payload.n > 2 ? payload.t : 0) / 2 == 10", &payload, "true");
            check("int(payload.n) % 2 == 1", &payload, "true");
            check("size(payload.l) + 1 == 3", &payload, "true");
            check("string(payload.n) + 'x' == '3x'", &payload, "true");
            check("payload.l[payload.n - 2] == 2", &payload, "true");
            check("payload.?t.optMap(v, v + 1).orValue(0) == 21", &payload, "true");
        }
    }

    #[test]
    fn what_fails_says_why_and_repeats_no_payload() {
        let payload = r#"{"temp":"sesame","n":1,"list":[1]}"#;
        check(
            "payload.tmp > 1",
            payload,
            "the payload has no field `tmp`; guard it with has(...) if it may be absent",
        );
        check(
            "payload.temp > 1",
            payload,
            "`>` does not take text and a number; num(x) is the number that a text is",
        );
        check(
            "payload.temp + 1 > 1",
            payload,
            "`+` does not take text and a number; num(x) is the number that a text is",
        );
        check("payload[payload.temp] > 1", payload, "the payload has no such field");
        check("payload.list[3] > 1", payload, "the list has no such element");
        check("payload.n.x > 1", payload, "a field is asked of a number, which has no fields");
        check("int(payload.temp) > 1", payload, "`int` cannot take this value");
        check(
            "payload.n",
            payload,
            "it gives a number, not true or false; compare it, as in x > 5",
        );
        check("payload.n / 0 > 1", payload, "true");
        check("1 / (size(payload.list) - 1) > 1", payload, "division by zero");
        check("payload.temp > 1", "", "a field is asked of text, which has no fields");
        check("payload > 0", "null", "`>` does not take null and a number; null is no reading");
    }

    #[test]
    fn what_other_languages_write_is_told_how_to_write() {
        for (source, expected) in [
            ("payload.a AND payload.b", "and is written &&"),
            ("payload.a & payload.b", "and is written &&"),
            ("payload.a | payload.b", "or is written ||"),
            ("payload.a is 'on'", "equality is written =="),
            ("payload.a <> 'on'", "different is written !="),
            ("payload.a > 5,5", "a number has a point, as 5.5"),
            ("payload.a in (1, 2)", "a list brackets, as [1, 2]"),
            ("payload.a == “on”", "text stands in straight quotes"),
            ("payload.list.0 > 5", "an element is written payload.list[0]"),
            ("payload.list[*].a > 5", "any of them payload.list.exists("),
            ("payload.dp:0.a > 5", "payload[\"a:0\"]"),
            ("payload.temp-c > 5", "unknown name `c`; a name with a dash is written [\"temp-c\"]"),
            ("payload.a between 5 and 6", "x > 5 && x < 6"),
            ("payload.a like 'x%'", "x.contains('a')"),
            ("payload.a > 5 # warm", "a remark is written //"),
            ("payload.a > 5;", "it ends without one"),
            ("payload.a == None", "unknown name `None`; write null"),
            ("payload.a == True", "unknown name `True`; write true"),
            ("len(payload.a) > 5", "unknown function `len`; write size(x)"),
        ] {
            let problems = refused(source);
            assert!(problems.contains(expected), "{source}: {problems}");
        }
    }

    fn refused(source: &str) -> String {
        match compile(source) {
            Ok(_) => panic!("{source} was taken"),
            Err(problems) => problems.join(" | "),
        }
    }

    #[test]
    fn what_cannot_work_is_refused_at_load() {
        let all: Vec<String> = [
            "",
            "payload.temp >",
            "payload.temp = 5",
            "payload.temp > 5 and true",
            "not payload.open",
            "paylod.temp > 5",
            "temp > 5 || tmep < 3",
            "sit == 'kiel'",
            "payload.name.startswith('x')",
            "lowr(payload.name) == 'x'",
            "payload.name.lower() == 'x'",
            "num() > 1",
            "changed(payload.a, payload.b)",
            "changed(site)",
            "changed(payload.a + payload[unit] * double(now - now))",
            "changed(changed(payload.a))",
            "time(payload.ts, 'Mars/North') < now",
            "time(payload.ts, payload.zone) < now",
            "item.x > 1",
            "matches(payload.a)",
            "optional.off(1).hasValue()",
            "payload.a.exists(x, payload.b.exists(y, x == y))",
            "payload.a.exists(x)",
            "payload.a.exists(x, x > limit)",
            "payload.n % 2 == 0",
            "payload.a.matches(payload.b)",
            "payload.a.matches('(')",
            "Point{x: 1}.x == 1",
            "has(payload)",
            "payload.a.exists(x, x > 1) && x",
        ]
        .iter()
        .map(|source| format!("{source}\n    {}", refused(source)))
        .collect();
        insta::assert_snapshot!(all.join("\n"), @r#"

            it is empty
        payload.temp >
            column 15: mismatched input the end: something is missing there; complete it
        payload.temp = 5
            column 14: token recognition error at: '= '; equality is written ==
        payload.temp > 5 and true
            column 18: mismatched input 'and'; and is written &&
        not payload.open
            column 5: mismatched input 'payload'
        paylod.temp > 5
            unknown name `paylod`; did you mean `payload`?
        temp > 5 || tmep < 3
            unknown name `temp`; a field of the payload is written payload.temp, and known are payload, previous, topic, client_id, retain, replayed, at, now, site, unit | unknown name `tmep`; a field of the payload is written payload.tmep, and known are payload, previous, topic, client_id, retain, replayed, at, now, site, unit
        sit == 'kiel'
            unknown name `sit`; did you mean `site`?
        payload.name.startswith('x')
            unknown function `startswith`; did you mean `startsWith`?
        lowr(payload.name) == 'x'
            unknown function `lowr`; did you mean `lower`?
        payload.name.lower() == 'x'
            `lower` is written lower(x): the text in small letters
        num() > 1
            `num` is written num(x): the number, or the number that a text is; `null`, `nan` and empty text are errors
        changed(payload.a, payload.b)
            `changed` is written changed(x): whether `x` differs from what it was in the previous payload; false at the first; a field that has come is a change
        changed(site)
            `changed` compares with the previous payload; name a field of it, as in changed(payload.state)
        changed(payload.a + payload[unit] * double(now - now))
            `changed` knows what `payload` was before, not what `now` was; leave it out of `changed`
        changed(changed(payload.a))
            `changed` compares with the previous payload; name a field of it, as in changed(payload.state) | `changed` knows what `payload` was before, not what `previous` was; leave it out of `changed`
        time(payload.ts, 'Mars/North') < now
            there is no time zone `Mars/North`; write one as in "Europe/Berlin"
        time(payload.ts, payload.zone) < now
            `time` takes its zone as text in quotes, not from a payload or topic
        item.x > 1
            `item` is there only in a rule with `each`
        matches(payload.a)
            `matches` takes its pattern as text in quotes, not from a payload or topic
        optional.off(1).hasValue()
            unknown function `off`; did you mean `of`?
        payload.a.exists(x, payload.b.exists(y, x == y))
            a loop (all, exists, map, ...) inside a loop is not allowed: a device could make it run for ever
        payload.a.exists(x)
            `exists` is written list.exists(x, x > 1)
        payload.a.exists(x, x > limit)
            unknown name `limit`; a field of the payload is written payload.limit, and known are payload, previous, topic, client_id, retain, replayed, at, now, site, unit
        payload.n % 2 == 0
            `%` takes whole numbers; write int(payload.x) % 2
        payload.a.matches(payload.b)
            `matches` takes its pattern as text in quotes, not from a payload or topic
        payload.a.matches('(')
            `(` is not a regular expression
        Point{x: 1}.x == 1
            `Point{...}`: there are no message types
        has(payload)
            column 5: invalid argument to has() macro
        payload.a.exists(x, x > 1) && x
            unknown name `x`; a field of the payload is written payload.x, and known are payload, previous, topic, client_id, retain, replayed, at, now, site, unit
        "#);
        assert!(refused(&"payload > 1 && ".repeat(200)).contains("longer than 2000 bytes"));
        assert!(refused(&format!("payload{}", ".a".repeat(80))).contains("nested deeper than 64"));
        for (open, close) in [("(", ")"), ("[", "]"), ("{1:", "}"), ("-(", ")"), ("size(", ")")] {
            let deep = format!("{}1{}", open.repeat(300), close.repeat(300));
            let error = refused(&deep);
            assert!(error.len() < 200, "{open}: {error}");
        }
    }

    /// The tables of names are ours; they must be those of the library.
    #[test]
    fn every_function_of_the_tables_exists() {
        for source in [
            "bool('true')",
            "bytes('a') == b'a'",
            "double('1') == 1.0",
            "duration('1s') < now - now",
            "dyn(1) == 1",
            "int('1') == 1",
            "matches('a', 'a')",
            "size('a') == 1",
            "string(1) == '1'",
            "timestamp(1) < now",
            "type(1) == int",
            "uint(1) == 1u",
            "'a'.contains('a')",
            "'a'.endsWith('a')",
            "'a'.startsWith('a')",
            "'a'.matches('a')",
            "'a'.size() == 1",
            "now.getDate() == 21",
            "now.getDayOfMonth() == 20",
            "now.getDayOfWeek() == 1",
            "now.getDayOfYear() > 1",
            "now.getFullYear() == 2026",
            "now.getHours() == 14",
            "now.getMilliseconds() == 0",
            "now.getMinutes() == 13",
            "now.getMonth() == 8",
            "now.getSeconds() == 20",
            "optional.of(1).hasValue()",
            "optional.none().orValue(true)",
            "optional.ofNonZeroValue(1).value() == 1",
            "optional.none().or(optional.of(1)).hasValue()",
            "duration('1m').getSeconds() == 60",
        ] {
            let expression = compile(source).unwrap_or_else(|e| panic!("{source}: {e:?}"));
            let found = with_scene(b"1", |scene| expression.holds(scene).map(|_| ()));
            assert_eq!(found, Some(Ok(())), "{source}");
        }
        for name in lower::NAMES.iter().chain(lower::NAMES_EACH) {
            let found = testing::result(name, "1", None);
            assert!(!found.contains('!') && !found.contains("refused"), "{name}: {found}");
        }
    }

    #[test]
    fn serial_numbers_keep_their_digits() {
        let key = |source: &str, payload: &str| {
            let expression = compile(source).expect("compiles");
            with_scene(payload.as_bytes(), |scene| expression.key(scene)).expect("decodes")
        };
        assert_eq!(
            key("payload.id", r#"{"id":9007199254740993}"#).as_deref(),
            Ok("9007199254740993")
        );
        assert_eq!(
            key("payload.id", r#"{"id":18446744073709551615}"#).as_deref(),
            Ok("18446744073709551615")
        );
        assert_eq!(key("payload.id", r#"{"id":7}"#).as_deref(), Ok("7"));
        assert_eq!(key("payload.id", r#"{"id":7.5}"#).as_deref(), Ok("7.5"));
        assert_eq!(key("payload.id", r#"{"id":"a"}"#).as_deref(), Ok("a"));
        assert!(key("payload.id", r#"{"id":null}"#).is_err());
        assert!(key("payload.id", r#"{"id":[1]}"#).is_err());
    }

    #[test]
    fn sees_what_the_rule_knows() {
        let payload = r#"{"t":20,"l":[1,{"a":2.0}],"s":"x"}"#;
        for (source, expected) in [
            ("avg5 + 1 > payload.t", "true"),
            ("avg5", "21.5"),
            ("empty == null", "true"),
            ("state + site", "\"onkiel\""),
            ("item.x + 1", "8"),
            ("item_key * 2", "4"),
            ("replayed && !retain", "true"),
            ("now - at == duration('10s')", "true"),
            ("now - at", "10"),
            ("at", "\"2026-09-21T14:13:10.000Z\""),
            ("previous", "null"),
            ("failed > 1", "! `failed` has no value, because its own expression failed"),
            ("payload.t + 0.5", "20.5"),
            ("payload.t / 0", "null"),
            ("payload.l", "[1,{\"a\":2.0}]"),
            ("dyn(payload.l)", "[1,{\"a\":2}]"),
            ("payload.?missing", "null"),
            ("payload.?t", "20"),
            ("{'a': [1u, b'ab', null]}", "{\"a\":[1,\"YWI=\",null]}"),
            ("{1: 2}", "! it gives a map, which is no value of a payload"),
            ("type(1)", "! it gives type, which is no value of a payload"),
        ] {
            assert_eq!(testing::result(source, payload, None), expected, "{source}");
        }
    }

    #[test]
    fn knows_what_it_reads() {
        let read = |source: &str| {
            let expression = Expression::compile(source, &testing::SCOPE, 2_000).expect(source);
            let all = ["payload", "previous", "avg5", "item", "site", "at", "x"];
            let uses: Vec<&str> = all.into_iter().filter(|name| expression.uses(name)).collect();
            format!("{} | {}", uses.join(" "), expression.looks_at().join(" "))
        };
        assert_eq!(read("payload.a.b > 1 && site == 'x'"), "payload site | payload.a.b");
        assert_eq!(read("payload.l.exists(x, x.c > avg5)"), "payload avg5 | payload.l");
        assert_eq!(read("has(item.t) && at < now"), "item at | ");
        assert_eq!(read("changed(payload.s['x'].t)"), "payload previous | payload.s");
        assert_eq!(read("has(payload.a.b) || payload[0] == 1"), "payload | payload.a.b");
    }

    #[test]
    fn a_change_is_a_difference_from_the_previous_payload() {
        for (source, previous, payload, expected) in [
            ("changed(payload.s)", None, r#"{"s":1}"#, "false"),
            ("changed(payload.s)", Some(r#"{"s":1}"#), r#"{"s":1.0}"#, "false"),
            ("changed(payload.s)", Some(r#"{"s":1}"#), r#"{"s":2}"#, "true"),
            ("changed(payload.s)", Some(r#"{"s":null}"#), r#"{"s":2}"#, "true"),
            ("changed(payload.s)", Some("{}"), r#"{"s":2}"#, "true"),
            ("changed(payload.s)", Some("text"), r#"{"s":2}"#, "true"),
            ("changed(payload.s.x)", Some(r#"{"s":{"x":[1,2]}}"#), r#"{"s":{"x":[1,2]}}"#, "false"),
            ("changed(payload)", Some("on"), "off", "true"),
            ("changed(payload)", Some("null"), "null", "false"),
            ("changed(payload > 20)", Some("21"), "22", "false"),
            ("changed(payload > 20)", Some("19"), "22", "true"),
            ("changed(num(payload.s) > 20)", Some(r#"{"s":"19"}"#), r#"{"s":"22"}"#, "true"),
            ("changed(payload.l.exists(x, x > 1))", Some(r#"{"l":[1]}"#), r#"{"l":[2]}"#, "true"),
            ("changed(payload.s.matches('a'))", Some(r#"{"s":"a"}"#), r#"{"s":"b"}"#, "true"),
            (
                "!changed(payload.s) || changed(payload.t)",
                Some(r#"{"t":1}"#),
                r#"{"s":1,"t":1}"#,
                "false",
            ),
            (
                "changed(payload.s)",
                Some(r#"{"s":1}"#),
                "{}",
                "! the payload has no field `s`; guard it with has(...) if it may be absent",
            ),
            ("previous.s + 1 == payload.s", Some(r#"{"s":1}"#), r#"{"s":2}"#, "true"),
        ] {
            assert_eq!(
                testing::result(source, payload, previous),
                expected,
                "{source} {previous:?}"
            );
        }
    }

    #[test]
    fn what_a_device_could_make_slow_is_refused() {
        let loops = |source: &str| match Expression::compile(source, &testing::SCOPE, 2_000) {
            Ok(_) => "taken".to_owned(),
            Err(problems) => problems.join(" | "),
        };
        for source in [
            "payload.l.map(x, x.a * x.b - payload.c)",
            "payload.l.exists(x, x.id == payload.id && x.name.contains('a'))",
            "payload.l.exists(x, x.name + 'y' == site)",
            "payload.l.map(x, num(x.a) + num(x.b))",
            "payload.l.filter(x, x in ['a', 'b'] && x.matches('^a'))",
            "payload.l.all(x, x > avg5 && size(x.name) < 5 && payload.m[x.id] > 1)",
            "payload.l.exists(x, x in payload.m.?y.orValue([]) || true) ? true : true",
            "payload.?a.optMap(x, x + 1).orValue(0) > payload.b",
            "values(payload.m).exists(x, x.t > 1) && payload.l.exists_one(x, x == 1)",
        ] {
            let expected = if source.contains("x in payload") { "in a loop" } else { "taken" };
            assert!(loops(source).starts_with(expected), "{source}: {}", loops(source));
        }
        let refused: Vec<String> = [
            "payload.l.map(x, x + payload.s)",
            "payload.l.map(x, x.a + x.b)",
            "payload.?s.optMap(x, x + x)",
            "payload.l.filter(x, x in payload.other)",
            "payload.l.exists(x, payload.a == payload.b)",
            "payload.l.exists(x, payload.text.contains(x))",
            "payload.l.exists(x, size(payload.text) > x)",
            "payload.l.exists(x, values(payload.m) == x)",
            "payload.l.exists(x, state.matches('a'))",
            "[1].map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a)",
        ]
        .iter()
        .map(|source| format!("{source}\n    {}", loops(source)))
        .collect();
        insta::assert_snapshot!(refused.join("\n"), @r#"
        payload.l.map(x, x + payload.s)
            in a loop, `+` takes a literal or a number on one side at least; write num(...) around one if it is a number
        payload.l.map(x, x.a + x.b)
            in a loop, `+` takes a literal or a number on one side at least; write num(...) around one if it is a number
        payload.?s.optMap(x, x + x)
            in a loop, `+` takes a literal or a number on one side at least; write num(...) around one if it is a number
        payload.l.filter(x, x in payload.other)
            in a loop, `in` would go through a list from outside of the loop in each round
        payload.l.exists(x, payload.a == payload.b)
            in a loop, two values from outside of it would be compared in each round; move that out of the loop
        payload.l.exists(x, payload.text.contains(x))
            in a loop, `contains` would go through a text or list from outside of the loop in each round; give it a name with `let` first
        payload.l.exists(x, size(payload.text) > x)
            in a loop, `size` would go through a text or list from outside of the loop in each round; give it a name with `let` first
        payload.l.exists(x, values(payload.m) == x)
            in a loop, `values` would go through a text or list from outside of the loop in each round; give it a name with `let` first
        payload.l.exists(x, state.matches('a'))
            in a loop, `matches` would go through a text or list from outside of the loop in each round; give it a name with `let` first
        [1].map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a).map(a, a)
            it has more than 8 loops (all, exists, map, ...); give a part of it a name with `let`
        "#);
    }

    proptest! {
        #[test]
        fn any_payload_never_panics(text in "[\\[\\]{}:,\"a-c0-9.e-]{0,40}", bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let sources = [
                "payload.a > 1", "payload[0] == payload['a']", "payload.exists(x, x.a == 1)",
                "payload.a + payload.b > payload.c", "string(payload) == payload", "size(payload) > 1",
                "payload.map(x, x + 1) == payload", "payload in payload", "payload.?a[?1].hasValue()",
                "timestamp(payload) < now", "payload.matches('a+b')", "-payload < payload * 2",
            ];
            for source in sources {
                let expression = compile(source).expect("compiles");
                for payload in [text.as_bytes(), &bytes] {
                    let _ = with_scene(payload, |scene| (expression.holds(scene), expression.key(scene)));
                }
            }
        }

        #[test]
        fn any_source_never_panics(source in "[a-z.()\\[\\]{}'\"0-9+<>=&|!?: _-]{0,40}") {
            if let Ok(expression) = compile(&source) {
                let _ = with_scene(b"{\"a\":1}", |scene| expression.holds(scene));
            }
        }
    }
}
