//! From the vectors of a text's tokens to one vector.

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first.
    Cls,
    /// The largest number of each dimension.
    Max,
    /// The last.
    Last,
}

impl Pooling {
    /// Pools `tokens`, `[length, width]` without padding, at least one row.
    pub fn pool(self, tokens: &[f32], width: usize) -> Vec<f32> {
        let rows = || tokens.chunks_exact(width);
        match self {
            Self::Cls => tokens[..width].to_vec(),
            Self::Last => tokens[tokens.len() - width..].to_vec(),
            Self::Max => fold(rows(), f32::max),
            Self::Mean => {
                let mut sum = fold(rows(), |sum, number| sum + number);
                let count = (tokens.len() / width) as f32;
                sum.iter_mut().for_each(|number| *number /= count);
                sum
            }
        }
    }
}

fn fold<'a>(mut rows: impl Iterator<Item = &'a [f32]>, combine: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    let mut folded = rows.next().map(<[f32]>::to_vec).unwrap_or_default();
    for row in rows {
        folded.iter_mut().zip(row).for_each(|(held, &number)| *held = combine(*held, number));
    }
    folded
}

/// Scales a vector to length 1; one of length 0 stays as it is.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|number| *number /= length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [f32; 6] = [1.0, 2.0, 3.0, -4.0, 5.0, 5.0];

    #[test]
    fn each_pooling_gives_what_its_name_says() {
        assert_eq!(Pooling::Mean.pool(&TOKENS, 2), [3.0, 1.0]);
        assert_eq!(Pooling::Cls.pool(&TOKENS, 2), [1.0, 2.0]);
        assert_eq!(Pooling::Max.pool(&TOKENS, 2), [5.0, 5.0]);
        assert_eq!(Pooling::Last.pool(&TOKENS, 2), [5.0, 5.0]);
    }

    #[test]
    fn a_normalised_vector_has_length_one() {
        let mut vector = [3.0, 4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = [0.0, 0.0];
        normalise(&mut nothing);
        assert_eq!(nothing, [0.0, 0.0]);
    }
}
