//! The compiled patterns of `matches`.
//!
//! CEL compiles a pattern at each evaluation, which takes longer than all the rest. So the lowering
//! compiles it once, and the expression gives it to CEL as a value of a type of its own, under a name
//! that no rule can write.

use std::any::Any;

use cel::common::types::{CelBool, CelString, DYN_TYPE, Type};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{Env, ExecutionError};
use regex::Regex;

/// The function that takes a compiled pattern.
pub(super) const MATCHES: &str = "@matches";

/// What names of patterns begin with.
const PREFIX: &str = "@pattern";

/// The most memory that one compiled pattern may take, bytes.
const SIZE_MAX: usize = 1 << 20;

static TYPE: Type = Type::new_unspecified_type("pattern");

/// A regular expression.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// `None` if it is no regular expression, or one that takes too much memory.
    pub(super) fn compile(text: &str) -> Option<Self> {
        regex::RegexBuilder::new(text).size_limit(SIZE_MAX).build().ok().map(Self)
    }

    /// Whether it is found in `text`.
    pub(super) fn is_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// The variable that is the pattern of that number.
pub(super) fn name(number: usize) -> String {
    format!("{PREFIX}{number}")
}

/// The pattern that a variable is.
pub(super) fn named<'p>(patterns: &'p [Pattern], name: &str) -> Option<&'p Pattern> {
    patterns.get(name.strip_prefix(PREFIX)?.parse::<usize>().ok()?)
}

impl Val for Pattern {
    fn get_type(&self) -> &Type {
        &TYPE
    }

    fn cel_type() -> &'static Type {
        &TYPE
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Pattern {}

#[expect(clippy::needless_pass_by_value, reason = "the type of function that CEL calls")]
fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern] = arguments.as_slice() else {
        return Err(ExecutionError::MissingArgumentOrTarget);
    };
    match (text.downcast_ref::<CelString<'_>>(), pattern.downcast_ref::<Pattern>()) {
        (Some(text), Some(pattern)) => {
            Ok(CowVal::owned(CelBool::from(pattern.is_in(text.inner()))))
        }
        _ => {
            let kind = text.get_type().name().to_owned();
            Err(ExecutionError::no_such_overload("matches", vec![kind, "string".to_owned()]))
        }
    }
}

/// Adds the function to CEL's.
pub(super) fn register(env: &mut Env) {
    let added = env.add_overload(MATCHES, MATCHES, vec![DYN_TYPE, DYN_TYPE], matches);
    debug_assert!(added.is_ok(), "{MATCHES} is there twice");
}
