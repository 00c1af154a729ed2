//! Types that are known without a payload: captures are text, `now` is a time, `size(x)` a number.
//!
//! CEL has no types until it evaluates, and then `unit == 1` is false for ever and `unit > 1` fails
//! on each publish, both in silence. Whatever touches a payload has no known type and is not judged.
//!
//! Invariant: what is refused here fails, or comes out the same, whatever a device sends.

use std::fmt;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators,
};

use super::super::condition::Scope;
use super::super::functions;

/// What an expression gives, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Anything: it depends on a payload.
    #[default]
    Any,
    /// Anything but true or false.
    Value,
    /// True or false.
    Bool,
    /// A number.
    Number,
    /// Text.
    Text,
    /// Bytes.
    Bytes,
    /// A point in time.
    Time,
    /// A length of time.
    Duration,
    /// A list.
    List,
    /// A map.
    Map,
    /// Nothing.
    Null,
}

impl Kind {
    /// What becomes of it in a `let`, which keeps a time as text and a length of time as seconds.
    pub fn kept(self) -> Self {
        match self {
            Self::Time => Self::Text,
            Self::Duration => Self::Number,
            other => other,
        }
    }

    fn is_known(self) -> bool {
        !matches!(self, Self::Any | Self::Value)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any | Self::Value => "a value",
            Self::Bool => "true or false",
            Self::Number => "a number",
            Self::Text => "text",
            Self::Bytes => "bytes",
            Self::Time => "a time",
            Self::Duration => "a length of time",
            Self::List => "a list",
            Self::Map => "a map",
            Self::Null => "null",
        })
    }
}

/// What the expression gives, and everything that can never work. As it was parsed, before the
/// lowering.
pub(in crate::rules) fn of(root: &IdedExpr, scope: &Scope<'_>) -> (Kind, Vec<String>) {
    let mut types = Types { seen: scope, bound: Vec::new(), depth: 0, problems: Vec::new() };
    let kind = types.of(root);
    (kind, types.problems)
}

struct Types<'a> {
    seen: &'a Scope<'a>,
    /// Names that loops bind, innermost last.
    bound: Vec<(String, Kind)>,
    depth: usize,
    problems: Vec<String>,
}

impl Types<'_> {
    fn of(&mut self, node: &IdedExpr) -> Kind {
        // The lowering refuses what is deeper.
        if self.depth > super::DEPTH_MAX {
            return Kind::Any;
        }
        self.depth += 1;
        let kind = self.of_expr(&node.expr);
        self.depth -= 1;
        kind
    }

    fn of_expr(&mut self, expr: &Expr) -> Kind {
        match expr {
            Expr::Literal(literal) => of_literal(literal),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => {
                let operand = self.of(&select.operand);
                if operand.is_known() && operand != Kind::Map {
                    let what = written(&select.operand.expr);
                    self.problems.push(format!("{what} is {operand} and has no fields"));
                }
                if select.test { Kind::Bool } else { Kind::Any }
            }
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                for element in &list.elements {
                    self.of(element);
                }
                Kind::List
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.of(&entry.key);
                        self.of(&entry.value);
                    }
                }
                Kind::Map
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(_) | Expr::Unspecified => Kind::Any,
        }
    }

    fn name(&self, name: &str) -> Kind {
        if let Some((_, kind)) = self.bound.iter().rev().find(|(bound, _)| bound == name) {
            return *kind;
        }
        match name {
            "topic" | "client_id" => Kind::Text,
            "retain" | "replayed" => Kind::Bool,
            "at" | "now" => Kind::Time,
            "payload" | "previous" | "item" | "item_key" => Kind::Any,
            _ => match self.seen.named.iter().position(|named| *named == name) {
                Some(position) => self.seen.kinds.get(position).copied().unwrap_or_default(),
                None if self.seen.captures.contains(&name) => Kind::Text,
                None => Kind::Any,
            },
        }
    }

    fn call(&mut self, call: &CallExpr) -> Kind {
        let operator = call.func_name.as_str();
        match (operator, call.args.as_slice()) {
            (operators::LOGICAL_NOT, [one]) => {
                self.truth("!", one);
                Kind::Bool
            }
            (operators::LOGICAL_AND, [one, other]) => self.truths("&&", one, other),
            (operators::LOGICAL_OR, [one, other]) => self.truths("||", one, other),
            (operators::CONDITIONAL, [condition, then, other]) => {
                self.truth("?", condition);
                let (then, other) = (self.of(then), self.of(other));
                if then == other { then } else { Kind::Any }
            }
            (operators::NEGATE, [one]) => match self.of(one) {
                Kind::Any => Kind::Value,
                known => known,
            },
            (operators::EQUALS | operators::NOT_EQUALS, [one, other]) => {
                let kinds = (self.of(one), self.of(other));
                // Whether something is there may be asked of anything.
                if kinds.0 != Kind::Null && kinds.1 != Kind::Null {
                    self.like(operator, (one, other), kinds);
                }
                Kind::Bool
            }
            (
                operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS,
                [one, other],
            ) => {
                let kinds = (self.of(one), self.of(other));
                self.like(operator, (one, other), kinds);
                Kind::Bool
            }
            (operators::IN, [one, other]) => {
                self.within(one, other);
                Kind::Bool
            }
            (
                operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO,
                [one, other],
            ) => self.sum(operator, one, other),
            (operators::INDEX | operators::OPT_INDEX, [one, other]) => {
                let container = self.of(one);
                self.of(other);
                if container == Kind::Bytes {
                    let what = written(&one.expr);
                    self.problems.push(format!(
                        "{what} is bytes, which are taken by read(x, 0, 'u8'), not by [0]"
                    ));
                } else if container.is_known() && !matches!(container, Kind::List | Kind::Map) {
                    let what = written(&one.expr);
                    self.problems.push(format!("{what} is {container} and has no elements"));
                }
                Kind::Any
            }
            _ => self.function(call),
        }
    }

    /// What a function gives. What it takes is its own matter: many take several types.
    fn function(&mut self, call: &CallExpr) -> Kind {
        if let Some(target) = &call.target {
            self.of(target);
        }
        for argument in &call.args {
            self.of(argument);
        }
        let name = call.func_name.as_str();
        let ours = functions::find(name).filter(|_| call.target.is_none());
        if let Some(function) = ours {
            return function.kind;
        }
        match (name, call.target.is_some()) {
            ("matches", _)
            | ("contains" | "startsWith" | "endsWith" | "hasValue", true)
            | ("bool", false) => Kind::Bool,
            ("size", _) | ("int" | "uint" | "double", false) => Kind::Number,
            ("string", false) => Kind::Text,
            ("bytes", false) => Kind::Bytes,
            ("timestamp", false) => Kind::Time,
            ("duration", false) => Kind::Duration,
            (name, true) if name.starts_with("get") => Kind::Number,
            _ => Kind::Any,
        }
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Kind {
        let range = self.of(&comprehension.iter_range);
        if range.is_known() && !matches!(range, Kind::List | Kind::Map) {
            let what = written(&comprehension.iter_range.expr);
            self.problems.push(format!("{what} is {range}; a loop goes through a list or map"));
        }
        let gathered = self.of(&comprehension.accu_init);
        let outer = self.bound.len();
        self.bound.push((comprehension.iter_var.clone(), Kind::Any));
        if let Some(second) = &comprehension.iter_var2 {
            self.bound.push((second.clone(), Kind::Any));
        }
        self.bound.push((comprehension.accu_var.clone(), gathered));
        self.of(&comprehension.loop_cond);
        self.of(&comprehension.loop_step);
        let result = self.of(&comprehension.result);
        self.bound.truncate(outer);
        // `optMap` binds a name by a loop over nothing.
        if matches!(result, Kind::Bool | Kind::List) { result } else { Kind::Any }
    }

    fn truths(&mut self, operator: &str, one: &IdedExpr, other: &IdedExpr) -> Kind {
        self.truth(operator, one);
        self.truth(operator, other);
        Kind::Bool
    }

    fn truth(&mut self, operator: &str, node: &IdedExpr) {
        let kind = self.of(node);
        if !matches!(kind, Kind::Any | Kind::Bool) {
            let what = written(&node.expr);
            self.problems.push(format!(
                "`{operator}` takes true or false, and {what} is {kind}; compare it, as in x > 5"
            ));
        }
    }

    fn like(&mut self, operator: &str, (one, other): (&IdedExpr, &IdedExpr), kinds: (Kind, Kind)) {
        let (left, right) = kinds;
        if !left.is_known() || !right.is_known() || left == right {
            return;
        }
        let operator = operator.trim_matches('_');
        let (one, other) = (written(&one.expr), written(&other.expr));
        let hint = match (left, right) {
            (Kind::Text, Kind::Number) | (Kind::Number, Kind::Text) => {
                "; num(x) is the number that a text is, and '1' in quotes is text"
            }
            (Kind::Time, Kind::Text) | (Kind::Text, Kind::Time) => {
                "; timestamp(x) is the time that a text is"
            }
            (Kind::Time, _) | (_, Kind::Time) => {
                "; the time since then is a length of time, as in now - at > duration('5m')"
            }
            (Kind::Duration, _) | (_, Kind::Duration) => "; duration('5m') is a length of time",
            // 5 < x < 6
            (Kind::Bool, Kind::Number) => "; a range is written x > 5 && x < 6",
            _ => "",
        };
        self.problems.push(format!(
            "`{operator}` compares {one}, which is {left}, with {other}, which is {right}{hint}"
        ));
    }

    fn within(&mut self, one: &IdedExpr, other: &IdedExpr) {
        let (left, right) = (self.of(one), self.of(other));
        if right.is_known() && !matches!(right, Kind::List | Kind::Map) {
            let (what, text) = (written(&other.expr), "; in text write topic.contains('a')");
            let hint = if right == Kind::Text { text } else { "" };
            self.problems
                .push(format!("`in` looks into a list or map, and {what} is {right}{hint}"));
        }
        if let Expr::List(list) = &other.expr {
            let kinds: Vec<Kind> =
                list.elements.iter().map(|element| self.quiet(element)).collect();
            let differs = |kind: &Kind| kind.is_known() && *kind != left && *kind != Kind::Null;
            if left.is_known() && !kinds.is_empty() && kinds.iter().all(differs) {
                let (what, of) = (written(&one.expr), kinds.first().copied().unwrap_or_default());
                self.problems.push(format!(
                    "`in` looks for {what}, which is {left}, in a list that has none of that kind ({of})"
                ));
            }
        }
    }

    /// The kind of what was looked at already.
    fn quiet(&mut self, node: &IdedExpr) -> Kind {
        let before = self.problems.len();
        let kind = self.of(node);
        self.problems.truncate(before);
        kind
    }

    fn sum(&mut self, operator: &str, one: &IdedExpr, other: &IdedExpr) -> Kind {
        use Kind::{Any, Bytes, Duration, List, Number, Text, Time, Value};
        let (left, right) = (self.of(one), self.of(other));
        let adds = operator == operators::ADD;
        let is_sum = adds || operator == operators::SUBSTRACT;
        match (left, right) {
            (Any | Value, _) | (_, Any | Value) => {
                if is_sum {
                    Value
                } else {
                    Number
                }
            }
            (Number, Number) => Number,
            (Text, Text) if adds => Text,
            (Bytes, Bytes) if adds => Bytes,
            (List, List) if adds => List,
            (Time, Duration) if is_sum => Time,
            (Duration, Time) if adds => Time,
            (Duration, Duration) if is_sum => Duration,
            (Time, Time) if !adds && is_sum => Duration,
            _ => {
                let hint = match (left, right) {
                    (Text, Number) | (Number, Text) if adds => {
                        "; string(x) makes text of a number, num(x) a number of text"
                    }
                    (Text, Number) | (Number, Text) => "; num(x) is the number that a text is",
                    (Time, Text) | (Text, Time) => "; timestamp(x) is the time that a text is",
                    (Time | Duration, _) | (_, Time | Duration) => {
                        "; duration('5m') is a length of time"
                    }
                    _ => "",
                };
                let operator = operator.trim_matches('_');
                let (one, other) = (written(&one.expr), written(&other.expr));
                self.problems.push(format!(
                    "`{operator}` takes two alike, and {one} is {left}, {other} {right}{hint}"
                ));
                Value
            }
        }
    }
}

fn of_literal(literal: &LiteralValue) -> Kind {
    match literal {
        LiteralValue::Boolean(_) => Kind::Bool,
        LiteralValue::Bytes(_) => Kind::Bytes,
        LiteralValue::Double(_) | LiteralValue::Int(_) | LiteralValue::UInt(_) => Kind::Number,
        LiteralValue::String(_) => Kind::Text,
        LiteralValue::Null => Kind::Null,
    }
}

/// An operand as people find it again: its name, or what stands in the file.
fn written(expr: &Expr) -> String {
    match expr {
        Expr::Ident(name) => format!("`{name}`"),
        Expr::Literal(LiteralValue::String(text)) => format!("'{}'", text.inner()),
        Expr::Literal(LiteralValue::Int(number)) => number.inner().to_string(),
        Expr::Literal(LiteralValue::Double(number)) => number.inner().to_string(),
        Expr::Literal(LiteralValue::Boolean(value)) => value.inner().to_string(),
        Expr::Call(call) if is_word(&call.func_name) => format!("what `{}` gives", call.func_name),
        Expr::Call(call) => format!("what `{}` gives", call.func_name.trim_matches('_')),
        _ => "what stands beside it".to_owned(),
    }
}

fn is_word(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::super::super::condition::Expression;
    use super::*;

    const SCOPE: Scope<'_> = Scope {
        captures: &["unit", "site"],
        named: &["t", "mean", "frame"],
        kinds: &[Kind::Number, Kind::Any, Kind::Bytes],
        each: true,
        words: None,
    };

    #[test]
    fn what_can_never_work_is_refused() {
        for (source, expected) in [
            (
                "unit == 1",
                "`==` compares `unit`, which is text, with 1, which is a number; num(x) is the number that a text is, and '1' in quotes is text",
            ),
            (
                "5 < unit",
                "`<` compares 5, which is a number, with `unit`, which is text; num(x) is the number that a text is, and '1' in quotes is text",
            ),
            (
                "unit in [1, 2]",
                "`in` looks for `unit`, which is text, in a list that has none of that kind (a number)",
            ),
            (
                "'a' in topic",
                "`in` looks into a list or map, and `topic` is text; in text write topic.contains('a')",
            ),
            (
                "payload.a > 1 && t",
                "`&&` takes true or false, and `t` is a number; compare it, as in x > 5",
            ),
            (
                "payload.a > 1 || payload.b * 2",
                "`||` takes true or false, and what `*` gives is a number; compare it, as in x > 5",
            ),
            ("!site", "`!` takes true or false, and `site` is text; compare it, as in x > 5"),
            (
                "now - at > 300",
                "`>` compares what `-` gives, which is a length of time, with 300, which is a number; duration('5m') is a length of time",
            ),
            (
                "now > '2026-05-02'",
                "`>` compares `now`, which is a time, with '2026-05-02', which is text; timestamp(x) is the time that a text is",
            ),
            (
                "unit + 1 == 'a'",
                "`+` takes two alike, and `unit` is text, 1 a number; string(x) makes text of a number, num(x) a number of text",
            ),
            (
                "5 < payload.a < 6",
                "`<` compares what `<` gives, which is true or false, with 6, which is a number; a range is written x > 5 && x < 6",
            ),
            ("site.name == 'a'", "`site` is text and has no fields"),
            ("unit[0] == 'a'", "`unit` is text and has no elements"),
            ("frame[0] == 1", "`frame` is bytes, which are taken by read(x, 0, 'u8'), not by [0]"),
            ("unit.exists(x, x == 'a')", "`unit` is text; a loop goes through a list or map"),
            (
                "is_on(payload.a) == 'on'",
                "`==` compares what `is_on` gives, which is true or false, with 'on', which is text",
            ),
        ] {
            let problems = Expression::compile(source, &SCOPE, 2_000).expect_err(source);
            assert_eq!(problems.join(" | "), expected, "{source}");
        }
    }

    #[test]
    fn what_a_payload_decides_is_not_judged() {
        for (source, kind) in [
            ("unit == '1' && num(unit) > 0", Kind::Bool),
            ("payload.a == 1 || payload.a == '1'", Kind::Bool),
            ("payload.a && payload.b", Kind::Bool),
            ("payload.a", Kind::Any),
            ("payload.a + 1", Kind::Value),
            ("payload.a * 2", Kind::Number),
            ("mean != null && mean > 1", Kind::Bool),
            ("topic == null", Kind::Bool),
            ("unit in ['1', '2'] || unit in payload.units", Kind::Bool),
            ("payload.a in [1, 'a', null]", Kind::Bool),
            ("now - at > duration('5m') && now > timestamp('2026-05-02T00:00:00Z')", Kind::Bool),
            ("now - duration('1h') < at && now.getHours('Europe/Berlin') >= 22", Kind::Bool),
            ("time(payload.ts) + duration('1m') > now", Kind::Bool),
            ("payload.l.all(x, x > 1) && payload.m.exists_one(x, x == 'a')", Kind::Bool),
            ("payload.l.map(x, x * 2)", Kind::List),
            ("payload.l.filter(x, x.on).size()", Kind::Number),
            ("payload.?a.optMap(x, x + 1).orValue(0)", Kind::Any),
            ("payload.?a.orValue(0) > 1 && has(payload.b.c)", Kind::Bool),
            ("type(payload) == string ? payload : payload.state", Kind::Any),
            ("payload.a > 1 ? 'a' : 'b'", Kind::Text),
            ("changed(payload.a) && item_key == 'a' && item.x > t", Kind::Bool),
            ("read(frame, 0, 'u8')", Kind::Any),
            ("'' + unit + '/' + site", Kind::Text),
            ("b'ab' == frame && size(frame) == 2", Kind::Bool),
        ] {
            let expression = Expression::compile(source, &SCOPE, 2_000).expect(source);
            assert_eq!(expression.kind(), kind, "{source}");
        }
    }
}
