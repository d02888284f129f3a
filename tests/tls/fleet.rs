//! A whole fleet under mutual TLS, and `muster up` behind one door.

use muster_shared::client::{Timeouts, fleet_client};
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::tensor::{Datatype, InferRequest, Parameters, Tensor};
use muster_shared::tls::Tls;
use serde_json::{Value, json};

use super::authority::{Authority, HERE};
use super::common::{self, CHAT, EMBEDDING, PATIENCE, Process, chat_body, eventually, facts, run};

/// The tensor models of the tests.
const TENSORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/tensors");

/// Services, each with a certificate of its own; who calls one must show one, too.
pub(crate) struct Fleet {
    pub(crate) authority: Authority,
    pub(crate) controller: Process,
    /// By HTTP, gRPC and FastChat's words.
    pub(crate) workers: Vec<Process>,
    pub(crate) gateway: Process,
    /// What a client of the fleet has.
    pub(crate) tls: Tls,
}

/// The services, by the names of their files.
pub(crate) const SERVICES: [&str; 5] = ["controller", "http", "grpc", "fastchat", "gateway"];

impl Fleet {
    pub(crate) async fn start() -> Self {
        let authority = Authority::new("the fleet");
        SERVICES.iter().chain(&["client"]).for_each(|name| drop(authority.make(name, &HERE)));
        let start = |service: &str, name: &str, more: &[&str]| {
            let flags = authority.flags(name);
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            Process::start(&[&[service, "--port", "0"], more, &flags].concat())
        };
        let controller = start("controller", "controller", &["--heartbeat", "1s"]);
        let address = controller.address.clone();
        let worker = |name: &str, more: &[&str]| {
            let chat = format!("{name}={CHAT}");
            let flags = ["--controller-address", &address, "--worker-id", name, "--model", &chat];
            start("worker", name, &[&flags, more].concat())
        };
        let workers = vec![
            worker("http", &["--model", EMBEDDING, "--model-repository", TENSORS]),
            worker("grpc", &["--grpc-port", "0", "--transport", "grpc"]),
            worker("fastchat", &["--transport", "fastchat"]),
        ];
        let gateway = start("gateway", "gateway", &["--grpc-port", "0", "--controller-address", &address]);
        let tls = authority.client(Some((&authority, "client")));
        let fleet = Self { authority, controller, workers, gateway, tls };
        eventually("all workers are known", async || fleet.knows_all().await).await;
        fleet
    }

    /// A client with a connection of its own.
    pub(crate) fn client(&self) -> reqwest::Client {
        fleet_client(&self.tls, Timeouts { connect: PATIENCE, read: PATIENCE })
    }

    async fn get(&self, url: &str) -> Value {
        let answer = self.client().get(url).send().await;
        match answer {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }

    async fn knows_all(&self) -> bool {
        let models = self.get(&format!("{}/v1/models", self.gateway.address)).await;
        let named = |name: &str| {
            let models = models["data"].as_array();
            models.is_some_and(|models| models.iter().any(|model| model["id"] == name))
        };
        ["http", "grpc", "fastchat", EMBEDDING, "gather"].iter().all(|name| named(name))
    }

    /// Asks the gateway.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request = self.client().post(format!("{}{path}", self.gateway.address)).json(body);
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.json().await.expect("JSON"))
    }

    /// Samples of a metric of a service, added up.
    pub(crate) async fn metric(&self, address: &str, name: &str) -> f64 {
        let response = self.client().get(format!("{address}/metrics")).send().await.expect("an answer");
        let text = response.text().await.expect("text");
        let samples = text.lines().filter_map(|line| line.strip_prefix(name)?.rsplit(' ').next()?.parse::<f64>().ok());
        samples.sum()
    }

    /// The base URL of every service, in the order of [`SERVICES`].
    pub(crate) fn addresses(&self) -> [&str; 5] {
        let [http, grpc, fastchat] = [0, 1, 2].map(|index| self.workers[index].address.as_str());
        [&self.controller.address, http, grpc, fastchat, &self.gateway.address]
    }
}

/// A request for one entry of the table in the model `gather`.
pub(crate) fn entry(number: i64) -> InferRequest {
    let data = number.to_le_bytes().to_vec().into();
    let (datatype, shape) = (Datatype::Int64, vec![1]);
    let input = Tensor { name: "index".to_owned(), datatype, shape, parameters: Parameters::new(), data };
    InferRequest { model: "gather".to_owned(), inputs: vec![input], ..InferRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_fleet_answers_under_mutual_tls() {
    let fleet = Fleet::start().await;
    assert!(fleet.addresses().iter().all(|address| address.starts_with("https://127.0.0.1:")));

    let (question, right) = facts::capital(0);
    for model in ["http", "grpc", "fastchat"] {
        let (status, answer) = fleet.post("/v1/chat/completions", &chat_body(model, &question)).await;
        let text = &answer["choices"][0]["message"]["content"];
        assert_eq!((status, text), (200, &json!(right)), "{model}: {answer}");

        let mut body = chat_body(model, &question);
        body["stream"] = json!(true);
        let request = fleet.client().post(format!("{}/v1/chat/completions", fleet.gateway.address)).json(&body);
        let stream = request.send().await.expect("an answer").text().await.expect("a whole stream");
        let events: Vec<String> =
            stream.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
        assert_eq!((common::text_of(&events), events.last().map(String::as_str)), (right.clone(), Some("[DONE]")));
    }
    let (status, answer) = fleet.post("/v1/embeddings", &json!({ "model": EMBEDDING, "input": "a text" })).await;
    assert_eq!((status, answer["data"][0]["embedding"].is_array()), (200, true), "{answer}");

    let address = fleet.gateway.grpc_address().await;
    assert!(address.starts_with("https://"), "{address}");
    let client = GrpcWorkerClient::new(GrpcPool::of_fleet(&fleet.tls, PATIENCE), address, None, PATIENCE);
    let answer = client.infer(&entry(3)).await.expect("an answer over gRPC");
    assert_eq!(answer.outputs[0].data, 30.0_f32.to_le_bytes().to_vec());

    let files = fleet.authority.open_flags("client");
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    for verb in ["status", "models"] {
        let asked = [verb, "--controller-address", &fleet.controller.address];
        let (status, text, errors) = run(&[&asked, &files[..]].concat());
        assert!(status.success() && text.contains("grpc") && text.contains("fastchat"), "{text}{errors}");
    }
    let entries = fleet.get(&format!("{}/fleet", fleet.controller.address)).await["workers"].clone();
    let entries = entries.as_array().expect("workers");
    let by_https = |worker: &&Value| worker["address"].as_str().is_some_and(|address| address.starts_with("https://"));
    assert_eq!(entries.iter().filter(by_https).count(), 3, "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_of_up_speaks_tls_and_what_is_behind_it_does_not() {
    let authority = Authority::new("the fleet");
    authority.make("gateway", &["models.example"]); // no name of this machine
    let files = authority.open_flags("gateway");
    let files: Vec<&str> = files[..4].iter().map(String::as_str).collect();
    let up = Process::start(&[&["up", "--port", "0", "--model", "fake"], &files[..]].concat());
    let port = up.address.rsplit(':').next().expect("a port").parse().expect("a number");
    assert!(up.address.starts_with("https://"), "{}", up.address);
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(authority.client(None).client_config())
        .resolve("models.example", std::net::SocketAddr::from(([127, 0, 0, 1], port)))
        .build()
        .expect("a client");
    let request = client.post(format!("https://models.example:{port}/v1/chat/completions"));
    let answer = request.json(&chat_body("fake", "?")).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
}
