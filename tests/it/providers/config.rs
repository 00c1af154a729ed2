//! What is wrong with a `[[provider]]` table, in words.

use watchbell::problem::path_text;
use watchbell::provider::registry::KINDS;

use super::*;

fn faults(toml: &str) -> Vec<String> {
    let found = read(&toml.parse().unwrap(), &shared()).err().unwrap_or_default();
    let lines = found.iter().map(|fault| format!("{}: {}", path_text(&fault.path), fault.what));
    lines.collect()
}

#[test]
fn every_problem_of_a_table_is_told_at_once() {
    let found = faults(
        "name = 'Main!'\nkind = 'twilio'\nchannels = ['sms', 'whatsapp']\nacount_sid = 'AC1'\n\
         auth_token = { env = 'WATCHBELL_NO_SUCH' }\nfrom = 'much too long a name'\n\
         rate = '1/fortnight'\nconcurrency = 0\ntimeout = '1h'\nbase_url = 'ftp://x'",
    );
    for expected in [
        "name: 1 to 64 of a-z, 0-9, - and _",
        "channels: `twilio` serves sms, not whatsapp; for whatsapp there are whatsapp-cloud, phone",
        "acount_sid: unknown key; did you mean `account_sid`?",
        "account_sid: is missing",
        "auth_token: environment variable WATCHBELL_NO_SUCH is not set; set it, or name another \
         source",
        "from: not a sender; write a number as +15005550006, a short code, or a name of up to 11 \
         letters and digits",
        "rate: `1/fortnight` is not a rate; write calls and a unit of time, as in 1/s, 300/m or \
         1000/h (1 to 1000000)",
        "concurrency: 1 to 1000, found 0",
        "timeout: 1s to 2m, found 1h",
        "base_url: not a URL as https://api.example.org, without query and credentials",
    ] {
        assert!(found.iter().any(|line| line == expected), "{expected}\n{found:#?}");
    }
    assert_eq!(found.len(), 10, "{found:#?}");
}

#[test]
fn a_table_is_refused_for_its_reason() {
    let twilio = "name = 't'\nkind = 'twilio'\naccount_sid = 'AC1'\nfrom = '+15005550006'\n";
    let meta = "name = 'w'\nkind = 'whatsapp-cloud'\nphone_number_id = '1'\naccess_token = 'x'\n";
    let hook = format!("name = 'h'\nkind = 'webhook'\nsecret = '{SIGNING}'\n");
    for (toml, expected) in [
        (
            String::new(),
            "kind: is missing; known kinds are twilio, whatsapp-cloud, fcm, webhook, phone",
        ),
        ("kind = 'twillio'".to_owned(), "kind: unknown kind `twillio`; did you mean `twilio`?"),
        ("kind = 'phone'".to_owned(), "name: is missing"),
        (
            "name = 'p'\nkind = 'phone'\nbase_url = 'http://x'".to_owned(),
            "base_url: makes no sense for kind `phone`; remove it",
        ),
        (
            "name = 'p'\nkind = 'phone'\nchannels = []".to_owned(),
            "channels: is empty; leave it out for all that the kind can serve",
        ),
        (twilio.to_owned(), "auth_token: is missing"),
        (
            format!("{twilio}auth_token = 'x'\napi_key_sid = 'SK'"),
            "auth_token: stands beside an API key; keep one of the two",
        ),
        (format!("{twilio}api_key_sid = 'SK'"), "api_key_secret: is missing"),
        (
            format!("{twilio}auth_token = 'x'\nmessaging_service_sid = 'MG1'"),
            "from: stands beside messaging_service_sid; keep one of the two",
        ),
        (
            format!("{twilio}auth_token = 'x'\nstatus_callback = 'https://a_b.example.org/'"),
            "status_callback: Twilio refuses a host with an underscore",
        ),
        (
            format!("{twilio}auth_token = 'x'\nbase_url = 'http://10.0.0.1'"),
            "base_url: plain http to another machine shows credentials and messages to everyone on the way; use https, or set allow_http = true",
        ),
        (
            format!("{meta}text_first = true"),
            "text_first: has no template to fall back on; set template too",
        ),
        (
            format!("{meta}template = {{ name = 'a', language = 'en', parameters = ['{{txt}}'] }}"),
            "template: unknown placeholder {txt}; known are text, title, severity, rule, key, state",
        ),
        (format!("{meta}api_version = '23'"), "api_version: not a version; write v23.0"),
        (
            "name = 'h'\nkind = 'webhook'\nsecret = 'x'".to_owned(),
            "secret: not a signing secret; it is whsec_ and the base64 of 24 to 64 random bytes: echo whsec_$(openssl rand -base64 32)",
        ),
        (
            format!("{hook}base_url = 'https://x'"),
            "base_url: makes no sense for kind `webhook`; remove it",
        ),
        (
            format!("{hook}proxy = 'http://p:1'"),
            "proxy: behind a proxy nobody here can tell private addresses; set allow_private = true if the proxy can",
        ),
        (
            "name = 'f'\nkind = 'fcm'\nservice_account = '{}'".to_owned(),
            "service_account: not a service account's JSON key (line 1, column 2); download a new key in the Firebase console (project settings, service accounts), and name it as { file = \"...\" }",
        ),
    ] {
        assert_eq!(faults(&toml), [expected], "{toml}");
    }
}

#[test]
fn defaults_are_those_of_the_kind() {
    let shared = shared();
    let meta = "name = 'w'\nkind = 'whatsapp-cloud'\nphone_number_id = '1'\naccess_token = 'x'\n";
    let entry_of = |more: &str| entry(&format!("{meta}{more}"), &shared);
    let default = entry_of("");
    let rate = |entry: &Entry| entry.rate.map(|rate| rate.to_string());
    assert_eq!(default.name, Arc::from("w"));
    assert_eq!(default.channels, [Channel::Whatsapp]);
    assert_eq!((rate(&default).as_deref(), default.concurrency), (Some("80/s"), 4));
    let set = entry_of("rate = '300/m'\nconcurrency = 9");
    assert_eq!((rate(&set).as_deref(), set.concurrency), (Some("300/m"), 9));

    let keys = KINDS.iter().find(|kind| kind.name() == "webhook").unwrap().keys();
    let expected = [
        "name",
        "kind",
        "channels",
        "rate",
        "concurrency",
        "timeout",
        "proxy",
        "allow_http",
        "secret",
        "secret_old",
        "allow_private",
    ];
    assert_eq!(keys, expected);
}
