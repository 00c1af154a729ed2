//! mqttwarn.ini as Python's `RawConfigParser` reads it, with the lines kept.
//!
//! `[name]` begins a section, `key = value` or `key: value` an entry; keys are lower-cased. A line
//! that is indented deeper than its key goes on with the value, also after an empty line. A line that
//! begins with `#` or `;` is a comment wherever it stands; within a line neither is, and `%` means
//! nothing. `[DEFAULT]` holds what every section has too. What Python refuses (a section or a key
//! twice, a line that is neither) is told and does not stop the reading. Never fails, whatever the text.

/// What the file holds.
#[derive(Debug, Default)]
pub(super) struct Ini {
    pub(super) sections: Vec<Section>,
    /// Lines that mqttwarn would not start with.
    pub(super) refused: Vec<Refused>,
}

/// One line that Python refuses.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) line: usize,
    pub(super) what: String,
}

/// One `[section]`.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) entries: Vec<Entry>,
}

/// One `key = value`.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: String,
    /// From 1.
    pub(super) line: usize,
}

impl Section {
    pub(super) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// The value as it is written.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.entry(key).map(|entry| entry.value.as_str())
    }
}

impl Ini {
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

/// Reads the file's text.
pub(super) fn parse(text: &str) -> Ini {
    let mut reader = Reader::default();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        reader.line(index + 1, line);
    }
    let mut ini = reader.ini;
    for entry in ini.sections.iter_mut().flat_map(|section| &mut section.entries) {
        entry.value.truncate(entry.value.trim_end().len());
    }
    ini.sections.retain(|section| !reader.skipped.contains(&section.line));
    if let Some(index) = ini.sections.iter().position(|section| section.name == "DEFAULT") {
        let default = ini.sections.remove(index);
        for section in &mut ini.sections {
            for entry in &default.entries {
                if section.entry(&entry.key).is_none() {
                    section.entries.push(entry.clone());
                }
            }
        }
    }
    ini
}

#[derive(Default)]
struct Reader {
    ini: Ini,
    /// How deep the key stands whose value may go on.
    indent: usize,
    open: bool,
    /// Where sections begin that stand for a second time.
    skipped: Vec<usize>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) {
        let trimmed = line.trim();
        if trimmed.starts_with(['#', ';']) {
            return;
        }
        let indent = line.chars().take_while(|c| c.is_whitespace()).count();
        if self.open
            && (trimmed.is_empty() || indent > self.indent)
            && let Some(entry) = self.ini.sections.last_mut().and_then(|s| s.entries.last_mut())
        {
            entry.value.push('\n');
            entry.value.push_str(trimmed);
            return;
        }
        if trimmed.is_empty() {
            return;
        }
        self.indent = indent;
        self.open = false;
        let header = trimmed.strip_prefix('[').and_then(|rest| rest.rsplit_once(']'));
        match header {
            Some((name, _)) if !name.is_empty() => self.header(number, name),
            _ => self.entry(number, trimmed),
        }
    }

    fn header(&mut self, line: usize, name: &str) {
        if let Some(first) = self.ini.section(name) {
            let what = format!(
                "[{name}] stands at line {} already, and mqttwarn does not start with it; what stands here was left out: move it there",
                first.line
            );
            self.refused(line, what);
            self.skipped.push(line);
        }
        let section = Section { name: name.to_owned(), line, entries: Vec::new() };
        self.ini.sections.push(section);
    }

    fn entry(&mut self, line: usize, text: &str) {
        let Some(section) = self.ini.sections.last_mut() else {
            let what = "stands before the first [section], and mqttwarn does not start with it; it was left out";
            self.refused(line, what.to_owned());
            return;
        };
        let Some((key, value)) = text.split_once(['=', ':']) else {
            let what = "neither [section] nor key = value, and mqttwarn does not start with it; what goes on with a value is indented";
            self.refused(line, what.to_owned());
            return;
        };
        let key = key.trim().to_lowercase();
        if let Some(first) = section.entry(&key) {
            let what = format!(
                "`{key}` stands at line {} already, and mqttwarn does not start with it; the first was taken",
                first.line
            );
            self.refused(line, what);
            return;
        }
        section.entries.push(Entry { key, value: value.trim().to_owned(), line });
        self.open = true;
    }

    fn refused(&mut self, line: usize, what: String) {
        self.ini.refused.push(Refused { line, what });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: &str) {
        let ini = parse(text);
        let mut lines = Vec::new();
        for section in &ini.sections {
            lines.push(format!("{}[{}]", section.line, section.name));
            for entry in &section.entries {
                lines.push(format!("{} {}={:?}", entry.line, entry.key, entry.value));
            }
        }
        lines.extend(ini.refused.iter().map(|refused| format!("{}!", refused.line)));
        assert_eq!(lines.join("; "), expected, "{text}");
    }

    #[test]
    fn reads_as_python_does() {
        check("[a/+]\nTargets = log:info\n", "1[a/+]; 2 targets=\"log:info\"");
        check("[a]\nx: 1 ; no comment\n# one\n; two\n", "1[a]; 2 x=\"1 ; no comment\"");
        check(
            "[a]\nx = {\n  'b': 1,\n  # not this\n\n  }\ny=%(x)s",
            "1[a]; 2 x=\"{\\n'b': 1,\\n\\n}\"; 7 y=\"%(x)s\"",
        );
        check("\u{feff}[a]\nx =\n\n\n[b]\n", "1[a]; 2 x=\"\"; 5[b]");
        check("[a] rest\nx=1\n[x[0]]\n", "1[a]; 2 x=\"1\"; 3[x[0]]");
        check("[DEFAULT]\nqos = 1\n[a]\n[b]\nqos = 0\n", "3[a]; 2 qos=\"1\"; 4[b]; 5 qos=\"0\"");
        check("[a]\r\nx = 1\r\n", "1[a]; 2 x=\"1\"");
    }

    #[test]
    fn what_python_refuses_is_told() {
        check("x = 1\n[a]\n", "2[a]; 1!");
        check("[a]\nx = 1\nx = 2\n}\n", "1[a]; 2 x=\"1\"; 3!; 4!");
        check("[a]\nx = 1\n[b]\n[a]\ny = 2\n", "1[a]; 2 x=\"1\"; 3[b]; 4!");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "([\\[\\]=:#; \\n\\ta-c{}]|.){0,200}") {
            let ini = parse(&text);
            prop_assert!(ini.sections.len() <= text.len());
        }
    }
}
