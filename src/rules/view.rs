//! A decoded payload as CEL and minijinja see it: looked into, not converted.
//!
//! Numbers: CEL's arithmetic takes operands of one type only, and JSON does not tell `20` from
//! `20.0`. So every number of a payload is a `double` for CEL, or a rule would fail on just those
//! readings that happen to be whole. Only whole numbers that a double cannot hold exactly (above
//! 2^53) stay integers: they are serial numbers, and may be keys.

use std::fmt;
use std::sync::{Arc, OnceLock};

use cel::ExecutionError;
use cel::common::traits::{Container, Indexer, Iterable, Iterator as CelIterator, Sizer};
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelDuration, CelInt, CelNull, CelOptional, CelString,
    CelTimestamp, CelUInt, LIST_TYPE, MAP_TYPE, Type,
};
use cel::common::value::{CowVal, Val};
use minijinja::value::{Enumerator, Object, ObjectRepr};

use crate::clock::wall::WallTime;
use crate::payload::Value;
use crate::payload::value::{Map, base64_text};

/// The largest whole number up to which every one is a double: 2^53.
pub(super) const EXACT_MAX: u64 = 1 << 53;
const EXACT_MAX_DOUBLE: f64 = 9_007_199_254_740_992.0;

/// `value` for CEL, borrowed from the payload.
pub(super) fn to_cel<'v>(value: &'v Value) -> Box<dyn Val + 'v> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Int(value) => whole_to_cel(*value),
        Value::Uint(value) => Box::new(CelUInt::from(*value)),
        Value::Float(value) => Box::new(CelDouble::from(*value)),
        Value::Text(text) => Box::new(CelString::from(text.as_ref())),
        Value::Bytes(bytes) => Box::new(CelBytes::from(bytes.as_ref())),
        Value::List(items) => Box::new(ListView::new(items)),
        Value::Map(map) => Box::new(MapView::new(map)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "only done where it is exact")]
pub(super) fn whole_to_cel<'v>(value: i64) -> Box<dyn Val + 'v> {
    if value.unsigned_abs() <= EXACT_MAX {
        Box::new(CelDouble::from(value as f64))
    } else {
        Box::new(CelInt::from(value))
    }
}

/// Why a result of CEL cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is a type, or the like.
    NoValue,
    /// More than [`VALUES_MAX`] values or [`TEXT_BYTES_MAX`] bytes of text.
    TooLarge,
}

/// A result of CEL as a value that can be kept.
pub(super) fn from_cel(value: &dyn Val) -> Result<Value, Unusable> {
    Keeping { values: VALUES_MAX, bytes: TEXT_BYTES_MAX }.value(value)
}

/// The most values and text that a result may have: as many as a payload, or each `let` of a rule could
/// double what the one before it made.
const VALUES_MAX: usize = 20_000;
const TEXT_BYTES_MAX: usize = 1 << 20;

/// What a result may still have.
struct Keeping {
    values: usize,
    bytes: usize,
}

impl Keeping {
    fn value(&mut self, value: &dyn Val) -> Result<Value, Unusable> {
        self.values = self.values.checked_sub(1).ok_or(Unusable::TooLarge)?;
        if let Some(text) = value.downcast_ref::<CelString<'_>>() {
            Ok(Value::Text(self.text(text.inner())?))
        } else if let Some(number) = value.downcast_ref::<CelDouble>() {
            Ok(number_from_cel(*number.inner()))
        } else if let Some(value) = value.downcast_ref::<CelBool>() {
            Ok(Value::Bool(*value.inner()))
        } else if let Some(number) = value.downcast_ref::<CelInt>() {
            Ok(Value::Int(*number.inner()))
        } else if let Some(number) = value.downcast_ref::<CelUInt>() {
            let number = *number.inner();
            Ok(i64::try_from(number).map_or(Value::Uint(number), Value::Int))
        } else if value.downcast_ref::<CelNull>().is_some() {
            Ok(Value::Null)
        } else if let Some(bytes) = value.downcast_ref::<CelBytes<'_>>() {
            let bytes = bytes.inner();
            self.bytes = self.bytes.checked_sub(bytes.len()).ok_or(Unusable::TooLarge)?;
            Ok(Value::Bytes(bytes.into()))
        } else if let Some(time) = value.downcast_ref::<CelTimestamp>() {
            let time = WallTime::from_millis(time.inner().timestamp_millis());
            Ok(Value::Text(time.to_string().into()))
        } else if let Some(duration) = value.downcast_ref::<CelDuration>() {
            Ok(number_from_cel(duration.inner().as_seconds_f64()))
        } else if let Some(optional) = value.downcast_ref::<CelOptional<'_>>() {
            optional.option().map_or(Ok(Value::Null), |value| self.value(value))
        } else {
            self.container(value)
        }
    }

    fn text(&mut self, text: &str) -> Result<Arc<str>, Unusable> {
        self.bytes = self.bytes.checked_sub(text.len()).ok_or(Unusable::TooLarge)?;
        Ok(text.into())
    }

    fn container(&mut self, value: &dyn Val) -> Result<Value, Unusable> {
        let mut elements = value.as_iterable().ok_or(Unusable::NoValue)?.iter();
        if value.get_type() == &LIST_TYPE {
            let mut list = Vec::new();
            while let Some(element) = elements.next() {
                list.push(self.value(element)?);
            }
            return Ok(Value::List(list.into()));
        }
        let fields = value.as_indexer().ok_or(Unusable::NoValue)?;
        let mut entries = Vec::new();
        while let Some(key) = elements.next() {
            let name = key.downcast_ref::<CelString<'_>>().ok_or(Unusable::NoValue)?;
            let field = fields.get(key).map_err(|_| Unusable::NoValue)?;
            entries.push((self.text(name.inner())?, self.value(field.as_ref())?));
        }
        Ok(Value::Map(Arc::new(Map::new(entries))))
    }
}

/// CEL has calculated in doubles; a whole result is a whole number again, or texts would say `21.0`.
#[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
pub(super) fn number_from_cel(number: f64) -> Value {
    if !number.is_finite() {
        Value::Null
    } else if number.fract() == 0.0 && number.abs() <= EXACT_MAX_DOUBLE {
        Value::Int(number as i64)
    } else {
        Value::Float(number)
    }
}

/// A list of the payload in CEL.
#[derive(Debug)]
struct ListView<'v> {
    items: &'v [Value],
    /// CEL iterates over references to its values, which have to be somewhere: made when asked for.
    vals: OnceLock<Vec<Box<dyn Val + 'v>>>,
}

impl<'v> ListView<'v> {
    fn new(items: &'v [Value]) -> Self {
        Self { items, vals: OnceLock::new() }
    }

    fn vals(&self) -> &[Box<dyn Val + 'v>] {
        self.vals.get_or_init(|| self.items.iter().map(to_cel).collect())
    }

    fn item(&self, index: &dyn Val) -> Result<&'v Value, ExecutionError> {
        let unusable = || ExecutionError::UnexpectedType {
            got: index.get_type().name().to_owned(),
            want: "whole number".to_owned(),
        };
        let position = if let Some(index) = index.downcast_ref::<CelInt>() {
            usize::try_from(*index.inner()).ok()
        } else if let Some(index) = index.downcast_ref::<CelUInt>() {
            usize::try_from(*index.inner()).ok()
        } else if let Some(index) = index.downcast_ref::<CelDouble>() {
            exact_index(*index.inner())
        } else {
            return Err(unusable());
        };
        position
            .and_then(|position| self.items.get(position))
            .ok_or(ExecutionError::IndexOutOfBounds(cel::Value::Null))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "range and fraction are checked before"
)]
fn exact_index(index: f64) -> Option<usize> {
    ((0.0..4e9).contains(&index) && index.fract() == 0.0).then_some(index as usize)
}

impl Val for ListView<'_> {
    fn get_type(&self) -> &Type {
        &LIST_TYPE
    }

    fn cel_type() -> &'static Type {
        &LIST_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'w>(&'b self) -> Option<&'b (dyn Indexer + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_iterable<'b, 'w>(&'b self) -> Option<&'b (dyn Iterable + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        let same_size = other.as_sizer().is_some_and(|other| other.size() == self.size());
        if !same_size || other.get_type() != self.get_type() {
            return false;
        }
        let Some(others) = other.as_iterable() else {
            return false;
        };
        let mut others = others.iter();
        self.vals().iter().all(|item| others.next().is_some_and(|other| item.equals(other)))
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(Self::new(self.items))
    }
}

impl Container for ListView<'_> {
    fn contains(&self, value: &dyn Val) -> Result<bool, ExecutionError> {
        Ok(self.vals().iter().any(|item| item.equals(value)))
    }
}

impl Indexer for ListView<'_> {
    fn get<'b, 'w>(&'b self, index: &dyn Val) -> Result<CowVal<'b, 'w>, ExecutionError>
    where
        Self: 'w,
    {
        self.item(index).map(|item| CowVal::Owned(to_cel(item)))
    }

    fn steal<'w>(self: Box<Self>, index: &dyn Val) -> Result<Box<dyn Val + 'w>, ExecutionError>
    where
        Self: 'w,
    {
        self.item(index).map(|item| to_cel(item) as Box<dyn Val + 'w>)
    }
}

impl Iterable for ListView<'_> {
    fn iter<'b, 'w>(&'b self) -> Box<dyn CelIterator<'b, 'w> + 'b>
    where
        Self: 'w,
    {
        Box::new(Vals(self.vals().iter()))
    }
}

impl Sizer for ListView<'_> {
    fn size(&self) -> CelInt {
        i64::try_from(self.items.len()).unwrap_or(i64::MAX).into()
    }
}

/// A map of the payload in CEL.
#[derive(Debug)]
struct MapView<'v> {
    map: &'v Map,
    keys: OnceLock<Vec<Box<dyn Val + 'v>>>,
}

impl<'v> MapView<'v> {
    fn new(map: &'v Map) -> Self {
        Self { map, keys: OnceLock::new() }
    }

    fn keys(&self) -> &[Box<dyn Val + 'v>] {
        self.keys.get_or_init(|| {
            let names = self.map.entries().iter().map(|(name, _)| name.as_ref());
            names.map(|name: &str| Box::new(CelString::from(name)) as Box<dyn Val + 'v>).collect()
        })
    }

    fn field(&self, key: &dyn Val) -> Result<&'v Value, ExecutionError> {
        match key.downcast_ref::<CelString>() {
            Some(name) => {
                self.map.get(name.inner()).ok_or_else(|| ExecutionError::no_such_key(name.inner()))
            }
            None => Err(ExecutionError::UnexpectedType {
                got: key.get_type().name().to_owned(),
                want: "text".to_owned(),
            }),
        }
    }
}

impl Val for MapView<'_> {
    fn get_type(&self) -> &Type {
        &MAP_TYPE
    }

    fn cel_type() -> &'static Type {
        &MAP_TYPE
    }

    fn as_container(&self) -> Option<&dyn Container> {
        Some(self)
    }

    fn as_indexer<'b, 'w>(&'b self) -> Option<&'b (dyn Indexer + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_iterable<'b, 'w>(&'b self) -> Option<&'b (dyn Iterable + 'w)>
    where
        Self: 'w,
    {
        Some(self)
    }

    fn as_sizer(&self) -> Option<&dyn Sizer> {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        let same_size = other.as_sizer().is_some_and(|other| other.size() == self.size());
        if !same_size || other.get_type() != self.get_type() {
            return false;
        }
        let Some(other) = other.as_indexer() else {
            return false;
        };
        self.map.entries().iter().all(|(name, value)| {
            other
                .get(&CelString::from(name.as_ref()))
                .is_ok_and(|other| to_cel(value).equals(other.as_ref()))
        })
    }

    fn clone_as_boxed<'w>(&self) -> Box<dyn Val + 'w>
    where
        Self: 'w,
    {
        Box::new(Self::new(self.map))
    }
}

impl Container for MapView<'_> {
    fn contains(&self, key: &dyn Val) -> Result<bool, ExecutionError> {
        match self.field(key) {
            Ok(_) => Ok(true),
            Err(ExecutionError::NoSuchKey(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Indexer for MapView<'_> {
    fn get<'b, 'w>(&'b self, key: &dyn Val) -> Result<CowVal<'b, 'w>, ExecutionError>
    where
        Self: 'w,
    {
        self.field(key).map(|value| CowVal::Owned(to_cel(value)))
    }

    fn steal<'w>(self: Box<Self>, key: &dyn Val) -> Result<Box<dyn Val + 'w>, ExecutionError>
    where
        Self: 'w,
    {
        self.field(key).map(|value| to_cel(value) as Box<dyn Val + 'w>)
    }
}

impl Iterable for MapView<'_> {
    fn iter<'b, 'w>(&'b self) -> Box<dyn CelIterator<'b, 'w> + 'b>
    where
        Self: 'w,
    {
        Box::new(Vals(self.keys().iter()))
    }
}

impl Sizer for MapView<'_> {
    fn size(&self) -> CelInt {
        i64::try_from(self.map.entries().len()).unwrap_or(i64::MAX).into()
    }
}

struct Vals<'b, 'v>(std::slice::Iter<'b, Box<dyn Val + 'v>>);

impl<'b, 'v: 'w, 'w> CelIterator<'b, 'w> for Vals<'b, 'v> {
    fn next(&mut self) -> Option<&'b (dyn Val + 'w)> {
        self.0.next().map(|val| val.as_ref() as &'b (dyn Val + 'w))
    }
}

/// `value` for a template; lists and maps are shared with the payload.
pub(super) fn to_template(value: &Value) -> minijinja::Value {
    match value {
        Value::Null => minijinja::Value::from(()),
        Value::Bool(value) => minijinja::Value::from(*value),
        Value::Int(value) => minijinja::Value::from(*value),
        Value::Uint(value) => minijinja::Value::from(*value),
        Value::Float(value) => minijinja::Value::from(*value),
        Value::Text(text) => minijinja::Value::from(Arc::clone(text)),
        Value::Bytes(bytes) => minijinja::Value::from(base64_text(bytes)),
        Value::List(items) => minijinja::Value::from_object(TemplateList(Arc::clone(items))),
        Value::Map(map) => minijinja::Value::from_object(TemplateMap(Arc::clone(map))),
    }
}

#[derive(Debug)]
struct TemplateList(Arc<[Value]>);

impl Object for TemplateList {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        self.0.get(key.as_usize()?).map(to_template)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Value::List(Arc::clone(&self.0)), f)
    }
}

#[derive(Debug)]
struct TemplateMap(Arc<Map>);

impl Object for TemplateMap {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<minijinja::Value> {
        self.0.get(key).map(to_template)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let names = self.0.entries().iter();
        Enumerator::Values(
            names.map(|(name, _)| minijinja::Value::from(Arc::clone(name))).collect(),
        )
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Value::Map(Arc::clone(&self.0)), f)
    }
}
