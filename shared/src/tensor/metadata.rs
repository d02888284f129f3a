//! What a server and its models say of themselves. The JSON of these types is the protocol's.

use serde::{Deserialize, Serialize};

use super::Datatype;

/// `GET /v2`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerMetadata {
    /// The server's name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// Extensions of the protocol that it speaks.
    pub extensions: Vec<String>,
}

/// `GET /v2/models/{model}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMetadata {
    /// The model's name.
    pub name: String,
    /// Versions that can be asked for, oldest first.
    pub versions: Vec<String>,
    /// What runs it: `onnxruntime_onnx`.
    pub platform: String,
    /// What it takes.
    pub inputs: Vec<TensorMetadata>,
    /// What it gives.
    pub outputs: Vec<TensorMetadata>,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    /// Its name in the graph.
    pub name: String,
    /// What its elements are.
    pub datatype: Datatype,
    /// Sizes of its dimensions; -1 where a run decides.
    pub shape: Vec<i64>,
}

/// One version of a model in `POST /v2/repository/index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// The model's name.
    pub name: String,
    /// The version; empty for a model that is not loaded.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Whether it can be asked.
    pub state: ModelState,
    /// Why it cannot; empty where it can.
    #[serde(default)]
    pub reason: String,
}

/// How far a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ModelState {
    /// It can be asked.
    Ready,
    /// It is there and not loaded, or could not be.
    Unavailable,
    /// It is being loaded.
    Loading,
    /// It finishes what runs.
    Unloading,
}

impl ModelState {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "READY",
            Self::Unavailable => "UNAVAILABLE",
            Self::Loading => "LOADING",
            Self::Unloading => "UNLOADING",
        }
    }
}
