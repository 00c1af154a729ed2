//! `[[contact]]`: people and machines by name, and where each can be reached.
//!
//! ```toml
//! [[contact]]
//! name     = "ana"
//! push     = "topic:cold-store"       # FCM registration token, or topic:NAME
//! sms      = "+4915550100001"         # E.164
//! whatsapp = "+4915550100001"         # E.164
//! webhook  = "https://hooks.example.org/watchbell"
//! zone     = "Europe/Berlin"
//! quiet    = { from = "22:00", to = "06:00", except = ["critical"] }
//! max      = { count = 20, per = "1h", except = ["critical"] }    # or "20/1h"
//! fallback_after = "30s"              # without success for so long, the next channel sends too
//! ```
//!
//! The order of the channels is the order in which they are tried where nobody says otherwise.
//! No error here repeats an address.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::Config;
use super::calendar::Calendar;
use super::fields::Fields;
use super::quota::Limit;
use crate::clock::Timestamp;
use crate::model::{Address, Channel, Severity, Target};
use crate::problem::{Problem, Step, TomlFile, closest, unknown_key};
use crate::span::Span;

/// One person or machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Its name, as rules call it.
    pub name: Arc<str>,
    /// Where it can be reached, in the order of the file; at most one a channel.
    pub targets: Vec<Target>,
    /// Where it is at home: how the times of its messages are shown.
    pub zone: Option<TimeZone>,
    /// When it is not told.
    pub quiet: Option<Quiet>,
    /// Most messages in a period.
    pub max: Option<Limit>,
    /// How long a warning or critical message may be without success before the next channel sends
    /// too, where its rule does not say; zero for never.
    pub fallback_after: Option<Duration>,
}

/// Quiet hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// When they are.
    pub calendar: Calendar,
    /// What is told all the same.
    pub except: Vec<Severity>,
}

impl Quiet {
    /// When they end, if they are in force for alerts of this severity.
    pub fn until(&self, severity: Severity, now: Timestamp) -> Option<Timestamp> {
        if self.except.contains(&severity) {
            return None;
        }
        self.calendar.until(now)
    }
}

/// The severities by their words.
pub(super) const SEVERITIES: &[(&str, Severity)] = &[
    (Severity::Info.as_str(), Severity::Info),
    (Severity::Warning.as_str(), Severity::Warning),
    (Severity::Critical.as_str(), Severity::Critical),
];

/// Keys of a contact that are no channel.
const OTHER_KEYS: &[&str] = &["name", "zone", "quiet", "max", "fallback_after"];

/// Every contact by name.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    contacts: Vec<Contact>,
    by_name: HashMap<Arc<str>, usize>,
}

/// Why a contact cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// There is no contact of that name.
    #[error("there is no contact `{name}`{}", hint(.near.as_deref()))]
    UnknownContact {
        /// The name that was asked for.
        name: String,
        /// The one that was probably meant.
        near: Option<String>,
    },
    /// It has no address on any of the channels.
    #[error("contact `{name}` has no address for {channels}")]
    NoAddress {
        /// Its name.
        name: String,
        /// The channels that were asked for.
        channels: String,
    },
}

fn hint(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"))
}

impl Directory {
    /// Reads the `[[contact]]` tables of all files. Whatever can be read is in the directory, even
    /// beside problems, so that a rule is not blamed for naming a contact that has one.
    pub fn load(files: &[TomlFile], config: &Config) -> (Self, Vec<Problem>) {
        let mut directory = Self::default();
        let mut problems = Vec::new();
        let mut places: HashMap<Arc<str>, String> = HashMap::new();
        for file in files {
            let Some(tables) = file.table().get("contact") else {
                continue;
            };
            let Some(tables) = tables.as_array() else {
                let what = "contact: write [[contact]] with two brackets, once for each contact";
                problems.push(file.problem(&["contact".into()], what));
                continue;
            };
            for (index, table) in tables.iter().enumerate() {
                let path = [Step::from("contact"), Step::from(index)];
                let mut entry = Entry { file, path: &path, problems: &mut problems };
                let Some(contact) = entry.read(table, index) else {
                    continue;
                };
                if directory.contacts.len() >= config.contacts_max {
                    let what = format!(
                        "more than {} contacts; raise notify.contacts_max",
                        config.contacts_max
                    );
                    problems.push(file.problem(&path, what));
                    return (directory, problems);
                }
                let place = format!("{}:{}", file.name(), file.line(&path));
                if let Some(first) = places.get(&contact.name) {
                    let what = format!(
                        "contact \"{}\": the name is taken by the contact at {first}; choose another",
                        contact.name
                    );
                    problems.push(Problem::new(place, what));
                    continue;
                }
                places.insert(Arc::clone(&contact.name), place);
                directory.add(contact);
            }
        }
        (directory, problems)
    }

    fn add(&mut self, contact: Contact) {
        self.by_name.insert(Arc::clone(&contact.name), self.contacts.len());
        self.contacts.push(contact);
    }

    /// All contacts in the order of the files.
    pub fn contacts(&self) -> &[Contact] {
        &self.contacts
    }

    /// All names.
    pub fn names(&self) -> Vec<Arc<str>> {
        self.contacts.iter().map(|contact| Arc::clone(&contact.name)).collect()
    }

    /// The contact of that name.
    pub fn contact(&self, name: &str) -> Option<&Contact> {
        self.by_name.get(name).and_then(|index| self.contacts.get(*index))
    }

    /// How long a message to the contact may be without success before its next channel sends too,
    /// where rule or contact says. The rule knows what it is about and has the first word; what a
    /// contact says is for what is worth falling back for, not for `info`.
    pub fn fallback_after(
        &self,
        name: &str,
        severity: Severity,
        of_rule: Option<Duration>,
    ) -> Option<Duration> {
        let of_contact =
            || self.contact(name)?.fallback_after.filter(|_| severity > Severity::Info);
        of_rule.or_else(of_contact)
    }

    /// Where to reach `name`: by the channels of `by` that it has, in that order; by all that it
    /// has, in its own order, where `by` is empty. Never empty.
    ///
    /// # Errors
    /// There is no such contact, or it has none of the channels.
    pub fn targets(&self, name: &str, by: &[Channel]) -> Result<Vec<Target>, NoTarget> {
        let contact = self.contact(name).ok_or_else(|| {
            let known: Vec<&str> = self.contacts.iter().map(|c| c.name.as_ref()).collect();
            NoTarget::UnknownContact {
                name: name.to_owned(),
                near: closest(name, &known).map(str::to_owned),
            }
        })?;
        let mut targets: Vec<Target> = Vec::new();
        if by.is_empty() {
            targets.clone_from(&contact.targets);
        }
        for channel in by {
            let found = contact.targets.iter().find(|t| t.channel == *channel);
            if let Some(target) = found
                && !targets.contains(target)
            {
                targets.push(target.clone());
            }
        }
        if targets.is_empty() {
            let asked = if by.is_empty() { Channel::ALL } else { by };
            let words: Vec<&str> = asked.iter().map(|channel| channel.as_str()).collect();
            return Err(NoTarget::NoAddress { name: name.to_owned(), channels: words.join(", ") });
        }
        Ok(targets)
    }
}

/// One `[[contact]]` table while it is read. Not through serde, whose errors repeat the value.
struct Entry<'a> {
    file: &'a TomlFile,
    path: &'a [Step],
    problems: &'a mut Vec<Problem>,
}

impl Entry<'_> {
    fn problem(&mut self, who: &str, key: Option<&str>, what: &str) {
        let mut path = self.path.to_vec();
        let text = match key {
            Some(key) => {
                path.push(key.into());
                format!("{who}: `{key}`: {what}")
            }
            None => format!("{who}: {what}"),
        };
        self.problems.push(self.file.problem(&path, text));
    }

    fn read(&mut self, table: &toml::Value, index: usize) -> Option<Contact> {
        let nameless = format!("contact {}", index + 1);
        let Some(table) = table.as_table() else {
            self.problem(&nameless, None, "write [[contact]], then its keys");
            return None;
        };
        let name = match table.get("name") {
            Some(toml::Value::String(name)) if crate::model::is_name(name) => Some(name.as_str()),
            Some(_) => {
                let what =
                    "expected a name in quotes, of a-z, 0-9, - _ . and at most 64 characters";
                self.problem(&nameless, Some("name"), what);
                None
            }
            None => {
                self.problem(&nameless, None, "`name` is missing; rules call it by its name");
                None
            }
        };
        let who = name.map_or(nameless, |name| format!("contact \"{name}\""));
        let before = self.problems.len();
        let mut targets = Vec::new();
        for (key, value) in table {
            if OTHER_KEYS.contains(&key.as_str()) {
                continue;
            }
            let Ok(channel) = key.parse::<Channel>() else {
                let channels = Channel::ALL.iter().map(|channel| channel.as_str());
                let known: Vec<&str> = OTHER_KEYS.iter().copied().chain(channels).collect();
                self.problem(&who, Some(key), &unknown_key(key, &known));
                continue;
            };
            let address = match value.as_str() {
                Some(text) => address(channel, text),
                None => Err(match channel {
                    Channel::Sms | Channel::Whatsapp => {
                        "expected a phone number in quotes, as \"+4915112345678\"".to_owned()
                    }
                    Channel::Push | Channel::Webhook => "expected text in quotes".to_owned(),
                }),
            };
            match address {
                Ok(address) => targets.push(Target { channel, address }),
                Err(what) => self.problem(&who, Some(key), &what),
            }
        }
        if targets.is_empty() && self.problems.len() == before {
            let what = "it has no address; give it sms, whatsapp, push or webhook";
            self.problem(&who, None, what);
        }
        let mut fields = Fields::new(self.file, self.path, who, table, self.problems);
        let zone = fields.zone("zone");
        let quiet = fields.table("quiet").and_then(|quiet| read_quiet(quiet, zone.as_ref()));
        let max = Limit::read(&mut fields, "max");
        let fallback_after = read_fallback_after(&mut fields);
        Some(Contact { name: name?.into(), targets, zone, quiet, max, fallback_after })
    }
}

/// `0s` is never, and not a slip.
fn read_fallback_after(fields: &mut Fields<'_, '_>) -> Option<Duration> {
    let text = fields.text("fallback_after")?;
    match text.parse::<Span>() {
        Ok(span) if span > super::FALLBACK_AFTER_MAX => {
            fields.problem(Some("fallback_after"), "at most 1d; 0s for never");
            None
        }
        Ok(span) => Some(span.get()),
        Err(error) => {
            fields.problem(Some("fallback_after"), &error.to_string());
            None
        }
    }
}

fn read_quiet(mut fields: Fields<'_, '_>, zone: Option<&TimeZone>) -> Option<Quiet> {
    fields.only(&["days", "from", "to", "zone", "except"]);
    let except = fields.words("except", SEVERITIES);
    Some(Quiet { calendar: Calendar::read(&mut fields, zone, &[])?, except })
}

/// Checks an address for its channel. The error never repeats it.
///
/// # Errors
/// What is wrong, and how it is written.
pub fn address(channel: Channel, text: &str) -> Result<Address, String> {
    match channel {
        Channel::Sms | Channel::Whatsapp => text
            .parse()
            .map(Address::Phone)
            .map_err(|error: crate::model::BadNumber| error.to_string()),
        Channel::Push => token(text).map(|()| Address::Token(text.into())),
        Channel::Webhook => url(text).map(|()| Address::Url(text.into())),
    }
}

fn token(text: &str) -> Result<(), String> {
    if let Some(topic) = text.strip_prefix("topic:") {
        // FCM: topic names match [a-zA-Z0-9-_.~%]+.
        let good = (1..=900).contains(&topic.len())
            && topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.~%".contains(&byte));
        return if good {
            Ok(())
        } else {
            Err("a push topic is written topic:NAME, with a-z, A-Z, 0-9 and -_.~%".to_owned())
        };
    }
    let good = (1..=4096).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if good {
        Ok(())
    } else {
        Err("not a push address; write the app's registration token without spaces, or topic:NAME"
            .to_owned())
    }
}

fn url(text: &str) -> Result<(), String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next());
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        return Err("not a URL; write https:// (or http://), a host and a path".to_owned());
    };
    if host.contains('@') {
        return Err(
            "a URL must not hold a user or password; the webhook is signed instead".to_owned()
        );
    }
    if text.len() > 2048 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(
            "a URL has at most 2048 characters, all printable ASCII; percent-encode the others"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> (Directory, Vec<String>) {
        let file = TomlFile::parse("rules/contacts.toml", text).expect("TOML");
        let (directory, problems) = Directory::load(&[file], &Config::default());
        (directory, problems.iter().map(ToString::to_string).collect())
    }

    const ANA: &str = r#"
        [[contact]]
        name = "ana"
        push = "topic:cold-store"
        sms  = "+4915550100001"
    "#;

    #[test]
    fn a_contact_is_reached_in_the_order_asked_for_or_its_own() {
        let (directory, problems) = load(ANA);
        assert_eq!(problems, [""; 0]);
        let by = |by: &[Channel]| -> Vec<Channel> {
            let targets = directory.targets("ana", by).expect("reachable");
            targets.iter().map(|target| target.channel).collect()
        };
        assert_eq!(by(&[]), [Channel::Push, Channel::Sms]);
        assert_eq!(by(&[Channel::Sms, Channel::Push]), [Channel::Sms, Channel::Push]);
        assert_eq!(by(&[Channel::Webhook, Channel::Sms, Channel::Sms]), [Channel::Sms]);
    }

    #[test]
    fn who_cannot_be_reached_is_named() {
        let (directory, _) = load(ANA);
        let error =
            |name: &str, by: &[Channel]| directory.targets(name, by).expect_err(name).to_string();
        assert_eq!(error("anna", &[]), "there is no contact `anna`; did you mean `ana`?");
        assert_eq!(error("x", &[]), "there is no contact `x`");
        assert_eq!(
            error("ana", &[Channel::Whatsapp, Channel::Webhook]),
            "contact `ana` has no address for whatsapp, webhook"
        );
    }

    #[test]
    fn every_problem_at_once_and_no_number_in_any() {
        let (directory, problems) = load(
            r#"
[[contact]]
name = "ana"
sms = "0151 1234567"
whatsap = "+4915112345678"

[[contact]]
sms = 4915112345678

[[contact]]
name = "ana"
sms = "+4915112345678"

[[contact]]
name = "Ben"
webhook = "ftp://example.org"

[[contact]]
name = "cleo"

[[contact]]
name = "dora"
push = "topic:a b"
webhook = "https://user:secret@example.org/"
"#,
        );
        insta::assert_snapshot!(problems.join("\n"), @r#"
        rules/contacts.toml:4: contact "ana": `sms`: not a phone number in E.164 form; write + and country code, 7 to 15 digits, no spaces: +4915112345678
        rules/contacts.toml:5: contact "ana": `whatsap`: unknown key; did you mean `whatsapp`?
        rules/contacts.toml:7: contact 2: `name` is missing; rules call it by its name
        rules/contacts.toml:8: contact 2: `sms`: expected a phone number in quotes, as "+4915112345678"
        rules/contacts.toml:10: contact "ana": the name is taken by the contact at rules/contacts.toml:2; choose another
        rules/contacts.toml:15: contact 4: `name`: expected a name in quotes, of a-z, 0-9, - _ . and at most 64 characters
        rules/contacts.toml:16: contact 4: `webhook`: not a URL; write https:// (or http://), a host and a path
        rules/contacts.toml:18: contact "cleo": it has no address; give it sms, whatsapp, push or webhook
        rules/contacts.toml:23: contact "dora": `push`: a push topic is written topic:NAME, with a-z, A-Z, 0-9 and -_.~%
        rules/contacts.toml:24: contact "dora": `webhook`: a URL must not hold a user or password; the webhook is signed instead
        "#);
        assert_eq!(directory.contacts().len(), 3);
        assert!(!problems.join("\n").contains("1234567 "));
        let (_, problems) = load("[contact]\nname = 'ana'");
        insta::assert_snapshot!(problems.join("\n"), @r#"rules/contacts.toml:1: contact: write [[contact]] with two brackets, once for each contact"#);
    }
}
