//! The protocol's classification extension: the largest numbers of an output as `value:index` or `value:index:label`.

use std::cmp::Ordering;

use half::{bf16, f16};
use muster_shared::tensor::{Datatype, layout};

use crate::model::tensor::Array;

/// Most classes that can be asked for of a row.
pub const CLASSES: usize = 4096;

/// Classes of an output of that shape, of which one is unknown where it is below 0; `None` where that cannot be told.
///
/// With `rows`, the first dimension counts rows, which are classified each by itself.
pub fn classes(shape: &[i64], rows: bool) -> Option<usize> {
    let shape = if rows { shape.get(1..).unwrap_or_default() } else { shape };
    shape.iter().try_fold(1usize, |classes, &size| classes.checked_mul(usize::try_from(size).ok()?))
}

/// The largest `count` numbers of each row, or of the whole output, as text of shape `[rows, count]` or `[count]`.
///
/// # Errors
/// With the number of classes, when there are fewer.
pub fn classify(array: &Array, count: usize, rows: bool, labels: &[String]) -> Result<Array, usize> {
    let sizes: Vec<i64> = array.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
    let classes = classes(&sizes, rows).unwrap_or(0);
    if classes < count {
        return Err(classes);
    }
    let row = classes.max(1) * array.datatype.size().unwrap_or(1);
    let texts: Vec<String> = array.data.chunks(row).flat_map(|row| best(row, array.datatype, count, labels)).collect();
    let shape = if rows { vec![array.shape.first().copied().unwrap_or(1), count] } else { vec![count] };
    let data = layout::join_strings(texts.iter().map(|text| text.as_bytes()));
    let data = data.expect("a class's name is a line of a file, and shorter than 4 GiB");
    Ok(Array { datatype: Datatype::Bytes, shape, data })
}

/// A number of any datatype.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Score {
    Whole(i128),
    Real(f64),
}

impl Score {
    /// Descending; what is no number comes last.
    fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => b.cmp(a),
            (Self::Real(a), Self::Real(b)) => b.partial_cmp(a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())),
            _ => Ordering::Equal, // an array holds one kind
        }
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(number) => write!(f, "{number}"),
            Self::Real(number) => write!(f, "{number:.6}"),
        }
    }
}

fn best(row: &[u8], datatype: Datatype, count: usize, labels: &[String]) -> Vec<String> {
    // A row may have millions of numbers, of which a few are wanted.
    let mut best: Vec<(usize, Score)> = Vec::with_capacity(count.min(CLASSES) + 1);
    let size = datatype.size().unwrap_or(1);
    for (index, score) in row.chunks_exact(size).filter_map(|bytes| score(datatype, bytes)).enumerate() {
        // Of equal numbers the one with the smaller index comes first.
        let place = best.partition_point(|(_, other)| other.order(&score) != Ordering::Greater);
        if place < count {
            best.insert(place, (index, score));
            best.truncate(count);
        }
    }
    let text = |(index, score): (usize, Score)| match labels.get(index) {
        Some(label) => format!("{score}:{index}:{label}"),
        None => format!("{score}:{index}"),
    };
    best.into_iter().map(text).collect()
}

/// One number; `None` for bytes, which are refused before they run.
fn score(datatype: Datatype, bytes: &[u8]) -> Option<Score> {
    macro_rules! number {
        ($type:ty) => {
            <$type>::from_le_bytes(bytes.try_into().ok()?)
        };
    }
    Some(match datatype {
        Datatype::Bool | Datatype::Uint8 => Score::Whole(number!(u8).into()),
        Datatype::Uint16 => Score::Whole(number!(u16).into()),
        Datatype::Uint32 => Score::Whole(number!(u32).into()),
        Datatype::Uint64 => Score::Whole(number!(u64).into()),
        Datatype::Int8 => Score::Whole(number!(i8).into()),
        Datatype::Int16 => Score::Whole(number!(i16).into()),
        Datatype::Int32 => Score::Whole(number!(i32).into()),
        Datatype::Int64 => Score::Whole(number!(i64).into()),
        Datatype::Fp16 => Score::Real(number!(f16).into()),
        Datatype::Bf16 => Score::Real(number!(bf16).into()),
        Datatype::Fp32 => Score::Real(number!(f32).into()),
        Datatype::Fp64 => Score::Real(number!(f64)),
        Datatype::Bytes => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize], numbers: &[f32]) -> Array {
        let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>().into();
        Array { datatype: Datatype::Fp32, shape: shape.to_vec(), data }
    }

    fn texts(array: &Array) -> Vec<String> {
        let texts = layout::strings(&array.data).map(|text| text.expect("whole elements"));
        texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    #[test]
    fn each_row_gives_its_largest_with_labels_where_there_are_some() {
        let scores = array(&[2, 3], &[0.1, 0.7, 0.2, f32::NAN, -1.0, -1.0]);
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let classes = classify(&scores, 2, true, &labels).expect("enough classes");
        assert_eq!((classes.datatype, &classes.shape[..]), (Datatype::Bytes, &[2, 2][..]));
        assert_eq!(texts(&classes), ["0.700000:1:dog", "0.200000:2", "-1.000000:1:dog", "-1.000000:2"]);
    }

    #[test]
    fn without_rows_the_whole_output_is_one_list() {
        let classes = classify(&array(&[2, 2], &[1.0, 4.0, 3.0, 2.0]), 3, false, &[]).expect("enough classes");
        assert_eq!(texts(&classes), ["4.000000:1", "3.000000:2", "2.000000:3"]);
        assert_eq!(classify(&array(&[2, 2], &[0.0; 4]), 5, false, &[]), Err(4));
        assert_eq!(classify(&array(&[2, 2], &[0.0; 4]), 3, true, &[]), Err(2));
    }

    #[test]
    fn whole_numbers_are_compared_as_such() {
        let numbers = [u64::MAX - 1, u64::MAX, 0];
        let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>().into();
        let array = Array { datatype: Datatype::Uint64, shape: vec![3], data };
        let classes = classify(&array, 1, false, &[]).expect("enough classes");
        assert_eq!(texts(&classes), ["18446744073709551615:1"]);
    }
}
