//! A whole worker, asked over HTTP and over gRPC.

use std::path::Path;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use muster_shared::grpc::open_inference::{Contents, proto, request as message};
use muster_shared::tensor::http::{Form, HEADER_LENGTH, read_response, write_request};
use muster_shared::tensor::{Datatype, InferRequest, InferResponse};
use muster_worker::config::{ModelControl, RepositoryConfig};
use muster_worker::{Config, Listeners};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bench::*;

/// A worker that runs in this process.
struct Worker {
    http: String,
    grpc: String,
    client: reqwest::Client,
    shutdown: CancellationToken,
    ended: JoinHandle<Result<(), muster_worker::Error>>,
}

impl Worker {
    async fn start(folder: &Path, control: ModelControl) -> Self {
        muster_shared::tls::provider(); // the client of the tests wants one
        let usual = config(folder, control);
        let load = if control == ModelControl::Explicit { vec!["*".to_owned()] } else { Vec::new() };
        let repository = usual.repository.clone().map(|repository| RepositoryConfig { load, ..repository });
        let config = Config { repository, body_limit: 1 << 20, ..usual };
        let listen = || TcpListener::bind("127.0.0.1:0");
        let (http, grpc) = (listen().await.expect("a port"), listen().await.expect("a port"));
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let (http_address, grpc_address) = (address(&http), address(&grpc));
        let shutdown = CancellationToken::new();
        let listeners = Listeners { http, grpc: Some(grpc) };
        let worker = Self {
            ended: tokio::spawn(muster_worker::run(config, listeners, shutdown.clone())),
            http: http_address,
            grpc: grpc_address,
            client: reqwest::Client::new(),
            shutdown,
        };
        let ready = async { while worker.get("/v2/health/ready").await.0 != 200 {} };
        tokio::time::timeout(PATIENCE, ready).await.expect("it gets ready");
        worker
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.client.get(format!("{}{path}", self.http)).send().await.expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or_default())
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = self.client.post(format!("{}{path}", self.http)).json(body).send().await.expect("an answer");
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or_default())
    }

    /// Asks with bytes behind the JSON.
    async fn infer(&self, request: &InferRequest) -> InferResponse {
        let body = write_request(request, Form::Binary).expect("binary says all");
        let length = body.header_length().expect("there are bytes");
        let call = self.client.post(format!("{}/v2/models/{}/infer", self.http, request.model));
        let call = call.header(HEADER_LENGTH, length).body(body.into_bytes());
        let response = call.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        let length = response.headers()[HEADER_LENGTH].to_str().expect("a number").parse().expect("a number");
        read_response(response.bytes().await.expect("a body"), Some(length)).expect("an answer of the protocol")
    }

    /// One call over gRPC; else the status and its message.
    async fn call<A: Message + Default>(&self, method: &str, request: &impl Message) -> Result<A, (u32, String)> {
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(request.encoded_len() as u32);
        request.encode(&mut body).expect("room");
        let client = reqwest::Client::builder().http2_prior_knowledge().build().expect("a client");
        let call = client.post(format!("{}/inference.GRPCInferenceService/{method}", self.grpc));
        let call = call.header("content-type", "application/grpc").header("te", "trailers").body(body.freeze());
        let response = call.send().await.expect("an answer");
        if let Some(status) = response.headers().get("grpc-status") {
            let told = response.headers().get("grpc-message").map(|message| message.to_str().expect("a text"));
            return Err((
                status.to_str().expect("a number").parse().expect("one"),
                told.unwrap_or_default().to_owned(),
            ));
        }
        let mut answer: Bytes = response.bytes().await.expect("a body");
        answer.advance(5);
        Ok(A::decode(answer).expect("a message"))
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.ended.await.expect("no panic").expect("it ends in peace");
    }
}

fn sum() -> InferRequest {
    request("add", vec![floats("a", &[1, 3], &[1.0, 2.0, 3.0]), floats("b", &[1, 3], &[0.5; 3])])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_answers_every_route_over_http() {
    let folder = repository(&["add", "mlp", "gather"]);
    let worker = Worker::start(folder.path(), ModelControl::Explicit).await;
    assert_eq!(worker.get("/v2/health/live").await.0, 200);
    let (_, server) = worker.get("/v2").await;
    assert_eq!(server["name"], "muster");
    assert!(server["extensions"].as_array().is_some_and(|names| names.contains(&json!("binary_tensor_data"))));
    let (_, metadata) = worker.get("/v2/models/mlp/versions/1").await;
    assert_eq!(metadata["inputs"][0], json!({ "name": "x", "datatype": "FP32", "shape": [-1, 4] }));
    let (_, config) = worker.get("/v2/models/mlp/config").await;
    assert_eq!((&config["max_batch_size"], &config["input"][0]["data_type"]), (&json!(8), &json!("TYPE_FP32")));
    for (path, status) in [("mlp/ready", 200), ("mlp/versions/2/ready", 200), ("mlp/versions/3/ready", 404)] {
        assert_eq!(worker.get(&format!("/v2/models/{path}")).await.0, status, "{path}");
    }
    let body = json!({ "id": "7", "inputs": [
        { "name": "a", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3] },
        { "name": "b", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 0.5, 0.5] },
    ], "outputs": [{ "name": "sum" }] });
    let (status, answer) = worker.post("/v2/models/add/infer", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((&answer["id"], &answer["outputs"][0]["data"]), (&json!("7"), &json!([1.5, 2.5, 3.5])));
    let (_, statistics) = worker.get("/v2/models/add/stats").await;
    assert_eq!(statistics["model_stats"][0]["inference_count"], 1);
    assert_eq!(worker.get("/v2/models/stats").await.1["model_stats"].as_array().map(Vec::len), Some(4));
    let (_, index) = worker.post("/v2/repository/index", &json!({ "ready": true })).await;
    assert_eq!(index[0], json!({ "name": "add", "version": "1", "state": "READY", "reason": "" }));
    assert_eq!(worker.post("/v2/repository/models/mlp/unload", &json!({})).await.0, 200);
    assert_eq!(worker.get("/v2/models/mlp").await.0, 404);
    assert_eq!(worker.post("/v2/repository/models/mlp/load", &json!({})).await.0, 200);
    assert_eq!(worker.get("/v2/models/mlp").await.0, 200);
    let metrics = worker.client.get(format!("{}/metrics", worker.http)).send().await.expect("an answer");
    let metrics = metrics.text().await.expect("a text");
    assert!(metrics.contains("muster_worker_tensor_versions 4"), "{metrics}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_in_the_protocols_form() {
    let folder = repository(&["add", "gather"]);
    let worker = Worker::start(folder.path(), ModelControl::None).await;
    let input = |name: &str, kind: &str, shape: Value, data: Value| json!({ "inputs": [{ "name": name, "datatype": kind, "shape": shape, "data": data }] });
    for (path, body, status, words) in [
        ("models/nobody/infer", json!({ "inputs": [] }), 404, "nobody"),
        ("models/add/versions/9/infer", json!({ "inputs": [] }), 404, "`9`"),
        ("models/add/infer", json!({}), 400, "inputs"),
        ("models/add/infer", input("z", "FP32", json!([1]), json!([1])), 400, "`z`"),
        ("models/add/infer", input("a", "INT8", json!([1, 3]), json!([1, 2, 3])), 400, "expected FP32"),
        ("models/add/infer", input("a", "FP32", json!([1, 4]), json!([1, 2, 3, 4])), 400, "[-1, 3]"),
        ("models/add/infer", input("a", "FP32", json!([1, 3]), json!([1, 2, 3])), 400, "`b` is missing"),
        ("models/gather/infer", input("index", "INT64", json!([1]), json!([99])), 500, "out of data bounds"),
        ("repository/models/add/load", json!({}), 400, "explicit model control"),
        ("repository/models/add/load", json!({ "parameters": { "config": "{}" } }), 400, "`config`"),
    ] {
        let (given, answer) = worker.post(&format!("/v2/{path}"), &body).await;
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(given == status && error.contains(words), "{path} {body}: {given} {answer}");
        let kind = match status {
            404 => "unknown_model",
            500 => "run",
            _ => "invalid",
        };
        assert_eq!(answer["kind"], kind, "gateways are told more than the protocol has words for: {answer}");
    }
    let large = vec![1.0; 300_000];
    let body = input("a", "FP32", json!([100_000, 3]), json!(large));
    assert_eq!(worker.post("/v2/models/add/infer", &body).await.0, 413);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_and_large_tensors_travel_as_bytes() {
    let folder = repository(&["identity"]);
    let worker = Worker::start(folder.path(), ModelControl::None).await;
    let input = |datatype: Datatype| {
        let (count, data) = match datatype {
            Datatype::Bytes => (2, b"\x01\0\0\0a\0\0\0\0".to_vec()),
            Datatype::Fp64 => (60_000, vec![0x55; 480_000]), // longer than one piece of a connection
            other => (3, vec![1; 3 * other.size().expect("it is fixed")]),
        };
        tensor(&format!("in_{datatype}"), datatype, &[count], data)
    };
    let inputs = Datatype::ALL.map(input).to_vec();
    let response = worker.infer(&request("identity", inputs.clone())).await;
    assert_eq!(response.outputs.len(), inputs.len());
    assert!(inputs.iter().zip(&response.outputs).all(|(input, output)| input.data == output.data));

    let asked = message(request("identity", inputs.clone()), Contents::Raw).expect("raw says all");
    let answer: proto::ModelInferResponse = worker.call("ModelInfer", &asked).await.expect("an answer");
    let given: Vec<Bytes> = inputs.into_iter().map(|input| input.data).collect();
    assert_eq!(answer.raw_output_contents, given);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_answers_every_call_over_grpc() {
    let folder = repository(&["add", "mlp"]);
    let worker = Worker::start(folder.path(), ModelControl::Explicit).await;
    let live: proto::ServerLiveResponse = worker.call("ServerLive", &proto::ServerLiveRequest {}).await.expect("it");
    let ready: proto::ServerReadyResponse =
        worker.call("ServerReady", &proto::ServerReadyRequest {}).await.expect("it");
    assert!(live.live && ready.ready);
    let named = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    for (asked, expected) in [(named("mlp", "2"), true), (named("mlp", "3"), false), (named("nobody", ""), false)] {
        let (name, version) = asked;
        let ready: proto::ModelReadyResponse =
            worker.call("ModelReady", &proto::ModelReadyRequest { name, version }).await.expect("an answer");
        assert_eq!(ready.ready, expected);
    }
    let (name, version) = named("mlp", "");
    let asked = proto::ModelMetadataRequest { name: name.clone(), version: version.clone() };
    let metadata: proto::ModelMetadataResponse = worker.call("ModelMetadata", &asked).await.expect("an answer");
    assert_eq!((metadata.versions.len(), &metadata.inputs[0].shape[..]), (2, &[-1, 4][..]));
    let asked = proto::ModelConfigRequest { name, version };
    let config: proto::ModelConfigResponse = worker.call("ModelConfig", &asked).await.expect("an answer");
    assert_eq!(config.config.expect("a configuration").max_batch_size, 8);

    let asked = message(sum(), Contents::Typed).expect("floats have a word");
    let answer: proto::ModelInferResponse = worker.call("ModelInfer", &asked).await.expect("an answer");
    assert_eq!(answer.raw_output_contents[0], floats("", &[3], &[1.5, 2.5, 3.5]).data);
    let bad = message(request("add", vec![floats("a", &[1, 4], &[0.0; 4])]), Contents::Raw).expect("raw says all");
    let (status, told) = worker.call::<proto::ModelInferResponse>("ModelInfer", &bad).await.expect_err("a bad shape");
    assert!(status == 3 && told.contains("-1"), "{status} {told}");
    let asked = proto::ModelStatisticsRequest { name: "add".to_owned(), version: String::new() };
    let statistics: proto::ModelStatisticsResponse = worker.call("ModelStatistics", &asked).await.expect("an answer");
    assert_eq!(statistics.model_stats[0].inference_count, 1);

    let model_name = "mlp".to_owned();
    let asked = proto::RepositoryModelUnloadRequest { model_name: model_name.clone(), ..Default::default() };
    let _: proto::RepositoryModelUnloadResponse = worker.call("RepositoryModelUnload", &asked).await.expect("it goes");
    let asked = proto::RepositoryIndexRequest { ready: true, ..Default::default() };
    let index: proto::RepositoryIndexResponse = worker.call("RepositoryIndex", &asked).await.expect("an answer");
    assert_eq!(index.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["add"]);
    let asked = proto::RepositoryModelLoadRequest { model_name, ..Default::default() };
    let _: proto::RepositoryModelLoadResponse = worker.call("RepositoryModelLoad", &asked).await.expect("it comes");
    worker.stop().await;
}
