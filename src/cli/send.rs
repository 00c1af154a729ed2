//! `watchbell send`: a message to people, without a rule.

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::client::Client;
use super::{Context, block_on};
use crate::model::{Channel, Severity};
use crate::span::Span;

const EXAMPLES: &str = "\
Examples:
  watchbell send --to ana \"Pump 7 stands still\"
  watchbell send --to ana --by push --by sms --severity critical \"Pump 7 stands still\"
  watchbell send --sms +4915112345678 \"A test from Watchbell\"
  watchbell send --to ana --key backup-2026-11-23 \"Last night's backup failed\"   never sent twice

The message is on disk when this returns; `watchbell outbox show ID` tells what became of it.";

/// Send a message to a contact or an address, without a rule
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Send {
    /// The text
    text: String,
    /// A contact of the rules directory; may be repeated
    #[arg(long, value_name = "CONTACT")]
    to: Vec<String>,
    /// A phone number, for SMS
    #[arg(long, value_name = "+NUMBER")]
    sms: Vec<String>,
    /// A phone number, for WhatsApp
    #[arg(long, value_name = "+NUMBER")]
    whatsapp: Vec<String>,
    /// A registration token or topic:NAME, for push
    #[arg(long, value_name = "TOKEN")]
    push: Vec<String>,
    /// A URL, for a signed webhook
    #[arg(long, value_name = "URL")]
    webhook: Vec<String>,
    /// A channel for the contacts, in order of preference; may be repeated [default: the contact's]
    #[arg(long, value_name = "CHANNEL", requires = "to")]
    by: Vec<Channel>,
    /// info, warning or critical
    #[arg(long, default_value = "warning")]
    severity: Severity,
    /// A headline, for channels that show one
    #[arg(long)]
    title: Option<String>,
    /// How long it may wait, as 30m or 4h [default: dispatch.expires_in]
    #[arg(long, value_name = "TIME")]
    expires_in: Option<Span>,
    /// An idempotency key: the same key again sends nothing, for 24 hours
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

#[derive(Deserialize)]
struct Sent {
    messages: Vec<Message>,
    repeated: bool,
}

#[derive(Deserialize)]
struct Message {
    id: String,
    channel: String,
    address: String,
    contact: Option<String>,
}

impl Send {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let data_dir = context.data_dir()?;
        let body = self.body();
        let sent: Sent = block_on(async {
            Client::connect(&data_dir).await?.post("/v1/messages", Some(&body)).await
        })?;
        let out = context.out;
        for message in &sent.messages {
            let whom = message.contact.as_deref().unwrap_or(&message.address);
            let verb = if sent.repeated { "was queued before" } else { "queued" };
            writeln!(out, "{}  {} to {whom}: {verb}", message.id, message.channel)?;
        }
        Ok(())
    }

    fn body(self) -> Value {
        let mut body = Map::new();
        let mut list = |key: &str, list: Vec<String>| {
            if !list.is_empty() {
                body.insert(key.to_owned(), list.into());
            }
        };
        list("to", self.to);
        list("by", self.by.iter().map(ToString::to_string).collect());
        list("sms", self.sms);
        list("whatsapp", self.whatsapp);
        list("push", self.push);
        list("webhook", self.webhook);
        body.insert("text".to_owned(), self.text.into());
        body.insert("severity".to_owned(), self.severity.as_str().into());
        for (key, value) in [
            ("title", self.title),
            ("expires_in", self.expires_in.map(|span| span.to_string())),
            ("idempotency_key", self.key),
        ] {
            if let Some(value) = value {
                body.insert(key.to_owned(), value.into());
            }
        }
        Value::Object(body)
    }
}
