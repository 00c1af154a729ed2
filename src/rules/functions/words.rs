//! `is_on(x)`: which words mean on and off.

use cel::common::types::CelBool;
use serde::Deserialize;

use super::{Answer, Arguments, WORD_BYTES_MAX, argument, as_number, as_text, cannot, text, truth};

/// A rule's words for `is_on(x)`, beside the usual ones. Case does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Words {
    /// What means on.
    pub on: Vec<String>,
    /// What means off.
    pub off: Vec<String>,
}

const ON: &[&str] = &["on", "true", "yes", "1", "online"];
const OFF: &[&str] = &["off", "false", "no", "0", "offline"];

impl Words {
    /// What is wrong with them; empty if nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for word in self.on.iter().chain(&self.off) {
            if word.trim().is_empty() || word.trim() != word || word.len() > WORD_BYTES_MAX {
                problems.push(format!(
                    "`{word}` cannot be a word: write 1 to {WORD_BYTES_MAX} bytes without white space at the ends"
                ));
            }
            if word.chars().any(char::is_control) {
                problems.push("a word has no control characters".to_owned());
            }
        }
        if let Some(word) = self.on.iter().find(|word| is_among(word, &self.off)) {
            problems.push(format!("`{word}` means both on and off; leave it out of one"));
        }
        problems
    }

    /// Both lists with the usual words, one a line; of a usual word the rule's own meaning counts.
    pub(in crate::rules) fn lines(&self) -> (String, String) {
        let join = |own: &[String], usual: &[&str], other: &[String]| {
            let usual = usual.iter().filter(|word| !is_among(word, other));
            let all: Vec<&str> = own.iter().map(String::as_str).chain(usual.copied()).collect();
            all.join("\n")
        };
        (join(&self.on, ON, &self.off), join(&self.off, OFF, &self.on))
    }
}

fn is_among(word: &str, words: &[String]) -> bool {
    words.iter().any(|known| same_word(known, word))
}

fn same_word(one: &str, other: &str) -> bool {
    one.chars().flat_map(char::to_lowercase).eq(other.chars().flat_map(char::to_lowercase))
}

pub(super) fn is_on<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let value = argument("is_on", &arguments, 0)?;
    let (on, off) = (text("is_on", &arguments, 1)?, text("is_on", &arguments, 2)?);
    let made;
    let word = if let Some(text) = as_text(value) {
        text.trim()
    } else if let Some(truth) = value.downcast_ref::<CelBool>() {
        if *truth.inner() { "true" } else { "false" }
    } else if let Some(number) = as_number(value) {
        made = number.to_string();
        &made
    } else {
        return Err(cannot("is_on", "it takes true or false, 1 or 0, or a word"));
    };
    if word.len() <= WORD_BYTES_MAX {
        for (words, meaning) in [(on, true), (off, false)] {
            if words.lines().any(|known| same_word(known, word)) {
                return truth(meaning);
            }
        }
    }
    Err(cannot("is_on", "the word means neither on nor off; add it to `words`"))
}
