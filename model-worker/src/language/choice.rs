//! One answer to a request, before the engine has it.

use muster_shared::generate::{Event, FinishReason};
use muster_shared::trace::Context;

use crate::engine::sequence::SequenceRequest;

/// One answer, and what is known of it before the engine runs.
#[derive(Debug)]
pub(super) struct Choice {
    /// Text that comes before the engine's: the prompt, where it is wanted back, and what replayed tokens give. Without
    /// what the client has.
    pub(super) text: String,
    pub(super) state: State,
}

/// What is left to do for it.
#[derive(Debug)]
pub(super) enum State {
    /// The engine is to compute it.
    Runs(Box<SequenceRequest>, Had),
    /// The tokens of the worker that began it have ended it.
    Ends(FinishReason, u32),
    /// The client knows its end, after so many tokens.
    Over(u32),
}

impl Choice {
    /// What the engine does for it is a part of that span.
    pub(super) fn trace(&mut self, trace: Option<&Context>) {
        if let State::Runs(request, _) = &mut self.state {
            request.trace = trace.cloned();
        }
    }

    /// What is sent before anything is computed.
    pub(super) fn events(&self, choice: u32) -> impl Iterator<Item = Event> + use<> {
        let text = (!self.text.is_empty()).then(|| self.text.clone());
        let delta = text.map(|text| Event::Delta { choice, text, tokens: vec![], logprobs: vec![] });
        let finished = match self.state {
            State::Ends(reason, tokens) => Some(Event::Finished { choice, reason, tokens }),
            State::Runs(..) | State::Over(_) => None,
        };
        delta.into_iter().chain(finished)
    }

    /// Tokens that the engine will not count.
    pub(super) fn tokens(&self) -> u32 {
        match self.state {
            State::Ends(_, tokens) | State::Over(tokens) => tokens,
            State::Runs(..) => 0,
        }
    }

    /// What the engine is to compute, and what the client has of it.
    pub(super) fn work(self) -> Option<(SequenceRequest, Had)> {
        match self.state {
            State::Runs(request, had) => Some((*request, had)),
            State::Ends(..) | State::Over(_) => None,
        }
    }
}

/// Bytes of an answer's text to come that the client has already.
///
/// They are counted in bytes, not in tokens, for the last text of an answer comes without tokens: the client may have it
/// when the worker dies before it has told the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Had(pub(super) u64);

impl Had {
    /// What the client does not have of more text.
    pub(super) fn cut(&mut self, mut text: String) -> String {
        if self.0 == 0 {
            return text;
        }
        // Between characters, unless this text is not the one that the client was sent.
        let cut = text.ceil_char_boundary(usize::try_from(self.0).unwrap_or(usize::MAX));
        self.0 = self.0.saturating_sub(cut as u64);
        text.split_off(cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of pieces of text, and how many bytes the client has of what follows.
    fn cut(had: u64, pieces: &[&str]) -> (String, u64) {
        let mut had = Had(had);
        let left = pieces.iter().map(|piece| had.cut((*piece).to_owned())).collect();
        (left, had.0)
    }

    #[test]
    fn what_the_client_has_is_left_out_wherever_pieces_begin_and_end() {
        let text = "aé🦀b";
        for had in (0..=text.len()).filter(|had| text.is_char_boundary(*had)) {
            for border in (0..=text.len()).filter(|border| text.is_char_boundary(*border)) {
                let (first, second) = text.split_at(border);
                assert_eq!(cut(had as u64, &[first, "", second]), (text[had..].to_owned(), 0));
            }
        }
    }

    #[test]
    fn a_number_that_cuts_a_character_or_exceeds_the_text_leaves_whole_characters() {
        assert_eq!(cut(2, &["aé", "b"]), ("b".to_owned(), 0));
        assert_eq!(cut(9, &["aé", "b"]), (String::new(), 5));
        assert_eq!(cut(u64::MAX, &["aé"]), (String::new(), u64::MAX - 3));
    }
}
