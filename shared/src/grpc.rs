//! The worker protocol over gRPC: the messages of [`crate::generate`], [`crate::embed`] and [`crate::text`] as
//! `proto/muster.proto` has them.
//!
//! * [`proto`]: what is generated from the definition.
//! * [`Malformed`] and the conversions: our types to protobuf and back, without loss.
//! * [`problem`]: a [`crate::problem::Problem`] as the status of a call.
//! * [`open_inference`]: the same for [`crate::tensor`], as `proto/open_inference.proto` has it.
//! * [`GrpcPool`] and [`GrpcWorkerClient`]: calling a worker; [`serve()`]: being called.

mod client;
mod connection;
mod embed;
mod event;
mod messages;
mod models;
pub mod open_inference;
pub mod problem;
mod request;
mod serve;
#[cfg(test)]
mod tests;
mod text;

pub use client::GrpcWorkerClient;
pub use connection::GrpcPool;
pub use serve::{STREAMED, serve};

/// What is generated from `proto/muster.proto`.
#[expect(missing_docs, reason = "prost makes types whose meaning stands in the definition")]
pub mod proto {
    tonic::include_proto!("muster.v1");
}

/// A message that is protobuf, and still not what was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {reason}")]
pub struct Malformed {
    /// The field at fault.
    pub field: &'static str,
    /// What is wrong with it, and what was expected.
    pub reason: String,
}

impl Malformed {
    fn new(field: &'static str, reason: impl Into<String>) -> Self {
        Self { field, reason: reason.into() }
    }

    fn missing(field: &'static str) -> Self {
        Self::new(field, "is missing")
    }

    /// A value of an enum that this build does not know, or that is never sent.
    fn unknown(field: &'static str, value: i32) -> Self {
        Self::new(field, format!("is {value}, which this version does not know"))
    }
}

impl From<Malformed> for crate::problem::Problem {
    fn from(malformed: Malformed) -> Self {
        Self::invalid(malformed.field, malformed.to_string())
    }
}
