//! Numbers: from text, rounded, the smallest and largest, degrees, places, bits.

use cel::ExecutionError;
use cel::common::types::{CelInt, CelNull, CelOptional, CelUInt};
use cel::common::value::CowVal;

use super::list::is_map;
use super::{
    Answer, Arguments, WORD_BYTES_MAX, argument, as_number, as_text, cannot, double, held, number,
    text, truth,
};
use crate::clock::Timestamp;
use crate::payload::{self, Decode, Undecodable, Value};
use crate::rules::view::whole_to_cel;

/// The number that a text is.
pub(in crate::rules) fn number_in(text: &str) -> Result<Value, &'static str> {
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

pub(super) fn num<'b, 'v>(mut arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let why = {
        let value = argument("num", &arguments, 0)?;
        if let Some(text) = as_text(value) {
            match number_in(text) {
                // A borrow of it would not live long enough; it is a number and small.
                Ok(Value::Int(whole)) => return Ok(CowVal::Owned(whole_to_cel(whole))),
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

pub(super) fn is_num<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    truth(num(arguments).is_ok())
}

pub(super) fn abs<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(number("abs", &arguments, 0)?.abs())
}

pub(super) fn floor<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(number("floor", &arguments, 0)?.floor())
}

pub(super) fn ceil<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(number("ceil", &arguments, 0)?.ceil())
}

#[expect(clippy::cast_possible_truncation, reason = "from 0 to 9")]
pub(super) fn round<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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

pub(super) fn min<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    extreme("min", &arguments, f64::min)
}

pub(super) fn max<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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

pub(super) fn celsius<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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

pub(super) fn distance<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    double(metres("distance", &arguments)?)
}

pub(super) fn within<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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
pub(super) fn bit<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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

pub(super) fn hex<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let whole = hex_digits("hex", text("hex", &arguments, 0)?)?;
    let whole = i64::try_from(whole)
        .map_err(|_| cannot("hex", "the number is larger than 7fffffffffffffff"))?;
    Ok(CowVal::owned(CelInt::from(whole)))
}
