//! Text: case, ends, parts, replacements, base64, numbers in bytes. None makes much more than it was given.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cel::ExecutionError;
use cel::common::types::{CelBytes, CelList, CelNull, CelString, CelUInt};
use cel::common::value::{CowVal, Val};

use super::super::view::whole_to_cel;
use super::{
    Answer, Arguments, argument, as_text, cannot, double, number, text, text_value, truth,
};
use crate::payload::Value;
use crate::payload::layout::Layout;

/// The longest text that `replace` makes, bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// The most parts that `split` makes.
const PARTS_MAX: usize = 10_000;

pub(super) fn lower<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    text_value(text("lower", &arguments, 0)?.to_lowercase())
}

pub(super) fn upper<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    text_value(text("upper", &arguments, 0)?.to_uppercase())
}

pub(super) fn trim<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    text_value(text("trim", &arguments, 0)?.trim().to_owned())
}

pub(super) fn split<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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

pub(super) fn replace<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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

/// The type is one that there is: the lowering has looked.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole, not negative, and the largest `usize` is past the end of anything"
)]
pub(super) fn read<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let value = argument("read", &arguments, 0)?;
    let at = number("read", &arguments, 1)?;
    if at.fract() != 0.0 || at < 0.0 {
        return Err(cannot("read", "bytes are counted from 0"));
    }
    let word = text("read", &arguments, 2)?;
    let width = Layout::width(word).ok_or_else(|| cannot("read", "there is no such type"))?;
    let (from, few) = (at as usize, || cannot("read", "there are too few bytes"));
    let to = from.saturating_add(width);
    let own = if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
        bytes.inner().get(from..to).ok_or_else(few)?.to_vec()
    } else if let Some(digits) = as_text(value) {
        let digits = digits.trim();
        let digits = digits.strip_prefix("0x").unwrap_or(digits).as_bytes();
        let range = from.saturating_mul(2)..to.saturating_mul(2);
        hex_bytes(digits.get(range).ok_or_else(few)?)?
    } else {
        return Err(cannot("read", "it takes bytes or hexadecimal text"));
    };
    let read = Layout::one(&own, word).ok_or_else(few)?;
    match read {
        Value::Float(number) => double(number),
        Value::Bool(value) => truth(value),
        Value::Uint(number) => Ok(CowVal::owned(CelUInt::from(number))),
        Value::Int(number) => Ok(CowVal::Owned(whole_to_cel(number))),
        _ => Ok(CowVal::Owned(Box::new(CelNull))),
    }
}

fn hex_bytes(digits: &[u8]) -> Result<Vec<u8>, ExecutionError> {
    let bad = || cannot("read", "the text is not hexadecimal");
    let pair = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
        // `from_str_radix` takes a sign.
        let is_hex = pair.bytes().all(|byte| byte.is_ascii_hexdigit());
        u8::from_str_radix(pair, 16).ok().filter(|_| is_hex).ok_or_else(bad)
    };
    digits.chunks(2).map(pair).collect()
}

pub(super) fn base64_bytes<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
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
