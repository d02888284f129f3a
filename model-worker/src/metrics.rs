//! What the worker counts. Labels hold names of this worker's own models only.

use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use muster_shared::control::Resources;
use muster_shared::generate::FinishReason;

const VLLM_RUNNING: &str = "vllm:num_requests_running";
const VLLM_WAITING: &str = "vllm:num_requests_waiting";
const VLLM_KV_USAGE: &str = "vllm:kv_cache_usage_perc";
const VLLM_GPU_USAGE: &str = "vllm:gpu_cache_usage_perc";
const VLLM_PROMPT_TOKENS: &str = "vllm:prompt_tokens_total";
const VLLM_GENERATION_TOKENS: &str = "vllm:generation_tokens_total";
const VLLM_QUERIES: &str = "vllm:prefix_cache_queries_total";
const VLLM_HITS: &str = "vllm:prefix_cache_hits_total";
const VLLM_FIRST_TOKEN: &str = "vllm:time_to_first_token_seconds";
const VLLM_INTER_TOKEN: &str = "vllm:inter_token_latency_seconds";
const VLLM_OUTPUT_TOKEN: &str = "vllm:time_per_output_token_seconds";
const VLLM_LATENCY: &str = "vllm:e2e_request_latency_seconds";
const VLLM_SUCCESS: &str = "vllm:request_success_total";

/// Describes what bears vLLM's names.
fn describe_vllm() {
    describe_gauge!(VLLM_RUNNING, Unit::Count, "Sequences that hold a row (vLLM's name)");
    describe_gauge!(VLLM_WAITING, Unit::Count, "Sequences that wait for a row (vLLM's name)");
    describe_gauge!(VLLM_KV_USAGE, Unit::Count, "Share of the KV cache in use, from 0 to 1 (vLLM's name)");
    describe_gauge!(VLLM_GPU_USAGE, Unit::Count, "The same under vLLM's older name");
    describe_counter!(VLLM_PROMPT_TOKENS, Unit::Count, "Tokens of admitted prompts (vLLM's name)");
    describe_counter!(VLLM_GENERATION_TOKENS, Unit::Count, "Tokens chosen (vLLM's name)");
    describe_counter!(VLLM_QUERIES, Unit::Count, "Tokens looked for in the prefix cache (vLLM's name)");
    describe_counter!(VLLM_HITS, Unit::Count, "Tokens found there (vLLM's name)");
    describe_histogram!(VLLM_FIRST_TOKEN, Unit::Seconds, "From arrival in the engine to the first token (vLLM's name)");
    describe_histogram!(VLLM_INTER_TOKEN, Unit::Seconds, "Between one token and the next (vLLM's name)");
    describe_histogram!(VLLM_OUTPUT_TOKEN, Unit::Seconds, "The same under vLLM's older name");
    describe_histogram!(VLLM_LATENCY, Unit::Seconds, "From arrival in the engine to the end (vLLM's name)");
    describe_counter!(VLLM_SUCCESS, Unit::Count, "Sequences that have ended, by reason (vLLM's name)");
}

/// Describes every metric of the worker.
pub(crate) fn describe() {
    describe_vllm();
    describe_gauge!("muster_worker_sequences_running", "Sequences that hold a row, by model");
    describe_gauge!("muster_worker_sequences_waiting", "Sequences that wait for a row, by model");
    describe_counter!("muster_worker_prompt_tokens_total", "Prompt tokens read, by model");
    describe_counter!("muster_worker_generation_tokens_total", "Tokens chosen, by model");
    describe_histogram!("muster_worker_time_to_first_token_seconds", "From arrival in the engine to the first token");
    describe_histogram!("muster_worker_inter_token_latency_seconds", "Between one token of a sequence and the next");
    describe_histogram!("muster_worker_prefill_step_seconds", "One run over a piece of a prompt");
    describe_histogram!("muster_worker_decode_step_seconds", "One run that adds a token");
    describe_counter!("muster_worker_cached_tokens_total", "Prompt tokens found in the prefix cache, by model");
    describe_gauge!("muster_worker_kv_tokens", "Tokens whose keys and values are held, kept prefixes included");
    describe_counter!("muster_worker_preemptions_total", "Sequences that gave their row back and were read anew");
    describe_counter!("muster_worker_proposed_tokens_total", "Tokens proposed from the text itself, by model");
    describe_counter!("muster_worker_confirmed_tokens_total", "Proposed tokens that the model confirmed, by model");
    describe_histogram!("muster_worker_decode_step_sequences", "Sequences, or confirmed tokens, in one such run");
    describe_gauge!(
        "muster_worker_contention_ratio",
        "Share of their time that threads with work wait for a processor"
    );
    describe_counter!("muster_worker_embedding_tokens_total", "Tokens embedded, by model");
    describe_counter!("muster_worker_embedding_padding_tokens_total", "Padding that ran beside them, by model");
    describe_histogram!("muster_worker_encoder_batch_texts", "Texts in one run of an encoder");
    describe_gauge!("muster_worker_encoder_texts_waiting", "Texts that wait for a run, by model");
    describe_histogram!("muster_worker_tensor_run_seconds", "One run of a tensor model's graph, by model");
    describe_histogram!("muster_worker_tensor_run_rows", "Rows in one such run");
    describe_counter!("muster_worker_tensor_failures_total", "Requests of a tensor model without an answer");
    describe_gauge!("muster_worker_tensor_versions", "Versions of tensor models that can be asked");
    describe_counter!("muster_worker_tensor_loads_total", "Versions of tensor models loaded, by outcome");
    describe_counter!("muster_worker_requests_total", "Requests taken, by model and kind");
    describe_counter!("muster_worker_heartbeats_total", "Heartbeats sent, by outcome");
    describe_counter!("muster_worker_shed_total", "Requests refused while they waited, memory being short, by model");
    describe_gauge!("muster_worker_resource_ratio", "Share of a resource that is in use, from 0 to 1, by resource");
}

/// Counts of one engine.
pub(crate) struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    first_token: Histogram,
    inter_token: Histogram,
    prefill_step: Histogram,
    decode_step: Histogram,
    decode_tokens: Histogram,
    cached_tokens: Counter,
    kv_tokens: Gauge,
    preemptions: Counter,
    shed: Counter,
    proposed: Counter,
    confirmed: Counter,
    vllm: Vllm,
}

/// The same under the names of vLLM, which dashboards and routers read.
struct Vllm {
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    gpu_usage: Gauge,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    queries: Counter,
    hits: Counter,
    first_token: Histogram,
    inter_token: Histogram,
    output_token: Histogram,
    latency: Histogram,
    stopped: Counter,
    cut: Counter,
    aborted: Counter,
    failed: Counter,
}

impl Vllm {
    fn new(model: &str) -> Self {
        // A worker has one engine for each model; vLLM numbers them.
        let labels = || vec![Label::new("model_name", model.to_owned()), Label::new("engine", "0")];
        let success = |reason: &'static str| {
            let reason = Label::new("finished_reason", reason);
            counter!(VLLM_SUCCESS, labels().into_iter().chain([reason]).collect::<Vec<_>>())
        };
        Self {
            running: gauge!(VLLM_RUNNING, labels()),
            waiting: gauge!(VLLM_WAITING, labels()),
            kv_usage: gauge!(VLLM_KV_USAGE, labels()),
            gpu_usage: gauge!(VLLM_GPU_USAGE, labels()),
            prompt_tokens: counter!(VLLM_PROMPT_TOKENS, labels()),
            generation_tokens: counter!(VLLM_GENERATION_TOKENS, labels()),
            queries: counter!(VLLM_QUERIES, labels()),
            hits: counter!(VLLM_HITS, labels()),
            first_token: histogram!(VLLM_FIRST_TOKEN, labels()),
            inter_token: histogram!(VLLM_INTER_TOKEN, labels()),
            output_token: histogram!(VLLM_OUTPUT_TOKEN, labels()),
            latency: histogram!(VLLM_LATENCY, labels()),
            stopped: success("stop"),
            cut: success("length"),
            aborted: success("abort"),
            failed: success("error"),
        }
    }
}

impl EngineMetrics {
    pub(crate) fn new(model: &str) -> Self {
        let vllm = Vllm::new(model);
        let model = model.to_owned();
        Self {
            vllm,
            running: gauge!("muster_worker_sequences_running", "model" => model.clone()),
            waiting: gauge!("muster_worker_sequences_waiting", "model" => model.clone()),
            prompt_tokens: counter!("muster_worker_prompt_tokens_total", "model" => model.clone()),
            generation_tokens: counter!("muster_worker_generation_tokens_total", "model" => model.clone()),
            first_token: histogram!("muster_worker_time_to_first_token_seconds", "model" => model.clone()),
            inter_token: histogram!("muster_worker_inter_token_latency_seconds", "model" => model.clone()),
            prefill_step: histogram!("muster_worker_prefill_step_seconds", "model" => model.clone()),
            decode_step: histogram!("muster_worker_decode_step_seconds", "model" => model.clone()),
            decode_tokens: histogram!("muster_worker_decode_step_sequences", "model" => model.clone()),
            cached_tokens: counter!("muster_worker_cached_tokens_total", "model" => model.clone()),
            kv_tokens: gauge!("muster_worker_kv_tokens", "model" => model.clone()),
            preemptions: counter!("muster_worker_preemptions_total", "model" => model.clone()),
            shed: shed(&model),
            proposed: counter!("muster_worker_proposed_tokens_total", "model" => model.clone()),
            confirmed: counter!("muster_worker_confirmed_tokens_total", "model" => model),
        }
    }

    pub(crate) fn prefill(&self, tokens: usize, step: Duration) {
        self.prompt_tokens.increment(tokens as u64);
        self.prefill_step.record(step);
    }

    pub(crate) fn decode(&self, tokens: usize, step: Duration) {
        self.decode_step.record(step);
        self.decode_tokens.record(tokens as f64);
    }

    /// So many tokens of a prompt were found in another row.
    pub(crate) fn shared(&self, tokens: usize, prompt: usize) {
        self.cached_tokens.increment(tokens as u64);
        self.vllm.prompt_tokens.increment(prompt as u64);
        self.vllm.queries.increment(prompt as u64);
        self.vllm.hits.increment(tokens as u64);
    }

    /// A sequence that arrived then has ended; without a reason, since it failed.
    pub(crate) fn finished(&self, reason: Option<FinishReason>, arrived: Instant) {
        self.vllm.latency.record(arrived.elapsed());
        match reason {
            Some(FinishReason::Length) => self.vllm.cut.increment(1),
            Some(_) => self.vllm.stopped.increment(1),
            None => self.vllm.failed.increment(1),
        }
    }

    /// A sequence that arrived then was given up.
    pub(crate) fn aborted(&self, arrived: Instant) {
        self.vllm.latency.record(arrived.elapsed());
        self.vllm.aborted.increment(1);
    }

    pub(crate) fn preempted(&self, sequences: usize) {
        self.preemptions.increment(sequences as u64);
    }

    /// So many sequences were refused while they waited.
    pub(crate) fn shed(&self, sequences: usize) {
        self.shed.increment(sequences as u64);
    }

    pub(crate) fn proposed(&self, proposed: usize, confirmed: usize) {
        self.proposed.increment(proposed as u64);
        self.confirmed.increment(confirmed as u64);
    }

    /// A token was chosen, for a sequence that arrived then and chose its last token then.
    pub(crate) fn token(&self, arrived: Instant, last: Option<Instant>) {
        self.generation_tokens.increment(1);
        self.vllm.generation_tokens.increment(1);
        match last.map(|last| last.elapsed()) {
            Some(pause) => {
                for histogram in [&self.inter_token, &self.vllm.inter_token, &self.vllm.output_token] {
                    histogram.record(pause);
                }
            }
            None => {
                let wait = arrived.elapsed();
                self.first_token.record(wait);
                self.vllm.first_token.record(wait);
            }
        }
    }

    /// `fill`: share of the room for keys and values that running sequences take.
    pub(crate) fn load(&self, running: usize, waiting: usize, kv_tokens: usize, fill: f64) {
        self.vllm.running.set(running as f64);
        self.vllm.waiting.set(waiting as f64);
        self.vllm.kv_usage.set(fill);
        self.vllm.gpu_usage.set(fill);
        self.running.set(running as f64);
        self.waiting.set(waiting as f64);
        self.kv_tokens.set(kv_tokens as f64);
    }
}

/// Counts of one encoder.
pub(crate) struct EncoderMetrics {
    tokens: Counter,
    padding: Counter,
    texts: Histogram,
    waiting: Gauge,
    shed: Counter,
}

impl EncoderMetrics {
    pub(crate) fn new(model: &str) -> Self {
        let model = model.to_owned();
        Self {
            tokens: counter!("muster_worker_embedding_tokens_total", "model" => model.clone()),
            padding: counter!("muster_worker_embedding_padding_tokens_total", "model" => model.clone()),
            texts: histogram!("muster_worker_encoder_batch_texts", "model" => model.clone()),
            shed: shed(&model),
            waiting: gauge!("muster_worker_encoder_texts_waiting", "model" => model),
        }
    }

    /// So many requests were refused while they waited.
    pub(crate) fn shed(&self, requests: usize) {
        self.shed.increment(requests as u64);
    }

    /// So many texts are left in the queue.
    pub(crate) fn waiting(&self, texts: usize) {
        self.waiting.set(texts as f64);
    }

    /// `padding` tokens run beside the texts' own.
    pub(crate) fn run(&self, texts: usize, tokens: usize, padding: usize) {
        self.tokens.increment(tokens as u64);
        self.padding.increment(padding as u64);
        self.texts.record(texts as f64);
    }
}

/// Counts of a tensor model. Its versions share them: each would leave its own behind when it goes.
#[derive(Debug)]
pub(crate) struct TensorMetrics {
    run: Histogram,
    rows: Histogram,
    failures: Counter,
    shed: Counter,
}

impl TensorMetrics {
    pub(crate) fn new(model: &str) -> Self {
        let model = model.to_owned();
        Self {
            run: histogram!("muster_worker_tensor_run_seconds", "model" => model.clone()),
            rows: histogram!("muster_worker_tensor_run_rows", "model" => model.clone()),
            shed: shed(&model),
            failures: counter!("muster_worker_tensor_failures_total", "model" => model),
        }
    }

    pub(crate) fn ran(&self, run: crate::tensor::statistics::Run) {
        self.run.record(run.infer);
        self.rows.record(run.rows as f64);
    }

    pub(crate) fn failed(&self) {
        self.failures.increment(1);
    }

    /// So many requests were refused while they waited.
    pub(crate) fn shed(&self, requests: usize) {
        self.shed.increment(requests as u64);
    }
}

fn shed(model: &str) -> Counter {
    counter!("muster_worker_shed_total", "model" => model.to_owned())
}

/// So much of each resource is in use.
pub(crate) fn resources(resources: &Resources) {
    for (resource, share) in resources.fractions() {
        if let Some(share) = share {
            gauge!("muster_worker_resource_ratio", "resource" => resource).set(share);
        }
    }
}

/// So many versions of tensor models can be asked.
pub(crate) fn tensor_versions(versions: usize) {
    gauge!("muster_worker_tensor_versions").set(versions as f64);
}

/// A version of a tensor model was loaded, or could not be.
pub(crate) fn tensor_load(outcome: &'static str) {
    counter!("muster_worker_tensor_loads_total", "outcome" => outcome).increment(1);
}

/// A request for a model was taken.
pub(crate) fn request(model: &str, kind: &'static str) {
    counter!("muster_worker_requests_total", "model" => model.to_owned(), "kind" => kind).increment(1);
}

/// A heartbeat was sent.
pub(crate) fn heartbeat(outcome: &'static str) {
    counter!("muster_worker_heartbeats_total", "outcome" => outcome).increment(1);
}
