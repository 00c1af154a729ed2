//! The real binary in a temporary directory: started, killed, started again, and asked by its own
//! commands.
//!
//! It runs as an operator would run it: in its directory, with `watchbell.toml`, `rules/`, `certs/`
//! and `data/` where they are by default, only that its ports are free ones. Dropped, it is killed.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use watchbell::instance::Instance;

use crate::device::Options;
use crate::harness::{Api, Place, found};

/// The program, in `directory`, with nothing of our own environment that would concern it.
fn program(directory: &Path) -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_watchbell")), directory)
}

/// A command in `directory`, with nothing of our own environment that would concern the program.
fn clean(mut command: Command, directory: &Path) -> Command {
    command.current_dir(directory);
    for (name, _) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| name.starts_with("WATCHBELL_"));
        if ours || name == "CARGO" {
            command.env_remove(name);
        }
    }
    command
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command in `directory`, with this on its standard input and these variables in its
/// environment. Blocks: see [`command`].
fn run(directory: &Path, arguments: &[String], input: &str, env: &[(String, String)]) -> Said {
    // Files and not pipes, which a command that says much would fill.
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut child = program(directory)
        .args(arguments)
        .envs(env.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that reads nothing may have gone already.
    drop(stdin.write_all(input.as_bytes()));
    drop(stdin);
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("watchbell {arguments:?} does not end");
        }
        std::thread::park_timeout(Duration::from_millis(2));
    };
    let text = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    };
    Said { code: status.code().expect("no signal"), out: text(&mut out), err: text(&mut err) }
}

/// A command in `place`, beside the process if one runs there.
pub(crate) async fn command(place: &Place, arguments: &[&str]) -> Said {
    command_with(place, arguments, "", &[]).await
}

/// The same with this on its standard input and these variables in its environment.
pub(crate) async fn command_with(
    place: &Place,
    arguments: &[&str],
    input: &str,
    env: &[(&str, &str)],
) -> Said {
    let owned = |text: &&str| (*text).to_owned();
    let (directory, input) = (place.path(""), input.to_owned());
    let arguments: Vec<String> = arguments.iter().map(owned).collect();
    let env: Vec<_> = env.iter().map(|(name, value)| (owned(name), owned(value))).collect();
    let run = move || run(&directory, &arguments, &input, &env);
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The running binary.
pub(crate) struct Process {
    child: Child,
    instance: Instance,
    pub(crate) api: Api,
    pub(crate) place: Place,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; what counts is that it has.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Process {
    /// Starts it in `place` and waits until it listens.
    pub(crate) async fn start(place: Place) -> Self {
        let child = spawn(&place);
        let (child, instance) = listening(child, &place).await;
        let api = Api::of(&place.path("data"));
        Self { child, instance, api, place }
    }

    /// The same under a limit of the shell's `ulimit`, as `-n 64`.
    pub(crate) async fn start_limited(place: Place, limit: &str) -> Self {
        let mut command = clean(Command::new("sh"), &place.path(""));
        command
            .args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")])
            .arg(env!("CARGO_BIN_EXE_watchbell"));
        let (child, instance) = listening(spawn_by(command, &place), &place).await;
        let api = Api::of(&place.path("data"));
        Self { child, instance, api, place }
    }

    /// Where it listens without TLS.
    pub(crate) fn mqtt(&self) -> SocketAddr {
        self.instance.mqtt.unwrap()
    }

    /// Where its listener of this name is.
    pub(crate) fn listener(&self, name: &str) -> SocketAddr {
        let found = self.instance.listeners.iter().find(|one| one.name == name);
        found.unwrap_or_else(|| panic!("no listener {name}")).address
    }

    /// Where its API listens.
    pub(crate) fn http(&self) -> SocketAddr {
        self.instance.api
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it on the spot, as the kernel or a power cut would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, on other ports, after it was killed.
    pub(crate) async fn restart(&mut self) {
        let (child, instance) = listening(spawn(&self.place), &self.place).await;
        self.child = child;
        self.instance = instance;
        self.api = Api::of(&self.place.path("data"));
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        found("the end of the process", async || child.try_wait().unwrap()).await
    }

    /// A device that has a certificate, by TLS and MQTT 5.
    pub(crate) fn device(&self, id: &str) -> Options {
        self.place.device(self.instance.mqtts.unwrap(), id)
    }

    /// A client that comes by plain TCP and has no name.
    pub(crate) fn anonymous(&self, id: &str) -> Options {
        Place::plain(self.instance.mqtt.unwrap(), id)
    }

    /// A command beside it, which has to succeed: what it says.
    pub(crate) async fn done(&self, arguments: &[&str]) -> String {
        let said = command(&self.place, arguments).await;
        assert!((said.code, said.err.as_str()) == (0, ""), "{arguments:?}: {said:?}");
        said.out
    }

    /// A command beside it, which has to fail: why.
    pub(crate) async fn refused(&self, arguments: &[&str]) -> String {
        let said = command(&self.place, arguments).await;
        assert!((said.code, said.out.as_str()) == (1, ""), "{arguments:?}: {said:?}");
        said.err
    }

    /// Everything that it has written to the terminal so far, of all its runs.
    pub(crate) fn out(&self) -> String {
        read(&self.place, "out.txt")
    }

    /// The same for its log.
    pub(crate) fn log(&self) -> String {
        read(&self.place, "log.txt")
    }
}

fn read(place: &Place, name: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(place.path(name)).unwrap()).into_owned()
}

fn spawn(place: &Place) -> Child {
    spawn_by(program(&place.path("")), place)
}

fn spawn_by(mut command: Command, place: &Place) -> Child {
    let append = |name: &str| {
        File::options().create(true).append(true).open(place.path(name)).map(Stdio::from).unwrap()
    };
    // Its clocks are shifted by this file, where a test has written one.
    let clock = place.path("clock");
    if clock.exists() {
        command.env("TEST_CLOCK_OF_WATCHBELL", clock);
    }
    command
        .arg("run")
        .env("WATCHBELL_BROKER__LISTEN", "127.0.0.1:0")
        .env("WATCHBELL_BROKER__LISTEN_TLS", "127.0.0.1:0")
        .env("WATCHBELL_API__LISTEN", "127.0.0.1:0")
        .stdin(Stdio::null())
        .stdout(append("out.txt"))
        .stderr(append("log.txt"))
        .spawn()
        .unwrap()
}

/// Waits until it has said in its data directory where it listens. What an earlier run has left
/// there names another process.
async fn listening(mut child: Child, place: &Place) -> (Child, Instance) {
    let instance = found("a process that listens", async || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("it ended, {status}:\n{}\n{}", read(place, "out.txt"), read(place, "log.txt"));
        }
        let instance = Instance::running(&place.path("data")).unwrap()?;
        (instance.pid == child.id()).then_some(instance)
    })
    .await;
    (child, instance)
}
