//! Durations counted in buckets: the same memory however many there are, and percentiles true to one part in 128.

use std::time::Duration;

use serde::Serialize;

/// Bits of a value that a bucket keeps behind the leading one.
const BITS: u32 = 7;
/// Longest duration that is told from longer ones: 2^43 ns, over two hours.
const LONGEST: u64 = (1 << 43) - 1;

/// How often each duration occurred.
#[derive(Debug, Clone, Default)]
pub(super) struct Histogram {
    /// Grown to the longest duration so far.
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

/// How a number of durations is spread, in milliseconds; nothing where there are none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Percentiles {
    /// How many there are.
    pub(super) count: u64,
    pub(super) p50: Option<f64>,
    pub(super) p90: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) p999: Option<f64>,
    pub(super) max: Option<f64>,
}

impl Histogram {
    /// Counts a duration `times` times.
    pub(super) fn add(&mut self, duration: Duration, times: u64) {
        if times == 0 {
            return;
        }
        let value = u64::try_from(duration.as_nanos()).unwrap_or(LONGEST).min(LONGEST);
        let bucket = bucket(value);
        if self.buckets.len() <= bucket {
            self.buckets.resize(bucket + 1, 0);
        }
        self.buckets[bucket] += times;
        self.count += times;
        self.max = self.max.max(value);
    }

    /// Adds what another has counted.
    pub(super) fn merge(&mut self, other: &Self) {
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub(super) fn percentiles(&self) -> Percentiles {
        let at = |share| self.at(share).map(milliseconds);
        let max = (self.count > 0).then_some(milliseconds(self.max));
        Percentiles { count: self.count, p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max }
    }

    /// What at least `share` of all do not exceed, in microseconds.
    pub(super) fn micros(&self, share: f64) -> Option<f64> {
        self.at(share).map(|nanoseconds| nanoseconds as f64 / 1e3)
    }

    /// The bucket that at least `share` of all do not exceed (the nearest rank), in nanoseconds.
    fn at(&self, share: f64) -> Option<u64> {
        let rank = ((share * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|&times| {
            seen += times;
            seen >= rank
        });
        found.map(|bucket| middle(bucket).min(self.max))
    }
}

/// Values below 2^(BITS + 1) have a bucket each; above, a bucket holds those that agree in their first bits.
fn bucket(value: u64) -> usize {
    let shift = (63 - (value | 1).leading_zeros()).saturating_sub(BITS);
    ((u64::from(shift) << BITS) + (value >> shift)) as usize
}

fn middle(bucket: usize) -> u64 {
    let shift = (bucket >> BITS).saturating_sub(1);
    ((bucket - (shift << BITS)) as u64) * (1 << shift) + (1 << shift) / 2
}

/// To a thousandth, which is a microsecond.
fn milliseconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_true_to_one_part_in_128() {
        for value in [0, 1, 127, 128, 255, 256, 257, 1_000, 65_535, 65_536, 123_456_789, LONGEST] {
            let back = middle(bucket(value));
            assert!(back.abs_diff(value) <= value / 128, "{value} became {back}");
        }
        let ordered = (0..100_000).map(bucket).collect::<Vec<_>>();
        assert!(ordered.is_sorted() && ordered.windows(2).all(|pair| pair[1] - pair[0] <= 1));
    }

    #[test]
    fn percentiles_are_those_of_all_that_were_counted() {
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        for millisecond in 1..=1000 {
            let half = if millisecond % 2 == 0 { &mut one } else { &mut other };
            half.add(Duration::from_millis(millisecond), 1);
        }
        one.merge(&other);
        let found = one.percentiles();
        assert_eq!((found.count, found.max), (1000, Some(1000.0)));
        for (found, expected) in [(found.p50, 500.0), (found.p90, 900.0), (found.p99, 990.0), (found.p999, 999.0)] {
            let found = found.expect("there are some");
            assert!((found - expected).abs() <= expected / 128.0, "{found} is not {expected}");
        }
        assert_eq!(Histogram::default().percentiles(), Percentiles::default());
    }

    #[test]
    fn one_that_occurs_often_counts_as_often() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::ZERO, 99);
        histogram.add(Duration::from_secs(100_000), 1);
        histogram.add(Duration::from_secs(1), 0);
        let found = histogram.percentiles();
        assert_eq!((found.count, found.p50, found.p99), (100, Some(0.0), Some(0.0)));
        assert_eq!(found.max, Some(milliseconds(LONGEST)));
    }
}
