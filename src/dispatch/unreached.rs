//! Who was reached by no channel, what they have not heard, and what those of `notify.fallback` are
//! told of it.
//!
//! One entry and one row a contact: however many messages one does not hear, every other is named
//! beside it, and a full disk is not filled with notes. An entry is there until the contact has heard
//! something and all that it missed has been told.
//!
//! **Invariant:** what an entry counts as untold has been told to nobody and not been heard since;
//! whoever changes an entry puts its row into an operation of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::Unreached;
use crate::clock::Timestamp;
use crate::model::{Message, MessageId, Severity};
use crate::store::keys::Table;
use crate::store::{Op, Store};

/// So many contacts are remembered at most; messages of others are counted.
const CONTACTS_MAX: usize = 10_000;
/// So many messages of one contact are remembered; the others are counted.
const KEPT_MAX: usize = 16;
/// So much of a message is repeated to those who stand in.
const WHAT_CHARS: usize = 80;
/// So many messages of one contact are repeated to them.
const WHATS_MAX: usize = 2;
/// What the keys of the rows begin with: the table is that of others, too.
const KEYS: &[u8] = b"unreached/";
/// The rows of before, one a message.
const OLD_KEYS: &[u8] = b"unheard/";

/// A message that no channel had success with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unheard {
    /// The last of those that say the same.
    pub(super) unheard: MessageId,
    /// For whom; where it is no contact, the address, masked.
    pub(super) contact: Arc<str>,
    /// What it says, cut.
    what: String,
    /// Why nobody heard it.
    why: String,
    severity: Severity,
    /// When that was found.
    pub(super) at: Timestamp,
}

impl Unheard {
    pub(super) fn of(message: &Message, why: &str, now: Timestamp) -> Self {
        let text = message.left_out.as_ref().map_or(&message.content.text, |sum| &sum.text);
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut what: String = line.chars().take(WHAT_CHARS).collect();
        if what.len() < line.len() {
            what.push_str("...");
        }
        Self {
            unheard: message.id,
            contact: who(message),
            what,
            why: why.to_owned(),
            severity: message.severity,
            at: now,
        }
    }
}

/// Whom a message is for: the contact; where it is none, the address, masked.
pub(super) fn who(message: &Message) -> Arc<str> {
    let address = || message.target.address.to_string().into();
    message.contact.clone().unwrap_or_else(address)
}

/// What is known of one contact: a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    contact: Arc<str>,
    /// Since when nothing has reached it.
    since: Timestamp,
    /// Messages since then.
    messages: u64,
    /// Why, of the latest.
    why: String,
    /// Something has reached it since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_reached: bool,
    /// Not told yet: the first ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    untold: Vec<Unheard>,
    /// Not told yet, besides these.
    #[serde(default, skip_serializing_if = "is_zero")]
    untold_more: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Entry {
    fn begin(one: &Unheard) -> Self {
        Self {
            contact: Arc::clone(&one.contact),
            since: one.at,
            messages: 0,
            why: String::new(),
            is_reached: false,
            untold: Vec::new(),
            untold_more: 0,
        }
    }

    const fn is_told(&self) -> bool {
        self.untold.is_empty() && self.untold_more == 0
    }

    fn add(&mut self, one: &Unheard, is_to_be_told: bool) {
        if self.is_reached {
            (self.is_reached, self.since, self.messages) = (false, one.at, 0);
        }
        self.messages += 1;
        self.why.clone_from(&one.why);
        if !is_to_be_told || self.untold.iter().any(|known| known.unheard == one.unheard) {
        } else if self.untold.len() < KEPT_MAX {
            self.untold.push(one.clone());
        } else {
            self.untold_more += 1;
        }
    }

    /// One of the messages has been heard after all.
    fn take_back(&mut self, id: MessageId) {
        match self.untold.iter().position(|one| one.unheard == id) {
            Some(index) => drop(self.untold.remove(index)),
            None => self.untold_more = self.untold_more.saturating_sub(1),
        }
    }
}

/// What those of `notify.fallback` are told of one contact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Untold {
    contact: Arc<str>,
    first: Vec<Unheard>,
    more: u64,
}

impl Untold {
    fn count(&self) -> u64 {
        self.more.saturating_add(self.first.len() as u64)
    }

    /// Without what has been heard meanwhile; `None` where nothing is left.
    pub(super) fn without(mut self, was_heard: impl Fn(MessageId) -> bool) -> Option<Self> {
        self.first.retain(|one| !was_heard(one.unheard));
        (self.count() > 0).then_some(self)
    }

    /// One of the messages, where one is remembered.
    pub(super) fn example(&self) -> Option<MessageId> {
        self.first.first().map(|one| one.unheard)
    }

    pub(super) fn severity(&self) -> Severity {
        self.first.iter().map(|one| one.severity).max().unwrap_or_default()
    }
}

/// Those whom no channel has reached.
#[derive(Debug, Default)]
pub(super) struct UnreachedContacts(Mutex<BTreeMap<Arc<str>, Entry>>);

impl UnreachedContacts {
    /// Those of before the process ended. What has been heard since is forgotten; `op` writes that.
    pub(super) fn load(store: &Store, was_heard: impl Fn(MessageId) -> bool, op: &mut Op) -> Self {
        let mut entries: BTreeMap<Arc<str>, Entry> = BTreeMap::new();
        for entry in store.rows_under::<Entry>(Table::Engine, KEYS) {
            entries.insert(Arc::clone(&entry.contact), entry);
        }
        for old in store.rows_under::<Unheard>(Table::Engine, OLD_KEYS) {
            let mut key = OLD_KEYS.to_vec();
            key.extend_from_slice(old.unheard.as_uuid().as_bytes());
            op.remove_row(Table::Engine, old.unheard.partition(), &key);
            let is_untold = store.message(old.unheard).is_ok_and(|row| row.is_some());
            if is_untold && !was_heard(old.unheard) {
                let begin = || Entry::begin(&old);
                entries.entry(Arc::clone(&old.contact)).or_insert_with(begin).add(&old, true);
            }
        }
        entries.retain(|_, entry| {
            let before = entry.untold.len();
            entry.untold.retain(|one| !was_heard(one.unheard));
            entry.is_reached |= entry.untold.len() < before;
            write(op, entry)
        });
        Self(Mutex::new(entries))
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<Arc<str>, Entry>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes a message that nobody heard. `is_to_be_told`: to those of `notify.fallback`.
    pub(super) fn note(&self, one: &Unheard, is_to_be_told: bool, op: &mut Op) {
        self.with(|entries| {
            let is_known = entries.get(&one.contact).is_some_and(|entry| !entry.is_reached);
            if !is_known {
                tracing::error!(
                    message_id = %one.unheard, contact = %one.contact, detail = one.why,
                    "somebody was not reached, and no other channel is left"
                );
            }
            if entries.len() >= CONTACTS_MAX && !entries.contains_key(&one.contact) {
                return;
            }
            let begin = || Entry::begin(one);
            let entry = entries.entry(Arc::clone(&one.contact)).or_insert_with(begin);
            entry.add(one, is_to_be_told);
            write(op, entry);
        });
    }

    /// Something has reached the contact; `unheard` are those of its messages that had been noted
    /// and that this makes heard. Gives what is to be written, if anything.
    pub(super) fn heard(&self, contact: &Arc<str>, unheard: &[MessageId]) -> Option<Op> {
        self.with(|entries| {
            let entry = entries.get_mut(contact)?;
            if entry.is_reached && unheard.is_empty() {
                return None;
            }
            entry.is_reached = true;
            unheard.iter().for_each(|id| entry.take_back(*id));
            let mut op = Op::new();
            if !write(&mut op, entry) {
                entries.remove(contact);
            }
            Some(op)
        })
    }

    /// What has not been told, which counts as told from now on; `op` writes that.
    pub(super) fn take_untold(&self, op: &mut Op) -> Vec<Untold> {
        let mut all = Vec::new();
        self.with(|entries| {
            entries.retain(|name, entry| {
                if entry.is_told() {
                    return true;
                }
                let first = std::mem::take(&mut entry.untold);
                let more = std::mem::take(&mut entry.untold_more);
                all.push(Untold { contact: Arc::clone(name), first, more });
                write(op, entry)
            });
        });
        all
    }

    /// When the first message that has not been told was found to be unheard.
    pub(super) fn untold_since(&self) -> Option<Timestamp> {
        self.with(|entries| {
            let first = entries.values().filter(|entry| !entry.is_told());
            first.map(|entry| entry.untold.first().map_or(entry.since, |one| one.at)).min()
        })
    }

    /// Who has heard nothing since.
    pub(super) fn now(&self) -> Vec<Unreached> {
        self.with(|entries| {
            let unreached = entries.iter().filter(|(_, entry)| !entry.is_reached);
            let unreached = unreached.map(|(contact, entry)| Unreached {
                contact: Arc::clone(contact),
                since: entry.since,
                messages: entry.messages,
                why: entry.why.clone(),
            });
            unreached.collect()
        })
    }

    /// How many that are.
    pub(super) fn count(&self) -> usize {
        self.with(|entries| entries.values().filter(|entry| !entry.is_reached).count())
    }
}

/// Puts the entry's row, or takes it out where it is done with; `false`: it is.
fn write(op: &mut Op, entry: &Entry) -> bool {
    let mut key = KEYS.to_vec();
    key.extend_from_slice(entry.contact.as_bytes());
    let is_wanted = !(entry.is_reached && entry.is_told());
    if is_wanted {
        op.put_row(Table::Engine, 0, &key, entry);
    } else {
        op.remove_row(Table::Engine, 0, &key);
    }
    is_wanted
}

/// What those of `notify.fallback` are told: who was not reached, about what, and why. `None` where
/// there is nothing to tell to this reader, who needs not hear of itself.
pub(super) fn digest(untold: &[Untold], reader: &str, names_max: usize) -> Option<String> {
    let people: Vec<&Untold> = untold.iter().filter(|one| &*one.contact != reader).collect();
    if people.is_empty() {
        return None;
    }
    let count: u64 = people.iter().map(|one| one.count()).sum();
    let mut lines = Vec::new();
    for one in people.iter().take(names_max) {
        let whats: Vec<&str> =
            one.first.iter().take(WHATS_MAX).map(|one| one.what.as_str()).collect();
        let rest = match one.count().saturating_sub(whats.len() as u64) {
            0 => String::new(),
            rest if whats.is_empty() => format!("{rest} messages"),
            rest => format!(" | and {rest} more"),
        };
        let why = one.first.last().map_or_else(String::new, |one| format!(" [{}]", one.why));
        lines.push(format!("{}: {}{rest}{why}", one.contact, whats.join(" | ")));
    }
    let others = people.len().saturating_sub(names_max);
    if others > 0 {
        lines.push(format!("and {others} more"));
    }
    let head = match (people.len(), count) {
        (1, 1) => "Not reached: ".to_owned(),
        (1, count) => format!("Not reached with {count} messages: "),
        (people, count) => format!("{people} people were not reached with {count} messages:\n"),
    };
    Some(head + &lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dispatch::collapse::tests::{at, raise};

    fn unheard(contact: &str, number: i64, what: &str) -> Unheard {
        let mut message = raise(number, 10);
        message.severity = Severity::Critical;
        message.contact = Some(contact.into());
        message.content.text = what.into();
        Unheard::of(&message, "sms failed: bad_recipient", at(11))
    }

    fn noted(all: &[Unheard]) -> UnreachedContacts {
        let contacts = UnreachedContacts::default();
        all.iter().for_each(|one| contacts.note(one, true, &mut Op::new()));
        contacts
    }

    fn told(contacts: &UnreachedContacts, reader: &str, names_max: usize) -> Option<String> {
        digest(&contacts.take_untold(&mut Op::new()), reader, names_max)
    }

    #[test]
    fn those_who_stand_in_get_one_text_of_all() {
        let text = "kiel freezer 1:\n-10 °C";
        insta::assert_snapshot!(
            told(&noted(&[unheard("ana", 1, text)]), "duty", 10).expect("a text"),
            @"Not reached: ana: kiel freezer 1: -10 °C [sms failed: bad_recipient]"
        );
        let mut all: Vec<Unheard> = (1..=3).map(|number| unheard("ana", number, text)).collect();
        all.push(unheard("ben", 4, &"x".repeat(90)));
        all.extend([unheard("cleo", 5, "y"), unheard("duty", 6, "z")]);
        let contacts = noted(&all);
        insta::assert_snapshot!(told(&contacts, "duty", 2).expect("a text"), @r"
        3 people were not reached with 5 messages:
        ana: kiel freezer 1: -10 °C | kiel freezer 1: -10 °C | and 1 more [sms failed: bad_recipient]
        ben: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx... [sms failed: bad_recipient]
        and 1 more
        ");
        assert_eq!(told(&contacts, "duty", 2), None, "once");
        assert_eq!(contacts.count(), 4, "told is not reached");
        assert_eq!(told(&noted(&[unheard("duty", 6, "z")]), "duty", 2), None);
    }

    /// A report named nobody behind the first thousand messages, all of one contact.
    #[test]
    fn however_many_messages_one_does_not_hear_the_others_are_named() {
        let mut all: Vec<Unheard> = (0..4000).map(|number| unheard("ana", number, "x")).collect();
        all.extend(["ben", "cy", "dan"].map(|name| unheard(name, 9000, "y")));
        insta::assert_snapshot!(told(&noted(&all), "duty", 10).expect("a text"), @r"
        4 people were not reached with 4003 messages:
        ana: x | x | and 3998 more [sms failed: bad_recipient]
        ben: y [sms failed: bad_recipient]
        cy: y [sms failed: bad_recipient]
        dan: y [sms failed: bad_recipient]
        ");
    }

    #[test]
    fn who_has_heard_it_after_all_is_not_called_after() {
        let all: Vec<Unheard> = (0..40).map(|number| unheard("ana", number, "x")).collect();
        let contacts = noted(&all);
        let ana: Arc<str> = "ana".into();
        for (nth, one) in all.iter().enumerate() {
            assert_eq!(contacts.now().len(), usize::from(nth == 0));
            assert!(contacts.heard(&ana, &[one.unheard]).is_some());
        }
        assert_eq!(told(&contacts, "duty", 10), None);
        assert!(contacts.heard(&ana, &[]).is_none() && contacts.untold_since().is_none());
        // One message that nobody heard is told, though another has come through since.
        let contacts = noted(&all[..2]);
        assert!(contacts.heard(&ana, &[all[0].unheard]).is_some());
        assert_eq!(contacts.now(), []);
        assert_eq!(
            told(&contacts, "duty", 10).as_deref(),
            Some("Not reached: ana: x [sms failed: bad_recipient]")
        );
        // Another outage begins anew.
        contacts.note(&unheard("ana", 99, "z"), true, &mut Op::new());
        assert_eq!(contacts.now()[0].messages, 1);
    }

    #[tokio::test]
    async fn a_restart_forgets_nobody_and_takes_over_the_rows_of_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let metrics = crate::telemetry::Metrics::new();
        let store = Store::open(directory.path(), &Default::default(), &metrics).expect("a store");
        let (mut op, contacts) = (Op::new(), UnreachedContacts::default());
        let all: Vec<Unheard> = (0..20).map(|number| unheard("ana", number, "x")).collect();
        all.iter().for_each(|one| contacts.note(one, true, &mut op));
        // One of before, about a message that is still there, and one about one that is not.
        for number in [30, 31] {
            let old = unheard("ben", number, "y");
            let key = [OLD_KEYS, old.unheard.as_uuid().as_bytes()].concat();
            op.put_row(Table::Engine, old.unheard.partition(), &key, &old);
        }
        op.put_new_message(&raise(30, 10));
        store.commit(vec![op]).await.expect("committed");

        let mut op = Op::new();
        let again = UnreachedContacts::load(&store, |id| id == all[3].unheard, &mut op);
        store.commit(vec![op]).await.expect("committed");
        assert_eq!(again.untold_since(), Some(at(11)));
        // Something has reached ana.
        let unreached: Vec<_> = again.now().into_iter().map(|one| one.contact).collect();
        assert_eq!(unreached, ["ben".into()]);
        insta::assert_snapshot!(told(&again, "duty", 10).expect("a text"), @r"
        2 people were not reached with 20 messages:
        ana: x | x | and 17 more [sms failed: bad_recipient]
        ben: y [sms failed: bad_recipient]
        ");
        assert_eq!(store.rows_under::<Unheard>(Table::Engine, OLD_KEYS).count(), 0);
        assert_eq!(again.now()[0].since.since(at(11)), Duration::ZERO);
    }
}
