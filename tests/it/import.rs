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
    insta::assert_snapshot!(said.out, @"");
    insta::assert_snapshot!(read(&place, "imported/watchbell.toml"), @"");
    insta::assert_snapshot!(plain(&read(&place, "imported/rules/mqttwarn-rules.toml")), @"");

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
    assert_eq!((said.code, said.err.as_str()), (3, "error: something is to be done by hand\n"));
    let (config, rules) = (
        read(&place, "imported/watchbell.toml"),
        read(&place, "imported/rules/mqttwarn-rules.toml"),
    );
    for text in [&said.out, &config, &rules] {
        assert!(!text.contains("S3CRET"), "{text}");
    }
    assert!(!said.out.contains("5550100001"), "{}", said.out);
    insta::assert_snapshot!(said.out, @"");
    insta::assert_snapshot!(config, @"");
    insta::assert_snapshot!(plain(&rules), @"");
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
