//! Chooses the next token of one sequence from the model's logits.
//!
//! In this order: log-probabilities are taken from the logits as the model gave them; logit bias; repetition penalty (over
//! prompt and answer), presence and frequency penalty (over the answer); a mask of allowed tokens, and the tokens that are
//! forbidden so early; then, unless the temperature is 0 and the likeliest token is taken, temperature, top-k, min-p,
//! top-p, typical-p, and a draw. Each filter sees what the ones before it have left; typical-p is last as in Hugging Face's
//! transformers.
//!
//! The vocabulary is never sorted. Sets of likely tokens come from one pass with a rising threshold or from selection
//! (`select`), and sums of exponentials are taken only where a parameter needs them (`softmax`).
//!
//! Draws are a pure function of seed and position (`uniform`), so an answer can be continued elsewhere from its tokens.

mod select;
mod softmax;
#[cfg(test)]
mod tests;
mod typical;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use muster_shared::generate::Sampling;

use select::Candidate;
use softmax::Softmax;

/// Below this temperature the likeliest token is taken: dividing by less overflows.
const GREEDY_BELOW: f32 = 1e-5;

/// The least log-probability we report, as OpenAI does: minus infinity is no number in JSON.
const LEAST_LOGPROB: f32 = -9999.0;

/// Set size that top-p alone tries first: with a trained model nearly always enough.
const TOP_P_HEAD: usize = 256;

/// Why no token could be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The model's output is unusable.
    #[error("no logit is a finite number")]
    NoFinite,
    /// Mask and logits leave nothing to choose.
    #[error("no token is allowed here")]
    NothingAllowed,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// How likely it and its rivals were, where asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities by the logits as the model gave them: before bias, penalties, mask, temperature
/// and filters. At least -9999, OpenAI's word for "very unlikely".
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The chosen token.
    pub chosen: (u32, f32),
    /// The likeliest tokens, likeliest first; among equals the lower id first. It may hold the chosen one.
    pub top: Vec<(u32, f32)>,
}

/// The sampler of one answer.
#[derive(Debug, Clone)]
pub struct Sampler {
    params: Sampling,
    logprobs: Option<u32>,
    seed: u64,
    /// Tokens in prompt or answer, for the repetition penalty; empty where it is off.
    seen: HashSet<u32>,
    /// How often a token is in the answer, for the other two; empty where both are off.
    counts: HashMap<u32, u32>,
    /// Tokens that are not chosen before a position.
    forbidden: (Arc<[u32]>, u64),
    /// The row before changes, where log-probabilities are asked for. Kept for its memory, like `candidates`.
    raw: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// * `logprobs`: how many of the likeliest tokens are told with each choice; `None` for no log-probabilities at all.
    /// * `prompt`: its tokens, for the repetition penalty.
    /// * `seed`: `params.seed`, or one drawn by the caller where that is absent.
    ///
    /// A parameter out of its range (which the caller refuses long before) is as good as off.
    pub fn new(params: &Sampling, logprobs: Option<u32>, prompt: &[u32], seed: u64) -> Self {
        let mut params = params.clone();
        if !(params.repetition_penalty > 0.0 && params.repetition_penalty.is_finite()) {
            params.repetition_penalty = 1.0;
        }
        params.min_p = if params.min_p > 0.0 { params.min_p.min(1.0) } else { 0.0 };
        if !(params.typical_p > 0.0 && params.typical_p < 1.0) {
            params.typical_p = 1.0;
        }
        let mut seen = HashSet::new();
        if params.repetition_penalty != 1.0 {
            seen.extend(prompt);
        }
        let forbidden = (Arc::default(), 0);
        Self {
            params,
            logprobs,
            seed,
            seen,
            counts: HashMap::new(),
            forbidden,
            raw: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// The same, never choosing one of `tokens` before `position`: for answers that must not end too early.
    #[must_use]
    pub fn forbidding(self, tokens: Arc<[u32]>, position: u64) -> Self {
        Self { forbidden: (tokens, position), ..self }
    }

    /// Chooses a token and counts it as part of the answer.
    ///
    /// * `logits`: shape `[vocab]`, unnormalised; changed in place. NaN counts as minus infinity. Cut the row to the
    ///   tokenizer's vocabulary first: every entry can be chosen.
    /// * `position`: index of the new token in the whole sequence.
    ///
    /// # Errors
    /// [`SampleError::NoFinite`] when every logit is NaN or infinite; [`SampleError::NothingAllowed`] when every token
    /// with a finite one is forbidden here.
    pub fn sample(&mut self, logits: &mut [f32], position: u64) -> Result<Sampled, SampleError> {
        self.sample_masked(logits, position, None)
    }

    /// As [`Sampler::sample`], choosing only tokens that `mask` allows: token `i` where bit `i % 32` of word `i / 32` is
    /// set, as llguidance makes its masks. Tokens past its end are not allowed.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; [`SampleError::NothingAllowed`] when mask and logits leave no token.
    pub fn sample_masked(
        &mut self,
        logits: &mut [f32],
        position: u64,
        mask: Option<&[u32]>,
    ) -> Result<Sampled, SampleError> {
        clean(logits)?;
        if self.logprobs.is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        self.add_bias(logits);
        self.penalise(logits);
        if let Some(mask) = mask {
            apply_mask(logits, mask);
        }
        self.forbid(logits, position);
        let token = self.choose(logits, uniform(self.seed, position)).ok_or(SampleError::NothingAllowed)?;
        self.accept(token);
        Ok(Sampled { token, logprobs: self.logprobs.map(|top| logprobs(&self.raw, token, top)) })
    }

    /// Whether a choice takes much longer than to find the likeliest token: milliseconds, for a large vocabulary.
    pub fn is_costly(&self) -> bool {
        !self.is_greedy() || self.logprobs.is_some()
    }

    /// Counts a token as part of the answer. [`Sampler::sample`] does so itself; this is for an answer that is resumed.
    pub fn accept(&mut self, token: u32) {
        if self.params.repetition_penalty != 1.0 {
            self.seen.insert(token);
        }
        if self.params.presence_penalty != 0.0 || self.params.frequency_penalty != 0.0 {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    fn forbid(&self, logits: &mut [f32], position: u64) {
        let (tokens, until) = &self.forbidden;
        if position < *until {
            for token in tokens.iter() {
                if let Some(logit) = logits.get_mut(*token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn add_bias(&self, logits: &mut [f32]) {
        for (token, bias) in &self.params.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }

    /// Repetition penalty: Keskar et al. 2019 (CTRL, arXiv:1909.05858), section 4.1, with the sign made right for negative
    /// logits as everybody does. The other two are OpenAI's.
    fn penalise(&self, logits: &mut [f32]) {
        for token in &self.seen {
            if let Some(logit) = logits.get_mut(*token as usize) {
                let penalty = self.params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit -= self.params.presence_penalty + self.params.frequency_penalty * *count as f32;
            }
        }
    }

    /// The token that the number `u` in [0, 1) draws; `None` when no logit is above minus infinity.
    fn choose(&mut self, logits: &[f32], u: f64) -> Option<u32> {
        let max = select::maximum(logits);
        if max == f32::NEG_INFINITY {
            return None;
        }
        // A penalty may have carried an enormous logit to infinity; nothing can be divided by that.
        if self.is_greedy() || max == f32::INFINITY {
            return select::position(logits, max);
        }
        let softmax = Softmax::new(max, self.params.temperature);
        if !self.keep(logits, softmax) {
            return softmax.draw(logits, u);
        }
        // In order of ids, as in a draw from all: the filters change what is drawn from, not how.
        self.candidates.sort_unstable_by_key(|candidate| candidate.token);
        draw(&self.candidates, u)
    }

    fn is_greedy(&self) -> bool {
        is_greedy(&self.params)
    }

    /// Leaves in `candidates` the tokens that the filters keep, weighed, in any order; `false` where all are off.
    fn keep(&mut self, logits: &[f32], softmax: Softmax) -> bool {
        let is_cut = self.keep_likely(logits, softmax);
        let typical_p = self.params.typical_p;
        if typical_p == 1.0 {
            return is_cut;
        }
        if is_cut {
            typical::narrow(softmax, typical_p, &mut self.candidates);
        } else {
            typical::choose(softmax, logits, typical_p, &mut self.candidates);
        }
        true
    }

    /// Top-k, min-p and top-p.
    fn keep_likely(&mut self, logits: &[f32], softmax: Softmax) -> bool {
        let (min_p, top_p) = (self.params.min_p, self.params.top_p);
        let top_k = Some(self.params.top_k as usize).filter(|k| (1..logits.len()).contains(k));
        let filters_mass = top_p < 1.0;
        let candidates = &mut self.candidates;
        let mass = if let Some(k) = top_k {
            select::top(logits, k, candidates);
            softmax.weigh(candidates);
            candidates.retain(|candidate| candidate.weight >= min_p);
            select::mass(candidates)
        } else if min_p > 0.0 {
            softmax.at_least(logits, min_p, candidates);
            select::mass(candidates)
        } else if filters_mass {
            let mass = softmax.sum(logits);
            select::top(logits, TOP_P_HEAD.min(logits.len()), candidates);
            softmax.weigh(candidates);
            if select::mass(candidates) < f64::from(top_p) * mass {
                select::top(logits, logits.len(), candidates);
                softmax.weigh(candidates);
            }
            mass
        } else {
            return false;
        };
        if filters_mass {
            select::keep_mass(candidates, f64::from(top_p) * mass, Candidate::likelier_first);
        }
        true
    }
}

/// Whether the likeliest token is taken, so that a seed changes nothing.
pub fn is_greedy(params: &Sampling) -> bool {
    // Also where it is NaN.
    !matches!(params.temperature.partial_cmp(&GREEDY_BELOW), Some(std::cmp::Ordering::Greater))
}

/// Makes every logit a number or minus infinity.
fn clean(logits: &mut [f32]) -> Result<(), SampleError> {
    // An exponent of all ones is NaN or infinite. Without a branch in it, the loop becomes vector instructions.
    const EXPONENT: u32 = 0x7f80_0000;
    let odd = logits.iter().fold(false, |odd, logit| odd | (logit.to_bits() & EXPONENT == EXPONENT));
    if !odd && !logits.is_empty() {
        return Ok(());
    }
    if !logits.iter().any(|logit| logit.is_finite()) {
        return Err(SampleError::NoFinite);
    }
    for logit in logits {
        // Plus infinity is an overflow, such as half precision has them: the largest, but still a number.
        *logit = if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
    }
    Ok(())
}

fn apply_mask(logits: &mut [f32], mask: &[u32]) {
    let words = mask.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(u32::BITS as usize).zip(words) {
        if word == u32::MAX {
            continue;
        }
        for (bit, logit) in logits.iter_mut().enumerate() {
            if word >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

fn logprobs(raw: &[f32], token: u32, top: u32) -> Logprobs {
    let max = select::maximum(raw);
    let log_sum = Softmax::new(max, 1.0).sum(raw).ln();
    let logprob = |logit: f32| ((f64::from(logit) - f64::from(max) - log_sum) as f32).max(LEAST_LOGPROB);
    let mut likeliest = Vec::new();
    select::top(raw, (top as usize).min(raw.len()), &mut likeliest);
    likeliest.sort_unstable_by(Candidate::likelier_first);
    Logprobs {
        chosen: (token, logprob(raw[token as usize])),
        top: likeliest.iter().map(|candidate| (candidate.token, logprob(candidate.logit))).collect(),
    }
}

/// Draws one of the candidates by their weights.
fn draw(candidates: &[Candidate], u: f64) -> Option<u32> {
    let target = u * select::mass(candidates);
    let mut reached = 0.0;
    for candidate in candidates {
        reached += f64::from(candidate.weight);
        if reached > target {
            return Some(candidate.token);
        }
    }
    candidates.last().map(|candidate| candidate.token)
}

/// A number in [0, 1), the same for the same seed and position on every machine.
///
/// The output function of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") over
/// a counter. The seed goes through it first, so that neighbouring seeds, which the answers of one request have, do not
/// count through neighbouring numbers.
fn uniform(seed: u64, position: u64) -> f64 {
    const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
    let counter = mix(seed.wrapping_add(GOLDEN_GAMMA)).wrapping_add(position.wrapping_mul(GOLDEN_GAMMA));
    // The upper 53 bits: as many as a double holds.
    (mix(counter) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
