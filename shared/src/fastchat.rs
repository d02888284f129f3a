//! The words of FastChat's HTTP contract (`fschat` 0.2.36), spoken by our controller, our worker and our gateway.
//!
//! Unknown keys are ignored everywhere, as FastChat does.

use serde::{Deserialize, Serialize};

/// Body of the controller's `/register_worker`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RegisterWorker {
    /// The worker's base URL, which is its identity.
    pub worker_name: String,
    /// Whether it will send heartbeats; without, its entry never expires.
    pub check_heart_beat: bool,
    /// Its state; the controller asks the worker itself when absent.
    #[serde(default)]
    pub worker_status: Option<WorkerStatus>,
    /// Whether it takes images.
    #[serde(default)]
    pub multimodal: bool,
}

/// Answer of the worker's `/worker_get_status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Models it serves.
    pub model_names: Vec<String>,
    /// Relative speed; above zero.
    pub speed: f64,
    /// Requests that run or wait.
    pub queue_length: u64,
}

/// Body of the controller's `/receive_heart_beat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartBeat {
    /// The worker's base URL.
    pub worker_name: String,
    /// Requests that run or wait.
    pub queue_length: u64,
}

/// Answer of the controller's `/receive_heart_beat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartBeatReply {
    /// Whether the controller knows the worker; if not, it must register again.
    pub exist: bool,
}

/// Body of routes that ask about one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelQuery {
    /// The model's name.
    pub model: String,
}

/// Answer of the controller's `/get_worker_address`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerAddress {
    /// A worker's base URL; empty when nobody serves the model.
    pub address: String,
}

/// Answer of the controller's `/list_models` and its two variants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelList {
    /// Names, without duplicates.
    pub models: Vec<String>,
}

/// Body of the worker's `/worker_generate_stream` and `/worker_generate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateParams {
    /// The model's name; a single-model worker ignores it.
    #[serde(default)]
    pub model: String,
    /// The prompt, already rendered.
    pub prompt: String,
    /// Below 1e-5: greedy.
    #[serde(default = "float_one")]
    pub temperature: f32,
    /// Below 1e-8: greedy; 1 keeps all.
    #[serde(default = "float_one")]
    pub top_p: f32,
    /// -1 keeps all.
    #[serde(default = "minus_one")]
    pub top_k: i64,
    /// 1 is off.
    #[serde(default = "float_one")]
    pub repetition_penalty: f32,
    /// 0 is off.
    #[serde(default)]
    pub presence_penalty: f32,
    /// 0 is off.
    #[serde(default)]
    pub frequency_penalty: f32,
    /// Longest answer in tokens.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: u32,
    /// Whether `text` begins with the prompt.
    #[serde(default = "yes")]
    pub echo: bool,
    /// The answer ends before the first of these.
    #[serde(default)]
    pub stop: Option<StringOrList>,
    /// The answer ends at the first of these tokens, besides the model's own.
    #[serde(default)]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Any number asks for the chosen token's log-probability.
    #[serde(default)]
    pub logprobs: Option<u32>,
}

fn float_one() -> f32 {
    1.0
}

fn minus_one() -> i64 {
    -1
}

fn default_max_new_tokens() -> u32 {
    256
}

fn yes() -> bool {
    true
}

/// One string, or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StringOrList {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl StringOrList {
    /// All of them that are not empty.
    pub fn into_vec(self) -> Vec<String> {
        let all = match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        };
        all.into_iter().filter(|text| !text.is_empty()).collect()
    }
}

/// One frame of an answer: a JSON object followed by a byte 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// The whole answer so far, not a delta; the message when `error_code` is not 0.
    pub text: String,
    /// 0, or one of [`error_code`]; such a frame is the last.
    pub error_code: u32,
    /// What the answer has cost so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<FrameUsage>,
    /// `None` until the last frame; then `stop` or `length`.
    #[serde(default)]
    pub finish_reason: Option<String>,
    /// Log-probabilities so far, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<FrameLogprobs>,
}

/// What an answer has cost so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FrameUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
}

/// Log-probabilities of an answer so far: four lists of one length.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct FrameLogprobs {
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<u32>,
    /// The tokens as text.
    pub tokens: Vec<String>,
    /// The log-probability of each token; the first of an echoed prompt has none.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens at each place.
    pub top_logprobs: Vec<Option<serde_json::Map<String, serde_json::Value>>>,
}

/// The numbers in [`Frame::error_code`].
pub mod error_code {
    /// The request is not what the schema says.
    pub const VALIDATION: u32 = 40001;
    /// Nobody serves the model.
    pub const INVALID_MODEL: u32 = 40301;
    /// A parameter is out of range.
    pub const PARAM_OUT_OF_RANGE: u32 = 40302;
    /// The prompt exceeds the context.
    pub const CONTEXT_OVERFLOW: u32 = 40303;
    /// The worker is full.
    pub const ENGINE_OVERLOADED: u32 = 42903;
    /// Something failed in the worker.
    pub const INTERNAL: u32 = 50001;
    /// The controller knows no worker for the model.
    pub const CONTROLLER_NO_WORKER: u32 = 50005;
    /// The controller's worker did not answer.
    pub const CONTROLLER_WORKER_TIMEOUT: u32 = 50006;
}

/// Body of the worker's `/worker_get_embeddings`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbeddingsParams {
    /// The model's name; a single-model worker ignores it.
    #[serde(default)]
    pub model: String,
    /// The texts.
    pub input: Vec<String>,
    /// `base64`, or anything else for lists of numbers.
    #[serde(default)]
    pub encoding_format: Option<String>,
}

/// Body of the worker's `/count_token`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountTokenParams {
    /// The model's name; a single-model worker ignores it.
    #[serde(default)]
    pub model: String,
    /// The prompt, already rendered.
    pub prompt: String,
}

/// Answer of the worker's `/count_token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCount {
    /// Tokens of the prompt.
    pub count: u32,
    /// 0 on success.
    pub error_code: u32,
}

/// Answer of the worker's `/model_details`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelDetails {
    /// Longest prompt with its answer, in tokens.
    pub context_length: u32,
}

/// Answer of the worker's `/worker_get_conv_template`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConversationReply {
    /// The template.
    pub conv: Conversation,
}

/// How a FastChat gateway renders a conversation for a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// The template's name.
    pub name: String,
    /// Holds `{system_message}`.
    pub system_template: String,
    /// The system message when the client sends none.
    pub system_message: String,
    /// Labels of the user and of the assistant.
    pub roles: [String; 2],
    /// Example turns put before the dialogue: label and text.
    pub messages: Vec<(String, String)>,
    /// Number of example turns.
    pub offset: u32,
    /// Which of FastChat's styles joins the turns.
    pub sep_style: u32,
    /// First separator.
    pub sep: String,
    /// Second separator, of styles that have two.
    pub sep2: Option<String>,
    /// The answer ends before the first of these.
    pub stop_str: Option<StringOrList>,
    /// The answer ends at the first of these tokens.
    pub stop_token_ids: Option<Vec<u32>>,
}
