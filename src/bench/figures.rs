//! The arithmetic of measurements.

use std::time::Duration;

use serde::Serialize;

/// How a number of durations is spread, in milliseconds; nothing where there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    /// How many there are.
    pub(super) count: usize,
    pub(super) p50: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) max: Option<f64>,
}

impl Spread {
    pub(super) fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut values: Vec<f64> = durations.into_iter().map(milliseconds).collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |share| percentile(&values, share);
        Self { count: values.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// One rate a round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) best: f64,
    pub(super) median: f64,
    /// In the order in which they were measured.
    pub(super) rounds: Vec<f64>,
}

impl Rates {
    /// Of at least one round.
    pub(super) fn of(rounds: Vec<f64>) -> Self {
        let mut sorted = rounds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        Self { best: sorted.last().copied().unwrap_or(0.0), median: median(&sorted), rounds }
    }
}

/// Mean of the two in the middle where there is none; 0 of nothing.
pub(super) fn median(sorted: &[f64]) -> f64 {
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => 0.0,
        (middle, 1) => sorted[middle],
        (middle, _) => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The smallest value that at least `share` of all do not exceed (the nearest rank).
pub(super) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

/// To a hundredth of a millisecond: no clock here is better.
pub(super) fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

/// `count` in so many seconds, to a tenth of a unit.
pub(super) fn rate(count: usize, time: Duration) -> f64 {
    (count as f64 / time.as_secs_f64().max(1e-9) * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(percentile(&values[..1], 0.01), Some(1.0));
        assert_eq!(percentile(&values[..3], 0.99), Some(3.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert_eq!(median(&[5.0]), 5.0);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn durations_are_told_in_milliseconds_whatever_their_order() {
        let spread = Spread::of([30, 10, 20].map(Duration::from_millis));
        assert_eq!(spread, Spread { count: 3, p50: Some(20.0), p99: Some(30.0), max: Some(30.0) });
        assert_eq!(Spread::of([]), Spread::default());
        assert_eq!(milliseconds(Duration::from_nanos(1_234_567)), 1.23);
    }

    #[test]
    fn rounds_keep_their_order() {
        let rates = Rates::of(vec![3.0, 1.0, 2.0, 5.0]);
        assert_eq!((rates.best, rates.median, &rates.rounds[..]), (5.0, 2.5, &[3.0, 1.0, 2.0, 5.0][..]));
        assert_eq!(rate(48, Duration::from_secs(2)), 24.0);
    }
}
