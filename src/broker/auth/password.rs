//! Passwords of the devices in the store: checked off the async threads, a few at a time.
//!
//! What keeps ten thousand devices that reconnect at once from melting a small machine:
//! - A password that was right is remembered for `password_cache`, as an HMAC under a key of this
//!   process. The hash in the store is part of what is remembered, and the store is read each time:
//!   a device that was removed, or has another password, is out at once. A login that is
//!   remembered takes no permit, so wrong passwords by the thousand do not hold it up.
//! - A password that was made here is cheap to check ([`crate::password`]).
//! - The others wait in turn for one of `password_checks_max` permits, each holding no more than
//!   its password; whoever has waited for too long is told to come again.
//!
//! Invariant: what is remembered is never a password, and a wrong one is never remembered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::password;
use crate::store::Device;

/// A password that is right, for as long as its device stays what it is.
type Remembered = [u8; 32];

/// The key under which this process remembers what it has seen.
pub(super) struct ProcessKey(hmac::Key);

impl ProcessKey {
    pub(super) fn new() -> Result<Self, String> {
        let mut random = [0_u8; 32];
        getrandom::fill(&mut random)
            .map_err(|error| format!("the system gives no random numbers: {error}"))?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &random)))
    }

    /// A tag of these parts; no other list of parts has the same.
    pub(super) fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut tag = [0; 32];
        tag.copy_from_slice(context.sign().as_ref());
        tag
    }
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Checked {
    Right,
    Wrong,
    /// There were too many before it.
    NotInTime,
}

/// Checks passwords.
pub(super) struct Passwords {
    permits: Arc<Semaphore>,
    key: ProcessKey,
    remember_for: Duration,
    remembered_max: usize,
    remembered: Mutex<HashMap<Remembered, Instant>>,
}

impl Passwords {
    pub(super) fn new(
        checks_max: usize,
        remember_for: Duration,
        remembered_max: usize,
    ) -> Result<Self, String> {
        Ok(Self {
            permits: Arc::new(Semaphore::new(checks_max)),
            key: ProcessKey::new()?,
            remember_for,
            remembered_max,
            remembered: Mutex::default(),
        })
    }

    fn tag(&self, device: &Device, password: &[u8]) -> Remembered {
        self.key.tag(&[device.user.as_bytes(), device.password_hash.as_bytes(), password])
    }

    /// Whether this password was right a short while ago, and the device is what it was.
    pub(super) fn is_remembered(&self, device: &Device, password: &[u8], now: Instant) -> bool {
        if self.remember_for.is_zero() {
            return false;
        }
        let tag = self.tag(device, password);
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.get(&tag).is_some_and(|since| now.duration_since(*since) < self.remember_for)
    }

    /// Checks a password, in turn. Costs the same whatever is wrong, also for a user that there is
    /// not.
    pub(super) async fn check(
        &self,
        device: Option<&Device>,
        password: &[u8],
        patience: Duration,
    ) -> Checked {
        let permit = Arc::clone(&self.permits).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(patience, permit).await else {
            return Checked::NotInTime;
        };
        let known = device.map(|device| device.password_hash.clone());
        let given: Arc<[u8]> = password.into();
        let checked = tokio::task::spawn_blocking(move || {
            let right = password::verify(known.as_deref(), &given);
            // Held until the work is done, also for a client that has gone meanwhile.
            drop(permit);
            right
        });
        if !checked.await.unwrap_or(false) {
            return Checked::Wrong;
        }
        if let Some(device) = device {
            self.remember(self.tag(device, password), Instant::now());
        }
        Checked::Right
    }

    fn remember(&self, tag: Remembered, now: Instant) {
        if self.remember_for.is_zero() {
            return;
        }
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= self.remembered_max {
            remembered.retain(|_, since| now.duration_since(*since) < self.remember_for);
        }
        // Still full: any one goes, and costs its device one more check.
        if remembered.len() >= self.remembered_max
            && let Some(any) = remembered.keys().next().copied()
        {
            remembered.remove(&any);
        }
        remembered.insert(tag, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::password::Origin;

    fn device(password: &str, origin: Origin) -> Device {
        Device {
            user: "pump".to_owned(),
            password_hash: password::hash(password, origin).expect("random numbers"),
            client_ids: Vec::new(),
            groups: Vec::new(),
            added_at: Timestamp::default(),
        }
    }

    const MINUTE: Duration = Duration::from_secs(60);

    fn passwords(remember_for: Duration, most: usize) -> Passwords {
        Passwords::new(2, remember_for, most).expect("random numbers")
    }

    #[tokio::test]
    async fn a_right_password_is_remembered_until_the_device_changes() {
        let passwords = passwords(MINUTE, 10);
        let pump = device("hunter2", Origin::Made);
        let knows =
            |device, password: &[u8]| passwords.is_remembered(device, password, Instant::now());
        assert!(!knows(&pump, b"hunter2"));
        assert_eq!(passwords.check(Some(&pump), b"wrong", MINUTE).await, Checked::Wrong);
        assert!(!knows(&pump, b"wrong"));
        assert_eq!(passwords.check(Some(&pump), b"hunter2", MINUTE).await, Checked::Right);
        assert!(knows(&pump, b"hunter2") && !knows(&pump, b"hunter3"));
        let same_password = device("hunter2", Origin::Made);
        assert!(!knows(&same_password, b"hunter2"), "another salt");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_ends() {
        let passwords = passwords(MINUTE, 3);
        let mut now = Instant::now();
        for number in 0..10_u8 {
            passwords.remember([number; 32], now);
            now += Duration::from_secs(1);
        }
        let count = || passwords.remembered.lock().expect("no panic").len();
        assert_eq!(count(), 3);
        let pump = device("hunter2", Origin::Made);
        passwords.remember(passwords.tag(&pump, b"hunter2"), now);
        assert!(passwords.is_remembered(&pump, b"hunter2", now));
        assert!(!passwords.is_remembered(&pump, b"hunter2", now + MINUTE));
        passwords.remember([0; 32], now + MINUTE);
        assert_eq!(count(), 1, "those that are over go first");
        let off = super::tests::passwords(Duration::ZERO, 3);
        off.remember(off.tag(&pump, b"hunter2"), now);
        assert!(!off.is_remembered(&pump, b"hunter2", now));
    }

    #[tokio::test]
    async fn a_check_that_does_not_get_its_turn_says_so() {
        let passwords = passwords(MINUTE, 3);
        let _both = passwords.permits.acquire_many(2).await.expect("free");
        let pump = device("hunter2", Origin::Made);
        let patience = Duration::from_millis(5);
        assert_eq!(passwords.check(Some(&pump), b"hunter2", patience).await, Checked::NotInTime);
    }
}
