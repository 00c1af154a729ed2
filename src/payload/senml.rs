//! SenML (RFC 8428), as JSON and as CBOR: a pack of records, resolved.
//!
//! ```text
//! {records: [{n, u, v | vs | vb | vd, s, t, ut}, ...], by_name: {NAME: value, ...}}
//! ```
//!
//! Base fields count from the record on in which they stand, in order: `bn` goes before each name,
//! `bt`, `bv` and `bs` are added, `bu` is the unit of records without one. `t` is seconds since
//! 1970; what is below 2^28 is relative to now (section 4.5.3). A record without time is of now. Of a
//! name that stands there twice `by_name` has the last; a record with a sum alone (`s`) is in
//! `records` only.
//!
//! Nothing is guessed: a record with a field of the wrong type, with two values, or with none (and
//! neither sum nor base field) refuses the pack, as does a field that must be understood (it ends in
//! `_`) or a version whose features are not known.
//!
//! A long `bn` before thousands of names would make a large value of a small payload: all names
//! together take at most [`Limits::bytes_max`].

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::value::Map;
use super::{Limits, Undecodable, Value, cbor, json};
use crate::clock::Timestamp;

/// RFC 8428, section 4.5.3: a time below 2^28 seconds is relative to now.
const RELATIVE_BELOW: f64 = 268_435_456.0;

/// Version 10 sets bits 1 and 3, bits 0 to 3 are reserved (RFC 9100, section 2.2); bit 4 is Secondary
/// Units, which change nothing but `u`.
const VERSION_BITS: u64 = 0b1_1111;

/// `vd` in JSON: base64url without padding; some send it with.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The form of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    Cbor,
}

pub(super) fn decode(
    form: Form,
    bytes: &[u8],
    limits: Limits,
    now: Timestamp,
) -> Result<Value, Undecodable> {
    let pack = match form {
        Form::Json => json::decode(bytes, limits),
        Form::Cbor => cbor::decode(bytes, limits),
    }?;
    let Value::List(records) = &pack else {
        return Err(Undecodable::NotSenml { record: 0, why: "a pack is a list of records" });
    };
    let mut base = Base::default();
    let mut name_bytes_left = limits.bytes_max;
    let (mut resolved, mut by_name) = (Vec::new(), Vec::new());
    for (index, record) in records.iter().enumerate() {
        let wrong = |why| Undecodable::NotSenml { record: index + 1, why };
        let Value::Map(record) = record else {
            return Err(wrong("a record is a map"));
        };
        let Some(record) = base.take(form, record).map_err(wrong)? else {
            continue;
        };
        let name = base.name(&record).ok_or_else(|| wrong("it has neither `n` nor `bn`"))?;
        let left = name_bytes_left.checked_sub(name.len());
        name_bytes_left = left.ok_or(Undecodable::Expands(limits.bytes_max))?;
        let value = record.value.clone().map(|(field, value)| (field, base.value(value)));
        if let Some((_, value)) = &value {
            by_name.push((Arc::clone(&name), value.clone()));
        }
        resolved.push(base.resolve(&record, name, value, now));
    }
    let entries = vec![
        (Arc::from("records"), Value::List(resolved.into())),
        (Arc::from("by_name"), Value::Map(Arc::new(Map::new(by_name)))),
    ];
    Ok(Value::Map(Arc::new(Map::new(entries))))
}

/// What is there to be added to each record.
#[derive(Debug, Default)]
struct Base {
    name: Option<Arc<str>>,
    time: f64,
    unit: Option<Arc<str>>,
    value: Option<f64>,
    sum: Option<f64>,
}

/// A record's own fields.
#[derive(Debug, Default)]
struct Record {
    name: Option<Arc<str>>,
    unit: Option<Arc<str>>,
    time: Option<f64>,
    update: Option<f64>,
    sum: Option<f64>,
    /// By the name of its field.
    value: Option<(&'static str, Value)>,
}

impl Base {
    /// Takes a record's base fields, and gives the rest; `None` for a record with base fields only.
    fn take(&mut self, form: Form, map: &Map) -> Result<Option<Record>, &'static str> {
        let mut record = Record::default();
        let mut is_base = false;
        for (label, value) in map.entries() {
            let label = field(form, label);
            is_base |= matches!(label, "bver" | "bn" | "bt" | "bu" | "bv" | "bs");
            match label {
                "bver" if number(value)?.is_some_and(|version| !is_known(version)) => {
                    return Err("it is of a version (`bver`) that is not known");
                }
                "bn" => self.name = text(value)?,
                "bt" => self.time = number(value)?.unwrap_or(0.0),
                "bu" => self.unit = text(value)?,
                "bv" => self.value = number(value)?,
                "bs" => self.sum = number(value)?,
                "n" => record.name = text(value)?,
                "u" => record.unit = text(value)?,
                "t" => record.time = number(value)?,
                "ut" => record.update = number(value)?,
                "s" => record.sum = number(value)?,
                "v" | "vs" | "vb" | "vd" => {
                    if record.value.is_some() {
                        return Err("it has two values");
                    }
                    record.value = Some(own_value(form, label, value)?);
                }
                _ if label.ends_with('_') => {
                    return Err("it has a field that must be understood, and is not");
                }
                _ => {}
            }
        }
        match (&record.value, record.sum) {
            (None, None) if is_base => Ok(None),
            (None, None) => Err("it has no value"),
            _ => Ok(Some(record)),
        }
    }

    fn name(&self, record: &Record) -> Option<Arc<str>> {
        match (&self.name, &record.name) {
            (Some(base), Some(own)) => Some(format!("{base}{own}").into()),
            (Some(name), None) | (None, Some(name)) => Some(Arc::clone(name)),
            (None, None) => None,
        }
        .filter(|name: &Arc<str>| !name.is_empty())
    }

    fn value(&self, own: Value) -> Value {
        match (self.value, own.number()) {
            (Some(base), Some(own)) => Value::float(base + own),
            _ => own,
        }
    }

    fn resolve(
        &self,
        record: &Record,
        name: Arc<str>,
        value: Option<(&'static str, Value)>,
        now: Timestamp,
    ) -> Value {
        let time = self.time + record.time.unwrap_or(0.0);
        let time = if time < RELATIVE_BELOW { time + seconds(now) } else { time };
        let mut fields = vec![("n", Value::Text(name)), ("t", whole(time))];
        if let Some(unit) = record.unit.as_ref().or(self.unit.as_ref()) {
            fields.push(("u", Value::Text(Arc::clone(unit))));
        }
        if let Some(sum) = record.sum {
            fields.push(("s", Value::float(sum + self.sum.unwrap_or(0.0))));
        }
        if let Some(update) = record.update {
            fields.push(("ut", whole(update)));
        }
        fields.extend(value);
        let fields = fields.into_iter().map(|(name, value)| (Arc::from(name), value));
        Value::Map(Arc::new(Map::new(fields.collect())))
    }
}

/// A field's name; CBOR has numbers for them (section 6).
fn field(form: Form, label: &str) -> &str {
    match (form, label) {
        (Form::Cbor, "-1") => "bver",
        (Form::Cbor, "-2") => "bn",
        (Form::Cbor, "-3") => "bt",
        (Form::Cbor, "-4") => "bu",
        (Form::Cbor, "-5") => "bv",
        (Form::Cbor, "-6") => "bs",
        (Form::Cbor, "0") => "n",
        (Form::Cbor, "1") => "u",
        (Form::Cbor, "2") => "v",
        (Form::Cbor, "3") => "vs",
        (Form::Cbor, "4") => "vb",
        (Form::Cbor, "5") => "s",
        (Form::Cbor, "6") => "t",
        (Form::Cbor, "7") => "ut",
        (Form::Cbor, "8") => "vd",
        (_, label) => label,
    }
}

fn own_value(
    form: Form,
    label: &str,
    value: &Value,
) -> Result<(&'static str, Value), &'static str> {
    match (label, value) {
        ("v", Value::Int(_) | Value::Uint(_) | Value::Float(_) | Value::Null) => {
            Ok(("v", value.clone()))
        }
        ("vs", Value::Text(_) | Value::Null) => Ok(("vs", value.clone())),
        ("vb", Value::Bool(_) | Value::Null) => Ok(("vb", value.clone())),
        ("vd", Value::Bytes(_) | Value::Null) => Ok(("vd", value.clone())),
        ("vd", Value::Text(text)) if form == Form::Json => {
            match BASE64URL.decode(text.as_bytes()) {
                Ok(bytes) => Ok(("vd", Value::Bytes(bytes.into()))),
                Err(_) => Err("`vd` is not base64url"),
            }
        }
        ("v", _) => Err("`v` is not a number"),
        ("vs", _) => Err("`vs` is not text"),
        ("vb", _) => Err("`vb` is neither true nor false"),
        _ => Err("`vd` is not bytes"),
    }
}

fn is_known(version: f64) -> bool {
    (0..=VERSION_BITS).any(|known| Value::whole(known).number() == Some(version))
}

fn text(value: &Value) -> Result<Option<Arc<str>>, &'static str> {
    match value {
        Value::Text(text) => Ok(Some(Arc::clone(text))),
        Value::Null => Ok(None),
        _ => Err("a name or a unit is not text"),
    }
}

fn number(value: &Value) -> Result<Option<f64>, &'static str> {
    match value.number() {
        Some(number) => Ok(Some(number)),
        None if *value == Value::Null => Ok(None),
        None => Err("a time, a sum, a version or a base value is not a number"),
    }
}

fn seconds(time: Timestamp) -> f64 {
    Value::Int(time.wall().as_millis()).number().unwrap_or(0.0) / 1_000.0
}

/// Without `.0` where there is nothing behind the point.
fn whole(number: f64) -> Value {
    number.to_string().parse().map_or_else(|_| Value::float(number), Value::Int)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{NOW, hex};
    use super::*;

    fn shown(form: Form, bytes: &[u8], limits: Limits) -> String {
        match decode(form, bytes, limits, NOW) {
            Ok(value) => format!("{value:?}"),
            Err(error) => format!("! {error}"),
        }
    }

    fn check(pack: &str, expected: &str) {
        assert_eq!(shown(Form::Json, pack.as_bytes(), Limits::default()), expected, "{pack}");
    }

    fn refused(pack: &str, why: &str) {
        check(pack, &format!("! the payload is not SenML: {why}"));
    }

    #[test]
    fn base_fields_count_from_their_record_on() {
        check(
            r#"[{"bn":"urn:dev:mac:02aa:","bt":1790000000,"n":"temp","u":"Cel","v":-3.5},
                {"n":"leak","vb":true},{"n":"batt","u":"%EL","v":14,"t":-30}]"#,
            r#"{"by_name": {"urn:dev:mac:02aa:batt": 14, "urn:dev:mac:02aa:leak": true, "urn:dev:mac:02aa:temp": -3.5}, "records": [{"n": "urn:dev:mac:02aa:temp", "t": 1790000000, "u": "Cel", "v": -3.5}, {"n": "urn:dev:mac:02aa:leak", "t": 1790000000, "vb": true}, {"n": "urn:dev:mac:02aa:batt", "t": 1789999970, "u": "%EL", "v": 14}]}"#,
        );
        check(
            r#"[{"bn":"a/","bu":"V","bv":200,"bs":10},{"n":"x","v":30},{"bn":"b/","n":"y","s":5},{"bu":null,"v":1,"t":0.5}]"#,
            r#"{"by_name": {"a/x": 230.0, "b/": 201.0}, "records": [{"n": "a/x", "t": 1790000000, "u": "V", "v": 230.0}, {"n": "b/y", "s": 15.0, "t": 1790000000, "u": "V"}, {"n": "b/", "t": 1790000000.5, "v": 201.0}]}"#,
        );
    }

    #[test]
    fn a_time_below_two_to_the_28_is_relative_to_now() {
        for (time, expected) in [
            ("-30", "1789999970"),
            ("0", "1790000000"),
            ("268435455", "2058435455"),
            ("268435456", "268435456"),
            ("1790000000.25", "1790000000.25"),
        ] {
            check(
                &format!(r#"[{{"n":"a","v":1,"t":{time}}}]"#),
                &format!(
                    r#"{{"by_name": {{"a": 1}}, "records": [{{"n": "a", "t": {expected}, "v": 1}}]}}"#
                ),
            );
        }
    }

    #[test]
    fn data_is_base64url_and_null_is_no_reading() {
        check(
            r#"[{"n":"d","vd":"-_8"},{"n":"e","vd":"-_8="},{"n":"x","v":null},{"n":"x","vs":"on","ut":60}]"#,
            r#"{"by_name": {"d": "+/8=", "e": "+/8=", "x": "on"}, "records": [{"n": "d", "t": 1790000000, "vd": "+/8="}, {"n": "e", "t": 1790000000, "vd": "+/8="}, {"n": "x", "t": 1790000000, "v": null}, {"n": "x", "t": 1790000000, "ut": 60, "vs": "on"}]}"#,
        );
        check("[]", r#"{"by_name": {}, "records": []}"#);
    }

    #[test]
    fn reads_cbor() {
        let vector = "82a4217175726e3a6465763a6d61633a303261613a221a6ab13b80006474656d7002fbc00c000000000000a200646c65616b04f5";
        let time = r#""t": 1790000000"#;
        assert_eq!(
            shown(Form::Cbor, &hex(vector), Limits::default()),
            format!(
                r#"{{"by_name": {{"urn:dev:mac:02aa:leak": true, "urn:dev:mac:02aa:temp": -3.5}}, "records": [{{"n": "urn:dev:mac:02aa:temp", {time}, "v": -3.5}}, {{"n": "urn:dev:mac:02aa:leak", {time}, "vb": true}}]}}"#
            )
        );
        // A unit, data, and the field of LwM2M, which is not looked at; NaN is no reading.
        let pack = "82a4006161016356617202f97e0063766c6f6161a200616208420001";
        assert_eq!(
            shown(Form::Cbor, &hex(pack), Limits::default()),
            format!(
                r#"{{"by_name": {{"a": null, "b": "AAE="}}, "records": [{{"n": "a", {time}, "u": "Var", "v": null}}, {{"n": "b", {time}, "vd": "AAE="}}]}}"#
            )
        );
    }

    #[test]
    fn says_which_record_is_wrong_and_why() {
        refused("{}", "a pack is a list of records");
        refused("[1]", "record 1: a record is a map");
        refused(r#"[{"n":"a","v":1},{"n":"a"}]"#, "record 2: it has no value");
        refused(r#"[{"v":1}]"#, "record 1: it has neither `n` nor `bn`");
        refused(r#"[{"n":"a","v":1,"vs":"1"}]"#, "record 1: it has two values");
        refused(r#"[{"n":"a","v":"1"}]"#, "record 1: `v` is not a number");
        refused(r#"[{"n":"a","vs":1}]"#, "record 1: `vs` is not text");
        refused(r#"[{"n":"a","vb":1}]"#, "record 1: `vb` is neither true nor false");
        refused(r#"[{"n":"a","vd":"*"}]"#, "record 1: `vd` is not base64url");
        refused(r#"[{"n":1,"v":1}]"#, "record 1: a name or a unit is not text");
        refused(
            r#"[{"n":"a","v":1,"x_":1}]"#,
            "record 1: it has a field that must be understood, and is not",
        );
        refused(
            r#"[{"bver":32,"n":"a","v":1}]"#,
            "record 1: it is of a version (`bver`) that is not known",
        );
        let time = "record 1: a time, a sum, a version or a base value is not a number";
        refused(r#"[{"n":"a","v":1,"t":"now"}]"#, time);
        check("[", "! the payload is not JSON: line 1, column 1");
    }

    #[test]
    fn known_versions_and_base_only_records_are_taken() {
        for version in ["5", "10", "26"] {
            check(
                &format!(r#"[{{"bver":{version},"bn":"a"}},{{"vb":false}}]"#),
                r#"{"by_name": {"a": false}, "records": [{"n": "a", "t": 1790000000, "vb": false}]}"#,
            );
        }
    }

    #[test]
    fn a_long_base_name_before_many_names_is_refused() {
        let base = format!(r#"{{"bn":"{}"}}"#, "x".repeat(1_000));
        let pack = format!("[{base}{}]", r#",{"n":"a","v":1}"#.repeat(300));
        assert_eq!(
            shown(Form::Json, pack.as_bytes(), Limits::default()),
            "! unpacked, the payload is larger than 262144 bytes"
        );
    }

    proptest! {
        #[test]
        fn almost_senml_never_panics(pack in "\\[(\\{(\"(bn|bt|n|v|vs|vd|s|t)\":(1|-1e300|\"a\"|null|1e300),?){0,3}\\},?){0,3}\\]") {
            drop(decode(Form::Json, pack.as_bytes(), Limits::default(), NOW));
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            for form in [Form::Json, Form::Cbor] {
                drop(decode(form, &bytes, Limits::default(), NOW));
            }
        }
    }
}
