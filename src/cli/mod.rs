//! The command line: one file a command.
//!
//! Commands write through a `Write`, never to the terminal directly, so that tests read what
//! people read. Errors say what, where and what next. Exit codes: 0 done, 1 not done, 2 the
//! command line makes no sense, 3 `certs list --expiring` has found something or `import` leaves
//! something to do by hand; `acl check` has its own: 0 allowed, 1 denied, 2 not known. What looks
//! into a running instance goes through its HTTP API ([`client`]); numbers are masked there already.

mod acl;
mod alert;
mod ban;
mod certs;
mod check;
mod client;
mod device;
mod explain;
mod import;
mod junit;
mod mqtt;
mod outbox;
mod publish;
mod record;
mod replay;
mod run;
mod send;
mod silence;
mod status;
mod store;
mod test;
mod text;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::clock::Clock;
use crate::config::layers::{FileLayer, Flag, Layers};
use crate::instance::Instance;
use crate::problem::Problem;

const EXAMPLES: &str = "\
Try it, with no account anywhere:
  watchbell                                      start with what is in this directory
  watchbell pub panic/workshop pressed           publish as a device would
  watchbell outbox list                          see what became of it

Then:
  watchbell check                                is the configuration right? are the rules?
  watchbell test                                 do the rules do what their tests say?
  watchbell certs issue pump-7                   a certificate for a device
  watchbell device add pump-7                    a password for a device
  watchbell acl check pump-7 publish site/a/b    may it, and which line says so?
  watchbell record --out week.jsonl --for 7d     what devices publish, to try rules on
  watchbell alert list                           what fires; then: alert ack, silence add
  watchbell explain --contact ana --since 12h    why she was told, or was not
  watchbell replay week.jsonl                    what the rules would have made of it
  watchbell status                               lanes, outbox, listeners, rules
  watchbell store backup /backup/monday          a copy of the running store, verified

Configuration: defaults < watchbell.toml < WATCHBELL_A__B < flags. Each command has its --help.";

/// From field devices to people: MQTT in, durable alerts, SMS, WhatsApp, push and webhooks out.
#[derive(Parser)]
#[command(name = "watchbell", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Apart from what a command takes itself, so that the latter is found.
const HEADING: &str = "Options of every command";

/// What every command takes.
#[derive(Args)]
struct Global {
    /// Configuration file [default: watchbell.toml, if it is there]
    #[arg(long, global = true, help_heading = HEADING, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the store and the API key are [default: data]
    #[arg(long, global = true, help_heading = HEADING, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where the rule files are [default: rules]
    #[arg(long, global = true, help_heading = HEADING, value_name = "DIR")]
    rules_dir: Option<String>,
    /// Any key of the configuration, as broker.listen=127.0.0.1:1884; may be repeated
    #[arg(long, global = true, help_heading = HEADING, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE, as dispatch.expires_in=1h".to_owned()),
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run: take publishes, evaluate rules, deliver messages (also without any command)
    Run(run::Run),
    /// Report every problem of configuration and rules
    Check(check::Check),
    /// Try rules out: run the tests in the rule files
    Test(test::Test),
    /// Make, list, renew and revoke TLS certificates
    Certs(certs::Certs),
    /// Devices: those that log in with a password, and those that are connected
    Device(device::Device),
    /// Say whether a client may publish or subscribe, and which line decides
    Acl(acl::Acl),
    /// Keep somebody out: a client, an identity, a user, an address
    Ban(ban::Bans),
    /// Publish one message by MQTT, as a device would
    Pub(publish::Publish),
    /// Write publishes to files, for `watchbell replay`
    Record(record::Record),
    /// What rules would have made of recorded publishes: alerts, messages, what they cost
    Replay(replay::Replay),
    /// Send a message to a contact or an address, without a rule
    Send(send::Send),
    /// Look into the outbox; retry and cancel messages
    Outbox(outbox::Outbox),
    /// Look at what fires; acknowledge it
    Alert(alert::Alerts),
    /// Have nobody told of something for a while
    Silence(silence::Silences),
    /// Why somebody was told, or was not
    Explain(explain::Explain),
    /// How the running instance is
    Status(status::Status),
    /// Verify, repair, back up, restore, export, import, compact the store
    Store(store::Store),
    /// Rules and configuration from those of mqttwarn
    Import(import::Import),
}

/// What a command works with.
struct Context<'a> {
    layers: Layers,
    clock: Clock,
    out: &'a mut dyn Write,
}

impl Context<'_> {
    /// The data directory of the configuration.
    fn data_dir(&self) -> anyhow::Result<PathBuf> {
        crate::config::data_dir(&self.layers).map_err(problems)
    }

    /// Where to publish by TLS, for what is shown to be typed: the port of the running instance,
    /// else that of the configuration, else the customary one.
    fn tls_port(&self) -> String {
        let running = || Instance::running(&self.data_dir().ok()?).ok()??.mqtts;
        let configured = || {
            let broker = crate::config::broker(&self.layers).ok()?;
            broker.listen_tls.parse::<SocketAddr>().ok()
        };
        let port = running().or_else(configured).map_or(8883, |address| address.port());
        // Whoever lets the system choose learns it at the start.
        if port == 0 { "PORT".to_owned() } else { port.to_string() }
    }
}

/// `certs list --expiring` has found something: exit code 3, and nothing more to say.
#[derive(Debug, thiserror::Error)]
#[error("certificates end soon")]
struct Due;

/// `import` has left something to do by hand: exit code 3, and it was said what.
#[derive(Debug, thiserror::Error)]
#[error("something is to be done by hand")]
struct ByHand;

/// Problems as one error, a line each.
fn problems(problems: Vec<Problem>) -> anyhow::Error {
    let lines: Vec<String> = problems.into_iter().map(|problem| problem.to_string()).collect();
    anyhow::anyhow!(lines.join("\n"))
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (mut out, mut err) = (io::stdout(), io::stderr());
    execute(std::env::args_os(), env, &mut out, &mut err)
}

/// Runs the command line `arguments`, the program's name first, in the environment `env`.
pub fn execute(
    arguments: impl IntoIterator<Item = OsString>,
    env: Vec<(String, String)>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(usage) => {
            let code = u8::try_from(usage.exit_code()).unwrap_or(2);
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            let text = usage.render();
            let text = if colours { text.ansi().to_string() } else { text.to_string() };
            let written = if usage.use_stderr() {
                err.write_all(text.as_bytes())
            } else {
                out.write_all(text.as_bytes())
            };
            return match written {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    let context = Context { layers: cli.global.layers(env), clock: Clock::System, out };
    let result = match cli.command.unwrap_or(Command::Run(run::Run {})) {
        Command::Run(run) => run.run(context),
        Command::Check(check) => check.run(context),
        Command::Test(test) => test.run(context),
        Command::Certs(certs) => certs.run(context),
        Command::Device(device) => device.run(context),
        Command::Acl(acl) => return acl.run(context, err),
        Command::Ban(ban) => ban.run(context),
        Command::Pub(publish) => publish.run(context),
        Command::Record(record) => record.run(context),
        Command::Replay(replay) => replay.run(context),
        Command::Send(send) => send.run(context),
        Command::Outbox(outbox) => outbox.run(context),
        Command::Alert(alert) => alert.run(context),
        Command::Silence(silence) => silence.run(context),
        Command::Explain(explain) => explain.run(context),
        Command::Status(status) => status.run(context),
        Command::Store(store) => store.run(context),
        Command::Import(import) => import.run(context),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads us has seen enough: `watchbell outbox list | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<Due>() || error.is::<ByHand>() => ExitCode::from(3),
        Err(error) => {
            say(err, &error);
            ExitCode::FAILURE
        }
    }
}

fn say(err: &mut dyn Write, error: &anyhow::Error) {
    let error: &(dyn std::error::Error + 'static) = error.as_ref();
    // Nothing is left to be done where even this cannot be written.
    drop(writeln!(err, "error: {}", crate::telemetry::chain(error)));
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

impl Global {
    fn layers(self, env: Vec<(String, String)>) -> Layers {
        let flag = |name: &str, key: &str, value: String| Flag {
            name: name.to_owned(),
            key: key.to_owned(),
            value,
        };
        let mut flags = Vec::new();
        flags.extend(self.data_dir.map(|value| flag("--data-dir", "data_dir", value)));
        flags.extend(self.rules_dir.map(|value| flag("--rules-dir", "rules_dir", value)));
        for (key, value) in self.set {
            flags.push(flag(&format!("--set {key}"), &key, value));
        }
        Layers { file: self.config.map_or(FileLayer::IfThere, FileLayer::Named), env, flags }
    }
}

/// A small runtime for commands that ask something and end.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    fn said(arguments: &[&str]) -> (ExitCode, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let arguments = ["watchbell"].iter().chain(arguments).map(OsString::from);
        let code = execute(arguments, Vec::new(), &mut out, &mut err);
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (code, text(out), text(err))
    }

    #[test]
    fn help_goes_to_the_output_and_usage_errors_do_not() {
        let (code, out, err) = said(&["--help"]);
        assert_eq!((code, err.as_str()), (ExitCode::SUCCESS, ""));
        assert!(out.contains("watchbell outbox list"), "{out}");
        let (code, out, err) = said(&["outbix"]);
        assert_eq!((code, out.as_str()), (ExitCode::from(2), ""));
        assert!(err.contains("outbox"), "{err}");
        let (code, _, err) = said(&["status", "--set", "x"]);
        assert_eq!(code, ExitCode::from(2));
        assert!(err.contains("KEY=VALUE"), "{err}");
    }

    #[test]
    fn without_an_instance_the_error_says_what_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().to_str().expect("UTF-8");
        let (code, out, err) = said(&["status", "--data-dir", data]);
        assert_eq!((code, out.as_str()), (ExitCode::FAILURE, ""));
        assert_eq!(
            err,
            format!(
                "error: no watchbell is running with data directory {data}; start it with `watchbell run`, or name another with --data-dir\n"
            )
        );
    }
}
