//! Tensors as the Open Inference Protocol (KServe's v2) knows them: what a client asks of any graph, and what it gets.
//!
//! These are the protocol's messages with neither of its wires: JSON with binary data and gRPC are two forms of them.
//!
//! * [`datatype`]: kinds of elements.
//! * [`infer`]: a run of a model.
//! * [`metadata`]: what a server and its models say of themselves, and the repository of models.
//! * [`config`]: a model's settings, in the words of Triton's `config.pbtxt`.
//! * [`statistics`]: what a model's runs have cost.
//! * [`layout`]: how elements lie in bytes.
//! * [`http`]: the messages as bodies of HTTP; [`crate::grpc`] (feature `grpc`) has them as gRPC's.

#[cfg(test)]
pub(crate) mod arbitrary;
pub mod config;
pub mod datatype;
pub(crate) mod head;
pub mod http;
pub mod infer;
pub mod layout;
pub mod metadata;
pub mod statistics;

pub use config::ModelConfig;
pub use datatype::Datatype;
pub use infer::{InferRequest, InferResponse, Parameter, Parameters, RequestedOutput, Tensor};
pub use metadata::{IndexEntry, ModelMetadata, ModelState, ServerMetadata, TensorMetadata};
pub use statistics::{BatchStatistics, Duration, InferStatistics, ModelStatistics};
