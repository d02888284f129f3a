//! `lottery`: chance proportional to speed, whatever the load.

use rand::Rng;

use super::{Candidate, Candidates, Policy, PolicyRequest, Seat};

/// Picks at random, each candidate with a chance proportional to its speed.
#[derive(Debug, Clone, Copy)]
pub struct Lottery;

impl Policy for Lottery {
    fn name(&self) -> &'static str {
        "lottery"
    }

    fn key(&self, candidate: &Candidate) -> f64 {
        candidate.speed
    }

    fn pick(&self, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        candidates.drawn(rng)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidate, picks};
    use super::*;

    #[test]
    fn chances_follow_speeds() {
        let workers = vec![candidate(1.0, 0), candidate(3.0, 0), candidate(0.0, 0)];
        let counts = picks(&Lottery, workers, 4000, true);
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
        assert!((2900..3100).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[2], 0, "{counts:?}");
    }

    #[test]
    fn load_plays_no_part() {
        let counts = picks(&Lottery, vec![candidate(1.0, 1000), candidate(1.0, 0)], 2000, false);
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
    }
}
