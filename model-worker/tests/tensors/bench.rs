//! What the tests share: models in a folder, and requests.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use muster_shared::problem::Problem;
use muster_shared::tensor::{Datatype, InferRequest, InferResponse, Parameters, RequestedOutput, Tensor, layout};
use muster_worker::Config;
use muster_worker::config::{ModelControl, RepositoryConfig};
use muster_worker::model::onnx::runtime::LibrarySearch;
use muster_worker::model::onnx::spin::Spin;
use muster_worker::tensor::repository::Tensors;
use tempfile::TempDir;

/// Time within which whatever is waited for must have happened.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The models of these tests.
pub(crate) fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/tensors")
}

/// A worker's configuration with a repository.
#[expect(clippy::disallowed_methods, reason = "where ONNX Runtime is depends on the machine")]
pub(crate) fn config(folder: &Path, control: ModelControl) -> Config {
    let place = |name: &str| std::env::var(name).ok().map(PathBuf::from);
    let cache = place("XDG_CACHE_HOME").or_else(|| place("HOME").map(|home| home.join(".cache")));
    Config {
        repository: Some(RepositoryConfig {
            folder: folder.to_owned(),
            control,
            load: Vec::new(),
            poll: Duration::from_secs(3600),
        }),
        threads: NonZeroUsize::new(2),
        spin: Spin::Off,
        library: LibrarySearch { explicit: place("ORT_DYLIB_PATH"), beside: None, cache },
        ..Config::default()
    }
}

/// A repository with copies of some of the models.
pub(crate) fn repository(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    names.iter().for_each(|name| copy(&models().join(name), &folder.path().join(name)));
    folder
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        match path.is_dir() {
            true => copy(&path, &to),
            false => assert!(std::fs::copy(&path, to).is_ok(), "{} is copied", path.display()),
        }
    }
}

/// All of those models, loaded.
pub(crate) fn served(names: &[&str]) -> (Tensors, TempDir) {
    let folder = repository(names);
    let tensors = Tensors::new(&config(folder.path(), ModelControl::None));
    tensors.start();
    (tensors, folder)
}

pub(crate) fn tensor(name: &str, datatype: Datatype, shape: &[usize], data: impl Into<Bytes>) -> Tensor {
    Tensor { name: name.to_owned(), datatype, shape: shape.to_vec(), parameters: Parameters::new(), data: data.into() }
}

pub(crate) fn floats(name: &str, shape: &[usize], numbers: &[f32]) -> Tensor {
    tensor(name, Datatype::Fp32, shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
}

pub(crate) fn texts(name: &str, texts: &[&str]) -> Tensor {
    let elements = texts.iter().map(|text| text.as_bytes());
    tensor(name, Datatype::Bytes, &[texts.len()], layout::join_strings(elements).expect("they are short"))
}

pub(crate) fn request(model: &str, inputs: Vec<Tensor>) -> InferRequest {
    InferRequest { model: model.to_owned(), inputs, ..InferRequest::default() }
}

pub(crate) fn wanted(name: &str, classification: usize) -> RequestedOutput {
    RequestedOutput { name: name.to_owned(), classification }
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

pub(crate) fn strings(tensor: &Tensor) -> Vec<String> {
    let elements = layout::strings(&tensor.data).map(|element| element.expect("whole elements"));
    elements.map(|text| String::from_utf8(text.to_vec()).expect("a text")).collect()
}

pub(crate) fn output<'a>(response: &'a InferResponse, name: &str) -> &'a Tensor {
    response.outputs.iter().find(|output| output.name == name).expect("the output")
}

pub(crate) async fn refusal(tensors: &Tensors, request: InferRequest) -> Problem {
    tensors.infer(request).await.expect_err("it cannot be answered")
}
