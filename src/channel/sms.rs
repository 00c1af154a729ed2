//! SMS: which alphabet a text needs and how many parts it is billed as.
//!
//! GSM 7-bit default alphabet with its extension table (3GPP TS 23.038, 6.2.1): 160 septets in a
//! single message, 153 a part when joined, because the joining header takes seven. A character of
//! the extension table is two septets, which stay in one part. Any other character makes the whole
//! text UCS-2: 70 units of 16 bits alone, 67 a part; a surrogate pair stays in one part.

use crate::model::{Segments, SmsEncoding};

/// The longest body, in UTF-16 units: what the providers take.
pub const UNITS_MAX: usize = 1600;

/// The default alphabet but for its escape; each one septet.
const BASIC: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà";

/// The extension table; each an escape and a septet.
const EXTENSION: &str = "\u{c}^{}\\[~]|€";

/// How many septets a character takes; `None` if GSM-7 does not have it.
fn septets(character: char) -> Option<usize> {
    // Most texts are mostly these; the tables are searched for the others.
    if character.is_ascii_alphanumeric() || character == ' ' {
        return Some(1);
    }
    if BASIC.contains(character) {
        Some(1)
    } else if EXTENSION.contains(character) {
        Some(2)
    } else {
        None
    }
}

/// Whether GSM-7 has every character of the text.
pub fn is_gsm7(text: &str) -> bool {
    text.chars().all(|character| septets(character).is_some())
}

/// How a text is cut. An empty text is one part: that is what sending it would cost.
pub fn segments(text: &str) -> Segments {
    if is_gsm7(text) {
        let widths = text.chars().filter_map(septets);
        parts(SmsEncoding::Gsm7, widths, 160, 153)
    } else {
        let widths = text.chars().map(char::len_utf16);
        parts(SmsEncoding::Ucs2, widths, 70, 67)
    }
}

fn parts(
    encoding: SmsEncoding,
    widths: impl Iterator<Item = usize>,
    alone_max: usize,
    joined_max: usize,
) -> Segments {
    let (mut units, mut count, mut used) = (0, 1, 0);
    for width in widths {
        units += width;
        used += width;
        if used > joined_max {
            count += 1;
            used = width;
        }
    }
    if units <= alone_max {
        count = 1;
    }
    Segments { encoding, count, units: u32::try_from(units).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counts_as_the_operators_bill() {
        use SmsEncoding::{Gsm7, Ucs2};
        for (name, text, encoding, count, units) in [
            ("nothing", String::new(), Gsm7, 1, 0),
            ("160 letters", "a".repeat(160), Gsm7, 1, 160),
            ("161 letters", "a".repeat(161), Gsm7, 2, 161),
            ("306 letters", "a".repeat(306), Gsm7, 2, 306),
            ("307 letters", "a".repeat(307), Gsm7, 3, 307),
            ("80 of the extension", "{".repeat(80), Gsm7, 1, 160),
            ("81 of the extension", "{".repeat(81), Gsm7, 2, 162),
            // 76 pairs fill 152 of a part's 153 septets; the 77th pair must not be torn.
            ("153 of the extension", "{".repeat(153), Gsm7, 3, 306),
            ("70 Cyrillic", "ж".repeat(70), Ucs2, 1, 70),
            ("71 Cyrillic", "ж".repeat(71), Ucs2, 2, 71),
            ("35 emoji", "😀".repeat(35), Ucs2, 1, 70),
            ("36 emoji", "😀".repeat(36), Ucs2, 2, 72),
            // 33 pairs fill 66 of a part's 67 units.
            ("67 emoji", "😀".repeat(67), Ucs2, 3, 134),
            ("the euro sign", "21 €".to_owned(), Gsm7, 1, 5),
            ("the degree sign", "21 °C".to_owned(), Ucs2, 1, 5),
            ("a back-tick", "`".to_owned(), Ucs2, 1, 1),
            ("small ç, which GSM-7 lacks", "ç".to_owned(), Ucs2, 1, 1),
        ] {
            let expected = Segments { encoding, count, units };
            assert_eq!(segments(&text), expected, "{name}");
        }
    }

    #[test]
    fn the_default_alphabet_is_complete() {
        // 128 positions less the escape.
        assert_eq!(BASIC.chars().count(), 127);
        assert_eq!(EXTENSION.chars().count(), 10);
    }

    /// Builds the parts as lists of characters: slow, and plainly what a phone would send.
    fn oracle(text: &str) -> usize {
        let gsm = text.chars().all(|c| BASIC.contains(c) || EXTENSION.contains(c));
        let width = |part: &[char]| -> usize {
            part.iter()
                .map(|c| match (gsm, EXTENSION.contains(*c)) {
                    (true, true) => 2,
                    (true, false) => 1,
                    (false, _) => c.len_utf16(),
                })
                .sum()
        };
        let characters: Vec<char> = text.chars().collect();
        let (alone, joined) = if gsm { (160, 153) } else { (70, 67) };
        if width(&characters) <= alone {
            return 1;
        }
        let mut parts: Vec<Vec<char>> = vec![Vec::new()];
        for character in characters {
            let mut longer = parts.pop().expect("there is always one");
            longer.push(character);
            if width(&longer) > joined {
                longer.pop();
                parts.push(longer);
                parts.push(vec![character]);
            } else {
                parts.push(longer);
            }
        }
        parts.len()
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_splitter(
            gsm in "[a-c{€ß\n]{0,400}",
            wide in "[a-cж😀]{0,200}",
        ) {
            for text in [gsm, wide] {
                prop_assert_eq!(segments(&text).count as usize, oracle(&text));
            }
        }

        #[test]
        fn any_text_has_parts(text in any::<String>()) {
            prop_assert!(segments(&text).count >= 1);
        }
    }
}
