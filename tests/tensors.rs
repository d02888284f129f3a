//! Models as plain graphs, in a fleet of real processes: what a client hears when a run fails, and models that come and
//! go.

mod common;

use std::path::Path;

use common::{Process, eventually, gateway, is_ready, worker};
use muster_shared::client::ClientError;
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::problem::{Kind, Problem};
use muster_shared::tensor::{Datatype, InferRequest, InferResponse, Parameters, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The models of these tests.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tensors");

/// A fleet with one worker that has a repository.
struct Fleet {
    gateway: Process,
    worker: Process,
    controller: Process,
    repository: TempDir,
}

impl Fleet {
    /// With copies of some of the models, and flags for the worker.
    async fn start(models: &[&str], flags: &[&str]) -> Self {
        let repository = tempfile::tempdir().expect("a folder");
        for name in models {
            copy(&Path::new(FOLDER).join(name), &repository.path().join(name));
        }
        let controller = Process::start(&["controller", "--port", "0", "--heartbeat", "1s"]);
        let folder = repository.path().to_str().expect("a path of letters");
        let worker = worker(&controller.address, &[&["--model-repository", folder], flags].concat());
        let gateway = gateway(&controller.address, &["--grpc-port", "0", "--allow-model-control"]);
        let fleet = Self { gateway, worker, controller, repository };
        eventually("the gateway is ready", async || is_ready(&fleet.gateway.address).await).await;
        fleet
    }

    /// Whether controller and gateway know a model.
    async fn knows(&self, model: &str) -> [bool; 2] {
        let named = |list: &Value, field: &str| {
            list.as_array().is_some_and(|models| models.iter().any(|entry| entry[field] == model))
        };
        let fleet = self.controller.get("/fleet").await;
        let models = self.gateway.get("/v1/models").await;
        [named(&fleet["workers"][0]["models"], "name"), named(&models["data"], "id")]
    }

    /// Loads or unloads a model by way of the gateway, and waits until everybody has heard of it.
    async fn change(&self, model: &str, verb: &str) {
        let (status, answer) = self.gateway.post(&format!("/v2/repository/models/{model}/{verb}"), &json!({})).await;
        assert_eq!(status, 200, "{verb} {model}: {answer}");
        let what = format!("{verb} of {model} is known");
        eventually(&what, async || self.knows(model).await == [verb == "load"; 2]).await;
    }

    /// Requests that the controller counts.
    async fn tickets(&self) -> u64 {
        self.controller.get("/fleet").await["workers"][0]["tickets"].as_u64().expect("a count")
    }

    /// A client that speaks gRPC to the gateway.
    async fn grpc(&self) -> GrpcWorkerClient {
        let address = self.gateway.grpc_address().await;
        GrpcWorkerClient::new(GrpcPool::new(common::PATIENCE), address, None, common::PATIENCE)
    }

    async fn infer(&self, model: &str, input: &Value) -> (u16, Value) {
        self.gateway.post(&format!("/v2/models/{model}/infer"), &json!({ "inputs": [input] })).await
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("it can be copied");
        }
    }
}

/// Rows for `mlp`, and for the copies of it.
fn rows(count: usize) -> Value {
    json!({ "name": "x", "datatype": "FP32", "shape": [count, 4], "data": vec![0.5; 4 * count] })
}

fn index(number: i64) -> InferRequest {
    let data = number.to_le_bytes().to_vec().into();
    let (datatype, shape) = (Datatype::Int64, vec![1]);
    let input = Tensor { name: "index".to_owned(), datatype, shape, parameters: Parameters::new(), data };
    InferRequest { model: "gather".to_owned(), inputs: vec![input], ..InferRequest::default() }
}

/// What a client may read of ONNX Runtime's words.
#[track_caller]
fn is_told(message: &str) {
    assert!(message.contains("out of data bounds, idx=99"), "{message}");
    assert!(!message.contains('/'), "no path: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_graph_says_of_a_request_reaches_the_client_and_the_worker_goes_on() {
    for transport in [&[][..], &["--transport", "grpc", "--grpc-port", "0"]] {
        let fleet = Fleet::start(&["gather"], transport).await;
        let client = fleet.grpc().await;
        let number = |number: i64| json!({ "name": "index", "datatype": "INT64", "shape": [1], "data": [number] });
        let known = async || fleet.infer("gather", &number(3)).await.0 == 200;
        eventually("the model is known", known).await;

        let (status, answer) = fleet.infer("gather", &number(99)).await;
        assert_eq!(status, 500, "{answer}");
        is_told(answer["error"].as_str().expect("the protocol's words"));
        let error = client.infer(&index(99)).await.expect_err("the table has five entries");
        let ClientError::Refused { problem: Problem { kind: Kind::Run, message, .. }, .. } = error else {
            panic!("{error:?}")
        };
        is_told(&message);

        let (status, answer) = fleet.infer("gather", &number(3)).await;
        assert_eq!((status, &answer["outputs"][0]["data"]), (200, &json!([30.0])), "{answer}");
        let InferResponse { outputs, .. } = client.infer(&index(3)).await.expect("an answer");
        assert_eq!(outputs[0].data, 30.0_f32.to_le_bytes().to_vec());
        let workers = fleet.controller.get("/fleet").await["workers"].clone();
        assert_eq!(workers[0]["state"], "ready", "the worker is not blamed: {workers}");
        let failed = fleet.worker.metric("muster_worker_tensor_failures_total{").await;
        assert!((failed - 2.0).abs() < f64::EPSILON, "each was run once: {failed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_come_and_go_by_way_of_the_gateway_and_no_request_is_lost() {
    let fleet = Fleet::start(&["add", "mlp"], &["--model-control-mode", "explicit"]).await;
    // A request of this one waits for seven more rows, as long as it takes.
    let waiting = fleet.repository.path().join("waiting");
    copy(&Path::new(FOLDER).join("mlp"), &waiting);
    let settings =
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 8 ] max_queue_delay_microseconds: 600000000 }";
    std::fs::write(waiting.join("config.pbtxt"), settings).expect("it can be written");

    let registered = async || fleet.controller.get("/fleet").await["workers"][0]["state"] == "ready";
    eventually("a worker without models is registered", registered).await;
    assert_eq!(fleet.gateway.get("/v1/models").await["data"], json!([]));
    assert_eq!(fleet.infer("mlp", &rows(1)).await.0, 404);
    let indexed = async || {
        let (_, index) = fleet.gateway.post("/v2/repository/index", &json!({})).await;
        index.as_array().is_some_and(|entries| entries.iter().any(|entry| entry["name"] == "waiting"))
    };
    eventually("the gateway knows the worker", indexed).await;

    fleet.change("waiting", "load").await;
    let held = async { fleet.infer("waiting", &rows(1)).await };
    let others = async {
        eventually("the request is in flight", async || fleet.tickets().await == 1).await;
        for _ in 0..3 {
            fleet.change("mlp", "load").await;
            let (status, answer) = fleet.infer("mlp", &rows(1)).await;
            assert_eq!((status, &answer["outputs"][0]["shape"]), (200, &json!([1, 3])), "{answer}");
            fleet.change("mlp", "unload").await;
            assert_eq!(fleet.infer("mlp", &rows(1)).await.0, 404);
            assert_eq!(fleet.tickets().await, 1, "the ticket of another model stays");
        }
        fleet.infer("waiting", &rows(7)).await
    };
    let (held, others) = tokio::join!(held, others);
    for (status, answer) in [held, others] {
        assert_eq!(status, 200, "{answer}");
    }
    eventually("all tickets are back", async || fleet.tickets().await == 0).await;

    fleet.change("waiting", "unload").await;
    assert_eq!(fleet.infer("waiting", &rows(1)).await.0, 404);
    fleet.change("add", "load").await;
    let worker = &fleet.controller.get("/fleet").await["workers"][0];
    assert_eq!((&worker["state"], worker["models"].as_array().map(Vec::len)), (&json!("ready"), Some(1)), "{worker}");
}
