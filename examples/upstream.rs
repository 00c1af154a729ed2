//! Watchbell beside a broker that a plant has already: an alert from its devices, a command back.
//!
//! ```text
//! cargo run --example upstream                      then, in another terminal:
//! mosquitto_sub -p PORT -t 'cmd/#' -v               the plant's PORT is printed
//! mosquitto_pub -p PORT -q 1 -t devices/oven-1/telemetry -m '{"temp": 250}'
//! cargo run --example upstream -- --self-test       offline, needs nothing
//! ```
//!
//! The plant's broker is rumqttd, in this process. Watchbell runs with the configuration and the
//! rule below, which are all that a plant needs: its devices stay as they are. The alert shows on
//! the virtual phone, as long as no provider is configured; at each alert an operator's program,
//! which knows only Watchbell, sends a command, and the device gets it from the plant's broker.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use watchbell::app::{App, StartError};
use watchbell::clock::Clock;
use watchbell::config::layers::{FileLayer, Layers};

const RULES: &str = r#"
[[contact]]
name = "ana"
push = "topic:plant"

[[rule]]
name = "oven-hot"
topic = "plant/devices/{oven}/telemetry"
when = "payload.temp > 220.0"
to = ["ana"]
text = "{{ oven }}: {{ payload.temp }} °C"
text_clear = "{{ oven }} is cool again"

[[rule]]
name = "plant-away"
topic = "$watchbell/upstream/{upstream}"
when = "!payload.connected"
to = ["ana"]
text = "{{ upstream }} is away: {{ payload.reason }}"
text_clear = "{{ upstream }} is back"
"#;

/// For each step of the self-test; on a loaded machine too.
const PATIENCE: Duration = Duration::from_secs(60);

fn configuration(plant: SocketAddr, directory: &str) -> String {
    format!(
        "
        data_dir = '{directory}/data'
        rules_dir = '{directory}/rules'

        [broker]
        listen = '127.0.0.1:0'
        listen_tls = ''
        client_ca = ''

        [api]
        listen = '127.0.0.1:0'

        [[upstream]]
        name = 'plant'
        url = ['mqtt://{plant}']
        version = '3.1.1'
        subscribe = ['devices/#']
        prefix = 'plant/'
        publish = ['cmd/#']
        backoff_min = '100ms'
        "
    )
}

/// The plant's broker, MQTT 3.1.1 without TLS. It lasts as long as this process.
fn start_plant() -> anyhow::Result<SocketAddr> {
    let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let connections = rumqttd::ConnectionSettings {
        connection_timeout_ms: 10_000,
        max_payload_size: 1 << 20,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: false,
    };
    let server = |name: &str, listen| {
        let server = rumqttd::ServerSettings {
            name: name.to_owned(),
            listen,
            tls: None,
            next_connection_delay_ms: 1,
            connections: connections.clone(),
        };
        std::collections::HashMap::from([(name.to_owned(), server)])
    };
    let config = rumqttd::Config {
        id: 0,
        router: rumqttd::RouterConfig {
            max_connections: 100,
            max_outgoing_packet_count: 200,
            max_segment_size: 1 << 20,
            max_segment_count: 10,
            custom_segment: None,
            initialized_filters: None,
            shared_subscriptions_strategy: rumqttd::Strategy::default(),
        },
        // A listener of rumqttd speaks one version; mosquitto's clients speak 3.1.1 by themselves.
        v4: Some(server("plant", listen)),
        v5: None,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    };
    // Its error is large, and nobody asks for it.
    std::thread::spawn(move || rumqttd::Broker::new(config).start().is_ok());
    Ok(listen)
}

async fn start_watchbell(plant: SocketAddr, directory: &str) -> anyhow::Result<App> {
    std::fs::create_dir(format!("{directory}/rules"))?;
    std::fs::write(format!("{directory}/rules/plant.toml"), RULES)?;
    let text = configuration(plant, directory);
    let file = FileLayer::Text { name: "this example".to_owned(), text };
    let layers = Layers { file, ..Layers::default() };
    let config = watchbell::config::load(&layers, &Clock::System)
        .map_err(|problems| anyhow!("{problems:#?}"))?;
    App::start(config).await.map_err(|error| match error {
        StartError::Problems(problems) => anyhow!("{problems:#?}"),
        StartError::Other(error) => error,
    })
}

fn client(address: SocketAddr, id: &str) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_keep_alive(Duration::from_secs(30));
    AsyncClient::new(options, 10)
}

fn say(line: &str) {
    // Whoever closed our output does not want to hear it.
    writeln!(std::io::stdout(), "{line}").ok();
}

/// Sends `cool` to each oven that the phone shows an alert of: by Watchbell, not by the plant.
async fn operate(app: &App, watchbell: SocketAddr) -> anyhow::Result<()> {
    let mut phone = app.screen().subscribe();
    let (operator, mut events) = client(watchbell, "operator");
    let connection = tokio::spawn(async move { while events.poll().await.is_ok() {} });
    while let Ok(shown) = phone.recv().await {
        say(&format!("phone: {}", shown.text));
        if let Some(oven) = shown.text.split_once(": ").map(|(oven, _)| oven)
            && shown.text.ends_with("°C")
        {
            let topic = format!("plant/cmd/{oven}");
            operator.publish(topic, QoS::AtLeastOnce, false, "cool").await?;
        }
    }
    connection.abort();
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let is_test = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--self-test") => true,
        Some(other) => bail!("{other}: unknown; there is --self-test"),
    };
    let directory = tempfile::tempdir()?;
    let path = directory.path().to_str().context("the temporary directory is not UTF-8")?;
    let plant = start_plant()?;
    let app = start_watchbell(plant, path).await?;
    let watchbell = app.instance().mqtt.context("it listens without TLS")?;
    say(&format!("plant's broker: mqtt://{plant}"));
    say(&format!("Watchbell:      mqtt://{watchbell}, http://{}", app.instance().api));
    let result = tokio::select! {
        ended = operate(&app, watchbell) => ended,
        tested = tokio::time::timeout(PATIENCE, self_test(plant)), if is_test => {
            tested.context("not within a minute")?
        }
        interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for Ctrl-C"),
    };
    app.stop().await?;
    if is_test && result.is_ok() {
        say("self-test passed");
    }
    result
}

/// A device of the plant that knows nothing of Watchbell: it is too hot, and hears what to do.
async fn self_test(plant: SocketAddr) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        let (device, mut events) = client(plant, "oven-1");
        device.subscribe("cmd/oven-1", QoS::AtLeastOnce).await?;
        loop {
            tokio::select! {
                // Until Watchbell has subscribed nobody hears it.
                _ = tick.tick() => {
                    let hot = r#"{"temp": 250}"#;
                    device.try_publish("devices/oven-1/telemetry", QoS::AtLeastOnce, false, hot).ok();
                }
                event = events.poll() => match event {
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let (topic, payload) = (&publish.topic, &publish.payload);
                        ensure!(topic == "cmd/oven-1" && payload == "cool", "{topic}: {payload:?}");
                        say("device: told to cool");
                        return Ok(());
                    }
                    Ok(_) => {}
                    // The plant's broker may not listen yet.
                    Err(_) => break,
                },
            }
        }
        tick.tick().await;
    }
}
