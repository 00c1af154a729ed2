//! How commands show things: tables, times, lengths of time.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::clock::Timestamp;
use crate::span::Span;

/// Writes rows under a head, each column as wide as its widest cell.
pub(super) fn table(out: &mut dyn Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let cells = cells.map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|name| name.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut line = |cells: &[String]| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(&head.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    rows.iter().try_for_each(|row| line(row))
}

/// Writes a value as JSON for scripts.
pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    // By way of a text, so that a reader that has gone is an I/O error like everywhere else.
    let text = serde_json::to_string_pretty(value)?;
    writeln!(out, "{text}")?;
    Ok(())
}

/// A text on one line, cut to `width` characters.
pub(super) fn cut(text: &str, width: usize) -> String {
    let line: String = text.chars().map(|c| if is_unseen(c) { ' ' } else { c }).collect();
    if line.chars().count() <= width {
        return line;
    }
    let mut kept: String = line.chars().take(width.saturating_sub(1)).collect();
    kept.push('…');
    kept
}

/// Whether it moves the cursor or turns the direction of what follows it.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `1 rule`, `2 rules`.
pub(super) fn counted(count: usize, what: &str) -> String {
    crate::problem::counted(count as u64, what)
}

/// RFC 3339 to whole seconds: `2026-11-23 10:24:03Z`.
pub(super) fn seconds(time: &str) -> String {
    match parse(time) {
        Some(_) => {
            let whole = time.split('.').next().unwrap_or(time).trim_end_matches('Z');
            format!("{}Z", whole.replace('T', " "))
        }
        None => time.to_owned(),
    }
}

/// How far a time is from `now`: `in 5m` or `5m ago`.
pub(super) fn distance(time: &str, now: Timestamp) -> String {
    match parse(time) {
        Some(time) if time > now => format!("in {}", length(time.since(now))),
        Some(time) => format!("{} ago", length(now.since(time))),
        None => String::new(),
    }
}

/// A length of time as people say it: its two largest units.
pub(super) fn length(length: Duration) -> String {
    let millis = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let unit = match millis {
        0..1_000 => 1,
        1_000..3_600_000 => 1_000,
        3_600_000..86_400_000 => 60_000,
        _ => 3_600_000,
    };
    Span::from_millis(millis - millis % unit).to_string()
}

/// Bytes as people say them.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size),
        None => format!("{bytes} bytes"),
    }
}

fn parse(time: &str) -> Option<Timestamp> {
    let time: jiff::Timestamp = time.parse().ok()?;
    Some(Timestamp::from_millis(time.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_people_read() {
        let now = Timestamp::from_millis(1_790_000_000_120);
        assert_eq!(seconds("2026-09-21T14:13:20.120Z"), "2026-09-21 14:13:20Z");
        assert_eq!(seconds("never"), "never");
        assert_eq!(distance("2026-09-21T14:14:20.120Z", now), "in 1m");
        assert_eq!(distance("2026-09-21T12:13:19.120Z", now), "2h ago");
        assert_eq!(length(Duration::from_millis(250)), "250ms");
        assert_eq!(length(Duration::from_millis(90_250)), "1m30s");
        assert_eq!(length(Duration::from_secs(90_061)), "1d1h");
        assert_eq!(bytes(1_610_612_736), "1.5 GiB");
        assert_eq!(cut("a\nbcdef", 4), "a b…");
        assert_eq!(cut("äöüß", 4), "äöüß");
        assert_eq!(cut("a\u{202e}gnp.exe", 9), "a gnp.exe");
    }

    #[test]
    fn a_table_is_as_wide_as_its_cells() {
        let mut out = Vec::new();
        let rows = [vec!["a".to_owned(), "x".to_owned()], vec!["ßßßß".to_owned(), String::new()]];
        table(&mut out, &["ID", "WHAT"], &rows).expect("written");
        assert_eq!(String::from_utf8(out).expect("text"), "ID    WHAT\na     x\nßßßß\n");
    }
}
