//! From the numbers that a masked language model gives each token of the vocabulary to a sparse vector.
//!
//! Formal et al. 2021, arXiv:2109.10086; the choices are those of sentence-transformers' `SpladePooling`.

use muster_shared::embed::SparseVector;

use super::{Encoded, Given, Head};

/// How the weight of a token of the vocabulary comes from what the text's tokens say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gather {
    /// The largest counts.
    Max,
    /// All count.
    Sum,
}

/// `log(1 + relu(x))` for each token of the text and of the vocabulary, gathered over the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpladeHead {
    /// How the text's tokens come together.
    pub gather: Gather,
    /// Whether the logarithm is taken of its result once more.
    pub twice: bool,
}

impl SpladeHead {
    fn weight(self, logit: f32) -> f32 {
        let once = logit.max(0.0).ln_1p();
        if self.twice { once.ln_1p() } else { once }
    }

    fn gathered(self, logits: &[f32], width: usize) -> Vec<f32> {
        let mut rows = logits.chunks_exact(width);
        match self.gather {
            // A logarithm grows with its number, so that of the largest is the largest.
            Gather::Max => {
                let mut largest = rows.next().map(<[f32]>::to_vec).unwrap_or_default();
                for row in rows {
                    largest.iter_mut().zip(row).for_each(|(held, &logit)| *held = held.max(logit));
                }
                largest.iter_mut().for_each(|logit| *logit = self.weight(*logit));
                largest
            }
            Gather::Sum => rows.fold(vec![0.0; width], |mut sum, row| {
                sum.iter_mut().zip(row).for_each(|(sum, &logit)| *sum += self.weight(logit));
                sum
            }),
        }
    }
}

impl Head for SpladeHead {
    fn finish(&self, given: Given<'_>) -> Encoded {
        let weights = match given {
            Given::Tokens { values, width } => self.gathered(values, width),
            Given::Text(logits) => self.gathered(logits, logits.len()),
        };
        let positive = (0..).zip(weights).filter(|(_, weight)| *weight > 0.0);
        let (indices, values) = positive.unzip();
        Encoded::Sparse(SparseVector { indices, values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sparse(head: SpladeHead) -> SparseVector {
        let given = Given::Tokens { values: &[1.0, -5.0, 0.0, 3.0, -1.0, 0.0], width: 3 };
        let Encoded::Sparse(vector) = head.finish(given) else { panic!("a sparse vector") };
        vector
    }

    #[test]
    fn weights_above_zero_are_told_with_their_places() {
        let once = |logit: f32| logit.ln_1p();
        let max = sparse(SpladeHead { gather: Gather::Max, twice: false });
        assert_eq!((max.indices, max.values), (vec![0], vec![once(3.0)]));
        let sum = sparse(SpladeHead { gather: Gather::Sum, twice: false });
        assert_eq!((sum.indices, sum.values), (vec![0], vec![once(1.0) + once(3.0)]));
        let twice = sparse(SpladeHead { gather: Gather::Max, twice: true });
        assert_eq!(twice.values, [once(once(3.0))]);
    }
}
