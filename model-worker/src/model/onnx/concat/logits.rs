//! What a run answers.

use ort::value::DynValue;

use super::super::super::ModelError;
use super::super::run_error;

/// Adds the logits of the last `wanted` positions of each lane, in the order given, out of `[lanes, positions, vocab]`.
pub(super) fn keep_logits(
    value: &DynValue,
    lanes: impl ExactSizeIterator<Item = usize>,
    wanted: usize,
    vocab: usize,
    into: &mut Vec<f32>,
) -> Result<(), ModelError> {
    let (shape, logits) = value.try_extract_tensor::<f32>().map_err(run_error)?;
    // A vocabulary of another size would shift every token id without a sign.
    let positions = match shape.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>().as_deref() {
        Ok(&[rows, positions, width]) if rows == lanes.len() && width == vocab && positions >= wanted => positions,
        _ => return Err(odd_logits(shape, [lanes.len(), wanted, vocab])),
    };
    for lane in lanes {
        let end = (lane + 1) * positions * vocab;
        into.extend_from_slice(&logits[end - wanted * vocab..end]);
    }
    Ok(())
}

fn odd_logits(shape: &[i64], [lanes, wanted, vocab]: [usize; 3]) -> ModelError {
    ModelError::Run(format!(
        "logits have the shape {shape:?}, but {wanted} positions of {lanes} sequences were asked for, and the model's \
         configuration tells a vocabulary of {vocab}"
    ))
}

/// Whether two runs that may round differently gave the same logits.
pub(super) fn is_same(a: &[f32], b: &[f32]) -> bool {
    let spread = a.iter().copied().fold(0.0, |most: f32, logit| most.max(logit.abs()));
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= spread * 1e-3)
}

/// Brings rows of `width` numbers, of which the first is that of `order[0]`, into ascending order.
pub(super) fn sort_rows(numbers: &mut [f32], order: &mut [usize], width: usize) {
    for place in 0..order.len() {
        while order[place] != place {
            let target = order[place];
            let (low, high) = (place.min(target), place.max(target));
            let (front, back) = numbers.split_at_mut(high * width);
            front[low * width..][..width].swap_with_slice(&mut back[..width]);
            order.swap(place, target);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_several_runs_come_into_order() {
        let mut numbers = [20.0, 21.0, 0.0, 1.0, 30.0, 31.0, 10.0, 11.0];
        sort_rows(&mut numbers, &mut [2, 0, 3, 1], 2);
        assert_eq!(numbers, [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0]);
    }

    #[test]
    fn rounding_is_no_difference_and_another_answer_is() {
        assert!(is_same(&[10.0, -3.0, 0.0], &[10.0, -3.001, 0.001]));
        assert!(!is_same(&[10.0, -3.0, 0.0], &[10.0, -3.1, 0.0]));
        assert!(!is_same(&[10.0, -3.0], &[10.0, f32::NAN]));
    }
}
