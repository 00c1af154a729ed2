//! `watchbell run`: the process itself, from the configuration to its end.
//!
//! Says once what listens where and what to type next, shows what the virtual phone shows, and
//! turns signals into calls of the application. Exit code 1 where it could not start, could not
//! go on, or did not stop in time.

use std::io::Write;
use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;

use super::{Context, problems, text};
use crate::api::About;
use crate::app::{App, StartError};
use crate::config::Config;
use crate::provider::phone::Shown;

const EXAMPLES: &str = "\
Examples:
  watchbell run
  watchbell run --config /etc/watchbell.toml --data-dir /var/lib/watchbell
  watchbell run --set broker.listen=127.0.0.1:0 --set telemetry.level=debug

Without a configuration file it makes certificates for development in certs/, listens for MQTT on
this machine and by TLS, and delivers to the virtual phone, here and on its page. SIGTERM and
Ctrl-C stop it in order, a second one at once; SIGHUP loads rules and certificates again.";

/// Signals to stop that come so soon after the first one are the same.
const SAME_WISH: Duration = Duration::from_millis(500);

/// Run: take publishes, evaluate rules, deliver messages
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Run {}

impl Run {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let Context { layers, clock, out } = context;
        let config = crate::config::load(&layers, &clock).map_err(problems)?;
        crate::telemetry::init(&config.telemetry).map_err(anyhow::Error::msg)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve(config, out))
    }
}

async fn serve(config: Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let place = Place::of(&config);
    let mut app = App::start(config).await.map_err(|error| match error {
        StartError::Problems(found) => problems(found),
        StartError::Other(error) => error,
    })?;
    let mut phone = app.screen().subscribe();
    place.welcome(app.about(), out)?;

    let failure = loop {
        tokio::select! {
            _ = hang_up.recv() => app.reload(),
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            why = app.failure() => break Some(why),
            shown = phone.recv() => match shown {
                Ok(shown) => writeln!(out, "{}", line(&shown))?,
                Err(RecvError::Lagged(missed)) => {
                    writeln!(out, "phone  {missed} more messages, see the console")?;
                }
                Err(RecvError::Closed) => bail!("the virtual phone has gone"),
            },
        }
    };
    tracing::info!("stopping");
    let waiting = app.waiting();
    let again = async {
        // Supervisors signal the process and its group: what comes in the same moment is one wish.
        let first = tokio::time::Instant::now();
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first.elapsed() >= SAME_WISH {
                return;
            }
        }
    };
    let stopped = tokio::select! {
        stopped = app.stop() => stopped.map_err(anyhow::Error::from),
        () = again => Err(anyhow!("stopped at once; nothing acknowledged is lost")),
    };
    if failure.is_none() && stopped.is_ok() {
        tracing::info!(waiting, "stopped; messages that wait are sent after the next start");
    }
    match failure {
        Some(why) => Err(anyhow!(why)),
        None => stopped,
    }
}

/// What the screen said, for the terminal.
fn line(shown: &Shown) -> String {
    let whom = shown.contact.as_deref().unwrap_or(&shown.address);
    format!(
        "phone  {}  {} {} to {whom}: {}",
        text::seconds(&shown.at.to_string()),
        shown.severity,
        shown.channel,
        text::cut(&shown.text, 500)
    )
}

/// What the welcome says of the configuration.
struct Place {
    data_dir: String,
    rules_dir: String,
    certs: String,
    providers: String,
    anonymous: bool,
}

impl Place {
    fn of(config: &Config) -> Self {
        let names: Vec<&str> = config.providers.iter().map(|one| &*one.name).collect();
        Self {
            data_dir: config.data_dir.display().to_string(),
            rules_dir: config.rules_dir.display().to_string(),
            certs: config.broker.client_ca.to_string(),
            providers: names.join(", "),
            anonymous: config.broker.anonymous == crate::broker::auth::Anonymous::Loopback,
        }
    }

    /// A few lines: what listens where, and what to type next.
    fn welcome(&self, about: &About, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "watchbell {} is running; Ctrl-C stops it", about.version)?;
        for listener in &about.listeners {
            let address = listener.address;
            // Those of [broker] are called as their protocol.
            let named = match listener.name == listener.protocol {
                true => String::new(),
                false => format!(", {}", listener.name),
            };
            match listener.protocol {
                "http" => writeln!(out, "  console   http://{address}/")?,
                "mqtt"
                    if self.anonymous && listener.name == "mqtt" && address.ip().is_loopback() =>
                {
                    writeln!(out, "  mqtt      {address}, clients on this machine need no login")?;
                }
                protocol @ ("mqtt" | "ws") if address.ip().is_loopback() => {
                    writeln!(out, "  {protocol:8}  {address}{named}")?;
                }
                protocol @ ("mqtt" | "ws") => {
                    writeln!(out, "  {protocol:8}  {address}{named}, NOT ENCRYPTED")?;
                }
                "mqtts" if listener.name == "mqtts" => {
                    writeln!(out, "  mqtts     {address}, CA {}", self.certs)?;
                }
                protocol => writeln!(out, "  {protocol:8}  {address}{named}")?,
            }
        }
        writeln!(out, "  rules     {}/, data {}/", self.rules_dir, self.data_dir)?;
        writeln!(out, "  delivers  by {}", self.providers)?;
        let mqtt = about.listeners.iter().find(|one| one.protocol == "mqtt");
        if let (Some(hint), Some(mqtt)) = (&about.hint, mqtt) {
            let (topic, payload) = (quote(&hint.topic), quote(&hint.payload));
            let (host, port) = (mqtt.address.ip(), mqtt.address.port());
            writeln!(out, "\nType next, in another terminal, one of:")?;
            writeln!(out, "  mosquitto_pub -h {host} -p {port} -q 1 -t {topic} -m {payload}")?;
            // Cargo names itself to what it runs.
            let cargo = std::env::var_os("CARGO").is_some();
            let program = if cargo { "cargo run --" } else { "watchbell" };
            let data_dir = match self.data_dir.as_str() {
                "data" => String::new(),
                other => format!(" --data-dir {}", quote(other)),
            };
            writeln!(out, "  {program} pub{data_dir} {topic} {payload}")?;
        }
        writeln!(out)?;
        out.flush()
    }
}

/// Quotes for a shell, where it is needed.
fn quote(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Hint, Listener};
    use crate::clock::Timestamp;
    use crate::model::RunId;

    #[test]
    fn the_welcome_says_what_listens_and_what_to_type() {
        let named = |name: &str, protocol, address: &str| Listener {
            name: name.to_owned(),
            protocol,
            address: address.parse().expect("an address"),
        };
        let listener = |protocol: &'static str, address| named(protocol, protocol, address);
        let about = About {
            version: "1.2.3",
            run: RunId::new(uuid::Uuid::from_u128(1)),
            started_at: Timestamp::default(),
            listeners: vec![
                listener("mqtt", "127.0.0.1:1883"),
                listener("mqtts", "0.0.0.0:8883"),
                named("dashboards", "wss", "[::]:8884"),
                named("old", "ws", "192.0.2.1:8083"),
                listener("http", "127.0.0.1:8080"),
            ],
            hint: Some(Hint { topic: "a/b".to_owned(), payload: "it's".to_owned() }),
        };
        let place = Place {
            data_dir: "my data".to_owned(),
            rules_dir: "rules".to_owned(),
            certs: "certs/ca.pem".to_owned(),
            providers: "phone".to_owned(),
            anonymous: true,
        };
        let mut out = Vec::new();
        place.welcome(&about, &mut out).expect("written");
        let text = String::from_utf8(out).expect("text").replace("cargo run --", "watchbell");
        insta::assert_snapshot!(text, @r#"
        watchbell 1.2.3 is running; Ctrl-C stops it
          mqtt      127.0.0.1:1883, clients on this machine need no login
          mqtts     0.0.0.0:8883, CA certs/ca.pem
          wss       [::]:8884, dashboards
          ws        192.0.2.1:8083, old, NOT ENCRYPTED
          console   http://127.0.0.1:8080/
          rules     rules/, data my data/
          delivers  by phone

        Type next, in another terminal, one of:
          mosquitto_pub -h 127.0.0.1 -p 1883 -q 1 -t a/b -m 'it'\''s'
          watchbell pub --data-dir 'my data' a/b 'it'\''s'
        "#);
    }
}
