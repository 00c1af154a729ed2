//! The rows of engines in memory: what [`super::Store`] would hold, for those who try rules out in
//! virtual time and want to restart in between.
//!
//! Holds only what engines write (instances, telling, memory, themselves); messages and steps are
//! passed over. Rows are encoded and decoded as on disk.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;

use super::keys::{Key, Table};
use super::{Op, ReadError, decode};

/// The tables that are kept.
const KEPT: &[Table] = &[Table::Instance, Table::Telling, Table::Memory, Table::Engine];

/// Rows that no disk holds.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    rows: BTreeMap<Key, Vec<u8>>,
}

impl Shelf {
    /// Writes an operation.
    pub fn apply(&mut self, op: Op) {
        for (key, value) in op.writes {
            if !key.first().is_some_and(|first| KEPT.iter().any(|table| *table as u8 == *first)) {
                continue;
            }
            match value {
                Some(value) => drop(self.rows.insert(key, value)),
                None => drop(self.rows.remove(&key)),
            }
        }
    }

    /// The rows of one of the kept tables, in the order of their keys.
    ///
    /// # Errors
    /// A row cannot be read back.
    pub fn rows<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<T>, ReadError> {
        let first = table as u8;
        let of_table = self.rows.range(vec![first]..vec![first.saturating_add(1)]);
        of_table.map(|(_, value)| decode(value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_back_what_was_put_last_and_holds_nothing_else() {
        let mut shelf = Shelf::default();
        let mut op = Op::new();
        op.put_row(Table::Instance, 3, b"a", &"first");
        op.put_row(Table::Instance, 3, b"a", &"second");
        op.put_row(Table::Telling, 3, b"b", &"told");
        op.put_row(Table::Instance, 3, b"c", &"gone");
        op.remove_row(Table::Instance, 3, b"c");
        op.put(super::super::keys::meta("format"), &1);
        shelf.apply(op);
        assert_eq!(shelf.rows::<String>(Table::Instance).expect("readable"), ["second"]);
        assert_eq!(shelf.rows::<String>(Table::Telling).expect("readable"), ["told"]);
        assert_eq!(shelf.rows.len(), 2);
    }
}
