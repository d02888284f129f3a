//! `round_robin`: each in turn, whatever its speed and load. The baseline that others are measured against.

use rand::Rng;

use super::{Candidate, Candidates, Policy, PolicyRequest, Seat};

/// Picks the candidate whose last turn is longest ago; among those that had none yet, any.
#[derive(Debug, Clone, Copy)]
pub struct RoundRobin;

impl Policy for RoundRobin {
    fn name(&self) -> &'static str {
        "round_robin"
    }

    fn key(&self, candidate: &Candidate) -> f64 {
        candidate.turn as f64
    }

    fn pick(&self, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        candidates.least(rng)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidate, picks};
    use super::*;

    #[test]
    fn each_has_its_turn_whatever_its_speed_and_load() {
        let workers = vec![candidate(1.0, 7), candidate(9.0, 0), candidate(0.1, 0)];
        assert_eq!(picks(&RoundRobin, workers, 300, true), [100, 100, 100]);
    }
}
