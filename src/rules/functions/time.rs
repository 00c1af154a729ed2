//! When a reading was taken. Pure: no clock, and the time zones that are built in.

use cel::common::types::CelTimestamp;
use cel::common::value::CowVal;
use jiff::tz::TimeZone;

use super::number::number_in;
use super::{Answer, Arguments, WORD_BYTES_MAX, argument, as_number, as_text, cannot, text};
use crate::clock::wall::WallTime;
use crate::payload::Value;

/// When a reading was taken, from what its device says: seconds since 1970, with a fraction or not,
/// milliseconds (from 1e11 on), RFC 3339, or a date and time without an offset, which is local time in
/// `zone` (UTC where `None`). `None` for what is no time; whether it is a likely one is for the caller
/// to say.
#[expect(clippy::cast_precision_loss, reason = "a time in milliseconds has 14 digits")]
pub fn reading_time(value: &Value, zone: Option<&TimeZone>) -> Option<WallTime> {
    match value {
        Value::Int(whole) => time_of_number(*whole as f64),
        Value::Uint(whole) => time_of_number(*whole as f64),
        Value::Float(number) => time_of_number(*number),
        Value::Text(text) => time_of_text(text, zone),
        _ => None,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "jiff refuses what is out of its range")]
fn time_of_number(number: f64) -> Option<WallTime> {
    if !number.is_finite() {
        return None;
    }
    let millis = if number.abs() > 1e11 { number } else { number * 1_000.0 };
    let millis = millis.round() as i64;
    jiff::Timestamp::from_millisecond(millis).ok().map(|_| WallTime::from_millis(millis))
}

fn time_of_text(text: &str, zone: Option<&TimeZone>) -> Option<WallTime> {
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
    Some(WallTime::from_millis(time.as_millisecond()))
}

pub(super) fn time<'b, 'v>(mut arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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
