//! A run of a model: tensors in, tensors out.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Datatype;

/// A named array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the graph.
    pub name: String,
    /// What its elements are.
    pub datatype: Datatype,
    /// Sizes of its dimensions; none for a scalar.
    pub shape: Vec<usize>,
    /// More about it.
    pub parameters: Parameters,
    /// Its elements, in row-major order, little-endian; of [`Datatype::Bytes`] each after its length in 4 bytes. The
    /// protocol's own raw form.
    pub data: Bytes,
}

/// More about a request, a tensor or an answer, by name.
pub type Parameters = BTreeMap<String, Parameter>;

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Parameter {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number beyond those.
    Uint(u64),
    /// Any other number; never NaN.
    Double(f64),
    /// A text.
    String(String),
}

impl Eq for Parameter {}

/// A run that a client wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InferRequest {
    /// Name for logs: the request's id in the fleet.
    pub request_id: String,
    /// The model's name.
    pub model: String,
    /// The version; absent: the newest that the model's policy serves.
    pub version: Option<String>,
    /// The client's own name for the request, given back with the answer; may be empty.
    pub id: String,
    /// More about the run.
    pub parameters: Parameters,
    /// Inputs of the graph, in any order.
    pub inputs: Vec<Tensor>,
    /// Outputs that are wanted; none: all.
    pub outputs: Vec<RequestedOutput>,
}

/// An output that a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestedOutput {
    /// Its name in the graph.
    pub name: String,
    /// Gives, in place of the numbers, so many of the largest as `value:index` or `value:index:label`: the protocol's
    /// classification extension. 0: the numbers.
    pub classification: usize,
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferResponse {
    /// The model's name.
    pub model: String,
    /// The version that ran.
    pub version: String,
    /// [`InferRequest::id`].
    pub id: String,
    /// More about the run.
    pub parameters: Parameters,
    /// The outputs, in the order in which they were wanted; else in that of the graph.
    pub outputs: Vec<Tensor>,
}
