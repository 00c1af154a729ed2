//! A metric's value, by its data type (Sparkplug 3.0, chapter 6.4.16).
//!
//! Signed numbers stand in unsigned fields, so that without its type -5 is 4294967291: the type is
//! the metric's own or that of its birth. DataSets and Templates are null.

use bytes::Bytes;
use prost::Message;

use super::super::budget::Budget;
use super::super::{Undecodable, Value};
use super::wire::{Metric, PropertySet, PropertyValue};

const CUT_OFF: Undecodable = Undecodable::NotSparkplug("an array is cut off");

/// The value of `metric`, whose type is `datatype` (0: nobody has said).
pub(super) fn value(
    metric: &Metric,
    datatype: u32,
    budget: &mut Budget,
) -> Result<Value, Undecodable> {
    if metric.is_null == Some(true) {
        return Ok(Value::Null);
    }
    let whole = metric.long_value.or(metric.int_value.map(u64::from));
    let bits = match datatype {
        1 => 8,
        2 => 16,
        3 => 32,
        4 => 64,
        _ => 0,
    };
    if let (Some(whole), 1..) = (whole, bits) {
        return Ok(Value::signed(whole, bits));
    }
    if let (Some(bytes), 22..=34) = (&metric.bytes_value, datatype) {
        return array(bytes, datatype, budget);
    }
    Ok(whole
        .map(Value::whole)
        .or(metric.float_value.map(Value::single))
        .or(metric.double_value.map(Value::float))
        .or(metric.boolean_value.map(Value::Bool))
        .or(metric.string_value.as_ref().map(|text| Value::Text(text.as_str().into())))
        .or(metric.bytes_value.as_ref().map(|bytes| Value::Bytes(bytes.as_ref().into())))
        .unwrap_or(Value::Null))
}

/// An array, packed with the lowest byte first.
fn array(bytes: &[u8], datatype: u32, budget: &mut Budget) -> Result<Value, Undecodable> {
    budget.below(2)?;
    let width = match datatype {
        22 | 26 => 1,
        23 | 27 => 2,
        24 | 28 | 30 => 4,
        32 => return booleans(bytes, budget),
        33 => return strings(bytes, budget),
        _ => 8,
    };
    let numbers = bytes.chunks_exact(width);
    if !numbers.remainder().is_empty() {
        return Err(CUT_OFF);
    }
    budget.values(numbers.len())?;
    let bits = u32::try_from(8 * width).unwrap_or(u64::BITS);
    let list = numbers.map(|number| {
        let raw = number.iter().rev().fold(0, |raw, byte| raw << 8 | u64::from(*byte));
        match datatype {
            22..=25 => Value::signed(raw, bits),
            30 => Value::single(f32::from_bits(u32::try_from(raw).unwrap_or_default())),
            31 => Value::float(f64::from_bits(raw)),
            _ => Value::whole(raw),
        }
    });
    Ok(Value::List(list.collect()))
}

/// How many there are, in four bytes, then eight in each byte, from the highest bit.
fn booleans(bytes: &[u8], budget: &mut Budget) -> Result<Value, Undecodable> {
    let (count, packed) = bytes.split_first_chunk::<4>().ok_or(CUT_OFF)?;
    let count = usize::try_from(u32::from_le_bytes(*count)).map_err(|_| CUT_OFF)?;
    if count.div_ceil(8) > packed.len() {
        return Err(CUT_OFF);
    }
    budget.values(count)?;
    let bits = packed.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1));
    Ok(Value::List(bits.take(count).map(Value::Bool).collect()))
}

/// Each with a 0 behind it.
fn strings(bytes: &[u8], budget: &mut Budget) -> Result<Value, Undecodable> {
    let Some(all) = bytes.strip_suffix(&[0]) else {
        return if bytes.is_empty() { Ok(Value::List([].into())) } else { Err(CUT_OFF) };
    };
    let mut list = Vec::new();
    for text in all.split(|byte| *byte == 0) {
        budget.value()?;
        let text = std::str::from_utf8(text);
        let text = text.map_err(|_| Undecodable::NotSparkplug("a text is not UTF-8"))?;
        list.push(Value::Text(text.into()));
    }
    Ok(Value::List(list.into()))
}

/// The property `Quality`: 0 bad, 192 good, 500 stale.
pub(super) fn quality(properties: &Bytes) -> Result<Option<u64>, Undecodable> {
    let wrong = |_| Undecodable::NotSparkplug("a metric's properties are no protobuf");
    let set = PropertySet::decode(properties.clone()).map_err(wrong)?;
    let Some(at) = set.keys.iter().position(|key| key == "Quality") else {
        return Ok(None);
    };
    let Some(value) = set.values.get(at) else {
        return Ok(None);
    };
    let value = PropertyValue::decode(value.clone()).map_err(wrong)?;
    Ok(value.int_value.map(u64::from).or(value.long_value))
}

#[cfg(test)]
mod tests {
    use super::super::super::Limits;
    use super::super::super::tests::hex;
    use super::*;

    fn check(metric: &Metric, cases: &[(u32, &str)]) {
        for (datatype, expected) in cases {
            let found = match value(metric, *datatype, &mut Budget::new(Limits::default())) {
                Ok(value) => format!("{value:?}"),
                Err(error) => format!("! {error}"),
            };
            assert_eq!(found, *expected, "type {datatype} of {metric:?}");
        }
    }

    #[test]
    fn signed_numbers_are_extended_by_their_type() {
        let int = |raw| Metric { int_value: Some(raw), ..Metric::default() };
        check(
            &int(4_294_967_291),
            &[
                (1, "-5"),
                (2, "-5"),
                (3, "-5"),
                (7, "4294967291"),
                (13, "4294967291"),
                (0, "4294967291"),
            ],
        );
        check(&int(0xfb), &[(1, "-5"), (2, "251"), (5, "251")]);
        let long = Metric { long_value: Some(u64::MAX - 4), ..Metric::default() };
        check(&long, &[(4, "-5"), (8, "18446744073709551611"), (1, "-5")]);
    }

    #[test]
    fn other_values_are_what_they_are() {
        let none = Metric::default();
        check(&Metric { float_value: Some(21.3), ..none.clone() }, &[(9, "21.3"), (0, "21.3")]);
        check(&Metric { double_value: Some(f64::NAN), ..none.clone() }, &[(10, "null")]);
        check(&Metric { boolean_value: Some(true), ..none.clone() }, &[(11, "true")]);
        check(&Metric { string_value: Some("on".to_owned()), ..none.clone() }, &[(12, "\"on\"")]);
        let bytes = Metric { bytes_value: Some(Bytes::from_static(&[0, 255])), ..none.clone() };
        check(&bytes, &[(17, "\"AP8=\""), (18, "\"AP8=\"")]);
        check(&none, &[(16, "null"), (19, "null"), (3, "null")]);
        check(
            &Metric { is_null: Some(true), int_value: Some(5), ..Metric::default() },
            &[(3, "null")],
        );
    }

    #[test]
    fn arrays_are_lists() {
        for (datatype, bytes, expected) in [
            (22, "fb05", "[-5, 5]"),
            (23, "fbff", "[-5]"),
            (24, "fbffffff", "[-5]"),
            (25, "fbffffffffffffff", "[-5]"),
            (26, "fb05", "[251, 5]"),
            (27, "fbff", "[65531]"),
            (28, "fbffffff", "[4294967291]"),
            (29, "0100000000000000", "[1]"),
            (30, "6666aa410000c07f", "[21.3, null]"),
            (31, "0000000000000cc0", "[-3.5]"),
            (
                32,
                "0c00000034d0",
                "[false, false, true, true, false, true, false, false, true, true, false, true]",
            ),
            (33, "4142430068656c6c6f0000", "[\"ABC\", \"hello\", \"\"]"),
            (33, "", "[]"),
            (34, "0100000000000000", "[1]"),
            (23, "fb", "! not a Sparkplug B message: an array is cut off"),
            (32, "0900000034", "! not a Sparkplug B message: an array is cut off"),
            (32, "ffffffff34", "! not a Sparkplug B message: an array is cut off"),
            (33, "41", "! not a Sparkplug B message: an array is cut off"),
            (33, "ff00", "! not a Sparkplug B message: a text is not UTF-8"),
        ] {
            let metric = Metric { bytes_value: Some(hex(bytes).into()), ..Metric::default() };
            check(&metric, &[(datatype, expected)]);
        }
    }
}
