//! Finds out what a model's files hold, from the graph first and its configuration second.

mod causal;
mod encoder;
mod variant;

pub use causal::{CausalManifest, Layout};
pub use encoder::{EncoderManifest, Prompts, Task, TextRules};

use super::ModelError;
use super::files::{GraphSource, ModelFiles};
use super::onnx::bounds::{self, Bounds};
use super::onnx::graph::{GraphFacts, check_external_data};

/// What a model's files hold.
#[derive(Debug, Clone)]
pub enum Manifest {
    /// A language model.
    Causal(CausalManifest),
    /// A model that reads whole texts.
    Encoder(EncoderManifest),
    /// Neither: tensors in, tensors out.
    Tensor(Graph),
}

/// A graph with what is known of it.
#[derive(Debug, Clone)]
pub struct Graph {
    /// Its name for people.
    pub name: String,
    /// Where it is.
    pub source: GraphSource,
    /// What it says of itself.
    pub facts: GraphFacts,
}

impl Manifest {
    /// The graph that is run.
    pub fn graph(&self) -> &Graph {
        match self {
            Self::Causal(manifest) => &manifest.graph,
            Self::Encoder(manifest) => &manifest.graph,
            Self::Tensor(graph) => graph,
        }
    }
}

impl Graph {
    /// Size of the graph with its weights, in bytes; of what cannot be told, nothing.
    pub fn bytes(&self) -> u64 {
        let size = |path: &std::path::Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        match &self.source {
            GraphSource::Memory(bytes) => bytes.len() as u64,
            GraphSource::File(path) => {
                let beside = self.facts.external_data.iter().map(|name| size(&path.with_file_name(name)));
                size(path) + beside.sum::<u64>()
            }
        }
    }
}

/// The configuration files beside the graph.
#[derive(Debug, Clone, Default)]
struct Configs {
    /// ONNX Runtime GenAI's `genai_config.json`.
    genai: Option<serde_json::Value>,
    /// Hugging Face's `config.json`.
    config: Option<serde_json::Value>,
    /// Hugging Face's `generation_config.json`.
    generation: Option<serde_json::Value>,
    /// Hugging Face's `tokenizer_config.json`.
    tokenizer: Option<serde_json::Value>,
}

impl Configs {
    fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        Ok(Self {
            genai: files.read_json("genai_config.json")?,
            config: files.read_json("config.json")?,
            generation: files.read_json("generation_config.json")?,
            tokenizer: files.read_json("tokenizer_config.json")?,
        })
    }
}

impl Manifest {
    /// Reads a model's files, all but the weights; of several graphs the one that fits a processor best.
    ///
    /// # Errors
    /// When a file is missing or malformed, or the graph is none that muster can serve.
    pub fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        Self::read_variant(files, None)
    }

    /// The same with a graph of the user's choice: a variant as `q4`, or a file.
    ///
    /// # Errors
    /// As [`Manifest::read`], and when there is no such variant.
    pub fn read_variant(files: &ModelFiles, variant: Option<&str>) -> Result<Self, ModelError> {
        let configs = Configs::read(files)?;
        let graphs = files.graphs()?;
        let name = graph_name(files, &configs, &graphs, variant)?;
        note_choice(files, &name, &graphs);
        let graph = read_graph(files, &name)?;
        if graph.facts.inputs.keys().any(|name| name.starts_with("past_key") || name.contains("past_key_values")) {
            CausalManifest::read(graph, &configs).map(Self::Causal)
        } else if !graph.facts.inputs.contains_key("input_ids") {
            Ok(Self::Tensor(graph))
        } else {
            EncoderManifest::read(graph, files, &configs).map(Self::Encoder)
        }
    }
}

/// The graph of a model whose configuration is there already; `graphs` need not be.
///
/// # Errors
/// When no graph fits.
pub(crate) fn choose_graph(files: &ModelFiles, graphs: &[String], variant: Option<&str>) -> Result<String, ModelError> {
    graph_name(files, &Configs::read(files)?, graphs, variant)
}

fn note_choice(files: &ModelFiles, chosen: &str, graphs: &[String]) {
    let others = variant::names(graphs.iter().map(String::as_str).filter(|graph| *graph != chosen));
    if !others.is_empty() {
        let graph = files.describe(chosen);
        tracing::info!(graph, others, "one of several graphs is chosen; --variant chooses another");
    }
}

fn graph_name(
    files: &ModelFiles,
    configs: &Configs,
    graphs: &[String],
    variant: Option<&str>,
) -> Result<String, ModelError> {
    let no_variant = |wanted: &str, there: String| ModelError::NoVariant {
        folder: files.describe(""),
        variant: wanted.to_owned(),
        there,
    };
    if let Some(genai) = &configs.genai {
        let name = genai.pointer("/model/decoder/filename").and_then(serde_json::Value::as_str);
        let name = name.ok_or_else(|| ModelError::Malformed {
            file: files.describe("genai_config.json"),
            reason: "model.decoder.filename is missing".to_owned(),
        })?;
        return match variant.filter(|variant| *variant != name) {
            Some(wanted) => Err(no_variant(wanted, format!("only {name}, which its genai_config.json names"))),
            None => Ok(name.to_owned()),
        };
    }
    let is_language = names_language_model(configs);
    let chosen = match variant {
        Some(wanted) => variant::find(graphs, wanted).ok_or_else(|| {
            let there = variant::names(graphs.iter().map(String::as_str));
            no_variant(wanted, if there.is_empty() { "none".to_owned() } else { there })
        })?,
        None => variant::usual(graphs, is_language).or(only(graphs)).ok_or_else(|| ModelError::FileMissing {
            file: files.describe("model.onnx"),
            expected: format!(
                "a model folder holds genai_config.json, or one of {} in itself or in onnx/{}",
                variant::usual_files(is_language),
                if graphs.is_empty() { String::new() } else { format!("; this one holds {}", graphs.join(", ")) }
            ),
        })?,
    };
    Ok(chosen.to_owned())
}

/// The one graph that there is, whatever its name.
fn only(graphs: &[String]) -> Option<&str> {
    match graphs {
        [graph] => Some(graph),
        _ => None,
    }
}

fn names_language_model(configs: &Configs) -> bool {
    let architectures = configs.config.as_ref().and_then(|config| config.get("architectures")?.as_array());
    let names = architectures.into_iter().flatten().filter_map(serde_json::Value::as_str);
    names.into_iter().any(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"))
}

fn read_graph(files: &ModelFiles, name: &str) -> Result<Graph, ModelError> {
    let source = files.graph(name)?;
    let described = files.describe(name);
    let unusable = |reason| ModelError::Malformed { file: described.clone(), reason };
    if let GraphSource::File(path) = &source {
        bounds::check_length(path.metadata().map_or(0, |metadata| metadata.len())).map_err(unusable)?;
    }
    let bytes = files.read(name)?.unwrap_or_default();
    let facts = GraphFacts::read(&bytes).map_err(unusable)?;
    let mut bounds = Bounds { folder: None };
    if let (GraphSource::File(path), ModelFiles::Folder(folder)) = (&source, files) {
        check_external_data(folder, path, &facts)?;
        bounds.folder = path.parent();
    }
    bounds.check(&bytes).map_err(unusable)?;
    Ok(Graph { name: described, source, facts })
}

/// A non-negative number at a JSON pointer.
fn number(value: Option<&serde_json::Value>, pointer: &str) -> Option<usize> {
    value?.pointer(pointer)?.as_u64().and_then(|number| usize::try_from(number).ok())
}
