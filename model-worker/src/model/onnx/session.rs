//! Loads a graph into ONNX Runtime.

use std::num::NonZeroUsize;

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::super::ModelError;
use super::super::files::GraphSource;
use super::runtime::Runtime;

/// How a session uses the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads that share the work of one operator.
    pub threads: NonZeroUsize,
    /// Whether idle threads spin instead of sleeping: a little faster on a machine of its own, ruinous on a shared one.
    pub spin: bool,
}

/// Loads a graph. `name` is the graph's name in errors.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words.
pub fn open(
    runtime: &Runtime,
    source: &GraphSource,
    options: SessionOptions,
    name: &str,
) -> Result<Session, ModelError> {
    let refused = |error: String| ModelError::Load { file: name.to_owned(), reason: error };
    let mut builder = configure(runtime, options).map_err(refused)?;
    match source {
        GraphSource::File(path) => builder.commit_from_file(path),
        GraphSource::Memory(bytes) => builder.commit_from_memory(bytes),
    }
    .map_err(|error| refused(error.to_string()))
}

fn configure(runtime: &Runtime, options: SessionOptions) -> Result<SessionBuilder, String> {
    // The builder's errors carry the builder, which cannot leave this thread: only their words are kept.
    let builder = Session::builder(&runtime.environment).map_err(|error| error.to_string())?;
    let builder = builder.with_optimization_level(GraphOptimizationLevel::All).map_err(|error| error.to_string())?;
    let builder = builder.with_intra_threads(options.threads.get()).map_err(|error| error.to_string())?;
    let builder = builder.with_inter_threads(1).map_err(|error| error.to_string())?;
    let builder = builder.with_intra_op_spinning(options.spin).map_err(|error| error.to_string())?;
    // Shapes change from run to run, so a plan of one run's memory is of no use to the next.
    builder.with_memory_pattern(false).map_err(|error| error.to_string())
}
