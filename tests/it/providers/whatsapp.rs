//! WhatsApp Cloud: text, template, the one after the other, and Meta's codes.

use watchbell::model::Template;

use super::*;

pub(super) fn whatsapp_cloud(fake: &Fake, more: &str) -> Entry {
    let toml = format!(
        "name = 'wa'\nkind = 'whatsapp-cloud'\nbase_url = '{}'\nphone_number_id = '1066'\n\
         access_token = '{SECRET}'\n{more}",
        fake.url()
    );
    entry(&toml, &shared())
}

const TEMPLATE: &str =
    "template = { name = 'alert', language = 'en', parameters = ['{severity}', '{rule}: {text}'] }";

fn meta_error(status: u16, code: u32) -> Answer {
    let error = json!({
        "message": format!("(#{code}) bad token {SECRET}"),
        "type": "OAuthException", "code": code, "fbtrace_id": "x",
        "error_data": { "messaging_product": "whatsapp", "details": format!("to {NUMBER}") },
    });
    Answer::json(status, &json!({ "error": error }))
}

fn wamid() -> Answer {
    let body = json!({
        "messaging_product": "whatsapp",
        "contacts": [{ "input": NUMBER, "wa_id": DIGITS }],
        "messages": [{ "id": "wamid.1", "message_status": "accepted" }],
    });
    Answer::json(200, &body)
}

#[tokio::test]
async fn whatsapp_goes_as_text_or_as_a_template() {
    let fake = Fake::answering(|_| wamid()).await;
    let message = whatsapp();
    let base = json!({
        "messaging_product": "whatsapp", "recipient_type": "individual", "to": DIGITS,
        "biz_opaque_callback_data": message.id,
    });
    let with = |more: Value| {
        let mut body = base.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let text = with(json!({
        "type": "text",
        "text": { "body": "Kiel freezer 1: -3.2 °C\nfor 5 min & more", "preview_url": false },
    }));
    let template = |name: &str, parameters: &[&str]| {
        let parameters: Vec<Value> =
            parameters.iter().map(|text| json!({ "type": "text", "text": text })).collect();
        with(json!({ "type": "template", "template": {
            "name": name, "language": { "policy": "deterministic", "code": "en" },
            "components": [{ "type": "body", "parameters": parameters }],
        }}))
    };
    let filled = ["critical", "freezer-warm: Kiel freezer 1: -3.2 °C for 5 min & more"];

    let plain = whatsapp_cloud(&fake, "");
    assert_eq!(words(&plain.provider.send(&message).await), "accepted wamid.1");
    let request = fake.only();
    assert_eq!((request.method.as_str(), request.path()), ("POST", "/v23.0/1066/messages"));
    assert_eq!(request.header("authorization"), format!("Bearer {SECRET}"));
    assert_eq!(request.json(), text);

    let templated = whatsapp_cloud(&fake, TEMPLATE);
    assert_eq!(words(&templated.provider.send(&message).await), "accepted wamid.1");
    assert_eq!(fake.requests()[1].json(), template("alert", &filled));

    let mut own = message.clone();
    own.content.template = Some(Template {
        name: "mine".to_owned(),
        language: "en".to_owned(),
        parameters: vec!["{text}\tas it is".to_owned()],
    });
    assert_eq!(words(&templated.provider.send(&own).await), "accepted wamid.1");
    assert_eq!(fake.requests()[2].json(), template("mine", &["{text} as it is"]));

    let first = whatsapp_cloud(&fake, &format!("text_first = true\n{TEMPLATE}"));
    fake.script([meta_error(400, 131_047)]);
    assert_eq!(words(&first.provider.send(&message).await), "accepted wamid.1");
    assert_eq!(fake.requests()[3].json(), text);
    assert_eq!(fake.requests()[4].json(), template("alert", &filled));
    fake.script([meta_error(400, 131_047), meta_error(400, 131_026)]);
    let outcome = first.provider.send(&message).await;
    assert_eq!(words(&outcome), "rejected recipient bad_recipient");
}

#[tokio::test]
async fn whatsapp_error_table() {
    let fake = Fake::start().await;
    let whatsapp_cloud = whatsapp_cloud(&fake, "");
    let code = |code| meta_error(400, code);
    let subcode = json!({ "error": { "code": 100, "error_subcode": 33, "message": "no object" } });
    let lines = [
        ("auth", code(0), "rejected lane bad_credentials"),
        ("unknown", code(1), "retry lane provider_unavailable"),
        ("service", code(2), "retry lane provider_unavailable"),
        ("capability", code(3), "rejected lane provider_refused"),
        ("app limit", code(4), "retry lane throttled"),
        ("permission", code(10), "rejected lane provider_refused"),
        ("number deleted", code(33), "rejected lane provider_refused"),
        ("parameter", code(100), "rejected content content_refused"),
        ("wrong phone_number_id", Answer::json(400, &subcode), "rejected lane provider_refused"),
        ("token", meta_error(401, 190), "rejected lane bad_credentials"),
        ("permission 200", code(200), "rejected lane provider_refused"),
        ("permission 299", code(299), "rejected lane provider_refused"),
        ("policy", code(368), "rejected lane provider_refused"),
        ("WABA limit", code(80007), "retry lane throttled"),
        ("throughput", code(130_429), "retry lane throttled"),
        ("experiment", code(130_472), "rejected recipient unreachable"),
        ("unknown", code(131_000), "retry lane provider_unavailable"),
        ("missing", code(131_008), "rejected content content_refused"),
        ("value", code(131_009), "rejected content content_refused"),
        ("service", code(131_016), "retry lane provider_unavailable"),
        ("itself", code(131_021), "rejected recipient bad_recipient"),
        ("not on WhatsApp", code(131_026), "rejected recipient bad_recipient"),
        ("test list", code(131_030), "rejected recipient bad_recipient"),
        ("locked", code(131_031), "rejected lane provider_refused"),
        ("payment", code(131_042), "rejected lane no_credit"),
        ("registration", code(131_045), "rejected lane provider_refused"),
        ("window", code(131_047), "rejected recipient window_closed"),
        ("spam limit", code(131_048), "retry lane throttled 3600s"),
        ("ecosystem", code(131_049), "rejected recipient unreachable"),
        ("stopped", code(131_050), "rejected recipient opted_out"),
        ("type", code(131_051), "rejected content content_refused"),
        ("media down", code(131_052), "rejected content content_refused"),
        ("media up", code(131_053), "rejected content content_refused"),
        // The second try: 4^2 seconds.
        ("pair limit", code(131_056), "retry endpoint throttled 16s"),
        ("maintenance", code(131_057), "retry lane provider_unavailable"),
        ("parameter count", code(132_000), "rejected content content_refused"),
        ("no template", code(132_001), "rejected content content_refused"),
        ("too long", code(132_005), "rejected content content_refused"),
        ("template policy", code(132_007), "rejected content content_refused"),
        ("template format", code(132_012), "rejected content content_refused"),
        ("template paused", code(132_015), "rejected content content_refused"),
        ("template disabled", code(132_016), "rejected content content_refused"),
        ("flow", code(132_068), "rejected content content_refused"),
        ("flow", code(132_069), "rejected content content_refused"),
        ("service", code(133_004), "retry lane provider_unavailable"),
        ("unregistered", code(133_010), "rejected lane provider_refused"),
        ("registering", code(133_016), "retry lane throttled"),
        (
            "the code and not the status",
            meta_error(500, 131_026),
            "rejected recipient bad_recipient",
        ),
        ("an error in a 200", meta_error(200, 131_026), "rejected recipient bad_recipient"),
        ("a code of tomorrow", code(139_999), "rejected account provider_refused"),
        ("a code of tomorrow, 500", meta_error(500, 139_999), "retry lane provider_unavailable"),
        ("no code", Answer::new(503), "retry lane provider_unavailable"),
        ("not Meta", Answer::new(200).body("<html>"), "unknown answered"),
        ("no id", Answer::json(200, &json!({})), "unknown answered"),
    ];
    check(&whatsapp_cloud, &fake, &whatsapp(), &lines).await;
}

#[tokio::test]
async fn a_broken_template_of_the_configuration_stops_the_lane() {
    let fake = Fake::start().await;
    let whatsapp_cloud = whatsapp_cloud(&fake, TEMPLATE);
    let lane = "rejected lane provider_refused";
    let lines = [132_000, 132_001, 132_007, 132_008, 132_012, 132_015, 132_016, 132_018]
        .map(|code| ("template", meta_error(400, code), lane));
    check(&whatsapp_cloud, &fake, &whatsapp(), &lines).await;
    // One that a message brings is the message's own.
    let mut own = whatsapp();
    own.content.template = Some(Template {
        name: "mine".to_owned(),
        language: "en".to_owned(),
        parameters: Vec::new(),
    });
    let line = ("own", meta_error(400, 132_001), "rejected content content_refused");
    check(&whatsapp_cloud, &fake, &own, &[line]).await;
    let sent = fake.requests().pop().unwrap().json();
    assert!(sent["template"].get("components").is_none(), "{sent}");
}

#[tokio::test]
async fn whatsapp_when_the_wire_breaks() {
    let fake = Fake::start().await;
    let words = ["accepted wamid.1", "retry lane connect_failed"];
    check_cuts(
        (&whatsapp_cloud(&fake, ""), &whatsapp_cloud(&fake, HASTY)),
        &fake,
        &whatsapp(),
        wamid(),
        words,
    )
    .await;
}
