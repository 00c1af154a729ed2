//! WhatsApp: a text's limit, and what a template's parameter may hold.

/// The longest text, in characters (Meta Cloud API, `text.body`).
pub const TEXT_CHARACTERS_MAX: usize = 4096;

/// The longest body of a template with its parameters filled in (Meta, message templates).
const PARAMETER_CHARACTERS_MAX: usize = 1024;

/// A template parameter as Meta takes it: no line break, no tab, no run of more than four spaces,
/// not empty (else error 131008, a missing parameter), at most 1024 characters.
pub fn parameter(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if !word.is_empty() {
            if !cleaned.is_empty() {
                cleaned.push(' ');
            }
            cleaned.push_str(word);
        }
    }
    if cleaned.is_empty() {
        return "-".to_owned();
    }
    super::cut(cleaned.into(), PARAMETER_CHARACTERS_MAX, |_| 1, "…").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_one_line_without_gaps() {
        for (given, expected) in [
            ("kiel 1", "kiel 1"),
            ("kiel\n1\t-10.5", "kiel 1 -10.5"),
            ("a      b", "a b"),
            (" a\r\n\r\n", "a"),
            ("", "-"),
            ("\n", "-"),
        ] {
            assert_eq!(parameter(given), expected, "{given:?}");
        }
        assert_eq!(parameter(&"a".repeat(2000)).chars().count(), 1024);
    }
}
