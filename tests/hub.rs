//! Models of a hub: fetched, kept, served; and what is said when that fails.

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use axum::body::Bytes;
use common::hub::{COMMIT, Hub, TOKEN, files_of, sha256};
use common::{Process, ask, eventually, is_ready, muster};
use muster_shared::secret::Secret;
use muster_worker::hub::{Fetched, HubConfig, HubError, HubModel, fetch};
use muster_worker::model::files::ModelFiles;

const CHAT_FOLDER: &str = "model-worker/demo/chat";

fn config(hub: &Hub, cache: &Path) -> HubConfig {
    HubConfig { endpoint: hub.endpoint.clone(), cache: Some(cache.to_owned()), ..HubConfig::default() }
}

fn get<'a>(config: &HubConfig, model: &str, variant: Option<&'a str>) -> Result<Fetched<'a>, HubError> {
    fetch(config, &HubModel::parse(model).expect("a model"), variant, &|_, _| ())
}

/// The variants of one language model, all with the same bytes, and of one embedding model.
fn variants() -> BTreeMap<String, Bytes> {
    let mut files = files_of("tests/models/demo-concat");
    let graph = files["onnx/model.onnx"].clone();
    for name in ["onnx/model_fp16.onnx", "onnx/model_q4.onnx"] {
        files.insert(name.to_owned(), graph.clone());
    }
    files.insert("model.safetensors".to_owned(), Bytes::from_static(b"not wanted"));
    files
}

/// Names of the files in a cache's snapshot.
fn snapshot(cache: &Path, repository: &str) -> Vec<String> {
    let root = cache.join(repository).join("snapshots").join(COMMIT);
    let mut names = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                assert!(path.is_symlink() && path.is_file(), "{} leads nowhere", path.display());
                names.push(path.strip_prefix(&root).expect("below it").display().to_string());
            }
        }
    }
    names.sort();
    names
}

/// The binary with the hub's variables, and none of this process's own.
fn with_hub(arguments: &[&str], endpoint: &str, home: &Path) -> Command {
    let mut command = muster(arguments);
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", endpoint).env("HF_HOME", home).env("NO_PROXY", "127.0.0.1");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_the_hub_is_served_and_served_again_without_the_hub() {
    let home = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(&[("org/demo", files_of(CHAT_FOLDER))]);
    let arguments = ["up", "--port", "0", "--model", "org/demo"];
    let (question, answer) = ("What is the capital of France?", "Paris");
    {
        let up = Process::spawn(with_hub(&arguments, &hub.endpoint, home.path()));
        eventually("it is ready", async || is_ready(&up.address).await).await;
        assert!(ask(&up.address, "org/demo", question).await.contains(answer));
        let model = up.get("/v1/models/org/demo").await;
        assert_eq!(model["id"], "org/demo");
    }
    let endpoint = hub.endpoint.clone();
    drop(hub);

    let mut offline = with_hub(&["up", "--port", "0", "--model", "mine=org/demo"], &endpoint, home.path());
    offline.env("HF_HUB_OFFLINE", "1");
    assert!(ask(&Process::spawn(offline).address, "mine", question).await.contains(answer));

    let unreachable = Process::spawn(with_hub(&arguments, &endpoint, home.path()));
    assert!(ask(&unreachable.address, "org/demo", question).await.contains(answer));
    assert!(unreachable.errors().contains("the hub cannot be reached"), "{}", unreachable.errors());
}

#[test]
fn only_the_chosen_variant_is_fetched_and_nothing_twice() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(&[("org/many", variants())]);
    let config = config(&hub, cache.path());
    let configuration = ["chat_template.jinja", "config.json", "generation_config.json"];
    let tokenizer = ["tokenizer.json", "tokenizer_config.json"];

    get(&config, "org/many", None).expect("a model");
    let expected = [&configuration[..], &["onnx/model_q4.onnx"], &tokenizer].concat();
    assert_eq!(snapshot(cache.path(), "models--org--many"), expected);
    assert_eq!(std::fs::read_to_string(cache.path().join("models--org--many/refs/main")).expect("a ref"), COMMIT);

    let before = hub.book().contents.len();
    get(&config, "org/many@refs/pr/1", None).expect("the same commit");
    // The same bytes have the same name: a link is made and nothing is fetched.
    get(&config, "org/many", Some("fp16")).expect("another variant");
    assert_eq!(hub.book().contents.len(), before);
    assert!(snapshot(cache.path(), "models--org--many").contains(&"onnx/model_fp16.onnx".to_owned()));

    let error = get(&config, "org/many", Some("q8")).expect_err("no such variant").to_string();
    assert!(error.contains("no variant `q8`; it has fp32, fp16, q4"), "{error}");
}

#[test]
fn a_broken_download_goes_on_where_it_ended() {
    let cache = tempfile::tempdir().expect("a folder");
    let files = files_of(CHAT_FOLDER);
    let half = files["model.onnx"].len() / 2;
    let hub = Hub::start(&[("org/demo", files.clone())]);
    hub.book().cut.extend(["model.onnx".to_owned(), "genai_config.json".to_owned()]);
    // What an earlier process left behind.
    let blobs = cache.path().join("models--org--demo/blobs");
    std::fs::create_dir_all(&blobs).expect("a folder");
    std::fs::write(blobs.join(format!("{}.incomplete", sha256(&files["model.onnx"]))), &files["model.onnx"][..1000])
        .expect("a file");
    let seen = std::cell::RefCell::new(Vec::new());
    let observe = |done, of| seen.borrow_mut().push((done, of));
    let model = HubModel::parse("org/demo").expect("a model");
    let fetched = fetch(&config(&hub, cache.path()), &model, None, &observe).expect("a model");

    let ModelFiles::Folder(folder) = fetched.files else { panic!("a folder") };
    for (name, content) in &files {
        assert_eq!(std::fs::read(folder.join(name)).expect(name), content[..], "{name}");
    }
    let ranges: Vec<_> = hub.book().contents.iter().filter(|(name, _)| name == "model.onnx").cloned().collect();
    let [(_, Some(first)), (_, Some(range))] = &ranges[..] else { panic!("{ranges:?}") };
    assert_eq!(first, "bytes=1000-");
    let from: usize = range.strip_prefix("bytes=").and_then(|it| it.strip_suffix('-')?.parse().ok()).expect("a number");
    assert!((1001..=half + 1000).contains(&from), "{range}");
    let total = files.values().map(|content| content.len() as u64).sum();
    let seen = seen.into_inner();
    assert_eq!(seen.last(), Some(&(total, total)));
    assert!(seen.windows(2).all(|pair| pair[0].0 <= pair[1].0), "progress goes backwards");
}

#[test]
fn a_hub_that_cannot_deliver_is_given_up_and_what_came_is_kept() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(&[("org/demo", files_of(CHAT_FOLDER))]);
    hub.book().down.insert("model.onnx".to_owned());
    let error = get(&config(&hub, cache.path()), "org/demo", None).expect_err("no graph").to_string();
    for part in ["model.onnx broke off after 0 of", "503", "start again"] {
        assert!(error.contains(part), "no `{part}` in {error}");
    }
    assert!(snapshot(cache.path(), "models--org--demo").contains(&"tokenizer.json".to_owned()));
}

#[test]
fn a_content_that_is_not_what_was_promised_is_removed() {
    for file in ["model.onnx", "genai_config.json"] {
        let cache = tempfile::tempdir().expect("a folder");
        let hub = Hub::start(&[("org/demo", files_of(CHAT_FOLDER))]);
        let config = config(&hub, cache.path());
        hub.book().spoilt.insert(file.to_owned());
        let error = get(&config, "org/demo", None).expect_err("a wrong byte").to_string();
        assert!(error.contains(file) && error.contains("checksum") && error.contains("removed"), "{error}");
        assert!(!snapshot(cache.path(), "models--org--demo").contains(&file.to_owned()));
        let refs = cache.path().join("models--org--demo/refs");
        assert!(!refs.exists(), "the revision leads to half a model");

        hub.book().spoilt.clear();
        get(&config, "org/demo", None).expect("the right bytes");
    }
}

#[test]
fn two_at_once_fetch_each_content_once() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(&[("org/demo", files_of(CHAT_FOLDER))]);
    let config = config(&hub, cache.path());
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| get(&config, "org/demo", None).map(|_| ())));
        let _: [(); 2] = both.map(|thread| thread.join().expect("no panic").expect("a model"));
    });
    let mut contents: Vec<String> = hub.book().contents.iter().map(|(name, _)| name.clone()).collect();
    contents.sort();
    let expected: Vec<String> = files_of(CHAT_FOLDER).into_keys().collect();
    assert_eq!(contents, expected);
}

#[test]
fn a_gated_repository_wants_the_token_and_the_store_never_sees_it() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(&[("org/gated", files_of(CHAT_FOLDER))]);
    let with = |token: Option<&str>| HubConfig { token: token.map(Secret::new), ..config(&hub, cache.path()) };
    for token in [None, Some("hf_wrong")] {
        let error = get(&with(token), "org/gated", None).expect_err("gated").to_string();
        let page = format!("{}/org/gated", hub.endpoint);
        for part in ["no access", "the hub's own words", "HF_TOKEN", &page] {
            assert!(error.contains(part), "no `{part}` in {error}");
        }
        assert!(!error.contains("hf_wrong"), "{error}");
    }
    get(&with(Some(TOKEN)), "org/gated", None).expect("a model");
    assert!(!hub.book().leaked);
}

#[test]
fn whoever_asks_for_what_is_not_there_learns_what_is() {
    let home = tempfile::tempdir().expect("a folder");
    let plain = [("config.json", "{}"), ("model.safetensors", "")];
    let plain = plain.map(|(name, text)| (name.to_owned(), Bytes::from_static(text.as_bytes())));
    let mut incomplete = files_of(CHAT_FOLDER);
    incomplete.remove("model.onnx");
    incomplete.insert("other.onnx".to_owned(), Bytes::from_static(b"x"));
    let repositories = [("org/plain", plain.into()), ("org/many", variants()), ("org/half", incomplete)];
    let hub = Hub::start(&repositories);
    let nobody = "http://127.0.0.1:1";
    for (arguments, endpoint, parts) in [
        (
            &["--model", "org/none"][..],
            hub.endpoint.as_str(),
            &["`org/none` is no folder here", "ORG/NAME", "HF_TOKEN"][..],
        ),
        (&["--model", "none"], &hub.endpoint, &["folder none does not exist", "ORG/NAME"]),
        (&["--model", "org/many@v9"], &hub.endpoint, &["no revision `v9`", "org/many/tree/main"]),
        (&["--model", "org/plain"], &hub.endpoint, &["no ONNX graph", "model.safetensors", "onnx-community"]),
        (&["--model", "org/half"], &hub.endpoint, &["`org/half` has no file model.onnx"]),
        (&["--model", "org/many", "--variant", "q8"], &hub.endpoint, &["no variant `q8`", "fp32, fp16, q4"]),
        (&["--model", "org/many"], nobody, &["cannot reach the hub at", nobody, "not in the cache"]),
    ] {
        let arguments = [&["worker", "--port", "0", "--no-register"], arguments].concat();
        let output = with_hub(&arguments, endpoint, home.path()).output().expect("the binary runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        for part in parts {
            assert!(errors.contains(part), "{arguments:?}: no `{part}` in:\n{errors}");
        }
    }
}

#[test]
fn offline_names_the_file_that_is_missing() {
    let cache = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(&[("org/demo", files_of(CHAT_FOLDER))]);
    let online = config(&hub, cache.path());
    let offline = HubConfig { offline: true, ..online.clone() };
    let error = |model| get(&offline, model, None).expect_err("not there").to_string();
    assert!(error("org/demo").contains("every file of `org/demo` is not in the cache"), "{}", error("org/demo"));
    get(&online, "org/demo", None).expect("a model");
    get(&offline, "org/demo", None).expect("from the cache");
    get(&offline, &format!("org/demo@{COMMIT}"), None).expect("by its commit");
    assert!(error("org/demo@v2").contains("org/demo@v2"));
    for file in ["tokenizer.json", "model.onnx"] {
        let pointer = cache.path().join("models--org--demo/snapshots").join(COMMIT).join(file);
        std::fs::rename(&pointer, pointer.with_extension("away")).expect("it is there");
        let error = error("org/demo");
        assert!(error.contains(file) || error.contains("every ONNX graph"), "{error}");
        assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
        std::fs::rename(pointer.with_extension("away"), &pointer).expect("it was there");
    }
    assert_eq!(hub.book().contents.len(), files_of(CHAT_FOLDER).len());
}

/// A model whose graph names a file of weights by a name of its own.
fn external() -> BTreeMap<String, Bytes> {
    let mut files = files_of("tests/models/external-data");
    files.insert("tokenizer.json".to_owned(), files_of("model-worker/demo/embedding")["tokenizer.json"].clone());
    files
}

#[test]
fn onnx_runtime_loads_weights_through_the_links_of_the_cache() {
    let home = tempfile::tempdir().expect("a folder");
    let hub = Hub::start(&[("org/outside", external())]);
    let cache = home.path().join("hub");
    let doctor = |model: &str| {
        let output = with_hub(&["doctor", "--model", model], &hub.endpoint, home.path()).output().expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (_, text) = doctor("org/outside");
    assert!(text.contains("to be downloaded, every file is not in the cache (org/outside of the hub)"), "{text}");
    assert_eq!(hub.book().contents.len(), 0, "to look is not to download");

    get(&config(&hub, &cache), "org/outside", None).expect("a model");
    let (good, text) = doctor("org/outside");
    assert!(good && text.contains("org/outside: loads"), "{text}");
    let folder = cache.join("models--org--outside/snapshots").join(COMMIT).display().to_string();
    let (good, text) = doctor(&folder);
    assert!(good && text.contains(": loads"), "the snapshot's folder by its path: {text}");

    // As newer versions of huggingface_hub do: contents in a store beside the repositories.
    let weights = cache.join("models--org--outside/snapshots").join(COMMIT).join("onnx/model.weights");
    let blob = weights.canonicalize().expect("it leads to a blob");
    std::fs::create_dir_all(cache.join("blobs/ab")).expect("a folder");
    std::fs::rename(&blob, cache.join("blobs/ab/content")).expect("it moves");
    std::os::unix::fs::symlink("../../blobs/ab/content", &blob).expect("a link");
    let (good, text) = doctor("org/outside");
    assert!(good && text.contains("org/outside: loads"), "{text}");

    // Anything else that a link leads to stays refused.
    let elsewhere = home.path().join("elsewhere");
    std::fs::rename(&blob, &elsewhere).expect("it moves");
    std::os::unix::fs::symlink(&elsewhere, &blob).expect("a link");
    let (good, text) = doctor("org/outside");
    assert!(!good && text.contains("leads out of the folder"), "{text}");
}

#[test]
fn variants_of_a_folder_are_chosen_and_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, content) in variants() {
        let path = folder.path().join("many").join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, content).expect("a file");
    }
    let many = folder.path().join("many").display().to_string();
    let chat = Path::new(env!("CARGO_MANIFEST_DIR")).join(CHAT_FOLDER).display().to_string();
    for (model, variant, good, parts) in [
        (&many, "q4", true, &["model_q4.onnx", "fp32, fp16"][..]),
        (&many, "fp32", true, &["onnx/model.onnx", "fp16, q4"]),
        (&many, "onnx/model_fp16.onnx", true, &["model_fp16.onnx"]),
        (&many, "int8", false, &["no variant `int8`", "fp32, fp16, q4"]),
        (&chat, "model.onnx", true, &["loads"]),
        (&chat, "q4", false, &["no variant `q4`", "only model.onnx"]),
    ] {
        let output = muster(&["doctor", "--log", "info", "--model", model, "--variant", variant]).output();
        let output = output.expect("the binary runs");
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert_eq!(output.status.success(), good, "{variant}: {text}");
        for part in parts {
            assert!(text.contains(part), "{variant}: no `{part}` in:\n{text}");
        }
    }
}
