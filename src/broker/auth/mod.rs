//! Who a client is: user name and password, or client certificate; and which client ids are its.
//!
//! Passwords are Argon2id hashes that the store keeps (`watchbell device add`). They are checked
//! on blocking threads, a few at a time, so that a flood of logins cannot take all CPU or memory;
//! an unknown user costs as much as a wrong password. A certificate was verified by TLS; here only
//! its name is read.
//!
//! Invariant: nothing is read from, or changed in, a session before its client is authenticated
//! and the client id is known to be its own.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use serde::Deserialize;
use tokio::sync::Semaphore;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::acl::{Client, glob_matches};
use super::protocol::code;
use super::protocol::connect::Password;
use crate::model::Reason;
use crate::store::{Device, Store};

/// Who may come without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Anonymous {
    /// Peers on this machine.
    Loopback,
    /// Nobody.
    Never,
}

/// Hashes a password as the store keeps it: Argon2id with a random salt, in PHC string form.
///
/// # Errors
/// The system has no random numbers.
pub fn hash_password(password: &str) -> Result<String, HashError> {
    let hash = Argon2::default()
        .hash_password(password.as_bytes())
        .map_err(|error| HashError(error.to_string()))?;
    Ok(hash.to_string())
}

/// The password could not be hashed.
#[derive(Debug, thiserror::Error)]
#[error("hashing the password: {0}")]
pub struct HashError(String);

/// Who a client is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Principal {
    /// The name in its certificate.
    pub(crate) identity: Option<Arc<str>>,
    /// Its user name.
    pub(crate) user: Option<Arc<str>>,
}

impl Principal {
    /// The name it authenticated with; `None` for an anonymous client.
    pub(crate) fn name(&self) -> Option<&Arc<str>> {
        self.identity.as_ref().or(self.user.as_ref())
    }

    /// What the access rules ask about.
    pub(crate) fn as_client<'a>(&'a self, client_id: &'a str) -> Client<'a> {
        Client { client_id, identity: self.identity.as_deref(), user: self.user.as_deref() }
    }
}

/// What a client shows of itself.
pub(crate) struct Credentials {
    /// The name in the certificate that TLS has verified.
    pub(crate) identity: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Password>,
    /// As it asks for; empty: one is chosen for it.
    pub(crate) client_id: String,
    pub(crate) peer: IpAddr,
    /// Who may come without a name by this listener.
    pub(crate) anonymous: Anonymous,
}

/// Why a client is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) reason: Reason,
    /// The MQTT 5 reason code.
    pub(crate) code: u8,
    pub(crate) what: &'static str,
}

impl Denied {
    const CREDENTIALS: Self = Self {
        reason: Reason::BadCredentials,
        code: code::BAD_CREDENTIALS,
        what: "unknown user or wrong password",
    };
    const ANONYMOUS: Self = Self {
        reason: Reason::NotAuthorized,
        code: code::NOT_AUTHORIZED,
        what: "anonymous clients are not let in here",
    };
    const CLIENT_ID: Self = Self {
        reason: Reason::NotAuthorized,
        code: code::NOT_AUTHORIZED,
        what: "the client id does not belong to this user or certificate",
    };
    const STORE: Self = Self {
        reason: Reason::StoreFailed,
        code: code::UNAVAILABLE,
        what: "the list of devices cannot be read",
    };
}

/// Checks credentials.
pub(crate) struct Authenticator {
    store: Store,
    permits: Semaphore,
}

impl Authenticator {
    pub(crate) fn new(store: Store, checks_max: usize) -> Self {
        Self { store, permits: Semaphore::new(checks_max) }
    }

    /// Says who it is and under which client id it goes; an empty id means that one has to be
    /// made up.
    pub(crate) async fn check(
        &self,
        credentials: Credentials,
    ) -> Result<(Principal, String), Denied> {
        let Credentials { identity, user, password, mut client_id, peer, anonymous } = credentials;
        let mut principal = Principal::default();
        if let Some(user) = user {
            let device = self.check_password(user, password).await?;
            let known = |pattern: &String| glob_matches(pattern, &client_id);
            if !client_id.is_empty() && !device.client_ids.iter().any(known) {
                return Err(Denied::CLIENT_ID);
            }
            if client_id.is_empty() {
                // A made-up id would be none of its own, unless it may have any.
                let own = device.client_ids.iter().find(|id| !id.contains('*'));
                match own {
                    Some(own) => client_id.clone_from(own),
                    None if device.client_ids.iter().any(|pattern| pattern == "*") => {}
                    None => return Err(Denied::CLIENT_ID),
                }
            }
            principal.user = Some(device.user.into());
        }
        if let Some(identity) = identity {
            if client_id.is_empty() {
                client_id.clone_from(&identity);
            }
            if client_id != identity {
                return Err(Denied::CLIENT_ID);
            }
            principal.identity = Some(identity.into());
        }
        let may_be_anonymous = match anonymous {
            Anonymous::Loopback => peer.to_canonical().is_loopback(),
            Anonymous::Never => false,
        };
        if principal.name().is_none() && !may_be_anonymous {
            return Err(Denied::ANONYMOUS);
        }
        Ok((principal, client_id))
    }

    async fn check_password(
        &self,
        user: String,
        password: Option<Password>,
    ) -> Result<Device, Denied> {
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let store = self.store.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let device = store.device(&user).map_err(|error| {
                tracing::error!(error = %error, "the list of devices cannot be read");
                Denied::STORE
            })?;
            let hash = match &device {
                Some(device) => device.password_hash.as_str(),
                None => decoy(),
            };
            let given = password.as_ref().map_or(&[][..], |given| &given.0);
            let right = PasswordHash::new(hash)
                .is_ok_and(|hash| Argon2::default().verify_password(given, &hash).is_ok());
            match device {
                Some(device) if right && password.is_some() => Ok(device),
                _ => Err(Denied::CREDENTIALS),
            }
        });
        checked.await.unwrap_or(Err(Denied::CREDENTIALS))
    }
}

/// A hash for users that there are not, so that they cost the same time.
fn decoy() -> &'static str {
    static DECOY: OnceLock<String> = OnceLock::new();
    DECOY.get_or_init(|| hash_password("nobody's").unwrap_or_default())
}

/// The name in a client certificate: the first URI or DNS name of its subject alternative names,
/// else the common name of its subject.
pub(crate) fn certificate_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let alternative = certificate.subject_alternative_name().ok().flatten().and_then(|extension| {
        extension.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(text) | GeneralName::URI(text) => Some(*text),
            _ => None,
        })
    });
    let common = || certificate.subject().iter_common_name().find_map(|name| name.as_str().ok());
    let name = alternative.or_else(common)?;
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_verifies_its_password_and_no_other() {
        let hash = hash_password("hunter2").expect("random numbers");
        assert!(hash.starts_with("$argon2id$"), "{hash}");
        let hash = PasswordHash::new(&hash).expect("a PHC string");
        let verify = |password: &[u8]| Argon2::default().verify_password(password, &hash).is_ok();
        assert!(verify(b"hunter2") && !verify(b"hunter3") && !verify(b""));
    }

    fn certificate(names: &[&str], common: Option<&str>) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("valid names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(common) = common {
            params.distinguished_name.push(rcgen::DnType::CommonName, common);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn a_certificate_is_called_by_its_alternative_name_first() {
        let name = |names: &[&str], common| certificate_name(&certificate(names, common));
        assert_eq!(name(&["pump-1"], Some("other")).as_deref(), Some("pump-1"));
        assert_eq!(name(&[], Some("pump-2")).as_deref(), Some("pump-2"));
        assert_eq!(name(&[], None), None);
        assert_eq!(certificate_name(b"no certificate"), None);
    }
}
