//! What people read when a text cannot be rendered, when an alert is told later or again, and what
//! an acknowledgement ends: rule files with their tests, as an operator would write them.

use std::ffi::OsString;
use std::process::ExitCode;

const CONTACTS: &str = r#"
[[contact]]
name = "ana"
sms = "+4915550100001"
[[contact]]
name = "ben"
push = "topic:ben"
sms = "+4915550100002"
[[contact]]
name = "dora"
sms = "+4915550100004"
zone = "Europe/Berlin"
quiet = { from = "22:00", to = "06:00", except = ["critical"] }
"#;

/// The file's tests must all pass.
fn passes(text: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), format!("{CONTACTS}{text}")).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let line = ["watchbell", "test", "--rules-dir", dir.path().to_str().unwrap()];
    let line = line.into_iter().map(OsString::from);
    let code = watchbell::cli::execute(line, Vec::new(), &mut out, &mut err);
    let said = String::from_utf8([out, err].concat()).unwrap();
    assert!(code == ExitCode::SUCCESS, "{said}");
}

/// The person got "the rule's text could not be rendered", and no reading.
#[test]
fn a_text_that_cannot_be_rendered_tells_the_reading_and_the_record_what_was_missing() {
    passes(
        r#"
[[rule]]
name = "cycles"
topic = "t/{x}"
decode = "json"
to = ["ana"]
text = "{{ payload.id }} runs {{ payload.q }} cycles at heap {{ payload.heap }}"
[[test]]
name = "a missing key"
steps = [ { topic = "t/1", payload = '{"id": "node7", "q": 3}', expect = [
  { rule = "cycles", text = 'node7 runs 3 cycles at heap ? ({"id":"node7","q":3})' },
  { rule = "cycles", reason = "template_failed" } ] } ]
[[rule]]
name = "quoted"
topic = "q/{x}"
decode = "json"
when = "num(payload.b) > 20"
to = ["ana"]
text = "{{ x }} {{ '%.1f' | format(payload.b) }}"
text_clear = "{{ payload.a }}"
[[test]]
name = "a number in quotes with a format, and what is over"
steps = [
  { topic = "q/1", payload = '{"b": "21.55"}', expect = [ { rule = "quoted", text = "1 21.6" } ] },
  { topic = "q/1", payload = '{"b": "19.5"}', expect = [
    { rule = "quoted", state = "cleared", text = 'quoted 1 is over: q/1: {"b":"19.5"}' },
    { rule = "quoted", reason = "template_failed" } ] } ]
"#,
    );
}

/// A battery report without the field came in between, and the text was rendered with that.
#[test]
fn a_for_that_runs_out_is_told_with_the_last_reading_that_gave_a_result() {
    passes(
        r#"
[[rule]]
name = "r"
topic = "x/{h}"
when = "payload.t > 10"
for = "5m"
severity = "critical"
to = ["ana"]
text = "{{ h }}: {{ payload.t }} C"
[[test]]
name = "t"
steps = [
 { topic = "x/a", payload = { t = 11 } },
 { at="1m", topic = "x/a", payload = { bat = 3.1 } },
 { at="5m", expect = [{ rule="r", reason="expression_failed" }, { rule="r", to="ana", text="a: 11 C" }] },
]
"#,
    );
}

/// It said the first reading, and that it fires since 0s.
#[test]
fn a_repetition_tells_the_newest_reading_and_how_long_it_has_lasted() {
    passes(
        r#"
[[rule]]
name = "fridge"
topic = "fridge/{f}"
decode = "json"
when = "payload.t > 8.0"
repeat = "10m"
to = ["ana"]
text = "{{ f }} {{ payload.t }} C since {{ duration }}"
title = "{{ payload.t }}"
[[test]]
name = "as it is now"
steps = [
 { at = "0s", topic = "fridge/k", payload = { t = 9.5 }, expect = [ { rule = "fridge", text = "k 9.5 C since 0s" } ] },
 { at = "9m", topic = "fridge/k", payload = { t = 14.5 }, expect = [] },
 { at = "10m", expect = [ { rule = "fridge", text = "k 14.5 C since 10m" } ] },
 { at = "12m", topic = "fridge/k", payload = { bat = 3 }, expect = [ { rule = "fridge", reason = "expression_failed" } ] },
 { at = "20m", expect = [ { rule = "fridge", text = "k 14.5 C since 20m" } ] },
]
[[test]]
name = "after a restart too"
steps = [
 { at = "0s", topic = "fridge/k", payload = { t = 9.5 }, expect = [ { rule = "fridge" } ] },
 { at = "9m", topic = "fridge/k", payload = { t = 14.5 } },
 { at = "9m30s", restart_for = "10s" },
 { at = "10m", expect = [ { rule = "fridge", text = "k 14.5 C since 10m" } ] },
 { at = "11m", topic = "fridge/k", payload = { t = 15.5 } },
 { at = "20m", expect = [ { rule = "fridge", text = "k 15.5 C since 20m" } ] },
]
"#,
    );
}

#[test]
fn what_a_hold_kept_is_told_with_the_newest_reading_and_since_when() {
    passes(
        r#"
[[rule]]
name = "night"
topic = "n/{f}"
when = "payload.t > 8.0"
to = ["dora"]
text = "{{ f }} {{ payload.t }} C since {{ duration }}"
[[test]]
name = "quiet hours"
start = "2026-11-26T21:30:00Z"
steps = [
 { at = "0s", topic = "n/k", payload = { t = 9.5 }, expect = [ { rule = "night", reason = "quiet_hours" } ] },
 { at = "1h", topic = "n/k", payload = { t = 14.5 } },
 { at = "2h", restart_for = "10s" },
 { at = "3h", topic = "n/k", payload = { t = 16.5 } },
 { at = "7h30m", expect = [ { rule = "night", text = "k 16.5 C since 7h30m (since 22:30)" } ] },
]
[[rule]]
name = "day"
topic = "d/{f}"
when = "payload.t > 8.0"
to = ["ana"]
text = "{{ f }} {{ payload.t }} C since {{ duration }}"
[[test]]
name = "a silence, and no further reading"
steps = [
 { at = "0s", silence = { rule = "day", for = "1h", by = "ana", reason = "w" } },
 { at = "10m", topic = "d/k", payload = { t = 9.5 }, expect = [ { rule = "day", reason = "silenced" } ] },
 { at = "1h", expect = [ { rule = "day", text_contains = "k 9.5 C since 50m (since " } ] },
]
[[rule]]
name = "cool"
topic = "c/{f}"
when = "payload.t > 8.0"
cooldown = "30m"
to = ["ana"]
text = "{{ f }} {{ payload.t }} C since {{ duration }}"
[[test]]
name = "a cooldown"
steps = [
 { at = "0s", topic = "c/k", payload = { t = 9 }, expect = [ { rule = "cool", text = "k 9 C since 0s" } ] },
 { at = "1m", topic = "c/k", payload = { t = 1 }, expect = [ { rule = "cool", state = "cleared" } ] },
 { at = "2m", topic = "c/k", payload = { t = 10 }, expect = [ { rule = "cool", reason = "cooldown" } ] },
 { at = "3m", topic = "c/k", payload = { t = 11 } },
 { at = "30m", expect = [ { rule = "cool", text_contains = "k 11 C since 28m" } ] },
]
[[rule]]
name = "grouped"
topic = "g/{f}"
when = "payload.t > 8.0"
group_by = []
group_wait = "1m"
to = ["ana"]
text = "{{ f }} {{ payload.t }} C since {{ duration }}"
[[test]]
name = "a group"
steps = [
 { at = "0s", topic = "g/a", payload = { t = 9 }, expect = [ { rule = "grouped", reason = "grouped" } ] },
 { at = "10s", topic = "g/b", payload = { t = 9 }, expect = [ { rule = "grouped", reason = "grouped" } ] },
 { at = "30s", topic = "g/a", payload = { t = 12 } },
 { at = "1m", expect = [ { rule = "grouped", text = """
2 alerts (worst warning):
a 12 C since 1m
b 9 C since 50s""" } ] },
]
[[rule]]
name = "few"
topic = "f/{f}"
when = "payload.t > 8.0"
max = "1/10m"
to = ["ana"]
text = "{{ f }} {{ payload.t }} C since {{ duration }}"
[[test]]
name = "a quota"
steps = [
 { at = "0s", topic = "f/a", payload = { t = 9 }, expect = [ { rule = "few", to = "ana" } ] },
 { at = "1m", topic = "f/b", payload = { t = 9 }, expect = [ { rule = "few", reason = "quota_reached" } ] },
 { at = "5m", topic = "f/b", payload = { t = 13 } },
 { at = "10m", expect = [ { rule = "few", text_contains = "b 13 C since 9m" } ] },
]
"#,
    );
}

/// At the end of the hold everybody was told of what somebody had long taken care of.
#[test]
fn what_somebody_has_acknowledged_is_not_raised_at_the_end_of_a_hold() {
    passes(
        r#"
[[rule]]
name = "r"
topic = "x/{h}"
when = "payload > 5"
to = ["ana"]
text = "{{ h }}"
[[test]]
name = "a silence"
steps = [ { silence = { rule="r", label={h="a*"}, for="1h", by="ana", reason="w" } },
 { at="1m", topic = "x/a1", payload = 6, expect=[{key="a1",reason="silenced"}] },
 { at="1m", topic = "x/a2", payload = 6, expect=[{key="a2",reason="silenced"}] },
 { at="1m", topic = "x/b", payload = 6, expect=[{key="b",to="ana"}] },
 { at="2m", ack="r", key="a2", by="ana" },
 { at="59m", restart_for="10s", expect=[] },
 { at="1h", expect=[{key="a1",to="ana"}] } ]
[[test]]
name = "the record says so"
steps = [ { silence = { rule="r", for="1h", by="ana", reason="w" } },
 { at="1m", topic = "x/a", payload = 6, expect=[{key="a",reason="silenced"}] },
 { at="2m", ack="r", by="ana", expect=[{key="a",to="ana",reason="superseded"}] },
 { at="3m", topic = "x/a", payload = 4, expect=[{key="a",state="cleared"}] },
 { at="4m", topic = "x/a", payload = 6, expect=[{key="a",reason="silenced"}] },
 { at="1h", expect=[{key="a",to="ana"}] } ]
"#,
    );
}
