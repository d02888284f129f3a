//! What must hold whatever the bytes are: one function for each fuzz target.
//!
//! A fuzzer calls them with bytes that it makes up (`fuzz_targets/`), and `tests/fuzz_corpus.rs` with those that are kept
//! in `corpus/`, so that what was once found stays mended without a fuzzer. The one for configuration is in
//! `config_file.rs`, since only the binary knows that.

mod grpc;
mod models;
mod wire;

/// The name of a target, and what it checks.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every target but `config_file`, by the name of its folder in `corpus/`.
pub(crate) const TARGETS: [Target; 19] = [
    ("chat_body", muster_gateway::fuzzing::chat),
    ("coded_body", muster_gateway::fuzzing::coded_body),
    ("completion_body", muster_gateway::fuzzing::completion),
    ("dense_weights", models::dense_weights),
    ("fastchat_answer", muster_gateway::fuzzing::fastchat_answer),
    ("fastchat_body", muster_worker::fuzzing::fastchat_body),
    ("grpc_message", grpc::message),
    ("infer_body", wire::infer_body),
    ("infer_message", grpc::infer_message),
    ("journal", wire::journal),
    ("link_message", wire::link_message),
    ("onnx_graph", models::onnx_graph),
    ("passed_stream", muster_gateway::fuzzing::passed_stream),
    ("pbtxt", models::pbtxt),
    ("peers_file", wire::peers_file),
    ("rewrite_head", models::rewrite_head),
    ("sse_decoder", wire::sse_decoder),
    ("text_body", muster_gateway::fuzzing::texts),
    ("wire_json", wire::json),
];
