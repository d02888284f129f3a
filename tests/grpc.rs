//! The worker's protocol over gRPC, through the gateway and directly.

mod common;

use std::time::Duration;

use common::{CHAT, Cluster, EMBEDDING, Process, chat_body, facts, gateway, stream, text_of, worker};
use futures_util::StreamExt as _;
use muster_shared::client::{ClientError, Timeouts, WorkerClient, http_client};
use muster_shared::embed::{EmbedInput, EmbedRequest};
use muster_shared::generate::{Chat, Event, GenerateRequest, Message, Prompt, Sampling};
use muster_shared::grpc::{GrpcPool, GrpcWorkerClient};
use muster_shared::problem::{Kind, Problem};
use muster_shared::secret::Secret;
use serde_json::{Value, json};

/// A worker that gateways are to speak gRPC to.
const GRPC: [&str; 4] = ["--grpc-port", "0", "--transport", "gRPC"];
/// The same with a model that takes its time, so that a test can act in the middle of an answer.
const SLOW: [&str; 10] =
    [GRPC[0], GRPC[1], GRPC[2], GRPC[3], "--model", "fake", "--fake-token-time", "20ms", "--fake-answer", "100000"];

fn client(address: &str, token: Option<&str>) -> GrpcWorkerClient {
    let pool = GrpcPool::new(Duration::from_secs(2));
    GrpcWorkerClient::new(pool, address, token.map(Secret::new).as_ref(), common::PATIENCE)
}

fn question(text: &str) -> GenerateRequest {
    let message = Message { role: "user".to_owned(), content: Some(text.to_owned()), more: serde_json::Map::new() };
    let chat = Chat { messages: vec![message], ..Chat::default() };
    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
    GenerateRequest { sampling, ..GenerateRequest::new(CHAT, Prompt::Chat(chat)) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_models_chat_complete_and_embed_over_grpc() {
    let cluster = Cluster::start(&[&GRPC]).await;
    let entry = &cluster.controller.get("/fleet").await["workers"][0];
    assert_eq!(entry["transport"], "grpc", "{entry}");
    assert_eq!(entry["id"], cluster.workers[0].address.as_str(), "the id is the HTTP address");
    assert_eq!(entry["address"], cluster.workers[0].grpc_address().await.as_str());

    let gateway = &cluster.gateway;
    let (question, right) = facts::capital(0);
    assert_eq!(cluster.ask(CHAT, &question).await, right);
    let mut body = chat_body(CHAT, &question);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    let events = stream(&gateway.address, body.clone()).await;
    assert_eq!((text_of(&events), events.last().map(String::as_str)), (right.clone(), Some("[DONE]")));
    assert!(events.iter().any(|event| event.contains("top_logprobs")), "{events:?}");
    body["n"] = json!(2);
    let (_, answer) = gateway.post("/v1/chat/completions", &body).await;
    for choice in 0..2 {
        assert_eq!(answer["choices"][choice]["message"]["content"], right.as_str(), "{answer}");
    }
    let body = json!({ "model": CHAT, "prompt": ["Say", "OK"], "max_tokens": 3, "echo": true, "temperature": 0 });
    let (status, answer) = gateway.post("/v1/completions", &body).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["choices"][0]["text"].as_str().is_some_and(|text| text.starts_with("Say")), "{answer}");
    let body = json!({ "model": EMBEDDING, "input": ["a fox", "a dog"], "dimensions": 64 });
    let (status, answer) = gateway.post("/v1/embeddings", &body).await;
    assert_eq!((status, answer["data"][1]["embedding"].as_array().map(Vec::len)), (200, Some(64)), "{answer}");

    let (status, answer) = gateway.post("/v1/chat/completions", &chat_body(CHAT, &"word ".repeat(3000))).await;
    let error = &answer["error"];
    assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("2048") && text.contains("shorten")), "{error}");
    common::eventually("all tickets are back", async || cluster.tickets().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_transports_give_the_same_answers() {
    let worker = Process::start(&["worker", "--no-register", "--port", "0", "--grpc-port", "0"]);
    common::eventually("it is ready", async || common::is_ready(&worker.address).await).await;
    let grpc = client(&worker.grpc_address().await, None);
    let http = WorkerClient::new(http_client(Timeouts::default()), &worker.address, None);

    let request = GenerateRequest { logprobs: Some(3), choices: 2, ..question(&facts::capital(1).0) };
    let by_grpc: Vec<_> = grpc.generate(&request).await.expect("accepted").map(Result::unwrap).collect().await;
    let by_http: Vec<_> = http.generate(&request).await.expect("accepted").map(Result::unwrap).collect().await;
    assert!(matches!(by_grpc.last(), Some(Event::Done { .. })), "{by_grpc:?}");
    assert_eq!(answer_of(&by_grpc), answer_of(&by_http));

    let request = EmbedRequest {
        model: EMBEDDING.to_owned(),
        inputs: vec![EmbedInput::Text("a quick fox".to_owned()), EmbedInput::Tokens(vec![5, 6, 7])],
        ..EmbedRequest::default()
    };
    assert_eq!(grpc.embed(&request).await.expect("vectors"), http.embed(&request).await.expect("vectors"));

    let refused = |error: ClientError| match error {
        ClientError::Refused { problem, .. } => problem,
        other => panic!("{other:?}"),
    };
    let long = question(&"word ".repeat(3000));
    let problem: Problem = refused(grpc.generate(&long).await.err().expect("too long"));
    assert_eq!(problem.kind, Kind::PromptTooLong);
    assert_eq!(problem, refused(http.generate(&long).await.err().expect("too long")));
}

/// Text, tokens and log-probabilities of each choice, however they were cut into events.
fn answer_of(events: &[Event]) -> Vec<(u32, String, Vec<u32>, usize)> {
    let mut answers: Vec<(u32, String, Vec<u32>, usize)> =
        (0..2).map(|choice| (choice, String::new(), vec![], 0)).collect();
    for event in events {
        if let Event::Delta { choice, text, tokens, logprobs } = event {
            let answer = &mut answers[*choice as usize];
            answer.1.push_str(text);
            answer.2.extend(tokens);
            answer.3 += logprobs.len();
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_messages_too_long_are_refused() {
    let flags = ["worker", "--no-register", "--port", "0", "--grpc-port", "0", "--model", "fake"];
    let worker = Process::start(&[&flags[..], &["--fleet-token", "right", "--body-limit", "10KiB"]].concat());
    common::eventually("it is ready", async || common::is_ready(&worker.address).await).await;
    let address = worker.grpc_address().await;
    let fake = |text: &str| GenerateRequest::new("fake", Prompt::Text(text.to_owned()));
    for (token, prompt, kind, part) in [
        (None, "hi", Kind::BadKey, "Authorization: Bearer"),
        (Some("wrong"), "hi", Kind::BadKey, "is wrong"),
        (Some("right"), &"a".repeat(11 << 10), Kind::TooLarge, "10240 bytes"),
    ] {
        let error = client(&address, token).generate(&fake(prompt)).await.err().expect("refused");
        let ClientError::Refused { problem, .. } = &error else { panic!("{error:?}") };
        assert!(problem.kind == kind && problem.message.contains(part), "{problem:?}");
    }
    let events = client(&address, Some("right")).generate(&fake("hi")).await.expect("accepted");
    assert!(events.collect::<Vec<_>>().await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_with_a_token_uses_it_over_grpc() {
    let token = ["--fleet-token", "secret"];
    let controller = Process::start(&[&["controller", "--port", "0"][..], &token].concat());
    let _worker = worker(&controller.address, &[&GRPC[..], &token, &["--model", "fake"]].concat());
    let gateway = gateway(&controller.address, &token);
    let answered = async || gateway.post("/v1/chat/completions", &chat_body("fake", "hi")).await.0 == 200;
    common::eventually("the fleet answers", answered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_place_over_grpc() {
    let cluster = Cluster::start(&[&SLOW]).await;
    for streamed in [true, false] {
        let mut body = chat_body("fake", "hello");
        body["stream"] = json!(streamed);
        let url = format!("{}/v1/chat/completions", cluster.gateway.address);
        let request = reqwest::Client::new().post(url).json(&body);
        let asked = tokio::spawn(async move {
            let mut response = request.send().await?;
            while response.chunk().await?.is_some() {}
            reqwest::Result::Ok(())
        });
        common::eventually("the worker runs it", async || cluster.workers[0].running().await == 1).await;
        asked.abort();
        common::eventually("the row is free", async || cluster.workers[0].running().await == 0).await;
        common::eventually("the ticket is back", async || cluster.tickets().await == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_no_whole_answer_and_its_port_is_used_again() {
    let steady = ["--transport", "grpc", "--model", "fake", "--fake-token-time", "3ms", "--fake-answer", "100"];
    let flags = [&["--grpc-port", "0"][..], &steady].concat();
    let mut cluster = Cluster::start(&[&flags, &flags]).await;
    let port = |address: &str| address.rsplit(':').next().expect("a port").to_owned();
    let (http, grpc) = (port(&cluster.workers[0].address), port(&cluster.workers[0].grpc_address().await));
    let gateway = cluster.gateway.address.clone();
    let clients = futures_util::future::join_all((0..16).map(|_| common::ask(&gateway, "fake", "hello")));
    let killer = async {
        common::eventually("both work", async || cluster.workers[0].running().await > 0).await;
        cluster.workers[0].kill();
    };
    let (answers, ()) = tokio::join!(clients, killer);
    assert!(answers.iter().all(|answer| answer.len() == 100), "{answers:?}");

    cluster.workers[1].kill();
    let flags = ["worker", "--controller-address", &cluster.controller.address, "--port", &http, "--grpc-port", &grpc];
    let _again = Process::start(&[&flags[..], &steady].concat());
    let answered = async || cluster.gateway.post("/v1/chat/completions", &chat_body("fake", "hi")).await.0 == 200;
    common::eventually("the same port answers again", answered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_told_to_stop_finishes_what_it_runs_over_grpc() {
    let steady = ["--model", "fake", "--fake-token-time", "5ms", "--fake-answer", "100"];
    let mut cluster = Cluster::start(&[&[&GRPC[..], &steady].concat()]).await;
    let running_stream = stream(&cluster.gateway.address, chat_body("fake", "hello"));
    let stopping = async {
        common::eventually("the request runs", async || cluster.workers[0].running().await == 1).await;
        cluster.workers[0].signal("TERM");
    };
    let (events, ()) = tokio::join!(running_stream, stopping);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"), "the running stream ends whole");
    assert!(cluster.workers[0].ended().await.success(), "{}", cluster.workers[0].errors());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_registers_by_the_transport_it_is_told() {
    let (fastchat, address) = (
        ["--transport", "fastchat", "--model", "fake"],
        ["--worker-address", "http://localhost:7", "--worker-id", "w"],
    );
    let cluster = Cluster::start(&[&fastchat, &["--grpc-port", "0", "--model", "a=fake"]]).await;
    let fleet = cluster.controller.get("/fleet").await;
    let transport = |index: usize| {
        let workers = fleet["workers"].as_array().expect("workers");
        let worker = workers.iter().find(|entry| entry["id"] == cluster.workers[index].address.as_str());
        worker.expect("it is there")["transport"].clone()
    };
    assert_eq!((transport(0), transport(1)), (json!("fastchat"), json!("http")), "{fleet}");
    assert!(cluster.ask("fake", "hi").await.starts_with("All"), "over FastChat's protocol");

    // Over gRPC a worker is where its address says, at its own port.
    let away = worker(&cluster.controller.address, &[&GRPC[..], &address, &["--model", "b=fake"]].concat());
    let known = async || address_of(&cluster, "w").await.is_some();
    common::eventually("it has registered", known).await;
    let at = away.grpc_address().await.replace("127.0.0.1", "localhost");
    assert_eq!(address_of(&cluster, "w").await, Some(json!(at)));
    assert!(cluster.ask("b", "hi").await.starts_with("All"));
}

async fn address_of(cluster: &Cluster, id: &str) -> Option<Value> {
    let fleet = cluster.controller.get("/fleet").await;
    let workers = fleet["workers"].as_array().expect("workers");
    Some(workers.iter().find(|entry| entry["id"] == id)?["address"].clone())
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn no_socket_is_opened_without_the_flag() {
    let flags = ["worker", "--no-register", "--port", "0", "--model", "fake"];
    for (more, count) in [(&[][..], 1), (&["--grpc-port", "0"][..], 2)] {
        let worker = Process::start(&[&flags[..], more].concat());
        common::eventually("it is ready", async || common::is_ready(&worker.address).await).await;
        assert_eq!(listening(worker.id()), count, "{more:?}");
    }
}

/// Sockets that a process listens on, as Linux tells.
#[cfg(target_os = "linux")]
fn listening(process: u32) -> usize {
    let table = std::fs::read_to_string(format!("/proc/{process}/net/tcp")).expect("a table");
    let listening: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|columns| columns.get(3) == Some(&"0A"))
        .map(|columns| format!("socket:[{}]", columns[9]))
        .collect();
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).expect("open files");
    let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    links.filter(|link| listening.iter().any(|socket| link.as_os_str() == socket.as_str())).count()
}
