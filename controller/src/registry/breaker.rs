//! The circuit breaker of one worker: closed, open, half open.

use std::time::{Duration, Instant};

use muster_shared::control::Outcome;

use crate::config::BreakerConfig;

/// No pause grows longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a worker may be tried, as seen at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Circuit {
    /// Without restriction.
    Closed,
    /// Not now.
    Open,
    /// With one request, which decides.
    HalfOpen,
}

/// Learns from the outcomes of requests whether their worker may be tried.
#[derive(Debug, Clone)]
pub(crate) struct Breaker {
    state: State,
    /// Openings since the last success; each doubles the pause.
    openings: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant },
    HalfOpen,
}

impl Breaker {
    /// A breaker that knows no failure.
    pub(crate) fn new() -> Self {
        Self { state: State::Closed { failures: 0 }, openings: 0 }
    }

    /// Whether the worker may be tried. A pause that has passed needs no event to end.
    pub(crate) fn circuit(&self, now: Instant) -> Circuit {
        match self.state {
            State::Closed { .. } => Circuit::Closed,
            State::Open { until } if now < until => Circuit::Open,
            State::Open { .. } | State::HalfOpen => Circuit::HalfOpen,
        }
    }

    /// The end of the pause, while there is one.
    pub(crate) fn reopens_at(&self) -> Option<Instant> {
        match self.state {
            State::Open { until } => Some(until),
            State::Closed { .. } | State::HalfOpen => None,
        }
    }

    /// Takes a sign of life: the next request may try.
    pub(crate) fn beat(&mut self) {
        if matches!(self.state, State::Open { .. }) {
            self.state = State::HalfOpen;
        }
    }

    /// Takes the outcome of one request.
    ///
    /// An open circuit learns nothing: what ends now was sent before it opened, and must not prolong the pause.
    pub(crate) fn record(&mut self, outcome: Outcome, rules: &BreakerConfig, now: Instant) {
        if self.circuit(now) == Circuit::Open {
            return;
        }
        match (outcome, self.state) {
            (Outcome::Cancelled | Outcome::Overloaded, _) => {}
            (Outcome::Done, _) => *self = Self::new(),
            (Outcome::Failed, State::Closed { failures }) if failures + 1 < rules.failures.get() => {
                self.state = State::Closed { failures: failures + 1 };
            }
            (Outcome::Failed | Outcome::Unreachable, _) => self.open(rules.pause, now),
        }
    }

    fn open(&mut self, pause: Duration, now: Instant) {
        let doubled = pause.saturating_mul(2_u32.saturating_pow(self.openings));
        // A pause configured above the bound stays as it is.
        self.state = State::Open { until: now + doubled.min(LONGEST_PAUSE.max(pause)) };
        self.openings = self.openings.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: fn() -> BreakerConfig = BreakerConfig::default;

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new();
        breaker.record(Outcome::Unreachable, &RULES(), now);
        breaker
    }

    #[test]
    fn a_refused_connection_opens_the_circuit_at_once() {
        let now = Instant::now();
        assert_eq!(opened(now).circuit(now), Circuit::Open);
    }

    #[test]
    fn only_failures_in_a_row_open_the_circuit() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for outcome in [Outcome::Failed, Outcome::Failed, Outcome::Done, Outcome::Failed, Outcome::Failed] {
            breaker.record(outcome, &RULES(), now);
            assert_eq!(breaker.circuit(now), Circuit::Closed);
        }
        breaker.record(Outcome::Failed, &RULES(), now);
        assert_eq!(breaker.circuit(now), Circuit::Open);
    }

    #[test]
    fn what_says_nothing_about_the_worker_changes_nothing() {
        let now = Instant::now();
        let mut breaker = Breaker::new();
        for outcome in [Outcome::Failed, Outcome::Cancelled, Outcome::Overloaded, Outcome::Failed] {
            breaker.record(outcome, &RULES(), now);
        }
        breaker.record(Outcome::Failed, &RULES(), now);
        assert_eq!(breaker.circuit(now), Circuit::Open);
    }

    #[test]
    fn a_pause_ends_by_itself_and_a_beat_ends_it_sooner() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.circuit(now + RULES().pause), Circuit::HalfOpen);
        breaker.beat();
        assert_eq!(breaker.circuit(now), Circuit::HalfOpen);
    }

    #[test]
    fn a_success_after_the_pause_closes_the_circuit() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.record(Outcome::Done, &RULES(), now + RULES().pause);
        assert_eq!(breaker.circuit(now + RULES().pause), Circuit::Closed);
    }

    #[test]
    fn each_opening_doubles_the_pause_up_to_half_a_minute() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new();
        for seconds in [2, 4, 8, 16, 30, 30] {
            breaker.record(Outcome::Unreachable, &RULES(), now);
            let end = breaker.reopens_at().expect("it is open");
            assert_eq!(end - now, Duration::from_secs(seconds));
            now = end;
        }
    }

    #[test]
    fn requests_sent_before_the_opening_do_not_prolong_it() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.record(Outcome::Unreachable, &RULES(), now + Duration::from_secs(1));
        assert_eq!(breaker.circuit(now + RULES().pause), Circuit::HalfOpen);
    }
}
