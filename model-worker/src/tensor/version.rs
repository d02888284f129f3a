//! One version of a model, loaded: what it takes, and its instances.

use std::num::NonZeroUsize;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::config::ModelConfig as TensorConfig;
use muster_shared::tensor::{InferRequest, InferResponse, ModelStatistics, Parameters, Tensor, TensorMetadata};

use super::batcher::{Batcher, BatcherSettings, RunError};
use super::check::{Checked, Rules, Wanted, too_many_classes};
use super::classify::classify;
use super::layout::Found;
use super::queue::Batching;
use super::settings::{Complete, complete, declared};
use super::trial::{self, Verdict};
use crate::calls::blocking;
use crate::config::Config;
use crate::error::LoadError;
use crate::model::ModelError;
use crate::model::files::GraphSource;
use crate::model::onnx::bounds::{self, Bounds};
use crate::model::onnx::graph::{GraphFacts, check_external_data};
use crate::model::onnx::runtime;
use crate::model::onnx::session::{self, SessionOptions};
use crate::model::onnx::tensor::OnnxTensorModel;
use crate::model::tensor::{Array, Port, TensorModel};

/// Most rows that run together where the configuration does not say: beyond, a processor gains little.
const LARGEST: usize = 32;
/// Time for trying whether rows may run together.
const TRIAL: Duration = Duration::from_secs(1);
/// Requests with more bytes are looked through, and sorted into classes, off the threads that serve.
const LARGE: usize = 64 << 10;
/// When to come back while the queue is full, in milliseconds.
const RETRY_AFTER_MS: u64 = 1000;
/// The parameter in which a configuration tells how requests go together.
const BATCHING: &str = "muster.batching";

/// A version of a model.
#[derive(Debug)]
pub struct Version {
    /// The model's name.
    pub model: String,
    /// Its number.
    pub number: String,
    /// Its settings, completed from the graph.
    pub config: TensorConfig,
    rules: Rules,
    /// Names of the classes of each output.
    labels: Vec<Vec<String>>,
    /// Its instances.
    pub batcher: Batcher,
}

impl Version {
    /// Loads and warms up a version. Takes as long as ONNX Runtime takes: not for a thread of the runtime.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(config: &Config, found: &Found, number: u64) -> Result<(Self, Vec<JoinHandle<()>>), LoadError> {
        let graph = found.versions.get(&number).ok_or_else(|| malformed(&found.folder, "there is no such version"))?;
        let (mut models, facts) = open(config, found, graph)?;
        let settings_file = found.folder.join("config.pbtxt");
        let mut complete =
            complete(&found.settings, models[0].ports()).map_err(|reason| malformed(&settings_file, reason))?;
        let labels = labels(found, &complete)?;
        let rows = complete.config.max_batch_size > 0 || trial::may_have_rows(models[0].ports());
        let judged = Judged { found, facts: &facts, rows };
        let batching = judged.batching(&mut models[0], &mut complete)?;
        for model in models.iter_mut().skip(1) {
            trial::warm_up(model, &complete.ports, rows)?;
        }
        let settings = BatcherSettings {
            name: (found.name.clone(), number.to_string()),
            batching,
            waiting: config.tensor_requests.get(),
        };
        let models = models.into_iter().map(|model| Box::new(model) as Box<dyn TensorModel>).collect();
        let (batcher, threads) = Batcher::start(settings, models).map_err(LoadError::Thread)?;
        let largest = complete.config.max_batch_size as usize;
        let version = Self {
            model: found.name.clone(),
            number: number.to_string(),
            rules: Rules { ports: complete.ports, max_batch_size: Some(largest).filter(|&largest| largest > 0), rows },
            config: complete.config,
            labels,
            batcher,
        };
        Ok((version, threads))
    }

    /// Runs a request.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it does not fit, [`Kind::Overloaded`] and [`Kind::Timeout`] when it found no room,
    /// [`Kind::Run`] with ONNX Runtime's words when the graph failed.
    pub async fn infer(self: &std::sync::Arc<Self>, mut request: InferRequest) -> Result<InferResponse, Problem> {
        crate::metrics::request(&self.model, "tensor");
        let id = std::mem::take(&mut request.id);
        let is_large = request.inputs.iter().map(|input| input.data.len()).sum::<usize>() > LARGE;
        let checked = if is_large {
            let version = std::sync::Arc::clone(self);
            blocking(move || version.rules.check(request)).await?
        } else {
            self.rules.check(request)?
        };
        let wanted = checked.wanted.clone();
        let outputs = self.run(checked).await?;
        let sorted = outputs.iter().zip(&wanted).filter(|(_, wanted)| wanted.classification > 0);
        let outputs = if sorted.map(|(output, _)| output.data.len()).sum::<usize>() > LARGE {
            let version = std::sync::Arc::clone(self);
            blocking(move || version.tensors(outputs, &wanted)).await?
        } else {
            self.tensors(outputs, &wanted)?
        };
        let (model, version) = (self.model.clone(), self.number.clone());
        Ok(InferResponse { model, version, id, parameters: Parameters::new(), outputs })
    }

    async fn run(&self, request: Checked) -> Result<Vec<Array>, Problem> {
        self.batcher.run(request).await.map_err(|error| match &error {
            RunError::Overloaded { .. } | RunError::Shed => {
                Problem::new(Kind::Overloaded, error.to_string()).with_retry_after_ms(RETRY_AFTER_MS)
            }
            RunError::Late(_) => Problem::new(Kind::Timeout, error.to_string()).with_param("parameters.timeout"),
            RunError::Failed(_) => Problem::new(Kind::Run, error.to_string()),
            RunError::Stopped => Problem::new(Kind::Bug, error.to_string()),
        })
    }

    fn tensors(&self, outputs: Vec<Array>, wanted: &[Wanted]) -> Result<Vec<Tensor>, Problem> {
        let pairs = outputs.into_iter().zip(wanted).enumerate();
        pairs.map(|(index, (array, wanted))| self.tensor(index, array, *wanted)).collect()
    }

    fn tensor(&self, index: usize, array: Array, wanted: Wanted) -> Result<Tensor, Problem> {
        let name = &self.rules.ports.outputs[wanted.place].name;
        let array = match wanted.classification {
            0 => array,
            count => classify(&array, count, self.rules.rows, &self.labels[wanted.place])
                .map_err(|classes| too_many_classes(index, name, count, classes))?,
        };
        let Array { datatype, shape, data } = array;
        Ok(Tensor { name: name.clone(), datatype, shape, parameters: Parameters::new(), data })
    }

    /// Requests that can run at a time: one for each row of each instance.
    pub fn room(&self) -> usize {
        self.batcher.instances() * self.batcher.largest()
    }

    /// What it takes, for clients.
    pub fn inputs(&self) -> Vec<TensorMetadata> {
        self.rules.ports.inputs.iter().map(metadata).collect()
    }

    /// What it gives, for clients.
    pub fn outputs(&self) -> Vec<TensorMetadata> {
        self.rules.ports.outputs.iter().map(metadata).collect()
    }

    /// What its runs have cost.
    pub fn statistics(&self) -> ModelStatistics {
        self.batcher.recorder().read(&self.model, &self.number)
    }
}

fn metadata(port: &Port) -> TensorMetadata {
    TensorMetadata { name: port.name.clone(), datatype: port.datatype, shape: port.sizes() }
}

fn malformed(file: &Path, reason: impl Into<String>) -> LoadError {
    ModelError::Malformed { file: file.display().to_string(), reason: reason.into() }.into()
}

/// The sessions of a version: those that its configuration wants, else one with all threads, since one request at a time
/// is then answered as fast as the machine can.
fn open(config: &Config, found: &Found, graph: &Path) -> Result<(Vec<OnnxTensorModel>, GraphFacts), LoadError> {
    let name = graph.display().to_string();
    let refused = |source| ModelError::Read { file: name.clone(), source };
    bounds::check_length(graph.metadata().map_err(refused)?.len()).map_err(|reason| malformed(graph, reason))?;
    let bytes = std::fs::read(graph).map_err(refused)?;
    let facts = GraphFacts::read(&bytes).map_err(|reason| malformed(graph, reason))?;
    check_external_data(&found.folder, graph, &facts)?;
    Bounds { folder: graph.parent() }.check(&bytes).map_err(|reason| malformed(graph, reason))?;
    drop(bytes);
    let instances = found.settings.config.instance_group.iter().map(|group| group.count as usize).sum::<usize>().max(1);
    let threads = NonZeroUsize::new(config.threads_in_force().get() / instances).unwrap_or(NonZeroUsize::MIN);
    let options = SessionOptions { threads, spin: config.spin, optimised: config.graph_cache.clone() };
    let runtime = runtime::start(&config.library).map_err(ModelError::from)?;
    let source = GraphSource::File(graph.to_owned());
    let open = |_| {
        let session = session::open(runtime, &source, &options, &name)?;
        OnnxTensorModel::new(session, &facts, &name)
    };
    let models = (0..instances).map(open).collect::<Result<Vec<_>, ModelError>>()?;
    Ok((models, facts))
}

/// The names of the classes of each output, from the files that the configuration names.
fn labels(found: &Found, complete: &Complete) -> Result<Vec<Vec<String>>, LoadError> {
    let of_output = |port: &Port| {
        let output = complete.config.output.iter().find(|output| output.name == port.name);
        let Some(file) = output.map(|output| &output.label_filename).filter(|file| !file.is_empty()) else {
            return Ok(Vec::new());
        };
        let path = found.folder.join(file);
        let read = |source| ModelError::Read { file: path.display().to_string(), source };
        let inside = found.folder.canonicalize().map_err(read)?;
        if !path.canonicalize().map_err(read)?.starts_with(inside) {
            return Err(malformed(&path, "label_filename leads out of the model's folder"));
        }
        let text = std::fs::read_to_string(&path).map_err(read)?;
        Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
    };
    complete.ports.outputs.iter().map(of_output).collect()
}

/// A version of which it is to be said how its requests go together.
struct Judged<'a> {
    found: &'a Found,
    facts: &'a GraphFacts,
    rows: bool,
}

impl Judged<'_> {
    /// How requests go together: as is declared, or as a trial has shown to change no answer.
    fn batching(&self, model: &mut OnnxTensorModel, complete: &mut Complete) -> Result<Option<Batching>, LoadError> {
        let declared = declared(&complete.config);
        let forbidden = declared.is_none() && self.found.settings.says_batch_size;
        if !self.rows || forbidden {
            trial::warm_up(model, &complete.ports, self.rows)?;
            return Ok(None);
        }
        let largest = declared.as_ref().map_or(LARGEST, |declared| declared.largest);
        let verdict = if self.facts.shares_scales() {
            trial::warm_up(model, &complete.ports, true)?;
            Verdict::Unknown("it takes one scale over all rows of an activation".to_owned())
        } else {
            trial::try_rows(model, &complete.ports, largest, TRIAL)?
        };
        let (batching, told) = conclude(declared, &verdict);
        let (model, told) = (&self.found.name, told.as_str());
        match (&batching, &verdict) {
            (Some(_), Verdict::Differ(_)) => tracing::warn!(model, "{told}"),
            _ => tracing::info!(model, "{told}"),
        }
        complete.note(BATCHING, told);
        Ok(batching)
    }
}

/// What follows from a trial, and words about it.
fn conclude(declared: Option<Batching>, verdict: &Verdict) -> (Option<Batching>, String) {
    let advice = "to let them all the same, declare max_batch_size and dynamic_batching";
    match (declared, verdict) {
        (Some(declared), Verdict::Differ(rows)) => {
            let told = format!(
                "requests run together as declared, although {rows} rows give other numbers together than alone"
            );
            (Some(declared), told)
        }
        (Some(declared), Verdict::Unknown(reason)) => (
            Some(declared),
            format!("requests run together as declared; that no number changes was not tried: {reason}"),
        ),
        (Some(declared), Verdict::Alike(rows)) => (
            Some(declared),
            format!("requests run together as declared; up to {rows} rows were tried, and no number changed"),
        ),
        (None, Verdict::Alike(rows)) => {
            let batching = Batching { largest: *rows, preferred: Vec::new(), delay: Duration::ZERO };
            (Some(batching), format!("requests run together up to {rows} rows, which were tried: no number changed"))
        }
        (None, Verdict::Differ(rows)) => {
            (None, format!("requests run alone: {rows} rows give other numbers together than alone; {advice}"))
        }
        (None, Verdict::Unknown(reason)) => (None, format!("requests run alone: {reason}; {advice}")),
    }
}
