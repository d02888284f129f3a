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
    _repository: TempDir,
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
        let fleet = Self { gateway, worker, controller, _repository: repository };
        eventually("the gateway is ready", async || is_ready(&fleet.gateway.address).await).await;
        fleet
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
