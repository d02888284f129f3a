//! A model's settings: the part of Triton's `ModelConfig` (model_config.proto) that muster knows, in its JSON form.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Datatype;

/// `GET /v2/models/{model}/config`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelConfig {
    /// The model's name; that of its folder.
    pub name: String,
    /// `onnxruntime_onnx`.
    pub platform: String,
    /// `onnxruntime`.
    pub backend: String,
    /// Which versions are served.
    pub version_policy: VersionPolicy,
    /// Largest first dimension of what runs together; 0: the graph's shapes are as they are, and have no such dimension.
    pub max_batch_size: u32,
    /// What the model takes.
    pub input: Vec<TensorConfig>,
    /// What the model gives.
    pub output: Vec<TensorConfig>,
    /// Sessions that run side by side.
    pub instance_group: Vec<InstanceGroup>,
    /// The graph's file in a version's folder.
    pub default_model_filename: String,
    /// Whether requests run together; absent: each alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamic_batching: Option<DynamicBatching>,
    /// Whatever else is set.
    pub parameters: BTreeMap<String, StringValue>,
}

/// Which versions of a model are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionPolicy {
    /// The newest so many.
    Latest {
        /// How many, at least one.
        num_versions: u32,
    },
    /// All that are there.
    All {},
    /// Those that are named.
    Specific {
        /// Their numbers.
        versions: Vec<i64>,
    },
}

impl Default for VersionPolicy {
    fn default() -> Self {
        Self::Latest { num_versions: 1 }
    }
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorConfig {
    /// Its name in the graph.
    pub name: String,
    /// What its elements are.
    #[serde(with = "triton_name")]
    pub data_type: Datatype,
    /// Sizes of its dimensions, without that of the batch; -1 where a run decides.
    pub dims: Vec<i64>,
    /// The file in the model's folder with a name for each index of an output, one a line; empty: there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label_filename: String,
}

/// Sessions of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceGroup {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Where they run: `KIND_CPU`, `KIND_GPU`, or `KIND_AUTO`.
    pub kind: String,
    /// How many, at least one.
    pub count: u32,
}

/// How requests run together.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DynamicBatching {
    /// Sizes at which nothing more is waited for.
    pub preferred_batch_size: Vec<u32>,
    /// Longest wait for company, in microseconds.
    pub max_queue_delay_microseconds: u64,
}

/// A text in an object of its own, as the protocol has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StringValue {
    /// The text.
    pub string_value: String,
}

/// Names of datatypes as Triton's configuration has them: `TYPE_FP32`, and `TYPE_STRING` for bytes.
pub mod triton_name {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::Datatype;

    /// The name of a datatype.
    pub fn of(datatype: Datatype) -> String {
        match datatype {
            Datatype::Bytes => "TYPE_STRING".to_owned(),
            other => format!("TYPE_{}", other.name()),
        }
    }

    /// The datatype of a name.
    pub fn parse(name: &str) -> Option<Datatype> {
        Datatype::ALL.into_iter().find(|datatype| of(*datatype) == name)
    }

    pub(super) fn serialize<S: Serializer>(datatype: &Datatype, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&of(*datatype))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Datatype, D::Error> {
        let name = String::deserialize(deserializer)?;
        parse(&name).ok_or_else(|| serde::de::Error::custom(format!("`{name}` is no data type; TYPE_FP32 is one")))
    }
}
