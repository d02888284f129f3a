//! `power_of_two`: of two candidates drawn at random, the one with the less load for its speed.
//!
//! Formula: `load / speed`; the lower one wins. Two choices at random leave queues nearly as short as a look at all, and
//! many controllers that decide at the same time do not all run to the same worker (Mitzenmacher 2001, "The power of two
//! choices in randomized load balancing").

use rand::Rng;

use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat, dice};

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
        let (first, second) = two(candidates, rng)?;
        let queue = |seat| candidates.get(seat).map_or(f64::INFINITY, Candidate::queue);
        Some(if queue(second) < queue(first) { second } else { first })
    }

    fn reason(&self, picked: &Picked<'_>) -> String {
        let own = picked.candidate().queue();
        let Some((first, second)) = two(picked.candidates, &mut dice(picked.seed)) else { return String::new() };
        let other = if picked.seat == first { second } else { first };
        if other == picked.seat {
            return format!("was drawn twice (load ÷ speed {own:.2})");
        }
        let (name, queue) = ((picked.name)(other), picked.candidates.get(other).map_or(0.0, Candidate::queue));
        let count = picked.candidates.summary().count;
        let how = if own < queue { "less load ÷ speed" } else { "been drawn first, and no more load ÷ speed," };
        format!("was drawn with {name} from {count} candidates, and had {how} ({own:.2} against {queue:.2})")
    }

    /// It depends on all the others, each by itself.
    fn chance(
        &self,
        _candidate: &Candidate,
        _candidates: &Candidates<'_>,
        _request: &PolicyRequest<'_>,
    ) -> Option<f64> {
        None
    }
}

/// Two different candidates, where there are two.
fn two(candidates: &Candidates<'_>, rng: &mut dyn Rng) -> Option<(Seat, Seat)> {
    let first = candidates.any(rng)?;
    if candidates.summary().count == 1 {
        return Some((first, first));
    }
    let second = (0..DRAWS).find_map(|_| candidates.any(rng).filter(|&seat| seat != first)).unwrap_or(first);
    Some((first, second))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidate, explained, picks};
    use super::*;

    #[test]
    fn it_tells_which_two_were_drawn() {
        let told = explained(&PowerOfTwo, &[candidate(1.0, 1), candidate(4.0, 2)], 1).0;
        assert_eq!(told, "w1 was drawn with w0 from 2 candidates, and had less load ÷ speed (0.50 against 1.00)");
        let told = explained(&PowerOfTwo, &[candidate(1.0, 1), candidate(1.0, 1)], 1).0;
        assert!(told.contains("been drawn first, and no more load ÷ speed, (1.00 against 1.00)"), "{told}");
    }

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
