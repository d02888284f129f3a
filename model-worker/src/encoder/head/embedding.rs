//! From the vectors of tokens to one vector of the text.

use super::super::pooling::{Pooling, normalise};
use super::dense::Dense;
use super::{Encoded, Given, Head};

/// What is done to the vector of a text.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It goes through a layer.
    Dense(Dense),
    /// It is scaled to length 1.
    Normalise,
}

/// Pools, and does what the model's folder lists after that.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingHead {
    /// How the vectors of the tokens become one; of several, one is put behind the other.
    pub pooling: Vec<Pooling>,
    /// What follows, in this order.
    pub steps: Vec<Step>,
}

impl EmbeddingHead {
    /// Pooling and nothing else.
    pub fn pooling(pooling: Pooling) -> Self {
        Self { pooling: vec![pooling], steps: Vec::new() }
    }

    /// Numbers of a vector, where the graph gives so many; `None` when a layer takes another number of them.
    pub fn width(&self, given: usize, is_pooled: bool) -> Option<usize> {
        let pooled = if is_pooled { given } else { given * self.pooling.len() };
        self.steps.iter().try_fold(pooled, |width, step| match step {
            Step::Dense(dense) => (dense.inputs() == width).then(|| dense.outputs()),
            Step::Normalise => Some(width),
        })
    }
}

impl Head for EmbeddingHead {
    fn finish(&self, given: Given<'_>) -> Encoded {
        let pooled = match given {
            Given::Tokens { values, width } => {
                self.pooling.iter().flat_map(|pooling| pooling.pool(values, width)).collect()
            }
            Given::Text(vector) => vector.to_vec(),
        };
        Encoded::Dense(self.steps.iter().fold(pooled, |vector, step| match step {
            Step::Dense(dense) => dense.apply(&vector),
            Step::Normalise => normalised(vector),
        }))
    }
}

fn normalised(mut vector: Vec<f32>) -> Vec<f32> {
    normalise(&mut vector);
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_poolings_stand_one_behind_the_other_and_steps_follow_in_their_order() {
        let given = Given::Tokens { values: &[3.0, 0.0, 1.0, 8.0], width: 2 };
        let pooling = vec![Pooling::Cls, Pooling::Mean];
        let head = EmbeddingHead { pooling: pooling.clone(), steps: Vec::new() };
        assert_eq!(head.finish(given), Encoded::Dense(vec![3.0, 0.0, 2.0, 4.0]));
        assert_eq!((head.width(2, false), head.width(2, true)), (Some(4), Some(2)));
        let head = EmbeddingHead { pooling: vec![Pooling::Mean], steps: vec![Step::Normalise] };
        assert_eq!(head.finish(Given::Text(&[3.0, 4.0])), Encoded::Dense(vec![0.6, 0.8]));
    }
}
