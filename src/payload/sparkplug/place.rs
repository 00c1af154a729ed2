//! What a Sparkplug B topic says: which message, of which node or device.
//!
//! `spBv1.0/GROUP/KIND/NODE` and `spBv1.0/GROUP/KIND/NODE/DEVICE`; a host application's state is on
//! `spBv1.0/STATE/HOST`, and on `STATE/HOST` in version 2.2. A bridge may put levels before it; they
//! belong to the node's id, because two sites may have the same names.

/// The kinds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Birth,
    Data,
    Death,
    Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place<'t> {
    /// A message of an edge node, or of a device behind it.
    Edge(Edge<'t>),
    /// The state of a host application.
    Host(&'t str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge<'t> {
    /// What a bridge has put before, with its `/`.
    pub(super) prefix: &'t str,
    pub(super) kind: Kind,
    /// As the topic has it: `NBIRTH`.
    pub(super) word: &'t str,
    pub(super) group: &'t str,
    pub(super) node: &'t str,
    pub(super) device: Option<&'t str>,
}

impl Edge<'_> {
    /// What tells the node from all others.
    pub(super) fn id(&self) -> String {
        format!("{}{}/{}", self.prefix, self.group, self.node)
    }
}

const NAMESPACE: &str = "spBv1.0/";

impl<'t> Place<'t> {
    pub(super) fn parse(topic: &'t str) -> Option<Self> {
        let at_start = topic.strip_prefix(NAMESPACE).map(|rest| ("", rest));
        let found = at_start.or_else(|| {
            let at = topic.find("/spBv1.0/")?;
            let (prefix, rest) = topic.split_at_checked(at + 1)?;
            Some((prefix, rest.strip_prefix(NAMESPACE)?))
        });
        let Some((prefix, rest)) = found else {
            let host = topic.strip_prefix("STATE/")?;
            return (!host.is_empty() && !host.contains('/')).then_some(Self::Host(host));
        };
        let levels: Vec<&str> = rest.split('/').collect();
        if levels.iter().any(|level| level.is_empty()) {
            return None;
        }
        let (group, word, node, device) = match *levels.as_slice() {
            ["STATE", host] => return Some(Self::Host(host)),
            [group, word, node] => (group, word, node, None),
            [group, word, node, device] => (group, word, node, Some(device)),
            _ => return None,
        };
        let of = if device.is_some() { "D" } else { "N" };
        let kind = match word.strip_prefix(of)? {
            "BIRTH" => Kind::Birth,
            "DATA" => Kind::Data,
            "DEATH" => Kind::Death,
            "CMD" => Kind::Command,
            _ => return None,
        };
        Some(Self::Edge(Edge { prefix, kind, word, group, node, device }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_told_apart() {
        let shown = |topic| match Place::parse(topic) {
            None => "no".to_owned(),
            Some(Place::Host(host)) => format!("host {host}"),
            Some(Place::Edge(edge)) => {
                format!("{:?} {} {}", edge.kind, edge.id(), edge.device.unwrap_or("-"))
            }
        };
        for (topic, expected) in [
            ("spBv1.0/plant/NBIRTH/edge 1", "Birth plant/edge 1 -"),
            ("spBv1.0/plant/NDATA/e", "Data plant/e -"),
            ("spBv1.0/plant/NDEATH/e", "Death plant/e -"),
            ("spBv1.0/plant/NCMD/e", "Command plant/e -"),
            ("spBv1.0/plant/DBIRTH/e/d", "Birth plant/e d"),
            ("spBv1.0/plant/DDATA/e/d", "Data plant/e d"),
            ("site/kiel/spBv1.0/plant/DDEATH/e/d", "Death site/kiel/plant/e d"),
            ("spBv1.0/STATE/scada", "host scada"),
            ("site/spBv1.0/STATE/scada", "host scada"),
            ("STATE/scada", "host scada"),
            ("spBv1.0/plant/DDATA/e", "no"),
            ("spBv1.0/plant/NDATA/e/d", "no"),
            ("spBv1.0/plant/DDATA/e/d/x", "no"),
            ("spBv1.0/plant/XDATA/e", "no"),
            ("spBv1.0//NDATA/e", "no"),
            ("spBv1.0/plant", "no"),
            ("STATE/a/b", "no"),
            ("plant/NDATA/e", "no"),
        ] {
            assert_eq!(shown(topic), expected, "{topic}");
        }
    }
}
