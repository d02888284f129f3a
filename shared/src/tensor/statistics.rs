//! What a model's runs have cost: the protocol's statistics extension. The JSON of these types is the protocol's.

use serde::{Deserialize, Serialize};

/// One version of a model in `GET /v2/models/{model}/stats`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelStatistics {
    /// The model's name.
    pub name: String,
    /// The version.
    pub version: String,
    /// When the last run began, in milliseconds since 1970; 0: never.
    pub last_inference: u64,
    /// Rows that were answered: a request with a batch of eight counts eight times.
    pub inference_count: u64,
    /// Runs of the graph.
    pub execution_count: u64,
    /// Where the time of requests went.
    pub inference_stats: InferStatistics,
    /// The same for each size of what ran together, smallest first.
    pub batch_stats: Vec<BatchStatistics>,
}

/// Where the time of requests went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct InferStatistics {
    /// Requests that were answered, from their arrival to their answer.
    pub success: Duration,
    /// Requests that failed.
    pub fail: Duration,
    /// Time in the queue.
    pub queue: Duration,
    /// Time to put inputs together.
    pub compute_input: Duration,
    /// Time in ONNX Runtime.
    pub compute_infer: Duration,
    /// Time to take outputs apart.
    pub compute_output: Duration,
}

/// Runs of one size.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BatchStatistics {
    /// Rows that ran together.
    pub batch_size: u64,
    /// Time to put inputs together.
    pub compute_input: Duration,
    /// Time in ONNX Runtime.
    pub compute_infer: Duration,
    /// Time to take outputs apart.
    pub compute_output: Duration,
}

/// A time that was spent, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Duration {
    /// How often.
    pub count: u64,
    /// All together, in nanoseconds.
    pub ns: u64,
}

impl Duration {
    /// Adds one that took so long.
    pub fn add(&mut self, spent: std::time::Duration) {
        self.count += 1;
        self.ns = self.ns.saturating_add(u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX));
    }
}
