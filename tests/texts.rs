//! Models that judge texts, over every transport that has words for it: the same answers.

mod common;

use common::{Process, eventually, gateway, is_ready, worker};
use serde_json::{Value, json};

const TRANSPORTS: [&str; 4] = ["http", "grpc", "openai", "fastchat"];
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models");
const KINDS: [&str; 4] = ["cross-encoder", "classifier", "moderator", "entities"];

/// A fleet in which a worker of each transport serves a model of each kind, under both names.
struct Fleet {
    gateway: Process,
    controller: Process,
    _others: Vec<Process>,
}

impl Fleet {
    async fn start() -> Self {
        let controller = Process::start(&["controller", "--port", "0", "--heartbeat", "1s"]);
        let models = |transport: &str| -> Vec<String> {
            let model = |kind: &&str| ["--model".to_owned(), format!("{transport}-{kind}={FOLDER}/text-{kind}")];
            KINDS.iter().flat_map(model).collect()
        };
        let start = |transport: &str, more: &[&str]| {
            let models = models(transport);
            let models: Vec<&str> = models.iter().map(String::as_str).collect();
            worker(&controller.address, &[&["--transport", transport], &models[..], more].concat())
        };
        let mut others = vec![start("http", &[]), start("grpc", &["--grpc-port", "0"]), start("fastchat", &[])];
        let models = models("openai");
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        let server = Process::start(&[&["up", "--port", "0"], &models[..]].concat());
        others.push(Process::start(&["attach", "--controller-address", &controller.address, &server.address]));
        others.push(server);
        let ready = async || {
            let fleet = controller.get("/fleet").await;
            let workers = fleet["workers"].as_array().expect("workers").clone();
            TRANSPORTS.iter().all(|name| workers.iter().any(|w| w["transport"] == *name && w["state"] == "ready"))
        };
        eventually("a worker of each transport is registered", ready).await;
        let gateway = gateway(&controller.address, &[]);
        eventually("the gateway is ready", async || is_ready(&gateway.address).await).await;
        gateway.get("/v1/models").await; // it asks the controller anew for that, and so knows all workers
        Self { gateway, controller, _others: others }
    }

    /// The answer of a model, less what differs from one answer to the next.
    async fn ask(&self, transport: &str, (path, kind, body): &(&str, &str, Value)) -> (u16, Value) {
        let mut body = body.clone();
        body["model"] = json!(format!("{transport}-{kind}"));
        let (status, mut answer) = self.gateway.post(path, &body).await;
        for name in ["id", "created", "model"] {
            answer.as_object_mut().and_then(|answer| answer.remove(name));
        }
        (status, answer)
    }
}

fn questions() -> Vec<(&'static str, &'static str, Value)> {
    let texts = json!(["A cat sits on the mat.", "Ada Lovelace lived in London."]);
    vec![
        ("/v1/rerank", "cross-encoder", json!({ "query": "Where is the cat?", "documents": texts, "top_n": 2 })),
        ("/v1/classify", "classifier", json!({ "input": texts })),
        ("/v1/classify", "classifier", json!({ "input": [["A cat sits.", "It sits."]], "raw_scores": true })),
        ("/v1/classify", "classifier", json!({ "input": [[5, 6, 7], [8]] })),
        ("/v1/classify", "moderator", json!({ "input": texts })),
        ("/v1/moderations", "moderator", json!({ "input": texts })),
        ("/v1/classify", "entities", json!({ "input": texts, "aggregation": "first" })),
        ("/tokenize", "classifier", json!({ "prompt": "A cat sits.", "return_token_strs": true })),
        ("/detokenize", "entities", json!({ "tokens": [5, 6, 7] })),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_are_judged_alike_over_every_transport() {
    let fleet = Fleet::start().await;
    for question in questions() {
        let (status, expected) = fleet.ask("http", &question).await;
        assert_eq!(status, 200, "{question:?}: {expected}");
        for transport in ["grpc", "openai"] {
            assert_eq!(fleet.ask(transport, &question).await, (200, expected.clone()), "{transport}: {question:?}");
        }
        let (status, refused) = fleet.ask("fastchat", &question).await;
        assert_eq!((status, &refused["error"]["param"]), (400, &json!("model")), "{question:?}: {refused}");
        assert!(refused["error"]["message"].as_str().is_some_and(|text| text.contains("FastChat")), "{refused}");
    }
    is_refused_alike(&fleet).await;
    let metrics = fleet.gateway.metric("muster_gateway_requests_total{route=\"rerank\",status=\"200\"}").await;
    assert!((metrics - 3.0).abs() < f64::EPSILON, "{metrics}");
    let tickets = async || {
        let fleet = fleet.controller.get("/fleet").await;
        fleet["workers"].as_array().expect("workers").iter().all(|worker| worker["tickets"] == 0)
    };
    eventually("all tickets are back", tickets).await;
}

/// What only a worker can know to be wrong.
async fn is_refused_alike(fleet: &Fleet) {
    let long = "hello ".repeat(500);
    for (question, param) in [
        (("/v1/rerank", "cross-encoder", json!({ "query": "q", "documents": ["a", long] })), "documents"),
        (("/v1/classify", "classifier", json!({ "input": ["a", long] })), "input"),
        (("/v1/classify", "classifier", json!({ "input": [[5], [100_000]] })), "input"),
        (("/v1/moderations", "moderator", json!({ "input": long })), "input"),
        (("/v1/classify", "entities", json!({ "input": long })), "input"),
        (("/detokenize", "classifier", json!({ "tokens": [100_000] })), "tokens"),
    ] {
        let (status, expected) = fleet.ask("http", &question).await;
        assert_eq!(status, 400, "{question:?}: {expected}");
        let named = expected["error"]["param"].as_str().is_some_and(|named| named.starts_with(param));
        assert!(named, "{question:?}: {expected}");
        for transport in ["grpc", "openai"] {
            assert_eq!(fleet.ask(transport, &question).await, (400, expected.clone()), "{transport}: {question:?}");
        }
    }
}
