//! `decode = "binary"`: fields at places in the bytes, as the rule's `layout` says.
//!
//! ```toml
//! layout = { min_bytes = 10, fields = [
//!   { name = "temp_c", at = 0, type = "i16be", scale = 0.1, offset = -40 },
//!   { name = "door_open", at = 2, bits = [3, 1] },
//!   { name = "serial", at = 4, len = 6, type = "hex" },
//! ] }
//! ```
//!
//! | type | reads |
//! |---|---|
//! | `u8` `i8` `u16be` `u16le` ... `u24` `i24` `u32` `i32` `u64` `i64` with `be` or `le` | whole number |
//! | `f32be` `f32le` `f64be` `f64le` | double; NaN and the infinities are null |
//! | `bool` | whether the byte is not 0 |
//! | `text` | `len` bytes or the rest: up to the first 0, without white space at its end |
//! | `hex`, `bytes` | `len` bytes or the rest |
//! | `bits` | `bits = [first, count]`, counted from the least significant bit of the byte |
//!
//! `bits` beside a whole type takes them out of that number. One bit is true or false; more are a
//! number, signed where the type is. A number is `raw * scale + offset`, to as many decimals as
//! `scale` and `offset` have: 21.3, and not 21.300000000000001.
//!
//! A payload shorter than `min_bytes` is refused; the default is what all fields need. With a smaller
//! `min_bytes` the fields behind the end are missing, and none of them is 0. Bytes that no field
//! names are not looked at. The layout knows nothing of topics: it reads any bytes, also those that
//! came as base64 in another payload.

mod parse;

use std::sync::Arc;

use super::budget::Budget;
use super::value::Map;
use super::{Limits, Undecodable, Value};

/// Where what is. Made by [`Layout::parse`].
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    fields: Vec<Field>,
    min_bytes: usize,
}

#[derive(Clone, Debug, PartialEq)]
struct Field {
    name: Arc<str>,
    at: usize,
    /// `None`: up to the end of the payload.
    len: Option<usize>,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Whole { kind: Whole, scaling: Option<Scaling> },
    Bits { kind: Whole, first: u32, count: u32, scaling: Option<Scaling> },
    Single { little: bool, scaling: Option<Scaling> },
    Double { little: bool, scaling: Option<Scaling> },
    Bool,
    Text,
    Hex,
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whole {
    signed: bool,
    little: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Scaling {
    scale: f64,
    offset: f64,
    /// Ten to as many decimals as both have; `None`: more than a double can hold.
    decimals: Option<f64>,
}

impl Layout {
    /// Reads `bytes`, whatever they came in.
    ///
    /// # Errors
    /// They are too many, or too few.
    pub fn read(&self, bytes: &[u8], limits: Limits) -> Result<Value, Undecodable> {
        if bytes.len() > limits.bytes_max {
            return Err(Undecodable::TooLarge(limits.bytes_max));
        }
        if bytes.len() < self.min_bytes {
            return Err(Undecodable::TooShort { bytes: bytes.len(), needed: self.min_bytes });
        }
        let mut budget = Budget::new(limits);
        budget.below(0)?;
        budget.values(1 + self.fields.len())?;
        let entries = self.fields.iter().filter_map(|field| {
            let rest = bytes.get(field.at..)?;
            let own = match field.len {
                Some(len) => rest.get(..len)?,
                None => rest,
            };
            Some((Arc::clone(&field.name), field.what.read(own)))
        });
        Ok(Value::Map(Arc::new(Map::new(entries.collect()))))
    }
}

impl What {
    /// `own` has as many bytes as the type needs.
    fn read(self, own: &[u8]) -> Value {
        match self {
            Self::Whole { kind, scaling } => {
                let bits = u32::try_from(own.len() * 8).unwrap_or(u64::BITS);
                scaled(whole(raw(own, kind.little), bits, kind.signed), scaling)
            }
            Self::Bits { kind, first, count, scaling } => {
                let own = raw(own, kind.little) >> first;
                let mask = u64::MAX >> (u64::BITS - count);
                match scaling {
                    None if count == 1 => Value::Bool(own & mask == 1),
                    scaling => scaled(whole(own & mask, count, kind.signed), scaling),
                }
            }
            Self::Single { little, scaling } => {
                let bits = u32::try_from(raw(own, little)).unwrap_or_default();
                float(Value::single(f32::from_bits(bits)), scaling)
            }
            Self::Double { little, scaling } => {
                float(Value::float(f64::from_bits(raw(own, little))), scaling)
            }
            Self::Bool => Value::Bool(own.iter().any(|byte| *byte != 0)),
            Self::Text => {
                let text = own.split(|byte| *byte == 0).next().unwrap_or_default();
                Value::Text(String::from_utf8_lossy(text).trim_end().into())
            }
            Self::Hex => {
                let digits: String = own.iter().map(|byte| format!("{byte:02x}")).collect();
                Value::Text(digits.into())
            }
            Self::Bytes => Value::Bytes(own.into()),
        }
    }
}

/// At most eight bytes as a number.
fn raw(bytes: &[u8], little: bool) -> u64 {
    let join = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    if little { bytes.iter().rev().fold(0, join) } else { bytes.iter().fold(0, join) }
}

/// The lowest `bits` of `raw`.
fn whole(raw: u64, bits: u32, signed: bool) -> Value {
    if signed { Value::signed(raw, bits) } else { Value::whole(raw) }
}

fn scaled(value: Value, scaling: Option<Scaling>) -> Value {
    let (Some(scaling), Some(number)) = (scaling, value.number()) else {
        return value;
    };
    let exact = number * scaling.scale + scaling.offset;
    let rounded = scaling.decimals.map(|decimals| (exact * decimals).round() / decimals);
    Value::float(rounded.filter(|rounded| rounded.is_finite()).unwrap_or(exact))
}

/// Like [`scaled`]; a float has decimals of its own.
fn float(value: Value, scaling: Option<Scaling>) -> Value {
    scaled(value, scaling.map(|scaling| Scaling { decimals: None, ..scaling }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::hex;
    use super::*;

    fn layout(fields: &str) -> Layout {
        let written = toml::from_str(fields).expect("valid TOML");
        Layout::parse(&written).expect("a right layout")
    }

    fn shown(layout: &Layout, bytes: &str) -> String {
        match layout.read(&hex(bytes), Limits::default()) {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("! {error}"),
        }
    }

    /// One field called `x`.
    fn check(cases: &[(&str, &str, &str)]) {
        for (field, bytes, expected) in cases {
            let layout = layout(&format!("fields = [{{ name = 'x', {field} }}]"));
            assert_eq!(shown(&layout, bytes), format!("{{\"x\": {expected}}}"), "{field}");
        }
    }

    #[test]
    fn every_type_is_read() {
        check(&[
            ("at = 1, type = 'u8'", "00ff", "255"),
            ("at = 0, type = 'i8'", "ff", "-1"),
            ("at = 0, type = 'u16be'", "0102", "258"),
            ("at = 0, type = 'u16le'", "0102", "513"),
            ("at = 0, type = 'i16be'", "fffb", "-5"),
            ("at = 0, type = 'i16le'", "fbff", "-5"),
            ("at = 0, type = 'u24be'", "010203", "66051"),
            ("at = 0, type = 'u24le'", "010203", "197121"),
            ("at = 0, type = 'i24be'", "fffffb", "-5"),
            ("at = 0, type = 'i24le'", "fbffff", "-5"),
            ("at = 0, type = 'u32be'", "ffffffff", "4294967295"),
            ("at = 0, type = 'i32le'", "fbffffff", "-5"),
            ("at = 0, type = 'u64be'", "ffffffffffffffff", "18446744073709551615"),
            ("at = 0, type = 'i64be'", "fffffffffffffffb", "-5"),
            ("at = 0, type = 'f32be'", "41aa6666", "21.3"),
            ("at = 0, type = 'f32le'", "6666aa41", "21.3"),
            ("at = 0, type = 'f32be'", "7fc00000", "null"),
            ("at = 0, type = 'f64be'", "c00c000000000000", "-3.5"),
            ("at = 0, type = 'f64le'", "0000000000000cc0", "-3.5"),
            ("at = 0, type = 'bool'", "00", "false"),
            ("at = 0, type = 'bool'", "02", "true"),
            ("at = 0, type = 'text', len = 6", "61622000fffe", "\"ab\""),
            ("at = 1, type = 'text'", "00c3a4ff", "\"ä\u{fffd}\""),
            ("at = 0, type = 'hex', len = 2", "0aff77", "\"0aff\""),
            ("at = 1, type = 'hex'", "0aff77", "\"ff77\""),
            ("at = 0, type = 'bytes', len = 2", "00ff77", "\"AP8=\""),
        ]);
    }

    #[test]
    fn bits_are_counted_from_the_least_significant() {
        check(&[
            ("at = 0, bits = [3, 1]", "08", "true"),
            ("at = 0, bits = [3, 1]", "f7", "false"),
            ("at = 0, type = 'bits', bits = [4, 4]", "a5", "10"),
            ("at = 0, type = 'u16be', bits = [4, 8]", "0ff0", "255"),
            ("at = 0, type = 'u16le', bits = [0, 12]", "bc0a", "2748"),
            ("at = 0, type = 'i16be', bits = [4, 12]", "fff0", "-1"),
            ("at = 0, type = 'u64be', bits = [0, 64]", "ffffffffffffffff", "18446744073709551615"),
            ("at = 0, bits = [0, 1], scale = 5", "01", "5.0"),
            ("at = 0, bits = [0, 4], scale = 0.5, offset = 1", "03", "2.5"),
        ]);
    }

    #[test]
    fn a_scaled_number_has_the_decimals_of_its_scale() {
        check(&[
            ("at = 0, type = 'i16be', scale = 0.1", "00d5", "21.3"),
            ("at = 0, type = 'u8', scale = 0.1", "03", "0.3"),
            ("at = 0, type = 'u16be', scale = 0.1, offset = -40", "028d", "25.3"),
            ("at = 0, type = 'u8', scale = 0.0625", "03", "0.1875"),
            ("at = 0, type = 'i32be', scale = 0.0000001", "1cbb5a5a", "48.204041"),
            ("at = 0, type = 'u8', offset = -40", "00", "-40.0"),
            ("at = 0, type = 'u8', scale = 10", "07", "70.0"),
            ("at = 0, type = 'f32be', scale = 0.5", "41aa6666", "10.65"),
            ("at = 0, type = 'u64be', scale = 1e300", "ffffffffffffffff", "null"),
        ]);
    }

    #[test]
    fn a_short_payload_is_refused_or_lacks_fields() {
        let fields = "fields = [{ name = 'a', at = 0, type = 'u8' }, { name = 'b', at = 2, type = 'u16be' }, { name = 'c', at = 5, type = 'hex' }]";
        let whole = layout(fields);
        assert_eq!(shown(&whole, "0100000203"), "{\"a\": 1, \"b\": 2, \"c\": \"\"}");
        assert_eq!(shown(&whole, "01000002"), "! the payload has 4 bytes, and its layout needs 5");
        let partial = layout(&format!("min_bytes = 1\n{fields}"));
        assert_eq!(shown(&partial, "01000002"), "{\"a\": 1, \"b\": 2}");
        assert_eq!(shown(&partial, "010000"), "{\"a\": 1}");
        assert_eq!(shown(&partial, ""), "! the payload has 0 bytes, and its layout needs 1");
    }

    #[test]
    fn limits_are_kept() {
        let one = layout("fields = [{ name = 'a', at = 0, type = 'u8' }]");
        let limits = Limits { bytes_max: 2, ..Limits::default() };
        assert_eq!(one.read(&[1, 2, 3], limits), Err(Undecodable::TooLarge(2)));
        let limits = Limits { values_max: 1, ..Limits::default() };
        assert_eq!(one.read(&[1], limits), Err(Undecodable::TooManyValues(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            at in 0..40usize,
            len in 1..9usize,
            first in 0..8usize,
        ) {
            for kind in parse::TYPES {
                let rest = match *kind {
                    "text" | "hex" | "bytes" => format!("len = {len}"),
                    "bits" => format!("bits = [{first}, {}]", 8 - first),
                    _ => String::new(),
                };
                let field = format!("{{ name = 'x', at = {at}, type = '{kind}', {rest} }}");
                let layout = layout(&format!("min_bytes = 0\nfields = [{}]", field.replace(",  }", " }")));
                drop(layout.read(&bytes, Limits::default()));
            }
        }
    }
}
