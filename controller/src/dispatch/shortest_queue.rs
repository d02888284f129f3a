//! `shortest_queue`: the least load for its speed.

use rand::Rng;

use super::{Candidate, Candidates, Policy, PolicyRequest, Seat};

/// Picks the candidate with the least load divided by speed; among equals, any at random, so that idle workers share.
#[derive(Debug, Clone, Copy)]
pub struct ShortestQueue;

impl Policy for ShortestQueue {
    fn name(&self) -> &'static str {
        "shortest_queue"
    }

    fn key(&self, candidate: &Candidate) -> f64 {
        candidate.queue()
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
    fn held_requests_spread_in_the_ratio_of_speeds() {
        let counts = picks(&ShortestQueue, vec![candidate(1.0, 0), candidate(3.0, 0)], 400, true);
        assert!((99..=101).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn idle_workers_share_alike() {
        let counts = picks(&ShortestQueue, vec![candidate(1.0, 0); 3], 3000, false);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_loaded_worker_gets_nothing_while_another_is_idle() {
        assert_eq!(picks(&ShortestQueue, vec![candidate(10.0, 1), candidate(0.1, 0)], 100, false), [0, 100]);
    }
}
