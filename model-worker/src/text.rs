//! A model that reads whole texts as requests see it: texts to tokens, tokens to vectors, scores or entities.
//!
//! * `prepare`: texts and ids to tokens that fit; the only place where they are checked.
//! * `embed`, `rerank`, `classify`, `entities`: one file for each thing that such a model may be for.
//! * [`tokenize`]: the vocabulary of any model.

mod classify;
mod embed;
mod entities;
mod prepare;
mod rerank;
pub mod tokenize;

use std::time::{Duration, Instant};

use muster_shared::control::ModelCard;
use muster_shared::problem::{Kind, Problem};

use crate::encoder::EncoderHandle;
use crate::encoder::head::{Encoded, Tokens};
use crate::engine::EngineError;
use crate::language::problem;
use crate::model::manifest::{Task, TextRules};
use crate::tokenizer::Tokenizer;

/// A loaded model that reads whole texts.
#[derive(Debug, Clone)]
pub struct TextModel {
    /// The name clients ask for.
    pub name: String,
    /// What it is for.
    pub task: Task,
    /// The model's own tokenizer.
    pub tokenizer: Tokenizer,
    /// Longest text, in tokens.
    pub max_tokens: usize,
    /// Whether the second of two texts is marked as such.
    pub segments: bool,
    /// What is done to a text before it is tokenized.
    pub rules: TextRules,
    /// The encoder.
    pub encoder: EncoderHandle,
}

impl TextModel {
    /// What the controller is told.
    pub fn card(&self) -> ModelCard {
        ModelCard {
            name: self.name.clone(),
            kind: Some(self.task.kind()),
            context_length: Some(count(self.max_tokens)),
            capacity: Some(self.encoder.capacity()),
            revision: None,
        }
    }

    /// Runs prepared texts; gives what became of each in the same order.
    async fn run(
        &self,
        kind: &'static str,
        texts: Vec<Tokens>,
        deadline: Option<Instant>,
    ) -> Result<Vec<Encoded>, Problem> {
        crate::metrics::request(&self.name, kind);
        let encoded = self.encoder.encode(texts, deadline).await.map_err(|error| match error {
            // It was tried without company, too: the text itself is what the graph cannot read.
            EngineError::Step(error) => Problem::new(Kind::Run, error.to_string()),
            other => problem(other),
        })?;
        match encoded.iter().position(|encoded| !encoded.is_finite()) {
            None => Ok(encoded),
            Some(index) => {
                let message = format!("the model gave a number that is none (NaN or infinite) for text {index}");
                Err(Problem::new(Kind::Run, message))
            }
        }
    }
}

/// When a request that has just come is over.
fn deadline(timeout_ms: Option<u64>) -> Option<Instant> {
    timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)))
}

/// Numbers for the text as a whole: what the heads of embedding models and classifiers give.
fn dense(encoded: Encoded) -> Result<Vec<f32>, Problem> {
    match encoded {
        Encoded::Dense(numbers) => Ok(numbers),
        Encoded::Sparse(_) | Encoded::Tokens { .. } => Err(unlike("numbers for the whole text")),
    }
}

/// The head gave what the model's kind does not have: heads are chosen by kind, so that this is a fault of ours.
fn unlike(expected: &str) -> Problem {
    Problem::new(Kind::Bug, format!("the model did not give {expected}"))
}

/// Tokens of all texts.
fn total(texts: &[Tokens]) -> u32 {
    count(texts.iter().map(Tokens::len).sum())
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
