//! A saved journal of decisions: no bytes break the reader or the replay, and an error names its line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_controller::journal::replay;

fuzz_target!(|bytes: &[u8]| {
    match replay(bytes, None) {
        Ok(replayed) => assert_eq!(replayed.decisions, replayed.same + replayed.differences.len() as u64),
        Err(error) => assert!(error.line > 0 && !error.message.is_empty()),
    }
});
