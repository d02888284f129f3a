//! The requests of a run: all that is drawn about them, before anything is decided.
//!
//! They are drawn from the seed alone, so every policy gets the same ones at the same times.

use std::f64::consts::TAU;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::scenario::{Arrivals, Beginnings, Scenario};
use super::worker;

/// Half of all answers are shorter, in tokens.
const MEDIAN_ANSWER: f64 = 150.0;
/// Standard deviation of an answer's logarithm: one in twenty is longer than 560 tokens.
const SPREAD: f64 = 0.8;
/// No answer is longer, in tokens; nor shorter than one.
const LONGEST_ANSWER: f64 = 4096.0;

/// One request, as it is wherever it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Request {
    /// When it comes; at the start where clients ask again.
    pub(super) at: Duration,
    /// Tokens of its answer.
    pub(super) answer: f64,
    /// How its prompt begins, and what it costs to read that, in tokens.
    pub(super) beginning: Option<(usize, f64)>,
}

impl Request {
    /// Tokens of answer and prompt, with nothing kept.
    #[cfg(test)]
    fn work(&self) -> f64 {
        self.answer + self.beginning.map_or(0.0, |(_, work)| work)
    }
}

/// So many requests of a scenario, in the order of their arrival.
pub(super) fn draw(scenario: &Scenario, count: usize, seed: u64) -> Vec<Request> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut source = Source::new(scenario);
    (0..count).map(|_| source.next(&mut rng)).collect()
}

#[derive(Debug)]
struct Source {
    arrivals: Arrivals,
    /// Requests per second that the fleet can do at most.
    most: f64,
    now: Duration,
    beginnings: Option<Beginnings>,
    /// Sums of the chances of the beginnings up to each.
    sums: Vec<f64>,
}

impl Source {
    fn new(scenario: &Scenario) -> Self {
        let most: f64 = scenario.machines.iter().map(|machine| worker::most(machine.pace)).sum();
        let reading = scenario.beginnings.map_or(0.0, |beginnings| beginnings.work);
        let mean = MEDIAN_ANSWER * (SPREAD * SPREAD / 2.0).exp() + reading;
        let mut sum = 0.0;
        let chances = (1..=scenario.beginnings.map_or(0, |beginnings| beginnings.count)).map(|rank| 1.0 / rank as f64);
        let sums = chances.map(|chance| {
            sum += chance;
            sum
        });
        let sums = sums.collect();
        Self {
            arrivals: scenario.arrivals,
            most: most / mean,
            now: Duration::ZERO,
            beginnings: scenario.beginnings,
            sums,
        }
    }

    fn next(&mut self, rng: &mut StdRng) -> Request {
        self.now = self.arrival(rng);
        let answer = (MEDIAN_ANSWER * (SPREAD * normal(rng)).exp()).round().clamp(1.0, LONGEST_ANSWER);
        Request { at: self.now, answer, beginning: self.beginning(rng) }
    }

    /// When the next one comes.
    fn arrival(&self, rng: &mut StdRng) -> Duration {
        let wait = exponential(rng);
        match self.arrivals {
            Arrivals::Clients(_) => Duration::ZERO,
            Arrivals::Steady { load } => self.now + Duration::from_secs_f64(wait / (load * self.most)),
            Arrivals::Bursts { load, peak, every, lasting } => {
                self.within_bursts(wait / self.most, [(lasting, peak), (every, load)])
            }
        }
    }

    /// When `wait` seconds at a load of 1 are over, where each period has phases that end so late, with such loads.
    fn within_bursts(&self, mut wait: f64, phases: [(Duration, f64); 2]) -> Duration {
        let [_, (every, _)] = phases;
        let mut at = self.now.as_secs_f64();
        loop {
            let phase = at % every.as_secs_f64();
            let inside = phases.iter().find(|(end, _)| phase < end.as_secs_f64()).unwrap_or(&phases[1]);
            let (left, load) = (inside.0.as_secs_f64() - phase, inside.1);
            if wait <= left * load {
                return Duration::from_secs_f64(at + wait / load);
            }
            wait -= left * load;
            at += left.max(1e-9); // a rounding error must not stop the clock
        }
    }

    fn beginning(&self, rng: &mut StdRng) -> Option<(usize, f64)> {
        let beginnings = self.beginnings?;
        let drawn = rng.random_range(0.0..*self.sums.last()?);
        let rank = self.sums.partition_point(|&sum| sum <= drawn).min(beginnings.count - 1);
        Some((rank, beginnings.work))
    }
}

/// Of mean 1.
fn exponential(rng: &mut StdRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln()
}

/// Of mean 0 and variance 1 (Box and Muller 1958).
fn normal(rng: &mut StdRng) -> f64 {
    let (radius, angle) = ((2.0 * exponential(rng)).sqrt(), TAU * rng.random::<f64>());
    radius * angle.cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(name: &str) -> Vec<Request> {
        let scenario: Scenario = name.parse().expect("it is listed");
        draw(&scenario, 20_000, 7)
    }

    #[test]
    fn answers_are_as_long_as_said() {
        let mut answers: Vec<_> = drawn("uniform").iter().map(|request| request.answer).collect();
        answers.sort_unstable_by(f64::total_cmp);
        assert!((146.0..154.0).contains(&answers[10_000]), "median {}", answers[10_000]);
        assert!((530.0..590.0).contains(&answers[19_000]), "95th percentile {}", answers[19_000]);
    }

    #[test]
    fn steady_requests_ask_for_seven_tenths_of_the_fleet() {
        let requests = drawn("uniform");
        let work: f64 = requests.iter().map(Request::work).sum();
        let load = work / requests[19_999].at.as_secs_f64() / (8.0 * worker::most(40.0));
        assert!((0.68..0.72).contains(&load), "{load}");
    }

    #[test]
    fn bursts_come_at_four_times_the_rate_of_the_rest() {
        let requests = drawn("bursts");
        let minutes = requests[19_999].at.as_secs() / 60;
        let whole = requests.iter().filter(|request| request.at.as_secs() < minutes * 60);
        let (inside, outside): (Vec<&Request>, Vec<_>) =
            whole.partition(|request| request.at.as_secs_f64() % 60.0 < 10.0);
        let ratio = (inside.len() as f64 / 10.0) / (outside.len() as f64 / 50.0);
        assert!((3.8..4.2).contains(&ratio), "{ratio}");
    }

    #[test]
    fn the_first_beginning_is_twice_as_frequent_as_the_second() {
        let requests = drawn("prefixes");
        let count =
            |rank| requests.iter().filter(|request| request.beginning.is_some_and(|(at, _)| at == rank)).count();
        let ratio = count(0) as f64 / count(1) as f64;
        assert!((1.85..2.15).contains(&ratio), "{ratio}");
    }

    #[test]
    fn the_same_seed_gives_the_same_requests() {
        assert_eq!(drawn("prefixes"), drawn("prefixes"));
    }
}
