//! Loads a graph into ONNX Runtime.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::super::ModelError;
use super::super::files::GraphSource;
use super::super::manifest::Graph;
use super::contention;
use super::graph::GraphFacts;
use super::optimised::{Identity, Store};
use super::rewrite::{self, Head};
use super::runtime::Runtime;
use super::spin::{BRIEF, DURATION, Spin};

/// How a session uses the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads that share the work of one operator.
    pub threads: NonZeroUsize,
    /// Whether idle threads spin instead of sleeping.
    pub spin: Spin,
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
    /// How to open the graph once more without spinning; there when the session spins only as long as that is wise.
    pub twin: Option<Twin>,
}

/// The same graph, to be opened once more.
#[derive(Debug)]
pub struct Twin {
    runtime: &'static Runtime,
    /// The optimised graph: its weights are mapped, and so shared with the session that is open already.
    graph: PathBuf,
    threads: NonZeroUsize,
}

impl Twin {
    /// Opens it with threads that do not spin.
    ///
    /// # Errors
    /// [`ModelError::Load`] with ONNX Runtime's words.
    pub fn open(&self) -> Result<Session, ModelError> {
        let level = GraphOptimizationLevel::Disable;
        let session = configure(self.runtime, level, self.threads, Spin::Off)
            .and_then(|mut builder| builder.commit_from_file(&self.graph).map_err(|error| error.to_string()));
        session.map_err(|reason| ModelError::Load { file: self.graph.display().to_string(), reason })
    }
}

/// Loads a graph as it is. `name` is the graph's name in errors.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words.
pub fn open(
    runtime: &'static Runtime,
    source: &GraphSource,
    options: &SessionOptions,
    name: &str,
) -> Result<Session, ModelError> {
    let spin = options.spin.steady();
    Opening { runtime, source, options, name, spin, rewritten: None, facts: None }.open().map(|opened| opened.session)
}

/// Loads a graph as it is, so many times. The sessions share the weights where the optimised graph is kept.
///
/// # Errors
/// As [`open`].
pub fn open_several(
    runtime: &'static Runtime,
    Graph { source, name, facts }: &Graph,
    options: &SessionOptions,
    count: NonZeroUsize,
) -> Result<Vec<Session>, ModelError> {
    let spin = options.spin.steady();
    let opening = Opening { runtime, source, options, name, spin, rewritten: None, facts: Some(facts) };
    // The first one finds or makes the optimised graph for all.
    let first = opening.open()?;
    let again = || match &first.optimised {
        Some(graph) => opening.load_optimised(graph).map_err(|reason| opening.refused(reason)),
        None => opening.open_unoptimised(),
    };
    let others = std::thread::scope(|scope| {
        let openings: Vec<_> = (1..count.get()).map(|_| scope.spawn(again)).collect();
        let join = |opened: ScopedJoinHandle<'_, _>| opened.join().unwrap_or_else(|panic| resume_unwind(panic));
        openings.into_iter().map(join).collect::<Result<Vec<Opened>, _>>()
    })?;
    Ok(std::iter::once(first).chain(others).map(|opened| opened.session).collect())
}

/// Loads a language model's graph, changed so that its head runs on chosen positions where that can be done.
///
/// # Errors
/// [`ModelError::Load`] with ONNX Runtime's words; [`ModelError::Read`] when the file cannot be read.
pub fn open_causal(
    runtime: &'static Runtime,
    source: &GraphSource,
    options: &SessionOptions,
    name: &str,
) -> Result<CausalSession, ModelError> {
    let spin = options.spin;
    let outcome = rewrite::choose_positions(&content(source, name)?);
    let rewritten = match outcome.changed {
        Ok(bytes) => bytes,
        Err(reason) => {
            tracing::info!(graph = name, reason, "the model's head cannot be restricted to chosen positions");
            return Opening { runtime, source, options, name, spin, rewritten: None, facts: None }
                .open_causal(outcome.own);
        }
    };
    match (Opening { runtime, source, options, name, spin, rewritten: Some(&rewritten), facts: None })
        .open_causal(Head::Positions)
    {
        Ok(session) => Ok(session),
        // ONNX Runtime 1.19 does not find weights beside a graph that comes from memory; 1.21 does.
        Err(error) => {
            let plain = Opening { runtime, source, options, name, spin, rewritten: None, facts: None };
            let session = plain.open_causal(outcome.own)?;
            tracing::warn!(graph = name, %error, "serving the graph as it is: its head runs on more positions than needed");
            Ok(session)
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
    runtime: &'static Runtime,
    source: &'a GraphSource,
    options: &'a SessionOptions,
    name: &'a str,
    /// Of the options; [`Spin::Auto`] where the session may be told to stop.
    spin: Spin,
    /// What is loaded in place of the source's bytes; weights beside the source stay where they are.
    rewritten: Option<&'a [u8]>,
    /// What is known of the source.
    facts: Option<&'a GraphFacts>,
}

/// A session, and how to open the same graph once more.
struct Opened {
    session: Session,
    twin: Option<Twin>,
    /// The optimised graph that was loaded, if one was.
    optimised: Option<PathBuf>,
}

impl Opening<'_> {
    fn open(&self) -> Result<Opened, ModelError> {
        if let Some(opened) = self.open_optimised()? {
            return Ok(opened);
        }
        self.open_unoptimised()
    }

    fn open_unoptimised(&self) -> Result<Opened, ModelError> {
        let builder = self.configure(GraphOptimizationLevel::All, self.spin.steady());
        let session = builder.and_then(|builder| self.commit(builder)).map_err(|reason| self.refused(reason))?;
        Ok(Opened { session, twin: None, optimised: None })
    }

    fn open_causal(&self, head: Head) -> Result<CausalSession, ModelError> {
        let Opened { session, twin, .. } = self.open()?;
        Ok(CausalSession { session, head, twin })
    }

    fn refused(&self, reason: String) -> ModelError {
        ModelError::Load { file: self.name.to_owned(), reason }
    }

    /// Loads the graph that an earlier start optimised, or optimises it now; `None` when that is not wanted or fails.
    fn open_optimised(&self) -> Result<Option<Opened>, ModelError> {
        let (Some(cache), GraphSource::File(path)) = (&self.options.optimised, self.source) else { return Ok(None) };
        let store = Store::new(cache);
        let identity = match (self.rewritten, self.facts) {
            (Some(bytes), _) => Identity::of(path, bytes, self.runtime),
            (None, Some(facts)) => Identity::of_file(path, facts, self.runtime),
            (None, None) => Identity::of(path, &content(self.source, self.name)?, self.runtime),
        };
        let identity = match identity {
            Ok(identity) if identity.is_worth_keeping() => identity,
            Ok(_) => return Ok(None),
            Err(error) => {
                tracing::warn!(graph = self.name, %error, "cannot tell which optimised graph belongs to the model");
                return Ok(None);
            }
        };
        let loaded = store.load(&identity, |folder| self.save_optimised(folder), |graph| self.load_optimised(graph));
        match loaded {
            Ok(opened) => Ok(Some(opened)),
            Err(error) => {
                let folder = store.root().display();
                tracing::warn!(graph = self.name, %folder, %error, "serving without an optimised graph: starts take longer, and memory is not shared");
                Ok(None)
            }
        }
    }

    /// Optimises the graph, and writes it into a folder with its weights as the kernels of this processor want them.
    fn save_optimised(&self, folder: &Path) -> Result<(), String> {
        let builder = self.configure(GraphOptimizationLevel::All, Spin::Off)?;
        // It warns that the result suits this processor only, which is why the processor is part of the key.
        let builder = builder.with_log_level(LogLevel::Error).map_err(|error| error.to_string())?;
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

    fn load_optimised(&self, graph: &Path) -> Result<Opened, String> {
        let twin = self.may_spin().then(|| Twin {
            runtime: self.runtime,
            graph: graph.to_owned(),
            threads: self.options.threads,
        });
        let spin = if twin.is_some() { Spin::Brief } else { self.spin.steady() };
        // Optimising once more costs time, and would copy the weights that it touches.
        let mut builder = self.configure(GraphOptimizationLevel::Disable, spin)?;
        let session = builder.commit_from_file(graph).map_err(|error| error.to_string())?;
        Ok(Opened { session, twin, optimised: Some(graph.to_owned()) })
    }

    /// Whether threads may spin until told otherwise: that must be of use, be seen to do harm, and be over soon.
    fn may_spin(&self) -> bool {
        let several = self.options.threads.get() > 1;
        self.spin == Spin::Auto && several && self.runtime.bounds_spinning() && contention::is_visible()
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

    fn configure(&self, level: GraphOptimizationLevel, spin: Spin) -> Result<SessionBuilder, String> {
        configure(self.runtime, level, self.options.threads, spin)
    }
}

/// Settings of every session.
fn configure(
    runtime: &Runtime,
    level: GraphOptimizationLevel,
    threads: NonZeroUsize,
    spin: Spin,
) -> Result<SessionBuilder, String> {
    // Unbounded is worse than not at all, and that is what an older version would do.
    let brief = spin == Spin::Brief && runtime.bounds_spinning();
    if spin == Spin::Brief && !brief {
        tracing::warn!("idle threads do not spin: to spin briefly takes ONNX Runtime 1.26 or later");
    }
    // The builder's errors carry the builder, which cannot leave this thread: only their words are kept.
    let builder = Session::builder(&runtime.environment).map_err(|error| error.to_string())?;
    let builder = builder.with_optimization_level(level).map_err(|error| error.to_string())?;
    let builder = builder.with_intra_threads(threads.get()).map_err(|error| error.to_string())?;
    let builder = builder.with_inter_threads(1).map_err(|error| error.to_string())?;
    let mut builder =
        builder.with_intra_op_spinning(brief || spin == Spin::Always).map_err(|error| error.to_string())?;
    if brief {
        builder = builder.with_config_entry(DURATION, BRIEF).map_err(|error| error.to_string())?;
    }
    // Shapes change from run to run, so a plan of one run's memory is of no use to the next.
    builder.with_memory_pattern(false).map_err(|error| error.to_string())
}
