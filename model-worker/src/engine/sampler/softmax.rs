//! Unnormalised probabilities: exponentials of logits, relative to the largest.

use super::select::Candidate;

/// Entries whose weights are summed in single precision before they join the sum in double.
const CHUNK: usize = 256;
const LANES: usize = 8;

/// Turns logits into weights `exp((logit - max) / temperature)`: 1 for the likeliest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    max: f32,
    inverse_temperature: f32,
}

impl Softmax {
    /// `max` is the row's largest logit and finite; `temperature` is above 1e-5.
    pub(super) fn new(max: f32, temperature: f32) -> Self {
        Self { max, inverse_temperature: 1.0 / temperature }
    }

    fn weight(self, logit: f32) -> f32 {
        exp(self.scaled(logit))
    }

    /// The logarithm of a weight.
    pub(super) fn scaled(self, logit: f32) -> f32 {
        (logit - self.max) * self.inverse_temperature
    }

    /// Fills in the candidates' weights.
    pub(super) fn weigh(self, candidates: &mut [Candidate]) {
        for candidate in candidates {
            candidate.weight = self.weight(candidate.logit);
        }
    }

    /// All weights together.
    pub(super) fn sum(self, logits: &[f32]) -> f64 {
        logits.chunks(CHUNK).map(|chunk| self.sum_chunk(chunk)).sum()
    }

    fn sum_chunk(self, chunk: &[f32]) -> f64 {
        let mut lanes = [0.0_f32; LANES];
        let (blocks, rest) = chunk.as_chunks::<LANES>();
        for block in blocks {
            for (lane, logit) in lanes.iter_mut().zip(block) {
                *lane += self.weight(*logit);
            }
        }
        let rest = rest.iter().map(|logit| self.weight(*logit));
        f64::from(lanes.into_iter().chain(rest).sum::<f32>())
    }

    /// All weights together; mean and variance of their logarithms, each counted by its weight.
    pub(super) fn moments(self, logits: &[f32]) -> (f64, [f64; 2]) {
        let mut sums = [0.0_f64; 3];
        for chunk in logits.chunks(CHUNK) {
            let mut lanes = [[0.0_f32; LANES]; 3];
            let (blocks, rest) = chunk.as_chunks::<LANES>();
            blocks.iter().for_each(|block| self.add_moments(block, &mut lanes));
            let mut last = [f32::NEG_INFINITY; LANES]; // weighs nothing
            last[..rest.len()].copy_from_slice(rest);
            self.add_moments(&last, &mut lanes);
            for (sum, lanes) in sums.iter_mut().zip(lanes) {
                *sum += f64::from(lanes.into_iter().sum::<f32>());
            }
        }
        let [mass, first, second] = sums;
        let mean = first / mass;
        (mass, [mean, (second / mass - mean * mean).max(0.0)])
    }

    fn add_moments(self, block: &[f32; LANES], [weights, firsts, seconds]: &mut [[f32; LANES]; 3]) {
        for lane in 0..LANES {
            let scaled = self.scaled(block[lane]);
            let weight = exp(scaled);
            // Where the weight is 0 the logarithm may be infinite.
            let scaled = if scaled > -100.0 { scaled } else { 0.0 };
            weights[lane] += weight;
            firsts[lane] += weight * scaled;
            seconds[lane] += weight * scaled * scaled;
        }
    }

    /// Leaves in `kept` the tokens that have any weight, and whose weight has its logarithm in a range, weighed.
    pub(super) fn between(self, logits: &[f32], (low, high): (f64, f64), kept: &mut Vec<Candidate>) {
        kept.clear();
        let (low, high) = (low as f32, high as f32);
        let is_inside = |logit: f32| (low..=high).contains(&self.scaled(logit));
        let entries = logits.iter().enumerate().filter(|(_, logit)| is_inside(**logit));
        let weighed =
            entries.map(|(token, logit)| Candidate { weight: self.weight(*logit), ..Candidate::new(token, *logit) });
        kept.extend(weighed.filter(|candidate| candidate.weight > 0.0));
    }

    /// Leaves in `kept` the tokens whose weight is at least `least`, weighed.
    pub(super) fn at_least(self, logits: &[f32], least: f32, kept: &mut Vec<Candidate>) {
        kept.clear();
        // Rules most tokens out without an exponential; the slack covers the rounding of both.
        let scaled_least = least.ln() - 1e-3;
        let entries = logits.iter().enumerate().filter(|(_, logit)| self.scaled(**logit) >= scaled_least);
        kept.extend(
            entries.map(|(token, logit)| Candidate { weight: self.weight(*logit), ..Candidate::new(token, *logit) }),
        );
        kept.retain(|candidate| candidate.weight >= least);
    }

    /// Draws from the whole row, by a number in [0, 1).
    pub(super) fn draw(self, logits: &[f32], u: f64) -> Option<u32> {
        let sums: Vec<f64> = logits.chunks(CHUNK).map(|chunk| self.sum_chunk(chunk)).collect();
        let target = u * sums.iter().sum::<f64>();
        let (mut reached, mut found) = (0.0, None);
        for (index, sum) in sums.into_iter().enumerate() {
            if sum > 0.0 {
                found = Some((index * CHUNK, reached));
            }
            reached += sum;
            if reached > target {
                break;
            }
        }
        let (start, mut reached) = found?;
        let mut last = None;
        for (token, logit) in logits.iter().enumerate().skip(start).take(CHUNK) {
            let weight = self.weight(*logit);
            // Rounding may end the chunk before the target: then its last token that has any weight is drawn.
            last = if weight > 0.0 { Some(token as u32) } else { last };
            reached += f64::from(weight);
            if reached > target {
                break;
            }
        }
        last
    }
}

/// `e^x` for `x` up to 0, within 2 units in the last place, and 0 below -87.
///
/// Not the standard library's: that one is the platform's, which differs in the last bit from machine to machine, and a
/// seed shall draw the same tokens everywhere; and it cannot become vector instructions. The polynomial is that of Cephes'
/// `expf` (Moshier 1989).
fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN_2_HIGH: f32 = 0.693_359_4; // few bits, so that the product below is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut y = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        y = y * r + coefficient;
    }
    let y = y * (r * r) + r + 1.0;
    let two_to_n = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    // A mask and not a branch, which would keep the loops from becoming vector instructions.
    f32::from_bits((y * two_to_n).to_bits() & u32::from(x > -87.0).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_the_last_bits() {
        for step in 0..870_000 {
            let x = -step as f32 * 1e-4;
            let right = f64::from(x).exp();
            assert!((f64::from(exp(x)) / right - 1.0).abs() < 2.5e-7, "{x}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-88.0), exp(f32::NEG_INFINITY), exp(f32::NAN)], [0.0; 3]);
    }
}
