//! Plain tensor models on ONNX Runtime itself.

mod batching;
mod bench;
mod infer;
mod repository;
mod swaps;
mod wires;
