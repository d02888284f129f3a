//! Answers that were given before: looked for before a worker is sought, kept when they are whole.

use std::sync::Arc;

use muster_shared::generate::{Event, GenerateRequest};

use super::Upstream;
use super::call::Call;
use super::job::Job;
use crate::cache::Place;

/// An answer that is written down while it is given.
#[derive(Debug)]
pub(super) struct Recording {
    place: Place,
    /// The model whose answer belongs there: not that of one that stood in for it.
    model: Arc<str>,
    events: Vec<Event>,
}

impl Recording {
    pub(super) fn new(place: Place, model: &Arc<str>) -> Self {
        Self { place, model: Arc::clone(model), events: Vec::new() }
    }

    /// The next event of the answer; one that begins anew is written anew.
    pub(super) fn note(&mut self, event: &Event) {
        if matches!(event, Event::Started { .. }) {
            self.events.clear();
        }
        self.events.push(event.clone());
    }

    /// The answer is whole, and that model gave it.
    pub(super) fn keep(self, model: &str) {
        if *self.model == *model {
            self.place.keep(Arc::new(self.events));
        }
    }
}

impl Upstream {
    /// Where the answer to a prompt is kept; nowhere, where the next one may be another.
    pub(super) fn place_of_text(&self, job: &Job, request: &GenerateRequest) -> Option<Place> {
        let cache = self.0.cache.as_ref()?;
        let is_settled = request.sampling.temperature == 0.0 || request.sampling.seed.is_some();
        let revision = self.0.view.model(&job.model)?.revision.clone().filter(|_| is_settled)?;
        let question = GenerateRequest {
            request_id: String::new(),
            priority: 0,
            timeout_ms: None,
            resume: None,
            ..request.clone()
        };
        Some(cache.place(job.key.as_deref(), &revision, "generate", &question))
    }

    /// Where the answer to a call is kept.
    pub(super) fn place_of_call<C: Call>(&self, job: &Job, call: &C) -> Option<Place> {
        let cache = self.0.cache.as_ref().filter(|_| C::IS_KEPT)?;
        let revision = self.0.view.model(&job.model)?.revision.clone()?;
        let mut question = call.within(None).unwrap_or_else(|| call.clone());
        if let Some(id) = question.request_id() {
            id.clear();
        }
        Some(cache.place(job.key.as_deref(), &revision, C::PATH, &question))
    }
}
