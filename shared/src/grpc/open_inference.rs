//! The Open Inference Protocol over gRPC: the messages of [`crate::tensor`] as `proto/open_inference.proto` has them.
//!
//! * [`read_request`] and [`response`]: a server's side.
//! * [`request`] and [`read_response`]: a client's side.
//! * The rest are conversions: metadata, configuration, statistics, the index of a repository.

mod config;
mod contents;
mod infer;
mod metadata;
mod statistics;
#[cfg(test)]
mod tests;

pub use infer::{Contents, read_request, read_response, request, response, response_in};

/// What is generated from `proto/open_inference.proto`.
pub mod proto {
    tonic::include_proto!("inference");
}

/// Length of a request on the wire, in bytes: what it takes to read it grows with that.
pub fn length(request: &proto::ModelInferRequest) -> usize {
    prost::Message::encoded_len(request)
}
