//! What is known of an edge node: the metrics of its births, and whether it is alive.
//!
//! It is stored as it serializes. The number of the last message is not: after a restart the next
//! one is the first, and no gap is told that was none.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::Undecodable;
use super::wire::Metric;
use crate::clock::Timestamp;

/// Longest name that a birth may give a metric, bytes.
const NAME_BYTES_MAX: usize = 512;

/// An edge node and the devices behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// When it was last heard; the node that was silent longest gives way.
    pub(super) heard_at: Timestamp,
    /// It has died, and its devices with it.
    pub(super) stale: bool,
    /// The number of its session, which its death has too.
    pub(super) bd_seq: Option<u64>,
    #[serde(skip)]
    pub(super) seq: Option<u64>,
    /// The metrics of its own birth; `None`: only devices of it were born.
    pub(super) own: Option<Table>,
    pub(super) devices: BTreeMap<Arc<str>, Device>,
}

/// A device behind a node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Device {
    pub(super) stale: bool,
    pub(super) table: Table,
}

/// The metrics of one birth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<Known>", into = "Vec<Known>")]
pub(super) struct Table {
    by_name: BTreeMap<Arc<str>, u32>,
    by_alias: BTreeMap<u64, Arc<str>>,
}

/// A row of a table as it is stored.
#[derive(Serialize, Deserialize)]
struct Known {
    name: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alias: Option<u64>,
    #[serde(default)]
    datatype: u32,
}

impl Node {
    /// How many metrics and devices it keeps.
    pub(super) fn len(&self) -> usize {
        let devices = self.devices.values().map(|device| 1 + device.table.len());
        devices.sum::<usize>() + self.own.as_ref().map_or(0, Table::len)
    }

    /// The same without this device, or without the node's own.
    pub(super) fn len_without(&self, device: Option<&str>) -> usize {
        let own = self.table(device).map_or(0, |table| table.len() + usize::from(device.is_some()));
        self.len() - own
    }

    /// The metrics of the node itself or of a device.
    pub(super) fn table(&self, device: Option<&str>) -> Option<&Table> {
        match device {
            None => self.own.as_ref(),
            Some(device) => self.devices.get(device).map(|device| &device.table),
        }
    }

    pub(super) fn is_stale(&self, device: Option<&str>) -> bool {
        let device = device.and_then(|device| self.devices.get(device));
        self.stale || device.is_some_and(|device| device.stale)
    }

    /// Takes the number of a message; whether one before it was missed. Encoders that leave out a
    /// 0 are understood where 0 is what comes next.
    pub(super) fn step(&mut self, seq: Option<u64>) -> bool {
        let expected = self.seq.map(|last| if last >= 255 { 0 } else { last + 1 });
        let seq = seq.or(expected.filter(|expected| *expected == 0));
        self.seq = seq;
        matches!((expected, seq), (Some(expected), Some(seq)) if expected != seq)
    }
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.by_name.len() + self.by_alias.len()
    }

    /// Takes a metric of a birth; one without a name cannot be known again.
    pub(super) fn learn(&mut self, metric: &Metric) -> Result<(), Undecodable> {
        let Some(name) = name(metric) else {
            return Ok(());
        };
        if name.len() > NAME_BYTES_MAX {
            return Err(Undecodable::NotSparkplug("a metric's name is longer than 512 bytes"));
        }
        self.add(Known {
            name: name.into(),
            alias: metric.alias,
            datatype: metric.datatype.unwrap_or(0),
        });
        Ok(())
    }

    fn add(&mut self, known: Known) {
        if let Some(alias) = known.alias {
            self.by_alias.insert(alias, Arc::clone(&known.name));
        }
        self.by_name.insert(known.name, known.datatype);
    }

    /// The name of a metric that has only its alias.
    pub(super) fn name(&self, alias: u64) -> Option<&Arc<str>> {
        self.by_alias.get(&alias)
    }

    /// The type that the birth gave it; 0 where it gave none.
    pub(super) fn datatype(&self, name: &str) -> u32 {
        self.by_name.get(name).copied().unwrap_or(0)
    }
}

/// The name that a metric carries. Some send an empty one beside its alias.
pub(super) fn name(metric: &Metric) -> Option<&str> {
    metric.name.as_deref().filter(|name| !name.is_empty())
}

impl From<Vec<Known>> for Table {
    fn from(rows: Vec<Known>) -> Self {
        let mut table = Self::default();
        rows.into_iter().for_each(|known| table.add(known));
        table
    }
}

impl From<Table> for Vec<Known> {
    fn from(table: Table) -> Self {
        let aliases: BTreeMap<_, _> =
            table.by_alias.iter().map(|(alias, name)| (name.as_ref(), *alias)).collect();
        let row = |(name, datatype): (&Arc<str>, &u32)| Known {
            name: Arc::clone(name),
            alias: aliases.get(name.as_ref()).copied(),
            datatype: *datatype,
        };
        table.by_name.iter().map(row).collect()
    }
}
