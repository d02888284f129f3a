//! The likeliest entries of a row, without sorting it.

use std::cmp::Ordering;

/// Entries looked at together: one comparison of vectors tells that none of them matters.
const BLOCK: usize = 16;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: u32,
    pub(super) logit: f32,
    /// Its unnormalised probability, 1 for the likeliest; 0 until it is computed.
    pub(super) weight: f32,
}

impl Candidate {
    pub(super) fn new(token: usize, logit: f32) -> Self {
        Self { token: token as u32, logit, weight: 0.0 }
    }

    /// The one order among candidates, without ties: by logit, then by id.
    pub(super) fn likelier_first(&self, other: &Self) -> Ordering {
        other.logit.total_cmp(&self.logit).then(self.token.cmp(&other.token))
    }
}

/// The largest of the row, minus infinity when it is empty. The row has no NaN.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    let mut lanes = [f32::NEG_INFINITY; BLOCK];
    for block in blocks {
        for (lane, logit) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, *logit);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Not `f32::max`: what that does with NaN keeps the loop from becoming vector instructions.
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Where `logit` is first in the row.
pub(super) fn position(logits: &[f32], logit: f32) -> Option<u32> {
    logits.iter().position(|candidate| *candidate == logit).map(|index| index as u32)
}

/// Leaves in `best` the `k` likeliest entries of the row, in any order; less where fewer are above minus infinity.
///
/// One pass: `best` is cut to `k` whenever it has grown to twice that, and from then on only entries above the least of
/// those count. One that equals it has a higher id, and so comes after it in any case.
pub(super) fn top(logits: &[f32], k: usize, best: &mut Vec<Candidate>) {
    best.clear();
    if k == 0 {
        return;
    }
    let mut threshold = f32::NEG_INFINITY;
    for (index, block) in logits.chunks(BLOCK).enumerate() {
        if block.iter().fold(f32::NEG_INFINITY, |max, logit| larger(max, *logit)) <= threshold {
            continue;
        }
        let entries = block.iter().enumerate().map(|(offset, logit)| Candidate::new(index * BLOCK + offset, *logit));
        best.extend(entries.filter(|entry| entry.logit > threshold));
        if best.len() >= 2 * k {
            threshold = cut(best, k);
        }
    }
    if best.len() > k {
        cut(best, k);
    }
}

/// Keeps the `k` likeliest, at least one, and returns the least logit among them.
fn cut(best: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, least, _) = best.select_nth_unstable_by(k - 1, Candidate::likelier_first);
    let threshold = least.logit;
    best.truncate(k);
    threshold
}

/// The candidates' weights together.
pub(super) fn mass(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Keeps the smallest set of candidates, the first by `order`, whose mass reaches `target`, and never less than one. The
/// likeliest first, that is top-p (Holtzman et al. 2020, arXiv:1904.09751, section 3.1).
///
/// Selection by mass instead of rank: halve the range in which the last one kept must be, and sum only its first half.
pub(super) fn keep_mass(
    candidates: &mut Vec<Candidate>,
    target: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) {
    let (mut low, mut high, mut reached) = (0, candidates.len(), 0.0);
    while low + 1 < high {
        let middle = (high - low) / 2;
        candidates[low..high].select_nth_unstable_by(middle, &order);
        let half = mass(&candidates[low..low + middle]);
        if reached + half >= target {
            high = low + middle;
        } else {
            reached += half;
            low += middle;
        }
    }
    candidates.truncate(high);
}
