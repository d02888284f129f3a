//! ONNX models: what is in a graph, and how to run it. The only folder that names `ort`.
//!
//! * [`runtime`] finds and starts ONNX Runtime.
//! * [`graph`] reads what an ONNX file says of itself, and refuses weights outside the model's folder.
//! * [`rewrite`] changes a language model's graph so that its head runs on chosen positions only.
//! * [`session`] loads a graph into ONNX Runtime; [`optimised`] keeps what it makes of it for the next start.
//! * [`gqa`] and [`mod@concat`] run the two layouts of language models; [`encoder`] runs encoders.

pub mod concat;
pub mod encoder;
pub mod gqa;
pub mod graph;
pub mod optimised;
pub mod rewrite;
pub mod runtime;
pub mod session;

use super::manifest::{CausalManifest, EncoderManifest, Layout};
use super::{CausalModel, CausalShape, EncoderModel, ModelError};
use runtime::Runtime;
use session::{CausalSession, SessionOptions};

/// Names and sizes of a language model's inputs and outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausalIo {
    /// Pairs of input and output that hold keys or values, in the order of layers.
    pub caches: Vec<CacheIo>,
    /// Key and value heads of one layer.
    pub kv_heads: usize,
    /// Numbers in one head.
    pub head_size: usize,
    /// Whether the graph wants the position of each token.
    pub position_ids: bool,
}

/// One key or value cache of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheIo {
    /// Input that takes the past.
    pub past: String,
    /// Output that gives the present.
    pub present: String,
}

/// Loads a language model with room for `rows` sequences of at most `context` tokens.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words.
pub fn load_causal(
    runtime: &Runtime,
    options: &SessionOptions,
    manifest: CausalManifest,
    (rows, context): (usize, usize),
) -> Result<Box<dyn CausalModel>, ModelError> {
    let CausalSession { session, head } =
        session::open_causal(runtime, &manifest.graph.source, options, &manifest.graph.name)?;
    let shape = CausalShape {
        vocab: manifest.vocab,
        context: manifest.context.min(context),
        rows,
        token_bytes: manifest.io.caches.len() * manifest.io.kv_heads * manifest.io.head_size * size_of::<f32>(),
        // The models below ask for the last position only.
        all_positions: false,
    };
    Ok(match manifest.layout {
        Layout::Gqa => Box::new(gqa::GqaModel::new(session, head, manifest.io, shape)),
        Layout::Concat => Box::new(concat::ConcatModel::new(session, head, manifest.io, shape)),
    })
}

/// Loads an encoder.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words.
pub fn load_encoder(
    runtime: &Runtime,
    options: &SessionOptions,
    manifest: &EncoderManifest,
) -> Result<Box<dyn EncoderModel>, ModelError> {
    let session = session::open(runtime, &manifest.graph.source, options, &manifest.graph.name)?;
    Ok(Box::new(encoder::OnnxEncoder::new(session, manifest.io.clone())))
}

/// Copies the logits of the last position out of `[1, positions, vocab]`.
fn last_logits(shape: &[i64], logits: &[f32], into: &mut [f32]) -> Result<(), ModelError> {
    // A vocabulary of another size would shift every token id without a sign.
    if shape.last().copied() != i64::try_from(into.len()).ok() || logits.len() < into.len() {
        return Err(ModelError::Run(format!(
            "logits have the shape {shape:?}, but the model's configuration tells a vocabulary of {}",
            into.len()
        )));
    }
    into.copy_from_slice(&logits[logits.len() - into.len()..]);
    Ok(())
}

/// ONNX Runtime's words for a failed run.
fn run_error(error: ort::Error) -> ModelError {
    ModelError::Run(error.to_string())
}

/// Token ids as the graphs take them.
fn as_i64(tokens: &[u32]) -> Vec<i64> {
    tokens.iter().map(|&token| i64::from(token)).collect()
}

/// `[past, past + 1, …]`, as many as there are new tokens.
fn positions(past: usize, new: usize) -> Vec<i64> {
    (past as i64..(past + new) as i64).collect()
}
