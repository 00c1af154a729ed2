//! Expressions written anew: `changed(e)`, doubles, and the nodes that the lowering makes.

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::common::types::{CelDouble, CelString};

use super::{HAS_PREVIOUS, Lowering, NAMES_EACH};
use crate::rules::functions;

impl Lowering<'_> {
    /// `changed(e)`, written out: there is a previous payload, `e` has a value, and it is not what it
    /// was, or there was none.
    pub(super) fn changed(&mut self, expr: &mut Expr) {
        let Expr::Call(call) = expr else { return };
        let [now] = call.args.as_mut_slice() else { return };
        let now = std::mem::take(now);
        let mut names = Vec::new();
        free_names(&now, &mut names);
        if !names.contains(&"payload") {
            self.problems.push(
                "`changed` compares with the previous payload; name a field of it, as in changed(payload.state)"
                    .to_owned(),
            );
        }
        let other = ["previous", "now", "at", "retain", "replayed"]
            .iter()
            .chain(NAMES_EACH)
            .chain(self.seen.named);
        for name in other {
            if names.contains(name) {
                self.problems.push(format!(
                    "`changed` knows what `payload` was before, not what `{name}` was; leave it out of `changed`"
                ));
            }
        }
        let mut before = now.clone();
        rename_payload(&mut before);
        let differs = call_node(operators::NOT_EQUALS, vec![now.clone(), before]);
        *expr = call_node(
            operators::LOGICAL_AND,
            vec![
                ident_node(HAS_PREVIOUS),
                call_node(
                    operators::LOGICAL_AND,
                    vec![
                        call_node(functions::PRESENT, vec![now]),
                        call_node(operators::NOT_STRICTLY_FALSE, vec![differs]),
                    ],
                ),
            ],
        )
        .expr;
    }
}

pub(super) fn node(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}

pub(super) fn ident_node(name: &str) -> IdedExpr {
    node(Expr::Ident(name.to_owned()))
}

pub(super) fn text_node(text: String) -> IdedExpr {
    node(Expr::Literal(LiteralValue::String(CelString::from(text))))
}

pub(super) fn call_node(function: &str, args: Vec<IdedExpr>) -> IdedExpr {
    node(Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args }))
}

/// What is directly inside of `node`.
pub(super) fn children(node: &IdedExpr) -> Vec<&IdedExpr> {
    match &node.expr {
        Expr::Select(select) => vec![select.operand.as_ref()],
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map
            .entries
            .iter()
            .flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(_) => Vec::new(),
            })
            .collect(),
        Expr::Comprehension(comprehension) => vec![
            &comprehension.iter_range,
            &comprehension.accu_init,
            &comprehension.loop_cond,
            &comprehension.loop_step,
            &comprehension.result,
        ],
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => Vec::new(),
    }
}

/// Every name in `node`; a loop's own too, of which none is one of ours.
pub(super) fn free_names<'n>(node: &'n IdedExpr, names: &mut Vec<&'n str>) {
    if let Expr::Ident(name) = &node.expr {
        names.push(name.strip_prefix('.').unwrap_or(name));
    }
    for child in children(node) {
        free_names(child, names);
    }
}

/// Makes `payload` in `node` the previous payload.
pub(super) fn rename_payload(node: &mut IdedExpr) {
    match &mut node.expr {
        Expr::Ident(name) if name.strip_prefix('.').unwrap_or(name) == "payload" => {
            "previous".clone_into(name);
        }
        Expr::Select(select) => rename_payload(&mut select.operand),
        Expr::Call(call) => {
            call.target.iter_mut().for_each(|target| rename_payload(target));
            call.args.iter_mut().for_each(rename_payload);
        }
        Expr::List(list) => list.elements.iter_mut().for_each(rename_payload),
        Expr::Map(map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    rename_payload(&mut entry.key);
                    rename_payload(&mut entry.value);
                }
            }
        }
        Expr::Comprehension(comprehension) => {
            rename_payload(&mut comprehension.iter_range);
            rename_payload(&mut comprehension.accu_init);
            rename_payload(&mut comprehension.loop_cond);
            rename_payload(&mut comprehension.loop_step);
            rename_payload(&mut comprehension.result);
        }
        Expr::Ident(_) | Expr::Literal(_) | Expr::Struct(_) | Expr::Unspecified => {}
    }
}

/// Turns an `int` expression into a `double` one.
pub(super) fn make_double(node: &mut IdedExpr) {
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
