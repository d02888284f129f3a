//! How long a newcomer must wait for a worker, at the least. Pure.
//!
//! An estimate that is too long refuses what would have been served, so everything here leans to the short side: whoever
//! stands next may be served at once, an erratic duration counts as a short one, and what was seen long ago counts for
//! nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Weight of what comes in a moving average.
const WEIGHT: f64 = 0.125;
/// The same for how far it lies from the average.
const DEVIATION_WEIGHT: f64 = 0.25;
/// How many deviations below the average still count as usual.
const DEVIATIONS: f64 = 2.0;
/// After this time without anything new the past says nothing about the future.
const MEMORY: Duration = Duration::from_secs(60);
/// After this time without anything a model is forgotten altogether.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// What is known of the models.
#[derive(Debug, Default)]
pub(crate) struct Estimates {
    models: HashMap<String, Pace>,
}

/// What is known of one model.
#[derive(Debug)]
struct Pace {
    /// Between two who left the queue for a worker, while others waited.
    departures: Usual,
    /// When the last one left, since the queue began.
    last_departure: Option<Instant>,
    /// From a worker's ticket to the first token.
    first_token: Usual,
    /// From a worker's ticket to the end.
    whole: Usual,
    /// When something was heard last.
    heard: Instant,
}

/// A moving average of durations, with how far they lie from it.
#[derive(Debug, Clone, Copy, Default)]
struct Usual {
    /// Average and mean deviation in seconds, and when the last one came.
    known: Option<(f64, f64, Instant)>,
}

/// The least that a newcomer must expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Time to a worker.
    pub(crate) worker: Duration,
    /// Time to the first that comes from it.
    pub(crate) answer: Duration,
}

impl Estimates {
    /// A queue begins: the time since someone left an earlier one tells nothing about how fast it moves.
    pub(crate) fn begun(&mut self, model: &str) {
        if let Some(pace) = self.models.get_mut(model) {
            pace.last_departure = None;
        }
    }

    /// One left the queue for a worker.
    pub(crate) fn departed(&mut self, model: &str, now: Instant) {
        let pace = self.pace(model, now);
        if let Some(last) = pace.last_departure.replace(now) {
            pace.departures.add(now.saturating_duration_since(last), now);
        }
    }

    /// A request has ended well, that long after it had its worker.
    pub(crate) fn ended(&mut self, model: &str, first_token: Option<Duration>, whole: Duration, now: Instant) {
        let pace = self.pace(model, now);
        if let Some(first_token) = first_token {
            pace.first_token.add(first_token.min(whole), now);
        }
        pace.whole.add(whole, now);
    }

    /// The least wait of one before whom so many are served; `in_flight`: requests that run for the model. `None` while
    /// nothing is known, or none must be expected.
    pub(crate) fn least(&self, model: &str, ahead: usize, in_flight: u32, now: Instant) -> Option<Expected> {
        let pace = self.models.get(model)?;
        let worker = match ahead {
            0 => Some(0.0), // whoever is next may be served at once
            _ => pace.departures.least_of(ahead, now).or_else(|| {
                // Places become free as requests end: so many at a time.
                Some(pace.whole.least_of(ahead, now)? / f64::from(in_flight.max(1)))
            }),
        };
        let answer = pace.first_token.least_of(1, now);
        Some(Expected { worker: span(worker), answer: span(answer) }).filter(|expected| !expected.total().is_zero())
    }

    /// Forgets models of which nothing has come for long.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.models.retain(|_, pace| now.saturating_duration_since(pace.heard) < FORGOTTEN);
    }

    fn pace(&mut self, model: &str, now: Instant) -> &mut Pace {
        if !self.models.contains_key(model) {
            let unknown = Usual::default();
            let pace =
                Pace { departures: unknown, last_departure: None, first_token: unknown, whole: unknown, heard: now };
            self.models.insert(model.to_owned(), pace);
        }
        let pace = self.models.get_mut(model).expect("it was put in");
        pace.heard = now;
        pace
    }
}

impl Expected {
    /// Time to the answer.
    pub(crate) fn total(self) -> Duration {
        self.worker + self.answer
    }
}

impl Usual {
    fn add(&mut self, duration: Duration, now: Instant) {
        let seconds = duration.as_secs_f64();
        let (average, deviation) = match self.known.filter(|_| self.is_fresh(now)) {
            Some((average, deviation, _)) => {
                let off = seconds - average;
                (average + WEIGHT * off, deviation + DEVIATION_WEIGHT * (off.abs() - deviation))
            }
            None => (seconds, seconds / 2.0), // of one alone it cannot be said how usual it is
        };
        self.known = Some((average, deviation, now));
    }

    /// What so many of them take together in seconds, if each is rather short. Deviations of many that have nothing to
    /// do with each other grow by the root of their number.
    fn least_of(&self, count: usize, now: Instant) -> Option<f64> {
        let (average, deviation, _) = self.known.filter(|_| self.is_fresh(now))?;
        let count = count as f64;
        Some((count * average - count.sqrt() * DEVIATIONS * deviation).max(0.0))
    }

    /// One that takes minutes is remembered for as long again.
    fn is_fresh(&self, now: Instant) -> bool {
        self.known.is_some_and(|(average, _, last)| {
            let memory = MEMORY.as_secs_f64().max(2.0 * average);
            now.saturating_duration_since(last).as_secs_f64() < memory
        })
    }
}

fn span(seconds: Option<f64>) -> Duration {
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixtures::secs;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Estimates after departures at these milliseconds, all with others behind them.
    fn departures(start: Instant, at: &[u64]) -> Estimates {
        let mut estimates = Estimates::default();
        for at in at {
            estimates.departed("m", start + millis(*at));
        }
        estimates
    }

    fn worker(estimates: &Estimates, ahead: usize, now: Instant) -> Option<u128> {
        estimates.least("m", ahead, 1, now).map(|expected| expected.worker.as_millis())
    }

    #[test]
    fn nothing_is_expected_while_nothing_is_known() {
        let now = Instant::now();
        let mut estimates = Estimates::default();
        assert_eq!(estimates.least("m", 1000, 1, now), None);
        estimates.departed("m", now);
        assert_eq!(estimates.least("m", 1000, 1, now), None, "one departure is no pace");
        estimates.departed("m", now + secs(1));
        assert_eq!(estimates.least("m", 0, 1, now + secs(1)), None, "whoever is next may be served at once");
        assert_eq!(estimates.least("n", 1000, 1, now), None, "models have nothing to do with each other");
    }

    #[test]
    fn departures_tell_how_fast_the_queue_moves() {
        let now = Instant::now();
        // One interval of a second: average 1000, deviation 500. Ten take 10,000 - 3.162 * 2 * 500 at the least.
        let one = departures(now, &[0, 1000]);
        assert_eq!(worker(&one, 10, now + secs(1)), Some(6837));
        assert_eq!(worker(&one, 1, now + secs(1)), None, "one alone may be far off");
        // A second one of 2 s: average 1000 + 1000/8, deviation 500 + (1000 - 500)/4.
        let two = departures(now, &[0, 1000, 3000]);
        assert_eq!(worker(&two, 100, now + secs(3)), Some(112_500 - 20 * 625));
        // A steady pace has no deviation left, and counts as it is.
        let steady: Vec<u64> = (0..40).map(|number| number * 500).collect();
        let steady = departures(now, &steady);
        assert_eq!(worker(&steady, 4, now + secs(20)), Some(1999));
        assert_eq!(worker(&steady, 1000, now + secs(20)), Some(499_999));
    }

    #[test]
    fn a_pause_in_which_nobody_waited_is_no_pace() {
        let now = Instant::now();
        let mut estimates = departures(now, &[0, 1000]);
        let before = worker(&estimates, 10, now + secs(1));
        estimates.begun("m");
        estimates.departed("m", now + secs(30));
        assert_eq!(worker(&estimates, 10, now + secs(30)), before, "a second, as before");
        estimates.departed("m", now + secs(31));
        assert!(worker(&estimates, 10, now + secs(31)) > before, "a second time: that is more certain");
    }

    #[test]
    fn ends_tell_it_while_no_queue_has_moved() {
        let now = Instant::now();
        let mut estimates = Estimates::default();
        for _ in 0..40 {
            estimates.ended("m", Some(millis(200)), secs(8), now);
        }
        let expected = |ahead, in_flight| estimates.least("m", ahead, in_flight, now).expect("much is known");
        assert_eq!(expected(0, 4), Expected { worker: Duration::ZERO, answer: expected(0, 4).answer });
        assert_eq!(expected(0, 4).answer.as_millis(), 199);
        assert_eq!(expected(10, 4).worker.as_millis(), 19_999, "four at a time, eight seconds each");
        assert_eq!(expected(10, 0).worker.as_millis(), 79_999);
        assert_eq!(expected(10, 4).total(), expected(10, 4).worker + expected(0, 4).answer);
    }

    #[test]
    fn where_no_first_token_is_told_of_none_is_expected() {
        let now = Instant::now();
        let mut estimates = Estimates::default();
        for _ in 0..40 {
            estimates.ended("m", None, secs(2), now);
        }
        assert_eq!(estimates.least("m", 0, 1, now), None);
        let expected = estimates.least("m", 1, 1, now).expect("ends are known");
        assert_eq!((expected.worker.as_millis(), expected.answer), (1999, Duration::ZERO));
    }

    #[test]
    fn what_was_long_ago_counts_for_nothing() {
        let now = Instant::now();
        let mut estimates = departures(now, &[0, 1000]);
        assert!(worker(&estimates, 10, now + secs(60)).is_some());
        assert_eq!(worker(&estimates, 10, now + secs(61)), None);
        estimates.sweep(now + secs(600));
        assert_eq!(estimates.models.len(), 1);
        estimates.sweep(now + secs(601));
        assert_eq!(estimates.models.len(), 0);
        let slow = departures(now, &[0, 100_000]);
        assert!(worker(&slow, 10, now + secs(299)).is_some(), "what takes minutes is remembered for minutes");
        assert!(worker(&slow, 10, now + secs(300)).is_none());
    }

    proptest! {
        #[test]
        fn the_least_wait_grows_with_those_ahead_and_never_exceeds_the_average(
            intervals in proptest::collection::vec(0..20_000_u64, 1..50),
            ahead in 1..500_usize,
        ) {
            let mut at = Instant::now();
            let mut estimates = Estimates::default();
            estimates.departed("m", at);
            for interval in &intervals {
                at += millis(*interval);
                estimates.departed("m", at);
            }
            let least = |ahead| estimates.least("m", ahead, 1, at).map_or(Duration::ZERO, |expected| expected.worker);
            prop_assert!(least(ahead) <= least(ahead + 1));
            let longest = *intervals.iter().max().expect("some");
            prop_assert!(least(ahead) <= millis(longest + 1) * u32::try_from(ahead).expect("few"));
        }
    }
}
