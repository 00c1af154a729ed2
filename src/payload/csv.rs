//! One line of cells with commas between them: CSV (RFC 4180), and Cumulocity's SmartREST lines.
//!
//! A cell is a number where it is one ([`super::number`]), null where it is empty or `nan`, else
//! text without the white space around it. A cell in quotes is text as it is, with `""` for a
//! quote. The end of the line may be written or not; a second line is refused, because a rule looks
//! at cells by their place.

use std::sync::Arc;

use super::budget::Budget;
use super::{Limits, Undecodable, Value, number};

const TWO_LINES: Undecodable = Undecodable::NotCsv("there is a second line");

pub(super) fn decode(bytes: &[u8], limits: Limits) -> Result<Value, Undecodable> {
    let text = std::str::from_utf8(bytes).map_err(|_| Undecodable::NotUtf8)?;
    let line = text.trim_end_matches(['\n', '\r']);
    if line.trim().is_empty() {
        return Err(Undecodable::Empty);
    }
    let mut budget = Budget::new(limits);
    budget.value()?;
    budget.below(0)?;
    let mut cells = Vec::new();
    let mut rest = Some(line);
    while let Some(at) = rest {
        budget.value()?;
        let (cell, after) = match at.trim_start().strip_prefix('"') {
            Some(quoted) => quoted_cell(quoted)?,
            None => {
                let (cell, after) = at.split_once(',').map_or((at, None), |(c, a)| (c, Some(a)));
                (plain_cell(cell.trim())?, after)
            }
        };
        cells.push(cell);
        rest = after;
    }
    Ok(Value::List(cells.into()))
}

fn plain_cell(cell: &str) -> Result<Value, Undecodable> {
    if cell.contains(['\n', '\r']) {
        return Err(TWO_LINES);
    }
    match number::decode(cell.as_bytes()) {
        Ok(value) => Ok(value),
        Err(Undecodable::Empty | Undecodable::NotFinite) => Ok(Value::Null),
        Err(_) => Ok(Value::Text(cell.into())),
    }
}

/// The cell whose quote has just been opened, and what is behind its comma.
fn quoted_cell(mut rest: &str) -> Result<(Value, Option<&str>), Undecodable> {
    let mut cell = String::new();
    loop {
        let (inside, after) =
            rest.split_once('"').ok_or(Undecodable::NotCsv("a quote has no end"))?;
        cell.push_str(inside);
        let Some(quote) = after.strip_prefix('"') else {
            let cell = Value::Text(Arc::from(cell));
            let after = after.trim_start_matches([' ', '\t']);
            return match after.strip_prefix(',') {
                Some(after) => Ok((cell, Some(after))),
                None if after.is_empty() => Ok((cell, None)),
                None if after.starts_with(['\n', '\r']) => Err(TWO_LINES),
                None => Err(Undecodable::NotCsv("there is more behind the end of a quote")),
            };
        };
        cell.push('"');
        rest = quote;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::shown_by;
    use super::*;

    fn check(cases: &[(&str, &str)]) {
        for (payload, expected) in cases {
            assert_eq!(shown_by(decode, payload.as_bytes()), *expected, "{payload:?}");
        }
    }

    #[test]
    fn cells_are_numbers_text_or_null() {
        check(&[
            ("21.5", "[21.5]"),
            ("1, -2.5 ,on\r\n", "[1, -2.5, \"on\"]"),
            ("a,,b,", "[\"a\", null, \"b\", null]"),
            (",", "[null, null]"),
            ("nan,inf,1e3", "[null, null, 1000.0]"),
            ("pump 7;3", "[\"pump 7;3\"]"),
            ("12\",5", "[\"12\\\"\", 5]"),
        ]);
    }

    #[test]
    fn what_is_in_quotes_is_text() {
        check(&[
            ("\"007\",7", "[\"007\", 7]"),
            ("\"a,b\" , \"c\"\"d\"", "[\"a,b\", \"c\\\"d\"]"),
            ("\"\",", "[\"\", null]"),
            ("\"two\nlines\"", "[\"two\\nlines\"]"),
            ("\"a", "! the payload is not a line of cells: a quote has no end"),
            (
                "\"a\"b,c",
                "! the payload is not a line of cells: there is more behind the end of a quote",
            ),
        ]);
    }

    #[test]
    fn smartrest_lines_are_read() {
        check(&[
            ("200,c8y_Level,L,17.5,%", "[200, \"c8y_Level\", \"L\", 17.5, \"%\"]"),
            ("211,-4.5,2026-05-02T08:00:00Z", "[211, -4.5, \"2026-05-02T08:00:00Z\"]"),
            ("301,c8y_Hot,\"too hot, 90 °C\"", "[301, \"c8y_Hot\", \"too hot, 90 °C\"]"),
            ("402,48.2,16.37,,", "[402, 48.2, 16.37, null, null]"),
        ]);
    }

    #[test]
    fn one_line_and_no_more() {
        let two = "! the payload is not a line of cells: there is a second line";
        check(&[
            ("1,2\n3,4", two),
            ("1,2\n\n3", two),
            ("\"a\"\n\"b\"", two),
            ("1\r2", two),
            ("1,2\r\n\r\n", "[1, 2]"),
            ("\"a\"\n", "[\"a\"]"),
            ("", "! the payload is empty"),
            (" \n", "! the payload is empty"),
        ]);
        assert_eq!(shown_by(decode, b"a,\xff"), "! the payload is not UTF-8 text");
    }

    #[test]
    fn limits_are_kept() {
        let limits = Limits { values_max: 4, ..Limits::default() };
        assert!(decode(b"1,2,3", limits).is_ok());
        assert_eq!(decode(b"1,2,3,4", limits), Err(Undecodable::TooManyValues(4)));
    }

    proptest! {
        #[test]
        fn almost_lines_never_panic(text in "[\",a0.\r\n -]{0,40}") {
            drop(decode(text.as_bytes(), Limits::default()));
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            drop(decode(&bytes, Limits::default()));
        }
    }
}
