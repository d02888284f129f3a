//! Text encoders: what a folder's graph gives, and what shall be made of it.
//!
//! * `io`: the graph's inputs and the output to read; `limits`: the longest text.
//! * [`task`]: what the model is for, and the last step behind the graph.
//! * `sentence`: sentence-transformers' modules and [`Prompts`]; `classifier`: models that judge.

mod classifier;
mod io;
mod limits;
mod sentence;
mod task;

pub use sentence::Prompts;
pub use task::Task;

use super::super::files::ModelFiles;
use super::super::onnx::encoder::EncoderIo;
use super::super::{EncoderOutput, ModelError};
use super::{Configs, Graph, number};
use crate::encoder::head::Head;
use sentence::Sentence;
use std::sync::Arc;

/// A text encoder's files.
#[derive(Debug, Clone)]
pub struct EncoderManifest {
    /// The graph.
    pub graph: Graph,
    /// Names of its inputs and its output.
    pub io: EncoderIo,
    /// What the model is for.
    pub task: Task,
    /// Longest text, in tokens.
    pub max_tokens: usize,
    /// The token that fills up shorter texts of a batch.
    pub padding: u32,
    /// Whether the second of two texts is marked as such.
    pub segments: bool,
    /// What is done to a text before it is tokenized.
    pub rules: TextRules,
}

/// What is done to a text before it is tokenized.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TextRules {
    /// What may be put before it.
    pub prompts: Prompts,
    /// Whether white space around it is taken away, as sentence-transformers does.
    pub trim: bool,
    /// Whether capitals become small letters.
    pub lower_case: bool,
    /// The token of what the vocabulary does not hold, by its text.
    pub unknown: Option<String>,
}

impl EncoderManifest {
    pub(super) fn read(graph: Graph, files: &ModelFiles, configs: &Configs) -> Result<Self, ModelError> {
        let sentence = Sentence::read(files)?;
        let facts = Facts { graph: &graph, configs, files };
        let output = facts.output()?;
        let task = task::read(&facts, &output, &sentence)?;
        let padding = limits::padding(configs);
        let io = facts.io(output, padding)?;
        let types = number(configs.config.as_ref(), "/type_vocab_size");
        Ok(Self {
            segments: io.token_type_ids.is_some() && types != Some(1),
            max_tokens: limits::max_tokens(&facts, &sentence, padding)?,
            rules: TextRules {
                prompts: sentence.prompts,
                trim: sentence.is_one,
                lower_case: sentence.lower_case,
                unknown: unknown_token(configs),
            },
            padding,
            io,
            task,
            graph,
        })
    }

    /// The last step behind the graph, whose weights are in `files`; `output` is what the graph gave for a text.
    ///
    /// # Errors
    /// When weights are missing or unusable, or the graph does not give what the configuration says.
    pub fn head(&self, files: &ModelFiles, output: &EncoderOutput) -> Result<Arc<dyn Head>, ModelError> {
        self.task.head(files, &self.graph.name, output)
    }
}

fn unknown_token(configs: &Configs) -> Option<String> {
    let token = configs.tokenizer.as_ref()?.get("unk_token")?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// What a folder tells of its graph.
struct Facts<'a> {
    graph: &'a Graph,
    configs: &'a Configs,
    files: &'a ModelFiles,
}

impl Facts<'_> {
    fn unknown(&self, reason: impl Into<String>) -> ModelError {
        ModelError::UnknownLayout { file: self.graph.name.clone(), reason: reason.into() }
    }

    /// The end of the architecture's name in `config.json`: `ForMaskedLM` of `BertForMaskedLM`, `Model` of `BertModel`.
    fn architecture(&self) -> Option<&str> {
        let name = self.configs.config.as_ref()?.get("architectures")?.get(0)?.as_str()?;
        name.find("For").map(|at| &name[at..]).or(Some(name))
    }

    /// The kind of network in `config.json`: `bert`, say.
    fn model_type(&self) -> Option<&str> {
        self.configs.config.as_ref()?.get("model_type")?.as_str()
    }
}

#[cfg(test)]
mod tests;
