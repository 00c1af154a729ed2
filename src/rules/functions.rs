//! The functions that expressions have beside CEL's own: what [`TABLE`] lists.
//!
//! Each is total over what a device may send: it gives a result or says in words of its own what it
//! cannot take, never with anything of the payload. No clock, no state. None makes a value that is
//! much larger than those it was given.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelNull, CelOptional, CelString, CelTimestamp,
    CelUInt, DYN_TYPE, MAP_TYPE,
};
use cel::common::value::{CowVal, Val};
use cel::{Env, ExecutionError};
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::clock::Timestamp;
use crate::payload::{self, Decode, Undecodable, Value};

/// The longest text that is looked at as a number, a word, a time or hexadecimal digits, bytes.
const WORD_BYTES_MAX: usize = 64;

/// The longest text that `replace` makes, bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// The most parts that `split` makes.
const PARTS_MAX: usize = 10_000;

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
    (gives, walks): (Gives, bool),
    (usage, does): (&'static str, &'static str),
    call: cel::common::functions::Function,
) -> Function {
    Function { name, takes, gives, walks, usage, does, call }
}

/// Every function of ours; docs/expressions.md has the same lines.
pub(super) static TABLE: &[Function] = &[
    function(
        "num",
        (1, 1),
        (Gives::Double, false),
        (
            "num(x)",
            "the number, or the number that a text is; `null`, `nan` and empty text are errors",
        ),
        num,
    ),
    function(
        "is_num",
        (1, 1),
        (Gives::Small, false),
        ("is_num(x)", "whether `num(x)` gives a number; never an error on a value that is there"),
        is_num,
    ),
    function(
        "is_on",
        (1, 1),
        (Gives::Small, false),
        (
            "is_on(x)",
            "true for true, 1, on, yes, online; false for false, 0, off, no, offline; `words` adds to both; any other word is an error",
        ),
        is_on,
    ),
    function(
        "changed",
        (1, 1),
        (Gives::Small, false),
        (
            "changed(x)",
            "whether `x` differs from what it was in the previous payload; false at the first; a field that has come is a change",
        ),
        present,
    ),
    function(
        "celsius",
        (1, 2),
        (Gives::Double, false),
        (
            "celsius(f), celsius(x, unit)",
            "degrees Celsius from Fahrenheit, or from the unit C, F or K",
        ),
        celsius,
    ),
    function(
        "distance",
        (4, 4),
        (Gives::Double, false),
        ("distance(lat, lon, lat2, lon2)", "metres between two places on the ground"),
        distance,
    ),
    function(
        "within",
        (5, 5),
        (Gives::Small, false),
        ("within(lat, lon, lat2, lon2, radius)", "whether the distance is at most `radius` metres"),
        within,
    ),
    function(
        "bit",
        (2, 2),
        (Gives::Small, false),
        (
            "bit(x, n)",
            "whether bit `n` (0 is the lowest) of a whole number or of hexadecimal text is set",
        ),
        bit,
    ),
    function(
        "hex",
        (1, 1),
        (Gives::Int, false),
        ("hex(x)", "the whole number (`int`) that hexadecimal text is, with or without 0x"),
        hex,
    ),
    function(
        "base64",
        (1, 1),
        (Gives::Large, true),
        ("base64(x)", "the bytes of base64 text, of either alphabet, with or without padding"),
        base64_bytes,
    ),
    function(
        "time",
        (1, 2),
        (Gives::Small, false),
        (
            "time(x), time(x, zone)",
            "the time from seconds or milliseconds since 1970, RFC 3339, or a local date and time of the zone (else UTC)",
        ),
        time,
    ),
    function("abs", (1, 1), (Gives::Double, false), ("abs(x)", "the number without its sign"), abs),
    function(
        "min",
        (1, 2),
        (Gives::Double, true),
        ("min(x, y), min(list)", "the smallest number"),
        min,
    ),
    function(
        "max",
        (1, 2),
        (Gives::Double, true),
        ("max(x, y), max(list)", "the largest number"),
        max,
    ),
    function(
        "round",
        (1, 2),
        (Gives::Double, false),
        (
            "round(x), round(x, digits)",
            "the nearest number with so many digits (0 to 9) after the point; half goes away from 0",
        ),
        round,
    ),
    function(
        "floor",
        (1, 1),
        (Gives::Double, false),
        ("floor(x)", "the next whole number below"),
        floor,
    ),
    function(
        "ceil",
        (1, 1),
        (Gives::Double, false),
        ("ceil(x)", "the next whole number above"),
        ceil,
    ),
    function(
        "keys",
        (1, 1),
        (Gives::Large, true),
        ("keys(map)", "the names in a map, as a list"),
        keys,
    ),
    function(
        "values",
        (1, 1),
        (Gives::Large, true),
        ("values(map)", "the values in a map, as a list"),
        values,
    ),
    function(
        "pick",
        (3, 3),
        (Gives::Large, true),
        (
            "pick(list, field, value)",
            "the first element of a list of maps whose `field` equals `value`; none is an error",
        ),
        pick,
    ),
    function(
        "lower",
        (1, 1),
        (Gives::Large, true),
        ("lower(x)", "the text in small letters"),
        lower,
    ),
    function(
        "upper",
        (1, 1),
        (Gives::Large, true),
        ("upper(x)", "the text in capital letters"),
        upper,
    ),
    function(
        "trim",
        (1, 1),
        (Gives::Large, true),
        ("trim(x)", "the text without white space at its ends"),
        trim,
    ),
    function(
        "split",
        (2, 2),
        (Gives::Large, true),
        ("split(x, separator)", "the parts of a text, as a list"),
        split,
    ),
    function(
        "replace",
        (3, 3),
        (Gives::Large, true),
        ("replace(x, from, to)", "the text with every `from` replaced"),
        replace,
    ),
];

/// The function of that name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    TABLE.iter().find(|function| function.name == name)
}

/// `is_on` with its words, and whether an expression fails: what the lowering makes.
pub(super) const IS_ON: &str = "is_on";
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

/// The number that a text is.
pub(super) fn number_in(text: &str) -> Result<Value, &'static str> {
    if text.len() > WORD_BYTES_MAX {
        return Err("the text is not a number");
    }
    payload::decode(
        &Decode::Number.into(),
        text.as_bytes(),
        payload::Limits::default(),
        Timestamp::default(),
    )
    .map_err(|error| match error {
        Undecodable::Empty => "the text is empty",
        Undecodable::NotFinite => "it is nan or infinite: the device has no reading",
        _ => "the text is not a number",
    })
}

fn num<'b, 'v>(mut arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let why = {
        let value = argument("num", &arguments, 0)?;
        if let Some(text) = as_text(value) {
            match number_in(text) {
                // A borrow of it would not live long enough; it is a number and small.
                Ok(Value::Int(whole)) => return Ok(CowVal::Owned(whole_number(whole))),
                Ok(Value::Uint(whole)) => return Ok(CowVal::owned(CelUInt::from(whole))),
                Ok(Value::Float(number)) => return double(number),
                Ok(_) => Some("the text is not a number"),
                Err(why) => Some(why),
            }
        } else if as_number(value).is_some_and(|number| !number.is_finite()) {
            Some("it is nan or infinite: there is no reading")
        } else if as_number(value).is_some() {
            None
        } else if value.downcast_ref::<CelNull>().is_some() {
            Some("it is null: the device has no reading")
        } else {
            Some("it is neither a number nor text")
        }
    };
    if let Some(why) = why {
        return Err(cannot("num", why));
    }
    let value = arguments.swap_remove(0);
    match value.downcast_ref::<CelOptional<'_>>().and_then(|_| held(value.as_ref())) {
        Some(inner) => Ok(CowVal::Owned(inner.clone_as_boxed())),
        None => Ok(value),
    }
}

fn whole_number<'v>(whole: i64) -> Box<dyn Val + 'v> {
    super::view::whole_to_cel(whole)
}

fn is_num<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    truth(num(arguments).is_ok())
}

fn present<'b, 'v>(_: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    truth(true)
}

/// A rule's words for `is_on(x)`, beside the usual ones. Case does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Words {
    /// What means on.
    pub on: Vec<String>,
    /// What means off.
    pub off: Vec<String>,
}

const ON: &[&str] = &["on", "true", "yes", "1", "online"];
const OFF: &[&str] = &["off", "false", "no", "0", "offline"];

impl Words {
    /// What is wrong with them; empty if nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for word in self.on.iter().chain(&self.off) {
            if word.trim().is_empty() || word.trim() != word || word.len() > WORD_BYTES_MAX {
                problems.push(format!(
                    "`{word}` cannot be a word: write 1 to {WORD_BYTES_MAX} bytes without white space at the ends"
                ));
            }
            if word.chars().any(char::is_control) {
                problems.push("a word has no control characters".to_owned());
            }
        }
        if let Some(word) = self.on.iter().find(|word| is_among(word, &self.off)) {
            problems.push(format!("`{word}` means both on and off; leave it out of one"));
        }
        problems
    }

    /// Both lists with the usual words, one a line; of a usual word the rule's own meaning counts.
    pub(super) fn lines(&self) -> (String, String) {
        let join = |own: &[String], usual: &[&str], other: &[String]| {
            let usual = usual.iter().filter(|word| !is_among(word, other));
            let all: Vec<&str> = own.iter().map(String::as_str).chain(usual.copied()).collect();
            all.join("\n")
        };
        (join(&self.on, ON, &self.off), join(&self.off, OFF, &self.on))
    }
}

fn is_among(word: &str, words: &[String]) -> bool {
    words.iter().any(|known| same_word(known, word))
}

fn same_word(one: &str, other: &str) -> bool {
    one.chars().flat_map(char::to_lowercase).eq(other.chars().flat_map(char::to_lowercase))
}

fn is_on<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let value = argument("is_on", &arguments, 0)?;
    let (on, off) = (text("is_on", &arguments, 1)?, text("is_on", &arguments, 2)?);
    let made;
    let word = if let Some(text) = as_text(value) {
        text.trim()
    } else if let Some(truth) = value.downcast_ref::<CelBool>() {
        if *truth.inner() { "true" } else { "false" }
    } else if let Some(number) = as_number(value) {
        made = number.to_string();
        &made
    } else {
        return Err(cannot("is_on", "it takes true or false, 1 or 0, or a word"));
    };
    if word.len() <= WORD_BYTES_MAX {
        for (words, meaning) in [(on, true), (off, false)] {
            if words.lines().any(|known| same_word(known, word)) {
                return truth(meaning);
            }
        }
    }
    Err(cannot("is_on", "the word means neither on nor off; add it to `words`"))
}

fn celsius<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let degrees = number("celsius", &arguments, 0)?;
    let unit = match arguments.len() {
        1 => "f",
        _ => text("celsius", &arguments, 1)?,
    };
    let unit = unit.trim().trim_start_matches('°').trim_start();
    let means = |name: &str, letter: &str| {
        unit.eq_ignore_ascii_case(name) || unit.eq_ignore_ascii_case(letter)
    };
    if means("celsius", "c") {
        double(degrees)
    } else if means("fahrenheit", "f") {
        double((degrees - 32.0) * 5.0 / 9.0)
    } else if means("kelvin", "k") {
        double(degrees - 273.15)
    } else {
        Err(cannot("celsius", "the unit is none of C, F and K"))
    }
}

/// The mean radius of the earth, metres (IUGG).
const EARTH_METRES: f64 = 6_371_008.8;

fn metres(function: &str, arguments: &[CowVal<'_, '_>]) -> Result<f64, ExecutionError> {
    let place = |index: usize| {
        let (latitude, longitude) =
            (number(function, arguments, index)?, number(function, arguments, index + 1)?);
        if latitude.abs() <= 90.0 && longitude.abs() <= 360.0 {
            Ok((latitude.to_radians(), longitude.to_radians()))
        } else {
            Err(cannot(function, "latitude is from -90 to 90 and longitude from -180 to 180"))
        }
    };
    let ((lat, lon), (lat2, lon2)) = (place(0)?, place(2)?);
    // The haversine formula: exact enough near and far, and never outside of asin's range but by
    // rounding.
    let half = |angle: f64| (angle / 2.0).sin().powi(2);
    let share = half(lat2 - lat) + lat.cos() * lat2.cos() * half(lon2 - lon);
    Ok(2.0 * EARTH_METRES * share.clamp(0.0, 1.0).sqrt().asin())
}

fn distance<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(metres("distance", &arguments)?)
}

fn within<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    truth(metres("within", &arguments)? <= number("within", &arguments, 4)?)
}

fn hex_digits(function: &str, text: &str) -> Result<u64, ExecutionError> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
    // `from_str_radix` takes a sign too.
    let all_are = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let read = u64::from_str_radix(digits, 16).ok().filter(|_| all_are);
    read.ok_or_else(|| cannot(function, "the text is not 1 to 16 hexadecimal digits"))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole and in range; a negative number has the bits of its two's complement"
)]
fn bit<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let value = argument("bit", &arguments, 0)?;
    let bits = if let Some(text) = as_text(value) {
        hex_digits("bit", text)?
    } else if let Some(whole) = value.downcast_ref::<CelUInt>() {
        *whole.inner()
    } else if let Some(whole) = value.downcast_ref::<CelInt>() {
        *whole.inner() as u64
    } else {
        let number = number("bit", &arguments, 0)?;
        if number.fract() != 0.0 || number.abs() > 9_007_199_254_740_992.0 {
            return Err(cannot("bit", "the number is not a whole one"));
        }
        number as i64 as u64
    };
    let position = number("bit", &arguments, 1)?;
    if position.fract() != 0.0 || !(0.0..64.0).contains(&position) {
        return Err(cannot("bit", "bits are counted from 0 to 63"));
    }
    truth(bits >> (position as u32) & 1 == 1)
}

fn hex<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let whole = hex_digits("hex", text("hex", &arguments, 0)?)?;
    let whole = i64::try_from(whole)
        .map_err(|_| cannot("hex", "the number is larger than 7fffffffffffffff"))?;
    Ok(CowVal::owned(CelInt::from(whole)))
}

fn base64_bytes<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    static STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    static URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    let text = text("base64", &arguments, 0)?.trim();
    let engine = if text.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    let bytes = engine.decode(text).map_err(|_| cannot("base64", "the text is not base64"))?;
    Ok(CowVal::owned(CelBytes::from(bytes)))
}

/// When a reading was taken, from what its device says: seconds since 1970, with a fraction or not,
/// milliseconds (from 1e11 on), RFC 3339, or a date and time without an offset, which is local time in
/// `zone` (UTC where `None`). `None` for what is no time; whether it is a likely one is for the caller
/// to say.
#[expect(clippy::cast_precision_loss, reason = "a time in milliseconds has 14 digits")]
pub fn reading_time(value: &Value, zone: Option<&TimeZone>) -> Option<Timestamp> {
    match value {
        Value::Int(whole) => time_of_number(*whole as f64),
        Value::Uint(whole) => time_of_number(*whole as f64),
        Value::Float(number) => time_of_number(*number),
        Value::Text(text) => time_of_text(text, zone),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "jiff refuses what is out of its range")]
fn time_of_number(number: f64) -> Option<Timestamp> {
    if !number.is_finite() {
        return None;
    }
    let millis = if number.abs() > 1e11 { number } else { number * 1_000.0 };
    let millis = millis.round() as i64;
    jiff::Timestamp::from_millisecond(millis).ok().map(|_| Timestamp::from_millis(millis))
}

fn time_of_text(text: &str, zone: Option<&TimeZone>) -> Option<Timestamp> {
    let text = text.trim();
    if text.len() > WORD_BYTES_MAX {
        return None;
    }
    if let Ok(number) = number_in(text) {
        return reading_time(&number, zone);
    }
    let time = match text.parse::<jiff::Timestamp>() {
        Ok(time) => time,
        Err(_) => {
            let local: jiff::civil::DateTime = text.parse().ok()?;
            local.to_zoned(zone.cloned().unwrap_or(TimeZone::UTC)).ok()?.timestamp()
        }
    };
    Some(Timestamp::from_millis(time.as_millisecond()))
}

fn time<'b, 'v>(mut arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let zone = match arguments.len() {
        1 => None,
        _ => Some(
            TimeZone::get(text("time", &arguments, 1)?)
                .map_err(|_| cannot("time", "there is no such time zone"))?,
        ),
    };
    let read = {
        let value = argument("time", &arguments, 0)?;
        if value.downcast_ref::<CelTimestamp>().is_some() {
            None
        } else {
            let value = as_number(value)
                .map(Value::Float)
                .or_else(|| as_text(value).map(|text| Value::Text(text.into())))
                .unwrap_or(Value::Null);
            Some(reading_time(&value, zone.as_ref()))
        }
    };
    let Some(read) = read else {
        return Ok(arguments.swap_remove(0));
    };
    read.and_then(|time| chrono::DateTime::from_timestamp_millis(time.as_millis()))
        .map(|time| CowVal::owned(CelTimestamp::from(time.fixed_offset())))
        .ok_or_else(|| cannot("time", "it is no time"))
}

fn abs<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(number("abs", &arguments, 0)?.abs())
}

fn floor<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(number("floor", &arguments, 0)?.floor())
}

fn ceil<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(number("ceil", &arguments, 0)?.ceil())
}

#[expect(clippy::cast_possible_truncation, reason = "from 0 to 9")]
fn round<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let number_to_round = number("round", &arguments, 0)?;
    let digits = match arguments.len() {
        1 => 0.0,
        _ => number("round", &arguments, 1)?,
    };
    if digits.fract() != 0.0 || !(0.0..=9.0).contains(&digits) {
        return Err(cannot("round", "it rounds to 0 to 9 digits"));
    }
    let scale = 10_f64.powi(digits as i32);
    let rounded = (number_to_round * scale).round() / scale;
    double(if rounded.is_finite() { rounded } else { number_to_round })
}

fn min<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    extreme("min", &arguments, f64::min)
}

fn max<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    extreme("max", &arguments, f64::max)
}

fn extreme<'b, 'v>(
    function: &str,
    arguments: &[CowVal<'_, '_>],
    choose: fn(f64, f64) -> f64,
) -> Answer<'b, 'v> {
    if arguments.len() == 2 {
        return double(choose(number(function, arguments, 0)?, number(function, arguments, 1)?));
    }
    let not_numbers = || cannot(function, "it takes two numbers or a list of numbers");
    let list = argument(function, arguments, 0)?;
    let mut elements = list.as_iterable().filter(|_| !is_map(list)).ok_or_else(not_numbers)?.iter();
    let mut found: Option<f64> = None;
    while let Some(element) = elements.next() {
        let number =
            as_number(element).filter(|number| !number.is_nan()).ok_or_else(not_numbers)?;
        found = Some(found.map_or(number, |so_far| choose(so_far, number)));
    }
    double(found.ok_or_else(|| cannot(function, "the list is empty"))?)
}

fn is_map(value: &dyn Val) -> bool {
    value.get_type() == &MAP_TYPE
}

fn keys<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let map = argument("keys", &arguments, 0)?;
    let keys = map.as_iterable().filter(|_| is_map(map));
    let mut keys = keys.ok_or_else(|| cannot("keys", "it takes a map"))?.iter();
    let mut list: Vec<Box<dyn Val + 'v>> = Vec::new();
    while let Some(key) = keys.next() {
        list.push(key.clone_as_boxed());
    }
    Ok(CowVal::owned(CelList::from(list)))
}

fn values<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let map = argument("values", &arguments, 0)?;
    let parts = map.as_iterable().zip(map.as_indexer()).filter(|_| is_map(map));
    let (keys, fields) = parts.ok_or_else(|| cannot("values", "it takes a map"))?;
    let mut keys = keys.iter();
    let mut list: Vec<Box<dyn Val + 'v>> = Vec::new();
    while let Some(key) = keys.next() {
        list.push(fields.get(key)?.into_owned());
    }
    Ok(CowVal::owned(CelList::from(list)))
}

fn pick<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let list = argument("pick", &arguments, 0)?;
    let field = argument("pick", &arguments, 1)?;
    let wanted = argument("pick", &arguments, 2)?;
    let elements = list.as_iterable().filter(|_| !is_map(list));
    let mut elements = elements.ok_or_else(|| cannot("pick", "it takes a list of maps"))?.iter();
    while let Some(element) = elements.next() {
        let found = element.as_indexer().and_then(|fields| fields.get(field).ok());
        if found.is_some_and(|found| found.as_ref().equals(wanted)) {
            return Ok(CowVal::Owned(element.clone_as_boxed()));
        }
    }
    Err(cannot("pick", "the list has no such element"))
}

fn lower<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    text_value(text("lower", &arguments, 0)?.to_lowercase())
}

fn upper<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    text_value(text("upper", &arguments, 0)?.to_uppercase())
}

fn trim<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    text_value(text("trim", &arguments, 0)?.trim().to_owned())
}

fn split<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let (whole, separator) = (text("split", &arguments, 0)?, text("split", &arguments, 1)?);
    if separator.is_empty() {
        return Err(cannot("split", "the separator is empty"));
    }
    let mut parts: Vec<Box<dyn Val + 'v>> = Vec::new();
    for part in whole.split(separator) {
        if parts.len() == PARTS_MAX {
            return Err(cannot("split", "the text has more than 10000 parts"));
        }
        parts.push(Box::new(CelString::from(part.to_owned())));
    }
    Ok(CowVal::owned(CelList::from(parts)))
}

fn replace<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let whole = text("replace", &arguments, 0)?;
    let (from, to) = (text("replace", &arguments, 1)?, text("replace", &arguments, 2)?);
    if from.is_empty() {
        return Err(cannot("replace", "there is nothing to replace: `from` is empty"));
    }
    let added = whole.matches(from).count().saturating_mul(to.len());
    if whole.len().saturating_add(added) > TEXT_BYTES_MAX {
        return Err(cannot("replace", "the text would be too long"));
    }
    text_value(whole.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::super::condition::testing::result;
    use super::*;

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
        let paper = include_str!("../../docs/expressions.md");
        for function in TABLE {
            let line = format!("| `{}` | {} |", function.usage, function.does);
            assert!(paper.contains(&line), "docs/expressions.md lacks\n{line}");
        }
    }
}
