//! Retention: what has outlived its time is deleted, table by table.
//!
//! A [`Sweep`] keeps its place in each table, so that a pass goes on where it was and no table waits
//! behind another. A call reads for a slice of time, or up to a number of rows, and answers with
//! operations; whoever calls decides how often. Never writes by itself.
//!
//! History and trail are in the order of their alerts' times within a partition, and nothing is
//! older than its alert: the first alert that is too young ends the partition. Before it, what has
//! changed lately stays, however old its alert is, and is passed over.
//!
//! **Invariant:** a pass looks at each row at most once, and a row that stays or cannot be read never
//! hides the rows behind it.

use std::time::{Duration, Instant};

use super::keys::{self, Key, PARTITIONS, Table};
use super::outbox::IDEMPOTENCY_KEPT;
use super::rows::Idempotency;
use super::{Ban, Op, Store, decode};
use crate::clock::Timestamp;
use crate::model::{AttemptOutcome, Message};

/// `s` held the alerts of which nobody was told, before there were steps.
const TABLES: [Table; 5] =
    [Table::History, Table::Trail, Table::Suppressed, Table::Idempotency, Table::Ban];

/// How often the time is looked at, in rows.
const LOOK: usize = 16;

/// A pass over the tables that something is deleted of.
#[derive(Debug)]
pub struct Sweep {
    /// Where each table goes on; `None` where the pass is through it.
    from: [Option<Key>; TABLES.len()],
    turn: usize,
}

/// How far one call may go.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Reading ends after about so long.
    pub time: Duration,
    /// And after so many rows to delete.
    pub rows: usize,
}

/// What a call has found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Deletes rows, one each.
    pub ops: Vec<Op>,
    /// How many rows it has looked at.
    pub looked_at: usize,
    /// How many of `ops` delete ended messages and steps.
    pub history: usize,
}

enum Verdict {
    Stays,
    /// So does all that follows in its partition.
    PartitionStays,
    Goes(Op),
}

impl Default for Sweep {
    fn default() -> Self {
        Self { from: TABLES.map(|table| Some(vec![table as u8])), turn: 0 }
    }
}

impl Sweep {
    /// Whether it has been through all tables.
    pub fn is_over(&self) -> bool {
        self.from.iter().all(Option::is_none)
    }
}

impl Store {
    /// Goes on with a pass: one table a call, by turns. Ended messages go when they have not changed
    /// for `kept`, steps when they happened as long ago; what has a time of its own when that is over.
    ///
    /// Reads for `slice.time`: so long, async code is held up.
    pub fn sweep(&self, sweep: &mut Sweep, kept: Duration, now: Timestamp, slice: Slice) -> Swept {
        let mut swept = Swept::default();
        for _ in 0..TABLES.len() {
            let turn = sweep.turn % TABLES.len();
            sweep.turn = turn + 1;
            let (Some(table), Some(from)) = (TABLES.get(turn), sweep.from.get_mut(turn)) else {
                continue;
            };
            if let Some(start) = from.take() {
                *from = self.sweep_table(*table, start, (kept, now), slice, &mut swept);
                break;
            }
        }
        swept
    }

    /// Answers where to go on; `None` at the end of the table.
    fn sweep_table(
        &self,
        table: Table,
        mut from: Key,
        (kept, now): (Duration, Timestamp),
        slice: Slice,
        swept: &mut Swept,
    ) -> Option<Key> {
        let started = Instant::now();
        'partition: loop {
            for item in self.reader.range(from..vec![table as u8 + 1]) {
                // What cannot be read stays, and is said by whoever wants it.
                let Ok((key, value)) = item else { continue };
                swept.looked_at += 1;
                match verdict(table, &key, &value, kept, now) {
                    Verdict::Stays => {}
                    Verdict::PartitionStays => {
                        let next = key.get(1).copied().unwrap_or(PARTITIONS) + 1;
                        from = vec![table as u8, next];
                        if next < PARTITIONS {
                            continue 'partition;
                        }
                        return None;
                    }
                    Verdict::Goes(op) => {
                        swept.ops.push(op);
                        swept.history +=
                            usize::from(!matches!(table, Table::Idempotency | Table::Ban));
                    }
                }
                let is_time =
                    swept.looked_at.is_multiple_of(LOOK) && started.elapsed() >= slice.time;
                if is_time || swept.ops.len() >= slice.rows {
                    // The next key that there can be.
                    return Some([&key, &[0][..]].concat());
                }
            }
            return None;
        }
    }

    /// About how many bytes of keys and values the store holds, from `from` on, for a slice of time;
    /// and where to go on, where it is not through. Reads rows: what sled and large rows add is not
    /// in it.
    pub fn measure(&self, from: Key, time: Duration) -> (u64, Option<Key>) {
        let (started, mut bytes) = (Instant::now(), 0);
        let rows = self.reader.range(from..vec![u8::MAX]).flatten();
        for (number, (key, value)) in (1..).zip(rows) {
            bytes += (key.len() + value.len()) as u64;
            if usize::is_multiple_of(number, LOOK) && started.elapsed() >= time {
                return (bytes, Some([&key, &[0][..]].concat()));
            }
        }
        (bytes, None)
    }
}

fn verdict(table: Table, key: &[u8], value: &[u8], kept: Duration, now: Timestamp) -> Verdict {
    let is_over = match table {
        Table::History | Table::Trail | Table::Suppressed => {
            let Some(alert_at) = keys::alert_at(key) else { return Verdict::Stays };
            if now.since(alert_at) < kept {
                return Verdict::PartitionStays;
            }
            if table == Table::History {
                return match decode::<Message>(value) {
                    Ok(message) if now.since(message.updated_at) >= kept => {
                        Verdict::Goes(delete(&message))
                    }
                    Ok(_) | Err(_) => Verdict::Stays,
                };
            }
            now.since(keys::step_at(key).unwrap_or(alert_at)) >= kept
        }
        Table::Idempotency => {
            decode::<Idempotency>(value).is_ok_and(|row| now.since(row.at) >= IDEMPOTENCY_KEPT)
        }
        _ => decode::<Ban>(value).is_ok_and(|ban| ban.is_over(now)),
    };
    if !is_over {
        return Verdict::Stays;
    }
    let mut op = Op::new();
    op.remove(key.to_vec());
    Verdict::Goes(op)
}

/// Deletes an ended message and what led to it.
fn delete(message: &Message) -> Op {
    let mut op = Op::new();
    op.remove(keys::message(Table::History, message.id));
    let last = message.provider.as_ref().zip(message.provider_ref.as_ref());
    // It may have been taken more than once.
    let earlier = message.attempts.iter().filter_map(|attempt| match &attempt.outcome {
        Some(AttemptOutcome::Accepted { provider_ref: Some(reference) }) => {
            Some((&attempt.provider, reference))
        }
        _ => None,
    });
    let mut references: Vec<_> = earlier.chain(last).collect();
    references.sort_unstable();
    references.dedup();
    for (provider, reference) in references {
        op.remove(keys::reference(provider, reference));
    }
    op
}
