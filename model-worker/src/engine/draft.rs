//! Speculation without a second model: what followed the last tokens when they stood in the text before.
//!
//! Prompt lookup (Saxena 2023, "Prompt Lookup Decoding"): the last few tokens are looked up in prompt and answer, and
//! what came after them is proposed. The model reads the proposal in one run and says after each token what it would have
//! said itself; as far as both agree, the run gave several tokens. Whether that pays depends on the model (a run over
//! four tokens may cost as much as one over one, or four times that) and on the text, so both are measured.

use std::time::Duration;

/// Lengths of the end that is looked up, the longest first.
const ENDS: [usize; 2] = [3, 2];
/// Longest proposal, in tokens.
pub(super) const LONGEST: usize = 8;
/// Weight of the newest measurement in the moving averages.
const WEIGHT: f64 = 0.1;
/// A proposal must promise so much more than a plain run: measurements are noisy.
const GAIN: f64 = 1.1;
/// After so many plain runs a proposal is tried although it does not promise to pay: text and machine change.
const RETRY: u32 = 256;

/// What follows in `tokens` on an earlier occurrence of their end: the latest of the longest end; at most `longest`.
pub(super) fn propose(tokens: &[u32], longest: usize) -> &[u32] {
    for length in ENDS {
        let Some(start) = tokens.len().checked_sub(length) else { continue };
        let end = &tokens[start..];
        // Not the end itself, though it may overlap: `a a a` is followed by `a`.
        if let Some(found) = tokens[..tokens.len() - 1].windows(length).rposition(|window| window == end) {
            let follows = &tokens[found + length..];
            return &follows[..follows.len().min(longest)];
        }
    }
    &[]
}

/// Decides how long proposals are, from what they have cost and brought.
#[derive(Debug)]
pub(super) struct Speculation {
    /// Seconds of a run over so many tokens of one row, index 0 unused.
    runs: [Option<f64>; LONGEST + 2],
    /// Share of proposed tokens that the model agreed with, moving average.
    agreement: f64,
    plain: u32,
}

impl Speculation {
    pub(super) fn new() -> Self {
        Self { runs: [None; LONGEST + 2], agreement: 0.5, plain: 0 }
    }

    /// The length of proposal that pays best; 0 where none does.
    pub(super) fn length(&self) -> usize {
        let Some(plain) = self.runs[1] else { return 0 };
        if self.plain >= RETRY {
            return LONGEST / 2;
        }
        let promise = |length: usize| (self.expected(length) / self.cost(length + 1, plain), length);
        let best = (1..=LONGEST).map(promise).max_by(|a, b| a.0.total_cmp(&b.0));
        best.filter(|(rate, _)| *rate > GAIN / plain).map_or(0, |(_, length)| length)
    }

    /// Tokens that a proposal of this length brings, the model's own included: each only if all before it agreed.
    fn expected(&self, length: usize) -> f64 {
        (0..=length as i32).map(|agreed| self.agreement.powi(agreed)).sum()
    }

    /// Seconds of a run over so many tokens: as measured, else by the nearest shorter one, which is too hopeful and so
    /// gets measured.
    fn cost(&self, tokens: usize, plain: f64) -> f64 {
        self.runs[1..=tokens].iter().rev().flatten().next().copied().unwrap_or(plain)
    }

    /// A run over so many tokens of one row took so long.
    pub(super) fn note_run(&mut self, tokens: usize, took: Duration) {
        self.plain = if tokens == 1 { self.plain.saturating_add(1) } else { 0 };
        if let Some(held) = self.runs.get_mut(tokens) {
            let newest = took.as_secs_f64();
            *held = Some(held.map_or(newest, |held| held + WEIGHT * (newest - held)));
        }
    }

    /// Of a proposal of so many tokens the model agreed with so many.
    pub(super) fn note_agreement(&mut self, proposed: usize, agreed: usize) {
        // The first that differs ends the proposal; those behind it were never judged.
        let judged = (agreed + 1).min(proposed);
        for token in 0..judged {
            let newest = if token < agreed { 1.0 } else { 0.0 };
            self.agreement += WEIGHT * (newest - self.agreement);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_end_of_a_text_is_proposed() {
        assert_eq!(propose(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 8), [4, 5, 9, 1, 2, 3]);
        assert_eq!(propose(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 2), [4, 5]);
        assert_eq!(propose(&[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1), [8], "the latest occurrence");
        assert_eq!(propose(&[5, 1, 2, 7, 1, 2], 1), [7], "a shorter end where no longer one occurs");
        assert_eq!(propose(&[4, 4, 4], 8), [4]);
        assert!(propose(&[1, 2, 3, 4], 8).is_empty());
        assert!(propose(&[], 8).is_empty() && propose(&[1], 8).is_empty());
    }

    fn measured(costs: [u64; 3]) -> Speculation {
        let mut speculation = Speculation::new();
        for (tokens, cost) in [1, 5, LONGEST + 1].into_iter().zip(costs) {
            speculation.note_run(tokens, Duration::from_millis(cost));
        }
        speculation
    }

    #[test]
    fn proposals_are_made_where_a_longer_run_costs_little() {
        assert_eq!(Speculation::new().length(), 0, "nothing is known yet");
        let mut cheap = measured([30, 32, 35]);
        assert!(cheap.length() >= 3);
        for _ in 0..50 {
            cheap.note_agreement(4, 0);
        }
        assert_eq!(cheap.length(), 0, "a text that nobody can foretell");
    }

    #[test]
    fn proposals_are_not_made_where_every_token_costs_the_same() {
        let mut dear = Speculation::new();
        for tokens in 1..=LONGEST + 1 {
            dear.note_run(tokens, Duration::from_millis(10 * tokens as u64));
        }
        assert_eq!(dear.length(), 0);
        for _ in 0..RETRY {
            dear.note_run(1, Duration::from_millis(10));
        }
        assert!(dear.length() > 0, "tried again after a while");
    }
}
