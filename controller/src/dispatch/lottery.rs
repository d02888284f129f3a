//! `lottery`: chance proportional to speed, whatever the load.

use rand::{Rng, RngExt as _};

use super::{Candidate, Policy, PolicyRequest};

/// Picks at random, each candidate with a chance proportional to its speed.
#[derive(Debug, Clone, Copy)]
pub struct Lottery;

impl Policy for Lottery {
    fn name(&self) -> &'static str {
        "lottery"
    }

    fn pick(&self, candidates: &[Candidate<'_>], _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> usize {
        let total: f64 = candidates.iter().map(|candidate| candidate.speed).sum();
        if !(total > 0.0 && total.is_finite()) {
            return rng.random_range(0..candidates.len());
        }
        let mut drawn = rng.random_range(0.0..total);
        for (index, candidate) in candidates.iter().enumerate() {
            if drawn < candidate.speed {
                return index;
            }
            drawn -= candidate.speed;
        }
        // Rounding has carried the draw past the end; the last one with any chance takes it.
        candidates.iter().rposition(|candidate| candidate.speed > 0.0).expect("the total is above zero")
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::picks;
    use super::*;

    #[test]
    fn chances_follow_speeds() {
        let counts = picks(&Lottery, &[(1.0, 0), (3.0, 0), (0.0, 0)], 4000, true);
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
        assert!((2900..3100).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[2], 0, "{counts:?}");
    }

    #[test]
    fn load_plays_no_part() {
        let counts = picks(&Lottery, &[(1.0, 1000), (1.0, 0)], 2000, false);
        assert!((900..1100).contains(&counts[0]), "{counts:?}");
    }
}
