//! Chat, completions and embeddings through gateway, controller and worker, with answers that are known.

mod common;

use common::{CHAT, Cluster, EMBEDDING, chat_body, facts};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// The chat model in the layout of ONNX Runtime GenAI.
const GQA: &str = concat!("gqa=", env!("CARGO_MANIFEST_DIR"), "/model-worker/demo/chat");
/// The same in the layout of Optimum and transformers.js.
const CONCAT: &str = concat!("concat=", env!("CARGO_MANIFEST_DIR"), "/tests/models/demo-concat");
/// The first with weights and activations of 8 bits.
const INT8: &str = concat!("int8=", env!("CARGO_MANIFEST_DIR"), "/tests/models/demo-int8");

#[tokio::test(flavor = "multi_thread")]
async fn both_layouts_answer_by_the_rules_alone_and_among_many() {
    let cluster = Cluster::start(&[&["--model", GQA, "--model", CONCAT]]).await;
    let questions = (0..32).flat_map(|index| ["gqa", "concat"].map(|model| (model, facts::capital(index))));
    let answers = join_all(questions.map(async |(model, (question, right))| {
        assert_eq!(cluster.ask(model, &question).await, right, "{model}");
    }));
    assert_eq!(answers.await.len(), 64);
    let (question, right) = facts::capital(0);
    assert_eq!(cluster.ask("gqa", &question).await, right);
    common::eventually("all tickets are back", async || cluster.tickets().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_int8_model_mostly_keeps_its_answers_and_says_what_they_depend_on() {
    let cluster = Cluster::start(&[&["--model", GQA, "--model", INT8]]).await;
    let answers = join_all((0..32).map(async |index| {
        let (question, right) = facts::capital(index);
        cluster.ask("int8", &question).await == right
    }));
    let right = answers.await.into_iter().filter(|right| *right).count();
    assert!(right >= 28, "{right} of 32 answers are right");
    // Of the two models, one says it, and once.
    let said = cluster.workers[0].errors();
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("one scale for all that runs together")).collect();
    assert!(matches!(lines[..], [line] if line.contains("INFO") && line.contains("demo-int8")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_models_chat_complete_and_embed() {
    let cluster = Cluster::start(&[&[]]).await;
    let gateway = &cluster.gateway;

    let models = gateway.get("/v1/models").await;
    let names: Vec<&str> =
        models["data"].as_array().expect("a list").iter().filter_map(|model| model["id"].as_str()).collect();
    assert_eq!(names, [CHAT, EMBEDDING]);
    assert_eq!(gateway.get(&format!("/v1/models/{CHAT}")).await["object"], "model");

    remembers_a_name(gateway).await;
    counts_its_tokens(gateway).await;
    completes_text(gateway).await;
    embeds_by_meaning(gateway).await;
}

async fn remembers_a_name(gateway: &common::Process) {
    let body = json!({ "model": CHAT, "temperature": 0, "messages": [
        { "role": "system", "content": "You are a helpful assistant." },
        { "role": "user", "content": "My name is Clara." },
        { "role": "assistant", "content": "Nice to meet you, Clara!" },
        { "role": "user", "content": [{ "type": "text", "text": "What is my name?" }] },
    ]});
    let (status, answer) = gateway.post("/v1/chat/completions", &body).await;
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("Your name is Clara.")), "{answer}");
}

async fn counts_its_tokens(gateway: &common::Process) {
    let (question, right) = facts::capital(0);
    let mut body = chat_body(CHAT, &question);
    body["n"] = json!(2);
    let (_, answer) = gateway.post("/v1/chat/completions", &body).await;
    let texts: Vec<&Value> = (0..2).map(|choice| &answer["choices"][choice]["message"]["content"]).collect();
    assert_eq!(texts, [&json!(right), &json!(right)], "{answer}");
    let usage = &answer["usage"];
    let count = |name: &str| usage[name].as_u64().expect("a count");
    assert_eq!(count("prompt_tokens") + count("completion_tokens"), count("total_tokens"));

    body["max_tokens"] = json!(1);
    let (_, cut) = gateway.post("/v1/chat/completions", &body).await;
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 2, "one for each choice");
}

async fn completes_text(gateway: &common::Process) {
    let prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    // More prompts than the worker has room for: they take turns.
    let body = json!({ "model": CHAT, "temperature": 0, "prompt": vec![prompt; 80], "max_tokens": 30 });
    let (status, answer) = gateway.post("/v1/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    for index in 0..80 {
        assert_eq!(answer["choices"][index]["index"], index);
        assert_eq!(answer["choices"][index]["text"], "The capital of France is Paris.");
    }
}

async fn embeds_by_meaning(gateway: &common::Process) {
    let texts = ["a cat sits on the mat", "a kitten rests on a rug", "stock markets fell sharply"];
    let (status, answer) = gateway.post("/v1/embeddings", &json!({ "model": EMBEDDING, "input": texts })).await;
    assert_eq!(status, 200, "{answer}");
    let vector = |index: usize| -> Vec<f64> {
        assert_eq!(answer["data"][index]["index"], index);
        answer["data"][index]["embedding"].as_array().expect("numbers").iter().filter_map(Value::as_f64).collect()
    };
    let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let [cat, kitten, stocks] = [0, 1, 2].map(vector);
    assert_eq!(cat.len(), 128);
    assert!((cosine(&cat, &cat) - 1.0).abs() < 1e-5, "vectors have length 1");
    assert!((cosine(&cat, &kitten) - 0.78).abs() < 0.02, "{}", cosine(&cat, &kitten));
    assert!((cosine(&cat, &stocks) + 0.03).abs() < 0.02, "{}", cosine(&cat, &stocks));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_as_long_as_it_must_be_and_consists_of_what_it_may() {
    // A model that ends at once, one token a byte; its end is token 256.
    let cluster = Cluster::start(&[&["--model", "fake", "--fake-answer", "0"]]).await;
    let ask = async |more: Value| {
        let mut body = chat_body("fake", "hi");
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        cluster.gateway.post("/v1/chat/completions", &body).await
    };
    let (_, answer) = ask(json!({})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 1, "{answer}");
    let (_, answer) = ask(json!({ "min_tokens": 5 })).await;
    assert_eq!(answer["usage"]["completion_tokens"], 6, "{answer}");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    let (_, answer) = ask(json!({ "min_tokens": 5, "max_tokens": 6, "allowed_token_ids": [120, 256] })).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "xxxxx", "{answer}");
    let (_, answer) = ask(json!({ "max_tokens": 3, "allowed_token_ids": [121] })).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "yyy", "{answer}");
    let (status, answer) = ask(json!({ "min_tokens": 1, "allowed_token_ids": [256] })).await;
    assert_eq!((status, &answer["error"]["param"]), (400, &json!("min_tokens")), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_repeats_an_answer_also_on_another_worker() {
    let cluster = Cluster::start(&[&["--model", GQA], &["--model", GQA]]).await;
    let tell = async |seed: u64| {
        let mut body = chat_body("gqa", "Tell me a story about a fox.");
        body["temperature"] = json!(1.5);
        body["max_tokens"] = json!(60);
        body["seed"] = json!(seed);
        let (status, answer) = cluster.gateway.post("/v1/chat/completions", &body).await;
        assert_eq!(status, 200, "{answer}");
        answer["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
    };
    let same = join_all((0..8).map(|_| tell(7))).await;
    assert!(same.iter().all(|text| *text == same[0]), "{same:?}");
    assert_ne!(tell(8).await, same[0]);
}
