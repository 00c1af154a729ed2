//! The configuration: layers, and every problem at once with its place.

use std::path::PathBuf;

use watchbell::clock::Clock;
use watchbell::config::layers::{FileLayer, Flag, Layers};
use watchbell::config::{self, Config};
use watchbell::model::Channel;
use watchbell::span::Span;

fn layers(file: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Layers {
    let owned = |text: &&str| (*text).to_owned();
    Layers {
        file: FileLayer::Text { name: "watchbell.toml".to_owned(), text: file.to_owned() },
        env: env.iter().map(|(name, value)| (owned(name), owned(value))).collect(),
        flags: flags
            .iter()
            .map(|(name, key, value)| Flag {
                name: owned(name),
                key: owned(key),
                value: owned(value),
            })
            .collect(),
    }
}

fn good(layers: &Layers) -> Config {
    config::load(layers, &Clock::System).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// What an operator reads of a file, an environment and flags.
fn wrong(file: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> String {
    match config::load(&layers(file, env, flags), &Clock::System) {
        Ok(_) => "fine".to_owned(),
        Err(problems) => {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            lines.join("\n")
        }
    }
}

fn route(config: &Config, channel: Channel) -> Vec<&str> {
    config.routes[&channel].iter().map(|name| &**name).collect()
}

#[test]
fn without_anything_the_virtual_phone_serves_every_channel() {
    let config = good(&layers("", &[], &[]));
    assert_eq!((config.data_dir, config.rules_dir), (PathBuf::from("data"), "rules".into()));
    assert_eq!(config.api.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.providers.len(), 1);
    for channel in Channel::ALL {
        assert_eq!(config.routes[channel], ["phone".into()], "{channel}");
    }
}

#[test]
fn later_layers_win_and_text_becomes_what_is_wanted() {
    let file = "
        data_dir = 'a'
        rules_dir = 'r'
        [api]
        page_max = 7
        body_bytes_max = 2048
        [dispatch]
        retry = { first = '2s' }
    ";
    let env = [
        ("WATCHBELL_DATA_DIR", "42"),
        ("WATCHBELL_API__PAGE_MAX", "8"),
        ("WATCHBELL_API__ALLOW_PLAIN_REMOTE", "true"),
        ("WATCHBELL_DISPATCH__RETRY__MAX", "10s"),
        ("WATCHBELL_CHANNEL__SMS__PROVIDERS", "['phone']"),
        ("HOME", "/root"),
        // What Kubernetes says beside a service of our name.
        ("WATCHBELL_PORT", "tcp://10.0.0.1:8883"),
        ("WATCHBELL_PORT_8883_TCP_ADDR", "10.0.0.1"),
        ("WATCHBELL_SERVICE_HOST", "10.0.0.1"),
    ];
    let flags =
        [("--set api.page_max", "api.page_max", "9"), ("--rules-dir", "rules_dir", "flagged")];
    let config = good(&layers(file, &env, &flags));
    // A text that looks like a number is still a text where one is wanted.
    assert_eq!((config.data_dir, config.rules_dir), ("42".into(), PathBuf::from("flagged")));
    assert_eq!((config.api.page_max, config.api.body_bytes_max), (9, 2048));
    assert!(config.api.allow_plain_remote);
    let retry = config.dispatch.retry;
    assert_eq!((retry.first, retry.max), (Span::from_secs(2), Span::from_secs(10)));
}

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let file = r#"
data_dri = "x"
[api]
listen = "here"
body_bytes_max = "many"
page_max = -1

[broker]
listen = "0.0.0.0:1883"
payload_bytes_max = 7

[dispatch]
expires_in = 30
retry = { first = "1 minute", jitter = true }

[[access]]
who = { client_id = "pump-*" }
publish = ["site/#/x"]

[[access]]
publsh = ["a"]

[[provider]]
name = "twilio-main"
kind = "twilio"
acount_sid = "AC"

[[provider]]
name = "phone"
kind = "fone"

[channel.sms]
providers = ["twilio-main", "twilio-mian", "phone"]

[channel.email]
providers = []
"#;
    insta::assert_snapshot!(wrong(file, &[], &[]), @r#"
    watchbell.toml:2: data_dri: unknown key; did you mean `data_dir`?
    watchbell.toml:4: api.listen: expected an address and a port, as in 127.0.0.1:8080
    watchbell.toml:5: api.body_bytes_max: expected a whole number, found "many"
    watchbell.toml:6: api.page_max: expected a whole number that is not negative, found -1
    watchbell.toml:9: broker.listen: 0.0.0.0:1883 can be reached from other machines without TLS; use listen_tls, or set broker.allow_plain_remote = true
    watchbell.toml:10: broker.payload_bytes_max: unknown key; did you mean `packet_bytes_max`?
    watchbell.toml:13: dispatch.expires_in: expected a length of time in quotes, such as "500ms", "10s", "1h30m", found 30
    watchbell.toml:14: dispatch.retry.first: `1 minute` is not a length of time; write a number and a unit, as in 500ms, 10s, 5m, 1h30m, 7d
    watchbell.toml:14: dispatch.retry.jitter: unknown key; known here are first, max, attempts_max
    watchbell.toml:18: access[0].publish: `site/#/x`: `#` must be the last level, alone in it
    watchbell.toml:21: access[1].publsh: unknown key; did you mean `publish`?
    watchbell.toml:23: provider[0].account_sid: is missing
    watchbell.toml:23: provider[0].auth_token: is missing
    watchbell.toml:23: provider[0].from: is missing
    watchbell.toml:26: provider[0].acount_sid: unknown key; did you mean `account_sid`?
    watchbell.toml:30: provider[1].kind: unknown kind `fone`; did you mean `phone`?
    watchbell.toml:33: channel.sms.providers[1]: there is no provider `twilio-mian`; did you mean `twilio-main`?
    watchbell.toml:35: channel.email: unknown key; known here are sms, whatsapp, push, webhook
    "#);
}

#[test]
fn environment_and_flags_are_named() {
    let env = [
        ("WATCHBELL_BROKER__PACKET_BYTES_MAX", "x"),
        ("WATCHBELL_BROKER__PACKT_BYTES_MAX", "1"),
        ("WATCHBELL_DISPATCH__EXPIRES_IN", "10"),
        ("WATCHBELL_API__PAGE_MAX", "0"),
        ("WATCHBELL_API__ALLOW_PLAIN_REMOTE", "yes"),
        ("WATCHBELL_PROVIDER", "twilio"),
        ("WATCHBELL_NOSUCH", "1"),
    ];
    let flags = [("--set api.listen", "api.listen", "0.0.0.0:8080")];
    insta::assert_snapshot!(wrong("", &env, &flags), @r#"
    env WATCHBELL_BROKER__PACKET_BYTES_MAX: expected a whole number, found "x"
    env WATCHBELL_BROKER__PACKT_BYTES_MAX: unknown key; did you mean `packet_bytes_max`?
    env WATCHBELL_API__ALLOW_PLAIN_REMOTE: expected true or false, found "yes"
    --set api.listen: 0.0.0.0:8080 can be reached from other machines, and HTTP here is not encrypted; listen on 127.0.0.1 behind a TLS proxy, or set api.allow_plain_remote = true
    env WATCHBELL_API__PAGE_MAX: 1 to 5000, found 0
    env WATCHBELL_DISPATCH__EXPIRES_IN: `10` has no unit; write 10s for seconds (units are ms, s, m, h, d)
    env WATCHBELL_PROVIDER: expected [[provider]] tables, found string
    env WATCHBELL_NOSUCH: unknown key; known here are data_dir, rules_dir, grace, telemetry, broker, listener, auth, access, upstream, api, rules, notify, intake, dispatch, store, provider, channel
    "#);
}

#[test]
fn a_variable_that_holds_a_secret_is_not_a_key() {
    let file = "
        [[provider]]
        name = 'phone'
        kind = 'phone'
        base_url = { env = 'WATCHBELL_TOKEN' }
    ";
    let said = wrong(file, &[("WATCHBELL_TOKEN", "hunter2")], &[]);
    assert!(!said.contains("WATCHBELL_TOKEN") && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_file_that_is_no_toml_or_not_there() {
    insta::assert_snapshot!(wrong("[api\nlisten = 1", &[], &[]), @"watchbell.toml:1: unclosed table, expected `]`");
    let missing = Layers { file: FileLayer::Named("no/such.toml".into()), ..Layers::default() };
    let problems = config::load(&missing, &Clock::System).err().expect("not there");
    insta::assert_snapshot!(problems[0], @"no/such.toml: cannot be read: No such file or directory (os error 2); name another file with --config");
}

#[test]
fn channels_name_providers_that_serve_them() {
    let file = r#"
[[provider]]
name = "one"
kind = "phone"
channels = ["sms", "push"]
[[provider]]
name = "two"
kind = "phone"
channels = ["sms"]
[[provider]]
name = "two"
kind = "phone"
[channel.sms]
providers = ["two", "one", "two"]
[channel.push]
providers = ["two", "three"]
[channel.webhook]
providers = []
"#;
    insta::assert_snapshot!(wrong(file, &[], &[]), @r#"
    watchbell.toml:11: provider[2].name: `two` is the name of provider[1] already
    watchbell.toml:14: channel.sms.providers[2]: `two` stands here twice
    watchbell.toml:16: channel.push.providers[0]: provider `two` does not serve push; add it to the provider's `channels`, or take it out here
    watchbell.toml:16: channel.push.providers[1]: there is no provider `three`; the configuration has one, two
    watchbell.toml:18: channel.webhook.providers: it names no provider; take the key out to use every provider that serves webhook
    "#);

    let file = r#"
[[provider]]
name = "one"
kind = "phone"
channels = ["sms", "push"]
[[provider]]
name = "two"
kind = "phone"
[channel.sms]
providers = ["two", "one"]
"#;
    let config = good(&layers(file, &[], &[]));
    assert_eq!(route(&config, Channel::Sms), ["two", "one"]);
    assert_eq!(route(&config, Channel::Push), ["one", "two"]);
    assert_eq!(route(&config, Channel::Webhook), ["two"]);
}

/// A file that is wrong somewhere else must not keep an operator from asking how things are.
#[test]
fn the_data_directory_is_found_in_a_file_that_is_wrong() {
    let broken = layers("data_dir = 'there'\n[api]\nlisten = 7\n", &[], &[]);
    assert_eq!(config::data_dir(&broken).expect("found"), PathBuf::from("there"));
}

fn example() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/watchbell.toml");
    std::fs::read_to_string(path).expect("the example is there")
}

/// Every key that stands in the example without a `#` has its default there.
#[test]
fn the_example_is_the_default() {
    let told = good(&layers(&example(), &[], &[]));
    let default = good(&layers("", &[], &[]));
    for (told, default) in [
        (format!("{:?}", told.telemetry), format!("{:?}", default.telemetry)),
        (format!("{:?}", told.broker), format!("{:?}", default.broker)),
        (format!("{:?}", told.access), format!("{:?}", default.access)),
        (format!("{:?}", told.api), format!("{:?}", default.api)),
        (format!("{:?}", told.dispatch), format!("{:?}", default.dispatch)),
        (format!("{:?}", told.intake), format!("{:?}", default.intake)),
        (format!("{:?}", told.store), format!("{:?}", default.store)),
        (format!("{:?}", told.limits), format!("{:?}", default.limits)),
        (format!("{:?}", told.grace), format!("{:?}", default.grace)),
        (format!("{:?}", told.routes), format!("{:?}", default.routes)),
    ] {
        assert_eq!(told, default);
    }
    assert_eq!((told.data_dir, told.rules_dir), (default.data_dir, default.rules_dir));
}

/// With every `#` in front of a key taken away, nothing is wrong but the secrets that nobody has.
#[test]
fn what_the_example_shows_is_accepted() {
    let shows = |line: &str| {
        line.strip_prefix('#')
            .filter(|rest| rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()))
            .unwrap_or(line)
            .to_owned()
    };
    let file: Vec<String> = example().lines().map(shows).collect();
    let said = wrong(&file.join("\n"), &[], &[]);
    let other: Vec<&str> = said
        .lines()
        .filter(|line| {
            !line.contains("is not set; set it")
                && !line.contains("cannot read secrets/")
                && !line.contains(": secrets/")
        })
        .collect();
    assert_eq!(other, [""; 0], "{said}");
    assert_eq!(said.lines().count(), 11, "{said}");
}

#[test]
fn times_and_sizes_that_make_no_sense_are_refused() {
    let file = "
        [notify]
        fallback_after = { critical = '90d' }
        fallback = ['duty', 'ana', 'duty']
        [store]
        disk_reserve_bytes = 1
    ";
    let text = wrong(file, &[], &[]);
    for part in [
        "fallback_after: at most 1d; 0s for never",
        "fallback: `duty` stands there twice",
        "store.disk_reserve_bytes: 0 for none, or 33554432 (32 MiB; with less nothing is sent)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
