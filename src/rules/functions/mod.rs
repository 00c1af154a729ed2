//! The functions that expressions have beside CEL's own: what [`TABLE`] lists.
//!
//! Each is total over what a device may send: it gives a result or says in words of its own what it
//! cannot take, never with anything of the payload. No clock, no state. None makes a value that is
//! much larger than those it was given.

#![expect(clippy::needless_pass_by_value, reason = "the type of function that CEL calls")]

mod list;
pub(super) mod number;
mod text;
pub mod time;
pub mod words;

use cel::common::types::{CelBool, CelDouble, CelInt, CelOptional, CelString, CelUInt, DYN_TYPE};
use cel::common::value::{CowVal, Val};
use cel::{Env, ExecutionError};

use super::lower::types::Kind;

/// The longest text that is looked at as a number, a word, a time or hexadecimal digits, bytes.
const WORD_BYTES_MAX: usize = 64;

/// What of a function is known without calling it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gives {
    /// A number, as those of payloads are.
    Double,
    /// A whole number of CEL.
    Int,
    /// True or false, or a time.
    Small,
    /// Text, bytes, a list, or what it was given.
    Large,
}

/// A function of ours.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: &'static str,
    /// Fewest and most arguments.
    pub(super) takes: (usize, usize),
    pub(super) gives: Gives,
    /// The same, as far as an expression's types are judged by it ([`super::lower::types`]); what may be of
    /// several types is of any.
    pub(super) kind: Kind,
    /// Whether it looks at all of a text, list or map.
    pub(super) walks: bool,
    /// How it is written.
    pub(super) usage: &'static str,
    /// What it gives, for docs/expressions.md.
    pub(super) does: &'static str,
    call: cel::common::functions::Function,
}

const fn function(
    name: &'static str,
    takes: (usize, usize),
    (gives, kind, walks): (Gives, Kind, bool),
    (usage, does): (&'static str, &'static str),
    call: cel::common::functions::Function,
) -> Function {
    Function { name, takes, gives, kind, walks, usage, does, call }
}

/// Every function of ours; docs/expressions.md has the same lines.
pub(super) static TABLE: &[Function] = &[
    function(
        "num",
        (1, 1),
        (Gives::Double, Kind::Number, false),
        (
            "num(x)",
            "the number, or the number that a text is; `null`, `nan` and empty text are errors",
        ),
        number::num,
    ),
    function(
        "is_num",
        (1, 1),
        (Gives::Small, Kind::Bool, false),
        ("is_num(x)", "whether `num(x)` gives a number; never an error on a value that is there"),
        number::is_num,
    ),
    function(
        "is_on",
        (1, 1),
        (Gives::Small, Kind::Bool, false),
        (
            "is_on(x)",
            "true for true, 1, on, yes, online; false for false, 0, off, no, offline; `words` adds to both; any other word is an error",
        ),
        words::is_on,
    ),
    function(
        "changed",
        (1, 1),
        (Gives::Small, Kind::Bool, false),
        (
            "changed(x)",
            "whether `x` differs from what it was in the previous payload; false at the first; a field that has come is a change",
        ),
        present,
    ),
    function(
        "celsius",
        (1, 2),
        (Gives::Double, Kind::Number, false),
        (
            "celsius(f), celsius(x, unit)",
            "degrees Celsius from Fahrenheit, or from the unit C, F or K",
        ),
        number::celsius,
    ),
    function(
        "distance",
        (4, 4),
        (Gives::Double, Kind::Number, false),
        ("distance(lat, lon, lat2, lon2)", "metres between two places on the ground"),
        number::distance,
    ),
    function(
        "within",
        (5, 5),
        (Gives::Small, Kind::Bool, false),
        ("within(lat, lon, lat2, lon2, radius)", "whether the distance is at most `radius` metres"),
        number::within,
    ),
    function(
        "bit",
        (2, 2),
        (Gives::Small, Kind::Bool, false),
        (
            "bit(x, n)",
            "whether bit `n` (0 is the lowest) of a whole number or of hexadecimal text is set",
        ),
        number::bit,
    ),
    function(
        "hex",
        (1, 1),
        (Gives::Int, Kind::Number, false),
        ("hex(x)", "the whole number (`int`) that hexadecimal text is, with or without 0x"),
        number::hex,
    ),
    function(
        "base64",
        (1, 1),
        (Gives::Large, Kind::Bytes, true),
        ("base64(x)", "the bytes of base64 text, of either alphabet, with or without padding"),
        text::base64_bytes,
    ),
    function(
        READ,
        (3, 3),
        (Gives::Double, Kind::Any, false),
        (
            "read(x, at, type)",
            "the number at byte `at` (0 is the first) of bytes or of hexadecimal text; its type is one of a binary layout, in quotes: `'i16le'`",
        ),
        text::read,
    ),
    function(
        "time",
        (1, 2),
        (Gives::Small, Kind::Time, false),
        (
            "time(x), time(x, zone)",
            "the time from seconds or milliseconds since 1970, RFC 3339, or a local date and time of the zone (else UTC)",
        ),
        time::time,
    ),
    function(
        "abs",
        (1, 1),
        (Gives::Double, Kind::Number, false),
        ("abs(x)", "the number without its sign"),
        number::abs,
    ),
    function(
        "min",
        (1, 2),
        (Gives::Double, Kind::Number, true),
        ("min(x, y), min(list)", "the smallest number"),
        number::min,
    ),
    function(
        "max",
        (1, 2),
        (Gives::Double, Kind::Number, true),
        ("max(x, y), max(list)", "the largest number"),
        number::max,
    ),
    function(
        "round",
        (1, 2),
        (Gives::Double, Kind::Number, false),
        (
            "round(x), round(x, digits)",
            "the nearest number with so many digits (0 to 9) after the point; half goes away from 0",
        ),
        number::round,
    ),
    function(
        "floor",
        (1, 1),
        (Gives::Double, Kind::Number, false),
        ("floor(x)", "the next whole number below"),
        number::floor,
    ),
    function(
        "ceil",
        (1, 1),
        (Gives::Double, Kind::Number, false),
        ("ceil(x)", "the next whole number above"),
        number::ceil,
    ),
    function(
        "keys",
        (1, 1),
        (Gives::Large, Kind::List, true),
        ("keys(map)", "the names in a map, as a list"),
        list::keys,
    ),
    function(
        "values",
        (1, 1),
        (Gives::Large, Kind::List, true),
        ("values(map)", "the values in a map, as a list"),
        list::values,
    ),
    function(
        "pick",
        (3, 3),
        (Gives::Large, Kind::Any, true),
        (
            "pick(list, field, value)",
            "the first element of a list of maps whose `field` equals `value`; none is an error",
        ),
        list::pick,
    ),
    function(
        "lower",
        (1, 1),
        (Gives::Large, Kind::Text, true),
        ("lower(x)", "the text in small letters"),
        text::lower,
    ),
    function(
        "upper",
        (1, 1),
        (Gives::Large, Kind::Text, true),
        ("upper(x)", "the text in capital letters"),
        text::upper,
    ),
    function(
        "trim",
        (1, 1),
        (Gives::Large, Kind::Text, true),
        ("trim(x)", "the text without white space at its ends"),
        text::trim,
    ),
    function(
        "split",
        (2, 2),
        (Gives::Large, Kind::List, true),
        ("split(x, separator)", "the parts of a text, as a list"),
        text::split,
    ),
    function(
        "replace",
        (3, 3),
        (Gives::Large, Kind::Text, true),
        ("replace(x, from, to)", "the text with every `from` replaced"),
        text::replace,
    ),
];

/// The function of that name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    TABLE.iter().find(|function| function.name == name)
}

/// `is_on` with its words, and whether an expression fails: what the lowering makes.
pub(super) const IS_ON: &str = "is_on";
/// Its type is checked by the lowering.
pub(super) const READ: &str = "read";
pub(super) const PRESENT: &str = "@present";

/// Adds all functions to CEL's.
pub(super) fn register(env: &mut Env) {
    let any = |count: usize| (0..count).map(|_| DYN_TYPE);
    for function in TABLE {
        let (fewest, most) = function.takes;
        // The lowering adds a rule's words.
        let (fewest, most) = if function.name == IS_ON { (3, 3) } else { (fewest, most) };
        for count in fewest..=most {
            let id = format!("{}_{count}", function.name);
            let added = env.add_overload(function.name, &id, any(count).collect(), function.call);
            debug_assert!(added.is_ok(), "{id} is there twice");
        }
    }
    let added = env.add_overload(PRESENT, PRESENT, any(1).collect(), present);
    debug_assert!(added.is_ok(), "{PRESENT} is there twice");
}

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;
type Arguments<'b, 'v> = Vec<CowVal<'b, 'v>>;

fn cannot(function: &str, why: &str) -> ExecutionError {
    ExecutionError::FunctionError { function: function.to_owned(), message: why.to_owned() }
}

fn double<'b, 'v>(number: f64) -> Answer<'b, 'v> {
    Ok(CowVal::owned(CelDouble::from(number)))
}

fn truth<'b, 'v>(truth: bool) -> Answer<'b, 'v> {
    Ok(CowVal::owned(CelBool::from(truth)))
}

fn text_value<'b, 'v>(text: String) -> Answer<'b, 'v> {
    Ok(CowVal::owned(CelString::from(text)))
}

/// What an optional holds, or the value itself.
fn held<'a, 'v>(value: &'a (dyn Val + 'v)) -> Option<&'a (dyn Val + 'v)> {
    match value.downcast_ref::<CelOptional<'_>>() {
        Some(optional) => optional.option().and_then(held),
        None => Some(value),
    }
}

/// The argument at `index`, out of its optional.
fn argument<'a, 'v>(
    function: &str,
    arguments: &'a [CowVal<'_, 'v>],
    index: usize,
) -> Result<&'a (dyn Val + 'v), ExecutionError> {
    arguments
        .get(index)
        .and_then(|value| held(value.as_ref()))
        .ok_or_else(|| cannot(function, "the value is missing"))
}

#[expect(clippy::cast_precision_loss, reason = "what CEL's double() does")]
fn as_number(value: &dyn Val) -> Option<f64> {
    if let Some(number) = value.downcast_ref::<CelDouble>() {
        Some(*number.inner())
    } else if let Some(number) = value.downcast_ref::<CelInt>() {
        Some(*number.inner() as f64)
    } else {
        value.downcast_ref::<CelUInt>().map(|number| *number.inner() as f64)
    }
}

fn number(
    function: &str,
    arguments: &[CowVal<'_, '_>],
    index: usize,
) -> Result<f64, ExecutionError> {
    let value = argument(function, arguments, index)?;
    as_number(value)
        .filter(|number| !number.is_nan())
        .ok_or_else(|| cannot(function, "it takes numbers; num(x) makes one of text"))
}

fn as_text<'a>(value: &'a (dyn Val + '_)) -> Option<&'a str> {
    value.downcast_ref::<CelString<'_>>().map(CelString::inner)
}

fn text<'a>(
    function: &str,
    arguments: &'a [CowVal<'_, '_>],
    index: usize,
) -> Result<&'a str, ExecutionError> {
    as_text(argument(function, arguments, index)?)
        .ok_or_else(|| cannot(function, "it takes text; string(x) makes text of a number"))
}

fn present<'b, 'v>(_: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    truth(true)
}

#[cfg(test)]
mod tests {
    use super::super::condition::testing::{SCOPE, result, with_scene};
    use super::super::condition::{Expression, Scope};
    use super::time::reading_time;
    use super::words::Words;
    use super::*;
    use crate::payload::Value;
    use jiff::tz::TimeZone;

    #[test]
    fn every_function_does_what_the_table_says() {
        let payload = r#"{"t":"19.2","n":7,"f":21.5,"b":true,"none":null,"e":"","nan":"nan",
            "m":{"b":2,"a":{"x":1}},"l":[3,1.5,2],"v":[{"id":"103"},{"id":"104","val":93.2}],
            "hex":"0x1F","flags":"a5","b64":"AXUSA2fm/w==","url":"AXUSA2fm_w","pos":[48.2,16.37],
            "s":1790000000,"sf":1790000000.5,"ms":1790000000123,"rfc":"2026-05-02T08:00:00.120Z",
            "local":"2026-07-02 03:04:05","name":" Ünit-7 ","big":9007199254740993,"word":"ONLINE"}"#;
        for (source, expected) in [
            ("num(payload.t)", "19.2"),
            ("num(payload.n) + 1", "8"),
            ("num(payload.f)", "21.5"),
            ("num(' -4\\n')", "-4"),
            ("num(payload.big)", "9007199254740993"),
            ("num(payload.?n)", "7"),
            ("num(payload.?x)", "! `num`: the value is missing"),
            (
                "num(payload.x)",
                "! the payload has no field `x`; guard it with has(...) if it may be absent",
            ),
            ("num(payload.none)", "! `num`: it is null: the device has no reading"),
            ("num(payload.e)", "! `num`: the text is empty"),
            ("num(payload.nan)", "! `num`: it is nan or infinite: the device has no reading"),
            ("num(payload.n / 0)", "! `num`: it is nan or infinite: there is no reading"),
            ("num(payload.name)", "! `num`: the text is not a number"),
            ("num('21,5')", "! `num`: the text is not a number"),
            ("num(payload.b)", "! `num`: it is neither a number nor text"),
            ("num(payload.l)", "! `num`: it is neither a number nor text"),
            ("is_num(payload.t) && is_num(payload.n)", "true"),
            ("is_num(payload.none) || is_num(payload.nan) || is_num(payload.b)", "false"),
            ("is_num(payload.?x) || is_num(payload.m)", "false"),
            ("is_on(payload.b) && is_on(1) && is_on('yes') && is_on(' On ')", "true"),
            ("is_on(payload.word)", "true"),
            ("is_on(false) || is_on(0) || is_on('OFF') || is_on('offline')", "false"),
            ("is_on('open')", "! `is_on`: the word means neither on nor off; add it to `words`"),
            ("is_on(2)", "! `is_on`: the word means neither on nor off; add it to `words`"),
            ("is_on(payload.none)", "! `is_on`: it takes true or false, 1 or 0, or a word"),
            ("celsius(50)", "10"),
            ("celsius(payload.f, 'C')", "21.5"),
            ("round(celsius(70, '°F'), 1)", "21.1"),
            ("celsius(273.15, 'k')", "0"),
            ("celsius(1, 'R')", "! `celsius`: the unit is none of C, F and K"),
            ("celsius(payload.t)", "! `celsius`: it takes numbers; num(x) makes one of text"),
            ("round(distance(52.52, 13.405, 48.137, 11.575) / 1000)", "504"),
            ("within(payload.pos[0], payload.pos[1], 48.21, 16.37, 1200)", "true"),
            ("within(payload.pos[0], payload.pos[1], 48.21, 16.37, 1000)", "false"),
            ("distance(0, 0, 0, 180) > 20000000 && distance(1, 1, 1, 1) == 0", "true"),
            (
                "distance(91, 0, 0, 0)",
                "! `distance`: latitude is from -90 to 90 and longitude from -180 to 180",
            ),
            ("bit(payload.n, 0) && bit(payload.n, 2) && !bit(payload.n, 3)", "true"),
            ("bit(payload.flags, 7) && !bit(payload.flags, 6)", "true"),
            ("bit(-1, 63)", "true"),
            ("bit(payload.f, 1)", "! `bit`: the number is not a whole one"),
            ("bit(payload.n, 64)", "! `bit`: bits are counted from 0 to 63"),
            ("bit(payload.name, 1)", "! `bit`: the text is not 1 to 16 hexadecimal digits"),
            ("hex(payload.hex) % 2", "1"),
            ("hex('ffffffffffffffff')", "! `hex`: the number is larger than 7fffffffffffffff"),
            ("hex('-1')", "! `hex`: the text is not 1 to 16 hexadecimal digits"),
            ("hex('')", "! `hex`: the text is not 1 to 16 hexadecimal digits"),
            ("size(base64(payload.b64))", "7"),
            ("base64(payload.b64) == base64(payload.url)", "true"),
            ("base64('a?')", "! `base64`: the text is not base64"),
            ("read(base64(payload.b64), 2, 'u8')", "18"),
            ("read(base64(payload.b64), 5, 'i16le') / 10", "-2.6"),
            ("read(base64(payload.b64), 5, 'u16be')", "59135"),
            ("read(payload.flags, 0, 'i8') + 1", "-90"),
            ("read('0x00003f80', 0, 'f32be') < 1 && read('01', 0, 'bool')", "true"),
            ("read('0000803f', 0, 'f32le')", "1"),
            ("read('0000c07f', 0, 'f32le')", "null"),
            ("read(payload.flags, 0, 'u16be')", "! `read`: there are too few bytes"),
            ("read(payload.flags, payload.n, 'u8')", "! `read`: there are too few bytes"),
            ("read(payload.flags, -1, 'u8')", "! `read`: bytes are counted from 0"),
            ("read(payload.flags, 0.5, 'u8')", "! `read`: bytes are counted from 0"),
            ("read(payload.word, 0, 'u8')", "! `read`: the text is not hexadecimal"),
            ("read(payload.n, 0, 'u8')", "! `read`: it takes bytes or hexadecimal text"),
            (
                "read(payload.flags, 0, 'u16')",
                "refused: `read`: `u16` is no type of a number; write u16be or u16le",
            ),
            (
                "read(payload.flags, 0, payload.name)",
                "refused: `read` takes its type as text in quotes, as in read(x, 0, 'i16be')",
            ),
            ("time(payload.s)", "\"2026-09-21T14:13:20.000Z\""),
            ("time(payload.sf)", "\"2026-09-21T14:13:20.500Z\""),
            ("time(payload.ms)", "\"2026-09-21T14:13:20.123Z\""),
            ("time('1790000000')", "\"2026-09-21T14:13:20.000Z\""),
            ("time(payload.rfc)", "\"2026-05-02T08:00:00.120Z\""),
            ("time('2026-05-02T10:00:00+02:00')", "\"2026-05-02T08:00:00.000Z\""),
            ("time(payload.local)", "\"2026-07-02T03:04:05.000Z\""),
            ("time(payload.local, 'Europe/Berlin')", "\"2026-07-02T01:04:05.000Z\""),
            ("time(now) == now", "true"),
            ("time(payload.name)", "! `time`: it is no time"),
            ("time(payload.none)", "! `time`: it is no time"),
            ("time(1e300)", "! `time`: it is no time"),
            ("abs(-payload.n) + 1", "8"),
            ("min(payload.n, 3) + max(payload.l) + min(payload.l)", "7.5"),
            ("max([])", "! `max`: the list is empty"),
            ("max(payload.v)", "! `max`: it takes two numbers or a list of numbers"),
            ("max(payload.m)", "! `max`: it takes two numbers or a list of numbers"),
            (
                "[round(2.5), round(-2.5), round(21.456, 2), floor(-1.5), ceil(1.2)]",
                "[3,-3,21.46,-2,2]",
            ),
            ("round(1.5, 10)", "! `round`: it rounds to 0 to 9 digits"),
            ("keys(payload.m)", "[\"a\",\"b\"]"),
            ("values(payload.m)[1] + 1", "3"),
            ("values(payload.m).exists(x, x == 2)", "true"),
            ("values(payload.l)", "! `values`: it takes a map"),
            ("pick(payload.v, 'id', '104').val + 1 > 94", "true"),
            ("pick(payload.v, 'id', '105')", "! `pick`: the list has no such element"),
            ("pick(payload.l, 'id', 1)", "! `pick`: the list has no such element"),
            ("pick(payload.n, 'id', 1)", "! `pick`: it takes a list of maps"),
            ("trim(payload.name) + lower(payload.name) + upper('ß')", "\"Ünit-7 ünit-7 SS\""),
            ("split('a,b,,c', ',')", "[\"a\",\"b\",\"\",\"c\"]"),
            ("num(split('t=21.5', '=')[1])", "21.5"),
            ("split('abc', '')", "! `split`: the separator is empty"),
            ("num(replace('21,5', ',', '.'))", "21.5"),
            ("replace('a', '', 'b')", "! `replace`: there is nothing to replace: `from` is empty"),
            ("lower(payload.n)", "! `lower`: it takes text; string(x) makes text of a number"),
        ] {
            assert_eq!(result(source, payload, None), expected, "{source}");
        }
    }

    #[test]
    fn a_rule_adds_its_words() {
        let words = |on: &[&str], off: &[&str]| Words {
            on: on.iter().map(ToString::to_string).collect(),
            off: off.iter().map(ToString::to_string).collect(),
        };
        let (on, off) = words(&["Open", "0"], &["closed"]).lines();
        assert_eq!(on, "Open\n0\non\ntrue\nyes\n1\nonline");
        assert_eq!(off, "closed\noff\nfalse\nno\noffline");
        let own = words(&["Open", "0"], &["closed"]);
        let scope = Scope { words: Some(&own), ..SCOPE };
        let expression = Expression::compile("is_on(payload)", &scope, 100).expect("compiles");
        for (payload, expected) in [("OPEN", true), ("closed", false), ("0", true), ("on", true)] {
            let found = with_scene(payload.as_bytes(), None, |scene| expression.holds(scene));
            assert_eq!(found, Some(Ok(expected)), "{payload}");
        }
        assert_eq!(words(&["open"], &["closed"]).problems(), [""; 0]);
        assert_eq!(words(&["open", ""], &["OPEN"]).problems().len(), 2);
    }

    #[test]
    fn a_reading_has_a_time_or_none() {
        let berlin = TimeZone::get("Europe/Berlin").expect("a zone");
        let read = |value: Value| {
            reading_time(&value, Some(&berlin)).map_or_else(|| "none".to_owned(), |t| t.to_string())
        };
        let text = |text: &str| Value::Text(text.into());
        for (value, expected) in [
            (Value::Int(0), "1970-01-01T00:00:00.000Z"),
            (Value::Int(1_790_000_000), "2026-09-21T14:13:20.000Z"),
            (Value::Int(1_790_000_000_123), "2026-09-21T14:13:20.123Z"),
            (Value::Uint(u64::MAX), "none"),
            (Value::Float(1_790_000_000.25), "2026-09-21T14:13:20.250Z"),
            (text(" 2026-02-01 03:04:05 "), "2026-02-01T02:04:05.000Z"),
            (text("2026-05-02T08:00:00.176"), "2026-05-02T06:00:00.176Z"),
            (text("2026-05-02T11:20:31.114+00:00"), "2026-05-02T11:20:31.114Z"),
            (text("2026-02-01"), "2026-01-31T23:00:00.000Z"),
            // The hour that there is not, and the one that there is twice.
            (text("2026-03-29 02:30:00"), "2026-03-29T01:30:00.000Z"),
            (text("2026-10-25 02:30:00"), "2026-10-25T00:30:00.000Z"),
            (text("soon"), "none"),
            (text(""), "none"),
            (Value::Null, "none"),
            (Value::Bool(true), "none"),
        ] {
            let shown = value.to_string();
            assert_eq!(read(value), expected, "{shown}");
        }
    }

    /// What is written there is what the code says.
    #[test]
    fn the_paper_has_every_function() {
        let paper = include_str!("../../../docs/expressions.md");
        for function in TABLE {
            let line = format!("| `{}` | {} |", function.usage, function.does);
            assert!(paper.contains(&line), "docs/expressions.md lacks\n{line}");
        }
    }
}
