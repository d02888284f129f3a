//! What fuzzers have found worth keeping goes through each target's check, without a fuzzer.

#[path = "fuzz/checks/mod.rs"]
mod checks;

use std::path::{Path, PathBuf};

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn names(folder: PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

#[test]
fn the_corpus_of_every_target_holds() {
    for (name, check) in checks::TARGETS {
        let folder = fuzz().join("corpus").join(name);
        let inputs = names(folder.clone());
        assert!(!inputs.is_empty(), "{name} has a corpus");
        for input in inputs {
            println!("{name}/{input}"); // the last one is at fault when a check panics
            check(&std::fs::read(folder.join(input)).expect("a file"));
        }
    }
}

#[test]
fn every_check_has_a_target_a_corpus_and_an_entry() {
    let mut known: Vec<String> = checks::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    known.push("config_file".to_owned());
    known.sort();
    let targets = names(fuzz().join("fuzz_targets"));
    let targets: Vec<&str> = targets.iter().filter_map(|name| name.strip_suffix(".rs")).collect();
    let targets: Vec<&str> = targets.into_iter().filter(|name| *name != "config").collect();
    assert_eq!(targets, known);
    assert_eq!(names(fuzz().join("corpus")), known);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).expect("a manifest");
    for name in known {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is a target of cargo fuzz");
    }
}
