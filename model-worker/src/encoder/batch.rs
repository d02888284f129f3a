//! How much runs together.
//!
//! On a processor a run is saturated at some 64 tokens and padding is pure loss, so texts of like length share a run
//! and long ones run alone. Nothing waits for company: only what is queued already is put together.

/// Bounds of one run that holds more than one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Tokens, padding included: the longest text times the number of texts.
    pub tokens: usize,
    /// Padding in percent of these tokens.
    pub padding_percent: usize,
}

impl BatchLimits {
    /// What suits one thread of a processor.
    pub const PROCESSOR: Self = Self { tokens: 128, padding_percent: 10 };
    /// Every text runs alone: for graphs in which what runs together changes what comes out.
    pub const ALONE: Self = Self { tokens: 0, padding_percent: 0 };
}

/// A run that is being put together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filling {
    limits: BatchLimits,
    texts: usize,
    longest: usize,
    /// Tokens without padding.
    tokens: usize,
}

impl Filling {
    /// Begins with one text of so many tokens, however long it is.
    pub(super) fn new(limits: BatchLimits, length: usize) -> Self {
        Self { limits, texts: 1, longest: length, tokens: length }
    }

    /// Adds a text of so many tokens; says whether it fits, and else changes nothing.
    pub(super) fn add(&mut self, length: usize) -> bool {
        let (texts, longest, tokens) = (self.texts + 1, self.longest.max(length), self.tokens + length);
        let padded = longest * texts;
        let fits = padded <= self.limits.tokens && (padded - tokens) * 100 <= padded * self.limits.padding_percent;
        if fits {
            *self = Self { texts, longest, tokens, ..*self };
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_takes_texts_until_its_tokens_or_its_padding_are_too_many() {
        let mut run = Filling::new(BatchLimits::PROCESSOR, 40);
        assert!(!run.add(30), "12.5 % would be padding");
        assert!(run.add(40) && run.add(38));
        assert!(!run.add(40), "160 tokens are more than 128");
        assert!(!Filling::new(BatchLimits::PROCESSOR, 70).add(70));
        assert!(!Filling::new(BatchLimits::ALONE, 1).add(1));
    }
}
