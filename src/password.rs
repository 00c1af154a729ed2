//! How the passwords of devices are kept: Argon2id hashes in PHC string form.
//!
//! What people choose can be guessed, so that each guess has to be expensive. A password that was
//! made here has 120 random bits; nobody guesses those, however cheap a guess is. Its hash is
//! cheap, so that ten thousand devices can log in at once after a restart.
//!
//! Invariant: a failure costs the same whatever was wrong. Unknown user, wrong password for a cheap
//! or for an expensive hash: each takes one check of either cost.

use std::sync::OnceLock;

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};

/// Memory in KiB and passes for passwords that people choose: OWASP's first choice for Argon2id.
const CHOSEN: (u32, u32) = (19 * 1024, 2);
/// The same for passwords of 120 random bits.
const MADE: (u32, u32) = (64, 1);

/// Where a password comes from, which decides what its hash costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A person has chosen it.
    Chosen,
    /// It was made at random, with at least 100 bits.
    Made,
}

/// The password could not be hashed.
#[derive(Debug, thiserror::Error)]
#[error("hashing the password: {0}")]
pub struct HashError(String);

/// Hashes a password as the store keeps it: Argon2id with a random salt, in PHC string form. Takes
/// some 20 ms for one that was chosen: not for async code.
///
/// # Errors
/// The system has no random numbers.
pub fn hash(password: &str, origin: Origin) -> Result<String, HashError> {
    let (memory, passes) = match origin {
        Origin::Chosen => CHOSEN,
        Origin::Made => MADE,
    };
    let params = Params::new(memory, passes, 1, None).expect("within Argon2's limits");
    let hash = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password(password.as_bytes())
        .map_err(|error| HashError(error.to_string()))?;
    Ok(hash.to_string())
}

/// Whether `given` is the password behind `known`; where it is not, one hash of either cost has
/// been computed.
pub fn verify(known: Option<&str>, given: &[u8]) -> bool {
    let fits = |hash: &PasswordHash| Argon2::default().verify_password(given, hash).is_ok();
    let hash = known.and_then(|known| PasswordHash::new(known).ok());
    let cost = hash.as_ref().map(cost);
    if hash.as_ref().is_some_and(fits) {
        return true;
    }
    for (origin, decoy) in decoys() {
        let done = cost.is_some_and(|cost| (cost == MADE) == (*origin == Origin::Made));
        if !done && let Ok(decoy) = PasswordHash::new(decoy) {
            fits(&decoy);
        }
    }
    false
}

fn cost(hash: &PasswordHash) -> (u32, u32) {
    let number = |name: &str| hash.params.get_decimal(name).unwrap_or(0);
    (number("m"), number("t"))
}

/// A hash of either cost that no password fits.
fn decoys() -> &'static [(Origin, String)] {
    static DECOYS: OnceLock<Vec<(Origin, String)>> = OnceLock::new();
    DECOYS.get_or_init(|| {
        let decoy = |origin| (origin, hash("nobody's", origin).unwrap_or_default());
        vec![decoy(Origin::Made), decoy(Origin::Chosen)]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_verifies_its_password_and_no_other() {
        for origin in [Origin::Chosen, Origin::Made] {
            let hash = hash("hunter2", origin).expect("random numbers");
            assert!(hash.starts_with("$argon2id$v=19$m="), "{hash}");
            let hash = Some(hash.as_str());
            assert!(verify(hash, b"hunter2") && !verify(hash, b"hunter3") && !verify(hash, b""));
        }
        assert!(!verify(None, b"nobody's") && !verify(Some("no hash"), b"x"));
        assert!(decoys().iter().all(|(_, decoy)| !decoy.is_empty()));
    }

    #[test]
    fn the_cost_of_a_hash_is_read_from_it() {
        let of = |origin| hash("x", origin).expect("random numbers");
        let chosen = of(Origin::Chosen);
        assert_eq!(cost(&PasswordHash::new(&chosen).expect("a hash")), CHOSEN);
        let made = of(Origin::Made);
        assert_eq!(cost(&PasswordHash::new(&made).expect("a hash")), MADE);
    }
}
