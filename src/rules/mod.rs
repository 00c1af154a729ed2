//! Publishes -> alerts: the rules that operators write, and the state of what fires.
//!
//! Pure: `handle(publish, now) -> effects`. Nothing here reads a clock, a file or a socket. Whatever
//! can be found wrong with a rule is found when it is loaded; whatever goes wrong on a publish is
//! an [`engine::Failure`] with the rule's name and a closed reason, never a panic and never silence.
//!
//! - [`load`]: `[[rule]]` tables to compiled rules.
//! - [`set`]: the compiled rules, and which of them match a topic.
//! - [`condition`]: CEL, for `when`, `clear` and `key`; its functions of ours are in [`functions`].
//! - [`template`]: minijinja, for `text`, `text_clear` and `title`.
//! - [`engine`]: which instances there are, and when they are looked at; `run`: one rule on one publish.
//! - [`instance`], [`life`], [`window`]: where one stands, since when, and what it remembers.

pub mod condition;
mod direct;
pub mod engine;
pub mod functions;
pub mod instance;
pub mod life;
pub mod load;
mod lower;
pub mod named;
mod pattern;
mod row;
mod run;
#[cfg(test)]
#[path = "tests.rs"]
mod scenarios;
pub mod set;
#[cfg(test)]
mod spec;
pub mod template;
mod view;
pub mod window;

use serde::Deserialize;

use crate::payload;

/// Bounds on rules and on what they may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most rules in all files together. Default 10000, range 1 to 1000000.
    pub rules_max: usize,
    /// Most instances that fire at a time, of all rules together; one is some 500 bytes of memory.
    /// Beyond it a rule with a condition raises no further alert, which is counted. Default
    /// 1000000, range 1 to 100000000.
    pub instances_max: usize,
    /// Longest `when`, `clear` or `key` expression, bytes. Default 2000, range 1 to 10000.
    pub expression_bytes_max: usize,
    /// Longest template in a file, and longest text that one may render, bytes. Default 16384,
    /// range 100 to 1000000.
    pub text_bytes_max: usize,
    /// How much work a template may do: about one unit an instruction, or 64 bytes of text. Default
    /// 20000, range 100 to 10000000.
    pub text_fuel: u64,
    /// Most points that a window of an instance keeps; one takes 16 bytes. Default 1000, range 1 to
    /// 100000.
    pub window_points_max: usize,
    /// Largest payload that is decoded, bytes. Default 262144, range 1 to 268435455.
    pub payload_bytes_max: usize,
    /// Most levels of lists and maps in a payload. Default 32, range 1 to 100.
    pub payload_depth_max: usize,
    /// Most values in a payload. Default 20000, range 1 to 10000000.
    pub payload_values_max: usize,
    /// Most rule files in the directory. Default 1000, range 1 to 100000.
    pub files_max: usize,
    /// Largest rule file, bytes. Default 4194304, range 1 to 268435455.
    pub file_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        let payload = payload::Limits::default();
        Self {
            rules_max: 10_000,
            instances_max: 1_000_000,
            expression_bytes_max: 2_000,
            text_bytes_max: 16_384,
            text_fuel: 20_000,
            window_points_max: 1_000,
            payload_bytes_max: payload.bytes_max,
            payload_depth_max: payload.depth_max,
            payload_values_max: payload.values_max,
            files_max: 1_000,
            file_bytes_max: 4_194_304,
        }
    }
}

impl Config {
    /// What is wrong with the values; empty if nothing is.
    pub fn validate(&self) -> Vec<String> {
        let wide = |value: usize| u64::try_from(value).unwrap_or(u64::MAX);
        [
            ("rules_max", wide(self.rules_max), 1, 1_000_000),
            ("instances_max", wide(self.instances_max), 1, 100_000_000),
            ("expression_bytes_max", wide(self.expression_bytes_max), 1, 10_000),
            ("text_bytes_max", wide(self.text_bytes_max), 100, 1_000_000),
            ("text_fuel", self.text_fuel, 100, 10_000_000),
            ("window_points_max", wide(self.window_points_max), 1, 100_000),
            ("payload_bytes_max", wide(self.payload_bytes_max), 1, 268_435_455),
            ("payload_depth_max", wide(self.payload_depth_max), 1, 100),
            ("payload_values_max", wide(self.payload_values_max), 1, 10_000_000),
            ("files_max", wide(self.files_max), 1, 100_000),
            ("file_bytes_max", self.file_bytes_max, 1, 268_435_455),
        ]
        .into_iter()
        .filter(|(_, value, min, max)| !(min..=max).contains(&value))
        .map(|(key, _, min, max)| format!("{key}: must be from {min} to {max}"))
        .collect()
    }

    /// The bounds on one payload.
    pub fn payload_limits(&self) -> payload::Limits {
        payload::Limits {
            bytes_max: self.payload_bytes_max,
            depth_max: self.payload_depth_max,
            values_max: self.payload_values_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range_and_what_is_not_is_named() {
        assert_eq!(Config::default().validate(), [""; 0]);
        let config = Config { rules_max: 0, payload_depth_max: 101, ..Config::default() };
        assert_eq!(
            config.validate(),
            ["rules_max: must be from 1 to 1000000", "payload_depth_max: must be from 1 to 100",]
        );
    }

    /// Sessions on every thread ask the set which rules match; intake moves the engine into a task.
    #[test]
    fn the_set_is_shared_and_the_engine_moves_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<set::Rules>();
        shared::<set::Matched>();
        shared::<engine::Engine>();
    }
}
