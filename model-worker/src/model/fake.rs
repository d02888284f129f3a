//! A language model without files: repeats a fixed sentence, one letter a token, at a stated pace.
//!
//! It stands where the weights do not matter: in tests of the scheduler, of streaming and of failures.

use std::time::Duration;

use super::{CausalModel, CausalShape, ModelError, Next, Positions, Row};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// What it says, again and again.
const SENTENCE: &[u8] = b"All models are wrong, but some are useful. ";
/// The token that ends an answer.
pub const END: u32 = 256;
/// Its chat template: one line a turn.
pub const TEMPLATE: &str =
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant: ";
const VOCAB: usize = 257;

/// How the fake behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FakeOptions {
    /// Time one token takes.
    pub token_time: Duration,
    /// Tokens after which an answer ends by itself.
    pub answer: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
}

impl Default for FakeOptions {
    fn default() -> Self {
        Self { token_time: Duration::ZERO, answer: 64, context: 4096 }
    }
}

/// The fake model. What it says is a function of the tokens in the row alone, however they came there.
#[derive(Debug)]
pub struct FakeModel {
    options: FakeOptions,
    shape: CausalShape,
    /// What each row holds.
    rows: Vec<Vec<u32>>,
    logits: Vec<f32>,
}

impl FakeModel {
    /// A fake with room for `rows` sequences.
    pub fn new(options: FakeOptions, rows: usize) -> Self {
        let shape = CausalShape { vocab: VOCAB, context: options.context, rows, all_positions: true };
        Self { options, shape, rows: vec![Vec::new(); rows], logits: Vec::new() }
    }

    /// Its tokenizer: one token a byte.
    ///
    /// # Errors
    /// Never, unless the tokenizer library changes.
    pub fn tokenizer() -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_json(tokenizer_json().to_string().as_bytes())
    }

    /// Takes the time that one run takes.
    fn work(&self) {
        #[expect(clippy::disallowed_methods, reason = "it stands for the time a real model computes in this thread")]
        if !self.options.token_time.is_zero() {
            std::thread::sleep(self.options.token_time);
        }
    }

    fn add(&mut self, row: Row, tokens: &[u32], past: usize) {
        let held = &mut self.rows[row.0];
        held.truncate(past);
        held.extend_from_slice(tokens);
    }

    /// Adds the logits after the first `length` tokens of a row.
    fn answer(&mut self, row: Row, length: usize) {
        let said = said(&self.rows[row.0][..length]);
        let next =
            if said >= self.options.answer { END as usize } else { usize::from(SENTENCE[said % SENTENCE.len()]) };
        let start = self.logits.len();
        self.logits.resize(start + VOCAB, 0.0);
        self.logits[start + next] = 20.0;
    }
}

/// How much of the sentence stands at the end of the tokens.
fn said(tokens: &[u32]) -> usize {
    tokens.iter().fold(0, |said, &token| match u8::try_from(token) {
        Ok(byte) if byte == SENTENCE[said % SENTENCE.len()] => said + 1,
        Ok(byte) if byte == SENTENCE[0] => 1,
        _ => 0,
    })
}

impl CausalModel for FakeModel {
    fn shape(&self) -> CausalShape {
        self.shape
    }

    fn read(&mut self, row: Row, tokens: &[u32], past: usize, wanted: Positions) -> Result<&mut [f32], ModelError> {
        self.work();
        self.add(row, tokens, past);
        self.logits.clear();
        let total = past + tokens.len();
        let first = match wanted {
            Positions::None => total + 1,
            Positions::Last => total,
            Positions::All => past + 1,
        };
        (first..=total).for_each(|length| self.answer(row, length));
        Ok(&mut self.logits)
    }

    fn decode(&mut self, next: &[Next]) -> Result<&mut [f32], ModelError> {
        self.work();
        self.logits.clear();
        for (row, &Next { token, past }) in next.iter().enumerate() {
            self.add(Row(row), &[token], past);
            self.answer(Row(row), past + 1);
        }
        Ok(&mut self.logits)
    }

    fn swap(&mut self, (a, _): (Row, usize), (b, _): (Row, usize)) {
        self.rows.swap(a.0, b.0);
    }

    fn copy(&mut self, from: Row, to: Row, tokens: usize) -> Result<(), ModelError> {
        self.rows[to.0] = self.rows[from.0][..tokens].to_vec();
        Ok(())
    }

    fn release(&mut self, row: Row) {
        self.rows[row.0].clear();
    }
}

/// A byte-level vocabulary in the form of `tokenizer.json`: byte `b` is token `b`.
fn tokenizer_json() -> serde_json::Value {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..=255_u8).map(|byte| (byte_symbol(byte).to_string(), serde_json::json!(byte))).collect();
    serde_json::json!({
        "version": "1.0",
        "added_tokens": [{
            "id": END, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] }
    })
}

/// GPT-2's printable stand-in for a byte: itself where printable, else the next character from U+0100 on.
fn byte_symbol(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let earlier = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(0x100 + earlier).expect("68 characters from U+0100 on exist")
}
