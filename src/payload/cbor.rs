//! CBOR (RFC 8949): one data item and nothing behind it.
//!
//! | CBOR | value |
//! |---|---|
//! | integers, big numbers (tags 2, 3) | whole number; beyond 64 bits the nearest double |
//! | decimal fraction (tag 4) | double |
//! | half, single, double | double; NaN and the infinities are null |
//! | text, byte string, also in pieces | text, bytes |
//! | null, undefined, simple values without a meaning | null |
//! | array, map, also of indefinite length | list, map; keys that are numbers become their digits |
//! | any other tag | what it stands before |

use std::sync::Arc;

use minicbor::Decoder;
use minicbor::data::Type;
use minicbor::decode::Error;

use super::budget::{Budget, name};
use super::value::Map;
use super::{Limits, Undecodable, Value};

const BIGNUM: u64 = 2;
const BIGNUM_NEGATIVE: u64 = 3;
const DECIMAL: u64 = 4;

pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Value, Undecodable> {
    if bytes.is_empty() {
        return Err(Undecodable::Empty);
    }
    let mut reader = Reader { cbor: Decoder::new(bytes), budget: Budget::new(limits) };
    let value = reader.value(0)?;
    if reader.cbor.position() < bytes.len() {
        return Err(reader.stopped());
    }
    Ok(value)
}

struct Reader<'b> {
    cbor: Decoder<'b>,
    budget: Budget,
}

impl Reader<'_> {
    fn stopped(&self) -> Undecodable {
        // The decoder may stand behind the end, where a length was cut off.
        let at = self.cbor.position().min(self.cbor.input().len());
        Undecodable::Malformed { format: "CBOR", at }
    }

    fn take<T>(&self, read: Result<T, Error>) -> Result<T, Undecodable> {
        read.map_err(|_| self.stopped())
    }

    fn value(&mut self, depth: usize) -> Result<Value, Undecodable> {
        self.budget.value()?;
        let mut tag = None;
        loop {
            let kind = self.cbor.datatype();
            let read = match self.take(kind)? {
                Type::Tag => {
                    let number = self.cbor.tag();
                    tag = Some(self.take(number)?.as_u64());
                    continue;
                }
                Type::Bool => self.cbor.bool().map(Value::Bool),
                Type::Null => self.cbor.null().map(|()| Value::Null),
                Type::Undefined => self.cbor.undefined().map(|()| Value::Null),
                Type::Simple => self.cbor.simple().map(|_| Value::Null),
                Type::U8 | Type::U16 | Type::U32 | Type::U64 => self.cbor.u64().map(Value::whole),
                Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int => {
                    self.cbor.int().map(|number| Value::wide(i128::from(number)))
                }
                Type::F16 => return self.half(),
                Type::F32 => self.cbor.f32().map(Value::single),
                Type::F64 => self.cbor.f64().map(Value::float),
                Type::String | Type::StringIndef => self.text(),
                Type::Bytes | Type::BytesIndef => match self.bytes() {
                    Ok(bytes) if tag == Some(BIGNUM) => Ok(big(&bytes, false)),
                    Ok(bytes) if tag == Some(BIGNUM_NEGATIVE) => Ok(big(&bytes, true)),
                    bytes => bytes.map(|bytes| Value::Bytes(bytes.into())),
                },
                Type::Array | Type::ArrayIndef => {
                    let list = self.list(depth)?;
                    let decimal = if tag == Some(DECIMAL) { decimal(&list) } else { None };
                    return Ok(decimal.unwrap_or_else(|| Value::List(list.into())));
                }
                Type::Map | Type::MapIndef => return self.map(depth),
                Type::Break | Type::Unknown(_) => return Err(self.stopped()),
            };
            return self.take(read);
        }
    }

    fn text(&mut self) -> Result<Value, Error> {
        if self.cbor.datatype()? == Type::String {
            return self.cbor.str().map(|text| Value::Text(text.into()));
        }
        let mut whole = String::new();
        for piece in self.cbor.str_iter()? {
            whole.push_str(piece?);
        }
        Ok(Value::Text(whole.into()))
    }

    fn bytes(&mut self) -> Result<Vec<u8>, Error> {
        let mut whole = Vec::new();
        for piece in self.cbor.bytes_iter()? {
            whole.extend_from_slice(piece?);
        }
        Ok(whole)
    }

    /// Half precision, which the decoder leaves to others: the byte before says so.
    fn half(&mut self) -> Result<Value, Undecodable> {
        let at = self.cbor.position() + 1;
        let Some(bytes) = self.cbor.input().get(at..).and_then(|rest| rest.first_chunk::<2>())
        else {
            return Err(self.stopped());
        };
        self.cbor.set_position(at + 2);
        Ok(Value::float(half(u16::from_be_bytes(*bytes))))
    }

    /// Whether another element follows; takes the sign of the end of an indefinite length.
    fn more(&mut self, left: &mut Option<u64>) -> Result<bool, Undecodable> {
        if let Some(left) = left {
            let more = *left > 0;
            *left = left.saturating_sub(1);
            return Ok(more);
        }
        let kind = self.cbor.datatype();
        if self.take(kind)? != Type::Break {
            return Ok(true);
        }
        self.cbor.set_position(self.cbor.position() + 1);
        Ok(false)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Value>, Undecodable> {
        let below = self.budget.below(depth)?;
        let length = self.cbor.array();
        let mut left = self.take(length)?;
        let mut list = Vec::new();
        while self.more(&mut left)? {
            list.push(self.value(below)?);
        }
        Ok(list)
    }

    fn map(&mut self, depth: usize) -> Result<Value, Undecodable> {
        let below = self.budget.below(depth)?;
        let length = self.cbor.map();
        let mut left = self.take(length)?;
        let mut entries = Vec::new();
        while self.more(&mut left)? {
            let at = self.stopped();
            let key = name(&self.value(below)?).ok_or(at)?;
            entries.push((key, self.value(below)?));
        }
        Ok(Value::Map(Arc::new(Map::new(entries))))
    }
}

/// IEEE 754 half precision (RFC 8949, appendix D).
fn half(bits: u16) -> f64 {
    let exponent = i32::from((bits >> 10) & 0x1f);
    let fraction = f64::from(bits & 0x3ff);
    let size = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (fraction + 1024.0) * 2f64.powi(exponent - 25),
    };
    if bits & 0x8000 == 0 { size } else { -size }
}

/// A number of as many bytes as there are; negative ones are -1 - n.
fn big(bytes: &[u8], negative: bool) -> Value {
    let digits = bytes.iter().skip_while(|byte| **byte == 0);
    if digits.clone().count() < 16 {
        let number = digits.fold(0i128, |number, byte| number << 8 | i128::from(*byte));
        return Value::wide(if negative { -1 - number } else { number });
    }
    let number = digits.fold(0f64, |number, byte| number * 256.0 + f64::from(*byte));
    Value::float(if negative { -1.0 - number } else { number })
}

/// `[exponent, mantissa]`: mantissa times ten to the exponent.
fn decimal(list: &[Value]) -> Option<Value> {
    let [Value::Int(exponent), mantissa @ (Value::Int(_) | Value::Uint(_))] = list else {
        return None;
    };
    format!("{mantissa}e{exponent}").parse().ok().map(Value::float)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{hex, shown_by};
    use super::*;

    fn check(cases: &[(&str, &str)]) {
        for (payload, expected) in cases {
            assert_eq!(shown_by(decode, &hex(payload)), *expected, "{payload}");
        }
    }

    /// RFC 8949, appendix A, as far as a value can hold it.
    #[test]
    fn reads_the_examples_of_the_specification() {
        check(&[
            ("00", "0"),
            ("1864", "100"),
            ("1bffffffffffffffff", "18446744073709551615"),
            ("c249010000000000000000", "1.8446744073709552e19"),
            ("3bffffffffffffffff", "-1.8446744073709552e19"),
            ("c349010000000000000000", "-1.8446744073709552e19"),
            ("29", "-10"),
            ("3903e7", "-1000"),
            ("f90000", "0.0"),
            ("f98000", "-0.0"),
            ("f93c00", "1.0"),
            ("f93e00", "1.5"),
            ("f97bff", "65504.0"),
            ("f90001", "5.960464477539063e-8"),
            ("f90400", "6.103515625e-5"),
            ("f9c400", "-4.0"),
            ("fa47c35000", "100000.0"),
            ("fb3ff199999999999a", "1.1"),
            ("fb7e37e43c8800759c", "1e300"),
            ("f97c00", "null"),
            ("f97e00", "null"),
            ("faff800000", "null"),
            ("fb7ff8000000000000", "null"),
            ("f4", "false"),
            ("f5", "true"),
            ("f6", "null"),
            ("f7", "null"),
            ("f0", "null"),
            ("f8ff", "null"),
            ("c11a514b67b0", "1363896240"),
            ("d818456449455446", "\"ZElFVEY=\""),
            ("4401020304", "\"AQIDBA==\""),
            ("62c3bc", "\"ü\""),
            ("83010203", "[1, 2, 3]"),
            ("a201020304", "{\"1\": 2, \"3\": 4}"),
            (
                "a56161614161626142616361436164614461656145",
                "{\"a\": \"A\", \"b\": \"B\", \"c\": \"C\", \"d\": \"D\", \"e\": \"E\"}",
            ),
            ("5f42010243030405ff", "\"AQIDBAU=\""),
            ("7f657374726561646d696e67ff", "\"streaming\""),
            ("9f018202039f0405ffff", "[1, [2, 3], [4, 5]]"),
            ("bf6346756ef563416d7421ff", "{\"Amt\": -2, \"Fun\": true}"),
            ("80", "[]"),
            ("a0", "{}"),
        ]);
    }

    #[test]
    fn numbers_beyond_the_specification_s_examples() {
        check(&[
            ("fa41aa6666", "21.3"),
            ("c48221196ab3", "273.15"),
            ("c4821864187b", "1.23e102"),
            ("c2420100", "256"),
            ("c34101", "-2"),
            ("c240", "0"),
            ("c4820102", "20.0"),
            ("c48101", "[1]"),
        ]);
    }

    #[test]
    fn says_where_it_stopped_and_not_what_it_read() {
        check(&[
            ("", "! the payload is empty"),
            ("82", "! the payload is not CBOR: it stops making sense at byte 1"),
            ("0000", "! the payload is not CBOR: it stops making sense at byte 1"),
            ("1c", "! the payload is not CBOR: it stops making sense at byte 0"),
            ("ff", "! the payload is not CBOR: it stops making sense at byte 0"),
            ("f93c", "! the payload is not CBOR: it stops making sense at byte 0"),
            ("62c3", "! the payload is not CBOR: it stops making sense at byte 1"),
            ("9f01", "! the payload is not CBOR: it stops making sense at byte 2"),
            ("a18001", "! the payload is not CBOR: it stops making sense at byte 1"),
            ("1f8b08", "! the payload is not CBOR: it stops making sense at byte 0"),
        ]);
        for unbelievable in ["9bffffffffffffffff", "bbffffffffffffffff", "5bffffffffffffffff"] {
            assert!(decode(&hex(unbelievable), Limits::default()).is_err());
        }
    }

    #[test]
    fn limits_are_kept() {
        let limits = Limits { depth_max: 2, values_max: 4, ..Limits::default() };
        for (payload, expected) in [
            ("818101", None),
            ("81818101", Some(Undecodable::TooDeep(2))),
            ("a1613180", None),
            ("83010203", None),
            ("8401020304", Some(Undecodable::TooManyValues(4))),
            ("a2613101613202", Some(Undecodable::TooManyValues(4))),
        ] {
            assert_eq!(decode(&hex(payload), limits).err(), expected, "{payload}");
        }
        let deep = vec![0x81; 200_000];
        assert_eq!(decode(&deep, Limits::default()), Err(Undecodable::TooDeep(32)));
        let mut tags = vec![0xc1; 200_000];
        tags.push(0x01);
        assert_eq!(decode(&tags, Limits::default()), Ok(Value::Int(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&bytes, Limits::default()));
        }
    }
}
