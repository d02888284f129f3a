//! What the runs of one version have cost.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use muster_shared::tensor::{BatchStatistics, InferStatistics, ModelStatistics};

/// Counts runs as the protocol's statistics want them.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    last_inference: u64,
    inference_count: u64,
    execution_count: u64,
    infer: InferStatistics,
    batches: BTreeMap<u64, BatchStatistics>,
}

/// Sizes that are counted apart: clients choose them, where nothing bounds a first dimension.
const SIZES: usize = 256;

impl Counts {
    /// The size under which a run of so many rows counts: its own, or when there are too many the next smaller one.
    fn size(&self, rows: u64) -> u64 {
        if self.batches.len() < SIZES || self.batches.contains_key(&rows) {
            return rows;
        }
        let smaller = self.batches.range(..rows).next_back();
        smaller.or_else(|| self.batches.first_key_value()).map_or(rows, |(&size, _)| size)
    }
}

/// One run of the graph.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Requests that it answers.
    pub requests: usize,
    /// Rows of all of them; 1 for a request whose inputs have none.
    pub rows: usize,
    /// Time to put inputs together.
    pub input: Duration,
    /// Time in ONNX Runtime.
    pub infer: Duration,
    /// Time to take outputs apart.
    pub output: Duration,
}

impl Recorder {
    /// A run has answered its requests, each of which was there for so long, and before the run waited for so long.
    pub fn ran(&self, run: Run, requests: impl Iterator<Item = (Duration, Duration)>) {
        self.with(|counts| {
            counts.last_inference = now();
            counts.inference_count += run.rows as u64;
            counts.execution_count += 1;
            for (waited, all) in requests {
                counts.infer.success.add(all);
                counts.infer.queue.add(waited);
            }
            for _ in 0..run.requests {
                counts.infer.compute_input.add(run.input);
                counts.infer.compute_infer.add(run.infer);
                counts.infer.compute_output.add(run.output);
            }
            let size = counts.size(run.rows as u64);
            let batch = counts.batches.entry(size).or_default();
            batch.compute_input.add(run.input);
            batch.compute_infer.add(run.infer);
            batch.compute_output.add(run.output);
        });
    }

    /// A request was not answered, after so long.
    pub fn failed(&self, after: Duration) {
        self.with(|counts| counts.infer.fail.add(after));
    }

    /// All so far, under the name of the model and its version.
    pub fn read(&self, name: &str, version: &str) -> ModelStatistics {
        self.with(|counts| ModelStatistics {
            name: name.to_owned(),
            version: version.to_owned(),
            last_inference: counts.last_inference,
            inference_count: counts.inference_count,
            execution_count: counts.execution_count,
            inference_stats: counts.infer.clone(),
            batch_stats: counts
                .batches
                .iter()
                .map(|(&batch_size, batch)| BatchStatistics { batch_size, ..batch.clone() })
                .collect(),
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_clients_choose_do_not_pile_up() {
        let recorder = Recorder::default();
        for rows in 0..2000 {
            let none = Duration::ZERO;
            let run = Run { requests: 1, rows, input: none, infer: none, output: none };
            recorder.ran(run, std::iter::empty());
        }
        let read = recorder.read("m", "1");
        assert_eq!((read.batch_stats.len(), read.execution_count), (SIZES, 2000));
        assert_eq!(read.batch_stats.iter().map(|batch| batch.compute_infer.count).sum::<u64>(), 2000);
    }

    #[test]
    fn a_run_counts_once_and_its_rows_and_requests_each() {
        let recorder = Recorder::default();
        let ms = Duration::from_millis;
        let run = Run { requests: 2, rows: 5, input: ms(1), infer: ms(10), output: ms(2) };
        recorder.ran(run, [(ms(3), ms(16)), (ms(1), ms(14))].into_iter());
        recorder.failed(ms(7));
        let read = recorder.read("m", "1");
        assert_eq!((read.inference_count, read.execution_count), (5, 1));
        let stats = &read.inference_stats;
        assert_eq!((stats.success.count, stats.success.ns), (2, 30_000_000));
        assert_eq!((stats.queue.ns, stats.compute_infer.count, stats.fail.count), (4_000_000, 2, 1));
        assert_eq!(read.batch_stats.len(), 1);
        assert_eq!((read.batch_stats[0].batch_size, read.batch_stats[0].compute_infer.count), (5, 1));
        assert!(read.last_inference > 0);
    }
}
