//! What becomes of the graph's numbers for one text.
//!
//! * [`embedding`]: the vectors of tokens become one vector, by pooling and what may follow it.
//! * [`dense`]: layers that sentence-transformers puts behind its pooling.
//! * [`splade`]: a number for each token of the vocabulary becomes a sparse vector.
//! * [`Plain`]: the numbers themselves, for models that judge.

pub mod dense;
pub mod embedding;
pub mod splade;

use muster_shared::embed::SparseVector;

pub use embedding::EmbeddingHead;

/// A text as a graph takes it: the tokens of one text, or of two that are judged together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Token ids, special ones included; at least one.
    pub ids: Vec<u32>,
    /// Where the second text begins, which `token_type_ids` mark with 1; the length where there is none.
    pub second: usize,
}

impl Tokens {
    /// The tokens of one text.
    pub fn one(ids: Vec<u32>) -> Self {
        Self { second: ids.len(), ids }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// What a graph gives for one text, without padding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Given<'a> {
    /// `[tokens, width]`: numbers for each token.
    Tokens {
        /// The numbers, token by token.
        values: &'a [f32],
        /// How many each token has.
        width: usize,
    },
    /// `[width]`: numbers for the text.
    Text(&'a [f32]),
}

/// What is told of one text.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoded {
    /// A vector, or a number for each class.
    Dense(Vec<f32>),
    /// A vector of which most numbers are 0.
    Sparse(SparseVector),
    /// `[tokens, width]`: numbers for each token.
    Tokens {
        /// The numbers, token by token.
        values: Vec<f32>,
        /// How many each token has.
        width: usize,
    },
}

impl Encoded {
    /// Whether every number is one: a graph of half precision may overflow.
    pub fn is_finite(&self) -> bool {
        let numbers = match self {
            Self::Dense(numbers) | Self::Tokens { values: numbers, .. } => numbers,
            Self::Sparse(vector) => &vector.values,
        };
        numbers.iter().all(|number| number.is_finite())
    }
}

/// The last step of a model, behind its graph. It runs on the encoder's threads.
pub trait Head: Send + Sync {
    /// Finishes one text.
    fn finish(&self, given: Given<'_>) -> Encoded;
}

/// The graph's own numbers: those of classes, for the text or for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain;

impl Head for Plain {
    fn finish(&self, given: Given<'_>) -> Encoded {
        match given {
            Given::Text(values) => Encoded::Dense(values.to_vec()),
            Given::Tokens { values, width } => Encoded::Tokens { values: values.to_vec(), width },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_is_found_wherever_it_stands() {
        let sparse = |value| Encoded::Sparse(SparseVector { indices: vec![3], values: vec![value] });
        let tokens = |value| Encoded::Tokens { values: vec![0.0, value], width: 1 };
        for encoded in [|value| Encoded::Dense(vec![1.0, value]), sparse, tokens] {
            assert!(encoded(2.0).is_finite());
            assert!(!encoded(f32::NAN).is_finite() && !encoded(f32::INFINITY).is_finite());
        }
    }
}
