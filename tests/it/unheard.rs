//! Nobody is silently unheard: two channels with two providers each, three contacts, and everything
//! fails in another way, while the process is killed twice.
//!
//! **What has to hold:** each contact hears of each alert within `fallback_after` for each channel
//! that the contact has, plus 30 seconds; where no channel reaches somebody, the fallback contact
//! hears who that is; and what arrives a second time is explained by a channel that had no success
//! in time or by an attempt without answer. `TEST_SOAK=1` makes it more alerts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::fake::{Answer, Cut, Fake, Request};
use crate::harness::{Place, found, twilio};
use crate::process::Process;

const FALLBACK_AFTER: Duration = Duration::from_secs(2);
const CHANNELS: u32 = 2;
const GRACE: Duration = Duration::from_secs(30);

const RULES: &str = r#"
[[contact]]
name = "ana"
whatsapp = "+4915550100011"
sms = "+4915550100012"
[[contact]]
name = "ben"
whatsapp = "+4915550100021"
sms = "+4915550100022"
[[contact]]
name = "cleo"
whatsapp = "+4915550100031"
sms = "+4915550100032"
[[contact]]
name = "duty"
sms = "+4915550100042"

[[rule]]
name = "flooded"
topic = "devices/{device}/pump/{pump}"
decode = "text"
severity = "critical"
to = ["ana", "ben", "cleo"]
by = ["whatsapp", "sms"]
text = "pump {{ pump }} is flooded"
"#;

/// What one provider does, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It takes what it is sent.
    Takes,
    /// It refuses our account.
    Refuses,
    /// It reads and never answers.
    Hangs,
    /// 503.
    Fails,
    /// It takes the message, and the answer is lost.
    TakesInSilence,
    /// It will not send to this recipient, ever.
    Never,
    /// It will not send to this recipient's country.
    NotThere,
}

/// One message that a provider has taken.
#[derive(Clone, Debug)]
struct Taken {
    to: String,
    text: String,
    at: Instant,
}

/// All four providers.
struct World {
    /// By provider and last two digits of the recipient; `*` for all others.
    manners: Mutex<BTreeMap<(&'static str, &'static str), Manner>>,
    taken: Mutex<Vec<Taken>>,
}

impl World {
    fn now(&self, provider: &'static str, to: &'static str, manner: Manner) {
        self.manners.lock().unwrap().insert((provider, to), manner);
    }

    fn manner(&self, provider: &str, to: &str) -> Manner {
        let manners = self.manners.lock().unwrap();
        let of = |wanted: &str| {
            let found = manners.iter().find(|((name, to), _)| *name == provider && *to == wanted);
            found.map(|(_, manner)| *manner)
        };
        of(&to[to.len() - 2..]).or_else(|| of("*")).unwrap_or(Manner::Takes)
    }

    fn take(&self, to: &str, text: &str) -> usize {
        let mut taken = self.taken.lock().unwrap();
        taken.push(Taken { to: to.to_owned(), text: text.to_owned(), at: Instant::now() });
        taken.len()
    }

    fn answer(&self, provider: &str, request: &Request) -> Answer {
        let is_sms = provider.starts_with("tw");
        if request.method != "POST" {
            // Its list cannot be had: nobody can be asked what has become of a message.
            return Answer::new(500);
        }
        let (to, text) = if is_sms {
            let form = request.form();
            (form["To"].clone(), form["Body"].clone())
        } else {
            let body = request.json();
            let text = body["text"]["body"].as_str().unwrap().to_owned();
            (format!("+{}", body["to"].as_str().unwrap()), text)
        };
        let error = |status, sms: u32, whatsapp: u32| {
            if is_sms {
                Answer::json(status, &json!({ "code": sms, "message": "no", "status": status }))
            } else {
                let error = json!({ "message": "no", "type": "OAuthException", "code": whatsapp });
                Answer::json(status, &json!({ "error": error }))
            }
        };
        let took = || {
            let number = self.take(&to, &text);
            if is_sms {
                let row = json!({ "sid": format!("SM{number:032x}"), "status": "queued" });
                return Answer::json(201, &row);
            }
            let id = json!([{ "id": format!("wamid.{number}") }]);
            Answer::json(200, &json!({ "messaging_product": "whatsapp", "messages": id }))
        };
        match self.manner(provider, &to) {
            Manner::Takes => took(),
            Manner::Refuses => error(401, 20003, 190),
            Manner::Hangs => Answer::cut(Cut::Never),
            Manner::Fails => Answer::new(503),
            Manner::TakesInSilence => took().but_cut(Cut::AfterReading),
            Manner::Never => error(400, 21610, 131_026),
            Manner::NotThere => error(400, 21408, 130_497),
        }
    }
}

fn whatsapp(name: &str, fake: &Fake) -> String {
    format!(
        "
        [[provider]]
        name = '{name}'
        kind = 'whatsapp-cloud'
        base_url = '{}'
        phone_number_id = '106540352242922'
        access_token = 'x'
        timeout = '1s'
        ",
        fake.url()
    )
}

struct Scene {
    process: Process,
    world: Arc<World>,
    /// When each alert was acknowledged.
    acknowledged: Vec<Instant>,
}

impl Scene {
    async fn start() -> Self {
        let world = World { manners: Mutex::default(), taken: Mutex::default() };
        let world = Arc::new(world);
        let mut config = String::from(
            "
            [dispatch]
            retry = { first = '50ms', max = '500ms' }
            breaker = { failures = 5, first = '100ms', max = '500ms', probe_refused = '1s' }
            [notify]
            fallback_after = { critical = '2s' }
            fallback = ['duty']
            fallback_interval = '10s'
            [channel.whatsapp]
            providers = ['wa-one', 'wa-two']
            [channel.sms]
            providers = ['tw-one', 'tw-two']
            ",
        );
        for name in ["wa-one", "wa-two", "tw-one", "tw-two"] {
            let answering = Arc::clone(&world);
            let fake = Fake::answering(move |request| answering.answer(name, request)).await;
            let provider = if name.starts_with("wa") {
                whatsapp(name, &fake)
            } else {
                format!("{}\ntimeout = '1s'\n", twilio(name, &fake).trim_end())
            };
            config.push_str(&provider);
        }
        let place = Place::new(&config).rules(RULES);
        // The contacts of every place would be a second Ana.
        place.write("rules/contacts.toml", "");
        let process = Process::start(place).await;
        Self { process, world, acknowledged: Vec::new() }
    }

    /// Each of these pumps is flooded, one after the other, and acknowledged.
    async fn flood(&mut self, count: usize) {
        let mut device = self.process.device("pump-7").connect().await;
        for _ in 0..count {
            let topic = format!("devices/pump-7/pump/{:03}", self.acknowledged.len());
            device.publishes(&topic, "1").await;
            self.acknowledged.push(Instant::now());
        }
    }

    async fn kill(&mut self) {
        self.process.kill();
        self.process.restart().await;
    }

    /// When somebody first got what says this, at one of these numbers.
    fn first(&self, numbers: &[&str], text: &str) -> Option<Instant> {
        let taken = self.world.taken.lock().unwrap();
        let mut fitting = taken.iter().filter(|one| {
            numbers.iter().any(|number| one.to.ends_with(number)) && one.text.contains(text)
        });
        fitting.next().map(|one| one.at)
    }
}

const PEOPLE: [(&str, [&str; 2]); 3] =
    [("ana", ["011", "012"]), ("ben", ["021", "022"]), ("cleo", ["031", "032"])];

#[tokio::test]
async fn nobody_is_unheard_whatever_fails_and_whenever_it_is_killed() {
    let count = if std::env::var_os("TEST_SOAK").is_some() { 30 } else { 4 };
    let mut scene = Scene::start().await;
    let world = Arc::clone(&scene.world);

    // One refuses our account, one hangs; one refuses a recipient for ever and one a country, and
    // the second for SMS loses its first answers.
    world.now("wa-one", "*", Manner::Refuses);
    world.now("wa-two", "*", Manner::Hangs);
    world.now("tw-one", "*", Manner::Fails);
    world.now("tw-one", "22", Manner::Never);
    world.now("tw-two", "22", Manner::Never);
    world.now("tw-one", "32", Manner::NotThere);
    world.now("tw-two", "12", Manner::TakesInSilence);
    scene.flood(count).await;
    scene.kill().await;
    scene.flood(count).await;
    let first_phase = scene.acknowledged.len();
    found("Ben is known to be unheard", async || scene.first(&["042"], "ben")).await;

    // WhatsApp is away, SMS is down at one and slow to come back at the other.
    world.now("wa-one", "*", Manner::Fails);
    world.now("wa-two", "*", Manner::Fails);
    for to in ["22", "32", "12", "*"] {
        world.now("tw-one", to, Manner::Hangs);
        world.now("tw-two", to, Manner::Takes);
    }
    scene.flood(count).await;
    scene.kill().await;
    scene.flood(count).await;

    // Everything works; what waits is withdrawn or goes out.
    for number in first_phase..scene.acknowledged.len() {
        for (who, numbers) in PEOPLE {
            let text = format!("pump {number:03} is flooded");
            let what = format!("{who}: {text}");
            found(&what, async || scene.first(&numbers, &text)).await;
        }
    }
    for provider in ["wa-one", "wa-two", "tw-one", "tw-two"] {
        for to in ["22", "32", "12", "*"] {
            world.now(provider, to, Manner::Takes);
        }
    }
    scene.process.api.emptied().await;

    in_time(&scene, first_phase);
    second_messages_are_explained(&scene).await;
}

/// Each contact heard of each alert in time, or somebody heard that this one could not be reached.
fn in_time(scene: &Scene, first_phase: usize) {
    let bound = FALLBACK_AFTER * CHANNELS + GRACE;
    let duty = scene.first(&["042"], "ben").expect("looked for before");
    for (number, at) in scene.acknowledged.iter().enumerate() {
        let text = format!("pump {number:03} is flooded");
        for (who, numbers) in PEOPLE {
            let heard = scene.first(&numbers, &text);
            if who == "ben" && number < first_phase {
                // No provider would reach him then: somebody else knows.
                assert!(duty <= *at + bound, "{text}: nobody knew in time that Ben had not heard");
                continue;
            }
            let heard = heard.unwrap_or_else(|| panic!("{who} never heard: {text}"));
            assert!(heard <= *at + bound, "{who} heard after {:?}: {text}", heard - *at);
        }
    }
}

/// Copies are accounted for by attempts without answer; messages on a second channel say why.
async fn second_messages_are_explained(scene: &Scene) {
    let mut of: BTreeMap<(String, String), Vec<Value>> = BTreeMap::new();
    for message in scene.process.api.messages("rule=flooded").await {
        let message = scene.process.api.message(message["id"].as_str().unwrap()).await;
        let key = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
        of.entry((key("contact"), key("text"))).or_default().push(message);
    }
    let taken = scene.world.taken.lock().unwrap().clone();
    for (who, numbers) in PEOPLE {
        for number in 0..scene.acknowledged.len() {
            let text = format!("pump {number:03} is flooded");
            let messages = &of[&(who.to_owned(), text.clone())];
            let copies = taken.iter().filter(|one| {
                one.text == text && numbers.iter().any(|number| one.to.ends_with(number))
            });
            let copies = copies.count();
            let unknown: usize = messages.iter().map(unknown_attempts).sum();
            let later = messages.iter().filter(|message| has_reason_to_be_second(message)).count();
            assert!(messages.len() <= 1 + later, "{who}, {text}: unexplained: {messages:#?}");
            assert!(
                copies <= messages.len() + unknown,
                "{who}, {text}: {copies} copies, {unknown} without answer: {messages:#?}"
            );
            assert!(
                messages.iter().all(|message| {
                    let status = message["status"].as_str().unwrap();
                    !["queued", "sending"].contains(&status)
                        && (status == "sent" || message["reason"].is_string())
                }),
                "{who}, {text}: no end, or no reason: {messages:#?}"
            );
        }
    }
}

fn unknown_attempts(message: &Value) -> usize {
    let attempts = message["attempts"].as_array().unwrap();
    attempts.iter().filter(|one| one["outcome"] == json!("unknown")).count()
}

/// It follows another that had failed or had no success in time, and says so.
fn has_reason_to_be_second(message: &Value) -> bool {
    message["fallback"]["before"].is_string()
        && message["fallback"]["notes"].as_array().is_some_and(|notes| !notes.is_empty())
}
