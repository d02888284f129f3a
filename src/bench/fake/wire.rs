//! Answers as they go over the wire: what can be made ready before is.

use std::f32::consts::TAU;
use std::io::Write as _;
use std::time::Duration;

use muster_shared::embed::Vector;
use serde::Serialize;

use super::asked::Length;

/// The text of every token.
pub(super) const TOKEN: &str = " token";
/// What ends a body of chunks.
pub(super) const END: &[u8] = b"0\r\n\r\n";
/// Numbers of a vector.
const DIMENSIONS: u16 = 384;

/// What a request is answered with.
#[derive(Debug)]
pub(super) enum Reply<'a> {
    /// JSON in one piece, after a while.
    Whole { status: u16, body: Vec<u8>, wait: Duration },
    /// Piece by piece.
    Stream(Script<'a>),
}

impl Reply<'_> {
    /// JSON that is there at once.
    pub(super) fn json(body: impl Serialize) -> Self {
        Self::refusal(200, body)
    }

    /// JSON with another status.
    pub(super) fn refusal(status: u16, body: impl Serialize) -> Self {
        Self::text(status, serde_json::to_vec(&body).expect("our own types are JSON"), Duration::ZERO)
    }

    /// JSON that is text already.
    pub(super) fn text(status: u16, body: Vec<u8>, wait: Duration) -> Self {
        Self::Whole { status, body, wait }
    }
}

/// A streamed answer: its parts are chunks of a body already.
#[derive(Debug)]
pub(super) struct Script<'a> {
    pub(super) media: &'static str,
    pub(super) opening: Vec<u8>,
    pub(super) token: Token<'a>,
    pub(super) closing: Vec<u8>,
    pub(super) length: Length,
}

/// How a token looks.
#[derive(Debug)]
pub(super) enum Token<'a> {
    /// All alike.
    Same(&'a [u8]),
    /// Each is a frame with the whole text so far, as FastChat has it.
    Growing(Growing),
}

/// FastChat's frames of one answer.
#[derive(Debug)]
pub(super) struct Growing {
    /// The whole answer.
    text: String,
    prompt_tokens: u32,
    /// The frame that is being made.
    frame: Vec<u8>,
}

impl Growing {
    pub(super) fn new(length: Length) -> Self {
        Self { text: text(length.tokens), prompt_tokens: length.prompt_tokens, frame: Vec::new() }
    }

    /// The frame with so many tokens; nothing in its text needs escaping.
    pub(super) fn frame(&mut self, tokens: u32, reason: Option<&str>) -> &[u8] {
        let text = &self.text[..TOKEN.len() * tokens as usize];
        let (prompt, quote) = (self.prompt_tokens, if reason.is_some() { "\"" } else { "" });
        let total = prompt.saturating_add(tokens);
        self.frame.clear();
        // Writing to memory cannot fail.
        let _ = write!(
            self.frame,
            "{{\"text\":\"{text}\",\"error_code\":0,\"usage\":{{\"prompt_tokens\":{prompt},\
             \"completion_tokens\":{tokens},\"total_tokens\":{total}}},\
             \"finish_reason\":{quote}{reason}{quote},\"logprobs\":null}}\0",
            reason = reason.unwrap_or("null"),
        );
        &self.frame
    }
}

impl Script<'_> {
    /// Adds the token of this number, counted from 0.
    pub(super) fn token(&mut self, number: u32, out: &mut Vec<u8>) {
        match &mut self.token {
            Token::Same(chunk) => out.extend_from_slice(chunk),
            Token::Growing(growing) => chunk(out, growing.frame(number + 1, None)),
        }
    }
}

/// The text of so many tokens.
pub(super) fn text(tokens: u32) -> String {
    TOKEN.repeat(tokens as usize)
}

/// Adds data as one chunk of a body.
pub(super) fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    let _ = write!(out, "{:x}\r\n", data.len()); // to memory
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Adds a server-sent event as one chunk of a body.
pub(super) fn event(out: &mut Vec<u8>, value: &impl Serialize) {
    chunk(out, &muster_shared::sse::json_event(value));
}

/// A made-up vector of length 1.
pub(super) fn vector() -> Vector {
    let scale = (2.0 / f32::from(DIMENSIONS)).sqrt();
    Vector((0..DIMENSIONS).map(|at| scale * (TAU * 5.0 * f32::from(at) / f32::from(DIMENSIONS)).sin()).collect())
}

#[cfg(test)]
mod tests {
    use muster_shared::fastchat::{Frame, FrameUsage};

    use super::*;

    #[test]
    fn frames_grow_token_by_token() {
        let length = Length { prompt_tokens: 7, tokens: 3, cut: false, pause: Duration::ZERO };
        let mut growing = Growing::new(length);
        for (tokens, text, reason) in [(1, " token", None), (3, " token token token", Some("stop"))] {
            let frame = growing.frame(tokens, reason).strip_suffix(b"\0").expect("a byte 0");
            let frame: Frame = serde_json::from_slice(frame).expect("a frame");
            let usage = FrameUsage { prompt_tokens: 7, completion_tokens: tokens, total_tokens: 7 + tokens };
            assert_eq!((frame.text.as_str(), frame.usage, frame.finish_reason.as_deref()), (text, Some(usage), reason));
        }
    }

    #[test]
    fn a_chunk_begins_with_its_length() {
        let mut out = Vec::new();
        chunk(&mut out, b"0123456789abcdef");
        assert_eq!(out, b"10\r\n0123456789abcdef\r\n");
    }

    #[test]
    fn a_vector_has_the_length_1() {
        let length: f32 = vector().0.iter().map(|number| number * number).sum();
        assert!((length - 1.0).abs() < 1e-3, "{length}");
    }
}
