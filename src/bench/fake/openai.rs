//! Answers in OpenAI's words.

use std::time::Duration;

use muster_shared::sse::{DONE, text_event};
use serde_json::{Value, json};

use super::asked::{Asked, Length};
use super::wire::{END, Reply, Script, TOKEN, Token, chunk, event, text, vector};

/// When every answer was made: a moment of no meaning.
const CREATED: u32 = 1_700_000_000;

/// One model's answers.
#[derive(Debug)]
pub(super) struct OpenAi {
    model: String,
    /// The chunk that names the assistant's role.
    role: Vec<u8>,
    /// The chunk of a token, of a chat and of a text.
    chat_token: Vec<u8>,
    text_token: Vec<u8>,
    /// One embedding as JSON: its numbers, and their base64.
    numbers: String,
    base64: String,
}

impl OpenAi {
    pub(super) fn new(model: &str) -> Self {
        let ready = |value: Value| {
            let mut out = Vec::new();
            event(&mut out, &value);
            out
        };
        Self {
            role: ready(chat_chunk(model, &json!({ "role": "assistant", "content": "" }), None)),
            chat_token: ready(chat_chunk(model, &json!({ "content": TOKEN }), None)),
            text_token: ready(text_chunk(model, TOKEN, None)),
            numbers: json!(vector().0).to_string(),
            base64: json!(vector()).to_string(),
            model: model.to_owned(),
        }
    }

    pub(super) fn chat(&self, asked: &Asked<'_>, length: Length) -> Reply<'_> {
        if asked.stream == Some(true) {
            let last = chat_chunk(&self.model, &json!({}), Some(length.reason()));
            return self.stream(asked, length, (self.role.clone(), &self.chat_token), last);
        }
        let choice = json!({
            "index": 0,
            "message": { "role": "assistant", "content": text(length.tokens) },
            "logprobs": null,
            "finish_reason": length.reason(),
        });
        self.whole("chatcmpl-fake", "chat.completion", &choice, length)
    }

    pub(super) fn completion(&self, asked: &Asked<'_>, length: Length) -> Reply<'_> {
        if asked.stream == Some(true) {
            let last = text_chunk(&self.model, "", Some(length.reason()));
            return self.stream(asked, length, (Vec::new(), &self.text_token), last);
        }
        let choice =
            json!({ "index": 0, "text": text(length.tokens), "logprobs": null, "finish_reason": length.reason() });
        self.whole("cmpl-fake", "text_completion", &choice, length)
    }

    pub(super) fn embeddings(&self, asked: &Asked<'_>, length: Length) -> Reply<'static> {
        let vector = if asked.wants_base64() { &self.base64 } else { &self.numbers };
        let data: Vec<String> = (0..asked.inputs())
            .map(|index| format!("{{\"object\":\"embedding\",\"index\":{index},\"embedding\":{vector}}}"))
            .collect();
        let usage = json!({ "prompt_tokens": length.prompt_tokens, "total_tokens": length.prompt_tokens });
        let body = format!(
            "{{\"object\":\"list\",\"data\":[{}],\"model\":{},\"usage\":{usage}}}",
            data.join(","),
            json!(self.model)
        );
        Reply::text(200, body.into_bytes(), Duration::ZERO)
    }

    fn whole(&self, id: &str, object: &str, choice: &Value, length: Length) -> Reply<'static> {
        let body = json!({
            "id": id,
            "object": object,
            "created": CREATED,
            "model": self.model,
            "choices": [choice],
            "usage": usage(length),
        });
        Reply::text(200, body.to_string().into_bytes(), length.time())
    }

    fn stream<'a>(
        &'a self,
        asked: &Asked<'_>,
        length: Length,
        (opening, token): (Vec<u8>, &'a [u8]),
        mut last: Value,
    ) -> Reply<'a> {
        let mut closing = Vec::new();
        event(&mut closing, &last);
        if asked.wants_usage() {
            last["choices"] = json!([]);
            last["usage"] = usage(length);
            event(&mut closing, &last);
        }
        chunk(&mut closing, &text_event(DONE));
        closing.extend_from_slice(END);
        Reply::Stream(Script { media: "text/event-stream", opening, token: Token::Same(token), closing, length })
    }
}

/// `GET /v1/models`.
pub(super) fn models<'a>(names: impl Iterator<Item = &'a str>) -> Reply<'static> {
    let entry = |name| json!({ "id": name, "object": "model", "created": CREATED, "owned_by": "muster" });
    Reply::json(json!({ "object": "list", "data": names.map(entry).collect::<Vec<_>>() }))
}

/// An error.
pub(super) fn refusal(status: u16, message: &str) -> Reply<'static> {
    let error = json!({ "message": message, "type": "invalid_request_error", "param": null, "code": null });
    Reply::refusal(status, json!({ "error": error }))
}

fn chat_chunk(model: &str, delta: &Value, reason: Option<&str>) -> Value {
    json!({
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": model,
        "choices": [{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": reason }],
    })
}

fn text_chunk(model: &str, text: &str, reason: Option<&str>) -> Value {
    json!({
        "id": "cmpl-fake",
        "object": "text_completion",
        "created": CREATED,
        "model": model,
        "choices": [{ "index": 0, "text": text, "logprobs": null, "finish_reason": reason }],
    })
}

fn usage(length: Length) -> Value {
    json!({
        "prompt_tokens": length.prompt_tokens,
        "completion_tokens": length.tokens,
        "total_tokens": length.prompt_tokens.saturating_add(length.tokens),
    })
}
