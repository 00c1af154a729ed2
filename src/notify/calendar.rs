//! Times of day that come back: quiet hours and recurring silences.
//!
//! They are the wall clock's: when that is set, they follow it at once. Read in their time zone, so that 22:00 is 22:00 on the wall before and after the clocks change: a
//! window is an hour shorter or longer in these nights. A time that a night leaves out is the one
//! that the wall shows instead; of one that comes twice it is the first.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;

use super::fields::Fields;
use crate::clock::Timestamp;
use crate::clock::wall::WallTime;

/// The minutes of a day; `24:00` is the end of one.
const DAY_MINUTES: i16 = 1440;

/// So many windows that follow each other at once are one.
const JOINED_MAX: usize = 8;

const DAYS: &[(&str, Weekday)] = &[
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

/// A time of day on some days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// The days on which it begins; empty: all.
    days: Vec<Weekday>,
    /// The dates on which it begins; empty: any.
    dates: Vec<Date>,
    /// Minutes from midnight.
    from: i16,
    /// The same; not after `from`: on the next day.
    to: i16,
    zone: TimeZone,
}

impl Calendar {
    /// Reads `days`, `from`, `to` and `zone` of a table. `zone` may have been said outside; so may
    /// `dates`.
    pub(super) fn read(
        fields: &mut Fields<'_, '_>,
        zone: Option<&TimeZone>,
        dates: &[Date],
    ) -> Option<Self> {
        let days = fields.words("days", DAYS);
        if !days.is_empty() && !dates.is_empty() {
            fields.problem(Some("days"), "`dates` says the days already; leave one out");
        }
        let from = time_of_day(fields, "from");
        let to = time_of_day(fields, "to");
        let zone = match fields.zone("zone") {
            Some(zone) => Some(zone),
            None if fields.has("zone") => None,
            None => {
                if zone.is_none() {
                    let what =
                        "`zone` is missing; say where it is that time, as zone = \"Europe/Berlin\"";
                    fields.problem(None, what);
                }
                zone.cloned()
            }
        };
        let (from, to, zone) = (from?, to?, zone?);
        if from == to {
            let what = "it begins and ends at the same time; a whole day is \"00:00\" to \"24:00\"";
            fields.problem(Some("to"), what);
            return None;
        }
        Some(Self { days, dates: dates.to_vec(), from, to, zone })
    }

    /// Whole days.
    pub(super) fn of_dates(dates: &[Date], zone: TimeZone) -> Self {
        Self { days: Vec::new(), dates: dates.to_vec(), from: 0, to: DAY_MINUTES, zone }
    }

    /// The zone that its times are read in.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// When it ends, if it is in force at `now`. Windows that meet are one.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        let mut end = self.end_of_one(now.wall())?;
        for _ in 0..JOINED_MAX {
            match self.end_of_one(end) {
                Some(later) if later > end => end = later,
                _ => break,
            }
        }
        Some(end.ours())
    }

    fn end_of_one(&self, now: WallTime) -> Option<WallTime> {
        let today = jiff::Timestamp::from_millisecond(now.as_millis())
            .ok()?
            .to_zoned(self.zone.clone())
            .date();
        let begins = [today.yesterday().ok(), Some(today)];
        let ends = begins.into_iter().flatten().filter(|day| self.begins_on(*day)).map(|day| {
            let last = if self.to > self.from { Some(day) } else { day.tomorrow().ok() };
            Some((self.at(day, self.from)?, self.at(last?, self.to)?))
        });
        ends.flatten().filter(|(from, to)| *from <= now && now < *to).map(|(_, to)| to).max()
    }

    fn begins_on(&self, day: Date) -> bool {
        (self.days.is_empty() || self.days.contains(&day.weekday()))
            && (self.dates.is_empty() || self.dates.contains(&day))
    }

    fn at(&self, day: Date, minutes: i16) -> Option<WallTime> {
        let (day, minutes) = if minutes >= DAY_MINUTES {
            (day.tomorrow().ok()?, minutes - DAY_MINUTES)
        } else {
            (day, minutes)
        };
        let hour = i8::try_from(minutes / 60).ok()?;
        let minute = i8::try_from(minutes % 60).ok()?;
        let time = day.at(hour, minute, 0, 0).to_zoned(self.zone.clone()).ok()?;
        Some(WallTime::from_millis(time.timestamp().as_millisecond()))
    }
}

/// `22:00`, in minutes.
fn time_of_day(fields: &mut Fields<'_, '_>, key: &str) -> Option<i16> {
    let text = fields.required(key, "write a time of day, as \"22:00\"")?;
    let parsed = || -> Option<i16> {
        let (hours, minutes) = text.split_once(':')?;
        let digits = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        // A time of day that stood without quotes has seconds.
        let minutes = minutes.strip_suffix(":00").unwrap_or(minutes);
        if !digits(hours) || !digits(minutes) {
            return None;
        }
        let (hours, minutes): (i16, i16) = (hours.parse().ok()?, minutes.parse().ok()?);
        let all = hours * 60 + minutes;
        (minutes < 60 && all <= DAY_MINUTES).then_some(all)
    };
    let time = parsed().filter(|time| key == "to" || *time < DAY_MINUTES);
    if time.is_none() {
        fields.problem(Some(key), "not a time of day; write hours and minutes, as \"22:00\"");
    }
    time
}

/// Reads `dates`, each as `2026-12-24`.
pub(super) fn dates(fields: &mut Fields<'_, '_>) -> Vec<Date> {
    let mut dates = Vec::new();
    for text in fields.texts("dates") {
        match text.parse::<Date>() {
            Ok(date) => dates.push(date),
            Err(_) => {
                let what = format!("`{text}` is not a date; write year, month and day: 2026-12-24");
                fields.problem(Some("dates"), &what);
            }
        }
    }
    dates
}

/// A point in time: RFC 3339, or without an offset in `zone`.
pub(super) fn point(
    fields: &mut Fields<'_, '_>,
    key: &str,
    zone: Option<&TimeZone>,
) -> Option<WallTime> {
    let text = fields.text(key)?;
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(WallTime::from_millis(time.as_millisecond()));
    }
    let Ok(local) = text.parse::<jiff::civil::DateTime>() else {
        let what = "not a point in time; write it as \"2026-12-24T18:00\", or with an offset, as \"2026-12-24T18:00:00+01:00\"";
        fields.problem(Some(key), what);
        return None;
    };
    let Some(zone) = zone else {
        let what = "it has no offset; add one, or say `zone`, as zone = \"Europe/Berlin\"";
        fields.problem(Some(key), what);
        return None;
    };
    let time = local.to_zoned(zone.clone()).ok()?;
    Some(WallTime::from_millis(time.timestamp().as_millisecond()))
}

/// `06:00 Europe/Berlin` for people; with its date where it is most of a day away from `now`.
pub(super) fn shown(at: Timestamp, zone: Option<&TimeZone>, now: Timestamp) -> String {
    const NEAR: std::time::Duration = std::time::Duration::from_secs(20 * 3600);
    let zone = zone.cloned().unwrap_or(TimeZone::UTC);
    let Ok(time) = jiff::Timestamp::from_millisecond(at.wall().as_millis()) else {
        return "ever".to_owned();
    };
    let name = zone.iana_name().unwrap_or("UTC").to_owned();
    let time = time.to_zoned(zone);
    let near = at.since(now) < NEAR && now.since(at) < NEAR;
    let format = if near { "%H:%M" } else { "%Y-%m-%d %H:%M" };
    format!("{} {name}", time.strftime(format))
}

/// The same without the zone where the reader's own is known: `02:10`.
pub(super) fn shown_to(at: Timestamp, zone: Option<&TimeZone>, now: Timestamp) -> String {
    let text = shown(at, zone, now);
    match zone {
        Some(_) => text.rsplit_once(' ').map_or_else(String::new, |(time, _)| time.to_owned()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::{Step, TomlFile};

    fn calendar(text: &str) -> Result<Calendar, String> {
        let file = TomlFile::parse("c.toml", text).expect("TOML");
        let mut problems = Vec::new();
        let path: [Step; 0] = [];
        let mut fields = Fields::new(&file, &path, "it", file.table(), &mut problems);
        let dates = dates(&mut fields);
        let read = Calendar::read(&mut fields, None, &dates);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        read.filter(|_| lines.is_empty()).ok_or(lines.join("\n"))
    }

    fn at(text: &str) -> Timestamp {
        let time: jiff::Timestamp = text.parse().expect("RFC 3339");
        Timestamp::from_millis(time.as_millisecond())
    }

    #[test]
    fn a_window_is_read_on_the_wall_over_midnight_and_over_the_change_of_clocks() {
        let night = "from = '22:00'\nto = '06:00'\nzone = 'Europe/Berlin'\n";
        let weekend = "days = ['fri']\nfrom = '22:00'\nto = '06:00'\nzone = 'Europe/Berlin'\n";
        let days = "dates = ['2026-12-24', '2026-12-25']\nfrom = '00:00'\nto = '24:00'\nzone = 'Europe/Berlin'\n";
        let gap = "from = '02:30'\nto = '04:00'\nzone = 'Europe/Berlin'\n";
        for (text, now, expected) in [
            (night, "2026-11-26T20:59:59Z", None),
            (night, "2026-11-26T21:00:00Z", Some("2026-11-27T05:00:00Z")),
            (night, "2026-11-27T04:59:59Z", Some("2026-11-27T05:00:00Z")),
            (night, "2026-11-27T05:00:00Z", None),
            // Summer time: an hour earlier by UTC.
            (night, "2026-07-01T20:00:00Z", Some("2026-07-02T04:00:00Z")),
            // The nights of the change: 2026-03-29 has 7 hours of it, 2026-10-25 has 9.
            (night, "2026-03-28T21:00:00Z", Some("2026-03-29T04:00:00Z")),
            (night, "2026-10-24T20:00:00Z", Some("2026-10-25T05:00:00Z")),
            // 02:30 does not come on 2026-03-29; the wall shows 03:30 instead.
            (gap, "2026-03-29T01:29:00Z", None),
            (gap, "2026-03-29T01:30:00Z", Some("2026-03-29T02:00:00Z")),
            // Friday's night ends on Saturday; Saturday's is none.
            (weekend, "2026-11-27T23:00:00Z", Some("2026-11-28T05:00:00Z")),
            (weekend, "2026-11-28T03:00:00Z", Some("2026-11-28T05:00:00Z")),
            (weekend, "2026-11-28T23:00:00Z", None),
            // Two days that meet are one.
            (days, "2026-12-24T12:00:00Z", Some("2026-12-25T23:00:00Z")),
            (days, "2026-12-23T22:59:59Z", None),
        ] {
            let calendar = calendar(text).expect(text);
            assert_eq!(calendar.until(at(now)), expected.map(at), "{text} {now}");
        }
    }

    #[test]
    fn a_wrong_time_is_told_with_its_remedy() {
        for (text, expected) in [
            (
                "from = '22'\nto = '24:30'\nzone = 'Berlin'",
                "c.toml:1: it: `from`: not a time of day; write hours and minutes, as \"22:00\"\nc.toml:2: it: `to`: not a time of day; write hours and minutes, as \"22:00\"\nc.toml:3: it: `zone`: unknown time zone `Berlin`; write one of the IANA names, as \"Europe/Berlin\"",
            ),
            (
                "from = '22:00'\nto = '22:00'\nzone = 'UTC'",
                "c.toml:2: it: `to`: it begins and ends at the same time; a whole day is \"00:00\" to \"24:00\"",
            ),
            (
                "from = '22:00'\nto = '23:00'",
                "c.toml:1: it: `zone` is missing; say where it is that time, as zone = \"Europe/Berlin\"",
            ),
            (
                "days = ['sund']\nfrom = '22:00'\nto = '23:00'\nzone='UTC'",
                "c.toml:1: it: `days`: unknown word `sund`; did you mean `sun`?",
            ),
            (
                "dates = ['24.12.2026']\nfrom = '22:00'\nto = '23:00'\nzone='UTC'",
                "c.toml:1: it: `dates`: `24.12.2026` is not a date; write year, month and day: 2026-12-24",
            ),
        ] {
            assert_eq!(calendar(text).expect_err(text), expected);
        }
    }

    #[test]
    fn people_see_a_near_time_without_its_date() {
        let berlin = TimeZone::get("Europe/Berlin").expect("known");
        let now = at("2026-11-26T21:00:00Z");
        let shown = |text: &str| shown(at(text), Some(&berlin), now);
        assert_eq!(shown("2026-11-27T05:00:00Z"), "06:00 Europe/Berlin");
        assert_eq!(shown("2026-11-29T05:00:00Z"), "2026-11-29 06:00 Europe/Berlin");
        assert_eq!(shown_to(at("2026-11-27T05:00:00Z"), Some(&berlin), now), "06:00");
        assert_eq!(shown_to(at("2026-11-27T05:00:00Z"), None, now), "05:00 UTC");
    }
}
