//! `shortest_queue`: the least load for its speed.

use rand::Rng;

use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat};

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

    fn reason(&self, picked: &Picked<'_>) -> String {
        picked.had_the_least(&format!("least load ÷ speed, {:.2}", picked.candidate().queue()))
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
    fn it_tells_the_queue_and_how_many_had_it() {
        let told = |loads: &[u32]| {
            let candidates: Vec<_> = loads.iter().map(|&load| candidate(2.0, load)).collect();
            explained(&ShortestQueue, &candidates, 1)
        };
        assert_eq!(told(&[3, 1, 4]).0, "w1 had the least load ÷ speed, 0.50, of 3 candidates");
        assert!(
            told(&[1, 4, 1])
                .0
                .ends_with(" had the least load ÷ speed, 0.50, as 2 of 3 candidates had, and was drawn from these")
        );
        assert!(told(&[0, 0]).0.ends_with(" had the least load ÷ speed, 0.00, as all 2 candidates had, and was drawn"));
        assert_eq!(told(&[1, 4, 1]).1, [Some(0.5), Some(0.0), Some(0.5)]);
    }

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
