//! What a model's runs have cost.

use super::proto::{self, StatisticDuration};
use crate::tensor::{BatchStatistics, Duration, InferStatistics, ModelStatistics};

impl From<ModelStatistics> for proto::ModelStatistics {
    fn from(statistics: ModelStatistics) -> Self {
        let ModelStatistics { name, version, last_inference, inference_count, execution_count, .. } = statistics;
        Self {
            name,
            version,
            last_inference,
            inference_count,
            execution_count,
            inference_stats: Some(statistics.inference_stats.into()),
            batch_stats: statistics.batch_stats.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<proto::ModelStatistics> for ModelStatistics {
    fn from(statistics: proto::ModelStatistics) -> Self {
        let proto::ModelStatistics { name, version, last_inference, inference_count, execution_count, .. } = statistics;
        Self {
            name,
            version,
            last_inference,
            inference_count,
            execution_count,
            inference_stats: statistics.inference_stats.unwrap_or_default().into(),
            batch_stats: statistics.batch_stats.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<InferStatistics> for proto::InferStatistics {
    fn from(statistics: InferStatistics) -> Self {
        let InferStatistics { success, fail, queue, compute_input, compute_infer, compute_output } = statistics;
        Self {
            success: spent(success),
            fail: spent(fail),
            queue: spent(queue),
            compute_input: spent(compute_input),
            compute_infer: spent(compute_infer),
            compute_output: spent(compute_output),
        }
    }
}

impl From<proto::InferStatistics> for InferStatistics {
    fn from(statistics: proto::InferStatistics) -> Self {
        let proto::InferStatistics { success, fail, queue, compute_input, compute_infer, compute_output } = statistics;
        Self {
            success: read(success),
            fail: read(fail),
            queue: read(queue),
            compute_input: read(compute_input),
            compute_infer: read(compute_infer),
            compute_output: read(compute_output),
        }
    }
}

impl From<BatchStatistics> for proto::InferBatchStatistics {
    fn from(statistics: BatchStatistics) -> Self {
        let BatchStatistics { batch_size, compute_input, compute_infer, compute_output } = statistics;
        Self {
            batch_size,
            compute_input: spent(compute_input),
            compute_infer: spent(compute_infer),
            compute_output: spent(compute_output),
        }
    }
}

impl From<proto::InferBatchStatistics> for BatchStatistics {
    fn from(statistics: proto::InferBatchStatistics) -> Self {
        let proto::InferBatchStatistics { batch_size, compute_input, compute_infer, compute_output } = statistics;
        Self {
            batch_size,
            compute_input: read(compute_input),
            compute_infer: read(compute_infer),
            compute_output: read(compute_output),
        }
    }
}

fn spent(Duration { count, ns }: Duration) -> Option<StatisticDuration> {
    Some(StatisticDuration { count, ns })
}

fn read(duration: Option<StatisticDuration>) -> Duration {
    let StatisticDuration { count, ns } = duration.unwrap_or_default();
    Duration { count, ns }
}
