//! MessagePack (msgpack.org, specification of 2017): one object and nothing behind it.
//!
//! | first byte | value |
//! |---|---|
//! | 00–7f, e0–ff, cc–cf, d0–d3 | whole number |
//! | 80–8f, de, df | map; keys that are numbers become their digits |
//! | 90–9f, dc, dd | list |
//! | a0–bf, d9–db | text |
//! | c0, c2, c3 | null, false, true |
//! | c4–c6 | bytes |
//! | ca, cb | double; NaN and the infinities are null |
//! | c7–c9, d4–d8 | extension: type -1 is a time, as seconds since 1970; others are bytes |
//! | c1 | refused |

use std::sync::Arc;

use super::budget::{Budget, name};
use super::value::Map;
use super::{Limits, Undecodable, Value};

/// The extension of the specification: a point in time.
const TIMESTAMP: u8 = 0xff;

pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Value, Undecodable> {
    if bytes.is_empty() {
        return Err(Undecodable::Empty);
    }
    let mut reader = Reader { bytes, at: 0, budget: Budget::new(limits) };
    let value = reader.value(0)?;
    if reader.at < bytes.len() { Err(stopped(reader.at)) } else { Ok(value) }
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
    budget: Budget,
}

impl<'b> Reader<'b> {
    fn take(&mut self, count: usize) -> Result<&'b [u8], Undecodable> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| stopped(self.at))?;
        self.at += count;
        Ok(taken)
    }

    /// A number of 1, 2, 4 or 8 bytes, the greatest first.
    fn number(&mut self, bytes: usize) -> Result<u64, Undecodable> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, Undecodable> {
        let at = self.at;
        usize::try_from(self.number(bytes)?).map_err(|_| stopped(at))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Undecodable> {
        self.budget.value()?;
        let at = self.at;
        let first = self.number(1)?;
        let low = usize::try_from(first).unwrap_or_default();
        match first {
            0x00..=0x7f => Ok(Value::whole(first)),
            0x80..=0x8f => self.map(low & 0x0f, depth),
            0x90..=0x9f => self.list(low & 0x0f, depth),
            0xa0..=0xbf => self.text(low & 0x1f),
            0xc0 => Ok(Value::Null),
            0xc2 => Ok(Value::Bool(false)),
            0xc3 => Ok(Value::Bool(true)),
            0xc4..=0xc6 => {
                let length = self.length(1 << (low - 0xc4))?;
                self.take(length).map(|bytes| Value::Bytes(bytes.into()))
            }
            0xc7..=0xc9 => {
                let length = self.length(1 << (low - 0xc7))?;
                self.extension(length)
            }
            0xca => {
                let bits = u32::try_from(self.number(4)?).unwrap_or_default();
                Ok(Value::single(f32::from_bits(bits)))
            }
            0xcb => Ok(Value::float(f64::from_bits(self.number(8)?))),
            0xcc..=0xcf => self.number(1 << (low - 0xcc)).map(Value::whole),
            0xd0..=0xd3 => {
                let bytes = 1 << (low - 0xd0);
                let bits = u32::try_from(8 * bytes).unwrap_or(u64::BITS);
                self.number(bytes).map(|number| Value::signed(number, bits))
            }
            0xd4..=0xd8 => self.extension(1 << (low - 0xd4)),
            0xd9..=0xdb => {
                let length = self.length(1 << (low - 0xd9))?;
                self.text(length)
            }
            0xdc | 0xdd => {
                let length = self.length(2 << (low - 0xdc))?;
                self.list(length, depth)
            }
            0xde | 0xdf => {
                let length = self.length(2 << (low - 0xde))?;
                self.map(length, depth)
            }
            0xe0..=0xff => Ok(Value::Int(first.cast_signed() - 0x100)),
            _ => Err(stopped(at)),
        }
    }

    fn text(&mut self, length: usize) -> Result<Value, Undecodable> {
        let at = self.at;
        let text = std::str::from_utf8(self.take(length)?);
        text.map(|text| Value::Text(text.into())).map_err(|_| stopped(at))
    }

    fn extension(&mut self, length: usize) -> Result<Value, Undecodable> {
        let kind = self.take(1)?;
        let bytes = self.take(length)?;
        if kind == [TIMESTAMP]
            && let Some(time) = timestamp(bytes)
        {
            return Ok(time);
        }
        Ok(Value::Bytes(bytes.into()))
    }

    fn list(&mut self, length: usize, depth: usize) -> Result<Value, Undecodable> {
        let below = self.budget.below(depth)?;
        let mut list = Vec::new();
        for _ in 0..length {
            list.push(self.value(below)?);
        }
        Ok(Value::List(list.into()))
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<Value, Undecodable> {
        let below = self.budget.below(depth)?;
        let mut entries = Vec::new();
        for _ in 0..length {
            let at = self.at;
            let key = name(&self.value(below)?).ok_or_else(|| stopped(at))?;
            entries.push((key, self.value(below)?));
        }
        Ok(Value::Map(Arc::new(Map::new(entries))))
    }
}

fn stopped(at: usize) -> Undecodable {
    Undecodable::Malformed { format: "MessagePack", at }
}

/// Seconds since 1970: whole where they are, else a double.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds beside seconds, as a double")]
fn timestamp(bytes: &[u8]) -> Option<Value> {
    let (seconds, nanos) = match bytes.len() {
        4 => (i64::from(u32::from_be_bytes(*bytes.first_chunk()?)), 0),
        8 => {
            let both = u64::from_be_bytes(*bytes.first_chunk()?);
            ((both & 0x3_ffff_ffff).cast_signed(), u32::try_from(both >> 34).ok()?)
        }
        12 => (i64::from_be_bytes(*bytes.last_chunk()?), u32::from_be_bytes(*bytes.first_chunk()?)),
        _ => return None,
    };
    match nanos {
        0 => Some(Value::Int(seconds)),
        1..1_000_000_000 => Some(Value::Float(seconds as f64 + f64::from(nanos) / 1e9)),
        _ => None,
    }
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

    #[test]
    fn reads_every_kind_of_object() {
        check(&[
            ("82a7636f6d70616374c3a6736368656d6100", "{\"compact\": true, \"schema\": 0}"),
            ("7f", "127"),
            ("e0", "-32"),
            ("ff", "-1"),
            ("ccff", "255"),
            ("cdffff", "65535"),
            ("ceffffffff", "4294967295"),
            ("cfffffffffffffffff", "18446744073709551615"),
            ("d080", "-128"),
            ("d1fffb", "-5"),
            ("d2fffffffb", "-5"),
            ("d38000000000000000", "-9223372036854775808"),
            ("ca41aa6666", "21.3"),
            ("cbc00c000000000000", "-3.5"),
            ("ca7fc00000", "null"),
            ("c0", "null"),
            ("c2", "false"),
            ("a3c3bc61", "\"üa\""),
            ("d90161", "\"a\""),
            ("da000161", "\"a\""),
            ("db0000000161", "\"a\""),
            ("c4020001", "\"AAE=\""),
            ("c500020001", "\"AAE=\""),
            ("c6000000020001", "\"AAE=\""),
            ("93010203", "[1, 2, 3]"),
            ("dc000101", "[1]"),
            ("dd0000000101", "[1]"),
            ("8105f6", "{\"5\": -10}"),
            ("de0001a16101", "{\"a\": 1}"),
            ("df00000001c30a", "{\"true\": 10}"),
        ]);
    }

    #[test]
    fn an_extension_is_a_time_or_bytes() {
        check(&[
            ("d6ff6ab13b80", "1790000000"),
            ("d7ff773594006ab13b80", "1790000000.5"),
            ("c70cff1dcd6500ffffffffffffffff", "-0.5"),
            ("d6016ab13b80", "\"arE7gA==\""),
            ("c70301000102", "\"AAEC\""),
            ("d7ffffffffff6ab13b80", "\"/////2qxO4A=\""),
        ]);
    }

    #[test]
    fn says_where_it_stopped_and_not_what_it_read() {
        check(&[
            ("", "! the payload is empty"),
            ("c1", "! the payload is not MessagePack: it stops making sense at byte 0"),
            ("92", "! the payload is not MessagePack: it stops making sense at byte 1"),
            ("0102", "! the payload is not MessagePack: it stops making sense at byte 1"),
            ("a2c3", "! the payload is not MessagePack: it stops making sense at byte 1"),
            ("a1ff", "! the payload is not MessagePack: it stops making sense at byte 1"),
            ("81c001", "! the payload is not MessagePack: it stops making sense at byte 1"),
            ("ddffffffff", "! the payload is not MessagePack: it stops making sense at byte 5"),
            ("c6ffffffff", "! the payload is not MessagePack: it stops making sense at byte 5"),
        ]);
    }

    #[test]
    fn limits_are_kept() {
        let limits = Limits { depth_max: 2, values_max: 4, ..Limits::default() };
        for (payload, expected) in [
            ("919101", None),
            ("91919101", Some(Undecodable::TooDeep(2))),
            ("93010203", None),
            ("9401020304", Some(Undecodable::TooManyValues(4))),
        ] {
            assert_eq!(decode(&hex(payload), limits).err(), expected, "{payload}");
        }
        let deep = vec![0x91; 200_000];
        assert_eq!(decode(&deep, Limits::default()), Err(Undecodable::TooDeep(32)));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&bytes, Limits::default()));
        }
    }
}
