//! A model in this process, without tokens turned to text and without HTTP: what the engine's steps cost.
//!
//! Prompts are random tokens. The next token of a row is the one with the largest logit, and finding it is part of a
//! step, as it is for every peer.

mod records;

use std::time::Instant;

use anyhow::{Context as _, ensure};
use muster_worker::Config;
use muster_worker::model::{CausalModel, Next, Positions, Row};

use records::{Decode, Prefill, Sample, Setting};

use super::load::load;
use super::process::own_time;
use super::prompts::Tokens;
use super::report::Report;
use crate::cli::EngineArgs;
use crate::config::{ModelSection, WorkerSection};

/// Tokens of a sequence before it is continued, where nothing is said.
const PROMPT: usize = 64;
/// Steps of a measurement, where nothing is said.
const STEPS: usize = 32;
/// Tokens of the prompt that warms the model up.
const WARM_UP: usize = 16;

/// Loads the model, measures everything round by round, and prints.
pub(super) fn run(args: &EngineArgs) -> anyhow::Result<()> {
    let plan = Plan::new(args);
    let config = config(args, plan.rows)?;
    let begin = Instant::now();
    let mut bench = Bench { model: load(&config, plan.rows, plan.longest)?, tokens: Tokens::new(args.seed, 0..1) };
    let load_time = begin.elapsed();
    bench.check(&plan)?;
    bench.warm_up()?;

    let mut samples = vec![Vec::with_capacity(args.rounds.get()); plan.measurements.len()];
    for _ in 0..args.rounds.get() {
        for (measurement, samples) in plan.measurements.iter().zip(&mut samples) {
            samples.push(bench.measure(*measurement)?);
        }
    }
    let mut report = Report::new(args.json);
    report.add(&Setting::new(&config, bench.model.as_ref(), load_time))?;
    for (measurement, samples) in plan.measurements.iter().zip(samples) {
        match *measurement {
            Measurement::Read { tokens, piece } => report.add(&Prefill::new(tokens, piece, &samples))?,
            Measurement::Decode { rows, prompt, steps } => report.add(&Decode::new((rows, prompt, steps), &samples))?,
        }
    }
    Ok(())
}

/// The worker's configuration of this model, so that flags mean what they mean there.
fn config(args: &EngineArgs, rows: usize) -> anyhow::Result<Config> {
    let models = ModelSection {
        model: args.model.clone().map(|model| vec![model]),
        slots: rows.try_into().ok(),
        threads: args.local.threads,
        spin: Some(args.local.spin),
        onnxruntime: args.local.onnxruntime.clone(),
        ..ModelSection::default()
    };
    WorkerSection { models, no_register: Some(true), ..WorkerSection::default() }.config()
}

/// One thing to measure.
#[derive(Debug, Clone, Copy)]
enum Measurement {
    /// Reading a prompt in pieces.
    Read { tokens: usize, piece: usize },
    /// Continuing several sequences together.
    Decode { rows: usize, prompt: usize, steps: usize },
}

/// What is measured, and the room it needs.
#[derive(Debug)]
struct Plan {
    measurements: Vec<Measurement>,
    rows: usize,
    /// Tokens of the longest sequence.
    longest: usize,
}

impl Plan {
    fn new(args: &EngineArgs) -> Self {
        let prompt = args.prompt.map_or(PROMPT, |prompt| prompt.get());
        let steps = args.new.map_or(STEPS, |new| new.get());
        let mut measurements = Vec::new();
        for tokens in args.local.prefill.iter().map(|tokens| tokens.get()) {
            measurements.push(Measurement::Read { tokens, piece: tokens });
            let piece = args.local.chunk.map_or(tokens, |chunk| chunk.get());
            if piece < tokens {
                measurements.push(Measurement::Read { tokens, piece });
            }
        }
        let batches = args.local.batch.iter().map(|rows| rows.get());
        measurements.extend(batches.clone().map(|rows| Measurement::Decode { rows, prompt, steps }));
        let longest = args.local.prefill.iter().map(|tokens| tokens.get()).chain([prompt + steps, WARM_UP + 1]).max();
        Self { measurements, rows: batches.max().unwrap_or(1), longest: longest.unwrap_or(1) }
    }
}

struct Bench {
    model: Box<dyn CausalModel>,
    tokens: Tokens,
}

impl Bench {
    /// Whether the model can hold what is to be measured; from here on, prompts are made of its vocabulary.
    fn check(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let shape = self.model.shape();
        ensure!(
            plan.longest <= shape.context,
            "sequences of {} tokens are to be measured, but the model takes {}; lower --prefill, --prompt or --new",
            plan.longest,
            shape.context
        );
        self.tokens.range = 0..u32::try_from(shape.vocab).context("the vocabulary is too large")?;
        Ok(())
    }

    /// The first runs of a graph also lay out its memory.
    fn warm_up(&mut self) -> anyhow::Result<()> {
        self.measure(Measurement::Decode { rows: 1, prompt: WARM_UP, steps: 1 }).map(drop)
    }

    fn measure(&mut self, measurement: Measurement) -> anyhow::Result<Sample> {
        match measurement {
            Measurement::Read { tokens, piece } => self.read(tokens, piece),
            Measurement::Decode { rows, prompt, steps } => self.decode(rows, prompt, steps),
        }
    }

    fn read(&mut self, tokens: usize, piece: usize) -> anyhow::Result<Sample> {
        let prompt = self.tokens.take(tokens);
        let (processor, begin) = (own_time(), Instant::now());
        let mut past = 0;
        for piece in prompt.chunks(piece) {
            let wanted = if past + piece.len() == tokens { Positions::Last } else { Positions::None };
            let logits = self.model.read(Row(0), piece, past, wanted)?;
            if wanted == Positions::Last {
                std::hint::black_box(greedy(logits));
            }
            past += piece.len();
        }
        let (time, processor) = (begin.elapsed(), own_time() - processor);
        self.model.release(Row(0));
        Ok(Sample::new(tokens, vec![time], processor))
    }

    fn decode(&mut self, rows: usize, prompt: usize, steps: usize) -> anyhow::Result<Sample> {
        let mut next = Vec::with_capacity(rows);
        for row in 0..rows {
            let logits = self.model.read(Row(row), &self.tokens.take(prompt), 0, Positions::Last)?;
            next.push(Next { token: greedy(logits), past: prompt });
        }
        let vocab = self.model.shape().vocab;
        let mut times = Vec::with_capacity(steps);
        let processor = own_time();
        for _ in 0..steps {
            let begin = Instant::now();
            let logits = self.model.decode(&next)?;
            for (next, logits) in next.iter_mut().zip(logits.chunks_exact(vocab)) {
                *next = Next { token: greedy(logits), past: next.past + 1 };
            }
            times.push(begin.elapsed());
        }
        let processor = own_time() - processor;
        (0..rows).for_each(|row| self.model.release(Row(row)));
        Ok(Sample::new(rows, times, processor))
    }
}

/// The token with the largest logit; the first of several.
///
/// Lane by lane, since a plain search for the largest is one long chain of comparisons.
fn greedy(logits: &[f32]) -> u32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &logit)| *lane = if logit > *lane { logit } else { *lane });
    }
    let largest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_logit_is_found_wherever_it_lies() {
        for length in [1, 15, 16, 17, 50] {
            for at in 0..length {
                let mut logits = vec![-1.0; length];
                logits[at] = 2.0;
                assert_eq!(greedy(&logits), at as u32, "{at} of {length}");
            }
        }
        assert_eq!(greedy(&[0.0, 3.0, 3.0]), 1);
    }
}
