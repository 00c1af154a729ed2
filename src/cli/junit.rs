//! What came of tests as JUnit XML, as CI systems read it: a `testsuite` for each rule file, and a
//! `testcase` for each test. Times are left at 0: the tests run in virtual time.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::test::TestResult;

/// The whole file.
pub(super) fn render(results: &[TestResult<'_>]) -> String {
    let mut suites: BTreeMap<&str, Vec<&TestResult<'_>>> = BTreeMap::new();
    for result in results {
        suites.entry(result.file).or_default().push(result);
    }
    let failures = |of: &[&TestResult<'_>]| of.iter().filter(|one| one.failure().is_some()).count();
    let all: Vec<&TestResult<'_>> = results.iter().collect();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    push(
        &mut xml,
        format_args!(
            "<testsuites name=\"watchbell\" tests=\"{}\" failures=\"{}\" errors=\"0\" time=\"0\">\n",
            all.len(),
            failures(&all)
        ),
    );
    for (file, suite) in &suites {
        push(
            &mut xml,
            format_args!(
                "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" errors=\"0\" skipped=\"0\" time=\"0\">\n",
                escaped(file),
                suite.len(),
                failures(suite)
            ),
        );
        for result in suite {
            let head = format!(
                "    <testcase name=\"{}\" classname=\"{}\" file=\"{}\" line=\"{}\" time=\"0\"",
                escaped(result.name),
                escaped(file),
                escaped(file),
                result.line
            );
            match result.failure() {
                None => push(&mut xml, format_args!("{head}/>\n")),
                Some(failure) => push(
                    &mut xml,
                    format_args!(
                        "{head}>\n      <failure type=\"expectation\" message=\"{}\">{}</failure>\n    </testcase>\n",
                        escaped(failure.lines().next().unwrap_or_default().trim()),
                        escaped(&failure)
                    ),
                ),
            }
        }
        xml.push_str("  </testsuite>\n");
    }
    xml.push_str("</testsuites>\n");
    xml
}

fn push(xml: &mut String, part: std::fmt::Arguments<'_>) {
    xml.write_fmt(part).expect("a String takes everything");
}

/// For attributes and text alike; what XML 1.0 cannot hold becomes U+FFFD.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            '\n' | '\t' => escaped.push(character),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other if other.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_cannot_hold_is_escaped_or_replaced() {
        assert_eq!(escaped("a<b & \"c\" 'd'>"), "a&lt;b &amp; &quot;c&quot; &apos;d&apos;&gt;");
        assert_eq!(escaped("°\u{0}\u{1b}[1m\u{ffff}\n"), "°\u{fffd}\u{fffd}[1m\u{fffd}\n");
    }
}
