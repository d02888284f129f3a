//! A completion as a stream of chunks.

use bytes::Bytes;
use muster_shared::generate::{Event, TokenLogprob, Usage};
use muster_shared::sse;

use super::{CompletionChoice, CompletionRequest, OBJECT};
use crate::openai::answer::echoed;
use crate::openai::error;
use crate::openai::logprobs::CompletionLogprobs;
use crate::openai::reply::ReplyHead;

/// Turns the events of all prompts' answers into server-sent events.
#[derive(Debug)]
pub(crate) struct CompletionChunks {
    head: ReplyHead,
    include_usage: bool,
    /// Choices of one prompt.
    choices: usize,
    places: Vec<Place>,
    ended: bool,
}

/// How far a choice has come.
#[derive(Debug, Clone, Default)]
struct Place {
    /// Whether a token has come.
    begun: bool,
    /// Where the next token stands in the text, in characters.
    offset: usize,
}

impl CompletionChunks {
    pub(crate) fn new(head: ReplyHead, request: &CompletionRequest) -> Self {
        Self {
            head,
            include_usage: request.include_usage,
            choices: request.generate.choices as usize,
            places: vec![Place::default(); request.choices()],
            ended: false,
        }
    }

    /// Notes the model that answers, before anything of its answer has come.
    pub(crate) fn answered_by(&mut self, model: &str) {
        if self.head.model != model {
            model.clone_into(&mut self.head.model);
        }
    }

    /// The chunks that an event of one prompt brings, if any. `Done` brings none: other prompts may go on.
    pub(crate) fn event(&mut self, prompt: usize, event: &Event) -> Vec<Bytes> {
        if self.ended {
            return Vec::new();
        }
        match event {
            Event::Started { .. } | Event::Done { .. } => Vec::new(),
            Event::Delta { choice, text, tokens, logprobs } => {
                let index = self.index(prompt, *choice);
                index.and_then(|index| self.delta(index, text, tokens, logprobs)).into_iter().collect()
            }
            Event::Finished { choice, reason, .. } => {
                let last =
                    |index| CompletionChoice { index, text: "".into(), logprobs: None, finish_reason: Some(*reason) };
                self.index(prompt, *choice).map(|index| self.chunk(last(index))).into_iter().collect()
            }
            Event::Failed { problem } => {
                self.ended = true;
                vec![sse::json_event(&error::body(problem))]
            }
        }
    }

    /// The end, when every prompt is done, with what all have cost together.
    pub(crate) fn finish(&mut self, usage: Usage) -> Vec<Bytes> {
        if std::mem::replace(&mut self.ended, true) {
            return Vec::new();
        }
        let mut events = Vec::with_capacity(2);
        if self.include_usage {
            let choices: [CompletionChoice<'_>; 0] = [];
            events.push(sse::json_event(&self.head.chunk(OBJECT, choices, Some(Some(usage.into())))));
        }
        events.push(sse::text_event(sse::DONE));
        events
    }

    /// Where a choice stands in the answer; `None` for one that was not asked for.
    fn index(&self, prompt: usize, choice: u32) -> Option<usize> {
        let choice = choice as usize;
        Some(prompt * self.choices + choice).filter(|index| choice < self.choices && *index < self.places.len())
    }

    fn delta(&mut self, index: usize, text: &str, tokens: &[u32], logprobs: &[TokenLogprob]) -> Option<Bytes> {
        let place = self.places.get_mut(index)?;
        place.offset += echoed(text, tokens, logprobs, !place.begun);
        place.begun |= !tokens.is_empty() || !logprobs.is_empty();
        let logprobs = CompletionLogprobs::some(logprobs, place.offset);
        if let Some(logprobs) = &logprobs {
            place.offset = logprobs.end();
        }
        if text.is_empty() && logprobs.is_none() {
            return None;
        }
        Some(self.chunk(CompletionChoice { index, text: text.into(), logprobs, finish_reason: None }))
    }

    fn chunk(&self, choice: CompletionChoice<'_>) -> Bytes {
        sse::json_event(&self.head.chunk(OBJECT, [choice], self.include_usage.then_some(None)))
    }
}
