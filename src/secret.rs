//! Secrets in the configuration: where they come from, and that nobody prints them.
//!
//! A secret is written as text, or better as where to find it. It prints as `***` everywhere;
//! only [`Secret::expose`] gives it away, and only the wire needs that.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize, Serializer};

/// A secret value. `Debug`, `Display` and `Serialize` give `***`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// Where a secret comes from: `"text"`, `{ env = "NAME" }`, `{ file = "path" }` or
/// `{ command = ["program", "argument"] }` (its standard output).
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected text, { env = \"NAME\" }, { file = \"path\" } or { command = [\"program\", ...] }"
)]
pub enum SecretSource {
    /// The secret itself.
    Text(String),
    /// An environment variable.
    Env(EnvSource),
    /// A file's content.
    File(FileSource),
    /// What a command prints.
    Command(CommandSource),
}

/// `{ env = "NAME" }`
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvSource {
    env: String,
}

/// `{ file = "path" }`
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSource {
    file: PathBuf,
}

/// `{ command = ["program", "argument"] }`
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSource {
    command: Vec<String>,
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("***"),
            Self::Env(source) => write!(f, "env {}", source.env),
            Self::File(source) => write!(f, "file {}", source.file.display()),
            Self::Command(source) => {
                write!(f, "command {}", source.command.first().map_or("", String::as_str))
            }
        }
    }
}

/// Why a secret could not be had. Never holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not set.
    #[error("environment variable {0} is not set; set it, or name another source")]
    NoEnv(String),
    /// The file cannot be read.
    #[error("cannot read {path}: {error}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        error: std::io::Error,
    },
    /// The command cannot be run.
    #[error("cannot run `{program}`: {detail}")]
    Command {
        /// The program.
        program: String,
        /// What went wrong.
        detail: String,
    },
    /// Whatever it is, it is empty.
    #[error("it is empty")]
    Empty,
}

impl SecretSource {
    /// Gets the secret. Reads the environment or a file, or runs the command: at load only.
    /// One trailing line break is not part of it.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::Env(source) => {
                std::env::var(&source.env).map_err(|_| SecretError::NoEnv(source.env.clone()))?
            }
            Self::File(source) => std::fs::read_to_string(&source.file)
                .map_err(|error| SecretError::File { path: source.file.clone(), error })?,
            Self::Command(source) => run(&source.command)?,
        };
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() { Err(SecretError::Empty) } else { Ok(Secret::new(text)) }
    }
}

fn run(command: &[String]) -> Result<String, SecretError> {
    let (program, arguments) = command.split_first().ok_or_else(|| SecretError::Command {
        program: String::new(),
        detail: "it names no program".to_owned(),
    })?;
    let failed = |detail: String| SecretError::Command { program: program.clone(), detail };
    let output = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("it ended with {}", output.status)));
    }
    String::from_utf8(output.stdout).map_err(|_| failed("its output is not UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Holder {
        token: SecretSource,
    }

    fn resolve(toml: &str) -> Result<String, String> {
        let holder: Holder = toml::from_str(toml).map_err(|error| error.to_string())?;
        holder.token.resolve().map(|s| s.expose().to_owned()).map_err(|error| error.to_string())
    }

    #[test]
    fn comes_from_text_file_environment_or_command() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("token");
        std::fs::write(&file, "from-file\n").expect("written");
        assert_eq!(resolve("token = 'x'"), Ok("x".to_owned()));
        assert_eq!(
            resolve(&format!("token = {{ file = '{}' }}", file.display())),
            Ok("from-file".to_owned())
        );
        assert_eq!(resolve("token = { command = ['echo', 'said'] }"), Ok("said".to_owned()));
        assert!(resolve("token = { env = 'PATH' }").is_ok());
    }

    #[test]
    fn says_what_is_missing() {
        assert_eq!(
            resolve("token = { env = 'WATCHBELL_NO_SUCH' }").unwrap_err(),
            "environment variable WATCHBELL_NO_SUCH is not set; set it, or name another source"
        );
        assert_eq!(resolve("token = ''").unwrap_err(), "it is empty");
        assert!(resolve("token = { evn = 'X' }").unwrap_err().contains("expected text, { env"));
        assert!(resolve("token = { command = ['false'] }").unwrap_err().contains("`false`"));
    }

    #[test]
    fn never_prints() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(format!("{:?}", SecretSource::Text("hunter2".to_owned())), "***");
    }
}
