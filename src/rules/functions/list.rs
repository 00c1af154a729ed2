//! Lists and maps: their names and values, and one element by a field.

use cel::common::types::{CelList, MAP_TYPE};
use cel::common::value::{CowVal, Val};

use super::{Answer, Arguments, argument, cannot};

pub(super) fn is_map(value: &dyn Val) -> bool {
    value.get_type() == &MAP_TYPE
}

pub(super) fn keys<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let map = argument("keys", &arguments, 0)?;
    let keys = map.as_iterable().filter(|_| is_map(map));
    let mut keys = keys.ok_or_else(|| cannot("keys", "it takes a map"))?.iter();
    let mut list: Vec<Box<dyn Val + 'v>> = Vec::new();
    while let Some(key) = keys.next() {
        list.push(key.clone_as_boxed());
    }
    Ok(CowVal::owned(CelList::from(list)))
}

pub(super) fn values<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let map = argument("values", &arguments, 0)?;
    let parts = map.as_iterable().zip(map.as_indexer()).filter(|_| is_map(map));
    let (keys, fields) = parts.ok_or_else(|| cannot("values", "it takes a map"))?;
    let mut keys = keys.iter();
    let mut list: Vec<Box<dyn Val + 'v>> = Vec::new();
    while let Some(key) = keys.next() {
        list.push(fields.get(key)?.into_owned());
    }
    Ok(CowVal::owned(CelList::from(list)))
}

pub(super) fn pick<'b, 'v>(arguments: Arguments<'b, 'v>) -> Answer<'b, 'v> {
    let list = argument("pick", &arguments, 0)?;
    let field = argument("pick", &arguments, 1)?;
    let wanted = argument("pick", &arguments, 2)?;
    let elements = list.as_iterable().filter(|_| !is_map(list));
    let mut elements = elements.ok_or_else(|| cannot("pick", "it takes a list of maps"))?.iter();
    while let Some(element) = elements.next() {
        let found = element.as_indexer().and_then(|fields| fields.get(field).ok());
        if found.is_some_and(|found| found.as_ref().equals(wanted)) {
            return Ok(CowVal::Owned(element.clone_as_boxed()));
        }
    }
    Err(cannot("pick", "the list has no such element"))
}
