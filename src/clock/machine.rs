//! What the machine's clocks show. Nothing else reads them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use super::line::Reading;

/// So much may lie between two looks at the clock since the boot for the wall clock in between to be
/// of the same moment.
const ONE_MOMENT: i64 = 100;

/// Where readings come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The machine; which boot it is does not change while a process runs.
    Machine {
        /// As the system calls it; empty where it does not say.
        boot: Arc<str>,
    },
    /// Clocks that a test moves.
    Held(Arc<Mutex<Reading>>),
    /// The machine's, shifted by what a file says, which a test of the real binary writes:
    /// `BOOT SINCE_BOOT_MS WALL_MS`. Not in a release.
    #[cfg(debug_assertions)]
    Shifted(Arc<std::path::Path>),
}

impl Source {
    /// The machine's clocks.
    pub fn machine() -> Self {
        #[cfg(debug_assertions)]
        if let Some(path) = std::env::var_os("TEST_CLOCK_OF_WATCHBELL") {
            return Self::Shifted(std::path::PathBuf::from(path).into());
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self::Machine { boot: boot.as_deref().unwrap_or_default().trim().into() }
    }

    /// Milliseconds since the boot.
    pub(super) fn since_boot(&self) -> i64 {
        match self {
            Self::Machine { .. } => since_boot(),
            Self::Held(reading) => held(reading).since_boot,
            #[cfg(debug_assertions)]
            Self::Shifted(path) => since_boot().saturating_add(shifts(path).1),
        }
    }

    /// All clocks at one moment; `None` where the process was held up in between.
    pub(super) fn read(&self) -> Option<Reading> {
        let (boot, shift) = match self {
            Self::Machine { boot } => (boot.to_string(), (0, 0)),
            Self::Held(reading) => return Some(held(reading)),
            #[cfg(debug_assertions)]
            Self::Shifted(path) => {
                let (boot, since_boot, wall) = shifts(path);
                (boot, (since_boot, wall))
            }
        };
        let (before, wall, after) = (since_boot(), wall(), since_boot());
        (after.saturating_sub(before) <= ONE_MOMENT).then(|| Reading {
            boot,
            since_boot: after.saturating_add(shift.0),
            wall: wall.saturating_add(shift.1),
        })
    }
}

fn held(reading: &Mutex<Reading>) -> Reading {
    reading.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// CLOCK_BOOTTIME goes on while the machine is suspended, and nobody sets it.
fn since_boot() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)
}

/// The wall clock, milliseconds since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub(super) fn wall() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(debug_assertions)]
fn shifts(path: &std::path::Path) -> (String, i64, i64) {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let mut words = text.split_whitespace();
    let boot = words.next().unwrap_or_default().to_owned();
    let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    (boot, number(), number())
}
