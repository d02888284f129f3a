//! From the vectors of a text's tokens to one vector.

/// How the vectors of a text's tokens become one; the names of sentence-transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first.
    Cls,
    /// The largest number of each dimension.
    Max,
    /// Their mean.
    Mean,
    /// Their sum, divided by the square root of their number.
    MeanSqrtLength,
    /// Their mean, in which the first counts once, the second twice, and so on (Muennighoff 2022, arXiv:2202.08904).
    WeightedMean,
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
            Self::Mean => divided(fold(rows(), |sum, number| sum + number), count(tokens, width)),
            Self::MeanSqrtLength => divided(fold(rows(), |sum, number| sum + number), count(tokens, width).sqrt()),
            Self::WeightedMean => weighted_mean(rows(), width),
        }
    }
}

fn count(tokens: &[f32], width: usize) -> f32 {
    (tokens.len() / width) as f32
}

fn divided(mut vector: Vec<f32>, by: f32) -> Vec<f32> {
    vector.iter_mut().for_each(|number| *number /= by);
    vector
}

fn weighted_mean<'a>(rows: impl Iterator<Item = &'a [f32]>, width: usize) -> Vec<f32> {
    let (mut sum, mut weights) = (vec![0.0; width], 0.0);
    for (place, row) in rows.enumerate() {
        let weight = (place + 1) as f32;
        weights += weight;
        sum.iter_mut().zip(row).for_each(|(sum, number)| *sum += weight * number);
    }
    divided(sum, weights)
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
        assert_eq!(Pooling::WeightedMean.pool(&TOKENS, 2), [22.0 / 6.0, 9.0 / 6.0]);
        assert_eq!(Pooling::MeanSqrtLength.pool(&TOKENS[..2], 2), [1.0, 2.0]);
        let root = 3.0_f32.sqrt();
        assert_eq!(Pooling::MeanSqrtLength.pool(&TOKENS, 2), [9.0 / root, 3.0 / root]);
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
