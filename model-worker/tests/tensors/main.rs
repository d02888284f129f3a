//! Plain tensor models on ONNX Runtime itself.

mod bench;
mod batching;
mod infer;
mod repository;
mod swaps;

