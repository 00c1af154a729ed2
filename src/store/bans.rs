//! Bans: who is not let in, until when, and why.
//!
//! Few and read often, so they are kept in memory by who needs them; [`Store::bans_changed`] says
//! when to read them again. One that has run out is deleted by the next change or by tidying up.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::keys::{self, Table};
use super::{CommitError, Op, ReadError, Store};
use crate::clock::Timestamp;
use crate::network::Network;

/// Longest text that a ban may hold, bytes.
const TEXT_BYTES_MAX: usize = 256;

/// What a ban looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BanKind {
    /// The MQTT client id; `*` stands for any characters.
    ClientId,
    /// The name in the certificate or token; `*` stands for any characters.
    Identity,
    /// The user name; `*` stands for any characters.
    User,
    /// The address, or a range of them.
    Address,
}

impl BanKind {
    /// As the API and the command line call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientId => "client_id",
            Self::Identity => "identity",
            Self::User => "user",
            Self::Address => "address",
        }
    }
}

impl FromStr for BanKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::ClientId, Self::Identity, Self::User, Self::Address]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(())
    }
}

/// Somebody who is not let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// What it looks at.
    pub kind: BanKind,
    /// What it looks for.
    pub value: String,
    /// Until when; `None` until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// What whoever added it had to say; for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// When it was added.
    pub added_at: Timestamp,
}

impl Ban {
    /// Whether it is over.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// The same with its value in the one form under which it is stored, or what is wrong with it.
    ///
    /// # Errors
    /// The value cannot be that of a client, or the text is too long; in words for an operator.
    pub fn checked(mut self) -> Result<Self, String> {
        let kind = self.kind.as_str();
        if self.kind == BanKind::Address {
            let network: Network =
                self.value.parse().map_err(|error| format!("{kind}: {error}"))?;
            self.value = network.to_string();
        }
        if self.value.is_empty() || self.value.len() > TEXT_BYTES_MAX {
            return Err(format!("{kind}: 1 to {TEXT_BYTES_MAX} bytes"));
        }
        if self.why.len() > TEXT_BYTES_MAX {
            return Err(format!("why: at most {TEXT_BYTES_MAX} bytes"));
        }
        if [&self.value, &self.why].iter().any(|text| text.chars().any(char::is_control)) {
            return Err(format!("{kind}: a control character"));
        }
        Ok(self)
    }
}

/// A ban could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BanError {
    /// There are as many as there may be.
    #[error("there are {0} bans, which is the most (store.bans_max); remove some, or ban a range")]
    TooMany(usize),
    /// The bans could not be looked through.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Store {
    /// All bans that are not over.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn bans(&self, now: Timestamp) -> Result<Vec<Ban>, ReadError> {
        // One that cannot be read keeps nobody out, and is said (`Store::problems`).
        let bans = self.scan::<Ban>(Table::Ban).flatten();
        Ok(bans.filter(|ban| !ban.is_over(now)).collect())
    }

    /// Adds a ban that has been [`Ban::checked`], or replaces the one of the same kind and value;
    /// durable on return.
    ///
    /// # Errors
    /// There are too many, or the store fails.
    pub async fn put_ban(&self, ban: &Ban) -> Result<(), BanError> {
        // One that cannot be read keeps nobody out, and is said (`Store::problems`).
        let bans = self.scan::<Ban>(Table::Ban).flatten();
        let (over, mut left): (Vec<Ban>, Vec<Ban>) =
            bans.partition(|one| one.is_over(ban.added_at));
        left.retain(|one| (one.kind, &one.value) != (ban.kind, &ban.value));
        if left.len() >= self.bans_max {
            return Err(BanError::TooMany(left.len()));
        }
        let mut op = Op::new();
        for one in over {
            op.remove(keys::ban(one.kind, &one.value));
        }
        op.put(keys::ban(ban.kind, &ban.value), ban);
        self.commit(vec![op]).await?;
        self.ban_changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Removes a ban; says whether there was one; durable on return.
    ///
    /// # Errors
    /// The store fails.
    pub async fn remove_ban(&self, kind: BanKind, value: &str) -> Result<bool, BanError> {
        let key = keys::ban(kind, value);
        let known = self.get::<Ban>(&key)?.is_some();
        if known {
            let mut op = Op::new();
            op.remove(key);
            self.commit(vec![op]).await?;
            self.ban_changes.send_modify(|count| *count += 1);
        }
        Ok(known)
    }

    /// Changes whenever a ban was added or removed.
    pub fn bans_changed(&self) -> watch::Receiver<u64> {
        self.ban_changes.subscribe()
    }
}
