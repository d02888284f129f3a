//! A chat answer as a stream of chunks.

use bytes::Bytes;
use muster_shared::generate::{Event, FinishReason, TokenLogprob, Usage};
use muster_shared::sse;
use serde::Serialize;

use super::ChatRequest;
use crate::openai::error;
use crate::openai::logprobs::ChatLogprobs;
use crate::openai::reply::{ReplyHead, UsageBody};

/// Turns the events of an answer into server-sent events.
#[derive(Debug)]
pub(crate) struct ChatChunks {
    head: ReplyHead,
    include_usage: bool,
    /// Choices whose role has been sent.
    begun: Vec<bool>,
    ended: bool,
}

impl ChatChunks {
    pub(crate) fn new(head: ReplyHead, request: &ChatRequest) -> Self {
        let begun = vec![false; request.generate.choices as usize];
        Self { head, include_usage: request.include_usage, begun, ended: false }
    }

    /// Notes the model that answers, before anything of its answer has come.
    pub(crate) fn answered_by(&mut self, model: &str) {
        if self.head.model != model {
            model.clone_into(&mut self.head.model);
        }
    }

    /// The chunks that an event brings, if any. Nothing follows `Done` and `Failed`.
    pub(crate) fn event(&mut self, event: &Event) -> Vec<Bytes> {
        if self.ended {
            return Vec::new();
        }
        match event {
            Event::Started { .. } => Vec::new(),
            Event::Delta { choice, text, logprobs, .. } => self.delta(*choice, text, logprobs),
            Event::Finished { choice, reason, .. } => self.finished(*choice, *reason),
            Event::Done { usage } => self.done(*usage),
            Event::Failed { problem } => {
                self.ended = true;
                vec![sse::json_event(&error::body(problem))]
            }
        }
    }

    fn delta(&mut self, choice: u32, text: &str, logprobs: &[TokenLogprob]) -> Vec<Bytes> {
        let Some(mut chunks) = self.begin(choice) else { return Vec::new() };
        if !text.is_empty() || !logprobs.is_empty() {
            let delta = Delta { role: None, content: Some(text) };
            chunks.push(self.chunk(ChunkChoice {
                index: choice,
                delta,
                logprobs: ChatLogprobs::some(logprobs),
                finish_reason: None,
            }));
        }
        chunks
    }

    fn finished(&mut self, choice: u32, reason: FinishReason) -> Vec<Bytes> {
        let Some(mut chunks) = self.begin(choice) else { return Vec::new() };
        let delta = Delta { role: None, content: None };
        chunks.push(self.chunk(ChunkChoice { index: choice, delta, logprobs: None, finish_reason: Some(reason) }));
        chunks
    }

    /// The chunk with the role, before anything else of a choice; `None` for a choice that was not asked for.
    fn begin(&mut self, choice: u32) -> Option<Vec<Bytes>> {
        let begun = self.begun.get_mut(choice as usize)?;
        if std::mem::replace(begun, true) {
            return Some(Vec::with_capacity(1));
        }
        let delta = Delta { role: Some("assistant"), content: Some("") };
        Some(vec![self.chunk(ChunkChoice { index: choice, delta, logprobs: None, finish_reason: None })])
    }

    fn done(&mut self, usage: Usage) -> Vec<Bytes> {
        self.ended = true;
        let mut events = Vec::with_capacity(2);
        if self.include_usage {
            let choices: [ChunkChoice<'_>; 0] = [];
            events.push(sse::json_event(&self.head.chunk(OBJECT, choices, Some(Some(usage.into())))));
        }
        events.push(sse::text_event(sse::DONE));
        events
    }

    fn chunk(&self, choice: ChunkChoice<'_>) -> Bytes {
        let usage: Option<Option<UsageBody>> = self.include_usage.then_some(None);
        sse::json_event(&self.head.chunk(OBJECT, [choice], usage))
    }
}

const OBJECT: &str = "chat.completion.chunk";

#[derive(Debug, Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs<'a>>,
    finish_reason: Option<FinishReason>,
}

#[derive(Debug, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}
