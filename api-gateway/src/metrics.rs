//! What the gateway counts. Labels hold routes, statuses and names of models that the fleet serves.
//!
//! What every request touches is looked up once: a handle costs an addition, a look-up more than a token's way through
//! the gateway.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use muster_shared::generate::Usage;

use crate::account::Entry;
use crate::observe::Route;

const DURATION: &str = "gen_ai_server_request_duration_seconds";
const TIME_TO_FIRST_TOKEN: &str = "gen_ai_server_time_to_first_token_seconds";
const TIME_PER_TOKEN: &str = "gen_ai_server_time_per_output_token_seconds";
const TOKEN_USAGE: &str = "gen_ai_client_token_usage";

/// Describes every metric of the gateway.
pub(crate) fn describe() {
    describe_histogram!(DURATION, Unit::Seconds, "From a request to the end of its answer (OpenTelemetry)");
    describe_histogram!(
        TIME_TO_FIRST_TOKEN,
        Unit::Seconds,
        "From a request to the first token of its answer (OpenTelemetry)"
    );
    describe_histogram!(
        TIME_PER_TOKEN,
        Unit::Seconds,
        "Time for each token of an answer after the first (OpenTelemetry)"
    );
    describe_histogram!(TOKEN_USAGE, Unit::Count, "Tokens of a request by type, input or output (OpenTelemetry)");
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
    describe_counter!(
        "muster_gateway_retries_denied_total",
        "Attempts not made, since too many requests were tried again"
    );
    describe_counter!("muster_gateway_resumptions_total", "Answers that went on at another worker");
    describe_counter!(
        "muster_gateway_access_lines_lost_total",
        "Lines of the access log not written, since the log was read too slowly"
    );
    show_zeros();
    describe_counter!("muster_gateway_hedges_total", "Second attempts made while the first was still awaited");
    describe_counter!(
        "muster_gateway_cache_lookups_total",
        "Requests whose answer could have been kept, by whether it was"
    );
    describe_gauge!("muster_gateway_cache_entries", "Answers that are kept");
    describe_gauge!("muster_gateway_cache_bytes", "About what they take in memory");
}

/// Shows what has not happened yet as 0: a rate needs a beginning.
fn show_zeros() {
    for name in [
        "muster_gateway_retries_total",
        "muster_gateway_retries_denied_total",
        "muster_gateway_resumptions_total",
        "muster_gateway_hedges_total",
        "muster_gateway_access_lines_lost_total",
    ] {
        counter!(name).increment(0);
    }
}

/// What is counted of one route.
struct RouteMetrics {
    /// Answers with status 200.
    answered: Counter,
    seconds: Histogram,
}

static ROUTES: LazyLock<[RouteMetrics; Route::ALL.len()]> = LazyLock::new(|| {
    Route::ALL.map(|route| RouteMetrics {
        answered: counter!("muster_gateway_requests_total", "route" => route.name(), "status" => "200"),
        seconds: histogram!("muster_gateway_request_seconds", "route" => route.name()),
    })
});
static IN_FLIGHT: LazyLock<Gauge> = LazyLock::new(|| gauge!("muster_gateway_in_flight_requests"));
static FIRST_TOKEN: LazyLock<Histogram> = LazyLock::new(|| histogram!("muster_gateway_time_to_first_token_seconds"));
static NEXT_TOKEN: LazyLock<Histogram> = LazyLock::new(|| histogram!("muster_gateway_inter_token_latency_seconds"));

/// A request was answered.
pub(crate) fn request(route: Route, status: u16, took: Duration) {
    let metrics = &ROUTES[route as usize];
    metrics.seconds.record(took);
    match status {
        200 => metrics.answered.increment(1),
        _ => counter!("muster_gateway_requests_total", "route" => route.name(), "status" => status.to_string())
            .increment(1),
    }
}

thread_local! {
    /// Handles of this thread by the model that answered. There are as many as models of the fleet, by name and alias.
    static ENDED: RefCell<HashMap<Arc<str>, Vec<Ended>>> = RefCell::default();
}

/// What stands for a model where none was chosen.
const NO_MODEL: &str = "unknown";

/// What OpenTelemetry counts of requests that end alike.
struct Ended {
    route: Route,
    asked: Option<Arc<str>>,
    error: Option<&'static str>,
    duration: Histogram,
    first_token: Histogram,
    next_token: Histogram,
    input: Histogram,
    output: Histogram,
}

impl Ended {
    fn new(route: Route, entry: &Entry) -> Option<Self> {
        let asked = entry.asked.as_deref().or(entry.model.as_deref()).unwrap_or(NO_MODEL);
        let mut labels = vec![
            Label::new("gen_ai_operation_name", route.operation()?),
            Label::new("gen_ai_provider_name", "muster"),
            Label::new("gen_ai_request_model", asked.to_owned()),
            Label::new("gen_ai_response_model", entry.model.as_deref().unwrap_or(NO_MODEL).to_owned()),
        ];
        labels.extend(entry.error().map(|error| Label::new("error_type", error)));
        let tokens = |kind| {
            let kind = Label::new("gen_ai_token_type", kind);
            histogram!(TOKEN_USAGE, labels.iter().cloned().chain([kind]).collect::<Vec<_>>())
        };
        Some(Self {
            route,
            asked: entry.asked.clone(),
            error: entry.error(),
            duration: histogram!(DURATION, labels.clone()),
            first_token: histogram!(TIME_TO_FIRST_TOKEN, labels.clone()),
            next_token: histogram!(TIME_PER_TOKEN, labels.clone()),
            input: tokens("input"),
            output: tokens("output"),
        })
    }

    fn is_of(&self, route: Route, entry: &Entry) -> bool {
        self.route == route && self.error == entry.error() && self.asked == entry.asked
    }

    fn note(&self, entry: &Entry, took: Duration) {
        self.duration.record(took);
        if let Some(ttft) = entry.ttft {
            self.first_token.record(ttft);
        }
        if let Some(time) = entry.time_per_token() {
            self.next_token.record(time);
        }
        if let Some(usage) = &entry.usage {
            self.input.record(usage.prompt_tokens);
            self.output.record(usage.completion_tokens);
        }
    }
}

/// A request has ended, however it did.
pub(crate) fn ended(route: Route, entry: &Entry, took: Duration) {
    if route.operation().is_none() {
        return;
    }
    // The last requests of a thread may end when what it has of its own is gone.
    let _ = ENDED.try_with(|ended| {
        let mut ended = ended.borrow_mut();
        let model = entry.model.as_deref().unwrap_or(NO_MODEL);
        if !ended.contains_key(model) {
            ended.insert(model.into(), Vec::new());
        }
        let Some(alike) = ended.get_mut(model) else { return };
        if !alike.iter().any(|known| known.is_of(route, entry)) {
            alike.extend(Ended::new(route, entry));
        }
        alike.iter().filter(|known| known.is_of(route, entry)).for_each(|known| known.note(entry, took));
    });
}

/// A token came at `now`, for an answer that began then and had its last token then.
pub(crate) fn token(begun: Instant, last: Option<Instant>, now: Instant) {
    match last {
        Some(last) => NEXT_TOKEN.record(now - last),
        None => FIRST_TOKEN.record(now - begun),
    }
}

/// What is counted of one model.
#[derive(Debug)]
pub(crate) struct ModelMetrics {
    prompt_tokens: Counter,
    completion_tokens: Counter,
}

impl ModelMetrics {
    /// Of the model of that name.
    pub(crate) fn new(model: &str) -> Self {
        let label = || model.to_owned();
        Self {
            prompt_tokens: counter!("muster_gateway_prompt_tokens_total", "model" => label()),
            completion_tokens: counter!("muster_gateway_completion_tokens_total", "model" => label()),
        }
    }

    /// An answer has ended.
    pub(crate) fn usage(&self, usage: &Usage) {
        self.prompt_tokens.increment(u64::from(usage.prompt_tokens));
        self.completion_tokens.increment(u64::from(usage.completion_tokens));
    }
}

/// Requests on workers have become more or fewer.
pub(crate) fn in_flight(change: f64) {
    IN_FLIGHT.increment(change);
}

/// An attempt beyond the first.
pub(crate) fn retry() {
    counter!("muster_gateway_retries_total").increment(1);
}

/// An attempt that was not made.
pub(crate) fn retry_denied() {
    counter!("muster_gateway_retries_denied_total").increment(1);
}

/// An answer goes on at another worker.
pub(crate) fn resumed() {
    counter!("muster_gateway_resumptions_total").increment(1);
}

/// So many lines of the access log could not be kept.
pub(crate) fn access_lines_lost(lines: u64) {
    counter!("muster_gateway_access_lines_lost_total").increment(lines);
}

/// A second attempt beside the first.
pub(crate) fn hedge() {
    counter!("muster_gateway_hedges_total").increment(1);
}

/// A kept answer was looked for.
pub(crate) fn looked_into_cache(found: bool) {
    counter!("muster_gateway_cache_lookups_total", "result" => if found { "hit" } else { "miss" }).increment(1);
}

/// So many answers are kept, of so many bytes.
pub(crate) fn cache_holds(entries: u64, bytes: u64) {
    gauge!("muster_gateway_cache_entries").set(entries as f64);
    gauge!("muster_gateway_cache_bytes").set(bytes as f64);
}
