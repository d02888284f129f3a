//! Random schedules against each row alone, for any language model on ONNX Runtime.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use muster_worker::model::files::ModelFiles;
use muster_worker::model::manifest::Manifest;
use muster_worker::model::onnx::runtime::{self, LibrarySearch, Runtime};
use muster_worker::model::onnx::session::SessionOptions;
use muster_worker::model::onnx::spin::Spin;
use muster_worker::model::{CausalModel, Next, Positions, Row, onnx};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

pub(crate) const ROWS: usize = 8;
pub(crate) const VOCAB: usize = 2048;

pub(crate) fn runtime() -> &'static Runtime {
    let place = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = place("XDG_CACHE_HOME").or_else(|| Some(place("HOME")?.join(".cache")));
    let search = LibrarySearch { explicit: place("ORT_DYLIB_PATH"), beside: None, cache };
    runtime::start(&search).expect("ONNX Runtime; scripts/fetch-onnxruntime.sh gets it")
}

/// The model in a folder, named from this crate's.
pub(crate) fn load(folder: &str) -> Box<dyn CausalModel> {
    load_files(&ModelFiles::folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("it is there"))
}

pub(crate) fn load_files(files: &ModelFiles) -> Box<dyn CausalModel> {
    let Manifest::Causal(manifest) = Manifest::read(files).expect("a model") else { panic!("a language model") };
    assert_eq!(manifest.vocab, VOCAB);
    let options = SessionOptions { threads: NonZeroUsize::MIN, spin: Spin::Off, optimised: None };
    onnx::load_causal(runtime(), &options, manifest, (ROWS, usize::MAX)).expect("it loads")
}

/// Made-up tokens.
pub(crate) fn tokens(random: &mut SmallRng, count: usize) -> Vec<u32> {
    (0..count).map(|_| random.random_range(3..2000)).collect()
}

pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary")
}

/// How a row came to hold a token: the lengths of the runs that read it, one number a run.
type History = Vec<usize>;

/// What a row must hold.
#[derive(Clone, Default)]
pub(crate) struct Held {
    pub(crate) tokens: Vec<u32>,
    runs: History,
}

impl Held {
    fn truncate(&mut self, length: usize) {
        self.tokens.truncate(length);
        let mut left = self.tokens.len();
        self.runs.retain_mut(|run| {
            *run = left.min(*run);
            left -= *run;
            *run > 0
        });
    }

    fn extend(&mut self, new: &[u32]) {
        self.tokens.extend_from_slice(new);
        self.runs.push(new.len());
    }
}

/// How a row alone is read, to be compared with the same row in company.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alone {
    /// All its tokens in one run.
    Whole,
    /// In the pieces in which it was read in company, each token of an answer in a run of its own. That takes long, so
    /// every fourth answer is compared.
    Pieces,
}

/// A model under test, what each of its rows must hold, and another that reads each sequence alone.
pub(crate) struct Trial {
    pub(crate) model: Box<dyn CausalModel>,
    pub(crate) rows: Vec<Held>,
    alone: (Box<dyn CausalModel>, Alone),
    random: SmallRng,
    /// Largest difference of a logit that is taken.
    tolerance: f32,
    /// Largest difference so far.
    pub(crate) worst: f32,
    /// Logits of one position lie apart by so much, on the average.
    pub(crate) spread: f32,
    compared: f32,
}

impl Trial {
    pub(crate) fn new(
        model: Box<dyn CausalModel>,
        alone: (Box<dyn CausalModel>, Alone),
        tolerance: f32,
        seed: u64,
    ) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        let rows = vec![Held::default(); ROWS];
        Self { model, rows, alone, random, tolerance, worst: 0.0, spread: 0.0, compared: 0.0 }
    }

    /// The last logits of a row, read alone.
    fn alone(&mut self, row: usize) -> Vec<f32> {
        let Held { tokens, runs } = &self.rows[row];
        let (model, how) = &mut self.alone;
        let whole = [tokens.len()];
        let runs = if *how == Alone::Whole { &whole[..] } else { &runs[..] };
        let mut past = 0;
        let mut logits = Vec::new();
        for run in runs {
            logits = model.read(Row(0), &tokens[past..past + run], past, Positions::Last).expect("a run").to_vec();
            past += run;
        }
        logits
    }

    /// Compares the last logits of a row with those that all its tokens give alone.
    fn compare(&mut self, row: usize, logits: &[f32]) {
        if self.alone.1 == Alone::Pieces && self.random.random_bool(0.75) {
            return;
        }
        let alone = self.alone(row);
        let apart = difference(&alone, logits);
        assert!(apart < self.tolerance, "row {row} of {} tokens differs by {apart}", self.rows[row].tokens.len());
        let (first, second) = (best(&alone), best(logits));
        assert!(first == second || alone[first] - alone[second] < 2.0 * self.tolerance, "{first} and {second}");
        self.worst = self.worst.max(apart);
        let least = alone.iter().copied().fold(f32::INFINITY, f32::min);
        self.compared += 1.0;
        self.spread += (alone[first] - least - self.spread) / self.compared;
    }

    pub(crate) fn read(&mut self, row: usize, new: usize, past: usize) {
        let new = tokens(&mut self.random, new);
        let logits = self.model.read(Row(row), &new, past, Positions::Last).expect("a run").to_vec();
        self.rows[row].truncate(past);
        self.rows[row].extend(&new);
        self.compare(row, &logits);
    }

    /// Adds a token to each of the first rows, after taking some back.
    pub(crate) fn decode(&mut self, rows: usize, back: usize) {
        let new = tokens(&mut self.random, rows);
        for row in &mut self.rows[..rows] {
            row.truncate(row.tokens.len().saturating_sub(back));
        }
        let next = |(row, &token): (usize, &u32)| Next { token, past: self.rows[row].tokens.len() };
        let next: Vec<Next> = new.iter().enumerate().map(next).collect();
        let logits = self.model.decode(&next).expect("a run").to_vec();
        assert_eq!(logits.len(), rows * VOCAB);
        for (row, logits) in logits.chunks_exact(VOCAB).enumerate() {
            self.rows[row].extend(&new[row..=row]);
            self.compare(row, logits);
        }
    }

    pub(crate) fn swap(&mut self, a: usize, b: usize) {
        self.model.swap((Row(a), self.rows[a].tokens.len()), (Row(b), self.rows[b].tokens.len()));
        self.rows.swap(a, b);
    }

    pub(crate) fn copy(&mut self, from: usize, to: usize, count: usize) {
        self.model.copy(Row(from), Row(to), count).expect("memory");
        let mut held = self.rows[from].clone();
        held.truncate(count);
        self.rows[to] = held;
    }

    pub(crate) fn release(&mut self, row: usize) {
        self.model.release(Row(row));
        self.rows[row].truncate(0);
    }

    /// One step of a made-up schedule.
    pub(crate) fn step(&mut self) {
        let (row, other) = (self.random.random_range(0..ROWS), self.random.random_range(0..ROWS));
        let held = self.rows[row].tokens.len();
        match self.random.random_range(0..20) {
            // A new sequence, the next piece of one, and one that goes back.
            0..2 => {
                let new = self.random.random_range(1..60);
                self.read(row, new, 0);
            }
            2..5 => {
                let new = self.random.random_range(1..30);
                self.read(row, new, held);
            }
            5 => {
                let past = self.random.random_range(0..=held);
                self.read(row, 3, past);
            }
            6..8 => self.swap(row, other),
            8..10 => {
                let count = self.random.random_range(0..=held);
                self.copy(row, other, count);
            }
            10 => self.release(row),
            11 => self.decode(row + 1, 2),
            _ => {
                for _ in 0..4 {
                    self.decode(row + 1, 0);
                }
            }
        }
    }
}
