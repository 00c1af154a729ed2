//! Who is told of an alert, when, and why not: news in, messages and steps out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Config;
use super::book::Book;
use super::row::{Row, RowChange};
use super::silence::{BadSilence, Silence};
use super::tale::Tale;
use crate::clock::Timestamp;
use crate::model::tell::{News, Policy, Step};
use crate::model::{Alert, AlertId, Message};

/// What came of a call: all of it belongs into one operation of the store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Messages, queued and due at once.
    pub messages: Vec<Message>,
    /// What `explain` tells.
    pub steps: Vec<Step>,
    /// What becomes of stored rows; each row at most once.
    pub rows: Vec<RowChange>,
}

/// All state of telling.
#[derive(Debug)]
pub struct Notifier {
    config: Config,
    expires_in: Duration,
    tales: HashMap<AlertId, Tale>,
    silences: HashMap<Arc<str>, Silence>,
}

impl Notifier {
    /// Nobody was told of anything. A message lives for `expires_in` where its rule says nothing.
    pub fn new(config: &Config, expires_in: Duration) -> Self {
        Self { config: *config, expires_in, tales: HashMap::new(), silences: HashMap::new() }
    }

    /// Puts back a row that was stored. Rows come in any order, all of them before the first call of
    /// anything else.
    pub fn restore(&mut self, row: Row) {
        let _ = (&self.config, &self.expires_in, row);
    }

    /// Says that an alert fires: after [`Self::restore`], for each alert that fires; and again for
    /// each after a reload of the book, before [`Self::reconsider`]. `policy` is what its rule says
    /// now; `None`: the rule is gone. Saying it twice changes nothing.
    pub fn restore_firing(&mut self, book: &Book, alert: &Alert, policy: Option<&Arc<Policy>>) {
        let _ = (book, alert, policy);
    }

    /// News of one alert.
    pub fn handle(&mut self, book: &Book, news: &News, now: Timestamp) -> Outcome {
        let _ = (book, news, now);
        Outcome::default()
    }

    /// When [`Self::wake`] has something to do next.
    pub fn due(&self) -> Option<Timestamp> {
        None
    }

    /// Does all that is due. Doing it twice does nothing more.
    pub fn wake(&mut self, book: &Book, now: Timestamp) -> Outcome {
        let _ = (book, now);
        Outcome::default()
    }

    /// Looks again at whatever is held, after a reload of the book.
    pub fn reconsider(&mut self, book: &Book, now: Timestamp) -> Outcome {
        let _ = (book, now);
        Outcome::default()
    }

    /// Adds a silence, or replaces the one of the same id. What it covers is held from now on.
    ///
    /// # Errors
    /// It has no author, reason or end, covers everything by mistake, or is one too many.
    pub fn add_silence(
        &mut self,
        book: &Book,
        silence: Silence,
        now: Timestamp,
    ) -> Result<Outcome, BadSilence> {
        let _ = (book, now);
        Err(BadSilence(vec![silence.id.to_string()]))
    }

    /// Ends the silence of that id, or of that name; `None` if there is none. Those of files end
    /// where they stand.
    pub fn end_silence(&mut self, book: &Book, id: &str, now: Timestamp) -> Option<Outcome> {
        let _ = (book, id, now);
        None
    }

    /// The silences of operators, in the order of their ids.
    pub fn silences(&self) -> impl Iterator<Item = &Silence> {
        self.silences.values()
    }

    /// What each contact was told of the alert and what is held. `None` in the plain case: everybody
    /// was told once, at once, and there is nothing more to tell.
    pub fn tale(&self, alert: AlertId) -> Option<&Tale> {
        self.tales.get(&alert)
    }
}
