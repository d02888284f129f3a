#![no_main]
#[path = "../checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (_, check) = checks::TARGETS.iter().find(|(name, _)| *name == "text_body").expect("a check of that name");
    check(bytes);
});
