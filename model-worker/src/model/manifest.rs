//! Finds out what a model's files hold, from the graph first and its configuration second.

mod causal;
mod encoder;

pub use causal::{CausalManifest, Layout};
pub use encoder::EncoderManifest;

use super::ModelError;
use super::files::{GraphSource, ModelFiles};
use super::onnx::graph::{GraphFacts, check_external_data};

/// Quantised graphs first, since they are fastest on a processor; half precision is slowest there.
const LANGUAGE_GRAPHS: [&str; 7] = [
    "model_q4.onnx",
    "model_quantized.onnx",
    "model_int8.onnx",
    "model_uint8.onnx",
    "model.onnx",
    "model_q4f16.onnx",
    "model_fp16.onnx",
];
/// Full precision first, since vectors made by one file are compared with vectors made by another.
const ENCODER_GRAPHS: [&str; 4] = ["model.onnx", "model_quantized.onnx", "model_int8.onnx", "model_uint8.onnx"];

/// What a model's files hold.
#[derive(Debug, Clone)]
pub enum Manifest {
    /// A language model.
    Causal(CausalManifest),
    /// An embedding model.
    Encoder(EncoderManifest),
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

impl Manifest {
    /// Reads a model's files, all but the weights.
    ///
    /// # Errors
    /// When a file is missing or malformed, or the graph is none that muster can serve.
    pub fn read(files: &ModelFiles) -> Result<Self, ModelError> {
        let configs = Configs {
            genai: files.read_json("genai_config.json")?,
            config: files.read_json("config.json")?,
            generation: files.read_json("generation_config.json")?,
            tokenizer: files.read_json("tokenizer_config.json")?,
        };
        let graph = read_graph(files, &graph_name(files, &configs)?)?;
        if graph.facts.inputs.keys().any(|name| name.starts_with("past_key") || name.contains("past_key_values")) {
            CausalManifest::read(graph, &configs).map(Self::Causal)
        } else {
            EncoderManifest::read(graph, files, &configs).map(Self::Encoder)
        }
    }
}

fn graph_name(files: &ModelFiles, configs: &Configs) -> Result<String, ModelError> {
    if let Some(genai) = &configs.genai {
        let name = genai.pointer("/model/decoder/filename").and_then(serde_json::Value::as_str);
        return name.map(str::to_owned).ok_or_else(|| ModelError::Malformed {
            file: files.describe("genai_config.json"),
            reason: "model.decoder.filename is missing".to_owned(),
        });
    }
    let candidates = if names_language_model(configs) { &LANGUAGE_GRAPHS[..] } else { &ENCODER_GRAPHS[..] };
    let in_order = candidates.iter().flat_map(|name| [(*name).to_owned(), format!("onnx/{name}")]);
    in_order.into_iter().find(|name| files.has(name)).ok_or_else(|| ModelError::FileMissing {
        file: files.describe("model.onnx"),
        expected: format!(
            "a model folder holds genai_config.json, or one of {} in itself or in onnx/",
            candidates.join(", ")
        ),
    })
}

fn names_language_model(configs: &Configs) -> bool {
    let architectures = configs.config.as_ref().and_then(|config| config.get("architectures")?.as_array());
    let names = architectures.into_iter().flatten().filter_map(serde_json::Value::as_str);
    names.into_iter().any(|name| name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel"))
}

fn read_graph(files: &ModelFiles, name: &str) -> Result<Graph, ModelError> {
    let source = files.graph(name)?;
    let described = files.describe(name);
    let bytes = files.read(name)?.unwrap_or_default();
    let facts = GraphFacts::read(&bytes).map_err(|reason| ModelError::Malformed { file: described.clone(), reason })?;
    if let (GraphSource::File(path), ModelFiles::Folder(folder)) = (&source, files) {
        check_external_data(folder, path, &facts)?;
    }
    Ok(Graph { name: described, source, facts })
}

/// A non-negative number at a JSON pointer.
fn number(value: Option<&serde_json::Value>, pointer: &str) -> Option<usize> {
    value?.pointer(pointer)?.as_u64().and_then(|number| usize::try_from(number).ok())
}
