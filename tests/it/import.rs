//! `watchbell import mqttwarn`: what files come to, and that it tells people what mqttwarn told them.

use crate::fake::{Fake, Twilio};
use crate::harness::{Place, QUICK};
use crate::process::{Process, Said, command, command_with};

/// A file of which everything converts.
const WHOLE: &str = "\
[defaults]
hostname = 'broker.example.org'
port = 1883
username = 'warn'
password = ${FILE:/run/secrets/mqtt}
launch = log, sms

[config:log]
targets = {
    'info': ['info'],
    }

[config:sms]
module = 'twilio'
targets = {
    'ana': ['AC0123456789abcdef0123456789abcdef', '$ENV:TWILIO_TOKEN', '+15005550006', '+49 155 5010 0001'],
    'ben': ['AC0123456789abcdef0123456789abcdef', '$ENV:TWILIO_TOKEN', '+15005550006', '+4915550100002'],
    }

[site/+/door]
targets = sms:ana, log:info
format = {topic}: {payload}

[freezer]
topic = site/#
targets = sms
title = Freezer {name}
format = {name} has {temp:.1f} °C\\n{{at {_dthhmm}}}
priority = 1
";

/// A file with everything that does not.
const ODD: &str = "\
; written by many
stray = 1
[defaults]
hostname = $ENV:BROKER
password = 'pa%(x)s-S3CRET'
functions = 'udf.py'
launch = log, tw, tw-missing, mail, po, own

[config:tw]
module = twilio
targets = {
  # Ana's
  'ana': ['AC0123456789abcdef0123456789abcdef', 'S3CRET-T0KEN', '+15005550006', '+4915550100001'],
  'wa': ['AC0123456789abcdef0123456789abcdef', 'S3CRET-T0KEN', 'whatsapp:+15005550006', 'whatsapp:+4915550100001'],
  'bad': ['AC0123456789abcdef0123456789abcdef', 'S3CRET-T0KEN'],
  }

[config:mail]
module: smtp
targets = {'ops': ['S3CRET@example.org']}

[config:po]
module = 'pushover'
targets = {'x': ['S3CRET-KEY', 'S3CRET-TOKEN']}

[config:own]
targets = not python

[a]
targets = tw:ana
filter = only_night()

[b/+]
targets = tw:nobody, gone:x, po:x, tw:ana
format = {value:,}

[c]
targets = choose()

[d]
targets = tw:{name}

[e]
targets = mail:ops
qos = 2

[a]
targets = tw:ana

this is nothing

[g]
targets = ['tw:ana']

[failover]
targets = tw:ana

[cron]
Check_All = 60; now=true
";

/// A file whose rules have keys that came later than others: what they come to.
const LATER: &str = "\
[defaults]
skipretained = True
[config:log]
targets = {'a': ['x']}
[f/#]
targets = {
    'f/#': 'log:a',
    'f/1': ['log'],
    }
[h]
topic = h/+
targets = log
timeout = 900
notify_only_on_timeout = True
";

async fn import(place: &Place, ini: &[u8]) -> Said {
    std::fs::write(place.path("mqttwarn.ini"), ini).unwrap();
    command(place, &["import", "mqttwarn", "mqttwarn.ini"]).await
}

fn read(place: &Place, name: &str) -> String {
    std::fs::read_to_string(place.path(name)).unwrap()
}

#[tokio::test]
async fn a_file_that_converts_whole() {
    let place = Place::new("");
    let said = import(&place, WHOLE.as_bytes()).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    insta::assert_snapshot!(said.out, @r#"
    converted: 5
      mqttwarn.ini:1: [defaults]
        `allow_plain`: without TLS, as before: password and readings can be read on the way
        [[upstream]] "mqttwarn", with a client id of its own, so that both can run
      mqttwarn.ini:8: [config:log]
        nothing needed: alerts are in the outbox, in the log and on the console
      mqttwarn.ini:13: [config:sms]
        provider "twilio"
        target `ana`: contact "sms-ana", sms
        target `ben`: contact "sms-ben", sms
      mqttwarn.ini:20: [site/+/door]
        rule "site-door"
      mqttwarn.ini:24: [freezer]
        times of day are UTC, as 10:00 UTC
        `priority` 1 is severity critical
        rule "freezer"

    written: imported/watchbell.toml, imported/rules/mqttwarn-rules.toml
    next: watchbell check --config imported/watchbell.toml --rules-dir imported/rules
    "#);
    insta::assert_snapshot!(read(&place, "imported/watchbell.toml"), @r#"
    # Imported from mqttwarn.ini. See `watchbell import mqttwarn --help`.

    [[provider]]
    name = "twilio"
    kind = "twilio"
    account_sid = "AC0123456789abcdef0123456789abcdef"
    auth_token = { env = "TWILIO_TOKEN" }
    from = "+15005550006"

    [[upstream]]
    name = "mqttwarn"
    url = ["mqtt://broker.example.org:1883"]
    version = "3.1.1"
    user = "warn"
    password = { file = "/run/secrets/mqtt" }
    allow_plain = true
    subscribe = ["site/#"]
    "#);
    insta::assert_snapshot!(plain(&read(&place, "imported/rules/mqttwarn-rules.toml")), @r#"
    # Imported from mqttwarn.ini. What is commented out would not do what it did; the reason stands above it.

    [[contact]]
    name = "sms-ana"
    sms = "+4915550100001"

    [[contact]]
    name = "sms-ben"
    sms = "+4915550100002"

    # mqttwarn.ini:20: [site/+/door]
    [[rule]]
    name = "site-door"
    topic = "site/+/door"
    decode = "text"
    to = ["sms-ana"]
    text = "{{ topic }}: {{ payload }}"

    # mqttwarn.ini:24: [freezer]
    [[rule]]
    name = "freezer"
    topic = "site/#"
    severity = "critical"
    to = ["sms-ana", "sms-ben"]
    title = "Freezer {{ payload.name }}"
    text = "{{ payload.name }} has {{ '%.1f' | format(payload.temp) }} °C\n{{ '{' }}at {{ time }}}"
    "#);

    let said = import(&place, WHOLE.as_bytes()).await;
    assert_eq!(said.code, 1);
    assert!(said.err.contains("is there already; name another directory with --out"), "{said:?}");
    let again = ["import", "mqttwarn", "mqttwarn.ini", "--force"];
    assert_eq!(command(&place, &again).await.code, 0);
}

#[tokio::test]
async fn what_does_not_convert_is_told_and_commented_out() {
    let place = Place::new("");
    let said = import(&place, ODD.as_bytes()).await;
    assert_eq!((said.code, said.err.as_str()), (3, ""));
    let (config, rules) = (
        read(&place, "imported/watchbell.toml"),
        read(&place, "imported/rules/mqttwarn-rules.toml"),
    );
    for text in [&said.out, &config, &rules] {
        assert!(!text.contains("S3CRET"), "{text}");
    }
    assert!(!said.out.contains("5550100001"), "{}", said.out);
    insta::assert_snapshot!(said.out, @r#"
    converted: 1
      mqttwarn.ini:55: [failover]
        rule "failover"
    needs a hand: 13
      mqttwarn.ini:2: a line
        stands before the first [section], and mqttwarn does not start with it; it was left out
      mqttwarn.ini:3: [defaults]
        `hostname` is not in this file; write it into [[upstream]] and take the # away
        put `password` into secrets/mqttwarn-password, readable for Watchbell alone
        `allow_plain`: without TLS, as before: password and readings can be read on the way
        [[upstream]], commented out, "mqttwarn", with a client id of its own, so that both can run
        functions are Python and are not read; what uses one is below
      mqttwarn.ini:9: [config:tw]
        put the auth token of line 9 into secrets/twilio-auth-token, readable for Watchbell alone
        provider "twilio"
        target `ana`: contact "tw-ana", sms
        target `wa`: goes by Twilio's WhatsApp; write `whatsapp = "+..."` for the contact and add a provider of kind whatsapp-cloud
        target `bad`: is no list of account SID, auth token, from and to
      mqttwarn.ini:22: [config:po]
        Watchbell does not speak pushover; give a contact a `webhook` and let a small adapter call pushover (examples/webhook_receiver.rs), or use sms, whatsapp or push
      mqttwarn.ini:26: [config:own]
        line 27: `targets` is no dict of targets as Python writes it, {'name': [...]}; mqttwarn finds none there
        `own` is no module of mqttwarn's own; give a contact a `webhook` and let a small adapter do what it does (examples/webhook_receiver.rs)
      mqttwarn.ini:29: [a]
        rule "a", commented out: line 31: `filter`: function only_night() keeps back what it says True for; write what is to be told as `when` (then it is told when that becomes true, not each time)
      mqttwarn.ini:33: [b/+]
        target `tw:nobody`: [config:tw] has no target `nobody`, so mqttwarn tells nobody
        target `gone:x`: there is no [config:gone], so mqttwarn tells nobody
        target `po:x` is not told: pushover
        rule "b", commented out: line 35: `format`: {value:,}: write this form with a filter of templates
      mqttwarn.ini:37: [c]
        rule "c", commented out: line 38: function choose() chooses the targets; write a rule for each
      mqttwarn.ini:40: [d]
        rule "d", commented out: target `tw:{name}` depends on the payload; write a rule for each
      mqttwarn.ini:43: [e]
        `qos` 2 is 1 here: what comes twice is told twice
        target `mail:ops` is not told: smtp
        rule "e", commented out: nobody is told; name contacts in `to`
      mqttwarn.ini:47: a line
        [a] stands at line 29 already, and mqttwarn does not start with it; what stands here was left out: move it there
      mqttwarn.ini:50: a line
        neither [section] nor key = value, and mqttwarn does not start with it; what goes on with a value is indented
      mqttwarn.ini:52: [g]
        rule "g", commented out: line 53: mqttwarn reads the list in brackets as one name and tells nobody; write targets = a:b, c:d
    cannot be converted: 2
      mqttwarn.ini:18: [config:mail]
        not yet: e-mail
      mqttwarn.ini:58: [cron]
        line 59: function check_all() is called each 60 seconds; let the system's cron run what it does, and tell people with `watchbell send`

    written: imported/watchbell.toml, imported/rules/mqttwarn-rules.toml
    next: watchbell check --config imported/watchbell.toml --rules-dir imported/rules
    "#);
    insta::assert_snapshot!(config, @r#"
    # Imported from mqttwarn.ini. See `watchbell import mqttwarn --help`.

    [[provider]]
    name = "twilio"
    kind = "twilio"
    account_sid = "AC0123456789abcdef0123456789abcdef"
    auth_token = { file = "secrets/twilio-auth-token" }
    from = "+15005550006"

    # [[upstream]]
    # name = "mqttwarn"
    # url = ["mqtt://?:1883"]
    # version = "3.1.1"
    # password = { file = "secrets/mqttwarn-password" }
    # allow_plain = true
    # subscribe = ["a", "b/+", "c", "d", "e", "g"]
    "#);
    insta::assert_snapshot!(plain(&rules), @r#"
    # Imported from mqttwarn.ini. What is commented out would not do what it did; the reason stands above it.

    [[contact]]
    name = "tw-ana"
    sms = "+4915550100001"

    # mqttwarn.ini:29: [a]
    # BY HAND: line 31: `filter`: function only_night() keeps back what it says True for; write what is to be told as `when` (then it is told when that becomes true, not each time)
    # [[rule]]
    # name = "a"
    # topic = "a"
    # decode = "text"
    # to = ["tw-ana"]
    # text = "{{ payload }}"

    # mqttwarn.ini:33: [b/+]
    # BY HAND: line 35: `format`: {value:,}: write this form with a filter of templates
    # [[rule]]
    # name = "b"
    # topic = "b/+"
    # decode = "text"
    # to = ["tw-ana"]
    # text = "{{ payload }}"

    # mqttwarn.ini:37: [c]
    # BY HAND: line 38: function choose() chooses the targets; write a rule for each
    # [[rule]]
    # name = "c"
    # topic = "c"
    # decode = "text"
    # to = []
    # text = "{{ payload }}"

    # mqttwarn.ini:40: [d]
    # BY HAND: target `tw:{name}` depends on the payload; write a rule for each
    # [[rule]]
    # name = "d"
    # topic = "d"
    # decode = "text"
    # to = []
    # text = "{{ payload }}"

    # mqttwarn.ini:43: [e]
    # BY HAND: nobody is told; name contacts in `to`
    # [[rule]]
    # name = "e"
    # topic = "e"
    # decode = "text"
    # to = []
    # text = "{{ payload }}"

    # mqttwarn.ini:52: [g]
    # BY HAND: line 53: mqttwarn reads the list in brackets as one name and tells nobody; write targets = a:b, c:d
    # [[rule]]
    # name = "g"
    # topic = "g"
    # decode = "text"
    # to = ["tw-ana"]
    # text = "{{ payload }}"

    # mqttwarn.ini:55: [failover]
    [[rule]]
    name = "failover"
    topic = "$watchbell/upstream/mqttwarn"
    when = "!payload.connected"
    severity = "critical"
    to = ["tw-ana"]
    text = "Broker connection lost."
    "#);
}

/// Without what is written only where rules know it.
fn plain(rules: &str) -> String {
    rules.lines().filter(|line| !line.contains("replayed")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn silence_and_exceptions_are_keys_of_their_own() {
    let place = Place::new("");
    import(&place, LATER.as_bytes()).await;
    let rules = read(&place, "imported/rules/mqttwarn-rules.toml");
    for line in [
        "silent = \"15m\"\n",
        "repeat = \"15m\"\n",
        "text = \"Timeout for topic h/+ after 900\"\n",
        "text_clear = \"Message received for topic h/+ within 900\"\n",
        "skip = \"topic == \\\"f/1\\\"\"\n",
        "replayed = \"ignore\"\n",
    ] {
        assert!(rules.contains(line), "{line} is not in:\n{rules}");
    }
    assert_eq!(rules.matches("[[rule]]").count(), 3, "{rules}");
}

#[tokio::test]
async fn a_template_is_read_beside_the_file_and_nowhere_else() {
    let place = Place::new("");
    std::fs::create_dir(place.path("templates")).unwrap();
    place.write("templates/door.jinja", "{{ name | upper }} at {{ topic }}: {{ state }}");
    let ini = "[config:log]\ntargets={'a':['x']}\n[door]\ntargets=log\ntemplate=door.jinja\n[out]\ntargets=log\ntemplate=../watchbell.toml\n";
    let said = import(&place, ini.as_bytes()).await;
    assert_eq!(said.code, 3, "{said:?}");
    let rules = read(&place, "imported/rules/mqttwarn-rules.toml");
    assert!(rules.contains("text = \"{% set name = payload.name | default('') %}"), "{rules}");
    assert!(rules.contains("# BY HAND: line 8: `template`: cannot be read"), "{rules}");
}

#[tokio::test]
async fn what_is_no_mqttwarn_ini_is_refused_and_nothing_is_written() {
    let place = Place::new("");
    for (ini, why) in [
        (&b""[..], "there is no [section] in it"),
        (b"[a]\ntargets = \xff\n", "line 2 is not UTF-8"),
    ] {
        let said = import(&place, ini).await;
        assert_eq!(said.code, 1);
        assert!(said.err.contains(why), "{said:?}");
    }
    let said = command(&place, &["import", "mqttwarn", "no-such.ini"]).await;
    assert!(said.code == 1 && said.err.contains("cannot read no-such.ini"), "{said:?}");
    assert!(!place.path("imported").exists());
}

/// The same publishes, the same texts.
#[tokio::test]
async fn people_are_told_what_mqttwarn_told_them() {
    let (fake, twilio): (Fake, Twilio) = Twilio::start().await;
    let place = Place::new("");
    let said = import(&place, WHOLE.as_bytes()).await;
    assert_eq!(said.code, 0, "{said:?}");
    let rules = read(&place, "imported/rules/mqttwarn-rules.toml");
    let config = format!("{QUICK}{}", crate::harness::twilio("twilio", &fake));
    std::fs::remove_file(place.path("rules/contacts.toml")).unwrap();
    let process = Process::start(place.configured(&config).rules(&rules)).await;
    process.done(&["pub", "site/kiel/door", "open"]).await;
    process.done(&["pub", "site/kiel/freezer", r#"{"name": "F1", "temp": -9.96}"#]).await;
    process.api.message_that_is("sent", "site/kiel/door: open").await;
    drop(twilio);
    let said = command_with(&process.place, &["outbox", "list"], "", &[]).await;
    assert!(said.out.contains("F1 has -10.0 °C"), "{said:?}");
}
