//! Text: case, ends, parts, replacements, base64. None makes much more than it was given.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cel::common::types::{CelBytes, CelList, CelString};
use cel::common::value::{CowVal, Val};

use super::{Answer, Arguments, cannot, text, text_value};

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
