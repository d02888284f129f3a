//! Answers in FastChat's words.

use std::time::Duration;

use muster_shared::fastchat::{Conversation, ConversationReply, Frame, ModelDetails, TokenCount, error_code};
use muster_shared::problem::{Kind, Problem};
use serde_json::json;

use super::asked::{Asked, Length};
use super::wire::{END, Growing, Reply, Script, Token, chunk, vector};

/// FastChat's style ADD_COLON_SINGLE: system text, then role, colon, message and separator for each turn.
const ADD_COLON_SINGLE: u32 = 1;
/// Longest prompt with its answer, in tokens: more than a benchmark sends.
const CONTEXT: u32 = 1 << 20;

/// The answers of every model.
#[derive(Debug)]
pub(super) struct FastChat {
    /// One vector as JSON: its numbers, and their base64.
    numbers: String,
    base64: String,
}

impl FastChat {
    pub(super) fn new() -> Self {
        Self { numbers: json!(vector().0).to_string(), base64: json!(vector()).to_string() }
    }

    pub(super) fn embeddings(&self, asked: &Asked<'_>, length: Length) -> Reply<'static> {
        let vector = if asked.wants_base64() { &self.base64 } else { &self.numbers };
        let vectors = vec![vector.as_str(); asked.inputs()].join(",");
        let body = format!("{{\"embedding\":[{vectors}],\"token_num\":{}}}", length.prompt_tokens);
        Reply::text(200, body.into_bytes(), Duration::ZERO)
    }
}

/// Frames of growing text. The last two hold the same, for only the last one names the reason.
pub(super) fn stream(length: Length) -> Reply<'static> {
    let (mut growing, mut closing) = (Growing::new(length), Vec::new());
    chunk(&mut closing, growing.frame(length.tokens, Some(length.reason())));
    closing.extend_from_slice(END);
    let token = Token::Growing(growing);
    Reply::Stream(Script { media: "application/octet-stream", opening: Vec::new(), token, closing, length })
}

/// The last frame alone.
pub(super) fn whole(length: Length) -> Reply<'static> {
    let mut growing = Growing::new(length);
    let frame = growing.frame(length.tokens, Some(length.reason()));
    Reply::text(200, frame.strip_suffix(b"\0").unwrap_or(frame).to_vec(), length.time())
}

pub(super) fn count(length: Length) -> Reply<'static> {
    Reply::json(TokenCount { count: length.prompt_tokens, error_code: 0 })
}

pub(super) fn details() -> Reply<'static> {
    Reply::json(ModelDetails { context_length: CONTEXT })
}

pub(super) fn template(model: &str) -> Reply<'static> {
    let conv = Conversation {
        name: model.to_owned(),
        system_template: "{system_message}".to_owned(),
        system_message: String::new(),
        roles: ["USER", "ASSISTANT"].map(str::to_owned),
        messages: Vec::new(),
        offset: 0,
        sep_style: ADD_COLON_SINGLE,
        sep: "\n".to_owned(),
        sep2: None,
        stop_str: None,
        stop_token_ids: None,
    };
    Reply::json(ConversationReply { conv })
}

/// An error: a frame with status 200, as FastChat's gateway expects.
pub(super) fn refusal(problem: Problem) -> Reply<'static> {
    let error_code = match problem.kind {
        Kind::UnknownModel => error_code::INVALID_MODEL,
        Kind::Invalid => error_code::PARAM_OUT_OF_RANGE,
        _ => error_code::INTERNAL,
    };
    Reply::json(Frame { text: problem.message, error_code, usage: None, finish_reason: None, logprobs: None })
}
