#![no_main]
// What a program uses of its configuration is not what is looked at here.
#![allow(dead_code, unexpected_cfgs, unused_imports, unused_macros)]
#[path = "../checks/config_file.rs"]
mod check;
mod config; // the binary's own, by a link in this folder: it is in no library

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::config_file(bytes));
