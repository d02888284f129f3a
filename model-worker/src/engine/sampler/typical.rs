//! Typical sampling: Meister et al. 2022 ("Locally typical sampling", arXiv:2202.00666), section 4.
//!
//! Kept are the tokens whose surprise is nearest to what is to be expected, the entropy. With the logarithm `s` of a
//! token's weight, surprise is `ln(mass) - s` and entropy is the mean of that; so their distance is that of `s` from its
//! own mean, and no logarithm is taken.

use std::cmp::Ordering;

use super::select::{self, Candidate};
use super::softmax::Softmax;

/// What the distances are measured from.
#[derive(Debug, Clone, Copy)]
struct Centre {
    softmax: Softmax,
    mean: f64,
}

impl Centre {
    fn distance(self, logit: f32) -> f64 {
        (f64::from(self.softmax.scaled(logit)) - self.mean).abs()
    }

    /// Among equals the likelier first, then the lower id.
    fn nearer_first(self, a: &Candidate, b: &Candidate) -> Ordering {
        self.distance(a.logit).total_cmp(&self.distance(b.logit)).then_with(|| a.likelier_first(b))
    }

    /// Keeps the smallest set of nearest candidates that has `target` of the mass.
    fn keep(self, candidates: &mut Vec<Candidate>, target: f64) {
        select::keep_mass(candidates, target, |a, b| self.nearer_first(a, b));
    }
}

/// Keeps the typical among weighed candidates: of their mass at least the part `p`, below 1.
pub(super) fn narrow(softmax: Softmax, p: f32, candidates: &mut Vec<Candidate>) {
    let mass = select::mass(candidates);
    let moment = |candidate: &Candidate| match candidate.weight {
        0.0 => 0.0, // its logarithm may be infinite
        weight => f64::from(weight) * f64::from(softmax.scaled(candidate.logit)),
    };
    let mean = candidates.iter().map(moment).sum::<f64>() / mass;
    Centre { softmax, mean }.keep(candidates, f64::from(p) * mass);
}

/// Leaves in `kept` the typical tokens of a whole row, weighed: of its mass at least the part `p`, below 1.
///
/// By Chebyshev's inequality at most `1 / k²` of the mass is further than `k` standard deviations from the mean, so
/// only the tokens within `1 / sqrt(1 - p)` of these can be needed. They are few, unless the row is nearly flat.
pub(super) fn choose(softmax: Softmax, logits: &[f32], p: f32, kept: &mut Vec<Candidate>) {
    let (mass, [mean, variance]) = softmax.moments(logits);
    let centre = Centre { softmax, mean };
    let target = f64::from(p) * mass;
    // The slack covers the rounding of sums in single precision.
    let reach = (variance / (1.0 - f64::from(p))).sqrt() * 1.01 + 1e-3;
    softmax.between(logits, (mean - reach, mean + reach), kept);
    if select::mass(kept) < target {
        softmax.between(logits, (f64::NEG_INFINITY, f64::INFINITY), kept);
    }
    centre.keep(kept, target);
}
