//! What an expression may cost: its work grows with a payload, not with its square.
//!
//! `cel` has no limit on cost, and a device chooses how long a list and a text are. So inside a loop
//! nothing goes through a value from outside of it, and nothing makes a text of two that a device
//! chose.

use cel::common::ast::{CallExpr, Expr, IdedExpr, operators};

use super::Lowering;
use crate::rules::functions::{self, Gives};

/// The variable in which CEL's macros gather their result.
const GATHERED: &str = "@result";

/// Functions of CEL that look at all of a text.
const WALKING: &[&str] = &[
    "bytes",
    "contains",
    "double",
    "duration",
    "endsWith",
    "int",
    "matches",
    "size",
    "startsWith",
    "string",
    "timestamp",
    "uint",
];

/// Functions of CEL whose result may be as large as what they were given.
const LARGE: &[&str] =
    &["bytes", "dyn", "string", "of", "ofNonZeroValue", "or", "orValue", "value"];

/// How large a value may be, and how often it is looked at while a loop runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// A literal, a number, true or false, a time, a level of the topic.
    Small,
    /// What the loop is at: all rounds together look at each element once.
    Element,
    /// As large as a device likes, and looked at in each round.
    Outside,
}

impl Lowering<'_> {
    /// What a function would cost inside of a loop.
    pub(super) fn walks(&mut self, name: &str, call: &CallExpr) {
        let walks =
            functions::find(name).map_or_else(|| WALKING.contains(&name), |ours| ours.walks);
        if self.loops == 0 || !walks {
            return;
        }
        let mut all = call.target.iter().map(|target| target.as_ref()).chain(&call.args);
        if all.any(|argument| self.weight(argument) == Weight::Outside) {
            self.problems.push(format!(
                "in a loop, `{name}` would go through a text or list from outside of the loop in each round; give it a name with `let` first"
            ));
        }
    }

    /// How large what `node` gives may be, seen from inside a loop.
    pub(super) fn weight(&self, node: &IdedExpr) -> Weight {
        match &node.expr {
            Expr::Ident(name) => {
                let name = name.strip_prefix('.').unwrap_or(name);
                if self.scope.iter().any(|(bound, _)| bound == name) {
                    Weight::Element
                } else if ["payload", "previous", "item"].contains(&name)
                    || self.seen.named.contains(&name)
                {
                    Weight::Outside
                } else {
                    Weight::Small
                }
            }
            Expr::Select(select) if !select.test => self.weight(&select.operand),
            Expr::Call(call) => {
                let heaviest = |nodes: &[IdedExpr]| {
                    nodes.iter().map(|node| self.weight(node)).max().unwrap_or(Weight::Small)
                };
                let name = call.func_name.as_str();
                match (name, call.args.as_slice()) {
                    (operators::INDEX | operators::OPT_INDEX | operators::OPT_SELECT, [of, _]) => {
                        self.weight(of)
                    }
                    (operators::ADD, sides @ [_, _]) => heaviest(sides),
                    (operators::CONDITIONAL, [_, choices @ ..]) => heaviest(choices),
                    (_, arguments) => {
                        let large = match functions::find(name) {
                            Some(function) => function.gives == Gives::Large,
                            None => LARGE.contains(&name),
                        };
                        let target = call.target.iter().map(|target| self.weight(target)).max();
                        if large {
                            heaviest(arguments).max(target.unwrap_or(Weight::Small))
                        } else {
                            Weight::Small
                        }
                    }
                }
            }
            Expr::List(list) => {
                list.elements.iter().map(|node| self.weight(node)).max().unwrap_or(Weight::Small)
            }
            Expr::Map(_) | Expr::Comprehension(_) => Weight::Outside,
            Expr::Select(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {
                Weight::Small
            }
        }
    }

    /// What an operator would cost inside of a loop.
    pub(super) fn cost(&mut self, operator: &str, first: &IdedExpr, second: &IdedExpr) {
        if self.in_lambda == 0 {
            return;
        }
        let (one, other) = (self.weight(first), self.weight(second));
        let gathers = matches!(&first.expr, Expr::Ident(name) if name == GATHERED);
        match operator {
            operators::ADD if !gathers && one.min(other) > Weight::Small => {
                self.problems.push(
                    "in a loop, `+` takes a literal or a number on one side at least; write num(...) around one if it is a number"
                        .to_owned(),
                );
            }
            operators::IN if self.loops > 0 && other == Weight::Outside => {
                self.problems.push(
                    "in a loop, `in` would go through a list from outside of the loop in each round"
                        .to_owned(),
                );
            }
            operators::EQUALS | operators::NOT_EQUALS
                if self.loops > 0 && one.min(other) == Weight::Outside =>
            {
                self.problems.push(
                    "in a loop, two values from outside of it would be compared in each round; move that out of the loop"
                        .to_owned(),
                );
            }
            _ => {}
        }
    }
}
