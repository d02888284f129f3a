//! `power_of_two`: of two candidates drawn at random, the one with the less load for its speed.
//!
//! Formula: `load / speed`; the lower one wins. Two choices at random leave queues nearly as short as a look at all, and
//! many controllers that decide at the same time do not all run to the same worker (Mitzenmacher 2001, "The power of two
//! choices in randomized load balancing").

use rand::Rng;

use super::{Candidate, Candidates, Policy, PolicyRequest, Seat};

/// Draws until the second differs from the first. Of two candidates one in 2^32 requests gets no second look.
const DRAWS: usize = 32;

/// Draws two different candidates, each with the same chance, and picks the one with the less load divided by speed; of
/// equals, the first.
#[derive(Debug, Clone, Copy)]
pub struct PowerOfTwo;

impl Policy for PowerOfTwo {
    fn name(&self) -> &'static str {
        "power_of_two"
    }

    fn key(&self, candidate: &Candidate) -> f64 {
        candidate.queue()
    }

    fn pick(&self, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        let first = candidates.any(rng)?;
        if candidates.summary().count == 1 {
            return Some(first);
        }
        let second = (0..DRAWS).find_map(|_| candidates.any(rng).filter(|&seat| seat != first)).unwrap_or(first);
        let queue = |seat| candidates.get(seat).map_or(f64::INFINITY, Candidate::queue);
        Some(if queue(second) < queue(first) { second } else { first })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidate, picks};
    use super::*;

    #[test]
    fn the_worst_is_never_picked_and_the_best_in_two_of_three() {
        let workers = vec![candidate(1.0, 1), candidate(1.0, 2), candidate(1.0, 3)];
        let counts = picks(&PowerOfTwo, workers, 3000, false);
        assert!((1900..2100).contains(&counts[0]) && (900..1100).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[2], 0, "it is always beside a better one");
    }

    #[test]
    fn load_counts_for_its_speed() {
        assert_eq!(picks(&PowerOfTwo, vec![candidate(1.0, 1), candidate(4.0, 3)], 100, false), [0, 100]);
    }

    #[test]
    fn idle_workers_share_alike() {
        let counts = picks(&PowerOfTwo, vec![candidate(1.0, 0), candidate(3.0, 0), candidate(2.0, 0)], 3000, false);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }
}
