//! `shortest_queue`: the least load for its speed.

use rand::{Rng, RngExt as _};

use super::{Candidate, Policy, PolicyRequest};

/// Picks the candidate with the least load divided by speed; among equals, any at random, so that idle workers share.
#[derive(Debug, Clone, Copy)]
pub struct ShortestQueue;

impl Policy for ShortestQueue {
    fn name(&self) -> &'static str {
        "shortest_queue"
    }

    fn pick(&self, candidates: &[Candidate<'_>], _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> usize {
        let least = candidates.iter().map(queue).fold(f64::INFINITY, f64::min);
        let ties = candidates.iter().enumerate().filter(|(_, candidate)| queue(candidate) <= least);
        let count = ties.clone().count();
        let nth = rng.random_range(0..count);
        ties.map(|(index, _)| index).nth(nth).expect("the draw is below the number of ties")
    }
}

/// Time the load takes, in requests at speed 1; without any load or speed, nothing.
fn queue(candidate: &Candidate<'_>) -> f64 {
    if candidate.load == 0 { 0.0 } else { f64::from(candidate.load) / candidate.speed }
}

#[cfg(test)]
mod tests {
    use super::super::tests::picks;
    use super::*;

    #[test]
    fn held_requests_spread_in_the_ratio_of_speeds() {
        let counts = picks(&ShortestQueue, &[(1.0, 0), (3.0, 0)], 400, true);
        assert!((99..=101).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn idle_workers_share_alike() {
        let counts = picks(&ShortestQueue, &[(1.0, 0), (1.0, 0), (1.0, 0)], 3000, false);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_loaded_worker_gets_nothing_while_another_is_idle() {
        assert_eq!(picks(&ShortestQueue, &[(10.0, 1), (0.1, 0)], 100, false), [0, 100]);
    }
}
