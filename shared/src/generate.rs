//! What a gateway asks of a language model, and the events it gets back.
//!
//! `POST /generate` with a [`GenerateRequest`] answers with a stream of server-sent [`Event`]s, or with a
//! [`Problem`] and its status when the request was refused before it began.

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// What the model is to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A conversation, rendered by the model's own chat template.
    Chat(Chat),
    /// Text, tokenized as it is.
    Text(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Chat {
    /// The turns so far.
    pub messages: Vec<Message>,
    /// More variables for the chat template.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub template_arguments: serde_json::Map<String, serde_json::Value>,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever else the chat template knows.
    pub role: String,
    /// The text; absent where the turn has none.
    pub content: Option<String>,
    /// Everything else the client sent with the turn; the chat template may use it.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

/// How the next token is chosen from the model's logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// 0 is greedy; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps the so many likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens at least this fraction as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Keeps the tokens whose surprise is nearest to the entropy, until their probability reaches this; 1 keeps all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted, times the count, from the logits of tokens in the answer; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed draws the same tokens; absent: drawn at random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// `POST /generate`: continue a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// Name for logs, from the client or made up by the gateway.
    #[serde(default)]
    pub request_id: String,
    /// The model's name.
    pub model: String,
    /// What it is to continue.
    pub prompt: Prompt,
    /// How tokens are chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Independent answers to the one prompt, at least 1; answer `i` draws with `seed + i`.
    #[serde(default = "one")]
    pub choices: u32,
    /// Longest answer in tokens; absent: up to the end of the context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// The answer ends before the first of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// The answer ends at the first of these, besides the model's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop_token_ids: Vec<u32>,
    /// Goes on past the model's own end of answer; for benchmarks.
    #[serde(default)]
    pub ignore_eos: bool,
    /// No token that ends the answer is chosen before so many others; at most `max_tokens`. A stop string may still end
    /// it.
    #[serde(default)]
    pub min_tokens: u32,
    /// Only these tokens are chosen; absent: any. An end of answer must be among them to be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Log-probabilities wanted: of the token itself, and of so many of its likeliest rivals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Whether the answer begins with the prompt.
    #[serde(default)]
    pub echo: bool,
    /// Keys and values of the prompt are shared only with requests of the same salt; those without one share
    /// among themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// Higher runs first when requests wait; 0 is usual.
    #[serde(default)]
    pub priority: i32,
    /// Time from the arrival at the worker after which the answer ends with a problem of the kind `timeout`, whether it
    /// waits or runs; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What another worker has answered already: go on from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

/// Answers that another worker has begun, to be continued as it would have.
///
/// The worker that goes on takes the tokens as its own: its samplers, stop strings and restrictions are brought to where
/// those of the other one stood, and it sends only what the client does not have. So the request must name its seed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resume {
    /// What the other worker called its vocabulary in [`Event::Started`]; one with another vocabulary must refuse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<String>,
    /// One for each choice.
    pub choices: Vec<ResumedChoice>,
}

/// One answer that another worker has begun.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ResumedChoice {
    /// Every token of [`Event::Delta`] so far; not looked at once it has ended.
    pub tokens: Vec<u32>,
    /// Bytes of text so far, an echoed prompt included.
    pub text_bytes: u64,
    /// Set when it has ended: the tokens that [`Event::Finished`] counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<u32>,
}

impl GenerateRequest {
    /// One answer to a prompt, everything else as where a request does not say.
    pub fn new(model: impl Into<String>, prompt: Prompt) -> Self {
        Self {
            request_id: String::new(),
            model: model.into(),
            prompt,
            sampling: Sampling::default(),
            choices: one(),
            max_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            min_tokens: 0,
            allowed_token_ids: None,
            logprobs: None,
            echo: false,
            cache_salt: None,
            priority: 0,
            timeout_ms: None,
            resume: None,
        }
    }
}

fn one() -> u32 {
    1
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// By the model's own end, or a stop string or token.
    Stop,
    /// At `max_tokens`, or at the end of the context.
    Length,
}

/// One likely token and how likely it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// Its id in the model's vocabulary.
    pub id: u32,
    /// Its text, with U+FFFD where it is not whole UTF-8.
    pub token: String,
    /// Its bytes; absent where the model's vocabulary does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Vec<u8>>,
    /// Natural logarithm of its probability, before temperature and filters.
    pub logprob: f32,
}

/// A chosen token and its rivals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The token itself.
    #[serde(flatten)]
    pub chosen: TopLogprob,
    /// The likeliest tokens at its place, likeliest first.
    pub top: Vec<TopLogprob>,
}

/// What a request has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, counted once.
    pub prompt_tokens: u32,
    /// Tokens of all answers.
    pub completion_tokens: u32,
    /// Tokens of the prompt whose keys and values were in a cache.
    #[serde(default)]
    pub cached_tokens: u32,
}

/// One event of an answer. A stream is `Started`, then `Delta`s and `Finished`s of each choice, then `Done`;
/// or it breaks off with `Failed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The prompt was accepted; sent before the first token is computed.
    Started {
        /// Length of the prompt in tokens.
        prompt_tokens: u32,
        /// Names the vocabulary of token ids; equal names mean equal ids. Absent where a worker does not tell its ids.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vocabulary: Option<String>,
    },
    /// More of one answer.
    Delta {
        /// Which answer.
        choice: u32,
        /// New text: whole UTF-8, and never a piece of a stop string. May be empty while either is undecided.
        text: String,
        /// The new tokens, so that the answer can be resumed elsewhere.
        tokens: Vec<u32>,
        /// One entry for each new token, where asked for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<TokenLogprob>,
    },
    /// One answer has ended.
    Finished {
        /// Which answer.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// Tokens chosen, one that ended the answer included; 0 where a worker does not tell.
        #[serde(default)]
        tokens: u32,
    },
    /// All answers have ended.
    Done {
        /// What they cost.
        usage: Usage,
    },
    /// The request broke off; nothing follows.
    Failed {
        /// Why.
        problem: Problem,
    },
}
