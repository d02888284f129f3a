//! How many tokens of a prompt one step reads, so that those who wait for their next token do not wait too long.

use std::time::Duration;

/// Tokens read in one step when nobody waits for it: a run of so many is as fast a token as any, and a cancelled prompt
/// is noticed between two of them.
const ALONE: usize = 256;
/// Fewest tokens read in one step: with less, a run costs more than its tokens, and prompts would starve.
pub(super) const LEAST: usize = 16;
/// Tokens read in one step before a run was ever measured.
const UNKNOWN: usize = 32;
/// Weight of the newest run in the moving averages.
const WEIGHT: f64 = 0.2;

/// Chooses the length of chunks from what runs have cost.
#[derive(Debug)]
pub(super) struct Pace {
    /// The longest pause between two tokens of an answer that is accepted.
    pause: Duration,
    /// Seconds that one token of a prompt takes, moving average.
    prompt_token: Option<f64>,
    /// Seconds that the last decoding run took.
    decode: f64,
}

impl Pace {
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, prompt_token: None, decode: 0.0 }
    }

    /// Tokens that the next step may read while so many sequences decode.
    pub(super) fn chunk(&self, decoding: usize) -> usize {
        let Some(token) = self.prompt_token else { return if decoding == 0 { ALONE } else { UNKNOWN } };
        if decoding == 0 {
            return ALONE;
        }
        let room = self.pause.as_secs_f64() - self.decode;
        ((room / token.max(1e-9)) as usize).clamp(LEAST, ALONE)
    }

    /// A run over so many tokens of a prompt took so long.
    pub(super) fn note_prefill(&mut self, tokens: usize, took: Duration) {
        // A run of a few tokens costs as much as one of many: it tells nothing of what a token costs.
        if tokens >= LEAST {
            let newest = took.as_secs_f64() / tokens as f64;
            let average = self.prompt_token.map_or(newest, |held| held + WEIGHT * (newest - held));
            self.prompt_token = Some(average);
        }
    }

    /// A decoding run took so long.
    pub(super) fn note_decode(&mut self, took: Duration) {
        self.decode = took.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_chunk_fits_the_pause_that_is_accepted_beside_the_decoding_run() {
        let mut pace = Pace::new(ms(400));
        assert_eq!((pace.chunk(0), pace.chunk(1)), (ALONE, UNKNOWN));
        pace.note_prefill(100, ms(500));
        pace.note_decode(ms(100));
        assert_eq!((pace.chunk(0), pace.chunk(3)), (ALONE, 60));
    }

    #[test]
    fn neither_prompts_nor_answers_starve() {
        let mut pace = Pace::new(ms(50));
        pace.note_prefill(100, ms(1000));
        pace.note_decode(ms(500));
        assert_eq!(pace.chunk(1), LEAST, "prompts go on beside a run that takes longer than the pause");
        pace.note_prefill(3, ms(1000));
        pace.note_decode(ms(1));
        pace.note_prefill(256, ms(1));
        assert!(pace.chunk(1) <= ALONE);
    }
}
