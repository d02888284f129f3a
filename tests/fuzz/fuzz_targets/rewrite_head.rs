//! ONNX files: any bytes are rewritten or kept, never a panic; what was rewritten is not rewritten again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_worker::model::onnx::rewrite::choose_positions;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(changed) = choose_positions(bytes).changed {
        assert!(choose_positions(&changed).changed.is_err());
    }
});
