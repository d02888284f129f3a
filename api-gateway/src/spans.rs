//! What spans of requests tell, in the words of OpenTelemetry's conventions for generative AI where they have some.
//!
//! Neither prompts nor answers, and no keys but by name.

use muster_shared::control;
use muster_shared::trace::Span;

use crate::account::{Entry, Outcome};
use crate::observe::Route;
use crate::state::RequestId;
use crate::upstream::peer::Peer;

/// Ends the span of a request with what is known of it; gives the id of its trace.
pub(crate) fn end(mut span: Span, id: &RequestId, route: Route, entry: &Entry) -> String {
    let trace = span.context().trace_id();
    if span.is_recorded() {
        tell(&mut span, id, route, entry);
    }
    trace
}

fn tell(span: &mut Span, id: &RequestId, route: Route, entry: &Entry) {
    span.set("muster.request_id", id.to_string());
    span.set("muster.attempts", i64::from(entry.attempts));
    span.set("gen_ai.request.stream", entry.stream);
    if !route.path().is_empty() {
        span.set("http.route", route.path());
    }
    if let Some(operation) = route.operation() {
        span.set("gen_ai.operation.name", operation);
        span.set("gen_ai.provider.name", "muster");
        if let Some(model) = entry.asked.as_ref().or(entry.model.as_ref()) {
            span.rename(format!("{operation} {model}"));
        }
    }
    for (name, model) in [("gen_ai.request.model", &entry.asked), ("gen_ai.response.model", &entry.model)] {
        if let Some(model) = model {
            span.set(name, model.to_string());
        }
    }
    if let Some(key) = &entry.key {
        span.set("muster.key", key.name.clone());
    }
    if let Some(worker) = &entry.worker {
        span.set("muster.worker", worker.to_string());
    }
    if let Some(status) = entry.status {
        span.set("http.response.status_code", i64::from(status));
    }
    if let Some(ttft) = entry.ttft {
        span.set("gen_ai.response.time_to_first_chunk", ttft.as_secs_f64());
    }
    if let Some(usage) = &entry.usage {
        span.set("gen_ai.usage.input_tokens", i64::from(usage.prompt_tokens));
        span.set("gen_ai.usage.output_tokens", i64::from(usage.completion_tokens));
        span.set("gen_ai.usage.cache_read.input_tokens", i64::from(usage.cached_tokens));
    }
    match (entry.outcome, entry.error()) {
        (Outcome::Failed(kind), Some(error)) if kind.status() >= 500 => span.fail(error),
        (_, Some(error)) => span.set("error.type", error), // the client's own doing
        (_, None) => {}
    }
}

/// Tells whom an attempt asks, for what.
pub(crate) fn ask(span: &mut Span, peer: &Peer, model: &str) {
    if span.is_recorded() {
        span.set("muster.worker", peer.id.to_string());
        span.set("muster.transport", peer.transport.to_string());
        span.set("server.address", peer.address.clone());
        span.set("gen_ai.request.model", model.to_owned());
    }
}

/// Ends an attempt.
pub(crate) fn give_back(mut span: Span, outcome: control::Outcome, tokens: u32) {
    span.set("muster.tokens", i64::from(tokens));
    match outcome {
        control::Outcome::Done => {}
        control::Outcome::Cancelled => span.set("error.type", "cancelled"),
        control::Outcome::Overloaded => span.fail("overloaded"),
        control::Outcome::Unreachable => span.fail("unreachable"),
        control::Outcome::Failed => span.fail("failed"),
    }
}
