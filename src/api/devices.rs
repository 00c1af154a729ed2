//! Credentials of devices: added, listed, removed.
//!
//! What is stored is an Argon2id hash; the password itself is answered once, where it was made
//! here, and never again. Hashing takes about 20 MiB and some 20 ms for one that was chosen, so it
//! runs off the async threads and only for holders of the key.

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::Shared;
use super::body::{self, fault, fault_in};
use super::refusal::Refusal;
use super::view::rfc_3339;
use crate::clock::Timestamp;
use crate::model::Reason;
use crate::password::{self, Origin};
use crate::problem::Fault;
use crate::secret::Secret;
use crate::store::{Device, RemoveError};

/// Most client id patterns of one device.
const CLIENT_IDS_MAX: usize = 64;
/// Most groups of one device.
const GROUPS_MAX: usize = 64;

/// What a device is to be called, and what it proves itself with.
#[derive(Debug, Default)]
pub struct Credential {
    /// The user name.
    pub user: String,
    /// The password; made here where `None`.
    pub password: Option<Secret>,
    /// Which client ids it may use; its own name where empty.
    pub client_ids: Vec<String>,
    /// Which groups it is in, for `[[access]]`.
    pub groups: Vec<String>,
}

/// Why a credential is refused: each fault names its field (`user`, `password`, `client_ids`).
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// Everything that is wrong with it.
    #[error("{}", lines(.0))]
    Invalid(Vec<Fault>),
    /// No randomness, or no memory for the hash.
    #[error("making the password's hash: {0}")]
    Hash(String),
}

fn lines(faults: &[Fault]) -> String {
    let line = |fault: &Fault| {
        let path = crate::problem::path_text(&fault.path);
        format!("{path}: {}", fault.what)
    };
    faults.iter().map(line).collect::<Vec<_>>().join("; ")
}

/// Checks a credential and hashes its password. Answers the row to store and the password, for
/// whoever has to put it into the device. Takes some 20 ms: not for async code.
///
/// # Errors
/// See [`CredentialError`].
pub fn credential(
    credential: Credential,
    now: Timestamp,
) -> Result<(Device, Secret), CredentialError> {
    let faults = credential.faults();
    if !faults.is_empty() {
        return Err(CredentialError::Invalid(faults));
    }
    let (password, origin) = match credential.password {
        Some(password) => (password, Origin::Chosen),
        None => (generate()?, Origin::Made),
    };
    let password_hash = password::hash(password.expose(), origin)
        .map_err(|error| CredentialError::Hash(error.to_string()))?;
    let Credential { user, mut client_ids, groups, .. } = credential;
    if client_ids.is_empty() {
        client_ids.push(user.clone());
    }
    let device = Device { user, password_hash, client_ids, groups, added_at: now };
    Ok((device, password))
}

impl Credential {
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if !is_name(&self.user) {
            faults.push(fault(
                "user",
                "1 to 64 characters, no spaces or control characters, none of / + # $ *",
            ));
        }
        if let Some(password) = &self.password
            && !(8..=256).contains(&password.expose().len())
        {
            faults.push(fault("password", "8 to 256 bytes"));
        }
        if self.client_ids.len() > CLIENT_IDS_MAX {
            faults.push(fault("client_ids", format!("at most {CLIENT_IDS_MAX}")));
        }
        if self.groups.len() > GROUPS_MAX {
            faults.push(fault("groups", format!("at most {GROUPS_MAX}")));
        }
        for (index, group) in self.groups.iter().enumerate() {
            if !is_name(group) {
                let what = "1 to 64 characters, no spaces or control characters, none of / + # $ *";
                faults.push(fault_in("groups", index, what));
            }
        }
        for (index, pattern) in self.client_ids.iter().enumerate() {
            if !is_name(&pattern.replace('*', "x")) {
                let what = "a client id of 1 to 64 characters, or a pattern with `*`, as pump-*";
                faults.push(fault_in("client_ids", index, what));
            }
        }
        faults
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.chars().count())
        && !text.contains(['/', '+', '#', '$', '*'])
        && !text.chars().any(|c| c.is_control() || c.is_whitespace())
}

/// 24 characters of base 32, 120 bits: easy to type, hard to guess.
fn generate() -> Result<Secret, CredentialError> {
    // Without i, l, o, u: nobody reads them wrong, and no words come out.
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut random = [0_u8; 24];
    getrandom::fill(&mut random).map_err(|error| CredentialError::Hash(error.to_string()))?;
    let characters = random.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)]));
    Ok(Secret::new(characters.collect::<String>()))
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AddBody {
    user: String,
    password: Option<String>,
    client_ids: Vec<String>,
    groups: Vec<String>,
}

#[derive(Serialize)]
struct DeviceView<'a> {
    user: &'a str,
    client_ids: &'a [String],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    groups: &'a [String],
    #[serde(serialize_with = "rfc_3339")]
    added_at: Timestamp,
    /// Only in the answer to the request that had it made.
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
}

impl<'a> DeviceView<'a> {
    fn of(device: &'a Device) -> Self {
        Self {
            user: &device.user,
            client_ids: &device.client_ids,
            groups: &device.groups,
            added_at: device.added_at,
            password: None,
        }
    }
}

#[derive(Serialize)]
struct DevicesView<'a> {
    devices: Vec<DeviceView<'a>>,
}

/// `GET /v1/devices`
pub(super) async fn list(State(state): State<Shared>) -> Result<Response, Refusal> {
    let devices = state.parts.store.devices().map_err(|error| Refusal::internal(&error))?;
    let devices = devices.iter().map(DeviceView::of).collect();
    Ok(Json(DevicesView { devices }).into_response())
}

/// `POST /v1/devices`: adds a device or replaces it. 201 with the password where it was made here.
pub(super) async fn add(
    State(state): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let (body, mut faults): (AddBody, _) = body::json(request, &state.config).await?;
    let made_here = body.password.is_none();
    let wanted = Credential {
        user: body.user,
        password: body.password.map(Secret::new),
        client_ids: body.client_ids,
        groups: body.groups,
    };
    if !faults.is_empty() {
        body::add(&mut faults, wanted.faults());
        return Err(Refusal::invalid(faults));
    }
    let now = state.parts.clock.now();
    // The same permits as for lists: both are work that a holder of the key can make us do.
    let permit = state.scans.acquire().await;
    let result = spawn_blocking(move || credential(wanted, now)).await;
    drop(permit);
    let (device, password) =
        result.map_err(|error| Refusal::internal(&error))?.map_err(|error| match error {
            CredentialError::Invalid(faults) => Refusal::invalid(faults),
            CredentialError::Hash(_) => Refusal::internal(&error),
        })?;
    state
        .parts
        .store
        .put_device(&device)
        .await
        .map_err(|_| Refusal::not_now(Reason::StoreFailed))?;
    tracing::info!(user = %device.user, "device added");
    let view =
        DeviceView { password: made_here.then_some(password.expose()), ..DeviceView::of(&device) };
    Ok((StatusCode::CREATED, Json(view)).into_response())
}

/// `DELETE /v1/devices/{user}`
pub(super) async fn remove(
    State(state): State<Shared>,
    Path(user): Path<String>,
) -> Result<StatusCode, Refusal> {
    match state.parts.store.remove_device(&user).await {
        Ok(true) => {
            tracing::info!(%user, "device removed");
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(false) => Err(Refusal::not_found(format!("there is no device `{user}`"))),
        Err(RemoveError::Read(error)) => Err(Refusal::internal(&error)),
        Err(RemoveError::Commit(_)) => Err(Refusal::not_now(Reason::StoreFailed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_password_verifies_and_is_never_the_same() {
        let make = || {
            let wanted = Credential { user: "pump-7".to_owned(), ..Credential::default() };
            credential(wanted, Timestamp::default()).expect("made")
        };
        let ((device, password), (_, other)) = (make(), make());
        assert_eq!(device.client_ids, ["pump-7"]);
        assert_eq!(password.expose().len(), 24);
        assert!(password != other);
        assert!(device.password_hash.starts_with("$argon2id$v=19$"));
        let verify = |password: &Secret| {
            password::verify(Some(&device.password_hash), password.expose().as_bytes())
        };
        assert!(verify(&password) && !verify(&other));
    }

    #[test]
    fn everything_wrong_is_told_at_once() {
        let wanted = Credential {
            user: "a/b".to_owned(),
            password: Some(Secret::new("short")),
            client_ids: vec!["pump-*".to_owned(), "a b".to_owned()],
            groups: vec!["a/b".to_owned()],
        };
        let error = credential(wanted, Timestamp::default()).expect_err("wrong");
        let text = error.to_string();
        for part in ["user: ", "password: 8 to 256", "client_ids[1]: ", "groups[0]: "] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("short") && !text.contains("client_ids[0]"), "{text}");
    }
}
