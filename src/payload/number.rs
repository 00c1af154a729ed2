//! One decimal number, with white space around it: `21.5`, `-4`, `1e3`.
//!
//! No unit, no decimal comma, no hexadecimal; `nan` and the infinities mean that there is no
//! reading, and are refused as such.

use super::{Undecodable, Value};

pub(super) fn decode(bytes: &[u8]) -> Result<Value, Undecodable> {
    let text = std::str::from_utf8(bytes).map_err(|_| Undecodable::NotNumber)?.trim();
    if text.is_empty() {
        return Err(Undecodable::Empty);
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Ok(Value::Int(whole));
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Ok(Value::Uint(whole));
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Value::Float(number)),
        Ok(_) => Err(Undecodable::NotFinite),
        Err(_) => Err(Undecodable::NotNumber),
    }
}
