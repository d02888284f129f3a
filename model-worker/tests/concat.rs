//! Several sequences in one run of a graph that joins keys by `Concat`, on ONNX Runtime itself.

#[path = "concat/positions.rs"]
mod positions;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use muster_worker::model::files::ModelFiles;
use muster_worker::model::manifest::{Layout, Manifest};
use muster_worker::model::onnx::runtime::{self, LibrarySearch, Runtime};
use muster_worker::model::onnx::session::SessionOptions;
use muster_worker::model::onnx::spin::Spin;
use muster_worker::model::{CausalModel, ModelError, Next, Positions, Row, onnx};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const ROWS: usize = 8;
const VOCAB: usize = 2048;
/// Largest difference of a logit between a row alone and in company; logits are some tens.
const TOLERANCE: f32 = 1e-4;

fn runtime() -> &'static Runtime {
    let place = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = place("XDG_CACHE_HOME").or_else(|| Some(place("HOME")?.join(".cache")));
    let search = LibrarySearch { explicit: place("ORT_DYLIB_PATH"), beside: None, cache };
    runtime::start(&search).expect("ONNX Runtime; scripts/fetch-onnxruntime.sh gets it")
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/demo-concat")
}

fn load() -> Box<dyn CausalModel> {
    load_files(&ModelFiles::folder(&demo()).expect("it is there"))
}

fn load_files(files: &ModelFiles) -> Box<dyn CausalModel> {
    let Manifest::Causal(manifest) = Manifest::read(files).expect("a model") else { panic!("a language model") };
    assert_eq!((manifest.layout, manifest.vocab), (Layout::Concat, VOCAB));
    let options = SessionOptions { threads: NonZeroUsize::MIN, spin: Spin::Off, optimised: None };
    onnx::load_causal(runtime(), &options, manifest, (ROWS, usize::MAX)).expect("it loads")
}

/// Made-up tokens.
fn tokens(random: &mut SmallRng, count: usize) -> Vec<u32> {
    (0..count).map(|_| random.random_range(3..2000)).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary")
}

/// A model under test, the tokens that each of its rows must hold, and another that reads each sequence whole.
struct Trial {
    model: Box<dyn CausalModel>,
    rows: Vec<Vec<u32>>,
    alone: Box<dyn CausalModel>,
    random: SmallRng,
    worst: f32,
}

impl Trial {
    fn new(seed: u64) -> Self {
        Self::of(load(), seed)
    }

    fn of(model: Box<dyn CausalModel>, seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self { model, rows: vec![Vec::new(); ROWS], alone: load(), random, worst: 0.0 }
    }

    /// Compares the last logits of a row with those that all its tokens give alone, in one run.
    fn compare(&mut self, row: usize, logits: &[f32]) {
        let alone = self.alone.read(Row(0), &self.rows[row], 0, Positions::Last).expect("a run");
        let apart = difference(alone, logits);
        assert!(apart < TOLERANCE, "row {row} of {} tokens differs by {apart}", self.rows[row].len());
        assert_eq!(best(alone), best(logits));
        self.worst = self.worst.max(apart);
    }

    fn read(&mut self, row: usize, new: usize, past: usize) {
        let new = tokens(&mut self.random, new);
        let logits = self.model.read(Row(row), &new, past, Positions::Last).expect("a run").to_vec();
        self.rows[row].truncate(past);
        self.rows[row].extend(new);
        self.compare(row, &logits);
    }

    /// Adds a token to each of the first rows, after taking some back.
    fn decode(&mut self, rows: usize, back: usize) {
        let new = tokens(&mut self.random, rows);
        for row in &mut self.rows[..rows] {
            row.truncate(row.len().saturating_sub(back));
        }
        let next = |(row, &token): (usize, &u32)| Next { token, past: self.rows[row].len() };
        let next: Vec<Next> = new.iter().enumerate().map(next).collect();
        let logits = self.model.decode(&next).expect("a run").to_vec();
        assert_eq!(logits.len(), rows * VOCAB);
        for (row, logits) in logits.chunks_exact(VOCAB).enumerate() {
            self.rows[row].push(new[row]);
            self.compare(row, logits);
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.model.swap((Row(a), self.rows[a].len()), (Row(b), self.rows[b].len()));
        self.rows.swap(a, b);
    }

    fn copy(&mut self, from: usize, to: usize, count: usize) {
        self.model.copy(Row(from), Row(to), count).expect("memory");
        self.rows[to] = self.rows[from][..count].to_vec();
    }

    fn release(&mut self, row: usize) {
        self.model.release(Row(row));
        self.rows[row].clear();
    }

    /// One step of a made-up schedule.
    fn step(&mut self) {
        let (row, other) = (self.random.random_range(0..ROWS), self.random.random_range(0..ROWS));
        let held = self.rows[row].len();
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

#[test]
fn rows_answer_as_if_alone_whatever_was_read_decoded_swapped_copied_or_taken_back() {
    let mut worst = 0.0_f32;
    for seed in 0..4 {
        let mut trial = Trial::new(seed);
        (0..50).for_each(|_| trial.step());
        worst = worst.max(trial.worst);
    }
    println!("largest difference {worst:e}");
}

#[test]
fn a_row_much_longer_than_the_others_is_run_apart_and_answers_come_in_order() {
    let mut trial = Trial::new(7);
    for (row, length) in [20, 1300, 5, 30].into_iter().enumerate() {
        trial.read(row, length, 0);
    }
    trial.decode(4, 0);
    trial.swap(1, 3);
    trial.decode(4, 0);
    trial.swap(0, 3);
    trial.decode(3, 0);
    trial.decode(4, 0);
}

#[test]
fn logits_are_given_for_the_positions_wanted() {
    let mut model = load();
    assert!(model.shape().all_positions);
    let text = tokens(&mut SmallRng::seed_from_u64(1), 20);
    assert!(model.read(Row(1), &text[..5], 0, Positions::None).expect("a run").is_empty());
    let all = model.read(Row(1), &text[5..], 5, Positions::All).expect("a run").to_vec();
    assert_eq!(all.len(), 15 * VOCAB);
    for end in 6..=20 {
        let last = model.read(Row(0), &text[..end], 0, Positions::Last).expect("a run");
        assert!(difference(last, &all[(end - 6) * VOCAB..][..VOCAB]) < TOLERANCE, "position {end}");
    }
}

#[test]
fn a_failed_run_leaves_every_row_its_past() {
    let mut trial = Trial::new(9);
    (0..3).for_each(|row| trial.read(row, 10 + row, 0));
    trial.decode(3, 0);
    // A token beyond the vocabulary makes the runtime fail; a past longer than what the row holds is refused.
    let lengths: Vec<usize> = trial.rows.iter().map(Vec::len).collect();
    let next = |row: usize, token: u32, past: usize| {
        let others = |other: usize| Next { token: 5, past: lengths[other] };
        (0..3).map(|other| if other == row { Next { token, past } } else { others(other) }).collect::<Vec<_>>()
    };
    for bad in [next(1, 1 << 30, lengths[1]), next(2, 5, lengths[2] + 1)] {
        assert!(matches!(trial.model.decode(&bad), Err(ModelError::Run(_))));
    }
    for (row, token, past) in [(2, 1 << 30, lengths[2]), (1, 5, lengths[1] + 1), (5, 5, 1)] {
        let failed = trial.model.read(Row(row), &[5, token], past, Positions::Last);
        assert!(matches!(failed, Err(ModelError::Run(_))));
    }
    assert!(matches!(trial.model.copy(Row(0), Row(6), lengths[0] + 1), Err(ModelError::Run(_))));
    trial.decode(3, 0);
    trial.read(2, 4, lengths[2] + 1);
}

#[test]
fn a_graph_that_finds_positions_itself_answers_right_whether_it_counts_ones_or_columns() {
    for counted in [positions::Counted::Ones, positions::Counted::Columns] {
        let folder = positions::without_position_ids(&demo(), counted);
        let model = load_files(&ModelFiles::folder(folder.path()).expect("it is there"));
        let mut trial = Trial::of(model, 11);
        [20, 3, 40].into_iter().enumerate().for_each(|(row, length)| trial.read(row, length, 0));
        (0..3).for_each(|_| trial.decode(3, 0));
        trial.read(1, 5, 2);
        trial.read(2, 5, 40);
        (0..3).for_each(|_| trial.decode(3, 1));
    }
}
