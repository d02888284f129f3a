//! What is told of a fleet.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::bench::figures::{Rates, rate};
use crate::bench::histogram::Histogram;
use crate::bench::report::Record;

/// A fleet is compared at the end with one that is so many times as large, where both are measured.
const TIMES: u32 = 100;

/// What a controller is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Which worker shall answer? The request before it ends for it, so that always as many are in flight.
    Dispatch,
    /// The same in FastChat's words, which say nothing of a request's end.
    Lookup,
    /// A worker lives.
    Heartbeat,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dispatch => "dispatch+release",
            Self::Lookup => "get_worker_address",
            Self::Heartbeat => "heartbeat",
        })
    }
}

impl Serialize for What {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One measurement.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// How long each question took; of a pair, the dispatch.
    pub(super) times: Histogram,
    /// Questions, or pairs of them.
    pub(super) count: u64,
    pub(super) took: Duration,
    /// Processor time of the controller, where it is a process of its own and can be watched.
    pub(super) cpu: Option<Duration>,
}

/// The measurements of one question to one fleet, round by round.
#[derive(Debug)]
pub(super) struct Series {
    over: &'static str,
    policy: String,
    workers: u32,
    what: What,
    rates: Vec<f64>,
    times: Histogram,
    count: u64,
    cpu: Option<Duration>,
}

impl Series {
    pub(super) fn new(over: &'static str, policy: &str, workers: u32, what: What) -> Self {
        Self {
            over,
            policy: policy.to_owned(),
            workers,
            what,
            rates: Vec::new(),
            times: Histogram::default(),
            count: 0,
            cpu: Some(Duration::ZERO),
        }
    }

    pub(super) fn what(&self) -> What {
        self.what
    }

    /// Takes one round's measurement.
    pub(super) fn add(&mut self, sample: &Sample) {
        self.rates.push(rate(usize::try_from(sample.count).unwrap_or(usize::MAX), sample.took));
        self.times.merge(&sample.times);
        self.count += sample.count;
        self.cpu = self.cpu.zip(sample.cpu).map(|(sum, more)| sum + more);
    }

    /// Processor time of the controller for one of them, in microseconds.
    fn cpu_us(&self) -> Option<f64> {
        self.cpu.filter(|_| self.count > 0).map(|cpu| rounded(cpu.as_secs_f64() * 1e6 / self.count as f64, 2))
    }

    pub(super) fn record(&self) -> Measured<'_> {
        let micros = |share| self.times.micros(share).map(|micros| rounded(micros, 3));
        Measured {
            over: self.over,
            policy: &self.policy,
            workers: self.workers,
            what: self.what,
            per_second: Rates::of(self.rates.clone()),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            max_us: micros(1.0),
            cpu_us: self.cpu_us(),
        }
    }
}

/// What came of one question to one fleet.
#[derive(Debug, Serialize)]
pub(super) struct Measured<'a> {
    over: &'static str,
    policy: &'a str,
    workers: u32,
    what: What,
    per_second: Rates,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    max_us: Option<f64>,
    /// Processor time of the controller for each, where it is a process that can be watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us: Option<f64>,
}

impl Record for Measured<'_> {
    const KIND: &'static str = "dispatch";
    const COLUMNS: &'static [&'static str] = &[
        "OVER",
        "        POLICY",
        "WORKERS",
        "              WHAT",
        "PER SECOND",
        "BEST",
        "p50 us",
        "p99 us",
        "max us",
        "CPU us",
    ];

    fn cells(&self) -> Vec<String> {
        let shown =
            |number: Option<f64>, places: usize| number.map_or("-".to_owned(), |number| format!("{number:.places$}"));
        vec![
            self.over.to_owned(),
            self.policy.to_owned(),
            self.workers.to_string(),
            self.what.to_string(),
            format!("{:.0}", self.per_second.median),
            format!("{:.0}", self.per_second.best),
            shown(self.p50_us, 2),
            shown(self.p99_us, 2),
            shown(self.max_us, 1),
            shown(self.cpu_us, 2),
        ]
    }
}

/// How much more a question costs in a large fleet than in a small one.
#[derive(Debug, Serialize)]
pub(super) struct Growth<'a> {
    over: &'static str,
    policy: &'a str,
    what: What,
    from_workers: u32,
    to_workers: u32,
    /// Time of one in the large fleet, as a multiple of that in the small one; the median of each.
    time_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ratio: Option<f64>,
}

impl<'a> Growth<'a> {
    /// Of a small fleet's series, and its large brother among all.
    pub(super) fn of(small: &'a Series, all: &[Series]) -> Option<Self> {
        let same = |large: &&Series| {
            large.workers == small.workers.saturating_mul(TIMES)
                && (large.over, &large.policy, large.what) == (small.over, &small.policy, small.what)
        };
        let large = all.iter().find(same)?;
        let median = |series: &Series| Rates::of(series.rates.clone()).median;
        Some(Self {
            over: small.over,
            policy: &small.policy,
            what: small.what,
            from_workers: small.workers,
            to_workers: large.workers,
            time_ratio: rounded(median(small) / median(large), 3),
            cpu_ratio: small.cpu_us().zip(large.cpu_us()).map(|(small, large)| rounded(large / small, 3)),
        })
    }
}

impl Record for Growth<'_> {
    const KIND: &'static str = "growth";
    const COLUMNS: &'static [&'static str] =
        &["OVER", "        POLICY", "              WHAT", "FROM WORKERS", "TO", "TIME x", "CPU x"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.over.to_owned(),
            self.policy.to_owned(),
            self.what.to_string(),
            self.from_workers.to_string(),
            self.to_workers.to_string(),
            format!("{:.2}", self.time_ratio),
            self.cpu_ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        ]
    }
}

fn rounded(number: f64, places: i32) -> f64 {
    let unit = 10_f64.powi(places);
    (number * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(workers: u32, counts: &[u64], cpu: Option<u64>) -> Series {
        let mut series = Series::new("http", "lottery", workers, What::Lookup);
        for &count in counts {
            let cpu = cpu.map(|micros| Duration::from_micros(micros * count));
            series.add(&Sample { count, took: Duration::from_secs(1), cpu, ..Sample::default() });
        }
        series
    }

    #[test]
    fn costs_are_compared_between_the_small_and_the_large_fleet() {
        let all = [series(100, &[900, 1000, 1100], Some(10)), series(10_000, &[800, 200, 500], Some(15))];
        let growth = Growth::of(&all[0], &all).expect("both are there");
        assert_eq!((growth.time_ratio, growth.cpu_ratio), (2.0, Some(1.5)));
        assert!(Growth::of(&all[1], &all).is_none() && Growth::of(&all[0], &all[..1]).is_none());
    }

    #[test]
    fn processor_time_that_was_not_seen_in_one_round_is_not_told() {
        let mut one = series(1, &[10], Some(7));
        assert_eq!(one.cpu_us(), Some(7.0));
        one.add(&Sample { count: 10, took: Duration::from_secs(1), ..Sample::default() });
        assert_eq!(one.cpu_us(), None);
    }
}
