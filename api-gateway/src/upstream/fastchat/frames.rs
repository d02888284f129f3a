//! FastChat's frames: cut from a byte stream, and turned from the whole answer so far into what is new.

use muster_shared::fastchat::FrameLogprobs;
use muster_shared::generate::{TokenLogprob, TopLogprob};

/// Longest frame that is read, in bytes: a frame holds the whole answer so far, with its log-probabilities.
pub(crate) const FRAME_LIMIT: usize = 4 << 20;

/// A frame longer than the reader allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame is longer than {limit} bytes")]
pub(crate) struct FrameTooLong {
    limit: usize,
}

/// Cuts a byte stream into its frames, wherever the stream is split.
#[derive(Debug)]
pub(crate) struct Decoder {
    limit: usize,
    /// Bytes of the frame that has not ended.
    frame: Vec<u8>,
}

impl Decoder {
    /// A decoder that refuses frames longer than `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, frame: Vec::new() }
    }

    /// Takes more bytes; gives the frames that they complete. Empty ones are skipped.
    ///
    /// # Errors
    /// [`FrameTooLong`] when a frame exceeds the limit; the decoder is of no more use then.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, FrameTooLong> {
        let mut frames = Vec::new();
        let mut pieces = bytes.split(|&byte| byte == 0);
        self.extend(pieces.next().unwrap_or_default())?;
        for piece in pieces {
            let frame = std::mem::take(&mut self.frame); // a byte 0 stood before this piece
            if !frame.is_empty() {
                frames.push(frame);
            }
            self.extend(piece)?;
        }
        Ok(frames)
    }

    fn extend(&mut self, piece: &[u8]) -> Result<(), FrameTooLong> {
        if self.frame.len() + piece.len() > self.limit {
            return Err(FrameTooLong { limit: self.limit });
        }
        self.frame.extend_from_slice(piece);
        Ok(())
    }
}

/// What of an answer has been passed on.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    text: String,
    logprobs: usize,
}

impl Transcript {
    /// The new part of an answer's text. `last`: nothing more will come.
    ///
    /// U+FFFD at the end stands for a character whose bytes are not all there: it is withheld, since the next frame
    /// takes it back. At the end of the answer it is all there is, and is passed on.
    pub(crate) fn new_text(&mut self, whole: &str, last: bool) -> String {
        let stable = if last { whole } else { whole.trim_end_matches(char::REPLACEMENT_CHARACTER) };
        if let Some(new) = stable.strip_prefix(self.text.as_str()) {
            self.text.push_str(new);
            return new.to_owned();
        }
        if self.text.starts_with(stable) {
            return String::new(); // it shrank, and what is sent cannot be taken back
        }
        self.rewritten(stable)
    }

    /// The worker changed what is sent already (tokenizers that tidy spaces do). The client keeps what it has and
    /// gets what goes beyond its length, as FastChat's own gateway does.
    fn rewritten(&mut self, stable: &str) -> String {
        tracing::warn!(sent = self.text.len(), now = stable.len(), "a FastChat worker changed text it had sent");
        let Some((at, _)) = stable.char_indices().nth(self.text.chars().count()) else { return String::new() };
        stable.clone_into(&mut self.text);
        stable[at..].to_owned()
    }

    /// The new entries of an answer's log-probabilities. The first token of an echoed prompt has none.
    pub(crate) fn new_logprobs(&mut self, whole: &FrameLogprobs) -> Vec<TokenLogprob> {
        let entries = whole.tokens.iter().zip(&whole.token_logprobs);
        let new = entries.clone().skip(self.logprobs).filter_map(|(token, logprob)| entry(token, (*logprob)?));
        let new = new.collect();
        self.logprobs = self.logprobs.max(entries.len());
        new
    }
}

fn entry(token: &str, logprob: f32) -> Option<TokenLogprob> {
    let bytes = Some(token.as_bytes().to_vec());
    Some(TokenLogprob { chosen: TopLogprob { id: 0, token: token.to_owned(), bytes, logprob }, top: Vec::new() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut decoder = Decoder::new(1 << 20);
        pieces.iter().flat_map(|piece| decoder.push(piece).expect("short frames")).collect()
    }

    /// What a client sees of a series of frames.
    fn seen(frames: &[&str]) -> Vec<String> {
        let mut transcript = Transcript::default();
        let last = frames.len() - 1;
        frames.iter().enumerate().map(|(at, frame)| transcript.new_text(frame, at == last)).collect()
    }

    #[test]
    fn empty_frames_are_skipped() {
        assert_eq!(decode(&[b"\0\0a\0\0\0b", b"\0", b"unended"]), [b"a", b"b"]);
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused() {
        assert_eq!(Decoder::new(3).push(b"1234"), Err(FrameTooLong { limit: 3 }));
        let mut decoder = Decoder::new(3);
        assert_eq!(decoder.push(b"12\x0034"), Ok(vec![b"12".to_vec()]));
        assert_eq!(decoder.push(b"56"), Err(FrameTooLong { limit: 3 }));
    }

    #[test]
    fn each_frame_gives_what_is_new() {
        assert_eq!(seen(&["Hel", "Hello", "Hello wor", "Hello world"]), ["Hel", "lo", " wor", "ld"]);
    }

    #[test]
    fn the_end_repeats_nothing() {
        assert_eq!(seen(&["Hi", "Hi", "Hi"]), ["Hi", "", ""]);
    }

    #[test]
    fn a_character_is_sent_once_it_is_whole() {
        assert_eq!(seen(&["a\u{FFFD}", "a\u{FFFD}\u{FFFD}", "aé!", "aé!"]), ["a", "", "é!", ""]);
    }

    #[test]
    fn a_character_that_stays_broken_is_sent_when_text_follows_or_the_answer_ends() {
        assert_eq!(seen(&["a\u{FFFD}", "a\u{FFFD}b", "a\u{FFFD}b\u{FFFD}"]), ["a", "\u{FFFD}b", "\u{FFFD}"]);
    }

    #[test]
    fn text_taken_back_is_not_sent_twice() {
        assert_eq!(seen(&["abc", "ab", "abcd"]), ["abc", "", "d"]);
        assert_eq!(seen(&["did n", "didn't", "didn't go"]), ["did n", "t", " go"]);
    }

    #[test]
    fn each_log_probability_is_sent_once() {
        let whole = |count: usize| FrameLogprobs {
            tokens: ["<s>", "a", "é"][..count].iter().map(|&token| token.to_owned()).collect(),
            token_logprobs: [None, Some(-0.5), Some(-1.0)][..count].to_vec(),
            ..FrameLogprobs::default()
        };
        let mut transcript = Transcript::default();
        let mut new = |count| transcript.new_logprobs(&whole(count)).into_iter().map(|l| l.chosen).collect::<Vec<_>>();
        assert_eq!(new(1), [], "the first token of an echoed prompt has no probability");
        assert_eq!(new(2), [TopLogprob { id: 0, token: "a".into(), bytes: Some(b"a".to_vec()), logprob: -0.5 }]);
        assert_eq!(new(3), [TopLogprob { id: 0, token: "é".into(), bytes: Some(vec![0xC3, 0xA9]), logprob: -1.0 }]);
        assert_eq!(new(3), []);
    }

    proptest! {
        #[test]
        fn splitting_the_stream_changes_nothing(
            frames in proptest::collection::vec("[^\0]{0,12}", 0..8),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream: String = frames.iter().map(|frame| format!("{frame}\0")).collect();
            let bytes = stream.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let whole: Vec<Vec<u8>> =
                frames.into_iter().filter(|frame| !frame.is_empty()).map(String::into_bytes).collect();
            prop_assert_eq!(decode(&pieces), whole);
        }

        #[test]
        fn the_pieces_of_an_answer_make_the_answer(text in "[aé漢😀\u{FFFD} ]{0,20}", step in 1usize..5) {
            let bytes = text.as_bytes();
            let mut transcript = Transcript::default();
            let mut got = String::new();
            for end in (0..bytes.len()).step_by(step) {
                got.push_str(&transcript.new_text(&String::from_utf8_lossy(&bytes[..end]), false));
            }
            got.push_str(&transcript.new_text(&text, true));
            prop_assert_eq!(got, text);
        }
    }
}
