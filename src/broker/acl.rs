//! Who may publish and subscribe where: the `[[access]]` entries, and what they grant a client.
//!
//! Pure: no sockets, no clocks. The first entry whose `who` fits decides; `deny` wins over both
//! lists. Where no entry fits, an authenticated client has its own `devices/{client_id}/#` and
//! nothing else, and an anonymous one (only loopback peers can be anonymous) has everything.
//! [`explain`] says the same in words, for `watchbell acl check`.
//!
//! Invariant: a placeholder never widens a pattern. If a value that would be filled in holds a
//! level separator or a wildcard, the whole entry grants nothing.

use std::sync::Arc;

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
    /// One of its groups: of the device in the store, of its token, of the HTTP hook's answer, or
    /// an organizational unit (OU) in its certificate.
    pub group: Option<String>,
    /// Everyone, anonymous loopback clients included.
    pub anyone: bool,
}

impl AccessEntry {
    /// What is wrong with the entry; empty if nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let named = self.who.named();
        if !self.who.anyone && named.iter().all(|text| text.is_none()) {
            problems.push(
                "who: names nobody; write client_id, identity, user, group, or anyone = true"
                    .to_owned(),
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
        let group_fits = match &self.who.group {
            None => true,
            Some(glob) => client.groups.iter().any(|group| glob_matches(glob, group)),
        };
        let named = self.who.named().iter().any(|text| text.is_some());
        (self.who.anyone || named)
            && text_fits(&self.who.client_id, Some(client.client_id))
            && text_fits(&self.who.identity, client.identity)
            && text_fits(&self.who.user, client.user)
            && group_fits
    }
}

impl Who {
    fn named(&self) -> [&Option<String>; 4] {
        [&self.client_id, &self.identity, &self.user, &self.group]
    }
}

/// What is known of a client when its rights are looked up.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its MQTT client id.
    pub client_id: &'a str,
    /// The name in its certificate or token.
    pub identity: Option<&'a str>,
    /// Its user name.
    pub user: Option<&'a str>,
    /// Its groups.
    pub groups: &'a [Arc<str>],
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
            None => match Self::from_entry(client, &own_branch()) {
                Ok(grants) => (grants, None),
                Err(problem) => (Self::nothing(), Some(problem)),
            },
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

/// What a client that has authenticated may do where no entry is about it.
fn own_branch() -> AccessEntry {
    let own = || vec![OWN_BRANCH.to_owned()];
    AccessEntry { publish: own(), subscribe: own(), ..AccessEntry::default() }
}

/// The topics of a client's own.
pub const OWN_BRANCH: &str = "devices/{client_id}/#";

/// What a client wants to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Publish to a topic.
    Publish(TopicName),
    /// Subscribe to a filter.
    Subscribe(TopicFilter),
}

/// A pattern of an entry: which list, and where in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// `publish`, `subscribe` or `deny`.
    pub list: &'static str,
    /// Counted from 0.
    pub index: usize,
}

/// Whether an action is allowed, and what decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it is.
    pub allowed: bool,
    /// Which entry decides for this client; `None` where none fits.
    pub entry: Option<usize>,
    /// Which of its patterns decided; `None` where none fits.
    pub line: Option<Line>,
    /// Why the entry grants this client nothing at all, where a placeholder cannot be filled in.
    pub problem: Option<String>,
    /// Of a subscription: the patterns that concern a part of it. Denied ones are held back when
    /// it is allowed; allowed ones are what could be subscribed to when it is not.
    pub parts: Vec<Line>,
}

/// Says whether `client` may do `action`, and which pattern of which entry decides.
pub fn explain(client: &Client<'_>, entries: &[AccessEntry], action: &Action) -> Explanation {
    let entry = entries.iter().position(|entry| entry.fits(client));
    let mut said =
        Explanation { allowed: false, entry, line: None, problem: None, parts: Vec::new() };
    let own = own_branch();
    let decides = match entry.and_then(|index| entries.get(index)) {
        Some(entry) => entry,
        None if client.name().is_none() => {
            said.allowed = true;
            return said;
        }
        None => &own,
    };
    if let Err(problem) = Grants::from_entry(client, decides) {
        said.problem = Some(problem);
        return said;
    }
    let (list, allowing) = match action {
        Action::Publish(_) => ("publish", &decides.publish),
        Action::Subscribe(_) => ("subscribe", &decides.subscribe),
    };
    let filters = |list: &'static str, patterns: &[String]| -> Vec<(Line, TopicFilter)> {
        let expanded = patterns.iter().enumerate().filter_map(|(index, pattern)| {
            let filter = expand(pattern, client.client_id, client.name()).ok()?;
            Some((Line { list, index }, filter))
        });
        expanded.collect()
    };
    let (allowing, denying) = (filters(list, allowing), filters("deny", &decides.deny));
    let decisive = |filter: &TopicFilter| match action {
        Action::Publish(topic) => filter.matches(topic),
        Action::Subscribe(asked) => covers(filter, asked),
    };
    let first = |from: &[(Line, TopicFilter)]| {
        from.iter().find(|(_, filter)| decisive(filter)).map(|(line, _)| *line)
    };
    let (allow, deny) = (first(&allowing), first(&denying));
    said.allowed = allow.is_some() && deny.is_none();
    said.line = deny.or(allow);
    if let (Action::Subscribe(asked), None) = (action, deny) {
        let partly = if said.allowed { denying } else { allowing };
        let parts = partly.into_iter().filter(|(_, filter)| overlap(filter, asked));
        said.parts = parts.map(|(line, _)| line).collect();
    }
    said
}

/// Whether there is a topic that both match.
fn overlap(one: &TopicFilter, other: &TopicFilter) -> bool {
    let (one, other) = (one.levels(), other.levels());
    // MQTT-4.7.2-1, as in `covers`.
    if let (Some(first), Some(second)) = (one.first(), other.first()) {
        let is_wild = |level: &FilterLevel| matches!(level, FilterLevel::One | FilterLevel::Rest);
        let is_hidden = |level: &FilterLevel| matches!(level, FilterLevel::Exact(text) if text.starts_with('$'));
        if (is_wild(first) && is_hidden(second)) || (is_hidden(first) && is_wild(second)) {
            return false;
        }
    }
    let mut index = 0;
    loop {
        match (one.get(index), other.get(index)) {
            (Some(FilterLevel::Rest), _) | (_, Some(FilterLevel::Rest)) | (None, None) => {
                return true;
            }
            (Some(FilterLevel::Exact(text)), Some(FilterLevel::Exact(second))) => {
                if text != second {
                    return false;
                }
            }
            (Some(_), Some(_)) => {}
            (Some(_), None) | (None, Some(_)) => return false,
        }
        index += 1;
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
        Client { client_id, identity: None, user: Some("pumps"), groups: &[] }
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
        let nobody = Client { client_id: "x", identity: None, user: None, groups: &[] };
        let (grants, _) = Grants::of(&nobody, &[]);
        assert!(grants.may_publish(&topic("anything")) && grants.may_subscribe(&filter("#")));
    }

    #[test]
    fn a_value_that_would_widen_a_pattern_takes_all_rights_away() {
        let entries =
            entries("[[access]]\nwho = { user = '*' }\npublish = ['u/{identity}/x', 'y']");
        for user in ["a/b", "+", "#", ""] {
            let client = Client { client_id: "c", identity: None, user: Some(user), groups: &[] };
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
    fn a_group_is_one_of_those_that_the_client_is_in() {
        let entries = entries(
            "[[access]]\nwho = { group = 'pump*', client_id = 'a*' }\npublish = ['p']\n\
             [[access]]\nwho = { group = 'valves' }\npublish = ['v']",
        );
        assert!(entries.iter().all(|entry| entry.problems().is_empty()));
        for (client_id, groups, may) in [
            ("a1", &["pumps"][..], "p"),
            ("a1", &["valves", "pumps"], "p"),
            ("b1", &["valves", "pumps"], "v"),
            ("b1", &["pumps"], "devices/b1/x"),
            ("a1", &[], "devices/a1/x"),
        ] {
            let groups: Vec<Arc<str>> = groups.iter().map(|group| Arc::from(*group)).collect();
            let client = Client { client_id, identity: Some("x"), user: None, groups: &groups };
            let (grants, _) = Grants::of(&client, &entries);
            for name in ["p", "v", "devices/a1/x", "devices/b1/x"] {
                assert_eq!(grants.may_publish(&topic(name)), name == may, "{client:?} {name}");
            }
        }
    }

    #[test]
    fn an_explanation_names_the_pattern() {
        let entries = entries(SITE);
        let line = |list, index| Some(Line { list, index });
        for (client, action, asked, allowed, entry, expected, parts) in [
            ("pump-7", "publish", "site/kiel/pump-7/t", true, Some(0), line("publish", 0), 0),
            ("pump-7", "publish", "site/kiel/pump-7/keys/a", false, Some(0), line("deny", 0), 0),
            ("pump-7", "publish", "lobby", false, Some(0), None, 0),
            ("valve", "publish", "lobby", true, Some(1), line("publish", 0), 0),
            ("pump-7", "subscribe", "all", true, Some(0), line("subscribe", 1), 0),
            ("pump-7", "subscribe", "site/#", false, Some(0), None, 1),
            ("pump-7", "subscribe", "#", false, Some(0), None, 2),
        ] {
            let action = match action {
                "publish" => Action::Publish(topic(asked)),
                _ => Action::Subscribe(filter(asked)),
            };
            let said = explain(&pump(client), &entries, &action);
            assert_eq!(
                (said.allowed, said.entry, said.line),
                (allowed, entry, expected),
                "{asked}"
            );
            assert_eq!(said.parts.len(), parts, "{asked}");
        }
        let own = explain(&pump("p"), &[], &Action::Publish(topic("devices/p/x")));
        assert_eq!((own.allowed, own.entry), (true, None));
        let bad = explain(&pump("a/b"), &[], &Action::Publish(topic("devices/p/x")));
        assert!(bad.problem.is_some_and(|what| what.contains("{client_id}")));
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
            if wide.matches(&name) && narrow.matches(&name) {
                prop_assert!(overlap(&wide, &narrow) && overlap(&narrow, &wide));
            }
        }

        #[test]
        fn the_explanation_says_what_the_broker_does(
            allow in "(\\+|a|b)(/(\\+|a|b)){0,2}(/#)?",
            deny in "(\\+|a|b)(/(\\+|a|b)){0,2}(/#)?",
            asked in "(\\+|a|b)(/(\\+|a|b)){0,2}(/#)?",
            name in "(a|b)(/(a|b)){0,3}",
        ) {
            let entries = [AccessEntry {
                who: Who { anyone: true, ..Who::default() },
                publish: vec![allow.clone()],
                subscribe: vec![allow],
                deny: vec![deny],
            }];
            let (grants, _) = Grants::of(&pump("p"), &entries);
            let said = |action| explain(&pump("p"), &entries, &action).allowed;
            let (name, asked) = (topic(&name), filter(&asked));
            prop_assert_eq!(said(Action::Publish(name.clone())), grants.may_publish(&name));
            prop_assert_eq!(said(Action::Subscribe(asked.clone())), grants.may_subscribe(&asked));
        }
    }
}
