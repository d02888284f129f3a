//! What text models refuse, in requests over HTTP and in folders, with words that help.

mod texts;

use std::num::NonZeroUsize;

use muster_worker::config::{ModelConfig, ModelSource};
use serde_json::{Value, json};
use texts::{changed, config, edit, folder, refusal};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

const MODELS: [(&str, &str); 7] = [
    ("embed", "text-sentence"),
    ("roberta", "text-embedding-roberta"),
    ("sparse", "text-sparse"),
    ("rerank", "text-cross-encoder"),
    ("classify", "text-classifier"),
    ("moderate", "text-moderator"),
    ("entities", "text-entities"),
];

/// A worker with one model of each kind.
struct Worker {
    address: String,
    client: reqwest::Client,
    _stops: DropGuard,
}

impl Worker {
    async fn start() -> Self {
        muster_shared::tls::provider(); // the client of the tests wants one
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let models = MODELS.iter().map(|(name, path)| ((*name).to_owned(), ModelSource::Folder(folder(path))));
        let demo = ("chat".to_owned(), ModelSource::DemoChat);
        let config = muster_worker::Config {
            models: models.chain([demo]).map(|(name, source)| ModelConfig { name, source }).collect(),
            embedding_requests: NonZeroUsize::new(8).expect("not zero"),
            ..config(folder("text-sentence"), None)
        };
        let shutdown = CancellationToken::new();
        tokio::spawn(muster_worker::run(config, listener, shutdown.clone()));
        let worker = Self { address, client: reqwest::Client::new(), _stops: shutdown.drop_guard() };
        worker.loaded().await;
        worker
    }

    /// Asks until the models are there.
    async fn loaded(&self) {
        let ready = async {
            let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
            loop {
                ticks.tick().await;
                let answer = self.client.get(format!("{}/ready", self.address)).send().await;
                if answer.is_ok_and(|answer| answer.status().is_success()) {
                    return;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(60), ready).await.expect("it is ready in a minute");
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client.post(format!("{}{path}", self.address)).json(body);
        let answer = request.send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_with_the_field_and_what_was_expected() {
    let worker = Worker::start().await;
    let long = "cat ".repeat(100);
    let wide = "x".repeat(400_000); // one token that nobody knows
    let text = |text: &str| json!({ "text": text });
    let embed = |inputs: Value| json!({ "model": "embed", "inputs": inputs });
    let rerank = |query: &str, documents: Value| json!({ "model": "rerank", "query": query, "documents": documents });
    let classify = |inputs: Value| json!({ "model": "classify", "inputs": inputs });
    let with = |mut body: Value, field: &str, value: Value| {
        body[field] = value;
        body
    };
    let tokens = |model: &str, tokens: Value| json!({ "model": model, "tokens": tokens });
    let cases: Vec<(&str, Value, &str, &[&str])> = vec![
        ("/embed", embed(json!([])), "input", &["input is empty"]),
        ("/embed", embed(json!([text("a"), text("")])), "input", &["input[1] is empty"]),
        ("/embed", embed(json!([{ "tokens": [] }])), "input", &["input[0] is empty"]),
        ("/embed", embed(json!([{ "tokens": [2, 4_000_000, 3] }])), "input", &["4000000", "input[0][1]", "ids end at"]),
        ("/embed", embed(json!([text("a"), text(&long)])), "input", &["input[1] has 10", "takes 48", "truncate"]),
        ("/embed", with(embed(json!([text("a")])), "dimensions", json!(25)), "dimensions", &["25", "1 to 24"]),
        ("/embed", with(embed(json!([text("a")])), "dimensions", json!(0)), "dimensions", &["1 to 24"]),
        (
            "/embed",
            with(embed(json!([text("a")])), "prompt_name", json!("x")),
            "prompt_name",
            &["`x`", "document, query"],
        ),
        (
            "/embed",
            json!({ "model": "roberta", "inputs": [text("a")], "prompt_name": "title" }),
            "prompt_name",
            &["`title`"],
        ),
        ("/embed", json!({ "model": "sparse", "inputs": [text("a")], "dimensions": 4 }), "dimensions", &["sparse"]),
        (
            "/embed",
            json!({ "model": "rerank", "inputs": [text("a")] }),
            "model",
            &["reranks texts and does not embed any", "GET /v1/models"],
        ),
        (
            "/embed",
            json!({ "model": "chat", "inputs": [text("a")] }),
            "model",
            &["generates texts and does not embed any"],
        ),
        ("/rerank", rerank("", json!(["a"])), "query", &["query is empty"]),
        ("/rerank", rerank("  ", json!(["a"])), "query", &["query is empty"]),
        ("/rerank", rerank(&wide, json!(vec!["a"; 100])), "query", &["400000 bytes", "100 documents"]),
        ("/rerank", rerank("a", json!([])), "documents", &["documents is empty"]),
        ("/rerank", rerank("a", json!(["a", "b", ""])), "documents", &["documents[2] is empty"]),
        ("/rerank", rerank("a", json!(["a", long])), "documents", &["documents[1] has 10", "takes 64", "truncate"]),
        (
            "/rerank",
            with(rerank(&long, json!(["a"])), "truncate", json!(true)),
            "query",
            &["query has 100 tokens", "60 at most"],
        ),
        (
            "/rerank",
            json!({ "model": "embed", "query": "a", "documents": ["a"] }),
            "model",
            &["embeds texts and does not rerank any"],
        ),
        ("/classify", classify(json!([])), "input", &["input is empty"]),
        ("/classify", classify(json!([{ "pair": ["a", ""] }])), "input", &["input[0] is empty"]),
        ("/classify", classify(json!([{ "pair": ["a", long] }])), "input", &["input[0] has 10", "takes 64"]),
        ("/classify", classify(json!([text("a"), { "tokens": [99999] }])), "input", &["99999", "input[1][0]"]),
        (
            "/classify",
            json!({ "model": "entities", "inputs": [text("a")] }),
            "model",
            &["finds entities in texts and does not classify any"],
        ),
        ("/entities", json!({ "model": "entities", "inputs": [] }), "input", &["input is empty"]),
        ("/entities", json!({ "model": "entities", "inputs": ["a", "b", ""] }), "input", &["input[2] is empty"]),
        ("/entities", json!({ "model": "entities", "inputs": [long] }), "input", &["input[0] has 10", "takes 64"]),
        (
            "/entities",
            json!({ "model": "moderate", "inputs": ["a"] }),
            "model",
            &["moderates texts and does not find entities"],
        ),
        ("/detokenize", tokens("embed", json!([2, 3, 70000])), "tokens", &["70000", "tokens[2]", "ids end at"]),
        ("/detokenize", tokens("chat", json!([2048])), "tokens", &["2048", "tokens[0]", "ids end at 2047"]),
        ("/detokenize", tokens("none", json!([2])), "model", &["does not serve `none`"]),
        (
            "/tokenize",
            json!({ "model": "embed", "prompt": { "tokens": [2, 70000] }, "add_special_tokens": true }),
            "prompt",
            &["70000", "prompt[1]"],
        ),
        (
            "/tokenize",
            json!({ "model": "embed", "prompt": { "chat": { "messages": [] } }, "add_special_tokens": true }),
            "messages",
            &["no chat template"],
        ),
        (
            "/generate",
            json!({ "model": "sparse", "prompt": { "text": "a" } }),
            "model",
            &["embeds texts as sparse vectors and does not generate any"],
        ),
    ];
    for (path, body, param, words) in cases {
        let (status, problem) = worker.post(path, &body).await;
        let expected = if param == "model" && body["model"] == "none" { 404 } else { 400 };
        let message = problem["message"].as_str().unwrap_or_default();
        assert_eq!((status, problem["param"].as_str()), (expected, Some(param)), "{path} {body}: {problem}");
        assert!(words.iter().all(|word| message.contains(word)), "{path} {body}: not all of {words:?} in {message}");
        if words.iter().any(|word| word.starts_with("takes ")) {
            assert_eq!(problem["kind"], "prompt_too_long", "{message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_are_too_long_are_cut_where_that_is_wished() {
    let worker = Worker::start().await;
    let long = "cat ".repeat(100);
    let embed = json!({ "model": "embed", "inputs": [{ "text": long }, { "tokens": vec![2; 60] }], "truncate": true });
    let (status, answer) = worker.post("/embed", &embed).await;
    assert_eq!((status, &answer["prompt_tokens"]), (200, &json!(2 * 48)), "{answer}");
    let rerank = json!({ "model": "rerank", "query": "cat", "documents": ["cat", long], "truncate": true });
    let (status, answer) = worker.post("/rerank", &rerank).await;
    assert_eq!((status, &answer["prompt_tokens"]), (200, &json!(5 + 64)), "{answer}");
    let classify = json!({ "model": "classify", "inputs": [{ "pair": [long, long] }], "truncate": true });
    let (status, answer) = worker.post("/classify", &classify).await;
    assert_eq!((status, &answer["prompt_tokens"]), (200, &json!(64)), "{answer}");
    let entities = json!({ "model": "entities", "inputs": [long], "truncate": true });
    let (status, answer) = worker.post("/entities", &entities).await;
    assert_eq!((status, &answer["prompt_tokens"]), (200, &json!(64)), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_texts_lead_to_each_other() {
    let worker = Worker::start().await;
    let ask = |model: &str, prompt: Value, special: bool| json!({ "model": model, "prompt": prompt, "add_special_tokens": special });
    let (status, answer) = worker.post("/tokenize", &ask("embed", json!({ "text": "A cat" }), true)).await;
    assert_eq!((status, &answer["pieces"]), (200, &json!(["[CLS]", "a", "cat", "[SEP]"])), "{answer}");
    assert_eq!(answer["max_tokens"], 48);
    let (_, bare) = worker.post("/tokenize", &ask("embed", json!({ "text": "A cat" }), false)).await;
    assert_eq!(bare["tokens"].as_array(), answer["tokens"].as_array().map(|all| all[1..3].to_vec()).as_ref());
    let (status, text) = worker.post("/detokenize", &json!({ "model": "embed", "tokens": answer["tokens"] })).await;
    assert_eq!((status, &text["text"]), (200, &json!("[CLS] a cat [SEP]")));

    let chat = json!({ "chat": { "messages": [{ "role": "user", "content": "hello" }] } });
    let (status, answer) = worker.post("/tokenize", &ask("chat", chat, false)).await;
    let length = answer["tokens"].as_array().map_or(0, Vec::len);
    assert!(status == 200 && length > 1 && answer["pieces"].as_array().map(Vec::len) == Some(length), "{answer}");
    let (_, text) = worker.post("/detokenize", &json!({ "model": "chat", "tokens": answer["tokens"] })).await;
    assert!(text["text"].as_str().is_some_and(|text| text.contains("hello")), "{text}");
    let (status, none) = worker.post("/detokenize", &json!({ "model": "chat", "tokens": [] })).await;
    assert_eq!((status, &none["text"]), (200, &json!("")));
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_dimensions_are_of_length_one_again_and_fastchat_gets_the_same_vectors() {
    let worker = Worker::start().await;
    let inputs = json!([{ "text": "A cat sits on the mat." }]);
    let vector = |answer: &Value| {
        let text = answer["vectors"][0].as_str().expect("base64");
        muster_shared::embed::Vector::from_base64(text).expect("a vector").0
    };
    let (_, whole) = worker.post("/embed", &json!({ "model": "embed", "inputs": inputs })).await;
    let (_, short) = worker.post("/embed", &json!({ "model": "embed", "inputs": inputs, "dimensions": 8 })).await;
    let (whole, short) = (vector(&whole), vector(&short));
    let length = short.iter().map(|number| number * number).sum::<f32>().sqrt();
    assert!(short.len() == 8 && (length - 1.0).abs() < 1e-5, "{short:?}");
    assert!((short[0] / short[1] - whole[0] / whole[1]).abs() < 1e-4);

    let ask = |model: &str| json!({ "model": model, "input": ["A cat sits on the mat."] });
    let (status, answer) = worker.post("/worker_get_embeddings", &ask("embed")).await;
    assert_eq!((status, texts::numbers(&answer["embedding"][0])), (200, whole), "{answer}");
    let (_, sparse) = worker.post("/worker_get_embeddings", &ask("sparse")).await;
    assert!(sparse["text"].as_str().is_some_and(|text| text.contains("sparse vectors")), "{sparse}");
    let (_, details) = worker.post("/model_details", &json!({ "model": "rerank" })).await;
    assert_eq!(details["context_length"], 64, "{details}");
}

#[tokio::test(flavor = "multi_thread")]
async fn cards_tell_what_each_model_can_do() {
    let worker = Worker::start().await;
    let cards: Value = worker
        .client
        .get(format!("{}/models", worker.address))
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    let kinds =
        cards.as_array().expect("cards").iter().map(|card| (texts::text(&card["name"]), texts::text(&card["kind"])));
    let expected = [
        ("chat", "generate"),
        ("classify", "classify"),
        ("embed", "embed"),
        ("entities", "entities"),
        ("moderate", "moderate"),
        ("rerank", "rerank"),
        ("roberta", "embed"),
        ("sparse", "sparse_embed"),
    ];
    assert_eq!(kinds.collect::<Vec<_>>(), expected.map(|(name, kind)| (name.to_owned(), kind.to_owned())));
}

#[test]
fn a_graph_that_does_not_do_what_its_configuration_says_is_refused_with_both() {
    let four = json!({ "0": "a", "1": "b", "2": "c", "3": "d" });
    for name in ["text-classifier", "text-entities"] {
        let copy = changed(name, |path| edit(&path.join("config.json"), |config| config["id2label"] = four.clone()));
        let error = refusal(copy.path().to_owned());
        let given = if name == "text-classifier" { "gives 3 numbers" } else { "gives 6 numbers" };
        assert!(error.contains("names 4 classes (a, b, c, d)") && error.contains(given), "{error}");
    }
    let one = json!({ "0": "relevance" });
    let copy = changed("text-classifier", |path| edit(&path.join("config.json"), |config| config["id2label"] = one));
    let error = refusal(copy.path().to_owned());
    assert!(error.contains("names one class"), "{error}");
    let tokens = json!(["BertForTokenClassification"]);
    let copy =
        changed("text-classifier", |path| edit(&path.join("config.json"), |config| config["architectures"] = tokens));
    let error = refusal(copy.path().to_owned());
    assert!(error.contains("numbers for each token, and this for the text"), "{error}");
}

#[test]
fn layers_that_do_not_fit_or_have_no_weights_are_refused() {
    let wide = changed("text-sentence", |path| {
        edit(&path.join("2_Dense/config.json"), |config| config["in_features"] = json!(32))
    });
    let error = refusal(wide.path().to_owned());
    assert!(error.contains("2_Dense/model.safetensors") && error.contains("[48, 64]"), "{error}");
    let one_pooling = json!({ "pooling_mode": "mean" });
    let narrow =
        changed("text-sentence", |path| edit(&path.join("1_Pooling/config.json"), |config| *config = one_pooling));
    let error = refusal(narrow.path().to_owned());
    assert!(error.contains("takes 64 numbers") && error.contains("gives 32"), "{error}");
    let pickled = changed("text-sentence", |path| {
        let layer = path.join("3_Dense");
        std::fs::rename(layer.join("model.safetensors"), layer.join("pytorch_model.bin")).expect("it is there");
    });
    let error = refusal(pickled.path().to_owned());
    assert!(error.contains("3_Dense/model.safetensors is missing") && error.contains("pytorch_model.bin"), "{error}");
}

#[test]
fn a_tokenizer_that_marks_pairs_in_another_way_is_refused_where_the_graph_looks_at_it() {
    let marked = |name: &str| {
        changed(name, |path| {
            edit(&path.join("tokenizer.json"), |tokenizer| {
                tokenizer["post_processor"]["pair"][0]["SpecialToken"]["type_id"] = json!(2);
            });
        })
    };
    let error = refusal(marked("text-cross-encoder").path().to_owned());
    assert!(error.contains("tokenizer.json") && error.contains("token_type_ids"), "{error}");
    texts::catalog(marked("text-moderator").path().to_owned(), None);
}
