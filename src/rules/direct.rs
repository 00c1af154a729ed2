//! Simple expressions without CEL: comparisons, logic and arithmetic on fields, literals and names.
//!
//! CEL allocates at each field and comparison; most rules are a threshold. What this file evaluates is
//! exactly what CEL would say: whatever it does not know, and whatever fails, is `None`, and then CEL
//! is asked, which also words the error. So there is one source of errors, and a test that both agree
//! on results.

use std::cmp::Ordering;
use std::sync::Arc;

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};

use super::condition::{Scene, Scope, capture};
use super::functions;
use super::lower;
use super::pattern::{self, Pattern};
use super::view::EXACT_MAX;
use crate::payload::Value;

/// A compiled expression.
#[derive(Debug)]
pub(super) struct Direct(Node);

#[derive(Debug)]
enum Node {
    Literal(Literal),
    /// A field, an element, or a name alone.
    Path(Root, Box<[Step]>),
    Has(Root, Box<[Step]>, Arc<str>),
    Capture(Arc<str>),
    Topic,
    ClientId,
    Retain,
    Replayed,
    HasPrevious,
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Box<(Node, Node)>),
    Or(Box<(Node, Node)>),
    If(Box<(Node, Node, Node)>),
    Equal(Box<(Node, Node)>),
    Unequal(Box<(Node, Node)>),
    /// The orders for which it holds.
    Compare(Box<(Node, Node)>, [Ordering; 2]),
    Calculate(fn(f64, f64) -> f64, Box<(Node, Node)>),
    OneOf(Box<Node>, Box<[Literal]>),
    Num(Box<Node>),
    Matches(Box<Node>, Pattern),
}

#[derive(Debug)]
enum Root {
    Payload,
    Previous,
    Item,
    ItemKey,
    Named(Arc<str>),
}

#[derive(Debug)]
enum Step {
    Field(Arc<str>),
    Element(usize),
}

#[derive(Debug)]
enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Text(Arc<str>),
}

/// A result, borrowed where it can be.
#[derive(Clone, Copy, Debug)]
enum Seen<'a> {
    /// A part of a payload that is none of the following.
    Part(&'a Value),
    /// The same, with the value that it came from, which may have been whole.
    Number(f64, Option<&'a Value>),
    Int(i64),
    Bool(bool),
    Text(&'a str, Option<&'a Arc<str>>),
    Null,
}

/// `root` in this form; `None` if it needs CEL.
pub(super) fn compile(root: &IdedExpr, scope: &Scope<'_>, patterns: &[Pattern]) -> Option<Direct> {
    Compiler { scope, patterns }.node(root).map(Direct)
}

struct Compiler<'a> {
    scope: &'a Scope<'a>,
    patterns: &'a [Pattern],
}

impl Compiler<'_> {
    fn node(&self, node: &IdedExpr) -> Option<Node> {
        match &node.expr {
            Expr::Literal(value) => literal(value).map(Node::Literal),
            Expr::Ident(name) => match self.path(node) {
                Some((root, steps)) => Some(Node::Path(root, steps.into())),
                None => Some(match name.as_str() {
                    "topic" => Node::Topic,
                    "client_id" => Node::ClientId,
                    "retain" => Node::Retain,
                    "replayed" => Node::Replayed,
                    lower::HAS_PREVIOUS => Node::HasPrevious,
                    _ if lower::NAMES.contains(&name.as_str()) => return None,
                    _ if self.scope.captures.contains(&name.as_str()) => {
                        Node::Capture(name.as_str().into())
                    }
                    _ => return None,
                }),
            },
            Expr::Select(select) if select.test => {
                let (root, steps) = self.path(&select.operand)?;
                Some(Node::Has(root, steps.into(), select.field.as_str().into()))
            }
            Expr::Select(_) => {
                let (root, steps) = self.path(node)?;
                Some(Node::Path(root, steps.into()))
            }
            Expr::Call(call) => self.call(node, call),
            Expr::List(_)
            | Expr::Map(_)
            | Expr::Struct(_)
            | Expr::Comprehension(_)
            | Expr::Unspecified => None,
        }
    }

    fn call(&self, node: &IdedExpr, call: &CallExpr) -> Option<Node> {
        if call.target.is_some() {
            return None;
        }
        let name = call.func_name.as_str();
        let pair =
            |one: &IdedExpr, other: &IdedExpr| Some(Box::new((self.node(one)?, self.node(other)?)));
        match (name, call.args.as_slice()) {
            (operators::LOGICAL_NOT, [of]) => Some(Node::Not(Box::new(self.node(of)?))),
            (operators::NEGATE, [of]) => Some(Node::Negate(Box::new(self.node(of)?))),
            ("num", [of]) => Some(Node::Num(Box::new(self.node(of)?))),
            (operators::CONDITIONAL, [condition, then, other]) => Some(Node::If(Box::new((
                self.node(condition)?,
                self.node(then)?,
                self.node(other)?,
            )))),
            (operators::INDEX, [_, _]) => {
                let (root, steps) = self.path(node)?;
                Some(Node::Path(root, steps.into()))
            }
            (pattern::MATCHES, [of, pattern]) => {
                let Expr::Ident(name) = &pattern.expr else { return None };
                let pattern = pattern::named(self.patterns, name)?.clone();
                Some(Node::Matches(Box::new(self.node(of)?), pattern))
            }
            (operators::IN, [of, list]) => {
                let Expr::List(list) = &list.expr else { return None };
                let known = list.elements.iter().map(|element| match &element.expr {
                    Expr::Literal(value) => literal(value),
                    _ => None,
                });
                if !list.optional_indices.is_empty() {
                    return None;
                }
                let known: Option<Vec<Literal>> = known.collect();
                Some(Node::OneOf(Box::new(self.node(of)?), known?.into()))
            }
            (_, [one, other]) => {
                use Ordering::{Equal, Greater, Less};
                Some(match name {
                    operators::LOGICAL_AND => Node::And(pair(one, other)?),
                    operators::LOGICAL_OR => Node::Or(pair(one, other)?),
                    operators::EQUALS => Node::Equal(pair(one, other)?),
                    operators::NOT_EQUALS => Node::Unequal(pair(one, other)?),
                    operators::LESS => Node::Compare(pair(one, other)?, [Less, Less]),
                    operators::LESS_EQUALS => Node::Compare(pair(one, other)?, [Less, Equal]),
                    operators::GREATER => Node::Compare(pair(one, other)?, [Greater, Greater]),
                    operators::GREATER_EQUALS => Node::Compare(pair(one, other)?, [Greater, Equal]),
                    operators::ADD => Node::Calculate(|a, b| a + b, pair(one, other)?),
                    operators::SUBSTRACT => Node::Calculate(|a, b| a - b, pair(one, other)?),
                    operators::MULTIPLY => Node::Calculate(|a, b| a * b, pair(one, other)?),
                    operators::DIVIDE => Node::Calculate(|a, b| a / b, pair(one, other)?),
                    _ => return None,
                })
            }
            _ => None,
        }
    }

    /// Fields and elements of a value, written out.
    fn path(&self, node: &IdedExpr) -> Option<(Root, Vec<Step>)> {
        match &node.expr {
            Expr::Ident(name) => {
                let root = match name.as_str() {
                    "payload" => Root::Payload,
                    "previous" => Root::Previous,
                    "item" => Root::Item,
                    "item_key" => Root::ItemKey,
                    name if lower::NAMES.contains(&name) => return None,
                    name if self.scope.named.contains(&name) => Root::Named(name.into()),
                    _ => return None,
                };
                Some((root, Vec::new()))
            }
            Expr::Select(select) if !select.test => {
                let (root, mut steps) = self.path(&select.operand)?;
                steps.push(Step::Field(select.field.as_str().into()));
                Some((root, steps))
            }
            Expr::Call(call) if call.func_name == operators::INDEX => {
                let [of, index] = call.args.as_slice() else { return None };
                let step = match &index.expr {
                    Expr::Literal(LiteralValue::String(name)) => Step::Field(name.inner().into()),
                    Expr::Literal(LiteralValue::Int(index)) => {
                        Step::Element(usize::try_from(*index.inner()).ok()?)
                    }
                    _ => return None,
                };
                let (root, mut steps) = self.path(of)?;
                steps.push(step);
                Some((root, steps))
            }
            _ => None,
        }
    }
}

fn literal(value: &LiteralValue) -> Option<Literal> {
    Some(match value {
        LiteralValue::Boolean(value) => Literal::Bool(*value.inner()),
        LiteralValue::Double(value) => Literal::Double(*value.inner()),
        LiteralValue::Int(value) => Literal::Int(*value.inner()),
        LiteralValue::String(value) => Literal::Text(value.inner().into()),
        LiteralValue::Null => Literal::Null,
        LiteralValue::Bytes(_) | LiteralValue::UInt(_) => return None,
    })
}

impl Direct {
    pub(super) fn holds(&self, scene: &Scene<'_>) -> Option<bool> {
        self.0.truth(scene)
    }

    pub(super) fn key(&self, scene: &Scene<'_>) -> Option<String> {
        Some(match self.0.see(scene)? {
            Seen::Number(number, _) => number.to_string(),
            Seen::Int(number) => number.to_string(),
            Seen::Bool(value) => value.to_string(),
            Seen::Text(text, _) => text.to_owned(),
            Seen::Null | Seen::Part(_) => return None,
        })
    }

    pub(super) fn value(&self, scene: &Scene<'_>) -> Option<Value> {
        Some(match self.0.see(scene)? {
            Seen::Part(value) => value.clone(),
            Seen::Number(_, Some(value)) => value.clone(),
            Seen::Number(number, None) => super::view::number_from_cel(number),
            Seen::Int(number) => Value::Int(number),
            Seen::Bool(value) => Value::Bool(value),
            Seen::Text(_, Some(text)) => Value::Text(Arc::clone(text)),
            Seen::Text(text, None) => Value::Text(text.into()),
            Seen::Null => Value::Null,
        })
    }
}

impl Node {
    fn see<'a>(&'a self, scene: &Scene<'a>) -> Option<Seen<'a>> {
        match self {
            Self::Literal(value) => Some(value.seen()),
            Self::Path(root, steps) => seen(walk(scene, root, steps)?),
            Self::Capture(name) => {
                // What a rule names comes before a capture of that name.
                if scene.named.get(name).is_some() {
                    return None;
                }
                capture(scene.filter, scene.topic, name).map(|level| Seen::Text(level, None))
            }
            Self::Topic => Some(Seen::Text(scene.topic.as_str(), None)),
            Self::ClientId => Some(Seen::Text(scene.client_id, None)),
            Self::If(parts) => {
                let (condition, then, other) = parts.as_ref();
                if condition.truth(scene)? { then.see(scene) } else { other.see(scene) }
            }
            Self::Negate(of) => match of.see(scene)? {
                Seen::Number(number, _) => Some(Seen::Number(-number, None)),
                Seen::Int(number) => number.checked_neg().map(Seen::Int),
                _ => None,
            },
            Self::Calculate(operator, sides) => match (sides.0.see(scene)?, sides.1.see(scene)?) {
                (Seen::Number(one, _), Seen::Number(other, _)) => {
                    Some(Seen::Number(operator(one, other), None))
                }
                _ => None,
            },
            Self::Num(of) => match of.see(scene)? {
                Seen::Number(number, from) => {
                    number.is_finite().then_some(Seen::Number(number, from))
                }
                Seen::Text(text, _) => match functions::number::number_in(text).ok()? {
                    #[expect(clippy::cast_precision_loss, reason = "only done where it is exact")]
                    Value::Int(whole) if whole.unsigned_abs() <= EXACT_MAX => {
                        Some(Seen::Number(whole as f64, None))
                    }
                    Value::Float(number) => Some(Seen::Number(number, None)),
                    _ => None,
                },
                _ => None,
            },
            _ => self.truth(scene).map(Seen::Bool),
        }
    }

    fn truth(&self, scene: &Scene<'_>) -> Option<bool> {
        match self {
            Self::Retain => Some(scene.retain),
            Self::Replayed => Some(scene.replayed),
            Self::HasPrevious => Some(scene.previous.is_some()),
            Self::Has(root, steps, field) => match walk(scene, root, steps)? {
                Value::Map(map) => Some(map.get(field).is_some()),
                _ => None,
            },
            Self::Not(of) => of.truth(scene).map(|value| !value),
            Self::And(sides) => Some(sides.0.truth(scene)? && sides.1.truth(scene)?),
            Self::Or(sides) => Some(sides.0.truth(scene)? || sides.1.truth(scene)?),
            Self::Equal(sides) => equal(sides.0.see(scene)?, sides.1.see(scene)?),
            Self::Unequal(sides) => {
                equal(sides.0.see(scene)?, sides.1.see(scene)?).map(|equal| !equal)
            }
            Self::Compare(sides, orders) => compare(sides.0.see(scene)?, sides.1.see(scene)?)
                .map(|order| orders.contains(&order)),
            Self::OneOf(of, known) => {
                let value = of.see(scene)?;
                for literal in known {
                    if equal(literal.seen(), value)? {
                        return Some(true);
                    }
                }
                Some(false)
            }
            Self::Matches(of, pattern) => match of.see(scene)? {
                Seen::Text(text, _) => Some(pattern.is_in(text)),
                _ => None,
            },
            Self::Literal(_)
            | Self::Path(..)
            | Self::Capture(_)
            | Self::Topic
            | Self::ClientId
            | Self::If(_)
            | Self::Negate(_)
            | Self::Calculate(..)
            | Self::Num(_) => match self.see(scene)? {
                Seen::Bool(value) => Some(value),
                _ => None,
            },
        }
    }
}

impl Literal {
    fn seen(&self) -> Seen<'_> {
        match self {
            Self::Null => Seen::Null,
            Self::Bool(value) => Seen::Bool(*value),
            Self::Int(number) => Seen::Int(*number),
            Self::Double(number) => Seen::Number(*number, None),
            Self::Text(text) => Seen::Text(text, Some(text)),
        }
    }
}

fn walk<'a>(scene: &Scene<'a>, root: &Root, steps: &[Step]) -> Option<&'a Value> {
    let mut at = match root {
        Root::Payload => scene.payload,
        Root::Previous => scene.previous.unwrap_or(&Value::Null),
        Root::Item => scene.item?.1,
        Root::ItemKey => scene.item?.0,
        Root::Named(name) => scene.named.get(name)?,
    };
    for step in steps {
        at = match (step, at) {
            (Step::Field(name), Value::Map(map)) => map.get(name)?,
            (Step::Element(index), Value::List(items)) => items.get(*index)?,
            _ => return None,
        };
    }
    Some(at)
}

/// `None` for the whole numbers that are no doubles for CEL.
fn seen(value: &Value) -> Option<Seen<'_>> {
    Some(match value {
        Value::Null => Seen::Null,
        Value::Bool(value) => Seen::Bool(*value),
        #[expect(clippy::cast_precision_loss, reason = "only done where it is exact")]
        Value::Int(whole) if whole.unsigned_abs() <= EXACT_MAX => {
            Seen::Number(*whole as f64, Some(value))
        }
        Value::Int(_) | Value::Uint(_) => return None,
        Value::Float(number) => Seen::Number(*number, Some(value)),
        Value::Text(text) => Seen::Text(text, Some(text)),
        _ => Seen::Part(value),
    })
}

#[expect(clippy::cast_precision_loss, reason = "as CEL compares an int with a double")]
fn equal(one: Seen<'_>, other: Seen<'_>) -> Option<bool> {
    Some(match (one, other) {
        (Seen::Part(_), _) | (_, Seen::Part(_)) => return None,
        (Seen::Number(one, _), Seen::Number(other, _)) => one == other,
        (Seen::Number(one, _), Seen::Int(other)) | (Seen::Int(other), Seen::Number(one, _)) => {
            one == other as f64
        }
        (Seen::Int(one), Seen::Int(other)) => one == other,
        (Seen::Bool(one), Seen::Bool(other)) => one == other,
        (Seen::Text(one, _), Seen::Text(other, _)) => one == other,
        (Seen::Null, Seen::Null) => true,
        _ => false,
    })
}

#[expect(clippy::cast_precision_loss, reason = "as CEL compares an int with a double")]
fn compare(one: Seen<'_>, other: Seen<'_>) -> Option<Ordering> {
    match (one, other) {
        (Seen::Number(one, _), Seen::Number(other, _)) => one.partial_cmp(&other),
        (Seen::Number(one, _), Seen::Int(other)) => one.partial_cmp(&(other as f64)),
        (Seen::Int(one), Seen::Number(other, _)) => (one as f64).partial_cmp(&other),
        (Seen::Int(one), Seen::Int(other)) => Some(one.cmp(&other)),
        (Seen::Bool(one), Seen::Bool(other)) => Some(one.cmp(&other)),
        (Seen::Text(one, _), Seen::Text(other, _)) => Some(one.cmp(other)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::condition::Expression;
    use super::super::condition::testing::{SCOPE, with_scene};

    fn is_direct(source: &str) -> bool {
        Expression::compile(source, &SCOPE, 10_000).expect(source).is_direct()
    }

    #[test]
    fn what_most_rules_say_needs_no_cel() {
        for source in [
            "payload.temp_c > -15.0 && unit == '1'",
            "payload > 20",
            "payload == 'Online'",
            "!has(payload.a.b) || payload.params[\"dp:0\"][1].x != null",
            "payload.t * 1.8 + 32 > 67",
            "payload.state in ['on', 'off', 1]",
            "num(payload.t) >= avg5 + 0.5",
            "payload.s.matches('^a') ? retain : item.x == 7",
            "changed(payload.s) || previous.s == 1",
            "is_on(payload.s)",
        ] {
            let expected = !source.starts_with("changed") && !source.starts_with("is_on");
            assert_eq!(is_direct(source), expected, "{source}");
        }
        for source in ["payload.l.exists(x, x > 1)", "now - at < duration('1m')", "size(payload)"] {
            assert!(!is_direct(source), "{source}");
        }
    }

    fn leaf() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "payload.a",
            "payload.b",
            "payload.c.d",
            "payload[0]",
            "payload['a']",
            "payload",
            "payload.x",
            "previous.a",
            "previous",
            "item.x",
            "item_key",
            "avg5",
            "empty",
            "state",
            "failed",
            "unit",
            "topic",
            "client_id",
            "retain",
            "replayed",
            "1",
            "0",
            "2.5",
            "-3",
            "9007199254740993",
            "'a'",
            "''",
            "'12'",
            "true",
            "false",
            "null",
            "has(payload.a)",
            "has(payload.c.d)",
            "has(payload.a.b)",
        ])
        .prop_map(str::to_owned)
    }

    fn expression() -> impl Strategy<Value = String> {
        leaf().prop_recursive(4, 24, 3, |inner| {
            let operator = prop::sample::select(vec![
                "==", "!=", "<", "<=", ">", ">=", "&&", "||", "+", "-", "*", "/",
            ]);
            prop_oneof![
                6 => (inner.clone(), operator, inner.clone())
                    .prop_map(|(one, operator, other)| format!("({one} {operator} {other})")),
                1 => inner.clone().prop_map(|of| format!("!({of})")),
                1 => inner.clone().prop_map(|of| format!("-({of})")),
                1 => inner.clone().prop_map(|of| format!("num({of})")),
                1 => inner.clone().prop_map(|of| format!("({of}).matches('^[a1]')")),
                1 => inner.clone().prop_map(|of| format!("(({of}) in [1, 'a', 2.5, null, true])")),
                1 => (inner.clone(), inner.clone(), inner)
                    .prop_map(|(one, two, three)| format!("({one} ? {two} : {three})")),
            ]
        })
    }

    fn payload() -> impl Strategy<Value = String> {
        let scalar = prop::sample::select(vec![
            "1",
            "1.0",
            "0",
            "-2.5",
            "2.5",
            "9007199254740993",
            "18446744073709551615",
            "\"a\"",
            "\"12\"",
            "\"\"",
            "true",
            "false",
            "null",
            "[1]",
            "{\"d\":1}",
        ]);
        prop_oneof![
            4 => (scalar.clone(), scalar.clone(), scalar.clone())
                .prop_map(|(a, b, d)| format!("{{\"a\":{a},\"b\":{b},\"c\":{{\"d\":{d}}}}}")),
            1 => scalar.clone().prop_map(|a| format!("[{a}]")),
            1 => scalar.prop_map(str::to_owned),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3_000))]

        /// An answer of this file is the answer of CEL.
        #[test]
        fn agrees_with_cel(source in expression(), payload in payload(), previous in payload()) {
            if let Ok(expression) = Expression::compile(&source, &SCOPE, 10_000) {
                with_scene(payload.as_bytes(), Some(previous.as_bytes()), |scene| {
                    expression.check_against_cel(scene);
                });
            }
        }
    }
}
