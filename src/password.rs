//! How the passwords of devices are kept: Argon2id hashes in PHC string form.
//!
//! What people choose can be guessed, so that each guess has to be expensive. A password that was
//! made here has 120 random bits; nobody guesses those, however cheap a guess is. Its hash is
//! cheap, so that ten thousand devices can log in at once after a restart.
//!
//! Invariant: a failure costs the same whatever was wrong. Unknown user, wrong password for a cheap
//! or for an expensive hash: each takes one check of either cost.

use std::sync::{Mutex, OnceLock, PoisonError};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};

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
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|error| HashError(error.to_string()))?;
    let salt = Salt::new(&random).expect("a salt of the length that PHC recommends");
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).expect("Argon2's own parameters"),
        salt: Some(salt),
        hash: Some(compute(params, password.as_bytes(), &salt).expect("within Argon2's limits")),
    };
    Ok(hash.to_string())
}

/// Argon2id of these, in the memory of an earlier one. Freed, the 19 MiB stayed with the allocator
/// once for each thread that had ever had them.
fn compute(params: Params, password: &[u8], salt: &Salt) -> Result<Output, String> {
    /// As many as were needed at a time.
    static MEMORY: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());
    let memories = || MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let is_large = params.m_cost() == CHOSEN.0;
    let kept = if is_large { memories().pop() } else { None };
    let mut memory = kept.unwrap_or_else(|| vec![Block::new(); params.block_count()]);
    let mut output = [0; Params::DEFAULT_OUTPUT_LEN];
    let computed = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(password, salt, &mut output, &mut memory[..]);
    if is_large {
        memories().push(memory);
    }
    computed.map_err(|error| error.to_string())?;
    Output::new(&output).map_err(|error| error.to_string())
}

/// Whether `given` is the password behind `hash`.
fn fits(hash: &PasswordHash, given: &[u8]) -> bool {
    let is_ours = hash.algorithm == Algorithm::Argon2id.ident()
        && hash.version == Some(Version::V0x13.into());
    let (true, Ok(params), Some(salt)) = (is_ours, Params::try_from(hash), &hash.salt) else {
        return false;
    };
    // `Output` compares in constant time.
    compute(params, given, salt).is_ok_and(|output| hash.hash == Some(output))
}

/// Whether `given` is the password behind `known`; where it is not, one hash of either cost has
/// been computed.
pub fn verify(known: Option<&str>, given: &[u8]) -> bool {
    let hash = known.and_then(|known| PasswordHash::new(known).ok());
    let cost = hash.as_ref().map(cost);
    if hash.as_ref().is_some_and(|hash| fits(hash, given)) {
        return true;
    }
    for (origin, decoy) in decoys() {
        let done = cost.is_some_and(|cost| (cost == MADE) == (*origin == Origin::Made));
        if !done && let Ok(decoy) = PasswordHash::new(decoy) {
            fits(&decoy, given);
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
