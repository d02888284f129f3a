//! Models that come and go.

use std::path::Path;

use muster_shared::problem::Kind;
use muster_shared::tensor::{IndexEntry, ModelState};
use muster_worker::config::{Config, ModelControl, RepositoryConfig};
use muster_worker::tensor::repository::Tensors;

use crate::bench::*;

fn explicit(folder: &Path, load: &[&str]) -> Tensors {
    let usual = config(folder, ModelControl::Explicit);
    let load = load.iter().map(|name| (*name).to_owned()).collect();
    let repository = usual.repository.clone().map(|repository| RepositoryConfig { load, ..repository });
    let tensors = Tensors::new(&Config { repository, ..usual });
    tensors.start();
    tensors
}

fn states(tensors: &Tensors) -> Vec<(String, String, ModelState)> {
    let entry = |entry: IndexEntry| (entry.name, entry.version, entry.state);
    tensors.index(false).into_iter().map(entry).collect()
}

fn state(name: &str, version: &str, state: ModelState) -> (String, String, ModelState) {
    (name.to_owned(), version.to_owned(), state)
}

#[tokio::test]
async fn with_explicit_control_clients_load_and_unload() {
    use ModelState::{Ready, Unavailable};
    let folder = repository(&["mlp", "fixed"]);
    let tensors = explicit(folder.path(), &["fixed"]);
    assert_eq!(states(&tensors), [state("fixed", "1", Ready), state("mlp", "", Unavailable)]);
    tensors.load("mlp").expect("it loads");
    let both = [state("mlp", "1", Ready), state("mlp", "2", Ready)];
    assert_eq!(states(&tensors)[1..], both);
    assert_eq!(tensors.index(true).len(), 3);
    let cards = tensors.cards();
    assert_eq!(cards.iter().map(|card| card.name.as_str()).collect::<Vec<_>>(), ["fixed", "mlp"]);
    tensors.unload("mlp").expect("it was there");
    assert_eq!(states(&tensors)[1], state("mlp", "", Unavailable));
    assert_eq!(refusal(&tensors, request("mlp", Vec::new())).await.kind, Kind::UnknownModel);
    assert_eq!(tensors.unload("mlp").expect_err("it is gone").kind, Kind::UnknownModel);
    for name in ["nobody", "../fixed", ""] {
        let problem = tensors.load(name).expect_err("there is none");
        assert!(problem.kind == Kind::Invalid && problem.message.contains("failed to load"), "{problem}");
        assert!(!problem.message.contains(&folder.path().display().to_string()), "{problem}");
    }
}

#[test]
fn without_explicit_control_nobody_loads() {
    let (tensors, _folder) = served(&["fixed"]);
    for refused in [tensors.load("fixed"), tensors.unload("fixed")] {
        let problem = refused.expect_err("it is not allowed");
        assert!(problem.message.contains("explicit model control") && problem.message.contains("`none`"), "{problem}");
    }
}

#[tokio::test]
async fn a_broken_model_leaves_the_old_one_serving_and_the_index_says_why() {
    let folder = repository(&["fixed"]);
    let tensors = explicit(folder.path(), &["*"]);
    let graph = folder.path().join("fixed/1/model.onnx");
    let good = std::fs::read(&graph).expect("the graph");
    let ask = || tensors.infer(request("fixed", vec![floats("x", &[2, 3], &[1.0; 6])]));
    for (file, bytes, words) in [
        ("1/model.onnx", &b"rubbish"[..], "not an ONNX model"),
        ("config.pbtxt", b"max_batch_size: 4", "max_batch_size"),
        ("config.pbtxt", b"platform: \"pytorch_libtorch\"", "onnxruntime_onnx"),
        ("config.pbtxt", b"input {", "line 1"),
        ("config.pbtxt", b"output { name: \"y\" data_type: TYPE_FP32 dims: [2,3] label_filename: \"../x\" }", "x"),
    ] {
        std::fs::write(folder.path().join("fixed").join(file), bytes).expect("a file");
        let problem = tensors.load("fixed").expect_err("it is broken");
        assert!(problem.message.contains(words), "{problem}");
        assert!(!problem.message.contains(&folder.path().display().to_string()), "{problem}");
        let index = tensors.index(false);
        assert_eq!(index[0].state, ModelState::Ready);
        assert!(index[0].reason.contains(words), "{index:?}");
        ask().await.expect("the old one serves");
        std::fs::write(&graph, &good).expect("a file");
        let _ = std::fs::remove_file(folder.path().join("fixed/config.pbtxt"));
    }
    tensors.load("fixed").expect("it is whole again");
    assert_eq!(tensors.index(false)[0].reason, "");
}

#[test]
fn weights_outside_of_the_models_folder_are_refused() {
    let folder = repository(&["large"]);
    let graph = folder.path().join("large/1");
    std::fs::write(folder.path().join("weights.bin"), vec![0; 2048 * 3072 * 4]).expect("a file");
    std::os::unix::fs::symlink(folder.path().join("weights.bin"), graph.join("weights.bin")).expect("a link");
    let tensors = explicit(folder.path(), &[]);
    let problem = tensors.load("large").expect_err("its weights are elsewhere");
    assert!(problem.message.contains("leads out of the folder"), "{problem}");
}

#[tokio::test]
async fn polling_sees_what_is_new_what_has_changed_and_what_has_gone() {
    use ModelState::Ready;
    let folder = repository(&["fixed"]);
    let tensors = Tensors::new(&config(folder.path(), ModelControl::Poll));
    tensors.start();
    assert_eq!(states(&tensors), [state("fixed", "1", Ready)]);
    let changes = tensors.changes();
    let seen = *changes.borrow();
    tensors.poll();
    assert_eq!(*changes.borrow(), seen, "nothing has changed, so nothing is loaded");

    copy(&models().join("mlp/1"), &folder.path().join("mlp/1"));
    tensors.poll();
    assert_eq!(states(&tensors), [state("fixed", "1", Ready), state("mlp", "1", Ready)]);
    copy(&models().join("mlp/2"), &folder.path().join("mlp/2"));
    tensors.poll();
    assert_eq!(states(&tensors)[1..], [state("mlp", "2", Ready)], "the newest version is served");
    std::fs::write(folder.path().join("mlp/config.pbtxt"), "version_policy { all { } }").expect("a file");
    tensors.poll();
    assert_eq!(states(&tensors)[1..], [state("mlp", "1", Ready), state("mlp", "2", Ready)]);
    std::fs::remove_dir_all(folder.path().join("fixed")).expect("it was there");
    tensors.poll();
    assert_eq!(states(&tensors).len(), 2);
    assert!(!tensors.has("fixed"));
}

#[tokio::test]
async fn a_file_and_a_folder_are_served_without_a_repository() {
    use muster_worker::catalog::Catalog;
    use muster_worker::config::{ModelConfig, ModelSource};
    let folder = repository(&["mlp"]);
    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare).expect("a folder");
    std::fs::copy(models().join("fixed/1/model.onnx"), bare.join("net.onnx")).expect("a copy");
    let model =
        |name: &str, path: &Path| ModelConfig { name: name.to_owned(), source: ModelSource::Folder(path.to_owned()) };
    let config = Config {
        models: vec![
            model("file", &bare.join("net.onnx")),
            model("folder", &bare),
            model("versions", &folder.path().join("mlp")),
        ],
        repository: None,
        ..config(folder.path(), ModelControl::None)
    };
    let (catalog, failures) = Catalog::load(&config);
    assert!(failures.is_empty(), "{failures:?}");
    let names: Vec<String> = catalog.cards().into_iter().map(|card| card.name).collect();
    assert_eq!(names, ["file", "folder", "versions"]);
    for name in ["file", "folder"] {
        let response = catalog.tensors().infer(request(name, vec![floats("x", &[2, 3], &[1.0; 6])])).await;
        assert_eq!(numbers(&response.expect("an answer").outputs[0]), [-1.0; 6]);
    }
    assert_eq!(catalog.tensors().metadata("versions", None).expect("it is there").versions, ["1", "2"]);
    let problem = catalog.language("file").expect_err("it writes nothing");
    assert!(problem.message.contains("Open Inference Protocol"), "{problem}");
    catalog.close();
}
