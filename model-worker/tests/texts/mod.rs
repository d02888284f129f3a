//! Text models as a worker serves them, and what PyTorch gives for the same texts.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_worker::Config;
use muster_worker::catalog::{Ability, Catalog};
use muster_worker::config::{ModelConfig, ModelSource};
use muster_worker::model::onnx::runtime::LibrarySearch;
use muster_worker::text::TextModel;
use serde_json::Value;

/// Largest difference of a number that is taken: sums come in another order.
pub(crate) const TOLERANCE: f32 = 2e-4;

/// A folder below `tests/models`.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models").join(name)
}

pub(crate) fn config(path: PathBuf, variant: Option<&str>) -> Config {
    let place = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = place("XDG_CACHE_HOME").or_else(|| Some(place("HOME")?.join(".cache")));
    Config {
        models: vec![ModelConfig { name: "m".to_owned(), source: ModelSource::Folder(path) }],
        variant: variant.map(str::to_owned),
        threads: Some(NonZeroUsize::MIN),
        library: LibrarySearch { explicit: place("ORT_DYLIB_PATH"), beside: None, cache },
        ..Config::default()
    }
}

/// Serves the model of a folder as `m`.
pub(crate) fn catalog(path: PathBuf, variant: Option<&str>) -> Catalog {
    let (catalog, failures) = Catalog::load(&config(path, variant));
    assert!(failures.is_empty(), "{failures:?}");
    catalog
}

/// Why a folder cannot be served.
pub(crate) fn refusal(path: PathBuf) -> String {
    let (_, failures) = Catalog::load(&config(path, None));
    let [(_, error)] = &failures[..] else { panic!("it is served") };
    muster_shared::problem::chain(error)
}

/// A model of `tests/models` by what it can do.
pub(crate) fn model(name: &str, ability: Ability) -> Arc<TextModel> {
    Arc::clone(catalog(folder(name), None).text("m", ability).expect("a model that can do it"))
}

/// What PyTorch gives.
pub(crate) fn reference(path: &Path) -> Value {
    let text = std::fs::read_to_string(path.join("reference.json")).expect("a reference");
    serde_json::from_str(&text).expect("JSON")
}

pub(crate) fn items(reference: &Value, field: &str) -> Vec<Value> {
    reference[field].as_array().expect("a list").clone()
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

pub(crate) fn number(value: &Value) -> f32 {
    value.as_f64().expect("a number") as f32
}

pub(crate) fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().expect("numbers").iter().map(number).collect()
}

/// Whether numbers are the same but for the order in which they were summed.
pub(crate) fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < TOLERANCE, "{what}: {apart} apart, {found:?} instead of {expected:?}");
}

/// A copy of a model of `tests/models` with some files changed.
pub(crate) fn changed(name: &str, change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a folder");
    copy_all(&folder(name), copy.path());
    change(copy.path());
    copy
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_all(&path, &name);
        } else {
            std::fs::copy(&path, &name).expect("a copy");
        }
    }
}

/// Changes a JSON file.
pub(crate) fn edit(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_str(&std::fs::read_to_string(file).expect("a file")).expect("JSON");
    change(&mut value);
    std::fs::write(file, value.to_string()).expect("it can be written");
}
