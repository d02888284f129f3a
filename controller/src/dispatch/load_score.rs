//! `load_score`: how much of a worker's GPU and memory is in use.
//!
//! ```text
//!   score = 0.6 × gpu + 0.4 × memory      lower wins
//! ```
//!
//! with the fractions in use that its last heartbeat told. A worker that tells of no GPU has its processors in its place.
//! `memory` is the machine's, with a GPU or without. What it does not tell counts as half used. Requests given since then
//! take their part of what the score leaves free: each one of `capacity` parts. With none given, the formula holds as it
//! stands.
//!
//! Source: the weights are those of issue 6; the correction is ours, since a report may be a heartbeat old.

use rand::Rng;

use super::usage::{promised, used};
use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat};

/// Weights of GPU or processors, and of memory.
const WEIGHTS: [f64; 2] = [0.6, 0.4];

/// Picks the candidate with the lowest score; among equals, any at random.
#[derive(Debug, Clone, Copy)]
pub struct LoadScore;

impl Policy for LoadScore {
    fn name(&self) -> &'static str {
        "load_score"
    }

    fn key(&self, candidate: &Candidate) -> f64 {
        score(candidate)
    }

    fn pick(&self, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        candidates.least(rng)
    }

    fn reason(&self, picked: &Picked<'_>) -> String {
        picked.had_the_least(&format!("lowest score, {:.3}", self.score(picked.candidate())))
    }

    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>) -> Option<f64> {
        Some(candidates.chance_of_least(self.key(candidate)))
    }
}

/// From 0, idle, to 1.
fn score(candidate: &Candidate) -> f64 {
    let resources = &candidate.resources;
    let busy = used(resources.gpu.or(resources.cpu));
    let told = WEIGHTS[0] * busy + WEIGHTS[1] * used(resources.memory);
    told + (1.0 - told) * promised(candidate)
}

#[cfg(test)]
mod tests {
    use muster_shared::control::Resources;

    use super::super::tests::{explained, picks};
    use super::*;

    fn worker(gpu: Option<f64>, cpu: f64, memory: f64) -> Candidate {
        let resources = Resources { gpu, cpu: Some(cpu), memory: Some(memory), ..Resources::default() };
        Candidate { resources, capacity: Some(10), ..Candidate::IDLE }
    }

    fn is_score(candidate: Candidate, expected: f64) {
        assert!((score(&candidate) - expected).abs() < 1e-12, "{} for {candidate:?}", score(&candidate));
    }

    #[test]
    fn it_tells_the_score() {
        let told = explained(&LoadScore, &[worker(None, 0.9, 0.25), worker(Some(0.5), 0.9, 0.25)], 1).0;
        assert_eq!(told, "w1 had the lowest score, 0.400, of 2 candidates");
    }

    #[test]
    fn scores_are_as_the_formula_says() {
        is_score(worker(Some(0.0), 1.0, 0.0), 0.0);
        is_score(worker(Some(1.0), 0.0, 1.0), 1.0);
        is_score(worker(Some(0.5), 0.9, 0.25), 0.4);
        is_score(worker(None, 0.9, 0.25), 0.64);
        is_score(Candidate::IDLE, 0.5);
        is_score(Candidate { given: 5, ..worker(Some(0.5), 0.9, 0.25) }, 0.7);
    }

    #[test]
    fn the_memory_of_a_gpu_is_not_counted() {
        let mut worker = worker(Some(0.5), 0.9, 0.25);
        worker.resources.gpu_memory = Some(1.0);
        is_score(worker, 0.4);
    }

    #[test]
    fn the_lower_score_wins() {
        let workers = vec![worker(None, 0.9, 0.25), worker(Some(0.5), 0.9, 0.25)];
        assert_eq!(picks(&LoadScore, workers, 9, false), [0, 9]);
    }
}
