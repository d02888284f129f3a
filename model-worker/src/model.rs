//! Models as the engine and the encoder see them: tokens in, numbers out.
//!
//! [`CausalModel`] continues a sequence, [`EncoderModel`] reads one whole. Behind each stands ONNX Runtime
//! ([`onnx`]), or for the first a seeded [`fake`] that needs no files. [`mod@tensor`] is any other graph: arrays in, arrays
//! out. [`files`] and [`manifest`] find out what a folder holds.

pub mod fake;
pub mod files;
pub mod manifest;
pub mod onnx;
pub(crate) mod revision;
pub mod tensor;

use std::path::PathBuf;

/// Room for one sequence's keys and values, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Row(pub usize);

/// What a causal model is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CausalShape {
    /// Length of the logits; may exceed the tokenizer's vocabulary.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Sequences whose keys and values it can hold at once.
    pub rows: usize,
    /// Whether [`Positions::All`] can be had: a graph whose head was cut to the last position cannot give more.
    pub all_positions: bool,
}

/// For which of the tokens read logits are wanted: the head of a model is a good part of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// For none: more of the prompt follows.
    None,
    /// For the last.
    Last,
    /// For each.
    All,
}

/// One more token for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// The token.
    pub token: u32,
    /// Tokens that the row holds before it.
    pub past: usize,
}

/// A language model that keeps the keys and values of several sequences, one a row.
///
/// A row begins anew with `past == 0`; whatever it held beyond `past` is forgotten. Row numbers are places, not names:
/// the engine keeps the rows that decode in front, and moves sequences with [`CausalModel::swap`].
pub trait CausalModel: Send {
    /// What it is like.
    fn shape(&self) -> CausalShape;

    /// Reads `tokens` after the first `past` tokens that the row holds; gives logits `[wanted, vocab]`.
    ///
    /// `tokens` is not empty, and `past + tokens.len()` does not exceed the context.
    ///
    /// # Errors
    /// [`ModelError::Run`] when the runtime fails; what the row held before `past` is still there.
    fn read(&mut self, row: Row, tokens: &[u32], past: usize, wanted: Positions) -> Result<&mut [f32], ModelError>;

    /// Adds one token to each of the first `next.len()` rows; gives logits `[next.len(), vocab]`.
    ///
    /// # Errors
    /// As [`CausalModel::read`]; every row still holds its past, so each can be tried alone.
    fn decode(&mut self, next: &[Next]) -> Result<&mut [f32], ModelError>;

    /// Exchanges what two rows hold, of which only the first so many tokens count.
    fn swap(&mut self, a: (Row, usize), b: (Row, usize));

    /// Makes the row `to` hold the first `tokens` that the row `from` holds.
    ///
    /// # Errors
    /// [`ModelError::Run`] when there is no memory; `to` holds nothing then.
    fn copy(&mut self, from: Row, to: Row, tokens: usize) -> Result<(), ModelError>;

    /// Gives up what a row holds.
    fn release(&mut self, row: Row);
}

/// Several texts of one batch, padded at the end to the longest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderBatch {
    /// Number of texts.
    pub rows: usize,
    /// Tokens of the longest.
    pub columns: usize,
    /// `[rows, columns]`; padding holds the padding token.
    pub ids: Vec<i64>,
    /// `[rows, columns]`; 1 for a token, 0 for padding.
    pub mask: Vec<i64>,
    /// `[rows, columns]`; 1 for a token of the second of two texts, else 0.
    pub types: Vec<i64>,
}

/// What an encoder gives for a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum EncoderOutput {
    /// `[rows, columns, width]`: one vector a token, to be pooled.
    Tokens {
        /// The numbers, row by row.
        values: Vec<f32>,
        /// Numbers in one vector.
        width: usize,
    },
    /// `[rows, width]`: the graph has pooled already.
    Pooled {
        /// The numbers, row by row.
        values: Vec<f32>,
        /// Numbers in one vector.
        width: usize,
    },
}

/// A model that reads whole texts.
pub trait EncoderModel: Send {
    /// Encodes a batch.
    ///
    /// # Errors
    /// [`ModelError::Run`] when the runtime fails.
    fn encode(&mut self, batch: &EncoderBatch) -> Result<EncoderOutput, ModelError>;
}

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The folder does not exist.
    #[error("model folder {} does not exist; give a folder that holds an ONNX model, or ORG/NAME of a repository of the Hugging Face hub", .0.display())]
    FolderMissing(PathBuf),
    /// The path is no folder.
    #[error("{} is not a folder; give the folder that holds the ONNX model and its tokenizer", .0.display())]
    NotAFolder(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: String,
        /// The system's own words.
        #[source]
        source: std::io::Error,
    },
    /// A file that the layout needs is not there.
    #[error("{file} is missing: {expected}")]
    FileMissing {
        /// The file.
        file: String,
        /// What it is needed for.
        expected: String,
    },
    /// The user asked for a graph that is not there.
    #[error("{folder} has no variant `{variant}`; it has {there}")]
    NoVariant {
        /// The folder.
        folder: String,
        /// What was asked for.
        variant: String,
        /// What there is.
        there: String,
    },
    /// A file does not hold what it should.
    #[error("{file} is not usable: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The graph is none that muster can serve.
    #[error("{file}: no layout recognised: {reason}")]
    UnknownLayout {
        /// The graph.
        file: String,
        /// What was found, and what was expected.
        reason: String,
    },
    /// The graph keeps weights where it must not.
    #[error("{file}: external data `{location}` {reason}; weights must lie inside the model's folder")]
    ExternalData {
        /// The graph.
        file: String,
        /// Where it says its weights are.
        location: String,
        /// What is wrong with that place.
        reason: String,
    },
    /// ONNX Runtime is not there, or is the wrong one.
    #[error(transparent)]
    Runtime(#[from] onnx::runtime::RuntimeError),
    /// ONNX Runtime refused the graph.
    #[error("ONNX Runtime cannot load {file}: {reason}")]
    Load {
        /// The graph.
        file: String,
        /// ONNX Runtime's own words.
        reason: String,
    },
    /// There is no memory for keys and values.
    #[error("cannot reserve {} for keys and values; lower --slots, --kv-memory or --context-length", bytesize::ByteSize(*.bytes as u64))]
    Reserve {
        /// Memory wanted, in bytes.
        bytes: usize,
        /// The system's own words.
        #[source]
        source: std::io::Error,
    },
    /// There is less memory than was asked for.
    #[error(
        "keys and values shall have {}, but only {} of memory are free; lower --kv-memory, or give the worker more memory",
        bytesize::ByteSize(*.wanted), bytesize::ByteSize(*.free)
    )]
    NoMemory {
        /// Memory wanted, in bytes.
        wanted: u64,
        /// Memory that is free, in bytes.
        free: u64,
    },
    /// The memory for keys and values holds next to nothing.
    #[error(
        "keys and values have {}, which is not enough for {tokens} tokens; give them {} at least with --kv-memory",
        bytesize::ByteSize(*.given), bytesize::ByteSize(*.least)
    )]
    TooFewTokens {
        /// Memory that there is for them, in bytes.
        given: u64,
        /// Memory that they need at least, in bytes.
        least: u64,
        /// Tokens that this would hold.
        tokens: u64,
    },
    /// A run failed.
    #[error("a run of the model failed: {0}")]
    Run(String),
}
