//! A controller's peers file: no text breaks the reader, and every mistake is told with its place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use muster_controller::peers::file::parse;

fuzz_target!(|text: &str| {
    let own = "127.0.0.1:21001".parse().ok();
    if let Err(mistakes) = parse("peers.yaml", text, own) {
        assert!(mistakes.to_string().starts_with("peers.yaml:"));
    }
});
