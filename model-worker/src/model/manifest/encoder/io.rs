//! A text encoder's inputs, and the output to read.

use super::super::super::ModelError;
use super::super::super::onnx::Element;
use super::super::super::onnx::encoder::{EncoderIo, Integer, Numbering};
use super::super::super::onnx::graph::TensorFacts;
use super::{Facts, limits};

/// Outputs that hold one vector a token or one a text, in the order in which they are looked for.
pub(super) const VECTORS: [&str; 4] = [POOLED, "token_embeddings", "last_hidden_state", "hidden_states"];
/// The output of a graph that does all that sentence-transformers' modules do.
const POOLED: &str = "sentence_embedding";
/// The output of models that judge.
const LOGITS: &str = "logits";
const INPUTS: [&str; 4] = ["input_ids", "attention_mask", "token_type_ids", "position_ids"];

/// The output to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) kind: OutputKind,
    /// Its dimensions, if the graph tells them.
    pub(super) rank: Option<usize>,
    /// Numbers in its last dimension, if the graph tells them.
    pub(super) width: Option<usize>,
}

/// What an output's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputKind {
    /// A vector of the text, with everything done to it.
    Finished,
    /// Vectors.
    Vectors,
    /// Numbers of classes, or of the vocabulary.
    Logits,
    /// Nothing: it is the only output.
    Unnamed,
}

impl Facts<'_> {
    /// Chooses the output.
    pub(super) fn output(&self) -> Result<Output, ModelError> {
        let outputs = &self.graph.facts.outputs;
        let known = VECTORS.into_iter().chain([LOGITS]).find_map(|name| outputs.get_key_value(name));
        let (name, facts) = match known {
            Some(found) => found,
            None if outputs.len() == 1 => outputs.iter().next().ok_or_else(|| self.no_output())?,
            None => return Err(self.no_output()),
        };
        let kind = match name.as_str() {
            POOLED => OutputKind::Finished,
            LOGITS => OutputKind::Logits,
            name if VECTORS.contains(&name) => OutputKind::Vectors,
            _ => OutputKind::Unnamed,
        };
        let width = facts.shape.last().copied().flatten().and_then(|width| usize::try_from(width).ok());
        let rank = (!facts.shape.is_empty()).then_some(facts.shape.len());
        Ok(Output { name: name.clone(), kind, rank, width })
    }

    fn no_output(&self) -> ModelError {
        let found = self.graph.facts.outputs.keys().cloned().collect::<Vec<_>>().join(", ");
        let wanted = VECTORS.join(", ");
        self.unknown(format!("its outputs are {found}; an embedding model has one of {wanted}, and others {LOGITS}"))
    }

    /// Inputs and output with their types.
    pub(super) fn io(&self, output: Output, padding: u32) -> Result<EncoderIo, ModelError> {
        let inputs = &self.graph.facts.inputs;
        if !inputs.contains_key("input_ids") {
            let found = inputs.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(self.unknown(format!("a text model takes `input_ids`; this takes {found}")));
        }
        if let Some(stranger) = inputs.keys().find(|name| !INPUTS.contains(&name.as_str())) {
            return Err(self.unknown(format!("input `{stranger}` is none of {}", INPUTS.join(", "))));
        }
        let integer = |name: &str| inputs.get(name).map(|facts| self.integer(name, facts)).transpose();
        let numbering = if limits::is_roberta_like(self) { Numbering::Behind(padding) } else { Numbering::Zero };
        Ok(EncoderIo {
            input_ids: self.integer("input_ids", &inputs["input_ids"])?,
            attention_mask: integer("attention_mask")?,
            token_type_ids: integer("token_type_ids")?,
            position_ids: integer("position_ids")?.map(|integer| (integer, numbering)),
            element: self.element(&output.name)?,
            output: output.name,
        })
    }

    fn integer(&self, name: &str, facts: &TensorFacts) -> Result<Integer, ModelError> {
        if let Some(size) = facts.shape.iter().flatten().find(|&&size| size >= 0) {
            return Err(self.unknown(format!(
                "input `{name}` has a fixed size of {size}; export the model with dynamic axes for batch and tokens"
            )));
        }
        match facts.element {
            7 => Ok(Integer::I64),
            6 => Ok(Integer::I32),
            other => Err(self.unknown(format!(
                "input `{name}` has the element type {other} of onnx.proto; token ids and masks are int64 (7) or int32 (6)"
            ))),
        }
    }

    fn element(&self, output: &str) -> Result<Element, ModelError> {
        match self.graph.facts.outputs[output].element {
            1 => Ok(Element::F32),
            10 => Ok(Element::F16),
            other => Err(self.unknown(format!(
                "output `{output}` has the element type {other} of onnx.proto; it must be float32 (1) or float16 (10)"
            ))),
        }
    }
}
