//! The Open Inference Protocol through a gateway, over both wires on both of its sides, to a worker that gives back what
//! it gets.

mod peers;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use muster_gateway::{ApiKey, Config, KeyLimits, KeyRate, Listeners, RateLimit, Reload};
use muster_shared::client::ClientError;
use muster_shared::control::Outcome;
use muster_shared::grpc::open_inference::proto::{self, grpc_inference_service_client::GrpcInferenceServiceClient};
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use muster_shared::tensor::http::{
    Form, HEADER_LENGTH, Wanted, header_length, read_request, read_response, write_request, write_response,
};
use muster_shared::tensor::{
    Datatype, IndexEntry, InferRequest, InferResponse, ModelMetadata, ModelState, ModelStatistics, Parameter, Tensor,
    TensorMetadata,
};
use muster_shared::transport::Transport;
use peers::{Controller, Gateway, Named, PATIENCE, in_time, nobody, serve};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::Service;

/// What the worker was asked besides runs.
type Heard = Arc<Mutex<Vec<String>>>;

/// A worker whose model `m` gives back its inputs, except where the id of a run is that of a failure.
async fn echo() -> (String, Heard) {
    let heard = Heard::default();
    let router = Router::new()
        .route("/v2/models/{model}/infer", post(run))
        .route("/v2/models/{model}/versions/{version}/infer", post(run_version))
        .route("/v2/models/{model}", get(async || axum::Json(metadata())))
        .route("/v2/models/{model}/ready", get(async || StatusCode::OK))
        .route("/v2/models/{model}/stats", get(async || axum::Json(json!({ "model_stats": [statistics()] }))))
        .route("/v2/repository/index", post(async || axum::Json([index()])))
        .route("/v2/repository/models/{model}/{verb}", post(change))
        .with_state(Arc::clone(&heard));
    (serve(router).await, heard)
}

fn metadata() -> ModelMetadata {
    let tensor = TensorMetadata { name: "x".to_owned(), datatype: Datatype::Fp32, shape: vec![-1, 3] };
    ModelMetadata {
        name: "m".to_owned(),
        versions: vec!["1".to_owned()],
        platform: "onnxruntime_onnx".to_owned(),
        inputs: vec![tensor.clone()],
        outputs: vec![tensor],
    }
}

fn statistics() -> ModelStatistics {
    ModelStatistics { name: "m".to_owned(), version: "1".to_owned(), inference_count: 3, ..ModelStatistics::default() }
}

fn index() -> IndexEntry {
    let state = ModelState::Ready;
    IndexEntry { name: "m".to_owned(), version: "1".to_owned(), state, reason: String::new() }
}

async fn change(State(heard): State<Heard>, Path((model, verb)): Path<(String, String)>) {
    heard.lock().expect("no panic while holding it").push(format!("{verb} {model}"));
}

async fn run(state: State<Heard>, Path(model): Path<String>, headers: HeaderMap, body: Bytes) -> Response {
    run_version(state, Path((model, String::new())), headers, body).await
}

async fn run_version(
    State(heard): State<Heard>,
    Path((model, version)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let length = headers.get(HEADER_LENGTH).map(|value| header_length(value.as_bytes()).expect("a length"));
    let (request, wanted) = read_request(&model, Some(&version), body, length).expect("our own words");
    heard.lock().expect("no panic while holding it").push(format!("infer {model}"));
    if let Some((_, status, body)) = failures().into_iter().find(|(id, ..)| *id == request.id) {
        return (status, axum::Json(body)).into_response();
    }
    assert_eq!(wanted, Wanted::all(Form::Binary), "between processes nothing travels as text");
    let InferRequest { model, id, parameters, inputs: outputs, .. } = request;
    let response = InferResponse { model, version, id, parameters, outputs };
    let body = write_response(&response, &wanted).expect("it is binary");
    match body.header_length() {
        Some(length) => ([(HEADER_LENGTH, length.to_string())], body.into_bytes()).into_response(),
        None => body.into_bytes().into_response(),
    }
}

/// Ids of runs that fail, with the answers to them.
fn failures() -> [(&'static str, StatusCode, Value); 5] {
    let broken = "a run of the model failed: idx=99 must be within the inclusive range [-5,4]";
    [
        ("fail", StatusCode::BAD_REQUEST, json!({ "error": "input `x`: the model takes FP32, and INT8 was sent" })),
        ("absent", StatusCode::NOT_FOUND, json!({ "error": "`m` has no version `9`", "kind": "unknown_model" })),
        ("broken", StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": broken, "kind": "run" })),
        ("foreign", StatusCode::INTERNAL_SERVER_ERROR, json!({ "error": "it crashed", "kind": "words of another" })),
        (
            "full",
            StatusCode::TOO_MANY_REQUESTS,
            json!({ "error": "4 requests run and 9 wait", "kind": "overloaded", "retry_after_ms": 2500 }),
        ),
    ]
}

/// A gateway that speaks gRPC as well.
struct Both {
    http: String,
    grpc: String,
    _stop: DropGuard,
}

async fn both(controller: &str, change: impl FnOnce(&mut Config)) -> Both {
    muster_shared::tls::provider(); // the clients of the tests want one
    let threads = NonZeroUsize::MIN;
    let mut config = Config { controller: controller.to_owned(), threads, ..Config::default() };
    change(&mut config);
    let [http, grpc] = [TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await];
    let (http, grpc) = (http.expect("a free port"), grpc.expect("a free port"));
    let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
    let (http_address, grpc_address) = (address(&http), address(&grpc));
    let stop = CancellationToken::new();
    tokio::spawn(muster_gateway::run(config, Listeners { http, grpc: Some(grpc) }, stop.clone()));
    let gateway = Both { http: http_address, grpc: grpc_address, _stop: stop.drop_guard() };
    let ready = format!("{}/v2/health/ready", gateway.http);
    in_time(async { while reqwest::get(&ready).await.expect("an answer").status() != 200 {} }).await;
    gateway
}

impl Both {
    fn client(&self, key: Option<&Secret>) -> GrpcWorkerClient {
        GrpcWorkerClient::new(GrpcPool::new(PATIENCE), self.grpc.clone(), key, PATIENCE)
    }
}

/// Every datatype with three elements, a scalar and an empty tensor.
fn request() -> InferRequest {
    let tensor = |name: String, datatype: Datatype, shape: &[usize]| {
        let count: usize = shape.iter().product();
        let data = match datatype.size() {
            Some(size) => (0..count * size).map(|at| (at % 2) as u8).collect(),
            None => [2, 0, 0, 0, 0xff, b'a'].repeat(count).into(),
        };
        Tensor { name, datatype, shape: shape.to_vec(), parameters: [].into(), data }
    };
    let mut inputs = Datatype::ALL.map(|datatype| tensor(datatype.to_string(), datatype, &[1, 3])).to_vec();
    inputs.push(tensor("scalar".to_owned(), Datatype::Fp64, &[]));
    inputs.push(tensor("empty".to_owned(), Datatype::Int64, &[2, 0]));
    InferRequest {
        model: "m".to_owned(),
        id: "7".to_owned(),
        parameters: [("p".to_owned(), Parameter::Int(5))].into(),
        inputs,
        ..InferRequest::default()
    }
}

#[track_caller]
fn echoed(request: &InferRequest, response: &InferResponse) {
    assert_eq!(
        (&response.model, &response.id, &response.parameters),
        (&request.model, &request.id, &request.parameters)
    );
    assert_eq!(response.outputs, request.inputs);
}

async fn infer_over_http(gateway: &str, request: &InferRequest) -> InferResponse {
    let body = write_request(request, Form::Binary).expect("it is binary");
    let length = body.header_length().expect("it is binary").to_string();
    let sent = reqwest::Client::new().post(format!("{gateway}/v2/models/m/infer")).header(HEADER_LENGTH, length);
    let answer = in_time(sent.body(body.into_bytes()).send()).await.expect("an answer");
    assert_eq!(answer.status(), 200, "{:?}", answer.text().await);
    let length = answer.headers().get(HEADER_LENGTH).map(|value| header_length(value.as_bytes()).expect("a length"));
    read_response(answer.bytes().await.expect("a body"), length).expect("an answer of the protocol")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_datatype_goes_through_over_both_wires_on_both_sides() {
    let (worker, _) = echo().await;
    let mut controller = Controller::start(vec![Ok(worker); 3]).await;
    let inner = both(&controller.address, |_| {}).await;
    let request = request();
    echoed(&request, &infer_over_http(&inner.http, &request).await);
    echoed(&request, &inner.client(None).infer(&request).await.expect("an answer"));
    // A gateway is a server of the protocol: what it is to its clients, it is to another gateway as well.
    let named = Named { address: inner.grpc.clone(), transport: Transport::Grpc };
    let mut second = Controller::start([Ok(named)]).await;
    let outer = both(&second.address, |_| {}).await;
    // The threads of both wires; one whose link is still on its way would ask the fleet that the other knows.
    second.greeted().await;
    second.greeted().await;
    echoed(&request, &infer_over_http(&outer.http, &request).await);
    assert_eq!(controller.outcomes(3).await.len(), 3, "every ticket was given back");
    assert_eq!(second.dispatch(0).transports, [Transport::Http, Transport::Grpc]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_to_another_worker_when_one_is_not_there() {
    let (worker, _) = echo().await;
    let mut controller = Controller::start([Ok(nobody().await), Ok(worker)]).await;
    let gateway = both(&controller.address, |_| {}).await;
    echoed(&request(), &gateway.client(None).infer(&request()).await.expect("an answer"));
    assert_eq!(controller.outcomes(2).await, [Outcome::Unreachable, Outcome::Done]);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_come_as_they_are_wanted() {
    let (worker, _) = echo().await;
    let controller = Controller::start(vec![Ok(worker); 3]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let float = |name: &str| json!({ "name": name, "datatype": "FP32", "shape": [2], "data": [0.5, -1] });
    let body = json!({ "id": "a", "inputs": [float("x")] });
    let answer = gateway.post("/v2/models/m/versions/4/infer", &body).await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert!(answer.headers().contains_key("x-request-id"));
    let expected = json!({ "model_name": "m", "model_version": "4", "id": "a", "outputs": [
        { "name": "x", "datatype": "FP32", "shape": [2], "data": [0.5, -1.0] }
    ]});
    assert_eq!(answer.json::<Value>().await.expect("JSON"), expected);
    let wanted = json!([{ "name": "x", "parameters": { "binary_data": true } }, { "name": "y" }]);
    let answer =
        gateway.post("/v2/models/m/infer", &json!({ "inputs": [float("x"), float("y")], "outputs": wanted })).await;
    let length: usize = answer.headers()[HEADER_LENGTH].to_str().expect("text").parse().expect("a length");
    let body = answer.bytes().await.expect("a body");
    let said: Value = serde_json::from_slice(&body[..length]).expect("JSON");
    assert_eq!(said["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(said["outputs"][1]["data"], json!([0.5, -1.0]));
    assert_eq!(&body[length..], [0.5f32.to_le_bytes(), (-1f32).to_le_bytes()].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_are_in_the_protocols_words_and_name_the_field() {
    let (worker, heard) = echo().await;
    let controller = Controller::start(vec![Ok(worker); 2]).await;
    let gateway = both(&controller.address, |_| {}).await;
    let refused = async |method: reqwest::Method, path: &str, body: Value| {
        let request = reqwest::Client::new().request(method, format!("{}{path}", gateway.http)).json(&body);
        let answer = in_time(request.send()).await.expect("an answer");
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.expect("JSON");
        (status, body["error"].as_str().expect("the protocol's words").to_owned())
    };
    let post = reqwest::Method::POST;
    let short = json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1] }] });
    let (status, text) = refused(post.clone(), "/v2/models/m/infer", short).await;
    assert!(status == 400 && text.contains("input `x`: shape [2, 3] has 6 elements"), "{status} {text}");
    let failing = json!({ "id": "fail", "inputs": [{ "name": "x", "datatype": "INT8", "shape": [1], "data": [1] }] });
    let (status, text) = refused(post.clone(), "/v2/models/m/infer", failing).await;
    assert!(status == 400 && text.contains("the model takes FP32"), "{status} {text}");
    assert_eq!(*heard.lock().expect("no panic while holding it"), ["infer m"], "what is wrong here goes to no worker");
    for path in ["/v2/trace/setting", "/v2/logging", "/v2/systemsharedmemory/status"] {
        let (status, text) = refused(reqwest::Method::GET, path, json!({})).await;
        assert!(status == 501 && text.starts_with("muster has no "), "{path}: {status} {text}");
    }
    assert_eq!(refused(post.clone(), "/v2/models/m/ready", json!({})).await.0, 405);
    assert_eq!(refused(post.clone(), "/v2/nothing", json!({})).await.0, 404);
    let (status, text) = refused(post, "/v2/repository/models/m/load", json!({})).await;
    assert!(status == 400 && text.contains("--allow-model-control"), "{status} {text}");
    let error = gateway.client(None).load_model("m").await.expect_err("it is not allowed");
    assert!(error.to_string().contains("--allow-model-control"), "{error}");
    let half = json!({ "inputs": [{ "name": "x", "datatype": "FP16", "shape": [1], "data": [1] }] });
    let (status, text) = refused(reqwest::Method::POST, "/v2/models/m/infer", half).await;
    assert!(status == 400 && text.contains("binary data"), "{status} {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_graph_cannot_run_is_told_and_not_tried_again() {
    let (worker, heard) = echo().await;
    let mut controller = Controller::start(vec![Ok(worker); 3]).await;
    let gateway = both(&controller.address, |config| config.attempts = NonZeroU32::MIN).await;
    let failing = |id: &str| InferRequest { id: id.to_owned(), ..request() };
    let client = gateway.client(None);
    let refused = async |id: &str| match client.infer(&failing(id)).await.expect_err("it fails") {
        ClientError::Refused { problem, .. } => problem,
        other => panic!("{other:?}"),
    };
    let broken = refused("broken").await;
    assert!(broken.kind == Kind::Run && broken.message.ends_with("[-5,4]"), "{broken:?}");
    let full = refused("full").await;
    assert_eq!(full, Problem::new(Kind::Overloaded, "4 requests run and 9 wait").with_retry_after_ms(2500));
    let crashed = refused("foreign").await;
    assert!(crashed.kind == Kind::Upstream && !crashed.message.contains("crashed"), "{crashed:?}");
    assert_eq!(controller.outcomes(3).await, [Outcome::Done, Outcome::Overloaded, Outcome::Failed]);
    assert_eq!(heard.lock().expect("no panic while holding it").len(), 3, "one attempt each");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_last_worker_does_not_have_is_told_in_its_words() {
    let (worker, _) = echo().await;
    let mut controller = Controller::start([Ok(worker)]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let input = json!({ "name": "x", "datatype": "INT8", "shape": [1], "data": [1] });
    let answer = gateway.post("/v2/models/m/infer", &json!({ "id": "absent", "inputs": [input] })).await;
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.json::<Value>().await.expect("JSON"), json!({ "error": "`m` has no version `9`" }));
    assert_eq!(controller.outcomes(1).await, [Outcome::Done]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_run_costs_one_attempt_and_a_crash_several() {
    let (worker, heard) = echo().await;
    let mut controller = Controller::start(vec![Ok(worker); 7]).await;
    let gateway = Gateway::start(&controller.address, |_| {}).await;
    let input = json!({ "name": "x", "datatype": "INT8", "shape": [1], "data": [1] });
    let mut asked = Vec::new();
    for (id, status) in [("broken", 500), ("foreign", 502), ("full", 429)] {
        let answer = gateway.post("/v2/models/m/infer", &json!({ "id": id, "inputs": [input] })).await;
        assert_eq!(answer.status(), status, "{id}");
        if id == "full" {
            assert_eq!(answer.headers()["retry-after"], "3", "seconds, rounded up");
        }
        let body: Value = answer.json().await.expect("JSON");
        let text = body["error"].as_str().expect("the protocol's words");
        assert_eq!(text.contains("inclusive range"), id == "broken", "{text}");
        asked.push(std::mem::take(&mut *heard.lock().expect("no panic while holding it")).len());
    }
    assert!(asked[0] == 1 && asked[1] > 1, "{asked:?}");
    assert_eq!(controller.outcomes(1).await, [Outcome::Done], "the worker is not blamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_a_server_needs_no_key_and_who_runs_models_does() {
    let (worker, _) = echo().await;
    let controller = Controller::start(vec![Ok(worker); 2]).await;
    let key = Secret::new("key");
    let gateway = both(&controller.address, |config| config.keys = vec![ApiKey::unnamed(key.clone(), 1)]).await;
    let status = async |path: &str| reqwest::get(format!("{}{path}", gateway.http)).await.expect("an answer").status();
    assert_eq!(status("/v2/health/live").await, 200);
    assert_eq!(status("/v2/health/ready").await, 200);
    assert_eq!(status("/v2").await, 401);
    assert_eq!(status("/v2/models/m/ready").await, 401);
    let refused = gateway.client(None).infer(&request()).await.expect_err("no key");
    let ClientError::Refused { problem: Problem { kind: Kind::BadKey, .. }, .. } = refused else { panic!("{refused}") };
    echoed(&request(), &gateway.client(Some(&key)).infer(&request()).await.expect("an answer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_are_made_on_behalf_of_a_key_and_with_the_time_that_they_have() {
    let (worker, _) = echo().await;
    let controller = Controller::start(vec![Ok(worker); 2]).await;
    let key = Secret::new("hunter2");
    let gateway = both(&controller.address, |config| config.keys = vec![ApiKey::unnamed(key.clone(), 1)]).await;
    let mut run = request();
    run.parameters.insert("timeout".to_owned(), Parameter::Int(300_000_000));
    gateway.client(Some(&key)).infer(&run).await.expect("an answer");
    let client = reqwest::Client::new();
    let body = json!({ "inputs": [{ "name": "x", "datatype": "BOOL", "shape": [1], "data": [true] }],
        "parameters": { "timeout": 300_000_000 } });
    let posted = client.post(format!("{}/v2/models/m/infer", gateway.http)).bearer_auth("hunter2").json(&body);
    let answer = in_time(posted.send()).await.expect("an answer");
    assert_eq!(answer.status(), 200, "{}", answer.text().await.expect("text"));
    for wire in 0..2 {
        let dispatch = controller.dispatch(wire);
        assert_eq!(dispatch.key.as_deref(), Some("key-1"));
        let left = dispatch.deadline_ms.expect("the client has said it");
        assert!((200_000..=300_000).contains(&left), "{left}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_tells_of_its_models_over_both_wires() {
    let (first, heard) = echo().await;
    let (second, _) = echo().await;
    let controller = Controller::start([Ok(first.clone()), Ok(second), Ok(first)]).await;
    let gateway = both(&controller.address, |config| config.allow_model_control = true).await;
    let client = gateway.client(None);
    assert_eq!(client.model_metadata("m", None).await.expect("an answer"), metadata());
    assert!(client.model_ready("m", None).await.expect("an answer"));
    let summed = ModelStatistics { inference_count: 6, ..statistics() };
    assert_eq!(client.model_statistics(Some("m"), None).await.expect("an answer"), [summed], "two workers, once each");
    assert_eq!(client.repository_index().await.expect("an answer"), [index()]);
    client.load_model("m").await.expect("it is allowed");
    assert_eq!(*heard.lock().expect("no panic while holding it"), ["load m"]);
    let unknown = client.unload_model("other").await.expect_err("nobody has it").to_string();
    assert!(unknown.contains("no live worker has the model `other`"), "{unknown}");
    let asked = async |path: &str| -> Value {
        let answer = reqwest::get(format!("{}{path}", gateway.http)).await.expect("an answer");
        answer.json().await.expect("JSON")
    };
    assert_eq!(asked("/v2").await["name"], "muster");
    assert_eq!(asked("/v2/models/m").await, serde_json::to_value(metadata()).expect("JSON"));
    assert_eq!(asked("/v2/models/m/stats").await["model_stats"][0]["inference_count"], 6);
    let body = json!({ "parameters": { "config": "{}" } });
    let load = reqwest::Client::new().post(format!("{}/v2/repository/models/m/load", gateway.http)).json(&body);
    let answer = load.send().await.expect("an answer");
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.expect("text").contains("`config`"), "what is not supported is named");
}

/// A connection over which gRPC is spoken.
async fn connection(
    address: &str,
) -> impl Service<
    Request<tonic::body::Body>,
    Response = hyper::Response<Incoming>,
    Error = hyper::Error,
    Future = impl Future<Output = Result<hyper::Response<Incoming>, hyper::Error>> + Send,
> + Clone {
    let stream = TcpStream::connect(address.trim_start_matches("http://")).await.expect("it listens");
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2 is spoken");
    tokio::spawn(connection);
    tower::service_fn(move |request| sender.clone().send_request(request))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_answers_in_order_and_goes_on_after_an_error() {
    let (worker, _) = echo().await;
    let controller = Controller::start(vec![Ok(worker); 20]).await;
    let gateway = both(&controller.address, |_| {}).await;
    let mut client =
        GrpcInferenceServiceClient::with_origin(connection(&gateway.grpc).await, gateway.grpc.parse().expect("a URL"));
    let message = |number: usize| {
        let shape = if number == 3 { -1 } else { 1 };
        let input = proto::model_infer_request::InferInputTensor {
            name: "x".to_owned(),
            datatype: "INT32".to_owned(),
            shape: vec![shape],
            contents: Some(proto::InferTensorContents { int_contents: vec![number as i32], ..Default::default() }),
            ..Default::default()
        };
        proto::ModelInferRequest {
            model_name: "m".to_owned(),
            id: number.to_string(),
            inputs: vec![input],
            ..Default::default()
        }
    };
    let messages = futures_util::stream::iter((0..12).map(message));
    let mut answers = in_time(client.model_stream_infer(messages)).await.expect("a stream").into_inner();
    for number in 0..12i32 {
        let answer = in_time(answers.message()).await.expect("no status").expect("an answer for each");
        let response = answer.infer_response.expect("an answer names its request");
        assert_eq!(response.id, number.to_string());
        if number == 3 {
            assert!(answer.error_message.contains("input `x`: shape [-1]"), "{}", answer.error_message);
        } else {
            assert_eq!(answer.error_message, "");
            assert_eq!(response.raw_output_contents, [number.to_le_bytes().to_vec()]);
        }
    }
    assert!(in_time(answers.message()).await.expect("no status").is_none(), "the stream ends with its requests");
    let status = client.trace_setting(proto::TraceSettingRequest {}).await.expect_err("there is none");
    assert!(status.message().contains("settings for traces"), "{status}");
}

/// A key whose bucket holds three requests, and no more for an hour.
fn slow_key(secret: &str) -> ApiKey {
    let limit =
        RateLimit { burst: NonZeroU32::new(3).expect("3 is not 0"), ..RateLimit::new("1/h".parse().expect("a rate")) };
    let limits = KeyLimits { rate: KeyRate::Own(limit), ..KeyLimits::default() };
    ApiKey::named(secret, Secret::new(secret), 0).expect("a name").with_limits(limits)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_of_a_stream_is_let_in_by_its_key_or_not() {
    let (worker, _) = echo().await;
    let controller = Controller::start(vec![Ok(worker); 20]).await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "slow other").expect("it is written");
    let read = |text: &str| Ok(text.split_whitespace().map(slow_key).collect());
    let gateway = both(&controller.address, |config| {
        config.keys = vec![slow_key("slow"), slow_key("other")];
        config.keys_reload = Some(Reload::new(file.path().to_owned(), "slow other".to_owned(), read));
    })
    .await;
    let open = async |key: &str| {
        let origin = gateway.grpc.parse().expect("a URL");
        let mut client = GrpcInferenceServiceClient::with_origin(connection(&gateway.grpc).await, origin);
        let (send, messages) = tokio::sync::mpsc::channel(8);
        let mut call = tonic::Request::new(ReceiverStream::new(messages));
        call.metadata_mut().insert("authorization", format!("Bearer {key}").parse().expect("a header"));
        (send, in_time(client.model_stream_infer(call)).await.expect("a stream").into_inner())
    };
    let message = || proto::ModelInferRequest { model_name: "m".to_owned(), ..Default::default() };
    let (send, mut answers) = open("slow").await;
    for is_let_in in [true, true, true, false, false] {
        send.send(message()).await.expect("it is read");
        let answer = in_time(answers.message()).await.expect("no status").expect("an answer for each");
        let told = &answer.error_message;
        assert_eq!(told.contains("rate limit exceeded: the key `slow`"), !is_let_in, "{told}");
    }
    let (send, mut answers) = open("other").await;
    send.send(message()).await.expect("it is read");
    in_time(answers.message()).await.expect("no status").expect("an answer");
    std::fs::write(file.path(), "slow").expect("it is written");
    let refused = async || {
        let asked = reqwest::Client::new().get(format!("{}/v2", gateway.http)).bearer_auth("other").send().await;
        asked.expect("an answer").status() == 401
    };
    in_time(async { while !refused().await {} }).await;
    send.send(message()).await.expect("it is read");
    let status = in_time(answers.message()).await.expect_err("whose key is gone has no stream");
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status}");
}
