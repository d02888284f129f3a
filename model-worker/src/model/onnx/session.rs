//! Loads a graph into ONNX Runtime.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::super::ModelError;
use super::super::files::GraphSource;
use super::optimised::{Identity, Store};
use super::rewrite::{self, Head};
use super::runtime::Runtime;

/// How a session uses the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads that share the work of one operator.
    pub threads: NonZeroUsize,
    /// Whether idle threads spin instead of sleeping: a little faster on a machine of its own, ruinous on a shared one.
    pub spin: bool,
    /// The user's cache folder, `~/.cache` say, where optimised graphs are kept; `None` keeps none.
    pub optimised: Option<PathBuf>,
}

/// A language model's graph, loaded.
#[derive(Debug)]
pub struct CausalSession {
    /// The session.
    pub session: Session,
    /// For which positions it gives logits.
    pub head: Head,
}

/// Loads a graph as it is. `name` is the graph's name in errors.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words.
pub fn open(
    runtime: &Runtime,
    source: &GraphSource,
    options: &SessionOptions,
    name: &str,
) -> Result<Session, ModelError> {
    Opening { runtime, source, options, name, rewritten: None }.open()
}

/// Loads a language model's graph, changed so that its head runs on chosen positions where that can be done.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words; [`ModelError::Read`] when the file cannot be read.
pub fn open_causal(
    runtime: &Runtime,
    source: &GraphSource,
    options: &SessionOptions,
    name: &str,
) -> Result<CausalSession, ModelError> {
    let outcome = rewrite::choose_positions(&content(source, name)?);
    let rewritten = match outcome.changed {
        Ok(bytes) => bytes,
        Err(reason) => {
            tracing::info!(graph = name, reason, "the model's head cannot be restricted to chosen positions");
            return Ok(CausalSession { session: open(runtime, source, options, name)?, head: outcome.own });
        }
    };
    match (Opening { runtime, source, options, name, rewritten: Some(&rewritten) }).open() {
        Ok(session) => Ok(CausalSession { session, head: Head::Positions }),
        // ONNX Runtime 1.19 does not find weights beside a graph that comes from memory; 1.21 does.
        Err(error) => {
            let session = open(runtime, source, options, name)?;
            tracing::warn!(graph = name, %error, "serving the graph as it is: its head runs on more positions than needed");
            Ok(CausalSession { session, head: outcome.own })
        }
    }
}

fn content<'a>(source: &'a GraphSource, name: &str) -> Result<Cow<'a, [u8]>, ModelError> {
    match source {
        GraphSource::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
        GraphSource::File(path) => {
            std::fs::read(path).map(Cow::Owned).map_err(|source| ModelError::Read { file: name.to_owned(), source })
        }
    }
}

/// One graph on its way into ONNX Runtime.
struct Opening<'a> {
    runtime: &'a Runtime,
    source: &'a GraphSource,
    options: &'a SessionOptions,
    name: &'a str,
    /// What is loaded in place of the source's bytes; weights beside the source stay where they are.
    rewritten: Option<&'a [u8]>,
}

impl Opening<'_> {
    fn open(&self) -> Result<Session, ModelError> {
        if let Some(session) = self.open_optimised()? {
            return Ok(session);
        }
        let builder = self.configure(GraphOptimizationLevel::All);
        builder.and_then(|builder| self.commit(builder)).map_err(|reason| self.refused(reason))
    }

    fn refused(&self, reason: String) -> ModelError {
        ModelError::Load { file: self.name.to_owned(), reason }
    }

    /// Loads the graph that an earlier start optimised, or optimises it now; `None` when that is not wanted or fails.
    fn open_optimised(&self) -> Result<Option<Session>, ModelError> {
        let (Some(cache), GraphSource::File(path)) = (&self.options.optimised, self.source) else { return Ok(None) };
        let bytes = match self.rewritten {
            Some(bytes) => Cow::Borrowed(bytes),
            None => content(self.source, self.name)?,
        };
        let store = Store::new(cache);
        let identity = match Identity::of(path, &bytes, self.runtime) {
            Ok(identity) if identity.is_worth_keeping() => identity,
            Ok(_) => return Ok(None),
            Err(error) => {
                tracing::warn!(graph = self.name, %error, "cannot tell which optimised graph belongs to the model");
                return Ok(None);
            }
        };
        let loaded = store.load(&identity, |folder| self.save_optimised(folder), |graph| self.load_optimised(graph));
        match loaded {
            Ok(session) => Ok(Some(session)),
            Err(error) => {
                let folder = store.root().display();
                tracing::warn!(graph = self.name, %folder, %error, "serving without an optimised graph: starts take longer, and memory is not shared");
                Ok(None)
            }
        }
    }

    /// Optimises the graph, and writes it into a folder with its weights as the kernels of this processor want them.
    fn save_optimised(&self, folder: &Path) -> Result<(), String> {
        let builder = self.configure(GraphOptimizationLevel::All)?;
        let entry = |builder: SessionBuilder, key: &str, value: &str| {
            builder.with_config_entry(key, value).map_err(|error| error.to_string())
        };
        // Weights in a file of their own are mapped into memory, and so shared by all sessions and processes.
        let builder = entry(builder, "session.optimized_model_external_initializers_file_name", Store::WEIGHTS)?;
        let builder = entry(builder, "session.save_external_prepacked_constant_initializers", "1")?;
        let builder =
            builder.with_optimized_model_path(folder.join(Store::GRAPH)).map_err(|error| error.to_string())?;
        self.commit(builder).map(drop)
    }

    fn load_optimised(&self, graph: &Path) -> Result<Session, String> {
        // Optimising once more costs time, and would copy the weights that it touches.
        let mut builder = self.configure(GraphOptimizationLevel::Disable)?;
        builder.commit_from_file(graph).map_err(|error| error.to_string())
    }

    fn commit(&self, mut builder: SessionBuilder) -> Result<Session, String> {
        let session = match (self.rewritten, self.source) {
            (Some(bytes), GraphSource::File(path)) => {
                let folder = path.parent().and_then(Path::to_str).ok_or("its folder's name is not UTF-8")?;
                builder = builder
                    .with_config_entry("session.model_external_initializers_file_folder_path", folder)
                    .map_err(|error| error.to_string())?;
                builder.commit_from_memory(bytes)
            }
            (Some(bytes), GraphSource::Memory(_)) => builder.commit_from_memory(bytes),
            (None, GraphSource::File(path)) => builder.commit_from_file(path),
            (None, GraphSource::Memory(bytes)) => builder.commit_from_memory(bytes),
        };
        session.map_err(|error| error.to_string())
    }

    fn configure(&self, level: GraphOptimizationLevel) -> Result<SessionBuilder, String> {
        // The builder's errors carry the builder, which cannot leave this thread: only their words are kept.
        let builder = Session::builder(&self.runtime.environment).map_err(|error| error.to_string())?;
        let builder = builder.with_optimization_level(level).map_err(|error| error.to_string())?;
        let builder = builder.with_intra_threads(self.options.threads.get()).map_err(|error| error.to_string())?;
        let builder = builder.with_inter_threads(1).map_err(|error| error.to_string())?;
        let builder = builder.with_intra_op_spinning(self.options.spin).map_err(|error| error.to_string())?;
        // Shapes change from run to run, so a plan of one run's memory is of no use to the next.
        builder.with_memory_pattern(false).map_err(|error| error.to_string())
    }
}
