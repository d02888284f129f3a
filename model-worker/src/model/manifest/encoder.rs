//! Embedding models: the sentence-transformers layout.

use serde_json::Value;

use super::super::ModelError;
use super::super::files::ModelFiles;
use super::super::onnx::encoder::EncoderIo;
use super::{Configs, Graph, number};
use crate::encoder::pooling::Pooling;

/// Outputs that hold one vector a token or one a text, in the order in which they are looked for.
const OUTPUTS: [&str; 4] = ["sentence_embedding", "token_embeddings", "last_hidden_state", "hidden_states"];

/// An embedding model's files.
#[derive(Debug, Clone)]
pub struct EncoderManifest {
    /// The graph.
    pub graph: Graph,
    /// Names of its inputs and its output.
    pub io: EncoderIo,
    /// How the vectors of a text's tokens become one.
    pub pooling: Pooling,
    /// Whether vectors are scaled to length 1.
    pub normalise: bool,
    /// Longest text, in tokens.
    pub max_tokens: usize,
    /// The token that fills up shorter texts of a batch.
    pub padding: u32,
}

impl EncoderManifest {
    pub(super) fn read(graph: Graph, files: &ModelFiles, configs: &Configs) -> Result<Self, ModelError> {
        let io = io(&graph)?;
        let modules = files.read_json("modules.json")?;
        let sentence = files.read_json("sentence_bert_config.json")?;
        let max_tokens = number(sentence.as_ref(), "/max_seq_length")
            .or_else(|| number(configs.config.as_ref(), "/max_position_embeddings"))
            .filter(|&tokens| tokens > 0)
            .ok_or_else(|| ModelError::UnknownLayout {
                file: graph.name.clone(),
                reason: "neither sentence_bert_config.json (max_seq_length) nor config.json \
                         (max_position_embeddings) tells the longest text"
                    .to_owned(),
            })?;
        Ok(Self {
            io,
            pooling: pooling(files, modules.as_ref())?,
            // Without modules.json the folder does not say; unit vectors are what nearly all such models give.
            normalise: modules.as_ref().is_none_or(|modules| module_path(modules, "Normalize").is_some()),
            max_tokens,
            padding: number(configs.config.as_ref(), "/pad_token_id")
                .and_then(|id| u32::try_from(id).ok())
                .unwrap_or(0),
            graph,
        })
    }
}

fn io(graph: &Graph) -> Result<EncoderIo, ModelError> {
    let unknown = |reason: String| ModelError::UnknownLayout { file: graph.name.clone(), reason };
    let (inputs, outputs) = (&graph.facts.inputs, &graph.facts.outputs);
    if !inputs.contains_key("input_ids") {
        let found = inputs.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(unknown(format!(
            "muster serves language and embedding models, which take `input_ids`; this takes {found}"
        )));
    }
    let known = ["input_ids", "attention_mask", "token_type_ids"];
    if let Some(stranger) = inputs.keys().find(|name| !known.contains(&name.as_str())) {
        return Err(unknown(format!("input `{stranger}` is none of {}", known.join(", "))));
    }
    let output = OUTPUTS.into_iter().find(|name| outputs.contains_key(*name)).ok_or_else(|| {
        if outputs.contains_key("logits") {
            return unknown(format!(
                "it gives logits and takes no past keys and values, so that each token would read everything anew; \
                 export a language model with them (task text-generation-with-past), and an embedding model with one \
                 of {}",
                OUTPUTS.join(", ")
            ));
        }
        let found = outputs.keys().cloned().collect::<Vec<_>>().join(", ");
        unknown(format!("its outputs are {found}; an embedding model has one of {}", OUTPUTS.join(", ")))
    })?;
    if !outputs[output].is_float32() {
        return Err(unknown(format!("`{output}` is not float32; take a float32 or int8 export")));
    }
    Ok(EncoderIo {
        attention_mask: inputs.contains_key("attention_mask"),
        token_type_ids: inputs.contains_key("token_type_ids"),
        output: output.to_owned(),
    })
}

/// Reads the pooling module's configuration; mean pooling where the folder does not say.
fn pooling(files: &ModelFiles, modules: Option<&Value>) -> Result<Pooling, ModelError> {
    let folder = modules.and_then(|modules| module_path(modules, "Pooling")).unwrap_or_else(|| "1_Pooling".to_owned());
    let name = format!("{folder}/config.json");
    let Some(config) = files.read_json(&name)? else { return Ok(Pooling::Mean) };
    let on = |mode: &str| config.get(format!("pooling_mode_{mode}")).and_then(Value::as_bool) == Some(true);
    let modes = [
        ("cls_token", Pooling::Cls),
        ("mean_tokens", Pooling::Mean),
        ("max_tokens", Pooling::Max),
        ("lasttoken", Pooling::Last),
    ];
    let chosen: Vec<Pooling> = modes.into_iter().filter(|(mode, _)| on(mode)).map(|(_, pooling)| pooling).collect();
    match chosen[..] {
        [one] => Ok(one),
        _ => Err(ModelError::Malformed {
            file: files.describe(&name),
            reason: "exactly one of pooling_mode_cls_token, pooling_mode_mean_tokens, pooling_mode_max_tokens, \
                     pooling_mode_lasttoken must be true"
                .to_owned(),
        }),
    }
}

/// The folder of the first sentence-transformers module of a type.
fn module_path(modules: &Value, kind: &str) -> Option<String> {
    let of_kind = |module: &&Value| module["type"].as_str().is_some_and(|name| name.ends_with(kind));
    modules.as_array()?.iter().find(of_kind)?["path"].as_str().map(str::to_owned)
}
