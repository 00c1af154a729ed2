//! A layout as a rule file has it -> [`Layout`], with every problem of it at once.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Deserialize;

use super::{Field, Layout, Scaling, Value, What, Whole};
use crate::problem::{Step, closest, read_what_is_right};

/// Most fields of a layout.
const FIELDS_MAX: usize = 256;

/// The largest `at`, `len` and `min_bytes`: beyond what any device sends in one frame.
const PLACE_MAX: i64 = 65_535;

/// The words of `type`.
pub(super) const TYPES: &[&str] = &[
    "u8", "i8", "u16be", "u16le", "i16be", "i16le", "u24be", "u24le", "i24be", "i24le", "u32be",
    "u32le", "i32be", "i32le", "u64be", "u64le", "i64be", "i64le", "f32be", "f32le", "f64be",
    "f64le", "bool", "text", "hex", "bytes", "bits",
];

/// Everything is optional, so that one missing key hides no other problem.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, as in { fields = [...] }")]
struct Written {
    fields: Option<Vec<WrittenField>>,
    min_bytes: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table, as in { name = \"temp\", at = 0 }")]
struct WrittenField {
    name: Option<String>,
    at: Option<i64>,
    r#type: Option<String>,
    len: Option<i64>,
    bits: Option<Vec<i64>>,
    scale: Option<f64>,
    offset: Option<f64>,
}

impl Layout {
    /// Reads the `layout` of a rule.
    ///
    /// # Errors
    /// Everything that is wrong with it, each with its place below `layout`.
    pub fn parse(written: &toml::Value) -> Result<Self, Vec<(Vec<Step>, String)>> {
        let (read, faults) = read_what_is_right::<Written>(written.clone());
        let mut problems =
            Problems { list: faults.into_iter().map(|fault| (fault.path, fault.what)).collect() };
        let read = read.unwrap_or_default();
        if read.fields.as_ref().is_none_or(Vec::is_empty) && !problems.is_at(&["fields".into()]) {
            problems.add(&["fields".into()], "name at least one field, as in fields = [{ name = \"temp\", at = 0, type = \"i16be\" }]");
        }
        let written = read.fields.unwrap_or_default();
        if written.len() > FIELDS_MAX {
            problems.add(&["fields".into()], format!("a layout has at most {FIELDS_MAX} fields"));
        }
        let mut names = BTreeSet::new();
        let mut fields = Vec::new();
        for (index, field) in written.iter().take(FIELDS_MAX).enumerate() {
            let mut at = At { problems: &mut problems, place: vec!["fields".into(), index.into()] };
            if let Some(name) = &field.name
                && !names.insert(name.as_str())
            {
                at.add("name", format!("another field is called `{name}` too"));
            }
            fields.extend(at.field(field));
        }
        let needed = fields.iter().map(|field| field.at + field.len.unwrap_or(0)).max();
        let min_bytes = match read.min_bytes {
            None => needed.unwrap_or(0),
            Some(bytes) => match place(bytes, 0) {
                Ok(bytes) => bytes,
                Err(what) => {
                    problems.add(&["min_bytes".into()], what);
                    0
                }
            },
        };
        if problems.list.is_empty() { Ok(Self { fields, min_bytes }) } else { Err(problems.list) }
    }

    /// How many bytes a type has, if it is that of a number or of `bool`.
    pub fn width(word: &str) -> Option<usize> {
        match Kind::of(word).filter(|_| word != "bits")? {
            Kind::Whole { bytes, .. } | Kind::Float { bytes, .. } => Some(bytes),
            Kind::Bool => Some(1),
            Kind::Run(_) => None,
        }
    }

    /// What `own`, which has as many bytes as [`Layout::width`] says, is by that type.
    pub fn one(own: &[u8], word: &str) -> Option<Value> {
        let scaling = None;
        let what = match Kind::of(word)? {
            Kind::Whole { whole, .. } => What::Whole { kind: whole, scaling },
            Kind::Float { bytes: 4, little } => What::Single { little, scaling },
            Kind::Float { little, .. } => What::Double { little, scaling },
            Kind::Bool => What::Bool,
            Kind::Run(_) => return None,
        };
        Some(what.read(own))
    }
}

struct Problems {
    list: Vec<(Vec<Step>, String)>,
}

impl Problems {
    fn add(&mut self, place: &[Step], what: impl Into<String>) {
        self.list.push((place.to_vec(), what.into()));
    }

    /// Whether something is wrong there already.
    fn is_at(&self, place: &[Step]) -> bool {
        self.list.iter().any(|(path, _)| path.starts_with(place) || path.is_empty())
    }
}

/// One field while it is read.
struct At<'p> {
    problems: &'p mut Problems,
    place: Vec<Step>,
}

impl At<'_> {
    fn path(&self, key: &str) -> Vec<Step> {
        self.place.iter().cloned().chain([key.into()]).collect()
    }

    fn add(&mut self, key: &str, what: impl Into<String>) {
        let path = self.path(key);
        self.problems.add(&path, what);
    }

    fn missing(&mut self, key: &str, what: &str) {
        if !self.problems.is_at(&self.path(key)) {
            let place = self.place.clone();
            self.problems.add(&place, what);
        }
    }

    /// The field, if nothing is wrong with it.
    fn field(&mut self, written: &WrittenField) -> Option<Field> {
        match &written.name {
            Some(name) if name.is_empty() || name.len() > 64 => {
                self.add("name", "a field's name has 1 to 64 bytes");
            }
            Some(_) => {}
            None => self.missing("name", "`name` is missing; it is what rules call the field"),
        }
        let at = match written.at.map(|at| place(at, 0)) {
            Some(Ok(at)) => Some(at),
            Some(Err(what)) => {
                self.add("at", what);
                None
            }
            None => {
                self.missing("at", "`at` is missing; the first byte is at = 0");
                None
            }
        };
        let kind = self.kind(written)?;
        let len = self.len(written, kind);
        let what = self.what(written, kind)?;
        Some(Field { name: Arc::from(written.name.as_deref()?), at: at?, len: len?, what })
    }

    fn kind(&mut self, written: &WrittenField) -> Option<Kind> {
        let Some(word) = &written.r#type else {
            if written.bits.is_some() {
                return Some(Kind::BYTE);
            }
            self.missing(
                "type",
                "`type` is missing; write one as in type = \"i16be\", or bits = [0, 1]",
            );
            return None;
        };
        let kind = Kind::of(word);
        if kind.is_none() {
            let what = match closest(word, TYPES) {
                _ if TYPES.contains(&format!("{word}be").as_str()) => {
                    format!("say which byte comes first: `{word}be` (the high one) or `{word}le`")
                }
                Some(near) => format!("unknown word `{word}`; did you mean `{near}`?"),
                None => format!("unknown word `{word}`; known are {}", TYPES.join(", ")),
            };
            self.add("type", what);
        }
        if word == "bits" && written.bits.is_none() {
            self.missing("bits", "`bits` is missing; write the first bit, counted from the lowest, and how many, as in bits = [3, 1]");
            return None;
        }
        kind
    }

    fn len(&mut self, written: &WrittenField, kind: Kind) -> Option<Option<usize>> {
        match (kind, written.len) {
            (Kind::Run(_), None) => Some(None),
            (Kind::Run(_), Some(len)) => match place(len, 1) {
                Ok(len) => Some(Some(len)),
                Err(what) => {
                    self.add("len", what);
                    None
                }
            },
            (Kind::Whole { bytes, .. } | Kind::Float { bytes, .. }, None) => Some(Some(bytes)),
            (Kind::Bool, None) => Some(Some(1)),
            (_, Some(_)) => {
                self.add(
                    "len",
                    "only text, hex and bytes have a `len`; the type says how long this is",
                );
                None
            }
        }
    }

    fn what(&mut self, written: &WrittenField, kind: Kind) -> Option<What> {
        let scaling = self.scaling(written, kind)?;
        if let Some(bits) = &written.bits {
            let Kind::Whole { bytes, whole } = kind else {
                self.add("bits", "bits are taken out of a whole number; give it such a type, or none for one byte");
                return None;
            };
            let range = match bits.as_slice() {
                [first, count] => u32::try_from(*first).ok().zip(u32::try_from(*count).ok()),
                _ => None,
            };
            let width = u32::try_from(bytes * 8).unwrap_or(u64::BITS);
            let fits = |(first, count): &(u32, u32)| {
                *count > 0 && first.checked_add(*count).is_some_and(|end| end <= width)
            };
            let Some((first, count)) = range.filter(fits) else {
                let what = format!(
                    "write the first bit, counted from the lowest, and how many, as in bits = [3, 1]; there are {width}"
                );
                self.add("bits", what);
                return None;
            };
            return Some(What::Bits { kind: whole, first, count, scaling });
        }
        Some(match kind {
            Kind::Whole { whole, .. } => What::Whole { kind: whole, scaling },
            Kind::Float { bytes: 4, little } => What::Single { little, scaling },
            Kind::Float { little, .. } => What::Double { little, scaling },
            Kind::Bool => What::Bool,
            Kind::Run(what) => what,
        })
    }

    fn scaling(&mut self, written: &WrittenField, kind: Kind) -> Option<Option<Scaling>> {
        let is_number = matches!(kind, Kind::Whole { .. } | Kind::Float { .. });
        let mut right = true;
        for (key, number) in [("scale", written.scale), ("offset", written.offset)] {
            let what = match number {
                Some(_) if !is_number => "only numbers are scaled",
                Some(number) if !number.is_finite() => "it must be a number",
                Some(0.0) if key == "scale" => "with 0 every reading is the same",
                _ => continue,
            };
            self.add(key, what);
            right = false;
        }
        let (scale, offset) = (written.scale, written.offset);
        right.then(|| {
            (scale.is_some() || offset.is_some())
                .then(|| Scaling::new(scale.unwrap_or(1.0), offset.unwrap_or(0.0)))
        })
    }
}

impl Scaling {
    fn new(scale: f64, offset: f64) -> Self {
        let decimals = |number: f64| {
            number.to_string().split_once('.').map_or(0, |(_, decimals)| decimals.len())
        };
        let most = decimals(scale).max(decimals(offset));
        let decimals = (most <= 12).then(|| 10f64.powi(i32::try_from(most).unwrap_or(0)));
        Self { scale, offset, decimals }
    }
}

/// What a word of `type` means.
#[derive(Clone, Copy)]
enum Kind {
    Whole {
        bytes: usize,
        whole: Whole,
    },
    Float {
        bytes: usize,
        little: bool,
    },
    Bool,
    /// As long as `len`, or the rest.
    Run(What),
}

impl Kind {
    const BYTE: Self = Self::Whole { bytes: 1, whole: Whole { signed: false, little: false } };

    fn of(word: &str) -> Option<Self> {
        match word {
            "bool" => return Some(Self::Bool),
            "text" => return Some(Self::Run(What::Text)),
            "hex" => return Some(Self::Run(What::Hex)),
            "bytes" => return Some(Self::Run(What::Bytes)),
            "bits" | "u8" => return Some(Self::BYTE),
            _ if !TYPES.contains(&word) => return None,
            _ => {}
        }
        let bits: String = word.chars().filter(char::is_ascii_digit).collect();
        let bytes = bits.parse::<usize>().ok()? / 8;
        let little = word.ends_with("le");
        Some(match word.starts_with('f') {
            true => Self::Float { bytes, little },
            false => Self::Whole { bytes, whole: Whole { signed: word.starts_with('i'), little } },
        })
    }
}

/// A number of bytes.
fn place(number: i64, min: i64) -> Result<usize, String> {
    usize::try_from(number)
        .ok()
        .filter(|_| (min..=PLACE_MAX).contains(&number))
        .ok_or_else(|| format!("must be from {min} to {PLACE_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::path_text;

    fn problems(written: &str) -> String {
        let written = toml::from_str(written).expect("valid TOML");
        match Layout::parse(&written) {
            Ok(_) => String::new(),
            Err(problems) => {
                let line =
                    |(path, what): &(Vec<Step>, String)| format!("{}: {what}\n", path_text(path));
                problems.iter().map(line).collect()
            }
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        insta::assert_snapshot!(problems(
            r#"
min_byte = 5
min_bytes = -1
fields = [
  { at = 0 },
  { name = "", at = -1, type = "u16" },
  { name = "a", at = 0, type = "u17be", scale = "x" },
  { name = "a", at = "0", type = "fax" },
  { name = "b", at = 0, type = "bits" },
  { name = "c", at = 0, bits = [3] },
  { name = "d", at = 0, bits = [7, 2] },
  { name = "e", at = 0, type = "text", bits = [0, 1], scale = 2 },
  { name = "f", at = 0, type = "u8", len = 2, scale = 0, offset = nan },
  { name = "g", at = 0, type = "hex", len = 0 },
  { name = "h", at = 0, type = "f32be", bits = [0, 1] },
]
"#), @r#"
        min_byte: unknown key; did you mean `min_bytes`?
        fields[2].scale: invalid type: string "x", expected f64
        fields[3].at: invalid type: string "0", expected i64
        fields[0]: `name` is missing; it is what rules call the field
        fields[0]: `type` is missing; write one as in type = "i16be", or bits = [0, 1]
        fields[1].name: a field's name has 1 to 64 bytes
        fields[1].at: must be from 0 to 65535
        fields[1].type: say which byte comes first: `u16be` (the high one) or `u16le`
        fields[2].type: unknown word `u17be`; did you mean `u16be`?
        fields[3].name: another field is called `a` too
        fields[3].type: unknown word `fax`; known are u8, i8, u16be, u16le, i16be, i16le, u24be, u24le, i24be, i24le, u32be, u32le, i32be, i32le, u64be, u64le, i64be, i64le, f32be, f32le, f64be, f64le, bool, text, hex, bytes, bits
        fields[4]: `bits` is missing; write the first bit, counted from the lowest, and how many, as in bits = [3, 1]
        fields[5].bits: write the first bit, counted from the lowest, and how many, as in bits = [3, 1]; there are 8
        fields[6].bits: write the first bit, counted from the lowest, and how many, as in bits = [3, 1]; there are 8
        fields[7].scale: only numbers are scaled
        fields[8].len: only text, hex and bytes have a `len`; the type says how long this is
        fields[8].scale: with 0 every reading is the same
        fields[8].offset: it must be a number
        fields[9].len: must be from 1 to 65535
        fields[10].bits: bits are taken out of a whole number; give it such a type, or none for one byte
        min_bytes: must be from 0 to 65535
        "#);
        insta::assert_snapshot!(problems(""), @r#"fields: name at least one field, as in fields = [{ name = "temp", at = 0, type = "i16be" }]"#);
        insta::assert_snapshot!(problems("fields = 5"), @"fields: invalid type: integer `5`, expected a sequence");
        insta::assert_snapshot!(problems("fields = [5]"), @r#"fields[0]: invalid type: integer `5`, expected a table, as in { name = "temp", at = 0 }"#);
    }

    #[test]
    fn limits_are_kept() {
        let field = |name: usize| format!("{{ name = '{name}', at = 65535, type = 'u8' }}");
        let all = |count: usize| (0..count).map(field).collect::<Vec<_>>().join(", ");
        assert_eq!(problems(&format!("fields = [{}]", all(256))), "");
        assert_eq!(
            problems(&format!("fields = [{}]", all(257))),
            "fields: a layout has at most 256 fields\n"
        );
    }
}
