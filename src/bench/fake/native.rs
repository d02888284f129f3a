//! Answers in muster's own words.

use std::time::Duration;

use muster_shared::generate::{Event, FinishReason, Usage};
use muster_shared::problem::Problem;
use serde_json::json;

use super::asked::{Asked, Length};
use super::wire::{END, Reply, Script, TOKEN, Token, event, vector};

/// The answers of every model.
#[derive(Debug)]
pub(super) struct Native {
    /// The chunk of a token.
    token: Vec<u8>,
    /// One vector as JSON.
    vector: String,
}

impl Native {
    pub(super) fn new() -> Self {
        let mut token = Vec::new();
        event(&mut token, &Event::Delta { choice: 0, text: TOKEN.to_owned(), tokens: vec![1], logprobs: Vec::new() });
        Self { token, vector: json!(vector()).to_string() }
    }

    pub(super) fn generate(&self, length: Length) -> Reply<'_> {
        let Length { prompt_tokens, tokens, cut, .. } = length;
        let (mut opening, mut closing) = (Vec::new(), Vec::new());
        event(&mut opening, &Event::Started { prompt_tokens, vocabulary: None });
        let reason = if cut { FinishReason::Length } else { FinishReason::Stop };
        event(&mut closing, &Event::Finished { choice: 0, reason, tokens });
        let usage = Usage { prompt_tokens, completion_tokens: tokens, cached_tokens: 0 };
        event(&mut closing, &Event::Done { usage });
        closing.extend_from_slice(END);
        let token = Token::Same(&self.token);
        Reply::Stream(Script { media: "text/event-stream", opening, token, closing, length })
    }

    pub(super) fn embed(&self, asked: &Asked<'_>, length: Length) -> Reply<'static> {
        let vectors = vec![self.vector.as_str(); asked.inputs()].join(",");
        let body = format!("{{\"vectors\":[{vectors}],\"prompt_tokens\":{}}}", length.prompt_tokens);
        Reply::text(200, body.into_bytes(), Duration::ZERO)
    }
}

/// An error.
pub(super) fn refusal(problem: &Problem) -> Reply<'static> {
    Reply::refusal(problem.kind.status(), problem)
}
