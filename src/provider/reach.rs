//! What can be reached, as the providers are configured: known before anything is sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Provider;
use crate::model::{Channel, Target};

/// A provider and its name.
pub type Named = (Arc<str>, Arc<dyn Provider>);

/// Which providers serve which channel.
pub struct Reach(BTreeMap<Channel, Vec<Named>>);

impl Reach {
    /// Of each channel its providers, in the order of failover.
    pub fn new(channels: BTreeMap<Channel, Vec<Named>>) -> Self {
        Self(channels)
    }

    /// Why nothing that is sent to `target` can arrive; `None`: it may.
    pub fn objection(&self, target: &Target) -> Option<String> {
        let providers = self.0.get(&target.channel).map(Vec::as_slice).unwrap_or_default();
        let objections: Vec<_> = providers
            .iter()
            .map_while(|(name, one)| Some(format!("{name}: {}", one.objection(&target.address)?)))
            .collect();
        if objections.len() < providers.len() {
            return None;
        }
        Some(if objections.is_empty() {
            "no provider serves that".to_owned()
        } else {
            objections.join("; ")
        })
    }
}
