//! What a model in this process is found to do.

use std::time::Duration;

use muster_worker::Config;
use muster_worker::model::CausalModel;
use muster_worker::model::onnx::spin::Spin;
use serde::Serialize;

use super::super::figures::{Rates, Spread, median, milliseconds, rate};
use super::super::report::{Record, cell};

/// What one measurement has given in one round.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Tokens a second.
    rate: f64,
    /// The same, from the time of all steps together.
    overall: f64,
    /// Time of each step.
    steps: Vec<Duration>,
    /// Processor time of one token.
    processor: Duration,
}

impl Sample {
    /// `tokens` are those of one step.
    pub(super) fn new(tokens: usize, steps: Vec<Duration>, processor: Duration) -> Self {
        let mut sorted = steps.clone();
        sorted.sort_unstable();
        let all = tokens * steps.len();
        Self {
            rate: rate(tokens, sorted[sorted.len() / 2]),
            overall: rate(all, steps.iter().sum()),
            processor: processor.div_f64(all as f64),
            steps,
        }
    }
}

/// What was measured, and under which circumstances.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    model: String,
    threads: usize,
    spin: Spin,
    rows: usize,
    context: usize,
    vocab: usize,
    load_seconds: f64,
}

impl Setting {
    pub(super) fn new(config: &Config, model: &dyn CausalModel, load_time: Duration) -> Self {
        let shape = model.shape();
        Self {
            model: config.models.first().map(|model| model.name.clone()).unwrap_or_default(),
            threads: config.threads_in_force().get(),
            spin: config.spin,
            rows: shape.rows,
            context: shape.context,
            vocab: shape.vocab,
            load_seconds: load_time.as_secs_f64(),
        }
    }
}

impl Record for Setting {
    const KIND: &str = "setting";
    const COLUMNS: &[&str] = &["THREADS", "SPIN", "ROWS", "LOAD s", "MODEL"];

    fn cells(&self) -> Vec<String> {
        let load = format!("{:.1}", self.load_seconds);
        vec![self.threads.to_string(), self.spin.to_string(), self.rows.to_string(), load, self.model.clone()]
    }
}

/// Reading a prompt.
#[derive(Debug, Serialize)]
pub(super) struct Prefill {
    tokens: usize,
    /// Tokens read at once.
    piece: usize,
    tokens_per_second: Rates,
    /// Processor time of one token, in milliseconds, median of the rounds.
    cpu_ms_per_token: f64,
}

impl Prefill {
    pub(super) fn new(tokens: usize, piece: usize, samples: &[Sample]) -> Self {
        let tokens_per_second = Rates::of(samples.iter().map(|sample| sample.rate).collect());
        Self { tokens, piece, tokens_per_second, cpu_ms_per_token: processor(samples) }
    }
}

impl Record for Prefill {
    const KIND: &str = "prefill";
    const COLUMNS: &[&str] = &["READ", "AT ONCE", "TOK/S", "BEST", "CPU ms/TOK"];

    fn cells(&self) -> Vec<String> {
        let Rates { best, median, .. } = self.tokens_per_second;
        let counts = [self.tokens, self.piece].map(|count| count.to_string());
        [&counts[..], &[cell(Some(median)), cell(Some(best)), cell(Some(self.cpu_ms_per_token))]].concat()
    }
}

/// Continuing sequences together.
#[derive(Debug, Serialize)]
pub(super) struct Decode {
    batch: usize,
    prompt: usize,
    new: usize,
    /// From the median step.
    tokens_per_second: Rates,
    /// From the time of all steps together.
    overall_tokens_per_second: Rates,
    /// The steps of all rounds.
    step_ms: Spread,
    /// Processor time of one token, in milliseconds, median of the rounds.
    cpu_ms_per_token: f64,
}

impl Decode {
    pub(super) fn new((batch, prompt, new): (usize, usize, usize), samples: &[Sample]) -> Self {
        Self {
            batch,
            prompt,
            new,
            tokens_per_second: Rates::of(samples.iter().map(|sample| sample.rate).collect()),
            overall_tokens_per_second: Rates::of(samples.iter().map(|sample| sample.overall).collect()),
            step_ms: Spread::of(samples.iter().flat_map(|sample| sample.steps.iter().copied())),
            cpu_ms_per_token: processor(samples),
        }
    }
}

impl Record for Decode {
    const KIND: &str = "decode";
    const COLUMNS: &[&str] = &["TOGETHER", "TOK/S", "BEST", "STEP p50 ms", "p99", "max", "CPU ms/TOK"];

    fn cells(&self) -> Vec<String> {
        let Rates { best, median, .. } = self.tokens_per_second;
        let Spread { p50, p99, max, .. } = self.step_ms;
        let numbers = [Some(median), Some(best), p50, p99, max, Some(self.cpu_ms_per_token)];
        std::iter::once(self.batch.to_string()).chain(numbers.map(cell)).collect()
    }
}

fn processor(samples: &[Sample]) -> f64 {
    let mut times: Vec<f64> = samples.iter().map(|sample| milliseconds(sample.processor)).collect();
    times.sort_unstable_by(f64::total_cmp);
    median(&times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_step_does_not_change_the_rate_but_the_overall_one() {
        let steps = [10, 10, 10, 970].map(Duration::from_millis).to_vec();
        let sample = Sample::new(4, steps, Duration::from_secs(2));
        assert_eq!((sample.rate, sample.overall), (400.0, 16.0));
        assert_eq!(sample.processor, Duration::from_millis(125));
    }
}
