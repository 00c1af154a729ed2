//! Twenty rule files that are wrong in every way: what an operator reads is the specification, and
//! what runs goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use watchbell::intake::ruleset::{Limits, RuleSet};

use crate::fake::Twilio;
use crate::harness::{ALARM, Place, found, twilio};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cases/wrong")
}

fn names() -> BTreeSet<String> {
    let files = std::fs::read_dir(directory()).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every problem of the files in `directory`, one a line.
fn told(directory: &Path) -> String {
    let problems = RuleSet::load_dir(directory, &Limits::default()).unwrap_err();
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n").replace(&format!("{}/", directory.display()), "")
}

#[test]
fn every_problem_of_twenty_files_is_told_at_once() {
    let told = told(&directory());
    insta::assert_snapshot!(told, @r#"
    01-keys.toml:1: rules: unknown key; did you mean `rule`?
    01-keys.toml:7: rule "keys": `wehn`: unknown key; did you mean `when`?
    01-keys.toml:8: rule "keys": `severty`: unknown key; did you mean `severity`?
    01-keys.toml:9: rule "keys": `text_cleared`: unknown key; did you mean `text_clear`?
    02-missing.toml:1: rule 1: `name` is missing; messages and metrics are told by it
    02-missing.toml:1: rule 1: `topic` is missing; write an MQTT filter, as in topic = "site/{site}/door"
    02-missing.toml:1: rule 1: `to` is missing; name who hears of it, as in to = ["ana"], or write to = [] to keep it on record only
    03-names.toml:2: rule "Oven too hot": `name`: a name has 1 to 64 of a-z, 0-9, - _ . and nothing else
    04-twice.toml:2: rule "oven": `name`: the name is taken by the rule at 03-names.toml:7; choose another
    05-topics.toml:3: rule "rest-in-the-middle": `topic`: `#` must be the last level, alone in it
    05-topics.toml:8: rule "half-a-level": `topic`: a capture is written {name} and fills its level; names have letters, digits and _
    05-topics.toml:13: rule "a-word-that-is-taken": `topic`: a capture cannot be called `payload`, which means something else; choose another name
    05-topics.toml:13: rule "a-word-that-is-taken": `topic`: a capture cannot be called `for`, which means something else; choose another name
    05-topics.toml:18: rule "captured-twice": `topic`: a capture is named twice
    06-expressions.toml:4: rule "assignment": `when`: column 14: token recognition error at: '= '; equality is written ==
    06-expressions.toml:5: rule "assignment": `clear`: column 22: mismatched input 'and'; and is written &&
    06-expressions.toml:11: rule "unknown": `when`: unknown name `temp`; a field of the payload is written payload.temp, and known are payload, previous, topic, client_id, retain, replayed, at, now, oven
    06-expressions.toml:11: rule "unknown": `when`: unknown name `oben`; did you mean `oven`?
    06-expressions.toml:11: rule "unknown": `when`: unknown function `celcius`; did you mean `celsius`?
    06-expressions.toml:12: rule "unknown": `key`: unknown name `ofen`; did you mean `oven`?
    06-expressions.toml:18: rule "unfinished": `when`: column 15: mismatched input the end: something is missing there; complete it
    06-expressions.toml:25: rule "kinds": `skip`: it gives a number, not true or false; compare it, as in x > 5
    06-expressions.toml:26: rule "kinds": `when`: `==` compares `unit`, which is text, with 1, which is a number; num(x) is the number that a text is, and '1' in quotes is text
    06-expressions.toml:26: rule "kinds": `when`: `&&` takes true or false, and `temp` is a number; compare it, as in x > 5
    06-expressions.toml:27: rule "kinds": `clear`: `>` compares what `-` gives, which is a length of time, with 300, which is a number; duration('5m') is a length of time
    06-expressions.toml:27: rule "kinds": `clear`: `>` compares `oven`, which is text, with 5, which is a number; num(x) is the number that a text is, and '1' in quotes is text
    07-texts.toml:5: rule "texts": `title`: unknown name `oben`; did you mean `oven`?
    07-texts.toml:6: rule "texts": `text`: unknown filter `rond`; did you mean `round`?
    07-texts.toml:13: rule "open-braces": `text`: syntax error: unexpected end of input, expected end of variable block
    08-types.toml:4: rule "types": `when`: invalid type: integer `200`, expected text in quotes
    08-types.toml:5: rule "types": `for`: invalid type: integer `30`, expected a length of time in quotes, such as "500ms", "10s", "1h30m"
    08-types.toml:6: rule "types": `clear_for`: `30` has no unit; write 30s for seconds (units are ms, s, m, h, d)
    08-types.toml:7: rule "types": `repeat`: `1 hour` is not a length of time; write a number and a unit, as in 500ms, 10s, 5m, 1h30m, 7d
    08-types.toml:8: rule "types": `merge`: invalid type: string "yes", expected true or false without quotes
    08-types.toml:9: rule "types": `key`: invalid type: string "oven", expected a list, as in ["..."]
    08-types.toml:10: rule "types": `to`: invalid type: string "ana", expected a list, as in ["..."]
    09-to.toml:4: rule "to": `to`: there is no contact `anna`; did you mean `ana`?
    09-to.toml:4: rule "to": `to`: contact `ben` stands there twice
    09-to.toml:4: rule "to": `to`: there is no contact `zoe`; add a [[contact]] of that name
    09-to.toml:5: rule "to": `by`: unknown word `smss`; did you mean `sms`?
    09-to.toml:5: rule "to": `by`: unknown word `fax`; known are sms, whatsapp, push, webhook
    09-to.toml:5: rule "to": `by`: channel `sms` stands there twice
    10-contacts.toml:3: contact "ana": `sms`: not a phone number in E.164 form; write + and country code, 7 to 15 digits, no spaces: +4915112345678
    10-contacts.toml:5: contact "ana": `phone`: unknown key; did you mean `zone`?
    10-contacts.toml:10: contact "ben": `quiet.days`: unknown word `monday`; known are mon, tue, wed, thu, fri, sat, sun
    10-contacts.toml:10: contact "ben": `quiet.from`: not a time of day; write hours and minutes, as "22:00"
    10-contacts.toml:10: contact "ben": `zone` is missing; say where it is that time, as zone = "Europe/Berlin"
    10-contacts.toml:11: contact "ben": `max`: write how many in what time, as "20/1h"
    10-contacts.toml:13: contact "nobody": it has no address; give it sms, whatsapp, push or webhook
    10-contacts.toml:16: contact "ben": the name is taken by the contact at 10-contacts.toml:7; choose another
    10-contacts.toml:19: contact "ben": `zone`: unknown time zone `Europe/Kiel`; write one of the IANA names, as "Europe/Berlin"
    11-levels.toml:4: rule "levels": `when`: a rule with levels has it in each of them, as in critical = { when = "..." }
    11-levels.toml:5: rule "levels": `severity`: a rule with levels has it in each of them, as in critical = { when = "..." }
    11-levels.toml:6: rule "levels": `warning.clears`: unknown key; did you mean `clear`?
    11-levels.toml:7: rule "levels": `critical`: a level needs its `when`
    11-levels.toml:13: rule "hidden": `warning.clear`: it looks above a limit as `when` does, and would not clear on the other side; write payload < 150
    11-levels.toml:14: rule "hidden": `critical.when`: it holds wherever `warning` does, which nobody would ever see; swap their limits
    12-silent.toml:4: rule "silent": `when`: a rule with `silent` fires when nothing is heard and clears when something is; write a rule of its own for what is heard, or `skip` for what is no sign of life
    12-silent.toml:5: rule "silent": `silent`: no time at all has passed at once; write at least 1s
    12-silent.toml:6: rule "silent": `for`: `silent` is how long it must hold
    12-silent.toml:7: rule "silent": `expect`: `oven` is missing, which tells instances apart
    12-silent.toml:7: rule "silent": `expect`: the topic has no capture `ofen`
    12-silent.toml:7: rule "silent": `expect`: `oven` is missing, which tells instances apart
    12-silent.toml:14: rule "expects-nobody": `expect`: only a rule with `silent` expects anybody
    13-windows.toml:8: rule "windows": `window.mean.average`: unknown key; known here are count, sum, avg, min, max, first, last, delta, rate, stddev, percentile, p, over, of_last
    13-windows.toml:9: rule "windows": `window.both`: name one function and its expression, as in { avg = "payload.t", over = "5m" }; known are count, sum, avg, min, max, first, last, delta, rate, stddev, percentile
    13-windows.toml:10: rule "windows": `window.reach`: say how far it looks back: over = "5m", or last = 100 publishes (of_last where the function is `last`)
    13-windows.toml:11: rule "windows": `window.many`: `last` is 1 to 1000 publishes; raise rules.window_points_max
    13-windows.toml:12: rule "windows": `window.p`: a percentile needs p from 0 to 100, as in { percentile = "payload.ms", p = 95, over = "5m" }
    13-windows.toml:13: rule "windows": `window.oven`: `oven` means something else already; choose another name
    14-let.toml:4: rule "let": `let.warm`: `hot` is not known here yet; write it above this
    14-let.toml:4: rule "let": `let.Cold`: a name has 1 to 64 of a-z, A-Z, 0-9 and _, and begins with a small letter
    14-let.toml:4: rule "let": `let.payload`: `payload` means something else already; choose another name
    14-let.toml:4: rule "let": `let.number`: write an expression in quotes
    15-payloads.toml:4: rule "decode": `decode`: unknown word `jsn`; did you mean `json`?
    15-payloads.toml:5: rule "decode": `compression`: unknown word `gz`; did you mean `gzip`?
    15-payloads.toml:11: rule "no-layout": `decode`: `binary` needs a `layout`, as in layout = { fields = [ { name = "temp_c", at = 0, type = "i16be" } ] }
    15-payloads.toml:18: rule "layout": `layout`: it belongs to decode = "binary"
    15-payloads.toml:30: rule "layouts": `layout.fields[0].type`: say which byte comes first: `i16be` (the high one) or `i16le`
    15-payloads.toml:31: rule "layouts": `layout.fields[1].name`: another field is called `temp` too
    15-payloads.toml:32: rule "layouts": `layout.fields[2].bits`: write the first bit, counted from the lowest, and how many, as in bits = [3, 1]; there are 8
    15-payloads.toml:33: rule "layouts": `layout.fields`: `at` is missing; the first byte is at = 0
    16-tests.toml:1: test 1: `name` is missing; say in a few words what it shows
    16-tests.toml:2: test 1: `steps[0].at`: `5` has no unit; write 5s for seconds (units are ms, s, m, h, d)
    16-tests.toml:2: test 1: `steps[0].tpoic`: unknown key; did you mean `topic`?
    16-tests.toml:6: test "names": `rules[0]`: there is no rule `ofen*`; did you mean `oven`?
    16-tests.toml:7: test "names": `start`: not a point in time; write it as "2026-11-26T08:00:00Z", or without an offset in `zone`
    16-tests.toml:9: test "names": `steps[0].payload_hex`: expected pairs of hexadecimal digits: "01 ff 3c"
    16-tests.toml:9: test "names": `steps[0].topic`: it holds a wildcard (+ or #), which only filters may
    16-tests.toml:10: test "names": `steps[1].times`: `every` and `times` belong together: every = "10s", times = 30
    16-tests.toml:11: test "names": `steps[2].ack`: there is no rule `oben`; did you mean `oven`?
    16-tests.toml:11: test "names": `steps[2]`: `by` is missing beside `ack`; say who takes care of it
    16-tests.toml:11: test "names": `steps[2].expect[0].to`: there is no contact `anna`; did you mean `ana`?
    16-tests.toml:11: test "names": `steps[2].expect[0].state`: `fireing`: unknown word; did you mean `firing`?
    16-tests.toml:11: test "names": `steps[2].expect[0].reason`: unknown reason `quiet`; docs/operating.md lists them
    16-tests.toml:16: test "nothing": `steps`: no step says what is to happen; give one `expect`, which may be empty
    17-times.toml:5: rule "times": `zone`: unknown time zone `Europe/Kiel`; write one of the IANA list, as in "Europe/Berlin"
    17-times.toml:6: rule "times": `max_age`: it needs `time`, which says when a reading was taken
    17-times.toml:7: rule "times": `replayed`: unknown word `yes`; known are state, raise, ignore
    17-times.toml:8: rule "times": `on_downtime`: unknown word `stop`; known are count, pause, reset
    17-times.toml:9: rule "times": `mode`: unknown word `test`; known are live, shadow
    18-telling.toml:4: rule "telling": `repeat`: nothing holds: a rule without `when` raises an alert at each publish; give it a `when`
    18-telling.toml:5: rule "telling": `max`: write a number and a time, as in "10/1h"
    18-telling.toml:6: rule "telling": `group_wait`: it belongs to `group_by`; for one group of all write group_by = []
    18-telling.toml:7: rule "telling": `flapping`: nothing holds: a rule without `when` raises an alert at each publish; give it a `when`
    18-telling.toml:7: rule "telling": `flapping`: write flapping = { low = 0.25, high = 0.5, last = 21 }: shares from 0 to 1, low below high, of the last 3 to 64 evaluations
    18-telling.toml:8: rule "telling": `text_clear`: there is nothing to clear: a rule without `when` raises an alert at each publish; give it a `when`
    18-telling.toml:9: rule "telling": `expires_in`: a message that may not wait is never sent; write at least 1s
    18-telling.toml:16: rule "groups": `group_by`: `hall` is no capture of the topic; alerts are grouped by captures, as {name} in the topic
    18-telling.toml:17: rule "groups": `flapping`: write flapping = { low = 0.25, high = 0.5, last = 21 }: shares from 0 to 1, low below high, of the last 3 to 64 evaluations
    19-silences.toml:1: silence "for ever": `by` is missing; say who wrote it
    19-silences.toml:1: silence "for ever": `reason` is missing; say why, for those who wonder
    19-silences.toml:1: silence "for ever": it has no end; give it `every`, `dates`, or `from` and `until`
    19-silences.toml:2: silence "for ever": `name`: expected a name of a-z, 0-9, - _ . and at most 64 characters
    19-silences.toml:9: silence "works": `from`: not a point in time; write it as "2026-12-24T18:00", or with an offset, as "2026-12-24T18:00:00+01:00"
    19-silences.toml:10: silence "works": `until`: it has no offset; add one, or say `zone`, as zone = "Europe/Berlin"
    19-silences.toml:11: silence "works": `severities`: unknown word `high`; known are info, warning, critical
    19-silences.toml:13: suppress 1: `rules` is missing or empty; name those that are not told meanwhile, as rules = ["freezer-*"]
    19-silences.toml:21: suppress 3: `hall-away` and `oven` would hide each other, and nobody would hear of either; let one of them be told
    19-silences.toml:25: storm: `levels` is missing; write count = 20, levels = 2
    19-silences.toml:26: storm: `count`: expected a whole number from 2 to 1000
    19-silences.toml:27: storm: `within`: `soon` is not a length of time; write a number and a unit, as in 500ms, 10s, 5m, 1h30m, 7d
    20-bounds.toml:4: rule "clients": `on`: `on` and `topic` in one rule; a rule looks at clients or at a topic: write two
    20-bounds.toml:4: rule "clients": `on`: unknown word `client.disconected`; did you mean `client.disconnected`?
    20-bounds.toml:10: rule "loops": `when`: a loop (all, exists, map, ...) inside a loop is not allowed: a device could make it run for ever
    20-bounds.toml:16: rule "pattern": `when`: `(` is not a regular expression
    20-bounds.toml:16: rule "pattern": `when`: `matches` takes its pattern as text in quotes, not from a payload or topic
    20-bounds.toml:17: rule "pattern": `words`: `hot` means both on and off; leave it out of one
    20-bounds.toml:19: rule "pattern": `clear`: unknown name `itme`; did you mean `item`?
    "#);
    let names = names();
    assert_eq!(names.len(), 20);
    let silent: Vec<&String> =
        names.iter().filter(|name| !told.contains(&format!("{name}:"))).collect();
    assert_eq!(silent, [""; 0], "nothing is found wrong with them");
}

#[tokio::test]
async fn what_runs_goes_on_with_the_rules_that_it_had() {
    let (fake, _) = Twilio::start().await;
    let harness = Place::new(&twilio("twilio-main", &fake)).rules(ALARM).start().await;
    let mut device = harness.device("pump-7").connect().await;
    for name in names() {
        let text = std::fs::read_to_string(directory().join(&name)).unwrap();
        harness.place.write(&format!("rules/{name}"), &text);
    }
    harness.app.reload();
    let problems = async || {
        let status = harness.api.status().await;
        let problems = status["rules"]["problems"].as_array().unwrap().clone();
        let told: Vec<String> =
            problems.iter().map(|problem| problem.as_str().unwrap().to_owned()).collect();
        (!told.is_empty()).then(|| told.join("\n"))
    };
    let told = found("the problems", problems).await;
    for name in names() {
        assert!(told.contains(&format!("/rules/{name}:")), "{name}: {told}");
    }
    let rules = harness.api.status().await["rules"]["rules"].as_array().unwrap().len();
    assert_eq!(rules, 1, "the set that it had");
    device.publishes("devices/pump-7/alarm", "all the same").await;
    harness.api.message_that_is("sent", "alarm all the same").await;
    harness.stop().await;
}
