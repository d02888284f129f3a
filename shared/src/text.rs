//! What a gateway asks of models that judge texts, and of any model's tokenizer.
//!
//! Every request is the JSON body of a `POST` to a worker, at the path that stands with it.

use serde::{Deserialize, Serialize};

use crate::generate::Prompt;

/// `POST /rerank`: how well do texts answer a query? Answered with a [`RerankResponse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RerankRequest {
    /// Name for logs.
    #[serde(default)]
    pub request_id: String,
    /// The model's name.
    pub model: String,
    /// What is sought.
    pub query: String,
    /// Where it may be found, at least one text.
    pub documents: Vec<String>,
    /// Gives the model's own numbers instead of their logistic function.
    #[serde(default)]
    pub raw_scores: bool,
    /// Cuts a text that is too long, the document first, instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
    /// Milliseconds from its arrival at the worker after which it fails, whether it waits or runs; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// How well the texts answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RerankResponse {
    /// One for each document, in their order: higher is better. From 0 to 1, unless raw scores were asked for or the
    /// model's configuration says that its numbers are to be taken as they are.
    pub scores: Vec<f32>,
    /// Tokens of all pairs of query and document.
    pub prompt_tokens: u32,
}

/// `POST /classify`: of which class is a text? Answered with a [`ClassifyResponse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassifyRequest {
    /// Name for logs.
    #[serde(default)]
    pub request_id: String,
    /// The model's name.
    pub model: String,
    /// What to classify, at least one.
    pub inputs: Vec<ClassifyInput>,
    /// Gives the model's own numbers instead of probabilities.
    #[serde(default)]
    pub raw_scores: bool,
    /// Cuts a text that is too long instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
    /// Milliseconds from its arrival at the worker after which it fails, whether it waits or runs; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// One text to classify, or two that are judged together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClassifyInput {
    /// One.
    Text(String),
    /// A premise and a hypothesis, say.
    Pair(String, String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// Of which classes the texts are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifyResponse {
    /// Names of the classes.
    pub labels: Vec<String>,
    /// One for each input: a number for each class, in the order of the names.
    pub scores: Vec<Vec<f32>>,
    /// Whether a text may be of several classes: then each number stands for itself, and they need not sum to 1.
    pub multi_label: bool,
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
}

/// `POST /entities`: which parts of a text are names of something? Answered with an [`EntitiesResponse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntitiesRequest {
    /// Name for logs.
    #[serde(default)]
    pub request_id: String,
    /// The model's name.
    pub model: String,
    /// Texts, at least one.
    pub inputs: Vec<String>,
    /// How tokens become entities.
    #[serde(default)]
    pub aggregation: Aggregation,
    /// Cuts a text that is too long instead of refusing it.
    #[serde(default)]
    pub truncate: bool,
    /// Milliseconds from its arrival at the worker after which it fails, whether it waits or runs; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// How tokens become entities; the names and rules of transformers' token classification pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Every token for itself, those without an entity left out.
    None,
    /// Neighbours of one entity are put together, as their `B-` and `I-` say.
    #[default]
    Simple,
    /// The same, but a word is what its first token is.
    First,
    /// The same, but a word is what the mean of its tokens' probabilities says.
    Average,
    /// The same, but a word is what its surest token is.
    Max,
}

impl Aggregation {
    /// Every one of them.
    pub const ALL: [Self; 5] = [Self::None, Self::Simple, Self::First, Self::Average, Self::Max];

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Simple => "simple",
            Self::First => "first",
            Self::Average => "average",
            Self::Max => "max",
        }
    }
}

/// The entities of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntitiesResponse {
    /// One for each input: its entities in the order in which they stand there.
    pub entities: Vec<Vec<Entity>>,
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
}

/// One entity in a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entity {
    /// What it is: `PER`, or `B-PER` where tokens are not put together.
    pub label: String,
    /// How sure the model is, from 0 to 1.
    pub score: f32,
    /// Its part of the text.
    pub text: String,
    /// Where it begins, in characters.
    pub start: u32,
    /// Where it ends, in characters.
    pub end: u32,
}

/// `POST /tokenize`: the tokens of a prompt. Answered with a [`TokenizeResponse`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenizeRequest {
    /// The model's name.
    pub model: String,
    /// A text, or a conversation for a model that has a chat template.
    pub prompt: Prompt,
    /// Whether a text gets the tokens that the model expects around it. A conversation's template has its own.
    pub add_special_tokens: bool,
}

/// The tokens of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeResponse {
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, as they stand in the vocabulary.
    pub pieces: Vec<String>,
    /// Longest prompt of the model, in tokens.
    pub max_tokens: u32,
}

/// `POST /detokenize`: the text of tokens. Answered with a [`DetokenizeResponse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeRequest {
    /// The model's name.
    pub model: String,
    /// Ids of its vocabulary.
    pub tokens: Vec<u32>,
}

/// The text of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetokenizeResponse {
    /// The text, special tokens included.
    pub text: String,
}
