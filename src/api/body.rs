//! Reading a request's JSON body: bounded in bytes and time, and every wrong field told at once.

use axum::body::Bytes;
use axum::extract::Request;
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::Config;
use super::refusal::Refusal;
use crate::problem::{self, Fault};

/// The body as `T`, which should be `deny_unknown_fields` and `default`, and what is wrong with
/// its fields; those that are wrong have their defaults.
pub(super) async fn json<T: DeserializeOwned + Default>(
    request: Request,
    config: &Config,
) -> Result<(T, Vec<Fault>), Refusal> {
    parse(&bytes(request, config).await?)
}

fn parse<T: DeserializeOwned + Default>(bytes: &[u8]) -> Result<(T, Vec<Fault>), Refusal> {
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::malformed(format!("the body is not JSON: {error}")))?;
    if !value.is_object() {
        return Err(Refusal::malformed("the body must be a JSON object"));
    }
    drop_nulls(&mut value);
    let (read, faults) = problem::read_what_is_right(value);
    Ok((read.unwrap_or_default(), faults))
}

/// Adds what a closer look has found, but for fields that were wrong at the first: they only seem
/// empty.
pub(super) fn add(faults: &mut Vec<Fault>, found: impl IntoIterator<Item = Fault>) {
    let wrong: Vec<_> = faults.iter().filter_map(|fault| fault.path.first().cloned()).collect();
    let found = found.into_iter();
    faults.extend(found.filter(|fault| fault.path.first().is_none_or(|at| !wrong.contains(at))));
}

async fn bytes(request: Request, config: &Config) -> Result<Bytes, Refusal> {
    let body = Limited::new(request.into_body(), config.body_bytes_max);
    match timeout(config.read_timeout.into(), body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Refusal::too_large(config.body_bytes_max))
        }
        Ok(Err(error)) => Err(Refusal::malformed(format!("reading the body: {error}"))),
        Err(_) => Err(Refusal::too_slow()),
    }
}

/// A `null` is as if it were not there: programs write it for a field that they do not set.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => {
            list.retain(|value| !value.is_null());
            list.iter_mut().for_each(drop_nulls);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A fault of one field.
pub(super) fn fault(field: &str, what: impl Into<String>) -> Fault {
    Fault { path: vec![field.into()], what: what.into() }
}

/// A fault of one element of a list.
pub(super) fn fault_in(field: &str, index: usize, what: impl Into<String>) -> Fault {
    Fault { path: vec![field.into(), index.into()], what: what.into() }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::problem::path_text;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Body {
        sequence: u64,
        offset: i64,
        share: f64,
        small: u32,
        note: Option<String>,
        names: Vec<String>,
        inner: Inner,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        account: String,
        sequences: Vec<u64>,
    }

    /// Read by way of TOML, which has no `u64`, a number above `i64::MAX` was a float.
    #[test]
    fn whole_numbers_of_64_bits_are_read_as_they_were_written() {
        let text = r#"{"sequence": 18446744073709551615, "offset": -9223372036854775808, "share": 3,
            "inner": {"sequences": [9223372036854775807, 9223372036854775808]}}"#;
        let (body, faults) = parse::<Body>(text.as_bytes()).expect("JSON");
        assert_eq!(faults, []);
        assert_eq!((body.sequence, body.offset, body.share), (u64::MAX, i64::MIN, 3.0));
        assert_eq!(body.inner.sequences, [9_223_372_036_854_775_807, 9_223_372_036_854_775_808]);
    }

    #[test]
    fn every_wrong_field_is_said_with_its_path_and_what_to_write() {
        let text = r#"{"sequence": 1.5, "offset": 18446744073709551615, "small": -1, "share": "x",
            "names": ["a", 7], "nmaes": [], "note": {},
            "inner": {"acount": "x", "account": [], "sequences": [1, "x"]}}"#;
        let (body, faults) = parse::<Body>(text.as_bytes()).expect("JSON");
        let line = |fault: &Fault| format!("{}: {}", path_text(&fault.path), fault.what);
        let said: Vec<_> = faults.iter().map(line).collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
        inner.account: invalid type: sequence, expected a string
        inner.acount: unknown key; did you mean `account`?
        inner.sequences[1]: invalid type: string "x", expected u64
        names[1]: invalid type: integer `7`, expected a string
        nmaes: unknown key; did you mean `names`?
        note: invalid type: map, expected a string
        offset: invalid value: integer `18446744073709551615`, expected i64
        sequence: invalid type: floating point `1.5`, expected u64
        share: invalid type: string "x", expected f64
        small: invalid value: integer `-1`, expected u32
        "#);
        assert_eq!(body, Body::default());
    }

    #[test]
    fn a_null_is_as_if_it_were_not_there() {
        let text = br#"{"sequence": null, "note": null, "names": ["a", null], "inner": {"account": null}}"#;
        let (body, faults) = parse::<Body>(text).expect("JSON");
        assert_eq!((body.names.as_slice(), faults), (["a".to_owned()].as_slice(), Vec::new()));
        assert_eq!(body.note, None);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "{", "[]", "null", "7", "\"x\""] {
            assert!(parse::<Body>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
