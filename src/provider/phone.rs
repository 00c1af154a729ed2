//! The virtual phone: takes every channel and shows what it gets on a screen, so that the first
//! alert can be seen with no account anywhere.
//!
//! Nothing leaves the process. **Invariant:** a message is on the screen at most once, whatever
//! was repeated on the way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::broadcast;

use super::registry::{Kind, Parts, Reach};
use super::{Provider, SendOutcome};
use crate::clock::{Clock, Timestamp};
use crate::model::{AlertRef, Channel, Message, MessageId, Segments, Severity};

pub(super) const KIND: Kind = Kind {
    name: "phone",
    channels: Channel::ALL,
    reach: Reach::Inside,
    rate: None,
    concurrency: 4,
    keys: || &[],
    build,
};

/// A subscriber that lags behind by more messages than this misses the oldest.
const LIVE_MAX: usize = 256;

/// What the phone shows; clones show the same.
#[derive(Clone, Debug)]
pub struct Screen {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kept: usize,
    shown: Mutex<VecDeque<Arc<Shown>>>,
    live: broadcast::Sender<Arc<Shown>>,
}

/// One message as the phone shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// The message.
    pub id: MessageId,
    /// When it arrived.
    pub at: Timestamp,
    /// By which channel.
    pub channel: Channel,
    /// Whom it is for.
    pub contact: Option<Arc<str>>,
    /// Where it was sent to, masked.
    pub address: String,
    /// How urgent.
    pub severity: Severity,
    /// The headline.
    pub title: Option<Arc<str>>,
    /// The text.
    pub text: Arc<str>,
    /// The alert that it tells of.
    pub alert: Option<AlertRef>,
    /// For SMS: how it is cut.
    pub segments: Option<Segments>,
}

impl Screen {
    /// An empty screen that keeps the latest `kept` messages; at least one.
    pub fn new(kept: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                kept: kept.max(1),
                shown: Mutex::default(),
                live: broadcast::Sender::new(LIVE_MAX),
            }),
        }
    }

    /// Shows a message, in place of an earlier showing of the same.
    pub fn show(&self, shown: Shown) {
        let shown = Arc::new(shown);
        let mut kept = self.lock();
        kept.retain(|earlier| earlier.id != shown.id);
        if kept.len() >= self.inner.kept {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&shown));
        // Under the lock, so that subscribers see the order of `recent`. It fails where nobody
        // listens, which is nobody's fault.
        drop(self.inner.live.send(shown));
    }

    /// What is on the screen, oldest first.
    pub fn recent(&self) -> Vec<Arc<Shown>> {
        self.lock().iter().cloned().collect()
    }

    /// What will be shown from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Shown>> {
        self.inner.live.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Shown>>> {
        // Whoever panicked in here left a list that is still a list.
        self.inner.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Phone {
    screen: Screen,
    clock: Clock,
}

#[expect(clippy::unnecessary_wraps, reason = "a `Build` like the others")]
fn build(parts: &mut Parts<'_>) -> Option<Arc<dyn Provider>> {
    Some(Arc::new(Phone { screen: parts.shared.screen.clone(), clock: parts.shared.clock.clone() }))
}

impl Provider for Phone {
    fn send<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, SendOutcome> {
        self.screen.show(Shown {
            id: message.id,
            at: self.clock.now(),
            channel: message.target.channel,
            contact: message.contact.clone(),
            address: message.target.address.to_string(),
            severity: message.severity,
            title: message.content.title.clone(),
            text: Arc::clone(&message.content.text),
            alert: message.alert.clone(),
            segments: message.segments,
        });
        Box::pin(async {
            SendOutcome::Accepted {
                provider_ref: None,
                segments: None,
                delivered: true,
                note: None,
            }
        })
    }
}
