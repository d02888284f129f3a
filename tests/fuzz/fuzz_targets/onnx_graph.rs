//! ONNX files: any bytes give facts or a reason, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_worker::model::onnx::bounds::Bounds;
use muster_worker::model::onnx::graph::GraphFacts;

fuzz_target!(|bytes: &[u8]| {
    let _ = GraphFacts::read(bytes);
    let _ = Bounds { folder: None }.check(bytes);
});
