//! One worker: requests that run together and share what it can do, and those that wait in it.

use std::collections::VecDeque;
use std::time::Duration;

use muster_shared::control::Resources;

/// Requests that run together, as a worker has it unless told otherwise.
pub(super) const SLOTS: usize = 16;
/// Requests that wait in it besides; likewise.
pub(super) const QUEUE: usize = 48;
/// What each request that runs beside another adds to the time of both, as a fraction: one alone does 40.5 tokens a
/// second, sixteen together do 217 (BENCHMARKS.md, int8).
const COMPANY: f64 = 0.13;
/// Beginnings that a worker keeps beside its slots.
const KEPT: usize = 16;
/// Weight of the newest step in the measured speed, as in the engine.
const SPEED_WEIGHT: f64 = 0.05;
/// Memory that is in use when nothing runs, and what full slots add.
const MEMORY: (f64, f64) = (0.4, 0.4);
/// Network that each running request takes: text is little.
const NETWORK: f64 = 0.001;

/// Tokens per second that a worker does at most.
pub(super) fn most(pace: f64) -> f64 {
    pace * SLOTS as f64 * share(SLOTS)
}

/// What each of so many requests gets of the pace of one alone.
fn share(running: usize) -> f64 {
    1.0 / (1.0 + COMPANY * (running as f64 - 1.0).max(0.0))
}

/// A request at a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Attempt {
    /// Of the request.
    pub(super) number: usize,
    /// Tokens of its answer.
    pub(super) answer: f64,
    /// How its prompt begins, and what it costs to read that.
    pub(super) beginning: Option<(usize, f64)>,
    /// The part of its work after which it breaks off.
    pub(super) breaks: Option<f64>,
}

/// A request that runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    attempt: Attempt,
    /// [`Worker::given`] at its end.
    ends: f64,
}

/// What became of a request that a worker was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Runs,
    Waits,
    /// There is no room.
    Refused,
}

/// A worker.
#[derive(Debug)]
pub(super) struct Worker {
    /// Tokens per second of one request that runs alone.
    pace: f64,
    gpu: bool,
    running: Vec<Running>,
    waiting: VecDeque<Attempt>,
    /// Beginnings it keeps, the last used at the end.
    kept: Vec<usize>,
    /// Tokens that a request has got which runs from the start on; all that run get the same.
    given: f64,
    /// Up to when all this is counted.
    now: Duration,
    /// Tokens per second of all that run: a moving average over steps.
    measured: Option<f64>,
    totals: Totals,
    /// The totals at the last heartbeat.
    told: Totals,
    /// Grows whenever the next end may have changed.
    pub(super) version: u64,
}

/// What a worker has done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    /// Seconds with a request.
    pub(super) busy: f64,
    /// The same, summed over slots.
    pub(super) slots: f64,
    /// Tokens.
    pub(super) tokens: f64,
}

impl Worker {
    pub(super) fn new(pace: f64, gpu: bool) -> Self {
        Self {
            pace,
            gpu,
            running: Vec::new(),
            waiting: VecDeque::new(),
            kept: Vec::new(),
            given: 0.0,
            now: Duration::ZERO,
            measured: None,
            totals: Totals::default(),
            told: Totals::default(),
            version: 0,
        }
    }

    /// Takes a request, if there is room.
    pub(super) fn take(&mut self, attempt: Attempt, now: Duration) -> Taken {
        self.advance(now);
        if self.running.len() < SLOTS {
            self.begin(attempt);
            Taken::Runs
        } else if self.waiting.len() < QUEUE {
            self.waiting.push_back(attempt);
            Taken::Waits
        } else {
            Taken::Refused
        }
    }

    /// Takes out a request that waits, if it does.
    pub(super) fn give_up(&mut self, number: usize) -> bool {
        let place = self.waiting.iter().position(|attempt| attempt.number == number);
        place.and_then(|place| self.waiting.remove(place)).is_some()
    }

    /// When the next request ends, if nothing else happens.
    pub(super) fn next_end(&self) -> Option<Duration> {
        let ends = self.running.iter().map(|running| running.ends).min_by(f64::total_cmp)?;
        Some(self.now + Duration::from_secs_f64(((ends - self.given) / self.rate()).max(0.0)))
    }

    /// Ends the request whose turn it is, and begins one that waits: the numbers of both.
    pub(super) fn end_next(&mut self, now: Duration) -> Option<(Attempt, Option<usize>)> {
        self.advance(now);
        let ends = self.running.iter().enumerate().min_by(|(_, a), (_, b)| a.ends.total_cmp(&b.ends));
        let place = ends.map(|(place, _)| place)?;
        let ended = self.running.swap_remove(place).attempt;
        self.version += 1;
        let next = self.waiting.pop_front();
        if let Some(attempt) = next {
            self.begin(attempt);
        }
        Some((ended, next.map(|attempt| attempt.number)))
    }

    fn begin(&mut self, attempt: Attempt) {
        let reading = attempt.beginning.map_or(0.0, |(beginning, work)| if self.keeps(beginning) { 0.0 } else { work });
        let work = (attempt.answer + reading) * attempt.breaks.unwrap_or(1.0);
        self.running.push(Running { attempt, ends: self.given + work });
        self.version += 1;
    }

    /// Whether it has a beginning still; it has from now on.
    fn keeps(&mut self, beginning: usize) -> bool {
        let known = self.kept.iter().position(|&kept| kept == beginning);
        if let Some(place) = known {
            self.kept.remove(place);
        }
        self.kept.push(beginning);
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
        known.is_some()
    }

    /// Tokens per second that each running request gets.
    fn rate(&self) -> f64 {
        self.pace * share(self.running.len())
    }

    /// Lets time pass, in which nobody comes or goes.
    pub(super) fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now).as_secs_f64();
        self.now = now;
        let running = self.running.len() as f64;
        if self.running.is_empty() || passed == 0.0 {
            return;
        }
        let steps = self.rate() * passed; // each gives every request a token
        let newest = self.rate(); // that of one sequence, as the engine has it
        let held = self.measured.unwrap_or(newest);
        self.measured = Some(newest + (held - newest) * (1.0 - SPEED_WEIGHT).powf(steps));
        self.given += steps;
        self.totals.busy += passed;
        self.totals.slots += passed * running;
        self.totals.tokens += steps * running;
    }

    /// Requests that run, and that wait.
    pub(super) fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Its speed as the engine measures it.
    pub(super) fn measured(&self) -> Option<f64> {
        self.measured
    }

    /// Tokens per second that it does at most.
    pub(super) fn most(&self) -> f64 {
        most(self.pace)
    }

    /// What it has done so far.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// What a heartbeat tells, such time after the last one: its machine, and the tokens per second.
    ///
    /// A processor or a GPU counts as in use while anything runs, as the system and NVML count it: one request keeps all
    /// cores as busy as sixteen do. Memory grows with the slots in use, whose keys and values it holds.
    pub(super) fn tell(&mut self, since: Duration) -> (Resources, f64) {
        let since = since.as_secs_f64().max(1e-3);
        let busy = ((self.totals.busy - self.told.busy) / since).min(1.0);
        let tokens = (self.totals.tokens - self.told.tokens) / since;
        self.told = self.totals;
        let used = self.running.len() as f64 / SLOTS as f64;
        let memory = MEMORY.0 + MEMORY.1 * used;
        let cpu = if self.gpu { 0.1 * busy } else { busy };
        let resources = Resources {
            cpu: Some(cpu),
            model_cpu: Some(cpu),
            memory: Some(if self.gpu { MEMORY.0 } else { memory }),
            network: Some(NETWORK * self.running.len() as f64),
            gpu: self.gpu.then_some(busy),
            gpu_memory: self.gpu.then_some(memory),
            kv_cache: Some(used),
        };
        (resources, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(number: usize, answer: f64) -> Attempt {
        Attempt { number, answer, beginning: None, breaks: None }
    }

    fn secs(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// When the requests of a worker end that does 10 tokens a second.
    fn ends(worker: &mut Worker) -> Vec<(usize, f64)> {
        let next = |_| {
            let at = worker.next_end()?;
            let (attempt, _) = worker.end_next(at)?;
            Some((attempt.number, (at.as_secs_f64() * 100.0).round() / 100.0))
        };
        (0..).map_while(next).collect()
    }

    #[test]
    fn a_request_alone_gets_the_whole_pace_and_two_disturb_each_other() {
        let mut worker = Worker::new(10.0, false);
        worker.take(attempt(1, 100.0), secs(0.0));
        assert_eq!(ends(&mut worker), [(1, 10.0)]);

        let mut worker = Worker::new(10.0, false);
        worker.take(attempt(1, 100.0), secs(0.0));
        worker.take(attempt(2, 50.0), secs(5.0));
        // Both have 50 tokens to go, at 10 / 1.13 a second each.
        assert_eq!(ends(&mut worker), [(1, 10.65), (2, 10.65)]);
    }

    #[test]
    fn sixteen_do_what_was_measured() {
        assert!((most(40.5) / 217.0 - 1.0).abs() < 0.02, "{}", most(40.5));
    }

    #[test]
    fn who_finds_no_slot_waits_and_who_finds_no_place_is_refused() {
        let mut worker = Worker::new(10.0, false);
        let taken: Vec<_> = (0..66).map(|number| worker.take(attempt(number, 10.0), secs(0.0))).collect();
        assert_eq!(taken[15..17], [Taken::Runs, Taken::Waits]);
        assert_eq!(taken[63..65], [Taken::Waits, Taken::Refused]);
        assert!(worker.give_up(20) && !worker.give_up(20) && !worker.give_up(3));
        let at = worker.next_end().expect("sixteen run");
        assert_eq!(worker.end_next(at).and_then(|(_, next)| next), Some(16));
    }

    #[test]
    fn a_beginning_that_is_kept_is_not_read_again_and_sixteen_are() {
        let mut worker = Worker::new(10.0, false);
        assert!(!worker.keeps(0) && worker.keeps(0));
        (1..16).for_each(|beginning| assert!(!worker.keeps(beginning)));
        assert!(worker.keeps(0), "sixteen are kept, and it was used again");
        assert!(!worker.keeps(16) && !worker.keeps(1), "the one used longest ago goes");
    }

    #[test]
    fn the_speed_is_that_of_one_among_those_that_run_together() {
        let mut worker = Worker::new(10.0, false);
        (0..2).for_each(|number| _ = worker.take(attempt(number, 1000.0), secs(0.0)));
        worker.advance(secs(10.0));
        let measured = worker.measured().expect("it has run");
        assert!((measured - 10.0 / 1.13).abs() < 1e-9, "{measured}");
    }

    #[test]
    fn a_machine_is_in_use_for_the_time_in_which_anything_runs() {
        let mut worker = Worker::new(10.0, true);
        worker.take(attempt(0, 10.0), secs(0.0));
        worker.end_next(secs(1.0));
        worker.advance(secs(4.0));
        let (resources, tokens) = worker.tell(secs(4.0));
        assert_eq!((resources.gpu, resources.gpu_memory, tokens), (Some(0.25), Some(0.4), 2.5));
        worker.advance(secs(8.0));
        assert_eq!(worker.tell(secs(4.0)).0.gpu, Some(0.0));
    }
}
