//! `resource_score`: what is free of a worker's processors, memory and network.
//!
//! ```text
//!   score = 0.4 × (1 − cpu) + 0.4 × (1 − memory) + 0.2 × (1 − network)      higher wins
//! ```
//!
//! with the fractions in use that its last heartbeat told; what it did not tell counts as half used. Requests given since
//! then take their part of the score: each one of `capacity` parts. With none given, the formula holds as it stands.
//!
//! Source: the weights are those of issue 6; the correction is ours, since a report may be a heartbeat old.

use rand::Rng;

use super::usage::{promised, used};
use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat};

/// Weights of processors, memory and network.
const WEIGHTS: [f64; 3] = [0.4, 0.4, 0.2];

/// Picks the candidate with the highest score; among equals, any at random.
#[derive(Debug, Clone, Copy)]
pub struct ResourceScore;

impl Policy for ResourceScore {
    fn name(&self) -> &'static str {
        "resource_score"
    }

    /// The score with its sign changed: the least key wins.
    fn key(&self, candidate: &Candidate) -> f64 {
        -score(candidate)
    }

    fn pick(&self, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        candidates.least(rng)
    }

    fn reason(&self, picked: &Picked<'_>) -> String {
        picked.had_the_least(&format!("highest score, {:.3}", self.score(picked.candidate())))
    }

    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>) -> Option<f64> {
        Some(candidates.chance_of_least(self.key(candidate)))
    }

    fn score(&self, candidate: &Candidate) -> f64 {
        score(candidate)
    }
}

/// From 0, nothing free, to 1.
fn score(candidate: &Candidate) -> f64 {
    let resources = &candidate.resources;
    let used = [resources.cpu, resources.memory, resources.network].map(used);
    let free: f64 = WEIGHTS.iter().zip(used).map(|(weight, used)| weight * (1.0 - used)).sum();
    free * (1.0 - promised(candidate))
}

#[cfg(test)]
mod tests {
    use muster_shared::control::Resources;

    use super::super::tests::{explained, picks};
    use super::*;

    fn worker(cpu: f64, memory: f64, network: f64) -> Candidate {
        let resources =
            Resources { cpu: Some(cpu), memory: Some(memory), network: Some(network), ..Resources::default() };
        Candidate { resources, capacity: Some(10), ..Candidate::IDLE }
    }

    fn is_score(candidate: Candidate, expected: f64) {
        assert!((score(&candidate) - expected).abs() < 1e-12, "{} for {candidate:?}", score(&candidate));
    }

    #[test]
    fn it_tells_the_score() {
        let told = explained(&ResourceScore, &[worker(0.9, 0.9, 0.9), worker(0.5, 0.25, 0.5)], 1).0;
        assert_eq!(told, "w1 had the highest score, 0.600, of 2 candidates");
        assert_eq!(ResourceScore.score(&worker(0.0, 0.0, 0.0)), 1.0);
    }

    #[test]
    fn scores_are_as_the_formula_says() {
        is_score(worker(0.0, 0.0, 0.0), 1.0);
        is_score(worker(1.0, 1.0, 1.0), 0.0);
        is_score(worker(0.25, 0.5, 0.1), 0.68);
        is_score(worker(0.9, 0.2, 0.5), 0.46);
        is_score(Candidate::IDLE, 0.5);
        is_score(Candidate { given: 5, ..worker(0.25, 0.5, 0.1) }, 0.34);
    }

    #[test]
    fn the_higher_score_wins() {
        assert_eq!(picks(&ResourceScore, vec![worker(0.9, 0.2, 0.5), worker(0.25, 0.5, 0.1)], 9, false), [0, 9]);
    }

    #[test]
    fn what_was_given_since_the_last_report_turns_the_next_one_away() {
        let first = Candidate { given: 5, ..worker(0.25, 0.5, 0.1) };
        assert_eq!(picks(&ResourceScore, vec![first, worker(0.9, 0.2, 0.5)], 9, false), [0, 9]);
    }
}
