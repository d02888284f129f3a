//! The direction of dependency, and the rooms that alone may name a library.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The crates, and those of ours that each may use.
const MAY_USE: [(&str, &[&str]); 5] = [
    ("shared", &[]),
    ("controller", &["muster-shared"]),
    ("model-worker", &["muster-shared"]),
    ("api-gateway", &["muster-shared"]),
    (".", &["muster-shared", "muster-controller", "muster-worker", "muster-gateway"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Our own crates under `[dependencies]` of a manifest.
fn dependencies(manifest: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(manifest).expect("a manifest");
    let section = text.split("\n[dependencies]\n").nth(1).expect("dependencies");
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    let names = lines.filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| name.starts_with("muster-")).map(str::to_owned).collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn crates_use_each_other_in_one_direction_only() {
    for (folder, may) in MAY_USE {
        let used = dependencies(&root().join(folder).join("Cargo.toml"));
        let may: BTreeSet<String> = may.iter().map(|name| (*name).to_owned()).collect();
        assert!(used.is_subset(&may), "{folder} uses {used:?}, and may use {may:?}");
    }
}

#[test]
fn onnx_runtime_is_named_in_one_folder() {
    let allowed = root().join("model-worker/src/model/onnx");
    for folder in ["src", "shared/src", "controller/src", "api-gateway/src", "model-worker/src"] {
        for file in sources(&root().join(folder)) {
            let inside = file.starts_with(&allowed) || file == allowed.with_extension("rs");
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let before = text.match_indices("ort::").map(|(at, _)| text[..at].chars().next_back());
            let named = before.into_iter().any(|before| !before.is_some_and(char::is_alphanumeric));
            assert!(inside || !named, "{} names ort", file.display());
        }
    }
}

#[test]
fn tonic_is_named_in_files_of_that_purpose_only() {
    for folder in ["src", "shared/src", "controller/src", "api-gateway/src", "model-worker/src"] {
        for file in sources(&root().join(folder)) {
            let path = file.strip_prefix(root()).expect("it is below");
            let inside = path.ends_with("grpc.rs") || path.iter().any(|part| part == "grpc");
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(inside || !text.contains("tonic::"), "{} names tonic", path.display());
        }
    }
}

#[test]
fn openai_is_known_to_the_gateway_alone_and_tokens_to_the_worker() {
    for (folder, word) in [
        ("controller/src", "chat.completion"),
        ("model-worker/src", "chat.completion"),
        ("api-gateway/src", "tokenizers::"),
        ("controller/src", "tokenizers::"),
        ("shared/src", "muster_"),
    ] {
        for file in sources(&root().join(folder)) {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let text = text.replace("\"muster_", ""); // names of metrics
            assert!(!text.contains(word), "{} contains `{word}`", file.display());
        }
    }
}
