//! Push: FCM and APNs take 4096 bytes of JSON for everything (FCM topics 2048), so title and text
//! leave room for escapes, the token and the data fields.

use std::borrow::Cow;

/// The longest text, in bytes of UTF-8.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The longest title, in bytes of UTF-8: about what a phone shows.
const TITLE_BYTES_MAX: usize = 200;

/// The title in one line, cut to its limit.
pub fn title(text: &str) -> Cow<'_, str> {
    let line: Cow<'_, str> = if text.contains(char::is_control) {
        let words = text.split(char::is_control).filter(|word| !word.is_empty());
        Cow::Owned(words.collect::<Vec<_>>().join(" "))
    } else {
        Cow::Borrowed(text)
    };
    super::cut(line, TITLE_BYTES_MAX, char::len_utf8, "…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_short_line() {
        assert_eq!(title("freezer 1"), "freezer 1");
        assert_eq!(title("freezer\r\n1"), "freezer 1");
        assert!(title(&"ж".repeat(200)).len() <= 200);
    }
}
