//! What came of a run.

use std::time::Duration;

use super::worker::{SLOTS, Worker};

/// What a policy made of a scenario. Times are in seconds, of answered requests; fractions are from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Requests, answered or not.
    pub requests: usize,
    /// From a client's request to the end of its answer, on average.
    pub mean: f64,
    /// The same for the one in the middle.
    pub p50: f64,
    /// The same for the slowest but one in a hundred.
    pub p99: f64,
    /// Time in which a request did not run, on average: in queues and between attempts.
    pub wait: f64,
    /// Tokens of the answers, of all that the workers could have produced until the last request ended: what was done in
    /// vain does not count, nor does the reading of prompts.
    pub utilisation: f64,
    /// Slots in use, until the last request ended, weighted by what each worker can do.
    pub slots: f64,
    /// Requests that ended in an error, of all.
    pub failures: f64,
    /// Attempts that were made again, for each request.
    pub retries: f64,
    /// Until the last request ended.
    pub lasted: f64,
}

/// Counts while requests end.
#[derive(Debug, Default)]
pub(super) struct Tally {
    responses: Vec<f64>,
    waited: f64,
    tokens: f64,
    failures: usize,
    retries: usize,
}

impl Tally {
    /// A request has its answer.
    pub(super) fn answered(&mut self, response: Duration, waited: Duration, tokens: f64) {
        self.responses.push(response.as_secs_f64());
        self.waited += waited.as_secs_f64();
        self.tokens += tokens;
    }

    /// A request has its error.
    pub(super) fn failed(&mut self) {
        self.failures += 1;
    }

    /// An attempt is made again.
    pub(super) fn retried(&mut self) {
        self.retries += 1;
    }

    /// Requests that ended.
    pub(super) fn ended(&self) -> usize {
        self.responses.len() + self.failures
    }

    /// What it comes to, when the last request ended then.
    pub(super) fn figures(mut self, workers: &[&Worker], lasted: Duration) -> Figures {
        let (requests, lasted) = (self.ended(), lasted.as_secs_f64());
        self.responses.sort_unstable_by(f64::total_cmp);
        let (most, slots) = workers.iter().fold((0.0, 0.0), |(most, slots), worker| {
            (most + worker.most(), slots + worker.most() * worker.totals().slots / SLOTS as f64)
        });
        Figures {
            requests,
            mean: part(self.responses.iter().sum(), self.responses.len() as f64),
            p50: percentile(&self.responses, 0.5),
            p99: percentile(&self.responses, 0.99),
            wait: part(self.waited, self.responses.len() as f64),
            utilisation: part(self.tokens, most * lasted),
            slots: part(slots, most * lasted),
            failures: part(self.failures as f64, requests as f64),
            retries: part(self.retries as f64, requests as f64),
            lasted,
        }
    }
}

/// A part of nothing is nothing.
fn part(of: f64, whole: f64) -> f64 {
    if whole > 0.0 { of / whole } else { 0.0 }
}

/// The smallest value that at least `share` of all do not exceed (the nearest rank); 0 of nothing.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}
