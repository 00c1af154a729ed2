//! Intake with a real store: what a verdict promises.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use watchbell::clock::{Clock, Timestamp};
use watchbell::dispatch::{self, Dispatcher};
use watchbell::intake::pipeline::Pipeline;
use watchbell::intake::ruleset::{Limits, RuleSet};
use watchbell::intake::{self, Intake, Ticket, Verdict};
use watchbell::model::{IdSource, Publish, Qos, Reason, RunId};
use watchbell::problem::TomlFile;
use watchbell::store::Store;
use watchbell::telemetry::Metrics;
use watchbell::topic::{TopicLimits, TopicName};

const RULES: &str = r#"
[[contact]]
name = "ana"
sms = "+4915550100001"
[[rule]]
name = "hot"
topic = "oven/{unit}"
when = "payload.temp > 200"
to = ["ana"]
text = "hot"
"#;

/// Intake on `store` with these rules, and the sign that its thread has ended. The dispatcher never
/// runs: messages stay where intake put them.
pub(crate) async fn start(
    store: &Store,
    metrics: &Metrics,
    rules: &str,
) -> (Intake, oneshot::Receiver<()>, Dispatcher) {
    let parts = dispatch::Parts {
        store: store.clone(),
        clock: Clock::System,
        metrics: metrics.clone(),
        run: RunId::new(IdSource::new(1).next(Timestamp::default())),
        lanes: Vec::new(),
        routes: BTreeMap::new(),
        notify: Default::default(),
    };
    let (dispatch, dispatcher) = Dispatcher::open(&Default::default(), parts).await.unwrap();
    let limits = Limits::default();
    let rules = TomlFile::parse("rules.toml", rules).unwrap();
    let parts = intake::Parts {
        step: None,
        store: store.clone(),
        dispatch,
        clock: Clock::System,
        metrics: metrics.clone(),
        rules: RuleSet::parse(&[rules], &limits).unwrap(),
        pipeline: Pipeline::new(
            IdSource::new(2),
            &limits.rules,
            &limits.contacts,
            Duration::from_secs(3600),
        ),
        stopped_at: None,
        ids: IdSource::new(3),
        expires_in: Duration::from_secs(3600),
    };
    let (intake, ended) = intake::start(&intake::Config::default(), parts).unwrap();
    (intake, ended, dispatcher)
}

/// The store fails under a publish that fires; a second one, which changes nothing any more, was
/// acknowledged all the same, with nothing on disk.
#[tokio::test]
async fn a_publish_that_changed_nothing_was_acknowledged_by_a_failed_store() {
    let directory = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let store = Store::open(directory.path(), &Default::default(), &metrics).unwrap();
    let (intake, _ended, _dispatcher) = start(&store, &metrics, RULES).await;
    let (to, mut verdicts) = mpsc::channel(8);
    let mut publish = async |number, payload: &'static [u8]| {
        let publish = Publish {
            topic: TopicName::parse("oven/1", TopicLimits::default()).unwrap(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain: false,
            replayed: false,
            client_id: "oven".into(),
            identity: None,
            received_at: Timestamp::default(),
            properties: None,
        };
        let matches = intake.matches(&publish.topic).unwrap();
        intake.submit(Arc::new(publish), matches, Ticket { number, to: to.clone() }).await;
        verdicts.recv().await.unwrap()
    };
    assert_eq!(publish(1, br#"{"temp": 20}"#).await, (1, Verdict::Durable));
    // Closed is failed: it takes no more writes.
    store.close().await.unwrap();
    let refused = Verdict::Refused(Reason::StoreFailed);
    assert_eq!(publish(2, br#"{"temp": 250}"#).await, (2, refused));
    assert_eq!(publish(3, br#"{"temp": 250}"#).await, (3, refused));
}
