//! What is checked and settled in a CEL expression when its rule is loaded.
//!
//! Checked: every name and function exists, no regular expression comes from a payload, no loop runs
//! inside a loop, and what a loop does costs what its list costs ([`cost`]).
//!
//! Settled: a whole number beside a payload's number becomes a `double`, because every number of a
//! payload is one ([`super::view`]) and CEL adds only like to like: `payload.count + 1` means what
//! it says. A literal list or map stands on the right of `==`, where [`super::view`] can compare it.
//! `matches` gets its pattern compiled, `is_on` its rule's words, and `changed(e)` becomes a
//! comparison of `e` with itself in the previous payload.

mod cost;
mod rewrite;
pub(super) mod types;

use cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators,
};
use rewrite::{ident_node, make_double, text_node};

use super::condition::Scope;
use super::functions::{self, Gives};
use super::pattern::{self, Pattern};
use crate::payload::layout::Layout;
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

/// The most loops that follow each other in an expression, `optMap` included: each could double what
/// it is given.
const LOOPS_MAX: usize = 8;

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
        all_loops: 0,
        in_lambda: 0,
        problems: Vec::new(),
        reads: Reads::default(),
    };
    lowering.walk(root);
    if lowering.problems.is_empty() {
        Ok(lowering.reads)
    } else {
        let mut problems: Vec<String> = Vec::new();
        for problem in lowering.problems {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        Err(problems)
    }
}

/// What an expression reads.
#[derive(Debug, Default)]
pub(super) struct Reads {
    /// Variables by name, each once.
    pub(super) names: Vec<String>,
    /// Fields of the payload, as `payload.a.b`, each once.
    pub(super) paths: Vec<String>,
    /// Patterns of `matches`, by the numbers in their names.
    pub(super) patterns: Vec<Pattern>,
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
    /// How many loops run here.
    loops: usize,
    /// How many loops there are in the whole expression.
    all_loops: usize,
    /// How many loops or `optMap` are around here.
    in_lambda: usize,
    depth: usize,
    problems: Vec<String>,
    reads: Reads,
}

impl Lowering<'_> {
    fn walk(&mut self, node: &mut IdedExpr) -> Number {
        self.depth += 1;
        let number = if self.depth > DEPTH_MAX {
            self.problems.push(too_deep());
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
            Expr::Select(_) => {
                self.path(expr);
                let Expr::Select(select) = expr else {
                    return Number::Unknown;
                };
                match self.operand(&mut select.operand) {
                    Number::Double if !select.test => Number::Double,
                    _ => Number::Unknown,
                }
            }
            Expr::Call(call) if call.func_name == "changed" && call.target.is_none() => {
                let function = functions::find("changed");
                if function.is_none_or(|function| self.shape(function, call)) {
                    self.changed(expr);
                    return self.walk_expr(expr);
                }
                Number::Unknown
            }
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

    /// Walks what a field is selected of. Its own fields are part of one path.
    fn operand(&mut self, node: &mut IdedExpr) -> Number {
        match &mut node.expr {
            Expr::Select(select) if !select.test => {
                self.depth += 1;
                let number = if self.depth > DEPTH_MAX {
                    self.problems.push(too_deep());
                    Number::Unknown
                } else {
                    self.operand(&mut select.operand)
                };
                self.depth -= 1;
                number
            }
            _ => self.walk(node),
        }
    }

    /// Notes the path of the payload that `expr` is.
    fn path(&mut self, expr: &Expr) {
        let mut fields = Vec::new();
        let mut at = expr;
        loop {
            match at {
                Expr::Select(select) => {
                    fields.push(select.field.as_str());
                    at = &select.operand.expr;
                }
                Expr::Ident(name) if name == "payload" => break,
                _ => return,
            }
        }
        fields.push("payload");
        fields.reverse();
        let path = fields.join(".");
        if !self.reads.paths.contains(&path) {
            self.reads.paths.push(path);
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
            || name.starts_with('@');
        if !known {
            let names = NAMES.iter().chain(self.seen.named).chain(self.seen.captures);
            let mut candidates: Vec<&str> = names.copied().collect();
            if self.seen.each {
                candidates.extend(NAMES_EACH);
            }
            self.problems.push(match closest(name, &candidates) {
                _ if elsewhere(name).is_some() => {
                    format!("unknown name `{name}`; write {}", elsewhere(name).unwrap_or_default())
                }
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
        let name = call.func_name.clone();
        if name == functions::PRESENT || name == pattern::MATCHES {
            // Made by the lowering, and walked.
            call.args.iter_mut().for_each(|argument| {
                self.walk(argument);
            });
            return Number::Unknown;
        }
        let in_optional = matches!(
            call.target.as_deref(),
            Some(IdedExpr { expr: Expr::Ident(target), .. }) if target == "optional"
        );
        let ours = functions::find(&name).filter(|_| !in_optional);
        if let Some(function) = ours {
            if !self.shape(function, call) {
                return Number::Unknown;
            }
        } else {
            let mut known: Vec<&str> = match &call.target {
                None => FUNCTIONS.to_vec(),
                Some(_) if in_optional => OPTIONAL.to_vec(),
                Some(_) => METHODS.to_vec(),
            };
            if !known.contains(&name.as_str()) {
                if call.target.is_none() {
                    known.extend(functions::TABLE.iter().map(|function| function.name));
                }
                self.problems.push(match closest(&name, &known) {
                    _ if elsewhere(&name).is_some() => {
                        let write = elsewhere(&name).unwrap_or_default();
                        format!("unknown function `{name}`; write {write}")
                    }
                    Some(near) => format!("unknown function `{name}`; did you mean `{near}`?"),
                    None => format!("unknown function `{name}`; known are {}", known.join(", ")),
                });
            } else if let Some((_, usage)) =
                MACROS.iter().find(|(macro_name, _)| *macro_name == name)
            {
                self.problems.push(format!("`{name}` is written {usage}"));
                return Number::Unknown;
            }
        }
        let target = match &mut call.target {
            Some(target) if !in_optional => self.walk(target),
            _ => Number::Unknown,
        };
        let arguments: Vec<Number> = call.args.iter_mut().map(|arg| self.walk(arg)).collect();
        self.walks(&name, call);
        match name.as_str() {
            "matches" => {
                self.pattern(call);
                Number::Unknown
            }
            functions::IS_ON => {
                let (on, off) = match self.seen.words {
                    Some(words) => words.lines(),
                    None => functions::words::Words::default().lines(),
                };
                call.args.extend([on, off].map(text_node));
                Number::Unknown
            }
            "time" => {
                self.zone(call.args.get(1));
                Number::Unknown
            }
            functions::READ => {
                self.layout_type(call.args.get(2));
                Number::Double
            }
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
            _ => match ours.map(|function| function.gives) {
                Some(Gives::Double) => Number::Double,
                Some(Gives::Int) => Number::Int,
                // What it picks is a part of a payload.
                Some(Gives::Large) => Number::Double,
                Some(Gives::Small) | None => Number::Unknown,
            },
        }
    }

    /// Whether a function of ours is written as it should be.
    fn shape(&mut self, function: &functions::Function, call: &CallExpr) -> bool {
        let (fewest, most) = function.takes;
        let good = call.target.is_none() && (fewest..=most).contains(&call.args.len());
        if !good {
            let functions::Function { name, usage, does, .. } = function;
            self.problems.push(format!("`{name}` is written {usage}: {does}"));
        }
        good
    }

    /// The zone of `time` is looked up now: what there is must not depend on a payload.
    fn zone(&mut self, zone: Option<&IdedExpr>) {
        match zone.map(|zone| &zone.expr) {
            None => {}
            Some(Expr::Literal(LiteralValue::String(name)))
                if jiff::tz::TimeZone::get(name.inner()).is_ok() => {}
            Some(Expr::Literal(LiteralValue::String(name))) => self.problems.push(format!(
                "there is no time zone `{}`; write one as in \"Europe/Berlin\"",
                name.inner()
            )),
            Some(_) => self.problems.push(
                "`time` takes its zone as text in quotes, not from a payload or topic".to_owned(),
            ),
        }
    }

    /// The type of `read` is looked up now, like a zone.
    fn layout_type(&mut self, word: Option<&IdedExpr>) {
        let Some(Expr::Literal(LiteralValue::String(word))) = word.map(|word| &word.expr) else {
            let what = "`read` takes its type as text in quotes, as in read(x, 0, 'i16be')";
            return self.problems.push(what.to_owned());
        };
        let word = word.inner();
        if Layout::width(word).is_none() {
            let both = [format!("{word}be"), format!("{word}le")];
            let write = match both.iter().any(|word| Layout::width(word).is_some()) {
                true => both.join(" or "),
                false => "one as u8, i16be or f32le".to_owned(),
            };
            self.problems.push(format!("`read`: `{word}` is no type of a number; write {write}"));
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
            ) => {
                if operator == operators::SUBSTRACT && self.is_dashed(first, second) {
                    return Some(Number::Unknown);
                }
                let number = self.alike(first, second);
                self.cost(operator, first, second);
                number
            }
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
                self.cost(operator, first, second);
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
                self.cost(operator, first, second);
                Number::Unknown
            }
            _ => return None,
        })
    }

    /// `payload.temp-c`: a field less something that there is not is a field with a dash in its name.
    fn is_dashed(&mut self, first: &IdedExpr, second: &IdedExpr) -> bool {
        let (Expr::Select(select), Expr::Ident(rest)) = (&first.expr, &second.expr) else {
            return false;
        };
        let is_bound = self.scope.iter().any(|(bound, _)| bound == rest);
        let names = NAMES.iter().chain(NAMES_EACH).chain(self.seen.named).chain(self.seen.captures);
        if is_bound || names.copied().any(|known| known == rest) {
            return false;
        }
        let field = &select.field;
        self.problems.push(format!(
            "unknown name `{rest}`; a name with a dash is written [\"{field}-{rest}\"]"
        ));
        true
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

    /// Compiles the pattern of `matches`, which CEL would do at each evaluation.
    fn pattern(&mut self, call: &mut CallExpr) {
        let Some(written) = call.args.pop() else {
            self.problems.push("`matches` is written matches(payload.name, 'a.*')".to_owned());
            return;
        };
        let Expr::Literal(LiteralValue::String(text)) = &written.expr else {
            self.problems.push(
                "`matches` takes its pattern as text in quotes, not from a payload or topic"
                    .to_owned(),
            );
            return;
        };
        let Some(compiled) = Pattern::compile(text.inner()) else {
            self.problems.push(format!("`{}` is not a regular expression", text.inner()));
            return;
        };
        call.args.extend(call.target.take().map(|target| *target));
        if call.args.len() != 1 {
            self.problems.push("`matches` is written matches(payload.name, 'a.*')".to_owned());
        }
        call.func_name = pattern::MATCHES.to_owned();
        call.args.push(ident_node(&pattern::name(self.reads.patterns.len())));
        self.reads.patterns.push(compiled);
    }

    fn comprehension(&mut self, comprehension: &mut ComprehensionExpr) -> Number {
        let elements = self.walk(&mut comprehension.iter_range);
        let initial = self.walk(&mut comprehension.accu_init);
        // `optMap` becomes a loop over nothing that binds a name: it costs nothing.
        let binds_only =
            matches!(&comprehension.iter_range.expr, Expr::List(list) if list.elements.is_empty());
        self.all_loops += 1;
        if self.all_loops == LOOPS_MAX + 1 {
            let what = format!(
                "it has more than {LOOPS_MAX} loops (all, exists, map, ...); give a part of it a name with `let`"
            );
            self.problems.push(what);
        }
        self.in_lambda += 1;
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
        self.in_lambda -= 1;
        if !binds_only {
            self.loops -= 1;
        }
        result
    }
}

/// What people who know another language mean.
fn elsewhere(name: &str) -> Option<&'static str> {
    Some(match name {
        "True" | "TRUE" => "true",
        "False" | "FALSE" => "false",
        "None" | "nil" | "NULL" | "Null" | "undefined" => "null",
        "len" | "length" | "count" => "size(x)",
        "float" | "number" | "Number" | "parseFloat" => "num(x)",
        "str" | "String" => "string(x)",
        _ => return None,
    })
}

fn too_deep() -> String {
    format!("it is nested deeper than {DEPTH_MAX} levels; split the rule")
}
