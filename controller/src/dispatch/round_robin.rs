//! `round_robin`: each in turn, whatever its speed and load. The baseline that others are measured against.

use rand::Rng;

use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat};

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

    fn reason(&self, picked: &Picked<'_>) -> String {
        picked.had_the_least(&match picked.candidate().turn {
            0 => "longest wait for its turn, having had none yet".to_owned(),
            turn => format!("longest wait since its turn, number {turn}"),
        })
    }

    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>) -> Option<f64> {
        Some(candidates.chance_of_least(self.key(candidate)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidate, explained, picks};
    use super::*;

    #[test]
    fn it_tells_whose_turn_it_was() {
        let at = |turn| Candidate { turn, ..Candidate::IDLE };
        let told = |turns: &[u64]| explained(&RoundRobin, &turns.iter().map(|&turn| at(turn)).collect::<Vec<_>>(), 1).0;
        assert_eq!(told(&[9, 7, 8]), "w1 had the longest wait since its turn, number 7, of 3 candidates");
        assert_eq!(told(&[9, 0]), "w1 had the longest wait for its turn, having had none yet, of 2 candidates");
    }

    #[test]
    fn each_has_its_turn_whatever_its_speed_and_load() {
        let workers = vec![candidate(1.0, 7), candidate(9.0, 0), candidate(0.1, 0)];
        assert_eq!(picks(&RoundRobin, workers, 300, true), [100, 100, 100]);
    }
}
