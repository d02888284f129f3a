//! Answers that were given before: looked for before a worker is sought, kept when they are whole.

use std::sync::Arc;

use muster_shared::generate::{Event, GenerateRequest, Prompt};
use uuid::Uuid;

use super::Upstream;
use super::call::Call;
use super::job::Job;
use crate::body::beside;
use crate::cache::{Cache, Place, size};
use crate::keys::ApiKey;

/// What an allocation takes beside what is in it, in bytes.
const ALLOCATION: usize = 16;

/// An answer that is written down while it is given.
#[derive(Debug)]
pub(super) struct Recording {
    place: Place,
    /// The model whose answer belongs there: not that of one that stood in for it.
    model: Arc<str>,
    events: Vec<Event>,
    /// What the events take.
    bytes: u64,
}

impl Recording {
    pub(super) fn new(place: Place, model: &Arc<str>) -> Self {
        Self { place, model: Arc::clone(model), events: Vec::new(), bytes: 0 }
    }

    /// The next event of the answer; one that begins anew is written anew. Tells whether there is room for all of them.
    pub(super) fn note(&mut self, event: &Event) -> bool {
        if matches!(event, Event::Started { .. }) {
            (self.events, self.bytes) = (Vec::new(), 0);
        }
        self.bytes += size_of_event(event);
        self.events.push(event.clone());
        self.bytes <= self.place.most()
    }

    /// The answer is whole, and that model gave it.
    pub(super) fn keep(mut self, model: &str) {
        if *self.model == *model {
            self.events.shrink_to_fit();
            self.place.keep(Arc::new(self.events), self.bytes);
        }
    }
}

/// About what an event takes in memory, in bytes.
fn size_of_event(event: &Event) -> u64 {
    let beside = match event {
        Event::Delta { text, tokens, logprobs, .. } => {
            let probabilities = if logprobs.is_empty() { 0 } else { size(logprobs) * 2 }; // nested, and with texts
            text.len() as u64 + 4 * tokens.len() as u64 + 2 * ALLOCATION as u64 + probabilities
        }
        _ => 0,
    };
    size_of::<Event>() as u64 + beside
}

impl Upstream {
    /// Where the answer to a prompt is kept; nowhere, where the next one may be another.
    pub(super) async fn place_of_text(&self, job: &Job, request: &Arc<GenerateRequest>) -> Option<Place> {
        let cache = self.0.cache.as_ref()?;
        let is_settled = request.sampling.temperature == 0.0 || request.sampling.seed.is_some();
        let answers = self.0.view.model(&job.model)?.answers().filter(|_| is_settled)?;
        let (cache, key, request) = (Arc::clone(cache), job.key.clone(), Arc::clone(request));
        let length = length(&request.prompt);
        // Nothing in it fails; a panic is told by whoever reads the request next.
        beside(length, move || Ok(text_place(&cache, key.as_deref(), answers, &request))).await.ok()
    }

    /// Where the answer to a call is kept.
    pub(super) fn place_of_call<C: Call>(&self, job: &Job, call: &C) -> Option<Place> {
        let cache = self.0.cache.as_ref().filter(|_| C::IS_KEPT)?;
        let answers = self.0.view.model(&job.model)?.answers()?;
        let mut question = call.within(None).unwrap_or_else(|| call.clone());
        if let Some(id) = question.request_id() {
            id.clear();
        }
        Some(cache.place(job.key.as_deref(), answers, C::PATH, &question))
    }
}

/// The place of the answer to a prompt, by all that it depends on.
fn text_place(cache: &Arc<Cache>, key: Option<&ApiKey>, answers: Uuid, request: &GenerateRequest) -> Place {
    // Every field stands here, so that a new one is not forgotten.
    let GenerateRequest {
        request_id: _,
        priority: _,
        timeout_ms: _,
        resume: _,
        model,
        prompt,
        sampling,
        choices,
        max_tokens,
        stop,
        stop_token_ids,
        ignore_eos,
        min_tokens,
        allowed_token_ids,
        logprobs,
        echo,
        cache_salt,
    } = request;
    let ends = (max_tokens, stop, stop_token_ids, ignore_eos, min_tokens);
    let question = (model, prompt, sampling, choices, ends, allowed_token_ids, logprobs, echo, cache_salt);
    cache.place(key, answers, "generate", &question)
}

/// About how long a prompt is, in bytes.
fn length(prompt: &Prompt) -> usize {
    match prompt {
        Prompt::Chat(chat) => chat.messages.iter().filter_map(|message| message.content.as_deref()).map(str::len).sum(),
        Prompt::Text(text) => text.len(),
        Prompt::Tokens(tokens) => tokens.len() * 4,
    }
}
