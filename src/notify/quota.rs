//! `max`: so many messages in a period, for a rule's or a contact's sake.
//!
//! A window begins with its first message. What comes when it is full is held until it ends, and is
//! then told in one message, which is the first of the next window. Nothing is lost by a `max`, only
//! told late and together.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::contact::SEVERITIES;
use super::fields::Fields;
use super::row::RowId;
use crate::clock::Timestamp;
use crate::model::Severity;
use crate::model::tell::Quota;
use crate::span::Span;

/// Most messages that a `max` may allow.
const COUNT_MAX: u32 = 1_000_000;

/// A contact's `max`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How many in what time.
    pub quota: Quota,
    /// What is told all the same and not counted.
    pub except: Vec<Severity>,
}

impl Limit {
    /// Reads `"20/1h"` or `{ count = 20, per = "1h", except = ["critical"] }`.
    pub(super) fn read(fields: &mut Fields<'_, '_>, key: &str) -> Option<Self> {
        match fields.value(key)? {
            toml::Value::String(text) => {
                let parsed = text.split_once('/').and_then(|(count, per)| {
                    let count = count.trim().parse().ok();
                    let count = count.filter(|count| (1..=COUNT_MAX).contains(count))?;
                    let per = per.trim().parse::<Span>().ok().filter(|per| !per.is_zero())?;
                    Some(Quota { count, per: per.get() })
                });
                if parsed.is_none() {
                    let what = "write how many in what time, as \"20/1h\"";
                    fields.problem(Some(key), what);
                }
                Some(Self { quota: parsed?, except: Vec::new() })
            }
            toml::Value::Table(_) => {
                let mut fields = fields.table(key)?;
                fields.only(&["count", "per", "except"]);
                for key in ["count", "per"] {
                    if !fields.has(key) {
                        let what = format!(
                            "`{key}` is missing from `max`; write {{ count = 20, per = \"1h\" }}"
                        );
                        fields.problem(None, &what);
                    }
                }
                let except = fields.words("except", SEVERITIES);
                let (count, per) = (fields.number("count", 1, COUNT_MAX), fields.span("per"));
                Some(Self { quota: Quota { count: count?, per: per?.get() }, except })
            }
            _ => {
                fields.problem(Some(key), "write how many in what time, as \"20/1h\"");
                None
            }
        }
    }
}

/// A period in which messages are counted, from its first message on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// The rule whose `max` it is; `None`: the contact's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Arc<str>>,
    /// The contact.
    pub contact: Arc<str>,
    /// When it ends.
    pub until: Timestamp,
    /// How many messages there were.
    pub count: u32,
}

impl Window {
    pub(super) fn id(&self) -> RowId {
        RowId::Window { rule: self.rule.clone(), contact: Arc::clone(&self.contact) }
    }
}
