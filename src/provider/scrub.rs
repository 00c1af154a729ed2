//! Makes what a provider says fit to be kept and shown: no secrets, no numbers, no novels.
//!
//! Providers repeat what they were sent ("+49151... is not a valid number", "malformed access
//! token EAAG..."). Their words help an operator, so they are kept, but what they repeat is not.

use std::cmp::Reverse;

use crate::model::{Message, mask};
use crate::secret::Secret;

/// So many characters of a provider's words are kept.
const CHARACTERS_MAX: usize = 200;
/// A word longer than this is a token, a hash or a URL, whatever it was meant to be.
const WORD_MAX: usize = 40;
/// So many digits in a row may be a telephone number (ITU-T E.164 knows none shorter).
const DIGITS_MIN: usize = 7;
/// A secret shorter than this would eat ordinary words.
const SECRET_MIN: usize = 4;

/// Knows what must not be shown.
#[derive(Clone, Debug, Default)]
pub(super) struct Scrub {
    /// What to hide, and what to show for it; the longest first, because one may hold another.
    hidden: Vec<(Secret, String)>,
}

impl Scrub {
    /// Hides these wherever they turn up.
    pub(super) fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        Self::default().with(secrets)
    }

    /// Also hides these.
    pub(super) fn with(&self, secrets: impl IntoIterator<Item = Secret>) -> Self {
        self.and(secrets.into_iter().map(|secret| (secret, "***".to_owned())))
    }

    /// Also masks the address of `message`.
    pub(super) fn with_address(&self, message: &Message) -> Self {
        let address = &message.target.address;
        self.and([(Secret::new(address.expose()), address.to_string())])
    }

    fn and(&self, more: impl IntoIterator<Item = (Secret, String)>) -> Self {
        let mut hidden = self.hidden.clone();
        hidden.extend(more.into_iter().filter(|(secret, _)| secret.expose().len() >= SECRET_MIN));
        hidden.sort_by_key(|(secret, _)| Reverse(secret.expose().len()));
        Self { hidden }
    }

    /// `text` on one line, without secrets, numbers or overlong words, at most 200 characters.
    pub(super) fn clean(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (secret, shown) in &self.hidden {
            text = text.replace(secret.expose(), shown);
        }
        let mut clean = String::new();
        for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
            if word.is_empty() {
                continue;
            }
            if !clean.is_empty() {
                clean.push(' ');
            }
            if word.chars().count() > WORD_MAX {
                clean.push('…');
            } else {
                hide_digits(word, &mut clean);
            }
        }
        shorten(&clean, CHARACTERS_MAX)
    }
}

fn hide_digits(word: &str, into: &mut String) {
    let mut digits = String::new();
    // The end flushes like any other non-digit.
    for c in word.chars().map(Some).chain([None]) {
        match c {
            Some(c) if c.is_ascii_digit() => digits.push(c),
            _ => {
                if digits.len() >= DIGITS_MIN {
                    into.push_str(&mask(&digits));
                } else {
                    into.push_str(&digits);
                }
                digits.clear();
                into.extend(c);
            }
        }
    }
}

/// At most `characters` of `text`; where something is cut, the last of them is `…`.
pub(super) fn shorten(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    let kept: String = text.chars().take(characters.saturating_sub(1)).collect();
    format!("{}…", kept.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hides_what_must_not_be_shown() {
        let scrub = Scrub::new([Secret::new("hunter2"), Secret::new("hunter2-longer")]);
        for (text, clean) in [
            ("fine as it is (21610)", "fine as it is (21610)"),
            ("token hunter2 is bad", "token *** is bad"),
            ("x=hunter2-longer;", "x=***;"),
            ("to +4915112345678.", "to +491…678."),
            ("two\nlines\tand\u{0} more", "two lines and more"),
            ("see https://example.org/abc/def/ghi/jkl/mno/pqr now", "see … now"),
            ("", ""),
        ] {
            assert_eq!(scrub.clean(text), clean, "{text:?}");
        }
        let long = scrub.clean(&"word ".repeat(100));
        assert_eq!(long.chars().count(), 200);
        assert!(long.ends_with('…'), "{long}");
    }
}
