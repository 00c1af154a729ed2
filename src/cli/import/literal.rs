//! Python's literals, as mqttwarn reads values with `ast.literal_eval`; and `$ENV:` and `${FILE:}`.
//!
//! Text in all its quotes, numbers, `True`, `False`, `None`, lists, tuples, sets and dicts. Nothing is
//! ever evaluated. Lists in lists go [`DEPTH_MAX`] deep, so that no text can exhaust the stack.

use std::iter::Peekable;
use std::str::Chars;

/// How many brackets may stand in each other.
const DEPTH_MAX: usize = 32;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Literal {
    Text(String),
    /// As it is written.
    Number(String),
    Bool(bool),
    None,
    List(Vec<Literal>),
    Dict(Vec<(Literal, Literal)>),
}

impl Literal {
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Number(_) | Self::Bool(_) | Self::None | Self::List(_) | Self::Dict(_) => None,
        }
    }

    /// Text or a number, as `str()` gives it.
    pub(super) fn plain(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Number(text) => Some(text),
            Self::Bool(_) | Self::None | Self::List(_) | Self::Dict(_) => None,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Bool(value) => *value,
            Self::Number(number) => number.parse::<f64>().is_ok_and(|number| number != 0.0),
            Self::Text(text) => !text.is_empty(),
            Self::None => false,
            Self::List(items) => !items.is_empty(),
            Self::Dict(items) => !items.is_empty(),
        }
    }
}

/// A value of `[defaults]` or `[config:...]`: a literal, or else the text itself.
pub(super) fn value(text: &str) -> Literal {
    match text.to_ascii_lowercase().as_str() {
        "true" => Literal::Bool(true),
        "false" => Literal::Bool(false),
        "none" => Literal::None,
        _ => parse(text).unwrap_or_else(|| Literal::Text(text.to_owned())),
    }
}

/// Where a text comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// It stands there.
    Clear(String),
    /// `$ENV:NAME` or `${ENV:NAME}`.
    Env(String),
    /// `${FILE:/path}`.
    File(String),
    /// A reference inside of a longer text, which Watchbell has no way to write.
    Mixed,
}

impl Source {
    pub(super) fn of(text: &str) -> Self {
        let inner = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
        let inner = inner.or_else(|| text.strip_prefix('$'));
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if let Some(name) = inner.and_then(|inner| inner.strip_prefix("ENV:"))
            && is_name(name)
        {
            return Self::Env(name.to_owned());
        }
        if let Some(path) = inner.and_then(|inner| inner.strip_prefix("FILE:"))
            && !path.is_empty()
            && !path.contains(['{', '}'])
        {
            return Self::File(path.to_owned());
        }
        if ["$ENV:", "${ENV:", "${FILE:", "$FILE:"].iter().any(|sign| text.contains(sign)) {
            return Self::Mixed;
        }
        Self::Clear(text.to_owned())
    }
}

/// The literal that `text` is, whole; `None` where it is none.
pub(super) fn parse(text: &str) -> Option<Literal> {
    let mut parser = Parser { chars: text.chars().peekable() };
    let literal = parser.literal(0)?;
    parser.space();
    parser.chars.next().is_none().then_some(literal)
}

struct Parser<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    fn space(&mut self) {
        while let Some(c) = self.chars.peek() {
            match c {
                '#' => while self.chars.next_if(|c| *c != '\n').is_some() {},
                c if c.is_whitespace() => drop(self.chars.next()),
                _ => return,
            }
        }
    }

    fn literal(&mut self, depth: usize) -> Option<Literal> {
        if depth > DEPTH_MAX {
            return None;
        }
        self.space();
        match *self.chars.peek()? {
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.dict(depth),
            '\'' | '"' => self.texts(false),
            c if c.is_ascii_digit() || "+-.".contains(c) => self.number(),
            _ => self.word(),
        }
    }

    /// What stands between brackets, split at the commas; `one` reads an element.
    fn items<T>(
        &mut self,
        close: char,
        mut one: impl FnMut(&mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        self.chars.next();
        let mut items = Vec::new();
        loop {
            self.space();
            if self.chars.next_if_eq(&close).is_some() {
                return Some(items);
            }
            items.push(one(self)?);
            self.space();
            if self.chars.next_if_eq(&',').is_none() {
                return self.chars.next_if_eq(&close).map(|_| items);
            }
        }
    }

    fn list(&mut self, close: char, depth: usize) -> Option<Literal> {
        self.items(close, |parser| parser.literal(depth + 1)).map(Literal::List)
    }

    fn dict(&mut self, depth: usize) -> Option<Literal> {
        let pairs = self.items('}', |parser| {
            let key = parser.literal(depth + 1)?;
            parser.space();
            if parser.chars.next_if_eq(&':').is_none() {
                return Some((key, None));
            }
            Some((key, Some(parser.literal(depth + 1)?)))
        })?;
        if !pairs.is_empty() && pairs.iter().all(|(_, value)| value.is_none()) {
            return Some(Literal::List(pairs.into_iter().map(|(key, _)| key).collect()));
        }
        pairs
            .into_iter()
            .map(|(key, value)| Some((key, value?)))
            .collect::<Option<_>>()
            .map(Literal::Dict)
    }

    /// Texts beside each other are one.
    fn texts(&mut self, mut raw: bool) -> Option<Literal> {
        let mut text = String::new();
        loop {
            self.one_text(raw, &mut text)?;
            raw = false;
            self.space();
            if !self.chars.peek().is_some_and(|c| "'\"".contains(*c)) {
                return Some(Literal::Text(text));
            }
        }
    }

    fn one_text(&mut self, raw: bool, text: &mut String) -> Option<()> {
        let quote = self.chars.next()?;
        let mut three = false;
        if self.chars.next_if_eq(&quote).is_some() {
            if self.chars.next_if_eq(&quote).is_none() {
                return Some(());
            }
            three = true;
        }
        let mut closing = 0;
        loop {
            let c = self.chars.next()?;
            if c == quote {
                closing += 1;
                if !three || closing == 3 {
                    return Some(());
                }
                continue;
            }
            text.extend(std::iter::repeat_n(quote, closing));
            closing = 0;
            match c {
                '\\' if raw => {
                    text.push('\\');
                    text.push(self.chars.next()?);
                }
                '\\' => self.escape(text)?,
                '\n' if !three => return None,
                c => text.push(c),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let c = self.chars.next()?;
        let number = match c {
            '\n' => return Some(()),
            'n' => 0x0a,
            't' => 0x09,
            'r' => 0x0d,
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'v' => 0x0b,
            '\\' | '\'' | '"' => u32::from(c),
            'x' => self.hex(2)?,
            'u' => self.hex(4)?,
            'U' => self.hex(8)?,
            '0'..='7' => {
                let mut number = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.chars.next_if(|c| c.is_digit(8)) else { break };
                    number = number * 8 + digit.to_digit(8)?;
                }
                number
            }
            // As Python does with what it does not know.
            other => {
                text.push('\\');
                text.push(other);
                return Some(());
            }
        };
        text.push(char::from_u32(number)?);
        Some(())
    }

    fn hex(&mut self, digits: usize) -> Option<u32> {
        let mut number: u32 = 0;
        for _ in 0..digits {
            number = number.checked_mul(16)? + self.chars.next()?.to_digit(16)?;
        }
        Some(number)
    }

    fn number(&mut self) -> Option<Literal> {
        let mut text = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphanumeric() || "+-._".contains(*c))
        {
            text.push(c);
        }
        let text = text.replace('_', "");
        text.parse::<f64>().ok()?;
        Some(Literal::Number(text))
    }

    fn word(&mut self) -> Option<Literal> {
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_ascii_alphabetic()) {
            word.push(c);
        }
        let quoted = self.chars.peek().is_some_and(|c| "'\"".contains(*c));
        match word.as_str() {
            "True" => Some(Literal::Bool(true)),
            "False" => Some(Literal::Bool(false)),
            "None" => Some(Literal::None),
            "u" | "U" if quoted => self.texts(false),
            "r" | "R" if quoted => self.texts(true),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Literal {
        Literal::Text(text.to_owned())
    }

    #[test]
    fn literals_are_read_as_python_reads_them() {
        let one = |number: &str| Literal::Number(number.to_owned());
        for (source, expected) in [
            ("'a'", Some(text("a"))),
            (" \"it's\" ", Some(text("it's"))),
            ("'a' 'b'", Some(text("ab"))),
            ("'''a\n'b'''", Some(text("a\n'b"))),
            (r"'\x41\u00e4\101\q\n'", Some(text("Aä\u{41}\\q\n"))),
            ("r'a\\n'", Some(text("a\\n"))),
            ("''", Some(text(""))),
            ("-1.5e3", Some(one("-1.5e3"))),
            ("1_000", Some(one("1000"))),
            (
                "[1, 'a', None, True,]",
                Some(Literal::List(vec![one("1"), text("a"), Literal::None, Literal::Bool(true)])),
            ),
            ("(1,)", Some(Literal::List(vec![one("1")]))),
            (
                "{'a': [], # why\n 'b': {}}",
                Some(Literal::Dict(vec![
                    (text("a"), Literal::List(vec![])),
                    (text("b"), Literal::Dict(vec![])),
                ])),
            ),
            ("{'a', 'b'}", Some(Literal::List(vec![text("a"), text("b")]))),
            ("{'a': 1, 'b'}", None),
            ("'a", None),
            ("[1", None),
            ("a", None),
            ("__import__('os')", None),
            ("", None),
            ("[1] 2", None),
            (r"'\ud800'", None),
        ] {
            assert_eq!(parse(source), expected, "{source}");
        }
        assert_eq!(parse(&"[".repeat(100_000)), None);
        assert_eq!(value("tRUE"), Literal::Bool(true));
        assert_eq!(value("localhost"), text("localhost"));
    }

    #[test]
    fn references_are_told_from_text() {
        let env = |name: &str| Source::Env(name.to_owned());
        let clear = |text: &str| Source::Clear(text.to_owned());
        for (text, expected) in [
            ("$ENV:TOKEN", env("TOKEN")),
            ("${ENV:TOKEN}", env("TOKEN")),
            ("${FILE:/run/secrets/x}", Source::File("/run/secrets/x".to_owned())),
            ("Bearer ${ENV:TOKEN}", Source::Mixed),
            ("${ENV:A}${ENV:B}", Source::Mixed),
            ("pa$$word", clear("pa$$word")),
            ("", clear("")),
        ] {
            assert_eq!(Source::of(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_literal_or_none(text in "([\\[\\](){}'\",:rux0-9\\\\#\\n ]|.){0,100}") {
            drop(parse(&text));
            drop(Source::of(&text));
        }
    }
}
