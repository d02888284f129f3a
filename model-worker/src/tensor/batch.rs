//! Several requests as one run, and its outputs as several answers.

use bytes::{Bytes, BytesMut};
use muster_shared::tensor::{Datatype, layout};

use super::check::Checked;
use super::queue::Likeness;
use crate::model::tensor::Array;

/// Inputs of a request, each with its place in the graph, in the graph's order.
pub type Inputs = Vec<(usize, Array)>;

/// What another request must be like to run with this one.
pub fn likeness(request: &Checked) -> Likeness {
    let beyond = |array: &Array| array.shape.get(1..).unwrap_or_default().to_vec();
    Likeness {
        inputs: request.inputs.iter().map(|(place, array)| (*place, beyond(array))).collect(),
        wanted: request.wanted.iter().map(|wanted| wanted.place).collect(),
    }
}

/// The inputs of requests that are alike, one after the other along the first dimension.
pub fn join(requests: &[&Inputs]) -> Inputs {
    let Some(first) = requests.first() else { return Inputs::new() };
    let column = |(index, (place, like)): (usize, &(usize, Array))| {
        let arrays = || requests.iter().filter_map(move |inputs| inputs.get(index)).map(|(_, array)| array);
        let mut data = BytesMut::with_capacity(arrays().map(|array| array.data.len()).sum());
        arrays().for_each(|array| data.extend_from_slice(&array.data));
        let mut shape = like.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows = arrays().filter_map(|array| array.shape.first()).sum();
        }
        (*place, Array { datatype: like.datatype, shape, data: data.freeze() })
    };
    first.iter().enumerate().map(column).collect()
}

/// Outputs of a run over that many rows of each request, as those of each; `None` where an output has other rows.
pub fn split(outputs: &[Array], rows: &[usize]) -> Option<Vec<Vec<Array>>> {
    let total: usize = rows.iter().sum();
    let mut answers: Vec<Vec<Array>> = rows.iter().map(|_| Vec::with_capacity(outputs.len())).collect();
    for output in outputs {
        if output.shape.first() != Some(&total) {
            return None;
        }
        let pieces = pieces(output, total, rows);
        for ((answer, data), &rows) in answers.iter_mut().zip(pieces).zip(rows) {
            let mut shape = output.shape.clone();
            shape[0] = rows;
            answer.push(Array { datatype: output.datatype, shape, data });
        }
    }
    Some(answers)
}

/// The data of each request's rows.
fn pieces(output: &Array, total: usize, rows: &[usize]) -> Vec<Bytes> {
    let elements_of_a_row: usize = output.shape[1..].iter().product();
    let mut begin = 0;
    let mut cut = |length: usize| {
        let end = begin + length;
        let piece = output.data.slice(begin..end);
        begin = end;
        piece
    };
    if output.datatype == Datatype::Bytes {
        let mut lengths = layout::strings(&output.data).map_while(Result::ok).map(|text| 4 + text.len());
        return rows.iter().map(|rows| cut(lengths.by_ref().take(rows * elements_of_a_row).sum())).collect();
    }
    let row = output.data.len() / total.max(1);
    rows.iter().map(|rows| cut(rows * row)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers(rows: usize, columns: usize, seed: u8) -> Array {
        let data: Vec<u8> = (0..rows * columns * 2).map(|at| seed.wrapping_add(at as u8)).collect();
        Array { datatype: Datatype::Uint16, shape: vec![rows, columns], data: data.into() }
    }

    fn texts(rows: usize, seed: u8) -> Array {
        let texts: Vec<Vec<u8>> = (0..rows).map(|row| vec![seed; (row + usize::from(seed)) % 4]).collect();
        let data = layout::join_strings(texts.iter().map(Vec::as_slice)).expect("they are short");
        Array { datatype: Datatype::Bytes, shape: vec![rows], data }
    }

    proptest! {
        #[test]
        fn what_is_joined_is_split_alike(rows in prop::collection::vec(1usize..5, 1..6), columns in 0usize..4) {
            let parts = rows.iter().zip(0u8..);
            let requests: Vec<Inputs> =
                parts.map(|(&rows, seed)| vec![(0, numbers(rows, columns, seed)), (3, texts(rows, seed))]).collect();
            let joined = join(&requests.iter().collect::<Vec<_>>());
            prop_assert_eq!(joined[0].1.shape[0], rows.iter().sum::<usize>());
            let outputs: Vec<Array> = joined.into_iter().map(|(_, array)| array).collect();
            let answers = split(&outputs, &rows).expect("the rows are there");
            for (request, answer) in requests.into_iter().zip(answers) {
                prop_assert_eq!(request.into_iter().map(|(_, array)| array).collect::<Vec<_>>(), answer);
            }
        }
    }

    #[test]
    fn an_output_with_other_rows_cannot_be_split() {
        assert_eq!(split(&[numbers(3, 2, 0)], &[1, 1]), None);
        let scalar = Array { shape: Vec::new(), ..numbers(1, 1, 0) };
        assert_eq!(split(&[scalar], &[1, 1]), None);
    }
}
