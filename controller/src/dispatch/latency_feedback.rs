//! `latency_feedback` and `latency_feedback_linear`: the quicker a worker has answered, the more it gets.
//!
//! Both go by the moving average of the time from a grant to its release, as the controller sees it, over requests that
//! succeeded. It holds all that makes an answer slow: a slow machine, a queue, long answers. `own` is a worker's average in
//! milliseconds, `max` the greatest of all candidates:
//!
//! ```text
//!   latency_feedback           chance ∝ 1 / own                                  higher wins more often
//!   latency_feedback_linear    chance ∝ (max − own + 1) × 100, at least 10       likewise
//! ```
//!
//! A worker that has not answered yet counts as the fastest in the first, so that it is tried; in the second, as if it had
//! answered in no time. One in twenty requests of the first goes to any worker, each with the same chance: one that was
//! slow may be so no more, and only requests can tell. In the second, the slowest still has a weight of 100, since `max` is
//! its own; the bound of 10 never comes to bear.
//!
//! Source: issue 6. The inverse is the usual weight of feedback (a worker that takes twice as long gets half).

use rand::{Rng, RngExt as _};

use super::{Candidate, Candidates, Picked, Policy, PolicyRequest, Seat, Summary, dice};

/// One request in so many goes to any worker.
const EXPLORED: u32 = 20;
/// Shortest response that is told apart, in milliseconds.
const SHORTEST: f64 = 1e-3;

/// Picks at random, each candidate with a chance by the inverse of its response time.
#[derive(Debug, Clone, Copy)]
pub struct LatencyFeedback;

impl Policy for LatencyFeedback {
    fn name(&self) -> &'static str {
        "latency_feedback"
    }

    /// The inverse of its response time; 0 where it is not known, which no known one is.
    fn key(&self, candidate: &Candidate) -> f64 {
        candidate.response_ms.map_or(0.0, |own| 1.0 / own.max(SHORTEST))
    }

    fn pick(&self, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        if rng.random_ratio(1, EXPLORED) {
            return candidates.any(rng);
        }
        let fastest = candidates.summary().greatest;
        candidates.drawn_by(rng, &|those| inverse(fastest, those))
    }

    fn reason(&self, picked: &Picked<'_>) -> String {
        if dice(picked.seed).random_ratio(1, EXPLORED) {
            let count = picked.candidates.summary().count;
            return format!("was drawn from all {count} candidates alike, as one request in {EXPLORED} is, to learn");
        }
        format!("{} ({})", picked.was_drawn(self), usual(picked.candidate()))
    }

    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>) -> Option<f64> {
        let fastest = candidates.summary().greatest;
        let own = inverse(fastest, &Summary::of(self.key(candidate), candidate));
        let drawn = candidates.chance_of_drawn(own, &|all| inverse(fastest, all));
        let (explored, any) = (1.0 / f64::from(EXPLORED), 1.0 / f64::from(candidates.summary().count.max(1)));
        Some(explored * any + (1.0 - explored) * drawn)
    }
}

/// What some candidates weigh together; one that has not answered yet weighs as much as the fastest.
fn inverse(fastest: f64, those: &Summary) -> f64 {
    those.sum + f64::from(those.ties_at(0.0)) * fastest
}

/// How fast it usually is, in words.
fn usual(candidate: &Candidate) -> String {
    candidate.response_ms.map_or("it has not answered yet".to_owned(), |own| format!("it takes {own:.0} ms"))
}

/// Picks at random, each candidate with a chance by how much faster it is than the slowest.
#[derive(Debug, Clone, Copy)]
pub struct LatencyFeedbackLinear;

impl Policy for LatencyFeedbackLinear {
    fn name(&self) -> &'static str {
        "latency_feedback_linear"
    }

    /// Its response time; 0 where it is not known.
    fn key(&self, candidate: &Candidate) -> f64 {
        candidate.response_ms.unwrap_or(0.0)
    }

    fn pick(&self, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>, rng: &mut dyn Rng) -> Option<Seat> {
        let max = candidates.summary().greatest;
        candidates.drawn_by(rng, &|those| weight(max, those))
    }

    fn reason(&self, picked: &Picked<'_>) -> String {
        let slowest = picked.candidates.summary().greatest;
        format!("{} ({}, the slowest {slowest:.0} ms)", picked.was_drawn(self), usual(picked.candidate()))
    }

    fn chance(&self, candidate: &Candidate, candidates: &Candidates<'_>, _request: &PolicyRequest<'_>) -> Option<f64> {
        let max = candidates.summary().greatest;
        let own = weight(max, &Summary::of(self.key(candidate), candidate));
        Some(candidates.chance_of_drawn(own, &|all| weight(max, all)))
    }
}

/// What some candidates weigh together in the linear formula.
fn weight(max: f64, those: &Summary) -> f64 {
    let count = f64::from(those.count);
    ((count * (max + 1.0) - those.sum) * 100.0).max(count * 10.0)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{explained, picks};
    use super::*;

    fn worker(response_ms: Option<f64>) -> Candidate {
        Candidate { response_ms, ..Candidate::IDLE }
    }

    /// Of many picks, each worker has such a share in per cent, but for 0.7 points.
    fn has_shares(policy: &dyn Policy, responses: [Option<f64>; 3], expected: [f64; 3]) {
        let counts = picks(policy, responses.map(worker).to_vec(), 50_000, false);
        let shares = [0, 1, 2].map(|place| counts[place] as f64 / 500.0);
        let near = shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() < 0.7);
        assert!(near, "{shares:?} instead of {expected:?}");
    }

    #[test]
    fn they_tell_the_chance_and_what_it_comes_from() {
        let candidates = [Some(100.0), Some(300.0), None].map(worker);
        let told: Vec<_> = (0..200).map(|seed| explained(&LatencyFeedback, &candidates, seed).0).collect();
        let explored =
            told.iter().filter(|told| told.contains("drawn from all 3 candidates alike, as one request in 20"));
        assert!((3..20).contains(&explored.count()), "{told:?}");
        // Of 95 in 100 it gets 3 of 7 parts, and a third of the rest.
        assert!(told.iter().any(|told| told == "w0 was drawn with a chance of 42.4 % (it takes 100 ms)"), "{told:?}");
        assert!(told.iter().any(|told| told.ends_with("(it has not answered yet)")), "{told:?}");
        let told: Vec<_> = (0..50).map(|seed| explained(&LatencyFeedbackLinear, &candidates, seed).0).collect();
        // (300 − 100 + 1) of (201 + 1 + 301)
        let expected = "w0 was drawn with a chance of 40.0 % (it takes 100 ms, the slowest 300 ms)";
        assert!(told.iter().any(|told| told == expected), "{told:?}");
    }

    #[test]
    fn who_takes_twice_as_long_gets_half() {
        // Of 95 in 100 they get 4, 2 and 1 of 7 parts; of the other five, a third each.
        has_shares(&LatencyFeedback, [Some(100.0), Some(200.0), Some(400.0)], [55.95, 28.81, 15.24]);
    }

    #[test]
    fn a_new_worker_counts_as_the_fastest() {
        has_shares(&LatencyFeedback, [Some(100.0), None, Some(400.0)], [43.89, 43.89, 12.22]);
        has_shares(&LatencyFeedback, [None, None, None], [33.33, 33.33, 33.33]);
    }

    #[test]
    fn the_slowest_is_still_tried() {
        has_shares(&LatencyFeedback, [Some(1.0), Some(1e6), Some(1e9)], [96.67, 1.67, 1.67]);
    }

    #[test]
    fn the_linear_weights_are_as_the_formula_says() {
        let of = |responses: &[f64]| {
            let one = |&own: &f64| weight(400.0, &Summary::of(own, &Candidate::IDLE));
            responses.iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(of(&[100.0, 399.0, 400.0]), [30_100.0, 200.0, 100.0]);
        assert_eq!(
            weight(400.0, &Summary::of(401.0, &Candidate::IDLE)),
            10.0,
            "one beyond the greatest has the least weight"
        );
    }

    #[test]
    fn the_linear_chances_follow_the_weights() {
        // (400 − 100 + 1) : (400 − 250 + 1) : 1
        has_shares(&LatencyFeedbackLinear, [Some(100.0), Some(250.0), Some(400.0)], [66.45, 33.33, 0.22]);
        has_shares(&LatencyFeedbackLinear, [Some(400.0), None, Some(400.0)], [0.25, 99.5, 0.25]);
        has_shares(&LatencyFeedbackLinear, [None, None, None], [33.33, 33.33, 33.33]);
    }
}
