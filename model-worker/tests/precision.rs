//! 4-bit weights and float16, on ONNX Runtime itself: a row in company has the logits that it has alone.

mod trial;

use trial::{Alone, Trial, load};

/// Blocks of 32, products computed in int8.
const INT4: &str = "../tests/models/demo-int4";
/// Weights, caches and logits.
const FP16: &str = "../tests/models/demo-fp16";

/// Runs random schedules, in which pieces of prompts are read, rows decode together at changing membership, and are
/// swapped, copied, released and taken back. Every token is given, so that one difference does not lead to others.
///
/// `tolerance`: largest difference of a logit; the logits of one position lie some 21 apart.
fn in_company_as_alone(folder: &str, how: Alone, tolerance: f32) {
    let (mut worst, mut spread) = (0.0_f32, 0.0_f32);
    for seed in 0..2 {
        let mut trial = Trial::new(load(folder), (load(folder), how), tolerance, seed);
        (0..60).for_each(|_| trial.step());
        worst = worst.max(trial.worst);
        spread = spread.max(trial.spread);
    }
    println!("largest difference {worst:e}, logits lie {spread} apart");
    assert!(spread > 10.0, "the model says something: logits lie {spread} apart");
}

#[test]
fn rows_of_four_bits_have_in_company_the_logits_they_have_alone() {
    in_company_as_alone(INT4, Alone::Pieces, 1e-2); // measured: 4e-6
}

#[test]
fn rows_of_float16_have_in_company_the_logits_they_have_alone() {
    in_company_as_alone(FP16, Alone::Pieces, 1e-2); // measured: no difference
}

#[test]
fn how_a_prompt_is_cut_changes_four_bits_by_little_more_than_their_rounding() {
    // Products round what they are given to int8: one number on the other side of a step moves logits by up to 0.21.
    in_company_as_alone(INT4, Alone::Whole, 0.4);
}

#[test]
fn how_a_prompt_is_cut_changes_float16_by_a_few_of_its_steps() {
    // Between 16 and 32 float16 has steps of 1/64; measured: one.
    in_company_as_alone(FP16, Alone::Whole, 4.0 / 64.0);
}
