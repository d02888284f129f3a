//! Collects the events of one choice.

use muster_shared::generate::{Event, FinishReason, TokenLogprob};

/// One choice, as far as it has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
    /// Absent while it goes on.
    pub(crate) finish_reason: Option<FinishReason>,
    /// Where the first token stands in the text: after the echoed prompt.
    pub(crate) offset: usize,
}

/// Answers to be filled.
pub(crate) fn answers(count: usize) -> Vec<Answer> {
    vec![Answer::default(); count]
}

/// Adds an event to the one of a prompt's choices that it belongs to.
///
/// A choice that was not asked for is left out: an upstream's mistake must not become ours.
pub(crate) fn push(answers: &mut [Answer], event: &Event) {
    match event {
        Event::Delta { choice, text, tokens, logprobs } => {
            let Some(answer) = answers.get_mut(*choice as usize) else { return };
            answer.offset += echoed(text, tokens, logprobs, answer.logprobs.is_empty());
            answer.text.push_str(text);
            answer.logprobs.extend_from_slice(logprobs);
        }
        Event::Finished { choice, reason, .. } => {
            if let Some(answer) = answers.get_mut(*choice as usize) {
                answer.finish_reason = Some(*reason);
            }
        }
        Event::Started { .. } | Event::Done { .. } | Event::Failed { .. } => {}
    }
}

/// Characters of a delta that repeat the prompt: text without tokens that comes before any token.
pub(crate) fn echoed(text: &str, tokens: &[u32], logprobs: &[TokenLogprob], is_first: bool) -> usize {
    if is_first && tokens.is_empty() && logprobs.is_empty() { text.chars().count() } else { 0 }
}
