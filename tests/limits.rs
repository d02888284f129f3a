//! The edges of what a model takes, and models that are not quite as they should be.

mod common;

use std::path::Path;

use common::{Process, ask, chat_body, facts, run};
use serde_json::{Value, json};

/// Longest sequence of the model, in tokens.
const CONTEXT: usize = 2048;
/// Tokens that the model knows.
const VOCAB: usize = 2048;
const COMPLETIONS: &str = "/v1/completions";

/// A copy of the demo chat model, with its JSON files changed by `edit`.
fn variant(edit: impl Fn(&str, &mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("model-worker/demo/chat");
    for entry in std::fs::read_dir(demo).expect("a folder") {
        let from = entry.expect("an entry").path();
        let name = from.file_name().expect("a name").to_string_lossy().into_owned();
        let to = folder.path().join(&name);
        if !name.ends_with(".json") {
            std::fs::copy(from, to).expect("a copy");
            continue;
        }
        let mut json = serde_json::from_slice(&std::fs::read(from).expect("readable")).expect("JSON");
        edit(&name, &mut json);
        std::fs::write(to, json.to_string()).expect("a file");
    }
    folder
}

/// `up` with the model of a folder under the name `m`.
fn up(folder: &Path) -> Process {
    Process::start(&["up", "--port", "0", "--model", &format!("m={}", folder.display())])
}

/// The error that a completion is refused with.
async fn refused(up: &Process, prompt: &Value, max_tokens: usize) -> (u16, Value) {
    let body = json!({ "model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0 });
    let (status, answer) = up.post(COMPLETIONS, &body).await;
    (status, answer["error"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_may_fill_the_context_but_for_one_token() {
    let up = up(variant(|_, _| {}).path());
    let prompt = |length: usize| json!(vec![5; length]);
    let body = json!({ "model": "m", "prompt": prompt(CONTEXT - 1), "max_tokens": 1, "temperature": 0 });
    let (status, answer) = up.post(COMPLETIONS, &body).await;
    assert_eq!((status, &answer["usage"]["total_tokens"]), (200, &json!(CONTEXT)), "{answer}");

    for length in [CONTEXT, CONTEXT + 1] {
        let (status, error) = refused(&up, &prompt(length), 1).await;
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains(&format!("{length} tokens")) && message.contains("2048"), "{message}");
        assert!(message.contains("shorten the prompt"), "{message}");
    }
    let (status, error) = refused(&up, &prompt(CONTEXT - 1), 2).await;
    assert_eq!((status, &error["param"]), (400, &json!("max_tokens")), "{error}");
    let message = error["message"].as_str().expect("a text");
    assert!(message.contains("2047 tokens and 2 more") && message.contains("lower max_tokens to 1"), "{message}");
    let (status, error) = refused(&up, &prompt(1), usize::MAX).await;
    assert_eq!((status, &error["param"]), (400, &json!("max_tokens")), "{error}");

    for empty in [json!(""), json!([]), json!([[]]), json!([""])] {
        let (status, error) = refused(&up, &empty, 1).await;
        assert_eq!(status, 400, "{empty}: {error}");
        assert!(error["param"].as_str().is_some_and(|param| param.starts_with("prompt")), "{empty}: {error}");
        assert!(error["message"].as_str().is_some_and(|message| message.contains("empty")), "{empty}: {error}");
    }
    for beyond in [json!([5, 2048]), json!([u32::MAX]), json!([-1]), json!([1u64 << 40])] {
        let (status, error) = refused(&up, &beyond, 1).await;
        assert_eq!(status, 400, "{beyond}: {error}");
        assert!(error["param"].as_str().is_some_and(|param| param.starts_with("prompt")), "{beyond}: {error}");
    }
    let (question, right) = facts::capital(3);
    assert_eq!(ask(&up.address, "m", &question).await, right, "and all goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_end_tokens_ends_an_answer() {
    let city = |name: &str, json: &mut Value| {
        if name == "genai_config.json" {
            json["model"]["eos_token_id"] = json!([2, token(" is")]);
        }
    };
    let up = up(variant(city).path());
    let body = chat_body("m", "What is the capital of France?");
    let (_, answer) = up.post("/v1/chat/completions", &body).await;
    let choice = &answer["choices"][0];
    assert_eq!(
        (&choice["message"]["content"], &choice["finish_reason"]),
        (&json!("The capital of France"), &json!("stop"))
    );
    // An answer without that token ends at the other.
    assert_eq!(ask(&up.address, "m", "Say OK").await, "OK");
}

/// The id of a token of the demo model.
fn token(text: &str) -> u64 {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("model-worker/demo/chat/tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(file).expect("readable")).expect("JSON");
    let symbols = text.replace(' ', "Ġ");
    tokenizer["model"]["vocab"][&symbols].as_u64().unwrap_or_else(|| panic!("`{text}` is one token"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_with_more_tokens_than_the_model_serves_those_that_the_model_knows() {
    let larger = |name: &str, json: &mut Value| {
        if name == "tokenizer.json" {
            let mut added = json["added_tokens"][0].clone();
            (added["id"], added["content"]) = (json!(VOCAB), json!("<|beyond|>"));
            json["added_tokens"].as_array_mut().expect("a list").push(added);
        }
    };
    let up = up(variant(larger).path());
    for path in [COMPLETIONS, "/v1/chat/completions"] {
        let mut body = chat_body("m", "Hello <|beyond|>");
        body["prompt"] = json!("Hello <|beyond|>");
        let other = if path == COMPLETIONS { "messages" } else { "prompt" };
        body.as_object_mut().expect("an object").remove(other);
        let (status, answer) = up.post(path, &body).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, 400, "{path}: {answer}");
        assert!(message.contains("token id 2048") && message.contains("has 2048 tokens"), "{path}: {message}");
    }
    let (question, right) = facts::capital(5);
    assert_eq!(ask(&up.address, "m", &question).await, right);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_with_fewer_tokens_than_the_model_never_says_what_it_cannot_spell() {
    // The last four tokens of the demo model are those of its tools.
    let smaller = |name: &str, json: &mut Value| {
        if name == "tokenizer.json" {
            let added = json["added_tokens"].as_array_mut().expect("a list");
            added.retain(|token| token["id"].as_u64().is_some_and(|id| id < 2000));
            json["model"]["vocab"]
                .as_object_mut()
                .expect("a table")
                .retain(|_, id| id.as_u64().is_some_and(|id| id < 2000));
            let known = json["model"]["vocab"].clone();
            json["model"]["merges"].as_array_mut().expect("a list").retain(|pair| {
                let joined = pair.as_array().map_or_else(
                    || pair.as_str().expect("a pair").replace(' ', ""),
                    |pair| pair.iter().filter_map(Value::as_str).collect(),
                );
                known.get(joined).is_some()
            });
        }
    };
    let up = up(variant(smaller).path());
    let (question, right) = facts::capital(0);
    assert_eq!(ask(&up.address, "m", &question).await, right);
    let (status, error) = refused(&up, &json!([5, 2000]), 1).await;
    assert_eq!((status, &error["param"]), (400, &json!("prompt")), "{error}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("2000 tokens")), "{error}");
    let wild =
        json!({ "model": "m", "prompt": "Once", "max_tokens": 400, "temperature": 2, "seed": 1, "ignore_eos": true });
    let (status, answer) = up.post(COMPLETIONS, &wild).await;
    assert_eq!((status, &answer["usage"]["completion_tokens"]), (200, &json!(400)), "{answer}");
}

#[test]
fn more_memory_for_keys_and_values_than_there_is_ends_the_start() {
    for command in [&["worker", "--no-register"][..], &["up"]] {
        let (status, _, errors) = run(&[command, &["--port", "0", "--kv-memory", "1000TiB"]].concat());
        assert_eq!(status.code(), Some(1), "{errors}");
        assert!(errors.contains("1000.0 TiB") && errors.contains("lower --kv-memory"), "{errors}");
        let free = errors.split("only ").nth(1).and_then(|rest| rest.split(" of memory are free").next());
        assert!(free.is_some_and(|free| free.ends_with("iB") && free != "0 B"), "{errors}");
    }
}

#[test]
fn a_decoder_without_past_is_named_as_such() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = r#"{ "architectures": ["LlamaForCausalLM"], "vocab_size": 4, "max_position_embeddings": 64 }"#;
    std::fs::write(folder.path().join("config.json"), config).expect("a file");
    std::fs::write(folder.path().join("model.onnx"), include_bytes!("models/without-past.onnx")).expect("a file");
    let model = folder.path().display().to_string();
    let (status, _, errors) = run(&["worker", "--no-register", "--port", "0", "--model", &model]);
    assert_eq!(status.code(), Some(1), "{errors}");
    for part in ["no past keys and values", "text-generation-with-past", "model.onnx"] {
        assert!(errors.contains(part), "no `{part}` in {errors}");
    }
}
