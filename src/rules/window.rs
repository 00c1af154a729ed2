//! Windows: the last readings of an instance, and what they come to.
//!
//! Bounded: at most [`Spec::points_max`] points of 16 bytes each. A window over time that is full
//! drops its oldest points before their time is over.
//!
//! Invariant: a value depends on the points and `now` only; an empty window has no value.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::condition::Expression;
use crate::clock::Timestamp;
use crate::payload::Value;

/// What a window computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// How many: of the readings for which its expression holds, or that are there at all.
    Count,
    /// All together.
    Sum,
    /// Their mean.
    Avg,
    /// The least.
    Min,
    /// The greatest.
    Max,
    /// The oldest.
    First,
    /// The newest.
    Last,
    /// The newest less the oldest.
    Delta,
    /// The delta in one second; no value before two readings of different times.
    Rate,
    /// The standard deviation of all of them (of a population).
    Stddev,
    /// The nearest-rank percentile, 0 to 100: the least reading that so many percent do not exceed.
    Percentile(f64),
}

impl Function {
    /// The words in rule files, but for `percentile`, which takes a number too.
    pub(super) const WORDS: &[(&'static str, Self)] = &[
        ("count", Self::Count),
        ("sum", Self::Sum),
        ("avg", Self::Avg),
        ("min", Self::Min),
        ("max", Self::Max),
        ("first", Self::First),
        ("last", Self::Last),
        ("delta", Self::Delta),
        ("rate", Self::Rate),
        ("stddev", Self::Stddev),
    ];
}

/// How far back a window looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Readings younger than this.
    Over(Duration),
    /// So many readings.
    Last(usize),
}

/// A window as its rule says it.
#[derive(Debug)]
pub struct Spec {
    /// What expressions call it.
    pub name: Arc<str>,
    /// What it computes.
    pub function: Function,
    /// Of what.
    pub of: Expression,
    /// How far back.
    pub reach: Reach,
    /// Most points that are kept.
    pub points_max: usize,
}

/// The points of one instance's window: time in milliseconds, and the reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window(VecDeque<(i64, f64)>);

impl Window {
    /// Adds what its expression gave on a publish. True: it changed what is counted.
    pub fn add(&mut self, spec: &Spec, value: &Value, at: Timestamp, now: Timestamp) -> bool {
        self.expire(spec, now);
        let Some(reading) = reading(spec, value) else { return false };
        // A reading may come late: points are in order of time.
        let at = at.as_millis();
        let position = self.0.partition_point(|(time, _)| *time <= at);
        self.0.insert(position, (at, reading));
        let most = match spec.reach {
            Reach::Last(count) => count.min(spec.points_max),
            Reach::Over(_) => spec.points_max,
        };
        while self.0.len() > most {
            self.0.pop_front();
        }
        true
    }

    /// Readings whose time no device is believed were of another clock: they are of now.
    pub(super) fn put_right(&mut self, now: Timestamp) {
        let latest = now.plus(super::run::AHEAD_MAX).as_millis();
        if self.0.back().is_none_or(|(at, _)| *at <= latest) {
            return;
        }
        let points = self.0.make_contiguous();
        points.iter_mut().filter(|(at, _)| *at > latest).for_each(|(at, _)| *at = now.as_millis());
        points.sort_by_key(|(at, _)| *at);
    }

    /// Drops what is out of reach at `now`.
    pub fn expire(&mut self, spec: &Spec, now: Timestamp) {
        let Reach::Over(span) = spec.reach else { return };
        while self.0.front().is_some_and(|(at, _)| is_out(*at, span, now)) {
            self.0.pop_front();
        }
    }

    /// When the next point goes out of reach, which changes the value.
    pub fn due(&self, spec: &Spec) -> Option<Timestamp> {
        let Reach::Over(span) = spec.reach else { return None };
        self.0.front().map(|(at, _)| Timestamp::from_millis(*at).plus(span))
    }

    /// Its value at `now`; null while it is empty.
    pub fn value(&self, spec: &Spec, now: Timestamp) -> Value {
        let gone = match spec.reach {
            Reach::Over(span) => self.0.partition_point(|(at, _)| is_out(*at, span, now)),
            Reach::Last(_) => 0,
        };
        let points = || self.0.iter().skip(gone);
        let count = self.0.len() - gone;
        if spec.function == Function::Count {
            let counted = points().filter(|(_, value)| *value != 0.0).count();
            return Value::Int(i64::try_from(counted).unwrap_or(i64::MAX));
        }
        let (Some(first), Some(last)) = (self.0.get(gone), self.0.back()) else {
            return Value::Null;
        };
        let values = || points().map(|(_, value)| *value);
        #[expect(clippy::cast_precision_loss, reason = "a window has far fewer than 2^53 points")]
        let of = count as f64;
        let number = match spec.function {
            Function::Count => return Value::Null,
            Function::Sum => values().sum(),
            Function::Avg => values().sum::<f64>() / of,
            Function::Min => values().fold(f64::INFINITY, f64::min),
            Function::Max => values().fold(f64::NEG_INFINITY, f64::max),
            Function::First => first.1,
            Function::Last => last.1,
            Function::Delta => last.1 - first.1,
            Function::Rate => {
                let millis = last.0 - first.0;
                if millis <= 0 {
                    return Value::Null;
                }
                #[expect(clippy::cast_precision_loss, reason = "a span of time in ms fits 2^53")]
                let seconds = millis as f64 / 1000.0;
                (last.1 - first.1) / seconds
            }
            Function::Stddev => {
                let mean = values().sum::<f64>() / of;
                (values().map(|value| (value - mean).powi(2)).sum::<f64>() / of).sqrt()
            }
            Function::Percentile(percent) => percentile(values().collect(), percent, of),
        };
        if number.is_finite() { Value::Float(number) } else { Value::Null }
    }

    /// How many points it holds.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn is_out(at: i64, span: Duration, now: Timestamp) -> bool {
    Timestamp::from_millis(at).plus(span) <= now
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank between 1 and the count"
)]
fn percentile(mut values: Vec<f64>, percent: f64, of: f64) -> f64 {
    let rank = (percent / 100.0 * of).ceil().clamp(1.0, of) as usize;
    let index = (rank - 1).min(values.len().saturating_sub(1));
    *values.select_nth_unstable_by(index, f64::total_cmp).1
}

/// The point that a value is: null is no reading. A count over time keeps only what it counts.
fn reading(spec: &Spec, value: &Value) -> Option<f64> {
    #[expect(
        clippy::cast_precision_loss,
        reason = "as everywhere, a payload's numbers are doubles"
    )]
    let number = match value {
        Value::Bool(holds) => f64::from(u8::from(*holds)),
        Value::Int(whole) => *whole as f64,
        Value::Uint(whole) => *whole as f64,
        Value::Float(number) => *number,
        _ => f64::NAN,
    };
    if spec.function != Function::Count {
        return number.is_finite().then_some(number);
    }
    let counts = !matches!(value, Value::Null | Value::Bool(false));
    match spec.reach {
        Reach::Over(_) => counts.then_some(1.0),
        Reach::Last(_) => Some(f64::from(u8::from(counts))),
    }
}

/// As base64 of 16 bytes a point: time in milliseconds and the double, the least significant first.
impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(self.0.len() * 16);
        for (at, value) in &self.0 {
            bytes.extend_from_slice(&at.to_le_bytes());
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        serializer.serialize_str(&STANDARD_NO_PAD.encode(bytes))
    }
}

impl<'de> Deserialize<'de> for Window {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD_NO_PAD.decode(text.as_bytes()).map_err(de::Error::custom)?;
        let (points, []) = bytes.as_chunks::<16>() else {
            return Err(de::Error::custom("a window is cut short"));
        };
        let point = |point: &[u8; 16]| {
            let (at, value) = point.split_first_chunk::<8>()?;
            let value: [u8; 8] = value.try_into().ok()?;
            Some((i64::from_le_bytes(*at), f64::from_le_bytes(value)))
        };
        Ok(Self(points.iter().filter_map(point).collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::condition::Scope;
    use super::*;

    fn spec(function: Function, reach: Reach) -> Spec {
        let of = Expression::compile("payload", &Scope::default(), 100).expect("compiles");
        Spec { name: "w".into(), function, of, reach, points_max: 1000 }
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_millis(secs * 1000)
    }

    /// Readings with their seconds, and what the window comes to at `now`.
    fn check(function: Function, reach: Reach, points: &[(i64, Value)], now: i64, expected: &str) {
        let spec = spec(function, reach);
        let mut window = Window::default();
        for (second, value) in points {
            window.add(&spec, value, at(*second), at(*second));
        }
        assert_eq!(
            format!("{:?}", window.value(&spec, at(now))),
            expected,
            "{function:?} {reach:?}"
        );
    }

    #[test]
    fn each_function_over_time() {
        let over = Reach::Over(Duration::from_secs(10));
        let points = [2.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        let points: Vec<_> =
            (1..).zip(points).map(|(second, value)| (second, Value::Float(value))).collect();
        for (function, expected) in [
            (Function::Count, "7"),
            (Function::Sum, "36.0"),
            (Function::Avg, "5.142857142857143"),
            (Function::Min, "2.0"),
            (Function::Max, "9.0"),
            (Function::First, "2.0"),
            (Function::Last, "9.0"),
            (Function::Delta, "7.0"),
            (Function::Rate, "1.1666666666666667"),
            (Function::Stddev, "2.099562636671296"),
            (Function::Percentile(50.0), "5.0"),
            (Function::Percentile(100.0), "9.0"),
            (Function::Percentile(0.0), "2.0"),
        ] {
            check(function, over, &points, 7, expected);
        }
        // A point is out as soon as it is as old as the window is long.
        check(Function::First, over, &points, 11, "4.0");
        check(Function::Count, over, &points, 11, "6");
        check(Function::Avg, over, &points, 17, "null");
        check(Function::Count, over, &points, 17, "0");
    }

    #[test]
    fn over_the_last_publishes() {
        let points: Vec<_> = [true, false, true, true]
            .map(Value::Bool)
            .into_iter()
            .zip(1..)
            .map(|(v, s)| (s, v))
            .collect();
        check(Function::Count, Reach::Last(3), &points, 1000, "2");
        check(Function::Count, Reach::Over(Duration::from_secs(100)), &points, 4, "3");
        check(Function::Sum, Reach::Last(10), &points, 1000, "3.0");
    }

    #[test]
    fn null_and_text_are_no_readings() {
        let points = [(1, Value::Null), (2, Value::Text("x".into())), (3, Value::Int(4))];
        check(Function::Avg, Reach::Last(10), &points, 3, "4.0");
        check(Function::Count, Reach::Last(10), &points, 3, "2");
        check(Function::Rate, Reach::Last(10), &points, 3, "null");
    }

    #[test]
    fn late_readings_stand_where_they_belong_and_memory_is_bounded() {
        let mut spec = spec(Function::Last, Reach::Over(Duration::from_secs(100)));
        spec.points_max = 3;
        let mut window = Window::default();
        for second in [5, 3, 9, 7, 8] {
            window.add(&spec, &Value::Int(second), at(second), at(9));
        }
        assert_eq!(window.value(&spec, at(9)), Value::Float(9.0));
        assert_eq!(window.len(), 3);
        assert_eq!(window.due(&spec), Some(at(107)));
    }

    proptest! {
        #[test]
        fn stored_and_read_again_it_is_the_same(
            points in prop::collection::vec((any::<i32>(), any::<f64>()), 0..20),
        ) {
            let window = Window(points.iter().map(|(at, value)| (i64::from(*at), *value)).collect());
            let text = serde_json::to_string(&window).expect("text");
            let again: Window = serde_json::from_str(&text).expect("a window");
            prop_assert_eq!(format!("{again:?}"), format!("{window:?}"));
        }
    }
}
