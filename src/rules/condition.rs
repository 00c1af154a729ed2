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

use super::functions::Words;
use super::lower::{self, Reads};
use super::named::Named;
use super::view::{from_cel, to_cel};
use crate::clock::Timestamp;
use crate::payload::Value;
use crate::topic::{TopicFilter, TopicName};

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// What an expression of a rule may name, besides what every expression sees.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// The captures of its topic.
    pub captures: &'a [&'a str],
    /// The `let` and `window` names that are known so far.
    pub named: &'a [&'a str],
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

impl VariableResolver for Scene<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        Some(match name {
            "payload" => CowVal::Owned(to_cel(self.payload)),
            "previous" => CowVal::Owned(to_cel(self.previous.unwrap_or(&Value::Null))),
            "item" => CowVal::Owned(to_cel(self.item?.1)),
            "item_key" => CowVal::Owned(to_cel(self.item?.0)),
            "topic" => CowVal::owned(CelString::from(self.topic.as_str())),
            "client_id" => CowVal::owned(CelString::from(self.client_id)),
            "retain" => CowVal::owned(CelBool::from(self.retain)),
            "replayed" => CowVal::owned(CelBool::from(self.replayed)),
            "at" => time_to_cel(self.at)?,
            "now" => time_to_cel(self.now)?,
            lower::HAS_PREVIOUS => CowVal::owned(CelBool::from(self.previous.is_some())),
            // CEL asks for `payload.a` as a name first.
            _ if name.contains('.') => return None,
            _ => match self.named.get(name) {
                Some(value) => CowVal::Owned(to_cel(value)),
                None => CowVal::owned(CelString::from(capture(self.filter, self.topic, name)?)),
            },
        })
    }
}

fn time_to_cel<'v>(time: Timestamp) -> Option<CowVal<'v, 'v>> {
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

impl Scene<'_> {
    /// What CEL evaluates against.
    fn context(&self) -> Context<'_, '_> {
        let mut context = Context::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(self);
        context
    }
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
        let reads = lower::lower(&mut root, scope)?;
        Ok(Self { root, source: source.into(), reads })
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
        let context = scene.context();
        let value = self.evaluate(&context)?;
        value.downcast_ref::<CelBool>().map(|holds| *holds.inner()).ok_or_else(|| {
            let kind = value.get_type().name();
            format!("its result is of type {kind}, not true or false; compare it, as in x == 1")
        })
    }

    /// Its result as a part of an instance's key.
    ///
    /// # Errors
    /// The evaluation failed, or its result is no text, number or boolean.
    pub fn key(&self, scene: &Scene<'_>) -> Result<String, String> {
        let context = scene.context();
        let value = self.evaluate(&context)?;
        key_text(value.as_ref()).ok_or_else(|| {
            let kind = value.get_type().name();
            format!("its result is of type {kind}; a key is text, a number or true or false")
        })
    }

    /// Its result, whatever it is: for `let`, windows and `each`.
    ///
    /// A whole number comes back as one, whether it is CEL's `int` or `double`; what is not finite
    /// and an empty optional are null; a time is RFC 3339 text, a duration its seconds, bytes are
    /// base64 text.
    ///
    /// # Errors
    /// The evaluation failed, or its result is nothing that can be kept, such as a type.
    pub fn evaluate_value(&self, scene: &Scene<'_>) -> Result<Value, String> {
        let context = scene.context();
        let value = self.evaluate(&context)?;
        from_cel(value.as_ref()).ok_or_else(|| {
            let kind = value.get_type().name();
            format!("its result is of type {kind}, which is no value of a payload")
        })
    }

    fn evaluate<'e, 'v>(&'e self, context: &'e Context<'_, 'v>) -> Result<CowVal<'e, 'v>, String> {
        cel::Value::resolve_val(&self.root, context).map_err(|error| self.explain(&error))
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
                format!("`{name}` has no value, because its own expression failed")
            }
            ExecutionError::NoSuchOverload(overload) => format!(
                "`{}` does not take {}",
                overload.function().trim_matches('_'),
                overload.argument_types().join(" and ")
            ),
            ExecutionError::UnsupportedBinaryOperator(operator, ..) => {
                format!("`{operator}` does not take operands of these types")
            }
            ExecutionError::ValuesNotComparable(..) => "the values cannot be compared".to_owned(),
            ExecutionError::UnexpectedType { .. } => "a value is of an unexpected type".to_owned(),
            ExecutionError::IndexOutOfBounds(_) => "the list has no such element".to_owned(),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
                "division by zero".to_owned()
            }
            ExecutionError::Overflow(..) => "a number is out of range".to_owned(),
            ExecutionError::FunctionError { function, .. } => {
                format!("`{function}` cannot take this value")
            }
            _ => "the expression failed".to_owned(),
        }
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
        ("'or'", "; or is written ||"),
        ("'not'", "; not is written !"),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::payload::{Decode, Limits, decode};
    use crate::topic::TopicLimits;

    fn compile(source: &str) -> Result<Expression, Vec<String>> {
        let scope = Scope { captures: &["site", "unit"], ..Scope::default() };
        Expression::compile(source, &scope, 2_000)
    }

    fn with_scene<T>(payload: &[u8], with: impl FnOnce(&Scene<'_>) -> T) -> Option<T> {
        let payload =
            decode(&Decode::Auto.into(), payload, Limits::default(), Timestamp::default()).ok()?;
        let limits = TopicLimits::default();
        let scene = Scene {
            payload: &payload,
            previous: None,
            item: None,
            named: &Named::new(),
            topic: &TopicName::parse("site/kiel/freezer/1", limits).expect("a topic"),
            filter: &TopicFilter::parse_with_captures("site/{site}/freezer/{unit}", limits)
                .expect("a filter"),
            client_id: "pump-7",
            retain: false,
            replayed: false,
            at: Timestamp::from_millis(1_790_000_000_000),
            now: Timestamp::from_millis(1_790_000_000_000),
        };
        Some(with(&scene))
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
        check("payload.temp > 1", payload, "`>` does not take string and int");
        check("payload.temp + 1 > 1", payload, "`add` does not take operands of these types");
        check("payload[payload.temp] > 1", payload, "the payload has no such field");
        check("payload.list[3] > 1", payload, "the list has no such element");
        check("payload.n.x > 1", payload, "`.` does not take double and string");
        check("int(payload.temp) > 1", payload, "`int` cannot take this value");
        check(
            "payload.n",
            payload,
            "its result is of type double, not true or false; compare it, as in x == 1",
        );
        check("payload.n / 0 > 1", payload, "true");
        check("1 / (size(payload.list) - 1) > 1", payload, "division by zero");
        check("payload.temp > 1", "", "`.` does not take string and string");
        check("payload > 0", "null", "`>` does not take null_type and int");
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
            "lower(payload.name) == 'x'",
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
            column 15: mismatched input the end
        payload.temp = 5
            column 14: token recognition error at: '= '; equality is written ==
        payload.temp > 5 and true
            column 18: mismatched input 'and'; and is written &&
        not payload.open
            column 5: mismatched input 'payload'
        paylod.temp > 5
            unknown name `paylod`; did you mean `payload`?
        temp > 5 || tmep < 3
            unknown name `temp`; a field of the payload is written payload.temp, and known are payload, topic, client_id, retain, now, site, unit | unknown name `tmep`; a field of the payload is written payload.tmep, and known are payload, topic, client_id, retain, now, site, unit
        sit == 'kiel'
            unknown name `sit`; did you mean `site`?
        payload.name.startswith('x')
            unknown function `startswith`; did you mean `startsWith`?
        lower(payload.name) == 'x'
            unknown function `lower`; known are bool, bytes, double, duration, dyn, has, int, matches, size, string, timestamp, type, uint
        optional.off(1).hasValue()
            unknown function `off`; did you mean `of`?
        payload.a.exists(x, payload.b.exists(y, x == y))
            a loop (all, exists, map, ...) inside a loop is not allowed: a device could make it run for ever
        payload.a.exists(x)
            `exists` is written list.exists(x, x > 1)
        payload.a.exists(x, x > limit)
            unknown name `limit`; a field of the payload is written payload.limit, and known are payload, topic, client_id, retain, now, site, unit
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
            unknown name `x`; a field of the payload is written payload.x, and known are payload, topic, client_id, retain, now, site, unit
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
        for name in super::super::lower::NAMES {
            let expression = compile(name).expect("compiles");
            with_scene(b"1", |scene| expression.evaluate_value(scene).map(|_| ()))
                .expect("decodes")
                .expect("resolves");
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
