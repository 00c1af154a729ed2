//! Reading a request's JSON body: bounded in bytes and time, and every wrong field told at once.

use axum::body::Bytes;
use axum::extract::Request;
use http_body_util::{BodyExt as _, Limited};
use serde::de::DeserializeOwned;
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
    let bytes = bytes(request, config).await?;
    let json: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|error| Refusal::malformed(format!("the body is not JSON: {error}")))?;
    let value = toml(json)
        .filter(toml::Value::is_table)
        .ok_or_else(|| Refusal::malformed("the body must be a JSON object"))?;
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

/// The same value for [`problem::read`], which speaks TOML. A `null` is as if the key were not
/// there; `None` for a value that is nothing else.
fn toml(json: serde_json::Value) -> Option<toml::Value> {
    use serde_json::Value;
    Some(match json {
        Value::Null => return None,
        Value::Bool(value) => value.into(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64()?.into(),
        },
        Value::String(text) => text.into(),
        Value::Array(list) => toml::Value::Array(list.into_iter().filter_map(toml).collect()),
        Value::Object(map) => toml::Value::Table(
            map.into_iter().filter_map(|(key, value)| Some((key, toml(value)?))).collect(),
        ),
    })
}

/// A fault of one field.
pub(super) fn fault(field: &str, what: impl Into<String>) -> Fault {
    Fault { path: vec![field.into()], what: what.into() }
}

/// A fault of one element of a list.
pub(super) fn fault_in(field: &str, index: usize, what: impl Into<String>) -> Fault {
    Fault { path: vec![field.into(), index.into()], what: what.into() }
}
