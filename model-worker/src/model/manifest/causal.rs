//! Language models: which layout, and its names and sizes.

use serde_json::Value;

use super::super::ModelError;
use super::super::onnx::graph::TensorFacts;
use super::super::onnx::{CacheIo, CausalIo, Element};
use super::{Configs, Graph, number};

/// Ten times the largest vocabulary there is; a larger number is a mistake, and would be taken from memory.
const LARGEST_VOCAB: usize = 4 << 20;

/// How a graph keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `GroupQueryAttention` nodes write them in place (ONNX Runtime GenAI's model builder, newer hub exports).
    Gqa,
    /// `Concat` nodes give new, longer ones (Optimum, transformers.js).
    Concat,
}

/// A language model's files.
#[derive(Debug, Clone)]
pub struct CausalManifest {
    /// The graph.
    pub graph: Graph,
    /// How it keeps keys and values.
    pub layout: Layout,
    /// Names and sizes of its inputs and outputs.
    pub io: CausalIo,
    /// Length of the logits.
    pub vocab: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
    /// Tokens that end an answer, by id.
    pub end_ids: Vec<u32>,
    /// The same, by their text in the tokenizer.
    pub end_tokens: Vec<String>,
}

impl CausalManifest {
    pub(super) fn read(graph: Graph, configs: &Configs) -> Result<Self, ModelError> {
        let facts = Facts { graph: &graph, configs };
        let io = facts.io()?;
        let layout = facts.layout()?;
        if layout == Layout::Concat && (io.caches_element, io.logits_element) != (Element::F32, Element::F32) {
            return Err(facts.unknown(
                "float16 keys and values can be served only where attention is GroupQueryAttention; on a processor take a \
                 float32, int8 or q4 export",
            ));
        }
        let (vocab, context) = (facts.vocab()?, facts.context()?);
        let (end_ids, end_tokens) = (facts.end_ids(), facts.end_tokens());
        Ok(Self { layout, io, vocab, context, end_ids, end_tokens, graph })
    }
}

impl CausalManifest {
    /// Memory that keys and values of one token take, in bytes.
    pub fn token_bytes(&self) -> usize {
        self.io.caches.len() * self.io.kv_heads * self.io.head_size * self.io.caches_element.bytes()
    }
}

struct Facts<'a> {
    graph: &'a Graph,
    configs: &'a Configs,
}

impl Facts<'_> {
    fn unknown(&self, reason: impl Into<String>) -> ModelError {
        ModelError::UnknownLayout { file: self.graph.name.clone(), reason: reason.into() }
    }

    /// A size at a pointer of `genai_config.json`, or at another of `config.json`.
    fn size(&self, genai: &str, config: &str) -> Option<usize> {
        number(self.configs.genai.as_ref(), genai).or_else(|| number(self.configs.config.as_ref(), config))
    }

    fn layout(&self) -> Result<Layout, ModelError> {
        let operators = &self.graph.facts.operators;
        if operators.contains("PagedAttention") {
            return Err(self.unknown(
                "it is a PagedAttention export, which needs CUDA; export the model with the model builder's option \
                 use_paged_attention=false",
            ));
        }
        Ok(if operators.contains("GroupQueryAttention") { Layout::Gqa } else { Layout::Concat })
    }

    fn io(&self) -> Result<CausalIo, ModelError> {
        let caches = self.caches()?;
        let known = |name: &str| {
            matches!(name, "input_ids" | "attention_mask" | "position_ids")
                || caches.iter().any(|cache| cache.past == name)
        };
        if let Some(stranger) = self.graph.facts.inputs.keys().find(|name| !known(name)) {
            return Err(self.unknown(format!(
                "input `{stranger}` is none of input_ids, attention_mask, position_ids, past keys and values"
            )));
        }
        for needed in ["input_ids", "attention_mask"] {
            if !self.graph.facts.inputs.contains_key(needed) {
                return Err(self.unknown(format!("a language model needs the input `{needed}`")));
            }
        }
        Ok(CausalIo {
            kv_heads: self.kv_heads(&caches[0])?,
            head_size: self.head_size(&caches[0])?,
            position_ids: self.graph.facts.inputs.contains_key("position_ids"),
            caches_element: self.element(&caches[0].past, &self.graph.facts.inputs[&caches[0].past])?,
            logits_element: self.logits_element()?,
            caches,
        })
    }

    /// Keys and values of each layer, by the names of `genai_config.json` or by convention.
    fn caches(&self) -> Result<Vec<CacheIo>, ModelError> {
        let pattern = |pointer: &str, usual: &str| {
            let named = self.configs.genai.as_ref().and_then(|genai| genai.pointer(pointer)?.as_str());
            named.unwrap_or(usual).to_owned()
        };
        let patterns = [
            (
                pattern("/model/decoder/inputs/past_key_names", "past_key_values.%d.key"),
                pattern("/model/decoder/outputs/present_key_names", "present.%d.key"),
            ),
            (
                pattern("/model/decoder/inputs/past_value_names", "past_key_values.%d.value"),
                pattern("/model/decoder/outputs/present_value_names", "present.%d.value"),
            ),
        ];
        let mut caches = Vec::new();
        for layer in 0.. {
            let name = |pattern: &str| pattern.replace("%d", &layer.to_string());
            if !self.graph.facts.inputs.contains_key(&name(&patterns[0].0)) {
                break;
            }
            for (past, present) in &patterns {
                let cache = CacheIo { past: name(past), present: name(present) };
                self.check_cache(&cache)?;
                caches.push(cache);
            }
        }
        if caches.is_empty() {
            return Err(self.unknown(format!("it has past keys and values, but none named like `{}`", patterns[0].0)));
        }
        Ok(caches)
    }

    fn check_cache(&self, cache: &CacheIo) -> Result<(), ModelError> {
        let Some(past) = self.graph.facts.inputs.get(&cache.past) else {
            return Err(self.unknown(format!("input `{}` is missing", cache.past)));
        };
        if !self.graph.facts.outputs.contains_key(&cache.present) {
            return Err(self.unknown(format!("output `{}` is missing", cache.present)));
        }
        let present = &self.graph.facts.outputs[&cache.present];
        if past.element != present.element {
            return Err(
                self.unknown(format!("`{}` and `{}` hold numbers of different types", cache.past, cache.present))
            );
        }
        self.element(&cache.past, past).map(drop)
    }

    fn element(&self, name: &str, tensor: &TensorFacts) -> Result<Element, ModelError> {
        match tensor.element {
            1 => Ok(Element::F32),
            10 => Ok(Element::F16),
            other => Err(self.unknown(format!(
                "`{name}` has the element type {other}; float32 (1) and float16 (10) can be served, so take a float32, \
                 float16, int8 or q4 export"
            ))),
        }
    }

    /// The size of one dimension of a cache `[batch, kv_heads, past, head_size]`, where the graph fixes it.
    fn cache_dimension(&self, cache: &CacheIo, dimension: usize) -> Option<usize> {
        let size = (*self.graph.facts.inputs.get(&cache.past)?.shape.get(dimension)?)?;
        usize::try_from(size).ok().filter(|&size| size > 0)
    }

    fn kv_heads(&self, cache: &CacheIo) -> Result<usize, ModelError> {
        self.cache_dimension(cache, 1)
            .or_else(|| self.size("/model/decoder/num_key_value_heads", "/num_key_value_heads"))
            .or_else(|| self.size("/model/decoder/num_attention_heads", "/num_attention_heads"))
            .ok_or_else(|| self.unknown("neither the graph nor a configuration file tells num_key_value_heads"))
    }

    fn head_size(&self, cache: &CacheIo) -> Result<usize, ModelError> {
        let computed = || {
            let hidden = number(self.configs.config.as_ref(), "/hidden_size")?;
            hidden.checked_div(number(self.configs.config.as_ref(), "/num_attention_heads")?)
        };
        self.cache_dimension(cache, 3)
            .or_else(|| self.size("/model/decoder/head_size", "/head_dim"))
            .or_else(computed)
            .ok_or_else(|| self.unknown("neither the graph nor a configuration file tells the head size"))
    }

    fn logits(&self) -> Result<&TensorFacts, ModelError> {
        let logits = self.graph.facts.outputs.get("logits");
        logits.ok_or_else(|| self.unknown("a language model needs the output `logits`"))
    }

    fn logits_element(&self) -> Result<Element, ModelError> {
        self.element("logits", self.logits()?)
    }

    fn vocab(&self) -> Result<usize, ModelError> {
        let logits = self.logits()?;
        let fixed = logits.shape.last().copied().flatten().and_then(|size| usize::try_from(size).ok());
        fixed
            .or_else(|| self.size("/model/vocab_size", "/vocab_size"))
            .filter(|&vocab| (1..=LARGEST_VOCAB).contains(&vocab))
            .ok_or_else(|| {
                self.unknown("neither the graph nor a configuration file tells a usable size of the vocabulary")
            })
    }

    fn context(&self) -> Result<usize, ModelError> {
        self.size("/model/context_length", "/max_position_embeddings")
            .or_else(|| self.size("/search/max_length", "/n_positions"))
            .filter(|&context| context > 1)
            .ok_or_else(|| self.unknown("no configuration file tells the context length (max_position_embeddings)"))
    }

    /// The union of all files: for chat models the end of a turn often stands in one of them only.
    fn end_ids(&self) -> Vec<u32> {
        let places = [
            (self.configs.genai.as_ref(), "/model/eos_token_id"),
            (self.configs.generation.as_ref(), "/eos_token_id"),
            (self.configs.config.as_ref(), "/eos_token_id"),
        ];
        let found = places.into_iter().filter_map(|(file, pointer)| file?.pointer(pointer));
        let ids = found.flat_map(|value| match value {
            Value::Array(ids) => ids.clone(),
            one => vec![one.clone()],
        });
        let mut ids: Vec<u32> = ids.filter_map(|id| id.as_u64()).filter_map(|id| u32::try_from(id).ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn end_tokens(&self) -> Vec<String> {
        let token = self.configs.tokenizer.as_ref().and_then(|config| config.get("eos_token"));
        let text = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        text.map(str::to_owned).into_iter().collect()
    }
}
