//! The endpoints of text models, in front of scripted workers.

mod peers;

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::Uri;
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use muster_shared::control::{ModelKind, Outcome};
use muster_shared::embed::{EmbedResponse, SparseVector};
use muster_shared::problem::{Kind, Problem};
use muster_shared::text::{
    ClassifyResponse, DetokenizeResponse, EntitiesResponse, Entity, RerankResponse, TokenizeResponse,
};
use muster_shared::transport::Transport;
use peers::{Controller, Gateway, Named, in_time, serve};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// What a worker was asked: path and body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A worker that answers everything with the same, and notes what it was asked.
async fn worker(answer: impl Fn() -> Response + Clone + Send + Sync + 'static) -> (String, Asked) {
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    let handler = move |uri: Uri, body: Bytes| {
        let body = serde_json::from_slice(&body).expect("JSON");
        noted.lock().expect("no panic while holding it").push((uri.path().to_owned(), body));
        std::future::ready(answer())
    };
    (serve(Router::new().fallback(handler)).await, asked)
}

async fn saying(answer: impl Serialize) -> (String, Asked) {
    let answer = serde_json::to_value(answer).expect("JSON");
    worker(move || Json(answer.clone()).into_response()).await
}

/// What the worker was asked last.
fn last(asked: &Asked) -> (String, Value) {
    let mut asked = asked.lock().expect("no panic while holding it");
    let (path, mut body) = asked.pop().expect("it was asked");
    if let Some(id) = body.as_object_mut().and_then(|body| body.remove("request_id")) {
        assert_ne!(id, "", "a request has a name");
    }
    (path, body)
}

async fn post(gateway: &Gateway, path: &str, body: &Value) -> (u16, Value) {
    let response = gateway.post(path, body).await;
    (response.status().as_u16(), response.json().await.expect("JSON"))
}

/// One answer of a fleet whose only worker serves `m`.
async fn answered(kind: Option<ModelKind>, path: &str, body: Value, answer: impl Serialize) -> (Value, String, Value) {
    let (address, asked) = saying(answer).await;
    let mut controller = match kind {
        Some(kind) => Controller::of_kind([Ok(address)], kind).await,
        None => Controller::start([Ok(address)]).await,
    };
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let (status, reply) = post(&gateway, path, &body).await;
    assert_eq!(status, 200, "{path}: {reply}");
    assert_eq!(controller.released().await.outcome, Outcome::Done, "{path}");
    assert_eq!(controller.dispatch(0).model, "m");
    let (path, mut body) = last(&asked);
    let time = body.as_object_mut().and_then(|body| body.remove("timeout_ms"));
    let runs = !path.ends_with("tokenize");
    assert_eq!(runs, time.and_then(|ms| ms.as_u64()).is_some_and(|ms| ms > 0), "{path} is told the time there is");
    (reply, path, body)
}

#[tokio::test]
async fn documents_are_ranked_at_every_path_that_clients_know() {
    for path in ["/v1/rerank", "/rerank", "/v2/rerank"] {
        let body = json!({ "model": "m", "query": "q", "documents": ["a", { "text": "b" }], "return_documents": true });
        let scores = RerankResponse { scores: vec![0.25, 0.5], prompt_tokens: 7 };
        let (reply, path, asked) = answered(Some(ModelKind::Rerank), path, body, scores).await;
        let expected = json!([
            { "index": 1, "relevance_score": 0.5, "document": { "text": "b" } },
            { "index": 0, "relevance_score": 0.25, "document": { "text": "a" } },
        ]);
        assert_eq!(reply["results"], expected);
        assert!(reply["id"].as_str().is_some_and(|id| id.starts_with("rerank-")), "{reply}");
        let expected = json!({
            "model": "m", "query": "q", "documents": ["a", "b"], "raw_scores": false, "truncate": false
        });
        assert_eq!((path.as_str(), asked), ("/rerank", expected));
    }
}

#[tokio::test]
async fn texts_are_classified_at_both_paths() {
    for path in ["/v1/classify", "/classify"] {
        let body = json!({ "model": "m", "input": ["a", ["b", "c"]], "truncate": "END" });
        let (labels, scores) = (vec!["x".to_owned(), "y".to_owned()], vec![vec![0.25, 0.75], vec![0.75, 0.25]]);
        let classes = ClassifyResponse { labels, scores, multi_label: false, prompt_tokens: 7 };
        let (reply, path, asked) = answered(None, path, body, classes).await;
        assert_eq!((&reply["data"][0]["label"], &reply["data"][1]["label"]), (&json!("y"), &json!("x")));
        assert_eq!(reply["usage"], json!({ "prompt_tokens": 7, "total_tokens": 7 }));
        let inputs = json!([{ "text": "a" }, { "pair": ["b", "c"] }]);
        assert_eq!(
            (path.as_str(), asked),
            ("/classify", json!({ "model": "m", "inputs": inputs, "raw_scores": false, "truncate": true }))
        );
    }
}

#[tokio::test]
async fn a_model_that_finds_entities_is_asked_for_them() {
    let body = json!({ "model": "m", "input": "Ada", "aggregation_strategy": "max" });
    let entity = Entity { label: "PER".to_owned(), score: 0.5, text: "Ada".to_owned(), start: 0, end: 3 };
    let entities = EntitiesResponse { entities: vec![vec![entity]], prompt_tokens: 3 };
    let (reply, path, asked) = answered(Some(ModelKind::Entities), "/v1/classify", body, entities).await;
    assert_eq!(reply["data"][0]["entities"][0]["label"], "PER");
    let expected = json!({ "model": "m", "inputs": ["Ada"], "aggregation": "max", "truncate": false });
    assert_eq!((path.as_str(), asked), ("/entities", expected));
}

#[tokio::test]
async fn a_model_that_has_just_come_is_asked_for_what_it_can_do() {
    let (address, asked) = saying(EntitiesResponse { entities: vec![vec![]], prompt_tokens: 1 }).await;
    let mut controller = Controller::of_kind([Ok(address)], ModelKind::Entities).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    controller.rename("new");
    let (status, reply) = post(&gateway, "/v1/classify", &json!({ "model": "new", "input": "a" })).await;
    assert_eq!((status, &reply["data"][0]["entities"]), (200, &json!([])), "{reply}");
    assert_eq!(last(&asked).0, "/entities");
    assert_eq!(controller.released().await.outcome, Outcome::Done);
}

fn categories() -> ClassifyResponse {
    let (labels, scores) = (vec!["hate".to_owned(), "spam".to_owned()], vec![vec![0.75, 0.25]]);
    ClassifyResponse { labels, scores, multi_label: true, prompt_tokens: 3 }
}

#[tokio::test]
async fn who_names_no_moderation_model_gets_the_only_one() {
    for body in
        [json!({ "input": "a" }), json!({ "input": ["a"], "model": null }), json!({ "input": "a", "model": "m" })]
    {
        let (reply, path, asked) = answered(Some(ModelKind::Moderate), "/v1/moderations", body, categories()).await;
        assert_eq!((&reply["model"], &reply["results"][0]["flagged"]), (&json!("m"), &json!(true)));
        assert_eq!(reply["results"][0]["categories"], json!({ "hate": true, "spam": false }));
        assert_eq!((path.as_str(), &asked["model"]), ("/classify", &json!("m")));
    }
}

#[tokio::test]
async fn tokens_are_told_both_ways() {
    for (tokenize, detokenize) in [("/tokenize", "/detokenize"), ("/v1/tokenize", "/v1/detokenize")] {
        let tokens = TokenizeResponse { tokens: vec![1, 2], pieces: vec!["a".into(), "b".into()], max_tokens: 9 };
        let body = json!({ "model": "m", "prompt": "ab", "return_token_strs": true });
        let (reply, path, asked) = answered(Some(ModelKind::Generate), tokenize, body, tokens).await;
        let expected = json!({ "count": 2, "max_model_len": 9, "tokens": [1, 2], "token_strs": ["a", "b"] });
        assert_eq!((reply, path.as_str()), (expected, "/tokenize"));
        assert_eq!(asked, json!({ "model": "m", "prompt": { "text": "ab" }, "add_special_tokens": true }));
        let body = json!({ "model": "m", "tokens": [1, 2] });
        let text = DetokenizeResponse { text: "ab".to_owned() };
        let (reply, path, asked) = answered(Some(ModelKind::Embed), detokenize, body.clone(), text).await;
        assert_eq!((reply, path.as_str(), asked), (json!({ "prompt": "ab" }), "/detokenize", body));
    }
}

#[tokio::test]
async fn sparse_vectors_are_told_as_numbers_only() {
    let sparse = vec![SparseVector { indices: vec![3, 5], values: vec![0.5, 1.5] }];
    let vectors = EmbedResponse { vectors: vec![], sparse, prompt_tokens: 3 };
    let body = json!({ "model": "m", "input": "a", "input_type": "query" });
    let kind = Some(ModelKind::SparseEmbed);
    let (reply, path, asked) = answered(kind, "/v1/embeddings", body, &vectors).await;
    let expected = json!([{ "object": "sparse_embedding", "index": 0, "indices": [3, 5], "values": [0.5, 1.5] }]);
    assert_eq!((&reply["data"], path.as_str(), &asked["input_type"]), (&expected, "/embed", &json!("query")));

    // Where the kind is known no worker is asked; where it is not, the answer tells it.
    for (kind, dispatches) in [(kind, 0), (None, 1)] {
        let (address, _) = saying(&vectors).await;
        let controller = match kind {
            Some(kind) => Controller::of_kind([Ok(address)], kind).await,
            None => Controller::start([Ok(address)]).await,
        };
        let gateway = Gateway::start(&controller.address, |_| {}).await;
        let body = json!({ "model": "m", "input": "a", "encoding_format": "base64" });
        let (status, reply) = post(&gateway, "/v1/embeddings", &body).await;
        assert_eq!((status, &reply["error"]["param"]), (400, &json!("encoding_format")), "{reply}");
        assert_eq!(controller.asked(), dispatches);
    }
}

/// A sound request for each endpoint.
fn requests() -> [(&'static str, Value); 8] {
    let body = |name: &str, value: Value| {
        let mut body = json!({ "model": "m" });
        body[name] = value;
        body
    };
    [
        ("/v1/chat/completions", body("messages", json!([{ "role": "user", "content": "hi" }]))),
        ("/v1/completions", body("prompt", json!("hi"))),
        ("/v1/embeddings", body("input", json!("hi"))),
        ("/v1/rerank", json!({ "model": "m", "query": "q", "documents": ["a"] })),
        ("/v1/classify", body("input", json!("hi"))),
        ("/v1/moderations", body("input", json!("hi"))),
        ("/tokenize", body("prompt", json!("hi"))),
        ("/detokenize", body("tokens", json!([1]))),
    ]
}

#[tokio::test]
async fn a_model_is_asked_only_where_it_says_that_it_can_be() {
    for kind in ModelKind::ALL {
        let (address, _) = saying(json!({})).await;
        let controller = Controller::of_kind([Ok(address)], kind).await;
        let gateway = Gateway::start(&controller.address, |_| {}).await;
        let listed = reqwest::get(format!("{}/v1/models/m", gateway.address)).await.expect("an answer");
        let listed: Value = listed.json().await.expect("JSON");
        let endpoints = listed["endpoints"].as_array().expect("a list").clone();
        for (path, body) in requests() {
            if endpoints.contains(&json!(path)) {
                continue;
            }
            let (status, reply) = post(&gateway, path, &body).await;
            let message = reply["error"]["message"].as_str().expect("a message");
            assert_eq!((status, &reply["error"]["param"]), (400, &json!("model")), "{kind:?} {path}: {reply}");
            let told = endpoints[0].as_str().expect("a path");
            assert!(message.contains("`m`") && message.contains(told), "{kind:?} {path}: {message}");
        }
        assert_eq!(controller.asked(), 0, "{kind:?}: nobody was bothered");
    }
}

#[tokio::test]
async fn too_many_inputs_are_refused_before_a_worker_is_sought() {
    let (address, _) = saying(json!({})).await;
    let controller = Controller::start([Ok(address)]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    for (path, field) in
        [("/v1/embeddings", "input"), ("/v1/classify", "input"), ("/v1/moderations", "input"), ("/rerank", "documents")]
    {
        let mut body = json!({ "model": "m", "query": "q" });
        body[field] = json!(vec!["a"; 100_000]);
        let (status, reply) = post(&gateway, path, &body).await;
        assert_eq!((status, &reply["error"]["param"]), (400, &json!(field)), "{path}: {reply}");
        assert!(reply["error"]["message"].as_str().is_some_and(|message| message.contains("2048")), "{reply}");
    }
    assert_eq!(controller.asked(), 0);
}

#[tokio::test]
async fn an_attempt_that_fails_is_made_elsewhere() {
    let body = json!({ "model": "m", "query": "q", "documents": ["a", "b"] });
    let full = Problem::new(Kind::Overloaded, "full").with_retry_after_ms(1);
    let junk = |answer: Value| move || Json(answer.clone()).into_response();
    for (first, outcome) in [
        (worker(|| Problem::new(Kind::Bug, "crash").into_response()).await, Outcome::Failed),
        (worker(move || full.clone().into_response()).await, Outcome::Overloaded),
        (worker(|| Problem::new(Kind::UnknownModel, "not here").into_response()).await, Outcome::Done),
        (worker(junk(json!({ "scores": [0.5], "prompt_tokens": 1 }))).await, Outcome::Failed),
        (worker(junk(json!({ "scores": "many" }))).await, Outcome::Failed),
    ] {
        let (good, _) = saying(RerankResponse { scores: vec![0.25, 0.5], prompt_tokens: 1 }).await;
        let mut controller = Controller::start([Ok(first.0), Ok(good)]).await;
        let gateway = Gateway::start(&controller.address, |_| {}).await;
        let (status, reply) = post(&gateway, "/v1/rerank", &body).await;
        assert_eq!((status, &reply["results"][0]["index"]), (200, &json!(1)), "{outcome:?}: {reply}");
        assert_eq!(controller.outcomes(2).await, [outcome, Outcome::Done]);
    }
}

#[tokio::test]
async fn what_a_worker_refuses_is_the_clients_fault_and_final() {
    let refused = || Problem::invalid("model", "the model `m` embeds texts").into_response();
    let (first, second) = (worker(refused).await, saying(json!({})).await);
    let mut controller = Controller::start([Ok(first.0), Ok(second.0)]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let (status, reply) = post(&gateway, "/v1/classify", &json!({ "model": "m", "input": "a" })).await;
    assert_eq!((status, &reply["error"]["message"]), (400, &json!("the model `m` embeds texts")));
    assert_eq!(controller.released().await.outcome, Outcome::Done);
    assert_eq!(controller.asked(), 1);
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_back() {
    let (heard, mut begun) = mpsc::channel(1);
    let hangs = serve(Router::new().fallback(move || {
        let heard = heard.clone();
        async move {
            heard.send(()).await.expect("the test listens");
            std::future::pending::<()>().await;
        }
    }));
    let mut controller = Controller::start([Ok(hangs.await)]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let body = json!({ "model": "m", "input": "a" });
    let asking = gateway.post("/v1/classify", &body);
    tokio::select! {
        _ = asking => panic!("nobody answers"),
        begun = in_time(begun.recv()) => begun.expect("the worker runs"),
    }
    assert_eq!(controller.released().await.outcome, Outcome::Cancelled);
}

#[tokio::test]
async fn a_worker_that_cannot_say_it_is_not_chosen() {
    const OURS: [Transport; 2] = [Transport::Http, Transport::Grpc];
    let named = |address: &str, transport| Named { address: address.to_owned(), transport };
    let (address, _) = saying(json!({ "scores": [0.5], "prompt_tokens": 1 })).await;
    let body = json!({ "model": "m", "query": "q", "documents": ["a"] });

    let fleet = [Ok(named(&address, Transport::Http)), Ok(named("http://127.0.0.1:1", Transport::FastChat))];
    let controller = Controller::start(fleet).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    assert_eq!(post(&gateway, "/v1/rerank", &body).await.0, 200);
    assert_eq!(controller.dispatch(0).transports, OURS);

    let controller = Controller::start([Ok(named("http://127.0.0.1:1", Transport::FastChat))]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    for (path, body) in requests().into_iter().skip(3) {
        let (status, reply) = post(&gateway, path, &body).await;
        assert_eq!((status, &reply["error"]["param"]), (400, &json!("model")), "{path}: {reply}");
        assert!(reply["error"]["message"].as_str().is_some_and(|text| text.contains("FastChat")), "{path}: {reply}");
    }
    assert_eq!(controller.asked(), 0);
}

#[tokio::test]
async fn a_server_that_speaks_openais_api_gets_the_request_as_it_came() {
    for (path, passed_to, body) in [
        ("/rerank", "/v1/rerank", json!({ "model": "m", "query": "q", "documents": "theirs to judge" })),
        ("/v1/classify", "/classify", json!({ "model": "m", "input": "a", "theirs": 1 })),
        ("/v1/moderations", "/v1/moderations", json!({ "model": "m", "input": [{ "type": "image_url" }] })),
        ("/v1/tokenize", "/tokenize", json!({ "model": "m", "content": "a" })),
        ("/detokenize", "/detokenize", json!({ "model": "m", "tokens": [1] })),
    ] {
        let (address, asked) = saying(json!({ "said": "so" })).await;
        let mut controller = Controller::start([Ok(Named { address, transport: Transport::OpenAi })]).await;
        let gateway = Gateway::start(&controller.address, |_| {}).await;
        let (status, reply) = post(&gateway, path, &body).await;
        assert_eq!((status, &reply), (200, &json!({ "said": "so" })), "{path}");
        assert_eq!(last(&asked), (passed_to.to_owned(), body));
        assert_eq!(controller.released().await.outcome, Outcome::Done);
        assert_eq!(controller.dispatch(0).transports, [Transport::Http, Transport::Grpc, Transport::OpenAi]);
    }
}

#[tokio::test]
async fn without_a_moderation_model_the_client_hears_so() {
    let (address, _) = saying(json!({})).await;
    let controller = Controller::of_kind([Ok(address)], ModelKind::Classify).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let (status, reply) = post(&gateway, "/v1/moderations", &json!({ "input": "a" })).await;
    assert_eq!((status, &reply["error"]["code"]), (404, &json!("model_not_found")), "{reply}");
    let (status, reply) = post(&gateway, "/v1/moderations", &json!(["a"])).await;
    assert_eq!(status, 400, "{reply}");
}
