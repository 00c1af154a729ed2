//! What a message says that tells of several alerts, or of one that is told late.
//!
//! The worst comes first, and no message names more than `names_max`: the rest is a number.

use std::sync::Arc;

use jiff::tz::TimeZone;

use super::calendar::shown_to;
use super::tale::Knows;
use crate::clock::Timestamp;
use crate::model::{Alert, AlertState, Severity};

/// An alert that a message tells of, and what the reader knows of it.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) alert: Alert,
    pub(super) knows: Knows,
}

impl Item {
    fn is_over(&self) -> bool {
        self.alert.state == AlertState::Cleared
    }
}

/// To whom, when, and how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    pub(super) zone: Option<&'a TimeZone>,
    pub(super) now: Timestamp,
    pub(super) names_max: usize,
}

/// How a list calls an alert: rule and key.
pub(super) fn name(alert: &Alert) -> Arc<str> {
    if alert.key.is_empty() {
        return Arc::clone(&alert.rule);
    }
    format!("{} {}", alert.rule, alert.key).into()
}

/// The worst of what still fires; of all, where nothing does.
pub(super) fn worst(items: &[Item]) -> Severity {
    let firing = items.iter().filter(|item| !item.is_over()).map(|item| item.alert.severity);
    let all = items.iter().map(|item| item.alert.severity).max();
    firing.max().or(all).unwrap_or_default()
}

/// `a, b and 3 more`, of `total`.
fn listed(names: &[Arc<str>], total: usize, names_max: usize) -> String {
    let mut text = names.iter().take(names_max).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    let rest = total.saturating_sub(names.len().min(names_max));
    if rest > 0 {
        text.push_str(&format!(" and {rest} more"));
    }
    text
}

/// `1 alert`, `2 alerts`.
pub(super) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn names(items: &[Item]) -> Vec<Arc<str>> {
    let called = |item: &Item| match item.is_over() {
        true => format!("{} (over)", name(&item.alert)).into(),
        false => name(&item.alert),
    };
    items.iter().map(called).collect()
}

/// The text of an alert that is told later than it changed, as it was then or (`is_anew`) as it is
/// now.
pub(super) fn late(
    text: &str,
    changed_at: Timestamp,
    is_anew: bool,
    reader: Reader<'_>,
) -> Arc<str> {
    let at = shown_to(changed_at, reader.zone, reader.now);
    let when = if is_anew { "since" } else { "at" };
    format!("{text} ({when} {at})").into()
}

/// What had to wait for a `max`: `and 37 more (worst critical): a, b and 35 more`.
pub(super) fn more(items: &[Item], reader: Reader<'_>) -> String {
    let list = listed(&names(items), items.len(), reader.names_max);
    format!("and {} more (worst {}): {list}", items.len(), worst(items))
}

/// What was held for other reasons and is told together: `7 alerts from 22:10 to 05:40 ...`.
pub(super) fn released(items: &[Item], reader: Reader<'_>) -> String {
    let times = items.iter().map(|item| item.alert.changed_at);
    let shown = |at: Option<Timestamp>| shown_to(at.unwrap_or(reader.now), reader.zone, reader.now);
    let (first, last) = (shown(times.clone().min()), shown(times.max()));
    let list = listed(&names(items), items.len(), reader.names_max);
    format!("{} alerts from {first} to {last} (worst {}): {list}", items.len(), worst(items))
}

/// The members of a group of which there is news. `total` were told of since it began, and `firing`
/// of all fire still.
pub(super) fn group(items: &[Item], total: usize, firing: usize, reader: Reader<'_>) -> String {
    let over = items.iter().filter(|item| item.is_over()).count();
    if firing == 0 && over == items.len() {
        let rule = items.first().map_or("", |item| item.alert.rule.as_ref());
        return format!("{rule}: all {} over", total.max(over));
    }
    let mut lines = Vec::new();
    let on: Vec<&Item> = items.iter().filter(|item| !item.is_over()).collect();
    if !on.is_empty() {
        let again = on.iter().all(|item| item.knows == Knows::Fires(item.alert.severity));
        let still = if again { "still " } else { "" };
        lines.push(format!("{still}{} (worst {}):", counted(on.len(), "alert"), worst(items)));
        lines.extend(on.iter().take(reader.names_max).map(|item| item.alert.text.to_string()));
        let rest = on.len().saturating_sub(reader.names_max);
        if rest > 0 {
            lines.push(format!("and {rest} more"));
        }
    }
    if over > 0 {
        let gone: Vec<Arc<str>> =
            items.iter().filter(|item| item.is_over()).map(|item| name(&item.alert)).collect();
        lines.push(format!("over: {}", listed(&gone, over, reader.names_max)));
    }
    lines.join("\n")
}

/// A storm, as far as it has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct StormNews<'a> {
    pub(super) prefix: &'a str,
    pub(super) since: Timestamp,
    pub(super) total: usize,
}

/// A storm begins, or something worse joins it.
pub(super) fn storm_begins(
    storm: StormNews<'_>,
    names: &[Arc<str>],
    severity: Severity,
    reader: Reader<'_>,
) -> String {
    let since = shown_to(storm.since, reader.zone, reader.now);
    let list = listed(names, storm.total, reader.names_max);
    format!("{}: {} alerts since {since} (worst {severity}): {list}", storm.prefix, storm.total)
}

/// A storm ends; `items` are what it held for the reader.
pub(super) fn storm_ends(storm: StormNews<'_>, items: &[Item], reader: Reader<'_>) -> String {
    let since = shown_to(storm.since, reader.zone, reader.now);
    let mut text = format!("{}: no new alerts, {} in all since {since}", storm.prefix, storm.total);
    let on: Vec<Arc<str>> =
        items.iter().filter(|item| !item.is_over()).map(|item| name(&item.alert)).collect();
    if !on.is_empty() {
        text.push_str(&format!(
            ", {} of them fire still: {}",
            on.len(),
            listed(&on, on.len(), reader.names_max)
        ));
    }
    text
}

/// An instance whose state changes too often.
pub(super) fn flapping(alert: &Alert) -> String {
    format!(
        "{} is flapping: it begins and ends too often to be told; you hear how it stands when it is steady",
        name(alert)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_never_longer_than_its_bound() {
        let names: Vec<Arc<str>> = ["a", "b", "c"].into_iter().map(Arc::from).collect();
        for (total, max, expected) in [
            (3, 3, "a, b, c"),
            (3, 2, "a, b and 1 more"),
            (40, 10, "a, b, c and 37 more"),
            (1, 1, "a"),
        ] {
            assert_eq!(listed(&names[..names.len().min(total)], total, max), expected);
        }
    }
}
