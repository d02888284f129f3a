//! What a text model is found to do.

use std::time::Duration;

use muster_worker::Config;
use serde::Serialize;

use super::super::figures::{Rates, median, rate};
use super::super::report::{Record, cell};

/// What one run over all texts has given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    tokens: usize,
    time: Duration,
    /// Of all threads together.
    processor: Duration,
}

impl Sample {
    pub(super) fn new(texts: &[Vec<u32>], time: Duration, processor: Duration) -> Self {
        Self { tokens: texts.iter().map(Vec::len).sum(), time, processor }
    }
}

/// What was measured, and under which circumstances.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    model: String,
    threads: usize,
    load_seconds: f64,
}

impl Setting {
    pub(super) fn new(config: &Config, load_time: Duration) -> Self {
        Self {
            model: config.models.first().map(|model| model.name.clone()).unwrap_or_default(),
            threads: config.threads_in_force().get(),
            load_seconds: load_time.as_secs_f64(),
        }
    }
}

impl Record for Setting {
    const KIND: &str = "setting";
    const COLUMNS: &[&str] = &["THREADS", "LOAD s", "MODEL"];

    fn cells(&self) -> Vec<String> {
        vec![self.threads.to_string(), format!("{:.2}", self.load_seconds), self.model.clone()]
    }
}

/// What the tokenizer costs.
#[derive(Debug, Serialize)]
pub(super) struct Tokenized {
    tokens: usize,
    tokens_per_cpu_second: f64,
}

impl Tokenized {
    pub(super) fn new(tokens: usize, processor: Duration) -> Self {
        Self { tokens, tokens_per_cpu_second: rate(tokens, processor) }
    }
}

impl Record for Tokenized {
    const KIND: &str = "tokenize";
    const COLUMNS: &[&str] = &["TOKENIZED", "TOK/CPU s"];

    fn cells(&self) -> Vec<String> {
        vec![self.tokens.to_string(), cell(Some(self.tokens_per_cpu_second))]
    }
}

/// The pool beside sessions that run single texts.
#[derive(Debug, Serialize)]
pub(super) struct Compared {
    load: &'static str,
    clients: usize,
    shortest: usize,
    longest: usize,
    texts: usize,
    tokens: usize,
    singles_tokens_per_second: Rates,
    pool_tokens_per_second: Rates,
    /// The pool's rate divided by that of the singles, in each round.
    ratio: Rates,
    /// Processor time of all rounds, in seconds.
    singles_cpu_seconds: f64,
    pool_cpu_seconds: f64,
    /// Tokens per second of processor time, the pool's divided by that of the singles; median of the rounds.
    cpu_ratio: f64,
}

impl Compared {
    /// Of at least one round: singles, then the pool.
    pub(super) fn new(
        (load, clients, (shortest, longest)): (&'static str, usize, (usize, usize)),
        texts: usize,
        rounds: &[(Sample, Sample)],
    ) -> Self {
        let rates = |choose: fn(&(Sample, Sample)) -> Sample| {
            let samples = rounds.iter().map(choose);
            Rates::of(samples.map(|sample| rate(sample.tokens, sample.time)).collect())
        };
        let ratios = |time: fn(Sample) -> Duration| -> Vec<f64> {
            rounds.iter().map(|&(singles, pool)| hundredths(time(singles).div_duration_f64(time(pool)))).collect()
        };
        let seconds = |choose: fn(&(Sample, Sample)) -> Sample| {
            hundredths(rounds.iter().map(|round| choose(round).processor.as_secs_f64()).sum())
        };
        let mut cpu = ratios(|sample| sample.processor);
        cpu.sort_unstable_by(f64::total_cmp);
        Self {
            load,
            clients,
            shortest,
            longest,
            texts,
            tokens: rounds.first().map_or(0, |(singles, _)| singles.tokens),
            singles_tokens_per_second: rates(|round| round.0),
            pool_tokens_per_second: rates(|round| round.1),
            ratio: Rates::of(ratios(|sample| sample.time)),
            singles_cpu_seconds: seconds(|round| round.0),
            pool_cpu_seconds: seconds(|round| round.1),
            cpu_ratio: median(&cpu),
        }
    }
}

impl Record for Compared {
    const KIND: &str = "embed";
    const COLUMNS: &[&str] = &[
        "LOAD",
        "TOKENS",
        "CLIENTS",
        "TEXTS",
        "SINGLES TOK/S",
        "POOL TOK/S",
        "RATIO",
        "CPU RATIO",
        "SINGLES CPU s",
        "POOL CPU s",
    ];

    fn cells(&self) -> Vec<String> {
        let rates = [&self.singles_tokens_per_second, &self.pool_tokens_per_second];
        let [singles, pool] = rates.map(|rates| cell(Some(rates.median)));
        let lengths = format!("{}-{}", self.shortest, self.longest);
        let words = [self.load.to_owned(), lengths, self.clients.to_string(), self.texts.to_string(), singles, pool];
        let numbers = [self.ratio.median, self.cpu_ratio, self.singles_cpu_seconds, self.pool_cpu_seconds];
        words.into_iter().chain(numbers.map(|number| format!("{number:.2}"))).collect()
    }
}

fn hundredths(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_compared_round_by_round() {
        let sample = |time, processor| Sample {
            tokens: 1000,
            time: Duration::from_secs(time),
            processor: Duration::from_secs(processor),
        };
        let rounds = [(sample(10, 20), sample(5, 10)), (sample(6, 12), sample(6, 6)), (sample(9, 18), sample(6, 12))];
        let compared = Compared::new(("mixed", 16, (16, 256)), 12, &rounds);
        assert_eq!(compared.ratio.rounds, [2.0, 1.0, 1.5]);
        assert_eq!((compared.ratio.median, compared.cpu_ratio), (1.5, 2.0));
        assert_eq!((compared.singles_cpu_seconds, compared.pool_cpu_seconds), (50.0, 28.0));
        assert_eq!(compared.pool_tokens_per_second.rounds, [200.0, 166.7, 166.7]);
    }
}
