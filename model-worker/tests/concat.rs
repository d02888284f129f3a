//! Several sequences in one run of a graph that joins keys by `Concat`, on ONNX Runtime itself.

#[path = "concat/positions.rs"]
mod positions;

mod trial;

use std::path::{Path, PathBuf};

use muster_worker::model::files::ModelFiles;
use muster_worker::model::manifest::{Layout, Manifest};
use muster_worker::model::{CausalModel, ModelError, Next, Positions, Row};
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use trial::{Alone, Trial, VOCAB, difference, load_files, tokens};

/// Largest difference of a logit between a row alone and in company; logits are some tens.
const TOLERANCE: f32 = 1e-4;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/demo-concat")
}

fn load() -> Box<dyn CausalModel> {
    let files = ModelFiles::folder(&demo()).expect("it is there");
    let Manifest::Causal(manifest) = Manifest::read(&files).expect("a model") else { panic!("a language model") };
    assert_eq!(manifest.layout, Layout::Concat);
    load_files(&files)
}

fn trial(seed: u64) -> Trial {
    trial_of(load(), seed)
}

fn trial_of(model: Box<dyn CausalModel>, seed: u64) -> Trial {
    Trial::new(model, (load(), Alone::Whole), TOLERANCE, seed)
}

#[test]
fn rows_answer_as_if_alone_whatever_was_read_decoded_swapped_copied_or_taken_back() {
    let mut worst = 0.0_f32;
    for seed in 0..4 {
        let mut trial = trial(seed);
        (0..50).for_each(|_| trial.step());
        worst = worst.max(trial.worst);
    }
    println!("largest difference {worst:e}");
}

#[test]
fn a_row_much_longer_than_the_others_is_run_apart_and_answers_come_in_order() {
    let mut trial = trial(7);
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
    let mut trial = trial(9);
    (0..3).for_each(|row| trial.read(row, 10 + row, 0));
    trial.decode(3, 0);
    // A token beyond the vocabulary makes the runtime fail; a past longer than what the row holds is refused.
    let lengths: Vec<usize> = trial.rows.iter().map(|row| row.tokens.len()).collect();
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
        let mut trial = trial_of(model, 11);
        [20, 3, 40].into_iter().enumerate().for_each(|(row, length)| trial.read(row, length, 0));
        (0..3).for_each(|_| trial.decode(3, 0));
        trial.read(1, 5, 2);
        trial.read(2, 5, 40);
        (0..3).for_each(|_| trial.decode(3, 1));
    }
}
