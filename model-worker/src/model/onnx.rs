//! ONNX models: what is in a graph, and how to run it. The only folder that names `ort`.
//!
//! * [`runtime`] finds and starts ONNX Runtime.
//! * [`graph`] reads what an ONNX file says of itself, and refuses weights outside the model's folder; [`bounds`] refuses
//!   sizes that cannot be true.
//! * [`rewrite`] changes a language model's graph so that its head runs on chosen positions only.
//! * [`session`] loads a graph into ONNX Runtime; [`optimised`] keeps what it makes of it for the next start.
//! * [`spin`] says what threads do between two pieces of work; `tuning` stops them where `contention` shows that other
//!   work wants their processors.
//! * `gqa` and [`mod@concat`] run the two layouts of language models; [`encoder`] runs encoders. `lent` holds the memory
//!   that ONNX Runtime reads and writes in place.
//! * `words`: what it says, fit for a client.

pub mod bounds;
pub mod concat;
mod contention;
pub mod encoder;
mod gqa;
pub mod graph;
mod lent;
pub mod optimised;
pub mod rewrite;
pub mod runtime;
pub mod session;
pub mod spin;
pub mod tensor;
mod tuning;
mod wire;
pub(crate) mod words;

use std::num::NonZeroUsize;

use super::manifest::{CausalManifest, EncoderManifest, Graph, Layout};
use super::{CausalModel, CausalShape, EncoderModel, ModelError};
use crate::encoder::batch::BatchLimits;
use gqa::GqaModel;
use lent::f16;
use runtime::Runtime;
use session::SessionOptions;

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
    /// Numbers in the caches.
    pub caches_element: Element,
    /// Numbers in the logits.
    pub logits_element: Element,
}

/// Floating-point numbers that a graph takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
}

impl Element {
    /// Size of one number in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
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
    runtime: &'static Runtime,
    options: &SessionOptions,
    manifest: CausalManifest,
    (rows, context): (usize, usize),
) -> Result<Box<dyn CausalModel>, ModelError> {
    note_shared_scales(&manifest.graph);
    let options = &match manifest.layout {
        Layout::Gqa => options.clone(),
        Layout::Concat => SessionOptions { spin: options.spin.steady(), ..options.clone() },
    };
    let graph = session::open_causal(runtime, &manifest.graph.source, options, &manifest.graph.name)?;
    let io = &manifest.io;
    let shape =
        CausalShape { vocab: manifest.vocab, context: manifest.context.min(context), rows, all_positions: true };
    Ok(match (manifest.layout, io.caches_element, io.logits_element) {
        (Layout::Gqa, Element::F32, Element::F32) => Box::new(GqaModel::<f32, f32>::new(graph, io, shape)?),
        (Layout::Gqa, Element::F32, Element::F16) => Box::new(GqaModel::<f32, f16>::new(graph, io, shape)?),
        (Layout::Gqa, Element::F16, Element::F32) => Box::new(GqaModel::<f16, f32>::new(graph, io, shape)?),
        (Layout::Gqa, Element::F16, Element::F16) => Box::new(GqaModel::<f16, f16>::new(graph, io, shape)?),
        (Layout::Concat, ..) => Box::new(concat::ConcatModel::new(graph.session, manifest.io, shape, graph.head)),
    })
}

/// Loads an encoder as often as there are threads, each session with one of them: a run is too short to be shared.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words.
pub fn load_encoders(
    runtime: &'static Runtime,
    options: &SessionOptions,
    manifest: &EncoderManifest,
) -> Result<Vec<Box<dyn EncoderModel>>, ModelError> {
    let one = SessionOptions { threads: NonZeroUsize::MIN, ..options.clone() };
    let sessions = session::open_several(runtime, &manifest.graph, &one, options.threads)?;
    let encoder = |session| Box::new(encoder::OnnxEncoder::new(session, manifest.io.clone())) as Box<dyn EncoderModel>;
    Ok(sessions.into_iter().map(encoder).collect())
}

/// How much of an encoder's work may run together on a processor: nothing where a text's answer would depend on it.
pub fn encoder_limits(graph: &Graph) -> BatchLimits {
    if !graph.facts.shares_scales() {
        return BatchLimits::PROCESSOR;
    }
    let graph = &graph.name;
    tracing::info!(graph, "this int8 graph takes one scale for all that runs together, so texts run one by one");
    BatchLimits::ALONE
}

fn note_shared_scales(graph: &Graph) {
    if graph.facts.shares_scales() {
        let graph = &graph.name;
        tracing::info!(
            graph,
            "this int8 graph takes one scale for all that runs together, so an answer may depend on what runs beside it"
        );
    }
}

/// ONNX Runtime's words for a failed run.
fn run_error(error: ort::Error) -> ModelError {
    ModelError::Run(words::without_paths(&error.to_string()))
}
