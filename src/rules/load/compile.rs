//! A written rule -> a compiled one, or everything that is wrong with it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::super::condition::{Expression, Scope};
use super::super::functions::words::Words;
use super::super::life::{Clock, Clocks};
use super::super::lower::types::Kind;
use super::super::set::{
    Expected, Flapping, KeyPart, Level, Needs, OnDowntime, Replayed, Rule, Silent,
};
use super::super::window::{Function, Reach, Spec};
use super::super::{lower, template};
use super::written::{LastOrExpression, TELLING, Written, WrittenLevel, WrittenWindow};
use super::{Entry, Loader, RESERVED, channels, filter, in_words};
use crate::model::tell::{Group, Policy};
use crate::model::{Fnv, Labels, Severity};
use crate::payload::layout::Layout;
use crate::payload::{Codec, Compression, Decode};
use crate::problem::{Step, read};
use crate::span::Span;
use crate::topic::{FilterLevel, TopicFilter, TopicLimits, TopicName};

/// What `on` may say, and the level of the topic that says it.
const EVENTS: &[(&str, &str)] = &[
    ("client.connected", "connected"),
    ("client.disconnected", "disconnected"),
    ("client.refused", "refused"),
    ("client.taken_over", "taken_over"),
    ("client.will", "will"),
];

/// The topic of the process's own publishes about clients.
const EVENTS_TOPIC: &str = "$watchbell/client/{event}/{client}";

/// Most windows and most named values of a rule.
const NAMED_MAX: usize = 32;

/// The names that a rule's expressions and texts may use.
#[derive(Clone, Default)]
struct Names {
    captures: Vec<Arc<str>>,
    named: Vec<Arc<str>>,
    /// What the named values are, one for each.
    kinds: Vec<Kind>,
    each: bool,
}

impl Names {
    fn add(&mut self, name: Arc<str>, kind: Kind) {
        self.named.push(name);
        self.kinds.push(kind);
    }
}

impl<'a> Loader<'a> {
    pub(super) fn compile(
        &mut self,
        entry: &mut Entry<'a>,
        written: &Written,
        table: &toml::Value,
    ) -> Option<Rule> {
        let name = self.name(entry, written.name.as_deref());
        let events = events(entry, written);
        let topic = if events.is_empty() { written.topic.as_deref() } else { Some(EVENTS_TOPIC) };
        let filter = filter(entry, topic);
        // Without its topic a rule's names are not known, and each would look wrong.
        let is_readable = filter.is_some();
        let captures = filter.as_ref().map(|filter| filter.captures()).unwrap_or_default();
        let captures = captures.iter().map(|(_, name)| Arc::clone(name)).collect();
        let mut names = Names { captures, each: written.each.is_some(), ..Names::default() };
        let codec = codec(entry, written);
        let severities: Vec<_> = Severity::ALL.iter().map(|s| (s.as_str(), *s)).collect();
        let severity = match &written.severity {
            None => Some(Severity::default()),
            Some(word) => entry.word(&["severity".into()], word, &severities),
        };
        let mut compiler =
            Compiler { entry, written, is_readable, bytes_max: self.config.expression_bytes_max };
        // What decides what a reading is sees no named values: they are of the reading.
        let skip = compiler.condition(&names, &["skip".into()], written.skip.as_ref());
        let time = compiler.expression(&names, &["time".into()], written.time.as_ref());
        let mut bare = names.clone();
        bare.each = false;
        let each = compiler.expression(&bare, &["each".into()], written.each.as_ref());
        compiler.elements(each.as_ref());
        let dedupe = compiler.expression(&names, &["dedupe".into()], written.dedupe.as_ref());
        let key = compiler.key(&names);
        let lets = compiler.lets(&mut names);
        let windows = compiler.windows(&mut names, self.config.window_points_max);
        let (levels, clocks) = compiler.levels(&names, severity.unwrap_or_default());
        let zone = compiler.zone();
        let words = written.words.as_ref().map(Words::problems).unwrap_or_default();
        compiler.entry.problems(&["words".into()], words);
        compiler.sense(&key);
        let (on_downtime, replayed, is_shadow) = compiler.words();
        let flapping = compiler.flapping();
        let expect = match &filter {
            Some(filter) => compiler.expect(filter, &key),
            None => Vec::new(),
        };
        let group = compiler.group(&names);

        let to = self.contacts(entry, written.to.as_deref().unwrap_or_default());
        let by = channels(entry, written.by.as_deref().unwrap_or_default());
        self.reachable(entry, &to, &by, written.by.as_deref());
        if written.fallback_after.is_some_and(|after| after > Span::from_secs(24 * 3600)) {
            entry.problem(&["fallback_after".into()], "at most 1d; 0s for never");
        }
        for (key, span, what) in [
            ("expires_in", written.expires_in, "a message that may not wait is never sent"),
            ("silent", written.silent, "no time at all has passed at once"),
            ("repeat", written.repeat, "it would never stop"),
            ("forget", written.forget, "it would be forgotten at once"),
        ] {
            if span.is_some_and(Span::is_zero) {
                entry.problem(&[key.into()], &format!("{what}; write at least 1s"));
            }
        }
        let mut template = |entry: &mut Entry<'_>, key: &str, source: Option<&String>| {
            let source = source.filter(|_| is_readable)?;
            let mut known: Vec<&str> = template::NAMES.to_vec();
            if names.each {
                known.extend(lower::NAMES_EACH);
            }
            known.extend(names.named.iter().map(AsRef::as_ref));
            known.extend(names.captures.iter().map(AsRef::as_ref));
            let name = format!("{}/{key}", name.as_deref().unwrap_or_default());
            self.rules
                .templates
                .add(&name, source, &known)
                .map_err(|all| entry.problems(&[key.into()], all))
                .ok()
                .map(|()| name)
        };
        let text = template(entry, "text", written.text.as_ref());
        let text_clear = template(entry, "text_clear", written.text_clear.as_ref());
        let title = template(entry, "title", written.title.as_ref());

        let silent = written.silent.map(|after| Silent { after: after.into(), expect });
        let policy = Policy {
            event: levels.is_empty() && silent.is_none(),
            to: to.into(),
            by: by.into(),
            expires_in: written.expires_in.map(Span::get),
            fallback_after: written.fallback_after.map(Span::get),
            repeat: written.repeat.map(Span::get),
            cooldown: written.cooldown.map(Span::get).filter(|span| !span.is_zero()),
            max: written.max.as_ref().map(|quota| quota.0),
            group,
            shadow: is_shadow,
            tell_clear: written.text_clear.is_some(),
        };
        let texts = [&written.text, &written.text_clear, &written.title];
        let mut rule = Rule {
            name: name?,
            filter: Arc::new(filter?),
            events,
            codec: codec?,
            levels,
            clocks,
            silent,
            forget: written.forget.map(Span::get),
            key,
            each,
            lets,
            windows,
            skip,
            dedupe,
            time,
            zone,
            max_age: written.max_age.map(Span::get),
            merge: written.merge.unwrap_or_default(),
            replayed,
            flapping,
            durable: written.durable.unwrap_or_default(),
            on_downtime,
            severity: severity?,
            policy: Arc::new(policy),
            meaning: meaning(table),
            needs: Needs::default(),
            text,
            text_clear,
            title,
        };
        rule.needs = needs(&rule, &texts);
        Some(rule)
    }
}

/// A condition that is one comparison with a number, as `payload.t > 5`.
struct Threshold<'a> {
    of: &'a str,
    above: bool,
    limit: f64,
}

impl<'a> Threshold<'a> {
    fn of(source: Option<&'a str>) -> Option<Self> {
        let source = source?;
        let (of, limit) = source.split_once(['<', '>'])?;
        // What is put together of several looks at more than one side.
        if of.contains(['&', '|', '?', '=', '!', ':']) {
            return None;
        }
        let limit = limit.strip_prefix('=').unwrap_or(limit).trim();
        let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-');
        let limit = limit.chars().all(is_number).then(|| limit.parse().ok())??;
        Some(Self { of: of.trim(), above: source.contains('>'), limit })
    }
}

/// What the rule's instances must remember.
fn needs(rule: &Rule, texts: &[&Option<String>]) -> Needs {
    let conditions = rule.levels.iter().flat_map(|level| [Some(&level.when), level.clear.as_ref()]);
    let mut expressions = conditions
        .flatten()
        .chain(rule.lets.iter().map(|(_, expression)| expression))
        .chain(rule.windows.iter().map(|window| &window.of));
    let in_texts = texts.iter().any(|text| text.as_ref().is_some_and(|t| t.contains("previous")));
    let previous = rule.merge
        || in_texts
        || expressions.any(|one| one.uses("previous") || one.uses(lower::HAS_PREVIOUS));
    let time_window = rule.windows.iter().any(|spec| matches!(spec.reach, Reach::Over(_)));
    // A clock that runs out has no publish of its own: its text tells of the last.
    let last = previous || !rule.clocks.are_instant() || rule.silent.is_some() || time_window;
    let instance = previous
        || rule.silent.is_some()
        || !rule.windows.is_empty()
        || rule.dedupe.is_some()
        || rule.flapping.is_some()
        || (rule.forget.is_some() && !rule.levels.is_empty());
    Needs { last, previous, instance, time_window }
}

/// A hash of the keys that decide when the rule fires.
fn meaning(table: &toml::Value) -> u64 {
    let mut hash = Fnv::new();
    let Some(table) = table.as_table() else { return 1 };
    let mut keys: Vec<&String> = table.keys().collect();
    keys.sort();
    for key in keys.into_iter().filter(|key| !TELLING.contains(&key.as_str())) {
        hash.write(key.as_bytes());
        hash.write(&[0]);
        if let Some(value) = table.get(key) {
            hash.write(value.to_string().as_bytes());
        }
        hash.write(&[0xff]);
    }
    // 0 is what rows have that were written before there were meanings.
    hash.finish().max(1)
}

/// How the payload is read.
fn codec(entry: &mut Entry<'_>, written: &Written) -> Option<Codec> {
    let decodes: Vec<_> = Decode::ALL.iter().map(|how| (how.as_str(), *how)).collect();
    let how = match &written.decode {
        None => Some(Decode::Auto),
        Some(word) => entry.word(&["decode".into()], word, &decodes),
    };
    let known: Vec<_> = Compression::ALL.iter().map(|one| (one.as_str(), *one)).collect();
    let compression = match &written.compression {
        None => Some(Compression::default()),
        Some(word) => entry.word(&["compression".into()], word, &known),
    };
    let is_binary = how == Some(Decode::Binary);
    let layout = match &written.layout {
        None if is_binary => {
            let what = "`binary` needs a `layout`, as in layout = { fields = [ { name = \"temp_c\", at = 0, type = \"i16be\" } ] }";
            entry.problem(&["decode".into()], what);
            None
        }
        None => None,
        Some(_) if how.is_some() && !is_binary => {
            entry.problem(&["layout".into()], "it belongs to decode = \"binary\"");
            None
        }
        Some(layout) => match Layout::parse(layout) {
            Ok(layout) => Some(Arc::new(layout)),
            Err(faults) => {
                for (below, what) in faults {
                    let mut path = vec![Step::from("layout")];
                    path.extend(below);
                    entry.problem(&path, &what);
                }
                None
            }
        },
    };
    Some(Codec { how: how?, compression: compression?, layout })
}

/// The events of `on`, as the topic has them.
fn events(entry: &mut Entry<'_>, written: &Written) -> Vec<Arc<str>> {
    let Some(on) = &written.on else { return Vec::new() };
    if written.topic.is_some() {
        let what = "`on` and `topic` in one rule; a rule looks at clients or at a topic: write two";
        entry.problem(&["on".into()], what);
    }
    if on.0.is_empty() {
        entry
            .problem(&["on".into()], "it is empty; name an event, as in on = \"client.connected\"");
    }
    let found = on.0.iter().filter_map(|word| entry.word(&["on".into()], word, EVENTS));
    found.map(Arc::from).collect()
}

/// One rule while its clauses are compiled.
struct Compiler<'c, 'e> {
    entry: &'c mut Entry<'e>,
    written: &'c Written,
    is_readable: bool,
    bytes_max: usize,
}

impl Compiler<'_, '_> {
    fn expression(
        &mut self,
        names: &Names,
        below: &[Step],
        source: Option<&String>,
    ) -> Option<Expression> {
        let source = source.filter(|_| self.is_readable)?;
        let captures: Vec<&str> = names.captures.iter().map(AsRef::as_ref).collect();
        let named: Vec<&str> = names.named.iter().map(AsRef::as_ref).collect();
        let scope = Scope {
            captures: &captures,
            named: &named,
            kinds: &names.kinds,
            each: names.each,
            words: self.written.words.as_ref(),
        };
        Expression::compile(source, &scope, self.bytes_max)
            .map_err(|all| self.entry.problems(below, all))
            .ok()
    }

    /// An expression that is true or false.
    fn condition(
        &mut self,
        names: &Names,
        below: &[Step],
        source: Option<&String>,
    ) -> Option<Expression> {
        let expression = self.expression(names, below, source)?;
        let kind = expression.kind();
        if !matches!(kind, Kind::Any | Kind::Bool) {
            let what = format!("it gives {kind}, not true or false; compare it, as in x > 5");
            self.entry.problem(below, &what);
        }
        Some(expression)
    }

    fn elements(&mut self, each: Option<&Expression>) {
        let kind = each.map(Expression::kind).unwrap_or_default();
        if !matches!(kind, Kind::Any | Kind::List | Kind::Map) {
            let what = format!("it gives {kind}; name a list or map, as in payload.sensors");
            self.entry.problem(&["each".into()], &what);
        }
    }

    fn key(&mut self, names: &Names) -> Vec<KeyPart> {
        let Some(written) = &self.written.key else {
            let captures = names.captures.iter().map(|name| KeyPart::Capture(Arc::clone(name)));
            let mut all: Vec<KeyPart> = captures
                // The event is what happens to an instance, not what tells it apart.
                .filter(|part| !matches!(part, KeyPart::Capture(name) if self.written.on.is_some() && name.as_ref() == "event"))
                .collect();
            // Each element is an instance of its own.
            if names.each
                && let Some(item) =
                    self.expression(names, &["each".into()], Some(&"item_key".to_owned()))
            {
                all.push(KeyPart::Expression(item));
            }
            return all;
        };
        let mut parts = Vec::new();
        for (index, source) in written.iter().enumerate() {
            let below = ["key".into(), index.into()];
            if let Some(name) = names.captures.iter().find(|name| name.as_ref() == source.trim()) {
                parts.push(KeyPart::Capture(Arc::clone(name)));
            } else if let Some(expression) = self.expression(names, &below, Some(source)) {
                parts.push(KeyPart::Expression(expression));
            }
        }
        parts
    }

    fn lets(&mut self, names: &mut Names) -> Vec<(Arc<str>, Expression)> {
        let mut lets = Vec::new();
        let written: Vec<_> = self.written.lets.iter().flatten().collect();
        for (index, (name, value)) in written.iter().enumerate() {
            let below = ["let".into(), name.as_str().into()];
            let later: Vec<&str> =
                written.iter().skip(index).map(|(name, _)| name.as_str()).collect();
            let Some(name) = self.new_name(names, &below, name) else {
                // What uses it all the same is not wrong for a second reason.
                names.add(name.as_str().into(), Kind::Any);
                continue;
            };
            let Some(source) = value.as_str() else {
                self.entry.problem(&below, "write an expression in quotes");
                continue;
            };
            let before = self.entry.problems.len();
            let mut kind = Kind::Any;
            if let Some(expression) = self.expression(names, &below, Some(&source.to_owned())) {
                kind = expression.kind().kept();
                lets.push((Arc::clone(&name), expression));
            }
            self.entry.say_written_later(before, &later);
            names.add(name, kind);
        }
        lets
    }

    fn windows(&mut self, names: &mut Names, points_max: usize) -> Vec<Spec> {
        let mut windows = Vec::new();
        for (name, value) in self.written.window.iter().flatten() {
            let below = ["window".into(), name.as_str().into()];
            let Some(name) = self.new_name(names, &below, name) else { continue };
            let counts = value.get("count").is_some();
            match read::<WrittenWindow>(value.clone()) {
                Ok(written) => {
                    windows.extend(self.window(names, &below, &name, written, points_max));
                }
                Err(faults) => {
                    for fault in faults {
                        let mut path = below.to_vec();
                        path.extend(fault.path);
                        self.entry.problem(&path, &in_words(&fault.what));
                    }
                }
            }
            // All but a count are null while they are empty.
            names.add(name, if counts { Kind::Number } else { Kind::Any });
        }
        windows
    }

    fn window(
        &mut self,
        names: &Names,
        below: &[Step],
        name: &Arc<str>,
        written: WrittenWindow,
        points_max: usize,
    ) -> Option<Spec> {
        let (reach_last, last) = match written.last {
            Some(LastOrExpression::Reach(count)) => (Some(count), None),
            Some(LastOrExpression::Function(source)) => (written.of_last, Some(source)),
            None => (None, None),
        };
        let sources = [
            written.count,
            written.sum,
            written.avg,
            written.min,
            written.max,
            written.first,
            last,
            written.delta,
            written.rate,
            written.stddev,
        ];
        let functions = Function::WORDS.iter().map(|(_, function)| *function);
        let mut found: Vec<(Function, String)> = functions
            .zip(sources)
            .filter_map(|(function, source)| Some((function, source?)))
            .collect();
        if let Some(source) = written.percentile {
            let percent = written.p.unwrap_or(f64::NAN);
            if !(0.0..=100.0).contains(&percent) {
                let what = "a percentile needs p from 0 to 100, as in { percentile = \"payload.ms\", p = 95, over = \"5m\" }";
                self.entry.problem(below, what);
            }
            found.push((Function::Percentile(percent), source));
        } else if written.p.is_some() {
            self.entry.problem(below, "`p` belongs to `percentile`");
        }
        let (function, source) = match found.len() {
            1 => found.pop()?,
            _ => {
                let words: Vec<&str> = Function::WORDS.iter().map(|(word, _)| *word).collect();
                let what = format!(
                    "name one function and its expression, as in {{ avg = \"payload.t\", over = \"5m\" }}; known are {}, percentile",
                    words.join(", ")
                );
                self.entry.problem(below, &what);
                return None;
            }
        };
        let reach = match (written.over, reach_last) {
            (Some(over), None) if !over.is_zero() => Reach::Over(over.into()),
            (None, Some(count)) if (1..=points_max).contains(&(count as usize)) => {
                Reach::Last(count as usize)
            }
            (None, Some(_)) => {
                let what =
                    format!("`last` is 1 to {points_max} publishes; raise rules.window_points_max");
                self.entry.problem(below, &what);
                return None;
            }
            _ => {
                let what = "say how far it looks back: over = \"5m\", or last = 100 publishes (of_last where the function is `last`)";
                self.entry.problem(below, what);
                return None;
            }
        };
        let of = self.expression(names, below, Some(&source))?;
        Some(Spec { name: Arc::clone(name), function, of, reach, points_max })
    }

    /// A name for a value, if it can be one.
    fn new_name(&mut self, names: &Names, below: &[Step], name: &str) -> Option<Arc<str>> {
        let is_word = name.chars().enumerate().all(|(index, c)| {
            c == '_' || c.is_ascii_lowercase() || (index > 0 && c.is_ascii_alphanumeric())
        });
        let taken = lower::NAMES.contains(&name)
            || lower::NAMES_EACH.contains(&name)
            || template::NAMES.contains(&name)
            || RESERVED.contains(&name)
            || names.captures.iter().chain(&names.named).any(|known| known.as_ref() == name);
        let what = if name.is_empty() || name.len() > 64 || !is_word {
            "a name has 1 to 64 of a-z, A-Z, 0-9 and _, and begins with a small letter".to_owned()
        } else if taken && template::NAMES.contains(&name) && !lower::NAMES.contains(&name) {
            format!("`{name}` is a variable of texts already; choose another name")
        } else if taken {
            format!("`{name}` means something else already; choose another name")
        } else if names.named.len() >= NAMED_MAX {
            format!("more than {NAMED_MAX} named values; split the rule")
        } else {
            return Some(name.into());
        };
        self.entry.problem(below, &what);
        None
    }

    /// The levels, the worst last, and their clocks.
    fn levels(&mut self, names: &Names, severity: Severity) -> (Vec<Level>, Clocks) {
        let written = self.written;
        let several = [
            ("info", Severity::Info, &written.info),
            ("warning", Severity::Warning, &written.warning),
            ("critical", Severity::Critical, &written.critical),
        ];
        let (mut levels, mut clocks) = (Vec::new(), Clocks::default());
        let has_several = several.iter().any(|(.., level)| level.is_some());
        if has_several {
            for key in ["when", "clear", "severity"] {
                let is_there = match key {
                    "when" => written.when.is_some(),
                    "clear" => written.clear.is_some(),
                    _ => written.severity.is_some(),
                };
                if is_there {
                    let what = "a rule with levels has it in each of them, as in critical = { when = \"...\" }";
                    self.entry.problem(&[key.into()], what);
                }
            }
            for (key, severity, level) in several {
                let Some(level) = level else { continue };
                if level.when.is_none() {
                    self.entry.problem(&[key.into()], "a level needs its `when`");
                }
                let clock = Clock {
                    hold: level.hold.or(written.hold).map(Span::get).unwrap_or_default(),
                    clear: level.clear_for.or(written.clear_for).map(Span::get).unwrap_or_default(),
                };
                clocks.set(severity, clock);
                levels.extend(self.level(names, &[key.into()], severity, level));
            }
            self.order(&several.map(|(key, _, level)| (key, level.as_ref())));
            return (levels, clocks);
        }
        let clock = Clock {
            hold: written.hold.map(Span::get).unwrap_or_default(),
            clear: written.clear_for.map(Span::get).unwrap_or_default(),
        };
        clocks.set(severity, clock);
        if written.when.is_some() {
            let one = WrittenLevel {
                when: written.when.clone(),
                clear: written.clear.clone(),
                ..WrittenLevel::default()
            };
            levels.extend(self.level(names, &[], severity, &one));
        } else {
            // It is looked at all the same, for its own problems.
            self.condition(names, &["clear".into()], written.clear.as_ref());
        }
        (levels, clocks)
    }

    fn level(
        &mut self,
        names: &Names,
        below: &[Step],
        severity: Severity,
        level: &WrittenLevel,
    ) -> Option<Level> {
        let path = |key: &str| {
            let mut path = below.to_vec();
            path.push(key.into());
            path
        };
        let when = self.condition(names, &path("when"), level.when.as_ref());
        let clear = self.condition(names, &path("clear"), level.clear.as_ref());
        let (fires, clears) = (level.when.as_deref(), level.clear.as_deref());
        if let (Some(when), Some(clear)) = (Threshold::of(fires), Threshold::of(clears))
            && when.of == clear.of
            && when.above == clear.above
        {
            let side = if when.above { "above" } else { "below" };
            let other = if when.above { "<" } else { ">" };
            let what = format!(
                "it looks {side} a limit as `when` does, and would not clear on the other side; write {} {other} {}",
                clear.of, clear.limit
            );
            self.entry.problem(&path("clear"), &what);
        }
        Some(Level { severity, when: when?, clear })
    }

    /// A worse level that holds wherever a milder one does, and as soon, hides it for ever.
    fn order(&mut self, levels: &[(&str, Option<&WrittenLevel>)]) {
        let limit = |level: &WrittenLevel| {
            Threshold::of(level.when.as_deref()).map(|t| (t.limit, t.above, t.of.to_owned()))
        };
        let hold = |level: &WrittenLevel| level.hold.or(self.written.hold).map(Span::get);
        let mut hidden = Vec::new();
        for (index, (worse, level)) in levels.iter().enumerate() {
            let Some(level) = level else { continue };
            for (milder, other) in levels.iter().take(index) {
                let Some(other) = other else { continue };
                let (Some(ours), Some(theirs)) = (limit(level), limit(other)) else { continue };
                let is_hidden = if ours.1 { ours.0 <= theirs.0 } else { ours.0 >= theirs.0 };
                if ours.1 == theirs.1
                    && ours.2 == theirs.2
                    && is_hidden
                    && hold(level) <= hold(other)
                {
                    hidden.push((*worse, *milder));
                }
            }
        }
        for (worse, milder) in hidden {
            let what = format!(
                "it holds wherever `{milder}` does, which nobody would ever see; swap their limits"
            );
            self.entry.problem(&[worse.into(), "when".into()], &what);
        }
    }

    fn zone(&mut self) -> Option<TimeZone> {
        let name = self.written.zone.as_ref()?;
        match TimeZone::get(name) {
            Ok(zone) => Some(zone),
            Err(_) => {
                let what = format!(
                    "unknown time zone `{name}`; write one of the IANA list, as in \"Europe/Berlin\""
                );
                self.entry.problem(&["zone".into()], &what);
                None
            }
        }
    }

    /// Keys that make no sense together.
    fn sense(&mut self, key: &[KeyPart]) {
        let written = self.written;
        let has_levels = written.when.is_some()
            || written.info.is_some()
            || written.warning.is_some()
            || written.critical.is_some();
        let is_event = !has_levels && written.silent.is_none();
        let mut wrong: Vec<(&str, &str)> = Vec::new();
        if is_event {
            let what = "there is nothing to clear: a rule without `when` raises an alert at each publish; give it a `when`";
            let nothing_holds = "nothing holds: a rule without `when` raises an alert at each publish; give it a `when`";
            wrong.extend([
                ("clear", what),
                ("clear_for", what),
                ("text_clear", what),
                ("for", nothing_holds),
                ("repeat", nothing_holds),
                ("flapping", nothing_holds),
                ("expect", "only a rule with `silent` expects anybody"),
            ]);
        }
        if written.silent.is_some() {
            let what = "a rule with `silent` fires when nothing is heard and clears when something is; write a rule of its own for what is heard, or `skip` for what is no sign of life";
            wrong.extend([("when", what), ("clear", what), ("warning", what), ("critical", what)]);
            wrong.extend([("info", what), ("for", "`silent` is how long it must hold")]);
            wrong.push(("flapping", what));
        } else {
            wrong.push(("expect", "only a rule with `silent` expects anybody"));
        }
        if written.time.is_none() {
            wrong.push(("max_age", "it needs `time`, which says when a reading was taken"));
        }
        for below in ["group_wait", "group_interval"] {
            if written.group_by.is_none() {
                wrong.push((
                    below,
                    "it belongs to `group_by`; for one group of all write group_by = []",
                ));
            }
        }
        let mut said = HashSet::new();
        for (key, what) in wrong {
            if self.is_written(key) && said.insert(key) {
                self.entry.problem(&[key.into()], what);
            }
        }
        if written.expect.is_some() && key.iter().any(|part| matches!(part, KeyPart::Expression(_)))
        {
            let what = "who is expected is named by captures of the topic; leave `key` out, or name captures only";
            self.entry.problem(&["expect".into()], what);
        }
    }

    fn is_written(&self, key: &str) -> bool {
        let written = self.written;
        match key {
            "when" => written.when.is_some(),
            "clear" => written.clear.is_some(),
            "clear_for" => written.clear_for.is_some(),
            "text_clear" => written.text_clear.is_some(),
            "for" => written.hold.is_some(),
            "repeat" => written.repeat.is_some(),
            "flapping" => written.flapping.is_some(),
            "info" => written.info.is_some(),
            "warning" => written.warning.is_some(),
            "critical" => written.critical.is_some(),
            "expect" => written.expect.is_some(),
            "max_age" => written.max_age.is_some(),
            "group_wait" => written.group_wait.is_some(),
            "group_interval" => written.group_interval.is_some(),
            _ => false,
        }
    }

    fn words(&mut self) -> (OnDowntime, Replayed, bool) {
        let written = self.written;
        // A dead man must not blame devices for the time in which nobody could hear them.
        let usual = if written.silent.is_some() { OnDowntime::Pause } else { OnDowntime::Count };
        let on_downtime = match &written.on_downtime {
            None => usual,
            Some(word) => {
                let known = [
                    ("count", OnDowntime::Count),
                    ("pause", OnDowntime::Pause),
                    ("reset", OnDowntime::Reset),
                ];
                self.entry.word(&["on_downtime".into()], word, &known).unwrap_or(usual)
            }
        };
        let replayed = written.replayed.as_ref().and_then(|word| {
            let known = [
                ("state", Replayed::State),
                ("raise", Replayed::Raise),
                ("ignore", Replayed::Ignore),
            ];
            self.entry.word(&["replayed".into()], word, &known)
        });
        let mode = written.mode.as_ref().and_then(|word| {
            self.entry.word(&["mode".into()], word, &[("live", false), ("shadow", true)])
        });
        (on_downtime, replayed.unwrap_or_default(), mode.unwrap_or_default())
    }

    fn flapping(&mut self) -> Option<Flapping> {
        let written = self.written.flapping.as_ref()?;
        let good = (0.0..=1.0).contains(&written.low)
            && (0.0..=1.0).contains(&written.high)
            && written.low < written.high;
        let last = u8::try_from(written.last).ok().filter(|last| good && (3..=64).contains(last));
        let Some(last) = last else {
            let what = "write flapping = { low = 0.25, high = 0.5, last = 21 }: shares from 0 to 1, low below high, of the last 3 to 64 evaluations";
            self.entry.problem(&["flapping".into()], what);
            return None;
        };
        Some(Flapping { low: written.low, high: written.high, last })
    }

    fn expect(&mut self, filter: &TopicFilter, key: &[KeyPart]) -> Vec<Expected> {
        let mut found = Vec::new();
        for (index, table) in self.written.expect.iter().flatten().enumerate() {
            let below: [Step; 2] = ["expect".into(), index.into()];
            let before = self.entry.problems.len();
            let mut labels: Vec<(Arc<str>, Arc<str>)> = Vec::new();
            for (name, value) in table {
                let known = filter.captures().iter().find(|(_, known)| known.as_ref() == name);
                match (known, value) {
                    (Some((_, name)), toml::Value::String(text)) => {
                        labels.push((Arc::clone(name), text.as_str().into()));
                    }
                    (Some((_, name)), toml::Value::Integer(number)) => {
                        labels.push((Arc::clone(name), number.to_string().into()));
                    }
                    (Some(_), _) => self.entry.problem(&below, "a level of a topic is text"),
                    (None, _) => {
                        let what = format!("the topic has no capture `{name}`");
                        self.entry.problem(&below, &what);
                    }
                }
            }
            for part in key {
                if let KeyPart::Capture(name) = part
                    && !table.contains_key(name.as_ref())
                {
                    let what = format!("`{name}` is missing, which tells instances apart");
                    self.entry.problem(&below, &what);
                }
            }
            let level = |name: &str| {
                labels.iter().find(|(known, _)| known.as_ref() == name).map(|(_, text)| text)
            };
            let levels: Vec<String> = filter
                .levels()
                .iter()
                .enumerate()
                .map(|(index, level_of)| match level_of {
                    FilterLevel::Exact(text) => text.to_string(),
                    FilterLevel::One | FilterLevel::Rest => {
                        let capture = filter.captures().iter().find(|(at, _)| *at == index);
                        let text = capture.and_then(|(_, name)| level(name));
                        text.map_or_else(|| "-".to_owned(), ToString::to_string)
                    }
                })
                .collect();
            match TopicName::parse(&levels.join("/"), TopicLimits::default()) {
                Ok(topic) if self.entry.problems.len() == before => {
                    let parts = key.iter().filter_map(|part| match part {
                        KeyPart::Capture(name) => level(name).map(ToString::to_string),
                        KeyPart::Expression(_) => None,
                    });
                    let key: Vec<String> = parts.collect();
                    labels.sort();
                    let labels: Labels = labels.into();
                    found.push(Expected { key: key.join("/").into(), labels, topic });
                }
                Ok(_) => {}
                Err(error) => self.entry.problem(&below, &error.to_string()),
            }
        }
        found.sort_by(|one, other| one.key.cmp(&other.key));
        found
    }

    fn group(&mut self, names: &Names) -> Option<Group> {
        let by = self.written.group_by.as_ref()?;
        for (index, name) in by.iter().enumerate() {
            let is_known = names.captures.iter().any(|known| known.as_ref() == name)
                || (names.each && name == "item_key");
            if !is_known {
                let what = format!(
                    "`{name}` is no capture of the topic; alerts are grouped by captures, as {{name}} in the topic"
                );
                self.entry.problem(&["group_by".into(), index.into()], &what);
            }
        }
        let or =
            |span: Option<Span>, usual: u64| span.map_or(Duration::from_secs(usual), Span::get);
        Some(Group {
            by: by.iter().map(|name| Arc::from(name.as_str())).collect(),
            wait: or(self.written.group_wait, 30),
            interval: or(self.written.group_interval, 300),
        })
    }
}
