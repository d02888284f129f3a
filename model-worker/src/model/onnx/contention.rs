//! Whether other work wants the processors that this process runs on.
//!
//! Linux counts for each thread how long it ran and how long it was ready to run but had to wait, for another process
//! or for the quota of its control group. The share of waiting is next to nothing on a free machine, whatever the load.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two looks.
const WINDOW: Duration = Duration::from_secs(1);
/// Less running than this tells nothing about a window.
const ENOUGH: Duration = Duration::from_millis(50);
/// Share of waiting from which on a window is contended, while threads spin. Measured on two processors: at most 0.02 on
/// a free machine, from 0.2 on beside one busy process.
const CONTENDED: f64 = 0.1;
/// Share of waiting up to which a window is calm, while they sleep: above the 0.02 of a free machine, since the threads
/// that answer requests take their turns, too.
const CALM: f64 = 0.05;
/// Contended windows in a row that end spinning: a lone burst of some other process passes by itself.
const BURST: u32 = 2;
/// Calm windows in a row that begin it again; more each time this proves wrong, up to the second number.
const PATIENCE: (u32, u32) = (10, 160);

/// What threads did in some time, all added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// Nanoseconds on a processor.
    pub(super) running: u64,
    /// Nanoseconds ready to run, without a processor.
    pub(super) waiting: u64,
}

impl Times {
    /// Share of waiting; `None` when too little ran to tell.
    pub(super) fn share(self) -> Option<f64> {
        let all = self.running + self.waiting;
        (u128::from(all) >= ENOUGH.as_nanos()).then(|| self.waiting as f64 / all as f64)
    }

    /// Reads a line of `schedstat`.
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_ascii_whitespace().map_while(|number| number.parse().ok());
        Some(Self { running: numbers.next()?, waiting: numbers.next()? })
    }
}

/// Whether the system tells how long threads wait.
pub(super) fn is_visible() -> bool {
    Threads::watch().is_some()
}

/// Looks at the times of this process's threads.
#[derive(Debug)]
pub(super) struct Threads {
    /// By thread, as they were at the last look.
    before: HashMap<u32, Times>,
}

impl Threads {
    /// Begins to look; `None` where the system does not tell.
    pub(super) fn watch() -> Option<Self> {
        let before = read(Path::new("/proc/self/task"))?;
        // Kernels that do not count give zeros.
        before.values().any(|times| times.running > 0).then_some(Self { before })
    }

    /// What the threads did since the last look; those that began or ended meanwhile do not count.
    pub(super) fn look(&mut self) -> Times {
        let now = read(Path::new("/proc/self/task")).unwrap_or_default();
        let mut sum = Times::default();
        for (thread, now) in &now {
            if let Some(before) = self.before.get(thread) {
                sum.running += now.running.saturating_sub(before.running);
                sum.waiting += now.waiting.saturating_sub(before.waiting);
            }
        }
        self.before = now;
        sum
    }
}

/// Times by thread; `None` when the folder cannot be read.
fn read(tasks: &Path) -> Option<HashMap<u32, Times>> {
    let tasks = std::fs::read_dir(tasks).ok()?.flatten();
    let times = tasks.filter_map(|task| {
        let thread = task.file_name().to_str()?.parse().ok()?;
        // A thread may end between the two.
        let line = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((thread, Times::parse(&line)?))
    });
    Some(times.collect())
}

/// Decides whether threads spin, from what they did window by window.
#[derive(Debug)]
pub(super) struct Tuner {
    spins: bool,
    /// When the current window began.
    since: Instant,
    /// Windows in a row that spoke for a change.
    row: u32,
    /// Windows in a row that it takes to spin again.
    patience: u32,
    /// Windows judged since threads spin.
    held: u32,
}

impl Tuner {
    /// Begins spinning.
    pub(super) fn new(now: Instant) -> Self {
        Self { spins: true, since: now, row: 0, patience: PATIENCE.0, held: 0 }
    }

    /// Whether threads are to spin now.
    pub(super) fn spins(&self) -> bool {
        self.spins
    }

    /// Whether it is time to look at the threads.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }

    /// Takes the share of waiting in the window that ends now; gives the new choice when it changes.
    pub(super) fn judge(&mut self, share: Option<f64>, now: Instant) -> Option<bool> {
        self.since = now;
        let share = share?;
        let (speaks, needed) = if self.spins { (share >= CONTENDED, BURST) } else { (share <= CALM, self.patience) };
        self.row = if speaks { self.row + 1 } else { 0 };
        self.held = self.held.saturating_add(1);
        if self.row < needed {
            return None;
        }
        if self.spins {
            // Ended soon after it began: sleeping threads did not see the other work, so wait longer next time.
            let lasted = self.held > self.patience;
            self.patience = if lasted { PATIENCE.0 } else { (self.patience * 2).min(PATIENCE.1) };
        }
        (self.spins, self.row, self.held) = (!self.spins, 0, 0);
        Some(self.spins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window in which so many thousandths were waited.
    fn waited(thousandths: u64) -> Option<f64> {
        Times { running: (1000 - thousandths) * 1_000_000, waiting: thousandths * 1_000_000 }.share()
    }

    /// Judges windows until the choice changes; gives how many that took.
    fn until_change(tuner: &mut Tuner, share: Option<f64>) -> Option<usize> {
        (1..=1000).find(|_| tuner.judge(share, Instant::now()).is_some())
    }

    #[test]
    fn a_window_lasts_a_second() {
        let begin = Instant::now();
        let mut tuner = Tuner::new(begin);
        assert!(!tuner.is_due(begin + WINDOW / 2));
        assert!(tuner.is_due(begin + WINDOW));
        tuner.judge(waited(0), begin + WINDOW);
        assert!(!tuner.is_due(begin + WINDOW + WINDOW / 2));
    }

    #[test]
    fn a_burst_passes_and_lasting_work_ends_spinning() {
        let mut tuner = Tuner::new(Instant::now());
        for _ in 0..100 {
            assert_eq!(tuner.judge(waited(500), Instant::now()), None);
            assert_eq!(tuner.judge(waited(50), Instant::now()), None);
        }
        assert_eq!(until_change(&mut tuner, waited(200)), Some(BURST as usize));
    }

    #[test]
    fn spinning_begins_again_when_the_machine_was_calm_for_a_while() {
        let mut tuner = Tuner::new(Instant::now());
        assert_eq!(until_change(&mut tuner, waited(300)), Some(BURST as usize));
        let patience = tuner.patience;
        for _ in 1..patience {
            assert_eq!(tuner.judge(waited(10), Instant::now()), None);
        }
        assert_eq!(tuner.judge(waited(60), Instant::now()), None, "neither calm nor contended");
        assert_eq!(until_change(&mut tuner, waited(10)), Some(patience as usize));
        assert!(tuner.spins);
    }

    #[test]
    fn each_vain_attempt_makes_the_next_one_later_and_a_good_one_forgets_them() {
        let mut tuner = Tuner::new(Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            until_change(&mut tuner, waited(300));
            pauses.push(until_change(&mut tuner, waited(0)).expect("it spins again"));
        }
        assert!(pauses.is_sorted() && pauses[0] < pauses[7], "{pauses:?}");
        assert_eq!(pauses[7], PATIENCE.1 as usize);
        assert!((0..=PATIENCE.1).all(|_| tuner.judge(waited(0), Instant::now()).is_none()));
        until_change(&mut tuner, waited(300));
        assert_eq!(until_change(&mut tuner, waited(0)), Some(PATIENCE.0 as usize));
    }

    #[test]
    fn an_idle_window_tells_nothing() {
        let mut tuner = Tuner::new(Instant::now());
        let idle = Times { running: 1_000_000, waiting: 9_000_000 };
        assert_eq!(idle.share(), None);
        assert_eq!(until_change(&mut tuner, None), None);
    }

    #[test]
    fn the_kernels_lines_are_read() {
        assert_eq!(
            Times::parse("454745448 549067288 122\n"),
            Some(Times { running: 454_745_448, waiting: 549_067_288 })
        );
        assert_eq!(Times::parse("7"), None);
        assert_eq!(Times::parse("a b c"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_busy_thread_is_seen() {
        let Some(mut threads) = Threads::watch() else { return };
        let (begin, mut seen) = (Instant::now(), Times::default());
        while seen.share().is_none() && begin.elapsed() < Duration::from_secs(20) {
            std::hint::black_box((0..1_000_000_u64).sum::<u64>());
            let now = threads.look();
            seen = Times { running: seen.running + now.running, waiting: seen.waiting + now.waiting };
        }
        assert!(seen.share().is_some_and(|share| (0.0..1.0).contains(&share)), "{seen:?}");
    }
}
