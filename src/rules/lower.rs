//! What is checked and settled in a CEL expression when its rule is loaded.
//!
//! Checked: every name and function exists, no loop runs inside a loop (`cel` has no limit on
//! cost, and a device chooses how long a list is), no regular expression comes from a payload.
//!
//! Settled: a whole number beside a payload's number becomes a `double`, because every number of a
//! payload is one ([`super::view`]) and CEL adds only like to like: `payload.count + 1` means what
//! it says. And a literal list or map stands on the right of `==`, where [`super::view`] can
//! compare it.

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators,
};
use cel::common::types::CelDouble;

use super::condition::Scope;
use crate::problem::closest;

/// What every expression sees besides what its rule names and its captures.
pub(super) const NAMES: &[&str] =
    &["payload", "previous", "topic", "client_id", "retain", "replayed", "at", "now"];

/// What the expressions of a rule with `each` see too.
pub(super) const NAMES_EACH: &[&str] = &["item", "item_key"];

/// Whether there is a previous payload. No rule can write this name.
pub(super) const HAS_PREVIOUS: &str = "@previous";

/// Types, which may be named: `type(payload) == double`.
const TYPES: &[&str] = &[
    "bool",
    "bytes",
    "double",
    "duration",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "timestamp",
    "type",
    "uint",
];

/// Functions that are called as `f(x)`.
const FUNCTIONS: &[&str] = &[
    "bool",
    "bytes",
    "double",
    "duration",
    "dyn",
    "has",
    "int",
    "matches",
    "size",
    "string",
    "timestamp",
    "type",
    "uint",
];

/// Functions that are called as `x.f()`.
const METHODS: &[&str] = &[
    "contains",
    "endsWith",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "hasValue",
    "matches",
    "or",
    "orValue",
    "size",
    "startsWith",
    "value",
    "all",
    "exists",
    "exists_one",
    "filter",
    "map",
    "optFlatMap",
    "optMap",
];

/// Functions that are called as `optional.f(x)`.
const OPTIONAL: &[&str] = &["none", "of", "ofNonZeroValue"];

/// The parser rewrites these; one that is left was called the wrong way.
const MACROS: &[(&str, &str)] = &[
    ("has", "has(payload.field)"),
    ("all", "list.all(x, x > 1)"),
    ("exists", "list.exists(x, x > 1)"),
    ("exists_one", "list.exists_one(x, x > 1)"),
    ("filter", "list.filter(x, x > 1)"),
    ("map", "list.map(x, x * 2)"),
    ("optMap", "payload.?field.optMap(x, x * 2)"),
    ("optFlatMap", "payload.?field.optFlatMap(x, x.?y)"),
];

/// Deeper trees could exhaust a thread's stack when they are evaluated.
const DEPTH_MAX: usize = 64;

/// Checks `root` and settles it in place.
///
/// # Errors
/// Everything that is wrong with it.
pub(super) fn lower(root: &mut IdedExpr, scope: &Scope<'_>) -> Result<Reads, Vec<String>> {
    let mut lowering = Lowering {
        seen: *scope,
        scope: Vec::new(),
        loops: 0,
        depth: 0,
        problems: Vec::new(),
        reads: Reads::default(),
    };
    lowering.walk(root);
    if lowering.problems.is_empty() {
        Ok(lowering.reads)
    } else {
        lowering.problems.dedup();
        Err(lowering.problems)
    }
}

/// What an expression reads.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Variables by name, each once.
    pub(super) names: Vec<String>,
    /// Fields of the payload, as `payload.a.b`, each once.
    pub(super) paths: Vec<String>,
}

/// What is known of the number that an expression gives, should it give one.
#[derive(Clone, Copy, PartialEq)]
enum Number {
    /// A `double`, as every number of a payload.
    Double,
    /// An `int`.
    Int,
    Unknown,
}

struct Lowering<'a> {
    seen: Scope<'a>,
    /// Names that loops bind, innermost last.
    scope: Vec<(String, Number)>,
    loops: usize,
    depth: usize,
    problems: Vec<String>,
    reads: Reads,
}

impl Lowering<'_> {
    fn walk(&mut self, node: &mut IdedExpr) -> Number {
        self.depth += 1;
        let number = if self.depth > DEPTH_MAX {
            let what = format!("it is nested deeper than {DEPTH_MAX} levels; split the rule");
            if !self.problems.contains(&what) {
                self.problems.push(what);
            }
            Number::Unknown
        } else {
            self.walk_expr(&mut node.expr)
        };
        self.depth -= 1;
        number
    }

    fn walk_expr(&mut self, expr: &mut Expr) -> Number {
        match expr {
            Expr::Literal(LiteralValue::Int(_)) => Number::Int,
            Expr::Literal(LiteralValue::Double(_)) => Number::Double,
            Expr::Literal(_) => Number::Unknown,
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => match self.walk(&mut select.operand) {
                Number::Double if !select.test => Number::Double,
                _ => Number::Unknown,
            },
            Expr::Call(call) => self.call(call),
            Expr::List(list) => {
                for element in &mut list.elements {
                    self.walk(element);
                }
                Number::Unknown
            }
            Expr::Map(map) => {
                for entry in &mut map.entries {
                    if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                        self.walk(&mut entry.key);
                        self.walk(&mut entry.value);
                    }
                }
                Number::Unknown
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(literal) => {
                let what = format!("`{}{{...}}`: there are no message types", literal.type_name);
                self.problems.push(what);
                Number::Unknown
            }
            Expr::Unspecified => {
                self.problems.push("it is incomplete".to_owned());
                Number::Unknown
            }
        }
    }

    fn name(&mut self, name: &str) -> Number {
        let name = name.strip_prefix('.').unwrap_or(name);
        if let Some((_, number)) = self.scope.iter().rev().find(|(bound, _)| bound == name) {
            return *number;
        }
        if !self.reads.names.iter().any(|known| known == name) {
            self.reads.names.push(name.to_owned());
        }
        if ["payload", "previous"].contains(&name) || self.seen.named.contains(&name) {
            return Number::Double;
        }
        if NAMES_EACH.contains(&name) {
            if !self.seen.each {
                let what = format!("`{name}` is there only in a rule with `each`");
                self.problems.push(what);
            }
            return Number::Double;
        }
        let known = NAMES.contains(&name)
            || self.seen.captures.contains(&name)
            || TYPES.contains(&name)
            || name == HAS_PREVIOUS;
        if !known {
            let names = NAMES.iter().chain(self.seen.named).chain(self.seen.captures);
            let mut candidates: Vec<&str> = names.copied().collect();
            if self.seen.each {
                candidates.extend(NAMES_EACH);
            }
            self.problems.push(match closest(name, &candidates) {
                Some(near) => format!("unknown name `{name}`; did you mean `{near}`?"),
                None => format!(
                    "unknown name `{name}`; a field of the payload is written payload.{name}, and known are {}",
                    candidates.join(", ")
                ),
            });
        }
        Number::Unknown
    }

    fn call(&mut self, call: &mut CallExpr) -> Number {
        if let Some(number) = self.operator(call) {
            return number;
        }
        let name = call.func_name.as_str();
        let in_optional = matches!(
            call.target.as_deref(),
            Some(IdedExpr { expr: Expr::Ident(target), .. }) if target == "optional"
        );
        let known = match &call.target {
            None => FUNCTIONS,
            Some(_) if in_optional => OPTIONAL,
            Some(_) => METHODS,
        };
        if !known.contains(&name) {
            self.problems.push(match closest(name, known) {
                Some(near) => format!("unknown function `{name}`; did you mean `{near}`?"),
                None => format!("unknown function `{name}`; known are {}", known.join(", ")),
            });
        } else if let Some((_, usage)) = MACROS.iter().find(|(macro_name, _)| *macro_name == name) {
            self.problems.push(format!("`{name}` is written {usage}"));
            return Number::Unknown;
        }
        if name == "matches" {
            self.pattern(call.args.last());
        }
        let target = match &mut call.target {
            Some(target) if !in_optional => self.walk(target),
            _ => Number::Unknown,
        };
        let arguments: Vec<Number> = call.args.iter_mut().map(|arg| self.walk(arg)).collect();
        match call.func_name.as_str() {
            "double" => Number::Double,
            "int" | "size" => Number::Int,
            "value" => target,
            "orValue" if target == Number::Double => {
                if arguments.first() == Some(&Number::Int) {
                    call.args.iter_mut().for_each(make_double);
                }
                Number::Double
            }
            name if name.starts_with("get") => Number::Int,
            _ => Number::Unknown,
        }
    }

    /// What `call` gives if it is an operator.
    fn operator(&mut self, call: &mut CallExpr) -> Option<Number> {
        let [first, rest @ ..] = call.args.as_mut_slice() else {
            return None;
        };
        let operator = call.func_name.as_str();
        Some(match (operator, rest) {
            (operators::LOGICAL_NOT | operators::NOT_STRICTLY_FALSE, []) => {
                self.walk(first);
                Number::Unknown
            }
            (operators::NEGATE, []) => self.walk(first),
            (operators::CONDITIONAL, [then, other]) => {
                self.walk(first);
                self.alike(then, other)
            }
            (
                operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE,
                [second],
            ) => self.alike(first, second),
            (operators::MODULO, [second]) => {
                if [self.walk(first), self.walk(second)].contains(&Number::Double) {
                    let what = "`%` takes whole numbers; write int(payload.x) % 2";
                    self.problems.push(what.to_owned());
                }
                Number::Int
            }
            (operators::INDEX | operators::OPT_INDEX, [index]) => {
                let container = self.walk(first);
                self.walk(index);
                container
            }
            // The field's name is a literal.
            (operators::OPT_SELECT, [_]) => self.walk(first),
            (operators::EQUALS | operators::NOT_EQUALS, [second]) => {
                self.walk(first);
                self.walk(second);
                if matches!(first.expr, Expr::List(_) | Expr::Map(_)) {
                    std::mem::swap(first, second);
                }
                Number::Unknown
            }
            (
                operators::LOGICAL_AND
                | operators::LOGICAL_OR
                | operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS
                | operators::IN,
                [second],
            ) => {
                self.walk(first);
                self.walk(second);
                Number::Unknown
            }
            _ => return None,
        })
    }

    /// Makes two operands of one type where that is known to be needed.
    fn alike(&mut self, first: &mut IdedExpr, second: &mut IdedExpr) -> Number {
        match (self.walk(first), self.walk(second)) {
            (Number::Double, Number::Int) => {
                make_double(second);
                Number::Double
            }
            (Number::Int, Number::Double) => {
                make_double(first);
                Number::Double
            }
            (one, other) if one == other => one,
            (Number::Double, _) | (_, Number::Double) => Number::Double,
            _ => Number::Unknown,
        }
    }

    fn pattern(&mut self, pattern: Option<&IdedExpr>) {
        match pattern.map(|pattern| &pattern.expr) {
            Some(Expr::Literal(LiteralValue::String(text))) => {
                // `cel` builds the pattern at each evaluation: here it is only tried.
                let tried = cel::Program::compile("''.matches(p)").map(|program| {
                    let mut context = cel::Context::default();
                    context.add_variable_from_value("p", text.inner().to_owned());
                    program.execute(&context)
                });
                if !matches!(tried, Ok(Ok(_))) {
                    let what = format!("`{}` is not a regular expression", text.inner());
                    self.problems.push(what);
                }
            }
            _ => self.problems.push(
                "`matches` takes its pattern as text in quotes, not from a payload or topic"
                    .to_owned(),
            ),
        }
    }

    fn comprehension(&mut self, comprehension: &mut ComprehensionExpr) -> Number {
        let elements = self.walk(&mut comprehension.iter_range);
        let initial = self.walk(&mut comprehension.accu_init);
        // `optMap` becomes a loop over nothing that binds a name: it costs nothing.
        let binds_only =
            matches!(&comprehension.iter_range.expr, Expr::List(list) if list.elements.is_empty());
        if !binds_only {
            self.loops += 1;
            if self.loops == 2 {
                let what = "a loop (all, exists, map, ...) inside a loop is not allowed: a device could make it run for ever";
                self.problems.push(what.to_owned());
            }
        }
        let outer = self.scope.len();
        let accumulated = if binds_only { initial } else { Number::Unknown };
        self.scope.push((comprehension.iter_var.clone(), elements));
        if let Some(second) = &comprehension.iter_var2 {
            self.scope.push((second.clone(), elements));
        }
        self.scope.push((comprehension.accu_var.clone(), accumulated));
        self.walk(&mut comprehension.loop_cond);
        self.walk(&mut comprehension.loop_step);
        let result = self.walk(&mut comprehension.result);
        self.scope.truncate(outer);
        if !binds_only {
            self.loops -= 1;
        }
        result
    }
}

/// Turns an `int` expression into a `double` one.
fn make_double(node: &mut IdedExpr) {
    if let Expr::Literal(LiteralValue::Int(value)) = &node.expr {
        #[expect(clippy::cast_precision_loss, reason = "what CEL's double() does")]
        let double = *value.inner() as f64;
        node.expr = Expr::Literal(LiteralValue::Double(CelDouble::from(double)));
        return;
    }
    let inner = std::mem::take(node);
    node.id = inner.id;
    node.expr =
        Expr::Call(CallExpr { func_name: "double".to_owned(), target: None, args: vec![inner] });
}
