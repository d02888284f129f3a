//! The two layouts of the same language model, on ONNX Runtime itself.

mod trial;

use std::num::NonZeroUsize;
use std::path::Path;

use muster_worker::model::files::ModelFiles;
use muster_worker::model::manifest::{Layout, Manifest};
use muster_worker::model::onnx::session::SessionOptions;
use muster_worker::model::onnx::spin::Spin;
use muster_worker::model::{CausalModel, Next, Positions, Row, onnx};
use trial::runtime;

const ROWS: usize = 3;
/// Largest difference of a logit between ways to compute the same; logits are some tens.
const TOLERANCE: f32 = 1e-3;

fn load(folder: &str, layout: Layout) -> Box<dyn CausalModel> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = ModelFiles::folder(&path).expect("it is there");
    let Manifest::Causal(manifest) = Manifest::read(&files).expect("a model") else { panic!("a language model") };
    assert_eq!((manifest.layout, manifest.io.caches.len(), manifest.io.head_size), (layout, 12, 32));
    assert_eq!((manifest.vocab, manifest.context, &manifest.end_ids[..]), (2048, 2048, &[2][..]));
    let options = SessionOptions { threads: NonZeroUsize::MIN, spin: Spin::Off, optimised: None };
    onnx::load_causal(runtime(), &options, manifest, (ROWS, usize::MAX)).expect("it loads")
}

fn gqa() -> Box<dyn CausalModel> {
    load("demo/chat", Layout::Gqa)
}

fn concat() -> Box<dyn CausalModel> {
    load("../tests/models/demo-concat", Layout::Concat)
}

/// Made-up tokens, the same every time.
fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|index| 3 + index.wrapping_mul(2_654_435_761) % 2000).collect()
}

/// Reads tokens in pieces; gives the logits after the last.
fn read(model: &mut dyn CausalModel, row: Row, tokens: &[u32], piece: usize) -> Vec<f32> {
    let mut past = 0;
    let mut logits = Vec::new();
    for piece in tokens.chunks(piece) {
        logits = model.read(row, piece, past, Positions::Last).expect("a run").to_vec();
        past += piece.len();
    }
    logits
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn both_layouts_give_the_same_logits_however_a_prompt_is_cut() {
    // Longer than a row's first memory, so that it has to grow with its past in it.
    let tokens = tokens(700);
    let (mut gqa, mut concat) = (gqa(), concat());
    let whole = read(gqa.as_mut(), Row(0), &tokens, 700);
    for (row, piece) in [(1, 64), (2, 255), (1, 300)] {
        assert!(difference(&whole, &read(gqa.as_mut(), Row(row), &tokens, piece)) < TOLERANCE, "pieces of {piece}");
    }
    assert!(difference(&whole, &read(concat.as_mut(), Row(0), &tokens, 700)) < TOLERANCE);
    assert!(difference(&whole, &read(concat.as_mut(), Row(1), &tokens, 64)) < TOLERANCE);
}

#[test]
fn rows_do_not_see_each_other_and_forget_when_they_begin_anew() {
    let (long, short) = (tokens(300), tokens(20));
    for mut model in [gqa(), concat()] {
        let alone = read(model.as_mut(), Row(0), &short, 20);
        read(model.as_mut(), Row(1), &long, 300);
        // Between two pieces of row 0, other rows run; row 1 then begins anew over the leavings of its past.
        model.read(Row(0), &short[..10], 0, Positions::Last).expect("a run");
        model.read(Row(2), &long[..50], 0, Positions::Last).expect("a run");
        let resumed = model.read(Row(0), &short[10..], 10, Positions::Last).expect("a run").to_vec();
        assert!(difference(&alone, &resumed) < TOLERANCE);
        model.release(Row(1));
        assert!(difference(&alone, &read(model.as_mut(), Row(1), &short, 7)) < TOLERANCE);
    }
}

#[test]
fn a_sequence_may_fill_the_context_to_its_end() {
    let tokens = tokens(2048);
    let mut model = gqa();
    read(model.as_mut(), Row(0), &tokens[..2047], 512);
    let last = model.read(Row(0), &tokens[2047..], 2047, Positions::Last).expect("the last column").to_vec();
    assert!(last.iter().all(|logit| logit.is_finite()));
}

#[test]
fn rows_decode_together_as_alone() {
    let tokens = tokens(120);
    for mut model in [gqa(), concat()] {
        let alone: Vec<Vec<f32>> =
            [7, 50, 120].iter().map(|&length| read(model.as_mut(), Row(0), &tokens[..length], 64)).collect();
        for (row, length) in [(0, 6), (1, 49), (2, 119)] {
            read(model.as_mut(), Row(row), &tokens[..length], 64);
        }
        let next = [6, 49, 119].map(|past| Next { token: tokens[past], past });
        let together = model.decode(&next).expect("a run").to_vec();
        for (row, alone) in alone.iter().enumerate() {
            assert!(difference(alone, &together[row * 2048..][..2048]) < TOLERANCE, "row {row}");
        }
    }
}

#[test]
fn rows_can_be_copied_moved_and_rolled_back() {
    let tokens = tokens(200);
    for mut model in [gqa(), concat()] {
        let whole = read(model.as_mut(), Row(0), &tokens, 64);
        model.copy(Row(0), Row(1), 150).expect("memory");
        model.release(Row(0));
        read(model.as_mut(), Row(0), &tokens[50..60], 10);
        model.swap((Row(0), 10), (Row(1), 150));
        model.swap((Row(2), 0), (Row(1), 10));
        let rest = model.read(Row(0), &tokens[150..], 150, Positions::All).expect("a run").to_vec();
        assert_eq!(rest.len(), 50 * 2048);
        assert!(difference(&whole, &rest[49 * 2048..]) < TOLERANCE);
        let short = read(model.as_mut(), Row(1), &tokens[50..60], 10);
        let moved = model.read(Row(2), &tokens[59..60], 9, Positions::Last).expect("a run").to_vec();
        assert!(difference(&short, &moved) < TOLERANCE);
        let again = model.read(Row(0), &tokens[170..], 170, Positions::Last).expect("a run").to_vec();
        assert!(difference(&whole, &again) < TOLERANCE, "what lies beyond `past` is forgotten");
    }
}
