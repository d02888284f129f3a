//! What a worker's machine has in use, as policies see it: fractions from 0, idle, to 1.

use super::Candidate;

/// Counted where a worker does not tell: neither good nor bad.
const UNKNOWN: f64 = 0.5;
/// Requests that a worker takes which states no limit, as far as shares are concerned: those of ours, unless told otherwise.
const USUAL_CAPACITY: u32 = 64;

/// A resource as a worker tells of it.
pub(super) fn used(told: Option<f64>) -> f64 {
    told.filter(|told| told.is_finite()).map_or(UNKNOWN, |told| told.clamp(0.0, 1.0))
}

/// The part of what was free at its last heartbeat that the requests given since will take: each as much as one of all that
/// the worker takes at once. Without it, everyone would run to the worker that looked idle, for a whole heartbeat.
pub(super) fn promised(candidate: &Candidate) -> f64 {
    let capacity = candidate.capacity.unwrap_or(USUAL_CAPACITY).max(1);
    (f64::from(candidate.given) / f64::from(capacity)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_told_counts_as_half_used() {
        assert_eq!([None, Some(f64::NAN), Some(0.2), Some(7.0)].map(used), [0.5, 0.5, 0.2, 1.0]);
    }

    #[test]
    fn each_request_since_the_last_heartbeat_takes_its_share() {
        let given = |given, capacity| promised(&Candidate { given, capacity, ..Candidate::IDLE });
        assert_eq!((given(0, Some(4)), given(1, Some(4)), given(9, Some(4))), (0.0, 0.25, 1.0));
        assert_eq!((given(16, None), given(1, Some(0))), (0.25, 1.0));
    }
}
