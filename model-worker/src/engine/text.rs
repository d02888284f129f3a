//! From the tokens of one answer to the text that may be shown of it.

use muster_shared::generate::FinishReason;

use super::stop::{Filtered, StopFilter};
use crate::tokenizer::{TextStream, Tokenizer};

/// The text of one answer: whole UTF-8, and never a piece of a stop string.
#[derive(Debug, Clone)]
pub(super) struct AnswerText {
    stream: TextStream,
    stop: StopFilter,
}

impl AnswerText {
    pub(super) fn new(tokenizer: &Tokenizer, prompt: &[u32], stop: StopFilter) -> Self {
        let mut stream = tokenizer.stream();
        stream.start_after(prompt);
        Self { stream, stop }
    }

    /// What a token adds.
    pub(super) fn push(&mut self, token: u32) -> Filtered {
        self.stop.push(&self.stream.push(token))
    }

    /// What was held back, when the answer ends for this reason; a stop string may come to light in it, and is the reason
    /// then.
    pub(super) fn finish(&mut self, reason: FinishReason) -> (String, FinishReason) {
        let Filtered { mut text, stopped } = self.stop.push(&self.stream.finish());
        if stopped {
            return (text, FinishReason::Stop);
        }
        text.push_str(&self.stop.finish());
        (text, reason)
    }
}
