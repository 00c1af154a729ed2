//! `watchbell run`: the process itself.

use clap::Args;

use super::Context;

const EXAMPLES: &str = "\
Examples:
  watchbell run
  watchbell run --config /etc/watchbell.toml --data-dir /var/lib/watchbell
  watchbell run --set broker.listen=127.0.0.1:0 --set telemetry.level=debug

Without a configuration file it makes certificates for development in certs/, listens on this
machine and by TLS, and delivers to the virtual phone on its page. SIGTERM and Ctrl-C stop it in
order; SIGHUP loads the rules again.";

/// Run: take publishes, evaluate rules, deliver messages
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Run {}

impl Run {
    pub(super) fn run(self, context: Context<'_>) -> anyhow::Result<()> {
        let config =
            crate::config::load(&context.layers, &context.clock).map_err(super::problems)?;
        crate::telemetry::init(&config.telemetry).map_err(anyhow::Error::msg)?;
        crate::app::run(config, context.clock, context.out)
    }
}
