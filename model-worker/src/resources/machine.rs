//! Looks at the machine without waiting for long.
//!
//! A machine that is short of memory answers late, and what it said last is then the best there is to tell: without it,
//! the controller would take the worker for one that is well again, and send it more.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use muster_shared::control::Resources;

use super::Meter;

/// A look that takes longer is not waited for: a heartbeat is worth more than what it tells.
const PATIENCE: Duration = Duration::from_secs(1);
/// Looks in a row that may take too long before what was seen last is too old to be told.
const REPEATS: u32 = 3;

/// A machine, and what was last seen of it.
#[derive(Debug)]
pub(super) struct Machine {
    shared: Arc<Shared>,
    /// Megabits a second of the network, where somebody knows better than the system.
    network: Option<NonZeroU32>,
    patience: Duration,
}

/// What looks that take too long share with those after them.
#[derive(Debug, Default)]
struct Shared {
    /// Locked while a look runs. Absent until the first, which has nothing to compare with.
    meter: Mutex<Option<Meter>>,
    last: Mutex<Last>,
}

/// What was seen last, and how often it was told again since.
#[derive(Debug, Default)]
struct Last {
    seen: Resources,
    repeats: u32,
}

impl Machine {
    pub(super) fn new(network: Option<NonZeroU32>) -> Self {
        Self { shared: Arc::default(), network, patience: PATIENCE }
    }

    /// What is in use now; where that takes too long, what was in use at the last look, or nothing when that is long ago.
    pub(super) async fn look(&self) -> Resources {
        let (shared, network) = (Arc::clone(&self.shared), self.network);
        let look = tokio::task::spawn_blocking(move || shared.look(network));
        let seen = tokio::time::timeout(self.patience, look).await.ok().and_then(|look| look.ok().flatten());
        seen.unwrap_or_else(|| self.shared.repeat())
    }
}

impl Shared {
    /// `None` while another look still runs. One that ends late serves those after it.
    fn look(&self, network: Option<NonZeroU32>) -> Option<Resources> {
        let mut meter = match self.meter.try_lock() {
            Ok(meter) => meter,
            // What it holds is compared with what comes: at worst one look tells nonsense between 0 and 1.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let seen = meter.get_or_insert_with(|| Meter::new(network)).look();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Last { seen, repeats: 0 };
        Some(seen)
    }

    fn repeat(&self) -> Resources {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.repeats = last.repeats.saturating_add(1);
        if last.repeats > REPEATS { Resources::default() } else { last.seen }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;
    use std::time::Instant;

    use super::super::Root;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn memory(used: u32) -> String {
        format!("MemTotal: 100 kB\nMemAvailable: {} kB\n", 100 - used)
    }

    /// A machine below a folder, whose last look was a second ago.
    fn machine(folder: &Path, patience: Duration) -> Machine {
        fs::create_dir_all(folder.join("proc")).expect("a folder");
        let machine = Machine { patience, ..Machine::new(None) };
        let last = Instant::now().checked_sub(SECOND).expect("the clock runs for longer");
        let meter = Meter::at(Root(folder.to_owned()), None, None, last);
        *machine.shared.meter.lock().expect("nobody looks") = Some(meter);
        machine
    }

    #[tokio::test]
    #[expect(clippy::await_holding_lock, reason = "a look that runs holds it, and nobody else waits for it")]
    async fn while_looks_take_too_long_the_last_is_told_again_for_a_few_beats() {
        let folder = tempfile::tempdir().expect("a folder");
        let machine = machine(folder.path(), 10 * SECOND);
        fs::write(folder.path().join("proc/meminfo"), memory(95)).expect("a file");
        let seen = machine.look().await;
        assert_eq!(seen.memory, Some(0.95));
        let shared = Arc::clone(&machine.shared);
        let runs = shared.meter.lock().expect("nobody looks");
        for _ in 0..REPEATS {
            assert_eq!(machine.look().await, seen);
        }
        for _ in 0..2 {
            assert_eq!(machine.look().await, Resources::default(), "it is too old");
        }
        drop(runs);
        assert_eq!(machine.look().await, seen, "a look that ends tells again");
    }

    #[tokio::test]
    #[expect(clippy::await_holding_lock, reason = "a look that runs holds it, and nobody else waits for it")]
    async fn a_look_that_ends_late_is_told_at_the_next_beat() {
        let folder = tempfile::tempdir().expect("a folder");
        let machine = machine(folder.path(), Duration::from_millis(10));
        let pipe = folder.path().join("proc/meminfo");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
        // Whoever reads the pipe waits until somebody has written.
        assert_eq!(machine.look().await, Resources::default(), "nothing was seen yet");
        fs::write(&pipe, memory(97)).expect("the look that was begun reads it");
        let shared = Arc::clone(&machine.shared);
        let ended = tokio::task::spawn_blocking(move || drop(shared.meter.lock()));
        ended.await.expect("the late look ends");
        let shared = Arc::clone(&machine.shared);
        let _runs = shared.meter.lock().expect("nobody looks");
        assert_eq!(machine.look().await.memory, Some(0.97));
    }
}
