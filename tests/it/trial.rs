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
    let line = [&["watchbell"], arguments, &["--rules-dir", place]].concat();
    let line = line.into_iter().map(OsString::from);
    let code = watchbell::cli::execute(line, Vec::new(), &mut out, &mut err);
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
    insta::assert_snapshot!(passing(&text), @r#"
    ok      five warm minutes reach Ana once (rules/a.toml)

    coverage: 2 of 6 clauses
      warm: never cleared
      warm: `when` never false
      warm: `clear` never true
      warm: `clear` never false

    1 passed, 0 failed
    "#);
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
    insta::assert_snapshot!(said, @r#"
    FAILED  it says "cold" <at once> & to Ben (rules/a.toml:20)
      rules/a.toml:24: step 2, at 5m
        - { rule = "warm", key = "1", to = "ben", text_contains = "-10" }
        - { rule = "warm", key = "1", times = 3 }  # 2 more
        + { rule = "warm", reason = "expression_failed" }  # at 5m: `when`: the payload has no field `t`; guard it with has(...) if it may be absent; the test payload has temp
          { rule = "warm", key = "1", state = "firing", severity = "warning", to = "ana", by = "push", text = "1: -10 °C" }  # at 5m
      rules/a.toml:28: step 3, at 6m
        ! no alert of `warm` fires that could be acknowledged
      rules/a.toml:29: step 4, at 7m
        + { rule = "warm", key = "1", state = "cleared", severity = "warning", to = "ana", by = "push", text = "1 is cold" }  # at 7m
    ok      this one passes (rules/a.toml)

    coverage: 5 of 6 clauses
      warm: `clear` never false

    1 passed, 1 failed
    error: 1 test failed
    "#);
    let junit = rules.path("junit.xml");
    let (ok, _) = rules.said(&["test", "--junit", junit.to_str().unwrap()]);
    assert!(!ok);
    let junit = std::fs::read_to_string(junit).unwrap();
    let place = rules.path("").display().to_string();
    insta::assert_snapshot!(junit.replace(&place, "rules/"), @r#"
    <?xml version="1.0" encoding="UTF-8"?>
    <testsuites name="watchbell" tests="2" failures="1" errors="0" time="0">
      <testsuite name="rules/a.toml" tests="2" failures="1" errors="0" skipped="0" time="0">
        <testcase name="it says &quot;cold&quot; &lt;at once&gt; &amp; to Ben" classname="rules/a.toml" file="rules/a.toml" line="20" time="0">
          <failure type="expectation" message="rules/a.toml:24: step 2, at 5m">  rules/a.toml:24: step 2, at 5m
        - { rule = &quot;warm&quot;, key = &quot;1&quot;, to = &quot;ben&quot;, text_contains = &quot;-10&quot; }
        - { rule = &quot;warm&quot;, key = &quot;1&quot;, times = 3 }  # 2 more
        + { rule = &quot;warm&quot;, reason = &quot;expression_failed&quot; }  # at 5m: `when`: the payload has no field `t`; guard it with has(...) if it may be absent; the test payload has temp
          { rule = &quot;warm&quot;, key = &quot;1&quot;, state = &quot;firing&quot;, severity = &quot;warning&quot;, to = &quot;ana&quot;, by = &quot;push&quot;, text = &quot;1: -10 °C&quot; }  # at 5m
      rules/a.toml:28: step 3, at 6m
        ! no alert of `warm` fires that could be acknowledged
      rules/a.toml:29: step 4, at 7m
        + { rule = &quot;warm&quot;, key = &quot;1&quot;, state = &quot;cleared&quot;, severity = &quot;warning&quot;, to = &quot;ana&quot;, by = &quot;push&quot;, text = &quot;1 is cold&quot; }  # at 7m</failure>
        </testcase>
        <testcase name="this one passes" classname="rules/a.toml" file="rules/a.toml" line="32" time="0"/>
      </testsuite>
    </testsuites>
    "#);
    let (ok, json) = rules.said(&["test", "--json", "--filter", "cold"]);
    assert!(!ok);
    insta::assert_snapshot!(json, @r#"
    {
      "coverage": null,
      "failed": 1,
      "passed": 0,
      "tests": [
        {
          "failed_steps": [
            {
              "at": "5m",
              "line": 24,
              "matched": [
                {
                  "at": "5m",
                  "key": "1",
                  "note": null,
                  "reason": null,
                  "rule": "warm",
                  "what": "{ rule = \"warm\", key = \"1\", state = \"firing\", severity = \"warning\", to = \"ana\", by = \"push\", text = \"1: -10 °C\" }"
                }
              ],
              "missing": [
                {
                  "count": 1,
                  "what": "{ rule = \"warm\", key = \"1\", to = \"ben\", text_contains = \"-10\" }"
                },
                {
                  "count": 2,
                  "what": "{ rule = \"warm\", key = \"1\", times = 3 }"
                }
              ],
              "step": 2,
              "trouble": null,
              "unexpected": [
                {
                  "at": "5m",
                  "key": null,
                  "note": "`when`: the payload has no field `t`; guard it with has(...) if it may be absent; the test payload has temp",
                  "reason": "expression_failed",
                  "rule": "warm",
                  "what": "{ rule = \"warm\", reason = \"expression_failed\" }"
                }
              ]
            },
            {
              "at": "6m",
              "line": 28,
              "matched": [],
              "missing": [],
              "step": 3,
              "trouble": "no alert of `warm` fires that could be acknowledged",
              "unexpected": []
            },
            {
              "at": "7m",
              "line": 29,
              "matched": [],
              "missing": [],
              "step": 4,
              "trouble": null,
              "unexpected": [
                {
                  "at": "7m",
                  "key": "1",
                  "note": null,
                  "reason": null,
                  "rule": "warm",
                  "what": "{ rule = \"warm\", key = \"1\", state = \"cleared\", severity = \"warning\", to = \"ana\", by = \"push\", text = \"1 is cold\" }"
                }
              ]
            }
          ],
          "file": "rules/a.toml",
          "line": 20,
          "name": "it says \"cold\" <at once> & to Ben",
          "passed": false
        }
      ]
    }
    error: 1 test failed
    "#);
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
layout = { fields = [{ name = "x", at = 0, type = "u16be" }] }
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
    insta::assert_snapshot!(failing(&text, &["test"]), @r#"
    error: rules/a.toml:20: test 1: `name` is missing; say in a few words what it shows
    rules/a.toml:21: test 1: `steps[0].at`: `5` has no unit; write 5s for seconds (units are ms, s, m, h, d)
    rules/a.toml:21: test 1: `steps[0].tpoic`: unknown key; did you mean `topic`?
    rules/a.toml:23: test "a": `steps` is missing; write steps = [{ at = "0s", topic = "a/b", payload = 1, expect = [] }]
    rules/a.toml:25: test "a": `start`: not a point in time; write it as "2026-11-26T08:00:00Z", or without an offset in `zone`
    rules/a.toml:26: test "a": `zone`: unknown time zone; write an IANA name, as Europe/Berlin
    rules/a.toml:30: test "a": `name`: the name is taken by the test at rules/a.toml:23; choose another
    rules/a.toml:32: test "a": `steps[0].payload`: JSON has no nan and no inf; write the payload as text
    rules/a.toml:32: test "a": `steps[0].topic`: it holds a wildcard (+ or #), which only filters may
    rules/a.toml:33: test "a": `steps[1].ack`: it has `topic` already; make two steps of it
    rules/a.toml:34: test "a": `steps[2].retain`: it does not go with `ack`
    rules/a.toml:34: test "a": `steps[2].ack`: there is no rule `wram`; did you mean `warm`?
    rules/a.toml:35: test "a": `steps[3].event`: `gone`: unknown word; known here are connected, disconnected, refused, taken_over, will
    rules/a.toml:36: test "a": `steps[4].silence.rul`: unknown key; did you mean `rule`?
    rules/a.toml:38: test "a": `steps[6].at`: the step before ends at 12m only; steps stand in the order of time
    rules/a.toml:38: test "a": `steps[6].payload_hex`: expected pairs of hexadecimal digits: "01 ff 3c"
    rules/a.toml:38: test "a": `steps[6].times`: `every` and `times` belong together: every = "10s", times = 30
    rules/a.toml:39: test "a": `steps[6].expect[0].to`: there is no contact `anna`; did you mean `ana`?
    rules/a.toml:39: test "a": `steps[6].expect[0].state`: `fireing`: unknown word; did you mean `firing`?
    rules/a.toml:39: test "a": `steps[6].expect[0].times`: expected a whole number of at least 1; leave the line out
    rules/a.toml:39: test "a": `steps[6].expect[0].reason`: unknown reason `silence`; did you mean `silenced`?
    rules/a.toml:40: test "a": `steps[6].expect[1].state`: what is pending has told nobody anything yet; give it `rule` and, if there are several, `key`
    rules/a.toml:46: test "b": `steps`: no step says what is to happen; give one `expect`, which may be empty
    "#);
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
    insta::assert_snapshot!(failing(text, &["check"]), @r#"
    rules/a.toml:12: rule "warm": `when`: the payload has no field `tmp`; guard it with has(...) if it may be absent; the test payload has temp, unit (test "a hot one", step 1, at 0s; if that is meant, expect { rule = "warm", reason = "expression_failed" })
    rules/a.toml:18: rule "typed": `let.big`: `+` does not take text and a number; num(x) is the number that a text is (test "a hot one", step 1, at 0s; if that is meant, expect { rule = "typed", reason = "expression_failed" })
    rules/a.toml:20: rule "typed": `text`: a value is missing: payload.nothing (test "a hot one", step 1, at 0s; if that is meant, expect { rule = "typed", reason = "template_failed" })
    error: 3 problems
    "#);
}

#[test]
fn coverage_is_a_number_that_can_be_asked_for() {
    let rules = Rules::new(&format!(
        "{WARM}\n[[test]]\nname = 'a'\nsteps = [{{ topic = 'f/1', payload = {{ t = 1 }}, expect = [] }}]\n"
    ));
    let (ok, said) = rules.said(&["test", "--coverage-min", "17"]);
    assert!(!ok);
    insta::assert_snapshot!(said, @r#"
    ok      a (rules/a.toml)

    coverage: 1 of 6 clauses
      warm: never fired
      warm: never cleared
      warm: `when` never false
      warm: `clear` never true
      warm: `clear` never false

    1 passed, 0 failed
    error: the tests exercise 16 % of the rules, less than 17 %
    "#);
    assert!(rules.said(&["test", "--coverage-min", "16"]).0);
    let (ok, said) = rules.said(&["test", "--filter", "b"]);
    assert!(!ok);
    insta::assert_snapshot!(said, @r#"
    error: no test has "b" in its name; `watchbell test` alone runs all
    "#);
}

/// What everybody starts from is tested throughout.
#[test]
fn the_rules_of_the_repository_pass_and_are_covered() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("rules");
    let (ok, text) = said(&dir, &["test", "--coverage-min", "100"]);
    assert!(ok, "{text}");
}

/// In one file a set of rules grows; in another it must not become wrong by that.
#[test]
fn a_test_is_about_the_rules_of_its_file_or_those_that_it_names() {
    let test = |rules: &str, expect: &str| {
        format!(
            r#"{WARM}
[[rule]]
name = "beside"
topic = "f/+"
to = ["ben"]

[[test]]
name = "warm"
{rules}
steps = [{{ topic = "f/1", payload = {{ t = -20.0 }}, expect = [{expect}] }}]
"#
        )
    };
    let said = |rules: &str, expect: &str| {
        let place = Rules::new(&test(rules, expect));
        let other = "[[rule]]\nname = 'elsewhere'\ntopic = 'f/+'\nto = ['ben']\n";
        std::fs::write(place.path("b.toml"), other).unwrap();
        place.said(&["test"])
    };
    let (beside, elsewhere) = (r#"{ rule = "beside" }"#, r#"{ rule = "elsewhere" }"#);
    for (rules, expect, passes) in [
        ("", "", false),
        ("", beside, true),
        ("", &format!("{beside}, {elsewhere}"), true),
        (r#"rules = ["warm"]"#, "", true),
        (r#"rules = ["w*", "elsewhere"]"#, "", false),
        (r#"rules = ["w*", "elsewhere"]"#, elsewhere, true),
    ] {
        let (ok, text) = said(rules, expect);
        assert_eq!(ok, passes, "{rules} {expect}: {text}");
    }
    let (_, text) = said(r#"rules = ["wram"]"#, "");
    assert!(
        text.contains(r#"test "warm": `rules[0]`: there is no rule `wram`; did you mean `warm`?"#),
        "{text}"
    );
}

/// A device heard after the last row that says that the process is alive, up to ten seconds before it
/// was killed, was reported missing at the next start.
#[test]
fn silence_is_not_counted_while_the_process_is_away_after_a_kill() {
    for word in ["pause", "reset"] {
        passing(&format!(
            r#"
[[rule]]
name = "p"
topic = "x/{{h}}"
silent = "5m"
on_downtime = "{word}"
to = ["ana"]
text = "p"
text_clear = "back"

[[test]]
name = "back within the five minutes"
steps = [
  {{ topic = "x/a", payload = 1, every = "1s", times = 36 }},
  {{ at = "36s", restart_for = "1h", kill = true, expect = [] }},
  {{ at = "1h50s", topic = "x/a", payload = 1, expect = [] }},
]

[[test]]
name = "truly silent"
steps = [
  {{ topic = "x/a", payload = 1, every = "1s", times = 36 }},
  {{ at = "36s", restart_for = "1h", kill = true, expect = [] }},
  {{ at = "1h5m35s", expect = [] }},
  {{ at = "1h5m36s", expect = [{{ rule = "p", key = "a", state = "firing" }}] }},
]
"#
        ));
    }
}
