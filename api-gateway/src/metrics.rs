//! What the gateway counts. Labels hold routes, statuses and names of models that the fleet serves.

use std::time::{Duration, Instant};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use muster_shared::generate::Usage;

/// Describes every metric of the gateway.
pub(crate) fn describe() {
    describe_counter!("muster_gateway_requests_total", "Requests answered, by route and status");
    describe_histogram!("muster_gateway_request_seconds", "From a request to the head of its answer, by route");
    describe_histogram!(
        "muster_gateway_time_to_first_token_seconds",
        "From the worker's acceptance to the first token"
    );
    describe_histogram!("muster_gateway_inter_token_latency_seconds", "Between one token of an answer and the next");
    describe_counter!("muster_gateway_prompt_tokens_total", "Tokens of prompts, by model");
    describe_counter!("muster_gateway_completion_tokens_total", "Tokens of answers, by model");
    describe_gauge!("muster_gateway_in_flight_requests", "Requests that run on workers");
    describe_counter!("muster_gateway_retries_total", "Attempts beyond the first of a request");
    describe_counter!("muster_gateway_lost_releases_total", "Tickets that could not be given back and lapse instead");
}

/// A request was answered.
pub(crate) fn request(route: &'static str, status: u16, took: Duration) {
    counter!("muster_gateway_requests_total", "route" => route, "status" => status.to_string()).increment(1);
    histogram!("muster_gateway_request_seconds", "route" => route).record(took);
}

/// A token came, for an answer that began then and had its last token then.
pub(crate) fn token(begun: Instant, last: Option<Instant>) {
    match last {
        Some(last) => histogram!("muster_gateway_inter_token_latency_seconds").record(last.elapsed()),
        None => histogram!("muster_gateway_time_to_first_token_seconds").record(begun.elapsed()),
    }
}

/// An answer has ended.
pub(crate) fn usage(model: &str, usage: &Usage) {
    let model = model.to_owned();
    counter!("muster_gateway_prompt_tokens_total", "model" => model.clone()).increment(u64::from(usage.prompt_tokens));
    counter!("muster_gateway_completion_tokens_total", "model" => model).increment(u64::from(usage.completion_tokens));
}

/// Requests on workers have become more or fewer.
pub(crate) fn in_flight(change: i8) {
    gauge!("muster_gateway_in_flight_requests").increment(f64::from(change));
}

/// An attempt beyond the first.
pub(crate) fn retry() {
    counter!("muster_gateway_retries_total").increment(1);
}

/// Tickets could not be given back.
pub(crate) fn releases_lost(tickets: usize) {
    counter!("muster_gateway_lost_releases_total").increment(tickets as u64);
}
