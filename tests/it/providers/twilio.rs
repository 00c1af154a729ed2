//! Twilio: its form, its errors, and the search for what it took without saying so.

use super::*;
use crate::fake::{Request, Twilio, packed};

pub(super) fn twilio(fake: &Fake, more: &str) -> Entry {
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = '{}'\naccount_sid = 'AC42'\nauth_token = \
         '{SECRET}'\nfrom = '+15005550006'\n{more}",
        fake.url()
    );
    entry(&toml, &shared())
}

fn twilio_error(status: u16, code: u32) -> Answer {
    let text = format!("the number {NUMBER} and token {SECRET} of AC42");
    Answer::json(status, &json!({ "code": code, "message": text, "status": status }))
}

#[tokio::test]
async fn twilio_is_sent_what_its_contract_says() {
    let fake = Fake::answering(|_| {
        Answer::json(201, &json!({ "sid": "SM1", "num_segments": "2", "status": "queued" }))
    })
    .await;
    let twilio = twilio(&fake, "status_callback = 'https://bell.example.org/twilio'");
    let outcome = twilio.provider.send(&sms()).await;
    assert_eq!(words(&outcome), "accepted SM1 2");
    let request = fake.only();
    assert_eq!(request.method, "POST");
    assert_eq!(request.target, "/2010-04-01/Accounts/AC42/Messages.json");
    assert_eq!(request.header("content-type"), "application/x-www-form-urlencoded");
    let basic = STANDARD.encode(format!("AC42:{SECRET}"));
    assert_eq!(request.header("authorization"), format!("Basic {basic}"));
    let agent = concat!("watchbell/", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), agent);
    let form = request.form();
    let mut fields: Vec<_> = form.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    fields.sort_unstable();
    let expected = [
        ("Body", "Kiel freezer 1: -3.2 °C\nfor 5 min & more"),
        ("From", "+15005550006"),
        ("StatusCallback", "https://bell.example.org/twilio"),
        ("To", NUMBER),
        ("ValidityPeriod", "3600"),
    ];
    assert_eq!(fields, expected);
}

#[tokio::test]
async fn twilio_gets_no_more_time_than_is_left() {
    let fake = Fake::answering(|_| Answer::json(201, &json!({ "sid": "SM1" }))).await;
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = '{}/x/'\naccount_sid = 'AC42'\napi_key_sid = \
         'SK7'\napi_key_secret = '{SECRET}'\nmessaging_service_sid = 'MG9'",
        fake.url()
    );
    let twilio = entry(&toml, &shared());
    for left_secs in [0, 7, 999_999] {
        let mut message = sms();
        message.expires_at = NOW.plus(Duration::from_secs(left_secs));
        assert_eq!(words(&twilio.provider.send(&message).await), "accepted SM1");
    }
    let requests = fake.requests();
    let field = |name: &str| -> Vec<String> {
        requests.iter().map(|request| request.form()[name].clone()).collect()
    };
    assert_eq!(field("ValidityPeriod"), ["1", "7", "36000"]);
    assert_eq!(field("MessagingServiceSid"), ["MG9", "MG9", "MG9"]);
    assert!(!requests[0].form().contains_key("From"));
    assert_eq!(requests[0].path(), "/x/2010-04-01/Accounts/AC42/Messages.json");
    let basic = STANDARD.encode(format!("SK7:{SECRET}"));
    assert_eq!(requests[0].header("authorization"), format!("Basic {basic}"));
}

#[tokio::test]
async fn twilio_error_table() {
    let fake = Fake::start().await;
    let twilio = twilio(&fake, "");
    let code = |code| twilio_error(400, code);
    let lines = [
        ("account not active", code(10001), "rejected lane provider_refused"),
        ("credentials", twilio_error(401, 20003), "rejected lane bad_credentials"),
        ("no such account", twilio_error(404, 20404), "rejected lane provider_refused"),
        ("too many requests", twilio_error(429, 20429), "retry lane throttled"),
        ("To is no number", code(21211), "rejected recipient bad_recipient"),
        ("From is no number", code(21212), "rejected lane provider_refused"),
        ("region off", code(21408), "rejected route provider_refused"),
        ("no body", code(21602), "rejected content content_refused"),
        ("From cannot send", code(21606), "rejected account provider_refused"),
        ("trial account", code(21608), "rejected route provider_refused"),
        ("opted out", code(21610), "rejected recipient opted_out"),
        ("queue of the sender", code(21611), "retry lane throttled"),
        ("no route", code(21612), "rejected route bad_recipient"),
        ("not mobile", code(21614), "rejected recipient bad_recipient"),
        ("too long", code(21617), "rejected content content_refused"),
        ("no body either", code(21619), "rejected content content_refused"),
        ("From of another", code(21660), "rejected lane provider_refused"),
        ("no such service", code(21705), "rejected lane provider_refused"),
        ("queue overflow", code(30001), "retry lane throttled"),
        ("suspended", code(30002), "rejected lane provider_refused"),
        ("handset off", code(30003), "retry message unreachable"),
        ("unknown handset", code(30005), "rejected recipient bad_recipient"),
        ("landline", code(30006), "rejected recipient bad_recipient"),
        ("filtered", code(30007), "rejected content content_refused"),
        ("unknown error", code(30008), "retry message provider_unavailable"),
        ("media too big", code(30019), "rejected content content_refused"),
        ("toll-free", code(30032), "rejected lane provider_refused"),
        ("10DLC", code(30034), "rejected lane provider_refused"),
        ("validity over", code(30036), "retry message unreachable"),
        ("channel rate", code(63018), "retry lane throttled"),
        ("a code of tomorrow", code(29999), "rejected account provider_refused"),
        ("a code of tomorrow, 500", twilio_error(500, 29999), "retry lane provider_unavailable"),
    ];
    check(&twilio, &fake, &sms(), &lines).await;
    let outcome = {
        fake.script([twilio_error(400, 21211)]);
        twilio.provider.send(&sms()).await
    };
    assert_eq!(detail(&outcome), "Twilio 21211: the number +49…678 and token *** of AC42");
}

#[tokio::test]
async fn without_the_providers_words_the_status_decides() {
    let fake = Fake::start().await;
    let twilio = twilio(&fake, "");
    let page = |status| Answer::new(status).body("<html>the gateway's page</html>");
    let long_page = |status| page(status).body(format!("<html>{}", "x".repeat(70_000)));
    let odd = Answer::new(200).header("content-encoding", "br").body(vec![0x8b, 1, 2]);
    let wait = |text| Answer::new(503).header("retry-after", text);
    let lines = [
        ("no credentials", page(401), "rejected account bad_credentials"),
        ("no credit", page(402), "rejected account no_credit"),
        ("forbidden", page(403), "rejected account provider_refused"),
        ("not found", page(404), "rejected account provider_refused"),
        ("too slow", page(408), "retry lane provider_unavailable"),
        ("too large", page(413), "rejected account provider_refused"),
        ("bad request", page(400), "retry lane bad_answer"),
        ("proxy", page(407), "rejected lane bad_credentials"),
        ("too fast", page(429), "retry lane throttled"),
        ("down", page(500), "retry lane provider_unavailable"),
        ("bad gateway", page(502), "retry lane provider_unavailable"),
        ("gateway timeout", page(504), "retry lane provider_unavailable"),
        ("cut error", page(503).but_cut(Cut::InBody), "retry lane provider_unavailable"),
        ("moved", page(302).header("location", "/other"), "retry lane bad_answer"),
        ("a portal's page", page(200), "unknown answered"),
        ("a portal's page, 201", page(201), "unknown answered"),
        ("a portal's long page", long_page(200), "unknown answered"),
        ("its cut page", page(201).but_cut(Cut::InBody), "unknown answered"),
        ("packed", packed(201, r#"{"sid":"SM1"}"#), "accepted SM1"),
        ("an error, packed", packed(400, r#"{"code":21610}"#), "rejected recipient opted_out"),
        ("packed in an unknown way", odd, "unknown answered"),
        ("seconds", wait("7"), "retry lane provider_unavailable 7s"),
        ("a date", wait("Mon, 23 Nov 2026 10:01:00 GMT"), "retry lane provider_unavailable 60s"),
        ("a day", wait("86400"), "retry lane provider_unavailable 3600s"),
        ("a past date", wait("Mon, 23 Nov 2026 09:00:00 GMT"), "retry lane provider_unavailable"),
        ("nonsense", wait("soon"), "retry lane provider_unavailable"),
        ("no body", Answer::new(201), "unknown"),
    ];
    check(&twilio, &fake, &sms(), &lines).await;
    assert_eq!(fake.count(), lines.len(), "nothing is repeated, no redirect is followed");
}

#[tokio::test]
async fn twilio_when_the_wire_breaks() {
    let fake = Fake::start().await;
    let good = Answer::json(201, &json!({ "sid": "SM1" }));
    let words = ["accepted SM1", "retry lane connect_failed"];
    check_cuts((&twilio(&fake, ""), &twilio(&fake, HASTY)), &fake, &sms(), good, words).await;
}

#[tokio::test]
async fn a_failed_tls_handshake_has_sent_nothing() {
    let fake = Fake::start().await;
    let https = fake.url().replace("http:", "https:");
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = '{https}'\naccount_sid = 'AC42'\nauth_token = \
         'x'\nfrom = '+15005550006'"
    );
    let twilio = entry(&toml, &shared());
    fake.script([Answer::cut(Cut::BeforeReading)]);
    let outcome = twilio.provider.send(&sms()).await;
    assert_eq!(words(&outcome), "retry lane connect_failed", "{outcome:?}");
    assert_eq!(fake.count(), 0);
}

#[tokio::test]
async fn a_name_that_is_none_has_sent_nothing() {
    let toml = "name = 'tw'\nkind = 'twilio'\nbase_url = 'https://watchbell.invalid'\n\
                account_sid = 'AC42'\nauth_token = 'x'\nfrom = '+15005550006'";
    let outcome = entry(toml, &shared()).provider.send(&sms()).await;
    assert_eq!(words(&outcome), "retry lane connect_failed", "{outcome:?}");
}

#[tokio::test]
async fn requests_go_through_the_proxy_that_is_configured() {
    let proxy = Fake::answering(|_| Answer::json(201, &json!({ "sid": "SM1" }))).await;
    let toml = format!(
        "name = 'tw'\nkind = 'twilio'\nbase_url = 'http://twilio.invalid'\nallow_http = true\n\
         proxy = '{}'\naccount_sid = 'AC42'\nauth_token = 'x'\nfrom = 'Watchbell'",
        proxy.url()
    );
    let outcome = entry(&toml, &shared()).provider.send(&sms()).await;
    assert_eq!(words(&outcome), "accepted SM1");
    let target = proxy.only().target;
    assert_eq!(target, "http://twilio.invalid/2010-04-01/Accounts/AC42/Messages.json");
}

#[tokio::test]
async fn twilio_finds_what_it_took_without_saying_so() {
    let book = Twilio::default();
    let (fake, taking) = (Fake::start().await, book.clone());
    // It takes the message, and the connection breaks before the answer.
    fake.respond(move |request| match request.method.as_str() {
        "POST" => {
            taking.took(request);
            Answer::cut(Cut::AfterReading)
        }
        _ => taking.answer(request),
    });
    let twilio = twilio(&fake, "").provider;
    let message = sms();
    assert!(twilio.can_look_up());
    assert_eq!(twilio.lookup(&message, NOW).await, Lookup::NotFound);
    for _ in 0..2 {
        assert_eq!(words(&twilio.send(&message).await), "unknown");
    }
    let mut other = sms();
    other.content.text = "something else".into();
    assert_eq!(words(&twilio.send(&other).await), "unknown");
    assert_eq!(book.count(), 3);
    let found = ["1", "2"].map(|n| format!("SM{n:0>32}")).to_vec();
    assert_eq!(twilio.lookup(&message, NOW).await, Lookup::Found(found));

    let asked = fake.requests().pop().unwrap();
    assert_eq!(asked.path(), "/2010-04-01/Accounts/AC42/Messages.json");
    let query = asked.query();
    assert_eq!(query["To"], NUMBER);
    assert_eq!(query["From"], "+15005550006");
    assert_eq!(query["DateSent>"], "2026-11-23");
}

#[tokio::test]
async fn twilio_looks_only_at_what_may_be_this_message() {
    let row = |sid: &str, created: &str, more: Value| {
        let mut row = json!({
            "sid": sid, "body": "Kiel freezer 1: -3.2 °C\nfor 5 min & more",
            "direction": "outbound-api", "status": "sent", "date_created": created,
        });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row
    };
    let after = "Mon, 23 Nov 2026 10:00:05 +0000";
    let trial = "Sent from your Twilio trial account - Kiel freezer 1: -3.2 °C\nfor 5 min & more";
    let first = json!([
        row("SM6", after, json!({ "direction": "inbound" })),
        row("SM5", after, json!({ "status": "failed" })),
        row("SM4", after, json!({ "body": "something else" })),
        row("SM3", "Mon, 23 Nov 2026 10:00:09 +0000", json!({})),
    ]);
    let second = json!([
        row("SM2", after, json!({ "body": trial })),
        row("SM1", "Mon, 23 Nov 2026 09:58:00 +0000", json!({})),
    ]);
    let fake = Fake::answering(move |request| {
        let page = |rows: &Value, next| {
            Answer::json(200, &json!({ "messages": rows, "next_page_uri": next }))
        };
        if request.query().contains_key("PageToken") {
            page(&second, Value::Null)
        } else {
            let next = "/2010-04-01/Accounts/AC42/Messages.json?PageToken=PA1";
            page(&first, json!(next))
        }
    })
    .await;
    let twilio = twilio(&fake, "").provider;
    let found = Lookup::Found(vec!["SM2".to_owned(), "SM3".to_owned()]);
    assert_eq!(twilio.lookup(&sms(), NOW).await, found);
    let credentials = |request: &Request| !request.header("authorization").is_empty();
    assert!(fake.requests().iter().all(credentials));

    for (what, answer) in [
        ("an error", Answer::new(500)),
        ("no list", Answer::new(200).body("<html>")),
        ("no answer", Answer::cut(Cut::AfterReading)),
    ] {
        fake.script([answer]);
        let lookup = twilio.lookup(&sms(), NOW).await;
        assert!(matches!(lookup, Lookup::Inconclusive { .. }), "{what}: {lookup:?}");
    }
}
