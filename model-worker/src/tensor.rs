//! Plain tensor models: any ONNX graph, asked over the Open Inference Protocol.
//!
//! ```text
//!   InferRequest ─▶ check ─▶ batcher (queue ─▶ threads) ─▶ model::onnx::tensor ─▶ ONNX Runtime
//!   InferResponse ◀─ classify ◀──── batch ◀──────┘
//! ```
//!
//! * [`repository`]: the models of a worker; loading, exchanging and unloading them.
//! * [`layout`]: where versions are on the disc. [`settings`]: what `config.pbtxt` says, read by [`pbtxt`].
//! * [`version`]: one version, loaded. [`check`]: a request against what it takes. [`classify`]: numbers to classes.
//! * [`batcher`]: its threads. [`queue`]: what runs next, and what together. [`batch`]: several requests as one run.
//! * [`trial`]: whether rows may run together at all.
//! * `calls` and `http`: what clients ask; `grpc/tensors.rs` is the other wire.
//! * [`statistics`]: what runs have cost.

pub mod batch;
pub mod batcher;
pub(crate) mod calls;
pub mod check;
pub mod classify;
pub(crate) mod http;
pub mod layout;
pub mod pbtxt;
pub mod queue;
pub mod repository;
pub mod settings;
pub mod statistics;
pub mod trial;
pub mod version;
