//! Text to token ids and back, one answer token at a time.
//!
//! [`Tokenizer`] wraps a `tokenizer.json`. [`TextStream`] turns the ids of a growing answer into text that is always whole
//! UTF-8. Most vocabularies of language models are bytes in disguise, and for these a token's bytes are known by
//! themselves (`pieces`): streaming is then exact and costs the same for every token. For the rest a short window of
//! the last tokens is decoded again.

mod encoded;
mod pieces;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc};

pub use encoded::{Cut, Encoded, Span};
use pieces::{Pieces, take_whole_text};
use sha2::{Digest as _, Sha256};

/// Why text could not become tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The bytes are no `tokenizer.json` that we understand.
    #[error("tokenizer.json cannot be read")]
    Read(#[source] tokenizers::Error),
    /// This text cannot be encoded.
    #[error("text cannot be tokenized")]
    Encode(#[source] tokenizers::Error),
}

/// A model's vocabulary and the way to it; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    pieces: Pieces,
    special: HashSet<u32>,
    vocab_size: u32,
    fingerprint: String,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`. Truncation and padding that it asks for are switched off: the engine knows its limits.
    ///
    /// # Errors
    /// [`TokenizerError::Read`] when the bytes are not such a file.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(TokenizerError::Read)?;
        tokenizer.with_truncation(None).map_err(TokenizerError::Read)?;
        tokenizer.with_padding(None);
        let decoder =
            serde_json::to_value(tokenizer.get_decoder()).map_err(|error| TokenizerError::Read(error.into()))?;
        let added = tokenizer.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let highest = tokenizer.get_vocab(true).into_values().max();
        Ok(Self(Arc::new(Inner {
            pieces: Pieces::of(&decoder),
            special,
            vocab_size: highest.map_or(0, |id| id.saturating_add(1)),
            fingerprint: fingerprint(bytes),
            tokenizer,
        })))
    }

    /// The ids of `text`. `add_special_tokens` adds those the model wants around plain text; a rendered chat template
    /// has its own already.
    ///
    /// This is work for a blocking thread when the text is long: about 1 µs a token.
    ///
    /// # Errors
    /// [`TokenizerError::Encode`] when the vocabulary has no token for a part of the text and none for the unknown.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.0.tokenizer.encode_fast(text, add_special_tokens).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The highest id plus one, added tokens included; a model's logits may be a longer row.
    pub fn vocab_size(&self) -> u32 {
        self.0.vocab_size
    }

    /// Names the vocabulary: where two names are equal, so are ids and their texts. The same vocabulary in a file of
    /// another layout has another name.
    pub fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// The id of a token as it stands in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.0.tokenizer.token_to_id(token)
    }

    /// Whether this is a control token, which is never part of an answer's text.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.contains(&id)
    }

    /// One token's own text, control tokens shown, U+FFFD where it is not whole UTF-8; empty for an unknown id.
    pub fn token_text(&self, id: u32) -> String {
        match self.token_bytes(id) {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => self.decode(&[id], false),
        }
    }

    /// One token's own bytes, exactly as it adds them to a text that has begun.
    ///
    /// `None` for an unknown id, and where a token's text depends on its neighbours (WordPiece, for one).
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.0.tokenizer.id_to_token(id)?;
        self.0.pieces.bytes(&token)
    }

    /// A decoder for one answer.
    pub fn stream(&self) -> TextStream {
        let decoding = match self.0.pieces {
            Pieces::Unknown => Decoding::Window(Window::default()),
            _ => Decoding::Bytes { pending: Vec::new(), at_start: true },
        };
        TextStream { tokenizer: self.clone(), decoding }
    }

    /// Whether a token can add to a text at all.
    fn is_visible(&self, id: u32) -> bool {
        !self.is_special(id) && self.0.tokenizer.id_to_token(id).is_some()
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        // A decoder is text in, text out; none of the library's refuses what its own vocabulary holds.
        self.0.tokenizer.decode(ids, skip_special_tokens).unwrap_or_default()
    }
}

/// The first half of the file's SHA-256, in hexadecimal.
fn fingerprint(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How many tokens of a context are looked at: more than any character or joint between tokens spans.
const CONTEXT_TOKENS: usize = 8;

/// Turns the tokens of one answer into text, piece by piece. Special tokens are left out.
///
/// The pieces together are what decoding the whole answer at once gives. One exception: tokens of the form `<0xAB>` that
/// are not valid UTF-8 become one U+FFFD for each broken character, not one for each token of the whole run.
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    decoding: Decoding,
}

#[derive(Debug, Clone)]
enum Decoding {
    /// Every token's bytes are known: `pending` is the beginning of a character.
    Bytes { pending: Vec<u8>, at_start: bool },
    /// Tokens are decoded together with those before them.
    Window(Window),
}

/// The last shown tokens and those not yet shown: `shown` is the text of the first `context` ids.
///
/// The scheme of Hugging Face's text-generation-inference (`prefix_offset`, `read_offset`).
#[derive(Debug, Clone, Default)]
struct Window {
    ids: Vec<u32>,
    context: usize,
    shown: String,
}

impl TextStream {
    /// Says what stands before the answer, so that its first piece keeps its leading space. Call it before any `push`;
    /// only the last few tokens count. A character that the context leaves unfinished is finished by the answer.
    pub fn start_after(&mut self, context: &[u32]) {
        let mut tail: Vec<u32> =
            context.iter().rev().copied().filter(|id| self.tokenizer.is_visible(*id)).take(CONTEXT_TOKENS).collect();
        tail.reverse();
        if tail.is_empty() {
            return;
        }
        if let Decoding::Window(window) = &mut self.decoding {
            *window = Window { context: tail.len(), shown: self.tokenizer.decode(&tail, true), ids: tail };
            return;
        }
        for id in tail {
            self.push(id);
        }
        if let Decoding::Bytes { at_start, .. } = &mut self.decoding {
            *at_start = false;
        }
    }

    /// The text that `id` completes: whole UTF-8, and empty while a character is unfinished.
    pub fn push(&mut self, id: u32) -> String {
        if !self.tokenizer.is_visible(id) {
            return String::new();
        }
        match &mut self.decoding {
            Decoding::Bytes { pending, at_start } => {
                let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
                let strip = *at_start && self.tokenizer.0.pieces.strips_first_space() && bytes.first() == Some(&b' ');
                *at_start &= bytes.is_empty();
                pending.extend_from_slice(if strip { &bytes[1..] } else { &bytes });
                take_whole_text(pending)
            }
            Decoding::Window(window) => window.push(id, &self.tokenizer),
        }
    }

    /// What is left at the end: an unfinished character becomes U+FFFD. The stream then stands as if nothing were held.
    pub fn finish(&mut self) -> String {
        match &mut self.decoding {
            Decoding::Bytes { pending, .. } => {
                let rest = String::from_utf8_lossy(pending).into_owned();
                pending.clear();
                rest
            }
            Decoding::Window(window) => window.show(window.text(&self.tokenizer), &self.tokenizer),
        }
    }
}

impl Window {
    fn push(&mut self, id: u32, tokenizer: &Tokenizer) -> String {
        self.ids.push(id);
        let text = self.text(tokenizer);
        // A character takes four bytes at most: what is broken after more tokens than that stays broken, or the model means it.
        let unfinished = text.ends_with('\u{FFFD}') && self.ids.len() - self.context < CONTEXT_TOKENS;
        if unfinished || text.len() <= self.shown.len() {
            return String::new();
        }
        self.show(text, tokenizer)
    }

    fn text(&self, tokenizer: &Tokenizer) -> String {
        tokenizer.decode(&self.ids, true)
    }

    /// Marks `text`, which is that of all ids, as shown, and returns what is new in it.
    fn show(&mut self, text: String, tokenizer: &Tokenizer) -> String {
        let new = text[common_prefix(&text, &self.shown)..].to_owned();
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        self.shown = self.text(tokenizer);
        new
    }
}

/// Length in bytes of the longest beginning that both texts share, in whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}
