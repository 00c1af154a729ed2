//! Identity and rights: tokens, the HTTP hook, remembered passwords, limits on logins, bans, and
//! what `watchbell acl check` says.

use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair as RsaPair, KeySize};
use aws_lc_rs::signature::KeyPair as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use watchbell::clock::Clock;

use crate::device::{Device, Options, Version};
use crate::fake::{Answer, Cut, Fake};
use crate::harness::{Harness, Place, found};
use crate::process::{Process, Said, command};

/// Nobody is exempt from limits: the tests come from this machine.
const LIMITED: &str = "[broker]\nlimits_exempt = []\nanonymous = 'never'\n";
const NEVER: &str = "[broker]\nanonymous = 'never'\n";

/// Lets a device in, or says the CONNACK's code.
async fn login(harness: &Harness, id: &str, user: &str, password: &str) -> Result<Device, String> {
    harness.anonymous(id).login(user, password).try_connect().await
}

/// `Success`, or the CONNACK's code.
async fn code(harness: &Harness, id: &str, user: &str, password: &str) -> String {
    login(harness, id, user, password).await.map_or_else(|code| code, |_| "Success".to_owned())
}

/// Adds a device by the API: its password.
async fn add(harness: &Harness, body: Value) -> String {
    let (status, answer) = harness.api.post("/v1/devices", &body).await;
    assert_eq!(status, 201, "{answer}");
    answer["password"].as_str().unwrap_or_default().to_owned()
}

// Tokens.

/// An issuer's key pair.
struct Issuer {
    signs: EncodingKey,
    algorithm: Algorithm,
    public_pem: String,
    jwk: Value,
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let lines: Vec<&str> =
        (0..body.len()).step_by(64).map(|at| &body[at..body.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn elliptic(kid: &str) -> Issuer {
    let pair = rcgen::KeyPair::generate().unwrap();
    let point = pair.public_key_raw();
    let coordinate = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    Issuer {
        signs: EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap(),
        algorithm: Algorithm::ES256,
        public_pem: pair.public_key_pem(),
        jwk: json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "kid": kid,
            "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65]),
        }),
    }
}

fn rsa() -> Issuer {
    let pair = RsaPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let label = ["PRIVATE", "KEY"].join(" ");
    Issuer {
        signs: EncodingKey::from_rsa_pem(pem(&label, der.as_ref()).as_bytes()).unwrap(),
        algorithm: Algorithm::RS256,
        public_pem: pem("RSA PUBLIC KEY", pair.public_key().as_ref()),
        jwk: Value::Null,
    }
}

fn in_secs(secs: i64) -> i64 {
    Clock::System.now().as_secs() + secs
}

fn claims(name: &str) -> Value {
    json!({
        "sub": name, "iss": "https://issuer", "aud": ["other", "watchbell"],
        "exp": in_secs(600), "groups": ["pumps"],
    })
}

/// The claims of `name` with some of them changed; null takes one out.
fn with(name: &str, changes: &Value) -> Value {
    let mut all = claims(name);
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(all.as_object_mut().unwrap().remove(key)),
            value => all[key] = value.clone(),
        }
    }
    all
}

fn sign(issuer: &Issuer, kid: Option<&str>, claims: &Value) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(issuer.algorithm) };
    jsonwebtoken::encode(&header, claims, &issuer.signs).unwrap()
}

fn sign_hs(secret: &[u8], claims: &Value) -> String {
    let header = Header::new(Algorithm::HS256);
    jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).unwrap()
}

const SECRET: &str = "a-secret-of-at-least-thirty-two-bytes";

#[tokio::test]
async fn a_token_is_believed_only_when_everything_about_it_is_right() {
    let (curve, rivest, file, stranger) = (elliptic("a"), rsa(), elliptic("b"), elliptic("a"));
    let place = Place::new("");
    let written = |name: &str, text: &str| {
        place.write(name, text);
        place.path(name).display().to_string()
    };
    let config = format!(
        "{NEVER}
        [auth.jwt]
        algorithms = ['ES256', 'RS256', 'HS256']
        issuer = 'https://issuer'
        audience = 'watchbell'
        leeway = '5s'
        keys = [
            {{ secret = '{SECRET}' }}, {{ public_key = '{}' }}, {{ public_key = '{}' }},
            {{ jwks = '{}' }},
        ]
        [[access]]
        who = {{ group = 'pumps' }}
        publish = ['pumps/{{identity}}']
        ",
        written("curve.pem", &curve.public_pem),
        written("rivest.pem", &rivest.public_pem),
        written("jwks.json", &json!({ "keys": [file.jwk] }).to_string()),
    );
    let harness = place.configured(&config).start().await;
    let good = claims("p1");
    let es384 = Header { alg: Algorithm::ES384, ..Header::default() };
    let cut = |token: String| token[..token.len() - 4].to_owned();
    let unsigned = |alg: &str| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(&json!({ "alg": alg, "typ": "JWT" })), part(&good))
    };
    let bad = "BadUserNamePassword";
    for (name, token, expected) in [
        ("ES256", sign(&curve, None, &good), "Success"),
        ("RS256", sign(&rivest, None, &good), "Success"),
        ("HS256", sign_hs(SECRET.as_bytes(), &good), "Success"),
        ("a key of the file, by its id", sign(&file, Some("b"), &good), "Success"),
        ("a key of the file, without", sign(&file, None, &good), "Success"),
        ("a fixed key and any id", sign(&curve, Some("x"), &good), "Success"),
        ("one audience", sign(&curve, None, &with("p1", &json!({"aud": "watchbell"}))), "Success"),
        ("no groups", sign(&curve, None, &with("p1", &json!({"groups": null}))), "Success"),
        (
            "within the leeway",
            sign(&curve, None, &with("p1", &json!({"exp": in_secs(-2)}))),
            "Success",
        ),
        ("another key", sign(&stranger, None, &good), bad),
        ("another key under a known id", sign(&stranger, Some("b"), &good), bad),
        ("the public key as a secret", sign_hs(rivest.public_pem.as_bytes(), &good), bad),
        ("none", unsigned("none"), bad),
        ("None", unsigned("None"), bad),
        ("HS256 without a signature", unsigned("HS256"), bad),
        ("a cut signature", cut(sign(&curve, None, &good)), bad),
        ("expired", sign(&curve, None, &with("p1", &json!({"exp": in_secs(-10)}))), bad),
        ("without end", sign(&curve, None, &with("p1", &json!({"exp": null}))), bad),
        ("an end that is text", sign(&curve, None, &with("p1", &json!({"exp": "2030"}))), bad),
        ("not yet", sign(&curve, None, &with("p1", &json!({"nbf": in_secs(60)}))), bad),
        ("issuer", sign(&curve, None, &with("p1", &json!({"iss": "https://other"}))), bad),
        ("no issuer", sign(&curve, None, &with("p1", &json!({"iss": null}))), bad),
        ("audience", sign(&curve, None, &with("p1", &json!({"aud": "other"}))), bad),
        ("no audience", sign(&curve, None, &with("p1", &json!({"aud": null}))), bad),
        ("nobody", sign(&curve, None, &with("p1", &json!({"sub": null}))), bad),
        ("empty", sign(&curve, None, &with("p1", &json!({"sub": ""}))), bad),
        ("groups of numbers", sign(&curve, None, &with("p1", &json!({"groups": [1]}))), bad),
        ("somebody else", sign(&curve, None, &claims("p2")), "NotAuthorized"),
        (
            "an algorithm that is not listed",
            jsonwebtoken::encode(
                &Header::new(Algorithm::HS512),
                &good,
                &EncodingKey::from_secret(SECRET.as_bytes()),
            )
            .unwrap(),
            bad,
        ),
        (
            "a header alone",
            format!("{}..", URL_SAFE_NO_PAD.encode(serde_json::to_vec(&es384).unwrap())),
            bad,
        ),
    ] {
        assert_eq!(code(&harness, "p1", "whoever", &token).await, expected, "{name}");
    }
    let token = sign(&curve, None, &good);
    let old = harness.anonymous("p1").version(Version::V311).login("x", "no token").try_connect();
    assert_eq!(old.await.err().as_deref(), Some("BadUserNamePassword"));
    let mut device = login(&harness, "p1", "pumps", &token).await.unwrap();
    device.publishes("pumps/p1", "x").await;
    assert_eq!(device.publish("pumps/p2", "x").await, "NotAuthorized");
    // A certificate of one and a token of another.
    let both = harness.device("p2").login("x", &token).try_connect().await;
    assert_eq!(both.err().as_deref(), Some("NotAuthorized"));
    assert!(harness.device("p1").login("x", &token).try_connect().await.is_ok());
}

#[tokio::test]
async fn a_connection_ends_with_its_token() {
    let config = format!(
        "{NEVER}\n[auth.jwt]\nalgorithms = ['HS256']\nkeys = [{{ secret = '{SECRET}' }}]\nleeway = '0s'\n\
         client_id_claim = 'device'"
    );
    let harness = Harness::start(&config).await;
    let token = |exp: i64| {
        let claims = json!({ "sub": "someone", "device": "p1", "exp": exp });
        sign_hs(SECRET.as_bytes(), &claims)
    };
    let mut lasting = harness.anonymous("p1").login("x", &token(in_secs(600))).connect().await;
    assert_eq!(code(&harness, "p2", "x", &token(in_secs(600))).await, "NotAuthorized");
    lasting.publishes("devices/p1/x", "still there").await;
    drop(lasting);
    let mut short = harness.anonymous("p1").login("x", &token(in_secs(3))).connect().await;
    assert_eq!(short.closed().await, "MaximumConnectTime");
    harness.api.counted("connections_closed_total{reason=\"credential_expired\"}", 1).await;
}

#[tokio::test]
async fn a_changed_jwks_file_is_taken_and_a_bad_one_is_not() {
    let (first, second) = (elliptic("first"), elliptic("second"));
    let place = Place::new("");
    let path = place.path("jwks.json");
    let write = |keys: &str| {
        // As an operator is told to: beside, and renamed.
        std::fs::write(path.with_extension("new"), keys).unwrap();
        std::fs::rename(path.with_extension("new"), &path).unwrap();
    };
    write(&json!({ "keys": [first.jwk] }).to_string());
    let config = format!(
        "{NEVER}\n[auth.jwt]\nalgorithms = ['ES256']\nkeys = [{{ jwks = '{}' }}]",
        path.display()
    );
    let harness = place.configured(&config).start().await;
    let old = sign(&first, Some("first"), &claims("p1"));
    let new = sign(&second, Some("second"), &claims("p1"));
    assert_eq!(code(&harness, "p1", "x", &old).await, "Success");
    assert_eq!(code(&harness, "p1", "x", &new).await, "BadUserNamePassword");
    write(&json!({ "keys": [second.jwk] }).to_string());
    let taken = async || (code(&harness, "p1", "x", &new).await == "Success").then_some(());
    found("the second key", taken).await;
    assert_eq!(code(&harness, "p1", "x", &old).await, "BadUserNamePassword");
    write("{ \"keys\": [");
    tokio::time::timeout(Duration::from_secs(5), async {
        // The unknown id makes it look again.
        while code(&harness, "p1", "x", &old).await == "Success" {}
    })
    .await
    .unwrap();
    assert_eq!(code(&harness, "p1", "x", &new).await, "Success");
}

// The hook.

async fn hooked(fake: &Fake, more: &str) -> Harness {
    let url = fake.url();
    let config = format!(
        "{NEVER}\n[auth.http]\nurl = '{url}/who?key=t0p'\ntoken = 'hook-token'\ntimeout = '500ms'\n{more}\n\
         [[access]]\nwho = {{ group = 'hooked' }}\npublish = ['hooked']"
    );
    Harness::start(&config).await
}

#[tokio::test]
async fn the_hook_lets_in_by_a_plain_yes_only() {
    let fake = Fake::start().await;
    let harness = hooked(&fake, "cache = '0s'\ncache_refused = '0s'").await;
    let yes = json!({ "allow": true });
    let (bad, silent) = ("BadUserNamePassword", "ServerUnavailable");
    let huge = json!({ "allow": true, "more": "x".repeat(20_000) });
    for (name, answer, expected) in [
        ("yes", Answer::json(200, &yes), "Success"),
        ("no", Answer::json(200, &json!({ "allow": false })), bad),
        ("401", Answer::json(401, &yes), bad),
        ("403", Answer::new(403), bad),
        ("404", Answer::new(404), bad),
        ("429", Answer::new(429), silent),
        ("204", Answer::new(204), silent),
        ("301", Answer::json(301, &yes).header("location", "/elsewhere"), silent),
        ("500", Answer::json(500, &yes), silent),
        ("503", Answer::new(503), silent),
        ("garbage", Answer::new(200).body("<html>"), silent),
        ("no word on it", Answer::json(200, &json!({})), silent),
        ("a text", Answer::json(200, &json!({ "allow": "true" })), silent),
        ("huge", Answer::json(200, &huge), silent),
        ("slow", Answer::json(200, &yes).delay(Duration::from_secs(5)), silent),
        ("cut", Answer::cut(Cut::InBody), silent),
        ("gone", Answer::cut(Cut::AfterReading), silent),
        (
            "another id",
            Answer::json(200, &json!({ "allow": true, "identity": "p9" })),
            "NotAuthorized",
        ),
        (
            "its id",
            Answer::json(200, &json!({ "allow": true, "identity": "p9", "client_ids": ["p*"] })),
            "Success",
        ),
    ] {
        fake.script([answer]);
        assert_eq!(code(&harness, "p1", "p1", "pass-word").await, expected, "{name}");
    }
    let asked = fake.requests().pop().unwrap();
    assert_eq!(asked.header("authorization"), "Bearer hook-token");
    assert_eq!(
        asked.json(),
        json!({
            "client_id": "p1", "user": "p1", "password": "pass-word", "identity": null,
            "peer": "127.0.0.1", "listener": "mqtt",
        })
    );
    fake.stop().await;
    assert_eq!(code(&harness, "p1", "p1", "pass-word").await, silent);
    assert!(harness.api.metric("refused_total{reason=\"auth_unavailable\"}").await >= 9);
}

#[tokio::test]
async fn the_hook_is_asked_once_and_only_about_strangers() {
    let fake = Fake::answering(|request| {
        let is_p1 = request.json()["password"] == json!("right");
        let yes = json!({ "allow": is_p1, "groups": ["hooked"], "identity": "p1" });
        Answer::json(200, &yes)
    })
    .await;
    let harness = hooked(&fake, "cache_refused = '1h'\ncache = '1h'").await;
    let password = add(&harness, json!({ "user": "known" })).await;
    assert_eq!(code(&harness, "known", "known", &password).await, "Success");
    assert_eq!(code(&harness, "known", "known", "right").await, "BadUserNamePassword");
    assert_eq!(fake.count(), 0, "a wrong password of a device in the store went to the hook");
    for _ in 0..5 {
        assert_eq!(code(&harness, "p1", "p1", "right").await, "Success");
        assert_eq!(code(&harness, "p1", "p1", "wrong").await, "BadUserNamePassword");
    }
    assert_eq!(fake.count(), 2);
    let mut device = login(&harness, "p1", "p1", "right").await.unwrap();
    device.publishes("hooked", "x").await;
    // Without a user name there is nothing to ask about.
    assert_eq!(harness.anonymous("p1").try_connect().await.err().as_deref(), Some("NotAuthorized"));
    assert!(harness.device("p7").try_connect().await.is_ok());
    assert_eq!(fake.count(), 2);
}

// Passwords.

#[tokio::test]
async fn a_remembered_password_does_not_outlive_its_device() {
    let harness = Harness::start(NEVER).await;
    let old = add(&harness, json!({ "user": "p1" })).await;
    for _ in 0..3 {
        assert_eq!(code(&harness, "p1", "p1", &old).await, "Success");
    }
    let new = add(&harness, json!({ "user": "p1", "password": "chosen by hand" })).await;
    assert_eq!(new, "", "a password that was given is not answered");
    assert_eq!(code(&harness, "p1", "p1", &old).await, "BadUserNamePassword");
    for _ in 0..3 {
        assert_eq!(code(&harness, "p1", "p1", "chosen by hand").await, "Success");
    }
    assert_eq!(harness.api.ask("DELETE", "/v1/devices/p1", None).await.0, 204);
    assert_eq!(code(&harness, "p1", "p1", "chosen by hand").await, "BadUserNamePassword");
}

#[tokio::test]
async fn a_device_is_in_its_groups() {
    let config = format!(
        "{NEVER}\n[[access]]\nwho = {{ group = 'pump*' }}\npublish = ['pumps/{{client_id}}']"
    );
    let harness = Harness::start(&config).await;
    let password = add(&harness, json!({ "user": "p1", "groups": ["north", "pumps"] })).await;
    let mut device = login(&harness, "p1", "p1", &password).await.unwrap();
    device.publishes("pumps/p1", "x").await;
    assert_eq!(device.publish("devices/p1/x", "x").await, "NotAuthorized");
    let listed = harness.api.get("/v1/devices").await;
    assert_eq!(listed["devices"][0]["groups"], json!(["north", "pumps"]));
    let wrong = json!({ "user": "p2", "groups": ["a b"] });
    assert_eq!(harness.api.post("/v1/devices", &wrong).await.0, 422);
}

#[tokio::test]
async fn an_identity_may_have_several_client_ids() {
    let config = format!("{NEVER}\n[auth]\nclient_ids = ['{{identity}}', '{{identity}}-*']");
    let harness = Harness::start(&config).await;
    for (client_id, expected) in [
        ("p1", None),
        ("p1-a", None),
        ("p2", Some("NotAuthorized")),
        ("p1a", Some("NotAuthorized")),
    ] {
        let device = Options { client_id: client_id.to_owned(), ..harness.device("p1") };
        assert_eq!(device.try_connect().await.err().as_deref(), expected, "{client_id}");
    }
}

// Limits.

#[tokio::test]
async fn passwords_guessed_by_the_thousand_do_not_keep_the_right_device_out() {
    let config = format!("{LIMITED}failed_logins_per_address_max = 30\nfailed_logins_ban = '10m'");
    let harness = Harness::start(&config).await;
    let (p1, p2) = (
        add(&harness, json!({ "user": "p1" })).await,
        add(&harness, json!({ "user": "p2" })).await,
    );
    assert_eq!(code(&harness, "p1", "p1", &p1).await, "Success");
    let mut counts = (0, 0);
    for guess in 0..1000 {
        match &*code(&harness, "p3", "p3", &format!("guess {guess}")).await {
            "BadUserNamePassword" => counts.0 += 1,
            "ConnectionRateExceeded" => counts.1 += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(counts, (10, 990), "one user name from one address is heard ten times");
    // Whom nobody has guessed at gets in from the same address, also for the first time.
    assert_eq!(code(&harness, "p2", "p2", &p2).await, "Success");
    for user in ["p4", "p5"] {
        for guess in 0..12 {
            code(&harness, user, user, &format!("guess {guess}")).await;
        }
    }
    // The address has used up its guesses: no stranger is heard any more, and whoever was right a
    // short while ago is, and a certificate too.
    assert_eq!(code(&harness, "p6", "p6", "guess").await, "ConnectionRateExceeded");
    assert_eq!(code(&harness, "p1", "p1", &p1).await, "Success");
    assert_eq!(code(&harness, "p2", "p2", &p2).await, "Success");
    assert!(harness.device("p7").try_connect().await.is_ok());
    // Guesses at a remembered password count.
    for guess in 0..10 {
        assert_eq!(code(&harness, "p1", "p1", &format!("{guess}")).await, "ConnectionRateExceeded");
    }
    assert_eq!(code(&harness, "p1", "p1", &p1).await, "ConnectionRateExceeded");
    assert_eq!(code(&harness, "p2", "p2", &p2).await, "Success");
}

/// Behind one address seventy devices send the same user name, each with a token of its own. One
/// whose token had expired locked nine of them out in four minutes.
#[tokio::test]
async fn one_expired_token_locks_no_good_one_of_its_address_out() {
    let secret = b"0123456789abcdef0123456789abcdef";
    let config = format!(
        "{LIMITED}failed_logins_max = 3\nfailed_logins_per_address_max = 20\n\
         failed_logins_window = '1s'\nfailed_logins_ban = '1s'\nfailed_logins_ban_max = '1h'\n\
         [auth.jwt]\nalgorithms = ['HS256']\nkeys = [{{ secret = '{}' }}]\n",
        String::from_utf8_lossy(secret)
    );
    let harness = Harness::start(&config).await;
    let good = |name: &str| sign_hs(secret, &claims(name));
    let expired = sign_hs(secret, &with("old", &json!({ "exp": in_secs(-3600) })));
    // Longer than the ban, which grows each time.
    let mut refused = [0, 0];
    for number in 0..70 {
        for _ in 0..5 {
            match &*code(&harness, "old", "jwt", &expired).await {
                "BadUserNamePassword" => refused[0] += 1,
                "ConnectionRateExceeded" => refused[1] += 1,
                other => panic!("{other}"),
            }
        }
        let name = format!("p{number}");
        assert_eq!(code(&harness, &name, "jwt", &good(&name)).await, "Success", "{number}");
    }
    assert!(refused[0] >= 2 && refused[1] > 300, "{refused:?}");
    // With a new token it is in at once.
    assert_eq!(code(&harness, "old", "jwt", &good("old")).await, "Success");
}

#[tokio::test]
async fn passwords_and_garbage_that_were_guessed_keep_no_good_token_out_and_no_other_way_round() {
    let secret = b"0123456789abcdef0123456789abcdef";
    let config = format!(
        "{LIMITED}failed_logins_max = 3\nfailed_logins_per_address_max = 20\nfailed_logins_ban = '10m'\n\
         [auth.jwt]\nalgorithms = ['HS256']\nkeys = [{{ secret = '{}' }}]\n",
        String::from_utf8_lossy(secret)
    );
    let harness = Harness::start(&config).await;
    let password = add(&harness, json!({ "user": "p1" })).await;
    let good = sign_hs(secret, &claims("p2"));
    // Garbage counts for garbage: it is limited, and passwords are heard.
    let mut codes = std::collections::BTreeMap::<String, u32>::new();
    for guess in 0..100_u8 {
        let forged = sign_hs(&[guess; 32], &claims("p2"));
        *codes.entry(code(&harness, "p2", "jwt", &forged).await).or_default() += 1;
    }
    assert_eq!(codes["BadUserNamePassword"], 19);
    assert_eq!(codes["ConnectionRateExceeded"], 81);
    assert_eq!(code(&harness, "p2", "jwt", &good).await, "Success");
    assert_eq!(code(&harness, "p1", "p1", &password).await, "Success");
    // Passwords count for passwords.
    for user in 0..10 {
        for guess in 0..3 {
            let user = format!("jwt{user}");
            code(&harness, &user, &user, &format!("guess {guess}")).await;
        }
    }
    assert_eq!(code(&harness, "p3", "p3", "guess").await, "ConnectionRateExceeded");
    assert_eq!(code(&harness, "p2", "jwt0", &good).await, "Success");
}

/// The hook's users were not among those that were right a short while ago.
#[tokio::test]
async fn a_token_that_the_hook_refuses_does_not_lock_out_those_that_it_has_accepted() {
    let secret = b"0123456789abcdef0123456789abcdef";
    let good = sign_hs(secret, &claims("p1"));
    let accepted = good.clone();
    let fake = Fake::answering(move |request| {
        let is_good = request.json()["password"] == json!(accepted);
        Answer::json(200, &json!({ "allow": is_good }))
    })
    .await;
    let config = format!(
        "{LIMITED}failed_logins_max = 3\nfailed_logins_per_address_max = 20\nfailed_logins_ban = '10m'\n\
         [auth.http]\nurl = '{}/who'\n",
        fake.url()
    );
    let harness = Harness::start(&config).await;
    assert_eq!(code(&harness, "jwt", "jwt", &good).await, "Success");
    for guess in 0..60_u8 {
        let forged = sign_hs(&[guess; 32], &claims("p1"));
        code(&harness, "jwt", "jwt", &forged).await;
        code(&harness, "other", "other", &format!("{guess}")).await;
    }
    let forged = sign_hs(&[200; 32], &claims("p1"));
    assert_eq!(code(&harness, "jwt", "jwt", &forged).await, "ConnectionRateExceeded");
    assert_eq!(code(&harness, "jwt", "jwt", &good).await, "Success");
}

#[tokio::test]
async fn a_client_that_flaps_is_refused_and_nobody_else() {
    let config = format!("{LIMITED}flapping_connects_max = 5\nflapping_ban = '2s'");
    let harness = Harness::start(&config).await;
    for _ in 0..5 {
        assert!(harness.device("p1").try_connect().await.is_ok());
    }
    let refused = harness.device("p1").try_connect().await.err();
    assert_eq!(refused.as_deref(), Some("ConnectionRateExceeded"));
    assert!(harness.device("p2").try_connect().await.is_ok());
    harness.api.counted("refused_total{reason=\"rate_limited\"}", 1).await;
    let back = async || harness.device("p1").try_connect().await.ok().map(drop);
    found("the end of the refusal", back).await;
}

// Bans.

#[tokio::test]
async fn a_ban_holds_at_once_and_after_a_restart() {
    let harness = Harness::start("").await;
    let mut device = harness.device("p1").connect().await;
    let mut other = harness.device("p2").connect().await;
    let ban = json!({ "kind": "client_id", "value": "p1", "why": "stolen" });
    assert_eq!(harness.api.post("/v1/bans", &ban).await.0, 201);
    assert_eq!(device.closed().await, "AdministrativeAction");
    harness.api.counted("connections_closed_total{reason=\"banned\"}", 1).await;
    other.publishes("devices/p2/x", "still there").await;
    drop(other);
    let harness = harness.stop().await.start().await;
    assert_eq!(harness.device("p1").try_connect().await.err().as_deref(), Some("Banned"));
    let old = harness.device("p1").version(Version::V311).try_connect().await;
    assert_eq!(old.err().as_deref(), Some("NotAuthorized"));
    let listed = harness.api.get("/v1/bans").await;
    assert_eq!(
        (&listed["bans"][0]["value"], &listed["bans"][0]["why"]),
        (&json!("p1"), &json!("stolen"))
    );
    assert_eq!(harness.api.ask("DELETE", "/v1/bans/client_id/p1", None).await.0, 204);
    assert_eq!(harness.api.ask("DELETE", "/v1/bans/client_id/p1", None).await.0, 404);
    let back = async || harness.device("p1").try_connect().await.ok().map(drop);
    found("the end of the ban", back).await;
}

#[tokio::test]
async fn bans_are_about_identity_user_and_address_too() {
    let harness = Harness::start("").await;
    let password = add(&harness, json!({ "user": "u1" })).await;
    for (kind, value) in [("identity", "p*"), ("user", "u1"), ("address", "127.0.0.0/8")] {
        let ban = json!({ "kind": kind, "value": value, "for": "1h" });
        let (status, answer) = harness.api.post("/v1/bans", &ban).await;
        assert_eq!(status, 201, "{answer}");
        assert!(answer["until"].is_string(), "{answer}");
        let (certificate, user, anonymous) = match kind {
            "identity" => (Err("Banned"), Ok(()), Ok(())),
            "user" => (Ok(()), Err("Banned"), Ok(())),
            // Closed before a word.
            _ => (Err(""), Err(""), Err("")),
        };
        let check = async |options: Options, expected: Result<(), &str>| {
            let held = async || {
                let result = options.clone().try_connect().await.map(drop);
                match (&result, expected) {
                    (Ok(()), Ok(())) => Some(()),
                    (Err(code), Err(expected)) => {
                        (expected.is_empty() || code == expected).then_some(())
                    }
                    _ => None,
                }
            };
            found(&format!("{kind}: {expected:?}"), held).await;
        };
        check(harness.device("p1"), certificate).await;
        check(harness.anonymous("u1").login("u1", &password), user).await;
        check(harness.anonymous("a1"), anonymous).await;
        let path = format!("/v1/bans/{kind}/{}", value.replace('/', "%2F").replace('*', "%2A"));
        assert_eq!(harness.api.ask("DELETE", &path, None).await.0, 204);
    }
    for (body, part) in [
        (json!({ "kind": "peer", "value": "x" }), "kind: client_id, identity"),
        (json!({ "kind": "address", "value": "10.0.0" }), "no address range"),
        (json!({ "kind": "user", "value": "" }), "1 to 256 bytes"),
        (json!({ "kind": "user", "value": "x", "for": "soon" }), "for"),
    ] {
        let (status, answer) = harness.api.post("/v1/bans", &body).await;
        assert!(status == 422 && answer["detail"].as_str().unwrap().contains(part), "{answer}");
    }
}

#[tokio::test]
async fn there_are_only_so_many_bans() {
    let harness = Harness::start("[store]\nbans_max = 2").await;
    for (value, expected) in [("a", 201), ("b", 201), ("a", 201), ("c", 409)] {
        let ban = json!({ "kind": "user", "value": value });
        assert_eq!(harness.api.post("/v1/bans", &ban).await.0, expected, "{value}");
    }
}

#[tokio::test]
async fn the_commands_ban_and_say_why_with_and_without_an_instance() {
    let place = Place::new("");
    let said = command(&place, &["ban", "add", "--client-id", "p1", "--for", "1h"]).await;
    assert_eq!((said.code, &*said.err), (0, ""), "{said:?}");
    assert!(said.out.starts_with("banned client_id p1 until 20"), "{said:?}");
    let process = Process::start(place).await;
    assert_eq!(process.device("p1").try_connect().await.err().as_deref(), Some("Banned"));
    process.done(&["ban", "add", "--address", "203.0.113.9/24", "--why", "scanner"]).await;
    let listed = process.done(&["ban", "list"]).await;
    for part in ["client_id  p1", "203.0.113.0/24", "removed", "scanner"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    process.done(&["ban", "remove", "--address", "203.0.113.0/24"]).await;
    process.done(&["ban", "remove", "--client-id", "p1"]).await;
    let why = process.refused(&["ban", "remove", "--client-id", "p1"]).await;
    assert!(why.contains("no ban on client_id `p1`"), "{why}");
    assert_eq!(process.done(&["ban", "list"]).await, "Nobody is banned.\n");
    let neither = command(&process.place, &["ban", "add"]).await;
    assert!(neither.code == 2 && neither.err.contains("--client-id"), "{neither:?}");
}

// `acl check`.

const RIGHTS: &str = "# rights
[[access]]
who       = { group = 'pumps' }
publish   = ['site/{client_id}/#']
subscribe = ['site/{client_id}/cmd/#', 'all/#']
deny      = [
  'site/+/keys/#',
  'all/secret/#',
]

[[access]]
who     = { client_id = 'bad*' }
publish = ['x/{identity}']
";

fn check_said(said: &Said, code: i32, parts: &[&str]) {
    assert_eq!(said.code, code, "{said:?}");
    for part in parts {
        assert!(said.out.contains(part) || said.err.contains(part), "{part}: {said:?}");
    }
}

#[tokio::test]
async fn acl_check_names_the_line_that_decides() {
    let place = Place::new(RIGHTS);
    let added = command(&place, &["device", "add", "p1", "--group", "pumps"]).await;
    assert!(added.code == 0 && added.out.contains("groups pumps"), "{added:?}");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["p1", "publish", "site/p1/temp"],
            0,
            &[
                "allowed: publish site/p1/temp (client id p1, user p1, groups pumps)",
                "watchbell.toml:4: access[0]: publish \"site/{client_id}/#\" allows it",
            ],
        ),
        (
            &["p1", "publish", "site/p1/keys/a"],
            1,
            &["watchbell.toml:7: access[0]: deny \"site/+/keys/#\" forbids it"],
        ),
        (
            &["p1", "publish", "site/p2/temp"],
            1,
            &["denied", "watchbell.toml:2: access[0] is the first", "`publish` does not list it"],
        ),
        (
            &["p1", "subscribe", "all/#"],
            0,
            &[
                "watchbell.toml:5",
                "watchbell.toml:8: access[0]: deny \"all/secret/#\" is held back",
            ],
        ),
        (&["p1", "subscribe", "$share/g/all/#"], 0, &["watchbell.toml:5"]),
        (
            &["p1", "subscribe", "all/secret/a"],
            1,
            &["watchbell.toml:8: access[0]: deny \"all/secret/#\" forbids it"],
        ),
        (&["p1", "subscribe", "#"], 1, &["watchbell.toml:5", "would be a part of it"]),
        (&["p2", "publish", "devices/p2/x"], 0, &["identity p2", "by default it has devices/p2/#"]),
        (&["p2", "publish", "site/p2/x"], 1, &["no [[access]] is about it"]),
        (&["p2", "publish", "site/p2/x", "--group", "pumps"], 0, &["groups pumps"]),
        (
            &["bad1", "publish", "x/y", "--identity", "a/b"],
            1,
            &["watchbell.toml:11: access[1] grants this client nothing", "{identity}"],
        ),
        (
            &["p2", "publish", "anything", "--anonymous"],
            0,
            &["an anonymous client has every topic"],
        ),
        (&["p2", "publish", "a/+"], 2, &["error: a/+"]),
        (&["p2", "subscribe", "a/#/b"], 2, &["error: a/#/b"]),
        (&["p2", "read", "a"], 2, &["publish, subscribe"]),
    ];
    let check = async |place: &Place| {
        for (arguments, code, parts) in cases {
            let arguments = [&["acl", "check"], *arguments].concat();
            check_said(&command(place, &arguments).await, *code, parts);
        }
    };
    check(&place).await;
    let process = Process::start(place).await;
    check(&process.place).await;
    process.place.write("watchbell.toml", "[[access]]\npublish = ['a']\n");
    let said = command(&process.place, &["acl", "check", "p1", "publish", "a"]).await;
    check_said(&said, 2, &["watchbell.toml:1: access[0].who: names nobody"]);
}
