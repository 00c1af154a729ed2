//! `[defaults]` -> `[[upstream]]`: the broker that mqttwarn listened to is listened to.

use super::ini::{Ini, Section};
use super::literal::{self, Literal, Source};
use super::report::Part;
use super::services::{reference, secret};
use super::toml_text;
use crate::topic::{TopicFilter, TopicLimits};

/// What the upstream is called.
pub(super) const NAME: &str = "mqttwarn";

/// Most filters of one upstream.
const FILTERS_MAX: usize = 100;

/// The broker of `[defaults]`.
#[derive(Debug)]
pub(super) struct Broker {
    url: String,
    /// The port, where it is one of this machine.
    local_port: Option<u16>,
    user: Option<String>,
    password: Option<Source>,
    /// CA, certificate and key; with TLS only.
    tls: Option<[Option<String>; 3]>,
    version: &'static str,
    clean_session: bool,
    /// Whether retained messages raise nothing.
    pub(super) skips_retained: bool,
    /// Written as comments: something in it is not known.
    is_known: bool,
}

/// Keys that need nothing here.
const NEEDLESS: &[&str] = &[
    "logformat",
    "logfile",
    "loglevel",
    "filteredmessagesloglevel",
    "launch",
    "num_workers",
    "clientid",
    "hostname",
    "port",
    "username",
    "password",
    "skipretained",
    "cleansession",
    "protocol",
    "tls",
    "ca_certs",
    "certfile",
    "keyfile",
    "tls_version",
    "tls_insecure",
    "functions",
    "lwt",
    "lwt_alive",
    "lwt_dead",
    "status_publish",
    "status_topic",
];

struct Reader<'a> {
    section: Option<&'a Section>,
    part: Part,
    is_known: bool,
}

impl Reader<'_> {
    fn value(&self, key: &str) -> Option<Literal> {
        let text = self.section?.text(key)?;
        Some(literal::value(text)).filter(|value| *value != Literal::None)
    }

    fn is_true(&self, key: &str) -> bool {
        self.value(key).is_some_and(|value| value.is_true())
    }

    /// A text that has to stand in the file, because Watchbell's key takes no reference.
    fn clear(&mut self, key: &str) -> Option<String> {
        let value = self.value(key)?;
        let Source::Clear(text) = Source::of(value.plain().unwrap_or_default()) else {
            self.part.hand(format!(
                "`{key}` is not in this file; write it into [[upstream]] and take the # away"
            ));
            self.is_known = false;
            return Some("?".to_owned());
        };
        Some(text)
    }
}

impl Broker {
    /// Reads `[defaults]`, and says what became of it.
    pub(super) fn read(ini: &Ini, parts: &mut Vec<Part>) -> Self {
        let section = ini.section("defaults");
        let part = match section {
            Some(section) => Part::new(section.line, "[defaults]"),
            None => Part::new(1, "[defaults], which is not there"),
        };
        let mut reader = Reader { section, part, is_known: true };
        let broker = Self::from(&mut reader);
        if section.is_none() {
            reader.part.done("mqttwarn's own: the broker of this machine");
        }
        parts.push(reader.part);
        broker
    }

    fn from(reader: &mut Reader<'_>) -> Self {
        let host = reader.clear("hostname").unwrap_or_else(|| "localhost".to_owned());
        let port = reader.clear("port").unwrap_or_else(|| "1883".to_owned());
        let has_tls = reader.is_true("tls") || reader.value("ca_certs").is_some();
        let scheme = if has_tls { "mqtts" } else { "mqtt" };
        let url = match host.contains(':') {
            true => format!("{scheme}://[{host}]:{port}"),
            false => format!("{scheme}://{host}:{port}"),
        };
        let is_local = matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1");
        let tls = has_tls.then(|| {
            let files = ["ca_certs", "certfile", "keyfile"].map(|key| reader.clear(key));
            if files[0].is_none() {
                reader
                    .part
                    .hand("there is no `ca_certs`; name the broker's CA as `ca` of [[upstream]]");
            }
            files
        });
        if reader.is_true("tls_insecure") {
            reader.part.hand("`tls_insecure`: Watchbell verifies the broker's certificate always; it needs one of its CA and with its host name");
        }
        let user = reader.clear("username").filter(|_| reader.value("username").is_some());
        let password =
            reader.value("password").map(|value| Source::of(value.plain().unwrap_or_default()));
        match &password {
            Some(Source::Clear(_)) => {
                let path = secret(NAME, "password").path;
                reader
                    .part
                    .hand(format!("put `password` into {path}, readable for Watchbell alone"));
            }
            Some(Source::Mixed) => {
                let path = secret(NAME, "password").path;
                reader.part.hand(format!(
                    "`password` is put together of several; put it whole into {path}"
                ));
            }
            Some(Source::Env(_) | Source::File(_)) | None => {}
        }
        if !has_tls && !is_local {
            reader.part.done("`allow_plain`: without TLS, as before: password and readings can be read on the way");
        }
        let version = match reader.value("protocol").as_ref().and_then(Literal::plain) {
            Some("5") => "5.0",
            _ => "3.1.1",
        };
        let what = if reader.is_known { "[[upstream]]" } else { "[[upstream]], commented out," };
        reader
            .part
            .done(format!("{what} \"{NAME}\", with a client id of its own, so that both can run"));
        Self::notes(reader);
        Self {
            url,
            local_port: port.parse().ok().filter(|_| is_local),
            user,
            password,
            tls,
            version,
            clean_session: reader.is_true("cleansession"),
            skips_retained: reader.is_true("skipretained"),
            is_known: reader.is_known,
        }
    }

    fn notes(reader: &mut Reader<'_>) {
        for (key, what) in [
            ("functions", "functions are Python and are not read; what uses one is below"),
            ("lwt", "`lwt` is not published; whether Watchbell runs is asked of /readyz"),
            (
                "status_publish",
                "`status_publish` is not there; `watchbell status` and /metrics have it",
            ),
        ] {
            if reader.value(key).is_some() {
                reader.part.done(what);
            }
        }
        let Some(section) = reader.section else { return };
        let unknown =
            section.entries.iter().filter(|entry| !NEEDLESS.contains(&entry.key.as_str()));
        for entry in unknown {
            reader.part.done(format!("line {}: `{}` was left out", entry.line, entry.key));
        }
    }

    /// The `[broker]` and `[[upstream]]` tables, for these filters. With `secrets` false without
    /// what is looked for on this machine's disk: to be checked where it is not.
    pub(super) fn tables(&self, topics: &[String], secrets: bool) -> String {
        let mut text = String::new();
        // Watchbell has a listener of its own, at the same ports.
        let own = match self.local_port {
            Some(1883) => Some(("listen", "127.0.0.1:1884")),
            Some(8883) => Some(("listen_tls", "0.0.0.0:8884")),
            _ => None,
        };
        if let Some((key, address)) = own {
            text.push_str("\n# The broker of this machine has the usual port.\n[broker]\n");
            text.push_str(&format!("{key} = {}\n", toml_text(address)));
        }
        let filters = essential(topics);
        let chunks = filters.chunks(FILTERS_MAX);
        let tables: Vec<String> =
            chunks.enumerate().map(|(n, filters)| self.table(n, filters, secrets)).collect();
        if tables.is_empty() {
            text.push_str("\n# No section has a topic, so there is nothing to listen to.\n");
        }
        for table in tables {
            text.push('\n');
            if self.is_known {
                text.push_str(&table);
            } else if secrets {
                text.push_str(&super::commented(&table));
            }
        }
        text
    }

    fn table(&self, number: usize, filters: &[&str], secrets: bool) -> String {
        let name = match number {
            0 => NAME.to_owned(),
            number => format!("{NAME}-{}", number + 1),
        };
        let url = if secrets { self.url.clone() } else { self.url.replace("mqtts://", "mqtt://") };
        let mut text =
            format!("[[upstream]]\nname = {}\nurl = [{}]\n", toml_text(&name), toml_text(&url));
        let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
        line("version", toml_text(self.version));
        if let Some(user) = &self.user {
            line("user", toml_text(user));
        }
        match &self.password {
            Some(source) if secrets => {
                line("password", reference(source, &secret(NAME, "password")))
            }
            Some(_) => line("password", toml_text("x")),
            None => {}
        }
        match &self.tls {
            Some([ca, cert, key]) if secrets => {
                line("ca", toml_text(ca.as_deref().unwrap_or("secrets/mqttwarn-ca.pem")));
                for (name, file) in [("cert", cert), ("key", key)] {
                    if let Some(file) = file {
                        line(name, toml_text(file));
                    }
                }
            }
            Some(_) => line("allow_plain", "true".to_owned()),
            None if self.local_port.is_none() => line("allow_plain", "true".to_owned()),
            None => {}
        }
        if self.clean_session {
            line("clean_session", "true".to_owned());
        }
        let filters: Vec<String> = filters.iter().map(|filter| toml_text(filter)).collect();
        line("subscribe", format!("[{}]", filters.join(", ")));
        text
    }
}

/// The filters without those that another one covers: a broker may send twice what two match.
fn essential(topics: &[String]) -> Vec<&str> {
    let mut kept: Vec<&str> = Vec::new();
    for topic in topics {
        let ours = topic.starts_with("$watchbell/");
        if ours || TopicFilter::parse(topic, TopicLimits::default()).is_err() {
            continue;
        }
        if !kept.iter().any(|wide| covers(wide, topic)) {
            kept.retain(|narrow| !covers(topic, narrow));
            kept.push(topic);
        }
    }
    kept
}

/// Whether `wide` matches all that `narrow` matches.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    let (mut wide, mut narrow) = (wide.split('/'), narrow.split('/'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(one), Some(other)) if one == other => {}
            _ => return false,
        }
    }
}

/// Whether there is a topic that both match.
pub(super) fn meet(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_cover_and_meet() {
        for (wide, narrow, expected) in [
            ("a/#", "a", true),
            ("a/#", "a/+/b", true),
            ("a/+", "a/b", true),
            ("a/+", "a/#", false),
            ("#", "$SYS/x", false),
            ("a/b", "a/+", false),
            ("+/b", "a/#", false),
        ] {
            assert_eq!(covers(wide, narrow), expected, "{wide} {narrow}");
        }
        for (one, other, expected) in
            [("a/+", "+/b", true), ("a/#", "a", true), ("a/b", "a/c", false), ("a/+", "a", false)]
        {
            assert_eq!(meet(one, other), expected, "{one} {other}");
            assert_eq!(meet(other, one), expected, "{other} {one}");
        }
    }
}
