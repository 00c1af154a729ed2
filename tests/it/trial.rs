//! `watchbell test` and what `watchbell check` learns from tests: what is said, to the letter.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// A directory of rule files, and what commands say of it.
struct Rules(tempfile::TempDir);

impl Rules {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.toml"), format!("{CONTACTS}{text}")).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Exit code is 0, output and error.
    fn said(&self, arguments: &[&str]) -> (bool, String) {
        said(self.0.path(), arguments)
    }
}

fn said(dir: &Path, arguments: &[&str]) -> (bool, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let place = dir.to_str().unwrap();
    let line = ["watchbell"].iter().chain(arguments).chain(&["--rules-dir", place]);
    let code = watchbell::cli::execute(line.map(OsString::from), Vec::new(), &mut out, &mut err);
    let text = [out, err].concat();
    let text = String::from_utf8(text).unwrap().replace(&format!("{place}/"), "rules/");
    (code == ExitCode::SUCCESS, text)
}

fn failing(text: &str, arguments: &[&str]) -> String {
    let (ok, text) = Rules::new(text).said(arguments);
    assert!(!ok, "{text}");
    text
}

fn passing(text: &str) -> String {
    let (ok, text) = Rules::new(text).said(&["test"]);
    assert!(ok, "{text}");
    text
}

const CONTACTS: &str = "\
[[contact]]
name = 'ana'
sms = '+4915550100001'
push = 'topic:ana'
[[contact]]
name = 'ben'
sms = '+4915550100002'
";

const WARM: &str = r#"
[[rule]]
name = "warm"
topic = "f/{unit}"
when = "payload.t > -15"
clear = "payload.t < -17"
for = "5m"
to = ["ana"]
by = ["push", "sms"]
text = "{{ unit }}: {{ payload.t }} °C"
text_clear = "{{ unit }} is cold"
"#;

#[test]
fn what_passes_is_told_with_what_it_leaves_out() {
    let text = format!(
        r#"{WARM}
[[test]]
name = "five warm minutes reach Ana once"
steps = [
  {{ at = "0s",    topic = "f/1", payload = {{ t = -10.0 }}, expect = [{{ rule = "warm", state = "pending" }}] }},
  {{ at = "4m59s", topic = "f/1", payload = {{ t = -10.5 }}, expect = [] }},
  {{ at = "5m",    expect = [{{ rule = "warm", state = "firing", to = "ana", by = "push", text = "1: -10.5 °C" }}] }},
]
"#
    );
    insta::assert_snapshot!(passing(&text), @"");
}

#[test]
fn what_fails_is_told_as_the_file_would_say_it() {
    let text = format!(
        r#"{WARM}
[[test]]
name = "it says \"cold\" <at once> & to Ben"
steps = [
  {{ at = "0s", topic = "f/1", payload = {{ t = -10 }} }},
  {{ at = "5m", topic = "f/2", payload = {{ temp = -10 }}, expect = [
      {{ rule = "warm", key = "1", to = "ben", text_contains = "-10" }},
      {{ rule = "warm", key = "1", times = 3 }},
  ] }},
  {{ at = "6m", ack = "warm", key = "9", by = "ana" }},
  {{ at = "7m", topic = "f/1", payload = {{ t = -20 }}, expect = [] }},
]

[[test]]
name = "this one passes"
steps = [{{ topic = "f/1", payload = {{ t = -18 }}, expect = [] }}]
"#
    );
    let rules = Rules::new(&text);
    let (ok, said) = rules.said(&["test"]);
    assert!(!ok);
    insta::assert_snapshot!(said, @"");
    let junit = rules.path("junit.xml");
    let (ok, _) = rules.said(&["test", "--junit", junit.to_str().unwrap()]);
    assert!(!ok);
    let junit = std::fs::read_to_string(junit).unwrap();
    let place = rules.path("").display().to_string();
    insta::assert_snapshot!(junit.replace(&place, "rules/"), @"");
    let (ok, json) = rules.said(&["test", "--json", "--filter", "cold"]);
    assert!(!ok);
    insta::assert_snapshot!(json, @"");
}

/// Everything that a step can do, each with what follows from it.
#[test]
fn acknowledgements_silences_events_restarts_and_repetitions() {
    passing(
        r#"
[[rule]]
name = "tank"
topic = "tank/{tank}"
merge = true
repeat = "10m"
warning  = { when = "payload.level > 80" }
critical = { when = "payload.level > 95" }
to = ["ana", "ben"]
by = ["sms"]
text = "{{ tank }} {{ level }}"
text_clear = "{{ tank }} fine"

[[rule]]
name = "away"
on = "client.disconnected"
when = "payload.reason != 'client_disconnect'"
to = ["ana"]
by = ["sms"]
text = "{{ payload.client_id }} away: {{ payload.reason }} ({{ payload.identity }})"

[[rule]]
name = "dead"
topic = "dead/{unit}"
silent = "15m"
expect = [{ unit = "1" }]
on_downtime = "pause"
to = ["ben"]
text = "{{ unit }} is silent"

[[rule]]
name = "bytes"
topic = "bytes"
decode = "binary"
layout = { x = "u16be" }
to = ["ana"]
by = ["sms"]
text = "x = {{ payload.x }}, {{ client_id }}"

[[test]]
name = "levels, an acknowledgement, a silence"
steps = [
  { at = "0s", topic = "dead/1" },
  { at = "0s", topic = "tank/a", payload = { level = 85 }, expect = [
      { rule = "tank", key = "a", state = "firing", severity = "warning", to = "ana" },
      { rule = "tank", key = "a", state = "firing", severity = "warning", to = "ben" } ] },
  { at = "1m", topic = "tank/a", payload = { level = 97 }, expect = [
      { state = "level", severity = "critical", text = "a critical", times = 2 } ] },
  { at = "11m", expect = [{ state = "firing", text_contains = "critical", times = 2 }] },
  { at = "12m", ack = "tank", by = "ana", expect = [] },
  { at = "14m", topic = "dead/1", expect = [] },
  { at = "20m", silence = { rule = "tank", for = "1h", by = "ana", reason = "cleaning" } },
  { at = "21m", topic = "tank/b", payload = { level = 99 }, expect = [{ rule = "tank", key = "b", state = "firing", reason = "silenced", to = "ben" }] },
  { at = "22m", topic = "tank/b", payload = { level = 9 }, expect = [{ rule = "tank", key = "b", state = "cleared", reason = "over" }] },
]

[[test]]
name = "a client that goes away"
start = "2026-11-26T08:00:00"
zone = "Europe/Berlin"
steps = [
  { at = "0s", client = "pump-7", event = "disconnected", reason = "keep_alive_timeout", identity = "plant/pump-7", expect = [
      { rule = "away", text = "pump-7 away: keep_alive_timeout (plant/pump-7)" } ] },
  { at = "1s", client = "pump-8", event = "disconnected", reason = "client_disconnect", expect = [] },
]

[[test]]
name = "silence is not counted while the process is away, and not forgotten"
steps = [
  { at = "0s", topic = "dead/2", every = "1m", times = 6 },
  { at = "9m", restart_for = "1h", expect = [] },
  { at = "1h14m59s", expect = [] },
  { at = "1h15m", expect = [{ rule = "dead", key = "1", state = "firing", to = "ben", text = "1 is silent" }] },
  { at = "1h20m", expect = [{ rule = "dead", key = "2", state = "firing" }] },
]

[[test]]
name = "a kill loses what no checkpoint has written, and nothing else"
steps = [
  { at = "0s", topic = "tank/a", payload = { level = 85 } },
  { at = "5s", restart_for = "1m", kill = true },
  { at = "2m", topic = "tank/a", payload = { level = 86 }, expect = [{ rule = "tank", times = 2 }] },
]

[[test]]
name = "bytes in hexadecimal and base64"
steps = [
  { topic = "bytes", payload_hex = "01 00", expect = [{ text = "x = 256, test" }] },
  { topic = "bytes", payload_base64 = "AQE=", client_id = "p", expect = [{ text = "x = 257, p" }] },
  { topic = "bytes", payload = "x", every = "1s", times = 3, expect = [{ rule = "bytes", reason = "undecodable_payload" }] },
]
"#,
    );
}

#[test]
fn tests_that_make_no_sense_refuse_the_load() {
    let text = format!(
        r#"{WARM}
[[test]]
steps = [{{ at = "5", tpoic = "f/1", expect = [] }}]

[[test]]
name = "a"
start = "yesterday"
zone = "Europe/Berln"
steps = []

[[test]]
name = "a"
steps = [
  {{ at = "1m", topic = "f/#", payload = nan }},
  {{ at = "30s", topic = "f/1", ack = "warm" }},
  {{ at = "2m", ack = "wram", by = "ana", retain = true }},
  {{ at = "2m", client = "x", event = "gone" }},
  {{ at = "2m", silence = {{ rul = "warm", for = "1h", by = "ana", reason = "x" }} }},
  {{ at = "2m", restart_for = "10m" }},
  {{ at = "3m", topic = "f/1", times = 3, payload_hex = "0", expect = [
      {{ rule = "warm", to = "anna", state = "fireing", reason = "silence", times = 0 }},
      {{ state = "pending" }},
  ] }},
]

[[test]]
name = "b"
steps = [{{ at = "1m", topic = "f/1" }}]
"#
    );
    insta::assert_snapshot!(failing(&text, &["test"]), @"");
}

#[test]
fn check_tells_what_the_tests_reveal() {
    let text = r#"
[[rule]]
name = "warm"
topic = "f/{unit}"
critical = { when = "payload.tmp > -15" }
to = ["ana"]

[[rule]]
name = "typed"
topic = "f/{unit}"
let = { big = "payload.unit + 1" }
when = "payload.temp > 3"
text = "{{ payload.temp | round(1) }} {{ payload.nothing }}"
to = ["ana"]

[[rule]]
name = "meant"
topic = "f/{unit}"
when = "payload.other"
to = ["ana"]

[[test]]
name = "a hot one"
steps = [
  { topic = "f/1", payload = { temp = 4, unit = "C" } },
  { topic = "f/1", payload = { temp = 5, unit = "C" }, expect = [{ rule = "meant", reason = "expression_failed" }] },
]
"#;
    insta::assert_snapshot!(failing(text, &["check"]), @"");
}

#[test]
fn coverage_is_a_number_that_can_be_asked_for() {
    let rules = Rules::new(&format!(
        "{WARM}\n[[test]]\nname = 'a'\nsteps = [{{ topic = 'f/1', payload = {{ t = 1 }}, expect = [] }}]\n"
    ));
    let (ok, said) = rules.said(&["test", "--coverage-min", "17"]);
    assert!(!ok);
    insta::assert_snapshot!(said, @"");
    assert!(rules.said(&["test", "--coverage-min", "16"]).0);
    let (ok, said) = rules.said(&["test", "--filter", "b"]);
    assert!(!ok);
    insta::assert_snapshot!(said, @"");
}

/// What everybody starts from is tested throughout.
#[test]
fn the_rules_of_the_repository_pass_and_are_covered() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
    let (ok, text) = said(&dir, &["test", "--coverage-min", "100"]);
    assert!(ok, "{text}");
}
