//! Who may publish and subscribe where: the `[[access]]` entries, and what they grant a client.
//!
//! Pure: no sockets, no clocks. The first entry whose `who` fits decides; `deny` wins over both
//! lists. Where no entry fits, an authenticated client has its own `devices/{client_id}/#` and
//! nothing else, and an anonymous one (only loopback peers can be anonymous) has everything.
//!
//! Invariant: a placeholder never widens a pattern. If a value that would be filled in holds a
//! level separator or a wildcard, the whole entry grants nothing.

use serde::Deserialize;

use crate::topic::{FilterLevel, TopicFilter, TopicLimits, TopicName};

/// One `[[access]]` entry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessEntry {
    /// Whom it is about. Exactly what is named must fit; at least one key is needed.
    pub who: Who,
    /// Topic filters that may be published to; `{client_id}` and `{identity}` are filled in.
    pub publish: Vec<String>,
    /// Topic filters that may be subscribed to, with the same placeholders.
    pub subscribe: Vec<String>,
    /// Topic filters that are neither published to, nor subscribed to, nor delivered.
    pub deny: Vec<String>,
}

/// Whom an entry is about. In texts, `*` stands for any characters.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Who {
    /// The MQTT client id.
    pub client_id: Option<String>,
    /// The name in the client certificate.
    pub identity: Option<String>,
    /// The user name.
    pub user: Option<String>,
    /// Everyone, anonymous loopback clients included.
    pub anyone: bool,
}

impl AccessEntry {
    /// What is wrong with the entry; empty if nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let named = [&self.who.client_id, &self.who.identity, &self.who.user];
        if !self.who.anyone && named.iter().all(|text| text.is_none()) {
            problems.push(
                "who: names nobody; write client_id, identity, user, or anyone = true".to_owned(),
            );
        }
        if self.who.anyone && named.iter().any(|text| text.is_some()) {
            problems.push("who: `anyone = true` and a name; keep the one that is meant".to_owned());
        }
        if named.iter().any(|text| text.as_deref() == Some("")) {
            problems.push("who: an empty text fits nobody; `*` fits all".to_owned());
        }
        for (list, patterns) in
            [("publish", &self.publish), ("subscribe", &self.subscribe), ("deny", &self.deny)]
        {
            for pattern in patterns {
                if let Err(error) = expand(pattern, "x", Some("x")) {
                    problems.push(format!("{list}: `{pattern}`: {error}"));
                }
            }
        }
        problems
    }

    fn fits(&self, client: &Client<'_>) -> bool {
        let text_fits = |glob: &Option<String>, text: Option<&str>| match (glob, text) {
            (None, _) => true,
            (Some(glob), Some(text)) => glob_matches(glob, text),
            (Some(_), None) => false,
        };
        let named =
            self.who.client_id.is_some() || self.who.identity.is_some() || self.who.user.is_some();
        (self.who.anyone || named)
            && text_fits(&self.who.client_id, Some(client.client_id))
            && text_fits(&self.who.identity, client.identity)
            && text_fits(&self.who.user, client.user)
    }
}

/// What is known of a client when its rights are looked up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    /// Its MQTT client id.
    pub(crate) client_id: &'a str,
    /// The name in its certificate.
    pub(crate) identity: Option<&'a str>,
    /// Its user name.
    pub(crate) user: Option<&'a str>,
}

impl<'a> Client<'a> {
    fn name(&self) -> Option<&'a str> {
        self.identity.or(self.user)
    }
}

/// What one client may do.
#[derive(Debug)]
pub(crate) struct Grants {
    publish: Allowed,
    subscribe: Allowed,
    deny: Vec<TopicFilter>,
}

#[derive(Debug)]
enum Allowed {
    All,
    Only(Vec<TopicFilter>),
}

impl Grants {
    /// The rights of `client`. Also the placeholders that could not be filled in, for the log.
    pub(crate) fn of(client: &Client<'_>, entries: &[AccessEntry]) -> (Self, Option<String>) {
        match entries.iter().find(|entry| entry.fits(client)) {
            Some(entry) => match Self::from_entry(client, entry) {
                Ok(grants) => (grants, None),
                Err(problem) => (Self::nothing(), Some(problem)),
            },
            None if client.name().is_none() => (Self::everything(), None),
            None => {
                let own = AccessEntry {
                    publish: vec!["devices/{client_id}/#".to_owned()],
                    subscribe: vec!["devices/{client_id}/#".to_owned()],
                    ..AccessEntry::default()
                };
                match Self::from_entry(client, &own) {
                    Ok(grants) => (grants, None),
                    Err(problem) => (Self::nothing(), Some(problem)),
                }
            }
        }
    }

    fn from_entry(client: &Client<'_>, entry: &AccessEntry) -> Result<Self, String> {
        let expand_all = |patterns: &[String]| {
            patterns
                .iter()
                .map(|pattern| {
                    expand(pattern, client.client_id, client.name())
                        .map_err(|error| format!("`{pattern}`: {error}"))
                })
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            publish: Allowed::Only(expand_all(&entry.publish)?),
            subscribe: Allowed::Only(expand_all(&entry.subscribe)?),
            deny: expand_all(&entry.deny)?,
        })
    }

    fn everything() -> Self {
        Self { publish: Allowed::All, subscribe: Allowed::All, deny: Vec::new() }
    }

    fn nothing() -> Self {
        Self {
            publish: Allowed::Only(Vec::new()),
            subscribe: Allowed::Only(Vec::new()),
            deny: Vec::new(),
        }
    }

    /// Whether it may publish to `topic`.
    pub(crate) fn may_publish(&self, topic: &TopicName) -> bool {
        let allowed = match &self.publish {
            Allowed::All => true,
            Allowed::Only(filters) => filters.iter().any(|filter| filter.matches(topic)),
        };
        allowed && !self.deny.iter().any(|filter| filter.matches(topic))
    }

    /// Whether it may subscribe to `filter`: one allowed pattern covers all of it, and no denied
    /// one does. What is denied within it is held back when it is delivered.
    pub(crate) fn may_subscribe(&self, filter: &TopicFilter) -> bool {
        let allowed = match &self.subscribe {
            Allowed::All => true,
            Allowed::Only(filters) => filters.iter().any(|wide| covers(wide, filter)),
        };
        allowed && !self.deny.iter().any(|wide| covers(wide, filter))
    }

    /// The denied patterns, for the delivery.
    pub(crate) fn deny(&self) -> &[TopicFilter] {
        &self.deny
    }
}

/// Fills in the placeholders of `pattern` and checks what comes out.
fn expand(pattern: &str, client_id: &str, name: Option<&str>) -> Result<TopicFilter, String> {
    let mut text = String::with_capacity(pattern.len() + client_id.len());
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let (placeholder, after) = after
            .split_once('}')
            .ok_or("`{` without `}`; placeholders are {client_id} and {identity}")?;
        let value = match placeholder {
            "client_id" => client_id,
            "identity" => name.ok_or("an anonymous client has no {identity}")?,
            _ => {
                return Err(format!(
                    "unknown placeholder {{{placeholder}}}; there are {{client_id}} and {{identity}}"
                ));
            }
        };
        if value.is_empty() || value.contains(['/', '+', '#']) {
            return Err(format!(
                "the client's value for {{{placeholder}}} is no single topic level"
            ));
        }
        text.push_str(value);
        rest = after;
    }
    text.push_str(rest);
    TopicFilter::parse(&text, TopicLimits::default()).map_err(|error| error.to_string())
}

/// Whether `wide` matches every topic that `narrow` matches.
pub(crate) fn covers(wide: &TopicFilter, narrow: &TopicFilter) -> bool {
    // MQTT-4.7.2-1: a wildcard in the first level does not reach topics that start with `$`.
    if let (Some(FilterLevel::One | FilterLevel::Rest), Some(FilterLevel::Exact(first))) =
        (wide.levels().first(), narrow.levels().first())
        && first.starts_with('$')
    {
        return false;
    }
    let mut asked = narrow.levels().iter();
    for level in wide.levels() {
        match (level, asked.next()) {
            // `a/#` covers `a` too.
            (FilterLevel::Rest, _) => return true,
            (FilterLevel::One, Some(FilterLevel::One | FilterLevel::Exact(_))) => {}
            (FilterLevel::Exact(text), Some(FilterLevel::Exact(other))) if text == other => {}
            _ => return false,
        }
    }
    asked.next().is_none()
}

/// Whether `text` fits `glob`, in which `*` stands for any characters, none included.
pub(crate) fn glob_matches(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        // The leftmost find leaves the most for the parts that follow.
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text, TopicLimits::default()).expect("a valid filter")
    }

    fn topic(text: &str) -> TopicName {
        TopicName::parse(text, TopicLimits::default()).expect("a valid topic")
    }

    fn entries(toml: &str) -> Vec<AccessEntry> {
        #[derive(Deserialize)]
        struct File {
            access: Vec<AccessEntry>,
        }
        toml::from_str::<File>(toml).expect("valid TOML").access
    }

    fn pump(client_id: &str) -> Client<'_> {
        Client { client_id, identity: None, user: Some("pumps") }
    }

    const SITE: &str = r#"
        [[access]]
        who       = { client_id = "pump-*" }
        publish   = ["site/kiel/{client_id}/#"]
        subscribe = ["site/kiel/{client_id}/cmd/#", "all"]
        deny      = ["site/kiel/{client_id}/keys/#"]

        [[access]]
        who     = { anyone = true }
        publish = ["lobby"]
    "#;

    #[test]
    fn the_first_entry_that_fits_decides_and_deny_wins() {
        let entries = entries(SITE);
        assert!(entries.iter().all(|entry| entry.problems().is_empty()));
        let (grants, problem) = Grants::of(&pump("pump-7"), &entries);
        assert_eq!(problem, None);
        for (name, expected) in [
            ("site/kiel/pump-7/t", true),
            ("site/kiel/pump-8/t", false),
            ("site/kiel/pump-7/keys/a", false),
            ("lobby", false),
            ("devices/pump-7/t", false),
        ] {
            assert_eq!(grants.may_publish(&topic(name)), expected, "{name}");
        }
        for (asked, expected) in [
            ("site/kiel/pump-7/cmd/#", true),
            ("site/kiel/pump-7/cmd/+", true),
            ("site/kiel/pump-7/#", false),
            ("site/kiel/+/cmd/#", false),
            ("all", true),
            ("#", false),
        ] {
            assert_eq!(grants.may_subscribe(&filter(asked)), expected, "{asked}");
        }
        let (others, _) = Grants::of(&pump("valve"), &entries);
        assert!(others.may_publish(&topic("lobby")));
        assert!(!others.may_publish(&topic("devices/valve/t")));
    }

    #[test]
    fn without_an_entry_a_client_has_its_own_branch_and_a_loopback_one_everything() {
        let (grants, _) = Grants::of(&pump("pump-7"), &[]);
        assert!(grants.may_publish(&topic("devices/pump-7/t")));
        assert!(!grants.may_publish(&topic("devices/pump-8/t")));
        assert!(grants.may_subscribe(&filter("devices/pump-7/#")));
        assert!(!grants.may_subscribe(&filter("devices/#")));
        let nobody = Client { client_id: "x", identity: None, user: None };
        let (grants, _) = Grants::of(&nobody, &[]);
        assert!(grants.may_publish(&topic("anything")) && grants.may_subscribe(&filter("#")));
    }

    #[test]
    fn a_value_that_would_widen_a_pattern_takes_all_rights_away() {
        let entries =
            entries("[[access]]\nwho = { user = '*' }\npublish = ['u/{identity}/x', 'y']");
        for user in ["a/b", "+", "#", ""] {
            let client = Client { client_id: "c", identity: None, user: Some(user) };
            let (grants, problem) = Grants::of(&client, &entries);
            assert!(problem.is_some(), "{user}");
            assert!(!grants.may_publish(&topic("y")), "{user}");
        }
    }

    #[test]
    fn an_entry_says_what_is_wrong_with_it() {
        let entries = entries(
            "[[access]]\npublish = ['a/#/b', 'x/{nmae}', 'x/{client_id']\n[[access]]\nwho = { anyone = true, user = 'a' }",
        );
        let problems = entries[0].problems();
        assert_eq!(problems.len(), 4, "{problems:#?}");
        assert!(problems[0].starts_with("who: names nobody"));
        assert_eq!(entries[1].problems().len(), 1);
    }

    #[test]
    fn globs() {
        for (glob, text, expected) in [
            ("*", "", true),
            ("pump-*", "pump-7", true),
            ("pump-*", "pump", false),
            ("*-7", "pump-7", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("", "", true),
            ("*ä*", "xäy", true),
        ] {
            assert_eq!(glob_matches(glob, text), expected, "{glob} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_covering_filter_matches_all_that_the_covered_one_does(
            wide in "(\\+|a|b|\\$s)(/(\\+|a|b)){0,3}(/#)?",
            narrow in "(\\+|a|b|\\$s)(/(\\+|a|b)){0,3}(/#)?",
            name in "(a|b|\\$s)(/(a|b)){0,4}",
        ) {
            let (wide, narrow, name) = (filter(&wide), filter(&narrow), topic(&name));
            if covers(&wide, &narrow) && narrow.matches(&name) {
                prop_assert!(wide.matches(&name));
            }
        }
    }
}
