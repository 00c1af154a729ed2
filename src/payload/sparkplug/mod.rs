//! Sparkplug B 3.0: messages of edge nodes, read with the births that came before.
//!
//! A DATA message has aliases in place of names and no types, so a [`Book`] keeps for each node what
//! its births said, its session number (`bdSeq`) and the number of its last message (`seq`). A
//! publish is read once, however many rules look at it: reading counts. What a message says:
//!
//! ```text
//! {kind: "NBIRTH", group, node, device: text or null, timestamp: ms or null, seq, bd_seq,
//!  born, stale, seq_gap, ignored, is_historical,
//!  metrics: {name: value}, historical: {name: true}, quality: {name: number}}
//! {kind: "STATE", host, online, timestamp}
//! ```
//!
//! - `born`: the birth is known. Without it metrics are called by their alias, `#12`, and a signed
//!   number may look unsigned.
//! - `stale`: node or device has died and was not born again; a death itself is stale.
//! - `seq_gap`: a number was missed since the last message. After a restart, and before a birth,
//!   nobody knows.
//! - `ignored`: a death of another session than that of the birth (an old will that came late). It
//!   changes nothing.
//! - `historical`: those metrics that are marked so; `is_historical`: all of them are.
//! - `timestamp` of an NDEATH is now: the node wrote its will when it connected.
//!
//! A message that cannot be read changes nothing in the book. DataSets and Templates are null.
//!
//! Invariant: the book holds at most [`Room`]; the node that was silent longest gives way, dead ones
//! first.

mod metric;
mod node;
mod place;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use self::node::{Device, Table};
use self::place::{Edge, Kind, Place};
use self::wire::{Metric, Payload};
use super::budget::Budget;
use super::value::Map;
use super::{Limits, Undecodable, Value, json};
use crate::clock::Timestamp;
pub use node::Node;

/// What a message has besides its metrics: the map, three maps in it, and twelve fields.
const FIXED_VALUES: usize = 16;

/// Bounds on a [`Book`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Most nodes.
    pub nodes_max: usize,
    /// Most names, aliases and devices of one node; a birth beyond it is refused.
    pub node_metrics_max: usize,
    /// Most names, aliases and devices of all nodes.
    pub metrics_max: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { nodes_max: 1_000, node_metrics_max: 40_000, metrics_max: 200_000 }
    }
}

/// All nodes that were heard.
#[derive(Debug, Default)]
pub struct Book {
    room: Room,
    nodes: BTreeMap<String, Node>,
    /// Of all nodes together.
    metrics: usize,
    changed: BTreeSet<String>,
}

/// What the metrics of a message say.
#[derive(Default)]
struct Said {
    metrics: Vec<(Arc<str>, Value)>,
    historical: Vec<(Arc<str>, Value)>,
    quality: Vec<(Arc<str>, Value)>,
    /// What a birth taught.
    table: Table,
    bd_seq: Option<u64>,
    is_historical: bool,
}

/// How a message stands to those before it.
struct Standing {
    born: bool,
    stale: bool,
    seq_gap: bool,
    ignored: bool,
}

impl Book {
    /// An empty book.
    pub fn new(room: Room) -> Self {
        Self { room, ..Self::default() }
    }

    /// Reads a publish, which must have been inflated ([`super::inflated`]).
    ///
    /// # Errors
    /// It is no Sparkplug B message, or over a limit; the book is as it was.
    pub fn read(
        &mut self,
        topic: &str,
        bytes: &[u8],
        limits: Limits,
        now: Timestamp,
    ) -> Result<Value, Undecodable> {
        if bytes.len() > limits.bytes_max {
            return Err(Undecodable::TooLarge(limits.bytes_max));
        }
        let unknown =
            Undecodable::NotSparkplug("its topic is not spBv1.0/GROUP/KIND/NODE[/DEVICE]");
        let edge = match Place::parse(topic).ok_or(unknown)? {
            Place::Host(host) => return state(host, bytes, limits),
            Place::Edge(edge) => edge,
        };
        let mut payload = Payload::decode(Bytes::copy_from_slice(bytes)).map_err(no_protobuf)?;
        if payload.uuid.as_deref() == Some(b"SPBV1.0_COMPRESSED") {
            return Err(Undecodable::NotSparkplug("its body is compressed, which is not read"));
        }
        let mut budget = Budget::new(limits);
        budget.below(1)?;
        budget.values(FIXED_VALUES)?;
        budget.values(payload.metrics.len())?;
        let id = edge.id();
        let metrics = std::mem::take(&mut payload.metrics);
        let known = self.nodes.get(&id).and_then(|node| node.table(edge.device));
        let mut said = Said::of(metrics, edge.kind, known, &mut budget)?;
        let standing = match edge.kind {
            Kind::Birth => self.birth(id, edge, &payload, &mut said, now)?,
            Kind::Data => self.data(&id, edge, &payload, now),
            Kind::Death => self.death(id, edge, &payload, &said, now),
            Kind::Command => self.standing(&id, edge),
        };
        Ok(message(edge, &payload, said, &standing, now))
    }

    /// The nodes that births and deaths have changed since the last call, to be written; `None` for
    /// one that is to be forgotten.
    pub fn changed(&mut self) -> Vec<(String, Option<Node>)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|id| (id.clone(), self.nodes.get(&id).cloned())).collect()
    }

    /// Takes a node back that [`Book::changed`] gave before a restart.
    pub fn restore(&mut self, id: &str, node: Node) {
        let before = self.nodes.remove(id).unwrap_or_default();
        self.metrics -= before.len();
        self.put(id.to_owned(), node);
        self.changed.remove(id);
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn birth(
        &mut self,
        id: String,
        edge: Edge<'_>,
        payload: &Payload,
        said: &mut Said,
        now: Timestamp,
    ) -> Result<Standing, Undecodable> {
        let table = std::mem::take(&mut said.table);
        let before = self.nodes.get(&id).filter(|_| edge.device.is_some());
        let others = before.map_or(0, |node| node.len_without(edge.device));
        let max = self.room.node_metrics_max.min(self.room.metrics_max);
        if others + usize::from(edge.device.is_some()) + table.len() > max {
            return Err(Undecodable::TooManyMetrics(max));
        }
        let before = self.nodes.remove(&id).unwrap_or_default();
        self.metrics -= before.len();
        let mut seq_gap = false;
        let node = match edge.device {
            // All that was known of it and its devices is of an earlier session.
            None => {
                Node { bd_seq: said.bd_seq, seq: payload.seq, own: Some(table), ..Node::default() }
            }
            Some(device) => {
                let mut node = before;
                seq_gap = node.step(payload.seq);
                node.devices.insert(device.into(), Device { stale: false, table });
                node
            }
        };
        let stale = node.stale;
        self.put(id, Node { heard_at: now, ..node });
        Ok(Standing { born: true, stale, seq_gap, ignored: false })
    }

    fn data(&mut self, id: &str, edge: Edge<'_>, payload: &Payload, now: Timestamp) -> Standing {
        let mut standing = self.standing(id, edge);
        if let Some(node) = self.nodes.get_mut(id) {
            node.heard_at = now;
            standing.seq_gap = node.step(payload.seq);
        }
        standing
    }

    fn death(
        &mut self,
        id: String,
        edge: Edge<'_>,
        payload: &Payload,
        said: &Said,
        now: Timestamp,
    ) -> Standing {
        let mut standing = self.standing(&id, edge);
        standing.stale = true;
        let Some(node) = self.nodes.get_mut(&id) else {
            return standing;
        };
        let Some(device) = edge.device else {
            let other =
                matches!((node.bd_seq, said.bd_seq), (Some(birth), Some(death)) if birth != death);
            if other {
                return Standing { ignored: true, stale: node.stale, ..standing };
            }
            (node.stale, node.seq) = (true, None);
            self.changed.insert(id);
            return standing;
        };
        node.heard_at = now;
        standing.seq_gap = node.step(payload.seq);
        if let Some(device) = node.devices.get_mut(device) {
            device.stale = true;
            self.changed.insert(id);
        }
        standing
    }

    fn standing(&self, id: &str, edge: Edge<'_>) -> Standing {
        let node = self.nodes.get(id);
        Standing {
            born: node.is_some_and(|node| node.table(edge.device).is_some()),
            stale: node.is_some_and(|node| node.is_stale(edge.device)),
            seq_gap: false,
            ignored: false,
        }
    }

    /// Puts in a node that is not there, and makes room for it.
    fn put(&mut self, id: String, node: Node) {
        self.metrics += node.len();
        self.nodes.insert(id.clone(), node);
        while self.nodes.len() > self.room.nodes_max.max(1) || self.metrics > self.room.metrics_max
        {
            let others = self.nodes.iter().filter(|(other, _)| **other != id);
            let longest = others.min_by_key(|(_, node)| (!node.stale, node.heard_at));
            let Some(gone) = longest.map(|(id, _)| id.clone()) else {
                break;
            };
            if let Some(node) = self.nodes.remove(&gone) {
                self.metrics -= node.len();
            }
            self.changed.insert(gone);
        }
        self.changed.insert(id);
    }
}

impl Said {
    /// Reads metrics; `known` is what the birth before has said of them.
    fn of(
        metrics: Vec<Bytes>,
        kind: Kind,
        known: Option<&Table>,
        budget: &mut Budget,
    ) -> Result<Self, Undecodable> {
        let mut said = Self::default();
        let count = metrics.len();
        for bytes in metrics {
            let metric = Metric::decode(bytes).map_err(no_protobuf)?;
            if kind == Kind::Birth {
                said.table.learn(&metric)?;
            }
            let known = known.filter(|_| kind != Kind::Birth);
            let name: Arc<str> = match (node::name(&metric), metric.alias) {
                (Some(name), _) => name.into(),
                (None, Some(alias)) => known
                    .and_then(|known| known.name(alias))
                    .map_or_else(|| format!("#{alias}").into(), Arc::clone),
                (None, None) => {
                    return Err(Undecodable::NotSparkplug("a metric has neither name nor alias"));
                }
            };
            let own = metric.datatype.filter(|datatype| *datatype != 0);
            let datatype = own.or(known.map(|known| known.datatype(&name))).unwrap_or(0);
            let value = metric::value(&metric, datatype, budget)?;
            if name.as_ref() == "bdSeq" {
                said.bd_seq = metric.long_value.or(metric.int_value.map(u64::from));
            }
            if metric.is_historical == Some(true) {
                budget.value()?;
                said.historical.push((Arc::clone(&name), Value::Bool(true)));
            }
            if let Some(properties) = &metric.properties
                && let Some(quality) = metric::quality(properties)?
            {
                budget.value()?;
                said.quality.push((Arc::clone(&name), Value::whole(quality)));
            }
            said.metrics.push((name, value));
        }
        said.is_historical = count > 0 && said.historical.len() == count;
        Ok(said)
    }
}

fn no_protobuf(_: prost::DecodeError) -> Undecodable {
    Undecodable::NotSparkplug("its bytes are no protobuf, or cut off")
}

fn message(
    edge: Edge<'_>,
    payload: &Payload,
    said: Said,
    standing: &Standing,
    now: Timestamp,
) -> Value {
    let text = |text: &str| Value::Text(text.into());
    let number = |number: Option<u64>| number.map_or(Value::Null, Value::whole);
    let inner = |entries| Value::Map(Arc::new(Map::new(entries)));
    let is_will = edge.kind == Kind::Death && edge.device.is_none();
    let timestamp =
        if is_will { Value::Int(now.wall().as_millis()) } else { number(payload.timestamp) };
    map([
        ("kind", text(edge.word)),
        ("group", text(edge.group)),
        ("node", text(edge.node)),
        ("device", edge.device.map_or(Value::Null, text)),
        ("timestamp", timestamp),
        ("seq", number(payload.seq)),
        ("bd_seq", number(said.bd_seq)),
        ("born", Value::Bool(standing.born)),
        ("stale", Value::Bool(standing.stale)),
        ("seq_gap", Value::Bool(standing.seq_gap)),
        ("ignored", Value::Bool(standing.ignored)),
        ("is_historical", Value::Bool(said.is_historical)),
        ("metrics", inner(said.metrics)),
        ("historical", inner(said.historical)),
        ("quality", inner(said.quality)),
    ])
}

/// A host application's state: JSON, and a word in version 2.2.
fn state(host: &str, bytes: &[u8], limits: Limits) -> Result<Value, Undecodable> {
    let unknown = Undecodable::NotSparkplug(
        "a host's state is {\"online\": true or false} or ONLINE or OFFLINE",
    );
    let (online, timestamp) = match bytes.trim_ascii() {
        b"ONLINE" => (true, Value::Null),
        b"OFFLINE" => (false, Value::Null),
        bytes => match json::decode(bytes, limits)? {
            Value::Map(map) => match map.get("online") {
                Some(Value::Bool(online)) => {
                    (*online, map.get("timestamp").cloned().unwrap_or(Value::Null))
                }
                _ => return Err(unknown),
            },
            _ => return Err(unknown),
        },
    };
    Ok(map([
        ("kind", Value::Text("STATE".into())),
        ("host", Value::Text(host.into())),
        ("online", Value::Bool(online)),
        ("timestamp", timestamp),
    ]))
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entries = entries.into_iter().map(|(name, value)| (Arc::from(name), value));
    Value::Map(Arc::new(Map::new(entries.collect())))
}

#[cfg(test)]
mod tests;
