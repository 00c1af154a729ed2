//! `[config:SERVICE]` -> contacts and providers, and what a section's `targets` mean.
//!
//! Twilio is the one service of mqttwarn's that Watchbell speaks to itself. Everything else has an API
//! of its own, to which a signed webhook is not the same; it is said what to do instead. Secrets leave
//! as references: never is the text of one kept.

use std::collections::BTreeSet;

use super::ini::{Ini, Section};
use super::literal::{self, Literal, Source};
use super::report::Part;
use super::toml_text;
use crate::model::Channel;
use crate::notify::contact::address;

/// What a module of mqttwarn's does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Module {
    Twilio,
    /// Keeps a record, as the log and the outbox do.
    Record,
    /// Tells people by an API of its own.
    Api,
    /// Runs a program.
    Program,
    Mail,
    Mqtt,
    /// Stores, forwards or shows readings.
    Data,
    Unknown,
}

impl Module {
    fn of(name: &str) -> Self {
        match name {
            "twilio" => Self::Twilio,
            "log" | "file" | "noop" => Self::Record,
            "smtp" => Self::Mail,
            "mqtt" | "mqtt_filter" | "mqttpub" => Self::Mqtt,
            "execute" | "pipe" | "ssh" => Self::Program,
            "alexa-notify-me" | "apns" | "apprise" | "apprise_single" | "apprise_multi"
            | "asterisk" | "autoremote" | "fbchat" | "freeswitch" | "hangbot" | "http"
            | "http_urllib" | "icinga2" | "ifttt" | "ionic" | "irccat" | "mattermost" | "ntfy"
            | "prowl" | "pushbullet" | "pushover" | "pushsafer" | "slack" | "slixmpp"
            | "telegram" | "tootpaste" | "twitter" | "websocket" | "xmpp" => Self::Api,
            "amqp" | "azure_iot" | "carbon" | "celery" | "chromecast" | "dbus"
            | "desktopnotify" | "dnsupdate" | "emoncms" | "gss2" | "influxdb" | "linuxnotify"
            | "mysql" | "mysql_dynamic" | "mysql_remap" | "mythtv" | "nntp" | "nsca" | "osxsay"
            | "pastebinpub" | "postgres" | "redispub" | "rrdtool" | "serial" | "sqlite"
            | "sqlite_json2cols" | "sqlite_timestamp" | "syslog" | "thingspeak" | "xbmc"
            | "zabbix" => Self::Data,
            _ => Self::Unknown,
        }
    }
}

/// Who is reached by a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// This contact.
    Contact(String),
    /// Nobody: it is on record, which it is here anyway.
    Record,
    /// Nobody here, and why.
    Nobody(String),
}

/// One `[config:...]`.
#[derive(Debug)]
struct Service {
    name: String,
    targets: Vec<(String, Reach)>,
    /// What is true of each of its targets; `None` where they differ.
    all: Option<Reach>,
    launched: bool,
}

/// A Twilio sender, and where its secret is.
#[derive(Clone, Debug, PartialEq)]
struct Account {
    sid: String,
    token: Source,
    from: String,
}

/// A secret that stood in the file.
#[derive(Debug)]
pub(super) struct Secret {
    /// Where Watchbell will look for it.
    pub(super) path: String,
}

/// Services by name, with what they come to.
#[derive(Debug, Default)]
pub(super) struct Services {
    services: Vec<Service>,
    accounts: Vec<Account>,
    /// Names and numbers.
    contacts: Vec<(String, String)>,
    names: BTreeSet<String>,
}

/// A name as Watchbell takes it, not yet in `taken`.
pub(super) fn name(text: &str, taken: &mut BTreeSet<String>) -> String {
    let mut slug = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c) {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= 56 {
            break;
        }
    }
    let slug = slug.trim_end_matches('-');
    let slug = if slug.is_empty() { "mqttwarn" } else { slug };
    let mut name = slug.to_owned();
    for number in 2.. {
        if taken.insert(name.clone()) {
            break;
        }
        name = format!("{slug}-{number}");
    }
    name
}

/// A target as it is shown: what has no name's length or look may be an address or a secret, in a file
/// that is put together wrongly.
pub(super) fn shown(target: &str) -> &str {
    let is_name = target.len() <= 64
        && target.chars().all(|c| c.is_alphanumeric() || "_-.:{}/+#[] ".contains(c));
    if is_name { target } else { "…" }
}

impl Services {
    /// Reads every `[config:...]`, and says what became of each.
    pub(super) fn read(ini: &Ini, parts: &mut Vec<Part>) -> Self {
        let mut services = Self::default();
        let launch = ini.section("defaults").and_then(|defaults| defaults.text("launch"));
        let launch: Option<Vec<&str>> = launch.map(|list| list.split(',').map(str::trim).collect());
        for section in &ini.sections {
            let Some(name) = section.name.strip_prefix("config:") else { continue };
            let mut part = Part::new(section.line, &format!("[{}]", section.name));
            let launched = launch.as_ref().is_none_or(|launch| launch.contains(&name));
            if !launched {
                part.done("is not in `launch`, so mqttwarn does not use it");
            }
            let service = services.service(name, section, launched, &mut part);
            services.services.push(service);
            parts.push(part);
        }
        services
    }

    fn service(
        &mut self,
        name: &str,
        section: &Section,
        launched: bool,
        part: &mut Part,
    ) -> Service {
        let module = section.text("module").map_or(Literal::Text(name.to_owned()), literal::value);
        let module = module.text().unwrap_or(name).to_owned();
        let targets = section.text("targets").and_then(literal::parse);
        let pairs: Vec<(String, Literal)> = match &targets {
            Some(Literal::Dict(pairs)) => pairs
                .iter()
                .filter_map(|(key, value)| Some((key.plain()?.to_owned(), value.clone())))
                .collect(),
            _ => Vec::new(),
        };
        if let (Some(entry), true) = (section.entry("targets"), pairs.is_empty()) {
            part.hand(format!(
                "line {}: `targets` is no dict of targets as Python writes it, {{'name': [...]}}; mqttwarn finds none there",
                entry.line
            ));
        }
        let kind = Module::of(&module);
        let mut service =
            Service { name: name.to_owned(), targets: Vec::new(), all: None, launched };
        if kind == Module::Twilio {
            for (target, value) in pairs {
                let reach = self.twilio(name, &target, &value, launched, part);
                service.targets.push((target, reach));
            }
            return service;
        }
        let reach = other(kind, &module, launched, part);
        service.targets = pairs.into_iter().map(|(target, _)| (target, reach.clone())).collect();
        service.all = Some(reach);
        service
    }

    fn twilio(
        &mut self,
        service: &str,
        target: &str,
        value: &Literal,
        launched: bool,
        part: &mut Part,
    ) -> Reach {
        let mut nobody = |why: String| {
            part.hand(format!("target `{}`: {why}", shown(target)));
            Reach::Nobody(why)
        };
        let fields: Option<Vec<&str>> = match value {
            Literal::List(items) => items.iter().map(Literal::plain).collect(),
            _ => None,
        };
        let Some([sid, token, from, to]) = fields.as_deref() else {
            return nobody("is no list of account SID, auth token, from and to".to_owned());
        };
        for (what, text) in [("account SID", sid), ("`from`", from), ("`to`", to)] {
            if !matches!(Source::of(text), Source::Clear(_)) {
                return nobody(format!(
                    "{what} is not in this file; write [[provider]] and [[contact]] with it"
                ));
            }
        }
        if to.starts_with("whatsapp:") || from.starts_with("whatsapp:") {
            return nobody("goes by Twilio's WhatsApp; write `whatsapp = \"+...\"` for the contact and add a provider of kind whatsapp-cloud".to_owned());
        }
        let number: String = to.chars().filter(|c| !" -()".contains(*c)).collect();
        if address(Channel::Sms, &number).is_err() {
            return nobody(
                "`to` is no number as +4915112345678; write [[contact]] with it".to_owned(),
            );
        }
        let token = Source::of(token);
        if token == Source::Mixed {
            return nobody(
                "the auth token is put together of several; put it whole into a file or variable"
                    .to_owned(),
            );
        }
        if !launched {
            return Reach::Nobody(format!("{service} is not in `launch`"));
        }
        let account = Account { sid: (*sid).to_owned(), token, from: (*from).to_owned() };
        self.account(account, part);
        let contact = name(&format!("{service}-{target}"), &mut self.names);
        part.done(format!("target `{}`: contact \"{contact}\", sms", shown(target)));
        self.contacts.push((contact.clone(), number));
        Reach::Contact(contact)
    }

    /// Which sender goes with which number cannot be said: a channel has its providers, in order.
    fn account(&mut self, account: Account, part: &mut Part) {
        if self.accounts.contains(&account) {
            return;
        }
        let number = self.accounts.len();
        let name = account_name(number);
        if let Source::Clear(_) = account.token {
            let Secret { path } = secret(&name, "auth-token");
            part.hand(format!(
                "put the auth token of line {} into {path}, readable for Watchbell alone",
                part.line
            ));
        }
        if number == 0 {
            part.done(format!("provider \"{name}\""));
        } else {
            part.hand(format!(
                "provider \"{name}\" is another account or sender; Watchbell sends all SMS by \"{}\": see [channel.sms]",
                account_name(0)
            ));
        }
        self.accounts.push(account);
    }

    /// Who is reached by `service` or `service:target`.
    ///
    /// # Errors
    /// There is no such thing.
    pub(super) fn reach(&self, target: &str) -> Result<Vec<Reach>, String> {
        let (service, target) = match target.split_once(':') {
            Some((service, target)) => (service, Some(target)),
            None => (target, None),
        };
        let Some(service) = self.services.iter().find(|known| known.name == service) else {
            return Err(format!(
                "there is no [config:{}], so mqttwarn tells nobody",
                shown(service)
            ));
        };
        if !service.launched {
            return Err(format!("{} is not in `launch`, so mqttwarn tells nobody", service.name));
        }
        let Some(target) = target else {
            let all: Vec<Reach> = service.targets.iter().map(|(_, reach)| reach.clone()).collect();
            return match (&service.all, all.is_empty()) {
                (Some(reach), true) => Ok(vec![reach.clone()]),
                (None, true) => Err(format!("[config:{}] has no targets", service.name)),
                (_, false) => Ok(all),
            };
        };
        match service.targets.iter().find(|(name, _)| name == target) {
            Some((_, reach)) => Ok(vec![reach.clone()]),
            None => Err(format!(
                "[config:{}] has no target `{}`, so mqttwarn tells nobody",
                service.name,
                shown(target)
            )),
        }
    }

    /// The `[[contact]]` tables.
    pub(super) fn contact_tables(&self) -> String {
        let table = |(name, number): &(String, String)| {
            format!("[[contact]]\nname = {}\nsms = {}\n", toml_text(name), toml_text(number))
        };
        self.contacts.iter().map(table).collect::<Vec<_>>().join("\n")
    }

    /// The `[[provider]]` tables; with `secrets` false, something stands in their place, to be
    /// checked where the secrets are not.
    pub(super) fn provider_tables(&self, secrets: bool) -> String {
        let mut tables = String::new();
        for (number, account) in self.accounts.iter().enumerate() {
            let name = account_name(number);
            let token = if secrets {
                reference(&account.token, &secret(&name, "auth-token"))
            } else {
                toml_text("x")
            };
            tables.push_str(&format!(
                "\n[[provider]]\nname = {}\nkind = \"twilio\"\naccount_sid = {}\nauth_token = {token}\nfrom = {}\n",
                toml_text(&name),
                toml_text(&account.sid),
                toml_text(&account.from)
            ));
        }
        if self.accounts.len() > 1 {
            tables.push_str(&format!(
                "\n# mqttwarn chose the sender by the target. The first sends all; add others for failover.\n[channel.sms]\nproviders = [{}]\n",
                toml_text(&account_name(0))
            ));
        }
        tables
    }
}

fn account_name(number: usize) -> String {
    match number {
        0 => "twilio".to_owned(),
        number => format!("twilio-{}", number + 1),
    }
}

/// Where a secret is put that stood in the file.
pub(super) fn secret(owner: &str, what: &str) -> Secret {
    Secret { path: format!("secrets/{owner}-{what}") }
}

/// A secret as `watchbell.toml` says it.
pub(super) fn reference(source: &Source, secret: &Secret) -> String {
    match source {
        Source::Env(name) => format!("{{ env = {} }}", toml_text(name)),
        Source::File(path) => format!("{{ file = {} }}", toml_text(path)),
        Source::Clear(_) | Source::Mixed => format!("{{ file = {} }}", toml_text(&secret.path)),
    }
}

/// A service that Watchbell does not speak to.
fn other(kind: Module, module: &str, launched: bool, part: &mut Part) -> Reach {
    let (outcome, why): (fn(&mut Part, String), String) = match kind {
        Module::Record => {
            part.done("nothing needed: alerts are in the outbox, in the log and on the console");
            return Reach::Record;
        }
        Module::Twilio | Module::Api => (
            Part::hand,
            format!("Watchbell does not speak {module}; give a contact a `webhook` and let a small adapter call {module} (examples/webhook_receiver.rs), or use sms, whatsapp or push"),
        ),
        Module::Program => (
            Part::hand,
            format!("Watchbell runs no programs ({module}); give a contact a `webhook` and let a small adapter run it (examples/webhook_receiver.rs)"),
        ),
        Module::Unknown => (
            Part::hand,
            format!("`{module}` is no module of mqttwarn's own; give a contact a `webhook` and let a small adapter do what it does (examples/webhook_receiver.rs)"),
        ),
        Module::Mail => (Part::cannot, "not yet: e-mail".to_owned()),
        Module::Mqtt => (
            Part::cannot,
            "not yet: a rule that publishes; `publish` of [[upstream]] passes topics on as they are".to_owned(),
        ),
        Module::Data => (
            Part::cannot,
            format!("{module} keeps or shows readings, and Watchbell tells people; leave it to mqttwarn or another client of the broker"),
        ),
    };
    if launched {
        outcome(part, why);
    }
    Reach::Nobody(module.to_owned())
}
