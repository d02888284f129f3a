//! Answers that are kept, and given again.

mod common;

use common::{CHAT, EMBEDDING, Process, eventually};
use reqwest::Response;
use serde_json::{Value, json};

const CACHE: [&str; 2] = ["--result-cache", "4MiB"];

/// Asks with a key; gives whether the answer had been kept, and the answer.
async fn ask(gateway: &Process, key: &str, path: &str, body: &Value) -> (bool, String) {
    let request = reqwest::Client::new().post(format!("{}{path}", gateway.address)).bearer_auth(key).json(body);
    let response: Response = request.send().await.expect("an answer");
    let kept = response.headers().get("x-muster-cache").is_some_and(|value| value == "hit");
    let (status, text) = (response.status(), response.text().await.expect("a text"));
    assert_eq!(status, 200, "{text}");
    (kept, text)
}

/// The same of an answer in JSON, less what no two answers share.
async fn ask_json(gateway: &Process, key: &str, path: &str, body: &Value) -> (bool, Value) {
    let (kept, text) = ask(gateway, key, path, body).await;
    let mut answer: Value = serde_json::from_str(&text).expect("JSON");
    let fields = answer.as_object_mut().expect("an object");
    let id = fields.remove("id");
    assert!(id.is_some() || fields["object"] == "list", "{text}");
    fields.remove("created");
    // That a worker still had a part of the prompt is true of the one time only.
    fields["usage"].as_object_mut().expect("an object").remove("prompt_tokens_details");
    (kept, answer)
}

/// The text of a stream of chunks.
fn streamed(events: &str) -> String {
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    let chunks = events.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    chunks.filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

fn chat(question: &str, more: Value) -> Value {
    let mut body = json!({ "model": CHAT, "messages": [{ "role": "user", "content": question }], "max_tokens": 8 });
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// A whole fleet that keeps answers. Ready as soon as its gateway knows the models that it has.
async fn up(flags: &[&str], key: &str, model: &str) -> Process {
    let up = Process::start(&[&["up", "--port", "0"], &CACHE[..], flags].concat());
    let body = json!({ "model": model, "prompt": "are you there?", "max_tokens": 1, "temperature": 0 });
    eventually("an answer is kept", async || ask(&up, key, "/v1/completions", &body).await.0).await;
    up
}

/// Requests that workers have taken.
async fn taken(up: &Process) -> f64 {
    up.metric("muster_worker_requests_total{").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_asks_again_is_answered_without_a_worker() {
    let up = up(&["--api-key", "a", "--api-key", "b"], "a", CHAT).await;
    let hits = async || up.metric("muster_gateway_cache_lookups_total{result=\"hit\"").await;
    let hits_before = hits().await;
    let texts = json!({ "model": EMBEDDING, "input": ["one", "two"] });
    let prompts = json!({ "model": CHAT, "prompt": ["a", "b", "c"], "max_tokens": 4, "temperature": 0 });
    for (path, body) in [
        ("/v1/chat/completions", chat("what?", json!({ "temperature": 0 }))),
        ("/v1/chat/completions", chat("what?", json!({ "temperature": 1, "seed": 7, "n": 2, "logprobs": true }))),
        ("/v1/completions", prompts),
        ("/v1/embeddings", texts.clone()),
    ] {
        let (kept, first) = ask_json(&up, "a", path, &body).await;
        assert!(!kept, "{body}");
        let before = taken(&up).await;
        let (kept, second) = ask_json(&up, "a", path, &body).await;
        assert_eq!((kept, &second, taken(&up).await), (true, &first, before), "{body}");
        let (kept, third) = ask_json(&up, "b", path, &body).await;
        assert_eq!((kept, third), (false, first), "another client has its own");
    }
    let base64 = json!({ "model": EMBEDDING, "input": ["one", "two"], "encoding_format": "base64" });
    let (kept, answer) = ask_json(&up, "a", "/v1/embeddings", &base64).await;
    assert!(kept && answer["data"][0]["embedding"].is_string(), "the same vectors, written otherwise: {answer}");

    let warm = chat("what?", json!({ "temperature": 1 }));
    for _ in 0..2 {
        assert!(!ask(&up, "a", "/v1/chat/completions", &warm).await.0, "it may be answered otherwise each time");
    }
    assert_eq!(hits().await - hits_before, 7.0, "three prompts in one");
    assert!(up.metric("muster_gateway_cache_bytes").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_and_a_whole_answer_are_kept_as_one() {
    let up = up(&[], "", CHAT).await;
    let path = "/v1/chat/completions";
    let usage = json!({ "include_usage": true });
    let stream = chat("hello", json!({ "temperature": 0, "stream": true, "stream_options": usage }));
    let (kept, first) = ask(&up, "", path, &stream).await;
    assert!(!kept && !streamed(&first).is_empty(), "{first}");
    let (kept, second) = ask(&up, "", path, &stream).await;
    assert!(kept && streamed(&second) == streamed(&first), "{second}");
    assert!(second.contains("\"total_tokens\""), "{second}");
    let (kept, whole) = ask_json(&up, "", path, &chat("hello", json!({ "temperature": 0 }))).await;
    assert_eq!((kept, &whole["choices"][0]["message"]["content"]), (true, &json!(streamed(&first))));
    let (kept, _) = ask(&up, "", path, &chat("hello", json!({ "temperature": 0, "max_tokens": 7 }))).await;
    assert!(!kept, "another question");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_leaves_is_not_kept() {
    let model = ["--model", "m=fake", "--fake-token-time", "5ms", "--fake-answer", "200", "--speculation", "false"];
    let up = up(&model, "", "m").await;
    let body = |stream: bool| json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }], "temperature": 0, "stream": stream });
    let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", up.address)).json(&body(true));
    let mut response = request.send().await.expect("an answer");
    response.chunk().await.expect("a chunk").expect("a chunk");
    drop(response);
    eventually("the worker stops", async || up.running().await == 0).await;
    let (kept, answer) = ask_json(&up, "", "/v1/chat/completions", &body(false)).await;
    assert_eq!((kept, &answer["choices"][0]["finish_reason"]), (false, &json!("stop")), "all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_of_other_files_has_answered_is_not_given() {
    let controller = Process::start(&["controller", "--port", "0", "--heartbeat", "200ms"]);
    let address = ["--controller-address", &controller.address];
    let gateway =
        Process::start(&[&["gateway", "--port", "0", "--sync-interval", "100ms"], &address[..], &CACHE].concat());
    let worker = |answer: &'static str| {
        let flags = ["worker", "--port", "0", "--model", "m=fake", "--fake-answer", answer];
        Process::start(&[&flags[..], &address].concat())
    };
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "x" }], "temperature": 0 });
    let asked = async || ask_json(&gateway, "", "/v1/chat/completions", &body).await;
    let kept = async || {
        let request = reqwest::Client::new().post(format!("{}/v1/chat/completions", gateway.address)).json(&body);
        let answer = request.send().await.expect("an answer");
        answer.headers().contains_key("x-muster-cache")
    };
    let first = worker("10");
    eventually("it is kept", kept).await;
    assert_eq!(asked().await.1["usage"]["completion_tokens"], 11, "the end counts");
    let second = worker("11");
    eventually("two that differ are not kept apart, and so not at all", async || !kept().await).await;
    drop(first);
    eventually("the other one is alone", kept).await;
    let (_, answer) = asked().await;
    assert_eq!(answer["usage"]["completion_tokens"], 12, "{answer}");
    drop(second);
}

#[test]
fn a_room_that_holds_nothing_is_refused() {
    for (flags, said) in [
        (
            ["--result-cache", "1KiB", "--result-cache-ttl", "1s"],
            "result_cache is 1.0 KiB; it must be at least 64.0 KiB",
        ),
        (["--result-cache", "1MiB", "--result-cache-ttl", "0s"], "result_cache_ttl is 0; it must be longer"),
    ] {
        let (status, _, errors) = common::run(&[&["gateway", "--port", "0"], &flags[..]].concat());
        assert!(!status.success() && errors.contains(said), "{errors}");
    }
}
