//! `lottery`: chance proportional to speed, whatever the load.

use rand::Rng;

use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat};

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

    fn reason(&self, picked: &Picked<'_>) -> String {
        let (own, all) = (picked.candidate().speed, picked.candidates.summary().speed);
        format!("{} (speed {own:.1} of {all:.1})", picked.was_drawn(self))
    }

    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>) -> Option<f64> {
        Some(candidates.chance_of_drawn(candidate.speed, &|all| all.sum))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{candidate, explained, picks};
    use super::*;

    #[test]
    fn it_tells_the_chance() {
        let told = explained(&Lottery, &[candidate(1.0, 7), candidate(3.0, 0)], 3);
        let expected = [
            "w0 was drawn with a chance of 25.0 % (speed 1.0 of 4.0)",
            "w1 was drawn with a chance of 75.0 % (speed 3.0 of 4.0)",
        ];
        assert!(expected.contains(&&*told.0), "{}", told.0);
        assert_eq!(told.1, [Some(0.25), Some(0.75)]);
    }

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
